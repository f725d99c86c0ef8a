"""CVAT's XML, version 1.1: "CVAT for video" is written, it and "CVAT for images" are read.

The format is CVAT's (docs.cvat.ai, "XML annotation format"): in a task of tracks each shape names its frame,
in a task of images each image its shapes. Numbers have two decimals, in pixels and degrees, as CVAT's own.

What is read may come from anywhere: no document type is accepted, so that no entity can be declared; sizes,
depth and counts are bounded; every number has to be finite.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from e2e_perception.core.errors import InputError
from e2e_perception.data.review_clips import read_bounded

ANNOTATIONS = "annotations.xml"
MAX_BYTES = 256 << 20
MAX_DEPTH = 16
MAX_SHAPES = 2_000_000
MAX_TEXT = 4096
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CUBOID = tuple(
    f"{axis}{corner}{face}" for face in "12" for corner in ("tl", "bl", "tr", "br") for axis in "xy"
)


@dataclass(frozen=True)
class CvatAttribute:
    """What a label asks for besides its shape.

    Attributes:
        name: Of the attribute.
        default: Value of a shape that somebody adds.
        mutable: Whether it may differ from frame to frame.
        number: None for text; or least and greatest value and step.
    """

    name: str
    default: str
    mutable: bool = True
    number: tuple[str, str, str] | None = None

    @property
    def input_type(self) -> str:
        """As CVAT calls it."""
        return "text" if self.number is None else "number"

    @property
    def values(self) -> tuple[str, ...]:
        """As CVAT lists them."""
        return (self.default,) if self.number is None else self.number


@dataclass(frozen=True)
class CvatLabel:
    """A class of a task."""

    name: str
    attributes: tuple[CvatAttribute, ...]


@dataclass(frozen=True)
class CvatBox:
    """A rectangle in one frame.

    Attributes:
        frame: Number of the picture in its task; -1 where only its name is known.
        picture: Its file name; empty where only its number is known.
        points: xtl, ytl, xbr, ybr [px].
        rotation: Clockwise about the centre [degrees].
        attributes: By name.
        outside: Whether it is said not to be in this frame.
    """

    frame: int
    picture: str
    points: tuple[float, float, float, float]
    rotation: float
    attributes: dict[str, str]
    outside: bool = False


@dataclass(frozen=True)
class CvatCuboid:
    """A cuboid in one frame.

    Attributes:
        frame: Number of the picture.
        points: 8 of (u, v) [px]: top and bottom of the edges front left, front right, back right and back
            left as the picture shows them.
        attributes: By name.
    """

    frame: int
    points: tuple[tuple[float, float], ...]
    attributes: dict[str, str]


@dataclass(frozen=True)
class CvatTrack:
    """Shapes of one object, or in a task of images a single one."""

    label: str
    shapes: tuple[CvatBox | CvatCuboid, ...]


@dataclass(frozen=True)
class CvatDocument:
    """What a file says.

    Attributes:
        kind: `video`: tracks; `images`: single shapes by picture.
        tracks: In the order of the file.
        pictures: Names of the pictures that it lists; none in a video.
    """

    kind: Literal["video", "images"]
    tracks: tuple[CvatTrack, ...]
    pictures: frozenset[str] = frozenset()


# ----------------------------------------------------------------------------------- writing


def cvat_video(
    *, name: str, frames: int, size: tuple[int, int], labels: Sequence[CvatLabel], tracks: Iterable[CvatTrack]
) -> str:
    """A document "CVAT for video 1.1". Where a track pauses or ends, a shape says that it is outside.

    Args:
        name: Of the task.
        frames: Pictures of the task.
        size: Width and height of the pictures [px].
        labels: Classes.
        tracks: Shapes in order of frames; more tracks may follow.
    """
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <task>", f"      <name>{_text(name)}</name>", f"      <size>{frames}</size>"]
    lines += ["      <mode>interpolation</mode>", "      <overlap>0</overlap>", "      <labels>"]
    for label in labels:
        lines += _label_lines(label)
    lines += ["      </labels>", "      <original_size>", f"        <width>{size[0]}</width>"]
    lines += [f"        <height>{size[1]}</height>", "      </original_size>", "    </task>", "  </meta>"]
    for number, track in enumerate(tracks):
        lines.append(f'  <track id="{number}" label={_quoted(track.label)} source="manual">')
        for shape, following in zip(track.shapes, [*track.shapes[1:], None], strict=True):
            lines += _shape_lines(shape, shape.frame, outside=False)
            pauses = following is None or following.frame > shape.frame + 1
            if pauses and shape.frame + 1 < frames:
                lines += _shape_lines(shape, shape.frame + 1, outside=True)
        lines.append("  </track>")
    lines += ["</annotations>", ""]
    return "\n".join(lines)


def label_constructor(labels: Sequence[CvatLabel]) -> list[dict[str, object]]:
    """Classes as CVAT's form for a new task takes them ("Raw")."""
    return [
        {
            "name": label.name,
            "attributes": [
                {
                    "name": attribute.name,
                    "mutable": attribute.mutable,
                    "input_type": attribute.input_type,
                    "default_value": attribute.default,
                    "values": list(attribute.values),
                }
                for attribute in label.attributes
            ],
        }
        for label in labels
    ]


