"""Calibration: synthetic scores and Gaussians that are as sure as they may be, and others that are not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from perceived_frames import boxes, estimate, shifted, truth
from scipy.stats import norm

from e2e_perception.evaluation.calibration import LEVELS_C, CalibrationMetrics, CoverageSums, ReliabilitySums

NUM = 40_000


def coverage(std_of_truth: float, std_stated: float) -> CoverageSums:
    sums = CoverageSums()
    values = std_of_truth * np.random.default_rng(0).standard_normal(NUM)
    sums.add(values, np.zeros((1, NUM)), np.full((1, NUM), std_stated), np.ones(1))
    return sums


def test_true_gaussians_give_a_diagonal() -> None:
    found = coverage(0.7, 0.7).result()
    np.testing.assert_allclose(found.observed, LEVELS_C, atol=0.01)  # four standard errors
    assert found.error < 0.01
    assert found.std == pytest.approx(0.7)
    assert found.nll == pytest.approx(0.5 + 0.5 * np.log(2.0 * np.pi) + np.log(0.7), abs=0.02)


@pytest.mark.parametrize("stated", [0.5, 2.0])
def test_who_is_too_sure_or_too_timid_is_off_the_diagonal_as_theory_says(stated: float) -> None:
    found = coverage(1.0, stated).result()
    reach = stated * norm.ppf(0.5 + LEVELS_C / 2.0)
    np.testing.assert_allclose(found.observed, 2.0 * norm.cdf(reach) - 1.0, atol=0.01)
    assert found.nll > coverage(1.0, 1.0).result().nll


def test_a_mixture_is_judged_as_a_whole() -> None:
    rng = np.random.default_rng(1)
    centres = np.where(rng.random(NUM) < 0.3, -5.0, 5.0)
    values = centres + rng.standard_normal(NUM)
    sums = CoverageSums()
    means = np.stack([np.full(NUM, -5.0), np.full(NUM, 5.0)])
    sums.add(values, means, np.ones((2, NUM)), np.array([0.3, 0.7]))
    found = sums.result()
    np.testing.assert_allclose(found.observed, LEVELS_C, atol=0.01)
    mean = 0.3 * -5.0 + 0.7 * 5.0
    assert found.std == pytest.approx(np.sqrt(1.0 + 25.0 - mean**2))


def test_honest_scores_have_no_error_and_boastful_ones_have_theirs() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(NUM)
    hits = rng.random(NUM) < scores
    honest, boastful = ReliabilitySums(), ReliabilitySums()
    honest.add(np.column_stack([scores, hits]))
    boastful.add(np.column_stack([np.full(NUM, 0.9), rng.random(NUM) < 0.6]))
    found = honest.result()
    assert found.ece < 0.01
    np.testing.assert_allclose(found.observed, found.predicted, atol=0.05)
    assert sum(found.counts) == NUM
    assert boastful.result().ece == pytest.approx(0.3, abs=0.01)


def test_error_of_four_detections_by_hand() -> None:
    sums = ReliabilitySums()
    sums.add(np.array([[0.95, 1.0], [0.95, 1.0], [0.95, 0.0], [0.35, 0.0]]))
    found = sums.result()
    assert found.predicted == pytest.approx([0.35, 0.95])
    assert found.observed == pytest.approx([0.0, 2 / 3])
    assert found.ece == pytest.approx((1 * 0.35 + 3 * (0.95 - 2 / 3)) / 4)


def test_halves_merge_into_the_whole_and_nothing_gives_nan() -> None:
    whole, first, second = (CoverageSums() for _ in range(3))
    rng = np.random.default_rng(3)
    for sums in (first, second):
        values, means, std = rng.random(50), rng.random((2, 50)), 0.5 + rng.random((2, 50))
        for one in (whole, sums):
            one.add(values, means, std, np.array([0.4, 0.6]))
    first.merge(second)
    for name, value in whole.result().document().items():
        assert first.result().document()[name] == pytest.approx(value), name
    assert np.isnan(CoverageSums().result().error)
    assert np.isnan(ReliabilitySums().result().ece)


def test_frames_give_figures_and_curves_that_json_can_hold() -> None:
    there = boxes([(1, 10.0, 0.0), (2, 20.0, 5.0)])
    metrics = CalibrationMetrics()
    assert metrics.curves() == {}
    metrics.add(estimate(shifted(there, x=0.25)), truth(there), np.array([[0.9, 1.0], [0.8, 1.0]]))
    figures = metrics.figures()
    # x is half a standard deviation off, y exact: inside from 0.3829 of probability on, and always.
    curve = metrics.curves()["position"]
    assert curve["observed"] == [0.5 if level < 0.3829 else 1.0 for level in LEVELS_C.tolist()]
    assert curve["count"] == 4
    assert figures["calibration/position_std_m"] == pytest.approx(0.5)
    assert figures["calibration/score_ece"] == pytest.approx(0.15)
    assert set(json.loads(json.dumps(metrics.curves()))) == {"score", "position", "future"}
