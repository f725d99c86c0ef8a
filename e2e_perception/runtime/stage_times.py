"""How long each stage takes, as bounded histograms."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

# Upper edges of the buckets [ms], each 2^(1/8) times the one before: a quantile is at most 9 % too large.
LEAST_MS, MOST_MS = 0.02, 20_000.0
EDGES_MS = tuple(
    LEAST_MS * math.pow(2.0, k / 8.0) for k in range(math.ceil(8.0 * math.log2(MOST_MS / LEAST_MS)) + 1)
)
GENERATION = 600  # observations; a minute at 10 Hz


class Quantiles(NamedTuple):
    """Of one stage [ms]: half of all frames took at most `p50`, and so on."""

    p50: float
    p95: float
    p99: float


class RollingHistogram:
    """Counts of the last one to two `GENERATION`s of observations in logarithmic buckets.

    Memory and time are the same however long it runs, and what was slow an hour ago is forgotten.
    """

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._now = [0] * (len(EDGES_MS) + 1)
        self._before = [0] * len(self._now)
        self._num_now = 0

    def __len__(self) -> int:
        return sum(self._now) + sum(self._before)

    def observe(self, ms: float) -> None:
        """Count one duration [ms]; what is not finite or below 0 counts as the longest."""
        if self._num_now >= self._generation:
            self._before, self._now = self._now, [0] * len(self._now)
            self._num_now = 0
        self._now[bisect_left(EDGES_MS, ms) if ms >= 0.0 else len(EDGES_MS)] += 1
        self._num_now += 1

    def quantile(self, share: float) -> float:
        """The edge [ms] that at least that share (0 to 1) of the observations does not exceed.

        Infinite beyond the last edge; NaN without observations.
        """
        counts = [a + b for a, b in zip(self._now, self._before, strict=True)]
        if not any(counts):
            return math.nan
        reached = bisect_left(list(accumulate(counts)), max(share * sum(counts), 1))
        return (*EDGES_MS, math.inf)[reached]


class StageTimes:
    """A histogram for each stage."""

    def __init__(self) -> None:
        self._stages: dict[str, RollingHistogram] = {}

    def observe(self, stage_ms: Mapping[str, float]) -> None:
        """Take the durations of one frame [ms]."""
        for stage, ms in stage_ms.items():
            self._stages.setdefault(stage, RollingHistogram()).observe(ms)

    def quantiles(self) -> dict[str, Quantiles]:
        """Of each stage seen so far."""
        return {
            stage: Quantiles(*(histogram.quantile(share) for share in (0.5, 0.95, 0.99)))
            for stage, histogram in self._stages.items()
        }
