"""perception_node when its engine fails, hangs or is changed in mid-drive: no silence, no lost plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")

from e2e_perception.msg import Health
from lifecycle_msgs.msg import Transition
from node_harness import NodeProcess, Robot, arguments, drops
from rclpy.parameter import Parameter, parameter_value_to_python

from e2e_perception.core.message_inputs import stamp_ns

pytestmark = pytest.mark.ros
TEXT, WHOLE = Parameter.Type.STRING, Parameter.Type.INTEGER


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """Files in here are faults, see `faulty_perception_node`."""
    directory = tmp_path / "faults"
    directory.mkdir()
    return directory


@pytest.fixture
def faulty(robot: Robot, domain: int, basics: dict[str, object], faults: Path) -> Any:
    """A robot with a perception node whose engine has the faults that the test gives it."""
    script = Path(__file__).with_name("faulty_perception_node.py")
    parameters = {**basics, "supervisor.engine_timeout_ms": 300.0}
    command = [sys.executable, str(script), str(faults)]
    robot.process = NodeProcess("perception_node", arguments(parameters), domain, command)
    yield robot
    (faults / "hang").unlink(missing_ok=True)
    if robot.process is not None:
        robot.process.kill()


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as `bundle_dir`'s with other weights."""
    pytest.importorskip("torch", reason="torch is not installed; the test bundle cannot be made")
    from node_harness import RIG
    from synthetic import untrained_network

    from e2e_perception.deploy.export import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "other"
    export_bundle(
        untrained_network(seed=1), out, name="other", rig=RIG, evaluation={"f1": 0.0}, provenance={"seed": 1}
    )
    return out


def get(robot: Robot, client: Any, name: str) -> Any:
    values = robot.result(client.get_parameters([name]), f"getting {name}").values
    return parameter_value_to_python(values[0])


def plans_at(robot: Robot, stamps: list[int]) -> list[Any]:
    """Exactly one plan of each stamp."""
    robot.spin_until(lambda: set(stamps) <= {stamp_ns(p) for p in robot.plans}, "a plan of every frame")
    found = [p for p in robot.plans if stamp_ns(p) in set(stamps)]
    assert [stamp_ns(p) for p in found] == stamps
    return found


def num_closed(faults: Path) -> int:
    return len(list(faults.glob("closed-*")))


def numbers(point: Any) -> tuple[float, ...]:
    return point.pose.position.x, point.pose.position.y, point.speed, point.acceleration


# ------------------------------------------------------------------ faults


def test_outputs_that_are_no_numbers_never_leave_and_are_named(faulty: Robot, faults: Path) -> None:
    stamps = [stamp_ns(faulty.frame()) for _ in range(3)]
    (faults / "nan").touch()
    bad = [faulty.frame() for _ in range(4)]
    (faults / "nan").unlink()
    good = [faulty.frame() for _ in range(3)]
    stamps += [stamp_ns(health) for health in (*bad, *good)]

    for plan in plans_at(faulty, stamps):
        assert np.isfinite([numbers(point) for point in plan.points]).all()
    assert all("engine output 'plan_costs' is not finite" in health.reasons for health in bad)
    assert bad[0].state == Health.DEGRADED
    assert bad[3].state >= Health.MINIMAL_RISK
    assert drops(good[-1])["non_finite_output"] == 4
    assert not any("not finite" in reason for reason in good[0].reasons)


def test_while_the_engine_hangs_stops_are_published_again_and_again_and_then_it_recovers(
    faulty: Robot, faults: Path
) -> None:
    for _ in range(3):
        before = faulty.frame()
    os.mkfifo(faults / "hang")
    num_plans = len(faulty.plans)
    lost_ns = faulty.instant()
    hung = [faulty.health_saying("the engine has not answered for") for _ in range(3)]
    assert all(health.state >= Health.MINIMAL_RISK for health in hung)
    assert hung[-1].frames == before.frames
    faulty.spin_until(lambda: len(faulty.plans) >= num_plans + 3, "stops")
    for plan in faulty.plans[num_plans:]:
        assert plan.candidate == -1
        assert stamp_ns(plan) > lost_ns

    release = os.open(faults / "hang", os.O_WRONLY)
    (faults / "hang").unlink()
    os.close(release)
    stamps = [stamp_ns(faulty.frame()) for _ in range(4)]
    health = faulty.healths[-1]
    # Tracks tell frames from stops, which may have the same stamp while simulated time stands still.
    faulty.spin_until(lambda: stamp_ns(faulty.tracks[-1]) == stamps[-1], "tracks of every frame")
    assert [stamp_ns(t) for t in faulty.tracks if stamp_ns(t) >= lost_ns] == stamps
    assert set(stamps) <= {stamp_ns(p) for p in faulty.plans}
    assert drops(health)["engine_timeout"] == 1
    assert not any("not answered" in reason for reason in health.reasons)


