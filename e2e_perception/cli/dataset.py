"""`dataset show | diff | verify | split`: what a dataset consists of, and which of it is for what."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, print_table
from e2e_perception.cli.options import DATASET_HELP, JsonOption
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.data.shards import Dataset
    from e2e_perception.data.splits import SplitTable

app = typer.Typer(
    help="Datasets of shards (`ingest`, `import-log`, `label`): list, compare, check and split them.",
    no_args_is_help=True,
)

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help=DATASET_HELP)]


@app.command()
def show(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """List the shards of a dataset, where they come from, and its digest.

    Example: `e2e-perception dataset show dataset`
    """
    opened = _opened(dataset)
    shards = [
        {**asdict(shard), "source": (opened.facts(shard.name).get("source") or {}).get("name", "not known")}
        for shard in opened.shards()
    ]
    if as_json:
        emit_json({"digest": opened.digest, "shards": shards})
        return
    rows = [
        (str(s["name"]), str(s["source"]), str(s["clips"]), str(s["frames"]), str(s["digest"])[:12])
        for s in shards
    ]
    print_table(str(dataset), ("shard", "source", "clips", "frames", "digest"), rows, names=True)
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
    """Compare every clip, label, table and shard.json with its digest; exit code 2 at the first that differs.

    Example: `e2e-perception dataset verify dataset`
    """
    opened = _opened(dataset)
    unrecorded = opened.verify()
    if unrecorded:
        log(
            f"of {len(unrecorded)} shards ({', '.join(unrecorded[:3])}) dataset.json records no digest of "
            "shard.json, as of releases before it did: whether that was altered is not known"
        )
    if as_json:
        emit_json(
            {
                "digest": opened.digest,
                "shards": len(opened.shards()),
                "whole": True,
                "facts_unrecorded": unrecorded,
            }
        )
    else:
        typer.echo(f"{len(opened.shards())} shards are whole; digest {opened.digest}")


@app.command()
def split(
    dataset: DatasetArgument,
    out: Annotated[
        Path | None, typer.Option(help="File of the table.", show_default="splits.json in the dataset")
    ] = None,
    place_distance: Annotated[
        float,
        typer.Option(min=0.0, help="Paths this near show the same street [m]; 0: by bag and time alone."),
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Say which recordings are for training and which for validation: by bag, place and time, never by frame.

    Recordings of one bag, that overlap in time, or that were driven along the same street in a frame that
    they share make a group, and a group is on one side; whoever is alone stays where it was. Training and
    `audit` go by splits.json in the dataset; after more was ingested, make it anew.

    Example: `e2e-perception dataset split dataset`
    """
    from e2e_perception.data.splits import SPLITS, split_table, write_table

    opened = _opened(dataset)
    recordings = opened.recordings()
    if not recordings:
        raise ConfigError(f"{dataset} holds no finished shard; `e2e-perception ingest` makes some")
    table = split_table(recordings, place_distance)
    file = out or dataset / SPLITS
    write_table(file, table)
    sides = [side.split for side in table.shards.values()]
    for name in ("train", "validation"):
        if name not in sides:
            log(f"no recording is in the split `{name}`; there are {len({*_groups(table)})} groups")
    if as_json:
        emit_json(
            {
                "out": str(file),
                "groups": len({*_groups(table)}),
                "train": sides.count("train"),
                "validation": sides.count("validation"),
                **table.model_dump(mode="json"),
            }
        )
        return
    rows = [(name, side.group, side.split) for name, side in table.shards.items()]
    print_table(str(file), ("shard", "group", "split"), rows, names=True)
    for reason in table.reasons:
        typer.echo(reason)
    typer.echo(f"{sides.count('train')} shards for training, {sides.count('validation')} for validation")


def _groups(table: SplitTable) -> list[str]:
    return [side.group for side in table.shards.values()]


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
