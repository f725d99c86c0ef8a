"""What the stack takes in besides sensor data, from ROS messages: odometry, routes, static transforms.

Messages are read by their field names, so rclpy's and rosbags' are both welcome. What cannot be used is an
`InputError` that says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.frames import BODY_FROM_OPTICAL, SE3, rotation_from_quaternion
from e2e_perception.core.rig import Camera, Mount, Rig
from e2e_perception.core.trajectories import Route

Transforms = Mapping[str, tuple[str, SE3]]  # by child frame: parent frame and parent_from_child


def stamp_ns(message: Any) -> int:
    """Stamp of a message's header [ns]."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _se3(translation: Any, rotation: Any, what: str) -> SE3:
    numbers = [translation.x, translation.y, translation.z, rotation.x, rotation.y, rotation.z, rotation.w]
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} has a non-finite pose")
    try:
        turn = rotation_from_quaternion(rotation.x, rotation.y, rotation.z, rotation.w)
    except ConfigError as error:
        raise InputError(f"{what}: {error}") from error
    return SE3(turn, np.array(numbers[:3], np.float64))


def ego_state_from_odometry(message: Any, base_frame: str) -> EgoState:
    """Pose and twist of nav_msgs/Odometry.

    Args:
        message: Its pose is that of `child_frame_id` in `header.frame_id`, its twist is in `child_frame_id`.
        base_frame: The rig's base frame, which `child_frame_id` has to be.
    Raises:
        InputError: If it describes another frame, or is not finite.
    """
    child = message.child_frame_id.lstrip("/")
    if child != base_frame:
        raise InputError(
            f"odometry describes frame {child!r}, the rig's base frame is {base_frame!r}; set child_frame_id "
            "in the odometry's publisher, or base_frame in the rig"
        )
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    velocity = np.array([linear.x, linear.y, linear.z], np.float64)
    if not (np.isfinite(velocity).all() and np.isfinite(angular.z)):
        raise InputError("odometry has a non-finite twist")
    return EgoState(
        stamp_ns=stamp_ns(message),
        odom_from_base=_se3(message.pose.pose.position, message.pose.pose.orientation, "odometry"),
        velocity=velocity,
        yaw_rate=float(angular.z),
    )


def route_from_path(message: Any) -> Route | None:
    """The centre line of nav_msgs/Path, in its own frame; None for an empty path: follow no route.

    Raises:
        InputError: If it has a single point, no length, or a point that is not finite.
    """
    if not len(message.poses):
        return None
    points = [(pose.pose.position.x, pose.pose.position.y) for pose in message.poses]
    return Route(np.array(points, np.float64))


def transforms_from_tf(message: Any) -> dict[str, tuple[str, SE3]]:
    """Transforms of tf2_msgs/TFMessage, by child frame: parent frame and parent_from_child.

    Raises:
        InputError: If a transform is not finite or not a rotation.
    """
    return {
        item.child_frame_id.lstrip("/"): (
            item.header.frame_id.lstrip("/"),
            _se3(
                item.transform.translation,
                item.transform.rotation,
                f"transform {item.header.frame_id} -> {item.child_frame_id}",
            ),
        )
        for item in message.transforms
    }


def base_from_frame(transforms: Transforms, frame: str, base_frame: str) -> SE3 | None:
    """Pose of a frame in the base frame; None if the transforms do not connect the two.

    Raises:
        InputError: If the transforms form a loop.
    """
    to_root: dict[str, SE3] = {}
    current, current_from_frame = frame, SE3.identity()
    while True:
        to_root[current] = current_from_frame
        if current == base_frame:
            return current_from_frame
        if current not in transforms:
            break
        parent, parent_from_child = transforms[current]
        current_from_frame = parent_from_child @ current_from_frame
        current = parent
        if current in to_root:
            raise InputError(f"static transforms form a loop through frame {current!r}")
    # The base frame may itself be a child, of base_footprint for example.
    current, current_from_base = base_frame, SE3.identity()
    seen = {current}
    while current in transforms:
        parent, parent_from_child = transforms[current]
        current_from_base = parent_from_child @ current_from_base
        current = parent
        if current in to_root:
            return current_from_base.inverse() @ to_root[current]
        if current in seen:
            raise InputError(f"static transforms form a loop through frame {current!r}")
        seen.add(current)
    return None


def rig_with_transforms(rig: Rig, transforms: Transforms) -> Rig:
    """The rig with the sensor poses that the transforms know; sensors they do not connect keep the rig's.

    Raises:
        InputError: If the transforms form a loop.
    """
    replacements = {}
    for sensor in rig.sensors:
        base_from_sensor = base_from_frame(transforms, sensor.frame_id, rig.base_frame)
        if base_from_sensor is None:
            continue
        rotation = base_from_sensor.rotation
        if isinstance(sensor, Camera):
            rotation = rotation @ BODY_FROM_OPTICAL.T
        mount = Mount(xyz=_triple(base_from_sensor.translation), rpy_deg=_rpy_deg(rotation))
        replacements[sensor.name] = sensor.model_copy(update={"mount": mount})
    return rig.with_sensors(replacements)


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _rpy_deg(rotation: Any) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch, yaw [deg]; straight up or down, roll is taken as zero."""
    pitch = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    if abs(rotation[2, 0]) > 1.0 - 1e-12:
        roll, yaw = 0.0, np.arctan2(-rotation[0, 1], rotation[1, 1])
    else:
        roll = np.arctan2(rotation[2, 1], rotation[2, 2])
        yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    return _triple(np.rad2deg([roll, pitch, yaw]))
