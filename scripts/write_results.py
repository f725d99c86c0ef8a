"""Gather what experiments left into docs/results.json, and print its tables into docs/results.md.

    python scripts/write_results.py --experiment runs/nano --rates runs/rate --ablations runs/ablations \
        --drives runs/drives/drives.json --bundle tiny \
        --robustness runs/lost/robustness.json runs/degraded/robustness.json
    python scripts/write_results.py   # the tables alone, from docs/results.json

The tables stand between `<!-- results: NAME -->` and `<!-- end -->`; what is around them is written by hand.
Sections whose directory is not given keep what docs/results.json already says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import source_tree  # noqa: F401
from drive_tables import HEAD as DRIVE_HEAD
from drive_tables import by_road
from drive_tables import row as drive_row
from experiment_facts import datasets_of, training_of, write_whole

from e2e_perception.cli.console import finite, log
from e2e_perception.core.errors import E2EPerceptionError, InputError
from e2e_perception.core.provenance import git_commit
from e2e_perception.deploy.bundle import EVALUATION, load_bundle
from e2e_perception.evaluation.comparison import compare
from e2e_perception.evaluation.evaluations import Evaluation, outcome_table, read_evaluations
from e2e_perception.evaluation.missions import Mission, load_mission
from e2e_perception.evaluation.outcome_tables import (
    MEANS,
    RATES,
    bootstrap_interval,
    read_outcomes,
    summarize,
)
from e2e_perception.evaluation.outcomes import Outcome
from e2e_perception.evaluation.standings import stand

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIDES = ("joint", "modular")
MISSION = "balanced"
BASE = "fixed"  # the group of ablations to which the others are compared
# Families in which somebody is hidden at first (docs/world.md).
HIDDEN = ("+blocking_truck", "+crossing")
SLICES = ("drive-critical-rain", "drive-critical-lidar-beam-loss", "drive-critical-cameras-only")
COMPARED = {
    "composite": "composite (profile `balanced`)",
    "recognition": "— recognition",
    "tracking": "— tracking",
    "prediction": "— prediction",
    "planning": "— planning",
    "drive-all/success": "success, `test` and `critical`",
    "drive-all/at_fault_collision": "at-fault collision, both",
    "drive-test/success": "success, `test`",
    "drive-critical/success": "success, `critical`",
    "drive-hidden/success": "success where somebody is hidden",
    "drive-critical-rain/success": "success, `critical` in rain",
    "drive-critical-lidar-beam-loss/success": "success, `critical`, a quarter of the beams",
    "drive-critical-cameras-only/success": "success, `critical`, cameras alone",
    "detection/map": "mAP, mean over scenarios",
    "detection/ave_mps": "velocity error of detections [m/s]",
    "tracking/hota": "HOTA",
    "tracking/idf1": "IDF1",
    "tracking/mota": "MOTA",
    "motion/min_ade_m": "minADE over 4 s [m]",
    "motion/miss_rate": "miss rate",
    "planning/l2_at_3s_m": "plan L2 at 3 s [m]",
    "planning/collision_upto_3s": "plan collides, to 3 s",
}
POLICIES = (
    "expert",
    "ground-truth-planner",
    "idm",
    "joint",
    "modular",
    "classical",
    "blind-trained",
    "blind",
    "constant-velocity",
    "stop",
)
# Name, title, digits.
CLIP_FIGURES = (
    ("average_precision", "detection: average precision at 2 m", 3),
    ("precision", "precision at score 0.3", 3),
    ("recall", "recall at score 0.3", 3),
    ("position_error_m", "position error [m]", 2),
    ("heading_error_rad", "heading error [rad]", 2),
    ("velocity_error_mps", "velocity error [m/s]", 2),
    ("class_accuracy", "class accuracy", 3),
    ("association_accuracy", "association accuracy", 3),
    ("min_ade_m", "minADE over 4 s, 3 futures [m]", 2),
    ("min_fde_m", "minFDE [m]", 2),
    ("drivable_iou", "drivable area: overlap (IoU)", 3),
    ("boundary_iou", "boundary: overlap", 3),
    ("occupied_iou", "occupancy: overlap", 3),
    ("flow_error_mps", "flow: end-point error [m/s]", 2),
    ("plan_regret", "plan regret, in the expert's prices", 2),
    ("plan_avoidable_collision", "plan collides where another proposal does not", 3),
    ("plan_l2_1s_m", "plan L2 at 1 s [m]", 2),
    ("plan_l2_2s_m", "plan L2 at 2 s [m]", 2),
    ("plan_l2_3s_m", "plan L2 at 3 s [m]", 2),
    ("plan_collision_rate", "plan collides within 3 s", 3),
)
SCORES = ("recognition", "tracking", "prediction", "planning", "mean")


# ---------------------------------------------------------------- gather


def of_slices(item: Evaluation) -> Evaluation:
    """The evaluation's drives in other tables: both suites as one, and where somebody is hidden at first."""
    both = [o for suite in ("drive-test", "drive-critical") for o in item.drives.get(suite, ())]
    hidden = [o for o in both if o.family.endswith(HIDDEN)]
    drives = {"drive-all": tuple(both), "drive-hidden": tuple(hidden)}
    tables = {name: outcome_table(name, part) for name, part in drives.items()}
    return dataclasses.replace(item, tables=tables, drives=drives, conditions={})


