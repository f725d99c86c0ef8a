"""How often the 95 % intervals of `e2e-perception compare` hold zero where there is no difference.

    python scripts/measure_coverage.py [--repetitions 4000] [--scenarios 40]

Two groups of networks are drawn from the same distribution, again and again: a value of a network in a
scenario is the scenario's difficulty, plus what the scenario likes of the group, plus the training's luck,
plus chance. Rows differ in how large these are, and in what is made of the value: as it is; success or
failure; heavy tails; a composite of two figures on clipped ramps. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import source_tree  # noqa: F401
from numpy.typing import NDArray

from e2e_perception.cli.console import log, progress_bar
from e2e_perception.evaluation.resampling import estimate, pair_up

Array = NDArray[np.float64]
SEEDS = 3
RESAMPLES = 400


def plain(values_XF: Array) -> Array:
    """Figures as they are."""
    return values_XF


def composite(values_XF: Array) -> Array:
    """The geometric mean of two ramps from -1 to 3, as `missions.Scorer` makes it."""
    shares_XF = np.clip((values_XF + 1.0) / 4.0, 0.0, 1.0)
    return np.sqrt(shares_XF.prod(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        title: Of the row.
        training, interaction, noise: Standard deviations: between trainings, of what a scenario likes of a
            group, and of chance.
        make: From the sum to the value.
        figures: How many per network.
        measure: What is compared.
    """

    title: str
    training: float
    interaction: float
    noise: float
    make: Callable[[Array], Array] = plain
    figures: int = 1
    measure: Callable[[Array], Array] = plain


def succeeds(sum_NF: Array) -> Array:
    """1 where the sum is above -1: three of four succeed."""
    return (sum_NF > -1.0).astype(np.float64)


def heavy(sum_NF: Array) -> Array:
    """A tail below, as MOTA has where objects are few."""
    return -np.exp(-sum_NF)


CASES = (
    Case("chance in each drive only", 0.0, 0.0, 1.0),
    Case("trainings only", 1.0, 0.0, 0.1),
    Case("scenarios like one method more", 0.0, 1.0, 0.1),
    Case("all, chance most (0.3, 0.3, 1)", 0.3, 0.3, 1.0),
    Case("the same, success or failure", 0.3, 0.3, 1.0, succeeds),
    Case("the same, a heavy tail", 0.3, 0.3, 1.0, heavy),
    Case("the same, a composite of two figures", 0.3, 0.3, 1.0, plain, 2, composite),
)


def side(rng: np.random.Generator, case: Case, hard_N1: Array, seeds: int) -> list[Array]:
    """(N, F) values of each network of a group."""
    shape = (len(hard_N1), case.figures)
    liked_NF = case.interaction * rng.normal(size=shape)
    return [
        case.make(
            hard_N1
            + liked_NF
            + case.training * rng.normal(size=(1, case.figures))
            + case.noise * rng.normal(size=shape)
        )
        for _ in range(seeds)
    ]


def holds_zero(rng: np.random.Generator, case: Case, scenarios: int, seeds: int, *, by_seed: bool) -> bool:
    """Draw two groups, compare them."""
    hard_N1 = rng.normal(size=(scenarios, 1))
    groups = [side(rng, case, hard_N1, seeds) for _ in range(2)]
    values = pair_up(*groups, np.zeros(scenarios, np.int64), by_seed=by_seed)
    found = estimate(values, case.measure, np.array([scenarios]), resamples=RESAMPLES, rng=rng)
    return bool(found.low_K[0] <= 0.0 <= found.high_K[0])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--scenarios", type=int, default=40)
    options = parser.parse_args()
    kinds: tuple[dict[str, Any], ...] = (
        {"seeds": SEEDS, "by_seed": True},
        {"seeds": SEEDS, "by_seed": False},
        {"seeds": 1, "by_seed": True},
    )
    rows = []
    with progress_bar("comparing", len(CASES) * len(kinds)) as progress:
        for number, case in enumerate(CASES):
            cells = [case.title]
            for column, kind in enumerate(kinds):
                rng = np.random.default_rng((number, column))
                held = sum(
                    holds_zero(rng, case, options.scenarios, **kind) for _ in range(options.repetitions)
                )
                cells.append(f"{100.0 * held / options.repetitions:.1f} %")
                progress(number * len(kinds) + column + 1, case.title)
            rows.append(cells)
    log(f"standard error at 95 %: {100.0 * (0.95 * 0.05 / options.repetitions) ** 0.5:.2f} %")
    print("| what varies | paired by seed | not paired | one training a side |\n| --- | --- | --- | --- |")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
