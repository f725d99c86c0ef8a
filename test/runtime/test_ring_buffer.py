"""The memory of the last seconds: never over its bounds, always in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.core.snippets import RawMessage
from e2e_perception.runtime.ring_buffer import RingBuffer


def message(arrival_ns: int, size: int, topic: str = "/lidar") -> RawMessage:
    return RawMessage(topic, "sensor_msgs/msg/PointCloud2", arrival_ns, bytes(size))


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), max_size=60),
    max_ns=st.integers(0, 100),
    max_bytes=st.integers(0, 150),
)
def test_it_is_never_over_its_bounds_and_nothing_leaves_out_of_order(
    steps: list[tuple[int, int]], max_ns: int, max_bytes: int
) -> None:
    ring, now_ns, given_in, left = RingBuffer(max_ns, max_bytes), 1, [], []
    for step, size in steps:
        now_ns += step
        given_in.append(message(now_ns, size))
        gone = ring.add(given_in[-1])
        left += gone
        held = ring.between(0, now_ns)
        assert len(held) == len(ring)
        assert ring.num_bytes == sum(len(m.cdr) for m in held) <= max_bytes
        assert all(now_ns - m.arrival_ns <= max_ns for m in held)
        assert [id(m) for m in held] == [id(m) for m in given_in if any(m is h for h in held)]
        # Whoever left was too old, or was crowded out, which is said.
        assert all(now_ns - m.arrival_ns > max_ns or ring.crowded_out_ns >= m.arrival_ns for m in gone)
        # Nothing that is not said to be missing is missing.
        wanted = [
            m for m in given_in if now_ns - max_ns <= m.arrival_ns and m.arrival_ns > ring.crowded_out_ns
        ]
        assert all(any(m is h for h in held) for m in wanted)
    kept_order = [m for m in given_in if any(m is gone for gone in left) and len(m.cdr) <= max_bytes]
    assert [id(m) for m in left if len(m.cdr) <= max_bytes] == [id(m) for m in kept_order]
    assert len(left) + len(ring) == len(given_in)


def test_one_message_that_is_too_large_pushes_nobody_out() -> None:
    ring = RingBuffer(100, 10)
    ring.add(message(1, 6))
    huge = message(2, 11)
    assert ring.add(huge) == [huge]
    assert [m.arrival_ns for m in ring.between(0, 100)] == [1]
    assert ring.crowded_out_ns == 2


def test_a_message_from_before_is_refused() -> None:
    ring = RingBuffer(100, 10)
    ring.add(message(5, 1))
    with pytest.raises(ValueError, match="arrived at 4 ns, before the newest at 5 ns; expected order"):
        ring.add(message(4, 1))


def test_clearing_gives_everything_back_and_time_may_begin_anew() -> None:
    ring = RingBuffer(100, 10)
    ring.add(message(5, 1))
    ring.add(message(7, 2))
    assert [m.arrival_ns for m in ring.clear()] == [5, 7]
    assert (len(ring), ring.num_bytes) == (0, 0)
    assert ring.add(message(1, 3)) == []
