from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.frames import (
    BODY_FROM_OPTICAL,
    SE2,
    SE3,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_rpy,
    rotation_from_yaw,
    wrap_angle,
)

angles = st.floats(-np.pi, np.pi)
metres = st.floats(-1e3, 1e3)
fractions = st.floats(0.0, 1.0)


@st.composite
def se3s(draw: st.DrawFn) -> SE3:
    return SE3.from_xyz_rpy([draw(metres) for _ in range(3)], [draw(angles) for _ in range(3)])


@st.composite
def se2s(draw: st.DrawFn) -> SE2:
    return SE2(draw(metres), draw(metres), draw(angles))


def assert_same(a: SE3, b: SE3, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(a.rotation, b.rotation, atol=atol)
    np.testing.assert_allclose(a.translation, b.translation, atol=max(atol, 1e-9) * 1e3)


@given(st.floats(-1e4, 1e4))
@settings(deadline=None)
def test_wrapped_angle_is_in_range_and_points_the_same_way(angle: float) -> None:
    wrapped = float(wrap_angle(angle))
    assert -np.pi <= wrapped <= np.pi
    np.testing.assert_allclose([np.cos(wrapped), np.sin(wrapped)], [np.cos(angle), np.sin(angle)], atol=1e-9)


def test_wrap_angle_keeps_shape_and_maps_pi_to_minus_pi() -> None:
    np.testing.assert_allclose(
        wrap_angle([[np.pi, 3.0], [-np.pi, 4.0]]), [[-np.pi, 3.0], [-np.pi, 4.0 - 2 * np.pi]]
    )


def test_yaw_is_counter_clockwise_and_rpy_turns_about_fixed_axes() -> None:
    np.testing.assert_allclose(rotation_from_yaw(np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    # Positive pitch points a forward axis down (z up); roll is applied first.
    np.testing.assert_allclose(rotation_from_rpy(0, np.pi / 2, 0) @ [1, 0, 0], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(rotation_from_rpy(np.pi / 2, 0, np.pi / 2) @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_optical_axes_map_to_body_axes() -> None:
    np.testing.assert_allclose(BODY_FROM_OPTICAL @ [0, 0, 1], [1, 0, 0])  # forward
    np.testing.assert_allclose(BODY_FROM_OPTICAL @ [1, 0, 0], [0, -1, 0])  # right
    np.testing.assert_allclose(BODY_FROM_OPTICAL @ [0, 1, 0], [0, 0, -1])  # down
    assert np.linalg.det(BODY_FROM_OPTICAL) == pytest.approx(1.0, abs=1e-12)


@given(angles, angles, angles)
@settings(deadline=None)
def test_quaternion_round_trip(roll: float, pitch: float, yaw: float) -> None:
    rotation = rotation_from_rpy(roll, pitch, yaw)
    q = quaternion_from_rotation(rotation)
    assert q[3] >= 0.0
    assert np.linalg.norm(q) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(rotation_from_quaternion(*q), rotation, atol=1e-9)


@pytest.mark.parametrize("axis", range(3))
def test_half_turn_survives_the_quaternion(axis: int) -> None:
    rotation = -np.eye(3)
    rotation[axis, axis] = 1.0
    np.testing.assert_allclose(
        rotation_from_quaternion(*quaternion_from_rotation(rotation)), rotation, atol=1e-12
    )


@pytest.mark.parametrize("q", [(0, 0, 0, 0), (1, 1, 1, 1), (np.nan, 0, 0, 1)])
def test_quaternion_that_is_no_rotation_is_refused(q: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"has norm .*, expected 1; fill in the orientation"):
        rotation_from_quaternion(*q)


def test_slightly_denormalised_quaternion_is_normalised() -> None:
    np.testing.assert_allclose(rotation_from_quaternion(0, 0, 0, 1.05), np.eye(3), atol=1e-12)


@given(se3s(), se3s(), se3s())
@settings(deadline=None)
def test_se3_is_a_group(a: SE3, b: SE3, c: SE3) -> None:
    assert_same(a @ a.inverse(), SE3.identity())
    assert_same((a @ b) @ c, a @ (b @ c))
    assert_same(SE3.from_matrix(a.matrix @ b.matrix), a @ b)
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 0.0, 0.5]])
    np.testing.assert_allclose((a @ b).apply(points), a.apply(b.apply(points)), atol=1e-8)


@given(se3s(), se3s(), fractions)
@settings(deadline=None)
def test_se3_interpolation_hits_its_ends_and_stays_rigid(a: SE3, b: SE3, fraction: float) -> None:
    assert_same(a.interpolate(b, 0.0), a)
    assert_same(a.interpolate(b, 1.0), b, atol=1e-6)
    middle = a.interpolate(b, fraction).rotation
    np.testing.assert_allclose(middle @ middle.T, np.eye(3), atol=1e-9)


def test_se3_interpolation_turns_at_constant_rate_the_short_way() -> None:
    a, b = SE3.planar(0, 0, 3.0), SE3.planar(4, 0, -3.0)
    quarter = a.interpolate(b, 0.25)
    assert quarter.yaw == pytest.approx(3.0 + 0.25 * (2 * np.pi - 6.0), abs=1e-9)
    assert quarter.translation[0] == pytest.approx(1.0, abs=1e-12)


@given(se2s(), se2s())
@settings(deadline=None)
def test_se2_agrees_with_planar_se3(a: SE2, b: SE2) -> None:
    planar = SE3.planar(a.x, a.y, a.yaw) @ SE3.planar(b.x, b.y, b.yaw)
    both = a @ b
    np.testing.assert_allclose([both.x, both.y], planar.translation[:2], atol=1e-9)
    np.testing.assert_allclose(
        [np.cos(both.yaw), np.sin(both.yaw)], [np.cos(planar.yaw), np.sin(planar.yaw)], atol=1e-9
    )
    unit = a @ a.inverse()
    np.testing.assert_allclose([unit.x, unit.y, np.sin(unit.yaw)], 0.0, atol=1e-9)
    points = np.array([[1.0, 2.0], [3.0, -4.0]])
    np.testing.assert_allclose(both.apply(points), a.apply(b.apply(points)), atol=1e-9)
    np.testing.assert_allclose(a.rotate(points), a.apply(points) - np.array([a.x, a.y]), atol=1e-9)


def test_planar_part_keeps_position_and_heading_of_a_tilted_pose() -> None:
    part = SE3.from_xyz_rpy([1, 2, 3], [0.1, 0.2, 0.7]).planar_part()
    assert (part.x, part.y) == (1.0, 2.0)
    assert part.yaw == pytest.approx(0.7, abs=1e-12)


def test_se2_interpolation_turns_the_short_way_round() -> None:
    middle = SE2(0, 0, 3.0).interpolate(SE2(2, 4, -3.0), 0.5)
    assert (middle.x, middle.y) == (1.0, 2.0)
    assert abs(middle.yaw) == pytest.approx(np.pi, abs=1e-9)
