"""What a person is to look at: clips of a dataset, and their labels with provenance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.named_files import offending_keys
from e2e_perception.core.network_config import BOX_FIELDS, SIZES, NetworkConfig
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.shards import Dataset, read_labels

MAX_LIST_BYTES = 16 << 20
BOX_NUMBERS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")


@dataclass(frozen=True)
class LabelBox:
    """A box as layers have it; every number is one that float32 holds.

    Attributes:
        x, y, z: Centre, base frame [m].
        length, width, height: > 0 [m].
        yaw: [rad]
        vx, vy: Over ground, base axes [m/s].
    """

    x: float
    y: float
    z: float
    length: float
    width: float
    height: float
    yaw: float
    vx: float
    vy: float

    @staticmethod
    def of(numbers: Mapping[str, float]) -> LabelBox:
        """Round numbers, by name, to what float32 holds."""
        return LabelBox(**{name: float(np.float32(numbers[name])) for name in BOX_NUMBERS})

    def moved(self, **numbers: float) -> LabelBox:
        """The same with other numbers, by name."""
        return LabelBox.of({**vars(self), **numbers})

    @property
    def corners_83(self) -> NDArray[np.float64]:
        """(8, 3) float64 [m]: bottom then top, each from front left counter-clockwise seen from above."""
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64) / 2.0
        along, left = signs[:, 0] * self.length, signs[:, 1] * self.width
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        ground = np.stack([self.x + c * along - s * left, self.y + s * along + c * left], axis=1)
        low, high = np.full((4, 1), self.z - self.height / 2), np.full((4, 1), self.z + self.height / 2)
        return np.vstack([np.hstack([ground, low]), np.hstack([ground, high])])


@dataclass(frozen=True)
class ReviewLabel:
    """A label of one frame, and where it comes from.

    Attributes:
        frame: In the clip.
        slot: In the clip's label arrays.
        identity: Of the object.
        class_name: Of `CLASSES`.
        box: Where it is.
        source, tool, bundle_digest, confidence, reviewer: As in `LABEL_SCHEMA`.
    """

    frame: int
    slot: int
    identity: int
    class_name: str
    box: LabelBox
    source: str
    tool: str | None
    bundle_digest: str | None
    confidence: float
    reviewer: str | None


@dataclass(frozen=True)
class ReviewClip:
    """A clip with its labels.

    Attributes:
        shard: Name.
        clip_id: In the shard.
        network: Sizes that its inputs were made for.
        clip: Arrays.
        labels: Of all frames, in the order of the shard's table.
    """

    shard: str
    clip_id: str
    network: NetworkConfig
    clip: Clip
    labels: tuple[ReviewLabel, ...]

    def at(self, frame: int) -> list[ReviewLabel]:
        """Labels of a frame."""
        return [label for label in self.labels if label.frame == frame]

    @property
    def tracks(self) -> dict[int, list[ReviewLabel]]:
        """Labels by identity, in order of time."""
        found: dict[int, list[ReviewLabel]] = defaultdict(list)
        for label in sorted(self.labels, key=lambda label: label.frame):
            found[label.identity].append(label)
        return dict(found)

    @property
    def first_from_base_T(self) -> list[SE2]:
        """The robot's pose at each frame, in the base frame of the first."""
        poses = [SE2(0.0, 0.0, 0.0)]
        for motion in self.clip.memory_from_base_T3[1:]:
            poses.append(poses[-1] @ SE2(*(float(value) for value in motion)))
        return poses


@dataclass(frozen=True)
class ClipName:
    """Which clip of a dataset: its shard, its index in it and its identifier."""

    shard: str
    index: int
    clip_id: str

    def __str__(self) -> str:
        return f"{self.shard}/{self.clip_id}"