def _label_lines(label: CvatLabel) -> list[str]:
    lines = ["        <label>", f"          <name>{_text(label.name)}</name>", "          <attributes>"]
    for attribute in label.attributes:
        lines += [
            "            <attribute>",
            f"              <name>{_text(attribute.name)}</name>",
            f"              <mutable>{attribute.mutable}</mutable>",
            f"              <input_type>{attribute.input_type}</input_type>",
            f"              <default_value>{_text(attribute.default)}</default_value>",
            f"              <values>{_text(chr(10).join(attribute.values))}</values>",
            "            </attribute>",
        ]
    return [*lines, "          </attributes>", "        </label>"]


def _shape_lines(shape: CvatBox | CvatCuboid, frame: int, *, outside: bool) -> list[str]:
    head = f'frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0"'
    if isinstance(shape, CvatBox):
        tag = "box"
        numbers = dict(zip(("xtl", "ytl", "xbr", "ybr"), shape.points, strict=True))
        if shape.rotation:
            numbers["rotation"] = shape.rotation
    else:
        tag = "cuboid"
        numbers = dict(zip(_CUBOID, (value for point in shape.points for value in point), strict=True))
    where = " ".join(f'{key}="{value:.2f}"' for key, value in numbers.items())
    lines = [f'    <{tag} {head} {where} z_order="0">']
    for key, value in shape.attributes.items():
        lines.append(f"      <attribute name={_quoted(key)}>{_text(value)}</attribute>")
    return [*lines, f"    </{tag}>"]


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value))


def _quoted(value: str) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", value))


# ----------------------------------------------------------------------------------- reading


def read_cvat(path: Path) -> CvatDocument:
    """Read what CVAT gave back: an XML file, or the archive with `annotations.xml` in it.

    Raises:
        InputError: If it is damaged, too large, or says what boxes cannot be.
    """
    if path.suffix.lower() == ".zip":
        content = _from_archive(path)
    else:
        content = read_bounded(path, MAX_BYTES)
    return parse_cvat(content, str(path))


def parse_cvat(content: bytes, name: str) -> CvatDocument:
    """Read a document.

    Args:
        content: Of the file.
        name: Of the file, for messages.
    Raises:
        InputError: As `read_cvat`.
    """
    reader = _Reader(name)
    try:
        reader.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise InputError(f"{name} is no XML: {error}; export it from CVAT again") from error
    if not reader.root_seen:
        raise InputError(f"{name} is empty; export it from CVAT again")
    if reader.tracks_seen and reader.pictures:
        raise InputError(f"{name} has both tracks and images; export one task as CVAT for video 1.1")
    kind: Literal["video", "images"] = "images" if reader.pictures else "video"
    return CvatDocument(kind, tuple(reader.tracks), frozenset(reader.pictures))


