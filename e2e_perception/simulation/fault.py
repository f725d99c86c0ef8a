"""Whose fault a contact was, by a rule that needs nothing but the instant at which two first touch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.rectangles import contact_point

STANDSTILL_SPEED = 0.1  # [m/s] below it the robot stood still
HARD_BRAKING = 4.0  # [m/s^2] harder than this invites being run into
LANE_KEEPING_SPEED = 0.3  # [m/s] sideways; a lane change over 5 s reaches 0.7 on average


class Fault(NamedTuple):
    """A verdict.

    Attributes:
        at_fault: Whether the robot is to blame.
        closing_speed: Of the two against each other [m/s].
        reason: One sentence for people.
    """

    at_fault: bool
    closing_speed: float
    reason: str


def is_at_fault(
    ego_pose_3: NDArray[np.float64],
    *,
    ego_size: tuple[float, float, float],
    speed: float,
    acceleration: float,
    yaw_rate: float,
    lateral_speed: float,
    other_pose_3: NDArray[np.float64],
    other_velocity_2: NDArray[np.float64],
    other_size: tuple[float, float],
) -> Fault:
    """Judge a contact: the robot is at fault unless one of two things holds.

    It stood still (below `STANDSTILL_SPEED`). Or it drove forward and was hit in its rear half by somebody
    moving faster than itself along its heading, while it kept its lane position (sideways at most
    `LANE_KEEPING_SPEED`) and did not brake harder than `HARD_BRAKING`. The rule is hard on the robot on
    purpose: who is hit from the side, or by oncoming traffic, is at fault.

    Args:
        ego_pose_3: x, y [m], yaw [rad] of `base_link` when they touch.
        ego_size: Length, width [m], and how far the centre lies ahead of `base_link` [m].
        speed: Forward, of `base_link` [m/s]; negative in reverse.
        acceleration: Longitudinal [m/s^2], just before the contact.
        yaw_rate: [rad/s]
        lateral_speed: How fast the robot's offset from its route changes [m/s], just before the contact.
        other_pose_3: x, y [m] of the centre, yaw [rad].
        other_velocity_2: [m/s] of the centre, same axes; zeros for still solids.
        other_size: Length, width [m].
    Raises:
        InputError: If a number is not finite.
    """
    ego, other = np.asarray(ego_pose_3, np.float64), np.asarray(other_pose_3, np.float64)
    velocity = np.asarray(other_velocity_2, np.float64)
    scalars = (speed, acceleration, yaw_rate, lateral_speed, *ego_size, *other_size)
    if not np.isfinite(np.concatenate([ego, other, velocity, scalars])).all():
        raise InputError(
            f"contact: robot at {ego}, speed {speed}, other at {other}, velocity {velocity}; "
            "expected finite numbers"
        )
    length, width, ahead = ego_size
    c, s = np.cos(ego[2]), np.sin(ego[2])
    along, left = np.array([c, s]), np.array([-s, c])
    centre = ego[:2] + ahead * along
    closing = float(np.hypot(*(velocity - speed * along - yaw_rate * ahead * left)))

    if abs(speed) < STANDSTILL_SPEED:
        return Fault(False, closing, "The robot stood still.")
    robot = np.array([*centre, ego[2], length, width])
    touched = contact_point(robot, np.array([*other, *other_size]))
    faster = float(velocity @ along)
    if speed < 0.0:
        return Fault(True, closing, "The robot drove backward.")
    if touched[0] >= 0.0:
        return Fault(True, closing, "The robot touched the other with its front half.")
    if faster <= speed:
        return Fault(True, closing, "The other was not faster along the robot's heading.")
    if abs(lateral_speed) > LANE_KEEPING_SPEED:
        return Fault(True, closing, f"The robot moved sideways at {abs(lateral_speed):.1f} m/s.")
    if acceleration < -HARD_BRAKING:
        return Fault(True, closing, f"The robot braked at {-acceleration:.1f} m/s^2.")
    return Fault(False, closing, "The robot kept its lane and was hit from behind by somebody faster.")
