"""Sentences about a recording, counted by cause: a hostile one must not fill memory, disk or terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 200  # [characters] of a sentence
MOST_KINDS = 20  # of sentences that are kept, each with its count
# Quoted text, numbers and sizes; not the number in a sensor's name.
_PARTICULARS = re.compile(r"'[^']*'?|\"[^\"]*\"?|(?<![A-Za-z_])[-+]?\d[\d.e+-]*(x\d+)?")


def cut(text: str) -> str:
    """The text, or its beginning and how much is left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more characters)"


class Tally:
    """Counts sentences that differ only in numbers and quoted names as one; the first is the example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, int]] = {}
        self._beyond = 0

    def add(self, sentence: str) -> None:
        """Count a sentence."""
        example = cut(sentence)
        cause = _PARTICULARS.sub("#", sentence[:LONGEST])
        if cause in self._kinds:
            example, count = self._kinds[cause]
            self._kinds[cause] = (example, count + 1)
        elif len(self._kinds) < MOST_KINDS:
            self._kinds[cause] = (example, 1)
        else:
            self._beyond += 1

    def clear(self) -> None:
        """Forget everything."""
        self._kinds.clear()
        self._beyond = 0

    def lines(self) -> list[str]:
        """Each kind's first sentence and how often it came; last, how many were of further kinds."""
        found = [f"{example} ({count}×)" for example, count in self._kinds.values()]
        return [*found, f"problems of further kinds ({self._beyond}×)"] if self._beyond else found


def bounded(sentences: Iterable[str]) -> list[str]:
    """The first `MOST_KINDS` sentences, cut, and how many more there are."""
    found = [cut(sentence) for sentence in sentences]
    rest = len(found) - MOST_KINDS
    return found if rest <= 0 else [*found[:MOST_KINDS], f"and {rest} more of the kind"]
