"""`evaluate --suite`: files for comparisons, the same rows for any number of workers, and plain refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")

from e2e_perception.cli import perception_suite
from e2e_perception.cli.main import main
from e2e_perception.cli.perception_suite import Ride, ride
from e2e_perception.core.errors import InputError
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.evaluation.evaluations import read_evaluation
from e2e_perception.simulation import expert_drives

SUITE = """
name: pair
description: Two short drives.
entries:
  - {family: highway, seeds: [4000000]}
  - {family: two_way, seeds: [4000500]}
"""


def sentence_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def test_one_drive_of_smoke_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "tiny", "--suite", "smoke", "--limit", "1", "--workers", "1"]
    (tmp_path / "facts.json").write_text('{"label": "mine"}', encoding="utf-8")
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "perception.json").read_text(encoding="utf-8"))
    assert printed["bundle_digest"] == load_bundle("tiny").digest
    assert (printed["suite"], printed["limit"], printed["scenarios"]) == ("smoke", 1, 1)
    assert printed["frames"] > 20
    assert printed["versions"]["motmetrics"]
    assert 0.0 < printed["figures"]["detection/map"] <= 1.0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "drives of suite smoke" in page and "Reliability" in page and "detection/map" in page
    found = read_evaluation(tmp_path)
    assert found.label == "mine"
    for name, value in found.figures().items():
        assert value == pytest.approx(found.pooled[name]), name  # one drive is the mean of itself


def test_rows_are_the_same_bytes_for_one_worker_and_for_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "pair.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    documents = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        arguments = ["evaluate", "tiny", "--suite", str(suite), "--degrade", "night", "--workers", workers]
        assert main([*arguments, "--out", str(out)]) == 0
        assert "detection/map" in capsys.readouterr().out
        documents.append(json.loads((out / "perception.json").read_text(encoding="utf-8")))
    first, second = (document | {"seconds": 0.0} for document in documents)
    assert first == second
    assert first["degradation"] == "night"
    rows = [(tmp_path / workers / "perception.parquet").read_bytes() for workers in ("1", "2")]
    assert rows[0] == rows[1]
    table = pq.read_table(tmp_path / "1" / "perception.parquet")
    assert table["scenario"].to_pylist() == ["highway/4000000@0.5", "two_way/4000500@0.5"]
    column = table["planning/l2_at_3s_m"].to_pylist()
    assert first["scenario_means"]["planning/l2_at_3s_m"] == pytest.approx(math.fsum(column) / 2)


def test_a_drive_that_is_over_too_soon_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_short(*_: object, **__: object) -> None:
        raise InputError("highway/4000000@0.5 was over after 0.9 s")

    monkeypatch.setattr(expert_drives, "drive_expert", too_short)
    monkeypatch.setattr(
        perception_suite, "fan_out", lambda function, tasks, _: enumerate(map(function, tasks))
    )
    arguments = ["evaluate", "tiny", "--suite", "smoke", "--limit", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    sentence = sentence_of(capsys)
    assert "it is left out" in sentence
    assert "no drive could be looked at; highway/4000000@0.5 was over after 0.9 s" in sentence
    assert not (tmp_path / "out" / "perception.json").exists()
    assert ride.__module__ == Ride.__module__  # workers import both by name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to measure on; expected one of --data and --suite"),
        (["--data", "clips", "--suite", "smoke"], "--data and --suite; expected one of"),
        (["--suite", "smoke"], "--suite needs --out"),
        (["--suite", "smoke", "--out", "o", "--split", "all"], "--split is for --data"),
        (["--data", "clips", "--limit", "3", "--degrade", "fog"], "--limit and --degrade is for --suite"),
        (["--suite", "nowhere", "--out", "o"], "nowhere"),
        (["--suite", "smoke", "--out", "o", "--degrade", "nothing"], "nothing"),
        (["--suite", "smoke", "--out", "o", "--backend", "tensorrt"], "backend"),
    ],
)
def test_whatever_a_user_gets_wrong_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "tiny", *arguments]) == 2
    assert words in sentence_of(capsys)
    assert not (tmp_path / "o" / "perception.json").exists()


def test_a_file_in_place_of_the_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert main(["evaluate", "tiny", "--suite", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "is a file; name a directory" in sentence_of(capsys)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"
