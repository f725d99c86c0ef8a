"""AMOTA and AMOTP: tracking at every operating point, not at the one that the stack chose (Weng et al. 2020).

As in nuScenes a track's score is the mean over its life, thresholds of that score give recalls, and at 40
recalls from 10 % to 100 %

    MOTAR = max(0, 1 - (switches + false + misses - (1 - recall) * objects) / (recall * objects))

is averaged, 0 where a recall is not reached; AMOTP is the mean distance of hits, 2 m where it is not. It
differs from nuScenes in three things. The thresholds are `SCORES`, so that counts of several drives add up;
a recall stands for the highest of them that reaches it. All classes are pooled, because a drive has few
objects of each. And `recall` counts switches as found, as the formula means it.

Legend: T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from e2e_perception.evaluation.clear_mot import ClearCounts, clear_counts
from e2e_perception.evaluation.frames import Compared
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE

SCORES = tuple((0.05 * np.arange(20)).round(2).tolist())  # (T,) rising, the first keeps every track
RECALLS = np.linspace(0.1, 1.0, 40)
_ROUNDING = 1e-9


def counts_by_score(frames: Sequence[Compared], everything: ClearCounts) -> tuple[ClearCounts, ...]:
    """Count one drive at each of `SCORES`.

    Args:
        frames: In order of time.
        everything: The counts with all tracks.
    Returns:
        (T,) counts without identities.
    """
    ids = np.concatenate([np.zeros(0, np.int64), *(frame.tracks.ids_N for frame in frames)])
    scores = np.concatenate([np.zeros(0), *(frame.tracks.scores_N for frame in frames)])
    identities, where = np.unique(ids, return_inverse=True)
    means = np.bincount(where, scores, len(identities)) / np.maximum(np.bincount(where), 1)
    found: list[ClearCounts] = []
    before = len(identities)
    for score in SCORES:
        strong = identities[means >= score]
        if len(strong) == before:
            found.append(found[-1] if found else everything)
            continue
        before = len(strong)
        kept = [np.isin(frame.tracks.ids_N, strong) for frame in frames]
        found.append(clear_counts(frames, kept, identities=False)[0])
    return tuple(found)


def average_figures(counts_T: Sequence[ClearCounts]) -> dict[str, float]:
    """`amota` and `amotp_m`; NaN if there was nothing to find."""
    objects = counts_T[0].objects if counts_T else 0.0
    if objects == 0.0:
        return {"amota": math.nan, "amotp_m": math.nan}
    accuracies, distances = [], []
    for wanted in RECALLS.tolist():
        reaching = [counts for counts in counts_T if counts.hits / objects >= wanted - _ROUNDING]
        if not reaching:
            accuracies.append(0.0)
            distances.append(MATCH_DISTANCE)
            continue
        at = reaching[-1]
        surplus = at.switches + at.false_tracks + at.misses - (objects - at.hits)
        accuracies.append(max(0.0, 1.0 - surplus / at.hits))
        distances.append(at.distance / at.hits)
    return {"amota": float(np.mean(accuracies)), "amotp_m": float(np.mean(distances))}
