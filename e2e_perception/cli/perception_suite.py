"""`evaluate --suite`: the whole stack on drives of the expert, and what it perceived and planned."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from e2e_perception.cli.console import finite, log, print_table, progress_bar
from e2e_perception.cli.evaluations import REPORT
from e2e_perception.cli.fan_out import Lost, fan_out, num_cores
from e2e_perception.core.config import EngineConfig, StackConfig
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.provenance import git_commit, versions
from e2e_perception.core.rig import Rig

if TYPE_CHECKING:
    from e2e_perception.deploy.bundle import Bundle
    from e2e_perception.deploy.engines import InferenceEngine
    from e2e_perception.evaluation.summary import EpisodeFigures
    from e2e_perception.simulation.degradation import DegradationSchedule
    from e2e_perception.simulation.traffic_world import ScenarioSpec

NEEDED = {
    "highway_env": "the simulator",
    "motmetrics": "the tracking metrics",
    "plotly": "the report's charts",
}
LIBRARIES = ("numpy", "scipy", "highway-env", "opencv-python-headless", "onnxruntime", "torch", "motmetrics")


@dataclass(frozen=True)
class Ride:
    """One drive to look at."""

    spec: ScenarioSpec
    bundle: str
    config: StackConfig
    rig: Rig
    degradation: DegradationSchedule | None


@dataclass(frozen=True)
class Ridden:
    """What came of it: figures, or why the drive cannot be looked at."""

    figures: EpisodeFigures | None
    why: str = ""


def ride(task: Ride) -> Ridden:
    """Let the expert drive and the stack look on; a drive that is over too soon has no figures."""
    from e2e_perception.evaluation.summary import evaluate_frames
    from e2e_perception.simulation.closed_loop import Robot
    from e2e_perception.simulation.expert_drives import drive_expert
    from e2e_perception.simulation.ride_along import ride_along

    rig, spec = task.rig, task.spec
    try:
        scenario = drive_expert(spec, robot=Robot(rig.ego_length, rig.ego_width, rig.ego_center_x))
    except InputError as error:
        return Ridden(None, str(error))
    bundle, engine = _engine(task.bundle, task.config.engine)
    pairs = ride_along(scenario, bundle.network, engine, rig, task.config, degradation=task.degradation)
    return Ridden(evaluate_frames(pairs, scenario=spec.name, family=spec.family))


def evaluate_suite(
    suite_name: str,
    config: StackConfig,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 0,
    degradation: str | None = None,
    params: str | None = None,
) -> dict[str, Any]:
    """Measure a bundle on a suite and write `perception.json`, `perception.parquet` and `report.html`.

    Args:
        suite_name: File, or name of a shipped one.
        config: Of the stack, with the bundle.
        out: Directory; other files in it stay.
        limit: Only the first so many scenarios.
        workers: Processes; 0: one per core.
        degradation: File, or shipped name; wins over the suite's.
        params: Where `config` has parameters from; is written down.
    Returns:
        The content of `perception.json`.
    Raises:
        E2EPerceptionError: If suite, bundle, backend or degradation cannot be used, a worker died, or no
            drive could be looked at.
    """
    for module, what in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} ({module}) is not installed; `pip install .[training]`")
    from e2e_perception.evaluation.evaluation_report import write_evaluation_report
    from e2e_perception.evaluation.evaluations import (
        PERCEPTION,
        PERCEPTION_ROWS,
        read_evaluation,
        read_facts,
    )
    from e2e_perception.evaluation.summary import combine, write_rows
    from e2e_perception.simulation.suites import load_suite

    suite = load_suite(suite_name)
    specs = suite.scenarios()[:limit]
    template, facts = _ride(specs[0], config, degradation or suite.degradation)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a directory")
    read_facts(out)  # before hours of work, what would be refused after them
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    tasks = [Ride(spec, template.bundle, config, template.rig, template.degradation) for spec in specs]
    episodes, left_out = _ride_all(tasks, workers or num_cores())
    seconds = time.perf_counter() - started
    if not episodes:
        raise InputError(f"suite {suite.name}: no drive could be looked at; {next(iter(left_out.values()))}")
    document: dict[str, Any] = finite(
        {
            **facts,
            "suite": suite.name,
            "suite_digest": suite.digest,
            "limit": limit,
            "params": params,
            "excluded": list(suite.excluded_names),
            "left_out": left_out,
            **combine(episodes).document(),
            "seeds": {spec.name: spec.seed for spec in specs},
            "seconds": round(seconds, 1),
            "versions": versions(LIBRARIES),
            "commit": git_commit(),
        }
    )
    document["scenario_means"] = scenario_means(episodes)
    write_rows(out / PERCEPTION_ROWS, episodes)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (out / PERCEPTION).write_text(text, encoding="utf-8")
    write_evaluation_report(out / REPORT, [read_evaluation(out, drives=False)], title=_title(document))
    return document


def scenario_means(episodes: Sequence[EpisodeFigures]) -> dict[str, float]:
    """Mean over scenarios that have a value, by figure; what comparisons of networks are about."""
    means = {}
    for name in episodes[0].figures:
        values = np.array([episode.figures[name] for episode in episodes])
        if np.isfinite(values).any():
            means[name] = float(values[np.isfinite(values)].mean())
    return means


def print_figures(document: dict[str, Any], out: Path) -> None:
    """The figures for people; what could not be measured is left out."""
    means = document["scenario_means"]
    rows = [
        (name, f"{value:.4g}", f"{means[name]:.4g}" if name in means else "–")
        for name, value in document["figures"].items()
        if value is not None
    ]
    print_table(_title(document), ("figure", "pooled", "mean over drives"), rows)
    typer.echo(
        f"{document['frames']} frames in {document['seconds']:.1f} s; open {out / REPORT} in a browser"
    )


def _title(document: dict[str, Any]) -> str:
    """Of what the figures are."""
    sensors = f", {document['degradation']}" if document["degradation"] else ""
    return f"{document['bundle']} on {document['scenarios']} drives of suite {document['suite']}{sensors}"


def _ride(spec: ScenarioSpec, config: StackConfig, degradation: str | None) -> tuple[Ride, dict[str, Any]]:
    """A task, and facts for the summary; all that could be refused is refused here."""
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine
    from e2e_perception.runtime.pipeline import Pipeline
    from e2e_perception.simulation.degradation import load_degradation
    from e2e_perception.simulation.randomization import network_sized

    bundle = load_bundle(config.engine.bundle)
    rig = bundle.rig.with_sensors({c.name: network_sized(c, bundle.network) for c in bundle.rig.cameras})
    schedule = None if degradation is None else load_degradation(degradation)
    if schedule is not None:
        schedule.check(rig)
    engine = configured_engine(bundle, config.engine, log, num_threads=1)
    Pipeline(bundle.network, rig, engine, config, str(bundle))
    facts = {
        "bundle": str(bundle),
        "bundle_digest": bundle.digest,
        "backend": str(engine.info),
        "rig": rig.name,
        "degradation": None if schedule is None else schedule.name,
    }
    engine.close()
    return Ride(spec, str(bundle.path.resolve()), config, rig, schedule), facts


def _ride_all(tasks: Sequence[Ride], workers: int) -> tuple[list[EpisodeFigures], dict[str, str]]:
    """Figures in order of the tasks, and why others have none, by scenario."""
    found: dict[int, Ridden] = {}
    with progress_bar("riding along", len(tasks)) as progress:
        for number, ridden in fan_out(ride, tasks, workers):
            if isinstance(ridden, Lost):
                raise InputError(f"{tasks[number].spec.name}: {ridden.why}; start again")
            if ridden.figures is None:
                log(f"warning: {ridden.why}; it is left out")
            found[number] = ridden
            progress(len(found), tasks[number].spec.name)
    ordered = [(tasks[number].spec.name, found[number]) for number in sorted(found)]
    episodes = [ridden.figures for _, ridden in ordered if ridden.figures is not None]
    return episodes, {name: ridden.why for name, ridden in ordered if ridden.figures is None}


@lru_cache(maxsize=1)
def _engine(bundle: str, config: EngineConfig) -> tuple[Bundle, InferenceEngine]:
    """Loaded once per worker; every ride resets its state."""
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine

    loaded = load_bundle(bundle)
    return loaded, configured_engine(loaded, config, log, num_threads=1)
