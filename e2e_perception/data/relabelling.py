"""A shard with its own labels and layers to a new shard with merged ones: the same frames, other labels.

Futures are rebuilt from the merged labels of all later instants that can be compared, in later clips of the
shard and in rows of layers beyond them; where these say nothing, what the dataset's own label of the same
object knew of its future stays. The shard that it came from is only read.

Legend: T frames, B label slots, S horizon steps.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from e2e_perception import __version__
from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import BOX_FIELDS, SIZES, NetworkConfig
from e2e_perception.data.clip_store import FACTS, INDEX, ClipStore, ClipWriter
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
from e2e_perception.data.shards import DATASET, LABELS, SHARD, Dataset, Shard, read_labels
from e2e_perception.data.timelines import ClipMotion, Timeline, timelines

TOOL = f"e2e_perception {__version__}"
TABLE = "conflicts.parquet"
LONGEST_STEM = 87  # characters of the old name in the new one
COLUMNS = {name: i for i, name in enumerate(BOX_FIELDS)}
CONFLICT_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stamp_ns", pa.int64()),
        ("kind", pa.string()),
        ("identity", pa.int64()),
        ("winner", pa.string()),
        ("loser", pa.string()),
        ("loser_identity", pa.int64()),
        ("winner_class", pa.string()),
        ("loser_class", pa.string()),
        ("distance", pa.float32()),
        ("turned", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Relabelled:
    """What came of a shard.

    Attributes:
        source, shard: Names of the old one and of the new one; the same if no layer speaks of it.
        new: False if it was there already.
        clips, frames: In both.
        labelled_clips: In which everybody is labelled, in the new one.
        labels: By source.
        conflicts: Rows of `CONFLICT_SCHEMA`.
        unplaced: Rows beyond the clips for whose instants the robot's pose is not known.
        digest: Of the new shard.
    """

    source: str
    shard: str
    new: bool
    clips: int
    frames: int
    labelled_clips: int
    labels: dict[str, int]
    conflicts: list[dict[str, Any]]
    unplaced: int
    digest: str


def opened_dataset(path: Path) -> Dataset:
    """A dataset with shards.

    Raises:
        InputError: If there is none, or it has no shards.
    """
    if not (path / DATASET).is_file():
        raise InputError(
            f"{path} is no dataset of shards: it has no {DATASET}; `e2e-perception ingest` makes one"
        )
    dataset = Dataset(path)
    if not dataset.shards():
        raise InputError(f"{path} is a dataset without shards; ingest something first")
    return dataset


def network_of(dataset: Dataset, name: str) -> NetworkConfig:
    """The network whose inputs a shard's frames are.

    Raises:
        InputError: If the shard does not say so.
    """
    recipe = dataset.facts(name).get("recipe")
    size = recipe.get("size") if isinstance(recipe, dict) else None
    if not isinstance(size, str) or size not in SIZES:
        raise InputError(
            f"shard {name} says that it was made for size {size!r}; expected one of {', '.join(SIZES)}"
        )
    return SIZES[size]


def fitting(dataset: Dataset, layers: Sequence[Layer], names: Sequence[str]) -> None:
    """Refuse layers that were made for something else.

    Args:
        dataset: That they are to label.
        layers: In their order.
        names: Of the layers, for the message.
    Raises:
        InputError: If one speaks of no shard of the dataset, or of another state of one.
    """
    digests = {shard.name: shard.digest for shard in dataset.shards()}
    for layer, name in zip(layers, names, strict=True):
        known = sorted(layer.shards.keys() & digests.keys())
        if not known:
            raise InputError(
                f"{name} was made for {', '.join(sorted(layer.shards)[:3]) or 'no shard'}; "
                f"{dataset.path} has {', '.join(sorted(digests)[:3])}"
            )
        for shard in known:
            if layer.shards[shard] != digests[shard]:
                raise InputError(
                    f"{name} was made for shard {shard} with digest {layer.shards[shard][:12]}…; in "
                    f"{dataset.path} it has {digests[shard][:12]}…"
                )


def relabel(
    dataset: Dataset,
    name: str,
    layers: Sequence[Layer],
    precedence: Sequence[str],
    out: Dataset,
    progress: Callable[[int], None] | None = None,
) -> Relabelled:
    """Make a shard of another dataset with the merged labels, or take over the one that no layer speaks of.

    Args:
        dataset: That the shard is in.
        name: Of the shard.
        layers: Of which the later one wins within a kind; those that do not speak of the shard are left out.
        precedence: Kinds of sources, the highest first.
        out: Where the new shard goes.
        progress: Told how many clips are written.
    Raises:
        InputError: If the shard is damaged, or a layer speaks of frames that it has not.
        ConfigError: If a source has no place in the precedence.
    """
    shard = next(item for item in dataset.shards() if item.name == name)
    speaking = [layer for layer in layers if name in layer.shards]
    old = dataset.facts(name)
    store = ClipStore(dataset.directory(name))
    if not speaking:
        return _taken_over(dataset, shard, store, out)
    network = network_of(dataset, name)
    recipe = {
        "size": network.size,
        "shard": name,
        "shard_digest": shard.digest,
        "layers": [layer.digest for layer in speaking],
        "precedence": list(precedence),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    new_name = f"{name[:LONGEST_STEM]}-{key[:12]}"
    listed = {item.name: item for item in out.shards()}
    if new_name in listed and (out.directory(new_name) / SHARD).is_file():
        return _told(out, listed[new_name], name, new=False)
    task = _Task(store, read_labels(dataset.directory(name)), network, old, speaking, precedence)
    with out.writing(new_name) as directory:
        writer = ClipWriter(directory)
        rows: list[dict[str, Any]] = []
        for number, (clip, clip_rows) in enumerate(task.clips()):
            row = store.rows[number]
            clip_id = str(row["clip_id"])
            sources = task.sources_of(number, clip_rows)
            facts = {**{column: row[column] for column in FACTS}, "label_sources": sources}
            if facts["sensor_validity"] is not None:
                facts["sensor_validity"] = dict(facts["sensor_validity"])
            writer.write(clip_id, clip, facts)
            rows += clip_rows
            if progress is not None:
                progress(number + 1)
        writer.finish()
        conflicts = pa.Table.from_pylist(task.conflict_rows(), schema=CONFLICT_SCHEMA)
        facts = {
            **{k: v for k, v in old.items() if k not in ("digest", "clips", "files")},
            "recipe": recipe,
            "made_from": old.get("recipe"),
            "tool": TOOL,
            "label_sources": sorted(
                {source for n in range(len(store)) for source in task.sources_of(n, rows)}
            ),
            "labels_unplaced": task.unplaced,
        }
        tables = {**_other_tables(dataset, name), TABLE: conflicts}
        made = out.seal(new_name, facts, rows, tables)
    return _told(out, made, name, new=True)


class _Task:
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
        self._timeline_of: dict[int, Timeline] = {
            i: timeline for timeline in timelines(motions, network.times_T) for i in timeline.clips
        }
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

    def sources_of(self, number: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Sources of a clip's labels, and those that say that nobody else is there."""
        clip_id = self.store.rows[number]["clip_id"]
        return sorted(self._labelled[number] | {row["source"] for row in rows if row["clip_id"] == clip_id})

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
        at: dict[int, FrameKey] = {}
        for key in self._merged.frames:
            if key[0] in timeline.clips and first_ns <= key[1] <= until_ns:
                # The clip's own frames first, then frames of others, then what layers say beyond any.
                at[key[1]] = min(
                    at.get(key[1], key),
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


def _other_tables(dataset: Dataset, name: str) -> dict[str, pa.Table]:
    """Tables that a shard has beside its index and its labels."""
    files = [Path(file).name for file in dataset.facts(name).get("files", {})]
    try:
        return {
            file: pq.read_table(dataset.directory(name) / file)
            for file in files
            if file not in (INDEX, LABELS, TABLE)
        }
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"a table of shard {name} cannot be read: {error}; import it again") from error


