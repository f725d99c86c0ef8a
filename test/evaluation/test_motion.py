"""Predicted futures: displacement by hand, and likelihoods of known mixtures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from perceived_frames import TIMES_S, boxes, estimate, truth

from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.motion import MotionMetrics, mixture_nll

CARS = boxes([(1, 10.0, 0.0), (2, 20.0, 5.0)], velocities_N2=np.full((2, 2), 1.0, np.float32))
STEPS = len(TIMES_S)


def two_modes(offsets: list[float]) -> np.ndarray:
    """(2, M, S, 2) true futures of `CARS`, mode m growing off by `offsets[m]` metres per step."""
    true = CARS.centers_N3[:, None, :2] + TIMES_S[:, None] * CARS.velocities_N2[:, None]
    grows = np.arange(1, STEPS + 1)[:, None] * np.array([1.0, 0.0])
    return np.stack([true + offset * grows for offset in offsets], axis=1).astype(np.float32)


def measured(result: FrameResult, there: TruthFrame) -> dict[str, float]:
    metrics = MotionMetrics()
    metrics.add(result, there)
    return metrics.figures()


def test_perfect_futures_have_no_error() -> None:
    figures = measured(estimate(CARS), truth(CARS))
    for name in ("min_ade_m", "min_fde_m", "min_ade_2s_m", "min_fde_2s_m", "miss_rate", "car/min_fde_m"):
        assert figures[f"motion/{name}"] == pytest.approx(0.0, abs=1e-5), name
    assert np.isnan(figures["motion/truck/min_ade_m"])
    assert figures["motion/nll"] == pytest.approx(np.log(2.0 * np.pi))  # at the mean, with 1 m either way


def test_the_best_mode_counts_by_hand() -> None:
    futures = two_modes([1.0, -0.2])
    changes = {
        "futures_NMT2": futures,
        "futures_std_NMT2": np.ones_like(futures),
        "mode_probabilities_NM": np.full((2, 2), 0.5, np.float32),
    }
    figures = measured(estimate(CARS, **changes), truth(CARS))
    assert figures["motion/min_ade_m"] == pytest.approx(0.2 * 4.5, abs=1e-5)  # mean of 1 … 8
    assert figures["motion/min_fde_m"] == pytest.approx(1.6, abs=1e-5)
    assert figures["motion/min_ade_2s_m"] == pytest.approx(0.2 * 2.5, abs=1e-5)
    assert figures["motion/min_fde_2s_m"] == pytest.approx(0.8, abs=1e-5)
    assert figures["motion/miss_rate"] == 0.0
    order = [1, 0]  # modes
    turned = {name: value[:, order] for name, value in changes.items()}
    assert measured(estimate(CARS, **turned), truth(CARS)) == pytest.approx(figures, nan_ok=True)


def test_two_metres_off_at_the_end_is_a_miss() -> None:
    futures = two_modes([0.26])
    figures = measured(estimate(CARS, futures_NMT2=futures), truth(CARS))
    assert figures["motion/miss_rate"] == figures["motion/car/miss_rate"] == 1.0


def test_who_leaves_within_two_seconds_counts_for_no_horizon_but_for_likelihood() -> None:
    there = truth(CARS)
    valid = there.futures_valid_LS.copy()
    valid[0, 3:], valid[1, 5:] = False, False
    figures = measured(estimate(CARS), replace(there, futures_valid_LS=valid))
    assert np.isnan(figures["motion/min_ade_m"])
    assert figures["motion/min_ade_2s_m"] == pytest.approx(0.0, abs=1e-5)
    assert np.isfinite(figures["motion/nll"])


def test_tentative_tracks_and_hidden_objects_have_no_figures() -> None:
    assert np.isnan(measured(estimate(CARS, confirmed=False), truth(CARS))["motion/min_ade_m"])
    assert np.isnan(measured(estimate(CARS), truth(CARS, visible=[False, False]))["motion/nll"])
    assert np.isnan(measured(replace(estimate(CARS), tracks=None), truth(CARS))["motion/nll"])


def test_likelihood_of_a_mixture_is_that_of_its_definition() -> None:
    truth_S2 = np.array([[1.0, 0.0]])
    means = np.array([[[0.0, 0.0]], [[1.0, 1.0]]])
    std = np.array([[[1.0, 2.0]], [[0.5, 1.0]]])
    weights = np.array([0.25, 0.75])

    def density(mean: np.ndarray, sigma: np.ndarray) -> float:
        z = (truth_S2[0] - mean) / sigma
        return float(np.exp(-0.5 * z @ z) / (2.0 * np.pi * sigma.prod()))

    expected = -np.log(0.25 * density(means[0, 0], std[0, 0]) + 0.75 * density(means[1, 0], std[1, 0]))
    assert mixture_nll(truth_S2, means, std, weights)[0] == pytest.approx(expected)
    alone = mixture_nll(truth_S2, means, std, np.array([1.0, 0.0]))
    assert alone[0] == pytest.approx(-np.log(density(means[0, 0], std[0, 0])))
