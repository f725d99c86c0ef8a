"""The experiment runner: what waits for what, what is not done twice, and what a failure stops."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from script_import import imported
from short_drive import RIG
from synthetic import untrained_network

from e2e_perception.cli.train import _settings
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.deploy.export import export_bundle
from e2e_perception.model import network
from e2e_perception.training.checkpoint import STATE, load_checkpoint, write_checkpoint
from e2e_perception.training.config import Stage, TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "experiments" / "nano"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported("run_experiments")


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


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "config" / "experiments").glob("*.yaml"))
)
def test_every_shipped_experiment_has_settings_that_a_training_takes(
    script: ModuleType, tmp_path: Path, name: str
) -> None:
    experiment = script.load(name)
    steps = {step.name: step for step in script.steps_of(experiment, tmp_path, "cpu")}
    for runs in experiment.runs:
        for seed in runs.seeds:
            settings = {"seed": seed, "threads": 1, **runs.set}
            config = _settings(experiment.config, [f"{k}={json.dumps(v)}" for k, v in settings.items()])
            assert config.seed == seed and f"train/{runs.group}-{seed}" in steps


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


def test_figures_of_another_network_are_not_added_to(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "fingerprint", lambda bundle: {"plan_sd": 10.0, "query_scores": 0.05})
    monkeypatch.setattr(script, "weights_digest", lambda bundle: "these")
    bundle, evaluation = tmp_path / "bundle", tmp_path / "evaluation"
    bundle.mkdir()
    evaluation.mkdir()
    script.refuse_another_network(bundle, evaluation)  # nothing measured yet

    def measured(weights: str = "these", **fingerprint: float) -> None:
        facts = {"fingerprint": fingerprint, "weights_digest": weights, "measured_at_commit": "0123abc"}
        (evaluation / "facts.json").write_text(json.dumps(facts))

    measured(plan_sd=10.0001, query_scores=0.05)  # rounding
    script.refuse_another_network(bundle, evaluation)
    measured("others", plan_sd=3.0)  # it was trained again, and will be measured again
    script.refuse_another_network(bundle, evaluation)
    assert bundle.is_dir()
    for wrong, name in (
        ({"plan_sd": 10.0, "query_scores": 0.051}, "query_scores"),
        ({"plan_sd": 10.0}, "query_scores"),
        ({"plan_sd": 10.0, "query_scores": 0.05, "gone_since": 1.0}, "gone_since"),
    ):
        bundle.mkdir(exist_ok=True)
        measured(**wrong)
        with pytest.raises(ConfigError, match=rf"commit 0123abc.*mean size of {name} .*--only-networks"):
            script.refuse_another_network(bundle, evaluation)
        assert not bundle.exists()
    bundle.mkdir()
    (evaluation / "facts.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say what the network computed"):
        script.refuse_another_network(bundle, evaluation)


def test_a_fingerprint_tells_the_same_weights_with_another_constant(
    script: ModuleType, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "FILTER_STD", 1.05 * network.FILTER_STD)
    other = tmp_path / "other"
    export_bundle(untrained_network(), other, name="small", rig=RIG, evaluation={}, provenance={"seed": 0})
    assert (other / "weights.safetensors").read_bytes() == (bundle / "weights.safetensors").read_bytes()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    facts = {"fingerprint": script.fingerprint(bundle), "weights_digest": script.weights_digest(bundle)}
    (evaluation / "facts.json").write_text(json.dumps(facts))
    assert script.weights_digest(other) == facts["weights_digest"]
    script.refuse_another_network(bundle, evaluation)
    with pytest.raises(ConfigError, match="mean size of object_futures"):
        script.refuse_another_network(other, evaluation)


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


def training_steps(script: ModuleType, out: Path, recipe: str = "train --seed 0") -> list[Any]:
    """A training, and two drives and an evaluation of what it makes."""

    def must_not_run() -> None:
        raise AssertionError("done although it was published")

    def measure(makes: Path) -> None:
        makes.parent.mkdir(parents=True, exist_ok=True)
        makes.write_text("measured here")

    clips = script.Step("clips/clean", "clips", out / "clips" / "index.parquet", must_not_run)
    train = script.Step(
        "train/joint-0", "train", out / "runs" / "joint-0" / "done", must_not_run, ("clips/clean",), recipe
    )
    bundle = out / "bundle"
    steps = [clips, train]
    steps.append(script.Step("export/joint-0", "export", bundle, bundle.touch, ("train/joint-0",), "export"))
    room = out / "evaluations" / "joint-0"
    for name, kind, makes in (
        ("evaluate/joint-0", "evaluate", room / "perception.json"),
        ("drive-test/joint-0", "drive", room / "drive-test" / "summary.json"),
    ):
        run = functools.partial(measure, makes)
        steps.append(script.Step(name, kind, makes, run, ("export/joint-0",), name))
    table = out / "comparison.json"
    steps.append(
        script.Step("compare/a-b", "compare", table, table.touch, ("drive-test/joint-0",), "compare")
    )
    return steps


def train_by_hand(script: ModuleType, out: Path) -> None:
    """What a training leaves, without one."""
    weights = {"model/w": torch.zeros(3), "average/w": torch.ones(3), "optimizer/0/step": torch.zeros(1)}
    run = out / "runs" / "joint-0"
    facts = {"step": 7, "dataset_digests": ["ab"], "training": {"batch_clips": 8}}
    write_checkpoint(run / STATE, weights, facts)
    row = {"step": 7, "clips_per_s": 4.0, "data_share": 0.25, "event": "", "cosines": {}}
    (run / "losses.jsonl").write_text(json.dumps(row) + "\n")
    (run / "done").touch()
    (out / "steps").mkdir()
    (out / "steps" / "train-joint-0.txt").write_text("train --seed 0")


@pytest.fixture
def clips_known(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips need not be there to be described."""
    publishing = sys.modules["experiment_publishing"]
    monkeypatch.setattr(publishing, "datasets_of", lambda out: {"clean": {"digest": "ab", "clips": 3}})