@dataclass
class ReviewDataset:
    """A dataset, opened to be looked at.

    Attributes:
        dataset: Its shards.
        digests: Of the shards, by name.
        stores: Their clips, by name.
    """

    dataset: Dataset
    digests: dict[str, str]
    stores: dict[str, ClipStore]
    _labels: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    @staticmethod
    def open(path: Path) -> ReviewDataset:
        """Open a dataset.

        Raises:
            InputError: If there is none, or nothing is in it.
        """
        dataset = Dataset(path)
        digests = {shard.name: shard.digest for shard in dataset.shards()}
        if not digests:
            raise InputError(f"{path} holds no finished shard; `e2e-perception ingest` makes some")
        stores = {name: ClipStore(dataset.directory(name)) for name in digests}
        return ReviewDataset(dataset, digests, stores)

    def names(self, list_file: Path | None = None, clips: Sequence[str] | None = None) -> list[ClipName]:
        """The clips of a list that `mine` wrote, in its order; without one all clips.

        Args:
            list_file: The list.
            clips: Only these of them, `SHARD/CLIP`.
        Raises:
            InputError: If the list is damaged, or of another dataset, or a clip is not there.
        """
        names = self._listed(list_file)
        if not clips:
            return names
        by_name = {str(name): name for name in names}
        absent = [clip for clip in clips if clip not in by_name]
        if absent:
            raise InputError(
                f"there is no clip {absent[0]}; expected SHARD/CLIP, e.g. {next(iter(by_name), 'none')}"
            )
        return [by_name[clip] for clip in dict.fromkeys(clips)]

    def _listed(self, list_file: Path | None) -> list[ClipName]:
        known = {
            (shard, str(row["clip_id"])): (ClipName(shard, index, str(row["clip_id"])), row["first_stamp_ns"])
            for shard, store in self.stores.items()
            for index, row in enumerate(store.rows)
        }
        if list_file is None:
            return [name for name, _ in known.values()]
        names: list[ClipName] = []
        for wanted in _read_list(list_file).clips:
            name, stamp_ns = known.get((wanted.shard, wanted.clip_id), (None, None))
            if name is None or stamp_ns != wanted.stamp_ns:
                raise InputError(
                    f"{list_file}: clip {wanted.shard}/{wanted.clip_id} that begins at {wanted.stamp_ns} ns "
                    f"is not in {self.dataset.path}; `e2e-perception mine` it again"
                )
            if name not in names:
                names.append(name)
        return names

    def read(self, name: ClipName) -> ReviewClip:
        """A clip with its labels.

        Raises:
            InputError: If its arrays, its table of labels or the facts of its shard are damaged.
        """
        clip = self.stores[name.shard].read(name.index)
        rows = self._rows(name.shard).get(name.clip_id, [])
        labels = tuple(_label(name, clip, row) for row in rows)
        return ReviewClip(name.shard, name.clip_id, self.network(name.shard), clip, labels)

    def network(self, shard: str) -> NetworkConfig:
        """Sizes that the inputs of a shard were made for.

        Raises:
            InputError: If the shard does not say.
        """
        recipe = self.dataset.facts(shard).get("recipe")
        size = recipe.get("size") if isinstance(recipe, dict) else None
        if size not in SIZES:
            raise InputError(
                f"shard {shard} was made for size {size!r}, expected one of {', '.join(SIZES)}; "
                "ingest it again"
            )
        return SIZES[size]

    def identities(self, shard: str) -> frozenset[int]:
        """Of all labels of a shard."""
        return frozenset(int(row["identity"]) for rows in self._rows(shard).values() for row in rows)

    def identities_of(self, name: ClipName) -> set[int]:
        """Of the labels of a clip, without reading its arrays."""
        return {int(row["identity"]) for row in self._rows(name.shard).get(name.clip_id, [])}

    def _rows(self, shard: str) -> dict[str, list[dict[str, Any]]]:
        if shard not in self._labels:
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for row in read_labels(self.dataset.directory(shard)):
                found[str(row["clip_id"])].append(row)
            self._labels[shard] = dict(found)
        return self._labels[shard]


class _ListedClip(BaseModel):
    """A clip of `mine`'s list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    clip_id: str
    stamp_ns: int
    score: float | None = None
    signals: dict[str, float | None] = {}
    ranks: dict[str, float | None] = {}


class _LeftOutClip(BaseModel):
    """A clip that `mine` did not rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    clip_id: str
    stamp_ns: int
    reason: str


class _MinedList(BaseModel):
    """The list that `mine` writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_digest: str = ""
    bundle: str = ""
    weights: dict[str, float] = {}
    looked_at: int = 0
    clips: tuple[_ListedClip, ...]
    left_out: tuple[_LeftOutClip, ...] = ()


def _read_list(path: Path) -> _MinedList:
    try:
        return _MinedList.model_validate_json(read_bounded(path, MAX_LIST_BYTES))
    except ValidationError as error:
        raise InputError(
            f"{path} is no list of `e2e-perception mine`: {'; '.join(offending_keys(error, 'list')[:3])}"
        ) from error


def read_bounded(path: Path, limit: int) -> bytes:
    """A file's bytes.

    Raises:
        InputError: If it cannot be read or has more than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit >> 20} MiB, which is more than is read; split it")
    return content


def _label(name: ClipName, clip: Clip, row: Mapping[str, Any]) -> ReviewLabel:
    frame, slot = int(row["frame"]), int(row["slot"])
    frames, slots = clip.ids_TB.shape
    if not (0 <= frame < frames and 0 <= slot < slots and clip.ids_TB[frame, slot] == row["identity"]):
        raise InputError(
            f"clip {name}: the table of labels has {row['identity']} in frame {frame}, slot {slot}, the clip "
            "has not; `e2e-perception dataset verify` says what was altered"
        )
    if row["class"] not in CLASSES:
        raise InputError(f"clip {name}: class {row['class']!r}, expected one of {', '.join(CLASSES)}")
    return ReviewLabel(
        frame=frame,
        slot=slot,
        identity=int(row["identity"]),
        class_name=str(row["class"]),
        box=box_of(clip.boxes_TB10[frame, slot]),
        source=str(row["source"]),
        tool=row["tool"],
        bundle_digest=row["bundle_digest"],
        confidence=float(row["confidence"]),
        reviewer=row["reviewer"],
    )


def box_of(columns_10: NDArray[np.float32]) -> LabelBox:
    """A box of a clip, columns `BOX_FIELDS`."""
    named = {name: float(value) for name, value in zip(BOX_FIELDS, columns_10, strict=True)}
    for side in ("length", "width", "height"):
        named[side] = math.exp(named[f"log_{side}"])
    named["yaw"] = math.atan2(named["sin_yaw"], named["cos_yaw"])
    return LabelBox.of(named)
