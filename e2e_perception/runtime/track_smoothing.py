"""Where an object was, knowing also what was seen later: a Kalman filter run forwards, corrected backwards.

Rauch, Tung and Striebel (1965), constant velocity with a random acceleration, in a frame that does not
move. x and y have equal noise, so that turning the frame changes nothing; they then share one 2x2
covariance. Unlike in the paper, what lies far from the smoothed path counts less, and the path is found
again (Huber 1964).

Legend: K instants, 2 axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import wrap_angle

Array = NDArray[np.float64]

ROUNDS = 3  # in which far measurements lose weight
HUBER = 2.0  # standard deviations beyond which a measurement counts less
UNKNOWN_SPEED = 30.0  # [m/s] standard deviation before anything was seen
MOVING = 1.0  # [m/s] above which the direction of motion says where an object points
NEAR_S = 0.5  # standard deviation of the weights in time of headings and heights
HEADING_STD = 0.2  # [rad] of one detected heading
# A detected velocity hangs together with that of the frame before, since the network filters; taken for
# independent, several of them would be trusted too much.
VELOCITY_INFLATION = 4.0  # of the variance


@dataclass(frozen=True)
class Path:
    """Positions [m] and velocities [m/s], (K, 2) each, and the variance of both per axis, (K,)."""

    places_K2: Array
    velocities_K2: Array
    place_var_K: Array
    velocity_var_K: Array


def smoothed_path(
    times_K: Array,
    places_K2: Array,
    velocities_K2: Array,
    place_var_K: Array,
    velocity_var_K: Array,
    acceleration_std: float,
) -> Path:
    """The path of one object through K instants.

    Args:
        times_K: Rising [s].
        places_K2, velocities_K2: Measured, in a frame that does not move; not looked at where the variance is
            infinite.
        place_var_K, velocity_var_K: Per axis; infinite where nothing was measured.
        acceleration_std: How hard the velocity changes, per axis [m/s^2].
    Raises:
        InputError: If times do not rise, or no place is measured.
    """
    if np.any(np.diff(times_K) <= 0.0):
        raise InputError("smoothing: times have to rise")
    measured_K = np.isfinite(place_var_K)
    if not measured_K.any():
        raise InputError("smoothing: nothing was measured")
    far_K: Array = np.ones(len(times_K))
    for _ in range(ROUNDS):
        path = _forwards_and_back(
            times_K,
            places_K2,
            velocities_K2,
            place_var_K * far_K,
            velocity_var_K * VELOCITY_INFLATION * far_K,
            acceleration_std,
        )
        gap_K = np.linalg.norm(np.where(measured_K[:, None], places_K2 - path.places_K2, 0.0), axis=1)
        with np.errstate(invalid="ignore"):
            off_K = np.where(measured_K, gap_K / np.sqrt(2.0 * place_var_K), 0.0)
        far_K = np.maximum(off_K / HUBER, 1.0)
    return path


def _forwards_and_back(
    times_K: Array,
    places_K2: Array,
    velocities_K2: Array,
    place_var_K: Array,
    velocity_var_K: Array,
    acceleration_std: float,
) -> Path:
    num = len(times_K)
    first = int(np.flatnonzero(np.isfinite(place_var_K))[0])
    # Rows: position, velocity; columns: axes.
    mean = np.stack([places_K2[first], np.zeros(2)])
    covariance = np.diag([1e6, UNKNOWN_SPEED**2])
    means, covariances, foreseen, foreseen_covariances = [], [], [], []
    for k in range(num):
        dt = times_K[k] - times_K[k - 1] if k else 0.0
        step = _step(dt)
        noise = np.array([0.5 * dt**2, dt])
        mean = step @ mean
        covariance = step @ covariance @ step.T + acceleration_std**2 * np.outer(noise, noise)
        foreseen.append(mean)
        foreseen_covariances.append(covariance)
        for row, (value, variance) in enumerate(
            ((places_K2[k], place_var_K[k]), (velocities_K2[k], velocity_var_K[k]))
        ):
            if np.isfinite(variance):
                gain = covariance[:, row] / (covariance[row, row] + variance)
                mean = mean + np.outer(gain, value - mean[row])
                covariance = covariance - np.outer(gain, covariance[row])
                covariance = 0.5 * (covariance + covariance.T)
        means.append(mean)
        covariances.append(covariance)
    for k in range(num - 2, -1, -1):
        step = _step(times_K[k + 1] - times_K[k])
        gain = np.linalg.solve(foreseen_covariances[k + 1], step @ covariances[k]).T
        means[k] = means[k] + gain @ (means[k + 1] - foreseen[k + 1])
        covariances[k] = covariances[k] + gain @ (covariances[k + 1] - foreseen_covariances[k + 1]) @ gain.T
    means_K22, covariances_K22 = np.stack(means), np.stack(covariances)
    return Path(means_K22[:, 0], means_K22[:, 1], covariances_K22[:, 0, 0], covariances_K22[:, 1, 1])


def _step(dt: float) -> Array:
    return np.array([[1.0, dt], [0.0, 1.0]])


def resolved_headings(times_K: Array, yaws_K: Array, weights_K: Array, path: Path) -> Array:
    """Headings that never turn round, along the motion where there is one.

    First the axis: headings doubled, so that one that is reversed says the same as one that is not, averaged
    over neighbours in time, the direction of motion among them, the surer the faster. Then which way it
    points: once for the whole track, by what was detected and by where it went.

    Args:
        times_K: [s]
        yaws_K: Detected [rad]; not looked at where the weight is 0.
        weights_K: At least 0; of a detection.
        path: Of the same instants.
    Returns:
        (K,) [rad] in [-pi, pi).
    """
    speeds_K = np.linalg.norm(path.velocities_K2, axis=1)
    motion_K = np.arctan2(path.velocities_K2[:, 1], path.velocities_K2[:, 0])
    moving_K = speeds_K > MOVING
    motion_var_K = path.velocity_var_K / np.maximum(speeds_K, MOVING) ** 2
    motion_weights_K = np.where(moving_K, 1.0 / (motion_var_K + 0.02**2), 0.0)
    detected_weights_K = weights_K / HEADING_STD**2
    evidence_K = detected_weights_K * np.exp(2j * yaws_K) + motion_weights_K * np.exp(2j * motion_K)
    sums_K = near_sums(times_K, evidence_K)
    # Where nothing is near, the whole track says it.
    sums_K = np.where(np.abs(sums_K) > 1e-9, sums_K, evidence_K.sum())
    axes_K = 0.5 * np.unwrap(np.angle(sums_K))
    votes = float(
        (detected_weights_K * np.cos(yaws_K - axes_K)).sum()
        + (motion_weights_K * np.cos(motion_K - axes_K)).sum()
    )
    return np.asarray(wrap_angle(axes_K if votes >= 0.0 else axes_K + np.pi))


def near_sums(times_K: Array, values_K: NDArray[Any]) -> NDArray[Any]:
    """Around each instant, the sum of values, weighed by a bell curve in time of `NEAR_S`.

    Args:
        times_K: Rising [s].
        values_K: Real or complex.
    """
    first_K = np.searchsorted(times_K, times_K - 4.0 * NEAR_S)
    last_K = np.searchsorted(times_K, times_K + 4.0 * NEAR_S, side="right")
    sums_K = np.empty_like(values_K)
    for k, (first, last) in enumerate(zip(first_K.tolist(), last_K.tolist(), strict=True)):
        near = np.exp(-0.5 * ((times_K[first:last] - times_K[k]) / NEAR_S) ** 2)
        sums_K[k] = near @ values_K[first:last]
    return sums_K


def weighted_median(values_N: Array, weights_N: Array) -> float:
    """The value at which half of the weight is reached.

    Args:
        values_N: At least one.
        weights_N: At least 0, not all of them 0.
    """
    order = np.argsort(values_N, kind="stable")
    reached = np.cumsum(weights_N[order])
    return float(values_N[order][np.searchsorted(reached, 0.5 * reached[-1])])
