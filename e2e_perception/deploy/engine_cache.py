"""What a library compiles from a graph, kept on the machine that compiled it.

An entry is a directory named after its key, with the compiled bytes and a sidecar that says what they are:

    <digest of the key>/engine.bin
    <digest of the key>/entry.json    the key in words, size and SHA-256 of engine.bin
    <digest of the key>/<note>.json   what was found out about it since, such as its parity with torch

It appears whole or not at all. What is damaged, was made for another key, or lies where others may write is
never handed out; it is built again, and the log says why. A cache that cannot be written costs time, not
function. Whatever is kept pushes out what was not used for longest, beyond `MOST_ENTRIES`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import threading
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
MOST_ENTRIES = 32  # an engine comes with up to three: itself, its kernels, its parity with torch
_STALE_S = 86400.0  # nothing is built for a day
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
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log(f"cached engine {entry} is not used: {error}; it is built again")
            return None
        with contextlib.suppress(OSError):
            os.utime(entry / SIDECAR)  # what is used stays when the cache is pruned
        return engine

    def holds(self, key: EngineKey) -> bool:
        """Whether the next start will find an engine of this key."""
        return self._read(key, lambda sentence: None) is not None

    def rebuild(self, key: EngineKey, build: Callable[[], bytes], why: str) -> bytes:
        """Build what is whole and all the same of no use; the old goes when the new is there.

        Args:
            key: Of the entry.
            build: Compiles it; its errors are the caller's, and leave the old in place.
            why: It is of no use, for the log.
        Raises:
            EngineUnavailableError: As `get_or_build`.
        """
        self._log(f"cached engine {self.directory / key.digest} is of no use: {why}; it is built again")
        with self._locked(key):
            engine = build()
            self._keep(key, engine)
            return engine

    def write_note(self, key: EngineKey, name: str, note: Mapping[str, Any]) -> None:
        """Keep something that was found out about an entry; without an entry, or a place for it, nothing."""
        entry = self.directory / key.digest
        if not (entry / SIDECAR).is_file():
            return
        scratch = entry / f".{name}.{os.getpid()}.{threading.get_ident()}"
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
        except (OSError, ValueError, RecursionError):
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
        else:
            self.prune(MOST_ENTRIES)

    @contextlib.contextmanager
    def _locked(self, key: EngineKey) -> Iterator[None]:
        """Hold a key against other processes; the system lets go of it when a process dies."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._acquire(key)
        except OSError as error:
            self._log(f"engine cache {self.directory} cannot be used: {error}; the engine is built each time")
            yield
            return
        with lock:
            yield

    def _acquire(self, key: EngineKey) -> io.BufferedWriter:
        """The open lock of a key; held, unless the file system has no locks."""
        path = self.directory / f"{key.digest}.lock"
        deadline_s = time.monotonic() + LOCK_WAIT_S
        waited = False
        while True:
            lock = path.open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                if not waited:
                    self._log(f"another process builds engine {key.digest}; waiting for it")
                    waited = True
                if time.monotonic() > deadline_s:
                    raise EngineUnavailableError(
                        f"another process has been building engine {key.digest} for more than "
                        f"{LOCK_WAIT_S:.0f} s; see who holds {path}, or use another cache directory"
                    ) from None
                time.sleep(_POLL_S)  # flock itself waits for ever or not at all
            except OSError as error:  # such as ENOLCK of a network file system
                self._log(f"{path} cannot be locked: {error}; another process may build the same engine too")
                return lock
            else:
                if _is_at(lock, path):
                    return lock
                lock.close()  # somebody pruned the file between opening and locking

    def _check_owner(self, entry: Path) -> None:
        """An engine is code: one that somebody else could have written is none of ours."""
        for path in (self.directory, entry):
            status = path.stat()
            if status.st_uid != os.geteuid():
                raise ValueError(f"{path} belongs to user {status.st_uid}")
            if stat.S_IMODE(status.st_mode) & 0o022:
                mode = stat.S_IMODE(status.st_mode)
                raise ValueError(f"{path} can be written by others (mode {mode:o}); `chmod go-w {path}`")

    def prune(self, keep: int) -> int:
        """Remove all but the entries used last, and what builds that died more than a day ago left behind.

        Any number of processes may do so at once, and beside others that build.

        Returns:
            How many entries were removed.
        """
        used_s = {path.parent: _age_s(path) for path in self.directory.glob(f"*/{SIDECAR}")}
        removed = sorted(used_s, key=lambda entry: used_s[entry])[keep:]
        unfinished = [path for path in self.directory.glob(".building.*") if _age_s(path) > _STALE_S]
        for path in (*removed, *unfinished):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob("*.lock"):
            if _age_s(path) > _STALE_S and not path.with_suffix("").exists():
                # Held while it goes; who opened it before looks again whether it is still there.
                with contextlib.suppress(OSError), path.open("r+b") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
        return len(removed)


def _age_s(path: Path) -> float:
    """Seconds since a file was changed; nothing if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _is_at(file: io.BufferedWriter, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
