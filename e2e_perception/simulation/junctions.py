"""Roads that meet: merge, exit, intersection and roundabout, as ways that can be driven from end to end.

Coordinates are highway-env's: y points right of x, angles grow clockwise; traffic keeps right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import shapely
from highway_env.road.road import LaneIndex, RoadNetwork
from numpy.typing import NDArray

from e2e_perception.simulation.alignment import Alignment
from e2e_perception.simulation.paths import Course, PathLane
from e2e_perception.simulation.scene import Marking, Road
from e2e_perception.simulation.scenery import WHITE, ToOdom

ARM = 110.0  # [m] of each arm of a junction
RAMP_ANGLE = 0.22  # [rad]


@dataclass
class RoadPlan:
    """Ways, the ground they lie on, and what is painted on it.

    Attributes:
        network: Every way as one lane of its own edge; parallel lanes share an edge.
        ego: The robot's way.
        ego_s: Where it may start at the earliest [m] along it.
        meeting: First and last place [m] along the robot's way at which others may come.
        arms: Ways by the arm they begin at, each with how likely it is taken.
        surfaces: Strips (K, 2) [m]; their union is the drivable area.
        lines: Painted lines, highway-env's coordinates.
        speed_limit: [m/s]
        urban: Houses rather than trees.
        parking: Stretches where vehicles may be parked: a way, from and to where along it [m], offset [m].
    """

    network: RoadNetwork
    ego: LaneIndex
    ego_s: float
    meeting: tuple[float, float]
    arms: dict[str, list[tuple[LaneIndex, float]]]
    speed_limit: float
    urban: bool
    parking: list[tuple[LaneIndex, float, float, float]] = field(default_factory=list)
    surfaces: list[NDArray[np.float64]] = field(default_factory=list)
    lines: list[Marking] = field(default_factory=list)

    def lane(self, index: LaneIndex) -> PathLane:
        """A way."""
        lane = self.network.get_lane(index)
        assert isinstance(lane, PathLane)
        return lane

    def add(self, index: LaneIndex, lane: PathLane, arm: str, share: float, *, shoulder: float = 0.4) -> None:
        """A way that begins at an arm, and the ground below it."""
        self.network.add_lane(index[0], index[1], lane)
        self.arms.setdefault(arm, []).append((index, share))
        self.surfaces.append(strip(lane.points_P2, lane.width / 2.0 + shoulder))

    def add_parking(self, index: LaneIndex, first: float, last: float) -> None:
        """Room for parked vehicles on the right of a way."""
        lane = self.lane(index)
        offset = lane.width / 2.0 + 1.3
        s = np.arange(first, last, 2.0, dtype=np.float64)
        self.surfaces.append(strip(lane.positions(s, np.full_like(s, offset)), 1.35))
        self.parking.append((index, first + 3.0, last - 3.0, offset))

    def paint(self, points_N2: NDArray[np.float64], *, dashed: bool = False, width: float = 0.15) -> None:
        """A white line."""
        self.lines.append(Marking(points_N2, "dashed" if dashed else "solid", WHITE, width))

    def area(self) -> shapely.Geometry:
        """The drivable area."""
        return shapely.union_all([shapely.Polygon(points).buffer(0.05) for points in self.surfaces])

    def road(self, to_odom: ToOdom) -> Road:
        """Ground and paint in the odometry frame."""
        outlines = [
            to_odom(np.asarray(ring.coords))
            for part in shapely.get_parts(self.area())
            for ring in (part.exterior, *part.interiors)
        ]
        return Road(
            drivable=tuple(to_odom(points) for points in self.surfaces),
            boundaries=tuple(outlines),
            markings=tuple(
                Marking(to_odom(line.points_N2), line.style, line.color, line.width) for line in self.lines
            ),
        )


def strip(points_P2: NDArray[np.float64], half_width: float) -> NDArray[np.float64]:
    """(2P, 2) [m]: the outline of what lies within a distance to both sides of a line."""
    tangents = np.gradient(points_P2, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
    side = half_width * np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
    return np.concatenate([points_P2 - side, (points_P2 + side)[::-1]])


def _turned(points_N2: NDArray[np.float64], quarter_turns: int) -> NDArray[np.float64]:
    c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4]
    return np.asarray(points_N2 @ np.array([[c, s], [-s, c]], np.float64))


# ------------------------------------------------------------------ intersection


def intersection(rng: np.random.Generator) -> RoadPlan:
    """Three or four arms with a lane each way; one road has the right of way, or first come, first served.

    Args:
        rng: Draws sizes, rules and where the robot goes; it always comes from arm 0.
    """
    limit = float(rng.uniform(8.5, 14.0))
    width = float(rng.uniform(3.2, 3.7))
    inner = float(rng.uniform(8.5, 12.0))  # from the middle to where bends begin
    arms = [0, 1, 2, 3]
    if rng.random() < 0.35:
        arms.remove(int(rng.integers(1, 4)))
    major = None if rng.random() < 0.3 else int(rng.integers(2))  # arms 0 and 2, or 1 and 3
    turns = {2: "straight", 3: "right", 1: "left"}
    plan = RoadPlan(RoadNetwork(), ("", "", 0), 0.0, (0.0, 0.0), {}, limit, urban=True)
    for arm in arms:
        for step, turn in turns.items():
            target = (arm + step) % 4
            if target not in arms:
                continue
            course = Course(-ARM - inner, width / 2.0, 0.0).straight(ARM)
            if turn == "straight":
                course.straight(2.0 * inner)
            elif turn == "right":
                course.arc(inner - width / 2.0, np.pi / 2.0)
            else:
                course.arc(inner + width / 2.0, -np.pi / 2.0)
            course.straight(ARM)
            first = major is None or arm % 2 == major
            rank = 2 * int(first) + int(turn != "left")
            lane = PathLane(_turned(course.points(), arm), width=width, speed_limit=limit, rank=rank)
            share = {"straight": 1.0, "right": 0.5, "left": 0.5}[turn]
            plan.add((f"from_{arm}", f"to_{target}", 0), lane, f"arm_{arm}", share)
    _park_along_arms(plan, ARM - 16.0, rng)
    wanted = [i for i, _ in plan.arms["arm_0"]]
    plan.ego = wanted[int(rng.integers(len(wanted)))]
    plan.ego_s = ARM - 75.0
    plan.meeting = (ARM - 6.0, plan.lane(plan.ego).length - ARM + 6.0)
    for arm in arms:
        away = inner + 1.0
        for side, dashed in ((0.0, rng.random() < 0.6), (width, False), (-width, False)):
            line = np.array([[-ARM - inner, side], [-away - 3.0 * (side != 0.0), side]])
            plan.paint(_turned(line, arm), dashed=dashed)
        if major is not None and arm % 2 != major:
            stop = np.array([[-away, 0.2], [-away, width - 0.2]])
            plan.paint(_turned(stop, arm), width=0.35)
    return plan


def _park_along_arms(plan: RoadPlan, length: float, rng: np.random.Generator) -> None:
    """Room for parked vehicles on some sides of some arms, as far as the junction leaves it."""
    for ways in list(plan.arms.values()):
        index = ways[0][0]
        total = plan.lane(index).length
        if rng.random() < 0.6:
            plan.add_parking(index, 5.0, length)
        if rng.random() < 0.6:
            plan.add_parking(index, total - length, total - 5.0)


# ------------------------------------------------------------------ roundabout


def roundabout(rng: np.random.Generator) -> RoadPlan:
    """One lane around an island, three or four arms; who enters gives way.

    Args:
        rng: Draws sizes and where the robot goes; it always comes from arm 0.
    """
    limit = float(rng.uniform(8.5, 12.5))
    width = float(rng.uniform(3.5, 4.0))
    radius = float(rng.uniform(15.0, 20.0))
    bend = float(rng.uniform(12.0, 15.0))
    gap = width / 2.0 + 0.6  # between an arm's middle and the middle of its lanes
    arms = [0, 1, 2, 3]
    if rng.random() < 0.3:
        arms.remove(int(rng.integers(1, 4)))
    # The entry bends right and touches the circle from outside.
    across = gap + bend
    along = np.sqrt((radius + bend) ** 2 - across**2)
    delta = float(np.arctan2(across, along))
    turn = np.pi / 2.0 - delta
    plan = RoadPlan(RoadNetwork(), ("", "", 0), 0.0, (0.0, 0.0), {}, limit, urban=True)
    for arm in arms:
        for step in (3, 2, 1):  # right, straight on, left
            target = (arm + step) % 4
            if target not in arms:
                continue
            sweep = {3: np.pi / 2.0, 2: np.pi, 1: 1.5 * np.pi}[step] - 2.0 * delta
            course = Course(-ARM - along, gap, 0.0).straight(ARM).arc(bend, turn)
            enters = course.length
            course.arc(radius, -sweep).arc(bend, turn).straight(ARM)
            lane = PathLane(
                _turned(course.points(), arm), width=width, speed_limit=limit, rank=0, yield_s=enters
            )
            plan.add((f"from_{arm}", f"to_{target}", 0), lane, f"arm_{arm}", 1.0, shoulder=0.5)
    _park_along_arms(plan, ARM - 25.0, rng)
    wanted = [i for i, _ in plan.arms["arm_0"]]
    plan.ego = wanted[int(rng.integers(len(wanted)))]
    plan.ego_s = ARM - 70.0
    plan.meeting = (ARM, plan.lane(plan.ego).length - ARM)
    angles = np.linspace(0.0, 2.0 * np.pi, 64)
    island = (radius - width / 2.0 - 0.2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    plan.paint(island)
    for arm in arms:
        edge = gap + width / 2.0
        for side, dashed in ((gap - width / 2.0, False), (edge, False)):
            for sign in (-1.0, 1.0):
                line = np.array([[-ARM - along, sign * side], [-along, sign * side]])
                plan.paint(_turned(line, arm), dashed=dashed)
    return plan


# ------------------------------------------------------------------ merge and exit


def _along(alignment: Alignment) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Bends what was drawn straight along a course."""
    return lambda points_N2: alignment.positions(points_N2[:, 0], points_N2[:, 1])


