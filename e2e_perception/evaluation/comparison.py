"""Two groups of evaluations against each other: every figure and score, with intervals and p-values.

    compare((joint_0, joint_1, joint_2), (detached_0, detached_1, detached_2), mission)

What is compared is the mean over scenarios of per-scenario figures (scenarios without a value left out), then
over trainings; success rates are means of 0 and 1. It is not what one gets by pooling all objects of all
scenarios. `evaluation/resampling.py` has the statistics.

**What it can claim.** With one network a side, the intervals are about these two networks on scenarios like
these; another seed of the same training may turn the sign (Bouthillier et al. 2021). With three seeds a side
the seed is resampled too, and the interval is about the way of training, as far as three can tell: it is wide
where trainings differ, and `seed_p` cannot fall below 2/8 however large the effect. It claims nothing about
other data, other sizes of network or roads that no scenario has, and of a hundred figures without any
difference five intervals exclude zero: state beforehand which figure decides.

Legend: N scenarios, F figures, K what is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.common_scenarios import common_scenarios
from e2e_perception.evaluation.evaluations import Evaluation, is_rate
from e2e_perception.evaluation.missions import Mission, Ramp, Scorer
from e2e_perception.evaluation.outcome_tables import BOOTSTRAP_SEED, NUM_RESAMPLES, paired_difference
from e2e_perception.evaluation.resampling import Array, Estimate, PairedValues, estimate, pair_up

Kind = Literal["composite", "objective", "figure"]
_MCNEMAR = ("both", "only_a", "only_b", "neither", "mcnemar_p")


@dataclass(frozen=True)
class Difference:
    """One figure or score, a against b.

    Attributes:
        name: Of the figure, the objective, or `composite`.
        kind: Which of these.
        scenarios: How many it rests on; of a score, the fewest of its figures.
        mean_a, mean_b, difference: The last is a - b.
        ci95: 95 % interval of the difference.
        networks_ci95: The same with only scenarios drawn anew: about these networks, as they are.
        scenario_p: Two-sided sign flips over scenarios: about these networks.
        seed_p: The same over trainings; None unless they are paired.
        better: Who is, if the interval excludes zero and the mission says which way is better.
        mcnemar: With one network a side, for rates: `both`, `only_a`, `only_b`, `neither`, `mcnemar_p`.
    """

    name: str
    kind: Kind
    scenarios: int
    mean_a: float
    mean_b: float
    difference: float
    ci95: tuple[float, float]
    networks_ci95: tuple[float, float]
    scenario_p: float
    seed_p: float | None
    better: Literal["a", "b"] | None
    mcnemar: Mapping[str, float] | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.ci95[0] > 0.0 or self.ci95[1] < 0.0


@dataclass(frozen=True)
class Group:
    """One side.

    Attributes:
        name: Their common group, or their labels.
        labels: Of each evaluation.
        seeds: Of each training, None where unknown.
    """

    name: str
    labels: tuple[str, ...]
    seeds: tuple[int | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that differs.

    Attributes:
        a, b: The sides.
        mission: Whose composite it is; empty for none.
        paired_by_seed: Whether training i of a is compared with that of the same seed of b.
        claim: What the intervals are about, in words.
        scenarios: How many were compared, by table.
        left_out: What was not compared, and why.
        disqualified: Floors that were missed; there is then no composite.
        differences: Composite first, then objectives, then figures.
        resamples, seed: Of bootstrap and flips.
    """

    a: Group
    b: Group
    mission: str
    paired_by_seed: bool
    claim: str
    scenarios: Mapping[str, int]
    left_out: tuple[str, ...]
    disqualified: tuple[str, ...]
    differences: tuple[Difference, ...]
    resamples: int
    seed: int

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    a: Sequence[Evaluation],
    b: Sequence[Evaluation],
    mission: Mission | None = None,
    *,
    resamples: int = NUM_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Comparison:
    """Compare two groups on the scenarios that all of them met.

    Args:
        a, b: At least one evaluation each.
        mission: For composite, objectives and which way is better; None: figures only. Optional figures count
            only if all evaluations have them.
        resamples: Of bootstrap and sign flips, at least 2.
        seed: Equal seeds give equal results.
    Raises:
        InputError: If a side is empty, nothing is common, or a figure of the mission is missing.
    """
    if not a or not b or resamples < 2:
        raise InputError(
            f"comparison: {len(a)} against {len(b)} evaluations, {resamples} resamples; expected at least "
            "one on either side, and two resamples"
        )
    for side in (a, b):
        groups = sorted({item.facts.group for item in side if item.facts.group})
        if len(groups) > 1:
            raise InputError(
                f"comparison: one side mixes groups {' and '.join(groups)} "
                f"({', '.join(item.label for item in side)}); expected trainings of one group a side, and "
                "--against before each directory of the other"
            )
    by_seed = _same_seeds(a, b)
    if by_seed:
        a, b = (sorted(side, key=lambda item: item.facts.seed or 0) for side in (a, b))
    common = common_scenarios((*a, *b))
    values = pair_up(common.values[: len(a)], common.values[len(a) :], common.strata_N, by_seed=by_seed)
    measures = _Measures(common.figures_F, values, mission, (*a, *b))
    found = estimate(
        values, measures, measures.scenarios_K, resamples=resamples, rng=np.random.default_rng(seed)
    )
    return Comparison(
        a=_group(a, b),
        b=_group(b, a),
        mission="" if mission is None else mission.name,
        paired_by_seed=by_seed,
        claim=_claim(len(a), len(b), by_seed),
        scenarios=common.scenarios,
        left_out=(*common.left_out, *measures.left_out),
        disqualified=measures.disqualified,
        differences=tuple(
            _difference(found, k, entry, _mcnemar(a, b, entry.name))
            for k, entry in enumerate(measures.entries)
            if not (measures.disqualified and entry.kind == "composite")
        ),
        resamples=resamples,
        seed=seed,
    )


