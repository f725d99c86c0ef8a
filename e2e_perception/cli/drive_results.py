"""What `drive` leaves behind: rows, summary, pages and the table that links to them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from e2e_perception.cli.console import finite, print_table
from e2e_perception.cli.episodes import Driven
from e2e_perception.core.errors import InputError
from e2e_perception.core.provenance import versions
from e2e_perception.evaluation.episode_view import INDEX, view_name, write_index
from e2e_perception.evaluation.outcome_tables import EPISODES, RATES, SUMMARY, summarize, write_outcomes

VIEWS = "views"
_VIEW = re.compile(r".+-[0-9a-f]{8}\.html")
_LIBRARIES = ("numpy", "scipy", "highway-env", "opencv-python-headless", "onnxruntime", "torch", "ray")
_SHOWN = ("progress_mean", "comfort_share", "min_clearance_m", "ttc_p5_s", "speed_mean_mps")


def refuse_foreign(out: Path) -> None:
    """Make sure that nothing but results of an earlier drive is where results are to go.

    Raises:
        InputError: If something other than results of a drive is there.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a directory")
    if not out.exists():
        return
    foreign = [path.name for path in out.iterdir() if path.name not in (EPISODES, SUMMARY, INDEX, VIEWS)]
    views = out / VIEWS
    if views.is_dir():
        foreign += [f"{VIEWS}/{p.name}" for p in views.iterdir() if not _VIEW.fullmatch(p.name)]
    elif views.exists():
        foreign.append(VIEWS)
    # Others write files of these names, too; the rows are written first and by nobody else.
    if not (out / EPISODES).is_file():
        foreign += [name for name in (SUMMARY, INDEX) if (out / name).exists()]
    if foreign:
        raise InputError(
            f"--out {out} holds {', '.join(sorted(foreign)[:5])}, which no drive wrote; name another --out"
        )


def make_room(out: Path) -> None:
    """Remove results of an earlier drive, after `refuse_foreign`."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / VIEWS, ignore_errors=True)
    for name in (INDEX, SUMMARY, EPISODES):
        (out / name).unlink(missing_ok=True)


def write_page(out: Path, driven: Driven) -> None:
    """Keep the page of an episode, if it has one."""
    if not driven.page:
        return
    path = out / VIEWS / view_name(driven.outcome.scenario, driven.outcome.policy)
    path.parent.mkdir(exist_ok=True)
    path.write_text(driven.page, encoding="utf-8")


def summarized(
    driven: Sequence[Driven], policy: str, excluded: Collection[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        driven: Every episode.
        policy: Who drove, as in the rows.
        excluded: Scenarios of the suite that nobody drives.
        facts: How it was driven, `seconds` among it.
    """
    # Sums must not depend on who finished first.
    driven = sorted(driven, key=lambda item: item.outcome.scenario)
    seconds, cpu_s = float(facts["seconds"]), sum(item.cpu_s for item in driven)
    summary = {
        "policy": policy,
        **facts,
        "cpu_seconds": cpu_s,
        "episodes_per_hour": 3600.0 * len(driven) / seconds,
        "episodes_per_core_hour": 3600.0 * len(driven) / cpu_s if cpu_s > 0.0 else None,
        "versions": versions(_LIBRARIES),
        **summarize([item.outcome for item in driven], excluded=excluded),
    }
    compared = [item.open_loop for item in driven if item.open_loop is not None]
    if compared:
        summary["open_loop"] = _weighted(compared)
    document: dict[str, Any] = finite(summary)
    return document


def write_results(out: Path, driven: Sequence[Driven], summary: Mapping[str, Any]) -> None:
    """Write rows, summary and index."""
    outcomes = sorted((item.outcome for item in driven), key=lambda item: item.scenario)
    write_outcomes(out, outcomes, summary)
    links = [f"{VIEWS}/{view_name(item.scenario, item.policy)}" for item in outcomes]
    write_index(out, outcomes, [link if (out / link).is_file() else "" for link in links])


def print_results(summary: Mapping[str, Any], out: Path) -> None:
    """The summary for people."""
    rows = [[name.replace("_", " "), *_with_interval(summary, name)] for name in (*RATES, *_SHOWN)]
    for name, value in summary.get("open_loop", {}).items():
        rows.append([name.replace("_", " "), f"{value:g}", ""])
    head = ("figure", "value", "95 % interval")
    print_table(f"{summary['policy']}: {summary['episodes']} episodes", head, rows)
    families = [
        [name, str(figures["episodes"]), *_with_interval(figures, "success_rate")]
        for name, figures in summary["families"].items()
    ]
    print_table("success by family", ("family", "episodes", "success", "95 % interval"), families)
    speed = f"{summary['seconds']:.1f} s, {summary['episodes_per_hour']:.0f} episodes/h"
    typer.echo(f"{speed}; open {out / INDEX} in a browser")


def _with_interval(figures: Mapping[str, Any], name: str) -> list[str]:
    value, interval = figures[name], figures[f"{name}_ci95"]
    if value is None or interval is None:
        return ["–", ""]
    return [f"{value:.3f}", f"{interval[0]:.3f} – {interval[1]:.3f}"]


def _weighted(figures: Sequence[Mapping[str, float | int]]) -> dict[str, float | int]:
    """Means over logs, by their number of plans."""
    plans = sum(int(item["plans"]) for item in figures)
    names = [name for name in figures[0] if name != "plans"]
    means = {
        name: sum(float(item[name]) * int(item["plans"]) for item in figures) / plans
        for name in names
        if all(name in item for item in figures)
    }
    return {**means, "plans": plans}
