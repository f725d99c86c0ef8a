"""What several evaluations have in common: tables, figures and scenarios, on one axis of scenarios.

Legend: N scenarios, F figures, T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import Evaluation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CommonScenarios:
    """What all evaluations have, in the same order.

    Attributes:
        figures_F: Names.
        values: (N, F) of each evaluation, NaN where a scenario has no such figure.
        strata_N: (N,) which tables a scenario is in.
        scenarios: How many each table contributes.
        left_out: What is not common.
    """

    figures_F: tuple[str, ...]
    values: tuple[Array, ...]
    strata_N: NDArray[np.int64]
    scenarios: dict[str, int]
    left_out: tuple[str, ...]


def common_scenarios(evaluations: Sequence[Evaluation]) -> CommonScenarios:
    """Find what all have; tables that share a scenario share its place, so that one draw holds for both.

    Raises:
        InputError: If nothing is common, or a table was measured on other suites or with other sensor faults.
    """
    left_out: list[str] = []
    chosen: dict[str, tuple[list[str], list[str]]] = {}
    for table in dict.fromkeys(name for item in evaluations for name in item.tables):
        without = [item.label for item in evaluations if table not in item.tables]
        if without:
            left_out.append(f"{table}: missing from {', '.join(without)}")
            continue
        _check_conditions(table, evaluations)
        tables = [item.tables[table] for item in evaluations]
        figures, odd_figures = _shared([one.figures_F for one in tables])
        scenarios, odd_scenarios = _shared([one.scenarios_N for one in tables])
        if odd_figures:
            left_out.append(f"{table}: {', '.join(odd_figures)} not measured of all")
        if odd_scenarios:
            left_out.append(
                f"{table}: {len(odd_scenarios)} scenarios not met by all, {odd_scenarios[0]} first"
            )
        if figures and scenarios:
            chosen[table] = (figures, sorted(scenarios))
    if not chosen:
        raise InputError(
            f"comparison: the evaluations have no figure of a scenario in common ({'; '.join(left_out)}); "
            "measure them on the same scenarios"
        )
    axis = sorted({name for _, scenarios in chosen.values() for name in scenarios})
    rows = {name: n for n, name in enumerate(axis)}
    member_NT = np.zeros((len(axis), len(chosen)), bool)
    arrays: list[list[Array]] = [[] for _ in evaluations]
    for t, (table, (figures, scenarios)) in enumerate(chosen.items()):
        places = [rows[name] for name in scenarios]
        member_NT[places, t] = True
        for item, parts in zip(evaluations, arrays, strict=True):
            one = item.tables[table]
            from_n = [one.scenarios_N.index(name) for name in scenarios]
            from_f = [one.figures_F.index(name) for name in figures]
            part = np.full((len(axis), len(figures)), np.nan)
            part[places] = one.values_NF[np.ix_(from_n, from_f)]
            parts.append(part)
    _, strata_N = np.unique(member_NT, axis=0, return_inverse=True)
    return CommonScenarios(
        figures_F=tuple(name for figures, _ in chosen.values() for name in figures),
        values=tuple(np.concatenate(parts, axis=1) for parts in arrays),
        strata_N=strata_N.reshape(-1).astype(np.int64),
        scenarios={table: len(scenarios) for table, (_, scenarios) in chosen.items()},
        left_out=tuple(left_out),
    )


def _check_conditions(table: str, evaluations: Sequence[Evaluation]) -> None:
    """Scenarios of the same name are the same only in the same suite, under the same conditions."""
    known = [(item.label, item.conditions[table]) for item in evaluations if item.conditions.get(table)]
    for label, conditions in known[1:]:
        first_label, first = known[0]
        for key in first.keys() & conditions.keys():
            if first[key] != conditions[key]:
                raise InputError(
                    f"comparison: {table} of {label} has {key} {conditions[key]!r}, of {first_label} "
                    f"{first[key]!r}; expected the same: measure one of them again"
                )


def _shared(lists: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """What all lists have, and what only some have, in order of appearance."""
    sets = [set(names) for names in lists]
    everything = dict.fromkeys(name for names in lists for name in names)
    shared = [name for name in everything if all(name in one for one in sets)]
    return shared, [name for name in everything if name not in set(shared)]
