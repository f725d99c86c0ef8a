from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoMotionLimits, EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3

MS = 1_000_000


def on_arc(t_ms: float, speed: float = 10.0, yaw_rate: float = 0.2) -> EgoState:
    """Constant speed and turn rate from the origin at t = 0."""
    t = t_ms * 1e-3
    yaw = yaw_rate * t
    if yaw_rate:
        x, y = speed / yaw_rate * np.sin(yaw), speed / yaw_rate * (1.0 - np.cos(yaw))
    else:
        x, y = speed * t, 0.0
    return EgoState(round(t_ms * MS), SE3.planar(x, y, yaw), np.array([speed, 0.0, 0.0]), yaw_rate)


def filled(num: int = 11, period_ms: float = 100.0, **arc: float) -> EgoMotionBuffer:
    buffer = EgoMotionBuffer()
    for k in range(num):
        assert buffer.add(on_arc(k * period_ms, **arc))
    return buffer


def assert_pose(got: EgoState | None, expected: EgoState, atol: float) -> None:
    assert got is not None
    assert got.stamp_ns == expected.stamp_ns
    np.testing.assert_allclose(got.odom_from_base.translation, expected.odom_from_base.translation, atol=atol)
    assert got.odom_from_base.yaw == pytest.approx(expected.odom_from_base.yaw, abs=1e-9)


def test_empty_buffer_knows_nothing() -> None:
    buffer = EgoMotionBuffer()
    assert buffer.latest is None
    assert buffer.at(0) is None
    assert buffer.base_from_base(0, 0) is None
    assert len(buffer) == 0


@given(st.floats(0.0, 1000.0))
@settings(deadline=None)
def test_interpolation_follows_an_arc_to_a_few_millimetres(t_ms: float) -> None:
    # The chord of 1 m on a radius of 50 m lies 1 / (8 * 50) = 2.5 mm inside the arc.
    assert_pose(filled().at(round(t_ms * MS)), on_arc(round(t_ms * MS) / MS), atol=3e-3)


def test_sample_is_returned_as_it_came() -> None:
    buffer = filled()
    assert buffer.at(300 * MS) is not None
    assert_pose(buffer.at(300 * MS), on_arc(300), atol=0.0)


def test_twist_is_interpolated_linearly() -> None:
    buffer = EgoMotionBuffer()
    buffer.add(on_arc(0, speed=10.0, yaw_rate=0.0))
    buffer.add(replace(on_arc(100, speed=10.0, yaw_rate=0.0), velocity=np.array([14.0, 0, 0]), yaw_rate=0.4))
    state = buffer.at(25 * MS)
    assert state is not None
    assert state.speed == pytest.approx(11.0, abs=1e-9)
    assert state.yaw_rate == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("yaw_rate", [0.0, 0.2, -1.5])
def test_extrapolation_follows_constant_twist_exactly(yaw_rate: float) -> None:
    assert_pose(filled(yaw_rate=yaw_rate).at(1140 * MS), on_arc(1140, yaw_rate=yaw_rate), atol=1e-9)


def test_outside_what_odometry_covers_there_is_no_answer() -> None:
    buffer = filled()
    assert buffer.at(-1) is None
    assert buffer.at(1150 * MS) is not None
    assert buffer.at(1150 * MS + 1) is None
    assert buffer.base_from_base(1000 * MS, 2000 * MS) is None


def test_gap_is_not_interpolated_across() -> None:
    buffer = EgoMotionBuffer(EgoMotionLimits(max_gap_ns=300 * MS))
    for t_ms in (0, 300, 601):
        buffer.add(on_arc(t_ms))
    assert buffer.at(150 * MS) is not None
    assert buffer.at(450 * MS) is None
    assert buffer.at(601 * MS) is not None


def test_jump_starts_a_new_epoch_and_forgets_the_old_poses() -> None:
    buffer = filled(num=5)
    jumped = replace(on_arc(500), odom_from_base=SE3.planar(100.0, 0.0, 0.0))
    assert buffer.add(jumped) is False
    assert (buffer.epoch, buffer.num_jumps, len(buffer)) == (1, 1, 1)
    assert buffer.at(400 * MS) is None
    assert buffer.add(replace(on_arc(600), odom_from_base=SE3.planar(101.0, 0.0, 0.0))) is True


