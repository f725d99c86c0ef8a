"""The stack on the robot: sensors in, tracks and a plan out.

    topic in                             type
    the rig's sensor topics              sensor_msgs/Image or CompressedImage, PointCloud2
    the rig's camera_info_topic          sensor_msgs/CameraInfo
    the rig's odom_topic, route_topic    nav_msgs/Odometry, nav_msgs/Path
    /tf_static                           tf2_msgs/TFMessage

    topic out                            type
    ~/tracks  ~/plan  ~/plan_candidates  e2e_perception/Tracks, Plan, PlanCandidates
    ~/health                             e2e_perception/Health, in every lifecycle state
    ~/path  ~/markers  /diagnostics      nav_msgs/Path, visualization_msgs/MarkerArray, diagnostic_msgs

A lifecycle node: configure loads rig, bundle and engine; activate starts; deactivate stops; cleanup unloads.
With `autostart` (the default) it does the first two by itself, for use without a lifecycle manager.

Parameters may be set while it runs. Another `engine.…` is loaded beside the one that drives, and takes over
between two frames; if it cannot, the one before goes on, health says why, and the parameters are set back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from e2e_perception.core.config import StackConfig, parameter_specs
from e2e_perception.core.errors import ConfigError, E2EPerceptionError
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.nodes.outputs import Outputs
from e2e_perception.nodes.parameters import StackParameters, declare, given_values, node_help
from e2e_perception.nodes.process import run
from e2e_perception.nodes.report import NodeReport
from e2e_perception.nodes.sensor_inputs import SensorInputs, rig_inputs
from e2e_perception.nodes.stack import Stack
from e2e_perception.nodes.synchronizer import Synchronizer, require_message_filters
from e2e_perception.nodes.worker import PipelineWorker
from e2e_perception.runtime.hot_swap import LoadedEngine
from e2e_perception.runtime.idle_gc import IdleCollector
from e2e_perception.runtime.overlap import HEARTBEAT_S

if TYPE_CHECKING:
    from e2e_perception.nodes.event_recorder import EventRecorder

AUTOSTART = ParameterDescriptor(
    description="Configure and activate at the start; false where a lifecycle manager does it.",
    read_only=True,
)
NO_CLOCK = "clock"
ENGINE = "engine"
_Transition = Callable[[LifecycleState], TransitionCallbackReturn]


class PerceptionNode(LifecycleNode):
    """Adapter between ROS 2 and the pipeline.

    Attributes:
        report: What the node has to say besides the pipeline.
        exit_code: None: it runs until it is stopped.
    """

    def __init__(self) -> None:
        """Declare parameters, create publishers, and start if `autostart` is set."""
        super().__init__("perception_node")
        self.exit_code: int | None = None
        self.report = NodeReport(self.get_logger())
        given = given_values(self)
        autostart = given.pop("autostart", True)
        declare(self, "autostart", Parameter.Type.BOOL, bool(autostart), AUTOSTART)
        self._stack_parameters = StackParameters(self, given, self._on_parameters)
        self._sim_time = bool(self.get_parameter("use_sim_time").value)
        self._outputs = Outputs(self, self._now_ns)
        self._stack: Stack | None = None
        self._inputs: SensorInputs | None = None
        self._worker: PipelineWorker | None = None
        self._events: EventRecorder | None = None
        self._collector = IdleCollector()
        self._engine_ready = self.create_guard_condition(self._on_engine)
        # Steady: these have to go on when simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(HEARTBEAT_S, self._beat, clock=steady)
        if autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle ------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load rig, bundle and engine."""
        return self._guarded_transition(self._configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start."""
        return self._guarded_transition(self._activate, state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop; what was remembered is forgotten."""
        return self._guarded_transition(self._deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unload."""
        return self._guarded_transition(self._cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and unload, from any state."""
        return self._guarded_transition(self._cleanup, state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an error in a transition: back to unconfigured, the error still on health."""
        return self._guarded_transition(self._unload, state)

    def _guarded_transition(self, transition: _Transition, state: LifecycleState) -> TransitionCallbackReturn:
        # rclpy turns an exception into an error of the transition without a word about it.
        result = self.report.guarded(transition, state)
        return TransitionCallbackReturn.ERROR if result is None else result

    def _configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            if self._stack_parameters.problem:
                raise ConfigError(self._stack_parameters.problem)
            require_message_filters(self._stack_parameters.config.sync.policy)
            config = self._stack_parameters.config
            cv2.setNumThreads(_opencv_threads(config))
            self._stack = Stack(config, self.report, self._engine_ready.trigger, self._say_configuring)
        except E2EPerceptionError as error:
            self.report.problem("configure", f"not configured: {error}")
            return TransitionCallbackReturn.FAILURE
        self.report.solved("configure")
        self.report.solved(ENGINE)
        self.get_logger().info(f"configured: {self._stack.describe()}")
        return TransitionCallbackReturn.SUCCESS

    def _activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._stack is not None
        result = super().on_activate(state)
        self._events = self._event_recorder()
        self._worker = PipelineWorker(
            self._stack.pipeline,
            now_ns=self._now_ns,
            sim_time=self._sim_time,
            on_result=self._on_result,
            on_heartbeat=self._publish_health,
            report=self.report,
            on_quiet=self._collector.after_frame,
            on_late=self._stack.close,
        )
        self._worker.submit(self._stack.pipeline.update, self._stack_parameters.config)
        self._worker.start()
        inputs = rig_inputs(
            self._stack.rig,
            self._stack_parameters.config.node,
            on_sensor=self._sensor_callback(),
            on_camera_info=self._on_camera_info,
            on_odometry=self._on_odometry,
            on_route=self._on_route,
            on_transforms=self._on_transforms,
        )
        tap = None if self._events is None else self._events.take
        self._inputs = SensorInputs(self, inputs, self.report, tap)
        self._collector.start()
        return result

    def _deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if not self._stop():
            return TransitionCallbackReturn.ERROR
        if self._stack is not None:
            self._stack.pipeline.reset()
        return super().on_deactivate(state)

    def _cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.report.clear()
        return self._unload(state)

    def _unload(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Stop and unload, whatever the state."""
        self._stop()
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def _stop(self) -> bool:
        """End what `_activate` began; False if the engine does not answer, then the stack is left to it."""
        ended = True
        self._collector.stop()
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._worker is not None:
            ended = self._worker.stop()
            self._worker = None
        if self._events is not None:
            self._outputs.on_decision = None
            self._events.close()
            self._events = None
        if not ended and self._stack is not None:
            stack, self._stack = self._stack, None  # closed by who is inside, should they ever come out
            stack.swap.close()
            self.report.problem(ENGINE, "the engine does not answer and was left behind; configure again")
        return ended

    def _event_recorder(self) -> EventRecorder | None:
        """None where no rule says what to keep."""
        assert self._stack is not None
        if self._stack.triggers is None:
            return None
        # A robot that keeps nothing needs no rosbags.
        from e2e_perception.nodes.event_recorder import EventRecorder

        events = EventRecorder(
            self._stack_parameters.config.triggers,
            self._stack.triggers,
            self._stack.facts(),
            node_name=self.get_fully_qualified_name(),
            now_ns=self._now_ns,
            report=self.report,
            logger=self.get_logger(),
        )
        self._outputs.on_decision = events.take_decision
        return events

    # --- in: each callback leaves its message with the pipeline's threads -----------------------------------

    def _sensor_callback(self) -> Callable[[str, Any], None]:
        assert self._stack is not None
        sync = self._stack_parameters.config.sync
        if sync.policy == "anchor":
            return self._on_sensor
        return Synchronizer(self._stack.rig, sync.policy, sync.queue_size, self._on_sensor).add

    def _on_sensor(self, name: str, message: Any) -> None:
        now_ns = self._now_ns()
        if now_ns == 0:
            self.report.dropped("no_clock")
        else:
            self._submit("take_sensor", name, message, now_ns, may_be_lost=True)

    def _on_camera_info(self, name: str, message: Any) -> None:
        self._submit("take_camera_info", name, message, subject=f"camera_info {name}")

    def _on_odometry(self, message: Any) -> None:
        self._submit("take_odometry", message, may_be_lost=True)

    def _on_route(self, message: Any) -> None:
        self._submit("take_route", message)

    def _on_transforms(self, message: Any) -> None:
        self._submit("take_transforms", message)

    def _submit(self, method: str, *arguments: Any, may_be_lost: bool = False, subject: str = "") -> None:
        if self._worker is not None and self._stack is not None:
            take = getattr(self._stack, method)
            self._worker.submit(take, *arguments, may_be_lost=may_be_lost, subject=subject)

    # --- parameters -----------------------------------------------------------------------------------------

    def _on_parameters(self, config: StackConfig) -> Callable[[], None]:
        """What follows from new parameters; raises if they may not be."""
        stack, swap = self._stack, None
        if stack is not None and config.engine != self._stack_parameters.config.engine:
            swap = stack.successor(config.engine)

        def put_in_force() -> None:
            if stack is None:
                return
            cv2.setNumThreads(_opencv_threads(config))
            if self._worker is not None:
                self._worker.submit(stack.pipeline.update, config)
            if swap is not None:
                stack.begin_swap(swap, config.engine)
                self.get_logger().info(f"loading bundle {swap} on {config.engine.backend}")

        return put_in_force

    def _on_engine(self) -> None:
        """Another engine is there, or cannot be."""
        stack = self._stack
        outcome = None if stack is None else stack.swap.outcome()
        if stack is None or outcome is None:
            return
        if isinstance(outcome, str):
            stack.swap.finish()
            self.report.problem(
                ENGINE, f"engine not changed: {outcome}; bundle {stack.facts().bundle} goes on"
            )
            self._stack_parameters.show(stack.engine_config)
        elif self._worker is not None:
            self._worker.between_frames(lambda: self._switch(stack, outcome))
        else:
            self._switch(stack, outcome)

    def _switch(self, stack: Stack, loaded: LoadedEngine) -> None:
        """Between two frames, in the thread of the pipeline's second half."""
        try:
            stack.switch(loaded)
        except Exception as error:  # noqa: BLE001 - of whatever library; it is said, and the old engine goes on
            loaded.engine.close()
            stack.swap.fail(f"{type(error).__name__}: {error}")
            return
        stack.swap.finish()
        self.report.solved(ENGINE)
        if self._events is not None:
            self._events.set_facts(stack.facts())
        self.get_logger().info(f"engine changed: {stack.describe()}")

    # --- out ------------------------------------------------------------------------------------------------

    def _on_result(self, result: FrameResult) -> None:
        assert self._stack is not None
        health, rig = self.report.merged(result.health), self._stack.rig
        self._outputs.publish(result, health, self._stack_parameters.config.node, rig.base_frame, rig.name)
        if self._events is not None:
            self._events.observe(result, self._stack.pipeline.preparation.surroundings(result.stamp_ns))

    def _publish_health(self, health: Health, now_ns: int) -> None:
        rig = None if self._stack is None else self._stack.rig
        base_frame, name = ("", "") if rig is None else (rig.base_frame, rig.name)
        self._outputs.publish_health(self.report.merged(health), now_ns, base_frame, name)

    def _beat(self) -> None:
        """Twice a second: look at the publishers, and say something while the pipeline's threads do not."""
        now_ns = self._now_ns()
        if self._sim_time and now_ns == 0:
            self.report.problem(NO_CLOCK, "use_sim_time is set, but nothing has come on /clock yet")
        else:
            self.report.solved(NO_CLOCK)
        if self._stack is not None:
            self._stack.swap.give_up(self._stack_parameters.config.supervisor.load_timeout_s)
        if self._inputs is not None:
            self._inputs.check()
        if self._events is not None:
            self._events.beat()
        if self._worker is None:
            self._publish_health(self._health_at_rest(now_ns), now_ns)

    def _say_configuring(self) -> None:
        self._publish_health(_resting_health("configuring"), self._now_ns())

    def _health_at_rest(self, now_ns: int) -> Health:
        if self._stack is not None:
            health = self._stack.pipeline.health(now_ns)
            return replace(health, state=SafetyState.STOPPED, reasons=("inactive", *health.reasons))
        return _resting_health("unconfigured")

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _resting_health(reason: str) -> Health:
    return Health(SafetyState.STOPPED, (reason,), (), "", "", 0, 0, {}, {})


def _opencv_threads(config: StackConfig) -> int:
    """As OpenCV wants it: there, 0 is none at all, and less than that is its own choice."""
    return config.node.prepare_threads or -1


def main() -> int:
    """Entry point of `perception_node`."""
    return run(PerceptionNode, help_text=node_help(__doc__ or "", parameter_specs()))


if __name__ == "__main__":
    sys.exit(main())
