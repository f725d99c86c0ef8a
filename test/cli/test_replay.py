"""Replay gives the same bytes every time, leaves what it promises, and says in one sentence what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from short_drive import NUM_FRAMES, RIG, odometry, sensor_messages

from e2e_perception.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

Replay = Callable[..., int]


@pytest.fixture
def replay(bundle: Path, rig_file: Path) -> Replay:
    def run(bag: Path, out: Path, *options: str) -> int:
        return main(
            ["replay", str(bag), "--bundle", str(bundle), "--rig", str(rig_file), "--out", str(out), *options]
        )

    return run


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    return errors[0]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_replays_give_the_same_bytes(bag: Path, replay: Replay, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert replay(bag, tmp_path / name, "--no-report") == 0
    for file in ("tracks.jsonl", "plans.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_replay_leaves_lines_outputs_summary_and_report(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert replay(bag, out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames_in"] == summary["frames_processed"] == summary["plans"] == NUM_FRAMES
    assert summary["drops"] == {}
    assert set(summary["latency_ms"]) >= {"prepare", "infer", "total"}
    assert summary["cpu_share"] > 0
    assert summary["peak_memory_mb"] > 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == summary

    plans = read_lines(out / "plans.jsonl")
    assert len(plans) == len(read_lines(out / "tracks.jsonl")) == NUM_FRAMES
    assert np.isfinite(plans[-1]["plan"]["points"]).all()

    from e2e_perception.core.message_results import results_from_messages
    from e2e_perception.data.bags import BagSource

    with BagSource(out / "outputs") as source:
        results = results_from_messages((m.type_name, m.message) for m in source.messages())
    assert len(results) == NUM_FRAMES
    last = results[-1]
    assert last.plan is not None
    assert last.plan.points_P2 == pytest.approx(np.array(plans[-1]["plan"]["points"]), abs=1e-3)
    assert last.health.frames == NUM_FRAMES

    page = (out / "report.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    frames = json.loads(found[1])["frames"]
    assert len(frames) == NUM_FRAMES
    assert frames[5]["points"]
    assert frames[5]["pictures"]["front"]["src"].startswith("data:image/jpeg")
    assert frames[5]["labels"][0]["id"] == 7
    assert frames[5]["ego"][3] == pytest.approx(5.0)


def test_a_replay_over_an_earlier_one_replaces_it(bag: Path, replay: Replay, tmp_path: Path) -> None:
    assert replay(bag, tmp_path / "out", "--no-report") == 0
    assert replay(bag, tmp_path / "out", "--no-report") == 0
    (tmp_path / "out" / "outputs" / "thesis.docx").write_text("precious", encoding="utf-8")
    assert replay(bag, tmp_path / "out", "--no-report") == 2
    assert (tmp_path / "out" / "outputs" / "thesis.docx").is_file()


def test_a_bag_among_the_results_to_be_replaced_is_kept(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = Path(shutil.copytree(bag, tmp_path / "out" / "outputs"))
    assert replay(inside, tmp_path / "out", "--no-report") == 2
    assert "name another --out" in error_of(capsys)
    assert any(inside.glob("*.mcap"))


def test_a_missing_bag(replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(tmp_path / "nothing", tmp_path / "out") == 2
    assert re.search(r"no bag at .*nothing", error_of(capsys))


def test_a_truncated_bag(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bag, tmp_path / "cut"))
    storage = next(copy.glob("*.mcap"))
    os.truncate(storage, storage.stat().st_size // 2)
    assert replay(copy, tmp_path / "out") == 2
    assert "is cut off" in error_of(capsys)


def test_an_empty_bag(bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(bag, tmp_path / "empty"))
    os.truncate(next(copy.glob("*.mcap")), 0)
    assert replay(copy, tmp_path / "out") == 2
    assert "is empty" in error_of(capsys)


def test_an_unknown_bundle(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["replay", str(bag), "--rig", "tiny", "--bundle", "huge", "--out", str(tmp_path / "out")]) == 2
    )
    assert "no bundle 'huge'" in error_of(capsys)


def test_a_bundle_with_a_flipped_byte(
    bag: Path, bundle: Path, rig_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "flipped"))
    model = bytearray((copy / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (copy / "model.onnx").write_bytes(model)
    arguments = [
        "replay",
        str(bag),
        "--bundle",
        str(copy),
        "--rig",
        str(rig_file),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "damaged or was altered" in error_of(capsys)


def test_an_unknown_parameter(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("perception_node:\n  ros__parameters:\n    planning.courage: 3.0\n", encoding="utf-8")
    assert replay(bag, tmp_path / "out", "--params", str(params)) == 2
    assert re.search(r"params\.yaml: unknown parameter 'planning\.courage'", error_of(capsys))


def test_a_parameter_out_of_range(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("planning: {speed_limit: -3.0}\n", encoding="utf-8")
    assert replay(bag, tmp_path / "out", "--params", str(params)) == 2
    assert re.search(r"planning\.speed_limit = -3\.0", error_of(capsys))


def test_an_unknown_backend(
    bag: Path, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(bag, tmp_path / "out", "--backend", "abacus") == 2
    assert "engine.backend" in error_of(capsys)


def test_a_rig_that_no_topic_fits(
    bag: Path, rig_file: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(rig_file.read_text(encoding="utf-8"))
    document["sensors"] = [s for s in document["sensors"] if s["kind"] == "lidar"]
    document["sensors"][0]["topic"] = "/camera"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert (
        main(["replay", str(bag), "--bundle", str(bundle), "--rig", str(other), "--out", str(tmp_path)]) == 2
    )
    assert re.search(
        r"topic /camera of lidar 'top' is of type sensor_msgs/msg/CompressedImage", error_of(capsys)
    )


def test_no_shipped_rig_fits_and_the_message_asks_for_one(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = pytest.importorskip("e2e_perception.data.bags")
    path = tmp_path / "odometry"
    bags.write_scenario_bag(path, [], RIG, odometry=odometry())
    assert main(["replay", str(path), "--bundle", str(bundle), "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"no shipped rig .* give it with --rig", error_of(capsys))


def test_topics_of_other_names_are_matched_by_type_with_their_camera_info(
    bag: Path, rig_file: Path, tmp_path: Path
) -> None:
    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.core.config import StackConfig
    from e2e_perception.core.rig import load_rig

    document = yaml.safe_load(rig_file.read_text(encoding="utf-8"))
    for sensor in document["sensors"]:
        sensor["topic"] = f"/robot_9{sensor['topic']}"
        if sensor["kind"] == "camera":
            sensor["camera_info_topic"] = "/robot_9/camera/info"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    with BagStream(bag, load_rig(other), StackConfig()) as stream:
        assert [s.topic for s in stream.rig.sensors] == ["/lidar", "/camera"]
        assert stream.rig.cameras[0].camera_info_topic == "/camera_info"
        assert "front is taken from /camera" in stream.warnings


def test_without_a_rig_the_shipped_one_is_found_by_type(
    bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from e2e_perception.cli.inputs import rig_for_topics
    from e2e_perception.data.bags import BagSource

    with BagSource(bag) as source:
        assert rig_for_topics(source.types) == "kitti_highway"
    assert "matched by type to rig `kitti_highway`" in capsys.readouterr().err


def test_camera_info_of_another_camera(
    bag: Path, rig_file: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(rig_file.read_text(encoding="utf-8"))
    camera = next(s for s in document["sensors"] if s["kind"] == "camera")
    camera["fx_px"] = camera["fy_px"] = 90.0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    arguments = [
        "replay",
        str(bag),
        "--bundle",
        str(bundle),
        "--rig",
        str(other),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "is of another camera or lens" in error_of(capsys)


def test_a_rig_with_a_sensor_that_the_bundle_does_not_know(
    bag: Path, rig_file: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(rig_file.read_text(encoding="utf-8"))
    document["sensors"][0]["name"] = "belly"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert (
        main(["replay", str(bag), "--bundle", str(bundle), "--rig", str(other), "--out", str(tmp_path)]) == 2
    )
    assert "lidar 'belly', which the network does not know" in error_of(capsys)


def test_a_lidar_that_is_not_recorded_is_a_warning_and_the_camera_takes_over(
    bag: Path, rig_file: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = pytest.importorskip("e2e_perception.data.bags")
    path = tmp_path / "blind"
    messages = (m for m in sensor_messages() if m.sensor == "front")
    bags.write_scenario_bag(path, messages, RIG, odometry=odometry())
    arguments = ["replay", str(path), "--bundle", str(bundle), "--rig", str(rig_file), "--json",
                 "--out", str(tmp_path / "out"), "--no-report"]  # fmt: skip
    assert main(arguments) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["frames_in"] == NUM_FRAMES
    assert summary["plans"] >= NUM_FRAMES - 3
    assert "the bag has nothing for top: always invalid" in summary["warnings"]
    assert "warning: the bag has nothing for top" in captured.err


@pytest.mark.real_data
def test_the_recorded_highway_is_processed_whole_and_twice_the_same(tmp_path: Path) -> None:
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "kitti_highway"
    if not data.is_dir():
        pytest.skip(f"no recorded data at {data}; set E2E_PERCEPTION_TEST_DATA")
    if not (ROOT / "resource" / "bundles" / "tiny").is_dir():
        pytest.skip("the bundle `tiny` is not there; `make bundle` makes it")
    for name in ("a", "b"):
        assert main(["replay", str(data), "--out", str(tmp_path / name), "--no-report"]) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text(encoding="utf-8"))
    assert summary["frames_in"] == 78
    assert summary["frames_processed"] >= 76
    assert summary["plans"] == summary["frames_processed"]
    for file in ("tracks.jsonl", "plans.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