@pytest.mark.usefixtures("clips_known")
def test_a_published_network_stands_for_its_training_and_the_clips_it_saw(
    script: ModuleType, tmp_path: Path
) -> None:
    here, there, published = tmp_path / "here", tmp_path / "there", tmp_path / "published"
    assert script.publish(training_steps(script, here), here, published) == [], "nothing is done yet"
    train_by_hand(script, here)
    network = published / "joint-0.safetensors"
    facts = [published / "runs" / "joint-0.json", published / "clips" / "clean.json"]
    assert script.publish(training_steps(script, here), here, published) == [network, *facts]

    steps = script.adopt(training_steps(script, there), there, published)
    assert [step.name for step in steps] == [step.name for step in training_steps(script, there)]
    taken = load_checkpoint(there / "runs" / "joint-0")
    assert list(taken.tensors) == ["average/w"] and taken.step == 7
    assert json.loads((there / "published" / "runs" / "joint-0.json").read_text())["steps"] == 7
    assert script.left_to_do(steps, there)[0].name == "export/joint-0"
    assert script.work_off(steps, 1, there) == []
    assert script.left_to_do(training_steps(script, there)[:1], there), "clips that are asked for are made"


@pytest.mark.usefixtures("clips_known")
def test_what_was_measured_elsewhere_stands_for_everything_that_leads_to_it(
    script: ModuleType, tmp_path: Path
) -> None:
    here, there, published = tmp_path / "here", tmp_path / "there", tmp_path / "published"
    train_by_hand(script, here)
    assert script.work_off(training_steps(script, here)[1:4], 1, here) == []
    (here / "evaluations" / "joint-0" / "perception.parquet").write_text("rows")
    (here / "evaluations" / "joint-0" / "report.html").write_text("page")
    script.publish(training_steps(script, here), here, published)
    half = tmp_path / "half"
    left = script.adopt(training_steps(script, half), half, published)
    expected = ["clips/clean", "train/joint-0", "export/joint-0", "drive-test/joint-0", "compare/a-b"]
    assert [step.name for step in left] == expected
    assert (half / "evaluations" / "joint-0" / "perception.parquet").read_text() == "rows"
    assert script.work_off(left, 1, half) == []
    left = script.adopt(training_steps(script, half), half, published)
    assert [step.name for step in left] == expected, "what was driven here stays"
    assert script.left_to_do(left, half) == [], "and nothing is done again for the export that came between"

    assert script.work_off(training_steps(script, here)[1:], 1, here) == []
    (here / "evaluations" / "joint-0" / "drive-test" / "index.html").write_text("page")
    script.publish(training_steps(script, here), here, published)
    for _ in range(2):
        left = script.adopt(training_steps(script, there), there, published)
        assert [step.name for step in left] == ["compare/a-b"]
    got = sorted(str(path.relative_to(there)) for path in (there / "evaluations").rglob("*.*"))
    assert got == [
        f"evaluations/joint-0/{name}"
        for name in ("drive-test/summary.json", "perception.json", "perception.parquet")
    ]
    left = script.adopt(training_steps(script, there), there, published, measured=False)
    assert "drive-test/joint-0" in {step.name for step in left}

    script.publish(training_steps(script, there), there, tmp_path / "again")
    for path in (published / "evaluations").rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(published)).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("clips_known")
