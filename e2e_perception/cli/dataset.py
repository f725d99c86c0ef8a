"""`dataset show | diff | verify`: what a dataset consists of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, print_table
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.data.shards import Dataset

app = typer.Typer(help="Datasets made by `ingest`: list, compare and check them.", no_args_is_help=True)

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="Directory made by `ingest`.")]


@app.command()
def show(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """List the shards of a dataset, where they come from, and its digest.

    Example: `e2e-perception dataset show dataset`
    """
    opened = _opened(dataset)
    shards = [
        {**vars(shard), "source": opened.facts(shard.name)["source"]["name"]} for shard in opened.shards()
    ]
    if as_json:
        emit_json({"digest": opened.digest, "shards": shards})
        return
    rows = [
        (str(s["name"]), str(s["source"]), str(s["clips"]), str(s["frames"]), str(s["digest"])[:12])
        for s in shards
    ]
    print_table(str(dataset), ("shard", "source", "clips", "frames", "digest"), rows)
    typer.echo(f"digest {opened.digest}")


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A dataset.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another, or a later state of it.")],
    as_json: JsonOption = False,
) -> None:
    """Say which shards one dataset has and the other has not. Exit code 0 also where they differ.

    Example: `e2e-perception dataset diff last_week this_week`
    """
    found = difference(_opened(before), _opened(after))
    if as_json:
        emit_json(found)
        return
    for sign, key in (("-", "only_in_a"), ("+", "only_in_b"), ("!", "altered")):
        for name in found[key]:
            typer.echo(f"{sign} {name}")
    typer.echo(
        f"{len(found['only_in_a'])} only in {before}, {len(found['only_in_b'])} only in {after}, "
        f"{len(found['altered'])} of one name that differ, {found['same']} the same"
    )


@app.command()
def verify(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Compare every clip, label and table with its digest; exit code 2 at the first that differs.

    Example: `e2e-perception dataset verify dataset`
    """
    opened = _opened(dataset)
    opened.verify()
    if as_json:
        emit_json({"digest": opened.digest, "shards": len(opened.shards()), "whole": True})
    else:
        typer.echo(f"{len(opened.shards())} shards are whole; digest {opened.digest}")


def difference(a: Dataset, b: Dataset) -> dict[str, Any]:
    """Shards by name: `only_in_a`, `only_in_b`, `altered` (one name, other contents), `same` (count)."""
    mine = {shard.name: shard.digest for shard in a.shards()}
    others = {shard.name: shard.digest for shard in b.shards()}
    both = mine.keys() & others.keys()
    return {
        "digest_a": a.digest,
        "digest_b": b.digest,
        "only_in_a": sorted(mine.keys() - others.keys()),
        "only_in_b": sorted(others.keys() - mine.keys()),
        "altered": sorted(name for name in both if mine[name] != others[name]),
        "same": sum(mine[name] == others[name] for name in both),
    }


def _opened(path: Path) -> Dataset:
    from e2e_perception.data.shards import DATASET, Dataset

    if not (path / DATASET).is_file():
        raise ConfigError(f"{path} is no dataset: it has no {DATASET}; `e2e-perception ingest` makes one")
    return Dataset(path)
