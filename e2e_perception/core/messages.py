"""What the stack found, as ROS messages; the same code for rclpy on the robot and for rosbags offline.

The functions build messages through a `MessageFactory`, so nothing here imports ROS. All positions are in the
base frame at the time of the header, in metres and radians; see `msg/*.msg`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.results import Health, PlanCandidates, SafetyState, SensorReport
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan

Message = Any

TRACKS_TYPE = "e2e_perception/msg/Tracks"
PLAN_TYPE = "e2e_perception/msg/Plan"
CANDIDATES_TYPE = "e2e_perception/msg/PlanCandidates"
HEALTH_TYPE = "e2e_perception/msg/Health"
PATH_TYPE = "nav_msgs/msg/Path"
MARKERS_TYPE = "visualization_msgs/msg/MarkerArray"
DIAGNOSTICS_TYPE = "diagnostic_msgs/msg/DiagnosticArray"

_PLAN_STATES = "NOMINAL DEGRADED MINIMAL_RISK STOPPED".split()

# visualization_msgs/Marker
_CUBE, _LINE_STRIP, _LINE_LIST, _TEXT = 1, 4, 5, 9
_ADD, _DELETE_ALL = 0, 3
_COLORS: dict[str, tuple[float, float, float]] = {
    "car": (0.13, 0.59, 0.95),
    "truck": (0.40, 0.23, 0.72),
    "pedestrian": (1.0, 0.60, 0.0),
    "cyclist": (0.0, 0.65, 0.45),
    "obstacle": (0.62, 0.50, 0.38),
}
_STATE_COLORS: dict[SafetyState, tuple[float, float, float]] = {
    SafetyState.NOMINAL: (0.30, 0.69, 0.31),
    SafetyState.DEGRADED: (1.0, 0.76, 0.03),
    SafetyState.MINIMAL_RISK: (0.96, 0.26, 0.21),
    SafetyState.STOPPED: (0.72, 0.11, 0.11),
}

# of the sentence that explains a plan
WORTH_SAYING = 0.05  # differences in cost below this are left out
MANOEUVRE_S = 2.0  # [s] of the plan that name the manoeuvre
STEADY = 0.3  # [m/s^2] below which speed is kept
STANDING = 0.1  # [m/s]

_MIN_SHOWN_PROBABILITY = 0.15  # less likely futures only clutter the picture

# diagnostic_msgs/DiagnosticStatus
_OK, _WARN, _ERROR = b"\x00", b"\x01", b"\x02"
_STATE_LEVELS = {
    SafetyState.NOMINAL: _OK,
    SafetyState.DEGRADED: _WARN,
    SafetyState.MINIMAL_RISK: _ERROR,
    SafetyState.STOPPED: _ERROR,
}


class MessageFactory(Protocol):
    """Makes messages of one library; fields that are not given have ROS's defaults."""

    def __call__(self, type_name: str, /, **fields: Any) -> Message:
        """A message, e.g. `make("geometry_msgs/msg/Point", x=1.0)`."""

    def floats32(self, values: Iterable[float] | NDArray[Any], /) -> Any:
        """What a `float32[]` or `float32[N]` field takes."""

    def floats64(self, values: Iterable[float] | NDArray[Any], /) -> Any:
        """What a `float64[]` field takes; one of fixed length takes numpy's in both libraries."""

    def uint8s(self, values: bytes, /) -> Any:
        """What a `uint8[]` field takes."""

    def uint64s(self, values: Iterable[int], /) -> Any:
        """What a `uint64[]` field takes."""

    def byte(self, value: bytes, /) -> Any:
        """What a `byte` field takes, given one byte."""


# ------------------------------------------------------------------ common parts


def time_message(make: MessageFactory, stamp_ns: int) -> Message:
    """builtin_interfaces/Time of a stamp [ns]."""
    seconds, nanoseconds = divmod(int(stamp_ns), 1_000_000_000)
    return make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)


