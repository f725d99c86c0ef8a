"""Labels without people: what the network saw of a drive, smoothed with hindsight and held against the lidar.

Each object gets one class, one size and one identity, a path that also what came later has shaped, a
heading that never turns round, and a confidence. That is a heuristic: the chance, on simulated drives, that
an object is really there, by a logistic regression over how sure the network was, how often it saw it, and
how much of it returned light. The lidar adds little there, because the network has looked at it already.

Legend: K instants of a track.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.frames import wrap_angle
from e2e_perception.runtime.lidar_evidence import covered_shares
from e2e_perception.runtime.offline_tracks import Chain, SeenFrame, chains, class_of, path_of
from e2e_perception.runtime.track_smoothing import near_sums, resolved_headings, weighted_median

Array = NDArray[np.float64]

# Fitted on 2808 labels of eight simulated drives, one of each kind, by cross-validation over drives.
BIAS = -5.4
PER_SCORE_LOGIT = 1.6
PER_LOG_SIGHTING = 1.7
PER_LIDAR = 0.8
FULL_SHARE = 0.3  # of a box's cells; only the sides that face the lidar return light
USUAL_LIDAR = 0.8  # assumed where no lidar looked
SCORE_RANGE = (0.02, 0.98)
FADE_S = 1.0  # time constant of the confidence away from the nearest detection
DOUBLE_REACH = (0.5, 1.0)  # [m] between centres of one object, half its length within these
LEAST_CONFIDENCE = 1e-3  # of a label that is given at all; 0 would say that no sensor saw it


@dataclass(frozen=True)
class Evidence:
    """What the lidar saw of one frame, as bits.

    Attributes:
        bits: Of `lidar_evidence.occupied`, packed; None: no lidar looked.
        grid: Of the cells.
    """

    bits: NDArray[np.uint8] | None
    grid: BevGrid

    @staticmethod
    def of(occupied_YX: NDArray[np.bool_] | None, grid: BevGrid) -> Evidence:
        """Pack what is kept for a whole drive."""
        return Evidence(None if occupied_YX is None else np.packbits(occupied_YX), grid)

    def occupied(self) -> NDArray[np.bool_] | None:
        """(Y, X) cells."""
        if self.bits is None:
            return None
        num_y, num_x = self.grid.shape
        return np.unpackbits(self.bits, count=num_y * num_x).reshape(num_y, num_x).astype(np.bool_)


@dataclass(frozen=True)
class AutoTrack:
    """One object through K consecutive frames, odom frame.

    Where a surer track is in the same place it has no label, since that is one object seen as two.

    Attributes:
        first: Number of its first frame.
        class_id: Index into `CLASSES`.
        size: Length, width, height [m].
        centers_K3, yaws_K, velocities_K2: [m], [rad], [m/s].
        confidences_K: In (0, 1].
        seen_K: Whether there was a detection; elsewhere the path is filled in.
        alone_K: Whether it is a label, because no surer track is in the same place.
    """

    first: int
    class_id: int
    size: tuple[float, float, float]
    centers_K3: Array
    yaws_K: Array
    velocities_K2: Array
    confidences_K: Array
    seen_K: NDArray[np.bool_]
    alone_K: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.yaws_K)


@dataclass(frozen=True)
class AutoLabels:
    """Of a stretch of frames.

    Attributes:
        tracks: By the time of their first frame; the position is the identity.
        too_short, too_doubtful, doubled: Tracks that were left out; the last are surer ones seen again.
    """

    tracks: tuple[AutoTrack, ...]
    too_short: int
    too_doubtful: int
    doubled: int


def auto_labels(
    frames: Sequence[SeenFrame],
    evidence: Sequence[Evidence],
    *,
    least_sightings: int,
    least_confidence: float,
) -> AutoLabels:
    """Label a stretch of frames.

    Args:
        frames: Consecutive, one timeline.
        evidence: Of the same frames.
        least_sightings: Detections below which a track is left out.
        least_confidence: Below which a track is left out, by the highest that it reaches.
    """
    kept: list[AutoTrack] = []
    too_short = too_doubtful = 0
    for chain in chains(frames):
        if len(chain.rows) < least_sightings:
            too_short += 1
            continue
        track = _track(frames, evidence, chain)
        if track.confidences_K.max() < least_confidence:
            too_doubtful += 1
        else:
            kept.append(track)
    alone = _without_doubles(kept)
    # What remains of a double is as good as a track of that length.
    single = tuple(t for t in alone if int((t.seen_K & t.alone_K).sum()) >= least_sightings)
    return AutoLabels(single, too_short, too_doubtful, len(alone) - len(single))


def confidence(mean_score: float, sightings: int, lidar: float) -> float:
    """Chance that a track is of something that is there; a heuristic, see the top of the file.

    Args:
        mean_score: Of its detections.
        sightings: How many there are.
        lidar: 0 to 1; 1: as much of it returned light as can be expected of anything.
    """
    score = float(np.clip(mean_score, *SCORE_RANGE))
    logit = (
        BIAS
        + PER_SCORE_LOGIT * np.log(score / (1.0 - score))
        + PER_LOG_SIGHTING * np.log(sightings)
        + PER_LIDAR * lidar
    )
    return float(1.0 / (1.0 + np.exp(-logit)))


def _without_doubles(tracks: Sequence[AutoTrack]) -> list[AutoTrack]:
    """The same tracks; where two are nearer than two objects can be, the less sure one is no label."""
    masks = [track.alone_K.copy() for track in tracks]
    surest = sorted(
        range(len(tracks)), key=lambda i: (-float(tracks[i].confidences_K.max()), -len(tracks[i]), i)
    )
    present: defaultdict[int, list[int]] = defaultdict(list)
    for i in surest:
        for number in range(tracks[i].first, tracks[i].first + len(tracks[i])):
            present[number].append(i)
    for number, there in present.items():
        places: list[Array] = []
        reaches: list[float] = []
        for i in there:
            k = number - tracks[i].first
            place = tracks[i].centers_K3[k, :2]
            reach = float(np.clip(0.5 * tracks[i].size[0], *DOUBLE_REACH))
            gaps = [float(np.linalg.norm(place - other)) for other in places]
            if any(gap < min(reach, other) for gap, other in zip(gaps, reaches, strict=True)):
                masks[i][k] = False
            else:
                places.append(place)
                reaches.append(reach)
    return [replace(track, alone_K=mask) for track, mask in zip(tracks, masks, strict=True)]


def _track(frames: Sequence[SeenFrame], evidence: Sequence[Evidence], chain: Chain) -> AutoTrack:
    numbers = range(chain.first, chain.last + 1)
    seen_K = np.array([number in chain.rows for number in numbers])
    times_K = np.array([frames[number].time_s for number in numbers])
    sightings = [(frames[number], row) for number, row in sorted(chain.rows.items())]
    scores = np.array([frame.best_Q[row] for frame, row in sightings])
    weights_K, heights_K, yaws_K = np.zeros(len(numbers)), np.zeros(len(numbers)), np.zeros(len(numbers))
    weights_K[seen_K] = scores
    heights_K[seen_K] = [frame.centers_Q3[row, 2] for frame, row in sightings]
    yaws_K[seen_K] = [frame.yaws_Q[row] for frame, row in sightings]
    sizes = np.stack([frame.sizes_Q3[row] for frame, row in sightings])
    length, width, height = (weighted_median(sizes[:, axis], scores) for axis in range(3))
    path = path_of(frames, chain)
    headings_K = resolved_headings(times_K, yaws_K, weights_K, path)
    # A gap is at most a second long, so that something is near everywhere.
    z_K = near_sums(times_K, weights_K * heights_K) / near_sums(times_K, weights_K)
    lidar = _lidar(frames, evidence, numbers, path.places_K2, headings_K, (length, width))
    seen_times = times_K[seen_K]
    away_K = np.abs(seen_times[np.searchsorted(0.5 * (seen_times[1:] + seen_times[:-1]), times_K)] - times_K)
    sure = confidence(float(scores.mean()), len(scores), lidar)
    return AutoTrack(
        first=chain.first,
        class_id=class_of(frames, chain),
        size=(length, width, height),
        centers_K3=np.concatenate([path.places_K2, z_K[:, None]], axis=1),
        yaws_K=headings_K,
        velocities_K2=path.velocities_K2,
        confidences_K=np.clip(sure * np.exp(-away_K / FADE_S), LEAST_CONFIDENCE, 1.0),
        seen_K=seen_K,
        alone_K=np.ones(len(numbers), np.bool_),
    )


def _lidar(
    frames: Sequence[SeenFrame],
    evidence: Sequence[Evidence],
    numbers: Sequence[int],
    places_K2: Array,
    yaws_K: Array,
    size: tuple[float, float],
) -> float:
    """How much of a track returned light, 0 to 1, mean over the frames in which a lidar looked there."""
    shares = []
    for k, number in enumerate(numbers):
        occupied_YX = evidence[number].occupied()
        if occupied_YX is None:
            continue
        base_from_odom = frames[number].odom_from_base.inverse()
        shares.append(
            covered_shares(
                base_from_odom.apply(places_K2[k : k + 1]),
                np.array([size]),
                wrap_angle(yaws_K[k : k + 1] + base_from_odom.yaw),
                occupied_YX,
                evidence[number].grid,
            )[0]
        )
    known = np.array(shares)[np.isfinite(shares)] if shares else np.zeros(0)
    return float(min(known.mean() / FULL_SHARE, 1.0)) if len(known) else USUAL_LIDAR
