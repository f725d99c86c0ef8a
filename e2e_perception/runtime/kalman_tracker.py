"""Tracking without learning: Kalman filters, overlap or distance, and the Hungarian method.

A tracker of the kind of AB3DMOT (Weng et al., IROS 2020), which follows SORT (Bewley et al. 2016): the
baseline that the joint network has to beat, and a tracker for the detections of any other detector. It
differs from the paper where that only helps: time is an argument; a pair is matched only if it may be, so
that no forbidden pair displaces an allowed one; a track turns round when most detections say so, not at the
first.

Legend: N tracks, M detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.config import Section, tunable
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import wrap_angle
from e2e_perception.runtime.box_iou import iou_3d, iou_bev
from e2e_perception.runtime.kalman_filter import POSITION, BoxFilter, MeasurementNoise

Array = NDArray[np.float64]

MOST_VOTES = 5  # that agreeing headings can collect; a track turns round after one opposite heading more


class ClassTracking(Section):
    """How objects of one class are followed."""

    min_iou: float = tunable(0.01, "Least IoU of a match, with metric `iou_3d` or `iou_bev`.", ge=0.0, le=1)
    max_distance: float = tunable(
        4.0, "Farthest match on the ground, with metric `distance`.", unit="m", ge=0.1, le=50
    )
    min_hits: int = tunable(3, "Matches until a track is confirmed.", ge=1, le=20)
    max_age: int = tunable(3, "Frames in a row that a track may go unseen.", ge=0, le=100)
    speed_std: float = tunable(
        12.0,
        "How fast a new track may be, per axis; it starts at rest.",
        unit="m/s",
        ge=0.01,
        le=100,
    )
    acceleration_std: float = tunable(
        3.0, "How hard its velocity is expected to change, per axis.", unit="m/s^2", ge=0.01, le=30
    )


class KalmanTrackerConfig(Section):
    """A Kalman tracker; `simulation/classical.py` says how the defaults were found."""

    metric: Literal["iou_3d", "iou_bev", "distance"] = tunable(
        "distance", "What tells how well a detection fits a track."
    )
    keep_score: float = tunable(
        -1000.0,
        "Score at which a detection may continue a track; the scale is the detector's.",
        ge=-1000,
        le=1000,
    )
    birth_score: float = tunable(-1000.0, "Score at which a detection may start a track.", ge=-1000, le=1000)
    position_std: float = tunable(0.35, "Error of a detected centre, per axis.", unit="m", ge=0.001, le=10)
    yaw_std: float = tunable(0.2, "Error of a detected heading.", unit="rad", ge=0.001, le=3)
    size_std: float = tunable(0.5, "Error of a detected size, each way.", unit="m", ge=0.001, le=10)
    yaw_rate_std: float = tunable(0.5, "How fast a heading may turn.", unit="rad/s", ge=0.001, le=10)
    car: ClassTracking = Field(default_factory=ClassTracking)
    truck: ClassTracking = Field(default_factory=ClassTracking)
    pedestrian: ClassTracking = Field(
        default_factory=lambda: ClassTracking(max_distance=1.5, speed_std=1.5, acceleration_std=1.0)
    )
    cyclist: ClassTracking = Field(
        default_factory=lambda: ClassTracking(max_distance=2.0, speed_std=4.0, acceleration_std=1.5)
    )
    obstacle: ClassTracking = Field(
        default_factory=lambda: ClassTracking(max_distance=1.5, speed_std=0.3, acceleration_std=0.2)
    )

    @property
    def noise(self) -> MeasurementNoise:
        """Of a detection."""
        return MeasurementNoise(self.position_std, self.yaw_std, self.size_std)

    def of_classes(self, name: str, class_ids_N: NDArray[np.int64]) -> Array:
        """(N,) one setting of `ClassTracking` for each object."""
        return np.array([float(getattr(getattr(self, c), name)) for c in CLASSES])[class_ids_N]


@dataclass(frozen=True)
class KalmanTracks:
    """All living tracks of one frame, by rising identity, in the frame of the detections.

    Attributes:
        boxes: Filtered; velocities are the filter's, scores those of the last detection.
        hits_N, ages_N, unseen_N: Matches; frames since birth; frames since the last match, 0: seen now.
        detections_N: Row of this frame's detection, or -1.
        confirmed_N: Seen often enough, or as often as the first frames of a sequence allow.
        position_std_N: Standard deviation of the centre on the ground, per axis [m].
    """

    boxes: Boxes
    hits_N: NDArray[np.int64]
    ages_N: NDArray[np.int64]
    unseen_N: NDArray[np.int64]
    detections_N: NDArray[np.int64]
    confirmed_N: NDArray[np.bool_]
    position_std_N: Array

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class _Lives:
    """What is remembered of N tracks beside their filters; `votes` for their heading, see `MOST_VOTES`."""

    ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    hits: NDArray[np.int64]
    ages: NDArray[np.int64]
    unseen: NDArray[np.int64]
    detections: NDArray[np.int64]
    votes: NDArray[np.int64]

    @staticmethod
    def born(detections: Boxes, rows: NDArray[np.int64], first_id: int) -> _Lives:
        """Tracks of detections that stand at `rows` of what the caller gave."""
        zeros = np.zeros(len(rows), np.int64)
        ids = first_id + np.arange(len(rows), dtype=np.int64)
        seen = detections.class_ids_N, detections.scores_N
        return _Lives(ids, *seen, zeros + 1, zeros, zeros, rows, zeros + 1)

    def select(self, rows: NDArray[np.int64]) -> _Lives:
        return _Lives(*(getattr(self, f.name)[rows] for f in fields(self)))

    def joined(self, other: _Lives) -> _Lives:
        return _Lives(
            *(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self))
        )


class KalmanTracker:
    """Follows boxes in a frame that does not move, such as odom: the caller takes them there."""

    def __init__(
        self, config: KalmanTrackerConfig | None = None, groups: Sequence[int] | None = None
    ) -> None:
        """Start with nothing.

        Args:
            config: All settings.
            groups: A number per class of `CLASSES`; detections continue tracks of the same number. Default:
                of their own class alone.
        """
        self.config = config or KalmanTrackerConfig()
        self._groups_K = np.arange(len(CLASSES)) if groups is None else np.asarray(groups)
        if len(self._groups_K) != len(CLASSES):
            raise InputError(f"tracker got {len(self._groups_K)} groups, expected one per class {CLASSES}")
        self._next_id = 0
        self.forget()

    def forget(self) -> None:
        """Forget every track, as at the start of a sequence; identities are never given again."""
        nothing = Boxes.empty()
        self._filter = BoxFilter.started(nothing, self.config.noise, np.zeros(0))
        self._lives = _Lives.born(nothing, np.zeros(0, np.int64), 0)
        self._num_frames = 0

    def update(self, detections: Boxes, dt: float) -> KalmanTracks:
        """Take in the detections of one frame; call it for frames without any, too.

        Args:
            detections: M of them; velocities and identities are not looked at.
            dt: Since the last frame [s]; of the first frame it means nothing.
        Raises:
            InputError: If `dt` is not positive or a detection is not finite; nothing is changed then.
        """
        _check(detections, dt)
        config = self.config
        # Best first and then by place, so that nothing depends on the order in which they came.
        x, y = detections.centers_N3[:, 0], detections.centers_N3[:, 1]
        rows_M = np.lexsort((y, x, -detections.scores_N))
        rows_M = rows_M[detections.scores_N[rows_M] >= config.keep_score]
        seen = detections.select(rows_M)

        lives = self._lives
        predicted = self._filter.predicted(
            dt, config.of_classes("acceleration_std", lives.class_ids), config.yaw_rate_std
        )
        tracks_K, matched_K = self._associate(predicted, lives, seen)
        continued_filter, continued = self._continued(predicted, lives, tracks_K, seen, matched_K, rows_M)
        lost = np.setdiff1d(np.arange(len(lives.ids)), tracks_K)
        lost = lost[lives.unseen[lost] < config.of_classes("max_age", lives.class_ids[lost])]
        coasting = lives.select(lost)
        coasting = replace(coasting, unseen=coasting.unseen + 1, detections=np.full(len(lost), -1))
        new = np.setdiff1d(np.flatnonzero(seen.scores_N >= config.birth_score), matched_K)
        born = seen.select(new)
        speeds = config.of_classes("speed_std", born.class_ids_N)

        filters = continued_filter.joined(predicted.select(lost))
        older = continued.joined(coasting)
        older = replace(older, ages=older.ages + 1)
        lives = older.joined(_Lives.born(born, rows_M[new], self._next_id))
        filters = filters.joined(BoxFilter.started(born, config.noise, speeds))
        order = np.argsort(lives.ids)
        self._lives, self._filter = lives.select(order), filters.select(order)
        self._next_id += len(new)
        self._num_frames += 1
        return self.tracks

    def _associate(
        self, predicted: BoxFilter, lives: _Lives, seen: Boxes
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the tracks and of the detections that belong together, (K,) each."""
        config = self.config
        before = predicted.boxes(lives.class_ids, lives.scores, lives.ids)
        if config.metric == "distance":
            reach_N1 = config.of_classes("max_distance", lives.class_ids)[:, None]
            apart = before.centers_N3[:, None, :2] - seen.centers_N3[None, :, :2]
            gain_NM = 1.0 - np.hypot(apart[..., 0], apart[..., 1]) / reach_N1
            allowed_NM = gain_NM >= 0.0
        else:
            gain_NM = iou_3d(before, seen) if config.metric == "iou_3d" else iou_bev(before, seen)
            least_N1 = config.of_classes("min_iou", lives.class_ids)[:, None]
            allowed_NM = (gain_NM > 0.0) & (gain_NM >= least_N1)
        same_NM = self._groups_K[lives.class_ids][:, None] == self._groups_K[seen.class_ids_N][None]
        allowed_NM = allowed_NM & same_NM
        # No match gains nothing: two poor matches must not outweigh a good one for being two.
        tracks, found = linear_sum_assignment(np.where(allowed_NM, gain_NM, 0.0), maximize=True)
        real = allowed_NM[tracks, found]
        return tracks[real], found[real]

    def _continued(
        self,
        predicted: BoxFilter,
        lives: _Lives,
        tracks_K: NDArray[np.int64],
        seen: Boxes,
        matched_K: NDArray[np.int64],
        rows_M: NDArray[np.int64],
    ) -> tuple[BoxFilter, _Lives]:
        """Tracks that were seen, each after its own detection."""
        before, found = lives.select(tracks_K), seen.select(matched_K)
        means = predicted.select(tracks_K)
        yaws = means.boxes(before.class_ids, before.scores, before.ids).yaws_N
        # Detectors confuse front and back. A detection that faces the other way is turned round, unless
        # it is the track that has most detections against it.
        opposite = np.abs(wrap_angle(found.yaws_N - yaws)) > np.pi / 2.0
        votes = np.minimum(before.votes + np.where(opposite, -1, 1), MOST_VOTES)
        turns = votes < 0
        turned_yaws = wrap_angle(found.yaws_N + np.pi * (opposite & ~turns)).astype(np.float32)
        filters = means.turned_round(turns).corrected(replace(found, yaws_N=turned_yaws), self.config.noise)
        return filters, replace(
            before,
            class_ids=found.class_ids_N,
            scores=found.scores_N,
            hits=before.hits + 1,
            unseen=np.zeros_like(before.unseen),
            detections=rows_M[matched_K],
            votes=np.where(turns, 1, votes),
        )

    @property
    def tracks(self) -> KalmanTracks:
        """As the last `update` left them."""
        lives = self._lives
        wanted_N = np.minimum(self.config.of_classes("min_hits", lives.class_ids), self._num_frames)
        variances = np.diagonal(self._filter.covariances_NSS, axis1=1, axis2=2)[:, POSITION]
        return KalmanTracks(
            boxes=self._filter.boxes(lives.class_ids, lives.scores, lives.ids),
            hits_N=lives.hits,
            ages_N=lives.ages,
            unseen_N=lives.unseen,
            detections_N=lives.detections,
            confirmed_N=lives.hits >= wanted_N,
            position_std_N=np.sqrt(variances[:, 0]),
        )


def _check(detections: Boxes, dt: float) -> None:
    if not (np.isfinite(dt) and dt > 0.0):
        raise InputError(f"tracker: time step is {dt} s, expected more than 0")
    for name in ("centers_N3", "sizes_N3", "yaws_N", "scores_N"):
        finite = np.isfinite(getattr(detections, name))
        if not finite.all():
            row = int(np.argwhere(~finite)[0, 0])
            raise InputError(f"tracker: {name} of detection {row} is not finite; leave such detections out")
    ids = detections.class_ids_N
    if not ((ids >= 0) & (ids < len(CLASSES))).all():
        raise InputError(f"tracker: class ids are {np.unique(ids).tolist()}, expected rows of {CLASSES}")
