"""Who may drive: the expert, controls that know more or less than the network, and the stack itself.

| policy | knows | drives |
| --- | --- | --- |
| `expert` | everything, and the true futures | proposals priced with truth, see `expert` |
| `ground-truth-planner` | true boxes and velocities now | the same, but futures at constant velocity |
| `idm` | who is in its way now | follows the route by IDM; no right of way, nobody on foot beside the lane |
| `blind` | the route and its own motion | follows the route at the speed limit, slower in bends |
| `constant-velocity` | its own motion at the start | goes on with the same speed and yaw rate |
| `stop` | nothing | brakes to a standstill |
| `bundle:PATH` | what the sensors measure | the stack that runs on the robot |
| `classical:PATH` | what that stack's network detects | Kalman tracks, then as `ground-truth-planner` |
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import SIZES
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.runtime.plan_motion import motion_along, stop_distances
from e2e_perception.simulation.expert import Expert
from e2e_perception.simulation.traffic_world import TrafficWorld
from e2e_perception.simulation.world import World

Array = NDArray[np.float64]

TIMES = SIZES["tiny"].times_T
RULE_HORIZON, RULE_STEP = 2.0, 0.2  # [s] that a rule-based driver is looked at ahead
STOP_BRAKING = 3.0  # [m/s^2]
BLIND_ACCELERATION = 1.5  # [m/s^2] towards the limit
BLIND_BRAKING = 1.5  # [m/s^2] before a bend
BEND_COMFORT = 2.0  # [m/s^2] to the side


class Policy(Protocol):
    """Somebody who is asked for a plan ten times a second.

    Attributes:
        period_ns: How often it wants to be asked [ns].
    """

    period_ns: int

    def plan(self, ego: EgoState) -> Plan | None:
        """The plan from here on, or None: the one before stays in force.

        Args:
            ego: The robot now.
        """
        ...


class ExpertPolicy:
    """See the module."""

    period_ns = 200_000_000

    def __init__(self, world: World, footprint: EgoFootprint, *, knows_futures: bool = True) -> None:
        self.expert = Expert(world, footprint, knows_futures=knows_futures)
        if not knows_futures:
            self.period_ns = 100_000_000

    def plan(self, ego: EgoState) -> Plan | None:
        """See `Policy`."""
        return self.expert.decide(ego).plan


class IdmPolicy:
    """See the module."""

    period_ns = 200_000_000

    def __init__(self, world: World) -> None:
        if not isinstance(world, TrafficWorld):
            raise InputError(f"policy idm drives simulated traffic only, not {world.name}; use another one")
        self._world = world

    def plan(self, ego: EgoState) -> Plan | None:
        """See `Policy`."""
        return rule_plan(self._world, ego, heeds_priority=False, heeds_walkers=False, cautious=False)


def rule_plan(world: TrafficWorld, ego: EgoState, **driver: Any) -> Plan:
    """What one of the world's own drivers would do in the robot's place.

    Args:
        world: Known up to `ego.stamp_ns`.
        ego: The robot now.
        **driver: What that driver does not heed, see `TrafficWorld.imagine`.
    """
    imagined = world.imagine(ego, RULE_HORIZON, RULE_STEP, **driver)
    assert imagined.ego_T4 is not None
    pose = ego.odom_from_base.planar_part()
    path = np.concatenate([[[pose.x, pose.y]], imagined.ego_T4[:, :2]])
    grid = np.concatenate([[0.0], imagined.times_T])
    inside = np.minimum(TIMES, RULE_HORIZON)
    points = np.stack([np.interp(inside, grid, path[:, k]) for k in (0, 1)], axis=-1)
    yaw, speed = imagined.ego_T4[-1, 2:]
    beyond = np.maximum(TIMES - RULE_HORIZON, 0.0)[:, None] * speed
    points = points + beyond * np.array([np.cos(yaw), np.sin(yaw)])
    return plan_through(pose.inverse().apply(points), ego)


class BlindPolicy:
    """See the module."""

    period_ns = 100_000_000

    def __init__(self, world: World) -> None:
        self._world = world
        self._s: float | None = None

    def plan(self, ego: EgoState) -> Plan | None:
        """See `Policy`."""
        route, limit = self._world.route, self._world.speed_limit
        pose = ego.odom_from_base.planar_part()
        self._s, d = route.project((pose.x, pose.y), self._s)
        s = self._ahead(ego.speed, limit)
        points, tangents = route.at(self._s + s)
        normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=-1)
        points = points + normals * (d * np.exp(-TIMES / 1.0))[:, None]
        return plan_through(pose.inverse().apply(points), ego)

    def _ahead(self, speed: float, limit: float) -> Array:
        """(P,) [m]: how far it gets, slowing down for the route's bends as it has to know them."""
        assert self._s is not None
        step = 0.1
        stations = self._s + np.arange(0.0, 4.5 * limit + 10.0, 2.0)
        _, tangents = self._world.route.at(np.stack([stations - 2.0, stations + 2.0]))
        turn = np.arcsin(
            np.clip(tangents[0, :, 0] * tangents[1, :, 1] - tangents[0, :, 1] * tangents[1, :, 0], -1.0, 1.0)
        )
        allowed = np.minimum(limit, np.sqrt(BEND_COMFORT / np.maximum(np.abs(turn) / 4.0, 1e-6)))
        for k in range(len(allowed) - 2, -1, -1):
            allowed[k] = min(allowed[k], np.sqrt(allowed[k + 1] ** 2 + 2.0 * BLIND_BRAKING * 2.0))
        way, ahead = [0.0], 0.0
        for _ in range(round(TIMES[-1] / step)):
            wanted = float(np.interp(self._s + ahead, stations, allowed))
            speed += float(np.clip(wanted - speed, -2.0 * BLIND_BRAKING * step, BLIND_ACCELERATION * step))
            ahead += max(speed, 0.0) * step
            way.append(ahead)
        return np.interp(TIMES, step * np.arange(len(way)), way)


