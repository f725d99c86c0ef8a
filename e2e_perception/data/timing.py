"""When messages were measured and when they arrived: what an audit asks of a recording, in flat memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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
    _intervals: _Sample = field(default_factory=_Sample)
    _latencies: _Sample = field(default_factory=_Sample)

    def add(self, stamp_ns: int, arrival_ns: int) -> None:
        """Take a message in, in order of arrival."""
        self.count += 1
        self._latencies.add(arrival_ns - stamp_ns)
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
            if interval_ns > self.longest_gap_ns:
                self.longest_gap_ns, self.longest_gap_at_ns = interval_ns, last_ns

    def summary(self) -> dict[str, float | int]:
        """Figures [ms] by name.

        Returns:
            `count`, `backwards`, `repeated`; `period_ms` (median); `jitter_ms` (95th percentile of the
            deviation from it); `longest_gap_ms` and `longest_gap_at_ns`; `latency_ms` (median of arrival less
            stamp) and `latency_jitter_ms` (its 5th to 95th percentile); what is not known is missing.
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
        if self._latencies.values:
            latencies = np.array(self._latencies.values, np.float64)
            low, middle, high = np.percentile(latencies, [5, 50, 95])
            found["latency_ms"] = round(float(middle) * 1e-6, 3)
            found["latency_jitter_ms"] = round(float(high - low) * 1e-6, 3)
        return found
