"""A dataset of shards: what was ingested of each recording, once and for all.

dataset/
  dataset.json           the list of shards, rewritten whole
  shards/<name>/         clips of one recording (`clip_store`), and
    shard.json           what they were made from and by, written last: a shard without it is being written
    labels.parquet       a row per label: which, how sure, and who says so
  splits.json            which shard is for training and which for validation, if `dataset split` made it

A shard that is finished is never written to again. The digest of a dataset is that of its shards' digests,
so that the same recordings give the same digest in whatever order they came.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import INDEX, ClipStore
from e2e_perception.data.label_table import LABEL_SCHEMA, LABELS, LabelWriter, digest_of_rows
from e2e_perception.data.shard_facts import (
    FORMAT,
    Shard,
    ShardFacts,
    ShardList,
    checked_file_name,
    checked_shard_name,
    parsed,
)
from e2e_perception.data.splits import SPLITS, Recording, read_table

DATASET = "dataset.json"
SHARD = "shard.json"


class Dataset:
    """A directory of shards."""

    def __init__(self, path: Path) -> None:
        """Open a dataset, or a place where one may be begun.

        Raises:
            InputError: If what is there is something else, or damaged.
        """
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, expected the directory of a dataset")
        if self.path.is_dir() and not (self.path / DATASET).is_file() and any(self.path.iterdir()):
            others = [p.name for p in self.path.iterdir() if p.name not in ("shards", ".lock")]
            if others:
                raise InputError(
                    f"{self.path} is no dataset: it has no {DATASET}, but {', '.join(sorted(others)[:3])}; "
                    "name a new directory"
                )

    def shards(self) -> list[Shard]:
        """All finished shards, by name.

        Raises:
            InputError: If the list is damaged.
        """
        file = self.path / DATASET
        if not file.is_file():
            return []
        listed = parsed(ShardList, file.read_bytes(), str(file))
        if listed.format != FORMAT:
            raise InputError(f"{file} has format {listed.format}, this release reads {FORMAT}")
        for shard in listed.shards:
            checked_shard_name(shard.name)
        return sorted(listed.shards, key=lambda shard: shard.name)

    @property
    def digest(self) -> str:
        """Of the digests of all shards."""
        lines = sorted(shard.digest for shard in self.shards())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def directory(self, name: str) -> Path:
        """Where a shard is, or will be.

        Raises:
            InputError: If that is no name for one.
        """
        return self.path / "shards" / checked_shard_name(name)

    def stores(self) -> list[ClipStore]:
        """The clips of every shard, on the sides that `splits.json` says.

        Raises:
            InputError: If one is missing or damaged, or the table was made for other shards.
        """
        table = read_table(self.path / SPLITS)
        stores = []
        for shard in self.shards():
            store = ClipStore(self.directory(shard.name))
            stores.append(store if table is None else store.on_side(table.side(shard.name, shard.digest)))
        return stores

    def recordings(self) -> list[Recording]:
        """What is known of every shard's place and time.

        Raises:
            InputError: If one is missing or damaged.
        """
        found = []
        for shard in self.shards():
            rows = ClipStore(self.directory(shard.name)).rows
            scenarios = sorted({str(row["scenario"]) for row in rows})
            found.append(Recording.of(shard.name, shard.digest, scenarios, self.facts(shard.name)))
        return found

    def facts(self, name: str, needs: Sequence[str] = ()) -> dict[str, Any]:
        """What a shard was made from and by.

        Args:
            name: Of the shard.
            needs: Facts that it has to tell; others may be missing.
        Raises:
            InputError: If it is missing or damaged, or does not tell what is needed.
        """
        file = self.directory(name) / SHARD
        try:
            text = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}; ingest into a new directory") from error
        for listed in parsed(ShardFacts, text, str(file)).files:
            checked_file_name(listed, str(file))
        document: dict[str, Any] = json.loads(text)
        missing = [fact for fact in needs if fact not in document]
        if missing:
            raise InputError(
                f"{file} is damaged: it does not tell {', '.join(missing)}; ingest into a new directory"
            )
        return document

    def tables(self, name: str) -> dict[str, pa.Table]:
        """Tables that a shard has beside its index and its labels, by file name.

        Raises:
            InputError: If one is missing or damaged, or its name leads elsewhere.
        """
        directory = self.directory(name)
        others = [file for file in self.facts(name).get("files", {}) if file not in (INDEX, LABELS)]
        try:
            return {file: pq.read_table(directory / file) for file in others}
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"a table of shard {name} cannot be read: {error}; import it again") from error

    def seal(
        self,
        name: str,
        facts: Mapping[str, Any],
        labels: LabelWriter | Sequence[Mapping[str, Any]],
        tables: Mapping[str, pa.Table] | None = None,
    ) -> Shard:
        """Declare a shard finished and list it.

        Args:
            name: Of a shard whose clips are all written and whose index is rebuilt.
            facts: What it was made from and by.
            labels: Rows of `LABEL_SCHEMA`, or the writer that was given them as they came.
            tables: Others by file name, kept beside them.
        Raises:
            InputError: If the name of a table leads elsewhere.
        """
        directory = self.directory(name)
        for file in tables or {}:
            checked_file_name(file, f"shard {name}")
        store = ClipStore(directory)
        if not isinstance(labels, LabelWriter):
            rows, labels = labels, LabelWriter(directory)
            labels.add(rows)
        digest = hashlib.sha256(f"{store.digest}\n{labels.finish()}\n".encode()).hexdigest()
        frames = int(facts["frames"])
        for file, other in (tables or {}).items():
            pq.write_table(other, directory / file)
        files = {file: _sha256(directory / file) for file in (INDEX, LABELS, *(tables or {}))}
        _write_json(directory / SHARD, {**facts, "digest": digest, "clips": len(store), "files": files})
        shard = Shard(name, digest, len(store), frames, _sha256(directory / SHARD))
        with self._locked():
            others = [other for other in self.shards() if other.name != name]
            listed = sorted([*others, shard], key=lambda item: item.name)
            _write_json(self.path / DATASET, {"format": FORMAT, "shards": [asdict(item) for item in listed]})
        return shard

    def verify(self) -> list[str]:
        """Compare every clip, label, table and fact with its digest.

        Returns:
            Names of shards that were listed before digests of facts were recorded: of those, facts that were
            altered to others that are sound are not found.
        Raises:
            InputError: At the first that differs.
        """
        unrecorded = []
        for shard in self.shards():
            facts = self.facts(shard.name)
            digests = {SHARD: (shard.facts_digest, DATASET)}
            digests.update({file: (digest, SHARD) for file, digest in facts.get("files", {}).items()})
            if shard.facts_digest is None:
                del digests[SHARD]
                unrecorded.append(shard.name)
            for file, (expected, where) in digests.items():
                path = self.directory(shard.name) / file
                if not path.is_file() or _sha256(path) != expected:
                    raise InputError(f"{path} was altered: it has not the digest that {where} says")
            if (shard.clips, shard.frames) != (facts["clips"], facts["frames"]):
                raise InputError(
                    f"{DATASET} says that shard {shard.name} has {shard.clips} clips of {shard.frames} "
                    f"frames, {SHARD} says {facts['clips']} of {facts['frames']}; one of them was altered"
                )
            store = ClipStore(self.directory(shard.name))
            store.verify()
            rows = read_labels(self.directory(shard.name))
            got = hashlib.sha256(f"{store.digest}\n{digest_of_rows(rows)}\n".encode()).hexdigest()
            if got != shard.digest:
                raise InputError(
                    f"shard {shard.name} was altered: digest {got[:12]}…, {DATASET} says {shard.digest[:12]}…"
                )
        return unrecorded

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Be the only one who writes a shard.

        Yields:
            Its directory, made if it was not there.
        Raises:
            InputError: If another process is writing it.
        """
        directory = self.directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"shard {name} of {self.path} is being written by another process; wait for it"
                ) from error
            yield directory

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def read_labels(directory: Path) -> list[dict[str, Any]]:
    """Rows of `LABEL_SCHEMA` of a shard.

    Raises:
        InputError: If they are missing or damaged.
    """
    file = directory / LABELS
    try:
        rows: list[dict[str, Any]] = pq.read_table(file, schema=LABEL_SCHEMA).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}; ingest into a new directory") from error
    return rows


def open_clips(path: Path) -> list[ClipStore]:
    """The clips under a directory: a dataset of shards, or clips alone.

    Raises:
        InputError: If there are none.
    """
    path = Path(path)
    if not (path / DATASET).is_file():
        return [ClipStore(path)]
    stores = Dataset(path).stores()
    if not stores:
        raise InputError(f"{path} is a dataset without shards; ingest something first")
    return stores


def digest_of(stores: Sequence[ClipStore]) -> str:
    """Of several stores together; of one, its own."""
    if len(stores) == 1:
        return stores[0].digest
    return hashlib.sha256("\n".join(sorted(store.digest for store in stores)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, document: Any) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)
