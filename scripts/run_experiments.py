"""Run an experiment file: clips, trainings, bundles, evaluations, comparisons; resumable, without ROS.

    python scripts/run_experiments.py nano --out runs/nano [--jobs 2] [--only train evaluate …] [--dry-run]
    python scripts/run_experiments.py nano --out runs/nano --published docs/experiments/nano

Every step is a command that leaves something behind; what is there already is not done again, unless it was
measured of something that is newer, and a training goes on where it stopped. OUT/steps/ says what made what:
a product of another command is refused. Steps that do not wait for each other run side by side, each on one
thread, one seed of all groups after the other. OUT/evaluations/ holds the figures of every network,
OUT/controls/ the drives without one, OUT/comparisons/ the paired differences.

`--publish DIR` writes what is finished to DIR: networks with the command behind them, and what was measured
of them, scenario by scenario. `--published DIR` takes it from there in place of doing it: networks stand for
their trainings, and what was measured of those networks for itself. With `--only-networks` nothing measured
is taken, so that everything after the trainings is done again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import source_tree  # noqa: F401
from experiment_publishing import adopt, publish
from experiment_steps import SETTINGS, Step, left_to_do, work_off
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from e2e_perception.cli.console import log
from e2e_perception.core.errors import ConfigError, E2EPerceptionError
from e2e_perception.core.named_files import offending_keys, read_named
from e2e_perception.core.provenance import git_commit
from e2e_perception.training.config import load_training_config

FOLDER = "experiments"
CLI = [sys.executable, "-m", "e2e_perception.cli"]
LATENCY_FRAMES = 40
FINGERPRINT_FRAMES = 4
FINGERPRINT_TOLERANCE = 2e-4  # of a mean, or of 0.01; processors round differently


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Frozen):
    """Clips to train on."""

    name: str
    suite: str = "train"
    part: str = "1/1"
    family: str = ""
    disturb: bool = False


class Runs(_Frozen):
    """Trainings that differ in nothing but their seed."""

    group: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seeds: tuple[int, ...]
    set: dict[str, Any] = Field(
        default_factory=dict, description="Settings that differ from the configuration."
    )
    drive: bool = Field(True, description="Whether it is driven in closed loop.")
    slices: bool = Field(False, description="Whether it is driven with spoiled sensors as well.")


class Slice(_Frozen):
    """A suite, driven with something wrong all the time."""

    suite: str
    degrade: str

    @property
    def place(self) -> str:
        """Its directory in an evaluation."""
        return f"drive-{Path(self.suite).stem}-{Path(self.degrade).stem.replace('_', '-')}"


class Comparison(_Frozen):
    """Two groups, compared in pairs."""

    groups: tuple[str, str]
    mission: str = "balanced"


class Experiment(_Frozen):
    """What is trained and measured."""

    config: str
    rig: str = "tiny"
    datasets: tuple[Data, ...]
    clip_length: int = 10
    stride_s: float = 1.5
    runs: tuple[Runs, ...]
    perception: str = Field("validation", description="Suite on which perception is measured.")
    drives: tuple[str, ...] = ("test", "critical")
    slices: tuple[Slice, ...] = ()
    controls: tuple[str, ...] = Field((), description="Policies without a network.")
    classical: str | None = Field(None, description="Run whose detections the classical pipeline gets.")
    comparisons: tuple[Comparison, ...] = ()

    @model_validator(mode="after")
    def _known_groups(self) -> Experiment:
        groups = [runs.group for runs in self.runs]
        if len(set(groups)) < len(groups):
            raise ValueError(f"groups need different names, got {', '.join(groups)}")
        for name in (name for comparison in self.comparisons for name in comparison.groups):
            if name not in groups:
                raise ValueError(f"unknown group {name!r} in comparisons; there are {', '.join(groups)}")
        trainings = [f"{runs.group}-{seed}" for runs in self.runs for seed in runs.seeds]
        if self.classical is not None and self.classical not in trainings:
            raise ValueError(f"unknown training {self.classical!r}; there are {', '.join(trainings)}")
        return self


def load(path_or_name: str) -> Experiment:
    """Read an experiment file, or a shipped one by its name.

    Raises:
        ConfigError: If it is missing or says something unknown.
    """
    path, document = read_named(path_or_name, what="experiment", folder=FOLDER, expected="a mapping")
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(offending_keys(error, 'experiment'))}") from error


def command(arguments: Sequence[str | Path], out: Path, name: str) -> None:
    """Run one of our commands on one thread, its words in OUT/logs/NAME.log.

    Raises:
        ConfigError: If it fails.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "logs" / f"{name.replace('/', '-')}.log").open("a", encoding="utf-8") as words:
        answer = subprocess.run(
            [*CLI, *map(str, arguments)], stdout=words, stderr=words, env=environment, check=False
        )
    if answer.returncode != 0:
        raise ConfigError(f"{name} ended with exit code {answer.returncode}; see {words.name}")


