"""The planner's formulas, one by one, against what they come to by hand.

Legend: B batch, P proposals, S horizon steps, U instants with those of coming to a stop, O objects.
"""

from __future__ import annotations

import math

import pytest
import torch
from synthetic import SMALL
from torch import Tensor

from e2e_perception.core.network_config import COST_TERMS, EGO_FIELDS
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING
from e2e_perception.model.planning import (
    BEHIND,
    COAST_S,
    DISCOUNT_S,
    EGO_CENTRE,
    EXPERT_WEIGHTS,
    LATERAL_COMFORT,
    LATERAL_SLACK,
    MOST_DOUBT,
    SURE_OVERLAP,
    Planner,
    Vocabulary,
    base_from_route,
    collision_probability,
    route_coordinates,
)

STEPS, DT = SMALL.horizon_steps, SMALL.step_s
TIMES = torch.from_numpy(SMALL.times_T).float()
END_OF_ROUTE = (ROUTE_POINTS - 1) * ROUTE_SPACING
GRID = SMALL.bev_grid
AHEAD, LEFT, BACK = 0.0, 90.0, 180.0


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    return Planner(SMALL).requires_grad_(False)


def straight_route(yaw_deg: float = 0.0, start: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    direction = torch.tensor([math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))])
    points = torch.tensor(start) + ROUTE_SPACING * torch.arange(ROUTE_POINTS)[:, None] * direction
    return torch.cat([points, direction.expand(ROUTE_POINTS, 2)], 1)[None]


def ego(**fields: float) -> Tensor:
    return torch.tensor([[fields.get(name, 0.0) for name in EGO_FIELDS]])


def box(
    x: float, y: float, yaw_deg: float = AHEAD, length: float = 4.0, width: float = 2.0
) -> tuple[float, ...]:
    yaw = math.radians(yaw_deg)
    return (x, y, 0.8, math.log(length), math.log(width), 0.5, math.sin(yaw), math.cos(yaw), 0.0, 0.0)


def along_s(s: list[float] | Tensor, d: float = 0.0) -> Tensor:
    """One proposal (1, 1, S, 2)."""
    s = torch.as_tensor(s, dtype=torch.float32)
    return torch.stack([s, torch.full_like(s, d)], -1)[None, None]


# --- Route coordinates.


