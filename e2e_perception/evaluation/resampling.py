"""How sure a difference of two groups of networks is, over trainings and scenarios, for many figures at once.

Both groups meet the same scenarios, so a value belongs to a *pair*: one network of each group in one
scenario. With the same seeds on both sides the pairs are seed against same seed, otherwise each against each.
A scenario counts for a figure of a pair if both have a value. A figure is the mean over scenarios, then over
pairs.

**Bootstrap** (Efron 1979), at two levels: the trainings of each group, then the scenarios. All networks get
the same drawn scenarios, because a hard scenario is hard for all; drawing them anew for each network would
hide that. The deviations of the two levels are added. What only one network does in one scenario is then in
both levels, so that the interval is up to √2 too wide where nothing else varies; drawing both at once would
count it three times (Owen 2007). Of S trainings S - 1 are drawn, which makes the variance of their mean
unbiased (Rao and Wu 1988); drawing S of 3 loses a third of it.

**Interval**: estimate ± t × the bootstrap's standard deviation. Percentiles of three trainings never reach
beyond their extremes, so they hold for three quarters of such experiments, not for 95 %. The degrees of
freedom of t come from the two levels' shares of the variance (Satterthwaite 1946): two for three trainings
if trainings differ by more than scenarios do, many if it is the other way round.

A measure that rests on fewer than `MIN_SCENARIOS` has no interval: what few scenarios happen to agree on
would look certain.

**Sign flips**: if the two groups do not differ, swapping them in a scenario (in all pairs at once) changes
nothing, and no more does swapping a training with its partner. `scenario_p` and `seed_p` are the shares of
swaps that differ by at least as much as what was measured (the former with the + 1 of
Phipson and Smyth 2010).

Legend: P pairs, N scenarios, F figures, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]
# From (…, F) figures of a group to (…, K) that is compared: the figures themselves, or scores made of them.
Measure = Callable[[Array], Array]

UPPER = 0.975  # quantile at the upper end of a 95 % interval
MIN_SCENARIOS = 5
MAX_EXACT_SEEDS = 12  # 4096 swaps
_EPSILON = 1e-12  # swaps that differ as much but for rounding count


@dataclass(frozen=True)
class PairedValues:
    """Values of two groups, pair by pair.

    Attributes:
        a_PNF, b_PNF: (P, N, F), NaN in both where one has no value.
        first_P, second_P: Which network of either group a pair is made of.
        strata_N: (N,) int. Scenarios are drawn within strata, so that each table keeps its size.
        paired_by_seed: Whether pair p is training p of both.
    """

    a_PNF: Array
    b_PNF: Array
    first_P: NDArray[np.int64]
    second_P: NDArray[np.int64]
    strata_N: NDArray[np.int64]
    paired_by_seed: bool

    @property
    def num_seeds(self) -> tuple[int, int]:
        """Networks in either group."""
        return int(self.first_P.max()) + 1, int(self.second_P.max()) + 1


@dataclass(frozen=True)
class Estimate:
    """Differences a - b of K measures.

    Attributes:
        mean_a_K, mean_b_K, difference_K: NaN where no scenario has a value.
        low_K, high_K: 95 % interval of the difference: about how they were trained; NaN of fewer than
            `MIN_SCENARIOS`.
        networks_low_K, networks_high_K: The same with the networks as they are, only scenarios drawn anew.
        scenario_p_K: Share of sign flips over scenarios: about these networks.
        seed_p_K: The same over trainings: about how they were trained. None unless paired by seed, with at
            least two seeds and at most `MAX_EXACT_SEEDS`.
    """

    mean_a_K: Array
    mean_b_K: Array
    difference_K: Array
    low_K: Array
    high_K: Array
    networks_low_K: Array
    networks_high_K: Array
    scenario_p_K: Array
    seed_p_K: Array | None


def pair_up(
    values_a: Sequence[Array], values_b: Sequence[Array], strata_N: NDArray[np.int64], *, by_seed: bool
) -> PairedValues:
    """Make the pairs.

    Args:
        values_a, values_b: (N, F) of each network, NaN where there is no value; of the same scenarios.
        strata_N: (N,) int.
        by_seed: Network i of either group has the same seed.
    """
    indices = [(i, j) for i in range(len(values_a)) for j in range(len(values_b)) if not by_seed or i == j]
    a_PNF = np.stack([values_a[i] for i, _ in indices]).astype(np.float64)
    b_PNF = np.stack([values_b[j] for _, j in indices]).astype(np.float64)
    alone = ~(np.isfinite(a_PNF) & np.isfinite(b_PNF))
    a_PNF[alone] = np.nan
    b_PNF[alone] = np.nan
    first_P, second_P = (np.array(side, np.int64) for side in zip(*indices, strict=True))
    return PairedValues(a_PNF, b_PNF, first_P, second_P, strata_N, by_seed)


def estimate(
    values: PairedValues,
    measure: Measure,
    scenarios_K: NDArray[np.int64],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Estimate:
    """Differences with intervals and p-values.

    Args:
        values: Of both groups.
        measure: What is compared; it is applied to every resample's figures, so that a score is the score of
            the resampled figures and not a mean of scores.
        scenarios_K: (K,) how many scenarios each measure rests on.
        resamples: At least 2, for bootstrap and flips each.
        rng: Equal generators give equal results.
    """
    per_pair_a_PF, per_pair_b_PF = _pair_means(values, np.ones((1, values.a_PNF.shape[1])))
    a_F, b_F = _over_pairs(per_pair_a_PF[0]), _over_pairs(per_pair_b_PF[0])
    mean_a_K, mean_b_K = measure(a_F), measure(b_F)
    difference_K = mean_a_K - mean_b_K

    seed_a_RF, seed_b_RF = _draw_seeds(values, per_pair_a_PF[0], per_pair_b_PF[0], resamples, rng)
    scenario_a_RF, scenario_b_RF = _draw_scenarios(values, resamples, rng)
    both_RK = measure(seed_a_RF + scenario_a_RF - a_F) - measure(seed_b_RF + scenario_b_RF - b_F)
    seeds_RK = measure(seed_a_RF) - measure(seed_b_RF)
    scenarios_RK = measure(scenario_a_RF) - measure(scenario_b_RF)
    half_K = _quantile(values.num_seeds, scenarios_K, seeds_RK, scenarios_RK) * _deviation(both_RK)
    networks_half_K = student.ppf(UPPER, np.maximum(scenarios_K - 1, 1)) * _deviation(scenarios_RK)
    half_K[scenarios_K < MIN_SCENARIOS] = networks_half_K[scenarios_K < MIN_SCENARIOS] = np.nan

    flips_RK = _flip_scenarios(values, measure, resamples, rng)
    as_far_K = np.abs(difference_K) - _EPSILON
    scenario_p_K = (1.0 + (np.abs(flips_RK) >= as_far_K).sum(axis=0)) / (resamples + 1.0)
    flipped_K = _flip_seeds(values, measure, per_pair_a_PF[0], per_pair_b_PF[0])
    seed_p_K = None if flipped_K is None else (np.abs(flipped_K) >= as_far_K).mean(axis=0)
    unknown_K = ~np.isfinite(difference_K)
    scenario_p_K[unknown_K] = np.nan
    if seed_p_K is not None:
        seed_p_K[unknown_K] = np.nan
    return Estimate(
        mean_a_K=mean_a_K,
        mean_b_K=mean_b_K,
        difference_K=difference_K,
        low_K=difference_K - half_K,
        high_K=difference_K + half_K,
        networks_low_K=difference_K - networks_half_K,
        networks_high_K=difference_K + networks_half_K,
        scenario_p_K=scenario_p_K,
        seed_p_K=seed_p_K,
    )


def _pair_means(values: PairedValues, weights_RN: Array) -> tuple[Array, Array]:
    """(R, P, F) means over scenarios under weights, of both groups; NaN where no weight is on a value."""
    means = []
    counted_PNF = np.isfinite(values.a_PNF)
    totals_RPF = np.stack([weights_RN @ counted_NF for counted_NF in counted_PNF.astype(np.float64)], axis=1)
    for side_PNF in (values.a_PNF, values.b_PNF):
        sums_RPF = np.stack([weights_RN @ np.nan_to_num(side_NF) for side_NF in side_PNF], axis=1)
        means.append(np.divide(sums_RPF, totals_RPF, np.full_like(sums_RPF, np.nan), where=totals_RPF > 0.0))
    return means[0], means[1]


def _over_pairs(values_XPF: Array, weights_XP: Array | None = None) -> Array:
    """(…, F) weighted mean over pairs that have a value."""
    known_XPF = np.isfinite(values_XPF)
    weights_XP1 = np.ones(values_XPF.shape[:-1])[..., None] if weights_XP is None else weights_XP[..., None]
    sums_XF = (weights_XP1 * np.where(known_XPF, values_XPF, 0.0)).sum(axis=-2)
    totals_XF = (weights_XP1 * known_XPF).sum(axis=-2)
    means: Array = np.divide(sums_XF, totals_XF, np.full_like(sums_XF, np.nan), where=totals_XF > 0.0)
    return means


def _draw_seeds(
    values: PairedValues, a_PF: Array, b_PF: Array, resamples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """(R, F) means of both groups when their trainings are drawn anew."""
    num_a, num_b = values.num_seeds
    counts_a = _counts(rng, max(num_a - 1, 1), num_a, resamples)
    if values.paired_by_seed:
        weights_RP = counts_a[:, values.first_P]
    else:
        counts_b = _counts(rng, max(num_b - 1, 1), num_b, resamples)
        weights_RP = counts_a[:, values.first_P] * counts_b[:, values.second_P]
    return _over_pairs(a_PF[None], weights_RP), _over_pairs(b_PF[None], weights_RP)


def _draw_scenarios(values: PairedValues, resamples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """(R, F) means of both groups when the scenarios are drawn anew, the same for all pairs."""
    weights_RN = np.zeros((resamples, len(values.strata_N)))
    for stratum in np.unique(values.strata_N):
        members = np.flatnonzero(values.strata_N == stratum)
        weights_RN[:, members] = _counts(rng, len(members), len(members), resamples)
    a_RPF, b_RPF = _pair_means(values, weights_RN)
    return _over_pairs(a_RPF), _over_pairs(b_RPF)


def _counts(rng: np.random.Generator, drawn: int, among: int, resamples: int) -> Array:
    """(R, `among`) how often each is among `drawn` draws with replacement."""
    return rng.multinomial(drawn, np.full(among, 1.0 / among), size=resamples).astype(np.float64)


def _quantile(
    num_seeds: tuple[int, int], scenarios_K: NDArray[np.int64], seeds_RK: Array, scenarios_RK: Array
) -> Array:
    """(K,) quantile of Student's t for the degrees of freedom that the two levels leave."""
    seed_K, scenario_K = _deviation(seeds_RK) ** 2, _deviation(scenarios_RK) ** 2
    several = [count for count in num_seeds if count > 1]
    seed_freedom = min(several) - 1 if several else np.inf
    inverse_K = seed_K**2 / seed_freedom + scenario_K**2 / np.maximum(scenarios_K - 1, 1)
    freedom_K = np.divide(
        (seed_K + scenario_K) ** 2, inverse_K, np.full_like(seed_K, np.inf), where=inverse_K > 0.0
    )
    quantile_K: Array = student.ppf(UPPER, freedom_K)
    return quantile_K


