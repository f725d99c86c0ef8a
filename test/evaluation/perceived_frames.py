"""Truth that can be written down by hand, and estimates of it that are as wrong as a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.frames import SE2
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.core.truth import TruthFrame

HEALTH = Health(SafetyState.NOMINAL, (), (), "", "", 1, 1, {}, {})
TIMES_S = 0.5 * np.arange(1, 9)
FRAME_NS = 100_000_000
HERE = SE2(0.0, 0.0, 0.0)


def boxes(rows: Sequence[Sequence[float]], **changes: Any) -> Boxes:
    """(identity, x, y) of cars that stand, headed along x, unless changed."""
    table = np.array(rows, np.float64).reshape(len(rows), 3)
    num = len(table)
    made = Boxes(
        centers_N3=np.column_stack([table[:, 1:], np.full(num, 0.8)]).astype(np.float32),
        sizes_N3=np.tile(np.array([4.0, 2.0, 1.5], np.float32), (num, 1)),
        yaws_N=np.zeros(num, np.float32),
        velocities_N2=np.zeros((num, 2), np.float32),
        class_ids_N=np.zeros(num, np.int64),
        scores_N=np.ones(num, np.float32),
        ids_N=table[:, 0].astype(np.int64),
    )
    return replace(made, **{name: np.asarray(value) for name, value in changes.items()})


def truth(
    objects: Boxes,
    *,
    frame: int = 0,
    visible: Sequence[bool] | None = None,
    pose: SE2 = HERE,
    speed: float = 0.0,
    yaw_rate: float = 0.0,
    ego_future_S3: NDArray[np.float64] | None = None,
) -> TruthFrame:
    """At frame `frame`; objects go on at constant velocity and heading."""
    num, steps = len(objects), len(TIMES_S)
    places = objects.centers_N3[:, None, :2] + TIMES_S[:, None] * objects.velocities_N2[:, None]
    yaws = np.repeat(objects.yaws_N[:, None, None], steps, axis=1)
    return TruthFrame(
        stamp_ns=frame * FRAME_NS,
        boxes=objects,
        visible_L=np.ones(num, np.bool_) if visible is None else np.array(visible, np.bool_),
        times_S=TIMES_S,
        futures_LS3=np.concatenate([places, yaws], axis=-1).astype(np.float32),
        futures_valid_LS=np.ones((num, steps), np.bool_),
        odom_from_base=pose,
        ego_future_S3=np.zeros((steps, 3)) if ego_future_S3 is None else ego_future_S3,
        ego_future_valid_S=np.ones(steps, np.bool_),
        ego_speed=speed,
        ego_yaw_rate=yaw_rate,
        ego_size=(4.6, 1.9, 1.4),
    )


def estimate(
    found: Boxes, *, frame: int = 0, confirmed: bool = True, plan: Plan | None = None, **changes: Any
) -> FrameResult:
    """What a stack would report: these boxes, with one future at constant velocity unless changed."""
    num, steps = len(found), len(TIMES_S)
    futures = found.centers_N3[:, None, :2] + TIMES_S[:, None] * found.velocities_N2[:, None]
    tracks = Tracks(
        stamp_ns=frame * FRAME_NS,
        boxes=found,
        ages_N=np.ones(num, np.int64),
        coasted_N=np.zeros(num, np.int64),
        confirmed_N=np.full(num, confirmed),
        position_std_N2=np.full((num, 2), 0.5, np.float32),
        futures_NMT2=futures[:, None].astype(np.float32),
        futures_std_NMT2=np.ones((num, 1, steps, 2), np.float32),
        mode_probabilities_NM=np.ones((num, 1), np.float32),
        times_T=TIMES_S,
    )
    return FrameResult(frame * FRAME_NS, replace(tracks, **changes), plan, None, HEALTH)


def plan_along(poses_S3: NDArray[np.float64], candidate: int = 3) -> Plan:
    """A plan through poses at `TIMES_S`."""
    zeros = np.zeros(len(TIMES_S))
    return Plan(0, TIMES_S, poses_S3[:, :2], poses_S3[:, 2], zeros, zeros, candidate, {})


def shifted(objects: Boxes, x: float = 0.0, y: float = 0.0) -> Boxes:
    """The same boxes elsewhere."""
    return replace(objects, centers_N3=objects.centers_N3 + np.array([x, y, 0.0], np.float32))
