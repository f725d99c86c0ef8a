"""Which messages end up in which snippet; time is an argument, the disk is a list."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.core.config import TriggersConfig
from e2e_perception.core.snippets import RawMessage, TriggerEvent, Window
from e2e_perception.runtime.capture import Capture

SECOND = 10**9
START = 1_000 * SECOND


@dataclass
class Snippet:
    events: list[TriggerEvent]
    messages: list[RawMessage] = field(default_factory=list)
    window: Window | None = None


class ListSink:
    def __init__(self) -> None:
        self.snippets: list[Snippet] = []

    def begin(self, event: TriggerEvent) -> None:
        assert not self.snippets or self.snippets[-1].window is not None
        self.snippets.append(Snippet([event]))

    def extend(self, event: TriggerEvent) -> None:
        self.snippets[-1].events.append(event)

    def add(self, message: RawMessage) -> None:
        assert self.snippets[-1].window is None
        self.snippets[-1].messages.append(message)

    def finish(self, window: Window) -> None:
        self.snippets[-1].window = window


def config(**changes: float) -> TriggersConfig:
    return TriggersConfig(**{"before_s": 2.0, "after_s": 3.0, "longest_s": 20.0, **changes})  # type: ignore[arg-type]


def event(at_s: float, rule: str = "r") -> TriggerEvent:
    at_ns = START + round(at_s * SECOND)
    return TriggerEvent(rule=rule, priority=0, reason="", stamp_ns=at_ns, now_ns=at_ns, signals={})


def message(at_s: float, topic: str = "/lidar", latch: str | None = None, size: int = 8) -> RawMessage:
    return RawMessage(topic, "std_msgs/msg/String", START + round(at_s * SECOND), bytes(size), latch)


def drive(capture: Capture, seconds: float, events: list[float], from_s: float = 0.0) -> None:
    """A message every half second, and events between."""
    for k in range(round(from_s * 2), round(seconds * 2) + 1):
        capture.take(message(k / 2))
        for at_s in events:
            if k / 2 <= at_s < (k + 1) / 2:
                capture.trigger(event(at_s))


def arrivals(snippet: Snippet) -> list[float]:
    return [(m.arrival_ns - START) / SECOND for m in snippet.messages]


def test_a_snippet_has_what_was_before_its_event_and_what_came_after() -> None:
    sink = ListSink()
    drive(Capture(config(), sink), 20.0, [10.25])
    (snippet,) = sink.snippets
    assert arrivals(snippet) == [k / 2 for k in range(17, 27)]  # 8.25 s to 13.25 s
    assert snippet.window == Window(
        (event(10.25),), START + 8_250_000_000, START + 13_250_000_000
    )  # fmt: skip


def test_events_that_overlap_share_a_snippet_without_gap_or_repetition() -> None:
    for second in (
        10.5,
        13.0,
        14.9,
    ):  # while open, at its end, and where only what was before reaches into it
        sink = ListSink()
        drive(Capture(config(), sink), 30.0, [10.0, second])
        (snippet,) = sink.snippets
        assert [e.now_ns for e in snippet.events] == [event(10.0).now_ns, event(second).now_ns]
        assert arrivals(snippet) == [k / 2 for k in range(16, int((second + 3.0) * 2) + 1)]


def test_events_that_do_not_overlap_have_a_snippet_each() -> None:
    sink = ListSink()
    drive(Capture(config(), sink), 30.0, [10.0, 15.3])
    first, second = sink.snippets
    assert arrivals(first)[-1] == 13.0
    assert arrivals(second) == [k / 2 for k in range(27, 37)]  # 13.3 s to 18.3 s


def test_no_snippet_is_longer_than_allowed_and_the_next_one_repeats_nothing() -> None:
    sink = ListSink()
    drive(Capture(config(longest_s=10.0), sink), 60.0, [10.0 + 2.0 * k for k in range(10)])
    for snippet in sink.snippets:
        assert snippet.window is not None
        assert snippet.window.end_ns - snippet.window.begin_ns <= 10 * SECOND
    everything = [at for snippet in sink.snippets for at in arrivals(snippet)]
    assert everything == [k / 2 for k in range(16, 63)]  # 8 s to 31 s, without gap
    assert sum(len(s.events) for s in sink.snippets) == 10


@given(
    events_ms=st.lists(st.integers(0, 40_000), max_size=8).map(sorted),
    before_s=st.sampled_from([0.0, 1.0, 4.0]),
    after_s=st.sampled_from([0.0, 2.0, 5.0]),
)
def test_everything_around_every_event_is_kept_once_and_in_order(
    events_ms: list[int], before_s: float, after_s: float
) -> None:
    sink, events = ListSink(), [at_ms / 1000 for at_ms in events_ms]
    drive(Capture(config(before_s=before_s, after_s=after_s, longest_s=10.0), sink), 60.0, events)
    got = [at for snippet in sink.snippets for at in arrivals(snippet)]
    wanted = [
        k / 2
        for k in range(121)
        if any(at - before_s * 1000 <= k * 500 <= at + after_s * 1000 for at in events_ms)
    ]
    assert got == sorted(set(got))
    assert got == wanted
    assert all(snippet.window is not None for snippet in sink.snippets)
    assert sum(len(s.window.events) for s in sink.snippets if s.window) == len(events)


def test_what_holds_stands_first_as_it_was_at_the_beginning() -> None:
    sink = ListSink()
    capture = Capture(config(), sink)
    capture.take(RawMessage("/tf_static", "t", 0, b"lidar mount", "lidar"))  # before the clock began
    capture.take(message(1.0, "/route", "", size=1))
    capture.take(message(2.0, "/route", "", size=2))
    capture.take(message(8.2, "/route", "", size=3))
    capture.take(RawMessage("/tf_static", "t", START + 8_300_000_000, b"camera mount", "camera"))
    drive(capture, 20.0, [10.0], from_s=8.5)
    (snippet,) = sink.snippets
    held = [(m.topic, m.latch, len(m.cdr), m.arrival_ns) for m in snippet.messages if m.latch is not None]
    first_ns = START + 8_200_000_000
    assert held == [
        ("/tf_static", "lidar", 11, first_ns),
        ("/route", "", 2, first_ns),
        ("/route", "", 3, first_ns),
        ("/tf_static", "camera", 12, START + 8_300_000_000),
    ]
    assert arrivals(snippet) == sorted(arrivals(snippet))


def test_what_memory_could_not_hold_is_said() -> None:
    sink = ListSink()
    capture = Capture(config(memory_mb=1), sink)
    for k in range(10):
        capture.take(message(8.0 + 0.2 * k, size=300_000))
    capture.trigger(event(9.9))
    capture.close("end")
    (snippet,) = sink.snippets
    assert len(snippet.messages) == 3
    assert snippet.window is not None
    ((first_ns, last_ns),) = snippet.window.gaps_ns
    assert (first_ns, last_ns) == (START + 7_900_000_000, START + 9_200_000_000)


def test_an_end_before_its_time_is_said() -> None:
    sink = ListSink()
    capture = Capture(config(), sink)
    drive(capture, 11.0, [10.0])
    capture.close("the node was deactivated")
    window = sink.snippets[0].window
    assert window is not None
    assert (window.cut, window.end_ns) == ("the node was deactivated", START + 11 * SECOND)
    drive(capture, 30.0, [20.0], from_s=11.5)
    capture.close("the node was deactivated")
    window = sink.snippets[1].window
    assert window is not None and window.cut == ""


def test_a_clock_that_is_set_back_ends_the_snippet_and_what_holds_goes_on_holding() -> None:
    sink = ListSink()
    capture = Capture(config(), sink)
    capture.take(message(9.5, "/route", ""))
    drive(capture, 11.0, [10.0], from_s=10.0)
    drive(capture, 8.0, [3.0], from_s=1.0)
    capture.tick(START + 20 * SECOND)
    before, after = sink.snippets
    assert before.window is not None and before.window.cut == "the clock was set back"
    assert [m.topic for m in after.messages][:2] == ["/route", "/lidar"]
    assert arrivals(after)[1:] == [k / 2 for k in range(2, 13)]


def test_messages_that_overtake_each_other_stay_in_order() -> None:
    sink = ListSink()
    capture = Capture(config(), sink)
    for at_s in (10.0, 9.95, 10.02):
        capture.take(message(at_s))
    capture.trigger(event(10.02))
    capture.close("")
    assert arrivals(sink.snippets[0]) == [10.0, 10.0, 10.02]
