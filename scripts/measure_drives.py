"""Drive suites by several policies and print the tables of docs/results.md.

    python scripts/measure_drives.py --suites test critical --out runs/drives [--policies expert idm …]

Each drive is `e2e-perception drive`; one that is there already, of the same scenarios and bundle, is used
again. What a suite excludes is left out of every row. The last column is the paired difference in success to
`blind`. Leaves `drives.json`, for `write_results.py --drives`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401
from drive_tables import HEAD, by_road, figures_of, row
from experiment_facts import write_whole

from e2e_perception.cli.console import finite, log, print_table
from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.evaluation.outcome_tables import read_outcomes
from e2e_perception.evaluation.outcomes import Outcome
from e2e_perception.simulation.suites import load_suite

POLICIES = (
    "expert",
    "ground-truth-planner",
    "idm",
    "bundle:tiny",
    "classical:tiny",
    "blind",
    "constant-velocity",
    "stop",
)
CONTROL = "blind"
RESULTS = "drives.json"


def outcomes_of(suite_name: str, policy: str, out: Path, workers: int) -> tuple[Outcome, ...]:
    """Drive, unless it has been done; without the excluded scenarios."""
    suite = load_suite(suite_name)
    directory = out / f"{suite_name}-{policy.replace(':', '-').replace('/', '-')}"
    wanted = {spec.name for spec in suite.scenarios()}
    if (directory / "summary.json").is_file():
        found, summary = read_outcomes(directory)
        kind, has_stack, bundle = policy.partition(":")
        # With the digest, of this copy or an earlier one.
        names = [f"{kind}:{label}" for label in load_bundle(bundle).labels] if has_stack else [policy]
        if summary.get("policy") in names and wanted <= {item.scenario for item in found}:
            return tuple(item for item in found if item.scenario in wanted)
    log(f"driving {suite_name} by {policy}")
    command = [sys.executable, "-m", "e2e_perception.cli", "drive", "--suite", suite_name, "--policy", policy]
    command += ["--workers", str(workers), "--out", str(directory), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_outcomes(directory)[0]


def main() -> int:
    """Exit code 0, or 2 if something cannot be driven."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=["test", "critical"])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--out", type=Path, default=Path("runs/drives"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--families", action="store_true", help="success by road as well")
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    try:
        if (arguments.out / RESULTS).is_file():  # suites that are not driven now stay
            document = json.loads((arguments.out / RESULTS).read_text(encoding="utf-8"))
        for suite in arguments.suites:
            drives = {p: outcomes_of(suite, p, arguments.out, arguments.workers) for p in arguments.policies}
            figures = {p: figures_of(found, drives.get(CONTROL)) for p, found in drives.items()}
            document[suite] = {"suite_digest": load_suite(suite).digest, "policies": figures}
            show(suite, [row(*item) for item in figures.items()], HEAD, arguments.markdown)
            if arguments.families:
                show(suite, *by_road(figures), arguments.markdown)
    except (E2EPerceptionError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(arguments.out / RESULTS, json.dumps(finite(document), indent=1, allow_nan=False) + "\n")
    return 0


def show(title: str, rows: list[list[str]], head: tuple[str, ...], markdown: bool) -> None:
    """Print a table."""
    if not markdown:
        print_table(title, head, rows)
        return
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
