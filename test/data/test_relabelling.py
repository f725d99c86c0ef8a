"""A shard with layers becomes another shard: labels and futures as they are true, the old one as it was."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")
pytest.importorskip("scipy", reason="scipy is not installed: `pip install .[training]`")

from drives import NETWORK, PERIOD_NS, SHARD, SOURCE, layer_rows, others, robot, write_dataset

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.label_layers import Layer, LayerRow
from e2e_perception.data.label_merging import KINDS
from e2e_perception.data.relabelling import (
    LONGEST_STEM,
    Relabelled,
    fitting,
    network_of,
    opened_dataset,
    relabel,
)
from e2e_perception.data.shards import SHARD as FACTS_FILE
from e2e_perception.data.shards import Dataset, read_labels

NUM_FRAMES, LENGTH = 15, 5
HORIZON = 40  # frames


def layer(
    dataset: Dataset, rows: list[LayerRow], *, complete: tuple[int, ...] = (), name: str = SHARD
) -> Layer:
    digests = {shard.name: shard.digest for shard in dataset.shards()}
    return Layer(tuple(rows), {name: digests[name]}, frozenset(f"{name}/{n:06d}" for n in complete))


def truth(clips: range = range(3), *, beyond: int = 0, **more: Any) -> list[LayerRow]:
    """Rows of the clips' frames, and of `beyond` frames after the last one."""
    rows = [r for n in clips for r in layer_rows(f"{SHARD}/{n:06d}", stamps(n), **more)]
    last = max(clips)
    after = [(LENGTH * (last + 1) + k) * PERIOD_NS for k in range(beyond)]
    return [*rows, *layer_rows(f"{SHARD}/{last:06d}", after, **more)]


def stamps(number: int) -> list[int]:
    return [(LENGTH * number + t) * PERIOD_NS for t in range(LENGTH)]


def run(
    tmp_path: Path, dataset: Dataset, *layers: Layer, precedence: tuple[str, ...] = KINDS
) -> tuple[Relabelled, list[Clip]]:
    out = Dataset(tmp_path / "new")
    told = relabel(dataset, SHARD, layers, precedence, out)
    out.verify()
    store = ClipStore(out.directory(told.shard))
    return told, [store.read(i) for i in range(len(store))]


def by_identity(clip: Clip, field: str, t: int) -> dict[int, Any]:
    values = getattr(clip, field)[t]
    return {int(i): values[slot] for slot, i in enumerate(clip.ids_TB[t].tolist()) if i >= 0}


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("plain") / "set", NUM_FRAMES, labelled=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("told") / "set", NUM_FRAMES, labelled=True)


@pytest.mark.parametrize("beyond", [0, 10, HORIZON])
def test_labels_and_futures_of_a_layer_are_where_the_objects_were(
    tmp_path: Path, unlabelled: Dataset, beyond: int
) -> None:
    told, clips = run(tmp_path, unlabelled, layer(unlabelled, truth(beyond=beyond), complete=(0, 1, 2)))
    assert (told.clips, told.frames, told.labelled_clips, told.unplaced) == (3, NUM_FRAMES, 3, 0)
    assert told.labels == {"review": 2 * NUM_FRAMES} and told.conflicts == []
    known_until = NUM_FRAMES - 1 + beyond
    for clip in clips:
        assert clip.labels_valid
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            expected = others(stamp_ns)
            boxes = by_identity(clip, "boxes_TB10", t)
            assert list(boxes) == sorted(boxes, key=lambda i: float(np.hypot(*boxes[i][:2]))), "nearest first"
            for n, identity in enumerate(expected.ids_N.tolist()):
                box = dict(zip(BOX_FIELDS, boxes[identity].tolist(), strict=True))
                np.testing.assert_allclose((box["x"], box["y"], box["z"]), expected.centers_N3[n], atol=1e-4)
                np.testing.assert_allclose((box["vx"], box["vy"]), expected.velocities_N2[n], atol=1e-4)
                np.testing.assert_allclose(box["log_length"], np.log(4.0), atol=1e-5)
                assert np.arctan2(box["sin_yaw"], box["cos_yaw"]) == pytest.approx(
                    expected.yaws_N[n], abs=1e-5
                )
            futures = by_identity(clip, "futures_TBS2", t)
            valid = by_identity(clip, "futures_valid_TBS", t)
            base_from_odom = robot(stamp_ns).odom_from_base.planar_part().inverse()
            for s, ahead_s in enumerate(NETWORK.times_T.tolist()):
                later_ns = stamp_ns + round(ahead_s * 1e9)
                there = others(later_ns)
                odom_N2 = robot(later_ns).odom_from_base.planar_part().apply(there.centers_N3[:, :2])
                for n, identity in enumerate(there.ids_N.tolist()):
                    assert valid[identity][s] == (later_ns <= known_until * PERIOD_NS)
                    if valid[identity][s]:
                        np.testing.assert_allclose(
                            futures[identity][s], base_from_odom.apply(odom_N2)[n], atol=0.02
                        )
    assert not clips[0].weights_TB[clips[0].ids_TB < 0].any()


