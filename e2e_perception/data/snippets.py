"""A directory of snippets: short recordings around events, each a rosbag2 with `event.json` in it.

    snippets/
      20260117T101502.120Z-cyclist/     a finished snippet: `ros2 bag play` and `ingest` take it as it is
        metadata.yaml  …mcap
        event.json                      see `SnippetInfo`
      .unfinished/                      being written, or broken off by a crash
      .lock                             held by the recorder that writes here

A snippet appears by one rename when all of it is on the disk. The quota is for all snippets: what was broken
off makes room first, then the oldest of the least priority, and never one of more priority than the snippet
that needs the room; what then does not fit is not written, and counted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from e2e_perception.core.errors import InputError
from e2e_perception.core.snippets import TriggerEvent

EVENT = "event.json"
UNFINISHED = ".unfinished"
LOCK = ".lock"
FORMAT = 1
MAX_EVENT_BYTES = 1 << 22  # a file of more was not written here


class SnippetInfo(BaseModel):
    """What `event.json` says.

    Attributes:
        format: Of this file.
        events: What fired, in order of time; at least one.
        begin_ns, end_ns: Arrivals that the snippet was to hold, both inclusive [ns].
        messages: Number by topic.
        lost: Messages that are missing, by cause: `queue` (the disk was too slow), `quota`.
        gaps_ns: Times in which further messages are missing, because memory was too short [ns].
        cut: Why it ends before it should have; empty if it does not.
        bundle: Name and digest of the bundle that ran.
        backend: Engine that ran it.
        stack: Version of this package.
        rig: Name of the rig.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: int = FORMAT
    events: tuple[TriggerEvent, ...]
    begin_ns: int
    end_ns: int
    messages: dict[str, int]
    lost: dict[str, int]
    gaps_ns: tuple[tuple[int, int], ...]
    cut: str
    bundle: str
    backend: str
    stack: str
    rig: str

    @property
    def priority(self) -> int:
        """The highest of its events."""
        return max(event.priority for event in self.events)


def read_info(snippet: Path) -> SnippetInfo:
    """What is known of a snippet.

    Raises:
        InputError: If it has no `event.json`, or one that was not written here.
    """
    path = snippet / EVENT
    try:
        with path.open("rb") as file:
            text = file.read(MAX_EVENT_BYTES + 1)
        if len(text) > MAX_EVENT_BYTES:
            raise InputError(f"{path} has more than {MAX_EVENT_BYTES} bytes; it is no snippet's")
        info = SnippetInfo.model_validate_json(text)
    except OSError as error:
        raise InputError(f"{snippet} is no snippet: {path.name}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} is damaged: {where}: {first['msg']}") from error
    if info.format != FORMAT or not info.events:
        raise InputError(f"{path} has format {info.format}, expected {FORMAT} with at least one event")
    return info


def snippet_name(event: TriggerEvent) -> str:
    """Of a snippet that begins with this event: its time in UTC, and its rule."""
    when = datetime.fromtimestamp(event.stamp_ns // 10**9, timezone.utc)
    return f"{when:%Y%m%dT%H%M%S}.{event.stamp_ns // 10**6 % 1000:03d}Z-{event.rule}"


@dataclass(frozen=True)
class Kept:
    """One entry of the directory.

    Attributes:
        path: Its directory.
        num_bytes: Of its files.
        info: What it says; None if it was broken off, or says nothing that can be read.
    """

    path: Path
    num_bytes: int
    info: SnippetInfo | None


class SnippetStore:
    """The directory, used by one recorder at a time.

    Attributes:
        path: The directory.
        quota_bytes: Of all snippets in it at most.
    """

    def __init__(self, path: str | Path, quota_bytes: int) -> None:
        self.path = Path(path)
        self.quota_bytes = quota_bytes
        self._lock: IO[bytes] | None = None

    def open(self) -> None:
        """Make the directory, and be its only writer; opening twice does no harm.

        Raises:
            InputError: If another recorder writes there.
            OSError: If it cannot be written to.
        """
        (self.path / UNFINISHED).mkdir(parents=True, exist_ok=True)
        if self._lock is not None:
            return
        lock = (self.path / LOCK).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InputError(
                f"snippets: another recorder writes to {self.path}; give each a triggers.directory of its own"
            ) from error
        except OSError:
            lock.close()
            raise
        self._lock = lock

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kept(self) -> list[Kept]:
        """All finished snippets, by name; other directories are not ours and are not counted."""
        found = []
        for path in _directories(self.path):
            if path.name != UNFINISHED and (path / EVENT).is_file():
                found.append(Kept(path, size_of(path), _info_or_none(path)))
        return found

    def fired_ns(self) -> dict[str, list[int]]:
        """When the rules of the finished snippets fired, by rule [ns]; empty where nothing is kept."""
        fired: defaultdict[str, list[int]] = defaultdict(list)
        for kept in self.kept():
            for event in () if kept.info is None else kept.info.events:
                fired[event.rule].append(event.now_ns)
        return dict(fired)

    def begin(self, event: TriggerEvent) -> Path:
        """A path for a new snippet's bag; nothing is there yet."""
        name, number = snippet_name(event), 1
        taken = name
        while (self.path / taken).exists() or (self.path / UNFINISHED / taken).exists():
            number += 1
            taken = f"{name}-{number}"
        return self.path / UNFINISHED / taken

    def room(self, present: Path) -> int:
        """Bytes that the quota leaves for the snippet that is being written."""
        others = [p for p in _directories(self.path / UNFINISHED) if p != present]
        used = sum(kept.num_bytes for kept in self.kept()) + sum(map(size_of, others))
        return self.quota_bytes - used

    def make_room(self, present: Path, priority: int) -> int:
        """Remove one snippet that matters less than the one that is being written.

        Args:
            present: The snippet that needs the room.
            priority: Its own.
        Returns:
            Bytes that came free; 0 if everything else matters more.
        """
        broken_off = [Kept(p, size_of(p), None) for p in _directories(self.path / UNFINISHED) if p != present]
        least = [kept for kept in self.kept() if kept.info is None or kept.info.priority <= priority]
        least.sort(
            key=lambda kept: (-1, 0) if kept.info is None else (kept.info.priority, kept.info.begin_ns)
        )
        for kept in [*broken_off, *least]:
            self._remove(kept.path)
            return max(kept.num_bytes, 1)
        return 0

    def finish(self, present: Path, info: SnippetInfo) -> Path:
        """Say what a written bag is about, and put it in its place, whole or not at all.

        Returns:
            The finished snippet.
        """
        text = json.dumps(info.model_dump(mode="json"), indent=1)
        (present / EVENT).write_text(text + "\n", encoding="utf-8")
        for file in present.iterdir():
            _sync(file)
        _sync(present)
        final = self.path / present.name
        present.rename(final)
        _sync(self.path)
        return final

    def _remove(self, path: Path) -> None:
        # Out of sight first: half of a snippet must not look like one.
        hidden = self.path / UNFINISHED / path.name
        if path != hidden:
            wipe(hidden)
            path.rename(hidden)
        shutil.rmtree(hidden)


def _directories(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield entry


def size_of(path: Path) -> int:
    """Bytes of the files in a directory; those that vanish meanwhile are none."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _info_or_none(path: Path) -> SnippetInfo | None:
    try:
        return read_info(path)
    except InputError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wipe(path: Path) -> None:
    """Remove what was begun, as far as that goes."""
    shutil.rmtree(path, ignore_errors=True)
