"""Playing a recording through the stack without ROS: the order of events decides, not the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.trajectories import Route

# How often the node asks whether the stack has fallen silent.
IDLE_CHECK_NS = 100_000_000


@dataclass(frozen=True)
class Labels:
    """What was really there, base frame at the stamp [ns]; the stack never sees it."""

    stamp_ns: int
    boxes: Boxes


@dataclass(frozen=True)
class Intervention:
    """At this stamp [ns] the supervisor's stop was driven in place of a plan; the stack never sees it."""

    stamp_ns: int


@dataclass(frozen=True)
class Event:
    """Something that reached the robot.

    Attributes:
        arrival_ns: When [ns], the log time of the recording.
        content: A sensor's message, odometry, a route (None: follow none), the rig with new calibration,
            labels, or an intervention.
    """

    arrival_ns: int
    content: SensorMessage | EgoState | Route | Rig | Labels | Intervention | None


Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class Player(Protocol[Result_co]):
    """What recordings are played to: the `Pipeline`, or what makes clips of them."""

    config: StackConfig

    def push(self, message: SensorMessage) -> None:
        """See `Pipeline`."""
        ...

    def push_odometry(self, state: EgoState) -> bool:
        """See `Pipeline`."""
        ...

    def set_route(self, route: Route | None) -> None:
        """See `Pipeline`."""
        ...

    def set_rig(self, rig: Rig) -> None:
        """See `Pipeline`."""
        ...

    def next_deadline_ns(self) -> int | None:
        """See `Pipeline`."""
        ...

    def poll(self, now_ns: int) -> Sequence[Result_co]:
        """What there is by now."""
        ...

    def idle(self, now_ns: int) -> Result_co | None:
        """What is to be said while nothing comes."""
        ...


# Result, when it left the stack [ns], and whether a frame stands behind it; otherwise it reports silence.
Receiver = Callable[[Result, int, bool], None]


def play(pipeline: Player[Result], events: Iterable[Event], each: Receiver[Result]) -> None:
    """Feed events as if they arrived now, with an engine that takes no time.

    Between two events every deadline is kept at its own instant, so the result does not depend on when this
    code happens to look.

    Args:
        pipeline: Fresh.
        events: In the order of their arrival.
        each: Called with every result.
    """
    now_ns: int | None = None
    for event in events:
        if now_ns is not None:
            _advance(pipeline, now_ns, event.arrival_ns, each)
        now_ns = event.arrival_ns
        content = event.content
        if isinstance(content, SensorMessage):
            pipeline.push(content)
        elif isinstance(content, EgoState):
            pipeline.push_odometry(content)
        elif isinstance(content, Rig):
            pipeline.set_rig(content)
        elif not isinstance(content, (Labels, Intervention)):
            pipeline.set_route(content)
        for result in pipeline.poll(now_ns):
            each(result, now_ns, True)
    # What still waits gets its time; looking further would only find that the recording is over.
    if now_ns is not None:
        wait_ns = round(pipeline.config.sync.max_wait_ms * 1e6)
        _advance(pipeline, now_ns, now_ns + wait_ns + 1, each)


def _advance(pipeline: Player[Result], from_ns: int, to_ns: int, each: Receiver[Result]) -> None:
    """Keep every deadline, and look for silence, between two events."""
    now_ns = from_ns
    idle_ns = from_ns + IDLE_CHECK_NS
    kept_ns: int | None = None
    while True:
        deadline_ns = pipeline.next_deadline_ns()
        # A deadline that stands after it was kept has nothing more to give now.
        due_ns = to_ns if deadline_ns is None or deadline_ns == kept_ns else max(now_ns, deadline_ns)
        if min(due_ns, idle_ns) >= to_ns:
            return
        if idle_ns <= due_ns:
            now_ns = idle_ns
            idle_ns += IDLE_CHECK_NS
            silent = pipeline.idle(now_ns)
            if silent is not None:
                each(silent, now_ns, False)
            continue
        now_ns = due_ns
        kept_ns = deadline_ns
        for result in pipeline.poll(now_ns):
            each(result, now_ns, True)
