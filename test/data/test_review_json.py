"""The plain document: what comes back is what it says, and nothing else is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from review_sets import FRAMES, review_set

from e2e_perception.core.errors import InputError
from e2e_perception.data.label_layers import LayerRow, read_layer, write_layer
from e2e_perception.data.review_clips import BOX_NUMBERS, ReviewDataset
from e2e_perception.data.review_json import DOCUMENT, export_json, import_json
from e2e_perception.data.review_verdicts import Tally


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReviewDataset:
    return ReviewDataset.open(review_set(tmp_path_factory.mktemp("sets") / "set"))


@pytest.fixture(scope="module")
def out(dataset: ReviewDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "out"
    assert export_json(dataset, dataset.names(), path) == {"clips": 2, "frames": 6, "boxes": 18, "outside": 0}
    return path


@pytest.fixture
def document(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / DOCUMENT).read_text(encoding="utf-8"))
    return found


def back(
    document: dict[str, Any], dataset: ReviewDataset, tmp_path: Path, tally: Tally | None = None
) -> list[LayerRow]:
    (tmp_path / "back.json").write_text(json.dumps(document), encoding="utf-8")
    rows, _ = import_json(tmp_path / "back.json", dataset, "kim", tally or Tally())
    return rows


def test_what_nobody_touched_is_accepted_and_survives_the_layer(
    document: dict[str, Any], dataset: ReviewDataset, tmp_path: Path
) -> None:
    tally = Tally()
    rows = back(document, dataset, tmp_path, tally)
    assert tally == Tally(accepted=18)
    label = dataset.read(dataset.names()[0]).at(0)[0]
    assert [getattr(rows[0], name) for name in BOX_NUMBERS] == [
        getattr(label.box, name) for name in BOX_NUMBERS
    ]
    write_layer(tmp_path / "layer.parquet", rows, shards=dataset.digests)
    layer = read_layer(tmp_path / "layer.parquet")
    assert list(layer.rows) == rows and layer.shards == dataset.digests


def test_every_picture_that_the_document_names_is_there(document: dict[str, Any], out: Path) -> None:
    for clip in document["clips"]:
        for frame in clip["frames"]:
            assert set(frame["pictures"]) == {"birdseye", "front", "left"}  # the third camera is dead
            assert cv2.imread(str(out / frame["pictures"]["birdseye"])).shape == (640, 960, 3)
            assert cv2.imread(str(out / frame["pictures"]["front"])).shape == (128, 352, 3)


def test_edits_rejections_and_additions_come_back(
    document: dict[str, Any], dataset: ReviewDataset, tmp_path: Path
) -> None:
    frame = document["clips"][0]["frames"][1]
    frame["labels"][0].update({"x": 12.5, "class": "truck"})
    frame["labels"][1]["verdict"] = "rejected"
    new = {**frame["labels"][2], "identity": None, "y": -12.0, "vx": 3.0}
    del frame["labels"][2]
    frame["labels"].append(new)
    del document["clips"][0]["frames"][2]  # was not looked at
    del document["clips"][1]
    tally = Tally()
    rows = back(document, dataset, tmp_path, tally)
    assert tally == Tally(accepted=3, edited=1, rejected=2, added=1)
    mine = {row.identity: row for row in rows if row.stamp_ns == frame["stamp_ns"]}
    assert (mine[100].x, mine[100].class_name, mine[100].bundle_digest) == (12.5, "truck", None)
    assert (mine[101].verdict, mine[102].verdict) == ("rejected", "rejected")
    assert (mine[103].y, mine[103].vx, mine[103].verdict) == (-12.0, 3.0, "label")
    assert {row.clip_id for row in rows} == {"drive/000000"}


def test_a_known_identity_in_a_frame_that_had_it_not_goes_on(
    document: dict[str, Any], dataset: ReviewDataset, tmp_path: Path
) -> None:
    frame = document["clips"][0]["frames"][0]
    frame["labels"].append({**frame["labels"][0], "identity": 777})
    document["clips"][0]["frames"][2]["labels"].append({**frame["labels"][0], "identity": 777})
    rows = [row for row in back(document, dataset, tmp_path) if row.identity == 103]
    assert [row.stamp_ns for row in rows] == [0, 200_000_000]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, FRAMES - 1), st.integers(0, 2)), unique=True),
    st.lists(
        st.tuples(st.integers(0, FRAMES - 1), st.integers(0, 2), st.floats(-20, 20, width=32)), max_size=5
    ),
)
def test_every_label_that_was_shown_gets_exactly_one_verdict(
    dataset: ReviewDataset,
    out: Path,
    tmp_path: Path,
    taken_away: list[tuple[int, int]],
    moved: list[tuple[int, int, float]],
) -> None:
    document = json.loads((out / DOCUMENT).read_text(encoding="utf-8"))
    frames = document["clips"][0]["frames"]
    for t, slot, y in moved:
        frames[t]["labels"][slot]["y"] = y
    for t, frame in enumerate(frames):
        frame["labels"] = [label for slot, label in enumerate(frame["labels"]) if (t, slot) not in taken_away]
    tally = Tally()
    rows = [row for row in back(document, dataset, tmp_path, tally) if row.clip_id == "drive/000000"]
    assert sorted((row.stamp_ns, row.identity) for row in rows) == sorted(
        (t * 100_000_000, 100 + slot) for t in range(FRAMES) for slot in range(3)
    )
    assert sum(row.verdict == "rejected" for row in rows) == tally.rejected == len(taken_away)
    assert tally.accepted + tally.edited == 18 - len(taken_away) and tally.added == 0
    assert tally.edited <= len({(t, slot) for t, slot, _ in moved} - set(taken_away))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="coco"), "no document of `review export`: format"),
        (lambda d: d.update(more=1), "more: Extra inputs"),
        (lambda d: d["shards"].update(drive="0" * 64), "was made for shard drive with digest"),
        (lambda d: d["shards"].update(other="0" * 64), "is for shard other, which"),
        (lambda d: d["shards"].clear(), "not in .* as it was exported"),
        (lambda d: d["clips"].append(d["clips"][0]), "there twice"),
        (lambda d: d["clips"][0].update(clip_id="../../etc"), "not in .* as it was exported"),
        (lambda d: d["clips"][0]["frames"][0].update(stamp_ns=5), "no frame of that number at 5 ns"),
        (lambda d: d["clips"][0]["frames"][0].update(frame=99), "no frame of that number"),
        (lambda d: d["clips"][0]["frames"].append(d["clips"][0]["frames"][0]), "is there twice"),
        (lambda d: d["clips"][0]["frames"][0]["labels"][0].update({"class": "<script>"}), "class '<script>'"),
        (
            lambda d: d["clips"][0]["frames"][0]["labels"][0].update(width=0.0),
            "width: Input should be greater",
        ),
        (
            lambda d: d["clips"][0]["frames"][0]["labels"][0].update(identity=2**63),
            "identity: Input should be",
        ),
        (
            lambda d: d["clips"][0]["frames"][0]["labels"][0].update(x="near"),
            "x: Input should be a valid number",
        ),
        (lambda d: d["clips"][0]["frames"][0]["labels"][0].update(identity=101), "object 101 is there twice"),
    ],
)
def test_what_cannot_be_is_refused(
    document: dict[str, Any], dataset: ReviewDataset, tmp_path: Path, change: Any, message: str
) -> None:
    change(document)
    with pytest.raises(InputError, match=message):
        back(document, dataset, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"clips": NaN', b"\xff\xfe", b'{"pixel": 1e999}'])
def test_damaged_documents_are_refused(content: bytes, dataset: ReviewDataset, tmp_path: Path) -> None:
    (tmp_path / "back.json").write_bytes(content)
    with pytest.raises(InputError, match="no document of `review export`"):
        import_json(tmp_path / "back.json", dataset, "kim", Tally())