def test_a_node_whose_engine_never_comes_back_can_be_configured_anew(faulty: Robot, faults: Path) -> None:
    faulty.frame()
    os.mkfifo(faults / "hang")
    faulty.instant()
    faulty.health_saying("the engine has not answered for")
    assert not faulty.change_state(Transition.TRANSITION_DEACTIVATE)
    health = faulty.health_saying("was left behind; configure again")
    assert health.state == Health.STOPPED
    assert faulty.state() == "unconfigured"
    assert num_closed(faults) == 0

    release = os.open(faults / "hang", os.O_WRONLY)
    (faults / "hang").unlink()
    os.close(release)
    faulty.spin_until(lambda: num_closed(faults) == 1, "the engine to be freed once it has answered")
    assert faulty.change_state(Transition.TRANSITION_CONFIGURE)
    assert faulty.change_state(Transition.TRANSITION_ACTIVATE)
    assert not any("left behind" in reason for reason in faulty.frame().reasons)


def test_an_engine_that_waits_for_one_that_hangs_is_freed_when_the_node_is_stopped(
    faulty: Robot, faults: Path, other_bundle: Path
) -> None:
    client = faulty.parameters()
    faulty.frame()
    os.mkfifo(faults / "hang")
    holder = os.open(faults / "hang", os.O_RDWR)  # who reads from it waits until this is closed
    faulty.instant()
    faulty.health_saying("the engine has not answered for")
    (faults / "hang").unlink()  # the next engine does not hang
    assert faulty.set_parameter(client, "engine.bundle", TEXT, str(other_bundle)).successful

    def refused() -> bool:
        answer = faulty.set_parameter(client, "engine.num_threads", WHOLE, 2)
        assert not answer.successful
        return "is loaded, and waits for the engine that runs to answer" in answer.reason

    faulty.spin_until(refused, "the other engine")
    assert not faulty.change_state(Transition.TRANSITION_DEACTIVATE)
    faulty.spin_until(lambda: num_closed(faults) == 1, "the one that waited to be freed")
    os.close(holder)
    faulty.spin_until(lambda: num_closed(faults) == 2, "the one that hung to be freed")


def test_a_node_whose_first_engine_hangs_says_that_it_is_configuring_and_gives_up_in_time(
    robot: Robot, domain: int, basics: dict[str, object], faults: Path
) -> None:
    os.mkfifo(faults / "hang")
    script = Path(__file__).with_name("faulty_perception_node.py")
    parameters = {**basics, "supervisor.load_timeout_s": 3.0}
    command = [sys.executable, str(script), str(faults)]
    robot.process = NodeProcess("perception_node", arguments(parameters), domain, command)
    try:
        robot.health_saying("configuring")
        health = robot.health_saying("not configured: bundle")
        assert any("not loaded within 3 s (supervisor.load_timeout_s)" in r for r in health.reasons)
        assert robot.state() == "unconfigured"

        release = os.open(faults / "hang", os.O_WRONLY)
        (faults / "hang").unlink()
        os.close(release)
        assert robot.change_state(Transition.TRANSITION_CONFIGURE)
        assert robot.change_state(Transition.TRANSITION_ACTIVATE)
        assert not any("configur" in reason for reason in robot.frame().reasons)
    finally:
        (faults / "hang").unlink(missing_ok=True)
        robot.process.kill()


# ------------------------------------------------------------------ another engine


def test_a_bundle_changed_in_mid_drive_takes_over_between_two_frames_without_a_lost_plan(
    perception: Robot, other_bundle: Path
) -> None:
    client = perception.parameters()
    stamps = [stamp_ns(perception.frame()) for _ in range(3)]
    frames = perception.healths[-1].frames
    answer = perception.set_parameter(client, "engine.bundle", TEXT, str(other_bundle))
    assert answer.successful, answer.reason
    bundles: list[str] = []
    while not bundles or not bundles[-1].startswith("other "):
        health = perception.frame()
        stamps.append(stamp_ns(health))
        bundles.append(health.bundle)
        assert len(bundles) < 500
    for _ in range(3):
        health = perception.frame()
        stamps.append(stamp_ns(health))
        bundles.append(health.bundle)

    plans_at(perception, stamps)
    assert [b.split()[0] for b in bundles] == ["small"] * (len(bundles) - 4) + ["other"] * 4
    assert health.frames == frames + len(bundles)
    assert health.plans == health.frames
    assert "overtaken" not in drops(health)
    assert get(perception, client, "engine.bundle") == str(other_bundle)
    assert perception.state() == "active"


def test_the_number_of_threads_changes_while_it_runs(perception: Robot) -> None:
    client = perception.parameters()
    stamps = [stamp_ns(perception.frame())]
    assert perception.set_parameter(client, "engine.num_threads", WHOLE, 2).successful

    def changed() -> bool:
        stamps.append(stamp_ns(perception.frame()))
        assert perception.process is not None
        return "engine changed: " in perception.process.output

    perception.spin_until(changed, "the engine with two threads")
    stamps.append(stamp_ns(perception.frame()))
    plans_at(perception, stamps)
    assert get(perception, client, "engine.num_threads") == 2
    assert perception.healths[-1].bundle.startswith("small ")


