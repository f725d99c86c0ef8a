from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.trajectories import (
    ROUTE_POINTS,
    ROUTE_SPACING,
    Plan,
    Route,
    base_from_route_coordinates,
    route_input,
)

L_SHAPE = Route(np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 20.0]]))


def arc(radius: float, length: float = 200.0, spacing: float = 0.5) -> Route:
    """A left turn that starts at the origin along x."""
    angle = np.arange(0.0, length, spacing) / radius
    return Route(np.stack([radius * np.sin(angle), radius * (1.0 - np.cos(angle))], axis=1))


class TestRoute:
    @pytest.mark.parametrize(
        ("points", "error"),
        [
            (np.zeros((1, 2)), r"route has shape \(1, 2\), expected \(R >= 2, 2\)"),
            (np.zeros((4, 3)), r"route has shape \(4, 3\)"),
            (np.zeros((4, 2)), "route has no length: all its points coincide"),
            (np.array([[0.0, 0.0], [np.nan, 1.0]]), "route has a non-finite point"),
        ],
    )
    def test_polyline_that_is_no_route_is_refused(self, points: np.ndarray, error: str) -> None:
        with pytest.raises(InputError, match=error):
            Route(points)

    def test_repeated_points_are_dropped(self) -> None:
        route = Route(np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]))
        assert route.points_R2.tolist() == [[0.0, 0.0], [3.0, 4.0]]
        assert route.arc_lengths_R.tolist() == [0.0, 5.0]

    def test_points_and_tangents_at_arc_lengths_and_straight_beyond_the_ends(self) -> None:
        points, tangents = L_SHAPE.at([-2.0, 5.0, 15.0, 33.0])
        np.testing.assert_allclose(points, [[-2, 0], [5, 0], [10, 5], [10, 23]], atol=1e-12)
        np.testing.assert_allclose(tangents, [[1, 0], [1, 0], [0, 1], [0, 1]], atol=1e-12)

    @pytest.mark.parametrize(
        ("point", "expected"),
        [((4, 1), (4, 1)), ((4, -1), (4, -1)), ((8, 12), (22, 2)), ((-3, 2), (-3, 2)), ((9, 25), (35, 1))],
    )
    def test_projection_is_arc_length_and_offset_to_the_left(
        self, point: tuple[float, float], expected: tuple[float, float]
    ) -> None:
        assert L_SHAPE.project(point) == pytest.approx(expected, abs=1e-12)

    @given(st.floats(0.0, 199.0), st.floats(-20.0, 20.0))
    @settings(deadline=None)
    def test_projection_inverts_route_coordinates_on_a_bend(self, s: float, d: float) -> None:
        route = arc(80.0)
        point, tangent = route.at(s)
        normal = np.array([-tangent[1], tangent[0]])
        # Between two stretches the normals differ by 0.5 m / 80 m; that times d is the error allowed.
        assert route.project(point + d * normal) == pytest.approx((s, d), abs=0.0063 * abs(d) + 1e-6)

    def test_route_that_meets_itself_is_followed_near_where_the_robot_was(self) -> None:
        loop = Route(np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 50.0], [50.0, 50.0], [50.0, -50.0]]))
        crossing = (50.0, 0.1)
        assert loop.project(crossing, near_s=45.0)[0] == pytest.approx(50.0, abs=1e-9)
        assert loop.project(crossing, near_s=245.0)[0] == pytest.approx(249.9, abs=1e-9)
        # Nothing within reach: the nearest of all.
        assert loop.project(crossing, near_s=1000.0)[0] == pytest.approx(249.9, abs=1e-9)

    def test_assumed_route_goes_straight_ahead_and_says_so(self) -> None:
        route = Route.straight(SE2(1.0, 2.0, np.pi / 2), length=10.0)
        np.testing.assert_allclose(route.points_R2, [[1, 2], [1, 12]], atol=1e-12)
        assert route.assumed
        assert route.transformed(SE2(0, 0, 1.0)).assumed
        assert not L_SHAPE.assumed


