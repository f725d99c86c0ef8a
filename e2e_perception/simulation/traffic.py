"""Scenarios: traffic around a robot that is driven well, so that what it does is worth learning.

Each kind makes the robot depend on what it sees: the same route and speed call for braking or for driving on.
The world runs on highway-env at 10 Hz and is then kept as trajectories, from which the state at any instant is
interpolated. The odometry frame has its origin at the robot's first pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from highway_env.road.road import LaneIndex, RoadNetwork
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes, footprint_corners_N42
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.alignment import Alignment
from e2e_perception.simulation.drivers import (
    DriverStyle,
    ParkedVehicle,
    Script,
    TrafficRoad,
    TrafficVehicle,
    Walker,
)
from e2e_perception.simulation.scene import Conditions, Road, Snapshot, Solids
from e2e_perception.simulation.scenery import (
    WHITE,
    YELLOW,
    Clutter,
    CrossSection,
    random_conditions,
    scatter,
    surface,
)

KINDS = (
    "highway",
    "braking_lead",
    "stopped_queue",
    "blocked_lane",
    "cut_in",
    "crossing",
    "two_way",
    "standstill",
)

EGO_LENGTH, EGO_WIDTH, EGO_CENTER_X = 4.6, 1.9, 1.4  # [m], as in the shipped rigs
STEP_S = 0.1
LABEL_HORIZON_S = 4.0  # simulated beyond the end, so that the last frames have futures too
EGO_START_S = 90.0  # [m] along the road; traffic may start behind
START_NS = 1_700_000_000_000_000_000
NEARBY = 120.0  # [m] within which agents and clutter are in a snapshot

CAR, TRUCK, PEDESTRIAN, CYCLIST = (CLASSES.index(n) for n in ("car", "truck", "pedestrian", "cyclist"))
FORWARD, ONCOMING = ("forward_start", "forward_end"), ("oncoming_start", "oncoming_end")
_CAR_COLORS = (
    (200, 200, 205), (235, 235, 235), (40, 42, 46), (95, 98, 104), (150, 25, 30), (30, 60, 130),
    (25, 85, 60), (190, 165, 120), (215, 120, 30), (70, 35, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The solids that agents consist of; P parts.

    Attributes:
        agents_P: (P,) int64, which agent.
        offsets_P3: (P, 3) [m], centre of the part from the agent's ground point, in its axes.
        sizes_P3: (P, 3) [m].
        colors_P3: (P, 3) uint8.
        reflectivities_P: (P,).
        rcs_P: (P,) [dBsm].
    """

    agents_P: NDArray[np.int64]
    offsets_P3: NDArray[np.float64]
    sizes_P3: NDArray[np.float64]
    colors_P3: NDArray[np.uint8]
    reflectivities_P: NDArray[np.float64]
    rcs_P: NDArray[np.float64]

    def without(self, keep_N: NDArray[np.bool_]) -> Parts:
        """Only the parts of the agents that are kept, which are counted anew."""
        rows = keep_N[self.agents_P]
        numbers = np.cumsum(keep_N) - 1
        return Parts(
            numbers[self.agents_P[rows]],
            self.offsets_P3[rows],
            self.sizes_P3[rows],
            self.colors_P3[rows],
            self.reflectivities_P[rows],
            self.rcs_P[rows],
        )


