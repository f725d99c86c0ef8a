"""A robot in a world, tick by tick: the robot moves, the world reacts, sensors measure, plans take effect.

The same object drives in process and behind the ROS node: both take the messages that a tick gives and hand
plans back. Nothing in it reads a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, footprint_corners_N42
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import Contact, EpisodeRecord
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.results import SafetyState
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.simulation.ego_vehicle import TICK_NS, Command, EgoVehicle, PlanTracker, VehicleLimits
from e2e_perception.simulation.fault import is_at_fault
from e2e_perception.simulation.scenario import contacts
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.world import STEP_NS, World, drivable_area, interpolated, snapshot

PLAN_DELAY_NS = 100_000_000  # from a frame's stamp until its plan takes effect: see docs/performance.md
AFTER_GOAL_S = 3.0  # [s] driven on, to see whether it was reached in a state to go on from
AFTER_CONTACT_S = 0.5
NO_PLAN_S = 1.5  # [s] without a new plan before the policy has failed; a silent stack stops after one second


@dataclass(frozen=True)
class Robot:
    """Outline on the ground: length, width, centre ahead of `base_link` [m]; and its actuators."""

    length: float = 4.6
    width: float = 1.9
    center_x: float = 1.4
    limits: VehicleLimits = field(default_factory=VehicleLimits)

    @property
    def footprint(self) -> EgoFootprint:
        """The outline alone."""
        return EgoFootprint(self.length, self.width, self.center_x)


@dataclass
class _Log:
    """One row per step."""

    ego: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    commands: list[tuple[float, float]] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    off_road: list[bool] = field(default_factory=list)
    plans: list[NDArray[np.float64] | None] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    interventions: list[bool] = field(default_factory=list)


class ClosedLoop:
    """One episode being driven.

    Attributes:
        world: Everybody else.
        now_ns: Present time.
        failure: Why the policy has failed; empty: it has not.
        over: Whether the episode has ended.
    """

    def __init__(self, world: World, *, robot: Robot | None = None, sensors: SensorRig | None = None) -> None:
        """Put the robot where the world says.

        Args:
            world: Fresh.
            robot: Outline and actuators.
            sensors: What it carries; None: it is driven without.
        """
        self.world, self.robot, self.sensors = world, robot or Robot(), sensors
        self.vehicle = EgoVehicle(world.start, self.robot.limits)
        self.tracker = PlanTracker(self.robot.limits)
        self.now_ns = world.start_ns
        self.failure, self.over = "", False
        self._states = [self.vehicle.state]  # every tick since the start
        self._pending: list[tuple[int, int, Plan, SafetyState | None]] = []
        self._num_taken = 0
        self._since_plan_ns = self.now_ns
        self._safety: SafetyState | None = None
        self._command = Command(0.0, 0.0)
        self._arriving: list[tuple[int, int, SensorMessage]] = []
        self._num_measured = 0
        self._contacts: list[Contact] = []
        self._touched: set[int] = set()
        self._ends_ns = world.end_ns
        self._log = _Log()
        self._area = drivable_area(world.cast.road)
        self._obstacles = world.obstacles_O5
        self._s, _ = world.route.project(self._pose_at(self.now_ns)[:2])
        self._start_s = self._s
        self._note()

    # ------------------------------------------------------------------ in

    @property
    def ego(self) -> EgoState:
        """The robot now."""
        return self._states[-1]

    def ego_at(self, stamp_ns: int) -> EgoState:
        """The robot at an instant since the start.

        Raises:
            InputError: If that was before the start, or is yet to come.
        """
        if not self.world.start_ns <= stamp_ns <= self.now_ns:
            raise InputError(
                f"the robot is not known at {stamp_ns} ns; covered is {self.world.start_ns}..{self.now_ns} ns"
            )
        k, rest = divmod(stamp_ns - self.world.start_ns, TICK_NS)
        before = self._states[k]
        return before if rest == 0 else interpolated(before, self._states[k + 1], stamp_ns)

    def take_plan(self, plan: Plan, *, delay_ns: int = 0, state: SafetyState | None = None) -> bool:
        """A plan of the policy.

        Args:
            plan: Base frame at its stamp.
            delay_ns: From its stamp until it takes effect; at the earliest that is now [ns].
            state: Of the supervisor, if there is one.
        Returns:
            False if it is not followed because its stamp is before the start or yet to come: from where it is
            meant nobody knows.
        """
        if not self.world.start_ns <= plan.stamp_ns <= self.now_ns:
            return False
        if not plan.is_finite:
            self.fail("non-finite plan")
            return True
        due_ns = max(plan.stamp_ns + delay_ns, self.now_ns)
        heapq.heappush(self._pending, (due_ns, self._num_taken, plan, state))
        self._num_taken += 1
        self._put_in_force()
        return True

    def fail(self, why: str) -> None:
        """The policy can drive no more; the episode ends."""
        self.failure = self.failure or why
        self.over = True

    # ------------------------------------------------------------------ time

    def tick(self) -> list[SensorMessage]:
        """Go on by 20 ms.

        Returns:
            Messages that arrived in between, in order of arrival; none without sensors.
        """
        if self.over:
            return []
        if self.now_ns >= self.world.known_until_ns:
            self.world.advance(self.ego)
        self._command = self.tracker.command(self.ego)
        self.vehicle.step(self._command)
        self.now_ns += TICK_NS
        self._states.append(self.vehicle.state)
        self._put_in_force()
        if (self.now_ns - self.world.start_ns) % STEP_NS == 0:
            self._note()
        return self._arrived()

    def _put_in_force(self) -> None:
        while self._pending and self._pending[0][0] <= self.now_ns:
            _, _, plan, state = heapq.heappop(self._pending)
            self.tracker.take(plan, self.ego_at(plan.stamp_ns).odom_from_base.planar_part())
            self._safety, self._since_plan_ns = state, self.now_ns

    def _arrived(self) -> list[SensorMessage]:
        if self.sensors is None:
            return []

        def snapshot_at(stamp_ns: int) -> Snapshot:
            return snapshot(self.world, self.ego_at(stamp_ns))

        for message in self.sensors.measure(self.now_ns, snapshot_at, self.world.recorded):
            heapq.heappush(self._arriving, (message.arrival_ns, self._num_measured, message))
            self._num_measured += 1
        arrived = []
        while self._arriving and self._arriving[0][0] <= self.now_ns:
            arrived.append(heapq.heappop(self._arriving)[2])
        return arrived

    # ------------------------------------------------------------------ what happened

    def _pose_at(self, stamp_ns: int) -> tuple[float, float, float]:
        pose = self.ego_at(stamp_ns).odom_from_base.planar_part()
        return pose.x, pose.y, pose.yaw

    def _note(self) -> None:
        """Keep this step, and see whether the episode is over."""
        ego, log = self.ego, self._log
        x, y, yaw = self._pose_at(self.now_ns)
        if log.ego:
            yaw = log.ego[-1][2] + float(wrap_angle(yaw - log.ego[-1][2]))
        log.ego.append((x, y, yaw, ego.speed, ego.yaw_rate))
        log.commands.append((self._command.acceleration, self._command.curvature))
        self._s, offset = self.world.route.project((x, y), self._s)
        log.progress.append(self._s)
        log.offsets.append(offset)
        center = SE2(x, y, yaw).apply(np.array([[self.robot.center_x, 0.0]]))
        size = np.array([[self.robot.length, self.robot.width]])
        corners = footprint_corners_N42(center, size, np.array([yaw]))[0]
        log.off_road.append(not all(shapely.intersects_xy(self._area, corners[:, 0], corners[:, 1])))
        plan = self.tracker.plan
        log.plans.append(None if plan is None else self.tracker.odom_from_plan.apply(plan.points_P2))
        log.states.append(-1 if self._safety is None else int(self._safety))
        log.interventions.append(self._safety is not None and plan is not None and plan.candidate < 0)
        self._look_for_contacts(center[0], yaw)
        if self._s >= self.world.goal_s:
            self._ends_ns = min(self._ends_ns, self.now_ns + round(AFTER_GOAL_S * 1e9))
        if self.now_ns - self._since_plan_ns > NO_PLAN_S * 1e9 and self.now_ns > self.world.start_ns:
            self.fail(f"no plan for {(self.now_ns - self._since_plan_ns) * 1e-9:.1f} s")
        self.over |= self.now_ns >= self._ends_ns

    def _look_for_contacts(self, center_2: NDArray[np.float64], yaw: float) -> None:
        states = self.world.agents_at(self.now_ns)
        there = np.flatnonzero(states.present_N)
        poses = np.concatenate([[(*center_2, yaw)], states.poses_N3[there], self._obstacles[:, :3]], axis=0)
        sizes = np.concatenate(
            [
                [(self.robot.length, self.robot.width)],
                self.world.cast.sizes_N3[there, :2],
                self._obstacles[:, 3:],
            ],
            axis=0,
        )
        for _, j in contacts(poses[None], sizes, only_first=True):
            is_agent = j <= len(there)
            agent = int(there[j - 1]) if is_agent else -1
            if agent in self._touched:
                continue
            self._touched.add(agent)
            velocity = states.velocities_N2[agent] if is_agent else np.zeros(2)
            verdict = is_at_fault(
                np.array(self._pose_at(self.now_ns)),
                ego_size=(self.robot.length, self.robot.width, self.robot.center_x),
                speed=self.ego.speed,
                acceleration=self.vehicle.acceleration,
                yaw_rate=self.ego.yaw_rate,
                lateral_speed=self._lateral_speed(),
                other_pose_3=poses[j],
                other_velocity_2=velocity,
                other_size=(float(sizes[j, 0]), float(sizes[j, 1])),
            )
            name = CLASSES[int(self.world.cast.class_ids_N[agent])] if is_agent else "obstacle"
            self._contacts.append(
                Contact(len(self._log.ego) - 1, agent, name, verdict.at_fault, verdict.closing_speed)
            )
            self._ends_ns = min(self._ends_ns, self.now_ns + round(AFTER_CONTACT_S * 1e9))

    def _lateral_speed(self) -> float:
        offsets = self._log.offsets[-6:]
        return 0.0 if len(offsets) < 2 else (offsets[-1] - offsets[0]) / (0.1 * (len(offsets) - 1))

    def record(self, policy: str, counters: Mapping[str, int] | None = None) -> EpisodeRecord:
        """The episode so far.

        Args:
            policy: Who drove.
            counters: Of its stack.
        """
        world, log = self.world, self._log
        num = len(log.ego)
        agents = [world.agents_at(world.start_ns + k * STEP_NS) for k in range(num)]
        road, light = world.cast.road, world.cast.conditions
        return EpisodeRecord(
            scenario=world.name,
            family=world.family,
            seed=world.seed,
            difficulty=world.difficulty,
            policy=policy,
            start_ns=world.start_ns,
            ego_T5=np.array(log.ego),
            ego_size=(self.robot.length, self.robot.width, self.robot.center_x),
            commands_T2=np.array(log.commands),
            agents_TN3=np.array([a.poses_N3 for a in agents]),
            velocities_TN2=np.array([a.velocities_N2 for a in agents]),
            present_TN=np.array([a.present_N for a in agents]),
            sizes_N3=world.cast.sizes_N3,
            class_names_N=tuple(CLASSES[i] for i in world.cast.class_ids_N.tolist()),
            obstacles_O5=self._obstacles,
            route_R2=world.route.points_R2,
            route_start_s=self._start_s,
            goal_s=world.goal_s,
            progress_T=np.array(log.progress),
            offsets_T=np.array(log.offsets),
            off_road_T=np.array(log.off_road),
            speed_limit=world.speed_limit,
            drivable=road.drivable,
            boundaries=road.boundaries,
            plans=tuple(log.plans),
            states_T=np.array(log.states, np.int64),
            interventions_T=np.array(log.interventions),
            contacts=tuple(self._contacts),
            failure=self.failure,
            conditions=light.describe(),
            provenance=world.provenance,
            counters=dict(counters or {}),
        )
