"""The page of an episode holds what happened, asks the network for nothing, and works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_records import bare_record, drive, with_agents

from e2e_perception.core.episodes import Contact
from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.episode_view import (
    AGENT_REACH,
    INDEX_TEMPLATE,
    TEMPLATE,
    view_name,
    write_episode_view,
    write_index,
)
from e2e_perception.evaluation.outcomes import clearances, outcome

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = 'a</script><b onload="x">&\'%DATA%'


def embedded(page: str) -> dict:
    """The JSON that the player reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def view(tmp_path, record, others=()) -> dict:
    path = write_episode_view(tmp_path / "sub" / "view.html", record, others)
    return embedded(path.read_text(encoding="utf-8"))


def unpacked(deltas, scale=100.0) -> np.ndarray:
    return np.cumsum(deltas) / scale


# ----------------------------------------------------------------------------------- what is in it


def test_the_robot_and_everybody_near_come_back_to_the_centimetre(tmp_path):
    record = drive()
    data = view(tmp_path, record)
    origin = np.round(record.ego_T5[0, :2])
    assert data["steps"] == len(record.ego_T5)
    np.testing.assert_allclose(unpacked(data["ego"]["x"]) + origin[0], record.ego_T5[:, 0], atol=0.00501)
    np.testing.assert_allclose(unpacked(data["ego"]["yaw"], 1000.0), record.ego_T5[:, 2], atol=0.000501)
    assert len(data["agents"]) == 40
    stored = 0
    for n, agent in enumerate(data["agents"]):
        assert agent["kind"] == record.class_names_N[n]
        for run in agent["runs"]:
            steps = slice(run["from"], run["from"] + len(run["x"]))
            xy = np.stack([unpacked(run["x"]), unpacked(run["y"])], axis=1) + origin
            np.testing.assert_allclose(xy, record.agents_TN3[steps, n, :2], atol=0.00501)
            np.testing.assert_allclose(unpacked(run["vx"]), record.velocities_TN2[steps, n, 0], atol=0.00501)
            assert record.present_TN[steps, n].all()
            stored += len(run["x"])
    away = np.hypot(*np.moveaxis(record.agents_TN3[..., :2] - record.ego_T5[:, None, :2], -1, 0))
    assert stored == (record.present_TN & (away <= AGENT_REACH)).sum()


def test_curves_plans_and_contacts_come_from_the_record(tmp_path):
    record = drive()
    data = view(tmp_path, record)
    gaps = clearances(record).min(axis=1)
    assert data["clearance"] == pytest.approx(gaps, abs=0.00501)
    assert data["planRows"][:4] == [-1, -1, -1, 0]
    origin = np.round(record.ego_T5[0, :2])
    first = data["plans"][0]
    np.testing.assert_allclose(
        np.stack([unpacked(first[0]), unpacked(first[1])], 1) + origin, record.plans[3], atol=0.00501
    )
    (contact,) = data["contacts"]
    assert contact["step"] == record.contacts[0].step
    # It lies on the robot's outline, ahead of its centre.
    x, y, yaw = record.ego_T5[contact["step"], :3]
    dx, dy = contact["x"] + origin[0] - x, contact["y"] + origin[1] - y
    along, left = np.cos(yaw) * dx + np.sin(yaw) * dy, -np.sin(yaw) * dx + np.cos(yaw) * dy
    assert along == pytest.approx(1.4 + 2.3, abs=0.6)
    assert abs(left) < 0.95
    assert "at fault" in contact["text"]
    assert data["verdict"]["success"] is False
    assert data["verdict"]["reasons"] == list(outcome(record).shortfalls)
    assert ["conditions", "dusk, light rain"] in data["facts"]
    assert ["lidar", "modelled"] in data["provenance"]
    assert ["late", "2"] in data["counters"]


def test_the_same_plan_in_force_for_long_is_stored_once(tmp_path):
    plan = np.array([[5.0, 0.0], [9.0, 0.5]])
    data = view(tmp_path, bare_record(60, plans=(None, *[plan.copy() for _ in range(59)])))
    assert len(data["plans"]) == 1
    assert data["planRows"] == [-1] + [0] * 59


