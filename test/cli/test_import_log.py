"""`import-log`: what a log says is what a clip says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from argoverse_logs import REAL_LOGS, Actor, real_log, straight, write_log
from scipy.spatial.transform import Rotation

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from e2e_perception.cli.ingest_log import TRACKS, rig_of
from e2e_perception.cli.main import main
from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import MAX_LABELS
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS, SIZES
from e2e_perception.data.shards import Dataset, open_clips, read_labels
from e2e_perception.simulation.argoverse import Annotations, Poses, log_rig, read_log
from e2e_perception.simulation.log_frames import LogFrames, class_of

X, Y, VX = (BOX_FIELDS.index(name) for name in ("x", "y", "vx"))
ACTORS = (
    Actor("car", "REGULAR_VEHICLE", straight(20.0, 4.0, 8.0)),
    Actor("cone", "CONSTRUCTION_CONE", straight(15.0, -3.0), (0.4, 0.4, 0.8)),
    Actor("dog", "DOG", straight(12.0, 5.0), (0.8, 0.3, 0.6)),
    Actor("bike", "BICYCLE", straight(10.0, -6.0, 4.0), (1.8, 0.6, 1.2)),
    Actor("rider", "BICYCLIST", straight(10.2, -6.0, 4.0), (1.0, 0.6, 1.8)),
)


def imported(out: Path, *logs: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main(["import-log", *map(str, logs), "--out", str(out), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_log_becomes_clips_with_all_that_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-10, 40, 3000), rng.uniform(-8, 8, 3000), rng.uniform(0, 1, 3000)])
    path = write_log(
        tmp_path / "log", ACTORS, points=points, sweeps=range(40), images=range(0, 40, 2), interior=9
    )
    told = imported(tmp_path / "set", path, capsys=capsys)
    (item,) = told["logs"]
    assert item["tracks_by_class"] == {"car": 1, "obstacle": 1, "cyclist": 2}
    # The bicycle is part of its rider; from 4.875 s on the cone is behind the
    # grid, which reaches 24 m back: at 4.9 s and in the eleven frames after.
    assert item["left_out"] == {"DOG": 1, "tracks_without_label": 1, "labels_outside_grid": 12}
    assert item["frames"] == 61 and item["sweeps"] == 40 and item["pictures"] == 20
    dataset = Dataset(tmp_path / "set")
    dataset.verify()
    facts = dataset.facts(item["shard"])
    assert facts["place"] == "XYZ" and facts["path"]["frame"] == "argoverse2:XYZ"
    assert len(facts["path"]["points"]) >= 1
    (store,) = open_clips(tmp_path / "set")
    clip = store.read(0)
    assert clip.maps_valid and clip.labels_valid
    names = [{CLASSES[c] for c in clip.class_ids_TB[t, clip.ids_TB[t] >= 0]} for t in range(len(clip))]
    assert all(row == {"car", "obstacle", "cyclist"} for row in names)
    assert all((clip.ids_TB[t] >= 0).sum() == 3 for t in range(len(clip))), "a bicycle is part of its rider"
    car = np.argwhere((clip.class_ids_TB == 0) & (clip.ids_TB >= 0))
    for t, slot in car:
        seconds = (clip.stamps_ns_T[t] - clip.stamps_ns_T[0]) * 1e-9
        assert clip.boxes_TB10[t, slot, VX] == pytest.approx(8.0, abs=0.3)
        driven = clip.ego_future_TS3[0, 0, 0] / SIZES["tiny"].step_s * seconds
        assert clip.boxes_TB10[t, slot, X] == pytest.approx(20.0 + 8.0 * seconds - driven, abs=0.3)
        assert clip.boxes_TB10[t, slot, Y] == pytest.approx(4.0, abs=0.2)
    assert clip.weights_TB[clip.ids_TB >= 0].min() == 1.0
    assert clip.inputs["lidar_raster"].any() and clip.inputs["camera_valid"][::2].any()
    assert clip.maps_T2YX[:, 0].any() and clip.maps_T2YX[:, 1].any()
    last = store.read(len(store) - 1)
    assert not last.visible_TB.any() and last.weights_TB.max() == 0.0, "no sensor, nobody seen"
    rows = read_labels(dataset.directory(item["shard"]))
    assert {(row["source"], row["reviewer"]) for row in rows} == {("argoverse2", "Argoverse 2")}
    # What no sensor saw has no confidence, here as in the clips.
    of = {str(row["clip_id"]): k for k, row in enumerate(store.rows)}
    for row in rows:
        weight = store.read(of[row["clip_id"]]).weights_TB[row["frame"], row["slot"]]
        assert row["confidence"] == weight
    assert {row["confidence"] for row in rows} == {0.0, 1.0}
    again = imported(tmp_path / "set", path, capsys=capsys)
    assert again["digest"] == told["digest"] and not again["logs"][0]["new"]
    other = imported(tmp_path / "other", path, capsys=capsys)
    assert other["digest"] == told["digest"]


def test_what_the_grid_and_the_slots_leave_out_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everybody drives as the car does, so that who is outside stays so."""
    crowd = [
        Actor(f"near{k}", "REGULAR_VEHICLE", straight(2.0 + 0.5 * k, 3.0, 8.0)) for k in range(MAX_LABELS + 3)
    ]
    far = Actor("far", "REGULAR_VEHICLE", straight(90.0, 0.0, 8.0))
    path = write_log(tmp_path / "log", [*crowd, far], seconds=3.0)
    (item,) = imported(tmp_path / "set", path, capsys=capsys)["logs"]
    assert item["frames"] == 31 and item["tracks"] == MAX_LABELS + 4
    # 31 frames are in four clips of ten, the last of which shares nine with the one before.
    assert item["left_out"] == {
        "tracks_without_label": 4, "labels_outside_grid": 31, "labels_beyond_slots": 3 * 31
    }  # fmt: skip
    assert main(["import-log", str(path), "--out", str(tmp_path / "set")]) == 0
    assert "labels outside grid 31" in " ".join(capsys.readouterr().out.split())