def _from_archive(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(ANNOTATIONS) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is no archive of CVAT with {ANNOTATIONS} in it: {error}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: {ANNOTATIONS} has more than {MAX_BYTES >> 20} MiB; export fewer frames")
    return content


@dataclass
class _Open:
    """A shape whose end has not been read."""

    tag: str
    given: dict[str, str]
    attributes: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Collects boxes; shapes of other kinds are refused, what is not a shape is passed over."""

    SHAPES = frozenset({"box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"})

    def __init__(self, name: str) -> None:
        self.name = name
        self.tracks: list[CvatTrack] = []
        self.pictures: set[str] = set()
        self.root_seen = self.tracks_seen = False
        self._path: list[str] = []
        self._label = ""
        self._boxes: list[CvatBox] = []
        self._picture: tuple[int, str] | None = None
        self._shape: _Open | None = None
        self._attribute: str | None = None
        self._text: list[str] = []
        self._count = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.name}, line {self.parser.CurrentLineNumber}: {what}")

    def _refuse_doctype(self, *_: object) -> None:
        raise self._error("a document type is declared, which no file of CVAT has; it is not read")

    def _start(self, tag: str, given: dict[str, str]) -> None:
        if not self._path and tag != "annotations":
            raise self._error(
                f"the document is <{tag}>, expected <annotations>; export as CVAT for video 1.1"
            )
        self.root_seen = True
        if len(self._path) >= MAX_DEPTH:
            raise self._error(f"elements lie more than {MAX_DEPTH} deep, which no file of CVAT does")
        parent = self._path[-1] if self._path else ""
        self._path.append(tag)
        if tag == "track" and parent == "annotations":
            self.tracks_seen = True
            self._label, self._boxes = self._get(given, "label"), []
        elif tag == "image" and parent == "annotations":
            name = self._get(given, "name").replace("\\", "/").rpartition("/")[2]
            if name in self.pictures:
                raise self._error(f"picture {name!r} is there twice")
            self.pictures.add(name)
            self._picture = (-1, name)
        elif tag in self.SHAPES and parent in ("track", "image"):
            if tag != "box":
                raise self._error(f"a {tag}, expected boxes alone; draw rectangles in the picture from above")
            self._count += 1
            if self._count > MAX_SHAPES:
                raise self._error(f"more than {MAX_SHAPES} boxes; export fewer frames")
            self._shape = _Open(tag, given)
        elif tag == "attribute" and parent == "box":
            self._attribute, self._text = self._get(given, "name"), []

    def _characters(self, text: str) -> None:
        if self._attribute is not None:
            self._text.append(text)
            if sum(map(len, self._text)) > MAX_TEXT:
                raise self._error(f"attribute {self._attribute!r} is longer than {MAX_TEXT} characters")

    def _end(self, tag: str) -> None:
        self._path.pop()
        if tag == "attribute" and self._attribute is not None and self._shape is not None:
            self._shape.attributes[self._attribute] = "".join(self._text).strip()
            self._attribute = None
        elif tag == "box" and self._shape is not None:
            self._take(self._shape)
            self._shape = None
        elif tag == "track" and len(self._path) == 1:
            self.tracks.append(CvatTrack(self._label, tuple(self._boxes)))
        elif tag == "image" and len(self._path) == 1:
            self._picture = None

    def _take(self, shape: _Open) -> None:
        given = shape.given
        left, top, right, bottom = (self._number(given, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        points = (left, top, right, bottom)
        rotation = self._number(given, "rotation") if "rotation" in given else 0.0
        outside = given.get("outside") == "1"
        if self._picture is not None:
            number, picture = self._picture
            box = CvatBox(number, picture, points, rotation, shape.attributes, outside)
            self.tracks.append(CvatTrack(self._get(given, "label"), (box,)))
            return
        frame = self._get(given, "frame")
        if not re.fullmatch(r"\d{1,9}", frame):
            raise self._error(f"frame {frame!r}, expected a whole number")
        if any(box.frame == int(frame) for box in self._boxes[-1:]):
            raise self._error(f"a track has two boxes in frame {frame}")
        box = CvatBox(int(frame), "", points, rotation, shape.attributes, outside)
        self._boxes.append(box)

    def _get(self, given: dict[str, str], key: str) -> str:
        if key not in given:
            raise self._error(f"<{self._path[-1] if self._path else ''}> has no {key}")
        if len(given[key]) > MAX_TEXT:
            raise self._error(f"{key} is longer than {MAX_TEXT} characters")
        return given[key]

    def _number(self, given: dict[str, str], key: str) -> float:
        text = self._get(given, key)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < 1e6:
            raise self._error(f"{key} is {text[:40]!r}, expected a number of pixels or degrees")
        return value
