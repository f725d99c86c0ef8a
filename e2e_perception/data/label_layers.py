"""Layers of labels: what is said of the frames of finished shards later, one Parquet file a layer.

A shard is never written to again, so labels that come afterwards (of a reviewer, of `autolabel`) lie beside
the dataset; `label` makes a new dataset of both. A row is one object at one instant, in the base frame of
that instant. It belongs to a clip and stands at one of its frames, or after its last one, up to the
network's horizon: futures are rebuilt from those.

A file is somebody else's until it has been read: its types, numbers, names and sizes are all checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError

FORMAT = 1
METADATA = b"e2e_perception.label_layer"
VERDICTS = ("label", "rejected")
MAX_ROWS = 2_000_000  # an hour of driving at 10 Hz with fifty objects around
MAX_TEXT = 256  # [bytes] of any word in a row
MAX_METADATA = 1 << 22  # [bytes]
LARGEST_PLACE = 1.0e4  # [m], [m/s]; the grid is a hundred metres wide
LARGEST_SIZE = 100.0  # [m]
YAW_SLACK = 1e-5  # [rad] that rounding to single precision may lead beyond half a turn
NUMBERS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy", "confidence")
WORDS = ("clip_id", "class", "source", "tool", "bundle_digest", "reviewer", "verdict")
LAYER_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("stamp_ns", pa.int64(), nullable=False),
        pa.field("identity", pa.int64(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in NUMBERS[:-1]),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tool", pa.string(), nullable=False),
        pa.field("bundle_digest", pa.string()),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("reviewer", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class LayerRow:
    """One object at one instant; the columns of a file in their order, `class_name` being `class` there.

    Attributes:
        clip_id: `SHARD/CLIP`; in a layer of one shard `CLIP` alone will do.
        stamp_ns: Of a frame of the clip, or later [ns].
        identity: At least 0; the same object has the same one throughout the shard.
        class_name: One of `CLASSES`.
        x, y, z: Centre [m], base frame at that stamp.
        length, width, height: [m], more than 0.
        yaw: [rad], counter-clockwise, at most half a turn either way.
        vx, vy: Over ground, in the axes of that frame [m/s].
        source: Kind, and after a colon which one: `review`, `autolabel`, `topic:/labels`.
        tool: And its version.
        bundle_digest: Of the bundle that was used; None: none was.
        confidence: 0 to 1, the weight in the loss; 0: no sensor saw the object.
        reviewer: Who looked at it; None: nobody did.
        verdict: `label`, or `rejected`: there is no such object.
    """

    clip_id: str
    stamp_ns: int
    identity: int
    class_name: str
    x: float
    y: float
    z: float
    length: float
    width: float
    height: float
    yaw: float
    vx: float
    vy: float
    source: str
    tool: str
    bundle_digest: str | None
    confidence: float
    reviewer: str | None
    verdict: str


@dataclass(frozen=True)
class Layer:
    """A layer that was read or is to be written.

    Attributes:
        rows: As they lie in the file.
        shards: The shards that it was made for: digests by name.
        complete: Clips, as in `LayerRow`, in which whatever has no row is not there.
    """

    rows: tuple[LayerRow, ...]
    shards: Mapping[str, str]
    complete: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says, whatever wrote the file."""
        digest = hashlib.sha256(
            json.dumps([dict(sorted(self.shards.items())), sorted(self.complete)]).encode()
        )
        for row in self.rows:
            digest.update(json.dumps(astuple(row)).encode())
        return digest.hexdigest()

    def place(self, clip_id: str) -> tuple[str, str]:
        """Shard and clip that a `clip_id` names.

        Raises:
            InputError: If it names none of the layer's shards, or leaves open which.
        """
        shard, slash, clip = clip_id.rpartition("/")
        if slash and shard in self.shards:
            return shard, clip
        if slash or len(self.shards) != 1:
            raise InputError(
                f"clip {clip_id!r}: expected SHARD/CLIP with one of the layer's {len(self.shards)} shards"
            )
        return next(iter(self.shards)), clip