def _taken_over(dataset: Dataset, shard: Shard, store: ClipStore, out: Dataset) -> Relabelled:
    listed = {item.name: item for item in out.shards()}
    new = not (shard.name in listed and (out.directory(shard.name) / SHARD).is_file())
    if not new and listed[shard.name].digest != shard.digest:
        raise InputError(f"{out.path} has another shard {shard.name}; name a new directory")
    if new:
        with out.writing(shard.name) as directory:
            shutil.copytree(
                store.path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SHARD, ".lock")
            )
            facts = dataset.facts(shard.name)
            kept = {key: value for key, value in facts.items() if key not in ("digest", "clips", "files")}
            tables = {
                file: pq.read_table(directory / file)
                for file in facts.get("files", {})
                if file not in (INDEX, LABELS)
            }
            made = out.seal(shard.name, kept, read_labels(directory), tables)
            assert made.digest == shard.digest
    return _told(out, shard, shard.name, new=new)


def _told(out: Dataset, shard: Shard, source: str, *, new: bool) -> Relabelled:
    directory = out.directory(shard.name)
    store = ClipStore(directory)
    table = directory / TABLE
    labels = Counter(row["source"] for row in read_labels(directory))
    return Relabelled(
        source=source,
        shard=shard.name,
        new=new,
        clips=shard.clips,
        frames=shard.frames,
        labelled_clips=sum(row["labels_valid"] is not False for row in store.rows),
        labels=dict(sorted(labels.items())),
        conflicts=pq.read_table(table, schema=CONFLICT_SCHEMA).to_pylist() if table.is_file() else [],
        unplaced=int(out.facts(shard.name).get("labels_unplaced", 0)),
        digest=shard.digest,
    )
