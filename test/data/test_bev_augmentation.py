"""A mirrored or turned clip is true of itself; noise of poses and calibration is what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed; clips cannot be made into arrays")

import torch
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, rotation_from_rpy
from e2e_perception.core.network_config import BOX_FIELDS, EGO_FIELDS, RADAR_CHANNELS, NetworkConfig
from e2e_perception.core.trajectories import Route, base_from_route_coordinates, route_input
from e2e_perception.data.bev_augmentation import (
    INVARIANT,
    MOVED,
    BevAugmentation,
    mirrored,
    turned,
    with_bev_augmentation,
    with_calibration_noise,
    with_pose_noise,
)
from e2e_perception.data.dataset import Augmentation, augmented, clip_arrays
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.model.losses import _map_losses
from e2e_perception.model.planning import Vocabulary
from e2e_perception.model.targets import heat_targets
from e2e_perception.runtime import rasters

Arrays = dict[str, np.ndarray]
FED_BACK = {"track_tokens", "track_boxes", "track_valid", "bev_memory"}  # training feeds its own
seeds = pytest.mark.parametrize("seed", range(3))
PIXEL = 1e-2


def projection(rng: np.random.Generator, yaw: float) -> np.ndarray:
    """(3, 4) a camera somewhere on the robot that looks towards `yaw`, roughly level."""
    roll, pitch = rng.uniform(-0.05, 0.05, 2)
    body_from_base = rotation_from_rpy(roll, pitch, yaw).T
    optical = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]) @ body_from_base
    matrix = np.array([[50.0, 0.0, 47.0], [0.0, 52.0, 30.0], [0.0, 0.0, 1.0]])
    lens = rng.uniform((-0.5, -0.8, 1.0), (2.0, 0.8, 2.0))
    return np.asarray(matrix @ np.concatenate([optical, -(optical @ lens)[:, None]], 1))


def rich_arrays(seed: int, network: NetworkConfig = SMALL) -> Arrays:
    """A clip with something to the left that is not to the right, in every array."""
    rng = np.random.default_rng(seed)
    arrays = clip_arrays(synthetic_clip(network, seed=seed), network)
    num_frames, num_cameras = arrays["camera_valid"].shape
    for t in range(num_frames):
        for n, yaw in zip(range(num_cameras), (0.0, 1.0, -0.8), strict=True):
            arrays["image_from_base"][t, n] = projection(rng, yaw)
    for name in ("camera_valid", "radar_valid"):
        arrays[name] = (rng.random(arrays[name].shape) < 0.6).astype(np.float32)
    for name in ("lidar_raster", "radar_raster", "route", "futures", "ego_future"):
        arrays[name] = rng.normal(size=arrays[name].shape).astype(np.float32)
    arrays["ego_state"][:, : EGO_FIELDS.index("valid")] = rng.normal(size=(num_frames, len(EGO_FIELDS) - 1))
    arrays["cells_known"] = rng.random(arrays["cells_known"].shape) < 0.9
    yaws = rng.uniform(-np.pi, np.pi, arrays["boxes"].shape[:2])
    places = rng.uniform((-15.0, -15.0, 0.0), (47.0, 15.0, 2.0), (*yaws.shape, 3))
    boxes = dict(zip(BOX_FIELDS, np.moveaxis(arrays["boxes"], -1, 0), strict=True))
    boxes["x"][:], boxes["y"][:], boxes["z"][:] = np.moveaxis(places, -1, 0)
    boxes["sin_yaw"][:], boxes["cos_yaw"][:] = np.sin(yaws), np.cos(yaws)
    boxes["vx"][:], boxes["vy"][:] = rng.normal(size=(2, *yaws.shape))
    arrays["maps"] = (rng.random(arrays["maps"].shape) < 0.5).astype(np.float32)
    steps = rng.normal(size=(num_frames, 3)) * (1.0, 0.3, 0.1)
    thetas = [network.bev_grid.sampling_theta(SE2(*step)) for step in steps.tolist()]
    arrays["memory_from_base"], arrays["bev_theta"] = steps.astype(np.float32), np.stack(thetas)
    arrays["plan_costs"] = rng.random(arrays["plan_costs"].shape).astype(np.float32)
    return arrays


def pixels(image_from_base_34: np.ndarray, points_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) [px] and the depth (N,) [m] of points in the base frame."""
    rows = np.c_[points_N3, np.ones(len(points_N3))] @ image_from_base_34.astype(np.float64).T
    return rows[:, :2] / rows[:, 2:], rows[:, 2]


