"""Driving in a recorded log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from argoverse_logs import FIRST_NS, REAL_LOGS, Actor, real_log, straight, write_log
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, footprint_corners_N42
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError, RigError
from e2e_perception.core.frames import SE3
from e2e_perception.core.rectangles import overlap, robot_rectangle
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.simulation.argoverse import (
    BASE_FROM_EGO,
    CATEGORIES,
    boxes_in_city,
    log_rig,
    read_log,
)
from e2e_perception.simulation.log_map import lane_route
from e2e_perception.simulation.log_world import LogWorld
from e2e_perception.simulation.world import START_NS, STEP_NS, World, snapshot

SIZE = (4.6, 1.9, 1.4)  # length, width, centre ahead of base_link


def standing(world: LogWorld, pose: SE3) -> EgoState:
    return EgoState(world.known_until_ns, pose, np.zeros(3), 0.0)


def drive_as_logged(world: LogWorld) -> None:
    while world.known_until_ns <= world.end_ns:
        world.advance(world.logged_ego(world.known_until_ns))


def stand(world: LogWorld, pose: SE3) -> None:
    while world.known_until_ns <= world.end_ns:
        world.advance(standing(world, pose))


def num_steps(world: LogWorld) -> int:
    return (world.known_until_ns - world.start_ns) // STEP_NS + 1


def poses_TN3(world: LogWorld) -> NDArray[np.float64]:
    return np.array([world.agents_at(START_NS + k * STEP_NS).poses_N3 for k in range(num_steps(world))])


def touched(world: LogWorld, pose: SE3) -> set[str]:
    """Tracks that overlap a robot that stands there."""
    plane = pose.planar_part()
    robot = robot_rectangle(np.array([plane.x, plane.y, plane.yaw]), SIZE)
    hit: set[str] = set()
    for k in range(num_steps(world)):
        states = world.agents_at(START_NS + k * STEP_NS)
        boxes = np.concatenate([states.poses_N3, world.cast.sizes_N3[:, :2]], axis=1)
        rows = np.flatnonzero(overlap(robot[None], boxes) & states.present_N)
        hit |= {world.tracks.track_ids[n] for n in rows}
    return hit


# -------------------------------------------------------------------- what a log becomes


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_a_real_log_is_a_world(name: str) -> None:
    world: World = LogWorld(real_log(name))
    assert isinstance(world, LogWorld)

    assert world.name == f"log:{name}"
    assert (world.end_ns - world.start_ns) == 153 * STEP_NS
    assert world.known_until_ns == world.start_ns == START_NS
    pose = world.start.odom_from_base
    assert np.abs(pose.matrix - np.eye(4)).max() < 1e-9
    seen = snapshot(world, world.start)
    assert len(seen.boxes) > 20
    assert set(np.unique(world.cast.class_ids_N)) <= set(range(len(CLASSES)))
    assert np.isfinite(world.tracks.poses_TN3).all()
    assert np.abs(np.diff(world.tracks.poses_TN3[..., 2], axis=0)).max() < np.pi
    speeds = [world.logged_ego(START_NS + k * STEP_NS).speed for k in range(154)]
    assert max(speeds) <= world.speed_limit
    assert world.speed_limit == pytest.approx(13.4)
    assert world.provenance["cameras"] == "modelled"


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_the_recorded_drive_stays_on_the_road_near_the_route_and_reaches_the_goal(name: str) -> None:
    world = LogWorld(real_log(name))
    stamps = [START_NS + k * STEP_NS for k in range(154)]
    drive = [world.logged_ego(t).odom_from_base.planar_part() for t in stamps]
    area = shapely.union_all([shapely.Polygon(p).buffer(0.1) for p in world.cast.road.drivable])
    s = []
    for pose in drive:
        corners = footprint_corners_N42(
            pose.apply(np.array([[SIZE[2], 0.0]])), np.array([SIZE[:2]]), np.array([pose.yaw])
        )[0]
        assert shapely.intersects_xy(area, corners[:, 0], corners[:, 1]).all()
        along, offset = world.route.project((pose.x, pose.y), s[-1] if s else None)
        s.append(along)
        assert abs(offset) < 2.0
    assert s[0] < world.goal_s < s[-1]
    assert world.route.arc_lengths_R[-1] - s[-1] > 60.0


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_the_recorded_twist_explains_the_recorded_poses(name: str) -> None:
    """Integrated over the whole log to within 0.3 m and 1 degree."""
    world = LogWorld(real_log(name))
    x, y, yaw = 0.0, 0.0, 0.0
    dt = 0.02
    last = (world.end_ns - START_NS) // 20_000_000
    for k in range(last):
        ego = world.logged_ego(START_NS + k * 20_000_000 + 10_000_000)
        middle = yaw + 0.5 * dt * ego.yaw_rate
        x += dt * (np.cos(middle) * ego.velocity[0] - np.sin(middle) * ego.velocity[1])
        y += dt * (np.sin(middle) * ego.velocity[0] + np.cos(middle) * ego.velocity[1])
        yaw += dt * ego.yaw_rate
    end = world.logged_ego(START_NS + last * 20_000_000).odom_from_base.planar_part()
    assert np.hypot(x - end.x, y - end.y) < 0.3
    assert abs(yaw - end.yaw) < np.deg2rad(1.0)


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_replay_is_what_was_annotated(name: str) -> None:
    """At the first sweep exactly; later sweeps lie between steps: 0.02 m at most, 99 % within 0.001 m."""
    log = read_log(real_log(name))
    world = LogWorld(log)
    drive_as_logged(world)
    a = log.annotations
    centers, yaws = boxes_in_city(log)
    odom = world.odom_from_city.apply(centers)
    rows = {track: n for n, track in enumerate(world.tracks.track_ids)}
    errors, turns = [], []
    for stamp in np.unique(a.stamps_ns_A).tolist():
        at = stamp - world.log_minus_world_ns
        if at > world.end_ns:
            continue
        states = world.agents_at(at)
        for i in np.flatnonzero(a.stamps_ns_A == stamp):
            n = rows.get(a.track_ids[a.tracks_A[i]])
            if n is None or not states.present_N[n]:
                continue
            errors.append(np.hypot(*(states.poses_N3[n, :2] - odom[i, :2])))
            turn = states.poses_N3[n, 2] - yaws[i] - world.odom_from_city.yaw
            turns.append(abs(np.angle(np.exp(1j * turn))))
            if stamp == a.stamps_ns_A[0]:
                assert errors[-1] < 1e-9
                assert turns[-1] < 1e-9
    assert len(errors) > 5000
    assert np.max(errors) < 0.02
    assert np.percentile(errors, 99) < 0.001
    assert np.percentile(turns, 99) < np.deg2rad(1.0)


def test_somebody_is_there_only_while_annotated(tmp_path: Path) -> None:
    actor = Actor(
        "a",
        "REGULAR_VEHICLE",
        straight(20.0, 4.0, speed=5.0),
        annotated=lambda t: 0.95 < t < 1.65 or 1.95 < t < 3.05 or 3.95 < t < 5.05,
    )
    world = LogWorld(write_log(tmp_path / "log", [actor, Actor("b", "BUS", straight(40.0, 8.0))]))
    drive_as_logged(world)

    a = world.tracks.track_ids.index("a")
    there = np.array([world.agents_at(START_NS + k * STEP_NS).present_N[a] for k in range(num_steps(world))])
    # The gap of 0.4 s is bridged, that of 1 s is not. Sweeps jitter by 3 ms, so ends are left out.
    assert there[11:30].all()
    assert there[41:50].all()
    assert not there[:9].any()
    assert not there[32:39].any()
    assert not there[52:].any()
    for k in (14, 17, 25, 45):
        states = world.agents_at(START_NS + k * STEP_NS)
        assert np.allclose(states.poses_N3[a, :2], [20.0 + 0.5 * k, 4.0], atol=5e-3)
        assert np.allclose(states.velocities_N2[a], [5.0, 0.0], atol=0.05)


def test_riders_absorb_what_they_ride_and_parked_bicycles_stand_still(tmp_path: Path) -> None:
    bike, person = (1.8, 0.6, 1.1), (0.7, 0.6, 1.7)
    actors = [
        Actor("bicycle", "BICYCLE", straight(10.0, 5.0, speed=4.0), bike),
        Actor("rider", "BICYCLIST", straight(10.1, 5.0, speed=4.0), person),
        Actor("parked", "BICYCLE", straight(30.0, -3.0), bike),
        Actor("cone", "CONSTRUCTION_CONE", straight(50.0, -3.0), (0.4, 0.4, 0.8)),
        Actor("dog", "DOG", straight(5.0, -3.0, speed=1.0), (0.8, 0.3, 0.6)),
        Actor("carried", "SIGN", straight(5.0, -3.5, speed=1.0), (0.1, 0.6, 0.6)),
    ]
    world = LogWorld(write_log(tmp_path / "log", actors))

    assert world.tracks.track_ids == ("rider",)
    assert CLASSES[world.cast.class_ids_N[0]] == "cyclist"
    assert world.cast.sizes_N3[0].tolist() == [1.8, 0.6, 1.7]
    assert np.allclose(sorted(world.obstacles_O5[:, 0]), [30.0, 50.0], atol=0.01)
    assert np.allclose(world.cast.clutter_C12[:, 2], world.cast.clutter_C12[:, 5] / 2.0)


def test_everybody_of_every_category_can_be_drawn(tmp_path: Path) -> None:
    size = (1.0, 0.5, 0.5)  # the least that there is, for a bus too
    actors = [Actor(c, c, straight(10.0 + 4.0 * i, 4.0, speed=1.0), size) for i, c in enumerate(CATEGORIES)]
    world = LogWorld(write_log(tmp_path / "log", actors))
    seen = snapshot(world, world.start)
    assert len(world.cast.sizes_N3) >= 20
    assert (seen.solids.sizes_N3 > 0.0).all()


# -------------------------------------------------------------------- the route


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
@given(first=st.floats(-1.0, 1.0), last=st.floats(-1.0, 1.0))
@settings(max_examples=12, deadline=None)
def test_the_route_does_not_tell_how_the_car_drove_within_its_lane(
    name: str, first: float, last: float
) -> None:
    world = LogWorld(real_log(name))
    way = lane_route(world.log.lanes, _city_drive(world, 0.0, 0.0))
    moved = lane_route(world.log.lanes, _city_drive(world, first, last))
    assert moved.lanes == way.lanes
    assert np.allclose(moved.route.points_R2, way.route.points_R2, rtol=0.0, atol=1e-9)


def _city_drive(world: LogWorld, first: float, last: float) -> NDArray[np.float64]:
    """The recorded drive in the city, moved to the left by `first` m at its start … `last` m at its end."""
    drive = []
    for k in range(154):
        pose = world.logged_ego(START_NS + k * STEP_NS).odom_from_base.planar_part()
        here = world.odom_from_city.inverse().planar_part() @ pose
        left = first + (last - first) * k / 153
        drive.append((*here.apply(np.array([0.0, left])), here.yaw))
    return np.array(drive)


def test_a_swerve_in_between_does_not_show_in_the_route(tmp_path: Path) -> None:
    def swerving(t: float) -> tuple[float, float, float]:
        return 8.0 * t, 1.5 * np.sin(np.pi * t / 6.0) ** 2, 0.0

    plain = LogWorld(write_log(tmp_path / "plain"))
    swerve = LogWorld(write_log(tmp_path / "swerve", ego=swerving))

    assert np.allclose(plain.route.points_R2, swerve.route.points_R2, atol=1e-6)
    assert plain.lanes == (100, 101, 102)
    assert np.abs(plain.route.points_R2[:, 1]).max() < 5e-3
    # It runs to the end of the map.
    assert plain.route.points_R2[-1, 0] == pytest.approx(280.0, abs=5e-3)


def test_the_route_changes_lanes_only_if_the_drive_ends_in_another_lane(tmp_path: Path) -> None:
    def changing(t: float) -> tuple[float, float, float]:
        return 20.0 * t, float(np.clip((t - 2.0) / 2.0, 0.0, 1.0)) * 4.0, 0.0

    world = LogWorld(write_log(tmp_path / "log", ego=changing))

    assert {lane // 100 for lane in world.lanes} == {1, 2}
    assert abs(world.route.at(world.route.project((0.0, 0.0))[0])[0][1]) < 0.1
    assert world.route.points_R2[-1, 1] == pytest.approx(4.0, abs=5e-3)
    # From lane to lane once, and smoothly.
    assert (np.diff(world.route.points_R2[:, 1]) > -1e-6).all()
    assert np.abs(np.diff(world.route.points_R2[:, 1])).max() < 0.2


def test_a_drive_that_starts_away_from_all_lanes_is_refused(tmp_path: Path) -> None:
    beside = LogWorld(write_log(tmp_path / "beside", ego=straight(0.0, -5.0, speed=8.0)))
    assert beside.lanes[0] == 100
    with pytest.raises(
        InputError, match=r"the log starts at .* more than 8 m from any lane of its direction"
    ):
        LogWorld(write_log(tmp_path / "away", ego=straight(0.0, -30.0, speed=8.0)))


def test_the_lane_of_the_drives_direction_is_taken(tmp_path: Path) -> None:
    world = LogWorld(write_log(tmp_path / "log", ego=straight(150.0, 8.0, speed=8.0, yaw=np.pi)))
    assert world.lanes == (301, 300)


def test_the_goal_is_drawn_back_where_the_map_ends(tmp_path: Path) -> None:
    """The car drives off the map, 280 m along, for the last 3 s."""
    world = LogWorld(write_log(tmp_path / "log", ego=straight(230.0, speed=20.0), seconds=6.0))
    assert world.lanes == (102,)
    # Of the poses every second back from the end, that after 1.9 s is the last on a lane.
    assert world.route.at(world.goal_s)[0][0] == pytest.approx(0.9 * 38.0, abs=0.1)


def test_a_drive_that_leaves_the_map_at_once_is_refused(tmp_path: Path) -> None:
    def gone(t: float) -> tuple[float, float, float]:
        return 0.0, 0.0 if t < 0.05 else -30.0, 0.0

    with pytest.raises(InputError, match="the map has no way from where the log starts to any later place"):
        LogWorld(write_log(tmp_path / "log", ego=gone))


# -------------------------------------------------------------------- yielding


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_others_do_what_they_did_when_the_robot_does_what_the_car_did(name: str) -> None:
    log = read_log(real_log(name))
    worlds = LogWorld(log, reactive=True), LogWorld(log)
    for world in worlds:
        drive_as_logged(world)
    assert np.array_equal(*map(poses_TN3, worlds))


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_others_do_what_they_did_when_the_robot_is_far_away(name: str) -> None:
    log = read_log(real_log(name))
    worlds = LogWorld(log, reactive=True), LogWorld(log)
    for world in worlds:
        stand(world, SE3.planar(5000.0, 0.0, 0.0))
    assert np.array_equal(*map(poses_TN3, worlds))


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
@pytest.mark.parametrize("where", [0.0, 0.6])
def test_nobody_who_yields_runs_into_a_robot_that_never_starts(name: str, where: float) -> None:
    log = read_log(real_log(name))
    reactive, replay = LogWorld(log, reactive=True), LogWorld(log)
    if where > 0.0:  # later in the drive: only who comes from behind can know
        begin = where * 15.0
        reactive, replay = (LogWorld(log, reactive=r, start_s=begin) for r in (True, False))
    for world in (reactive, replay):
        stand(world, world.start.odom_from_base)
    assert touched(reactive, reactive.start.odom_from_base) == set()
    if where == 0.0:
        assert touched(replay, replay.start.odom_from_base)  # who follows the car drives through it


@settings(max_examples=15, deadline=None)
@given(x=st.floats(30.0, 60.0), y=st.floats(-0.5, 0.5), yaw=st.floats(-3.0, 3.0), speed=st.floats(2.0, 14.0))
def test_a_standing_robot_is_never_hit_and_nobody_is_ahead_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, x: float, y: float, yaw: float, speed: float
) -> None:
    actors = [
        Actor("behind", "REGULAR_VEHICLE", straight(-18.0, 0.0, speed=speed)),
        Actor("next", "REGULAR_VEHICLE", straight(-40.0, 0.0, speed=speed)),
        Actor("beside", "REGULAR_VEHICLE", straight(-10.0, 8.0, speed=speed)),
    ]
    ego = straight(0.0, speed=max(speed, 4.0))
    path = write_log(tmp_path_factory.mktemp("logs") / "log", actors, ego=ego, seconds=9.0)
    log = read_log(path)
    world, replay = LogWorld(log, reactive=True), LogWorld(log)
    pose = SE3.planar(x, y, yaw)
    for w in (world, replay):
        stand(w, pose)

    assert touched(world, pose) == set()
    got, logged = poses_TN3(world), poses_TN3(replay)
    assert (got[..., 0] <= logged[..., 0] + 1e-6).all()
    assert (np.diff(got[..., 0], axis=0) >= -1e-6).all()
    assert np.abs(got[..., 1] - logged[..., 1]).max() < 1e-2  # they stay on their paths
    # Nor do they run into each other.
    first, second = world.tracks.track_ids.index("behind"), world.tracks.track_ids.index("next")
    assert (got[:, first, 0] - got[:, second, 0] > 4.5).all()
    beside = world.tracks.track_ids.index("beside")
    if abs(yaw) < 0.5:
        assert np.array_equal(got[:, beside], logged[:, beside])


def test_who_was_held_up_goes_on_and_stays_late(tmp_path: Path) -> None:
    follower = Actor("f", "REGULAR_VEHICLE", straight(-18.0, speed=8.0))
    world = LogWorld(write_log(tmp_path / "log", [follower], seconds=14.0), reactive=True)
    while world.known_until_ns < START_NS + 60 * STEP_NS:
        world.advance(standing(world, SE3.planar(15.0, 0.0, 0.0)))
    held = world.agents_at(world.known_until_ns)
    assert held.velocities_N2[0, 0] < 1.0
    stand(world, SE3.planar(5000.0, 0.0, 0.0))
    last = world.agents_at(world.known_until_ns)
    logged = world.tracks.poses_TN3[num_steps(world) - 1, 0, 0]
    assert last.velocities_N2[0, 0] == pytest.approx(8.0, abs=0.1)
    # It never catches up: some 4 s of 8 m/s.
    assert 15.0 < logged - last.poses_N3[0, 0] < 60.0


def test_a_trailer_stays_behind_what_tows_it(tmp_path: Path) -> None:
    actors = [
        Actor("cab", "TRUCK_CAB", straight(-20.0, speed=8.0), (6.0, 2.5, 3.0)),
        Actor("trailer", "VEHICULAR_TRAILER", straight(-29.0, speed=8.0), (11.0, 2.5, 3.5)),
    ]
    world = LogWorld(write_log(tmp_path / "log", actors, seconds=9.0), reactive=True)
    stand(world, SE3.planar(20.0, 0.0, 0.0))
    poses = poses_TN3(world)
    cab, trailer = (world.tracks.track_ids.index(n) for n in ("cab", "trailer"))
    assert poses[-1, cab, 0] < 20.0
    assert np.allclose(poses[:, cab, 0] - poses[:, trailer, 0], 9.0, atol=0.02)


# -------------------------------------------------------------------- what was recorded


WALL = np.column_stack([np.full(50, 40.0), np.linspace(-5.0, 5.0, 50), np.linspace(0.0, 3.0, 50)])


def seen(world: LogWorld, rig: Rig, stamp_ns: int) -> tuple[int, NDArray[np.float64]]:
    """Stamp and points of a recorded sweep, base frame."""
    found = world.recorded("top", stamp_ns)
    assert found is not None
    stamp, sample = found
    assert isinstance(sample, PointsSample)
    points = np.stack([sample.fields[n] for n in "xyz"], axis=-1)
    assert all(values.dtype == np.float32 for values in sample.fields.values())
    return stamp, rig.sensor("top").base_from_sensor.apply(points)


@pytest.mark.parametrize("rig_name", ["tiny", "own"])
def test_a_recorded_sweep_shows_the_place_from_the_rigs_lidar(tmp_path: Path, rig_name: str) -> None:
    path = write_log(tmp_path / "log", points=WALL, sweeps=[0, 20])
    rig = find_rig("tiny") if rig_name == "tiny" else log_rig(path)
    world = LogWorld(path, rig=rig)
    assert world.provenance["lidar"] == "recorded 2 of 60 sweeps, else modelled"

    stamp, points = seen(world, rig, START_NS + 30_000_000)
    assert stamp == START_NS
    assert np.allclose(points, WALL, atol=0.3)  # the car is tilted by 0.2 and 0.3 degrees
    assert world.recorded("top", START_NS + 60_000_000) is None

    while world.known_until_ns < START_NS + 21 * STEP_NS:
        world.advance(world.logged_ego(world.known_until_ns))
    stamp, points = seen(world, rig, START_NS + 20 * STEP_NS)
    assert abs(stamp - START_NS - 20 * STEP_NS) < 5_000_000
    assert np.allclose(points[:, 0], 40.0 - 8.0 * (stamp - START_NS) * 1e-9, atol=0.1)


def test_a_sweep_is_moved_by_a_small_deviation_and_refused_after_a_large_one(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", points=WALL, sweeps=[20])
    rig = find_rig("tiny")
    clouds = {}
    for aside in (0.0, 0.2, 0.5):
        world = LogWorld(path, rig=rig)
        while world.known_until_ns < START_NS + 21 * STEP_NS:
            ego = world.logged_ego(world.known_until_ns)
            if world.known_until_ns > START_NS:
                pose = ego.odom_from_base @ SE3.planar(0.0, aside, 0.0)
                ego = EgoState(ego.stamp_ns, pose, ego.velocity, ego.yaw_rate)
            world.advance(ego)
        if aside < 0.3:
            clouds[aside] = seen(world, rig, START_NS + 20 * STEP_NS)[1]
        else:
            assert world.recorded("top", START_NS + 20 * STEP_NS) is None
    assert np.allclose(clouds[0.0] - clouds[0.2], [0.0, 0.2, 0.0], atol=1e-4)


def test_no_sweep_is_shown_while_somebody_nearby_is_late(tmp_path: Path) -> None:
    follower = Actor("f", "REGULAR_VEHICLE", straight(-12.0, speed=8.0))
    path = write_log(tmp_path / "log", [follower], points=WALL, sweeps=range(60), seconds=6.0)
    shown = []
    for reactive in (True, False):
        world = LogWorld(path, rig=find_rig("tiny"), reactive=reactive)
        # The robot stops for a while where it does not belong, and returns to the recorded drive.
        while world.known_until_ns < START_NS + 50 * STEP_NS:
            late = START_NS + 3 * STEP_NS < world.known_until_ns < START_NS + 40 * STEP_NS
            pose = SE3.planar(5.0, 0.0, 0.0)
            world.advance(standing(world, pose) if late else world.logged_ego(world.known_until_ns))
        shown.append(world.recorded("top", START_NS + 49 * STEP_NS) is not None)
    assert shown == [False, True]


def test_pictures_are_shown_to_the_logs_own_camera_only(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", images=[0, 1, 2])
    own = log_rig(path)
    world = LogWorld(path, rig=own)
    found = world.recorded("front", START_NS)
    assert found is not None
    assert isinstance(found[1], ImageSample)
    assert found[1].rgb_HW3.shape == (48, 64, 3)
    assert world.provenance["cameras"] == "recorded 3 of 60 pictures, else modelled"

    other = LogWorld(path, rig=find_rig("tiny"))
    assert other.recorded("front", START_NS) is None
    assert other.recorded("radar_front", START_NS) is None
    assert other.provenance["cameras"] == "modelled"
    with pytest.raises(RigError, match="has no sensor 'back'"):
        other.recorded("back", START_NS)
    without_rig = LogWorld(path)
    assert without_rig.recorded("front", START_NS) is None


@pytest.mark.real_data
def test_a_real_sweep_agrees_with_the_boxes_of_the_world() -> None:
    """Points inside the world's boxes, at most 30 m away, are those of the data set within 10 %."""
    log = read_log(real_log(REAL_LOGS[1]))
    rig = find_rig("tiny")
    world = LogWorld(log, rig=rig)
    assert world.provenance["lidar"] == "recorded 1 of 154 sweeps, else modelled"
    stamp, points = seen(world, rig, START_NS)
    assert stamp == START_NS
    raw, _ = log.sweep(int(log.sweeps_ns[0]))
    assert np.abs(points - BASE_FROM_EGO.apply(raw)).max() < 1e-4
    boxes = snapshot(world, world.start).boxes
    boxes = boxes.select(np.flatnonzero(boxes.ids_N < len(world.tracks.track_ids)))  # obstacles come after
    stamps = log.annotations.stamps_ns_A
    counted = {log.annotations.track_ids[log.annotations.tracks_A[i]]: int(log.annotations.num_points_A[i])
               for i in np.flatnonzero(stamps == stamps[0])}  # fmt: skip
    total = expected = 0
    for i in range(len(boxes)):
        center = boxes.centers_N3[i]
        if np.hypot(*center[:2]) > 30.0:
            continue
        c, s = np.cos(boxes.yaws_N[i]), np.sin(boxes.yaws_N[i])
        local = (points - center) @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        # A margin in height: streets are not flat.
        inside = np.abs(local) <= boxes.sizes_N3[i] / 2.0 + np.array([0.0, 0.0, 0.3])
        total += int(inside.all(axis=1).sum())
        expected += counted[world.tracks.track_ids[int(boxes.ids_N[i])]]
    assert expected > 5000
    assert total == pytest.approx(expected, rel=0.1)


