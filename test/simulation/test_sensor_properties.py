"""What must hold of the sensor models in any scene: five properties, over random worlds and poses.

Distances of 5 standard deviations are exceeded by one in 1.7 million draws; a little slack keeps that from
being a failure.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensor_scenes import CAMERA, LIDAR, RADAR, Block, make_snapshot, surface_distances
from shapely.geometry import Polygon

from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Camera, Mount
from e2e_perception.core.samples import PointsSample
from e2e_perception.simulation.camera import count_label_pixels, render_camera_with_ids, render_ids
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.radar import reflections, simulate_radar
from e2e_perception.simulation.scene import Conditions, Snapshot
from e2e_perception.simulation.solid_geometry import CORNER_SIGNS_83
from e2e_perception.simulation.visibility import (
    ID_SIZE,
    MIN_LIDAR_RETURNS,
    MIN_PIXELS,
    visibility,
    within_sight,
)
from e2e_perception.simulation.weather import visible_range

SMALL = CAMERA.model_copy(
    update={"width": 352, "height": 128, "fx_px": 176.0, "fy_px": 176.0, "cx_px": 175.5, "cy_px": 63.5}
)
NEAR = 0.2  # [m], the camera's near plane

worlds = st.lists(
    st.builds(
        Block,
        center=st.tuples(st.floats(-45, 45), st.floats(-45, 45)),
        size=st.tuples(st.floats(0.3, 30.0), st.floats(0.3, 4.0), st.floats(0.3, 5.0)),
        yaw=st.floats(-3.2, 3.2),
        velocity=st.tuples(st.floats(-25, 25), st.floats(-25, 25)),
        class_name=st.sampled_from(["car", "truck", "pedestrian", "cyclist", None]),
        bottom=st.sampled_from([0.0, 0.0, 0.4, 3.0]),
    ),
    max_size=8,
)
crowds_ahead = st.lists(
    st.builds(
        Block,
        center=st.tuples(st.floats(8, 40), st.floats(-10, 10)),
        size=st.tuples(st.floats(1.0, 12.0), st.floats(1.0, 4.0), st.floats(1.0, 5.0)),
        yaw=st.floats(-3.2, 3.2),
    ),
    min_size=4,
    max_size=8,
)
poses = st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000), st.floats(-3.2, 3.2))
weathers = st.builds(
    Conditions,
    brightness=st.floats(0.1, 1.0),
    haze=st.sampled_from([0.0, 0.001, 0.01, 0.06, 0.3]),
    rain=st.sampled_from([0.0, 3.0, 50.0]),
    glare=st.sampled_from([0.0, 1.0]),
    sun=st.tuples(st.floats(-3.2, 3.2), st.floats(0.0, 0.7)),
)
seeds = st.integers(0, 2**32 - 1)
mounts = st.builds(
    Mount,
    xyz=st.tuples(st.floats(-1, 2), st.floats(-1, 1), st.floats(0.6, 2.5)),
    rpy_deg=st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.floats(-180, 180)),
)


def placed(
    world: list[Block],
    pose: tuple[float, float, float],
    *,
    conditions: Conditions | None = None,
    speed: float = 0.0,
    yaw_rate: float = 0.0,
) -> Snapshot:
    """The world as seen from the robot, moved with the robot to a pose far away."""
    odom_from_base = SE3.planar(*pose)
    turn = odom_from_base.rotation[:2, :2]
    moved = []
    for block in world:
        x, y, _ = odom_from_base.apply((*block.center, 0.0))
        vx, vy = turn @ np.array(block.velocity)
        moved.append(
            dataclasses.replace(
                block, center=(float(x), float(y)), yaw=block.yaw + pose[2], velocity=(float(vx), float(vy))
            )
        )
    return make_snapshot(*moved, pose=odom_from_base, conditions=conditions, speed=speed, yaw_rate=yaw_rate)


def points_odom(sample: PointsSample, odom_from_sensor: SE3) -> NDArray[np.float64]:
    return odom_from_sensor.apply(np.stack([sample.fields[axis] for axis in "xyz"], axis=-1))


def without_ground(snapshot: Snapshot, points_N3: NDArray[np.float64], row: int) -> NDArray[np.float64]:
    """(N,) [m] to the surface of one labelled solid."""
    solids = snapshot.solids
    mine = np.flatnonzero(solids.labels_N == row)
    fields = {f.name: getattr(solids, f.name)[mine] for f in dataclasses.fields(solids)}
    alone = dataclasses.replace(snapshot, solids=type(solids)(**fields))
    lifted = points_N3.copy()
    distances = surface_distances(lifted, alone)
    # Where the ground is nearer than the box the distance is that of the ground.
    near_ground = np.abs(points_N3[:, 2]) <= distances + 1e-9
    return np.where(near_ground, 0.0, distances)


def box_corners_odom(snapshot: Snapshot, solid: int) -> NDArray[np.float64]:
    solids = snapshot.solids
    local = 0.5 * CORNER_SIGNS_83 * solids.sizes_N3[solid]
    return SE3.planar(0.0, 0.0, float(solids.yaws_N[solid])).apply(local) + solids.centers_N3[solid]


def line_of_sight_is_free(
    snapshot: Snapshot, eye: NDArray[np.float64], points_N3: NDArray[np.float64], slack: float
) -> NDArray[np.bool_]:
    """(N,) whether no solid, made smaller by `slack` [m] all around, is met before each point."""
    free = np.ones(len(points_N3), np.bool_)
    solids = snapshot.solids
    for i in range(len(solids)):
        half = 0.5 * solids.sizes_N3[i] - slack
        if (half <= 0.0).any():
            continue
        c, s = np.cos(solids.yaws_N[i]), np.sin(solids.yaws_N[i])
        box_from_odom = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        o = box_from_odom @ (eye - solids.centers_N3[i])
        if (np.abs(o) <= half + slack).all():
            continue  # the sensor is inside: it does not see this one
        d = (points_N3 - eye) @ box_from_odom.T
        d = np.where(np.abs(d) < 1e-12, 1e-12, d)
        ends = np.stack([(sign * half - o) / d for sign in (-1, 1)])
        enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
        free &= ~((enter <= leave) & (enter > 0.0) & (enter < 1.0))
    return free


# ------------------------------------------------------------------ 1: lidar returns lie on surfaces


@settings(max_examples=60, deadline=None)
@given(worlds, poses, mounts, st.floats(0.005, 0.1), seeds)
def test_lidar_returns_lie_on_surfaces_within_range_noise(
    world: list[Block], pose: tuple[float, float, float], mount: Mount, noise: float, seed: int
) -> None:
    lidar = LIDAR.model_copy(update={"mount": mount, "range_noise": noise, "azimuth_step_deg": 1.0})
    snapshot = placed(world, pose)
    sample, labels = simulate_lidar_with_labels(snapshot, lidar, np.random.default_rng(seed))

    found = points_odom(sample, snapshot.odom_from_base @ lidar.base_from_sensor)
    assert surface_distances(found, snapshot).max(initial=0.0) < 5.0 * noise + 5e-3
    for row in np.unique(labels[labels >= 0]).tolist():
        assert without_ground(snapshot, found[labels == row], row).max() < 5.0 * noise + 5e-3


@settings(max_examples=40, deadline=None)
@given(worlds, poses, weathers, seeds)
def test_labelled_returns_lie_on_their_agent_in_any_weather_and_drops_never_behind_a_surface(
    world: list[Block], pose: tuple[float, float, float], conditions: Conditions, seed: int
) -> None:
    lidar = LIDAR.model_copy(update={"azimuth_step_deg": 1.0})
    snapshot = placed(world, pose, conditions=conditions)
    sample, labels = simulate_lidar_with_labels(snapshot, lidar, np.random.default_rng(seed))
    odom_from_lidar = snapshot.odom_from_base @ lidar.base_from_sensor
    found = points_odom(sample, odom_from_lidar)

    for row in np.unique(labels[labels >= 0]).tolist():
        assert without_ground(snapshot, found[labels == row], row).max() < 5e-3
    assert (found[:, 2] > -5e-3).all()
    eye = odom_from_lidar.translation
    nearer = eye + (found - eye) * (1.0 - 1e-3)
    assert line_of_sight_is_free(snapshot, eye, nearer, 0.01).all()
    assert len(
        np.unique(np.round((found - eye) / np.linalg.norm(found - eye, axis=1)[:, None], 4), axis=0)
    ) == len(found)  # one return per ray


# ------------------------------------------------------------------ 2: pictures agree with the camera model


@settings(max_examples=60, deadline=None)
@given(worlds, poses, mounts)
def test_pixels_of_a_box_lie_within_the_hull_of_its_projected_corners(
    world: list[Block], pose: tuple[float, float, float], mount: Mount
) -> None:
    camera = SMALL.model_copy(update={"mount": mount})
    snapshot = placed(world, pose)
    ids = render_ids(snapshot, camera)
    image_from_odom = camera.image_from_base @ snapshot.odom_from_base.inverse().matrix

    for solid in np.flatnonzero(snapshot.solids.labels_N >= 0).tolist():
        corners = box_corners_odom(snapshot, solid)
        homogeneous = corners @ image_from_odom[:, :3].T + image_from_odom[:, 3]
        if (homogeneous[:, 2] < NEAR).any():
            continue  # a hull in the image exists only for what is all ahead
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        rows, columns = np.nonzero(ids == snapshot.solids.labels_N[solid])
        if not len(rows):
            continue
        hull = cv2.convexHull(np.clip(pixels, -1e5, 1e5).astype(np.float32))
        outside = [
            -cv2.pointPolygonTest(hull, (float(u), float(v)), True)
            for u, v in zip(columns, rows, strict=True)
        ]
        # Filled outlines include the pixels that they pass through.
        assert max(outside) <= 1.0


@settings(max_examples=40, deadline=None)
@given(worlds, poses, weathers, seeds)
def test_ids_do_not_depend_on_the_weather(
    world: list[Block], pose: tuple[float, float, float], conditions: Conditions, seed: int
) -> None:
    clear, rough = placed(world, pose), placed(world, pose, conditions=conditions)
    image, ids = render_camera_with_ids(rough, SMALL, np.random.default_rng(seed))

    np.testing.assert_array_equal(ids, render_ids(clear, SMALL))
    assert image.rgb_HW3.shape == (128, 352, 3)
    assert image.rgb_HW3.dtype == np.uint8


# ------------------------------------------------------------------ 3: Doppler is relative velocity


@settings(max_examples=60, deadline=None)
@given(worlds, poses, mounts, st.floats(-5, 30), st.floats(-0.8, 0.8), st.sampled_from([0.0, 50.0]), seeds)
def test_doppler_of_every_return_is_that_of_an_object_at_its_place(
    world: list[Block],
    pose: tuple[float, float, float],
    mount: Mount,
    speed: float,
    yaw_rate: float,
    rain: float,
    seed: int,
) -> None:
    radar = RADAR.model_copy(update={"mount": mount, "doppler_noise": 0.1})
    snapshot = placed(world, pose, conditions=Conditions(rain=rain), speed=speed, yaw_rate=yaw_rate)
    sample = simulate_radar(snapshot, radar, np.random.default_rng(seed))
    base_from_radar = radar.base_from_sensor
    odom_from_radar = snapshot.odom_from_base @ base_from_radar
    found = points_odom(sample, odom_from_radar)

    # The radar's own velocity over ground, derived without the model: rigid body about base_link.
    lever = snapshot.odom_from_base.rotation @ base_from_radar.translation
    own = snapshot.odom_from_base.rotation @ snapshot.velocity + yaw_rate * np.array(
        [-lever[1], lever[0], 0.0]
    )
    sight = (found - odom_from_radar.translation) / np.linalg.norm(
        found - odom_from_radar.translation, axis=1, keepdims=True
    )
    for point, direction, doppler in zip(found, sight, sample.fields["velocity"], strict=True):
        expected = []
        for i in range(len(snapshot.solids)):
            only = {
                f.name: getattr(snapshot.solids, f.name)[[i]] for f in dataclasses.fields(snapshot.solids)
            }
            alone = dataclasses.replace(snapshot, solids=type(snapshot.solids)(**only))
            if surface_distances(point[None], alone)[0] < 5e-3:
                velocity = np.array([*snapshot.solids.velocities_N2[i], 0.0])
                expected.append((velocity - own) @ direction)
        assert expected
        assert min(abs(doppler - e) for e in expected) < 5.0 * 0.1 + 0.05


# ------------------------------------------------------------------ 4: nothing is seen through an occluder


@settings(max_examples=50, deadline=None)
@given(worlds, poses, seeds)
def test_nothing_is_met_by_a_lidar_through_another_solid(
    world: list[Block], pose: tuple[float, float, float], seed: int
) -> None:
    lidar = LIDAR.model_copy(update={"azimuth_step_deg": 1.0})
    snapshot = placed(world, pose)
    sample, _ = simulate_lidar_with_labels(snapshot, lidar, np.random.default_rng(seed))
    odom_from_lidar = snapshot.odom_from_base @ lidar.base_from_sensor
    found, eye = points_odom(sample, odom_from_lidar), odom_from_lidar.translation

    assert line_of_sight_is_free(snapshot, eye, eye + (found - eye) * (1.0 - 1e-3), 0.01).all()


@settings(max_examples=50, deadline=None)
@given(crowds_ahead, poses, seeds)
def test_no_radar_echo_comes_through_another_solid(
    world: list[Block], pose: tuple[float, float, float], seed: int
) -> None:
    snapshot = placed(world, pose)
    odom_from_radar = snapshot.odom_from_base @ RADAR.base_from_sensor
    echoes = reflections(snapshot, RADAR, np.random.default_rng(seed))
    eye = odom_from_radar.translation
    found = odom_from_radar.apply(echoes.points_K3)

    assert line_of_sight_is_free(snapshot, eye, eye + (found - eye) * (1.0 - 1e-3), 0.01).all()


@settings(max_examples=50, deadline=None)
@given(
    worlds,
    poses,
    st.floats(4.0, 9.0),
    st.floats(-0.4, 0.4),
    st.sampled_from(["camera", "lidar", "radar"]),
    seeds,
)
def test_a_wall_that_fills_the_view_hides_all_that_is_behind_it(
    world: list[Block], pose: tuple[float, float, float], x: float, yaw: float, kind: str, seed: int
) -> None:
    wall = Block((x, 0.0), (0.3, 200.0, 60.0), yaw=yaw, class_name=None)
    front = SE3.planar(x, 0.0, yaw).inverse()
    behind = [
        block
        for block in world
        if (_footprint(block, front)[:, 0] > 0.5).all()
        and block.class_name is not None
        and _footprint(block, SE3.identity())[:, 0].min() > 3.0
    ]
    assume(behind)
    snapshot = placed([*behind, wall], pose)
    rng = np.random.default_rng(seed)

    if kind == "camera":
        assert not (render_ids(snapshot, SMALL) >= 0).any()
    elif kind == "lidar":
        assert not (simulate_lidar_with_labels(snapshot, LIDAR, rng)[1] >= 0).any()
    else:
        ahead = RADAR.model_copy(update={"mount": Mount(xyz=(3.0, 0.0, 0.5))})
        echoes = reflections(snapshot, ahead, rng)
        assert (snapshot.solids.labels_N[echoes.solids_K] == -1).all()


def _footprint(block: Block, a_from_base: SE3) -> NDArray[np.float64]:
    corners = footprint_corners_N42(
        np.array([block.center]), np.array([block.size[:2]]), np.array([block.yaw])
    )[0]
    return a_from_base.apply(np.concatenate([corners, np.zeros((4, 1))], axis=1))[:, :2]


@settings(max_examples=40, deadline=None)
@given(worlds, poses)
def test_each_labelled_pixel_is_met_by_a_free_ray(
    world: list[Block], pose: tuple[float, float, float]
) -> None:
    snapshot = placed(_apart(world), pose)
    ids = render_ids(snapshot, SMALL)
    odom_from_camera = snapshot.odom_from_base @ SMALL.base_from_sensor
    eye = odom_from_camera.translation

    for row in np.unique(ids[ids >= 0]).tolist():
        # Pixels along edges may be covered in part only.
        inner = cv2.erode((ids == row).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0)
        rows, columns = np.nonzero(inner)
        rays = np.stack([columns, rows, np.ones(len(rows))], axis=-1) @ np.linalg.inv(SMALL.intrinsics).T
        directions = rays @ odom_from_camera.rotation.T
        solid = int(np.flatnonzero(snapshot.solids.labels_N == row)[0])
        entries = _entries(snapshot, solid, eye, directions)
        assert np.isfinite(entries).all()
        points = eye + directions * entries[:, None] * (1.0 - 1e-6)
        assert line_of_sight_is_free(snapshot, eye, points, 0.01).all()


def _apart(world: list[Block]) -> list[Block]:
    """Without those that touch an earlier one or the lens; which of two boxes in each other hides is open."""
    kept: list[Block] = []
    taken = [Polygon([(1.4, -0.3), (2.0, -0.3), (2.0, 0.3), (1.4, 0.3)])]
    for block in world:
        footprint = Polygon(_footprint(block, SE3.identity()))
        if all(footprint.distance(other) > 0.02 for other in taken):
            kept.append(block)
            taken.append(footprint)
    return kept


def _entries(
    snapshot: Snapshot, solid: int, eye: NDArray[np.float64], directions_N3: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) multiples of the directions at which rays enter a solid; infinite where they miss it."""
    solids = snapshot.solids
    c, s = np.cos(solids.yaws_N[solid]), np.sin(solids.yaws_N[solid])
    box_from_odom = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    o = box_from_odom @ (eye - solids.centers_N3[solid])
    d = directions_N3 @ box_from_odom.T
    d = np.where(np.abs(d) < 1e-12, 1e-12, d)
    half = 0.5 * solids.sizes_N3[solid]
    ends = np.stack([(sign * half - o) / d for sign in (-1, 1)])
    enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
    return np.where((enter <= leave) & (leave > 0.0), enter, np.inf)


