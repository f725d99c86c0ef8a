from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensor_scenes import LIDAR, Block, make_snapshot, straight_road, surface_distances

from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Mount
from e2e_perception.core.samples import PointsSample
from e2e_perception.simulation.lidar import NOTHING, cast_rays, simulate_lidar, simulate_lidar_with_labels
from e2e_perception.simulation.road_surface import RESOLUTION, road_surface
from e2e_perception.simulation.scene import Conditions, Road, Snapshot

blocks = st.builds(
    Block,
    center=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    size=st.tuples(st.floats(0.1, 60.0), st.floats(0.1, 5.0), st.floats(0.2, 6.0)),
    yaw=st.floats(-3.2, 3.2),
    class_name=st.sampled_from(["car", None]),
    bottom=st.sampled_from([0.0, 0.4, 2.5, 5.0]),
)
mounts = st.builds(
    Mount,
    xyz=st.tuples(st.floats(-1, 2), st.floats(-1, 1), st.floats(0.5, 3.0)),
    rpy_deg=st.tuples(st.floats(-15, 15), st.floats(-15, 15), st.floats(-180, 180)),
)


def points(sample: PointsSample) -> NDArray[np.float64]:
    return np.stack([sample.fields[axis] for axis in "xyz"], axis=-1).astype(np.float64)


def in_odom(sample: PointsSample, snapshot: Snapshot) -> NDArray[np.float64]:
    return (snapshot.odom_from_base @ LIDAR.base_from_sensor).apply(points(sample))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def nearest_by_brute_force(snapshot: Snapshot, origin: np.ndarray, directions_R3: np.ndarray) -> np.ndarray:
    """Range of each ray, every ray against every box, in float64 and without windows or pieces."""
    with np.errstate(divide="ignore"):
        ranges = np.where(directions_R3[:, 2] < 0, -origin[2] / directions_R3[:, 2], np.inf)
    solids = snapshot.solids
    for i in range(len(solids)):
        c, s = np.cos(solids.yaws_N[i]), np.sin(solids.yaws_N[i])
        box_from_odom = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        o, d = box_from_odom @ (origin - solids.centers_N3[i]), directions_R3 @ box_from_odom.T
        d = np.where(np.abs(d) < 1e-12, 1e-12, d)
        ends = np.stack([(sign * solids.sizes_N3[i] / 2 - o) / d for sign in (-1, 1)])
        enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
        ranges = np.where((enter <= leave) & (enter > 0), np.minimum(ranges, enter), ranges)
    return ranges


@settings(max_examples=40, deadline=None)
@given(st.lists(blocks, max_size=6), mounts, st.floats(-3, 3))
def test_every_ray_meets_what_an_exhaustive_search_finds_first(
    world: list[Block], mount: Mount, yaw: float
) -> None:
    lidar = LIDAR.model_copy(update={"mount": mount, "num_beams": 12, "azimuth_step_deg": 3.0})
    snapshot = make_snapshot(*world, pose=SE3.planar(3.0, -2.0, yaw))
    odom_from_lidar = snapshot.odom_from_base @ lidar.base_from_sensor
    image = cast_rays(snapshot, lidar)

    expected = nearest_by_brute_force(
        snapshot,
        odom_from_lidar.translation,
        image.directions_3R.T.astype(np.float64) @ odom_from_lidar.rotation.T,
    )

    # A ray that grazes an edge within rounding may fall on either side of it.
    expected = np.where(expected <= lidar.max_range, expected, np.inf)
    same = np.isclose(image.ranges_R, expected, rtol=1e-4, atol=2e-3)
    assert np.count_nonzero(~same) <= 2
    np.testing.assert_array_equal(np.isfinite(image.ranges_R), image.solids_R != NOTHING)