def corners(boxes_L10: np.ndarray) -> np.ndarray:
    """(L, 8, 3) [m] of boxes, bottom and top."""
    named = dict(zip(BOX_FIELDS, boxes_L10.T, strict=True))
    sizes = np.exp(np.stack([named["log_length"], named["log_width"]], -1))
    plane = footprint_corners_N42(
        np.stack([named["x"], named["y"]], -1), sizes, np.arctan2(named["sin_yaw"], named["cos_yaw"])
    )
    half = 0.5 * np.exp(named["log_height"])
    ends = [np.full((len(plane), 4), 1.0) * (named["z"] + sign * half)[:, None] for sign in (-1.0, 1.0)]
    return np.concatenate([np.concatenate([plane, z[..., None]], -1) for z in ends], 1)


def assert_close(a: Arrays, b: Arrays, atol: float = 1e-4) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(
            np.asarray(value, float), np.asarray(b[name], float), atol=atol, err_msg=name
        )


# ------------------------------------------------------------------ what there is


def test_every_array_of_a_clip_and_every_input_of_the_contract_is_named() -> None:
    arrays = clip_arrays(synthetic_clip(), SMALL)

    assert set(arrays) == INVARIANT | MOVED
    assert not INVARIANT & MOVED
    assert set(tensor_contract(SMALL).input_names) - FED_BACK <= INVARIANT | MOVED


@pytest.mark.parametrize(
    "change", [lambda a: mirrored(a, SMALL), lambda a: turned(a, SMALL, 0.1), lambda a: with_noise(a)]
)
def test_an_array_that_nobody_has_spoken_of_is_refused_and_so_is_one_that_is_missing(change: Any) -> None:
    arrays = clip_arrays(synthetic_clip(), SMALL)

    with pytest.raises(InputError, match=r"what becomes of 'ultrasonic_raster'.*put it into INVARIANT or"):
        change({**arrays, "ultrasonic_raster": np.zeros((4, 1, 32, 64))})
    with pytest.raises(InputError, match=r"clip has no 'route'"):
        change({name: value for name, value in arrays.items() if name != "route"})


def with_noise(arrays: Arrays, seed: int = 0, **chances: float) -> Arrays:
    return with_bev_augmentation(arrays, BevAugmentation(**chances), SMALL, np.random.default_rng(seed))


# ------------------------------------------------------------------ the mirror


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_mirroring_twice_is_the_identity_and_once_changes_what_has_a_side_and_nothing_else(seed: int) -> None:
    arrays = rich_arrays(seed)
    before = {name: value.copy() for name, value in arrays.items()}
    once = mirrored(arrays, SMALL)

    assert_close(arrays, before, atol=0.0)
    assert_close(mirrored(once, SMALL), arrays)
    changed = {name for name in arrays if not np.array_equal(once[name], arrays[name])}
    # One lidar has no other side; validities may be symmetric by chance.
    assert MOVED - {"lidar_valid", "camera_valid", "radar_valid"} <= changed <= MOVED
    assert all(once[name].dtype == value.dtype for name, value in arrays.items())


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_mirrored_box_is_seen_where_the_mirrored_picture_shows_it(seed: int) -> None:
    arrays = rich_arrays(seed)
    once = mirrored(arrays, SMALL)
    opposite = {"front": "front", "left": "right", "right": "left"}
    compared = 0
    for n, name in enumerate(SMALL.cameras):
        m = SMALL.cameras.index(opposite[name])
        np.testing.assert_array_equal(once["images"][:, m], arrays["images"][:, n, :, ::-1])
        np.testing.assert_array_equal(once["camera_valid"][:, m], arrays["camera_valid"][:, n])
        # Front left becomes front right, and so on; bottom and top stay.
        other_side = corners(once["boxes"][1]).reshape(-1, 2, 4, 3)[:, :, ::-1].reshape(-1, 3)
        uv, depth = pixels(arrays["image_from_base"][1, n], corners(arrays["boxes"][1]).reshape(-1, 3))
        got_uv, got_depth = pixels(once["image_from_base"][1, m], other_side)
        front = depth > 2.0
        compared += int(front.sum())
        expected = np.c_[SMALL.image_width - 1 - uv[:, 0], uv[:, 1], depth]
        np.testing.assert_allclose(np.c_[got_uv, got_depth][front], expected[front], atol=PIXEL, rtol=1e-4)
    assert compared > 50


