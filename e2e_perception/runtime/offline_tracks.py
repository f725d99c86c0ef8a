"""Which detections of a drive belong to one object, knowing all of the drive.

It begins with the tracks of the track manager, which has to decide at once. Then, with hindsight: two
tracks, of which one begins where the other was going, are one; and a track is carried on into the frames
before it was sure enough to begin and after it was given up, as far as weak detections say that somebody
was there.

Legend: Q detections, N tracks, K classes.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS, BOX_STD_FIELDS
from e2e_perception.core.tracks import Tracks
from e2e_perception.runtime.kalman_tracker import KalmanTrackerConfig
from e2e_perception.runtime.track_manager import CLASS_GROUPS, LOG_SIZE_RANGE
from e2e_perception.runtime.track_smoothing import Path, smoothed_path

Array = NDArray[np.float64]

LEAST_SCORE = 0.1  # of a detection that may carry a track on
LEAST_STD = 0.05  # [m], [m/s]; no detection is trusted more
SAME_DISTANCE = 2.0  # [m] between a track and the detection that it was last corrected with
LONGEST_GAP_S = 1.0  # without a detection
CARRY_DISTANCE = 1.0  # [m] from where a track was going to a detection that carries it on
CARRY_DRIFT = 1.0  # [m/s] by which that grows with the time since the last one
END_S = 2.0  # of a chain's end that tell where it is going


@dataclass(frozen=True)
class SeenFrame:
    """What the network said of one frame, odom frame.

    Attributes:
        time_s: Since the first frame.
        odom_from_base: Where the robot was.
        centers_Q3, sizes_Q3, yaws_Q, velocities_Q2: [m], [m], [rad], [m/s].
        place_var_Q, velocity_var_Q: Per axis.
        scores_QK: Per class.
        rows: Detection of each track that was seen, by identity.
    """

    time_s: float
    odom_from_base: SE2
    centers_Q3: Array
    sizes_Q3: Array
    yaws_Q: Array
    velocities_Q2: Array
    place_var_Q: Array
    velocity_var_Q: Array
    scores_QK: Array
    rows: Mapping[int, int]

    @property
    def best_Q(self) -> Array:
        """Score of the likeliest class."""
        return np.asarray(self.scores_QK.max(axis=1))

    @property
    def groups_Q(self) -> NDArray[np.int64]:
        """Group of that class, see `CLASS_GROUPS`."""
        return np.asarray(CLASS_GROUPS[self.scores_QK.argmax(axis=1)])


def seen_frame(
    time_s: float, odom_from_base: SE2, tracks: Tracks, outputs: Mapping[str, NDArray[np.floating]]
) -> SeenFrame:
    """Bring a frame's detections to the odom frame, and find those that its tracks were made of.

    Args:
        time_s: [s]
        odom_from_base: Where the robot was.
        tracks: Of the track manager.
        outputs: Of the engine, for the same frame.
    """
    scores_QK = outputs["query_scores"][0].astype(np.float64)
    kept = np.flatnonzero(scores_QK.max(axis=1) >= LEAST_SCORE)
    boxes = {name: outputs["query_boxes"][0, kept, i].astype(np.float64) for i, name in enumerate(BOX_FIELDS)}
    log_var = np.clip(outputs["query_log_var"][0, kept].astype(np.float64), -20.0, 20.0)
    variance = {
        name: np.maximum(np.exp(log_var[:, i]), LEAST_STD**2) for i, name in enumerate(BOX_STD_FIELDS)
    }
    places_Q2 = np.stack([boxes["x"], boxes["y"]], axis=1)
    log_sizes_Q3 = np.stack([boxes[f"log_{name}"] for name in ("length", "width", "height")], axis=1)
    velocities_Q2 = np.stack([boxes["vx"], boxes["vy"]], axis=1)
    seen = np.flatnonzero(tracks.coasted_N == 0)
    distance_NQ = np.linalg.norm(tracks.boxes.centers_N3[seen, None, :2] - places_Q2, axis=-1)
    # A track's confidence is no detection's, but its class group is.
    groups_Q = CLASS_GROUPS[scores_QK[kept].argmax(axis=1)]
    fits_NQ = (distance_NQ < SAME_DISTANCE) & (CLASS_GROUPS[tracks.boxes.class_ids_N[seen], None] == groups_Q)
    pairs = _assigned(distance_NQ, fits_NQ)
    return SeenFrame(
        time_s=time_s,
        odom_from_base=odom_from_base,
        centers_Q3=np.concatenate([odom_from_base.apply(places_Q2), boxes["z"][:, None]], axis=1),
        sizes_Q3=np.exp(np.clip(log_sizes_Q3, *LOG_SIZE_RANGE)),
        yaws_Q=wrap_angle(np.arctan2(boxes["sin_yaw"], boxes["cos_yaw"]) + odom_from_base.yaw),
        velocities_Q2=odom_from_base.rotate(velocities_Q2),
        place_var_Q=0.5 * (variance["x"] + variance["y"]),
        velocity_var_Q=0.5 * (variance["vx"] + variance["vy"]),
        scores_QK=scores_QK[kept],
        rows={int(tracks.boxes.ids_N[seen[n]]): q for n, q in pairs},
    )


@dataclass
class Chain:
    """Detections of one object: row of each frame that shows it, by the frame's number."""

    rows: dict[int, int]

    @property
    def first(self) -> int:
        """Number of its first frame."""
        return min(self.rows)

    @property
    def last(self) -> int:
        """Number of its last frame."""
        return max(self.rows)


