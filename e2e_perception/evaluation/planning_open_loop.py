"""The plan against what was driven, in both published conventions, and against the others' true futures.

`…_at_3s` is the error at 3 s (UniAD, Hu et al. 2023), `…_upto_3s` the mean over the steps up to 3 s (ST-P3,
Hu et al. 2022, and VAD, Jiang et al. 2023). They differ by a factor of two and must not be compared. A
collision is the robot's outline on the plan overlapping an object where it truly was; as in these papers a
step at which the driven path itself overlaps one is not counted. Objects that no sensor saw count here.

Open-loop error is not driving: Li et al. ("Is ego status all you need for open-loop end-to-end autonomous
driving?", 2024) came as near as the best without looking. Beside each figure therefore stands `steady_…`:
going on at the present speed and yaw rate. What leaves the stack is measured, the supervisor's stops too.

Legend: L objects, S steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.rectangles import overlap, robot_rectangle
from e2e_perception.core.results import FrameResult
from e2e_perception.core.trajectories import Plan
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.means import Means

Array = NDArray[np.float64]

HORIZONS_S = (1, 2, 3)
PREFIXES = ("", "steady_")
_NAMES = tuple(
    f"{prefix}{what}"
    for prefix in PREFIXES
    for h in HORIZONS_S
    for what in (f"l2_at_{h}s_m", f"l2_upto_{h}s_m", f"collision_at_{h}s", f"collision_upto_{h}s")
)
SHARES = ("no_plan_share", "stop_share")  # of all frames; of plans, those that the supervisor made


class PlanningMetrics:
    """Accumulates plans; means are over frames."""

    def __init__(self) -> None:
        self._means = Means((*_NAMES, *SHARES))

    def add(self, result: FrameResult, truth: TruthFrame) -> None:
        """Compare one frame's plan with what was driven.

        Args:
            result: Frames without a plan only count in `no_plan_share`.
            truth: Of the same instant; where the drive is no example, nothing is compared.
        """
        plan = result.plan
        self._means.add("no_plan_share", float(plan is None))
        if plan is None:
            return
        self._means.add("stop_share", float(plan.candidate < 0))
        driven_S = _overlaps(truth.ego_future_S3, truth)
        for prefix, poses_S3 in zip(
            PREFIXES, (plan_poses(plan, truth.times_S), steady_poses(truth)), strict=True
        ):
            error_S = np.linalg.norm(poses_S3[:, :2] - truth.ego_future_S3[:, :2], axis=1)
            collides_S = (_overlaps(poses_S3, truth) & ~driven_S).astype(np.float64)
            for h in HORIZONS_S:
                upto_S = truth.times_S <= h + 1e-6
                planned = min(truth.times_S[-1], plan.times_P[-1])
                if planned < h - 1e-6 or not truth.ego_future_valid_S[upto_S].all():
                    continue
                for what, values, unit in (("l2", error_S, "_m"), ("collision", collides_S, "")):
                    self._means.add(f"{prefix}{what}_at_{h}s{unit}", float(values[upto_S][-1]))
                    self._means.add(f"{prefix}{what}_upto_{h}s{unit}", float(values[upto_S].mean()))

    def merge(self, other: PlanningMetrics) -> None:
        """Add everything that another one has accumulated."""
        self._means.merge(other._means)

    def figures(self) -> dict[str, float]:
        """By name; NaN for what cannot be measured."""
        return {f"planning/{name}": value for name, value in self._means.values().items()}


def plan_poses(plan: Plan, times_S: Array) -> Array:
    """(S, 3) x, y [m], yaw [rad] of a plan; it begins at the robot, and stays where it ends."""
    times = np.concatenate([[0.0], plan.times_P])
    columns = (
        plan.points_P2[:, 0],
        plan.points_P2[:, 1],
        np.unwrap(np.concatenate([[0.0], plan.yaws_P]))[1:],
    )
    return np.stack([np.interp(times_S, times, np.concatenate([[0.0], c])) for c in columns], axis=1)


def steady_poses(truth: TruthFrame) -> Array:
    """(S, 3) of a robot that goes on at its speed and yaw rate."""
    yaw_S = truth.ego_yaw_rate * truth.times_S
    chord_S = truth.ego_speed * truth.times_S * np.sinc(yaw_S / (2.0 * np.pi))
    return np.stack([chord_S * np.cos(yaw_S / 2.0), chord_S * np.sin(yaw_S / 2.0), yaw_S], axis=1)


def _overlaps(poses_S3: Array, truth: TruthFrame) -> NDArray[np.bool_]:
    """(S,) whether the robot overlaps an object that is there."""
    sizes_L2 = truth.boxes.sizes_N3[:, :2].astype(np.float64)
    steps = len(truth.times_S)
    others_LS5 = np.concatenate(
        [truth.futures_LS3.astype(np.float64), np.repeat(sizes_L2[:, None], steps, axis=1)], axis=-1
    )
    robot_S5 = robot_rectangle(poses_S3, truth.ego_size)
    return np.asarray((overlap(robot_S5, others_LS5) & truth.futures_valid_LS).any(axis=0))