# -------------------------------------------------------------------- limits


def test_start_and_duration_are_whole_steps_of_the_log(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", seconds=8.0)
    world = LogWorld(path, start_s=2.0, duration_s=3.0)
    assert world.end_ns - world.start_ns == 30 * STEP_NS
    sweeps = np.unique(world.log.annotations.stamps_ns_A)
    assert world.start_ns + world.log_minus_world_ns in sweeps
    assert abs(world.log_minus_world_ns + START_NS - FIRST_NS - 2_000_000_000) < 110_000_000
    assert np.abs(world.start.odom_from_base.translation).max() < 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_s": 99.0}, r"has 4\.0 s; it cannot start at 99 s"),
        ({"start_s": -1.0}, "it cannot start at -1 s"),
        ({"start_s": 3.0}, r"from 3 s on; what is left is not between 2 s and that"),
        ({"duration_s": 9.0}, r"a duration of 9 s is not between 2 s and that"),
        ({"duration_s": 0.5}, r"a duration of 0\.5 s is not between 2 s and that"),
    ],
)
def test_a_log_too_short_for_what_is_asked_is_refused(
    tmp_path: Path, options: dict[str, float], message: str
) -> None:
    path = write_log(tmp_path / "log", seconds=4.0)
    with pytest.raises(InputError, match=message):
        LogWorld(path, reactive=False, **options)  # type: ignore[arg-type]


def test_time_goes_step_by_step_and_not_beyond_the_log(tmp_path: Path) -> None:
    world = LogWorld(write_log(tmp_path / "log", seconds=3.0))
    with pytest.raises(InputError, match=r"the robot is given at .* expected"):
        world.advance(world.logged_ego(START_NS + STEP_NS))
    with pytest.raises(InputError, match="no agents are known"):
        world.agents_at(START_NS + 1)
    drive_as_logged(world)
    assert world.known_until_ns == world.end_ns + STEP_NS
    with pytest.raises(InputError, match="ends at"):
        world.advance(world.logged_ego(world.known_until_ns))
    with pytest.raises(InputError, match="has no drive at"):
        world.logged_ego(world.end_ns + 2 * STEP_NS)
