"""The experiment runner: what waits for what, what is not done twice, and what a failure stops."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from e2e_perception.core.errors import ConfigError

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

    assert set(script.work_off(steps(fails=True), 2)) == {"b", "after-b"}
    assert sorted(did) == ["a", "after-a", "b"]
    assert did.index("a") < did.index("after-a")
    did.clear()
    assert script.work_off(steps(fails=False), 2) == []
    assert did == ["b", "after-b"]


def test_what_a_command_wrote_is_moved_beside_the_rest(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "perception").mkdir()
    (tmp_path / "perception" / "perception.json").write_text("new")
    (tmp_path / "facts.json").write_text("kept")
    script.move_up(tmp_path / "perception")
    assert (tmp_path / "perception.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "perception.json"]


def test_an_unknown_key_of_an_experiment_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("config: nano\ndatasets: []\nruns: []\nluck: 1\n")
    with pytest.raises(ConfigError, match="luck"):
        script.load(str(path))
