"""What stands and lies still: the road's surface and markings, and clutter beside it.

Coordinates: everything is made in highway-env's (y right) and turned into `odom` (y left) at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from e2e_perception.simulation.alignment import Alignment
from e2e_perception.simulation.scene import Conditions, Marking, Road

Rgb = tuple[int, int, int]
# Moves (N, 2) points from highway-env's coordinates to `odom`.
ToOdom = Callable[[NDArray[np.float64]], NDArray[np.float64]]

WHITE: Rgb = (225, 225, 220)
YELLOW: Rgb = (215, 180, 70)


@dataclass(frozen=True)
class CrossSection:
    """What lies across a road, from left to right; offsets [m] from the reference line, right positive.

    Attributes:
        left, right: Edges of the drivable area.
        lines: Painted lines: offset, style, colour.
        urban: Houses and pavements instead of rails and trees.
    """

    left: float
    right: float
    lines: tuple[tuple[float, Literal["solid", "dashed"], Rgb], ...]
    urban: bool


@dataclass
class Clutter:
    """Still solids, collected one by one.

    Attributes:
        rows: x, y, z of the centre, length, width, height [m], yaw [rad], reflectivity, RCS [dBsm], r, g, b.
    """

    rows: list[tuple[float, ...]] = field(default_factory=list)

    def add(
        self,
        point_2: NDArray[np.float64],
        yaw: float,
        size: tuple[float, float, float],
        color: tuple[float, float, float],
        *,
        bottom: float = 0.0,
        reflectivity: float,
        rcs: float,
    ) -> None:
        """Put a box on the ground, or `bottom` metres above it."""
        z = bottom + size[2] / 2.0
        shade = np.clip(color, 0, 255)
        self.rows.append((float(point_2[0]), float(point_2[1]), z, *size, yaw, reflectivity, rcs, *shade))

    def array(self) -> NDArray[np.float64]:
        """(N, 12) float64, columns as `rows`."""
        return np.array(self.rows, np.float64).reshape(-1, 12)


def weather(rng: np.random.Generator, difficulty: float) -> Conditions:
    """Light and air of a scenario: at random from clear day to night, rain, fog and a low sun.

    Args:
        rng: Randomness.
        difficulty: 0 … 1; how often it is anything but a clear day, and how bad it gets.
    """
    base = random_conditions(rng)
    draw, severity = rng.random(), float(rng.uniform(0.2, 1.0)) * (0.4 + 0.6 * difficulty)
    azimuth, elevation = float(rng.uniform(-np.pi, np.pi)), float(np.deg2rad(rng.uniform(3.0, 15.0)))
    if draw < 0.3 * (0.5 + difficulty):
        return replace(base, rain=40.0 * severity, brightness=0.85 * base.brightness, sky=(160, 165, 170))
    if draw < 0.45 * (0.5 + difficulty):
        return replace(base, haze=max(base.haze, 0.035 * severity), sky=(185, 188, 190))
    if draw > 0.9 and base.brightness > 0.6:
        return replace(base, glare=severity, sun=(azimuth, elevation))
    return base


def random_conditions(rng: np.random.Generator) -> Conditions:
    """Day, dusk, night or haze."""
    kind = rng.choice(["day", "dusk", "night", "haze"], p=[0.55, 0.17, 0.15, 0.13])
    if kind == "day":
        gray = rng.uniform(0.0, 1.0)
        sky = tuple(int(v) for v in (1 - gray) * np.array([135, 180, 230]) + gray * np.array([195, 200, 205]))
        return Conditions(rng.uniform(0.7, 1.0), rng.uniform(0.0, 0.001), (sky[0], sky[1], sky[2]))
    if kind == "dusk":
        return Conditions(rng.uniform(0.35, 0.65), rng.uniform(0.0, 0.003), (190, 145, 125))
    if kind == "night":
        return Conditions(rng.uniform(0.2, 0.4), rng.uniform(0.0, 0.002), (22, 26, 40))
    return Conditions(rng.uniform(0.5, 0.9), rng.uniform(0.005, 0.025), (185, 188, 190))


def scatter(
    alignment: Alignment, section: CrossSection, keep_free: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Clutter along both sides of a road.

    Args:
        alignment: The road's course.
        section: Its cross-section.
        keep_free: Width of the strip beside the drivable area that stays empty (a pavement) [m].
        rng: Randomness.
    Returns:
        (N, 12), see `Clutter`.
    """
    clutter = Clutter()
    density = rng.uniform(0.3, 1.4)
    for side, edge in ((-1.0, section.left), (1.0, section.right)):
        if section.urban:
            _houses(clutter, alignment, side, edge + side * keep_free, density, rng)
        else:
            _rails(clutter, alignment, side, edge, rng)
        _greenery(clutter, alignment, side, edge + side * keep_free, density, section.urban, rng)
        _poles(clutter, alignment, side, edge + side * (0.7 + rng.uniform(0, 0.8)), rng)
    return clutter.array()


