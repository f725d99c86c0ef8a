"""Suites: what the shipped ones hold, and what a user is told about a file that is wrong."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from e2e_perception.core.errors import ConfigError
from e2e_perception.simulation.suites import Entry, Exclusion, Suite, load_suite, shipped_suites
from e2e_perception.simulation.traffic_world import FAMILIES, HAZARDS_ON, ROADS

SIZES = {"smoke": 12, "test": 120, "validation": 60, "critical": 50, "rare": 60, "train": 2000}


def hazard_of(family: str) -> str:
    return family.partition("+")[2]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SIZES)
def test_shipped_suite_has_its_name_and_size_whoever_is_excluded(name: str) -> None:
    suite = load_suite(name)

    assert suite.name == name
    assert len(suite.all_scenarios) == SIZES[name]
    assert len(suite.scenarios()) == SIZES[name] - len(suite.excluded)


def test_no_seed_is_in_two_shipped_suites() -> None:
    owner: dict[int, str] = {}
    for name in shipped_suites():
        for seed in {spec.seed for spec in load_suite(name).all_scenarios}:
            assert owner.setdefault(seed, name) == name, f"seed {seed} is in {owner[seed]} and in {name}"

    assert set(owner.values()) == set(SIZES)


@pytest.mark.parametrize(("name", "at_least"), [("test", 2), ("validation", 1), ("train", 48)])
def test_every_family_is_in_suites_that_claim_all(name: str, at_least: int) -> None:
    count = Counter(spec.family for spec in load_suite(name).all_scenarios)

    assert set(count) == set(FAMILIES)
    assert min(count.values()) >= at_least


def test_training_has_several_difficulties_of_every_family() -> None:
    seen = {(spec.family, spec.difficulty) for spec in load_suite("train").all_scenarios}

    assert set(Counter(family for family, _ in seen).values()) == {4}


def test_smoke_has_every_plain_road_and_six_hazards() -> None:
    families = [spec.family for spec in load_suite("smoke").all_scenarios]

    assert [family for family in families if family in ROADS] == list(ROADS)
    assert len({hazard_of(family) for family in families} - {""}) == 6


def test_critical_has_ten_each_of_five_hazards_on_straight_roads() -> None:
    specs = load_suite("critical").all_scenarios

    assert Counter(hazard_of(spec.family) for spec in specs) == dict.fromkeys(
        ("braking_lead", "blocked_lane", "cut_in", "crossing", "standstill"), 10
    )
    assert {spec.family.partition("+")[0] for spec in specs} == {"highway", "two_way"}


def test_rare_has_hard_cases_of_five_hazards_on_every_road_that_has_them() -> None:
    specs = load_suite("rare").all_scenarios
    hazards = {"aggressive_merger", "debris", "blocking_truck", "cyclist", "crossing"}

    assert {hazard_of(spec.family) for spec in specs} == hazards
    assert all(spec.difficulty >= 0.8 for spec in specs)
    assert {spec.family for spec in specs} == {
        f"{road}+{hazard}" for road, found in HAZARDS_ON.items() for hazard in set(found) & hazards
    }


GOOD = """
name: mine
description: Two.
entries:
  - {family: highway, seeds: {first: 7, count: 2}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- highway", "is list, expected a mapping"),
        (GOOD.replace("highway", "motorway"), r"entries\.0\.family: .*unknown family 'motorway'; there are"),
        (GOOD.replace("count: 2", "count: -1"), r"entries\.0\.seeds\.range\.count: .*greater than"),
        (GOOD.replace("count: 2", "count: 0"), r"entries\.0\.seeds\.range\.count: .*greater than"),
        (GOOD.replace("{first: 7, count: 2}", "[3, -3]"), r"entries\.0\.seeds\.list\.1: .*greater than"),
        (GOOD.replace("{first: 7, count: 2}", "[]"), r"entries\.0\.seeds\.list: .*at least 1"),
        (GOOD.replace("{first: 7, count: 2}", "[7, 7]"), r"scenario highway/7@0\.5 is there twice"),
        (GOOD + "  - {family: highway, seeds: [8]}\n", r"entries\.1: scenario highway/8@0\.5 is there twice"),
        (GOOD.replace("}}", "}, difficulty: 1.5}"), r"entries\.0\.difficulty: .*less than or equal to 1"),
        (GOOD.replace("}}", "}, difficulty: .nan}"), r"entries\.0\.difficulty: .*finite"),
        (GOOD + "wheels: 4\n", "wheels: Extra inputs"),
        ("name: mine\ndescription: None.\nentries: []\n", "entries: .*at least 1"),
        ("name: mine\ndescription: None.\n", "entries: Field required"),
        (GOOD + "excluded:\n  - {scenario: highway/9@0.5, reason: blocked}\n", "'highway/9@0.5' is not in"),
        (GOOD + "excluded:\n  - {scenario: highway/7@0.5, reason: ''}\n", r"excluded\.0\.reason"),
        (GOOD + "excluded:\n" + 2 * "  - {scenario: highway/7@0.5, reason: blocked}\n", "excluded twice"),
        (
            GOOD + "excluded:\n  - {scenario: highway/7@0.5, reason: a}\n"
            "  - {scenario: highway/8@0.5, reason: b}\n",
            "every scenario is excluded",
        ),
    ],
)
def test_a_malformed_suite_names_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "mine.yaml", text)

    with pytest.raises(ConfigError, match=message) as caught:
        load_suite(path)
    assert str(path) in str(caught.value)