def _motorway(rng: np.random.Generator) -> tuple[RoadPlan, Alignment, int, float]:
    limit = float(rng.uniform(15.0, 27.0))
    width = float(rng.uniform(3.4, 3.8))
    num_lanes = int(rng.integers(2, 4))
    alignment = Alignment.random(1000.0, 1.2 * limit, rng)
    plan = RoadPlan(RoadNetwork(), ("", "", 0), 0.0, (0.0, 0.0), {}, limit, urban=False)
    bend = _along(alignment)
    stations = np.arange(0.0, 900.0, 1.0)
    for i in range(num_lanes):
        points = bend(np.stack([stations, np.full_like(stations, i * width)], axis=1))
        lane = PathLane(points, width=width, speed_limit=1.15 * limit, rank=2)
        plan.add(("main_start", "main_end", i), lane, "main", 1.0, shoulder=0.6)
    # The opposite carriageway, beyond a median.
    median = float(rng.uniform(5.0, 10.0))
    for i in range(2):
        back = np.stack([stations[::-1], np.full_like(stations, -median - i * width)], axis=1)
        lane = PathLane(bend(back), width=width, speed_limit=1.15 * limit, rank=2)
        plan.add(("opposite_start", "opposite_end", i), lane, "opposite", 1.0, shoulder=0.6)
    for i in range(num_lanes - 1):
        plan.paint(bend(np.stack([stations, np.full_like(stations, (i + 0.5) * width)], axis=1)), dashed=True)
    plan.paint(bend(np.stack([stations, np.full_like(stations, -0.5 * width)], axis=1)))
    return plan, alignment, num_lanes, width


