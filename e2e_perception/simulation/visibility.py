"""Which labelled agents the sensors could see: lidar returns and pixels, counted per label.

What is beyond the visible range of fog or rain has no pixels, although it is drawn in the last trace of
contrast: nobody could tell it from the air.

Legend: L labels, the rows of a snapshot's boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.rig import Camera
from e2e_perception.simulation.camera import count_label_pixels
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.weather import visible_range

MIN_LIDAR_RETURNS = 3  # from here on an object counts as seen
MIN_PIXELS = 12  # at `ID_SIZE`
ID_SIZE = (352, 128)  # (width, height) [px] of the id buffers


@dataclass(frozen=True)
class Visibility:
    """How much of each label the sensors got.

    Attributes:
        lidar_returns_L: (L,) int64, points on it, all lidars together.
        pixels_L: (L,) int64, pixels of it in the camera that sees most of it.
        fractions_L: (L,) float64, the largest share, over all cameras, of what a camera would see of it if
            nothing stood in between; 0 if it is in no image.
    """

    lidar_returns_L: NDArray[np.int64]
    pixels_L: NDArray[np.int64]
    fractions_L: NDArray[np.float64]

    @property
    def visible_L(self) -> NDArray[np.bool_]:
        """(L,) whether a label has `MIN_LIDAR_RETURNS` points or `MIN_PIXELS` pixels."""
        return np.asarray((self.lidar_returns_L >= MIN_LIDAR_RETURNS) | (self.pixels_L >= MIN_PIXELS))


def within_sight(snapshot: Snapshot) -> NDArray[np.bool_]:
    """(L,) whether the air leaves a contrast of 5 % of what is nearest to the robot of each label."""
    boxes = snapshot.boxes
    gap = np.linalg.norm(boxes.centers_N3[:, :2] - snapshot.odom_from_base.translation[:2], axis=1)
    nearest = gap - 0.5 * np.hypot(boxes.sizes_N3[:, 0], boxes.sizes_N3[:, 1])
    return np.asarray(nearest < visible_range(snapshot.conditions))


def visibility(
    snapshot: Snapshot, *, lidar_labels: Sequence[NDArray[np.int64]], cameras: Sequence[Camera]
) -> Visibility:
    """Count what lidars and cameras got of each label.

    Args:
        snapshot: The world at one instant.
        lidar_labels: For each lidar the labels of its points, as `simulate_lidar_with_labels` gives them.
        cameras: Each is rendered as an id buffer of `ID_SIZE`, whatever the size of its pictures.
    """
    num_labels = len(snapshot.boxes)
    returns: NDArray[np.int64] = np.zeros(num_labels, np.int64)
    for labels_N in lidar_labels:
        returns += np.bincount(labels_N[labels_N >= 0], minlength=num_labels)
    pixels: NDArray[np.int64] = np.zeros(num_labels, np.int64)
    fractions = np.zeros(num_labels)
    in_sight = within_sight(snapshot)
    for camera in cameras:
        seen, alone = count_label_pixels(snapshot, camera, ID_SIZE)
        seen = np.where(in_sight, seen, 0)
        pixels = np.maximum(pixels, seen)
        fractions = np.maximum(fractions, seen / np.maximum(alone, 1))
    return Visibility(lidar_returns_L=returns, pixels_L=pixels, fractions_L=fractions)
