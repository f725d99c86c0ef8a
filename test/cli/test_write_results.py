"""The script behind docs/results.md: its tables are those of docs/results.json; wrong places are named."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from episode_records import bare_record

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.outcomes import outcome

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))  # as it is for a script that is run
    try:
        return importlib.import_module("write_results")
    finally:
        sys.path.remove(str(SCRIPTS))


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
    assert "| fixed | 2 | 0.600 |" in made and "0.500 … 0.700 | 1.00 |" in made
    assert "| mgda | 1 | 0.400 |" in made and "| 0.50 |" in made
    assert script.with_tables(made, {"ablations": {"groups": groups}}) == made


def test_a_place_for_nothing_is_an_error(script: ModuleType) -> None:
    with pytest.raises(InputError, match="no table 'luck'"):
        script.with_tables("<!-- results: luck --><!-- end -->", {})
    with pytest.raises(InputError, match="needs section 'ablations'"):
        script.with_tables("<!-- results: ablations --><!-- end -->", {})


def test_three_trainings_on_the_same_scenarios_are_not_three_times_as_many(script: ModuleType) -> None:
    one = outcome(bare_record())
    base = [replace(one, scenario=f"s/{n}", success=n % 2 == 0) for n in range(40)]
    alone = script.rates([replace(item, policy="a") for item in base])
    thrice = script.rates([replace(item, policy=policy) for policy in "abc" for item in base])
    assert thrice["episodes"] == 120 and thrice["success_rate"] == alone["success_rate"] == 0.5
    width = [high - low for low, high in (alone["success_rate_ci95"], thrice["success_rate_ci95"])]
    assert width[1] == pytest.approx(width[0], rel=0.1)
