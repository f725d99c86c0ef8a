"""A rule-based planner: proposals on a grid of speeds and offsets, priced against the others' futures.

The manoeuvres are the network's own vocabulary and a few finer ones; the cost terms are the network's. This
is the scheme of PDM (Dauner et al., CoRL 2023). The planner knows the map and nothing else of the world: who
is there, and where they will be, it has to be told.

Legend: C proposals, T instants, K cost terms, N others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.core.proposals import manoeuvres
from e2e_perception.core.trajectories import Plan, Route
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.runtime.plan_motion import motion_along
from e2e_perception.simulation.scoring import Others, Weights, cost_table
from e2e_perception.simulation.world import World, drivable_area

Array = NDArray[np.float64]

STEP = 0.25  # [s] between the instants that are looked at
HORIZON = 5.0  # [s]
ACCELERATIONS = (-8.0, -6.0, -4.5, -3.0, -2.0, -1.2, -0.6, -0.2, 0.0, 0.5, 1.0, 1.8, 2.8)
OFFSETS = (-2.4, -1.4, -0.7, 0.0, 0.7, 1.4, 2.4)
STICKINESS = 0.3  # per metre of mean offset from the plan before, to the side


@dataclass(frozen=True)
class MapKnowledge:
    """What a map and a task tell a driver, whoever is on the road; odom frame.

    Attributes:
        route: To be followed.
        speed_limit: [m/s]
        area: Where one may drive, see `world.drivable_area`.
    """

    route: Route
    speed_limit: float
    area: shapely.Geometry

    @staticmethod
    def of(world: World) -> MapKnowledge:
        """Of a world."""
        return MapKnowledge(world.route, world.speed_limit, drivable_area(world.cast.road))


@dataclass(frozen=True)
class Decision:
    """What was chosen, and what everything would have cost.

    Attributes:
        plan: To be driven.
        costs_CK: (C, K) weighted costs of all proposals, columns `scoring.TERMS`.
        selected: Row of the chosen one; the last row is the rule-based driver's, if there is one.
    """

    plan: Plan
    costs_CK: Array
    selected: int


def at_constant_velocity(
    ego: EgoState,
    poses_N3: Array,
    velocities_N2: Array,
    sizes_N2: Array,
    obstacles_O5: Array,
) -> Others:
    """Others of whom only the present is known: they are expected to go straight on.

    Args:
        ego: The robot now.
        poses_N3: (N, 3) x, y [m] of the centre, yaw [rad], odom.
        velocities_N2: (N, 2) [m/s], odom axes.
        sizes_N2: (N, 2) length, width [m].
        obstacles_O5: Still ones, see `Others`.
    """
    steps = round(HORIZON / STEP)
    ahead = STEP * np.arange(1, steps + 1)[:, None, None]
    poses = np.repeat(poses_N3[None], steps, axis=0)
    poses[..., :2] += ahead * velocities_N2[None]
    boxes = np.concatenate([poses, np.broadcast_to(sizes_N2, (steps, *sizes_N2.shape))], axis=-1)
    return Others(STEP, boxes, obstacles_O5, behind(ego, poses_N3))


def behind(ego: EgoState, poses_N3: Array) -> NDArray[np.bool_]:
    """(N,), who follows the robot on its way: see `Others.behind_N`."""
    pose = ego.odom_from_base.planar_part()
    local = pose.inverse().apply(poses_N3[:, :2])
    heading = np.abs(wrap_angle(poses_N3[:, 2] - pose.yaw))
    return np.asarray((local[:, 0] < 0.0) & (np.abs(local[:, 1]) < 2.0) & (heading < 0.5))


class ProposalPlanner:
    """Plans along one route, again and again.

    Attributes:
        known: The map.
        weights: Of the cost terms.
        network: Its horizon and steps are those of the plans.
    """

    def __init__(
        self,
        known: MapKnowledge,
        footprint: EgoFootprint,
        *,
        weights: Weights | None = None,
        network: NetworkConfig | None = None,
    ) -> None:
        """Get ready.

        Args:
            known: The map.
            footprint: The robot.
            weights: Of the cost terms.
            network: See the class; default: `tiny`.
        """
        self.known, self.footprint = known, footprint
        self.weights = weights or Weights()
        self.network = network or SIZES["tiny"]
        self._s: float | None = None
        self._previous: tuple[float, Array] | None = None  # s then, (T, 2) s from there and d

    def decide(self, ego: EgoState, others: Others, driven_T2: Array | None = None) -> Decision:
        """Choose.

        Args:
            ego: The robot now.
            others: Who is there, at the instants `STEP`, … `HORIZON`.
            driven_T2: (T, 2) [m], odom, a further proposal at the same instants: what somebody else would
                drive.
        """
        self._s, offset, heading = self._on_route(ego)
        times = np.asarray(STEP * np.arange(1, round(HORIZON / STEP) + 1), np.float64)
        sd = manoeuvres(
            ACCELERATIONS,
            OFFSETS,
            times,
            horizon=4.0,
            speed=ego.speed,
            lateral_offset=offset,
            heading_error=heading,
            top_speed=self.known.speed_limit,
        )
        if driven_T2 is not None:
            sd = np.concatenate([sd, self._route_coordinates(driven_T2)[None]])
        costs = self._price(sd, ego, others)
        totals = costs.sum(axis=1) + STICKINESS * self._deviation(sd)
        selected = int(np.argmin(totals))
        plan = self._plan(sd[selected], times, ego)
        self._previous = (self._s, sd[selected])
        return Decision(plan, costs, selected)

    def prices_of_vocabulary(self, ego: EgoState, others: Others) -> Array:
        """What each proposal of the network's own vocabulary would cost from here.

        Args:
            ego: The robot now.
            others: Who is there.
        Returns:
            (C, K) weighted costs in the network's order, columns `scoring.TERMS`.
        """
        network = self.network
        self._s, offset, heading = self._on_route(ego)
        horizon = network.horizon_steps * network.step_s
        sd = manoeuvres(
            network.plan_accelerations,
            network.plan_offsets,
            np.arange(STEP, horizon + 1e-9, STEP, dtype=np.float64),
            horizon=horizon,
            speed=ego.speed,
            lateral_offset=offset,
            heading_error=heading,
        )
        return self._price(sd, ego, others)

    def _on_route(self, ego: EgoState) -> tuple[float, float, float]:
        """Arc length [m], offset [m] and heading error [rad] of the robot."""
        pose = ego.odom_from_base.planar_part()
        s, offset = self.known.route.project((pose.x, pose.y), self._s)
        _, tangent = self.known.route.at(s)
        return s, offset, float(wrap_angle(pose.yaw - np.arctan2(tangent[1], tangent[0])))

    def _price(self, sd_CT2: Array, ego: EgoState, others: Others) -> Array:
        """(C, K) weighted costs of proposals, columns `scoring.TERMS`."""
        assert self._s is not None
        return (
            cost_table(
                sd_CT2,
                route=self.known.route,
                start_s=self._s,
                speed=ego.speed,
                speed_limit=self.known.speed_limit,
                others=others,
                footprint=self.footprint,
                area=self.known.area,
            )
            * self.weights.array_K
        )

    def _route_coordinates(self, points_T2: Array) -> Array:
        assert self._s is not None
        rows, s = [], self._s
        for point in points_T2:
            s, d = self.known.route.project(point, s)
            rows.append((s - self._s, d))
        return np.array(rows)

    def _points(self, sd_T2: Array) -> Array:
        assert self._s is not None
        points, tangents = self.known.route.at(self._s + sd_T2[..., 0])
        normals = np.stack([-tangents[..., 1], tangents[..., 0]], axis=-1)
        return np.asarray(points + normals * sd_T2[..., 1:])

    def _deviation(self, sd_CT2: Array) -> Array:
        """(C,) [m] mean distance to the side of the plan before, place by place."""
        if self._previous is None:
            return np.zeros(len(sd_CT2))
        s_before, sd = self._previous
        assert self._s is not None
        expected = np.interp(self._s + sd_CT2[..., 0], s_before + sd[:, 0], sd[:, 1])
        return np.asarray(np.abs(sd_CT2[..., 1] - expected).mean(axis=1))

    def _plan(self, sd_T2: Array, times_T: Array, ego: EgoState) -> Plan:
        wanted = self.network.times_T
        grid = np.concatenate([[0.0], times_T])
        pose = ego.odom_from_base.planar_part()
        points = np.concatenate([[[pose.x, pose.y]], self._points(sd_T2)])
        base = pose.inverse().apply(
            np.stack([np.interp(wanted, grid, points[:, k]) for k in (0, 1)], axis=-1)
        )
        yaws, speeds, accelerations = motion_along(base, wanted, ego.speed)
        return Plan(
            stamp_ns=ego.stamp_ns,
            times_P=wanted,
            points_P2=base,
            yaws_P=yaws,
            speeds_P=speeds,
            accelerations_P=accelerations,
            candidate=0,
            costs={},
        )
