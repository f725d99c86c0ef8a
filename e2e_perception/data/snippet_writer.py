"""Writes snippets in a thread of its own, so that nobody who drives waits for a disk.

What is waiting for the disk is bounded by bytes; what does not fit is lost, and counted in the snippet.
Whatever goes wrong on the disk costs that snippet and is told; the next one tries again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from e2e_perception import __version__
from e2e_perception.core.errors import InputError
from e2e_perception.core.snippets import RawMessage, StackFacts, TriggerEvent, Window
from e2e_perception.data.bags import BagWriter, project_typestore
from e2e_perception.data.snippets import SnippetInfo, SnippetStore, wipe

OVERHEAD = 64  # [bytes] of a message in a bag, besides its content
MOST_WAITING = 4  # snippets; with a disk that hangs, further ones are refused
QUEUE, QUOTA, REFUSED, FAILED = "queue", "quota", "refused", "failed"  # causes of loss
_STOP = object()


@dataclass
class _Job:
    """One snippet on its way to the disk. `lost` and `priority` are written by who feeds it."""

    event: TriggerEvent
    priority: int
    lost: Counter[str] = field(default_factory=Counter)
    window: Window | None = None


@dataclass
class _Writing:
    job: _Job
    path: Path
    bag: BagWriter
    room: int
    messages: Counter[str] = field(default_factory=Counter)


class SnippetWriter:
    """A `SnippetSink` of the robot. `begin`, `extend`, `add` and `finish` never wait for the disk.

    Attributes:
        facts: For every snippet that is begun from now on; may be replaced.
    """

    def __init__(
        self,
        store: SnippetStore,
        facts: StackFacts,
        *,
        max_bytes: int,
        on_problem: Callable[[str], None],
        on_solved: Callable[[], None],
        on_kept: Callable[[Path, SnippetInfo], None],
        on_lost: Callable[[str, int], None],
    ) -> None:
        """Prepare; `start` starts.

        Args:
            store: Where to; used by the thread alone from `start` to `close`.
            facts: For every snippet.
            max_bytes: Of messages that wait for the disk.
            on_problem, on_solved: Told in a sentence why snippets cannot be written, and when they can again.
            on_kept: Told each finished snippet.
            on_lost: Told a cause, and how many messages are not in a snippet for it.
        """
        self._store, self.facts, self._max_bytes = store, facts, max_bytes
        self._on_problem, self._on_solved = on_problem, on_solved
        self._on_kept, self._on_lost = on_kept, on_lost
        self._wake = threading.Condition()
        self._inbox: deque[tuple[_Job, RawMessage | None] | object] = deque()
        self._waiting_bytes = 0
        self._num_jobs = 0
        self._feeding: _Job | None = None
        self._writing: _Writing | None = None
        self._given_up: _Job | None = None
        self._thread = threading.Thread(target=self._run, name="snippets", daemon=True)

    # --- by who feeds it ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the directory is looked at at once, so that what is wrong with it is known early."""
        self._thread.start()

    def begin(self, event: TriggerEvent) -> None:
        """See `SnippetSink`."""
        with self._wake:
            self._feeding = None
            if self._num_jobs < MOST_WAITING:
                self._feeding = _Job(event, event.priority)
                self._num_jobs += 1
        if self._feeding is None:
            self._on_problem(
                f"snippets: {MOST_WAITING} are waiting for {self._store.path}, further ones are lost; is the "
                "disk slow, or gone?"
            )

    def extend(self, event: TriggerEvent) -> None:
        """See `SnippetSink`."""
        if self._feeding is not None:
            self._feeding.priority = max(self._feeding.priority, event.priority)

    def add(self, message: RawMessage) -> None:
        """See `SnippetSink`."""
        job, cause = self._feeding, ""
        with self._wake:
            if job is None:
                cause = REFUSED
            elif self._waiting_bytes + len(message.cdr) > self._max_bytes:
                job.lost[QUEUE] += 1
                cause = QUEUE
            else:
                self._waiting_bytes += len(message.cdr)
                self._inbox.append((job, message))
                self._wake.notify()
        if cause:
            self._on_lost(cause, 1)

    def finish(self, window: Window) -> None:
        """See `SnippetSink`."""
        job, self._feeding = self._feeding, None
        if job is not None:
            with self._wake:
                job.window = window
                self._inbox.append((job, None))
                self._wake.notify()

    def close(self, patience_s: float) -> bool:
        """Write what is waiting, and end the thread.

        Args:
            patience_s: How long to wait for the disk [s].
        Returns:
            Whether all is written. What is not stays unfinished.
        """
        with self._wake:
            self._inbox.append(_STOP)
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(patience_s)
        return not self._thread.is_alive()

    # --- in the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._tried(self._store.open)
        self._types = project_typestore()  # once; it takes a third of a second
        while True:
            with self._wake:
                while not self._inbox:
                    self._wake.wait()
                item = self._inbox.popleft()
            if not isinstance(item, tuple):
                break
            job, message = item
            if message is None:
                self._finish(job)
            else:
                self._write(job, message)
                with self._wake:
                    self._waiting_bytes -= len(message.cdr)
        if self._writing is not None:
            self._give_up(self._writing.job)
        self._store.close()

    def _write(self, job: _Job, message: RawMessage) -> None:
        if self._writing is None and job is not self._given_up and not self._tried(self._open, job):
            self._give_up(job)
        if job is self._given_up:
            self._on_lost(FAILED, 1)
        elif not self._tried(self._append, message):
            self._give_up(job)
            self._on_lost(FAILED, 1)

    def _open(self, job: _Job) -> None:
        self._store.open()
        path = self._store.begin(job.event)
        self._writing = _Writing(job, path, BagWriter(path, self._types), self._store.room(path))

    def _append(self, message: RawMessage) -> None:
        writing = self._writing
        assert writing is not None
        size = len(message.cdr) + OVERHEAD
        while size > writing.room:
            freed = self._store.make_room(writing.path, writing.job.priority)
            if not freed:
                with self._wake:
                    writing.job.lost[QUOTA] += 1
                self._on_lost(QUOTA, 1)
                return
            writing.room += freed
        writing.room -= size
        writing.bag.write_raw(
            message.topic,
            message.type_name,
            message.arrival_ns,
            message.cdr,
            latched=message.latch is not None,
        )
        writing.messages[message.topic] += 1

    def _finish(self, job: _Job) -> None:
        writing = self._writing
        if writing is not None and self._tried(self._put_in_place, writing):
            self._writing = None
            self._on_solved()
        elif writing is not None:
            self._give_up(job)
        with self._wake:
            self._num_jobs -= 1

    def _put_in_place(self, writing: _Writing) -> None:
        window, job = writing.job.window, writing.job
        assert window is not None
        if not writing.messages:
            raise InputError(
                f"snippets: the quota of {self._store.path} leaves no room for one of priority "
                f"{job.priority}; raise triggers.quota_mb, or take away what is kept there"
            )
        writing.bag.__exit__(None, None, None)
        info = SnippetInfo(
            events=window.events,
            begin_ns=window.begin_ns,
            end_ns=window.end_ns,
            messages=dict(writing.messages),
            lost=dict(job.lost),
            gaps_ns=window.gaps_ns,
            cut=window.cut,
            bundle=self.facts.bundle,
            backend=self.facts.backend,
            stack=__version__,
            rig=self.facts.rig,
        )
        self._on_kept(self._store.finish(writing.path, info), info)

    def _give_up(self, job: _Job) -> None:
        """Remove what there is of a snippet; of what still comes for it nothing is written."""
        writing, self._writing, self._given_up = self._writing, None, job
        if writing is not None:
            with suppress(OSError):  # a full disk does not take the rest of a buffer either
                writing.bag.__exit__(InputError, None, None)
            self._on_lost(FAILED, sum(writing.messages.values()))
            wipe(writing.path)

    def _tried(self, function: Callable[..., None], *arguments: object) -> bool:
        """Whether a function went well; if not, why is told."""
        try:
            function(*arguments)
        except InputError as error:
            self._on_problem(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - whatever a disk or a library does, the robot drives on
            said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._on_problem(
                f"snippets cannot be written to {self._store.path}: {said}; free or mount the disk, or set "
                "another triggers.directory"
            )
            return False
        return True
