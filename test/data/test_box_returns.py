"""Boxes against returns: shifted labels and labels of nothing are found, sound ones are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import synthetic_clip

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.data.box_returns import LEAST_BOXES, BoxReturns
from e2e_perception.data.sensor_checks import SensorChecks
from e2e_perception.runtime.rasters import lidar_raster

NETWORK = NetworkConfig(grid=BevGrid())
COLUMN = {name: k for k, name in enumerate(BOX_FIELDS)}


def clip(seed: int = 0, by: tuple[float, float] = (0.0, 0.0)) -> Clip:
    """Cars with returns on all of their sides, and labels that are moved off them."""
    rng = np.random.default_rng(seed)
    base = synthetic_clip(NETWORK, seed=seed, num_frames=4)
    boxes, ids = base.boxes_TB10.copy(), np.full_like(base.ids_TB, -1)
    lidar = []
    for t in range(4):
        points = []
        for slot, (x, y) in enumerate([(8, 4), (12, -5), (18, 6), (22, -8), (26, 1)]):
            yaw = rng.uniform(-np.pi, np.pi)
            c, s = np.cos(yaw), np.sin(yaw)
            on = rng.uniform(-0.5, 0.5, (300, 2))
            on[np.arange(300), rng.integers(0, 2, 300)] = rng.choice([-0.5, 0.5], 300)
            points.append(on * (4.2, 1.8) @ np.array([[c, s], [-s, c]]) + (x, y))
            boxes[t, slot] = (x + by[0], y + by[1], 0.8, *np.log([4.2, 1.8, 1.6]), s, c, 0.0, 0.0)
            ids[t, slot] = slot
        flat = np.concatenate(points)
        cloud = np.column_stack([flat, rng.uniform(0.4, 1.5, len(flat))]).astype(np.float32)
        lidar.append(lidar_raster(cloud, np.full(len(cloud), 0.5, np.float32), NETWORK.grid))
    inputs = {**base.inputs, "lidar_raster": np.stack(lidar).astype(np.float16)}
    weights = (ids >= 0).astype(np.float32)
    return replace(base, inputs=inputs, boxes_TB10=boxes, ids_TB=ids, weights_TB=weights, visible_TB=ids >= 0)


def counted(make: Callable[[int], Clip], clips: int = 4) -> BoxReturns:
    returns = BoxReturns()
    for seed in range(clips):
        returns.add(make(seed), NETWORK.grid)
    return returns


def test_of_sound_labels_nothing_is_said() -> None:
    returns = counted(clip)
    assert (returns.boxes, returns.empty, returns.told()) == (80, 0, [])


@given(angle=st.floats(-np.pi, np.pi), distance=st.floats(1.0, 1.9))
@settings(max_examples=12, deadline=None)
def test_a_shift_of_all_labels_is_found_with_its_sign(angle: float, distance: float) -> None:
    by = (distance * np.cos(angle), distance * np.sin(angle))
    shift = counted(lambda seed: clip(seed, by)).shift()
    assert shift == pytest.approx((-by[0], -by[1]), abs=0.5)


def test_labels_of_nothing_are_counted() -> None:
    def without(seed: int) -> Clip:
        made = clip(seed)
        return replace(made, inputs={**made.inputs, "lidar_raster": 0 * made.inputs["lidar_raster"]})

    returns = counted(without)
    assert returns.empty == returns.boxes == 80
    ((check, message),) = returns.told()
    assert check == "box_without_returns" and "80 of 80 labels" in message


def test_what_no_sensor_saw_and_frames_without_lidar_do_not_count() -> None:
    made = clip()
    hidden = replace(made, visible_TB=np.zeros_like(made.visible_TB))
    dark = replace(made, inputs={**made.inputs, "lidar_valid": 0 * made.inputs["lidar_valid"]})
    unlabelled = replace(made, labels_valid=False)
    assert [counted(lambda _, c=c: c, 1).boxes for c in (hidden, dark, unlabelled)] == [0, 0, 0]


def test_of_few_boxes_no_shift_is_said() -> None:
    returns = counted(lambda seed: clip(seed, (1.5, 0.0)), 1)
    assert returns.boxes < LEAST_BOXES and returns.shift() is None


def test_a_recording_is_looked_at_where_its_recipe_names_a_network() -> None:
    assert SensorChecks.of({}) is None and SensorChecks.of({"recipe": {"size": "huge"}}) is None
    checks = SensorChecks.of({"recipe": {"size": "tiny"}})
    assert checks is not None
    for seed in range(4):
        checks.add(clip(seed, (1.5, 0.0)))
    assert "box_offset" in dict(checks.findings())
    figures = checks.figures()
    assert figures["labels"] == {"near_and_seen": 80, "without_returns": pytest.approx(0.0, abs=0.2)}
    assert figures["front"]["clock"].startswith("not known: ")
