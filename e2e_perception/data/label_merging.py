"""Labels of several sources into one set: the source of higher precedence wins whole, nothing is averaged.

Rows of two sources are the same object if they are of one group of classes and near each other, or nearer
than two objects can be; the pairs of a frame are those of least total distance (Hungarian method). Which
identity of the lower source is which of the higher one is counted over all frames first: in frames in which
the higher source says nothing, or says something a little elsewhere, the object keeps its identity.

Where two sources say different things of one object, that is a conflict. It is listed and decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.boxes import GROUP_OF
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.frames import wrap_angle
from e2e_perception.data.label_layers import LayerRow

# Kinds of sources, and the datasets' own names for some.
KINDS = ("review", "topic", "import", "simulator", "autolabel")
ALIASES = {"argoverse2": "import", "log": "import", "simulation": "simulator"}
SAME_DISTANCE = {0: 2.0, 1: 1.0, 2: 1.0}  # [m] between centres, by group of classes
SAME_PLACE = 0.5  # [m] nearer than two objects of whatever classes can be
KEPT_FACTOR = 2.0  # by which a pair that other frames have found may be farther apart
CONFLICTS = ("class", "position", "heading", "rejected", "absent")
POSITION_APART = 0.5  # [m] above which two places are a conflict
HEADING_APART = math.radians(30.0)

FrameKey = tuple[int, int]  # number of the clip, stamp [ns]


@dataclass(frozen=True)
class Candidate:
    """What one source says of one object at one instant.

    Attributes:
        row: Its label or rejection.
        slot: Of the label in the clip, if it is the dataset's own.
        seen: Whether a sensor saw the object then; who labels all that can be seen does not deny the others.
    """

    row: LayerRow
    slot: int | None = None
    seen: bool = True


@dataclass(frozen=True)
class Source:
    """Labels of one kind, of one layer or of the dataset itself.

    Attributes:
        kind: One of the precedence.
        order: 0: the dataset; then the layers, of which the later one wins within a kind.
        frames: By clip and stamp.
        complete: Frames in which nothing else is, by this source and those above it.
    """

    kind: str
    order: int
    frames: Mapping[FrameKey, Sequence[Candidate]]
    complete: frozenset[FrameKey] = frozenset()


@dataclass(frozen=True)
class MergedLabel:
    """An object at an instant.

    Attributes:
        candidate: Of the source that won.
        identity: Throughout the shard.
        own_slot: Of the dataset's own label of this object at this instant, whoever won; None: it has none.
    """

    candidate: Candidate
    identity: int
    own_slot: int | None

    @property
    def rejected(self) -> bool:
        """Whether it was found that there is no such object."""
        return self.candidate.row.verdict == "rejected"


@dataclass(frozen=True)
class Conflict:
    """Two sources that say different things of one object; `absent`: the higher says that it is not there.

    Attributes:
        clip, stamp_ns: Of the frame.
        kind: One of `CONFLICTS`.
        identity: After merging; None for what is absent.
        winner, loser: Sources, as in their rows; of what is absent, the kind.
        loser_identity: In the losing source.
        winner_class, loser_class: None where the winner has no row.
        distance, turned: Between centres [m] and headings [rad].
    """

    clip: int
    stamp_ns: int
    kind: str
    identity: int | None
    winner: str
    loser: str
    loser_identity: int
    winner_class: str | None
    loser_class: str
    distance: float | None
    turned: float | None


@dataclass
class Merged:
    """What came of all sources.

    Attributes:
        frames: Labels and rejections by clip and stamp, those of higher precedence first.
        conflicts: By clip, stamp and loser's identity, for one losing source after the other.
    """

    frames: dict[FrameKey, list[MergedLabel]] = field(default_factory=lambda: defaultdict(list))
    conflicts: list[Conflict] = field(default_factory=list)


def kind_of(source: str) -> str:
    """Kind of a source: what stands before the colon, or the general name of a dataset's own one."""
    kind = source.partition(":")[0]
    return ALIASES.get(kind, kind)


def parsed_precedence(text: str) -> tuple[str, ...]:
    """Kinds from the highest to the lowest.

    Raises:
        ConfigError: If one is empty or named twice.
    """
    kinds = tuple(word.strip() for word in text.split(","))
    if not all(kinds) or len(set(kinds)) < len(kinds):
        raise ConfigError(f"precedence {text!r}: expected kinds with commas between them, each once")
    return kinds


def ranked(sources: Iterable[Source], precedence: Sequence[str]) -> list[Source]:
    """Sources from the highest to the lowest: by kind, within a kind the later layer first, the dataset last.

    Raises:
        ConfigError: If a source's kind has no place in the precedence.
    """
    listed = list(sources)
    missing = sorted({source.kind for source in listed} - set(precedence))
    if missing:
        raise ConfigError(
            f"labels of {', '.join(missing)} have no place in --precedence {','.join(precedence)}; say where "
            "they stand"
        )
    return sorted(listed, key=lambda source: (precedence.index(source.kind), -source.order))


