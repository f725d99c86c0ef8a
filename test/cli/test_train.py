"""`train` from end to end: clips from a suite, a curriculum in YAML, on-policy driving, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from e2e_perception.cli.main import main

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

SUITE = {
    "name": "mine",
    "description": "A short one.",
    "entries": [{"family": "highway+braking_lead", "seeds": [1]}],
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "mine.yaml"
    path.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, suite: Path) -> Path:
    path = tmp_path_factory.mktemp("data") / "clips"
    arguments = [
        "simulate",
        "--suite",
        str(suite),
        "--format",
        "clips",
        "--out",
        str(path),
        "--clip-length",
        "3",
    ]
    assert main([*arguments, "--stride", "1.0", "--disturb", "--workers", "1"]) == 0
    return path


@pytest.mark.slow
def test_a_curriculum_with_on_policy_driving_runs_resumes_and_exports(
    tmp_path: Path, clips: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "size": "nano",
        "batch_clips": 2,
        "checkpoint_every": 2,
        "promotion": {"clips": 2},
        "balancing": {"log_conflicts_every": 2},
        "stages": [
            {"name": "see", "steps": 2, "clip_length": 2, "boost": [1.0, 0.0]},
            {
                "name": "practise",
                "steps": 2,
                "degradation": 0.5,
                "on_policy": {"suite": str(suite), "clip_length": 3, "stride_s": 1.0},
            },
        ],
    }
    path, run = tmp_path / "short.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = ["train", "--data", str(clips), "--out", str(run), "--config", str(path), "--drivers", "1"]
    arguments += ["--tracking", "none", "--json"]
    capsys.readouterr()
    assert main([*arguments, "--stop-after", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    driven = run / "on-policy" / "1-practise"
    assert (driven / "index.parquet").is_file()
    before = (driven / "index.parquet").stat().st_mtime_ns
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == answer["of"] == 4
    assert answer["clips_per_s"] > 0.0
    assert (driven / "index.parquet").stat().st_mtime_ns == before, "driven once"
    lines = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    measured = [line["cosines"] for line in lines if line.get("cosines")]
    assert measured
    assert set(measured[0]) >= {"recognition~tracking", "recognition~planning"}
    assert all(-1.0 <= value <= 1.0 for cosines in measured for value in cosines.values())


def test_training_says_what_is_wrong_with_its_configuration(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(clips), "--out", str(tmp_path / "run"), "--tracking", "none"]
    for settings, message in (
        (["--config", "martian"], "no training configuration 'martian'"),
        (["--set", "balancing.method=luck"], "balancing.method"),
        (["--set", "size=huge"], "unknown network size 'huge'"),
        (["--set", "init=nowhere"], "no checkpoint at nowhere"),
    ):
        assert main([*arguments, *settings]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
