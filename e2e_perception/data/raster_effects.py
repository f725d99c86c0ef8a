"""What happens to lidar and radar rasters: lost beams, fog, clutter, clocks, gains, mounts.

Every effect takes a clip's arrays, a strength in [0, 1] and a generator, and returns new arrays; strength 0
changes nothing. Rasters hold logarithms of counts, from which the number of points in each cell is regained,
so that single points are lost and not shares of them. Cells lie around the robot's origin, and distances and
directions are from there, though a sensor sits up to some metres away.

Legend: T frames, Y X cells, S height slices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.network_config import EGO_FIELDS, LIDAR_CHANNELS, LIDAR_SLICES, RADAR_CHANNELS

Arrays = dict[str, NDArray[Any]]

# Scales of the channels as in `runtime.rasters`, which data does not import; a test compares them.
OCCUPANCY_FULL = 15.0
LIDAR_COUNT_SCALE = 255.0
RADAR_COUNT_SCALE = 15.0
HEIGHT_SCALE = 4.0  # [m]
DOPPLER_SCALE = 10.0  # [m/s]
RCS_SCALE = 20.0  # [dBsm]

LOST_BEAMS = 0.9  # of all
COVERED_ANGLE = np.pi  # [rad] of the lidar's window
FOG_EXTINCTION = 0.06  # [1/m]; one sees ln 20 / extinction = 50 m
CLEAR_REACH = 120.0  # [m] at which a mean return is just above the lidar's threshold in clear air
MAX_LAG_FRAMES = 2.0
NUM_CLUTTER = 20.0  # radar returns of nothing in a frame
CLUTTER_SPEED = 5.0  # [m/s] standard deviation
CLUTTER_RCS = (-15.0, 0.0)  # [dBsm]
GHOST_CHANCE = 0.3  # of a radar return to be seen twice as far away as well
GHOST_LOSS_DB = 10.0
INTENSITY_GAIN = 2.5
RCS_GAIN_DB = 5.0
MOUNT_SHIFT = 0.5  # [m]

_NUM_SLICES = len(LIDAR_SLICES) - 1
_SLICE_TOPS = np.array(LIDAR_SLICES[1:], np.float32) / np.float32(HEIGHT_SCALE)
_HEIGHT, _INTENSITY, _COUNT = (LIDAR_CHANNELS.index(n) for n in ("max_height", "intensity", "log_count"))
_RADAR_COUNT, _DOPPLER_X, _DOPPLER_Y, _RCS = (
    RADAR_CHANNELS.index(n) for n in ("log_count", "doppler_x", "doppler_y", "rcs")
)


@lru_cache(maxsize=4)
def _polar(grid: BevGrid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(Y, X) range [m] and azimuth [rad, left positive] of each cell's centre."""
    x, y = np.moveaxis(grid.cell_centres_YX2(), -1, 0)
    return np.hypot(x, y), np.arctan2(y, x)


def _sensors(rng: np.random.Generator) -> list[str]:
    """Lidar, radar, or both, which count as one sensor each: their rasters are merged."""
    return [["lidar"], ["radar"], ["lidar", "radar"]][int(rng.integers(3))]


def _whole(amount: float, rng: np.random.Generator) -> int:
    """A whole number whose mean is `amount`."""
    return int(np.floor(amount + rng.random()))


# ---------------------------------------------------------------- lost points


