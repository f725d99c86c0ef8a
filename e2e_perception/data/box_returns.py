"""Whether lidar returns lie where labels say that somebody is.

A box in which nothing was measured has no place, or a sensor that did not see it; returns that lie in a band
on one side of boxes and not on the other say that all labels are shifted.

Legend: T frames, N points, 7 Y X raster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import BOX_FIELDS, LIDAR_CHANNELS

REACH = 30.0  # [m] up to which a visible object is expected to return something
ALONG = 4.0  # [m] up to which returns around a box are looked at
SHIFTS: tuple[float, ...] = tuple(np.arange(-2.0, 2.01, 0.5).tolist())  # [m] that are tried
LEAST_BOXES = 30  # below which nothing is said
MOST_EMPTY = 0.2  # share of boxes without a return that is nobody's fault
LEAST_SHIFT = 0.4  # [m] by which returns lie off centre before it is said
_LOW, _HEIGHT = LIDAR_CHANNELS.index("low"), LIDAR_CHANNELS.index("max_height")
_X, _Y, _LENGTH, _WIDTH, _SIN, _COS = (
    BOX_FIELDS.index(n) for n in ("x", "y", "log_length", "log_width", "sin_yaw", "cos_yaw")
)


@dataclass
class BoxReturns:
    """Counts over the clips of one recording.

    Attributes:
        boxes: Labels that a sensor saw, within `REACH`, in frames with a lidar.
        empty: Of these, how many have no occupied cell within them or half a cell around.
        fits: By shift of all boxes along x and y in the base frame [m]: occupied cells within them.
    """

    boxes: int = 0
    empty: int = 0
    fits: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(SHIFTS), len(SHIFTS))))

    def add(self, clip: Clip, grid: BevGrid) -> None:
        """Take a clip in."""
        if not clip.labels_valid:
            return
        for t in range(len(clip)):
            if float(clip.inputs["lidar_valid"][t].max(initial=0.0)) < 0.5:
                continue
            cells_N2 = standing(clip.inputs["lidar_raster"][t], grid)
            seen = np.flatnonzero((clip.weights_TB[t] > 0.0) & clip.visible_TB[t])
            for box in clip.boxes_TB10[t, seen].astype(np.float64):
                if np.hypot(box[_X], box[_Y]) < REACH and grid.contains(box[[_X, _Y]]):
                    self._add_box(box, cells_N2, grid.resolution)

    def _add_box(self, box: NDArray[np.float64], cells_N2: NDArray[np.float64], resolution: float) -> None:
        near_N2 = cells_N2 - box[[_X, _Y]]
        half = 0.5 * np.exp(box[[_LENGTH, _WIDTH]])
        near_N2 = near_N2[np.abs(near_N2).max(axis=1) < ALONG + float(half.max())]
        turn = np.array([[box[_COS], -box[_SIN]], [box[_SIN], box[_COS]]])
        self.boxes += 1
        self.empty += not bool((np.abs(near_N2 @ turn) <= half + resolution / 2.0).all(axis=1).any())
        for i, dx in enumerate(SHIFTS):
            for j, dy in enumerate(SHIFTS):
                own_N2 = np.abs((near_N2 - np.array([dx, dy])) @ turn)
                self.fits[i, j] += float((own_N2 <= half + resolution / 4.0).all(axis=1).sum())

    @property
    def empty_share(self) -> float:
        """Of boxes; 0 without any."""
        return self.empty / self.boxes if self.boxes else 0.0

    def shift(self) -> tuple[float, float] | None:
        """By how much boxes would have to be moved to hold the most returns [m], x and y.

        None: nothing can be said, or where they are is as good to within a tenth.
        """
        if self.boxes < LEAST_BOXES or self.fits.max() <= 0.0:
            return None
        middle = len(SHIFTS) // 2
        i, j = np.unravel_index(int(self.fits.argmax()), self.fits.shape)
        if self.fits[middle, middle] >= 0.8 * self.fits[i, j]:
            return None
        # Middle of the shifts that are about as good: a small thing fits in a large box in many places.
        good = np.argwhere(self.fits > 0.95 * self.fits.max())
        dx, dy = (float(np.mean([SHIFTS[k] for k in good[:, axis]])) for axis in (0, 1))
        return (dx, dy) if np.hypot(dx, dy) >= LEAST_SHIFT else None

    def told(self) -> Sequence[tuple[str, str]]:
        """Checks and messages."""
        found = []
        if self.boxes >= LEAST_BOXES and self.empty_share > MOST_EMPTY:
            found.append(
                (
                    "box_without_returns",
                    f"{self.empty} of {self.boxes} labels that a sensor saw within {REACH:g} m have no lidar "
                    "return in them; check time and frame of labels",
                )
            )
        shift = self.shift()
        if shift is not None:
            found.append(
                (
                    "box_offset",
                    f"lidar returns fit labels best that are moved by {shift[0]:+.1f} m along x and "
                    f"{shift[1]:+.1f} m along y of the base frame",
                )
            )
        return found


def standing(raster_7YX: NDArray[Any], grid: BevGrid) -> NDArray[np.float64]:
    """(N, 2) [m] centres of cells in which something stands above the ground."""
    occupied_YX = np.asarray(raster_7YX[_LOW:_HEIGHT]).max(axis=0) > 0.0
    return np.asarray(grid.cell_centres_YX2()[occupied_YX], np.float64)