def experiment_section(out: Path) -> dict[str, Any]:
    """Networks, comparison, fronts and drives of a directory of `run_experiments.py`."""
    labels = sorted(path.name for path in _room(out, "evaluations").iterdir())
    evaluations = read_evaluations([out / "evaluations" / x for x in labels])
    complete = [item for item in evaluations if not item.missing]
    mission = load_mission(MISSION)
    sides = [[item for item in complete if item.facts.group == side] for side in SIDES]
    seeds = [[item.facts.seed for item in side] for side in sides]
    if seeds[0] != seeds[1]:
        raise InputError(
            f"{out}: {SIDES[0]} has seeds {seeds[0]} and {SIDES[1]} {seeds[1]}; expected the same, complete"
        )
    # A control that tracks nobody has no futures to be scored by.
    standings = stand([item for item in complete if item.facts.group in SIDES], mission)
    return {
        "mission": MISSION,
        "datasets": datasets_of(out),
        "networks": {
            item.label: {
                **item.facts.model_dump(exclude={"label"}),
                "training": training_of(out, item.label),
                "figures": item.figures(),
                "pooled": dict(item.pooled),
            }
            for item in complete
        },
        "comparison": compared(sides[0], sides[1], mission),
        "pareto": standings.document(),
        "closed_loop": {suite: closed_loop(out, suite, complete) for suite in ("test", "critical")},
    }


def compared(a: Sequence[Evaluation], b: Sequence[Evaluation], mission: Mission) -> dict[str, Any]:
    """What `e2e-perception compare` says, and after it the slices.

    They are compared for themselves: a table more would have the others' scenarios drawn in other strata.
    """
    whole = compare(a, b, mission).document()
    slices = compare([of_slices(item) for item in a], [of_slices(item) for item in b]).document()
    return {
        **whole,
        "scenarios": {**whole["scenarios"], **slices["scenarios"]},
        "differences": [*whole["differences"], *slices["differences"]],
    }


def _room(out: Path, name: str) -> Path:
    """A directory of an experiment.

    Raises:
        InputError: If it is not there.
    """
    if not (out / name).is_dir():
        raise InputError(f"{out} has no {name}/; name a directory of scripts/run_experiments.py")
    return out / name


