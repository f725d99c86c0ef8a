"""What proposals cost when the futures of all others are known: the network's cost terms, with truth in them.

Legend: C proposals, T instants, N agents, O still obstacles, K cost terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from e2e_perception.core.network_config import COST_TERMS
from e2e_perception.core.rectangles import overlap
from e2e_perception.core.trajectories import Route
from e2e_perception.runtime.plan_checks import EgoFootprint

Array = NDArray[np.float64]

TERMS = tuple(term for term in COST_TERMS if term != "imitation")
MARGIN = 0.35  # [m] around others that is kept free where there is room
MARGIN_SHARE = 0.15  # of a collision's cost; twice that for those who walk or cycle
ON_FOOT, MARGIN_ON_FOOT = 1.0, 0.9  # [m] narrower than this it is no car, and more is kept free
REAR_SHARE = 0.1  # of a collision's cost if somebody would run into the robot from behind
DISCOUNT_S = 4.0  # later collisions cost less, exp(-t / DISCOUNT_S), as in the network
STOPPING = 4.0  # [m/s^2] at which the robot has to be able to stop after the horizon
COAST_S = 4.0  # [s] after the horizon within which it has to have stopped
ALONG, SLOW = 0.85, 1.5  # cosine between headings, [m/s]: who is expected to go on as it does
COMFORT_ACCELERATION, COMFORT_JERK = 2.0, 2.0  # [m/s^2], [m/s^3] at which each costs 1
BEND = 4.0  # [m] over which the route's curvature is taken
LATERAL_COMFORT, LATERAL_SLACK = 2.2, 0.4  # [m/s^2] sideways that costs nothing, and the excess that costs 1
MIN_SPEED_LIMIT = 3.0  # [m/s]


@dataclass(frozen=True)
class Weights:
    """Of each term; a collision outweighs everything else together."""

    collision: float = 200.0
    drivable: float = 40.0
    comfort: float = 0.12
    progress: float = 3.0
    route: float = 0.6

    @property
    def array_K(self) -> Array:
        """In the order of `TERMS`."""
        return np.array([getattr(self, term) for term in TERMS])


@dataclass(frozen=True)
class Others:
    """Everybody's futures on an even grid of instants.

    Attributes:
        step: Between instants, the first of which is one step from now [s].
        boxes_TN5: (T, N, 5) x, y [m], yaw [rad], length, width [m], odom.
        obstacles_O5: Still ones.
        behind_N: Whether each is behind the robot now, on its way: it will mind the robot.
    """

    step: float
    boxes_TN5: Array
    obstacles_O5: Array
    behind_N: NDArray[np.bool_]


def cost_table(
    sd_CT2: Array,
    *,
    route: Route,
    start_s: float,
    speed: float,
    speed_limit: float,
    others: Others,
    footprint: EgoFootprint,
    area: shapely.Geometry,
) -> Array:
    """Price proposals term by term.

    Args:
        sd_CT2: (C, T, 2) s from now on and d [m], at the instants of `others`.
        route: Odom frame.
        start_s: The robot's arc length now [m].
        speed: Its speed now [m/s].
        speed_limit: [m/s]
        others: Who is there.
        footprint: The robot.
        area: See `world.drivable_area`.
    Returns:
        (C, K), columns `TERMS`, unweighted: discounted share of time in collision (a collision while coming
        to a stop after the horizon counts half); share of instants off the road; mean squares of
        acceleration, jerk, and of what a bend asks for beyond comfort; shortfall of the distance at the
        limit; mean distance from the route [m].
    """
    num, steps = sd_CT2.shape[:2]
    rectangles_CU5, times_U = _robot(sd_CT2, route, start_s, others.step, footprint)
    weights_U = np.exp(-times_U / DISCOUNT_S)
    weights_U[steps:] *= 0.5
    weights_U /= weights_U[:steps].sum()
    hits_CU = _collisions(rectangles_CU5, others, steps)
    # From the first hit on, everything is lost.
    lost_CU = np.logical_or.accumulate(hits_CU >= 1.0, axis=1)
    collision = np.maximum(hits_CU, lost_CU) @ weights_U

    corners = _corners(rectangles_CU5[:, :steps])
    inside = shapely.intersects_xy(area, corners[..., 0], corners[..., 1]).all(axis=-1)
    drivable = 1.0 - inside.mean(axis=1)

    motion = np.concatenate([np.broadcast_to([0.0, 0.0], (num, 1, 2)), sd_CT2], axis=1)
    motion[:, 0, 1] = sd_CT2[:, 0, 1]
    velocity = np.diff(motion, axis=1) / others.step
    velocity = np.concatenate([np.broadcast_to([speed, 0.0], (num, 1, 2)), velocity], axis=1)
    acceleration = np.diff(velocity, axis=1)[:, 1:] / others.step
    jerk = np.diff(acceleration, axis=1) / others.step
    comfort = np.square(acceleration / COMFORT_ACCELERATION).mean(axis=(1, 2))
    comfort += 0.3 * np.square(np.clip(jerk, -20.0, 20.0) / COMFORT_JERK).mean(axis=(1, 2))

    _, before = route.at(start_s + sd_CT2[..., 0] - BEND / 2.0)
    _, after = route.at(start_s + sd_CT2[..., 0] + BEND / 2.0)
    turn = np.arcsin(np.clip(before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0], -1.0, 1.0))
    sideways = np.abs(turn) / BEND * velocity[:, 1:, 0] ** 2
    comfort += np.square(np.maximum(sideways - LATERAL_COMFORT, 0.0) / LATERAL_SLACK).mean(axis=1)

    wanted = max(speed_limit, MIN_SPEED_LIMIT) * others.step * steps
    progress = np.abs(wanted - sd_CT2[:, -1, 0]) / wanted
    away = np.abs(sd_CT2[..., 1]).mean(axis=1)
    return np.stack([collision, drivable, comfort, progress, away], axis=1)


def _robot(
    sd_CT2: Array, route: Route, start_s: float, step: float, footprint: EgoFootprint
) -> tuple[Array, Array]:
    """(C, U, 5) the robot's rectangles at (U,) [s]: along the proposal, then coming to a stop."""
    steps = sd_CT2.shape[1]
    last = sd_CT2[:, -1]
    end_speed = np.maximum(sd_CT2[:, -1, 0] - sd_CT2[:, -2, 0], 0.0) / step
    coast = np.arange(step, COAST_S + 1e-9, step)
    braking = np.minimum(coast[None], end_speed[:, None] / STOPPING)
    rest_s = last[:, :1] + end_speed[:, None] * braking - 0.5 * STOPPING * braking**2
    rest = np.stack([rest_s, np.broadcast_to(last[:, 1:], rest_s.shape)], axis=-1)
    sd = np.concatenate([sd_CT2, rest], axis=1)
    points, tangents = route.at(start_s + sd[..., 0])
    normals = np.stack([-tangents[..., 1], tangents[..., 0]], axis=-1)
    points = points + normals * sd[..., 1:]
    ds = np.gradient(sd[..., 0], axis=1)
    dd = np.gradient(sd[..., 1], axis=1)
    slant = np.where(ds > 0.05, np.arctan2(dd, np.maximum(ds, 0.05)), 0.0)
    yaw = np.arctan2(tangents[..., 1], tangents[..., 0]) + slant
    center = points + footprint.center_x * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    size = np.broadcast_to([footprint.length, footprint.width], center.shape)
    times = np.asarray(step * np.arange(1, steps + len(coast) + 1), np.float64)
    return np.concatenate([center, yaw[..., None], size], axis=-1), times


