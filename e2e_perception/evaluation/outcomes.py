"""What an episode came to, in numbers. docs/outcomes.md has the formula and unit of each.

Everything is measured up to and including the step of the first contact: what follows is wreckage.

Legend: T steps, N agents, O still solids on the road, K = N + O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from e2e_perception.core.episodes import EPISODE_STEP_S, EpisodeRecord
from e2e_perception.core.errors import InputError
from e2e_perception.core.rectangles import clearance, robot_rectangle, time_to_collision

Array = NDArray[np.float64]

TTC_HORIZON_S = 5.0
VULNERABLE = ("pedestrian", "cyclist")

# Comfort limits of the nuPlan benchmark (Caesar et al. 2021, nuplan-devkit `ego_is_comfortable`).
MAX_ACCELERATION = 2.40  # [m/s^2]
MIN_ACCELERATION = -4.05  # [m/s^2]
MAX_LATERAL_ACCELERATION = 4.89  # [m/s^2]
MAX_LONGITUDINAL_JERK = 4.13  # [m/s^3]
MAX_JERK = 8.37  # [m/s^3], magnitude
MAX_YAW_RATE = 0.95  # [rad/s]
MAX_YAW_ACCELERATION = 1.93  # [rad/s^2]

# A derivative is the slope of the parabola fitted to this many steps (Savitzky and Golay 1964).
ACCELERATION_WINDOW = 7
JERK_WINDOW = 15


@dataclass(frozen=True)
class Outcome:
    """One episode in one row; units are the suffixes (`mps2` is m/s^2), shares are in [0, 1].

    Attributes:
        scenario, family, seed, difficulty, policy, conditions, failure: As in `EpisodeRecord`.
        steps: Steps that count, the first contact included.
        duration_s: From the first of them to the last.
        success: The goal was reached without contact, without leaving the road and without policy failure.
        goal_reached: Progress reached `goal_s`.
        collision: There was a contact.
        at_fault_collision: There was one that the robot is to blame for.
        collision_pedestrian, collision_cyclist: There was one with such an agent.
        contacts: How many there were.
        contact_class: Of the first; empty if none.
        contact_speed_mps: Of the two against each other at the first; None if none.
        off_road: The robot left the drivable area at some step.
        off_road_share: Share of steps at which it was off.
        policy_failure: `failure` is not empty.
        progress: Share of the way from start to goal, the farthest reached.
        progress_m: The same, metres of route.
        time_to_goal_s: None if it was not reached.
        ttc_p1_s, ttc_p5_s, ttc_p50_s: Percentiles over steps of the least time to collision; infinite: none.
        min_clearance_m: Least distance to anybody or anything on the road; infinite if nobody was there.
        min_clearance_vulnerable_m: The same to pedestrians and cyclists.
        acceleration_max_mps2, deceleration_max_mps2: Strongest, both as positive numbers.
        acceleration_rms_mps2: Longitudinal.
        jerk_p95_mps3, jerk_max_mps3: Of its absolute longitudinal value.
        lateral_acceleration_max_mps2, lateral_acceleration_rms_mps2: Of its absolute value.
        comfort_share: Share of steps within all of nuPlan's comfort limits.
        interventions: How many times the supervisor stepped in.
        intervention_share: Share of steps at which its stop was in force.
        speed_mean_mps: Mean speed.
        speed_excess_mean_mps, speed_excess_max_mps: Above the speed limit; 0 below.
    """

    scenario: str
    family: str
    seed: int
    difficulty: float
    policy: str
    conditions: str
    steps: int
    duration_s: float
    success: bool
    goal_reached: bool
    collision: bool
    at_fault_collision: bool
    collision_pedestrian: bool
    collision_cyclist: bool
    contacts: int
    contact_class: str
    contact_speed_mps: float | None
    off_road: bool
    off_road_share: float
    policy_failure: bool
    failure: str
    progress: float
    progress_m: float
    time_to_goal_s: float | None
    ttc_p1_s: float
    ttc_p5_s: float
    ttc_p50_s: float
    min_clearance_m: float
    min_clearance_vulnerable_m: float
    acceleration_max_mps2: float
    deceleration_max_mps2: float
    acceleration_rms_mps2: float
    jerk_p95_mps3: float
    jerk_max_mps3: float
    lateral_acceleration_max_mps2: float
    lateral_acceleration_rms_mps2: float
    comfort_share: float
    interventions: int
    intervention_share: float
    speed_mean_mps: float
    speed_excess_mean_mps: float
    speed_excess_max_mps: float

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """Why it is no success, in words for people; empty for a success."""
        found = []
        if self.collision:
            blame = "at fault" if self.at_fault_collision else "not at fault"
            speed = "" if self.contact_speed_mps is None else f" at {self.contact_speed_mps:.1f} m/s"
            found.append(f"contact with {self.contact_class}{speed}, {blame}")
        if self.off_road:
            found.append(f"off the road at {100.0 * self.off_road_share:.1f} % of steps")
        if self.policy_failure:
            found.append(f"policy failed: {self.failure}")
        if not self.goal_reached:
            found.append(f"goal not reached, {100.0 * self.progress:.0f} % of the way")
        return tuple(found)


@dataclass(frozen=True)
class Motion:
    """How the robot moved at each of T steps.

    Attributes:
        acceleration_T: Longitudinal [m/s^2], slope of the speed.
        jerk_T: Longitudinal [m/s^3], slope of `acceleration_T`.
        lateral_T: Lateral acceleration of `base_link` [m/s^2], speed times yaw rate.
        comfortable_T: Whether all of nuPlan's limits hold.
    """

    acceleration_T: Array
    jerk_T: Array
    lateral_T: Array
    comfortable_T: NDArray[np.bool_]


def outcome(record: EpisodeRecord) -> Outcome:
    """All figures of one episode.

    Args:
        record: The drive.
    Raises:
        InputError: If the record is empty, has no way to go, names a contact outside itself, or has numbers
            that are not finite.
    """
    _check(record)
    end = _num_counted(record)
    speeds = record.ego_T5[:end, 3]
    progress = record.progress_T[:end]
    arrivals = np.flatnonzero(progress >= record.goal_s)
    way = float(progress.max()) - record.route_start_s
    moved = motion(record.ego_T5[:end])
    clearances_TK = clearances(record)[:end]
    vulnerable_K = np.isin(_class_names(record), VULNERABLE)
    least_ttc_T = times_to_collision(record)[:end].min(axis=1, initial=np.inf)
    # `lower` takes a value that occurred: nothing lies between a finite and an infinite one.
    ttc_p1, ttc_p5, ttc_p50 = np.percentile(least_ttc_T, (1.0, 5.0, 50.0), method="lower")
    off_road = bool(record.off_road_T[:end].any())
    intervened = record.interventions_T[:end].astype(np.int64)
    excess = np.maximum(speeds - record.speed_limit, 0.0)
    classes = {contact.class_name for contact in record.contacts}
    first = record.contacts[0] if record.contacts else None
    return Outcome(
        scenario=record.scenario,
        family=record.family,
        seed=record.seed,
        difficulty=float(record.difficulty),
        policy=record.policy,
        conditions=record.conditions,
        steps=end,
        duration_s=EPISODE_STEP_S * (end - 1),
        success=len(arrivals) > 0 and first is None and not off_road and not record.failure,
        goal_reached=len(arrivals) > 0,
        collision=first is not None,
        at_fault_collision=any(contact.at_fault for contact in record.contacts),
        collision_pedestrian="pedestrian" in classes,
        collision_cyclist="cyclist" in classes,
        contacts=len(record.contacts),
        contact_class="" if first is None else first.class_name,
        contact_speed_mps=None if first is None else float(first.speed),
        off_road=off_road,
        off_road_share=float(record.off_road_T[:end].mean()),
        policy_failure=bool(record.failure),
        failure=record.failure,
        progress=float(np.clip(way / (record.goal_s - record.route_start_s), 0.0, 1.0)),
        progress_m=way,
        time_to_goal_s=float(EPISODE_STEP_S * arrivals[0]) if len(arrivals) else None,
        ttc_p1_s=float(ttc_p1),
        ttc_p5_s=float(ttc_p5),
        ttc_p50_s=float(ttc_p50),
        min_clearance_m=float(clearances_TK.min(initial=np.inf)),
        min_clearance_vulnerable_m=float(clearances_TK[:, vulnerable_K].min(initial=np.inf)),
        acceleration_max_mps2=max(0.0, float(moved.acceleration_T.max())),
        deceleration_max_mps2=max(0.0, -float(moved.acceleration_T.min())),
        acceleration_rms_mps2=_rms(moved.acceleration_T),
        jerk_p95_mps3=float(np.percentile(np.abs(moved.jerk_T), 95.0)),
        jerk_max_mps3=float(np.abs(moved.jerk_T).max()),
        lateral_acceleration_max_mps2=float(np.abs(moved.lateral_T).max()),
        lateral_acceleration_rms_mps2=_rms(moved.lateral_T),
        comfort_share=float(moved.comfortable_T.mean()),
        interventions=int((np.diff(intervened, prepend=0) > 0).sum()),
        intervention_share=float(intervened.mean()),
        speed_mean_mps=float(speeds.mean()),
        speed_excess_mean_mps=float(excess.mean()),
        speed_excess_max_mps=float(excess.max()),
    )


def motion(ego_T5: Array) -> Motion:
    """Accelerations and jerk of a drive.

    Args:
        ego_T5: As in `EpisodeRecord`.
    """
    speed, yaw_rate = ego_T5[:, 3], ego_T5[:, 4]
    acceleration = _slope(speed, ACCELERATION_WINDOW)
    jerk = _slope(acceleration, JERK_WINDOW)
    lateral = speed * yaw_rate
    comfortable = (
        (acceleration > MIN_ACCELERATION)
        & (acceleration < MAX_ACCELERATION)
        & (np.abs(lateral) < MAX_LATERAL_ACCELERATION)
        & (np.abs(jerk) < MAX_LONGITUDINAL_JERK)
        & (np.hypot(jerk, _slope(lateral, JERK_WINDOW)) < MAX_JERK)
        & (np.abs(yaw_rate) < MAX_YAW_RATE)
        & (np.abs(_slope(yaw_rate, JERK_WINDOW)) < MAX_YAW_ACCELERATION)
    )
    return Motion(acceleration, jerk, lateral, comfortable)


def clearances(record: EpisodeRecord) -> Array:
    """Distance between the robot's outline and everybody's at each step.

    Returns:
        (T, K) [m]: agents, then still solids; 0 where they overlap, infinite for agents that are not there.
    """
    others_TK5, _, present_TK = _others(record)
    robot_T5 = robot_rectangle(record.ego_T5[:, :3], record.ego_size)
    return np.where(present_TK, clearance(robot_T5[:, None], others_TK5), np.inf)


def times_to_collision(record: EpisodeRecord) -> Array:
    """When the robot and each other would first overlap, both going straight on at constant velocity.

    Returns:
        (T, K) [s]: agents, then still solids; infinite beyond `TTC_HORIZON_S` and for who is not there.
    """
    others_TK5, velocities_TK2, present_TK = _others(record)
    robot_T5 = robot_rectangle(record.ego_T5[:, :3], record.ego_size)
    yaw, speed, yaw_rate = record.ego_T5[:, 2], record.ego_T5[:, 3], record.ego_T5[:, 4]
    # The centre of a turning robot also moves sideways.
    sideways = yaw_rate * record.ego_size[2]
    c, s = np.cos(yaw), np.sin(yaw)
    velocity_T2 = np.stack([speed * c - sideways * s, speed * s + sideways * c], axis=-1)
    times = time_to_collision(
        robot_T5[:, None], velocity_T2[:, None], others_TK5, velocities_TK2, horizon=TTC_HORIZON_S
    )
    return np.where(present_TK, times, np.inf)


def _others(record: EpisodeRecord) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Outlines (T, K, 5), velocities (T, K, 2) and presence (T, K) of agents and still solids."""
    num_steps, num_solids = len(record.ego_T5), len(record.obstacles_O5)
    # Whoever is not there may be nowhere; numbers in his place keep the arithmetic quiet.
    there = record.present_TN[..., None]
    sizes_TN2 = np.broadcast_to(record.sizes_N3[:, :2], (*record.present_TN.shape, 2))
    agents_TN5 = np.concatenate([np.where(there, record.agents_TN3, 0.0), sizes_TN2], axis=-1)
    solids_TO5 = np.broadcast_to(record.obstacles_O5.reshape(-1, 5), (num_steps, num_solids, 5))
    velocities_TN2 = np.where(there, record.velocities_TN2, 0.0)
    return (
        np.concatenate([agents_TN5, solids_TO5], axis=1),
        np.concatenate([velocities_TN2, np.zeros((num_steps, num_solids, 2))], axis=1),
        np.concatenate([record.present_TN, np.ones((num_steps, num_solids), bool)], axis=1),
    )