def header_message(make: MessageFactory, stamp_ns: int, frame_id: str) -> Message:
    """std_msgs/Header."""
    return make("std_msgs/msg/Header", stamp=time_message(make, stamp_ns), frame_id=frame_id)


def _duration(make: MessageFactory, seconds: float) -> Message:
    whole, nanoseconds = divmod(round(seconds * 1e9), 1_000_000_000)
    return make("builtin_interfaces/msg/Duration", sec=whole, nanosec=nanoseconds)


def _point(make: MessageFactory, x: float, y: float, z: float = 0.0) -> Message:
    return make("geometry_msgs/msg/Point", x=x, y=y, z=z)


def _vector(make: MessageFactory, x: float, y: float, z: float) -> Message:
    return make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _xyz(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z


def _pose(make: MessageFactory, x: float, y: float, z: float, yaw: float) -> Message:
    turn = make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=math.sin(yaw / 2.0), w=math.cos(yaw / 2.0))
    return make("geometry_msgs/msg/Pose", position=_point(make, x, y, z), orientation=turn)


# ------------------------------------------------------------------ our own messages


def tracks_message(make: MessageFactory, tracks: Tracks, frame_id: str) -> Message:
    """e2e_perception/Tracks; the futures of a track are ordered by probability."""
    boxes = tracks.boxes
    # One conversion each to Python numbers: reading numpy scalars one by one would cost ten times as much.
    centers, sizes, yaws = boxes.centers_N3.tolist(), boxes.sizes_N3.tolist(), boxes.yaws_N.tolist()
    velocities, scores = boxes.velocities_N2.tolist(), boxes.scores_N.tolist()
    futures = tracks.futures_NMT2.tolist()
    order_NM = np.argsort(-tracks.mode_probabilities_NM, axis=1, kind="stable").tolist()
    probabilities = tracks.mode_probabilities_NM.tolist()

    def prediction(n: int, m: int) -> Message:
        return make(
            "e2e_perception/msg/PredictedTrajectory",
            probability=probabilities[n][m],
            times=make.floats32(tracks.times_T),
            positions=[_point(make, x, y) for x, y in futures[n][m]],
            std_x=make.floats32(tracks.futures_std_NMT2[n, m, :, 0]),
            std_y=make.floats32(tracks.futures_std_NMT2[n, m, :, 1]),
        )

    return make(
        TRACKS_TYPE,
        header=header_message(make, tracks.stamp_ns, frame_id),
        tracks=[
            make(
                "e2e_perception/msg/Track",
                id=int(boxes.ids_N[n]),
                class_name=CLASSES[int(boxes.class_ids_N[n])],
                score=scores[n],
                confirmed=bool(tracks.confirmed_N[n]),
                age=int(tracks.ages_N[n]),
                coasted=int(tracks.coasted_N[n]),
                pose=_pose(make, *_xyz(centers[n]), yaws[n]),
                size=_vector(make, *_xyz(sizes[n])),
                velocity=_vector(make, velocities[n][0], velocities[n][1], 0.0),
                position_std=np.asarray(tracks.position_std_N2[n], np.float32),  # fixed size: numpy in both
                predictions=[prediction(n, m) for m in order_NM[n]],
            )
            for n in range(len(tracks))
        ],
    )


