"""Means that can be put together: each one is kept as a sum and a count, so that any order gives the same."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Means:
    """Named means, all of them there from the beginning."""

    def __init__(self, names: Iterable[str]) -> None:
        self._sums = dict.fromkeys(names, (0.0, 0.0))

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """Count values, given their sum."""
        total, number = self._sums[name]
        self._sums[name] = (total + value, number + count)

    def merge(self, other: Means) -> None:
        """Add everything that another one has counted."""
        for name, (total, number) in other._sums.items():
            self.add(name, total, number)

    def values(self) -> dict[str, float]:
        """Each mean; NaN where nothing was counted."""
        return {
            name: total / number if number > 0.0 else math.nan for name, (total, number) in self._sums.items()
        }
