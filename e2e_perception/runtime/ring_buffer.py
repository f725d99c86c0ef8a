"""The last seconds of serialised messages, bounded by time and by bytes."""

from __future__ import annotations

from collections import deque

from e2e_perception.core.snippets import RawMessage


class RingBuffer:
    """Messages in order of arrival; the oldest leave first.

    Attributes:
        max_ns: Between the oldest and the newest message at most [ns].
        max_bytes: Of all messages' contents at most.
        num_bytes: Of all messages' contents now.
        crowded_out_ns: Arrival of the newest message that left for want of bytes, before it was old [ns]; 0:
            none did.
    """

    def __init__(self, max_ns: int, max_bytes: int) -> None:
        self.max_ns, self.max_bytes = max_ns, max_bytes
        self.num_bytes = 0
        self.crowded_out_ns = 0
        self._messages: deque[RawMessage] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: RawMessage) -> list[RawMessage]:
        """Append a message.

        Returns:
            Those that had to leave, oldest first. A message that alone is too large leaves at once, and no
            other for it.
        Raises:
            ValueError: If it arrived before the newest one.
        """
        if self._messages and message.arrival_ns < self._messages[-1].arrival_ns:
            raise ValueError(
                f"a message of {message.topic} arrived at {message.arrival_ns} ns, before the newest at "
                f"{self._messages[-1].arrival_ns} ns; expected order of arrival"
            )
        left = []
        while self._messages and message.arrival_ns - self._messages[0].arrival_ns > self.max_ns:
            left.append(self._pop())
        if len(message.cdr) > self.max_bytes:
            self.crowded_out_ns = message.arrival_ns  # none that was crowded out before is newer
            return [*left, message]
        while self.num_bytes + len(message.cdr) > self.max_bytes:
            left.append(self._pop())
            self.crowded_out_ns = max(self.crowded_out_ns, left[-1].arrival_ns)
        self._messages.append(message)
        self.num_bytes += len(message.cdr)
        return left

    def between(self, begin_ns: int, end_ns: int) -> list[RawMessage]:
        """Messages that arrived in a time, both ends inclusive [ns], in order."""
        return [message for message in self._messages if begin_ns <= message.arrival_ns <= end_ns]

    def clear(self) -> list[RawMessage]:
        """Forget all messages, and give them back; time may begin anew."""
        left = list(self._messages)
        self._messages.clear()
        self.num_bytes = self.crowded_out_ns = 0
        return left

    def _pop(self) -> RawMessage:
        oldest = self._messages.popleft()
        self.num_bytes -= len(oldest.cdr)
        return oldest
