"""Higher order tracking accuracy (Luiten et al. 2021): finding and keeping, weighed alike.

`HOTA = sqrt(DetA * AssA)` at each of 19 thresholds of similarity, then the mean. Similarity is
`1 - distance / MATCH_DISTANCE` between centres, as TrackEval has it for objects compared by distance.

Legend: A thresholds, G true identities, P track identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.evaluation.frames import Compared
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE

Array = NDArray[np.float64]

ALPHAS_A = np.arange(1, 20) * 0.05
_ROUNDING = 1e-9


@dataclass(frozen=True)
class HotaSums:
    """Counts at each threshold; those of several drives add up.

    Attributes:
        hits_A, misses_A, false_A: True positives, false negatives, false positives.
        association_A: Sum over true positives of how well their two identities belong together.
    """

    hits_A: Array
    misses_A: Array
    false_A: Array
    association_A: Array

    def __add__(self, other: HotaSums) -> HotaSums:
        return HotaSums(
            self.hits_A + other.hits_A,
            self.misses_A + other.misses_A,
            self.false_A + other.false_A,
            self.association_A + other.association_A,
        )

    @staticmethod
    def zero() -> HotaSums:
        """Nothing counted."""
        return HotaSums(*np.zeros((4, len(ALPHAS_A))))

    def figures(self) -> dict[str, float]:
        """`hota`, `deta`, `assa`; NaN if there was nothing to find and nothing was found."""
        total_A = self.hits_A + self.misses_A + self.false_A
        detection_A = np.divide(self.hits_A, total_A, np.full_like(total_A, np.nan), where=total_A > 0.0)
        association_A = self.association_A / np.maximum(self.hits_A, 1.0)
        return {
            "hota": float(np.sqrt(detection_A * association_A).mean()),
            "deta": float(detection_A.mean()),
            "assa": float(np.where(total_A > 0.0, association_A, np.nan).mean()),
        }


def hota_sums(frames: Sequence[Compared]) -> HotaSums:
    """Count one drive.

    Args:
        frames: In any order; identities are those of one drive.
    """
    identities_G = np.unique(np.concatenate([np.zeros(0, np.int64), *(f.labels.ids_N for f in frames)]))
    identities_P = np.unique(np.concatenate([np.zeros(0, np.int64), *(f.tracks.ids_N for f in frames)]))
    shape = (len(identities_G), len(identities_P))
    frames_G1, frames_1P = np.zeros((shape[0], 1)), np.zeros((1, shape[1]))
    together_GP = np.zeros(shape)
    seen: list[tuple[NDArray[np.int64], NDArray[np.int64], Array]] = []
    for frame in frames:
        g = np.searchsorted(identities_G, frame.labels.ids_N)
        p = np.searchsorted(identities_P, frame.tracks.ids_N)
        similarity = np.maximum(1.0 - frame.distance_LN / MATCH_DISTANCE, 0.0)
        either = similarity.sum(axis=1, keepdims=True) + similarity.sum(axis=0, keepdims=True) - similarity
        together_GP[np.ix_(g, p)] += np.divide(
            similarity, either, np.zeros_like(similarity), where=either > 0.0
        )
        frames_G1[g] += 1.0
        frames_1P[:, p] += 1.0
        seen.append((g, p, similarity))
    # First how well identities belong together over the whole drive, then frame by frame who is whom.
    alignment_GP = together_GP / (frames_G1 + frames_1P - together_GP)
    hits_A, misses_A, false_A = np.zeros((3, len(ALPHAS_A)))
    pairs_AGP = np.zeros((len(ALPHAS_A), *shape))
    for g, p, similarity in seen:
        rows, columns = linear_sum_assignment(-alignment_GP[np.ix_(g, p)] * similarity)
        hit_AK = similarity[rows, columns] >= ALPHAS_A[:, None] - _ROUNDING
        hits_A += hit_AK.sum(axis=1)
        misses_A += len(g) - hit_AK.sum(axis=1)
        false_A += len(p) - hit_AK.sum(axis=1)
        pairs_AGP[:, g[rows], p[columns]] += hit_AK
    association_A = (pairs_AGP * (pairs_AGP / np.maximum(frames_G1 + frames_1P - pairs_AGP, 1.0))).sum((1, 2))
    return HotaSums(hits_A, misses_A, false_A, association_A)