def test_merging_a_dataset_with_its_own_labels_changes_nothing(tmp_path: Path, labelled: Dataset) -> None:
    same = truth(source=SOURCE, reviewer=None, tool="hand")
    told, clips = run(tmp_path, labelled, layer(labelled, same), precedence=("topic",))
    assert told.conflicts == []
    (store,) = labelled.stores()
    for index, clip in enumerate(clips):
        before = store.read(index)
        for name in ("class_ids_TB", "ids_TB", "visible_TB", "weights_TB", "futures_valid_TBS"):
            np.testing.assert_array_equal(getattr(clip, name), getattr(before, name), err_msg=name)
        np.testing.assert_allclose(clip.boxes_TB10, before.boxes_TB10, atol=1e-4)
        np.testing.assert_allclose(clip.futures_TBS2, before.futures_TBS2, atol=0.02)
    lower = [replace(r, source="autolabel") for r in same]
    _, clips = run(tmp_path / "lower", labelled, layer(labelled, lower))
    for index, clip in enumerate(clips):
        before = store.read(index)
        np.testing.assert_array_equal(clip.boxes_TB10, before.boxes_TB10)
        for name, value in before.inputs.items():
            np.testing.assert_array_equal(clip.inputs[name], value)


def test_the_old_dataset_is_untouched_and_the_new_shard_is_made_once(
    tmp_path: Path, unlabelled: Dataset
) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in unlabelled.path.rglob("*") if p.is_file()}
    given = layer(unlabelled, truth(), complete=(0, 1, 2))
    first, _ = run(tmp_path, unlabelled, given)
    again, _ = run(tmp_path, unlabelled, given)
    assert (first.new, again.new) == (True, False)
    assert replace(again, new=True) == first
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in unlabelled.path.rglob("*") if p.is_file()}
    assert after == before
    out = Dataset(tmp_path / "new")
    facts = out.facts(first.shard)
    assert facts["recipe"] == {
        "size": "tiny",
        "shard": SHARD,
        "shard_digest": unlabelled.shards()[0].digest,
        "layers": [given.digest],
        "precedence": list(KINDS),
    }
    assert facts["source"] == {"kind": "bag", "name": SHARD} and facts["label_sources"] == ["review"]
    assert first.shard.startswith(f"{SHARD[:LONGEST_STEM]}-") and len(first.shard) == len(SHARD) + 13
    other = layer(unlabelled, truth(confidence=0.5), complete=(0, 1, 2))
    assert run(tmp_path, unlabelled, other)[0].shard != first.shard
    assert len(out.shards()) == 2
    # The new shard is a dataset like any other, and can be labelled again.
    assert network_of(out, first.shard) == NETWORK


def test_every_label_says_where_it_comes_from(tmp_path: Path, labelled: Dataset) -> None:
    rows = [r for r in truth(range(1, 2), reviewer="Ada", confidence=0.75) if r.identity == 7]
    told, clips = run(tmp_path, labelled, layer(labelled, rows))
    assert told.labels == {"review": LENGTH, SOURCE: 2 * NUM_FRAMES - LENGTH}
    directory = Dataset(tmp_path / "new").directory(told.shard)
    for row in read_labels(directory):
        clip = clips[int(row["clip_id"])]
        assert clip.ids_TB[row["frame"], row["slot"]] == row["identity"]
        reviewed = row["clip_id"] == "000001" and row["identity"] == 7
        assert (row["source"], row["reviewer"]) == (("review", "Ada") if reviewed else (SOURCE, None))
        assert row["confidence"] == clip.weights_TB[row["frame"], row["slot"]] == (0.75 if reviewed else 1.0)
    index = {row["clip_id"]: row["label_sources"] for row in ClipStore(directory).rows}
    assert index == {"000000": [SOURCE], "000001": ["review", SOURCE], "000002": [SOURCE]}