def plan_message(make: MessageFactory, plan: Plan, health: Health, frame_id: str) -> Message:
    """e2e_perception/Plan, with the reason as a sentence.

    Args:
        make: Of the library in use.
        plan: What to follow.
        health: State and reasons of the same frame.
        frame_id: Name of the base frame.
    """
    terms = list(plan.costs)
    return make(
        PLAN_TYPE,
        header=header_message(make, plan.stamp_ns, frame_id),
        points=[
            make(
                "e2e_perception/msg/PlanPoint",
                time_from_start=_duration(make, time),
                pose=_pose(make, x, y, 0.0, yaw),
                speed=speed,
                acceleration=acceleration,
            )
            for time, (x, y), yaw, speed, acceleration in zip(
                plan.times_P.tolist(),
                plan.points_P2.tolist(),
                plan.yaws_P.tolist(),
                plan.speeds_P.tolist(),
                plan.accelerations_P.tolist(),
                strict=True,
            )
        ],
        state=int(health.state),
        candidate=plan.candidate,
        runner_up=plan.runner_up,
        route_assumed=plan.route_assumed,
        terms=terms,
        costs=make.floats32(plan.costs[term] for term in terms),
        runner_up_costs=make.floats32(plan.runner_up_costs.get(term, math.nan) for term in terms)
        if plan.runner_up_costs
        else make.floats32(()),
        reason=plan_reason(plan, health),
    )


def plan_reason(plan: Plan, health: Health) -> str:
    """Why this plan, in one sentence: the stop's causes, or what it does and the terms that decided.

    For example "brakes at 3.0 m/s^2: collision 4.1 lower than the runner-up, progress 0.6 higher".
    """
    if plan.candidate < 0:
        causes = "; ".join(health.reasons) or "the supervisor gave no reason"
        return f"{_PLAN_STATES[health.state].lower().replace('_', ' ')}: stop, because {causes}"
    what = _manoeuvre(plan)
    if plan.runner_up < 0 or not plan.runner_up_costs:
        return f"{what}: the only proposal"
    differences = {term: cost - plan.runner_up_costs.get(term, 0.0) for term, cost in plan.costs.items()}
    said = sorted((d for d in differences.items() if abs(d[1]) >= WORTH_SAYING), key=lambda d: -abs(d[1]))[:3]
    if not said:
        return f"{what}: the runner-up costs nearly the same"
    parts = [f"{term} {abs(by):.1f} {'lower' if by < 0 else 'higher'}" for term, by in said]
    parts[0] += " than the runner-up"
    return f"{what}: {', '.join(parts)}"


def _manoeuvre(plan: Plan) -> str:
    early = plan.times_P <= MANOEUVRE_S
    acceleration = float(plan.accelerations_P[early].mean() if early.any() else plan.accelerations_P[0])
    if float(np.abs(plan.speeds_P).max(initial=0.0)) < STANDING and acceleration > -STEADY:
        return "stands"
    if acceleration < -STEADY:
        return f"brakes at {-acceleration:.1f} m/s^2"
    if acceleration > STEADY:
        return f"accelerates at {acceleration:.1f} m/s^2"
    return f"keeps {float(plan.speeds_P[early].mean() if early.any() else plan.speeds_P[0]):.1f} m/s"


def candidates_message(
    make: MessageFactory, candidates: PlanCandidates, stamp_ns: int, frame_id: str
) -> Message:
    """e2e_perception/PlanCandidates."""
    num_candidates, num_steps, _ = candidates.points_CP2.shape
    return make(
        CANDIDATES_TYPE,
        header=header_message(make, stamp_ns, frame_id),
        num_candidates=num_candidates,
        num_steps=num_steps,
        times=make.floats32(candidates.times_P),
        points=make.floats32(candidates.points_CP2.reshape(-1)),
        terms=list(candidates.terms),
        costs=make.floats32(candidates.costs_CK.reshape(-1)),
        selected=candidates.selected,
    )


def health_message(make: MessageFactory, health: Health, stamp_ns: int, frame_id: str) -> Message:
    """e2e_perception/Health; the stamp is that of the frame, or the present time without one."""
    return make(
        HEALTH_TYPE,
        header=header_message(make, stamp_ns, frame_id),
        state=int(health.state),
        reasons=list(health.reasons),
        sensors=[_sensor_status(make, report) for report in health.sensors],
        backend=health.backend,
        bundle=health.bundle,
        frames=health.frames,
        plans=health.plans,
        drop_causes=list(health.drops),
        drops=make.uint64s(health.drops.values()),
        stages=list(health.stage_ms),
        stage_ms=make.floats32(health.stage_ms.values()),
    )