def merge(rng: np.random.Generator) -> RoadPlan:
    """A ramp joins a motorway from the right, over a lane to speed up in. The robot is on either.

    Args:
        rng: Draws sizes and where the robot goes.
    """
    plan, alignment, num_lanes, width = _motorway(rng)
    bend = _along(alignment)
    right = (num_lanes - 1) * width
    begins, length = 330.0, float(rng.uniform(150.0, 220.0))
    over = float(rng.uniform(55.0, 75.0))
    drop = 170.0 * np.sin(RAMP_ANGLE) + 120.0 * (1.0 - np.cos(RAMP_ANGLE))
    back = 170.0 * np.cos(RAMP_ANGLE) + 120.0 * np.sin(RAMP_ANGLE)
    ramps: list[tuple[LaneIndex, float]] = []
    for k, share in enumerate((0.15, 0.45, 0.75)):
        ahead = share * (length - over)
        course = Course(begins - back, right + width + drop, -RAMP_ANGLE)
        course.straight(170.0).arc(120.0, RAMP_ANGLE).straight(ahead)
        place = course.length
        course.shift(over, -width).straight(880.0 - course.end[0])
        lane = PathLane(bend(course.points()), width=width, speed_limit=1.1 * plan.speed_limit, rank=0)
        plan.add((f"ramp_{k}", f"main_{k}", 0), lane, "ramp", 1.0, shoulder=0.6)
        ramps.append(((f"ramp_{k}", f"main_{k}", 0), place))
    # The whole of the extra lane, with its taper.
    extra = Course(begins - 20.0, right + width, 0.0).straight(length + 20.0).shift(over, -0.9 * width)
    plan.surfaces.append(strip(bend(extra.points()), width / 2.0 + 0.6))
    edge = Course(begins, right + width / 2.0, 0.0).straight(length)
    plan.paint(bend(edge.points()), dashed=True)
    if rng.random() < 0.65:
        plan.ego, place = ramps[int(rng.integers(len(ramps)))]
        plan.ego_s, plan.meeting = 120.0, (place - 10.0, place + over)
    else:
        plan.ego = ("main_start", "main_end", num_lanes - 1)
        plan.ego_s, plan.meeting = 260.0, (begins, begins + length + over)
    return plan


