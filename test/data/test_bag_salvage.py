"""Bags that are cut off, altered or hostile: what is whole is read, what is lost is said."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import DamagedBagError, InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.sensor_messages import ODOMETRY_TYPE, odometry_message
from e2e_perception.data import unpacking
from e2e_perception.data.bag_salvage import SalvagedBag
from e2e_perception.data.bags import BagSource, project_typestore, storage_files
from e2e_perception.data.message_factory import RosbagsFactory

START = 1_700_000_000_000_000_000
STEP = 20_000_000
COUNT = 120


@lru_cache(maxsize=1)
def odometry() -> tuple[bytes, ...]:
    store = project_typestore()
    make = RosbagsFactory(store)
    states = [
        EgoState(START + k * STEP, SE3.planar(0.2 * k, 0.0, 0.0), np.array([10.0, 0.0, 0.0]), 0.0)
        for k in range(COUNT)
    ]
    messages = [odometry_message(make, state, "base_link") for state in states]
    return tuple(bytes(store.serialize_cdr(message, ODOMETRY_TYPE)) for message in messages)


def write_mcap(
    path: Path, compression: CompressionType = CompressionType.ZSTD, messages: range = range(COUNT)
) -> Path:
    """Several small chunks."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=8192, compression=compression)
        writer.start("ros2")
        schema = writer.register_schema(ODOMETRY_TYPE, "ros2msg", b"")
        channel = writer.register_channel("/odom", "cdr", schema)
        for k in messages:
            raw = odometry()[k]
            writer.add_message(channel, START + k * STEP, raw, START + k * STEP)
        writer.finish()
    return path


def write_sqlite(path: Path) -> Path:
    store = project_typestore()
    with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/odom", ODOMETRY_TYPE, typestore=store)
        for k, raw in enumerate(odometry()):
            writer.write(connection, START + k * STEP, raw)
    (file,) = path.glob("*.db3")
    return file


def positions(bag: SalvagedBag) -> list[float]:
    return [message.message.pose.pose.position.x for message in bag.messages()]


@pytest.mark.parametrize("compression", list(CompressionType))
def test_of_a_whole_bag_everything_is_read(tmp_path: Path, compression: CompressionType) -> None:
    bag = SalvagedBag(write_mcap(tmp_path / "whole.mcap", compression))
    assert bag.counts == {"/odom": COUNT} and bag.types == {"/odom": ODOMETRY_TYPE}
    assert (bag.start_ns, bag.end_ns) == (START, START + (COUNT - 1) * STEP)
    np.testing.assert_allclose(positions(bag), 0.2 * np.arange(COUNT))
    assert bag.losses == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mcap(tmp_path_factory.mktemp("bags") / "whole.mcap")


@given(share=st.floats(0.0, 0.999))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_a_bag_that_is_cut_off_the_beginning_is_read(tmp_path: Path, whole: Path, share: float) -> None:
    data = whole.read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError):
        BagSource(cut)
    if share < 0.2:
        with suppress(InputError):
            SalvagedBag(cut)
        return
    bag = SalvagedBag(cut)
    read = positions(bag)
    np.testing.assert_allclose(read, 0.2 * np.arange(len(read)))
    assert len(read) == bag.counts["/odom"] >= share * COUNT - 60
    assert len(bag.losses) == 1 and "cut off or damaged" in bag.losses[0]


@given(position=st.integers(60, 10**6), bit=st.integers(0, 7))
@example(position=304803, bit=3)  # a chunk that says that it is something else
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_costs_a_chunk_at_most_and_is_noticed(
    tmp_path: Path, whole: Path, position: int, bit: int
) -> None:
    data = bytearray(whole.read_bytes())
    position %= len(data)
    data[position] ^= 1 << bit
    altered = tmp_path / "altered.mcap"
    altered.write_bytes(data)
    try:
        bag = SalvagedBag(altered)
    except InputError:
        return
    read = positions(bag)
    assert set(np.round(np.array(read) / 0.2).astype(int).tolist()) <= set(range(COUNT))
    assert len(read) == COUNT or bag.losses, "what is lost is said"


def test_a_damaged_chunk_is_left_out_and_the_others_are_read(tmp_path: Path, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 4] = b"\xff\xff\xff\xff"
    altered = tmp_path / "altered.mcap"
    altered.write_bytes(data)
    with BagSource(altered) as source, pytest.raises(DamagedBagError, match="is damaged after"):
        list(source.messages())
    bag = SalvagedBag(altered)
    read = positions(bag)
    assert 60 < len(read) < COUNT and read[-1] == pytest.approx(0.2 * (COUNT - 1))
    assert any("a chunk is damaged and left out" in loss for loss in bag.losses)


