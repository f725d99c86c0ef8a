"""sim_node over real DDS: the shipped bundle drives the same episode as in process; failures end it soon."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from node_harness import NodeProcess, Robot, write_rig

from e2e_perception.core.config import StackConfig
from e2e_perception.core.resources import resource_dir
from e2e_perception.core.rig import Rig
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engines import create_engine
from e2e_perception.evaluation.outcomes import outcome
from e2e_perception.simulation.degradation import load_degradation
from e2e_perception.simulation.driving import drive_stack
from e2e_perception.simulation.randomization import network_sized
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

pytestmark = [
    pytest.mark.ros,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not (resource_dir() / "bundles" / "tiny").is_dir(), reason="no bundle `tiny` here"),
]

SCENARIO = "highway+braking_lead/1"
Start = Callable[..., NodeProcess]


def raw_rig() -> Rig:
    """The bundle's own, with small pictures that are not compressed: what arrives is what was measured."""
    bundle = load_bundle("tiny")
    cameras = {
        camera.name: network_sized(camera, bundle.network).model_copy(
            update={"topic": f"/camera/{camera.name}/image"}
        )
        for camera in bundle.rig.cameras
    }
    return bundle.rig.with_sensors({**cameras})


@pytest.fixture
def stack_parameters(tmp_path: Path) -> dict[str, object]:
    return {
        "node.rig": str(write_rig(tmp_path / "rig.yaml", raw_rig())),
        "engine.bundle": "tiny",
        "engine.backend": "onnxruntime",
        "engine.num_threads": 1,
        "use_sim_time": True,
    }


@pytest.fixture
def sim_parameters(stack_parameters: dict[str, object], tmp_path: Path) -> dict[str, object]:
    return {
        "scenario": SCENARIO,
        "rig": stack_parameters["node.rig"],
        "out": str(tmp_path / "out"),
        "rate": 0.0,
    }


def read_outcome(parameters: dict[str, object]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((Path(str(parameters["out"])) / "outcome.json").read_text("utf-8"))
    return document


@pytest.mark.parametrize("degradation", ["", "front_camera_dies"])
def test_the_shipped_bundle_drives_the_same_over_ros_as_in_process(
    start: Start, stack_parameters: dict[str, object], sim_parameters: dict[str, object], degradation: str
) -> None:
    bundle = load_bundle("tiny")
    engine = create_engine(bundle, "onnxruntime", num_threads=1)
    world = TrafficWorld(ScenarioSpec.parse(SCENARIO))
    schedule = load_degradation(degradation) if degradation else None
    expected = drive_stack(
        world, bundle.network, engine, raw_rig(), StackConfig(), str(bundle), degradation=schedule
    )
    engine.close()

    perception = start("perception_node", stack_parameters)
    sim = start("sim_node", {**sim_parameters, "degradation": degradation})
    assert sim.wait() == 0, sim.output

    found, wanted = read_outcome(sim_parameters), outcome(expected)
    assert found["success"] == wanted.success, sim.output + perception.output
    assert found["steps"] == wanted.steps
    assert found["counters"]["frames"] == expected.counters["frames"]
    # Micrometres were measured: stamps and pixels are exact, orientations and speeds are rounded on the way.
    np.testing.assert_allclose(found["final_pose"], expected.ego_T5[-1, :3], rtol=0.0, atol=0.01)
    assert "time goes on" not in sim.output
    page = (Path(str(sim_parameters["out"])) / "episode.html").read_text(encoding="utf-8")
    assert SCENARIO in page


def test_a_late_stack_changes_nothing_as_time_waits_for_it(
    start: Start, stack_parameters: dict[str, object], sim_parameters: dict[str, object]
) -> None:
    poses = []
    for nice in (0, 1):
        perception = start("perception_node", stack_parameters)
        sim = start("sim_node", {**sim_parameters, "duration": 3.0})
        while nice and sim.alive:  # a stack that is halted again and again, for longer than any deadline
            perception.process.send_signal(signal.SIGSTOP)
            time.sleep(0.15)
            perception.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        assert sim.wait() == 0, sim.output
        perception.end()
        poses.append(read_outcome(sim_parameters)["final_pose"])
    np.testing.assert_allclose(poses[1], poses[0], rtol=0.0, atol=0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "never answers"])
