"""Whether lidar returns lie where a box is said to be.

Legend: N boxes, Y X raster cells, C its channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.network_config import LIDAR_CHANNELS

Array = NDArray[np.float64]

ROUNDING = 1e-6  # [m]
ABOVE_GROUND = tuple(LIDAR_CHANNELS.index(name) for name in ("low", "middle", "high"))


def occupied(raster_CYX: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(Y, X) cells of a lidar raster in which something above the ground returned light."""
    return np.asarray(np.any(raster_CYX[list(ABOVE_GROUND)] > 0.0, axis=0))


def covered_shares(
    centers_N2: Array, sizes_N2: Array, yaws_N: Array, occupied_YX: NDArray[np.bool_], grid: BevGrid
) -> Array:
    """Share of each box's cells that are occupied.

    A cell is of a box if its centre is less than half a cell from the footprint, so that the smallest box
    has one.

    Args:
        centers_N2: [m], base frame.
        sizes_N2: Length and width [m].
        yaws_N: [rad]
        occupied_YX: Of `occupied`.
        grid: Of the raster.
    Returns:
        (N,) 0 to 1; NaN where no cell of the box is on the grid.
    """
    half = 0.5 * grid.resolution - ROUNDING
    shares = np.full(len(centers_N2), np.nan)
    for n, (center, size, yaw) in enumerate(zip(centers_N2, sizes_N2, yaws_N, strict=True)):
        reach = 0.5 * float(np.hypot(*size)) + grid.resolution
        columns = _cells(center[0], reach, grid.x_min, grid.num_x, grid.resolution)
        rows = _cells(center[1], reach, grid.y_min, grid.num_y, grid.resolution)
        dx = grid.x_min + (columns + 0.5) * grid.resolution - center[0]
        dy = grid.y_min + (rows[:, None] + 0.5) * grid.resolution - center[1]
        along, across = np.cos(yaw) * dx + np.sin(yaw) * dy, np.cos(yaw) * dy - np.sin(yaw) * dx
        inside_YX = (np.abs(along) < 0.5 * size[0] + half) & (np.abs(across) < 0.5 * size[1] + half)
        if inside_YX.any():
            shares[n] = occupied_YX[np.ix_(rows, columns)][inside_YX].mean()
    return shares


def _cells(center: float, reach: float, low: float, num: int, resolution: float) -> NDArray[np.int64]:
    """Cells of one axis within `reach` of a place."""
    first = max(int(np.floor((center - reach - low) / resolution)), 0)
    last = min(int(np.floor((center + reach - low) / resolution)), num - 1)
    return np.arange(first, last + 1, dtype=np.int64)
