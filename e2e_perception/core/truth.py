"""What was really there at the time of a frame: what evaluations compare a `FrameResult` with.

Legend: L objects, S future steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2


@dataclass(frozen=True)
class TruthFrame:
    """One instant; everything but `odom_from_base` is in the base frame at `stamp_ns`.

    Attributes:
        stamp_ns: Of the frame that it belongs to [ns].
        boxes: L objects, with identities that last for the whole drive.
        visible_L: (L,) bool, whether a sensor got something of it at that instant.
        times_S: (S,) float64 [s] of the future steps, rising.
        futures_LS3: (L, S, 3) float32 x, y [m] of the centre, yaw [rad].
        futures_valid_LS: (L, S) bool, whether the object is there, and where is known.
        odom_from_base: The robot's pose, to bring velocities of several frames together.
        ego_future_S3: (S, 3) float64 x, y [m], yaw [rad] of `base_link` as it was driven.
        ego_future_valid_S: (S,) bool, whether that is known, and an example to follow.
        ego_speed: [m/s] now.
        ego_yaw_rate: [rad/s] now.
        ego_size: Length, width [m], and how far the robot's centre lies ahead of `base_link` [m].
    """

    stamp_ns: int
    boxes: Boxes
    visible_L: NDArray[np.bool_]
    times_S: NDArray[np.float64]
    futures_LS3: NDArray[np.float32]
    futures_valid_LS: NDArray[np.bool_]
    odom_from_base: SE2
    ego_future_S3: NDArray[np.float64]
    ego_future_valid_S: NDArray[np.bool_]
    ego_speed: float
    ego_yaw_rate: float
    ego_size: tuple[float, float, float]

    def __post_init__(self) -> None:
        num, steps = len(self.boxes), len(self.times_S)
        expected = {
            "visible_L": (num,),
            "futures_LS3": (num, steps, 3),
            "futures_valid_LS": (num, steps),
            "ego_future_S3": (steps, 3),
            "ego_future_valid_S": (steps,),
        }
        for name, shape in expected.items():
            got = np.shape(getattr(self, name))
            if got != shape:
                raise InputError(f"truth: {name} has shape {got}, expected {shape}")
