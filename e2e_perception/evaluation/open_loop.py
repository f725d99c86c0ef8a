"""Open-loop figures on labelled clips: detection, association, prediction and plan, with controls.

Every figure is accumulated as a sum and a count, so that clips can be added in any order. Open-loop plan
error is not driving; the controls beside it (constant velocity, and the same network with its sensors taken
away) say how much of it comes from looking.

Legend: Q detections, L label slots, S horizon steps, F futures, M remembered tracks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.frames import wrap_angle
from e2e_perception.evaluation.ratios import Ratios

MATCH_DISTANCE = 2.0  # [m] between centres, as in the nuScenes detection task (Caesar et al. 2020)
SCORE_THRESHOLD = 0.3
MAX_REGRET = 10.0  # of the expert's prices; a proposal that collides costs up to 200
COLLIDES = 5.0  # price of collision above which it is more than coming near


class OpenLoopMetrics(Ratios):
    """Accumulates figures over frames; `summary` gives the means."""

    def __init__(self, times_S: NDArray[np.float64]) -> None:
        super().__init__()
        self.times_S = times_S
        self._scored: list[tuple[float, bool]] = []
        self._num_labels = 0

    def add_detections(
        self,
        scores_QK: NDArray[np.floating],
        boxes_Q10: NDArray[np.floating],
        label_boxes_L10: NDArray[np.floating],
        label_classes_L: NDArray[np.int64],
        counted_L: NDArray[np.bool_],
        ignored_L: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Match detections to labels within `MATCH_DISTANCE` (least total distance) and count.

        Args:
            scores_QK: Class probabilities.
            boxes_Q10: Columns `BOX_FIELDS`.
            label_boxes_L10, label_classes_L: Labels.
            counted_L: Labels that some sensor has seen; the others are `ignored_L`: a detection there is
                neither right nor wrong.
        Returns:
            (Q,) label slot of each detection above the threshold, -1 for none.
        """
        scores = scores_QK.max(1)
        matches = np.full(len(scores), -1, np.int64)
        kept = np.flatnonzero(scores > 0.05)
        labels = np.flatnonzero(counted_L)
        self._num_labels += len(labels)
        if len(kept) and len(labels):
            distance = np.linalg.norm(
                boxes_Q10[kept][:, None, :2] - label_boxes_L10[labels][None, :, :2], axis=-1
            )
            # Stronger detections choose first among near equals, as average precision wants it.
            cost = np.where(distance < MATCH_DISTANCE, distance - 4.0 * scores[kept][:, None], 100.0)
            rows, columns = linear_sum_assignment(cost)
            good = distance[rows, columns] < MATCH_DISTANCE
            matches[kept[rows[good]]] = labels[columns[good]]
        near_ignored = np.zeros(len(scores), bool)
        if ignored_L.any():
            gap = np.linalg.norm(boxes_Q10[:, None, :2] - label_boxes_L10[ignored_L][None, :, :2], axis=-1)
            near_ignored = gap.min(1) < MATCH_DISTANCE
        for q in kept:
            if matches[q] >= 0 or not near_ignored[q]:
                self._scored.append((float(scores[q]), bool(matches[q] >= 0)))
        strong = scores > SCORE_THRESHOLD
        for q in np.flatnonzero(strong & (matches >= 0)):
            truth = label_boxes_L10[matches[q]]
            self._add("position_error_m", float(np.linalg.norm(boxes_Q10[q, :2] - truth[:2])))
            turned = np.arctan2(*boxes_Q10[q, 6:8]) - np.arctan2(*truth[6:8])
            self._add("heading_error_rad", abs(float(wrap_angle(turned))))
            self._add("velocity_error_mps", float(np.linalg.norm(boxes_Q10[q, 8:10] - truth[8:10])))
            self._add("class_accuracy", float(scores_QK[q].argmax() == label_classes_L[matches[q]]))
        hits = float((strong & (matches >= 0)).sum())
        self._add("precision", hits, float((strong & ((matches >= 0) | ~near_ignored)).sum()))
        self._add("recall", hits, float(len(labels)))
        return np.where(strong, matches, -1)

    def add_association(
        self, affinity: NDArray[np.floating], query_ids_Q: NDArray[np.int64], memory_ids_M: NDArray[np.int64]
    ) -> None:
        """Share of matched detections whose best choice (a track or "new") is the true one.

        Args:
            affinity: (M+1, Q+1) log-probabilities.
            query_ids_Q: True identity of each detection, -1 for none.
            memory_ids_M: True identity of each remembered track, -1 for none.
        """
        choice = affinity[:, :-1].argmax(0)
        for q in np.flatnonzero(query_ids_Q >= 0):
            same = np.flatnonzero(memory_ids_M == query_ids_Q[q])
            expected = same[0] if len(same) else len(memory_ids_M)
            self._add("association_accuracy", float(choice[q] == expected))

    def add_futures(
        self, futures_FS2: NDArray[np.floating], truth_S2: NDArray[np.floating], valid_S: NDArray[np.bool_]
    ) -> None:
        """minADE, minFDE and miss rate (nearest end farther than 2 m) of one object over its valid steps."""
        if not valid_S.all():
            return
        distance = np.linalg.norm(futures_FS2 - truth_S2[None], axis=-1)
        self._add("min_ade_m", float(distance.mean(1).min()))
        self._add("min_fde_m", float(distance[:, -1].min()))
        self._add("miss_rate", float(distance[:, -1].min() > 2.0))

    def add_plan(
        self,
        name: str,
        points_S2: NDArray[np.floating],
        truth_S2: NDArray[np.floating],
        valid_S: NDArray[np.bool_],
        overlap_S: NDArray[np.bool_] | None = None,
    ) -> None:
        """Plan error at 1, 2, 3 s (at the horizon, not averaged up to it) and collisions within 3 s.

        Args:
            name: Prefix: `plan`, or a control's name.
            points_S2, truth_S2: Planned and driven `base_link` positions [m].
            valid_S: Steps where the driven path is known.
            overlap_S: Whether the robot on the plan overlaps a labelled object at each step.
        """
        error = np.linalg.norm(points_S2 - truth_S2, axis=-1)
        for horizon in (1.0, 2.0, 3.0):
            k = int(np.argmin(np.abs(self.times_S - horizon)))
            if valid_S[k]:
                self._add(f"{name}_l2_{horizon:.0f}s_m", float(error[k]))
        if overlap_S is not None:
            self._add(f"{name}_collision_rate", float(overlap_S[self.times_S <= 3.0].any()))

    def add_prices(self, prices_PK: NDArray[np.floating], chosen: int) -> None:
        """What the chosen proposal costs more than the best one, by the expert's prices (no price: nothing).

        `plan_regret` is cut at `MAX_REGRET`; `plan_avoidable_collision` is the share of frames in which the
        chosen proposal collides and another one does not.

        Args:
            prices_PK: Weighted, collision first; NaN where unknown.
            chosen: Which proposal.
        """
        if not np.isfinite(prices_PK).all():
            return
        totals_P = prices_PK.sum(1)
        self._add("plan_regret", float(min(totals_P[chosen] - totals_P.min(), MAX_REGRET)))
        collides_P = prices_PK[:, 0] > COLLIDES
        self._add("plan_avoidable_collision", float(collides_P[chosen] and not collides_P.all()))

    def summary(self) -> dict[str, float]:
        """Means of everything added, average precision and F1 included."""
        means = self._means()
        p, r = means.get("precision", 0.0), means.get("recall", 0.0)
        means["f1"] = 2 * p * r / (p + r) if p + r > 0 else 0.0
        means["average_precision"] = average_precision(self._scored, self._num_labels)
        means["num_labels"] = float(self._num_labels)
        return dict(sorted(means.items()))


