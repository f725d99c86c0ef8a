"""Records what the stack publishes to an MCAP rosbag2, byte by byte; SIGINT or SIGTERM finishes the bag.

Says `true` on the latched topic `~/connected` once it has heard the stack's health, which the stack repeats
in every state: what is published before that would be missing from the bag.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import Bool

from e2e_perception.core.config import section_specs
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.messages import HEALTH_TYPE
from e2e_perception.data.bags import BagWriter
from e2e_perception.nodes.message_factory import message_class
from e2e_perception.nodes.options import RecorderOptions
from e2e_perception.nodes.outputs import HEALTH_TOPIC, OUTPUT_TOPICS
from e2e_perception.nodes.parameters import declared_options, node_help
from e2e_perception.nodes.process import run
from e2e_perception.nodes.qos import latched_qos, output_qos, state_qos
from e2e_perception.nodes.report import NodeReport

GRAPH_PERIOD_S = 0.5
QUEUE_DEPTH = 200  # messages of a topic that may wait while the disk is slow
MOST_BEFORE_CLOCK = 1000
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
        self._num_given_up = 0  # the oldest of those that wait, when they become too many
        self._waiting: deque[tuple[str, str, bytes]] = deque(maxlen=MOST_BEFORE_CLOCK)
        self._connected = self.create_publisher(Bool, "~/connected", latched_qos())
        self._said_connected = False
        # Health comes last: whoever hears that hears the others, for readers are announced in order.
        assert list(OUTPUT_TOPICS)[-1] == HEALTH_TOPIC
        for topic, type_name in OUTPUT_TOPICS.items():
            self._record(f"{options.source}/{topic}", type_name, output_qos(QUEUE_DEPTH))
        self._wanted = list(options.topics)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(GRAPH_PERIOD_S, self._look_for_topics, clock=steady)
        self._look_for_topics()

    def close(self) -> None:
        """Finish the bag."""
        self._bag.__exit__(None, None, None)
        lost = len(self._waiting) + self._num_given_up
        waited = f"; {lost} came without /clock and are lost" if lost else ""
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
            if not self._said_connected and type_name == HEALTH_TYPE:
                self._said_connected = True
                self._connected.publish(Bool(data=True))
            now_ns = int(self.get_clock().now().nanoseconds)
            if len(self._waiting) == MOST_BEFORE_CLOCK:
                self._num_given_up += 1
            self._waiting.append((full_name, type_name, raw))
            # While simulated time has not begun they wait: a bag from 1970 to now helps nobody.
            while now_ns > 0 and self._waiting:
                name, kind, content = self._waiting.popleft()
                self._bag.write_raw(name, kind, now_ns, content)

        self.create_subscription(message_class(type_name), topic, write, qos, raw=True)


def main() -> int:
    """Entry point of `recorder_node`."""
    about = node_help(__doc__ or "", section_specs(RecorderOptions))
    return run(RecorderNode, help_text=about, drain_s=DRAIN_S)


if __name__ == "__main__":
    sys.exit(main())
