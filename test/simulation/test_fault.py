"""Who is to blame for a contact."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.core.errors import InputError
from e2e_perception.simulation.fault import Fault, is_at_fault


@dataclass(frozen=True)
class Touch:
    """The robot drives along x at 8 m/s; a car at 12 m/s overlaps its tail by 0.3 m."""

    speed: float = 8.0
    acceleration: float = 0.0
    lateral_speed: float = 0.0
    yaw_rate: float = 0.0
    other_pose: tuple[float, float, float] = (-2.8, 0.2, 0.0)
    other_velocity: tuple[float, float] = (12.0, 0.0)
    heading: float = 0.0  # the whole scene is turned by it

    def judge(self) -> Fault:
        c, s = np.cos(self.heading), np.sin(self.heading)
        turn = np.array([[c, -s], [s, c]])
        return is_at_fault(
            np.array([0.0, 0.0, self.heading]),
            ego_size=(4.6, 1.9, 1.4),
            speed=self.speed,
            acceleration=self.acceleration,
            yaw_rate=self.yaw_rate,
            lateral_speed=self.lateral_speed,
            other_pose_3=np.array([*(turn @ self.other_pose[:2]), self.other_pose[2] + self.heading]),
            other_velocity_2=turn @ self.other_velocity,
            other_size=(4.4, 1.8),
        )


REAR_END = Touch()


def test_being_hit_from_behind_while_keeping_the_lane_is_not_the_robots_fault():
    fault = REAR_END.judge()
    assert not fault.at_fault
    assert fault.closing_speed == pytest.approx(4.0)
    assert "from behind" in fault.reason


@pytest.mark.parametrize(
    ("touch", "reason"),
    [
        (replace(REAR_END, acceleration=-4.1), "braked at 4.1"),
        (replace(REAR_END, lateral_speed=-0.5), "sideways at 0.5"),
        (replace(REAR_END, other_velocity=(8.0, 0.0)), "not faster"),
        (replace(REAR_END, other_pose=(5.6, 0.0, 0.0), other_velocity=(2.0, 0.0)), "front half"),
        (replace(REAR_END, other_pose=(2.5, 1.7, 0.0)), "front half"),
        (replace(REAR_END, other_pose=(-1.5, 2.8, -1.57), other_velocity=(0.0, -6.0)), "not faster"),
        (replace(REAR_END, speed=-2.0, other_velocity=(0.0, 0.0)), "backward"),
    ],
)
def test_the_robot_is_at_fault_where_it_could_have_driven_otherwise(touch, reason):
    fault = touch.judge()
    assert fault.at_fault
    assert reason in fault.reason


@pytest.mark.parametrize("pose", [(5.6, 0.0, 3.14), (1.4, 1.7, 1.57), (-2.8, 0.0, 0.0)])
def test_a_robot_that_stands_is_never_at_fault_wherever_it_is_hit(pose):
    fault = replace(REAR_END, speed=0.09, acceleration=-6.0, other_pose=pose).judge()
    assert not fault.at_fault
    assert "stood still" in fault.reason


def test_just_at_its_limits_the_robot_is_still_excused():
    assert not replace(REAR_END, acceleration=-4.0, lateral_speed=0.3).judge().at_fault
    assert replace(REAR_END, speed=0.1, acceleration=-4.001).judge().at_fault


def test_boxes_that_nearly_touch_are_judged_by_the_nearest_side():
    assert not replace(REAR_END, other_pose=(-3.2, 0.0, 0.0)).judge().at_fault
    assert replace(REAR_END, other_pose=(6.0, 0.0, 0.0)).judge().at_fault


def test_the_closing_speed_knows_that_the_centre_of_a_turning_robot_moves_sideways():
    fault = replace(REAR_END, speed=0.0, yaw_rate=0.5, other_velocity=(3.0, 0.0)).judge()
    assert fault.closing_speed == pytest.approx(np.hypot(3.0, 0.5 * 1.4))


@given(
    heading=st.floats(-7.0, 7.0),
    speed=st.floats(-3.0, 15.0),
    acceleration=st.floats(-8.0, 3.0),
    along=st.floats(-3.0, 5.8),
    left=st.floats(-1.8, 1.8),
    velocity=st.tuples(st.floats(-15.0, 15.0), st.floats(-5.0, 5.0)),
)
def test_the_verdict_does_not_depend_on_where_the_scene_lies(
    heading, speed, acceleration, along, left, velocity
):
    here = Touch(
        speed, acceleration, other_pose=(round(along, 3), round(left, 3), 0.2), other_velocity=velocity
    )
    there = replace(here, heading=heading)
    assert there.judge().closing_speed == pytest.approx(here.judge().closing_speed, abs=1e-9)
    # At equal speeds, or touched exactly at the middle, rounding decides.
    if abs(velocity[0] - speed) > 1e-6:
        assert there.judge().at_fault == here.judge().at_fault


def test_a_contact_with_somebody_who_is_nowhere_is_refused():
    with pytest.raises(InputError, match="expected finite numbers"):
        replace(REAR_END, other_pose=(np.nan, 0.0, 0.0)).judge()
