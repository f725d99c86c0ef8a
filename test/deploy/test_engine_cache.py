"""Compiled engines on disk: never a wrong one, never half of one, and never a reason not to start."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
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
