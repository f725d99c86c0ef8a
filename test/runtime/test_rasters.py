from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.network_config import LIDAR_CHANNELS, LIDAR_SLICES, RADAR_CHANNELS
from e2e_perception.runtime.rasters import lidar_raster, radar_raster

GRID = BevGrid(x_min=-4.0, x_max=8.0, y_min=-3.0, y_max=3.0, resolution=0.5)
POINTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 80), st.just(3)),
    elements=st.floats(-10, 10, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -0.5, 0.3]),
)


def lidar(points_base_N3: np.ndarray, intensity_N: np.ndarray | None = None) -> dict[str, np.ndarray]:
    points = np.asarray(points_base_N3, np.float32).reshape(-1, 3)
    if intensity_N is None:
        intensity_N = np.full(len(points), 0.25, np.float32)
    raster = lidar_raster(points, np.asarray(intensity_N, np.float32), GRID)
    assert raster.shape == (7, 12, 24)
    assert raster.dtype == np.float32
    return dict(zip(LIDAR_CHANNELS, raster, strict=True))


def naive_counts(points_N3: np.ndarray) -> np.ndarray:
    """Slow and plain: (slices, Y, X) counts, one point at a time."""
    counts = np.zeros((4, *GRID.shape), int)
    for x, y, z in points_N3:
        if not np.isfinite([x, y, z]).all():
            continue
        column = np.floor((np.float32(x) - np.float32(GRID.x_min)) / np.float32(0.5))
        row = np.floor((np.float32(y) - np.float32(GRID.y_min)) / np.float32(0.5))
        edges = np.array(LIDAR_SLICES, np.float32)
        layer = int(np.searchsorted(edges, z, side="right")) - 1
        if 0 <= column < 24 and 0 <= row < 12 and 0 <= layer < 4:
            counts[layer, int(row), int(column)] += 1
    return counts


@pytest.mark.parametrize(
    ("z", "channel"), [(-0.4, "ground"), (0.29, "ground"), (0.3, "low"), (1.2, "middle"), (3.4, "high")]
)
def test_single_point_lands_in_its_cell_and_slice(z: float, channel: str) -> None:
    raster = lidar(np.array([[2.2, -1.1, z]]))
    row, column = int((-1.1 + 3.0) / 0.5), int((2.2 + 4.0) / 0.5)
    expected = dict.fromkeys(LIDAR_CHANNELS, 0.0) | {
        channel: np.log(2) / np.log(16),
        "max_height": z / 4.0,
        "intensity": 0.25,
        "log_count": np.log(2) / np.log(256),
    }
    for name, value in expected.items():
        assert raster[name][row, column] == pytest.approx(value, abs=1e-6), name
        others = raster[name].copy()
        others[row, column] = 0.0
        assert not others.any(), name


def test_occupancy_grows_with_the_logarithm_of_the_count_up_to_one() -> None:
    for count, expected in ((1, 0.25), (3, 0.5), (7, 0.75), (15, 1.0), (200, 1.0)):
        raster = lidar(np.tile([1.0, 1.0, 0.0], (count, 1)))
        assert raster["ground"].max() == pytest.approx(expected, abs=1e-6)
        assert raster["log_count"].max() == pytest.approx(np.log1p(count) / np.log(256), abs=1e-6)


def test_greatest_height_and_mean_intensity_are_of_the_points_within_the_slices() -> None:
    points = [[1.1, 1.1, -0.3], [1.2, 1.2, 0.9], [1.3, 1.3, 9.0], [1.4, 1.4, -2.0], [6.0, 1.0, -0.2]]
    raster = lidar(np.array(points), np.array([0.2, 0.6, 1.0, 1.0, 0.1]))
    row, column = 8, 10
    assert raster["max_height"][row, column] == pytest.approx(0.9 / 4.0, abs=1e-6)
    assert raster["intensity"][row, column] == pytest.approx(0.4, abs=1e-6)
    assert raster["max_height"].min() == pytest.approx(-0.2 / 4.0, abs=1e-6)  # ground below base_link


