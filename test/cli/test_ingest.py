"""`ingest`: the same shard every time, whatever happens on the way, and one sentence about what is wrong."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from mcap.writer import Writer as McapWriter
from pyarrow import parquet
from short_drive import NUM_FRAMES, PERIOD_NS, RIG, SPEED, START_NS, labels, odometry, sensor_messages

from e2e_perception.cli.ingest import _ingest as one_of_several
from e2e_perception.cli.ingest_bag import Recipe, Refused, ingest_bag, shard_name
from e2e_perception.cli.main import main
from e2e_perception.core.config import StackConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.messages import HEALTH_TYPE, PLAN_TYPE, health_message, plan_message
from e2e_perception.core.network_config import BOX_FIELDS, SIZES
from e2e_perception.core.results import Health, SafetyState
from e2e_perception.core.trajectories import Plan
from e2e_perception.data.audit import of_recording
from e2e_perception.data.bags import (
    LABELS_TOPIC,
    BagSource,
    BagWriter,
    project_typestore,
    write_scenario_bag,
)
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.label_table import LABELS
from e2e_perception.data.shards import DATASET, SHARD, Dataset, open_clips, read_labels

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 5
STORE = project_typestore()

Ingest = Callable[..., dict[str, Any]]


@pytest.fixture
def ingest(rig_file: Path, capsys: pytest.CaptureFixture[str]) -> Ingest:
    def run(out: Path, *bags: Path, code: int = 0, options: tuple[str, ...] = ()) -> dict[str, Any]:
        words = ["--rig", str(rig_file), "--clip-length", str(LENGTH), "--workers", "1", "--json"]
        assert main(["ingest", *map(str, bags), "--out", str(out), *words, *options]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        found: dict[str, Any] = json.loads(captured.out)
        return found

    return run


def recipe(rig_file: Path) -> Recipe:
    return Recipe("tiny", LENGTH, LENGTH, str(rig_file), StackConfig().model_dump_json())


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "plain"
    write_scenario_bag(path, sensor_messages(), RIG, odometry=odometry())
    return path


def test_a_bag_becomes_clips_with_labels_and_futures(bag: Path, tmp_path: Path, ingest: Ingest) -> None:
    told = ingest(tmp_path / "set", bag)
    assert (told["frames"], told["clips"], told["shards"]) == (NUM_FRAMES, NUM_FRAMES // LENGTH, 1)
    (item,) = told["bags"]
    assert item["new"] and item["frames"] == NUM_FRAMES and item["megabytes"] > 0.0
    dataset = Dataset(tmp_path / "set")
    dataset.verify()
    (store,) = dataset.stores()
    x, y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")
    for index, row in enumerate(store.rows):
        clip = store.read(index)
        assert clip.labels_valid and not clip.maps_valid
        assert len(clip) == LENGTH
        assert (clip.ids_TB[:, 0] == 7).all() and (clip.ids_TB[:, 1:] == -1).all()
        np.testing.assert_allclose(
            clip.boxes_TB10[:, 0][:, [x, y]], np.tile([15.0, 0.0], (LENGTH, 1)), atol=1e-3
        )
        assert dict(row["sensor_validity"]) == {
            name: float(name in ("top", "front"))
            for names in (SIZES["tiny"].cameras, SIZES["tiny"].lidars, SIZES["tiny"].radars)
            for name in names
        }
        assert row["speed_mean_mps"] == pytest.approx(SPEED)
        assert row["label_sources"] == ["topic:/labels"] and row["weather"] is None
        assert row["bag_digest"] in row["source"]
    first = store.read(0)
    known = first.ego_future_valid_TS[0]
    ahead = SPEED * SIZES["tiny"].times_T
    np.testing.assert_allclose(first.ego_future_TS3[0, known, 0], ahead[known], atol=1e-3)
    assert known.sum() == 3  # the drive lasts two seconds
    rows = read_labels(dataset.directory(item["shard"]))
    assert len(rows) == NUM_FRAMES
    assert {row["source"] for row in rows} == {"topic:/labels"}
    assert {(row["class"], row["identity"], row["confidence"]) for row in rows} == {("car", 7, 1.0)}
    facts = dataset.facts(item["shard"])
    assert facts["tool"].startswith("e2e_perception ") and facts["topics"]["/lidar"] == NUM_FRAMES


def test_without_labels_nobody_is_said_to_be_absent(unlabelled: Path, tmp_path: Path, ingest: Ingest) -> None:
    told = ingest(tmp_path / "set", unlabelled)
    (store,) = open_clips(tmp_path / "set")
    assert not store.read(0).labels_valid
    assert len(store.labelled("train")) == len(store.labelled("validation")) == 0
    assert read_labels(Dataset(tmp_path / "set").directory(told["bags"][0]["shard"])) == []


def test_clips_after_the_last_label_are_unlabelled_and_that_is_said(tmp_path: Path, ingest: Ingest) -> None:
    bag = tmp_path / "half"
    half = list(labels())[: NUM_FRAMES // 2]
    write_scenario_bag(bag, sensor_messages(), RIG, odometry=odometry(), labels=half)
    (item,) = ingest(tmp_path / "set", bag)["bags"]
    (store,) = open_clips(tmp_path / "set")
    assert [row["labels_valid"] for row in store.rows] == [True, True, False, False]
    assert item["left_out"]["clips_not_covered"] == 2
    assert [w for w in item["warnings"] if "2 of 4 clips count as unlabelled" in w]
    found = of_recording("half", Dataset(tmp_path / "set").facts(item["shard"]))
    assert [f.message for f in found if f.check == "labels"] == [
        "2 clips count as unlabelled: labels do not cover all their frames"
    ]


def with_labels_changed(source: Path, path: Path, change: Callable[[Any], None]) -> Path:
    """A recording in which the sixth message of labels is changed."""
    with BagSource(source) as bag:
        rows = [(topic, kind, stamp_ns, raw) for topic, kind, stamp_ns, raw in bag.raw_messages()]
    sixth = [number for number, row in enumerate(rows) if row[0] == LABELS_TOPIC][5]
    topic, kind, stamp_ns, raw = rows[sixth]
    message = STORE.deserialize_cdr(raw, kind)
    change(message)
    rows[sixth] = (topic, kind, stamp_ns, STORE.serialize_cdr(message, kind))
    with BagWriter(path) as out:
        for row in rows:
            out.write_raw(*row)
    return path


@pytest.mark.parametrize("frame", ["map", ""])
def test_labels_in_another_frame_are_refused(bag: Path, tmp_path: Path, ingest: Ingest, frame: str) -> None:
    def change(message: Any) -> None:
        message.header.frame_id = frame

    told = ingest(tmp_path / "set", with_labels_changed(bag, tmp_path / "odd", change), code=2)
    assert f"odd, /labels at 1700000000.500 s: labels are given in frame '{frame}'" in told["error"]
    assert "expected the rig's base frame 'base_link'" in told["error"]


def test_a_leading_slash_of_the_base_frame_is_no_other_frame(
    bag: Path, tmp_path: Path, ingest: Ingest
) -> None:
    def change(message: Any) -> None:
        message.header.frame_id = "/base_link"

    told = ingest(tmp_path / "set", with_labels_changed(bag, tmp_path / "odd", change))
    assert told["frames"] == NUM_FRAMES


def test_a_class_that_is_not_known_is_said_with_bag_topic_and_time(
    bag: Path, tmp_path: Path, ingest: Ingest
) -> None:
    def change(message: Any) -> None:
        message.tracks[0].class_name = "tram"

    told = ingest(tmp_path / "set", with_labels_changed(bag, tmp_path / "odd", change), code=2)
    assert "odd, /labels at 1700000000.500 s: recorded track has class 'tram'" in told["error"]


def with_decisions(source: Path, path: Path, stops: set[int], minimal_risk: set[int]) -> Path:
    """A recording with what the stack said of each frame, 120 ms after it: a plan, and its health."""
    make_plan = partial(
        Plan,
        times_P=np.array([0.5, 1.0]),
        points_P2=np.array([[1.0, 0.0], [2.0, 0.0]]),
        yaws_P=np.zeros(2),
        speeds_P=np.full(2, 2.0),
        accelerations_P=np.zeros(2),
        costs={},
    )
    with BagSource(source) as bag:
        rows = [(stamp_ns, topic, kind, raw) for topic, kind, stamp_ns, raw in bag.raw_messages()]
    with BagWriter(path) as out:
        for k in range(NUM_FRAMES):
            stamp_ns = START_NS + k * PERIOD_NS
            state = SafetyState.MINIMAL_RISK if k in minimal_risk else SafetyState.DEGRADED
            health = Health(state, (), (), "", "", 1, 1, {}, {})
            plan = make_plan(stamp_ns=stamp_ns, candidate=-1 if k in stops else 3)
            for topic, kind, message in (
                ("/perception_node/plan", PLAN_TYPE, plan_message(out.make, plan, health, "base_link")),
                (
                    "/perception_node/health",
                    HEALTH_TYPE,
                    health_message(out.make, health, stamp_ns, "base_link"),
                ),
            ):
                rows.append((stamp_ns + 120_000_000, topic, kind, STORE.serialize_cdr(message, kind)))
        for stamp_ns, topic, kind, raw in sorted(rows, key=lambda row: row[0]):
            out.write_raw(topic, kind, stamp_ns, raw)
    return path


def test_a_clip_knows_how_often_the_supervisor_intervened(
    unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    said = with_decisions(unlabelled, tmp_path / "said", {1, 2, 6, 19}, {2, 3})
    ingest(tmp_path / "plain", unlabelled)
    ingest(tmp_path / "set", said)
    (plain,), (store,) = open_clips(tmp_path / "plain"), open_clips(tmp_path / "set")
    assert [row["interventions"] for row in store.rows] == [3, 1, 0, 1]
    assert [row["interventions"] for row in plain.rows] == [None] * 4
    # The stack's own words change nothing of what is learned from.
    for index in range(4):
        with_words, without = store.read(index), plain.read(index)
        for name, values in without.arrays().items():
            np.testing.assert_array_equal(with_words.arrays()[name], values)


def test_an_index_from_before_interventions_were_told_says_that_they_are_not_known(
    unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    told = ingest(tmp_path / "set", unlabelled)
    index = Dataset(tmp_path / "set").directory(told["bags"][0]["shard"]) / "index.parquet"
    parquet.write_table(parquet.read_table(index).drop_columns(["interventions"]), index)
    (store,) = open_clips(tmp_path / "set")
    assert [row["interventions"] for row in store.rows] == [None] * 4


def test_order_does_not_matter_and_nothing_is_written_twice(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    both = ingest(tmp_path / "a", bag, unlabelled)
    first = ingest(tmp_path / "b", unlabelled)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "shards").rglob("*") if p.is_file()}
    second = ingest(tmp_path / "b", bag, unlabelled)
    assert second["digest"] == both["digest"] != first["digest"]
    assert [item["new"] for item in second["bags"]] == [True, False]
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items()), "shards are never written again"


def test_other_settings_make_another_shard(bag: Path, tmp_path: Path, ingest: Ingest) -> None:
    ingest(tmp_path / "set", bag)
    told = ingest(tmp_path / "set", bag, options=("--stride", "2"))
    assert told["shards"] == 2 and told["bags"][0]["new"]
    assert told["bags"][0]["frames"] == NUM_FRAMES and told["bags"][0]["clips"] > NUM_FRAMES // LENGTH


def ingest_until_killed(bag: Path, out: Path, made: Recipe, after: int, go: Any) -> None:
    real = ClipWriter.write
    count = 0

    def write(self: ClipWriter, *args: Any, **kwargs: Any) -> bool:
        nonlocal count
        count += 1
        if count > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args, **kwargs)

    ClipWriter.write = write  # type: ignore[method-assign]
    go.set()
    ingest_bag(bag, out, made)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_in_the_middle_and_begun_again_it_gives_the_same_digest(
    bag: Path, rig_file: Path, tmp_path: Path, ingest: Ingest, after: int
) -> None:
    whole = ingest(tmp_path / "whole", bag)
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    process = context.Process(
        target=ingest_until_killed, args=(bag, tmp_path / "killed", recipe(rig_file), after, go)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert Dataset(tmp_path / "killed").shards() == []
    again = ingest(tmp_path / "killed", bag)
    assert again["digest"] == whole["digest"] and again["bags"][0]["new"]


def hold(out: Path, name: str, ready: Any, done: Any) -> None:
    with Dataset(out).writing(name):
        ready.set()
        done.wait(60)


def test_two_writers_of_one_shard_do_not_mix(
    bag: Path, rig_file: Path, tmp_path: Path, ingest: Ingest
) -> None:
    name = ingest(tmp_path / "other", bag)["bags"][0]["shard"]
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "set", name, ready, done))
    process.start()
    assert ready.wait(60)
    told = ingest(tmp_path / "set", bag, code=2)
    assert "is being written by another process" in told["error"]
    done.set()
    process.join(60)
    assert ingest(tmp_path / "set", bag)["shards"] == 1


def seal_many(out: Path, names: list[str]) -> None:
    dataset = Dataset(out)
    for name in names:
        with dataset.writing(name) as directory:
            ClipWriter(directory).finish()
            dataset.seal(name, {"frames": 1}, [])


def test_two_writers_of_one_dataset_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    names = [[f"{letter}-{k}" for k in range(12)] for letter in "ab"]
    processes = [context.Process(target=seal_many, args=(tmp_path / "set", part)) for part in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert [shard.name for shard in Dataset(tmp_path / "set").shards()] == sorted([*names[0], *names[1]])


def test_a_full_disk_is_said_and_leaves_no_shard(
    bag: Path, tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ingest(tmp_path / "whole", bag)
    real = ClipWriter.write
    count = 0

    def full(self: ClipWriter, *args: Any, **kwargs: Any) -> bool:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ClipWriter, "write", full)
    told = ingest(tmp_path / "set", bag, code=2)
    assert told["error"] == "No space left on device"
    assert Dataset(tmp_path / "set").shards() == []
    monkeypatch.undo()
    assert ingest(tmp_path / "set", bag)["digest"] == whole["digest"]


@pytest.mark.parametrize("what", ["clips", LABELS, "index.parquet", SHARD])
def test_a_flipped_byte_in_a_shard_is_found(bag: Path, tmp_path: Path, ingest: Ingest, what: str) -> None:
    told = ingest(tmp_path / "set", bag)
    shard = Dataset(tmp_path / "set").directory(told["bags"][0]["shard"])
    files = [p for p in (shard / "clips").rglob("*") if p.is_file()] if what == "clips" else [shard / what]
    file = max(sorted(files), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(InputError):
        Dataset(tmp_path / "set").verify()
    shutil.rmtree(shard)  # as the message says
    assert ingest(tmp_path / "set", bag)["digest"] == told["digest"]
    Dataset(tmp_path / "set").verify()


def test_a_shard_that_does_not_tell_what_came_of_a_bag_is_said(
    bag: Path, tmp_path: Path, ingest: Ingest
) -> None:
    (told,) = ingest(tmp_path / "set", bag)["bags"]
    file = Dataset(tmp_path / "set").directory(told["shard"]) / SHARD
    facts = json.loads(file.read_text())
    del facts["drops"]
    file.write_text(json.dumps(facts))
    assert "it does not tell drops" in ingest(tmp_path / "set", bag, code=2)["error"]


def test_a_bag_that_is_cut_off_gives_what_is_whole(bag: Path, tmp_path: Path, ingest: Ingest) -> None:
    (file,) = bag.glob("*.mcap")
    cut = tmp_path / "cut.mcap"
    data = file.read_bytes()
    cut.write_bytes(data[:-200])  # the recorder died before it wrote its summary
    told = ingest(tmp_path / "set", cut)
    assert told["frames"] > 0
    assert any("cut off or damaged" in warning for warning in told["bags"][0]["warnings"])


def test_a_split_bag_of_a_dead_recorder_gives_what_is_whole(
    bag: Path, tmp_path: Path, ingest: Ingest
) -> None:
    half = START_NS + NUM_FRAMES // 2 * PERIOD_NS
    split = tmp_path / "split"
    split.mkdir()
    with BagSource(bag) as source:
        for number, bounds in enumerate([(None, half), (half, None)]):
            with BagWriter(tmp_path / f"rec_{number}") as writer:
                for topic, type_name, stamp_ns, raw in source.raw_messages(*bounds):
                    writer.write_raw(topic, type_name, stamp_ns, raw)
            (file,) = writer.path.glob("*.mcap")
            data = file.read_bytes()
            (split / file.name).write_bytes(data if number == 0 else data[:-200])
    told = ingest(tmp_path / "set", split)
    assert told["frames"] > NUM_FRAMES // 2
    assert any("rec_1.mcap: cut off or damaged" in warning for warning in told["bags"][0]["warnings"])


def test_a_whole_bag_that_unpacks_beyond_belief_is_refused(
    bag: Path, tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb.mcap"
    with BagSource(bag) as source, bomb.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=1 << 30)
        writer.start("ros2")
        channels = {
            topic: writer.register_channel(topic, "cdr", writer.register_schema(name, "ros2msg", b""))
            for topic, name in source.types.items()
        }
        for topic, _, stamp_ns, raw in source.raw_messages():
            writer.add_message(channels[topic], stamp_ns, raw + bytes(1 << 20), stamp_ns)
        writer.finish()
    monkeypatch.setattr("e2e_perception.data.unpacking.LARGEST_RECORD", 1 << 20)
    assert bomb.stat().st_size < 1 << 20
    assert "unpacks to more than 1048576 bytes" in ingest(tmp_path / "set", bomb, code=2)["error"]


@pytest.mark.parametrize("share", [2, 1], ids=["every second", "all"])
def test_a_warning_is_told_once_by_cause_however_long_and_often_it_comes(
    tmp_path: Path, ingest: Ingest, unlabelled: Path, share: int
) -> None:
    path, topic, refused = tmp_path / "odd", RIG.odom_topic, 0
    with BagSource(unlabelled) as source, BagWriter(path, STORE) as writer:
        for number, (name, type_name, stamp_ns, raw) in enumerate(source.raw_messages()):
            if name == topic and (share == 1 or number % share):
                message = STORE.deserialize_cdr(raw, type_name)
                message.child_frame_id = f"{number}" * 20_000
                raw, refused = bytes(STORE.serialize_cdr(message, type_name)), refused + 1
            writer.write_raw(name, type_name, stamp_ns, raw)
    assert refused > 2
    if share == 1:
        error = ingest(tmp_path / "set", path, code=2)["error"]
        assert "no odometry of bag" in error and len(error) < 600
        return
    told = ingest(tmp_path / "set", path)
    (line,) = [line for line in told["bags"][0]["warnings"] if "odometry describes frame" in line]
    assert line.endswith(f"({refused}×)") and len(line) < 300
    facts = (Dataset(tmp_path / "set").directory(told["bags"][0]["shard"]) / SHARD).read_text()
    assert len(facts) < 20_000


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "set")
    for name in ("../outside", "a/b", "", ".hidden", "x" * 101, "a\0b", "/etc"):
        with pytest.raises(InputError, match=r"shard .*expected up to 100"):
            dataset.directory(name)
    (tmp_path / "set").mkdir()
    listed = {"format": 1, "shards": [{"name": "../../etc", "digest": "0", "clips": 1, "frames": 1}]}
    (tmp_path / "set" / DATASET).write_text(json.dumps(listed))
    with pytest.raises(InputError, match=r"shard '\.\./\.\./etc'"):
        dataset.shards()
    odd = tmp_path / "we ird ü; rm -rf" / ".."
    name = shard_name(tmp_path / "..." / "we ird ü; rm -rf.mcap", {})
    assert dataset.directory(name).parent == tmp_path / "set" / "shards", odd


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9, "shards": []}', '{"format": 1, "shards": [{}]}'])
def test_a_damaged_list_of_shards_is_said(bag: Path, tmp_path: Path, ingest: Ingest, text: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / DATASET).write_text(text)
    assert DATASET in ingest(tmp_path / "set", bag, code=2)["error"]


def test_what_is_wrong_is_said_in_one_sentence(
    bag: Path, tmp_path: Path, ingest: Ingest, rig_file: Path
) -> None:
    assert "no bag at" in ingest(tmp_path / "set", tmp_path / "absent", code=2)["error"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    assert "is no dataset" in ingest(other, bag, code=2)["error"]
    assert (other / "thesis.tex").read_text() == "precious"
    assert (
        "unknown network size" in ingest(tmp_path / "set", bag, code=2, options=("--size", "huge"))["error"]
    )
    told = ingest(tmp_path / "set", bag, code=2, options=("--stride", "9"))
    assert "would leave frames out" in told["error"]
    too_long = ingest(tmp_path / "set", bag, code=2, options=("--clip-length", "50"))
    assert "gives no clip of 50 frames" in too_long["error"]
    assert not list((tmp_path / "set" / "shards").glob(f"*/{SHARD}"))


def test_several_bags_in_processes_give_what_one_after_the_other_gives(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    alone = ingest(tmp_path / "a", bag, unlabelled)
    beside = ingest(tmp_path / "b", bag, unlabelled, options=("--workers", "2"))
    assert alone["digest"] == beside["digest"]


def test_a_bag_that_cannot_be_used_does_not_keep_the_others_from_being_ingested(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    empty = tmp_path / "empty.mcap"
    empty.touch()
    for new in (True, False):  # and again on the next run
        told = ingest(tmp_path / "set", empty, bag, tmp_path / "absent", unlabelled, code=2)
        assert [(item["bag"], item["new"]) for item in told["bags"]] == [
            (str(bag), new),
            (str(unlabelled), new),
        ]
        assert [item["bag"] for item in told["failed"]] == [str(empty), str(tmp_path / "absent")]
        assert "is empty (0 bytes)" in told["failed"][0]["why"] and "no bag at" in told["failed"][1]["why"]
        assert told["error"].startswith("2 of 4 recordings gave no shard; ")
    Dataset(tmp_path / "set").verify()


def test_a_bag_that_may_not_be_read_is_refused_and_a_full_disk_ends_everything(
    bag: Path, tmp_path: Path, rig_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem: list[OSError] = [PermissionError(errno.EACCES, "Permission denied", "/bags/locked.mcap")]

    def failing(*_: Any) -> None:
        raise problem[0]

    monkeypatch.setattr("e2e_perception.cli.ingest_bag.ingest_bag", failing)
    task = (bag, tmp_path / "set", recipe(rig_file))
    assert one_of_several(task) == Refused(str(bag), "/bags/locked.mcap: Permission denied")
    problem[0] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        one_of_several(task)


def test_a_recording_that_is_given_twice_is_ingested_once(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    copy, other = tmp_path / "copy" / bag.name, tmp_path / "other" / bag.name
    shutil.copytree(bag, copy)
    shutil.copytree(unlabelled, other)
    told = ingest(tmp_path / "set", bag, bag, other, copy, options=("--workers", "2"))
    assert [item["bag"] for item in told["bags"]] == [str(bag), str(other)]
    assert told["shards"] == 2 and "error" not in told


def test_on_ray_the_digest_is_the_same_and_errors_are_one_sentence(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `pip install .[scale]`")
    alone = ingest(tmp_path / "a", bag, unlabelled)
    on_ray = ingest(tmp_path / "b", bag, unlabelled, options=("--ray", "local", "--workers", "2"))
    assert on_ray["digest"] == alone["digest"]
    told = ingest(tmp_path / "c", tmp_path / "absent", code=2, options=("--ray", "local"))
    assert "no bag at" in told["error"]


def test_a_rig_that_lacks_the_bags_sensors_is_refused(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = tmp_path / "other.yaml"
    document = RIG.model_dump(mode="json")
    document["sensors"][0]["name"] = "unheard_of"
    rig.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert main(["ingest", str(bag), "--rig", str(rig), "--out", str(tmp_path / "set")]) == 2
    assert "unheard_of" in capsys.readouterr().err


def test_the_real_highway_gives_all_its_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "kitti_highway"
    if not data.is_dir():
        pytest.skip(f"no recorded bag at {data}")
    assert main(["ingest", str(data), "--out", str(tmp_path / "set"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 78
    (store,) = open_clips(tmp_path / "set")
    stamps = np.unique(np.concatenate([store.read(i).stamps_ns_T for i in range(len(store))]))
    assert len(stamps) == 78
    first = store.read(0)
    assert first.inputs["lidar_raster"].any() and first.inputs["images"][:, 0].std() > 20.0
    assert first.ego_future_valid_TS.all() and first.ego_future_TS3[0, -1, 0] > 3.0


def test_progress_reaches_its_end(bag: Path, rig_file: Path, tmp_path: Path) -> None:
    told: list[float] = []
    made = ingest_bag(bag, tmp_path / "set", recipe(rig_file), told.append)
    assert told[-1] == 1.0 and told == sorted(told)
    shutil.rmtree(tmp_path / "set" / "shards" / made.shard / "clips")
    with pytest.raises(InputError):
        Dataset(tmp_path / "set").verify()


def test_datasets_are_listed_compared_and_checked(
    bag: Path, unlabelled: Path, tmp_path: Path, ingest: Ingest, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ingest(tmp_path / "one", bag)
    two = ingest(tmp_path / "two", bag, unlabelled)
    shared, extra = one["bags"][0]["shard"], two["bags"][1]["shard"]

    def told(*words: str | Path, code: int = 0) -> dict[str, Any]:
        assert main(["dataset", *map(str, words), "--json"]) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    listed = told("show", tmp_path / "two")
    assert listed["digest"] == two["digest"]
    assert {s["name"]: s["source"] for s in listed["shards"]} == {shared: bag.name, extra: unlabelled.name}
    apart = told("diff", tmp_path / "one", tmp_path / "two")
    assert (apart["only_in_a"], apart["only_in_b"], apart["altered"], apart["same"]) == ([], [extra], [], 1)
    assert told("verify", tmp_path / "two")["whole"]
    facts = tmp_path / "two" / DATASET
    facts.write_text(facts.read_text().replace(one["bags"][0]["digest"], "0" * 64))
    assert told("diff", tmp_path / "one", tmp_path / "two")["altered"] == [shared]
    assert "was altered" in told("verify", tmp_path / "two", code=2)["error"]
    assert "is no dataset" in told("show", tmp_path, code=2)["error"]
    assert main(["dataset", "diff", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert f"! {shared}" in capsys.readouterr().out


def test_an_audit_says_what_is_odd_and_its_exit_code_what_is_broken(
    bag: Path, tmp_path: Path, ingest: Ingest, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(tmp_path / "set", bag)
    page = tmp_path / "pages" / "audit.html"
    assert main(["audit", str(tmp_path / "set"), "--html", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and told["clips"] == told["labelled_clips"] == NUM_FRAMES // LENGTH
    assert {finding["check"] for finding in told["findings"]} >= {"synthetic_stamps", "synthetic_arrivals"}
    assert told["balance"]["class"] == {"car": NUM_FRAMES}
    text = page.read_text(encoding="utf-8")
    assert "synthetic_stamps" in text and "No gate is broken" in text
    gates = tmp_path / "gates.yaml"
    gates.write_text("max_findings: {synthetic_stamps: 0}\n")
    assert main(["audit", str(tmp_path / "set"), "--gates", str(gates)]) == 1
    captured = capsys.readouterr()
    assert "gate broken: 3 findings of synthetic_stamps, at most 0 are let pass" in captured.err
    assert "synthetic_stamps: top: all stamps are 100 ms apart" in captured.out
    gates.write_text("max_findings: {luck: 1}\nother: 2\n")
    assert main(["audit", str(tmp_path / "set"), "--gates", str(gates)]) == 2
    assert main(["audit", str(tmp_path / "nothing")]) == 2


def test_labels_of_a_simulated_drive_pass_the_audit_after_ingest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames, velocities, headings, sizes and identities come through bag and front end as they were."""
    pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
    drive = tmp_path / "drive"
    simulate = ["simulate", "--kind", "blocked_lane", "--seed", "22", "--duration", "4", "--out", str(drive)]
    assert main(simulate) == 0
    assert main(["ingest", str(drive), "--out", str(tmp_path / "set")]) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "set"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {item["check"] for item in told["findings"]} <= {
        "synthetic_stamps", "synthetic_arrivals", "covariance", "left_out"
    }  # fmt: skip
    # The simulator labels whom it simulates, also beyond the grid; nothing else is left out.
    left_out = [item["message"] for item in told["findings"] if item["check"] == "left_out"]
    assert all(message.endswith("left out: labels outside grid") for message in left_out)
    assert told["balance"]["class"]["obstacle"] > 20
    clips = [store.read(i) for store in open_clips(tmp_path / "set") for i in range(len(store))]
    hits = []
    for clip in clips:
        for t, slot in np.argwhere(clip.visible_TB):
            x, y = clip.boxes_TB10[t, slot, [BOX_FIELDS.index("x"), BOX_FIELDS.index("y")]]
            if not 3.0 < x < 25.0 or abs(y) > 15.0:
                continue
            grid = SIZES["tiny"].grid
            row, column = int((y - grid.y_min) / grid.resolution), int((x - grid.x_min) / grid.resolution)
            above = clip.inputs["lidar_raster"][t, 1:4].max(0)
            hits.append(above[row - 3 : row + 4, column - 3 : column + 4].any())
    assert len(hits) > 20 and np.mean(hits) > 0.9, "returns lie where labels are"


def test_the_audit_of_the_real_highway_says_what_its_notes_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stamps at exactly 10 Hz, arrivals 12 and 52 ms after them, no covariance, no labels."""
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "kitti_highway"
    if not data.is_dir():
        pytest.skip(f"no recorded bag at {data}")
    assert main(["ingest", str(data), "--out", str(tmp_path / "set"), "--json"]) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "set"), "--json"]) == 0
    found = [(item["check"], item["message"]) for item in json.loads(capsys.readouterr().out)["findings"]]
    for check, words in (
        ("synthetic_stamps", "front: all stamps are 100 ms apart"),
        ("synthetic_stamps", "top: all stamps are 100 ms apart"),
        ("synthetic_arrivals", "front: arrives 12 ms"),
        ("synthetic_arrivals", "top: arrives 52 ms"),
        ("covariance", "78 messages without a covariance"),
        ("labels", "no labels"),
    ):
        assert any(check == c and words in message for c, message in found), (check, words)
