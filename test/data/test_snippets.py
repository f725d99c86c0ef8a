"""Snippets on disk: whole or not there, within the quota, and no disk holds anybody up."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from e2e_perception.core.errors import InputError
from e2e_perception.core.snippets import RawMessage, StackFacts, TriggerEvent, Window
from e2e_perception.data.bag_salvage import SalvagedBag
from e2e_perception.data.bags import BagSource, BagWriter, project_typestore
from e2e_perception.data.snippet_writer import MOST_WAITING, SnippetWriter
from e2e_perception.data.snippets import (
    EVENT,
    LOCK,
    UNFINISHED,
    SnippetInfo,
    SnippetStore,
    read_info,
    size_of,
    snippet_name,
)

SECOND = 10**9
START = 1_768_644_902_120_000_000  # 2026-01-17 10:15:02.120 UTC
STRING = "std_msgs/msg/String"
PATIENCE_S = 60.0
STORE = project_typestore()
FACTS = StackFacts(bundle="tiny 0123", backend="onnxruntime", rig="tiny")


def text(size: int = 10) -> bytes:
    String = STORE.types[STRING]
    return bytes(STORE.serialize_cdr(String("x" * size), STRING))


def event(at_s: float = 0.0, rule: str = "cyclist", priority: int = 0) -> TriggerEvent:
    at_ns = START + round(at_s * SECOND)
    return TriggerEvent(
        rule=rule, priority=priority, reason="why", stamp_ns=at_ns, now_ns=at_ns, signals={"speed": 3.0}
    )


def message(at_s: float, topic: str = "/said", size: int = 10, latch: str | None = None) -> RawMessage:
    return RawMessage(topic, STRING, START + round(at_s * SECOND), text(size), latch)


class Told:
    """What a writer says."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.kept: list[tuple[Path, SnippetInfo]] = []
        self.lost: Counter[str] = Counter()
        self.solved = 0
        self.happened = threading.Condition()

    def problem(self, sentence: str) -> None:
        with self.happened:
            self.problems.append(sentence)
            self.happened.notify_all()

    def keep(self, path: Path, info: SnippetInfo) -> None:
        with self.happened:
            self.kept.append((path, info))
            self.happened.notify_all()

    def lose(self, cause: str, count: int) -> None:
        with self.happened:
            self.lost[cause] += count
            self.happened.notify_all()

    def solve(self) -> None:
        with self.happened:
            self.solved += 1
            self.happened.notify_all()

    def wait(self, condition: Callable[[], Any]) -> None:
        with self.happened:
            assert self.happened.wait_for(condition, PATIENCE_S), vars(self)


def writer(path: Path, told: Told, *, quota: int = 10**8, max_bytes: int = 10**7) -> SnippetWriter:
    return SnippetWriter(
        SnippetStore(path, quota),
        FACTS,
        max_bytes=max_bytes,
        on_problem=told.problem,
        on_solved=told.solve,
        on_kept=told.keep,
        on_lost=told.lose,
    )


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running(tmp_path: Path, told: Told) -> Iterator[SnippetWriter]:
    running = writer(tmp_path / "snippets", told)
    running.start()
    yield running
    assert running.close(PATIENCE_S)


def feed(sink: SnippetWriter, first: TriggerEvent, *, count: int = 5, size: int = 10) -> None:
    """A whole snippet."""
    at_s = (first.now_ns - START) / SECOND
    sink.begin(first)
    for k in range(count):
        sink.add(message(at_s + 0.1 * k, size=size))
    sink.finish(Window((first,), first.now_ns, first.now_ns + SECOND))


def finished(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.name not in (UNFINISHED, LOCK))


# ------------------------------------------------------------------ what is written


