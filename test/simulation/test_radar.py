from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_scenes import RADAR, Block, make_snapshot, surface_distances

from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Radar
from e2e_perception.core.samples import PointsSample
from e2e_perception.simulation.radar import radar_velocity, reflections, simulate_radar
from e2e_perception.simulation.scene import Conditions, Snapshot
from e2e_perception.simulation.weather import radar_loss_db

blocks = st.builds(
    Block,
    center=st.tuples(st.floats(6, 60), st.floats(-25, 25)),
    size=st.tuples(st.floats(0.3, 50.0), st.floats(0.3, 3.0), st.floats(0.3, 5.0)),
    yaw=st.floats(-3.2, 3.2),
    velocity=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    bottom=st.sampled_from([0.0, 0.4]),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(sample: PointsSample) -> np.ndarray:
    return np.stack([sample.fields[name] for name in ("x", "y", "z", "velocity", "rcs")], axis=-1)


def moved_on(snapshot: Snapshot, dt: float) -> SE3:
    """The robot's pose a little later, at constant twist."""
    turn = snapshot.yaw_rate * dt
    return snapshot.odom_from_base @ SE3.planar(snapshot.velocity[0] * dt, snapshot.velocity[1] * dt, turn)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(blocks, min_size=1, max_size=5),
    st.floats(-3, 3),
    st.floats(0, 30),
    st.floats(-1, 1),
    st.integers(0, 9),
)
def test_doppler_is_the_rate_of_change_of_the_distance(
    world: list[Block], yaw: float, speed: float, yaw_rate: float, seed: int
) -> None:
    pose = SE3.planar(0.0, 0.0, yaw)
    turned = [
        Block(**{**b.__dict__, "center": tuple(pose.apply((*b.center, 0.0))[:2]), "yaw": b.yaw + yaw})
        for b in world
    ]
    snapshot = make_snapshot(*turned, pose=pose, speed=speed, yaw_rate=yaw_rate)
    echoes = reflections(snapshot, RADAR, rng(seed))

    # Measured instead of derived: where the reflecting point and the radar are shortly before and after.
    dt = 1e-4
    points = (pose @ RADAR.base_from_sensor).apply(echoes.points_K3)
    velocities = np.zeros_like(points)
    velocities[:, :2] = snapshot.solids.velocities_N2[echoes.solids_K]
    distances = [
        np.linalg.norm(
            points + velocities * t - (moved_on(snapshot, t) @ RADAR.base_from_sensor).translation, axis=1
        )
        for t in (-dt, dt)
    ]

    np.testing.assert_allclose(echoes.velocities_K, (distances[1] - distances[0]) / (2 * dt), atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(blocks, max_size=6), st.integers(0, 9))
def test_reflections_lie_on_surfaces_within_field_of_view_and_range(world: list[Block], seed: int) -> None:
    radar = RADAR.model_copy(update={"fov_deg": 90.0, "max_range": 45.0})
    snapshot = make_snapshot(*world)
    points = reflections(snapshot, radar, rng(seed)).points_K3

    azimuths = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    assert np.abs(azimuths).max(initial=0.0) <= 45.0
    assert np.linalg.norm(points, axis=1).max(initial=0.0) <= 45.0
    placed = radar.base_from_sensor.apply(points)
    boxes_only = surface_distances(placed, snapshot)
    assert boxes_only.max(initial=0.0) < 1e-6


def test_an_object_behind_a_wall_gives_no_return() -> None:
    wall = Block((15.0, 0.0), (0.3, 40.0, 4.0), class_name=None)
    car = Block((25.0, 0.0))

    hidden = [reflections(make_snapshot(wall, car), RADAR, rng(seed)).solids_K for seed in range(20)]
    open_view = [reflections(make_snapshot(car), RADAR, rng(seed)).solids_K for seed in range(20)]

    assert all((solids == 0).all() for solids in hidden)
    assert all(len(solids) > 0 for solids in open_view)


def test_a_half_hidden_object_returns_only_from_its_open_half() -> None:
    wall = Block((12.0, 5.0), (0.3, 10.0, 4.0), class_name=None)  # covers y > 0 as seen from the radar
    broad = Block((24.0, 0.0), (2.0, 12.0, 3.0))
    radar = RADAR.model_copy(update={"mount": RADAR.mount.model_copy(update={"xyz": (3.7, 0.0, 0.5)})})
    found = []
    for seed in range(40):
        echoes = reflections(make_snapshot(wall, broad), radar, rng(seed))
        found.append(radar.base_from_sensor.apply(echoes.points_K3)[echoes.solids_K == 1])
    points = np.concatenate(found)

    assert len(points) > 30
    assert points[:, 1].max() < 0.05


def test_standing_objects_move_as_the_robot_does() -> None:
    rail = Block((30.0, -6.0), (80.0, 0.2, 0.8), class_name=None)
    snapshot = make_snapshot(rail, speed=15.0, yaw_rate=0.3)
    echoes = reflections(snapshot, RADAR, rng())
    sight = echoes.points_K3 / np.linalg.norm(echoes.points_K3, axis=1, keepdims=True)
    own = RADAR.base_from_sensor.rotation.T @ (np.array([15.0, 0.0, 0.0]) + 0.3 * np.array([-0.4, 3.7, 0.0]))

    assert len(echoes.solids_K) >= 5
    np.testing.assert_allclose(radar_velocity(snapshot, RADAR), own, atol=1e-12)
    np.testing.assert_allclose(echoes.velocities_K, -sight @ own, atol=1e-9)


