"""Which checkpoint is the best so far, with a floor under every objective.

One number hides what was paid for it. A checkpoint is promoted when its mean score rises, unless some
objective has fallen by more than the tolerance below the best it has had in this run: then promotion pauses
until the objective is back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MEAN = "mean"
REGRET_SCALE = 2.0  # of the expert's prices; a mean regret of this scores 1/e


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint is promoted, and if not, why.

    Attributes:
        promoted: It is the best so far.
        scores: 0 to 1 by objective, and their geometric `mean`.
        below_floor: Objectives that have fallen too far.
    """

    promoted: bool
    scores: dict[str, float]
    below_floor: tuple[str, ...]


def objective_scores(figures: Mapping[str, float]) -> dict[str, float]:
    """One score from 0 to 1 per objective, from figures on validation clips (`evaluate_open_loop`).

    Returns:
        recognition: average precision; tracking: share of right associations; prediction: exp(-minADE / 2 m);
        planning: exp(-regret / `REGRET_SCALE`), or on clips without prices exp(-L2 at 3 s / 4 m); and `mean`,
        the geometric one. What could not be measured scores 0.
    """
    scores = {
        "recognition": figures.get("average_precision", 0.0),
        "tracking": figures.get("association_accuracy", 0.0),
        "prediction": math.exp(-figures["min_ade_m"] / 2.0) if "min_ade_m" in figures else 0.0,
        "planning": _planning(figures),
    }
    product = math.prod(max(score, 1e-6) for score in scores.values())
    return {**scores, MEAN: product ** (1.0 / len(scores))}


def _planning(figures: Mapping[str, float]) -> float:
    if "plan_regret" in figures:
        return math.exp(-figures["plan_regret"] / REGRET_SCALE)
    return math.exp(-figures["plan_l2_3s_m"] / 4.0) if "plan_l2_3s_m" in figures else 0.0


def judge(scores: Mapping[str, float], best: Mapping[str, float], tolerance: float) -> Verdict:
    """Compare with the best so far.

    Args:
        scores: From `objective_scores`.
        best: The highest of each score in this run, and `mean` of the promoted checkpoint; empty at first.
        tolerance: Share by which an objective may lie below its best.
    """
    below = tuple(
        name
        for name, score in scores.items()
        if name != MEAN and score < (1.0 - tolerance) * best.get(name, 0.0)
    )
    promoted = not below and scores[MEAN] > best.get(MEAN, -1.0)
    return Verdict(promoted, dict(scores), below)


def updated_best(verdict: Verdict, best: Mapping[str, float]) -> dict[str, float]:
    """The best values after a verdict."""
    found = dict(best)
    for name, score in verdict.scores.items():
        if name == MEAN and not verdict.promoted:
            continue
        found[name] = max(score, best.get(name, 0.0))
    return found
