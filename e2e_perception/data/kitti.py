"""Detections and tracks in KITTI's text formats: what detectors leave, and what evaluators of tracking read.

Three layouts of detections are told apart by their first line:

| layout | a line |
| --- | --- |
| AB3DMOT | `frame, type id, x1, y1, x2, y2, score, h, w, l, x, y, z, rotation_y, alpha` |
| tracking | `frame id type truncated occluded alpha x1 y1 x2 y2 h w l x y z rotation_y [score]` |
| object | the same without frame and id; one file a frame, named by its number |

Objects are given in the camera's frame: x right, y down, z forward, the location is the middle of the box's
bottom, and rotation_y is about y, 0 for an object that faces along x. They are tracked on the ground, in a
frame at the camera's origin with x forward, y left and z up (`BODY_FROM_OPTICAL`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TextIO

import numpy as np

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import BODY_FROM_OPTICAL, SE3, wrap_angle

# Which of the project's classes a type of KITTI's moves like.
TYPES: dict[str, str] = {
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Tram": "truck",
    "Misc": "truck",
    "Pedestrian": "pedestrian",
    "Person_sitting": "pedestrian",
    "Person": "pedestrian",  # what the labels of tracking call one who sits
    "Cyclist": "cyclist",
}
AB3DMOT_TYPES = {1: "Pedestrian", 2: "Car", 3: "Cyclist"}
# As the labels of tracking have it, and TrackEval knows it, where those of object detection differ.
TRACKING_TYPES = {"Person_sitting": "Person"}
IGNORED = "DontCare"  # a region of the picture, no object
AB3DMOT_COLUMNS = ("frame", "type", "x1", "y1", "x2", "y2", "score", *"hwlxyz", "rotation_y", "alpha")
OBJECT_COLUMNS = (
    *("type", "truncated", "occluded", "alpha", "x1", "y1", "x2", "y2"),
    *(*"hwlxyz", "rotation_y", "score"),
)
TRACKING_COLUMNS = ("frame", "id", *OBJECT_COLUMNS)
LABEL_SCORE = 1.0  # of a line without one, as `Boxes` has it for labels


@dataclass(frozen=True)
class KittiObject:
    """One line.

    Attributes:
        type: One of `TYPES`.
        bbox_4: x1, y1, x2, y2 in the picture [px].
        height, width, length: [m]
        location_3: Middle of the bottom, camera frame [m].
        rotation_y: About the camera's y axis [rad].
        score: On the detector's scale.
        track_id: -1 for detections.
    """

    type: str
    bbox_4: tuple[float, float, float, float]
    height: float
    width: float
    length: float
    location_3: tuple[float, float, float]
    rotation_y: float
    score: float
    track_id: int = -1

    @property
    def alpha(self) -> float:
        """Heading relative to the ray from the camera [rad]."""
        x, _, z = self.location_3
        return float(wrap_angle(self.rotation_y - math.atan2(x, z)))


@dataclass(frozen=True)
class KittiFrame:
    """All objects of one frame, whose number counts from 0."""

    number: int
    objects: tuple[KittiObject, ...]


# --- in -----------------------------------------------------------------------------------------------------


def find_sequences(path: Path) -> dict[str, Path]:
    """The sequences at a path, by name: what `read_sequence` takes.

    Args:
        path: A file is one sequence. A directory holds a file per sequence, or directories with a file per
            frame, or is itself one of those.
    Raises:
        InputError: If there is nothing there.
    """
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise InputError(f"no detections at {path}; expected a file, or a directory of *.txt files")
    files = sorted(path.glob("*.txt"))
    if not files:
        found = {d.name: d for d in sorted(path.iterdir()) if d.is_dir() and any(d.glob("*.txt"))}
        if not found:
            raise InputError(f"{path} holds no *.txt file, nor a directory of such; expected detections")
        return found
    if next((layout for file in files if (layout := _layout_of(file)) is not None), None) == OBJECT_COLUMNS:
        return {path.name: path}
    return {file.stem: file for file in files}


def read_sequence(path: Path) -> Iterator[KittiFrame]:
    """Frames that have objects, by rising number; one frame is in memory at a time.

    Args:
        path: A file in the AB3DMOT or the tracking layout, or a directory of files in the object layout.
    Raises:
        InputError: If a line is malformed, or out of order; file and line are named.
    """
    found: Iterator[tuple[int, KittiObject]]
    if path.is_dir():
        found = ((number, one) for number, file in _frame_files(path) for _, one in _read_file(file, number))
    else:
        found = _read_file(path, None)
    for number, rows in groupby(found, key=lambda row: row[0]):
        yield KittiFrame(number, tuple(one for _, one in rows))


def read_poses(path: Path) -> list[SE3]:
    """`odom_from_camera` of each frame: twelve numbers a line, row by row, as in KITTI odometry.

    Raises:
        InputError: If a line is not that, or no rigid transform.
    """
    poses = []
    for line, text in _lines(path):
        numbers = [_number(word, "pose", path, line) for word in text.split()]
        if len(numbers) != 12:
            raise InputError(f"{path}:{line}: got {len(numbers)} numbers, expected the 12 of a 3x4 pose")
        matrix = np.array(numbers).reshape(3, 4)
        if not np.allclose(matrix[:, :3] @ matrix[:, :3].T, np.eye(3), atol=1e-3):
            raise InputError(f"{path}:{line}: the left 3x3 of the pose is no rotation; give odom_from_camera")
        poses.append(SE3(matrix[:, :3], matrix[:, 3]))
    return poses


def _frame_files(directory: Path) -> list[tuple[int, Path]]:
    files = sorted(directory.glob("*.txt"))
    for file in files:
        if not file.stem.isdecimal():
            raise InputError(
                f"{file}: files of a sequence in {directory} are named by frame, e.g. 000012.txt"
            )
    return sorted((int(file.stem), file) for file in files)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, and their numbers from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, text.strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _layout_of(path: Path) -> tuple[str, ...] | None:
    """Columns of a file, of which a score may be missing; None if it is empty.

    Raises:
        InputError: If it is none of the layouts.
    """
    for line, text in _lines(path):
        num = len(_words(text))
        if "," in text and num == len(AB3DMOT_COLUMNS):
            return AB3DMOT_COLUMNS
        for columns in (OBJECT_COLUMNS, TRACKING_COLUMNS):
            if "," not in text and num in (len(columns) - 1, len(columns)):
                return columns
        raise InputError(
            f"{path}:{line}: got {num} columns, expected 15 with commas (AB3DMOT), or, with spaces, 17 or 18 "
            "(tracking) or 15 or 16 (object)"
        )
    return None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if "," in text else text.split()


def _read_file(path: Path, number: int | None) -> Iterator[tuple[int, KittiObject]]:
    """Objects with the numbers of their frames, which is `number` for a file of one frame."""
    layout, before = _layout_of(path), 0
    if layout is not None and (layout == OBJECT_COLUMNS) != (number is not None):
        one, other = ("a sequence", "one frame") if number is None else ("one frame", "a sequence")
        raise InputError(f"{path}: expected {one}, but its lines are those of {other}")
    for line, text in _lines(path):
        assert layout is not None
        words = _words(text)
        allowed = {len(layout)} if layout == AB3DMOT_COLUMNS else {len(layout) - 1, len(layout)}
        if len(words) not in allowed or (layout == AB3DMOT_COLUMNS) != ("," in text):
            raise InputError(f"{path}:{line}: got {len(words)} columns, expected {' '.join(layout)}")
        row = dict(zip(layout, words, strict=False))
        frame = number if number is not None else _integer(row["frame"], "frame", path, line)
        if frame < before:
            raise InputError(f"{path}:{line}: frame {frame} follows {before}; sort the lines by frame")
        before = frame
        found = _parse(row, path, line)
        if found is not None:
            yield frame, found


def _parse(row: dict[str, str], path: Path, line: int) -> KittiObject | None:
    """The object of a line; None for a region that is none."""
    kind = row["type"]
    if "truncated" not in row:
        kind = AB3DMOT_TYPES.get(_integer(kind, "type", path, line), kind)
    if kind == IGNORED:
        return None
    if kind not in TYPES:
        known = (
            f"{', '.join(TYPES)}, or with commas {', '.join(f'{k} {v}' for k, v in AB3DMOT_TYPES.items())}"
        )
        raise InputError(f"{path}:{line}: unknown type {kind!r}; there are {known}")
    numbers = {name: _number(word, name, path, line) for name, word in row.items() if name != "type"}
    for name in "hwl":
        if numbers[name] <= 0.0:
            raise InputError(f"{path}:{line}: {name} is {numbers[name]} m, expected more than 0")
    return KittiObject(
        type=kind,
        bbox_4=(numbers["x1"], numbers["y1"], numbers["x2"], numbers["y2"]),
        height=numbers["h"],
        width=numbers["w"],
        length=numbers["l"],
        location_3=(numbers["x"], numbers["y"], numbers["z"]),
        rotation_y=numbers["rotation_y"],
        score=numbers.get("score", LABEL_SCORE),
        track_id=int(numbers.get("id", -1)),
    )


def _number(word: str, name: str, path: Path, line: int) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}:{line}: {name} is {word!r}, expected a finite number")
    return value


def _integer(word: str, name: str, path: Path, line: int) -> int:
    value = _number(word, name, path, line)
    if value != int(value) or value < 0:
        raise InputError(f"{path}:{line}: {name} is {word!r}, expected a whole number from 0")
    return int(value)


# --- out ----------------------------------------------------------------------------------------------------


def write_frame(file: TextIO, frame: KittiFrame) -> None:
    """Write tracks in the tracking layout with score, as TrackEval and AB3DMOT's evaluator read them.

    Nothing is known of truncation and occlusion, which is -1, as KITTI's development kit has it.
    """
    for found in frame.objects:
        bbox = " ".join(f"{value:.2f}" for value in found.bbox_4)
        box = (found.height, found.width, found.length, *found.location_3, found.rotation_y, found.score)
        numbers = " ".join(f"{value:.6f}" for value in box)
        kind = TRACKING_TYPES.get(found.type, found.type)
        file.write(f"{frame.number} {found.track_id} {kind} -1 -1 {found.alpha:.6f} {bbox} {numbers}\n")


# --- boxes --------------------------------------------------------------------------------------------------


def boxes_on_ground(objects: Sequence[KittiObject], odom_from_camera: SE3 | None = None) -> Boxes:
    """Objects as boxes, x forward, y left, z up, velocities zero.

    Args:
        objects: Of one frame.
        odom_from_camera: Where the camera was, in optical axes; None: the boxes stay with the camera.
    """
    camera = np.array([(*o.location_3, o.height, o.rotation_y) for o in objects], np.float64).reshape(-1, 5)
    centers_N3 = (camera[:, :3] - 0.5 * camera[:, 3:4] * np.array([0.0, 1.0, 0.0])) @ BODY_FROM_OPTICAL.T
    boxes = Boxes(
        centers_N3=centers_N3.astype(np.float32),
        sizes_N3=np.array([(o.length, o.width, o.height) for o in objects], np.float32).reshape(-1, 3),
        yaws_N=wrap_angle(-camera[:, 4] - 0.5 * np.pi).astype(np.float32),
        velocities_N2=np.zeros((len(objects), 2), np.float32),
        class_ids_N=np.array([CLASSES.index(TYPES[o.type]) for o in objects], np.int64),
        scores_N=np.array([o.score for o in objects], np.float32),
        ids_N=np.array([o.track_id for o in objects], np.int64),
    )
    return boxes if odom_from_camera is None else _moved(boxes, odom_from_camera)


def objects_of_boxes(
    boxes: Boxes, like: Iterable[KittiObject], odom_from_camera: SE3 | None = None
) -> tuple[KittiObject, ...]:
    """The way back of `boxes_on_ground`.

    Args:
        boxes: N of them.
        like: N objects whose type and place in the picture they keep.
        odom_from_camera: As there.
    """
    if odom_from_camera is not None:
        boxes = _moved(boxes, odom_from_camera.inverse())
    sizes_N3 = boxes.sizes_N3.astype(np.float64)
    bottoms_N3 = boxes.centers_N3.astype(np.float64) - 0.5 * sizes_N3[:, 2:] * np.array([0.0, 0.0, 1.0])
    locations_N3 = bottoms_N3 @ BODY_FROM_OPTICAL
    rotations_N = wrap_angle(-boxes.yaws_N.astype(np.float64) - 0.5 * np.pi)
    return tuple(
        replace(
            source,
            length=float(sizes_N3[n, 0]),
            width=float(sizes_N3[n, 1]),
            height=float(sizes_N3[n, 2]),
            location_3=(float(locations_N3[n, 0]), float(locations_N3[n, 1]), float(locations_N3[n, 2])),
            rotation_y=float(rotations_N[n]),
            score=float(boxes.scores_N[n]),
            track_id=int(boxes.ids_N[n]),
        )
        for n, source in enumerate(like)
    )


def _moved(boxes: Boxes, a_from_b_optical: SE3) -> Boxes:
    """Boxes in another frame; they stay upright, and their heading is its part on the ground."""
    rotation = BODY_FROM_OPTICAL @ a_from_b_optical.rotation @ BODY_FROM_OPTICAL.T
    a_from_b = SE3(rotation, BODY_FROM_OPTICAL @ a_from_b_optical.translation)
    yaws = boxes.yaws_N.astype(np.float64)
    ahead_N3 = np.stack([np.cos(yaws), np.sin(yaws), np.zeros_like(yaws)], axis=1) @ rotation.T
    return replace(
        boxes,
        centers_N3=a_from_b.apply(boxes.centers_N3).astype(np.float32),
        yaws_N=np.arctan2(ahead_N3[:, 1], ahead_N3[:, 0]).astype(np.float32),
    )