# ------------------------------------------------------------------ 5: visibility agrees with the counts


@settings(max_examples=100, deadline=None)
@given(worlds, poses, weathers, seeds)
def test_visibility_is_what_returns_and_pixels_say(
    world: list[Block], pose: tuple[float, float, float], conditions: Conditions, seed: int
) -> None:
    lidar = LIDAR.model_copy(update={"azimuth_step_deg": 1.0})
    rear = CAMERA.model_copy(update={"mount": Mount(xyz=(-1.0, 0.0, 1.5), rpy_deg=(0.0, 0.0, 180.0))})
    cameras: tuple[Camera, ...] = (CAMERA, rear)
    snapshot = placed(world, pose, conditions=conditions)
    labels = simulate_lidar_with_labels(snapshot, lidar, np.random.default_rng(seed))[1]
    found = visibility(snapshot, lidar_labels=[labels], cameras=cameras)

    assert len(found.visible_L) == len(snapshot.boxes)
    in_sight = within_sight(snapshot)
    ids = [render_ids(snapshot, camera, ID_SIZE) for camera in cameras]
    for row in range(len(snapshot.boxes)):
        returns = np.count_nonzero(labels == row)
        pixels = max(np.count_nonzero(i == row) for i in ids) if in_sight[row] else 0
        alone = max(count_label_pixels(snapshot, camera, ID_SIZE)[1][row] for camera in cameras)
        assert found.lidar_returns_L[row] == returns
        assert found.pixels_L[row] == pixels <= alone
        assert found.visible_L[row] == (returns >= MIN_LIDAR_RETURNS or pixels >= MIN_PIXELS)
        assert (found.fractions_L[row] > 0.0) == (pixels > 0)
        assert 0.0 <= found.fractions_L[row] <= 1.0
        center = snapshot.boxes.centers_N3[row, :2] - snapshot.odom_from_base.translation[:2]
        reach = 0.5 * np.hypot(*snapshot.boxes.sizes_N3[row, :2])
        if np.hypot(*center) - reach > visible_range(conditions) + 0.01:
            assert pixels == 0