def closed_loop(out: Path, suite: str, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Rates of everybody who drove a suite; trainings of one group count as one policy."""
    found: dict[str, Any] = {}
    for policy in POLICIES:
        group = {"blind-trained": "blind"}.get(policy, policy)
        directory = out / "controls" / policy / f"drive-{suite}"
        outcomes: list[Outcome] = []
        if policy in ("joint", "modular", "blind-trained"):
            for item in evaluations:
                if item.facts.group == group:
                    outcomes += item.drives.get(f"drive-{suite}", ())
        elif (directory / "summary.json").is_file():
            outcomes = list(read_outcomes(directory)[0])
        if outcomes:
            found[policy] = rates(outcomes)
    return found


def rates(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a table row; intervals are over scenarios, for these networks."""
    figures = summarize(outcomes)
    names = ("success_rate", "at_fault_collision_rate", "off_road_rate", "progress_mean", "comfort_share")
    fields = {name: {**RATES, **MEANS}[name] for name in names}
    kept = {name: figures[name] for name in ("episodes", *fields)}
    kept |= {f"{name}_ci95": figures[f"{name}_ci95"] for name in fields}
    if len(figures["policies"]) > 1:
        # The same scenarios several times are not that many scenarios.
        for name, field in fields.items():
            by_scenario: dict[str, list[float]] = {}
            for item in outcomes:
                value = getattr(item, field)
                if value is not None:
                    by_scenario.setdefault(item.scenario, []).append(float(value))
            means = np.array([np.mean(values) for values in by_scenario.values()])
            kept[f"{name}_ci95"] = list(bootstrap_interval(means))
    return kept


def ablation_section(out: Path) -> dict[str, Any]:
    """Last validation of each training, by group."""
    found: dict[str, Any] = {}
    for run in sorted(_room(out, "runs").iterdir()):
        if (run / "done").is_file():
            group, _, seed = run.name.rpartition("-")
            found.setdefault(group, {})[seed] = training_of(out, run.name)
    return {"datasets": datasets_of(out), "groups": found}


# ---------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def interval(low_high: Sequence[float], digits: int = 3) -> str:
    """An interval."""
    low, high = low_high
    return f"{low:+.{digits}f} … {high:+.{digits}f}".replace("-", "−")


def joint_table(section: Mapping[str, Any]) -> str:
    """Joint against modular."""
    by_name = {item["name"]: item for item in section["comparison"]["differences"]}
    rows = []
    for name, title in COMPARED.items():
        if name not in by_name:
            continue
        item = by_name[name]
        rows.append(
            [
                title,
                f"{item['mean_a']:.3f}",
                f"{item['mean_b']:.3f}",
                f"{item['difference']:+.3f}".replace("-", "−"),
                interval(item["ci95"]),
                interval(item["networks_ci95"]),
            ]
        )
    return table(("figure", "joint", "modular", "difference", "95 %", "95 %, these networks"), rows)


def seeds_table(experiment: Mapping[str, Any]) -> str:
    """Each training by itself."""
    rows = []
    for standing in experiment["pareto"]["standings"]:
        network = experiment["networks"][standing["label"]]
        figures = network["figures"]
        composite = standing["composite"]["value"]
        rows.append(
            [
                standing["label"],
                "–" if composite is None else f"{composite:.3f}",
                *(f"{standing['composite']['objectives'][name]:.3f}" for name in SCORES[:4]),
                f"{network['pooled']['detection/map']:.3f}",
                f"{figures['drive-test/success']:.3f}",
                f"{figures['drive-critical/success']:.3f}",
                f"{standing['values']['latency_ms']:.1f}",  # of one graph, the least of any
                "front" if standing["rank"] == 0 else f"by {standing['dominated_by']}",
            ]
        )
    head = ("training", "composite", *SCORES[:4], "mAP, pooled")
    head += ("`test`", "`critical`", "latency [ms]", "dominated")
    return table(head, rows)


def closed_loop_table(section: Mapping[str, Any]) -> str:
    """Everybody who drove."""
    by_suite = section["closed_loop"]
    rows = []
    for policy in POLICIES:
        if not any(policy in found for found in by_suite.values()):
            continue
        cells = [policy]
        for found in by_suite.values():
            if policy not in found:
                cells += ["–", "–", "–"]
                continue
            figures = found[policy]
            low, high = figures["success_rate_ci95"]
            cells += [
                str(figures["episodes"]),
                f"{figures['success_rate']:.3f} ({low:.2f} … {high:.2f})",
                f"{figures['at_fault_collision_rate']:.3f}",
            ]
        rows.append(cells)
    head = [f"`{suite}` {what}" for suite in by_suite for what in ("drives", "success", "at fault")]
    return table(("policy", *head), rows)


def ablation_table(section: Mapping[str, Any]) -> str:
    """Scores of validation clips by group: mean over seeds, and the range of the mean score."""
    groups = section["groups"]
    if not groups.get(BASE):
        raise InputError(f"there is no finished training of {BASE!r}, to which the others are compared")
    rows = []
    for name, seeds in groups.items():
        runs = list(seeds.values())
        means = [run["validation"]["score/mean"] for run in runs]
        rows.append(
            [
                name,
                str(len(runs)),
                *(f"{np.mean([run['validation'][f'score/{s}'] for run in runs]):.3f}" for s in SCORES),
                f"{min(means):.3f} … {max(means):.3f}" if len(means) > 1 else "—",
            ]
        )
    order = {BASE: 0, "no-curriculum": 8, "no-memory": 9}
    rows.sort(key=lambda cells: (order.get(cells[0], 1), cells[0]))
    return table(("training", "seeds", *SCORES, "mean, seeds"), rows)


def rate_table(section: Mapping[str, Any]) -> str:
    """Scores by which the learning rates were chosen."""
    rows = []
    for name, seeds in sorted(section["groups"].items(), key=lambda item: _by_number(item[0])):
        for seed, run in sorted(seeds.items()):
            figures = run["validation"]
            rows.append([name, seed, *(f"{figures[f'score/{s}']:.3f}" for s in SCORES)])
    return table(("training", "seed", *SCORES), rows)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Key by which `joint-8` comes before `joint-16`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def cosine_table(section: Mapping[str, Any]) -> str:
    """Cosines between objectives' gradients."""
    runs = list(section["groups"][BASE].values())
    names = sorted(runs[0]["cosines"])
    values = [[f"{np.mean([run['cosines'][name] for run in runs]):+.2f}".replace("-", "−") for name in names]]
    return table([name.replace("~", " · ") for name in names], values)


def robustness_table(section: Mapping[str, Any]) -> str:
    """Each sensor lost, each degradation."""
    rows = []
    for suite, found in (
        (measured["suite"], case) for measured in section["measured"] for case in measured["cases"]
    ):
        low, high = found["success_rate_ci95"]
        cells = [
            f"`{suite}`",
            found["degradation"].replace("_", " "),
            f"{found['strength']:.2f}" if found["group"] == "degraded" else "",
            f"{found['success_rate']:.2f} ({low:.2f} … {high:.2f})",
            f"{found['at_fault_collision_rate']:.2f}",
        ]
        against = found["against_nothing"]["success"]
        if found["group"] == "nothing":
            rows.append([*cells, "—"])
        else:
            change = f"{against['difference']:+.2f}".replace("-", "−")
            rows.append([*cells, f"{change} ({interval(against['difference_ci95'], 2)})"])
    head = ("suite", "what is wrong", "strength", "success", "at fault", "success against nothing wrong")
    return table(head, rows)


def drives_table(suite: str) -> Callable[[Mapping[str, Any]], str]:
    """Who drove a suite, by itself."""

    def made(section: Mapping[str, Any]) -> str:
        rows = [[_marked(cell) for cell in drive_row(*item)] for item in drivers(section, suite).items()]
        return table((f"`{suite}`", *DRIVE_HEAD[1:]), rows)

    return made


def roads_table(section: Mapping[str, Any]) -> str:
    """Successes on `test` by road."""
    rows, head = by_road(drivers(section, "test"))
    return table(("successes by road", *head[1:]), [[_marked(cell) for cell in cells] for cells in rows])


def drivers(section: Mapping[str, Any], suite: str) -> dict[str, Any]:
    """Figures of everybody who drove a suite.

    Raises:
        InputError: If nobody did.
    """
    suites = section["suites"]
    if suite not in suites:
        raise InputError(f"nobody drove {suite!r}, only {', '.join(suites)}; run measure_drives.py on both")
    found: dict[str, Any] = suites[suite]["policies"]
    return found


def _marked(cell: str) -> str:
    """A cell, in bold if it names what this is about, with minus signs where it is of numbers."""
    return f"**{cell}**" if cell.startswith("bundle:") else re.sub(r"-(?=\d)", "−", cell)


def clips_table(section: Mapping[str, Any]) -> str:
    """The shipped bundle on clips, with its sensors, without, and with those of another scenario."""
    figures = section["evaluation"]
    rows = []
    for name, title, digits in CLIP_FIGURES:
        values = (figures.get(f"{room}{name}") for room in ("", "no_sensors/", "shuffled_sensors/"))
        cells = ["—" if value is None else f"{value:.{digits}f}" for value in values]
        if cells != ["—"] * 3:
            rows.append([title, *cells])
    return table(("figure", "full", "no sensors", "shuffled sensors"), rows)


# Name in a document: section of the results, and what makes a table of it.
TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "joint-modular": ("experiment", joint_table),
    "trainings": ("experiment", seeds_table),
    "closed-loop": ("experiment", closed_loop_table),
    "learning-rates": ("rates", rate_table),
    "stage-rates": ("stage_rates", rate_table),
    "second-joint-modular": ("second", joint_table),
    "second-trainings": ("second", seeds_table),
    "second-closed-loop": ("second", closed_loop_table),
    "ablations": ("ablations", ablation_table),
    "cosines": ("ablations", cosine_table),
    "robustness": ("robustness", robustness_table),
    "drives-test": ("drives", drives_table("test")),
    "drives-critical": ("drives", drives_table("critical")),
    "roads": ("drives", roads_table),
    "clips": ("bundle", clips_table),
}


