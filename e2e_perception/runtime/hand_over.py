"""Between the two halves of the pipeline: a bounded queue in which the newest frame wins."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from e2e_perception.runtime.preparation import ReadyFrame

# One that is about to be taken and one behind it: enough for a hiccup of the engine to cost no frame. More
# would only make results older on a machine that is too slow for its sensors.
CAPACITY = 2

Call = Callable[[], object]


class HandOver:
    """Frames, and calls to be made between two of them. Any thread may put, one takes.

    A frame that comes when as many wait as may drives out the oldest; calls are never lost. What is left is
    taken in the order in which it came.
    """

    def __init__(self, capacity: int = CAPACITY, *, on_overtaken: Callable[[], None]) -> None:
        """Start empty.

        Args:
            capacity: Frames that may wait, at least 1.
            on_overtaken: Called for each frame that a newer one drove out.
        Raises:
            ValueError: If the capacity is not positive.
        """
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        self._capacity = capacity
        self._on_overtaken = on_overtaken
        self._items: deque[ReadyFrame | Call] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, frame: ReadyFrame) -> None:
        """Leave a frame; after `close` it is let go."""
        with self._changed:
            if self._closed:
                return
            waiting = [i for i, item in enumerate(self._items) if isinstance(item, ReadyFrame)]
            overtaken = len(waiting) >= self._capacity
            if overtaken:
                del self._items[waiting[0]]
            self._items.append(frame)
            self._changed.notify()
        if overtaken:
            self._on_overtaken()

    def call(self, function: Call) -> None:
        """Leave something to be done between two frames."""
        with self._changed:
            self._items.append(function)
            self._changed.notify()

    def take(self, patience_s: float) -> ReadyFrame | Call | None:
        """What came first; None if nothing does within `patience_s`, and once it is closed."""
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(patience_s)
            return None if self._closed or not self._items else self._items.popleft()

    @property
    def closed(self) -> bool:
        """Whether nothing more will be taken."""
        return self._closed

    def close(self) -> None:
        """Let no more be taken, and wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def left_calls(self) -> list[Call]:
        """After `close`: calls that nobody made, each given once."""
        with self._changed:
            calls = [item for item in self._items if not isinstance(item, ReadyFrame)]
            self._items.clear()
            return calls
