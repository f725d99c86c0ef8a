"""How each node runs as a process: start, spin, stop on a signal, exit code."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.nodes.report import NodeReport

# How long a signal may go unnoticed while no message comes. rclpy's own handlers would invalidate the context
# at once, and with it the last words of health and of the recorder.
_SIGNAL_LATENCY_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunnableNode(Protocol):
    """What `run` needs of a node."""

    report: NodeReport
    exit_code: int | None  # set by a node that has come to its own end

    def close(self) -> None:
        """Finish: threads, files."""

    def destroy_node(self) -> Any:
        """Free what rclpy holds."""


def run(
    create: Callable[[], RunnableNode],
    arguments: list[str] | None = None,
    *,
    help_text: str = "",
    drain_s: float = 0.0,
) -> int:
    """Run a node until it ends by itself, or until SIGINT or SIGTERM.

    Args:
        create: Makes the node, after rclpy is set up.
        arguments: Of the command line, default `sys.argv`.
        help_text: Printed in place of running for `--help`.
        drain_s: How long to go on after a signal, so that what has already arrived is still handled [s].
    Returns:
        The exit code: 0 after a signal, 2 for an error that a user can mend, else the node's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words[: words.index("--ros-args")] if "--ros-args" in words else words):
        print(help_text)
        return 0
    stop: list[int] = []
    before = {number: signal.signal(number, lambda got, _: stop.append(got)) for number in _SIGNALS}
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node: RunnableNode | None = None
    try:
        node = create()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok() and not stop and node.exit_code is None:
            node.report.guarded(executor.spin_once, _SIGNAL_LATENCY_S)
        until_s = time.monotonic() + drain_s
        while rclpy.ok() and node.exit_code is None and time.monotonic() < until_s:
            node.report.guarded(executor.spin_once, _SIGNAL_LATENCY_S)
        return node.exit_code or 0
    except E2EPerceptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
