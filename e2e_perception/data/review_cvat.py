"""Review with CVAT: a task of pictures from above, whose boxes come back, and one per camera to look at.

    DIR/
      manifest.json          which frame each picture shows, and which labels it had
      birdseye/              a task "CVAT for video 1.1": rotated rectangles, 1 pixel is `pixel` metres
        labels.json          the classes, for CVAT's form for a new task
        annotations.xml
        images/frame_000000.png …
      front/ …               the same with cuboids, for each camera; what is changed there is not read

A shape has attributes: `identity` (empty: somebody new), `z` and `height` [m], which the picture does not
show, where the label is from, and `exported`, the rectangle as it was written. A rectangle that still is
where `exported` says is the label itself, to the last digit; another is measured in the picture.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.core.named_files import offending_keys
from e2e_perception.data.cvat_xml import (
    ANNOTATIONS,
    CvatAttribute,
    CvatBox,
    CvatCuboid,
    CvatDocument,
    CvatLabel,
    CvatTrack,
    cvat_video,
    label_constructor,
    read_cvat,
)
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.review_clips import (
    ClipName,
    LabelBox,
    ReviewClip,
    ReviewDataset,
    ReviewLabel,
    read_bounded,
)
from e2e_perception.data.review_pictures import (
    BirdsEye,
    Rectangle,
    camera_picture,
    png,
    projected_corners_82,
)
from e2e_perception.data.review_verdicts import NewIdentities, Returned, Tally, rows_of

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 256 << 20
BIRDSEYE = "birdseye"
IMAGES = "images"
# CVAT rounds to hundredths of a pixel and of a degree; what differs by less was not moved.
UNMOVED = 0.0201
# What a reviewer who adds an object starts from; the picture from above does not show it.
HEIGHTS = {"car": 1.6, "truck": 3.0, "pedestrian": 1.7, "cyclist": 1.7, "obstacle": 0.8}


class Shown(BaseModel):
    """A picture from above.

    `labels` are the identities of the labels on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    picture: str
    shard: str
    clip_id: str
    frame: int = Field(ge=0)
    stamp_ns: int
    labels: tuple[int, ...]


class Manifest(BaseModel):
    """What was exported: read again when it comes back."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["e2e-perception review"] = "e2e-perception review"
    version: Literal[1] = 1
    pixel: float = Field(gt=0.0, description="Side of a pixel of the pictures from above [m].")
    shards: dict[str, str] = Field(description="Digest by name.")
    frames: tuple[Shown, ...] = Field(description="By number of the picture.")


@dataclass
class _Task:
    """Pictures and shapes of one view."""

    directory: Path
    size: tuple[int, int] = (0, 0)
    frames: int = 0
    tracks: dict[Hashable, tuple[str, list[CvatBox | CvatCuboid]]] = field(default_factory=dict)

    def add_picture(self, picture_HW3: NDArray[np.uint8]) -> str:
        """Write the next picture; its file name."""
        name = f"frame_{self.frames:06d}.png"
        (self.directory / IMAGES).mkdir(parents=True, exist_ok=True)
        (self.directory / IMAGES / name).write_bytes(png(picture_HW3))
        self.size = picture_HW3.shape[1], picture_HW3.shape[0]
        self.frames += 1
        return name

    def finish(self) -> None:
        """Write shapes and classes."""
        labels = _labels()
        tracks = [CvatTrack(label, tuple(shapes)) for label, shapes in self.tracks.values()]
        text = cvat_video(
            name=self.directory.name, frames=self.frames, size=self.size, labels=labels, tracks=tracks
        )
        (self.directory / ANNOTATIONS).write_text(text, encoding="utf-8")
        raw = json.dumps(label_constructor(labels), indent=1) + "\n"
        (self.directory / "labels.json").write_text(raw, encoding="utf-8")


def export_cvat(
    dataset: ReviewDataset,
    names: Sequence[ClipName],
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write tasks for CVAT.

    Args:
        dataset: Opened.
        names: Clips, in the order in which they are to be looked at.
        out: Directory that is new or empty.
        progress: Told how many clips are done.
    Returns:
        How many clips, frames and boxes, and how many boxes lie outside of the picture from above.
    Raises:
        InputError: If there is something in `out`, the clips differ in size, or a shard is damaged.
    """
    check_empty(out)
    grids = {dataset.network(name.shard).grid for name in names}
    if len(grids) != 1:
        raise InputError(f"the clips have {len(grids)} different grids, expected one; export them one by one")
    view = BirdsEye.of(grids.pop())
    above = _Task(out / BIRDSEYE)
    cameras: dict[str, _Task] = {}
    frames: list[Shown] = []
    outside = boxes = 0
    for done, name in enumerate(names, 1):
        review = dataset.read(name)
        for t in range(len(review.clip)):
            labels = review.at(t)
            seen = [label for label in labels if view.shows(label.box)]
            boxes, outside = boxes + len(seen), outside + len(labels) - len(seen)
            number = above.frames
            frames.append(
                Shown(
                    picture=above.add_picture(view.draw(review, t)),
                    shard=name.shard,
                    clip_id=name.clip_id,
                    frame=t,
                    stamp_ns=int(review.clip.stamps_ns_T[t]),
                    labels=tuple(label.identity for label in seen),
                )
            )
            for label in seen:
                shape = _exported(label, number, view)
                _add(above, name, label, shape)
            for camera in review.network.cameras:
                _add_camera(cameras, out, name, review, t, camera)
        if progress is not None:
            progress(done)
    for task in (above, *cameras.values()):
        task.finish()
    shards = {name.shard: dataset.digests[name.shard] for name in names}
    manifest = Manifest(pixel=view.pixel, shards=shards, frames=tuple(frames))
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return {"clips": len(names), "frames": len(frames), "boxes": boxes, "outside": outside}


