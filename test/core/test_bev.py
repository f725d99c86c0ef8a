from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.frames import SE2


def test_shape_is_rows_of_y_by_columns_of_x() -> None:
    grid = BevGrid(x_min=-10, x_max=30, y_min=-8, y_max=8, resolution=0.5)
    assert (grid.num_x, grid.num_y, grid.shape) == (80, 32, (32, 80))
    assert grid.downsampled(2).shape == (16, 40)
    assert grid.downsampled(2).x_max == 30


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"resolution": 0.7}, r"grid x extent .* cells of 0.7 m; expected a whole number"),
        ({"x_min": 80.0}, "expected a whole number >= 1"),
        ({"resolution": 0.0}, "greater than 0"),
        ({"y_max": float("inf")}, "finite number"),
        ({"x_max": float("nan")}, "finite number"),
        ({"z_max": 1.0}, "Extra inputs"),
    ],
)
def test_grid_that_is_no_grid_is_refused(values: dict[str, float], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        BevGrid(**values)


def test_downsampling_must_leave_whole_cells() -> None:
    with pytest.raises((ValidationError, ValueError), match="whole number"):
        BevGrid(x_min=0, x_max=3, y_min=0, y_max=3, resolution=1.0).downsampled(2)


def test_centres_follow_the_documented_layout() -> None:
    centres = BevGrid().cell_centres_YX2()
    assert centres.shape == (128, 192, 2)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(centres[0, 0], [-23.75, -31.75], atol=1e-6)  # rear right
    np.testing.assert_allclose(centres[-1, -1], [71.75, 31.75], atol=1e-6)  # front left


def test_extent_is_half_open() -> None:
    grid = BevGrid(x_min=0, x_max=10, y_min=-5, y_max=5, resolution=1)
    points = np.array([[0.0, -5.0], [9.999, 4.999], [10.0, 0.0], [5.0, 5.0], [-0.001, 0.0], [np.nan, 0.0]])
    assert grid.contains(points).tolist() == [True, True, False, False, False, False]


def normalised(grid: BevGrid, points_N2: np.ndarray) -> np.ndarray:
    low = np.array([grid.x_min, grid.y_min])
    high = np.array([grid.x_max, grid.y_max])
    return 2.0 * (points_N2 - low) / (high - low) - 1.0


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-3.2, 3.2))
@settings(deadline=None)
def test_sampling_theta_finds_where_a_cell_was_in_the_memory(x: float, y: float, yaw: float) -> None:
    grid = BevGrid()
    memory_from_current = SE2(x, y, yaw)
    theta = grid.sampling_theta(memory_from_current)
    assert theta.shape == (2, 3)
    assert theta.dtype == np.float32
    points = np.array([[0.0, 0.0], [10.0, -5.0], [60.0, 20.0], [-20.0, 31.0]])
    expected = normalised(grid, memory_from_current.apply(points))
    homogeneous = np.concatenate([normalised(grid, points), np.ones((4, 1))], axis=1)
    np.testing.assert_allclose(homogeneous @ theta.T, expected, atol=1e-5)


def test_standing_still_samples_the_memory_unchanged() -> None:
    np.testing.assert_allclose(BevGrid().sampling_theta(SE2(0, 0, 0)), [[1, 0, 0], [0, 1, 0]], atol=1e-7)
