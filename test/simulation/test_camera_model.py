from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensor_scenes import CAMERA, Block, make_snapshot, straight_road
from shapely.geometry import Point, Polygon

from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Camera, Mount
from e2e_perception.simulation.camera import (
    NO_LABEL,
    count_label_pixels,
    render_camera,
    render_camera_with_ids,
    render_ids,
)
from e2e_perception.simulation.scene import Conditions, Snapshot

SMALL = (352, 128)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def corners(block: Block) -> NDArray[np.float64]:
    signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    placed = SE3.planar(*block.center, block.yaw).apply(signs * np.array(block.size))
    placed[:, 2] += block.bottom + 0.5 * block.size[2]
    return placed


def projected(points_base_N3: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    homogeneous = points_base_N3 @ camera.image_from_base[:, :3].T + camera.image_from_base[:, 3]
    return homogeneous[:, :2] / homogeneous[:, 2:]


def ids_by_ray_casting(snapshot: Snapshot, camera: Camera) -> NDArray[np.int64]:
    """(H, W) label whose solid the ray through each pixel's centre meets first."""
    pixels = np.stack([*np.meshgrid(np.arange(camera.width), np.arange(camera.height))], axis=-1).reshape(
        -1, 2
    )
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ np.linalg.inv(camera.intrinsics).T
    odom_from_camera = snapshot.odom_from_base @ camera.base_from_sensor
    rays = rays @ odom_from_camera.rotation.T
    nearest, ids = np.full(len(rays), np.inf), np.full(len(rays), NO_LABEL)
    solids = snapshot.solids
    for i in range(len(solids)):
        c, s = np.cos(solids.yaws_N[i]), np.sin(solids.yaws_N[i])
        box_from_odom = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        o, d = box_from_odom @ (odom_from_camera.translation - solids.centers_N3[i]), rays @ box_from_odom.T
        d = np.where(np.abs(d) < 1e-12, 1e-12, d)
        ends = np.stack([(sign * solids.sizes_N3[i] / 2 - o) / d for sign in (-1, 1)])
        enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
        closer = (enter <= leave) & (enter > 0) & (enter < nearest)
        nearest = np.where(closer, enter, nearest)
        ids = np.where(closer, solids.labels_N[i], ids)
    return ids.reshape(camera.height, camera.width)


def disjoint(world: list[Block]) -> list[Block]:
    """Without the boxes that touch an earlier one or are closer to the lens than the near plane allows."""
    kept, taken = [], [Point(1.7, 0.0).buffer(0.3)]
    for block in world:
        footprint = Polygon(corners(block)[[0, 2, 6, 4], :2])
        if all(footprint.distance(other) > 0.02 for other in taken):
            kept.append(block)
            taken.append(footprint)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(10, 60),
    bearing=st.floats(-0.5, 0.5),
    yaw=st.floats(-3.2, 3.2),
    size=st.tuples(st.floats(0.4, 6.0), st.floats(0.4, 2.5), st.floats(0.5, 2.0)),
    height=st.floats(1.2, 2.2),
    rpy_deg=st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.floats(-8, 8)),
)
def test_silhouettes_agree_with_projected_corners(
    x: float,
    bearing: float,
    yaw: float,
    size: tuple[float, float, float],
    height: float,
    rpy_deg: tuple[float, float, float],
) -> None:
    camera = CAMERA.model_copy(update={"mount": Mount(xyz=(1.7, 0.1, height), rpy_deg=rpy_deg)})
    block = Block((x, x * np.tan(bearing)), size, yaw)
    pixels = projected(corners(block), camera)
    assume((pixels > 2).all() and (pixels < np.array([camera.width, camera.height]) - 3).all())

    ids = render_camera_with_ids(make_snapshot(block), camera, rng())[1]

    rows, columns = np.nonzero(ids == 0)
    bounds = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(bounds, [*pixels.min(axis=0), *pixels.max(axis=0)], atol=1.5)