@dataclass(frozen=True)
class Scenario:
    """A drive through traffic; T steps of `STEP_S`, N agents, C clutter solids.

    Attributes:
        kind, seed: What `simulate_scenario` was asked for.
        start_ns, end_ns: The stretch meant for sensors [ns]; labels reach `LABEL_HORIZON_S` beyond it.
        route: The lane to follow, odom frame. It tells nothing of what the robot will do.
        speed_limit: [m/s]
        conditions: Light and air.
        road: The surface.
        ego_T5: (T, 5) x, y [m], yaw [rad, continuous], speed [m/s], yaw rate [rad/s] of `base_link`, odom.
        agents_TN3: (T, N, 3) x, y [m] of the centre, yaw [rad, continuous], odom.
        velocities_TN2: (T, N, 2) [m/s] of the centre over ground, odom axes.
        sizes_N3: (N, 3) length, width, height [m].
        class_ids_N: (N,), index into `CLASSES`.
        parts: What the agents look like.
        clutter_C12: Still solids, see `scenery.Clutter`, odom frame.
        collided: Whether the robot touched something; its driving is then no example.
        swerves: Intervals (start, end) [ns] in which the robot is pushed off its lane's centre on purpose;
            no plan can foresee them.
    """

    kind: str
    seed: int
    start_ns: int
    end_ns: int
    route: Route
    speed_limit: float
    conditions: Conditions
    road: Road
    ego_T5: NDArray[np.float64]
    agents_TN3: NDArray[np.float64]
    velocities_TN2: NDArray[np.float64]
    sizes_N3: NDArray[np.float64]
    class_ids_N: NDArray[np.int64]
    parts: Parts
    clutter_C12: NDArray[np.float64]
    collided: bool
    swerves: tuple[tuple[int, int], ...]
    _clutter_reach_C: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Small things far away cost as much to draw as near ones and are seen by nobody.
        reach = np.minimum(NEARBY, 30.0 + 14.0 * self.clutter_C12[:, 3:6].max(axis=1, initial=0.0))
        object.__setattr__(self, "_clutter_reach_C", reach + self.clutter_C12[:, 3] / 2.0)

    @property
    def last_ns(self) -> int:
        """The last instant for which states are known [ns]."""
        return self.start_ns + round((len(self.ego_T5) - 1) * STEP_S * 1e9)

    @property
    def name(self) -> str:
        """Kind and seed, as clips state them."""
        return f"{self.kind}/{self.seed}"

    def _locate(self, stamp_ns: int) -> tuple[int, float]:
        if not self.start_ns <= stamp_ns <= self.last_ns:
            raise InputError(
                f"scenario {self.name} has no state at {stamp_ns} ns; it covers {self.start_ns}..{self.last_ns} ns"
            )
        steps = (stamp_ns - self.start_ns) * 1e-9 / STEP_S
        i = min(int(steps), len(self.ego_T5) - 2)
        return i, steps - i

    def ego_at(self, stamp_ns: int) -> EgoState:
        """The robot's pose and twist at an instant.

        Raises:
            InputError: If the scenario does not cover it.
        """
        i, f = self._locate(stamp_ns)
        x, y, yaw, speed, yaw_rate = ((1.0 - f) * self.ego_T5[i] + f * self.ego_T5[i + 1]).tolist()
        return EgoState(stamp_ns, SE3.planar(x, y, yaw), np.array([speed, 0.0, 0.0]), yaw_rate)

    def agents_at(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Poses (N, 3) x, y [m], yaw [rad] and velocities (N, 2) [m/s] of all agents, odom frame.

        Raises:
            InputError: If the scenario does not cover the instant.
        """
        i, f = self._locate(stamp_ns)
        poses = (1.0 - f) * self.agents_TN3[i] + f * self.agents_TN3[i + 1]
        velocities = (1.0 - f) * self.velocities_TN2[i] + f * self.velocities_TN2[i + 1]
        return poses, velocities

    def snapshot(self, stamp_ns: int) -> Snapshot:
        """The world at an instant; agents and clutter within `NEARBY` metres. `boxes.ids_N` are agent numbers.

        Raises:
            InputError: If the scenario does not cover it.
        """
        ego = self.ego_at(stamp_ns)
        here = ego.odom_from_base.translation[:2]
        poses_N3, velocities_N2 = self.agents_at(stamp_ns)
        ids = np.flatnonzero(np.hypot(poses_N3[:, 0] - here[0], poses_N3[:, 1] - here[1]) < NEARBY)
        heights = self.sizes_N3[ids, 2:]
        boxes = Boxes(
            centers_N3=np.concatenate([poses_N3[ids, :2], heights / 2.0], axis=1).astype(np.float32),
            sizes_N3=self.sizes_N3[ids].astype(np.float32),
            yaws_N=((poses_N3[ids, 2] + np.pi) % (2.0 * np.pi) - np.pi).astype(np.float32),
            velocities_N2=velocities_N2[ids].astype(np.float32),
            class_ids_N=self.class_ids_N[ids],
            scores_N=np.ones(len(ids), np.float32),
            ids_N=ids.astype(np.int64),
        )
        return Snapshot(
            stamp_ns=stamp_ns,
            odom_from_base=ego.odom_from_base,
            velocity=ego.velocity,
            yaw_rate=ego.yaw_rate,
            boxes=boxes,
            solids=self._solids(here, ids, poses_N3, velocities_N2),
            road=self.road,
            conditions=self.conditions,
        )

    def _solids(
        self,
        here: NDArray[np.float64],
        ids: NDArray[np.int64],
        poses_N3: NDArray[np.float64],
        velocities_N2: NDArray[np.float64],
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
        still = still[np.hypot(still[:, 0] - here[0], still[:, 1] - here[1]) < self._clutter_reach_C]
        return Solids(
            centers_N3=np.concatenate([np.stack([x, y, offsets[:, 2]], axis=1), still[:, :3]]),
            sizes_N3=np.concatenate([parts.sizes_P3[shown], still[:, 3:6]]),
            yaws_N=np.concatenate([yaws, still[:, 6]]),
            velocities_N2=np.concatenate([velocities_N2[agents], np.zeros((len(still), 2))]),
            colors_N3=np.concatenate([parts.colors_P3[shown], still[:, 9:12].astype(np.uint8)]),
            reflectivities_N=np.concatenate([parts.reflectivities_P[shown], still[:, 7]]),
            rcs_N=np.concatenate([parts.rcs_P[shown], still[:, 8]]),
            labels_N=np.concatenate([rows_N[agents], np.full(len(still), -1, np.int64)]),
        )


def simulate_scenario(kind: str, seed: int, duration_s: float) -> Scenario:
    """Make one scenario; the same arguments give the same scenario.

    Args:
        kind: One of `KINDS`.
        seed: Of everything that varies.
        duration_s: [s], at least 1.
    Returns:
        The drive, with `LABEL_HORIZON_S` more of it for labels.
    Raises:
        InputError: If the kind is unknown or the duration too short.
    """
    if kind not in KINDS:
        raise InputError(f"unknown scenario kind {kind!r}; there are {', '.join(KINDS)}")
    if not duration_s >= 1.0:
        raise InputError(f"scenario duration is {duration_s} s, expected at least 1 s")
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    stage = _Stage(kind, duration_s, rng)
    _SETTINGS[kind](stage)
    return stage.run(seed)


# ------------------------------------------------------------------ the stage


@dataclass
class _Actor:
    """A body with its looks; `protected`: part of the scenario's story."""

    body: TrafficVehicle | ParkedVehicle | Walker
    class_id: int
    size: tuple[float, float, float]
    color: tuple[int, int, int]
    reflectivity: float
    protected: bool


class _Stage:
    """A road with the robot on it, being filled."""

    def __init__(self, kind: str, duration_s: float, rng: np.random.Generator) -> None:
        self.kind, self.duration_s, self.rng = kind, duration_s, rng
        urban = kind in ("crossing", "two_way") or (
            kind in ("stopped_queue", "blocked_lane", "standstill") and rng.random() < 0.5
        )
        self.urban = urban
        self.two_way = kind == "two_way" or (urban and rng.random() < 0.7)
        self.speed_limit = float(rng.uniform(8.0, 14.0) if urban else rng.uniform(16.0, 33.0))
        low = {"highway": 2, "cut_in": 2}.get(kind, 1)
        self.num_lanes = int(rng.integers(low, 5)) if not urban else int(rng.integers(low, 3))
        if kind == "two_way":
            self.num_lanes = 1
        self.lane_width = float(rng.uniform(3.0, 3.5) if urban else rng.uniform(3.3, 3.9))
        self.ego_lane = int(rng.integers(0, self.num_lanes))
        if kind in ("crossing", "two_way") or (kind == "blocked_lane" and rng.random() < 0.6):
            self.ego_lane = self.num_lanes - 1
        travelled = self.speed_limit * (duration_s + LABEL_HORIZON_S)
        self.alignment = Alignment.random(EGO_START_S + travelled + 160.0, self.speed_limit, rng)
        self.parking = float(rng.uniform(2.2, 2.8)) if urban and rng.random() < 0.7 else 0.0
        self.section = self._cross_section()
        network = RoadNetwork()
        for i in range(self.num_lanes):
            network.add_lane(*FORWARD, self._lane(i * self.lane_width))
        if self.two_way:
            network.add_lane(*ONCOMING, self._lane(-self.lane_width, oncoming=True))
        self.road = TrafficRoad(network, rng)
        self.actors: list[_Actor] = []
        self.debris = Clutter()
        self.ego: TrafficVehicle | None = None
        # Called with the time [s] before each step: what happens on cue.
        self.cues: list[Callable[[float], None]] = []

    def _lane(self, offset: float, *, oncoming: bool = False) -> object:
        return self.alignment.lane(offset, self.lane_width, self.speed_limit * 1.2, oncoming=oncoming)

    def _cross_section(self) -> CrossSection:
        width, rng = self.lane_width, self.rng
        lines: list[tuple[float, object, tuple[int, int, int]]] = [
            ((i + 0.5) * width, "dashed", WHITE) for i in range(self.num_lanes - 1)
        ]
        right_line = (self.num_lanes - 0.5) * width
        left_line = -0.5 * width
        shoulder = self.parking or (rng.uniform(0.2, 0.8) if self.urban else rng.uniform(0.5, 3.0))
        right = right_line + shoulder
        lines.append((right_line, "solid", WHITE))
        if self.two_way:
            lines.append((left_line, "dashed" if rng.random() < 0.6 else "solid", WHITE))
            lines.append((left_line - width, "solid", WHITE))
            left = left_line - width - shoulder
        else:
            lines.append((left_line, "solid", YELLOW if rng.random() < 0.3 else WHITE))
            left = left_line - rng.uniform(0.3, 1.2)
        if self.urban and rng.random() < 0.4:
            lines = [line for line in lines if line[1] == "dashed"]
        return CrossSection(left, right, tuple(lines), self.urban)  # type: ignore[arg-type]

    # -------------------------------------------------------------- who is there

    def put_ego(self, speed_share: float | None = None, *, calm: bool = False) -> TrafficVehicle:
        """The robot, at `EGO_START_S`; with some scenarios starting beside the lane's centre."""
        rng = self.rng
        share = rng.uniform(0.6, 1.05) if speed_share is None else speed_share
        offset, heading = 0.0, 0.0
        if not calm and rng.random() < 0.4:
            offset = float(rng.uniform(-0.6, 0.6))
            heading = float(rng.uniform(-1.0, 1.0) * np.deg2rad(1.0 + 20.0 / self.speed_limit))
        ego = TrafficVehicle(
            self.road,
            (*FORWARD, self.ego_lane),
            EGO_START_S,
            share * self.speed_limit,
            self.speed_limit * float(rng.uniform(0.95, 1.0)),
            (EGO_LENGTH, EGO_WIDTH),
            style=DriverStyle(time_gap=float(rng.uniform(1.3, 1.6)), standing_gap=float(rng.uniform(2.3, 3.0))),
            offset=offset,
            heading_error=heading,
            rear_axle=EGO_CENTER_X,
            cautious=True,
        )
        if not calm and rng.random() < 0.3:
            start = rng.uniform(1.0, 4.0)
            while start < self.duration_s - 1.0:
                side = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.1)
                ego.swerves.append((start, start + rng.uniform(0.8, 1.4), side))
                start += rng.uniform(4.0, 7.0)
        self.road.vehicles.append(ego)
        self.ego = ego
        return ego

    def look(self, class_id: int) -> tuple[tuple[float, float, float], tuple[int, int, int], float]:
        """Random size [m], colour and reflectivity of a class."""
        u = self.rng.uniform
        if class_id == CAR:
            length = u(3.6, 5.2)
            size = (length, 1.55 + 0.09 * (length - 3.6) + u(0.0, 0.3), u(1.38, 1.95))
            color = _CAR_COLORS[int(self.rng.integers(len(_CAR_COLORS)))]
        elif class_id == TRUCK:
            size = (u(7.0, 14.0), u(2.3, 2.55), u(2.6, 3.9))
            color = tuple(int(v) for v in self.rng.integers(40, 235, 3))
        elif class_id == PEDESTRIAN:
            size = (u(0.4, 0.75), u(0.45, 0.7), u(1.1, 1.95))
            color = tuple(int(v) for v in self.rng.integers(25, 220, 3))
        else:
            size = (u(1.55, 1.9), u(0.5, 0.75), u(1.5, 1.9))
            color = tuple(int(v) for v in self.rng.integers(25, 220, 3))
        return size, (color[0], color[1], color[2]), float(u(0.15, 0.75))

    def _enlist(
        self,
        body: TrafficVehicle | ParkedVehicle | Walker,
        class_id: int,
        look: tuple[tuple[float, float, float], tuple[int, int, int], float],
        protected: bool,
    ) -> None:
        size, color, reflectivity = look
        self.actors.append(_Actor(body, class_id, size, color, reflectivity, protected))

    def vehicle(
        self,
        lane_index: LaneIndex,
        s: float,
        speed: float,
        *,
        target_speed: float | None = None,
        class_id: int | None = None,
        script: Script | None = None,
        change_lanes: bool = False,
        offset: float = 0.0,
        protected: bool = False,
    ) -> TrafficVehicle | None:
        """A driver on a lane, or None if somebody is there already."""
        if class_id is None:
            class_id = TRUCK if self.rng.random() < 0.15 else CAR
        look = self.look(class_id)
        size_LW = look[0][:2]
        lane = self.road.network.get_lane(lane_index)
        if not 0.0 < s < lane.length - 5.0 or not self._is_free(lane.position(s, offset), lane_index, s, size_LW[0]):
            return None
        driver = TrafficVehicle(
            self.road,
            lane_index,
            s,
            speed,
            max(target_speed if target_speed is not None else self.speed_limit * self.rng.uniform(0.75, 1.1), 0.5),
            size_LW,
            style=DriverStyle.random(self.rng),
            change_lanes=change_lanes,
            script=script,
            offset=offset,
        )
        driver.lateral_bias = offset
        self.road.vehicles.append(driver)
        self._enlist(driver, class_id, look, protected)
        return driver

    def _is_free(self, point: NDArray[np.float64], lane_index: LaneIndex, s: float, length: float) -> bool:
        lane = self.road.network.get_lane(lane_index)
        for other in [*self.road.vehicles, *self.road.objects]:
            if abs(other.position[0] - point[0]) + abs(other.position[1] - point[1]) > 60.0:
                continue
            other_s, other_r = lane.local_coordinates(other.position)
            near = abs(other_s - s) < (length + other.LENGTH) / 2.0 + 1.5
            if near and abs(other_r) < other.WIDTH / 2.0 + 1.6:
                return False
        return True

    def parked(
        self, s: float, r: float, *, class_id: int | None = None, askew: float = 0.02, protected: bool = False
    ) -> _Actor | None:
        """A parked vehicle at (s, r) of the reference line, or None if somebody is there already."""
        if class_id is None:
            class_id = TRUCK if self.rng.random() < 0.12 else CAR
        look = self.look(class_id)
        point = self.alignment.positions(s, r)
        for other in self.road.objects:
            if np.hypot(*(other.position - point)) < (other.LENGTH + look[0][0]) / 2.0 + 0.6:
                return None
        heading = float(self.alignment.headings(s) + self.rng.normal(0.0, askew))
        if self.two_way and r < 0.0:
            heading += np.pi
        body = ParkedVehicle(self.road, point, heading, look[0][:2])
        self.road.objects.append(body)
        self._enlist(body, class_id, look, protected)
        return self.actors[-1]

    def walker(
        self,
        path_sr: list[tuple[float, float]],
        *,
        class_id: int = PEDESTRIAN,
        speed: float | None = None,
        starts: Callable[[float], bool] | None = None,
        stops_at: float = np.inf,
        protected: bool = False,
    ) -> Walker:
        """Somebody following a path given in (s, r) of the reference line."""
        if speed is None:
            speed = float(self.rng.uniform(0.9, 1.9) if class_id == PEDESTRIAN else self.rng.uniform(2.5, 5.0))
        corners = np.array(path_sr)
        legs = np.concatenate(
            [np.linspace(a, b, 12)[:-1] for a, b in zip(corners[:-1], corners[1:], strict=True)] + [corners[-1:]]
        )
        look = self.look(class_id)
        walker = Walker(
            self.alignment.positions(legs[:, 0], legs[:, 1]),
            speed,
            look[0][:2],
            starts=starts,
            stops_at=stops_at,
        )
        self.road.walkers.append(walker)
        self._enlist(walker, class_id, look, protected)
        return walker

    def fill_lane(
        self,
        lane_index: LaneIndex,
        first: float,
        last: float,
        mean_gap: float,
        flow: float,
        *,
        change_lanes: bool = False,
    ) -> None:
        """Traffic on a stretch of a lane at a flow speed [m/s], `mean_gap` metres apart on average."""
        s = first + self.rng.exponential(mean_gap)
        while s < last:
            speed = flow * self.rng.uniform(0.9, 1.1)
            self.vehicle(lane_index, s, speed, target_speed=max(speed * 1.05, 3.0), change_lanes=change_lanes)
            s += 12.0 + 0.9 * flow + self.rng.exponential(mean_gap)

    def fill_neighbours(self, *, speed_share: tuple[float, float] = (0.6, 1.1), change_lanes: bool = False) -> None:
        """Random traffic on the lanes beside the robot's, and against it."""
        density = self.rng.uniform(12.0, 70.0)
        for i in range(self.num_lanes):
            if i == self.ego_lane:
                continue
            flow = self.speed_limit * self.rng.uniform(*speed_share)
            self.fill_lane((*FORWARD, i), 5.0, EGO_START_S + 170.0, density, flow, change_lanes=change_lanes)
        if self.two_way:
            flow = self.speed_limit * self.rng.uniform(0.6, 1.05)
            length = self.alignment.length
            self.fill_lane((*ONCOMING, 0), 5.0, length - EGO_START_S - 8.0, density * 1.5, flow)

    def fill_pavements(self) -> None:
        """Parked vehicles beside the lanes, and people on the pavements."""
        rng = self.rng
        if self.parking:
            sides = [self.section.right - self.parking / 2.0]
            if self.two_way:
                sides.append(self.section.left + self.parking / 2.0)
            for r in sides:
                share = rng.uniform(0.1, 0.7)
                s = EGO_START_S - 40.0
                while s < self.alignment.length - 10.0:
                    if rng.random() < share:
                        self.parked(s, r + rng.normal(0, 0.07), class_id=CAR if self.parking < 2.6 else None)
                    s += 6.5
        if self.urban:
            for edge, side in ((self.section.right, 1.0), (self.section.left, -1.0)):
                for _ in range(int(rng.integers(0, 8))):
                    s = EGO_START_S + rng.uniform(-20.0, 0.9 * self.alignment.length - EGO_START_S)
                    r = edge + side * rng.uniform(0.8, 2.2)
                    goal = float(np.clip(s + rng.choice([-1, 1]) * 60.0, 5.0, self.alignment.length - 5.0))
                    if rng.random() < 0.25:
                        self.walker([(s, r), (goal, r)], stops_at=0.0)
                    else:
                        cyclist = rng.random() < 0.15
                        self.walker([(s, r), (goal, r)], class_id=CYCLIST if cyclist else PEDESTRIAN)

    # -------------------------------------------------------------- running and keeping

    def run(self, seed: int) -> Scenario:
        """Run the world and keep what happened."""
        ego = self.ego
        assert ego is not None
        road = self.road
        road.start()
        num_steps = int(np.ceil((self.duration_s + LABEL_HORIZON_S) / STEP_S)) + 1
        bodies = [actor.body for actor in self.actors]
        states = np.zeros((num_steps, len(bodies) + 1, 3))
        twists = np.zeros((num_steps, 2))
        for t in range(num_steps):
            for row, body in enumerate([ego, *bodies]):
                states[t, row] = (*body.position, body.heading)
            twists[t] = ego.speed, ego.yaw_rate
            for cue in self.cues:
                cue(road.time)
            road.act()
            road.step(STEP_S)
        # Mirror y: highway-env's points right. Then the robot's first pose becomes the origin.
        states *= np.array([1.0, -1.0, -1.0])
        states[..., 2] = np.unwrap(states[..., 2], axis=0)
        base = states[:, 0].copy()
        base[:, 0] -= EGO_CENTER_X * np.cos(base[:, 2])
        base[:, 1] -= EGO_CENTER_X * np.sin(base[:, 2])
        x0, y0, yaw0 = base[0]
        c, s = np.cos(yaw0), np.sin(yaw0)
        odom_from_world = np.array([[c, s], [-s, c]])

        def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return (points - np.array([x0, y0])) @ odom_from_world.T

        def to_odom(points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
            return moved(points_N2 * np.array([1.0, -1.0]))

        states[..., :2], states[..., 2] = moved(states[..., :2]), states[..., 2] - yaw0
        yaw_rates = np.gradient(base[:, 2], STEP_S)
        ego_T5 = np.column_stack([moved(base[:, :2]), base[:, 2] - yaw0, twists[:, 0], yaw_rates])

        clutter = np.concatenate([scatter(self.alignment, self.section, self._pavement, self.rng), self.debris.array()])
        clutter[:, :2] = to_odom(clutter[:, :2])
        clutter[:, 6] = -clutter[:, 6] - yaw0
        agents = states[:, 1:]
        s = np.arange(max(EGO_START_S - 60.0, 0.0), self.alignment.length, 2.0)
        lane_r = self.ego_lane * self.lane_width
        start_ns = START_NS
        scenario = Scenario(
            kind=self.kind,
            seed=seed,
            start_ns=start_ns,
            end_ns=start_ns + round(self.duration_s * 1e9),
            route=Route(to_odom(self.alignment.positions(s, lane_r))),
            speed_limit=self.speed_limit,
            conditions=random_conditions(self.rng),
            road=surface(self.alignment, self.section, to_odom),
            ego_T5=ego_T5,
            agents_TN3=agents,
            velocities_TN2=np.gradient(agents[..., :2], STEP_S, axis=0),
            sizes_N3=np.array([actor.size for actor in self.actors]).reshape(-1, 3),
            class_ids_N=np.array([actor.class_id for actor in self.actors], np.int64),
            parts=_parts(self.actors, self.rng),
            clutter_C12=clutter,
            collided=False,
            swerves=tuple(
                (start_ns + round(a * 1e9), start_ns + round((b + 0.3) * 1e9)) for a, b, _ in ego.swerves
            ),
        )
        return self._judged(scenario, states)

    @property
    def _pavement(self) -> float:
        return 3.2 if self.urban else 0.0

    def _judged(self, scenario: Scenario, states: NDArray[np.float64]) -> Scenario:
        """Without agents that ran into each other, and marked if the robot ran into something."""
        sizes = np.concatenate([[(EGO_LENGTH, EGO_WIDTH)], scenario.sizes_N3[:, :2]])
        keep = np.ones(len(self.actors), np.bool_)
        protected = np.array([actor.protected for actor in self.actors], np.bool_)
        for i, j in contacts(states[:, 1:], sizes[1:]):
            if keep[i] and keep[j]:
                keep[i if protected[j] and not protected[i] else j] = False
        debris = self.debris.array()
        still = np.tile(scenario.clutter_C12[len(scenario.clutter_C12) - len(debris) :, [0, 1, 6]], (len(states), 1, 1))
        everything = np.concatenate([states[:, :1], states[:, 1:][:, keep], still], axis=1)
        all_sizes = np.concatenate([sizes[:1], sizes[1:][keep], debris[:, 3:5]])
        return replace(
            scenario,
            agents_TN3=scenario.agents_TN3[:, keep],
            velocities_TN2=scenario.velocities_TN2[:, keep],
            sizes_N3=scenario.sizes_N3[keep],
            class_ids_N=scenario.class_ids_N[keep],
            parts=scenario.parts.without(keep),
            collided=any(i == 0 for i, _ in contacts(everything, all_sizes, only_first=True)),
        )


def contacts(
    states_TN3: NDArray[np.float64], sizes_N2: NDArray[np.float64], *, only_first: bool = False
) -> list[tuple[int, int]]:
    """Pairs of rectangles that overlap at some step (separating axes), i < j.

    Args:
        states_TN3: (T, N, 3) x, y [m], yaw [rad].
        sizes_N2: (N, 2) length, width [m].
        only_first: Look at pairs with rectangle 0 only.
    Returns:
        Pairs in order.
    """
    num = len(sizes_N2)
    radii = np.hypot(sizes_N2[:, 0], sizes_N2[:, 1]) / 2.0
    i, j = np.triu_indices(num, k=1)
    if only_first:
        i, j = i[i == 0], j[i == 0]
    if not len(i):
        return []
    distance = np.linalg.norm(states_TN3[:, i, :2] - states_TN3[:, j, :2], axis=-1)
    t, p = np.nonzero(distance < radii[i] + radii[j])
    if not len(t):
        return []
    a, b = states_TN3[t, i[p]], states_TN3[t, j[p]]
    corners_a = footprint_corners_N42(a[:, :2], sizes_N2[i[p]], a[:, 2])
    corners_b = footprint_corners_N42(b[:, :2], sizes_N2[j[p]], b[:, 2])
    separated = np.zeros(len(t), np.bool_)
    for yaw in (a[:, 2], a[:, 2] + np.pi / 2, b[:, 2], b[:, 2] + np.pi / 2):
        axis = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)[:, None]
        on_a, on_b = (corners_a * axis).sum(-1), (corners_b * axis).sum(-1)
        separated |= (on_a.max(1) < on_b.min(1)) | (on_b.max(1) < on_a.min(1))
    hit = np.unique(p[~separated])
    return [(int(i[k]), int(j[k])) for k in hit]


