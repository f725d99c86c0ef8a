"""Plays a rosbag2 recording (MCAP or SQLite3) at its own pace, through rosbags, without rosbag2's own tools.

Messages are published as they were recorded, byte by byte. Topics whose type is not installed are left out,
with a line in the log. Exit codes: 0 at the end or after a signal, 2 if the bag is damaged (what could be
read has been played then) or nobody listened.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from e2e_perception.core.config import section_specs
from e2e_perception.core.errors import ConfigError, E2EPerceptionError, InputError
from e2e_perception.core.messages import time_message
from e2e_perception.data.bags import BagSource
from e2e_perception.nodes.message_factory import RclpyFactory, message_class
from e2e_perception.nodes.options import ReplayOptions
from e2e_perception.nodes.parameters import declared_options, node_help
from e2e_perception.nodes.player import RawMessage, schedule
from e2e_perception.nodes.process import run
from e2e_perception.nodes.report import NodeReport

LATCHED_TOPICS = ("/tf_static",)
LATE_NS = 50_000_000  # a message published this much after its time counts as late
TAIL_NS = 500_000_000  # the clock runs on, so that what waits for late sensors is finished
SETTLE_S = 0.5  # a subscriber that we see may not see us yet, and would get its first message late


class ReplayNode(Node):
    """Publishes a bag from a thread of its own.

    Attributes:
        report: Errors.
        exit_code: Set at the end of the bag.
    """

    def __init__(self) -> None:
        """Open the bag and begin.

        Raises:
            E2EPerceptionError: If a parameter or the bag cannot be used.
        """
        super().__init__("replay_node")
        self.exit_code: int | None = None
        self.report = NodeReport(self.get_logger())
        self._options = declared_options(self, ReplayOptions)
        if not self._options.bag:
            raise ConfigError("no bag given; set parameter `bag`, e.g. --ros-args -p bag:=my_bag")
        topics = self._options.topics or None
        self._source = BagSource(Path(self._options.bag), topics)
        self._start_ns, self._stop_ns = _bounds(self._source, self._options)
        played = topics or list(self._source.types)
        self._players = self._create_publishers({topic: self._source.types[topic] for topic in played})
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", QoSProfile(depth=10)) if self._options.clock else None
        )
        self._make = RclpyFactory()
        self._counts = dict.fromkeys(self._players, 0)
        self._num_late = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="player", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop playing and close the bag."""
        self._stopping.set()
        self._thread.join()
        self._source.close()

    def _create_publishers(self, types: dict[str, str]) -> dict[str, Any]:
        renamed = _remapping(self._options.remap, types)
        publishers = {}
        for topic, type_name in types.items():
            if topic == "/clock" and self._options.clock:
                self.get_logger().info("the recorded /clock is left out; the bag's own time is published")
                continue
            try:
                kind = message_class(type_name)
            except InputError as error:
                self.get_logger().warning(f"{topic} is left out: {error}")
                continue
            # Reliable suits best-effort subscribers too, and large messages need it.
            qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
            if topic in LATCHED_TOPICS:
                qos.durability = DurabilityPolicy.TRANSIENT_LOCAL
            publishers[topic] = self.create_publisher(kind, renamed.get(topic, topic), qos)
        if not publishers:
            raise InputError(f"no topic of bag {self._source.path} can be played here")
        return publishers

    # --- in the player's thread -----------------------------------------------------------------------------

    def _play(self) -> None:
        code = 2
        try:
            self._wait_for_subscribers()
            self._play_all()
            code = 0
        except E2EPerceptionError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        finally:
            self._summarize()
            if code or self._options.shutdown_at_end:
                self.exit_code = code

    def _wait_for_subscribers(self) -> None:
        wanted = self._options.wait_for_subscribers
        if wanted <= 0:
            return
        deadline_s = time.monotonic() + self._options.wait_timeout
        while not self._stopping.is_set():
            heard = [topic for topic, p in self._players.items() if p.get_subscription_count() > 0]
            if len(heard) >= wanted:
                self._settle()
                return
            if time.monotonic() > deadline_s:
                deaf = ", ".join(topic for topic in self._players if topic not in heard)
                raise InputError(
                    f"only {len(heard)} of {wanted} topics found a subscriber within "
                    f"{self._options.wait_timeout:g} s; nobody listens to {deaf}"
                )
            self._stopping.wait(0.05)

    def _settle(self) -> None:
        """Let the connections come about; time stands at the start, so that all know it when it begins."""
        until_s = time.monotonic() + SETTLE_S
        while time.monotonic() < until_s and not self._stopping.wait(0.05):
            self._tick(self._start_ns)

    def _tick(self, bag_ns: int) -> None:
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=time_message(self._make, bag_ns)))

    def _play_all(self) -> None:
        clock_rate = self._options.clock_rate if self._clock_publisher is not None else 0.0
        begun_ns = time.monotonic_ns()
        for due in schedule(
            self._read,
            start_ns=self._start_ns,
            stop_ns=self._stop_ns,
            rate=self._options.rate,
            loop=self._options.loop,
            clock_period_ns=round(1e9 / clock_rate) if clock_rate > 0.0 else 0,
            tail_ns=TAIL_NS,
        ):
            ahead_ns = begun_ns + due.wall_ns - time.monotonic_ns()
            if ahead_ns > 0:
                self._stopping.wait(ahead_ns * 1e-9)
            if self._stopping.is_set():
                return
            # Before the message, so that its arrival is not dated back.
            self._tick(due.bag_ns)
            if due.message is not None:
                topic, _, raw = due.message
                self._players[topic].publish(raw)
                self._counts[topic] += 1
                self._num_late += ahead_ns < -LATE_NS
        for publisher in self._players.values():
            publisher.wait_for_all_acked(Duration(seconds=1))

    def _read(self) -> Any:
        def playable(message: RawMessage) -> bool:
            return message[0] in self._players

        return filter(playable, self._source.raw_messages(self._start_ns, self._stop_ns + 1))

    def _summarize(self) -> None:
        played = ", ".join(f"{topic} {count}" for topic, count in self._counts.items())
        seconds = (self._stop_ns - self._start_ns) * 1e-9
        late = f"; {self._num_late} more than {LATE_NS / 1e6:.0f} ms late" if self._num_late else ""
        self.get_logger().info(
            f"played {sum(self._counts.values())} messages of {seconds:.1f} s{late}: {played}"
        )


def _bounds(source: BagSource, options: ReplayOptions) -> tuple[int, int]:
    """First and last time to play [ns]."""
    start_ns = source.start_ns + round(options.start * 1e9)
    stop_ns = source.end_ns
    if options.duration > 0.0:
        stop_ns = min(stop_ns, start_ns + round(options.duration * 1e9))
    if start_ns >= stop_ns:
        length = (source.end_ns - source.start_ns) * 1e-9
        raise ConfigError(f"start is {options.start:g} s, but the bag is only {length:.1f} s long")
    return start_ns, stop_ns


def _remapping(rules: list[str], types: dict[str, str]) -> dict[str, str]:
    renamed = {}
    for rule in rules:
        source, separator, target = rule.partition(":=")
        if not (source and separator and target):
            raise ConfigError(f"remap has {rule!r}, expected `/from:=/to`")
        if source not in types:
            raise ConfigError(f"remap names {source}, which is not played; there are {', '.join(types)}")
        renamed[source] = target
    return renamed


def main() -> int:
    """Entry point of `replay_node`."""
    return run(ReplayNode, help_text=node_help(__doc__ or "", section_specs(ReplayOptions)))


if __name__ == "__main__":
    sys.exit(main())
