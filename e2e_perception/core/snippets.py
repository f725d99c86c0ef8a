"""What travels from a robot's subscriptions to a snippet on disk, and why."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class RawMessage:
    """One message as it came, not deserialised.

    Attributes:
        topic, type_name: For example `/lidar/points`, `sensor_msgs/msg/PointCloud2`.
        arrival_ns: Time of arrival [ns]; 0 or less: before time began.
        cdr: Its bytes.
        latch: None for a stream. Otherwise the message holds until the next of its topic and `latch`, and who
            comes later needs it.
    """

    topic: str
    type_name: str
    arrival_ns: int
    cdr: bytes
    latch: str | None = None


class TriggerEvent(BaseModel):
    """A rule that has fired.

    Attributes:
        rule, priority: Of the rule.
        reason: In words: which numbers it found.
        stamp_ns: Of the frame [ns].
        now_ns: When it fired, on the clock of arrivals [ns].
        signals: What was known of that frame, without what was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    rule: str
    priority: int
    reason: str
    stamp_ns: int
    now_ns: int
    signals: dict[str, float]


@dataclass(frozen=True)
class StackFacts:
    """What ran while a snippet was recorded: bundle with digest, engine, name of the rig."""

    bundle: str
    backend: str
    rig: str


@dataclass(frozen=True)
class Window:
    """What a snippet was to hold.

    Attributes:
        events: At least one, in order of time.
        begin_ns, end_ns: Arrivals, both inclusive [ns].
        gaps_ns: (first, last) arrival of times in which messages are missing, because memory could not hold
            them until they were needed [ns].
        cut: Why it ends before it should have; empty if it does not.
    """

    events: tuple[TriggerEvent, ...]
    begin_ns: int
    end_ns: int
    gaps_ns: tuple[tuple[int, int], ...] = ()
    cut: str = ""