def scatter_around(
    area: shapely.Geometry, middle_2: NDArray[np.float64], urban: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Clutter around roads of any shape.

    Args:
        area: Drivable area, kept free.
        middle_2: (2,) [m], what it is scattered around.
        urban: Houses rather than trees; a pavement stays empty.
        rng: Randomness.
    Returns:
        (N, 12), see `Clutter`.
    """
    clutter = Clutter()
    density = rng.uniform(0.4, 1.3)
    reach = 130.0
    shapely.prepare(area)

    def free(point: NDArray[np.float64], radius: float) -> bool:
        return bool(area.distance(shapely.Point(point)) > radius)

    for _ in range(int((90 if urban else 15) * density)):
        point = middle_2 + rng.uniform(-reach, reach, 2)
        length, depth, height = rng.uniform(8.0, 22.0), rng.uniform(7.0, 12.0), rng.uniform(3.5, 16.0)
        tone = rng.uniform(90, 215)
        color = (tone, tone * rng.uniform(0.8, 1.0), tone * rng.uniform(0.65, 0.95))
        reflectivity = rng.uniform(0.25, 0.6)
        if free(point, float(np.hypot(length, depth)) / 2.0 + (3.5 if urban else 8.0)):
            yaw = float(rng.choice([0.0, np.pi / 2.0])) + float(rng.normal(0.0, 0.05))
            clutter.add(point, yaw, (length, depth, height), color, reflectivity=reflectivity, rcs=22.0)
    for _ in range(int(160 * density)):
        point = middle_2 + rng.uniform(-reach, reach, 2)
        green = (rng.uniform(25, 75), rng.uniform(70, 130), rng.uniform(20, 55))
        yaw, crown = float(rng.uniform(0, np.pi)), rng.uniform(1.6, 4.0)
        bush = (rng.uniform(0.6, 2.5), rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.8))
        trunk, bottom, tall = rng.uniform(0.2, 0.5), rng.uniform(1.8, 3.0), rng.uniform(2.0, 5.5)
        is_bush = rng.random() < 0.5
        if not free(point, 4.2 if urban else 2.5):
            continue
        if is_bush:
            clutter.add(point, yaw, bush, green, reflectivity=0.3, rcs=-4.0)
        else:
            clutter.add(point, yaw, (trunk, trunk, bottom), (85, 65, 45), reflectivity=0.3, rcs=0.0)
            clutter.add(point, yaw, (crown, crown, tall), green, bottom=bottom, reflectivity=0.3, rcs=-3.0)
    for part in shapely.get_parts(area):
        ring = part.exterior
        s, spacing = float(rng.uniform(0.0, 40.0)), rng.uniform(25.0, 60.0)
        while s < ring.length:
            edge = np.asarray(ring.interpolate(s).coords[0])
            ahead = np.asarray(ring.interpolate(s + 0.5).coords[0]) - edge
            for side in (-1.0, 1.0):  # one of them is outside
                point = edge + side * 0.8 * np.array([-ahead[1], ahead[0]]) / max(np.hypot(*ahead), 1e-6)
                if free(point, 0.5):
                    yaw = float(np.arctan2(ahead[1], ahead[0]))
                    clutter.add(point, yaw, (0.18, 0.18, 6.0), (95, 95, 98), reflectivity=0.45, rcs=3.0)
                    break
            s += spacing
    return clutter.array()


def _along(
    alignment: Alignment, first: float, gaps: Callable[[], float]
) -> list[tuple[float, NDArray[np.float64]]]:
    s, stations = first, []
    while s < alignment.length:
        stations.append((s, alignment.positions(s, 0.0)))
        s += gaps()
    return stations


def _rails(
    clutter: Clutter, alignment: Alignment, side: float, edge: float, rng: np.random.Generator
) -> None:
    kind = rng.choice(["none", "rail", "concrete", "barrier"], p=[0.25, 0.45, 0.2, 0.1])
    if kind == "none":
        return
    piece = 16.0
    width, height, bottom = {
        "rail": (0.12, 0.35, 0.45),
        "concrete": (0.5, 0.9, 0.0),
        "barrier": (0.3, rng.uniform(2.5, 4.5), 0.0),
    }[str(kind)]
    r = edge + side * (0.5 + width / 2.0 + rng.uniform(0.0, 1.0))
    gray = rng.uniform(110, 185)
    color = (gray, gray, gray + 5) if kind != "barrier" else (gray * 0.8, gray * 0.85, gray * 0.75)
    s = np.arange(0.0, alignment.length, piece)
    ends = alignment.positions(np.append(s, s[-1] + piece), r)
    middle, along = (ends[:-1] + ends[1:]) / 2.0, np.diff(ends, axis=0)
    for point, step in zip(middle, along, strict=True):
        clutter.add(
            point,
            float(np.arctan2(step[1], step[0])),
            (float(np.hypot(*step)), width, height),
            color,
            bottom=bottom,
            reflectivity=0.5,
            rcs=12.0,
        )


def _houses(
    clutter: Clutter, alignment: Alignment, side: float, edge: float, density: float, rng: np.random.Generator
) -> None:
    s = rng.uniform(0.0, 15.0)
    setback = rng.uniform(0.5, 6.0)
    while s < alignment.length:
        length, depth, height = rng.uniform(8.0, 26.0), rng.uniform(7.0, 12.0), rng.uniform(3.5, 16.0)
        if rng.random() < 0.35 + 0.45 * density:
            middle = s + length / 2.0
            r = edge + side * (setback + rng.uniform(0.3, 1.5) + depth / 2.0)
            tone = rng.uniform(90, 215)
            color = (tone, tone * rng.uniform(0.8, 1.0), tone * rng.uniform(0.65, 0.95))
            clutter.add(
                alignment.positions(middle, r),
                float(alignment.headings(middle)),
                (length, depth, height),
                color,
                reflectivity=rng.uniform(0.25, 0.6),
                rcs=22.0,
            )
        s += length + rng.exponential(6.0) + 0.5


def _greenery(
    clutter: Clutter,
    alignment: Alignment,
    side: float,
    edge: float,
    density: float,
    urban: bool,
    rng: np.random.Generator,
) -> None:
    spacing = (14.0 if urban else 9.0) / density
    for s, _ in _along(alignment, rng.uniform(0, 20), lambda: 1.0 + rng.exponential(spacing)):
        far = rng.uniform(0.8, 2.0) if urban else rng.uniform(1.8, 22.0)
        point = alignment.positions(s, edge + side * far)
        yaw = float(rng.uniform(0, np.pi))
        green = (rng.uniform(25, 75), rng.uniform(70, 130), rng.uniform(20, 55))
        if rng.random() < 0.5:
            size = (rng.uniform(0.6, 2.5), rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.8))
            if urban:
                size = (rng.uniform(0.4, 1.0), rng.uniform(0.4, 0.9), size[2])
            clutter.add(point, yaw, size, green, reflectivity=0.3, rcs=-4.0)
            continue
        trunk, crown = rng.uniform(0.2, 0.5), rng.uniform(1.6, 4.0)
        free = rng.uniform(1.6, 3.0)
        clutter.add(point, yaw, (trunk, trunk, free), (85, 65, 45), reflectivity=0.3, rcs=0.0)
        size = (crown, crown * rng.uniform(0.7, 1.0), rng.uniform(2.0, 5.5))
        clutter.add(point, yaw, size, green, bottom=free, reflectivity=0.3, rcs=-3.0)


def _poles(clutter: Clutter, alignment: Alignment, side: float, r: float, rng: np.random.Generator) -> None:
    spacing = rng.uniform(22.0, 60.0)
    if rng.random() < 0.25:
        return
    for s, _ in _along(alignment, rng.uniform(0, spacing), lambda: spacing):
        point = alignment.positions(s, r)
        yaw = float(alignment.headings(s))
        width = rng.uniform(0.12, 0.25)
        clutter.add(point, yaw, (width, width, 6.0), (95, 95, 98), reflectivity=0.45, rcs=3.0)
        if rng.random() < 0.3:
            color = ((190, 40, 35), (40, 80, 170), (205, 205, 205))[int(rng.integers(3))]
            clutter.add(point, yaw, (0.08, 0.8, 0.8), color, bottom=2.2, reflectivity=0.95, rcs=5.0)


def surface(alignment: Alignment, section: CrossSection, to_odom: ToOdom) -> Road:
    """The whole road, odom frame; one object per scenario, so that whoever draws it can keep the result."""
    s = np.arange(0.0, alignment.length + 1e-9, 4.0)
    left, right = (to_odom(alignment.positions(s, r)) for r in (section.left, section.right))
    markings = tuple(
        Marking(to_odom(alignment.positions(s, offset)), style, color, 0.15)
        for offset, style, color in section.lines
    )
    return Road((np.concatenate([left, right[::-1]]),), (left, right), markings)
