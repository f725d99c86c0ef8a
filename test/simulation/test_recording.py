"""Sensor messages as a robot records them, and clips whose labels agree with the world."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
from synthetic import SMALL

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, EGO_FIELDS, SIZES
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import Camera, Rig, load_rig
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.labels import road_maps
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.randomization import network_sized, randomized_rig
from e2e_perception.simulation.recording import odometry, record_clips, sensor_messages, true_boxes
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.traffic import simulate_scenario

MILLISECOND = 1_000_000
X, Y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")
VX, VY = BOX_FIELDS.index("vx"), BOX_FIELDS.index("vy")
RECURRENT = {"bev_memory", "bev_theta", "memory_valid", "track_tokens", "track_boxes", "track_valid"}


@lru_cache(maxsize=1)
def rig() -> Rig:
    return load_rig(config_dir() / "rigs" / "tiny.yaml")


@lru_cache(maxsize=8)
def scenario(kind: str = "two_way", seed: int = 5) -> Scenario:
    return simulate_scenario(kind, seed, 3.0)


@lru_cache(maxsize=8)
def clips(kind: str = "two_way", seed: int = 5, randomize: bool = True) -> tuple[Clip, ...]:
    made = record_clips(
        scenario(kind, seed), rig(), SMALL, clip_length=4, stride_s=0.7, seed=2, randomize=randomize
    )
    return tuple(made)


def columns(clip: Clip) -> list[np.ndarray]:
    return [clip.ids_TB[t] >= 0 for t in range(len(clip))]


# ------------------------------------------------------------------ messages


def test_messages_come_in_order_of_arrival_at_each_sensors_rate() -> None:
    short = dataclasses.replace(scenario(), end_ns=scenario().start_ns + 1_000 * MILLISECOND)
    messages = list(sensor_messages(short, rig(), seed=1))
    arrivals = [m.arrival_ns for m in messages]
    assert arrivals == sorted(arrivals)
    for sensor in rig().sensors:
        own = [m for m in messages if m.sensor == sensor.name]
        stamps = np.array([m.stamp_ns for m in own])
        assert abs(len(own) - sensor.rate_hz) <= 1
        np.testing.assert_allclose(np.diff(stamps), 1e9 / sensor.rate_hz, atol=1)
        latencies = (np.array([m.arrival_ns for m in own]) - stamps) / MILLISECOND
        assert abs(latencies.mean() - sensor.latency_ms) < 4 * sensor.jitter_ms / np.sqrt(len(own)) + 0.1
        expected = ImageSample if isinstance(sensor, Camera) else PointsSample
        assert all(isinstance(m.payload, expected) for m in own)


def test_sensors_at_the_leaders_rate_keep_their_offset_to_it() -> None:
    short = dataclasses.replace(scenario(), end_ns=scenario().start_ns + 350 * MILLISECOND)
    messages = list(sensor_messages(short, rig(), seed=1))
    lidar = np.array([m.stamp_ns for m in messages if m.sensor == rig().lidars[0].name])
    for camera in rig().cameras:
        for stamp_ns in [m.stamp_ns for m in messages if m.sensor == camera.name]:
            offsets = (stamp_ns - lidar) / MILLISECOND
            # The last picture may belong to a sweep after the end.
            offsets = np.append(offsets, offsets[-1] - 100.0)
            assert np.abs(offsets - camera.offset_ms).min() < 1e-6


def test_the_same_seed_gives_the_same_messages() -> None:
    short = dataclasses.replace(scenario(), end_ns=scenario().start_ns + 150 * MILLISECOND)
    first, second = (list(sensor_messages(short, rig(), seed=9)) for _ in range(2))
    assert [(m.sensor, m.stamp_ns, m.arrival_ns) for m in first] == [
        (m.sensor, m.stamp_ns, m.arrival_ns) for m in second
    ]
    for a, b in zip(first, second, strict=True):
        if isinstance(a.payload, ImageSample):
            assert np.array_equal(a.payload.rgb_HW3, b.payload.rgb_HW3)
        else:
            assert all(np.array_equal(v, b.payload.fields[k]) for k, v in a.payload.fields.items())


def test_odometry_and_true_boxes_cover_the_scenario() -> None:
    states = list(odometry(scenario(), rate_hz=20.0))
    assert len(states) == 61
    assert states[0].stamp_ns == scenario().start_ns
    assert states[-1].stamp_ns == scenario().end_ns
    labelled = list(true_boxes(scenario(), rig()))
    assert [stamp_ns for stamp_ns, _ in labelled][:: len(labelled) - 1] == [
        states[0].stamp_ns,
        states[-1].stamp_ns,
    ]
    stamp_ns, boxes = labelled[10]
    snapshot = scenario().snapshot(stamp_ns)
    where = [snapshot.boxes.ids_N.tolist().index(i) for i in boxes.ids_N]
    back = snapshot.odom_from_base.apply(boxes.centers_N3)
    np.testing.assert_allclose(back, snapshot.boxes.centers_N3[where], atol=1e-3)
    assert set(boxes.scores_N.tolist()) <= {0.0, 1.0}
    assert boxes.scores_N.sum() > 0


# ------------------------------------------------------------------ clips


def test_clips_hold_the_contracts_inputs() -> None:
    contract = {spec.name: spec for spec in tensor_contract(SMALL).inputs if spec.name not in RECURRENT}
    for clip in clips():
        assert set(clip.inputs) == set(contract)
        for name, value in clip.inputs.items():
            assert value.shape == (4, *contract[name].shape[1:])
            half = name in ("lidar_raster", "radar_raster")
            assert str(value.dtype) == ("float16" if half else contract[name].dtype)
            assert np.isfinite(value).all()
        for name in ("camera_valid", "lidar_valid", "radar_valid"):
            assert np.all(clip.inputs[name] == 1.0), f"{name}: a sensor was not usable"


def test_clips_are_reproducible() -> None:
    again = tuple(record_clips(scenario(), rig(), SMALL, clip_length=4, stride_s=0.7, seed=2))
    assert len(again) == len(clips()) == 4
    for a, b in zip(clips(), again, strict=True):
        assert a.scenario == b.scenario == "two_way/5"
        assert all(np.array_equal(value, b.arrays()[name]) for name, value in a.arrays().items())


def test_label_velocities_are_the_motion_of_the_labels() -> None:
    compared = 0
    for clip in clips():
        for t in range(1, len(clip)):
            previous_from_base = SE2(*clip.memory_from_base_T3[t].tolist())
            before = {int(i): row for i, row in zip(clip.ids_TB[t - 1], clip.boxes_TB10[t - 1], strict=True)}
            for identity, row in zip(clip.ids_TB[t].tolist(), clip.boxes_TB10[t], strict=True):
                if identity < 0 or identity not in before:
                    continue
                moved = previous_from_base.apply(row[[X, Y]]) - before[identity][[X, Y]]
                velocity = previous_from_base.rotate(row[[VX, VY]])
                np.testing.assert_allclose(moved / SMALL.frame_period_s, velocity, atol=0.6)
                compared += 1
    assert compared > 20


def test_futures_are_where_the_object_is_later() -> None:
    clip, made = clips()[0], scenario()
    for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
        base_from_odom = made.ego_at(stamp_ns).odom_from_base.inverse().planar_part()
        present = clip.ids_TB[t] >= 0
        assert present.any()
        assert clip.futures_valid_TBS[t, present].all()
        assert not clip.futures_valid_TBS[t, ~present].any()
        for k, ahead_s in enumerate(SMALL.times_T):
            later_ns = stamp_ns + round(ahead_s * 1e9)
            poses, _ = made.objects_at(later_ns)
            expected = base_from_odom.apply(poses[clip.ids_TB[t, present], :2])
            np.testing.assert_allclose(clip.futures_TBS2[t, present, k], expected, atol=1e-3)
            pose = base_from_odom @ made.ego_at(later_ns).odom_from_base.planar_part()
            np.testing.assert_allclose(clip.ego_future_TS3[t, k], (pose.x, pose.y, pose.yaw), atol=1e-4)


@lru_cache(maxsize=1)
def with_obstacle() -> Scenario:
    """Something lies in the lane, 50 m ahead."""
    made = simulate_scenario("blocked_lane", 22, 4.0)
    assert len(made.obstacles_O5) == 1
    return made


def test_what_lies_in_the_way_is_labelled_seen_and_stays_where_it_is() -> None:
    made = with_obstacle()
    num_agents = len(made.sizes_N3)
    x, y, yaw, length, width = made.obstacles_O5[0]
    seen = False
    for clip in record_clips(made, rig(), SMALL, clip_length=4, stride_s=0.5, randomize=False):
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            (row,) = np.flatnonzero(clip.ids_TB[t] == num_agents)
            assert CLASSES[clip.class_ids_TB[t, row]] == "obstacle"
            here = made.ego_at(stamp_ns).odom_from_base.planar_part()
            box = dict(zip(BOX_FIELDS, clip.boxes_TB10[t, row].tolist(), strict=True))
            np.testing.assert_allclose(here.apply(np.array([box["x"], box["y"]])), (x, y), atol=1e-3)
            turned = np.arctan2(box["sin_yaw"], box["cos_yaw"]) + here.yaw - yaw
            assert abs(np.angle(np.exp(1j * turned))) < 1e-4
            assert np.allclose((box["log_length"], box["log_width"]), np.log((length, width)), atol=1e-5)
            assert box["vx"] == box["vy"] == 0.0
            assert clip.futures_valid_TBS[t, row].all()
            np.testing.assert_allclose(
                clip.futures_TBS2[t, row], np.tile((box["x"], box["y"]), (SMALL.horizon_steps, 1)), atol=1e-3
            )
            seen |= bool(clip.visible_TB[t, row])
    assert seen


def test_returns_of_what_lies_in_the_way_are_on_its_box() -> None:
    made = with_obstacle()
    snapshot = made.snapshot(made.end_ns)
    (row,) = np.flatnonzero(snapshot.boxes.ids_N == len(made.sizes_N3))
    sample, rows_K = simulate_lidar_with_labels(snapshot, rig().lidars[0], np.random.default_rng(0))
    points = np.stack([sample.fields[name] for name in "xyz"], axis=1)[rows_K == row]
    assert len(points) >= 3
    odom = (snapshot.odom_from_base @ rig().lidars[0].mount.base_from_body).apply(points)
    gap = np.abs(odom[:, :2] - snapshot.boxes.centers_N3[row, :2]).max(axis=1)
    assert np.all(gap < 0.5 * np.hypot(*snapshot.boxes.sizes_N3[row, :2]) + 0.2)


def test_marks_of_obstacles_fit_the_solids() -> None:
    cast = with_obstacle()._cast
    with pytest.raises(InputError, match=r"2 marks of obstacles for \d+ solids"):
        dataclasses.replace(cast, obstacles_C=np.ones(2, np.bool_))


def test_a_collision_or_a_swerve_takes_the_robots_path_out_of_the_labels() -> None:
    made = dataclasses.replace(scenario(), collided=False, swerves=())
    swerve = (made.start_ns + 2_000 * MILLISECOND, made.start_ns + 2_500 * MILLISECOND)
    free, swerving, crashed = (
        next(record_clips(s, rig(), SMALL, clip_length=2, seed=2))
        for s in (
            made,
            dataclasses.replace(made, swerves=(swerve,)),
            dataclasses.replace(made, collided=True),
        )
    )
    assert free.ego_future_valid_TS.all()
    assert not crashed.ego_future_valid_TS.any()
    # The first frame is 0.4 s after the start: three steps of half a second end before the swerve begins.
    assert swerving.ego_future_valid_TS[0].tolist() == [True] * 3 + [False] * 5
    assert crashed.futures_valid_TBS.any()


def test_what_no_sensor_has_seen_yet_weighs_nothing() -> None:
    hidden = 0
    for clip in (*clips(), *clips("crossing", 3)):
        seen: set[int] = set()
        for t in range(len(clip)):
            present = clip.ids_TB[t] >= 0
            assert not (clip.visible_TB[t] & ~present).any()
            seen |= set(clip.ids_TB[t, clip.visible_TB[t]].tolist())
            for identity, weight in zip(
                clip.ids_TB[t, present].tolist(), clip.weights_TB[t, present], strict=True
            ):
                assert weight == float(identity in seen)
                hidden += weight == 0.0
            assert np.all(clip.weights_TB[t, ~present] == 0.0)
        assert seen
    assert hidden > 0


def test_labels_are_the_nearest_inside_the_grid_and_padding_is_neutral() -> None:
    for clip in clips():
        for t in range(len(clip)):
            present = clip.ids_TB[t] >= 0
            assert present.sum() <= MAX_LABELS
            assert SMALL.grid.contains(clip.boxes_TB10[t, present][:, [X, Y]]).all()
            distance = np.hypot(*clip.boxes_TB10[t, present][:, [X, Y]].T)
            assert np.all(np.diff(distance) >= -1e-4)
            assert np.all(clip.boxes_TB10[t, ~present, BOX_FIELDS.index("cos_yaw")] == 1.0)
            assert set(clip.class_ids_TB[t, present].tolist()) <= set(range(len(CLASSES)))


def test_lidar_returns_lie_where_visible_labels_are() -> None:
    hits = []
    for clip in clips(randomize=False):
        for t in range(len(clip)):
            occupied = clip.inputs["lidar_raster"][t, 1:4].max(0) > 0  # above the ground
            for i in np.flatnonzero(clip.visible_TB[t]):
                x, y = clip.boxes_TB10[t, i, [X, Y]]
                if x < 3.0 or np.hypot(x, y) > 30.0:
                    continue
                column = int((x - SMALL.grid.x_min) / SMALL.grid.resolution)
                row = int((y - SMALL.grid.y_min) / SMALL.grid.resolution)
                hits.append(occupied[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4].any())
    assert len(hits) > 10
    assert np.mean(hits) > 0.9


def test_the_robot_stands_on_drivable_ground() -> None:
    grid = SMALL.bev_grid
    row, column = int(-grid.y_min / grid.resolution), int(-grid.x_min / grid.resolution)
    for clip in clips():
        assert clip.maps_valid
        assert np.all(clip.maps_T2YX[:, 0, row, column] == 1)
        assert set(np.unique(clip.maps_T2YX).tolist()) == {0, 1}
        # A boundary runs along both sides.
        assert clip.maps_T2YX[:, 1, :row].any()
        assert clip.maps_T2YX[:, 1, row + 1 :].any()


def test_maps_turn_with_the_robot() -> None:
    snapshot = scenario().snapshot(scenario().start_ns)
    grid = SMALL.bev_grid
    inverse = snapshot.odom_from_base.inverse().planar_part()
    there = road_maps(snapshot.road, inverse, grid)
    around = road_maps(snapshot.road, SE2(0.0, 0.0, np.pi) @ inverse, grid)
    rows, columns_ = grid.shape
    middle = columns_ // 2
    symmetric = slice(0, 2 * int(-grid.x_min / grid.resolution))
    assert middle > 0
    assert rows == there.shape[1]
    flipped = around[0][::-1, symmetric][:, ::-1]
    assert np.mean(flipped == there[0][:, symmetric]) > 0.97


def test_ego_state_tells_speed_limit_and_acceleration() -> None:
    clip, made = clips("braking_lead", 1)[0], scenario("braking_lead", 1)
    state = dict(zip(EGO_FIELDS, clip.inputs["ego_state"][0].tolist(), strict=True))
    ego = made.ego_at(int(clip.stamps_ns_T[0]))
    assert state["valid"] == 1.0
    assert state["speed"] == pytest.approx(ego.speed, abs=1e-3)
    assert state["speed_limit"] == pytest.approx(made.speed_limit, abs=1e-3)
    past = made.ego_at(int(clip.stamps_ns_T[0]) - 300 * MILLISECOND)
    assert state["acceleration"] == pytest.approx((ego.speed - past.speed) / 0.3, abs=0.05)


# ------------------------------------------------------------------ degraded


def degraded(*entries: dict[str, object]) -> DegradationSchedule:
    return DegradationSchedule.model_validate({"name": "test", "entries": entries})


def degraded_clips(*entries: dict[str, object]) -> list[Clip]:
    made = record_clips(
        scenario(), rig(), SMALL, clip_length=4, stride_s=0.7, seed=2, degradation=degraded(*entries)
    )
    return list(made)


def test_a_schedule_that_does_nothing_changes_no_byte_of_a_clip() -> None:
    for a, b in zip(clips(), degraded_clips({"effect": "rain", "strength": 0.0}), strict=True):
        assert all(np.array_equal(value, b.arrays()[name]) for name, value in a.arrays().items())


def test_a_dead_sensor_is_invalid_in_its_frames_and_nothing_else_changes() -> None:
    # Clips of four frames begin 0.4, 1.1, 1.8 and 2.5 s after the start.
    made = degraded_clips({"effect": "death", "sensors": "front", "from_s": 1.25})
    slot = SMALL.cameras.index("front")
    valid = np.stack([clip.inputs["camera_valid"][:, slot] for clip in made])

    np.testing.assert_array_equal(valid, [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    for before, after in zip(clips(), made, strict=True):
        lost = after.inputs["camera_valid"][:, slot] == 0
        assert not after.inputs["images"][lost, slot].any()
        others = [k for k in range(len(SMALL.cameras)) if k != slot]
        assert np.array_equal(before.inputs["images"][:, others], after.inputs["images"][:, others])
        assert np.array_equal(before.inputs["lidar_raster"], after.inputs["lidar_raster"])


def test_lost_late_and_wrongly_stamped_messages_are_missing_in_their_frames() -> None:
    half = degraded_clips({"effect": "packet_loss", "sensors": "camera", "share": 0.5})
    share = np.mean([clip.inputs["camera_valid"] for clip in half])
    assert 0.2 < share < 0.8
    assert all((clip.inputs["lidar_valid"] == 1.0).all() for clip in half)

    late, soon = (
        degraded_clips({"effect": "latency", "sensors": "lidar", "extra_ms": ms})[0] for ms in (80.0, 40.0)
    )
    assert not late.inputs["lidar_valid"].any()
    assert soon.inputs["lidar_valid"].all()

    off, near = (
        degraded_clips({"effect": "clock_offset", "sensors": "camera", "offset_ms": ms})[0]
        for ms in (41.0, 30.0)
    )
    assert not off.inputs["camera_valid"].any()
    assert near.inputs["camera_valid"].all()


def test_what_a_dead_rig_does_not_see_weighs_nothing() -> None:
    for clip in degraded_clips({"effect": "death"}):
        assert not clip.visible_TB.any()
        assert not clip.weights_TB.any()


def test_a_frozen_camera_shows_the_world_of_the_moment_it_froze() -> None:
    frozen = degraded_clips({"effect": "freeze", "sensors": "front", "from_s": 0.4})[-1]
    free = clips()[-1]
    slot = SMALL.cameras.index("front")

    def change(clip: Clip) -> float:
        first, last = clip.inputs["images"][[0, 3], slot].astype(int)
        return float(np.abs(first - last).mean())

    assert change(frozen) < 4.0  # only noise
    assert change(free) > 1.5 * change(frozen)


def test_degraded_messages_are_those_of_the_sensor_rig_in_order_of_arrival() -> None:
    short = dataclasses.replace(scenario(), end_ns=scenario().start_ns + 500 * MILLISECOND)
    intact = list(sensor_messages(short, rig(), seed=1))
    messages = list(
        sensor_messages(
            short, rig(), 1, degraded({"effect": "latency", "sensors": "lidar", "extra_ms": 300.0})
        )
    )

    assert sorted(m.arrival_ns for m in messages) == [m.arrival_ns for m in messages]
    assert {(m.sensor, m.stamp_ns) for m in messages} == {(m.sensor, m.stamp_ns) for m in intact}
    assert max(m.arrival_ns for m in messages) > short.end_ns + 300 * MILLISECOND


# ------------------------------------------------------------------ rigs


def test_a_network_sized_camera_needs_no_resizing_and_sees_the_same() -> None:
    from e2e_perception.runtime.preprocess import ImageCrop

    network = SIZES["tiny"]
    for name in ("tiny", "kitti_highway"):
        for camera in load_rig(config_dir() / "rigs" / f"{name}.yaml").cameras:
            small = network_sized(camera, network)
            assert (small.width, small.height) == (network.image_width, network.image_height)
            np.testing.assert_allclose(
                ImageCrop.of(small, network).network_from_camera, np.eye(3), atol=1e-12
            )
            original = ImageCrop.of(camera, network).network_from_camera @ camera.image_from_base
            np.testing.assert_allclose(small.image_from_base, original, atol=1e-9)


def test_randomised_rigs_differ_but_keep_names_and_stay_plausible() -> None:
    rng = np.random.default_rng(0)
    relatives = [randomized_rig(rig(), rng) for _ in range(40)]
    beams = {relative.lidars[0].num_beams for relative in relatives}
    assert {16, 64} <= beams
    for relative in relatives:
        assert [s.name for s in relative.sensors] == [s.name for s in rig().sensors]
        for before, after in zip(rig().sensors, relative.sensors, strict=True):
            assert abs(after.mount.xyz[2] - before.mount.xyz[2]) < 0.4
            Rig.model_validate(relative.model_dump())
