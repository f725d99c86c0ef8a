"""Drive a suite by a bundle with nothing wrong, with each sensor lost, with each degradation, and compare.

    python scripts/measure_robustness.py --bundle tiny --suite test --groups lost --out runs/lost
    python scripts/measure_robustness.py --bundle tiny --suite critical --groups degraded --out runs/degraded

Each drive is `e2e-perception drive` into a directory of its own under --out, with the schedule that it was
given in `schedules/`. A drive that is there already, of the same bundle, scenarios and schedule, is used
again. Differences are to the drive with nothing wrong, in pairs of the same scenario. Prints a Markdown table
and leaves `robustness.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401
import yaml
from experiment_facts import write_whole

from e2e_perception.cli.console import finite, log
from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.core.rig import Rig
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.evaluation.outcome_tables import paired_difference, read_outcomes, summarize
from e2e_perception.evaluation.outcomes import Outcome
from e2e_perception.simulation.degradation import (
    DegradationSchedule,
    load_degradation,
    shipped_degradations,
)
from e2e_perception.simulation.suites import load_suite

NOTHING = "nothing"
RESULTS = "robustness.json"
GROUPS = ("lost", "degraded")
STRENGTHS = (1.0 / 3.0, 2.0 / 3.0, 1.0)
RATES = ("success_rate", "at_fault_collision_rate")
COMPARED = ("success", "at_fault_collision")
HEAD = (
    "what is wrong",
    "strength",
    "success",
    "95 %",
    "against nothing",
    "at-fault collision",
    "against nothing",
)


@dataclass(frozen=True)
class Case:
    """One drive.

    Attributes:
        name: Of its directory, for tables.
        group: `nothing`, `lost` or `degraded`.
        schedule: What goes wrong at full strength.
        strength: How much of it.
    """

    name: str
    group: str
    schedule: DegradationSchedule
    strength: float = 1.0


def cases(
    rig: Rig, groups: Sequence[str], degradations: Sequence[str], strengths: Sequence[float]
) -> Iterator[Case]:
    """Nothing; each sensor of a rig lost from the start, and all of a kind; each degradation by strength."""
    # An empty schedule wins over the suite's own, so that nothing is wrong indeed.
    yield Case(NOTHING, "nothing", DegradationSchedule(name=NOTHING, entries=()))
    kinds = (("lidar", rig.lidars), ("camera", rig.cameras), ("radar", rig.radars))
    for kind, sensors in kinds if "lost" in groups else ():
        lost = [(sensor.name, sensor.name) for sensor in sensors]
        if len(sensors) > 1:
            lost.append((f"all-{kind}s", kind))
        for name, concerned in lost:
            entries = [{"effect": "death", "sensors": concerned}]
            schedule = DegradationSchedule.model_validate({"name": f"lost-{name}", "entries": entries})
            yield Case(schedule.name, "lost", schedule)
    for name in degradations if "degraded" in groups else ():
        schedule = load_degradation(name)
        for strength in strengths:
            yield Case(f"{schedule.name}-{strength:.2f}", "degraded", schedule, strength)


def outcomes_of(case: Case, arguments: argparse.Namespace, facts: dict[str, Any]) -> tuple[Outcome, ...]:
    """Drive, unless it has been done.

    Args:
        case: What is wrong.
        arguments: Of the command line.
        facts: What the summary of a drive has to say for it to be used again.
    """
    directory: Path = arguments.out / case.name
    schedule: Path = arguments.out / "schedules" / f"{case.name}.yaml"
    text = yaml.safe_dump(case.schedule.model_dump(mode="json"), sort_keys=False)
    expected = {**facts, "degradation": case.schedule.name, "strength": case.strength}
    policies = [f"bundle:{label}" for label in load_bundle(arguments.bundle).labels]
    if (directory / "summary.json").is_file() and schedule.is_file():
        found, summary = read_outcomes(directory)
        same_facts = all(summary.get(k) == v for k, v in expected.items() if k != "policy")
        same_facts &= summary.get("policy") in policies  # of this copy of the bundle or an earlier one
        if same_facts and schedule.read_text(encoding="utf-8") == text:
            return found
    log(f"driving with {case.name}")
    schedule.parent.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").unlink(missing_ok=True)  # of another schedule, which is overwritten now
    schedule.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "e2e_perception.cli", "drive", "--suite", arguments.suite]
    command += ["--policy", f"bundle:{arguments.bundle}", "--degrade", str(schedule)]
    command += ["--strength", repr(case.strength), "--workers", str(arguments.workers)]
    command += ["--views", "none", "--json", "--out", str(directory)]
    if arguments.limit is not None:
        command += ["--limit", str(arguments.limit)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_outcomes(directory)[0]


def result(case: Case, outcomes: tuple[Outcome, ...], intact: tuple[Outcome, ...]) -> dict[str, Any]:
    """Figures of one drive, and the paired differences to the one with nothing wrong."""
    figures = summarize(outcomes)
    kept = ("episodes", *RATES, *(f"{name}_ci95" for name in RATES), "progress_mean", "progress_mean_ci95")
    return {
        "name": case.name,
        "group": case.group,
        "degradation": case.schedule.name,
        "strength": case.strength,
        **{name: figures[name] for name in kept},
        "against_nothing": {key: paired_difference(outcomes, intact, key) for key in COMPARED},
    }


def row(found: dict[str, Any]) -> list[str]:
    """One line of the table."""

    def against_nothing(key: str) -> str:
        if found["group"] == "nothing":
            return "—"
        paired = found["against_nothing"][key]
        low, high = paired["difference_ci95"]
        return f"{paired['difference']:+.2f} ({low:+.2f} … {high:+.2f})"

    low, high = found["success_rate_ci95"]
    strength = f"{found['strength']:.2f}" if found["group"] == "degraded" else ""
    return [
        found["degradation"],
        strength,
        f"{found['success_rate']:.2f}",
        f"{low:.2f} … {high:.2f}",
        against_nothing("success"),
        f"{found['at_fault_collision_rate']:.2f}",
        against_nothing("at_fault_collision"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 if something cannot be driven."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", required=True, help="path, or the name of a shipped one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", required=True, help="shipped (test, critical, …), or a file")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="what goes wrong")
    parser.add_argument("--limit", type=int, help="only the first so many episodes")
    parser.add_argument("--degradations", nargs="*", default=sorted(shipped_degradations()))
    parser.add_argument("--strengths", nargs="+", type=float, default=list(STRENGTHS))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    try:
        bundle, suite = load_bundle(arguments.bundle), load_suite(arguments.suite)
        facts = {
            "policy": f"bundle:{bundle}",
            "suite": suite.name,
            "suite_digest": suite.digest,
            "limit": arguments.limit,
        }
        intact: tuple[Outcome, ...] = ()
        results = []
        for case in cases(bundle.rig, arguments.groups, arguments.degradations, arguments.strengths):
            outcomes = outcomes_of(case, arguments, facts)
            intact = intact or outcomes
            results.append(result(case, outcomes, intact))
    except (E2EPerceptionError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    document = json.dumps(finite({**facts, "cases": results}), indent=1, allow_nan=False)
    write_whole(arguments.out / RESULTS, document + "\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for found in results:
        print(f"| {' | '.join(row(found))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
