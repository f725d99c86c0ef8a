"""Detection as nuScenes measures it (Caesar et al. 2020), on what the stack reports.

The stack publishes tracks, not detections: every track of a frame, confirmed or not, is taken as a detection
with the track's score. What is measured is thus what a user of the stack sees.

Average precision is taken at four distances between centres, not at overlaps; matching is greedy by score,
class by class. As in the nuScenes devkit, precision is read at 100 recalls; recalls up to 10 % and the lowest
10 % of precision count nothing. There is no attribute here, hence no attribute error: `score` weighs mean
average precision and the four remaining errors as the nuScenes detection score does, but is not that score.

Legend: L objects, N detections, D distances, R recalls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.frames import counted, distances, reported
from e2e_perception.evaluation.on_bag import MATCH_DISTANCE

Array = NDArray[np.float64]

DISTANCES = (0.5, 1.0, 2.0, 4.0)  # [m]
ERROR_DISTANCE = 2.0  # [m] up to which errors of true positives are taken
MIN_RECALL, MIN_PRECISION = 0.1, 0.1
MAP_WEIGHT = 5.0  # in the score, against one for each error
ERRORS = ("ate_m", "ase", "aoe_rad", "ave_mps")
RECALLS_R = np.linspace(0.0, 1.0, 101)
_FIRST = round(100 * MIN_RECALL) + 1


class DetectionMetrics:
    """Accumulates detections; `figures` and `curves` say what they are worth."""

    def __init__(self) -> None:
        self._num_labels = np.zeros(len(CLASSES), np.int64)
        # By class and distance: (score, hit) of each detection; by class: (score, *ERRORS) of each hit.
        self._scored: list[list[list[Array]]] = [[[] for _ in DISTANCES] for _ in CLASSES]
        self._errors: list[list[Array]] = [[] for _ in CLASSES]

    def add(self, result: FrameResult, truth: TruthFrame) -> Array:
        """Match one frame.

        Args:
            result: A frame without tracks found nothing.
            truth: Of the same instant.
        Returns:
            (K, 2) score of each detection that counts, and whether it is a hit (1 or 0) at `ERROR_DISTANCE`.
        """
        boxes, counts = reported(result), counted(truth)
        # Not to depend on the order in which tracks are listed.
        order = np.lexsort((boxes.centers_N3[:, 1], boxes.centers_N3[:, 0], -boxes.scores_N))
        boxes = boxes.select(order)
        ignored = truth.boxes.select(np.flatnonzero(~counts))
        to_ignored_N = distances(boxes, ignored).min(axis=1, initial=np.inf)
        scored: list[Array] = [np.zeros((0, 2))]
        for c in range(len(CLASSES)):
            rows = np.flatnonzero(boxes.class_ids_N == c)
            found, excuse = boxes.select(rows), to_ignored_N[rows]
            labels = truth.boxes.select(np.flatnonzero(counts & (truth.boxes.class_ids_N == c)))
            self._num_labels[c] += len(labels)
            distance_NL = distances(found, labels)
            for d, reach in enumerate(DISTANCES):
                label_N = greedy(distance_NL, reach)
                kept = (label_N >= 0) | (excuse >= max(reach, MATCH_DISTANCE))
                part = np.stack([found.scores_N[kept], label_N[kept] >= 0], axis=1).astype(np.float64)
                self._scored[c][d].append(part)
                if reach == ERROR_DISTANCE:
                    scored.append(part)
                    hits = np.flatnonzero(label_N >= 0)
                    errors = box_errors(found.select(hits), labels.select(label_N[hits]))
                    self._errors[c].append(np.column_stack([found.scores_N[hits], errors]))
        return np.concatenate(scored)

    def merge(self, other: DetectionMetrics) -> None:
        """Add everything that another one has accumulated."""
        self._num_labels += other._num_labels
        for mine, theirs in zip(self._scored, other._scored, strict=True):
            for here, there in zip(mine, theirs, strict=True):
                here.extend(there)
        for errors, more in zip(self._errors, other._errors, strict=True):
            errors.extend(more)

    def figures(self) -> dict[str, float]:
        """By name; NaN for what cannot be measured. Means over classes leave out those without an object."""
        ap_CD = np.full((len(CLASSES), len(DISTANCES)), np.nan)
        error_CE = np.full((len(CLASSES), len(ERRORS)), np.nan)
        there = np.flatnonzero(self._num_labels)
        for c in there:
            for d in range(len(DISTANCES)):
                ap_CD[c, d] = average_precision(self._precision(c, d))
            error_CE[c] = self._mean_errors(c)
        mean_ap = _mean(ap_CD)
        # As in the devkit, an error is at worst 1 in the score, also where there is nothing to measure it by.
        worst_E = (
            np.minimum(np.nan_to_num(error_CE[there], nan=1.0).mean(axis=0), 1.0) if len(there) else None
        )
        named = {"map": mean_ap}
        named |= {f"ap_at_{reach:g}m": _mean(ap_CD[:, d]) for d, reach in enumerate(DISTANCES)}
        named |= {f"{name}/ap": _mean(ap_CD[c]) for c, name in enumerate(CLASSES)}
        named |= {name: _mean(error_CE[:, e]) for e, name in enumerate(ERRORS)}
        named["score"] = (
            math.nan
            if worst_E is None
            else float((MAP_WEIGHT * mean_ap + (1.0 - worst_E).sum()) / (MAP_WEIGHT + len(ERRORS)))
        )
        return {f"detection/{name}": value for name, value in named.items()}

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """Precision over recall at `ERROR_DISTANCE`, by class that has objects."""
        d = DISTANCES.index(ERROR_DISTANCE)
        return {
            f"{CLASSES[c]} {ERROR_DISTANCE:g} m": {
                "recall": RECALLS_R.round(2).tolist(),
                "precision": self._precision(c, d).round(4).tolist(),
            }
            for c in np.flatnonzero(self._num_labels).tolist()
        }

    def _precision(self, c: int, d: int) -> Array:
        """(R,) at `RECALLS_R`; 0 beyond the highest recall that is reached."""
        scored = _sorted(self._scored[c][d], 2)
        hits = np.cumsum(scored[:, 1])
        if len(hits) == 0 or hits[-1] == 0.0:
            return np.zeros(len(RECALLS_R))
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / self._num_labels[c]
        return np.asarray(np.interp(RECALLS_R, recall, precision, right=0.0))

    def _mean_errors(self, c: int) -> Array:
        """(4,) mean error up to each recall, averaged over the recalls reached; NaN if that is below 10 %."""
        found = _sorted(self._errors[c], 1 + len(ERRORS))
        recall = np.arange(1, len(found) + 1) / self._num_labels[c]
        reached = RECALLS_R[_FIRST:]
        reached = reached[reached <= recall.max(initial=0.0) + 1e-9]
        if len(reached) == 0:
            return np.full(len(ERRORS), np.nan)
        running = np.cumsum(found[:, 1:], axis=0) / np.arange(1, len(found) + 1)[:, None]
        return np.array([np.interp(reached, recall, column).mean() for column in running.T])


def greedy(distance_NL: Array, reach: float) -> NDArray[np.int64]:
    """Let detections choose in order: the nearest object that is free and nearer than `reach` [m].

    Args:
        distance_NL: (N, L) [m], rows in order of choice.
        reach: [m]
    Returns:
        (N,) its column, or -1.
    """
    free = np.where(distance_NL < reach, distance_NL, np.inf)
    chosen = np.full(len(free), -1, np.int64)
    if free.shape[1] == 0:
        return chosen
    for n in range(len(free)):
        nearest = int(free[n].argmin())
        if np.isfinite(free[n, nearest]):
            chosen[n] = nearest
            free[:, nearest] = np.inf
    return chosen


def average_precision(precision_R: Array) -> float:
    """In [0, 1], from precision at `RECALLS_R`; recall and precision up to 10 % count nothing."""
    above = np.maximum(precision_R[_FIRST:] - MIN_PRECISION, 0.0)
    return float(above.mean() / (1.0 - MIN_PRECISION))


def box_errors(found: Boxes, truth: Boxes) -> Array:
    """(K, 4) errors in the order of `ERRORS`: centre [m], 1 - IoU if aligned, yaw [rad], velocity [m/s]."""
    place = np.linalg.norm(found.centers_N3[:, :2].astype(np.float64) - truth.centers_N3[:, :2], axis=1)
    a, b = found.sizes_N3.astype(np.float64), truth.sizes_N3.astype(np.float64)
    common = np.minimum(a, b).prod(axis=1)
    scale = 1.0 - common / (a.prod(axis=1) + b.prod(axis=1) - common)
    turn = np.abs(wrap_angle(found.yaws_N.astype(np.float64) - truth.yaws_N))
    speed = np.linalg.norm(found.velocities_N2.astype(np.float64) - truth.velocities_N2, axis=1)
    return np.stack([place, scale, turn, speed], axis=1)


def _sorted(parts: Sequence[Array], columns: int) -> Array:
    """By falling score (first column); among equals what comes first does not depend on the frames' order."""
    rows = np.concatenate([np.zeros((0, columns)), *parts])
    keys = [rows[:, k] for k in range(columns - 1, 0, -1)]
    return np.asarray(rows[np.lexsort((*keys, -rows[:, 0]))])


def _mean(values: Array) -> float:
    """Over what is known; NaN if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
