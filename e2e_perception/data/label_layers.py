"""Labels that come later than a shard, which is never written to again: one Parquet file, a row per box."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e2e_perception.core.errors import InputError

FORMAT = 1
VERDICTS = ("label", "rejected")
_TEXT = ("source", "tool", "bundle_digest")
_NUMBERS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stamp_ns", pa.int64()),
        ("identity", pa.int64()),
        ("class", pa.string()),
        *((name, pa.float32()) for name in _NUMBERS),
        *((name, pa.string()) for name in _TEXT),
        ("confidence", pa.float32()),
        ("reviewer", pa.string()),
        ("verdict", pa.string()),
    ]
)


@dataclass(frozen=True)
class LayerRow:
    """One box in one frame, and who says so.

    Attributes:
        clip_id: `SHARD/CLIP`.
        stamp_ns: Of the frame [ns].
        identity: Of the object.
        class_name: Of `CLASSES`; column `class`.
        x, y, z: Centre, base frame at that stamp [m].
        length, width, height: [m]
        yaw: [rad]
        vx, vy: Over ground, base axes [m/s].
        source, tool, bundle_digest, confidence, reviewer: As in `LABEL_SCHEMA`.
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
    tool: str | None
    bundle_digest: str | None
    confidence: float
    reviewer: str | None
    verdict: str


@dataclass(frozen=True)
class Layer:
    """Rows, and the digests of the shards that they were made for, by name."""

    rows: tuple[LayerRow, ...]
    shards: dict[str, str]


def write_layer(path: Path, rows: Iterable[LayerRow], *, shards: Mapping[str, str]) -> None:
    """Write a layer.

    Args:
        path: File to write.
        rows: Boxes.
        shards: Digest of each shard by name.
    """
    table = pa.Table.from_pylist([_columns(row) for row in rows], schema=SCHEMA)
    facts = json.dumps({"format": FORMAT, "shards": dict(shards)}, sort_keys=True)
    pq.write_table(table.replace_schema_metadata({"e2e_perception": facts}), path)


def read_layer(path: Path) -> Layer:
    """Read a layer.

    Raises:
        InputError: If it is missing, damaged or of another kind.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[b"e2e_perception"])
        if facts["format"] != FORMAT:
            raise InputError(f"{path} has format {facts['format']}, this release reads {FORMAT}")
        shards = {str(name): str(digest) for name, digest in facts["shards"].items()}
        rows = [LayerRow(**_fields(row)) for row in table.cast(SCHEMA).to_pylist()]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no layer of labels: {error}") from error
    if any(row.verdict not in VERDICTS for row in rows):
        raise InputError(f"{path} has verdicts other than {', '.join(VERDICTS)}")
    return Layer(tuple(rows), shards)


def _columns(row: LayerRow) -> dict[str, Any]:
    named = dict(vars(row))
    named["class"] = named.pop("class_name")
    return named


def _fields(columns: dict[str, Any]) -> dict[str, Any]:
    columns["class_name"] = columns.pop("class")
    return columns
