"""What a replay was worth: tracks against a bag's labels, plans against what was driven.

Unlike the figures on clips these are of the whole stack: the memory is the track manager's own, and no label
reaches the network. Tracks are counted as CLEAR MOT does (Bernardin & Stiefelhagen 2008) and by identity
(IDF1, Ristani et al. 2016), both through `motmetrics`.

Legend: N tracks, L labels, S plan steps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoMotionLimits, EgoState
from e2e_perception.core.results import FrameResult
from e2e_perception.core.tracks import Tracks

MATCH_DISTANCE = 2.0  # [m] between centres, as in nuScenes (Caesar et al. 2020)
MAX_LABEL_OFFSET_NS = 50_000_000
HORIZONS_S = (1.0, 2.0, 3.0)
# Where a label has to be to count: the bird's-eye view of the shipped sizes ends there.
AREA = (-22.0, 70.0, -22.0, 22.0)  # [m] x from, to, y from, to


def tracking_figures(
    results: Sequence[FrameResult], labels: Mapping[int, Boxes]
) -> dict[str, float | int] | None:
    """Compare confirmed tracks with labels.

    Args:
        results: Frames in order of their stamps.
        labels: By stamp [ns], base frame at that stamp; `scores_N` is 0 for an object that no sensor sees at
            that instant. Those count neither as missed nor, where a track is on them, as false.
    Returns:
        `mota`, `idf1`, `id_switches`, `misses`, `false_tracks`, `labels`, `position_error_m`,
        `velocity_error_mps`, `frames`; None if there is nothing to compare, or no motmetrics.
    """
    if not labels or importlib.util.find_spec("motmetrics") is None:
        return None
    import motmetrics

    stamps = np.array(sorted(labels))
    counts = motmetrics.MOTAccumulator(auto_id=True)
    compared: list[tuple[Boxes, Boxes, NDArray[np.float64]]] = []
    for result in results:
        if result.tracks is None:
            continue
        nearest = int(stamps[np.abs(stamps - result.stamp_ns).argmin()])
        if abs(nearest - result.stamp_ns) > MAX_LABEL_OFFSET_NS:
            continue
        truth, tracks = _counted(labels[nearest], result.tracks)
        distance_LN = _distances(truth, tracks)
        distance_LN[distance_LN > MATCH_DISTANCE] = np.nan
        compared.append((truth, tracks, distance_LN))
        counts.update(truth.ids_N.tolist(), tracks.ids_N.tolist(), distance_LN)
    if not compared:
        return None
    position_errors, velocity_errors = [], []
    events = counts.mot_events
    for (frame, _), event in events[events["Type"].isin(["MATCH", "SWITCH"])].iterrows():
        truth, tracks, distance_LN = compared[frame]
        i = int(np.flatnonzero(truth.ids_N == event["OId"])[0])
        j = int(np.flatnonzero(tracks.ids_N == event["HId"])[0])
        position_errors.append(float(distance_LN[i, j]))
        velocity_errors.append(float(np.linalg.norm(truth.velocities_N2[i] - tracks.velocities_N2[j])))
    names = ["mota", "idf1", "num_switches", "num_misses", "num_false_positives", "num_objects"]
    row = motmetrics.metrics.create().compute(counts, metrics=names, name="all").iloc[0]
    some = row["num_objects"] > 0  # without labels there is no rate
    return {
        "mota": round(float(row["mota"]), 4) if some else float("nan"),
        "idf1": round(float(row["idf1"]), 4) if some else float("nan"),
        "id_switches": int(row["num_switches"]),
        "misses": int(row["num_misses"]),
        "false_tracks": int(row["num_false_positives"]),
        "labels": int(row["num_objects"]),
        "position_error_m": round(float(np.mean(position_errors)), 3) if position_errors else float("nan"),
        "velocity_error_mps": round(float(np.mean(velocity_errors)), 3) if velocity_errors else float("nan"),
        "frames": len(compared),
    }


def _counted(labels: Boxes, tracks: Tracks) -> tuple[Boxes, Boxes]:
    """Labels that count, and confirmed tracks that are not on one that does not."""
    x, y = labels.centers_N3[:, 0], labels.centers_N3[:, 1]
    inside = (x > AREA[0]) & (x < AREA[1]) & (y > AREA[2]) & (y < AREA[3])
    counts = inside & (labels.scores_N > 0.0)
    confirmed = tracks.boxes.select(np.flatnonzero(tracks.confirmed_N))
    if counts.all() or len(confirmed) == 0:
        return labels.select(np.flatnonzero(counts)), confirmed
    to_all_LN = _distances(labels, confirmed)
    nearest_N = to_all_LN.argmin(0)
    excused = (to_all_LN.min(0) <= MATCH_DISTANCE) & ~counts[nearest_N]
    return labels.select(np.flatnonzero(counts)), confirmed.select(np.flatnonzero(~excused))


def _distances(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    gaps = first.centers_N3[:, None, :2].astype(np.float64) - second.centers_N3[None, :, :2]
    return np.asarray(np.linalg.norm(gaps, axis=-1))


def plan_figures(
    results: Sequence[FrameResult], odometry: Sequence[EgoState]
) -> dict[str, float | int] | None:
    """Compare plans with what was driven afterwards; beside it, going on at constant speed and yaw rate.

    Args:
        results: Frames; the supervisor's stops are left out.
        odometry: All of the recording.
    Returns:
        `plan_l2_1s_m`, … and `constant_velocity_l2_1s_m`, … at 1, 2 and 3 s (at the horizon, not averaged up
        to it), and `plans`; None if nothing can be compared.
    """
    driven = EgoMotionBuffer(EgoMotionLimits(horizon_ns=10**15))
    for state in odometry:
        driven.add(state)
    errors: dict[str, list[float]] = {}
    num_plans = 0
    for result in results:
        plan, start = result.plan, driven.at(result.stamp_ns)
        if plan is None or plan.candidate < 0 or start is None:
            continue
        num_plans += 1
        for horizon in HORIZONS_S:
            k = int(np.abs(plan.times_P - horizon).argmin())
            end = driven.at(result.stamp_ns + round(float(plan.times_P[k]) * 1e9))
            if end is None:
                continue
            truth = (start.odom_from_base.inverse() @ end.odom_from_base).translation[:2]
            turn, length = start.yaw_rate * horizon / 2.0, start.speed * horizon
            steady = length * np.array([np.cos(turn), np.sin(turn)])
            for name, point in (("plan", plan.points_P2[k]), ("constant_velocity", steady)):
                errors.setdefault(f"{name}_l2_{horizon:.0f}s_m", []).append(
                    float(np.linalg.norm(point - truth))
                )
    if not errors:
        return None
    return {**{name: round(float(np.mean(e)), 3) for name, e in errors.items()}, "plans": num_plans}
