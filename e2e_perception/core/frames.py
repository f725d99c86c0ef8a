"""Rigid transforms in float64, named `a_from_b`: `base_from_camera = base_from_lidar @ lidar_from_camera`.

Frames follow REP-103 and REP-105: `odom`, `base_link` (x forward, y left, z up, origin on the
ground), optical frames (x right, y down, z forward). Yaw is counter-clockwise, in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e2e_perception.core.errors import ConfigError

Array = NDArray[np.float64]

# optical (x right, y down, z forward) seen from a body frame (x forward, y left, z up)
BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def wrap_angle(angle: ArrayLike) -> Array:
    """Wrap angles to [-pi, pi).

    Args:
        angle: Any shape [rad].
    Returns:
        Same shape, float64 [rad].
    """
    return np.asarray((np.asarray(angle, dtype=np.float64) + np.pi) % (2.0 * np.pi) - np.pi)


def rotation_from_yaw(yaw: float) -> Array:
    """Rotation about z by `yaw` [rad]; (3, 3) float64."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_from_rpy(roll: float, pitch: float, yaw: float) -> Array:
    """Rotation from fixed-axis roll, pitch, yaw [rad] (REP-103 order); (3, 3) float64."""
    cr, sr, cp, sp = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    return np.asarray(rotation_from_yaw(yaw) @ about_y @ about_x)


def rotation_from_quaternion(x: float, y: float, z: float, w: float) -> Array:
    """Rotation from a quaternion in ROS order (x, y, z, w).

    Args:
        x, y, z, w: Components; the norm may be off by up to 10 %, it is normalised away.
    Returns:
        (3, 3) float64 rotation.
    Raises:
        ConfigError: If the norm is not near one (an all-zero quaternion is ROS's "never filled in").
    """
    q = np.array([x, y, z, w], dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not 0.9 <= norm <= 1.1:
        raise ConfigError(
            f"quaternion (x={x}, y={y}, z={z}, w={w}) has norm {norm:.3f}, expected 1; "
            "fill in the orientation (identity is w=1)"
        )
    x, y, z, w = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: ArrayLike) -> tuple[float, float, float, float]:
    """Quaternion (x, y, z, w), w >= 0, of a (3, 3) rotation (Shepperd 1978)."""
    r = np.asarray(rotation, dtype=np.float64)
    trace = float(np.trace(r))
    # Four times the square of each component; dividing by the largest keeps the rest well conditioned.
    squares = np.array(
        [
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
            1 + trace,
        ]
    )
    i = int(np.argmax(squares))
    largest = 0.5 * np.sqrt(squares[i])
    k = 0.25 / largest
    if i == 3:
        q = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], 0.0]) * k
        q[3] = largest
    else:
        j, m = (i + 1) % 3, (i + 2) % 3
        q = np.zeros(4)
        q[i] = largest
        q[j] = (r[j, i] + r[i, j]) * k
        q[m] = (r[m, i] + r[i, m]) * k
        q[3] = (r[m, j] - r[j, m]) * k
    if q[3] < 0:
        q = -q
    return float(q[0]), float(q[1]), float(q[2]), float(q[3])


def _log_rotation(rotation: Array) -> Array:
    """Axis times angle [rad] of a rotation, (3,) float64."""
    x, y, z, w = quaternion_from_rotation(rotation)
    vector = np.array([x, y, z])
    sine = float(np.linalg.norm(vector))
    if sine < 1e-12:
        return 2.0 * vector
    return np.asarray(vector / sine * (2.0 * np.arctan2(sine, w)))


def _exp_rotation(rotation_vector: Array) -> Array:
    """Rotation of an axis-times-angle vector (Rodrigues); (3, 3) float64."""
    angle = float(np.linalg.norm(rotation_vector))
    if angle < 1e-12:
        axis_cross = _cross_matrix(rotation_vector)
        return np.eye(3) + axis_cross
    k = _cross_matrix(rotation_vector / angle)
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * (k @ k))


def _cross_matrix(v: Array) -> Array:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