def test_a_plan_that_is_not_finite_does_not_break_the_page(tmp_path):
    record = bare_record(3, plans=(None, np.full((4, 2), np.nan), np.array([[1.0, 0.0], [np.inf, 0.0]])))
    data = view(tmp_path, replace(record, failure="non-finite plan"))
    assert data["planRows"] == [-1, -1, 0]
    assert data["plans"] == [[[100], [0]]]
    assert data["verdict"]["reasons"][0] == "policy failed: non-finite plan"


def test_an_agent_that_leaves_and_returns_has_two_runs(tmp_path):
    poses = np.tile([20.0, 3.0, 0.0], (60, 1, 1))
    present = np.ones((60, 1), bool)
    present[20:30] = False
    poses[20:30] = np.nan
    record = with_agents(bare_record(), poses, np.zeros((60, 1, 2)), ("car",), present_TN=present)
    (agent,) = view(tmp_path, record)["agents"]
    assert [(run["from"], len(run["x"])) for run in agent["runs"]] == [(0, 20), (30, 30)]


def test_a_contact_with_debris_is_marked_where_it_lies(tmp_path):
    solids = np.array([[80.0, 3.0, 0.0, 1.0, 1.0], [20.0, 0.3, 0.4, 0.8, 0.8]])
    record = bare_record(obstacles_O5=solids, contacts=(Contact(20, -1, "debris", True, 8.0),))
    (contact,) = view(tmp_path, record)["contacts"]
    assert (contact["x"], contact["y"]) == pytest.approx((19.6, 0.3), abs=0.4)


def test_the_goal_lies_on_the_route_at_its_arc_length(tmp_path):
    record = bare_record(route_R2=np.array([[0.0, 0.0], [30.0, 0.0], [30.0, 40.0]]), goal_s=50.0)
    assert view(tmp_path, record)["goal"] == pytest.approx([30.0, 20.0, np.pi / 2], abs=1e-3)


def test_a_map_far_larger_than_the_drive_is_cut_to_what_can_be_seen(tmp_path):
    far = np.stack([np.linspace(-50_000.0, 50_000.0, 4001), np.zeros(4001)], axis=1)
    square = 1e4 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    data = view(tmp_path, bare_record(drivable=(square, square + 5e4), boundaries=(far,)))
    assert len(data["drivable"]) == 1
    assert np.abs(unpacked(data["drivable"][0][0])).max() < 200.0
    assert sum(len(line[0]) for line in data["boundaries"]) < 20


def test_other_policies_of_the_same_scenario_are_shown_and_of_another_refused(tmp_path):
    record, other = drive(60, 5), drive(80, 5, policy="expert", crash=False)
    data = view(tmp_path, record, [other])
    assert [item["policy"] for item in data["others"]] == ["expert"]
    assert len(data["others"][0]["x"]) == 80
    with pytest.raises(InputError, match=r"expert drove merge/1@0\.5; expected the same one"):
        view(tmp_path, record, [replace(other, scenario="merge/1@0.5")])


def test_a_broken_record_gives_no_page(tmp_path):
    ego = bare_record().ego_T5.copy()
    ego[7, 0] = np.nan
    with pytest.raises(InputError, match="ego_T5 has values that are not finite"):
        view(tmp_path, bare_record(ego_T5=ego))


# ----------------------------------------------------------------------------------- the file


def test_a_long_crowded_episode_stays_below_a_megabyte(tmp_path):
    record = drive(200, 40, crash=False)
    assert record.agents_TN3.shape == (200, 40, 3)
    path = write_episode_view(tmp_path / "v.html", record, [drive(200, 40, policy="expert")])
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("template", [TEMPLATE, INDEX_TEMPLATE])
def test_the_pages_ask_for_nothing_outside_themselves(template):
    markup = template.read_text(encoding="utf-8")
    assert not re.search(r"""https?:|["'(=]//|@import|url\(|<link|<iframe|\bfetch\(|XMLHttp""", markup)
    assert "default-src 'none'" in markup


def test_the_same_episode_gives_the_same_bytes(tmp_path):
    one, two = (write_episode_view(tmp_path / name, drive(40, 6)).read_bytes() for name in ("a", "b"))
    assert one == two


def nasty_record():
    poses = np.tile([20.0, 3.0, 0.0], (60, 1, 1))
    record = with_agents(bare_record(), poses, np.zeros((60, 1, 2)), (NASTY,))
    return replace(
        record,
        scenario=NASTY,
        family=NASTY,
        policy=NASTY,
        failure=NASTY,
        conditions=NASTY,
        provenance={NASTY: NASTY},
        counters={NASTY: 1},
        contacts=(Contact(30, 0, NASTY, True, 1.0),),
    )


