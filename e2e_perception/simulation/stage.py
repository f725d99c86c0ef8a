"""A stage to set: a road with the robot on it, filled with road users, run and kept as a `Scenario`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import shapely
from highway_env.road.lane import AbstractLane
from highway_env.road.road import LaneIndex, RoadNetwork
from numpy.typing import ArrayLike, NDArray

from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.alignment import Alignment
from e2e_perception.simulation.appearance import CAR, CYCLIST, PEDESTRIAN, TRUCK, Look, parts_of
from e2e_perception.simulation.drivers import (
    DriverStyle,
    ParkedVehicle,
    Script,
    TrafficRoad,
    TrafficVehicle,
    Walker,
)
from e2e_perception.simulation.scenario import LABEL_HORIZON_S, Scenario, contacts
from e2e_perception.simulation.scene import Road
from e2e_perception.simulation.scenery import (
    WHITE,
    YELLOW,
    Clutter,
    CrossSection,
    ToOdom,
    random_conditions,
    scatter,
    surface,
)
from e2e_perception.simulation.world import START_NS, STEP_S

EGO_LENGTH, EGO_WIDTH, EGO_CENTER_X = 4.6, 1.9, 1.4  # [m], as in the shipped rigs
EGO_START_S = 90.0  # [m] along the road; traffic may start behind
FORWARD, ONCOMING = ("forward_start", "forward_end"), ("oncoming_start", "oncoming_end")
OPPOSITE = ("opposite_start", "opposite_end")


@dataclass(frozen=True)
class Actor:
    """A body and its outside; `protected`: part of the scenario's story."""

    body: TrafficVehicle | ParkedVehicle | Walker
    look: Look
    protected: bool


