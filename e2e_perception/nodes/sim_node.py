"""Drives a scenario in closed loop: plays the world, the robot's body and its sensors, and follows the plan.

    topic out                            type
    the rig's sensor topics              sensor_msgs/Image or CompressedImage, PointCloud2
    the rig's camera_info_topic          sensor_msgs/CameraInfo
    the rig's odom_topic, route_topic    nav_msgs/Odometry (50 Hz), nav_msgs/Path (latched)
    /clock                               rosgraph_msgs/Clock, before each message and every 20 ms

    topic in                             type
    PLANNER/plan, PLANNER/health         e2e_perception/Plan, Health

Simulated time waits for the planner (`lockstep`), so that a drive is the same on any machine: for each
message until it has been taken in, and for each frame's plan until it is there. The planner's
`planning.speed_limit` is set to the scenario's. Exit codes: 0 when the episode is over, however it went, or
after a signal; 2 if an option cannot be used, or the planner never came.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from e2e_perception.core.config import (
    StackConfig,
    config_from_parameters,
    parameter_specs,
    section_specs,
)
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import E2EPerceptionError, InputError
from e2e_perception.core.message_inputs import stamp_ns
from e2e_perception.core.message_results import plan_from_message
from e2e_perception.core.messages import HEALTH_TYPE, PLAN_TYPE, time_message
from e2e_perception.core.resources import config_dir
from e2e_perception.core.results import SafetyState
from e2e_perception.core.rig import Camera, Rig, find_rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.sensor_messages import (
    CAMERA_INFO_TYPE,
    COMPRESSED_IMAGE_TYPE,
    IMAGE_TYPE,
    ODOMETRY_TYPE,
    PATH_TYPE,
    POINTS_TYPE,
    camera_info_message,
    compressed_image_message,
    image_message,
    odometry_message,
    points_message,
    route_message,
)
from e2e_perception.data.bags import encode_jpeg
from e2e_perception.evaluation.episode_view import write_episode_view
from e2e_perception.evaluation.outcomes import outcome
from e2e_perception.nodes.message_factory import RclpyFactory, message_class
from e2e_perception.nodes.options import SimOptions
from e2e_perception.nodes.parameters import declared_options, node_help
from e2e_perception.nodes.process import run
from e2e_perception.nodes.qos import latched_qos, output_qos
from e2e_perception.nodes.report import NodeReport
from e2e_perception.simulation.closed_loop import ClosedLoop, Robot
from e2e_perception.simulation.degradation import DegradationSchedule, load_degradation
from e2e_perception.simulation.lockstep import Lockstep
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
SETTLE_S = 0.5  # a subscriber that we see may not see us yet
REPEAT_S = 0.2  # of the present time, while it stands still: /clock is best effort for those who listen
POLL_S = 0.01
RETRY_S = 1.0  # patience with a planner that is lost


class SimNode(Node):
    """Publishes from a thread of its own; plans come in on the executor's.

    Attributes:
        report: Errors.
        exit_code: Set at the end of the episode.
    """

    def __init__(self) -> None:
        """Make the scenario and begin.

        Raises:
            E2EPerceptionError: If an option cannot be used.
        """
        super().__init__("sim_node")
        self.exit_code: int | None = None
        self.report = NodeReport(self.get_logger())
        self._options = declared_options(self, SimOptions)
        self._rig = find_rig(self._options.rig)
        self._loop = _closed_loop(self._options, self._rig)
        self._lockstep = self._locked(StackConfig())
        self._out = Path(self._options.out) if self._options.out else None
        if self._out is not None:
            try:
                self._out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"out: no directory {self._out} can be made: {error.strerror}") from error
        self._make = RclpyFactory()
        self._changed = threading.Condition()
        self._bundle, self._counters, self._plans = "", dict[str, int](), 0
        self._lost = False  # whether the planner has been waited for in vain, and has not answered since
        self._create_publishers()
        planner = self._options.planner
        qos = output_qos(100)
        self.create_subscription(message_class(PLAN_TYPE), f"/{planner}/plan", self._take_plan, qos)
        self.create_subscription(message_class(HEALTH_TYPE), f"/{planner}/health", self._take_health, qos)
        self._planner_parameters = AsyncParameterClient(self, planner)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._drive, name="simulation", daemon=True)
        self._thread.start()

    def _locked(self, config: StackConfig) -> Lockstep:
        silence_ms, duration_s = config.supervisor.silence_ms, self._options.duration
        return Lockstep(self._loop, self._rig, config.sync, silence_ms=silence_ms, duration_s=duration_s)

    def close(self) -> None:
        """Stop driving."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _create_publishers(self) -> None:
        # Reliable suits best-effort subscribers too, and large messages need it.
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._sensors: dict[str, Any] = {}
        self._infos: dict[str, Any] = {}
        for sensor in self._rig.sensors:
            kind = POINTS_TYPE
            if isinstance(sensor, Camera):
                kind = COMPRESSED_IMAGE_TYPE if sensor.topic.endswith("/compressed") else IMAGE_TYPE
                if sensor.camera_info_topic is not None:
                    info = message_class(CAMERA_INFO_TYPE)
                    self._infos[sensor.name] = self.create_publisher(info, sensor.camera_info_topic, qos)
            self._sensors[sensor.name] = self.create_publisher(message_class(kind), sensor.topic, qos)
        many = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._odometry = self.create_publisher(message_class(ODOMETRY_TYPE), self._rig.odom_topic, many)
        self._route = self.create_publisher(message_class(PATH_TYPE), self._rig.route_topic, latched_qos())
        self._time = self.create_publisher(Clock, "/clock", many)

    # --- in the executor's thread ---------------------------------------------------------------------------

    def _take_plan(self, message: Any) -> None:
        plan = plan_from_message(message)
        with self._changed:
            self._lockstep.take_plan(plan, SafetyState(int(message.state)))
            self._answered(plan.stamp_ns)

    def _take_health(self, message: Any) -> None:
        with self._changed:
            self._bundle = message.bundle
            counts = zip(message.drop_causes, message.drops, strict=True)
            self._counters = {"frames": int(message.frames), "plans": int(message.plans)}
            self._counters |= {f"dropped: {cause}": int(count) for cause, count in counts if count}
            if int(message.plans) == self._plans:  # this frame has none; else it is on its way
                self._answered(stamp_ns(message))
            self._plans = int(message.plans)

    def _answered(self, at_ns: int) -> None:
        if self._lockstep.answered(at_ns):
            self._lost = False
        self._changed.notify_all()

    # --- in the simulation's thread -------------------------------------------------------------------------

    def _drive(self) -> None:
        code = 2
        try:
            self._wait_for_planner()
            if not self._stopping.is_set():
                self._begin()
                self._play()
                self._finish()
            code = 0
        except E2EPerceptionError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except Exception as error:  # noqa: BLE001 - else the process would hang with a dead thread
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            if code or self._options.shutdown_at_end or self._stopping.is_set():
                self.exit_code = code

    def _wait_for_planner(self) -> None:
        deadline_s = time.monotonic() + self._options.start_timeout
        while not self._stopping.is_set():
            wanted = self._options.wait_for_subscribers
            deaf = [p.topic_name for p in self._sensors.values() if p.get_subscription_count() < wanted]
            if not deaf and self._planner_parameters.services_are_ready():
                break
            if time.monotonic() > deadline_s:
                raise InputError(
                    f"{self._options.planner} was not ready within {self._options.start_timeout:g} s "
                    f"(nobody listens to {', '.join(deaf) or 'its parameters'}); start it with the same rig, "
                    "and activate it"
                )
            self._stopping.wait(0.05)

    def _begin(self) -> None:
        """Agree with the planner, and tell it where it is and where to go."""
        config = self._planner_config()
        policy, rate_limit = config.sync.policy, config.node.max_rate_hz
        if self._options.lockstep and (policy != "anchor" or rate_limit > 0.0):
            raise InputError(
                f"{self._options.planner} has sync.policy {policy!r} and node.max_rate_hz {rate_limit:g}; "
                "time can wait for its plans only with 'anchor' and 0, else set lockstep to false"
            )
        self._lockstep = self._locked(config)
        limit = Parameter("planning.speed_limit", Parameter.Type.DOUBLE, float(self._loop.world.speed_limit))
        answer = self._answer(self._planner_parameters.set_parameters([limit]), "a speed limit")
        for result in answer.results:
            if not result.successful:
                self.get_logger().warning(f"{self._options.planner} takes no speed limit: {result.reason}")
        self._route.publish(route_message(self._make, self._loop.world.route, self._loop.now_ns))
        until_s = time.monotonic() + SETTLE_S
        while time.monotonic() < until_s and not self._stopping.wait(0.05):
            self._publish_time(self._loop.now_ns)
        self._publish_odometry(self._loop.ego)

    def _planner_config(self) -> StackConfig:
        """The planner's parameters; defaults for those that it does not have."""
        names = [spec.name for spec in parameter_specs()]
        answer = self._answer(self._planner_parameters.get_parameters(names), "its parameters")
        values = {
            name: list(value) if isinstance(value, array) else value
            for name, value in zip(names, map(parameter_value_to_python, answer.values), strict=True)
            if value is not None
        }
        return config_from_parameters(values)

    def _answer(self, future: Any, what: str) -> Any:
        deadline_s = time.monotonic() + self._options.start_timeout
        while not future.done():
            if time.monotonic() > deadline_s or self._stopping.wait(POLL_S):
                raise InputError(
                    f"{self._options.planner} did not answer a call about {what}; is it running?"
                )
        return future.result()

    def _play(self) -> None:
        begun_s, start_ns = time.monotonic(), self._loop.now_ns
        while not self._lockstep.over and not self._stopping.is_set():
            with self._changed:
                tick = self._lockstep.tick()
            self._publish_odometry(tick.ego)
            for message in tick.messages:
                self._publish_time(message.arrival_ns)
                self._publish_sensor(message)
                self._wait_until_taken()
            self._publish_time(tick.now_ns)
            if not tick.messages:
                self._wait_until_taken()
            if self._options.lockstep:
                self._wait_for_plans()
            if self._options.rate > 0.0:
                due_s = begun_s + (tick.now_ns - start_ns) * 1e-9 / self._options.rate
                self._stopping.wait(max(due_s - time.monotonic(), 0.0))
        if not self._lockstep.over:
            self._loop.fail("interrupted")
        passed = (self._loop.now_ns - start_ns) * 1e-9
        took = time.monotonic() - begun_s
        self.get_logger().info(f"{passed:.1f} s simulated in {took:.1f} s, {passed / max(took, 1e-6):.2f}x")

    def _wait_until_taken(self) -> None:
        """Let time stand still until the planner has dated what was sent.

        It does so when it takes a message from DDS, and a planner of one executor answers a call after it has
        taken what was there before. When a frame waits no longer, and who is silent, hangs on that date.
        """
        if not self._options.lockstep or self._lost:
            return
        taken = threading.Event()
        self._planner_parameters.get_parameters(["use_sim_time"]).add_done_callback(lambda _: taken.set())
        since_s = time.monotonic()
        while not taken.wait(POLL_S) and not self._stopping.is_set():
            if time.monotonic() - since_s > self._patience_s:
                self._lose_patience(f"{self._options.planner} takes nothing in")
                return

    def _wait_for_plans(self) -> None:
        since_s = repeated_s = time.monotonic()
        with self._changed:
            while self._lockstep.awaited() and not self._stopping.is_set():
                self._changed.wait(POLL_S)
                now_s = time.monotonic()
                if now_s - repeated_s > REPEAT_S:
                    repeated_s = now_s
                    self._publish_time(self._loop.now_ns)
                if now_s - since_s > self._patience_s:
                    self._lose_patience(f"no plan for {len(self._lockstep.give_up())} frame(s)")

    @property
    def _patience_s(self) -> float:
        timeout_s = self._options.plan_timeout
        return min(timeout_s, RETRY_S) if self._lost else timeout_s

    def _lose_patience(self, why: str) -> None:
        self.get_logger().warning(f"{why} in {self._patience_s:g} s; time goes on")
        self._lost = True

    def _finish(self) -> None:
        with self._changed:
            record = self._lockstep.record(f"bundle:{self._bundle} over ROS", self._counters)
        result = outcome(record)
        said = "success" if result.success else "; ".join(result.shortfalls)
        self.get_logger().info(f"{record.scenario}: {said}")
        if self._out is None:
            return
        write_episode_view(self._out / "episode.html", record)
        document = {
            **asdict(result),
            "shortfalls": list(result.shortfalls),
            "final_pose": record.ego_T5[-1, :3].tolist(),
            "seconds": 0.1 * (len(record.ego_T5) - 1),
            "counters": dict(record.counters),
        }
        text = json.dumps(_plain(document), indent=1, allow_nan=False)
        (self._out / "outcome.json").write_text(text + "\n", encoding="utf-8")

    def _publish_time(self, now_ns: int) -> None:
        self._time.publish(Clock(clock=time_message(self._make, now_ns)))

    def _publish_odometry(self, ego: EgoState) -> None:
        self._odometry.publish(odometry_message(self._make, ego, self._rig.base_frame))

    def _publish_sensor(self, message: SensorMessage) -> None:
        sensor, make = self._rig.sensor(message.sensor), self._make
        publisher, payload = self._sensors[sensor.name], message.payload
        if not isinstance(sensor, Camera):
            publisher.publish(points_message(make, payload, message.stamp_ns, sensor.frame_id))
            return
        info = self._infos.get(sensor.name)
        if info is not None:
            info.publish(camera_info_message(make, sensor, message.stamp_ns))
        if sensor.topic.endswith("/compressed"):
            jpeg = encode_jpeg(payload.rgb_HW3)
            publisher.publish(compressed_image_message(make, jpeg, message.stamp_ns, sensor.frame_id))
        else:
            publisher.publish(image_message(make, payload.rgb_HW3, message.stamp_ns, sensor.frame_id))


