"""Rules in perception_node over real DDS: what was around an event is on the disk, and can be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")

from lifecycle_msgs.msg import Transition
from nav_msgs.msg import Path as PathMessage
from node_harness import PERIOD_NS, RIG, SECOND, Robot, drops, make, path, sensor

from e2e_perception.core.config import NodeConfig
from e2e_perception.core.frames import SE3
from e2e_perception.core.message_inputs import stamp_ns
from e2e_perception.core.sensor_messages import transform_message
from e2e_perception.data.bags import BagSource
from e2e_perception.data.snippets import LOCK, UNFINISHED, read_info
from e2e_perception.nodes.qos import latched_qos
from e2e_perception.nodes.sensor_inputs import rig_inputs

pytestmark = pytest.mark.ros

LIDAR_TOPIC, CAMERA_TOPIC = RIG.sensor("top").topic, RIG.sensor("front").topic
INFO_TOPIC = str(RIG.cameras[0].camera_info_topic)
HEALTH_TOPIC, PLAN_TOPIC = "/perception_node/health", "/perception_node/plan"
LOST = "{name: camera-lost, when: lost.front >= 1, cooldown_s: 0, priority: 3}"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "snippets"


@pytest.fixture
def watchful(basics: dict[str, object], kept: Path) -> dict[str, object]:
    """Parameters of a node that keeps what is around the loss of its camera."""
    return {
        **basics,
        "triggers.rules": [LOST],
        "triggers.directory": str(kept),
        "triggers.before_s": 2.0,
        "triggers.after_s": 1.0,
    }


def finished(kept: Path) -> list[Path]:
    if not kept.is_dir():
        return []
    return sorted(p for p in kept.iterdir() if p.name not in (UNFINISHED, LOCK))


def lose_camera(robot: Robot) -> int:
    """Frames until the stack misses the camera; the stamp of that frame."""
    for _ in range(20):
        health = robot.frame(camera=False)
        if not sensor(health, "front").valid:
            return stamp_ns(health)
    raise AssertionError("the camera was never missed")


def drive(robot: Robot, frames: int, **instant: Any) -> list[int]:
    return [stamp_ns(robot.frame(**instant)) for _ in range(frames)]


def test_a_rule_that_fires_leaves_a_bag_with_the_sensors_around_the_event(
    robot: Robot, start: Callable[..., Any], watchful: dict[str, object], kept: Path
) -> None:
    robot.process = start("perception_node", watchful)
    robot.publisher(PathMessage, "/route").publish(path([(0.0, 0.0), (90.0, 0.0)], robot.now_ns(), "odom"))
    robot.camera_info(robot.now_ns())
    before = drive(robot, 30)
    at_ns = lose_camera(robot)
    after = drive(robot, 40, camera=False)
    (snippet,) = robot.spin_until(lambda: finished(kept), "the snippet")

    info = read_info(snippet)
    (event,) = info.events
    assert (event.rule, event.priority, event.stamp_ns) == ("camera-lost", 3, at_ns)
    assert event.reason == "lost.front is 1, >= 1"
    assert (event.signals["lost.front"], event.signals["speed"]) == (1.0, 5.0)
    assert info.bundle.startswith("small ") and info.rig == "test_robot"
    assert (info.lost, info.gaps_ns, info.cut) == ({}, (), "")
    assert info.begin_ns == event.now_ns - 2 * SECOND and info.end_ns == event.now_ns + SECOND

    with BagSource(snippet) as bag:
        messages = list(bag.messages())
    arrivals = [m.stamp_ns for m in messages]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= info.begin_ns and arrivals[-1] <= info.end_ns
    stamps: dict[str, list[int]] = {}
    for m in messages:
        if hasattr(m.message, "header"):
            stamps.setdefault(m.topic, []).append(stamp_ns(m.message))
    # Every sweep and every odometry from 2 s before to 1 s after, none twice.
    sent = [*before, *after]
    for topic in (LIDAR_TOPIC, "/odom"):
        got = [s for s in stamps[topic] if s in sent]
        inside = [s for s in sent if info.begin_ns < s and s + PERIOD_NS < info.end_ns]
        assert len(got) == len(set(got)) and set(inside) <= set(got)
    assert max(stamps[CAMERA_TOPIC]) == before[-1]
    # What holds stands at the beginning, although it came long before.
    held = [m.topic for m in messages if m.stamp_ns == arrivals[0]]
    assert {"/route", INFO_TOPIC} <= set(held)
    said = {stamp_ns(m.message): m.message for m in messages if m.topic == HEALTH_TOPIC}
    assert any(reason.startswith("front: ") for reason in said[at_ns].reasons)
    assert at_ns in stamps[PLAN_TOPIC]


def test_static_transforms_replace_those_of_the_same_children_alone() -> None:
    def ignore(*_: Any) -> None:
        raise AssertionError("nothing was published")

    inputs = rig_inputs(
        RIG, NodeConfig(), on_sensor=ignore, on_camera_info=ignore, on_odometry=ignore, on_route=ignore,
        on_transforms=ignore,
    )  # fmt: skip
    latches = {given.name: given.latch for given in inputs}
    assert {name for name, latch in latches.items() if latch is None} == {
        "lidar top",
        "camera front",
        "odometry",
    }

    def transforms(*children: str) -> Any:
        return SimpleNamespace(transforms=[SimpleNamespace(child_frame_id=child) for child in children])

    of_tf = latches["static TF"]
    assert of_tf is not None
    assert of_tf(transforms("lidar", "camera")) == of_tf(transforms("camera", "lidar"))
    assert len({of_tf(transforms(*c)) for c in (("lidar",), ("camera",), ("lidar", "camera"))}) == 3


def test_static_transforms_of_several_publishers_are_in_every_snippet(
    robot: Robot, start: Callable[..., Any], watchful: dict[str, object], kept: Path
) -> None:
    tf = pytest.importorskip("tf2_msgs.msg", reason="tf2_msgs is not installed")
    robot.process = start("perception_node", watchful)
    publisher = robot.publisher(tf.TFMessage, "/tf_static", latched_qos())
    for frame in ("lidar", "unused"):
        mount = transform_message(make, 0, "base_link", frame, SE3.planar(1.0, 0.0, 0.0))
        publisher.publish(tf.TFMessage(transforms=[mount]))
    drive(robot, 30)
    lose_camera(robot)
    drive(robot, 40, camera=False)
    (snippet,) = robot.spin_until(lambda: finished(kept), "the snippet")
    with BagSource(snippet, ["/tf_static"]) as bag:
        held = list(bag.messages())
    assert [m.message.transforms[0].child_frame_id for m in held] == ["lidar", "unused"]


def test_a_snippet_is_ingested_as_any_recording(
    robot: Robot,
    start: Callable[..., Any],
    watchful: dict[str, object],
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")
    from e2e_perception.cli.main import main

    robot.process = start("perception_node", watchful)
    drive(robot, 30)
    lose_camera(robot)
    drive(robot, 40, camera=False)
    (snippet,) = robot.spin_until(lambda: finished(kept), "the snippet")
    words = ["--rig", str(watchful["node.rig"]), "--clip-length", "5", "--workers", "1", "--json"]
    assert main(["ingest", str(snippet), "--out", str(tmp_path / "set"), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] >= 25 and told["clips"] >= 5


def test_a_node_that_is_deactivated_finishes_what_it_has(
    robot: Robot, start: Callable[..., Any], watchful: dict[str, object], kept: Path
) -> None:
    robot.process = start("perception_node", watchful)
    drive(robot, 5)
    lose_camera(robot)
    assert finished(kept) == []
    assert robot.change_state(Transition.TRANSITION_DEACTIVATE)
    (snippet,) = finished(kept)
    assert read_info(snippet).cut == "the node was deactivated"
    with BagSource(snippet) as bag:
        assert bag.counts[LIDAR_TOPIC] >= 6
    assert robot.change_state(Transition.TRANSITION_ACTIVATE)
    drive(robot, 5)
    lose_camera(robot)
    assert robot.change_state(Transition.TRANSITION_DEACTIVATE)
    assert len(finished(kept)) == 2


def test_a_directory_that_cannot_be_written_to_is_said_and_the_node_drives_on(
    robot: Robot, start: Callable[..., Any], watchful: dict[str, object], kept: Path
) -> None:
    kept.write_text("a file", encoding="utf-8")
    robot.process = start("perception_node", watchful)
    drive(robot, 5)
    robot.health_saying(f"snippets cannot be written to {kept}")
    lose_camera(robot)
    drive(robot, 40, camera=False)
    health = robot.health(lambda h: drops(h).get("snippet_failed", 0) > 0, "the lost messages to be counted")
    assert health.frames >= 46
    assert len(robot.plans) >= 46


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"triggers.directory": ""}, "there are trigger rules, but no directory for snippets"),
        (
            {"triggers.rules": ["{name: a, when: lost.rear >= 1}"]},
            "is about sensor 'rear'; the rig has top, front",
        ),
        ({"triggers.rules": ["{name: a, when: sped > 1}"]}, "unknown signal 'sped'"),
    ],
)
def test_rules_that_cannot_be_used_leave_the_node_unconfigured_with_the_reason(
    robot: Robot,
    start: Callable[..., Any],
    watchful: dict[str, object],
    changes: dict[str, object],
    says: str,
) -> None:
    robot.process = start("perception_node", {**watchful, **changes})
    robot.health_saying(says)
    assert robot.state() == "unconfigured"