@dataclass(frozen=True)
class SE3:
    """A rigid transform; `a_from_b.apply(points_b)` gives `points_a`.

    Attributes:
        rotation: (3, 3) float64.
        translation: (3,) float64 [m].
    """

    rotation: Array
    translation: Array

    @staticmethod
    def identity() -> SE3:
        """The identity transform."""
        return SE3(np.eye(3), np.zeros(3))

    @staticmethod
    def planar(x: float, y: float, yaw: float) -> SE3:
        """Transform in the ground plane: x, y [m], yaw [rad]."""
        return SE3(rotation_from_yaw(yaw), np.array([x, y, 0.0]))

    @staticmethod
    def from_xyz_rpy(xyz: ArrayLike, rpy: ArrayLike) -> SE3:
        """From translation (3,) [m] and fixed-axis roll, pitch, yaw (3,) [rad]."""
        roll, pitch, yaw = np.asarray(rpy, dtype=np.float64)
        return SE3(rotation_from_rpy(roll, pitch, yaw), np.array(xyz, dtype=np.float64))

    @staticmethod
    def from_matrix(matrix: ArrayLike) -> SE3:
        """From a (4, 4) homogeneous matrix."""
        m = np.asarray(matrix, dtype=np.float64)
        return SE3(m[:3, :3].copy(), m[:3, 3].copy())

    @property
    def matrix(self) -> Array:
        """(4, 4) homogeneous matrix, float64."""
        m: Array = np.eye(4)
        m[:3, :3] = self.rotation
        m[:3, 3] = self.translation
        return m

    @property
    def yaw(self) -> float:
        """Heading of the x axis in the ground plane [rad]."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))

    def __matmul__(self, other: SE3) -> SE3:
        """`a_from_b @ b_from_c` is `a_from_c`."""
        return SE3(self.rotation @ other.rotation, self.rotation @ other.translation + self.translation)

    def inverse(self) -> SE3:
        """`b_from_a` of an `a_from_b`."""
        return SE3(self.rotation.T, -self.rotation.T @ self.translation)

    def apply(self, points_N3: ArrayLike) -> Array:
        """Move points (..., 3) [m] from frame b to frame a; float64, same shape."""
        return np.asarray(np.asarray(points_N3, dtype=np.float64) @ self.rotation.T + self.translation)

    def interpolate(self, other: SE3, fraction: float) -> SE3:
        """Transform a `fraction` of the way to `other`: linear in translation, geodesic in rotation.

        Args:
            other: The transform at fraction 1.
            fraction: 0 gives `self`, 1 gives `other`; values outside extrapolate at constant twist.
        Returns:
            The interpolated transform.
        """
        step = _exp_rotation(fraction * _log_rotation(self.rotation.T @ other.rotation))
        translation = self.translation + fraction * (other.translation - self.translation)
        return SE3(self.rotation @ step, translation)

    def planar_part(self) -> SE2:
        """The (x, y, yaw) part, for bird's-eye-view work."""
        return SE2(float(self.translation[0]), float(self.translation[1]), self.yaw)


@dataclass(frozen=True)
class SE2:
    """A rigid transform of the ground plane: x, y [m], yaw [rad]."""

    x: float
    y: float
    yaw: float

    def __matmul__(self, other: SE2) -> SE2:
        """`a_from_b @ b_from_c` is `a_from_c`."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return SE2(
            float(self.x + c * other.x - s * other.y),
            float(self.y + s * other.x + c * other.y),
            float(wrap_angle(self.yaw + other.yaw)),
        )

    def inverse(self) -> SE2:
        """`b_from_a` of an `a_from_b`."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return SE2(float(-c * self.x - s * self.y), float(s * self.x - c * self.y), float(-self.yaw))

    def apply(self, points_N2: ArrayLike) -> Array:
        """Move points (..., 2) [m] from frame b to frame a; float64, same shape."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        rotation = np.array([[c, -s], [s, c]])
        return np.asarray(np.asarray(points_N2, dtype=np.float64) @ rotation.T + np.array([self.x, self.y]))

    def rotate(self, vectors_N2: ArrayLike) -> Array:
        """Rotate vectors (..., 2), velocities for example, without moving them."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.asarray(np.asarray(vectors_N2, dtype=np.float64) @ np.array([[c, -s], [s, c]]).T)

    def interpolate(self, other: SE2, fraction: float) -> SE2:
        """`fraction` of the way to `other`, turning the short way round."""
        turn = float(wrap_angle(other.yaw - self.yaw))
        return SE2(
            self.x + fraction * (other.x - self.x),
            self.y + fraction * (other.y - self.y),
            float(wrap_angle(self.yaw + fraction * turn)),
        )
