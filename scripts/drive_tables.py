"""Tables of drives: who drove a suite how well, and where. Needs no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import source_tree  # noqa: F401

from e2e_perception.evaluation.outcome_tables import paired_difference, summarize
from e2e_perception.evaluation.outcomes import Outcome

HEAD = (
    "policy",
    "success",
    "95 %",
    "at-fault collision",
    "off road",
    "progress",
    "TTC p5 [s]",
    "jerk p95",
    "against blind",
)
UNKNOWN = "–"


def figures_of(outcomes: tuple[Outcome, ...], control: tuple[Outcome, ...] | None) -> dict[str, Any]:
    """What `summarize` says of a drive, success by road, and the difference to the control."""
    roads: dict[str, list[int]] = {}
    for item in outcomes:
        found = roads.setdefault(item.family.partition("+")[0], [0, 0])
        found[0] += item.success
        found[1] += 1
    figures = {**summarize(outcomes), "roads": dict(sorted(roads.items()))}
    if control is not None and control is not outcomes:
        figures["against_control"] = paired_difference(outcomes, control, "success")
    return figures


def row(policy: str, figures: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    low, high = figures["success_rate_ci95"]
    cells = [policy, f"{figures['success_rate']:.3f}", f"{low:.2f} … {high:.2f}"]
    cells += [f"{figures[name]:.3f}" for name in ("at_fault_collision_rate", "off_road_rate")]
    for name, digits in (("progress_mean", 2), ("ttc_p5_s", 2), ("jerk_p95_mps3", 1)):
        value = figures.get(name)
        cells.append(UNKNOWN if value is None else f"{value:.{digits}f}")
    paired = figures.get("against_control")
    if paired is None:
        return [*cells, "—"]
    low, high = paired["difference_ci95"]
    return [*cells, f"{paired['difference']:+.2f} ({low:+.2f} … {high:+.2f})"]


def by_road(by_policy: Mapping[str, Mapping[str, Any]]) -> tuple[list[list[str]], tuple[str, ...]]:
    """Success by road, hazards or none: rows and head."""
    roads = sorted({road for figures in by_policy.values() for road in figures["roads"]})
    rows = []
    for policy, figures in by_policy.items():
        counts = (figures["roads"].get(road, (0, 0)) for road in roads)
        rows.append([policy, *(f"{passed}/{driven}" for passed, driven in counts)])
    return rows, ("policy", *roads)
