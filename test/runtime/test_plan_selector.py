"""Which proposal wins under which weights, how a plan moves, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_engine import NETWORK, Outputs, scene_outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ContractError, InputError
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.messages import plan_reason
from e2e_perception.core.network_config import COST_TERMS
from e2e_perception.core.results import Health, SafetyState
from e2e_perception.core.trajectories import Plan, Route, RouteInput, route_input
from e2e_perception.runtime.plan_motion import carried_on, motion_along
from e2e_perception.runtime.plan_selector import TERMS, PlanSelector

MS = 1_000_000
STILL = SE2(0.0, 0.0, 0.0)
TIMES = NETWORK.times_T
NUM_OFFSETS = len(NETWORK.plan_offsets)
KEEP = NETWORK.plan_accelerations.index(0.0) * NUM_OFFSETS + NETWORK.plan_offsets.index(0.0)
BRAKE = NETWORK.plan_accelerations.index(-3.0) * NUM_OFFSETS + NETWORK.plan_offsets.index(0.0)
STRAIGHT = route_input(Route.straight(STILL), STILL)


def ego(speed: float, stamp_ns: int = 0) -> EgoState:
    return EgoState(stamp_ns, SE3.identity(), np.array([speed, 0.0, 0.0]), 0.0)


def outputs_at(speed: float, **columns: dict[int, float]) -> Outputs:
    """Proposals from `speed`; all cost nothing but what `columns` says of some."""
    outputs = scene_outputs(NETWORK, [], speed=speed)
    outputs["plan_costs"][:] = 0.0
    for term, values in columns.items():
        for candidate, value in values.items():
            outputs["plan_costs"][0, candidate, COST_TERMS.index(term)] = value
    return outputs


def select(
    outputs: Outputs, speed: float = 10.0, route: RouteInput = STRAIGHT, **weights: float
) -> tuple[Plan, object]:
    return PlanSelector(NETWORK, PlanningConfig(**weights)).select(0, outputs, route, ego(speed), None)


def all_but(candidates: set[int], value: float) -> dict[int, float]:
    return {c: value for c in range(NETWORK.num_plans) if c not in candidates}


def test_the_weights_decide() -> None:
    outputs = outputs_at(
        10.0, imitation=all_but({KEEP, BRAKE}, 9.0), collision={KEEP: 0.1}, progress={BRAKE: 1.0}
    )
    bold, _ = select(outputs, weight_collision=1.0, weight_progress=0.5)
    careful, candidates = select(outputs, weight_collision=20.0, weight_progress=0.5)
    assert (bold.candidate, careful.candidate, careful.runner_up) == (KEEP, BRAKE, KEEP)
    assert careful.costs["progress"] == pytest.approx(0.5)
    assert careful.runner_up_costs["collision"] == pytest.approx(2.0, rel=1e-6)
    assert tuple(careful.costs) == candidates.terms == TERMS
    assert candidates.selected == careful.candidate
    totals = candidates.costs_CK.sum(1)
    assert totals.argmin() == careful.candidate
    np.testing.assert_allclose(candidates.points_CP2[careful.candidate], careful.points_P2, atol=1e-5)


def test_new_weights_hold_from_the_next_frame_on() -> None:
    outputs = outputs_at(
        10.0, imitation=all_but({KEEP, BRAKE}, 9.0), collision={KEEP: 0.1}, progress={BRAKE: 1.0}
    )
    selector = PlanSelector(NETWORK, PlanningConfig(weight_collision=1.0, stickiness=0.0))
    first, _ = selector.select(0, outputs, STRAIGHT, ego(10.0), None)
    selector.update(PlanningConfig(weight_collision=20.0, stickiness=0.0))
    second, _ = selector.select(100 * MS, outputs, STRAIGHT, ego(10.0), None)
    assert (first.candidate, second.candidate) == (KEEP, BRAKE)


def test_a_plan_of_constant_braking_has_exact_speeds_and_accelerations() -> None:
    outputs = outputs_at(20.0, imitation=all_but({BRAKE}, 9.0))
    plan, _ = select(outputs, 20.0)
    np.testing.assert_allclose(plan.speeds_P, 20.0 - 3.0 * TIMES, atol=1e-4)
    np.testing.assert_allclose(plan.accelerations_P, -3.0, atol=1e-3)
    np.testing.assert_allclose(plan.yaws_P, 0.0, atol=1e-6)


def test_a_plan_that_comes_to_a_stop_has_speed_zero_and_keeps_its_heading() -> None:
    plan, _ = select(outputs_at(3.0, imitation=all_but({BRAKE}, 9.0)), 3.0)
    np.testing.assert_allclose(plan.speeds_P[2:], 0.0, atol=1e-5)
    assert (plan.speeds_P >= 0.0).all()
    np.testing.assert_allclose(plan.yaws_P, plan.yaws_P[0], atol=1e-6)


def test_plans_follow_a_curved_route_to_the_left() -> None:
    angles = np.linspace(0.0, 2.0, 60)
    circle = Route(np.stack([50.0 * np.sin(angles), 50.0 * (1.0 - np.cos(angles))], 1))
    plan, _ = select(outputs_at(10.0, imitation=all_but({KEEP}, 9.0)), 10.0, route_input(circle, STILL))
    radius = np.linalg.norm(plan.points_P2 - np.array([0.0, 50.0]), axis=1)
    np.testing.assert_allclose(radius, 50.0, atol=0.05)
    np.testing.assert_allclose(plan.yaws_P[:-1], 10.0 * TIMES[:-1] / 50.0, atol=0.02)
    np.testing.assert_allclose(plan.speeds_P, 10.0, atol=0.05)
    assert not plan.route_assumed


def test_among_equals_the_plan_near_the_last_one_wins() -> None:
    left = NETWORK.plan_accelerations.index(0.0) * NUM_OFFSETS + NETWORK.plan_offsets.index(1.8)
    right = left - NUM_OFFSETS + 1 + NETWORK.plan_offsets.index(-1.8) + (NUM_OFFSETS - 1) - left % NUM_OFFSETS
    assert NETWORK.plan_offsets[right % NUM_OFFSETS] == -1.8
    first = outputs_at(10.0, imitation=all_but({left}, 9.0))
    equal = outputs_at(10.0, imitation={**all_but({left, right}, 9.0), left: 0.05})
    for stickiness, expected in ((0.0, right), (0.5, left)):
        selector = PlanSelector(NETWORK, PlanningConfig(stickiness=stickiness))
        selector.select(0, first, STRAIGHT, ego(10.0), None)
        plan, _ = selector.select(100 * MS, equal, STRAIGHT, ego(10.0), SE2(-1.0, 0.0, 0.0))
        assert plan.candidate == expected
    # Without the motion between the frames, or after a second, or after a reset, nothing binds.
    selector = PlanSelector(NETWORK, PlanningConfig(stickiness=0.5))
    for stamp_ns, motion, reset in (
        (100 * MS, None, False),
        (1500 * MS, STILL, False),
        (100 * MS, STILL, True),
    ):
        selector.select(0, first, STRAIGHT, ego(10.0), None)
        if reset:
            selector.reset()
        plan, _ = selector.select(stamp_ns, equal, STRAIGHT, ego(10.0), motion)
        assert (plan.candidate, plan.costs["stickiness"]) == (right, 0.0)
        selector.reset()


def test_stickiness_is_measured_in_the_present_frame_and_time() -> None:
    outputs = outputs_at(10.0, imitation=all_but({KEEP}, 9.0))
    selector = PlanSelector(NETWORK, PlanningConfig(stickiness=1.0))
    selector.select(0, outputs, STRAIGHT, ego(10.0), None)
    plan, _ = selector.select(200 * MS, outputs, STRAIGHT, ego(10.0), SE2(2.0, 0.0, 0.0).inverse())
    assert plan.costs["stickiness"] == pytest.approx(0.0, abs=1e-5)
    plan, _ = selector.select(400 * MS, outputs, STRAIGHT, ego(10.0), SE2(1.0, 0.0, 0.0).inverse())
    assert plan.costs["stickiness"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["plan_sd", "plan_costs"])
def test_non_finite_proposals_are_refused(name: str) -> None:
    outputs = outputs_at(10.0)
    outputs[name].flat[7] = np.nan
    with pytest.raises(InputError, match=f"'{name}' is not finite"):
        select(outputs)


def test_misshapen_proposals_are_a_contract_error() -> None:
    outputs = outputs_at(10.0)
    outputs["plan_costs"] = outputs["plan_costs"][..., :-1]
    with pytest.raises(ContractError, match=r"'plan_costs' is \[1, 84, 5\], expected \[1, 84, 6\]"):
        select(outputs)


def test_without_ego_motion_the_first_acceleration_is_not_invented() -> None:
    plan, _ = PlanSelector(NETWORK, PlanningConfig()).select(
        0, outputs_at(20.0, imitation=all_but({BRAKE}, 9.0)), STRAIGHT, None, None
    )
    np.testing.assert_allclose(plan.accelerations_P, -3.0, atol=1e-3)


def plan_with(acceleration: float, speed: float = 10.0, **changes: object) -> Plan:
    speeds = np.maximum(speed + acceleration * TIMES, 0.0)
    accelerations = np.diff(np.concatenate([[speed], speeds])) / 0.5
    plan = Plan(0, TIMES, np.zeros((len(TIMES), 2)), TIMES * 0, speeds, accelerations, 3, {}, 4, {})
    return replace(plan, **changes)


NOMINAL = Health(SafetyState.NOMINAL, (), (), "", "", 1, 1, {}, {})


def test_a_plan_is_explained_by_what_it_does_and_the_terms_that_decided() -> None:
    costs = {"imitation": 1.0, "collision": 0.4, "progress": 1.2, "route": 0.31}
    runner_up = {"imitation": 1.02, "collision": 4.5, "progress": 0.6, "route": 0.3}

    def reason(acceleration: float, speed: float = 10.0, **changes: object) -> str:
        return plan_reason(plan_with(acceleration, speed, costs=costs, **changes), NOMINAL)

    assert reason(-3.0, 20.0, runner_up_costs=runner_up) == (
        "brakes at 3.0 m/s^2: collision 4.1 lower than the runner-up, progress 0.6 higher"
    )
    assert reason(1.5, runner_up_costs=costs) == (
        "accelerates at 1.5 m/s^2: the runner-up costs nearly the same"
    )
    assert reason(0.0, 8.3, runner_up_costs=costs).startswith("keeps 8.3 m/s: ")
    assert reason(0.0, 0.0, runner_up=-1) == "stands: the only proposal"
    stopping = replace(NOMINAL, state=SafetyState.MINIMAL_RISK, reasons=("ego motion unknown",))
    assert plan_reason(plan_with(-3.0, 20.0, candidate=-1), stopping) == (
        "minimal risk: stop, because ego motion unknown"
    )


def test_proposals_above_the_speed_limit_pay_for_it_unless_they_ease_down() -> None:
    def excess(speed: float, acceleration: float) -> float:
        selector = PlanSelector(NETWORK, PlanningConfig(speed_limit=5.0))
        _, candidates = selector.select(0, outputs_at(speed), STRAIGHT, ego(speed), None)
        candidate = NETWORK.plan_accelerations.index(acceleration) * NUM_OFFSETS + 3
        return float(candidates.costs_CK[candidate, TERMS.index("speed_limit")])

    assert excess(5.0, 0.0) == pytest.approx(0.0, abs=1e-6)
    assert excess(5.0, 1.0) == pytest.approx(5.0 * 2.0, rel=1e-3)  # 1 m/s^2 for 4 s: 2 m/s on average
    assert excess(10.0, -1.2) == pytest.approx(0.0, abs=1e-6)
    assert excess(10.0, 0.0) > 5.0


@settings(deadline=None)
@given(
    st.floats(0.0, 30.0),
    st.floats(-6.0, 3.0),
    st.floats(-0.05, 0.05),
)
def test_motion_along_an_arc_agrees_with_its_formula(
    speed: float, acceleration: float, curvature: float
) -> None:
    moving = np.minimum(TIMES, speed / -acceleration) if acceleration < 0 else TIMES
    distance = speed * moving + 0.5 * acceleration * moving**2
    angle = curvature * distance
    if abs(curvature) > 1e-4:
        points = np.stack([np.sin(angle), 1.0 - np.cos(angle)], -1) / curvature
    else:
        points = np.stack([distance, 0.0 * distance], -1)
    yaws, speeds, accelerations = motion_along(points, TIMES, speed)
    assert np.isfinite(yaws).all()
    assert (speeds >= 0.0).all()
    np.testing.assert_allclose(np.cumsum(accelerations) * 0.5 + speed, speeds, atol=1e-6)
    if acceleration >= 0 or speed / -acceleration > TIMES[-1]:
        expected = speed + acceleration * TIMES
        # A chord is shorter than its arc, by the square of the angle over 24.
        chord = expected * (curvature * np.maximum(expected, speed)) ** 2
        np.testing.assert_array_less(np.abs(speeds - expected), 0.05 + 0.1 * chord)


@settings(deadline=None)
@given(st.floats(0.5, 30.0), st.floats(0.0, 3.0), st.floats(-3, 3), st.floats(-1, 1))
def test_a_plan_carried_on_stays_where_it_was_in_the_world(
    speed: float, elapsed: float, y: float, yaw: float
) -> None:
    outputs = outputs_at(speed, imitation=all_but({BRAKE}, 9.0))
    plan, _ = select(outputs, speed)
    base_from_plan = SE2(speed * elapsed, y, yaw).inverse()
    later = carried_on(plan, round(elapsed * 1e9), base_from_plan)
    inside = elapsed + TIMES <= TIMES[-1]
    known = np.stack(
        [
            np.interp(elapsed + TIMES, np.append(0, TIMES), np.append(0, plan.points_P2[:, i]))
            for i in range(2)
        ],
        -1,
    )
    back = base_from_plan.inverse().apply(later.points_P2)
    np.testing.assert_allclose(back[inside], known[inside], atol=1e-5)
    assert later.is_finite
    assert (np.diff(later.speeds_P) <= 1e-9).all()
