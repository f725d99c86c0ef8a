"""Lidar returns under boxes: counted in the cells of a box and in no others."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.network_config import LIDAR_CHANNELS
from e2e_perception.runtime.lidar_evidence import covered_shares, occupied
from e2e_perception.runtime.rasters import lidar_raster

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-8.0, y_max=8.0, resolution=0.5)
CAR = np.array([[4.0, 2.0]])


def share(x: float, y: float, yaw: float, cells: np.ndarray, size: np.ndarray = CAR) -> float:
    return float(covered_shares(np.array([[x, y]]), size, np.array([yaw]), cells, GRID)[0])


def test_returns_on_a_box_count_and_those_beside_it_do_not() -> None:
    points = np.array(
        [[x, y, 1.0] for x in np.arange(-1.9, 2.0, 0.2) for y in np.arange(-0.9, 1.0, 0.2)], np.float32
    )
    cells = occupied(lidar_raster(points, np.ones(len(points), np.float32), GRID))
    assert cells.sum() == 32
    assert share(0.0, 0.0, 0.0, cells) == 1.0
    assert share(5.5, 5.0, 0.0, cells) == 0.0
    assert share(0.0, 0.0, np.pi / 2, cells) == pytest.approx(16 / 32)
    assert share(2.0, 1.0, 0.0, cells) == pytest.approx(8 / 32)
    assert share(0.0, 0.0, np.pi, cells) == share(0.0, 0.0, 0.0, cells)


def test_the_ground_is_no_evidence() -> None:
    raster = np.zeros((len(LIDAR_CHANNELS), *GRID.shape), np.float32)
    for name in ("ground", "max_height", "intensity", "log_count"):
        raster[LIDAR_CHANNELS.index(name)] = 1.0
    assert not occupied(raster).any()
    raster[LIDAR_CHANNELS.index("middle"), 16, 16] = 0.1
    assert np.argwhere(occupied(raster)).tolist() == [[16, 16]]


def test_the_smallest_box_has_a_cell_and_one_off_the_grid_has_none() -> None:
    every = np.ones(GRID.shape, np.bool_)
    for x in np.linspace(-7.9, 7.9, 23):
        assert share(x, 0.13, 0.4, every, np.array([[0.1, 0.1]])) == 1.0
    assert np.isnan(share(20.0, 0.0, 0.0, every))
    assert share(8.0, 0.0, 0.0, every) == 1.0, "of one that is cut by the edge the part that is there counts"
    assert covered_shares(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), every, GRID).shape == (0,)