def steps_of(experiment: Experiment, out: Path, device: str) -> list[Step]:
    """Everything there is to do, in an order that respects what waits for what."""
    steps: list[Step] = []

    def add(
        name: str,
        kind: str,
        makes: Path,
        arguments: Sequence[str | Path],
        after: Sequence[str] = (),
        then: Callable[[], None] = lambda: None,
        settings: str = "",
    ) -> None:
        def run() -> None:
            command(arguments, out, name)
            then()

        recipe = shlex.join(map(str, arguments)).replace(f"{out}/", "") + settings
        steps.append(Step(name, kind, makes, run, tuple(after), recipe))

    for data in experiment.datasets:
        arguments: list[str | Path] = ["simulate", "--format", "clips", "--out", out / "clips" / data.name]
        arguments += ["--suite", data.suite, "--part", data.part, "--rig", experiment.rig]
        arguments += ["--family", data.family] if data.family else []
        arguments += ["--clip-length", str(experiment.clip_length), "--stride", str(experiment.stride_s)]
        arguments += ["--workers", "1", "--json", *(["--disturb"] if data.disturb else [])]
        add(f"clips/{data.name}", "clips", out / "clips" / data.name / "index.parquet", arguments)
    clips = [f"clips/{data.name}" for data in experiment.datasets]
    settings = f"{SETTINGS}{load_training_config(experiment.config).model_dump_json()}"

    for runs, seed in seed_by_seed(experiment.runs):
        label = f"{runs.group}-{seed}"
        run, bundle, evaluation = (out / room / label for room in ("runs", "bundles", "evaluations"))
        arguments = ["train", "--out", run, "--config", experiment.config, "--device", device]
        arguments += ["--rig", experiment.rig, "--drivers", "1", "--tracking", "none", "--json"]
        for data in experiment.datasets:
            arguments += ["--data", out / "clips" / data.name]
        for key, value in {"seed": seed, "threads": 1, **runs.set}.items():
            arguments += ["--set", f"{key}={json.dumps(value)}"]
        # A training has files long before it is done.
        done = (run / "done").touch
        add(f"train/{label}", "train", run / "done", arguments, clips, then=done, settings=settings)
        add(f"export/{label}", "export", bundle / "bundle.json",
            ["export", run, "--out", bundle, "--name", label, "--rig", experiment.rig, "--json"],
            [f"train/{label}"],
            functools.partial(refuse_another_network, bundle, evaluation))  # fmt: skip
        steps.append(
            Step(
                f"facts/{label}",
                "evaluate",
                evaluation / "facts.json",
                lambda bundle=bundle, evaluation=evaluation, group=runs.group, seed=seed: write_facts(
                    bundle, evaluation, group, seed
                ),
                (f"export/{label}",),
                "facts with weights",
            )
        )
        arguments = ["evaluate", bundle, "--suite", experiment.perception]
        arguments += ["--workers", "1", "--out", evaluation / "perception", "--json"]
        makes = evaluation / "perception.json"
        then = functools.partial(move_up, evaluation / "perception")
        add(f"evaluate/{label}", "evaluate", makes, arguments, [f"export/{label}"], then)
        drives = [(f"drive-{Path(suite).stem}", suite, []) for suite in experiment.drives if runs.drive]
        for part in experiment.slices if runs.slices else ():
            drives.append((part.place, part.suite, ["--degrade", part.degrade]))
        for place, suite, spoiled in drives:
            directory = evaluation / place
            arguments = ["drive", "--suite", suite, "--policy", f"bundle:{bundle}", "--views", "none"]
            arguments += ["--workers", "1", "--out", directory, "--json", *spoiled]
            makes = directory / "summary.json"
            add(f"{place}/{label}", "drive", makes, arguments, [f"export/{label}"])
    policies = [(name, name, ()) for name in experiment.controls]
    if experiment.classical is not None:
        bundle = out / "bundles" / experiment.classical
        policies.append(("classical", f"classical:{bundle}", (f"export/{experiment.classical}",)))
    for label, policy, after in policies:
        for suite in experiment.drives:
            place = f"drive-{Path(suite).stem}"
            directory = out / "controls" / label / place
            arguments = ["drive", "--suite", suite, "--policy", policy, "--views", "none"]
            arguments += ["--rig", experiment.rig] if label == "classical" else []
            arguments += ["--workers", "1", "--out", directory, "--json"]
            add(f"{place}/{label}", "drive", directory / "summary.json", arguments, after)
    for comparison in experiment.comparisons:
        first, second = comparison.groups
        seeds = {runs.group: runs.seeds for runs in experiment.runs}
        directories = [
            [out / "evaluations" / f"{group}-{seed}" for seed in seeds[group]] for group in (first, second)
        ]
        measured = [
            step.name
            for step in steps
            if step.kind in ("evaluate", "drive")
            and step.name.split("/")[1].rpartition("-")[0] in comparison.groups
        ]
        directory = out / "comparisons" / f"{first}-against-{second}"
        add(f"compare/{first}-{second}", "compare", directory / "comparison.json",
            ["compare", *directories[0], *(part for d in directories[1] for part in ("--against", d)),
             "--mission", comparison.mission, "--out", directory, "--json"],
            measured)  # fmt: skip
    return steps


