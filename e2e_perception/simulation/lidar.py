"""A spinning lidar: rays against flat ground and boxes, then what light, water and air do to the returns.

A receiver reports the strongest return of each ray; in fog and rain that may be one of the air.

Legend: R rays (beam-major, beam x azimuth), N boxes, P (ray, box) pairs, K returns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Lidar
from e2e_perception.core.samples import PointsSample
from e2e_perception.simulation.road_surface import road_surface
from e2e_perception.simulation.scene import Conditions, Snapshot
from e2e_perception.simulation.solid_geometry import Segments, box_entries, segments
from e2e_perception.simulation.weather import (
    AIR_KNEE,
    NEGLIGIBLE,
    WET_REFLECTIVITY_LOSS,
    air_return,
    extinction,
    fluctuation,
    wetness,
)

NOTHING, GROUND = -2, -1  # in place of a row of `solids`

# A return is detected with probability 1 - exp(-(signal / SIGNAL_KNEE)^2), where the signal is reflectivity *
# cosine * exp(-2 extinction range) / range^2, the lidar equation for a target that fills the beam (Hahner et
# al., ICCV 2021, eq. 3). Seen from 1.8 m in clear air, half of the returns from asphalt are lost at 65 m.
SIGNAL_KNEE = 1.5e-6  # [1/m^2]
# Intensity as sensors report it, partly corrected for range and angle.
INTENSITY_RANGE = 120.0  # [m] over which it falls to 1/e
INTENSITY_GRAZING = 0.4  # share that is left at grazing incidence
INTENSITY_NOISE = 0.06  # standard deviation, relative
AIR_INTENSITY = 0.04  # of returns of the air, as of a target of so much reflectivity

_PAIRS_OF_CORNERS = np.triu_indices(8, k=1)


@dataclass(frozen=True)
class RangeImage:
    """What each ray meets first, without noise.

    Attributes:
        directions_3R: (3, R) float32 unit vectors, lidar frame; shared, not to be written to.
        ranges_R: (R,) float32 [m], infinite where nothing is met.
        cosines_R: (R,) float32, of the angle of incidence.
        solids_R: (R,) int64, row of the snapshot's solids, `GROUND` or `NOTHING`.
    """

    directions_3R: NDArray[np.float32]
    ranges_R: NDArray[np.float32]
    cosines_R: NDArray[np.float32]
    solids_R: NDArray[np.int64]


def simulate_lidar(snapshot: Snapshot, lidar: Lidar, rng: np.random.Generator) -> PointsSample:
    """One sweep as if taken in an instant, in the lidar frame.

    Args:
        snapshot: The world at the time of the sweep.
        lidar: Mounting, beams and noise.
        rng: Draws noise and losses.
    Returns:
        Fields `x`, `y`, `z` [m] and `intensity` [0..1].
    """
    return simulate_lidar_with_labels(snapshot, lidar, rng)[0]


def simulate_lidar_with_labels(
    snapshot: Snapshot, lidar: Lidar, rng: np.random.Generator
) -> tuple[PointsSample, NDArray[np.int64]]:
    """The same sweep with the label of each point.

    Args:
        snapshot, lidar, rng: As in `simulate_lidar`, and the points are the same.
    Returns:
        The points; (K,) int64 row of `snapshot.boxes` that each lies on, or -1 for ground, clutter and drops.
    """
    image = cast_rays(snapshot, lidar)
    odom_from_lidar = snapshot.odom_from_base @ lidar.base_from_sensor
    met = np.flatnonzero(image.solids_R != NOTHING)
    ranges, cosines, solids = image.ranges_R[met], image.cosines_R[met], image.solids_R[met]
    directions_3K = image.directions_3R.take(met, axis=1)
    is_ground = solids == GROUND
    on_ground = odom_from_lidar.apply((directions_3K[:, is_ground] * ranges[is_ground]).T)[:, :2]

    dry = 1.0 - WET_REFLECTIVITY_LOSS * wetness(snapshot.conditions)
    texture = road_surface(snapshot.road).around(snapshot.odom_from_base.translation[:2])
    reflectivities = np.empty(len(met), np.float32)
    reflectivities[is_ground] = texture.reflectivities_at(on_ground) * np.float32(dry)
    reflectivities[~is_ground] = snapshot.solids.reflectivities_N[solids[~is_ground]]

    # Light passes the air twice.
    air = extinction(snapshot.conditions)
    transmission = np.exp(ranges * np.float32(-2.0 * air))
    signal = reflectivities * cosines * transmission / np.square(ranges)
    detected = 1.0 - np.exp(-np.square(signal * np.float32(1.0 / SIGNAL_KNEE)))
    kept = rng.random(len(met), dtype=np.float32) < detected * np.float32(1.0 - lidar.dropout)

    intensity = reflectivities * (INTENSITY_GRAZING + (1.0 - INTENSITY_GRAZING) * cosines) * transmission
    intensity *= np.exp(ranges * np.float32(-1.0 / INTENSITY_RANGE))
    noisy = ranges + np.float32(lidar.range_noise) * rng.standard_normal(len(ranges), dtype=np.float32)
    intensity *= 1.0 + np.float32(INTENSITY_NOISE) * rng.standard_normal(len(ranges), dtype=np.float32)
    labels = np.where(solids >= 0, np.append(snapshot.solids.labels_N, -1)[np.maximum(solids, -1)], -1)
    if air > NEGLIGIBLE:
        signal_R = np.zeros(len(image.ranges_R), np.float32)
        signal_R[met] = np.where(kept, signal, 0.0)
        ray_D, range_D = _drops(image.ranges_R, signal_R, snapshot.conditions, lidar.dropout, rng)
        covered_R = np.zeros(len(signal_R), np.bool_)
        covered_R[ray_D] = True
        kept &= ~covered_R[met]
        directions_3K = np.concatenate([directions_3K[:, kept], image.directions_3R[:, ray_D]], axis=1)
        noisy = np.concatenate([noisy[kept], range_D])
        intensity = np.concatenate([intensity[kept], AIR_INTENSITY * np.exp(-2.0 * air * range_D)])
        labels = np.concatenate([labels[kept], np.full(len(ray_D), -1)])
    else:
        directions_3K, noisy, intensity, labels = (
            directions_3K[:, kept],
            noisy[kept],
            intensity[kept],
            labels[kept],
        )
    x, y, z = directions_3K * noisy
    sample = PointsSample(
        {"x": x, "y": y, "z": z, "intensity": np.clip(intensity, 0.0, 1.0).astype(np.float32)}
    )
    return sample, labels


def _drops(
    ranges_R: NDArray[np.float32],
    signal_R: NDArray[np.float32],
    conditions: Conditions,
    dropout: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rays (D,) whose strongest return is one of the air, with its range (D,) [m].

    Args:
        ranges_R: (R,) [m] of what each ray meets.
        signal_R: (R,) [1/m^2] of what is detected of that; 0 for nothing.
        conditions: Fog and rain.
        dropout: Share of returns lost.
        rng: Draws how much comes back, and from where.
    """
    back = air_return(extinction(conditions))
    num = len(ranges_R)
    signal = np.exp(np.float32(fluctuation(conditions)) * rng.standard_normal(num, dtype=np.float32))
    signal *= np.float32(back.signal)
    passed = rng.random(num, dtype=np.float32) < (1.0 - dropout) * (
        1.0 - np.exp(-np.square(np.square(signal * np.float32(1.0 / AIR_KNEE))))
    )
    distances = back.ranges_T[rng.integers(len(back.ranges_T), size=num)]
    ray_D = np.flatnonzero(passed & (signal > signal_R) & (distances < ranges_R))
    return ray_D, distances[ray_D]


