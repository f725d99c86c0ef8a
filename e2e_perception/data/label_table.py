"""The table of a shard's labels, written as clips come, so that memory does not grow with the recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LABELS = "labels.parquet"
ROWS_AT_ONCE = 8192  # in a row group; a few megabytes
LABEL_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frame", pa.int16()),
        ("slot", pa.int16()),
        ("identity", pa.int64()),
        ("class", pa.string()),
        ("source", pa.string()),
        ("tool", pa.string()),
        ("bundle_digest", pa.string()),
        ("confidence", pa.float32()),
        ("reviewer", pa.string()),
    ]
)


class LabelWriter:
    """Appends rows to a scratch file, which becomes the shard's table when it is finished.

    Only one process writes a shard (`Dataset.writing`); what one that was killed left is begun anew.
    """

    def __init__(self, directory: Path) -> None:
        """Begin the table of the shard in a directory."""
        self._final, self._scratch = directory / LABELS, directory / f".{LABELS}"
        self._writer = pq.ParquetWriter(self._scratch, LABEL_SCHEMA)
        self._waiting: list[Mapping[str, Any]] = []
        self._digest = hashlib.sha256()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of `LABEL_SCHEMA`."""
        for row in rows:
            self._digest.update(digested(row))
            self._waiting.append(row)
            if len(self._waiting) == ROWS_AT_ONCE:
                self._write()

    def finish(self) -> str:
        """Put the table in its place.

        Returns:
            Digest of its rows, which does not depend on how they came.
        """
        self._write()
        self._writer.close()
        self._scratch.replace(self._final)
        return self._digest.hexdigest()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=LABEL_SCHEMA))
            self._waiting = []


def digest_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """What `LabelWriter.finish` returned for rows that were read back."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(digested(row))
    return digest.hexdigest()


def digested(row: Mapping[str, Any]) -> bytes:
    """A row as the digest sees it."""
    return json.dumps([row[name] for name in LABEL_SCHEMA.names], sort_keys=True).encode()
