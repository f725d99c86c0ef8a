"""The course of a road: straight, winding or a long bend, and lanes beside each other along it.

Coordinates here are highway-env's: y points right of the x axis and angles grow clockwise. `s` runs along the
reference line, `r` is the offset to its right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from highway_env.road.lane import AbstractLane, CircularLane, SineLane, StraightLane
from numpy.typing import ArrayLike, NDArray

from e2e_perception.simulation.paths import PathLane


@dataclass(frozen=True)
class Alignment:
    """A reference line with constant cross-section.

    Attributes:
        shape: `straight`, `sine` or `arc`.
        length: Of the road [m].
        amplitude: Of the sine [m].
        pulsation: Of the sine [rad/m].
        phase: Of the sine at s = 0 [rad].
        radius: Of the arc [m].
        turn: +1 bends right, -1 left.
    """

    shape: Literal["straight", "sine", "arc"]
    length: float
    amplitude: float = 0.0
    pulsation: float = 0.0
    phase: float = 0.0
    radius: float = 1.0
    turn: int = 1

    @staticmethod
    def random(length: float, speed: float, rng: np.random.Generator) -> Alignment:
        """A course that can be driven at a speed [m/s] with at most 2 m/s^2 to the side."""
        shape = str(rng.choice(["straight", "sine", "arc"], p=[0.2, 0.5, 0.3]))
        sideways = rng.uniform(0.3, 2.0)
        if shape == "arc":
            # highway-env measures s on an arc only half a turn either way.
            radius = max(speed**2 / sideways, (length + 100.0) / (0.9 * np.pi))
            return Alignment("arc", length, radius=radius, turn=int(rng.choice([-1, 1])))
        if shape == "sine":
            pulsation = 2.0 * np.pi / rng.uniform(8.0 * speed, 25.0 * speed)
            amplitude = min(sideways / (speed * pulsation) ** 2, 0.3 / pulsation)
            phase = float(rng.uniform(0.0, 2.0 * np.pi))
            return Alignment("sine", length, amplitude=amplitude, pulsation=pulsation, phase=phase)
        return Alignment("straight", length)

    def lane(
        self, offset: float, width: float, speed_limit: float, *, oncoming: bool = False
    ) -> AbstractLane:
        """The lane `offset` m right of the reference line; an oncoming one runs against it."""
        common = {"width": width, "speed_limit": speed_limit}
        if self.shape == "arc":
            first = -self.turn * np.pi / 2.0
            last = first + self.turn * self.length / self.radius
            return CircularLane(
                np.array([0.0, self.turn * self.radius]),
                self.radius - self.turn * offset,
                last if oncoming else first,
                first if oncoming else last,
                clockwise=(self.turn == 1) != oncoming,
                **common,
            )
        ends = np.array([[0.0, offset], [self.length, offset]])
        start, end = ends[::-1] if oncoming else ends
        if self.shape == "straight":
            return StraightLane(start, end, **common)
        phase = -(self.pulsation * self.length + self.phase) if oncoming else self.phase
        return SineLane(start, end, self.amplitude, self.pulsation, phase, **common)

    def positions(self, s: ArrayLike, r: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) [m]: points at (s, r)."""
        s, r = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(r, np.float64))
        if self.shape == "arc":
            angle = self.turn * (s / self.radius - np.pi / 2.0)
            reach = self.radius - self.turn * r
            x, y = reach * np.cos(angle), self.turn * self.radius + reach * np.sin(angle)
            return np.stack([x, y], axis=-1)
        y = r + self.amplitude * np.sin(self.pulsation * s + self.phase)
        return np.stack([s, y], axis=-1)

    def headings(self, s: ArrayLike) -> NDArray[np.float64]:
        """Direction of the reference line at s [rad]."""
        s = np.asarray(s, np.float64)
        if self.shape == "arc":
            return np.asarray(self.turn * s / self.radius)
        slope = self.amplitude * self.pulsation * np.cos(self.pulsation * s + self.phase)
        return np.asarray(np.arctan(slope))


def lane_coordinates(lane: AbstractLane, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """`lane.local_coordinates` for many points at once: (N, 2) of (s, r) [m]."""
    if isinstance(lane, PathLane):
        return lane.coordinates(points_N2)
    if isinstance(lane, CircularLane):
        delta = points_N2 - lane.center
        angle = np.arctan2(delta[:, 1], delta[:, 0]) - lane.start_phase
        angle = (angle + np.pi) % (2.0 * np.pi) - np.pi
        distance = np.hypot(delta[:, 0], delta[:, 1])
        s = lane.direction * angle * lane.radius
        return np.stack([s, lane.direction * (lane.radius - distance)], axis=-1)
    assert isinstance(lane, StraightLane)
    delta = points_N2 - lane.start
    s, r = delta @ lane.direction, delta @ lane.direction_lateral
    if isinstance(lane, SineLane):
        r = r - lane.amplitude * np.sin(lane.pulsation * s + lane.phase)
    return np.stack([s, r], axis=-1)
