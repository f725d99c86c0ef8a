"""Compiled engines on disk: never a wrong one, never half of one, and never a reason not to start."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.errors import EngineUnavailableError
from e2e_perception.deploy import engine_cache
from e2e_perception.deploy.engine_cache import PAYLOAD, SIDECAR, EngineCache, EngineKey

KEY = EngineKey({"onnx": "ab12", "gpu": "SM89", "library": "tensorrt_rtx 1.4", "precision": "float16"})
CONTENT = bytes(range(256)) * 8


def never() -> bytes:
    raise AssertionError("built although it was cached")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> EngineCache:
    return EngineCache(tmp_path / "engines", said.append)


def entry_of(cache: EngineCache) -> Path:
    return cache.directory / KEY.digest


def test_an_engine_is_built_once(cache: EngineCache, said: list[str]) -> None:
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert cache.get_or_build(KEY, never) == (CONTENT, True)
    assert EngineCache(cache.directory).get_or_build(KEY, never) == (CONTENT, True)
    assert said == []
    assert sorted(p.name for p in entry_of(cache).iterdir()) == [PAYLOAD, SIDECAR]


@pytest.mark.parametrize("part", list(KEY.parts))
def test_every_part_of_the_key_counts(cache: EngineCache, part: str) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    other = EngineKey({**KEY.parts, part: "other"})
    assert cache.lookup(other) is None
    assert cache.get_or_build(other, lambda: b"other") == (b"other", False)
    assert cache.lookup(KEY) == CONTENT


def test_the_order_of_a_keys_parts_does_not_count() -> None:
    assert EngineKey(dict(reversed(list(KEY.parts.items())))).digest == KEY.digest


@given(at=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_a_flipped_bit_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    said: list[str] = []
    cache = EngineCache(tmp_path_factory.mktemp("flip") / "engines", said.append)
    cache.get_or_build(KEY, lambda: CONTENT)
    damaged = bytearray(CONTENT)
    damaged[at] ^= 1 << bit
    (entry_of(cache) / PAYLOAD).write_bytes(damaged)
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert "not what was written; it is built again" in said[0]
    assert cache.get_or_build(KEY, never) == (CONTENT, True)


def swap_keys(entry: Path) -> None:
    sidecar = json.loads((entry / SIDECAR).read_text())
    sidecar["key"]["gpu"] = "SM75"
    (entry / SIDECAR).write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda entry: (entry / PAYLOAD).write_bytes(CONTENT[:100]), "not what was written"),
        (lambda entry: (entry / PAYLOAD).unlink(), "No such file"),
        (lambda entry: (entry / SIDECAR).unlink(), "No such file"),
        (lambda entry: (entry / SIDECAR).write_text("{"), "Expecting"),
        (lambda entry: (entry / SIDECAR).write_text("[]"), "indices must be"),
        (lambda entry: (entry / SIDECAR).write_bytes(b"\xff\xfe"), "decode"),
        (swap_keys, "was made for"),
        (lambda entry: entry.chmod(0o777), "can be written by others"),
        (lambda entry: entry.parent.chmod(0o777), "can be written by others"),
    ],
)
def test_what_cannot_be_trusted_is_built_again(
    cache: EngineCache, said: list[str], spoil: Callable[[Path], object], why: str
) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    spoil(entry_of(cache))
    assert cache.lookup(KEY) is None
    assert cache.get_or_build(KEY, lambda: b"anew")[0] == b"anew"
    assert why in said[0] and str(entry_of(cache)) in said[0]


def test_an_entry_of_another_user_is_not_used(
    cache: EngineCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert cache.lookup(KEY) is None
    assert "belongs to user" in said[0]


def test_a_full_disk_costs_the_cache_and_not_the_engine(
    cache: EngineCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert "No space left on device; the next start builds it again" in said[0]
    assert [p.name for p in cache.directory.iterdir()] == [f"{KEY.digest}.lock"]
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert cache.get_or_build(KEY, never) == (CONTENT, True)


def test_a_full_disk_while_a_damaged_entry_is_replaced_leaves_no_engine_to_be_trusted(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    (entry_of(cache) / PAYLOAD).write_bytes(b"")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert cache.lookup(KEY) is None


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines", said.append)
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert "cannot be used: " in said[0] and "is built each time" in said[0]


def test_an_error_of_the_compiler_leaves_nothing_behind(cache: EngineCache) -> None:
    def fails() -> bytes:
        raise EngineUnavailableError("operator Foo is not supported")

    with pytest.raises(EngineUnavailableError, match="Foo"):
        cache.get_or_build(KEY, fails)
    assert not entry_of(cache).exists()
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)


def _build_and_count(directory: Path, barrier: multiprocessing.synchronize.Barrier, count: Path) -> None:
    def build() -> bytes:
        with count.open("ab") as file:
            file.write(b"x")
        return CONTENT

    barrier.wait()
    engine, _ = EngineCache(directory).get_or_build(KEY, build)
    assert engine == CONTENT


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    count = tmp_path / "count"
    processes = [
        context.Process(target=_build_and_count, args=(tmp_path / "engines", barrier, count))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert count.read_bytes() == b"x"


def test_who_waits_too_long_says_for_whom(
    cache: EngineCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cache, "LOCK_WAIT_S", 0.0)

    def build() -> bytes:
        cache.get_or_build(KEY, never)  # a lock is per open file, so that this process can stand for another
        return CONTENT

    with pytest.raises(EngineUnavailableError, match=rf"has been building engine {KEY.digest}"):
        cache.get_or_build(KEY, build)
    assert "waiting for it" in said[0]


def test_notes_are_kept_beside_an_entry_and_go_with_it(cache: EngineCache) -> None:
    cache.write_note(KEY, "parity", {"worst": 1e-3})
    assert cache.read_note(KEY, "parity") is None  # there is no such entry
    cache.get_or_build(KEY, lambda: CONTENT)
    cache.write_note(KEY, "parity", {"worst": 1e-3})
    assert cache.read_note(KEY, "parity") == {"worst": 1e-3}
    (entry_of(cache) / "parity.json").write_text("{")
    assert cache.read_note(KEY, "parity") is None
    cache.write_note(KEY, "parity", {"worst": 2e-3})
    (entry_of(cache) / PAYLOAD).write_bytes(b"")
    cache.get_or_build(KEY, lambda: CONTENT)
    assert cache.read_note(KEY, "parity") is None


def test_notes_of_two_threads_do_not_share_a_scratch_file(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    scratch: list[str] = []
    replace = Path.replace

    def remember(path: Path, target: Path) -> Path:
        scratch.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", remember)
    cache.write_note(KEY, "parity", {"worst": 1.0})
    other = threading.Thread(target=cache.write_note, args=(KEY, "parity", {"worst": 2.0}))
    other.start()
    other.join()
    assert len(scratch) == len(set(scratch)) == 2


def test_a_note_nested_without_end_is_none(cache: EngineCache, said: list[str]) -> None:
    cache.get_or_build(KEY, lambda: CONTENT)
    (entry_of(cache) / "parity.json").write_text("[" * 100_000)
    assert cache.read_note(KEY, "parity") is None
    (entry_of(cache) / SIDECAR).write_text("[" * 100_000)
    assert cache.lookup(KEY) is None
    assert "is not used" in said[0]


def test_what_is_of_no_use_goes_when_there_is_something_in_its_place(
    cache: EngineCache, said: list[str]
) -> None:
    def failing() -> bytes:
        raise EngineUnavailableError("no")

    cache.get_or_build(KEY, lambda: CONTENT)
    with pytest.raises(EngineUnavailableError, match="no"):
        cache.rebuild(KEY, failing, "the library cannot load it")
    assert cache.get_or_build(KEY, never) == (CONTENT, True)
    assert cache.rebuild(KEY, lambda: b"new", "the library cannot load it") == b"new"
    assert cache.get_or_build(KEY, never) == (b"new", True)
    assert said == 2 * [
        f"cached engine {entry_of(cache)} is of no use: the library cannot load it; it is built again"
    ]


@pytest.mark.parametrize("umask", [0o002, 0o000])
def test_a_generous_umask_opens_the_cache_to_nobody(cache: EngineCache, said: list[str], umask: int) -> None:
    before = os.umask(umask)
    try:
        cache.get_or_build(KEY, lambda: CONTENT)
    finally:
        os.umask(before)
    for path in (cache.directory, entry_of(cache)):
        assert path.stat().st_mode & 0o077 == 0
    assert cache.get_or_build(KEY, never) == (CONTENT, True)
    cache.directory.chmod(0o775)
    assert cache.lookup(KEY) is None
    assert f"(mode 775); `chmod go-w {cache.directory}`; it is built again" in said[0]


def test_a_file_system_without_locks_costs_no_engine(
    cache: EngineCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(engine_cache.fcntl, "flock", no_locks)
    assert cache.get_or_build(KEY, lambda: CONTENT) == (CONTENT, False)
    assert cache.get_or_build(KEY, never) == (CONTENT, True)
    assert len(said) == 1 and "cannot be locked" in said[0] and os.strerror(errno.ENOLCK) in said[0]


def test_a_lock_that_was_removed_while_it_was_opened_is_opened_again(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = cache.directory / f"{KEY.digest}.lock"
    flock = engine_cache.fcntl.flock
    removals = iter([lock])

    def removed_before(file: object, operation: int) -> None:
        for path in removals:
            path.unlink()
        flock(file, operation)

    def build() -> bytes:
        with lock.open("ab") as file, pytest.raises(BlockingIOError):  # what is held is what others see
            flock(file, engine_cache.fcntl.LOCK_EX | engine_cache.fcntl.LOCK_NB)
        return CONTENT

    monkeypatch.setattr(engine_cache.fcntl, "flock", removed_before)
    assert cache.get_or_build(KEY, build) == (CONTENT, False)


def test_the_cache_does_not_grow_without_end(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "MOST_ENTRIES", 3)
    keys = [EngineKey({"onnx": str(i)}) for i in range(5)]
    for age, key in zip(range(500, 0, -100), keys, strict=True):
        cache.get_or_build(key, lambda: CONTENT)
        then = time.time() - age
        os.utime(cache.directory / key.digest / SIDECAR, (then, then))
        assert cache.get_or_build(keys[0], never)[1]  # in use, and so never the one to go
    assert [cache.holds(key) for key in keys] == [True, False, False, True, True]


def test_what_dead_builds_left_goes_after_a_day_and_what_lives_stays(cache: EngineCache) -> None:
    cache.directory.mkdir(parents=True)
    old, young = (cache.directory / f".building.{name}" for name in ("old", "young"))
    locks = {name: cache.directory / f"{name}.lock" for name in ("orphan", "fresh", "held", "of_entry")}
    for path in (old, young, cache.directory / "of_entry"):
        (path / "entry").mkdir(parents=True)
    for path in locks.values():
        path.touch()
    yesterday = time.time() - 2 * 86400
    for path in (old, locks["orphan"], locks["held"], locks["of_entry"]):
        os.utime(path, (yesterday, yesterday))
    with locks["held"].open("ab") as held:
        engine_cache.fcntl.flock(held, engine_cache.fcntl.LOCK_EX)
        assert cache.prune(32) == 0
    assert (old.exists(), young.exists()) == (False, True)
    assert [name for name, path in locks.items() if not path.exists()] == ["orphan"]


def test_pruning_keeps_the_newest(cache: EngineCache) -> None:
    keys = [EngineKey({"onnx": str(i)}) for i in range(4)]
    for age, key in enumerate(keys):
        cache.get_or_build(key, lambda: CONTENT)
        os.utime(cache.directory / key.digest / SIDECAR, (age, age))
    assert cache.prune(2) == 2
    assert [cache.lookup(key) is not None for key in keys] == [False, False, True, True]
    assert EngineCache(cache.directory / "absent").prune(0) == 0


def test_the_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().directory == tmp_path / "e2e_perception" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EngineCache().directory == tmp_path / ".cache" / "e2e_perception" / "engines"