def _parts(actors: list[_Actor], rng: np.random.Generator) -> Parts:
    """Cars have a bonnet, lorries a cab, cyclists a bicycle."""
    rows: list[tuple[float, ...]] = []

    def part(
        agent: int,
        offset_x: float,
        bottom: float,
        size: tuple[float, float, float],
        color: tuple[float, ...],
        reflectivity: float,
        rcs: float,
    ) -> None:
        shade = np.clip(color, 0, 255).tolist()
        rows.append((agent, offset_x, 0.0, bottom + size[2] / 2.0, *size, *shade, reflectivity, rcs))

    for agent, actor in enumerate(actors):
        length, width, height = actor.size
        color, shine = actor.color, actor.reflectivity
        if actor.class_id == CAR:
            glass = (38, 42, 48)
            belt = height * rng.uniform(0.52, 0.62)
            part(agent, 0.0, 0.2, (length, width, belt - 0.2), color, shine, 10.0)
            van = rng.random() < 0.2
            cabin = length * (rng.uniform(0.75, 0.9) if van else rng.uniform(0.45, 0.6))
            shift = (cabin - length) / 2.0 + (0.02 if van else rng.uniform(0.05, 0.14)) * length
            part(agent, shift, belt, (cabin, 0.9 * width, height - belt), glass, 0.7 * shine, 4.0)
        elif actor.class_id == TRUCK:
            if rng.random() < 0.4:  # a bus
                part(agent, 0.0, 0.25, (length, width, height - 0.25), color, shine, 20.0)
                continue
            cab = rng.uniform(1.9, 2.4)
            low = rng.uniform(0.65, 0.95) * height
            part(agent, (length - cab) / 2.0, 0.3, (cab, width, low - 0.3), color, shine, 16.0)
            gray = tuple(int(v) for v in rng.integers(120, 240, 3))
            box = length - cab - 0.3
            part(agent, -(length - box) / 2.0, 0.7, (box, width, height - 0.7), gray, 0.6, 20.0)
        elif actor.class_id == CYCLIST:
            part(agent, 0.0, 0.0, (length, 0.12, min(1.0, 0.6 * height)), (45, 45, 45), 0.4, -2.0)
            part(agent, -0.1, 0.7, (0.5, width, height - 0.7), color, shine, -4.0)
        else:
            part(agent, 0.0, 0.0, (length, width, height), color, shine, -6.0)
    table = np.array(rows, np.float64).reshape(-1, 12)
    return Parts(
        agents_P=table[:, 0].astype(np.int64),
        offsets_P3=table[:, 1:4],
        sizes_P3=table[:, 4:7],
        colors_P3=table[:, 7:10].astype(np.uint8),
        reflectivities_P=table[:, 10],
        rcs_P=table[:, 11],
    )


