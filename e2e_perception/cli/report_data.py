"""What a report shows besides results: points, pictures, labels and odometry, from the recording itself."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.cli.offline import Event, Labels
from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoMotionLimits, EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Camera, Lidar, Rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.evaluation.report import Picture, ReportFrame
from e2e_perception.runtime.decode import decode_image, decode_points

MAX_FRAMES = 600  # of a longer run every second, third, … frame is shown
PICTURE_BUDGET = 3_600_000  # [B] of JPEG in the whole report
MAX_PICTURE_WIDTH = 640
STORED_POINTS = 12_000
_QUALITIES = (80, 68, 55)
_FOREVER_NS = 1 << 62


@dataclass
class _Shown:
    """What has been found for one frame so far: by sensor name, distance in time, stamp and content."""

    result: FrameResult
    points: dict[str, tuple[int, int, NDArray[np.float32]]] = field(default_factory=dict)
    pictures: dict[str, tuple[int, int, Picture]] = field(default_factory=dict)
    labels: Boxes | None = None


class ReportData:
    """Collects what belongs to each frame while a recording is read once more.

    Attributes:
        rig: With the calibration that the recording has brought so far.
    """

    def __init__(self, results: Sequence[FrameResult], rig: Rig) -> None:
        """Choose which frames to show.

        Args:
            results: Of the run.
            rig: Of the run, before calibration from the recording.
        """
        # A clock that was set back gives stamps twice; the later timeline is shown there.
        by_stamp = {result.stamp_ns: result for result in results}
        ordered = [by_stamp[stamp] for stamp in sorted(by_stamp)]
        step = max(1, -(-len(ordered) // MAX_FRAMES))
        self._shown = [_Shown(result) for result in ordered[::step]]
        self._stamps = [shown.result.stamp_ns for shown in self._shown]
        self._ego = EgoMotionBuffer(EgoMotionLimits(horizon_ns=_FOREVER_NS))
        self.rig = rig
        pictures = max(1, len(self._shown) * len(rig.cameras))
        self._picture_bytes = PICTURE_BUDGET // pictures
        self._widths = {camera.name: min(MAX_PICTURE_WIDTH, camera.width) for camera in rig.cameras}

    def take(self, event: Event) -> None:
        """Take in an event of the recording."""
        content = event.content
        if isinstance(content, SensorMessage):
            self.add(content)
        elif isinstance(content, EgoState):
            self.add_odometry(content)
        elif isinstance(content, Labels):
            self.add_labels(content.stamp_ns, content.boxes)
        elif isinstance(content, Rig):
            self.rig = content

    def add_odometry(self, state: EgoState) -> None:
        """Take in the robot's motion; non-finite samples are left out, as on the robot."""
        try:
            self._ego.add(state)
        except InputError:
            return  # counted and reported by the run itself

    def add_labels(self, stamp_ns: int, boxes: Boxes) -> None:
        """Take in what was really there, base frame at that stamp."""
        i = bisect.bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            self._shown[i].labels = boxes

    def add(self, message: SensorMessage) -> None:
        """Take in a sensor's message; what no frame shows, or cannot be decoded, is left out."""
        sensor = self.rig.sensor(message.sensor)
        if not isinstance(sensor, Camera | Lidar) or not self._shown:
            return
        wanted_ns = message.stamp_ns - round(sensor.offset_ms * 1e6)
        right = bisect.bisect_left(self._stamps, wanted_ns)
        near = [i for i in (right - 1, right) if 0 <= i < len(self._stamps)]
        index = min(near, key=lambda i: abs(self._stamps[i] - wanted_ns))
        distance_ns = abs(self._stamps[index] - wanted_ns)
        shown = self._shown[index]
        found: dict[str, tuple[int, int, Picture]] | dict[str, tuple[int, int, NDArray[np.float32]]]
        found = shown.pictures if isinstance(sensor, Camera) else shown.points
        if distance_ns > sensor.tolerance_ms * 1e6:
            return
        if sensor.name in found and found[sensor.name][0] <= distance_ns:
            return
        try:
            if isinstance(sensor, Camera):
                shown.pictures[sensor.name] = (distance_ns, message.stamp_ns, self._picture(sensor, message))
            else:
                shown.points[sensor.name] = (distance_ns, message.stamp_ns, _points(sensor, message))
        except InputError:
            return  # an undecodable message is on the health topic, with its reason

    def frames(self) -> list[ReportFrame]:
        """Everything, with points and projections brought to each frame's time."""
        return [self._frame(shown) for shown in self._shown]

    def _frame(self, shown: _Shown) -> ReportFrame:
        stamp_ns = shown.result.stamp_ns
        clouds = []
        for _, then_ns, points in shown.points.values():
            motion = self._ego.base_from_base(stamp_ns, then_ns) if then_ns != stamp_ns else None
            clouds.append(points if motion is None else motion.apply(points))
        pictures = {}
        for name, (_, then_ns, picture) in shown.pictures.items():
            motion = self._ego.base_from_base(then_ns, stamp_ns)
            projection = picture.image_from_base_34
            if motion is not None and projection is not None:
                projection = projection @ motion.matrix
            pictures[name] = Picture(picture.jpeg, picture.width, picture.height, projection)
        return ReportFrame(
            result=shown.result,
            points_N3=np.concatenate(clouds) if clouds else None,
            pictures=pictures,
            ego=self._ego.at(stamp_ns),
            labels=shown.labels,
        )

    def _picture(self, camera: Camera, message: SensorMessage) -> Picture:
        rgb = decode_image(message.payload)
        while True:
            width = self._widths[camera.name]
            height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
            small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
            bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
            for quality in _QUALITIES:
                _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
                if len(jpeg) <= self._picture_bytes:
                    break
            if len(jpeg) <= self._picture_bytes or width <= 160:
                break
            # All later pictures of this camera get the smaller width too, so that the player does not jump.
            self._widths[camera.name] = max(160, int(width * 0.8))
        # Pixel centres lie at whole numbers, so scaling happens about (-0.5, -0.5).
        x, y = width / camera.width, height / camera.height
        scale = np.array([[x, 0.0, 0.5 * x - 0.5], [0.0, y, 0.5 * y - 0.5], [0.0, 0.0, 1.0]])
        return Picture(jpeg.tobytes(), width, height, scale @ camera.image_from_base)


def _points(lidar: Lidar, message: SensorMessage) -> NDArray[np.float32]:
    columns = decode_points(message.payload)
    points = np.column_stack([columns["x"], columns["y"], columns["z"]])
    if len(points) > STORED_POINTS:
        points = points[np.random.default_rng(0).permutation(len(points))[:STORED_POINTS]]
    return lidar.base_from_sensor.apply(points).astype(np.float32)