def import_cvat(
    source: Path,
    manifest_file: Path,
    dataset: ReviewDataset,
    reviewer: str,
    tally: Tally,
) -> tuple[list[LayerRow], dict[str, str]]:
    """Read what came back from CVAT.

    Args:
        source: XML, or CVAT's archive with it.
        manifest_file: Written beside what was exported.
        dataset: That was exported.
        reviewer: Who decided.
        tally: Added to.
    Returns:
        Rows of a layer, and the digests of the shards that they are for.
    Raises:
        InputError: If a file is damaged or says what cannot be, or the dataset is another one by now.
    """
    manifest = _read_manifest(manifest_file)
    check_digests(manifest.shards, dataset, str(manifest_file))
    document = read_cvat(source)
    shown, by_frame = _boxes_by_frame(document, manifest, str(source))
    known = {str(name): name for name in dataset.names()}
    frames: dict[str, dict[int, int]] = defaultdict(dict)
    for number in shown:
        item = manifest.frames[number]
        frames[f"{item.shard}/{item.clip_id}"][item.frame] = number
    rows: list[LayerRow] = []
    new = NewIdentities()
    for key, numbers in frames.items():
        if key not in known:
            raise InputError(f"{manifest_file}: clip {key} is not in {dataset.dataset.path}")
        review = dataset.read(known[key])
        labels = {(label.frame, label.identity): label for label in review.labels}
        for frame, number in numbers.items():
            item = manifest.frames[number]
            if frame >= len(review.clip) or any((frame, one) not in labels for one in item.labels):
                raise InputError(f"{manifest_file}: frame {frame} of clip {key} is not as it was exported")
        view = BirdsEye.of(review.network.grid)
        if abs(view.pixel - manifest.pixel) > 1e-9:
            raise InputError(
                f"{manifest_file} has pixels of {manifest.pixel} m, clip {key} of {view.pixel} m; "
                "export it again"
            )
        identities = dataset.identities(review.shard)
        returned = list(_returned(review, numbers, by_frame, view, identities, str(source)))
        rows += rows_of(
            review,
            returned,
            shown={(frame, one) for frame, n in numbers.items() for one in manifest.frames[n].labels},
            reviewer=reviewer,
            new=new,
            identities=identities,
            tally=tally,
        )
    return rows, {name: manifest.shards[name] for name in sorted({key.split("/")[0] for key in frames})}


# ----------------------------------------------------------------------------------- writing


