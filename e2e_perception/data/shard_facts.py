"""What `dataset.json` and `shard.json` may say: types and bounds of all that is read from them.

Both are checked whenever they are read, so that whoever asks for a fact need not doubt its type.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from e2e_perception.core.errors import InputError

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_INTERVALS = frozenset({"period_ms", "jitter_ms", "longest_gap_ms", "longest_gap_at_ns"})
_LATENCIES = frozenset({"latency_ms", "latency_jitter_ms"})
_Document = TypeVar("_Document", bound=BaseModel)

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Shard:
    """A finished shard as its dataset lists it.

    Attributes:
        name: Of its directory.
        digest: Of its clips and labels.
        clips, frames: How many.
        facts_digest: Of its `shard.json`; None: listed before that was recorded.
    """

    name: str
    digest: str
    clips: Count
    frames: Count
    facts_digest: str | None = None


class ShardList(BaseModel):
    """`dataset.json`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: int
    shards: tuple[Shard, ...]


class _Facts(BaseModel):
    """Importers add facts of their own, which nothing here reads."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class StreamFacts(_Facts):
    """Timing of one stream, see `StreamTiming.summary`."""

    count: Count = 0
    backwards: Count = 0
    repeated: Count = 0
    without_covariance: Count = 0
    period_ms: float = 0.0
    jitter_ms: float = 0.0
    longest_gap_ms: float = 0.0
    longest_gap_at_ns: int = 0
    latency_ms: float = 0.0
    latency_jitter_ms: float = 0.0
    equal_intervals: bool = False
    equal_latencies: bool = False

    @model_validator(mode="after")
    def _figures_come_together(self) -> StreamFacts:
        for figures in (_INTERVALS, _LATENCIES):
            missing = figures - self.model_fields_set
            if missing and missing != figures:
                raise ValueError(f"{', '.join(sorted(missing))} missing beside the figures they belong to")
        return self


class SourceFacts(_Facts):
    """The recording."""

    name: str


class SensorFacts(_Facts):
    """One sensor of a rig."""

    name: str


class RigFacts(_Facts):
    """The rig of a recording."""

    sensors: tuple[SensorFacts, ...] = ()


class RecipeFacts(_Facts):
    """The settings that a shard was made under."""

    size: str = ""
    rig: RigFacts = RigFacts()


class ShardFacts(_Facts):
    """`shard.json`."""

    digest: str
    clips: Count
    frames: Count
    files: dict[str, str] = Field({}, description="SHA-256 by file name; not in the oldest shards.")
    source: SourceFacts | None = None
    recipe: RecipeFacts | None = None
    made_from: RecipeFacts | None = None
    tool: str = ""
    bag_digest: str = ""
    start_ns: int = 0
    end_ns: int = 0
    topics: dict[str, Count] = {}
    left_out: dict[str, Count] = {}
    drops: dict[str, Count] = {}
    timing: dict[str, StreamFacts] = {}
    odometry: StreamFacts = StreamFacts()
    warnings: tuple[str, ...] = ()
    label_sources: tuple[str, ...] = ()
    labels_unplaced: Count = 0
    tracks: dict[str, Count] = {}
    sweeps: Count = 0
    pictures: Count = 0
    place: str = ""
    path: dict[str, Any] | None = None


def checked_shard_name(name: str) -> str:
    """The name, if it is one for a shard.

    Raises:
        InputError: If it is none.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"shard {name!r}: expected up to 100 letters, digits, '.', '_' and '-', not first")
    return name


def checked_file_name(file: str, origin: str) -> str:
    """The name, if it is that of a file in the directory of a shard.

    Raises:
        InputError: If it leads elsewhere; `origin` is who says so.
    """
    if not _NAME.fullmatch(file):
        raise InputError(
            f"{origin} lists a file {file!r}: expected a name of letters, digits, '.', '_' and '-'; "
            "ingest into a new directory"
        )
    return file


def parsed(model: type[_Document], text: bytes, origin: str) -> _Document:
    """A document, checked.

    Raises:
        InputError: If it is damaged; `origin` is its file.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{origin} is damaged: {where + ': ' if where else ''}{first['msg']}; restore it, or ingest into "
            "a new directory"
        ) from error
