"""Pareto fronts: which networks no other beats on every axis, how the rest rank, and how much a set covers.

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


def hypervolume(values_NA: Array, axes: Sequence[Axis], reference_A: Array) -> float:
    """Volume between a reference and the front (Zitzler and Thiele 1999), exact.

    Slices along one axis after the other (While et al. 2006): at most N^(A-1) steps, which is nothing for
    tens of points on up to four axes.

    Args:
        values_NA: (N, A) finite.
        axes: A of them.
        reference_A: (A,) a point as bad as any that counts; points that are worse on some axis add nothing.
    Returns:
        In the product of the axes' units.
    Raises:
        InputError: If a shape does not fit, or a value is not finite.
    """
    better_NA = _larger_is_better(values_NA, axes)
    floor_A = _larger_is_better(np.asarray(reference_A, np.float64).reshape(1, -1), axes)[0]
    gains_NA = better_NA - floor_A
    return _volume(gains_NA[(gains_NA > 0.0).all(axis=1)])


def _volume(gains_NA: Array) -> float:
    """Volume of the union of boxes from the origin to each point."""
    if len(gains_NA) == 0:
        return 0.0
    if gains_NA.shape[1] == 1:
        return float(gains_NA.max())
    falling_NA = gains_NA[np.argsort(-gains_NA[:, -1], kind="stable")]
    ends_N = np.append(falling_NA[1:, -1], 0.0)
    thickness_N = falling_NA[:, -1] - ends_N
    return sum(
        float(thickness) * _volume(falling_NA[: n + 1, :-1])
        for n, thickness in enumerate(thickness_N)
        if thickness > 0.0
    )


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