def test_no_text_can_become_markup(tmp_path):
    page = write_episode_view(tmp_path / "v.html", nasty_record()).read_text(encoding="utf-8")
    assert "<b onload" not in page
    assert page.count("</script>") == 2
    assert embedded(page)["policy"] == NASTY
    index = write_index(tmp_path, [outcome(nasty_record())], ['javascript:alert("1")<b>.html'])
    page = index.read_text(encoding="utf-8")
    assert "<b" not in page.replace("<body", "").replace("<button", "")
    assert 'href="javascript%3Aalert%28%221%22%29%3Cb%3E.html"' in page
    assert html.escape(NASTY) in page


@pytest.mark.parametrize("scenario", ["merge/17@0.5", "log:adcf7d18", "../../etc/passwd", "ü" * 300, ""])
def test_a_view_has_a_safe_file_name_of_its_own(scenario):
    name = view_name(scenario, "bundle:tiny (76bf914f01ec)")
    assert re.fullmatch(r"[A-Za-z0-9_.@-]{1,120}\.html", name)
    assert not name.startswith(".")
    assert name != view_name(scenario, "expert")
    assert name != view_name(scenario + "_", "bundle:tiny (76bf914f01ec)")


# ----------------------------------------------------------------------------------- the index


def test_the_index_lists_every_episode_with_its_link_and_flags(tmp_path):
    good, bad = outcome(bare_record()), outcome(drive(policy="idm"))
    page = write_index(tmp_path, [good, bad], ["a b#1.html", ""]).read_text(encoding="utf-8")
    rows = re.findall(r'<tr data-flags="([^"]*)">(.*?)</tr>', page, re.S)
    assert [flags for flags, _ in rows] == ["", "collision failed"]
    assert '<a href="a%20b%231.html">bare/1@0.5</a>' in rows[0][1]
    assert "<a" not in rows[1][1]
    assert "contact with car at 8.0 m/s, at fault" in rows[1][1]
    assert "100.0 %<small>20.7 % – 100.0 %</small>" in page  # Wilson of 1 of 1


def test_the_index_wants_a_link_or_an_empty_one_for_each_episode(tmp_path):
    with pytest.raises(InputError, match="1 links for 2 episodes"):
        write_index(tmp_path, [outcome(bare_record())] * 2, ["a"])


def test_an_index_of_nothing_is_an_empty_table(tmp_path):
    assert "<tr data-flags" not in write_index(tmp_path, [], []).read_text(encoding="utf-8")


def test_a_policy_of_which_no_episode_could_be_driven_has_dashes_for_means(tmp_path):
    nothing = replace(outcome(bare_record()), success=False, policy_failure=True, comfort_share=float("nan"))
    page = write_index(tmp_path, [nothing], [""]).read_text(encoding="utf-8")
    assert "<td>–</td>" in page and "100.0 %" in page  # comfort, and policy failures


# ----------------------------------------------------------------------------------- in a browser

WATCH = """<script>
addEventListener("error", e => { document.documentElement.dataset.error = JSON.stringify(e.message); });
</script>"""
# Runs after the page's own script; what it finds is read from the document that the browser prints.
PROBE = """<script>
"use strict";
const say = (name, value) => { document.documentElement.dataset[name] = JSON.stringify(value); };
const press = key => dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
{ %s }
</script>"""


