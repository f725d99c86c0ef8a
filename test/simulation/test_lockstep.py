"""A stack that runs elsewhere drives the same episode as one in process, whenever its answers come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.config import StackConfig, SyncConfig
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.resources import resource_dir
from e2e_perception.core.results import FrameResult, SafetyState
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.assembler import FrameAssembler, SensorSync
from e2e_perception.simulation.closed_loop import PLAN_DELAY_NS, ClosedLoop
from e2e_perception.simulation.ego_vehicle import TICK_NS
from e2e_perception.simulation.lockstep import FOREIGN_PLAN, NO_ANSWER, Lockstep
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

SPEC = ScenarioSpec("highway", 5)
MS = 1_000_000
# A lidar so late that some frames leave before their plan is due and some after; a radar not in step with it.
RIG = Rig(
    name="late",
    sensors=(
        Lidar(
            name="top",
            topic="/top",
            frame_id="top",
            mount=Mount(xyz=(1.2, 0.0, 1.8)),
            latency_ms=80.0,
            jitter_ms=15.0,
            num_beams=4,
            azimuth_step_deg=4.0,
        ),
        Radar(
            name="front",
            topic="/front",
            frame_id="front",
            mount=Mount(xyz=(3.7, 0.0, 0.5)),
            rate_hz=13.0,
            tolerance_ms=45.0,
            latency_ms=40.0,
            jitter_ms=20.0,
        ),
    ),
)
SYNC = SyncConfig()


def fresh_loop(rig: Rig = RIG) -> ClosedLoop:
    world = TrafficWorld(SPEC)
    return ClosedLoop(world, sensors=SensorRig(rig, world.start_ns, world.end_ns, world.seed))


def plan_for(stamp_ns: int) -> Plan:
    """Another one for every frame: it matters which is in force when."""
    wave = np.sin(stamp_ns // (100 * MS))
    times = 0.5 * np.arange(1, 9)
    speed = 12.0 + 6.0 * wave
    points = np.stack([speed * times, 0.02 * wave * times**2], -1)
    return Plan(
        stamp_ns=stamp_ns,
        times_P=times,
        points_P2=points,
        yaws_P=np.zeros(8),
        speeds_P=np.full(8, speed),
        accelerations_P=np.zeros(8),
        candidate=0,
        costs={},
    )


def stack() -> FrameAssembler:
    return FrameAssembler(
        [SensorSync(s.name, 0, round(s.tolerance_ms * MS)) for s in RIG.sensors],
        anchors=["top"],
        max_wait_ns=round(SYNC.max_wait_ms * MS),
        anchor_timeout_ns=round(SYNC.anchor_timeout_ms * MS),
        queue_size=SYNC.queue_size,
    )


def drive(hold: Callable[[], bool], duration_s: float = 4.0) -> tuple[EpisodeRecord, list[int]]:
    """An episode whose stack answers as late as it is allowed to while `hold` says so; and frames' ages."""
    lockstep, frames = Lockstep(fresh_loop(), RIG, SYNC, duration_s=duration_s), stack()
    waiting: list[int] = []
    ages: list[int] = []

    def answer() -> None:
        stamp_ns = waiting.pop(0)
        lockstep.take_plan(plan_for(stamp_ns), SafetyState.NOMINAL)
        lockstep.answered(stamp_ns)

    while not lockstep.over:
        tick = lockstep.tick()
        for message in tick.messages:
            frames.push(message)
        for frame in frames.poll(tick.now_ns):
            waiting.append(frame.stamp_ns)
            ages.append(tick.now_ns - frame.stamp_ns)
        while waiting and not hold():
            answer()
        while lockstep.awaited():
            assert waiting, "time stands still for a frame that the stack does not have"
            answer()
    assert lockstep.counts == {}
    return lockstep.record("test", {}), ages


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_when_the_answers_come_makes_no_difference(random: object) -> None:
    at_once, ages = drive(lambda: False)
    assert min(ages) < PLAN_DELAY_NS < max(ages)
    some_time, _ = drive(lambda: random.random() < 0.7)  # type: ignore[attr-defined]

    np.testing.assert_array_equal(some_time.ego_T5, at_once.ego_T5)
    np.testing.assert_array_equal(some_time.states_T, at_once.states_T)
    for late, early in zip(some_time.plans, at_once.plans, strict=True):
        assert (late is None) == (early is None)
        assert late is None or np.array_equal(late, early)


def test_time_waits_only_when_the_plan_would_take_effect_in_the_next_tick() -> None:
    lockstep = Lockstep(fresh_loop(), RIG, SYNC)
    while not lockstep.awaited():
        lockstep.tick()

    (stamp_ns,) = lockstep.awaited()
    assert lockstep.loop.now_ns + TICK_NS >= stamp_ns + PLAN_DELAY_NS
    lockstep.answered(stamp_ns)
    assert lockstep.awaited() == []


