"""The page of one or more evaluations: one HTML file, with nothing loaded from anywhere.

`evaluation_report_template.html` holds page and style, `evaluation_charts.py` says what is drawn, plotly
draws it. Tables hold what the charts show, for whoever reads without colours or without a mouse.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.evaluation.comparison import Comparison
from e2e_perception.evaluation.evaluation_charts import (
    CURVES,
    Chart,
    curve_chart,
    forest_chart,
    pareto_chart,
    score_chart,
)
from e2e_perception.evaluation.evaluations import Evaluation, is_rate
from e2e_perception.evaluation.missions import Mission
from e2e_perception.evaluation.outcome_tables import bootstrap_interval, wilson_interval
from e2e_perception.evaluation.standings import Standings

TEMPLATE = Path(__file__).with_name("evaluation_report_template.html")
_CURVE_TITLES = {"precision_recall": "Precision and recall", "reliability": "Reliability"}
_DIGEST = 12  # characters shown


def write_evaluation_report(
    path: str | Path,
    evaluations: Sequence[Evaluation],
    *,
    title: str,
    mission: Mission | None = None,
    standings: Standings | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """Write the page.

    Args:
        path: HTML file to write.
        evaluations: At least one; those of the standings, in their order.
        title: Headline.
        mission: Whose ramps scale the differences.
        standings: For composites and Pareto fronts; None leaves them out.
        comparison: For differences; None leaves them out.
    Returns:
        `path`.
    Raises:
        InputError: If there is no evaluation.
        ConfigError: If plotly is not installed.
    """
    if not evaluations:
        raise InputError("evaluation report: no evaluations; expected at least one")
    charts: dict[str, Chart] = {}
    sections = [_facts_section(evaluations)]
    if standings is not None:
        charts["scores"] = score_chart(evaluations, standings)
        sections.append(_scores_section(standings))
        pareto = pareto_chart(standings)
        if pareto is not None:
            charts["pareto"] = pareto
        sections.append(_pareto_section(standings, drawn=pareto is not None))
    if comparison is not None:
        forest = forest_chart(comparison, mission)
        if forest is not None:
            charts["forest"] = forest
        sections.append(_comparison_section(comparison, drawn=forest is not None))
    sections += [_families_section(evaluations, drive) for drive in _drives(evaluations)]
    for kind in CURVES:
        chart = curve_chart(evaluations, kind)
        if chart is not None:
            charts[kind] = chart
            sections.append(_section(_CURVE_TITLES[kind], "", _chart(kind, _CURVE_TITLES[kind])))
    sections.append(_figures_section(evaluations))

    text = json.dumps(charts, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    values = {
        "TITLE": html.escape(title),
        "SECTIONS": "\n".join(sections),
        # Inside a script element only a `<` could end or change it.
        "DATA": text.replace("<", "\\u003c"),
        "PLOTLY": _plotly() if charts else "",
    }
    page = re.sub(
        "%(" + "|".join(values) + ")%", lambda found: values[found[1]], TEMPLATE.read_text(encoding="utf-8")
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the report needs plotly, which is not installed; `pip install .[training]`, or leave --out away"
        ) from error
    return str(get_plotlyjs())


# ------------------------------------------------------------------------------------------- sections


def _facts_section(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for item in evaluations:
        facts = item.facts
        datasets = ", ".join(digest[:_DIGEST] for digest in facts.dataset_digests)
        rows.append(
            [
                _text(item.label),
                _text(facts.group),
                _cell(facts.seed, "d"),
                _cell(facts.latency_ms, ".1f"),
                _cell(facts.parameters, ",d"),
                _text((facts.bundle_digest or "")[:_DIGEST]),
                _text(datasets),
                _text((facts.commit or "")[:_DIGEST]),
                _text(", ".join(item.missing) or "nothing"),
            ]
        )
    head = ("network", "group", "seed", "latency [ms]", "parameters", "bundle", "data", "commit", "missing")
    return _section("Networks", "", _table("Networks", head, rows))


def _scores_section(standings: Standings) -> str:
    objectives = list(standings.standings[0].composite.objectives)
    rows = []
    for place in standings.standings:
        found = place.composite
        verdict = _cell(found.value, ".3f")
        if found.disqualified:
            reasons = html.escape("; ".join(found.disqualified))
            verdict = f'<td data-v="" class="bad wrap">disqualified<small>{reasons}</small></td>'
        scores = [_cell(found.objectives[name], ".3f") for name in objectives]
        rows.append([_text(place.label), verdict, *scores])
    skipped = standings.standings[0].composite.skipped
    note = f"Optional and missing, so left out for all: {', '.join(skipped)}." if skipped else ""
    body = _chart("scores", "Composite and objectives") + _table(
        "Composite and objectives", ("network", "composite", *objectives), rows
    )
    return _section(f"Mission {standings.mission}", note, body)


def _pareto_section(standings: Standings, *, drawn: bool) -> str:
    rows = [
        [
            _text(place.label),
            _cell(place.rank, "d"),
            _text(place.dominated_by or "nobody"),
            *(_cell(place.values[axis.name], ".4g") for axis in standings.axes),
        ]
        for place in standings.standings
    ]
    head = ("network", "front", "dominated by", *(f"{axis.name} ({axis.goal})" for axis in standings.axes))
    notes = [
        "Grey: another network is at least as good on every axis and better on one.",
        *standings.left_out,
    ]
    body = (_chart("pareto", "Pareto front") if drawn else "") + _table("Pareto front", head, rows)
    return _section("Pareto front", " ".join(notes), body)


def _comparison_section(comparison: Comparison, *, drawn: bool) -> str:
    rows = []
    for item in comparison.differences:
        low, high = item.ci95
        tone = {"a": "good", "b": "bad", None: "strong"}[item.better] if item.excludes_zero else ""
        mcnemar = None if item.mcnemar is None else item.mcnemar["mcnemar_p"]
        rows.append(
            [
                _text(item.name),
                _cell(item.scenarios, "d"),
                _cell(item.mean_a, ".4g"),
                _cell(item.mean_b, ".4g"),
                _cell(item.difference, "+.4g", small=_range(low, high, "+.4g"), tone=tone),
                _text({"a": "a is better", "b": "b is better", None: ""}[item.better]),
                _cell(item.scenario_p, ".4f", small=_range(*item.networks_ci95, "+.4g")),
                _cell(item.seed_p, ".3f"),
                _cell(mcnemar, ".4f"),
            ]
        )
    a, b = html.escape(comparison.a.name), html.escape(comparison.b.name)
    scenarios = ", ".join(f"{count} of {name}" for name, count in comparison.scenarios.items())
    notes = [
        f"a: {comparison.a.name}; b: {comparison.b.name}. {comparison.claim}.",
        f"Scenarios: {scenarios}. {comparison.resamples} resamples.",
        f"Of {len(comparison.differences)} differences about {0.05 * len(comparison.differences):.0f} would "
        "exclude zero by chance.",
        *(f"No composite: {reason}." for reason in comparison.disqualified),
        *(f"Not compared: {reason}." for reason in comparison.left_out),
    ]
    head = ("figure", "scenarios", "a", "b", "a - b", "", "these networks, p", "seeds, p", "McNemar, p")
    body = (_chart("forest", "Differences with 95 % intervals") if drawn else "") + _table(
        "Differences", head, rows
    )
    return _section(f"{a} against {b}", " ".join(notes), body, escaped=True)


def _families_section(evaluations: Sequence[Evaluation], drive: str) -> str:
    present = [item for item in evaluations if drive in item.drives]
    families = sorted({one.family for item in present for one in item.drives[drive]})
    rows = []
    for family in families:
        cells = []
        for item in present:
            episodes = [one for one in item.drives[drive] if one.family == family]
            if not episodes:
                cells.append('<td data-v="">–</td>')
                continue
            success = 100.0 * sum(one.success for one in episodes) / len(episodes)
            at_fault = sum(one.at_fault_collision for one in episodes)
            cells.append(
                f'<td class="share" style="--p:{success:.0f}%" data-v="{success:.6g}">{success:.0f} %'
                f"<small>of {len(episodes)}, {at_fault} at fault</small></td>"
            )
        rows.append([_text(family), *cells])
    head = ("family", *(item.label for item in present))
    title = f"Success by family, {drive}"
    return _section(title, "Contacts at fault below.", _table(title, head, rows))


def _figures_section(evaluations: Sequence[Evaluation]) -> str:
    columns = [_intervals(item) for item in evaluations]
    names = dict.fromkeys(name for column in columns for name in column)
    names |= dict.fromkeys(name for item in evaluations for name in item.pooled)
    rows = []
    for name in names:
        cells = []
        for item, column in zip(evaluations, columns, strict=True):
            value, low, high = column.get(name, (None, None, None))
            small = [] if low is None or high is None else [_range(low, high, ".4g")]
            if name in item.pooled:
                small.append(f"pooled {item.pooled[name]:.4g}")
            cells.append(_cell(value, ".4g", small="; ".join(small)))
        rows.append([_text(name), *cells])
    note = (
        "Means over scenarios with 95 % intervals over scenarios; pooled: over all objects of all scenarios."
    )
    return _section(
        "All figures", note, _table("All figures", ("figure", *(item.label for item in evaluations)), rows)
    )


def _intervals(item: Evaluation) -> dict[str, tuple[float, float, float]]:
    """Mean over scenarios and its interval, by figure."""
    found = {}
    for table in item.tables.values():
        for f, name in enumerate(table.figures_F):
            values_N = table.values_NF[np.isfinite(table.values_NF[:, f]), f]
            if len(values_N) == 0:
                continue
            if is_rate(name):
                interval = wilson_interval(int(values_N.sum()), len(values_N))
            else:
                interval = bootstrap_interval(values_N)
            found[name] = (float(values_N.mean()), *interval)
    return found


def _drives(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(drive for item in evaluations for drive in item.drives))


# ---------------------------------------------------------------------------------------------- HTML


def _section(title: str, note: str, body: str, *, escaped: bool = False) -> str:
    heading = title if escaped else html.escape(title)
    paragraph = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{heading}</h2>{paragraph}{body}</section>'


def _chart(name: str, what: str) -> str:
    label = html.escape(f"{what}; the numbers are in a table of this page")
    return f'<div class="chart" data-chart="{name}" role="img" aria-label="{label}"></div>'


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose box can be scrolled with the arrow keys."""
    label = html.escape(caption)
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _text(value: str) -> str:
    return f'<td class="text">{html.escape(value)}</td>'


def _cell(value: float | None, form: str, *, small: str = "", tone: str = "") -> str:
    known = value is not None and math.isfinite(value)
    shown = format(value, form) if known else "–"
    kind = f' class="{tone}"' if tone else ""
    below = f"<small>{html.escape(small)}</small>" if small else ""
    return f'<td data-v="{value if known else ""}"{kind}>{shown}{below}</td>'


def _range(low: float, high: float, form: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"{format(low, form)} … {format(high, form)}"
