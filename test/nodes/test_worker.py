"""What the pipeline's inbox gives up when it is full; no DDS is needed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")

from e2e_perception.nodes.worker import INBOX_OVERFLOW, INBOX_SIZE, PipelineWorker

pytestmark = pytest.mark.ros


class Report:
    def __init__(self) -> None:
        self.drops: list[str] = []

    def dropped(self, cause: str) -> None:
        self.drops.append(cause)

    def guarded(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def idle_worker(report: Any) -> PipelineWorker:
    """One that is not started, so that everything waits."""
    pipeline: Any = None
    return PipelineWorker(
        pipeline,
        now_ns=lambda: 1,
        sim_time=False,
        on_result=lambda result: None,
        on_heartbeat=lambda health, now_ns: None,
        report=report,
    )


def test_a_full_inbox_gives_up_the_oldest_sensor_message_and_nothing_else() -> None:
    report = Report()
    worker = idle_worker(report)
    worker.submit(print, "a parameter")
    for i in range(INBOX_SIZE + 9):
        worker.submit(print, i, may_be_lost=True)
    left = [work.arguments[0] for work in worker._inbox]
    assert left == ["a parameter", *range(10, INBOX_SIZE + 9)]
    assert report.drops == [INBOX_OVERFLOW] * 10


def test_of_a_cameras_calibration_only_the_newest_waits() -> None:
    report = Report()
    worker = idle_worker(report)
    for i in range(3 * INBOX_SIZE):
        worker.submit(print, f"{'front' if i % 2 else 'left'} {i}", subject="front" if i % 2 else "left")
    worker.submit(print, "transforms")
    worker.submit(print, "other transforms")
    left = [work.arguments[0] for work in worker._inbox]
    assert left == [
        f"left {3 * INBOX_SIZE - 2}",
        f"front {3 * INBOX_SIZE - 1}",
        "transforms",
        "other transforms",
    ]
    assert report.drops == []