def test_edges_belong_to_the_cell_that_starts_there() -> None:
    inside = lidar(np.array([[-4.0, -3.0, -0.5]]))
    assert inside["log_count"][0, 0] > 0
    outside = lidar(np.array([[8.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.5], [-4.01, 0.0, 0.0]]))
    assert not any(channel.any() for channel in outside.values())


def test_no_points_give_an_empty_raster() -> None:
    assert not any(channel.any() for channel in lidar(np.empty((0, 3))).values())


@given(points=POINTS)
@settings(deadline=None)
def test_counts_are_those_of_the_points_inside(points: np.ndarray) -> None:
    raster = lidar(points)
    counts = naive_counts(points)
    slices = np.stack([raster[name] for name in LIDAR_CHANNELS[:4]])
    expected = np.minimum(np.log1p(counts) / np.log(16), 1.0)
    np.testing.assert_allclose(slices, expected, atol=1e-6)
    recovered = np.expm1(raster["log_count"].astype(np.float64) * np.log(256))
    np.testing.assert_allclose(recovered, counts.sum(axis=0), atol=1e-3)
    assert all(np.isfinite(channel).all() for channel in raster.values())


@given(points=POINTS, seed=st.integers(0, 1000))
@settings(deadline=None)
def test_order_of_lidar_points_does_not_matter(points: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    intensity = rng.random(len(points), np.float32)
    order = rng.permutation(len(points))
    first, second = lidar(points, intensity), lidar(points[order], intensity[order])
    for name in LIDAR_CHANNELS:
        np.testing.assert_allclose(first[name], second[name], atol=1e-6, err_msg=name)


@given(points=POINTS)
@settings(deadline=None)
def test_memory_layout_of_points_does_not_matter(points: np.ndarray) -> None:
    intensity = np.linspace(0, 1, len(points), dtype=np.float32)
    by_column = lidar_raster(np.asfortranarray(points), intensity, GRID)
    np.testing.assert_array_equal(by_column, lidar_raster(points, intensity, GRID))


def radar(points: np.ndarray, doppler: np.ndarray, rcs: np.ndarray) -> dict[str, np.ndarray]:
    raster = radar_raster(
        np.asarray(points, np.float32).reshape(-1, 3),
        np.asarray(doppler, np.float32).reshape(-1, 2),
        np.asarray(rcs, np.float32),
        GRID,
    )
    assert raster.shape == (4, 12, 24)
    assert raster.dtype == np.float32
    return dict(zip(RADAR_CHANNELS, raster, strict=True))


def test_radar_cell_holds_the_mean_of_its_returns_whatever_their_height() -> None:
    raster = radar(
        np.array([[2.1, 0.1, 0.5], [2.2, 0.2, 30.0], [100.0, 0.0, 0.0]]),
        np.array([[4.0, -1.0], [8.0, 3.0], [99.0, 99.0]]),
        np.array([10.0, 20.0, 99.0]),
    )
    row, column = 6, 12
    expected = {"log_count": np.log(3) / np.log(16), "doppler_x": 0.6, "doppler_y": 0.1, "rcs": 0.75}
    for name, value in expected.items():
        assert raster[name][row, column] == pytest.approx(value, abs=1e-6), name
        assert np.count_nonzero(raster[name]) == 1, name


def test_no_radar_returns_give_an_empty_raster() -> None:
    raster = radar(np.empty((0, 3)), np.empty((0, 2)), np.empty(0))
    assert not any(channel.any() for channel in raster.values())


@given(points=POINTS, seed=st.integers(0, 1000))
@settings(deadline=None)
def test_order_of_radar_returns_does_not_matter(points: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    doppler, rcs = rng.normal(0, 5, (len(points), 2)), rng.normal(0, 10, len(points))
    order = rng.permutation(len(points))
    first, second = radar(points, doppler, rcs), radar(points[order], doppler[order], rcs[order])
    for name in RADAR_CHANNELS:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5, err_msg=name)
