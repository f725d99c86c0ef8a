"""Clock offsets: what was put in is found with its sign, and where nothing can be said nothing is."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import EGO_FIELDS
from e2e_perception.data.clock_offsets import LEAST_TURNING, ClockOffset, ClockProbe, clock_offset
from e2e_perception.runtime.rasters import lidar_raster

TIMES = 0.1 * np.arange(300)
YAW_RATE = EGO_FIELDS.index("yaw_rate")
SPEED = EGO_FIELDS.index("speed")


def turning(seed: int, amplitude: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [rad/s] and complex amplitudes of a yaw rate as of a drive through a town."""
    rng = np.random.default_rng(seed)
    frequencies = rng.uniform(0.3, 4.0, 12)
    return frequencies, amplitude / 3.5 * (rng.normal(size=12) + 1j * rng.normal(size=12))


def rate(wave: tuple[np.ndarray, np.ndarray], at: np.ndarray) -> np.ndarray:
    return np.asarray((wave[1] * np.exp(1j * np.outer(at, wave[0]))).sum(-1).real)


def angle(wave: tuple[np.ndarray, np.ndarray], at: np.ndarray) -> np.ndarray:
    return np.asarray((wave[1] / (1j * wave[0]) * np.exp(1j * np.outer(at, wave[0]))).sum(-1).real)


def found(stated: np.ndarray, seen: np.ndarray, times: np.ndarray = TIMES) -> ClockOffset:
    return clock_offset(times, stated, seen, least_spread=LEAST_TURNING)


# ------------------------------------------------------------------ signals


@given(offset=st.floats(-0.3, 0.3), seed=st.integers(0, 1000), gain=st.floats(0.3, 300.0))
@settings(max_examples=40, deadline=None)
def test_a_lag_is_found_between_samples_with_its_sign_whatever_the_scale(
    offset: float, seed: int, gain: float
) -> None:
    wave, rng = turning(seed), np.random.default_rng(seed)
    noise = rng.normal(0.0, 0.02, len(TIMES))
    told = found(rate(wave, TIMES), gain * (rate(wave, TIMES - offset) + 0.1 + noise))
    assert told.offset_s is not None, told.reason
    assert abs(told.offset_s - offset) < max(4.0 * told.std_s, 0.004)
    assert told.std_s < 0.02 and told.correlation > 0.9


def test_its_standard_error_is_the_spread_of_its_errors() -> None:
    errors = []
    for seed in range(60):
        wave, rng = turning(seed), np.random.default_rng((seed, 1))
        told = found(rate(wave, TIMES), rate(wave, TIMES - 0.08) + rng.normal(0.0, 0.08, len(TIMES)))
        if told.offset_s is not None:
            errors.append((told.offset_s - 0.08) / told.std_s)
    assert len(errors) > 40
    assert 0.7 < float(np.std(errors)) < 1.5 and abs(float(np.mean(errors))) < 0.5


def test_what_goes_with_the_speed_is_taken_out() -> None:
    wave, speed = turning(4), 8.0 + 4.0 * np.sin(0.37 * TIMES)
    seen = rate(wave, TIMES - 0.05) + 0.06 * speed
    told = clock_offset(TIMES, rate(wave, TIMES), seen, least_spread=LEAST_TURNING, speed_K=speed)
    assert told.offset_s == pytest.approx(0.05, abs=0.003)


def test_outliers_and_gaps_do_not_move_it() -> None:
    wave, rng = turning(7), np.random.default_rng(0)
    seen = rate(wave, TIMES - 0.12)
    seen[rng.choice(len(seen), 12, replace=False)] += rng.choice([-3.0, 3.0], 12)
    seen[rng.choice(len(seen), 40, replace=False)] = np.nan
    times = TIMES + 5.0 * (TIMES > 14.0)  # nothing for five seconds
    told = found(rate(wave, TIMES), seen, times)
    assert told.offset_s == pytest.approx(0.12, abs=0.015)


