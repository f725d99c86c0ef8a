"""Each effect does nothing at strength 0, more with more strength, what it says, and no harm to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed; clips cannot be made into arrays")

from synthetic import SMALL, synthetic_clip

from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import EGO_FIELDS, LIDAR_CHANNELS, RADAR_CHANNELS
from e2e_perception.data import image_effects, raster_effects
from e2e_perception.data.augmentation import Degradations, effects, with_degradations
from e2e_perception.data.dataset import clip_arrays
from e2e_perception.runtime import rasters

GRID = SMALL.grid
EFFECTS = {**effects(GRID), "jitter": image_effects.jittered}
MAY_CHANGE = ("images", "image_from_base", "lidar_raster", "lidar_valid", "radar_raster", "radar_valid")
NONE = Degradations(jitter=0.0, **dict.fromkeys(effects(GRID), 0.0))
every_effect = pytest.mark.parametrize("name", EFFECTS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lidar_of(points_N3: np.ndarray) -> np.ndarray:
    return rasters.lidar_raster(points_N3.astype(np.float32), np.full(len(points_N3), 0.4, np.float32), GRID)


def arrays(num_frames: int = 4) -> dict[str, np.ndarray]:
    """The synthetic clip, its pictures with structure, its lidar with a ground and with walls."""
    made = clip_arrays(synthetic_clip(num_frames=num_frames), SMALL)
    generator = rng(5)
    made["images"] = made["images"] // 2 + np.arange(0, 96, dtype=np.uint8)[:, None]
    for t in range(num_frames):
        ground = generator.uniform((-16, -16, -0.1), (48, 16, 0.1), (6000, 3))
        walls = generator.uniform((-16, 10, 0.3), (48, 11, 3.4), (4000, 3))
        made["lidar_raster"][t] = lidar_of(np.concatenate([ground, walls]))
    made["lidar_valid"][0] = 0.0  # so that a frame can be told by its validity
    return made


ARRAYS = arrays()


def copied(of: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in of.items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Mean absolute difference, each array in its own range."""
    return sum(
        float(np.abs(a[name].astype(np.float64) - b[name]).mean()) / float(np.ptp(b[name]) or 1.0)
        for name in MAY_CHANGE
    )


# ------------------------------------------------------------------ all effects


@every_effect
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_strength_zero_is_the_identity(name: str, seed: int) -> None:
    assert_same(EFFECTS[name](ARRAYS, 0.0, rng(seed)), ARRAYS)


@every_effect
@given(seed=st.integers(0, 2**32), strength=st.floats(0.01, 1.0))
@settings(max_examples=15)
def test_shapes_types_bounds_and_labels_are_kept_and_the_input_is_left_alone(
    name: str, seed: int, strength: float
) -> None:
    before = copied(ARRAYS)
    after = EFFECTS[name](ARRAYS, strength, rng(seed))

    assert_same(ARRAYS, before)
    assert after.keys() == ARRAYS.keys()
    for key, value in after.items():
        assert (value.shape, value.dtype) == (ARRAYS[key].shape, ARRAYS[key].dtype), key
        if key not in MAY_CHANGE:
            assert value is ARRAYS[key], key
    lidar = dict(zip(LIDAR_CHANNELS, np.moveaxis(after["lidar_raster"], 1, 0), strict=True))
    for key in ("ground", "low", "middle", "high", "intensity"):
        assert lidar[key].min() >= 0.0 and lidar[key].max() <= 1.0, key
    empty = lidar["log_count"] == 0.0
    assert lidar["log_count"].min() >= 0.0
    assert not np.moveaxis(after["lidar_raster"], 1, -1)[empty].any()
    for key in ("lidar_raster", "radar_raster", "image_from_base"):
        assert np.isfinite(after[key]).all()


@every_effect
def test_the_same_seed_gives_the_same_and_another_seed_something_else(name: str) -> None:
    first, again = (EFFECTS[name](ARRAYS, 0.9, rng(1)) for _ in range(2))

    assert_same(first, again)
    assert any(distance(EFFECTS[name](ARRAYS, 0.9, rng(seed)), first) > 0.0 for seed in range(2, 8))


@every_effect
def test_more_strength_changes_more_on_average(name: str) -> None:
    means = [
        np.mean([distance(EFFECTS[name](ARRAYS, strength, rng(seed)), ARRAYS) for seed in range(30)])
        for strength in (0.0, 0.25, 0.5, 1.0)
    ]

    assert means[0] == 0.0
    assert all(less < 0.9 * more for less, more in zip(means, means[1:], strict=False)), means


