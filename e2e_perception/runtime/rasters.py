"""Bird's-eye-view rasters of lidar and radar points.

Legend: N points, C channels, Y X cells of the grid. Cells without a point are 0 in every channel. Points
outside the grid, outside the height slices, or not finite are ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.network_config import (
    DOPPLER_SCALE,
    LIDAR_CHANNELS,
    LIDAR_SLICES,
    RADAR_CHANNELS,
    RADAR_COUNT_SCALE,
)

OCCUPANCY_FULL = 15  # points in a cell and slice at which its occupancy is 1
LIDAR_COUNT_SCALE = 255.0  # points in a cell at which `log_count` is 1; it may exceed 1
HEIGHT_SCALE = 4.0  # [m]
RCS_SCALE = 20.0  # [dBsm]

_NUM_SLICES = len(LIDAR_SLICES) - 1
# log1p of a small integer, looked up instead of computed for every cell of every slice.
_OCCUPANCY = (np.log1p(np.arange(OCCUPANCY_FULL + 1)) / np.log1p(OCCUPANCY_FULL)).astype(np.float32)


def lidar_raster(
    points_base_N3: NDArray[np.float32], intensity_N: NDArray[np.float32], grid: BevGrid
) -> NDArray[np.float32]:
    """Rasterise lidar points.

    Channels, in the order of `LIDAR_CHANNELS`: for each height slice of `LIDAR_SLICES` the occupancy
    min(log1p(count) / log 16, 1); the greatest height / 4 m; the mean intensity; log1p(count) / log 256.

    Args:
        points_base_N3: (N, 3) float32 [m], base frame. Fastest if the columns are contiguous.
        intensity_N: (N,) float32 in [0, 1].
        grid: Extent and resolution.
    Returns:
        (7, Y, X) float32, freshly allocated.
    """
    x, y, z = points_base_N3[:, 0], points_base_N3[:, 1], points_base_N3[:, 2]
    num_y, num_x = grid.shape
    # One spare slice above and below and one spare row and column on each side collect what lies outside, so
    # that no point has to be filtered out first: filtering costs more than counting.
    height: NDArray[np.int8] = (z >= LIDAR_SLICES[0]).view(np.int8)
    for edge in LIDAR_SLICES[1:]:
        height = height + (z >= edge).view(np.int8)
    cell = _padded_cell(x, y, grid)
    padded_shape = (num_y + 2, num_x + 2)
    padded_cells = padded_shape[0] * padded_shape[1]
    layer_cell = height.astype(np.int32) * np.int32(padded_cells) + cell
    counts = np.bincount(layer_cell, minlength=(_NUM_SLICES + 2) * padded_cells)
    counts_SYX = counts.reshape(-1, *padded_shape)[1:-1, 1:-1, 1:-1]
    count_YX = counts_SYX.sum(axis=0)

    inside = (height > 0) & (height <= _NUM_SLICES)
    cell *= inside  # cell 0 is a spare one
    top = np.zeros(padded_cells, np.float32)
    top[cell] = -np.inf
    with np.errstate(invalid="ignore"):  # a NaN goes to the spare cell
        np.maximum.at(top, cell, z)
    intensity = np.bincount(cell, intensity_N, padded_cells)

    raster = np.empty((len(LIDAR_CHANNELS), num_y, num_x), np.float32)
    np.take(_OCCUPANCY, np.minimum(counts_SYX, OCCUPANCY_FULL), out=raster[:_NUM_SLICES], mode="clip")
    named = dict(zip(LIDAR_CHANNELS, raster, strict=True))
    named["max_height"][:] = _unpadded(top, grid) * np.float32(1.0 / HEIGHT_SCALE)
    named["intensity"][:] = _unpadded(intensity, grid) / np.maximum(count_YX, 1)
    named["log_count"][:] = _log_count(count_YX, LIDAR_COUNT_SCALE)
    return raster


def radar_raster(
    points_base_N3: NDArray[np.float32],
    doppler_base_N2: NDArray[np.float32],
    rcs_N: NDArray[np.float32],
    grid: BevGrid,
) -> NDArray[np.float32]:
    """Rasterise radar points; their height is ignored, radars hardly measure it.

    Channels, in the order of `RADAR_CHANNELS`: log1p(count) / log 16; the mean Doppler vector / 10 m/s; the
    mean RCS / 20 dBsm.

    Args:
        points_base_N3: (N, 3) float32 [m], base frame.
        doppler_base_N2: (N, 2) float32 [m/s], radial speed over ground (the robot's own motion removed) as a
            vector along the line of sight, base axes.
        rcs_N: (N,) float32 [dBsm].
        grid: Extent and resolution.
    Returns:
        (4, Y, X) float32, freshly allocated.
    """
    cell = _padded_cell(points_base_N3[:, 0], points_base_N3[:, 1], grid)
    padded_cells = (grid.num_y + 2) * (grid.num_x + 2)
    count_YX = _unpadded(np.bincount(cell, minlength=padded_cells), grid)
    each_YX = np.maximum(count_YX, 1)

    def mean(values_N: NDArray[np.float32]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = _unpadded(np.bincount(cell, values_N, padded_cells), grid)
        means: NDArray[np.float64] = sums / each_YX
        return means

    raster = np.empty((len(RADAR_CHANNELS), *grid.shape), np.float32)
    named = dict(zip(RADAR_CHANNELS, raster, strict=True))
    named["log_count"][:] = _log_count(count_YX, RADAR_COUNT_SCALE)
    named["doppler_x"][:] = mean(doppler_base_N2[:, 0]) / DOPPLER_SCALE
    named["doppler_y"][:] = mean(doppler_base_N2[:, 1]) / DOPPLER_SCALE
    named["rcs"][:] = mean(rcs_N) / RCS_SCALE
    return raster


def _padded_cell(x: NDArray[np.float32], y: NDArray[np.float32], grid: BevGrid) -> NDArray[np.int32]:
    """(N,) flat index of each point's cell in the grid with one spare cell on every side."""
    per_metre = np.float32(1.0 / grid.resolution)

    def padded(metres: NDArray[np.float32], low: float, num: int) -> NDArray[np.int32]:
        index = np.floor((metres - np.float32(low)) * per_metre)
        # fmin and fmax, unlike clip, send a NaN to a spare cell too.
        index = np.fmax(np.fmin(index, np.float32(num)), np.float32(-1.0))
        cells: NDArray[np.int32] = index.astype(np.int32) + np.int32(1)
        return cells

    cell: NDArray[np.int32] = padded(y, grid.y_min, grid.num_y) * np.int32(grid.num_x + 2)
    cell += padded(x, grid.x_min, grid.num_x)
    return cell


def _unpadded(flat: NDArray[Any], grid: BevGrid) -> NDArray[Any]:
    """(Y, X) view without the spare cells."""
    return flat.reshape(grid.num_y + 2, grid.num_x + 2)[1:-1, 1:-1]


def _log_count(count_YX: NDArray[np.int64], scale: float) -> NDArray[np.float32]:
    scaled = np.log1p(count_YX.astype(np.float32)) * np.float32(1.0 / np.log1p(scale))
    return np.asarray(scaled, np.float32)
