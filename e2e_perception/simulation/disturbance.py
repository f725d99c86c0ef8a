"""Pushes a driver off its plan, so that there are examples of coming back (DART, Laskey et al. 2017)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from e2e_perception.core.trajectories import Plan

EVERY_S = (2.5, 5.0)  # from the end of one push to the next
LASTS_S = (0.8, 1.5)
SIDEWAYS_M = (0.5, 1.4)  # at the end of the plan's first two seconds
HURRY = (0.5, 1.5)  # factor on how far the plan gets


class Disturbance:
    """Pushes at random times; a function of the seed alone.

    Attributes:
        pushes: (start, end) [ns] of each.
    """

    def __init__(self, start_ns: int, end_ns: int, seed: int) -> None:
        """Draw the pushes between two instants [ns]."""
        rng = np.random.default_rng((seed, 31))
        self.pushes: list[tuple[int, int]] = []
        self._how: list[tuple[float, float]] = []
        now_ns = start_ns + round(rng.uniform(0.5, EVERY_S[0]) * 1e9)
        while now_ns < end_ns:
            until_ns = now_ns + round(rng.uniform(*LASTS_S) * 1e9)
            self.pushes.append((now_ns, until_ns))
            self._how.append((float(rng.choice([-1.0, 1.0]) * rng.uniform(*SIDEWAYS_M)), rng.uniform(*HURRY)))
            now_ns = until_ns + round(rng.uniform(*EVERY_S) * 1e9)

    def altered(self, plan: Plan) -> Plan:
        """The plan, or during a push another one: off to a side, and faster or slower."""
        for (start, end), (sideways, hurry) in zip(self.pushes, self._how, strict=True):
            if start <= plan.stamp_ns < end:
                aside = sideways * np.clip(plan.times_P / 2.0, 0.0, 1.0)
                normals = np.stack([-np.sin(plan.yaws_P), np.cos(plan.yaws_P)], axis=-1)
                points = hurry * plan.points_P2 + aside[:, None] * normals
                return replace(plan, points_P2=points, speeds_P=hurry * plan.speeds_P)
        return plan
