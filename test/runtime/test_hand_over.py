"""The queue between the halves of the pipeline, against a model of it; and the watchdog beside it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_drive import drive, make
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.runtime.hand_over import HandOver
from e2e_perception.runtime.preparation import ReadyFrame
from e2e_perception.runtime.watchdog import Watchdog

PATIENCE_S = 60.0


def ready_frame() -> ReadyFrame:
    pipeline, _ = make()
    for now_ns, event in drive([0]):
        pipeline.push(event) if hasattr(event, "sensor") else pipeline.push_odometry(event)
        for ready in pipeline.preparation.poll(now_ns):
            return ready
    raise AssertionError("no frame")


FRAME = ready_frame()


def numbered(number: int) -> ReadyFrame:
    return ReadyFrame(FRAME.prepared, FRAME.around, number, 0, 0, 0)


@settings(deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.sampled_from(["put", "call", "take"]), max_size=40),
)
def test_the_newest_frames_and_all_calls_are_taken_in_their_order(capacity: int, steps: list[str]) -> None:
    overtaken: list[None] = []
    queue = HandOver(capacity, on_overtaken=lambda: overtaken.append(None))
    model: list[tuple[str, int]] = []
    made: list[int] = []
    taken: list[tuple[str, int]] = []
    expected: list[tuple[str, int]] = []
    lost = 0
    for number, step in enumerate(steps):
        if step == "put":
            queue.put(numbered(number))
            waiting = [item for item in model if item[0] == "frame"]
            if len(waiting) == capacity:
                model.remove(waiting[0])
                lost += 1
            model.append(("frame", number))
        elif step == "call":
            queue.call(lambda number=number: made.append(number))
            model.append(("call", number))
        else:
            item: Any = queue.take(0.0)
            if isinstance(item, ReadyFrame):
                taken.append(("frame", item.now_ns))
            elif item is not None:
                item()
                taken.append(("call", made[-1]))
            expected += [model.pop(0)] if model else []
        assert len(queue) == len(model)
    assert taken == expected
    assert len(overtaken) == lost
    queue.close()
    assert queue.take(0.0) is None
    for call in queue.left_calls():
        call()
    assert made == [n for n, step in enumerate(steps) if step == "call"]
    assert queue.left_calls() == []


def test_closing_wakes_who_waits_and_lets_further_frames_go() -> None:
    queue = HandOver(on_overtaken=lambda: None)
    taken: list[Any] = []
    waiter = threading.Thread(target=lambda: taken.append(queue.take(PATIENCE_S)))
    waiter.start()
    queue.close()
    waiter.join(PATIENCE_S)
    assert taken == [None]
    queue.put(FRAME)
    assert len(queue) == 0


def test_a_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0, expected at least 1"):
        HandOver(0, on_overtaken=lambda: None)


# ------------------------------------------------------------------ watchdog


def test_the_watchdog_barks_again_and_again_while_the_work_is_not_done_and_counts_anew_for_the_next() -> None:
    barks: list[float] = []
    heard = threading.Condition()

    def bark(taken_s: float) -> None:
        with heard:
            barks.append(taken_s)
            heard.notify_all()

    def wait_for(count: int) -> None:
        with heard:
            assert heard.wait_for(lambda: len(barks) >= count, PATIENCE_S)

    limit_s = [0.02]
    dog = Watchdog(lambda: limit_s[0], bark, repeat_s=0.01)
    dog.start()
    with dog.watching():
        wait_for(3)
    first = list(barks)
    assert first == sorted(first)
    assert first[0] >= 0.02
    with dog.watching():
        wait_for(len(first) + 1)
        assert barks[len(first)] >= 0.02
    dog.stop()


def test_work_in_time_is_left_alone() -> None:
    barks: list[float] = []
    asked = threading.Event()

    def limit_s() -> float:
        asked.set()
        return 3600.0

    dog = Watchdog(limit_s, barks.append, repeat_s=0.001)
    dog.start()
    assert asked.wait(PATIENCE_S)
    for _ in range(100):
        with dog.watching():
            pass
    dog.stop()
    assert barks == []


def test_only_present_work_can_be_overdue() -> None:
    limit_s = [0.0]
    dog = Watchdog(lambda: limit_s[0], lambda taken_s: None)
    assert not dog.is_overdue
    with dog.watching():
        assert dog.is_overdue
        limit_s[0] = 3600.0
        assert not dog.is_overdue
    limit_s[0] = 0.0
    assert not dog.is_overdue


def test_work_that_raises_is_done() -> None:
    barks: list[float] = []
    dog = Watchdog(lambda: 3600.0, barks.append)
    with pytest.raises(OSError, match="gone"), dog.watching():
        raise OSError("gone")
    assert dog._since_s is None


def test_a_limit_that_is_lowered_holds_for_the_work_in_hand() -> None:
    limit_s, called = [3600.0], threading.Event()
    dog = Watchdog(lambda: limit_s[0], lambda taken_s: called.set(), repeat_s=0.01)
    dog.start()
    try:
        with dog.watching():
            limit_s[0] = 0.0
            assert called.wait(60.0)
    finally:
        dog.stop()