def test_several_logs_in_processes_give_what_one_after_the_other_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [write_log(tmp_path / name, [replace(ACTORS[0], motion=straight(x, 4.0, 8.0))], seconds=2.0)
            for name, x in (("a", 20.0), ("b", 30.0))]  # fmt: skip
    given = [str(path) for path in logs]
    told = {}
    for workers in ("1", "2"):
        words = ["import-log", *given, "--out", str(tmp_path / workers), "--workers", workers, "--json"]
        assert main(words) == 0
        told[workers] = json.loads(capsys.readouterr().out)
    assert told["1"]["digest"] == told["2"]["digest"]
    assert [item["log"] for item in told["2"]["logs"]] == given


def test_pictures_of_logs_go_through_the_privacy_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blurring_of_logs.py").write_text(
        "def black(rgb):\n    assert rgb.shape == (48, 64, 3)\n    return rgb * 0\n"
        "def fails(rgb):\n    raise RuntimeError('no model file')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = np.tile([20.0, 1.0, 0.5], (50, 1))
    path = write_log(tmp_path / "log", points=points, sweeps=range(20), images=range(20), seconds=2.0)
    digests = set()
    for number, words in enumerate(([], ["--privacy", "blurring_of_logs:black"])):
        out = tmp_path / f"set{number}"
        assert main(["import-log", str(path), "--out", str(out), *words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        digests.add(told["digest"])
        (store,) = open_clips(out)
        clip = store.read(0)
        assert clip.inputs["camera_valid"].any() and clip.inputs["lidar_raster"].any()
        assert bool(clip.inputs["images"].any()) == (not words), "no pixel of an unblurred picture is stored"
        recipe = Dataset(out).facts(told["logs"][0]["shard"])["recipe"]
        assert recipe.get("privacy", "").startswith("blurring_of_logs:black@") == bool(words)
    assert len(digests) == 2
    out = tmp_path / "failed"
    assert main(["import-log", str(path), "--out", str(out), "--privacy", "blurring_of_logs:fails"]) == 2
    assert "no model file" in capsys.readouterr().err and Dataset(out).shards() == []
    assert main(["import-log", str(path), "--out", str(out), "--privacy", "not_there:f"]) == 2


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "tracks", "sweeps"), [(REAL_LOGS[0], 114, 2), (REAL_LOGS[1], 146, 1)])
def test_real_logs_bring_every_annotated_track_and_the_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tracks: int, sweeps: int
) -> None:
    path = real_log(name)
    told = imported(tmp_path / "set", path, capsys=capsys)["logs"][0]
    log = read_log(path)
    by_class = {c: sum(class_of(k) == c for k in log.annotations.categories) for c in CLASSES}
    assert told["tracks_by_class"] == {c: n for c, n in by_class.items() if n}
    assert told["tracks"] + sum(n for k, n in told["left_out"].items() if k.isupper()) == tracks
    assert (told["sweeps"], told["frames"]) == (sweeps, 156)
    (store,) = open_clips(tmp_path / "set")
    frames = LogFrames(log, rig_of(log), SIZES["tiny"])
    boxes = [frames.boxes_at(stamp, seen=True) for stamp in frames.stamps_ns.tolist()]
    reached = [SIZES["tiny"].grid.contains(found.centers_N3[:, :2]) for found in boxes]
    assert told["left_out"]["labels_outside_grid"] == sum(int((~inside).sum()) for inside in reached)
    seen = {int(i) for found, inside in zip(boxes, reached, strict=True) for i in found.ids_N[inside]}
    assert told["left_out"]["tracks_without_label"] == told["tracks"] - len(seen)
    table = pq.read_table(Dataset(tmp_path / "set").directory(told["shard"]) / TRACKS)
    assert len(set(table["track"].to_pylist())) == tracks
    assert len(table) == len(log.annotations.tracks_A)
    here = {(s, i) for s, i in zip(table["stamp_ns"].to_pylist(), table["identity"].to_pylist(), strict=True)}
    num_labels = 0
    for index in range(len(store)):
        clip = store.read(index)
        assert clip.maps_valid and clip.maps_T2YX[:, 0].any()
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            own = {(stamp_ns, identity) for identity in clip.ids_TB[t][clip.ids_TB[t] >= 0].tolist()}
            assert own <= here
            num_labels += len(own)
    assert num_labels > 1000


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL_LOGS)
def test_labels_go_back_to_what_the_data_set_says(name: str) -> None:
    """Through city, odom and base frame to a millimetre, which is what single precision leaves at 100 m."""
    log = read_log(real_log(name))
    frames = LogFrames(log, rig_of(log), SIZES["tiny"])
    a = log.annotations
    for stamp in frames.stamps_ns[::30].tolist():
        boxes = frames.boxes_at(stamp, seen=True)
        own = {int(a.tracks_A[row]): row for row in np.flatnonzero(a.stamps_ns_A == stamp)}
        base_from_odom = frames.ego_at(stamp).odom_from_base.planar_part().inverse()
        for n, track in enumerate(boxes.ids_N.tolist()):
            row = own[track]
            np.testing.assert_allclose(boxes.sizes_N3[n], a.sizes_A3[row], rtol=1e-6)
            odom = base_from_odom.inverse().apply(boxes.centers_N3[n, :2].astype(np.float64))
            np.testing.assert_allclose(odom, frames._odom_A4[row, :2], atol=1e-4)


