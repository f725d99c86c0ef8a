"""Charts of evaluations, as what plotly draws: lists of traces and a layout, in plain dictionaries.

A colour is the name of a variable of the page's style (`--s0`), which the page looks up, so that one chart
serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from e2e_perception.evaluation.comparison import Comparison, Difference
from e2e_perception.evaluation.evaluations import Evaluation, is_rate
from e2e_perception.evaluation.missions import Mission
from e2e_perception.evaluation.standings import Standings

NUM_COLOURS = 8  # --s0 … --s7 in the template
# Keys of a curve in `perception.json`: across, up, and what its diagonal means.
CURVES = {
    "precision_recall": ("recall", "precision"),
    "reliability": ("predicted", "observed"),
}

Chart = dict[str, Any]


def colours(evaluations: Sequence[Evaluation]) -> list[str]:
    """One colour per group; whoever is in none has his own."""
    keys = [item.facts.group or f"label {item.label}" for item in evaluations]
    order = list(dict.fromkeys(keys))
    return [f"--s{order.index(key) % NUM_COLOURS}" for key in keys]


def score_chart(evaluations: Sequence[Evaluation], standings: Standings) -> Chart:
    """Composite and objectives of each evaluation, as bars; who is disqualified has no bar at composite."""
    traces = []
    for item, place, colour in zip(evaluations, standings.standings, colours(evaluations), strict=True):
        scores = {"composite": place.composite.value, **place.composite.objectives}
        traces.append(
            {
                "type": "bar",
                "name": item.label,
                "x": list(scores),
                "y": list(scores.values()),
                "marker": {"color": colour, "line": {"color": "--card", "width": 1}},
                "hovertemplate": "%{fullData.name}: %{x} %{y:.3f}<extra></extra>",
            }
        )
    return {"data": traces, "layout": {"barmode": "group", "yaxis": {"range": [0, 1], "title": "score"}}}


def pareto_chart(standings: Standings) -> Chart | None:
    """Every axis but the last against the last, dominated points grey; None where there is one axis only."""
    *ups, across = standings.axes
    if not ups:
        return None
    traces: list[Chart] = []
    share = 1.0 / len(ups)
    layout: Chart = {"showlegend": False}
    for k, axis in enumerate(ups):
        suffix = "" if k == 0 else str(k + 1)
        layout[f"xaxis{suffix}"] = {
            "title": f"{across.name} ({across.goal})",
            "domain": [k * share + (0.04 if k else 0.0), (k + 1) * share - 0.03],
            "anchor": f"y{suffix}",
        }
        layout[f"yaxis{suffix}"] = {"title": f"{axis.name} ({axis.goal})", "anchor": f"x{suffix}"}
        first = [place.rank == 0 for place in standings.standings]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "x": [place.values[across.name] for place in standings.standings],
                "y": [place.values[axis.name] for place in standings.standings],
                "text": [place.label for place in standings.standings],
                "textposition": "top center",
                "cliponaxis": False,
                "textfont": {"color": ["--ink" if on else "--muted" for on in first]},
                "marker": {
                    "size": 11,
                    "color": ["--accent" if on else "--rival" for on in first],
                    "symbol": ["circle" if on else "circle-open" for on in first],
                    "line": {"width": 2, "color": ["--accent" if on else "--rival" for on in first]},
                },
                "customdata": [
                    f"dominated by {place.dominated_by}" if place.dominated_by else "not dominated"
                    for place in standings.standings
                ],
                "hovertemplate": "%{text}: %{x:.4g}, %{y:.4g}<br>%{customdata}<extra></extra>",
            }
        )
    return {"data": traces, "layout": layout}


def forest_chart(comparison: Comparison, mission: Mission | None) -> Chart | None:
    """Differences with intervals; None if nothing can be drawn on one scale.

    Scores are drawn as they are and figures as shares of their ramp, so that right is better for a; without a
    mission only rates are drawn, as they are.
    """
    rows: list[tuple[str, float, float, float, str]] = []
    for item in comparison.differences:
        scale = _scale(item, mission)
        if scale is None or not all(map(math.isfinite, item.ci95)):
            continue
        low, high = sorted((item.ci95[0] * scale, item.ci95[1] * scale))
        colour = "--muted"
        if item.excludes_zero:
            colour = {"a": "--good", "b": "--critical", None: "--accent"}[item.better]
        rows.append((item.name, item.difference * scale, low, high, colour))
    if not rows:
        return None
    rows.reverse()  # plotly starts at the bottom
    names, middles, lows, highs, tones = (list(column) for column in zip(*rows, strict=True))
    unit = "share of ramp; right: a is better" if mission else "difference of rates, a - b"
    # One trace per interval line, because a trace's error bars have one colour.
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [low, high],
            "y": [name, name],
            "line": {"color": tone, "width": 3},
            "hoverinfo": "skip",
        }
        for name, low, high, tone in zip(names, lows, highs, tones, strict=True)
    ]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": middles,
        "y": names,
        "marker": {"size": 9, "color": tones},
        "customdata": [f"{low:+.3f} … {high:+.3f}" for low, high in zip(lows, highs, strict=True)],
        "hovertemplate": "%{y}: %{x:+.3f}, %{customdata}<extra></extra>",
    }
    layout = {
        "showlegend": False,
        "height": 110 + 22 * len(names),
        "xaxis": {"title": unit, "zeroline": True, "zerolinecolor": "--ink-2", "zerolinewidth": 1.5},
        "yaxis": {"categoryorder": "array", "categoryarray": names, "automargin": True},
    }
    return {"data": [*lines, points], "layout": layout}


def curve_chart(evaluations: Sequence[Evaluation], kind: str) -> Chart | None:
    """Curves of one of `CURVES`, each network's by name; None if nobody has any."""
    across, up = CURVES[kind]
    traces: list[Chart] = []
    for item, colour in zip(evaluations, colours(evaluations), strict=True):
        curves = item.curves.get(kind)
        for k, (name, curve) in enumerate(curves.items() if isinstance(curves, Mapping) else ()):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if kind == "precision_recall" else "lines+markers",
                    "name": f"{item.label} {name}",
                    "x": curve[across],
                    "y": curve[up],
                    "line": {"color": colour, "dash": ("solid", "dash", "dot", "dashdot")[k % 4]},
                }
            )
    if not traces:
        return None
    if kind == "reliability":
        ideal = {"x": [0, 1], "y": [0, 1], "line": {"color": "--muted", "dash": "dot", "width": 1}}
        traces.append({"type": "scatter", "mode": "lines", "name": "as predicted", **ideal})
    scale = {"range": [0, 1.02]}
    return {
        "data": traces,
        "layout": {"xaxis": {"title": across, **scale}, "yaxis": {"title": up, **scale}, "height": 420},
    }


def _scale(item: Difference, mission: Mission | None) -> float | None:
    if item.kind != "figure":
        return 1.0
    if mission is None:
        return 1.0 if is_rate(item.name) else None
    ramp = mission.ramps.get(item.name)
    return None if ramp is None else 1.0 / (ramp.best - ramp.worst)