@given(
    places=st.lists(st.tuples(st.floats(-15.9, 47.9), st.floats(-15.9, 15.9)), min_size=1, max_size=20),
    speed=st.floats(-20.0, 20.0),
)
@settings(max_examples=30, deadline=None)
def test_a_mirrored_raster_is_the_raster_of_mirrored_points(
    places: list[tuple[float, float]], speed: float
) -> None:
    # In the middle of cells: the edge of a cell belongs to the one on its left, in the mirror to the other.
    points = np.c_[np.floor(np.array(places)) + 0.5, np.full(len(places), 0.5)].astype(np.float32)
    heading = points[:, :2] / np.linalg.norm(points[:, :2], axis=-1, keepdims=True)
    doppler = (speed * heading).astype(np.float32)
    to_right = np.array([1.0, -1.0, 1.0], np.float32)
    ones = np.ones(len(points), np.float32)
    arrays = clip_arrays(synthetic_clip(), SMALL)
    arrays["lidar_raster"][0] = rasters.lidar_raster(points, ones, SMALL.grid)
    arrays["radar_raster"][0] = rasters.radar_raster(points, doppler, ones, SMALL.grid)
    once = mirrored(arrays, SMALL)

    lidar = rasters.lidar_raster(points * to_right, ones, SMALL.grid)
    radar = rasters.radar_raster(points * to_right, doppler * to_right[:2], ones, SMALL.grid)
    np.testing.assert_allclose(once["lidar_raster"][0], lidar, atol=1e-6)
    np.testing.assert_allclose(once["radar_raster"][0], radar, atol=1e-6)


def bend(rng: np.random.Generator) -> Route:
    """A road that turns to one side, beside the robot's own place."""
    s = np.arange(0.0, 150.0, 5.0)
    yaw = rng.uniform(-0.3, 0.3) + rng.uniform(-0.015, 0.015) * s
    steps = 5.0 * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    return Route(rng.uniform(-1.5, 1.5, 2) + np.cumsum(steps, 0))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_mirrored_route_input_is_that_of_the_mirrored_route(seed: int) -> None:
    rng = np.random.default_rng(seed)
    route = bend(rng)
    pose = SE2(3.0, float(rng.uniform(-1, 1)), float(rng.uniform(-0.3, 0.3)))
    other_side = route_input(Route(route.points_R2 * (1.0, -1.0)), SE2(pose.x, -pose.y, -pose.yaw))
    arrays = clip_arrays(synthetic_clip(), SMALL)
    of_route = route_input(route, pose)
    arrays["route"][0] = of_route.features_R4
    columns = [EGO_FIELDS.index(name) for name in ("lateral_offset", "heading_error")]
    arrays["ego_state"][0, columns] = of_route.lateral_offset, of_route.heading_error
    once = mirrored(arrays, SMALL)

    np.testing.assert_allclose(once["route"][0], other_side.features_R4, atol=1e-4)
    np.testing.assert_allclose(
        once["ego_state"][0, columns], [other_side.lateral_offset, other_side.heading_error], atol=1e-5
    )


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_mirrored_price_is_that_of_the_proposal_that_is_driven_in_the_mirror(seed: int) -> None:
    arrays = rich_arrays(seed)
    columns = [EGO_FIELDS.index(name) for name in ("speed", "lateral_offset", "heading_error")]
    arrays["ego_state"][:, columns] = np.random.default_rng(seed).uniform(
        (0.0, -2.0, -0.4), (15.0, 2.0, 0.4), (4, 3)
    )
    once = mirrored(arrays, SMALL)
    vocabulary = Vocabulary(SMALL)

    def proposals(of: Arrays) -> np.ndarray:
        return vocabulary(torch.from_numpy(of["ego_state"])).numpy()

    there, here = proposals(once), proposals(arrays)
    for t in range(4):
        points = [
            base_from_route_coordinates(sd, a["route"][t]) for sd, a in ((there[t], once), (here[t], arrays))
        ]
        for p in range(SMALL.num_plans):
            twin = np.abs(points[1] * (1.0, -1.0) - points[0][p]).max((1, 2)).argmin()
            np.testing.assert_allclose(points[0][p], points[1][twin] * (1.0, -1.0), atol=1e-3)
            same = np.isclose(here[t], here[t][twin], atol=1e-4).all((1, 2))  # standing still has twins
            assert once["plan_costs"][t, p].tolist() in arrays["plan_costs"][t, same].tolist()