def _sensor_status(make: MessageFactory, report: SensorReport) -> Message:
    return make(
        "e2e_perception/msg/SensorStatus",
        name=report.name,
        valid=report.valid,
        reason=report.reason,
        age_ms=float(report.age_ms),
        received=report.received,
        used=report.used,
        dropped=report.dropped,
    )


# ------------------------------------------------------------------ what every ROS tool shows


def path_message(make: MessageFactory, plan: Plan, frame_id: str) -> Message:
    """nav_msgs/Path of a plan; each pose is stamped with the time at which it is to be reached."""
    header = header_message(make, plan.stamp_ns, frame_id)
    poses = [
        make(
            "geometry_msgs/msg/PoseStamped",
            header=header_message(make, plan.stamp_ns + round(time * 1e9), frame_id),
            pose=_pose(make, x, y, 0.0, yaw),
        )
        for time, (x, y), yaw in zip(
            plan.times_P.tolist(), plan.points_P2.tolist(), plan.yaws_P.tolist(), strict=True
        )
    ]
    return make(PATH_TYPE, header=header, poses=poses)


def markers_message(
    make: MessageFactory,
    stamp_ns: int,
    frame_id: str,
    *,
    tracks: Tracks | None,
    plan: Plan | None,
    state: SafetyState,
) -> Message:
    """visualization_msgs/MarkerArray: boxes with identities, likely futures, the plan coloured by state.

    The first marker removes those of the frame before, so that nothing is left behind when a track ends.
    """
    header = header_message(make, stamp_ns, frame_id)

    def marker(namespace: str, number: int, kind: int, **fields: Any) -> Message:
        return make(
            "visualization_msgs/msg/Marker",
            header=header, ns=namespace, id=number, type=kind, action=_ADD, **fields,
        )  # fmt: skip

    markers = [make("visualization_msgs/msg/Marker", header=header, action=_DELETE_ALL)]
    if tracks is not None and len(tracks):
        boxes = tracks.boxes
        centers, sizes, yaws = boxes.centers_N3.tolist(), boxes.sizes_N3.tolist(), boxes.yaws_N.tolist()
        speeds = np.linalg.norm(boxes.velocities_N2, axis=1).tolist()
        for n, (center, size, yaw) in enumerate(zip(centers, sizes, yaws, strict=True)):
            name = CLASSES[int(boxes.class_ids_N[n])]
            identity = int(boxes.ids_N[n]) & 0x7FFFFFFF  # marker ids are int32
            alpha = 0.75 if tracks.confirmed_N[n] else 0.25
            markers.append(
                marker(
                    "tracks", identity, _CUBE,
                    pose=_pose(make, *_xyz(center), yaw), scale=_vector(make, *_xyz(size)),
                    color=_color(make, _COLORS[name], alpha),
                )
            )  # fmt: skip
            markers.append(
                marker(
                    "identities", identity, _TEXT,
                    pose=_pose(make, center[0], center[1], center[2] + size[2] / 2.0 + 0.6, 0.0),
                    scale=_vector(make, 0.0, 0.0, 0.8), color=_color(make, (1.0, 1.0, 1.0), 1.0),
                    text=f"{name} {identity}, {speeds[n]:.1f} m/s",
                )
            )  # fmt: skip
        futures = _future_segments(tracks)
        if len(futures):
            markers.append(
                marker(
                    "predictions", 0, _LINE_LIST,
                    pose=_pose(make, 0.0, 0.0, 0.0, 0.0), scale=_vector(make, 0.12, 0.0, 0.0),
                    color=_color(make, (0.91, 0.12, 0.39), 0.8),
                    points=[_point(make, x, y, 0.1) for x, y in futures.tolist()],
                )
            )  # fmt: skip
    if plan is not None and len(plan.points_P2) > 1:
        markers.append(
            marker(
                "plan", 0, _LINE_STRIP,
                pose=_pose(make, 0.0, 0.0, 0.0, 0.0), scale=_vector(make, 0.4, 0.0, 0.0),
                color=_color(make, _STATE_COLORS[state], 0.9),
                points=[_point(make, x, y, 0.05) for x, y in plan.points_P2.tolist()],
            )
        )  # fmt: skip
    return make(MARKERS_TYPE, markers=markers)