def check_empty(out: Path) -> None:
    """Refuse to write among other things.

    Raises:
        InputError: If something is in `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new directory")


def check_digests(shards: Mapping[str, str], dataset: ReviewDataset, what: str) -> None:
    """Compare digests of shards with those that they have now.

    Raises:
        InputError: If one is missing or another by now.
    """
    for name, digest in shards.items():
        now = dataset.digests.get(name)
        if now is None:
            raise InputError(f"{what} is for shard {name}, which {dataset.dataset.path} has not")
        if now != digest:
            raise InputError(
                f"{what} was made for shard {name} with digest {digest[:12]}…, {dataset.dataset.path} has "
                f"{now[:12]}…; export it again"
            )


def _labels() -> list[CvatLabel]:
    return [CvatLabel(name, _attributes(HEIGHTS[name])) for name in CLASSES]


def _attributes(height: float) -> tuple[CvatAttribute, ...]:
    metres = ("-50", "50", "0.001")
    return (
        CvatAttribute("identity", "", mutable=False),
        CvatAttribute("z", f"{height / 2:.3f}", number=metres),
        CvatAttribute("height", f"{height:.3f}", number=("0.001", "50", "0.001")),
        CvatAttribute("source", "review"),
        CvatAttribute("confidence", "1.000", number=("0", "1", "0.001")),
        CvatAttribute("exported", ""),
    )


def _values(label: ReviewLabel) -> dict[str, str]:
    return {
        "identity": str(label.identity),
        "z": f"{label.box.z:.3f}",
        "height": f"{label.box.height:.3f}",
        "source": label.source,
        "confidence": f"{label.confidence:.3f}",
    }


def _exported(label: ReviewLabel, number: int, view: BirdsEye) -> CvatBox:
    r = view.rectangle(label.box)
    attributes = {**_values(label), "exported": _written(number, r)}
    return CvatBox(number, "", (r.left, r.top, r.right, r.bottom), round(r.rotation, 2) % 360.0, attributes)


def _written(number: int, r: Rectangle) -> str:
    return (
        f"{number} {r.left:.2f} {r.top:.2f} {r.right:.2f} {r.bottom:.2f} {round(r.rotation, 2) % 360.0:.2f}"
    )


def _add(task: _Task, name: ClipName, label: ReviewLabel, shape: CvatBox | CvatCuboid) -> None:
    # A class is the track's, so that an object whose class changes is several tracks.
    key = (str(name), label.identity, label.class_name)
    task.tracks.setdefault(key, (label.class_name, []))[1].append(shape)


def _add_camera(
    tasks: dict[str, _Task], out: Path, name: ClipName, review: ReviewClip, t: int, camera: str
) -> None:
    picture = camera_picture(review, t, camera)
    if picture is None:
        return
    task = tasks.setdefault(camera, _Task(out / camera))
    number = task.frames
    task.add_picture(picture)
    for label in review.at(t):
        corners = projected_corners_82(review, t, camera, label.box)
        if corners is not None:
            shape = CvatCuboid(
                number, cuboid_points(corners, _depths(review, t, camera, label)), _values(label)
            )
            _add(task, name, label, shape)


def _depths(review: ReviewClip, t: int, camera: str, label: ReviewLabel) -> NDArray[np.float64]:
    slot = review.network.cameras.index(camera)
    row = review.clip.inputs["image_from_base"][t, slot, 2].astype(np.float64)
    return np.asarray(label.box.corners_83 @ row[:3] + row[3])


def cuboid_points(
    corners_82: NDArray[np.float64], depths_8: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Corners of a box in CVAT's order: top and bottom of front left, front right, back right, back left.

    Args:
        corners_82: Order of `LabelBox.corners_83` [px].
        depths_8: Of the same [m]; the nearest upright face is the front.
    """
    near = min(range(4), key=lambda i: depths_8[i] + depths_8[(i + 1) % 4])
    front = [near, (near + 1) % 4]
    back = [(near + 2) % 4, (near + 3) % 4]  # goes on around the box, so that back[0] is beside front[1]
    if corners_82[front[0], 0] > corners_82[front[1], 0]:
        front, back = front[::-1], back[::-1]
    order = [index for upright in (*front, *back) for index in (4 + upright, upright)]
    return tuple((float(u), float(v)) for u, v in corners_82[order])


# ----------------------------------------------------------------------------------- reading


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(read_bounded(path, MAX_MANIFEST_BYTES))
    except ValidationError as error:
        raise InputError(
            f"{path} is no manifest of `review export`: {'; '.join(offending_keys(error, 'manifest')[:3])}"
        ) from error


def _boxes_by_frame(
    document: CvatDocument, manifest: Manifest, source: str
) -> tuple[list[int], dict[int, list[tuple[int, str, CvatBox]]]]:
    """Numbers of the frames that were looked at, and per number (track, class, box)."""
    numbers = {item.picture: number for number, item in enumerate(manifest.frames)}
    if document.kind == "video":
        shown = list(range(len(manifest.frames)))
    else:
        unknown = sorted(document.pictures - numbers.keys())
        if unknown:
            raise InputError(f"{source}: picture {unknown[0]!r} was not exported; is it another task's?")
        shown = sorted(numbers[name] for name in document.pictures)
    found: dict[int, list[tuple[int, str, CvatBox]]] = defaultdict(list)
    for number, track in enumerate(document.tracks):
        if track.label not in CLASSES:
            raise InputError(f"{source}: class {track.label[:40]!r}, expected one of {', '.join(CLASSES)}")
        for box in track.shapes:
            assert isinstance(box, CvatBox)
            frame = numbers[box.picture] if box.picture else box.frame
            if frame >= len(manifest.frames):
                raise InputError(
                    f"{source}: a box is in frame {frame}, {len(manifest.frames)} were exported; "
                    "is it another task's?"
                )
            if not box.outside:
                found[frame].append((number, track.label, box))
    return shown, found