def test_prices_of_a_vocabulary_without_the_other_side_are_gone() -> None:
    lopsided = SMALL.model_copy(update={"plan_offsets": (-1.8, 0.0, 3.5)})
    once = mirrored(rich_arrays(0, lopsided), lopsided)

    assert np.isnan(once["plan_costs"]).all()


def test_doppler_steps_and_turns_change_their_sign_across_and_not_along() -> None:
    arrays = rich_arrays(1)
    once = mirrored(arrays, SMALL)
    radar = {
        name: (once["radar_raster"][:, c], arrays["radar_raster"][:, c, ::-1])
        for c, name in enumerate(RADAR_CHANNELS)
    }

    for name, (got, there) in radar.items():
        np.testing.assert_array_equal(got, -there if name == "doppler_y" else there)
    np.testing.assert_array_equal(once["memory_from_base"], arrays["memory_from_base"] * (1, -1, -1))
    same = [EGO_FIELDS.index(name) for name in ("speed", "acceleration", "speed_limit", "valid")]
    np.testing.assert_array_equal(once["ego_state"][:, same], arrays["ego_state"][:, same])


def test_a_grid_that_is_not_symmetric_is_refused() -> None:
    network = SMALL.model_copy(
        update={"grid": BevGrid(x_min=-16.0, x_max=48.0, y_min=-8.0, y_max=24.0, resolution=1.0)}
    )
    with pytest.raises(InputError, match=r"y from -8 to 24 m, expected as much.*`mirror: false`"):
        mirrored(clip_arrays(synthetic_clip(network), network), network)


# ------------------------------------------------------------------ what the robot believes


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_no_chance_changes_nothing_and_no_deviation_changes_nothing(seed: int) -> None:
    arrays = rich_arrays(seed % 5)
    nothing = dict.fromkeys(
        ("ego_pose_metres", "ego_pose_degrees", "calibration_degrees", "calibration_metres"), 0.0
    )

    unchanged = with_noise(arrays, seed)
    assert all(unchanged[name] is value for name, value in arrays.items())
    assert_close(with_noise(arrays, seed, ego_pose=1, calibration=1, calibration_focal=0, **nothing), arrays)


def test_pose_noise_has_the_stated_deviation_and_memory_is_sampled_by_it() -> None:
    arrays = rich_arrays(0)
    noisy = [
        with_pose_noise(arrays, SMALL, np.random.default_rng(seed), metres=0.1, radians=0.02)
        for seed in range(200)
    ]
    errors = np.stack([n["memory_from_base"] - arrays["memory_from_base"] for n in noisy])

    np.testing.assert_allclose(errors.std((0, 1)), [0.1, 0.1, 0.02], rtol=0.1)
    np.testing.assert_allclose(errors.mean((0, 1)), 0.0, atol=0.02)
    one = noisy[3]
    for t, step in enumerate(one["memory_from_base"].tolist()):
        np.testing.assert_array_equal(one["bev_theta"][t], SMALL.bev_grid.sampling_theta(SE2(*step)))
    assert {n for n in arrays if one[n] is not arrays[n]} == {"memory_from_base", "bev_theta"}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_turned_shifted_and_zoomed_camera_projects_like_one_that_was_made_so(seed: int) -> None:
    arrays = rich_arrays(seed)
    arrays["camera_valid"][:] = 1.0
    rng = np.random.default_rng(seed)
    got = with_calibration_noise(arrays, rng, radians=0.02, metres=0.05, focal=0.02)["image_from_base"]
    again = np.random.default_rng(seed)
    turns, shifts = 0.02 * again.standard_normal((3, 3)), 0.05 * again.standard_normal((3, 3))
    scales = np.exp(0.02 * again.standard_normal(3))
    points = again.uniform((4.0, -4.0, 0.0), (30.0, 4.0, 2.0), (20, 3))
    for n in range(3):
        before = arrays["image_from_base"][0, n].astype(np.float64)
        lens = -np.linalg.solve(before[:, :3], before[:, 3])
        # The point is seen where the old camera sees it after the world was moved the other way round.
        moved = (points - lens - shifts[n]) @ rotation_from_rpy(*turns[n]).T + lens
        uv, depth = pixels(before, moved)
        middle = np.array([47.0, 30.0])
        seen, at_depth = pixels(got[0, n], points)
        front = depth > 1.0
        np.testing.assert_allclose(
            seen[front], (middle + scales[n] * (uv - middle))[front], atol=PIXEL, rtol=1e-3
        )
        np.testing.assert_allclose(at_depth, depth, atol=1e-3)


