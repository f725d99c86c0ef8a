"""Counting what happens, and saying it: the health of the stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from e2e_perception.core.results import Health, SafetyState, SensorReport
from e2e_perception.core.samples import AssembledFrame
from e2e_perception.runtime.preprocess import NO_EGO_MOTION, PreparedFrame

# What is dropped behind the assembler. Of inputs: messages (the first two), odometry, and whole frames.
INPUT_CAUSES = ("undecodable", NO_EGO_MOTION, "odometry_non_finite", "too_old", "rate_limit")
# Of frames that the engine had: the first two cost a frame its tracks, though it still has a result; the
# third costs all of it, because a stop has long been published in its place.
ENGINE_CAUSES = ("engine_error", "non_finite_output", "engine_timeout")
STAGES = ("wait", "prepare", "queue", "infer", "track", "plan", "supervise")


class InputCounts:
    """What became of messages once they were in a frame; counts since construction.

    Attributes:
        drops: By cause, all of `INPUT_CAUSES`.
        reasons: Why sensors could not be used in the last frame, see `PreparedFrame.reasons`.
    """

    def __init__(self) -> None:
        self.drops = dict.fromkeys(INPUT_CAUSES, 0)
        self.reasons: Mapping[str, str] = {}
        self._unusable: dict[str, int] = {}
        self._last_unusable_ns: dict[str, int] = {}

    def take(self, frame: AssembledFrame, prepared: PreparedFrame) -> None:
        """Count the messages that were in a frame but could not be used."""
        self.reasons = prepared.reasons
        for name, reason in prepared.reasons.items():
            stamp_ns = frame.messages[name].stamp_ns
            if self._last_unusable_ns.get(name) == stamp_ns:  # a message may serve two frames
                continue
            self._last_unusable_ns[name] = stamp_ns
            self._unusable[name] = self._unusable.get(name, 0) + 1
            self.drops[NO_EGO_MOTION if reason == NO_EGO_MOTION else "undecodable"] += 1

    def sensors(self, assembled: tuple[SensorReport, ...]) -> tuple[SensorReport, ...]:
        """The assembler's reports with what preprocessing found in the last frame."""
        reports = []
        for report in assembled:
            unusable = self._unusable.get(report.name, 0)
            reason = report.reason or self.reasons.get(report.name, "")
            reports.append(
                replace(
                    report,
                    valid=not reason,
                    reason=reason,
                    used=max(report.used - unusable, 0),
                    dropped=report.dropped + unusable,
                )
            )
        return tuple(reports)


class StackHealth:
    """Counts since construction.

    Attributes:
        backend, bundle: What runs.
        drops: By cause, all of `ENGINE_CAUSES`.
        frames, plans: Results given, and those among them with a plan.
        stage_ms: Latest duration of each stage; `wait` is the frame's own in the assembler, `queue` that
            between the two halves of the pipeline.
    """

    def __init__(self, backend: str, bundle: str) -> None:
        self.backend = backend
        self.bundle = bundle
        self.drops = dict.fromkeys(ENGINE_CAUSES, 0)
        self.frames = 0
        self.plans = 0
        self.stage_ms = dict.fromkeys(STAGES, 0.0)

    def report(
        self,
        state: SafetyState,
        reasons: tuple[str, ...],
        sensors: tuple[SensorReport, ...],
        input_drops: Mapping[str, int],
    ) -> Health:
        """Everything at this moment."""
        return Health(
            state=state,
            reasons=reasons,
            sensors=sensors,
            backend=self.backend,
            bundle=self.bundle,
            frames=self.frames,
            plans=self.plans,
            drops={**input_drops, **self.drops},
            stage_ms=dict(self.stage_ms),
        )


def aged(sensors: tuple[SensorReport, ...], by_ms: float, max_age_ms: float) -> tuple[SensorReport, ...]:
    """A frame's reports `by_ms` later, when none has come since; a sensor past `max_age_ms` is silent."""
    later = []
    for report in sensors:
        age_ms = report.age_ms + by_ms
        silent = report.valid and not age_ms <= max_age_ms
        later.append(
            replace(
                report,
                age_ms=age_ms,
                valid=report.valid and not silent,
                reason="silent" if silent else report.reason,
            )
        )
    return tuple(later)
