"""Clips on disk: they come back as they were, half-written ones do not exist, damage is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import INDEX, ClipStore, ClipWriter, clip_digest, split_of


def filled(path: Path, count: int = 3) -> ClipStore:
    writer = ClipWriter(path)
    for seed in range(count):
        assert writer.write(f"clip-{seed}", synthetic_clip(seed=seed))
    return writer.finish()


def assert_same(a: Clip, b: Clip) -> None:
    assert (a.source, a.scenario, a.maps_valid) == (b.source, b.scenario, b.maps_valid)
    assert set(a.arrays()) == set(b.arrays())
    for name, value in a.arrays().items():
        other = b.arrays()[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        np.testing.assert_array_equal(value, other, err_msg=name)


def test_a_clip_comes_back_as_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert len(store) == 3
    for index in range(3):
        assert_same(store.read(index), synthetic_clip(seed=index))


def test_arrays_can_be_written_to_and_are_aligned(tmp_path: Path) -> None:
    for name, value in filled(tmp_path, 1).read(0).arrays().items():
        assert value.flags.writeable, name
        assert value.flags.aligned, name


def test_empty_arrays_survive(tmp_path: Path) -> None:
    clip = synthetic_clip()
    empty = dataclasses.replace(clip, inputs={**clip.inputs, "lidar_valid": np.zeros((4, 0), np.float32)})
    writer = ClipWriter(tmp_path)
    writer.write("empty", empty)
    assert_same(writer.finish().read(0), empty)


def test_writing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path)
    assert writer.write("a", synthetic_clip(seed=0))
    again = ClipWriter(tmp_path)
    assert again.has("a")
    assert not again.has("b")
    assert not again.write("a", synthetic_clip(seed=1))
    assert again.write("b", synthetic_clip(seed=1))
    store = again.finish()
    assert [row["clip_id"] for row in store.rows] == ["a", "b"]
    assert_same(store.read(0), synthetic_clip(seed=0))


def test_a_clip_whose_writer_was_killed_does_not_exist_and_is_written_anew(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path)
    writer.write("a", synthetic_clip(seed=0))
    (tmp_path / "index" / "a.json").unlink()  # killed between the arrays and the row
    assert not writer.has("a")
    assert len(writer.finish()) == 0
    assert writer.write("a", synthetic_clip(seed=1))
    assert_same(writer.finish().read(0), synthetic_clip(seed=1))


def test_digest_depends_on_content_and_not_on_order_of_writing(tmp_path: Path) -> None:
    first = filled(tmp_path / "first")
    writer = ClipWriter(tmp_path / "second")
    for seed in (2, 0, 1):
        writer.write(f"clip-{seed}", synthetic_clip(seed=seed))
    assert writer.finish().digest == first.digest
    writer = ClipWriter(tmp_path / "third")
    for seed in range(3):
        writer.write(f"clip-{seed}", synthetic_clip(seed=seed + 1))
    assert writer.finish().digest != first.digest


def test_every_array_and_the_provenance_count_for_the_digest() -> None:
    clip = synthetic_clip()
    digest = clip_digest(clip)
    assert clip_digest(synthetic_clip()) == digest
    assert clip_digest(dataclasses.replace(clip, source="elsewhere")) != digest
    for name in ("weights_TB", "maps_T2YX"):
        changed = getattr(clip, name).copy()
        changed.flat[0] += 1
        assert clip_digest(dataclasses.replace(clip, **{name: changed})) != digest


def test_splits_go_by_scenario_and_share_none(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path)
    for seed in range(40):
        clip = dataclasses.replace(synthetic_clip(seed=seed, num_frames=2), scenario=f"highway/{seed // 2}")
        writer.write(f"clip-{seed:02d}", clip)
    store = writer.finish()
    train, validation = store.indices("train"), store.indices("validation")
    assert sorted([*train, *validation]) == list(range(40))
    scenarios = [{store.rows[i]["scenario"] for i in part} for part in (train, validation)]
    assert not scenarios[0] & scenarios[1]
    share = np.mean([split_of(f"highway/{seed}") == "validation" for seed in range(3000)])
    assert share == pytest.approx(0.1, abs=0.02)


def test_a_directory_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a dataset of clips: it has no index\.parquet"):
        ClipStore(tmp_path)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (tmp_path / INDEX).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"index\.parquet cannot be read"):
        ClipStore(tmp_path)


def test_missing_and_cut_off_clips_are_errors(tmp_path: Path) -> None:
    store = filled(tmp_path)
    shutil.rmtree(tmp_path / "clips" / "clip-0")
    with pytest.raises(InputError, match=r"clip-0 is damaged.*is not there.*simulate or ingest it again"):
        store.read(0)
    chunk = max(
        (tmp_path / "clips" / "clip-1").rglob("c/*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    chunk = next(p for p in [chunk, *chunk.rglob("*")] if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(InputError, match="clip-1 is damaged"):
        store.read(1)
    store.read(2)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 5},
        {"layout": [5]},
        {"dtype": "O"},
        {"dtype": "nonsense"},
        {"shape": [2**45]},
        {"shape": [2**70]},
        {"shape": None},
        {"offset": "x"},
    ],
)
def test_metadata_that_were_altered_are_errors(tmp_path: Path, change: dict[str, Any]) -> None:
    store = filled(tmp_path, 1)
    file = tmp_path / "clips" / "clip-0" / "zarr.json"
    document = json.loads(file.read_text())
    layout = document["attributes"]["layout"]
    if "layout" in change:
        document["attributes"]["layout"] = change["layout"]
    else:
        next(entry for entry in layout if "dtype" in entry).update(change)
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="clip-0 is damaged"):
        store.read(0)


def test_an_array_beyond_all_memory_is_an_error(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    file = next((tmp_path / "clips" / "clip-0").glob("*/zarr.json"))
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "shape": [2**45, *document["shape"][1:]]}))
    with pytest.raises(InputError, match="clip-0 is damaged"):
        store.read(0)


def test_verify_finds_a_clip_that_was_exchanged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.verify()
    shutil.rmtree(tmp_path / "clips" / "clip-1")
    shutil.copytree(tmp_path / "clips" / "clip-2", tmp_path / "clips" / "clip-1")
    with pytest.raises(InputError, match=r"clip-1 was altered: digest \w{12}…, the index says \w{12}…"):
        store.verify()
    store.verify([0, 2])


@pytest.mark.parametrize("clip_id", ["", "../a", "a/b", ".hidden", "a b"])
def test_clip_ids_that_are_no_file_names_are_refused(tmp_path: Path, clip_id: str) -> None:
    with pytest.raises(InputError, match="expected letters, digits"):
        ClipWriter(tmp_path).write(clip_id, synthetic_clip())


@pytest.mark.parametrize("clip_id", ["../clip-0", "/etc", "clip-0\n", None])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, clip_id: str | None) -> None:
    table = pq.read_table(filled(tmp_path, 1).path / INDEX)
    odd = table.set_column(0, "clip_id", pa.array([clip_id], pa.string()))
    pq.write_table(odd, tmp_path / INDEX)
    with pytest.raises(InputError, match=r"index\.parquet lists a clip .*expected letters, digits"):
        ClipStore(tmp_path)
