"""N boxes that move at constant velocity, each with a Kalman filter; all of them at once.

The state is that of AB3DMOT (Weng et al., IROS 2020): x, y, z, yaw, length, width, height, and the velocity
of the centre. Unlike there, units are SI and the noise depends on the time that has passed, so that the same
settings hold at any frame rate; and x and y have equal noise, so that turning the frame changes nothing.

Legend: N boxes, S = 10 states, Z = 7 measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.frames import wrap_angle

Array = NDArray[np.float64]

MEASURED = 7
POSITION, YAW, SIZE, VELOCITY = slice(0, 3), 3, slice(4, 7), slice(7, 10)
LEAST_SIZE = 0.05  # [m]; a box filtered to nothing would be no box


@dataclass(frozen=True)
class MeasurementNoise:
    """Standard deviations of a detection: of its centre per axis [m], yaw [rad], each size [m]."""

    position: float
    yaw: float
    size: float

    @property
    def variances_Z(self) -> Array:
        """In the order of the state."""
        return np.square([*[self.position] * 3, self.yaw, *[self.size] * 3])


@dataclass(frozen=True)
class BoxFilter:
    """What is known of N boxes, in a frame that does not move.

    Attributes:
        means_NS, covariances_NSS: See the legend.
    """

    means_NS: Array
    covariances_NSS: Array

    def __len__(self) -> int:
        return len(self.means_NS)

    @staticmethod
    def started(detections: Boxes, noise: MeasurementNoise, speed_std_N: Array) -> BoxFilter:
        """Boxes seen once: where they go, nobody knows yet.

        Args:
            detections: N of them.
            noise: Of a detection.
            speed_std_N: (N,) how fast such an object may be, per axis [m/s].
        """
        measured_NZ = _measurements(detections)
        num = len(measured_NZ)
        variances_NS = np.empty((num, VELOCITY.stop))
        variances_NS[:, :MEASURED] = noise.variances_Z
        variances_NS[:, VELOCITY] = np.square(speed_std_N)[:, None]
        means_NS = np.concatenate([measured_NZ, np.zeros((num, 3))], axis=1)
        return BoxFilter(means_NS, variances_NS[:, :, None] * np.eye(VELOCITY.stop))

    def predicted(self, dt: float, acceleration_std_N: Array, yaw_rate_std: float) -> BoxFilter:
        """The same boxes `dt` seconds later.

        Args:
            dt: [s]
            acceleration_std_N: (N,) by how much the velocity is expected to change, per axis [m/s^2].
            yaw_rate_std: By how much the heading is [rad/s].
        """
        step_SS = np.eye(VELOCITY.stop)
        step_SS[POSITION, VELOCITY] = dt * np.eye(3)
        # A constant, random acceleration during the step (Bar-Shalom et al. 2001, 6.3.2).
        gain_S3 = np.concatenate([0.5 * dt**2 * np.eye(3), np.zeros((4, 3)), dt * np.eye(3)])
        noise_NSS = np.square(acceleration_std_N)[:, None, None] * (gain_S3 @ gain_S3.T)
        noise_NSS[:, YAW, YAW] += (yaw_rate_std * dt) ** 2
        return BoxFilter(self.means_NS @ step_SS.T, step_SS @ self.covariances_NSS @ step_SS.T + noise_NSS)

    def corrected(self, detections: Boxes, noise: MeasurementNoise) -> BoxFilter:
        """Each box after its own detection, whose heading is taken modulo a full turn."""
        before_NSZ = self.covariances_NSS[:, :, :MEASURED]
        innovation_NZ = _measurements(detections) - self.means_NS[:, :MEASURED]
        innovation_NZ[:, YAW] = wrap_angle(innovation_NZ[:, YAW])
        total_NZZ = before_NSZ[:, :MEASURED] + np.diag(noise.variances_Z)
        gain_NSZ = np.swapaxes(np.linalg.solve(total_NZZ, np.swapaxes(before_NSZ, 1, 2)), 1, 2)
        means_NS = self.means_NS + np.einsum("nsz,nz->ns", gain_NSZ, innovation_NZ)
        means_NS[:, YAW] = wrap_angle(means_NS[:, YAW])
        means_NS[:, SIZE] = np.maximum(means_NS[:, SIZE], LEAST_SIZE)
        covariances_NSS = self.covariances_NSS - gain_NSZ @ np.swapaxes(before_NSZ, 1, 2)
        return BoxFilter(means_NS, 0.5 * (covariances_NSS + np.swapaxes(covariances_NSS, 1, 2)))

    def turned_round(self, which_N: NDArray[np.bool_]) -> BoxFilter:
        """The same boxes, some of them facing the other way."""
        means_NS = self.means_NS.copy()
        means_NS[which_N, YAW] = wrap_angle(means_NS[which_N, YAW] + np.pi)
        return replace(self, means_NS=means_NS)

    def select(self, rows: NDArray[np.int64]) -> BoxFilter:
        """The boxes at `rows`, in that order."""
        return BoxFilter(self.means_NS[rows], self.covariances_NSS[rows])

    def joined(self, other: BoxFilter) -> BoxFilter:
        """These boxes, then those of `other`."""
        return BoxFilter(
            np.concatenate([self.means_NS, other.means_NS]),
            np.concatenate([self.covariances_NSS, other.covariances_NSS]),
        )

    def boxes(
        self, class_ids_N: NDArray[np.int64], scores_N: NDArray[np.float32], ids_N: NDArray[np.int64]
    ) -> Boxes:
        """Their estimates as boxes."""
        means = self.means_NS.astype(np.float32)
        return Boxes(
            centers_N3=means[:, POSITION],
            sizes_N3=means[:, SIZE],
            yaws_N=means[:, YAW],
            velocities_N2=means[:, VELOCITY][:, :2],
            class_ids_N=class_ids_N,
            scores_N=scores_N,
            ids_N=ids_N,
        )


def _measurements(detections: Boxes) -> Array:
    """(N, Z) in the order of the state."""
    columns = (detections.centers_N3, detections.yaws_N[:, None], detections.sizes_N3)
    return np.concatenate(columns, axis=1).astype(np.float64)
