"""The table of labels reads as it was written, whatever the portions, and keeps nothing back."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from e2e_perception.data.label_table import LABELS, ROWS_AT_ONCE, LabelWriter, digest_of_rows
from e2e_perception.data.shards import read_labels


def rows(count: int, clip: int = 0) -> Iterator[dict[str, Any]]:
    for k in range(count):
        yield {
            "clip_id": f"{clip:06d}",
            "frame": k // 100,
            "slot": k % 100,
            "identity": k,
            "class": "car",
            "source": "topic:/labels",
            "tool": "hand",
            "bundle_digest": None,
            "confidence": 0.5,
            "reviewer": None,
        }


@pytest.mark.parametrize(
    "portions", [[], [0], [3], [3, 0, 5], [ROWS_AT_ONCE], [ROWS_AT_ONCE - 1, 2 * ROWS_AT_ONCE]]
)
def test_what_is_read_is_what_came_in_portions(tmp_path: Path, portions: list[int]) -> None:
    writer = LabelWriter(tmp_path)
    for number, count in enumerate(portions):
        writer.add(rows(count, number))
    assert not (tmp_path / LABELS).exists(), "a table that is not finished is not there"
    digest = writer.finish()
    expected = [row for number, count in enumerate(portions) for row in rows(count, number)]
    assert read_labels(tmp_path) == expected
    assert digest == digest_of_rows(expected)
    assert [path.name for path in tmp_path.iterdir()] == [LABELS]


def test_a_table_that_was_broken_off_is_begun_anew(tmp_path: Path) -> None:
    LabelWriter(tmp_path).add(rows(ROWS_AT_ONCE + 1))
    writer = LabelWriter(tmp_path)
    writer.add(rows(2))
    assert writer.finish() == digest_of_rows(rows(2))
    assert len(read_labels(tmp_path)) == 2


def test_rows_that_are_written_are_not_kept(tmp_path: Path) -> None:
    """A row takes some 400 bytes; ten times as many rows take no more memory."""
    writer = LabelWriter(tmp_path)
    tracemalloc.start()
    writer.add(rows(ROWS_AT_ONCE))
    _, few = tracemalloc.get_traced_memory()
    for clip in range(9):
        writer.add(rows(ROWS_AT_ONCE, clip))
    _, many = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.finish()
    assert many < 1.2 * few
