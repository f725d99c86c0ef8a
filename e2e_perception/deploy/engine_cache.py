"""What a library compiles from a graph, kept on the machine that compiled it.

An entry is a directory named after its key, with the compiled bytes and a sidecar that says what they are:

    <digest of the key>/engine.bin
    <digest of the key>/entry.json    the key in words, size and SHA-256 of engine.bin
    <digest of the key>/<note>.json   what was found out about it since, such as its parity with torch

It appears whole or not at all. What is damaged, was made for another key, or lies where others may write is
never handed out; it is built again, and the log says why. A cache that cannot be written costs time, not
function.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import EngineUnavailableError

Log = Callable[[str], None]

PAYLOAD = "engine.bin"
SIDECAR = "entry.json"
LOCK_WAIT_S = 900.0  # the largest network takes minutes to compile on a small robot
_POLL_S = 0.05


def default_cache_directory() -> Path:
    """`$XDG_CACHE_HOME/e2e_perception/engines`, by default `~/.cache/e2e_perception/engines`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if root.startswith("/") else Path.home() / ".cache"
    return base / "e2e_perception" / "engines"


@dataclass(frozen=True)
class EngineKey:
    """Everything that a compiled engine depends on.

    Attributes:
        parts: In words, such as `onnx: <SHA-256>`, `library: tensorrt_rtx 1.4.0`, `gpu: …`, `precision: …`.
    """

    parts: Mapping[str, str | int | float | bool]

    @property
    def digest(self) -> str:
        """Name of the entry: 32 hexadecimal digits of the SHA-256 over all parts."""
        words = json.dumps(dict(self.parts), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(words.encode()).hexdigest()[:32]


class EngineCache:
    """Compiled engines by key; any number of processes may share one directory."""

    def __init__(self, directory: Path | None = None, log: Log = lambda sentence: None) -> None:
        """Nothing is read or written yet.

        Args:
            directory: Where entries are; None: `default_cache_directory()`.
            log: Gets a sentence whenever an entry is not used, or cannot be kept.
        """
        self.directory = default_cache_directory() if directory is None else directory
        self._log = log

    def get_or_build(self, key: EngineKey, build: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The compiled engine, from the cache or newly built.

        Of several processes that ask for one key at once, one builds and the others wait for it.

        Args:
            key: What is wanted.
            build: Compiles it; its errors are the caller's.
        Returns:
            The engine, and whether it came from the cache.
        Raises:
            EngineUnavailableError: If another process builds the same engine for longer than `LOCK_WAIT_S`.
        """
        found = self._read(key, lambda sentence: None)  # what is wrong is said below, once
        if found is not None:
            return found, True
        with self._locked(key):
            found = self.lookup(key)  # another process may have built it meanwhile
            if found is not None:
                return found, True
            engine = build()
            self._keep(key, engine)
            return engine, False

    def store(self, key: EngineKey, content: bytes) -> None:
        """Keep what came about while an engine ran, in place of what was there; see `lookup`."""
        with self._locked(key):
            self._keep(key, content)

    def lookup(self, key: EngineKey) -> bytes | None:
        """The engine of a key; None if there is none that can be trusted, and the log then says why."""
        return self._read(key, self._log)

    def _read(self, key: EngineKey, log: Log) -> bytes | None:
        entry = self.directory / key.digest
        if not entry.is_dir():
            return None
        try:
            self._check_owner(entry)
            sidecar = json.loads((entry / SIDECAR).read_text(encoding="utf-8"))
            engine = (entry / PAYLOAD).read_bytes()
            if sidecar["key"] != dict(key.parts):
                raise ValueError(f"it was made for {sidecar['key']}")
            if sidecar["size"] != len(engine) or sidecar["sha256"] != hashlib.sha256(engine).hexdigest():
                raise ValueError("its content is not what was written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            log(f"cached engine {entry} is not used: {error}; it is built again")
            return None
        return engine

    def write_note(self, key: EngineKey, name: str, note: Mapping[str, Any]) -> None:
        """Keep something that was found out about an entry; without an entry, or a place for it, nothing."""
        entry = self.directory / key.digest
        if not (entry / SIDECAR).is_file():
            return
        scratch = entry / f".{name}.{os.getpid()}"
        try:
            scratch.write_text(json.dumps(dict(note), indent=1, sort_keys=True) + "\n", encoding="utf-8")
            scratch.replace(entry / f"{name}.json")
        except OSError as error:
            self._log(f"{name} of cached engine {entry} could not be kept: {error}")
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)

    def read_note(self, key: EngineKey, name: str) -> dict[str, Any] | None:
        """What `write_note` kept; None if there is nothing, or nothing legible."""
        entry = self.directory / key.digest
        try:
            self._check_owner(entry)
            note = json.loads((entry / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) else None

    def _keep(self, key: EngineKey, engine: bytes) -> None:
        """Write an entry, whole or not at all."""
        entry = self.directory / key.digest
        sidecar = {"key": dict(key.parts), "size": len(engine), "sha256": hashlib.sha256(engine).hexdigest()}
        try:
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=".building.") as scratch:
                fresh = Path(scratch) / "entry"
                fresh.mkdir(mode=0o700)
                for name, content in (
                    (PAYLOAD, engine),
                    (SIDECAR, (json.dumps(sidecar, indent=1, sort_keys=True) + "\n").encode()),
                ):
                    with (fresh / name).open("wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                if entry.exists():  # stale or damaged, and the lock is ours
                    entry.rename(Path(scratch) / "old")
                fresh.rename(entry)
        except OSError as error:
            self._log(f"engine not kept in {self.directory}: {error}; the next start builds it again")

    @contextlib.contextmanager
    def _locked(self, key: EngineKey) -> Iterator[None]:
        """Hold a key against other processes; the system lets go of it when a process dies."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.directory / f"{key.digest}.lock").open("ab")
        except OSError as error:
            self._log(f"engine cache {self.directory} cannot be used: {error}; the engine is built each time")
            yield
            return
        with lock:
            deadline_s = time.monotonic() + LOCK_WAIT_S
            waited = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waited:
                        self._log(f"another process builds engine {key.digest}; waiting for it")
                        waited = True
                if time.monotonic() > deadline_s:
                    raise EngineUnavailableError(
                        f"another process has been building engine {key.digest} for more than "
                        f"{LOCK_WAIT_S:.0f} s; see who holds {lock.name}, or use another cache directory"
                    )
                time.sleep(_POLL_S)
            yield

    def _check_owner(self, entry: Path) -> None:
        """An engine is code: one that somebody else could have written is none of ours."""
        for path in (self.directory, entry):
            status = path.stat()
            if status.st_uid != os.geteuid():
                raise ValueError(f"{path} belongs to user {status.st_uid}")
            if stat.S_IMODE(status.st_mode) & 0o022:
                raise ValueError(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")

    def prune(self, keep: int) -> int:
        """Remove all but the newest entries.

        Returns:
            How many were removed.
        """
        if not self.directory.is_dir():
            return 0
        entries = [path for path in self.directory.iterdir() if (path / SIDECAR).is_file()]
        entries.sort(key=lambda path: (path / SIDECAR).stat().st_mtime, reverse=True)
        for path in entries[keep:]:
            shutil.rmtree(path, ignore_errors=True)
        return len(entries[keep:])
