"""The audit: it finds each fault that was put in, says where, and is silent about sound data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.audit import CHECKS, Gates, Report, audit, broken, fingerprint, of_recording
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.label_checks import of_labels
from e2e_perception.data.label_doubles import LabelDoubles
from e2e_perception.data.label_table import LABEL_SCHEMA
from e2e_perception.data.sensor_presence import absent_sensors
from e2e_perception.data.shards import Dataset
from e2e_perception.data.splits import SPLITS, split_table, write_table
from e2e_perception.data.timing import SAMPLES, StreamTiming

COLUMN = {name: column for column, name in enumerate(BOX_FIELDS)}
MS = 1_000_000


def sound() -> Clip:
    return synthetic_clip(SMALL, seed=3, num_frames=8)


def first(clip: Clip) -> int:
    """Slot of the first object, the same in all frames."""
    (slot,) = np.unique(np.nonzero(clip.ids_TB == clip.ids_TB[0, 0])[1])
    return int(slot)


def with_boxes(clip: Clip, change: Callable[[np.ndarray], None]) -> Clip:
    boxes = clip.boxes_TB10.copy()
    change(boxes[:, first(clip)])
    return replace(clip, boxes_TB10=boxes)


def checks(clip: Clip) -> set[str]:
    doubles = LabelDoubles()
    doubles.add(clip, "000000")
    return {check for check, *_ in of_labels(clip)} | ({"duplicate"} if list(doubles.pairs()) else set())


def test_sound_labels_give_no_finding() -> None:
    for seed in range(20):
        assert checks(synthetic_clip(SMALL, seed=seed, num_frames=8)) == set()


def test_a_jump_beyond_physics_is_found_where_it_is() -> None:
    def jump(box: np.ndarray) -> None:
        box[4:, COLUMN["y"]] += 15.0

    clip = with_boxes(sound(), jump)
    (told,) = [item for item in of_labels(clip) if item[0] == "jump"]
    assert told[1] == "error" and told[3] == clip.stamps_ns_T[3]


def test_a_size_that_changes_is_found() -> None:
    def grow(box: np.ndarray) -> None:
        box[5, COLUMN["log_length"]] += np.log(1.5)

    assert "size" in checks(with_boxes(sound(), grow))


def test_velocities_in_another_unit_are_found() -> None:
    def in_kmh(box: np.ndarray) -> None:
        box[:, COLUMN["vx"]] = 3.6 * np.maximum(box[:, COLUMN["vx"]], 4.0)

    assert "velocity" in checks(with_boxes(sound(), in_kmh))


def test_headings_that_point_backwards_are_found() -> None:
    clip = sound()
    moving = [s for s in range(4) if clip.ids_TB[0, s] >= 0 and clip.boxes_TB10[0, s, COLUMN["vx"]] > 3.0]
    vehicles = [s for s in moving if CLASSES[clip.class_ids_TB[0, s]] != "pedestrian"]
    assert vehicles, "the clip has somebody who moves"
    boxes = clip.boxes_TB10.copy()
    boxes[:, vehicles[0], COLUMN["cos_yaw"]] *= -1.0
    boxes[:, vehicles[0], COLUMN["sin_yaw"]] *= -1.0
    assert "heading" in checks(replace(clip, boxes_TB10=boxes))


def test_classes_and_identities_that_change_are_found() -> None:
    clip = sound()
    classes = clip.class_ids_TB.copy()
    classes[4:, first(clip)] = (classes[4:, first(clip)] + 1) % 4
    assert "class_change" in checks(replace(clip, class_ids_TB=classes))
    ids = clip.ids_TB.copy()
    ids[4:, first(clip)] = 999
    assert "switch" in checks(replace(clip, ids_TB=ids))


def test_duplicates_are_found() -> None:
    clip = sound()
    slot = first(clip)
    free = int(np.flatnonzero(clip.ids_TB[0] < 0)[0])
    boxes, ids, classes = clip.boxes_TB10.copy(), clip.ids_TB.copy(), clip.class_ids_TB.copy()
    boxes[:, free], classes[:, free], ids[:, free] = boxes[:, slot], classes[:, slot], 777
    assert "duplicate" in checks(replace(clip, boxes_TB10=boxes, ids_TB=ids, class_ids_TB=classes))
    ids[:, free] = ids[:, slot]
    assert "identity" in checks(replace(clip, boxes_TB10=boxes, ids_TB=ids, class_ids_TB=classes))


def test_without_labels_nothing_is_said_of_them() -> None:
    clip = replace(sound(), labels_valid=False)
    assert checks(clip) == set()


def doubled(clip: Clip, identity: int = 777, frames: slice = slice(None)) -> Clip:
    """The first object labelled a second time, a hand's breadth away."""
    slot, free = first(clip), int(np.flatnonzero(clip.ids_TB[0] < 0)[0])
    boxes, ids, classes = clip.boxes_TB10.copy(), clip.ids_TB.copy(), clip.class_ids_TB.copy()
    boxes[frames, free], classes[frames, free] = boxes[frames, slot], classes[frames, slot]
    boxes[frames, free, COLUMN["x"]] += 0.1
    ids[frames, free] = identity
    return replace(clip, boxes_TB10=boxes, ids_TB=ids, class_ids_TB=classes)