def chains(frames: Sequence[SeenFrame]) -> list[Chain]:
    """Every object of a stretch of frames, by the time at which it was first seen.

    Args:
        frames: Consecutive, one timeline.
    """
    by_identity: dict[int, dict[int, int]] = {}
    for number, frame in enumerate(frames):
        for identity, row in frame.rows.items():
            by_identity.setdefault(identity, {})[number] = row
    found = [part for rows in by_identity.values() for part in _without_gaps(frames, rows)]
    _carry(frames, found)
    found = _joined(frames, found)
    _carry(frames, found)
    return sorted(found, key=lambda chain: (chain.first, chain.rows[chain.first]))


def path_of(frames: Sequence[SeenFrame], chain: Chain) -> Path:
    """The smoothed path of a chain from its first frame to its last, those without a detection filled in."""
    numbers = range(chain.first, chain.last + 1)
    place_var = np.full(len(numbers), np.inf)
    velocity_var = place_var.copy()
    places, velocities = np.zeros((len(numbers), 2)), np.zeros((len(numbers), 2))
    for k, number in enumerate(numbers):
        if number in chain.rows:
            frame, row = frames[number], chain.rows[number]
            # A weak detection is also one that is worse in place.
            doubt = 1.0 / max(frame.best_Q[row], LEAST_SCORE)
            places[k], velocities[k] = frame.centers_Q3[row, :2], frame.velocities_Q2[row]
            place_var[k], velocity_var[k] = doubt * frame.place_var_Q[row], doubt * frame.velocity_var_Q[row]
    class_id = class_of(frames, chain)
    acceleration = KalmanTrackerConfig().of_classes("acceleration_std", np.array([class_id]))[0]
    times = np.array([frames[number].time_s for number in numbers])
    return smoothed_path(times, places, velocities, place_var, velocity_var, float(acceleration))


def class_of(frames: Sequence[SeenFrame], chain: Chain) -> int:
    """Index into `CLASSES`, by the sum of scores."""
    return int(np.sum([frames[number].scores_QK[row] for number, row in chain.rows.items()], axis=0).argmax())


def _without_gaps(frames: Sequence[SeenFrame], rows: Mapping[int, int]) -> list[Chain]:
    parts: list[Chain] = []
    for number in sorted(rows):
        if not parts or frames[number].time_s - frames[parts[-1].last].time_s > LONGEST_GAP_S:
            parts.append(Chain({}))
        parts[-1].rows[number] = rows[number]
    return parts