def test_a_car_that_drives_away_as_fast_as_the_robot_has_no_doppler() -> None:
    level = RADAR.model_copy(update={"mount": RADAR.mount.model_copy(update={"xyz": (3.7, 0.0, 0.5)})})
    snapshot = make_snapshot(Block((20.0, 0.0), velocity=(12.0, 0.0)), speed=12.0)
    found = np.concatenate([rows(simulate_radar(snapshot, level, rng(seed))) for seed in range(10)])

    assert len(found) > 5
    np.testing.assert_allclose(found[:, 3], 0.0, atol=1e-5)


def test_noise_has_the_stated_deviations() -> None:
    radar = Radar(
        **{
            **RADAR.model_dump(),
            "range_noise": 0.3,
            "azimuth_noise_deg": 0.8,
            "doppler_noise": 0.15,
            "mount": {"xyz": (3.7, 0.0, 0.5)},
        }
    )
    # A narrow pole 40 m ahead reflects from one place.
    snapshot = make_snapshot(Block((43.7, 0.0), (0.02, 0.02, 2.0)), speed=10.0)
    found = np.concatenate([rows(simulate_radar(snapshot, radar, rng(seed))) for seed in range(1500)])
    ranges, azimuths = np.hypot(found[:, 0], found[:, 1]), np.degrees(np.arctan2(found[:, 1], found[:, 0]))

    assert len(found) > 1000
    assert ranges.std() == pytest.approx(0.3, rel=0.1)
    assert ranges.mean() == pytest.approx(39.99, abs=0.05)
    assert azimuths.std() == pytest.approx(0.8, rel=0.1)
    assert found[:, 3].std() == pytest.approx(0.15, rel=0.1)
    assert found[:, 3].mean() == pytest.approx(-10.0, abs=0.02)


def test_strong_and_near_objects_are_detected_more_often() -> None:
    def rate(distance: float, rcs: float) -> float:
        snapshot = make_snapshot(Block((distance + 3.7, 0.0), (0.3, 0.3, 1.7), rcs=rcs))
        return float(
            np.mean([len(simulate_radar(snapshot, RADAR, rng(i)).fields["x"]) > 0 for i in range(200)])
        )

    assert rate(20.0, -5.0) > 0.95  # a pedestrian nearby
    assert 0.2 < rate(50.0, -5.0) < 0.8
    assert rate(80.0, -5.0) < 0.1
    assert rate(80.0, 10.0) > 0.8  # a car


def test_rain_weakens_echoes_by_what_it_takes_there_and_back() -> None:
    # ITU-R P.838-3 at 77 GHz, horizontal: 1.132 R^0.7177 dB/km.
    np.testing.assert_allclose(
        radar_loss_db(50.0, np.array([100.0])), 2 * 0.1 * 1.132 * 50.0**0.7177, rtol=0.02
    )
    block = Block((83.7, 0.4), (0.3, 4.0, 3.0), rcs=10.0)
    means = [
        np.concatenate(
            [
                simulate_radar(make_snapshot(block, conditions=c), RADAR, rng(i)).fields["rcs"]
                for i in range(300)
            ]
        )
        for c in (Conditions(), Conditions(rain=50.0), Conditions(haze=0.06))
    ]
    assert means[0].mean() - means[1].mean() == pytest.approx(3.0, abs=0.4)
    np.testing.assert_array_equal(means[0], means[2])  # fog is no matter


def test_clutter_has_the_stated_mean_and_mostly_stands_still() -> None:
    radar = RADAR.model_copy(update={"clutter": 4.0})
    snapshot = make_snapshot(speed=20.0)
    samples = [rows(simulate_radar(snapshot, radar, rng(seed))) for seed in range(400)]
    found = np.concatenate(samples)
    sight = found[:, :3] / np.linalg.norm(found[:, :3], axis=1, keepdims=True)
    over_ground = found[:, 3] + sight @ radar_velocity(snapshot, radar)

    assert len(found) / 400 == pytest.approx(4.0, abs=0.4)
    assert np.abs(np.arctan2(found[:, 1], found[:, 0])).max() <= np.deg2rad(60.0) + 1e-6
    assert np.mean(np.abs(over_ground) < 0.1) == pytest.approx(0.85, abs=0.05)


def test_an_empty_world_without_clutter_gives_empty_float32_fields() -> None:
    sample = simulate_radar(make_snapshot(), RADAR, rng())

    assert {name: (field.dtype, len(field)) for name, field in sample.fields.items()} == dict.fromkeys(
        ("x", "y", "z", "velocity", "rcs"), (np.dtype(np.float32), 0)
    )


def test_a_radar_within_a_box_does_not_see_it() -> None:
    assert len(reflections(make_snapshot(Block((3.7, 0.4), (2.0, 2.0, 2.0))), RADAR, rng()).solids_K) == 0


def test_the_same_seed_gives_the_same_scan_and_another_seed_another_one() -> None:
    radar = RADAR.model_copy(update={"clutter": 3.0, "range_noise": 0.3})
    snapshot = make_snapshot(Block((20.0, 2.0)), Block((30.0, -4.0)))
    first, again, other = (rows(simulate_radar(snapshot, radar, rng(seed))) for seed in (5, 5, 6))

    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
