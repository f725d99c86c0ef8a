"""The first half of the pipeline: messages in, frames that only the engine is missing from out.

    messages -> FrameAssembler -> Preprocessor -> ReadyFrame

It owns whatever messages change: assembly, odometry, route, calibration, configuration. What the second half
(`runtime/decision.py`) has to know of these it is handed with each frame as a `Surroundings`, a copy. So the
halves may work at the same time, one frame apart, and still come to the same results as one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from e2e_perception.core.config import StackConfig, parameter_specs
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import SensorReport
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.runtime.decode import ConvertImage
from e2e_perception.runtime.front_end import FrontEnd, nanoseconds
from e2e_perception.runtime.perception import Place
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.runtime.stack_health import InputCounts

RATE_SLACK_NS = 2_000_000  # a frame this much early for the rate limit still passes


@dataclass(frozen=True)
class Surroundings:
    """What else is known at one instant, as it was then.

    Attributes:
        config, rig: In force.
        timeline: Rises when the clock or the recording starts anew; what was remembered before is of no use.
        ego, place: The robot at that instant; None if odometry does not cover it.
        sensors: As the last frame saw them, with what preprocessing found.
        drops: By cause, of messages and of frames that got no further.
        num_jumps, num_rejected: Of odometry so far: jumps, and samples that were not finite.
    """

    config: StackConfig
    rig: Rig
    timeline: int
    ego: EgoState | None
    place: Place | None
    sensors: tuple[SensorReport, ...]
    drops: Mapping[str, int]
    num_jumps: int
    num_rejected: int


@dataclass(frozen=True)
class ReadyFrame:
    """A frame as the second half takes it.

    Attributes:
        prepared: Inputs of the network, but for what is remembered.
        around: The surroundings at its stamp.
        now_ns: When it was due, on the clock of the stamps [ns].
        wait_ns: It waited so long for other sensors [ns].
        begun_ns, ready_ns: When its preparation began and ended, on the clock of durations [ns].
    """

    prepared: PreparedFrame
    around: Surroundings
    now_ns: int
    wait_ns: int
    begun_ns: int
    ready_ns: int


class Preparation:
    """The first half. Used by one thread, but for `surroundings`, which any thread may call.

    Attributes:
        ego, assembler: Odometry so far, and what waits for a frame.
        config, rig: In force.
        last_prepared: The newest frame's inputs and points, for reports and displays; None before the first.
        on_prepared: Called with each frame and its inputs, if set.
    """

    def __init__(
        self,
        network: NetworkConfig,
        rig: Rig,
        config: StackConfig,
        convert_image: ConvertImage | None,
        *,
        clock_ns: Callable[[], int],
        on_prepared: Callable[[AssembledFrame, PreparedFrame], None] | None = None,
    ) -> None:
        """Prepare for a rig; arguments and errors are those of `Pipeline`."""
        self.config = config
        self.on_prepared = on_prepared
        self.last_prepared: PreparedFrame | None = None
        self._front = FrontEnd(network, rig, config, convert_image)
        self.ego, self.assembler = self._front.ego, self._front.assembler
        self._clock_ns = clock_ns
        self._counts = InputCounts()
        self._timeline = 0
        self._due_ns: int | None = None  # when the rate limit lets the next frame pass
        self._changing = threading.Lock()  # held for microseconds, never while a frame is prepared

    @property
    def rig(self) -> Rig:
        """The sensors, as last calibrated."""
        return self._front.rig

    # --- in -------------------------------------------------------------------------------------------------

    def push(self, message: SensorMessage) -> None:
        """Take in one sensor message; `InputError` if the rig has no such sensor."""
        with self._changing:
            self.assembler.push(message)

    def push_odometry(self, state: EgoState) -> bool:
        """Take in odometry; False if it was not finite (then it is dropped) or broke continuity."""
        with self._changing:
            try:
                return self.ego.add(state)
            except InputError:
                self._counts.drops["odometry_non_finite"] += 1
                return False

    def set_route(self, route: Route | None) -> None:
        """Follow a route, given in the odometry frame, from the next frame on; None: no route."""
        self._front.route = route

    def set_rig(self, rig: Rig) -> None:
        """Take a calibration of the same sensors; `ConfigError` if they are others than at the start."""
        with self._changing:
            self._front.set_rig(rig)

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
        with self._changing:
            self.config = config
            self._front.update(config)

    def reset(self) -> None:
        """Forget everything but counts, calibration and route."""
        with self._changing:
            self._front.reset()
            self._begin_timeline()

    # --- out ------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `poll` has something to do even if no message arrives [ns]; None: nothing waits."""
        return self.assembler.next_deadline_ns()

    def poll(self, now_ns: int) -> Iterator[ReadyFrame]:
        """Prepare every frame that is due, each when it is asked for.

        Args:
            now_ns: Present time on the clock of the stamps [ns].
        Returns:
            Frames in the order of their stamps; to be iterated to the end.
        """
        with self._changing:
            frames, anew = self._front.poll(now_ns)
            if anew:
                self._begin_timeline()
        for frame in frames:
            if self._is_wanted(frame, now_ns):
                yield self._prepare(frame, now_ns)

    def surroundings(self, at_ns: int) -> Surroundings:
        """What is known now, with the robot as it was at an instant [ns]; may be called from any thread."""
        with self._changing:
            return self._around(at_ns, self.ego.at(at_ns))

    def _prepare(self, frame: AssembledFrame, now_ns: int) -> ReadyFrame:
        begun_ns = self._clock_ns()
        prepared = self._front.prepare(frame)
        self.last_prepared = prepared
        if self.on_prepared is not None:
            self.on_prepared(frame, prepared)
        with self._changing:
            self._counts.take(frame, prepared)
            around = self._around(prepared.stamp_ns, prepared.ego_state)
        wait_ns = frame.emitted_ns - frame.messages[frame.anchor].arrival_ns
        return ReadyFrame(prepared, around, now_ns, wait_ns, begun_ns, self._clock_ns())

    def _around(self, at_ns: int, ego: EgoState | None) -> Surroundings:
        return Surroundings(
            config=self.config,
            rig=self.rig,
            timeline=self._timeline,
            ego=ego,
            place=Place.of(at_ns, ego, self.ego),
            sensors=self._counts.sensors(self.assembler.reports()),
            drops={**self.assembler.drops(), **self._counts.drops},
            num_jumps=self.ego.num_jumps,
            num_rejected=self._counts.drops["odometry_non_finite"],
        )

    def _is_wanted(self, frame: AssembledFrame, now_ns: int) -> bool:
        if now_ns - frame.stamp_ns > nanoseconds(self.config.supervisor.silence_ms):
            self._counts.drops["too_old"] += 1
            return False
        rate = self.config.node.max_rate_hz
        if rate > 0.0:
            period = round(1e9 / rate)
            if self._due_ns is not None and frame.stamp_ns < self._due_ns - RATE_SLACK_NS:
                self._counts.drops["rate_limit"] += 1
                return False
            # Relative to when it was due, so that the rate holds on average; a late frame earns no burst.
            due = frame.stamp_ns if self._due_ns is None else max(self._due_ns, frame.stamp_ns - period)
            self._due_ns = due + period
        return True

    def _begin_timeline(self) -> None:
        self._timeline += 1
        self._due_ns = None
        self._counts.reasons = {}
