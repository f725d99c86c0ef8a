"""The report of a run: one HTML file that plays it back, with nothing loaded from anywhere.

`report_template.html` holds page, style and player; this file turns results into the JSON that it plays.
Numbers are rounded to what a screen can show, and points are packed into bytes, so that a minute of
driving stays a file that can be mailed.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.messages import plan_reason
from e2e_perception.core.results import FrameResult, Health
from e2e_perception.core.rig import Rig
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan

TEMPLATE = Path(__file__).with_name("report_template.html")
# What the player shows of the world [m], base frame; points outside are not stored.
VIEW_X = (-30.0, 80.0)
VIEW_Y = (-36.0, 36.0)
VIEW_Z = (-1.0, 4.1)
POINT_CELL = 0.25  # [m] at most one stored point per cell of this size
POINT_BYTES = 5  # int16 x, int16 y [cm], uint8 z
POINT_BUDGET = 3_000_000  # [B] of packed points in the whole report


@dataclass(frozen=True)
class Picture:
    """One camera's picture in a frame.

    Attributes:
        jpeg: Encoded picture, already as small as it shall be stored.
        width, height: Its size [px].
        image_from_base_34: (3, 4) projection of base-frame points to its pixels, or None.
    """

    jpeg: bytes
    width: int
    height: int
    image_from_base_34: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ReportFrame:
    """What the report shows of one frame.

    Attributes:
        result: What the stack made of it.
        points_N3: (N, 3) [m] lidar points in the base frame; None if the frame had none.
        pictures: By camera name.
        ego: The robot's odometry at the frame's stamp, None where there is none.
        labels: What was really there, base frame; None where it is not known.
    """

    result: FrameResult
    points_N3: NDArray[np.floating] | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    ego: EgoState | None = None
    labels: Boxes | None = None


def pack_points(points_N3: NDArray[np.floating], limit: int) -> bytes:
    """Thin points out evenly over space and pack them for the player.

    Args:
        points_N3: (N, 3) [m], base frame; non-finite ones are left out.
        limit: Most points to keep. The choice depends on nothing but the points.
    Returns:
        Three arrays one after the other: x and y as little-endian int16 [cm], z as uint8 over `VIEW_Z`.
    """
    points: NDArray[np.float64] = np.asarray(points_N3, np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    x, y = points[:, 0], points[:, 1]
    inside = (x > VIEW_X[0]) & (x < VIEW_X[1]) & (y > VIEW_Y[0]) & (y < VIEW_Y[1])
    points = points[inside]
    cells = np.floor(points / POINT_CELL).astype(np.int64)
    keys = (cells[:, 0] << 42) + (cells[:, 1] << 21) + cells[:, 2]
    _, first = np.unique(keys, return_index=True)
    points = points[np.sort(first)]
    if len(points) > limit:
        points = points[np.random.default_rng(0).permutation(len(points))[:limit]]
    height = (points[:, 2] - VIEW_Z[0]) / (VIEW_Z[1] - VIEW_Z[0])
    columns = (
        np.round(points[:, 0] * 100).astype("<i2").tobytes(),
        np.round(points[:, 1] * 100).astype("<i2").tobytes(),
        np.round(np.clip(height, 0, 1) * 255).astype(np.uint8).tobytes(),
    )
    return b"".join(columns)


def write_report(
    path: str | Path,
    frames: Sequence[ReportFrame],
    *,
    rig: Rig,
    title: str,
    facts: Mapping[str, str],
    summary: Mapping[str, Any],
    max_points: int | None = None,
) -> Path:
    """Write the report.

    Args:
        path: HTML file to write.
        frames: In order of their stamps.
        rig: What was mounted where; gives the robot's size and the cameras' order.
        title: Headline.
        facts: Short things to know about the run (bag, bundle, backend, …), shown under the headline.
        summary: Counts and latencies as in `summary.json`.
        max_points: Lidar points kept per frame; None: as many as `POINT_BUDGET` allows.
    Returns:
        `path`.
    Raises:
        InputError: If the frames are not in order.
    """
    stamps = [frame.result.stamp_ns for frame in frames]
    if any(later <= earlier for earlier, later in zip(stamps, stamps[1:], strict=False)):
        raise InputError("report: the frames' stamps do not rise; expected each frame once, in order")
    if max_points is None:
        max_points = int(np.clip(POINT_BUDGET / POINT_BYTES / max(1, len(frames)), 1000, 9000))
    document = {
        "title": title,
        "facts": [[key, value] for key, value in facts.items()],
        "classes": list(CLASSES),
        "view": {"x": VIEW_X, "y": VIEW_Y, "z": VIEW_Z},
        "ego": {"length": rig.ego_length, "width": rig.ego_width, "center": rig.ego_center_x},
        "cameras": [camera.name for camera in rig.cameras],
        "terms": _terms(frames),
        "summary": _plain(summary),
        "frames": [_frame(frame, stamps[0], max_points) for frame in frames],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # Inside a script element only a `<` could end or change it.
    values = {"%TITLE%": html.escape(title), "%DATA%": text.replace("<", "\\u003c")}
    page = re.sub("%TITLE%|%DATA%", lambda found: values[found[0]], TEMPLATE.read_text(encoding="utf-8"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _terms(frames: Sequence[ReportFrame]) -> list[str]:
    terms: dict[str, None] = {}
    for frame in frames:
        if frame.result.plan is not None:
            terms.update(dict.fromkeys(frame.result.plan.costs))
    return list(terms)


def _frame(frame: ReportFrame, first_ns: int, max_points: int) -> dict[str, Any]:
    result = frame.result
    health = result.health
    return {
        "t": round((result.stamp_ns - first_ns) * 1e-9, 3),
        "stamp": str(result.stamp_ns),
        "tracks": None if result.tracks is None else _tracks(result.tracks),
        "plan": None if result.plan is None else _plan(result.plan, health),
        "labels": None if frame.labels is None else _labels(frame.labels),
        "ego": None if frame.ego is None else _ego(frame.ego),
        "points": None
        if frame.points_N3 is None
        else base64.b64encode(pack_points(frame.points_N3, max_points)).decode("ascii"),
        "pictures": {name: _picture(picture) for name, picture in frame.pictures.items()},
        "state": int(health.state),
        "reasons": list(health.reasons),
        "sensors": [
            [sensor.name, sensor.valid, sensor.reason, _round(sensor.age_ms, 0)] for sensor in health.sensors
        ],
        "stages": {name: _round(value, 2) for name, value in health.stage_ms.items()},
    }


def _tracks(tracks: Tracks) -> list[dict[str, Any]]:
    rows = []
    boxes = tracks.boxes
    for i in range(len(tracks)):
        order = np.argsort(-tracks.mode_probabilities_NM[i], kind="stable")
        rows.append(
            {
                "id": int(boxes.ids_N[i]),
                "cls": int(boxes.class_ids_N[i]),
                "score": _round(boxes.scores_N[i], 2),
                "confirmed": bool(tracks.confirmed_N[i]),
                "coasted": int(tracks.coasted_N[i]),
                "age": int(tracks.ages_N[i]),
                "box": _box(boxes, i),
                "vel": _rounded(boxes.velocities_N2[i], 2),
                "futures": [
                    {
                        "p": _round(tracks.mode_probabilities_NM[i, m], 2),
                        "xy": _rounded(tracks.futures_NMT2[i, m].ravel(), 2),
                        "std": _rounded(tracks.futures_std_NMT2[i, m].max(axis=-1), 2),
                    }
                    for m in order
                ],
            }
        )
    return rows


def _labels(boxes: Boxes) -> list[dict[str, Any]]:
    return [
        {"id": int(boxes.ids_N[i]), "cls": int(boxes.class_ids_N[i]), "box": _box(boxes, i)}
        for i in range(len(boxes))
    ]


def _box(boxes: Boxes, i: int) -> list[float | None]:
    """x, y, z, length, width, height, yaw."""
    return [
        *_rounded(boxes.centers_N3[i], 2),
        *_rounded(boxes.sizes_N3[i], 2),
        _round(boxes.yaws_N[i], 3),
    ]


def _plan(plan: Plan, health: Health) -> dict[str, Any]:
    return {
        "times": _rounded(plan.times_P, 2),
        "xy": _rounded(plan.points_P2.ravel(), 2),
        "speeds": _rounded(plan.speeds_P, 2),
        "acc": _rounded(plan.accelerations_P, 2),
        "candidate": plan.candidate,
        "runnerUp": plan.runner_up,
        "costs": {term: _round(cost, 3) for term, cost in plan.costs.items()},
        "rival": {term: _round(cost, 3) for term, cost in plan.runner_up_costs.items()},
        "assumed": plan.route_assumed,
        "why": plan_reason(plan, health),
    }


def _ego(ego: EgoState) -> list[float | None]:
    """x, y, yaw in the odometry frame, forward speed."""
    rotation = ego.odom_from_base.rotation
    return [
        *_rounded(ego.odom_from_base.translation[:2], 3),
        _round(math.atan2(rotation[1, 0], rotation[0, 0]), 4),
        _round(ego.speed, 2),
    ]


def _picture(picture: Picture) -> dict[str, Any]:
    projection = picture.image_from_base_34
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode("ascii"),
        "w": picture.width,
        "h": picture.height,
        "p": None if projection is None else [float(f"{value:.6g}") for value in projection.ravel()],
    }


def _round(value: float | np.floating[Any], digits: int) -> float | None:
    """Rounded, or None (JSON's null) where it is not finite."""
    return round(float(value), digits) if math.isfinite(value) else None


def _rounded(values: NDArray[np.floating[Any]], digits: int) -> list[float | None]:
    return [_round(value, digits) for value in np.asarray(values, np.float64)]


def _plain(value: Any) -> Any:
    """The same structure with non-finite numbers as None, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return _round(value, 4)
    if isinstance(value, np.integer):
        return int(value)
    return value
