"""The part of a frame with memory: tensors in, tracks and a plan out.

Three things remember the last good frame: the engine (BEV map), the track manager, the plan selector. All are
moved here by the same ego motion, and all forget when it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.errors import ContractError, E2EPerceptionError
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import PlanCandidates
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.plan_selector import PlanSelector
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.runtime.track_manager import TrackManager

MAX_MEMORY_GAP_NS = 1_000_000_000  # after a longer gap nothing is remembered


@dataclass(frozen=True)
class Place:
    """Where the robot was at an instant, within one stretch of continuous odometry (`epoch`)."""

    stamp_ns: int
    odom_from_base: SE3
    epoch: int

    @staticmethod
    def of(stamp_ns: int, ego: EgoState | None, odometry: EgoMotionBuffer) -> Place | None:
        """The place of an interpolated state; None if there is none."""
        return None if ego is None else Place(stamp_ns, ego.odom_from_base, odometry.epoch)


def motion_since(before: Place | None, now: Place | None) -> SE2 | None:
    """The base frame now from the one before; None if odometry does not connect the two."""
    if before is None or now is None or before.epoch != now.epoch or now.stamp_ns <= before.stamp_ns:
        return None
    return (now.odom_from_base.inverse() @ before.odom_from_base).planar_part()


@dataclass(frozen=True)
class Perceived:
    """What one frame's tensors amounted to.

    Attributes:
        tracks, plan, candidates: None if there is a problem; plan and candidates also without a route, and
            without ego motion: a plan for a robot that seems to stand is none for one that drives.
        problem: Why the frame is bad; empty if it is good.
        cause: `engine_error` or `non_finite_output`; empty if it is good.
    """

    tracks: Tracks | None = None
    plan: Plan | None = None
    candidates: PlanCandidates | None = None
    problem: str = ""
    cause: str = ""


class _BadFrameError(Exception):
    def __init__(self, cause: str, problem: str) -> None:
        super().__init__(problem)
        self.cause = cause


class Perception:
    """Engine, tracks and plan selection over one memory.

    Attributes:
        tracker, selector: The stages behind the engine.
    """

    def __init__(self, network: NetworkConfig, engine: InferenceEngine, config: StackConfig) -> None:
        self._take(network, engine)
        self.tracker = TrackManager(network, config.tracking)
        self.selector = PlanSelector(network, config.planning)
        self._still_theta_23 = network.bev_grid.sampling_theta(SE2(0.0, 0.0, 0.0))
        self.forget()

    def _take(self, network: NetworkConfig, engine: InferenceEngine) -> None:
        difference = tensor_contract(network).difference(engine.contract.to_json())
        if difference is not None:
            raise ContractError(
                f"the engine does not fit network {network.size!r}: {difference}; load the engine and the "
                "network from the same bundle"
            )
        self.network = network
        self.engine = engine
        recurrent = {name for name, _ in engine.contract.state}
        self._outputs = tuple(s for s in engine.contract.outputs if s.name not in recurrent)

    def forget(self) -> None:
        """Start a new timeline; identities go on."""
        self._memory: Place | None = None
        self._planned: Place | None = None
        self._bev_frames = 0  # that its memory goes back; 0: it remembers nothing
        self._inherited: dict[str, NDArray[np.float32]] = {}  # the engine's state, from the one before
        self.tracker.forget()
        self.selector.reset()

    def start_anew(self) -> None:
        """Forget, the engine too: what it holds may be of a frame that was given up."""
        self.forget()
        self.engine.reset_state()

    def switch(
        self, engine: InferenceEngine, network: NetworkConfig, *, same_weights: bool
    ) -> InferenceEngine:
        """Go on with another engine; see `Pipeline.switch`."""
        before, inherited = self.engine, dict[str, NDArray[np.float32]]()
        if same_weights and self._bev_frames > 0:
            inherited = self._inherited or before.state()
        self._take(network, engine)
        self._inherited = inherited
        if not same_weights:
            self._bev_frames = 0
            self.tracker.forget_tokens()
        return before

    def update(self, config: StackConfig) -> None:
        """Take new parameters."""
        self.tracker.config = config.tracking
        self.selector.update(config.planning)

    def step(self, prepared: PreparedFrame, place: Place | None, mark: Callable[[], None]) -> Perceived:
        """Run one frame.

        Args:
            prepared: Inputs without memory.
            place: Where the robot was then; None if unknown.
            mark: Called at the end of each of three stages: infer, track, plan.
        Returns:
            Tracks and plan, or the problem. A bad frame leaves the tracks as the last good one did, and makes
            the engine forget, because what it remembers may be as bad as what it gave.
        """
        memory = self._memory
        if memory is not None and prepared.stamp_ns - memory.stamp_ns > MAX_MEMORY_GAP_NS:
            memory = None
        base_from_memory = motion_since(memory, place)
        try:
            outputs = self._infer(prepared, base_from_memory)
            mark()
            tracks = self._track(prepared.stamp_ns, outputs)
        except _BadFrameError as bad:
            return self._bad_frame(bad)
        mark()
        plan, candidates = None, None
        if prepared.route is not None and prepared.ego_state is not None:
            plan, candidates = self.selector.select(
                prepared.stamp_ns,
                outputs,
                prepared.route,
                prepared.ego_state,
                motion_since(self._planned, place),
            )
            self._planned = place
        mark()
        self._memory = place
        if place is None:
            self._bev_frames = 0
        return Perceived(tracks, plan, candidates)

    def _infer(self, prepared: PreparedFrame, base_from_memory: SE2 | None) -> dict[str, NDArray[np.float32]]:
        inherited, self._inherited = self._inherited, {}
        inputs: dict[str, NDArray[Any]] = {
            **inherited,
            **prepared.inputs,
            **self.tracker.inputs(prepared.stamp_ns, base_from_memory),
        }
        theta_23, remembered = self._still_theta_23, 0.0
        if base_from_memory is not None and 0 < self._bev_frames < self.network.memory_frames:
            theta_23, remembered = self.network.bev_grid.sampling_theta(base_from_memory.inverse()), 1.0
        self._bev_frames = self._bev_frames + 1 if remembered else 1
        inputs["bev_theta"] = theta_23[None]
        inputs["memory_valid"] = np.full((1, 1), remembered, np.float32)
        try:
            outputs = self.engine.infer(inputs)
        except Exception as error:
            # Whatever an inference library throws, it must not stop the robot.
            raise _BadFrameError("engine_error", f"engine: {type(error).__name__}: {error}") from error
        for spec in self._outputs:
            got = outputs.get(spec.name)
            if got is None or tuple(got.shape) != spec.shape:
                shape = "missing" if got is None else list(got.shape)
                raise _BadFrameError(
                    "engine_error", f"engine output {spec.name!r} is {shape}, expected {list(spec.shape)}"
                )
            if not np.isfinite(got).all():
                raise _BadFrameError("non_finite_output", f"engine output {spec.name!r} is not finite")
        return outputs

    def _track(self, stamp_ns: int, outputs: dict[str, NDArray[np.float32]]) -> Tracks:
        try:
            return self.tracker.update(stamp_ns, outputs)
        except E2EPerceptionError as error:
            raise _BadFrameError("non_finite_output", str(error)) from error

    def _bad_frame(self, bad: _BadFrameError) -> Perceived:
        problem = str(bad)
        self._bev_frames = 0
        try:
            self.engine.reset_state()
        except Exception as error:  # noqa: BLE001 - said on the health topic; the next frame tries again
            problem += f"; its state could not be reset: {type(error).__name__}: {error}"
        return Perceived(problem=problem, cause=bad.cause)
