"""Layers of labels: what is written is read, and what cannot be is refused, whoever made the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: `pip install .[training]`")
import pyarrow.parquet as pq  # noqa: E402

from e2e_perception.core.boxes import CLASSES  # noqa: E402
from e2e_perception.core.errors import InputError  # noqa: E402
from e2e_perception.data import label_layers  # noqa: E402
from e2e_perception.data.label_layers import (  # noqa: E402
    LAYER_SCHEMA,
    METADATA,
    VERDICTS,
    Layer,
    LayerRow,
    read_layer,
    write_layer,
)

SHARDS = {"monday-1": "ab" * 32, "tuesday-2": "cd" * 32}
ROW = LayerRow(
    clip_id="monday-1/000003",
    stamp_ns=1_700_000_000_000_000_000,
    identity=7,
    class_name="car",
    x=12.5,
    y=-3.25,
    z=0.75,
    length=4.5,
    width=1.75,
    height=1.5,
    yaw=0.5,
    vx=5.0,
    vy=-0.5,
    source="review",
    tool="e2e-perception 0.1.0",
    bundle_digest=None,
    confidence=1.0,
    reviewer="Ada",
    verdict="label",
)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


rows = st.builds(
    LayerRow,
    clip_id=st.sampled_from(["monday-1/000000", "monday-1/000001", "tuesday-2/000000"]),
    stamp_ns=st.integers(0, 2**63 - 1),
    identity=st.integers(0, 2**63 - 1),
    class_name=st.sampled_from(CLASSES),
    x=number(-10000.0, 10000.0),
    y=number(-10000.0, 10000.0),
    z=number(-10.0, 10.0),
    length=number(0.125, 100.0),
    width=number(0.125, 100.0),
    height=number(0.125, 100.0),
    yaw=number(-3.140625, 3.140625),
    vx=number(-100.0, 100.0),
    vy=number(-100.0, 100.0),
    source=st.sampled_from(["review", "topic:/labels", "autolabel"]),
    tool=st.text("abc 0.1", min_size=1, max_size=20),
    bundle_digest=st.none() | st.just("ef" * 32),
    confidence=number(0.0, 1.0),
    reviewer=st.none() | st.sampled_from(["Ada", "Émilie", "王"]),
    verdict=st.sampled_from(VERDICTS),
)


@given(
    found=st.lists(rows, max_size=12, unique_by=lambda row: (row.clip_id, row.stamp_ns, row.identity)),
    complete=st.sets(st.sampled_from(["monday-1/000000", "tuesday-2/000009"])),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, found: list[LayerRow], complete: set[str]
) -> None:
    path = tmp_path_factory.mktemp("layers") / "deep" / "layer.parquet"
    write_layer(path, found, shards=SHARDS, complete=complete)
    layer = read_layer(path)
    assert layer == Layer(tuple(found), SHARDS, frozenset(complete))
    assert layer.digest == Layer(tuple(found), dict(reversed(SHARDS.items())), frozenset(complete)).digest
    assert list(path.parent.iterdir()) == [path], "nothing half-written stays"


def test_the_digest_is_of_all_that_a_layer_says() -> None:
    layer = Layer((ROW,), SHARDS)
    others = [
        Layer((), SHARDS),
        Layer((ROW,), {"monday-1": "ab" * 32}),
        Layer((ROW,), SHARDS, frozenset({"monday-1/000003"})),
        *(
            Layer((replace(ROW, **change),), SHARDS)
            for change in (
                {"x": 12.0},
                {"verdict": "rejected"},
                {"reviewer": None},
                {"identity": 8},
                {"class_name": "truck"},
            )
        ),
    ]
    assert len({layer.digest, *(other.digest for other in others)}) == len(others) + 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"class_name": "lorry"}, r"row 1: class is 'lorry', expected one of car, truck"),
    ({"verdict": "perhaps"}, r"verdict is 'perhaps', expected one of label, rejected"),
    ({"x": math.nan}, r"row 1: x is nan, expected a finite number"),
    ({"vy": math.inf}, r"vy is inf, expected a finite number"),
    ({"z": 1e39}, r"z is inf, expected a finite number"),
    ({"y": 2e4}, r"y is 20000.0, expected at most 10000"),
    ({"length": 0.0}, r"length is 0.0, expected more than 0"),
    ({"height": -1.0}, r"height is -1.0, expected more than 0"),
    ({"width": 101.0}, r"width is 101.0, expected more than 0 and at most 100"),
    ({"yaw": 3.2}, r"yaw is 3.2\d*, expected -pi to pi"),
    ({"confidence": 1.5}, r"confidence is 1.5, expected 0 to 1"),
    ({"confidence": -0.5}, r"confidence is -0.5, expected 0 to 1"),
    ({"identity": -1}, r"identity is -1, expected at least 0"),
    ({"stamp_ns": -1}, r"stamp_ns is -1, expected at least 0"),
    ({"source": ""}, r"source is '', expected a name"),
    ({"clip_id": "friday-5/000000"}, r"clip 'friday-5/000000': expected SHARD/CLIP"),
    ({"clip_id": "000000"}, r"clip '000000': expected SHARD/CLIP with one of the layer's 2 shards"),
    ({"identity": 6}, r"identity 6 is twice in clip monday-1/000003"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_cannot_be_is_not_written_and_what_was_there_stays(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "layer.parquet"
    write_layer(path, [ROW], shards=SHARDS)
    with pytest.raises(InputError, match=message):
        write_layer(path, [replace(ROW, identity=6), replace(ROW, **change)], shards=SHARDS)
    assert read_layer(path).rows == (ROW,)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_cannot_be_is_not_read(
    tmp_path: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer.parquet"
    with monkeypatch.context() as unchecked:
        unchecked.setattr(label_layers, "_check_rows", lambda *_: None)
        unchecked.setattr(label_layers, "_check_places", lambda *_: None)
        write_layer(path, [replace(ROW, identity=6), replace(ROW, **change)], shards=SHARDS)
    with pytest.raises(InputError, match=message):
        read_layer(path)


def test_numbers_that_are_none_are_said(tmp_path: Path) -> None:
    odd: Any = {"x": "far", "identity": 2**70}
    for name, value in odd.items():
        with pytest.raises(InputError, match="do not fit the columns"):
            write_layer(tmp_path / "layer.parquet", [replace(ROW, **{name: value})], shards=SHARDS)


def table(**columns: Any) -> Any:
    """One good row, with other columns in place of some."""
    values = {name: getattr(ROW, name if name != "class" else "class_name") for name in LAYER_SCHEMA.names}
    arrays = {name: pa.array([value], LAYER_SCHEMA.field(name).type) for name, value in values.items()}
    return pa.table({**arrays, **columns})


def metadata(**changes: Any) -> dict[bytes, str]:
    return {METADATA: json.dumps({"format": 1, "shards": SHARDS, "complete": [], **changes})}


def test_a_table_that_is_no_layer_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "layer.parquet"
    good = table().replace_schema_metadata(metadata())
    bad = [
        (table(), "does not say for which shards"),
        (table().replace_schema_metadata({METADATA: "{"}), "no layer of labels, or damaged"),
        (table().replace_schema_metadata({METADATA: "[]"}), "has format None, this release reads 1"),
        (table().replace_schema_metadata(metadata(format=9)), "has format 9, this release reads 1"),
        (table().replace_schema_metadata(metadata(shards=["a"])), "expected names and digests"),
        (table().replace_schema_metadata(metadata(shards={"a": 1})), "expected names and digests"),
        (table().replace_schema_metadata(metadata(complete={"a": 1})), "expected names and digests"),
        (table().replace_schema_metadata(metadata(complete=["friday/0"])), "clip 'friday/0'"),
        (table().replace_schema_metadata(metadata(pad=" " * (1 << 22))), "does not say for which shards"),
        (good.drop_columns(["yaw"]), "has columns clip_id, stamp_ns"),
        (good.append_column("extra", pa.array([1])), "has columns .*extra"),
        (good.set_column(4, "x", pa.array([1.0], pa.float64())), "column x is double, expected float"),
        (good.set_column(1, "stamp_ns", pa.array(["now"])), "column stamp_ns is string, expected int64"),
        (good.set_column(2, "identity", pa.array([None], pa.int64())), "column identity lacks 1 values"),
        (good.set_column(0, "clip_id", pa.array([None], pa.string())), "column clip_id lacks 1 values"),
        (good.set_column(14, "tool", pa.array(["x" * 300])), "tool has a word of 300 bytes, expected at"),
    ]  # fmt: skip
    for content, message in bad:
        pq.write_table(content, path)
        with pytest.raises(InputError, match=message):
            read_layer(path)
    pq.write_table(good, path)
    assert read_layer(path).rows == (ROW,)


def test_a_file_that_says_one_thing_too_often_is_not_taken_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer.parquet"
    many = pa.concat_tables([table()] * 200).combine_chunks()
    many = many.set_column(2, "identity", pa.array(range(200), pa.int64()))
    pq.write_table(many.replace_schema_metadata(metadata()), path)
    assert len(read_layer(path).rows) == 200
    monkeypatch.setattr(label_layers, "MAX_ROWS", 199)
    with pytest.raises(InputError, match="more than 199 rows; split it by shards"):
        read_layer(path)


def test_a_damaged_file_is_refused_or_read_but_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "layer.parquet"
    write_layer(path, [replace(ROW, identity=k) for k in range(20)], shards=SHARDS)
    whole = path.read_bytes()
    refused = 0
    rng = np.random.default_rng(0)
    cut = [whole[:size] for size in (0, 3, 100, len(whole) // 2, len(whole) - 1)]
    for data in cut:
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            read_layer(path)
    for position in rng.integers(0, len(whole), 200).tolist():
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            read_layer(path)
        except InputError:
            refused += 1
    assert refused > 50
    path.write_text("not parquet")
    with pytest.raises(InputError, match="no layer of labels, or damaged"):
        read_layer(path)
    with pytest.raises(InputError, match="no layer of labels, or damaged"):
        read_layer(tmp_path / "absent.parquet")


def test_with_one_shard_a_clip_needs_no_shard_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "layer.parquet"
    write_layer(path, [replace(ROW, clip_id="000003")], shards={"monday-1": "ab" * 32})
    layer = read_layer(path)
    assert layer.place(layer.rows[0].clip_id) == layer.place("monday-1/000003") == ("monday-1", "000003")
    twice = [replace(ROW, clip_id="000003"), ROW]
    with pytest.raises(InputError, match="identity 7 is twice"):
        write_layer(path, twice, shards={"monday-1": "ab" * 32})
