"""A robot for tests: publishes sensors over real DDS and collects what the node under test says.

Everything waits for events: `spin_until` returns as soon as its condition holds, and fails with the last
health and the node's output if it does not within a generous time. The robot's clock is simulated, so that a
slow test machine makes no slow sensors; it advances with each frame and, slowly, while the test waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import rclpy
import yaml
from e2e_perception.msg import Health, Plan, Tracks
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField

from e2e_perception.core.message_inputs import stamp_ns
from e2e_perception.core.messages import time_message
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.nodes.message_factory import RclpyFactory

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 60.0
SECOND = 1_000_000_000
PERIOD_NS = SECOND // 10
NODE = "perception_node"

RIG = Rig(
    name="test_robot",
    sensors=(
        Lidar(name="top", topic="/lidar/points", frame_id="lidar", mount=Mount(xyz=(1.0, 0.0, 1.8))),
        Camera(
            name="front",
            topic="/camera/front/image/compressed",
            camera_info_topic="/camera/front/camera_info",
            frame_id="camera",
            mount=Mount(xyz=(1.5, 0.0, 1.5)),
            width=96,
            height=64,
            fx_px=48.0,
            fy_px=48.0,
            cx_px=47.5,
            cy_px=31.5,
        ),
    ),
)  # fmt: skip
make = RclpyFactory()


def write_rig(path: Path, rig: Rig = RIG) -> Path:
    path.write_text(yaml.safe_dump(rig.model_dump(mode="json")), encoding="utf-8")
    return path


def node_environment(domain: int) -> dict[str, str]:
    """Of a node under test: the source tree first, on a domain of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }


class NodeProcess:
    """A node under test, in its own process."""

    def __init__(
        self, module: str, arguments: Sequence[str], domain: int, command: Sequence[str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [*(command or [sys.executable, "-m", f"e2e_perception.nodes.{module}"]), *arguments],
            env=node_environment(domain),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: deque[str] = deque(maxlen=60)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        return "".join(list(self.lines))

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        code = self.process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)
        return code

    def end(self, number: int = signal.SIGINT) -> int:
        """The exit code after a signal."""
        if self.alive:
            self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        if self.alive:
            self.process.kill()
        self.wait()


def arguments(parameters: Mapping[str, object], *extra: str) -> list[str]:
    """`--ros-args` for a node, values as YAML."""
    result = ["--ros-args", *extra]
    for name, value in parameters.items():
        text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
        result += ["-p", f"{name}:={text}"]
    return result


class Robot:
    """Sensors, listeners and clients of one test, in the test's own process."""

    def __init__(self, domain: int, node: str = NODE, *, sim_time: bool = True) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test_robot", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.target = node
        self.process: NodeProcess | None = None
        self.tracks: list[Any] = []
        self.plans: list[Any] = []
        self.healths: list[Any] = []
        self._publishers: dict[tuple[str, type], Any] = {}
        reliable = QoSProfile(depth=100)
        for kind, topic, kept in (
            (Tracks, "tracks", self.tracks),
            (Plan, "plan", self.plans),
            (Health, "health", self.healths),
        ):
            self.node.create_subscription(kind, f"{node}/{topic}", kept.append, reliable)
        self.sim_time_ns = 1_000 * SECOND if sim_time else None
        self.ticking = sim_time
        self._last_tick_s = 0.0
        self.clock = self.node.create_publisher(Clock, "/clock", QoSProfile(depth=100)) if sim_time else None
        self._last_instant_ns = 0
        self._change_state = self.node.create_client(ChangeState, f"{node}/change_state")
        self._get_state = self.node.create_client(GetState, f"{node}/get_state")

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    # --- waiting --------------------------------------------------------------------------------------------

    def spin_until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's value, as soon as it is true."""
        deadline = monotonic() + PATIENCE_S
        while not (value := condition()):
            self.executor.spin_once(timeout_sec=0.02)
            self._tick()
            said = "" if self.process is None else f"; the node said:\n{self.process.output}"
            last = self.healths[-1] if self.healths else "none"
            assert self.process is None or self.process.alive, f"waiting for {what}, the node died{said}"
            assert monotonic() < deadline, f"waited in vain for {what}; last health: {last}{said}"
        return value

    def _tick(self) -> None:
        """A fifth of real time, so that only what really waits for time sees it pass."""
        if self.ticking and self.sim_time_ns is not None and monotonic() - self._last_tick_s >= 0.05:
            self.set_clock(self.sim_time_ns + SECOND // 100)

    def health(self, condition: Callable[[Any], Any], what: str) -> Any:
        """The next health message from now on for which the condition holds."""
        start = len(self.healths)
        return self.spin_until(
            lambda: next((health for health in self.healths[start:] if condition(health)), None), what
        )

    def health_saying(self, text: str) -> Any:
        """The next health message with that text in a reason."""
        return self.health(lambda h: any(text in reason for reason in h.reasons), f"a reason with {text!r}")

    def result(self, future: Any, what: str) -> Any:
        self.spin_until(future.done, what)
        return future.result()

    # --- services -------------------------------------------------------------------------------------------

    def call(self, client: Any, request: Any, what: str) -> Any:
        self.spin_until(client.service_is_ready, f"service {client.srv_name}")
        return self.result(client.call_async(request), what)

    def state(self) -> str:
        return str(self.call(self._get_state, GetState.Request(), "the lifecycle state").current_state.label)

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call(self._change_state, request, "the transition").success)

    def parameters(self) -> AsyncParameterClient:
        """What `ros2 param` uses, ready."""
        client = AsyncParameterClient(self.node, self.target)
        self.spin_until(client.services_are_ready, "the parameter services")
        return client

    def set_parameter(self, client: AsyncParameterClient, name: str, kind: Parameter.Type, value: Any) -> Any:
        parameter = Parameter(name, kind, value).to_parameter_msg()
        return self.result(client.set_parameters([parameter]), f"setting {name}").results[0]

    # --- sensors --------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        if self.sim_time_ns is not None:
            return self.sim_time_ns
        return int(self.node.get_clock().now().nanoseconds)

    def set_clock(self, now_ns: int) -> None:
        assert self.clock is not None
        self.sim_time_ns = now_ns
        self._last_tick_s = monotonic()
        self.clock.publish(Clock(clock=time_message(make, now_ns)))

    def restart_time(self, now_ns: int) -> None:
        """As when a recording is played again."""
        self._last_instant_ns = 0
        self.set_clock(now_ns)

    def publisher(self, kind: type, topic: str, qos: QoSProfile | None = None) -> Any:
        """A publisher that the node has found."""
        key = (topic, kind)
        if key not in self._publishers:
            self._publishers[key] = self.node.create_publisher(kind, topic, qos or QoSProfile(depth=10))
        publisher = self._publishers[key]
        self.spin_until(lambda: publisher.get_subscription_count() > 0, f"a subscriber of {topic}")
        return publisher

    def unplug(self, kind: type, topic: str) -> None:
        self.node.destroy_publisher(self._publishers.pop((topic, kind)))

    def odometry(self, at_ns: int, x: float = 0.0, speed: float = 5.0, **changes: Any) -> None:
        message = Odometry(header=header(at_ns, "odom"), child_frame_id="base_link")
        message.pose.pose.position.x = x
        message.twist.twist.linear.x = speed
        for name, value in changes.items():
            setattr(message, name, value)
        self.publisher(Odometry, "/odom").publish(message)

    def lidar(self, at_ns: int, message: PointCloud2 | None = None) -> None:
        message = message or cloud(np.array([[8.0, 1.0, -1.5, 0.5]] * 50, np.float32))
        message.header = header(at_ns, "lidar")
        self.publisher(PointCloud2, RIG.sensor("top").topic).publish(message)

    def camera(self, at_ns: int, message: CompressedImage | None = None) -> None:
        message = message or jpeg()
        message.header = header(at_ns, "camera")
        self.publisher(CompressedImage, RIG.sensor("front").topic).publish(message)

    def camera_info(self, at_ns: int, **changes: Any) -> None:
        camera = RIG.cameras[0]
        message = CameraInfo(header=header(at_ns, "camera"), width=camera.width, height=camera.height)
        message.k = camera.intrinsics.reshape(-1)
        for name, value in changes.items():
            setattr(message, name, value)
        self.publisher(CameraInfo, str(camera.camera_info_topic)).publish(message)

    def instant(
        self,
        *,
        lidar: PointCloud2 | bool = True,
        camera: CompressedImage | bool = True,
        odometry: bool = True,
        x: float = 0.0,
    ) -> int:
        """Publish what belongs to the next instant, a period after the last; returns its stamp."""
        # Found before time begins to count, or the first gap between two messages would be a long one.
        for wanted, kind, topic in (
            (odometry, Odometry, RIG.odom_topic),
            (lidar, PointCloud2, RIG.sensor("top").topic),
            (camera, CompressedImage, RIG.sensor("front").topic),
        ):
            if wanted is not False:
                self.publisher(kind, topic)
        if self.sim_time_ns is None:
            # No faster than sensors are, or a message would be near enough to serve two frames.
            self.spin_until(lambda: self.now_ns() - self._last_instant_ns >= PERIOD_NS, "the next instant")
        else:
            # A node that has not found the clock yet drops what it gets.
            self.spin_until(lambda: self.clock.get_subscription_count() > 0, "a subscriber of /clock")
            self.set_clock(max(self.sim_time_ns, self._last_instant_ns + PERIOD_NS))
        at_ns = self._last_instant_ns = self.now_ns()
        if odometry:
            self.odometry(at_ns, x)
        if lidar is not False:
            self.lidar(at_ns, None if lidar is True else lidar)
        if camera is not False:
            self.camera(at_ns, None if camera is True else camera)
        return at_ns

    def frame(self, **instant: Any) -> Any:
        """Publish one instant and wait for the health of its frame."""
        at_ns = self.instant(**instant)
        return self.spin_until(
            lambda: next((h for h in reversed(self.healths) if is_frame(h, at_ns)), None),
            f"health of the frame at {at_ns}",
        )


def is_frame(health: Any, at_ns: int) -> bool:
    """Whether this is the health of the frame at that time, and no heartbeat of the same time."""
    return stamp_ns(health) == at_ns and "latency" in health.stages and health.frames > 0


def sensor(health: Any, name: str) -> Any:
    return next(s for s in health.sensors if s.name == name)


def drops(health: Any) -> dict[str, int]:
    return dict(zip(health.drop_causes, health.drops, strict=True))


def header(at_ns: int, frame_id: str) -> Any:
    return make("std_msgs/msg/Header", stamp=time_message(make, at_ns), frame_id=frame_id)


def cloud(points_N4: np.ndarray) -> PointCloud2:
    """x, y, z, intensity."""
    fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(("x", "y", "z", "intensity"))
    ]
    data = np.ascontiguousarray(points_N4, np.float32).tobytes()
    return PointCloud2(
        height=1, width=len(points_N4), fields=fields, point_step=16, row_step=len(data), data=data
    )  # fmt: skip


def picture() -> np.ndarray:
    return np.full((RIG.cameras[0].height, RIG.cameras[0].width, 3), 90, np.uint8)


def jpeg(bgr_HW3: np.ndarray | None = None) -> CompressedImage:
    done, data = cv2.imencode(".jpg", picture() if bgr_HW3 is None else bgr_HW3)
    assert done
    return CompressedImage(format="jpeg", data=data.tobytes())


def raw_image(padding: int = 0) -> Image:
    """rgb8 with some unused bytes at the end of each row."""
    rgb = picture()
    rows = np.pad(rgb.reshape(len(rgb), -1), ((0, 0), (0, padding)))
    return Image(
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding="rgb8",
        step=rows.shape[1],
        data=rows.tobytes(),
    )


def path(points: Sequence[tuple[float, float]], at_ns: int, frame_id: str) -> PathMessage:
    message = PathMessage(header=header(at_ns, frame_id))
    for x, y in points:
        pose = make("geometry_msgs/msg/PoseStamped")
        pose.pose.position.x, pose.pose.position.y = x, y
        message.poses.append(pose)
    return message


def best_effort() -> QoSProfile:
    return QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