def cast_rays(snapshot: Snapshot, lidar: Lidar) -> RangeImage:
    """Meet each ray with the ground plane z = 0 and with the boxes; the nearest hit within range counts.

    Each box is tested only against the rays of its window in the range image; all windows go through the slab
    test together.
    """
    pattern = _beam_pattern(
        lidar.num_beams, lidar.elevation_min_deg, lidar.elevation_max_deg, lidar.azimuth_step_deg
    )
    odom_from_lidar = snapshot.odom_from_base @ lidar.base_from_sensor
    rotation = odom_from_lidar.rotation.astype(np.float32)
    directions_odom_3R = rotation @ pattern.directions_3R

    sink = -directions_odom_3R[2]
    height = np.float32(odom_from_lidar.translation[2])
    max_range = np.float32(lidar.max_range)
    # Rays that reach the ground beyond the range limit are met by nothing; this also keeps the division safe.
    reaches_ground = sink * max_range >= height if height > 0.0 else np.zeros(len(sink), np.bool_)
    ranges = np.full(len(sink), np.inf, np.float32)
    ranges[reaches_ground] = height / sink[reaches_ground]
    solids = np.where(reaches_ground, np.int64(GROUND), np.int64(NOTHING))
    cosines = np.maximum(sink, 0.0)

    boxes = segments(snapshot.solids).without_those_around(odom_from_lidar.translation)
    box_P, ray_P = _pairs(boxes, odom_from_lidar, pattern, lidar.max_range)
    distances, slopes = _box_distances(boxes, odom_from_lidar, directions_odom_3R, box_P, ray_P)
    distances[distances > max_range] = np.inf
    np.minimum.at(ranges, ray_P, distances)
    first = np.flatnonzero((distances == ranges[ray_P]) & np.isfinite(distances))
    solids[ray_P[first]] = boxes.solids_N[box_P[first]]
    cosines[ray_P[first]] = slopes[first]
    return RangeImage(pattern.directions_3R, ranges, cosines, solids)


