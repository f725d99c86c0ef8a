"""Runs a pipeline in two threads, as the node does, and waits for its results."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.results import FrameResult
from e2e_perception.core.samples import SensorMessage
from e2e_perception.runtime.overlap import DecisionThread
from e2e_perception.runtime.pipeline import Pipeline

PATIENCE_S = 60.0
MANY = 10_000


class Overlapped:
    """A pipeline whose second half has a thread of its own; errors in there fail the test."""

    def __init__(
        self, pipeline: Pipeline, *, capacity: int = MANY, now_ns: Callable[[], int] = lambda: 0
    ) -> None:
        self.pipeline = pipeline
        self.results: list[FrameResult] = []
        self.dropped: list[str] = []
        self.errors: list[BaseException] = []
        self.late: list[str] = []
        self.num_ready = 0
        self._changed = threading.Condition()
        self.thread = DecisionThread(
            pipeline,
            now_ns=now_ns,
            sim_time=False,
            on_result=self._take,
            on_heartbeat=lambda health, at_ns: None,
            on_dropped=self.dropped.append,
            guarded=self._guarded,
            on_late=lambda: self.late.append(threading.current_thread().name),
            capacity=capacity,
        )

    def __enter__(self) -> Overlapped:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        ended = self.thread.stop(PATIENCE_S)
        if not any(error):
            assert ended
            assert self.errors == []

    def feed(self, now_ns: int, event: SensorMessage | EgoState) -> None:
        """One arrival, and the frames that it completes."""
        if isinstance(event, EgoState):
            self.pipeline.push_odometry(event)
        else:
            self.pipeline.push(event)
        self.poll(now_ns)

    def poll(self, now_ns: int) -> None:
        for ready in self.pipeline.preparation.poll(now_ns):
            self.num_ready += 1
            self.thread.hand_over.put(ready)

    def drain(self) -> None:
        """Keep all deadlines that are left."""
        deadline = self.pipeline.next_deadline_ns()
        while deadline is not None:
            self.poll(deadline)
            following = self.pipeline.next_deadline_ns()
            deadline = None if following == deadline else following

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition() or self.errors, PATIENCE_S), what
        assert self.errors == []

    def wait_for_results(self, count: int) -> list[FrameResult]:
        self.wait_for(lambda: len(self.results) >= count, f"{count} results")
        return self.results

    def _take(self, result: FrameResult) -> None:
        with self._changed:
            self.results.append(result)
            self._changed.notify_all()

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            value = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            value = self.errors.append(error)
        with self._changed:
            self._changed.notify_all()
        return value


def essence(result: FrameResult) -> list[Any]:
    """All of a result but how long it took, comparable to the last bit."""
    rows: list[Any] = [result.stamp_ns]
    health = {**vars(result.health), "stage_ms": {}}
    for part in (result.tracks, result.tracks and result.tracks.boxes, result.plan, result.candidates):
        rows.append(None if part is None else {k: _plain(v) for k, v in vars(part).items() if k != "boxes"})
    rows.append({name: repr(value) for name, value in health.items()})
    return rows


def _plain(value: Any) -> Any:
    return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)
