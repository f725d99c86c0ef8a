"""Which of the network's proposals is driven, and why.

The network prices each proposal term by term; the weights are runtime parameters, so that a robot is made
more careful without retraining.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ContractError, InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import COST_TERMS, NetworkConfig
from e2e_perception.core.results import PlanCandidates
from e2e_perception.core.trajectories import Plan, RouteInput, base_from_route_coordinates
from e2e_perception.runtime.plan_motion import motion_along, points_at

Array = NDArray[np.float64]

TERMS = (*COST_TERMS, "stickiness", "speed_limit")
SPEED_LIMIT_WEIGHT = 5.0  # per m/s of mean excess
EASING = 1.0  # [m/s^2] at which a robot above the limit has to come down to it
MAX_STICKINESS_NS = 1_000_000_000  # an older plan binds nobody


class PlanSelector:
    """Weighs the table of costs; remembers the last plan, so that it does not waver between equals."""

    def __init__(self, network: NetworkConfig, config: PlanningConfig) -> None:
        self.network = network
        self._previous: Plan | None = None
        self.update(config)

    def update(self, config: PlanningConfig) -> None:
        """Take new weights; they hold from the next frame on."""
        self.config = config
        self._weights_K = np.array([getattr(config, f"weight_{term}") for term in COST_TERMS])

    def reset(self) -> None:
        """Forget the last plan."""
        self._previous = None

    def select(
        self,
        stamp_ns: int,
        outputs: Mapping[str, NDArray[np.floating]],
        route: RouteInput,
        ego: EgoState | None,
        base_from_previous: SE2 | None,
    ) -> tuple[Plan, PlanCandidates]:
        """Choose the proposal with the least weighted cost.

        Args:
            stamp_ns: Frame time [ns].
            outputs: `plan_sd` (1, C, P, 2) and `plan_costs` (1, C, K) of the engine.
            route: The route input of this frame; proposals are given along it.
            ego: State at the frame, None if unknown: then the plan's first acceleration is not known
                either and is set to that of its second step.
            base_from_previous: This base frame from that of the last selected plan; None if unknown, then
                the last plan binds nobody.
        Returns:
            The plan and all proposals.
        Raises:
            ContractError: If an output is missing or misshapen.
            InputError: If an output is not finite.
        """
        sd, unweighted = self._read(outputs)
        points_CP2 = base_from_route_coordinates(sd, route.features_R4)
        deviation_C = self._deviation(points_CP2, stamp_ns, base_from_previous)
        sticky_C = self.config.stickiness * deviation_C
        too_fast_C = SPEED_LIMIT_WEIGHT * self._excess_speed(sd, ego)
        costs_CK = np.concatenate(
            [unweighted * self._weights_K, sticky_C[:, None], too_fast_C[:, None]], axis=1
        )
        totals_C = costs_CK.sum(1)
        ranking = np.argsort(totals_C, kind="stable")
        winner, runner_up = int(ranking[0]), int(ranking[1]) if len(ranking) > 1 else -1
        times = self.network.times_T
        points = points_CP2[winner]
        first_step_speed = float(np.linalg.norm(points[0])) / float(times[0])
        yaws, speeds, accelerations = motion_along(
            points, times, first_step_speed if ego is None else ego.speed
        )
        if ego is None:
            accelerations[0] = accelerations[1]
        plan = Plan(
            stamp_ns=stamp_ns,
            times_P=times,
            points_P2=points,
            yaws_P=yaws,
            speeds_P=speeds,
            accelerations_P=accelerations,
            candidate=winner,
            costs=dict(zip(TERMS, costs_CK[winner].tolist(), strict=True)),
            runner_up=runner_up,
            runner_up_costs=(
                dict(zip(TERMS, costs_CK[runner_up].tolist(), strict=True)) if runner_up >= 0 else {}
            ),
            route_assumed=route.assumed,
        )
        self._previous = plan
        return plan, PlanCandidates(
            points_CP2=points_CP2.astype(np.float32),
            costs_CK=costs_CK.astype(np.float32),
            terms=TERMS,
            times_P=times,
            selected=winner,
        )

    def _read(self, outputs: Mapping[str, NDArray[np.floating]]) -> tuple[Array, Array]:
        c, p = self.network.num_plans, self.network.horizon_steps
        arrays = []
        for name, shape in (("plan_sd", (1, c, p, 2)), ("plan_costs", (1, c, len(COST_TERMS)))):
            if name not in outputs or outputs[name].shape != shape:
                got = list(outputs[name].shape) if name in outputs else "missing"
                raise ContractError(f"engine output {name!r} is {got}, expected {list(shape)}")
            if not np.isfinite(outputs[name]).all():
                raise InputError(f"engine output {name!r} is not finite; the frame is not used")
            arrays.append(outputs[name][0].astype(np.float64))
        return arrays[0], arrays[1]

    def _deviation(self, points_CP2: Array, stamp_ns: int, base_from_previous: SE2 | None) -> Array:
        """Mean distance (C,) [m] of each proposal from the last plan, where both are defined."""
        previous = self._previous
        if previous is None or base_from_previous is None:
            return np.zeros(len(points_CP2))
        elapsed_ns = stamp_ns - previous.stamp_ns
        if not 0 < elapsed_ns <= MAX_STICKINESS_NS:
            return np.zeros(len(points_CP2))
        seconds = self.network.times_T + elapsed_ns * 1e-9
        both = seconds <= previous.times_P[-1] + 1e-9
        if not both.any():
            return np.zeros(len(points_CP2))
        expected_P2 = base_from_previous.apply(points_at(previous, seconds[both]))
        return np.asarray(np.linalg.norm(points_CP2[:, both] - expected_P2, axis=-1).mean(1))

    def _excess_speed(self, sd_CP2: Array, ego: EgoState | None) -> Array:
        """Mean speed above the limit over each proposal (C,) [m/s]; who is faster now may ease down to it."""
        times = self.network.times_T
        knots = np.concatenate([np.zeros((len(sd_CP2), 1)), sd_CP2[..., 0]], axis=1)
        speeds_CP = np.diff(knots, axis=1) / np.diff(np.concatenate([[0.0], times]))
        now = 0.0 if ego is None else ego.speed
        middles = times - 0.5 * np.diff(np.concatenate([[0.0], times]))
        allowed_P = np.maximum(self.config.speed_limit, now - EASING * middles)
        return np.asarray(np.maximum(speeds_CP - allowed_P, 0.0).mean(1))
