"""How late the state estimate is: how long until an object is found, and how far its velocity lags.

Legend: D delays, K estimates, T instants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.clear_mot import Followed
from e2e_perception.evaluation.frames import Compared
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE

Array = NDArray[np.float64]

DELAYS_D = 0.1 * np.arange(7)  # [s]
MANOEUVRE = 0.5  # [m/s] of change over the longest delay; steady motion tells nothing of a delay
MIN_WATCH_S = 1.0  # [s] before the end; who appears later has no time to be found
MAX_GAP_S = 0.25  # [s] between instants at which an object is there, to interpolate


def times_to_find(frames: Sequence[Compared], stamps_s: Sequence[float]) -> list[float]:
    """From the first frame in which each object counts until a confirmed track lies on it.

    Args:
        frames: In order of time.
        stamps_s: Of each [s].
    Returns:
        One entry per object [s], infinite if it is never found; objects that appear less than `MIN_WATCH_S`
        before the end are left out, found or not.
    """
    appeared: dict[int, float] = {}
    found: dict[int, float] = {}
    for frame, now in zip(frames, stamps_s, strict=True):
        nearest_L = frame.distance_LN.min(axis=1, initial=np.inf)
        for identity, distance in zip(frame.labels.ids_N.tolist(), nearest_L.tolist(), strict=True):
            appeared.setdefault(identity, now)
            if distance < MATCH_DISTANCE:
                found.setdefault(identity, now)
    last = stamps_s[-1] if len(stamps_s) else 0.0
    return [
        found.get(identity, np.inf) - since
        for identity, since in appeared.items()
        if since <= last - MIN_WATCH_S + 1e-9
    ]


def lag_errors(
    truths: Sequence[TruthFrame], frames: Sequence[Compared], followed: Followed
) -> tuple[Array, int]:
    """Velocity errors against the truth of `DELAYS_D` ago, of objects whose velocity changes.

    Args:
        truths, frames: Of the same instants, in order of time.
        followed: Who was matched with whom.
    Returns:
        (D,) sum of errors [m/s] at each delay, and over how many estimates; the same ones for all delays.
    """
    paths = _velocities(truths)
    sums_D, number = np.zeros(len(DELAYS_D)), 0
    rows = zip(
        followed.frames_K.tolist(), followed.labels_K.tolist(), followed.tracks_K.tolist(), strict=True
    )
    for k, row, column in rows:
        stamps_T, velocities_T2 = paths[int(frames[k].labels.ids_N[row])]
        past = truths[k].stamp_ns * 1e-9 - DELAYS_D
        inside = (stamps_T >= past[-1] - MAX_GAP_S) & (stamps_T <= past[0] + 1e-6)
        if past[-1] < stamps_T[0] - 1e-6 or (np.diff(stamps_T[inside]) > MAX_GAP_S).any():
            continue
        true_D2 = np.stack([np.interp(past, stamps_T, velocities_T2[:, axis]) for axis in (0, 1)], axis=1)
        if np.linalg.norm(true_D2[0] - true_D2[-1]) < MANOEUVRE:
            continue
        estimate = truths[k].odom_from_base.rotate(frames[k].tracks.velocities_N2[column].astype(np.float64))
        sums_D += np.linalg.norm(true_D2 - estimate, axis=1)
        number += 1
    return sums_D, number


def _velocities(truths: Sequence[TruthFrame]) -> dict[int, tuple[Array, Array]]:
    """Stamps (T,) [s] and velocities (T, 2) [m/s], odom axes, of each object, whether it counts or not."""
    paths: dict[int, list[tuple[float, Array]]] = {}
    for truth in truths:
        velocities = truth.odom_from_base.rotate(truth.boxes.velocities_N2.astype(np.float64))
        for identity, velocity in zip(truth.boxes.ids_N.tolist(), velocities, strict=True):
            paths.setdefault(identity, []).append((truth.stamp_ns * 1e-9, velocity))
    return {
        identity: (np.array([t for t, _ in path]), np.stack([v for _, v in path]))
        for identity, path in paths.items()
    }
