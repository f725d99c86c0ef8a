"""The safety state machine, the plan check and the stop, under faults."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.config import SupervisorConfig
from e2e_perception.core.frames import SE2
from e2e_perception.core.results import SafetyState, SensorReport
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan, Route, route_input
from e2e_perception.runtime.plan_checks import EgoFootprint, PlanVerdict, check_plan
from e2e_perception.runtime.plan_motion import motion_along
from e2e_perception.runtime.supervisor import FrameFacts, SafetySupervisor

MS = 1_000_000
NOMINAL, DEGRADED, MINIMAL_RISK, STOPPED = SafetyState
TIMES = 0.5 * np.arange(1, 9)
EGO = EgoFootprint(length=4.6, width=1.9, center_x=1.4)
CONFIG = SupervisorConfig(recovery_frames=3, max_bad_frames=3, silence_ms=1000)
HERE = SE2(0.0, 0.0, 0.0)


def sensor(name: str, reason: str = "", age_ms: float = 0.0) -> SensorReport:
    return SensorReport(name, not reason, reason, age_ms, 10, 10, 0)


GOOD = FrameFacts(
    stamp_ns=0,
    now_ns=50 * MS,
    sensors=(sensor("lidar"), sensor("front"), sensor("radar")),
    anchor_capable=frozenset({"lidar", "front"}),
    speed=10.0,
    verdict=PlanVerdict(True),
)


def facts(frame: int, **changes: object) -> FrameFacts:
    """Frame number `frame` at 10 Hz, good but for the changes."""
    stamp_ns = frame * 100 * MS
    latency_ns = int(changes.pop("latency_ms", 50)) * MS  # type: ignore[call-overload]
    return replace(GOOD, stamp_ns=stamp_ns, now_ns=stamp_ns + latency_ns, **changes)  # type: ignore[arg-type]


def nominal(config: SupervisorConfig = CONFIG) -> tuple[SafetySupervisor, itertools.count[int]]:
    """A supervisor that has become nominal, and the numbers of the frames to come."""
    supervisor, frames = SafetySupervisor(config), itertools.count()
    while supervisor.state != NOMINAL:
        supervisor.step(facts(next(frames)))
    return supervisor, frames


def test_trust_is_earned_by_good_frames() -> None:
    supervisor = SafetySupervisor(CONFIG)
    assert (supervisor.state, supervisor.reasons) == (DEGRADED, ("no frame yet",))
    states = [supervisor.step(facts(i)) for i in range(4)]
    assert [s for s, _ in states] == [DEGRADED, DEGRADED, NOMINAL, NOMINAL]
    assert states[0][1] == ("recovering: 1 of 3 good frames",)
    assert states[3][1] == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"sensors": (sensor("lidar"), sensor("front", "late", 180.0))},
            "front: late, last message 180 ms old",
        ),
        ({"sensors": (sensor("lidar"), sensor("front", "silent", float("nan")))}, "front: silent"),
        ({"sensors": (sensor("lidar"), sensor("radar", age_ms=500.0))}, "radar: stale, 550 ms old"),
        ({"latency_ms": 350}, "latency 350 ms, more than 200"),
        ({"speed": None}, "ego motion unknown"),
        (
            {"outputs_problem": "engine output 'affinity' is not finite"},
            "engine output 'affinity' is not finite",
        ),
        ({"verdict": PlanVerdict(False, ("plan meets car 3 in 0.8 s",), 3.0)}, "plan meets car 3 in 0.8 s"),
        ({"warnings": ("odometry jumped",)}, "odometry jumped"),
    ],
)
def test_a_single_fault_degrades_at_once_and_is_named(changes: dict[str, object], reason: str) -> None:
    supervisor, frames = nominal()
    state, reasons = supervisor.step(facts(next(frames), **changes))
    assert (state, reasons) == (DEGRADED, (reason,))
    states = [supervisor.step(facts(next(frames)))[0] for _ in range(3)]
    assert states == [DEGRADED, DEGRADED, NOMINAL]


def test_notes_cost_no_trust() -> None:
    supervisor, frames = nominal()
    assert supervisor.step(facts(next(frames), notes=("no route",))) == (NOMINAL, ("no route",))


@pytest.mark.parametrize(
    "bad", [{"outputs_problem": "not finite"}, {"verdict": PlanVerdict(False, ("plan turns",), 3.0)}]
)
def test_bad_frames_in_a_row_lead_to_a_minimal_risk_stop(bad: dict[str, object]) -> None:
    supervisor, frames = nominal()
    states = [supervisor.step(facts(next(frames), **bad))[0] for _ in range(3)]
    assert states == [DEGRADED, DEGRADED, MINIMAL_RISK]
    assert supervisor.reasons[-1] == "3 bad frames in a row"
    supervisor, frames = nominal()
    for _ in range(5):
        assert supervisor.step(facts(next(frames), **bad))[0] == DEGRADED
        supervisor.step(facts(next(frames)))


@pytest.mark.parametrize(
    "blind",
    [
        {"sensors": (sensor("lidar", "silent"), sensor("front", "undecodable: x"), sensor("radar"))},
        {"speed": None},
    ],
)
def test_blind_or_lost_for_longer_than_silence_is_a_minimal_risk_stop(blind: dict[str, object]) -> None:
    supervisor, frames = nominal()
    states = [supervisor.step(facts(next(frames), **blind))[0] for _ in range(12)]
    assert states == [DEGRADED] * 10 + [MINIMAL_RISK] * 2
    assert supervisor.reasons[-1].startswith("no valid frame for 1.")


def test_silence_leads_to_a_stop_and_standing_still_ends_it() -> None:
    supervisor, _ = nominal()
    last = supervisor._last_valid_ns
    assert last is not None
    assert supervisor.silence(last + 1000 * MS, 10.0)[0] == NOMINAL
    assert supervisor.silence(last + 1100 * MS, 10.0) == (MINIMAL_RISK, ("no valid frame for 1.1 s",))
    assert supervisor.silence(last + 1200 * MS, None)[0] == MINIMAL_RISK
    assert supervisor.silence(last + 4000 * MS, 0.05)[0] == STOPPED
    assert supervisor.silence(last + 5000 * MS, 0.3)[0] == STOPPED
    assert supervisor.silence(last + 6000 * MS, 0.8)[0] == MINIMAL_RISK


def test_silence_before_the_first_frame_counts_from_the_first_look() -> None:
    supervisor = SafetySupervisor(CONFIG)
    assert supervisor.silence(5_000 * MS, 0.0)[0] == DEGRADED
    assert supervisor.silence(6_100 * MS, 0.0)[0] == STOPPED


def test_a_clock_set_back_is_not_silence() -> None:
    supervisor, _ = nominal()
    supervisor.step(facts(10_000))
    assert supervisor.silence(0, 10.0)[0] == NOMINAL
    assert supervisor.silence(900 * MS, 10.0)[0] == NOMINAL
    assert supervisor.silence(1100 * MS, 10.0)[0] == MINIMAL_RISK


def test_recovery_from_a_stop_goes_one_step_at_a_time() -> None:
    supervisor, frames = nominal()
    for _ in range(3):
        supervisor.step(facts(next(frames), outputs_problem="not finite", speed=0.0))
    assert supervisor.state == STOPPED
    states = [supervisor.step(facts(next(frames), speed=0.0))[0] for _ in range(9)]
    assert states == [STOPPED] * 2 + [MINIMAL_RISK] * 3 + [DEGRADED] * 3 + [NOMINAL]


fault = st.sampled_from(
    [
        {},
        {},
        {},
        {"sensors": (sensor("lidar", "late"), sensor("front"))},
        {"sensors": (sensor("lidar", "silent"), sensor("front", "silent"))},
        {"outputs_problem": "not finite"},
        {"speed": None},
        {"speed": 0.0},
        {"speed": 0.0, "outputs_problem": "not finite"},
        {"latency_ms": 400},
        {"verdict": PlanVerdict(False, ("plan meets car 1",), 9.0)},
    ]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(fault, st.integers(1, 15)), max_size=80), st.integers(1, 6))
def test_the_state_never_improves_faster_than_the_hysteresis(
    faults: list[tuple[dict[str, object], int]], recovery: int
) -> None:
    supervisor = SafetySupervisor(SupervisorConfig(recovery_frames=recovery))
    since_change, before, frame = 0, supervisor.state, 0
    for changes, gap in faults:
        frame += gap
        state, reasons = supervisor.step(facts(frame, **changes))
        since_change += 1
        assert state >= before - 1
        rolled = (before, state) == (STOPPED, MINIMAL_RISK)  # no better, only no longer at rest
        if state < before and not rolled:
            assert since_change >= recovery
        if state != before:
            since_change = 0
        trouble = set(changes) - {"speed"} or changes.get("speed", 0.0) is None
        if trouble:
            assert state >= DEGRADED
        if state != NOMINAL and trouble:
            assert reasons
        before = state


# --- plan checks --------------------------------------------------------------------------------------------


def make_plan(points_P2: np.ndarray, speed: float) -> Plan:
    yaws, speeds, accelerations = motion_along(points_P2, TIMES, speed)
    return Plan(0, TIMES, points_P2, yaws, speeds, accelerations, 5, {"imitation": 1.0})


def straight_plan(speed: float, acceleration: float = 0.0) -> Plan:
    t = np.minimum(TIMES, speed / -acceleration) if acceleration < 0 else TIMES
    distance = speed * t + 0.5 * acceleration * t**2
    return make_plan(np.stack([distance, 0 * distance], -1), speed)


def make_tracks(*cars: tuple[float, float, float, float], confirmed: bool = True, yaw: float = 0.0) -> Tracks:
    """Cars (x, y, vx, vy); the likeliest future goes on, the other stands."""
    n = len(cars)
    state = np.array(cars, np.float32).reshape(n, 4)
    future = state[:, None, :2] + TIMES[None, :, None] * state[:, None, 2:]
    stay = np.broadcast_to(state[:, None, :2], future.shape)
    boxes = Boxes(
        centers_N3=np.concatenate([state[:, :2], np.full((n, 1), 0.8)], 1).astype(np.float32),
        sizes_N3=np.tile(np.array([4.4, 1.8, 1.6], np.float32), (n, 1)),
        yaws_N=np.full(n, yaw, np.float32),
        velocities_N2=state[:, 2:],
        class_ids_N=np.full(n, CLASSES.index("car")),
        scores_N=np.full(n, 0.9, np.float32),
        ids_N=np.arange(n) + 7,
    )
    return Tracks(
        stamp_ns=0,
        boxes=boxes,
        ages_N=np.full(n, 9),
        coasted_N=np.zeros(n, np.int64),
        confirmed_N=np.full(n, confirmed),
        position_std_N2=np.full((n, 2), 0.1, np.float32),
        futures_NMT2=np.stack([stay, future], 1).astype(np.float32),
        futures_std_NMT2=np.full((n, 2, len(TIMES), 2), 0.3, np.float32),
        mode_probabilities_NM=np.tile(np.array([0.4, 0.6], np.float32), (n, 1)),
        times_T=TIMES,
    )


def test_a_free_road_is_accepted() -> None:
    assert check_plan(straight_plan(15.0), make_tracks(), 15.0, EGO, CONFIG) == PlanVerdict(True)
    beside = make_tracks((10, 3.5, 0, 0), (-20, -3.5, 20, 0))
    assert check_plan(straight_plan(15.0), beside, 15.0, EGO, CONFIG) == PlanVerdict(True)
    assert check_plan(straight_plan(15.0), None, 15.0, EGO, CONFIG).accepted


def test_a_standing_car_ahead_rejects_the_plan_and_asks_for_enough_braking() -> None:
    # Bumper at 3.7 m; 10 m/s needs 16.7 m at 3 m/s^2 and 5.6 m at 9 m/s^2.
    far = check_plan(straight_plan(20.0), make_tracks((36, 0, 0, 0)), 20.0, EGO, CONFIG)
    assert far.accepted, "too far away to decide now"
    soft = check_plan(straight_plan(12.0, 2.0), make_tracks((22, 0, 2.0, 0)), 10.0, EGO, CONFIG)
    assert (soft.accepted, soft.deceleration) == (False, 3.0)
    hard = check_plan(straight_plan(10.0), make_tracks((15, 0, 0, 0)), 10.0, EGO, CONFIG)
    assert (hard.accepted, hard.deceleration) == (False, 9.0)
    assert hard.reasons == ("plan meets car 7 in 1.0 s",)
    # Unavoidable, but braking delays it.
    late = check_plan(straight_plan(20.0), make_tracks((16, 0, 0, 0)), 20.0, EGO, CONFIG)
    assert (late.accepted, late.deceleration) == (False, 9.0)


def test_a_plan_that_brakes_in_time_is_accepted() -> None:
    assert check_plan(straight_plan(10.0, -6.0), make_tracks((15, 0, 0, 0)), 10.0, EGO, CONFIG).accepted


def test_only_the_likeliest_future_of_confirmed_tracks_counts() -> None:
    leaving = make_tracks((15, 0, 14, 0))  # its less likely future is to stand
    assert check_plan(straight_plan(10.0), leaving, 10.0, EGO, CONFIG).accepted
    tentative = make_tracks((15, 0, 0, 0), confirmed=False)
    assert check_plan(straight_plan(10.0), tentative, 10.0, EGO, CONFIG).accepted


def test_being_run_into_from_behind_is_reported_but_does_not_stop_the_robot() -> None:
    verdict = check_plan(straight_plan(5.0), make_tracks((-12, 0, 20, 0)), 5.0, EGO, CONFIG)
    assert verdict.accepted
    assert verdict.reasons == ("plan meets car 7 in 0.6 s, a stop would not help",)


def test_crossing_traffic_that_a_stop_lets_pass_rejects_the_plan() -> None:
    crossing = make_tracks((14, -12, 0, 10), yaw=np.pi / 2)
    verdict = check_plan(straight_plan(10.0), crossing, 10.0, EGO, CONFIG)
    assert (verdict.accepted, verdict.deceleration) == (False, 9.0)


def test_an_overlap_that_already_is_says_nothing() -> None:
    assert check_plan(straight_plan(10.0), make_tracks((2, 0, 10, 0)), 10.0, EGO, CONFIG).reasons == ()


def test_driving_on_into_what_touches_the_robot_is_refused_and_standing_is_not() -> None:
    touching = make_tracks((5.5, 0, 0, 0))  # its rear is at 3.3 m, the robot's bumper at 3.7 m
    verdict = check_plan(straight_plan(2.0, 0.5), touching, 2.0, EGO, CONFIG)
    assert not verdict.accepted
    assert verdict.reasons == ("plan drives into car 7, touched already",)
    assert check_plan(straight_plan(0.0), touching, 0.0, EGO, CONFIG) == PlanVerdict(True)
    leaving = make_tracks((5.5, 0, 6.0, 0))
    assert check_plan(straight_plan(2.0, 0.5), leaving, 2.0, EGO, CONFIG).accepted


def test_limits_of_motion_are_enforced() -> None:
    hard = check_plan(straight_plan(30.0, -10.0), None, 30.0, EGO, CONFIG)
    assert (hard.accepted, hard.path_usable) == (False, False)
    assert hard.reasons == ("plan brakes at 10.0 m/s^2, more than the allowed 9.0",)
    angle = 20.0 * TIMES / 40.0  # 10 m/s^2 sideways
    turn = make_plan(40.0 * np.stack([np.sin(angle), 1 - np.cos(angle)], -1), 20.0)
    assert "plan turns at" in check_plan(turn, None, 20.0, EGO, CONFIG).reasons[0]
    gentle = make_plan(100.0 * np.stack([np.sin(angle * 0.4), 1 - np.cos(angle * 0.4)], -1), 20.0)
    assert check_plan(gentle, None, 20.0, EGO, CONFIG).accepted
    assert check_plan(straight_plan(25.0, -7.0), None, 25.0, EGO, CONFIG).accepted


@pytest.mark.parametrize("name", ["points_P2", "yaws_P", "speeds_P", "accelerations_P"])
def test_a_non_finite_plan_never_passes(name: str) -> None:
    plan = straight_plan(10.0)
    spoiled = getattr(plan, name).copy()
    spoiled.flat[3] = np.nan
    verdict = check_plan(replace(plan, **{name: spoiled}), make_tracks(), 10.0, EGO, CONFIG)
    assert (verdict.accepted, verdict.reasons) == (False, ("plan is not finite",))


@settings(deadline=None, max_examples=200)
@given(
    st.floats(-30, 30), st.floats(-10, 10), st.floats(-3.1, 3.1), st.floats(0.1, 12.0), st.floats(0.1, 4.0)
)
def test_footprint_overlap_agrees_with_polygons(
    x: float, y: float, yaw: float, length: float, width: float
) -> None:
    from shapely import affinity
    from shapely.geometry import box

    from e2e_perception.runtime.plan_checks import _overlaps_NT

    tracks = make_tracks((x, y, 0, 0), yaw=yaw)
    sizes = np.array([[length, width, 1.6]], np.float32)
    tracks = replace(tracks, boxes=replace(tracks.boxes, sizes_N3=sizes))
    points, yaws = np.array([[2.0, -1.0]]), np.array([0.7])
    got = bool(_overlaps_NT(points, yaws, np.zeros(1), tracks, EGO)[0, 0])
    ego = box(1.4 - 2.3, -0.95, 1.4 + 2.3, 0.95)
    ego = affinity.translate(affinity.rotate(ego, 0.7, origin=(0, 0), use_radians=True), 2.0, -1.0)
    other = box(-length / 2, -width / 2, length / 2, width / 2)
    other = affinity.translate(affinity.rotate(other, yaw, origin=(0, 0), use_radians=True), x, y)
    if got:
        assert ego.distance(other) < 1e-3
    else:
        assert ego.intersection(other).area < 1e-3


# --- the stop -----------------------------------------------------------------------------------------------


def test_a_stop_keeps_the_path_of_the_plan_and_brakes_constantly() -> None:
    angle = 10.0 * TIMES / 60.0
    plan = make_plan(60.0 * np.stack([np.sin(angle), 1 - np.cos(angle)], -1), 10.0)
    stop = SafetySupervisor(CONFIG).stop_plan(0, times_P=TIMES, speed=10.0, plan=plan, base_from_plan=HERE)
    assert stop.candidate == -1
    np.testing.assert_allclose(stop.speeds_P, np.maximum(10.0 - 3.0 * TIMES, 0.0))
    np.testing.assert_allclose(stop.accelerations_P[:6], -3.0)
    radius = np.linalg.norm(stop.points_P2 - np.array([0.0, 60.0]), axis=1)
    np.testing.assert_allclose(radius, 60.0, atol=0.1)
    travelled = np.linalg.norm(np.diff(np.concatenate([np.zeros((1, 2)), stop.points_P2]), axis=0), axis=1)
    assert travelled.sum() == pytest.approx(100.0 / 6.0, rel=0.01)


def test_a_stop_along_an_earlier_plan_starts_where_the_robot_is_now() -> None:
    plan = straight_plan(10.0)
    # Half a metre to the right of where the plan was, a second later, turned a little.
    stop = SafetySupervisor(CONFIG).stop_plan(
        1_000 * MS, times_P=TIMES, speed=9.0, plan=plan, base_from_plan=SE2(10.0, -0.5, 0.05).inverse()
    )
    first = np.linalg.norm(stop.points_P2[0])
    assert first == pytest.approx(9.0 * 0.5 - 0.5 * 3.0 * 0.25, abs=0.05)
    assert stop.stamp_ns == 1_000 * MS
    world = SE2(10.0, -0.5, 0.05).apply(stop.points_P2)
    assert abs(world[-1, 1]) < 0.1, "it returns to the path of the plan"


def test_without_a_plan_a_stop_keeps_its_offset_from_the_route_or_goes_straight() -> None:
    supervisor = SafetySupervisor(CONFIG)
    angles = np.linspace(0.0, 2.0, 60)
    route = Route(np.stack([50.0 * np.sin(angles), 50.0 * (1.0 - np.cos(angles))], 1))
    stop = supervisor.stop_plan(0, times_P=TIMES, speed=10.0, route=route_input(route, SE2(0.0, 1.0, 0.0)))
    radius = np.linalg.norm(stop.points_P2 - np.array([0.0, 49.0]), axis=1)
    np.testing.assert_allclose(radius, 49.0, atol=0.1)
    stop = supervisor.stop_plan(0, times_P=TIMES, speed=6.0)
    np.testing.assert_allclose(stop.points_P2[:, 1], 0.0)
    assert stop.points_P2[-1, 0] == pytest.approx(6.0)


def test_a_stop_without_odometry_starts_at_the_speed_that_was_planned() -> None:
    plan = straight_plan(10.0, -2.0)
    stop = SafetySupervisor(CONFIG).stop_plan(1_000 * MS, times_P=TIMES, speed=None, plan=plan)
    assert stop.speeds_P[0] == pytest.approx(8.0 - 1.5, abs=1e-6)
    stop = SafetySupervisor(CONFIG).stop_plan(0, times_P=TIMES, speed=None)
    np.testing.assert_array_equal(stop.points_P2, 0.0)


@settings(deadline=None, max_examples=200)
@given(
    st.floats(-5.0, 40.0),
    st.floats(0.5, 9.0),
    st.floats(1.0, 12.0),
    st.one_of(st.none(), st.floats(0.5, 20.0)),
    st.floats(0.0, 35.0),
    st.floats(-0.02, 0.02),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-0.5, 0.5)),
)
def test_a_stop_never_accelerates_nor_brakes_harder_than_allowed_nor_leaps(
    speed: float,
    stop_deceleration: float,
    max_deceleration: float,
    asked: float | None,
    planned_speed: float,
    curvature: float,
    offset: tuple[float, float, float],
) -> None:
    config = SupervisorConfig(stop_deceleration=stop_deceleration, max_deceleration=max_deceleration)
    angle = curvature * planned_speed * TIMES
    points = planned_speed * TIMES[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    stop = SafetySupervisor(config).stop_plan(
        100 * MS,
        times_P=TIMES,
        speed=speed,
        plan=make_plan(points, planned_speed),
        base_from_plan=SE2(*offset),
        deceleration=asked,
    )
    assert stop.is_finite
    pace = np.abs(np.concatenate([[speed], stop.speeds_P]))
    assert (np.diff(pace) <= 1e-9).all()
    assert (np.sign(stop.speeds_P) * np.sign(speed) >= 0).all()
    assert np.abs(stop.accelerations_P).max() <= max_deceleration + 1e-6
    steps = np.linalg.norm(np.diff(np.concatenate([np.zeros((1, 2)), stop.points_P2]), axis=0), axis=1)
    mean_pace = 0.5 * (pace[1:] + pace[:-1])
    assert (steps <= mean_pace * 0.5 + 0.5 * max_deceleration * 0.25 + 1e-6).all()
