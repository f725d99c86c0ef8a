"""What every world offers, simulated traffic or a recorded log: others that move, and a stage for sensors.

A world knows where everybody else is up to one step beyond the robot's present; who drives the robot, and
where it is, is told to it. Nothing here depends on the robot's future.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3, wrap_angle
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.appearance import Parts
from e2e_perception.simulation.scene import Conditions, Road, Snapshot, Solids

STEP_S = 0.1  # others move in steps of this length
STEP_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000
AREA_MARGIN = 0.1  # [m]
OBSTACLE = CLASSES.index("obstacle")
NEARBY = 120.0  # [m] within which agents and clutter are in a snapshot


@dataclass(frozen=True)
class Cast:
    """Who and what there is, apart from where agents are; N agents, P parts, C clutter solids, O obstacles.

    Attributes:
        sizes_N3: (N, 3) length, width, height [m].
        class_ids_N: (N,), index into `CLASSES`.
        parts: What the agents look like.
        clutter_C12: Still solids, see `scenery.Clutter`, odom frame.
        road: The surface.
        conditions: Light and air.
        obstacles_C: (C,) bool, which of them are in the way, and labelled; None: none.
    """

    sizes_N3: NDArray[np.float64]
    class_ids_N: NDArray[np.int64]
    parts: Parts
    clutter_C12: NDArray[np.float64]
    road: Road
    conditions: Conditions
    obstacles_C: NDArray[np.bool_] | None = None
    _obstacles: NDArray[np.int64] = field(init=False, repr=False)
    _clutter_reach_C: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        marked = np.zeros(len(self.clutter_C12), np.bool_) if self.obstacles_C is None else self.obstacles_C
        if len(marked) != len(self.clutter_C12):
            raise InputError(
                f"cast: {len(marked)} marks of obstacles for {len(self.clutter_C12)} solids, expected as many"
            )
        object.__setattr__(self, "_obstacles", np.flatnonzero(marked))
        # Small things far away cost as much to draw as near ones and are seen by nobody.
        reach = np.minimum(NEARBY, 30.0 + 14.0 * self.clutter_C12[:, 3:6].max(axis=1, initial=0.0))
        reach[self._obstacles] = NEARBY
        object.__setattr__(self, "_clutter_reach_C", reach + self.clutter_C12[:, 3] / 2.0)

    @property
    def obstacles_O5(self) -> NDArray[np.float64]:
        """x, y [m], yaw [rad], length, width [m] of what is in the way, odom."""
        return self.clutter_C12[self._obstacles][:, [0, 1, 6, 3, 4]]

    def snapshot(
        self,
        ego: EgoState,
        poses_N3: NDArray[np.float64],
        velocities_N2: NDArray[np.float64],
        present_N: NDArray[np.bool_] | None = None,
    ) -> Snapshot:
        """The world at an instant: agents and clutter within `NEARBY` metres.

        Identities are agent numbers, and for obstacles N and on.

        Args:
            ego: The robot at that instant.
            poses_N3: (N, 3) x, y [m] of the centre, yaw [rad], odom.
            velocities_N2: (N, 2) [m/s] over ground, odom axes.
            present_N: (N,), who is there; default: everybody.
        """
        here = ego.odom_from_base.translation[:2]
        near_N = np.hypot(poses_N3[:, 0] - here[0], poses_N3[:, 1] - here[1]) < NEARBY
        if present_N is not None:
            near_N &= present_N
        ids = np.flatnonzero(near_N)
        heights = self.sizes_N3[ids, 2:]
        things_O12 = self.clutter_C12[self._obstacles]
        things = np.flatnonzero(np.hypot(things_O12[:, 0] - here[0], things_O12[:, 1] - here[1]) < NEARBY)
        centers = np.concatenate([poses_N3[ids, :2], heights / 2.0], axis=1)
        yaws = np.concatenate([poses_N3[ids, 2], things_O12[things, 6]])
        boxes = Boxes(
            centers_N3=np.concatenate([centers, things_O12[things, :3]]).astype(np.float32),
            sizes_N3=np.concatenate([self.sizes_N3[ids], things_O12[things, 3:6]]).astype(np.float32),
            yaws_N=((yaws + np.pi) % (2.0 * np.pi) - np.pi).astype(np.float32),
            velocities_N2=np.concatenate([velocities_N2[ids], np.zeros((len(things), 2))]).astype(np.float32),
            class_ids_N=np.concatenate([self.class_ids_N[ids], np.full(len(things), OBSTACLE)]).astype(
                np.int64
            ),
            scores_N=np.ones(len(yaws), np.float32),
            ids_N=np.concatenate([ids, len(poses_N3) + things]).astype(np.int64),
        )
        labels_C = np.full(len(self.clutter_C12), -1, np.int64)
        labels_C[self._obstacles[things]] = len(ids) + np.arange(len(things))
        return Snapshot(
            stamp_ns=ego.stamp_ns,
            odom_from_base=ego.odom_from_base,
            velocity=ego.velocity,
            yaw_rate=ego.yaw_rate,
            boxes=boxes,
            solids=self._solids(here, ids, poses_N3, velocities_N2, labels_C),
            road=self.road,
            conditions=self.conditions,
        )

    def _solids(
        self,
        here: NDArray[np.float64],
        ids: NDArray[np.int64],
        poses_N3: NDArray[np.float64],
        velocities_N2: NDArray[np.float64],
        labels_C: NDArray[np.int64],
    ) -> Solids:
        rows_N = np.full(len(poses_N3), -1, np.int64)
        rows_N[ids] = np.arange(len(ids))
        parts = self.parts
        shown = np.flatnonzero(rows_N[parts.agents_P] >= 0)
        agents = parts.agents_P[shown]
        yaws = poses_N3[agents, 2]
        c, s = np.cos(yaws), np.sin(yaws)
        offsets = parts.offsets_P3[shown]
        x = poses_N3[agents, 0] + c * offsets[:, 0] - s * offsets[:, 1]
        y = poses_N3[agents, 1] + s * offsets[:, 0] + c * offsets[:, 1]
        still = self.clutter_C12
        near_C = np.hypot(still[:, 0] - here[0], still[:, 1] - here[1]) < self._clutter_reach_C
        still = still[near_C]
        return Solids(
            centers_N3=np.concatenate([np.stack([x, y, offsets[:, 2]], axis=1), still[:, :3]]),
            sizes_N3=np.concatenate([parts.sizes_P3[shown], still[:, 3:6]]),
            yaws_N=np.concatenate([yaws, still[:, 6]]),
            velocities_N2=np.concatenate([velocities_N2[agents], np.zeros((len(still), 2))]),
            colors_N3=np.concatenate([parts.colors_P3[shown], still[:, 9:12].astype(np.uint8)]),
            reflectivities_N=np.concatenate([parts.reflectivities_P[shown], still[:, 7]]),
            rcs_N=np.concatenate([parts.rcs_P[shown], still[:, 8]]),
            labels_N=np.concatenate([rows_N[agents], labels_C[near_C]]),
        )


@dataclass(frozen=True)
class AgentStates:
    """Where all agents are at an instant.

    Attributes:
        poses_N3: (N, 3) x, y [m] of the centre, yaw [rad, continuous], odom.
        velocities_N2: (N, 2) [m/s] of the centre over ground, odom axes.
        present_N: (N,), who is there; the others have left, or have yet to come.
    """

    poses_N3: NDArray[np.float64]
    velocities_N2: NDArray[np.float64]
    present_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Imagined:
    """What would happen if the robot drove in some way; T instants.

    Attributes:
        times_T: (T,) [s] from now.
        agents_TN3: (T, N, 3) x, y [m], yaw [rad], odom.
        present_TN: (T, N).
        ego_T4: (T, 4) x, y [m], yaw [rad] of `base_link`, odom, and speed [m/s]; None: nobody drove it.
    """

    times_T: NDArray[np.float64]
    agents_TN3: NDArray[np.float64]
    present_TN: NDArray[np.bool_]
    ego_T4: NDArray[np.float64] | None


class AgentHistory:
    """Where all agents were at each step so far, and anywhere between by interpolation."""

    def __init__(self, start_ns: int) -> None:
        """Nothing yet.

        Args:
            start_ns: Of the first step [ns].
        """
        self.start_ns = start_ns
        self._states: list[AgentStates] = []

    def __len__(self) -> int:
        return len(self._states)

    @property
    def known_until_ns(self) -> int:
        """The latest step [ns]."""
        return self.start_ns + (len(self._states) - 1) * STEP_NS

    def append(self, states: AgentStates) -> None:
        """The next step; yaws have to continue the last ones without a leap of a full turn."""
        self._states.append(states)

    def at(self, stamp_ns: int) -> AgentStates:
        """Linear between two steps; who is not there at both is as at the nearer one.

        Raises:
            InputError: If the instant is not covered yet.
        """
        if not self.start_ns <= stamp_ns <= self.known_until_ns:
            raise InputError(
                f"no agents are known at {stamp_ns} ns; covered is {self.start_ns}..{self.known_until_ns} ns"
            )
        k, rest_ns = divmod(stamp_ns - self.start_ns, STEP_NS)
        before = self._states[k]
        if rest_ns == 0:
            return before
        after, f = self._states[k + 1], rest_ns / STEP_NS
        nearest = before if f < 0.5 else after
        both_N1 = (before.present_N & after.present_N)[:, None]
        return AgentStates(
            poses_N3=np.where(both_N1, (1.0 - f) * before.poses_N3 + f * after.poses_N3, nearest.poses_N3),
            velocities_N2=np.where(
                both_N1, (1.0 - f) * before.velocities_N2 + f * after.velocities_N2, nearest.velocities_N2
            ),
            present_N=nearest.present_N,
        )


def drivable_area(road: Road) -> shapely.Geometry:
    """The union of a road's drivable polygons, odom frame; a corner may be `AREA_MARGIN` beyond its edge."""
    area = shapely.union_all([shapely.Polygon(points).buffer(AREA_MARGIN) for points in road.drivable])
    shapely.prepare(area)
    return area


