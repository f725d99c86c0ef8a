"""What is whole of a recording that was cut off or altered.

A recorder that loses power leaves a file without its end, and often a directory without `metadata.yaml`. Such
a file is read from its beginning, record by record: what is damaged is left out and said, and reading ends
where nothing more can be made out.

MCAP: https://mcap.dev/spec. SQLite: tables `topics` and `messages` of rosbag2.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import BinaryIO, cast

import zstandard
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Message, Schema, Statistics
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.serde import SerdeError

from e2e_perception.core.errors import InputError
from e2e_perception.data import unpacking
from e2e_perception.data.bags import MCAP_MAGIC, BagMessage, project_typestore

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # of a message that rosbag2 compressed by itself; CDR begins with 0
ENDINGS = (".mcap", ".db3")

DAMAGE = (McapError, ValueError, RuntimeError, EOFError, OverflowError, struct.error, zstandard.ZstdError)

# Topic, type, arrival [ns], CDR bytes.
Stored = tuple[str, str, int, bytes]


class SalvagedBag:
    """A damaged bag, with what `BagSource` offers of a whole one.

    Attributes:
        path: As given.
        types: Type of each topic that holds messages.
        counts: Number of readable messages of each of them.
        start_ns, end_ns: Arrival of the first and of the last message [ns].
        losses: What could not be read, in words.
    """

    def __init__(self, path: str | Path, topics: Collection[str] | None = None) -> None:
        """Read it through once, to know what there is.

        Args:
            path: Directory or file.
            topics: `messages` gives only these; None: all.
        Raises:
            InputError: If there is no bag, or nothing in it can be read.
        """
        self.path = Path(path)
        self._files = _files(self.path)
        self._typestore = project_typestore()
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.losses: list[str] = []
        stamps: list[int] = []
        for topic, type_name, stamp_ns, _ in self._stored(self.losses):
            self.types.setdefault(topic, type_name)
            self.counts[topic] = self.counts.get(topic, 0) + 1
            stamps = [min([*stamps[:1], stamp_ns]), max([*stamps[1:], stamp_ns])]
        if not stamps:
            why = "; ".join(filter(None, map(_why_nothing, self._files))) or "; ".join(self.losses)
            raise InputError(
                f"nothing of bag {self.path} can be read: {why or 'no messages'}; copy or record it again"
            )
        self.start_ns, self.end_ns = stamps
        self._topics = None if topics is None else frozenset(topics)

    def __enter__(self) -> SalvagedBag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Files are open only while they are read."""

    @property
    def num_messages(self) -> int:
        """Messages that `messages` yields, and those that it leaves out."""
        return sum(n for topic, n in self.counts.items() if self._topics is None or topic in self._topics)

    def messages(self) -> Iterator[BagMessage]:
        """Messages in order of arrival within a chunk, chunks as they lie in the file.

        Yields:
            Messages; one that cannot be decoded is left out, and counted in `losses`.
        """
        undecodable: Counter[str] = Counter()
        for topic, type_name, stamp_ns, raw in self._stored([]):
            if self._topics is not None and topic not in self._topics:
                continue
            try:
                message = self._typestore.deserialize_cdr(raw, type_name)
            except (*DAMAGE, SerdeError, LookupError, AssertionError):
                undecodable[topic] += 1
                continue
            yield BagMessage(topic, type_name, stamp_ns, message)
        self.losses += [f"{topic}: {n} messages cannot be decoded" for topic, n in undecodable.items()]

    def _stored(self, losses: list[str]) -> Iterator[Stored]:
        for file in self._files:
            yield from _of_mcap(file, losses) if file.suffix == ".mcap" else _of_sqlite(file, losses)


def _why_nothing(file: Path) -> str:
    """What is wrong with a file if it is no bag at all; empty: it may have been one."""
    if file.stat().st_size == 0:
        return f"{file.name} is empty (0 bytes)"
    with file.open("rb") as stream:
        if file.suffix == ".mcap" and stream.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
            return f"{file.name} is no MCAP file: it does not begin with MCAP's magic bytes"
    return ""


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"no bag at {path}; give a rosbag2 directory, or an .mcap or .db3 file")
    if path.is_file():
        return [path]
    files = sorted(
        (file for file in path.iterdir() if file.suffix in ENDINGS and file.is_file()), key=_as_recorded
    )
    if not files:
        packed = [file.name for file in path.iterdir() if file.name.endswith(".zstd")]
        why = f"; of {', '.join(packed)}, compressed as a whole, nothing can be salvaged" if packed else ""
        raise InputError(f"{path} holds no .mcap or .db3 file{why}")
    return files