# ------------------------------------------------------------------ pictures


def test_other_light_is_the_same_for_all_cameras_and_jitter_is_each_ones_own_and_small() -> None:
    grey = {**ARRAYS, "images": np.full_like(ARRAYS["images"], 120)}
    lit = image_effects.other_light(grey, 1.0, rng(3))["images"].astype(int)
    jittered = image_effects.jittered(grey, 1.0, rng(3))["images"].astype(int)

    assert np.ptp(lit, axis=(0, 1)).max() == 0
    assert np.ptp(jittered, axis=0).max() == 0
    assert np.ptp(jittered, axis=1).max() > 0
    assert np.abs(jittered - 120).max() <= 25 < np.abs(lit - 120).max()


def test_dirt_stays_and_rain_falls() -> None:
    still = {**ARRAYS, "images": np.repeat(ARRAYS["images"][:1], 4, axis=0)}
    dirt = image_effects.dirty(still, 1.0, rng(1))["images"].astype(int)
    rain = image_effects.rained_on(still, 1.0, rng(1))["images"].astype(int)

    assert not np.ptp(dirt, axis=0).any()
    assert 0.05 < (np.abs(np.diff(rain, axis=0)) > 10).mean() < 0.5


def test_blur_keeps_the_mean_and_takes_contrast() -> None:
    blurred = image_effects.blurred(ARRAYS, 1.0, rng(0))["images"].astype(float)
    clear = ARRAYS["images"].astype(float)

    np.testing.assert_allclose(blurred.mean((2, 3)), clear.mean((2, 3)), atol=2.0)
    assert blurred.std((2, 3)).min() < 0.7 * clear.std((2, 3)).min()


def test_noise_has_the_stated_deviation_on_dark_and_on_bright_pixels() -> None:
    for level, expected in (
        (60, np.sqrt(15.0**2 + 20.0**2 * 60 / 255)),
        (150, np.sqrt(225 + 400 * 150 / 255)),
    ):
        flat = {**ARRAYS, "images": np.full_like(ARRAYS["images"], level)}
        noisy = image_effects.noisy(flat, 0.8, rng(0))["images"].astype(float)
        changed_N = noisy.std((0, 2, 3, 4)) > 0.0
        assert noisy[:, changed_N].std() == pytest.approx(0.8 * expected, rel=0.03)


def test_a_frozen_camera_repeats_one_picture_and_its_projection_goes_on() -> None:
    moving = copied(ARRAYS)
    moving["image_from_base"] += np.arange(4, dtype=np.float32)[:, None, None, None]
    after = image_effects.frozen(moving, 0.7, rng(2))
    repeats_TN = (after["images"][1:] == after["images"][:-1]).all((2, 3, 4))

    assert set(repeats_TN.sum(0).tolist()) <= {0, 2}
    assert repeats_TN.any()
    assert after["image_from_base"] is moving["image_from_base"]


@given(seed=st.integers(0, 10_000), strength=st.floats(0.05, 1.0))
@settings(max_examples=25)
def test_a_turned_camera_is_where_it_was_and_off_by_the_stated_angle(seed: int, strength: float) -> None:
    before = ARRAYS["image_from_base"].astype(np.float64)
    after = image_effects.turned_cameras(ARRAYS, strength, rng(seed))["image_from_base"].astype(np.float64)
    turn = np.linalg.solve(before[..., :3], after[..., :3])
    angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=-2, axis2=-1) - 1.0) / 2.0, -1.0, 1.0)))
    lenses = [-np.linalg.solve(p[..., :3], p[..., 3:])[..., 0] for p in (before, after)]
    turned = angle > 0.01

    assert turned.any()
    np.testing.assert_allclose(angle[turned], strength, atol=0.02)
    np.testing.assert_allclose(lenses[1], lenses[0], atol=1e-3)


def test_the_placeholder_projection_of_a_missing_camera_is_left_alone() -> None:
    blind = copied(ARRAYS)
    blind["camera_valid"][:, 1] = 0.0
    blind["image_from_base"][:, 1] = 0.0
    for seed in range(5):
        after = image_effects.turned_cameras(blind, 1.0, rng(seed))
        assert not after["image_from_base"][:, 1].any()


