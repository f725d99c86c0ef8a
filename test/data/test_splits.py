"""Splits: what shows the same things is on one side, always the same; a table of other shards is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from synthetic import SMALL, synthetic_clip

from e2e_perception.cli.main import main
from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import ClipWriter, split_of
from e2e_perception.data.ego_paths import MOST_POINTS, EgoPath, PathRecorder
from e2e_perception.data.shards import Dataset, open_clips
from e2e_perception.data.splits import (
    SPLITS,
    Recording,
    SplitTable,
    is_clocked,
    possible_pairs,
    relation,
    split_table,
)

SECOND = 10**9
NOW = 1_760_000_000 * SECOND


def recording(name: str, start_s: float = 0.0, length_s: float = 60.0, **changes: Any) -> Recording:
    start_ns = NOW + round(start_s * SECOND)
    made = Recording(name, f"digest of {name}", f"bag:{name}", name, start_ns, start_ns, True, None)
    return replace(made, **{"end_ns": start_ns + round(length_s * SECOND), **changes})


def straight(x: float, y: float, length: float = 200.0, frame: str = "map") -> EgoPath:
    points = np.column_stack([x + np.arange(0.0, length, 5.0), np.full(round(length / 5.0), y)])
    return EgoPath(frame, np.arange(len(points)), points)


def groups(table: SplitTable) -> set[frozenset[str]]:
    names: dict[str, set[str]] = {}
    for shard, side in table.shards.items():
        names.setdefault(side.group, set()).add(shard)
    return {frozenset(shards) for shards in names.values()}


# ------------------------------------------------------------------ grouping


def test_who_is_alone_stays_where_the_hash_of_its_name_put_it() -> None:
    table = split_table([recording(f"r{k}", 100.0 * k) for k in range(60)])
    assert all(side.split == split_of(side.group) for side in table.shards.values())
    assert {name: f"bag:{name}" for name in table.shards} == {n: s.group for n, s in table.shards.items()}
    assert {side.split for side in table.shards.values()} == {"train", "validation"}


def test_recordings_that_overlap_in_time_are_a_group_and_chains_hold_together() -> None:
    table = split_table(
        [recording("a"), recording("b", 50.0), recording("c", 100.0), recording("apart", 161.0)]
    )
    assert groups(table) == {frozenset("abc"), frozenset({"apart"})}
    assert {table.shards[name].group for name in "abc"} == {"bag:a"}
    assert table.reasons == (
        "a and b: 10.0 s at the same time",
        "b and c: 10.0 s at the same time",
    )


def test_the_files_of_a_recorder_that_only_touch_are_not_at_the_same_time() -> None:
    assert relation(recording("a"), recording("b", 60.0)) == ""


def test_clocks_that_nobody_set_say_nothing() -> None:
    for clock in ({"start_ns": 0, "end_ns": 60 * SECOND}, {"clocked": False}):
        unset = [replace(recording(name), **{"clocked": False, **clock}) for name in "ab"]
        assert len(groups(split_table(unset))) == 2
    real = {"start_ns": NOW, "timing": {"top": {"count": 50, "jitter_ms": 0.4}}}
    assert is_clocked(real)
    assert not is_clocked({"start_ns": NOW, "odometry": {"count": 50, "jitter_ms": 0.0}})
    assert not is_clocked({**real, "start_ns": 12 * SECOND})


def test_one_stream_that_a_trigger_stamps_does_not_make_a_recording_unclocked() -> None:
    real = {"count": 50, "jitter_ms": 0.4, "equal_intervals": False}
    triggered = {"count": 50, "jitter_ms": 0.0, "equal_intervals": True}
    assert is_clocked({"start_ns": NOW, "timing": {"front": triggered, "top": real}})
    assert is_clocked({"start_ns": NOW, "timing": {"front": triggered}, "odometry": real})
    assert not is_clocked({"start_ns": NOW, "timing": {"front": triggered}, "odometry": triggered})
    # A jitter below what is written down is one, and a few messages tell nothing of the others.
    assert is_clocked({"start_ns": NOW, "timing": {"front": {**triggered, "equal_intervals": False}}})
    few = {"count": 3, "jitter_ms": 0.4, "equal_intervals": False}
    assert not is_clocked({"start_ns": NOW, "timing": {"front": triggered, "top": few}})


def test_a_street_driven_twice_is_a_group_if_the_frame_is_shared() -> None:
    a = recording("a", path=straight(0.0, 0.0))
    again = recording("again", 9000.0, path=straight(40.0, 8.0))
    beside = recording("beside", 19000.0, path=straight(0.0, 100.0))
    elsewhere = recording("elsewhere", 29000.0, path=straight(0.0, 0.0, frame="utm"))
    table = split_table([a, again, beside, elsewhere])
    assert groups(table) == {frozenset({"a", "again"}), frozenset({"beside"}), frozenset({"elsewhere"})}
    assert len(groups(split_table([a, again], place_distance=0.0))) == 2


def test_crossing_a_street_is_not_driving_it() -> None:
    points = np.column_stack([np.full(80, 100.0), np.arange(-200.0, 200.0, 5.0)])
    across = recording("across", 9000.0, path=EgoPath("map", np.arange(80), points))
    assert relation(recording("a", path=straight(0.0, 0.0, 400.0)), across) == ""


def test_shards_of_one_bag_are_together_whatever_their_settings() -> None:
    one, other = recording("one", clocked=False), recording("other", 1e6, clocked=False, bag_digest="one")
    assert len(groups(split_table([one, other]))) == 1


@given(
    starts=st.lists(st.integers(0, 2000), min_size=1, max_size=12), order=st.randoms(use_true_random=False)
)
@settings(max_examples=50)
def test_order_does_not_matter_and_nothing_that_overlaps_is_on_two_sides(
    starts: list[int], order: Any
) -> None:
    made = [recording(f"r{k}", start) for k, start in enumerate(starts)]
    table = split_table(made)
    shuffled = list(made)
    order.shuffle(shuffled)
    assert split_table(shuffled) == table
    for a in made:
        for b in made:
            if relation(a, b):
                first, second = table.shards[a.shard], table.shards[b.shard]
                assert (first.group, first.split) == (second.group, second.split)


def test_near_points_are_those_that_all_pairs_give() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.uniform(0, 300, (40, 2)), rng.uniform(0, 300, (90, 2))
    a, b = (EgoPath("map", np.arange(len(p)), p) for p in (few, many))
    for distance in (1.0, 9.0, 30.0):
        gaps = np.linalg.norm(few[:, None] - many[None], axis=-1).min(axis=1)
        assert a.share_near(b, distance) == b.share_near(a, distance) == np.mean(gaps <= distance)


@given(seed=st.integers(0, 10_000), distance=st.sampled_from([0.0, 5.0, 30.0, 100.0]))
@settings(max_examples=60)
def test_no_pair_that_is_related_is_passed_over(seed: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    made = []
    for k in range(25):
        x, y, start = rng.uniform(-150, 150), rng.uniform(-150, 150), float(rng.uniform(0, 2000))
        path = straight(x, y, 5.0 * float(rng.integers(2, 24)), str(rng.choice(["map", "utm"])))
        changes: dict[str, Any] = {
            "path": None if rng.random() < 0.3 else path,
            "clocked": bool(rng.random() < 0.5),
            "bag_digest": str(rng.integers(20)) if rng.random() < 0.5 else "",
        }
        made.append(recording(f"r{k}", start, float(rng.choice([0.0, 60.0, 300.0])), **changes))
    related = [(i, j) for i, j in combinations(range(25), 2) if relation(made[i], made[j], distance)]
    pairs = possible_pairs(made, distance)
    assert set(related) <= set(pairs) and pairs == sorted(set(pairs))
    assert len(pairs) < 25 * 24 / 2, "not simply all of them"


def test_a_path_is_kept_in_flat_memory_and_only_in_a_frame_that_others_share() -> None:
    recorder = PathRecorder()
    for k in range(60_000):
        recorder.add(k, 5.1 * k, 0.0)
    assert len(recorder.points) <= MOST_POINTS
    assert recorder.facts("odom") == {} == recorder.facts("")
    path = EgoPath.of(recorder.facts("map"), "shard")
    assert path is not None and path.points_P2[-1, 0] > 0.99 * 5.1 * 60_000


@pytest.mark.parametrize("points", [[[1, 2]], [[1, "x", 2]], 7, [[1, float("nan"), 0.0]]])
def test_a_path_that_is_none_is_refused(points: Any) -> None:
    with pytest.raises(InputError, match="shard s: its path"):
        EgoPath.of({"path": {"frame": "map", "points": points}}, "s")


# ------------------------------------------------------------------ the table of a dataset


def dataset(path: Path, facts: dict[str, dict[str, Any]]) -> Dataset:
    made = Dataset(path)
    for k, (name, said) in enumerate(facts.items()):
        with made.writing(name) as directory:
            writer = ClipWriter(directory)
            writer.write("000000", replace(synthetic_clip(SMALL, seed=k), scenario=f"bag:{name}"))
            writer.finish()
            made.seal(name, {"frames": 4, "source": {"name": name}, **said}, [])
    return made


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    """Two robots at the same time, whose hashes are on both sides, and one later."""
    train = next(f"t{k}" for k in range(99) if split_of(f"bag:t{k}") == "train")
    validation = next(f"v{k}" for k in range(99) if split_of(f"bag:v{k}") == "validation")
    ranges = {train: (0, 60), validation: (30, 90), "later": (500, 600)}
    dataset(
        tmp_path / "set",
        {name: {"start_ns": NOW + a * SECOND, "end_ns": NOW + b * SECOND} for name, (a, b) in ranges.items()},
    )
    return tmp_path / "set"


def sides(path: Path) -> dict[str, set[str]]:
    return {store.path.name: {str(row["split"]) for row in store.rows} for store in open_clips(path)}


def test_the_command_writes_a_table_that_clips_are_read_by(
    drives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in (drives / "shards").rglob("*") if p.is_file()}
    digest = Dataset(drives).digest
    train, validation = sorted(name for name in sides(drives) if name != "later")
    assert sides(drives)[train] == {"train"} and sides(drives)[validation] == {"validation"}
    assert main(["dataset", "split", str(drives), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["groups"] == 2 and told["out"] == str(drives / SPLITS)
    assert told["reasons"] == [f"{train} and {validation}: 30.0 s at the same time"]
    after = sides(drives)
    assert after[train] == after[validation] == {"train"}
    assert Dataset(drives).digest == digest
    assert {p: p.read_bytes() for p in (drives / "shards").rglob("*") if p.is_file()} == before
    Dataset(drives).verify()


def test_a_table_of_other_shards_or_a_damaged_one_is_refused(
    drives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "split", str(drives)]) == 0
    table = json.loads((drives / SPLITS).read_text())
    dataset(drives, {"new": {"start_ns": 0, "end_ns": 1}})
    with pytest.raises(InputError, match=r"new is not in it; run `e2e-perception dataset split` again"):
        open_clips(drives)
    capsys.readouterr()
    assert main(["audit", str(drives)]) == 2
    assert "dataset split` again" in capsys.readouterr().err
    assert main(["dataset", "split", str(drives)]) == 0
    assert sides(drives)["new"] == {split_of("bag:new")}
    for text in ("{", json.dumps({**table, "unknown": 1}), json.dumps({**table, "format": 2}), "[]"):
        (drives / SPLITS).write_text(text)
        with pytest.raises(InputError, match=r"splits\.json"):
            open_clips(drives)


def test_a_side_without_recordings_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / "set", {"only": {"start_ns": NOW, "end_ns": NOW + SECOND}})
    assert main(["dataset", "split", str(tmp_path / "set")]) == 0
    missing = "validation" if split_of("bag:only") == "train" else "train"
    assert f"no recording is in the split `{missing}`" in capsys.readouterr().err
    assert main(["dataset", "split", str(tmp_path / "none")]) == 2