def seed_by_seed(groups: Sequence[Runs]) -> Iterator[tuple[Runs, int]]:
    """The first seed of all groups, then their second: what is broken off leaves pairs."""
    for number in range(max((len(runs.seeds) for runs in groups), default=0)):
        for runs in groups:
            if number < len(runs.seeds):
                yield runs, runs.seeds[number]


def move_up(directory: Path) -> None:
    """What a command replaces as a whole directory is moved beside what others wrote."""
    for path in directory.iterdir():
        path.replace(directory.parent / path.name)
    directory.rmdir()


def refuse_another_network(bundle: Path, evaluation: Path) -> None:
    """What was measured of a network with other code is not added to.

    Other weights are no reason: what was measured of those is measured again, for the bundle is newer. Where
    on another processor rounding alone decides between two objects, the same code can look like another.

    Raises:
        ConfigError: If there are figures of these weights with code that makes something else of them; the
            bundle is removed.
    """
    facts = evaluation / "facts.json"
    if not facts.is_file():
        return
    known = json.loads(facts.read_text(encoding="utf-8"))
    if "fingerprint" not in known or "weights_digest" not in known:
        why = "does not say what the network computed"
    elif known["weights_digest"] != weights_digest(bundle):
        return
    else:
        apart = differing(known["fingerprint"], fingerprint(bundle))
        if not apart:
            return
        why = (
            f"is of commit {known.get('measured_at_commit')}, and this code makes another network of these "
            f"weights (mean size of {', '.join(apart[:3])})"
        )
    shutil.rmtree(bundle)
    raise ConfigError(
        f"{facts} {why}; run the commit that measured it, or measure all anew in another --out with "
        "--published DIR --only-networks"
    )


