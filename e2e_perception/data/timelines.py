"""The drive behind the clips of a shard: its frames in order, each once, and where the robot was.

Clips that follow each other know of one another only through the robot's future: the pose at the first
frame of a clip is interpolated from what the clip before knows of the seconds after it. Where it knows
nothing, as after a jump of the odometry, another timeline begins.

Legend: T frames, S horizon steps.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.clips import Clip
from e2e_perception.core.frames import SE2

MAX_KNOWN_GAP_NS = 500_000_000  # a horizon step; poses are interpolated between what is known


@dataclass(frozen=True)
class ClipMotion:
    """What a clip knows of the robot's motion; fields as in `Clip`."""

    stamps_ns_T: NDArray[np.int64]
    memory_from_base_T3: NDArray[np.float64]
    ego_future_TS3: NDArray[np.float32]
    ego_future_valid_TS: NDArray[np.bool_]

    @staticmethod
    def of(clip: Clip) -> ClipMotion:
        """Without the rest of the clip."""
        return ClipMotion(
            clip.stamps_ns_T, clip.memory_from_base_T3, clip.ego_future_TS3, clip.ego_future_valid_TS
        )


@dataclass(frozen=True)
class FrameOfClip:
    """Where a frame lies: number of the clip among those given, and of the frame in it."""

    clip: int
    t: int


class Timeline:
    """Frames whose poses can be compared; odom is the base frame of the first of them.

    Attributes:
        clips: Numbers of the clips, by their first stamp.
        frames: By stamp [ns], rising, all places where that frame lies: clips may overlap.
    """

    def __init__(
        self, clips: Sequence[int], frames: Mapping[int, list[FrameOfClip]], poses: Mapping[int, SE2]
    ) -> None:
        self.clips = tuple(clips)
        self.frames = dict(sorted(frames.items()))
        self._poses = dict(poses)
        self._stamps = sorted(poses)

    def pose(self, stamp_ns: int) -> SE2 | None:
        """`odom_from_base` at an instant, interpolated; None where it is not known."""
        return _between(self._stamps, self._poses, stamp_ns)


def timelines(motions: Sequence[ClipMotion], times_S: NDArray[np.float64]) -> list[Timeline]:
    """Put the clips of a shard in order and in one frame as far as that goes.

    Args:
        motions: Of all clips, in any order.
        times_S: Of the robot's future [s].
    """
    ahead_ns = [round(ahead_s * 1e9) for ahead_s in times_S.tolist()]
    order = sorted(range(len(motions)), key=lambda i: (int(motions[i].stamps_ns_T[0]), i))
    found: list[Timeline] = []
    clips: list[int] = []
    frames: dict[int, list[FrameOfClip]] = {}
    placed: dict[int, SE2] = {}  # of frames
    foreseen: dict[int, SE2] = {}  # of the last clip's frames, and of instants after them as that has it

    def close() -> None:
        if clips:
            found.append(Timeline(clips, frames, {**foreseen, **placed}))  # frames stay where they are

    for i in order:
        motion = motions[i]
        stamps = motion.stamps_ns_T.tolist()
        pose = placed.get(stamps[0]) or _between(sorted(foreseen), foreseen, stamps[0])
        if pose is None:
            close()
            clips, frames, placed, foreseen = [], {}, {}, {}
            pose = SE2(0.0, 0.0, 0.0)
        clips.append(i)
        foreseen = {}
        for t, stamp_ns in enumerate(stamps):
            if t:
                pose = pose @ SE2(*motion.memory_from_base_T3[t].tolist())
            frames.setdefault(stamp_ns, []).append(FrameOfClip(i, t))
            placed.setdefault(stamp_ns, pose)
            foreseen[stamp_ns] = pose
            for s in np.flatnonzero(motion.ego_future_valid_TS[t]).tolist():
                moved = SE2(*motion.ego_future_TS3[t, s].astype(np.float64).tolist())
                foreseen.setdefault(stamp_ns + ahead_ns[s], pose @ moved)
    close()
    return found


def _between(stamps: Sequence[int], poses: Mapping[int, SE2], stamp_ns: int) -> SE2 | None:
    i = bisect.bisect_left(stamps, stamp_ns)
    if i < len(stamps) and stamps[i] == stamp_ns:
        return poses[stamp_ns]
    if i in (0, len(stamps)) or stamps[i] - stamps[i - 1] > MAX_KNOWN_GAP_NS:
        return None
    fraction = (stamp_ns - stamps[i - 1]) / (stamps[i] - stamps[i - 1])
    return poses[stamps[i - 1]].interpolate(poses[stamps[i]], fraction)