# ------------------------------------------------------------------ the kinds


def _highway(stage: _Stage) -> None:
    stage.put_ego()
    rng = stage.rng
    density = rng.uniform(15.0, 90.0)
    for i in range(stage.num_lanes):
        flow = stage.speed_limit * rng.uniform(0.6, 1.0)
        stage.fill_lane((*FORWARD, i), 5.0, EGO_START_S + 200.0, density, flow, change_lanes=True)


def _braking_lead(stage: _Stage) -> None:
    rng = stage.rng
    share = float(rng.uniform(0.6, 1.0))
    ego = stage.put_ego(share)
    begins = rng.uniform(1.0, max(1.5, 0.55 * stage.duration_s))
    braking = rng.uniform(2.5, 7.0)
    lasts = rng.uniform(2.0, 6.0)
    slow = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 0.6)) * ego.speed
    resumes = rng.random() < 0.6
    lead: TrafficVehicle | None = None

    def script(time: float) -> float | None:
        assert lead is not None
        if time < begins or (resumes and time > begins + lasts + lead.target_speed / braking):
            return None
        return float(np.clip((slow - lead.speed) / 0.4, -braking, 0.0))

    gap = ego.speed * rng.uniform(1.2, 2.4) + 10.0
    lead = stage.vehicle(
        (*FORWARD, stage.ego_lane),
        EGO_START_S + gap,
        ego.speed,
        target_speed=ego.speed * rng.uniform(0.95, 1.1),
        script=script,
        protected=True,
    )
    stage.fill_lane((*FORWARD, stage.ego_lane), EGO_START_S + gap + 40.0, EGO_START_S + gap + 150.0, 40.0, ego.speed)
    stage.fill_neighbours()
    stage.fill_pavements()


