"""Intervals hold what they promise, over simulated trainings and scenarios without any difference."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.evaluation.resampling import MIN_SCENARIOS, estimate, pair_up

REPETITIONS = 300
# 95 % of 300, four standard errors either way: a correct interval fails once in 15,000.
LEAST = 0.95 - 4.0 * np.sqrt(0.95 * 0.05 / REPETITIONS)


def same(figures):
    return figures


def simulated(rng, *, seeds, scenarios, training, interaction, noise, effect=0.0):
    """(N, 1) values of each network of two groups that differ by `effect`."""
    hard_N1 = rng.normal(size=(scenarios, 1))
    method_N1 = interaction * rng.normal(size=(scenarios, 1))
    sides = []
    for shift_N1 in (method_N1 + effect, 0.0):
        sides.append(
            [
                hard_N1 + shift_N1 + training * rng.normal() + noise * rng.normal(size=(scenarios, 1))
                for _ in range(seeds)
            ]
        )
    return sides


def compared(sides, *, by_seed=True, resamples=250, seed=0, measure=same):
    scenarios = len(sides[0][0])
    values = pair_up(*sides, np.zeros(scenarios, np.int64), by_seed=by_seed)
    count = np.full(measure(np.zeros(sides[0][0].shape[1])).shape, scenarios)
    return estimate(values, measure, count, resamples=resamples, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("seeds", "training", "interaction", "noise", "most"),
    [
        (3, 0.0, 0.0, 1.0, 1.0),  # chance in each drive, counted twice: wide
        (3, 1.0, 0.0, 0.1, 0.99),  # trainings differ
        (3, 0.0, 1.0, 0.1, 0.99),  # scenarios like one method more
        (3, 0.2, 0.3, 1.0, 1.0),
        (1, 0.0, 0.0, 1.0, 0.99),
    ],
)
def test_without_an_effect_about_95_percent_of_the_intervals_hold_zero(
    seeds, training, interaction, noise, most
):
    rng = np.random.default_rng(7)
    held = 0
    for repetition in range(REPETITIONS):
        sides = simulated(
            rng, seeds=seeds, scenarios=40, training=training, interaction=interaction, noise=noise
        )
        found = compared(sides, seed=repetition)
        held += found.low_K[0] <= 0.0 <= found.high_K[0]
    assert LEAST <= held / REPETITIONS <= most


def test_one_training_a_side_says_nothing_about_trainings():
    """Why several seeds are needed: the interval of one is about these networks, and misses often."""
    rng = np.random.default_rng(3)
    held = 0
    for repetition in range(100):
        sides = simulated(rng, seeds=1, scenarios=40, training=0.5, interaction=0.0, noise=0.5)
        found = compared(sides, seed=repetition)
        held += found.low_K[0] <= 0.0 <= found.high_K[0]
    assert held < 60


def test_a_known_effect_is_found_and_lies_in_the_interval():
    rng = np.random.default_rng(0)
    sides = simulated(rng, seeds=3, scenarios=120, training=0.05, interaction=0.1, noise=0.5, effect=0.5)
    found = compared(sides, resamples=1000)
    assert 0.0 < found.low_K[0] < 0.5 < found.high_K[0] < 0.8
    assert found.scenario_p_K[0] == pytest.approx(1.0 / 1001.0)
    assert found.seed_p_K is not None
    assert found.seed_p_K[0] == 2.0 / 8.0  # the least that three seeds allow


def test_flips_without_an_effect_are_uniform():
    rng = np.random.default_rng(5)
    p = [
        compared(
            simulated(rng, seeds=2, scenarios=30, training=0.0, interaction=0.0, noise=1.0), seed=repetition
        ).scenario_p_K[0]
        for repetition in range(REPETITIONS)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.05 + 4.0 * np.sqrt(0.05 * 0.95 / REPETITIONS)
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_pairing_by_scenario_beats_comparing_two_means():
    rng = np.random.default_rng(1)
    sides = simulated(rng, seeds=1, scenarios=100, training=0.0, interaction=0.0, noise=0.2)
    found = compared(sides)
    (a_N1,), (b_N1,) = sides
    unpaired = 2.0 * 1.96 * np.sqrt(a_N1.var() / 100 + b_N1.var() / 100)
    assert found.high_K[0] - found.low_K[0] < 0.5 * unpaired


def test_pairing_by_seed_beats_not_pairing_where_seeds_share_their_luck():
    rng = np.random.default_rng(2)
    luck = rng.normal(size=3)
    sides = [[luck[s] + 0.05 * rng.normal(size=(50, 1)) for s in range(3)] for _ in range(2)]
    paired, unpaired = compared(sides), compared(sides, by_seed=False)
    assert paired.high_K[0] - paired.low_K[0] < 0.2 * (unpaired.high_K[0] - unpaired.low_K[0])
    assert unpaired.seed_p_K is None


def test_a_scenario_counts_only_where_both_have_a_value():
    a, b = np.array([[1.0], [2.0], [np.nan], [9.0]]), np.array([[0.0], [2.0], [5.0], [np.nan]])
    found = compared([[a], [b]])
    assert (found.mean_a_K[0], found.mean_b_K[0], found.difference_K[0]) == (1.5, 1.0, 0.5)


def test_a_figure_without_a_common_scenario_has_no_value_and_no_p():
    a, b = np.array([[1.0, 1.0], [np.nan, 2.0]]), np.array([[np.nan, 1.0], [1.0, 1.0]])
    found = compared([[a, a], [b, b]])
    assert found.seed_p_K is not None
    for values in (found.difference_K, found.scenario_p_K, found.seed_p_K):
        assert np.isnan(values).tolist() == [True, False]


@pytest.mark.parametrize(("num", "known"), [(1, False), (MIN_SCENARIOS - 1, False), (MIN_SCENARIOS, True)])
def test_what_few_scenarios_agree_on_is_not_certain(num: int, known: bool):
    a = np.ones((num, 1))
    found = compared([[a, a], [a - 1.0, a - 1.0]])
    assert found.difference_K.tolist() == [1.0]
    for ends in (found.low_K, found.high_K, found.networks_low_K, found.networks_high_K):
        assert np.isfinite(ends).tolist() == [known]


def test_a_score_is_that_of_resampled_figures_and_not_a_mean_of_scores():
    """A product of two figures: of their means, not the mean of products."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(1.0, 0.5, size=(60, 2)), rng.normal(1.0, 0.5, size=(60, 2))
    found = compared([[a], [b]], measure=lambda x: x.prod(axis=-1, keepdims=True))
    expected = a.mean(axis=0).prod() - b.mean(axis=0).prod()
    assert found.difference_K[0] == pytest.approx(expected)
    assert found.low_K[0] < expected < found.high_K[0]


def test_equal_generators_give_equal_results_and_others_do_not():
    sides = simulated(np.random.default_rng(0), seeds=2, scenarios=20, training=1, interaction=1, noise=1)
    first, again, other = (compared(sides, seed=seed) for seed in (1, 1, 2))
    assert (first.low_K, first.scenario_p_K) == (again.low_K, again.scenario_p_K)
    assert first.low_K != other.low_K


def test_strata_keep_their_sizes():
    """A table of few scenarios beside one of many: drawn together, it would now and then be empty."""
    few = MIN_SCENARIOS
    a = np.full((40 + few, 2), np.nan)
    a[:40, 0], a[40:, 1] = 1.0, np.arange(few)
    strata = np.repeat([0, 1], [40, few])
    values = pair_up([a], [a - 1.0], strata, by_seed=True)
    found = estimate(values, same, np.array([40, few]), resamples=500, rng=np.random.default_rng(0))
    assert found.difference_K.tolist() == [1.0, 1.0]
    assert found.low_K == pytest.approx([1.0, 1.0])
