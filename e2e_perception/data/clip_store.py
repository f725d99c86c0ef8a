"""Clips on disk: one zarr v3 group per clip, one Parquet row per clip, nothing half-written in between.

dataset/
  clips/<clip id>/      a zarr group, one chunk per array; arrays under 64 KiB share one, `packed`
  index/<clip id>.json  its row, written last: a clip without a row does not exist
  index.parquet         all rows, rebuilt by `finish`
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from e2e_perception.core.clips import ARRAY_FIELDS, OPTIONAL_FIELDS, Clip
from e2e_perception.core.errors import InputError

INDEX = "index.parquet"
VALIDATION_SHARE = 0.1
PACKED = "packed"
# Opening an array costs half a millisecond whatever its size, and a clip has a dozen of a few kilobytes.
PACKED_BELOW_BYTES = 65536
_CLIP_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_EXPECTED_ID = "expected letters, digits, '.', '_' and '-' alone"
# What zarr and numpy raise for metadata that were altered: another type, or a shape beyond all memory.
_DAMAGE = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("scenario", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("num_frames", pa.int64()),
        ("first_stamp_ns", pa.int64()),
        ("maps_valid", pa.bool_()),
        ("digest", pa.string()),
        # Null for what was made before it was said; all but the first known of recordings alone.
        ("labels_valid", pa.bool_()),
        ("last_stamp_ns", pa.int64()),
        ("bag_digest", pa.string()),
        ("topics", pa.list_(pa.string())),
        ("sensor_validity", pa.map_(pa.string(), pa.float32())),
        ("speed_mean_mps", pa.float32()),
        ("speed_max_mps", pa.float32()),
        ("weather", pa.string()),
        ("label_sources", pa.list_(pa.string())),
        # Instants at which the recorded stack's supervisor had the robot stop; null where it is not recorded.
        ("interventions", pa.int64()),
    ]
)
FACTS = tuple(_SCHEMA.names[9:])


def clip_digest(clip: Clip) -> str:
    """SHA-256 over every array's name, type, shape and bytes, and the provenance."""
    digest = hashlib.sha256(f"{clip.source}\0{clip.scenario}\0{clip.maps_valid}".encode())
    if not clip.labels_valid:  # as it is for clips from before that was said
        digest.update(b"\0unlabelled")
    for name, value in sorted(clip.arrays().items()):
        digest.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def split_of(scenario: str) -> str:
    """`train` or `validation`, by scenario, never by frame: all clips of a scenario are on one side."""
    number = int.from_bytes(hashlib.sha256(scenario.encode()).digest()[:8], "big")
    return "validation" if number / 2**64 < VALIDATION_SHARE else "train"