def _as_recorded(file: Path) -> list[tuple[int, str]]:
    """Sorts the files of a split recording by their numbers: `drive_10` comes after `drive_9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name)]


# ------------------------------------------------------------------ MCAP


def _of_mcap(file: Path, losses: list[str]) -> Iterator[Stored]:
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    size, first_ns, last_ns = file.stat().st_size, None, 0
    count, packed, before = 0, 0, len(losses)
    with file.open("rb") as stream:
        bounded = cast(BinaryIO, _NoMoreThanThereIs(stream, size))
        records = StreamReader(bounded, emit_chunks=True, record_size_limit=unpacking.LARGEST_RECORD).records
        whole = 0  # [bytes] up to the end of the last record that could be read
        while True:
            try:
                record = next(records, None)
            except DAMAGE as error:  # an end in the middle of a record looks like many things
                reached = 0.0 if first_ns is None else (last_ns - first_ns) * 1e-9
                losses.append(
                    f"{file.name}: cut off or damaged; messages of {reached:.1f} s can be read, nothing of "
                    f"its last {size - whole} of {size} bytes ({type(error).__name__})"
                )
                break
            if record is None:
                break
            whole = stream.tell()
            try:
                inside = _contents(record)
            except DAMAGE as error:
                losses.append(f"{file.name}: a chunk is damaged and left out ({error})")
                continue
            messages = []
            for item in inside:
                if isinstance(item, Schema):
                    schemas[item.id] = item
                elif isinstance(item, Channel):
                    channels[item.id] = item
                elif isinstance(item, Message):
                    messages.append(item)
                elif isinstance(item, Statistics) and item.message_count != count and len(losses) == before:
                    # A chunk whose kind is damaged looks like something else, and has no checksum then.
                    losses.append(
                        f"{file.name}: left out something damaged: of {item.message_count} messages that it "
                        f"says it has, {count} can be read"
                    )
            for message in sorted(messages, key=lambda m: m.log_time):
                channel = channels.get(message.channel_id)
                schema = None if channel is None else schemas.get(channel.schema_id)
                if channel is None or schema is None or channel.message_encoding != "cdr":
                    continue
                raw = _unpacked(message.data)
                if raw is None:
                    packed += 1
                    continue
                first_ns = message.log_time if first_ns is None else min(first_ns, message.log_time)
                last_ns = max(last_ns, message.log_time)
                count += 1
                yield channel.topic, schema.name, message.log_time, raw
    _say_packed(file, packed, losses)


class _NoMoreThanThereIs:
    """A file that states lengths itself: no memory is set aside for what is not there."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _contents(record: McapRecord) -> list[McapRecord]:
    """What is in a record: of a chunk its records, else itself."""
    if not isinstance(record, Chunk):
        return [record]
    if record.compression not in _UNPACK:
        raise ValueError(f"it is compressed with {record.compression!r}, known are {', '.join(_UNPACK)}")
    data = _UNPACK[record.compression](record.data)
    return breakup_chunk(replace(record, compression="", data=data), validate_crc=True)


def _whole(data: bytes) -> bytes:
    return data


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "": _whole,
    "zstd": unpacking.from_zstd,
    "lz4": unpacking.from_lz4,
}


# ------------------------------------------------------------------ SQLite


def _of_sqlite(file: Path, losses: list[str]) -> Iterator[Stored]:
    count = packed = 0
    with _opened(file) as connection:
        try:
            topics = {
                row[0]: (row[1], row[2]) for row in connection.execute("SELECT id, name, type FROM topics")
            }
            # By row, not by time: the index may be what is damaged.
            for topic, stamp_ns, data in connection.execute(
                "SELECT topic_id, timestamp, data FROM messages ORDER BY rowid"
            ):
                if topic not in topics or not isinstance(data, bytes):
                    continue
                raw = _unpacked(data)
                if raw is None:
                    packed += 1
                    continue
                count += 1
                yield *topics[topic], int(stamp_ns), raw
        except sqlite3.DatabaseError as error:
            losses.append(f"{file.name}: nothing can be read after {count} messages ({error})")
    _say_packed(file, packed, losses)


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Read-only, and as if nobody else had it open: a journal that was left behind is not played."""
    with TemporaryDirectory() as directory:
        whole = _of_whole_pages(file, Path(directory))
        uri = f"{whole.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            yield connection


def _of_whole_pages(file: Path, directory: Path) -> Path:
    """The file, or a copy that does not claim pages that it has not: of such a one SQLite reads nothing.

    https://www.sqlite.org/fileformat.html, section 1.3.
    """
    with file.open("rb") as stream:
        header = stream.read(100)
    if len(header) < 100:
        return file
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = file.stat().st_size // max(page_size, 1)
    if page_size < 512 or int.from_bytes(header[28:32], "big") <= pages:
        return file
    copy = directory / file.name
    shutil.copyfile(file, copy)
    with copy.open("r+b") as stream:
        stream.truncate(pages * page_size)
        stream.seek(28)
        stream.write(pages.to_bytes(4, "big"))
    return copy


def _say_packed(file: Path, count: int, losses: list[str]) -> None:
    if count:
        losses.append(
            f"{file.name}: {count} compressed messages are left out; they are damaged, or unpack to more "
            f"than {unpacking.LARGEST_RECORD} bytes"
        )


def _unpacked(data: bytes) -> bytes | None:
    """A message as it was before rosbag2 compressed it; None if that cannot be undone."""
    if not data.startswith(ZSTD_MAGIC):
        return data
    try:
        return unpacking.from_zstd(data)
    except (zstandard.ZstdError, ValueError):
        return None