class Stage(ABC):
    """A road with the robot on it, being filled; what is common to roads of every shape.

    Places beside the robot's way are given as (s, r): `s` along the stage's reference line, `r` to its right.

    Attributes:
        difficulty: 0 (easy) … 1 (hard): how much is going on; None: what `simulate_scenario` makes.
        ego_s: Where the robot starts along the reference line [m].
        ego_r: Where the middle of its lane is [m].
        ego_index: Its lane.
        goal_s: Where along the reference line it has to get [m].
        cues: Called with the time [s] before each step: what happens on cue.
    """

    ego_s: float
    ego_r: float
    ego_index: LaneIndex
    goal_s: float
    length: float
    speed_limit: float
    urban: bool
    duration_s: float = 0.0

    def __init__(
        self, kind: str, network: RoadNetwork, rng: np.random.Generator, difficulty: float | None
    ) -> None:
        self.kind, self.rng, self.difficulty = kind, rng, difficulty
        self.road = TrafficRoad(network, rng)
        self.actors: list[Actor] = []
        self.debris = Clutter()
        self.ego: TrafficVehicle | None = None
        self.cues: list[Callable[[float], None]] = []

    @abstractmethod
    def positions(self, s: ArrayLike, r: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) [m]: points at (s, r)."""

    @abstractmethod
    def heading_at(self, s: float) -> float:
        """Of the reference line [rad]."""

    @abstractmethod
    def ground(self, to_odom: ToOdom) -> Road:
        """The surface, odom frame."""

    @abstractmethod
    def scenery(self) -> NDArray[np.float64]:
        """(C, 12), what stands beside the road, see `Clutter`; highway-env's coordinates."""

    @property
    def live(self) -> bool:
        """Whether the robot is driven by a policy: then every task has to be possible."""
        return self.difficulty is not None

    @property
    def has_decoys(self) -> bool:
        """Whether what looks like a hazard may turn out to be none."""
        return self.difficulty is None or self.difficulty < 0.5

    @property
    def crowding(self) -> float:
        """How much shorter gaps between vehicles are than usual."""
        return 1.0 if self.difficulty is None else 0.9 - 0.8 * self.difficulty

    # -------------------------------------------------------------- who is there

    def put_ego(self, speed_share: float | None = None, *, calm: bool = False) -> TrafficVehicle:
        """The robot, at `ego_s`; with some scenarios starting beside the lane's centre."""
        rng = self.rng
        share = rng.uniform(0.6, 1.05) if speed_share is None else speed_share
        offset, heading = 0.0, 0.0
        if not calm and rng.random() < 0.4:
            offset = float(rng.uniform(-0.6, 0.6))
            heading = float(rng.uniform(-1.0, 1.0) * np.deg2rad(1.0 + 20.0 / self.speed_limit))
        ego = TrafficVehicle(
            self.road,
            self.ego_index,
            self.ego_s,
            share * self.speed_limit,
            self.speed_limit * float(rng.uniform(0.95, 1.0)),
            (EGO_LENGTH, EGO_WIDTH),
            style=DriverStyle(
                time_gap=float(rng.uniform(1.3, 1.6)), standing_gap=float(rng.uniform(2.3, 3.0))
            ),
            offset=offset,
            heading_error=heading,
            rear_axle=EGO_CENTER_X,
            cautious=True,
        )
        if not self.live and not calm and rng.random() < 0.3:
            start = rng.uniform(1.0, 4.0)
            while start < self.duration_s - 1.0:
                side = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.1)
                ego.swerves.append((start, start + rng.uniform(0.8, 1.4), side))
                start += rng.uniform(4.0, 7.0)
        self.road.vehicles.append(ego)
        self.ego = ego
        return ego

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
        enters_at: float | None = None,
    ) -> TrafficVehicle | None:
        """A driver on a lane, or None if somebody is there already; or one who comes later, at a time [s]."""
        if class_id is None:
            class_id = TRUCK if self.rng.random() < 0.15 else CAR
        look = Look.random(class_id, self.rng)
        size_LW = look.footprint
        lane = self.road.network.get_lane(lane_index)
        there = enters_at is None and not self._is_free(lane_index, s, speed, size_LW[0])
        if not 0.0 < s < lane.length - 5.0 or there:
            return None
        driver = TrafficVehicle(
            self.road,
            lane_index,
            s,
            speed,
            max(
                target_speed if target_speed is not None else self.speed_limit * self.rng.uniform(0.75, 1.1),
                0.5,
            ),
            size_LW,
            style=DriverStyle.random(self.rng),
            change_lanes=change_lanes,
            script=script,
            offset=offset,
            enters_at=enters_at,
        )
        driver.lateral_bias = offset
        self.road.vehicles.append(driver)
        self.actors.append(Actor(driver, look, protected))
        return driver

    def _is_free(self, lane_index: LaneIndex, s: float, speed: float, length: float) -> bool:
        """Whether a vehicle of that speed fits in without anybody having to brake hard at once."""
        lane = self.road.network.get_lane(lane_index)
        for other in [*self.road.vehicles, *self.road.objects]:
            other_s, other_r = lane.local_coordinates(other.position)
            if abs(other_r) > other.WIDTH / 2.0 + 1.6:
                continue
            gap = abs(other_s - s) - (length + other.LENGTH) / 2.0
            rear, front = (speed, other.speed) if s < other_s else (other.speed, speed)
            if gap < 1.8 + 0.8 * rear + max(rear**2 - front**2, 0.0) / (2.0 * 2.5):
                return False
        return True

    def parked(
        self,
        s: float,
        r: float,
        *,
        class_id: int | None = None,
        askew: float = 0.02,
        protected: bool = False,
        faces_back: bool = False,
    ) -> Actor | None:
        """A parked vehicle at (s, r) of the reference line, or None if somebody is there already."""
        if class_id is None:
            class_id = TRUCK if self.rng.random() < 0.12 else CAR
        look = Look.random(class_id, self.rng)
        point = self.positions(s, r)
        if not self._has_room(point, look):
            return None
        heading = self.heading_at(s) + float(self.rng.normal(0.0, askew))
        if faces_back:
            heading += np.pi
        return self._put(point, heading, look, protected)

    def stand(self, point_2: NDArray[np.float64], heading: float, class_id: int) -> Actor | None:
        """A parked vehicle in highway-env's coordinates, or None if somebody is there already."""
        look = Look.random(class_id, self.rng)
        return self._put(point_2, heading, look, False) if self._has_room(point_2, look) else None

    def _has_room(self, point_2: NDArray[np.float64], look: Look) -> bool:
        return all(
            np.hypot(*(other.position - point_2)) >= (other.LENGTH + look.size[0]) / 2.0 + 0.6
            for other in self.road.objects
        )

    def _put(self, point_2: NDArray[np.float64], heading: float, look: Look, protected: bool) -> Actor:
        body = ParkedVehicle(self.road, point_2, heading, look.footprint)
        self.road.objects.append(body)
        self.actors.append(Actor(body, look, protected))
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
        corners = np.array(path_sr)
        legs = np.concatenate(
            [np.linspace(a, b, 12)[:-1] for a, b in zip(corners[:-1], corners[1:], strict=True)]
            + [corners[-1:]]
        )
        return self.walk(
            self.positions(legs[:, 0], legs[:, 1]),
            class_id=class_id,
            speed=speed,
            starts=starts,
            stops_at=stops_at,
            protected=protected,
        )

    def walk(
        self,
        path_P2: NDArray[np.float64],
        *,
        class_id: int = PEDESTRIAN,
        speed: float | None = None,
        starts: Callable[[float], bool] | None = None,
        stops_at: float = np.inf,
        protected: bool = False,
    ) -> Walker:
        """Somebody following a path in highway-env's coordinates (P, 2) [m]."""
        if speed is None:
            speed = float(
                self.rng.uniform(0.9, 1.9) if class_id == PEDESTRIAN else self.rng.uniform(2.5, 5.0)
            )
        look = Look.random(class_id, self.rng)
        walker = Walker(path_P2, speed, look.footprint, starts=starts, stops_at=stops_at)
        self.road.walkers.append(walker)
        self.actors.append(Actor(walker, look, protected))
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
        mean_gap *= self.crowding
        s = first + self.rng.exponential(mean_gap)
        while s < last:
            speed = flow * self.rng.uniform(0.9, 1.1)
            self.vehicle(lane_index, s, speed, target_speed=max(speed * 1.05, 3.0), change_lanes=change_lanes)
            s += 12.0 + 0.9 * flow + self.rng.exponential(mean_gap)


