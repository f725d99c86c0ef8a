"""`audit --bundle`: recall by slice, in the terminal, as JSON and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from synthetic import SMALL, synthetic_clip

from e2e_perception.cli import audit_page
from e2e_perception.cli.main import main
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.shards import Dataset


def dataset(path: Path, clip: Clip) -> Path:
    made = Dataset(path)
    with made.writing("one") as directory:
        writer = ClipWriter(directory)
        writer.write("000000", clip, {"weather": "<rain>"})
        writer.finish()
        made.seal("one", {"frames": len(clip), "label_sources": ["made"], "place": "<Lisbon>"}, [])
    return path


def test_recall_is_told_by_slice(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = dataset(tmp_path / "set", synthetic_clip(SMALL)), tmp_path / "audit.html"
    words = ["audit", str(path), "--bundle", str(bundle), "--html", str(page)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["recall"]) == {
        "class", "distance", "speed", "weather", "time of day", "scenario", "place"
    }  # fmt: skip
    assert {name: r["labels"] for name, r in told["recall"]["class"].items()} == {"car": 4, "pedestrian": 2}
    assert told["recall"]["place"]["<Lisbon>"]["labels"] == 6
    assert all(0.0 <= r["recall"] <= 1.0 for values in told["recall"].values() for r in values.values())
    text = page.read_text(encoding="utf-8")
    assert "Labels found" in text and "&lt;rain&gt;" in text and "<rain>" not in text
    assert main(words) == 0
    assert "pedestrian" in capsys.readouterr().out


def test_without_labels_or_with_a_bundle_that_is_not_there_it_is_refused(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset(tmp_path / "set", replace(synthetic_clip(SMALL), labels_valid=False))
    assert main(["audit", str(path), "--bundle", str(bundle)]) == 2
    assert "no labelled clips" in capsys.readouterr().err
    assert main(["audit", str(path), "--bundle", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_clips_of_another_size_are_refused(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset(tmp_path / "set", synthetic_clip(SIZES["tiny"]))
    assert main(["audit", str(path), "--bundle", str(bundle)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "size small_test takes (3, 64, 96, 3)" in said and "Traceback" not in said


def sensed(path: Path) -> Path:
    """A dataset with findings in four clips, one of them without the lidar."""
    made = Dataset(path)
    with made.writing("one") as directory:
        writer = ClipWriter(directory)
        for k in range(4):
            clip = synthetic_clip(SIZES["tiny"], seed=k)
            ids = clip.ids_TB.copy()
            ids[1, 0] = ids[1, 1]  # an identity that is there twice
            writer.write(
                f"{k:06d}",
                replace(clip, ids_TB=ids),
                {"sensor_validity": {"top": float(k != 2), "front": 1.0}},
            )
        writer.finish()
        made.seal("one", {"frames": 4, "recipe": {"size": "tiny"}, "label_sources": ["made"]}, [])
    return path


def test_the_page_shows_clips_sensors_and_how_to_look_at_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = sensed(tmp_path / "a set"), tmp_path / "audit.html"
    assert main(["audit", str(path), "--html", str(page), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["provenance"] == {} and told["doubled_share"] == 0.0
    (absent,) = [found for found in told["findings"] if found["check"] == "absent_sensor"]
    assert (absent["severity"], absent["clip_id"]) == ("warning", "000002")
    text = page.read_text(encoding="utf-8")
    assert f"review serve &#x27;{path}&#x27; --clip one/000002 --reviewer NAME --out review.parquet" in text
    assert "<h2>Sensors</h2>" in text and "calibration frames" in text
    frames = {(found["clip_id"], found["stamp_ns"]) for found in told["findings"] if found["clip_id"]}
    assert text.count("<img src=") == len(frames) == 4, "a picture of each frame, once"
    assert 'src="http' not in text and "<script" not in text
    monkeypatch.setattr(audit_page, "MAX_PICTURES", 2)
    assert main(["audit", str(path), "--html", str(page)]) == 1
    assert page.read_text(encoding="utf-8").count("<img src=") == 2


def test_a_clip_that_is_not_there_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sensed(tmp_path / "set")
    words = ["review", "export", str(path), "--format", "json", "--out"]
    assert main([*words, str(tmp_path / "a"), "--clip", "one/000009"]) == 2
    assert "there is no clip one/000009" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "b"), "--clip", "one/000001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 1