def test_a_bundle_that_cannot_take_over_is_refused_at_once_with_the_reason(
    perception: Robot, bundle_dir: Path, tmp_path: Path
) -> None:
    client = perception.parameters()
    perception.frame()
    for value, says in (
        ("no_such_bundle", "no bundle 'no_such_bundle'"),
        ("tiny", "cannot take over while running"),
        (str(tmp_path), "is not a bundle"),
    ):
        answer = perception.set_parameter(client, "engine.bundle", TEXT, value)
        assert not answer.successful
        assert says in answer.reason
    for name, value, says in (
        ("engine.backend", "tensorflow", "tensorflow"),
        ("engine.precision", "float16", "'onnxruntime' runs in float32, not in 'float16'"),
    ):
        answer = perception.set_parameter(client, name, TEXT, value)
        assert not answer.successful
        assert says in answer.reason
    assert get(perception, client, "engine.bundle") == str(bundle_dir)
    health = perception.frame()
    assert health.bundle.startswith("small ")
    assert not any("engine" in reason for reason in health.reasons)


@pytest.mark.parametrize("fault", ["refuse", "nan"])
def test_an_engine_that_fails_while_it_is_loaded_leaves_the_old_one_and_sets_the_parameter_back(
    faulty: Robot, faults: Path, bundle_dir: Path, other_bundle: Path, fault: str
) -> None:
    client = faulty.parameters()
    stamps = [stamp_ns(faulty.frame())]
    (faults / fault).touch()
    answer = faulty.set_parameter(client, "engine.bundle", TEXT, str(other_bundle))
    assert answer.successful, answer.reason
    said = "the driver is gone" if fault == "refuse" else "gives non-finite 'plan_costs' for the last frame"
    health = faulty.health_saying("engine not changed: bundle other ")
    assert any(said in reason and "bundle small " in reason for reason in health.reasons)
    (faults / fault).unlink()
    faulty.spin_until(lambda: get(faulty, client, "engine.bundle") == str(bundle_dir), "the old value")
    stamps += [stamp_ns(faulty.frame()) for _ in range(2)]
    assert faulty.healths[-1].bundle.startswith("small ")
    plans_at(faulty, stamps)

    assert faulty.set_parameter(client, "engine.bundle", TEXT, str(other_bundle)).successful
    faulty.spin_until(lambda: faulty.frame().bundle.startswith("other "), "the second attempt")
    assert not any("engine not changed" in reason for reason in faulty.frame().reasons)


def test_a_bundle_changed_while_inactive_is_there_on_activation(
    robot: Robot, start: Callable[..., Any], basics: dict[str, object], other_bundle: Path
) -> None:
    robot.process = start("perception_node", {**basics, "autostart": False})
    assert robot.change_state(Transition.TRANSITION_CONFIGURE)
    client = robot.parameters()
    assert robot.set_parameter(client, "engine.bundle", TEXT, str(other_bundle)).successful
    robot.health(lambda h: h.bundle.startswith("other "), "the other bundle")
    assert robot.change_state(Transition.TRANSITION_ACTIVATE)
    assert robot.frame().bundle.startswith("other ")


def test_one_change_at_a_time(faulty: Robot, faults: Path, other_bundle: Path, bundle_dir: Path) -> None:
    client = faulty.parameters()
    faulty.frame()
    os.mkfifo(
        faults / "hang"
    )  # the new engine hangs in its first run; no frame comes for the old one to hang
    assert faulty.set_parameter(client, "engine.bundle", TEXT, str(other_bundle)).successful
    answer = faulty.set_parameter(client, "engine.num_threads", WHOLE, 2)
    assert not answer.successful
    assert "is being loaded; one change of engine at a time" in answer.reason
    assert faulty.set_parameter(client, "planning.speed_limit", Parameter.Type.DOUBLE, 9.0).successful
    release = os.open(faults / "hang", os.O_WRONLY)
    (faults / "hang").unlink()
    os.close(release)
    faulty.spin_until(lambda: faulty.frame().bundle.startswith("other "), "the change")
    assert faulty.set_parameter(client, "engine.num_threads", WHOLE, 2).successful


def test_diagnostics_show_quantiles_of_every_stage(perception: Robot) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    received: list[Any] = []
    perception.node.create_subscription(DiagnosticArray, "/diagnostics", received.append, 10)

    def values() -> dict[str, str]:
        status = received[-1].status[0] if received else None
        return {} if status is None else {value.key: value.value for value in status.values}

    perception.spin_until(
        lambda: perception.frame() and "infer p50 / p95 / p99 [ms]" in values(), "quantiles"
    )
    for stage in ("wait", "prepare", "queue", "infer", "track", "plan", "supervise", "publish", "latency"):
        p50, p95, p99 = map(float, values()[f"{stage} p50 / p95 / p99 [ms]"].split(" / "))
        assert 0.0 <= p50 <= p95 <= p99
