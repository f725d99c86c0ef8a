"""From messages to frames: which messages of all sensors belong to one instant.

The *anchor* is the first sensor of a list of candidates that is alive. Each of its messages defines one
frame, whatever the other sensors do; approximate-time policies instead need every topic and give up frames
when one rate differs. For each other sensor a frame takes the message nearest to

    anchor stamp + (sensor's offset - anchor's offset)

within the sensor's tolerance, the earlier one on a tie. Subtracting a sensor's offset from its stamps puts
all sensors on one axis, the *reference time* (`ref_ns` below); a match is then a plain nearest neighbour.

**When a frame leaves.** As soon as no sensor can improve it, at the latest `max_wait_ns` after its anchor
arrived. A sensor can no longer improve a frame when its newest message is past the frame; when, at the rate
it has shown lately, its next message cannot be nearer than the best one at hand; or when it is silent.
Frames leave in the order of their stamps.

**Reuse.** A message may serve two frames (a 5 Hz radar on a 10 Hz anchor with a tolerance of 100 ms); it
still counts as used once.

**Failover.** An anchor that is silent for `anchor_timeout_ns` hands over to the next one that is alive. That
one starts with its newest message: older ones would only delay the present. A better anchor takes back over
with its second message in a row, unless it lags behind the output by more than the timeout. A message closer
than half a period to a frame of another anchor belongs to that frame and makes no second one.

**Clock.** When the arrival clock, or two messages' stamps, jump back, the recording was restarted: everything
waiting is forgotten, `epoch` rises, and output goes on along the new timeline. One stray old message is only
dropped.

Time is an argument. What is in which frame depends on the order and the times of arrival alone, not on how
often `poll` is called; only a restart of the clock forgets a frame that was due but not collected.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.results import SensorReport
from e2e_perception.core.samples import AssembledFrame, SensorMessage

# Why a message was in no frame.
DROP_CAUSES = (
    "duplicate",  # a second message with the same stamp
    "out_of_order",  # stamped before a message that came earlier, and too old for any frame to come
    "late",  # the frame that it belonged to had left when it arrived
    "unmatched",  # never the nearest to any frame: a 13 Hz sensor on a 10 Hz anchor
    "overflow",  # the queue was full, or frames were not collected
    "clock_reset",  # waiting when the clock jumped back
    "reset",  # waiting when `reset` was called
)

STAMP_JUMP_NS = 1_000_000_000  # a stamp this much older than the sensor's newest suggests a new timeline
ARRIVAL_JUMP_NS = 100_000_000  # smaller steps back are threads overtaking each other
_NEVER = -(1 << 62)
_FOREVER = 1 << 62


@dataclass(frozen=True)
class SensorSync:
    """How one sensor is matched.

    Attributes:
        name: Name in the rig.
        offset_ns: Expected stamp minus the stamp of the first anchor [ns].
        tolerance_ns: Largest distance of a match from where it is expected [ns], inclusive.
    """

    name: str
    offset_ns: int = 0
    tolerance_ns: int = 50_000_000


@dataclass(frozen=True)
class SensorCounts:
    """What became of one sensor's messages: `received == used + sum(dropped) + pending`.

    Attributes:
        received: All messages pushed.
        used: Messages that were in at least one frame.
        dropped: Messages that will never be in a frame, by cause; every one of `DROP_CAUSES` is there.
        pending: Messages whose fate is open.
    """

    received: int
    used: int
    dropped: Mapping[str, int]
    pending: int


class _Entry:
    """A message with its fate so far."""

    __slots__ = ("anchoring", "buffered", "cause", "message", "ref_ns", "uses")

    def __init__(self, message: SensorMessage, ref_ns: int) -> None:
        self.message = message
        self.ref_ns = ref_ns
        self.uses = 0  # frames released with it
        self.anchoring = False  # defines a frame that waits
        self.buffered = True
        self.cause = "unmatched"  # what to count if it is never used


class _Sensor:
    """One sensor's queue in order of reference time, and what is known of its rhythm."""

    __slots__ = (
        "anchor_rank",
        "distance_ns",
        "dropped",
        "entries",
        "gap_ns",
        "last_arrival_ns",
        "name",
        "newest_ns",
        "offset_ns",
        "reason",
        "received",
        "refs",
        "settled_ns",
        "tolerance_ns",
        "used",
    )

    def __init__(self, sync: SensorSync, anchor_rank: int | None) -> None:
        self.name = sync.name
        self.offset_ns = sync.offset_ns
        self.tolerance_ns = sync.tolerance_ns
        self.anchor_rank = anchor_rank
        self.received = 0
        self.used = 0
        self.dropped = dict.fromkeys(DROP_CAUSES, 0)
        self.reason = "silent"
        self.clear()

    def clear(self) -> None:
        self.refs: list[int] = []
        self.entries: list[_Entry] = []
        self.newest_ns: int | None = None  # stamp
        self.last_arrival_ns = _FOREVER  # of a message newer than all before; set when an epoch begins
        self.gap_ns = 0  # time between messages lately, near the smallest; 0: unknown
        self.settled_ns = _NEVER  # frames up to this reference time cannot be improved any more
        self.distance_ns = _NEVER  # of the match in the last frame; at most this is no improvement

    def observe(self, stamp_ns: int, arrival_ns: int) -> None:
        """Take note of a message newer than all before."""
        tolerance = self.tolerance_ns
        ref = stamp_ns - self.offset_ns
        ahead = 0
        if self.newest_ns is not None:
            gap = stamp_ns - self.newest_ns
            if self.gap_ns == 0 or gap < self.gap_ns:
                self.gap_ns = gap
            else:
                # Follows a slower rate within a second or two, but a single lost message hardly at all.
                self.gap_ns += min(gap - self.gap_ns, self.gap_ns) >> 3
            # The next message is assumed to come no sooner than this after the newest, m. A frame at t > m is
            # settled if that is farther from t than m is (t - m <= gap / 2), or past its window.
            next_gap = self.gap_ns * 3 // 4
            ahead = max(next_gap // 2, next_gap - tolerance - 1)
        self.newest_ns = stamp_ns
        self.last_arrival_ns = arrival_ns
        self.settled_ns = ref + ahead


class _WaitingFrame:
    __slots__ = ("anchor", "deadline_ns", "entry", "ref_ns", "waiting_for")

    def __init__(self, entry: _Entry, anchor: _Sensor, deadline_ns: int, waiting_for: list[_Sensor]) -> None:
        self.entry = entry
        self.anchor = anchor
        self.ref_ns = entry.ref_ns
        self.deadline_ns = deadline_ns
        self.waiting_for = waiting_for  # sensors not yet found settled; checked from the end


class FrameAssembler:
    """Groups messages into frames; see the module's docstring for the rules.

    Memory is bounded: at most `queue_size` messages per sensor and waiting frames, and twice as many frames
    not collected. Full queues drop their oldest; too many waiting frames let the oldest go early.

    Attributes:
        epoch: Rises whenever the timeline restarts; frames are in order of stamps within one epoch. Callers
            reset their memory when it changes.
        num_clock_resets: Times the clock jumped back.
        num_failovers: Times that an anchor fell silent and another took over.
        num_frames: Frames released, over all epochs.
    """

    def __init__(
        self,
        sensors: Sequence[SensorSync],
        *,
        anchors: Sequence[str],
        max_wait_ns: int,
        anchor_timeout_ns: int,
        queue_size: int,
    ) -> None:
        """Set up for a fixed set of sensors.

        Args:
            sensors: All sensors, each once.
            anchors: Those that may define frames, best first.
            max_wait_ns: How long a frame waits for other sensors after its anchor arrived [ns].
            anchor_timeout_ns: Silence after which an anchor is given up [ns].
            queue_size: See the class.
        Raises:
            ConfigError: If a name is unknown or doubled, or a number is out of range.
        """
        names = [sync.name for sync in sensors]
        for what, given in (("sensor", names), ("anchor", list(anchors))):
            doubled = sorted({name for name in given if given.count(name) > 1})
            if doubled:
                raise ConfigError(f"{what} {', '.join(doubled)} is listed twice; name each once")
        unknown = [name for name in anchors if name not in names]
        if unknown:
            raise ConfigError(f"anchor {', '.join(unknown)} is no sensor; there are {', '.join(names)}")
        if not anchors:
            raise ConfigError("no anchor given; name at least one sensor that defines the frame time")
        for sync in sensors:
            if sync.tolerance_ns < 0:
                raise ConfigError(f"sensor {sync.name}: tolerance is {sync.tolerance_ns} ns, expected >= 0")
        if queue_size < 2:
            raise ConfigError(f"queue size is {queue_size}, expected at least 2")
        ranks = {name: rank for rank, name in enumerate(anchors)}
        self._sensors = {sync.name: _Sensor(sync, ranks.get(sync.name)) for sync in sensors}
        self._all = tuple(self._sensors.values())
        self._anchors = tuple(self._sensors[name] for name in anchors)
        self._others = {
            anchor.name: tuple(sensor for sensor in self._all if sensor is not anchor)
            for anchor in self._anchors
        }
        self._queue_size = queue_size
        self.epoch = 0
        self.num_clock_resets = 0
        self.num_failovers = 0
        self.num_frames = 0
        self._now_ns: int | None = None
        self._waiting: deque[_WaitingFrame] = deque()
        self._ready: deque[tuple[AssembledFrame, list[_Entry]]] = deque()
        self._suspect: SensorMessage | None = None
        self._start_epoch()
        self.update(max_wait_ns=max_wait_ns, anchor_timeout_ns=anchor_timeout_ns)

    @property
    def anchor(self) -> str:
        """Name of the sensor that defines frames at present."""
        return self._anchor.name

    def update(self, *, max_wait_ns: int | None = None, anchor_timeout_ns: int | None = None) -> None:
        """Change waiting times while running; frames that wait already follow.

        Args:
            max_wait_ns: See `__init__`; None keeps it.
            anchor_timeout_ns: See `__init__`; None keeps it.
        Raises:
            ConfigError: If a time is out of range; nothing is changed then.
        """
        if max_wait_ns is not None and max_wait_ns < 0:
            raise ConfigError(f"max wait is {max_wait_ns} ns, expected >= 0")
        if anchor_timeout_ns is not None and anchor_timeout_ns <= 0:
            raise ConfigError(f"anchor timeout is {anchor_timeout_ns} ns, expected > 0")
        if anchor_timeout_ns is not None:
            self._timeout_ns = anchor_timeout_ns
        if max_wait_ns is not None:
            self._max_wait_ns = max_wait_ns
            deadline = _FOREVER
            for frame in reversed(self._waiting):
                deadline = min(deadline, frame.entry.message.arrival_ns + max_wait_ns)
                frame.deadline_ns = deadline

    def push(self, message: SensorMessage) -> None:
        """Take in one message; frames that it completes are returned by the next `poll`.

        Raises:
            InputError: If the sensor is unknown.
        """
        sensor = self._sensors.get(message.sensor)
        if sensor is None:
            raise InputError(
                f"message of sensor {message.sensor!r}, which is not in the rig; "
                f"expected one of {', '.join(self._sensors)}"
            )
        sensor.received += 1
        self._advance(message.arrival_ns)
        if sensor.newest_ns is not None and sensor.newest_ns - message.stamp_ns > STAMP_JUMP_NS:
            self._suspect_restart(sensor, message)
            return
        if self._suspect is not None and self._suspect.sensor == message.sensor:
            sensor.dropped["out_of_order"] += 1  # the sensor went on as before: a stray message
            self._suspect = None
        self._insert(sensor, message)

    def poll(self, now_ns: int) -> list[AssembledFrame]:
        """Frames that are complete or whose deadline has passed, in the order of their stamps.

        Args:
            now_ns: Present time on the clock of `arrival_ns` [ns].
        """
        self._advance(now_ns)
        if not self._ready:
            return []
        frames = [frame for frame, _ in self._ready]
        self._ready.clear()
        return frames

    def next_deadline_ns(self) -> int | None:
        """When `poll` has something to do even if no message arrives [ns]; None: nothing is waiting."""
        if self._ready:
            return self._now_ns
        deadline = self._waiting[0].deadline_ns if self._waiting else None
        failover = self._anchor.last_arrival_ns + self._timeout_ns
        if self._alive_anchor(failover) is not None and (deadline is None or failover < deadline):
            return failover
        return deadline

    def reset(self) -> None:
        """Forget everything that waits, and start a new epoch; counts go on."""
        self._forget("reset")
        self._now_ns = None

    def counts(self) -> dict[str, SensorCounts]:
        """What became of each sensor's messages, by name."""
        return {
            sensor.name: SensorCounts(
                received=sensor.received,
                used=sensor.used,
                dropped=MappingProxyType(dict(sensor.dropped)),
                pending=sensor.received - sensor.used - sum(sensor.dropped.values()),
            )
            for sensor in self._all
        }

    def drops(self) -> dict[str, int]:
        """Messages dropped, by cause, over all sensors; every one of `DROP_CAUSES` is there."""
        return {cause: sum(sensor.dropped[cause] for sensor in self._all) for cause in DROP_CAUSES}

    def reports(self) -> tuple[SensorReport, ...]:
        """Each sensor as the last frame saw it, in the order given at the start.

        The age is relative to the last frame, and NaN where frame or message are missing.
        """
        return tuple(
            SensorReport(
                name=sensor.name,
                valid=not sensor.reason,
                reason=sensor.reason,
                age_ms=(
                    float("nan")
                    if sensor.newest_ns is None or self._last_anchor is None
                    else (self._last_stamp_ns - sensor.newest_ns) * 1e-6
                ),
                received=sensor.received,
                used=sensor.used,
                dropped=sum(sensor.dropped.values()),
            )
            for sensor in self._all
        )

    # --- time -----------------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> None:
        """Let everything happen that was due up to now, in the order in which it was due."""
        if self._now_ns is not None and now_ns < self._now_ns:
            if self._now_ns - now_ns <= ARRIVAL_JUMP_NS:
                now_ns = self._now_ns
            else:
                self.num_clock_resets += 1
                self._forget("clock_reset")
        self._now_ns = now_ns
        while True:
            deadline = self._waiting[0].deadline_ns if self._waiting else _FOREVER
            failover = self._anchor.last_arrival_ns + self._timeout_ns
            if failover > now_ns or failover >= deadline or not self._fail_over(failover):
                if deadline > now_ns:
                    return
                self._release(self._waiting[0], now_ns)
            self._release_settled(now_ns)

    def _suspect_restart(self, sensor: _Sensor, message: SensorMessage) -> None:
        """A stamp jumped far back: once may be a stray message, twice is a new timeline."""
        first = self._suspect
        if first is None:
            self._suspect = message
        elif first.sensor == message.sensor and message.stamp_ns <= first.stamp_ns:
            sensor.dropped["out_of_order"] += 1
        else:
            self._suspect = None
            self.num_clock_resets += 1
            self._forget("clock_reset")
            self._insert(self._sensors[first.sensor], first)
            self._insert(sensor, message)

    def _start_epoch(self) -> None:
        for sensor in self._all:
            sensor.clear()
        self._anchor = self._anchors[0]
        self._last_ref_ns = _NEVER
        self._last_stamp_ns = _NEVER
        self._last_anchor: _Sensor | None = None
        self._started = False

    def _forget(self, cause: str) -> None:
        """Drop whatever waits and start a new epoch."""
        for _, entries in self._ready:
            for entry in entries:
                self._take_back(entry, cause)
        for frame in self._waiting:
            if not frame.entry.buffered:
                frame.anchor.dropped[cause] += 1
        for sensor in self._all:
            sensor.dropped[cause] += sum(entry.uses == 0 for entry in sensor.entries)
        if self._suspect is not None:
            self._sensors[self._suspect.sensor].dropped[cause] += 1
        self._ready.clear()
        self._waiting.clear()
        self._suspect = None
        self.epoch += 1
        self._start_epoch()

    # --- messages -------------------------------------------------------------------------------------------

    def _insert(self, sensor: _Sensor, message: SensorMessage) -> None:
        now = self._now_ns
        assert now is not None
        if not self._started:
            self._started = True
            for every in self._all:
                every.last_arrival_ns = now  # a sensor that never speaks is silent since now
        stamp = message.stamp_ns
        ref = stamp - sensor.offset_ns
        newest = sensor.newest_ns
        previous_arrival = sensor.last_arrival_ns
        in_order = newest is None or stamp > newest
        refs = sensor.refs
        if in_order:
            sensor.observe(stamp, now)
            position = len(refs)
        else:
            position = bisect_left(refs, ref)
            if stamp == newest or (position < len(refs) and refs[position] == ref):
                sensor.dropped["duplicate"] += 1
                return
        entry = _Entry(message, ref)
        if ref + sensor.tolerance_ns <= self._last_ref_ns:
            sensor.dropped["late" if in_order else "out_of_order"] += 1
            entry.buffered = False
        else:
            if abs(ref - self._last_ref_ns) < sensor.distance_ns:
                entry.cause = "late"
            elif sensor is self._anchor and ref <= self._last_ref_ns:
                entry.cause = "late" if in_order else "out_of_order"
            refs.insert(position, ref)
            sensor.entries.insert(position, entry)
        if sensor.anchor_rank is not None:
            self._consider_anchor(sensor, entry, in_order and newest is not None, previous_arrival)
        if len(refs) > self._queue_size:
            self._evict(sensor, 1, "overflow")
        if self._waiting:
            self._release_settled(now)

    def _evict(self, sensor: _Sensor, num: int, cause: str | None = None) -> None:
        """Remove the oldest messages of a queue and count those that were in no frame."""
        for entry in sensor.entries[:num]:
            entry.buffered = False
            if entry.uses == 0 and not entry.anchoring:
                sensor.dropped[cause or entry.cause] += 1
        del sensor.entries[:num]
        del sensor.refs[:num]

    def _take_back(self, entry: _Entry, cause: str) -> None:
        """Undo one use, in a frame that nobody collected."""
        entry.uses -= 1
        if entry.uses == 0:
            sensor = self._sensors[entry.message.sensor]
            sensor.used -= 1
            entry.cause = cause
            if not entry.buffered:
                sensor.dropped[cause] += 1

    # --- anchors --------------------------------------------------------------------------------------------

    def _consider_anchor(
        self, sensor: _Sensor, entry: _Entry, in_sequence: bool, previous_arrival_ns: int
    ) -> None:
        """Decide what a message of a possible anchor means for the choice of the anchor, and for frames."""
        assert self._now_ns is not None
        assert sensor.anchor_rank is not None
        assert self._anchor.anchor_rank is not None
        now = self._now_ns
        if sensor is not self._anchor:
            returns = (
                sensor.anchor_rank < self._anchor.anchor_rank
                and in_sequence
                and now - previous_arrival_ns < self._timeout_ns
                and self._last_ref_ns - entry.ref_ns < self._timeout_ns
            )
            if returns:
                self._anchor = sensor
            elif now - self._anchor.last_arrival_ns >= self._timeout_ns:
                # The anchor fell silent when there was no other; now there is.
                self._fail_over(now)
                return
            else:
                return
        if entry.buffered:
            self._open_frame(sensor, entry)

    def _alive_anchor(self, at_ns: int) -> _Sensor | None:
        """The best other anchor that has spoken within the timeout before `at_ns`."""
        for sensor in self._anchors:
            if (
                sensor is not self._anchor
                and sensor.newest_ns is not None
                and at_ns - sensor.last_arrival_ns < self._timeout_ns
            ):
                return sensor
        return None

    def _fail_over(self, at_ns: int) -> bool:
        """Hand over to another anchor if one is alive, starting with its newest message."""
        sensor = self._alive_anchor(at_ns)
        if sensor is None:
            return False
        self._anchor = sensor
        self.num_failovers += 1
        if sensor.entries:
            self._open_frame(sensor, sensor.entries[-1])
        return True

    # --- frames ---------------------------------------------------------------------------------------------

    def _open_frame(self, sensor: _Sensor, entry: _Entry) -> None:
        """Let a message define a frame, unless it falls behind the output or onto another anchor's frame."""
        waiting = self._waiting
        position = len(waiting)
        while position and waiting[position - 1].ref_ns >= entry.ref_ns:
            position -= 1
        stamp = entry.message.stamp_ns
        if position:
            before = waiting[position - 1]
            previous = (before.ref_ns, before.entry.message.stamp_ns, before.anchor)
        else:
            previous = (self._last_ref_ns, self._last_stamp_ns, self._last_anchor or sensor)
        if not self._apart(sensor, entry.ref_ns - previous[0], stamp - previous[1], previous[2]):
            return
        deadline = entry.message.arrival_ns + self._max_wait_ns
        if position < len(waiting):
            after = waiting[position]
            ahead_ns = after.entry.message.stamp_ns - stamp
            if not self._apart(sensor, after.ref_ns - entry.ref_ns, ahead_ns, after.anchor):
                return
            deadline = min(deadline, after.deadline_ns)
        # Frames leave in order, so none may be due later than one behind it.
        for index in range(position - 1, -1, -1):
            if waiting[index].deadline_ns <= deadline:
                break
            waiting[index].deadline_ns = deadline
        entry.anchoring = True
        frame = _WaitingFrame(entry, sensor, deadline, list(self._others[sensor.name]))
        if position == len(waiting):
            waiting.append(frame)
        else:
            waiting.insert(position, frame)
        if len(waiting) > self._queue_size:
            assert self._now_ns is not None
            self._release(waiting[0], self._now_ns)

    @staticmethod
    def _apart(sensor: _Sensor, ref_gap_ns: int, stamp_gap_ns: int, neighbour: _Sensor) -> bool:
        """Whether two frames are distinct: in order, and half a period apart if the anchors differ."""
        if ref_gap_ns <= 0 or stamp_gap_ns <= 0:
            return False
        if neighbour is sensor:
            return True
        periods = [gap for gap in (sensor.gap_ns, neighbour.gap_ns) if gap > 0]
        return not periods or 2 * ref_gap_ns >= min(periods)

    def _release_settled(self, now_ns: int) -> None:
        """Release frames, oldest first, that no sensor can improve any more."""
        while self._waiting:
            frame = self._waiting[0]
            waiting_for = frame.waiting_for
            while waiting_for:
                sensor = waiting_for[-1]
                if sensor.settled_ns < frame.ref_ns and not self._is_silent(sensor, frame):
                    return
                waiting_for.pop()
            self._release(frame, now_ns)

    def _release(self, frame: _WaitingFrame, now_ns: int) -> None:
        """Match every sensor with the oldest waiting frame and hand it out."""
        self._waiting.popleft()
        ref, anchor = frame.ref_ns, frame.anchor
        anchor_entry = frame.entry
        anchor_entry.anchoring = False
        messages: dict[str, SensorMessage] = {}
        missing: dict[str, str] = {}
        chosen: list[_Entry] = []
        for sensor in self._all:
            refs = sensor.refs
            tolerance = sensor.tolerance_ns
            if sensor is anchor:
                entry: _Entry | None = anchor_entry
                distance = 0
            else:
                entry = None
                distance = tolerance + 1
                i = bisect_left(refs, ref)
                if i and ref - refs[i - 1] < distance:
                    distance = ref - refs[i - 1]
                    entry = sensor.entries[i - 1]
                if i < len(refs) and refs[i] - ref < distance:
                    distance = refs[i] - ref
                    entry = sensor.entries[i]
            sensor.distance_ns = distance
            if entry is not None:
                messages[sensor.name] = entry.message
                chosen.append(entry)
                if entry.uses == 0:
                    sensor.used += 1
                entry.uses += 1
                sensor.reason = ""
            else:
                sensor.reason = missing[sensor.name] = self._why_missing(sensor, frame)
            # All frames to come are later than this one.
            if refs and refs[0] <= ref - tolerance:
                self._evict(sensor, bisect_right(refs, ref - tolerance))
        self._last_ref_ns = ref
        self._last_stamp_ns = anchor_entry.message.stamp_ns
        self._last_anchor = anchor
        if len(self._ready) == 2 * self._queue_size:  # more than one `push` can release
            for entry in self._ready.popleft()[1]:
                self._take_back(entry, "overflow")
        assembled = AssembledFrame(
            stamp_ns=self._last_stamp_ns,
            anchor=anchor.name,
            messages=messages,
            missing=missing,
            emitted_ns=now_ns,
            sequence=self.num_frames,
        )
        self.num_frames += 1
        self._ready.append((assembled, chosen))

    def _why_missing(self, sensor: _Sensor, frame: _WaitingFrame) -> str:
        if sensor.newest_ns is None or self._is_silent(sensor, frame):
            return "silent"
        return "out_of_tolerance" if sensor.settled_ns >= frame.ref_ns else "late"

    def _is_silent(self, sensor: _Sensor, frame: _WaitingFrame) -> bool:
        """Whether a frame need not wait for a sensor, judged at the arrival of the frame's anchor.

        Not at the present time, so that it does not depend on who asks when. A slow sensor is granted two of
        its periods.
        """
        silence = frame.entry.message.arrival_ns - sensor.last_arrival_ns
        return silence >= self._timeout_ns and silence >= 2 * sensor.gap_ns
