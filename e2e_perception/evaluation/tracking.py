"""Tracking: CLEAR MOT, identities, HOTA, AMOTA, errors of the state, and how late it is.

Confirmed tracks against objects that count (see `evaluation.frames`), matched within 2 m between centres
whatever their classes; a wrong class is detection's business. A frame without tracks found nothing.

Legend: D delays.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.average_mota import average_figures, counts_by_score
from e2e_perception.evaluation.clear_mot import ClearCounts, Followed, clear_counts
from e2e_perception.evaluation.frames import Compared, compare
from e2e_perception.evaluation.hota import HotaSums, hota_sums
from e2e_perception.evaluation.means import Means
from e2e_perception.evaluation.state_latency import DELAYS_D, lag_errors, times_to_find

POSITION, VELOCITY = "position_error_m", "velocity_error_mps"


class TrackingMetrics:
    """Accumulates drives: `add` every frame of one in order of time, then `end_drive`."""

    def __init__(self) -> None:
        self._frames: list[Compared] = []
        self._truths: list[TruthFrame] = []
        self._clear = ClearCounts()
        self._by_score: tuple[ClearCounts, ...] = ()
        self._hota = HotaSums.zero()
        self._errors = Means((POSITION, VELOCITY))
        self._waits: list[float] = []
        self._lag_D: NDArray[np.float64] = np.zeros(len(DELAYS_D))
        self._lag_count = 0

    def add(self, result: FrameResult, truth: TruthFrame) -> None:
        """Take in the next frame."""
        self._frames.append(compare(result, truth))
        self._truths.append(truth)

    def end_drive(self) -> None:
        """Count the frames added since the last drive's end."""
        frames, truths = self._frames, self._truths
        clear, followed = clear_counts(frames)
        by_score = counts_by_score(frames, clear)
        self._clear += clear
        self._by_score = (
            tuple(a + b for a, b in zip(self._by_score, by_score, strict=True))
            if self._by_score
            else by_score
        )
        self._hota += hota_sums(frames)
        self._add_errors(frames, followed, clear.distance)
        self._waits += times_to_find(frames, [truth.stamp_ns * 1e-9 for truth in truths])
        lag_D, count = lag_errors(truths, frames, followed)
        self._lag_D, self._lag_count = self._lag_D + lag_D, self._lag_count + count
        self._frames, self._truths = [], []

    def _add_errors(self, frames: list[Compared], followed: Followed, distance: float) -> None:
        self._errors.add(POSITION, distance, len(followed.frames_K))
        for k, row, column in zip(followed.frames_K, followed.labels_K, followed.tracks_K, strict=True):
            true, estimated = frames[k].labels.velocities_N2[row], frames[k].tracks.velocities_N2[column]
            self._errors.add(VELOCITY, float(np.linalg.norm(estimated - true)))

    def merge(self, other: TrackingMetrics) -> None:
        """Add the drives of another one; both have ended theirs."""
        assert not self._frames and not other._frames
        self._clear += other._clear
        pairs = (
            zip(self._by_score, other._by_score, strict=True) if self._by_score and other._by_score else ()
        )
        self._by_score = tuple(a + b for a, b in pairs) or self._by_score or other._by_score
        self._hota += other._hota
        self._errors.merge(other._errors)
        self._waits += other._waits
        self._lag_D, self._lag_count = self._lag_D + other._lag_D, self._lag_count + other._lag_count

    def figures(self) -> dict[str, float]:
        """By name; NaN for what cannot be measured."""
        waits = np.array(self._waits)
        found = waits[np.isfinite(waits)]
        named = {
            **self._clear.figures(),
            **self._hota.figures(),
            **average_figures(self._by_score),
            **self._errors.values(),
            "delay_median_s": float(np.median(found)) if len(found) else math.nan,
            "delay_p90_s": float(np.percentile(found, 90)) if len(found) else math.nan,
            "never_found_share": 1.0 - len(found) / len(waits) if len(waits) else math.nan,
            "velocity_lag_s": float(DELAYS_D[self._lag_D.argmin()]) if self._lag_count else math.nan,
        }
        return {f"tracking/{name}": value for name, value in named.items()}
