"""Watching a stack that runs in other processes, through ROS 2 alone; rclpy is imported when it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import psutil

from e2e_perception.cli.processes import NodeError, NodeProcess
from e2e_perception.core.message_results import health_from_message
from e2e_perception.core.messages import HEALTH_TYPE
from e2e_perception.core.results import Health

SPIN_S = 0.1
_REFUSALS = 3  # a node that configures itself at the same moment refuses once or twice


class StackWatcher:
    """A ROS node of our own that activates the stack and listens to its health.

    Attributes:
        health: The newest state of the stack, None before the first.
        frames: How many frames the stack says it has processed.
    """

    def __init__(self, domain: int, nodes: Sequence[NodeProcess]) -> None:
        """Join a domain.

        Args:
            domain: ROS_DOMAIN_ID.
            nodes: Processes whose death ends every wait; more may be added to `nodes` later.
        """
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor

        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("demo_watcher", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.nodes = list(nodes)
        self.health: Health | None = None
        self.frames = 0
        self._frame_at = time.monotonic()
        self._health_topic: str | None = None

    def __enter__(self) -> StackWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def wait_until(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Handle messages until a condition holds.

        Raises:
            NodeError: If a node dies first, or time is up; with its last words.
        """
        deadline = time.monotonic() + timeout_s
        while not done():
            self._executor.spin_once(timeout_sec=SPIN_S)
            for node in self.nodes:
                if node.exit_code is not None:
                    node.wait_for_output()
                    raise NodeError(node.failure())
            if time.monotonic() > deadline:
                words = "\n".join(node.failure() for node in self.nodes)
                raise NodeError(f"waited {timeout_s:.0f} s for {what}.\n{words}")

    def activate(self, name: str, timeout_s: float) -> None:
        """Bring a lifecycle node to `active`, unless it goes there by itself.

        Raises:
            NodeError: If it does not get there.
        """
        from lifecycle_msgs.msg import State, Transition
        from lifecycle_msgs.srv import ChangeState, GetState

        get = self._node.create_client(GetState, f"/{name}/get_state")
        change = self._node.create_client(ChangeState, f"/{name}/change_state")
        self.wait_until(
            lambda: get.service_is_ready() and change.service_is_ready(), f"{name} to appear", timeout_s
        )
        steps = {
            State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_CONFIGURE,
            State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_ACTIVATE,
        }
        deadline = time.monotonic() + timeout_s
        refusals = 0
        while True:
            state = self._call(get, GetState.Request(), f"the state of {name}", timeout_s).current_state
            if state.id == State.PRIMARY_STATE_ACTIVE:
                return
            if state.id == State.PRIMARY_STATE_FINALIZED or time.monotonic() > deadline:
                break
            if state.id not in steps:
                continue  # on its way; asking again waits for the answer
            request = ChangeState.Request(transition=Transition(id=steps[state.id]))
            answer = self._call(change, request, f"{name} to leave `{state.label}`", timeout_s)
            refusals += not answer.success
            if refusals >= _REFUSALS:
                break
        words = "\n".join(node.failure() for node in self.nodes if node.name == name)
        raise NodeError(f"{name} did not become active, it is `{state.label}`. {words}")

    def listen(self, timeout_s: float, *, recorder: str) -> None:
        """Subscribe to the stack's health, and wait until the recorder hears the stack.

        Args:
            timeout_s: How long to wait.
            recorder: Name of the recorder node.
        """
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
        from std_msgs.msg import Bool

        from e2e_perception.msg import Health as HealthMessage

        self.wait_until(self._find_health, "a Health topic", timeout_s)
        assert self._health_topic is not None
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(HealthMessage, self._health_topic, self._take_health, reliable)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        heard: list[Any] = []
        self._node.create_subscription(Bool, f"/{recorder}/connected", heard.append, latched)
        self.wait_until(lambda: bool(heard), f"{recorder} to hear the stack", timeout_s)
        # And we ourselves: any health is proof.
        self.wait_until(lambda: self.health is not None, f"{self._health_topic}", timeout_s)

    def quiet_s(self) -> float:
        """Time since the number of processed frames last rose [s]."""
        return time.monotonic() - self._frame_at

    def _call(self, client: Any, request: Any, what: str, timeout_s: float) -> Any:
        future = client.call_async(request)
        self.wait_until(future.done, what, timeout_s)
        return future.result()

    def _find_health(self) -> bool:
        for topic, types in self._node.get_topic_names_and_types():
            if HEALTH_TYPE in types and self._node.count_publishers(topic) > 0:
                self._health_topic = topic
                return True
        return False

    def _take_health(self, message: Any) -> None:
        self.health = health_from_message(message)
        if self.health.frames != self.frames:
            self.frames = self.health.frames
            self._frame_at = time.monotonic()


class ProcessMeter:
    """CPU time and memory of a process and its threads, from when this is made."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._started = time.monotonic()
        self._cpu_s = self._cpu_now()
        self.peak_memory_mb = 0.0
        self.cpu_share = 0.0
        self.sample()

    def sample(self) -> None:
        """Look now; a process that has ended keeps its last figures."""
        try:
            memory_mb = self._process.memory_info().rss / 1e6
            cpu_s = self._cpu_now() - self._cpu_s
        except psutil.NoSuchProcess:
            return
        self.peak_memory_mb = max(self.peak_memory_mb, memory_mb)
        self.cpu_share = cpu_s / max(time.monotonic() - self._started, 1e-3)

    def _cpu_now(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