@settings(max_examples=25, deadline=None)
@given(st.lists(blocks, max_size=6), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_returns_without_noise_lie_on_surfaces(world: list[Block], yaw: float, seed: int) -> None:
    snapshot = make_snapshot(*world, pose=SE3.planar(2500.0, -800.0, yaw))
    moved = make_snapshot(
        *(
            Block(**{**block.__dict__, "center": (block.center[0] + 2500.0, block.center[1] - 800.0)})
            for block in world
        ),
        pose=snapshot.odom_from_base,
    )

    sample = simulate_lidar(moved, LIDAR, rng(seed))

    assert surface_distances(in_odom(sample, moved), moved).max(initial=0.0) < 1e-3


def test_nothing_is_seen_through_an_occluder() -> None:
    wall = Block((10.0, 0.0), (0.3, 30.0, 6.0), class_name=None)
    car = Block((20.0, 0.0))

    _, hidden = simulate_lidar_with_labels(make_snapshot(wall, car), LIDAR, rng())
    _, seen = simulate_lidar_with_labels(make_snapshot(car), LIDAR, rng())

    assert np.count_nonzero(hidden == 0) == 0
    assert np.count_nonzero(seen == 0) > 50


def test_labels_tell_on_which_agent_a_point_lies() -> None:
    world = (Block((15.0, 4.0)), Block((8.0, -6.0), class_name=None), Block((12.0, -2.0), yaw=0.4))
    snapshot = make_snapshot(*world)

    sample, labels = simulate_lidar_with_labels(snapshot, LIDAR, rng())

    assert set(labels.tolist()) == {-1, 0, 1}
    for label, block in ((0, world[0]), (1, world[2])):
        alone = make_snapshot(block)
        own = in_odom(sample, snapshot)[labels == label]
        assert len(own) > 30
        assert surface_distances(own, alone).max() < 1e-3
        assert own[:, 2].max() > 0.3


def test_a_label_made_of_several_solids_collects_the_points_of_all() -> None:
    snapshot = make_snapshot(
        Block((10.0, 0.0), (4.4, 1.8, 0.8)), Block((9.8, 0.0), (2.0, 1.6, 0.7), bottom=0.8)
    )
    snapshot.solids.labels_N[:] = 0

    sample, labels = simulate_lidar_with_labels(snapshot, LIDAR, rng())

    heights = in_odom(sample, snapshot)[labels == 0][:, 2]
    assert heights.min() < 0.6
    assert heights.max() > 0.9


def test_range_noise_has_the_stated_deviation_and_lies_along_the_ray() -> None:
    # Seen from within a ring of walls, every horizontal ray has one known range.
    walls = [
        Block((0.0, 10.0), (40.0, 0.2, 9.0)),
        Block((0.0, -10.0), (40.0, 0.2, 9.0)),
        Block((10.0, 0.0), (0.2, 40.0, 9.0)),
        Block((-10.0, 0.0), (0.2, 40.0, 9.0)),
    ]
    lidar = LIDAR.model_copy(
        update={
            "range_noise": 0.05,
            "elevation_min_deg": 0.0,
            "elevation_max_deg": 10.0,
            "azimuth_step_deg": 0.2,
        }
    )
    snapshot = make_snapshot(*walls)
    exact = cast_rays(snapshot, lidar).ranges_R.reshape(lidar.num_beams, -1)

    noisy = points(simulate_lidar(snapshot, lidar, rng()))

    ranges = np.linalg.norm(noisy, axis=1)
    beam = np.round(np.degrees(np.arcsin(noisy[:, 2] / ranges)) / (10.0 / (lidar.num_beams - 1))).astype(int)
    azimuth = (
        np.round(np.degrees(np.arctan2(noisy[:, 1], noisy[:, 0]) + np.pi) / 0.2).astype(int) % exact.shape[1]
    )
    errors = ranges - exact[beam, azimuth]
    assert len(errors) > 50_000
    assert abs(errors.mean()) < 1e-3
    assert errors.std() == pytest.approx(0.05, rel=0.02)


def test_dropout_loses_the_stated_share() -> None:
    snapshot = make_snapshot(Block((8.0, 0.0), (0.5, 60.0, 8.0)))
    full, full_labels = simulate_lidar_with_labels(snapshot, LIDAR, rng(1))
    lossy = LIDAR.model_copy(update={"dropout": 0.3})

    _, labels = simulate_lidar_with_labels(snapshot, lossy, rng(2))

    near = np.count_nonzero(full_labels == 0)
    assert np.count_nonzero(labels == 0) / near == pytest.approx(0.7, abs=0.03)
    assert len(full.fields["x"]) > near


WALL = Block((20.0, 0.0), (0.5, 12.0, 8.0), reflectivity=0.9)  # 18.6 to 19.6 m away


def in_weather(**conditions: float) -> tuple[PointsSample, NDArray[np.int64], Snapshot]:
    snapshot = make_snapshot(WALL, road=straight_road(), conditions=Conditions(**conditions))
    return *simulate_lidar_with_labels(snapshot, LIDAR, rng()), snapshot


def test_intensity_falls_as_the_square_of_the_transmission() -> None:
    (clear, clear_labels, _), (hazy, hazy_labels, _) = in_weather(), in_weather(haze=0.02)
    means = [s.fields["intensity"][n == 0].mean() for s, n in ((clear, clear_labels), (hazy, hazy_labels))]

    assert means[1] / means[0] == pytest.approx(np.exp(-2 * 0.02 * 19.0), rel=0.03)


def test_fog_hides_what_is_far_behind_returns_of_its_own_near_the_lidar() -> None:
    on_wall, drops, ground = [], [], []
    for haze in (0.0, 0.02, 0.06, 0.15):
        sample, labels, snapshot = in_weather(haze=haze)
        placed = in_odom(sample, snapshot)
        off = surface_distances(placed, snapshot) > 0.01
        on_wall.append(np.count_nonzero(labels == 0))
        drops.append(np.count_nonzero(off))
        ground.append(np.percentile(np.abs(placed[(labels == -1) & ~off, 0]), 99))
        assert (labels[off] == -1).all()
        if off.any():
            assert np.median(np.linalg.norm(points(sample)[off], axis=1)) < 8.0

    assert on_wall[1] > 0.95 * on_wall[0]  # 150 m visibility
    assert 0.2 * on_wall[0] < on_wall[2] < 0.8 * on_wall[0]  # 50 m
    assert on_wall[3] < 0.1 * on_wall[0]  # 20 m
    assert drops[0] == 0
    assert drops[0] < drops[1] < drops[2]
    assert ground[2] < 0.6 * ground[0]


def test_rain_gives_a_few_drops_and_costs_returns_from_the_wet_road() -> None:
    (dry, dry_labels, snapshot), (rainy, labels, _) = in_weather(), in_weather(rain=40.0)
    off = surface_distances(in_odom(rainy, snapshot), snapshot) > 0.01

    assert 20 < np.count_nonzero(off) < 0.1 * len(off)
    assert np.count_nonzero(labels == 0) > 0.98 * np.count_nonzero(dry_labels == 0)

    def far_ground(sample: PointsSample, of: NDArray[np.int64]) -> int:
        placed = in_odom(sample, snapshot)
        return np.count_nonzero((of == -1) & (np.abs(placed[:, 2]) < 0.01) & (np.abs(placed[:, 0]) > 25.0))

    assert far_ground(rainy, labels) < 0.8 * far_ground(dry, dry_labels)


def test_clear_air_of_three_kilometres_visibility_gives_hardly_any_drop() -> None:
    sample, _, snapshot = in_weather(haze=0.001)

    assert np.count_nonzero(surface_distances(in_odom(sample, snapshot), snapshot) > 0.01) < 10


def test_nothing_is_returned_from_beyond_the_range_limit() -> None:
    lidar = LIDAR.model_copy(update={"max_range": 30.0})
    sample = simulate_lidar(make_snapshot(Block((35.0, 0.0), (0.5, 60.0, 8.0))), lidar, rng())

    assert np.linalg.norm(points(sample), axis=1).max() <= 30.0 + 1e-3


def test_grazing_returns_from_the_road_fade_out_with_distance() -> None:
    lidar = LIDAR.model_copy(update={"num_beams": 400, "elevation_min_deg": -5.0, "elevation_max_deg": 0.0})
    snapshot = make_snapshot(road=straight_road(half_width=90.0))
    cast = cast_rays(snapshot, lidar)

    sample = simulate_lidar(snapshot, lidar, rng())

    returned = np.linalg.norm(points(sample), axis=1)
    share = {
        low: np.count_nonzero((returned >= low) & (returned < high))
        / np.count_nonzero((cast.ranges_R >= low) & (cast.ranges_R < high))
        for low, high in ((25, 35), (60, 70), (90, 99))
    }
    assert share[25] > 0.99
    assert 0.3 < share[60] < 0.7
    assert share[90] < 0.2


def test_paint_is_brighter_than_asphalt_and_grass_brighter_than_both_sides_of_it() -> None:
    snapshot = make_snapshot(road=straight_road())
    sample = simulate_lidar(snapshot, LIDAR, rng())
    placed = in_odom(sample, snapshot)
    near = np.hypot(placed[:, 0], placed[:, 1]) < 15.0
    y, intensity = np.abs(placed[near, 1]), sample.fields["intensity"][near]

    paint = intensity[np.abs(y - 5.5) < 0.05].mean()
    asphalt = intensity[(y > 1.0) & (y < 5.0)].mean()
    grass = intensity[(y > 7.0) & (y < 10.0)].mean()

    assert paint > 2.0 * asphalt
    assert grass > 1.3 * asphalt


def test_intensity_follows_reflectivity_and_stays_within_bounds() -> None:
    world = (Block((12.0, 4.0), reflectivity=0.8), Block((12.0, -4.0), reflectivity=0.2))
    sample, labels = simulate_lidar_with_labels(make_snapshot(*world), LIDAR, rng())
    intensity = sample.fields["intensity"]

    assert intensity.min() >= 0.0
    assert intensity.max() <= 1.0
    assert intensity[labels == 0].mean() / intensity[labels == 1].mean() == pytest.approx(4.0, rel=0.1)


def test_an_empty_world_gives_ground_only_and_all_fields_are_float32() -> None:
    sample, labels = simulate_lidar_with_labels(make_snapshot(), LIDAR, rng())

    assert {name: field.dtype for name, field in sample.fields.items()} == dict.fromkeys(
        ("x", "y", "z", "intensity"), np.dtype(np.float32)
    )
    assert len({len(field) for field in sample.fields.values()} | {len(labels)}) == 1
    assert (labels == -1).all()
    np.testing.assert_allclose(sample.fields["z"], -1.8, atol=1e-3)


def test_a_lidar_that_looks_up_in_an_empty_world_gets_nothing() -> None:
    up = LIDAR.model_copy(update={"elevation_min_deg": 1.0, "elevation_max_deg": 20.0})

    assert len(simulate_lidar(make_snapshot(), up, rng()).fields["x"]) == 0


def test_the_same_seed_gives_the_same_sweep_and_another_seed_another_one() -> None:
    lidar = LIDAR.model_copy(update={"range_noise": 0.02, "dropout": 0.05})
    snapshot = make_snapshot(Block((15.0, 2.0)), road=straight_road())
    first, again, other = (simulate_lidar(snapshot, lidar, rng(seed)).fields for seed in (5, 5, 6))

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x"], other["x"])


def test_points_are_in_the_lidar_frame_of_a_turned_mount() -> None:
    turned = LIDAR.model_copy(update={"mount": Mount(xyz=(0.0, 0.0, 1.8), rpy_deg=(0.0, 0.0, 90.0))})
    sample, labels = simulate_lidar_with_labels(make_snapshot(Block((0.0, 12.0))), turned, rng())
    on_car = points(sample)[labels == 0].mean(axis=0)

    assert on_car[0] == pytest.approx(11.3, abs=0.3)  # straight ahead of the lidar: the car's right side
    assert abs(on_car[1]) < 0.3


def test_the_ground_texture_knows_asphalt_from_grass_and_is_kept_per_road() -> None:
    road = straight_road()
    texture = road_surface(road).around(np.array([100.0, 0.0]))
    x, y = np.meshgrid(np.linspace(80, 120, 41) + 0.3 * RESOLUTION, np.array([-20.0, -4.0, 4.0, 20.0]))

    values = texture.reflectivities_at(np.stack([x.ravel(), y.ravel()], axis=-1)).reshape(x.shape)

    np.testing.assert_allclose(values[[0, 3]], 0.4, atol=0.01)
    np.testing.assert_allclose(values[[1, 2]], 0.18, atol=0.01)
    assert road_surface(road).around(np.array([101.0, 3.0])) is texture
    assert road_surface(Road((), (), ())) is not road_surface(road)
    far = texture.reflectivities_at(np.array([[5000.0, 0.0], [np.float64(-1e6), 1e6]]))
    np.testing.assert_allclose(far, 0.4, atol=0.01)
