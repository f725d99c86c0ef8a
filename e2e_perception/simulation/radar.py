"""An automotive radar: a few reflections per visible object, with Doppler, and clutter.

It measures in the plane of its antenna: reflections come from the height of the radar where the object
reaches it. Multipath is not modelled. Legend: N solids, K reflections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Radar
from e2e_perception.core.samples import PointsSample
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.solid_geometry import Segments, occluded, segments
from e2e_perception.simulation.weather import radar_loss_db

# Probability of detection is a logistic function of the signal in dB over a threshold, which an object of
# 0 dBsm reaches at `SENSITIVITY_RANGE` times the greatest range; power falls with the fourth power of range.
SENSITIVITY_RANGE = 0.6
DETECTION_SLOPE_DB = 2.0
RCS_NOISE_DB = 2.0  # standard deviation: interference of an object's own reflections
REFLECTION_SPACING = 2.0  # [m] of visible outline per reflection
MAX_REFLECTIONS = 5  # per solid or 10 m piece of one
EDGE_MARGIN = 0.05  # [m] from reflections to the upper and lower edge of a face
CLUTTER_RCS_DB = (-12.0, 3.0)  # range of uniformly distributed values [dBsm]
CLUTTER_MOVING_SHARE = 0.15  # of clutter that does not move with the static world
CLUTTER_SPEED = 8.0  # [m/s] standard deviation of its speed over ground
MIN_RANGE = 0.5  # [m]


@dataclass(frozen=True)
class Reflections:
    """Points that send an echo to the radar, without noise.

    Attributes:
        points_K3: (K, 3) float64 [m], radar frame.
        velocities_K: (K,) float64 [m/s], Doppler: rate of change of the distance to the moving radar.
        rcs_K: (K,) float64 [dBsm].
        solids_K: (K,) int64, row of the snapshot's solids.
    """

    points_K3: NDArray[np.float64]
    velocities_K: NDArray[np.float64]
    rcs_K: NDArray[np.float64]
    solids_K: NDArray[np.int64]


def simulate_radar(snapshot: Snapshot, radar: Radar, rng: np.random.Generator) -> PointsSample:
    """One scan, in the radar frame. Rain weakens echoes a little, fog does not.

    Args:
        snapshot: The world at the time of the scan.
        radar: Mounting, field of view and noise.
        rng: Draws reflections, noise, losses and clutter.
    Returns:
        Fields `x`, `y`, `z` [m], `velocity` [m/s] (Doppler relative to the moving radar, positive when
        receding) and `rcs` [dBsm].
    """
    echoes = reflections(snapshot, radar, rng)
    ranges = np.linalg.norm(echoes.points_K3, axis=1)
    rcs = echoes.rcs_K - radar_loss_db(snapshot.conditions.rain, ranges)
    signal_db = rcs - 40.0 * np.log10(ranges / (SENSITIVITY_RANGE * radar.max_range))
    detected = rng.random(len(ranges)) < 1.0 / (1.0 + np.exp(-signal_db / DETECTION_SLOPE_DB))
    num = int(detected.sum())
    points = echoes.points_K3[detected]
    azimuths = np.arctan2(points[:, 1], points[:, 0])
    azimuths += np.deg2rad(radar.azimuth_noise_deg) * rng.standard_normal(num)
    stretch = 1.0 + radar.range_noise * rng.standard_normal(num) / ranges[detected]
    horizontal = np.hypot(points[:, 0], points[:, 1]) * stretch
    found = np.stack(
        [
            horizontal * np.cos(azimuths),
            horizontal * np.sin(azimuths),
            points[:, 2] * stretch,
            echoes.velocities_K[detected] + radar.doppler_noise * rng.standard_normal(num),
            rcs[detected] + RCS_NOISE_DB * rng.standard_normal(num),
        ]
    )
    fields_5K = np.concatenate([found, _clutter(snapshot, radar, rng)], axis=1).astype(np.float32)
    return PointsSample(dict(zip(("x", "y", "z", "velocity", "rcs"), fields_5K, strict=True)))


def reflections(snapshot: Snapshot, radar: Radar, rng: np.random.Generator) -> Reflections:
    """Points on the faces that the radar sees, within field of view and range and in line of sight."""
    odom_from_radar = snapshot.odom_from_base @ radar.base_from_sensor
    boxes = segments(snapshot.solids).without_those_around(odom_from_radar.translation)
    near = np.linalg.norm(boxes.centers_N3 - odom_from_radar.translation, axis=1)
    boxes = boxes.select(near <= radar.max_range + np.linalg.norm(boxes.halves_N3, axis=1))
    points_odom, owners = _points_on_faces(boxes, odom_from_radar.translation, rng)

    points = odom_from_radar.inverse().apply(points_odom)
    azimuths = np.arctan2(points[:, 1], points[:, 0])
    ranges = np.linalg.norm(points, axis=1)
    seen = (np.abs(azimuths) <= np.deg2rad(0.5 * radar.fov_deg)) & (ranges <= radar.max_range)
    seen &= ranges >= MIN_RANGE
    points_odom, points, owners = points_odom[seen], points[seen], owners[seen]
    clear = ~occluded(boxes, odom_from_radar, points_odom, owners)
    points, owners = points[clear], owners[clear]

    over_ground = np.zeros((len(owners), 3))
    over_ground[:, :2] = snapshot.solids.velocities_N2[owners]
    relative = over_ground @ odom_from_radar.rotation - radar_velocity(snapshot, radar)
    sight = points / np.linalg.norm(points, axis=1, keepdims=True)
    return Reflections(
        points_K3=points,
        velocities_K=np.einsum("ki,ki->k", relative, sight),
        rcs_K=snapshot.solids.rcs_N[owners],
        solids_K=owners,
    )


def radar_velocity(snapshot: Snapshot, radar: Radar) -> NDArray[np.float64]:
    """(3,) [m/s]: the radar's own velocity over ground in the radar frame, lever arm included."""
    base_from_radar: SE3 = radar.base_from_sensor
    turning = np.cross(np.array([0.0, 0.0, snapshot.yaw_rate]), base_from_radar.translation)
    return np.asarray(base_from_radar.rotation.T @ (snapshot.velocity + turning))


