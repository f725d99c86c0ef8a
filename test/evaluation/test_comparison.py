"""Groups of evaluations: what is paired with what, what is left out, and what a mission makes of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from evaluation_dirs import write_evaluation
from scipy.stats import binomtest

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.comparison import Comparison, Difference, compare
from e2e_perception.evaluation.evaluations import Evaluation, Facts, ScenarioTable, read_evaluation
from e2e_perception.evaluation.missions import Mission, load_mission
from e2e_perception.evaluation.outcome_tables import paired_difference

MISSION = Mission.model_validate(
    {
        "name": "two",
        "description": "Two figures.",
        "objectives": {
            "recognition": {"weight": 1.0, "figures": {"good": {"weight": 1.0, "worst": 0.0, "best": 1.0}}},
            "planning": {
                "weight": 1.0,
                "floor": 0.2,
                "figures": {"error": {"weight": 1.0, "worst": 1.0, "best": 0.0}},
            },
        },
    }
)


def evaluation(
    tmp_path,
    label,
    values_NF,
    *,
    seed=None,
    group="",
    scenarios=None,
    figures=("good", "error"),
    table="perception",
) -> Evaluation:
    names = tuple(f"s{n:03d}" for n in range(len(values_NF))) if scenarios is None else tuple(scenarios)
    rows = ScenarioTable(names, tuple(figures), np.asarray(values_NF, np.float64))
    facts = Facts(label=label, group=group, seed=seed)
    return Evaluation(tmp_path, facts, {table: rows}, {}, {}, {}, ())


def groups(tmp_path, *, num=60, effect=0.1, seeds=(0, 1, 2), figures=("good", "error")):
    rng = np.random.default_rng(0)
    hard_N1 = rng.uniform(0.3, 0.7, size=(num, 1))
    return [
        [
            evaluation(
                tmp_path,
                f"{name}-{seed}",
                hard_N1 + shift + 0.05 * rng.normal(size=(num, len(figures))),
                seed=seed,
                group=name,
                figures=figures,
            )
            for seed in seeds
        ]
        for name, shift in (("joint", effect), ("detached", 0.0))
    ]


def by_name(found: Comparison) -> dict[str, Difference]:
    return {item.name: item for item in found.differences}


def test_a_known_effect_is_found_in_figures_objectives_and_composite(tmp_path):
    a, b = groups(tmp_path)
    found = compare(a, b, MISSION)
    assert (found.a.name, found.b.name, found.mission) == ("joint", "detached", "two")
    assert found.paired_by_seed
    assert [item.kind for item in found.differences] == ["composite", *["objective"] * 2, *["figure"] * 2]
    named = by_name(found)
    good, error = named["good"], named["error"]
    assert good.difference == pytest.approx(0.1, abs=0.02)
    assert good.ci95[0] < 0.1 < good.ci95[1]
    assert good.scenarios == 60
    assert (good.better, error.better) == ("a", "b")  # of an error less is better
    assert named["recognition"].difference == pytest.approx(good.difference)
    assert named["planning"].difference == pytest.approx(-error.difference)


def test_the_composite_is_that_of_the_mean_figures(tmp_path):
    a, b = groups(tmp_path)
    item = by_name(compare(a, b, MISSION))["composite"]
    for side, mean in ((a, item.mean_a), (b, item.mean_b)):
        values_F = np.mean([one.tables["perception"].values_NF for one in side], axis=(0, 1))
        assert mean == pytest.approx(np.sqrt(values_F[0] * (1.0 - values_F[1])))


def test_sides_change_places_with_their_signs(tmp_path):
    a, b = groups(tmp_path)
    there, back = by_name(compare(a, b, MISSION)), by_name(compare(b, a, MISSION))
    for name, item in there.items():
        assert back[name].difference == pytest.approx(-item.difference)
        assert back[name].better == {"a": "b", "b": "a", None: None}[item.better]


def test_trainings_are_paired_by_their_seeds_in_whatever_order_they_are_given(tmp_path):
    a, b = groups(tmp_path)
    assert compare(a, b) == compare(a[::-1], [b[1], b[2], b[0]])
    other = [*b[:2], replace(b[2], facts=b[2].facts.model_copy(update={"seed": 7}))]
    found = compare(a, other)
    assert not found.paired_by_seed
    assert found.claim.startswith("3 against 3 trainings, not paired by seed")
    assert by_name(found)["good"].seed_p is None


def test_one_network_a_side_is_about_these_networks_only(tmp_path):
    a, b = groups(tmp_path, seeds=(0,))
    found = compare(a, b)
    assert "about these networks, not about how they were trained" in found.claim
    for item in found.differences:
        assert item.seed_p is None
        assert item.ci95 == pytest.approx(item.networks_ci95)


def test_trainings_that_differ_widen_the_interval_but_not_that_of_these_networks(tmp_path):
    a, b = groups(tmp_path)
    rows = a[0].tables["perception"]
    lucky = replace(rows, values_NF=rows.values_NF + 0.2)
    item = by_name(compare([replace(a[0], tables={"perception": lucky}), *a[1:]], b))["good"]
    assert not item.excludes_zero
    assert item.networks_ci95[0] > 0.1
    assert item.networks_ci95[1] - item.networks_ci95[0] < 0.1 * (item.ci95[1] - item.ci95[0])


def test_only_scenarios_that_all_met_count_and_the_others_are_said(tmp_path):
    values = np.linspace(0.0, 1.0, 10).reshape(5, 2)
    a = [evaluation(tmp_path, "a", values)]
    b = [evaluation(tmp_path, "b", values[::-1][:4], scenarios=["s004", "s003", "s002", "s001"])]
    found = compare(a, b)
    assert found.scenarios == {"perception": 4}
    assert found.left_out == ("perception: 1 scenarios not met by all, s000 first",)
    assert all(item.difference == pytest.approx(0.0) for item in found.differences)  # matched by name
    assert all(item.scenario_p == 1.0 for item in found.differences)


def test_figures_and_tables_that_not_all_have_are_left_out_and_said(tmp_path):
    a, b = groups(tmp_path, seeds=(0,))
    table = b[0].tables["perception"]
    fewer = replace(table, figures_F=("good",), values_NF=table.values_NF[:, :1])
    short = replace(b[0], tables={"perception": fewer, "drive-test": table})
    found = compare(a, [short])
    assert [item.name for item in found.differences] == ["good"]
    assert found.left_out == (
        "perception: error not measured of all",
        "drive-test: missing from joint-0",
    )


@pytest.mark.parametrize(
    ("key", "mine", "yours"),
    [
        ("suite_digest", "ab", "cd"),
        ("degradation", None, "rain"),
        ("strength", 0.5, 1.0),
        ("suite", "a", "b"),
    ],
)
def test_scenarios_met_under_other_conditions_are_not_paired(tmp_path, key, mine, yours):
    a, b = groups(tmp_path)
    (table,) = a[0].tables
    a = [replace(item, conditions={table: {key: mine}}) for item in a]
    assert compare(a, b).scenarios, "what is not known of b is no reason"
    b = [replace(item, conditions={table: {key: yours}}) for item in b]
    with pytest.raises(
        InputError, match=rf"{table} of detached-0 has {key} {yours!r}, of joint-0 {mine!r}; expected"
    ):
        compare(a, b)


def test_nothing_in_common_is_an_error_that_says_why(tmp_path):
    a = [evaluation(tmp_path, "a", [[1.0, 1.0]])]
    b = [evaluation(tmp_path, "b", [[1.0, 1.0]], table="drive-test")]
    with pytest.raises(InputError, match=r"no figure of a scenario in common \(perception: missing from b; "):
        compare(a, b)


def test_a_figure_of_the_mission_that_is_missing_names_evaluation_and_figure(tmp_path):
    a, b = groups(tmp_path, figures=("good",))
    with pytest.raises(InputError, match="joint-0: mission two: missing error"):
        compare(a, b, MISSION)


def test_a_disqualified_network_takes_the_composite_with_it(tmp_path):
    a, b = groups(tmp_path)
    table = a[1].tables["perception"]
    poor = replace(table, values_NF=np.column_stack([table.values_NF[:, 0], np.full(60, 0.95)]))
    a[1] = replace(a[1], tables={"perception": poor})
    found = compare(a, b, MISSION)
    assert found.disqualified == ("joint-1: planning is 0.050, below the floor of 0.200",)
    assert "composite" not in by_name(found)
    assert {"recognition", "planning", "good", "error"} == set(by_name(found))


def test_scenarios_of_the_same_name_are_drawn_together_in_all_tables(tmp_path):
    """Two tables with opposite values: their sum has no spread if, and only if, they are drawn together."""
    rng = np.random.default_rng(0)
    values_N1 = rng.uniform(0.2, 0.8, size=(50, 1))
    mission = MISSION.model_copy(update={"across_objectives": "arithmetic"})
    sides = []
    for label, shifted_N1 in (("a", values_N1), ("b", 1.0 - values_N1)):
        one = evaluation(tmp_path, label, shifted_N1, figures=("good",))
        two = evaluation(tmp_path, label, shifted_N1, figures=("error",), table="drive-x")
        sides.append([replace(one, tables={**one.tables, **two.tables})])
    named = by_name(compare(*sides, mission))
    assert named["good"].ci95[1] - named["good"].ci95[0] > 0.05
    assert named["composite"].ci95 == pytest.approx((0.0, 0.0), abs=1e-9)


def test_rates_of_one_network_a_side_have_mcnemars_exact_test(tmp_path):
    paths = [
        write_evaluation(tmp_path / f"n{draw}", draw=draw, quality=q) for draw, q in ((1, 0.9), (2, 0.5))
    ]
    a, b = (read_evaluation(path) for path in paths)
    item = by_name(compare([a], [b]))["drive-test/success"]
    expected = paired_difference(a.drives["drive-test"], b.drives["drive-test"], "success")
    assert item.mcnemar is not None
    assert item.mcnemar["only_a"] == expected["only_a"]
    assert item.mcnemar["mcnemar_p"] == pytest.approx(
        binomtest(expected["only_a"], expected["only_a"] + expected["only_b"]).pvalue
    )
    assert item.difference == pytest.approx(expected["difference"])
    assert by_name(compare([a], [b]))["drive-test/progress"].mcnemar is None


def test_the_interval_of_one_pair_is_that_of_a_plain_bootstrap(tmp_path):
    """Against `paired_difference`, whose percentiles agree with standard deviations for means of many."""
    paths = [write_evaluation(tmp_path / f"n{draw}", draw=draw, num=200) for draw in (1, 2)]
    a, b = (read_evaluation(path) for path in paths)
    item = by_name(compare([a], [b]))["drive-test/progress"]
    expected = paired_difference(a.drives["drive-test"], b.drives["drive-test"], "progress")
    assert item.ci95 == pytest.approx(expected["difference_ci95"], abs=0.01)


def test_equal_seeds_give_equal_comparisons_that_json_can_hold(tmp_path):
    a, b = groups(tmp_path)
    first, again, other = (compare(a, b, MISSION, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert json.loads(json.dumps(first.document()))["differences"][0]["name"] == "composite"


def test_groups_of_one_name_are_told_apart_by_their_labels(tmp_path):
    a, _ = groups(tmp_path)
    found = compare(a[:1], a[1:])
    assert (found.a.name, found.b.name) == ("joint-0", "joint-1, joint-2")


def test_empty_sides_and_single_resamples_are_refused(tmp_path):
    a, b = groups(tmp_path, num=5)
    with pytest.raises(InputError, match="0 against 3 evaluations"):
        compare([], b)
    with pytest.raises(InputError, match="1 resamples; expected at least one on either side, and two"):
        compare(a, b, resamples=1)


def test_a_side_that_mixes_groups_is_refused(tmp_path):
    a, b = groups(tmp_path, num=5)
    with pytest.raises(InputError, match=r"one side mixes groups detached and joint .*--against before each"):
        compare([*a, *b[1:]], b[:1])  # what `compare joint-* --against detached-*` comes to


def test_six_networks_are_compared_in_one_go(tmp_path):
    """All figures of real directories, 2000 resamples; the time is printed, not judged."""
    joint = [
        read_evaluation(write_evaluation(tmp_path / f"joint-{s}", seed=s, num=120, quality=0.8, draw=s))
        for s in range(3)
    ]
    detached = [
        read_evaluation(
            write_evaluation(
                tmp_path / f"detached-{s}", seed=s, num=120, quality=0.6, group="detached", draw=10 + s
            )
        )
        for s in range(3)
    ]
    begin = time.perf_counter()
    found = compare(joint, detached, load_mission("balanced"))
    print(f"{len(found.differences)} differences in {time.perf_counter() - begin:.2f} s")
    named = by_name(found)
    assert named["composite"].better == "a"
    assert named["drive-test/success"].better == "a"
    assert named["planning/l2_at_3s_m"].better == "a"
    assert named["motion/min_ade_m"].scenarios == 119  # one scenario has none
    assert named["drive-test/time_to_goal_s"].better is None
    assert found.scenarios == {"perception": 120, "drive-critical": 120, "drive-test": 120}
