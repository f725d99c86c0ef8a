"""What several sources say of the frames of one shard, merged and put into the slots of its clips.

Futures are rebuilt from the merged labels of all later instants that can be compared, in later clips of
the shard and in rows of layers beyond them; where these say nothing, what the dataset's own label of the
same object knew of its future stays.

Legend: T frames, B label slots, S horizon steps.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.histories import MAX_LABEL_GAP_NS, NEAR_LABEL_NS, LabelHistory
from e2e_perception.data.label_layers import Layer, LayerRow
from e2e_perception.data.label_merging import (
    Candidate,
    FrameKey,
    Merged,
    MergedLabel,
    Source,
    kind_of,
    merged,
    ranked,
)
from e2e_perception.data.label_slots import VISIBLE_SCORE, box_rows, empty_rows, loss_weights, nearest_inside
from e2e_perception.data.label_table import LABELS
from e2e_perception.data.timelines import ClipMotion, timelines


class ShardLabels:
    """Everything about one shard but its pictures."""

    def __init__(
        self,
        store: ClipStore,
        own_rows: Sequence[Mapping[str, Any]],
        network: NetworkConfig,
        facts: Mapping[str, Any],
        layers: Sequence[Layer],
        precedence: Sequence[str],
    ) -> None:
        self.store, self.network, self.unplaced = store, network, 0
        self._own_rows = {(row["clip_id"], row["frame"], row["slot"]): row for row in own_rows}
        self._numbers = {str(row["clip_id"]): i for i, row in enumerate(store.rows)}
        motions: list[ClipMotion] = []
        own: dict[FrameKey, list[Candidate]] = {}
        complete: set[FrameKey] = set()
        for i in range(len(store)):
            clip = store.read(i)
            motions.append(ClipMotion.of(clip))
            own |= self._own(i, clip)
            if clip.labels_valid:
                complete |= {(i, stamp_ns) for stamp_ns in clip.stamps_ns_T.tolist()}
        self._stamps = [motion.stamps_ns_T.tolist() for motion in motions]
        found = timelines(motions, network.times_T)
        self._timeline_of = {i: timeline for timeline in found for i in timeline.clips}
        known = [str(source) for source in facts.get("label_sources") or []]
        sources = list(_by_kind(own, 0, complete, precedence, known))
        self._labelled: defaultdict[int, set[str]] = defaultdict(set)  # sources that declare to be complete
        for i, _ in complete:
            self._labelled[i] |= set(known)
        for order, layer in enumerate(layers, 1):
            sources += self._of_layer(order, layer, precedence)
        self._complete = {key for source in sources for key in source.complete}
        self._merged: Merged = merged(ranked(sources, precedence))
        self._rejected: defaultdict[int, list[int]] = defaultdict(list)
        for (_, stamp_ns), labels in sorted(self._merged.frames.items()):
            for label in labels:
                if label.rejected:
                    self._rejected[label.identity].append(stamp_ns)
        for stamps in self._rejected.values():
            stamps.sort()
        # Of each timeline, by its first clip, all labelled instants in order.
        self._instants: defaultdict[int, list[tuple[int, FrameKey]]] = defaultdict(list)
        for key in self._merged.frames:
            self._instants[self._timeline_of[key[0]].clips[0]].append((key[1], key))
        for instants in self._instants.values():
            instants.sort()

    # ------------------------------------------------------------------ in

    def _own(self, number: int, clip: Clip) -> dict[FrameKey, list[Candidate]]:
        """The dataset's own labels of a clip."""
        clip_id = str(self.store.rows[number]["clip_id"])
        found: dict[FrameKey, list[Candidate]] = {}
        for t, slot in np.argwhere(clip.ids_TB >= 0).tolist():
            told = self._own_rows.get((clip_id, t, slot))
            if told is None:
                raise InputError(
                    f"{self.store.path / LABELS} says nothing of clip {clip_id}, frame {t}, slot {slot}; "
                    "ingest it again"
                )
            box = {
                name: float(value) for name, value in zip(BOX_FIELDS, clip.boxes_TB10[t, slot], strict=True)
            }
            row = LayerRow(
                clip_id=clip_id,
                stamp_ns=int(clip.stamps_ns_T[t]),
                identity=int(clip.ids_TB[t, slot]),
                class_name=CLASSES[int(clip.class_ids_TB[t, slot])],
                x=box["x"],
                y=box["y"],
                z=box["z"],
                length=float(np.exp(box["log_length"])),
                width=float(np.exp(box["log_width"])),
                height=float(np.exp(box["log_height"])),
                yaw=float(np.arctan2(box["sin_yaw"], box["cos_yaw"])),
                vx=box["vx"],
                vy=box["vy"],
                source=told["source"],
                tool=told["tool"],
                bundle_digest=told["bundle_digest"],
                confidence=float(told["confidence"]),
                reviewer=told["reviewer"],
                verdict="label",
            )
            found.setdefault((number, row.stamp_ns), []).append(
                Candidate(row, slot, bool(clip.visible_TB[t, slot]))
            )
        return found

    def _of_layer(self, order: int, layer: Layer, precedence: Sequence[str]) -> Iterator[Source]:
        """Rows of a layer, each at a frame or beyond its clip, where the robot's pose is known."""
        frames: dict[FrameKey, list[Candidate]] = {}
        mine: set[str] = set()
        for row in layer.rows:
            shard, clip_id = layer.place(row.clip_id)
            if shard != self.store.path.name:
                continue
            number = self._number(clip_id)
            stamps = self._stamps[number]
            if row.stamp_ns <= stamps[-1] and row.stamp_ns not in stamps:
                raise InputError(
                    f"a layer labels clip {shard}/{clip_id} at {row.stamp_ns} ns, where it has no frame"
                )
            if self._timeline_of[number].pose(row.stamp_ns) is None:
                self.unplaced += 1
                continue
            mine.add(row.source)
            frames.setdefault((number, row.stamp_ns), []).append(
                Candidate(row, seen=row.confidence > VISIBLE_SCORE)
            )
        complete: set[FrameKey] = set()
        for name in layer.complete:
            shard, clip_id = layer.place(name)
            if shard == self.store.path.name:
                number = self._number(clip_id)
                self._labelled[number] |= mine
                complete |= {(number, stamp_ns) for stamp_ns in self._stamps[number]}
        return _by_kind(frames, order, complete, precedence, sorted(mine))

    def _number(self, clip_id: str) -> int:
        if clip_id not in self._numbers:
            raise InputError(f"a layer labels clip {clip_id!r}, which shard {self.store.path.name} has not")
        return self._numbers[clip_id]

    # ------------------------------------------------------------------ out

    def clips(self) -> Iterator[tuple[Clip, list[dict[str, Any]]]]:
        """Every clip with the merged labels, and their rows of `LABEL_SCHEMA`."""
        for number in range(len(self.store)):
            yield self._clip(number, self.store.read(number))

    def conflict_rows(self) -> list[dict[str, Any]]:
        """Rows of `CONFLICT_SCHEMA`, by clip and stamp."""
        rows = [
            {**vars(conflict), "clip_id": str(self.store.rows[conflict.clip]["clip_id"])}
            for conflict in self._merged.conflicts
        ]
        return sorted(rows, key=lambda row: (row["clip_id"], row["stamp_ns"]))

    def sources(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Sources of all labels of the shard, and those that say that nobody else is there."""
        return sorted({row["source"] for row in rows}.union(*self._labelled.values()))

    def sources_of(self, number: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The same of one clip and its rows."""
        return sorted(self._labelled[number] | {row["source"] for row in rows})

    def _clip(self, number: int, clip: Clip) -> tuple[Clip, list[dict[str, Any]]]:
        clip_id = str(self.store.rows[number]["clip_id"])
        history = self._history(number)
        seen: set[int] = set()
        frames: list[dict[str, NDArray[Any]]] = []
        rows: list[dict[str, Any]] = []
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            labels = [
                label for label in self._merged.frames.get((number, stamp_ns), []) if not label.rejected
            ]
            places_N2 = np.array([(label.candidate.row.x, label.candidate.row.y) for label in labels])
            kept = nearest_inside(places_N2.reshape(-1, 2), self.network.grid)
            labels = [labels[n] for n in kept.tolist()]
            frames.append(self._slots(number, clip, t, labels, seen, history))
            for slot, label in enumerate(labels):
                row = label.candidate.row
                rows.append(
                    {
                        "clip_id": clip_id,
                        "frame": t,
                        "slot": slot,
                        "identity": label.identity,
                        "class": row.class_name,
                        "source": row.source,
                        "tool": row.tool,
                        "bundle_digest": row.bundle_digest,
                        "confidence": row.confidence,
                        "reviewer": row.reviewer,
                    }
                )
        valid = all((number, stamp_ns) in self._complete for stamp_ns in self._stamps[number])
        arrays: dict[str, Any] = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
        return replace(clip, labels_valid=valid, **arrays), rows

    def _slots(
        self,
        number: int,
        clip: Clip,
        t: int,
        labels: Sequence[MergedLabel],
        seen: set[int],
        history: LabelHistory,
    ) -> dict[str, NDArray[Any]]:
        """Label fields of `Clip` for one frame."""
        n = len(labels)
        boxes = empty_rows()
        class_ids, ids = np.zeros(MAX_LABELS, np.int64), np.full(MAX_LABELS, -1, np.int64)
        confidence = np.zeros(MAX_LABELS, np.float32)
        if n:
            found = _boxes(labels)
            boxes[:n] = box_rows(
                found.centers_N3[:, :2],
                found.centers_N3[:, 2],
                found.sizes_N3,
                found.yaws_N,
                found.velocities_N2,
            )
            class_ids[:n], ids[:n], confidence[:n] = found.class_ids_N, found.ids_N, found.scores_N
        # What the dataset itself says stays to the last bit, and with it what its sensors saw.
        own = [
            (n, label.candidate.slot) for n, label in enumerate(labels) if label.candidate.slot is not None
        ]
        for slot, before in own:
            boxes[slot] = clip.boxes_TB10[t, before]
            confidence[slot] = confidence[slot] if clip.visible_TB[t, before] else 0.0
        visible, weights = loss_weights(confidence, ids, seen)
        for slot, before in own:
            weights[slot] = clip.weights_TB[t, before]
        steps = self.network.horizon_steps
        futures = np.zeros((MAX_LABELS, steps, 2), np.float32)
        futures_valid = np.zeros((MAX_LABELS, steps), np.bool_)
        for slot, label in enumerate(labels):
            if label.own_slot is not None:
                futures[slot] = clip.futures_TBS2[t, label.own_slot]
                futures_valid[slot] = clip.futures_valid_TBS[t, label.own_slot]
        stamp_ns = int(clip.stamps_ns_T[t])
        pose = self._timeline_of[number].pose(stamp_ns)
        assert pose is not None  # frames have one
        base_from_odom = pose.inverse()
        slots = {label.identity: slot for slot, label in enumerate(labels)}
        for k, ahead_s in enumerate(self.network.times_T.tolist()):
            later_ns = stamp_ns + round(ahead_s * 1e9)
            later = history.at(later_ns)
            places_N2 = base_from_odom.apply(later.centers_N3[:, :2])
            for row, identity in enumerate(later.ids_N.tolist()):
                if identity in slots:
                    futures[slots[identity], k] = places_N2[row]
                    futures_valid[slots[identity], k] = True
            for identity, slot in slots.items():
                if _near(self._rejected.get(identity, []), later_ns):
                    futures[slot, k], futures_valid[slot, k] = 0.0, False
        return {
            "boxes_TB10": boxes,
            "class_ids_TB": class_ids,
            "ids_TB": ids,
            "weights_TB": weights,
            "visible_TB": visible,
            "futures_TBS2": np.where(futures_valid[..., None], futures, np.float32(0.0)),
            "futures_valid_TBS": futures_valid,
        }

    def _history(self, number: int) -> LabelHistory:
        """Merged labels from a clip's first frame to its horizon, in the odom frame of its timeline."""
        timeline = self._timeline_of[number]
        first_ns, last_ns = self._stamps[number][0], self._stamps[number][-1]
        until_ns = last_ns + round(float(self.network.times_T[-1]) * 1e9) + MAX_LABEL_GAP_NS
        instants = self._instants[timeline.clips[0]]
        first = bisect.bisect_left(instants, (first_ns, (-1, 0)))
        at: dict[int, FrameKey] = {}
        for stamp_ns, key in itertools.takewhile(
            lambda item: item[0] <= until_ns, itertools.islice(instants, first, None)
        ):
            # The clip's own frames first, then frames of others, then what layers say beyond any.
            at[stamp_ns] = min(
                at.get(stamp_ns, key),
                key,
                key=lambda k: (k[0] != number, k[1] not in self._stamps[k[0]], k[0]),
            )
        history = LabelHistory()
        for stamp_ns, key in sorted(at.items()):
            pose = timeline.pose(stamp_ns)
            labels = [label for label in self._merged.frames[key] if not label.rejected]
            if pose is not None and labels:
                history.add(stamp_ns, _boxes(labels), pose)
        return history


def _by_kind(
    frames: Mapping[FrameKey, Sequence[Candidate]],
    order: int,
    complete: set[FrameKey],
    precedence: Sequence[str],
    sources: Sequence[str],
) -> Iterator[Source]:
    """Rows of one layer by kind; that nothing else is there is said by the lowest of them."""
    apart: dict[str, dict[FrameKey, list[Candidate]]] = {kind_of(source): {} for source in sources}
    for key, candidates in frames.items():
        for candidate in candidates:
            apart.setdefault(kind_of(candidate.row.source), {}).setdefault(key, []).append(candidate)
    if not apart and complete:
        apart[precedence[-1]] = {}  # whoever looked and found nobody outvotes nobody
    rank = {kind: place for place, kind in enumerate(precedence)}
    kinds = sorted(apart, key=lambda kind: rank.get(kind, len(rank)))
    for kind in kinds:
        yield Source(kind, order, apart[kind], frozenset(complete) if kind == kinds[-1] else frozenset())


def _boxes(labels: Sequence[MergedLabel]) -> Boxes:
    rows = [label.candidate.row for label in labels]
    return Boxes(
        centers_N3=np.array([(row.x, row.y, row.z) for row in rows], np.float32),
        sizes_N3=np.array([(row.length, row.width, row.height) for row in rows], np.float32),
        yaws_N=np.array([row.yaw for row in rows], np.float32),
        velocities_N2=np.array([(row.vx, row.vy) for row in rows], np.float32),
        class_ids_N=np.array([CLASSES.index(row.class_name) for row in rows], np.int64),
        scores_N=np.array([row.confidence for row in rows], np.float32),
        ids_N=np.array([label.identity for label in labels], np.int64),
    )


def _near(stamps: Sequence[int], stamp_ns: int) -> bool:
    i = bisect.bisect_left(stamps, stamp_ns - NEAR_LABEL_NS)
    return i < len(stamps) and stamps[i] <= stamp_ns + NEAR_LABEL_NS
