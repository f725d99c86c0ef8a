"""The page of evaluations holds their numbers, asks the network for nothing, and works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from evaluation_dirs import write_evaluation

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.comparison import compare
from e2e_perception.evaluation.evaluation_report import TEMPLATE, write_evaluation_report
from e2e_perception.evaluation.evaluations import read_evaluation
from e2e_perception.evaluation.missions import load_mission
from e2e_perception.evaluation.outcome_tables import wilson_interval
from e2e_perception.evaluation.standings import stand

pytest.importorskip("plotly", reason="plotly is not installed: `pip install .[training]`")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = 'a</script><b onload="x">&\'%DATA%'


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluations")
    return [
        read_evaluation(
            write_evaluation(
                root / f"{group}-{seed}",
                seed=seed,
                group=group,
                quality=quality + 0.02 * seed,
                latency_ms=10.0 + seed,
                draw=draw + seed,
            )
        )
        for group, quality, draw in (("joint", 0.75, 0), ("detached", 0.6, 10))
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def page(evaluations, tmp_path_factory):
    """With everything that a page can have."""
    mission = load_mission("balanced")
    return write_evaluation_report(
        tmp_path_factory.mktemp("page") / "sub" / "report.html",
        evaluations,
        title="joint against detached",
        mission=mission,
        standings=stand(evaluations, mission),
        comparison=compare(evaluations[:2], evaluations[2:], mission, resamples=200),
    )


def charts_of(path) -> dict:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S
    )
    assert found
    return json.loads(found[1])


def rows_of(path, caption) -> list[list[str]]:
    """Cells of the table of that name, as text."""
    text = path.read_text(encoding="utf-8")
    table = text.split(f'aria-label="{html.escape(caption)}"><table>')[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    return [
        [
            html.unescape(re.sub(r"<[^>]+>", " ", cell)).strip()
            for cell in re.findall(r"<t[dh].*?</t[dh]>", row)
        ]
        for row in rows
    ]


def test_nothing_is_loaded_from_anywhere_and_plotly_is_there_once(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)\s*=", text)
    assert text.count("plotly.js v") == 1
    assert len(text) < 6_000_000


def test_every_chart_is_one_that_plotly_accepts(page):
    from plotly.graph_objects import Figure

    charts = charts_of(page)
    assert set(charts) == {"scores", "pareto", "forest", "precision_recall", "reliability"}
    for chart in charts.values():
        Figure(json.loads(re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(chart))))


def test_colours_are_variables_of_both_themes(page):
    named = set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps(charts_of(page))))
    light, dark = re.findall(r":root[^{]*\{(.*?)\}", TEMPLATE.read_text(encoding="utf-8"), re.S)
    assert named
    for name in named:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_scores_are_bars_and_rows(page, evaluations):
    places = stand(evaluations, load_mission("balanced")).standings
    traces = charts_of(page)["scores"]["data"]
    assert [trace["name"] for trace in traces] == [item.label for item in evaluations]
    assert traces[0]["x"] == ["composite", "recognition", "tracking", "prediction", "planning"]
    assert traces[0]["y"][0] == places[0].composite.value
    assert len({trace["marker"]["color"] for trace in traces}) == 2  # one colour a group
    head, *rows = rows_of(page, "Composite and objectives")
    assert head[:2] == ["network", "composite"]
    assert rows[0][1] == f"{places[0].composite.value:.3f}"


def test_dominated_networks_are_grey_and_say_by_whom(page, evaluations):
    places = stand(evaluations, load_mission("balanced")).standings
    assert {place.rank > 0 for place in places} == {True, False}
    for trace in charts_of(page)["pareto"]["data"]:
        for place, colour, said in zip(places, trace["marker"]["color"], trace["customdata"], strict=True):
            assert colour == ("--rival" if place.rank else "--accent")
            assert said == (f"dominated by {place.dominated_by}" if place.rank else "not dominated")


def test_the_forest_is_in_shares_of_the_ramps_so_that_right_is_better(page, evaluations):
    mission = load_mission("balanced")
    found = {d.name: d for d in compare(evaluations[:2], evaluations[2:], mission, resamples=200).differences}
    points = charts_of(page)["forest"]["data"][-1]
    drawn = dict(zip(points["y"], points["x"], strict=True))
    assert set(drawn) == {"composite", *mission.objectives, *mission.ramps}
    error = found["planning/l2_at_3s_m"].difference
    assert error < 0.0
    assert drawn["planning/l2_at_3s_m"] == pytest.approx(error / (0.5 - 4.0))
    assert drawn["composite"] == found["composite"].difference


def test_the_table_of_figures_has_intervals_and_pooled_values(page, evaluations):
    rows = {row[0]: row[1:] for row in rows_of(page, "All figures")}
    driven = evaluations[0].drives["drive-test"]
    count = sum(one.success for one in driven)
    low, high = wilson_interval(count, len(driven))
    shown = rows["drive-test/success"][0]
    assert shown.split() == [f"{count / len(driven):.4g}", f"{low:.4g}", "…", f"{high:.4g}"]
    assert f"pooled {evaluations[0].pooled['detection/map']:.4g}" in rows["detection/map"][0]


def test_outcomes_are_there_by_family_of_each_drive(page, evaluations):
    head, *rows = rows_of(page, "Success by family, drive-critical")
    assert head == ["family", *(item.label for item in evaluations)]
    assert [row[0] for row in rows] == ["highway", "roundabout+crossing", "two_way"]
    mine = [one for one in evaluations[0].drives["drive-critical"] if one.family == "highway"]
    good = sum(one.success for one in mine)
    assert rows[0][1].split() == [
        *f"{100 * good / len(mine):.0f} % of {len(mine)},".split(),
        *f"{len(mine) - good} at fault".split(),
    ]


def test_a_disqualified_network_has_no_bar_and_a_reason(evaluations, tmp_path):
    poor = read_evaluation(write_evaluation(tmp_path / "poor", quality=0.3))
    mission = load_mission("urban-conservative")
    found = stand([evaluations[0], poor], mission)
    path = write_evaluation_report(
        tmp_path / "r.html", [evaluations[0], poor], title="t", mission=mission, standings=found
    )
    assert charts_of(path)["scores"]["data"][1]["y"][0] is None
    row = rows_of(path, "Composite and objectives")[2]
    assert row[1].startswith("disqualified")
    assert "below the floor of 0.300" in row[1]


def test_a_lone_evaluation_without_perception_has_a_page_without_charts(tmp_path):
    lone = read_evaluation(write_evaluation(tmp_path / "lone", perception=False))
    path = write_evaluation_report(tmp_path / "r.html", [lone], title="lone")
    assert charts_of(path) == {}
    assert "plotly.js v" not in path.read_text(encoding="utf-8")
    assert rows_of(path, "Networks")[1][-1] == "perception.json, perception.parquet"
    assert "detection/map" not in {row[0] for row in rows_of(path, "All figures")}


def test_names_cannot_break_out_of_the_page(evaluations, tmp_path):
    odd = replace(evaluations[0], facts=evaluations[0].facts.model_copy(update={"label": NASTY, "group": ""}))
    mission = load_mission("balanced")
    both = [odd, evaluations[2]]
    path = write_evaluation_report(
        tmp_path / "r.html",
        both,
        title=NASTY,
        mission=mission,
        standings=stand(both, mission),
        comparison=compare(both[:1], both[1:], mission, resamples=50),
    )
    text = path.read_text(encoding="utf-8")
    assert "<b onload" not in text
    assert charts_of(path)["scores"]["data"][0]["name"] == NASTY
    assert rows_of(path, "Networks")[1][0] == NASTY


def test_no_evaluation_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no evaluations; expected at least one"):
        write_evaluation_report(tmp_path / "r.html", [], title="t")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")
def test_a_browser_draws_every_chart_in_both_themes_and_sorts_by_keyboard(page, tmp_path):
    script = """
    <script>
    setTimeout(() => {  // drawing goes on after the page is ready
    const out = {errors};
    const boxes = [...document.querySelectorAll("[data-chart]")];
    out.drawn = boxes.filter(box => box.querySelector(".barlayer path, .scatterlayer path")).length;
    out.boxes = boxes.length;
    const paper = () => boxes[0].querySelector(".main-svg").style.background;
    const before = paper(); document.getElementById("theme").click();
    out.papers = [before, paper()];
    const table = document.querySelector('[aria-label="All figures"] table');
    const heading = table.tHead.rows[0].cells[1];
    const cells = () => [...table.tBodies[0].rows].map(row => row.cells[1].dataset.v);
    const values = () => cells().filter(v => v !== "").map(Number);
    heading.firstChild.click(); out.rising = values(); heading.firstChild.click(); out.falling = values();
    out.sort = heading.getAttribute("aria-sort");
    out.focusable = [...document.querySelectorAll(".scroll")].every(box => box.tabIndex === 0);
    document.documentElement.dataset.out = JSON.stringify(out);
    }, 3000);
    </script></body>"""
    watch = (
        '<script>const errors = []; addEventListener("error", e => errors.push(e.message));</script><style>'
    )
    text = page.read_text(encoding="utf-8").replace("<style>", watch, 1)
    copy = tmp_path / "page.html"
    copy.write_text(script.join(text.rsplit("</body>", 1)), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *"--headless --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=9000".split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    opened = re.search(r'data-out="([^"]*)"', done.stdout)
    assert opened, done.stderr
    said = json.loads(html.unescape(opened[1]))
    assert said["errors"] == []
    assert said["drawn"] == said["boxes"] == 5
    assert said["papers"][0] != said["papers"][1]
    assert said["rising"] == sorted(said["rising"])
    assert said["falling"] == sorted(said["falling"], reverse=True)
    assert said["sort"] == "descending"
    assert said["focusable"]