class ConstantVelocityPolicy:
    """See the module."""

    period_ns = 100_000_000

    def __init__(self, world: World) -> None:
        self._speed, self._yaw_rate = world.start.speed, world.start.yaw_rate

    def plan(self, ego: EgoState) -> Plan | None:
        """See `Policy`."""
        turned = self._yaw_rate * TIMES
        way = self._speed * TIMES
        if abs(self._yaw_rate) > 1e-4:
            radius = self._speed / self._yaw_rate
            points = np.stack([radius * np.sin(turned), radius * (1.0 - np.cos(turned))], axis=-1)
        else:
            points = np.stack([way, np.zeros_like(way)], axis=-1)
        return plan_through(points, ego)


class StopPolicy:
    """See the module."""

    period_ns = 100_000_000

    def plan(self, ego: EgoState) -> Plan | None:
        """See `Policy`."""
        way = stop_distances(ego.speed, STOP_BRAKING, TIMES)
        return plan_through(np.stack([way, np.zeros_like(way)], axis=-1), ego)


def plan_through(points_P2: Array, ego: EgoState) -> Plan:
    """A plan through points at `TIMES`, base frame of `ego`."""
    yaws, speeds, accelerations = motion_along(points_P2, TIMES, ego.speed)
    return Plan(
        stamp_ns=ego.stamp_ns,
        times_P=TIMES,
        points_P2=points_P2,
        yaws_P=yaws,
        speeds_P=speeds,
        accelerations_P=accelerations,
        candidate=0,
        costs={},
    )


SIMPLE_POLICIES = ("expert", "ground-truth-planner", "idm", "blind", "constant-velocity", "stop")


def make_policy(name: str, world: World, footprint: EgoFootprint) -> Policy:
    """One of `SIMPLE_POLICIES`, for a fresh world.

    Raises:
        InputError: If there is no such policy, or it cannot drive such a world.
    """
    if name == "expert":
        return ExpertPolicy(world, footprint)
    if name == "ground-truth-planner":
        return ExpertPolicy(world, footprint, knows_futures=False)
    if name == "idm":
        return IdmPolicy(world)
    if name == "blind":
        return BlindPolicy(world)
    if name == "constant-velocity":
        return ConstantVelocityPolicy(world)
    if name == "stop":
        return StopPolicy()
    raise InputError(
        f"unknown policy {name!r}; there are {', '.join(SIMPLE_POLICIES)}, bundle:PATH and classical:PATH"
    )