def test_without_any_answer_the_episode_goes_on_and_fails_for_want_of_a_plan() -> None:
    lockstep = Lockstep(fresh_loop(), RIG, SYNC)
    num_given_up = 0
    while not lockstep.over:
        lockstep.tick()
        num_given_up += len(lockstep.give_up())

    record = lockstep.record("test", {"frames": 0})
    assert record.failure.startswith("no plan for 1.")
    assert record.counters == {"frames": 0, NO_ANSWER: num_given_up}
    assert num_given_up > 5


@pytest.mark.parametrize("offset_ns", [-1, 40 * MS + 1])
def test_a_plan_for_a_time_outside_the_episode_so_far_is_counted_and_not_driven(
    offset_ns: int,
) -> None:
    lockstep = Lockstep(fresh_loop(), RIG, SYNC)
    for _ in range(2):
        lockstep.tick()
    lockstep.take_plan(plan_for(lockstep.loop.world.start_ns + offset_ns), SafetyState.NOMINAL)
    for _ in range(10):
        lockstep.tick()

    assert lockstep.counts == {FOREIGN_PLAN: 1}
    assert lockstep.loop.tracker.plan is None


def test_time_waits_for_the_stops_of_a_stack_to_which_no_frame_comes() -> None:
    lockstep = Lockstep(ClosedLoop(TrafficWorld(SPEC)), RIG, SYNC, silence_ms=600.0)
    start_ns = lockstep.loop.now_ns
    waited = []
    while len(waited) < 3:
        now_ns = lockstep.tick().now_ns
        if lockstep.awaited():
            assert lockstep.awaited() == [now_ns]
            lockstep.take_plan(plan_for(now_ns), SafetyState.MINIMAL_RISK)
            waited.append((now_ns - start_ns) / MS)
        assert lockstep.awaited() == []

    assert waited == [620.0, 1120.0, 1620.0]  # after more than 0.6 s, and again every half second
    assert lockstep.counts == {}


def test_an_episode_can_be_ended_early() -> None:
    record, _ = drive(lambda: False, duration_s=1.5)

    assert len(record.ego_T5) == 16
    assert record.failure == ""


@pytest.mark.skipif(
    not (resource_dir() / "bundles" / "tiny").is_dir(), reason="the bundle `tiny` is not there"
)
def test_the_robots_own_pipeline_drives_the_same_to_the_last_bit_when_it_answers_as_late_as_it_may() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import create_engine
    from e2e_perception.runtime.pipeline import Pipeline
    from e2e_perception.simulation.closed_loop import Robot
    from e2e_perception.simulation.driving import drive_stack
    from e2e_perception.simulation.randomization import network_sized

    bundle = load_bundle("tiny")
    engine = create_engine(bundle, "onnxruntime", num_threads=1)
    cameras = {c.name: network_sized(c, bundle.network) for c in bundle.rig.cameras}
    assert all(isinstance(camera, Camera) for camera in cameras.values())
    rig = bundle.rig.with_sensors({**cameras})
    config = StackConfig()
    expected = drive_stack(TrafficWorld(SPEC), bundle.network, engine, rig, config, "tiny")

    engine.reset_state()
    world = TrafficWorld(SPEC)
    planning = config.planning.model_copy(update={"speed_limit": world.speed_limit})
    pipeline = Pipeline(bundle.network, rig, engine, config.model_copy(update={"planning": planning}), "tiny")
    pipeline.set_route(world.route)
    sensors = SensorRig(rig, world.start_ns, world.end_ns, world.seed)
    robot = Robot(rig.ego_length, rig.ego_width, rig.ego_center_x)
    lockstep = Lockstep(ClosedLoop(world, robot=robot, sensors=sensors), rig, config.sync)
    pipeline.push_odometry(lockstep.loop.ego)
    results: list[FrameResult] = []
    while not lockstep.over:
        tick = lockstep.tick()
        pipeline.push_odometry(tick.ego)
        for message in tick.messages:
            pipeline.push(message)
        results += pipeline.poll(tick.now_ns)
        while lockstep.awaited():
            result = results.pop(0)
            if result.plan is not None:
                lockstep.take_plan(result.plan, result.health.state)
            lockstep.answered(result.stamp_ns)
    engine.close()

    driven = lockstep.record("test", {})
    np.testing.assert_array_equal(driven.ego_T5, expected.ego_T5)
    np.testing.assert_array_equal(driven.states_T, expected.states_T)
