"""Figures that are one sum over another, pooled: frames can be added in any order."""

from __future__ import annotations


class Ratios:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def _add(self, name: str, value: float, count: float = 1.0) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def _means(self) -> dict[str, float]:
        """Sum by count of every name that has a count."""
        return {k: self._sums[k] / self._counts[k] for k in sorted(self._sums) if self._counts[k] > 0}
