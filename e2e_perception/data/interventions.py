"""When the supervisor took over, as the stack's own health messages in a recording say."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque

from e2e_perception.core.results import SafetyState

REMEMBERED = 36000  # health messages; an hour of frames at 10 Hz, clips are finished long before


class Interventions:
    """Health messages in order of their stamps."""

    def __init__(self) -> None:
        self._stamps_ns: deque[int] = deque(maxlen=REMEMBERED)
        self._took_over: deque[bool] = deque(maxlen=REMEMBERED)

    def add(self, stamp_ns: int, state: int) -> None:
        """Take in one message; one that is older than the last says nothing new and is left out.

        Args:
            stamp_ns: Of the frame that it is about [ns].
            state: `SafetyState`; from MINIMAL_RISK on the robot does not drive the network's plan.
        """
        if self._stamps_ns and stamp_ns < self._stamps_ns[-1]:
            return
        self._stamps_ns.append(stamp_ns)
        self._took_over.append(state >= SafetyState.MINIMAL_RISK)

    def share(self, first_ns: int, last_ns: int) -> float | None:
        """Of the messages about an interval [ns], how many say that it took over; None without any."""
        begin, end = bisect_left(self._stamps_ns, first_ns), bisect_right(self._stamps_ns, last_ns)
        if begin == end:
            return None
        return sum(self._took_over[k] for k in range(begin, end)) / (end - begin)