class World(Protocol):
    """Traffic, a road and a task for the robot.

    Attributes:
        name: What makes it again, e.g. `merge/17@0.5` or `log:adcf7d18…`.
        family: For tables.
        seed: 0 for logs.
        difficulty: 0 (easy) … 1 (hard); 0 for logs.
        start_ns, end_ns: The episode [ns], a whole number of steps.
        start: The robot at `start_ns`.
        route: What it has to follow, odom frame. It tells nothing of what anybody will do.
        goal_s: Arc length along the route [m] that its `base_link` has to reach for success.
        speed_limit: [m/s]
        cast: Everybody else and the place.
        obstacles_O5: x, y [m], yaw [rad], length, width [m] of still solids that lie on the road, odom.
        provenance: What is recorded and what is modelled, by kind of data.
    """

    name: str
    family: str
    seed: int
    difficulty: float
    start_ns: int
    end_ns: int
    start: EgoState
    route: Route
    goal_s: float
    speed_limit: float
    cast: Cast
    obstacles_O5: NDArray[np.float64]
    provenance: Mapping[str, str]

    @property
    def known_until_ns(self) -> int:
        """The latest instant at which the agents are known [ns], at least `start_ns`."""
        ...

    def agents_at(self, stamp_ns: int) -> AgentStates:
        """Everybody else at an instant up to `known_until_ns`.

        Raises:
            InputError: If it is not covered.
        """
        ...

    def advance(self, ego: EgoState) -> None:
        """Move everybody else by one step.

        Args:
            ego: The robot at `known_until_ns`, which they may react to.
        """
        ...

    def imagine(self, ego: EgoState, horizon_s: float, step_s: float) -> Imagined:
        """Everybody's true future, for drivers that may know it.

        Args:
            ego: The robot now, at `known_until_ns`.
            horizon_s, step_s: How far, and in which steps [s].
        """
        ...

    def sees(self, ego: EgoState, agent: int) -> bool:
        """Whether the robot's driver can know of an agent that is there.

        Args:
            ego: The robot now.
            agent: Row of `cast`.
        """
        ...

    def recorded(self, sensor: str, stamp_ns: int) -> tuple[int, ImageSample | PointsSample] | None:
        """A real measurement that stands for a modelled one.

        Args:
            sensor: Name in the rig.
            stamp_ns: When the sensor measures [ns].
        Returns:
            Its own stamp [ns] and the measurement, in the frame of the rig's sensor; None: there is none
            near that instant, or the robot is not where it was recorded.
        """
        ...


def snapshot(world: World, ego: EgoState) -> Snapshot:
    """What sensors see of a world when the robot is there, at `ego.stamp_ns`.

    Raises:
        InputError: If the world is not known at that instant.
    """
    states = world.agents_at(ego.stamp_ns)
    return world.cast.snapshot(ego, states.poses_N3, states.velocities_N2, states.present_N)


def interpolated(before: EgoState, after: EgoState, stamp_ns: int) -> EgoState:
    """The robot between two instants, linear in position, heading and twist; it stays on the ground.

    Args:
        before, after: At two different instants.
        stamp_ns: Between them [ns].
    """
    f = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
    a, b = before.odom_from_base.planar_part(), after.odom_from_base.planar_part()
    yaw = a.yaw + f * float(wrap_angle(b.yaw - a.yaw))
    return EgoState(
        stamp_ns,
        SE3.planar(a.x + f * (b.x - a.x), a.y + f * (b.y - a.y), yaw),
        (1.0 - f) * before.velocity + f * after.velocity,
        (1.0 - f) * before.yaw_rate + f * after.yaw_rate,
    )
