"""Counting sentences by cause, in bounded space."""

from __future__ import annotations

from e2e_perception.cli.tally import LONGEST, MOST_KINDS, Tally, bounded


def test_what_differs_in_numbers_and_names_is_one_cause_with_the_first_as_example() -> None:
    tally = Tally()
    for k in range(3000):
        tally.add(f"odometry at {k} ns describes frame {'abc'[k % 3] * 300!r}, picture {k}x{2 * k}")
    (line,) = tally.lines()
    assert line.startswith("odometry at 0 ns describes frame 'aaa") and line.endswith(" (3000×)")
    assert len(line) < LONGEST + 50


def test_sensors_and_reasons_are_told_apart() -> None:
    tally = Tally()
    for sentence in ("cam_0: undecodable", "cam_1: undecodable", "cam_1: blinded", "cam_1: undecodable"):
        tally.add(sentence)
    assert tally.lines() == ["cam_0: undecodable (1×)", "cam_1: undecodable (2×)", "cam_1: blinded (1×)"]
    tally.clear()
    assert tally.lines() == []


def test_of_many_kinds_the_first_are_kept_and_the_others_counted() -> None:
    tally, words = Tally(), ["a" * n for n in range(1, 101)]
    for word in words:
        tally.add(word)
    assert len(tally.lines()) == MOST_KINDS + 1
    assert tally.lines()[-1] == f"problems of further kinds ({100 - MOST_KINDS}×)"
    assert bounded(words) == [*words[:MOST_KINDS], f"and {100 - MOST_KINDS} more of the kind"]
    assert bounded(words[:3]) == words[:3]
    assert bounded(["x" * 300]) == ["x" * LONGEST + "… (100 more characters)"]