def merged(sources: Sequence[Source]) -> Merged:
    """Merge sources.

    Args:
        sources: From `ranked`.
    """
    result = Merged()
    complete: dict[FrameKey, str] = {}  # the kind that declares it
    taken = {c.row.identity for source in sources for rows in source.frames.values() for c in rows}
    numbers = (number for number in itertools.count() if number not in taken)
    for source in sources:
        counterpart = _counterparts(result, source)
        used = {label.identity for labels in result.frames.values() for label in labels}
        own: dict[int, int] = {}
        for key in sorted(source.frames):
            candidates = sorted(source.frames[key], key=lambda c: c.row.identity)
            labels = result.frames[key]
            pairs = _pairs(labels, candidates, counterpart)
            for n, candidate in enumerate(candidates):
                row = candidate.row
                if n in pairs:
                    winner = labels[pairs[n]]
                    result.conflicts += _conflicts(key, winner, row)
                    if candidate.slot is not None and winner.own_slot is None:
                        labels[pairs[n]] = MergedLabel(winner.candidate, winner.identity, candidate.slot)
                    continue
                if key in complete and row.verdict == "label" and candidate.seen:
                    result.conflicts.append(
                        Conflict(
                            *key,
                            "absent",
                            None,
                            complete[key],
                            row.source,
                            row.identity,
                            None,
                            row.class_name,
                            None,
                            None,
                        )
                    )
                    continue
                identity = counterpart.get(row.identity)
                if identity is None or any(label.identity == identity for label in labels):
                    if row.identity not in own:
                        own[row.identity] = row.identity if row.identity not in used else next(numbers)
                    identity = own[row.identity]
                labels.append(MergedLabel(candidate, identity, candidate.slot))
        for key in source.complete:
            complete.setdefault(key, source.kind)
    return result


def _counterparts(above: Merged, source: Source) -> dict[int, int]:
    """Of each identity of a source the merged one that it is most often."""
    votes: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for key, candidates in source.frames.items():
        labels = above.frames.get(key, [])
        for n, m in _assigned(labels, candidates).items():
            votes[candidates[n].row.identity][labels[m].identity] += 1
    return {
        identity: min(counted, key=lambda other: (-counted[other], other))
        for identity, counted in votes.items()
    }


def _pairs(
    labels: Sequence[MergedLabel], candidates: Sequence[Candidate], counterpart: Mapping[int, int]
) -> dict[int, int]:
    """Place among the labels of each candidate that is one of them: known counterparts first."""
    by_identity = {label.identity: m for m, label in enumerate(labels)}
    pairs: dict[int, int] = {}
    for n, candidate in enumerate(candidates):
        m = by_identity.get(counterpart.get(candidate.row.identity, -1))
        if m is None or m in pairs.values():
            continue
        limit = KEPT_FACTOR * _limit(labels[m].candidate.row, candidate.row)
        if _distance(labels[m].candidate.row, candidate.row) <= limit:
            pairs[n] = m
    rest_n = [n for n in range(len(candidates)) if n not in pairs]
    rest_m = [m for m in range(len(labels)) if m not in pairs.values()]
    found = _assigned([labels[m] for m in rest_m], [candidates[n] for n in rest_n])
    return pairs | {rest_n[n]: rest_m[m] for n, m in found.items()}


def _assigned(labels: Sequence[MergedLabel], candidates: Sequence[Candidate]) -> dict[int, int]:
    """Pairs of one frame by distance alone: as many as possible, and among these the nearest."""
    if not labels or not candidates:
        return {}
    rows = [label.candidate.row for label in labels]
    distance: NDArray[np.float64] = np.array([[_distance(a, c.row) for a in rows] for c in candidates])
    limit = np.array([[_limit(a, c.row) for a in rows] for c in candidates])
    near = distance <= limit
    if not near.any():
        return {}
    # No sum of near distances reaches the price of one that is not near.
    far = (1.0 + distance[near].max()) * (1.0 + min(distance.shape))
    n, m = linear_sum_assignment(np.where(near, distance, far))
    good = near[n, m]
    return dict(zip(n[good].tolist(), m[good].tolist(), strict=True))


def _distance(a: LayerRow, b: LayerRow) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _limit(a: LayerRow, b: LayerRow) -> float:
    """Distance up to which two rows may be one object [m]."""
    same = GROUP_OF[a.class_name] == GROUP_OF[b.class_name]
    return SAME_DISTANCE[GROUP_OF[a.class_name]] if same else SAME_PLACE


def _conflicts(key: FrameKey, winner: MergedLabel, loser: LayerRow) -> list[Conflict]:
    """What two rows of one object disagree on."""
    row = winner.candidate.row
    distance = _distance(row, loser)
    turned = abs(float(wrap_angle(row.yaw - loser.yaw)))
    if row.verdict != loser.verdict:
        kinds = ["rejected"]
    elif winner.rejected:
        kinds = []
    else:
        differs = {
            "class": row.class_name != loser.class_name,
            "position": distance > POSITION_APART,
            "heading": turned > HEADING_APART,
        }
        kinds = [kind for kind, apart in differs.items() if apart]
    return [
        Conflict(
            *key, kind, winner.identity, row.source, loser.source, loser.identity, row.class_name,
            loser.class_name, distance, turned,
        )
        for kind in kinds
    ]  # fmt: skip
