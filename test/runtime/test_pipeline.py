"""Messages in, tracks and plans out: the whole line without ROS, with a scripted engine, under faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from fake_drive import (
    CARS,
    CLOUD,
    DEGRADED,
    MINIMAL_RISK,
    MS,
    NOMINAL,
    RIG,
    SPEED,
    STOPPED,
    Event,
    drive,
    ego_at,
    make,
    moving,
    run,
)  # fmt: skip
from fake_engine import NETWORK, FakeEngine, Outputs, Thing
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.config import StackConfig, config_from_parameters
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ConfigError, ContractError, InputError, RigError
from e2e_perception.core.frames import SE3
from e2e_perception.core.network_config import EGO_FIELDS
from e2e_perception.core.results import SafetyState
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.deploy.engines import EngineInfo
from e2e_perception.runtime.pipeline import Pipeline


def test_an_engine_that_was_accepted_although_it_differs_is_a_reason_of_every_frame() -> None:
    differing = EngineInfo(
        "fake", "1", "cpu", "int8", mismatch="differs from torch: plan [m] 0.8 (allowed 0.1)"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeEngine, "info", differing)
        pipeline, _ = make()
        results = run(pipeline, drive(range(10)))
    assert results
    for result in results:
        assert f"engine {differing.mismatch}" in result.health.reasons
        assert result.health.backend.endswith(differing.mismatch)
    assert results[-1].health.state == NOMINAL  # somebody decided to drive with it


def test_every_frame_gives_tracks_a_plan_and_its_reasons() -> None:
    pipeline, _ = make()
    results = run(pipeline, drive(range(10)))
    assert [r.stamp_ns for r in results] == [i * 100 * MS for i in range(10)]
    for result in results:
        assert result.tracks is not None
        assert result.plan is not None
        assert result.plan.is_finite
        assert result.candidates is not None
        assert result.tracks.boxes.ids_N.tolist() == [0, 1]
    last = results[-1]
    assert last.health.state == NOMINAL
    assert last.health.reasons == ("no route: straight ahead assumed",)
    assert (last.health.frames, last.health.plans) == (10, 10)
    assert last.health.backend == "fake 1 on cpu, float32"
    assert sum(last.health.drops.values()) == 0
    assert set(last.health.stage_ms) == {
        "wait", "prepare", "queue", "infer", "track", "plan", "supervise",
    }  # fmt: skip
    assert last.health.stage_ms["wait"] == pytest.approx(10.0)
    assert last.tracks is not None
    np.testing.assert_allclose(last.tracks.boxes.centers_N3[1, :2], [30.0, 0.0], atol=0.05)


def test_the_engine_is_told_what_is_remembered_and_how_the_robot_moved() -> None:
    pipeline, engine = make()
    run(pipeline, drive(range(3)))
    assert [call["memory_valid"][0, 0] for call in engine.inputs] == [0.0, 1.0, 1.0]
    assert [call["track_valid"].sum() for call in engine.inputs] == [0.0, 2.0, 2.0]
    # One metre forward: the present centre lies one metre ahead in the remembered map.
    half_length = (NETWORK.grid.x_max - NETWORK.grid.x_min) / 2.0
    np.testing.assert_allclose(
        engine.inputs[1]["bev_theta"][0], [[1.0, 0.0, 1.0 / half_length], [0.0, 1.0, 0.0]], atol=1e-6
    )
    boxes = engine.inputs[1]["track_boxes"][0]
    np.testing.assert_allclose(sorted(boxes[:2, 0].tolist()), [20.2, 30.0], atol=1e-3)
    assert engine.inputs[1]["ego_state"][0, EGO_FIELDS.index("speed")] == SPEED


def test_the_same_messages_give_the_same_bytes_whatever_the_clock_says() -> None:
    outputs = []
    for ticks in (itertools.count(0, 1000), itertools.count(5, 77_777_777)):
        pipeline, _ = make(clock_ns=lambda ticks=ticks: next(ticks))
        results = run(pipeline, drive(range(8), without=lambda e: getattr(e, "stamp_ns", 0) == 300 * MS))
        outputs.append(
            [
                (r.stamp_ns, r.tracks.boxes.centers_N3.tobytes(), r.plan.points_P2.tobytes(), r.health.state)
                for r in results
                if r.tracks is not None and r.plan is not None
            ]
        )
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 7


def test_a_route_is_followed_from_the_next_frame_on() -> None:
    pipeline, engine = make()
    run(pipeline, drive(range(2)))
    pipeline.set_route(Route(np.array([[0.0, -2.0], [500.0, -2.0]])))
    result = run(pipeline, drive([2]))[-1]
    assert result.health.reasons == ()
    assert engine.inputs[-1]["ego_state"][0, EGO_FIELDS.index("lateral_offset")] == pytest.approx(2.0)


def test_without_a_route_and_none_assumed_there_is_no_plan_and_it_is_said() -> None:
    pipeline, _ = make(parameters={"planning.assume_straight_route": False})
    results = run(pipeline, drive(range(5)))
    assert [r.plan for r in results] == [None] * 5
    assert results[-1].tracks is not None
    assert results[-1].health.state == DEGRADED
    assert "no route, and none may be assumed: no plan" in results[-1].health.reasons


def test_an_unplugged_sensor_degrades_and_its_return_recovers() -> None:
    def unplugged(event: Event) -> bool:
        return getattr(event, "sensor", "") == "front" and 10 <= event.stamp_ns // (100 * MS) < 20

    pipeline, engine = make()
    results = run(pipeline, drive(range(30), without=unplugged))
    assert len(results) == 30
    states = [r.health.state for r in results]
    assert set(states[10:21]) == {DEGRADED}
    assert states[25:] == [NOMINAL] * 5
    assert any("front: " in reason for reason in results[15].health.reasons)
    valid = [call["camera_valid"][0, 0] for call in engine.inputs]
    # The frame in which it comes back does not wait for a sensor that was silent.
    assert valid[9:22] == [1.0] + [0.0] * 11 + [1.0]
    report = {s.name: s for s in results[15].health.sensors}["front"]
    assert not report.valid
    assert report.age_ms == pytest.approx(600.0)


def test_corrupt_data_is_named_and_counted() -> None:
    pipeline, _ = make()
    events = drive(range(6))
    spoiled: list[tuple[int, Event]] = [
        (now, SensorMessage("front", e.stamp_ns, e.arrival_ns, object()))
        if isinstance(e, SensorMessage) and e.sensor == "front" and e.stamp_ns >= 300 * MS
        else (now, e)
        for now, e in events
    ]
    results = run(pipeline, spoiled)
    assert len(results) == 6
    health = results[-1].health
    assert health.drops["undecodable"] == 3
    report = {s.name: s for s in health.sensors}["front"]
    assert (report.valid, report.dropped, report.used) == (False, 3, 3)
    assert report.reason.startswith("undecodable: ")
    assert all(r.plan is not None for r in results)


def spoil_with(value: float, calls: set[int], name: str = "affinity") -> Callable[[int, Outputs], Outputs]:
    def spoil(call: int, outputs: Outputs) -> Outputs:
        if call in calls:
            outputs[name].flat[1] = value
        return outputs

    return spoil


@pytest.mark.parametrize("name", ["affinity", "query_boxes", "plan_sd", "plan_costs", "heatmap"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_output_never_gets_through(name: str, value: float) -> None:
    pipeline, engine = make(
        FakeEngine(things=CARS, base_from_odom=moving, spoil=spoil_with(value, {4, 5, 6, 7, 8}, name))
    )
    results = run(pipeline, drive(range(20)))
    assert len(results) == 20
    for i, result in enumerate(results):
        assert result.plan is not None
        assert result.plan.is_finite
        if 4 <= i <= 8:
            assert (result.tracks, result.candidates) == (None, None)
            assert f"engine output '{name}' is not finite" in result.health.reasons
    states = [r.health.state for r in results]
    assert states[3:9] == [NOMINAL, DEGRADED, DEGRADED, MINIMAL_RISK, MINIMAL_RISK, MINIMAL_RISK]
    assert states[-1] == NOMINAL
    assert results[-1].health.drops["non_finite_output"] == 5
    assert engine.resets == 5
    assert [c["memory_valid"][0, 0] for c in engine.inputs[4:11]] == [1.0] + [0.0] * 5 + [1.0]
    # First the last plan goes on, then the robot brakes.
    assert "previous plan continued" in results[4].health.reasons
    before, during = results[3].plan, results[4].plan
    assert before is not None
    assert during is not None
    assert during.candidate == before.candidate
    # At constant speed a plan looks the same from wherever on it the robot is.
    np.testing.assert_allclose(during.points_P2, before.points_P2, atol=0.01)
    for result in results[6:9]:
        assert result.plan is not None
        assert result.plan.candidate == -1
        np.testing.assert_allclose(result.plan.speeds_P, np.maximum(SPEED - 3.0 * NETWORK.times_T, 0.0))
    # Nobody lost an identity: the tracks coasted through in memory.
    assert results[-1].tracks is not None
    assert results[-1].tracks.boxes.ids_N.tolist() == [0, 1]


def test_an_engine_that_fails_is_a_bad_frame_and_never_escapes() -> None:
    def fail(call: int, outputs: Outputs) -> Outputs:
        if call in (3, 4):
            raise RuntimeError("CUDA error: device lost")
        if call == 6:
            return {k: v for k, v in outputs.items() if k != "plan_sd"}
        return outputs

    pipeline, _ = make(FakeEngine(things=CARS, base_from_odom=moving, spoil=fail))
    results = run(pipeline, drive(range(10)))
    assert len(results) == 10
    assert results[3].health.reasons[0] == "engine: RuntimeError: CUDA error: device lost"
    assert "engine output 'plan_sd' is missing" in results[6].health.reasons[0]
    assert results[-1].health.drops["engine_error"] == 3
    assert all(r.plan is not None for r in results)
    assert results[-1].tracks is not None


def test_without_odometry_nothing_is_remembered_and_after_a_while_the_robot_stops() -> None:
    def lost(event: Event) -> bool:
        return isinstance(event, EgoState) and event.stamp_ns >= 1_000 * MS

    pipeline, engine = make()
    results = run(pipeline, drive(range(30), without=lost))
    assert len(results) == 30
    assert results[9].health.state == NOMINAL
    unknown = [i for i, r in enumerate(results) if "ego motion unknown" in r.health.reasons]
    assert unknown == list(range(12, 30))  # two frames are covered by extrapolation
    assert [c["memory_valid"][0, 0] for c in engine.inputs[12:]] == [0.0] * 18
    assert [c["track_valid"].sum() for c in engine.inputs[12:]] == [0.0] * 18
    assert results[-1].health.state == MINIMAL_RISK
    plan = results[-1].plan
    assert plan is not None
    assert plan.candidate == -1
    assert (np.diff(plan.speeds_P) <= 0.0).all()
    # A robot that drives must not be planned for as if it stood.
    assert [r.plan for r in results[12:21]] == [None] * 9
    stops = [r.plan for r in results[22:] if r.plan is not None]
    assert stops[0].speeds_P[0] == pytest.approx(SPEED - 0.5 * 3.0, abs=0.5)


def test_a_jump_of_the_odometry_resets_memory_and_is_said() -> None:
    pipeline, engine = make()
    events = drive(range(10))
    jumped: list[tuple[int, Event]] = [
        (now, EgoState(e.stamp_ns, SE3.planar(500.0, 0, 0) @ e.odom_from_base, e.velocity, e.yaw_rate))
        if isinstance(e, EgoState) and e.stamp_ns >= 500 * MS
        else (now, e)
        for now, e in events
    ]
    results = run(pipeline, jumped)
    assert "odometry jumped; memory was reset" in results[5].health.reasons
    assert [c["memory_valid"][0, 0] for c in engine.inputs[4:7]] == [1.0, 0.0, 1.0]
    assert results[5].tracks is not None
    assert results[5].tracks.boxes.ids_N.tolist() == [2, 3]


@pytest.mark.parametrize(
    "jump", [SE3.planar(4.0, 0.0, 0.0), SE3.planar(0.0, 2.5, 0.0), SE3.planar(0.0, 0.0, 3.1)]
)
def test_jumps_of_a_few_metres_and_of_heading_count(jump: SE3) -> None:
    pipeline, engine = make()
    jumped: list[tuple[int, Event]] = [
        (now, EgoState(e.stamp_ns, e.odom_from_base @ jump, e.velocity, e.yaw_rate))
        if isinstance(e, EgoState) and e.stamp_ns >= 500 * MS
        else (now, e)
        for now, e in drive(range(8))
    ]
    results = run(pipeline, jumped)
    assert "odometry jumped; memory was reset" in results[5].health.reasons
    assert engine.inputs[5]["memory_valid"][0, 0] == 0.0


def test_non_finite_odometry_is_dropped_and_counted() -> None:
    pipeline, _ = make()
    run(pipeline, drive(range(5)))
    bad = EgoState(600 * MS, SE3.identity(), np.array([np.nan, 0.0, 0.0]), 0.0)
    assert pipeline.push_odometry(bad) is False
    result = run(pipeline, drive([5]))[-1]
    assert "odometry not finite, 1 samples dropped" in result.health.reasons
    assert result.health.drops["odometry_non_finite"] == 1


@pytest.mark.parametrize(
    ("memory_frames", "expected"), [(1, [0, 0, 0, 0, 0, 0]), (3, [0, 1, 1, 0, 1, 1]), (9, [0, 1, 1, 1, 1, 1])]
)
def test_the_bev_memory_starts_anew_after_as_many_frames_as_the_network_says(
    memory_frames: int, expected: list[int]
) -> None:
    network = NETWORK.model_copy(update={"memory_frames": memory_frames})
    engine = FakeEngine(network, things=CARS, base_from_odom=moving)
    pipeline = Pipeline(network, RIG, engine, StackConfig(), "fake")
    run(pipeline, drive(range(6)))
    assert [int(c["memory_valid"][0, 0]) for c in engine.inputs] == expected
    assert engine.inputs[-1]["track_valid"].sum() == len(CARS)  # tracks are remembered in any case


def test_a_gap_of_more_than_a_second_forgets() -> None:
    pipeline, engine = make()
    gap = drive([0, 1, *range(14, 17)])
    odometry = [e for e in drive(range(17)) if isinstance(e[1], EgoState)]
    events = [e for e in gap if not isinstance(e[1], EgoState)] + odometry
    run(pipeline, sorted(events, key=lambda e: e[0]))
    assert [c["memory_valid"][0, 0] for c in engine.inputs] == [0.0, 1.0, 0.0, 1.0, 1.0]


def test_a_clock_set_back_starts_a_new_timeline_but_keeps_identities_apart() -> None:
    pipeline, engine = make()
    first = run(pipeline, drive(range(50, 55)))
    engine.calls = 0
    second = run(pipeline, drive(range(5)))
    assert [r.stamp_ns for r in second] == [i * 100 * MS for i in range(5)]
    assert first[-1].tracks is not None
    assert second[-1].tracks is not None
    assert not set(first[-1].tracks.boxes.ids_N) & set(second[-1].tracks.boxes.ids_N)
    assert engine.inputs[5]["memory_valid"][0, 0] == 0.0


def test_reset_starts_over_with_identity_zero() -> None:
    pipeline, engine = make()
    run(pipeline, drive(range(3)))
    pipeline.reset()
    engine.calls = 0
    results = run(pipeline, drive(range(3)))
    assert results[0].tracks is not None
    assert results[0].tracks.boxes.ids_N.tolist() == [0, 1]
    assert results[0].health.state == DEGRADED


def test_a_plan_into_a_standing_car_is_replaced_by_a_stop() -> None:
    wall = (Thing(35.0, 0.0), Thing(35.0, 2.5))
    pipeline, _ = make(FakeEngine(things=wall, base_from_odom=moving))
    results = run(pipeline, drive(range(25)))
    stopping = [i for i, r in enumerate(results) if r.plan is not None and r.plan.candidate == -1]
    assert stopping
    first = results[stopping[0]]
    assert any("plan meets car" in reason for reason in first.health.reasons)
    assert first.plan is not None
    assert first.plan.accelerations_P.min() >= -9.0 - 1e-6
    # At 10 m/s the bumper is 1.5 s away when 15 m are left; the last seconds are all stops.
    assert stopping[0] in range(12, 17)


def test_silence_gives_a_stop_twice_a_second_and_frames_end_it() -> None:
    pipeline, _ = make()
    last = run(pipeline, drive(range(5)))[-1]
    now = 430 * MS
    assert pipeline.idle(now + 1_000 * MS) is None
    idle = [(ms, pipeline.idle(now + ms * MS)) for ms in range(1001, 2600, 100)]
    given_at = [ms for ms, result in idle if result is not None]
    assert given_at == [1001, 1501, 2001, 2501]
    result = idle[0][1]
    assert result is not None
    assert result.plan is not None
    assert (result.plan.candidate, result.tracks) == (-1, None)
    assert result.health.state == MINIMAL_RISK
    assert result.health.reasons == ("no valid frame for 1.0 s",)
    assert [s.valid for s in result.health.sensors] == [False, False]
    assert [s.reason for s in result.health.sensors] == ["silent", "silent"]
    # Odometry is silent too: the stop starts at the speed that the last plan foresaw.
    assert last.plan is not None
    assert result.plan.speeds_P[0] == pytest.approx(last.plan.speeds_P[2] - 1.5, abs=0.5)
    after = run(pipeline, drive(range(40, 42)))
    assert [r.health.state for r in after] == [MINIMAL_RISK, DEGRADED]
    assert (after[-1].health.frames, after[-1].health.plans) == (7, 7)
    assert pipeline.idle(4_200 * MS) is None


def test_a_robot_that_stands_when_silence_begins_is_stopped() -> None:
    pipeline, _ = make()
    run(pipeline, drive(range(3), speed=0.0))
    for k in range(3, 14):
        pipeline.push_odometry(ego_at(k * 100 * MS, 0.0))
    result = pipeline.idle(1_300 * MS)
    assert result is not None
    assert result.health.state == STOPPED
    assert result.plan is not None
    np.testing.assert_array_equal(result.plan.points_P2, 0.0)


def test_the_rate_limit_holds_on_average_and_is_counted() -> None:
    pipeline, _ = make(parameters={"node.max_rate_hz": 4.0})
    results = run(pipeline, drive(range(40)))
    assert 16 <= len(results) <= 17
    assert results[-1].health.drops["rate_limit"] in range(20, 25)
    pipeline, _ = make(parameters={"node.max_rate_hz": 10.0})
    assert len(run(pipeline, drive(range(40)))) == 40


def test_frames_older_than_silence_are_not_acted_on() -> None:
    pipeline, _ = make()
    for _, event in drive(range(3)):
        pipeline.push_odometry(event) if isinstance(event, EgoState) else pipeline.push(event)
    assert pipeline.poll(1_300 * MS) == []
    assert pipeline.health(1_300 * MS).drops["too_old"] == 3


def test_late_processing_is_degraded() -> None:
    pipeline, _ = make()
    run(pipeline, drive(range(5)))
    for _, event in drive([5]):
        pipeline.push_odometry(event) if isinstance(event, EgoState) else pipeline.push(event)
    result = pipeline.poll(900 * MS)[-1]
    assert result.health.state == DEGRADED
    assert "latency 400 ms, more than 200" in result.health.reasons


@pytest.mark.parametrize(("spent_ms", "state"), [(100, NOMINAL), (300, DEGRADED), (1500, MINIMAL_RISK)])
def test_time_spent_on_a_frame_counts_on_the_robot(spent_ms: int, state: SafetyState) -> None:
    ticks = iter(range(10**9))
    # Seven looks at the clock a frame; five stages lie between the first and the last before supervision.
    pipeline, _ = make(clock_ns=lambda: next(ticks) * spent_ms * MS // 4, realtime=True)
    results = run(pipeline, drive(range(12)))
    assert results[-1].health.state in ((state,) if state < MINIMAL_RISK else (MINIMAL_RISK, STOPPED))
    if state > NOMINAL:
        assert any(reason.startswith("latency") for reason in results[-1].health.reasons)
    offline, _ = make(clock_ns=lambda: next(ticks) * spent_ms * MS // 4)
    assert run(offline, drive(range(12)))[-1].health.state == NOMINAL


@pytest.mark.parametrize("back_ms", [1_500, 2_000, 2_900])
def test_a_clock_set_back_by_little_leaves_no_pose_of_the_old_timeline(back_ms: int) -> None:
    pipeline, _ = make()
    run(pipeline, drive(range(50, 80)))
    standing = [
        (now, EgoState(e.stamp_ns, SE3.identity(), np.zeros(3), 0.0) if isinstance(e, EgoState) else e)
        for now, e in drive(range(12), start_ns=8_000 * MS - back_ms * MS)
    ]
    result = run(pipeline, standing)[-1]
    assert pipeline.last_prepared is not None
    assert pipeline.last_prepared.ego_state is not None
    assert pipeline.last_prepared.ego_state.speed == 0.0
    np.testing.assert_allclose(pipeline.last_prepared.ego_state.odom_from_base.translation, 0.0, atol=1e-9)
    assert result.plan is not None


def test_a_plan_from_before_a_long_time_without_a_route_is_not_continued() -> None:
    def spoil(call: int, outputs: Outputs) -> Outputs:
        if call == 20:
            outputs["object_futures"][:] = np.nan
        return outputs

    pipeline, _ = make(FakeEngine(things=CARS, base_from_odom=moving, spoil=spoil))
    run(pipeline, drive(range(3)))
    no_route = config_from_parameters({"planning.assume_straight_route": False}, base=pipeline.config)
    pipeline.update(no_route)
    results = run(pipeline, drive(range(3, 22)))
    bad = next(r for r in results if any("object_futures" in reason for reason in r.health.reasons))
    assert bad.plan is not None
    assert bad.plan.candidate == -1
    assert "previous plan continued" not in bad.health.reasons


def test_live_parameters_change_and_fixed_ones_are_refused() -> None:
    pipeline, engine = make()
    run(pipeline, drive(range(3)))
    live = config_from_parameters(
        {"planning.speed_limit": 7.0, "tracking.birth_score": 0.95, "sync.max_wait_ms": 10.0},
        base=pipeline.config,
    )
    pipeline.update(live)
    run(pipeline, drive([3]))
    assert engine.inputs[-1]["ego_state"][0, EGO_FIELDS.index("speed_limit")] == 7.0
    fixed = config_from_parameters({"sync.queue_size": 7, "planning.speed_limit": 9.0}, base=live)
    with pytest.raises(ConfigError, match=r"cannot change while running: sync.queue_size \(16 to 7\)"):
        pipeline.update(fixed)
    assert pipeline.config == live


def test_a_calibration_of_the_same_sensors_is_taken_and_another_rig_is_not() -> None:
    pipeline, engine = make()
    run(pipeline, drive(range(2)))
    front = RIG.cameras[0]
    pipeline.set_rig(RIG.with_sensors({"front": front.model_copy(update={"fx_px": 44.0})}))
    run(pipeline, drive([2]))
    before, after = (call["image_from_base"][0, 0] for call in engine.inputs[1:3])
    assert not np.allclose(before, after)
    with pytest.raises(ConfigError, match="rig has sensors top; expected top, front as before"):
        pipeline.set_rig(RIG.model_copy(update={"sensors": RIG.sensors[:1]}))


def test_what_does_not_fit_together_is_refused_at_the_start() -> None:
    engine = FakeEngine(NETWORK.model_copy(update={"num_queries": 9}))
    with pytest.raises(ContractError, match=r"does not fit network 'fake'.*load the engine and the network"):
        make(engine)
    with pytest.raises(ConfigError, match="anchor lidar"):
        make(parameters={"sync.anchors": ["lidar"]})
    odd = RIG.model_copy(update={"sensors": (RIG.sensors[0].model_copy(update={"name": "roof"}),)})
    with pytest.raises(RigError, match="lidar 'roof'"):
        Pipeline(NETWORK, odd, FakeEngine(), StackConfig(), "fake")
    pipeline, _ = make()
    with pytest.raises(InputError, match="sensor 'rear'"):
        pipeline.push(SensorMessage("rear", 0, 0, CLOUD))


def test_inputs_and_points_are_there_for_reports() -> None:
    seen = []
    pipeline, _ = make(on_prepared=lambda frame, prepared: seen.append((frame.sequence, prepared.stamp_ns)))
    assert pipeline.last_prepared is None
    run(pipeline, drive(range(2)))
    assert seen == [(0, 0), (1, 100 * MS)]
    assert pipeline.last_prepared is not None
    np.testing.assert_allclose(pipeline.last_prepared.points_base[0], [9.0, 1.0, 0.3], atol=1e-5)


chaos = st.lists(
    st.tuples(st.sampled_from(["drop", "late", "nan", "throw", "jump", "back"]), st.integers(0, 29)),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(chaos)
def test_whatever_happens_plans_are_finite_and_nothing_escapes(faults: list[tuple[str, int]]) -> None:
    at = {kind: {i for k, i in faults if k == kind} for kind, _ in faults}

    def spoil(call: int, outputs: Outputs) -> Outputs:
        if call in at.get("throw", ()):
            raise OSError("gone")
        if call in at.get("nan", ()):
            outputs["object_futures"][:] = np.nan
        return outputs

    pipeline, _ = make(FakeEngine(things=CARS, base_from_odom=moving, spoil=spoil))
    offset_ns, results, ids = 0, [], set()
    for i in range(30):
        if i in at.get("back", ()):
            offset_ns -= 5_000 * MS
        for now, event in drive([i], start_ns=offset_ns + 60_000 * MS):
            if isinstance(event, EgoState):
                shift = SE3.planar(300.0 * (i in at.get("jump", ())), 0.0, 0.0)
                event = EgoState(event.stamp_ns, shift @ event.odom_from_base, event.velocity, event.yaw_rate)
                pipeline.push_odometry(event)
            elif i not in at.get("drop", ()):
                late = 80 * MS * (i in at.get("late", ()))
                now += late
                pipeline.push(SensorMessage(event.sensor, event.stamp_ns, now, event.payload))
            results += pipeline.poll(now)
            idle = pipeline.idle(now)
            if idle is not None:
                results.append(idle)
    assert results
    for result in results:
        if result.plan is None:
            assert "ego motion unknown" in result.health.reasons
            continue
        assert result.plan.is_finite
        assert result.plan.accelerations_P.min() >= -9.0 - 1e-6
        if result.health.state >= MINIMAL_RISK:
            assert result.plan.candidate == -1
        if result.tracks is not None:
            ids |= set(result.tracks.boxes.ids_N.tolist())
    assert ids == set(range(len(ids)))
