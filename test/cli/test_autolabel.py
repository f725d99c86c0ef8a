"""`autolabel` and `label`: drives without labels get some that are better than what the robot knew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: `pip install onnxruntime`")
pytest.importorskip("scipy", reason="scipy is not installed: `pip install .[training]`")
pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from drives import write_dataset
from scipy.optimize import linear_sum_assignment

from e2e_perception import __version__
from e2e_perception.cli.autolabel_shard import causal_frames
from e2e_perception.cli.main import main
from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import BOX_FIELDS, SIZES
from e2e_perception.data.clip_store import ClipStore, ClipWriter
from e2e_perception.data.label_layers import Layer, LayerRow, read_layer, write_layer
from e2e_perception.data.shards import Dataset, open_clips, read_labels
from e2e_perception.data.timelines import ClipMotion, timelines
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engines import create_engine

NEAR = 2.0  # [m] within which a label is of an object
AREA = (0.0, 60.0, -20.0, 20.0)  # [m] where objects are looked for
X, Y, VX, VY = (BOX_FIELDS.index(name) for name in ("x", "y", "vx", "vy"))

Tell = Callable[..., dict[str, Any]]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    def run(*words: str | Path, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        told: dict[str, Any] = json.loads(captured.out)
        return told

    return run


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """People cross the road: a simulated drive with everything labelled."""
    path = tmp_path_factory.mktemp("simulated")
    words = ["--kind", "crossing", "--seed", "305", "--duration", "5", "--out", str(path / "bag")]
    assert main(["simulate", *words]) == 0
    assert main(["ingest", str(path / "bag"), "--workers", "1", "--out", str(path / "truth")]) == 0
    return Dataset(path / "truth")


@pytest.fixture(scope="module")
def unlabelled(truth: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same drive as a robot without a labels topic would have recorded it."""
    made = Dataset(tmp_path_factory.mktemp("unlabelled") / "set")
    (shard,), (store,) = truth.shards(), truth.stores()
    with made.writing(shard.name) as directory:
        writer = ClipWriter(directory)
        for index, row in enumerate(store.rows):
            writer.write(str(row["clip_id"]), without_labels(store.read(index)))
        writer.finish()
        facts = {**truth.facts(shard.name), "label_sources": []}
        made.seal(shard.name, facts, [])
    return made


def without_labels(clip: Clip) -> Clip:
    return replace(
        clip,
        boxes_TB10=np.zeros_like(clip.boxes_TB10),
        ids_TB=np.full_like(clip.ids_TB, -1),
        weights_TB=np.zeros_like(clip.weights_TB),
        visible_TB=np.zeros_like(clip.visible_TB),
        futures_valid_TBS=np.zeros_like(clip.futures_valid_TBS),
        labels_valid=False,
    )


