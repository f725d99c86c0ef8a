"""`compare`: two groups of evaluations against each other, scenario by scenario."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, finite, log, print_table
from e2e_perception.cli.evaluations import REPORT, ReportDirOption, read_directories, write_document
from e2e_perception.cli.options import JsonOption

if TYPE_CHECKING:
    from e2e_perception.evaluation.comparison import Comparison, Difference

RESULTS = "comparison.json"


def compare(
    a: Annotated[
        list[Path],
        typer.Argument(metavar="A...", help="Evaluation directories of one group, a network each."),
    ],
    against: Annotated[
        list[Path],
        typer.Option(metavar="B", help="One of the other group; repeatable.", show_default=False),
    ],
    mission: Annotated[
        str | None, typer.Option(help="Mission file, or the name of a shipped one.", show_default=False)
    ] = None,
    resamples: Annotated[int, typer.Option(min=2, help="Of bootstrap and sign flips.")] = 2000,
    out: ReportDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two groups of networks on the same scenarios, with 95 % intervals.

    Trainings of the same seed are compared with each other where both groups have the same seeds. With a
    mission there are scores, too. `*` marks intervals that exclude zero.

    Example: `e2e-perception compare joint-0 joint-1 --against detached-0 --against detached-1`
    """
    from e2e_perception.evaluation.comparison import compare as compare_groups
    from e2e_perception.evaluation.evaluation_report import write_evaluation_report
    from e2e_perception.evaluation.missions import load_mission
    from e2e_perception.evaluation.standings import stand

    profile = None if mission is None else load_mission(mission)
    evaluations = read_directories([*a, *against])
    found = compare_groups(evaluations[: len(a)], evaluations[len(a) :], profile, resamples=resamples)
    document = finite(found.document())
    if out is not None:
        write_evaluation_report(
            out / REPORT,
            evaluations,
            title=f"{found.a.name} against {found.b.name}",
            mission=profile,
            standings=None if profile is None else stand(evaluations, profile),
            comparison=found,
        )
        write_document(out / RESULTS, document)
    if as_json:
        emit_json(document)
        return
    _print(found)
    if out is not None:
        typer.echo(f"open {out / REPORT} in a browser")


def _print(found: Comparison) -> None:
    for reason in found.left_out:
        log(f"not compared: {reason}")
    rows = [_row(item) for item in found.differences]
    head = ("figure", "a", "b", "a - b", "95 % interval", "", "p")
    print_table(f"a: {found.a.name}, b: {found.b.name}", head, rows)
    for reason in found.disqualified:
        typer.echo(f"no composite: {reason}")
    sure = sum(item.excludes_zero for item in found.differences)
    total = len(found.differences)
    typer.echo(f"{sure} of {total} intervals exclude zero (*); by chance about {0.05 * total:.0f} would")
    typer.echo(found.claim)
    typer.echo("p: sign flips over scenarios, about these networks only; --json has the rest")


def _row(item: Difference) -> tuple[str, ...]:
    low, high = item.ci95
    known = math.isfinite(low) and math.isfinite(high)
    return (
        item.name,
        f"{item.mean_a:.3g}",
        f"{item.mean_b:.3g}",
        f"{item.difference:+.3g}",
        f"{low:+.3g} – {high:+.3g}" if known else "–",
        (f"* {item.better}" if item.better else "*") if item.excludes_zero else "",
        f"{item.scenario_p:.4f}",
    )