def test_what_was_measured_here_is_not_replaced(script: ModuleType, tmp_path: Path) -> None:
    here, published = tmp_path / "here", tmp_path / "published"
    train_by_hand(script, here)
    assert script.work_off(training_steps(script, here)[1:], 1, here) == []
    script.publish(training_steps(script, here), here, published)
    summary = here / "evaluations" / "joint-0" / "drive-test" / "summary.json"
    summary.write_text("measured again")
    script.adopt(training_steps(script, here), here, published)
    assert summary.read_text() == "measured again"


@pytest.mark.usefixtures("clips_known")
def test_what_was_measured_of_another_network_is_not_taken(script: ModuleType, tmp_path: Path) -> None:
    here, there, published = tmp_path / "here", tmp_path / "there", tmp_path / "published"
    train_by_hand(script, here)
    assert script.work_off(training_steps(script, here)[1:], 1, here) == []
    script.publish(training_steps(script, here), here, published)
    train_by_hand(script, there)
    steps = training_steps(script, there)
    assert script.adopt(steps, there, published) == steps, "it was trained here"
    (published / "joint-0.safetensors").unlink()
    steps = training_steps(script, tmp_path / "new")
    assert script.adopt(steps, tmp_path / "new", published) == steps, "it is still to be trained"
    assert not (there / "evaluations").exists()


@pytest.mark.usefixtures("clips_known")
def test_what_another_command_made_or_nothing_at_all_is_refused(script: ModuleType, tmp_path: Path) -> None:
    here, there, published = tmp_path / "here", tmp_path / "there", tmp_path / "published"
    with pytest.raises(ConfigError, match="nothing of an experiment in"):
        script.adopt(training_steps(script, there), there, published)
    write_checkpoint(published / "joint-0.safetensors", {"average/w": torch.ones(3)}, {"recipe": "other"})
    with pytest.raises(ConfigError, match=r"another command[^$]*other[^$]*train --seed 0"):
        script.adopt(training_steps(script, there), there, published)
    assert not there.exists()
    train_by_hand(script, here)
    assert script.work_off(training_steps(script, here)[1:], 1, here) == []
    script.publish(training_steps(script, here), here, published)
    commands = published / "commands.json"
    commands.write_text(
        json.dumps({**json.loads(commands.read_text()), "drive-test/joint-0": "drive --fast"})
    )
    with pytest.raises(ConfigError, match=r"another command[^$]*drive --fast[^$]*drive-test/joint-0"):
        script.adopt(training_steps(script, there), there, published)


def test_an_unknown_key_of_an_experiment_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("config: nano\ndatasets: []\nruns: []\nluck: 1\n")
    with pytest.raises(ConfigError, match="luck"):
        script.load(str(path))


def refused(script: ModuleType, tmp_path: Path, **changes: object) -> str:
    document = {"config": "nano-short", "datasets": [{"name": "clean"}], "runs": RUNS, **changes}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as error:
        script.load(str(tmp_path / "e.yaml"))
    return str(error.value)


RUNS = [{"group": "a", "seeds": [0]}, {"group": "b", "seeds": [0]}]


def test_who_is_compared_or_followed_has_to_be_trained(script: ModuleType, tmp_path: Path) -> None:
    told = refused(script, tmp_path, comparisons=[{"groups": ["a", "c"]}])
    assert "unknown group 'c'" in told and "there are a, b" in told
    assert "unknown training 'a-1'; there are a-0, b-0" in refused(script, tmp_path, classical="a-1")
    assert "different names, got a, a" in refused(script, tmp_path, runs=[RUNS[0], RUNS[0]])


def test_words_that_mean_no_step_are_refused(script: ModuleType, tmp_path: Path) -> None:
    steps = script.steps_of(script.load("nano"), tmp_path, "cpu")
    some = script.only(steps, ["train", "drive-test/joint"])
    assert {step.kind for step in some} == {"train", "drive"}
    with pytest.raises(ConfigError, match="--only trian: no such step; there are the kinds clips, train"):
        script.only(steps, ["train", "trian"])


