"""A review in progress: decisions are on disk when they are made, and go on where they were left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from review_sets import FRAMES, TRACKS, add_shard, review_clip, review_set

from e2e_perception.core.errors import InputError
from e2e_perception.data import label_layers
from e2e_perception.data.label_layers import read_layer, write_layer
from e2e_perception.data.review_clips import ReviewDataset
from e2e_perception.data.review_session import Decision, ReviewSession


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReviewDataset:
    return ReviewDataset.open(review_set(tmp_path_factory.mktemp("sets") / "set"))


def session(dataset: ReviewDataset, out: Path, reviewer: str = "kim") -> ReviewSession:
    return ReviewSession(dataset, dataset.names(), out, reviewer)


def test_a_decision_is_in_the_layer_for_every_frame_of_its_track(
    dataset: ReviewDataset, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "layer.parquet"
    with session(dataset, out) as review:
        review.decide(0, [101], "rejected")
        rows = read_layer(out).rows
        assert [(row.identity, row.verdict, row.reviewer) for row in rows] == [
            (101, "rejected", "kim")
        ] * FRAMES
        assert [row.stamp_ns for row in rows] == [0, 100_000_000, 200_000_000]
        labels = review.clip(0).tracks[101]
        assert [row.x for row in rows] == [label.box.x for label in labels]
        review.decide(0, [100, 102], "label")
        review.decide(1, [100], "label")
        assert review.progress() == {"tracks": 6, "decided": 4, "accepted": 3, "rejected": 1}
        assert (review.open_tracks(0), review.open_tracks(1)) == (0, 2)
        review.decide(0, [101], None)
        assert {row.identity for row in read_layer(out).rows if row.clip_id == "drive/000000"} == {100, 102}
    assert [path.name for path in out.parent.iterdir() if path.suffix == ".parquet"] == ["layer.parquet"]


@given(
    decisions=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(TRACKS), st.sampled_from(["label", "rejected", None])),
        max_size=8,
    )
)
@settings(max_examples=15, deadline=None)
def test_a_decision_on_one_track_is_on_no_other(
    dataset: ReviewDataset,
    tmp_path_factory: pytest.TempPathFactory,
    decisions: list[tuple[int, int, str | None]],
) -> None:
    """Neither on its neighbours in the same frames, nor on the same track in another clip."""
    out = tmp_path_factory.mktemp("neighbours") / "layer.parquet"
    expected: dict[tuple[str, int], str] = {}
    with session(dataset, out) as review:
        for number, identity, verdict in decisions:
            review.decide(number, [identity], verdict)
            key = (str(review.names[number]), identity)
            expected.pop(key, None)
            if verdict is not None:
                expected[key] = verdict
            found = read_layer(out).rows
            assert {(row.clip_id, row.identity): row.verdict for row in found} == expected
            assert len(found) == FRAMES * len(expected), "a row for each frame of each, and no other"


def test_opened_again_it_shows_and_keeps_what_was_decided(dataset: ReviewDataset, tmp_path: Path) -> None:
    out = tmp_path / "layer.parquet"
    with session(dataset, out) as review:
        review.decide(0, [100], "label")
        review.decide(1, [102], "rejected")
    with session(dataset, out, "lee") as review:
        assert review.decisions(0) == {100: Decision("label", "kim")}
        assert review.decisions(1) == {102: Decision("rejected", "kim")}
        review.decide(0, [101], "label")
        review.decide(1, [102], "label")
    with session(dataset, out) as review:
        assert review.decisions(0) == {100: Decision("label", "kim"), 101: Decision("label", "lee")}
        assert review.decisions(1) == {102: Decision("label", "lee")}


def test_a_list_of_some_clips_leaves_decisions_on_others_alone(
    dataset: ReviewDataset, tmp_path: Path
) -> None:
    out = tmp_path / "layer.parquet"
    with session(dataset, out) as review:
        review.decide(0, [100], "label")
    with ReviewSession(dataset, dataset.names()[1:], out, "kim") as review:
        assert review.progress() == {"tracks": 3, "decided": 0, "accepted": 0, "rejected": 0}
        review.decide(0, [100], "rejected")
    assert {row.clip_id: row.verdict for row in read_layer(out).rows} == {
        "drive/000000": "label",
        "drive/000001": "rejected",
    }


def test_what_cannot_be_written_was_not_decided_and_the_layer_stays(
    dataset: ReviewDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "layer.parquet"
    with session(dataset, out) as review:
        review.decide(0, [100], "label")
        before = out.read_bytes()

        def full(table: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(label_layers.pq, "write_table", full)
            with pytest.raises(OSError, match="No space left"):
                review.decide(0, [101], "label")
        assert out.read_bytes() == before
        assert review.decisions(0) == {100: Decision("label", "kim")}
        assert sorted(path.name for path in tmp_path.iterdir()) == [".layer.parquet.lock", "layer.parquet"]


def test_two_processes_do_not_review_into_one_file(dataset: ReviewDataset, tmp_path: Path) -> None:
    out = tmp_path / "layer.parquet"
    with session(dataset, out), pytest.raises(InputError, match="being reviewed by another process"):
        session(dataset, out)
    session(dataset, out).close()


def test_layers_of_other_shards_kinds_or_damaged_ones_are_refused(
    dataset: ReviewDataset, tmp_path: Path
) -> None:
    out = tmp_path / "layer.parquet"
    with session(dataset, out) as review:
        review.decide(0, [100], "label")
    rows = read_layer(out).rows
    write_layer(out, rows, shards={"drive": "0" * 64})
    with pytest.raises(InputError, match="was made for shard drive with digest 000000000000"):
        session(dataset, out)
    write_layer(out, [replace(row, source="autolabel") for row in rows], shards=dataset.digests)
    with pytest.raises(InputError, match="holds labels of autolabel, not of a review"):
        session(dataset, out)
    out.write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match=r"layer\.parquet"):
        session(dataset, out)
    pq.write_table(pq.read_table(dataset.dataset.directory("drive") / "labels.parquet"), out)
    with pytest.raises(InputError, match=r"layer\.parquet"):
        session(dataset, out)


def test_unknown_clips_tracks_and_verdicts_are_refused(dataset: ReviewDataset, tmp_path: Path) -> None:
    with session(dataset, tmp_path / "layer.parquet") as review:
        with pytest.raises(InputError, match="no clip 2; there are 2"):
            review.decide(2, [100], "label")
        with pytest.raises(InputError, match="has no track 7"):
            review.decide(0, [100, 7], "label")
        with pytest.raises(InputError, match="verdict 'maybe'"):
            review.decide(0, [100], "maybe")
        assert not (tmp_path / "layer.parquet").exists()


def test_clips_of_two_shards_with_one_identifier_are_told_apart(tmp_path: Path) -> None:
    path = review_set(tmp_path / "set", clips=1)
    add_shard(path, "other", [review_clip(5)])
    opened = ReviewDataset.open(path)
    with session(opened, tmp_path / "layer.parquet") as review:
        review.decide(1, list(TRACKS), "rejected")
        assert review.decisions(0) == {}
    layer = read_layer(tmp_path / "layer.parquet")
    assert {row.clip_id for row in layer.rows} == {"other/000000"} and set(layer.shards) == {"drive", "other"}


# ----------------------------------------------------------------------------------- which clips


def mined(path: Path, *clips: tuple[str, str, int], **more: object) -> Path:
    listed = [
        {"shard": s, "clip_id": c, "stamp_ns": t, "score": 0.5, "ranks": {"regret": 1.0}} for s, c, t in clips
    ]
    path.write_text(
        json.dumps({"dataset_digest": "x", "bundle": "tiny", "clips": listed, **more}), encoding="utf-8"
    )
    return path


def test_a_list_gives_its_clips_in_its_order(dataset: ReviewDataset, tmp_path: Path) -> None:
    listed = mined(
        tmp_path / "review.json", ("drive", "000001", 0), ("drive", "000000", 0), ("drive", "000001", 0)
    )
    assert [str(name) for name in dataset.names(listed)] == ["drive/000001", "drive/000000"]
    assert [str(name) for name in dataset.names()] == ["drive/000000", "drive/000001"]


@pytest.mark.parametrize("clip", [("drive", "000007", 0), ("drive", "000000", 5), ("../drive", "000000", 0)])
def test_a_list_of_other_clips_is_refused(
    dataset: ReviewDataset, tmp_path: Path, clip: tuple[str, str, int]
) -> None:
    with pytest.raises(InputError, match="`e2e-perception mine` it again"):
        dataset.names(mined(tmp_path / "review.json", clip))


def test_what_is_no_list_is_refused(dataset: ReviewDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no list of `e2e-perception mine`: surprise"):
        dataset.names(mined(tmp_path / "review.json", surprise=1))
    with pytest.raises(InputError, match="cannot be read"):
        dataset.names(tmp_path / "absent.json")


def test_a_table_of_labels_that_the_clip_contradicts_is_refused(tmp_path: Path) -> None:
    path = review_set(tmp_path / "set", clips=1, identity=55)
    opened = ReviewDataset.open(path)
    with pytest.raises(InputError, match=r"has 55 in frame 0, slot 0, the clip has not"):
        opened.read(opened.names()[0])


def test_a_shard_of_an_unknown_size_is_refused(tmp_path: Path) -> None:
    path = review_set(tmp_path / "set", clips=1)
    facts = path / "shards" / "drive" / "shard.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"tiny"', '"vast"'), encoding="utf-8")
    opened = ReviewDataset.open(path)
    with pytest.raises(InputError, match="made for size 'vast', expected one of nano, tiny"):
        opened.read(opened.names()[0])
