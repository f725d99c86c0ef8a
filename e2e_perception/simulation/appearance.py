"""What road users look like: sizes, colours and the few boxes that each consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES

Rgb = tuple[int, int, int]
CAR, TRUCK, PEDESTRIAN, CYCLIST = (CLASSES.index(n) for n in ("car", "truck", "pedestrian", "cyclist"))
_CAR_COLORS: tuple[Rgb, ...] = (
    (200, 200, 205), (235, 235, 235), (40, 42, 46), (95, 98, 104), (150, 25, 30), (30, 60, 130),
    (25, 85, 60), (190, 165, 120), (215, 120, 30), (70, 35, 30),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Outside of one road user.

    Attributes:
        class_id: Index into `CLASSES`.
        size: Length, width, height [m].
        color: Of the body.
        reflectivity: 0..1, lidar.
    """

    class_id: int
    size: tuple[float, float, float]
    color: Rgb
    reflectivity: float

    @property
    def footprint(self) -> tuple[float, float]:
        """Length and width [m]."""
        return self.size[0], self.size[1]

    @staticmethod
    def random(class_id: int, rng: np.random.Generator) -> Look:
        """Somebody of a class."""
        u = rng.uniform
        red, green, blue = rng.integers(25, 225, 3).tolist()
        color = (red, green, blue)
        if class_id == CAR:
            length = u(3.6, 5.2)
            size = (length, 1.55 + 0.09 * (length - 3.6) + u(0.0, 0.3), u(1.38, 1.95))
            color = _CAR_COLORS[int(rng.integers(len(_CAR_COLORS)))]
        elif class_id == TRUCK:
            size = (u(7.0, 14.0), u(2.3, 2.55), u(2.6, 3.9))
        elif class_id == PEDESTRIAN:
            size = (u(0.4, 0.75), u(0.45, 0.7), u(1.1, 1.95))
        else:
            size = (u(1.55, 1.9), u(0.5, 0.75), u(1.5, 1.9))
        return Look(class_id, size, color, float(u(0.15, 0.75)))


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


def parts_of(looks: Sequence[Look], rng: np.random.Generator) -> Parts:
    """The boxes of all agents: cars have a bonnet, lorries a cab, cyclists a bicycle."""
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

    for agent, look in enumerate(looks):
        length, width, height = look.size
        color, shine = look.color, look.reflectivity
        if look.class_id == CAR:
            glass = (38, 42, 48)
            belt = height * rng.uniform(0.52, 0.62)
            part(agent, 0.0, 0.2, (length, width, belt - 0.2), color, shine, 10.0)
            van = rng.random() < 0.2
            cabin = length * (rng.uniform(0.75, 0.9) if van else rng.uniform(0.45, 0.6))
            shift = (cabin - length) / 2.0 + (0.02 if van else rng.uniform(0.05, 0.14)) * length
            part(agent, shift, belt, (cabin, 0.9 * width, height - belt), glass, 0.7 * shine, 4.0)
        elif look.class_id == TRUCK:
            if rng.random() < 0.4:  # a bus
                part(agent, 0.0, 0.25, (length, width, height - 0.25), color, shine, 20.0)
                continue
            cab = rng.uniform(1.9, 2.4)
            low = rng.uniform(0.65, 0.95) * height
            part(agent, (length - cab) / 2.0, 0.3, (cab, width, low - 0.3), color, shine, 16.0)
            gray = tuple(int(v) for v in rng.integers(120, 240, 3))
            box = length - cab - 0.3
            part(agent, -(length - box) / 2.0, 0.7, (box, width, height - 0.7), gray, 0.6, 20.0)
        elif look.class_id == CYCLIST:
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
