"""Which objects and tracks of a frame count, and which belong together; one rule for all perception metrics.

An object counts if a sensor saw it at that instant and it lies in `AREA`. The others are neither right nor
wrong: nobody has to find them, and a track on one of them is no false one.

Legend: L counted objects, N tracks, K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.on_bag import AREA, MATCH_DISTANCE

Rows = NDArray[np.int64]


def counted(truth: TruthFrame) -> NDArray[np.bool_]:
    """(all objects,) whether each one counts."""
    x, y = truth.boxes.centers_N3[:, 0], truth.boxes.centers_N3[:, 1]
    inside = (x > AREA[0]) & (x < AREA[1]) & (y > AREA[2]) & (y < AREA[3])
    return np.asarray(inside & truth.visible_L)


def reported(result: FrameResult) -> Boxes:
    """All tracks, confirmed or not; none if the frame gave none."""
    return Boxes.empty() if result.tracks is None else result.tracks.boxes


def distances(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Between centres on the ground [m], (len(first), len(second))."""
    gaps = first.centers_N3[:, None, :2].astype(np.float64) - second.centers_N3[None, :, :2]
    return np.asarray(np.linalg.norm(gaps, axis=-1))


@dataclass(frozen=True)
class Compared:
    """Objects that count beside confirmed tracks that are not on one that does not.

    Attributes:
        labels, tracks: Both.
        label_rows_L, track_rows_N: Their rows in the frame's truth and in its tracks.
        distance_LN: Between centres [m].
    """

    labels: Boxes
    tracks: Boxes
    label_rows_L: Rows
    track_rows_N: Rows
    distance_LN: NDArray[np.float64]

    def pairs(self) -> tuple[Rows, Rows]:
        """Rows (K,) of `labels` and of `tracks` that belong together.

        As many as possible within `MATCH_DISTANCE`, and among these the least total distance.
        """
        near_LN = self.distance_LN < MATCH_DISTANCE
        # No sum of near distances reaches the price of one that is not near.
        far = MATCH_DISTANCE * (1.0 + min(self.distance_LN.shape))
        rows, columns = linear_sum_assignment(np.where(near_LN, self.distance_LN, far))
        good = near_LN[rows, columns]
        return rows[good].astype(np.int64), columns[good].astype(np.int64)


def compare(result: FrameResult, truth: TruthFrame) -> Compared:
    """Set a frame's confirmed tracks beside what was there.

    Args:
        result: Without tracks it is as if it had found nothing.
        truth: Of the same instant.
    """
    counted_rows = np.flatnonzero(counted(truth))
    ignored = truth.boxes.select(np.flatnonzero(~counted(truth)))
    labels = truth.boxes.select(counted_rows)
    confirmed = np.zeros(0, np.int64) if result.tracks is None else np.flatnonzero(result.tracks.confirmed_N)
    tracks = reported(result).select(confirmed)
    distance_LN = distances(labels, tracks)
    nearest_ignored_N = distances(ignored, tracks).min(axis=0, initial=np.inf)
    on_ignored_N = (nearest_ignored_N < MATCH_DISTANCE) & (
        nearest_ignored_N < distance_LN.min(axis=0, initial=np.inf)
    )
    kept = np.flatnonzero(~on_ignored_N)
    return Compared(labels, tracks.select(kept), counted_rows, confirmed[kept], distance_LN[:, kept])