def _deviation(values_RK: Array) -> Array:
    """(K,) standard deviation over resamples that have a value; NaN where fewer than two have."""
    known_RK = np.isfinite(values_RK)
    count_K = known_RK.sum(axis=0)
    filled_RK = np.where(known_RK, values_RK, 0.0)
    mean_K = filled_RK.sum(axis=0) / np.maximum(count_K, 1)
    squares_K = (np.where(known_RK, values_RK - mean_K, 0.0) ** 2).sum(axis=0)
    return np.where(count_K > 1, np.sqrt(squares_K / np.maximum(count_K - 1, 1)), np.nan)


def _flip_scenarios(
    values: PairedValues, measure: Measure, resamples: int, rng: np.random.Generator
) -> Array:
    """(R, K) differences after swapping the groups in a random half of the scenarios."""
    swapped_RN = rng.integers(2, size=(resamples, len(values.strata_N))).astype(np.float64)
    counted_PNF = np.isfinite(values.a_PNF)
    totals_PF = counted_PNF.sum(axis=1).astype(np.float64)
    shifts_RPF = np.stack(
        [
            swapped_RN @ np.nan_to_num(b_NF - a_NF)
            for a_NF, b_NF in zip(values.a_PNF, values.b_PNF, strict=True)
        ],
        axis=1,
    )
    shifts_RPF = np.divide(shifts_RPF, totals_PF, np.full_like(shifts_RPF, np.nan), where=totals_PF > 0.0)
    a_PF, b_PF = (means[0] for means in _pair_means(values, np.ones((1, len(values.strata_N)))))
    return measure(_over_pairs(a_PF + shifts_RPF)) - measure(_over_pairs(b_PF - shifts_RPF))


def _flip_seeds(values: PairedValues, measure: Measure, a_PF: Array, b_PF: Array) -> Array | None:
    """(2^S, K) differences after swapping the groups in each subset of the seeds, or None."""
    if not values.paired_by_seed or not 2 <= len(a_PF) <= MAX_EXACT_SEEDS:
        return None
    swapped = np.array(list(product((False, True), repeat=len(a_PF))))[..., None]
    return measure(_over_pairs(np.where(swapped, b_PF, a_PF))) - measure(
        _over_pairs(np.where(swapped, a_PF, b_PF))
    )
