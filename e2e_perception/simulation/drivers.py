"""Road users on highway-env's road: drivers that follow IDM and MOBIL, and people who walk or cycle.

IDM: Treiber, Hennecke and Helbing, Phys. Rev. E 62 (2000). MOBIL: Kesting, Treiber and Helbing, TRR 1999
(2007); it is highway-env's. Deviations from highway-env: gaps are between bumpers, so that trucks keep their
distance; steering is pure pursuit (Coulter 1992), because the cascaded controller swerves at walking pace;
whoever is in the way is found by width instead of by lane, so that a car parked half in the lane counts; and
where paths cross, who gives way is settled for each pair of them.
Coordinates are highway-env's: y points right of x, angles grow clockwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from highway_env.road.road import LaneIndex, RoadNetwork
from highway_env.road.road import Road as HighwayRoad
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.objects import Obstacle
from numpy.typing import NDArray

from e2e_perception.simulation.alignment import lane_coordinates
from e2e_perception.simulation.paths import PathLane, meeting_zones

SIDE_MARGIN = 0.3  # [m] kept free beside a passing vehicle
LOOK_AHEAD_S = 1.0  # [s] for which the sideways motion of others is extrapolated
MAX_BRAKING = 8.0  # [m/s^2]
NO_ONE = (None, None)
NOWHERE = 1.0e5  # [m] where those are kept who have left, or have yet to come

CROSSING_CLEARANCE = 2.6  # [m] between two paths' centre lines: nearer, two vehicles do not pass
ZONE_LENGTH = 12.0  # [m] of a merge within which it is settled who goes first
WAIT_BEFORE = 1.5  # [m] kept between a waiting vehicle's front and the place where paths meet
CROSSING_MARGIN_S = 1.2  # [s] between one leaving and the other entering
STARTING_SPEED = 2.5  # [m/s] at which a waiting vehicle is expected to arrive
PATIENCE_S = 12.0  # [s] of waiting after which that margin is gone
STARTING_ACCELERATION = 2.0  # [m/s^2]
PASSING_SPEED = 7.0  # [m/s] from which on nobody is expected to speed up
MATCHING = 3.0  # [m/s^2] at which who merges gets as fast as who comes from behind

# Desired acceleration [m/s^2] at a time [s], or None to follow IDM alone.
Script = Callable[[float], float | None]


@dataclass
class DriverStyle:
    """Parameters of a driver.

    Attributes:
        acceleration: IDM's a [m/s^2].
        braking: IDM's comfortable b [m/s^2].
        time_gap: IDM's T [s].
        standing_gap: IDM's s0, bumper to bumper [m].
        max_jerk: Limit of the change of acceleration when braking [m/s^3]; a third of it otherwise.
    """

    acceleration: float = 1.6
    braking: float = 2.2
    time_gap: float = 1.4
    standing_gap: float = 2.5
    max_jerk: float = 25.0

    @staticmethod
    def random(rng: np.random.Generator) -> DriverStyle:
        """Some other driver."""
        return DriverStyle(
            acceleration=rng.uniform(1.0, 2.5),
            braking=rng.uniform(1.8, 3.0),
            time_gap=rng.uniform(0.9, 1.8),
            standing_gap=rng.uniform(1.5, 3.5),
        )


class Walker:
    """Somebody on foot or on a bicycle beside the road, following a polyline once a condition is met."""

    def __init__(
        self,
        path_P2: NDArray[np.float64],
        speed: float,
        size_LW: tuple[float, float],
        *,
        starts: Callable[[float], bool] | None = None,
        stops_at: float = np.inf,
    ) -> None:
        """Stand at the start of the path.

        Args:
            path_P2: (P, 2) [m].
            speed: [m/s]
            size_LW: Length and width [m].
            starts: Asked once per step with the time [s] until it says yes; None: walks from the beginning.
            stops_at: Distance along the path at which the walker stops for good [m].
        """
        steps = np.linalg.norm(np.diff(path_P2, axis=0), axis=1)
        self._distances = np.concatenate([[0.0], np.cumsum(steps)])
        self._path = path_P2
        self._along = 0.0
        self._goal = min(float(self._distances[-1]), stops_at)
        self._starts = starts
        self.target_speed = speed
        self.speed = speed if starts is None else 0.0
        self.size_LW = size_LW
        self.position = path_P2[0].copy()
        first = path_P2[1] - path_P2[0]
        self.heading = float(np.arctan2(first[1], first[0]))

    def step(self, dt: float, time: float) -> None:
        """Move on by `dt` seconds."""
        if self._starts is not None:
            if not self._starts(time):
                return
            self._starts = None
        remaining = self._goal - self._along
        wanted = self.target_speed if remaining > 0.3 else 0.0
        self.speed += float(np.clip(wanted - self.speed, -3.0 * dt, 2.5 * dt))
        self._along = min(self._along + self.speed * dt, float(self._distances[-1]))
        i = min(int(np.searchsorted(self._distances, self._along, side="right")) - 1, len(self._path) - 2)
        along = self._path[i + 1] - self._path[i]
        self.position = self._path[i] + along * (self._along - self._distances[i]) / np.linalg.norm(along)
        target = float(np.arctan2(along[1], along[0]))
        turn = (target - self.heading + np.pi) % (2.0 * np.pi) - np.pi
        self.heading += float(np.clip(turn, -3.0 * dt, 3.0 * dt))


class TrafficRoad(HighwayRoad):
    """highway-env's road, with lane coordinates of everybody computed once per step.

    Attributes:
        time: Since the start [s].
        walkers: People who are not on lanes.
        occluders: Rectangles (s_min, s_max, r_min, r_max) [m] in coordinates of the robot's lane that hide
            walkers from a cautious driver.
    """

    def __init__(self, network: RoadNetwork, rng: np.random.Generator) -> None:
        super().__init__(network, np_random=rng, neighbour_vehicles_connected_lanes=True)
        self.time = 0.0
        self.walkers: list[Walker] = []
        self.occluders: list[tuple[float, float, float, float]] = []
        self._lanes = network.lanes_dict()
        self._rows: dict[int, int] = {}
        self._coordinates: dict[LaneIndex, NDArray[np.float64]] = {}
        self._sideways: dict[LaneIndex, NDArray[np.float64]] = {}
        self._half_widths = self._half_lengths = self._speeds = np.zeros(0)
        self._zones: dict[tuple[LaneIndex, LaneIndex], tuple[float, float, float, float] | None] = {}
        self._has_crossings = False

    def start(self) -> None:
        """To be called once, when everybody is on the road."""
        bodies = [*self.vehicles, *self.objects]
        self._rows = {id(body): row for row, body in enumerate(bodies)}
        self._half_widths = np.array([body.WIDTH / 2.0 for body in bodies])
        self._half_lengths = np.array([body.LENGTH / 2.0 for body in bodies])
        self._has_crossings = any(isinstance(lane, PathLane) for lane in self._lanes.values())
        self._refresh(dt=0.0)

    def act(self, near: tuple[NDArray[np.float64], float] | None = None) -> None:
        """Everybody who is there decides.

        Args:
            near: A point and a distance [m], beyond which everybody just goes on; None: nobody does.
        """
        for vehicle in self.vehicles:
            if vehicle.present and not vehicle.puppet:
                if near is not None and abs(vehicle.position - near[0]).max() > near[1]:
                    vehicle.go_on()
                else:
                    vehicle.act()

    def step(self, dt: float) -> None:
        """Move everybody by `dt` seconds; collisions are left to happen."""
        for vehicle in self.vehicles:
            if vehicle.present and not vehicle.puppet:
                vehicle.step(dt)
        for walker in self.walkers:
            walker.step(dt, self.time)
        self.time += dt
        if self._has_crossings:
            self.count_waiting(dt)
        self._refresh(dt)

    def come_and_go(self) -> None:
        """Let those leave who are at the end of their lanes, and those in whose time has come and who fit."""
        for vehicle in self.vehicles:
            if vehicle.present:
                s, _ = self.lane_position(vehicle, vehicle.lane_index)
                if vehicle.lane.length - s < 2.0 and vehicle.leaves:
                    vehicle.disappear()
            elif vehicle.enters_at is not None and self.time >= vehicle.enters_at:
                front, rear = self.around(vehicle.lane_index, vehicle.enters_s, vehicle.WIDTH, vehicle)
                if min(front, rear) > 0.5 * vehicle.LENGTH + 6.0 + 1.2 * vehicle.target_speed:
                    vehicle.appear()

    @contextmanager
    def imagined(self) -> Iterator[None]:
        """Whatever happens inside did not happen: everybody is put back afterwards."""
        bodies = [*self.vehicles, *self.walkers]
        before = [dict(body.__dict__) for body in bodies]
        yielding = [set(vehicle.yielding_to) for vehicle in self.vehicles]
        time, speeds = self.time, self._speeds
        coordinates, sideways = dict(self._coordinates), dict(self._sideways)
        try:
            yield
        finally:
            for body, state in zip(bodies, before, strict=True):
                body.__dict__.clear()
                body.__dict__.update(state)
            for vehicle, walkers in zip(self.vehicles, yielding, strict=True):
                vehicle.yielding_to = walkers
            self.time, self._speeds = time, speeds
            self._coordinates, self._sideways = coordinates, sideways

    def _refresh(self, dt: float) -> None:
        bodies = [*self.vehicles, *self.objects, *self.walkers]
        self._speeds = np.array([body.speed for body in bodies[: len(self._half_widths)]])
        points = np.array([body.position for body in bodies])
        for index, lane in self._lanes.items():
            now = lane_coordinates(lane, points)
            before = self._coordinates.get(index)
            self._sideways[index] = (
                np.zeros(len(now)) if before is None or dt == 0.0 else (now[:, 1] - before[:, 1]) / dt
            )
            self._coordinates[index] = now
        for vehicle in self.vehicles:
            row = self._rows[id(vehicle)]
            beside = [i for i in self._lanes if i[:2] == vehicle.target_lane_index[:2]]
            vehicle.lane_index = min(beside, key=lambda i: abs(self._coordinates[i][row, 1]))
            vehicle.lane = self._lanes[vehicle.lane_index]

    def refresh(self, vehicle: TrafficVehicle) -> None:
        """Somebody else has moved a vehicle."""
        row = self._rows[id(vehicle)]
        for index, lane in self._lanes.items():
            self._coordinates[index] = self._coordinates[index].copy()  # an earlier one may be kept
            self._coordinates[index][row] = lane_coordinates(lane, vehicle.position[None])[0]
        beside = [i for i in self._lanes if i[:2] == vehicle.target_lane_index[:2]]
        vehicle.lane_index = min(beside, key=lambda i: abs(self._coordinates[i][row, 1]))
        vehicle.lane = self._lanes[vehicle.lane_index]

    def hides(self, vehicle: TrafficVehicle, walker: Walker) -> bool:
        """Whether an occluder stands between the middle of a vehicle and a walker."""
        index = vehicle.lane_index
        row = len(self._half_widths) + self.walkers.index(walker)
        s, r = self._coordinates[index][row]
        return self._is_hidden(self.lane_position(vehicle, index), (float(s), float(r)))

    def around(self, index: LaneIndex, s: float, width: float, but: object) -> tuple[float, float]:
        """Distances [m] from a place on a lane to who is next ahead and behind in its way; inf: nobody."""
        num = len(self._half_widths)
        s_N, r_N = self._coordinates[index][:num].T
        in_way_N = np.abs(r_N) < self._half_widths + width / 2.0 + SIDE_MARGIN
        in_way_N[self._rows[id(but)]] = False
        ahead = s_N[in_way_N] - s
        front = ahead[ahead >= 0.0].min(initial=np.inf)
        return float(front), float(-ahead[ahead < 0.0].max(initial=-np.inf))

    def count_waiting(self, dt: float) -> None:
        """Another `dt` seconds have passed for those who stand."""
        for vehicle in self.vehicles:
            vehicle.waited_s = vehicle.waited_s + dt if vehicle.present and vehicle.speed < 0.6 else 0.0

    def wait_gap(self, vehicle: TrafficVehicle) -> float:
        """Distance [m] from the front bumper to where a vehicle has to wait for others; inf: it need not.

        For every other vehicle whose path meets its own: it waits if that one is where they meet, or has the
        right of way and would be there within `CROSSING_MARGIN_S` of its own passing.
        """
        if not self._has_crossings or not vehicle.heeds_priority or not isinstance(vehicle.lane, PathLane):
            return np.inf
        index = vehicle.lane_index
        s = self.lane_position(vehicle, index)[0] + vehicle.LENGTH / 2.0
        nearest = np.inf
        for other in self.vehicles:
            if other is vehicle or not other.present or other.lane_index == index:
                continue
            zone = self.meeting(index, other.lane_index)
            if zone is None:
                continue
            first, last, other_first, other_last = zone
            distance = first - s
            if distance < -1.0 or distance > 60.0 or distance > nearest:
                continue
            other_s = self.lane_position(other, other.lane_index)[0]
            merges = last - first > ZONE_LENGTH
            if merges:
                last, other_last = first + ZONE_LENGTH, min(other_last, other_first + ZONE_LENGTH)
            to_zone = other_first - (other_s + other.LENGTH / 2.0)
            past_zone = other_last - (other_s - other.LENGTH / 2.0)
            if past_zone < 0.0 or to_zone > 80.0:
                continue
            if to_zone > 0.0 and not self._goes_first(other, vehicle, zone, to_zone, distance):
                continue
            if to_zone > 0.0:
                enters = _time_to_cover(distance, vehicle.speed)
                leaves = _time_to_cover(last - s + vehicle.LENGTH, vehicle.speed)
                other_pace = max(other.speed, STARTING_SPEED)
                comes, goes = to_zone / other_pace, past_zone / other_pace
                patience = max(0.0, 1.0 - vehicle.waited_s / PATIENCE_S)
                margin = CROSSING_MARGIN_S * patience
                if merges:
                    # Once in, it only has to be as fast as who comes from behind.
                    pace = np.sqrt(vehicle.speed**2 + 2.0 * STARTING_ACCELERATION * max(distance, 0.0))
                    leaves = enters + (0.4 + 0.6 * patience) * max(other.speed - pace, 0.0) / MATCHING
                if comes > leaves + margin or goes + 0.3 < enters:
                    continue
            elif merges and other_s > other_first:
                continue  # it is before us now, and we follow it
            room = max(distance - WAIT_BEFORE, 0.0)
            if vehicle.speed**2 / 2.0 > 6.0 * max(distance, 0.1):
                continue  # too late to stop
            nearest = min(nearest, room)
        return nearest

    def _goes_first(
        self,
        other: TrafficVehicle,
        vehicle: TrafficVehicle,
        zone: tuple[float, float, float, float],
        other_distance: float,
        distance: float,
    ) -> bool:
        ranks = (_rank(other.lane, zone[2]), _rank(vehicle.lane, zone[0]))
        if not other.heeds_priority and other.speed > 1.0:
            return True  # it will not wait for anybody
        if ranks[0] != ranks[1]:
            return ranks[0] > ranks[1]
        arrival = _time_to_cover(other_distance, other.speed)
        own_arrival = _time_to_cover(distance, vehicle.speed)
        if abs(arrival - own_arrival) > 0.5:
            return arrival < own_arrival
        return self._rows[id(other)] < self._rows[id(vehicle)]

    def meeting(self, a: LaneIndex, b: LaneIndex) -> tuple[float, float, float, float] | None:
        """Where two ways come together, see `paths.meeting_zones`."""
        if (a, b) not in self._zones:
            lanes = self._lanes[a], self._lanes[b]
            both = all(isinstance(lane, PathLane) for lane in lanes)
            self._zones[a, b] = meeting_zones(*lanes, CROSSING_CLEARANCE) if both else None
        return self._zones[a, b]

    def lane_position(self, body: object, lane_index: LaneIndex) -> tuple[float, float]:
        """(s, r) [m] of a vehicle or obstacle on a lane."""
        s, r = self._coordinates[lane_index][self._rows[id(body)]]
        return float(s), float(r)

    def neighbour_vehicles(
        self, vehicle: IDMVehicle, lane_index: LaneIndex | None = None
    ) -> tuple[IDMVehicle | Obstacle | None, IDMVehicle | Obstacle | None]:
        """Who is next ahead and behind in the way of a vehicle that drives on a lane."""
        index = lane_index or vehicle.lane_index
        if index is None:
            return NO_ONE
        num = len(self._half_widths)
        s_N, r_N = self._coordinates[index][:num].T
        later_N = r_N + LOOK_AHEAD_S * self._sideways[index][:num]
        reach_N = self._half_widths + vehicle.WIDTH / 2.0 + SIDE_MARGIN
        in_way_N = (np.minimum(r_N, later_N) < reach_N) & (np.maximum(r_N, later_N) > -reach_N)
        own = self._rows[id(vehicle)]
        in_way_N[own] = False
        ahead_N = s_N - s_N[own]
        if self._has_crossings:
            # Who is just overtaking on another lane will be gone before ours leads there.
            beside_N = (ahead_N < self._half_lengths + vehicle.LENGTH / 2.0) & (np.abs(r_N) > reach_N - 0.2)
            in_way_N &= ~(beside_N & (self._speeds > vehicle.speed + 1.0))
        front = np.where(in_way_N & (ahead_N >= 0.0), ahead_N, np.inf)
        rear = np.where(in_way_N & (ahead_N < 0.0), -ahead_N, np.inf)
        bodies = [*self.vehicles, *self.objects]
        i, j = int(front.argmin()), int(rear.argmin())
        return (
            bodies[i] if np.isfinite(front[i]) else None,
            bodies[j] if np.isfinite(rear[j]) else None,
        )

    def walker_ahead(self, vehicle: TrafficVehicle) -> float:
        """Distance [m] from the front bumper to the nearest walker in the way or about to be; inf: none.

        About to be: at the present velocity, within 3.5 s, and not gone before the vehicle is there.
        """
        if not self.walkers:
            return np.inf
        index = vehicle.lane_index
        s, r = self.lane_position(vehicle, index)
        first = len(self._half_widths)
        nearest = np.inf
        for k, walker in enumerate(self.walkers):
            walker_s, walker_r = self._coordinates[index][first + k]
            gap = walker_s - s - (vehicle.LENGTH + walker.size_LW[1]) / 2.0
            if gap < -1.0 or gap > nearest:
                continue
            sideways = self._sideways[index][first + k]
            half = (vehicle.WIDTH + walker.size_LW[1]) / 2.0 + 0.6
            if abs(walker_r) >= half:
                approach = -np.sign(walker_r) * sideways
                if approach < 0.3:
                    vehicle.yielding_to.discard(walker)
                    continue
                enters, leaves = (abs(walker_r) - half) / approach, (abs(walker_r) + half) / approach
                arrives = max(gap, 0.0) / max(vehicle.speed, 0.5)
                # Who is yielded to stays so: braking makes the vehicle later, which is no reason to go on.
                if walker not in vehicle.yielding_to and (
                    enters > 3.5
                    or leaves + 1.0 < arrives
                    or arrives + 1.5 < enters
                    or (vehicle.cautious and self._is_hidden((s, r), (walker_s, walker_r)))
                ):
                    continue
            vehicle.yielding_to.add(walker)
            nearest = gap
        return nearest

    def _is_hidden(self, eye: tuple[float, float], target: tuple[float, float]) -> bool:
        """Whether the line between two points, in lane coordinates, meets an occluder."""
        (s0, r0), (s1, r1) = eye, target
        fractions = np.linspace(0.0, 1.0, 60)
        s, r = s0 + fractions * (s1 - s0), r0 + fractions * (r1 - r0)
        return any(
            bool(((s > s_min) & (s < s_max) & (r > r_min) & (r < r_max)).any())
            for s_min, s_max, r_min, r_max in self.occluders
        )


def _clip(value: float, low: float, high: float) -> float:
    return float(low if value < low else high if value > high else value)


def _time_to_cover(distance: float, speed: float) -> float:
    """[s] for a distance [m], setting off or going on at no less than a brisk walk's acceleration."""
    if speed >= PASSING_SPEED:
        return max(distance, 0.0) / speed
    a = STARTING_ACCELERATION
    return float((np.sqrt(speed**2 + 2.0 * a * max(distance, 0.0)) - speed) / a)


