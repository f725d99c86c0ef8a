"""The second half of the pipeline: a ready frame in, tracks, a plan and the state of the stack out.

    ReadyFrame -> Perception -> SafetySupervisor -> FrameResult
                  = Engine.infer -> TrackManager -> PlanSelector

A frame passes in two steps, because the first may take long, or for ever: `perceive` runs the engine and
touches nothing else but what is remembered; `conclude` does the rest. While a frame is being perceived,
another thread may ask for the health, or say with `hung` what to do while the engine does not answer; that
frame is then given up with `give_up`. But for that, one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.rig import Rig
from e2e_perception.core.trajectories import Plan, RouteInput
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.front_end import nanoseconds
from e2e_perception.runtime.perception import MAX_MEMORY_GAP_NS, Perceived, Perception, Place, motion_since
from e2e_perception.runtime.plan_checks import EgoFootprint, PlanVerdict
from e2e_perception.runtime.plan_motion import carried_on
from e2e_perception.runtime.preparation import ReadyFrame, Surroundings
from e2e_perception.runtime.stack_health import STAGES, StackHealth, aged
from e2e_perception.runtime.supervisor import FrameFacts, SafetySupervisor

IDLE_PERIOD_NS = 500_000_000  # between results while no frame comes


@dataclass
class _Line:
    """What is forgotten when the clock or the recording starts anew.

    Attributes:
        timeline: Which it belongs to, see `Surroundings`.
        published, published_at: The last plan that left, and where the robot was then.
        last_stamp_ns: Of the last frame.
        last_frame_now_ns: When the last frame was processed, at first when the waiting began.
        last_idle_ns: When `idle` last gave a result, since the last frame.
    """

    timeline: int
    published: Plan | None = None
    published_at: Place | None = None
    last_stamp_ns: int | None = None
    last_frame_now_ns: int | None = None
    last_idle_ns: int | None = None


@dataclass(frozen=True)
class Deliberation:
    """A frame between the two steps.

    Attributes:
        perceived: What its tensors amounted to.
        marks_ns: When it was taken from the queue, and when each of infer, track and plan ended.
    """

    perceived: Perceived
    marks_ns: list[int]


class Decision:
    """The second half.

    Attributes:
        perception: Everything with memory; may be replaced before the first frame.
        supervisor: Says how far the stack trusts itself.
    """

    def __init__(
        self,
        network: NetworkConfig,
        engine: InferenceEngine,
        around: Surroundings,
        bundle_name: str,
        *,
        clock_ns: Callable[[], int],
        realtime: bool,
    ) -> None:
        """Prepare for the first frame; arguments and errors are those of `Pipeline`.

        Args:
            network, engine, bundle_name, clock_ns, realtime: See there.
            around: At the start.
        """
        self.perception = Perception(network, engine, around.config)
        self.supervisor = SafetySupervisor(around.config.supervisor)
        self._config = around.config
        self._clock_ns = clock_ns
        self._realtime = realtime
        self._mismatch = engine.info.mismatch
        self._health = StackHealth(str(engine.info), bundle_name)
        self._num_jumps = self._num_rejected = 0
        self._take_rig(around.rig)
        self._line = _Line(around.timeline)

    # --- a frame --------------------------------------------------------------------------------------------

    def perceive(self, ready: ReadyFrame, *, queued: bool = False) -> Deliberation:
        """Run the engine and what remembers.

        Args:
            ready: The frame.
            queued: Whether it had to wait for its turn since it was ready.
        """
        self._follow(ready.around)
        marks_ns = [self._clock_ns() if queued else ready.ready_ns]
        perceived = self.perception.step(
            ready.prepared, ready.around.place, lambda: marks_ns.append(self._clock_ns())
        )
        marks_ns += [marks_ns[-1]] * (4 - len(marks_ns))  # a bad frame does not reach every stage
        return Deliberation(perceived, marks_ns)

    def conclude(self, ready: ReadyFrame, deliberation: Deliberation) -> FrameResult:
        """What leaves of a perceived frame."""
        marks = [ready.begun_ns, ready.ready_ns, *deliberation.marks_ns]
        spent_ns = marks[-1] - marks[0] if self._realtime else 0
        result = self._supervise(ready, deliberation.perceived, ready.now_ns + spent_ns)
        durations_ns = [ready.wait_ns, *np.diff([*marks, self._clock_ns()]).tolist()]
        self._health.stage_ms = {name: ns * 1e-6 for name, ns in zip(STAGES, durations_ns, strict=True)}
        return replace(result, health=replace(result.health, stage_ms=self._health.stage_ms))

    def give_up(self) -> None:
        """The frame that was being perceived is answered for already: forget it, and whatever it left."""
        self._health.drops["engine_timeout"] += 1
        self.perception.start_anew()

    # --- no frame -------------------------------------------------------------------------------------------

    def idle(self, now_ns: int, around: Surroundings) -> FrameResult | None:
        """What to publish while no frame comes; see `Pipeline.idle`.

        Args:
            now_ns: Present time [ns].
            around: At that time.
        """
        self._follow(around)
        line = self._line
        if line.last_frame_now_ns is None or now_ns < line.last_frame_now_ns:
            line.last_frame_now_ns, line.last_idle_ns = now_ns, None  # the beginning, or a clock set back
        if now_ns - line.last_frame_now_ns <= nanoseconds(self._config.supervisor.silence_ms):
            return None
        if line.last_idle_ns is not None and 0 <= now_ns - line.last_idle_ns < IDLE_PERIOD_NS:
            return None
        line.last_idle_ns = now_ns
        self.supervisor.silence(now_ns, None if around.ego is None else around.ego.speed)
        return self._stopped(now_ns, around)

    def hung(self, now_ns: int, around: Surroundings, for_s: float) -> FrameResult:
        """What to publish while the engine does not answer.

        Args:
            now_ns: Present time [ns].
            around: At that time.
            for_s: How long it has had the frame in hand [s].
        """
        self.supervisor.outage(
            None if around.ego is None else around.ego.speed,
            f"the engine has not answered for {for_s:.1f} s",
        )
        return self._stopped(now_ns, around)

    def health(self, now_ns: int, around: Surroundings) -> Health:
        """State of the stack now."""
        sensors = around.sensors
        if self._line.last_stamp_ns is not None and around.timeline == self._line.timeline:
            later_ms = (now_ns - self._line.last_stamp_ns) * 1e-6
            sensors = aged(sensors, later_ms, around.config.supervisor.silence_ms)
        return self._health.report(self.supervisor.state, self.supervisor.reasons, sensors, around.drops)

    # --- between two frames ---------------------------------------------------------------------------------

    def switch(
        self, engine: InferenceEngine, network: NetworkConfig, bundle_name: str, *, same_weights: bool
    ) -> InferenceEngine:
        """See `Pipeline.switch`."""
        before = self.perception.switch(engine, network, same_weights=same_weights)
        self._mismatch = engine.info.mismatch
        self._health.backend, self._health.bundle = str(engine.info), bundle_name
        return before

    def reset(self, around: Surroundings) -> None:
        """Forget everything but counts; identities start from 0."""
        self._follow(around)
        self._begin(around.timeline)
        self.perception.tracker.reset()
        self.supervisor.reset()

    def _follow(self, around: Surroundings) -> None:
        """Take what changed since the last frame."""
        if around.config is not self._config:
            self._config = around.config
            self.perception.update(around.config)
            self.supervisor.update(around.config.supervisor)
        if around.rig is not self._rig:
            self._take_rig(around.rig)
        if around.timeline != self._line.timeline:
            self._begin(around.timeline)

    def _take_rig(self, rig: Rig) -> None:
        self._rig = rig
        self._anchor_capable = frozenset(s.name for s in (*rig.cameras, *rig.lidars))
        self._footprint = EgoFootprint(rig.ego_length, rig.ego_width, rig.ego_center_x)

    def _begin(self, timeline: int) -> None:
        """Start a new timeline; identities go on."""
        self._line = _Line(timeline)
        self.perception.forget()

    # --- which plan leaves ----------------------------------------------------------------------------------

    def _supervise(self, ready: ReadyFrame, perceived: Perceived, now_ns: int) -> FrameResult:
        """The plan that leaves: the selected one, the published one carried on, or a stop."""
        prepared, around, plan = ready.prepared, ready.around, perceived.plan
        stamp_ns, ego, place = prepared.stamp_ns, around.ego, around.place
        verdict = None
        if plan is not None:
            assert ego is not None  # without ego motion nothing is selected
            verdict = self.supervisor.check_plan(plan, perceived.tracks, ego.speed, self._footprint)
        if perceived.cause:
            self._health.drops[perceived.cause] += 1
        self._line.last_stamp_ns = stamp_ns
        warnings, notes = self._remarks(ready)
        state, _ = self.supervisor.step(
            FrameFacts(
                stamp_ns=stamp_ns,
                now_ns=now_ns,
                sensors=around.sensors,
                anchor_capable=self._anchor_capable,
                speed=None if ego is None else ego.speed,
                outputs_problem=perceived.problem,
                verdict=verdict,
                warnings=warnings,
                notes=notes,
            )
        )
        if state >= SafetyState.MINIMAL_RISK or (verdict is not None and not verdict.accepted):
            plan = self._stop(stamp_ns, place, ego, route=prepared.route, plan=plan, verdict=verdict)
        elif perceived.problem:
            plan = self._continued(stamp_ns, place)
            if plan is not None:
                self.supervisor.note("previous plan continued")
            else:
                plan = self._stop(stamp_ns, place, ego, route=prepared.route)
        self._publish(plan, place)
        self._health.frames += 1
        self._health.plans += plan is not None
        self._line.last_frame_now_ns, self._line.last_idle_ns = now_ns, None
        health = self._health.report(state, self.supervisor.reasons, around.sensors, around.drops)
        return FrameResult(stamp_ns, perceived.tracks, plan, perceived.candidates, health)

    def _remarks(self, ready: ReadyFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of engine, route, and odometry since the last frame: reasons not to be nominal, and mere notes."""
        around, route = ready.around, ready.prepared.route
        warnings, notes = [], []
        if around.num_jumps > self._num_jumps:
            warnings.append("odometry jumped; memory was reset")
        if around.num_rejected > self._num_rejected:
            dropped = around.num_rejected - self._num_rejected
            warnings.append(f"odometry not finite, {dropped} samples dropped")
        self._num_jumps, self._num_rejected = around.num_jumps, around.num_rejected
        if route is None:
            warnings.append("no route, and none may be assumed: no plan")
        elif route.assumed:
            notes.append("no route: straight ahead assumed")
        if self._mismatch:
            notes.append(f"engine {self._mismatch}")
        return tuple(warnings), tuple(notes)

    def _stopped(self, now_ns: int, around: Surroundings) -> FrameResult:
        """A stop from where the robot is now, without a frame."""
        plan = self._stop(now_ns, around.place, around.ego)
        self._publish(plan, around.place)
        return FrameResult(now_ns, None, plan, None, self.health(now_ns, around))

    def _stop(
        self,
        stamp_ns: int,
        place: Place | None,
        ego: EgoState | None,
        *,
        route: RouteInput | None = None,
        plan: Plan | None = None,
        verdict: PlanVerdict | None = None,
    ) -> Plan:
        """A stop along this frame's plan if that may be followed, else the published one, else the route."""
        base_from_plan: SE2 | None = SE2(0.0, 0.0, 0.0)
        if plan is None or verdict is None or not verdict.path_usable:
            plan = self._line.published
            base_from_plan = self._motion_since_published(stamp_ns, place)
        return self.supervisor.stop_plan(
            stamp_ns,
            times_P=self.perception.network.times_T,
            speed=None if ego is None else ego.speed,
            plan=plan,
            base_from_plan=base_from_plan,
            route=route,
            deceleration=verdict.deceleration if verdict is not None and not verdict.accepted else None,
        )

    def _continued(self, stamp_ns: int, place: Place | None) -> Plan | None:
        """The published plan as seen from here, if it is known where here is."""
        base_from_plan = self._motion_since_published(stamp_ns, place)
        if self._line.published is None or base_from_plan is None:
            return None
        return carried_on(self._line.published, stamp_ns, base_from_plan)

    def _motion_since_published(self, stamp_ns: int, place: Place | None) -> SE2 | None:
        """This base frame from that of the published plan; None if unknown, or if that plan is an old one."""
        published = self._line.published
        if published is None or stamp_ns - published.stamp_ns > MAX_MEMORY_GAP_NS:
            return None
        return motion_since(self._line.published_at, place)

    def _publish(self, plan: Plan | None, place: Place | None) -> None:
        if plan is not None:  # else the last one stands, for a stop to begin at the speed that it foresaw
            assert plan.is_finite
            self._line.published, self._line.published_at = plan, place
