"""A privileged driver: the rule-based planner with everybody's true futures in place of a forecast.

Beside the planner's own proposals stands what a rule-based driver would do that knows every right of way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.simulation.proposal_planner import (
    HORIZON,
    STEP,
    Decision,
    MapKnowledge,
    ProposalPlanner,
    at_constant_velocity,
    behind,
)
from e2e_perception.simulation.scoring import Others, Weights
from e2e_perception.simulation.world import World

Array = NDArray[np.float64]


class Expert:
    """Drives a world from inside.

    Attributes:
        planner: Chooses.
    """

    def __init__(
        self,
        world: World,
        footprint: EgoFootprint,
        *,
        weights: Weights | None = None,
        network: NetworkConfig | None = None,
        knows_futures: bool = True,
    ) -> None:
        """Take the wheel.

        Args:
            world: To be driven.
            footprint: The robot.
            weights: Of the cost terms.
            network: Its horizon and steps are those of the plans; default: `tiny`.
            knows_futures: Whether true futures and the rule-based driver are at its disposal; otherwise all
                others are expected to go on at constant velocity (the planner on ground-truth boxes).
        """
        self.world = world
        self.knows_futures = knows_futures
        self.planner = ProposalPlanner(MapKnowledge.of(world), footprint, weights=weights, network=network)

    def decide(self, ego: EgoState) -> Decision:
        """Choose.

        Args:
            ego: The robot now, an instant at which the world is known.
        """
        return self.planner.decide(ego, *self._others(ego))

    def prices_of_vocabulary(self, ego: EgoState) -> Array:
        """What each proposal of the network's own vocabulary would cost from here, as the expert sees it.

        Args:
            ego: The robot now, an instant at which the world is known.
        Returns:
            (C, K) weighted costs in the network's order, columns `scoring.TERMS`.
        """
        return self.planner.prices_of_vocabulary(ego, self._others(ego)[0])

    def _others(self, ego: EgoState) -> tuple[Others, Array | None]:
        """Everybody's futures, and where a rule-based driver would be, (T, 2) [m] odom."""
        world = self.world
        now = world.agents_at(ego.stamp_ns)
        sizes = world.cast.sizes_N3[:, :2]
        seen_N = now.present_N & np.array([world.sees(ego, n) for n in range(len(sizes))], np.bool_)
        if not self.knows_futures:
            present = now.poses_N3[seen_N], now.velocities_N2[seen_N], sizes[seen_N]
            return at_constant_velocity(ego, *present, world.obstacles_O5), None
        imagined = world.imagine(ego, HORIZON, STEP)
        present_TN = imagined.present_TN & (seen_N | ~now.present_N)[None]
        boxes = np.concatenate(
            [imagined.agents_TN3, np.broadcast_to(sizes, (len(present_TN), *sizes.shape))], axis=-1
        )
        boxes[~present_TN, :2] = 1e6
        counted_N = seen_N | present_TN.any(axis=0)
        others = Others(STEP, boxes[:, counted_N], world.obstacles_O5, behind(ego, now.poses_N3[counted_N]))
        return others, None if imagined.ego_T4 is None else imagined.ego_T4[:, :2]