def _collisions(rectangles_CU5: Array, others: Others, steps: int) -> Array:
    """(C, U), 1 where the robot hits somebody, less where it comes too near or is run into."""
    num, instants = rectangles_CU5.shape[:2]
    boxes = others.boxes_TN5
    if len(boxes) < instants:
        # After the horizon everybody goes on as at its end. That says something of those who stand or drive
        # along with the robot; where others go who cross or turn, nobody knows.
        last, before = boxes[-1].copy(), boxes[-2]
        motion = np.zeros_like(last)
        motion[:, :2] = last[:, :2] - before[:, :2]
        heading = rectangles_CU5[:, steps - 1, 2].mean()
        along = np.cos(last[:, 2] - heading) > ALONG
        slow = np.hypot(motion[:, 0], motion[:, 1]) < SLOW * others.step
        last[~along & ~slow, :2] = 1e6
        ahead = np.arange(1, instants - len(boxes) + 1)[:, None, None]
        boxes = np.concatenate([boxes, last[None] + ahead * motion[None]])
    still = np.broadcast_to(others.obstacles_O5, (instants, *others.obstacles_O5.shape))
    boxes = np.concatenate([boxes[:instants], still], axis=1)
    hits = np.zeros((num, instants))
    centers = rectangles_CU5[..., :2]
    low, high = centers.min(axis=0), centers.max(axis=0)  # (U, 2)
    reach = 0.5 * np.hypot(boxes[..., 3], boxes[..., 4]) + 8.0
    near = (
        (boxes[..., :2] > low[:, None] - reach[..., None])
        & (boxes[..., :2] < high[:, None] + reach[..., None])
    ).all(-1)
    u, n = np.nonzero(near)
    if len(u) == 0:
        return hits
    delta = centers[:, u] - boxes[u, n, :2][None]
    c, k = np.nonzero((delta**2).sum(-1) < reach[u, n][None] ** 2)
    if len(c) == 0:
        return hits
    u, n = u[k], n[k]
    robot, other = rectangles_CU5[c, u], boxes[u, n]
    # Between two instants the robot may pass what hardly moves altogether: there, all it covers counts.
    before = rectangles_CU5[c, np.maximum(u - 1, 0), :2]
    moved = np.where(u > 0, np.hypot(*(robot[:, :2] - before).T), 0.0)
    other_before = boxes[np.maximum(u - 1, 0), n, :2]
    is_slow = np.hypot(*(other[:, :2] - other_before).T) < SLOW * others.step
    covered = np.where(is_slow, np.minimum(moved, 20.0), 0.0)
    robot[:, 0] -= 0.5 * covered * np.cos(robot[:, 2])
    robot[:, 1] -= 0.5 * covered * np.sin(robot[:, 2])
    robot[:, 3] += covered
    touching = overlap(robot, other)
    wider = other.copy()
    on_foot = other[:, 4] < ON_FOOT
    wider[:, 3:] += 2.0 * np.where(on_foot, MARGIN_ON_FOOT, MARGIN)[:, None]
    near_share = np.where(on_foot, 2.0 * MARGIN_SHARE, MARGIN_SHARE)
    cost = np.where(touching, 1.0, np.where(overlap(robot, wider), near_share, 0.0))
    from_behind = np.zeros(boxes.shape[1], np.bool_)
    from_behind[: len(others.behind_N)] = others.behind_N
    cost = np.where(from_behind[n], REAR_SHARE * cost, cost)
    np.maximum.at(hits, (c, u), cost)
    return hits


def _corners(rectangles: Array) -> Array:
    """(..., 4, 2) [m]"""
    x, y, yaw, length, width = np.moveaxis(rectangles, -1, 0)
    along = 0.5 * length[..., None] * np.array([1.0, 1.0, -1.0, -1.0])
    across = 0.5 * width[..., None] * np.array([1.0, -1.0, -1.0, 1.0])
    c, s = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    return np.stack([x[..., None] + c * along - s * across, y[..., None] + s * along + c * across], axis=-1)
