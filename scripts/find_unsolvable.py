"""Find scenarios of a suite that no reference driver can solve, by the rule of `simulation/solvability.py`.

    python scripts/find_unsolvable.py --suite test [--workers 2] [--write]

Prints the `excluded` entries of the suite's YAML file; --write puts them there, in place of the old ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import source_tree  # noqa: F401

from e2e_perception.cli.console import log, progress_bar
from e2e_perception.cli.fan_out import Lost, fan_out
from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.core.resources import config_dir
from e2e_perception.simulation.solvability import REFERENCE_DRIVERS, solved_by
from e2e_perception.simulation.suites import load_suite
from e2e_perception.simulation.traffic_world import ScenarioSpec

REASON = "no reference driver solves it"


def main() -> int:
    """Exit code 0, or 2 if the suite cannot be read or a worker died."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, help="name of a shipped suite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="change the suite's file")
    arguments = parser.parse_args()
    try:
        suite = load_suite(arguments.suite)
    except E2EPerceptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    specs: tuple[ScenarioSpec, ...] = suite.all_scenarios
    solvers: dict[str, str | None] = {}
    with progress_bar("solving", len(specs)) as progress:
        for number, solver in fan_out(solved_by, specs, arguments.workers):
            if isinstance(solver, Lost):
                print(f"error: {specs[number].name}: {solver.why}", file=sys.stderr)
                return 2
            solvers[specs[number].name] = solver
            progress(len(solvers))
    for name in REFERENCE_DRIVERS:
        log(f"{name}: first to solve {sum(solver == name for solver in solvers.values())} of {len(specs)}")
    unsolved = sorted(name for name, solver in solvers.items() if solver is None)
    lines = [f"  - {{scenario: {name}, reason: {REASON}}}" for name in unsolved]
    block = "excluded:\n" + "\n".join(lines) + "\n" if lines else "excluded: []\n"
    print(block, end="")
    if arguments.write:
        path = Path(config_dir()) / "suites" / f"{arguments.suite}.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: text.index("excluded:")] + block, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