def _closed_loop(options: SimOptions, rig: Rig) -> ClosedLoop:
    spec = ScenarioSpec.parse(options.scenario)
    if options.seed >= 0:
        spec = ScenarioSpec(spec.family, options.seed, spec.difficulty)
    schedule: DegradationSchedule | None = None
    if options.degradation:
        schedule = load_degradation(options.degradation)
    world = TrafficWorld(spec)
    sensors = SensorRig(rig, world.start_ns, world.end_ns, world.seed, schedule)
    return ClosedLoop(world, robot=Robot(rig.ego_length, rig.ego_width, rig.ego_center_x), sensors=sensors)


def _plain(value: Any) -> Any:
    """Without what JSON cannot hold: infinities become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    number = float(value)
    return (
        (int(number) if number.is_integer() and abs(number) < 2**53 else number)
        if abs(number) < 1e300
        else None
    )


def main() -> int:
    """Entry point of `sim_node`."""
    # A frame's messages leave together. What does not fit Fast DDS's shared memory is sent again with its
    # next heartbeat, after three seconds.
    os.environ.setdefault(PROFILES, str(config_dir() / "fastdds_large_messages.xml"))
    return run(SimNode, help_text=node_help(__doc__ or "", section_specs(SimOptions)))


if __name__ == "__main__":
    sys.exit(main())
