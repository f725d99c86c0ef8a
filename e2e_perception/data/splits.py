"""Which recordings are for training and which for validation: by drive, place and time, never by frame.

Several robots of one drive, the files of one recorder, and a street driven twice show the same things. Such
recordings make a group, and a group is on one side. Shards are not touched: the table `splits.json` lies
beside them, names each shard by its digest, and wins over what the clips' own rows say.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import split_of
from e2e_perception.data.ego_paths import NEIGHBOURS, EgoPath
from e2e_perception.data.timing import FEW, has_synthetic_stamps

SPLITS = "splits.json"
FORMAT = 1
PLACE_DISTANCE = 30.0  # [m] between paths that show the same street
PLACE_SHARE = 0.2  # of the shorter path that has to be near; crossing a street is not driving it
# Stamps before 2000 or after 2100 are of a clock that nobody set.
FIRST_STAMP_NS, LAST_STAMP_NS = 946_684_800 * 10**9, 4_102_444_800 * 10**9


@dataclass(frozen=True)
class Recording:
    """What grouping looks at.

    Attributes:
        shard, digest: Which.
        name: Of its scenario, by the hash of which it is on a side unless it is in a group.
        bag_digest: Shards of one bag belong together whatever their settings.
        start_ns, end_ns: [ns]
        clocked: Whether stamps are of a clock that other recordings share.
        path: Where it was driven; None: not known in a frame that others share.
    """

    shard: str
    digest: str
    name: str
    bag_digest: str
    start_ns: int
    end_ns: int
    clocked: bool
    path: EgoPath | None

    @staticmethod
    def of(shard: str, digest: str, scenarios: Sequence[str], facts: Mapping[str, Any]) -> Recording:
        """From the facts of a shard and the scenarios of its clips.

        Raises:
            InputError: If the facts are damaged.
        """
        try:
            start_ns, end_ns = int(facts.get("start_ns", 0)), int(facts.get("end_ns", 0))
        except (TypeError, ValueError) as error:
            raise InputError(f"shard {shard}: its time range is {error}; ingest it anew") from error
        return Recording(
            shard=shard,
            digest=digest,
            name=min(scenarios, default=shard),
            bag_digest=str(facts.get("bag_digest", "")),
            start_ns=start_ns,
            end_ns=end_ns,
            clocked=is_clocked(facts),
            path=EgoPath.of(facts, shard),
        )


def is_clocked(facts: Mapping[str, Any]) -> bool:
    """Whether a recording's stamps are of a real clock.

    Intervals that are the same to the nanosecond in all streams, as of a simulator, are not; all simulated
    drives begin at the same instant. One stream whose stamps are computed, as of a hardware trigger, does not
    make the clock of the others unreal.
    """
    start_ns = int(facts.get("start_ns", 0))
    if not FIRST_STAMP_NS <= start_ns < LAST_STAMP_NS:
        return False
    streams = [*dict(facts.get("timing", {})).values(), facts.get("odometry", {})]
    telling = [stream for stream in streams if int(stream.get("count", 0)) > FEW]
    return not telling or not all(has_synthetic_stamps(stream) for stream in telling)


def relation(a: Recording, b: Recording, place_distance: float = PLACE_DISTANCE) -> str:
    """Why two recordings show the same things, in words; empty: as far as is known they do not."""
    why = []
    if a.bag_digest and a.bag_digest == b.bag_digest:
        why.append("the same bag")
    if overlap_s(a, b) > 0.0:
        why.append(f"{overlap_s(a, b):.1f} s at the same time")
    share = place_share(a, b, place_distance)
    if share >= PLACE_SHARE:
        why.append(f"{share:.0%} of the way within {place_distance:g} m")
    return ", ".join(why)


def overlap_s(a: Recording, b: Recording) -> float:
    """How long both were recorded [s]; 0 where a clock is not known."""
    if not (a.clocked and b.clocked):
        return 0.0
    return max(min(a.end_ns, b.end_ns) - max(a.start_ns, b.start_ns), 0) * 1e-9


def place_share(a: Recording, b: Recording, place_distance: float = PLACE_DISTANCE) -> float:
    """See `EgoPath.share_near`; 0 where a place is not known, or `place_distance` is 0."""
    if a.path is None or b.path is None or place_distance <= 0.0:
        return 0.0
    return a.path.share_near(b.path, place_distance)


def possible_pairs(
    recordings: Sequence[Recording], place_distance: float = PLACE_DISTANCE
) -> list[tuple[int, int]]:
    """Pairs of recordings of which `relation` can say anything.

    Found by a sweep over time and a grid over places, since of thousands of recordings nearly all pairs have
    nothing in common.

    Args:
        recordings: In any order.
        place_distance: See `PLACE_DISTANCE`; 0: by bag and time alone.
    Returns:
        Their numbers, the lesser one first, in order. All pairs that are related are among them.
    """
    pairs: set[tuple[int, int]] = set()
    bags: defaultdict[str, list[int]] = defaultdict(list)
    under_way: list[int] = []
    cells: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number in sorted(range(len(recordings)), key=lambda n: recordings[n].start_ns):
        recording = recordings[number]
        others: set[int] = set()
        if recording.bag_digest:
            others.update(bags[recording.bag_digest])
            bags[recording.bag_digest].append(number)
        if recording.clocked:
            under_way = [n for n in under_way if recordings[n].end_ns > recording.start_ns]
            others.update(under_way)
            under_way.append(number)
        if recording.path is not None and place_distance > 0.0:
            frame = recording.path.frame
            own = recording.path.cells(place_distance)
            for x, y in own:
                for dx, dy in NEIGHBOURS:
                    others.update(cells.get((frame, x + dx, y + dy), ()))
            for x, y in own:
                cells[frame, x, y].append(number)
        pairs.update((min(number, other), max(number, other)) for other in others)
    return sorted(pairs)


class Side(BaseModel):
    """Where one shard is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(description="Of the shard.")
    group: str = Field(description="Whose hash decides: the first recording's scenario.")
    split: Literal["train", "validation"]


