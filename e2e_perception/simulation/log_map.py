"""Road and route from the vector map of a log.

The route follows lanes of the map, not the logged drive: of the drive only its first and last pose are used,
and of these only in which lane they are, how far along and which way they point. How the car drove within its
lane cannot be seen in it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from shapely.geometry import Polygon

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.argoverse import Lane, Log
from e2e_perception.simulation.scene import Marking, Road
from e2e_perception.simulation.scenery import WHITE, YELLOW

BEYOND_END = 130.0  # [m] of lanes after the goal, where the map has them
NEAR_LANE = 8.0  # [m] from which a pose beside all lanes still counts as on the nearest
MAX_HEADING_ERROR = 1.0  # [rad] between a pose and the lane that it is on
CHANGE_COST, CHANGE_HURRY = 30.0, 1000.0  # [m], and [m^2] to be divided by the length that is left
HEADING_COST = 30.0  # [m/rad]
SMOOTHING = 2.0  # [m], standard deviation; lanes meet at kinks, and their boundaries are sparse
LINE_WIDTH = 0.13  # [m]
CHAIN_STEPS = 10  # where the map leads nowhere, the goal is drawn back in steps of so many poses

Line = tuple[Literal["solid", "dashed"], tuple[int, int, int]]


@dataclass(frozen=True)
class LaneRoute:
    """A way through the map.

    Attributes:
        route: City frame.
        lanes: From the first to the one with the goal, then those beyond.
        last_pose: Index of the drive's pose that it leads to; the last one unless the map has no way there.
    """

    route: Route
    lanes: tuple[int, ...]
    last_pose: int


def lane_route(lanes: Mapping[int, Lane], drive_T3: NDArray[np.float64]) -> LaneRoute:
    """The cheapest way along successors from the first pose of a drive to its last.

    Neighbouring lanes are taken only where that is shorter by tens of metres, or the only way. Where lanes
    lie over each other (junctions), the way between the poses decides.

    Args:
        lanes: The map.
        drive_T3: (T, 3) x, y [m], yaw [rad] of `base_link`, city frame.
    Raises:
        InputError: If no lane leads anywhere along the drive.
    """
    starts = _lanes_at(lanes, drive_T3[0])
    if not starts:
        raise InputError(
            f"the log starts at ({drive_T3[0, 0]:.1f}, {drive_T3[0, 1]:.1f}), more than {NEAR_LANE:g} m from "
            "any lane of its direction; start later"
        )
    costs, before = _cheapest(lanes, starts)
    for last in range(len(drive_T3) - 1, -1, -CHAIN_STEPS):
        goals = [
            (costs[i] + along + HEADING_COST * error, i)
            for i, along, error in _lanes_at(lanes, drive_T3[last])
            if i in costs
        ]
        if goals:
            break
    else:
        raise InputError("the map has no way from where the log starts to any later place; start later")
    way = [min(goals)[1]]
    while way[0] in before:
        way.insert(0, before[way[0]])
    beyond = _extension(lanes, way[-1])
    first_along = next(along for i, along, _ in starts if i == way[0])
    points = np.concatenate(
        [
            *_centre_lines(lanes, way, first_along),
            *(_centre(lanes[i], _num_points(lanes[i])) for i in beyond),
        ]
    )
    return LaneRoute(_smooth(points), (*way, *beyond), last)


def progress(route: Route, points_T2: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) arc length [m] along a route of a drive (T, 2) [m], followed from its start."""
    s = [route.project(points_T2[0])[0]]
    for point in points_T2[1:]:
        s.append(route.project(point, near_s=s[-1])[0])
    return np.array(s)


def road_of(log: Log, odom_from_city: SE2) -> Road:
    """Drivable areas, their common outline as boundaries, and paint.

    Args:
        log: With the map.
        odom_from_city: In the ground plane.
    """
    drivable = tuple(odom_from_city.apply(polygon) for polygon in log.drivable)
    # Areas that share an edge meet within centimetres; no kerb lies there.
    touching = shapely.union_all(
        [shapely.make_valid(Polygon(p)).buffer(0.05) for p in drivable if len(p) > 2]
    )
    union = touching.buffer(-0.05, join_style="mitre")
    polygons = [part for part in shapely.get_parts(union) if isinstance(part, Polygon)]
    rings = [np.asarray(ring.coords) for part in polygons for ring in (part.exterior, *part.interiors)]
    return Road(drivable, tuple(rings), tuple(_markings(log.lanes, odom_from_city)))


