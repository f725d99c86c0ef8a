"""What `compare` and `pareto` share: reading evaluation directories, and leaving results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import log

if TYPE_CHECKING:
    from e2e_perception.evaluation.evaluations import Evaluation

REPORT = "report.html"

ReportDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Directory for the results and a report; those of an earlier call there are replaced.",
        show_default=False,
    ),
]


def read_directories(directories: Sequence[Path]) -> tuple[Evaluation, ...]:
    """Read evaluations, and say on stderr which parts of them are missing."""
    from e2e_perception.evaluation.evaluations import read_evaluations

    evaluations = read_evaluations(directories)
    for item in evaluations:
        if item.missing:
            log(f"{item.label}: no {', no '.join(item.missing)}")
    return evaluations


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a command's JSON object to a file as well."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
