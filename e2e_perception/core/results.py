"""What one frame yields: tracks, plan, health. Nodes publish it, offline replay writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan


class SafetyState(IntEnum):
    """State of the supervisor; the numbers are those of Plan.msg and Health.msg."""

    NOMINAL = 0
    DEGRADED = 1
    MINIMAL_RISK = 2
    STOPPED = 3


@dataclass(frozen=True)
class SensorReport:
    """One sensor in the last frame; fields as in SensorStatus.msg.

    Attributes:
        name: Name in the rig.
        valid: Whether the frame used it.
        reason: Empty if valid, else `silent`, `late`, `out_of_tolerance`, `undecodable: …`, `no_ego_motion`.
        age_ms: Frame stamp minus stamp of the sensor's newest message [ms]; NaN if none ever came.
        received, used, dropped: Message counts since start.
    """

    name: str
    valid: bool
    reason: str
    age_ms: float
    received: int
    used: int
    dropped: int


@dataclass(frozen=True)
class Health:
    """State of the whole stack; fields as in Health.msg."""

    state: SafetyState
    reasons: tuple[str, ...]
    sensors: tuple[SensorReport, ...]
    backend: str
    bundle: str
    frames: int
    plans: int
    drops: Mapping[str, int]
    stage_ms: Mapping[str, float]


@dataclass(frozen=True)
class PlanCandidates:
    """All proposals of one frame, fields as in PlanCandidates.msg.

    Attributes:
        points_CP2: (C, P, 2) float32 [m], base frame.
        costs_CK: (C, K) float32, weighted, columns `terms`.
        terms: Names of the cost terms.
        times_P: (P,) float64 [s].
        selected: Index of the winner or -1.
    """

    points_CP2: NDArray[np.float32]
    costs_CK: NDArray[np.float32]
    terms: tuple[str, ...]
    times_P: NDArray[np.float64]
    selected: int


@dataclass(frozen=True)
class FrameResult:
    """Everything one frame produced.

    Attributes:
        stamp_ns: Frame time [ns].
        tracks: Tracks; None if the engine could not run or gave non-finite output.
        plan: The plan after supervision; a stop made by the supervisor has `candidate == -1`. None if
            there is no ground for any plan (no route and none may be assumed).
        candidates: All proposals, None as for tracks.
        health: State after this frame.
    """

    stamp_ns: int
    tracks: Tracks | None
    plan: Plan | None
    candidates: PlanCandidates | None
    health: Health