def test_of_split_bags_without_metadata_all_files_are_read(tmp_path: Path, whole: Path) -> None:
    data = whole.read_bytes()
    bag = tmp_path / "split"
    bag.mkdir()
    shutil.copy(whole, bag / "split_0.mcap")
    (bag / "split_1.mcap").write_bytes(data[: len(data) // 2])
    salvaged = SalvagedBag(bag)
    assert COUNT < salvaged.num_messages < 2 * COUNT
    assert "split_1.mcap" in salvaged.losses[0]
    with pytest.raises(DamagedBagError, match=r"no metadata\.yaml and split_0\.mcap, split_1\.mcap"):
        BagSource(bag)
    assert [file.name for file in storage_files(bag)] == ["split_0.mcap", "split_1.mcap"]


def test_files_of_a_split_bag_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write_mcap(tmp_path / f"drive_{number}.mcap", messages=range(number, number + 1))
    np.testing.assert_allclose(positions(SalvagedBag(tmp_path)), [0.2, 0.4, 2.0])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_sqlite_is_read_as_far_as_it_goes(tmp_path: Path, share: float) -> None:
    file = write_sqlite(tmp_path / "bag")
    data = file.read_bytes()
    cut = tmp_path / "cut.db3"
    cut.write_bytes(data[: int(share * len(data))])
    bag = SalvagedBag(cut)
    read = positions(bag)
    np.testing.assert_allclose(read, 0.2 * np.arange(len(read)))
    assert 0 < len(read) < COUNT
    assert "cut.db3" in bag.losses[0]


def test_messages_that_were_compressed_one_by_one_are_unpacked(tmp_path: Path) -> None:
    file = write_sqlite(tmp_path / "bag")
    pack = zstandard.ZstdCompressor().compress
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT id, data FROM messages").fetchall()
        connection.executemany("UPDATE messages SET data=? WHERE id=?", [(pack(d), i) for i, d in rows])
    np.testing.assert_allclose(positions(SalvagedBag(file)), 0.2 * np.arange(COUNT))


def chunk(compression: bytes, data: bytes, declared: int) -> bytes:
    body = struct.pack("<QQQI", START, START, declared, 0)
    body += struct.pack("<I", len(compression)) + compression + struct.pack("<Q", len(data)) + data
    return struct.pack("<BQ", 6, len(body)) + body


def after_the_header(whole: Path) -> tuple[bytes, bytes]:
    data = whole.read_bytes()
    (length,) = struct.unpack("<Q", data[9:17])
    return data[: 17 + length], data[17 + length :]


@pytest.mark.parametrize("bomb", ["zstd", "zstd of unknown size", "lz4", "declared"])
def test_what_unpacks_to_more_than_is_believed_is_left_out(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    monkeypatch.setattr(unpacking, "LARGEST_RECORD", 1 << 20)
    zeros = bytes(64 << 20)
    if bomb == "lz4":
        hostile = chunk(b"lz4", lz4.frame.compress(zeros), 100)
    elif bomb == "declared":
        hostile = chunk(b"zstd", b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 40, 1 << 60)
    else:
        writer = zstandard.ZstdCompressor(write_content_size=bomb == "zstd")
        hostile = chunk(b"zstd", writer.compress(zeros), 100)
    head, rest = after_the_header(whole)
    file = tmp_path / "hostile.mcap"
    file.write_bytes(head + hostile + rest)
    bag = SalvagedBag(file)
    assert bag.counts == {"/odom": COUNT}
    assert len(bag.losses) == 1 and "damaged and left out" in bag.losses[0]


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
def test_a_whole_bag_whose_chunk_unpacks_to_more_than_is_believed_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: CompressionType
) -> None:
    file = tmp_path / "bomb.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream, compression=compression)
        writer.start("ros2")
        schema = writer.register_schema(ODOMETRY_TYPE, "ros2msg", b"")
        writer.add_message(
            writer.register_channel("/odom", "cdr", schema), START, odometry()[0] + bytes(64 << 20), START
        )
        writer.finish()
    monkeypatch.setattr(unpacking, "LARGEST_RECORD", 1 << 20)
    refused = pytest.raises(DamagedBagError, match=r"after 0 messages.*unpacks to more than 1048576 bytes")
    with largest_allocation(8 << 20), BagSource(file) as source, refused:
        list(source.messages())


def packed_bag(path: Path, mode: CompressionMode, raw: bytes) -> Path:
    store = project_typestore()
    writer = Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/odom", ODOMETRY_TYPE, typestore=store)
        writer.write(connection, START, odometry()[0])
        writer.write(connection, START + STEP, raw)
        writer.write(connection, START + 2 * STEP, odometry()[2])
    return path


def test_a_message_that_unpacks_to_more_than_is_believed_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = packed_bag(tmp_path / "bag", CompressionMode.MESSAGE, odometry()[1] + bytes(64 << 20))
    monkeypatch.setattr(unpacking, "LARGEST_RECORD", 1 << 20)
    refused = pytest.raises(DamagedBagError, match=r"after 1 messages.*unpacks to more than 1048576 bytes")
    with largest_allocation(8 << 20), BagSource(bag) as source, refused:
        list(source.messages())
    salvaged = SalvagedBag(bag)
    assert salvaged.counts == {"/odom": 2}
    assert len(salvaged.losses) == 1 and "1 compressed messages are left out" in salvaged.losses[0]


@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_what_rosbag2_compressed_is_read(tmp_path: Path, mode: CompressionMode) -> None:
    with BagSource(packed_bag(tmp_path / "bag", mode, odometry()[1])) as source:
        found = [message.message.pose.pose.position.x for message in source.messages()]
    np.testing.assert_allclose(found, [0.0, 0.2, 0.4])


def test_a_file_that_unpacks_to_more_than_a_recording_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = packed_bag(tmp_path / "bag", CompressionMode.FILE, odometry()[1] + bytes(64 << 20))
    monkeypatch.setattr(unpacking, "LARGEST_RECORD", 1 << 20)
    opened = []
    monkeypatch.setattr("e2e_perception.data.bags.AnyReader", lambda *_, **__: opened.append(True))
    with pytest.raises(InputError, match=r"bag\.db3\.zstd of \d+ bytes unpacks to more than"):
        BagSource(bag)
    assert not opened, "rosbags would have unpacked it to the disk"


@contextmanager
def largest_allocation(limit: int) -> Iterator[None]:
    """Python's objects never took more than so many bytes [bytes] inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [1 << 29, 1 << 60, (1 << 64) - 1])
def test_a_record_of_a_size_beyond_belief_ends_the_file(tmp_path: Path, whole: Path, length: int) -> None:
    head, rest = after_the_header(whole)
    file = tmp_path / "hostile.mcap"
    file.write_bytes(head + struct.pack("<BQ", 6, length) + rest)
    with pytest.raises(InputError, match=r"nothing of bag .* can be read"):
        SalvagedBag(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"junk.mcap is empty \(0 bytes\)"),
        (b"junk", "junk.mcap is no MCAP file: it does not begin with MCAP's magic bytes"),
        (b"\x89MCAP0\r\n" + 100 * b"\x01", "nothing of its last 108 of 108 bytes"),
    ],
    ids=["empty", "junk", "magic alone"],
)
def test_of_a_file_that_is_no_bag_it_is_said_why(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "junk.mcap"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        SalvagedBag(file)


def test_messages_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "odd.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start("ros2")
        channel = writer.register_channel(
            "/odom", "cdr", writer.register_schema(ODOMETRY_TYPE, "ros2msg", b"")
        )
        for k, raw in enumerate(odometry()[:10]):
            data = raw if k % 2 else raw[:30] + struct.pack("<I", 0xFFFFFFFF) * 3
            writer.add_message(channel, START + k * STEP, data, START + k * STEP)
        writer.finish()
    bag = SalvagedBag(file)
    assert len(positions(bag)) == 5
    assert bag.losses == ["/odom: 5 messages cannot be decoded"]


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bag at"):
        SalvagedBag(tmp_path / "absent.mcap")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"holds no \.mcap or \.db3 file"):
        SalvagedBag(empty)
    (empty / "a.mcap.zstd").write_bytes(b"x")
    with pytest.raises(InputError, match="compressed as a whole"):
        SalvagedBag(empty)
    text = tmp_path / "text.mcap"
    text.write_text("hello")
    with pytest.raises(InputError, match="nothing of bag"):
        SalvagedBag(text)