def differing(measured: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    """Outputs whose mean size is another, or that only one of two fingerprints has."""
    apart = []
    for name in sorted({*measured, *found}):
        a, b = measured.get(name), found.get(name)
        if a is None or b is None or abs(a - b) > FINGERPRINT_TOLERANCE * max(a, b, 0.01):
            apart.append(f"{name} {a}, now {b}")
    return apart


def weights_digest(bundle: Path) -> str:
    """SHA-256 of a bundle's weights, whatever wrote the file."""
    from safetensors.numpy import load_file

    found = hashlib.sha256()
    for name, values in sorted(load_file(bundle / "weights.safetensors").items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()


def fingerprint(bundle: Path) -> dict[str, float]:
    """What a network computes, in a few figures: the mean size of each output over some generated frames."""
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import create_engine
    from e2e_perception.deploy.rollouts import REMEMBERED, generated_frames, run_over, strongest

    opened = load_bundle(bundle)
    sizes: dict[str, list[float]] = {}

    def visit(_index: int, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        for name, values in outputs.items():
            sizes.setdefault(name, []).append(float(np.abs(values).mean()))
        return strongest(outputs["query_scores"][0], REMEMBERED)

    engine = create_engine(opened, "onnxruntime", num_threads=1)
    run_over(engine, generated_frames(opened.network, num_frames=FINGERPRINT_FRAMES), opened.network, visit)
    return {name: float(f"{np.mean(values):.5g}") for name, values in sorted(sizes.items())}


def write_facts(bundle: Path, evaluation: Path, group: str, seed: int) -> None:
    """What is known of a network besides its figures: size, data, time per frame on one thread."""
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import create_engine
    from e2e_perception.deploy.export import graph_digest
    from e2e_perception.deploy.rollouts import random_inputs

    opened = load_bundle(bundle)
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    engine = create_engine(opened, "onnxruntime", num_threads=1)
    inputs = random_inputs(opened.network, np.random.default_rng(0))
    taken = []
    for _ in range(LATENCY_FRAMES):
        started = time.perf_counter()
        engine.infer(inputs)
        taken.append(1e3 * (time.perf_counter() - started))
    facts = {
        "label": f"{group}-{seed}",
        "group": group,
        "seed": seed,
        # The least of many: what else this machine does cannot make it faster.
        "latency_ms": round(min(taken), 2),
        "graph_digest": graph_digest(bundle / "model.onnx"),
        "fingerprint": fingerprint(bundle),
        "weights_digest": weights_digest(bundle),
        "parameters": manifest["num_parameters"],
        "bundle_digest": opened.digest,
        "dataset_digests": manifest["provenance"]["dataset_digests"],
        "commit": manifest["provenance"]["trained_at_commit"],
        "measured_at_commit": manifest["provenance"]["git_commit"],
    }
    evaluation.mkdir(parents=True, exist_ok=True)
    (evaluation / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def note_commit(out: Path, steps: Sequence[Step]) -> None:
    """Say so if trainings of an experiment would be of more than one commit; OUT/commit.txt has the first."""
    if not any(step.kind == "train" for step in left_to_do(steps, out)):
        return
    now, path = git_commit() or "unknown", out / "commit.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{now}\n", encoding="utf-8")
    began = path.read_text(encoding="utf-8").strip()
    if began != now or now.endswith("-dirty"):
        log(f"warning: trainings in {out} began at commit {began}, and this is {now}; they may differ for it")


def only(steps: Sequence[Step], wanted: Sequence[str]) -> list[Step]:
    """Steps of some kinds, or with such beginnings of their names.

    Raises:
        ConfigError: If one of the words means no step.
    """
    for word in wanted:
        if not any(step.kind == word or step.name.startswith(word) for step in steps):
            kinds = ", ".join(dict.fromkeys(step.kind for step in steps))
            raise ConfigError(
                f"--only {word}: no such step; there are the kinds {kinds}, and names by --dry-run"
            )
    return [step for step in steps if step.kind in wanted or step.name.startswith(tuple(wanted))]


def at_least_one(text: str) -> int:
    """A number of processes, from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def main() -> int:
    """Parse, work off, collect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="experiment file, or the name of a shipped one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--jobs", type=at_least_one, default=len(os.sched_getaffinity(0)), help="steps side by side"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", help="kinds of steps, or beginnings of their names")
    parser.add_argument("--published", type=Path, help="take what is there from where it was published")
    parser.add_argument("--only-networks", action="store_true", help="of --published, nothing measured")
    parser.add_argument("--publish", type=Path, help="write what is finished, and end")
    parser.add_argument("--dry-run", action="store_true", help="say what is left to do")
    options = parser.parse_args()
    if options.only_networks and options.published is None:
        parser.error("--only-networks says what to take of --published, which is missing")
    try:
        experiment = load(options.experiment)
        steps = steps_of(experiment, options.out, options.device)
        if options.publish is not None:
            for path in publish(steps, options.out, options.publish):
                print(path)
            return 0
        if options.published is not None:
            steps = adopt(steps, options.out, options.published, measured=not options.only_networks)
        if options.only:
            steps = only(steps, options.only)
        if options.dry_run:
            left = {step.name for step in left_to_do(steps, options.out)}
            for step in steps:
                print(f"{'todo' if step.name in left else 'done'}  {step.name}")
            return 0
        note_commit(options.out, steps)
        failed = work_off(steps, options.jobs, options.out)
    except E2EPerceptionError as error:
        log(f"error: {error}")
        return 2
    for name in failed:
        log(f"not done: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
