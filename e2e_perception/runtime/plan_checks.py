"""What a plan must satisfy: limits of motion, and no collision that a stop prevents.

Legend: P plan steps, L path points, N tracks, T instants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.config import SupervisorConfig
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_motion import along_path, points_at, stop_distances

Array = NDArray[np.float64]

CHECK_STEP_S = 0.1  # [s] between instants of the collision check
ROUNDING = 1e-6  # [m/s^2]
PUSH_DISTANCE = 0.5  # [m] a plan may advance although a box ahead touches the robot


@dataclass(frozen=True)
class EgoFootprint:
    """The robot's outline on the ground, see `Rig`: length, width, centre ahead of `base_link` [m]."""

    length: float
    width: float
    center_x: float


@dataclass(frozen=True)
class PlanVerdict:
    """Whether a plan may be driven.

    Attributes:
        accepted: False: stop instead.
        reasons: What was found; may be non-empty for an accepted plan.
        deceleration: How hard to stop instead [m/s^2]; 0 if accepted.
        path_usable: Whether that stop may follow the plan's path.
    """

    accepted: bool
    reasons: tuple[str, ...] = ()
    deceleration: float = 0.0
    path_usable: bool = True


def check_plan(
    plan: Plan, tracks: Tracks | None, speed: float, footprint: EgoFootprint, config: SupervisorConfig
) -> PlanVerdict:
    """Judge a plan.

    Args:
        plan: In the base frame of this frame.
        tracks: Of the same frame; only confirmed ones count. None: nothing to collide with is known.
        speed: Present speed [m/s].
        footprint: The robot.
        config: Limits.
    Returns:
        The verdict. A collision within `collision_horizon_s` rejects the plan if a stop avoids, delays or
        softens it; one that a stop would not help against (someone runs into the robot) is only reported.
    """
    gentle = min(config.stop_deceleration, config.max_deceleration)
    problems = _motion_problems(plan, config)
    if problems:
        return PlanVerdict(False, problems, gentle, path_usable=False)
    if tracks is None:
        return PlanVerdict(True)

    first_N = _first_overlaps(plan, tracks, footprint)
    pushed = _pushed(plan, tracks, first_N, footprint, config)
    if pushed:
        return PlanVerdict(False, pushed, config.max_deceleration)
    soon = np.flatnonzero((first_N > 0.0) & (first_N <= config.collision_horizon_s))  # at 0 s it has happened
    if len(soon) == 0:
        return PlanVerdict(True)
    times = _instants(plan.times_P[-1])
    path = np.concatenate([np.zeros((1, 2)), plan.points_P2])

    def first_when_stopping(deceleration: float) -> Array:
        points, yaws = along_path(path, stop_distances(max(speed, 0.0), deceleration, times))
        return _first_of(times, _overlaps_NT(points, yaws, times, tracks, footprint))

    gently, hardest = first_when_stopping(gentle), first_when_stopping(config.max_deceleration)
    # Braking for what lies ahead at least softens the blow, even where it gains less than an instant.
    ahead_N = tracks.boxes.centers_N3[:, 0] > footprint.center_x
    helps_N = (hardest > first_N) | (ahead_N & (hardest == first_N))
    helped = soon[helps_N[soon]]
    reasons = tuple(
        f"plan meets {CLASSES[tracks.boxes.class_ids_N[n]]} {tracks.boxes.ids_N[n]} in {first_N[n]:.1f} s"
        + ("" if helps_N[n] else ", a stop would not help")
        for n in soon
    )
    if len(helped) == 0:
        return PlanVerdict(True, reasons)
    enough = bool(np.isinf(gently[helped]).all())
    return PlanVerdict(False, reasons, gentle if enough else config.max_deceleration)


def _pushed(
    plan: Plan, tracks: Tracks, first_N: Array, footprint: EgoFootprint, config: SupervisorConfig
) -> tuple[str, ...]:
    """Tracks right ahead that touch the robot already, if the plan moves on into them.

    Boxes are uncertain by decimetres, so a robot in a queue may stand in one; it must not drive into it.
    """
    advance = float(np.interp(config.collision_horizon_s, [0.0, *plan.times_P], [0.0, *plan.points_P2[:, 0]]))
    if advance < PUSH_DISTANCE:
        return ()
    centers = tracks.boxes.centers_N3
    ahead_N = (centers[:, 0] > footprint.center_x + 0.5 * footprint.length) & (
        np.abs(centers[:, 1]) < 0.5 * footprint.width
    )
    # Who drives away faster than the plan follows is no obstacle.
    leaves_N = tracks.boxes.velocities_N2[:, 0] * config.collision_horizon_s > advance
    return tuple(
        f"plan drives into {CLASSES[tracks.boxes.class_ids_N[n]]} {tracks.boxes.ids_N[n]}, touched already"
        for n in np.flatnonzero((first_N == 0.0) & ahead_N & ~leaves_N)
    )