@dataclass(frozen=True)
class _Entry:
    """One thing that is compared; `way` is 1 where more is better, -1 where less is, 0 where nobody says."""

    name: str
    kind: Kind
    scenarios: int
    way: int


class _Measures:
    """From figures to what is compared: the composite, the objectives, the figures.

    Attributes:
        entries: K of them, in this order.
        left_out: Figures without a value on both sides, and optional ones that are missing.
        disqualified: Floors of the mission that an evaluation misses on its own scenarios.
    """

    def __init__(
        self,
        figures_F: Sequence[str],
        values: PairedValues,
        mission: Mission | None,
        evaluations: Sequence[Evaluation],
    ) -> None:
        counted_PNF = np.isfinite(values.a_PNF)
        scenarios_F = counted_PNF.any(axis=0).sum(axis=0)
        known_F: NDArray[np.bool_] = np.all(counted_PNF.any(axis=1), axis=0)
        column = {name: f for f, name in enumerate(figures_F) if known_F[f]}
        left_out = [f"{name}: no scenario has it on both sides" for name in figures_F if name not in column]
        self.disqualified: tuple[str, ...] = ()
        self._kept_F = np.array(list(column.values()), np.int64)
        self._scorer: Scorer | None = None
        entries: list[_Entry] = []
        ramps: Mapping[str, Ramp] = {}
        if mission is not None:
            ramps = mission.ramps
            self.disqualified = tuple(_missed_floors(mission, evaluations, column))
            self._scorer = Scorer(mission, column)
            self._scored_F = np.array([column[name] for name in self._scorer.figures_F], np.int64)
            left_out += [
                f"{name}: optional for mission {mission.name}, and missing" for name in self._scorer.skipped
            ]
            entries.append(_Entry("composite", "composite", int(scenarios_F[self._scored_F].min()), 1))
            for name, objective in mission.objectives.items():
                fewest = min(int(scenarios_F[column[f]]) for f in objective.figures if f in column)
                entries.append(_Entry(name, "objective", fewest, 1))
        for figure, f in column.items():
            way = ramps[figure].way if figure in ramps else 0
            entries.append(_Entry(figure, "figure", int(scenarios_F[f]), way))
        self.entries = tuple(entries)
        self.left_out = tuple(left_out)

    @property
    def scenarios_K(self) -> NDArray[np.int64]:
        """How many scenarios each rests on."""
        return np.array([entry.scenarios for entry in self.entries], np.int64)

    def __call__(self, figures_XF: Array) -> Array:
        """(…, K) from (…, F)."""
        kept_XF: Array = figures_XF[..., self._kept_F]
        if self._scorer is None:
            return kept_XF
        objectives_XO = self._scorer.objectives(figures_XF[..., self._scored_F])
        return np.concatenate(
            [self._scorer.composite(objectives_XO)[..., None], objectives_XO, kept_XF], axis=-1
        )


