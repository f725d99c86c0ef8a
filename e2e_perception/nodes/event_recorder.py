"""Keeps what the sensors sent around moments that rules name: rules, memory and writer of one active node.

Messages come from the thread that receives, frames from that of the pipeline; a lock that nobody holds for
long is between them. The disk is in a third thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.serialization import serialize_message

from e2e_perception.core.config import TriggersConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.snippets import RawMessage, StackFacts
from e2e_perception.data.snippet_writer import SnippetWriter
from e2e_perception.data.snippets import SnippetInfo, SnippetStore
from e2e_perception.nodes.report import NodeReport
from e2e_perception.runtime.capture import Capture
from e2e_perception.runtime.preparation import Surroundings
from e2e_perception.runtime.trigger_signals import SignalReader
from e2e_perception.runtime.triggers import Triggers

SUBJECT = "snippets"
PATIENCE_S = 10.0  # for the disk, when the node is deactivated


class EventRecorder:
    """From activation to deactivation."""

    def __init__(
        self,
        config: TriggersConfig,
        triggers: Triggers,
        facts: StackFacts,
        *,
        node_name: str,
        now_ns: Callable[[], int],
        report: NodeReport,
        logger: Any,
    ) -> None:
        """Start the writer.

        Args:
            config: Where snippets go, and how much of them.
            triggers: The rules.
            facts: What runs, for `event.json`.
            node_name: Of the node, with its namespace.
            now_ns: The node's clock.
            report: Gets what is wrong with the disk, and counts of what is lost.
            logger: Told each event and each finished snippet.
        """
        self._triggers, self._node_name = triggers, node_name
        self._now_ns, self._report, self._logger = now_ns, report, logger
        store = SnippetStore(config.directory, config.quota_mb * 1_000_000)
        triggers.remember(store.fired_ns())
        self._writer = SnippetWriter(
            store,
            facts,
            max_bytes=config.memory_mb * 1_000_000,
            on_problem=lambda sentence: report.problem(SUBJECT, sentence),
            on_solved=lambda: report.solved(SUBJECT),
            on_kept=self._on_kept,
            on_lost=lambda cause, count: report.dropped(f"snippet_{cause}", count),
        )
        self._capture = Capture(config, self._writer)
        self._signals = SignalReader()
        self._lock = threading.Lock()
        self._writer.start()

    def take(self, topic: str, type_name: str, raw: bytes, latch: str | None) -> None:
        """Remember a message that has just come, as it came."""
        with self._lock:  # around the clock, too, so that threads do not overtake each other
            self._capture.take(RawMessage(topic, type_name, self._now_ns(), raw, latch))

    def take_decision(self, topic: str, type_name: str, message: Any) -> None:
        """Remember what the node itself has published, on a topic below its name."""
        self.take(f"{self._node_name}/{topic}", type_name, serialize_message(message), None)

    def set_facts(self, facts: StackFacts) -> None:
        """Another engine has taken over; snippets that begin from now on say so."""
        self._writer.facts = facts

    def observe(self, result: FrameResult, around: Surroundings) -> None:
        """Judge a frame, given its surroundings at its stamp."""
        speed = None if around.ego is None else around.ego.speed
        signals = self._signals.read(result, around.place, speed)
        for event in self._triggers.judge(signals, result.stamp_ns, self._now_ns()):
            self._logger.info(f"trigger {event.rule}: {event.reason}")
            with self._lock:
                self._capture.trigger(event)

    def beat(self) -> None:
        """Let time pass, also while nothing comes."""
        now_ns = self._now_ns()
        if now_ns > 0:
            with self._lock:
                self._capture.tick(now_ns)

    def close(self) -> None:
        """Finish what is open, and wait for the disk, though not forever."""
        with self._lock:
            self._capture.close("the node was deactivated")
        if not self._writer.close(PATIENCE_S):
            self._logger.warning(
                f"snippets: the disk did not take what was left within {PATIENCE_S:g} s; it is unfinished"
            )
        passed = ", ".join(f"{cause} {count}×" for cause, count in sorted(self._triggers.passed.items()))
        if passed:
            self._logger.info(f"triggers passed over: {passed}")
        self._report.forget(SUBJECT)

    def _on_kept(self, path: Path, info: SnippetInfo) -> None:
        lost = ", ".join(f"{count} lost ({cause})" for cause, count in info.lost.items())
        self._logger.info(
            f"kept snippet {path}: {sum(info.messages.values())} messages{f', {lost}' if lost else ''}"
        )