def _joined(frames: Sequence[SeenFrame], found: list[Chain]) -> list[Chain]:
    """Chains of which one begins where another was going are one; the most that can be joined at once are."""
    if len(found) < 2:
        return found
    groups = [CLASS_GROUPS[class_of(frames, chain)] for chain in found]
    ends, beginnings = ([_end(frames, chain, ahead) for chain in found] for ahead in (1, -1))
    starts = sorted((frames[chain.first].time_s, i) for i, chain in enumerate(found))
    size = len(found)
    distance = np.full((size, size), np.inf)
    for a, chain in enumerate(found):
        over_s = frames[chain.last].time_s
        first = bisect.bisect_right(starts, (over_s, size))
        last = bisect.bisect_right(starts, (over_s + LONGEST_GAP_S, size))
        for start_s, b in starts[first:last]:
            if groups[a] != groups[b]:
                continue
            # They meet halfway, each at its own velocity.
            gap_s = start_s - over_s
            (place_a, velocity_a), (place_b, velocity_b) = ends[a], beginnings[b]
            apart = place_a + 0.5 * gap_s * velocity_a - (place_b - 0.5 * gap_s * velocity_b)
            distance[a, b] = float(np.linalg.norm(apart)) / (CARRY_DISTANCE + CARRY_DRIFT * gap_s)
    follower = dict(_assigned(distance, distance < 1.0))
    joined: list[Chain] = []
    for start in sorted(set(range(size)) - set(follower.values())):
        rows = dict(found[start].rows)
        at = start
        while at in follower:
            at = follower[at]
            rows |= found[at].rows
        joined.append(Chain(rows))
    return joined


def _carry(frames: Sequence[SeenFrame], found: list[Chain]) -> None:
    """Lengthen chains, backwards and forwards, by detections that are nobody's; the longest choose first."""
    taken = {(number, row) for chain in found for number, row in chain.rows.items()}
    for chain in sorted(found, key=lambda c: (-len(c.rows), c.first, c.rows[c.first])):
        for ahead in (-1, 1):
            _carry_one(frames, chain, ahead, taken)


def _carry_one(frames: Sequence[SeenFrame], chain: Chain, ahead: int, taken: set[tuple[int, int]]) -> None:
    group = CLASS_GROUPS[class_of(frames, chain)]
    place, velocity = _end(frames, chain, ahead)
    at = last = chain.last if ahead > 0 else chain.first
    while 0 <= at + ahead < len(frames):
        at += ahead
        frame = frames[at]
        gone_s = frame.time_s - frames[last].time_s
        if abs(gone_s) > LONGEST_GAP_S:
            return
        expected = place + gone_s * velocity
        reach = CARRY_DISTANCE + CARRY_DRIFT * abs(gone_s)
        distance_Q = np.linalg.norm(frame.centers_Q3[:, :2] - expected, axis=1)
        free = [
            q
            for q in np.argsort(distance_Q, kind="stable").tolist()
            if distance_Q[q] < reach and frame.groups_Q[q] == group and (at, q) not in taken
        ]
        if not free:
            continue
        chain.rows[at] = free[0]
        taken.add((at, free[0]))
        place, velocity = _end(frames, chain, ahead)
        last = at


def _end(frames: Sequence[SeenFrame], chain: Chain, ahead: int) -> tuple[Array, Array]:
    """Place and velocity at the last instant of a chain, or, with `ahead` -1, at its first."""
    end = chain.last if ahead > 0 else chain.first
    near = {n: q for n, q in chain.rows.items() if abs(frames[n].time_s - frames[end].time_s) <= END_S}
    path = path_of(frames, Chain(near))
    k = -1 if ahead > 0 else 0
    return path.places_K2[k], path.velocities_K2[k]


def _assigned(cost: Array, allowed: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs (row, column): as many allowed ones as possible, and among these the least total cost."""
    if not allowed.any():
        return []
    # No sum of allowed costs reaches the price of one that is not.
    forbidden = (1.0 + cost[allowed].max()) * (1.0 + min(cost.shape))
    rows, columns = linear_sum_assignment(np.where(allowed, cost, forbidden))
    good = allowed[rows, columns]
    return list(zip(rows[good].tolist(), columns[good].tolist(), strict=True))
