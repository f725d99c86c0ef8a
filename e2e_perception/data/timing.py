"""When messages were measured and when they arrived: what an audit asks of a recording, in flat memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEW = 10  # messages of which equal intervals say nothing
MOST_INTERVALS = 64  # distinct ones of a clock that measures nothing; a real one has more at once
SAMPLES = 2048  # of intervals and latencies that are kept; of longer recordings every n-th


@dataclass
class _Sample:
    """Evenly spread values of a stream of unknown length: when full, every second one is dropped."""

    values: list[int] = field(default_factory=list)
    every: int = 1
    seen: int = 0

    def add(self, value: int) -> None:
        if self.seen % self.every == 0:
            if len(self.values) == SAMPLES:
                self.values = self.values[::2]
                self.every *= 2
            if self.seen % self.every == 0:
                self.values.append(value)
        self.seen += 1


@dataclass
class StreamTiming:
    """Stamps and arrivals of one topic.

    Attributes:
        count: Messages.
        backwards: How many were stamped earlier than the one before.
        repeated: How many had the very stamp of the one before.
        longest_gap_ns: Between two stamps.
        longest_gap_at_ns: Stamp after which it began.
    """

    count: int = 0
    backwards: int = 0
    repeated: int = 0
    longest_gap_ns: int = 0
    longest_gap_at_ns: int = 0
    _last_ns: int | None = None
    _distinct_intervals: set[int] = field(default_factory=set)
    _least_latency_ns: int | None = None
    _most_latency_ns: int | None = None
    _intervals: _Sample = field(default_factory=_Sample)
    _latencies: _Sample = field(default_factory=_Sample)

    def add(self, stamp_ns: int, arrival_ns: int) -> None:
        """Take a message in, in order of arrival."""
        self.count += 1
        latency_ns = arrival_ns - stamp_ns
        self._latencies.add(latency_ns)
        if self._least_latency_ns is None or self._most_latency_ns is None:
            self._least_latency_ns = self._most_latency_ns = latency_ns
        self._least_latency_ns = min(self._least_latency_ns, latency_ns)
        self._most_latency_ns = max(self._most_latency_ns, latency_ns)
        last_ns = self._last_ns
        if last_ns is None or stamp_ns > last_ns:
            self._last_ns = stamp_ns
        if last_ns is None:
            return
        interval_ns = stamp_ns - last_ns
        if interval_ns < 0:
            self.backwards += 1
        elif interval_ns == 0:
            self.repeated += 1
        else:
            self._intervals.add(interval_ns)
            if len(self._distinct_intervals) <= MOST_INTERVALS:
                self._distinct_intervals.add(interval_ns)
            if interval_ns > self.longest_gap_ns:
                self.longest_gap_ns, self.longest_gap_at_ns = interval_ns, last_ns

    def summary(self) -> dict[str, float | int]:
        """Figures [ms] by name.

        Returns:
            `count`, `backwards`, `repeated`; `period_ms` (median); `jitter_ms` (95th percentile of the
            deviation from it); `longest_gap_ms` and `longest_gap_at_ns`; `latency_ms` (median of arrival less
            stamp) and `latency_jitter_ms` (its 5th to 95th percentile); of all messages, not of a sample,
            `equal_intervals` (see `_has_equal_intervals`) and `equal_latencies` (the least is the most); what
            is not known is missing.
        """
        found: dict[str, float | int] = {
            "count": self.count,
            "backwards": self.backwards,
            "repeated": self.repeated,
        }
        if self._intervals.values:
            intervals = np.array(self._intervals.values, np.float64)
            period = float(np.median(intervals))
            found["period_ms"] = round(period * 1e-6, 4)
            found["jitter_ms"] = round(float(np.percentile(np.abs(intervals - period), 95)) * 1e-6, 4)
            found["longest_gap_ms"] = round(self.longest_gap_ns * 1e-6, 3)
            found["longest_gap_at_ns"] = self.longest_gap_at_ns
            found["equal_intervals"] = self._has_equal_intervals(period)
        if self._latencies.values:
            latencies = np.array(self._latencies.values, np.float64)
            low, middle, high = np.percentile(latencies, [5, 50, 95])
            found["latency_ms"] = round(float(middle) * 1e-6, 3)
            found["latency_jitter_ms"] = round(float(high - low) * 1e-6, 3)
            found["equal_latencies"] = self._least_latency_ns == self._most_latency_ns
        return found

    def _has_equal_intervals(self, period_ns: float) -> bool:
        """Whether every interval is one period, or several where messages are missing.

        To the nanosecond, and one more for each period: a thirtieth of a second is no whole number of them.
        """
        if len(self._distinct_intervals) > MOST_INTERVALS:
            return False
        periods = {interval_ns: round(interval_ns / period_ns) for interval_ns in self._distinct_intervals}
        return all(abs(interval_ns - count * period_ns) <= count for interval_ns, count in periods.items())


def has_synthetic_stamps(timing: Mapping[str, Any]) -> bool:
    """Whether a stream's intervals are all the same, as no clock measures them.

    Args:
        timing: A `StreamTiming.summary`; one from before it told `equal_intervals` goes by its jitter.
    """
    equal = timing.get("equal_intervals", timing.get("jitter_ms") == 0.0)
    return bool(equal) and int(timing.get("count", 0)) > FEW


def has_synthetic_arrivals(timing: Mapping[str, Any]) -> bool:
    """Whether a stream's messages all arrive the same time after their stamps; see `has_synthetic_stamps`."""
    equal = timing.get("equal_latencies", timing.get("latency_jitter_ms") == 0.0)
    return bool(equal) and int(timing.get("count", 0)) > FEW