def test_everybody_is_labelled_only_where_somebody_declares_it(tmp_path: Path, unlabelled: Dataset) -> None:
    told, clips = run(tmp_path, unlabelled, layer(unlabelled, truth(), complete=(1,)))
    assert [clip.labels_valid for clip in clips] == [False, True, False]
    assert told.labelled_clips == 1 and all((clip.ids_TB >= 0).sum() == 2 * LENGTH for clip in clips)
    empty = layer(unlabelled, [], complete=(0, 1, 2))
    told, clips = run(tmp_path / "empty", unlabelled, empty)
    assert told.labelled_clips == 3 and told.labels == {}


def test_a_rejection_removes_label_and_future_and_is_listed(tmp_path: Path, labelled: Dataset) -> None:
    rejected = [r for r in truth(range(1, 2), verdict="rejected") if r.identity == 9]
    told, clips = run(tmp_path, labelled, layer(labelled, rejected))
    assert Counter(row["kind"] for row in told.conflicts) == {"rejected": LENGTH}
    assert [(row["clip_id"], row["stamp_ns"]) for row in told.conflicts] == [
        ("000001", stamp_ns) for stamp_ns in stamps(1)
    ]
    for number, clip in enumerate(clips):
        assert set(clip.ids_TB[clip.ids_TB >= 0].tolist()) == ({7} if number == 1 else {7, 9})
        assert clip.labels_valid
    valid = by_identity(clips[0], "futures_valid_TBS", 0)
    assert not valid[9][0] and valid[9][1:].all() and valid[7].all(), "at 0.5 s it is said not to be there"


def test_an_unseen_object_weighs_nothing_until_a_sensor_saw_it(tmp_path: Path, unlabelled: Dataset) -> None:
    rows = [
        replace(r, confidence=0.0) if r.identity == 9 and r.stamp_ns != 2 * PERIOD_NS else r for r in truth()
    ]
    _, clips = run(tmp_path, unlabelled, layer(unlabelled, rows, complete=(0, 1, 2)))
    assert [by_identity(clips[0], "weights_TB", t)[9] for t in range(LENGTH)] == [0.0, 0.0, 1.0, 1.0, 1.0]
    visible = [t for t in range(LENGTH) if by_identity(clips[0], "visible_TB", t)[9]]
    assert visible == [2]
    assert [by_identity(clips[1], "weights_TB", t)[9] for t in range(LENGTH)] == [0.0] * LENGTH