# ------------------------------------------------------------------ lidar


def counts(raster_7YX: np.ndarray) -> np.ndarray:
    return np.expm1(raster_7YX[LIDAR_CHANNELS.index("log_count")] * np.log1p(rasters.LIDAR_COUNT_SCALE))


def test_scales_are_those_of_the_rasters() -> None:
    for name in ("OCCUPANCY_FULL", "LIDAR_COUNT_SCALE", "RADAR_COUNT_SCALE", "HEIGHT_SCALE", "DOPPLER_SCALE"):
        assert getattr(raster_effects, name) == getattr(rasters, name)
    assert raster_effects.RCS_SCALE == rasters.RCS_SCALE


def test_thinning_a_raster_is_like_rasterising_thinned_points() -> None:
    generator = rng(1)
    points = generator.uniform((-10, -10, -0.4), (10, 10, 3.4), (6000, 3))
    whole = lidar_of(points)[None]
    thinned = [
        raster_effects.thinned(whole, np.full(GRID.shape, 0.3), rng(s))[0].mean((1, 2)) for s in range(40)
    ]
    truly = [lidar_of(points[generator.random(len(points)) < 0.3]).mean((1, 2)) for _ in range(40)]

    named = dict(zip(LIDAR_CHANNELS, np.mean(thinned, 0) / np.mean(truly, 0), strict=True))
    heights = named.pop("max_height")
    assert named == pytest.approx(dict.fromkeys(named, 1.0), abs=0.02)
    assert 1.0 <= heights < 1.3  # the highest point of a slice counts as kept


def test_a_thinned_cell_holds_as_many_points_as_its_slices() -> None:
    after = raster_effects.thinned(ARRAYS["lidar_raster"], np.full(GRID.shape, 0.5), rng(0))[1]
    slices = np.expm1(after[:4] * np.log1p(rasters.OCCUPANCY_FULL))
    unsaturated = (after[:4] < 1.0).all(0)

    assert (counts(after) > 0.0).any()
    np.testing.assert_allclose(slices.sum(0)[unsaturated], counts(after)[unsaturated], atol=1e-3)


def test_a_covered_window_is_dark_in_sectors_and_clear_elsewhere() -> None:
    seen = 0
    for seed in range(12):
        after = raster_effects.without_beams(ARRAYS, 0.5, rng(seed), grid=GRID)["lidar_raster"]
        lost = (after != ARRAYS["lidar_raster"]).any((0, 1))
        if (after[:, :, lost] == 0.0).all():
            seen += 1
            x, y = np.moveaxis(GRID.cell_centres_YX2(), -1, 0)
            near = np.hypot(x, y) < 14.0  # where no direction is cut short by the grid
            assert 0.15 < lost[near].mean() < 0.35
    assert 2 <= seen <= 10


def test_fog_takes_what_is_far_and_dims_what_it_leaves() -> None:
    share, dimmed = [], []
    for seed in range(10):
        after = raster_effects.in_fog(ARRAYS, 1.0, rng(seed), grid=GRID)["lidar_raster"]
        share.append([counts(after[2])[:, part].sum() for part in (slice(20, 30), slice(50, 60))])
        dimmed.append(after[2, LIDAR_CHANNELS.index("intensity")].max(0)[[22, 40]])
    whole = [counts(ARRAYS["lidar_raster"][2])[:, part].sum() for part in (slice(20, 30), slice(50, 60))]

    near, far = np.mean(share, 0) / whole
    assert far < 0.2 < 0.5 < near < 0.95
    assert np.all(np.diff(np.mean(dimmed, 0)) < 0.0)


# ------------------------------------------------------------------ radar


def test_a_ghost_is_twice_as_far_and_moves_against_the_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_effects, "NUM_CLUTTER", 0.0)
    monkeypatch.setattr(raster_effects, "GHOST_CHANCE", 1.0)
    bare = copied(ARRAYS)
    bare["radar_raster"][:] = 0.0
    channels = dict(zip(RADAR_CHANNELS, np.moveaxis(bare["radar_raster"], 1, 0), strict=True))
    channels["log_count"][:, 20, 26] = 0.5  # what stands at x = 10.5 m, y = 4.5 m
    channels["rcs"][:, 20, 26] = 1.0
    after = raster_effects.cluttered(bare, 1.0, rng(0), grid=GRID)["radar_raster"]
    rows, columns = np.nonzero(after[0, 0])
    speed = ARRAYS["ego_state"][0, EGO_FIELDS.index("speed")]
    heading = np.array([10.5, 4.5]) / np.hypot(10.5, 4.5)

    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(20, 26), (25, 37)]
    np.testing.assert_allclose(after[0, 1:3, 25, 37] * 10.0, -speed * heading[0] * heading, atol=0.2)
    assert after[0, 3, 25, 37] * 20.0 == pytest.approx(10.0)