def test_a_camera_that_is_not_valid_keeps_its_placeholder() -> None:
    arrays = rich_arrays(0)
    arrays["camera_valid"][:] = 1.0
    arrays["camera_valid"][:, 1] = arrays["camera_valid"][2, 0] = 0.0
    arrays["image_from_base"][:, 1] = 0.0
    after = with_noise(arrays, calibration=1.0)["image_from_base"]

    np.testing.assert_array_equal(after[:, 1], 0.0)
    np.testing.assert_array_equal(after[2, 0], arrays["image_from_base"][2, 0])
    assert np.abs(after[[0, 1, 3], 0] - arrays["image_from_base"][[0, 1, 3], 0]).max((1, 2)).min() > 0.1


def test_one_change_is_the_same_whatever_the_chance_of_the_other() -> None:
    arrays = rich_arrays(0)
    alone, both = with_noise(arrays, 4, calibration=1.0), with_noise(arrays, 4, calibration=1.0, ego_pose=1.0)

    np.testing.assert_array_equal(alone["image_from_base"], both["image_from_base"])
    assert (alone["memory_from_base"] != both["memory_from_base"]).any()


def test_changes_come_as_often_as_their_chance_says_and_leave_other_augmentation_as_it_was() -> None:
    arrays = rich_arrays(0)
    bare = Augmentation(mirror=True, ego_noise=0.5)
    noisy = Augmentation(mirror=True, ego_noise=0.5, bev=BevAugmentation(ego_pose=0.3))
    came = 0
    for seed in range(200):
        a, b = (augmented(arrays, SMALL, how, np.random.default_rng(seed)) for how in (bare, noisy))
        np.testing.assert_array_equal(a["ego_state"], b["ego_state"])
        came += not np.array_equal(a["memory_from_base"], b["memory_from_base"])
    assert came / 200 == pytest.approx(0.3, abs=0.09)


@pytest.mark.parametrize("bad", [{"ego_pose": 1.1}, {"calibration_metres": -0.1}, {"flip": 0.5}])
def test_chances_and_deviations_are_what_they_can_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        BevAugmentation(**bad)


# ------------------------------------------------------------------ the turn


def by_identity(arrays: Arrays, t: int, name: str) -> dict[int, np.ndarray]:
    ids, present = arrays["ids"][t], arrays["present"][t]
    return {int(i): arrays[name][t, slot] for slot, i in enumerate(ids) if present[slot]}


@given(seed=st.integers(0, 2**32 - 1), angle=st.floats(-0.7, 0.7))
@settings(max_examples=15, deadline=None)
def test_turning_there_and_back_is_the_identity_but_for_who_left_the_grid(seed: int, angle: float) -> None:
    arrays = rich_arrays(seed)
    there = turned(arrays, SMALL, angle)
    back = turned(there, SMALL, -angle)

    for name in ("image_from_base", "route", "ego_future", "memory_from_base", "bev_theta", "ego_state"):
        np.testing.assert_allclose(back[name], arrays[name], atol=2e-4, rtol=1e-5, err_msg=name)
    for name in ("images", "plan_costs", "ego_state", "maps_valid"):
        assert there[name] is arrays[name]
    for t in range(4):
        for name in ("boxes", "futures", "class_ids", "weights"):
            was, got, returned = (by_identity(a, t, name) for a in (arrays, there, back))
            assert returned.keys() == got.keys() <= was.keys()
            for identity, row in returned.items():
                np.testing.assert_allclose(row, was[identity], atol=1e-4)
        inside = SMALL.grid.contains(there["boxes"][t, there["present"][t]][:, :2])
        assert inside.all()
        assert not np.diff(there["present"][t].astype(int)).max() > 0  # filled from the front
    assert ((there["ids"] < 0) == ~there["present"]).all()
    assert not there["weights"][~there["present"]].any()