def test_overlapping_clips_agree(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", 12, labelled=False, length=6, stride=3)
    starts = [int(c.stamps_ns_T[0]) // PERIOD_NS for c in map(dataset.stores()[0].read, range(3))]
    assert starts == [0, 3, 6]
    rows = [
        r
        for n, start in enumerate(starts)
        for r in layer_rows(f"{SHARD}/{n:06d}", [(start + t) * PERIOD_NS for t in range(6)])
    ]
    _, clips = run(tmp_path, dataset, layer(dataset, rows, complete=(0, 1, 2)))
    np.testing.assert_allclose(clips[0].boxes_TB10[3:], clips[1].boxes_TB10[:3], atol=1e-5)
    np.testing.assert_allclose(clips[0].futures_TBS2[3:], clips[1].futures_TBS2[:3], atol=1e-3)
    np.testing.assert_array_equal(clips[0].futures_valid_TBS[3:], clips[1].futures_valid_TBS[:3])


def test_rows_at_instants_without_a_pose_are_left_out_and_counted(
    tmp_path: Path, unlabelled: Dataset
) -> None:
    late = list(layer_rows(f"{SHARD}/000002", [(NUM_FRAMES + 100) * PERIOD_NS]))
    told, _ = run(tmp_path, unlabelled, layer(unlabelled, [*truth(), *late], complete=(0, 1, 2)))
    assert told.unplaced == 2


def test_a_shard_that_no_layer_speaks_of_is_taken_over(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", 10, labelled=True)
    write_dataset(tmp_path / "set", 10, labelled=False, name="other-1")
    out = Dataset(tmp_path / "new")
    given = layer(dataset, [], complete=(0, 1), name="other-1")
    for new in (True, False):
        told = [relabel(dataset, shard.name, [given], KINDS, out) for shard in dataset.shards()]
        assert [(item.source, item.new) for item in told] == [(SHARD, new), ("other-1", new)]
    before = {shard.name: shard.digest for shard in dataset.shards()}
    after = {shard.name: shard.digest for shard in out.shards()}
    assert after[SHARD] == before[SHARD] and len(after) == 2
    out.verify()


@pytest.mark.parametrize("place", ["absolute", "above"])
def test_a_shard_that_lists_a_file_elsewhere_is_refused_and_the_file_is_left_alone(
    tmp_path: Path, place: str
) -> None:
    dataset = write_dataset(tmp_path / "set", 10, labelled=True)
    victim = tmp_path / "victim.parquet"
    pq.write_table(pa.table({"precious": [1]}), victim, compression="gzip")
    before = victim.read_bytes()
    file = dataset.directory(SHARD) / FACTS_FILE
    name = str(victim) if place == "absolute" else "../../../victim.parquet"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "files": {**facts["files"], name: "0"}}))
    out = Dataset(tmp_path / "new")
    for given in ([], [layer(dataset, [], complete=(0,))]):
        with pytest.raises(InputError, match=r"victim\.parquet'?.*expected a name of letters"):
            relabel(dataset, SHARD, given, KINDS, out)
    with pytest.raises(InputError, match="expected a name of letters"):
        dataset.verify()
    with pytest.raises(InputError, match="expected a name of letters"):
        dataset.seal(SHARD, {"frames": 10}, [], {name: pa.table({"other": [2]})})
    assert victim.read_bytes() == before and out.shards() == []


def test_layers_that_do_not_fit_are_refused(tmp_path: Path, unlabelled: Dataset) -> None:
    good = layer(unlabelled, truth())
    fitting(unlabelled, [good], ["good"])
    with pytest.raises(InputError, match=r"old\.parquet was made for shard drive-0 with digest 00000000000"):
        fitting(unlabelled, [good, Layer((), {SHARD: "0" * 64})], ["good", "old.parquet"])
    with pytest.raises(InputError, match=r"b\.parquet was made for friday; .* has drive-0"):
        fitting(unlabelled, [Layer((), {"friday": "0" * 64})], ["b.parquet"])
    between = list(layer_rows(f"{SHARD}/000001", [stamps(1)[0] + 1]))
    early = list(layer_rows(f"{SHARD}/000001", [stamps(1)[0] - PERIOD_NS]))
    for rows in (between, early):
        with pytest.raises(InputError, match=r"labels clip drive-0/000001 at \d+ ns, where it has no frame"):
            run(tmp_path, unlabelled, layer(unlabelled, rows))
    with pytest.raises(InputError, match="labels clip '000077', which shard drive-0 has not"):
        run(tmp_path, unlabelled, layer(unlabelled, list(layer_rows(f"{SHARD}/000077", [0]))))
    with pytest.raises(InputError, match="labels clip '000009', which shard drive-0 has not"):
        run(tmp_path, unlabelled, layer(unlabelled, [], complete=(9,)))
    with pytest.raises(ConfigError, match="labels of review have no place"):
        run(tmp_path, unlabelled, good, precedence=("topic",))
    assert Dataset(tmp_path / "new").shards() == []


def test_what_is_no_dataset_of_shards_is_refused(tmp_path: Path, labelled: Dataset) -> None:
    with pytest.raises(InputError, match="is no dataset of shards"):
        opened_dataset(tmp_path)
    dataset = write_dataset(tmp_path / "set", 10, labelled=True)
    file = dataset.directory(SHARD) / FACTS_FILE
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "recipe": {"size": "huge"}}))
    with pytest.raises(InputError, match="was made for size 'huge'; expected one of nano"):
        relabel(dataset, SHARD, [layer(dataset, [], complete=(0,))], KINDS, Dataset(tmp_path / "new"))
    file.write_text(json.dumps(facts))
    (dataset.directory(SHARD) / "labels.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InputError, match=r"labels\.parquet cannot be read"):
        relabel(dataset, SHARD, [layer(dataset, [], complete=(0,))], KINDS, Dataset(tmp_path / "new"))