def _motion_problems(plan: Plan, config: SupervisorConfig) -> tuple[str, ...]:
    if not plan.is_finite:
        return ("plan is not finite",)
    problems = []
    braking = float(-plan.accelerations_P.min())
    if braking > config.max_deceleration + ROUNDING:
        problems.append(
            f"plan brakes at {braking:.1f} m/s^2, more than the allowed {config.max_deceleration:.1f}"
        )
    turning = np.abs(np.diff(np.concatenate([[0.0], plan.yaws_P]))) / np.diff(
        np.concatenate([[0.0], plan.times_P])
    )
    lateral = float((turning * plan.speeds_P).max())
    if lateral > config.max_lateral_acceleration + ROUNDING:
        problems.append(
            f"plan turns at {lateral:.1f} m/s^2, more than the allowed {config.max_lateral_acceleration:.1f}"
        )
    return tuple(problems)


def _instants(horizon: float) -> Array:
    return np.asarray(np.arange(0.0, horizon + 0.5 * CHECK_STEP_S, CHECK_STEP_S), np.float64)


def _first_overlaps(plan: Plan, tracks: Tracks, footprint: EgoFootprint) -> Array:
    times = _instants(plan.times_P[-1])
    points = points_at(plan, times)
    yaws = np.interp(times, np.concatenate([[0.0], plan.times_P]), np.concatenate([[0.0], plan.yaws_P]))
    return _first_of(times, _overlaps_NT(points, yaws, times, tracks, footprint))


def _first_of(times: Array, overlaps_NT: NDArray[np.bool_]) -> Array:
    """Time of the first overlap per track (N,) [s]; infinite if there is none."""
    first: Array = np.full(len(overlaps_NT), np.inf)
    meets_N = overlaps_NT.any(axis=1)
    first[meets_N] = times[overlaps_NT[meets_N].argmax(axis=1)]
    return first


def _overlaps_NT(
    points_T2: Array, yaws_T: Array, times: Array, tracks: Tracks, footprint: EgoFootprint
) -> NDArray[np.bool_]:
    """Whether the robot's footprint meets each confirmed track's on its likeliest future: (N, T).

    Separating axes of two rectangles: they are apart if and only if they are along an axis of one of them.
    """
    n = len(tracks)
    boxes = tracks.boxes
    likeliest = tracks.mode_probabilities_NM.argmax(1)
    future = tracks.futures_NMT2[np.arange(n), likeliest].astype(np.float64)
    start = boxes.centers_N3[:, None, :2].astype(np.float64)
    knots = np.concatenate([[0.0], tracks.times_T])
    path = np.concatenate([start, future], axis=1)
    i = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    f = ((np.clip(times, 0.0, knots[-1]) - knots[i]) / (knots[i + 1] - knots[i]))[None, :, None]
    centers_NT2 = (1.0 - f) * path[:, i] + f * path[:, i + 1]

    ego_axis = np.stack([np.cos(yaws_T), np.sin(yaws_T)], -1)
    gap = centers_NT2 - (points_T2 + footprint.center_x * ego_axis)[None]
    cosine, sine = np.cos(boxes.yaws_N)[:, None], np.sin(boxes.yaws_N)[:, None]
    cos_rel = np.abs(cosine * ego_axis[:, 0] + sine * ego_axis[:, 1])
    sin_rel = np.abs(cosine * ego_axis[:, 1] - sine * ego_axis[:, 0])
    half_l, half_w = boxes.sizes_N3[:, None, 0] / 2.0, boxes.sizes_N3[:, None, 1] / 2.0
    ego_l, ego_w = footprint.length / 2.0, footprint.width / 2.0
    in_track = (
        np.abs(cosine * gap[..., 0] + sine * gap[..., 1]) < half_l + cos_rel * ego_l + sin_rel * ego_w
    ) & (np.abs(cosine * gap[..., 1] - sine * gap[..., 0]) < half_w + sin_rel * ego_l + cos_rel * ego_w)
    along = np.abs((gap * ego_axis).sum(-1))
    across = np.abs(ego_axis[:, 0] * gap[..., 1] - ego_axis[:, 1] * gap[..., 0])
    in_ego = (along < ego_l + cos_rel * half_l + sin_rel * half_w) & (
        across < ego_w + sin_rel * half_l + cos_rel * half_w
    )
    return np.asarray(in_track & in_ego & tracks.confirmed_N[:, None])