@given(seed=st.integers(0, 2**32 - 1), angle=st.floats(-0.7, 0.7))
@settings(max_examples=15, deadline=None)
def test_a_turned_box_is_seen_at_the_same_pixels_and_a_plan_is_at_the_same_place(
    seed: int, angle: float
) -> None:
    arrays = rich_arrays(seed)
    arrays["route"][0] = route_input(bend(np.random.default_rng(seed)), SE2(2.0, 0.0, 0.0)).features_R4
    there = turned(arrays, SMALL, angle)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    was, got = by_identity(arrays, 0, "boxes"), by_identity(there, 0, "boxes")
    for n in range(len(SMALL.cameras)):
        for identity, box in got.items():
            uv, depth = pixels(arrays["image_from_base"][0, n], corners(was[identity][None])[0])
            seen, at_depth = pixels(there["image_from_base"][0, n], corners(box[None])[0])
            front = depth > 2.0
            np.testing.assert_allclose(seen[front], uv[front], atol=PIXEL, rtol=1e-4)
            np.testing.assert_allclose(at_depth, depth, atol=1e-3)
    sd = np.random.default_rng(seed).uniform((0.0, -3.0), (60.0, 3.0), (20, 2))
    points = [base_from_route_coordinates(sd, a["route"][0]) for a in (arrays, there)]
    np.testing.assert_allclose(points[1] @ rotation.T, points[0], atol=1e-3)


@given(
    places=st.lists(st.tuples(st.floats(-10.0, 10.0), st.floats(-10.0, 10.0)), min_size=1, max_size=20),
    angle=st.floats(-0.3, 0.3),
)
@settings(max_examples=30, deadline=None)
def test_what_stands_in_a_turned_raster_is_within_a_cell_of_the_raster_of_turned_points(
    places: list[tuple[float, float]], angle: float
) -> None:
    points = np.array(places)
    arrays = clip_arrays(synthetic_clip(), SMALL)
    arrays["radar_raster"][0] = 0.0
    rows, columns = (np.floor(points[:, ::-1]).astype(int) + 16).T
    direction = np.array([0.6, 0.8])
    # Blocks of 2 by 2: the nearest cell alone is taken, which may leave out a cell but never a block, since
    # no point is farther than 0.71 cells from a centre of the turned raster.
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        arrays["radar_raster"][0, 0, rows + row, columns + column] = 1.0
        arrays["radar_raster"][0, 1:3, rows + row, columns + column] = direction
    there = turned(arrays, SMALL, angle)["radar_raster"][0]
    centres = SMALL.grid.cell_centres_YX2()[there[0] > 0.0].astype(float)
    back = SE2(0.0, 0.0, angle).apply(centres)

    off = np.abs(back[:, None] - (np.floor(points) + 1.0)).max(-1)
    assert off.min(1).max() <= 1.0 + 1e-6
    assert off.min(0).max() <= 1.0 + 1e-6
    got = there[1:3, there[0] > 0.0].T
    np.testing.assert_allclose(got, np.tile(SE2(0, 0, -angle).rotate(direction), (len(got), 1)), atol=1e-6)


def test_what_comes_in_from_outside_the_grid_is_empty_and_not_known() -> None:
    arrays = rich_arrays(0)
    arrays["lidar_raster"][:] = 1.0
    arrays["cells_known"][:] = True
    there = turned(arrays, SMALL, 0.3)
    back = SE2(0.0, 0.0, 0.3)
    for grid, got in (
        (SMALL.grid, there["lidar_raster"][0, 0] > 0),
        (SMALL.bev_grid, there["cells_known"][0]),
    ):
        inside = grid.contains(back.apply(grid.cell_centres_YX2()))
        assert 0.5 < inside.mean() < 0.95
        np.testing.assert_array_equal(got, inside)


def test_the_losses_do_not_ask_about_cells_that_are_not_known() -> None:
    arrays = rich_arrays(0)
    there = turned(arrays, SMALL, 0.3)
    labels = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in there.items()}
    centres = torch.from_numpy(SMALL.bev_grid.cell_centres_YX2())
    targets = heat_targets(labels, SMALL.bev_grid, centres)
    assert targets.ignore_BYX[~labels["cells_known"]].all()

    logits = torch.zeros(4, 5, *SMALL.bev_grid.shape)
    elsewhere = torch.where(labels["cells_known"][:, None], logits, torch.full_like(logits, 7.0))
    elsewhere[:, 3:] = 0.0
    losses = [_map_losses(x, labels, centres)["maps"].item() for x in (logits, elsewhere)]
    everywhere = {**labels, "cells_known": torch.ones_like(labels["cells_known"])}
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert _map_losses(elsewhere, everywhere, centres)["maps"].item() > 1.2 * losses[0]