def test_a_pair_of_tracks_is_told_once_with_all_its_frames_and_clips() -> None:
    doubles = LabelDoubles()
    clip = doubled(sound(), frames=slice(2, 5))
    later = replace(
        doubled(sound()), stamps_ns_T=clip.stamps_ns_T + 4 * (clip.stamps_ns_T[1] - clip.stamps_ns_T[0])
    )
    doubles.add(clip, "000000")
    doubles.add(later, "000001")
    doubles.add(doubled(sound(), identity=888, frames=slice(0, 1)), "000002")
    one, other = doubles.pairs()
    who = int(sound().ids_TB[0, first(sound())])
    assert (one.first, one.second, other.second) == (who, 777, 888)
    # Frames 2, 3, 4 of the first clip and 4 to 11 of the other one, of which frame 4 is in both.
    assert len(one.stamps_ns) == 10 and one.clips == {"000000", "000001"}
    assert one.gap == pytest.approx(0.1, abs=1e-6) and one.clip_id in one.clips
    assert f"{who} and 777 are 0.1 m apart; within 0.5 m in 10 frames of 2 clips" in one.message
    assert (len(other.stamps_ns), other.clip_id) == (1, "000002")
    assert doubles.doubled == 3 + 8 + 1
    assert doubles.labels == 3 * int((sound().ids_TB >= 0).sum()) + 12


# ------------------------------------------------------------------ recordings


def timing(
    count: int = 50, *, jitter_ms: float = 2.0, latency_ms: float = 30.0, **change: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    stream = StreamTiming()
    for k in range(count):
        stamp = 10**9 + k * 100 * MS + round(rng.normal(0.0, 1.0) * jitter_ms * MS)
        if k == change.get("gap_at", -1):
            continue
        if k >= change.get("late_from", count):
            stamp += 700 * MS
        if k == change.get("back_at", -1):
            stamp -= 500 * MS
        stream.add(stamp, stamp + round((latency_ms + rng.normal(0.0, 1.0) * jitter_ms) * MS))
    return stream.summary()


def facts(**changes: Any) -> dict[str, Any]:
    return {"timing": {"top": timing()}, "odometry": timing(), "label_sources": ["topic:/labels"], **changes}


def of(**changes: Any) -> list[tuple[str, str]]:
    return [(found.check, found.severity) for found in of_recording("shard", facts(**changes))]


def test_a_sound_recording_gives_no_finding() -> None:
    assert of() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"timing": {"top": timing(jitter_ms=0.0)}}, ("synthetic_stamps", "warning")),
        ({"timing": {"top": timing(jitter_ms=0.0)}}, ("synthetic_arrivals", "info")),
        ({"timing": {"top": timing(latency_ms=-20.0)}}, ("clock", "error")),
        ({"timing": {"top": timing(back_at=20)}}, ("clock", "error")),
        ({"timing": {"top": timing(late_from=30)}}, ("gap", "warning")),
        ({"timing": {"top": timing(jitter_ms=40.0)}}, ("jitter", "warning")),
        ({"odometry": {**timing(), "without_covariance": 3}}, ("covariance", "info")),
        ({"label_sources": []}, ("labels", "warning")),
        ({"left_out": {"alone": 2}}, ("left_out", "info")),
        ({"warnings": ["a.mcap: cut off or damaged; …"]}, ("recording", "warning")),
    ],
)
def test_each_fault_of_a_recording_is_found(change: dict[str, Any], expected: tuple[str, str]) -> None:
    assert expected in of(**change)


