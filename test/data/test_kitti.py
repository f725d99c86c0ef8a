"""KITTI's formats: the same objects out as in, and a file and line for whatever is malformed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3, rotation_from_rpy
from e2e_perception.data.kitti import (
    TYPES,
    KittiFrame,
    KittiObject,
    boxes_on_ground,
    find_sequences,
    objects_of_boxes,
    read_poses,
    read_sequence,
    write_frame,
)

AB3DMOT = "3,2,10.5,20,110,80.25,7.5,1.5,1.6,3.9,2,1.7,20,-1.57,-1.6"
OBJECT = "Car 0 0 -1.6 10.5 20 110 80.25 1.5 1.6 3.9 2 1.7 20 -1.57 7.5"
CAR = KittiObject("Car", (10.5, 20.0, 110.0, 80.25), 1.5, 1.6, 3.9, (2.0, 1.7, 20.0), -1.57, 7.5)

metres = st.floats(-80.0, 80.0)
objects = st.builds(
    KittiObject,
    type=st.sampled_from(sorted(TYPES)),
    bbox_4=st.tuples(*[st.floats(0.0, 1242.0)] * 4),
    height=st.floats(0.3, 4.0),
    width=st.floats(0.3, 4.0),
    length=st.floats(0.3, 15.0),
    location_3=st.tuples(metres, st.floats(-3.0, 3.0), metres),
    rotation_y=st.floats(-3.14, 3.14),
    score=st.floats(-10.0, 20.0),
    track_id=st.integers(0, 10_000),
)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def numbers_of(found: KittiObject) -> list[float]:
    box = (found.height, found.width, found.length, *found.location_3, found.rotation_y, found.score)
    return [*found.bbox_4, *box]


@pytest.mark.parametrize(
    "text",
    [AB3DMOT, AB3DMOT.replace(",", ", "), f"3 -1 {OBJECT}"],
    ids=["commas", "commas, spaces", "tracking"],
)
def test_both_layouts_of_a_sequence_hold_the_same_object(text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "0001.txt", f"{text}\n\n")

    assert list(read_sequence(path)) == [KittiFrame(3, (CAR,))]
    assert find_sequences(path) == {"0001": path}


def test_files_of_single_frames_are_one_sequence_ordered_by_their_numbers(tmp_path: Path) -> None:
    for name, text in (("000010", OBJECT), ("000002", OBJECT), ("000003", "")):
        written(tmp_path / "seq" / f"{name}.txt", text)

    assert find_sequences(tmp_path / "seq") == {"seq": tmp_path / "seq"}
    assert find_sequences(tmp_path) == {"seq": tmp_path / "seq"}
    assert list(read_sequence(tmp_path / "seq")) == [KittiFrame(2, (CAR,)), KittiFrame(10, (CAR,))]


def test_a_directory_of_sequences_has_one_for_each_file(tmp_path: Path) -> None:
    for name in ("0001", "0000"):
        written(tmp_path / f"{name}.txt", AB3DMOT)

    assert list(find_sequences(tmp_path)) == ["0000", "0001"]


def test_regions_that_are_no_objects_are_left_out_and_a_missing_score_is_that_of_a_label(
    tmp_path: Path,
) -> None:
    region = "0 -1 DontCare -1 -1 -10 0 0 9 9 -1 -1 -1 -1000 -1000 -1000 -10"
    path = written(tmp_path / "a.txt", f"{region}\n0 5 {OBJECT.rpartition(' ')[0]}\n")
    (frame,) = read_sequence(path)

    assert [(o.score, o.track_id) for o in frame.objects] == [(1.0, 5)]


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, max_size=5), st.integers(0, 100_000))
def test_written_tracks_are_read_as_they_were(found: list[KittiObject], number: int) -> None:
    file = io.StringIO()
    write_frame(file, KittiFrame(number, tuple(found)))
    lines = file.getvalue().splitlines()

    assert all(len(line.split()) == 18 for line in lines)
    # TrackEval and AB3DMOT read these columns by number; who sits has another name in tracking.
    for line, one in zip(lines, found, strict=True):
        columns = line.split()
        kind = one.type.removesuffix("_sitting")
        assert (int(columns[0]), int(columns[1]), columns[2]) == (number, one.track_id, kind)
        np.testing.assert_allclose([float(c) for c in columns[6:]], numbers_of(one), atol=6e-3)


def test_a_file_of_tracks_is_read_again(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w", encoding="utf-8") as file:
        write_frame(file, KittiFrame(0, (CAR,)))
        write_frame(file, KittiFrame(7, (CAR, CAR)))

    assert list(read_sequence(tmp_path / "a.txt")) == [KittiFrame(0, (CAR,)), KittiFrame(7, (CAR, CAR))]


def test_who_sits_is_a_person_among_tracks_and_is_read_again(tmp_path: Path) -> None:
    sitting = replace(CAR, type="Person_sitting", track_id=3)
    with (tmp_path / "a.txt").open("w", encoding="utf-8") as file:
        write_frame(file, KittiFrame(0, (sitting,)))
    (frame,) = read_sequence(tmp_path / "a.txt")

    assert frame.objects == (replace(sitting, type="Person"),)
    assert boxes_on_ground(frame.objects).class_ids_N.tolist() == [CLASSES.index("pedestrian")]


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, max_size=5), metres, metres, st.floats(-3.1, 3.1))
def test_boxes_on_the_ground_lead_back_to_the_objects(
    found: list[KittiObject], x: float, z: float, turn: float
) -> None:
    pose = SE3(rotation_from_rpy(0.0, turn, 0.0), np.array([x, 0.3, z]))  # about the camera's y
    for known in (None, pose):
        back = objects_of_boxes(boxes_on_ground(found, known), found, known)
        for one, other in zip(found, back, strict=True):
            turned = np.angle(np.exp(1j * (one.rotation_y - other.rotation_y)))
            assert abs(turned) < 1e-4
            np.testing.assert_allclose(one.location_3, other.location_3, atol=1e-3)
            assert (one.type, one.track_id) == (other.type, other.track_id)


def test_an_object_that_faces_away_to_the_right_ahead_is_a_box_ahead_and_right() -> None:
    away = KittiObject("Car", (0.0, 0.0, 1.0, 1.0), 1.5, 1.6, 4.0, (3.0, 1.7, 20.0), -np.pi / 2, 1.0)
    boxes = boxes_on_ground([away])

    np.testing.assert_allclose(boxes.centers_N3, [[20.0, -3.0, -1.7 + 0.75]], atol=1e-6)
    np.testing.assert_allclose(boxes.sizes_N3, [[4.0, 1.6, 1.5]])
    np.testing.assert_allclose(boxes.yaws_N, [0.0], atol=1e-6)
    assert away.alpha == pytest.approx(-np.pi / 2 - np.arctan2(3.0, 20.0))


def test_a_moving_camera_sees_a_standing_object_at_one_place() -> None:
    pose = SE3(np.eye(3), np.array([0.0, 0.0, 5.0]))  # driven 5 m ahead
    before = KittiObject("Car", (0.0, 0.0, 1.0, 1.0), 1.5, 1.6, 4.0, (3.0, 1.7, 20.0), 0.3, 1.0)
    after = KittiObject("Car", (0.0, 0.0, 1.0, 1.0), 1.5, 1.6, 4.0, (3.0, 1.7, 15.0), 0.3, 1.0)
    one, other = boxes_on_ground([before]), boxes_on_ground([after], pose)

    np.testing.assert_allclose(one.centers_N3, other.centers_N3, atol=1e-5)
    np.testing.assert_allclose(one.yaws_N, other.yaws_N, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", r"bad\.txt:1: got 3 columns, expected 15 with commas"),
        (f"{AB3DMOT}\n{AB3DMOT},9", r"bad\.txt:2: got 16 columns, expected frame type x1"),
        (f"{AB3DMOT}\n3 -1 {OBJECT}", r"bad\.txt:2: got 18 columns"),
        (AB3DMOT.replace("7.5", "high"), r"bad\.txt:1: score is 'high', expected a finite number"),
        (AB3DMOT.replace("7.5", "nan"), r"bad\.txt:1: score is 'nan', expected a finite number"),
        (AB3DMOT.replace("3,2", "3.5,2"), r"bad\.txt:1: frame is '3\.5', expected a whole number"),
        (AB3DMOT.replace("3,2", "-3,2"), r"bad\.txt:1: frame is '-3', expected a whole number"),
        (AB3DMOT.replace("3,2", "3,7"), r"bad\.txt:1: unknown type '7'; there are Car, .* 2 Car"),
        (f"3 -1 {OBJECT}".replace("Car", "Dragon"), r"bad\.txt:1: unknown type 'Dragon'"),
        (AB3DMOT.replace("3.9", "0"), r"bad\.txt:1: l is 0\.0 m, expected more than 0"),
        (f"{AB3DMOT}\n\n{AB3DMOT.replace('3,2', '2,2')}", r"bad\.txt:3: frame 2 follows 3; sort the lines"),
        (OBJECT, r"bad\.txt: expected a sequence, but its lines are those of one frame"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.txt", text)

    with pytest.raises(InputError, match=message):
        list(read_sequence(path))


def test_what_is_no_text_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(InputError, match="is not a text file"):
        list(read_sequence(tmp_path / "binary.txt"))
    with pytest.raises(InputError, match="cannot read"):
        list(read_sequence(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="no detections at"):
        find_sequences(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \*\.txt file"):
        find_sequences(tmp_path / "empty")


def test_files_of_frames_that_are_not_named_by_number_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "seq" / "first.txt", OBJECT)

    with pytest.raises(InputError, match=r"first\.txt: files of a sequence .* are named by frame"):
        list(read_sequence(tmp_path / "seq"))


def test_poses_are_read_row_by_row_and_what_is_none_is_refused(tmp_path: Path) -> None:
    good = "1 0 0 4 0 1 0 5 0 0 1 6"
    (pose,) = read_poses(written(tmp_path / "poses.txt", good))
    np.testing.assert_allclose(pose.translation, [4.0, 5.0, 6.0])

    with pytest.raises(InputError, match=r"short\.txt:2: got 2 numbers, expected the 12"):
        read_poses(written(tmp_path / "short.txt", f"{good}\n1 2"))
    with pytest.raises(InputError, match=r"scaled\.txt:1: the left 3x3 of the pose is no rotation"):
        read_poses(written(tmp_path / "scaled.txt", good.replace("1", "2")))