def lines_of(mark: str) -> tuple[Line, ...]:
    """The lines, left to right, that a mark type of the data set stands for; none for blue paint."""
    words = mark.split("_")
    if words[-1] not in ("WHITE", "YELLOW"):
        return ()
    color = WHITE if words[-1] == "WHITE" else YELLOW
    styles = ["dashed" if w.startswith("DASH") else "solid" for w in words if w[:4] in ("SOLI", "DASH")]
    both = styles * 2 if words[0] == "DOUBLE" else styles
    return tuple(("dashed" if style == "dashed" else "solid", color) for style in both)


def _markings(lanes: Mapping[int, Lane], odom_from_city: SE2) -> Iterator[Marking]:
    drawn: set[tuple[tuple[float, float], ...]] = set()
    for lane in lanes.values():
        for boundary, mark in ((lane.left_K2, lane.left_mark), (lane.right_K2, lane.right_mark)):
            lines = lines_of(mark)
            # Neighbours share a boundary; those of the other direction have it the other way round.
            ends = tuple(sorted((round(float(x), 1), round(float(y), 1)) for x, y in boundary[[0, -1]]))
            if not lines or ends in drawn:
                continue
            drawn.add(ends)
            points = odom_from_city.apply(boundary)
            tangents = np.gradient(points, axis=0)
            tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
            left = np.stack([-tangents[:, 1], tangents[:, 0]], axis=-1)
            for i, (style, color) in enumerate(lines):
                offset = ((len(lines) - 1) / 2.0 - i) * 2.0 * LINE_WIDTH
                yield Marking(points + offset * left, style, color, LINE_WIDTH)


