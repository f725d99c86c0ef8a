"""To CVAT and back: what nobody touched comes back to the last digit, what was done as it was done."""

from __future__ import annotations

import json
import math
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from review_sets import FRAMES, TRACKS, add_shard, review_clip, review_set, turned

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.data.cvat_xml import ANNOTATIONS, CvatBox, CvatLabel, CvatTrack, cvat_video, parse_cvat
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.review_clips import LabelBox, ReviewDataset
from e2e_perception.data.review_cvat import BIRDSEYE, MANIFEST, _exported, export_cvat, import_cvat
from e2e_perception.data.review_pictures import BirdsEye, Rectangle
from e2e_perception.data.review_verdicts import Tally

BOX_NUMBERS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")
HALF_PIXEL = 0.05


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ReviewDataset:
    path = tmp_path_factory.mktemp("sets") / "set"
    add_shard(path, "drive", [turned(review_clip(seed), [0.3, -2.0, 3.1]) for seed in range(2)])
    return ReviewDataset.open(path)


@pytest.fixture(scope="module")
def out(dataset: ReviewDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cvat") / "out"
    counts = export_cvat(dataset, dataset.names(), path)
    assert counts == {"clips": 2, "frames": 2 * FRAMES, "boxes": 18, "outside": 0}
    return path


class Task:
    """The task from above as a reviewer changes it."""

    def __init__(self, out: Path, dataset: ReviewDataset, tmp_path: Path) -> None:
        self.out, self.dataset, self.file = out, dataset, tmp_path / "back.xml"
        self.root = ElementTree.parse(out / BIRDSEYE / ANNOTATIONS).getroot()

    def track(self, identity: int, clip: int = 0) -> ElementTree.Element:
        for track in self.root.findall("track"):
            first = track.find("box")
            if (
                self.attribute(first, "identity") == str(identity)
                and int(first.get("frame")) // FRAMES == clip
            ):
                return track
        raise AssertionError(identity)

    @staticmethod
    def attribute(box: ElementTree.Element, name: str) -> str:
        return next(a.text or "" for a in box.findall("attribute") if a.get("name") == name)

    @staticmethod
    def set(box: ElementTree.Element, name: str, value: str) -> None:
        next(a for a in box.findall("attribute") if a.get("name") == name).text = value

    @staticmethod
    def move(box: ElementTree.Element, right: float = 0.0, down: float = 0.0) -> None:
        for name, by in (("xtl", right), ("xbr", right), ("ytl", down), ("ybr", down)):
            box.set(name, f"{float(box.get(name)) + by:.2f}")

    def back(self, tally: Tally | None = None) -> list[LayerRow]:
        ElementTree.ElementTree(self.root).write(self.file, encoding="utf-8")
        rows, shards = import_cvat(self.file, self.out / MANIFEST, self.dataset, "kim", tally or Tally())
        assert shards == self.dataset.digests
        return rows


@pytest.fixture
def task(out: Path, dataset: ReviewDataset, tmp_path: Path) -> Task:
    return Task(out, dataset, tmp_path)


def of(rows: list[LayerRow], identity: int, clip: str = "drive/000000") -> list[LayerRow]:
    return [row for row in rows if row.identity == identity and row.clip_id == clip]


# ----------------------------------------------------------------------------------- there and back


def test_what_nobody_touched_is_accepted_with_its_own_numbers(task: Task) -> None:
    tally = Tally()
    rows = task.back(tally)
    assert tally == Tally(accepted=18)
    originals = {}
    for name in task.dataset.names():
        review = task.dataset.read(name)
        for label in review.labels:
            originals[str(name), int(review.clip.stamps_ns_T[label.frame]), label.identity] = label
    assert len(rows) == len(originals) == 18
    for row in rows:
        label = originals[row.clip_id, row.stamp_ns, row.identity]
        assert [getattr(row, name) for name in BOX_NUMBERS] == [
            getattr(label.box, name) for name in BOX_NUMBERS
        ]
        assert (row.class_name, row.verdict, row.reviewer, row.source) == (
            label.class_name,
            "label",
            "kim",
            "review",
        )
        assert (row.bundle_digest, row.confidence) == ("abcdef0123456789", 1.0)


@settings(max_examples=60)
@given(
    st.floats(-23.0, 71.0), st.floats(-31.0, 31.0), st.floats(-math.pi, math.pi), st.floats(0.3, 15.0),
    st.floats(0.3, 3.0),
)  # fmt: skip
def test_a_box_read_from_its_picture_is_within_half_a_pixel(
    x: float, y: float, yaw: float, length: float, width: float
) -> None:
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.review_clips import ReviewLabel

    numbers = {"x": x, "y": y, "z": 0.8, "length": length, "width": width, "height": 1.5, "yaw": yaw}
    box = LabelBox.of({**numbers, "vx": 1.0, "vy": 0.0})
    view = BirdsEye.of(SIZES["tiny"].grid)
    label = ReviewLabel(0, 0, 7, "car", box, "topic:/labels", None, None, 1.0, None)
    text = cvat_video(
        name="one", frames=1, size=view.size, labels=[CvatLabel("car", ())],
        tracks=[CvatTrack("car", (_exported(label, 0, view),))],
    )  # fmt: skip
    (track,) = parse_cvat(text.encode(), "one").tracks
    (back,) = track.shapes
    assert isinstance(back, CvatBox)
    found = view.footprint(Rectangle(*back.points, back.rotation))
    corners = box.moved(**found).corners_83
    assert np.abs(corners - box.corners_83).max() < HALF_PIXEL


def test_a_box_that_was_moved_and_turned_is_measured_in_the_picture(task: Task) -> None:
    box = task.track(100).findall("box")[1]
    Task.move(box, right=20.0, down=-10.0)
    box.set("rotation", "350.00")
    tally = Tally()
    rows = of(task.back(tally), 100)
    assert (tally.accepted, tally.edited) == (17, 1)
    review = task.dataset.read(task.dataset.names()[0])
    before, after = review.tracks[100][1].box, rows[1]
    assert after.x == pytest.approx(before.x + 2.0, abs=1e-3)
    assert after.y == pytest.approx(before.y + 1.0, abs=1e-3)
    assert after.yaw == pytest.approx(math.radians(10.0), abs=1e-6)
    assert (after.z, after.height, after.vx, after.vy) == (before.z, before.height, before.vx, before.vy)
    assert (after.bundle_digest, after.confidence, after.verdict) == (None, 1.0, "label")
    assert rows[0].x == review.tracks[100][0].box.x


def test_height_and_z_come_back_from_the_attributes(task: Task) -> None:
    Task.set(task.track(101).find("box"), "height", "2.5")
    row = of(task.back(), 101)[0]
    before = task.dataset.read(task.dataset.names()[0]).tracks[101][0].box
    assert row.height == pytest.approx(2.5) and (row.x, row.z, row.yaw) == (before.x, before.z, before.yaw)


@pytest.mark.parametrize("attributes_are_lost", [False, True])
def test_another_class_comes_back_also_if_the_tool_empties_the_attributes(
    task: Task, attributes_are_lost: bool
) -> None:
    track = task.track(101)
    track.set("label", "truck")
    if attributes_are_lost:
        for box in track.findall("box"):
            for name in ("identity", "exported"):
                Task.set(box, name, "")
            Task.set(box, "height", "3.000")
    tally = Tally()
    rows = of(task.back(tally), 101)
    assert tally == Tally(accepted=15, edited=3)
    before = task.dataset.read(task.dataset.names()[0]).tracks[101]
    assert [row.class_name for row in rows] == ["truck"] * FRAMES
    assert [row.x for row in rows] == [label.box.x for label in before]
    assert [row.height for row in rows] == [label.box.height for label in before]


def test_what_was_taken_away_is_rejected_whole_or_in_a_frame(task: Task) -> None:
    task.root.remove(task.track(102))
    task.track(100).findall("box")[2].set("outside", "1")
    tally = Tally()
    rows = task.back(tally)
    assert tally == Tally(accepted=14, rejected=4)
    assert [row.verdict for row in of(rows, 102)] == ["rejected"] * FRAMES
    assert [row.verdict for row in of(rows, 100)] == ["label", "label", "rejected"]
    assert {row.verdict for row in of(rows, 102, "drive/000001")} == {"label"}
    before = task.dataset.read(task.dataset.names()[0]).tracks[102][0].box
    assert of(rows, 102)[0].x == before.x


def added(task: Task, frames: list[int], right: list[float], **attributes: str) -> None:
    track = ElementTree.SubElement(
        task.root, "track", {"id": "99", "label": "pedestrian", "source": "manual"}
    )
    for frame, x in zip(frames, right, strict=True):
        numbers = {"xtl": x, "ytl": 297.0, "xbr": x + 6.0, "ybr": 303.0}
        box = ElementTree.SubElement(
            track,
            "box",
            {"frame": str(frame), "keyframe": "1", "outside": "0", "occluded": "0", "z_order": "0"}
            | {key: f"{value:.2f}" for key, value in numbers.items()},
        )
        for key, value in {
            "identity": "",
            "z": "0.85",
            "height": "1.7",
            "exported": "",
            **attributes,
        }.items():
            ElementTree.SubElement(box, "attribute", {"name": key}).text = value


def test_an_addition_gets_a_new_identity_and_its_velocity_over_ground(task: Task) -> None:
    added(task, [0, 1, 2], [337.0, 337.0, 337.0])  # stands still in the picture: as fast as the robot
    tally = Tally()
    rows = of(task.back(tally), 103)
    assert tally == Tally(accepted=18, added=3)
    review = task.dataset.read(task.dataset.names()[0])
    speed = review.clip.memory_from_base_T3[1, 0] / 0.1
    for row in rows:
        assert (row.x, row.y, row.length, row.width) == pytest.approx((10.0, 2.0, 0.6, 0.6), abs=1e-5)
        assert (row.z, row.height, row.class_name) == (pytest.approx(0.85), pytest.approx(1.7), "pedestrian")
        assert (row.vx, row.vy) == (pytest.approx(speed, abs=1e-3), pytest.approx(0.0, abs=1e-3))


def test_an_addition_in_one_frame_has_no_velocity_and_is_left_out(task: Task) -> None:
    added(task, [4], [300.0])
    tally = Tally()
    assert len(task.back(tally)) == 18
    assert tally == Tally(accepted=18, left_out=1)


def test_a_copy_is_a_new_object_and_what_it_was_copied_from_stays(task: Task) -> None:
    original = task.track(100)
    copy = ElementTree.fromstring(ElementTree.tostring(original))
    for box in copy.findall("box"):
        Task.move(box, right=55.0)
    task.root.insert(0, ElementTree.Comment("before the original"))
    task.root.insert(1, copy)
    tally = Tally()
    rows = task.back(tally)
    assert tally == Tally(accepted=18, added=3)
    before = task.dataset.read(task.dataset.names()[0]).tracks[100]
    assert [row.x for row in of(rows, 100)] == [label.box.x for label in before]
    assert [row.x for row in of(rows, 103)] == pytest.approx(
        [label.box.x + 5.5 for label in before], abs=1e-3
    )


def test_a_number_that_a_reviewer_gives_keeps_pieces_of_an_addition_together(task: Task) -> None:
    added(task, [0], [337.0], identity="5000")
    added(task, [2], [337.0], identity="5000")
    rows = of(task.back(), 103)
    assert [row.stamp_ns for row in rows] == [0, 200_000_000]


def test_two_clips_of_one_shard_get_different_new_identities(task: Task) -> None:
    added(task, [0, 1], [337.0, 337.0])
    added(task, [3, 4], [337.0, 337.0])
    rows = task.back()
    assert len(of(rows, 103)) == 2 and len(of(rows, 104, "drive/000001")) == 2


def test_a_task_of_images_comes_back_by_the_names_of_its_pictures(
    out: Path, dataset: ReviewDataset, tmp_path: Path
) -> None:
    root = ElementTree.parse(out / BIRDSEYE / ANNOTATIONS).getroot()
    images = ElementTree.Element("annotations")
    for number in (0, 3):  # the others were not looked at
        image = ElementTree.SubElement(
            images,
            "image",
            {"id": "0", "name": f"images/frame_{number:06d}.png", "width": "960", "height": "640"},
        )
        for track in root.findall("track"):
            for box in track.findall("box"):
                # Some tools split tracks without leaving out where they are not.
                if box.get("frame") == str(number):
                    box.set("label", str(track.get("label")))
                    image.append(box)
    images[1].remove(images[1][-1])
    with zipfile.ZipFile(tmp_path / "back.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ANNOTATIONS, ElementTree.tostring(images))
    tally = Tally()
    rows, _ = import_cvat(tmp_path / "back.zip", out / MANIFEST, dataset, "kim", tally)
    assert tally == Tally(accepted=5, rejected=1)
    assert {(row.clip_id, row.stamp_ns) for row in rows} == {
        ("drive/000000", 0),
        ("drive/000001", 0),
    }


def test_a_label_of_something_unseen_stays_unseen(tmp_path: Path) -> None:
    opened = ReviewDataset.open(review_set(tmp_path / "set", clips=1, confidence=0.0))
    export_cvat(opened, opened.names(), tmp_path / "out")
    rows, _ = import_cvat(
        tmp_path / "out" / BIRDSEYE / ANNOTATIONS, tmp_path / "out" / MANIFEST, opened, "kim", Tally()
    )
    assert {row.confidence for row in rows} == {0.0}


# ----------------------------------------------------------------------------------- CVAT's rules


@pytest.mark.parametrize("view", [BIRDSEYE, "front", "left"])
def test_every_task_keeps_the_rules_of_the_format(out: Path, view: str) -> None:
    text = (out / view / ANNOTATIONS).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.encode())
    pictures = sorted((out / view / "images").iterdir())
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    task = root.find("meta/task")
    assert task is not None and task.findtext("mode") == "interpolation"
    assert int(task.findtext("size")) == len(pictures) == 2 * FRAMES
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    assert (task.findtext("original_size/width"), task.findtext("original_size/height")) == (
        str(width),
        str(height),
    )
    declared = {
        label.findtext("name"): {a.findtext("name"): a for a in label.iterfind("attributes/attribute")}
        for label in task.iterfind("labels/label")
    }
    assert set(declared) == set(CLASSES)
    shape, numbers = ("box", 4) if view == BIRDSEYE else ("cuboid", 16)
    ids = [track.get("id") for track in root.findall("track")]
    assert ids == [str(number) for number in range(len(ids))] and ids
    for track in root.findall("track"):
        assert {child.tag for child in track} == {shape}
        frames = [int(child.get("frame")) for child in track]
        assert frames == sorted(set(frames)) and frames[-1] < len(pictures)
        # A track that is not said to be outside would go on to the end of the task.
        assert track[-1].get("outside") == "1" or frames[-1] == len(pictures) - 1
        for child in track:
            assert child.get("keyframe") == "1" and child.get("occluded") == "0"
            coordinates = [value for key, value in child.items() if re.fullmatch(r"[xy][tb][lr][12]?", key)]
            assert len(coordinates) == numbers
            assert all(re.fullmatch(r"-?\d+\.\d\d", value) for value in coordinates)
            for attribute in child.findall("attribute"):
                about = declared[track.get("label")][attribute.get("name")]
                if about.findtext("input_type") == "number":
                    least, most, _ = about.findtext("values").split("\n")
                    assert float(least) <= float(attribute.text) <= float(most)
    raw = json.loads((out / view / "labels.json").read_text(encoding="utf-8"))
    assert {label["name"]: {a["name"] for a in label["attributes"]} for label in raw} == {
        name: set(attributes) for name, attributes in declared.items()
    }


def test_a_dead_camera_has_no_task(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [BIRDSEYE, "front", "left", MANIFEST]


def test_text_that_xml_cannot_hold_does_not_break_the_document() -> None:
    box = CvatBox(0, "", (0.0, 0.0, 1.0, 1.0), 0.0, {"source": "a\x00<b>&\ud800"})
    text = cvat_video(
        name='"<&\x07',
        frames=1,
        size=(2, 2),
        labels=[CvatLabel("car", ())],
        tracks=[CvatTrack("car", (box,))],
    )
    (track,) = parse_cvat(text.encode(), "x").tracks
    assert track.shapes[0].attributes == {"source": "a\ufffd<b>&\ufffd"}


# ----------------------------------------------------------------------------------- hostile files

ENTITIES = """<?xml version="1.0"?><!DOCTYPE annotations [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>
<annotations><track label="&b;"/></annotations>"""
EXTERNAL = '<!DOCTYPE annotations SYSTEM "file:///etc/passwd"><annotations/>'
BOX = '<box frame="0" keyframe="1" outside="0" xtl="1" ytl="1" xbr="{}" ybr="9">{}</box>'


def document(inside: str, label: str = "car") -> str:
    return f'<annotations><track id="0" label="{label}">{inside}</track></annotations>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ENTITIES, "a document type is declared"),
        (EXTERNAL, "a document type is declared"),
        ("", "no XML"),
        ("<annotations><track", "no XML"),
        ("<html/>", "expected <annotations>"),
        ("<annotations>" + "<a>" * 20 + "</a>" * 20 + "</annotations>", "more than 16 deep"),
        (document(BOX.format("nan", "")), "expected a number of pixels"),
        (document(BOX.format("1e300", "")), "expected a number of pixels"),
        (document(BOX.format("9", f'<attribute name="z">{"9" * 5000}</attribute>')), "longer than 4096"),
        (document(BOX.format("9", "") * 2), "two boxes in frame 0"),
        (document('<box frame="-1" xtl="1" ytl="1" xbr="2" ybr="9"/>'), "expected a whole number"),
        (document('<box frame="0" ytl="1" xbr="2" ybr="9"/>'), "has no xtl"),
        (document('<polygon frame="0" points="1,2;3,4"/>'), "expected boxes alone"),
        ('<annotations><image name="a.png"/><image name="b/a.png"/></annotations>', "is there twice"),
        ('<annotations><track label="car"/><image name="a.png"/></annotations>', "both tracks and images"),
    ],
)
def test_a_hostile_or_damaged_document_is_refused(content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_cvat(content.encode(), "back.xml")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_an_input_error(content: bytes) -> None:
    for bytes_ in (content, b"<annotations>" + content + b"</annotations>"):
        # Nothing but our own error leaves it, which is the one that becomes a sentence.
        with suppress(InputError):
            assert parse_cvat(bytes_, "back.xml").kind in ("video", "images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(BOX.format("9", ""), label="spaceship"), "class 'spaceship', expected one of car"),
        (document(BOX.format("9", "").replace('"0"', '"77"', 1)), "6 were exported"),
        (document(BOX.format("9", "")), "without z and height"),
        (document(BOX.format("1", "")), r"expected the top-left corner first|without z"),
        (
            document(BOX.format("9", '<attribute name="identity">../7</attribute>')),
            "expected a whole number, or",
        ),
        (document(BOX.format("9", '<attribute name="z">inf</attribute>')), "expected metres"),
        (document(BOX.format("9", '<attribute name="height">-1</attribute>')), "expected more than 0"),
        ('<annotations><image name="frame_000099.png"/></annotations>', "was not exported"),
    ],
)
def test_what_boxes_cannot_be_is_refused_with_the_place(
    out: Path, dataset: ReviewDataset, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "back.xml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        import_cvat(tmp_path / "back.xml", out / MANIFEST, dataset, "kim", Tally())


def test_a_file_that_is_no_archive_or_without_annotations_is_refused(tmp_path: Path) -> None:
    from e2e_perception.data.cvat_xml import read_cvat

    (tmp_path / "a.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="no archive of CVAT"):
        read_cvat(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../annotations.xml", "<annotations/>")
    with pytest.raises(InputError, match="no archive of CVAT"):
        read_cvat(tmp_path / "b.zip")


def test_an_archive_that_unpacks_to_more_than_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e2e_perception.data import cvat_xml

    monkeypatch.setattr(cvat_xml, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ANNOTATIONS, b" " * (2 << 20))
    assert (tmp_path / "a.zip").stat().st_size < 10_000
    with pytest.raises(InputError, match="more than 1 MiB"):
        cvat_xml.read_cvat(tmp_path / "a.zip")


def test_another_dataset_or_manifest_is_refused(out: Path, tmp_path: Path) -> None:
    other = ReviewDataset.open(review_set(tmp_path / "other", clips=1))
    with pytest.raises(InputError, match=r"was made for shard drive with digest .*; export it again"):
        import_cvat(out / BIRDSEYE / ANNOTATIONS, out / MANIFEST, other, "kim", Tally())
    (tmp_path / MANIFEST).write_text('{"frames": [], "more": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="no manifest of `review export`"):
        import_cvat(out / BIRDSEYE / ANNOTATIONS, tmp_path / MANIFEST, other, "kim", Tally())


def test_nothing_is_written_among_other_things(dataset: ReviewDataset, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        export_cvat(dataset, dataset.names(), tmp_path)


def test_labels_outside_of_the_picture_are_not_judged(tmp_path: Path) -> None:
    clip = review_clip()
    clip.boxes_TB10[:, 1, 0] = 90.0
    add_shard(tmp_path / "set", "drive", [clip])
    opened = ReviewDataset.open(tmp_path / "set")
    counts = export_cvat(opened, opened.names(), tmp_path / "out")
    assert (counts["boxes"], counts["outside"]) == (6, 3)
    rows, _ = import_cvat(
        tmp_path / "out" / BIRDSEYE / ANNOTATIONS, tmp_path / "out" / MANIFEST, opened, "kim", Tally()
    )
    assert {row.identity for row in rows} == set(TRACKS) - {101}
