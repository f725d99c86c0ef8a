"""Review with other tools: one JSON document whose labels may be changed, and the pictures that they are on.

    DIR/
      labels.json            the document, `ReviewDocument`
      pictures/000000-birdseye.png, 000000-front.png …

A label that is left as it is is accepted, one that is taken away or has the verdict `rejected` is rejected,
one with other numbers or another class is replaced. A label with an identity that its frame has not is added;
null is a new object of that frame alone. Frames and clips that are taken away were not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.core.named_files import offending_keys
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.review_clips import (
    BOX_NUMBERS,
    ClipName,
    LabelBox,
    ReviewClip,
    ReviewDataset,
    read_bounded,
)
from e2e_perception.data.review_cvat import BIRDSEYE, check_digests, check_empty
from e2e_perception.data.review_pictures import BirdsEye, camera_picture, png
from e2e_perception.data.review_verdicts import NewIdentities, Returned, Tally, rows_of

DOCUMENT = "labels.json"
PICTURES = "pictures"
MAX_BYTES = 512 << 20


class LabelDocument(BaseModel):
    """A box in a frame."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    identity: int | None = Field(ge=0, lt=2**63, description="Of the object; null: somebody new.")
    class_name: str = Field(alias="class", description="Of `CLASSES`.")
    x: float = Field(description="Centre, base frame [m].")
    y: float
    z: float
    length: float = Field(gt=0.0, description="[m]")
    width: float = Field(gt=0.0)
    height: float = Field(gt=0.0)
    yaw: float = Field(ge=-3.1416, le=3.1416, description="Counter-clockwise [rad].")
    vx: float = Field(description="Over ground, base axes [m/s].")
    vy: float
    verdict: Literal["label", "rejected"] = "label"
    source: str = Field("review", description="What follows is read by people alone.")
    tool: str | None = None
    bundle_digest: str | None = None
    confidence: float = 1.0
    reviewer: str | None = None


class FrameDocument(BaseModel):
    """A frame of a clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: int = Field(ge=0)
    stamp_ns: int
    pictures: dict[str, str] = Field(description="File by view: `birdseye`, or a camera.")
    labels: tuple[LabelDocument, ...]


class ClipDocument(BaseModel):
    """A clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    clip_id: str
    scenario: str
    frames: tuple[FrameDocument, ...]


class ReviewDocument(BaseModel):
    """What is looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["e2e-perception review"] = "e2e-perception review"
    version: Literal[1] = 1
    classes: tuple[str, ...] = CLASSES
    pixel: float = Field(gt=0.0, description="Side of a pixel of the pictures from above [m].")
    shards: dict[str, str] = Field(description="Digest by name.")
    clips: tuple[ClipDocument, ...]


def export_json(
    dataset: ReviewDataset,
    names: Sequence[ClipName],
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write a document and its pictures.

    Args:
        dataset: Opened.
        names: Clips, in the order in which they are to be looked at.
        out: Directory that is new or empty.
        progress: Told how many clips are done.
    Returns:
        How many clips, frames and boxes.
    Raises:
        InputError: If there is something in `out`, the clips differ in size, or a shard is damaged.
    """
    check_empty(out)
    pixels = {BirdsEye.of(dataset.network(name.shard).grid).pixel for name in names}
    if len(pixels) != 1:
        raise InputError(
            f"the clips have {len(pixels)} different resolutions, expected one; export them alone"
        )
    (out / PICTURES).mkdir(parents=True)
    clips: list[ClipDocument] = []
    number = 0
    for done, name in enumerate(names, 1):
        review = dataset.read(name)
        frames = []
        for t in range(len(review.clip)):
            pictures = _write_pictures(review, t, number, out)
            frames.append(
                FrameDocument(
                    frame=t,
                    stamp_ns=int(review.clip.stamps_ns_T[t]),
                    pictures=pictures,
                    labels=tuple(
                        LabelDocument(
                            identity=label.identity,
                            **{"class": label.class_name},
                            **vars(label.box),
                            source=label.source,
                            tool=label.tool,
                            bundle_digest=label.bundle_digest,
                            confidence=label.confidence,
                            reviewer=label.reviewer,
                        )
                        for label in review.at(t)
                    ),
                )
            )
            number += 1
        clips.append(
            ClipDocument(
                shard=name.shard, clip_id=name.clip_id, scenario=review.clip.scenario, frames=tuple(frames)
            )
        )
        if progress is not None:
            progress(done)
    document = ReviewDocument(
        pixel=pixels.pop(), shards={n.shard: dataset.digests[n.shard] for n in names}, clips=tuple(clips)
    )
    text = document.model_dump_json(indent=1, by_alias=True)
    (out / DOCUMENT).write_text(text + "\n", encoding="utf-8")
    boxes = sum(len(frame.labels) for clip in clips for frame in clip.frames)
    return {"clips": len(clips), "frames": number, "boxes": boxes, "outside": 0}


