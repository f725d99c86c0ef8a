"""From events to the messages around them: what was before is remembered, what comes after is waited for.

A snippet reaches from `before_s` ahead of its first event to `after_s` past its last. Snippets that would
overlap are one: a snippet is finished only when no event can reach back into it any more. It is never longer
than `longest_s`; an event that would make it so begins another, which repeats nothing. What is said once and
holds (static transforms, calibration, a route) stands at the beginning of every snippet as it was then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from e2e_perception.core.config import TriggersConfig
from e2e_perception.core.snippets import RawMessage, TriggerEvent, Window
from e2e_perception.runtime.ring_buffer import RingBuffer

ARRIVAL_JUMP_NS = 100_000_000  # smaller steps back are threads overtaking each other
MOST_STANDING = 256  # messages that hold; more than any robot has frames and cameras


class SnippetSink(Protocol):
    """Takes what belongs to a snippet. Nothing of it may wait for a disk."""

    def begin(self, event: TriggerEvent) -> None:
        """A snippet begins; what is added from now on belongs to it."""

    def extend(self, event: TriggerEvent) -> None:
        """The snippet is of this event, too."""

    def add(self, message: RawMessage) -> None:
        """One message, in order of arrival."""

    def finish(self, window: Window) -> None:
        """Nothing more will come."""


@dataclass
class _Open:
    events: list[TriggerEvent]
    begin_ns: int
    end_ns: int
    gaps_ns: list[tuple[int, int]] = field(default_factory=list)


class Capture:
    """Remembers, and hands on what events make worth keeping. Not safe to use from several threads."""

    def __init__(self, config: TriggersConfig, sink: SnippetSink) -> None:
        self._sink = sink
        self._before_ns, self._after_ns = round(config.before_s * 1e9), round(config.after_s * 1e9)
        self._longest_ns = round(config.longest_s * 1e9)
        # After the end of a snippet, so much has to be remembered until it is known to have ended.
        self._ring = RingBuffer(self._before_ns, config.memory_mb * 1_000_000)
        self._standing: dict[tuple[str, str], RawMessage] = {}
        self._open: _Open | None = None
        self._last_ns = 0
        self._kept_to_ns = 0  # the last snippet has everything up to here

    def take(self, message: RawMessage) -> None:
        """Take in a message. Those that come before time has begun are lost, unless they hold."""
        if message.arrival_ns <= 0:
            self._stand([message])
            return
        self.tick(message.arrival_ns)
        message = replace(message, arrival_ns=max(message.arrival_ns, self._last_ns))
        self._last_ns = message.arrival_ns
        self._stand(self._ring.add(message))
        if self._open is not None and message.arrival_ns <= self._open.end_ns:
            self._sink.add(message)

    def trigger(self, event: TriggerEvent) -> None:
        """Keep what is around an event."""
        self.tick(event.now_ns)
        end_ns = event.now_ns + self._after_ns
        if self._open is not None and end_ns - self._open.begin_ns > self._longest_ns:
            self._open.end_ns = min(self._open.end_ns, max(event.now_ns, self._last_ns))
            self._finish("")
        if self._open is None:
            self._begin(event, end_ns)
            return
        self._open.events.append(event)
        self._sink.extend(event)
        if end_ns > self._open.end_ns:
            self._note_gap(self._open.end_ns + 1)
            waiting = self._ring.between(self._open.end_ns + 1, end_ns)
            self._open.end_ns = end_ns
            self._add_all(waiting)

    def tick(self, now_ns: int) -> None:
        """Let time pass, also while nothing comes."""
        if now_ns < self._last_ns - ARRIVAL_JUMP_NS:
            self.close("the clock was set back")
            self._stand(self._ring.clear())
            self._last_ns = now_ns
            self._kept_to_ns = 0
        elif self._open is not None and now_ns - self._before_ns > self._open.end_ns:
            self._finish("")

    def close(self, why: str) -> None:
        """Finish what is open; `why` it may be cut short."""
        if self._open is not None:
            is_cut = self._last_ns < self._open.end_ns
            self._open.end_ns = min(self._open.end_ns, max(self._last_ns, self._open.begin_ns))
            self._finish(why if is_cut else "")

    def _begin(self, event: TriggerEvent, end_ns: int) -> None:
        begin_ns = max(event.now_ns - self._before_ns, self._kept_to_ns + 1)
        self._open = _Open([event], begin_ns, end_ns)
        self._note_gap(begin_ns)
        standing = dict(self._standing)
        for message in self._ring.between(0, begin_ns - 1):
            if message.latch is not None:
                standing[message.topic, message.latch] = message
        messages = self._ring.between(begin_ns, end_ns)
        first_ns = messages[0].arrival_ns if messages else begin_ns
        self._sink.begin(event)
        self._add_all(replace(message, arrival_ns=first_ns) for message in standing.values())
        self._add_all(messages)

    def _finish(self, cut: str) -> None:
        assert self._open is not None
        done, self._open = self._open, None
        self._kept_to_ns = done.end_ns
        gaps_ns = tuple(done.gaps_ns)
        self._sink.finish(Window(tuple(done.events), done.begin_ns, done.end_ns, gaps_ns, cut))

    def _note_gap(self, from_ns: int) -> None:
        """What memory should still have since then, and has not."""
        assert self._open is not None
        if self._ring.crowded_out_ns >= from_ns:
            self._open.gaps_ns.append((from_ns, self._ring.crowded_out_ns))

    def _add_all(self, messages: Iterable[RawMessage]) -> None:
        for message in messages:
            self._sink.add(message)

    def _stand(self, left: Iterable[RawMessage]) -> None:
        """Of messages that are remembered no longer, those that hold."""
        for message in left:
            if message.latch is not None:
                self._standing.pop((message.topic, message.latch), None)
                self._standing[message.topic, message.latch] = message
        while len(self._standing) > MOST_STANDING:
            del self._standing[next(iter(self._standing))]
