"""What a robot sends, as ROS messages: clouds, pictures, calibration, odometry, a route, transforms.

The counterpart of `message_inputs.py`, for bags and for the simulator. Messages are built through a
`MessageFactory`, so the same code serves rclpy and rosbags.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3, quaternion_from_rotation
from e2e_perception.core.messages import MessageFactory, header_message
from e2e_perception.core.rig import Camera
from e2e_perception.core.samples import PointsSample
from e2e_perception.core.trajectories import Route

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
POINTS_TYPE = "sensor_msgs/msg/PointCloud2"
ODOMETRY_TYPE = "nav_msgs/msg/Odometry"
PATH_TYPE = "nav_msgs/msg/Path"
TF_TYPE = "tf2_msgs/msg/TFMessage"
ODOM_FRAME = "odom"
_FLOAT32 = 7  # sensor_msgs/PointField


def image_message(make: MessageFactory, rgb_HW3: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/Image, `rgb8` without padding."""
    height, width, _ = rgb_HW3.shape
    return make(
        IMAGE_TYPE,
        header=header_message(make, stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        step=3 * width,
        data=make.uint8s(rgb_HW3.tobytes()),
    )


def compressed_image_message(make: MessageFactory, jpeg: bytes, stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/CompressedImage of a picture that is JPEG already."""
    return make(
        COMPRESSED_IMAGE_TYPE,
        header=header_message(make, stamp_ns, frame_id),
        format="jpeg",
        data=make.uint8s(jpeg),
    )


def points_message(make: MessageFactory, points: PointsSample, stamp_ns: int, frame_id: str) -> Any:
    """sensor_msgs/PointCloud2 with one float32 field per column, unorganised."""
    names = list(points.fields)
    table = np.stack([np.asarray(points.fields[name], "<f4") for name in names], axis=1)
    step = 4 * len(names)
    return make(
        POINTS_TYPE,
        header=header_message(make, stamp_ns, frame_id),
        height=1,
        width=len(table),
        fields=[
            make("sensor_msgs/msg/PointField", name=name, offset=4 * i, datatype=_FLOAT32, count=1)
            for i, name in enumerate(names)
        ],
        is_bigendian=False,
        point_step=step,
        row_step=step * len(table),
        data=make.uint8s(table.tobytes()),
        is_dense=True,
    )


def camera_info_message(make: MessageFactory, camera: Camera, stamp_ns: int) -> Any:
    """sensor_msgs/CameraInfo of a rectified camera."""
    projection = np.concatenate([camera.intrinsics, np.zeros((3, 1))], axis=1)
    return make(
        CAMERA_INFO_TYPE,
        header=header_message(make, stamp_ns, camera.frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=make.floats64(np.zeros(5)),
        k=camera.intrinsics.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=projection.reshape(-1),
    )


def odometry_message(make: MessageFactory, state: EgoState, base_frame: str) -> Any:
    """nav_msgs/Odometry: pose in `odom`, twist in the base frame, as ROS has it."""
    vx, vy, vz = state.velocity.tolist()
    pose = make("geometry_msgs/msg/Pose", **_pose_fields(make, state.odom_from_base))
    twist = make(
        "geometry_msgs/msg/Twist",
        linear=make("geometry_msgs/msg/Vector3", x=vx, y=vy, z=vz),
        angular=make("geometry_msgs/msg/Vector3", z=float(state.yaw_rate)),
    )
    return make(
        ODOMETRY_TYPE,
        header=header_message(make, state.stamp_ns, ODOM_FRAME),
        child_frame_id=base_frame,
        pose=make("geometry_msgs/msg/PoseWithCovariance", pose=pose),
        twist=make("geometry_msgs/msg/TwistWithCovariance", twist=twist),
    )


def route_message(make: MessageFactory, route: Route, stamp_ns: int) -> Any:
    """nav_msgs/Path of a route in the odometry frame."""
    header = header_message(make, stamp_ns, ODOM_FRAME)
    points, tangents = route.at(route.arc_lengths_R)
    yaws = np.arctan2(tangents[:, 1], tangents[:, 0]).tolist()
    poses = [
        make("geometry_msgs/msg/Pose", **_pose_fields(make, SE3.planar(x, y, yaw)))
        for (x, y), yaw in zip(points.tolist(), yaws, strict=True)
    ]
    return make(
        PATH_TYPE,
        header=header,
        poses=[make("geometry_msgs/msg/PoseStamped", header=header, pose=pose) for pose in poses],
    )


def transform_message(
    make: MessageFactory, stamp_ns: int, parent: str, child: str, parent_from_child: SE3
) -> Any:
    """geometry_msgs/TransformStamped."""
    x, y, z = parent_from_child.translation.tolist()
    qx, qy, qz, qw = quaternion_from_rotation(parent_from_child.rotation)
    return make(
        "geometry_msgs/msg/TransformStamped",
        header=header_message(make, stamp_ns, parent),
        child_frame_id=child,
        transform=make(
            "geometry_msgs/msg/Transform",
            translation=make("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
            rotation=make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
        ),
    )


def _pose_fields(make: MessageFactory, pose: SE3) -> dict[str, Any]:
    x, y, z = pose.translation.tolist()
    qx, qy, qz, qw = quaternion_from_rotation(pose.rotation)
    return {
        "position": make("geometry_msgs/msg/Point", x=x, y=y, z=z),
        "orientation": make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    }
