"""`pareto`: any number of evaluations beside each other, and which of them are dominated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, finite, log, print_table
from e2e_perception.cli.evaluations import REPORT, ReportDirOption, read_directories, write_document
from e2e_perception.cli.options import JsonOption

if TYPE_CHECKING:
    from e2e_perception.evaluation.standings import Standing, Standings

RESULTS = "pareto.json"


def pareto(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Evaluation directories, a network each.")
    ],
    mission: Annotated[str, typer.Option(help="Mission file, or the name of a shipped one.")] = "balanced",
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:GOAL]",
            help="An objective, `latency_ms`, `parameters` or a figure, `:maximise` or `:minimise` where "
            "that is not clear; repeatable. Default: recognition, tracking, planning and latency_ms.",
            show_default=False,
        ),
    ] = None,
    out: ReportDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank networks by Pareto fronts: front 0 is what no other network dominates.

    One dominates another if it is at least as good on every axis and better on one.

    Example: `e2e-perception pareto results/joint-0 results/detached-0 --out results/fronts`
    """
    from e2e_perception.evaluation.evaluation_report import write_evaluation_report
    from e2e_perception.evaluation.missions import load_mission
    from e2e_perception.evaluation.standings import stand

    profile = load_mission(mission)
    evaluations = read_directories(directories)
    found = stand(evaluations, profile, axis)
    document = finite(found.document())
    if out is not None:
        title = f"{len(evaluations)} networks, mission {profile.name}"
        write_evaluation_report(out / REPORT, evaluations, title=title, mission=profile, standings=found)
        write_document(out / RESULTS, document)
    if as_json:
        emit_json(document)
        return
    _print(found)
    if out is not None:
        typer.echo(f"open {out / REPORT} in a browser")


def _print(found: Standings) -> None:
    for reason in found.left_out:
        log(f"no axis {reason}")
    places = sorted(found.standings, key=lambda place: place.rank)
    head = ("network", "front", "dominated by", "composite", *(axis.name for axis in found.axes))
    rows = [
        (
            place.label,
            str(place.rank),
            place.dominated_by or "–",
            _composite(place),
            *(f"{place.values[axis.name]:.4g}" for axis in found.axes),
        )
        for place in places
    ]
    print_table(f"mission {found.mission}", head, rows)
    for place in places:
        for reason in place.composite.disqualified:
            typer.echo(f"{place.label} is disqualified: {reason}")


def _composite(place: Standing) -> str:
    return "disqualified" if place.composite.value is None else f"{place.composite.value:.3f}"
