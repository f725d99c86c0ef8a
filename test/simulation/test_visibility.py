from __future__ import annotations

import numpy as np
import pytest
from sensor_scenes import CAMERA, LIDAR, RADAR, Block, make_snapshot

from e2e_perception.core.rig import Mount
from e2e_perception.simulation.camera import render_ids
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.radar import reflections
from e2e_perception.simulation.scene import Conditions, Snapshot
from e2e_perception.simulation.visibility import (
    ID_SIZE,
    MIN_LIDAR_RETURNS,
    MIN_PIXELS,
    Visibility,
    visibility,
)

REAR = CAMERA.model_copy(
    update={"name": "rear", "mount": Mount(xyz=(-1.0, 0.0, 1.5), rpy_deg=(0.0, 0.0, 180.0))}
)


def observed(snapshot: Snapshot, *, lidar: bool = True, cameras: tuple = (CAMERA,)) -> Visibility:  # type: ignore[type-arg]
    labels = [simulate_lidar_with_labels(snapshot, LIDAR, np.random.default_rng(0))[1]] if lidar else []
    return visibility(snapshot, lidar_labels=labels, cameras=cameras)


def test_counts_are_those_of_the_sensors() -> None:
    snapshot = make_snapshot(Block((12.0, 2.0)), Block((25.0, -3.0)), Block((-15.0, 0.0)))
    labels = simulate_lidar_with_labels(snapshot, LIDAR, np.random.default_rng(0))[1]
    ids = render_ids(snapshot, CAMERA, ID_SIZE)

    found = visibility(snapshot, lidar_labels=[labels, labels], cameras=[CAMERA])

    np.testing.assert_array_equal(
        found.lidar_returns_L, [2 * np.count_nonzero(labels == i) for i in range(3)]
    )
    np.testing.assert_array_equal(found.pixels_L, [np.count_nonzero(ids == i) for i in range(3)])
    np.testing.assert_array_equal(found.visible_L, [True, True, True])
    assert found.pixels_L[2] == 0  # behind the camera, seen by the lidar alone


def test_a_car_behind_a_wall_is_invisible_to_all_sensors() -> None:
    wall = Block((10.0, 0.0), (0.4, 30.0, 5.0), class_name=None)
    snapshot = make_snapshot(Block((20.0, 0.0)), wall, Block((6.0, 2.0)))
    found = observed(snapshot)

    np.testing.assert_array_equal(found.visible_L, [False, True])
    assert found.lidar_returns_L[0] == 0
    assert found.pixels_L[0] == 0
    assert found.fractions_L[0] == 0.0
    assert 0 not in reflections(snapshot, RADAR, np.random.default_rng(0)).solids_K


def test_either_sensor_alone_makes_a_label_visible() -> None:
    snapshot = make_snapshot(Block((15.0, 0.0)))

    assert observed(snapshot, cameras=()).visible_L.all()
    assert observed(snapshot, lidar=False).visible_L.all()
    assert not observed(snapshot, lidar=False, cameras=()).visible_L.any()


def test_the_fraction_is_the_open_share_of_the_outline() -> None:
    # The wall covers the right half of the image up to its middle; the car stands across that line.
    wall = Block((10.0, -5.0), (0.2, 10.0, 5.0), class_name=None)
    car = Block((30.0, 0.0), (2.0, 6.0, 1.5))

    assert observed(make_snapshot(car)).fractions_L[0] == 1.0
    assert observed(make_snapshot(car, wall)).fractions_L[0] == pytest.approx(0.5, abs=0.08)


def test_the_camera_that_sees_most_counts() -> None:
    snapshot = make_snapshot(Block((15.0, 0.0)), Block((-15.0, 0.0)))
    found = observed(snapshot, lidar=False, cameras=(CAMERA, REAR))

    assert (found.pixels_L > 100).all()
    np.testing.assert_array_equal(found.fractions_L, [1.0, 1.0])


def test_a_label_counts_as_visible_from_the_stated_numbers_on() -> None:
    found = Visibility(
        lidar_returns_L=np.array([0, MIN_LIDAR_RETURNS - 1, MIN_LIDAR_RETURNS, 0]),
        pixels_L=np.array([MIN_PIXELS - 1, MIN_PIXELS - 1, 0, MIN_PIXELS]),
        fractions_L=np.zeros(4),
    )

    np.testing.assert_array_equal(found.visible_L, [False, False, True, True])


def test_cameras_do_not_count_what_fog_takes_more_than_95_percent_of_the_contrast_of() -> None:
    # In fog of ln 20 / 0.06 = 50 m visibility.
    near, far = Block((40.0, 2.0)), Block((60.0, -4.0))
    foggy = make_snapshot(near, far, conditions=Conditions(haze=0.06))
    found = observed(foggy, lidar=False)

    np.testing.assert_array_equal(found.visible_L, [True, False])
    np.testing.assert_array_equal(found.fractions_L > 0.0, [True, False])
    np.testing.assert_array_equal(observed(make_snapshot(near, far), lidar=False).visible_L, [True, True])


def test_a_world_without_agents_has_empty_counts() -> None:
    found = observed(make_snapshot(Block((10.0, 0.0), class_name=None)))

    assert found.visible_L.shape == found.fractions_L.shape == (0,)