def thinned(
    raster_T7YX: NDArray[np.float32], keep_YX: NDArray[np.floating[Any]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A lidar raster after each point was lost by chance, independently.

    What is not recorded is taken to be as harmless as it can: in a slice that is full (15 points or more) are
    those that the cell's count has left over; the highest point of a cell is lost only with its whole slice,
    and then the slice below counts as full to its upper edge; the mean intensity of a cell stays.

    Args:
        raster_T7YX: Channels `LIDAR_CHANNELS`.
        keep_YX: Chance of a point to stay, by cell.
        rng: Draws.
    Returns:
        A new raster; cells that lost nothing are unchanged to the bit.
    """
    raster = raster_T7YX.copy()
    frame_C, row_C, column_C = np.nonzero((raster[:, _COUNT] > 0.0) & (keep_YX < 1.0))  # C cells
    cells_C7 = raster[frame_C, :, row_C, column_C]
    count_CS = _points_in_slices(cells_C7)
    kept_CS = rng.binomial(count_CS, keep_YX[row_C, column_C, None])
    touched_C = (kept_CS < count_CS).any(-1)
    cells_C7, count_CS, kept_CS = cells_C7[touched_C], count_CS[touched_C], kept_CS[touched_C]

    left_C = kept_CS.sum(-1)
    occupancy_CS = np.log1p(np.minimum(kept_CS, OCCUPANCY_FULL)) / np.log1p(OCCUPANCY_FULL)
    hit_CS = kept_CS < count_CS
    cells_C7[:, :_NUM_SLICES] = np.where(hit_CS, occupancy_CS, cells_C7[:, :_NUM_SLICES])
    top_C = _NUM_SLICES - 1 - np.argmax(kept_CS[:, ::-1] > 0, axis=-1)
    cells_C7[:, _HEIGHT] = np.minimum(cells_C7[:, _HEIGHT], _SLICE_TOPS[top_C])
    cells_C7[:, _COUNT] = np.log1p(left_C) / np.log1p(LIDAR_COUNT_SCALE)
    cells_C7[left_C == 0] = 0.0
    raster[frame_C[touched_C], :, row_C[touched_C], column_C[touched_C]] = cells_C7
    return raster


def _points_in_slices(cells_C7: NDArray[np.float32]) -> NDArray[np.int64]:
    """(C, S) how many points each slice of each cell holds."""
    occupancy_CS = cells_C7[:, :_NUM_SLICES]
    count_CS = np.rint(np.expm1(occupancy_CS * np.log1p(OCCUPANCY_FULL)))
    total_C = np.rint(np.expm1(cells_C7[:, _COUNT] * np.log1p(LIDAR_COUNT_SCALE)))
    full_CS = occupancy_CS >= 1.0
    surplus_C = np.maximum(total_C - count_CS.sum(-1), 0.0) / np.maximum(full_CS.sum(-1), 1)
    return np.asarray(count_CS + np.floor(full_CS * surplus_C[:, None]), np.int64)


def without_beams(arrays: Arrays, strength: float, rng: np.random.Generator, *, grid: BevGrid) -> Arrays:
    """Dead beams, or a covered window, with equal chance, the same for the clip.

    Of dead beams a share of all points goes missing, so that what has few points, far or small, goes first.
    In truth a beam is a ring on the ground and takes neighbouring cells along; a raster does not tell its
    rings. A covered window leaves up to four dark sectors.
    """
    if rng.random() < 0.5:
        keep_YX = np.full(grid.shape, 1.0 - LOST_BEAMS * strength)
    else:
        _, azimuth_YX = _polar(grid)
        number = int(rng.integers(1, 5))
        middles = rng.uniform(-np.pi, np.pi, number)
        halves = 0.5 * strength * COVERED_ANGLE * rng.dirichlet(np.ones(number))
        keep_YX = np.ones(grid.shape)
        for middle, half in zip(middles, halves, strict=True):
            away_YX = np.abs((azimuth_YX - middle + np.pi) % (2.0 * np.pi) - np.pi)
            keep_YX[away_YX < half] = 0.0
    return {**arrays, "lidar_raster": thinned(arrays["lidar_raster"], keep_YX, rng)}


def in_fog(arrays: Arrays, strength: float, rng: np.random.Generator, *, grid: BevGrid) -> Arrays:
    """Lidar returns in fog of up to 0.06 /m: weaker, and those that get too weak are lost.

    A signal falls as exp(-2 α r) / r² (Hahner et al. 2021, eq. 3). One that was recorded in clear air had a
    margin m over the threshold, in nats; if margins are exponential with the mean ln(R² / r²) that a mean
    target has, it is still seen with probability exp(-2 α r / ln(R² / r²)). Returns of the fog itself, within
    some metres of the sensor, are left out, and so is what cameras see.
    """
    range_YX, _ = _polar(grid)
    extinction = strength * FOG_EXTINCTION
    mean_margin_YX = 2.0 * np.log(CLEAR_REACH / np.clip(range_YX, 1.0, 0.95 * CLEAR_REACH))
    keep_YX = np.exp(-2.0 * extinction * range_YX / mean_margin_YX)
    raster = thinned(arrays["lidar_raster"], keep_YX, rng)
    raster[:, _INTENSITY] *= np.exp(-2.0 * extinction * range_YX)
    return {**arrays, "lidar_raster": raster}


# ---------------------------------------------------------------- radar returns of nothing


def cluttered(arrays: Arrays, strength: float, rng: np.random.Generator, *, grid: BevGrid) -> Arrays:
    """Radar clutter and ghosts, new in every frame, in cells that were empty.

    Clutter is anywhere, weak, and moves at random. A ghost is an echo that went to and fro between the target
    and the robot twice: twice as far in the same direction, twice as fast relative to the robot, 10 dB weaker
    (Kamann et al. 2018 describe it; mirrors other than the robot itself are left out).
    """
    raster = arrays["radar_raster"].copy()
    centres_YX2 = grid.cell_centres_YX2()
    range_YX, _ = _polar(grid)
    heading_YX2 = centres_YX2 / np.maximum(range_YX, 1e-6)[..., None]
    speed_T = arrays["ego_state"][:, EGO_FIELDS.index("speed")]
    ghostly = GHOST_CHANCE * strength
    twice_inside_YX = grid.contains(2.0 * centres_YX2)
    for t in np.flatnonzero((arrays["radar_valid"] > 0.5).any(-1)).tolist():
        number = rng.poisson(strength * NUM_CLUTTER)
        _add_returns(
            raster[t],
            heading_YX2,
            rng.integers(0, grid.num_y, number),
            rng.integers(0, grid.num_x, number),
            rng.normal(0.0, CLUTTER_SPEED, number),
            rng.uniform(*CLUTTER_RCS, number),
        )
        returned_YX = arrays["radar_raster"][t, _RADAR_COUNT] > 0.0
        row_G, column_G = np.nonzero(returned_YX & twice_inside_YX & (rng.random(grid.shape) < ghostly))
        from_edge_G2 = 2.0 * centres_YX2[row_G, column_G] - (grid.x_min, grid.y_min)
        to_column_G, to_row_G = (from_edge_G2 // grid.resolution).astype(int).T
        direction_G2 = heading_YX2[row_G, column_G]
        doppler_G2 = DOPPLER_SCALE * raster[t, _DOPPLER_X : _DOPPLER_Y + 1, row_G, column_G]
        over_ground_G = (doppler_G2 * direction_G2).sum(-1)
        _add_returns(
            raster[t],
            heading_YX2,
            to_row_G,
            to_column_G,
            # The robot's own speed has been taken out once of an echo that holds it twice.
            2.0 * over_ground_G - speed_T[t] * direction_G2[:, 0],
            RCS_SCALE * raster[t, _RCS, row_G, column_G] - GHOST_LOSS_DB,
        )
    return {**arrays, "radar_raster": raster}


def _add_returns(
    raster_4YX: NDArray[np.float32],
    heading_YX2: NDArray[np.float32],
    row_N: NDArray[Any],
    column_N: NDArray[Any],
    speed_N: NDArray[Any],
    rcs_N: NDArray[Any],
) -> None:
    """Write single returns into cells that are empty.

    Args:
        raster_4YX: Changed in place.
        heading_YX2: Unit vector from the robot to each cell.
        row_N, column_N: Cells.
        speed_N: Radial, over ground [m/s].
        rcs_N: [dBsm]
    """
    free_N = raster_4YX[_RADAR_COUNT, row_N, column_N] == 0.0
    row_N, column_N = row_N[free_N], column_N[free_N]
    doppler_N2 = speed_N[free_N, None] * heading_YX2[row_N, column_N] / DOPPLER_SCALE
    raster_4YX[_RADAR_COUNT, row_N, column_N] = np.log1p(1.0) / np.log1p(RADAR_COUNT_SCALE)
    raster_4YX[_DOPPLER_X, row_N, column_N] = doppler_N2[:, 0]
    raster_4YX[_DOPPLER_Y, row_N, column_N] = doppler_N2[:, 1]
    raster_4YX[_RCS, row_N, column_N] = rcs_N[free_N] / RCS_SCALE


# ---------------------------------------------------------------- clocks, gains, mounts


def late(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Lidars, radars or both are stamped up to two frames late: an older raster, and its validity.

    It is not moved by the robot's motion, because the stamp says that there was none. Whole frames only;
    before the clip begins there is nothing, so its first frames hold its first raster. Where the lidar is the
    anchor the frame itself would be late in truth, and everything else early.
    """
    out = dict(arrays)
    for sensor in _sensors(rng):
        lag = _whole(MAX_LAG_FRAMES * strength, rng)
        frame_T = np.maximum(np.arange(len(arrays["lidar_raster"])) - lag, 0)
        for name in (f"{sensor}_raster", f"{sensor}_valid"):
            out[name] = arrays[name][frame_T]
    return out


def other_gain(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Another make: lidar intensities up to 2.5 times higher or lower, radar cross-sections up to 5 dB."""
    lidar, radar = arrays["lidar_raster"].copy(), arrays["radar_raster"].copy()
    exponent, decibels = strength * rng.uniform(-1.0, 1.0, 2)
    intensity = lidar[:, _INTENSITY]
    lidar[:, _INTENSITY] = np.minimum(
        intensity * np.float32(INTENSITY_GAIN**exponent), np.maximum(intensity, 1.0)
    )
    returned = radar[:, _RADAR_COUNT] > 0.0
    radar[:, _RCS] += returned * np.float32(RCS_GAIN_DB * decibels / RCS_SCALE)
    return {**arrays, "lidar_raster": lidar, "radar_raster": radar}


def shifted(arrays: Arrays, strength: float, rng: np.random.Generator, *, grid: BevGrid) -> Arrays:
    """Lidars, radars or both were moved by up to half a metre, and nobody calibrated them.

    By whole cells, drawn so that the mean is right: interpolation would make counts that no scan has. What
    moves in from outside the grid is unknown, and empty. A turn of the mount is left out.
    """
    out = dict(arrays)
    for sensor in _sensors(rng):
        angle = rng.uniform(-np.pi, np.pi)
        cells = strength * MOUNT_SHIFT / grid.resolution
        columns, rows = _whole(cells * np.cos(angle), rng), _whole(cells * np.sin(angle), rng)
        raster = np.zeros_like(arrays[f"{sensor}_raster"])
        to_y, from_y = _overlap(rows, grid.num_y)
        to_x, from_x = _overlap(columns, grid.num_x)
        raster[..., to_y, to_x] = arrays[f"{sensor}_raster"][..., from_y, from_x]
        out[f"{sensor}_raster"] = raster
    return out


def _overlap(by: int, size: int) -> tuple[slice, slice]:
    """Where `size` cells lie after a shift, and where they come from."""
    return slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size - max(by, 0))