def test_an_episode_without_plans_any_more_ends_as_a_failure(
    robot: Robot,
    start: Start,
    stack_parameters: dict[str, object],
    sim_parameters: dict[str, object],
    number: signal.Signals,
) -> None:
    robot.ticking = False  # the clock is the simulator's
    robot.process = start("perception_node", stack_parameters)
    sim = start("sim_node", {**sim_parameters, "plan_timeout": 3.0})
    robot.spin_until(lambda: len(robot.plans) >= 5, "plans")
    perception, robot.process = robot.process, None
    perception.process.send_signal(number)
    assert sim.wait() == 0, sim.output
    if number == signal.SIGSTOP:
        perception.process.send_signal(signal.SIGCONT)

    found = read_outcome(sim_parameters)
    assert found["failure"].startswith("no plan for 1."), found["failure"]
    assert not found["success"]
    assert found["policy_failure"]
    assert "time goes on" in sim.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "moon/1"}, "unknown scenario family 'moon'"),
        ({"scenario": "highway"}, "is not of the form family/seed"),
        ({"rig": "none_such"}, "none_such"),
        ({"degradation": "none_such"}, "none_such"),
        ({"rate": -1.0}, "rate = -1.0"),
        ({"scenery": "moon"}, "unknown parameter 'scenery'"),
    ],
)
def test_an_option_that_cannot_be_used_ends_it_with_a_message(
    start: Start, sim_parameters: dict[str, object], changes: dict[str, object], message: str
) -> None:
    sim = start("sim_node", {**sim_parameters, **changes})
    assert sim.wait() == 2, sim.output
    assert "error: " in sim.output
    assert message in sim.output


def test_without_a_stack_it_says_who_is_missing(start: Start, sim_parameters: dict[str, object]) -> None:
    sim = start("sim_node", {**sim_parameters, "start_timeout": 1.0})
    assert sim.wait() == 2
    assert "perception_node was not ready within 1 s" in sim.output
    assert not (Path(str(sim_parameters["out"])) / "outcome.json").exists()


def test_time_waits_as_the_stacks_own_synchronisation_needs(
    start: Start, stack_parameters: dict[str, object], sim_parameters: dict[str, object]
) -> None:
    """One camera is dead, so that every frame leaves at its deadline, and that is later than by default."""
    schedule = Path(str(sim_parameters["out"])).parent / "no_front.yaml"
    schedule.write_text(
        "description: The front camera is dead.\n"
        "entries:\n  - {effect: death, sensors: front, from_s: 0.0}\n",
        encoding="utf-8",
    )
    start("perception_node", {**stack_parameters, "sync.max_wait_ms": 120.0})
    sim = start("sim_node", {**sim_parameters, "degradation": str(schedule), "duration": 3.0})
    assert sim.wait() == 0, sim.output
    assert "time goes on" not in sim.output
    assert read_outcome(sim_parameters)["counters"]["frames"] > 20


def test_a_stack_whose_frames_cannot_be_foreseen_is_refused_in_lockstep(
    start: Start, stack_parameters: dict[str, object], sim_parameters: dict[str, object]
) -> None:
    start("perception_node", {**stack_parameters, "node.max_rate_hz": 5.0})
    sim = start("sim_node", sim_parameters)
    assert sim.wait() == 2, sim.output
    assert "set lockstep to false" in sim.output


def test_an_interrupted_drive_is_no_success(
    robot: Robot, start: Start, stack_parameters: dict[str, object], sim_parameters: dict[str, object]
) -> None:
    robot.ticking = False
    robot.process = start("perception_node", stack_parameters)
    sim = start("sim_node", {**sim_parameters, "rate": 1.0})
    robot.spin_until(lambda: len(robot.plans) >= 5, "plans")
    assert sim.end(signal.SIGINT) == 0, sim.output
    assert read_outcome(sim_parameters)["failure"] == "interrupted"


def test_an_interrupt_before_the_start_ends_it(
    robot: Robot, start: Start, sim_parameters: dict[str, object]
) -> None:
    sim = start("sim_node", sim_parameters)
    robot.spin_until(lambda: "sim_node" in robot.node.get_node_names(), "sim_node in the graph")
    assert sim.end(signal.SIGTERM) == 0, sim.output
    assert not (Path(str(sim_parameters["out"])) / "outcome.json").exists()