@pytest.mark.parametrize(
    ("sd", "point"),
    [((0.0, 0.0), (2.0, 1.0)), ((10.0, 0.0), (2.0, 11.0)), ((10.0, 1.5), (0.5, 11.0)),
     ((-4.0, -1.0), (3.0, -3.0)), ((END_OF_ROUTE + 5.0, 2.0), (0.0, END_OF_ROUTE + 6.0))],
)  # fmt: skip
def test_left_of_a_route_to_the_left_is_behind_the_robot_both_ways(
    sd: tuple[float, float], point: tuple[float, float]
) -> None:
    route = straight_route(LEFT, (2.0, 1.0))
    points, tangents = base_from_route(torch.tensor(sd).reshape(1, 1, 1, 2), route)
    torch.testing.assert_close(points.flatten(), torch.tensor(point), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(tangents.flatten(), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0.0)
    there = route_coordinates(torch.tensor([[point]]), route)
    torch.testing.assert_close(there.flatten(), torch.tensor(sd), atol=1e-4, rtol=0.0)


def test_between_two_route_points_the_tangent_is_of_length_one_and_half_way_round() -> None:
    route = straight_route()
    route[0, 1:, 2:] = torch.tensor([0.0, 1.0])
    points, tangents = base_from_route(along_s([0.5 * ROUTE_SPACING], d=1.0), route)
    half = math.sqrt(0.5)
    torch.testing.assert_close(tangents.flatten(), torch.tensor([half, half]))
    torch.testing.assert_close(points.flatten(), torch.tensor([0.5 * ROUTE_SPACING - half, half]))


def test_a_proposal_has_a_gradient_along_the_route_and_across_it() -> None:
    sd = along_s([-5.0, 10.0, END_OF_ROUTE + 5.0], d=1.0).requires_grad_()
    points, _ = base_from_route(sd, straight_route(LEFT))
    for axis, expected in ((0, [0.0, -1.0]), (1, [1.0, 0.0])):
        (gradient,) = torch.autograd.grad(points[..., axis].sum(), sd, retain_graph=True)
        torch.testing.assert_close(gradient[0, 0], torch.tensor([expected] * 3), atol=1e-5, rtol=0.0)


# --- Collisions: half a robot is 2.3 m by 0.95 m, half a car here 2 m by 1 m.

QUARTER = math.log(0.25)  # of a variance of (0.5 m)^2


def overlap_at(
    x: float, y: float, its: tuple[float, ...], *, robot_deg: float = AHEAD, variance: object = 0.25
) -> float:
    """Of the robot's centre at (x, y) at the first step with an object that stands."""
    heading = torch.tensor([math.cos(math.radians(robot_deg)), math.sin(math.radians(robot_deg))])
    point = (torch.tensor([x, y]) - EGO_CENTRE * heading).reshape(1, 1, 1, 2)
    boxes = torch.tensor(its).reshape(1, 1, 10)
    future = boxes[:, :, None, None, :2]
    spread = torch.as_tensor(variance).expand(1, 1, 1, 1, 2)
    return float(collision_probability(point, heading.reshape(1, 1, 1, 2), boxes, future, spread))


@pytest.mark.parametrize(
    ("x", "y", "yaw_deg", "robot_deg", "gap_squared"),
    [(15.8, 0.0, AHEAD, AHEAD, 0.0), (14.7, 0.0, AHEAD, AHEAD, 1.0), (20.0, 2.95, AHEAD, AHEAD, 1.0),
     (20.0, -2.45, AHEAD, AHEAD, 0.25), (14.7, -2.45, AHEAD, AHEAD, 1.25), (14.7, 0.0, BACK, AHEAD, 1.0),
     (15.7, 0.0, LEFT, AHEAD, 1.0), (20.0, 3.95, LEFT, AHEAD, 1.0), (16.05, 0.0, AHEAD, LEFT, 1.0),
     # Nose along (1, 1), the car in its way: reach along is 2 + 2.3 + 0.95 over the root of 2, 4.298 m.
     (20.0 - 5.298, 0.0, AHEAD, 45.0, 1.0),
     # Behind each other, both turned to the left by 30 degrees.
     (20.0 - 5.3 * math.cos(math.pi / 6.0), -5.3 * math.sin(math.pi / 6.0), 30.0, 30.0, 1.0)],
)  # fmt: skip
def test_the_chance_to_collide_falls_with_the_gap_between_the_boxes(
    x: float, y: float, yaw_deg: float, robot_deg: float, gap_squared: float
) -> None:
    got = overlap_at(x, y, box(20.0, 0.0, yaw_deg), robot_deg=robot_deg)
    assert got == pytest.approx(math.exp(-0.5 * gap_squared / 0.25), rel=2e-3)


@pytest.mark.parametrize(
    ("variance", "counted"), [([0.1, 0.4], 0.25), (0.01, 0.09), (100.0, 4.0)], ids=["mean", "least", "most"]
)
def test_an_unsure_prediction_reaches_farther_within_bounds(variance: object, counted: float) -> None:
    got = overlap_at(15.1, 0.0, box(20.0, 0.0), variance=torch.tensor(variance))  # a gap of 0.6 m
    assert got == pytest.approx(math.exp(-0.5 * 0.36 / counted), rel=1e-3)


def test_who_is_between_two_steps_is_met_at_the_second() -> None:
    """Small ones, half-way to the first step and half-way to the second: 11.4 m and 31.4 m."""
    boxes = torch.tensor([[box(11.4, 0.0, length=0.5, width=0.5), box(31.4, 0.0, length=0.5, width=0.5)]])
    points = torch.tensor([[[[20.0, 0.0], [40.0, 0.0]]]])
    tangents = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)
    futures = boxes[:, :, None, None, :2].expand(1, 2, 1, 2, 2)
    overlap = collision_probability(points, tangents, boxes, futures, torch.full_like(futures, 0.01))
    torch.testing.assert_close(overlap[0, 0, :, 0], torch.eye(2), atol=1e-6, rtol=0.0)


