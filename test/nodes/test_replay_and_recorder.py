"""replay_node and recorder_node over real DDS: what goes in comes out, byte by byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")

from nav_msgs.msg import Odometry
from node_harness import ROOT, SECOND, NodeProcess, Robot, arguments, drops, sensor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3
from e2e_perception.core.samples import PointsSample
from e2e_perception.core.sensor_messages import (
    ODOMETRY_TYPE,
    POINTS_TYPE,
    odometry_message,
    points_message,
)
from e2e_perception.data.bags import BagSource, BagWriter
from e2e_perception.nodes.qos import latched_qos

pytestmark = pytest.mark.ros

NUM_FRAMES = 8
START_NS = 1_700_000_000 * SECOND
PERIOD_NS = SECOND // 10


def write_bag(path: Path, num_frames: int = NUM_FRAMES, num_points: int = 200) -> Path:
    """Odometry and point clouds at 10 Hz; the clouds arrive 20 ms late."""
    with BagWriter(path) as bag:
        for i in range(num_frames):
            stamp = START_NS + i * PERIOD_NS
            state = EgoState(stamp, SE3.planar(0.5 * i, 0.0, 0.0), np.array([5.0, 0.0, 0.0]), 0.0)
            bag.write("/odom", ODOMETRY_TYPE, stamp, odometry_message(bag.make, state, "base_link"))
            columns = {name: np.full(num_points, i, np.float32) for name in ("x", "y", "z", "intensity")}
            cloud = points_message(bag.make, PointsSample(columns), stamp, "lidar")
            bag.write("/lidar/points", POINTS_TYPE, stamp + SECOND // 50, cloud)
    return path


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write_bag(tmp_path / "bag")


class Listener:
    """Serialised messages by topic."""

    def __init__(self, robot: Robot, topics: dict[str, type]) -> None:
        self.received: dict[str, list[bytes]] = {topic: [] for topic in topics}
        for topic, kept in self.received.items():
            robot.node.create_subscription(topics[topic], topic, kept.append, 100, raw=True)


def wait_for_end(robot: Robot, process: NodeProcess) -> int:
    robot.ticking = False
    robot.process = None
    robot.spin_until(lambda: not process.alive, "the end of the process")
    return process.wait()


@pytest.fixture
def robot(domain: int) -> Any:
    robot = Robot(domain, sim_time=False)
    yield robot
    robot.close()


def wait_for_recorder(robot: Robot) -> None:
    heard: list[Any] = []
    robot.node.create_subscription(Bool, "/recorder_node/connected", heard.append, latched_qos())
    robot.spin_until(lambda: bool(heard), "the recorder to hear the stack")


# ------------------------------------------------------------------ player


def test_everything_is_played_as_recorded_with_the_bags_clock(
    robot: Robot, start: Callable[..., Any], bag: Path
) -> None:
    listener = Listener(robot, {"/odom": Odometry, "/lidar/points": PointCloud2})
    clocks: list[int] = []
    robot.node.create_subscription(
        Clock, "/clock", lambda m: clocks.append(m.clock.sec * SECOND + m.clock.nanosec), 1000
    )
    player = start("replay_node", {"bag": str(bag), "wait_for_subscribers": 2, "rate": 2.0})
    assert wait_for_end(robot, player) == 0
    with BagSource(bag) as source:
        recorded = list(source.raw_messages())
    for topic, received in listener.received.items():
        for raw, expected in zip(received, (r for name, _, _, r in recorded if name == topic), strict=True):
            assert raw[: len(expected)] == expected
            assert len(raw) - len(expected) < 4  # the middleware fills up to whole words
    assert clocks == sorted(clocks)
    assert clocks[0] == START_NS
    assert clocks[-1] > recorded[-1][2]
    assert {stamp for _, _, stamp, _ in recorded} <= set(clocks)
    assert f"played {2 * NUM_FRAMES} messages" in player.output


def test_topics_are_renamed_and_chosen(robot: Robot, start: Callable[..., Any], bag: Path) -> None:
    listener = Listener(robot, {"/points": PointCloud2, "/odom": Odometry})
    player = start(
        "replay_node",
        {
            "bag": str(bag),
            "topics": ["/lidar/points"],
            "remap": ["/lidar/points:=/points"],
            "wait_for_subscribers": 1,
            "rate": 4.0,
            "clock": False,
        },
    )
    assert wait_for_end(robot, player) == 0
    assert len(listener.received["/points"]) == NUM_FRAMES
    assert listener.received["/odom"] == []
    assert robot.node.count_publishers("/clock") == 0


def test_a_part_of_the_bag_is_played(robot: Robot, start: Callable[..., Any], bag: Path) -> None:
    listener = Listener(robot, {"/odom": Odometry})
    options = {"bag": str(bag), "start": 0.15, "duration": 0.3, "rate": 2.0, "topics": ["/odom"]}
    assert wait_for_end(robot, start("replay_node", {**options, "wait_for_subscribers": 1})) == 0
    assert len(listener.received["/odom"]) == 3  # at 0.2, 0.3 and 0.4 s


def test_a_loop_goes_on_until_a_signal(robot: Robot, start: Callable[..., Any], bag: Path) -> None:
    listener = Listener(robot, {"/odom": Odometry})
    player = start(
        "replay_node",
        {"bag": str(bag), "loop": True, "rate": 8.0, "wait_for_subscribers": 1, "topics": ["/odom"]},
    )
    robot.spin_until(lambda: len(listener.received["/odom"]) > 2 * NUM_FRAMES, "the third round")
    assert player.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bag": "/no/such/bag"}, "error: no bag at /no/such/bag"),
        ({"bag": ""}, "error: no bag given"),
        ({"rate": 0.0}, "rate = 0.0"),
        ({"speed": 2.0}, "unknown parameter 'speed'"),
        ({"start": 100.0}, "start is 100 s, but the bag is only 0.7 s long"),
        ({"remap": ["/a:=/b"]}, "remap names /a, which is not played"),
        ({"remap": ["/odom"]}, "expected `/from:=/to`"),
        ({"topics": ["/camera"]}, "has no topic /camera; it has /lidar/points"),
        ({"wait_for_subscribers": 1, "wait_timeout": 0.2}, "only 0 of 1 topics found a subscriber"),
    ],
)
def test_what_cannot_be_played_is_said_with_exit_code_2(
    start: Callable[..., Any], bag: Path, changes: dict[str, object], says: str
) -> None:
    player = start("replay_node", {"bag": str(bag), **changes})
    assert player.wait() == 2
    assert says in player.output
    assert "Traceback" not in player.output


def test_a_truncated_bag_is_refused_with_exit_code_2(start: Callable[..., Any], bag: Path) -> None:
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    player = start("replay_node", {"bag": str(bag)})
    assert player.wait() == 2
    assert "is cut off" in player.output


def test_a_damaged_bag_is_played_up_to_the_damage_and_ends_with_exit_code_2(
    robot: Robot, start: Callable[..., Any], tmp_path: Path
) -> None:
    # Several chunks of a megabyte; the damage is wider than a message, so that it hits the head of one.
    damaged = write_bag(tmp_path / "damaged", num_frames=80, num_points=2000)
    file = next(damaged.glob("*.mcap"))
    content = bytearray(file.read_bytes())
    assert len(content) > 2_500_000
    content[2_000_000:2_050_000] = b"\xab" * 50_000
    file.write_bytes(content)
    listener = Listener(robot, {"/odom": Odometry, "/lidar/points": PointCloud2})
    player = start("replay_node", {"bag": str(damaged), "wait_for_subscribers": 2, "rate": 8.0})
    code = wait_for_end(robot, player)
    assert code == 2, player.output
    assert "is damaged after" in player.output
    assert sum(map(len, listener.received.values())) > 0


# ------------------------------------------------------------------ recorder


def test_outputs_of_the_stack_are_recorded_and_readable_after_a_signal(
    domain: int, start: Callable[..., Any], basics: dict[str, object], tmp_path: Path
) -> None:
    robot = Robot(domain)
    try:
        out = tmp_path / "outputs"
        recorder = start("recorder_node", {"out": str(out), "use_sim_time": True, "topics": ["/odom"]})
        robot.process = start("perception_node", basics)
        wait_for_recorder(robot)
        robot.frame()
        robot.spin_until(lambda: robot.node.count_subscribers("/odom") == 2, "it to find odometry")
        for _ in range(5):
            last = robot.frame()
        assert recorder.end(signal.SIGTERM) == 0
        assert "recorded" in recorder.output
        with BagSource(out) as source:
            messages = list(source.messages())
        tracks = [m for m in messages if m.type_name == "e2e_perception/msg/Tracks"]
        healths = [m.message for m in messages if m.type_name == "e2e_perception/msg/Health"]
        assert len(tracks) >= 5, recorder.output
        assert max(h.frames for h in healths) == last.frames
        assert {m.topic for m in messages} >= {
            "/perception_node/tracks",
            "/perception_node/plan",
            "/perception_node/health",
            "/odom",
        }
        # Simulated time throughout.
        assert all(1_000 * SECOND <= m.stamp_ns < 2_000 * SECOND for m in messages)
    finally:
        robot.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("perception_node", "planning.speed_limit = 25.0"),
        ("replay_node", "rate = 1.0"),
        ("recorder_node", "out = ''"),
        ("sim_node", "plan_timeout = 10.0"),
    ],
)
def test_help_lists_the_parameters_and_starts_nothing(name: str, says: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", f"e2e_perception.nodes.{name}", "--help"],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert says in asked.stdout
    assert "--ros-args -p name:=value" in asked.stdout


def test_a_recorder_never_overwrites(start: Callable[..., Any], tmp_path: Path) -> None:
    recorder = start("recorder_node", {"out": str(tmp_path)})
    assert recorder.wait() == 2
    assert "a bag is never overwritten" in recorder.output


# ------------------------------------------------------------------ the installed programs


@pytest.mark.parametrize("name", ["perception_node", "replay_node", "recorder_node", "sim_node"])
def test_installed_programs_start_and_stop(
    domain: int, robot: Robot, basics: dict[str, object], bag: Path, tmp_path: Path, name: str
) -> None:
    program = ROOT / "install" / "e2e_perception" / "lib" / "e2e_perception" / name
    if not program.exists():
        pytest.skip(f"{program.relative_to(ROOT)} is not built: `make setup`")
    given = {
        "perception_node": basics,
        "replay_node": {"bag": str(bag), "loop": True},
        "recorder_node": {"out": str(tmp_path / "out")},
        "sim_node": {"scenario": "highway/1"},
    }[name]
    process = NodeProcess(name, arguments(given), domain, command=[str(program)])
    try:
        robot.process = process
        robot.spin_until(lambda: name in robot.node.get_node_names(), f"{name} in the graph")
        robot.process = None
        assert process.end(signal.SIGTERM) == 0, process.output
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.real_data
def test_a_real_drive_is_processed_and_every_frame_accounted_for(
    domain: int, start: Callable[..., Any], basics: dict[str, object], tmp_path: Path
) -> None:
    """Point clouds of 1.8 MB at 10 Hz, from a bag through the stack into a bag, on however busy a machine."""
    drive = recorded_drive()
    robot = Robot(domain, sim_time=False)
    try:
        out = tmp_path / "outputs"
        recorder = start("recorder_node", {"out": str(out), "use_sim_time": True})
        robot.process = start("perception_node", {**basics, "node.rig": "kitti_highway"})
        robot.health_saying("/clock")
        wait_for_recorder(robot)
        player = start("replay_node", {"bag": str(drive), "wait_for_subscribers": 4})
        robot.spin_until(lambda: not player.alive, "the end of the drive")
        assert player.wait() == 0
        last = robot.health(lambda h: True, "a last health")
        assert recorder.end() == 0
    finally:
        robot.close()
    counted = drops(last)
    lidar = sensor(last, "top")
    assert lidar.received <= 78
    assert lidar.received == lidar.used + lidar.dropped
    assert sum(counted.values()) >= lidar.dropped  # each has a cause
    with BagSource(out) as source:
        assert source.counts["/perception_node/tracks"] == last.frames, recorder.output
        assert source.counts["/perception_node/plan"] >= last.plans  # and stops where no frame came
    assert last.plans > 0


def recorded_drive() -> Path:
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "kitti_highway").exists():
        pytest.skip("the recorded drive is not here; see CONTRIBUTING.md")
    return data / "kitti_highway"
