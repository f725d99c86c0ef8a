"""Subscriptions to everything that a rig sends, each with the type and the QoS that its publishers use.

A camera may send Image or CompressedImage: what is published decides, and before anybody publishes, the
topic's name (`…/compressed`). A publisher of any other type on one of the topics is reported, because DDS
silently connects nothing to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ModuleNotFoundError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from e2e_perception.core.config import NodeConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.rig import Rig
from e2e_perception.nodes.message_factory import message_class
from e2e_perception.nodes.qos import latched_qos, same_qos, sensor_qos, state_qos
from e2e_perception.nodes.report import NodeReport

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
POINTS_TYPE = "sensor_msgs/msg/PointCloud2"
INFO_TYPE = "sensor_msgs/msg/CameraInfo"
ODOMETRY_TYPE = "nav_msgs/msg/Odometry"
ROUTE_TYPE = "nav_msgs/msg/Path"
TF_TYPE = "tf2_msgs/msg/TFMessage"
TF_TOPIC = "/tf_static"

Callback = Callable[[Any], None]
# Topic, type, the message as it came, and what it holds for (see `RawMessage.latch`).
Tap = Callable[[str, str, bytes, str | None], None]


@dataclass(frozen=True)
class Input:
    """One topic to take in.

    Attributes:
        name: For people, e.g. `camera front`.
        topic: As the rig names it, before remapping.
        types: Accepted message types, the expected one first.
        callback: Called with each message.
        qos: From the publishers' profiles to ours.
        latch: Of messages that hold until the next: what for; None for a stream.
    """

    name: str
    topic: str
    types: tuple[str, ...]
    callback: Callback
    qos: Callable[[list[Any]], QoSProfile]
    latch: Callable[[Any], str] | None = None


def rig_inputs(
    rig: Rig,
    config: NodeConfig,
    *,
    on_sensor: Callable[[str, Any], None],
    on_camera_info: Callable[[str, Any], None],
    on_odometry: Callback,
    on_route: Callback,
    on_transforms: Callback,
) -> list[Input]:
    """Everything that a rig sends.

    Args:
        rig: The robot.
        config: Whether CameraInfo and TF are wanted, and the sensors' reliability.
        on_sensor, on_camera_info: Called with the sensor's name and each message.
        on_odometry, on_route, on_transforms: Called with each message.
    """

    def of_sensors(offers: list[Any]) -> QoSProfile:
        return sensor_qos(offers, config.sensor_reliability)

    inputs = []
    for sensor in rig.sensors:
        types: tuple[str, ...] = (POINTS_TYPE,)
        if sensor.kind == "camera":
            types = (IMAGE_TYPE, COMPRESSED_TYPE)
            if sensor.topic.endswith("/compressed"):
                types = (COMPRESSED_TYPE, IMAGE_TYPE)
        callback = _named(on_sensor, sensor.name)
        inputs.append(Input(f"{sensor.kind} {sensor.name}", sensor.topic, types, callback, of_sensors))
    if config.use_camera_info:
        for camera in rig.cameras:
            if camera.camera_info_topic is not None:
                callback = _named(on_camera_info, camera.name)
                name = f"CameraInfo of {camera.name}"
                topic = camera.camera_info_topic
                inputs.append(Input(name, topic, (INFO_TYPE,), callback, state_qos, _all_of_it))
    inputs.append(Input("odometry", rig.odom_topic, (ODOMETRY_TYPE,), on_odometry, state_qos))
    inputs.append(Input("route", rig.route_topic, (ROUTE_TYPE,), on_route, state_qos, _all_of_it))
    if config.use_tf:
        # Latched whoever publishes: whoever offers less is no publisher of static transforms.
        qos = latched_qos()
        inputs.append(Input("static TF", TF_TOPIC, (TF_TYPE,), on_transforms, lambda _: qos, _children))
    return inputs


def _all_of_it(message: Any) -> str:
    """A topic's newest message replaces the one before."""
    return ""


def _children(message: Any) -> str:
    """Transforms replace those of the same children; several nodes may publish some each."""
    return " ".join(sorted(item.child_frame_id for item in message.transforms))


def _named(callback: Callable[[str, Any], None], name: str) -> Callback:
    return lambda message: callback(name, message)


@dataclass
class _Open:
    """A subscription and what it asks for."""

    subscription: Any
    type_name: str
    qos: QoSProfile


class SensorInputs:
    """Keeps the subscriptions in step with what the publishers offer."""

    def __init__(self, node: Any, inputs: list[Input], report: NodeReport, tap: Tap | None = None) -> None:
        """Subscribe to all inputs.

        Args:
            node: Owner of the subscriptions.
            inputs: See `rig_inputs`.
            report: Gets publishers of wrong types, and types that are not installed.
            tap: Given every message as it came, before its callback; None: nobody wants them.
        """
        self._node = node
        self._inputs = inputs
        self._report = report
        self._tap = tap
        self._open: dict[str, _Open] = {}
        self._unusable: set[str] = set()
        self.check()

    def close(self) -> None:
        """End all subscriptions."""
        for subscribed in self._open.values():
            self._node.destroy_subscription(subscribed.subscription)
        self._open.clear()
        for given in self._inputs:
            self._report.forget(_subject(given))

    def check(self) -> None:
        """Look at the publishers again; call it now and then."""
        for given in self._inputs:
            if given.name not in self._unusable:
                self._check(given)

    def _check(self, given: Input) -> None:
        publishers = self._node.get_publishers_info_by_topic(given.topic)
        fitting = [p for p in publishers if p.topic_type in given.types]
        foreign = sorted({p.topic_type for p in publishers if p.topic_type not in given.types})
        if foreign:
            self._report.problem(
                _subject(given),
                f"{given.name}: {given.topic} is published as {', '.join(foreign)}, expected "
                f"{' or '.join(given.types)}; correct the topic in the rig or remap it",
            )
        else:
            self._report.solved(_subject(given))
        present = self._open.get(given.name)
        type_name = given.types[0] if present is None else present.type_name
        if fitting and type_name not in {p.topic_type for p in fitting}:
            type_name = fitting[0].topic_type
        if present is not None and not fitting:
            return  # nobody to agree with; keep what there is
        qos = given.qos([p.qos_profile for p in fitting if p.topic_type == type_name])
        if present is not None and present.type_name == type_name and same_qos(present.qos, qos):
            return
        try:
            kind = message_class(type_name)
        except InputError as error:
            self._unusable.add(given.name)
            self._report.problem(_subject(given), f"{given.name} is not used: {error}")
            return
        if present is not None:
            self._node.destroy_subscription(present.subscription)
        subscription = self._node.create_subscription(
            kind,
            given.topic,
            given.callback if self._tap is None else self._tapped(given, type_name, kind, self._tap),
            qos,
            raw=self._tap is not None,
            # Without this, a publisher that came later and offers less would be heard only after `check`.
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda _: self._check(given)),
        )
        self._open[given.name] = _Open(subscription, type_name, qos)

    def _tapped(self, given: Input, type_name: str, kind: type[Any], tap: Tap) -> Callback:
        """A callback for serialised messages; each is deserialised once, as without a tap."""
        topic = self._node.resolve_topic_name(given.topic)

        def take(raw: bytes) -> None:
            message = deserialize_message(raw, kind)
            tap(topic, type_name, raw, None if given.latch is None else given.latch(message))
            given.callback(message)

        return take


def _subject(given: Input) -> str:
    return f"input {given.name}"
