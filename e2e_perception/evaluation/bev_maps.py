"""The network's map heads against the labels: overlap of what is on the ground, error of the flow.

Legend: B batch, Y X BEV cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.evaluation.ratios import Ratios

PROBABILITY = 0.5  # above it a cell is said to be drivable, boundary or occupied


class BevMapMetrics(Ratios):
    """Accumulates over frames; `summary` gives what could be measured.

    Overlap is intersection over union, as for the BEV maps of Lift, Splat, Shoot (Philion & Fidler, ECCV
    2020), pooled: intersections of all frames over unions of all frames.
    """

    def add_map(
        self,
        name: str,
        probability_BYX: NDArray[np.floating],
        truth_BYX: NDArray[np.bool_],
        known_BYX: NDArray[np.bool_],
    ) -> None:
        """Count cells that are said to be, and are, something.

        Args:
            name: Prefix: `drivable`, `boundary` or `occupied`.
            probability_BYX: What the network says.
            truth_BYX: What is.
            known_BYX: Where that is known; the other cells do not count.
        """
        said = probability_BYX > PROBABILITY
        both, either = said & truth_BYX & known_BYX, (said | truth_BYX) & known_BYX
        self._add(f"{name}_iou", float(both.sum()), float(either.sum()))

    def add_flow(
        self,
        flow_B2YX: NDArray[np.floating],
        truth_B2YX: NDArray[np.floating],
        occupied_BYX: NDArray[np.bool_],
    ) -> None:
        """End-point error of the flow (Mahjourian et al., RA-L 2022), as a velocity.

        Args:
            flow_B2YX, truth_B2YX: x, y [m/s].
            occupied_BYX: Where it counts: what is free does not move.
        """
        error_BYX = np.linalg.norm(flow_B2YX - truth_B2YX, axis=1)
        self._add("flow_error_mps", float(error_BYX[occupied_BYX].sum()), float(occupied_BYX.sum()))

    def summary(self) -> dict[str, float]:
        """Figures by name; one of which no cell was counted is left out."""
        return self._means()
