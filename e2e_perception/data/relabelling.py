"""A shard with its own labels and layers to a new shard with merged ones: the same frames, other labels.

The shard that it came from is only read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e2e_perception import __version__
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.data.clip_store import FACTS, ClipStore, ClipWriter
from e2e_perception.data.label_layers import Layer
from e2e_perception.data.shard_facts import Shard
from e2e_perception.data.shard_labels import ShardLabels
from e2e_perception.data.shards import DATASET, SHARD, Dataset, read_labels

TOOL = f"e2e_perception {__version__}"
TABLE = "conflicts.parquet"
LONGEST_STEM = 87  # characters of the old name in the new one
CONFLICT_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stamp_ns", pa.int64()),
        ("kind", pa.string()),
        ("identity", pa.int64()),
        ("winner", pa.string()),
        ("loser", pa.string()),
        ("loser_identity", pa.int64()),
        ("winner_class", pa.string()),
        ("loser_class", pa.string()),
        ("distance", pa.float32()),
        ("turned", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Relabelled:
    """What came of a shard.

    Attributes:
        source, shard: Names of the old one and of the new one; the same if no layer speaks of it.
        new: False if it was there already.
        clips, frames: In both.
        labelled_clips: In which everybody is labelled, in the new one.
        labels: By source.
        conflicts: Rows of `CONFLICT_SCHEMA`.
        unplaced: Rows beyond the clips for whose instants the robot's pose is not known.
        digest: Of the new shard.
    """

    source: str
    shard: str
    new: bool
    clips: int
    frames: int
    labelled_clips: int
    labels: dict[str, int]
    conflicts: list[dict[str, Any]]
    unplaced: int
    digest: str


def opened_dataset(path: Path) -> Dataset:
    """A dataset with shards.

    Raises:
        InputError: If there is none, or it has no shards.
    """
    if not (path / DATASET).is_file():
        raise InputError(
            f"{path} is no dataset of shards: it has no {DATASET}; `e2e-perception ingest` makes one"
        )
    dataset = Dataset(path)
    if not dataset.shards():
        raise InputError(f"{path} is a dataset without shards; ingest something first")
    return dataset


def network_of(dataset: Dataset, name: str) -> NetworkConfig:
    """The network whose inputs a shard's frames are.

    Raises:
        InputError: If the shard does not say so.
    """
    recipe = dataset.facts(name).get("recipe")
    size = recipe.get("size") if isinstance(recipe, dict) else None
    if not isinstance(size, str) or size not in SIZES:
        raise InputError(
            f"shard {name} says that it was made for size {size!r}; expected one of {', '.join(SIZES)}"
        )
    return SIZES[size]


def fitting(dataset: Dataset, layers: Sequence[Layer], names: Sequence[str]) -> None:
    """Refuse layers that were made for something else.

    Args:
        dataset: That they are to label.
        layers: In their order.
        names: Of the layers, for the message.
    Raises:
        InputError: If one speaks of no shard of the dataset, or of another state of one.
    """
    digests = {shard.name: shard.digest for shard in dataset.shards()}
    for layer, name in zip(layers, names, strict=True):
        known = sorted(layer.shards.keys() & digests.keys())
        if not known:
            raise InputError(
                f"{name} was made for {', '.join(sorted(layer.shards)[:3]) or 'no shard'}; "
                f"{dataset.path} has {', '.join(sorted(digests)[:3])}"
            )
        for shard in known:
            if layer.shards[shard] != digests[shard]:
                raise InputError(
                    f"{name} was made for shard {shard} with digest {layer.shards[shard][:12]}…; in "
                    f"{dataset.path} it has {digests[shard][:12]}…"
                )


def relabel(
    dataset: Dataset,
    name: str,
    layers: Sequence[Layer],
    precedence: Sequence[str],
    out: Dataset,
    progress: Callable[[int], None] | None = None,
) -> Relabelled:
    """Make a shard of another dataset with the merged labels, or take over the one that no layer speaks of.

    Args:
        dataset: That the shard is in.
        name: Of the shard.
        layers: Of which the later one wins within a kind; those that do not speak of the shard are left out.
        precedence: Kinds of sources, the highest first.
        out: Where the new shard goes.
        progress: Told how many clips are written.
    Raises:
        InputError: If the shard is damaged, or a layer speaks of frames that it has not.
        ConfigError: If a source has no place in the precedence.
    """
    shard = next(item for item in dataset.shards() if item.name == name)
    speaking = [layer for layer in layers if name in layer.shards]
    old = dataset.facts(name)
    store = ClipStore(dataset.directory(name))
    if not speaking:
        return _taken_over(dataset, shard, store, out)
    network = network_of(dataset, name)
    recipe = {
        "size": network.size,
        "shard": name,
        "shard_digest": shard.digest,
        "layers": [layer.digest for layer in speaking],
        "precedence": list(precedence),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    new_name = f"{name[:LONGEST_STEM]}-{key[:12]}"
    listed = {item.name: item for item in out.shards()}
    if new_name in listed and (out.directory(new_name) / SHARD).is_file():
        return _told(out, listed[new_name], name, new=False)
    task = ShardLabels(store, read_labels(dataset.directory(name)), network, old, speaking, precedence)
    with out.writing(new_name) as directory:
        writer = ClipWriter(directory)
        rows: list[dict[str, Any]] = []
        for number, (clip, clip_rows) in enumerate(task.clips()):
            row = store.rows[number]
            clip_id = str(row["clip_id"])
            sources = task.sources_of(number, clip_rows)
            facts = {**{column: row[column] for column in FACTS}, "label_sources": sources}
            if facts["sensor_validity"] is not None:
                facts["sensor_validity"] = dict(facts["sensor_validity"])
            writer.write(clip_id, clip, facts)
            rows += clip_rows
            if progress is not None:
                progress(number + 1)
        writer.finish()
        conflicts = pa.Table.from_pylist(task.conflict_rows(), schema=CONFLICT_SCHEMA)
        facts = {
            **{k: v for k, v in old.items() if k not in ("digest", "clips", "files")},
            "recipe": recipe,
            "made_from": old.get("recipe"),
            "tool": TOOL,
            "label_sources": sorted(
                {source for n in range(len(store)) for source in task.sources_of(n, rows)}
            ),
            "labels_unplaced": task.unplaced,
        }
        tables = {**dataset.tables(name), TABLE: conflicts}
        made = out.seal(new_name, facts, rows, tables)
    return _told(out, made, name, new=True)


def _taken_over(dataset: Dataset, shard: Shard, store: ClipStore, out: Dataset) -> Relabelled:
    listed = {item.name: item for item in out.shards()}
    new = not (shard.name in listed and (out.directory(shard.name) / SHARD).is_file())
    if not new and listed[shard.name].digest != shard.digest:
        raise InputError(f"{out.path} has another shard {shard.name}; name a new directory")
    if new:
        tables = dataset.tables(shard.name)
        with out.writing(shard.name) as directory:
            shutil.copytree(
                store.path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SHARD, ".lock")
            )
            facts = dataset.facts(shard.name)
            kept = {key: value for key, value in facts.items() if key not in ("digest", "clips", "files")}
            made = out.seal(shard.name, kept, read_labels(directory), tables)
            assert made.digest == shard.digest
    return _told(out, shard, shard.name, new=new)


def _told(out: Dataset, shard: Shard, source: str, *, new: bool) -> Relabelled:
    directory = out.directory(shard.name)
    store = ClipStore(directory)
    table = directory / TABLE
    labels = Counter(row["source"] for row in read_labels(directory))
    return Relabelled(
        source=source,
        shard=shard.name,
        new=new,
        clips=shard.clips,
        frames=shard.frames,
        labelled_clips=sum(row["labels_valid"] is not False for row in store.rows),
        labels=dict(sorted(labels.items())),
        conflicts=pq.read_table(table, schema=CONFLICT_SCHEMA).to_pylist() if table.is_file() else [],
        unplaced=int(out.facts(shard.name).get("labels_unplaced", 0)),
        digest=shard.digest,
    )
