"""What the stack knows of a frame, as the numbers that trigger rules compare (`core.trigger_rules.SIGNALS`).

Legend: C proposals, K cost terms, N tracks, P plan steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.results import FrameResult, PlanCandidates, SafetyState
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.core.trigger_rules import LOST, SIGNALS
from e2e_perception.runtime.perception import MAX_MEMORY_GAP_NS, Place, motion_since
from e2e_perception.runtime.plan_motion import carried_on


class SignalReader:
    """Reads frames one after the other; some signals compare a frame with the one before."""

    def __init__(self) -> None:
        self._confirmed: frozenset[int] | None = None
        self._plan: Plan | None = None
        self._place: Place | None = None

    def read(self, result: FrameResult, place: Place | None, speed: float | None) -> dict[str, float]:
        """All signals of a frame.

        Args:
            result: Of the frame, or of the lack of one.
            place: Where the robot was then; None if unknown.
            speed: [m/s], None if unknown.
        Returns:
            Every one of `SIGNALS`, and `lost.SENSOR` for each sensor; NaN where there is nothing to tell.
        """
        signals = dict.fromkeys(SIGNALS, math.nan)
        signals["state"] = float(result.health.state)
        signals["plan_rejected"] = float(was_rejected(result))
        signals["plan_change"] = self._plan_change(result, place)
        if speed is not None:
            signals["speed"] = speed
        if result.tracks is not None:
            signals |= self._of_tracks(result.tracks)
        if result.candidates is not None:
            signals["plan_spread"] = plan_spread(result.candidates)
        lost = {f"{LOST}{sensor.name}": float(not sensor.valid) for sensor in result.health.sensors}
        return signals | lost | {"sensors_lost": sum(lost.values())}

    def _of_tracks(self, tracks: Tracks) -> dict[str, float]:
        ids = frozenset(tracks.boxes.ids_N.tolist())
        confirmed = frozenset(tracks.boxes.ids_N[tracks.confirmed_N].tolist())
        before, self._confirmed = self._confirmed, confirmed
        classes = tracks.boxes.class_ids_N[tracks.confirmed_N]
        return {
            "uncertainty": mean_entropy(tracks.boxes.scores_N),
            "births": math.nan if before is None else float(len(confirmed - before)),
            "losses": math.nan if before is None else float(len(before - ids)),
            **{f"tracks.{name}": float((classes == i).sum()) for i, name in enumerate(CLASSES)},
        }

    def _plan_change(self, result: FrameResult, place: Place | None) -> float:
        before, before_place = self._plan, self._place
        self._plan, self._place = result.plan, place
        if before is None or result.plan is None:
            return math.nan
        moved = motion_since(before_place, place)
        if moved is None or result.stamp_ns - before.stamp_ns > MAX_MEMORY_GAP_NS:
            return math.nan
        foreseen = carried_on(before, result.stamp_ns, moved)
        # Both have the network's times; past the end of the earlier one is its extrapolation, not its word.
        known = result.plan.times_P + (result.stamp_ns - before.stamp_ns) * 1e-9 <= before.times_P[-1]
        apart = np.linalg.norm(result.plan.points_P2 - foreseen.points_P2, axis=-1)[known]
        return float(apart.max(initial=0.0))


def was_rejected(result: FrameResult) -> bool:
    """Whether a plan was selected, and a plan check replaced it by a stop.

    In a minimal-risk stop every plan is a stop, whatever the check says; that is a matter of the state.
    """
    return (
        result.candidates is not None
        and result.plan is not None
        and result.plan.candidate == -1
        and result.health.state < SafetyState.MINIMAL_RISK
    )


def mean_entropy(scores_N: NDArray[np.float32]) -> float:
    """Mean entropy of scores [nats]; 0 without any."""
    if len(scores_N) == 0:
        return 0.0
    p = np.clip(scores_N.astype(np.float64), 1e-6, 1.0 - 1e-6)
    return float(np.mean(-(p * np.log(p) + (1.0 - p) * np.log(1.0 - p))))


def plan_spread(candidates: PlanCandidates) -> float:
    """Root mean square distance of the proposals' ends from their mean [m].

    A proposal counts by exp(-cost): costs are sums of weighted negative log probabilities and their like.
    """
    costs_C = candidates.costs_CK.sum(-1, dtype=np.float64)
    weights_C = np.exp(costs_C.min() - costs_C)
    weights_C /= weights_C.sum()
    ends_C2 = candidates.points_CP2[:, -1].astype(np.float64)
    offsets_C2 = ends_C2 - weights_C @ ends_C2
    return float(np.sqrt(weights_C @ (offsets_C2**2).sum(-1)))