def test_timing_is_kept_in_flat_memory_and_stays_right() -> None:
    stream = StreamTiming()
    for k in range(50_000):
        stream.add(k * 20 * MS + (k % 7) * MS, k * 20 * MS + 30 * MS)
    assert len(stream._intervals.values) <= SAMPLES and len(stream._latencies.values) <= SAMPLES
    found = stream.summary()
    assert found["count"] == 50_000 and found["backwards"] == found["repeated"] == 0
    assert found["period_ms"] == pytest.approx(21.0, abs=0.01)
    assert found["latency_ms"] == pytest.approx(27.0, abs=1.01)


def summary(stamps_ns: list[int], latencies_ns: list[int]) -> dict[str, Any]:
    stream = StreamTiming()
    for stamp_ns, latency_ns in zip(stamps_ns, latencies_ns, strict=True):
        stream.add(stamp_ns, stamp_ns + latency_ns)
    return stream.summary()


def test_stamps_of_a_simulator_are_told_from_those_of_a_good_clock() -> None:
    simulated = [k * 10**9 // 30 for k in range(3000)]
    lossy = [stamp for k, stamp in enumerate(simulated) if k % 7]
    off = [stamp + 90 * (k == 1500) for k, stamp in enumerate(simulated)]  # rounds to no jitter at all
    noisy = [stamp + (k * 37) % 101 for k, stamp in enumerate(simulated)]
    burst = [*range(5), *(10**9 + k * 33 * MS + (k * 37) % 101 for k in range(20))]
    cases = [(simulated, True), (lossy, True), (off, False), (noisy, False), (burst, False)]
    for stamps, equal in cases:
        told = summary(stamps, [5 * MS] * len(stamps))
        assert told["equal_intervals"] is equal and told["equal_latencies"] is True
        found = of_recording("shard", {"timing": {"top": told}, "label_sources": ["topic:/labels"]})
        assert any(f.check == "synthetic_stamps" for f in found) is equal
    assert summary(off, [5 * MS] * 3000)["jitter_ms"] == 0.0
    late = summary(simulated, [5 * MS + (k == 1500) for k in range(3000)])
    assert late["latency_jitter_ms"] == 0.0 and late["equal_latencies"] is False
    found = of_recording("shard", {"timing": {"top": late}, "label_sources": ["topic:/labels"]})
    assert "synthetic_arrivals" not in {f.check for f in found}


RIG = {"sensors": [{"name": "front"}, {"name": "top"}]}


def validity(**clips: dict[str, float]) -> list[dict[str, Any]]:
    return [{"clip_id": name, "sensor_validity": list(share.items())} for name, share in clips.items()]


def test_a_sensor_that_is_never_there_is_said_with_a_clip_to_look_at() -> None:
    rows = validity(a={"front": 1.0, "top": 0.1}, b={"front": 0.5, "top": 0.0}, c={"front": 0.2, "top": 0.0})
    assert list(absent_sensors(rows, {"recipe": {"rig": RIG}})) == [
        ("warning", "top: in no frame of 2 of 3 clips", "b")
    ]
    assert list(absent_sensors(rows[:1], {})) == []
    assert list(absent_sensors([{"clip_id": "a", "sensor_validity": None}], {})) == []


def test_what_the_rig_has_not_is_no_fault_and_a_blind_clip_is_one() -> None:
    rows = validity(a={"front": 1.0, "top": 1.0, "rear": 0.0}, b={"front": 0.0, "top": 0.0, "rear": 0.0})
    found = list(absent_sensors(rows, {"made_from": {"rig": RIG}}))
    assert [(severity, clip) for severity, _, clip in found] == [
        ("warning", "b"), ("warning", "b"), ("info", "a"), ("warning", "b")
    ]  # fmt: skip
    assert "no sensor at all in 1 of 2 clips" in found[0][1] and "rear: the rig has no such" in found[2][1]
    # Of whose rig nothing is known, every absence is worth a look.
    assert {severity for severity, *_ in absent_sensors(rows, {})} == {"warning"}


# ------------------------------------------------------------------ datasets


def dataset(path: Path, clips: list[tuple[str, Clip]], labels: Sequence[dict[str, Any]] = ()) -> Dataset:
    made = Dataset(path)
    for name, clip in clips:
        with made.writing(name) as directory:
            writer = ClipWriter(directory)
            writer.write("000000", clip)
            writer.finish()
            made.seal(name, {**facts(), "frames": len(clip)}, labels)
    return made


def finished(made: Dataset, gates: Gates | None = None) -> Report:
    *_, (done, total, report) = audit(made, gates)
    assert done == total
    return report


@pytest.mark.parametrize(
    ("check", "change", "clip_id"),
    [
        ("gap", {"longest_gap_ms": 900.0, "longest_gap_at_ns": 5_250 * MS}, "000001"),
        ("gap", {"longest_gap_ms": 900.0, "longest_gap_at_ns": 12_000 * MS}, "000002"),
        ("jitter", {"jitter_ms": 40.0}, "000000"),
        ("clock", {"latency_ms": -20.0}, "000000"),
    ],
)
def test_findings_of_a_recording_name_the_clip_that_is_nearest(
    tmp_path: Path, check: str, change: dict[str, Any], clip_id: str
) -> None:
    made, clip = Dataset(tmp_path / "set"), sound()
    with made.writing("one") as directory:
        writer = ClipWriter(directory)
        for k in range(3):
            stamps_ns_T = clip.stamps_ns_T - clip.stamps_ns_T[0] + (k * 4_000 + 1_000) * MS
            told = {"last_stamp_ns": int(stamps_ns_T[-1])}
            writer.write(f"{k:06d}", replace(clip, stamps_ns_T=stamps_ns_T), told)
        writer.finish()
        made.seal("one", {**facts(timing={"top": {**timing(), **change}}), "frames": 24}, [])
    found = {finding.check: finding for finding in finished(made).findings}
    assert found[check].clip_id == clip_id


def scenario_in(split: str) -> str:
    from e2e_perception.data.clip_store import split_of

    return next(name for k in range(200) if split_of(name := f"bag:{k}") == split)


def test_the_same_clip_on_both_sides_of_a_split_is_a_leak(tmp_path: Path) -> None:
    here, there = (replace(sound(), scenario=scenario_in(name)) for name in ("train", "validation"))
    report = finished(dataset(tmp_path / "set", [("a", here), ("b", there)]))
    (leak,) = [found for found in report.findings if found.check == "leakage"]
    assert leak.severity == "error" and (leak.shard, leak.clip_id) == ("b", "000000")
    assert "000000 of a" in leak.message
    same = finished(dataset(tmp_path / "same", [("a", here), ("b", here)]))
    assert [found.check for found in same.findings] == ["repetition"]


def test_clips_that_show_nothing_are_not_alike(tmp_path: Path) -> None:
    blind = {**sound().inputs}
    for name in ("images", "lidar_raster", "camera_valid", "lidar_valid"):
        blind[name] = np.zeros_like(blind[name])
    here, there = (
        replace(sound(), scenario=scenario_in(name), inputs=blind) for name in ("train", "validation")
    )
    report = finished(dataset(tmp_path / "set", [("a", here), ("b", there)]))
    assert not [f for f in report.findings if f.check in ("leakage", "repetition", "near_duplicate")]


def test_nearly_the_same_clip_on_the_other_side_is_said(tmp_path: Path) -> None:
    """Other noise in the pictures: the exact fingerprint of the rasters is changed, too."""
    rng = np.random.default_rng(0)
    clip = sound()
    raster = clip.inputs["lidar_raster"].copy()
    raster[0, :, ::7, ::5] += 1.0
    images = clip.inputs["images"].astype(np.float32) + rng.normal(0.0, 2.0, clip.inputs["images"].shape)
    inputs = {**clip.inputs, "lidar_raster": raster, "images": np.clip(images, 0, 255).astype(np.uint8)}
    here = replace(clip, scenario=scenario_in("train"))
    there = replace(clip, scenario=scenario_in("validation"), inputs=inputs)
    assert fingerprint(here) != fingerprint(there)
    report = finished(dataset(tmp_path / "set", [("a", here), ("b", there)]))
    (near,) = [found for found in report.findings if found.check == "near_duplicate"]
    assert near.severity == "warning" and "000000 of a" in near.message
    assert not [found for found in report.findings if found.check == "leakage"]


def test_recordings_of_one_time_on_two_sides_are_found_until_they_are_split(tmp_path: Path) -> None:
    noon_ns = 1_700_000_000 * 10**9
    made = Dataset(tmp_path / "set")
    for name, split, start_s in (("a", "train", 0), ("b", "validation", 20), ("c", "validation", 500)):
        clip = replace(synthetic_clip(SMALL, seed=ord(name)), scenario=scenario_in(split))
        with made.writing(name) as directory:
            writer = ClipWriter(directory)
            writer.write("000000", clip)
            writer.finish()
            start_ns = noon_ns + start_s * 10**9
            seal = {"start_ns": start_ns, "end_ns": start_ns + 60 * 10**9, "frames": len(clip)}
            made.seal(name, {**facts(), **seal}, [])
    (shared,) = [f for f in finished(made).findings if f.check == "shared_drive"]
    assert (shared.severity, shared.shard, shared.clip_id) == ("error", "b", "000000")
    assert "a is in split train, this one in validation" in shared.message
    assert "40.0 s at the same time" in shared.message
    write_table(made.path / SPLITS, split_table(made.recordings()))
    assert [f for f in finished(made).findings if f.check == "shared_drive"] == []


def test_a_fingerprint_survives_noise_and_tells_scenes_apart() -> None:
    clip = sound()
    assert fingerprint(clip) == fingerprint(replace(clip, scenario="other"))
    assert len({fingerprint(synthetic_clip(SMALL, seed=seed)) for seed in range(30)}) == 30


def test_balance_is_counted_and_gates_are_judged(tmp_path: Path) -> None:
    made = dataset(tmp_path / "set", [(f"s{k}", synthetic_clip(SMALL, seed=k)) for k in range(4)])
    report = finished(made)
    assert report.clips == report.labelled_clips == 4 and report.digest == made.digest
    labels = sum(report.balance["class"].values())
    assert labels == sum(report.balance["distance"].values()) > 0
    assert set(report.balance["class"]) <= set(CLASSES)
    assert sum(report.balance["split"].values()) == 4
    assert report.broken_gates == []
    strict = Gates(min_class_share={"obstacle": 0.5}, max_findings={"info": 0}, min_labelled_share=1.0)
    assert [gate for gate in broken(report, strict) if "class obstacle" in gate]
    unlabelled = dataset(tmp_path / "plain", [("a", replace(sound(), labels_valid=False))])
    words = finished(unlabelled, Gates(min_labelled_share=0.5)).broken_gates
    assert words == ["0% of clips are labelled, at least 50% have to be"]


def test_labels_that_stand_in_one_another_break_a_gate_by_their_share(tmp_path: Path) -> None:
    """A pair is worth a look; a dataset that is doubled is not worth training on."""
    report = finished(dataset(tmp_path / "set", [("a", doubled(sound())), ("b", sound())]))
    (pair,) = [found for found in report.findings if found.check == "duplicate"]
    assert (pair.severity, pair.shard, pair.clip_id) == ("warning", "a", "000000")
    count = int((sound().ids_TB >= 0).sum())
    assert report.doubled_share == pytest.approx(8 / (2 * count + 8))
    assert broken(report, Gates(max_doubled_share=report.doubled_share)) == []
    (said,) = broken(report, Gates(max_doubled_share=report.doubled_share - 1e-6))
    assert "of labels stand in another of their class" in said


def test_sources_confidence_and_what_nobody_reviewed_are_counted(tmp_path: Path) -> None:
    def row(slot: int, source: str, confidence: float, reviewer: str | None) -> dict[str, Any]:
        said = {"clip_id": "000000", "frame": 0, "slot": slot, "identity": slot, "class": "car"}
        who = {"source": source, "tool": "t", "bundle_digest": None, "reviewer": reviewer}
        return {name: {**said, **who, "confidence": confidence}[name] for name in LABEL_SCHEMA.names}

    rows = [
        row(0, "autolabel", 0.25, None),
        row(1, "autolabel", 0.75, None),
        row(2, "autolabel", 0.0, None),
        row(3, "review", 1.0, "kim"),
    ]
    found = finished(dataset(tmp_path / "set", [("a", sound())], rows)).provenance
    assert list(found) == ["all", "autolabel", "review"]
    assert found["autolabel"] == {
        "labels": 3, "seen_share": 0.6667, "mean_confidence": 0.5, "doubtful_share": 0.5,
        "unreviewed_share": 1.0,
    }  # fmt: skip
    assert found["review"]["unreviewed_share"] == 0.0 and found["all"]["unreviewed_share"] == 0.75
    assert finished(dataset(tmp_path / "none", [("a", sound())])).provenance == {}


def test_gates_on_checks_that_there_are_not_are_refused() -> None:
    assert Gates(max_findings=dict.fromkeys((*CHECKS, "error"), 0))
    with pytest.raises(ValidationError, match="there is no check 'duplicat'"):
        Gates(max_findings={"duplicat": 0})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"min_class_share": {"car": float("nan")}}, "finite number"),
        ({"min_class_share": {"car": 1.5}}, "less than or equal to 1"),
        ({"min_class_share": {"car": -0.1}}, "greater than or equal to 0"),
        ({"min_class_share": {"caar": 0.1}}, "there is no class 'caar'; expected some of car"),
        ({"min_class_share": {"car": 0.6, "pedestrian": 0.6}}, "sum up to 1.2; expected at most 1"),
        ({"max_findings": {"error": -1}}, "greater than or equal to 0"),
        ({"min_labelled_share": float("nan")}, "finite number"),
        ({"max_doubled_share": float("nan")}, "finite number"),
    ],
)
def test_gates_that_always_or_never_break_are_refused(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Gates.model_validate(limits)


def test_gates_at_their_bounds_are_taken() -> None:
    assert Gates(min_class_share={"car": 1.0, "pedestrian": 0.0}, max_findings={"error": 0})
    assert Gates(min_class_share={"car": 0.1, "pedestrian": 0.2, CLASSES[-1]: 0.7})
