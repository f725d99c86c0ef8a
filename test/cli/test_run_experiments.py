"""The experiment runner: what waits for what, what is not done twice, and what a failure stops."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from e2e_perception.core.errors import ConfigError
from e2e_perception.training.checkpoint import STATE, load_checkpoint, write_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_experiments.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_experiments", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_experiments"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_shipped_experiment_has_every_step_once_and_each_after_what_it_needs(
    script: ModuleType, tmp_path: Path
) -> None:
    steps = script.steps_of(script.load("nano"), tmp_path, "cpu")
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert len({step.makes for step in steps}) == len(steps)
    for number, step in enumerate(steps):
        assert set(step.after) <= set(names[:number]), step.name
    assert names[-1] == "compare/joint-modular"
    trainings = [name for name in names if name.startswith("train/")]
    assert trainings[:3] == ["train/joint-0", "train/modular-0", "train/blind-0"], "seed by seed"
    assert not any("classical" in need or "blind" in need for need in steps[-1].after)
    assert {"train/joint-2", "train/modular-2", "train/blind-0", "drive-critical/classical"} <= set(names)


def test_what_is_there_is_not_done_again_and_a_failure_stops_only_what_needs_it(
    script: ModuleType, tmp_path: Path
) -> None:
    did: list[str] = []
    lock = threading.Lock()

    def step(name: str, *after: str, fails: bool = False) -> object:
        def run() -> None:
            with lock:
                did.append(name)
            if fails:
                raise ConfigError("it broke")
            (tmp_path / name).touch()

        return script.Step(name, "train", tmp_path / name, run, after)

    (tmp_path / "clips").touch()

    def steps(*, fails: bool) -> list[object]:
        return [step("clips"), step("a", "clips"), step("b", "clips", fails=fails), step("after-b", "b"),
                step("after-a", "a")]  # fmt: skip

    assert set(script.work_off(steps(fails=True), 2, tmp_path)) == {"b", "after-b"}
    assert sorted(did) == ["a", "after-a", "b"]
    assert did.index("a") < did.index("after-a")
    did.clear()
    assert script.work_off(steps(fails=False), 2, tmp_path) == []
    assert did == ["b", "after-b"]


def test_products_of_other_commands_are_refused_and_old_ones_made_again(
    script: ModuleType, tmp_path: Path
) -> None:
    did: list[str] = []

    def steps(recipe: str) -> list[object]:
        def step(name: str, *after: str, recipe: str = "") -> object:
            def run() -> None:
                did.append(name)
                (tmp_path / name).touch()

            return script.Step(name, "drive", tmp_path / name, run, after, recipe)

        return [step("bundle", recipe=recipe), step("drive", "bundle"), step("table", "drive")]

    assert script.work_off(steps("seed 1"), 1, tmp_path) == []
    assert script.work_off(steps("seed 1"), 1, tmp_path) == []
    assert did == ["bundle", "drive", "table"]
    with pytest.raises(ConfigError, match=r"bundle: .* another command; remove it[^$]*seed 1[^$]*seed 2"):
        script.work_off(steps("seed 2"), 1, tmp_path)
    (tmp_path / "bundle").unlink()
    did.clear()
    assert script.work_off(steps("seed 2"), 1, tmp_path) == []
    assert did == ["bundle", "drive", "table"]
    later = (tmp_path / "table").stat().st_mtime + 5.0
    os.utime(tmp_path / "bundle", (later, later))
    did.clear()
    assert [step.name for step in script.left_to_do(steps("seed 2"), tmp_path)] == ["drive", "table"]


def test_what_a_training_is_made_by_includes_its_configuration(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe() -> str:
        steps = script.steps_of(script.load("nano"), tmp_path, "cpu")
        return str(next(step.recipe for step in steps if step.name == "train/joint-0"))

    before = recipe()
    assert str(tmp_path) not in before, "the same wherever it lies"
    changed = script.load_training_config("nano").model_copy(update={"ema": 0.5})
    monkeypatch.setattr(script, "load_training_config", lambda name: changed)
    assert recipe() != before


def test_what_a_command_wrote_is_moved_beside_the_rest(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "perception").mkdir()
    (tmp_path / "perception" / "perception.json").write_text("new")
    (tmp_path / "facts.json").write_text("kept")
    script.move_up(tmp_path / "perception")
    assert (tmp_path / "perception.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "perception.json"]


def training_steps(script: ModuleType, out: Path, recipe: str = "train --seed 0") -> list[object]:
    def must_not_run() -> None:
        raise AssertionError("trained although it was published")

    clips = script.Step("clips/clean", "clips", out / "clips" / "index.parquet", must_not_run)
    train = script.Step(
        "train/joint-0", "train", out / "runs" / "joint-0" / "done", must_not_run, ("clips/clean",), recipe
    )
    bundle = out / "bundle"
    export = script.Step("export/joint-0", "export", bundle, bundle.touch, ("train/joint-0",), "export")
    return [clips, train, export]


def test_a_published_network_stands_for_its_training_and_the_clips_it_saw(
    script: ModuleType, tmp_path: Path
) -> None:
    here, there, published = tmp_path / "here", tmp_path / "there", tmp_path / "published"
    weights = {"model/w": torch.zeros(3), "average/w": torch.ones(3), "optimizer/0/step": torch.zeros(1)}
    steps = training_steps(script, here)
    write_checkpoint(here / "runs" / "joint-0" / STATE, weights, {"step": 7, "dataset_digests": ["ab"]})
    assert script.publish(steps, here, published) == [], "not done yet"
    (here / "runs" / "joint-0" / "done").touch()
    (here / "steps").mkdir()
    script.record_of(steps[1], here).write_text("train --seed 0")
    assert script.publish(steps, here, published) == [published / "joint-0.safetensors"]

    steps = training_steps(script, there)
    assert script.adopt(steps, there, published) == ["train/joint-0"]
    assert script.adopt(steps, there, published) == []
    network = load_checkpoint(there / "runs" / "joint-0")
    assert list(network.tensors) == ["average/w"] and network.step == 7
    assert [step.name for step in script.left_to_do(steps, there)] == ["export/joint-0"]
    assert script.work_off(steps, 1, there) == []
    assert script.left_to_do(training_steps(script, there)[:1], there), "clips that are asked for are made"


def test_networks_of_another_command_or_none_at_all_are_refused(script: ModuleType, tmp_path: Path) -> None:
    published = tmp_path / "published"
    with pytest.raises(ConfigError, match="no network of this experiment"):
        script.adopt(training_steps(script, tmp_path), tmp_path, published)
    write_checkpoint(published / "joint-0.safetensors", {"average/w": torch.ones(3)}, {"recipe": "other"})
    with pytest.raises(ConfigError, match=r"another command[^$]*other[^$]*train --seed 0"):
        script.adopt(training_steps(script, tmp_path), tmp_path, published)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_of_an_experiment_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("config: nano\ndatasets: []\nruns: []\nluck: 1\n")
    with pytest.raises(ConfigError, match="luck"):
        script.load(str(path))