def import_json(
    source: Path, dataset: ReviewDataset, reviewer: str, tally: Tally
) -> tuple[list[LayerRow], dict[str, str]]:
    """Read a document that came back.

    Args:
        source: Its file.
        dataset: That was exported.
        reviewer: Who decided.
        tally: Added to.
    Returns:
        Rows of a layer, and the digests of the shards that they are for.
    Raises:
        InputError: If the file is damaged or says what cannot be, or the dataset is another one by now.
    """
    try:
        document = ReviewDocument.model_validate_json(read_bounded(source, MAX_BYTES))
    except ValidationError as error:
        found = "; ".join(offending_keys(error, "document")[:3])
        raise InputError(f"{source} is no document of `review export`: {found}") from error
    check_digests(document.shards, dataset, str(source))
    known = {str(name): name for name in dataset.names()}
    rows: list[LayerRow] = []
    new = NewIdentities()
    seen: set[str] = set()
    for clip in document.clips:
        key = f"{clip.shard}/{clip.clip_id}"
        if key not in known or clip.shard not in document.shards or key in seen:
            raise InputError(
                f"{source}: clip {key} is there twice, or not in {dataset.dataset.path} as it was exported"
            )
        seen.add(key)
        review = dataset.read(known[key])
        rows += rows_of(
            review,
            _returned(review, clip, str(source)),
            shown={
                (frame.frame, label.identity) for frame in clip.frames for label in review.at(frame.frame)
            },
            reviewer=reviewer,
            new=new,
            identities=dataset.identities(clip.shard),
            tally=tally,
        )
    return rows, {clip.shard: document.shards[clip.shard] for clip in document.clips}


def _write_pictures(review: ReviewClip, t: int, number: int, out: Path) -> dict[str, str]:
    drawn = {BIRDSEYE: BirdsEye.of(review.network.grid).draw(review, t)}
    for camera in review.network.cameras:
        picture = camera_picture(review, t, camera)
        if picture is not None:
            drawn[camera] = picture
    named = {view: f"{PICTURES}/{number:06d}-{view}.png" for view in drawn}
    for view, picture in drawn.items():
        (out / named[view]).write_bytes(png(picture))
    return named


def _returned(review: ReviewClip, clip: ClipDocument, source: str) -> list[Returned]:
    labels = {(label.frame, label.identity): label for label in review.labels}
    found: list[Returned] = []
    frames: set[int] = set()
    for frame in clip.frames:
        where = f"{source}, frame {frame.frame} of clip {clip.shard}/{clip.clip_id}"
        if frame.frame >= len(review.clip) or int(review.clip.stamps_ns_T[frame.frame]) != frame.stamp_ns:
            raise InputError(f"{where}: there is no frame of that number at {frame.stamp_ns} ns")
        if frame.frame in frames:
            raise InputError(f"{where} is there twice")
        frames.add(frame.frame)
        for number, label in enumerate(frame.labels):
            if label.class_name not in CLASSES:
                raise InputError(
                    f"{where}: class {label.class_name[:40]!r}, expected one of {', '.join(CLASSES)}"
                )
            if label.verdict == "rejected":
                continue
            key: Hashable = ("new", frame.frame, number) if label.identity is None else label.identity
            before = labels.get((frame.frame, label.identity)) if label.identity is not None else None
            box = LabelBox.of({name: getattr(label, name) for name in BOX_NUMBERS})
            same = before is not None and box == before.box
            found.append(
                Returned(frame.frame, key, label.class_name, None if same else box, has_velocity=True)
            )
    return found
