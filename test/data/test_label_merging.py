"""Merging labels: the higher source wins whole, conflicts are listed, identities hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow", reason="pyarrow is not installed: `pip install .[training]`")
pytest.importorskip("scipy", reason="scipy is not installed: `pip install .[training]`")

from e2e_perception.core.errors import ConfigError
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.label_merging import (
    KINDS,
    Candidate,
    FrameKey,
    Merged,
    Source,
    kind_of,
    merged,
    parsed_precedence,
    ranked,
)

PERIOD_NS = 100_000_000
SPACING = 10.0  # [m] between objects, more than any two rows of one may be apart


def row(
    identity: int, x: float, y: float = 0.0, *, k: int = 0, source: str = "topic:/labels", **more: Any
) -> LayerRow:
    values: dict[str, Any] = {
        "clip_id": "0",
        "stamp_ns": k * PERIOD_NS,
        "identity": identity,
        "class_name": "car",
        "x": x,
        "y": y,
        "z": 0.8,
        "length": 4.5,
        "width": 1.8,
        "height": 1.6,
        "yaw": 0.0,
        "vx": 0.0,
        "vy": 0.0,
        "source": source,
        "tool": "hand",
        "bundle_digest": None,
        "confidence": 1.0,
        "reviewer": None,
        "verdict": "label",
        **more,
    }
    return LayerRow(**values)


def source(order: int, rows: Sequence[LayerRow], complete: frozenset[FrameKey] = frozenset()) -> Source:
    frames: dict[FrameKey, list[Candidate]] = {}
    for item in rows:
        frames.setdefault((0, item.stamp_ns), []).append(Candidate(item))
    kinds = {kind_of(item.source) for item in rows}
    assert len(kinds) == 1
    return Source(kinds.pop(), order, frames, complete)


def together(*sources: Source, precedence: Sequence[str] = KINDS) -> Merged:
    return merged(ranked(sources, precedence))


def identities(result: Merged, k: int = 0) -> dict[int, LayerRow]:
    labels = [label for label in result.frames[0, k * PERIOD_NS] if not label.rejected]
    found = {label.identity: label.candidate.row for label in labels}
    assert len(found) == len(labels), "an identity is once in a frame"
    return found


# ------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("reviewed", [0, 1])
@pytest.mark.parametrize("verdict", ["label", "rejected"])
@pytest.mark.parametrize(("class_name", "gap"), [("pedestrian", 0.6), ("car", 1.6)])
def test_a_review_of_one_label_is_not_of_its_neighbour(
    reviewed: int, verdict: str, class_name: str, gap: float
) -> None:
    """Two who stand closer than rows of one object may be apart: each is its own, whoever was looked at."""
    pair = [
        row(n, 10.0 + gap * n, k=k, class_name=class_name, confidence=0.7) for k in range(3) for n in (0, 1)
    ]
    said = [
        replace(item, source="review", reviewer="kim", verdict=verdict, confidence=1.0)
        for item in pair
        if item.identity == reviewed
    ]
    result = together(source(0, pair), source(1, said))
    for k in range(3):
        left = identities(result, k)
        other = 1 - reviewed
        assert left.pop(other) == pair[2 * k + other], "as it was, to the last digit"
        if verdict == "rejected":
            assert left == {}
        else:
            assert left == {reviewed: said[k]}


# ------------------------------------------------------------------ order


@given(
    order=st.permutations(KINDS),
    picked=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), unique=True, max_size=12),
    data=st.data(),
)
def test_precedence_is_a_total_order_whatever_the_order_of_the_sources(
    order: list[str], picked: list[tuple[str, int]], data: st.DataObject
) -> None:
    sources = [Source(kind, number, {}) for kind, number in picked]
    shuffled = data.draw(st.permutations(sources))
    got = [(found.kind, found.order) for found in ranked(shuffled, order)]
    assert got == sorted(picked, key=lambda item: (order.index(item[0]), -item[1]))


def test_a_kind_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="labels of topic have no place in --precedence review,autolabel"):
        ranked([Source("topic", 0, {})], ("review", "autolabel"))
    for text in ("", "review,", "review,topic,review"):
        with pytest.raises(ConfigError, match="expected kinds with commas between them, each once"):
            parsed_precedence(text)
    assert parsed_precedence("review, topic") == ("review", "topic")
    assert [kind_of(s) for s in ("topic:/labels", "argoverse2", "simulation", "autolabel", "review:a")] == [
        "topic", "import", "simulator", "autolabel", "review"
    ]  # fmt: skip


# ------------------------------------------------------------------ merging

scenes = st.dictionaries(
    st.integers(0, 40), st.lists(st.integers(0, 5), min_size=1, unique=True), min_size=1, max_size=6
)


def rows_of(scene: Mapping[int, Sequence[int]], **more: Any) -> list[LayerRow]:
    """Objects in a row, each in some frames."""
    return [
        row(identity, SPACING * place, k=k, **more)
        for place, (identity, frames) in enumerate(sorted(scene.items()))
        for k in sorted(frames)
    ]


@given(scene=scenes, kind=st.sampled_from(KINDS))
def test_merging_with_itself_changes_nothing(scene: dict[int, list[int]], kind: str) -> None:
    rows = rows_of(scene, source=kind)
    result = together(source(0, rows), source(1, rows), source(2, rows))
    assert result.conflicts == []
    for k in range(6):
        assert identities(result, k) == {r.identity: r for r in rows if r.stamp_ns == k * PERIOD_NS}


changes = st.fixed_dictionaries(
    {
        "shift": st.sampled_from([0.0, 0.4, 0.6, 1.9]),
        "turn": st.sampled_from([0.0, 0.4, 0.6, -3.0]),
        "class_name": st.sampled_from(["car", "truck"]),
        "verdict": st.sampled_from(["label", "label", "rejected"]),
    }
)


@given(scene=scenes, data=st.data())
def test_conflicts_are_counted_exactly_and_the_winner_is_taken_whole(
    scene: dict[int, list[int]], data: st.DataObject
) -> None:
    below = rows_of(scene)
    above: list[LayerRow] = []
    expected: Counter[tuple[int, str]] = Counter()
    for item in below:
        change = data.draw(changes)
        verdict, class_name = change["verdict"], change["class_name"]
        above.append(
            replace(
                item,
                identity=item.identity + 100,
                x=item.x + change["shift"],
                yaw=change["turn"],
                class_name=class_name,
                verdict=verdict,
                source="review",
            )
        )
        if verdict == "rejected":
            expected[item.stamp_ns, "rejected"] += 1
            continue
        expected[item.stamp_ns, "class"] += class_name != "car"
        expected[item.stamp_ns, "position"] += change["shift"] > 0.5
        expected[item.stamp_ns, "heading"] += abs(change["turn"]) > math.radians(30.0)
    for precedence, winners in ((("review", "topic"), above), (("topic", "review"), below)):
        result = together(source(1, above), source(0, below), precedence=precedence)
        assert Counter((c.stamp_ns, c.kind) for c in result.conflicts) == +expected
        for k in range(6):
            kept = [r for r in winners if r.stamp_ns == k * PERIOD_NS and r.verdict == "label"]
            assert identities(result, k) == {r.identity: r for r in kept}


@given(
    parts=st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 5), st.integers(0, 3), st.integers(-6, 6), st.integers(-6, 6), st.booleans()
            ),
            max_size=10,
            unique_by=lambda item: item[:2],
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_label_is_one_sources_row_and_no_identity_is_twice_in_a_frame(
    parts: list[list[tuple[int, int, int, int, bool]]],
) -> None:
    every: list[LayerRow] = []
    sources = []
    for number, part in enumerate(parts):
        kind = KINDS[number]
        rows = [
            row(identity, 0.5 * x, 0.5 * y, k=k, source=kind, verdict="label" if good else "rejected")
            for identity, k, x, y, good in part
        ]
        every += rows
        if rows:
            sources.append(source(number, rows))
    result = together(*sources)
    for labels in result.frames.values():
        assert len({label.identity for label in labels}) == len(labels)
        assert all(label.candidate.row in every for label in labels)
    highest = [r for r in every if r.source == KINDS[0]]
    won = [label.candidate.row for labels in result.frames.values() for label in labels]
    assert all(r in won for r in highest), "nothing overrules the highest source"


def test_a_rejection_removes_what_lower_sources_say_and_not_what_higher_ones_do() -> None:
    topic, auto = row(1, 5.0), row(9, 5.2, source="autolabel")
    rejecting = source(1, [row(3, 5.1, source="review", verdict="rejected")])
    result = together(rejecting, source(0, [topic]), source(2, [auto]))
    assert identities(result) == {}
    assert [(c.kind, c.winner, c.loser) for c in result.conflicts] == [
        ("rejected", "review", "topic:/labels"), ("rejected", "review", "autolabel")
    ]  # fmt: skip
    result = together(rejecting, source(0, [topic]), precedence=("topic", "review"))
    assert identities(result) == {1: topic}
    assert [(c.kind, c.identity, c.loser_identity) for c in result.conflicts] == [("rejected", 1, 3)]
    far = source(1, [row(3, 8.0, source="review", verdict="rejected")])
    assert identities(together(far, source(0, [topic]))) == {1: topic}


def test_an_object_keeps_the_winners_identity_where_only_the_loser_sees_it() -> None:
    auto = source(1, [row(5, 0.1 * k, k=k, source="autolabel") for k in range(10)])
    review = source(2, [row(40, 0.1 * k, k=k, source="review") for k in range(3, 6)])
    result = together(auto, review)
    for k in range(10):
        ((identity, label),) = identities(result, k).items()
        assert identity == 40
        assert label.source == ("review" if 3 <= k < 6 else "autolabel")


def test_numbers_of_different_objects_do_not_collide() -> None:
    review = source(1, [row(40, 0.0, k=k, source="review") for k in range(2)])
    topic = source(0, [row(40, 20.0, k=k) for k in range(3)])
    auto = source(2, [row(40, 40.0, k=1, source="autolabel"), row(0, 20.1, k=2, source="autolabel")])
    result = together(review, topic, auto)
    seen = {k: identities(result, k) for k in range(3)}
    assert seen[1][40].source == "review"
    (of_topic,) = {i for k in range(3) for i, r in seen[k].items() if r.x == 20.0}
    (of_auto,) = {i for i, r in seen[1].items() if r.x == 40.0}
    assert len({40, of_topic, of_auto}) == 3
    assert set(seen[2]) == {of_topic}, "what was matched is no second object"


def test_a_pair_that_other_frames_found_may_be_farther_apart() -> None:
    review = source(1, [row(1, 0.0, k=k, source="review") for k in range(5)])
    drifting = [row(8, 3.0 if k == 4 else 0.2, k=k) for k in range(5)]
    result = together(review, source(0, drifting))
    assert all(set(identities(result, k)) == {1} for k in range(5))
    assert [(c.stamp_ns // PERIOD_NS, c.kind) for c in result.conflicts] == [(4, "position")]
    stranger = together(review, source(0, [row(8, 3.0, k=4)]))
    assert len(identities(stranger, 4)) == 2, "of somebody who was never matched that is another object"


def test_classes_of_another_group_are_one_object_only_in_one_place() -> None:
    review = source(1, [row(1, 5.0, source="review", class_name="obstacle")])
    near = together(review, source(0, [row(2, 5.3)]))
    assert {r.class_name for r in identities(near).values()} == {"obstacle"}
    assert [c.kind for c in near.conflicts] == ["class"]
    beside = together(review, source(0, [row(2, 5.9)]))
    assert len(identities(beside)) == 2 and beside.conflicts == []


def test_pairs_are_those_of_least_total_distance_not_of_the_first_come() -> None:
    review = source(1, [row(1, 0.0, source="review"), row(2, 1.5, source="review")])
    topic = source(0, [row(11, 0.9), row(12, 2.4)])
    result = together(review, topic)
    assert {c.kind for c in result.conflicts} == {"position"}
    assert [(c.identity, c.loser_identity) for c in result.conflicts] == [(1, 11), (2, 12)]


def test_whoever_labels_everybody_denies_the_others_but_for_those_that_nobody_can_see() -> None:
    everybody = source(0, [row(1, 0.0)], frozenset({(0, 0)}))
    extra = [row(7, 20.0, source="autolabel"), row(7, 20.0, k=1, source="autolabel")]
    result = together(everybody, source(1, extra))
    assert set(identities(result)) == {1} and set(identities(result, 1)) == {7}
    (conflict,) = result.conflicts
    assert (conflict.kind, conflict.winner, conflict.loser_identity) == ("absent", "topic", 7)
    hidden = Source("autolabel", 1, {(0, 0): [Candidate(extra[0], seen=False)]})
    assert set(identities(together(everybody, hidden))) == {1, 7}
    above = source(1, [row(7, 20.0, source="review")])
    assert set(identities(together(everybody, above))) == {1, 7}, "who stands above is not denied"
