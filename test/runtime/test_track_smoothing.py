"""Smoothing with hindsight: nearer to the truth than filtering, the same in every frame; headings hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import wrap_angle
from e2e_perception.runtime.track_smoothing import (
    Path,
    near_sums,
    resolved_headings,
    smoothed_path,
    weighted_median,
)

Array = NDArray[np.float64]
NUM = 60
TIMES = 0.1 * np.arange(NUM)
ACCELERATION = 3.0


def turning(seed: int) -> tuple[Array, Array, Array, Array]:
    """True and measured places and velocities of one who brakes and turns."""
    rng = np.random.default_rng(seed)
    speeds, yaws = np.clip(8.0 - 1.5 * TIMES, 0.0, None), 0.3 * np.sin(0.7 * TIMES)
    velocities = speeds[:, None] * np.stack([np.cos(yaws), np.sin(yaws)], axis=1)
    places = np.cumsum(velocities * 0.1, axis=0)
    return (
        places,
        velocities,
        places + rng.normal(0.0, 0.3, (NUM, 2)),
        velocities + rng.normal(0.0, 1.0, (NUM, 2)),
    )


def smoothed(places: Array, velocities: Array, seen: Array | None = None, **more: Array) -> Path:
    hidden = np.zeros(NUM, bool) if seen is None else ~seen.astype(bool)
    place_var = np.where(hidden, np.inf, more.get("place_var", np.full(NUM, 0.09)))
    velocity_var = np.where(hidden, np.inf, np.ones(NUM))
    return smoothed_path(TIMES, places, velocities, place_var, velocity_var, ACCELERATION)


def rms(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("seed", range(4))
def test_what_came_later_makes_it_better_than_what_came_before(seed: int) -> None:
    places, velocities, measured, measured_velocities = turning(seed)
    path = smoothed(measured, measured_velocities)
    filtered = [
        smoothed_path(
            TIMES[:n], measured[:n], measured_velocities[:n], np.full(n, 0.09), np.ones(n), ACCELERATION
        )
        for n in range(1, NUM + 1)
    ]
    causal = np.stack([p.places_K2[-1] for p in filtered])
    causal_velocities = np.stack([p.velocities_K2[-1] for p in filtered])
    assert rms(path.places_K2, places) < 0.75 * rms(causal, places)
    assert rms(path.velocities_K2, velocities) < 0.75 * rms(causal_velocities, velocities)
    assert rms(path.places_K2, places) < 0.6 * rms(measured, places)


@settings(max_examples=25)
@given(
    angle=st.floats(-3.0, 3.0),
    x=st.floats(-1e3, 1e3),
    y=st.floats(-1e3, 1e3),
    seen=st.lists(st.booleans(), min_size=NUM, max_size=NUM).filter(any),
)
def test_turning_and_moving_the_frame_changes_nothing(
    angle: float, x: float, y: float, seen: list[bool]
) -> None:
    _, _, measured, velocities = turning(0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    here = smoothed(measured, velocities, np.array(seen))
    there = smoothed(measured @ rotation.T + (x, y), velocities @ rotation.T, np.array(seen))
    np.testing.assert_allclose(there.places_K2, here.places_K2 @ rotation.T + (x, y), atol=1e-4)
    np.testing.assert_allclose(there.velocities_K2, here.velocities_K2 @ rotation.T, atol=1e-4)
    np.testing.assert_allclose(there.place_var_K, here.place_var_K, rtol=1e-4)


def test_gaps_are_filled_on_the_way_from_one_side_to_the_other() -> None:
    places = np.stack([5.0 * TIMES, np.zeros(NUM)], axis=1)
    velocities = np.tile([5.0, 0.0], (NUM, 1))
    seen = (TIMES < 2.0) | (TIMES > 3.0)
    path = smoothed(np.where(seen[:, None], places, 1e6), velocities, seen)
    np.testing.assert_allclose(path.places_K2, places, atol=1e-3)
    assert path.place_var_K[25] > 2.0 * path.place_var_K[15], "and what is filled in is less sure"


def test_one_wild_measurement_is_hardly_believed() -> None:
    places, _, measured, velocities = turning(1)
    wild = measured.copy()
    wild[30] += (12.0, -9.0)
    off, usual = (rms(smoothed(seen, velocities).places_K2, places) for seen in (wild, measured))
    assert off < 1.6 * usual


def test_nothing_can_be_smoothed_of_nothing_or_backwards() -> None:
    _, _, measured, velocities = turning(0)
    with pytest.raises(InputError, match="nothing was measured"):
        smoothed(measured, velocities, np.zeros(NUM))
    with pytest.raises(InputError, match="times have to rise"):
        smoothed_path(TIMES[::-1], measured, velocities, np.ones(NUM), np.ones(NUM), ACCELERATION)


def standing(num: int = NUM) -> Path:
    return Path(np.zeros((num, 2)), np.zeros((num, 2)), np.full(num, 0.01), np.full(num, 0.01))


@given(
    true=st.floats(-3.1, 3.1),
    flipped=st.lists(st.booleans(), min_size=NUM, max_size=NUM).filter(lambda f: sum(f) < 25),
)
def test_of_one_who_stands_most_headings_say_which_way_it_points(true: float, flipped: list[bool]) -> None:
    rng = np.random.default_rng(0)
    yaws = true + rng.normal(0.0, 0.1, NUM) + np.pi * np.array(flipped)
    got = resolved_headings(TIMES, wrap_angle(yaws), np.full(NUM, 0.8), standing())
    assert np.abs(wrap_angle(got - true)).max() < 0.15


def test_of_one_who_drives_the_motion_says_it_even_against_every_detection() -> None:
    _, velocities, places, _ = turning(2)
    moving = Path(places, velocities, np.full(NUM, 0.01), np.full(NUM, 0.04))
    way = np.arctan2(velocities[:, 1], velocities[:, 0])
    got = resolved_headings(TIMES, wrap_angle(way + np.pi), np.full(NUM, 0.8), moving)
    fast = np.linalg.norm(velocities, axis=1) > 2.0
    assert np.abs(wrap_angle(got - way))[fast].max() < 0.12
    assert np.abs(wrap_angle(np.diff(got))).max() < 0.2, "nor does it turn round when it stops"


@given(turns=st.floats(-4.0, 4.0))
def test_a_heading_that_turns_all_the_way_is_followed(turns: float) -> None:
    true = turns * TIMES
    got = resolved_headings(TIMES, wrap_angle(true), np.ones(NUM), standing())
    assert np.abs(wrap_angle(got - true))[20:40].max() < 0.02


def test_where_nothing_was_detected_the_neighbours_say_it() -> None:
    weights = np.where(TIMES < 3.0, 1.0, 0.0)
    got = resolved_headings(TIMES, np.where(weights > 0, 1.0, -2.0), weights, standing())
    np.testing.assert_allclose(got, 1.0, atol=1e-9)


@given(
    values=st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 5)), min_size=1).filter(
        lambda pairs: any(weight for _, weight in pairs)
    )
)
def test_the_weighted_median_has_at_most_half_of_the_weight_on_either_side(
    values: list[tuple[int, int]],
) -> None:
    numbers, weights = (np.array(column, np.float64) for column in zip(*values, strict=True))
    median = weighted_median(numbers, weights)
    assert median in numbers
    assert weights[numbers < median].sum() <= 0.5 * weights.sum()
    assert weights[numbers > median].sum() <= 0.5 * weights.sum()


def test_near_sums_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.05, 0.6, 200))
    values = rng.normal(size=200) + 1j * rng.normal(size=200)
    every = np.exp(-0.5 * ((times[:, None] - times) / 0.5) ** 2) @ values
    np.testing.assert_allclose(near_sums(times, values), every, atol=0.01)