@pytest.mark.parametrize(
    ("stated", "seen", "reason"),
    [
        (1e-3 * np.sin(TIMES), 1e-3 * np.sin(TIMES), "too little turning"),
        (np.zeros(300), np.random.default_rng(0).normal(size=300), "too little turning"),
        (rate(turning(1), TIMES), np.random.default_rng(0).normal(size=300), "they agree too little"),
        (np.sin(30.0 * TIMES), np.sin(30.0 * TIMES), "several lags fit"),
        (rate(turning(1), TIMES), rate(turning(1), TIMES - 0.9), "agree too little|no peak|several"),
        (rate(turning(1), TIMES)[:40], rate(turning(1), TIMES)[:40], "40 samples, 60 are needed"),
        (rate(turning(1), TIMES), np.full(300, np.nan), "0 samples"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(stated: np.ndarray, seen: np.ndarray, reason: str) -> None:
    told = found(stated, seen, TIMES[: len(stated)])
    assert told.offset_s is None
    assert re.search(reason, told.reason), told.reason


# ------------------------------------------------------------------ clips


@lru_cache(maxsize=1)
def panorama() -> np.ndarray:
    """(64, 3600) brightness by row and tenth of a degree."""
    import cv2

    noise = np.random.default_rng(3).normal(size=(64, 3600)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.concatenate([noise, noise, noise], axis=1), (0, 0), 8.0)[:, 3600:7200]
    return np.asarray(128.0 + 45.0 * smooth / smooth.std())


def picture(yaw: float) -> np.ndarray:
    """What a camera with a focal length of 48 px sees of a world at infinity."""
    bearing = np.rad2deg(np.arctan2(48.0 - np.arange(96), 48.0) + yaw) % 360.0
    column = bearing * 10.0
    low = column.astype(int) % 3600
    share = column - np.floor(column)
    values = (1 - share) * panorama()[:, low] + share * panorama()[:, (low + 1) % 3600]
    return np.repeat(values[..., None].clip(0, 255).astype(np.uint8), 3, axis=2)


def posts(yaw: float) -> np.ndarray:
    rng = np.random.default_rng(8)
    places = rng.uniform(-60, 60, (220, 2))
    c, s = np.cos(yaw), np.sin(yaw)
    here = places @ np.array([[c, -s], [s, c]])  # world to base
    around = rng.normal(0.0, 0.15, (220, 12, 2))
    points = (here[:, None] + around).reshape(-1, 2)
    cloud = np.column_stack([points, rng.uniform(0.4, 2.0, len(points))]).astype(np.float32)
    return lidar_raster(cloud, np.full(len(cloud), 0.5, np.float32), SMALL.grid)


def drive(
    wave: tuple[np.ndarray, np.ndarray], camera_late: float, lidar_late: float, clips: int = 12
) -> list[Clip]:
    """A robot that turns on the spot; clips of ten frames, one after the other."""
    made = []
    for number in range(clips):
        at = 0.1 * (10 * number + np.arange(10))
        base = synthetic_clip(SMALL, num_frames=10)
        ego = base.inputs["ego_state"].copy()
        ego[:, YAW_RATE], ego[:, SPEED] = rate(wave, at), 0.0
        yaw = angle(wave, at)
        memory = np.zeros((10, 3))
        memory[1:, 2] = np.diff(yaw)
        pictures = [picture(y) for y in angle(wave, at - camera_late)]
        images = np.repeat(np.stack(pictures)[:, None], 3, axis=1)
        lidar = np.stack([posts(y) for y in angle(wave, at - lidar_late)]).astype(np.float16)
        inputs = {**base.inputs, "ego_state": ego, "images": images, "lidar_raster": lidar}
        stamps = 10**9 + np.round(at * 1e9).astype(np.int64)
        made.append(replace(base, inputs=inputs, memory_from_base_T3=memory, stamps_ns_T=stamps))
    return made


def probed(clips: list[Clip]) -> dict[str, ClockOffset]:
    probe = ClockProbe(SMALL)
    for clip in clips:
        probe.add(clip)
    return dict(probe.offsets())


@pytest.mark.parametrize(("camera_late", "lidar_late"), [(0.0, 0.0), (0.07, -0.04), (-0.15, 0.11)])
def test_offsets_put_into_clips_are_found(camera_late: float, lidar_late: float) -> None:
    told = probed(drive(turning(2, amplitude=0.35), camera_late, lidar_late))
    assert set(told) == {"front", "left", "right", "top"}
    for name, late in (("front", camera_late), ("top", lidar_late)):
        assert told[name].offset_s is not None, told[name].reason
        assert told[name].offset_s == pytest.approx(late, abs=0.012), name


def test_driving_straight_tells_nothing() -> None:
    told = probed(drive(turning(2, amplitude=0.002), 0.1, 0.1, clips=8))
    assert {offset.offset_s for offset in told.values()} == {None}
    assert all(offset.reason for offset in told.values())


def test_clips_that_overlap_are_counted_once_and_dead_sensors_not_at_all() -> None:
    clips = drive(turning(2, amplitude=0.35), 0.05, 0.0)
    once, twice = probed(clips), probed([clip for clip in clips for _ in range(2)])
    assert once == twice
    dead = []
    for clip in clips:
        inputs = {**clip.inputs, "camera_valid": np.zeros_like(clip.inputs["camera_valid"])}
        dead.append(replace(clip, inputs=inputs))
    assert set(probed(dead)) == {"top"}


def test_a_late_camera_of_a_simulated_drive_is_found() -> None:
    pytest.importorskip("highway_env", reason="highway-env is not installed")
    from e2e_perception.core.rig import find_rig
    from e2e_perception.simulation.degradation import load_degradation
    from e2e_perception.simulation.expert_drives import drive_expert
    from e2e_perception.simulation.recording import record_clips
    from e2e_perception.simulation.traffic_world import ScenarioSpec

    drive = drive_expert(ScenarioSpec("roundabout", 1, 0.3))
    rig = find_rig("tiny")
    offsets = []
    for degradation in (None, load_degradation("clock_offset")):
        probe = ClockProbe(SMALL)
        clips = record_clips(drive, rig, SMALL, clip_length=10, randomize=False, degradation=degradation)
        for clip in islice(clips, 13):
            probe.add(clip)
        told = probe.offsets()["front"]
        assert told.offset_s is not None, told.reason
        offsets.append(told.offset_s)
    assert offsets[1] - offsets[0] == pytest.approx(0.03, abs=0.01)
