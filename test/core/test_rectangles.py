"""Distances and times to collision agree with an independent geometry library and with slow simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.core.rectangles import (
    clearance,
    clip_polygon,
    overlap,
    robot_rectangle,
    time_to_collision,
)

coordinates = st.floats(-12.0, 12.0).map(lambda v: round(v, 6))  # GEOS errs where one is 1e-309
angles = st.floats(-7.0, 7.0)
lengths = st.floats(0.3, 12.0)
speeds = st.floats(-15.0, 15.0)
rectangles = st.tuples(coordinates, coordinates, angles, lengths, lengths).map(np.array)
velocities = st.tuples(speeds, speeds).map(np.array)


def polygon(rectangle):
    from shapely.geometry import Polygon

    return Polygon(footprint_corners_N42(rectangle[None, :2], rectangle[None, 3:], rectangle[None, 2])[0])


def moved(rectangle, angle, shift):
    """The same rectangle after turning the whole plane about the origin and shifting it."""
    c, s = np.cos(angle), np.sin(angle)
    x, y, yaw, length, width = rectangle
    return np.array([c * x - s * y + shift[0], s * x + c * y + shift[1], yaw + angle, length, width])


def turned(vector, angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


@given(rectangles, rectangles)
def test_clearance_is_the_distance_between_the_polygons(a, b):
    assert_allclose(clearance(a, b), polygon(a).distance(polygon(b)), atol=1e-8)


@given(rectangles, rectangles)
def test_clearance_is_zero_exactly_when_they_overlap(a, b):
    assert (clearance(a, b) == 0.0) == bool(overlap(a, b))
    # Where the areas are clearly common or clearly apart, so says the library.
    if polygon(a).intersection(polygon(b)).area > 1e-9:
        assert clearance(a, b) == 0.0
    if polygon(a).distance(polygon(b)) > 1e-9:
        assert clearance(a, b) > 0.0


def test_two_that_cross_without_a_corner_inside_overlap():
    assert clearance(np.array([0.0, 0.0, 0.0, 10.0, 1.0]), np.array([0.5, 0.2, np.pi / 2, 8.0, 1.0])) == 0.0


@given(rectangles, velocities, rectangles, velocities)
def test_at_the_time_to_collision_they_touch_and_before_it_they_do_not(a, va, b, vb):
    t = float(time_to_collision(a, va, b, vb, horizon=5.0))

    def gap(time):
        return float(clearance(_after(a, va, time), _after(b, vb, time)))

    if np.isfinite(t):
        assert gap(t) < 1e-6
    for before in np.linspace(0.0, min(t, 5.0), 25, endpoint=False):
        assert gap(before) > 0.0 or t - before < 1e-6


def _after(rectangle, velocity, time):
    return np.concatenate([rectangle[:2] + time * velocity, rectangle[2:]])


@given(rectangles, velocities, rectangles, velocities, angles, coordinates, coordinates)
def test_time_to_collision_does_not_change_when_everything_is_moved_alike(a, va, b, vb, angle, x, y):
    before = time_to_collision(a, va, b, vb, horizon=50.0)
    after = time_to_collision(
        moved(a, angle, (x, y)),
        turned(va, angle),
        moved(b, angle, (x, y)),
        turned(vb, angle),
        horizon=50.0,
    )
    assume(not _grazing(a, va, b, vb))
    assert_allclose(after, before, atol=1e-6)


@given(rectangles, velocities, rectangles, velocities, st.floats(0.1, 10.0))
def test_time_to_collision_scales_with_time(a, va, b, vb, factor):
    assume(not _grazing(a, va, b, vb))
    before = time_to_collision(a, va, b, vb, horizon=50.0)
    after = time_to_collision(a, factor * va, b, factor * vb, horizon=50.0 / factor)
    assert_allclose(after * factor, before, rtol=1e-9)


@given(rectangles, velocities, rectangles, velocities)
def test_time_to_collision_does_not_depend_on_who_is_named_first(a, va, b, vb):
    assume(not _grazing(a, va, b, vb))
    assert_allclose(
        time_to_collision(a, va, b, vb, horizon=5.0),
        time_to_collision(b, vb, a, va, horizon=5.0),
        rtol=1e-9,
        atol=1e-9,
    )


def _grazing(a, va, b, vb):
    """Whether a hair's breadth decides if, or up to the horizon when, they meet."""
    slow, fat, thin = np.hypot(*(vb - va)) < 1e-3, b.copy(), b.copy()
    fat[3:] += 1e-4
    thin[3:] -= 1e-4
    outer = time_to_collision(a, va, fat, vb, horizon=50.0)
    inner = time_to_collision(a, va, thin, vb, horizon=50.0)
    near_horizon = any(np.isfinite(t) and min(abs(t - 50.0), abs(t - 5.0)) < 0.5 for t in (outer, inner))
    return slow or np.isfinite(outer) != np.isfinite(inner) or near_horizon


def test_a_car_closing_from_behind_needs_the_gap_over_the_speed_difference():
    ahead, behind = np.array([20.0, 0.0, 0.0, 4.0, 2.0]), np.array([0.0, 0.5, 0.0, 4.0, 2.0])
    fast, slow = np.array([10.0, 0.0]), np.array([2.0, 0.0])
    assert time_to_collision(behind, fast, ahead, slow, horizon=5.0) == pytest.approx(2.0)
    assert time_to_collision(behind, slow, ahead, fast, horizon=5.0) == np.inf
    assert time_to_collision(behind, fast, ahead, slow, horizon=1.9) == np.inf


def test_two_at_rest_collide_now_or_never():
    still = np.zeros(2)
    here, there = np.array([0.0, 0.0, 0.3, 4.0, 2.0]), np.array([9.0, 0.0, 0.0, 4.0, 2.0])
    assert time_to_collision(here, still, here, still, horizon=5.0) == 0.0
    assert time_to_collision(here, still, there, still, horizon=5.0) == np.inf


def test_many_at_once_are_as_one_by_one():
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0.5, 9.0, (7, 1, 5)), rng.uniform(0.5, 9.0, (7, 4, 5))
    va, vb = rng.normal(0.0, 5.0, (7, 1, 2)), rng.normal(0.0, 5.0, (7, 4, 2))
    many = time_to_collision(a, va, b, vb, horizon=5.0), clearance(a, b)
    for i, j in np.ndindex(7, 4):
        one = time_to_collision(a[i, 0], va[i, 0], b[i, j], vb[i, j], horizon=5.0)
        assert_allclose((many[0][i, j], many[1][i, j]), (one, clearance(a[i, 0], b[i, j])))


def test_the_robots_centre_lies_ahead_of_its_base_link():
    assert_allclose(
        robot_rectangle(np.array([1.0, 2.0, np.pi / 2]), (4.6, 1.9, 1.4)), [1, 3.4, np.pi / 2, 4.6, 1.9]
    )


@given(rectangles, coordinates, coordinates, lengths, lengths)
def test_a_clipped_polygon_is_the_intersection_with_the_box(rectangle, x, y, width, height):
    from shapely.geometry import Polygon, box

    points = footprint_corners_N42(rectangle[None, :2], rectangle[None, 3:], rectangle[None, 2])[0]
    low, high = np.array([x, y]), np.array([x + width, y + height])
    clipped = clip_polygon(points, low, high)
    area = Polygon(clipped).area if len(clipped) >= 3 else 0.0
    assert area == pytest.approx(polygon(rectangle).intersection(box(*low, *high)).area, abs=1e-7)
    assert (clipped >= low - 1e-9).all()
    assert (clipped <= high + 1e-9).all()
