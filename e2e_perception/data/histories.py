"""Where the robot was and where labelled objects were, at any instant of a recording that is being read.

Both forget what lies further back than they are told to keep, so that memory does not grow with the
recording; both interpolate between what was recorded and never beyond it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE2, wrap_angle

MAX_ODOMETRY_GAP_NS = 300_000_000
MAX_LABEL_GAP_NS = 650_000_000  # labels at 2 Hz are joined
LATE_FRAME_NS = 2_000_000_000  # a frame may come so much later than labels of its instant
NEAR_LABEL_NS = 30_000_000  # beside its first or last label an object is where that says


class PoseHistory:
    """Poses of the robot in stretches of continuous odometry."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._poses: list[SE2] = []
        self._stretches: list[int] = []

    @property
    def latest_ns(self) -> int | None:
        """Stamp of the newest pose [ns]."""
        return self._stamps[-1] if self._stamps else None

    def add(self, state: EgoState, stretch: int) -> None:
        """Take a pose; one that is not newer than the last of the same stretch is left out.

        Args:
            state: The robot.
            stretch: Rises where odometry does not go on (`EgoMotionBuffer.epoch`).
        """
        if self._stamps and self._stretches[-1] == stretch and state.stamp_ns <= self._stamps[-1]:
            return
        if self._stretches and self._stretches[-1] != stretch and state.stamp_ns <= self._stamps[-1]:
            # The clock was set back: what is older than that cannot be asked for any more.
            self._stamps, self._poses, self._stretches = [], [], []
        self._stamps.append(state.stamp_ns)
        self._poses.append(state.odom_from_base.planar_part())
        self._stretches.append(stretch)

    def forget_before(self, stamp_ns: int) -> None:
        """Drop what is older, but for the last one."""
        keep_from = max(bisect.bisect_right(self._stamps, stamp_ns) - 1, 0)
        del self._stamps[:keep_from], self._poses[:keep_from], self._stretches[:keep_from]

    def at(self, stamp_ns: int, stretch: int | None = None) -> SE2 | None:
        """Pose at an instant; None where none is known.

        Args:
            stamp_ns: [ns]
            stretch: Only in this one, so that two poses can be compared; None: any.
        """
        i = bisect.bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            return self._poses[i] if stretch in (None, self._stretches[i]) else None
        if i == 0 or i == len(self._stamps) or self._stretches[i - 1] != self._stretches[i]:
            return None
        gap_ns = self._stamps[i] - self._stamps[i - 1]
        if gap_ns > MAX_ODOMETRY_GAP_NS or stretch not in (None, self._stretches[i]):
            return None
        f = (stamp_ns - self._stamps[i - 1]) / gap_ns
        a, b = self._poses[i - 1], self._poses[i]
        yaw = a.yaw + f * float(wrap_angle(b.yaw - a.yaw))
        return SE2(a.x + f * (b.x - a.x), a.y + f * (b.y - a.y), yaw)


@dataclass
class _Track:
    """One identity's labels, odom frame; columns x, y, z, yaw, length, width, height, vx, vy, score."""

    stamps: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float64]] = field(default_factory=list)
    class_id: int = 0


