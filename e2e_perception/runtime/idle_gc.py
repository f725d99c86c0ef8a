"""Keeps Python's garbage collector out of frames.

By itself the collector runs in the middle of whatever allocates, over everything that was ever loaded. Here
what lives for good is frozen, so that nobody looks at it again, and the rest is collected after a result has
left and no further frame waits. Reference counting, which frees nearly all, goes on as ever.
"""

from __future__ import annotations

import gc

# As Python's own generations: every 10th collection also takes the middle-aged, every 100th the old.
MIDDLE_EVERY, OLD_EVERY = 10, 100
MOST_POSTPONED = 50  # frames without a quiet moment; then it is done all the same


class IdleCollector:
    """Automatic collection is off between `start` and `stop`, for the whole process."""

    def __init__(self) -> None:
        self._running = False
        self._was_enabled = True
        self._postponed = 0
        self._num_collections = 0

    def start(self) -> None:
        """Collect and freeze what is there, and take over."""
        gc.collect()
        gc.freeze()
        self._was_enabled = gc.isenabled()
        gc.disable()
        self._running = True
        self._postponed = self._num_collections = 0

    def stop(self) -> None:
        """Give back to Python what `start` took."""
        if not self._running:
            return
        self._running = False
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()

    def after_frame(self, idle: bool) -> None:
        """Collect, if nothing waits or too much has been put off.

        Args:
            idle: Whether no further frame waits.
        """
        if not self._running:
            return
        self._postponed += 1
        if not idle and self._postponed < MOST_POSTPONED:
            return
        self._postponed = 0
        self._num_collections += 1
        if self._num_collections % OLD_EVERY == 0:
            gc.collect(2)
        elif self._num_collections % MIDDLE_EVERY == 0:
            gc.collect(1)
        else:
            gc.collect(0)
