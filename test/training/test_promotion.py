"""No objective is bought with another: floors under each, and what they do to promotion."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from e2e_perception.training.promotion import judge, objective_scores, updated_best
from e2e_perception.training.run_log import LOG, below_floor

GOOD = {"recognition": 0.8, "tracking": 0.9, "prediction": 0.5, "planning": 0.6, "mean": 0.68}


def test_scores_come_from_figures_and_what_was_not_measured_scores_nothing() -> None:
    scores = objective_scores(
        {"average_precision": 0.7, "association_accuracy": 0.9, "min_ade_m": 2.0, "plan_regret": 2.0}
    )
    assert scores["recognition"] == 0.7
    assert scores["tracking"] == 0.9
    assert scores["prediction"] == pytest.approx(math.exp(-1.0))
    assert scores["planning"] == pytest.approx(math.exp(-1.0))
    assert scores["mean"] == pytest.approx((0.7 * 0.9 * math.exp(-2.0)) ** 0.25)
    assert objective_scores({"plan_l2_3s_m": 4.0})["planning"] == pytest.approx(math.exp(-1.0))
    assert objective_scores({})["mean"] < 1e-5


def test_a_better_mean_is_promoted_and_an_equal_one_is_not() -> None:
    first = judge(GOOD, {}, 0.1)
    assert first.promoted
    best = updated_best(first, {})
    assert not judge(GOOD, best, 0.1).promoted
    assert judge({**GOOD, "planning": 0.7, "mean": 0.71}, best, 0.1).promoted


def test_a_better_mean_bought_with_another_objective_is_not_promoted_until_that_is_back() -> None:
    best = updated_best(judge(GOOD, {}, 0.1), {})
    gamed = {**GOOD, "planning": 0.9, "recognition": 0.7, "mean": 0.75}
    verdict = judge(gamed, best, 0.1)
    assert not verdict.promoted
    assert verdict.below_floor == ("recognition",)
    best = updated_best(verdict, best)
    assert best["planning"] == 0.9, "what was reached raises the floor"
    assert best["mean"] == GOOD["mean"], "what was not promoted does not raise the bar"
    # Now planning must not fall back under nine tenths of 0.9 either.
    assert judge({**GOOD, "mean": 0.7}, best, 0.1).below_floor == ("planning",)
    assert judge({**GOOD, "planning": 0.85, "mean": 0.74}, best, 0.1).promoted


def test_a_run_says_which_objectives_its_last_validation_found_below_their_floor(tmp_path: Path) -> None:
    assert below_floor(tmp_path) == []
    rows: list[dict[str, object]] = [
        {"step": 1, "figures": {"score/planning": 0.5, "below_floor/tracking": 1.0}},
        {"step": 2, "total": 1.0},
        {"step": 2, "figures": {"below_floor/planning": 1.0, "below_floor/motion": 1.0}},
        {"step": 3, "total": 1.0},
    ]
    for number, expected in ((1, ["tracking"]), (2, ["tracking"]), (4, ["motion", "planning"])):
        text = "".join(json.dumps(row) + "\n" for row in rows[:number])
        (tmp_path / LOG).write_text(text, encoding="utf-8")
        assert below_floor(tmp_path) == expected