def test_a_snippet_is_a_bag_with_the_bytes_that_came_and_says_why_it_is_there(
    running: SnippetWriter, told: Told, tmp_path: Path
) -> None:
    sent = [message(0.0, "/tf", latch=""), message(0.1, size=33), message(0.2, size=44)]
    later = event(0.2, "stopped", priority=4)
    running.begin(event())
    for one in sent:
        running.add(one)
    running.extend(later)
    running.finish(Window((event(), later), START, START + SECOND, ((3, 4),), "the clock was set back"))
    told.wait(lambda: told.kept)
    ((path, info),) = told.kept
    assert path == tmp_path / "snippets" / "20260117T101502.120Z-cyclist"
    assert path.name == snippet_name(event())
    with BagSource(path) as bag:
        assert list(bag.raw_messages()) == [(m.topic, m.type_name, m.arrival_ns, m.cdr) for m in sent]
    assert info == read_info(path)
    assert [e.rule for e in info.events] == ["cyclist", "stopped"] and info.priority == 4
    assert (info.messages, info.lost) == ({"/tf": 1, "/said": 2}, {})
    assert (info.bundle, info.backend, info.rig) == ("tiny 0123", "onnxruntime", "tiny")
    assert (info.gaps_ns, info.cut) == (((3, 4),), "the clock was set back")
    assert told.problems == [] and not told.lost


def test_latched_messages_are_offered_to_who_comes_late(
    running: SnippetWriter, told: Told, tmp_path: Path
) -> None:
    running.begin(event())
    running.add(message(0.0, "/tf_static", latch=""))
    running.finish(Window((event(),), START, START))
    told.wait(lambda: told.kept)
    assert "transient_local" in (told.kept[0][0] / "metadata.yaml").read_text(encoding="utf-8")


def test_snippets_of_the_same_instant_do_not_overwrite_each_other(
    running: SnippetWriter, told: Told, tmp_path: Path
) -> None:
    feed(running, event())
    feed(running, event())
    told.wait(lambda: len(told.kept) == 2)
    assert finished(tmp_path / "snippets") == [snippet_name(event()), f"{snippet_name(event())}-2"]


