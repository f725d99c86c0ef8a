"""What the sensor models look at: the road, solid boxes and the robot, at one instant.

The world frame is the odometry frame `odom`: flat ground at z = 0, x and y horizontal, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.frames import SE3


@dataclass(frozen=True)
class Marking:
    """A painted line.

    Attributes:
        points_N2: (N, 2) float64 [m], odom frame.
        style: `solid` or `dashed` (3 m paint, 6 m gap).
        color: (r, g, b), 0..255.
        width: [m]
    """

    points_N2: NDArray[np.float64]
    style: Literal["solid", "dashed"]
    color: tuple[int, int, int]
    width: float


@dataclass(frozen=True)
class Road:
    """The static surface.

    Attributes:
        drivable: Polygons (N, 2) float64 [m], odom frame; their union is the drivable area.
        boundaries: Polylines (N, 2) float64 [m]: edges of the drivable area.
        markings: Painted lines.
    """

    drivable: tuple[NDArray[np.float64], ...]
    boundaries: tuple[NDArray[np.float64], ...]
    markings: tuple[Marking, ...]


@dataclass(frozen=True)
class Solids:
    """N opaque boxes that sensors can hit: agents and clutter (buildings, poles, rails, bushes).

    Attributes:
        centers_N3, sizes_N3: (N, 3) float64 [m]; sizes are length, width, height.
        yaws_N: (N,) float64 [rad].
        velocities_N2: (N, 2) float64 [m/s], odom axes.
        colors_N3: (N, 3) uint8 RGB.
        reflectivities_N: (N,) float64 in [0, 1], lidar.
        rcs_N: (N,) float64 [dBsm], radar.
        labels_N: (N,) int64, row of the snapshot's `boxes`, or -1 for clutter.
    """

    centers_N3: NDArray[np.float64]
    sizes_N3: NDArray[np.float64]
    yaws_N: NDArray[np.float64]
    velocities_N2: NDArray[np.float64]
    colors_N3: NDArray[np.uint8]
    reflectivities_N: NDArray[np.float64]
    rcs_N: NDArray[np.float64]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.centers_N3)


@dataclass(frozen=True)
class Conditions:
    """Light and air; what they do to the sensors is in `weather` and in the sensors' models.

    Attributes:
        brightness: 0.1 (night) … 1 (noon).
        haze: Extinction by haze and fog [1/m]; 0 clear, 0.03 dense fog. Contrast falls as
            exp(-haze * distance), a lidar's signal as the square of it.
        sky: (r, g, b), 0..255.
        rain: [mm/h]; 1 drizzle, 10 strong, 50 a cloudburst.
        glare: 0 … 1: how strongly a low sun blinds cameras that look towards it.
        sun: Azimuth, counter-clockwise from the odom x axis, and elevation [rad] of that sun.
    """

    brightness: float = 1.0
    haze: float = 0.0
    sky: tuple[int, int, int] = (150, 185, 225)
    rain: float = 0.0
    glare: float = 0.0
    sun: tuple[float, float] = (0.0, 0.1)

    def describe(self) -> str:
        """In a few words, e.g. `dusk, rain 12 mm/h`."""
        words = ["night" if self.brightness < 0.42 else "dusk" if self.brightness < 0.66 else "day"]
        if self.rain >= 0.5:
            words.append(f"rain {self.rain:.0f} mm/h")
        if self.haze >= 0.004:
            words.append(f"{'fog' if self.haze >= 0.01 else 'haze'}, sight {3.0 / self.haze:.0f} m")
        if self.glare >= 0.05:
            words.append("low sun")
        return ", ".join(words)


@dataclass(frozen=True)
class Snapshot:
    """The world at one instant.

    Attributes:
        stamp_ns: [ns]
        odom_from_base: The robot's pose; base_link lies on the ground below the rear axle.
        velocity: (3,) float64 [m/s] of base_link in the base frame.
        yaw_rate: [rad/s]
        boxes: Labelled agents in the odom frame, with identities.
        solids: Everything a ray can hit, the robot itself excluded.
        road: The surface.
        conditions: Light and air.
    """

    stamp_ns: int
    odom_from_base: SE3
    velocity: NDArray[np.float64]
    yaw_rate: float
    boxes: Boxes
    solids: Solids
    road: Road
    conditions: Conditions