class LabelHistory:
    """Labelled objects of one recording by identity, odom frame.

    Attributes:
        latest_ns: Stamp of the newest labels [ns].
    """

    def __init__(self) -> None:
        self.latest_ns: int | None = None
        self._stamps: list[int] = []
        self._tracks: dict[int, _Track] = {}

    def add(self, stamp_ns: int, boxes: Boxes, odom_from_base: SE2) -> None:
        """Take the labels of an instant; they are not older than the last ones.

        Args:
            stamp_ns: [ns]
            boxes: Base frame; those without an identity are left out.
            odom_from_base: The robot at that instant.
        """
        self.latest_ns = stamp_ns
        if not self._stamps or stamp_ns > self._stamps[-1]:
            self._stamps.append(stamp_ns)
        centers_N2 = odom_from_base.apply(boxes.centers_N3[:, :2])
        velocities_N2 = odom_from_base.rotate(boxes.velocities_N2)
        for n, identity in enumerate(boxes.ids_N.tolist()):
            if identity < 0:
                continue
            track = self._tracks.setdefault(identity, _Track())
            if track.stamps and track.stamps[-1] >= stamp_ns:
                continue
            track.class_id = int(boxes.class_ids_N[n])
            track.stamps.append(stamp_ns)
            track.rows.append(
                np.array(
                    [
                        *centers_N2[n],
                        boxes.centers_N3[n, 2],
                        float(boxes.yaws_N[n]) + odom_from_base.yaw,
                        *boxes.sizes_N3[n],
                        *velocities_N2[n],
                        boxes.scores_N[n],
                    ],
                    np.float64,
                )
            )

    def clear(self) -> None:
        """Forget everything: odometry does not go on, so that nothing can be compared any more."""
        self._tracks, self._stamps, self.latest_ns = {}, [], None

    def forget_before(self, stamp_ns: int) -> None:
        """Drop what not even a late frame of that time needs, but for the last of each object before it."""
        stamp_ns -= LATE_FRAME_NS
        del self._stamps[: max(bisect.bisect_right(self._stamps, stamp_ns) - 1, 0)]
        for identity, track in list(self._tracks.items()):
            keep_from = max(bisect.bisect_right(track.stamps, stamp_ns) - 1, 0)
            del track.stamps[:keep_from], track.rows[:keep_from]
            if track.stamps[-1] < stamp_ns - MAX_LABEL_GAP_NS:
                del self._tracks[identity]

    def covers(self, stamp_ns: int) -> bool:
        """Whether labels, even of nobody, came for an instant: beside it, or close enough around it."""
        i = bisect.bisect_left(self._stamps, stamp_ns)
        around = self._stamps[max(i - 1, 0) : i + 1]
        if any(abs(labelled_ns - stamp_ns) <= NEAR_LABEL_NS for labelled_ns in around):
            return True
        return i > 0 and len(around) == 2 and around[1] - around[0] <= MAX_LABEL_GAP_NS

    def at(self, stamp_ns: int) -> Boxes:
        """Objects at an instant between two labels of theirs, odom frame; the score is that of the nearer."""
        found = [
            (identity, track.class_id, row)
            for identity, track in sorted(self._tracks.items())
            if (row := _between(track, stamp_ns)) is not None
        ]
        table = np.array([row for _, _, row in found], np.float64).reshape(len(found), 10)
        return Boxes(
            centers_N3=table[:, :3].astype(np.float32),
            sizes_N3=table[:, 4:7].astype(np.float32),
            yaws_N=np.asarray(wrap_angle(table[:, 3]), np.float32),
            velocities_N2=table[:, 7:9].astype(np.float32),
            class_ids_N=np.array([class_id for _, class_id, _ in found], np.int64),
            scores_N=table[:, 9].astype(np.float32),
            ids_N=np.array([identity for identity, _, _ in found], np.int64),
        )


def _between(track: _Track, stamp_ns: int) -> NDArray[np.float64] | None:
    stamps, rows = track.stamps, track.rows
    i = bisect.bisect_left(stamps, stamp_ns)
    if i < len(stamps) and stamps[i] == stamp_ns:
        return rows[i]
    if 0 < i < len(stamps) and stamps[i] - stamps[i - 1] <= MAX_LABEL_GAP_NS:
        f = (stamp_ns - stamps[i - 1]) / (stamps[i] - stamps[i - 1])
        a, b = rows[i - 1], rows[i]
        row = (1.0 - f) * a + f * b
        row[3] = a[3] + f * float(wrap_angle(b[3] - a[3]))
        row[9] = a[9] if f < 0.5 else b[9]
        return np.asarray(row)
    nearest = min((j for j in (i - 1, i) if 0 <= j < len(stamps)), key=lambda j: abs(stamps[j] - stamp_ns))
    if abs(stamps[nearest] - stamp_ns) > NEAR_LABEL_NS:
        return None
    row = rows[nearest].copy()
    row[:2] += row[7:9] * (stamp_ns - stamps[nearest]) * 1e-9
    return np.asarray(row)