def test_half_way_to_the_first_step_somebody_is_half_way_from_where_he_is_now() -> None:
    boxes = torch.tensor([[box(11.4, 8.0, length=0.5, width=0.5)]])
    points, tangents = torch.tensor([[[[20.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    for y, expected in ((-8.0, 1.0), (8.0, 0.0)):  # across the road, or none
        future = torch.tensor([11.4, y]).reshape(1, 1, 1, 1, 2)
        overlap = collision_probability(points, tangents, boxes, future, torch.full_like(future, 0.01))
        assert float(overlap) == pytest.approx(expected, abs=1e-6)


def hits_of(
    planner: Planner,
    its: tuple[float, ...],
    end: tuple[float, float],
    velocity: tuple[float, float],
    *,
    existence: float = 1.0,
    modes: tuple[float, ...] = (1.0,),
    log_var: float = -9.0,
) -> Tensor:
    """(U,) of a robot that stands in its place, with one who moves evenly and is at `end` at the horizon."""
    u = STEPS + len(COAST_S)
    points, tangents = torch.zeros(1, 1, u, 2), torch.tensor([1.0, 0.0]).expand(1, 1, u, 2)
    way = torch.tensor(end) + (TIMES - TIMES[-1])[:, None] * torch.tensor(velocity)
    futures = way.expand(1, 1, len(modes), STEPS, 2)
    return planner._hits(
        points,
        tangents,
        torch.tensor(its).reshape(1, 1, 10),
        torch.tensor([[existence]]),
        torch.tensor(modes).reshape(1, 1, -1),
        futures,
        torch.full_like(futures, log_var),
    )[0, 0]


HERE, STILL = (EGO_CENTRE, 0.0), (0.0, 0.0)


@pytest.mark.parametrize(
    ("x", "y", "yaw_deg", "factor"),
    [(-8.0, 0.0, AHEAD, BEHIND), (-8.0, -1.9, 20.0, BEHIND), (8.0, 0.0, AHEAD, 1.0), (-8.0, 2.1, AHEAD, 1.0),
     (-8.0, -2.1, AHEAD, 1.0), (-8.0, 0.0, 40.0, 1.0), (-8.0, 0.0, BACK, 1.0)],
)  # fmt: skip
def test_who_comes_from_behind_on_the_same_way_counts_a_tenth(
    planner: Planner, x: float, y: float, yaw_deg: float, factor: float
) -> None:
    hits = hits_of(planner, box(x, y, yaw_deg), HERE, STILL, existence=0.5)
    torch.testing.assert_close(hits, torch.full_like(hits, 0.5 * factor))


def test_chances_of_futures_and_objects_add_up_and_nothing_is_certain(planner: Planner) -> None:
    hits = hits_of(planner, box(8.0, 0.0), HERE, STILL, existence=0.5, modes=(0.2, 0.4))
    torch.testing.assert_close(hits, torch.full_like(hits, 0.3))
    hits = hits_of(planner, box(8.0, 0.0), HERE, STILL)
    torch.testing.assert_close(hits, torch.full_like(hits, 0.995))


def test_of_two_futures_the_likelier_counts_more(planner: Planner) -> None:
    u = STEPS + len(COAST_S)
    futures = torch.full((1, 2, 2, STEPS, 2), 40.0)
    futures[0, 0, 1] = torch.tensor(HERE)  # the second future of the first object
    hits = planner._hits(
        torch.zeros(1, 1, u, 2),
        torch.tensor([1.0, 0.0]).expand(1, 1, u, 2),
        torch.tensor([[box(8.0, 0.0), box(8.0, 0.0)]]),
        torch.tensor([[0.8, 0.9]]),
        torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]),
        futures,
        torch.full_like(futures, -9.0),
    )
    torch.testing.assert_close(hits, torch.full_like(hits, 0.8 * 0.25))


@pytest.mark.parametrize(
    ("yaw_deg", "velocity", "known"),
    [(AHEAD, (6.0, 0.0), True), (30.0, (6.0, 0.0), True), (35.0, (6.0, 0.0), False),
     (BACK, (-6.0, 0.0), False), (BACK, (0.0, 0.0), True), (LEFT, (0.0, 1.6), False),
     (LEFT, (0.0, 1.4), True)],
)  # fmt: skip
def test_after_the_horizon_they_go_on_as_they_did_if_along_or_slow_and_else_nobody_knows(
    planner: Planner, yaw_deg: float, velocity: tuple[float, float], known: bool
) -> None:
    for instant, after in enumerate(COAST_S):
        end = (EGO_CENTRE - after * velocity[0], -after * velocity[1])  # so as to be here then
        hits = hits_of(planner, box(20.0, 9.0, yaw_deg), end, velocity, existence=0.5)
        assert float(hits[STEPS + instant]) == pytest.approx(0.5 if known else 0.0, abs=1e-6)
        if velocity[0] == 6.0 and after * 6.0 > 8.0:
            assert float(hits[STEPS - 1]) < 1e-6  # not here yet


def test_up_to_the_horizon_who_crosses_counts_too(planner: Planner) -> None:
    hits = hits_of(planner, box(20.0, 9.0, LEFT), HERE, (0.0, 6.0), existence=0.5)
    assert float(hits[STEPS - 1]) == pytest.approx(0.5)


def test_who_is_past_at_the_horizon_does_not_come_back(planner: Planner) -> None:
    hits = hits_of(planner, box(8.0, 0.0), (EGO_CENTRE + 12.0, 0.0), (8.0, 0.0))
    assert hits[STEPS - 1 :].max() < 1e-6


def test_log_variances_widen_a_hit_also_after_the_horizon(planner: Planner) -> None:
    hits = hits_of(planner, box(EGO_CENTRE + 5.3, 0.0), (EGO_CENTRE + 5.3, 0.0), STILL, log_var=QUARTER)
    torch.testing.assert_close(hits, torch.full_like(hits, math.exp(-2.0)), rtol=1e-3, atol=0.0)


# --- The other formulas.


@pytest.mark.parametrize(
    ("last", "expected"),
    [((10.0, 12.0), (14.0, 14.0)),  # 4 m/s: stops after 1 s and 2 m
     ((10.0, 14.0), (14.0 + 12.0 - 4.5, 14.0 + 8.0)),  # 8 m/s: after 2 s and 8 m
     ((10.0, 10.0), (10.0, 10.0)), ((10.0, 9.0), (9.0, 9.0))],
)  # fmt: skip
def test_after_the_horizon_the_robot_brakes_to_a_stop_where_it_is_across(
    planner: Planner, last: tuple[float, float], expected: tuple[float, float]
) -> None:
    way = torch.cat([torch.zeros(STEPS - 2), torch.tensor(last)])
    coast = planner._coast(along_s(way, d=-0.7))
    torch.testing.assert_close(coast, along_s(torch.tensor(expected), d=-0.7))


def off_road(planner: Planner, drivable: Tensor, *places: tuple[float, float], yaw_deg: float = 0.0) -> float:
    points = torch.tensor(places).reshape(1, 1, -1, 2)
    yaw = math.radians(yaw_deg)
    tangents = torch.tensor([math.cos(yaw), math.sin(yaw)]).expand_as(points)
    return float(planner._off_road(points, tangents, drivable[None, None]))


@pytest.mark.parametrize(
    ("places", "yaw_deg", "share"),
    [([(10.0, 0.0)], AHEAD, 0.0), ([(14.0, 0.0)], AHEAD, 1.0),  # the nose at 13.7 m, at 17.7 m
     ([(14.0, 0.0)], BACK, 0.0), ([(17.0, 0.0)], BACK, 1.0),  # the tail at 14.9 m, at 17.9 m
     ([(5.0, 2.4)], AHEAD, 0.0), ([(5.0, 3.9)], AHEAD, 1.0),  # the left side at 3.35 m, at 4.85 m
     ([(5.0, -15.9)], AHEAD, 0.0),
     ([(5.0, 1.5)], LEFT, 1.0), ([(5.0, 1.5)], -LEFT, 0.0),  # the nose at 5.2 m, the tail at 2.4 m
     ([(0.0, 0.0), (5.0, 0.0), (10.0, 0.0), (14.0, 0.0)], AHEAD, 0.25)],
)  # fmt: skip
def test_off_the_road_is_the_share_of_instants_at_which_a_corner_is(
    planner: Planner, places: list[tuple[float, float]], yaw_deg: float, share: float
) -> None:
    centres = torch.from_numpy(GRID.cell_centres_YX2())
    road = (centres[..., 0] < 16.0) & (centres[..., 1] < 4.0)
    got = off_road(planner, torch.where(road, 40.0, -40.0), *places, yaw_deg=yaw_deg)
    assert got == pytest.approx(share, abs=1e-3)


def test_beyond_the_grid_nothing_is_known_and_nothing_charged(planner: Planner) -> None:
    nowhere = torch.full(GRID.shape, -40.0)
    inside = (45.0, 0.0), (-14.0, 0.0), (0.0, 15.5), (0.0, -15.5)  # a corner of each
    outside = (49.0, 0.0), (-20.0, 0.0), (0.0, 17.0), (0.0, -17.0)
    for place in inside:
        assert off_road(planner, nowhere, place) == pytest.approx(1.0), place
    for place in outside:
        assert off_road(planner, nowhere, place) == 0.0, place
    assert off_road(planner, torch.zeros(GRID.shape), (0.0, 0.0)) == pytest.approx(0.5)  # as likely as not


def straight_ahead() -> Tensor:
    return torch.tensor([1.0, 0.0]).expand(1, 1, STEPS, 2)


@pytest.mark.parametrize(("heading", "offset"), [(0.0, 0.0), (0.1, 0.7), (-0.2, -1.0)])
def test_going_on_as_it_does_is_comfortable(planner: Planner, heading: float, offset: float) -> None:
    velocity = 10.0 * torch.tensor([math.cos(heading), math.sin(heading)])
    sd = (torch.tensor([0.0, offset]) + TIMES[:, None] * velocity)[None, None]
    state = ego(speed=10.0, heading_error=heading, lateral_offset=offset)
    assert float(planner._discomfort(sd, straight_ahead(), state)) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], 0.5),  # -2 m/s^2 all the way, a mean with d, which is still
     ([11.0, 10.0] * 4, 0.5 + 0.3 * 8.0),  # 2 m/s^2 and -2 m/s^2 by turns: 8 m/s^3, (8 / 2)^2 / 2
     ([12.0] * 8, 2.0**2 / 16.0 + 0.3 * 4.0**2 / 14.0)],  # 4 m/s^2 once, and off again: 8 m/s^3 once
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
def test_discomfort_is_the_mean_square_of_acceleration_and_jerk(
    planner: Planner, speeds: list[float], expected: float, axis: int
) -> None:
    """From 10 m/s along the route; sideways the same, from 0."""
    sd = torch.zeros(1, 1, STEPS, 2)
    sd[..., 0] = 10.0 * TIMES
    sd[..., axis] = DT * (torch.tensor(speeds) - 10.0 * axis).cumsum(0)
    discomfort = planner._discomfort(sd, straight_ahead(), ego(speed=10.0))
    assert float(discomfort) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize(
    ("sideways", "cost"),
    [(LATERAL_COMFORT - 0.1, 0.0), (LATERAL_COMFORT + LATERAL_SLACK, 1.0),
     (LATERAL_COMFORT + 2.0 * LATERAL_SLACK, 4.0)],
)  # fmt: skip
def test_a_bend_costs_what_it_asks_for_beyond_comfort(
    planner: Planner, side: float, sideways: float, cost: float
) -> None:
    turn = side * math.asin(sideways * DT / 10.0)  # from step to step, at 10 m/s
    yaws = turn * torch.arange(1, STEPS + 1)
    tangents = torch.stack([yaws.cos(), yaws.sin()], -1)[None, None]
    discomfort = planner._discomfort(along_s(10.0 * TIMES), tangents, ego(speed=10.0))
    assert float(discomfort) == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize(
    ("end", "limit", "lag"),
    [(40.0, 10.0, 0.0), (30.0, 10.0, 0.25), (50.0, 10.0, 0.25), (0.0, 10.0, 1.0),
     (12.0, 0.0, 0.0), (6.0, 1.0, 0.5)],  # a limit of at least 3 m/s
)  # fmt: skip
def test_lag_is_the_share_of_the_way_at_the_limit_that_is_missing(
    planner: Planner, end: float, limit: float, lag: float
) -> None:
    sd = along_s(end * TIMES / TIMES[-1])
    assert float(planner._lag(sd, ego(speed_limit=limit))) == pytest.approx(lag, abs=1e-6)


