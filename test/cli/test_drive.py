"""`drive`: the same rows however many work on them, and one sentence for whatever a user gets wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from argoverse_logs import straight, write_log
from episode_records import bare_record
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_tasks import FATAL, drive_or_die, square_or_die, square_or_raise, threads_of_libraries

from e2e_perception.cli import drive as drive_module
from e2e_perception.cli.drive import POLICIES
from e2e_perception.cli.drive_results import make_room, refuse_foreign
from e2e_perception.cli.episodes import LogDrive, Task, drive_episode, judge, not_driven
from e2e_perception.cli.fan_out import Lost, fan_out, fan_out_on_ray
from e2e_perception.cli.main import main
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.trajectories import Plan
from e2e_perception.evaluation.outcome_tables import read_outcomes, summarize
from e2e_perception.evaluation.outcomes import outcome
from e2e_perception.simulation.closed_loop import ClosedLoop
from e2e_perception.simulation.driving import drive_policy, drive_with
from e2e_perception.simulation.log_world import LogWorld
from e2e_perception.simulation.policies import SIMPLE_POLICIES, StopPolicy
from e2e_perception.simulation.suites import load_suite
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

SPEC = ScenarioSpec("two_way", 4_000_500)
SUITE = """
name: mine
description: Three, one of which nobody drives.
entries:
  - {family: highway, seeds: {first: 4000000, count: 2}}
  - {family: two_way, seeds: [4000500]}
degradation: fog
excluded:
  - {scenario: highway/4000001@0.5, reason: blocked}