def _points_on_faces(
    boxes: Segments, viewpoint_3: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(K, 3) [m], odom frame, on vertical faces that are turned towards the viewpoint; (K,) their solids.

    Wide outlines get more points; the chance of a face is in proportion to its visible width.
    """
    view_N3 = boxes.to_box_frames_N3(viewpoint_3)
    outside_N2 = np.maximum(np.abs(view_N3[:, :2]) - boxes.halves_N3[:, :2], 0.0)
    distance_N = np.maximum(np.linalg.norm(view_N3[:, :2], axis=1), 1e-6)
    # A face across x is as wide as the box is in y, foreshortened unless the viewpoint is right before it.
    width_N2 = 2.0 * boxes.halves_N3[:, 1::-1] * outside_N2 / distance_N[:, None]
    width_N2[:, 0] *= np.where(view_N3[:, 0] > 0.0, *boxes.ends_N2.T)  # cuts between pieces are no faces
    total_N = width_N2.sum(axis=1)
    num_N = np.clip(np.ceil(total_N / REFLECTION_SPACING), 1, MAX_REFLECTIONS).astype(np.int64)
    num_N[total_N <= 0.0] = 0  # the radar is inside the outline

    k = np.repeat(np.arange(len(boxes)), num_N)
    along_x = rng.random(len(k)) * total_N[k] < width_N2[k, 0]  # on the face across x
    halves, view = boxes.halves_N3[k], view_N3[k]
    sweep = rng.uniform(-1.0, 1.0, len(k))
    x = np.where(along_x, np.copysign(halves[:, 0], view[:, 0]), sweep * halves[:, 0])
    y = np.where(along_x, sweep * halves[:, 1], np.copysign(halves[:, 1], view[:, 1]))
    reach = np.maximum(halves[:, 2] - EDGE_MARGIN, 0.0)
    z = np.clip(view[:, 2], -reach, reach)
    c, s = boxes.cosines_N[k], boxes.sines_N[k]
    points = boxes.centers_N3[k] + np.stack([c * x - s * y, s * x + c * y, z], axis=-1)
    return points, boxes.solids_N[k]


def _clutter(snapshot: Snapshot, radar: Radar, rng: np.random.Generator) -> NDArray[np.float64]:
    """(5, K) rows x, y, z, velocity, rcs: returns from nothing in particular, mostly still over ground."""
    num = int(rng.poisson(radar.clutter))
    azimuths = np.deg2rad(rng.uniform(-0.5, 0.5, num) * radar.fov_deg)
    ranges = rng.uniform(MIN_RANGE, max(radar.max_range, MIN_RANGE), num)
    sight = np.stack([np.cos(azimuths), np.sin(azimuths), np.zeros(num)], axis=-1)
    moving = rng.random(num) < CLUTTER_MOVING_SHARE
    over_ground = np.where(moving, CLUTTER_SPEED * rng.standard_normal(num), 0.0)
    velocities = over_ground - sight @ radar_velocity(snapshot, radar)
    velocities += radar.doppler_noise * rng.standard_normal(num)
    points = sight * ranges[:, None]
    return np.stack([*points.T, velocities, rng.uniform(*CLUTTER_RCS_DB, num)])
