"""Slices: time of day where there is a clock, families of scenarios, bins without holes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.data.slices import DISTANCES, clip_slices, in_bin, scenario_family, time_of_day

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2


def row(**change: Any) -> dict[str, Any]:
    return {"first_stamp_ns": NOON_NS, "scenario": "bag:12ab", "speed_mean_mps": 7.0, **change}


def test_a_clip_is_a_case_of_what_is_known_of_it() -> None:
    facts = {"start_ns": NOON_NS, "place": "Lisbon", "odometry": {"count": 50, "jitter_ms": 0.2}}
    assert clip_slices(row(weather="rain"), facts) == {
        "speed": "5 – 10 m/s",
        "weather": "rain",
        "time of day": "12 – 18 h UTC",
        "scenario": "recorded",
        "place": "Lisbon",
    }
    assert set(clip_slices(row(speed_mean_mps=None, scenario=""), {}).values()) == {"not known"}


def test_stamps_of_a_simulator_have_no_time_of_day() -> None:
    facts = {"start_ns": NOON_NS, "odometry": {"count": 50, "jitter_ms": 0.0}}
    assert clip_slices(row(), facts)["time of day"] == "not known"


@pytest.mark.parametrize(
    ("hour", "told"), [(0, "00 – 06"), (5.99, "00 – 06"), (6, "06 – 12"), (23.9, "18 – 24")]
)
def test_hours_are_counted_in_utc(hour: float, told: str) -> None:
    assert time_of_day(20_000 * DAY_NS + round(hour * 3600e9)) == f"{told} h UTC"


@given(st.integers(-(10**18), 946_684_800 * 10**9 - 1))
def test_a_clock_that_nobody_set_has_no_time_of_day(stamp_ns: int) -> None:
    assert time_of_day(stamp_ns) == "not known"


@given(st.floats(0.0, 1e6))
def test_every_value_is_in_the_bin_that_says_so(value: float) -> None:
    told = in_bin(value, DISTANCES, "m")
    low, _, high = told.removesuffix(" m").removeprefix("from ").partition(" – ")
    assert float(low) <= value and (not high or value < float(high))


def test_families_leave_seeds_out() -> None:
    names = ["roundabout/3@0.3", "cut_in/7", "log:abc/def", "bag:12", "synthetic/1"]
    assert [scenario_family(n) for n in names] == [
        "roundabout",
        "cut_in",
        "recorded",
        "recorded",
        "synthetic",
    ]
