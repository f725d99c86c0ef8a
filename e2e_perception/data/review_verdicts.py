"""What a reviewer decided, as rows of a layer.

A label that came back as it was is accepted, one that is missing is rejected, one that differs is replaced,
and what was not there before is added. Whoever looked at a clip answers for every label of the frames shown.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from e2e_perception import __version__
from e2e_perception.core.errors import InputError
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.review_clips import LabelBox, ReviewClip, ReviewLabel

SOURCE = "review"
TOOL = f"e2e_perception {__version__}"
LABEL, REJECTED = "label", "rejected"


@dataclass(frozen=True)
class Returned:
    """A box that came back.

    Attributes:
        frame: In the clip.
        object: The identity of a label of the shard, or for an addition whatever its boxes have in common.
        class_name: Of `CLASSES`.
        box: None: as it was.
        has_velocity: Whether the velocity of `box` is known; else that of the label is kept, or, for an
            addition, follows from where the object was.
    """

    frame: int
    object: Hashable
    class_name: str
    box: LabelBox | None
    has_velocity: bool = False


@dataclass
class Tally:
    """Boxes by what became of them.

    Attributes:
        accepted, edited, rejected, added: How many.
        left_out: Added in one frame alone, from which no velocity follows.
    """

    accepted: int = 0
    edited: int = 0
    rejected: int = 0
    added: int = 0
    left_out: int = 0


@dataclass
class NewIdentities:
    """Numbers for objects that somebody added, beyond all that a shard has."""

    next_by_shard: dict[str, int] = field(default_factory=dict)

    def take(self, shard: str, identities: Collection[int]) -> int:
        """A number that no other object of the shard has.

        Args:
            shard: Name.
            identities: Of its labels.
        """
        number = self.next_by_shard.get(shard, max(identities, default=-1) + 1)
        self.next_by_shard[shard] = number + 1
        return number


def layer_clip_id(shard: str, clip_id: str) -> str:
    """How layers name a clip: clips of several shards share their identifiers."""
    return f"{shard}/{clip_id}"


def row_of(review: ReviewClip, label: ReviewLabel, *, reviewer: str, verdict: str) -> LayerRow:
    """A verdict on a label that stays as it is.

    The digest of the bundle that proposed it stays with it, and so does a confidence of 0: of something that
    no sensor saw it was accepted that it is there, not that it can be seen.
    """
    confidence = 1.0 if label.confidence > 0.0 else 0.0
    return _row(
        review, label.frame, label.identity, label.class_name, label.box,
        bundle_digest=label.bundle_digest, confidence=confidence, reviewer=reviewer, verdict=verdict,
    )  # fmt: skip


def rows_of(
    review: ReviewClip,
    returned: Iterable[Returned],
    *,
    shown: Collection[tuple[int, int]],
    reviewer: str,
    new: NewIdentities,
    identities: Collection[int],
    tally: Tally,
) -> list[LayerRow]:
    """Verdicts on a clip.

    Args:
        review: The clip as it was shown.
        returned: What came back of it.
        shown: Frame and identity of each label that was shown.
        reviewer: Who decided.
        new: Numbers for additions.
        identities: Of all labels of the shard.
        tally: Added to.
    Returns:
        Rows in order of frames, then identities.
    Raises:
        InputError: If something came back twice in a frame.
    """
    labels = {(label.frame, label.identity): label for label in review.labels}
    rows: list[LayerRow] = []
    back: set[tuple[int, Hashable]] = set()
    additions: dict[Hashable, list[Returned]] = {}
    for item in returned:
        key = (item.frame, item.object)
        if key in back:
            raise InputError(
                f"clip {review.shard}/{review.clip_id}, frame {item.frame}: "
                f"object {item.object} is there twice"
            )
        back.add(key)
        label = labels.get(key)  # type: ignore[arg-type]
        if label is None:
            additions.setdefault(item.object, []).append(item)
        elif item.box is None and item.class_name == label.class_name:
            tally.accepted += 1
            rows.append(row_of(review, label, reviewer=reviewer, verdict=LABEL))
        else:
            tally.edited += 1
            box = label.box if item.box is None else item.box
            if not item.has_velocity:
                box = box.moved(vx=label.box.vx, vy=label.box.vy)
            rows.append(_row(review, item.frame, label.identity, item.class_name, box, reviewer=reviewer))
    for name, boxes in additions.items():
        known = name if isinstance(name, int) and name in identities else None
        moving = _with_velocities(
            review, boxes, [label for label in review.labels if label.identity == known]
        )
        if moving is None:
            tally.left_out += len(boxes)
            continue
        identity = new.take(review.shard, identities) if known is None else known
        tally.added += len(boxes)
        for item, box in zip(boxes, moving, strict=True):
            rows.append(_row(review, item.frame, identity, item.class_name, box, reviewer=reviewer))
    for frame, identity in shown:
        if (frame, identity) not in back:
            tally.rejected += 1
            rows.append(row_of(review, labels[frame, identity], reviewer=reviewer, verdict=REJECTED))
    return sorted(rows, key=lambda row: (row.stamp_ns, row.identity))


def _row(
    review: ReviewClip,
    frame: int,
    identity: int,
    class_name: str,
    box: LabelBox,
    *,
    reviewer: str,
    bundle_digest: str | None = None,
    confidence: float = 1.0,
    verdict: str = LABEL,
) -> LayerRow:
    return LayerRow(
        clip_id=layer_clip_id(review.shard, review.clip_id),
        stamp_ns=int(review.clip.stamps_ns_T[frame]),
        identity=identity,
        class_name=class_name,
        **vars(box),
        source=SOURCE,
        tool=TOOL,
        bundle_digest=bundle_digest,
        confidence=confidence,
        reviewer=reviewer,
        verdict=verdict,
    )


def _with_velocities(
    review: ReviewClip, boxes: Sequence[Returned], labels: Sequence[ReviewLabel]
) -> list[LabelBox] | None:
    """Boxes of an addition with velocities: their own, or the slope of the straight line through all of them.

    Args:
        review: The clip.
        boxes: Of one object.
        labels: What was there of it before, if anything.
    Returns:
        None if no velocity follows.
    """
    known = [item.box for item in boxes if item.box is not None]
    assert len(known) == len(boxes), "an addition has a box"
    if all(item.has_velocity for item in boxes):
        return known
    poses = review.first_from_base_T
    places = {label.frame: label.box for label in labels}
    places.update({item.frame: box for item, box in zip(boxes, known, strict=True)})
    if len(places) < 2:
        return None
    frames = sorted(places)
    stamps = (review.clip.stamps_ns_T[frames] - review.clip.stamps_ns_T[frames[0]]) * 1e-9
    points_first = np.array([poses[t].apply(np.array([places[t].x, places[t].y])) for t in frames])
    slope = np.polyfit(stamps, points_first, 1)[0]
    moving = []
    for item, box in zip(boxes, known, strict=True):
        c, s = np.cos(poses[item.frame].yaw), np.sin(poses[item.frame].yaw)
        moving.append(box.moved(vx=c * slope[0] + s * slope[1], vy=c * slope[1] - s * slope[0]))
    return moving