def exit_(rng: np.random.Generator) -> RoadPlan:
    """A ramp leaves a motorway to the right; the robot takes it, from the right lane or the one beside it.

    Args:
        rng: Draws sizes and where the robot starts.
    """
    plan, alignment, num_lanes, width = _motorway(rng)
    bend = _along(alignment)
    right = (num_lanes - 1) * width
    leaves = 420.0
    changes = num_lanes > 1 and rng.random() < 0.6
    for k in range(2):
        start = right - width * float(changes and k == 1)
        course = Course(0.0, start, 0.0)
        if start < right:
            course.straight(leaves - 190.0).shift(110.0, width).straight(leaves - course.end[0])
        else:
            course.straight(leaves)
        course.shift(60.0, width).straight(50.0).arc(120.0, RAMP_ANGLE).straight(170.0)
        lane = PathLane(
            bend(course.points()), width=width, speed_limit=1.1 * plan.speed_limit, rank=2 if k == 0 else 1
        )
        plan.add((f"main_{k}", f"exit_{k}", 0), lane, "leaving" if k == 0 else "robot", 1.0, shoulder=0.6)
    edge = Course(leaves + 20.0, right + width / 2.0, 0.0).straight(70.0)
    plan.paint(bend(edge.points()), dashed=True)
    plan.ego = ("main_1", "exit_1", 0)
    plan.ego_s = leaves - 190.0 - 2.0 * plan.speed_limit if changes else leaves - 7.0 * plan.speed_limit
    plan.ego_s = max(plan.ego_s, 30.0)
    plan.meeting = (leaves - 190.0 if changes else leaves, leaves + 60.0)
    return plan


PLANS: dict[str, Callable[[np.random.Generator], RoadPlan]] = {
    "merge": merge,
    "exit": exit_,
    "intersection": intersection,
    "roundabout": roundabout,
}
