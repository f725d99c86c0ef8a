"""What all commands share: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def stderr() -> Console:
    """For logs, progress and errors; looked up anew because tests and shells redirect the stream."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def log(message: str) -> None:
    """One line for people, on stderr."""
    stderr().print(message, markup=False)


_emitted: list[bool] = []


def json_was_emitted() -> bool:
    """Whether this command has printed its JSON object."""
    return bool(_emitted)


def forget_emitted_json() -> None:
    """A new command begins."""
    _emitted.clear()


def emit_json(document: Mapping[str, Any]) -> None:
    """The one JSON object of a command, on stdout; non-finite numbers become null."""
    _emitted.append(True)
    typer.echo(json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """The same structure with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False
) -> None:
    """A table for people, on stdout.

    Args:
        title: Above it.
        head: Column titles; all but the first are aligned right unless `wide`.
        rows: Cells.
        wide: Cells are sentences: align left and wrap.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if wide or i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print()


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Any]:
    """A progress bar on stderr; yields a function that is told how much has been done in all.

    Args:
        what: Label.
        total: Amount of work; None if unknown.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = stderr()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total, note="")

        def update(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield update


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life on stderr for work that cannot say how far it is."""
    console = stderr()
    if not console.is_terminal:
        console.print(what, markup=False)
        yield
        return
    with console.status(what):
        yield