@dataclass(frozen=True)
class _BeamPattern:
    """All rays of a lidar, its own frame; azimuth k points to -pi + k * azimuth_step [rad]."""

    directions_3R: NDArray[np.float32]
    elevations: NDArray[np.float64]
    num_azimuths: int

    @property
    def azimuth_step(self) -> float:
        return 2.0 * np.pi / self.num_azimuths


@functools.lru_cache(maxsize=16)
def _beam_pattern(num_beams: int, low_deg: float, high_deg: float, step_deg: float) -> _BeamPattern:
    elevations = np.deg2rad(np.linspace(low_deg, high_deg, num_beams))
    num_azimuths = max(1, round(360.0 / step_deg))
    azimuths = -np.pi + 2.0 * np.pi / num_azimuths * np.arange(num_azimuths)
    elevation, azimuth = np.meshgrid(elevations, azimuths, indexing="ij")
    directions = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    directions_3R = directions.reshape(3, -1).astype(np.float32)
    directions_3R.setflags(write=False)
    return _BeamPattern(directions_3R, elevations, num_azimuths)


def _pairs(
    boxes: Segments, odom_from_lidar: SE3, pattern: _BeamPattern, max_range: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,), (P,): every box with every ray of its window of the range image."""
    corners = odom_from_lidar.inverse().apply(boxes.corners_N83())
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]

    # The azimuths leave a gap of half a turn or more unless the box is above, below or around the lidar.
    azimuths = np.sort(np.arctan2(y, x), axis=1)
    gaps = np.diff(azimuths, axis=1, append=azimuths[:, :1] + 2.0 * np.pi)
    widest = np.argmax(gaps, axis=1)
    rows = np.arange(len(boxes))
    start = azimuths[rows, (widest + 1) % 8]
    span = 2.0 * np.pi - gaps[rows, widest]
    around = gaps[rows, widest] <= np.pi
    step = pattern.azimuth_step
    first_azimuth = np.floor((start + np.pi) / step).astype(np.int64)
    num_azimuths = np.ceil((start + np.pi + span) / step).astype(np.int64) - first_azimuth + 1
    num_azimuths = np.where(around, pattern.num_azimuths, np.minimum(num_azimuths, pattern.num_azimuths))

    # Elevation is extreme at the nearest or the farthest horizontal distance; the nearest may lie on an edge.
    far = np.hypot(x, y).max(axis=1)
    near = np.where(around, 0.0, _nearest_horizontal(x, y))
    highest, lowest = z.max(axis=1), z.min(axis=1)
    top = np.arctan2(highest, np.where(highest > 0.0, near, far))
    bottom = np.arctan2(lowest, np.where(lowest < 0.0, near, far))
    margin = 1e-6
    first_beam = np.searchsorted(pattern.elevations, bottom - margin)
    num_beams = np.searchsorted(pattern.elevations, top + margin, side="right") - first_beam

    num_rays = np.where(near <= max_range, num_beams * num_azimuths, 0)
    box_P = np.repeat(rows, num_rays)
    within = np.arange(len(box_P)) - np.repeat(np.cumsum(num_rays) - num_rays, num_rays)
    beam, azimuth = np.divmod(within, num_azimuths[box_P])
    azimuth = (azimuth + first_azimuth[box_P]) % pattern.num_azimuths
    return box_P, (beam + first_beam[box_P]) * pattern.num_azimuths + azimuth


def _nearest_horizontal(x_N8: NDArray[np.float64], y_N8: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) [m]: horizontal distance from the origin to the hull of eight points, the origin being outside."""
    i, j = _PAIRS_OF_CORNERS
    x, y = x_N8[:, i], y_N8[:, i]
    dx, dy = x_N8[:, j] - x, y_N8[:, j] - y
    fraction = np.clip(-(x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-12), 0.0, 1.0)
    return np.asarray(np.hypot(x + fraction * dx, y + fraction * dy).min(axis=1))


def _box_distances(
    boxes: Segments,
    odom_from_lidar: SE3,
    directions_odom_3R: NDArray[np.float32],
    box_P: NDArray[np.int64],
    ray_P: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Range (P,) [m], infinite where missed, and cosine of incidence (P,) of each pair."""
    x, y, z = (component[ray_P] for component in directions_odom_3R)
    c, s = boxes.cosines_N.astype(np.float32)[box_P], boxes.sines_N.astype(np.float32)[box_P]
    directions = np.stack([c * x + s * y, c * y - s * x, z])
    # Subtracted in float64 first: odom coordinates may be kilometres.
    origins_N3 = boxes.to_box_frames_N3(odom_from_lidar.translation).astype(np.float32)
    halves_N3 = boxes.halves_N3.astype(np.float32)
    distances, slopes = box_entries(origins_N3.T[:, box_P], directions, halves_N3.T[:, box_P])
    return distances.astype(np.float32), slopes