def _rank(lane: PathLane, s: float) -> int:
    """Of a path where it meets another; who enters a roundabout gives way to who is in it."""
    if lane.yield_s is None:
        return lane.rank
    return 0 if s < lane.yield_s + 12.0 else 2


class ParkedVehicle(Obstacle):
    """Something that stands on or beside the road: a parked vehicle, debris."""

    def __init__(
        self, road: TrafficRoad, position: NDArray[np.float64], heading: float, size_LW: tuple[float, float]
    ) -> None:
        super().__init__(road, position, heading, 0.0)
        self.LENGTH, self.WIDTH = size_LW


class TrafficVehicle(IDMVehicle):
    """A driver following IDM, and MOBIL where lane changes are allowed.

    `position` is the geometric centre; the vehicle turns about its rear axle.
    """

    ACC_MAX = MAX_BRAKING

    def __init__(
        self,
        road: TrafficRoad,
        lane_index: LaneIndex,
        s: float,
        speed: float,
        target_speed: float,
        size_LW: tuple[float, float],
        *,
        style: DriverStyle,
        change_lanes: bool = False,
        script: Script | None = None,
        offset: float = 0.0,
        heading_error: float = 0.0,
        rear_axle: float | None = None,
        cautious: bool = False,
        enters_at: float | None = None,
    ) -> None:
        """Put a vehicle on a lane.

        Args:
            road: The road.
            lane_index: Which lane.
            s: Where along it [m].
            speed: Now [m/s].
            target_speed: Without traffic [m/s], > 0.
            size_LW: Length and width [m].
            style: Of driving.
            change_lanes: Whether MOBIL may change lanes.
            script: Acceleration that takes precedence where it is lower than IDM's.
            offset: To the right of the lane's centre [m]. The vehicle returns to the centre.
            heading_error: Against the lane [rad].
            rear_axle: How far the rear axle is behind the centre [m]; None: 0.3 lengths.
            cautious: Reacts only to walkers that can be seen.
            enters_at: When it comes onto the road [s]; None: it is there from the start.
        """
        lane = road.network.get_lane(lane_index)
        heading = lane.heading_at(s) + heading_error
        super().__init__(
            road,
            lane.position(s, offset),
            heading,
            speed,
            target_lane_index=lane_index,
            target_speed=target_speed,
            enable_lane_change=change_lanes,
        )
        self.LENGTH, self.WIDTH = size_LW
        self.diagonal = float(np.hypot(*size_LW))
        self.lane_index, self.lane = lane_index, lane
        self.style = style
        self.script = script
        self.rear_axle = 0.3 * self.LENGTH if rear_axle is None else rear_axle
        self.cautious = cautious
        self.yielding_to: set[Walker] = set()
        # Windows (start, end, offset) [s], [s], [m] in which the driver aims beside the lane's centre.
        self.swerves: list[tuple[float, float, float]] = []
        self.lateral_bias = 0.0
        self.steering = 0.0
        self.applied_acceleration = 0.0
        self.yaw_rate = 0.0
        self.heeds_priority, self.heeds_walkers = True, True
        self.leaves = True  # at the end of its lane
        self.puppet = False  # somebody else moves it
        self.waited_s = 0.0  # for others to pass, since it last moved
        self.present, self.enters_at, self.enters_s = True, enters_at, s
        if enters_at is not None:
            self.present = False
            self.position = np.array([NOWHERE, NOWHERE])

    def appear(self) -> None:
        """Come onto the road where the lane begins for it."""
        self.present, self.enters_at = True, None
        self.position = np.asarray(self.lane.position(self.enters_s, 0.0))
        self.heading = self.lane.heading_at(self.enters_s)

    def disappear(self) -> None:
        """Leave for good."""
        self.present, self.enters_at, self.speed = False, None, 0.0
        self.position = np.array([NOWHERE, NOWHERE])

    def go_on(self) -> None:
        """Neither speed up nor turn: who is too far away to matter."""
        self.action = {"steering": self.steering, "acceleration": 0.0}

    def follow_road(self) -> None:
        """A lane here is a whole way; nothing comes after it."""

    def on_state_update(self) -> None:
        """The road finds everybody's lane at once, see `TrafficRoad.step`."""

    def act(self, action: dict[str, float] | str | None = None) -> None:
        """Decide steering and acceleration."""
        super().act()
        wanted = self.action["acceleration"]
        gap = min(self.road.walker_ahead(self) if self.heeds_walkers else np.inf, self.road.wait_gap(self))
        if gap < np.inf:
            wanted = min(wanted, self._follow(gap, 0.0, 0.0))
        scripted = None if self.script is None else self.script(self.road.time)
        if scripted is not None:
            wanted = min(wanted, scripted)
        self.action["acceleration"] = _clip(wanted, -MAX_BRAKING, self.style.acceleration)

    def acceleration(
        self,
        ego_vehicle: IDMVehicle | None,
        front_vehicle: IDMVehicle | Obstacle | None = None,
        rear_vehicle: IDMVehicle | Obstacle | None = None,
    ) -> float:
        """IDM with bumper-to-bumper gaps, for any vehicle (MOBIL asks for the others)."""
        if not isinstance(ego_vehicle, TrafficVehicle):
            return 0.0
        if front_vehicle is None:
            return ego_vehicle._follow(np.inf, 0.0, 0.0)
        index = ego_vehicle.lane_index
        ahead = (
            self.road.lane_position(front_vehicle, index)[0] - self.road.lane_position(ego_vehicle, index)[0]
        )
        gap = ahead - (ego_vehicle.LENGTH + front_vehicle.LENGTH) / 2.0
        front_speed = front_vehicle.speed * np.cos(front_vehicle.heading - ego_vehicle.heading)
        front_acceleration = getattr(front_vehicle, "applied_acceleration", 0.0)
        return ego_vehicle._follow(gap, max(float(front_speed), 0.0), front_acceleration)

    def _follow(self, gap: float, front_speed: float, front_acceleration: float) -> float:
        """Acceleration [m/s^2] behind somebody: IDM, calmed where it overreacts to a short gap.

        The calm part is the constant-acceleration heuristic of Kesting, Treiber and Helbing (Phil. Trans.
        R. Soc. A 368, 2010), coolness 0.99: nobody brakes to a stop for a cut-in at the same speed.
        """
        style, v = self.style, self.speed
        a, b = style.acceleration, style.braking
        wanted_speed = self.target_speed
        if isinstance(self.lane, PathLane):
            here = self.road.lane_position(self, self.lane_index)[0]
            wanted_speed = min(wanted_speed, self.lane.speed_at(here + 0.5 * v))
        free = max(a * (1.0 - (v / max(wanted_speed, 0.1)) ** 4), -b)
        if gap == np.inf:
            return float(free)
        gap = max(gap, 0.3)
        closing = v - front_speed
        wanted = style.standing_gap + max(0.0, v * style.time_gap + v * closing / (2.0 * np.sqrt(a * b)))
        idm = free - a * (wanted / gap) ** 2
        front_a = min(front_acceleration, a)
        if front_speed * closing <= -2.0 * gap * front_a and front_speed**2 - 2.0 * gap * front_a > 1e-3:
            calm = v**2 * front_a / (front_speed**2 - 2.0 * gap * front_a)
        else:
            calm = front_a - max(closing, 0.0) ** 2 / (2.0 * gap)
        if idm < calm:
            idm = 0.01 * idm + 0.99 * (calm + b * np.tanh((idm - calm) / b))
        return float(max(idm, -MAX_BRAKING))

    def steering_control(self, target_lane_index: LaneIndex) -> float:
        """Pure pursuit of the lane's centre from the rear axle; the wheel angle [rad]."""
        lane = self.road.network.get_lane(target_lane_index)
        s, _ = self.road.lane_position(self, target_lane_index)
        changing = target_lane_index != self.lane_index
        reach = max(6.0, (1.6 if changing else 1.0) * self.speed)
        bias = self.lateral_bias + sum(
            offset for start, end, offset in self.swerves if start <= self.road.time < end
        )
        rear = self.position - self.rear_axle * self.direction
        to_target = lane.position(s + reach, bias) - rear
        angle = np.arctan2(to_target[1], to_target[0]) - self.heading
        curvature = 2.0 * np.sin(angle) / np.hypot(*to_target)
        limit = 3.0 / max(self.speed, 4.0) ** 2  # at most 3 m/s^2 sideways, 5 m radius
        return float(np.arctan(_clip(curvature, -limit, limit) * self._wheelbase))

    @property
    def _wheelbase(self) -> float:
        return 0.6 * self.LENGTH

    def step(self, dt: float) -> None:
        """Move by `dt` seconds: a kinematic bicycle about its rear axle, rate-limited."""
        self.timer += dt
        change = self.action["acceleration"] - self.applied_acceleration
        up = self.style.max_jerk / 3.0
        self.applied_acceleration += _clip(change, -self.style.max_jerk * dt, up * dt)
        self.steering += _clip(self.action["steering"] - self.steering, -0.6 * dt, 0.6 * dt)
        new_speed = max(self.speed + self.applied_acceleration * dt, 0.0)
        if new_speed == 0.0:
            self.applied_acceleration = max(self.applied_acceleration, 0.0)
        travelled = 0.5 * (self.speed + new_speed) * dt
        rear = self.position - self.rear_axle * self.direction
        turn = travelled * np.tan(self.steering) / self._wheelbase
        middle = self.heading + turn / 2.0
        rear = rear + travelled * np.array([np.cos(middle), np.sin(middle)])
        self.heading += turn
        self.yaw_rate = turn / dt
        self.speed = new_speed
        self.position = rear + self.rear_axle * self.direction