def test_settings_that_came_up_since_change_nothing_as_long_as_they_are_at_their_defaults(
    script: ModuleType,
) -> None:
    same = sys.modules["experiment_steps"].same_recipe
    settings = TrainingConfig(stages=(Stage(name="all", steps=5),)).model_dump(mode="json")

    def recipe(words: str = "train --out x", **changes: object) -> str:
        return f"{words} # {json.dumps({**settings, **changes})}"

    def older(key: str) -> str:
        return f"train --out x # {json.dumps({k: v for k, v in settings.items() if k != key})}"

    assert same(recipe(), recipe()) and same("drive", "drive") and not same("drive", "drive --fast")
    assert same(older("memory"), recipe())
    assert not same(older("memory"), recipe(memory=False)), "it is not what it was"
    assert not same(recipe(seed=1), recipe()) and not same(recipe(forgotten=1), recipe())
    assert not same(recipe("train"), recipe()) and not same("train --out x", recipe())
    stage = settings["stages"][0]
    young = {k: v for k, v in stage.items() if k != "adversarial"}
    assert same(recipe(stages=[young]), recipe())
    assert not same(recipe(stages=[young]), recipe(stages=[{**stage, "adversarial": 0.5}]))
    assert not same(recipe(stages=[stage, stage]), recipe())


def test_the_published_experiment_is_still_taken(script: ModuleType, tmp_path: Path) -> None:
    steps = script.steps_of(script.load("nano"), tmp_path, "cpu")
    names = {step.name for step in steps}
    left = {step.name for step in script.adopt(steps, tmp_path, PUBLISHED)}
    for side in ("joint", "modular"):
        for seed in range(3):
            assert {f"drive-test/{side}-{seed}", f"train/{side}-{seed}"} <= names
            assert f"drive-test/{side}-{seed}" not in left
            facts = json.loads((tmp_path / "evaluations" / f"{side}-{seed}" / "facts.json").read_text())
            trained = load_checkpoint(tmp_path / "runs" / f"{side}-{seed}").facts["git_commit"]
            assert facts["commit"] == trained and facts["fingerprint"]


def test_a_training_says_how_long_it_took_with_everything(script: ModuleType, tmp_path: Path) -> None:
    facts = sys.modules["experiment_facts"]
    assert facts.minutes_of(tmp_path, "a-0") is None
    tries = iter([True, False])

    def run() -> None:
        if next(tries):
            raise ConfigError("broken off")
        (tmp_path / "done").touch()

    step = script.Step("train/a-0", "train", tmp_path / "done", run)
    assert script.work_off([step], 1, tmp_path) == ["train/a-0"]
    assert script.work_off([step], 1, tmp_path) == []
    assert len((tmp_path / "steps" / "train-a-0.seconds").read_text().split()) == 2
    (tmp_path / "steps" / "train-a-0.seconds").write_text("90.0\n30.0\n")
    assert facts.minutes_of(tmp_path, "a-0") == 2.0


def test_time_of_what_was_thrown_away_is_not_counted(script: ModuleType, tmp_path: Path) -> None:
    made = tmp_path / "runs" / "a-0" / "done"

    def run() -> None:
        made.parent.mkdir(parents=True)
        made.touch()

    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "train-a-0.seconds").write_text("3600.0\n")
    assert script.work_off([script.Step("train/a-0", "train", made, run)], 1, tmp_path) == []
    assert sys.modules["experiment_facts"].minutes_of(tmp_path, "a-0") < 1.0


def test_trainings_of_more_than_one_commit_are_said(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = script.Step("train/a-0", "train", tmp_path / "done", lambda: None)
    for commit, warns in (("0123abc", False), ("0123abc", False), ("4567def", True), ("0123abc-dirty", True)):
        monkeypatch.setattr(script, "git_commit", lambda commit=commit: commit)
        script.note_commit(tmp_path, [step])
        told = capsys.readouterr().err
        assert (f"began at commit 0123abc, and this is {commit}" in " ".join(told.split())) == warns
    (tmp_path / "done").touch()
    script.note_commit(tmp_path, [step])
    assert not capsys.readouterr().err, "nothing is trained"


def test_a_training_without_a_step_has_no_facts(script: ModuleType, tmp_path: Path) -> None:
    train_by_hand(script, tmp_path)
    facts, run = sys.modules["experiment_facts"], tmp_path / "runs" / "joint-0"
    began = json.dumps({"step": 0, "init": "tiny", "fresh": []})
    (run / "losses.jsonl").write_text(began + "\n" + (run / "losses.jsonl").read_text())
    assert facts.training_facts(run)["clips_per_s"] == 4.0
    (run / "losses.jsonl").write_text(began + "\n")
    with pytest.raises(InputError, match=r"losses.jsonl has no step"):
        facts.training_facts(run)