class CorridorStage(Stage):
    """Lanes beside each other along a straight, winding or bending road."""

    def __init__(
        self,
        kind: str,
        duration_s: float,
        rng: np.random.Generator,
        difficulty: float | None = None,
        *,
        setting: Literal["highway", "two_way"] | None = None,
    ) -> None:
        """Lay the road.

        Args:
            kind: See `traffic.KINDS`; it decides on urban or not, and on lanes.
            duration_s: The road is long enough for so much driving at the limit [s].
            rng: Randomness.
            difficulty: See the class.
            setting: What road, whatever the kind; None: the kind decides.
        """
        self.duration_s = duration_s
        self.rng = rng
        urban = kind in ("crossing", "two_way") or (
            kind in ("stopped_queue", "blocked_lane", "standstill") and rng.random() < 0.5
        )
        if setting is not None:
            urban = setting == "two_way"
        self.urban = urban
        self.two_way = "two_way" in (kind, setting) or (urban and rng.random() < 0.7)
        self.speed_limit = float(rng.uniform(8.0, 14.0) if urban else rng.uniform(16.0, 33.0))
        low = {"highway": 2, "cut_in": 2}.get(kind, 1)
        self.num_lanes = int(rng.integers(low, 5)) if not urban else int(rng.integers(low, 3))
        if "two_way" in (kind, setting):
            self.num_lanes = 1
        elif difficulty is not None:
            self.num_lanes = max(self.num_lanes, 2)
        self.lane_width = float(rng.uniform(3.0, 3.5) if urban else rng.uniform(3.3, 3.9))
        self.ego_lane = int(rng.integers(0, self.num_lanes))
        if kind in ("crossing", "two_way") or (kind == "blocked_lane" and rng.random() < 0.6):
            self.ego_lane = self.num_lanes - 1
        travelled = self.speed_limit * (duration_s + LABEL_HORIZON_S)
        self.alignment = Alignment.random(EGO_START_S + travelled + 160.0, self.speed_limit, rng)
        self.parking = float(rng.uniform(2.2, 2.8)) if urban and rng.random() < 0.7 else 0.0
        self.section = self._cross_section()
        self.ego_s, self.length = EGO_START_S, self.alignment.length
        self.ego_r, self.ego_index = self.ego_lane * self.lane_width, (*FORWARD, self.ego_lane)
        self.goal_s = EGO_START_S + 0.4 * self.speed_limit * duration_s
        network = RoadNetwork()
        for i in range(self.num_lanes):
            network.add_lane(*FORWARD, self._lane(i * self.lane_width))
        if self.two_way:
            network.add_lane(*ONCOMING, self._lane(-self.lane_width, oncoming=True))
        # A motorway's other carriageway, beyond a median.
        self.opposite: tuple[float, ...] = ()
        if difficulty is not None and not urban:
            median = float(rng.uniform(5.0, 10.0))
            self.opposite = (-median, -median - self.lane_width)
            for offset in self.opposite:
                network.add_lane(*OPPOSITE, self._lane(offset, oncoming=True))
        super().__init__(kind, network, rng, difficulty)

    def positions(self, s: ArrayLike, r: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) [m]: points at (s, r) of the reference line, the middle of the leftmost lane."""
        return self.alignment.positions(s, r)

    def heading_at(self, s: float) -> float:
        """Of the reference line [rad]."""
        return float(self.alignment.headings(s))

    def ground(self, to_odom: ToOdom) -> Road:
        """The surface, odom frame."""
        road = surface(self.alignment, self.section, to_odom)
        if not self.opposite:
            return road
        left, right = self._opposite_edges()
        edges = (to_odom(left), to_odom(right))
        return replace(
            road,
            drivable=(*road.drivable, np.concatenate([edges[0], edges[1][::-1]])),
            boundaries=(*road.boundaries, *edges),
        )

    def scenery(self) -> NDArray[np.float64]:
        """(C, 12), rails, houses, trees and poles along the road."""
        clutter = scatter(self.alignment, self.section, 3.2 if self.urban else 0.0, self.rng)
        if not self.opposite:
            return clutter
        left, right = self._opposite_edges()
        area = shapely.Polygon(np.concatenate([left, right[::-1]])).buffer(1.5)
        return np.asarray(clutter[~shapely.intersects_xy(area, clutter[:, 0], clutter[:, 1])])

    def _opposite_edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        s = np.arange(0.0, self.alignment.length, 4.0)
        margin = 0.5 * self.lane_width + 0.6
        return (
            self.alignment.positions(s, self.opposite[-1] - margin),
            self.alignment.positions(s, self.opposite[0] + margin),
        )

    def _lane(self, offset: float, *, oncoming: bool = False) -> AbstractLane:
        return self.alignment.lane(offset, self.lane_width, self.speed_limit * 1.2, oncoming=oncoming)

    def _cross_section(self) -> CrossSection:
        width, rng = self.lane_width, self.rng
        lines: list[tuple[float, Literal["solid", "dashed"], tuple[int, int, int]]] = [
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
        return CrossSection(left, right, tuple(lines), self.urban)

    def fill_neighbours(
        self, *, speed_share: tuple[float, float] = (0.6, 1.1), change_lanes: bool = False
    ) -> None:
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

    def fill_opposite(self) -> None:
        """Traffic on the other carriageway."""
        for i in range(len(self.opposite)):
            flow = self.speed_limit * self.rng.uniform(0.7, 1.05)
            last = self.alignment.length - 8.0
            self.fill_lane((*OPPOSITE, i), 5.0, last, self.rng.uniform(20.0, 70.0), flow, change_lanes=True)

    def fill_pavements(self) -> None:
        """Parked vehicles beside the lanes, and people on the pavements."""
        rng = self.rng
        if self.parking:
            sides = [self.section.right - self.parking / 2.0]
            if self.two_way:
                sides.append(self.section.left + self.parking / 2.0)
            for r in sides:
                share = rng.uniform(0.05, 0.5)
                s = EGO_START_S - 40.0
                while s < self.alignment.length - 60.0:
                    if rng.random() < share:
                        self.parked(
                            s,
                            r + rng.normal(0, 0.07),
                            class_id=CAR if self.parking < 2.6 else None,
                            faces_back=self.two_way and r < 0.0,
                        )
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
            return np.asarray((points - np.array([x0, y0])) @ odom_from_world.T)

        def to_odom(points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
            return moved(points_N2 * np.array([1.0, -1.0]))

        states[..., :2], states[..., 2] = moved(states[..., :2]), states[..., 2] - yaw0
        yaw_rates = np.gradient(base[:, 2], STEP_S)
        ego_T5 = np.column_stack([moved(base[:, :2]), base[:, 2] - yaw0, twists[:, 0], yaw_rates])

        clutter = np.concatenate([self.scenery(), self.debris.array()])
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
            road=self.ground(to_odom),
            ego_T5=ego_T5,
            agents_TN3=agents,
            velocities_TN2=np.gradient(agents[..., :2], STEP_S, axis=0),
            sizes_N3=np.array([actor.look.size for actor in self.actors]).reshape(-1, 3),
            class_ids_N=np.array([actor.look.class_id for actor in self.actors], np.int64),
            parts=parts_of([actor.look for actor in self.actors], self.rng),
            clutter_C12=clutter,
            obstacles_C=np.arange(len(clutter)) >= len(clutter) - len(self.debris.array()),
            collided=False,
            swerves=tuple(
                (start_ns + round(a * 1e9), start_ns + round((b + 0.3) * 1e9)) for a, b, _ in ego.swerves
            ),
        )
        return self._judged(scenario, states)

    def _judged(self, scenario: Scenario, states: NDArray[np.float64]) -> Scenario:
        """Without agents that ran into each other, and marked if the robot ran into something."""
        sizes = np.concatenate([[(EGO_LENGTH, EGO_WIDTH)], scenario.sizes_N3[:, :2]])
        keep = np.ones(len(self.actors), np.bool_)
        protected = np.array([actor.protected for actor in self.actors], np.bool_)
        for i, j in contacts(states[:, 1:], sizes[1:]):
            if keep[i] and keep[j]:
                keep[i if protected[j] and not protected[i] else j] = False
        debris = self.debris.array()
        still = np.tile(
            scenario.clutter_C12[len(scenario.clutter_C12) - len(debris) :, [0, 1, 6]], (len(states), 1, 1)
        )
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
