"""A degradation schedule at work on the measurements of one rig in one episode.

What is drawn once per episode (dirt, dead beams, errors of mounts) depends on the seed, the sensor's name and
the entry; what is drawn per measurement comes from a generator of its own. A degraded rig therefore measures
with the very noise of the intact one, and the two can be compared in pairs.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import BODY_FROM_OPTICAL, SE3
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.simulation.degradation import (
    BeamLoss,
    Blur,
    ClockOffset,
    Death,
    DegradationSchedule,
    Dirt,
    Freeze,
    Latency,
    Miscalibration,
    Noise,
    PacketLoss,
    RangeLoss,
)
from e2e_perception.simulation.scene import Snapshot

Sample = ImageSample | PointsSample

MILLISECOND = 1_000_000
DIRT_COLOR = (58, 50, 40)


def sensor_key(name: str) -> int:
    """A number for a sensor's random streams that does not depend on what else is in the rig."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Delivery:
    """What becomes of a message.

    Attributes:
        lost: It never arrives.
        stamp_shift_ns: What its stamp is off [ns].
        delay_ns: How much later it arrives [ns].
    """

    lost: bool
    stamp_shift_ns: int
    delay_ns: int


class Impairment:
    """Applies a schedule.

    Attributes:
        schedule: Which one.
    """

    def __init__(
        self, schedule: DegradationSchedule, rig: Rig, start_ns: int, seed: int, start_yaw: float
    ) -> None:
        """Bind a schedule.

        Args:
            schedule: What goes wrong.
            rig: Whose sensors.
            start_ns: Instant that the schedule's times count from [ns].
            seed: Of the episode.
            start_yaw: Heading of the robot at the start [rad, odom].
        Raises:
            ConfigError: If the schedule is not for this rig.
        """
        schedule.check(rig)
        self.schedule = schedule
        self._start_ns = start_ns
        self._seed = seed
        self._start_yaw = start_yaw
        self._dead_beams: dict[tuple[str, int], NDArray[np.int64]] = {}
        self._dirt: dict[tuple[str, int], NDArray[np.float32]] = {}

    def _time_s(self, stamp_ns: int) -> float:
        return (stamp_ns - self._start_ns) * 1e-9

    def _drawn_once(self, sensor: Camera | Lidar | Radar, entry: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, 17, sensor_key(sensor.name), entry))

    def world(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot in the schedule's weather."""
        time_s = self._time_s(snapshot.stamp_ns)
        conditions = self.schedule.conditions(snapshot.conditions, time_s, self._start_yaw)
        return replace(snapshot, conditions=conditions)

    def delivery(self, sensor: Camera | Lidar | Radar, stamp_ns: int, rng: np.random.Generator) -> Delivery:
        """What becomes of a message measured at an instant [ns]; losses are drawn from `rng`."""
        lost, shift_ms, delay_ms = False, 0.0, 0.0
        for _, entry, level in self.schedule.active(sensor, self._time_s(stamp_ns)):
            if isinstance(entry, Death):
                lost = True
            elif isinstance(entry, PacketLoss):
                lost |= bool(rng.random() < level * entry.share)
            elif isinstance(entry, ClockOffset):
                shift_ms += level * entry.offset_ms
            elif isinstance(entry, Latency):
                delay_ms += level * entry.extra_ms
        return Delivery(lost, round(shift_ms * MILLISECOND), round(delay_ms * MILLISECOND))

    def frozen_since_ns(self, sensor: Camera | Lidar | Radar, stamp_ns: int) -> int | None:
        """When the sensor froze [ns], if it is frozen at an instant; None otherwise."""
        time_s = self._time_s(stamp_ns)
        since = [
            entry.since_s(time_s)
            for _, entry, _ in self.schedule.active(sensor, time_s)
            if isinstance(entry, Freeze)
        ]
        return self._start_ns + round(min(since) * 1e9) if since else None

    def _mount_error(self, sensor: Camera | Lidar | Radar, stamp_ns: int) -> SE3 | None:
        """Pose of the true body frame in the one that the rig says; None if they are the same."""
        error: SE3 | None = None
        for index, entry, level in self.schedule.active(sensor, self._time_s(stamp_ns)):
            if isinstance(entry, Miscalibration):
                axis, direction = self._drawn_once(sensor, index).standard_normal((2, 3))
                axis, direction = axis / np.linalg.norm(axis), direction / np.linalg.norm(direction)
                rotation, _ = cv2.Rodrigues(np.deg2rad(level * entry.rotation_deg) * axis)
                moved = SE3(np.asarray(rotation, np.float64), level * entry.translation * direction)
                error = moved if error is None else error @ moved
        return error

    def mounted(self, sensor: Camera | Lidar | Radar, stamp_ns: int) -> Camera | Lidar | Radar:
        """The sensor where it really is."""
        error = self._mount_error(sensor, stamp_ns)
        if error is None:
            return sensor
        true = sensor.mount.base_from_body @ error
        x, y, z = true.translation.tolist()
        return sensor.model_copy(update={"mount": Mount(xyz=(x, y, z), rpy_deg=_rpy_deg(true.rotation))})

    def remounted(self, sensor: Camera | Lidar | Radar, stamp_ns: int, sample: Sample) -> Sample:
        """A recorded measurement as a sensor at the true mount would have taken it.

        Points are moved exactly. A picture is turned about the lens; what a translation does depends on
        depth, which a picture does not tell, and is left out.
        """
        error = self._mount_error(sensor, stamp_ns)
        if error is None:
            return sample
        if isinstance(sample, ImageSample):
            assert isinstance(sensor, Camera)
            turn = BODY_FROM_OPTICAL.T @ error.rotation @ BODY_FROM_OPTICAL
            old_from_new = sensor.intrinsics @ turn @ np.linalg.inv(sensor.intrinsics)
            height, width = sample.rgb_HW3.shape[:2]
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            picture = cv2.warpPerspective(sample.rgb_HW3, old_from_new, (width, height), flags=flags)
            return ImageSample(np.asarray(picture, np.uint8))
        moved = error.inverse().apply(_points_N3(sample)).astype(np.float32)
        return PointsSample({**sample.fields, **dict(zip("xyz", moved.T, strict=True))})

    def spoiled(
        self, sensor: Camera | Lidar | Radar, stamp_ns: int, sample: Sample, rng: np.random.Generator
    ) -> Sample:
        """What the sensor makes of a measurement: dirt, blur, noise, dead beams, short sight.

        Args:
            sensor: As the rig has it.
            stamp_ns: When it measured [ns].
            sample: The measurement of an intact one.
            rng: Draws noise.
        Raises:
            InputError: If it is a picture of a sensor that is no camera, or the reverse.
        """
        for index, entry, level in self.schedule.active(sensor, self._time_s(stamp_ns)):
            if isinstance(sensor, Camera) != isinstance(sample, ImageSample):
                raise InputError(
                    f"sensor {sensor.name!r} is a {sensor.kind}, but measured {type(sample).__name__}"
                )
            if isinstance(sample, ImageSample):
                assert isinstance(sensor, Camera)
                if isinstance(entry, Dirt):
                    sample = self._dirty(sensor, index, entry, level, sample)
                elif isinstance(entry, Blur):
                    sample = _blurred(sample, sensor, level * entry.sigma_deg)
                elif isinstance(entry, Noise):
                    sample = _noisy_picture(sample, level * entry.pixel_std, rng)
            else:
                assert not isinstance(sensor, Camera)
                if isinstance(entry, BeamLoss):
                    assert isinstance(sensor, Lidar)
                    sample = self._without_beams(sensor, index, level * entry.share, sample)
                elif isinstance(entry, RangeLoss):
                    reach = (1.0 - level * entry.share) * sensor.max_range
                    sample = _select(sample, np.linalg.norm(_points_N3(sample), axis=1) <= reach)
                elif isinstance(entry, Noise):
                    sample = _noisy_points(sample, level * entry.range_std, level * entry.doppler_std, rng)
        return sample

    def _without_beams(self, lidar: Lidar, index: int, share: float, sample: PointsSample) -> PointsSample:
        key = (lidar.name, index)
        if key not in self._dead_beams:
            self._dead_beams[key] = self._drawn_once(lidar, index).permutation(lidar.num_beams)
        dead = np.zeros(lidar.num_beams, np.bool_)
        dead[self._dead_beams[key][: round(share * lidar.num_beams)]] = True
        # The beam is the one of nearest elevation; range noise does not change it.
        x, y, z = sample.fields["x"], sample.fields["y"], sample.fields["z"]
        elevations_deg = np.degrees(np.arctan2(z, np.hypot(x, y)))
        span = lidar.elevation_max_deg - lidar.elevation_min_deg
        step = span / max(lidar.num_beams - 1, 1)
        beams = np.round((elevations_deg - lidar.elevation_min_deg) / (step or 1.0)).astype(np.int64)
        return _select(sample, ~dead[np.clip(beams, 0, lidar.num_beams - 1)])

    def _dirty(
        self, camera: Camera, index: int, entry: Dirt, level: float, sample: ImageSample
    ) -> ImageSample:
        height, width = sample.rgb_HW3.shape[:2]
        key = (camera.name, index)
        mask_HW = self._dirt.get(key)
        if mask_HW is None or mask_HW.shape != (height, width):
            mask_HW = _blobs(entry, height, width, self._drawn_once(camera, index))
            self._dirt[key] = mask_HW
        cover = mask_HW * np.float32(level * entry.opacity)
        dirt = _plain(height, width)
        return ImageSample(np.asarray(cv2.blendLinear(sample.rgb_HW3, dirt, 1.0 - cover, cover), np.uint8))


def _rpy_deg(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch, yaw [deg] of a (3, 3) rotation."""
    pitch = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    roll = np.arctan2(rotation[2, 1], rotation[2, 2])
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    r, p, y = np.degrees([roll, pitch, yaw]).tolist()
    return r, p, y


def _points_N3(sample: PointsSample) -> NDArray[np.float32]:
    return np.stack([sample.fields[axis] for axis in "xyz"], axis=-1)


def _select(sample: PointsSample, kept_N: NDArray[np.bool_]) -> PointsSample:
    return PointsSample({name: values[kept_N] for name, values in sample.fields.items()})


def _blurred(sample: ImageSample, camera: Camera, sigma_deg: float) -> ImageSample:
    # Pictures may be rendered smaller than the camera's own.
    focal_px = camera.fx_px * sample.rgb_HW3.shape[1] / camera.width
    sigma_px = focal_px * float(np.deg2rad(sigma_deg))
    if sigma_px < 0.2:
        return sample  # changes nothing
    return ImageSample(np.asarray(cv2.GaussianBlur(sample.rgb_HW3, (0, 0), sigma_px), np.uint8))


def _noisy_picture(sample: ImageSample, std: float, rng: np.random.Generator) -> ImageSample:
    noise = rng.standard_normal(sample.rgb_HW3.shape, dtype=np.float32)
    noise *= np.float32(std)
    return ImageSample(np.asarray(cv2.add(sample.rgb_HW3, noise, dtype=cv2.CV_8U), np.uint8))


def _noisy_points(
    sample: PointsSample, range_std: float, doppler_std: float, rng: np.random.Generator
) -> PointsSample:
    points_N3 = _points_N3(sample)
    ranges = np.maximum(np.linalg.norm(points_N3, axis=1), 1e-3)
    stretch = 1.0 + range_std * rng.standard_normal(len(ranges)) / ranges
    fields = {axis: (sample.fields[axis] * np.maximum(stretch, 0.0)).astype(np.float32) for axis in "xyz"}
    if "velocity" in sample.fields:
        noise = doppler_std * rng.standard_normal(len(ranges))
        fields["velocity"] = (sample.fields["velocity"] + noise).astype(np.float32)
    return PointsSample({**sample.fields, **fields})


def _blobs(entry: Dirt, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(H, W) 0 … 1: soft-edged blobs; the same places at every size of the picture."""
    places = rng.random((entry.blobs, 2))
    radii = entry.radius * rng.uniform(0.4, 1.6, entry.blobs)
    mask = np.zeros((height, width), np.float32)
    for (x, y), radius in zip(places.tolist(), radii.tolist(), strict=True):
        center = (round(x * width * 16), round(y * height * 16))
        cv2.circle(mask, center, round(radius * height * 16), 1.0, cv2.FILLED, cv2.LINE_8, 4)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(0.15 * entry.radius * height, 0.3)), np.float32)


@functools.lru_cache(maxsize=8)
def _plain(height: int, width: int) -> NDArray[np.uint8]:
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = DIRT_COLOR
    picture.setflags(write=False)
    return picture
