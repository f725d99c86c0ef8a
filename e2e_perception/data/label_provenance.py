"""Who says what is labelled: labels by source, how sure they are, and how many nobody looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2e_perception.data.label_slots import VISIBLE_SCORE

DOUBTFUL = 0.5  # confidence below which a label is counted as doubtful
ALL = "all"


@dataclass
class _Labels:
    count: int = 0
    seen: int = 0
    confidence: float = 0.0  # sum over those that were seen
    doubtful: int = 0
    unreviewed: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self.count += 1
        self.unreviewed += row["reviewer"] is None
        if row["confidence"] > VISIBLE_SCORE:
            self.seen += 1
            self.confidence += float(row["confidence"])
            self.doubtful += row["confidence"] < DOUBTFUL


@dataclass
class LabelProvenance:
    """Takes the rows of every shard's table of labels."""

    _by_source: defaultdict[str, _Labels] = field(default_factory=lambda: defaultdict(_Labels))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows of `LABEL_SCHEMA` in."""
        for row in rows:
            self._by_source[ALL].add(row)
            self._by_source[str(row["source"])].add(row)

    def figures(self) -> dict[str, dict[str, Any]]:
        """By source, `all` first; empty without labels.

        Returns:
            `labels`; `seen_share`, of which some sensor saw the object; of those `mean_confidence` (None
            where there are none) and `doubtful_share`, below a confidence of a half; `unreviewed_share`,
            of all, that no reviewer stands for.
        """
        names = sorted(self._by_source, key=lambda name: (name != ALL, name))
        return {name: _figures(self._by_source[name]) for name in names}


def _figures(labels: _Labels) -> dict[str, Any]:
    return {
        "labels": labels.count,
        "seen_share": round(labels.seen / labels.count, 4),
        "mean_confidence": round(labels.confidence / labels.seen, 4) if labels.seen else None,
        "doubtful_share": round(labels.doubtful / labels.seen, 4) if labels.seen else 0.0,
        "unreviewed_share": round(labels.unreviewed / labels.count, 4),
    }