def _returned(
    review: ReviewClip,
    numbers: Mapping[int, int],
    by_frame: Mapping[int, list[tuple[int, str, CvatBox]]],
    view: BirdsEye,
    identities: Collection[int],
    source: str,
) -> Iterator[Returned]:
    """Boxes of a clip, each with whose it is."""
    labels = {(label.frame, label.identity): label for label in review.labels}
    recognised = _recognised(review, numbers, by_frame, view)
    for frame, number in sorted(numbers.items()):
        taken: set[Hashable] = set()
        # Of a box and its copy, which claim the same identity, the one that was not moved has it.
        for track, class_name, box in sorted(
            by_frame.get(number, []), key=lambda b: not _unmoved(b[2], number)
        ):
            where = f"{source}, {class_name} in picture {number}"
            claimed = _identity(box.attributes.get("identity", ""), where)
            key: Hashable = recognised.get(track, ("track", track)) if claimed is None else claimed
            if claimed is not None and claimed not in identities:
                key = ("named", claimed)
            if key in taken:
                key = ("track", track)
            taken.add(key)
            label = labels.get((frame, key)) if isinstance(key, int) else None
            if label is not None and claimed is None:
                box = replace(box, attributes={"exported": _written(number, view.rectangle(label.box))})
            yield Returned(frame, key, class_name, _box(box, label, number, view, where))


def _recognised(
    review: ReviewClip,
    numbers: Mapping[int, int],
    by_frame: Mapping[int, list[tuple[int, str, CvatBox]]],
    view: BirdsEye,
) -> dict[int, int]:
    """Identities of tracks that lost their attributes, as they do when their class is changed, by track.

    Such a track is the object on which one of its boxes lies exactly, unless another track says that it is.
    """
    found: dict[int, int] = {}
    claimed: set[str] = set()
    for number in numbers.values():
        claimed |= {box.attributes.get("identity", "") for _, _, box in by_frame.get(number, [])}
    for frame, number in sorted(numbers.items()):
        free = [label for label in review.at(frame) if str(label.identity) not in claimed]
        for track, _, box in by_frame.get(number, []):
            if box.attributes.get("identity") or track in found:
                continue
            for label in free:
                there = {"exported": _written(number, view.rectangle(label.box))}
                if label.identity not in found.values() and _unmoved(replace(box, attributes=there), number):
                    found[track] = label.identity
                    break
    return found


def _identity(text: str, where: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}", text):
        raise InputError(
            f"{where}: identity {text[:40]!r}, expected a whole number, or nothing for a new object"
        )
    return int(text)


def _unmoved(box: CvatBox, number: int) -> bool:
    words = box.attributes.get("exported", "").split()
    if len(words) != 6 or words[0] != str(number):
        return False
    try:
        *points, rotation = (float(word) for word in words[1:])
    except ValueError:
        return False
    turned = (box.rotation - rotation + 180.0) % 360.0 - 180.0
    return abs(turned) < UNMOVED and all(
        abs(a - b) < UNMOVED for a, b in zip(box.points, points, strict=True)
    )


def _box(box: CvatBox, label: ReviewLabel | None, number: int, view: BirdsEye, where: str) -> LabelBox | None:
    """Where a returned box is; None: where the label was."""
    z, height = (_metres(box.attributes, name, where) for name in ("z", "height"))
    if height is not None and height <= 0.0:
        raise InputError(f"{where}: height {height} m, expected more than 0")
    if label is None:
        if z is None or height is None:
            raise InputError(
                f"{where}: a box was added without z and height; its label needs these attributes"
            )
        return LabelBox.of({**_footprint(box, view, where), "z": z, "height": height, "vx": 0.0, "vy": 0.0})
    upright: dict[str, float] = {}
    # What was written has three decimals; the label has more.
    if z is not None and abs(z - label.box.z) > 6e-4:
        upright["z"] = z
    if height is not None and abs(height - label.box.height) > 6e-4:
        upright["height"] = height
    if _unmoved(box, number):
        return label.box.moved(**upright) if upright else None
    return label.box.moved(**_footprint(box, view, where), **upright)


def _footprint(box: CvatBox, view: BirdsEye, where: str) -> dict[str, float]:
    try:
        return view.footprint(Rectangle(*box.points, box.rotation))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _metres(attributes: Mapping[str, str], name: str, where: str) -> float | None:
    text = attributes.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= 50.0:
        raise InputError(f"{where}: {name} {text[:40]!r}, expected metres, at most 50")
    return value
