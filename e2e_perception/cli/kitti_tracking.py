"""One sequence of KITTI detections through the Kalman tracker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.data.kitti import KittiFrame, KittiObject, boxes_on_ground, objects_of_boxes
from e2e_perception.runtime.kalman_tracker import KalmanTracker, KalmanTrackerConfig


@dataclass
class Counts:
    """What was worked on: frames up to the last one with objects, detections, tracks given."""

    frames: int = 0
    detections: int = 0
    tracks: int = 0


@dataclass
class SequenceTracker:
    """Gives the detections of one sequence identities.

    Attributes:
        config: Of the tracker.
        period: Between two frames [s].
        poses: `odom_from_camera` by frame number; None: boxes are followed as the camera sees them.
        coasting: Whether tracks are given also in frames that do not show them.
        counts: So far.
    """

    config: KalmanTrackerConfig
    period: float
    poses: Sequence[SE3] | None = None
    coasting: bool = False
    counts: Counts = field(default_factory=Counts)

    def run(self, frames: Iterable[KittiFrame]) -> Iterator[KittiFrame]:
        """Frames of confirmed tracks, in the camera's frame; those without any are empty or left out.

        Args:
            frames: Of detections, by rising number; numbers that are left out are frames without any.
        Raises:
            InputError: If there is no pose for a frame.
        """
        tracker = KalmanTracker(self.config)
        longest = max(getattr(self.config, name).max_age for name in CLASSES)
        known: dict[int, KittiObject] = {}  # the last detection of each living track
        shown: set[int] = set()  # which of them have been given
        following = 0
        for frame in frames:
            # After so many empty frames everybody is forgotten, and more of them change nothing.
            empty = range(following, min(frame.number, following + longest + 1))
            for now in (*(KittiFrame(number, ()) for number in empty), frame):
                pose = self._pose(now.number)
                tracks = tracker.update(boxes_on_ground(now.objects, pose), self.period)
                living = list(zip(tracks.boxes.ids_N.tolist(), tracks.detections_N.tolist(), strict=True))
                known = {i: now.objects[row] if row >= 0 else known[i] for i, row in living}
                given_N = tracks.confirmed_N & (self.coasting | (tracks.unseen_N == 0))
                boxes = tracks.boxes.select(given_N)
                ids = boxes.ids_N.tolist()
                self.counts.tracks += len(set(ids) - shown)
                shown = (shown | set(ids)) & known.keys()
                yield KittiFrame(now.number, objects_of_boxes(boxes, (known[i] for i in ids), pose))
            following = frame.number + 1
            self.counts.detections += len(frame.objects)
            self.counts.frames = following

    def _pose(self, number: int) -> SE3 | None:
        if self.poses is None:
            return None
        if number >= len(self.poses):
            raise InputError(
                f"no pose of frame {number}, there are {len(self.poses)}; expected one for each frame"
            )
        return self.poses[number]