def _missed_floors(
    mission: Mission, evaluations: Sequence[Evaluation], available: Collection[str]
) -> Iterator[str]:
    for item in evaluations:
        figures = {name: value for name, value in item.figures().items() if name in available}
        try:
            score = mission.score(figures)
        except InputError as error:
            raise InputError(f"{item.label}: {error}") from error
        yield from (f"{item.label}: {reason}" for reason in score.disqualified)


def _difference(found: Estimate, k: int, entry: _Entry, mcnemar: Mapping[str, float] | None) -> Difference:
    low, high = float(found.low_K[k]), float(found.high_K[k])
    better: Literal["a", "b"] | None = None
    if entry.way and (low > 0.0 or high < 0.0):
        better = "a" if (low > 0.0) == (entry.way > 0) else "b"
    return Difference(
        name=entry.name,
        kind=entry.kind,
        scenarios=entry.scenarios,
        mean_a=float(found.mean_a_K[k]),
        mean_b=float(found.mean_b_K[k]),
        difference=float(found.difference_K[k]),
        ci95=(low, high),
        networks_ci95=(float(found.networks_low_K[k]), float(found.networks_high_K[k])),
        scenario_p=float(found.scenario_p_K[k]),
        seed_p=None if found.seed_p_K is None else float(found.seed_p_K[k]),
        better=better,
        mcnemar=mcnemar,
    )


def _same_seeds(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> bool:
    """Whether both sides have the same seeds, each once."""
    first, second = ({item.facts.seed for item in side} for side in (a, b))
    return None not in first and first == second and len(first) == len(a) == len(b)


def _mcnemar(a: Sequence[Evaluation], b: Sequence[Evaluation], figure: str) -> dict[str, float] | None:
    """McNemar's exact test of a rate, where one network stands against one."""
    if len(a) > 1 or len(b) > 1 or not is_rate(figure):
        return None
    drive, _, column = figure.rpartition("/")
    first, second = a[0].drives[drive], b[0].drives[drive]
    shared = {item.scenario for item in first} & {item.scenario for item in second}
    found = paired_difference(
        [item for item in first if item.scenario in shared],
        [item for item in second if item.scenario in shared],
        column,
    )
    return {name: found[name] for name in _MCNEMAR}


def _group(side: Sequence[Evaluation], other: Sequence[Evaluation]) -> Group:
    labels = tuple(item.label for item in side)
    groups = {item.facts.group for item in side}
    unclear = len(groups) > 1 or "" in groups or groups == {item.facts.group for item in other}
    return Group(", ".join(labels) if unclear else groups.pop(), labels, tuple(i.facts.seed for i in side))


def _claim(num_a: int, num_b: int, by_seed: bool) -> str:
    if min(num_a, num_b) == 1:
        alone = "one network a side" if num_a == num_b else "a side has one network only"
        return f"{alone}: about these networks, not about how they were trained"
    pairs = "paired by seed" if by_seed else "not paired by seed"
    return (
        f"{num_a} against {num_b} trainings, {pairs}: about how they were trained, as far as so few can tell"
    )
