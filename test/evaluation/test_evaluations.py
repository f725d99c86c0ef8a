"""An evaluation directory is read as it was written; what is missing is said, what is damaged is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_dirs import BARE, outcomes, write_evaluation

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import (
    is_rate,
    outcome_table,
    read_evaluation,
    read_evaluations,
)
from e2e_perception.evaluation.outcome_tables import summarize, write_outcomes
from e2e_perception.evaluation.outcomes import TTC_HORIZON_S


def test_figures_are_means_over_scenarios_and_pooled_ones_are_kept_beside_them(tmp_path):
    found = read_evaluation(write_evaluation(tmp_path / "joint-0"))
    table = found.tables["perception"]
    column = table.values_NF[:, table.figures_F.index("motion/min_ade_m")]
    assert np.isnan(column).sum() == 1  # as written
    assert found.figures()["motion/min_ade_m"] == pytest.approx(np.nanmean(column))
    assert found.pooled["detection/map"] != found.figures()["detection/map"]
    assert "calibration/score_ece" not in found.pooled  # null
    driven = found.drives["drive-test"]
    assert found.figures()["drive-test/success"] == pytest.approx(np.mean([one.success for one in driven]))
    assert found.facts.seed == 0
    assert found.missing == ()


def test_every_part_may_be_missing_and_is_named(tmp_path):
    driven = outcomes(4, 0.5, np.random.default_rng(0))
    write_outcomes(tmp_path / "lonely" / "drive-test", driven, summarize(driven))
    found = read_evaluation(tmp_path / "lonely")
    assert found.label == "lonely"
    assert found.missing == ("facts.json", "perception.json", "perception.parquet")
    assert list(found.tables) == ["drive-test"]

    found = read_evaluation(write_evaluation(tmp_path / "blind", drives=()))
    assert found.missing == ("drive-SUITE/",)


def test_a_directory_without_any_part_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds none of perception\.json"):
        read_evaluation(tmp_path / "empty")
    with pytest.raises(InputError, match=r"nowhere is no directory"):
        read_evaluation(tmp_path / "nowhere")


def test_damaged_parts_name_the_file(tmp_path):
    for name, content, message in (
        ("perception.json", "{", r"perception\.json is damaged"),
        ("perception.json", "[]", r"perception\.json holds list, expected an object"),
        ("perception.json", '{"curves": 3}', r"'curves' is int, expected an object"),
        ("perception.parquet", "no", r"perception\.parquet is damaged"),
        ("facts.json", '{"latency_ms": -1}', r"facts\.json: latency_ms: .*greater than 0"),
        ("drive-test/episodes.parquet", "no", r"episodes\.parquet is damaged"),
    ):
        path = write_evaluation(tmp_path / f"{name.replace('/', '_')}-{len(content)}")
        (path / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_evaluation(path)


def test_a_drive_without_rows_is_refused_and_not_passed_over(tmp_path):
    path = write_evaluation(tmp_path / "joint-0")
    (path / "drive-test" / "episodes.parquet").unlink()
    with pytest.raises(InputError, match=r"drive-test has no episodes\.parquet"):
        read_evaluation(path)


def test_two_networks_of_one_label_are_refused(tmp_path):
    first, second = write_evaluation(tmp_path / "a" / "joint-0"), write_evaluation(tmp_path / "b" / "joint-0")
    with pytest.raises(InputError, match=r"label 'joint-0' belongs to .*expected another `label`"):
        read_evaluations([first, second])
    facts = json.loads((second / "facts.json").read_text(encoding="utf-8"))
    (second / "facts.json").write_text(json.dumps({**facts, "label": "other"}), encoding="utf-8")
    assert [item.label for item in read_evaluations([first, second])] == ["joint-0", "other"]


def test_values_of_a_drive_are_those_of_its_summary():
    driven = outcomes(9, 0.6, np.random.default_rng(3))
    means = outcome_table("drive-x", driven).means()
    summary = summarize(driven)
    assert means["drive-x/success"] == summary["success_rate"]
    assert means["drive-x/progress"] == summary["progress_mean"]
    assert means["drive-x/time_to_goal_s"] == summary["time_to_goal_s"]
    assert means["drive-x/ttc_p5_s"] == summary["ttc_p5_s"] == TTC_HORIZON_S
    assert math.isinf(BARE.min_clearance_m)
    assert "drive-x/min_clearance_m" not in means  # nobody was there
    assert summary["min_clearance_m"] is None


def test_two_policies_in_one_drive_are_refused():
    with pytest.raises(InputError, match=r"drive-x: bare/1@0\.5 is there more than once"):
        outcome_table("drive-x", [BARE, BARE])


def test_rates_are_fields_of_drives_that_are_true_or_false():
    assert is_rate("drive-test/success")
    assert not is_rate("drive-test/progress")
    assert not is_rate("planning/success")
