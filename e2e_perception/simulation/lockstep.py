"""A closed loop whose stack runs elsewhere: what to send it when, and when time has to wait for its answer.

In process a frame is worked on in no time, and its plan takes effect `PLAN_DELAY_NS` after the frame's stamp.
A stack in another process works while the simulation goes on. So that the episode is the same however fast
either is, time stands still before the tick in which a plan would have taken effect, until it is there.

Which frames the stack will make, and when, is known here: a second `FrameAssembler` is given the same
messages at the same times. It matters because time must not stop for a frame that still waits for a sensor:
with a lidar that is 50 ms late and 60 ms of patience, a frame may leave 110 ms after its stamp, when its plan
is due already. Such a plan takes effect at once, in both worlds.

A stack to which no frame comes says so after `supervisor.silence_ms`, with a stop, and again every half
second. Time waits for that too; when exactly it looks is the stack's own affair, up to 0.1 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from e2e_perception.core.config import SupervisorConfig, SyncConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.results import SafetyState
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.assembler import FrameAssembler, SensorSync
from e2e_perception.runtime.decision import IDLE_PERIOD_NS
from e2e_perception.simulation.closed_loop import PLAN_DELAY_NS, ClosedLoop
from e2e_perception.simulation.ego_vehicle import TICK_NS

NO_ANSWER = "answers not there in time"
FOREIGN_PLAN = "plans for another time"


@dataclass(frozen=True)
class Tick:
    """What 20 ms brought.

    Attributes:
        ego: The robot at its end; sent before the messages, as `drive_stack` does.
        messages: That arrived during it, in order of arrival.
        now_ns: Its end.
    """

    ego: EgoState
    messages: tuple[SensorMessage, ...]
    now_ns: int


class Lockstep:
    """One episode driven from outside.

    Call `tick`, send what it gives, hand in answers; before the next `tick` wait until `awaited` is empty.

    Attributes:
        loop: Robot and world.
        counts: What went wrong between simulation and stack, by cause.
    """

    def __init__(
        self,
        loop: ClosedLoop,
        rig: Rig,
        sync: SyncConfig,
        *,
        silence_ms: float = SupervisorConfig().silence_ms,
        duration_s: float = 0.0,
    ) -> None:
        """Prepare.

        Args:
            loop: Fresh, with sensors.
            rig: Of the stack.
            sync: Of the stack, with policy `anchor`.
            silence_ms: Of the stack's supervisor.
            duration_s: Ends the episode early [s]; 0: not.
        """
        self.loop = loop
        self.counts: dict[str, int] = {}
        self._assembler = FrameAssembler(
            [SensorSync(s.name, _ns(s.offset_ms), _ns(s.tolerance_ms)) for s in rig.sensors],
            anchors=sync.anchors or [s.name for s in (*rig.lidars, *rig.cameras)],
            max_wait_ns=_ns(sync.max_wait_ms),
            anchor_timeout_ns=_ns(sync.anchor_timeout_ms),
            queue_size=sync.queue_size,
        )
        self._unanswered: dict[int, None] = {}  # stamps, in order
        self._silence_ns = _ns(silence_ms)
        self._stop_due_ns = loop.now_ns + self._silence_ns  # after this, unless a frame comes
        self._until_ns = loop.world.start_ns + round(duration_s * 1e9) if duration_s > 0.0 else None

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.loop.over or (self._until_ns is not None and self.loop.now_ns >= self._until_ns)

    def tick(self) -> Tick:
        """Go on by 20 ms."""
        messages = self.loop.tick()
        for message in messages:
            self._assembler.push(replace(message, payload=None))
        for frame in self._assembler.poll(self.loop.now_ns):
            self._unanswered[frame.stamp_ns] = None
            # The stack's silence begins when it has worked on the frame, for which time waits.
            begins_ns = max(self.loop.now_ns, frame.stamp_ns + PLAN_DELAY_NS - TICK_NS)
            self._stop_due_ns = begins_ns + self._silence_ns
        return Tick(self.loop.ego, tuple(messages), self.loop.now_ns)

    def awaited(self) -> list[int]:
        """What has to be here before the next tick.

        Returns:
            Stamps of frames that the stack has [ns], and the present time if a stop is due because none came.
        """
        frames = [s for s in self._unanswered if s + PLAN_DELAY_NS <= self.loop.now_ns + TICK_NS]
        return frames + [self.loop.now_ns] * (self.loop.now_ns > self._stop_due_ns)

    def take_plan(self, plan: Plan, state: SafetyState) -> None:
        """A plan of the stack, for a frame or because there is none."""
        if not self.loop.take_plan(plan, delay_ns=PLAN_DELAY_NS, state=state):
            self._count(FOREIGN_PLAN)  # of an episode before, or with a sensor's wrong clock
        elif plan.stamp_ns not in self._unanswered:  # a stop; the next follows, unless a frame comes
            self._stop_due_ns = max(self._stop_due_ns, plan.stamp_ns + IDLE_PERIOD_NS - 1)

    def answered(self, stamp_ns: int) -> bool:
        """The stack is done with a frame, whether there was a plan or not.

        Returns:
            Whether there is such a frame that had no answer yet.
        """
        had_none = stamp_ns in self._unanswered
        self._unanswered.pop(stamp_ns, None)
        return had_none

    def give_up(self) -> list[int]:
        """Wait no longer for what is awaited; returns it."""
        given_up = self.awaited()
        for stamp_ns in given_up:
            if stamp_ns in self._unanswered:
                del self._unanswered[stamp_ns]
            else:
                self._stop_due_ns = self.loop.now_ns + IDLE_PERIOD_NS
            self._count(NO_ANSWER)
        return given_up

    def record(self, policy: str, counters: Mapping[str, int]) -> EpisodeRecord:
        """The episode so far, with our own counts beside those of the stack."""
        return self.loop.record(policy, {**counters, **self.counts})

    def _count(self, cause: str) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + 1


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