def test_an_unknown_suite_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no suite 'martian'.*critical, rare, smoke"):
        load_suite("martian")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00name")

    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_suite(path)


def test_an_excluded_scenario_is_not_driven_but_stays_known(tmp_path: Path) -> None:
    text = GOOD + "excluded:\n  - {scenario: highway/7@0.5, reason: blocked}\n"
    suite, whole = (
        load_suite(written(tmp_path / "a.yaml", text)),
        load_suite(written(tmp_path / "b.yaml", GOOD)),
    )

    assert [spec.name for spec in suite.scenarios()] == ["highway/8@0.5"]
    assert suite.excluded_names == ("highway/7@0.5",)
    assert suite.all_scenarios == whole.all_scenarios
    assert suite.digest != whole.digest


@st.composite
def suites(draw: st.DrawFn) -> Suite:
    groups = draw(
        st.lists(
            st.tuples(st.sampled_from(FAMILIES), st.sampled_from((0.2, 0.5, 1.0))), min_size=1, unique=True
        )
    )
    entries = []
    for family, difficulty in groups:
        if draw(st.booleans()):
            seeds: object = {"first": draw(st.integers(0, 10**9)), "count": draw(st.integers(1, 5))}
        else:
            seeds = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))
        entries.append({"family": family, "seeds": seeds, "difficulty": difficulty})
    return Suite.model_validate({"name": "drawn", "description": "", "entries": entries})


@settings(max_examples=50)
@given(suites(), st.data())
def test_scenarios_are_those_of_the_entries_less_the_excluded_in_turns(
    suite: Suite, data: st.DataObject
) -> None:
    names = [spec.name for spec in suite.all_scenarios]
    left_out = set(data.draw(st.lists(st.sampled_from(names), max_size=len(names) - 1, unique=True)))
    excluded = tuple(Exclusion(scenario=name, reason="drawn") for name in sorted(left_out))
    fewer = Suite.model_validate({**suite.model_dump(), "excluded": [item.model_dump() for item in excluded]})

    assert sorted(names) == sorted(spec.name for entry in suite.entries for spec in entry.scenarios())
    assert [spec.name for spec in fewer.scenarios()] == [name for name in names if name not in left_out]
    firsts = {entry.scenarios()[0].name for entry in suite.entries}
    assert set(names[: len(suite.entries)]) == firsts


@settings(max_examples=50)
@given(suites(), st.randoms(use_true_random=False))
def test_the_digest_depends_on_the_scenarios_and_not_on_their_order(suite: Suite, random: object) -> None:
    entries = list(suite.entries)
    random.shuffle(entries)  # type: ignore[attr-defined]
    other = suite.model_copy(update={"entries": tuple(entries), "description": "another"})
    more = Entry(family="highway", seeds=(10**9 + 7,), difficulty=0.5)

    assert other.digest == suite.digest
    assert suite.model_copy(update={"entries": (*suite.entries, more)}).digest != suite.digest
    assert suite.model_copy(update={"degradation": "fog"}).digest != suite.digest