def browse(page: Path, probe: str) -> dict[str, object]:
    """Open a page without a screen, run a script in it, and read what it said."""
    text = page.read_text(encoding="utf-8")
    text = text.replace("<style>", WATCH + "<style>", 1).replace("</body>", PROBE % probe + "</body>")
    page.write_text(text, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1400,1000 --dump-dom"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *flags.split(),
            "--virtual-time-budget=6000",
            f"--user-data-dir={page.parent / 'profile'}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    opened = re.search(r"<html[^>]*>", done.stdout)
    assert opened, done.stderr
    found = {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', opened[0])}
    assert found.get("ready") == "yes", found
    assert "error" not in found
    return {
        name: json.loads(value) for name, value in found.items() if name not in ("ready", "theme", "error")
    }


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page with")


@needs_browser
def test_keys_step_through_the_episode_and_move_the_camera(tmp_path):
    page = write_episode_view(tmp_path / "v.html", drive(), [drive(crash=False, policy="expert")])
    said = browse(
        page,
        """
        const place = () => document.getElementById("time").textContent;
        const seen = [place()];
        for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "c", "End", "Home"]) {
          press(key);
          seen.push(place());
        }
        say("places", seen);
        const camera = () => [view.camera, view.k];
        const cameras = [camera()];
        for (const key of ["+", "o", "r"]) { press(key); cameras.push(camera()); }
        say("cameras", cameras);
        say("rot", view.rot);
        press("ArrowRight");
        const pixels = new Uint32Array(g.getImageData(0, 0, bev.width, bev.height).data.buffer);
        say("colors", new Set(pixels).size);
        """,
    )
    record = drive()
    touch, total = record.contacts[0].step, len(record.ego_T5)
    expected = [1, 2, 3, 2, touch + 1, total, 1]
    assert [text.split("·")[1].strip() for text in said["places"]] == [f"{k}/{total}" for k in expected]
    (followed, near), (nearer, k_near), (whole, k_whole), (up, _) = said["cameras"]
    assert (followed, nearer, whole, up) == ("follow", "follow", "overview", "follow")
    assert k_near == pytest.approx(1.3 * near)
    assert k_whole < near
    assert said["rot"] == pytest.approx(np.pi / 2 - record.ego_T5[0, 2], abs=1e-3)
    assert said["colors"] > 20  # something is drawn


@needs_browser
def test_playing_reaches_the_end_and_stops_there(tmp_path):
    page = write_episode_view(tmp_path / "v.html", bare_record(20))
    said = browse(
        page,
        """
        document.getElementById("rate").value = "4";
        press(" ");
        say("label", document.getElementById("play").textContent);
        // The browser's clock drives it; here it is given frames one by one.
        for (let k = 0; k < 200 && playing; k++) tick(1000 + 16 * k);
        say("after", [now, playing, document.getElementById("play").textContent]);
        """,
    )
    assert said == {"label": "Pause", "after": [19, False, "Play"]}


@needs_browser
def test_a_page_shows_nasty_text_as_text(tmp_path):
    page = write_episode_view(tmp_path / "v.html", nasty_record())
    said = browse(
        page,
        """
        say("title", document.getElementById("title").textContent);
        press("End");
        say("bold", document.querySelectorAll("b[onload]").length);
        """,
    )
    assert said == {"title": NASTY + NASTY, "bold": 0}


@needs_browser
@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_page_of_hardly_any_steps_works(tmp_path, num_steps):
    page = write_episode_view(tmp_path / "v.html", bare_record(num_steps))
    said = browse(page, 'press("End"); press(" "); press("c"); say("now", now);')
    assert said["now"] in (0, num_steps - 1)


@needs_browser
def test_the_index_sorts_and_filters(tmp_path):
    records = [bare_record(60, scenario=f"bare/{i}@0.5", speed=4.0 + i) for i in (2, 10, 1)]
    failed = drive(policy="idm")
    page = write_index(tmp_path, [outcome(r) for r in (*records, failed)], ["a.html"] * 4)
    said = browse(
        page,
        """
        const first = () => rows.filter(r => !r.hidden).map(r => r.cells[0].textContent);
        const click = i => heads[i].querySelector("button").click();
        click(0); const byName = first(); click(12); click(12); const fastest = first();
        const arrivals = () => rows.map(r => r.cells[6].textContent);
        click(6); const early = arrivals(); click(6); const late = arrivals();
        $("filter").value = "failed"; show(); const failures = first();
        $("filter").value = ""; $("find").value = "bare/10"; show();
        say("found", [byName, fastest, failures, first(), early[3], late[3], $("count").textContent]);
        """,
    )
    by_name, fastest, failures, found, last, still_last, count = said["found"]
    assert by_name == ["bare/1@0.5", "bare/2@0.5", "bare/10@0.5", "braking_lead/17@0.5"]
    assert fastest == ["bare/10@0.5", "braking_lead/17@0.5", "bare/2@0.5", "bare/1@0.5"]
    assert failures == ["braking_lead/17@0.5"]
    assert found == ["bare/10@0.5"]
    assert (last, still_last) == ("–", "–")
    assert count == "1 of 4"
