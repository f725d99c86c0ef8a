"""The second half of the pipeline in a thread of its own, one frame behind the first, under a watchdog.

    the caller's thread              this one                         watchdog
    Preparation.poll -> hand_over -> perceive -> conclude -> result
                                     \\____ takes too long ________ -> stop, again and again

Decoding, rasterising and inference let go of Python's lock for most of their time, so frame t + 1 is prepared
while frame t is in the engine.

A result leaves under `_deciding`, whoever makes it, so results never overtake each other. An engine that has
answered after the watchdog spoke has lost its frame: the stop is out, and a plan for an instant before it
would contradict it. It starts anew with the next frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from e2e_perception.core.results import FrameResult, Health
from e2e_perception.runtime.hand_over import CAPACITY, Call, HandOver
from e2e_perception.runtime.pipeline import Pipeline
from e2e_perception.runtime.preparation import ReadyFrame
from e2e_perception.runtime.watchdog import Watchdog

OVERTAKEN = "overtaken"  # cause of a frame that was ready, and gave way to newer ones
HEARTBEAT_S = 0.5
_LONGEST_WAIT_S = 0.1  # so that silence is noticed
_SIM_TIME_WAIT_S = 0.01  # a simulated clock may run faster than ours, and does not wake us


class DecisionThread:
    """Takes ready frames and hands on their results.

    Attributes:
        hand_over: Where to leave frames, and calls to be made between two of them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        now_ns: Callable[[], int],
        sim_time: bool,
        on_result: Callable[[FrameResult], None],
        on_heartbeat: Callable[[Health, int], None],
        on_dropped: Callable[[str], None],
        guarded: Callable[..., object],
        on_quiet: Callable[[bool], None] = lambda idle: None,
        on_late: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            pipeline: Its second half is this thread's from `start` to `stop`.
            now_ns: The clock of the stamps.
            sim_time: Whether that clock is a simulated one.
            on_result: Called with each result, one at a time, in this thread or the watchdog's.
            on_heartbeat: Called likewise with health and time where there was no result for `HEARTBEAT_S`.
            on_dropped: Called with `OVERTAKEN` for each frame that gave way to newer ones.
            guarded: Calls a function with arguments, and deals with what it raises.
            on_quiet: Called after each result with whether no further frame waits, and with each heartbeat.
            on_late: Called in this thread when an engine that `stop` left behind has answered after all, so
                that it can be freed.
            capacity: Frames that may wait.
        """
        self.hand_over = HandOver(capacity, on_overtaken=lambda: on_dropped(OVERTAKEN))
        self._pipeline = pipeline
        self._now_ns = now_ns
        self._patience_s = _SIM_TIME_WAIT_S if sim_time else _LONGEST_WAIT_S
        self._on_result, self._on_heartbeat, self._on_quiet = on_result, on_heartbeat, on_quiet
        self._on_late = on_late
        self._guarded = guarded
        self._deciding = threading.Lock()
        self._in_hand = False  # a frame is being perceived
        self._answered_for = False  # and the watchdog has spoken in its place
        self._abandoned = False
        self._ended = True
        self._last_health_s = time.monotonic()
        self._watchdog = Watchdog(self._limit_s, lambda taken_s: self._guarded(self._overdue, taken_s))
        self._thread = threading.Thread(target=self._run, name="decide", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._ended = False
        self._watchdog.start()
        self._thread.start()

    def stop(self, patience_s: float) -> bool:
        """Finish the frame in hand, drop the others, make the calls that wait, and end the thread.

        Args:
            patience_s: How long to wait for an engine that does not answer [s].
        Returns:
            False if it has not answered by then. Its thread is left to itself, nothing of it is handed on any
            more, and the pipeline and its engine are `on_late`'s.
        """
        self.hand_over.close()
        if self._thread.is_alive():
            self._thread.join(patience_s)
        with self._deciding:
            ended = self._ended or not self._thread.is_alive()
            self._abandoned = not ended
        self._watchdog.stop()
        if ended:
            for call in self.hand_over.left_calls():
                self._guarded(call)
        return ended

    def between_frames(self, call: Call) -> None:
        """Have something done in this thread, after the frames that wait already."""
        self.hand_over.call(call)

    # --- in this thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        finally:
            with self._deciding:
                self._ended = True
                late = self._abandoned
            if late:
                self._guarded(self._on_late)

    def _work(self) -> None:
        while not self.hand_over.closed:
            item = self.hand_over.take(self._patience_s)
            if isinstance(item, ReadyFrame):
                self._guarded(self._decide, item)
                self._guarded(self._on_quiet, len(self.hand_over) == 0)
            elif item is not None:
                self._guarded(self._between, item)
            else:
                self._guarded(self._look_round)

    def _decide(self, ready: ReadyFrame) -> None:
        decision = self._pipeline.decision
        with self._deciding:
            self._in_hand, self._answered_for = True, False
        try:
            with self._watchdog.watching():
                deliberation = decision.perceive(ready, queued=True)
        except BaseException:
            with self._deciding:
                self._in_hand = False
            raise
        with self._deciding:
            self._in_hand = False  # from here on the watchdog is silent about it
            if self._abandoned:
                return
            if self._answered_for:
                decision.give_up()
            else:
                self._hand_on(decision.conclude(ready, deliberation))

    def _between(self, call: Call) -> None:
        with self._deciding:
            call()

    def _look_round(self) -> None:
        """No frame: is that silence, and has anything been heard of us lately?"""
        now_ns = self._now_ns()
        if now_ns > 0:  # else the clock has not begun
            around = self._pipeline.preparation.surroundings(now_ns)
            with self._deciding:
                silent = self._pipeline.decision.idle(now_ns, around)
                if silent is not None:
                    self._hand_on(silent)
        if time.monotonic() - self._last_health_s >= HEARTBEAT_S:
            self._last_health_s = time.monotonic()
            self._on_heartbeat(self._pipeline.health(now_ns), now_ns)
            self._on_quiet(True)

    def _hand_on(self, result: FrameResult) -> None:
        self._last_health_s = time.monotonic()
        self._on_result(result)

    # --- in the watchdog's ----------------------------------------------------------------------------------

    def _limit_s(self) -> float:
        return self._pipeline.config.supervisor.engine_timeout_ms * 1e-3

    def _overdue(self, taken_s: float) -> None:
        now_ns = self._now_ns()
        around = self._pipeline.preparation.surroundings(now_ns)
        with self._deciding:
            if self._in_hand and self._watchdog.is_overdue and not self._abandoned:
                self._answered_for = True
                self._hand_on(self._pipeline.decision.hung(now_ns, around, taken_s))
