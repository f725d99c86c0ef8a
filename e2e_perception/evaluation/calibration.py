"""Whether the stack is as sure as it may be: scores of what it reports, deviations of where things are.

A score is calibrated if of all detections with score 0.8 four in five are right (Guo et al. 2017). A Gaussian
is calibrated if its central 80 % hold the truth four times in five (Kuleshov et al. 2018); of two that are,
the sharper one knows more. Futures are mixtures: their coverage is read from the mixture's own
distribution function, along each axis. Only tracks that lie within 2 m of an object have a truth to compare
with, so errors beyond that are not in here. Velocities are published without a standard deviation.

Legend: B bins, C levels, K numbers, M modes, S steps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.frames import compare

Array = NDArray[np.float64]

NUM_BINS = 15
LEVELS_C = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


@dataclass(frozen=True)
class Reliability:
    """Scores against what came of them; bins without a detection are left out.

    Attributes:
        predicted: Mean score of each bin.
        observed: Share of it that is right.
        counts: How many.
        ece: Expected calibration error: mean |predicted - observed| over detections; NaN if there is none.
    """

    predicted: list[float]
    observed: list[float]
    counts: list[int]
    ece: float

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Coverage:
    """Central intervals of predicted distributions against how often they hold the truth.

    Attributes:
        predicted: Nominal levels.
        observed: Share of numbers inside; empty if there is none.
        error: Mean |predicted - observed| over levels.
        std: Sharpness: mean standard deviation.
        nll: Mean negative log-likelihood per axis [nats].
        count: Numbers compared.
    """

    predicted: list[float]
    observed: list[float]
    error: float
    std: float
    nll: float
    count: int

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ReliabilitySums:
    """Accumulates scored detections."""

    def __init__(self) -> None:
        self._sums_B3: Array = np.zeros((NUM_BINS, 3))  # detections, scores, hits

    def add(self, scored_K2: Array) -> None:
        """Take in scores in [0, 1] and whether each was right (1 or 0)."""
        bins_K = np.clip((scored_K2[:, 0] * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
        np.add.at(self._sums_B3, bins_K, np.column_stack([np.ones(len(bins_K)), scored_K2]))

    def merge(self, other: ReliabilitySums) -> None:
        """Add everything that another one has accumulated."""
        self._sums_B3 = self._sums_B3 + other._sums_B3

    def result(self) -> Reliability:
        """The curve and its error."""
        counts, scores, hits = self._sums_B3[self._sums_B3[:, 0] > 0.0].T
        ece = float(np.abs(scores - hits).sum() / counts.sum()) if len(counts) else math.nan
        return Reliability(
            (scores / counts).tolist(), (hits / counts).tolist(), counts.astype(int).tolist(), ece
        )


class CoverageSums:
    """Accumulates numbers with the mixtures of Gaussians that were predicted of them."""

    def __init__(self) -> None:
        self._inside_C: Array = np.zeros(len(LEVELS_C))
        self._std = self._nll = 0.0
        self._count = 0

    def add(self, truth_K: Array, means_MK: Array, std_MK: Array, probabilities_M: Array) -> None:
        """Take in K numbers.

        Args:
            truth_K: What they were.
            means_MK, std_MK: Of each mode.
            probabilities_M: Of the modes, sum 1.
        """
        z_MK = (truth_K - means_MK) / std_MK
        weights_M1 = probabilities_M[:, None]
        quantile_K = (weights_M1 * ndtr(z_MK)).sum(axis=0)
        self._inside_C += (np.abs(2.0 * quantile_K - 1.0) <= LEVELS_C[:, None]).sum(axis=1)
        mean_K = (weights_M1 * means_MK).sum(axis=0)
        self._std += float(np.sqrt((weights_M1 * (std_MK**2 + (means_MK - mean_K) ** 2)).sum(axis=0)).sum())
        log_MK = -0.5 * z_MK**2 - np.log(std_MK) - 0.5 * np.log(2.0 * np.pi)
        self._nll -= float(logsumexp(log_MK, axis=0, b=weights_M1).sum())
        self._count += len(truth_K)

    def merge(self, other: CoverageSums) -> None:
        """Add everything that another one has accumulated."""
        self._inside_C = self._inside_C + other._inside_C
        self._std, self._nll = self._std + other._std, self._nll + other._nll
        self._count += other._count

    def result(self) -> Coverage:
        """The curve, its error, and sharpness."""
        if self._count == 0:
            return Coverage(LEVELS_C.tolist(), [], math.nan, math.nan, math.nan, 0)
        observed_C = self._inside_C / self._count
        return Coverage(
            predicted=LEVELS_C.tolist(),
            observed=observed_C.tolist(),
            error=float(np.abs(observed_C - LEVELS_C).mean()),
            std=self._std / self._count,
            nll=self._nll / self._count,
            count=self._count,
        )


class CalibrationMetrics:
    """Accumulates frames: scores, positions now, positions to come."""

    def __init__(self) -> None:
        self._scores = ReliabilitySums()
        self._gaussians = {"position": CoverageSums(), "future": CoverageSums()}

    def add(self, result: FrameResult, truth: TruthFrame, scored_K2: Array) -> None:
        """Take in one frame.

        Args:
            result, truth: Of the same instant.
            scored_K2: Its detections as `DetectionMetrics.add` has judged them.
        """
        self._scores.add(scored_K2)
        tracks = result.tracks
        if tracks is None:
            return
        compared = compare(result, truth)
        rows, columns = compared.pairs()
        for label, track in zip(compared.label_rows_L[rows], compared.track_rows_N[columns], strict=True):
            self._gaussians["position"].add(
                truth.boxes.centers_N3[label, :2].astype(np.float64),
                tracks.boxes.centers_N3[track, None, :2].astype(np.float64),
                tracks.position_std_N2[track, None].astype(np.float64),
                np.ones(1),
            )
            valid_S = truth.futures_valid_LS[label]
            modes = tracks.futures_NMT2.shape[1]
            self._gaussians["future"].add(
                truth.futures_LS3[label, valid_S, :2].astype(np.float64).ravel(),
                tracks.futures_NMT2[track][:, valid_S].astype(np.float64).reshape(modes, -1),
                tracks.futures_std_NMT2[track][:, valid_S].astype(np.float64).reshape(modes, -1),
                tracks.mode_probabilities_NM[track].astype(np.float64),
            )

    def merge(self, other: CalibrationMetrics) -> None:
        """Add everything that another one has accumulated."""
        self._scores.merge(other._scores)
        for name, sums in self._gaussians.items():
            sums.merge(other._gaussians[name])

    def figures(self) -> dict[str, float]:
        """By name; NaN for what cannot be measured."""
        named = {"score_ece": self._scores.result().ece}
        for name, sums in self._gaussians.items():
            found = sums.result()
            named |= {
                f"{name}_coverage_error": found.error,
                f"{name}_std_m": found.std,
                f"{name}_nll": found.nll,
            }
        return {f"calibration/{name}": value for name, value in named.items()}

    def curves(self) -> dict[str, dict[str, Any]]:
        """Scores and coverage by name; what has nothing to show is left out."""
        found: dict[str, Reliability | Coverage] = {"score": self._scores.result()}
        found |= {name: sums.result() for name, sums in self._gaussians.items()}
        return {name: curve.document() for name, curve in found.items() if curve.observed}
