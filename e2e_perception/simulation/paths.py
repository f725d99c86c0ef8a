"""Lanes of any shape: a course drawn piece by piece, and the lane that follows it.

Coordinates are highway-env's: y points right of the x axis and angles grow clockwise; `s` runs along a lane,
`r` is the offset to its right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from highway_env.road.lane import AbstractLane, LineType
from numpy.typing import NDArray
from scipy.spatial import cKDTree

SPACING = 1.0  # [m] between the points of a course
LATERAL_COMFORT = 2.0  # [m/s^2] at which bends are taken
EASY_BRAKING = 1.5  # [m/s^2] towards a bend


class Course:
    """A course drawn like with a turtle: straight on, along arcs, over to the side."""

    def __init__(self, x: float, y: float, heading: float) -> None:
        """Start at a pose [m], [m], [rad]."""
        self._points = [np.array([[x, y]])]
        self._heading = heading

    @property
    def end(self) -> NDArray[np.float64]:
        """(2,) [m]."""
        return np.asarray(self._points[-1][-1], np.float64)

    @property
    def length(self) -> float:
        """So far [m], along the polyline."""
        points = np.concatenate(self._points)
        return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())

    def straight(self, length: float) -> Course:
        """Go straight on [m]."""
        if length > 1e-6:
            num = max(int(np.ceil(length / SPACING)), 1)
            steps = np.linspace(0.0, length, num + 1)[1:, None]
            self._points.append(self.end + steps * np.array([np.cos(self._heading), np.sin(self._heading)]))
        return self

    def arc(self, radius: float, angle: float) -> Course:
        """Turn on an arc of that radius [m] by an angle [rad]; positive turns right."""
        if abs(angle) > 1e-6:
            side = np.sign(angle)
            normal = self._heading + side * np.pi / 2.0
            center = self.end + radius * np.array([np.cos(normal), np.sin(normal)])
            num = max(int(np.ceil(radius * abs(angle) / SPACING)), 2)
            angles = normal + np.pi + np.linspace(0.0, angle, num + 1)[1:]
            self._points.append(center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))
            self._heading += angle
        return self

    def shift(self, length: float, offset: float) -> Course:
        """Go on for a length [m] and end an offset [m] to the right, on a smooth curve."""
        num = max(int(np.ceil(length / SPACING)), 4)
        f = np.linspace(0.0, 1.0, num + 1)[1:]
        sideways = offset * (10.0 * f**3 - 15.0 * f**4 + 6.0 * f**5)
        c, s = np.cos(self._heading), np.sin(self._heading)
        along, across = np.array([c, s]), np.array([-s, c])
        self._points.append(self.end + (f * length)[:, None] * along + sideways[:, None] * across)
        return self

    def points(self) -> NDArray[np.float64]:
        """(P, 2) [m]."""
        return np.concatenate(self._points)


class PathLane(AbstractLane):
    """A lane along a polyline, usually a whole way through a junction; beyond its ends it goes straight on.

    Attributes:
        points_P2: (P, 2) [m], about `SPACING` apart.
        speeds_P: (P,) [m/s] at which a driver takes each point: the limit, slower in and before bends.
        rank: Who gives way to whom where two paths cross: the lower rank does.
        yield_s: Where a roundabout is entered [m]; None elsewhere. Who enters gives way to who is in it.
    """

    def __init__(
        self,
        points_P2: NDArray[np.float64],
        *,
        width: float,
        speed_limit: float,
        rank: int = 0,
        yield_s: float | None = None,
    ) -> None:
        """Lay a lane.

        Args:
            points_P2: (P, 2) [m], any spacing; it is sampled anew.
            width: [m]
            speed_limit: [m/s]
            rank, yield_s: See the class.
        """
        steps = np.linalg.norm(np.diff(points_P2, axis=0), axis=1)
        points_P2 = points_P2[np.concatenate([[True], steps > 1e-6])]
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_P2, axis=0), axis=1))])
        self.length = float(arc[-1])
        self._step = self.length / max(round(self.length / SPACING), 1)
        stations = np.linspace(0.0, self.length, round(self.length / self._step) + 1)
        self.points_P2 = np.stack([np.interp(stations, arc, points_P2[:, k]) for k in (0, 1)], axis=1)
        self._tree = cKDTree(self.points_P2)
        tangents = np.gradient(self.points_P2, axis=0)
        self._headings = np.unwrap(np.arctan2(tangents[:, 1], tangents[:, 0]))
        self._tangents = np.stack([np.cos(self._headings), np.sin(self._headings)], axis=1)
        self.width, self.speed_limit = width, speed_limit
        self.rank, self.yield_s = rank, yield_s
        self.line_types = [LineType.NONE, LineType.NONE]
        self.forbidden, self.priority = False, rank
        self.speeds_P = self._comfortable_speeds()
        # Drivers ask one by one; plain numbers are several times as fast then.
        self._speeds: list[float] = self.speeds_P.tolist()
        self._rows = np.column_stack([self.points_P2, self._tangents, self._headings]).tolist()

    def _comfortable_speeds(self) -> NDArray[np.float64]:
        # Over 4 m, so that the kinks of a polyline are not taken for bends.
        turn = np.abs(self._headings[4:] - self._headings[:-4]) / (4.0 * self._step)
        curvature = np.pad(turn, (2, len(self._headings) - len(turn) - 2), mode="edge")
        speeds = np.minimum(self.speed_limit, np.sqrt(LATERAL_COMFORT / np.maximum(curvature, 1e-6)))
        for k in range(len(speeds) - 2, -1, -1):
            speeds[k] = min(speeds[k], np.sqrt(speeds[k + 1] ** 2 + 2.0 * EASY_BRAKING * self._step))
        return np.asarray(speeds)

    def speed_at(self, s: float) -> float:
        """Speed of a driver there [m/s]."""
        return self._speeds[min(max(round(s / self._step), 0), len(self._speeds) - 1)]

    def position(self, longitudinal: float, lateral: float) -> NDArray[np.float64]:
        """(2,) [m] at (s, r)."""
        last = len(self._rows) - 1
        exact = min(max(longitudinal / self._step, 0.0), float(last))
        i = min(int(exact), last - 1)
        f = exact - i
        x, y, c, s, _ = (
            (1.0 - f) * before + f * after
            for before, after in zip(self._rows[i], self._rows[i + 1], strict=True)
        )
        beyond = longitudinal - exact * self._step
        return np.array([x + c * beyond - s * lateral, y + s * beyond + c * lateral])

    def positions(self, s_N: NDArray[np.float64], r_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) [m] at (s, r)."""
        last = len(self.points_P2) - 1
        exact = np.clip(s_N / self._step, 0.0, last)
        i = np.minimum(exact.astype(np.int64), last - 1)
        f = (exact - i)[:, None]
        points = (1.0 - f) * self.points_P2[i] + f * self.points_P2[i + 1]
        tangents = (1.0 - f) * self._tangents[i] + f * self._tangents[i + 1]
        beyond = s_N - exact * self._step
        normals = np.stack([-tangents[:, 1], tangents[:, 0]], axis=1)
        return np.asarray(points + tangents * beyond[:, None] + normals * r_N[:, None])

    def coordinates(self, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) of (s, r) [m]: of the nearest point of the lane."""
        _, nearest = self._tree.query(points_N2)
        offset = points_N2 - self.points_P2[nearest]
        tangent = self._tangents[nearest]
        s = nearest * self._step + (offset * tangent).sum(axis=1)
        r = tangent[:, 0] * offset[:, 1] - tangent[:, 1] * offset[:, 0]
        # Only beyond the ends may the foot lie farther from its point than half a step.
        inner = np.clip(s, (nearest - 0.5) * self._step, (nearest + 0.5) * self._step)
        s = np.where((nearest == 0) & (s < inner), s, np.where(nearest == len(self.points_P2) - 1, s, inner))
        return np.stack([s, r], axis=1)

    def local_coordinates(self, position: NDArray[np.float64]) -> tuple[float, float]:
        """(s, r) [m] of a point."""
        s, r = self.coordinates(np.asarray(position)[None])[0]
        return float(s), float(r)

    def heading_at(self, longitudinal: float) -> float:
        """[rad], continuous along the lane."""
        last = len(self._rows) - 1
        exact = min(max(longitudinal / self._step, 0.0), float(last))
        i = min(int(exact), last - 1)
        return float((1.0 - exact + i) * self._rows[i][4] + (exact - i) * self._rows[i + 1][4])

    def width_at(self, longitudinal: float) -> float:
        """[m], constant."""
        return self.width

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PathLane:
        """Not needed here."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """Not needed here."""
        raise NotImplementedError


def meeting_zones(a: PathLane, b: PathLane, clearance: float) -> tuple[float, float, float, float] | None:
    """Where two paths come together for the first time, other than by starting as one.

    Args:
        a, b: Paths.
        clearance: [m] between centre lines below which two vehicles do not fit.
    Returns:
        First and last `s` of the zone on a, then on b [m]; None if they stay apart.
    """
    s_b, r_b = b.coordinates(a.points_P2).T
    close = (np.abs(r_b) < clearance) & (s_b > 0.0) & (s_b < b.length)
    # One way in: as long as they run together from the start they follow each other.
    k = 0
    if close[0]:
        apart = np.flatnonzero(~close)
        if len(apart) == 0:
            return None
        k = int(apart[0])
    rest = np.flatnonzero(close[k:])
    if len(rest) == 0:
        return None
    first = k + int(rest[0])
    ends = np.flatnonzero(~close[first:])
    last = first + int(ends[0]) - 1 if len(ends) else len(close) - 1
    step = a.length / (len(a.points_P2) - 1)
    return first * step, last * step, float(s_b[first : last + 1].min()), float(s_b[first : last + 1].max())