def test_what_is_open_when_the_writer_closes_is_not_finished(tmp_path: Path, told: Told) -> None:
    closing = writer(tmp_path, told)
    closing.start()
    feed(closing, event())
    closing.begin(event(5.0))
    closing.add(message(5.0))
    assert closing.close(PATIENCE_S)
    assert finished(tmp_path) == [snippet_name(event())]
    assert list((tmp_path / UNFINISHED).iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_snippets as t

told = t.Told()
sink = t.writer(Path(sys.argv[1]), told)
sink.start()
t.feed(sink, t.event())
told.wait(lambda: told.kept)
real = t.BagWriter.write_raw
def write_raw(self, *args, **kwargs):
    real(self, *args, **kwargs)
    if self.num_messages == 400:
        os.kill(os.getpid(), signal.SIGKILL)
t.BagWriter.write_raw = write_raw
t.feed(sink, t.event(9.0), count=500, size=10_000)
told.wait(lambda: len(told.kept) == 2)
"""


def test_killed_in_the_middle_no_snippet_looks_finished_and_what_is_whole_can_be_read(
    tmp_path: Path, told: Told
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert finished(tmp_path) == [snippet_name(event())]
    (left,) = (tmp_path / UNFINISHED).iterdir()
    assert SalvagedBag(left).counts["/said"] > 200
    again = writer(tmp_path, told)
    again.start()
    feed(again, event(20.0))
    told.wait(lambda: told.kept)
    assert again.close(PATIENCE_S)
    assert finished(tmp_path) == [snippet_name(event()), snippet_name(event(20.0))]


# ------------------------------------------------------------------ bounds


def test_the_quota_holds_and_the_oldest_of_the_least_priority_makes_room(tmp_path: Path, told: Told) -> None:
    quota = 1_000_000
    sink = writer(tmp_path, told, quota=quota)
    sink.start()
    wanted = [event(0, priority=1), event(10), event(20), event(30), event(40), event(50, priority=2)]
    for number, one in enumerate(wanted):
        feed(sink, one, count=20, size=10_000)
        told.wait(lambda number=number: len(told.kept) > number)
        assert size_of(tmp_path) <= quota + 50_000  # a bag's index comes last
    assert sink.close(PATIENCE_S)
    assert finished(tmp_path) == [snippet_name(e) for e in (wanted[0], wanted[3], wanted[4], wanted[5])]
    assert not told.lost and told.problems == []


def test_a_snippet_never_takes_the_room_of_one_that_matters_more(tmp_path: Path, told: Told) -> None:
    sink = writer(tmp_path, told, quota=500_000)
    sink.start()
    feed(sink, event(0, priority=5), count=30, size=10_000)
    feed(sink, event(10, priority=3), count=30, size=10_000)
    told.wait(lambda: len(told.kept) == 2)
    feed(sink, event(20, priority=0), count=1, size=400_000)
    told.wait(lambda: told.problems)
    assert sink.close(PATIENCE_S)
    assert finished(tmp_path) == [snippet_name(event(0)), snippet_name(event(10))]
    second = told.kept[1][1]
    assert second.messages["/said"] + second.lost["quota"] == 30 and second.lost["quota"] > 5
    assert told.lost["quota"] == second.lost["quota"] + 1
    assert "leaves no room for one of priority 0; raise triggers.quota_mb" in told.problems[0]


def test_what_a_crash_left_makes_room_first(tmp_path: Path, told: Told) -> None:
    sink = writer(tmp_path, told, quota=500_000)
    left = tmp_path / UNFINISHED / "old"
    left.mkdir(parents=True)
    (left / "old.mcap").write_bytes(bytes(300_000))
    sink.start()
    feed(sink, event(0), count=10, size=10_000)
    told.wait(lambda: len(told.kept) == 1)
    assert left.is_dir()
    feed(sink, event(10), count=20, size=10_000)
    told.wait(lambda: len(told.kept) == 2)
    assert sink.close(PATIENCE_S)
    assert not left.exists() and len(finished(tmp_path)) == 2


def test_other_directories_are_neither_counted_nor_removed(tmp_path: Path, told: Told) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(bytes(10**6))
    sink = writer(tmp_path, told, quota=300_000)
    sink.start()
    for k in range(4):
        feed(sink, event(10.0 * k), count=10, size=10_000)
    told.wait(lambda: len(told.kept) == 4)
    assert sink.close(PATIENCE_S)
    assert (tmp_path / "mine" / "file").is_file()
    assert finished(tmp_path)[-1] == "mine" and len(finished(tmp_path)) == 3


def test_nobody_waits_for_a_disk_that_hangs_and_the_newest_is_lost_and_counted(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    real = BagWriter.write_raw

    def hang(self: BagWriter, *args: Any, **kwargs: Any) -> None:
        assert disk.wait(PATIENCE_S)
        real(self, *args, **kwargs)

    monkeypatch.setattr(BagWriter, "write_raw", hang)
    sink = writer(tmp_path, told, max_bytes=5 * len(text(100)))
    sink.start()
    feed(sink, event(), count=20, size=100)  # returns although nothing is written
    assert told.lost == {"queue": 15}
    for k in range(1, MOST_WAITING + 2):
        feed(sink, event(10.0 * k), count=1)
    assert told.lost == {"queue": 15 + MOST_WAITING - 1, "refused": 2}
    assert f"{MOST_WAITING} are waiting for {tmp_path}" in told.problems[0]
    assert not sink.close(0.0)
    disk.set()
    assert sink.close(PATIENCE_S)
    assert [i.messages for _, i in told.kept] == [{"/said": 5}]
    assert told.kept[0][1].lost == {"queue": 15}


# ------------------------------------------------------------------ disks that fail


@pytest.mark.parametrize("at_message", [1, 3])
def test_a_full_disk_costs_the_snippet_and_is_told_and_the_next_one_is_kept(
    running: SnippetWriter, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_message: int
) -> None:
    real, count = BagWriter.write_raw, 0

    def full(self: BagWriter, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count >= at_message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(BagWriter, "write_raw", full)
        feed(running, event())
        told.wait(lambda: told.lost["failed"] == 5)
    assert told.problems == [
        f"snippets cannot be written to {tmp_path / 'snippets'}: No space left on device; free or mount the "
        "disk, or set another triggers.directory"
    ]
    assert finished(tmp_path / "snippets") == []
    assert list((tmp_path / "snippets" / UNFINISHED).iterdir()) == []
    feed(running, event(5.0))
    told.wait(lambda: told.solved)
    assert finished(tmp_path / "snippets") == [snippet_name(event(5.0))]


def test_a_disk_that_fails_at_the_last_moment_leaves_nothing(
    running: SnippetWriter, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        feed(running, event())
        told.wait(lambda: told.lost["failed"] == 5)
    assert "Input/output error" in told.problems[0]
    assert finished(tmp_path / "snippets") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_buffer_that_a_full_disk_does_not_take_is_told_too(
    running: SnippetWriter, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BagWriter.__init__

    def on_full_disk(self: BagWriter, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        storage: Any = self._writer.storage
        storage.bio.close()
        storage.bio = Path("/dev/full").open("wb")  # noqa: SIM115 - the bag closes it

    with monkeypatch.context() as patch:
        patch.setattr(BagWriter, "__init__", on_full_disk)
        feed(running, event(), count=40, size=100_000)
        told.wait(lambda: told.lost["failed"] == 40)
    assert "No space left on device" in told.problems[0]
    assert finished(tmp_path / "snippets") == []
    feed(running, event(5.0))
    told.wait(lambda: told.kept)


def test_a_directory_that_cannot_be_made_is_told_at_once_and_tried_again(tmp_path: Path, told: Told) -> None:
    place = tmp_path / "not_mounted"
    place.write_text("a file", encoding="utf-8")
    sink = writer(place, told)
    sink.start()
    told.wait(lambda: told.problems)
    assert f"snippets cannot be written to {place}" in told.problems[0]
    place.unlink()
    feed(sink, event())
    told.wait(lambda: told.solved)
    assert sink.close(PATIENCE_S)
    assert finished(place) == [snippet_name(event())]


def test_two_recorders_do_not_share_a_directory(running: SnippetWriter, told: Told, tmp_path: Path) -> None:
    feed(running, event())
    told.wait(lambda: told.kept)
    other = Told()
    second = writer(tmp_path / "snippets", other)
    second.start()
    other.wait(lambda: other.problems)
    assert "another recorder writes to" in other.problems[0]
    assert second.close(PATIENCE_S)


def test_a_type_that_is_not_known_costs_the_snippet_and_is_told(running: SnippetWriter, told: Told) -> None:
    running.begin(event())
    running.add(RawMessage("/odd", "odd_msgs/msg/Odd", START, b"\0"))
    running.finish(Window((event(),), START, START))
    told.wait(lambda: told.problems)
    assert "odd_msgs/msg/Odd" in told.problems[0]


# ------------------------------------------------------------------ what is read back


def test_what_rules_have_fired_is_known_after_a_restart(tmp_path: Path, told: Told) -> None:
    assert SnippetStore(tmp_path / "none", 1).fired_ns() == {}
    sink = writer(tmp_path, told)
    sink.start()
    feed(sink, event(0.0))
    feed(sink, event(9.0))
    feed(sink, event(12.0, "stopped"))
    told.wait(lambda: len(told.kept) == 3)
    assert sink.close(PATIENCE_S)
    assert SnippetStore(tmp_path, 1).fired_ns() == {
        "cyclist": [START, START + 9 * SECOND],
        "stopped": [START + 12 * SECOND],
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged: the file: Invalid JSON"),
        (b"[" * 100_000, "is damaged: the file: Invalid JSON"),
        (b"\xff\xfe\x00", "is damaged: the file"),
        (b'{"format": 1}', "is damaged: events: Field required"),
        (b" " * ((1 << 22) + 1), "has more than 4194304 bytes"),
    ],
)
def test_an_event_file_that_was_not_written_here_is_refused_and_goes_first(
    tmp_path: Path, told: Told, content: bytes, says: str
) -> None:
    odd = tmp_path / "zzz"
    odd.mkdir()
    (odd / EVENT).write_bytes(content)
    (odd / "bag.mcap").write_bytes(bytes(40_000))
    with pytest.raises(InputError, match=says):
        read_info(odd)
    assert SnippetStore(tmp_path, 1).fired_ns() == {}
    sink = writer(tmp_path, told, quota=50_000)
    sink.start()
    feed(sink, event(), count=4, size=12_000)
    told.wait(lambda: told.kept)
    assert sink.close(PATIENCE_S)
    assert finished(tmp_path) == [snippet_name(event())]


def test_unknown_keys_and_another_format_are_refused(running: SnippetWriter, told: Told) -> None:
    feed(running, event())
    told.wait(lambda: told.kept)
    path = told.kept[0][0]
    document = json.loads((path / EVENT).read_text(encoding="utf-8"))
    (path / EVENT).write_text(json.dumps({**document, "extra": 1}), encoding="utf-8")
    with pytest.raises(InputError, match="extra: Extra inputs are not permitted"):
        read_info(path)
    (path / EVENT).write_text(json.dumps({**document, "format": 2}), encoding="utf-8")
    with pytest.raises(InputError, match="has format 2, expected 1"):
        read_info(path)
    with pytest.raises(InputError, match=r"is no snippet: event\.json: No such file"):
        read_info(path.parent)
