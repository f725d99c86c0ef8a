"""Predicted futures of confirmed tracks that lie on objects that count.

Displacement errors are those of the best of all published modes, as on Argoverse and nuScenes; networks with
different numbers of modes are not to be compared by them. The mixture's likelihood has no such weakness.
Only objects that are found have predictions: who finds fewer, and easier, ones may predict better.

Legend: M modes, S steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.frames import compare
from e2e_perception.evaluation.means import Means

Array = NDArray[np.float64]

HORIZON_S, SHORT_S = 4.0, 2.0  # [s]
MISS_DISTANCE = 2.0  # [m] at the horizon, by the best mode
BY_CLASS = ("min_ade_m", "min_fde_m", "miss_rate")
ALL = (*BY_CLASS, "min_ade_2s_m", "min_fde_2s_m", "nll")


class MotionMetrics:
    """Accumulates predictions, object by object; means are over all of them."""

    def __init__(self) -> None:
        self._means = Means((*ALL, *(f"{kind}/{name}" for kind in CLASSES for name in BY_CLASS)))

    def add(self, result: FrameResult, truth: TruthFrame) -> None:
        """Compare one frame's predictions with what came.

        Args:
            result: Its futures are at the times of the truth's.
            truth: Of the same instant.
        """
        tracks = result.tracks
        if tracks is None:
            return
        compared = compare(result, truth)
        rows, columns = compared.pairs()
        times = truth.times_S
        for label, track in zip(compared.label_rows_L[rows], compared.track_rows_N[columns], strict=True):
            valid_S = truth.futures_valid_LS[label]
            truth_S2 = truth.futures_LS3[label, :, :2].astype(np.float64)
            futures_MS2 = tracks.futures_NMT2[track].astype(np.float64)
            if valid_S.any():
                nll_S = mixture_nll(
                    truth_S2,
                    futures_MS2,
                    tracks.futures_std_NMT2[track].astype(np.float64),
                    tracks.mode_probabilities_NM[track].astype(np.float64),
                )
                self._means.add("nll", float(nll_S[valid_S].sum()), int(valid_S.sum()))
            distance_MS = np.linalg.norm(futures_MS2 - truth_S2, axis=-1)
            kind = CLASSES[int(truth.boxes.class_ids_N[label])]
            self._add(distance_MS, valid_S, times, SHORT_S, {"min_ade_2s_m": "ade", "min_fde_2s_m": "fde"})
            named = {"min_ade_m": "ade", "min_fde_m": "fde", "miss_rate": "miss"}
            named |= {f"{kind}/{name}": what for name, what in named.items()}
            self._add(distance_MS, valid_S, times, HORIZON_S, named)

    def _add(
        self,
        distance_MS: Array,
        valid_S: NDArray[np.bool_],
        times_S: Array,
        until: float,
        named: dict[str, str],
    ) -> None:
        """Count the errors up to a horizon, if the object is there all the time until then."""
        upto_S = times_S <= until + 1e-6
        if times_S[-1] < until - 1e-6 or not valid_S[upto_S].all():
            return
        distance_MS = distance_MS[:, upto_S]
        end = float(distance_MS[:, -1].min())
        values = {
            "ade": float(distance_MS.mean(axis=1).min()),
            "fde": end,
            "miss": float(end > MISS_DISTANCE),
        }
        for name, what in named.items():
            self._means.add(name, values[what])

    def merge(self, other: MotionMetrics) -> None:
        """Add everything that another one has accumulated."""
        self._means.merge(other._means)

    def figures(self) -> dict[str, float]:
        """By name; NaN for what cannot be measured."""
        return {f"motion/{name}": value for name, value in self._means.values().items()}


def mixture_nll(truth_S2: Array, futures_MS2: Array, std_MS2: Array, probabilities_M: Array) -> Array:
    """Negative log-likelihood of where an object was, under a mixture of Gaussians at each step.

    Args:
        truth_S2: [m]
        futures_MS2, std_MS2: Means and standard deviations along the axes [m].
        probabilities_M: Of the modes.
    Returns:
        (S,) [nats], of a density per square metre.
    """
    z_MS2 = (truth_S2 - futures_MS2) / std_MS2
    density_MS = -0.5 * (z_MS2**2).sum(-1) - np.log(std_MS2).sum(-1) - np.log(2.0 * np.pi)
    with np.errstate(divide="ignore"):  # a mode without probability takes no part
        weights_M1 = np.log(probabilities_M)[:, None]
    return np.asarray(-logsumexp(weights_M1 + density_MS, axis=0))
