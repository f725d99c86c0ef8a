"""`track`: KITTI detections in, tracks out that an independent evaluator likes; a sentence for errors."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from e2e_perception.cli.main import main
from e2e_perception.cli.track import tracker_config
from e2e_perception.core.errors import ConfigError
from e2e_perception.data.kitti import TYPES, read_sequence

NUM_FRAMES = 60
PERIOD = 0.1
PERFECT = pytest.approx({"HOTA": 1.0, "MOTA": 1.0, "CLR_FN": 0.0, "CLR_FP": 0.0, "IDSW": 0.0})


def cars(frame: int) -> list[tuple[float, float, float]]:
    """Two cars whose ways cross, one after the other; x, z [m] of the camera, rotation_y."""
    t = PERIOD * frame
    return [(-12.0 + 8.0 * t, 20.0, 0.0), (8.0, 40.0 - 7.0 * t, np.pi / 2.0)]


def ab3dmot_line(frame: int, x: float, z: float, rotation_y: float, score: float = 5.0) -> str:
    return f"{frame},2,100,100,200,180,{score},1.5,1.7,4.2,{x:.4f},1.6,{z:.4f},{rotation_y:.4f},0\n"


def detections(path: Path, *, spurious: bool = True) -> Path:
    """Of both cars, with noise; some are missing, and some are of nothing."""
    rng = np.random.default_rng(1)
    lines = []
    for frame in range(NUM_FRAMES):
        for number, (x, z, yaw) in enumerate(cars(frame)):
            if (frame + 7 * number) % 23 != 11:
                dx, dz, turn = rng.normal(0.0, [0.1, 0.1, 0.03])
                lines.append(ab3dmot_line(frame, x + dx, z + dz, yaw + turn))
        if spurious and frame in (25, 41):
            lines.append(ab3dmot_line(frame, -15.0, 50.0, 0.3))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def mota_and_switches(result: Path) -> tuple[float, int]:
    """Against the true places, a match within 1.5 m."""
    motmetrics = pytest.importorskip(
        "motmetrics", reason="motmetrics is not installed: `pip install .[training]`"
    )
    tracks: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
    for frame in read_sequence(result):
        tracks[frame.number] = [(o.track_id, o.location_3[0], o.location_3[2]) for o in frame.objects]
    counts = motmetrics.MOTAccumulator(auto_id=True)
    for frame_number in range(NUM_FRAMES):
        truth = np.array([car[:2] for car in cars(frame_number)])
        found = np.array([row[1:] for row in tracks[frame_number]]).reshape(-1, 2)
        apart = np.linalg.norm(truth[:, None] - found[None], axis=-1)
        apart[apart > 1.5] = np.nan
        counts.update([0, 1], [row[0] for row in tracks[frame_number]], apart)
    figures = (
        motmetrics.metrics.create().compute(counts, metrics=["mota", "num_switches"], name="all").iloc[0]
    )
    return float(figures["mota"]), int(figures["num_switches"])


def street(frame: int) -> list[tuple[int, str, str]]:
    """A car ahead and a pedestrian who crosses: identity, type, and the columns of place and box."""
    left, across, ahead = 300 + 3 * frame, -6.0 + PERIOD * frame, 20.0 + 0.5 * frame
    return [
        (4, "Car", f"{left + 300}.00 170.00 {left + 390}.00 240.00 1.5 1.7 4.2 1.0 1.6 {ahead} 0.1"),
        (9, "Pedestrian", f"{left}.00 150.00 {left + 30}.00 230.00 1.7 0.6 0.6 {across} 1.6 15.0 0.0"),
    ]


def tracked_street(root: Path, *, without: tuple[int, ...] = (), bystanders: tuple[str, ...] = ()) -> None:
    """KITTI's folders of true labels and, of the very same boxes but for the car's in some frames, tracks.

    Args:
        root: For `label_02`, the map of sequences, and `ours/data`.
        without: Frames in which the car is not detected.
        bystanders: Types of what stands around, is detected and has no label.
    """
    labels, found = ["0 -1 DontCare -1 -1 -10 0 0 40 60 -1000 -1000 -1000 -10 -1 -1 -1"], []
    for frame in range(10):
        for identity, kind, place in street(frame):
            labels.append(f"{frame} {identity} {kind} 0 0 0.0 {place}")
            if kind != "Car" or frame not in without:
                found.append(f"{frame} -1 {kind} -1 -1 0.0 {place} 5.0")
        for n, kind in enumerate(bystanders):
            place = f"{100 * n} 250 {100 * n + 50} 330 1.5 1.7 4.2 {10 * n} 1.6 60.0 0.0"
            found.append(f"{frame} -1 {kind} -1 -1 0.0 {place} 5.0")
    for path, lines in (
        (root / "label_02" / "0007.txt", labels),
        (root / "evaluate_tracking.seqmap.training", ["0007 empty 000000 000010"]),
        (root / "detections" / "0007.txt", found),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["track", str(root / "detections"), "--format", "kitti", "--out", str(root / "ours" / "data")]
    assert main(arguments) == 0


def scored_by_trackeval(root: Path) -> dict[str, dict[str, float]]:
    """HOTA and CLEAR of `tracked_street`, as KITTI's table has them, by class."""
    pytest.importorskip("trackeval", reason="TrackEval is not installed: `make setup` does that")
    from trackeval.datasets import Kitti2DBox
    from trackeval.metrics import CLEAR, HOTA

    folders = {"GT_FOLDER": str(root), "TRACKERS_FOLDER": str(root), "TRACKERS_TO_EVAL": ["ours"]}
    dataset = Kitti2DBox({**folders, "PRINT_CONFIG": False})
    raw = dataset.get_raw_seq_data("ours", "0007")
    scores = {}
    for name in ("car", "pedestrian"):
        data = dataset.get_preprocessed_seq_data(raw, name)
        clear = CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
        scores[name] = {
            "HOTA": float(HOTA().eval_sequence(data)["HOTA"].mean()),
            **{figure: float(clear[figure]) for figure in ("MOTA", "CLR_FN", "CLR_FP", "IDSW")},
        }
    return scores


