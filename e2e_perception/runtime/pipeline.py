"""One frame from messages to plan; the diagram of docs/architecture.md as code.

    messages -> FrameAssembler -> Preprocessor -> Perception -> SafetySupervisor -> results
                                                  = Engine.infer -> TrackManager -> PlanSelector

It knows neither ROS nor the clock: time is an argument. Given the same messages and times, tracks and plans
are the same to the last bit; how long a stage took decides only, live, whether a plan left too late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from e2e_perception.core.config import StackConfig, parameter_specs
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.core.trajectories import Plan, Route, RouteInput
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.decode import ConvertImage
from e2e_perception.runtime.front_end import FrontEnd, nanoseconds
from e2e_perception.runtime.perception import MAX_MEMORY_GAP_NS, Perceived, Perception, Place, motion_since
from e2e_perception.runtime.plan_checks import EgoFootprint, PlanVerdict
from e2e_perception.runtime.plan_motion import carried_on
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.runtime.stack_health import STAGES, StackHealth, aged
from e2e_perception.runtime.supervisor import FrameFacts, SafetySupervisor

IDLE_PERIOD_NS = 500_000_000  # between results while no frame comes
RATE_SLACK_NS = 2_000_000  # a frame this much early for the rate limit still passes


@dataclass
class _Timeline:
    """What is forgotten when the clock or the recording starts anew.

    Attributes:
        published, published_at: The last plan that left, and where the robot was then.
        unusable, last_stamp_ns: Of the last frame, see `PreparedFrame.reasons`.
        last_frame_now_ns: When the last frame was processed, at first when the waiting began.
        last_idle_ns: When `idle` last gave a result, since the last frame.
        due_ns: When the rate limit lets the next frame pass.
    """

    published: Plan | None = None
    published_at: Place | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    last_stamp_ns: int | None = None
    last_frame_now_ns: int | None = None
    last_idle_ns: int | None = None
    due_ns: int | None = None


class Pipeline:
    """The robot side of the stack.

    Attributes:
        last_prepared: The newest frame's inputs and points, for reports and displays; None before the first.
        on_prepared: Called with the frame and its inputs before the engine runs, if set.
        ego: Odometry so far.
    """

    def __init__(
        self,
        network: NetworkConfig,
        rig: Rig,
        engine: InferenceEngine,
        config: StackConfig,
        bundle_name: str,
        convert_image: ConvertImage | None = None,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        realtime: bool = False,
        on_prepared: Callable[[AssembledFrame, PreparedFrame], None] | None = None,
    ) -> None:
        """Put the stages together.

        Args:
            network: Sizes and slots of the bundle's network.
            rig: The robot's sensors.
            engine: Runs the bundle; stays the caller's to close.
            config: All tunables.
            bundle_name: Name and digest for the health report.
            convert_image: From a ROS image message to RGB; the nodes pass cv_bridge's.
            clock_ns: For the durations of stages.
            realtime: Whether computing takes time on the clock of the stamps, as it does on the robot: a
                frame that was worked on for too long is then late. Otherwise the engine counts as taking no
                time, and durations decide nothing.
            on_prepared: See the class.
        Raises:
            RigError: If the rig has a sensor that the network does not know.
            ConfigError: If the configured anchors are not in the rig.
            ContractError: If the engine was made for another network.
        """
        self.network = network
        self.config = config
        self.on_prepared = on_prepared
        self.last_prepared: PreparedFrame | None = None
        self._front = FrontEnd(network, rig, config, convert_image)
        self.ego, self.assembler = self._front.ego, self._front.assembler
        self.perception = Perception(network, engine, config)
        self.supervisor = SafetySupervisor(config.supervisor)
        self._clock_ns = clock_ns
        self._realtime = realtime
        self._mismatch = engine.info.mismatch
        self._health = StackHealth(str(engine.info), bundle_name)
        self._num_jumps = self._num_rejected = 0
        self.set_rig(rig)
        self._forget()

    # --- in -------------------------------------------------------------------------------------------------

    def push(self, message: SensorMessage) -> None:
        """Take in one sensor message; `InputError` if the rig has no such sensor."""
        self.assembler.push(message)

    def push_odometry(self, state: EgoState) -> bool:
        """Take in odometry.

        Returns:
            False if it was not finite (then it is dropped and counted) or broke continuity.
        """
        try:
            return self.ego.add(state)
        except InputError:
            self._health.drops["odometry_non_finite"] += 1
            return False

    def set_route(self, route: Route | None) -> None:
        """Follow a route, given in the odometry frame, from the next frame on; None: no route."""
        self._front.route = route

    def set_rig(self, rig: Rig) -> None:
        """Take a calibration of the same sensors, from CameraInfo or TF for example.

        Raises:
            ConfigError: If the sensors are others than at the start.
        """
        self._front.set_rig(rig)
        self.rig = rig
        self._anchor_capable = frozenset(s.name for s in (*rig.cameras, *rig.lidars))
        self._footprint = EgoFootprint(rig.ego_length, rig.ego_width, rig.ego_center_x)

    def update(self, config: StackConfig) -> None:
        """Take new values of the live parameters; they hold from the next frame on.

        Raises:
            ConfigError: If a read-only parameter differs; nothing is changed then.
        """
        before, after = self.config.model_dump(), config.model_dump()
        fixed = []
        for spec in parameter_specs():
            section, _, leaf = spec.name.partition(".")
            if spec.read_only and before[section][leaf] != after[section][leaf]:
                fixed.append(f"{spec.name} ({before[section][leaf]!r} to {after[section][leaf]!r})")
        if fixed:
            raise ConfigError(f"cannot change while running: {', '.join(fixed)}; restart with the new value")
        self.config = config
        self._front.update(config)
        self.perception.update(config)
        self.supervisor.update(config.supervisor)

    def reset(self) -> None:
        """Forget everything but counts, calibration and route; identities start from 0."""
        self._front.reset()
        self._forget()
        self.perception.tracker.reset()
        self.supervisor.reset()

    # --- out ------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `poll` has something to do even if no message arrives [ns]; None: nothing waits."""
        return self.assembler.next_deadline_ns()

    def poll(self, now_ns: int) -> list[FrameResult]:
        """Run every frame that is due.

        Args:
            now_ns: Present time on the clock of the stamps [ns].
        Returns:
            One result per frame, in the order of their stamps.
        """
        frames, anew = self._front.poll(now_ns)
        if anew:
            self._forget()
        return [self._process(frame, now_ns) for frame in frames if self._is_wanted(frame, now_ns)]

    def idle(self, now_ns: int) -> FrameResult | None:
        """What to publish while no frame comes; call it regularly.

        Returns:
            None while all is well; once no frame has come for `supervisor.silence_ms`, a stop with the state
            of the stack, again every half second.
        """
        if self._line.last_frame_now_ns is None or now_ns < self._line.last_frame_now_ns:
            self._line.last_frame_now_ns = now_ns  # the beginning, or a clock set back
            self._line.last_idle_ns = None
        if now_ns - self._line.last_frame_now_ns <= nanoseconds(self.config.supervisor.silence_ms):
            return None
        if self._line.last_idle_ns is not None and 0 <= now_ns - self._line.last_idle_ns < IDLE_PERIOD_NS:
            return None
        self._line.last_idle_ns = now_ns
        ego = self.ego.at(now_ns)
        self.supervisor.silence(now_ns, None if ego is None else ego.speed)
        place = Place.of(now_ns, ego, self.ego)
        plan = self._stop(now_ns, place, ego)
        self._publish(plan, place)
        return FrameResult(now_ns, None, plan, None, self.health(now_ns))

    def health(self, now_ns: int) -> Health:
        """State of the stack now."""
        sensors = self._health.sensors(self.assembler.reports(), self._line.unusable)
        if self._line.last_stamp_ns is not None:
            later_ms = (now_ns - self._line.last_stamp_ns) * 1e-6
            sensors = aged(sensors, later_ms, self.config.supervisor.silence_ms)
        return self._health.report(
            self.supervisor.state, self.supervisor.reasons, sensors, self.assembler.drops()
        )

    # --- one frame ------------------------------------------------------------------------------------------

    def _is_wanted(self, frame: AssembledFrame, now_ns: int) -> bool:
        if now_ns - frame.stamp_ns > nanoseconds(self.config.supervisor.silence_ms):
            self._health.drops["too_old"] += 1
            return False
        rate = self.config.node.max_rate_hz
        if rate > 0.0:
            period = round(1e9 / rate)
            if self._line.due_ns is not None and frame.stamp_ns < self._line.due_ns - RATE_SLACK_NS:
                self._health.drops["rate_limit"] += 1
                return False
            # Relative to when it was due, so that the rate holds on average; a late frame earns no burst.
            due = (
                frame.stamp_ns
                if self._line.due_ns is None
                else max(self._line.due_ns, frame.stamp_ns - period)
            )
            self._line.due_ns = due + period
        return True

    def _process(self, frame: AssembledFrame, now_ns: int) -> FrameResult:
        marks = [self._clock_ns()]
        prepared = self._prepare(frame)
        marks.append(self._clock_ns())
        place = Place.of(prepared.stamp_ns, prepared.ego_state, self.ego)
        perceived = self.perception.step(prepared, place, lambda: marks.append(self._clock_ns()))
        marks += [marks[-1]] * (5 - len(marks))  # a bad frame does not reach every stage
        spent_ns = marks[-1] - marks[0] if self._realtime else 0
        result = self._supervise(prepared, place, perceived, now_ns + spent_ns)
        marks.append(self._clock_ns())
        wait_ns = frame.emitted_ns - frame.messages[frame.anchor].arrival_ns
        durations_ns = [wait_ns, *np.diff(marks).tolist()]
        self._health.stage_ms = {name: ns * 1e-6 for name, ns in zip(STAGES, durations_ns, strict=True)}
        return replace(result, health=replace(result.health, stage_ms=self._health.stage_ms))

    def _prepare(self, frame: AssembledFrame) -> PreparedFrame:
        """Messages to tensors; everything but the memory."""
        prepared = self._front.prepare(frame)
        self._health.count_unusable(frame, prepared)
        self.last_prepared = prepared
        if self.on_prepared is not None:
            self.on_prepared(frame, prepared)
        return prepared

    def _supervise(
        self, prepared: PreparedFrame, place: Place | None, perceived: Perceived, now_ns: int
    ) -> FrameResult:
        """The plan that leaves: the selected one, the published one carried on, or a stop."""
        stamp_ns, ego, plan = prepared.stamp_ns, prepared.ego_state, perceived.plan
        verdict = None
        if plan is not None:
            assert ego is not None  # without ego motion nothing is selected
            verdict = self.supervisor.check_plan(plan, perceived.tracks, ego.speed, self._footprint)
        if perceived.cause:
            self._health.drops[perceived.cause] += 1
        self._line.unusable, self._line.last_stamp_ns = prepared.reasons, stamp_ns
        sensors = self._health.sensors(self.assembler.reports(), prepared.reasons)
        warnings, notes = self._remarks(prepared)
        state, _ = self.supervisor.step(
            FrameFacts(
                stamp_ns=stamp_ns,
                now_ns=now_ns,
                sensors=sensors,
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
        health = self._health.report(state, self.supervisor.reasons, sensors, self.assembler.drops())
        return FrameResult(stamp_ns, perceived.tracks, plan, perceived.candidates, health)

    def _remarks(self, prepared: PreparedFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of engine, route, and odometry since the last frame: reasons not to be nominal, and mere notes."""
        warnings, notes = [], []
        if self.ego.num_jumps > self._num_jumps:
            warnings.append("odometry jumped; memory was reset")
        rejected = self._health.drops["odometry_non_finite"]
        if rejected > self._num_rejected:
            warnings.append(f"odometry not finite, {rejected - self._num_rejected} samples dropped")
        self._num_jumps, self._num_rejected = self.ego.num_jumps, rejected
        if prepared.route is None:
            warnings.append("no route, and none may be assumed: no plan")
        elif prepared.route.assumed:
            notes.append("no route: straight ahead assumed")
        if self._mismatch:
            notes.append(f"engine {self._mismatch}")
        return tuple(warnings), tuple(notes)

    # --- plans in place of the network's --------------------------------------------------------------------

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
            times_P=self.network.times_T,
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

    def _forget(self) -> None:
        """Start a new timeline; identities go on."""
        self._line = _Timeline()
        self.perception.forget()
