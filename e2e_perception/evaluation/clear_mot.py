"""Counts of CLEAR MOT (Bernardin & Stiefelhagen 2008) and of IDF1 (Ristani et al. 2016), by `motmetrics`.

Identities are those of one drive, so counts of several drives add up to exact totals.

Legend: L objects, N tracks, K pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from e2e_perception.evaluation.frames import Compared
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE


@dataclass(frozen=True)
class ClearCounts:
    """What happened; counts of several drives add up.

    Attributes:
        objects, predictions: To be found, and tracks, over all frames.
        hits, misses, false_tracks: Of these; a switch is a hit, too.
        switches: How often an object got another track than before.
        fragmentations: How often it was lost and found again.
        identity_hits: Hits that are left if every object may have one track only.
        distance: Sum over hits [m].
    """

    objects: float = 0.0
    predictions: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    false_tracks: float = 0.0
    switches: float = 0.0
    fragmentations: float = 0.0
    identity_hits: float = 0.0
    distance: float = 0.0

    def __add__(self, other: ClearCounts) -> ClearCounts:
        return ClearCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """`mota`, `idf1` (NaN if there was nothing to find), `id_switches`, `fragmentations`."""
        if self.objects == 0.0:
            mota = idf1 = math.nan
        else:
            mota = 1.0 - (self.misses + self.false_tracks + self.switches) / self.objects
            idf1 = 2.0 * self.identity_hits / (self.objects + self.predictions)
        return {
            "mota": mota,
            "idf1": idf1,
            "id_switches": self.switches,
            "fragmentations": self.fragmentations,
        }


@dataclass(frozen=True)
class Followed:
    """Who was matched with whom: K rows over all frames.

    Attributes:
        frames_K: Number of the frame.
        labels_K, tracks_K: Rows of the frame's `labels` and `tracks`.
    """

    frames_K: NDArray[np.int64]
    labels_K: NDArray[np.int64]
    tracks_K: NDArray[np.int64]


def clear_counts(
    frames: Sequence[Compared], kept: Sequence[NDArray[np.bool_]] | None = None, *, identities: bool = True
) -> tuple[ClearCounts, Followed]:
    """Count one drive.

    Args:
        frames: In order of time.
        kept: (N,) for each frame, which tracks there are; None: all.
        identities: Whether `identity_hits` and `fragmentations`, which take time, are wanted.
    """
    import motmetrics

    counts = motmetrics.MOTAccumulator(auto_id=True)
    if kept is None:
        kept = [np.ones(len(frame.tracks), np.bool_) for frame in frames]
    columns = [np.flatnonzero(kept_N) for kept_N in kept]
    for frame, tracks in zip(frames, columns, strict=True):
        distance_LN = frame.distance_LN[:, tracks].copy()
        distance_LN[distance_LN >= MATCH_DISTANCE] = np.nan
        counts.update(frame.labels.ids_N, frame.tracks.ids_N[tracks], distance_LN)
    events = counts.events
    # A change of identity is listed a second time, under names of which nothing is made here.
    kinds = events["Type"].to_numpy().astype(str)
    hit = np.isin(kinds, ("MATCH", "SWITCH"))
    number_K = events.index.get_level_values(0).to_numpy()[hit].astype(np.int64)
    label_ids_K = events["OId"].to_numpy()[hit].astype(np.int64)
    track_ids_K = events["HId"].to_numpy()[hit].astype(np.int64)
    more = {"num_fragmentations": 0.0, "idtp": 0.0}
    objects = float(sum(len(frame.labels) for frame in frames))
    if identities and objects > 0.0:
        more = motmetrics.metrics.create().compute(counts, metrics=[*more], return_dataframe=False)
    found = ClearCounts(
        objects=objects,
        predictions=float(sum(kept_N.sum() for kept_N in kept)),
        hits=float(hit.sum()),
        misses=float((kinds == "MISS").sum()),
        false_tracks=float((kinds == "FP").sum()),
        switches=float((kinds == "SWITCH").sum()),
        fragmentations=float(more["num_fragmentations"]),
        identity_hits=float(more["idtp"]),
        distance=float(events["D"].to_numpy()[hit].sum()),
    )
    return found, Followed(
        number_K,
        np.array(
            [_row(frames[k].labels.ids_N, i) for k, i in zip(number_K, label_ids_K, strict=True)], np.int64
        ),
        np.array(
            [_row(frames[k].tracks.ids_N, i) for k, i in zip(number_K, track_ids_K, strict=True)], np.int64
        ),
    )


def _row(ids_N: NDArray[np.int64], identity: int) -> int:
    return int(np.flatnonzero(ids_N == identity)[0])