def sentence_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


@pytest.mark.parametrize("metric", ["distance", "iou_3d", "iou_bev"])
def test_two_crossing_cars_are_tracked_without_a_switch(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = detections(tmp_path / "0003.txt"), tmp_path / "out.txt"
    arguments = ["track", str(given), "--format", "kitti", "--out", str(out), "--set", f"metric={metric}"]
    assert main([*arguments, "--coasting", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    mota, switches = mota_and_switches(out)

    assert mota > 0.95
    assert switches == 0
    assert summary["sequences"] == 1
    assert summary["frames"] == NUM_FRAMES
    assert summary["detections"] == len(given.read_text(encoding="utf-8").splitlines())
    assert summary["frames_per_s"] == pytest.approx(summary["frames"] / summary["seconds"])
    assert set(summary) == {"sequences", "frames", "detections", "tracks", "seconds", "frames_per_s", "out"}
    assert summary["tracks"] == 2  # what is of nothing is never confirmed


def test_without_coasting_only_what_is_seen_is_written(tmp_path: Path) -> None:
    given, out = detections(tmp_path / "in.txt", spurious=False), tmp_path / "out.txt"
    assert main(["track", str(given), "--out", str(out)]) == 0
    boxes = {frame.number: len(frame.objects) for frame in read_sequence(given)}

    assert {frame.number: len(frame.objects) for frame in read_sequence(out)} == boxes


def test_a_directory_gives_a_file_for_each_sequence_and_a_gap_ends_tracks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detections(tmp_path / "in" / "0000.txt")
    lines = [ab3dmot_line(frame, 0.0, 20.0, 0.0) for frame in (*range(5), *range(2_000_000, 2_000_005))]
    (tmp_path / "in" / "0001.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "in" / "0002.txt").write_text("", encoding="utf-8")
    assert main(["track", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.txt", "0001.txt", "0002.txt"]
    assert (tmp_path / "out" / "0002.txt").read_text(encoding="utf-8") == ""
    assert summary["sequences"] == 3
    ids = {o.track_id for frame in read_sequence(tmp_path / "out" / "0001.txt") for o in frame.objects}
    assert len(ids) == 2


def test_poses_make_a_turning_camera_see_a_standing_car_at_one_place(tmp_path: Path) -> None:
    lines, poses = [], []
    for frame in range(20):
        angle = 0.15 * frame  # [rad] about the camera's y
        c, s = np.cos(angle), np.sin(angle)
        odom_from_camera = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
        x, _, z = odom_from_camera.T @ [0.0, 1.6, 30.0]
        lines.append(ab3dmot_line(frame, x, z, -angle))
        poses.append(
            " ".join(f"{value:.9f}" for value in np.column_stack([odom_from_camera, np.zeros(3)]).ravel())
        )
    (tmp_path / "in.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "poses.txt").write_text("\n".join(poses), encoding="utf-8")
    shown = {}
    for name, more in (("with", ["--poses", str(tmp_path / "poses.txt")]), ("without", [])):
        out = tmp_path / f"{name}.txt"
        assert main(["track", str(tmp_path / "in.txt"), "--out", str(out), *more]) == 0
        shown[name] = [o.track_id for frame in read_sequence(out) for o in frame.objects]

    assert shown["with"] == [0] * 20
    # 45 m/s to the side, as the camera alone sees it, is beyond the gate: no track is ever confirmed again.
    assert shown["without"] == [0]
    source, tracked = (list(read_sequence(tmp_path / name)) for name in ("in.txt", "with.txt"))
    for before, after in zip(source, tracked, strict=True):
        np.testing.assert_allclose(before.objects[0].location_3, after.objects[0].location_3, atol=1e-3)
        turned = before.objects[0].rotation_y - after.objects[0].rotation_y
        assert abs(np.angle(np.exp(1j * turned))) < 1e-3


def test_trackeval_finds_nothing_wrong_with_tracks_of_true_boxes(tmp_path: Path) -> None:
    tracked_street(tmp_path)

    assert scored_by_trackeval(tmp_path) == {"car": PERFECT, "pedestrian": PERFECT}


def test_trackeval_counts_a_frame_without_a_detection_as_one_miss_and_no_switch(tmp_path: Path) -> None:
    tracked_street(tmp_path, without=(5,))

    # 9 of 10 boxes at every threshold; each pair of a label and a track is 9 frames of 10 as well.
    missed = pytest.approx({"HOTA": 0.9, "MOTA": 1.0 - 1 / 10, "CLR_FN": 1.0, "CLR_FP": 0.0, "IDSW": 0.0})
    assert scored_by_trackeval(tmp_path) == {"car": missed, "pedestrian": PERFECT}


def test_trackeval_reads_tracks_of_every_type_and_scores_its_two_classes(tmp_path: Path) -> None:
    tracked_street(tmp_path, bystanders=tuple(sorted(TYPES.keys() - {"Car", "Pedestrian"})))
    lines = (tmp_path / "ours" / "data" / "0007.txt").read_text(encoding="utf-8").splitlines()

    assert len(lines) == 10 * len(TYPES)
    assert scored_by_trackeval(tmp_path) == {"car": PERFECT, "pedestrian": PERFECT}


def test_the_help_shows_an_example_and_all_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["track", "--help"]) == 0
    text = capsys.readouterr().out

    assert all(word in text for word in ("--format", "--set", "--poses", "--period", "--json", "Example:"))


def test_settings_hold_for_one_class_or_for_all_in_their_order() -> None:
    config = tracker_config(["max_age=7", "car.max_age=2", "metric=iou_bev", "birth_score=1.5"])

    assert (config.truck.max_age, config.cyclist.max_age, config.car.max_age) == (7, 7, 2)
    assert (config.metric, config.birth_score) == ("iou_bev", 1.5)
    with pytest.raises(ConfigError, match=r"unknown setting 'car\.metric'"):
        tracker_config(["car.metric=distance"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere.txt"], r"no detections at .*nowhere\.txt"),
        (["{tmp}/bad.txt"], r"bad\.txt:2: score is 'high', expected a finite number"),
        (["{tmp}/good.txt", "--set", "max_age"], "--set 'max_age': expected KEY=VALUE"),
        (
            ["{tmp}/good.txt", "--set", "speed=3"],
            r"unknown setting 'speed'; there are metric, .*max_distance",
        ),
        (["{tmp}/good.txt", "--set", "car=3"], "unknown setting 'car'"),
        (
            ["{tmp}/good.txt", "--set", "max_age=-1"],
            r"--set: car\.max_age = -1: .*greater than or equal to 0",
        ),
        (["{tmp}/good.txt", "--set", "metric=area"], "--set: metric = 'area'"),
        (["{tmp}/good.txt", "--set", "metric=[3"], "the value is not valid YAML"),
        (["{tmp}/good.txt", "--format", "nuscenes"], "nuscenes"),
        (["{tmp}/good.txt", "--period", "0"], "period"),
        (["{tmp}/good.txt", "--poses", "{tmp}/no_poses.txt"], r"no poses at .*no_poses\.txt"),
        (["{tmp}/good.txt", "--poses", "{tmp}/one_pose.txt"], "no pose of frame 1, there are 1"),
        (["{tmp}/good.txt", "--out", "{tmp}/good.txt"], "is the detections, or among them"),
        (["{tmp}/good.txt", "--out", "{tmp}"], "is a directory; for the one sequence"),
    ],
)
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "".join(ab3dmot_line(frame, 0.0, 20.0, 0.0) for frame in range(3))
    (tmp_path / "good.txt").write_text(good, encoding="utf-8")
    (tmp_path / "bad.txt").write_text(
        good.splitlines(True)[0] + good.replace("5.0", "high"), encoding="utf-8"
    )
    (tmp_path / "one_pose.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0", encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out.txt")]

    assert main(["track", *given, *out]) == 2
    assert re.search(message, sentence_of(capsys))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
