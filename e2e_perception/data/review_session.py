"""A review in progress: what was decided of each track, in a layer that is written after every decision."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from e2e_perception.core.errors import InputError
from e2e_perception.data.label_layers import LayerRow, read_layer, write_layer
from e2e_perception.data.review_clips import ClipName, ReviewClip, ReviewDataset
from e2e_perception.data.review_cvat import check_digests
from e2e_perception.data.review_verdicts import LABEL, REJECTED, SOURCE, layer_clip_id, row_of

CLIPS_IN_MEMORY = 4


@dataclass(frozen=True)
class Decision:
    """What was decided of a track, and by whom."""

    verdict: str
    reviewer: str


class ReviewSession:
    """Decides tracks of clips; may be used by several threads.

    Attributes:
        names: Clips in the order in which they are looked at.
        reviewer: Who decides.
    """

    def __init__(self, dataset: ReviewDataset, names: Sequence[ClipName], out: Path, reviewer: str) -> None:
        """Begin a review, or go on with one.

        Args:
            dataset: Opened.
            names: Clips to look at.
            out: File of the layer; what was decided in it stays.
            reviewer: Who decides.
        Raises:
            InputError: If there are no clips, `out` is of other shards or holds other than reviews, or
                another process reviews into it.
        """
        if not names:
            raise InputError("no clips to look at; ingest some first")
        self.names = tuple(names)
        self.reviewer = reviewer
        self._dataset, self._out = dataset, Path(out)
        self._clips: dict[int, ReviewClip] = {}
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, int], list[LayerRow]] = {}
        self._shards = {name.shard: dataset.digests[name.shard] for name in names}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._out.with_name(f".{self._out.name}.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"{out} is being reviewed by another process; name another --out") from error
        try:
            self._resume()
            # One pass over the labels, so that progress is known from the beginning.
            self._tracks = [frozenset(dataset.identities_of(name)) for name in names]
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ReviewSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process go on."""
        self._file.close()

    def clip(self, number: int) -> ReviewClip:
        """A clip with its labels.

        Raises:
            InputError: If there is no such number, or the clip is damaged.
        """
        self._check(number)
        with self._lock:
            return self._clip(number)

    def decisions(self, number: int) -> dict[int, Decision]:
        """What was decided of a clip's tracks, by identity."""
        self._check(number)
        name = layer_clip_id(self.names[number].shard, self.names[number].clip_id)
        with self._lock:
            return {
                identity: Decision(rows[0].verdict, rows[0].reviewer or "")
                for (clip, identity), rows in self._rows.items()
                if clip == name
            }

    def decide(self, number: int, identities: Sequence[int], verdict: str | None) -> None:
        """Decide tracks of a clip and write the layer.

        Args:
            number: Of the clip.
            identities: Whose tracks.
            verdict: `label`, `rejected`, or None: take back what was decided.
        Raises:
            InputError: If something is unknown.
            OSError: If the layer cannot be written; nothing was decided then.
        """
        self._check(number)
        if verdict not in (LABEL, REJECTED, None):
            raise InputError(f"verdict {verdict!r}, expected {LABEL}, {REJECTED} or nothing")
        unknown = sorted(set(identities) - self._tracks[number])
        if unknown:
            raise InputError(f"clip {self.names[number]} has no track {unknown[0]}")
        with self._lock:
            review = self._clip(number)
            tracks = review.tracks
            rows = dict(self._rows)
            for identity in identities:
                key = (layer_clip_id(review.shard, review.clip_id), identity)
                if verdict is None:
                    rows.pop(key, None)
                    continue
                rows[key] = [
                    row_of(review, label, reviewer=self.reviewer, verdict=verdict)
                    for label in tracks[identity]
                ]
            self._save(rows)
            self._rows = rows

    def progress(self) -> dict[str, int]:
        """Tracks of all clips, and how many of them are decided, accepted and rejected."""
        wanted = {
            (layer_clip_id(name.shard, name.clip_id), identity)
            for name, identities in zip(self.names, self._tracks, strict=True)
            for identity in identities
        }
        with self._lock:
            verdicts = [rows[0].verdict for key, rows in self._rows.items() if key in wanted]
        return {
            "tracks": len(wanted),
            "decided": len(verdicts),
            "accepted": verdicts.count(LABEL),
            "rejected": verdicts.count(REJECTED),
        }

    def open_tracks(self, number: int) -> int:
        """Tracks of a clip that are not decided."""
        return len(self._tracks[number] - self.decisions(number).keys())

    def _check(self, number: int) -> None:
        if not 0 <= number < len(self.names):
            raise InputError(f"no clip {number}; there are {len(self.names)}")

    def _clip(self, number: int) -> ReviewClip:
        if number not in self._clips:
            while len(self._clips) >= CLIPS_IN_MEMORY:
                self._clips.pop(next(iter(self._clips)))
            self._clips[number] = self._dataset.read(self.names[number])
        return self._clips[number]

    def _resume(self) -> None:
        if not self._out.exists():
            return
        layer = read_layer(self._out)
        check_digests(layer.shards, self._dataset, str(self._out))
        for row in layer.rows:
            if row.source != SOURCE:
                raise InputError(
                    f"{self._out} holds labels of {row.source}, not of a review; name another --out"
                )
            self._rows.setdefault((row.clip_id, row.identity), []).append(row)
        self._shards.update(layer.shards)

    def _save(self, rows: dict[tuple[str, int], list[LayerRow]]) -> None:
        write_layer(self._out, [row for key in sorted(rows) for row in rows[key]], shards=self._shards)
