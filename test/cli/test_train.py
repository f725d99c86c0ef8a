"""`train` from end to end: clips from a suite, a curriculum in YAML, on-policy driving, export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from synthetic import synthetic_clip

from e2e_perception.cli.main import main
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_store import ClipWriter

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
        (["--set", "seed"], "expected KEY=VALUE, e.g. seed=1"),
        (["--set", "size=huge"], "unknown network size 'huge'"),
        (["--set", "init=nowhere"], "no checkpoint at nowhere"),
    ):
        assert main([*arguments, *settings]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Python runs this before anything else: each process leaves what its run has come to when it ends.
LEAVES_ITS_RUN = """
import os
if "RANK" in os.environ:
    import atexit
    from pathlib import Path
    from e2e_perception.training import run
    began = run.Run.__init__
    def begins(self, *arguments, **options):
        began(self, *arguments, **options)
        atexit.register(self.save, Path(__file__).parent / os.environ["RANK"])
    run.Run.__init__ = begins
"""


@pytest.mark.slow
def test_two_processes_under_torchrun_share_a_run_and_end_with_the_same_weights(tmp_path: Path) -> None:
    from e2e_perception.training.checkpoint import load_checkpoint

    writer = ClipWriter(tmp_path / "clips")
    for seed in range(4):
        writer.write(f"{seed:06d}", synthetic_clip(SIZES["nano"], seed=seed, num_frames=2))
    writer.finish()
    config = {
        "size": "nano",
        "batch_clips": 1,
        "balancing": {"method": "uncertainty"},
        "stages": [{"name": "see", "steps": 2, "boost": [1.0, 0.0]}],
    }
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(LEAVES_ITS_RUN, encoding="utf-8")
    arguments = ["train", "--data", str(tmp_path / "clips"), "--config", str(tmp_path / "short.yaml")]
    arguments += ["--tracking", "none", "--json", "--out"]
    root = Path(__file__).resolve().parents[2]
    paths = [str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")]
    documented = re.search(
        r"`torchrun (.* e2e_perception\.cli) train …`", (root / "docs" / "training.md").read_text()
    )
    assert documented is not None
    options = documented[1].replace("--nproc-per-node 4", "--nproc-per-node 2").split()
    answer = subprocess.run(
        [Path(sys.executable).with_name("torchrun"), *options, *arguments, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert json.loads(answer.stdout)["steps"] == 2, "one process answers"
    lines = (tmp_path / "run" / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if '"losses"' in line]) == 2, "one process writes"

    written, first, second = (load_checkpoint(tmp_path / name).tensors for name in ("run", "0", "1"))
    assert written.keys() == first.keys() == second.keys()
    for name, value in written.items():
        assert value.equal(first[name]) and value.equal(second[name]), name
    assert main([*arguments, str(tmp_path / "alone")]) == 0
    name = "model/planner.score.0.weight"
    assert not load_checkpoint(tmp_path / "alone").tensors[name].equal(written[name]), "both had a share"
