"""The geometry of plans: speeds along points, a plan carried on in time, a stop along a path.

Legend: P plan steps, L path points, C proposals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.trajectories import Plan

Array = NDArray[np.float64]

STANDING = 0.1  # [m] moved over two steps; less has no direction


def motion_along(points_P2: Array, times_P: Array, speed: float) -> tuple[Array, Array, Array]:
    """Yaw, speed and acceleration at each point of a path that starts at the origin of the base frame.

    Central differences, exact for constant acceleration. A speed is at most twice the mean speed of the steps
    next to it, as it must be if it changes linearly and never reverses; so a plan that stands has speed zero.

    Args:
        points_P2: (P, 2) [m], base frame, P >= 2.
        times_P: (P,) [s] after the frame, rising, from > 0.
        speed: Present speed [m/s]; the first acceleration leads from it.
    Returns:
        Yaws (P,) [rad], continuous from 0; speeds (P,) [m/s], >= 0; accelerations (P,) [m/s^2], each over
        the step that ends at the point.
    """
    path = np.concatenate([np.zeros((1, 2)), points_P2])
    times = np.concatenate([[0.0], times_P])
    steps = np.diff(path, axis=0)
    durations = np.diff(times)
    means = np.linalg.norm(steps, axis=1) / durations
    across = np.concatenate([path[2:] - path[:-2], steps[-1:]])
    spans = np.concatenate([times[2:] - times[:-2], durations[-1:]])
    lengths = np.linalg.norm(across, axis=1)

    speeds = lengths / spans
    speeds = np.minimum(speeds, 2.0 * means)
    speeds[:-1] = np.minimum(speeds[:-1], 2.0 * means[1:])
    speeds[-1] = np.clip(2.0 * means[-1] - speeds[-2], 0.0, None)
    accelerations = np.diff(np.concatenate([[speed], speeds])) / durations

    yaws = np.zeros(len(points_P2))
    yaw = 0.0
    for k, (direction, length) in enumerate(zip(across, lengths, strict=True)):
        if length > STANDING:
            yaw += float(wrap_angle(np.arctan2(direction[1], direction[0]) - yaw))
        yaws[k] = yaw
    return yaws, speeds, accelerations


def points_at(plan: Plan, seconds: Array) -> Array:
    """Points (..., 2) [m] of a plan at times after its stamp, in its own base frame.

    Linear between its points (from the origin at 0 s); past the last one at the last speed and heading.
    """
    times = np.concatenate([[0.0], plan.times_P])
    path = np.concatenate([np.zeros((1, 2)), plan.points_P2])
    inside = np.clip(seconds, 0.0, times[-1])
    points = np.stack([np.interp(inside, times, path[:, 0]), np.interp(inside, times, path[:, 1])], -1)
    yaw, speed = plan.yaws_P[-1], plan.speeds_P[-1]
    beyond = np.maximum(np.asarray(seconds) - times[-1], 0.0) * speed
    return np.asarray(points + beyond[..., None] * np.array([np.cos(yaw), np.sin(yaw)]))


def carried_on(plan: Plan, stamp_ns: int, base_from_plan: SE2) -> Plan:
    """An earlier plan as seen from a later frame: the same motion, the same reasons.

    Args:
        plan: From an earlier stamp.
        stamp_ns: The later stamp [ns].
        base_from_plan: The later base frame from that at `plan.stamp_ns`.
    Returns:
        The plan at the later stamp and the same `times_P`; past its end it goes on at its last speed.
    """
    elapsed = (stamp_ns - plan.stamp_ns) * 1e-9
    seconds = plan.times_P + elapsed
    inside = np.clip(seconds, plan.times_P[0], plan.times_P[-1])
    yaws = np.interp(inside, plan.times_P, plan.yaws_P) + base_from_plan.yaw
    accelerations = np.interp(inside, plan.times_P, plan.accelerations_P)
    return Plan(
        stamp_ns=stamp_ns,
        times_P=plan.times_P,
        points_P2=base_from_plan.apply(points_at(plan, seconds)),
        yaws_P=yaws,
        speeds_P=np.interp(inside, plan.times_P, plan.speeds_P),
        accelerations_P=np.where(seconds > plan.times_P[-1], 0.0, accelerations),
        candidate=plan.candidate,
        costs=plan.costs,
        runner_up=plan.runner_up,
        runner_up_costs=plan.runner_up_costs,
        route_assumed=plan.route_assumed,
    )


def along_path(path_L2: Array, distances: Array) -> tuple[Array, Array]:
    """Points and headings at distances along a polyline.

    Past its end it goes straight on; without length, straight ahead.

    Args:
        path_L2: (L, 2) [m].
        distances: (P,) [m], >= 0.
    Returns:
        (P, 2) [m] and (P,) [rad].
    """
    steps = np.linalg.norm(np.diff(path_L2, axis=0), axis=1)
    path = path_L2[np.concatenate([[True], steps > 1e-3])]
    if len(path) < 2:
        path = np.concatenate([path_L2[:1], path_L2[:1] + np.array([[1.0, 0.0]])])
    along = np.diff(path, axis=0)
    lengths = np.linalg.norm(along, axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    i = np.clip(np.searchsorted(starts, distances, side="right") - 1, 0, len(along) - 1)
    tangents = along[i] / lengths[i, None]
    points = path[i] + tangents * (distances - starts[i])[:, None]
    return points, np.unwrap(np.arctan2(tangents[:, 1], tangents[:, 0]))


def stop_distances(speed: float, deceleration: float, times: Array) -> Array:
    """Distance covered [m] at `times` [s] when braking constantly from `speed` [m/s] to a standstill."""
    braking = np.minimum(times, speed / deceleration)
    return np.asarray(speed * braking - 0.5 * deceleration * braking**2)
