"""Scenarios: reproducible, physically sound, and driven so that they are worth learning from."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.simulation.alignment import Alignment, lane_coordinates
from e2e_perception.simulation.scenario import LABEL_HORIZON_S, Scenario, contacts
from e2e_perception.simulation.stage import EGO_CENTER_X, EGO_LENGTH, EGO_WIDTH
from e2e_perception.simulation.traffic import KINDS, simulate_scenario
from e2e_perception.simulation.world import STEP_S

SECOND = 1_000_000_000


@lru_cache(maxsize=64)
def scenario(kind: str, seed: int = 0, duration_s: float = 5.0) -> Scenario:
    return simulate_scenario(kind, seed, duration_s)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, (tuple, list)):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_and_seed_give_the_same_scenario(kind: str) -> None:
    assert same(simulate_scenario(kind, 3, 2.0), simulate_scenario(kind, 3, 2.0))


def test_another_seed_gives_another_scenario() -> None:
    assert not same(scenario("highway", 0).ego_T5, scenario("highway", 1).ego_T5)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_overlaps_at_any_time(kind: str) -> None:
    for seed in range(4):
        made = scenario(kind, seed)
        assert contacts(made.agents_TN3, made.sizes_N3[:, :2]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_velocities_are_the_motion_of_the_centres(kind: str) -> None:
    made = scenario(kind)
    stamps = made.start_ns + np.arange(10, 45, 5) * SECOND // 10
    for stamp_ns in stamps.tolist():
        now, velocities = made.agents_at(stamp_ns)
        before, _ = made.agents_at(stamp_ns - SECOND // 10)
        after, _ = made.agents_at(stamp_ns + SECOND // 10)
        np.testing.assert_allclose(velocities, (after - before)[:, :2] / 0.2, atol=1e-6)
        snapshot = made.snapshot(stamp_ns)
        ids = snapshot.boxes.ids_N
        np.testing.assert_allclose(snapshot.boxes.velocities_N2, velocities[ids], atol=1e-4)
        np.testing.assert_allclose(snapshot.boxes.centers_N3[:, :2], now[ids, :2], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_robot_moves_as_its_twist_says_and_starts_at_the_origin(kind: str) -> None:
    made = scenario(kind)
    np.testing.assert_allclose(made.ego_T5[0, :3], 0.0, atol=1e-9)
    steps = np.diff(made.ego_T5[:, :2], axis=0)
    middle_yaws = (made.ego_T5[1:, 2] + made.ego_T5[:-1, 2]) / 2.0
    middle_speeds = (made.ego_T5[1:, 3] + made.ego_T5[:-1, 3]) / 2.0
    forward = np.stack([np.cos(middle_yaws), np.sin(middle_yaws)], axis=1)
    # The rear axle does not slip sideways.
    np.testing.assert_allclose(steps, forward * middle_speeds[:, None] * STEP_S, atol=0.02)
    assert np.all(made.ego_T5[:, 3] >= 0.0)
    turned = np.diff(made.ego_T5[:, 2])
    np.testing.assert_allclose(turned[1:-1] / STEP_S, made.ego_T5[1:-2, 4], atol=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_robot_seldom_collides_and_keeps_to_its_route(kind: str) -> None:
    made = [scenario(kind, seed) for seed in range(6)]
    assert sum(s.collided for s in made) <= 1
    for one in made:
        assert abs(one.route.project(one.ego_T5[0, :2])[1]) < 0.9
        centre = one.ego_T5[-1, :2] + 1.4 * np.array([np.cos(one.ego_T5[-1, 2]), np.sin(one.ego_T5[-1, 2])])
        assert abs(one.route.project(centre)[1]) < 1.2
        assert one.route.arc_lengths_R[-1] > 150.0


def test_a_collision_is_marked() -> None:
    made = scenario("two_way")
    states = np.concatenate([made.ego_T5[:, None, :3], made.ego_T5[:, None, :3] + 0.5], axis=1)
    assert contacts(states, np.array([[4.6, 1.9], [4.0, 1.8]]), only_first=True) == [(0, 1)]


def test_the_flag_for_collisions_agrees_with_the_trajectories() -> None:
    for kind in KINDS:
        made = scenario(kind)
        yaw = made.ego_T5[:, 2]
        centre = made.ego_T5[:, :2] + EGO_CENTER_X * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
        ego = np.column_stack([centre, yaw])[:, None]
        states = np.concatenate([ego, made.agents_TN3], axis=1)
        sizes = np.concatenate([[[EGO_LENGTH, EGO_WIDTH]], made.sizes_N3[:, :2]])
        touched = bool(contacts(states, sizes, only_first=True))
        assert touched <= made.collided  # debris counts too


def test_each_kind_shows_what_it_promises() -> None:
    def slowest(kind: str) -> list[float]:
        return [float(scenario(kind, seed, 10.0).ego_T5[:, 3].min()) for seed in range(6)]

    def stops(kind: str) -> int:
        return sum(speed < 0.3 for speed in slowest(kind))

    assert stops("stopped_queue") >= 3
    assert stops("blocked_lane") >= 3
    assert stops("standstill") == 6
    assert all(speed > 2.0 for speed in slowest("highway"))
    leads = [np.diff(scenario("braking_lead", seed, 10.0).ego_T5[:, 3]).min() / STEP_S for seed in range(6)]
    assert sum(acceleration < -1.5 for acceleration in leads) >= 4
    walkers = {CLASSES.index("pedestrian"), CLASSES.index("cyclist")}
    assert all(walkers & set(scenario("crossing", seed, 10.0).class_ids_N.tolist()) for seed in range(6))


def test_blocked_and_open_lanes_both_occur_so_that_looking_decides() -> None:
    finals = [scenario("blocked_lane", seed, 10.0).ego_T5[-1, 3] for seed in range(12)]
    assert any(speed < 0.5 for speed in finals)
    assert any(speed > 5.0 for speed in finals)


def test_sizes_lie_within_their_class() -> None:
    for kind in KINDS:
        made = scenario(kind)
        for size, class_id in zip(made.sizes_N3.tolist(), made.class_ids_N.tolist(), strict=True):
            low, high = {
                "car": (3.6, 5.2),
                "truck": (7, 14),
                "pedestrian": (0.4, 0.8),
                "cyclist": (1.5, 1.9),
            }[CLASSES[class_id]]
            assert low <= size[0] <= high


def test_parts_of_an_agent_stay_inside_its_box() -> None:
    made = scenario("two_way")
    parts = made.parts
    half = made.sizes_N3[parts.agents_P] / 2.0
    reach = np.abs(parts.offsets_P3[:, :2]) + parts.sizes_P3[:, :2] / 2.0
    assert (reach <= half[:, :2] + 1e-6).all()
    top = parts.offsets_P3[:, 2] + parts.sizes_P3[:, 2] / 2.0
    assert (top <= made.sizes_N3[parts.agents_P, 2] + 1e-6).all()
    assert (parts.offsets_P3[:, 2] - parts.sizes_P3[:, 2] / 2.0 >= -1e-6).all()
    assert set(parts.agents_P.tolist()) == set(range(len(made.sizes_N3)))


def test_clutter_stays_off_the_drivable_area() -> None:
    import cv2

    for kind in ("highway", "two_way", "braking_lead"):
        made = scenario(kind)
        polygon = made.road.drivable[0].astype(np.float32)
        for x, y in made.clutter_C12[:, :2].tolist():
            assert cv2.pointPolygonTest(polygon, (x, y), False) < 0.0


def test_solids_name_the_row_of_their_box() -> None:
    snapshot = scenario("two_way").snapshot(scenario("two_way").start_ns + 2 * SECOND)
    solids, boxes = snapshot.solids, snapshot.boxes
    assert solids.labels_N.max() < len(boxes)
    labelled = solids.labels_N >= 0
    distance = solids.centers_N3[labelled, :2] - boxes.centers_N3[solids.labels_N[labelled], :2]
    assert np.all(np.hypot(*distance.T) <= boxes.sizes_N3[solids.labels_N[labelled], 0] / 2.0)
    assert set(solids.labels_N[labelled].tolist()) == set(range(len(boxes)))


def test_right_hand_traffic_meets_the_robot_on_its_left() -> None:
    oncoming = 0
    for seed in range(4):
        made = scenario("two_way", seed)
        snapshot = made.snapshot(made.start_ns + 2 * SECOND)
        base = snapshot.odom_from_base.planar_part().inverse()
        centers = base.apply(snapshot.boxes.centers_N3[:, :2])
        velocities = base.rotate(snapshot.boxes.velocities_N2)
        motor = np.isin(snapshot.boxes.class_ids_N, [CLASSES.index("car"), CLASSES.index("truck")])
        near = motor & (np.abs(centers[:, 0]) < 25.0) & (velocities[:, 0] < -3.0)
        oncoming += int(near.sum())
        assert np.all(centers[near, 1] > 1.0)
    assert oncoming > 0


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 5.0 + LABEL_HORIZON_S))
def test_states_are_continuous_in_time(seconds: float) -> None:
    made = scenario("cut_in")
    stamp_ns = made.start_ns + round(seconds * 1e9)
    later_ns = min(stamp_ns + 1_000_000, made.last_ns)
    a, b = made.ego_at(stamp_ns), made.ego_at(later_ns)
    assert np.linalg.norm(a.odom_from_base.translation - b.odom_from_base.translation) < 0.05
    moved = made.agents_at(later_ns)[0] - made.agents_at(stamp_ns)[0]
    assert np.abs(moved[:, :2]).max(initial=0.0) < 0.06
    assert np.abs(moved[:, 2]).max(initial=0.0) < 0.01


def test_labels_reach_beyond_the_end_and_no_further() -> None:
    made = scenario("highway")
    made.snapshot(made.end_ns + round(LABEL_HORIZON_S * 1e9))
    with pytest.raises(InputError, match=r"highway/0 has no state at \d+ ns; it covers"):
        made.snapshot(made.start_ns - 1)
    with pytest.raises(InputError, match="it covers"):
        made.ego_at(made.last_ns + 1)


def test_a_forced_swerve_and_a_collision_are_no_example() -> None:
    made = dataclasses.replace(scenario("highway"), collided=False, swerves=((100, 200),))
    assert made.is_example(200, 300)
    assert made.is_example(50, 100)
    assert not made.is_example(50, 150)
    assert not made.is_example(150, 160)
    assert not dataclasses.replace(made, collided=True).is_example(200, 300)


def test_unknown_kind_and_short_duration_are_refused() -> None:
    with pytest.raises(InputError, match="unknown scenario kind 'parade'; there are highway, braking_lead"):
        simulate_scenario("parade", 0, 5.0)
    with pytest.raises(InputError, match=r"duration is 0\.5 s, expected at least 1 s"):
        simulate_scenario("highway", 0, 0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(-8.0, 8.0), st.floats(8.0, 30.0))
def test_lane_coordinates_undo_lane_positions(seed: int, offset: float, speed: float) -> None:
    alignment = Alignment.random(400.0, speed, np.random.default_rng(seed))
    for oncoming in (False, True):
        lane = alignment.lane(offset, 3.5, speed, oncoming=oncoming)
        s_N = np.linspace(5.0, 0.9 * lane.length, 7)
        points = np.array([lane.position(s, 0.7) for s in s_N])
        np.testing.assert_allclose(lane_coordinates(lane, points), [(s, 0.7) for s in s_N], atol=1e-6)
        for point, (s, r) in zip(points, lane_coordinates(lane, points), strict=True):
            np.testing.assert_allclose(lane.local_coordinates(point), (s, r), atol=1e-9)


def test_an_oncoming_lane_lies_where_the_reference_line_says() -> None:
    for seed in range(6):
        alignment = Alignment.random(300.0, 15.0, np.random.default_rng(seed))
        lane = alignment.lane(-3.5, 3.5, 15.0, oncoming=True)
        ends = np.array([lane.position(0.0, 0.0), lane.position(lane.length, 0.0)])
        np.testing.assert_allclose(ends, alignment.positions([300.0, 0.0], -3.5), atol=1e-6)
        turn = lane.heading_at(0.0) - alignment.headings(300.0) - np.pi
        assert abs((turn + np.pi) % (2.0 * np.pi) - np.pi) < 1e-6
