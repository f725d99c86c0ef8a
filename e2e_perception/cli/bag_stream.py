"""A recording as the events that reached the robot: sensors, odometry, route, and calibration as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from e2e_perception.cli.offline import Event, Intervention, Labels
from e2e_perception.cli.tally import Tally, bounded, cut
from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer
from e2e_perception.core.errors import InputError, RigError
from e2e_perception.core.message_inputs import (
    ego_state_from_odometry,
    route_from_path,
    stamp_ns,
)
from e2e_perception.core.message_results import tracks_from_message
from e2e_perception.core.messages import HEALTH_TYPE, PLAN_TYPE, TRACKS_TYPE
from e2e_perception.core.results import SafetyState
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.sensor_messages import CAMERA_INFO_TYPE, ODOMETRY_TYPE, PATH_TYPE, TF_TYPE
from e2e_perception.data.bag_salvage import SalvagedBag
from e2e_perception.data.bags import LABELS_TOPIC, BagMessage, BagSource, match_topics
from e2e_perception.data.timing import StreamTiming
from e2e_perception.runtime.calibration import RigCalibration

TF_STATIC = "/tf_static"
_Handler = Callable[[BagMessage], "Event | None"]


class BagStream:
    """A bag and a rig, brought together.

    Attributes:
        rig: The rig with the bag's topics, before any calibration from the bag.
        types: Type of each topic.
        duration_s: From the first message to the last [s].
        start_ns, end_ns: Arrival of the first and the last message [ns].
        num_messages: That `events` goes through.
        tells_interventions: Whether the bag has plans or health of a stack, and they were asked for.
    """

    def __init__(
        self,
        path: Path,
        rig: Rig,
        config: StackConfig,
        *,
        salvage: bool = False,
        interventions: bool = False,
    ) -> None:
        """Open the bag and match its topics.

        Args:
            path: Of the bag.
            rig: The robot's sensors.
            config: All tunables.
            salvage: Read what is whole of a bag that is cut off or damaged; `warnings` say what is lost.
            interventions: Tell, too, where the supervisor of the recorded stack intervened.
        Raises:
            InputError: If there is no such bag, it is empty, cut off or damaged, or no camera and lidar fits.
        """
        self.path = path
        self.config = config
        kind: type[BagSource | SalvagedBag] = SalvagedBag if salvage else BagSource
        with kind(path) as source:
            self.types = dict(source.types)
            self.counts = dict(source.counts)
            self.start_ns, self.end_ns = source.start_ns, source.end_ns
        match = match_topics(self.types, rig)
        self._problems, self._unusable_odometry = Tally(), 0
        self._odometry_timing, self._without_covariance = StreamTiming(), 0
        self._odometry_frame = ""
        self._notes = [f"{name} is taken from {topic}" for name, topic in match.guessed.items()]
        for name in match.missing:
            effect = {"odom": "no ego motion", "route": "straight ahead is assumed"}.get(
                name, "always invalid"
            )
            self._notes.append(f"the bag has nothing for {name}: {effect}")
        # A sensor without a topic stays in the rig: the robot's rig does not depend on the recording.
        self._missing = frozenset(match.missing)
        self.rig = match.rig
        self._decisions = [
            topic
            for topic, type_name in self.types.items()
            if interventions and type_name in (PLAN_TYPE, HEALTH_TYPE)
        ]
        self.tells_interventions = bool(self._decisions)
        self._topics = self._wanted()
        self._source = kind(path, self._topics)
        self.num_messages = self._source.num_messages

    def __enter__(self) -> BagStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    @property
    def duration_s(self) -> float:
        """From the first message to the last [s]."""
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def anchor(self) -> str:
        """The sensor that defines frames as long as all is well."""
        order = self.config.sync.anchors or [s.name for s in (*self.rig.lidars, *self.rig.cameras)]
        present = [name for name in order if name not in self._missing]
        return (present or order)[0]

    @property
    def num_anchor_messages(self) -> int:
        """How many frames there could be."""
        return self.counts.get(self.rig.sensor(self.anchor).topic, 0)

    @property
    def num_topics(self) -> int:
        """Topics that the stack listens to in any case: sensors, CameraInfo, odometry, route."""
        return len(set(self._topics) - {TF_STATIC, LABELS_TOPIC, *self._decisions})

    @property
    def warnings(self) -> list[str]:
        """What is odd about the recording, found so far; by cause, with one example each."""
        losses = self._source.losses if isinstance(self._source, SalvagedBag) else []
        return [*bounded(self._notes), *bounded(losses), *self._problems.lines()]

    @property
    def odometry_frame(self) -> str:
        """Frame in which the odometry read so far is given; empty before any was."""
        return self._odometry_frame

    @property
    def odometry_facts(self) -> dict[str, float | int]:
        """Timing of the odometry read so far, and in how many messages the covariance is not filled in."""
        return {**self._odometry_timing.summary(), "without_covariance": self._without_covariance}

    def events(self, progress: Callable[[int], None] | None = None) -> Iterator[Event]:
        """Everything that matters to the stack, in order of arrival.

        Calibration arrives as a whole rig, whenever CameraInfo or /tf_static change it, as on the robot.

        Args:
            progress: Told how many messages have been read.
        Raises:
            InputError: Where the bag is damaged, if all of its odometry is unusable, or if labels are in
                another frame than the base frame or of an unknown class.
            RigError: If a CameraInfo is that of another camera than the rig's.
        """
        self._problems.clear()
        self._unusable_odometry = 0
        handlers = self._handlers()
        for count, message in enumerate(self._source.messages(), 1):
            event = handlers[message.topic](message)
            if event is not None:
                yield event
            if progress is not None:
                progress(count)

    def _wanted(self) -> list[str]:
        rig, node = self.rig, self.config.node
        wanted = [s.topic for s in rig.sensors if s.name not in self._missing]
        by_type = [(rig.odom_topic, ODOMETRY_TYPE), (rig.route_topic, PATH_TYPE), (LABELS_TOPIC, TRACKS_TYPE)]
        if node.use_tf:
            by_type.append((TF_STATIC, TF_TYPE))
        if node.use_camera_info:
            by_type += [(c.camera_info_topic, CAMERA_INFO_TYPE) for c in rig.cameras if c.camera_info_topic]
        wanted += [topic for topic, type_name in by_type if self.types.get(topic) == type_name]
        return [*wanted, *self._decisions]

    def _handlers(self) -> dict[str, _Handler]:
        rig = self.rig
        calibration = RigCalibration(rig)
        ego = EgoMotionBuffer()
        handlers: dict[str, _Handler] = {}
        for sensor in rig.sensors:
            handlers[sensor.topic] = _sensor_handler(sensor.name)
        for camera in rig.cameras:
            if camera.camera_info_topic is not None:
                handlers[camera.camera_info_topic] = _camera_info_handler(calibration, camera.name)
        handlers[TF_STATIC] = lambda message: self._transforms(message, calibration)
        handlers[rig.odom_topic] = lambda message: self._odometry(message, ego)
        handlers[rig.route_topic] = lambda message: self._route(message, ego)
        handlers[LABELS_TOPIC] = self._labels
        handlers |= dict.fromkeys(self._decisions, _decision)
        return {topic: handlers[topic] for topic in self._topics}

    def _transforms(self, message: BagMessage, calibration: RigCalibration) -> Event | None:
        changed = calibration.take_transforms(message.message)
        if "tf" in calibration.problems:
            self._problems.add(calibration.problems["tf"])
        return Event(message.stamp_ns, calibration.rig) if changed else None

    def _odometry(self, message: BagMessage, ego: EgoMotionBuffer) -> Event | None:
        try:
            state = ego_state_from_odometry(message.message, self.rig.base_frame)
            self._odometry_frame = message.message.header.frame_id.lstrip("/")
            self._odometry_timing.add(state.stamp_ns, message.stamp_ns)
            self._without_covariance += not np.any(message.message.pose.covariance)
            ego.add(state)
        except InputError as error:
            self._problems.add(str(error))
            self._unusable_odometry += 1
            if self._unusable_odometry == self.counts[message.topic]:
                raise InputError(f"no odometry of bag {self.path} can be used: {cut(str(error))}") from error
            return None
        return Event(message.stamp_ns, state)

    def _route(self, message: BagMessage, ego: EgoMotionBuffer) -> Event | None:
        try:
            route, frame = route_from_path(message.message), message.message.header.frame_id.lstrip("/")
            if route is not None and frame not in (self.rig.base_frame, self._odometry_frame or frame):
                raise InputError(
                    f"it is given in frame {frame!r}, expected the odometry's {self._odometry_frame!r} or "
                    f"{self.rig.base_frame!r}"
                )
            if route is not None and frame == self.rig.base_frame:
                here = ego.at(stamp_ns(message.message))
                if here is None:
                    raise InputError("it is given in the base frame, and odometry does not cover its stamp")
                route = route.transformed(here.odom_from_base.planar_part())
        except InputError as error:
            self._problems.add(f"route ignored: {error}")
            return None
        return Event(message.stamp_ns, route)

    def _labels(self, message: BagMessage) -> Event:
        frame = message.message.header.frame_id.lstrip("/")
        try:
            if frame != self.rig.base_frame:
                raise InputError(
                    f"labels are given in frame {frame!r}, expected the rig's base frame "
                    f"{self.rig.base_frame!r}; transform them, or set base_frame in the rig"
                )
            tracks = tracks_from_message(message.message)
        except InputError as error:
            at_s = stamp_ns(message.message) * 1e-9
            raise InputError(f"bag {self.path}, {message.topic} at {at_s:.3f} s: {error}") from error
        return Event(message.stamp_ns, Labels(tracks.stamp_ns, tracks.boxes))


def _sensor_handler(name: str) -> _Handler:
    def handle(message: BagMessage) -> Event:
        stamped = SensorMessage(name, stamp_ns(message.message), message.stamp_ns, message.message)
        return Event(message.stamp_ns, stamped)

    return handle


def _camera_info_handler(calibration: RigCalibration, name: str) -> _Handler:
    def handle(message: BagMessage) -> Event | None:
        changed = calibration.take_camera_info(name, message.message)
        if name in calibration.problems:
            raise RigError(calibration.problems[name])
        return Event(message.stamp_ns, calibration.rig) if changed else None

    return handle


def _decision(message: BagMessage) -> Event | None:
    """Of a plan or a health message: an intervention, if it is one."""
    found = message.message
    if message.type_name == PLAN_TYPE:
        intervened = found.candidate == -1
    else:
        intervened = found.state >= SafetyState.MINIMAL_RISK
    return Event(message.stamp_ns, Intervention(stamp_ns(found))) if intervened else None