def test_a_manoeuvre_is_even_braking_to_a_stop_and_a_cubic_to_its_offset() -> None:
    sd = Vocabulary(SMALL)(ego(speed=8.0, lateral_offset=0.6))[0].unflatten(0, (4, 3))
    # -4 m/s^2 from 8 m/s: 8 m in 2 s. 1.5 m/s^2 for 4 s: 32 + 12 m.
    assert sd[0, 1, [0, 1, 3, 7], 0].tolist() == pytest.approx([3.5, 6.0, 8.0, 8.0])
    assert sd[3, 1, -1, 0].item() == pytest.approx(44.0)
    # Half-way in time it is half-way across; from 8 m only 8 tenths of the way are taken.
    assert sd[3, :, -1, 1].tolist() == pytest.approx([-1.8, 0.0, 1.8])
    assert sd[3, :, 3, 1].tolist() == pytest.approx([-0.6, 0.3, 1.2])
    assert sd[0, :, -1, 1].tolist() == pytest.approx([0.6 - 0.8 * 2.4, 0.6 - 0.8 * 0.6, 0.6 + 0.8 * 1.2])


def test_a_manoeuvre_starts_the_way_the_robot_looks() -> None:
    sd = Vocabulary(SMALL)(ego(speed=8.0, heading_error=0.1))[0]
    to_the_middle = sd.unflatten(0, (4, 3))[3, 1, :, 1]
    # h_slope(1/2) = 1/8 of 8 m/s * sin 0.1 * 4 s.
    assert float(to_the_middle[3]) == pytest.approx(4.0 * math.sin(0.1), rel=1e-4)
    assert float(to_the_middle[-1]) == pytest.approx(0.0, abs=1e-5)


