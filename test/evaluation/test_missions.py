"""Missions: ramps, means that cannot be bought, floors that disqualify, and files that say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from evaluation_dirs import write_evaluation
from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.evaluation.evaluations import read_evaluation
from e2e_perception.evaluation.missions import Mission, Scorer, load_mission, shipped_missions

DOCUMENT = {
    "name": "mine",
    "description": "A small one.",
    "objectives": {
        "recognition": {
            "weight": 1.0,
            "floor": 0.25,
            "figures": {"detection/map": {"weight": 1.0, "worst": 0.0, "best": 0.8}},
        },
        "planning": {
            "weight": 3.0,
            "figures": {
                "drive-test/success": {"weight": 2.0, "worst": 0.0, "best": 1.0},
                "drive-test/at_fault_collision": {"weight": 2.0, "worst": 0.5, "best": 0.0},
                "drive-rare/success": {"weight": 4.0, "worst": 0.0, "best": 1.0, "optional": True},
            },
        },
    },
}
FIGURES = {"detection/map": 0.4, "drive-test/success": 0.6, "drive-test/at_fault_collision": 0.1}


def mission(**changes) -> Mission:
    return Mission.model_validate({**DOCUMENT, **changes})


def test_the_composite_is_the_weighted_geometric_mean_of_weighted_means_of_ramps():
    found = mission().score({**FIGURES, "something/else": 7.0})
    # Ramps: 0.5; 0.6 and 0.8 with equal weights.
    assert found.objectives == pytest.approx({"recognition": 0.5, "planning": 0.7})
    assert found.value == pytest.approx(0.5**0.25 * 0.7**0.75)
    assert found.skipped == ("drive-rare/success",)
    assert found.disqualified == ()


def test_an_arithmetic_mean_has_to_be_declared():
    found = mission(across_objectives="arithmetic").score(FIGURES)
    assert found.value == pytest.approx(0.25 * 0.5 + 0.75 * 0.7)


def test_one_objective_cannot_be_bought_with_another():
    figures = {"detection/map": 0.8, "drive-test/success": 0.0, "drive-test/at_fault_collision": 0.9}
    assert mission().score(figures).value == 0.0
    assert mission(across_objectives="arithmetic").score(figures).value == pytest.approx(0.25)


def test_an_optional_figure_counts_where_it_is_there():
    found = mission().score({**FIGURES, "drive-rare/success": 0.2})
    assert found.objectives["planning"] == pytest.approx((2 * 0.6 + 2 * 0.8 + 4 * 0.2) / 8)
    assert found.skipped == ()


def test_values_beyond_a_ramp_are_clipped_on_both_sides():
    best = mission().score(
        {"detection/map": 2.0, "drive-test/success": 1.5, "drive-test/at_fault_collision": -1.0}
    )
    assert best.value == pytest.approx(1.0)
    assert best.objectives == {"recognition": 1.0, "planning": 1.0}


def test_below_a_floor_there_is_no_composite_but_a_reason():
    found = mission().score({**FIGURES, "detection/map": 0.16})
    assert found.value is None
    assert found.disqualified == ("recognition is 0.200, below the floor of 0.250",)
    assert found.objectives["planning"] == pytest.approx(0.7)
    assert mission().score({**FIGURES, "detection/map": 0.2}).value is not None  # on the floor


def test_missing_figures_are_an_error_that_lists_them():
    with pytest.raises(
        InputError, match=r"mission mine: missing drive-test/success, drive-test/at_fault_collision; measure"
    ):
        mission().score({"detection/map": 0.4})


def test_an_objective_whose_figures_are_all_optional_and_missing_is_an_error():
    ramp = {"weight": 1.0, "worst": 0.0, "best": 1.0, "optional": True}
    only = {"prediction": {"weight": 1.0, "figures": {"motion/nll": ramp}}}
    with pytest.raises(InputError, match="every figure of prediction is optional and missing"):
        mission(objectives={**DOCUMENT["objectives"], **only}).score(FIGURES)


@given(
    st.lists(st.floats(-2.0, 2.0), min_size=3, max_size=3),
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    st.sampled_from(["geometric", "arithmetic"]),
)
def test_better_figures_never_make_a_worse_composite(values, gains, across):
    the_mission = mission(across_objectives=across)
    scorer = Scorer(the_mission, FIGURES)
    ways = np.array([the_mission.ramps[name].way for name in scorer.figures_F])
    worse = np.array(values)
    both_XF = np.stack([worse, worse + ways * np.array(gains)])
    objectives_XO = scorer.objectives(both_XF)
    before, after = scorer.composite(objectives_XO)
    assert 0.0 <= before <= after + 1e-12 <= 1.0 + 1e-9
    assert (objectives_XO[0] <= objectives_XO[1] + 1e-12).all()


def test_scores_of_many_resamples_are_those_of_each():
    the_mission = mission()
    scorer = Scorer(the_mission, FIGURES)
    values_XF = np.random.default_rng(0).uniform(0.3, 0.6, size=(4, 5, 3))
    found = scorer.composite(scorer.objectives(values_XF))
    for place in np.ndindex(4, 5):
        single = the_mission.score(dict(zip(scorer.figures_F, values_XF[place], strict=True)))
        assert found[place] == pytest.approx(single.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": 1}, "weights: Extra inputs"),
        ({"across_objectives": "harmonic"}, "across_objectives: Input should be 'geometric' or 'arithmetic'"),
        ({"objectives": {}}, "objectives: Dictionary should have at least 1 item"),
        ({"objectives": {"beauty": DOCUMENT["objectives"]["recognition"]}}, "objectives.beauty"),
        (
            {
                "objectives": {
                    "planning": {
                        "weight": 1.0,
                        "figures": {"drive-test/success": {"weight": 1.0, "worst": 0.5, "best": 0.5}},
                    }
                }
            },
            "worst and best are both 0.5",
        ),
        (
            {
                "objectives": {
                    name: {**DOCUMENT["objectives"]["recognition"]} for name in ("recognition", "planning")
                }
            },
            "figure 'detection/map' is in two objectives",
        ),
        (
            {"objectives": {"planning": {**DOCUMENT["objectives"]["planning"], "floor": 1.5}}},
            "objectives.planning.floor: Input should be less than or equal to 1",
        ),
    ],
)
def test_a_malformed_profile_names_the_file_and_the_key(tmp_path, changes, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, **changes}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_mission(path)
    assert str(caught.value).startswith(f"mission {path}: ")
    assert message in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no mission 'rural'.*balanced, highway, urban-conservative"):
        load_mission("rural")


@pytest.mark.parametrize("name", ["balanced", "highway", "urban-conservative"])
def test_every_shipped_profile_scores_what_evaluations_hold(tmp_path, name):
    profile = load_mission(shipped_missions()[name])
    assert profile.name == name
    assert set(profile.objectives) == {"recognition", "tracking", "prediction", "planning"}
    good = profile.score(read_evaluation(write_evaluation(tmp_path / "good", quality=0.85)).figures())
    poor = profile.score(read_evaluation(write_evaluation(tmp_path / "poor", quality=0.45)).figures())
    assert good.value is not None
    assert good.value > 0.5
    assert poor.value is None or poor.value < good.value - 0.2


def test_on_urban_roads_a_network_that_hits_many_is_out(tmp_path):
    figures = read_evaluation(write_evaluation(tmp_path / "poor", quality=0.4)).figures()
    found = load_mission("urban-conservative").score(figures)
    assert found.value is None
    assert any(reason.startswith("planning is 0.") for reason in found.disqualified)