def _class_names(record: EpisodeRecord) -> list[str]:
    return [*record.class_names_N, *["obstacle"] * len(record.obstacles_O5)]


def _num_counted(record: EpisodeRecord) -> int:
    return min([len(record.ego_T5), *[contact.step + 1 for contact in record.contacts]])


def _slope(values_T: Array, window: int) -> Array:
    """Derivative by time; short drives get a shorter window, two steps a difference, one step zero."""
    num_steps = len(values_T)
    if num_steps < 3:
        return np.gradient(values_T, EPISODE_STEP_S) if num_steps == 2 else np.zeros(num_steps)
    window = min(window, num_steps - 1 + num_steps % 2)  # odd
    slope: Array = savgol_filter(values_T, window, polyorder=2, deriv=1, delta=EPISODE_STEP_S)
    return slope


def _rms(values: Array) -> float:
    return math.sqrt(float(np.mean(values**2)))


def _check(record: EpisodeRecord) -> None:
    where = f"episode {record.scenario} of {record.policy}"
    if len(record.ego_T5) == 0:
        raise InputError(f"{where}: it has no steps, expected at least one")
    if not record.goal_s > record.route_start_s:
        raise InputError(
            f"{where}: the goal at {record.goal_s} m is not beyond the start at {record.route_start_s} m"
        )
    for name, values in (
        ("ego_T5", record.ego_T5),
        ("progress_T", record.progress_T),
        ("agents_TN3 where present", record.agents_TN3[record.present_TN]),
        ("velocities_TN2 where present", record.velocities_TN2[record.present_TN]),
        ("sizes_N3", record.sizes_N3),
        ("obstacles_O5", record.obstacles_O5),
    ):
        if not np.isfinite(values).all():
            raise InputError(
                f"{where}: {name} has values that are not finite; the recording is broken, drive again"
            )
    for contact in record.contacts:
        if not (0 <= contact.step < len(record.ego_T5) and -1 <= contact.agent < len(record.class_names_N)):
            raise InputError(
                f"{where}: contact with agent {contact.agent} at step {contact.step}, expected one of "
                f"{len(record.class_names_N)} agents (or -1) and {len(record.ego_T5)} steps"
            )
