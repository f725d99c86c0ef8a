"""Any number of evaluations beside each other: composites, Pareto fronts, and who dominates whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import Evaluation
from e2e_perception.evaluation.missions import Composite, Mission
from e2e_perception.evaluation.pareto import Axis, rank

AXES = ("recognition", "tracking", "planning", "latency_ms")
FACTS = ("latency_ms", "parameters")  # of `facts.json`, less is better
GOALS = ("maximise", "minimise")


@dataclass(frozen=True)
class Standing:
    """Where one evaluation stands.

    Attributes:
        label: Its.
        composite: Of the mission.
        values: By axis.
        rank: 0: nobody dominates it.
        dominated_by: One that does; None for rank 0.
    """

    label: str
    composite: Composite
    values: dict[str, float]
    rank: int
    dominated_by: str | None


@dataclass(frozen=True)
class Standings:
    """All of them.

    Attributes:
        mission: Name of the profile.
        axes: What the fronts are made by.
        left_out: Axes that some evaluation has no value for, in words.
        standings: In order of the evaluations.
    """

    mission: str
    axes: tuple[Axis, ...]
    left_out: tuple[str, ...]
    standings: tuple[Standing, ...]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def stand(
    evaluations: Sequence[Evaluation], mission: Mission, axes: Sequence[str] | None = None
) -> Standings:
    """Score and rank.

    Args:
        evaluations: At least one. Optional figures count only if all of them have them.
        mission: For composites and the objectives among the axes.
        axes: Each an objective, one of `FACTS`, or a figure; `NAME:maximise` or `NAME:minimise` where neither
            mission nor name says which way is better. None: those of `AXES` that the mission and all
            evaluations have.
    Raises:
        InputError: If an axis is unclear or an evaluation has no value on it, or lacks one of the mission.
    """
    all_figures = [item.figures() for item in evaluations]
    optional = {name for name, ramp in mission.ramps.items() if ramp.optional}
    partial = {name for name in optional if any(name not in figures for figures in all_figures)}
    composites = []
    for item, figures in zip(evaluations, all_figures, strict=True):
        try:
            composites.append(mission.score({k: v for k, v in figures.items() if k not in partial}))
        except InputError as error:
            raise InputError(f"{item.label}: {error}") from error
    known = [
        {**figures, **composite.objectives, **facts}
        for figures, composite, facts in zip(all_figures, composites, _facts(evaluations), strict=True)
    ]
    chosen, left_out = [], []
    for text in AXES if axes is None else axes:
        if axes is None and text not in (*mission.objectives, *FACTS):
            left_out.append(f"{text}: no objective of mission {mission.name}")
            continue
        axis = _axis(text, mission)
        without = [item.label for item, have in zip(evaluations, known, strict=True) if axis.name not in have]
        if not without:
            chosen.append(axis)
        elif axes is None:
            left_out.append(f"{axis.name}: missing from {', '.join(without)}")
        else:
            raise InputError(
                f"axis {axis.name!r}: {', '.join(without)} has no such value; expected an objective of "
                f"mission {mission.name}, {' or '.join(FACTS)} of facts.json, or a figure that all have"
            )
    values_NA = np.array([[have[axis.name] for axis in chosen] for have in known], np.float64)
    ranking = rank(values_NA.reshape(len(known), len(chosen)), chosen)
    standings = [
        Standing(
            label=item.label,
            composite=composite,
            values={axis.name: have[axis.name] for axis in chosen},
            rank=int(place),
            dominated_by=evaluations[int(by)].label if by >= 0 else None,
        )
        for item, composite, have, place, by in zip(
            evaluations, composites, known, ranking.ranks_N, ranking.dominators_N, strict=True
        )
    ]
    return Standings(mission.name, tuple(chosen), tuple(left_out), tuple(standings))


def _facts(evaluations: Sequence[Evaluation]) -> list[dict[str, float]]:
    """`FACTS` of each; networks of one graph share the least latency that was measured of any."""
    found = []
    for item in evaluations:
        values = {name: getattr(item.facts, name) for name in FACTS}
        graph = item.facts.graph_digest
        if graph is not None and values["latency_ms"] is not None:
            values["latency_ms"] = min(
                other.facts.latency_ms
                for other in evaluations
                if other.facts.graph_digest == graph and other.facts.latency_ms is not None
            )
        found.append({name: float(value) for name, value in values.items() if value is not None})
    return found


def _axis(text: str, mission: Mission) -> Axis:
    name, _, goal = (
        text.rpartition(":") if text.endswith(tuple(f":{goal}" for goal in GOALS)) else (text, "", "")
    )
    if not goal:
        if name in FACTS:
            goal = "minimise"
        elif name in mission.objectives:
            goal = "maximise"
        elif name in mission.ramps:
            goal = "maximise" if mission.ramps[name].way > 0 else "minimise"
        else:
            raise InputError(
                f"axis {name!r}: mission {mission.name} does not say which way is better; write "
                f"`{name}:maximise` or `{name}:minimise`"
            )
    return Axis(name, "maximise" if goal == "maximise" else "minimise")
