"""Fronts against a definition that needs no cleverness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.pareto import Axis, rank

TOP = 5  # values are 0 … TOP: few enough for ties


@st.composite
def points_and_axes(draw):
    num_axes = draw(st.integers(1, 4))
    num_points = draw(st.integers(1, 9))
    values = draw(arrays(np.float64, (num_points, num_axes), elements=st.integers(0, TOP).map(float)))
    goals = draw(st.lists(st.sampled_from(["maximise", "minimise"]), min_size=num_axes, max_size=num_axes))
    return values, [Axis(f"axis {a}", goal) for a, goal in enumerate(goals)]


def dominates(p, q, axes) -> bool:
    gains = [x - y if axis.goal == "maximise" else y - x for x, y, axis in zip(p, q, axes, strict=True)]
    return min(gains) >= 0.0 and max(gains) > 0.0


@given(points_and_axes())
def test_ranks_are_those_of_peeling_fronts_off_one_by_one(case):
    values, axes = case
    expected = [-1] * len(values)
    front = 0
    while -1 in expected:
        left = [n for n, found in enumerate(expected) if found < 0]
        for n in left:
            if not any(dominates(values[m], values[n], axes) for m in left):
                expected[n] = front
        front += 1
    assert rank(values, axes).ranks_N.tolist() == expected


@given(points_and_axes())
def test_every_dominated_point_has_a_witness_of_the_first_front(case):
    values, axes = case
    found = rank(values, axes)
    for n, by in enumerate(found.dominators_N):
        if found.ranks_N[n] == 0:
            assert by == -1
        else:
            assert found.ranks_N[by] == 0
            assert dominates(values[by], values[n], axes)


def test_equal_points_do_not_dominate_each_other():
    axes = [Axis("score", "maximise"), Axis("latency_ms", "minimise")]
    found = rank(np.array([[0.5, 10.0], [0.5, 10.0], [0.5, 11.0], [0.4, 9.0]]), axes)
    assert found.ranks_N.tolist() == [0, 0, 1, 0]
    assert found.dominators_N.tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize(
    ("values", "axes", "message"),
    [
        (np.zeros((2, 3)), [Axis("a", "maximise")], r"shape \(2, 3\) for 1 axes"),
        (np.zeros((0, 1)), [Axis("a", "maximise")], "at least one point"),
        (np.zeros((2, 0)), [], "at least one point and one axis"),
        (np.array([[0.0, np.nan]]), [Axis("a", "maximise"), Axis("b", "minimise")], "no finite value on b"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, axes, message):
    with pytest.raises(InputError, match=message):
        rank(values, axes)
