"""Back from recorded output messages to results, so that a live run is judged by what it published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.errors import InputError
from e2e_perception.core.message_inputs import stamp_ns
from e2e_perception.core.messages import HEALTH_TYPE, PLAN_TYPE, TRACKS_TYPE
from e2e_perception.core.results import FrameResult, Health, SafetyState, SensorReport
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan


def results_from_messages(messages: Iterable[tuple[str, Any]]) -> list[FrameResult]:
    """Join tracks, plans and health of the same stamp.

    Args:
        messages: (type name, message) in any order.
    Returns:
        One result for each stamp that has a Health message, in order of stamps. A health message that was
        sent because no frame came has neither tracks nor candidates.
    Raises:
        InputError: If a class in the recording is unknown.
    """
    tracks: dict[int, Tracks] = {}
    plans: dict[int, Plan] = {}
    healths: dict[int, Health] = {}
    for kind, message in messages:
        if kind == TRACKS_TYPE:
            tracks[stamp_ns(message)] = tracks_from_message(message)
        elif kind == PLAN_TYPE:
            plans[stamp_ns(message)] = plan_from_message(message)
        elif kind == HEALTH_TYPE:
            healths[stamp_ns(message)] = health_from_message(message)
    return [
        FrameResult(stamp, tracks.get(stamp), plans.get(stamp), None, healths[stamp])
        for stamp in sorted(healths)
    ]


def tracks_from_message(message: Any) -> Tracks:
    """Tracks of a `Tracks` message."""
    rows = list(message.tracks)
    num_modes = max((len(row.predictions) for row in rows), default=0)
    num_steps = max((len(p.positions) for row in rows for p in row.predictions), default=0)
    futures = np.full((len(rows), num_modes, num_steps, 2), np.nan, np.float32)
    stds = np.full((len(rows), num_modes, num_steps, 2), np.nan, np.float32)
    probabilities = np.zeros((len(rows), num_modes), np.float32)
    times: NDArray[np.float64] = np.zeros(num_steps)
    for i, row in enumerate(rows):
        for m, prediction in enumerate(row.predictions):
            steps = len(prediction.positions)
            futures[i, m, :steps] = [(p.x, p.y) for p in prediction.positions]
            stds[i, m, :steps, 0] = prediction.std_x
            stds[i, m, :steps, 1] = prediction.std_y
            probabilities[i, m] = prediction.probability
            times[:steps] = prediction.times
    return Tracks(
        stamp_ns=stamp_ns(message),
        boxes=Boxes(
            centers_N3=_rows(rows, 3, lambda r: (r.pose.position.x, r.pose.position.y, r.pose.position.z)),
            sizes_N3=_rows(rows, 3, lambda r: (r.size.x, r.size.y, r.size.z)),
            yaws_N=np.array([_yaw(row.pose.orientation) for row in rows], np.float32),
            velocities_N2=_rows(rows, 2, lambda r: (r.velocity.x, r.velocity.y)),
            class_ids_N=np.array([_class_id(row.class_name) for row in rows], np.int64),
            scores_N=np.array([row.score for row in rows], np.float32),
            ids_N=np.array([row.id for row in rows], np.int64),
        ),
        ages_N=np.array([row.age for row in rows], np.int64),
        coasted_N=np.array([row.coasted for row in rows], np.int64),
        confirmed_N=np.array([row.confirmed for row in rows], bool),
        position_std_N2=_rows(rows, 2, lambda r: tuple(r.position_std)),
        futures_NMT2=futures,
        futures_std_NMT2=stds,
        mode_probabilities_NM=probabilities,
        times_T=times,
    )


def plan_from_message(message: Any) -> Plan:
    """Plan of a `Plan` message."""
    points = list(message.points)
    terms = list(message.terms)
    return Plan(
        stamp_ns=stamp_ns(message),
        times_P=np.array([p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in points]),
        points_P2=_rows(points, 2, lambda p: (p.pose.position.x, p.pose.position.y)).astype(np.float64),
        yaws_P=np.array([_yaw(p.pose.orientation) for p in points]),
        speeds_P=np.array([p.speed for p in points], np.float64),
        accelerations_P=np.array([p.acceleration for p in points], np.float64),
        candidate=int(message.candidate),
        costs=_named(terms, message.costs),
        runner_up=int(message.runner_up),
        runner_up_costs=_named(terms, message.runner_up_costs),
        route_assumed=bool(message.route_assumed),
    )


def health_from_message(message: Any) -> Health:
    """State of a `Health` message."""
    return Health(
        state=SafetyState(int(message.state)),
        reasons=tuple(message.reasons),
        sensors=tuple(
            SensorReport(
                name=sensor.name,
                valid=bool(sensor.valid),
                reason=sensor.reason,
                age_ms=float(sensor.age_ms),
                received=int(sensor.received),
                used=int(sensor.used),
                dropped=int(sensor.dropped),
            )
            for sensor in message.sensors
        ),
        backend=message.backend,
        bundle=message.bundle,
        frames=int(message.frames),
        plans=int(message.plans),
        drops={cause: int(count) for cause, count in zip(message.drop_causes, message.drops, strict=True)},
        stage_ms={name: float(value) for name, value in zip(message.stages, message.stage_ms, strict=True)},
    )


def _rows(rows: list[Any], width: int, values: Any) -> NDArray[np.float32]:
    return np.array([values(row) for row in rows], np.float32).reshape(len(rows), width)


def _named(terms: list[str], values: Any) -> dict[str, float]:
    return {term: float(value) for term, value in zip(terms, values, strict=False)}


def _yaw(quaternion: Any) -> float:
    x, y, z, w = quaternion.x, quaternion.y, quaternion.z, quaternion.w
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _class_id(name: str) -> int:
    if name not in CLASSES:
        raise InputError(f"recorded track has class {name!r}; this release knows {', '.join(CLASSES)}")
    return CLASSES.index(name)
