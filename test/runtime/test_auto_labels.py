"""Detections of a drive to labels: joined, carried on, filled, never doubled, as sure as there is reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, BOX_STD_FIELDS
from e2e_perception.core.tracks import Tracks
from e2e_perception.runtime.auto_labels import AutoLabels, Evidence, auto_labels, confidence
from e2e_perception.runtime.offline_tracks import SeenFrame, seen_frame

GRID = BevGrid(x_min=-40.0, x_max=40.0, y_min=-40.0, y_max=40.0, resolution=0.5)
Seen = dict[str, Any]  # x, y, score, and perhaps class, identity of the causal track, yaw, length


def outputs(found: list[Seen]) -> dict[str, Any]:
    """As the engine gives them, with a detection that is none at the end."""
    num = len(found) + 1
    scores, boxes = np.full((1, num, len(CLASSES)), 0.01, np.float32), np.zeros((1, num, 10), np.float32)
    for q, item in enumerate(found):
        scores[0, q, CLASSES.index(item.get("class_name", "car"))] = item["score"]
        yaw = item.get("yaw", 0.0)
        values = {
            "x": item["x"], "y": item["y"], "z": 0.8,
            "log_length": np.log(item.get("length", 4.5)), "log_width": np.log(1.8),
            "log_height": np.log(1.6), "sin_yaw": np.sin(yaw), "cos_yaw": np.cos(yaw),
            "vx": item.get("vx", 0.0), "vy": 0.0,
        }  # fmt: skip
        boxes[0, q] = [values[name] for name in BOX_FIELDS]
    log_var = np.full((1, num, len(BOX_STD_FIELDS)), np.log(0.04), np.float32)
    return {"query_scores": scores, "query_boxes": boxes, "query_log_var": log_var}


def tracks(found: list[Seen]) -> Tracks:
    tracked = [item for item in found if "identity" in item]
    n = len(tracked)
    classes = [CLASSES.index(item.get("class_name", "car")) for item in tracked]
    boxes = Boxes(
        centers_N3=np.array([(item["x"] + 0.1, item["y"], 0.8) for item in tracked], np.float32).reshape(
            n, 3
        ),
        sizes_N3=np.ones((n, 3), np.float32),
        yaws_N=np.zeros(n, np.float32),
        velocities_N2=np.zeros((n, 2), np.float32),
        class_ids_N=np.array(classes, np.int64),
        scores_N=np.ones(n, np.float32),
        ids_N=np.array([item["identity"] for item in tracked], np.int64),
    )
    none = np.zeros(n, np.int64)
    return Tracks(
        0, boxes, none, none, np.ones(n, bool), np.ones((n, 2), np.float32),
        np.zeros((n, 1, 1, 2), np.float32), np.ones((n, 1, 1, 2), np.float32),
        np.ones((n, 1), np.float32), np.ones(1),
    )  # fmt: skip


def drive(frames: list[list[Seen]], speed: float = 0.0) -> list[SeenFrame]:
    """10 Hz; what is seen is given in odom, and comes from a robot that drives along x."""
    made = []
    for k, found in enumerate(frames):
        pose = SE2(0.1 * k * speed, 0.0, 0.0)
        here = [{**item, "x": item["x"] - pose.x} for item in found]
        made.append(seen_frame(0.1 * k, pose, tracks(here), outputs(here)))
    return made


def label(frames: list[SeenFrame], *, lidar: bool | None = None, **limits: Any) -> AutoLabels:
    cells = None if lidar is None else np.full(GRID.shape, lidar)
    settings = {"least_sightings": 3, "least_confidence": 0.0, **limits}
    return auto_labels(frames, [Evidence.of(cells, GRID)] * len(frames), **settings)


def passing(k: int, **more: Any) -> Seen:
    """One that drives along x at 5 m/s."""
    return {"x": 5.0 + 0.5 * k, "y": 3.0, "vx": 5.0, "score": 0.9, **more}


@pytest.mark.parametrize("speed", [0.0, 8.0])
def test_a_track_is_where_its_object_is_whether_the_robot_moves_or_not(speed: float) -> None:
    (track,) = label(drive([[passing(k, identity=4)] for k in range(20)], speed)).tracks
    assert (track.first, len(track), track.class_id) == (0, 20, 0)
    np.testing.assert_allclose(track.centers_K3[:, 0], 5.0 + 0.5 * np.arange(20), atol=1e-3)
    np.testing.assert_allclose(track.centers_K3[:, 1:], np.tile([3.0, 0.8], (20, 1)), atol=1e-3)
    np.testing.assert_allclose(track.velocities_K2, np.tile([5.0, 0.0], (20, 1)), atol=1e-2)
    np.testing.assert_allclose(track.size, (4.5, 1.8, 1.6), atol=1e-4)
    np.testing.assert_allclose(track.yaws_K, 0.0, atol=1e-6)


def test_weak_detections_carry_a_track_back_to_where_it_was_first_seen_and_on() -> None:
    frames = []
    for k in range(40):
        sure = 12 <= k < 25
        frames.append([passing(k, score=0.9, identity=1) if sure else passing(k, score=0.2)])
    frames[6] = []
    (track,) = label(drive(frames)).tracks
    assert (track.first, len(track)) == (0, 40)
    assert track.seen_K.sum() == 39 and not track.seen_K[6]
    np.testing.assert_allclose(track.centers_K3[:, 0], 5.0 + 0.5 * np.arange(40), atol=0.01)
    noise = [[passing(k, identity=1), {"x": -20.0, "y": 5.0 * (k % 5), "score": 0.4}] for k in range(20)]
    assert len(label(drive(noise)).tracks) == 1, "weak detections alone are no track"


def test_two_tracks_of_one_object_are_joined_within_a_second_and_not_after() -> None:
    def broken(gap: int) -> list[SeenFrame]:
        frames = [[passing(k, identity=1)] for k in range(15)]
        return drive([*frames, *([[]] * gap), *([passing(k, identity=2)] for k in range(15 + gap, 35))])

    (joined,) = label(broken(8)).tracks
    assert (joined.first, len(joined)) == (0, 35)
    np.testing.assert_allclose(joined.centers_K3[:, 0], 5.0 + 0.5 * np.arange(35), atol=0.02)
    filled = ~joined.seen_K
    assert filled.sum() == 8
    assert joined.confidences_K[filled].max() < joined.confidences_K[joined.seen_K].min()
    assert len(label(broken(12)).tracks) == 2
    other = drive(
        [[passing(k, identity=1)] for k in range(15)]
        + [[{"x": 5.0 + 0.5 * k, "y": 6.0, "vx": 5.0, "score": 0.9, "identity": 2}] for k in range(17, 30)]
    )
    assert len(label(other).tracks) == 2, "three metres to the side is somebody else"
    person = [[passing(k, identity=1)] for k in range(15)] + [
        [passing(k, identity=2, class_name="pedestrian")] for k in range(15, 30)
    ]
    assert {CLASSES[t.class_id] for t in label(drive(person)).tracks} == {"car", "pedestrian"}


def test_class_and_size_are_those_of_most_of_the_evidence() -> None:
    frames = [
        [passing(k, identity=1, **({"class_name": "truck", "length": 12.0} if k < 4 else {}))]
        for k in range(12)
    ]
    (track,) = label(drive(frames)).tracks
    assert CLASSES[track.class_id] == "car"
    np.testing.assert_allclose(track.size[0], 4.5, rtol=1e-4)


def test_one_object_that_is_seen_as_two_gets_one_label() -> None:
    frames = [
        [passing(k, identity=1), passing(k, x=5.0 + 0.5 * k + 0.6, score=0.5, identity=2)] for k in range(20)
    ]
    found = label(drive(frames))
    assert len(found.tracks) == 1 and found.doubled == 1
    apart = [[passing(k, identity=1), passing(k, y=-1.0, score=0.5, identity=2)] for k in range(20)]
    assert len(label(drive(apart)).tracks) == 2
    standing = {"x": 15.0, "y": 3.4, "score": 0.5, "identity": 2}
    first, second = label(drive([[passing(k, identity=1), standing] for k in range(40)])).tracks
    assert first.alone_K.all()
    assert np.flatnonzero(~second.alone_K).tolist() == [19, 20, 21], "where they are less than a metre apart"


def test_short_and_doubtful_tracks_are_left_out_and_counted() -> None:
    frames = [[passing(k, identity=1)] for k in range(20)]
    for k in range(2):
        frames[k].append({"x": -10.0, "y": 0.0, "score": 0.9, "identity": 2})
    for k in range(6):
        frames[k].append({"x": -20.0, "y": 0.0, "score": 0.3, "identity": 3})
    found = label(drive(frames), least_confidence=0.3)
    assert (len(found.tracks), found.too_short, found.too_doubtful) == (1, 1, 1)
    assert len(label(drive(frames), least_sightings=1).tracks) == 3


def test_light_returned_from_a_box_makes_its_label_surer() -> None:
    frames = drive([[passing(k, identity=1, score=0.4)] for k in range(10)])
    lit, unknown, dark = (
        float(label(frames, lidar=x).tracks[0].confidences_K[0]) for x in (True, None, False)
    )
    assert 1.0 >= lit > unknown > dark > 0.0


def test_confidence_rises_with_each_evidence_and_stays_a_chance() -> None:
    for i in range(3):
        chances = []
        for value in np.linspace(0.0, 1.0, 12):
            arguments = [0.5, 10, 0.5]
            arguments[i] = 1 + int(50 * value) if i == 1 else float(value)
            chances.append(confidence(*arguments))  # type: ignore[arg-type]
        assert chances == sorted(chances) and chances[0] < chances[-1]
        assert all(0.0 < chance < 1.0 for chance in chances)


def test_frames_without_anybody_give_no_labels() -> None:
    assert label([]).tracks == label(drive([[], [], []])).tracks == ()


def test_evidence_is_kept_as_it_was() -> None:
    cells = np.random.default_rng(0).random(GRID.shape) < 0.3
    kept = Evidence.of(cells, GRID).occupied()
    assert kept is not None
    np.testing.assert_array_equal(kept, cells)
    assert Evidence.of(None, GRID).occupied() is None