class SplitTable(BaseModel):
    """`splits.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    place_distance: float = Field(ge=0, description="[m]; 0: places were not looked at.")
    reasons: tuple[str, ...] = Field((), description="Why recordings are in one group, for people.")
    shards: dict[str, Side]

    def side(self, shard: str, digest: str) -> Literal["train", "validation"]:
        """Where a shard is.

        Raises:
            InputError: If the table was made for other shards.
        """
        found = self.shards.get(shard)
        if found is None or found.digest != digest:
            what = "is not in it" if found is None else "is another one in it"
            raise InputError(
                f"{SPLITS} was made for other shards: {shard} {what}; "
                "run `e2e-perception dataset split` again"
            )
        return found.split


def split_table(recordings: Iterable[Recording], place_distance: float = PLACE_DISTANCE) -> SplitTable:
    """Put recordings into groups and groups on sides.

    The same recordings give the same table in whatever order they come. A group is on the side that the hash
    of its first recording's name says, so that a recording that is alone stays where it was.

    Args:
        recordings: All of a dataset.
        place_distance: See `PLACE_DISTANCE`; 0: by bag and time alone.
    """
    known = sorted(recordings, key=lambda r: (r.start_ns, r.name, r.shard))
    first = list(range(len(known)))  # of each recording's group

    def root(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    reasons = []
    for i, j in possible_pairs(known, place_distance):
        why = relation(known[i], known[j], place_distance)
        if why:
            reasons.append(f"{known[i].shard} and {known[j].shard}: {why}")
            low, high = sorted((root(i), root(j)))
            first[high] = low
    shards = {}
    for index, recording in enumerate(known):
        group = known[root(index)].name
        shards[recording.shard] = Side(
            digest=recording.digest,
            group=group,
            split="validation" if split_of(group) == "validation" else "train",
        )
    return SplitTable(
        place_distance=place_distance, reasons=tuple(reasons), shards=dict(sorted(shards.items()))
    )


def read_table(path: Path) -> SplitTable | None:
    """The table of a file; None if there is none.

    Raises:
        InputError: If it is damaged or of another format.
    """
    try:
        table = SplitTable.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path} is damaged: {said}; run `e2e-perception dataset split` again") from error
    if table.format != FORMAT:
        raise InputError(f"{path} has format {table.format}, this release reads {FORMAT}; make it anew")
    return table


def write_table(path: Path, table: SplitTable) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(table.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)
