"""The thread that owns the pipeline, so that inference never blocks the reception of messages."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from e2e_perception.core.results import FrameResult, Health
from e2e_perception.nodes.report import NodeReport
from e2e_perception.runtime.pipeline import Pipeline

INBOX_SIZE = 1024
INBOX_OVERFLOW = "inbox_overflow"
HEARTBEAT_S = 0.5
_LONGEST_WAIT_S = 0.1  # so that silence is noticed
_SIM_TIME_WAIT_S = 0.01  # a simulated clock may run faster than ours, and does not wake us


class PipelineWorker:
    """Feeds a pipeline and hands on its results, in its own thread.

    Callbacks leave their work with `submit`: a function that is called with the pipeline's thread as soon as
    it is free. The inbox is bounded; when it is full the oldest work that may be lost is dropped and counted.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        now_ns: Callable[[], int],
        sim_time: bool,
        on_result: Callable[[FrameResult], None],
        on_heartbeat: Callable[[Health, int], None],
        report: NodeReport,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            pipeline: Used by this thread alone from `start` to `stop`.
            now_ns: The node's clock.
            sim_time: Whether that clock follows /clock.
            on_result: Called with each result.
            on_heartbeat: Called with health and time where there was no result for `HEARTBEAT_S`.
            report: Gets errors and drops.
        """
        self._pipeline = pipeline
        self._now_ns = now_ns
        self._sim_time = sim_time
        self._on_result = on_result
        self._on_heartbeat = on_heartbeat
        self._report = report
        self._inbox: deque[tuple[Callable[..., Any], tuple[Any, ...], bool]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._last_health_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the work in hand, drop the rest, and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, function: Callable[..., Any], *arguments: Any, may_be_lost: bool = False) -> None:
        """Have a function called in the pipeline's thread; may be called from any thread.

        Args:
            function, arguments: The work.
            may_be_lost: Another like it will come: a sensor's message, unlike a parameter or a transform.
        """
        with self._wake:
            if len(self._inbox) >= INBOX_SIZE:
                oldest = next((i for i, work in enumerate(self._inbox) if work[2]), None)
                if oldest is not None:
                    del self._inbox[oldest]
                    self._report.dropped(INBOX_OVERFLOW)
            self._inbox.append((function, arguments, may_be_lost))
            self._wake.notify()

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            with self._wake:
                if not self._inbox and not self._stopping:
                    self._wake.wait(wait_s)
                if self._stopping:
                    return
                work = list(self._inbox)
                self._inbox.clear()
            for function, arguments, _ in work:
                self._report.guarded(function, *arguments)
            now_ns = self._now_ns()
            if now_ns > 0:  # else /clock has not begun
                self._report.guarded(self._step, now_ns)
            self._report.guarded(self._beat, now_ns)
            wait_s = self._patience_s(now_ns)

    def _step(self, now_ns: int) -> None:
        results = self._pipeline.poll(now_ns)
        if not results:
            silent = self._pipeline.idle(now_ns)
            results = [] if silent is None else [silent]
        for result in results:
            self._last_health_s = time.monotonic()
            self._on_result(result)

    def _beat(self, now_ns: int) -> None:
        if time.monotonic() - self._last_health_s >= HEARTBEAT_S:
            self._last_health_s = time.monotonic()
            self._on_heartbeat(self._pipeline.health(now_ns), now_ns)

    def _patience_s(self, now_ns: int) -> float:
        longest = _SIM_TIME_WAIT_S if self._sim_time else _LONGEST_WAIT_S
        deadline_ns = self._pipeline.next_deadline_ns()
        if deadline_ns is None or deadline_ns <= now_ns:  # kept just now; nothing more to do until a message
            return longest
        return min(max((deadline_ns - now_ns) * 1e-9, 1e-3), longest)