def _resampled(points_K2: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    steps = np.linalg.norm(np.diff(points_K2, axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0.0, arc[-1], num)
    return np.stack([np.interp(at, arc, points_K2[:, i]) for i in (0, 1)], axis=-1)


def _centre(lane: Lane, num: int) -> NDArray[np.float64]:
    """(num, 2) [m]: the mean of both boundaries at the same share of their lengths."""
    return np.asarray((_resampled(lane.left_K2, num) + _resampled(lane.right_K2, num)) / 2.0)


def _length(lane: Lane) -> float:
    return float(np.linalg.norm(np.diff(_centre(lane, 12), axis=0), axis=1).sum())


def _num_points(lane: Lane) -> int:
    return max(int(np.ceil(_length(lane))), 1) + 1


def _lanes_at(lanes: Mapping[int, Lane], pose_3: NDArray[np.float64]) -> list[tuple[int, float, float]]:
    """Lanes that a pose is on: number, distance along [m] and heading error [rad]; else the nearest one."""
    inside: list[tuple[int, float, float]] = []
    beside: list[tuple[float, int, float, float]] = []
    point = shapely.Point(pose_3[0], pose_3[1])
    for lane in lanes.values():
        polygon = Polygon(np.concatenate([lane.left_K2, lane.right_K2[::-1]]))
        distance = float(polygon.distance(point))
        if distance > NEAR_LANE:
            continue
        centre = Route(_centre(lane, _num_points(lane)))
        s, _ = centre.project(pose_3[:2])
        _, tangent = centre.at(s)
        error = abs(float(wrap_angle(pose_3[2] - np.arctan2(tangent[1], tangent[0]))))
        if error > MAX_HEADING_ERROR:
            continue
        s = float(np.clip(s, 0.0, centre.arc_lengths_R[-1]))
        # Cars stand and turn on bicycle lanes too, but what they follow is the lane beside.
        if distance == 0.0 and lane.lane_type != "BIKE":
            inside.append((lane.lane_id, s, error))
        else:
            beside.append((distance + (1.0 if lane.lane_type == "BIKE" else 0.0), lane.lane_id, s, error))
    return inside or [item[1:] for item in sorted(beside)[:1]]


def _cheapest(
    lanes: Mapping[int, Lane], starts: list[tuple[int, float, float]]
) -> tuple[dict[int, float], dict[int, int]]:
    """Dijkstra: the cost [m] of being at the start of each lane that can be reached, and where from."""
    lengths = {i: _length(lane) for i, lane in lanes.items()}
    costs: dict[int, float] = {}
    before: dict[int, int] = {}
    queue: list[tuple[float, int, int]] = []
    for i, along, error in starts:
        heapq.heappush(queue, (HEADING_COST * error - along, i, i))
    while queue:
        cost, i, source = heapq.heappop(queue)
        if i in costs:
            continue
        costs[i] = cost
        if source != i:
            before[i] = source
        lane = lanes[i]
        left = lengths[i] - next((along for k, along, _ in starts if k == i and source == i), 0.0)
        bike = 20.0 if lane.lane_type == "BIKE" else 0.0
        for after in lane.successors:
            if after in lanes and after not in costs:
                heapq.heappush(queue, (cost + lengths[i] + bike, after, i))
        for beside in (lane.left, lane.right):
            if beside is None or beside not in lanes or beside in costs:
                continue
            if _same_way(lane, lanes[beside]):
                heapq.heappush(queue, (cost + CHANGE_COST + CHANGE_HURRY / max(left, 1.0), beside, i))
    return costs, before


def _same_way(a: Lane, b: Lane) -> bool:
    first, second = (_centre(lane, 2) for lane in (a, b))
    return float(np.dot(first[1] - first[0], second[1] - second[0])) > 0.0


def _centre_lines(
    lanes: Mapping[int, Lane], way: list[int], first_along: float
) -> Iterator[NDArray[np.float64]]:
    """Centre lines one after the other; across neighbours the line passes from the first to the last."""
    groups: list[list[int]] = [way[:1]]
    for a, b in zip(way[:-1], way[1:], strict=True):
        if b in lanes[a].successors:
            groups.append([b])
        else:
            groups[-1].append(b)
    for k, group in enumerate(groups):
        first, last = lanes[group[0]], lanes[group[-1]]
        num = _num_points(first)
        u = np.linspace(0.0, 1.0, num)
        begin = min(first_along / max(_length(first), 1e-6), 1.0) if k == 0 else 0.0
        share = np.clip((u - begin) / max(1.0 - begin, 1e-6), 0.0, 1.0)
        weight = (share**2 * (3.0 - 2.0 * share))[:, None]
        yield (1.0 - weight) * _centre(first, num) + weight * _centre(last, num)


def _extension(lanes: Mapping[int, Lane], last: int) -> list[int]:
    """Lanes after the last one, always the straightest, until they are `BEYOND_END` metres long."""
    extension: list[int] = []
    length, seen = 0.0, {last}
    while length < BEYOND_END:
        choices = [i for i in lanes[last].successors if i in lanes and i not in seen]
        if not choices:
            break
        heading = _heading_at_end(lanes[last])
        turns = {i: abs(float(wrap_angle(_heading_at_end(lanes[i]) - heading))) for i in choices}
        last = min((turn, i) for i, turn in turns.items())[1]
        seen.add(last)
        extension.append(last)
        length += _length(lanes[last])
    return extension


def _heading_at_end(lane: Lane) -> float:
    before, end = _centre(lane, 12)[-2:]
    return float(np.arctan2(end[1] - before[1], end[0] - before[0]))


def _smooth(points_K2: NDArray[np.float64]) -> Route:
    rough = Route(points_K2)
    num = max(int(np.ceil(rough.arc_lengths_R[-1])), 1) + 1
    even, _ = rough.at(np.linspace(0.0, rough.arc_lengths_R[-1], num))
    smooth = gaussian_filter1d(even, SMOOTHING, axis=0, mode="nearest")
    return Route(np.concatenate([even[:1], smooth[1:-1], even[-1:]]))