@pytest.mark.parametrize("tilt", [0.0, 0.05])
def test_a_thousand_boxes_go_through_a_thousand_poses_and_back(tmp_path: Path, tilt: float) -> None:
    log = read_log(write_log(tmp_path / "log"))
    rng = np.random.default_rng(0)
    num = 1000
    # A box per instant, so that each has a pose of its own, up to kilometres from the city's origin.
    stamps = log.poses.stamps_ns_T[0] + 100_000_000 * np.arange(num)
    box_yaws, car_yaws = rng.uniform(-np.pi, np.pi, (2, num))
    turned = Rotation.from_euler("ZYX", np.column_stack([car_yaws, rng.uniform(-tilt, tilt, (num, 2))]))
    annotations = Annotations(
        stamps_ns_A=stamps,
        tracks_A=np.zeros(num, np.int64),
        centers_A3=rng.uniform(-100.0, 100.0, (num, 3)),
        quaternions_A4=Rotation.from_euler("z", box_yaws[:, None]).as_quat(),
        sizes_A3=rng.uniform(0.3, 20.0, (num, 3)),
        num_points_A=np.ones(num, np.int64),
        track_ids=("one",),
        categories=("REGULAR_VEHICLE",),
    )
    poses = Poses(stamps, turned.as_quat(), rng.uniform(-5000.0, 5000.0, (num, 3)))
    frames = LogFrames(replace(log, annotations=annotations, poses=poses), log_rig(log), SIZES["tiny"])
    rows = frames.table().to_pydict()
    assert rows["stamp_ns"] == stamps.tolist()
    odom = np.column_stack([rows["x"], rows["y"], rows["z"]])
    city = frames.odom_from_city.inverse().apply(odom)
    centers = turned.inv().apply(city - poses.positions_T3)
    assert np.abs(centers - annotations.centers_A3).max() < 1e-6
    sizes = np.column_stack([rows["length"], rows["width"], rows["height"]])
    assert np.abs(sizes - annotations.sizes_A3).max() < 1e-6
    if tilt == 0.0:  # on a slope a box has another heading in the plane
        back = np.array(rows["yaw"]) - frames.odom_from_city.yaw - car_yaws
        assert np.abs(wrap_angle(back - box_yaws)).max() < 1e-6


def test_what_is_no_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = imported(tmp_path / "set", tmp_path / "absent", capsys=capsys, code=2)
    assert "no log at" in told["error"]
    path = write_log(tmp_path / "log")
    assert main(["import-log", str(path), "--out", str(tmp_path / "set"), "--size", "huge"]) == 2
    assert "unknown network size" in capsys.readouterr().err