def test_silhouettes_agree_with_projected_corners_at_reduced_resolution() -> None:
    block = Block((18.0, 3.0), yaw=0.5)
    # A pixel of the small picture covers two by two of the large one.
    pixels = (projected(corners(block), CAMERA) + 0.5) / 2.0 - 0.5

    rows, columns = np.nonzero(render_ids(make_snapshot(block), CAMERA, SMALL) == 0)

    bounds = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(bounds, [*pixels.min(axis=0), *pixels.max(axis=0)], atol=1.0)


def test_colours_lie_where_the_ids_are() -> None:
    block = Block((15.0, -1.0), color=(255, 0, 255), class_name="truck", size=(6.0, 2.4, 3.0))
    image, ids = render_camera_with_ids(make_snapshot(block), CAMERA, rng())
    rgb = image.rgb_HW3.astype(int)
    magenta = (rgb[..., 0] > rgb[..., 1] + 40) & (rgb[..., 2] > rgb[..., 1] + 40)

    assert np.count_nonzero(magenta & (ids == 0)) > 0.5 * np.count_nonzero(ids == 0)
    assert np.count_nonzero(magenta & (ids != 0)) < 0.05 * np.count_nonzero(magenta)


near_and_far = st.builds(
    Block,
    center=st.tuples(st.floats(2, 45), st.floats(-18, 18)),
    size=st.tuples(st.floats(0.3, 14.0), st.floats(0.3, 4.0), st.floats(0.5, 4.0)),
    yaw=st.floats(-3.2, 3.2),
    class_name=st.sampled_from(["car", "truck", "pedestrian", "cyclist", None]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(near_and_far, min_size=2, max_size=8))
# A lorry at the side and a pedestrian before its far end: its nearest point is nearer than the pedestrian.
@example([Block((12.0, 4.0), (16.0, 2.5, 3.5), class_name="truck"), Block((18.0, 1.5), (0.5, 0.5, 1.7))])
# Three outlines that begin at neighbouring columns.
@example(
    [
        Block((31.0, 8.125), (11.0, 0.5, 1.0), yaw=3.1875),
        Block((10.3125, 4.78125), (1.5, 3.375, 2.0), yaw=-0.59375),
        Block((37.5, 10.875), (7.0, 0.5, 1.0), yaw=-3.1875),
    ]
)
def test_nearer_boxes_hide_farther_ones_as_rays_do(world: list[Block]) -> None:
    small = CAMERA.model_copy(
        update={"width": 352, "height": 128, "fx_px": 176.0, "fy_px": 176.0, "cx_px": 175.5, "cy_px": 63.5}
    )
    snapshot = make_snapshot(*disjoint(world))
    expected = ids_by_ray_casting(snapshot, small)

    ids = render_ids(snapshot, small)

    # Filled outlines include the pixels on them, so that each may be a pixel wider than rays say; what is
    # drawn farther off than that may be a line, not an area.
    wrong = np.zeros(ids.shape, np.uint8)
    for drawn in np.unique(ids):
        met = cv2.dilate((expected == drawn).astype(np.uint8), np.ones((3, 3), np.uint8))
        wrong[(ids == drawn) & (met == 0)] = 1
    assert not cv2.erode(wrong, np.ones((2, 2), np.uint8), borderValue=0).any()


def test_a_near_car_hides_a_far_one_in_colours_too() -> None:
    near = Block((12.0, 0.0), (4.4, 1.8, 1.5), color=(20, 20, 220))
    far = Block((25.0, 0.0), (4.4, 1.6, 1.3), color=(220, 20, 20))
    both, ids = render_camera_with_ids(make_snapshot(near, far), CAMERA, rng(1))
    only_near = render_camera(make_snapshot(near), CAMERA, rng(1))

    # The far car's shadow reaches out beside the near car; its body does not.
    assert np.count_nonzero(ids == 1) == 0
    changed = (both.rgb_HW3 != only_near.rgb_HW3).any(axis=-1)
    assert not (changed & (ids == 0)).any()


def test_a_long_rail_neither_hides_cars_before_it_nor_shows_through_them() -> None:
    rail = Block((60.0, -4.0), (160.0, 0.2, 0.8), class_name=None)
    cars = [Block((x, -2.2)) for x in (8.0, 20.0, 45.0)]
    hidden = Block((15.0, -7.0), (4.4, 1.8, 0.7))
    snapshot = make_snapshot(*cars, rail, hidden)

    np.testing.assert_array_equal(
        [np.count_nonzero(render_ids(snapshot, CAMERA) == i) for i in range(3)],
        [np.count_nonzero(render_ids(make_snapshot(*cars), CAMERA) == i) for i in range(3)],
    )
    assert np.count_nonzero(render_ids(snapshot, CAMERA) == 3) < 0.3 * np.count_nonzero(
        render_ids(make_snapshot(hidden), CAMERA) == 0
    )


@settings(max_examples=40, deadline=None)
@given(st.floats(-6, 3), st.floats(-4, 4), st.floats(-3.2, 3.2), st.sampled_from([4.4, 18.0, 200.0]))
def test_boxes_beside_and_partly_behind_the_camera_cover_what_rays_say(
    x: float, y: float, yaw: float, length: float
) -> None:
    block = Block((x, y), (length, 1.8, 1.5), yaw)
    eye = SE3.planar(*block.center, yaw).inverse().apply((1.7, 0.0, 0.0))
    assume(abs(eye[0]) > length / 2 + 0.5 or abs(eye[1]) > 0.9 + 0.5)  # not in the lens
    small = CAMERA.model_copy(
        update={"width": 352, "height": 128, "fx_px": 176.0, "fy_px": 176.0, "cx_px": 175.5, "cy_px": 63.5}
    )
    expected = ids_by_ray_casting(make_snapshot(block), small)

    ids = render_ids(make_snapshot(block), small)

    different = np.count_nonzero(ids != expected)
    assert different <= 0.02 * expected.size


def test_extreme_coordinates_do_not_overflow() -> None:
    wall = Block((0.0, -600.0), (4000.0, 1.0, 300.0), class_name="truck")
    close = Block((3.0, 0.7), (2.4, 0.2, 3.0))
    camera = CAMERA.model_copy(update={"fx_px": 4000.0, "fy_px": 4000.0})

    ids = render_ids(make_snapshot(wall, close), camera)
    expected = ids_by_ray_casting(make_snapshot(wall, close), camera)

    assert np.mean(ids == expected) > 0.98


def test_the_ground_shows_road_grass_and_paint_where_they_are() -> None:
    snapshot = make_snapshot(road=straight_road(), pose=SE3.planar(1000.0 - 1000.0, 0.0, 0.0))
    rgb = np.mean([render_camera(snapshot, CAMERA, rng(i)).rgb_HW3 for i in range(4)], axis=0)

    def at(x: float, y: float) -> NDArray[np.float64]:
        u, v = np.round(projected(np.array([[x, y, 0.0]]), CAMERA)[0]).astype(int)
        return np.asarray(rgb[v - 1 : v + 2, u - 2 : u + 3].mean(axis=(0, 1)))

    asphalt, grass, paint = at(10.0, 2.5), at(12.0, 9.0), at(7.5, 5.5)
    assert np.ptp(asphalt) < 15
    assert grass[1] > grass[2] + 25
    assert paint.mean() > asphalt.mean() + 40


@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_dashes_lie_on_the_ground_where_the_homography_puts_them(yaw: float) -> None:
    road = straight_road(length=405.0)  # dashes begin at x = -405 + 9 k
    snapshot = make_snapshot(road=road, pose=SE3.planar(0.0, 0.0, yaw))
    camera = CAMERA.model_copy(
        update={"mount": Mount(xyz=(1.7, 0.0, 1.5), rpy_deg=(2.0, 5.0, -np.degrees(yaw)))}
    )
    rgb = render_camera(snapshot, camera, rng()).rgb_HW3.astype(int)
    base_from_odom = snapshot.odom_from_base.inverse()

    for middle, painted in ((10.5, True), (15.0, False), (19.5, True)):
        u, v = np.round(projected(base_from_odom.apply([[middle, 0.0, 0.0]]), camera)[0]).astype(int)
        contrast = rgb[v, u - 1 : u + 2].max() - rgb[v, u + 12 : u + 16].mean()
        assert (contrast > 35) == painted


def test_haze_fades_the_world_to_the_horizon_exponentially() -> None:
    def contrast(haze: float, distance: float) -> float:
        block = Block((distance, 0.0), (1.0, 6.0, 3.0), class_name=None, color=(0, 0, 0))
        conditions = Conditions(haze=haze, sky=(200, 200, 200))
        rgb = render_camera(make_snapshot(block, conditions=conditions), CAMERA, rng()).rgb_HW3
        u, v = np.round(projected(np.array([[distance, 0.0, 1.4]]), CAMERA)[0]).astype(int)
        return float(1.05 * 200 - rgb[v - 3 : v + 4, u - 5 : u + 6].mean())

    for distance in (20.0, 60.0):
        expected = np.exp(-0.03 * (distance - 2.2))
        assert contrast(0.03, distance) / contrast(0.0, distance) == pytest.approx(expected, abs=0.03)


def test_rain_darkens_draws_streaks_that_move_and_spares_the_drawn_objects_places() -> None:
    conditions = Conditions(rain=25.0, sky=(160, 165, 170))
    block = Block((12.0, 1.0))
    dry = make_snapshot(block, road=straight_road(), conditions=Conditions(sky=(160, 165, 170)))
    wet = make_snapshot(block, road=straight_road(), conditions=conditions)
    before = render_camera(dry, CAMERA, rng()).rgb_HW3.astype(float)
    first, second = (render_camera(wet, CAMERA, rng(seed)).rgb_HW3.astype(float) for seed in (1, 2))

    assert first.mean() < 0.9 * before.mean()
    # A streak is brighter than its surroundings: the lower half of the picture, road, gets a long upper tail.
    tail = [np.mean(rgb[160:] > np.median(rgb[160:]) + 25) for rgb in (before, first)]
    assert tail[1] > tail[0] + 0.01
    moved = np.abs(first - second) > 25
    assert moved.mean() > 0.01


def test_heavier_rain_has_more_streaks() -> None:
    spread = []
    for rain in (4.0, 20.0, 60.0):
        snapshot = make_snapshot(conditions=Conditions(rain=rain, sky=(160, 160, 160)))
        rgb = render_camera(snapshot, CAMERA, rng(3)).rgb_HW3.astype(float)
        spread.append(np.mean(rgb[:90, :, 0] > np.median(rgb[:90, :, 0]) + 15))

    assert spread[0] < spread[1] < spread[2]


def test_glare_blooms_around_the_suns_place_unless_something_stands_before_it() -> None:
    azimuth, elevation = 0.3, 0.1
    glare = Conditions(glare=1.0, sun=(azimuth, elevation))
    direction = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    u, v = np.round(projected(1e6 * direction[None], CAMERA)[0]).astype(int)
    pose = SE3.planar(30.0, -20.0, 0.0)

    def picture(conditions: Conditions, *blocks: Block) -> NDArray[np.float64]:
        snapshot = make_snapshot(*blocks, pose=pose, road=straight_road(), conditions=conditions)
        return render_camera(snapshot, CAMERA, rng()).rgb_HW3.astype(float)

    blinded, clear = picture(glare), picture(Conditions())
    added = (blinded - clear).mean(axis=-1)
    assert (blinded[v - 3 : v + 4, u - 3 : u + 4] > 240).all()  # but for noise
    # On the dark road nothing saturates: 255 (7 deg / angle)^2 is added.
    for row, column in ((140, 120), (220, 350), (180, 600)):
        ray = CAMERA.base_from_sensor.rotation @ np.linalg.inv(CAMERA.intrinsics) @ (column, row, 1.0)
        angle_deg = np.degrees(np.arccos(ray @ direction / np.linalg.norm(ray)))
        found = added[row - 2 : row + 3, column - 2 : column + 3].mean()
        assert found == pytest.approx(255 * (7 / angle_deg) ** 2, rel=0.05, abs=1.0)

    tower = Block(
        (30.0 + 20.0 * np.cos(azimuth), -20.0 + 20.0 * np.sin(azimuth)), (4.0, 4.0, 20.0), class_name=None
    )
    np.testing.assert_array_equal(picture(glare, tower), picture(Conditions(), tower))
    np.testing.assert_array_equal(picture(Conditions(glare=1.0, sun=(azimuth + np.pi, elevation))), clear)


def test_brightness_scales_the_picture() -> None:
    block = Block((15.0, 2.0), class_name=None)
    means = [
        render_camera(
            make_snapshot(block, road=straight_road(), conditions=Conditions(brightness=b)), CAMERA, rng()
        ).rgb_HW3.mean()
        for b in (1.0, 0.5, 0.25)
    ]

    assert means[1] / means[0] == pytest.approx(0.5, abs=0.02)
    assert means[2] / means[0] == pytest.approx(0.25, abs=0.02)


def test_a_camera_in_an_empty_world_sees_sky_above_and_grass_below_a_tilted_horizon() -> None:
    tilted = CAMERA.model_copy(update={"mount": Mount(xyz=(1.7, 0.0, 1.5), rpy_deg=(10.0, 0.0, 0.0))})
    image, ids = render_camera_with_ids(make_snapshot(), tilted, rng())
    rgb = image.rgb_HW3.astype(int)
    is_grass = rgb[..., 1] > rgb[..., 2] + 10

    assert (ids == NO_LABEL).all()
    # Rolled to the right by 10 deg, the horizon drops by 0.176 px per px from right to left.
    first_row = is_grass.argmax(axis=0)
    slope = np.polyfit(np.arange(704), first_row, 1)[0]
    assert slope == pytest.approx(-np.tan(np.deg2rad(10.0)), abs=0.01)


def test_a_camera_that_looks_up_sees_only_sky_and_one_that_looks_down_only_ground() -> None:
    for pitch, expected in ((-60.0, False), (60.0, True)):
        camera = CAMERA.model_copy(update={"mount": Mount(xyz=(1.7, 0.0, 1.5), rpy_deg=(0.0, pitch, 0.0))})
        rgb = render_camera(make_snapshot(), camera, rng()).rgb_HW3.astype(int)
        assert np.mean((rgb[..., 1] > rgb[..., 2]) == expected) > 0.98


def test_far_from_the_origin_the_picture_is_the_same() -> None:
    blocks = [Block((15.0, 3.0), yaw=0.3), Block((9.0, -4.0), class_name="pedestrian", size=(0.5, 0.5, 1.7))]
    shift = np.array([4096.0, -2048.0])  # a whole number of tiles, so that the grain is the same
    far = [Block(**{**b.__dict__, "center": tuple(np.array(b.center) + shift)}) for b in blocks]

    here = render_camera(make_snapshot(*blocks), CAMERA, rng()).rgb_HW3.astype(int)
    there = render_camera(make_snapshot(*far, pose=SE3.planar(*shift, 0.0)), CAMERA, rng()).rgb_HW3.astype(
        int
    )

    assert np.abs(here - there).max() <= 4


def test_the_same_seed_gives_the_same_picture_and_another_seed_other_noise() -> None:
    snapshot = make_snapshot(Block((15.0, 2.0)), road=straight_road())
    first, again, other = (render_camera(snapshot, CAMERA, rng(s), SMALL).rgb_HW3 for s in (1, 1, 2))

    assert first.shape == (128, 352, 3)
    np.testing.assert_array_equal(first, again)
    difference = first.astype(int) - other
    assert 1.0 < difference.std() < 8.0


def test_pictures_do_not_share_memory() -> None:
    snapshot = make_snapshot()
    first = render_camera(snapshot, CAMERA, rng()).rgb_HW3
    before = first.copy()
    second = render_camera(snapshot, CAMERA, rng(1)).rgb_HW3
    second[:] = 0

    np.testing.assert_array_equal(first, before)


def test_pixels_that_a_label_would_have_alone_are_counted_behind_occluders_too() -> None:
    near, far = Block((10.0, 0.0)), Block((20.0, 3.0))
    seen, alone = count_label_pixels(make_snapshot(near, far), CAMERA, SMALL)
    far_only = np.count_nonzero(render_ids(make_snapshot(far), CAMERA, SMALL) == 0)

    assert seen[0] == alone[0]
    assert alone[1] == far_only
    assert 0 < seen[1] < alone[1]
