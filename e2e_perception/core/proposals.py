"""The plan vocabulary without torch: the same manoeuvres that `model/planning.py` builds inside the graph.

A manoeuvre is an acceleration along the route (braking ends at standstill) and an offset from it to be
reached at the horizon. Legend: C manoeuvres, T instants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REACH = 10.0  # [m] of way over which sideways motion fades in


def manoeuvres(
    accelerations: Sequence[float],
    offsets: Sequence[float],
    times_T: Array,
    *,
    horizon: float,
    speed: float,
    lateral_offset: float,
    heading_error: float,
    top_speed: float = np.inf,
) -> Array:
    """Every acceleration with every offset, in route coordinates.

    Args:
        accelerations: [m/s^2]
        offsets: d at the horizon [m], left positive.
        times_T: (T,) [s] from now, all within the horizon.
        horizon: When the offset is reached [s].
        speed: Now [m/s]; reverse counts as standstill.
        lateral_offset: d now [m].
        heading_error: Against the route [rad].
        top_speed: At which speeding up ends [m/s]; the network's vocabulary has none.
    Returns:
        (C, T, 2) [m], s from the robot's projection and d; offsets vary fastest, as in the network.
    """
    speed = max(speed, 0.0)
    a = np.repeat(np.asarray(accelerations, np.float64), len(offsets))[:, None]
    target = np.tile(np.asarray(offsets, np.float64), len(accelerations))[:, None]

    def covered(times: Array) -> Array:
        braking_for = np.where(a < 0.0, -speed / np.minimum(a, -1e-3), np.inf)
        rising_for = np.where(a > 0.0, max(top_speed - speed, 0.0) / np.maximum(a, 1e-3), np.inf)
        t = np.minimum(times, np.minimum(braking_for, rising_for))
        beyond = np.where(a > 0.0, times - t, 0.0) * np.minimum(speed + a * t, max(top_speed, speed))
        return np.asarray(speed * t + 0.5 * a * t * t + beyond)

    s = covered(times_T[None])
    u = times_T[None] / horizon
    slope = speed * np.sin(heading_error) * horizon
    reach = np.clip(covered(np.array([[horizon]])) / REACH, 0.0, 1.0)
    end = lateral_offset + (target - lateral_offset) * reach
    start = 2.0 * u**3 - 3.0 * u**2 + 1.0
    d = start * lateral_offset + (u**3 - 2.0 * u**2 + u) * slope * reach + (1.0 - start) * end
    return np.stack([s, d], axis=-1)