def _queue(stage: _Stage, first: float, leaves_after: float | None) -> None:
    """Vehicles at standstill one behind the other, the last at `first`; the front one leaves, or never."""

    def script(time: float) -> float | None:
        return None if leaves_after is not None and time > leaves_after else -3.0

    s = first
    for k in range(int(stage.rng.integers(1, 6))):
        stage.vehicle(
            (*FORWARD, stage.ego_lane),
            s,
            0.0,
            target_speed=stage.speed_limit * stage.rng.uniform(0.5, 0.95),
            # Those behind follow the one before them; without this they would close up at once.
            script=script if k == 0 or leaves_after is None else _after(script, 0.8 * k),
            protected=True,
        )
        s += stage.rng.uniform(7.5, 10.0) + (6.0 if stage.rng.random() < 0.15 else 0.0)


def _after(script: Script, delay: float) -> Script:
    return lambda time: script(time - delay)


def _stopped_queue(stage: _Stage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    needed = ego.speed**2 / (2.0 * 2.2) + 20.0
    leaves = float(rng.uniform(5.0, 14.0)) if rng.random() < 0.4 else None
    _queue(stage, EGO_START_S + needed + rng.uniform(5.0, 70.0), leaves)
    stage.fill_neighbours(speed_share=(0.15, 1.0))
    stage.fill_pavements()


def _blocked_lane(stage: _Stage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    s = EGO_START_S + ego.speed**2 / (2.0 * 2.2) + rng.uniform(25.0, 80.0)
    centre = stage.ego_lane * stage.lane_width
    side = 1.0 if stage.ego_lane == stage.num_lanes - 1 else float(rng.choice([-1.0, 1.0]))
    passable = rng.random() < 0.3  # the same sight, but there is room: no reason to stop
    if rng.random() < 0.75:
        reach = 1.0 + EGO_WIDTH / 2.0
        r = centre + side * (reach + rng.uniform(0.8, 1.6) if passable else rng.uniform(0.0, reach - 0.5))
        class_id = TRUCK if rng.random() < 0.3 and not passable else CAR
        stage.parked(s, r, class_id=class_id, askew=0.08, protected=True)
        if rng.random() < 0.4:
            stage.parked(s + rng.uniform(9.0, 16.0), r, class_id=CAR, askew=0.08, protected=True)
    else:
        size = tuple(float(v) for v in rng.uniform((0.6, 0.6, 0.45), (1.6, 1.6, 1.2)))
        reach = (size[1] + EGO_WIDTH) / 2.0
        r = centre + side * (reach + rng.uniform(0.8, 1.4) if passable else rng.uniform(0.0, reach - 0.3))
        heading = float(rng.uniform(0.0, np.pi))
        point = stage.alignment.positions(s, r)
        tone = rng.uniform(60, 200)
        stage.debris.add(point, heading, (size[0], size[1], size[2]), (tone, tone * 0.8, tone * 0.5), reflectivity=0.4, rcs=2.0)
        # In its own axes the box is longer than along the road, but never by more than its diagonal.
        body = ParkedVehicle(stage.road, point, heading, (float(np.hypot(*size[:2])), size[1]))
        stage.road.objects.append(body)
    stage.fill_neighbours()
    stage.fill_pavements()


def _cut_in(stage: _Stage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    sides = [i for i in (stage.ego_lane - 1, stage.ego_lane + 1) if 0 <= i < stage.num_lanes]
    lane = int(rng.choice(sides))
    speed = max(ego.speed - rng.uniform(-1.0, 5.0), 4.0)
    gap = EGO_LENGTH + rng.uniform(6.0, 28.0)
    merges = rng.uniform(1.0, max(1.5, 0.5 * stage.duration_s))
    brakes = rng.uniform(2.0, 5.0) if rng.random() < 0.35 else 0.0
    stays = rng.random() < 0.2  # drives beside and never comes over

    def script(time: float) -> float | None:
        return -brakes if brakes and merges + 2.5 < time < merges + 5.0 else None

    intruder = stage.vehicle(
        (*FORWARD, lane), EGO_START_S + gap, speed, target_speed=speed, script=script, class_id=None, protected=True
    )
    assert intruder is not None

    def merge(time: float) -> None:
        if stays or time < merges or intruder.target_lane_index[2] == stage.ego_lane:
            return
        road = stage.road
        ahead = road.lane_position(intruder, ego.lane_index)[0] - road.lane_position(ego, ego.lane_index)[0]
        # Somebody impatient, not a murderer: comes over once there is a car's length and half a second.
        if ahead > (intruder.LENGTH + ego.LENGTH) / 2.0 + 2.0 + 0.5 * max(ego.speed - intruder.speed, 0.0) * 3.0:
            intruder.target_lane_index = (*FORWARD, stage.ego_lane)

    stage.cues.append(merge)
    stage.fill_lane((*FORWARD, stage.ego_lane), EGO_START_S + 90.0, EGO_START_S + 220.0, 60.0, ego.speed)
    stage.fill_neighbours(speed_share=(0.8, 1.1))


def _crossing(stage: _Stage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    s_cross = EGO_START_S + rng.uniform(35.0, 35.0 + 0.45 * stage.speed_limit * stage.duration_s)
    occluded = rng.random() < 0.45
    side = 1.0 if occluded or rng.random() < 0.7 else -1.0
    edge = stage.section.right if side > 0 else stage.section.left
    if occluded:
        width = 2.5
        r = (stage.num_lanes - 0.5) * stage.lane_width + 0.4 + width / 2.0
        actor = stage.parked(s_cross - rng.uniform(6.5, 8.5), r, class_id=TRUCK, askew=0.0, protected=True)
        assert actor is not None
        s = s_cross - 7.5
        lane_r = r - stage.ego_lane * stage.lane_width
        half = actor.size[0] / 2.0
        stage.road.occluders.append((s - half, s + half, lane_r - actor.size[1] / 2.0, lane_r + actor.size[1] / 2.0))
        edge = max(edge, r + width / 2.0 + 0.3)
    class_id = CYCLIST if rng.random() < 0.3 else PEDESTRIAN
    waits = rng.random() < 0.2  # comes to the kerb and lets the robot pass
    people = 1 + int(rng.random() < 0.3)
    to_kerb = rng.uniform(0.5, 2.5)
    walk_speed = float(rng.uniform(1.0, 1.9) if class_id == PEDESTRIAN else rng.uniform(2.0, 3.5))
    reaches_lane = (to_kerb + abs(edge - stage.ego_lane * stage.lane_width) - 1.2) / walk_speed
    # How long before the robot is there the walker reaches the lane; in between lies everything worth seeing.
    margin = rng.uniform(-0.3, 2.6) if not occluded else rng.uniform(0.6, 2.2)

    def starts(_time: float) -> bool:
        s_ego = stage.road.lane_position(ego, ego.lane_index)[0]
        return bool((s_cross - s_ego) / max(ego.speed, 2.0) < reaches_lane + margin)

    for k in range(people):
        far = -side * (stage.section.right - stage.section.left + 6.0)
        s_start = s_cross + 1.1 * k + rng.normal(0, 0.3)
        begin = (s_start, edge + side * (to_kerb + 0.4 * k))
        end = (s_start + rng.uniform(-3.0, 3.0), edge + side * to_kerb + far)
        stage.walker(
            [begin, end],
            class_id=class_id,
            speed=walk_speed * rng.uniform(0.95, 1.05),
            starts=starts,
            stops_at=to_kerb - 0.2 if waits else np.inf,
            protected=True,
        )
    stage.fill_neighbours()
    stage.fill_pavements()


def _two_way(stage: _Stage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    choice = rng.random()
    if choice < 0.35:
        speed = float(rng.uniform(3.5, 6.0))
        stage.vehicle(
            (*FORWARD, 0),
            EGO_START_S + ego.speed * 3.0 + rng.uniform(10.0, 40.0),
            speed,
            target_speed=speed,
            class_id=CYCLIST,
            offset=rng.uniform(0.2, 0.9),
            protected=True,
        )
    elif choice < 0.8:
        flow = stage.speed_limit * rng.uniform(0.5, 1.0)
        stage.fill_lane((*FORWARD, 0), EGO_START_S + 15.0 + 1.3 * ego.speed, EGO_START_S + 150.0, 40.0, flow)
    stage.fill_lane((*FORWARD, 0), 5.0, EGO_START_S - 25.0, 30.0, ego.speed * 0.95)
    stage.fill_neighbours()
    stage.fill_pavements()


def _standstill(stage: _Stage) -> None:
    rng = stage.rng
    stage.put_ego(0.0, calm=True)
    leaves = float(rng.uniform(0.8, 0.6 * stage.duration_s)) if rng.random() < 0.75 else None
    _queue(stage, EGO_START_S + EGO_LENGTH / 2.0 + rng.uniform(5.0, 8.5), leaves)
    stage.fill_lane((*FORWARD, stage.ego_lane), 5.0, EGO_START_S - 12.0, 5.0, 0.0)
    stage.fill_neighbours(speed_share=(0.0, 1.0))
    stage.fill_pavements()


_SETTINGS: dict[str, Callable[[_Stage], None]] = {
    "highway": _highway,
    "braking_lead": _braking_lead,
    "stopped_queue": _stopped_queue,
    "blocked_lane": _blocked_lane,
    "cut_in": _cut_in,
    "crossing": _crossing,
    "two_way": _two_way,
    "standstill": _standstill,
}