class ClipWriter:
    """Appends clips to a dataset; several processes may write different clips at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "clips").mkdir(parents=True, exist_ok=True)
        (path / "index").mkdir(exist_ok=True)

    def has(self, clip_id: str) -> bool:
        """Whether a clip is there, whole."""
        return self._row_path(clip_id).is_file()

    def write(self, clip_id: str, clip: Clip, facts: Mapping[str, Any] | None = None) -> bool:
        """Write a clip; one that is there already is left alone.

        Args:
            clip_id: Letters, digits, `.`, `_`, `-`.
            clip: The clip.
            facts: What the index is to say of it besides, columns `FACTS`.
        Returns:
            False if it was there.
        """
        if self.has(clip_id):
            return False
        final = self.path / "clips" / clip_id
        scratch = self.path / "clips" / f".{clip_id}.{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        _write_arrays(scratch, clip.arrays())
        if final.exists():
            shutil.rmtree(final)  # left by a writer that was killed before it wrote the row
        scratch.rename(final)
        row = {
            "clip_id": clip_id,
            "scenario": clip.scenario,
            "source": clip.source,
            "split": split_of(clip.scenario),
            "num_frames": len(clip),
            "first_stamp_ns": int(clip.stamps_ns_T[0]),
            "maps_valid": clip.maps_valid,
            "labels_valid": clip.labels_valid,
            "digest": clip_digest(clip),
            **(facts or {}),
        }
        scratch_row = self._row_path(clip_id).with_suffix(f".{os.getpid()}")
        scratch_row.write_text(json.dumps(row), encoding="utf-8")
        scratch_row.replace(self._row_path(clip_id))
        return True

    def finish(self) -> ClipStore:
        """Rebuild `index.parquet` from all rows, and open the dataset."""
        rows = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self.path / "index").glob("*.json"))
        ]
        scratch = self.path / f".{INDEX}.{os.getpid()}"
        for row in rows:
            if row.get("sensor_validity") is not None:
                row["sensor_validity"] = list(row["sensor_validity"].items())
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), scratch)
        scratch.replace(self.path / INDEX)
        return ClipStore(self.path)

    def _row_path(self, clip_id: str) -> Path:
        if not _CLIP_ID.fullmatch(clip_id):
            raise InputError(f"clip id {clip_id!r}: {_EXPECTED_ID}")
        return self.path / "index" / f"{clip_id}.json"


class ClipStore:
    """A dataset of clips, read at random.

    Attributes:
        path: Its directory.
        digest: Of the index, which holds every clip's digest.
    """

    def __init__(self, path: Path) -> None:
        """Open a dataset.

        Raises:
            InputError: If there is no index, it cannot be read, or a clip that it lists would lie elsewhere.
        """
        self.path = Path(path)
        index = self.path / INDEX
        if not index.is_file():
            raise InputError(f"{self.path} is not a dataset of clips: it has no {INDEX}")
        try:
            rows = pq.read_table(index, schema=_SCHEMA).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{index} cannot be read: {error}") from error
        for row in rows:
            if row["clip_id"] is None or not _CLIP_ID.fullmatch(row["clip_id"]):
                raise InputError(f"{index} lists a clip {row['clip_id']!r}: {_EXPECTED_ID}; ingest it anew")
        self.rows: list[dict[str, Any]] = sorted(rows, key=lambda row: str(row["clip_id"]))
        lines = "".join(f"{row['clip_id']} {row['digest']}\n" for row in self.rows)
        self.digest = hashlib.sha256(lines.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Indices of the clips of a split, `train` or `validation`."""
        return np.array([i for i, row in enumerate(self.rows) if row["split"] == split], np.int64)

    def labelled(self, split: str) -> NDArray[np.int64]:
        """Of a split, the clips in which everybody is labelled: what can be measured on."""
        return np.array(
            [i for i in self.indices(split).tolist() if self.rows[i]["labels_valid"] is not False], np.int64
        )

    def on_side(self, split: str) -> ClipStore:
        """The same clips, all of a split, whatever their rows say."""
        moved = copy.copy(self)
        moved.rows = [{**row, "split": split} for row in self.rows]
        return moved

    def read(self, index: int) -> Clip:
        """Read one clip.

        Raises:
            InputError: If its arrays are missing or damaged.
        """
        row = self.rows[index]
        path = self.path / "clips" / str(row["clip_id"])
        try:
            arrays = _read_arrays(path)
            inputs = {
                name.removeprefix("inputs/"): value
                for name, value in arrays.items()
                if name.startswith("inputs/")
            }
            return Clip(
                inputs=inputs,
                maps_valid=bool(row["maps_valid"]),
                labels_valid=row["labels_valid"] is not False,
                source=str(row["source"]),
                scenario=str(row["scenario"]),
                **{name: arrays[name] for name in ARRAY_FIELDS},  # type: ignore[arg-type]
                **{name: arrays[name] for name in OPTIONAL_FIELDS if name in arrays},  # type: ignore[arg-type]
            )
        except _DAMAGE as error:
            raise InputError(
                f"clip {path} is damaged: {error!r}; remove {self.path}, and simulate or ingest it again"
            ) from error

    def verify(self, indices: Iterable[int] | None = None) -> None:
        """Compare clips with their digests.

        Raises:
            InputError: At the first clip that differs.
        """
        for index in range(len(self)) if indices is None else indices:
            row = self.rows[index]
            got = clip_digest(self.read(index))
            if got != row["digest"]:
                raise InputError(
                    f"clip {row['clip_id']} was altered: digest {got[:12]}…, the index says "
                    f"{str(row['digest'])[:12]}…"
                )


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write arrays to a new zarr group; small ones are laid end to end, the layout is an attribute."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    layout: list[dict[str, Any]] = []
    small: list[NDArray[np.uint8]] = []
    position = 0
    stored: dict[str, NDArray[np.generic]] = {}
    for name, value in arrays.items():
        if value.nbytes >= PACKED_BELOW_BYTES:
            stored[name.replace("/", ".")] = value
            layout.append({"name": name, "array": name.replace("/", ".")})
            continue
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        raw = np.pad(raw, (0, -raw.size % 8))  # so that every array begins aligned
        layout.append({"name": name, "dtype": value.dtype.str, "shape": value.shape, "offset": position})
        small.append(raw)
        position += raw.size
    stored[PACKED] = np.concatenate([*small, np.zeros(1, np.uint8)])
    group.attrs["layout"] = layout
    for name, value in stored.items():
        array = group.create_array(
            name, shape=value.shape, dtype=value.dtype, chunks=value.shape, compressors=[ZstdCodec(level=1)]
        )
        array[...] = value


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of a clip's group, by their names."""
    if not path.is_dir():
        raise OSError(f"{path.name} is not there")
    group = zarr.open_group(path, mode="r", zarr_format=3)
    packed = _array(group, PACKED)
    arrays: dict[str, NDArray[np.generic]] = {}
    layout: Any = group.attrs["layout"]
    for entry in layout:
        if "array" in entry:
            arrays[entry["name"]] = _array(group, entry["array"])
            continue
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        offset = int(entry["offset"])
        raw = packed[offset : offset + int(np.prod(shape)) * dtype.itemsize]
        arrays[entry["name"]] = raw.view(dtype).reshape(shape) if raw.size else np.empty(shape, dtype)
    return arrays


def _array(group: zarr.Group, name: str) -> NDArray[Any]:
    member = group[name]
    if not isinstance(member, zarr.Array):
        raise OSError(f"{name} is no array")
    return np.asarray(member[...])
