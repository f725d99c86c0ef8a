"""Records what the stack publishes to an MCAP rosbag2, byte by byte; SIGINT or SIGTERM finishes the bag."""

from __future__ import annotations

import sys
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from e2e_perception.core.errors import ConfigError
from e2e_perception.data.bags import BagWriter
from e2e_perception.nodes.message_factory import message_class
from e2e_perception.nodes.options import RecorderOptions
from e2e_perception.nodes.outputs import OUTPUT_TOPICS
from e2e_perception.nodes.parameters import declared_options
from e2e_perception.nodes.process import run
from e2e_perception.nodes.qos import output_qos, state_qos
from e2e_perception.nodes.report import NodeReport

GRAPH_PERIOD_S = 0.5
QUEUE_DEPTH = 200  # messages of a topic that may wait while the disk is slow
DRAIN_S = 0.5  # after a signal, for what has been received but not yet written


class RecorderNode(Node):
    """Subscribes to serialised messages and writes them.

    Attributes:
        report: Errors.
        exit_code: None: it records until it is stopped.
    """

    def __init__(self) -> None:
        """Create the bag and subscribe.

        Raises:
            E2EPerceptionError: If a parameter or the directory cannot be used.
        """
        super().__init__("recorder_node")
        self.exit_code: int | None = None
        self.report = NodeReport(self.get_logger())
        options = declared_options(self, RecorderOptions)
        if not options.out:
            raise ConfigError("no directory given; set parameter `out`, e.g. --ros-args -p out:=outputs")
        self._bag = BagWriter(options.out)
        self._bag.__enter__()
        self._num_before_clock = 0
        for topic, type_name in OUTPUT_TOPICS.items():
            self._record(f"{options.source}/{topic}", type_name, output_qos(QUEUE_DEPTH))
        self._wanted = list(options.topics)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(GRAPH_PERIOD_S, self._look_for_topics, clock=steady)
        self._look_for_topics()

    def close(self) -> None:
        """Finish the bag."""
        self._bag.__exit__(None, None, None)
        waited = f"; {self._num_before_clock} came before /clock" if self._num_before_clock else ""
        self.get_logger().info(f"recorded {self._bag.num_messages} messages to {self._bag.path}{waited}")

    def _look_for_topics(self) -> None:
        for topic in list(self._wanted):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._wanted.remove(topic)
                self._record(topic, publishers[0].topic_type, state_qos([p.qos_profile for p in publishers]))

    def _record(self, topic: str, type_name: str, qos: Any) -> None:
        full_name = self.resolve_topic_name(topic)

        def write(raw: bytes) -> None:
            now_ns = int(self.get_clock().now().nanoseconds)
            if now_ns == 0:  # simulated time has not begun; a bag from 1970 to now helps nobody
                self._num_before_clock += 1
                return
            self._bag.write_raw(full_name, type_name, now_ns, raw)

        self.create_subscription(message_class(type_name), topic, write, qos, raw=True)


def main() -> int:
    """Entry point of `recorder_node`."""
    return run(RecorderNode, drain_s=DRAIN_S)


if __name__ == "__main__":
    sys.exit(main())