def with_tables(text: str, results: Mapping[str, Any]) -> str:
    """A document with its tables renewed; one whose section is missing stays as it is.

    Raises:
        InputError: If it has a place for an unknown table, or the section does not make one.
    """

    def renewed(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise InputError(f"no table {name!r}; there are {', '.join(TABLES)}")
        section, make = TABLES[name]
        if section not in results:
            return found[0]
        try:
            made = make(results[section])
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"section {section!r} makes no table {name!r}: {error!r}; gather it again"
            ) from error
        return f"<!-- results: {name} -->\n\n{made}\n\n<!-- end -->"

    return re.sub(r"<!-- results: ([\w-]+) -->.*?<!-- end -->", renewed, text, flags=re.DOTALL)


# Sections, called like the options that name what they are gathered from.
OPTIONS = ("experiment", "second", "rates", "stage_rates", "ablations", "robustness", "drives", "bundle")


def refuse_no_place(section: str, text: str) -> None:
    """What was gathered has to be shown.

    Raises:
        InputError: If a document has no place for a table of the section.
    """
    names = [name for name, (of, _) in TABLES.items() if of == section]
    missing = [name for name in names if f"<!-- results: {name} -->" not in text]
    if missing:
        raise InputError(
            f"there is no place for {', '.join(missing)}; put <!-- results: {missing[0]} --> and "
            "<!-- end --> where it belongs"
        )


