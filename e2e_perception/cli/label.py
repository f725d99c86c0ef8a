"""`label`: a dataset and layers of labels into a new dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import DATASET_HELP, JsonOption
from e2e_perception.core.errors import InputError

PRECEDENCE = "review,topic,import,simulator,autolabel"


def label(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET", help=f"{DATASET_HELP} It is only read."),
    ],
    layers: Annotated[
        list[Path], typer.Argument(metavar="LAYER…", help="Files made by `autolabel`, or of reviews.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the new dataset; one that is there is added to.")],
    precedence: Annotated[
        str, typer.Option(help="Kinds of sources, the highest first; of one kind the later layer wins.")
    ] = PRECEDENCE,
    as_json: JsonOption = False,
) -> None:
    """Merge labels: of each object at each instant the source of highest precedence wins whole.

    Sources that disagree are listed in `conflicts.parquet` of the new shard, and decide nothing. A row that
    rejects an object removes it from the sources below. Shards that no layer speaks of are taken over.

    Example: `e2e-perception label dataset auto.parquet review.parquet --out labelled`
    """
    from e2e_perception.data.label_layers import read_layer
    from e2e_perception.data.label_merging import parsed_precedence
    from e2e_perception.data.relabelling import fitting, opened_dataset, relabel
    from e2e_perception.data.shards import Dataset

    kinds = parsed_precedence(precedence)
    opened = opened_dataset(dataset)
    if out.resolve() == dataset.resolve():
        raise InputError(f"--out {out} is the dataset itself, which is never written to; name another one")
    read = [read_layer(path) for path in layers]
    fitting(opened, read, [str(path) for path in layers])
    target = Dataset(out)
    shards = opened.shards()
    made = []
    with progress_bar("labelling", sum(shard.clips for shard in shards)) as progress:
        done = 0
        for shard in shards:
            made.append(relabel(opened, shard.name, read, kinds, target))
            done += shard.clips
            progress(done)
    conflicts: Counter[tuple[str, str, int, str]] = Counter()
    for item in made:
        for row in item.conflicts:
            conflicts[item.shard, row["clip_id"], row["stamp_ns"], row["kind"]] += 1
        if item.unplaced:
            log(f"{item.shard}: {item.unplaced} rows are of instants at which the robot's pose is not known")
    summary: dict[str, Any] = {
        "out": str(out),
        "digest": target.digest,
        "precedence": list(kinds),
        "shards": [{**vars(item), "conflicts": _counted(item.conflicts)} for item in made],
        "conflicts": [
            {"shard": name, "clip_id": clip_id, "stamp_ns": stamp_ns, "kind": kind, "count": count}
            for (name, clip_id, stamp_ns, kind), count in sorted(conflicts.items())
        ],
    }
    if as_json:
        emit_json(summary)
        return
    rows = [
        (
            item.shard,
            "new" if item.new else "there",
            f"{item.labelled_clips} of {item.clips}",
            str(sum(item.labels.values())),
            str(len(item.conflicts)),
        )
        for item in made
    ]
    print_table(str(out), ("shard", "", "labelled clips", "labels", "conflicts"), rows, names=True)
    for kind, count in _counted([row for item in made for row in item.conflicts]).items():
        typer.echo(f"{kind}: {count} conflicts")
    typer.echo(f"digest {summary['digest']}")


def _counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(str(row["kind"]) for row in rows).items()))