def _future_segments(tracks: Tracks) -> NDArray[np.float32]:
    """(2 K, 2) ends of line segments of all confirmed tracks' likely futures, from the track's centre on."""
    shown_NM = tracks.mode_probabilities_NM >= _MIN_SHOWN_PROBABILITY
    n, m = np.nonzero(shown_NM & tracks.confirmed_N[:, None])
    lines_KT2 = np.concatenate(
        [tracks.boxes.centers_N3[n, None, :2], tracks.futures_NMT2[n, m]], axis=1
    ).astype(np.float32)
    segments: NDArray[np.float32] = np.stack([lines_KT2[:, :-1], lines_KT2[:, 1:]], axis=2).reshape(-1, 2)
    return segments


def _color(make: MessageFactory, rgb: tuple[float, float, float], alpha: float) -> Message:
    red, green, blue = rgb
    return make("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=alpha)


def diagnostics_message(
    make: MessageFactory,
    health: Health,
    stamp_ns: int,
    *,
    name: str = "e2e_perception",
    hardware_id: str = "",
    stage_quantiles_ms: Mapping[str, Sequence[float]] | None = None,
) -> Message:
    """diagnostic_msgs/DiagnosticArray: one status for the stack and one for each sensor.

    Args:
        make: Of the library in use.
        health: State to report.
        stamp_ns: Present time or frame time [ns].
        name: Prefix of the status names, usually the node's full name.
        hardware_id: Name of the rig.
        stage_quantiles_ms: p50, p95 and p99 of each stage lately [ms], where they are known.
    """

    def status(part: str, level: bytes, text: str, values: Mapping[str, object]) -> Message:
        return make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=make.byte(level),
            name=f"{name}: {part}",
            message=text,
            hardware_id=hardware_id,
            values=[
                make("diagnostic_msgs/msg/KeyValue", key=key, value=str(value))
                for key, value in values.items()
            ],
        )

    stages = {f"{stage} [ms]": f"{value:.1f}" for stage, value in health.stage_ms.items()}
    for stage, quantiles in (stage_quantiles_ms or {}).items():
        stages[f"{stage} p50 / p95 / p99 [ms]"] = " / ".join(f"{value:.1f}" for value in quantiles)
    drops = {f"dropped: {cause}": count for cause, count in health.drops.items() if count}
    engine = {"backend": health.backend, "bundle": health.bundle}
    counts = {"frames": health.frames, "plans": health.plans}
    statuses = [
        status(
            "stack",
            _STATE_LEVELS[health.state],
            _sentence(_PLAN_STATES[health.state], health.reasons),
            {**engine, **counts, **drops, **stages},
        )
    ]
    for sensor in health.sensors:
        level = _OK if sensor.valid else _ERROR if sensor.reason == "silent" else _WARN
        counts = {"received": sensor.received, "used": sensor.used, "dropped": sensor.dropped}
        statuses.append(
            status(
                sensor.name, level, sensor.reason or "valid", {"age [ms]": f"{sensor.age_ms:.0f}", **counts}
            )
        )
    return make(DIAGNOSTICS_TYPE, header=header_message(make, stamp_ns, ""), status=statuses)


def _sentence(state: str, reasons: Sequence[str]) -> str:
    return f"{state}: {'; '.join(reasons)}" if reasons else state
