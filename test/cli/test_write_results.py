"""The script behind docs/results.md: its tables are those of docs/results.json; wrong places are named."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from episode_records import bare_record
from evaluation_dirs import write_evaluation
from script_import import imported

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.comparison import compare
from e2e_perception.evaluation.evaluations import Evaluation, outcome_table, read_evaluations
from e2e_perception.evaluation.missions import load_mission
from e2e_perception.evaluation.outcomes import outcome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported("write_results")


def run(score: float, speed: float = 10.0) -> dict[str, object]:
    scores = ("recognition", "tracking", "prediction", "planning", "mean")
    return {"clips_per_s": speed, "validation": {f"score/{name}": score for name in scores}, "cosines": {}}


def test_the_published_tables_are_those_of_the_published_figures(script: ModuleType) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    assert "<!-- results: " in text
    assert script.with_tables(text, results) == text


def test_a_table_takes_the_place_of_the_old_one_and_nothing_else(script: ModuleType) -> None:
    groups = {"fixed": {"0": run(0.5), "1": run(0.7)}, "mgda": {"0": run(0.4, 5.0)}}
    text = "before\n<!-- results: ablations -->\nold\n<!-- end -->\nafter\n"
    made = script.with_tables(text, {"ablations": {"groups": groups}})
    assert made.startswith("before\n<!-- results: ablations -->\n") and made.endswith("<!-- end -->\nafter\n")
    assert "old" not in made
    assert "| fixed | 2 | 0.600 |" in made and "| 0.500 … 0.700 |" in made
    assert "| mgda | 1 | 0.400 |" in made and "| 0.400 | — |" in made
    assert script.with_tables(made, {"ablations": {"groups": groups}}) == made


def test_a_place_for_nothing_is_an_error(script: ModuleType) -> None:
    with pytest.raises(InputError, match="no table 'luck'"):
        script.with_tables("<!-- results: luck --><!-- end -->", {})
    with pytest.raises(
        InputError, match=r"section 'ablations' makes no table 'cosines': KeyError\('groups'\)"
    ):
        script.with_tables("<!-- results: cosines --><!-- end -->", {"ablations": {}})
    kept = "<!-- results: ablations -->\nby hand\n<!-- end -->"
    assert script.with_tables(kept, {}) == kept, "what was not gathered stays as it is"


def test_what_was_gathered_has_a_place_or_nothing_is_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document, results = tmp_path / "results.md", tmp_path / "results.json"
    measured = tmp_path / "robustness.json"
    place = "<!-- results: robustness --><!-- end -->"
    document.write_text("nothing here\n")

    def write(*more: str) -> int:
        words = ["write_results.py", "--results", str(results), "--document", str(document), *more]
        monkeypatch.setattr(sys, "argv", words)
        return int(script.main())

    assert write("--robustness", str(measured)) == 2
    assert "there is no place for robustness" in capsys.readouterr().err, "before anything is read"
    document.write_text(place)
    assert write("--robustness", str(measured)) == 2
    assert "robustness.json: [Errno 2]" in capsys.readouterr().err
    measured.write_text("{}")
    assert write("--robustness", str(measured)) == 2
    assert "holds no cases" in capsys.readouterr().err
    measured.write_text(json.dumps({"suite": "test", "limit": 3, "cases": []}))
    assert write("--robustness", str(measured)) == 2
    assert "is of 3 scenarios of test; drive all" in capsys.readouterr().err
    measured.write_text(json.dumps({"suite": "test", "cases": [{}]}))
    assert write("--robustness", str(measured)) == 2
    assert "section 'robustness' makes no table 'robustness'" in capsys.readouterr().err
    assert not results.exists() and document.read_text() == place
    measured.write_text(json.dumps({"suite": "test", "cases": []}))
    assert write("--robustness", str(measured), str(measured)) == 0
    assert len(json.loads(results.read_text())["robustness"]["measured"]) == 2
    assert "| suite | what is wrong |" in document.read_text()


def test_the_document_has_a_place_for_all_that_is_gathered_by_make_results(script: ModuleType) -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nresults:")[2].partition("\n\n")[0]
    command = recipe.partition("scripts/write_results.py")[2]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    given = [name for name in script.OPTIONS if f"--{name.replace('_', '-')} " in command]
    assert len(given) >= 6
    for name in given:
        script.refuse_no_place(name, text)


def test_ablations_need_what_they_are_compared_to(script: ModuleType) -> None:
    with pytest.raises(InputError, match="no finished training of 'fixed'"):
        script.with_tables(
            "<!-- results: ablations --><!-- end -->", {"ablations": {"groups": {"mgda": {"0": run(0.4)}}}}
        )


def test_drives_are_shown_with_the_bundle_marked(script: ModuleType) -> None:
    one = outcome(bare_record())
    good = tuple(replace(one, scenario=f"s/{n}", family="exit+debris") for n in range(4))
    bad = tuple(replace(item, success=False, family="merge") for item in good)
    drives = sys.modules["drive_tables"]
    policies = {"blind": drives.figures_of(bad, bad), "bundle:tiny": drives.figures_of(good, bad)}
    results = {"drives": {"suites": {"test": {"policies": policies}}}}
    shown = script.with_tables("<!-- results: drives-test --><!-- end -->", results)
    assert "| blind | 0.000 |" in shown and "| **bundle:tiny** | 1.000 |" in shown
    assert "| +1.00 (+1.00 … +1.00) |" in shown
    roads = script.with_tables("<!-- results: roads --><!-- end -->", results)
    assert "| successes by road | exit | merge |" in roads and "| **bundle:tiny** | 4/4 | 0/0 |" in roads
    with pytest.raises(InputError, match="nobody drove 'critical', only test"):
        script.with_tables("<!-- results: drives-critical --><!-- end -->", results)


def test_the_bundle_on_clips_is_shown_as_far_as_it_was_measured(script: ModuleType) -> None:
    evaluation = {"plan_regret": 1.594, "no_sensors/plan_regret": 4.41, "recall": 0.931}
    shown = script.with_tables("<!-- results: clips --><!-- end -->", {"bundle": {"evaluation": evaluation}})
    assert "| plan regret, in the expert's prices | 1.59 | 4.41 | — |" in shown
    assert "| recall at score 0.3 | 0.931 | — | — |" in shown and "minADE" not in shown


def test_three_trainings_on_the_same_scenarios_are_not_three_times_as_many(script: ModuleType) -> None:
    one = outcome(bare_record())
    base = [replace(one, scenario=f"s/{n}", success=n % 2 == 0) for n in range(40)]
    alone = script.rates([replace(item, policy="a") for item in base])
    thrice = script.rates([replace(item, policy=policy) for policy in "abc" for item in base])
    assert thrice["episodes"] == 120 and thrice["success_rate"] == alone["success_rate"] == 0.5
    width = [high - low for low, high in (alone["success_rate_ci95"], thrice["success_rate_ci95"])]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    for name in ("off_road_rate", "progress_mean", "at_fault_collision_rate"):
        assert thrice[f"{name}_ci95"] == pytest.approx(alone[f"{name}_ci95"], abs=0.1)


def apart(item: Evaluation) -> Evaluation:
    """The evaluation with scenarios of `critical` that are none of `test`'s."""
    drives = dict(item.drives)
    drives["drive-critical"] = tuple(replace(o, scenario=f"c/{o.scenario}") for o in drives["drive-critical"])
    tables = {**item.tables, "drive-critical": outcome_table("drive-critical", drives["drive-critical"])}
    return replace(item, drives=drives, tables=tables)


def test_the_figures_that_decide_are_those_of_the_command_and_slices_come_after_them(
    script: ModuleType, tmp_path: Path
) -> None:
    sides = []
    for number, group in enumerate(script.SIDES):
        labels = [f"{group}-{seed}" for seed in range(3)]
        for seed, label in enumerate(labels):
            write_evaluation(tmp_path / label, seed=seed, group=group, draw=10 * number + seed)
        sides.append([apart(item) for item in read_evaluations([tmp_path / label for label in labels])])
    mission = load_mission(script.MISSION)
    found = script.compared(*sides, mission)["differences"]
    plain = compare(*sides, mission).document()["differences"]
    assert json.dumps(found[: len(plain)]) == json.dumps(plain)
    slices = [item["name"] for item in found[len(plain) :]]
    assert {"drive-all/success", "drive-hidden/success"} <= set(slices)
    assert all(name.startswith(("drive-all/", "drive-hidden/")) for name in slices)