class TestRouteInput:
    def test_robot_on_a_straight_route_sees_it_straight_ahead(self) -> None:
        seen = route_input(Route(np.array([[0.0, 0.0], [500.0, 0.0]])), SE2(100.0, 1.5, 0.1))
        assert seen.features_R4.shape == (ROUTE_POINTS, 4)
        assert seen.features_R4.dtype == np.float32
        assert seen.lateral_offset == pytest.approx(1.5, abs=1e-9)
        assert seen.heading_error == pytest.approx(0.1, abs=1e-9)
        s = ROUTE_SPACING * np.arange(ROUTE_POINTS)
        expected = SE2(0.0, 0.0, -0.1).apply(np.stack([s, np.full_like(s, -1.5)], axis=1))
        np.testing.assert_allclose(seen.features_R4[:, :2], expected, atol=1e-4)
        np.testing.assert_allclose(
            seen.features_R4[:, 2:], np.tile([np.cos(0.1), -np.sin(0.1)], (ROUTE_POINTS, 1)), atol=1e-6
        )

    @given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-3, 3))
    @settings(deadline=None)
    def test_what_is_seen_does_not_depend_on_the_frame_of_the_route(
        self, x: float, y: float, yaw: float
    ) -> None:
        route, pose, moved = arc(60.0), SE2(20.0, 3.0, 0.3), SE2(x, y, yaw)
        there, here = route_input(route.transformed(moved), moved @ pose), route_input(route, pose)
        np.testing.assert_allclose(there.features_R4, here.features_R4, atol=1e-4)
        assert there.lateral_offset == pytest.approx(here.lateral_offset, abs=1e-6)
        assert there.heading_error == pytest.approx(here.heading_error, abs=1e-6)

    def test_heading_error_is_wrapped(self) -> None:
        route = Route(np.array([[0.0, 0.0], [-100.0, -1.0]]))
        assert abs(route_input(route, SE2(0, 0, np.pi)).heading_error) < 0.02


class TestRouteCoordinates:
    @given(st.floats(-10.0, 140.0), st.floats(-5.0, 5.0))
    @settings(deadline=None)
    def test_coordinates_on_a_straight_route_are_exact(self, s: float, d: float) -> None:
        pose = SE2(10.0, 2.0, 0.4)
        seen = route_input(Route(np.array([[0.0, 0.0], [300.0, 0.0]])), pose)
        point = pose.apply(base_from_route_coordinates(np.array([s, d]), seen.features_R4))
        np.testing.assert_allclose(point, [10.0 + s, d], atol=1e-4)

    def test_coordinates_on_a_bend_match_the_route_to_a_few_centimetres(self) -> None:
        route, pose = arc(40.0, length=300.0), SE2(0.0, 0.0, 0.0)
        seen = route_input(route, pose)
        s = np.linspace(0.0, 115.0, 47)
        for d in (-3.0, 0.0, 3.0):
            sd = np.stack([s, np.full_like(s, d)], axis=1)
            angle = s / 40.0
            exact = np.stack([(40.0 - d) * np.sin(angle), 40.0 - (40.0 - d) * np.cos(angle)], axis=1)
            # Chords of 3 m on a radius of 40 m lie up to 3^2 / (8 * 40) = 28 mm inside the bend, and the
            # stretches of the route itself turn by 0.5 / 40 rad at each point.
            np.testing.assert_allclose(
                base_from_route_coordinates(sd, seen.features_R4), exact, atol=0.03 + 0.0125 * abs(d)
            )

    def test_any_leading_shape_is_kept(self) -> None:
        seen = route_input(L_SHAPE, SE2(0, 0, 0))
        assert base_from_route_coordinates(np.zeros((4, 8, 2)), seen.features_R4).shape == (4, 8, 2)


def test_plan_knows_whether_all_its_numbers_are_finite() -> None:
    def plan(speed: float) -> Plan:
        return Plan(
            stamp_ns=0,
            times_P=np.array([0.5]),
            points_P2=np.zeros((1, 2)),
            yaws_P=np.zeros(1),
            speeds_P=np.array([speed]),
            accelerations_P=np.zeros(1),
            candidate=0,
            costs={},
        )

    assert plan(1.0).is_finite
    assert not plan(float("nan")).is_finite
    assert not plan(float("inf")).is_finite
