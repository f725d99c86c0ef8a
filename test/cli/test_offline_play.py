"""Offline play keeps every deadline at its own instant, whatever the spacing of the events."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.cli.offline import IDLE_CHECK_NS, Event, play
from e2e_perception.core.config import StackConfig
from e2e_perception.core.samples import SensorMessage


class WaitingStack:
    """Stands in for the pipeline: each message becomes a result exactly `wait_ns` after it arrived."""

    def __init__(self, wait_ns: int) -> None:
        self.wait_ns = wait_ns
        self.config = StackConfig()
        self.waiting: list[int] = []
        self.idle_at: list[int] = []

    def push(self, message: SensorMessage) -> None:
        self.waiting.append(message.arrival_ns + self.wait_ns)

    def next_deadline_ns(self) -> int | None:
        return self.waiting[0] if self.waiting else None

    def poll(self, now_ns: int) -> list[Any]:
        due = [deadline for deadline in self.waiting if deadline <= now_ns]
        self.waiting = self.waiting[len(due) :]
        return [(deadline, now_ns) for deadline in due]

    def idle(self, now_ns: int) -> Any:
        self.idle_at.append(now_ns)
        return None


def run(arrivals_ns: list[int], wait_ns: int) -> tuple[list[tuple[int, int]], WaitingStack]:
    stack, results = WaitingStack(wait_ns), []
    events = [Event(t, SensorMessage("top", t, t, None)) for t in arrivals_ns]
    play(stack, events, lambda result, now_ns, is_frame: results.append(result))  # type: ignore[arg-type]
    return results, stack


@given(
    gaps=st.lists(st.integers(0, 400_000_000), min_size=1, max_size=30), wait_ns=st.integers(0, 60_000_000)
)
def test_every_frame_leaves_exactly_at_its_deadline(gaps: list[int], wait_ns: int) -> None:
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    results, _ = run(arrivals, wait_ns)
    assert [deadline for deadline, _ in results] == [t + wait_ns for t in arrivals]
    assert all(now == deadline for deadline, now in results)


def test_silence_is_looked_for_all_through_a_gap() -> None:
    _, stack = run([0, 10 * IDLE_CHECK_NS], 0)
    assert stack.idle_at[:9] == [i * IDLE_CHECK_NS for i in range(1, 10)]


def test_a_deadline_that_never_clears_does_not_hang() -> None:
    class Stuck(WaitingStack):
        def next_deadline_ns(self) -> int | None:
            return 0

        def poll(self, now_ns: int) -> list[Any]:
            return []

    stack = Stuck(0)
    events = [Event(t, SensorMessage("top", t, t, None)) for t in (0, 500_000_000)]
    play(stack, events, lambda result, now_ns, is_frame: None)  # type: ignore[arg-type]


def test_an_arrival_before_the_last_one_is_passed_on_for_the_stack_to_judge() -> None:
    results, _ = run([500_000_000, 100_000_000], 0)
    assert [deadline for deadline, _ in results] == [500_000_000, 100_000_000]