def far_from_everybody(planner: Planner) -> tuple[Tensor, Tensor, Tensor]:
    """What a planner says at 8 m/s on a straight road on which nobody is near."""
    o, f = 10, SMALL.num_modes
    found: tuple[Tensor, Tensor, Tensor] = planner(
        bev=torch.randn(1, SMALL.bev_channels, *GRID.shape),
        drivable=torch.full((1, 1, *GRID.shape), 40.0),
        ego_state=ego(speed=8.0, speed_limit=10.0, valid=1.0),
        route=straight_route(),
        objects=torch.randn(1, o, SMALL.token_channels),
        boxes=torch.tensor([[box(99.0, 99.0)] * o]),
        existence=torch.full((1, o), 0.5),
        modes=torch.full((1, o, f), 1.0 / f),
        futures=torch.full((1, o, f, STEPS, 2), 99.0),
        futures_log_var=torch.zeros(1, o, f, STEPS, 2),
    )
    return found


def test_before_anything_is_learned_proposals_are_priced_as_the_expert_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chances of 1/2 at the second instant and at the last of the horizon; from then on all is lost."""
    torch.manual_seed(0)
    planner = Planner(SMALL).requires_grad_(False)
    for head in (planner.score, planner.refine):
        for parameter in head[-1].parameters():
            parameter.zero_()
    hits = torch.zeros(1, SMALL.num_plans, STEPS + len(COAST_S))
    hits[:, 0, [1, STEPS - 1]] = 0.5
    monkeypatch.setattr(planner, "_hits", lambda *_: hits)
    sd, costs, logits = far_from_everybody(planner)
    torch.testing.assert_close(sd, planner.vocabulary(ego(speed=8.0)))

    worth = [math.exp(-t / DISCOUNT_S) for t in SMALL.times_T]
    # Each of two instants stands for half of the 3.5 s in which the robot stops, and for half as much.
    after = [0.5 * 3.5 / 2 / DT * math.exp(-(4.0 + t) / DISCOUNT_S) for t in COAST_S]
    lost = (0.5 * sum(worth[1:7]) + 0.75 * (worth[7] + sum(after))) / sum(worth)
    chance = costs[0, :, COST_TERMS.index("collision")]
    # A score of 0 lowers no odds: it raises them by e^-2, a seventh.
    warning = math.log(1.0 + math.exp(MOST_DOUBT)) - MOST_DOUBT
    for number, met in ((0, lost), (1, SURE_OVERLAP)):
        odds = met / (1.0 - met) * math.exp(warning)
        assert float(chance[number]) == pytest.approx(odds / (1.0 + odds), rel=1e-4)

    collisions = torch.tensor([lost] + [0.0] * (SMALL.num_plans - 1))
    terms = torch.cat([collisions[:, None], costs[0, :, 2:]], 1)
    expected = -(terms * torch.tensor(EXPERT_WEIGHTS)).sum(-1)
    torch.testing.assert_close(logits[0, :, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(costs[0, :, 0], -expected.log_softmax(-1), rtol=1e-4, atol=1e-4)
    drivable, comfort, progress, route = costs[0, 7, 2:].tolist()  # speed kept, to the middle
    assert drivable == pytest.approx(0.0, abs=1e-6) and comfort == pytest.approx(0.0, abs=1e-5)
    assert progress == pytest.approx(0.2) and route == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("learned", [-100.0, -2.0, 100.0])
def test_what_is_learned_lowers_the_odds_of_a_collision_by_no_more_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, learned: float
) -> None:
    torch.manual_seed(0)
    planner = Planner(SMALL)
    with torch.no_grad():
        for parameter in planner.score[-1].parameters():
            parameter.zero_()
        planner.score[-1].bias[1] = learned
    hits = torch.zeros(1, SMALL.num_plans, STEPS + len(COAST_S))
    hits[:, 0] = 0.995  # surely met throughout; more is not said of one instant
    monkeypatch.setattr(planner, "_hits", lambda *_: hits)
    _, _, logits = far_from_everybody(planner)
    sure = math.log((1.0 - SURE_OVERLAP) / SURE_OVERLAP)
    moved = math.log1p(math.exp(learned + MOST_DOUBT)) - MOST_DOUBT  # from -MOST_DOUBT upwards
    risk = logits.detach()[0, :, 1]
    assert sure - 0.7 < float(risk[0]) - moved < sure + 1e-3
    assert float(risk[0]) > 4.0, "who is surely met is met"
    assert float(risk[1]) == pytest.approx(-sure + moved, abs=1e-3)
    logits.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in planner.parameters())
