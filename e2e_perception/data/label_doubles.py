"""Objects that are labelled twice: pairs of tracks of one class at one place, over all clips of a shard.

Legend: N labels of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import BOX_FIELDS

DISTANCE = 0.5  # [m] between centres of one class
X, Y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")


@dataclass
class DoubledPair:
    """Two tracks of one class that stand in one another.

    Attributes:
        first, second: Their identities, the lesser one first.
        class_name: Of both, where they are nearest.
        stamps_ns: Of the frames in which they do.
        clips: That these frames are in.
        gap: Between their centres where they are nearest [m].
        clip_id, stamp_ns: Where that is.
    """

    first: int
    second: int
    class_name: str = ""
    stamps_ns: set[int] = field(default_factory=set)
    clips: set[str] = field(default_factory=set)
    gap: float = np.inf
    clip_id: str = ""
    stamp_ns: int = 0

    @property
    def message(self) -> str:
        """In words."""
        frames, clips = len(self.stamps_ns), len(self.clips)
        return (
            f"{self.class_name} {self.first} and {self.second} are {self.gap:.1f} m apart; within "
            f"{DISTANCE:g} m in {frames} frames of {clips} clip{'s' if clips > 1 else ''}"
        )


@dataclass
class LabelDoubles:
    """Takes the clips of one shard.

    Attributes:
        labels: Of all frames, each frame counted in every clip that it is in.
        doubled: Of those, the ones that stand in another.
    """

    labels: int = 0
    doubled: int = 0
    _pairs: dict[tuple[int, int], DoubledPair] = field(default_factory=dict)

    def add(self, clip: Clip, clip_id: str) -> None:
        """Take a clip in; one that is not labelled says nothing."""
        if not clip.labels_valid:
            return
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            rows = np.flatnonzero(clip.ids_TB[t] >= 0)
            places_N2, classes_N = clip.boxes_TB10[t, rows][:, [X, Y]], clip.class_ids_TB[t, rows]
            gaps_NN = np.linalg.norm(places_N2[:, None] - places_N2[None], axis=-1)
            near_NN = np.triu((gaps_NN < DISTANCE) & (classes_N[:, None] == classes_N[None]), k=1)
            self.labels += len(rows)
            self.doubled += int(near_NN.any(axis=0).sum())
            for a, b in zip(*near_NN.nonzero(), strict=True):
                first, second = sorted(int(clip.ids_TB[t, rows[n]]) for n in (a, b))
                if first == second:
                    continue  # another check: an identity that is there twice
                pair = self._pairs.setdefault((first, second), DoubledPair(first, second))
                pair.stamps_ns.add(stamp_ns)
                pair.clips.add(clip_id)
                if gaps_NN[a, b] < pair.gap:
                    pair.gap, pair.class_name = float(gaps_NN[a, b]), CLASSES[int(classes_N[a])]
                    pair.clip_id, pair.stamp_ns = clip_id, stamp_ns

    def pairs(self) -> Iterator[DoubledPair]:
        """Each pair once, by identities."""
        for key in sorted(self._pairs):
            yield self._pairs[key]