def average_precision(scored: list[tuple[float, bool]], num_labels: int) -> float:
    """Area under the precision-recall curve, precision made monotonic (Everingham et al. 2010).

    Args:
        scored: (score, whether it hit) of every detection.
        num_labels: Number of labels there were.
    """
    if not scored or num_labels == 0:
        return 0.0
    order = sorted(scored, key=lambda item: -item[0])
    hits = np.cumsum([hit for _, hit in order])
    precision = hits / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = hits / num_labels
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * precision))


def footprint_overlap(
    points_S2: NDArray[np.floating],
    yaws_S: NDArray[np.floating],
    ego: Mapping[str, float],
    boxes_L10: NDArray[np.floating],
    futures_LS2: NDArray[np.floating],
    valid_LS: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Whether the robot's footprint overlaps any object's at each step (separating axis theorem).

    Objects keep their current heading.

    Args:
        points_S2, yaws_S: Poses of `base_link` along the plan.
        ego: `length`, `width`, `center_x` [m].
        boxes_L10: Objects now, columns `BOX_FIELDS`.
        futures_LS2, valid_LS: Where they will truly be.
    Returns:
        (S,) bool.
    """
    num_steps = len(points_S2)
    heading = np.stack([np.cos(yaws_S), np.sin(yaws_S)], -1)
    centre_S2 = points_S2 + ego["center_x"] * heading
    gap_LS2 = futures_LS2 - centre_S2[None]
    other_L2 = np.stack([boxes_L10[:, 7], boxes_L10[:, 6]], -1)
    half_ego = (ego["length"] / 2, ego["width"] / 2)
    half_other = (np.exp(boxes_L10[:, 3]) / 2, np.exp(boxes_L10[:, 4]) / 2)
    separated = np.zeros((len(boxes_L10), num_steps), bool)
    side_S2 = np.stack([-heading[:, 1], heading[:, 0]], -1)
    other_side_L2 = np.stack([-other_L2[:, 1], other_L2[:, 0]], -1)
    axes = [
        np.broadcast_to(heading[None], gap_LS2.shape),
        np.broadcast_to(side_S2[None], gap_LS2.shape),
        np.broadcast_to(other_L2[:, None], gap_LS2.shape),
        np.broadcast_to(other_side_L2[:, None], gap_LS2.shape),
    ]
    for axis in axes:
        reach = (
            half_ego[0] * np.abs((axis * heading[None]).sum(-1))
            + half_ego[1] * np.abs((axis * side_S2[None]).sum(-1))
            + half_other[0][:, None] * np.abs((axis * other_L2[:, None]).sum(-1))
            + half_other[1][:, None] * np.abs((axis * other_side_L2[:, None]).sum(-1))
        )
        separated |= np.abs((gap_LS2 * axis).sum(-1)) > reach
    return np.asarray((~separated & valid_LS).any(0))