@pytest.fixture(scope="module")
def layer_file(unlabelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layer") / "auto.parquet"
    words = ["--bundle", "tiny", "--least-confidence", "0", "--out", str(path)]
    assert main(["autolabel", str(unlabelled.path), *words]) == 0
    return path


def in_area(boxes_N10: NDArray[np.floating]) -> NDArray[np.bool_]:
    x, y = boxes_N10[:, X], boxes_N10[:, Y]
    return np.asarray((x > AREA[0]) & (x < AREA[1]) & (y > AREA[2]) & (y < AREA[3]))


@dataclass
class Errors:
    """Of labels against the truth, gathered over frames."""

    objects: int = 0
    found: int = 0
    places: float = 0.0
    velocities: float = 0.0

    def add(
        self, clip: Clip, t: int, boxes_N10: NDArray[np.floating]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Match the labels of one frame.

        Returns:
            Whether each is of an object that was seen, and whether it is wrong: in the area, of nothing.
        """
        there = clip.boxes_TB10[t, clip.ids_TB[t] >= 0]
        visible = clip.visible_TB[t, clip.ids_TB[t] >= 0]
        every_gap = np.linalg.norm(there[:, None, [X, Y]] - boxes_N10[:, [X, Y]], axis=-1)
        there = there[visible & in_area(there)]
        gap = np.linalg.norm(there[:, None, [X, Y]] - boxes_N10[:, [X, Y]], axis=-1)
        rows, columns = linear_sum_assignment(np.where(gap < NEAR, gap, 100.0))
        good = gap[rows, columns] < NEAR
        rows, columns = rows[good], columns[good]
        self.objects += len(there)
        self.found += len(rows)
        self.places += float(gap[rows, columns].sum())
        off = there[rows][:, [VX, VY]] - boxes_N10[columns][:, [VX, VY]]
        self.velocities += float(np.linalg.norm(off, axis=1).sum())
        hit = np.zeros(len(boxes_N10), bool)
        hit[columns] = True
        return hit, ~(every_gap < NEAR).any(axis=0) & in_area(boxes_N10)

    @property
    def recall(self) -> float:
        return self.found / self.objects

    @property
    def place(self) -> float:
        return self.places / self.found

    @property
    def velocity(self) -> float:
        return self.velocities / self.found


def causal_labels(dataset: Dataset) -> Iterator[tuple[Clip, int, NDArray[np.float64]]]:
    """What the robot knew at each frame: its confirmed tracks."""
    bundle = load_bundle("tiny")
    (store,) = dataset.stores()
    clips = [store.read(i) for i in range(len(store))]
    (timeline,) = timelines([ClipMotion.of(clip) for clip in clips], SIZES["tiny"].times_T)
    engine = create_engine(bundle)
    try:
        for stamp_ns, frame in causal_frames(store, timeline, bundle, engine):
            assert frame is not None
            boxes = frame.tracks.boxes.select(np.flatnonzero(frame.tracks.confirmed_N))
            rows = np.zeros((len(boxes), len(BOX_FIELDS)))
            rows[:, [X, Y]], rows[:, [VX, VY]] = boxes.centers_N3[:, :2], boxes.velocities_N2
            place = timeline.frames[stamp_ns][0]
            yield clips[place.clip], place.t, rows
    finally:
        engine.close()


def by_frame(layer: Layer, clip_id: str, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [r for r in layer.rows if layer.place(r.clip_id)[1] == clip_id and r.stamp_ns == stamp_ns]
    table = np.zeros((len(rows), len(BOX_FIELDS)))
    for n, r in enumerate(rows):
        table[n, [X, Y, VX, VY]] = r.x, r.y, r.vx, r.vy
    return table, np.array([r.confidence for r in rows])


def test_with_hindsight_places_velocities_and_recall_are_better_than_what_the_robot_knew(
    truth: Dataset, layer_file: Path
) -> None:
    causal, smoothed = Errors(), Errors()
    of_hits: list[float] = []
    of_wrong: list[float] = []
    layer = read_layer(layer_file)
    (store,) = truth.stores()
    ids = {int(store.read(i).stamps_ns_T[0]): str(row["clip_id"]) for i, row in enumerate(store.rows)}
    for clip, t, rows in causal_labels(truth):
        causal.add(clip, t, rows)
        table, confidence = by_frame(layer, ids[int(clip.stamps_ns_T[0])], int(clip.stamps_ns_T[t]))
        hit, wrong = Errors().add(clip, t, table)
        of_hits += confidence[hit].tolist()
        of_wrong += confidence[wrong].tolist()
        smoothed.add(clip, t, table[confidence >= 0.3])
    assert causal.objects == smoothed.objects > 100
    assert smoothed.recall >= causal.recall > 0.6
    assert smoothed.place < 0.95 * causal.place
    assert smoothed.velocity < 0.6 * causal.velocity
    right = len(of_hits) / (len(of_hits) + len(of_wrong))
    assert np.mean([*of_hits, *of_wrong]) == pytest.approx(right, abs=0.15), "a chance, on the whole"
    assert np.mean(of_hits) > 0.8
    assert not of_wrong or np.mean(of_hits) > np.mean(of_wrong) + 0.1


def test_a_layer_says_who_made_it_and_that_it_is_complete(unlabelled: Dataset, layer_file: Path) -> None:
    layer = read_layer(layer_file)
    (shard,), (store,) = unlabelled.shards(), unlabelled.stores()
    assert layer.shards == {shard.name: shard.digest}
    assert layer.complete == {f"{shard.name}/{row['clip_id']}" for row in store.rows}
    digest = load_bundle("tiny").digest
    for row in layer.rows:
        assert (row.source, row.tool) == ("autolabel", f"e2e-perception {__version__}")
        assert (row.bundle_digest, row.reviewer, row.verdict) == (digest, None, "label")
        assert 0.0 < row.confidence <= 1.0
    of_track = {}
    for row in layer.rows:
        of_track.setdefault(row.identity, set()).add((row.class_name, row.length, row.width, row.height))
    assert len(of_track) > 1 and all(len(found) == 1 for found in of_track.values()), "one class, one size"


def blinded(clip: Clip, frames: slice) -> Clip:
    """The clip without lidars and cameras in some frames."""
    inputs = {name: value.copy() for name, value in clip.inputs.items()}
    for name in ("lidar_valid", "camera_valid", "lidar_raster", "images"):
        inputs[name][frames] = 0
    return replace(clip, inputs=inputs)


def test_a_clip_with_a_frame_without_lidar_and_camera_is_not_complete(
    unlabelled: Dataset, tmp_path: Path, tell: Tell
) -> None:
    """The first clip sees nothing, the second misses one frame, the others see everything."""
    made = Dataset(tmp_path / "set")
    (shard,), (store,) = unlabelled.shards(), unlabelled.stores()
    hidden = {0: slice(None), 1: slice(4, 5)}
    with made.writing(shard.name) as directory:
        writer = ClipWriter(directory)
        for index, row in enumerate(store.rows):
            writer.write(str(row["clip_id"]), blinded(store.read(index), hidden.get(index, slice(0))))
        writer.finish()
        made.seal(shard.name, unlabelled.facts(shard.name), [])
    told = tell("autolabel", made.path, "--bundle", "tiny", "--out", tmp_path / "auto.parquet")
    assert told["complete_clips"] == len(store) - 2
    assert told["blind_frames"] == store.rows[0]["num_frames"] + 1 and told["bad_frames"] == 0
    tell("label", made.path, tmp_path / "auto.parquet", "--out", tmp_path / "labelled")
    (labelled,) = open_clips(tmp_path / "labelled")
    assert [row["labels_valid"] for row in labelled.rows] == [False, False] + [True] * (len(store) - 2)


def test_clips_without_labels_have_some_after_label_and_the_loss_sees_them(
    unlabelled: Dataset, layer_file: Path, tmp_path: Path, tell: Tell
) -> None:
    assert not any(store.read(i).labels_valid for store in unlabelled.stores() for i in range(len(store)))
    digest = unlabelled.digest
    told = tell("label", unlabelled.path, layer_file, "--out", tmp_path / "new")
    (item,) = told["shards"]
    assert item["labelled_clips"] == item["clips"] == unlabelled.shards()[0].clips and item["new"]
    assert item["conflicts"] == {} and told["conflicts"] == [] and set(item["labels"]) == {"autolabel"}
    new = Dataset(tmp_path / "new")
    assert new.digest == told["digest"] and unlabelled.digest == digest
    new.verify()
    (store,) = open_clips(tmp_path / "new")
    assert isinstance(store, ClipStore) and len(store.labelled("train")) + len(store.labelled("validation"))
    clips = [store.read(i) for i in range(len(store))]
    assert all(clip.labels_valid for clip in clips)
    assert all(row["label_sources"] == ["autolabel"] for row in store.rows)
    first = clips[0]
    there = first.ids_TB >= 0
    np.testing.assert_array_equal(first.visible_TB, there)
    assert (first.weights_TB[there] > 0.0).all() and (first.weights_TB[there] <= 1.0).all()
    assert first.futures_valid_TBS[there].any()
    rows = read_labels(new.directory(item["shard"]))
    assert {row["bundle_digest"] for row in rows} == {load_bundle("tiny").digest}
    again = tell("label", unlabelled.path, layer_file, "--out", tmp_path / "new")
    assert not again["shards"][0]["new"] and again["digest"] == told["digest"]


def gap(truth: Dataset, layer: Layer, row: LayerRow) -> float:
    """From a label to the nearest car that was seen in its frame [m]."""
    (store,) = truth.stores()
    index = [r["clip_id"] for r in store.rows].index(layer.place(row.clip_id)[1])
    clip = store.read(index)
    (t,) = np.flatnonzero(clip.stamps_ns_T == row.stamp_ns)
    cars = clip.visible_TB[t] & (clip.class_ids_TB[t] == CLASSES.index("car"))
    centers = clip.boxes_TB10[t, cars][:, [X, Y]]
    return float(np.linalg.norm(centers - (row.x, row.y), axis=1).min(initial=np.inf))


def test_conflicts_with_a_topic_are_listed_by_clip_and_stamp_whoever_wins(
    truth: Dataset, layer_file: Path, tmp_path: Path, tell: Tell
) -> None:
    layer = read_layer(layer_file)
    (shard,) = truth.shards()
    index = next(
        k for k, row in enumerate(layer.rows) if row.class_name == "car" and gap(truth, layer, row) < 0.2
    )
    moved = layer.rows[index]
    rows = [*layer.rows[:index], replace(moved, x=moved.x + 0.8), *layer.rows[index + 1 :]]
    file = tmp_path / "moved.parquet"
    write_layer(file, rows, shards={shard.name: shard.digest}, complete=layer.complete)
    counts = []
    for number, precedence in enumerate(("topic,autolabel", "autolabel,topic")):
        out = tmp_path / str(number)
        told = tell("label", truth.path, file, "--precedence", precedence, "--out", out)
        (item,) = told["shards"]
        of_kind: dict[str, int] = {}
        for row in told["conflicts"]:
            of_kind[row["kind"]] = of_kind.get(row["kind"], 0) + row["count"]
        assert of_kind == item["conflicts"]
        counts.append({k: n for k, n in of_kind.items() if k != "absent"})
        listed = {(row["clip_id"], row["stamp_ns"]) for row in told["conflicts"] if row["kind"] == "position"}
        assert (layer.place(moved.clip_id)[1], moved.stamp_ns) in listed
        (store,) = Dataset(out).stores()
        sources = {row["source"] for row in read_labels(store.path)}
        assert ("autolabel" in sources) == (number == 1)
    assert counts[0] == counts[1], "what disagrees does not depend on who wins"


def test_what_is_wrong_is_said_in_one_sentence(
    unlabelled: Dataset, layer_file: Path, tmp_path: Path, tell: Tell
) -> None:
    out = tmp_path / "new"
    assert "is there already" in tell("autolabel", unlabelled.path, "--out", layer_file, code=2)["error"]
    new_layer = tmp_path / "layer.parquet"
    blind = write_dataset(tmp_path / "blind", 10, labelled=False).path
    told = tell("autolabel", blind, "--out", new_layer, code=2)
    assert "clip drive-0/000000: input camera_valid is not there, bundle tiny" in told["error"]
    assert "make clips of its size, tiny" in told["error"]
    assert "is no dataset" in tell("autolabel", tmp_path, "--out", new_layer, code=2)["error"]
    told = tell("autolabel", unlabelled.path, "--bundle", "x", "--out", new_layer, code=2)
    assert "no bundle 'x'" in told["error"]
    assert not new_layer.exists()
    told = tell("label", unlabelled.path, layer_file, "--out", unlabelled.path, code=2)
    assert "is the dataset itself" in told["error"]
    told = tell("label", unlabelled.path, layer_file, "--precedence", "review", "--out", out, code=2)
    assert "labels of autolabel have no place in --precedence review" in told["error"]
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(layer_file.read_bytes()[:-100])
    told = tell("label", unlabelled.path, damaged, "--out", out, code=2)
    assert "is no layer of labels, or damaged" in told["error"]
    write_layer(damaged, [], shards={unlabelled.shards()[0].name: "0" * 64})
    told = tell("label", unlabelled.path, damaged, "--out", out, code=2)
    assert "with digest 000000000000" in told["error"]
    assert Dataset(out).shards() == []