"""
SCENARIOS = ["--scenario", SPEC.name, "--scenario", "highway/4000000"]


def sentence_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def names_in(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ results


def test_rows_are_the_same_bytes_for_one_worker_and_for_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    summaries = []
    for workers in ("1", "2"):
        arguments = ["drive", "--suite", str(suite), "--policy", "constant-velocity", "--json"]
        assert main([*arguments, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
        summaries.append(json.loads(capsys.readouterr().out))

    one, two = ((tmp_path / n / "episodes.parquet").read_bytes() for n in ("1", "2"))
    assert one == two
    assert names_in(tmp_path / "1") == names_in(tmp_path / "2")
    for name in ("seconds", "cpu_seconds", "episodes_per_hour", "episodes_per_core_hour", "workers"):
        assert all(summary.pop(name) > 0 for summary in summaries)
    assert summaries[0] == summaries[1]
    assert summaries[0]["episodes"] == 2
    assert summaries[0]["excluded"] == {"count": 1, "scenarios": ["highway/4000001@0.5"]}
    assert (summaries[0]["suite"], summaries[0]["suite_digest"]) == ("mine", load_suite(suite).digest)


def test_a_drive_leaves_rows_a_summary_an_index_and_a_page_of_each_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["drive", *SCENARIOS, "--policy", "stop", "--out", str(out), "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    outcomes, summary = read_outcomes(out)

    assert printed == summary
    assert (printed["episodes"], printed["policy"], printed["suite"]) == (2, "stop", None)
    assert printed["success_rate"] == np.mean([item.success for item in outcomes])
    assert printed["versions"]["highway-env"]
    assert [item.scenario for item in outcomes] == ["highway/4000000@0.5", SPEC.name]
    index = (out / "index.html").read_text(encoding="utf-8")
    views = {name for name in names_in(out) if name.startswith("views/")}
    assert len(views) == sum(not item.success for item in outcomes)
    assert views and all(quote(name) in index for name in views)


@pytest.mark.parametrize(("views", "expected"), [("all", [True, True]), ("failures", [False, True])])
def test_pages_are_made_for_those_that_were_asked_for(views: str, expected: list[bool]) -> None:
    records = [bare_record(), bare_record(failure="no idea")]

    assert ["<html" in judge(Task(SPEC, "expert", views), record).page for record in records] == expected
    assert not any(judge(Task(SPEC, "expert", "none"), record).page for record in records)


def test_a_dead_worker_is_reported_and_only_its_episode_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive_module, "drive_episode", drive_or_die)
    arguments = ["drive", "--scenario", "two_way/13", *SCENARIOS[:2], "--policy", "stop", "--workers", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "two_way/13@0.5: its process died" in capsys.readouterr().err
    outcomes, summary = read_outcomes(tmp_path / "out")

    found = {item.scenario: item for item in outcomes}
    assert len(found) == 2
    assert found["two_way/13@0.5"].failure.startswith("its process died")
    assert found[SPEC.name] == outcome(drive_policy(TrafficWorld(SPEC), "stop"))
    assert summary["policy_failure_rate"] == 0.5


def test_an_error_inside_an_episode_is_a_failed_episode_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(spec: ScenarioSpec) -> None:
        raise ZeroDivisionError("no room on the road")

    monkeypatch.setattr("e2e_perception.simulation.traffic_world.TrafficWorld", broken)
    driven = drive_episode(Task(SPEC, "blind", "failures"))

    assert driven.outcome.failure == "ZeroDivisionError: no room on the road"
    assert driven.outcome.policy_failure and not driven.outcome.success
    assert driven.page == ""


def test_an_episode_that_was_not_driven_counts_in_rates_and_not_in_means() -> None:
    task = Task(SPEC, "stop", "none")
    other = outcome(drive_policy(TrafficWorld(ScenarioSpec("two_way", 4_000_501)), "stop"))
    alone, both = summarize([other]), summarize([other, not_driven(task, "broken")])

    assert both["policy_failure_rate"] == 0.5
    assert both["jerk_p95_mps3"] == alone["jerk_p95_mps3"]
    assert both["ttc_p5_s"] == alone["ttc_p5_s"]
    assert both["min_clearance_m_episodes"] == 1
    assert both["progress_mean"] == alone["progress_mean"] / 2


def test_a_bundle_drives_with_its_own_rig_the_same_in_every_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: `pip install onnxruntime`")
    logs = [write_log(tmp_path / name, ego=straight(0.0, speed=8.0), seconds=3.0) for name in ("one", "two")]
    rows = []
    for workers in ("1", "2"):
        arguments = ["drive", "--policy", "bundle:tiny", "--degrade", "fog", "--strength", "0.5"]
        arguments += ["--workers", workers, "--json"]
        arguments += [text for log in logs for text in ("--log", str(log))]
        assert main([*arguments, "--out", str(tmp_path / workers)]) == 0
        summary = json.loads(capsys.readouterr().out)
        rows.append((tmp_path / workers / "episodes.parquet").read_bytes())

    assert rows[0] == rows[1]
    assert re.fullmatch(r"bundle:tiny [0-9a-f]{12}", summary["policy"])
    assert (summary["episodes"], summary["rig"]) == (2, "tiny")
    assert (summary["degradation"], summary["strength"]) == ("fog", 0.5)
    assert summary["policy_failure_rate"] == 0.0
    assert summary["backend"].startswith("onnxruntime")


# ------------------------------------------------------------------ workers


def test_results_of_all_tasks_come_back_once_and_a_dead_process_loses_only_its_own() -> None:
    numbers = [*range(10), FATAL, 20, 21]
    found = dict(fan_out(square_or_die, numbers, workers=3))

    assert set(found) == set(range(len(numbers)))
    lost = found.pop(numbers.index(FATAL))
    assert isinstance(lost, Lost) and "process died" in lost.why
    assert found == {k: n * n for k, n in enumerate(numbers) if n != FATAL}


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="13 is no number"):
        list(fan_out(square_or_raise, [1, FATAL], workers=1))


def test_workers_compute_with_one_thread_and_leave_our_environment_alone() -> None:
    before = dict(os.environ)

    assert list(fan_out(threads_of_libraries, [0], workers=1)) == [(0, (1, "1"))]
    assert dict(os.environ) == before


@pytest.mark.slow
def test_on_ray_rows_are_the_same_and_a_dead_worker_loses_only_its_own() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `pip install .[scale]`")
    specs = [SPEC, ScenarioSpec("two_way", 13), ScenarioSpec("two_way", 4_000_501)]
    found = dict(fan_out_on_ray(drive_or_die, [Task(spec, "stop", "none") for spec in specs], "local", 2))

    assert isinstance(found[1], Lost)
    for k in (0, 2):
        there = found[k]
        assert not isinstance(there, Lost)
        assert there.outcome == outcome(drive_policy(TrafficWorld(specs[k]), "stop"))


def test_a_ray_cluster_that_does_not_answer_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `pip install .[scale]`")
    arguments = ["drive", *SCENARIOS, "--policy", "stop", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--ray", "127.0.0.1:1"]) == 2
    assert "Ray gives no cluster at '127.0.0.1:1'" in sentence_of(capsys)


def test_without_ray_the_error_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    arguments = ["drive", *SCENARIOS, "--policy", "stop", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--ray", "local"]) == 2
    assert "pip install 'e2e-perception[scale]'" in sentence_of(capsys)


# ------------------------------------------------------------------ recorded logs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("logs") / "recorded", ego=straight(0.0, speed=8.0))


def test_open_loop_follows_the_recording_whatever_is_planned(recorded: Path) -> None:
    world = LogWorld(recorded)
    record = drive_policy(world, "stop", open_loop=True)
    stamps = world.start_ns + 100_000_000 * np.arange(len(record.ego_T5))
    logged = np.array([world.logged_ego(int(stamp)).odom_from_base.translation[:2] for stamp in stamps])

    np.testing.assert_allclose(record.ego_T5[:, :2], logged, atol=1e-9)
    assert record.ego_T5[-1, 0] > 30.0


def test_open_loop_figures_tell_a_plan_that_fits_from_one_that_stops(recorded: Path) -> None:
    figures = {}
    for policy in ("constant-velocity", "stop"):
        driven = drive_episode(Task(LogDrive(recorded, open_loop=True), policy, "none"))
        assert driven.open_loop is not None
        figures[policy] = driven.open_loop

    # The recording goes straight at 8 m/s: braking at 3 m/s^2 takes 6 m off the way of 2 s.
    assert figures["constant-velocity"]["plan_l2_2s_m"] < 0.1
    assert figures["stop"]["plan_l2_2s_m"] == pytest.approx(0.5 * 3.0 * 2.0**2, abs=0.2)


def test_a_log_is_driven_and_its_outcome_named_after_it(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["drive", "--log", str(recorded), "--policy", "constant-velocity", "--open-loop"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    outcomes, _ = read_outcomes(tmp_path / "out")

    assert [item.scenario for item in outcomes] == ["log:recorded"]
    assert summary["loop"] == "open"
    assert summary["open_loop"]["plan_l2_1s_m"] < 0.1


def test_open_loop_needs_a_recorded_drive() -> None:
    with pytest.raises(InputError, match=r"open loop follows a recorded drive, and two_way/4000500@0\.5 has"):
        drive_policy(TrafficWorld(SPEC), "stop", open_loop=True)


def test_a_policy_that_cannot_drive_in_a_log_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["drive", "--log", str(recorded), "--policy", "idm", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "policy idm drives simulated traffic only, not log:recorded" in sentence_of(capsys)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ policies that misbehave


def raising(ego: EgoState) -> Plan:
    raise RuntimeError("no idea")


def of_no_numbers(ego: EgoState) -> Plan:
    plan = StopPolicy().plan(ego)
    return replace(plan, points_P2=np.full_like(plan.points_P2, np.nan))


@pytest.mark.parametrize(
    ("plan", "failure"),
    [
        (of_no_numbers, "non-finite plan"),
        (lambda ego: None, r"no plan for 1\.\d s"),
        (raising, "RuntimeError: no idea"),
        (lambda ego: "ahead", "the policy gave str, expected a Plan"),
    ],
    ids=["not finite", "nothing", "an exception", "no plan"],
)
def test_a_policy_that_misbehaves_has_failed_and_the_episode_says_why(
    plan: Callable[[EgoState], object], failure: str
) -> None:
    record = drive_with(ClosedLoop(TrafficWorld(SPEC)), plan, 100_000_000, "odd")
    found = outcome(record)

    assert re.fullmatch(failure, record.failure)
    assert found.policy_failure and not found.success


# ------------------------------------------------------------------ what is refused


def test_the_help_names_the_policies_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["drive", "--help"]) == 0
    text = capsys.readouterr().out

    assert POLICIES == SIMPLE_POLICIES
    assert all(word in text for word in (*POLICIES, "bundle:PATH", "--suite", "--log", "--ray", "Example:"))


BAD_SUITE = "name: mine\ndescription: x\nentries:\n  - {family: motorway, seeds: [1]}\n"
BAD_FOG = "entries:\n  - {effect: fog, density: 3}\n"
STOP = ["--policy", "stop"]
TINY = ["--policy", "bundle:tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "motorway/1", *STOP], "unknown scenario family 'motorway'; there are highway"),
        (["--scenario", "highway", *STOP], "'highway' is not of the form family/seed"),
        (["--scenario", "highway/1@2", *STOP], "difficulty is 2"),
        (["--scenario", "highway/1", "--scenario", "highway/1@0.5", *STOP], "highway/1@0.5 is given more"),
        (["--suite", "martian", *STOP], "no suite 'martian': .*smoke"),
        (["--suite", "{tmp}/bad_suite.yaml", *STOP], r"bad_suite\.yaml: entries\.0\.family: .*'motorway'"),
        (["--suite", "smoke", "--policy", "martian"], "unknown policy 'martian'; there are expert"),
        (["--suite", "smoke", "--policy", "bundle:no_such"], "no bundle 'no_such'"),
        (["--suite", "smoke", "--policy", "bundle:{tmp}"], "is not a bundle"),
        (["--suite", "smoke", *TINY, "--degrade", "{tmp}/bad_fog.yaml"], r"bad_fog\.yaml: .*density"),
        (["--suite", "smoke", *TINY, "--degrade", "martian"], "no degradation 'martian'"),
        (["--suite", "smoke", *TINY, "--strength", "0.5"], "--strength 0.5 is a share of --degrade's"),
        (["--suite", "smoke", *TINY, "--degrade", "fog", "--strength", "0"], "strength is 0, expected more"),
        (["--suite", "smoke", *TINY, "--degrade", "fog", "--strength", "1.5"], "strength is 1.5, expected"),
        (["--suite", "smoke", *TINY, "--rig", "martian"], "no rig 'martian'"),
        (["--suite", "smoke", *TINY, "--backend", "abacus"], "abacus"),
        (["--suite", "smoke", *STOP, "--degrade", "fog"], "--degrade is for bundle:PATH; policy stop has"),
        (["--suite", "smoke", *STOP, "--rig", "log"], "--rig log is for recorded logs"),
        (["--suite", "smoke", *STOP, "--open-loop"], "--open-loop is for recorded logs"),
        (["--log", "{tmp}", *STOP, "--open-loop", "--reactive"], "--open-loop and --reactive: nobody"),
        (["--log", "{tmp}/no_such_log", *STOP], "no log at .*no_such_log; expected the directory"),
        (["--log", "{tmp}", *STOP], "error: .*expected"),
        (STOP, "drive got nothing to drive; expected one of"),
        (["--suite", "smoke", "--scenario", "highway/1", *STOP], "drive got --suite and --scenario"),
        (["--suite", "smoke", *STOP, "--out", "{tmp}"], "holds bad_fog.yaml, bad_suite.yaml, which no drive"),
        (["--suite", "smoke", *STOP, "--out", "{tmp}/bad_fog.yaml"], "bad_fog.yaml is a file"),
        (["--suite", "smoke", *STOP, "--limit", "0"], "limit"),
        (["--suite", "smoke"], "policy"),
    ],
)
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_suite.yaml").write_text(BAD_SUITE, encoding="utf-8")
    (tmp_path / "bad_fog.yaml").write_text(BAD_FOG, encoding="utf-8")
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]

    assert main(["drive", *given, *out]) == 2
    assert re.search(message, sentence_of(capsys))
    assert names_in(tmp_path) == {"bad_suite.yaml", "bad_fog.yaml"}


OURS = ("episodes.parquet", "summary.json", "index.html", "views/a-0123abcd.html")
FOREIGN = ("notes.txt", "views/notes.html", "summary.txt", "outputs/a.mcap")


@settings(max_examples=40, deadline=None)
@given(ours=st.sets(st.sampled_from(OURS)), foreign=st.sets(st.sampled_from(FOREIGN)))
def test_only_a_directory_of_nothing_but_results_is_cleared(
    ours: set[str], foreign: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    for name in ours | foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("kept", encoding="utf-8")
    # Other commands write a summary and an index as well; what they belong to are the rows.
    orphaned = "episodes.parquet" not in ours and bool(ours & {"summary.json", "index.html"})

    if foreign or orphaned:
        with pytest.raises(InputError, match="which no drive wrote; name another --out"):
            refuse_foreign(out)
        assert names_in(out) == ours | foreign
    else:
        refuse_foreign(out)
        make_room(out)
        assert names_in(out) == set()
