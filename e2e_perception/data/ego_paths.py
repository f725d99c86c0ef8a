"""Where a recording was driven, coarsely, in a frame that other recordings share; what splits by place need.

Legend: P points of a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError

SPACING = 5.0  # [m] between kept points
MOST_POINTS = 4096  # of longer paths every second point is dropped, as often as it takes
# Frames of REP-105 that mean the same place in every recording; `odom` begins anew with each.
SHARED_FRAMES = ("map", "utm", "earth")
CELL = 10.0  # [m] of the lookup of near points, at least
NEIGHBOURS = tuple((dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))  # of a cell, itself included


@dataclass
class PathRecorder:
    """Keeps a point every `SPACING` metres, in flat memory.

    Attributes:
        points: Stamp [ns], x, y [m], in the order of arrival.
    """

    points: list[tuple[int, float, float]] = field(default_factory=list)
    _spacing: float = SPACING

    def add(self, stamp_ns: int, x: float, y: float) -> None:
        """Take in where the robot is."""
        if self.points and np.hypot(x - self.points[-1][1], y - self.points[-1][2]) < self._spacing:
            return
        self.points.append((stamp_ns, round(x, 2), round(y, 2)))
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._spacing *= 2.0

    def facts(self, frame: str) -> dict[str, Any]:
        """For `shard.json`; nothing where the frame is the recording's own."""
        if frame not in SHARED_FRAMES and ":" not in frame:
            return {}
        return {"path": {"frame": frame, "points": [list(point) for point in self.points]}}


@dataclass(frozen=True)
class EgoPath:
    """A path as a shard's facts have it.

    Attributes:
        frame: Paths of one frame can be compared. A frame with a colon names a survey, as `argoverse2:PIT`.
        stamps_ns_P: (P,) int64.
        points_P2: (P, 2) float64 [m], `frame`.
    """

    frame: str
    stamps_ns_P: NDArray[np.int64]
    points_P2: NDArray[np.float64]
    _cells: dict[float, Mapping[tuple[int, int], list[int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def of(facts: Mapping[str, Any], shard: str) -> EgoPath | None:
        """Of a shard; None where it does not say.

        Raises:
            InputError: If what it says is no path.
        """
        said = facts.get("path")
        if said is None:
            return None
        try:
            rows = np.array([[float(x), float(y)] for _, x, y in said["points"]], np.float64).reshape(-1, 2)
            stamps = np.array([int(stamp) for stamp, _, _ in said["points"]], np.int64)
            frame = str(said["frame"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"shard {shard}: its path is {error!r}, expected a frame and points (stamp, x, y); ingest "
                "the recording into a new directory"
            ) from error
        if not np.isfinite(rows).all():
            raise InputError(f"shard {shard}: its path has a point that is not finite; ingest it anew")
        return EgoPath(frame, stamps, rows)

    def share_near(self, other: EgoPath, distance: float) -> float:
        """Share of the points of the shorter path that lie within `distance` [m] of the other's.

        0 where the frames differ: nothing is known then.
        """
        if self.frame != other.frame or not len(self.points_P2) or not len(other.points_P2):
            return 0.0
        few, many = sorted((self, other), key=lambda path: len(path.points_P2))
        cells = many.cells(distance)
        near = 0
        for point, (x, y) in zip(few.points_P2, few._cell_of_points(distance), strict=True):
            around = [i for dx, dy in NEIGHBOURS for i in cells.get((x + dx, y + dy), ())]
            gaps = many.points_P2[around] - point
            near += bool(around) and bool(np.linalg.norm(gaps, axis=1).min() <= distance)
        return near / len(few.points_P2)

    def cells(self, distance: float) -> Mapping[tuple[int, int], list[int]]:
        """Numbers of the points by cell of a grid whose cells are as wide as `distance` [m], or a bit more.

        Points within `distance` of each other are in the same cell or in neighbours.
        """
        if distance not in self._cells:
            found: dict[tuple[int, int], list[int]] = {}
            for index, cell in enumerate(self._cell_of_points(distance)):
                found.setdefault(cell, []).append(index)
            self._cells[distance] = found
        return self._cells[distance]

    def _cell_of_points(self, distance: float) -> list[tuple[int, int]]:
        places = np.floor(self.points_P2 / max(distance, CELL)).astype(int)
        return [(x, y) for x, y in places.tolist()]