def write_layer(
    path: Path, rows: Sequence[LayerRow], *, shards: Mapping[str, str], complete: Collection[str] = ()
) -> None:
    """Write a layer; the file is there whole or not at all.

    Args:
        path: Of the file; what is there is replaced.
        rows: In any order.
        shards: Digests, by name, of the shards that they are about.
        complete: See `Layer`.
    Raises:
        InputError: If `read_layer` would refuse it.
        OSError: If it cannot be written; what was there is left.
    """
    columns = [f.name for f in fields(LayerRow)]
    data = {name: [getattr(row, name) for row in rows] for name in columns}
    data["class"] = data.pop("class_name")
    try:
        table = pa.table(
            {name: pa.array(data[name], LAYER_SCHEMA.field(name).type) for name in LAYER_SCHEMA.names}
        )
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise InputError(f"rows for {path} do not fit the columns of a layer: {error}") from error
    _check_rows(table, str(path))
    layer = Layer(tuple(rows), dict(shards), frozenset(complete))
    _check_places(layer, str(path))
    described = {"format": FORMAT, "shards": dict(shards), "complete": sorted(complete)}
    table = table.cast(LAYER_SCHEMA).replace_schema_metadata({METADATA: json.dumps(described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, scratch)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())  # decisions of people are on disk before the name is
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_layer(path: Path) -> Layer:
    """Read a layer and check all of it.

    Raises:
        InputError: If it is none, damaged, of another format, or says what cannot be.
    """
    try:
        schema = pq.read_schema(path)
        shards, complete = _described(schema.metadata, path)
        _check_schema(schema, path)
        # Words stay in their dictionaries: a small file could say a long one two million times.
        with pq.ParquetFile(path, read_dictionary=list(WORDS)) as file:
            table = _read(file, path)
    # A column that is missing is a KeyError of the reader's.
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no layer of labels, or damaged: {error}") from error
    _check_rows(table, str(path))
    columns = [table.column(name).to_pylist() for name in LAYER_SCHEMA.names]
    layer = Layer(tuple(LayerRow(*values) for values in zip(*columns, strict=True)), shards, complete)
    _check_places(layer, str(path))
    return layer


def _described(metadata: Mapping[bytes, bytes] | None, path: Path) -> tuple[dict[str, str], frozenset[str]]:
    """Shards and complete clips of a file, from its metadata."""
    raw = (metadata or {}).get(METADATA)
    if raw is None or len(raw) > MAX_METADATA:
        raise InputError(f"{path} is no layer of labels: it does not say for which shards it was made")
    document = json.loads(raw)
    got = document.get("format") if isinstance(document, dict) else None
    if got != FORMAT:
        raise InputError(f"{path} has format {got!r}, this release reads {FORMAT}")
    shards, complete = document.get("shards"), document.get("complete", [])
    words = isinstance(shards, dict) and all(isinstance(v, str) for v in shards.values())
    if not words or not isinstance(complete, list) or not all(isinstance(v, str) for v in complete):
        raise InputError(f"{path} does not say for which shards it was made: expected names and digests")
    return shards, frozenset(complete)


def _check_schema(schema: pa.Schema, path: Path) -> None:
    if schema.names != LAYER_SCHEMA.names:
        raise InputError(
            f"{path} has columns {', '.join(schema.names)[:500]}; expected {', '.join(LAYER_SCHEMA.names)}"
        )
    for field in LAYER_SCHEMA:
        got = schema.field(field.name).type
        plain = got.value_type if pa.types.is_dictionary(got) else got
        if plain != field.type:
            raise InputError(f"{path}: column {field.name} is {plain}, expected {field.type}")


def _read(file: pq.ParquetFile, path: Path) -> pa.Table:
    """All rows, as many as there are and not as many as the file says."""
    batches, count = [], 0
    for batch in file.iter_batches(batch_size=1 << 16):
        count += len(batch)
        if count > MAX_ROWS:
            raise InputError(f"{path} has more than {MAX_ROWS} rows; split it by shards")
        for name in WORDS:
            words = batch.column(name)
            words = words.dictionary if isinstance(words, pa.DictionaryArray) else words
            longest = pc.max(pc.binary_length(words)).as_py() or 0
            if longest > MAX_TEXT:
                raise InputError(f"{path}: {name} has a word of {longest} bytes, expected at most {MAX_TEXT}")
        batches.append(batch)
    if not batches:
        return LAYER_SCHEMA.empty_table()
    table = pa.Table.from_batches(batches)
    table.validate(full=True)  # words that are no UTF-8, and places beyond their dictionary
    return table


def _check_rows(table: pa.Table, where: str) -> None:
    """Refuse what cannot be, naming the first row of it."""
    column = {
        name: table.column(name).to_numpy()
        for name in (*NUMBERS, "stamp_ns", "identity")
        if table.column(name).null_count == 0
    }
    for name in LAYER_SCHEMA.names:
        missing = table.column(name).null_count
        if missing and not (LAYER_SCHEMA.field(name).nullable):
            raise InputError(f"{where}: column {name} lacks {missing} values")

    def refuse(bad_N: Any, name: str, expected: str) -> None:
        if bad_N.any():
            row = int(np.flatnonzero(bad_N)[0])
            got = table.column(name)[row].as_py()
            raise InputError(f"{where}: row {row}: {name} is {got!r}, expected {expected}")

    for name in NUMBERS:
        refuse(~np.isfinite(column[name]), name, "a finite number")
    for name in ("x", "y", "z", "vx", "vy"):
        refuse(np.abs(column[name]) > LARGEST_PLACE, name, f"at most {LARGEST_PLACE:.0f} either way")
    for name in ("length", "width", "height"):
        bad_N = (column[name] <= 0.0) | (column[name] > LARGEST_SIZE)
        refuse(bad_N, name, f"more than 0 and at most {LARGEST_SIZE:.0f} m")
    refuse(np.abs(column["yaw"]) > math.pi + YAW_SLACK, "yaw", "-pi to pi")
    refuse((column["confidence"] < 0.0) | (column["confidence"] > 1.0), "confidence", "0 to 1")
    refuse(column["stamp_ns"] < 0, "stamp_ns", "at least 0")
    refuse(column["identity"] < 0, "identity", "at least 0")
    for name, allowed in (("class", CLASSES), ("verdict", VERDICTS)):
        refuse(_not_in(table, name, allowed), name, f"one of {', '.join(allowed)}")
    for name in ("clip_id", "source", "tool"):
        refuse(~_not_in(table, name, ("",)), name, "a name")


def _not_in(table: pa.Table, name: str, allowed: Collection[str]) -> Any:
    words = table.column(name).cast(pa.string())
    return ~pc.is_in(words, value_set=pa.array(list(allowed), pa.string())).to_numpy()


def _check_places(layer: Layer, where: str) -> None:
    """Clips are of the layer's shards, and an identity is once in a frame."""
    for clip_id in {row.clip_id for row in layer.rows} | layer.complete:
        try:
            layer.place(clip_id)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    seen: set[tuple[tuple[str, str], int, int]] = set()
    for row in layer.rows:
        key = (layer.place(row.clip_id), row.stamp_ns, row.identity)
        if key in seen:
            raise InputError(
                f"{where}: identity {row.identity} is twice in clip {row.clip_id} at {row.stamp_ns} ns"
            )
        seen.add(key)