def test_clutter_is_new_in_every_frame_and_absent_from_dead_radars() -> None:
    dead = copied(ARRAYS)
    dead["radar_valid"][1] = 0.0
    after = raster_effects.cluttered(dead, 1.0, rng(0), grid=GRID)["radar_raster"]
    added = (after != dead["radar_raster"]).any(1).sum((1, 2))

    assert added[1] == 0
    assert added[[0, 2, 3]].min() >= 8
    assert (after[2] != after[3]).any()


def test_a_late_raster_comes_with_the_validity_of_its_own_frame() -> None:
    for seed in range(10):
        after = raster_effects.late(ARRAYS, 1.0, rng(seed))
        for sensor in ("lidar", "radar"):
            raster, valid = f"{sensor}_raster", f"{sensor}_valid"
            expected = [0, 1, 2, 3] if after[raster] is ARRAYS[raster] else [0, 0, 0, 1]
            np.testing.assert_array_equal(after[raster], ARRAYS[raster][expected])
            np.testing.assert_array_equal(after[valid], ARRAYS[valid][expected])


def test_a_shifted_raster_is_moved_by_at_most_a_cell_that_is_twice_the_error() -> None:
    moved = set()
    for seed in range(20):
        after = raster_effects.shifted(ARRAYS, 1.0, rng(seed), grid=GRID)["radar_raster"]
        row, column = np.argwhere(after[0, 0] > 0.0).min(0) - np.argwhere(ARRAYS["radar_raster"][0, 0]).min(0)
        moved.add((int(row), int(column)))
    assert len(moved) > 3
    assert np.abs(list(moved)).max() == 1


# ------------------------------------------------------------------ all together


def test_every_effect_has_a_chance_and_every_chance_an_effect() -> None:
    assert set(effects(GRID)) == set(Degradations.model_fields) - {"strength", "jitter"}


def test_without_chances_nothing_happens() -> None:
    after = with_degradations(ARRAYS, NONE, rng(), grid=GRID)

    assert all(value is ARRAYS[name] for name, value in after.items())


@pytest.mark.parametrize("name", effects(GRID))
def test_an_effect_does_the_same_whatever_else_may_happen(name: str) -> None:
    alone = NONE.model_copy(update={name: 1.0, "strength": 0.9})
    other = (
        "noise" if name in ("clutter", "gain", "fog", "beam_loss", "raster_mount", "clock_offset") else "gain"
    )
    both = alone.model_copy(update={other: 1.0})
    first, second = (with_degradations(ARRAYS, config, rng(4), grid=GRID) for config in (alone, both))
    kept = (
        {"lidar_raster", "lidar_valid", "radar_valid"} if other == "noise" else {"images", "image_from_base"}
    )

    for key in kept:
        np.testing.assert_array_equal(first[key], second[key])
    assert any((second[key] != first[key]).any() for key in MAY_CHANGE)


def test_what_the_caller_draws_afterwards_does_not_depend_on_it() -> None:
    used, fresh = rng(9), rng(9)
    with_degradations(ARRAYS, Degradations(), used, grid=GRID)

    assert used.random() == fresh.random()


def test_effects_come_as_often_as_their_chance_says() -> None:
    config = NONE.model_copy(update={"gain": 0.3})
    came = [
        with_degradations(ARRAYS, config, rng(seed), grid=GRID)["lidar_raster"] is not ARRAYS["lidar_raster"]
        for seed in range(300)
    ]
    assert np.mean(came) == pytest.approx(0.3, abs=0.08)


def test_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"lidar_raster has \(32, 64\) cells, expected \(16, 32\)"):
        with_degradations(ARRAYS, Degradations(), rng(), grid=GRID.downsampled(2))


@pytest.mark.parametrize("bad", [{"blur": 1.1}, {"strength": -0.1}, {"snow": 0.1}])
def test_chances_are_chances(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Degradations(**bad)
