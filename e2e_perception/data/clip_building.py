"""Frames, odometry and labels of a recording, as they come, to training clips.

A clip is finished once the recording is `horizon` past its last frame, so that the futures of its objects and
of the robot are known; memory holds what is waiting for that and no more, however long the recording.

Legend: T frames, L label slots, S horizon steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.data.histories import LabelHistory, PoseHistory
from e2e_perception.data.label_slots import box_rows, empty_rows, loss_weights, nearest_inside

RASTERS = ("lidar_raster", "radar_raster")  # kept in half precision
PERIOD_SLACK_NS = 20_000_000  # a frame this much early still counts as one period later
LONGEST_STEP = 2.5  # periods between frames of one clip
LABEL_PATIENCE_NS = 2_000_000_000  # labels that lag odometry by more are not waited for


@dataclass(frozen=True)
class RecordedFrame:
    """One frame as the robot's front end made it.

    Attributes:
        stamp_ns: Frame time [ns].
        inputs: Contract inputs without batch, recurrent ones excepted.
        ego: The robot at that instant; None where odometry does not cover it.
        stretch: Of continuous odometry, see `PoseHistory`.
        valid: Of each sensor, whether it is in the inputs.
        maps_2YX: Drivable area and boundaries, see `Clip`; None: not known.
    """

    stamp_ns: int
    inputs: Mapping[str, NDArray[Any]]
    ego: EgoState | None
    stretch: int
    valid: Mapping[str, bool]
    maps_2YX: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class BuiltClip:
    """A clip and what its row in the index says of it.

    Attributes:
        clip: The clip.
        validity: Share of frames in which each sensor was there.
        speeds_T: Of the robot [m/s].
        confidence_TL: Of each label before it was weighed, 0 for padding.
    """

    clip: Clip
    validity: dict[str, float]
    speeds_T: NDArray[np.float64]
    confidence_TL: NDArray[np.float32]


@dataclass
class BuildCounts:
    """What became of frames.

    Attributes:
        taken: Frames in clips, each counted once.
        too_early: Left out because the network's period had not passed.
        without_ego_motion: Left out because odometry did not cover them.
        alone: Left out because too few hung together for a clip.
        labels_without_pose: Labels of instants that odometry does not cover.
        labels_outside_grid: Labels of frames in clips that the network's grid does not reach.
        labels_beyond_slots: Labels on the grid for which, nearest first, no slot was left.
        clips_not_covered: Clips of a recording with labels that do not cover all of their frames; nothing
            is known of who is not there, so that they count as unlabelled.
    """

    taken: int = 0
    too_early: int = 0
    without_ego_motion: int = 0
    alone: int = 0
    labels_without_pose: int = 0
    labels_outside_grid: int = 0
    labels_beyond_slots: int = 0
    clips_not_covered: int = 0


@dataclass
class _Run:
    """Frames that hang together, without those at its beginning that no clip needs any more."""

    frames: deque[RecordedFrame] = field(default_factory=deque)
    first: int = 0  # number in the run of frames[0]
    next_start: int = 0
    covered: int = 0  # frames of the run that are in clips


class ClipBuilder:
    """Cuts a recording into clips.

    Attributes:
        counts: What became of the frames so far.
    """

    def __init__(
        self,
        network: NetworkConfig,
        *,
        clip_length: int,
        stride: int,
        source: str,
        scenario: str,
        has_labels: bool,
    ) -> None:
        """Begin a recording.

        Args:
            network: Whose inputs the frames are.
            clip_length: Frames per clip.
            stride: Frames from one clip's start to the next's, at most `clip_length`; the last clip of
                frames that hang together ends with them, so that all of them are in some clip.
            source, scenario: See `Clip`.
            has_labels: Whether labels will come, so that clips have to wait for them.
        Raises:
            InputError: If there would be frames between clips.
        """
        if not 1 <= stride <= clip_length or clip_length < 2:
            raise InputError(
                f"clips of {clip_length} frames, {stride} apart: expected 2 frames at least, and a stride "
                "from 1 to that length"
            )
        self.network = network
        self.counts = BuildCounts()
        self._length, self._stride = clip_length, stride
        self._source, self._scenario, self._has_labels = source, scenario, has_labels
        self._period_ns = round(network.frame_period_s * 1e9)
        self._horizon_ns = round(network.horizon_steps * network.step_s * 1e9)
        self._poses, self._labels = PoseHistory(), LabelHistory()
        self._run = _Run()
        self._waiting: deque[list[RecordedFrame]] = deque()
        self._built: deque[BuiltClip] = deque()
        self._pending_labels: deque[tuple[int, Boxes]] = deque()
        self._last: RecordedFrame | None = None
        self._stretch: int | None = None
        self._counted_ns = -1  # labels of frames up to here are counted; clips may share frames

    # ------------------------------------------------------------------ in

    def add_odometry(self, state: EgoState, stretch: int) -> None:
        """Take in odometry; `stretch` rises where it does not go on."""
        if self._stretch not in (None, stretch):
            # What comes cannot be compared with what was: clips that wait get the futures that there are.
            self.finish()
            self._labels.clear()
        self._stretch = stretch
        self._poses.add(state, stretch)
        self._place_labels()

    def add_labels(self, stamp_ns: int, boxes: Boxes) -> None:
        """Take in labels, base frame at the stamp; they wait until odometry covers that."""
        self._pending_labels.append((stamp_ns, boxes))
        self._place_labels()

    def _place_labels(self) -> None:
        latest_ns = self._poses.latest_ns
        while latest_ns is not None and self._pending_labels and self._pending_labels[0][0] <= latest_ns:
            stamp_ns, boxes = self._pending_labels.popleft()
            pose = self._poses.at(stamp_ns, self._stretch)
            if pose is None:
                self.counts.labels_without_pose += 1
            else:
                self._labels.add(stamp_ns, boxes, pose)

    def add_frame(self, frame: RecordedFrame) -> None:
        """Take in a frame, newer than the last one."""
        last = self._last
        step_ns = None if last is None else frame.stamp_ns - last.stamp_ns
        if step_ns is not None and 0 <= step_ns < self._period_ns - PERIOD_SLACK_NS:
            self.counts.too_early += 1
            return
        goes_on = (
            last is not None
            and step_ns is not None
            and 0 < step_ns <= LONGEST_STEP * self._period_ns
            and frame.stretch == last.stretch
        )
        if frame.ego is None:
            self.counts.without_ego_motion += 1
            self._end_run()
            self._last = None
            return
        if not goes_on:
            self._end_run()
        self._last = frame
        self._run.frames.append(frame)
        self._cut()

    def finish(self) -> None:
        """Nothing more will come: what waits is finished with the futures that there are."""
        self._end_run()
        self._last = None
        self._built += [self._build(frames) for frames in self._waiting]
        self._waiting.clear()

    # ------------------------------------------------------------------ out

    def finished(self) -> Iterator[BuiltClip]:
        """Clips whose futures are known by now, in order; ask often, since they are kept until then."""
        while self._waiting and self._is_known(self._waiting[0]):
            self._built.append(self._build(self._waiting.popleft()))
        while self._built:
            yield self._built.popleft()
        needed_ns = [frames[0].stamp_ns for frames in (*self._waiting, self._run.frames) if frames]
        if self._poses.latest_ns is not None:
            oldest_ns = min(needed_ns, default=self._poses.latest_ns)
            self._poses.forget_before(oldest_ns)
            self._labels.forget_before(oldest_ns)

    def _is_known(self, frames: list[RecordedFrame]) -> bool:
        until_ns, latest_ns = frames[-1].stamp_ns + self._horizon_ns, self._poses.latest_ns
        if latest_ns is None or latest_ns < until_ns:
            return False
        labelled = self._labels.latest_ns is not None and self._labels.latest_ns >= until_ns
        return labelled or not self._has_labels or latest_ns >= until_ns + LABEL_PATIENCE_NS

    # ------------------------------------------------------------------ cutting

    def _cut(self) -> None:
        run = self._run
        while run.first + len(run.frames) >= run.next_start + self._length:
            self._take(run.next_start)
            run.next_start += self._stride
        needed = min(run.next_start, run.first + len(run.frames) - self._length)
        while run.first < needed:
            run.frames.popleft()
            run.first += 1

    def _take(self, start: int) -> None:
        run = self._run
        offset = start - run.first
        frames = [run.frames[k] for k in range(offset, offset + self._length)]
        self._waiting.append(frames)
        self.counts.taken += start + self._length - run.covered
        run.covered = start + self._length

    def _end_run(self) -> None:
        """No more frames hang together with those of the run: its last clip ends with it."""
        run = self._run
        total = run.first + len(run.frames)
        if total >= self._length and total > run.covered:
            self._take(total - self._length)
        self.counts.alone += total - run.covered
        self._run = _Run()

    # ------------------------------------------------------------------ building

    def _build(self, frames: list[RecordedFrame]) -> BuiltClip:
        poses = [_pose(frame) for frame in frames]
        memory_from_base = np.zeros((len(frames), 3))
        for t in range(1, len(frames)):
            moved = poses[t - 1].inverse() @ poses[t]
            memory_from_base[t] = (moved.x, moved.y, moved.yaw)
        seen: set[int] = set()
        labels: list[dict[str, NDArray[Any]]] = []
        confidences: list[NDArray[np.float32]] = []
        for frame, pose in zip(frames, poses, strict=True):
            rows, confidence = self._labels_of(frame, pose, seen)
            labels.append(rows)
            confidences.append(confidence)
        covered = self._has_labels and all(self._labels.covers(frame.stamp_ns) for frame in frames)
        self.counts.clips_not_covered += self._has_labels and not covered
        stacked = {name: np.stack([frame.inputs[name] for frame in frames]) for name in frames[0].inputs}
        nothing = np.zeros((2, *self.network.bev_grid.shape), np.uint8)
        maps = [nothing if frame.maps_2YX is None else frame.maps_2YX for frame in frames]
        clip = Clip(
            inputs={k: v.astype(np.float16) if k in RASTERS else v for k, v in stacked.items()},
            **{name: np.stack([rows[name] for rows in labels]) for name in labels[0]},
            maps_T2YX=np.stack(maps),
            maps_valid=all(frame.maps_2YX is not None for frame in frames),
            stamps_ns_T=np.array([frame.stamp_ns for frame in frames], np.int64),
            memory_from_base_T3=memory_from_base,
            source=self._source,
            scenario=self._scenario,
            labels_valid=covered,
        )
        names = frames[0].valid
        validity = {name: float(np.mean([frame.valid[name] for frame in frames])) for name in names}
        speeds = np.array([frame.ego.speed for frame in frames if frame.ego is not None])
        return BuiltClip(clip, validity, speeds, np.stack(confidences))

    def _labels_of(
        self, frame: RecordedFrame, pose: SE2, seen: set[int]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """Labels of one frame by field of `Clip`, and their confidence."""
        base_from_odom = pose.inverse()
        boxes = self._labels.at(frame.stamp_ns)
        centers_N2 = base_from_odom.apply(boxes.centers_N3[:, :2])
        kept = nearest_inside(centers_N2, self.network.grid)
        if frame.stamp_ns > self._counted_ns:
            self._counted_ns = frame.stamp_ns
            inside = int(self.network.grid.contains(centers_N2).sum())
            self.counts.labels_outside_grid += len(centers_N2) - inside
            self.counts.labels_beyond_slots += inside - len(kept)
        boxes, centers_N2 = boxes.select(kept), centers_N2[kept]
        yaws = wrap_angle(boxes.yaws_N + base_from_odom.yaw)
        velocities_N2 = base_from_odom.rotate(boxes.velocities_N2)
        n, num_steps = len(boxes), self.network.horizon_steps
        rows = empty_rows()
        rows[:n] = box_rows(centers_N2, boxes.centers_N3[:, 2], boxes.sizes_N3, yaws, velocities_N2)
        class_ids = np.zeros(MAX_LABELS, np.int64)
        ids = np.full(MAX_LABELS, -1, np.int64)
        confidence = np.zeros(MAX_LABELS, np.float32)
        class_ids[:n], ids[:n], confidence[:n] = boxes.class_ids_N, boxes.ids_N, boxes.scores_N
        visible, weights = loss_weights(confidence, ids, seen)
        futures = np.zeros((MAX_LABELS, num_steps, 2), np.float32)
        futures_valid = np.zeros((MAX_LABELS, num_steps), np.bool_)
        ego_future = np.zeros((num_steps, 3), np.float32)
        ego_future_valid = np.zeros(num_steps, np.bool_)
        slots = {identity: slot for slot, identity in enumerate(ids[:n].tolist())}
        for k, ahead_s in enumerate(self.network.times_T.tolist()):
            later_ns = frame.stamp_ns + round(ahead_s * 1e9)
            later = self._labels.at(later_ns)
            places_N2 = base_from_odom.apply(later.centers_N3[:, :2])
            for row, identity in enumerate(later.ids_N.tolist()):
                if identity in slots:
                    futures[slots[identity], k] = places_N2[row]
                    futures_valid[slots[identity], k] = True
            there = self._poses.at(later_ns, frame.stretch)
            if there is not None:
                moved = base_from_odom @ there
                ego_future[k] = (moved.x, moved.y, moved.yaw)
                ego_future_valid[k] = True
        return {
            "boxes_TB10": rows,
            "class_ids_TB": class_ids,
            "ids_TB": ids,
            "weights_TB": weights,
            "visible_TB": visible,
            "futures_TBS2": futures,
            "futures_valid_TBS": futures_valid,
            "ego_future_TS3": ego_future,
            "ego_future_valid_TS": ego_future_valid,
        }, confidence


def _pose(frame: RecordedFrame) -> SE2:
    assert frame.ego is not None  # others are not in clips
    return frame.ego.odom_from_base.planar_part()