def sections(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Those whose directory was given."""
    if options.experiment:
        yield "experiment", experiment_section(options.experiment)
    if options.rates:
        yield "rates", ablation_section(options.rates)
    if options.ablations:
        yield "ablations", ablation_section(options.ablations)
    if options.second:
        yield "second", experiment_section(options.second)
    if options.stage_rates:
        yield "stage_rates", ablation_section(options.stage_rates)
    if options.robustness:
        measured = [read_figures(path, "cases") for path in options.robustness]
        for path, found in zip(options.robustness, measured, strict=True):
            if found.get("limit") is not None:
                raise InputError(f"{path} is of {found['limit']} scenarios of {found['suite']}; drive all")
        yield "robustness", {"measured": measured}
    if options.drives:
        yield "drives", {"suites": read_figures(options.drives)}
    if options.bundle:
        bundle = load_bundle(options.bundle)
        yield "bundle", {"bundle": str(bundle), "evaluation": read_figures(bundle.path / EVALUATION)}


def read_figures(path: Path, key: str | None = None) -> dict[str, Any]:
    """A file of figures.

    Raises:
        InputError: If it is missing, not JSON, or has no such key.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected what a script of this directory left") from error
    if not isinstance(found, dict) or (key is not None and key not in found):
        raise InputError(f"{path} holds no {key or 'figures by name'}; expected what a script here left")
    return found


def main() -> int:
    """Exit code 0, or 2 if something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", type=Path, help="directory of `run_experiments.py nano`")
    parser.add_argument("--rates", type=Path, help="of `run_experiments.py learning-rate`")
    parser.add_argument("--second", type=Path, help="of `run_experiments.py nano-second`")
    parser.add_argument("--stage-rates", type=Path, help="of `run_experiments.py stage-rates`")
    parser.add_argument("--ablations", type=Path, help="of `run_experiments.py ablations`")
    parser.add_argument(
        "--robustness", type=Path, nargs="+", help="robustness.json, one or more, of `measure_robustness.py`"
    )
    parser.add_argument("--drives", type=Path, help="drives.json of `measure_drives.py`")
    parser.add_argument("--bundle", help="whose evaluation on clips is shown: a path, or a shipped one")
    parser.add_argument("--results", type=Path, default=DOCS / "results.json")
    parser.add_argument("--document", type=Path, default=DOCS / "results.md")
    options = parser.parse_args()
    try:
        results: dict[str, Any] = {}
        if options.results.is_file():
            results = json.loads(options.results.read_text(encoding="utf-8"))
        commit = git_commit()
        text = options.document.read_text(encoding="utf-8")
        for name in OPTIONS:
            if getattr(options, name):
                refuse_no_place(name, text)
        for name, section in sections(options):
            if commit is not None and commit.endswith("-dirty"):
                log(f"{name} is gathered with changes that are in no commit; results.json will say so")
            results[name] = {"gathered_at_commit": commit, **section}
        renewed = with_tables(text, finite(results))  # before anything is written
        if results:
            document = json.dumps(finite(results), indent=1, allow_nan=False)
            write_whole(options.results, document + "\n")
        write_whole(options.document, renewed)
    except E2EPerceptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
