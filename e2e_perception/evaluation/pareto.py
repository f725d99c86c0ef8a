"""Pareto fronts: which networks no other beats on every axis, and how the rest rank.

A point dominates another if it is at least as good on every axis and better on one; equal points do not
dominate each other.

Legend: N points, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """What points are compared by.

    Attributes:
        name: A figure, an objective or a fact.
        goal: Which way is better.
    """

    name: str
    goal: Literal["maximise", "minimise"]


@dataclass(frozen=True)
class Ranking:
    """Where points stand.

    Attributes:
        ranks_N: (N,) int, 0: nobody dominates it; 1: only points of rank 0 do; and so on.
        dominators_N: (N,) int, a point of rank 0 that dominates it; -1 for points of rank 0.
    """

    ranks_N: NDArray[np.int64]
    dominators_N: NDArray[np.int64]


def rank(values_NA: Array, axes: Sequence[Axis]) -> Ranking:
    """Non-dominated sort (Deb et al. 2002): each front is what nobody dominates once the earlier are gone.

    Args:
        values_NA: (N, A) finite, N >= 1.
        axes: A of them, at least one.
    Raises:
        InputError: If the shape does not fit, or a value is not finite.
    """
    better_NA = _larger_is_better(values_NA, axes)
    no_worse_NN: NDArray[np.bool_] = np.all(better_NA[:, None] >= better_NA[None], axis=-1)
    dominates_NN = no_worse_NN & ~no_worse_NN.T  # [i, j]: i dominates j
    ranks_N = np.full(len(better_NA), -1, np.int64)
    front = 0
    while (ranks_N < 0).any():
        left = np.flatnonzero(ranks_N < 0)
        beaten = np.any(dominates_NN[np.ix_(left, left)], axis=0)
        ranks_N[left[~beaten]] = front
        front += 1
    # Domination is transitive, so whoever is dominated is so by someone of the first front.
    by_first_NN = dominates_NN & (ranks_N == 0)[:, None]
    dominators_N = np.where(by_first_NN.any(axis=0), by_first_NN.argmax(axis=0), -1)
    return Ranking(ranks_N, dominators_N.astype(np.int64))


def _larger_is_better(values_NA: Array, axes: Sequence[Axis]) -> Array:
    values_NA = np.asarray(values_NA, np.float64)
    if not axes or values_NA.ndim != 2 or values_NA.shape[1] != len(axes) or len(values_NA) == 0:
        raise InputError(
            f"Pareto front: values of shape {values_NA.shape} for {len(axes)} axes; expected at least one "
            "point and one axis, and a value of each point on each axis"
        )
    if not np.isfinite(values_NA).all():
        odd = [axis.name for a, axis in enumerate(axes) if not np.isfinite(values_NA[:, a]).all()]
        raise InputError(
            f"Pareto front: a point has no finite value on {', '.join(odd)}; leave it or the axis out"
        )
    signs_A = np.array([1.0 if axis.goal == "maximise" else -1.0 for axis in axes])
    return np.asarray(values_NA * signs_A)
