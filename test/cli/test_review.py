"""`review`: exported, changed and imported on the command line, and served until somebody ends it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from review_sets import review_set

from e2e_perception.cli.main import main
from e2e_perception.data.label_layers import read_layer
from e2e_perception.data.shards import Dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_set(tmp_path_factory.mktemp("sets") / "set")


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert main(["review", *map(str, words), "--json"]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_cvat_there_and_back_leaves_the_dataset_alone(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Dataset(dataset).digest
    out, layer = tmp_path / "cvat", tmp_path / "kim.parquet"
    told = run(capsys, "export", dataset, "--out", out)
    assert told == {"out": str(out), "format": "cvat", "clips": 2, "frames": 6, "boxes": 18, "outside": 0}
    told = run(capsys, "import", out, "--dataset", dataset, "--reviewer", "kim", "--out", layer)
    assert (told["rows"], told["accepted"], told["rejected"]) == (18, 18, 0)
    read = read_layer(layer)
    assert {row.reviewer for row in read.rows} == {"kim"}
    assert read.shards == {shard.name: shard.digest for shard in Dataset(dataset).shards()}
    Dataset(dataset).verify()
    assert Dataset(dataset).digest == before


def test_a_file_that_lies_elsewhere_needs_what_was_exported(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, layer = tmp_path / "cvat", tmp_path / "kim.parquet"
    run(capsys, "export", dataset, "--out", out)
    words = ("--dataset", dataset, "--reviewer", "kim", "--out", layer)
    inside = run(capsys, "import", out / "birdseye" / "annotations.xml", *words)
    elsewhere = tmp_path / "downloads" / "back.xml"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((out / "birdseye" / "annotations.xml").read_bytes())
    first = layer.read_bytes()
    refused = run(capsys, "import", elsewhere, *words[:-1], tmp_path / "other.parquet", code=2)
    assert layer.read_bytes() == first
    assert "with --exported naming that directory" in refused["error"]
    assert "is there already" in run(capsys, "import", elsewhere, "--exported", out, *words, code=2)["error"]
    layer.unlink()
    assert run(capsys, "import", elsewhere, "--exported", out, *words) == inside


def test_json_of_a_mined_list_there_and_back(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "review.json"
    clip = {"shard": "drive", "clip_id": "000001", "stamp_ns": 0, "score": 1.0, "signals": {}, "ranks": {}}
    listed.write_text(json.dumps({"clips": [clip]}), encoding="utf-8")
    out, layer = tmp_path / "json", tmp_path / "kim.parquet"
    told = run(capsys, "export", dataset, "--list", listed, "--format", "json", "--out", out)
    assert (told["clips"], told["boxes"]) == (1, 9)
    text = (out / "labels.json").read_text(encoding="utf-8")
    document = json.loads(text)
    del document["clips"][0]["frames"][0]["labels"][0]
    (tmp_path / "back.json").write_text(json.dumps(document), encoding="utf-8")
    words = ("--dataset", dataset, "--reviewer", "kim", "--out", layer)
    told = run(capsys, "import", tmp_path / "back.json", *words)
    assert (told["accepted"], told["rejected"]) == (8, 1)
    assert {row.clip_id for row in read_layer(layer).rows} == {"drive/000001"}
    layer.unlink()
    assert run(capsys, "import", out, *words)["accepted"] == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "SET", "--list", "/nowhere.json"], "cannot be read"),
        (["export", "/nowhere"], "is no dataset: it has no dataset.json"),
        (["import", "/nowhere", "--dataset", "SET", "--reviewer", "kim"], "expected a directory of"),
        (["import", "/nowhere.json", "--dataset", "SET", "--reviewer", "kim"], "cannot be read"),
        (["import", "SET", "--dataset", "SET", "--reviewer", "kim"], "expected a directory of"),
        (["import", "/nowhere", "--dataset", "SET", "--reviewer", " "], "expected a name of at most 100"),
        (["serve", "SET", "--reviewer", "a\x1b[2J"], "expected a name of at most 100"),
        (["serve", "/nowhere", "--reviewer", "kim"], "is no dataset"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = [str(dataset) if word == "SET" else word for word in words]
    assert message in run(capsys, *given, "--out", tmp_path / "out", code=2)["error"]
    assert not (tmp_path / "out").exists()


def test_a_layer_is_not_replaced_and_a_damaged_file_leaves_none(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, layer = tmp_path / "cvat", tmp_path / "kim.parquet"
    run(capsys, "export", dataset, "--out", out)
    words = ("import", out, "--dataset", dataset, "--reviewer", "kim", "--out", layer)
    run(capsys, *words)
    before = layer.read_bytes()
    file = out / "birdseye" / "annotations.xml"
    file.write_bytes(file.read_bytes()[:-200])
    assert "is there already" in run(capsys, *words, code=2)["error"]
    assert layer.read_bytes() == before
    other = tmp_path / "other.parquet"
    assert "is no XML" in run(capsys, *words[:-1], other, code=2)["error"]
    assert not other.exists()


def test_served_until_interrupted_it_keeps_what_was_decided(dataset: Path, tmp_path: Path) -> None:
    layer = tmp_path / "kim.parquet"
    words = ["review", "serve", dataset, "--reviewer", "kim", "--out", layer, "--no-browser", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "e2e_perception.cli", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background has them, and so this, ignore interrupts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        told = json.loads("".join(lines))
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]+/)", told["url"])
        assert found and told["tracks"] == 6
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        body = json.dumps({"clip": 1, "identities": ["102"], "verdict": "label"})
        connection.request("POST", f"{found[2]}decide", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
    assert "1 of 6 tracks decided, 1 accepted, 0 rejected" in errors and "Traceback" not in errors
    assert {(row.clip_id, row.identity) for row in read_layer(layer).rows} == {("drive/000001", 102)}
