"""Bags: what is written is read back, real recordings are understood, broken ones are explained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3, rotation_from_quaternion
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import Rig, load_rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.data.bags import (
    CAMERA_INFO_TYPE,
    COMPRESSED_IMAGE_TYPE,
    IMAGE_TYPE,
    ODOMETRY_TYPE,
    PATH_TYPE,
    POINTS_TYPE,
    TF_TYPE,
    BagMessage,
    BagSource,
    BagWriter,
    match_topics,
    project_typestore,
    write_scenario_bag,
)
from e2e_perception.data.message_factory import RosbagsFactory

START = 1_700_000_000_000_000_000
MS = 1_000_000


def tiny() -> Rig:
    return load_rig(config_dir() / "rigs" / "tiny.yaml")


def real_bag() -> Path:
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", root.parent / "shared" / "data"))
    path = data / "kitti_highway"
    if not path.is_dir():
        pytest.skip(f"no recorded bag at {path}")
    return path


def cloud(seed: int, *extra: str) -> PointsSample:
    rng = np.random.default_rng(seed)
    return PointsSample({name: rng.normal(0, 10, 50).astype(np.float32) for name in ("x", "y", "z", *extra)})


def picture(width: int, height: int) -> ImageSample:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = ramp, 40
    return ImageSample(rgb)


def sensor_stream() -> list[SensorMessage]:
    messages = []
    for k in range(3):
        stamp = START + 100 * k * MS
        messages += [
            SensorMessage("radar_front", stamp, stamp + 15 * MS, cloud(k, "velocity", "rcs")),
            SensorMessage("front", stamp + 8 * MS, stamp + 30 * MS, picture(704, 256)),
            SensorMessage("top", stamp, stamp + 50 * MS, cloud(k + 10, "intensity")),
        ]
    return messages


def ego(stamp_ns: int) -> EgoState:
    t = (stamp_ns - START) * 1e-9
    return EgoState(stamp_ns, SE3.planar(8.0 * t, 0.5, 0.1), np.array([8.0, 0.0, 0.0]), 0.2)


def some_boxes() -> Boxes:
    return Boxes(
        centers_N3=np.array([[10.0, 1.0, 0.8], [5.0, -3.0, 0.9]], np.float32),
        sizes_N3=np.array([[4.5, 1.8, 1.6], [0.6, 0.6, 1.8]], np.float32),
        yaws_N=np.array([0.3, -2.0], np.float32),
        velocities_N2=np.array([[7.0, 0.5], [0.0, 1.2]], np.float32),
        class_ids_N=np.array([CLASSES.index("car"), CLASSES.index("pedestrian")]),
        scores_N=np.ones(2, np.float32),
        ids_N=np.array([7, 3]),
    )


def write(path: Path) -> Path:
    written = write_scenario_bag(
        path,
        sensor_stream(),
        tiny(),
        odometry=[ego(START + k * 20 * MS) for k in range(12)],
        route=Route(np.array([[0.0, 0.0], [30.0, 0.0], [60.0, 5.0]])),
        labels=[(START + 100 * k * MS, some_boxes()) for k in range(3)],
    )
    # Per picture a CameraInfo, per pose a transform; once /tf_static and the route.
    assert written == 9 + 3 + 2 * 12 + 3 + 2
    return path


def by_topic(messages: Iterable[BagMessage]) -> dict[str, list[BagMessage]]:
    sorted_out: dict[str, list[BagMessage]] = {}
    for message in messages:
        sorted_out.setdefault(message.topic, []).append(message)
    return sorted_out


# ------------------------------------------------------------------ round trip


def test_messages_come_back_in_order_of_arrival_with_their_stamps(tmp_path: Path) -> None:
    with BagSource(write(tmp_path / "bag")) as bag:
        messages = list(bag)
    stamps = [m.stamp_ns for m in messages]
    assert stamps == sorted(stamps)
    assert messages[0].topic == "/tf_static"
    lidar = by_topic(messages)["/lidar/points"]
    assert [m.stamp_ns - START for m in lidar] == [50 * MS, 150 * MS, 250 * MS]
    headers = [m.message.header.stamp for m in lidar]
    assert [h.sec * 1_000_000_000 + h.nanosec - START for h in headers] == [0, 100 * MS, 200 * MS]


def test_clouds_come_back_exactly(tmp_path: Path) -> None:
    with BagSource(write(tmp_path / "bag")) as bag:
        messages = by_topic(bag)
    for topic, seeds, names in (
        ("/lidar/points", (10, 11, 12), ("intensity",)),
        ("/radar/front/points", (0, 1, 2), ("velocity", "rcs")),
    ):
        for message, seed in zip(messages[topic], seeds, strict=True):
            got = message.message
            assert [f.name for f in got.fields] == ["x", "y", "z", *names]
            assert (got.height, got.width, got.row_step) == (1, 50, 50 * got.point_step)
            table = np.frombuffer(got.data.tobytes(), "<f4").reshape(50, -1)
            expected = cloud(seed, *names).fields
            for column, field in enumerate(got.fields):
                np.testing.assert_array_equal(table[:, column], expected[field.name])


def test_pictures_come_back_in_the_right_colours_with_calibration(tmp_path: Path) -> None:
    with BagSource(write(tmp_path / "bag")) as bag:
        messages = by_topic(bag)
    image = messages["/camera/front/image/compressed"][0].message
    assert image.format == "jpeg"
    rgb = cv2.cvtColor(cv2.imdecode(image.data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    error = np.abs(rgb.astype(int) - picture(704, 256).rgb_HW3)
    assert error.mean() < 2.0
    info = messages["/camera/front/camera_info"][0]
    camera = tiny().cameras[0]
    np.testing.assert_allclose(info.message.k.reshape(3, 3), camera.intrinsics)
    np.testing.assert_allclose(info.message.p.reshape(3, 4)[:, :3], camera.intrinsics)
    assert (info.message.width, info.message.height) == (704, 256)
    assert info.message.header == image.header
    assert info.stamp_ns == messages["/camera/front/image/compressed"][0].stamp_ns


def test_odometry_transforms_route_and_labels_come_back(tmp_path: Path) -> None:
    with BagSource(write(tmp_path / "bag")) as bag:
        messages = by_topic(bag)
    state = ego(START + 20 * MS)
    odometry = messages["/odom"][1].message
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    assert odometry.pose.pose.position.x == pytest.approx(state.odom_from_base.translation[0])
    assert odometry.twist.twist.linear.x == 8.0
    assert odometry.twist.twist.angular.z == pytest.approx(0.2)

    static = {t.child_frame_id: t for t in messages["/tf_static"][0].message.transforms}
    for sensor in tiny().sensors:
        transform = static[sensor.frame_id]
        assert transform.header.frame_id == "base_link"
        t, r = transform.transform.translation, transform.transform.rotation
        expected = sensor.base_from_sensor
        np.testing.assert_allclose([t.x, t.y, t.z], expected.translation, atol=1e-12)
        np.testing.assert_allclose(
            rotation_from_quaternion(r.x, r.y, r.z, r.w), expected.rotation, atol=1e-12
        )

    route = messages["/route"][0].message
    assert route.header.frame_id == "odom"
    assert [(p.pose.position.x, p.pose.position.y) for p in route.poses] == [(0, 0), (30, 0), (60, 5)]

    tracks = messages["/labels"][2].message
    assert [t.class_name for t in tracks.tracks] == ["car", "pedestrian"]
    assert [t.id for t in tracks.tracks] == [7, 3]
    assert tracks.tracks[0].pose.position.x == pytest.approx(10.0)
    assert tracks.tracks[1].velocity.y == pytest.approx(1.2)
    assert tracks.header.frame_id == "base_link"


def test_metadata_is_what_ros2_bag_expects(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    info = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["version"] == 9
    assert info["storage_identifier"] == "mcap"
    assert [(path / name).is_file() for name in info["relative_file_paths"]] == [True]
    assert info["message_count"] == 41
    topics = {t["topic_metadata"]["name"]: t["topic_metadata"] for t in info["topics_with_message_count"]}
    assert topics["/labels"]["type"] == "e2e_perception/msg/Tracks"
    assert all(t["type_description_hash"].startswith("RIHS01_") for t in topics.values())
    latched = [name for name, t in topics.items() if t["offered_qos_profiles"]]
    assert sorted(latched) == ["/route", "/tf_static"]
    assert topics["/route"]["offered_qos_profiles"][0]["durability"] == "transient_local"


def test_only_chosen_topics_and_times_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    with BagSource(path, topics=["/odom", "/lidar/points"]) as bag:
        assert bag.num_messages == 15
        assert {m.topic for m in bag} == {"/odom", "/lidar/points"}
        some = list(bag.messages(start_ns=START + 100 * MS, stop_ns=START + 200 * MS))
        assert [m.stamp_ns - START for m in some if m.topic == "/lidar/points"] == [150 * MS]
        assert all(START + 100 * MS <= m.stamp_ns < START + 200 * MS for m in some)
        assert (bag.start_ns, bag.end_ns) == (START, START + 250 * MS)


def test_sqlite_bags_without_definitions_are_read(tmp_path: Path) -> None:
    store = project_typestore()
    make = RosbagsFactory(store)
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/odom", ODOMETRY_TYPE, typestore=store)
        message = make(ODOMETRY_TYPE, child_frame_id="base_link")
        writer.write(connection, START, store.serialize_cdr(message, ODOMETRY_TYPE))
    with BagSource(tmp_path / "bag") as bag:
        assert [m.message.child_frame_id for m in bag] == ["base_link"]


def test_a_real_recording_is_read() -> None:
    with BagSource(real_bag()) as bag:
        assert bag.counts["/lidar/points"] == 78
        assert bag.types["/camera/front/image_rect/compressed"] == COMPRESSED_IMAGE_TYPE
        assert (bag.end_ns - bag.start_ns) * 1e-9 == pytest.approx(7.752)
        first = next(m for m in bag if m.topic == "/lidar/points")
    assert first.message.width * first.message.height > 100_000


def test_an_existing_path_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists; a bag is never overwritten"):
        BagWriter(tmp_path)


def test_an_error_while_writing_leaves_no_bag_that_looks_whole(tmp_path: Path) -> None:
    wrong = [SensorMessage("front", START, START, cloud(0))]
    with pytest.raises(InputError, match="camera 'front' sent a PointsSample, expected ImageSample"):
        write_scenario_bag(tmp_path / "bag", wrong, tiny(), odometry=[ego(START)])
    assert not (tmp_path / "bag" / "metadata.yaml").exists()


def test_one_topic_has_one_type(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.write("/a", PATH_TYPE, START, bag.make(PATH_TYPE))
        with pytest.raises(
            InputError, match=r"topic /a is of type nav_msgs/msg/Path, a tf2_msgs/msg/TFMessage"
        ):
            bag.write("/a", TF_TYPE, START, bag.make(TF_TYPE))


# ------------------------------------------------------------------ what is wrong with a bag


def test_a_missing_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no bag at .*nowhere; give a rosbag2 directory"):
        BagSource(tmp_path / "nowhere")


def test_something_that_is_no_bag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is no rosbag2 file"):
        BagSource(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"it has no metadata\.yaml and no \.mcap or \.db3 file"):
        BagSource(tmp_path)
    (tmp_path / "text.mcap").write_text("this is no recording at all, whatever it is called")
    with pytest.raises(InputError, match="does not begin with MCAP's magic bytes"):
        BagSource(tmp_path / "text.mcap")


def test_a_bag_without_messages_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/odom", ODOMETRY_TYPE, typestore=project_typestore())
    with pytest.raises(InputError, match="holds no messages"):
        BagSource(tmp_path / "bag")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_bag_that_was_cut_off_says_how_far_it_is_whole(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "bag")
    file = next(path.glob("*.mcap"))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    if share == 0.0:
        expected = r"is empty \(0 bytes\); record or copy it again"
    else:
        expected = rf"is cut off: \d+ of its {int(share * len(data))} bytes hold complete records, with"
    with pytest.raises(InputError, match=expected):
        BagSource(path)


def test_a_cut_off_real_recording_says_up_to_which_second(tmp_path: Path) -> None:
    source = real_bag() / "kitti_highway.mcap"
    file = tmp_path / "cut.mcap"
    with source.open("rb") as whole:
        file.write_bytes(whole.read(source.stat().st_size // 8))
    with pytest.raises(InputError, match=r"with (no message|messages up to \d\.\d s)\. Copy it again"):
        BagSource(file)


def test_damage_in_the_middle_says_how_far_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    file = next(path.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    middle = len(data) // 3
    # Wide enough to hit the head of a message: rosbags writes no checksums that tell of a flipped pixel.
    data[middle : middle + 20_000] = bytes(20_000 * [0xAB])
    file.write_bytes(data)
    with (
        BagSource(path) as bag,
        pytest.raises(InputError, match=r"is damaged after \d+ messages \(\d\.\d s\)"),
    ):
        list(bag)


def test_a_recorder_that_died_before_the_metadata_leaves_a_readable_bag(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    (path / "metadata.yaml").unlink()
    with BagSource(path) as bag:
        assert bag.num_messages == 41


def test_broken_metadata_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 9}")
    with pytest.raises(InputError, match=r"cannot be read: .*missing"):
        BagSource(path)


def test_missing_topics_are_named_with_those_present(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    with pytest.raises(
        InputError, match=r"no topic /lidar/rear; it has /camera/front/camera_info \(sensor_msgs"
    ):
        BagSource(path, topics=["/odom", "/lidar/rear"])


def test_wrong_types_are_named_with_those_expected(tmp_path: Path) -> None:
    with BagSource(write(tmp_path / "bag")) as bag:
        bag.require({"/odom": ODOMETRY_TYPE, "/lidar/points": (POINTS_TYPE, "x/msg/Y"), "/tf": None})
        with pytest.raises(
            InputError,
            match=r"topic /odom of bag .* is of type nav_msgs/msg/Odometry, expected nav_msgs/msg/Path",
        ):
            bag.require({"/odom": PATH_TYPE})


# ------------------------------------------------------------------ topics and rigs


def test_a_rigs_own_topics_are_taken_as_they_are() -> None:
    rig = tiny()
    types = {s.topic: COMPRESSED_IMAGE_TYPE if s.kind == "camera" else POINTS_TYPE for s in rig.sensors}
    match = match_topics({**types, "/odom": ODOMETRY_TYPE, "/route": PATH_TYPE}, rig)
    assert match.rig == rig
    assert match.guessed == {}
    assert match.missing == ()


def test_other_topics_are_matched_by_type_and_name() -> None:
    types = {
        "/robot/front_camera/image_raw": IMAGE_TYPE,
        "/robot/left_camera/image_raw": IMAGE_TYPE,
        "/robot/front_camera/camera_info": CAMERA_INFO_TYPE,
        "/velodyne_points": POINTS_TYPE,
        "/radar_front/scan": POINTS_TYPE,
        "/wheel/odometry": ODOMETRY_TYPE,
        "/planner/path": PATH_TYPE,
    }
    match = match_topics(types, tiny())
    assert match.guessed == {
        "front": "/robot/front_camera/image_raw",
        "left": "/robot/left_camera/image_raw",
        "top": "/velodyne_points",
        "radar_front": "/radar_front/scan",
        "odom": "/wheel/odometry",
    }
    # A path that is not called a route may be a plan, and is none.
    assert set(match.missing) == {"right", "radar_left", "radar_right", "route"}
    assert match.rig.sensor("top").topic == "/velodyne_points"
    assert match.rig.odom_topic == "/wheel/odometry"
    assert match.rig.cameras[0].camera_info_topic == "/robot/front_camera/camera_info"


def test_matching_does_not_depend_on_the_order_of_topics_and_takes_none_twice() -> None:
    types = {"/front_left/image": IMAGE_TYPE, "/front/image": IMAGE_TYPE, "/points": POINTS_TYPE}
    rig = tiny()
    cameras = [
        c.model_copy(update={"name": n}) for c, n in zip(rig.cameras, ("front", "front_left"), strict=False)
    ]
    rig = rig.model_copy(update={"sensors": (*rig.lidars, *cameras)})
    for order in (list(types), list(types)[::-1]):
        match = match_topics({topic: types[topic] for topic in order}, rig)
        assert match.guessed == {"front": "/front/image", "front_left": "/front_left/image", "top": "/points"}


def test_ambiguous_topics_are_left_alone() -> None:
    types = {"/a": IMAGE_TYPE, "/b": IMAGE_TYPE, "/lidar": POINTS_TYPE}
    match = match_topics(types, tiny())
    assert match.guessed == {"top": "/lidar"}
    assert {"front", "left", "right"} <= set(match.missing)


def test_the_real_recording_fits_the_tiny_rig() -> None:
    with BagSource(real_bag()) as bag:
        match = match_topics(bag.types, tiny())
    assert match.guessed == {"front": "/camera/front/image_rect/compressed"}
    assert match.rig.sensor("top").topic == "/lidar/points"
    assert set(match.missing) == {"left", "right", "radar_front", "radar_left", "radar_right", "route"}


def test_a_bag_without_camera_and_lidar_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"no topic of the bag fits a camera or lidar of rig 'tiny'; the bag has /odom"
    ):
        match_topics({"/odom": ODOMETRY_TYPE}, tiny())


def test_a_sensor_topic_of_another_type_is_refused() -> None:
    types = {"/lidar/points": ODOMETRY_TYPE, "/camera": IMAGE_TYPE}
    with pytest.raises(
        InputError, match=r"topic /lidar/points of lidar 'top' is of type nav_msgs/msg/Odometry"
    ):
        match_topics(types, tiny())


def test_files_of_a_bag_can_be_read_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    shutil.copy(next(path.glob("*.mcap")), tmp_path / "alone.mcap")
    with BagSource(tmp_path / "alone.mcap") as bag:
        assert bag.num_messages == 41


def test_serialised_messages_are_written_as_they_are(tmp_path: Path) -> None:
    store = project_typestore()
    cdr = bytes(
        store.serialize_cdr(RosbagsFactory(store)(ODOMETRY_TYPE, child_frame_id="base_link"), ODOMETRY_TYPE)
    )
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_raw("/odom", ODOMETRY_TYPE, START, cdr)
    with BagSource(tmp_path / "bag") as source:
        assert [m.message.child_frame_id for m in source] == ["base_link"]


def test_arrays_with_gaps_between_their_elements_are_written_as_they_are(tmp_path: Path) -> None:
    stds = np.arange(12, dtype=np.float32).reshape(6, 2)
    kind = "e2e_perception/msg/PredictedTrajectory"
    with BagWriter(tmp_path / "bag") as bag:
        columns = {"std_x": bag.make.floats32(stds[:, 0]), "std_y": bag.make.floats32(stds[:, 1])}
        times = bag.make.floats32(np.arange(6.0))
        bag.write(
            "/prediction", kind, START, bag.make(kind, probability=1.0, times=times, positions=[], **columns)
        )
    with BagSource(tmp_path / "bag") as source:
        assert [m.message.std_y.tolist() for m in source] == [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0]]
