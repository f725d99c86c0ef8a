"""When to publish which message of a bag; neither ROS nor the clock is known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

RawMessage = tuple[str, str, int, bytes]  # topic, type, time of arrival [ns], serialised message

SPACE_BETWEEN_LOOPS_NS = 100_000_000


@dataclass(frozen=True)
class Due:
    """Something to publish.

    Attributes:
        wall_ns: When, after the start of playing [ns].
        bag_ns: Time of the bag then [ns].
        message: Topic, type and bytes; None: only /clock.
    """

    wall_ns: int
    bag_ns: int
    message: tuple[str, str, bytes] | None


def schedule(
    read: Callable[[], Iterable[RawMessage]],
    *,
    start_ns: int,
    stop_ns: int,
    rate: float,
    loop: bool = False,
    clock_period_ns: int = 0,
    tail_ns: int = 0,
) -> Iterator[Due]:
    """Everything to publish, in order of time.

    Args:
        read: Gives the bag's messages from `start_ns` to `stop_ns`, in order; called once per round.
        start_ns, stop_ns: First and last time of the bag to play [ns].
        rate: Bag seconds per second, > 0.
        loop: Start again at the end; the bag's time then jumps back, as it does on a robot whose recording is
            restarted.
        clock_period_ns: Wall time between two ticks of /clock while no message is due [ns]; 0: no ticks.
        tail_ns: How long the bag's time runs on after the last message [ns].
    """
    begun_ns = 0  # wall time at which this round began
    while True:
        wall_ns = begun_ns
        for topic, type_name, bag_ns, raw in read():
            due_ns = begun_ns + round((bag_ns - start_ns) / rate)
            yield from _ticks(wall_ns, due_ns, begun_ns, start_ns, rate, clock_period_ns)
            wall_ns = due_ns
            yield Due(due_ns, bag_ns, (topic, type_name, raw))
        ended_ns = begun_ns + round((stop_ns + tail_ns - start_ns) / rate)
        yield from _ticks(wall_ns, ended_ns, begun_ns, start_ns, rate, clock_period_ns)
        if not loop:
            return
        begun_ns = ended_ns + SPACE_BETWEEN_LOOPS_NS


def _ticks(
    wall_ns: int, until_ns: int, begun_ns: int, start_ns: int, rate: float, period_ns: int
) -> Iterator[Due]:
    if period_ns <= 0:
        return
    # On a fixed raster, so that messages do not shift it.
    tick_ns = (wall_ns // period_ns + 1) * period_ns
    while tick_ns < until_ns:
        yield Due(tick_ns, start_ns + round((tick_ns - begun_ns) * rate), None)
        tick_ns += period_ns
