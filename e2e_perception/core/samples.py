"""What travels from a sensor to the frame assembler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SensorMessage:
    """One message of one sensor, not yet decoded.

    Attributes:
        sensor: Name of the sensor in the rig.
        stamp_ns: Time of measurement from the message header [ns].
        arrival_ns: Time of arrival, on the same clock [ns].
        payload: The ROS message (rclpy's or rosbags', same field names). Decoding waits until a frame
            uses it, so that dropped messages cost nothing.
    """

    sensor: str
    stamp_ns: int
    arrival_ns: int
    payload: Any


@dataclass(frozen=True)
class AssembledFrame:
    """Messages that belong to one instant.

    Attributes:
        stamp_ns: Stamp of the anchor's message [ns]; strictly rising from frame to frame.
        anchor: Name of the sensor that defined it.
        messages: By sensor name; a sensor without a usable message is absent.
        missing: Why each absent sensor is absent, by name: `silent`, `late` or `out_of_tolerance`.
        emitted_ns: Time at which the frame was released [ns].
        sequence: Counts frames from 0.
    """

    stamp_ns: int
    anchor: str
    messages: Mapping[str, SensorMessage]
    missing: Mapping[str, str]
    emitted_ns: int
    sequence: int


@dataclass(frozen=True)
class ImageSample:
    """A decoded picture, as the simulator makes it; accepted as a payload in place of a ROS message.

    Attributes:
        rgb_HW3: (H, W, 3) uint8.
    """

    rgb_HW3: NDArray[np.uint8]


@dataclass(frozen=True)
class PointsSample:
    """Decoded lidar or radar points in the sensor's frame; accepted as a payload.

    Attributes:
        fields: Arrays (N,) float32 by PointCloud2 field name: always `x`, `y`, `z` [m]; lidar also
            `intensity` [0..1]; radar also `velocity` [m/s] (Doppler relative to the moving sensor,
            positive when receding) and `rcs` [dBsm].
    """

    fields: dict[str, NDArray[np.float32]]