def test_clock_set_back_starts_a_new_epoch_and_says_so() -> None:
    buffer = EgoMotionBuffer()
    buffer.add(on_arc(60_000, yaw_rate=0.0))
    assert buffer.add(on_arc(0)) is False
    assert (buffer.epoch, buffer.num_jumps, len(buffer)) == (1, 0, 1)
    assert buffer.latest is not None
    assert buffer.latest.stamp_ns == 0


@pytest.mark.parametrize("t_ms", [1000, 950, 100])
def test_duplicate_and_late_samples_are_dropped_and_counted(t_ms: float) -> None:
    buffer = filled()
    assert buffer.add(replace(on_arc(t_ms), odom_from_base=SE3.planar(1e3, 0, 0))) is True
    assert (buffer.num_rejected, buffer.epoch, len(buffer)) == (1, 0, 11)


@pytest.mark.parametrize(
    "broken",
    [
        {"yaw_rate": float("nan")},
        {"velocity": np.array([np.inf, 0, 0])},
        {"odom_from_base": SE3(np.eye(3), np.array([np.nan, 0, 0]))},
        {"odom_from_base": SE3(np.full((3, 3), np.nan), np.zeros(3))},
    ],
)
def test_sample_that_is_not_finite_is_refused_and_leaves_the_history(broken: dict[str, object]) -> None:
    buffer = filled()
    with pytest.raises(InputError, match="non-finite pose or twist; sample dropped"):
        buffer.add(replace(on_arc(1100), **broken))
    assert (buffer.num_rejected, len(buffer), buffer.epoch) == (1, 11, 0)


@given(st.lists(st.integers(-2000, 4000), max_size=120), st.integers(1, 2000))
@settings(deadline=None)
def test_history_is_bounded_and_in_order_whatever_comes(steps_ms: list[int], horizon_ms: int) -> None:
    buffer = EgoMotionBuffer(EgoMotionLimits(horizon_ns=horizon_ms * MS))
    t_ms = 0
    for step_ms in steps_ms:
        t_ms += step_ms
        epoch = buffer.epoch
        continuous = buffer.add(on_arc(t_ms, yaw_rate=0.0))
        assert continuous == (buffer.epoch == epoch)
        stamps = buffer._stamps
        assert stamps == sorted(set(stamps))
        assert stamps[-1] - stamps[0] <= horizon_ms * MS


def test_points_move_between_the_base_frames_of_two_stamps() -> None:
    buffer = filled(yaw_rate=0.0)  # 1 m per sample, straight
    target_from_source = buffer.base_from_base(500 * MS, 200 * MS)
    assert target_from_source is not None
    np.testing.assert_allclose(target_from_source.apply([[10.0, 2.0, 0.5]]), [[7.0, 2.0, 0.5]], atol=1e-9)


def test_acceleration_is_the_change_of_speed_over_the_window() -> None:
    buffer = EgoMotionBuffer()
    for k in range(6):
        speed = 10.0 - 0.2 * k
        buffer.add(replace(on_arc(100 * k, yaw_rate=0.0), velocity=np.array([speed, 0.0, 0.0])))
    assert buffer.acceleration(500 * MS) == pytest.approx(-2.0, abs=1e-9)
    assert buffer.acceleration(100 * MS) == 0.0  # not covered


def test_two_older_samples_in_a_row_are_a_clock_set_back() -> None:
    buffer = filled()
    assert buffer.add(on_arc(100)) is True  # one alone is late
    assert buffer.add(on_arc(200)) is False
    assert (len(buffer), buffer.epoch) == (1, 1)


def test_rewinding_forgets_what_is_later() -> None:
    buffer = filled()
    buffer.rewind(450 * MS)
    assert (len(buffer), buffer.epoch) == (5, 1)
    assert buffer.add(on_arc(500)) is True


def test_odometry_at_any_plausible_motion_is_no_jump() -> None:
    for speed in (0.0, 5.0, 40.0):
        for yaw_rate in (-1.5, 0.0, 0.6):
            assert filled(speed=speed, yaw_rate=yaw_rate).num_jumps == 0


def test_clear_forgets_and_starts_a_new_epoch() -> None:
    buffer = filled()
    buffer.clear()
    assert (len(buffer), buffer.latest, buffer.epoch) == (0, None, 1)
