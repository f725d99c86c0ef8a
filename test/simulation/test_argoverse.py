"""Reading logs of the Argoverse 2 sensor data set."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.feather as feather
import pytest
from argoverse_logs import FIRST_NS, REAL_LOGS, ROOT, Actor, real_log, straight, write_log, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.simulation.argoverse import (
    BASE_FROM_EGO,
    CATEGORIES,
    STILL,
    boxes_in_city,
    log_rig,
    read_log,
)
from e2e_perception.simulation.log_map import lines_of
from e2e_perception.simulation.log_world import LogWorld

# As in the data set's own development kit.
ALL_CATEGORIES = """
ANIMAL ARTICULATED_BUS BICYCLE BICYCLIST BOLLARD BOX_TRUCK BUS CONSTRUCTION_BARREL CONSTRUCTION_CONE DOG
LARGE_VEHICLE MESSAGE_BOARD_TRAILER MOBILE_PEDESTRIAN_CROSSING_SIGN MOTORCYCLE MOTORCYCLIST OFFICIAL_SIGNALER
PEDESTRIAN RAILED_VEHICLE REGULAR_VEHICLE SCHOOL_BUS SIGN STOP_SIGN STROLLER TRAFFIC_LIGHT_TRAILER TRUCK
TRUCK_CAB VEHICULAR_TRAILER WHEELCHAIR WHEELED_DEVICE WHEELED_RIDER
""".split()


def test_every_category_of_the_data_set_has_a_meaning_here() -> None:
    assert len(ALL_CATEGORIES) == 30
    assert sorted(CATEGORIES) == sorted(ALL_CATEGORIES)
    assert set(CATEGORIES.values()) == {*CLASSES, STILL, None} - {"obstacle"}, "what is still is one"


def test_the_documentation_has_the_same_class_table() -> None:
    text = (ROOT / "docs/logs.md").read_text(encoding="utf-8")
    documented: dict[str, str | None] = {}
    for meaning, cell in re.findall(r"^\| (\w[\w ]*) \| ((?:`[A-Z_]+`(?:, )?)+) \|", text, re.MULTILINE):
        for category in re.findall(r"`([A-Z_]+)`", cell):
            documented[category] = None if meaning == "not simulated" else meaning
    assert documented == dict(CATEGORIES)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "num_tracks", "num_sweeps", "calibrated"),
    [(REAL_LOGS[0], 114, 2, True), (REAL_LOGS[1], 146, 1, False)],
)
def test_a_real_log_is_read(name: str, num_tracks: int, num_sweeps: int, calibrated: bool) -> None:
    log = read_log(real_log(name))

    assert log.log_id == name
    assert len(log.annotations.track_ids) == num_tracks
    assert len(np.unique(log.annotations.stamps_ns_A)) == 156
    assert len(log.sweeps_ns) == num_sweeps
    assert bool(log.ego_from_sensor) == calibrated
    assert bool(log.cameras) == calibrated
    assert not log.images_ns


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_boxes_hold_as_many_lidar_points_as_the_data_set_says(name: str) -> None:
    """Within 1 % and one point a box: coordinates are published with 16 bits."""
    log = read_log(real_log(name))
    a = log.annotations
    num_boxes = 0
    for stamp in log.sweeps_ns.tolist():
        points, _ = log.sweep(stamp)
        for row in np.flatnonzero(a.stamps_ns_A == stamp):
            inside = Rotation.from_quat(a.quaternions_A4[row]).inv().apply(points - a.centers_A3[row])
            counted = int((np.abs(inside) <= a.sizes_A3[row] / 2.0).all(axis=1).sum())
            assert abs(counted - a.num_points_A[row]) <= 1 + 0.01 * a.num_points_A[row]
            num_boxes += 1
    assert num_boxes >= 40


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_the_ground_around_the_car_is_at_zero_in_the_base_frame(name: str) -> None:
    """The 20th percentile of what lies 3 to 10 m around, on the roadway, within 0.1 m."""
    log = read_log(real_log(name))
    points, _ = log.sweep(int(log.sweeps_ns[0]))
    points_base = BASE_FROM_EGO.apply(points)
    distance = np.hypot(points_base[:, 0], points_base[:, 1])
    beside = (distance > 3.0) & (distance < 10.0) & (np.abs(points_base[:, 1]) < 3.0)
    assert abs(np.percentile(points_base[beside, 2], 20)) < 0.1


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_boxes_survive_the_way_through_city_and_odom(name: str) -> None:
    log = read_log(real_log(name))
    _assert_round_trip(LogWorld(log))


@settings(max_examples=20, deadline=None)
@given(x=st.floats(-50, 50), y=st.floats(-20, 20), yaw=st.floats(-3, 3))
def test_any_box_survives_the_way_through_city_and_odom(
    tmp_path_factory: pytest.TempPathFactory, x: float, y: float, yaw: float
) -> None:
    actor = Actor("a", "BUS", lambda t: (x + t, y, yaw))
    path = write_log(tmp_path_factory.mktemp("logs") / "log", [actor], seconds=2.5)
    world = LogWorld(path)
    _assert_round_trip(world)
    # And it is where it was put; `base_link` lies below the ego frame, which is tilted.
    assert np.allclose(world.tracks.poses_TN3[0, 0, :2], [x, y], atol=5e-3)
    assert abs(np.angle(np.exp(1j * (world.tracks.poses_TN3[0, 0, 2] - yaw)))) < 1e-4


def _assert_round_trip(world: LogWorld) -> None:
    a = world.log.annotations
    centers, yaws = boxes_in_city(world.log)
    odom = world.odom_from_city.apply(centers)
    city = world.odom_from_city.inverse().apply(odom)
    for stamp in np.unique(a.stamps_ns_A)[::25].tolist():
        rows = a.stamps_ns_A == stamp
        ego_from_city = world.log.poses.city_from_ego(stamp).inverse()
        assert np.abs(ego_from_city.apply(city[rows]) - a.centers_A3[rows]).max() < 1e-6
        ahead = np.stack([np.cos(yaws[rows]), np.sin(yaws[rows])], axis=-1)
        ahead_ego = ego_from_city.rotation @ np.column_stack([ahead, np.zeros(len(ahead))]).T
        box_x = Rotation.from_quat(a.quaternions_A4[rows]).as_matrix()[:, :, 0]
        # Boxes stand upright on the car's plane, which is tilted against the city's by up to 3 degrees.
        assert (np.einsum("ij,ji->i", box_x, ahead_ego) > np.cos(np.deg2rad(4.0))).all()


def test_a_log_without_sensors_and_calibration_is_read(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path / "bare", calibration=False))

    assert len(log.sweeps_ns) == 0
    assert log.images_ns == {}
    assert log.ego_from_sensor == {}
    with pytest.raises(InputError, match=r"bare has no calibration of up_lidar .* name a rig of your own"):
        log_rig(log)


def test_sweeps_and_pictures_are_read_when_asked_for(tmp_path: Path) -> None:
    wall = np.array([[30.0, 1.0, 1.5], [30.0, -1.0, 0.5]])
    log = read_log(write_log(tmp_path / "log", points=wall, sweeps=[0], images=[0, 3]))

    points, intensity = log.sweep(FIRST_NS)
    assert np.allclose(log.poses.city_from_ego(FIRST_NS).apply(points)[:, 2], wall[:, 2] + 20.0, atol=1e-4)
    assert np.allclose(intensity, 0.2)
    assert len(log.images_ns["ring_front_center"]) == 2
    rgb = log.image("ring_front_center", FIRST_NS)
    assert rgb.shape == (48, 64, 3)
    assert rgb[..., 0].mean() > 180.0
    assert rgb[..., 2].mean() < 20.0


@pytest.mark.real_data
def test_the_rig_of_a_real_log_looks_where_its_sensors_look() -> None:
    log = read_log(real_log(REAL_LOGS[0]))
    rig = log_rig(log)

    assert [sensor.name for sensor in rig.sensors] == ["top", "front", "left", "right"]
    for name, source in (("top", "up_lidar"), ("front", "ring_front_center"), ("left", "ring_front_left")):
        expected = (BASE_FROM_EGO @ log.ego_from_sensor[source]).matrix
        assert np.abs(rig.sensor(name).base_from_sensor.matrix - expected).max() < 1e-9
    azimuths = [np.rad2deg(np.arctan2(*c.base_from_sensor.rotation[1::-1, 2])) for c in rig.cameras]
    assert np.allclose(azimuths, [0.0, 45.0, -45.0], atol=3.0)
    assert (rig.cameras[0].width, rig.cameras[0].height) == (1550, 2048)


def _without(name: str) -> Callable[[Path], None]:
    def spoil(log: Path) -> None:
        (log / name).unlink()

    return spoil


def _garbled(name: str) -> Callable[[Path], None]:
    def spoil(log: Path) -> None:
        path = next(log.glob(name))
        path.write_bytes(path.read_bytes()[:100])

    return spoil


def _column(name: str, values: Callable[[NDArray[np.float64]], object] | None) -> Callable[[Path], None]:
    def spoil(log: Path) -> None:
        path = log / "annotations.feather"
        columns = {
            c: feather.read_table(path)[c].to_numpy().copy() for c in feather.read_table(path).column_names
        }
        columns[name] = None if values is None else values(columns[name])
        write_table(path, {key: value for key, value in columns.items() if value is not None})

    return spoil


def _archive(change: Callable[[dict[str, dict[str, dict[str, object]]]], object]) -> Callable[[Path], None]:
    def spoil(log: Path) -> None:
        path = next(log.glob("map/*.json"))
        archive = json.loads(path.read_text(encoding="utf-8"))
        change(archive)
        path.write_text(json.dumps(archive), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no log at .*: no such directory; expected a log of the Argoverse 2"),
        (_without("annotations.feather"), r"has no annotations\.feather \(the logs of the `test` split"),
        (_without("city_SE3_egovehicle.feather"), r"has no city_SE3_egovehicle\.feather; expected a log"),
        (lambda log: shutil.rmtree(log / "map"), r"has no map/log_map_archive_\*\.json; expected a log"),
        (_garbled("annotations.feather"), r"cannot read .*annotations\.feather: .*copy the log again"),
        (_garbled("city_SE3_egovehicle.feather"), r"cannot read .*city_SE3_egovehicle\.feather"),
        (_garbled("calibration/intrinsics.feather"), r"cannot read .*intrinsics\.feather"),
        (_garbled("map/*.json"), "is no map of Argoverse 2: .*; copy the log again"),
        (_archive(lambda a: a.pop("lane_segments")), "is no map of Argoverse 2: no 'lane_segments'"),
        (_archive(lambda a: a["lane_segments"].clear()), "has 0 lanes and 1 drivable areas"),
        (_archive(lambda a: a["lane_segments"]["100"].update(successors=None)), "is no map of Argoverse 2"),
        (
            _archive(lambda a: a["drivable_areas"]["1"].update(area_boundary=[{"x": 1.0, "y": np.nan}] * 3)),
            "with a non-finite one",
        ),
        (_column("qw", None), "has no column qw; it has timestamp_ns"),
        (_column("category", lambda c: ["SPACESHIP"] * len(c)), "the category SPACESHIP; known are the 30"),
        (_column("height_m", lambda c: 0.0 * c), "a box of size 0 m, expected more than 0"),
        (_column("tx_m", lambda c: c + np.nan), "column tx_m has missing or non-finite values"),
        (_column("tx_m", lambda c: ["a"] * len(c)), "column tx_m is string, expected double"),
        (_column("qw", lambda c: c + 1.0), r"a quaternion of norm .*, expected 1"),
        (_column("track_uuid", lambda c: [None] * len(c)), "column track_uuid has missing"),
    ],
)  # fmt: skip
def test_a_spoilt_log_is_refused_with_what_is_wrong(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = write_log(tmp_path / "log")
    spoil(path)
    with pytest.raises(InputError, match=message):
        read_log(path)


def test_a_log_without_boxes_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log")
    table = feather.read_table(path / "annotations.feather")
    feather.write_feather(table.slice(0, 0), path / "annotations.feather")
    with pytest.raises(InputError, match=r"annotations\.feather has no box"):
        read_log(path)


def test_spoilt_measurements_are_refused_when_asked_for(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", sweeps=[0], images=[0])
    for file in (*path.glob("sensors/lidar/*"), *path.glob("sensors/cameras/*/*")):
        file.write_bytes(b"nothing")
    log = read_log(path)
    with pytest.raises(InputError, match=r"cannot read .*\.feather"):
        log.sweep(FIRST_NS)
    with pytest.raises(InputError, match="is not a picture that OpenCV can decode"):
        log.image("ring_front_center", FIRST_NS)


def test_poses_that_do_not_cover_the_boxes_are_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", seconds=6.0)
    table = feather.read_table(path / "city_SE3_egovehicle.feather")
    feather.write_feather(table.slice(0, 300), path / "city_SE3_egovehicle.feather")
    with pytest.raises(InputError, match=r"city_SE3_egovehicle\.feather covers|poses cover"):
        LogWorld(path)


@pytest.mark.parametrize(
    ("mark", "styles"),
    [
        ("NONE", []),
        ("UNKNOWN", []),
        ("SOLID_BLUE", []),
        ("SOLID_WHITE", ["solid"]),
        ("DASHED_YELLOW", ["dashed"]),
        ("DOUBLE_SOLID_YELLOW", ["solid", "solid"]),
        ("DOUBLE_DASH_WHITE", ["dashed", "dashed"]),
        ("SOLID_DASH_WHITE", ["solid", "dashed"]),
        ("DASH_SOLID_YELLOW", ["dashed", "solid"]),
    ],
)
def test_mark_types_become_lines(mark: str, styles: list[str]) -> None:
    lines = lines_of(mark)
    assert [style for style, _ in lines] == styles
    assert all((color[2] < 100) == mark.endswith("YELLOW") for _, color in lines)


def test_a_parked_car_is_where_it_was_put_whatever_the_log_is_called(tmp_path: Path) -> None:
    path = write_log(tmp_path / "another name", [Actor("p", "REGULAR_VEHICLE", straight(40.0, -1.0))])
    world = LogWorld(path)
    assert world.name == "log:another name"
    assert np.abs(world.tracks.poses_TN3[:, 0, :2] - [40.0, -1.0]).max() < 5e-3
