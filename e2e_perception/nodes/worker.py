"""The threads that own the pipeline, so that neither preparation nor inference blocks reception.

callbacks -> inbox -> `prepare` thread -> hand-over -> `decide` thread -> results
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from e2e_perception.core.results import FrameResult, Health
from e2e_perception.nodes.report import NodeReport
from e2e_perception.runtime.hand_over import Call
from e2e_perception.runtime.overlap import DecisionThread
from e2e_perception.runtime.pipeline import Pipeline

INBOX_SIZE = 1024
INBOX_OVERFLOW = "inbox_overflow"
_LONGEST_WAIT_S = 0.1
_SIM_TIME_WAIT_S = 0.01  # a simulated clock may run faster than ours, and does not wake us
_STOP_S = 5.0  # patience with an engine that does not answer


class _Work(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    may_be_lost: bool
    subject: str


class PipelineWorker:
    """Feeds a pipeline and hands on its results, in two threads of its own.

    Callbacks leave their work with `submit`: a function that is called with the thread of the pipeline's
    first half as soon as it is free. The inbox is bounded; when it is full the oldest work that may be lost
    is dropped and counted. Of work that has a subject only the newest waits.
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
        on_quiet: Callable[[bool], None] = lambda idle: None,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            pipeline: Used by these threads alone from `start` to `stop`.
            now_ns: The node's clock.
            sim_time: Whether that clock follows /clock.
            on_result: Called with each result.
            on_heartbeat: Called with health and time where there was no result for a while.
            report: Gets errors and drops.
            on_quiet: Called after each result: whether no further frame waits.
            on_late: Called when an engine that `stop` left behind has answered after all.
        """
        self._pipeline = pipeline
        self._now_ns = now_ns
        self._longest_wait_s = _SIM_TIME_WAIT_S if sim_time else _LONGEST_WAIT_S
        self._report = report
        self._inbox: deque[_Work] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
        self._decisions = DecisionThread(
            pipeline,
            now_ns=now_ns,
            sim_time=sim_time,
            on_result=on_result,
            on_heartbeat=on_heartbeat,
            on_dropped=report.dropped,
            guarded=report.guarded,
            on_quiet=on_quiet,
            on_late=on_late,
        )

    def start(self) -> None:
        """Begin to work."""
        self._decisions.start()
        self._thread.start()

    def stop(self) -> bool:
        """Finish the work in hand, drop the rest, and end the threads.

        Returns:
            False if the engine does not answer; then it and the pipeline are left to `on_late`.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        return self._decisions.stop(_STOP_S)

    def submit(
        self, function: Callable[..., Any], *arguments: Any, may_be_lost: bool = False, subject: str = ""
    ) -> None:
        """Have a function called in the thread of the first half; may be called from any thread.

        Args:
            function, arguments: The work.
            may_be_lost: Another like it will come: a sensor's message, unlike a parameter or a transform.
            subject: Of this nothing but the newest counts, so that what still waits of it is taken back.
        """
        with self._wake:
            if subject:
                older = next((i for i, work in enumerate(self._inbox) if work.subject == subject), None)
                if older is not None:
                    del self._inbox[older]
            if len(self._inbox) >= INBOX_SIZE:
                oldest = next((i for i, work in enumerate(self._inbox) if work.may_be_lost), None)
                if oldest is not None:
                    del self._inbox[oldest]
                    self._report.dropped(INBOX_OVERFLOW)
            self._inbox.append(_Work(function, arguments, may_be_lost, subject))
            self._wake.notify()

    def between_frames(self, call: Call) -> None:
        """Have something done in the thread of the second half, between two frames; it is never lost."""
        self._decisions.between_frames(call)

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
            for item in work:
                self._report.guarded(item.function, *item.arguments)
            now_ns = self._now_ns()
            if now_ns > 0:  # else /clock has not begun
                self._report.guarded(self._prepare, now_ns)
            wait_s = self._patience_s(now_ns)

    def _prepare(self, now_ns: int) -> None:
        for ready in self._pipeline.preparation.poll(now_ns):
            self._decisions.hand_over.put(ready)

    def _patience_s(self, now_ns: int) -> float:
        deadline_ns = self._pipeline.next_deadline_ns()
        if deadline_ns is None or deadline_ns <= now_ns:  # kept just now; nothing more to do until a message
            return self._longest_wait_s
        return min(max((deadline_ns - now_ns) * 1e-9, 1e-3), self._longest_wait_s)
