"""What the node publishes, and when: messages are built only for those who listen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from e2e_perception.core.config import NodeConfig
from e2e_perception.core.messages import (
    CANDIDATES_TYPE,
    DIAGNOSTICS_TYPE,
    HEALTH_TYPE,
    MARKERS_TYPE,
    PATH_TYPE,
    PLAN_TYPE,
    TRACKS_TYPE,
    candidates_message,
    diagnostics_message,
    health_message,
    markers_message,
    path_message,
    plan_message,
    tracks_message,
)
from e2e_perception.core.results import FrameResult, Health
from e2e_perception.nodes.message_factory import RclpyFactory, message_class
from e2e_perception.nodes.qos import output_qos
from e2e_perception.runtime.stage_times import StageTimes

# Topic below the node's name, and its type. Health and diagnostics speak in every lifecycle state.
FRAME_TOPICS = {
    "tracks": TRACKS_TYPE,
    "plan": PLAN_TYPE,
    "plan_candidates": CANDIDATES_TYPE,
    "path": PATH_TYPE,
    "markers": MARKERS_TYPE,
}
HEALTH_TOPIC = "health"
OUTPUT_TOPICS = {**FRAME_TOPICS, HEALTH_TOPIC: HEALTH_TYPE}
DIAGNOSTICS_PERIOD_S = 0.5


class Outputs:
    """The publishers of one node.

    Attributes:
        on_decision: Called with topic below the node's name, type and message of each plan and each health
            that is published, if set.
    """

    def __init__(self, node: Any, now_ns: Callable[[], int]) -> None:
        """Create them; those of frames are silent until the node is active.

        Args:
            node: A lifecycle node.
            now_ns: Its clock.
        """
        self.on_decision: Callable[[str, str, Any], None] | None = None
        self._make = RclpyFactory()
        self._now_ns = now_ns
        self._name = node.get_fully_qualified_name()
        self._last_diagnostics_s = -DIAGNOSTICS_PERIOD_S
        self._stage_times = StageTimes()
        self._frames = {
            topic: node.create_lifecycle_publisher(message_class(kind), f"~/{topic}", output_qos())
            for topic, kind in FRAME_TOPICS.items()
        }
        health_class = message_class(HEALTH_TYPE)
        self._health = node.create_publisher(health_class, f"~/{HEALTH_TOPIC}", output_qos())
        self._diagnostics = node.create_publisher(
            message_class(DIAGNOSTICS_TYPE), "/diagnostics", output_qos()
        )

    def publish(
        self, result: FrameResult, health: Health, config: NodeConfig, base_frame: str, rig: str
    ) -> None:
        """Publish all of one result; health is last and also says how long that took.

        Args:
            result: Of a frame, or of the lack of one.
            health: The result's, with what the node has to say.
            config: What to publish.
            base_frame: Of the rig.
            rig: Its name.
        """
        make, stamp_ns = self._make, result.stamp_ns
        started = time.perf_counter()
        if result.tracks is not None:
            self._frames["tracks"].publish(tracks_message(make, result.tracks, base_frame))
        if result.plan is not None:
            plan = plan_message(make, result.plan, health, base_frame)
            self._frames["plan"].publish(plan)
            if self.on_decision is not None:
                self.on_decision("plan", PLAN_TYPE, plan)
            if config.publish_markers and self._heard("path"):
                self._frames["path"].publish(path_message(make, result.plan, base_frame))
        if result.candidates is not None and config.publish_candidates and self._heard("plan_candidates"):
            message = candidates_message(make, result.candidates, stamp_ns, base_frame)
            self._frames["plan_candidates"].publish(message)
        if config.publish_markers and self._heard("markers"):
            message = markers_message(
                make, stamp_ns, base_frame, tracks=result.tracks, plan=result.plan, state=health.state
            )
            self._frames["markers"].publish(message)
        publish_ms = (time.perf_counter() - started) * 1e3
        latency_ms = (self._now_ns() - stamp_ns) * 1e-6
        stages = {**health.stage_ms, "publish": publish_ms, "latency": latency_ms}
        if result.tracks is not None:  # else it is no frame, or a bad one that skipped stages
            self._stage_times.observe(stages)
        self.publish_health(replace(health, stage_ms=stages), stamp_ns, base_frame, rig)

    def publish_health(self, health: Health, stamp_ns: int, base_frame: str, rig: str) -> None:
        """Publish health, and diagnostics at most every `DIAGNOSTICS_PERIOD_S`."""
        message = health_message(self._make, health, stamp_ns, base_frame)
        self._health.publish(message)
        if self.on_decision is not None:
            self.on_decision(HEALTH_TOPIC, HEALTH_TYPE, message)
        now_s = time.monotonic()
        if now_s - self._last_diagnostics_s >= DIAGNOSTICS_PERIOD_S:
            self._last_diagnostics_s = now_s
            self._diagnostics.publish(
                diagnostics_message(
                    self._make,
                    health,
                    stamp_ns,
                    name=self._name.lstrip("/"),
                    hardware_id=rig,
                    stage_quantiles_ms=self._stage_times.quantiles(),
                )
            )

    def _heard(self, topic: str) -> bool:
        return bool(self._frames[topic].get_subscription_count() > 0)
