"""What the closed-loop world promises: one episode per name, no trace of imagining, no leak by the route."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.network_config import SIZES
from e2e_perception.core.proposals import manoeuvres
from e2e_perception.core.rig import find_rig
from e2e_perception.core.trajectories import Plan, Route, route_input
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.simulation.closed_loop import ClosedLoop
from e2e_perception.simulation.driving import drive_policy, drive_with
from e2e_perception.simulation.ego_vehicle import Command, EgoVehicle, VehicleLimits
from e2e_perception.simulation.expert_drives import ProposalPricer, drive_expert
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.scoring import TERMS, Others, cost_table
from e2e_perception.simulation.traffic_world import FAMILIES, ROADS, ScenarioSpec, TrafficWorld, make_stage
from e2e_perception.simulation.visibility import visibility
from e2e_perception.simulation.world import STEP_NS, snapshot

SOME = ("highway+cut_in", "merge", "intersection+crossing", "roundabout", "two_way+cyclist")
FOOTPRINT = EgoFootprint(4.6, 1.9, 1.4)


def rolled(world: TrafficWorld, steps: int, *, imagining: bool = False) -> list[np.ndarray]:
    """Poses of all agents while the robot goes straight on at constant speed."""
    poses = []
    for k in range(steps):
        x = world.start.speed * 0.1 * k
        ego = EgoState(world.start_ns + k * STEP_NS, SE3.planar(x, 0.0, 0.0), world.start.velocity, 0.0)
        if imagining:
            world.imagine(ego, 2.0, 0.25)
        world.advance(ego)
        poses.append(world.agents_at(world.known_until_ns).poses_N3)
    return poses


@pytest.mark.parametrize("family", SOME)
def test_the_same_name_is_the_same_episode_and_imagining_leaves_no_trace(family: str) -> None:
    spec = ScenarioSpec(family, 11)
    first = rolled(TrafficWorld(spec), 25)
    second = rolled(TrafficWorld(spec), 25, imagining=True)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_imagined_speeds_do_not_decide_who_waits_for_whom() -> None:
    spec = ScenarioSpec("exit", 1, 0.6)
    first = rolled(TrafficWorld(spec), 40)
    second = rolled(TrafficWorld(spec), 40, imagining=True)
    assert np.array_equal(first[-1], second[-1])


def test_another_seed_or_difficulty_is_another_episode() -> None:
    base = rolled(TrafficWorld(ScenarioSpec("merge", 1)), 3)[-1]
    for other in (ScenarioSpec("merge", 2), ScenarioSpec("merge", 1, 0.6)):
        poses = rolled(TrafficWorld(other), 3)[-1]
        assert poses.shape != base.shape or not np.allclose(poses, base)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_makes_worlds_in_which_nobody_stands_in_the_robot(family: str) -> None:
    for seed in range(3):
        world = TrafficWorld(ScenarioSpec(family, seed))
        states = world.agents_at(world.start_ns)
        near = states.poses_N3[states.present_N, :2] - [1.4, 0.0]
        sizes = world.cast.sizes_N3[states.present_N]
        apart = (np.abs(near[:, 0]) > 2.3 + 0.4 * sizes[:, 0]) | (
            np.abs(near[:, 1]) > 0.95 + 0.4 * sizes[:, 1]
        )
        assert apart.all()
        s, d = world.route.project((0.0, 0.0))
        assert abs(d) < 1.0
        assert world.goal_s > s
        assert world.end_ns > world.start_ns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("martian/1", "unknown scenario family 'martian'"),
        ("highway", "not of the form family/seed"),
        ("highway/x", "not of the form family/seed"),
        ("highway/1@2", "difficulty is 2.0, expected 0 … 1"),
        ("highway/-1", "seed is -1"),
    ],
)
def test_names_that_mean_nothing_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ScenarioSpec.parse(text)


def test_a_name_is_read_as_it_is_written() -> None:
    spec = ScenarioSpec("two_way+crossing", 7, 0.25)
    assert ScenarioSpec.parse(spec.name) == spec


@pytest.mark.parametrize("family", SOME)
def test_the_route_knows_the_road_and_the_start_and_nothing_of_what_anybody_will_do(family: str) -> None:
    spec = ScenarioSpec(family, 4)
    world = TrafficWorld(spec)
    before = route_input(world.route, SE2(0.0, 0.0, 0.0))
    # From the stage alone, before traffic has moved or an expert has been asked.
    stage = make_stage(spec)
    s = np.arange(stage.ego_s - 30.0, stage.length, 2.0)
    middle = stage.positions(s, stage.ego_r)
    assert np.allclose(np.linalg.norm(np.diff(middle, axis=0), axis=1),
                       np.linalg.norm(np.diff(world.route.points_R2, axis=0), axis=1))  # fmt: skip
    drives = [drive_policy(TrafficWorld(spec), policy) for policy in ("expert", "stop")]
    for record in drives:
        assert np.array_equal(record.route_R2, world.route.points_R2)
    after = route_input(world.route, SE2(0.0, 0.0, 0.0))
    assert np.array_equal(before.features_R4, after.features_R4)
    # A route input depends on the pose alone: where two drivers meet, it is the same.
    pose = SE2(*drives[0].ego_T5[5, :3].tolist())
    again = [route_input(Route(record.route_R2), pose).features_R4 for record in drives]
    assert np.array_equal(again[0], again[1])


@given(
    speed=st.floats(0.0, 40.0),
    size=st.floats(0.4, 3.0),
    ahead=st.floats(8.0, 60.0),
    turn=st.floats(-3.0, 3.0),
)
@settings(max_examples=60, deadline=None)
def test_no_speed_lets_a_proposal_pass_through_a_standing_box(
    speed: float, size: float, ahead: float, turn: float
) -> None:
    import shapely

    frame = SE2(120.0, -40.0, turn)
    route = Route(frame.apply(np.array([[-20.0, 0.0], [400.0, 0.0]])))
    area = shapely.Polygon(frame.apply(np.array([[-30.0, -9.0], [420.0, -9.0], [420.0, 9.0], [-30.0, 9.0]])))
    shapely.prepare(area)
    times = 0.25 * np.arange(1, 21)
    sd = manoeuvres((0.0,), (0.0,), times, horizon=5.0, speed=speed, lateral_offset=0.0, heading_error=0.0)
    x, y = frame.apply(np.array([[1.4 + 2.3 + size / 2.0 + ahead, 0.0]]))[0]
    box = np.array([[x, y, turn, size, size]])
    others = Others(0.25, np.zeros((20, 0, 5)), box, np.zeros(0, np.bool_))
    nobody = dataclasses.replace(others, obstacles_O5=np.zeros((0, 5)))

    def costs(who: Others) -> np.ndarray:
        return cost_table(
            sd,
            route=route,
            start_s=20.0,
            speed=speed,
            speed_limit=30.0,
            others=who,
            footprint=FOOTPRINT,
            area=area,
        )[0]

    hit = speed * times[-1] > ahead + 0.1
    assert costs(nobody)[TERMS.index("collision")] == 0.0
    assert costs(nobody)[TERMS.index("drivable")] == 0.0
    if hit:
        assert costs(others)[TERMS.index("collision")] > 0.0


@given(
    speed=st.floats(0.0, 35.0),
    offset=st.floats(-3.0, 3.0),
    heading=st.floats(-0.5, 0.5),
)
@settings(max_examples=40, deadline=None)
def test_the_vocabulary_is_the_one_of_the_network(speed: float, offset: float, heading: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from e2e_perception.core.network_config import EGO_FIELDS
    from e2e_perception.model.planning import Vocabulary

    network = SIZES["tiny"]
    state = torch.zeros(1, len(EGO_FIELDS))
    for name, value in (("speed", speed), ("lateral_offset", offset), ("heading_error", heading)):
        state[0, EGO_FIELDS.index(name)] = value
    expected = Vocabulary(network)(state)[0].numpy()
    found = manoeuvres(
        network.plan_accelerations,
        network.plan_offsets,
        network.times_T,
        horizon=float(network.times_T[-1]),
        speed=speed,
        lateral_offset=offset,
        heading_error=heading,
    )
    np.testing.assert_allclose(found, expected, atol=2e-4)


@given(acceleration=st.floats(-20.0, 20.0), curvature=st.floats(-1.0, 1.0), speed=st.floats(0.0, 40.0))
@settings(max_examples=60, deadline=None)
def test_the_robot_keeps_its_limits_whatever_it_is_told(
    acceleration: float, curvature: float, speed: float
) -> None:
    limits = VehicleLimits()
    car = EgoVehicle(EgoState(0, SE3.planar(0.0, 0.0, 0.0), np.array([speed, 0.0, 0.0]), 0.0))
    before = (car.acceleration, car.steering, car.speed)
    for _ in range(60):
        car.step(Command(acceleration, curvature))
        assert -limits.max_braking <= car.acceleration <= limits.max_acceleration
        assert abs(car.acceleration - before[0]) <= limits.max_jerk * 0.02 + 1e-9 or car.speed == 0.0
        assert abs(car.steering) <= limits.max_steering
        assert abs(car.steering - before[1]) <= limits.max_steering_rate * 0.02 + 1e-9
        assert car.speed >= 0.0
        before = (car.acceleration, car.steering, car.speed)


def test_a_command_takes_effect_after_the_dead_time() -> None:
    car = EgoVehicle(EgoState(0, SE3.planar(0.0, 0.0, 0.0), np.array([10.0, 0.0, 0.0]), 0.0))
    accelerations = []
    for _ in range(5):
        car.step(Command(-5.0, 0.0))
        accelerations.append(car.acceleration)
    assert accelerations[:3] == [0.0, 0.0, 0.0]
    assert accelerations[3] < 0.0
    with pytest.raises(InputError, match="command is not finite"):
        car.step(Command(float("nan"), 0.0))


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda ego: None, "no plan for 1."),
        (lambda ego: 1 / 0, "ZeroDivisionError"),
        (lambda ego: "left", "the policy gave str, expected a Plan"),
    ],
)
def test_a_policy_that_gives_nothing_useful_fails_and_throws_nothing(answer: object, failure: str) -> None:
    record = drive_with(ClosedLoop(TrafficWorld(ScenarioSpec("highway", 0))), answer, STEP_NS, "bad")  # type: ignore[arg-type]
    assert record.failure.startswith(failure)
    assert len(record.ego_T5) >= 1


def test_a_policy_that_gives_no_numbers_fails() -> None:
    times = SIZES["tiny"].times_T

    def plan(ego: EgoState) -> Plan:
        nan = np.full(len(times), np.nan)
        return Plan(ego.stamp_ns, times, np.stack([nan, nan], axis=1), nan, nan, nan, 0, {})

    record = drive_with(ClosedLoop(TrafficWorld(ScenarioSpec("highway", 0))), plan, STEP_NS, "bad")
    assert record.failure == "non-finite plan"


def test_a_plan_takes_effect_no_earlier_than_its_delay() -> None:
    world = TrafficWorld(ScenarioSpec("highway", 0))
    loop = ClosedLoop(world)
    ego, times = loop.ego, SIZES["tiny"].times_T
    way = np.stack([ego.speed * times, np.zeros_like(times)], axis=1)
    steady = np.full(len(times), ego.speed)
    plan = Plan(ego.stamp_ns, times, way, 0.0 * times, steady, 0.0 * times, 0, {})
    loop.take_plan(plan, delay_ns=100_000_000)
    for _ in range(4):
        loop.tick()
        assert loop.tracker.plan is None
    loop.tick()
    assert loop.tracker.plan is plan


def test_expert_drives_are_kept_with_priced_proposals_and_without_futures_of_who_leaves() -> None:
    spec = ScenarioSpec("intersection", 2)
    scenario = drive_expert(spec)
    again = drive_expert(spec)
    assert np.array_equal(scenario.ego_T5, again.ego_T5)
    assert not scenario.collided
    network = SIZES["tiny"]
    costs = ProposalPricer(scenario, network).costs(scenario.start_ns + 10 * STEP_NS)
    assert costs.shape == (network.num_plans, len(TERMS))
    assert np.isfinite(costs).all()
    assert np.isnan(ProposalPricer(scenario, network).costs(scenario.last_ns - STEP_NS)).all()
    assert scenario.present_TN is not None
    gone = ~scenario.present_TN
    assert gone.any()
    stamp_ns = scenario.start_ns + 20 * STEP_NS
    shown = set(scenario.snapshot(stamp_ns).boxes.ids_N.tolist())
    assert shown <= set(np.flatnonzero(scenario.present_at(stamp_ns)).tolist())


def test_a_failed_drive_is_kept_and_marked() -> None:
    scenario = drive_expert(ScenarioSpec("highway+stopped_queue", 0), policy="blind")
    assert scenario.collided
    assert not scenario.is_example(scenario.start_ns, scenario.end_ns)


def test_a_plan_from_before_the_start_or_from_the_future_is_not_followed() -> None:
    loop = ClosedLoop(TrafficWorld(ScenarioSpec("highway", 0)))
    times = SIZES["tiny"].times_T
    still = np.zeros(len(times))
    for stamp_ns in (loop.now_ns - 1, loop.now_ns + 1):
        plan = Plan(stamp_ns, times, np.zeros((len(times), 2)), still, still, still, 0, {})
        assert loop.take_plan(plan) is False
        assert loop.tracker.plan is None
        with pytest.raises(InputError, match="the robot is not known at"):
            loop.ego_at(stamp_ns)


@pytest.mark.parametrize("road", ROADS)
def test_at_the_default_difficulty_sensors_see_about_ten_to_thirty_agents(road: str) -> None:
    rig, rng, seen = find_rig("tiny"), np.random.default_rng(0), []
    for seed in range(8):
        world = TrafficWorld(ScenarioSpec(road, seed))
        view = snapshot(world, world.start)
        rows = [simulate_lidar_with_labels(view, lidar, rng)[1] for lidar in rig.lidars]
        seen.append(visibility(view, lidar_labels=rows, cameras=rig.cameras).visible_L.sum())
    assert 8.0 <= np.mean(seen) <= 30.0, seen
