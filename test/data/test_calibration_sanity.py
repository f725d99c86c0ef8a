"""Calibration sanity: a camera turned by a known angle is found with its sign, a sound one is not."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.data.calibration_sanity import LEAST_FRAMES, CalibrationProbe, Misalignment
from e2e_perception.runtime.rasters import lidar_raster

NETWORK = SMALL.model_copy(
    update={"image_height": 96, "image_width": 256, "grid": BevGrid(resolution=0.5), "cameras": ("front",)}
)
CENTRE = np.array([1.5, 0.0, 1.4])


def camera(yaw_deg: float = 0.0, pitch_deg: float = 0.0) -> np.ndarray:
    """(3, 4) of a camera that looks ahead, turned counter-clockwise and down."""
    optical_from_base = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    turn = cv2.Rodrigues(np.array([0.0, 0.0, np.deg2rad(yaw_deg)]))[0]
    turn = turn @ cv2.Rodrigues(np.array([0.0, np.deg2rad(pitch_deg), 0.0]))[0]
    intrinsics = np.array([[150.0, 0.0, 128.0], [0.0, 150.0, 40.0], [0.0, 0.0, 1.0]])
    matrix = intrinsics @ optical_from_base @ turn.T
    return np.column_stack([matrix, -matrix @ CENTRE])


def scene(seed: int) -> tuple[np.ndarray, list[tuple[float, float, float, float]]]:
    """Points of pillars, and the pillars: x, y, half a width, height, the farthest first."""
    rng = np.random.default_rng(seed)
    pillars = []
    for x in sorted(rng.uniform(8.0, 35.0, 14), reverse=True):
        pillars.append((x, rng.uniform(-0.7, 0.7) * x, rng.uniform(0.3, 1.2), rng.uniform(1.2, 3.2)))
    points = [
        np.column_stack(
            [np.full(400, x), rng.uniform(y - half, y + half, 400), rng.uniform(0.0, height, 400)]
        )
        for x, y, half, height in pillars
    ]
    return np.concatenate(points).astype(np.float32), pillars


def picture(pillars: list[tuple[float, float, float, float]], matrix: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, 1))
    image = rng.normal(110.0, 3.0, (96, 256, 3))
    for x, y, half, height in pillars:
        corners = [(x, y + a * half, b * height, 1.0) for a, b in ((-1, 0), (1, 0), (1, 1), (-1, 1))]
        seen = matrix @ np.array(corners).T
        shape = np.round((seen[:2] / seen[2]).T).astype(np.int32)
        cv2.fillConvexPoly(image, shape, rng.uniform(0, 255, 3).tolist())
    return image.clip(0, 255).astype(np.uint8)


def drive(yaw_deg: float, pitch_deg: float, num_frames: int = 20) -> list[Clip]:
    """Clips whose camera is turned from what they state."""
    clips = []
    for seed in range(num_frames):
        base = synthetic_clip(NETWORK, num_frames=1)
        points, pillars = scene(seed)
        raster = lidar_raster(points, np.full(len(points), 0.5, np.float32), NETWORK.grid)
        inputs = {
            **base.inputs,
            "images": picture(pillars, camera(yaw_deg, pitch_deg), seed)[None, None],
            "image_from_base": camera().astype(np.float32)[None, None],
            "lidar_raster": raster[None].astype(np.float16),
        }
        clips.append(replace(base, inputs=inputs))
    return clips


def found(clips: list[Clip]) -> Misalignment:
    probe = CalibrationProbe(NETWORK)
    for clip in clips:
        probe.add(clip)
    return probe.found()["front"]


@pytest.mark.parametrize(
    ("yaw_deg", "pitch_deg"), [(3.0, 0.0), (-4.0, 0.0), (0.0, 3.0), (0.0, -3.0), (4.0, 3.0)]
)
def test_a_camera_turned_by_a_known_angle_is_found_with_its_sign(yaw_deg: float, pitch_deg: float) -> None:
    told = found(drive(yaw_deg, pitch_deg))
    assert told.yaw_deg == pytest.approx(yaw_deg, abs=1.01)
    assert told.pitch_deg == pytest.approx(pitch_deg, abs=1.01)
    assert told.gain > 1.15


def test_a_sound_camera_is_left_in_peace() -> None:
    told = found(drive(0.0, 0.0))
    assert (told.yaw_deg, told.pitch_deg, told.gain) == (0.0, 0.0, 1.0)


def test_of_pictures_that_have_nothing_to_do_with_the_lidar_nothing_is_said() -> None:
    clips, others = drive(0.0, 0.0), drive(0.0, 0.0)[::-1]
    mixed = [
        replace(clip, inputs={**clip.inputs, "images": other.inputs["images"]})
        for clip, other in zip(clips, others, strict=True)
    ]
    told = found(mixed)
    assert (told.yaw_deg, told.pitch_deg) == (0.0, 0.0)


def test_of_few_frames_and_dead_sensors_nothing_is_said() -> None:
    few = found(drive(4.0, 0.0, LEAST_FRAMES - 1))
    assert (few.yaw_deg, few.frames) == (0.0, LEAST_FRAMES - 1)
    probe = CalibrationProbe(NETWORK)
    for clip in drive(4.0, 0.0):
        probe.add(replace(clip, inputs={**clip.inputs, "camera_valid": np.zeros((1, 1), np.float32)}))
        probe.add(replace(clip, inputs={**clip.inputs, "lidar_valid": np.zeros((1, 1), np.float32)}))
    assert probe.found() == {}
