"""Calibration sanity: a camera turned by a known angle is found with its sign, a sound one is not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.calibration_sanity import (
    LEAST_FRAMES,
    TURNS_DEG,
    CalibrationProbe,
    Misalignment,
    edges_met,
)
from e2e_perception.runtime.rasters import lidar_raster

ROOT = Path(__file__).resolve().parents[2]

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


# ------------------------------------------------------------------ a real camera

STATED = TURNS_DEG.index(0.0)


@pytest.fixture(scope="module")
def highway(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Clip, int]]:
    """Frames of a real drive by stamp: the clip that each is in, and its number there."""
    pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")
    from e2e_perception.cli.main import main
    from e2e_perception.data.shards import open_clips

    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "kitti_highway"
    if not data.exists():
        pytest.skip(f"no recorded bag at {data}; set E2E_PERCEPTION_TEST_DATA")
    out = tmp_path_factory.mktemp("highway") / "set"
    assert main(["ingest", str(data), "--out", str(out)]) == 0
    (store,) = open_clips(out)
    clips = [store.read(index) for index in range(len(store))]
    return {stamp: (clip, t) for clip in clips for t, stamp in enumerate(clip.stamps_ns_T.tolist())}


def turned_on_the_spot(matrix_34: np.ndarray, yaw_deg: float) -> np.ndarray:
    """What a calibration would say of a camera that looks further to the left than it does."""
    matrix = matrix_34.astype(np.float64)
    centre = -np.linalg.inv(matrix[:, :3]) @ matrix[:, 3]
    turned = matrix[:, :3] @ cv2.Rodrigues(np.array([0.0, 0.0, np.deg2rad(yaw_deg)]))[0].T
    return np.column_stack([turned, -turned @ centre])


def met_on_the_highway(frames: dict[int, tuple[Clip, int]], yaw_deg: float) -> dict[int, np.ndarray]:
    """Edges met (2, R) by stamp, in the frames that have enough of them."""
    found = {
        stamp: edges_met(
            clip.inputs["lidar_raster"][t],
            clip.inputs["images"][t, 0],
            turned_on_the_spot(clip.inputs["image_from_base"][t, 0], yaw_deg),
            SIZES["tiny"].grid,
        )
        for stamp, (clip, t) in frames.items()
    }
    return {stamp: met for stamp, met in found.items() if met is not None}


@pytest.mark.real_data
@pytest.mark.parametrize("yaw_deg", [3.0, -3.0, 5.0, -5.0])
def test_a_real_camera_that_is_turned_meets_fewer_edges_than_one_that_is_not(
    highway: dict[int, tuple[Clip, int]], yaw_deg: float
) -> None:
    """Means over frames: few have enough on a highway, and a single one may have its edges elsewhere."""
    true, turned = met_on_the_highway(highway, 0.0), met_on_the_highway(highway, yaw_deg)
    both = sorted(true.keys() & turned.keys())
    assert len(highway) == 78 and len(both) >= 5
    stated = np.mean([true[stamp][0, STATED] for stamp in both])
    off = np.mean([turned[stamp][0, STATED] for stamp in both])
    assert off < 0.95 * stated
    # Of the turns that are tried, the ones that undo it are better than leaving it.
    undone = TURNS_DEG.index(-yaw_deg)
    assert np.mean([turned[stamp][0, undone] for stamp in both]) > off


@pytest.mark.real_data
def test_the_true_calibration_of_a_real_camera_is_not_flagged(highway: dict[int, tuple[Clip, int]]) -> None:
    """Also if there were more such frames than the highway has: those that count are counted three times."""
    enough = met_on_the_highway(highway, 0.0)
    probe = CalibrationProbe(SIZES["tiny"].model_copy(update={"cameras": ("front",)}))
    for stamp in sorted(enough):
        clip, t = highway[stamp]
        inputs = {name: value[t : t + 1] for name, value in clip.inputs.items()}
        for _ in range(3):
            probe.add(single_frame(clip, inputs))
    told = probe.found()["front"]
    assert told.frames >= LEAST_FRAMES
    assert (told.yaw_deg, told.pitch_deg, told.gain) == (0.0, 0.0, 1.0)


def single_frame(clip: Clip, inputs: dict[str, np.ndarray]) -> Clip:
    arrays = {name: value[:1] for name, value in vars(clip).items() if isinstance(value, np.ndarray)}
    return replace(clip, inputs=inputs, **arrays)
