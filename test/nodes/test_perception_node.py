"""perception_node over real DDS, in a process of its own: what it publishes, and what it survives."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")

from e2e_perception.msg import Health
from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from node_harness import (
    RIG,
    SECOND,
    Robot,
    best_effort,
    cloud,
    drops,
    header,
    jpeg,
    path,
    picture,
    raw_image,
    sensor,
)
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from e2e_perception.core.message_inputs import stamp_ns

pytestmark = pytest.mark.ros

LIDAR_TOPIC = RIG.sensor("top").topic
CAMERA_TOPIC = RIG.sensor("front").topic


# ------------------------------------------------------------------ what it publishes


def test_each_frame_gives_tracks_a_plan_and_health_of_the_same_stamp(perception: Robot) -> None:
    stamps = []
    for _ in range(4):
        health = perception.frame()
        stamps.append(stamp_ns(health))
    perception.spin_until(lambda: len(perception.tracks) >= 4 and len(perception.plans) >= 4, "four outputs")

    assert [stamp_ns(t) for t in perception.tracks][-4:] == stamps
    assert [stamp_ns(p) for p in perception.plans][-4:] == stamps
    assert perception.plans[-1].header.frame_id == "base_link"
    assert len(perception.plans[-1].points) > 0
    assert np.isfinite([point.speed for point in perception.plans[-1].points]).all()
    assert perception.plans[-1].reason
    assert (health.frames, health.plans) == (4, 4)
    assert all(s.valid for s in health.sensors)
    assert health.bundle.startswith("small ")
    assert health.backend.startswith("onnxruntime ")
    assert set(health.stages) == {
        "wait", "prepare", "queue", "infer", "track", "plan", "supervise", "publish", "latency",
    }  # fmt: skip


def test_it_becomes_nominal_and_says_what_it_assumes(perception: Robot) -> None:
    health = perception.frame()
    for _ in range(30):
        health = perception.frame()
        if health.state == Health.NOMINAL:
            break
    assert any("straight ahead assumed" in reason for reason in health.reasons)
    # An untrained network may plan nonsense, which the supervisor replaces; sensors and ego motion are fine.
    assert not any("ego motion" in reason or "stale" in reason for reason in health.reasons)


def test_best_effort_sensors_are_heard_as_well_as_reliable_ones(perception: Robot) -> None:
    perception.publisher(PointCloud2, LIDAR_TOPIC, best_effort())
    perception.publisher(CompressedImage, CAMERA_TOPIC, best_effort())
    health = perception.frame()
    assert all(s.valid for s in health.sensors)


def test_raw_images_are_taken_where_the_rig_names_a_compressed_topic(perception: Robot) -> None:
    camera = perception.publisher(Image, CAMERA_TOPIC)
    message = raw_image(padding=10)

    def is_used() -> bool:
        at_ns = perception.instant(camera=False)
        message.header = header(at_ns, "camera")
        camera.publish(message)
        return bool(sensor(perception.health(lambda h: stamp_ns(h) >= at_ns, "health"), "front").valid)

    perception.spin_until(is_used, "the raw image to be used")


def test_a_route_is_followed_until_an_empty_one_comes(perception: Robot) -> None:
    perception.frame()
    route = perception.publisher(PathMessage, "/route")
    route.publish(path([(0.0, 0.0), (50.0, 0.0), (100.0, 20.0)], perception.now_ns(), "odom"))
    perception.spin_until(
        lambda: not any("straight ahead" in r for r in perception.frame().reasons), "a frame with the route"
    )
    assert not perception.plans[-1].route_assumed
    route.publish(path([], perception.now_ns(), "odom"))
    perception.spin_until(
        lambda: any("straight ahead" in r for r in perception.frame().reasons), "a frame without it"
    )


def test_a_route_in_an_unknown_frame_is_refused_on_health(perception: Robot) -> None:
    perception.frame()
    route = perception.publisher(PathMessage, "/route")
    route.publish(path([(0.0, 0.0), (50.0, 0.0)], perception.now_ns(), "map"))
    perception.health_saying("frame 'map', expected the odometry's 'odom'")


def test_candidates_and_markers_are_published_on_demand(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object]
) -> None:
    from e2e_perception.msg import PlanCandidates
    from nav_msgs.msg import Path as PlannedPath
    from visualization_msgs.msg import MarkerArray

    received: dict[str, list[Any]] = {"plan_candidates": [], "markers": [], "path": []}
    kinds = {"plan_candidates": PlanCandidates, "markers": MarkerArray, "path": PlannedPath}
    for topic, kept in received.items():
        robot.node.create_subscription(kinds[topic], f"perception_node/{topic}", kept.append, 10)
    robot.process = start("perception_node", {**basics, "node.publish_candidates": True})
    robot.spin_until(lambda: robot.frame() and all(received.values()), "all three")
    candidates = received["plan_candidates"][-1]
    assert len(candidates.points) == candidates.num_candidates * candidates.num_steps * 2
    assert len(candidates.costs) == candidates.num_candidates * len(candidates.terms)
    assert received["markers"][-1].markers[0].action == 3  # remove the last frame's


def test_diagnostics_show_stack_and_sensors(perception: Robot) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    received: list[Any] = []
    perception.node.create_subscription(DiagnosticArray, "/diagnostics", received.append, 10)
    perception.spin_until(lambda: perception.frame() and received, "diagnostics")
    assert [s.name for s in received[-1].status] == [
        "perception_node: stack", "perception_node: top", "perception_node: front",
    ]  # fmt: skip
    assert received[-1].status[0].hardware_id == "test_robot"


def test_sensor_topics_can_be_replaced_by_parameter(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object]
) -> None:
    robot.process = start("perception_node", {**basics, "node.sensor_topics": ["top:=/velodyne_points"]})
    lidar = robot.publisher(PointCloud2, "/velodyne_points")
    at_ns = robot.instant(lidar=False)
    message = cloud(np.ones((10, 4), np.float32) * 5.0)
    message.header = header(at_ns, "lidar")
    lidar.publish(message)
    robot.health(lambda h: sensor(h, "top").valid, "a frame of the renamed lidar")


# ------------------------------------------------------------------ bad input: alive, and says so


def half_jpeg() -> CompressedImage:
    message = jpeg(np.random.default_rng(0).integers(0, 256, picture().shape, np.uint8))
    message.data = message.data[: len(message.data) // 3]
    return message


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        ({"camera": CompressedImage(format="jpeg", data=b"\xff\xd8 no picture")}, "front", "undecodable"),
        ({"camera": CompressedImage(format="jpeg", data=b"")}, "front", "undecodable"),
        ({"camera": "half"}, "front", "undecodable"),
        ({"camera": jpeg(np.zeros((48, 64, 3), np.uint8))}, "front", "image is 64x48"),
        ({"lidar": cloud(np.full((40, 4), np.nan, np.float32))}, "top", "undecodable"),
        ({"lidar": cloud(np.zeros((0, 4), np.float32))}, "top", "undecodable"),
        ({"lidar": PointCloud2(height=1, width=100, point_step=16, row_step=1600)}, "top", "undecodable"),
    ],
    ids=[
        "corrupt jpeg", "empty jpeg", "truncated jpeg", "picture of another size", "all-NaN cloud",
        "empty cloud", "cloud without fields and data",
    ],
)  # fmt: skip
def test_a_bad_message_is_named_on_health_and_the_next_good_one_is_used(
    perception: Robot, what: dict[str, Any], name: str, says: str
) -> None:
    if what.get("camera") == "half":
        what = {"camera": half_jpeg()}
    assert sensor(perception.frame(), name).valid
    bad = perception.frame(**what)
    assert not sensor(bad, name).valid
    assert says in sensor(bad, name).reason
    assert any(reason.startswith(f"{name}: ") for reason in bad.reasons)
    assert drops(bad)["undecodable"] == 1
    assert sensor(perception.frame(), name).valid


@pytest.mark.parametrize("name", ["front", "top"])
def test_a_sensor_unplugged_in_mid_run_is_missed_and_welcomed_back(perception: Robot, name: str) -> None:
    kind, topic = (CompressedImage, CAMERA_TOPIC) if name == "front" else (PointCloud2, LIDAR_TOPIC)
    for _ in range(3):
        assert sensor(perception.frame(), name).valid
    perception.unplug(kind, topic)

    last: dict[str, Any] = {}

    def missed() -> bool:
        """The camera alone defines the frames once the lidar has been silent for a while."""
        perception.instant(**{"camera" if name == "front" else "lidar": False})
        last["health"] = perception.health(lambda h: True, "any health")
        return not sensor(last["health"], name).valid

    perception.spin_until(missed, f"health to miss {name}")
    assert last["health"].state != Health.NOMINAL
    assert any(reason.startswith(f"{name}: ") for reason in last["health"].reasons)
    frames = last["health"].frames
    perception.spin_until(lambda: missed() and last["health"].frames > frames, "frames to go on without it")

    def back() -> bool:
        perception.instant()
        return bool(sensor(perception.health(lambda h: True, "any health"), name).valid)

    perception.spin_until(back, f"{name} to be back")


def test_without_odometry_there_is_no_ego_motion_and_health_says_so(perception: Robot) -> None:
    health = perception.frame(odometry=False)
    assert any("ego motion unknown" in reason for reason in health.reasons)
    assert health.state != Health.NOMINAL
    assert not any("ego motion unknown" in reason for reason in perception.frame().reasons)


def test_jumping_odometry_resets_memory_and_is_named(perception: Robot) -> None:
    perception.frame()
    health = perception.frame(x=5000.0)
    assert any("odometry jumped" in reason for reason in health.reasons)
    assert not any("odometry jumped" in reason for reason in perception.frame(x=5000.0).reasons)


def test_odometry_of_another_frame_or_not_finite_is_refused_and_named(perception: Robot) -> None:
    at_ns = perception.now_ns()
    perception.odometry(at_ns, child_frame_id="imu_link")
    health = perception.health_saying(
        "odometry describes frame 'imu_link', the rig's base frame is 'base_link'"
    )
    assert drops(health)["odometry_unusable"] == 1
    perception.odometry(perception.now_ns(), x=float("nan"))
    perception.health_saying("odometry has a non-finite pose")
    perception.frame()
    assert not any("odometry" in reason for reason in perception.frame().reasons)


def test_an_all_zero_quaternion_in_odometry_is_named(perception: Robot) -> None:
    message = Odometry(header=header(perception.now_ns(), "odom"), child_frame_id="base_link")
    message.pose.pose.orientation.w = 0.0
    perception.publisher(Odometry, "/odom").publish(message)
    perception.health_saying("quaternion")


def test_camera_info_that_disagrees_with_the_rig_disables_the_camera_until_it_agrees(
    perception: Robot,
) -> None:
    assert sensor(perception.frame(), "front").valid
    perception.camera_info(perception.now_ns(), width=1920, height=1080)
    health = perception.health_saying("says 1920x1080, the rig says 96x64")
    while sensor(health, "front").valid:
        health = perception.frame()
    assert drops(health)["calibration"] > 0
    perception.camera_info(perception.now_ns())
    perception.spin_until(lambda: sensor(perception.frame(), "front").valid, "the camera to be back")
    assert not any("1920x1080" in reason for reason in perception.healths[-1].reasons)


def test_a_publisher_of_the_wrong_type_is_named(perception: Robot) -> None:
    wrong = perception.node.create_publisher(String, LIDAR_TOPIC, 10)
    health = perception.health_saying(
        f"lidar top: {LIDAR_TOPIC} is published as std_msgs/msg/String, expected sensor_msgs/msg/PointCloud2"
    )
    assert not sensor(health, "top").valid
    perception.node.destroy_publisher(wrong)
    perception.health(lambda h: not any("std_msgs" in r for r in h.reasons), "the end of it")
    assert sensor(perception.frame(), "top").valid


def test_a_clock_that_goes_backwards_starts_a_new_timeline(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object]
) -> None:
    robot.ticking = False
    robot.process = start("perception_node", basics)
    robot.health_saying("nothing has come on /clock yet")
    robot.ticking = True
    for _ in range(3):
        before = robot.frame()
    robot.restart_time(500 * SECOND)
    robot.health(lambda h: stamp_ns(h) <= 505 * SECOND, "the new time")
    for _ in range(3):
        after = robot.frame()
    assert stamp_ns(after) < stamp_ns(before)
    assert after.frames == before.frames + 3
    assert all(s.valid for s in after.sensors)


def test_silence_is_said_and_answered_with_a_stop(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object]
) -> None:
    robot.process = start("perception_node", {**basics, "supervisor.silence_ms": 500.0})
    health = robot.health(lambda h: h.state >= Health.MINIMAL_RISK, "a minimal-risk stop")
    assert any("no valid frame" in reason for reason in health.reasons)
    plan = robot.spin_until(lambda: robot.plans and robot.plans[-1], "the stop")
    assert plan.candidate == -1
    assert plan.reason.startswith(("minimal risk: stop", "stopped: stop"))


# ------------------------------------------------------------------ lifecycle and process


def test_lifecycle_without_autostart(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object]
) -> None:
    robot.process = start("perception_node", {**basics, "autostart": False})
    robot.health_saying("unconfigured")
    assert robot.state() == "unconfigured"
    assert robot.change_state(Transition.TRANSITION_CONFIGURE)
    assert robot.state() == "inactive"
    assert robot.health_saying("inactive").bundle.startswith("small ")
    assert robot.change_state(Transition.TRANSITION_ACTIVATE)
    assert robot.state() == "active"
    robot.frame()
    assert robot.change_state(Transition.TRANSITION_DEACTIVATE)
    robot.health_saying("inactive")
    assert robot.node.count_subscribers(LIDAR_TOPIC) == 0
    assert robot.change_state(Transition.TRANSITION_ACTIVATE)
    robot.frame()
    assert robot.change_state(Transition.TRANSITION_DEACTIVATE)
    assert robot.change_state(Transition.TRANSITION_CLEANUP)
    assert robot.state() == "unconfigured"
    assert robot.health_saying("unconfigured").bundle == ""


def test_a_transition_that_is_not_possible_does_no_harm(perception: Robot) -> None:
    perception.frame()
    client = perception._change_state
    from lifecycle_msgs.srv import ChangeState

    # rclpy answers nothing and raises in the node.
    client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    health = perception.health_saying("internal error")
    assert drops(health)["internal_error"] == 1
    assert sensor(perception.frame(), "top").valid


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine.bundle": "no_such_bundle"}, "no bundle 'no_such_bundle'"),
        ({"engine.precision": "float16"}, "'onnxruntime' runs in float32, not in 'float16'"),
        ({"node.rig": "no_such_rig"}, "no rig 'no_such_rig'"),
        ({"node.sensor_topics": ["back:=/lidar"]}, "has no sensor 'back'"),
        ({"node.sensor_topics": ["/lidar"]}, "expected `sensor:=/topic`"),
        ({"plannig.speed_limit": 10.0}, "unknown parameter 'plannig.speed_limit'"),
        ({"planning.speed_limit": 1000.0}, "planning.speed_limit = 1000.0"),
        ({"planning.speed_limit": "fast"}, "planning.speed_limit = 'fast'"),
        ({"sync.anchors": ["back"]}, "anchor back is no sensor"),
        ({"sync.policy": "approximate"}, "needs the ROS package message_filters"),
    ],
)
def test_what_cannot_be_configured_is_said_in_a_sentence(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object], changes: dict[str, object], says: str
) -> None:
    if "sync.policy" in changes:
        import importlib.util

        if importlib.util.find_spec("message_filters") is not None:
            pytest.skip("message_filters is installed here")
    robot.process = start("perception_node", {**basics, **changes})
    health = robot.health_saying(says)
    assert health.state == Health.STOPPED
    assert any(reason.startswith("not configured: ") for reason in health.reasons)
    assert robot.state() == "unconfigured"
    assert not robot.change_state(Transition.TRANSITION_CONFIGURE)


def test_a_damaged_bundle_is_refused(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object], bundle_dir: Path, tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(bundle_dir, tmp_path / "damaged"))
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    robot.process = start("perception_node", {**basics, "engine.bundle": str(copy)})
    robot.health_saying("is damaged or was altered")
    assert robot.state() == "unconfigured"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(perception: Robot, number: int) -> None:
    perception.frame()
    process, perception.process = perception.process, None
    assert process is not None
    assert process.end(number) == 0
    assert "Traceback" not in process.output


def test_it_lives_in_a_namespace(domain: int, start: Callable[..., Any], basics: dict[str, object]) -> None:
    robot = Robot(domain, "/robot_7/perception_node")
    try:
        robot.process = start("perception_node", basics, "-r", "__ns:=/robot_7")
        robot.frame()
        assert robot.state() == "active"
    finally:
        robot.close()
