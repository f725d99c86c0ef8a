"""Notices that something takes too long, from a thread that does not depend on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPEAT_S = 0.5


class Watchdog:
    """Calls for help, again and again, while one piece of work is not done within its time."""

    def __init__(
        self,
        limit_s: Callable[[], float],
        on_overdue: Callable[[float], object],
        *,
        repeat_s: float = REPEAT_S,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            limit_s: How long the work may take [s]; asked anew each time, so that it may be changed.
            on_overdue: Told in the watchdog's thread how long it has taken [s]. By the time that it looks the
                work may be done, and the next begun: `is_overdue` says.
            repeat_s: Between two calls about the same work [s].
        """
        self._limit_s = limit_s
        self._on_overdue = on_overdue
        self._repeat_s = repeat_s
        self._changed = threading.Condition()
        self._since_s: float | None = None
        self._called_s: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; call it from another one."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The work is what happens within; one thread at a time."""
        with self._changed:
            self._since_s, self._called_s = time.monotonic(), None
        try:
            yield
        finally:
            with self._changed:
                self._since_s = None

    @property
    def is_overdue(self) -> bool:
        """Whether there is work now, and it has taken too long."""
        with self._changed:
            return self._since_s is not None and time.monotonic() - self._since_s >= self._limit_s()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                wait_s = self._wait_s()
                if wait_s > 0.0:
                    # Whoever begins while this sleeps has its whole time before this wakes.
                    self._changed.wait(wait_s)
                    continue
                assert self._since_s is not None
                self._called_s = time.monotonic()
                taken_s = self._called_s - self._since_s
            self._on_overdue(taken_s)

    def _wait_s(self) -> float:
        """Until there may be something to say; never long, since the limit may be lowered meanwhile."""
        limit_s = self._limit_s()
        if self._since_s is None:
            return min(limit_s, self._repeat_s)
        due_s = self._since_s + limit_s if self._called_s is None else self._called_s + self._repeat_s
        return min(due_s - time.monotonic(), self._repeat_s)
