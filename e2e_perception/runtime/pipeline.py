"""One frame from messages to plan; the diagram of docs/architecture.md as code.

    messages -> FrameAssembler -> Preprocessor -> Perception -> SafetySupervisor -> results
                                                  = Engine.infer -> TrackManager -> PlanSelector

It knows neither ROS nor the clock: time is an argument. Given the same messages and times, tracks and plans
are the same to the last bit; how long a stage took decides only, live, whether a plan left too late.

It has two halves, `preparation` (up to the network's inputs) and `decision`. Here one follows the other; the
node runs them in two threads, a frame apart (`runtime/overlap.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import FrameResult, Health
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.assembler import FrameAssembler
from e2e_perception.runtime.decision import Decision
from e2e_perception.runtime.decode import ConvertImage
from e2e_perception.runtime.perception import Perception
from e2e_perception.runtime.preparation import Preparation
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.runtime.supervisor import SafetySupervisor


class Pipeline:
    """The robot side of the stack.

    Attributes:
        network: Sizes and slots of the bundle's network.
        preparation, decision: Its halves.
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
            config: All tunables; those of `engine` are the caller's affair.
            bundle_name: Name and digest for the health report.
            convert_image: From a ROS image message to RGB; the nodes pass cv_bridge's.
            clock_ns: For the durations of stages.
            realtime: Whether computing takes time on the clock of the stamps, as it does on the robot: a
                frame that was worked on for too long is then late. Otherwise the engine counts as taking no
                time, and durations decide nothing.
            on_prepared: Called with the frame and its inputs before the engine runs, if set.
        Raises:
            RigError: If the rig has a sensor that the network does not know.
            ConfigError: If the configured anchors are not in the rig.
            ContractError: If the engine was made for another network.
        """
        self.preparation = Preparation(
            network, rig, config, convert_image, clock_ns=clock_ns, on_prepared=on_prepared
        )
        around = self.preparation.surroundings(0)
        self.decision = Decision(
            network, engine, around, bundle_name, clock_ns=clock_ns, realtime=realtime
        )  # fmt: skip

    @property
    def network(self) -> NetworkConfig:
        """Sizes and slots of the network that runs."""
        return self.perception.network

    @property
    def perception(self) -> Perception:
        """Engine, tracks and plan selection; may be replaced before the first frame."""
        return self.decision.perception

    @perception.setter
    def perception(self, perception: Perception) -> None:
        self.decision.perception = perception

    @property
    def supervisor(self) -> SafetySupervisor:
        """Says how far the stack trusts itself."""
        return self.decision.supervisor

    @property
    def config(self) -> StackConfig:
        """All tunables, as they hold for the next frame."""
        return self.preparation.config

    @property
    def rig(self) -> Rig:
        """The sensors, as last calibrated."""
        return self.preparation.rig

    @property
    def ego(self) -> EgoMotionBuffer:
        """Odometry so far."""
        return self.preparation.ego

    @property
    def assembler(self) -> FrameAssembler:
        """What waits for a frame."""
        return self.preparation.assembler

    @property
    def last_prepared(self) -> PreparedFrame | None:
        """The newest frame's inputs and points, for reports and displays; None before the first."""
        return self.preparation.last_prepared

    # --- in -------------------------------------------------------------------------------------------------

    def push(self, message: SensorMessage) -> None:
        """Take in one sensor message; `InputError` if the rig has no such sensor."""
        self.preparation.push(message)

    def push_odometry(self, state: EgoState) -> bool:
        """Take in odometry.

        Returns:
            False if it was not finite (then it is dropped and counted) or broke continuity.
        """
        return self.preparation.push_odometry(state)

    def set_route(self, route: Route | None) -> None:
        """Follow a route, given in the odometry frame, from the next frame on; None: no route."""
        self.preparation.set_route(route)

    def set_rig(self, rig: Rig) -> None:
        """Take a calibration of the same sensors, from CameraInfo or TF for example.

        Raises:
            ConfigError: If the sensors are others than at the start.
        """
        self.preparation.set_rig(rig)

    def update(self, config: StackConfig) -> None:
        """Take new values of the live parameters; they hold from the next frame on.

        Another engine is not loaded by this: see `switch`.

        Raises:
            ConfigError: If a read-only parameter differs; nothing is changed then.
        """
        self.preparation.update(config)

    def switch(
        self, engine: InferenceEngine, network: NetworkConfig, bundle_name: str, *, same_weights: bool
    ) -> InferenceEngine:
        """Go on with another engine from the next frame on.

        With the same weights it goes on with all that is remembered. With others, what the network itself has
        written down means nothing to the new one: the BEV memory starts empty, and tracks keep identity, box
        and life but lose their token. The last plan goes on to bind the next in either case.

        Args:
            engine: Loaded and warm.
            network: Of its bundle; see `hot_swap.check_fits`.
            bundle_name: Name and digest for the health report.
            same_weights: Whether the engine before ran the same weights.
        Returns:
            The engine before, which is the caller's to close.
        Raises:
            ContractError: If the engine was made for another network; the one before goes on.
        """
        return self.decision.switch(engine, network, bundle_name, same_weights=same_weights)

    def reset(self) -> None:
        """Forget everything but counts, calibration and route; identities start from 0."""
        self.preparation.reset()
        self.decision.reset(self.preparation.surroundings(0))

    # --- out ------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `poll` has something to do even if no message arrives [ns]; None: nothing waits."""
        return self.preparation.next_deadline_ns()

    def poll(self, now_ns: int) -> list[FrameResult]:
        """Run every frame that is due.

        Args:
            now_ns: Present time on the clock of the stamps [ns].
        Returns:
            One result per frame, in the order of their stamps.
        """
        return [
            self.decision.conclude(ready, self.decision.perceive(ready))
            for ready in self.preparation.poll(now_ns)
        ]

    def idle(self, now_ns: int) -> FrameResult | None:
        """What to publish while no frame comes; call it regularly.

        Returns:
            None while all is well; once no frame has come for `supervisor.silence_ms`, a stop with the state
            of the stack, again every half second.
        """
        return self.decision.idle(now_ns, self.preparation.surroundings(now_ns))

    def health(self, now_ns: int) -> Health:
        """State of the stack now."""
        return self.decision.health(now_ns, self.preparation.surroundings(now_ns))
