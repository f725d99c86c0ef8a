"""A privileged driver: proposals on a grid of speeds and offsets, rolled against everybody's true futures.

The manoeuvres are the network's own vocabulary and a few finer ones, and what a rule-based driver would do
that knows every right of way; the cost terms are the network's. This is the scheme of PDM (Dauner et al.,
CoRL 2023) with the simulator in place of a forecast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.core.proposals import manoeuvres
from e2e_perception.core.trajectories import Plan
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


class Expert:
    """Drives a world from inside.

    Attributes:
        weights: Of the cost terms.
    """

    def __init__(
        self,
        world: World,
        footprint: EgoFootprint,
        *,
        weights: Weights | None = None,
        network: NetworkConfig | None = None,
        knows_futures: bool = True,
    ) -> None:
        """Take the wheel.

        Args:
            world: To be driven.
            footprint: The robot.
            weights: Of the cost terms.
            network: Its horizon and steps are those of the plans; default: `tiny`.
            knows_futures: Whether true futures and the rule-based driver are at its disposal; otherwise all
                others are expected to go on at constant velocity (the planner on ground-truth boxes).
        """
        self.world, self.footprint = world, footprint
        self.weights = weights or Weights()
        self.network = network or SIZES["tiny"]
        self.knows_futures = knows_futures
        self._area = drivable_area(world.cast.road)
        self._s: float | None = None
        self._previous: tuple[float, Array] | None = None  # s then, (T, 2) s from there and d

    def decide(self, ego: EgoState) -> Decision:
        """Choose.

        Args:
            ego: The robot now, an instant at which the world is known.
        """
        world = self.world
        pose = ego.odom_from_base.planar_part()
        self._s, offset = world.route.project((pose.x, pose.y), self._s)
        _, tangent = world.route.at(self._s)
        heading = float(wrap_angle(pose.yaw - np.arctan2(tangent[1], tangent[0])))
        times = np.asarray(STEP * np.arange(1, round(HORIZON / STEP) + 1), np.float64)
        sd = manoeuvres(
            ACCELERATIONS,
            OFFSETS,
            times,
            horizon=4.0,
            speed=ego.speed,
            lateral_offset=offset,
            heading_error=heading,
            top_speed=world.speed_limit,
        )
        others, rule_sd = self._others(ego)
        if rule_sd is not None:
            sd = np.concatenate([sd, rule_sd[None]])
        costs = self.price(sd, ego, others)
        totals = costs.sum(axis=1) + STICKINESS * self._deviation(sd)
        selected = int(np.argmin(totals))
        plan = self._plan(sd[selected], times, ego)
        self._previous = (self._s, sd[selected])
        return Decision(plan, costs, selected)

    def price(self, sd_CT2: Array, ego: EgoState, others: Others) -> Array:
        """(C, K) weighted costs of proposals, columns `scoring.TERMS`."""
        assert self._s is not None
        return (
            cost_table(
                sd_CT2,
                route=self.world.route,
                start_s=self._s,
                speed=ego.speed,
                speed_limit=self.world.speed_limit,
                others=others,
                footprint=self.footprint,
                area=self._area,
            )
            * self.weights.array_K
        )

    def _others(self, ego: EgoState) -> tuple[Others, Array | None]:
        """Everybody's futures, and what a rule-based driver would do, (T, 2) s and d."""
        world = self.world
        steps = round(HORIZON / STEP)
        now = world.agents_at(ego.stamp_ns)
        sizes = world.cast.sizes_N3[:, :2]
        seen_N = now.present_N & np.array([world.sees(ego, n) for n in range(len(sizes))], np.bool_)
        rule_sd = None
        if self.knows_futures:
            imagined = world.imagine(ego, HORIZON, STEP)
            poses, present = imagined.agents_TN3, imagined.present_TN & (seen_N | ~now.present_N)[None]
            if imagined.ego_T4 is not None:
                rule_sd = self._route_coordinates(imagined.ego_T4[:, :2])
        else:
            ahead = STEP * np.arange(1, steps + 1)[:, None, None]
            poses = np.repeat(now.poses_N3[None], steps, axis=0)
            poses[..., :2] += ahead * now.velocities_N2[None]
            present = np.repeat(seen_N[None], steps, axis=0)
        boxes = np.concatenate([poses, np.broadcast_to(sizes, (steps, *sizes.shape))], axis=-1)
        boxes[~present, :2] = 1e6
        boxes = boxes[:, seen_N | present.any(axis=0)]
        behind = self._behind(ego, now.poses_N3[seen_N | present.any(axis=0)])
        return Others(STEP, boxes, world.obstacles_O5, behind), rule_sd

    def _behind(self, ego: EgoState, poses_N3: Array) -> NDArray[np.bool_]:
        pose = ego.odom_from_base.planar_part()
        local = pose.inverse().apply(poses_N3[:, :2])
        heading = np.abs(wrap_angle(poses_N3[:, 2] - pose.yaw))
        return np.asarray((local[:, 0] < 0.0) & (np.abs(local[:, 1]) < 2.0) & (heading < 0.5))

    def _route_coordinates(self, points_T2: Array) -> Array:
        assert self._s is not None
        rows, s = [], self._s
        for point in points_T2:
            s, d = self.world.route.project(point, s)
            rows.append((s - self._s, d))
        return np.array(rows)

    def _points(self, sd_T2: Array) -> Array:
        assert self._s is not None
        points, tangents = self.world.route.at(self._s + sd_T2[..., 0])
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
