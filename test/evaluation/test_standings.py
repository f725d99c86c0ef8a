"""Evaluations beside each other: axes, fronts, and composites on the same figures for all."""

from __future__ import annotations

import json

import pytest
from evaluation_dirs import write_evaluation

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import FACTS, read_evaluation
from e2e_perception.evaluation.missions import load_mission
from e2e_perception.evaluation.standings import stand

MISSION = load_mission("balanced")


@pytest.fixture
def three(tmp_path):
    """Good and slow, poor and fast, and one that is neither."""
    return [
        read_evaluation(write_evaluation(tmp_path / name, quality=quality, latency_ms=latency_ms, num=60))
        for name, quality, latency_ms in (("good", 0.8, 20.0), ("fast", 0.6, 8.0), ("neither", 0.5, 15.0))
    ]


def test_a_network_that_another_beats_on_every_axis_is_dominated_by_it(three):
    found = stand(three, MISSION)
    assert [(axis.name, axis.goal) for axis in found.axes] == [
        ("recognition", "maximise"),
        ("tracking", "maximise"),
        ("planning", "maximise"),
        ("latency_ms", "minimise"),
    ]
    assert [place.rank for place in found.standings] == [0, 0, 1]
    assert [place.dominated_by for place in found.standings] == [None, None, "fast"]
    composites = [place.composite.value for place in found.standings]
    assert composites == sorted(composites, reverse=True)
    assert found.standings[0].values["latency_ms"] == 20.0


def test_a_mission_that_leaves_objectives_out_is_ranked_on_what_it_has(three):
    narrow = MISSION.model_copy(update={"objectives": {"planning": MISSION.objectives["planning"]}})
    found = stand(three, narrow)
    assert [axis.name for axis in found.axes] == ["planning", "latency_ms"]
    assert found.left_out == (
        "recognition: no objective of mission balanced",
        "tracking: no objective of mission balanced",
    )


def test_without_latency_good_dominates_all(three):
    found = stand(three, MISSION, ["recognition", "planning"])
    assert [place.dominated_by for place in found.standings] == [None, "good", "good"]
    assert found.standings[2].rank == 2


def test_figures_are_axes_whose_way_the_mission_or_the_user_says(three):
    found = stand(three, MISSION, ["motion/min_ade_m", "drive-test/speed_mean_mps:maximise"])
    assert [axis.goal for axis in found.axes] == ["minimise", "maximise"]
    with pytest.raises(InputError, match=r"'drive-test/speed_mean_mps': mission balanced does not say"):
        stand(three, MISSION, ["drive-test/speed_mean_mps"])


def test_an_axis_that_one_lacks_is_left_out_by_default_and_an_error_if_asked_for(three, tmp_path):
    three.append(read_evaluation(write_evaluation(tmp_path / "untimed", latency_ms=None)))
    found = stand(three, MISSION)
    assert found.left_out == ("latency_ms: missing from untimed",)
    assert [axis.name for axis in found.axes] == ["recognition", "tracking", "planning"]
    with pytest.raises(InputError, match=r"axis 'latency_ms': untimed has no such value"):
        stand(three, MISSION, ["latency_ms"])


def test_optional_figures_that_one_lacks_count_for_nobody(three, tmp_path):
    assert stand(three, MISSION).standings[0].composite.skipped == ()
    three.append(read_evaluation(write_evaluation(tmp_path / "short", drives=("test",))))
    for place in stand(three, MISSION).standings:
        assert place.composite.skipped == ("drive-critical/success",)


def test_a_figure_that_one_lacks_names_network_and_figure(three, tmp_path):
    three.append(read_evaluation(write_evaluation(tmp_path / "parked", drives=())))
    with pytest.raises(InputError, match=r"parked: mission balanced: missing drive-test/success"):
        stand(three, MISSION)


def test_trainings_of_one_graph_share_the_least_latency_and_others_do_not(tmp_path):
    found = []
    for name, latency_ms, graph in (("a", 9.0, "ab"), ("b", 8.0, "ab"), ("c", 7.0, "cd"), ("d", 6.5, None)):
        path = write_evaluation(tmp_path / name, quality=0.6, latency_ms=latency_ms)
        facts = json.loads((path / FACTS).read_text())
        (path / FACTS).write_text(json.dumps({**facts, "graph_digest": graph}))
        found.append(read_evaluation(path))
    standings = stand(found, MISSION).standings
    assert [place.values["latency_ms"] for place in standings] == [8.0, 8.0, 7.0, 6.5]
