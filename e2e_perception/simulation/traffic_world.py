"""Simulated traffic as a `World`.

A scenario is (family, seed, difficulty); the same triple is the same episode to the last bit. A family is a
road (`highway`, `merge`, `exit`, `intersection`, `roundabout`, `two_way`), plain or with a hazard on it, e.g.
`highway+cut_in`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, SE3, wrap_angle
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.core.trajectories import Plan, Route
from e2e_perception.simulation.appearance import parts_of
from e2e_perception.simulation.drivers import TrafficVehicle, Walker
from e2e_perception.simulation.hazards import HAZARDS
from e2e_perception.simulation.junction_stage import JunctionStage
from e2e_perception.simulation.scenario import contacts
from e2e_perception.simulation.scenery import weather
from e2e_perception.simulation.stage import EGO_CENTER_X, CorridorStage, Stage
from e2e_perception.simulation.traffic import SETTINGS
from e2e_perception.simulation.world import (
    START_NS,
    STEP_NS,
    STEP_S,
    AgentHistory,
    AgentStates,
    Cast,
    Imagined,
)

ROADS = ("highway", "merge", "exit", "intersection", "roundabout", "two_way")
# Which hazards there are on which road.
HAZARDS_ON: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "highway": (
            "cut_in",
            "braking_lead",
            "stopped_queue",
            "blocked_lane",
            "standstill",
            "debris",
            "blocking_truck",
        ),
        "merge": ("aggressive_merger", "braking_lead", "blocking_truck"),
        "exit": ("braking_lead", "stopped_queue", "debris", "blocking_truck"),
        "intersection": ("crossing", "cyclist", "braking_lead", "stopped_queue", "blocking_truck"),
        "roundabout": ("crossing", "cyclist", "braking_lead", "stopped_queue"),
        "two_way": (
            "crossing",
            "cyclist",
            "braking_lead",
            "stopped_queue",
            "blocked_lane",
            "standstill",
            "debris",
            "blocking_truck",
        ),
    }
)
FAMILIES = tuple(
    family for road in ROADS for family in (road, *(f"{road}+{hazard}" for hazard in HAZARDS_ON[road]))
)
DURATION_S: Mapping[str, float] = MappingProxyType(
    {"highway": 14.0, "merge": 34.0, "exit": 34.0, "intersection": 40.0, "roundabout": 40.0, "two_way": 16.0}
)
ATTENTION = 75.0  # [m] around the robot within which the others' decisions are imagined
ROUTE_SPACING = 2.0  # [m]
ROUTE_BEHIND = 30.0  # [m] of it behind the robot


@dataclass(frozen=True, order=True)
class ScenarioSpec:
    """What makes a scenario: one of `FAMILIES`, a seed, and a difficulty from 0 to 1."""

    family: str
    seed: int
    difficulty: float = 0.5

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"unknown scenario family {self.family!r}; there are {', '.join(FAMILIES)}")
        if self.seed < 0:
            raise InputError(f"scenario seed is {self.seed}, expected 0 or more")
        if not 0.0 <= self.difficulty <= 1.0:
            raise InputError(f"scenario difficulty is {self.difficulty}, expected 0 … 1")

    @property
    def name(self) -> str:
        """`family/seed@difficulty`."""
        return f"{self.family}/{self.seed}@{self.difficulty:g}"

    @staticmethod
    def parse(text: str) -> ScenarioSpec:
        """From a name; the difficulty may be left out.

        Raises:
            InputError: If it is not of that form, or the family is unknown.
        """
        family, slash, rest = text.partition("/")
        seed, _, difficulty = rest.partition("@")
        try:
            return ScenarioSpec(family, int(seed), float(difficulty or 0.5))
        except ValueError as error:
            if isinstance(error, InputError) and slash:
                raise
            raise InputError(
                f"scenario {text!r} is not of the form family/seed or family/seed@difficulty"
            ) from error

    def generator(self) -> np.random.Generator:
        """Of everything that varies in it."""
        return np.random.default_rng(
            (self.seed, zlib.crc32(self.family.encode()), round(1e6 * self.difficulty))
        )


def make_stage(spec: ScenarioSpec) -> Stage:
    """Set the stage of a scenario: road, robot, traffic, hazard."""
    road, _, hazard = spec.family.partition("+")
    rng = spec.generator()
    if road not in ("highway", "two_way"):
        junction = JunctionStage(road, rng, spec.difficulty)
        share = float(rng.uniform(0.75, 1.0))
        pace = min(share * junction.speed_limit, junction.way.speed_at(junction.ego_s))
        junction.put_ego(pace / junction.speed_limit)
        if hazard:
            HAZARDS[hazard](junction)
        junction.fill_roads()
        return junction
    kind = hazard if hazard in SETTINGS else road
    setting: Literal["highway", "two_way"] = "highway" if road == "highway" else "two_way"
    stage = CorridorStage(kind, DURATION_S[road], rng, spec.difficulty, setting=setting)
    if hazard and hazard not in SETTINGS:
        stage.put_ego()
        HAZARDS[hazard](stage)
        if road == "two_way":
            stage.fill_lane(stage.ego_index, 5.0, stage.ego_s - 25.0, 30.0, 0.9 * stage.speed_limit)
        stage.fill_neighbours(change_lanes=True)
        stage.fill_pavements()
    else:
        SETTINGS[kind](stage)
    stage.fill_opposite()
    return stage


class TrafficWorld:
    """Traffic that reacts to the robot; see `World` for what it offers.

    Attributes:
        spec: What it was made from.
        removed: How many agents were taken away because they ran into each other.
    """

    def __init__(self, spec: ScenarioSpec) -> None:
        """Make the scenario; the robot is where it starts and nothing has moved yet."""
        stage = make_stage(spec)
        ego = stage.ego
        assert ego is not None
        self.spec, self.removed = spec, 0
        self.name, self.family = spec.name, spec.family
        self.seed, self.difficulty = spec.seed, spec.difficulty
        self.start_ns = START_NS
        self.end_ns = START_NS + round(DURATION_S[spec.family.partition("+")[0]] * 10) * STEP_NS
        self.speed_limit = stage.speed_limit
        self.provenance: Mapping[str, str] = {
            "agents": "modelled",
            "map": "modelled",
            "lidar": "modelled",
            "cameras": "modelled",
            "radars": "modelled",
        }
        self._stage, self._ego = stage, ego
        ego.puppet, ego.leaves = True, False
        self._bodies = [actor.body for actor in stage.actors]
        self._protected = np.array([actor.protected for actor in stage.actors], np.bool_)
        stage.road.start()

        heading = ego.heading
        rear = ego.position - EGO_CENTER_X * ego.direction
        # Mirror y: highway-env's points right. The robot's first pose is the origin.
        self._odom_from_world = SE2(rear[0], -rear[1], -heading).inverse()
        self.start = EgoState(START_NS, SE3.planar(0.0, 0.0, 0.0), np.array([ego.speed, 0.0, 0.0]), 0.0)
        sizes = np.array([actor.look.size for actor in stage.actors], np.float64).reshape(-1, 3)
        obstacles = stage.debris.array()
        clutter = np.concatenate([stage.scenery(), obstacles])
        clutter[:, :2] = self._to_odom(clutter[:, :2])
        clutter[:, 6] = -clutter[:, 6] + self._odom_from_world.yaw
        self.cast = Cast(
            sizes_N3=sizes,
            class_ids_N=np.array([actor.look.class_id for actor in stage.actors], np.int64),
            parts=parts_of([actor.look for actor in stage.actors], stage.rng),
            clutter_C12=clutter,
            road=stage.ground(self._to_odom),
            conditions=weather(stage.rng, spec.difficulty),
            obstacles_C=np.arange(len(clutter)) >= len(clutter) - len(obstacles),
        )
        self.obstacles_O5 = self.cast.obstacles_O5
        stations = np.arange(stage.ego_s - ROUTE_BEHIND, stage.length, ROUTE_SPACING)
        self.route = Route(self._to_odom(stage.positions(stations, stage.ego_r)))
        start_s, _ = self.route.project((0.0, 0.0))
        self.goal_s = start_s + stage.goal_s - stage.ego_s
        self._yaws = np.array([body.heading for body in self._bodies])
        self._history = AgentHistory(START_NS)
        self._history.append(self._states())

    # ------------------------------------------------------------------ World

    @property
    def known_until_ns(self) -> int:
        """See `World`."""
        return self._history.known_until_ns

    def agents_at(self, stamp_ns: int) -> AgentStates:
        """See `World`."""
        return self._history.at(stamp_ns)

    def recorded(self, sensor: str, stamp_ns: int) -> tuple[int, ImageSample | PointsSample] | None:
        """Nothing is recorded here."""
        return None

    def advance(self, ego: EgoState) -> None:
        """See `World`."""
        self._place(ego)
        road = self._stage.road
        for cue in self._stage.cues:
            cue(road.time)
        road.act()
        road.step(STEP_S)
        road.come_and_go()
        self._part_colliding()
        self._history.append(self._states())

    # ------------------------------------------------------------------ for privileged drivers

    def imagine(
        self, ego: EgoState, horizon_s: float, step_s: float, plan: Plan | None = None, **driver: Any
    ) -> Imagined:
        """What would happen from now on; nothing of it does.

        Args:
            ego: The robot now, at `known_until_ns`.
            horizon_s, step_s: How far, and in which steps [s].
            plan: What the robot would drive, base frame of `ego`; None: it is driven like the other vehicles,
                along its route.
            **driver: Attributes of that driver, e.g. `heeds_priority=False` or `target_speed=5.0`.
        """
        road, car = self._stage.road, self._ego
        num = round(horizon_s / step_s)
        agents, present, egos = [], [], []
        with road.imagined():
            self._place(ego)
            if plan is None:
                car.puppet = False
                car.swerves = []
                for name, value in driver.items():
                    setattr(car, name, value)
            yaws = self._yaws.copy()
            for k in range(1, num + 1):
                for cue in self._stage.cues:
                    cue(road.time)
                road.act(near=(car.position, ATTENTION))
                road.step(step_s)
                if plan is not None:
                    self._place(_ego_on(plan, ego, k * step_s))
                states = self._states(yaws)
                agents.append(states.poses_N3)
                present.append(states.present_N)
                egos.append(self._ego_pose())
        times_T = np.asarray(step_s * np.arange(1, num + 1), np.float64)
        return Imagined(times_T, np.array(agents), np.array(present), np.array(egos))

    def sees(self, ego: EgoState, agent: int) -> bool:
        """Whether nothing large hides a walker from the robot; always so for others."""
        body = self._bodies[agent]
        if not isinstance(body, Walker) or not self._stage.road.occluders:
            return True
        self._place(ego)
        return not self._stage.road.hides(self._ego, body)

    # ------------------------------------------------------------------ frames

    def _to_odom(self, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._odom_from_world.apply(points_N2 * np.array([1.0, -1.0]))

    def _place(self, ego: EgoState) -> None:
        """Put the robot's body where it is."""
        pose = self._odom_from_world.inverse() @ ego.odom_from_base.planar_part()
        car = self._ego
        car.heading = -pose.yaw
        car.position = np.array([pose.x, -pose.y]) + EGO_CENTER_X * car.direction
        car.speed, car.yaw_rate = ego.speed, -ego.yaw_rate
        self._stage.road.refresh(car)

    def _ego_pose(self) -> NDArray[np.float64]:
        car = self._ego
        rear = car.position - EGO_CENTER_X * car.direction
        x, y = self._to_odom(rear[None])[0]
        return np.array([x, y, -car.heading + self._odom_from_world.yaw, car.speed])

    def _states(self, yaws: NDArray[np.float64] | None = None) -> AgentStates:
        kept = self._yaws if yaws is None else yaws
        bodies = self._bodies
        num = len(bodies)
        if num == 0:
            return AgentStates(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0, np.bool_))
        headings = np.array([body.heading for body in bodies])
        kept += wrap_angle(headings - kept)
        positions = np.array([body.position for body in bodies])
        speeds = np.array([body.speed for body in bodies])
        c, s = np.cos(headings), np.sin(headings)
        # The centre of a turning vehicle moves sideways, too.
        sideways = np.array([getattr(b, "yaw_rate", 0.0) * getattr(b, "rear_axle", 0.0) for b in bodies])
        velocities = np.stack([speeds * c - sideways * s, speeds * s + sideways * c], axis=1)
        turned = SE2(0.0, 0.0, self._odom_from_world.yaw)
        return AgentStates(
            poses_N3=np.column_stack([self._to_odom(positions), -kept + self._odom_from_world.yaw]),
            velocities_N2=turned.apply(velocities * np.array([1.0, -1.0])),
            present_N=np.array([getattr(body, "present", True) for body in bodies], np.bool_),
        )

    def _part_colliding(self) -> None:
        """Take one of two away who ran into each other; who belongs to the story stays."""
        states = self._states(self._yaws.copy())
        there = np.flatnonzero(states.present_N)
        poses = states.poses_N3[there]
        for i, j in contacts(poses[None], self.cast.sizes_N3[there, :2]):
            a, b = there[i], there[j]
            gone = a if self._protected[b] and not self._protected[a] else b
            body = self._bodies[gone]
            if not isinstance(body, TrafficVehicle):
                body = self._bodies[a if gone == b else b]
            if isinstance(body, TrafficVehicle) and body.present:
                body.disappear()
                self.removed += 1


def _ego_on(plan: Plan, ego: EgoState, seconds: float) -> EgoState:
    times = np.concatenate([[0.0], plan.times_P])
    points = np.concatenate([np.zeros((1, 2)), plan.points_P2])
    t = min(seconds, float(times[-1]))
    x, y = (float(np.interp(t, times, points[:, k])) for k in (0, 1))
    yaw = float(np.interp(t, times, np.concatenate([[0.0], plan.yaws_P])))
    speed = float(np.interp(t, times, np.concatenate([[ego.speed], plan.speeds_P])))
    pose = ego.odom_from_base.planar_part() @ SE2(x, y, yaw)
    stamp_ns = ego.stamp_ns + round(seconds * 1e9)
    return EgoState(stamp_ns, SE3.planar(pose.x, pose.y, pose.yaw), np.array([speed, 0.0, 0.0]), 0.0)
