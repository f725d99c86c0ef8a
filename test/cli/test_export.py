"""`export`: which checkpoint of a run becomes a bundle, and what the bundle says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from short_drive import RIG
from synthetic import SMALL, untrained_network

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: `pip install .[training]`")

from safetensors.torch import load_file

from e2e_perception.cli.main import main
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.training.checkpoint import BEST, STATE, write_checkpoint
from e2e_perception.training.config import Stage, TrainingConfig
from e2e_perception.training.run_log import FLOOR, LOG

LAST_STEP, BEST_STEP = 9, 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training leaves whose last checkpoint is below a floor, and another than the best."""
    path = tmp_path / "run"
    config = TrainingConfig(seed=5, stages=(Stage(name="all", steps=LAST_STEP),))
    for file, seed, step in ((STATE, 0, LAST_STEP), (BEST, 1, BEST_STEP)):
        weights = {
            f"average/{name}": value for name, value in untrained_network(seed=seed).state_dict().items()
        }
        facts = {
            "step": step,
            "training": config.model_dump(mode="json"),
            "network": SMALL.model_dump(mode="json"),
            "dataset_digests": ["ab", "cd"],
            "git_commit": "0123abc",
        }
        write_checkpoint(path / file, weights, facts)
    figures = {"score/tracking": 0.2, f"{FLOOR}tracking": 1.0}
    (path / LOG).write_text(json.dumps({"step": LAST_STEP, "figures": figures}) + "\n")
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(RIG.model_dump(mode="json")))
    return path


@pytest.mark.parametrize(("which", "seed", "step"), [("--last", 0, LAST_STEP), ("--best", 1, BEST_STEP)])
def test_the_checkpoint_that_was_asked_for_is_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, seed: int, step: int
) -> None:
    out = tmp_path / "bundle"
    words = ["export", str(run), which, "--out", str(out), "--rig", str(tmp_path / "rig.yaml"), "--json"]
    assert main([*words, "--parent", "ef"]) == 0
    captured = capsys.readouterr()
    told, bundle = json.loads(captured.out), load_bundle(out)
    assert told["digest"] == bundle.digest and told["parity"]["difference"] <= 1e-4
    expected, found = untrained_network(seed=seed).state_dict(), load_file(out / "weights.safetensors")
    assert all((found[name] == value).all() for name, value in expected.items())
    provenance = bundle.manifest["provenance"]
    assert (provenance["steps"], provenance["seed"], provenance["parent"]) == (step, 5, "ef")
    assert provenance["dataset_digests"] == ["ab", "cd"] and provenance["trained_at_commit"] == "0123abc"
    # The last one is below its floor, which is said; the best never was.
    warned = "below its floor in tracking; --best" in " ".join(captured.err.split())
    assert warned == (which == "--last") and told["below_floor"] == (["tracking"] if warned else [])
