"""An episode to look at: one HTML file that plays it from above, with nothing loaded from anywhere.

`episode_view_template.html` holds page, style and player, `episode_index_template.html` the table of many;
this file turns records into what they show. Positions are whole centimetres from the robot's start, angles
milliradians, and both are stored as differences from step to step, which is a fifth of the size.

Legend: T steps, N agents, O still solids, K = N + O.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.episodes import EPISODE_STEP_S, EpisodeRecord
from e2e_perception.core.errors import InputError
from e2e_perception.core.rectangles import clip_polygon, contact_point, robot_rectangle
from e2e_perception.evaluation.outcome_tables import summarize
from e2e_perception.evaluation.outcomes import (
    MAX_ACCELERATION,
    MIN_ACCELERATION,
    Outcome,
    clearances,
    motion,
    outcome,
    times_to_collision,
)

Array = NDArray[np.float64]

TEMPLATE = Path(__file__).with_name("episode_view_template.html")
INDEX_TEMPLATE = Path(__file__).with_name("episode_index_template.html")
INDEX = "index.html"
AGENT_REACH = 150.0  # [m] from the robot; agents beyond it are not stored
MAP_MARGIN = 120.0  # [m] around everywhere the robot was
CENTI = 100.0
MILLI = 1000.0


def view_name(scenario: str, policy: str) -> str:
    """A file name for the view of an episode: readable, safe, and another for every pair of names."""
    readable = re.sub(r"[^A-Za-z0-9.@-]+", "_", f"{scenario}-{policy}").strip("_.")[:80]
    digest = hashlib.sha256(f"{scenario}\0{policy}".encode()).hexdigest()[:8]
    return f"{readable}-{digest}.html"


def write_episode_view(path: str | Path, record: EpisodeRecord, others: Sequence[EpisodeRecord] = ()) -> Path:
    """Write the page that plays an episode.

    Args:
        path: HTML file to write.
        record: The drive.
        others: Drives of the same scenario by other policies; their robots are shown as outlines.
    Returns:
        `path`.
    Raises:
        InputError: If a record is broken (see `outcome`) or another one is of another scenario.
    """
    for other in others:
        if other.scenario != record.scenario:
            raise InputError(
                f"view of {record.scenario}: {other.policy} drove {other.scenario}; expected the same one"
            )
    document = _document(record, others)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # Inside a script element only a `<` could end or change it.
    title = html.escape(f"{record.scenario} · {record.policy}")
    page = _fill(TEMPLATE, {"TITLE": title, "DATA": text.replace("<", "\\u003c")})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def write_index(path_dir: str | Path, outcomes: Sequence[Outcome], links: Sequence[str]) -> Path:
    """Write `index.html`: a table of episodes that can be sorted and filtered, each linked to its view.

    Args:
        path_dir: Directory, made if need be.
        outcomes: One row each.
        links: File of each one's view, relative to the directory; empty if it has none.
    Returns:
        The file.
    Raises:
        InputError: If there is not one link per outcome, or an episode is there twice.
    """
    if len(links) != len(outcomes):
        raise InputError(
            f"index: {len(links)} links for {len(outcomes)} episodes; expected one each, empty for none"
        )
    rows = "\n".join(_row(item, link) for item, link in zip(outcomes, links, strict=True))
    page = _fill(INDEX_TEMPLATE, {"POLICIES": _policy_rows(outcomes), "ROWS": rows})
    directory = Path(path_dir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX).write_text(page, encoding="utf-8")
    return directory / INDEX


def _fill(template: Path, values: Mapping[str, str]) -> str:
    return re.sub(
        "%(" + "|".join(values) + ")%", lambda found: values[found[1]], template.read_text(encoding="utf-8")
    )


# ----------------------------------------------------------------------------------- one episode


def _document(record: EpisodeRecord, others: Sequence[EpisodeRecord]) -> dict[str, Any]:
    found = outcome(record)
    drives = [record, *others]
    origin = np.round(record.ego_T5[0, :2])
    everywhere = np.concatenate([drive.ego_T5[:, :2] for drive in drives])
    window = everywhere.min(axis=0) - MAP_MARGIN, everywhere.max(axis=0) + MAP_MARGIN
    moved = motion(record.ego_T5)

    plans, plan_rows = _plans(record, origin)
    return {
        "scenario": record.scenario,
        "policy": record.policy,
        "step": EPISODE_STEP_S,
        "steps": len(record.ego_T5),
        "limit": record.speed_limit,
        "comfort": [MIN_ACCELERATION, MAX_ACCELERATION],
        "verdict": {"success": found.success, "reasons": list(found.shortfalls)},
        "facts": _facts(record),
        "figures": _figures(found),
        "provenance": [[key, str(value)] for key, value in record.provenance.items()],
        "counters": [[key, str(value)] for key, value in record.counters.items()],
        "ego": {**_robot(record, origin), "a": _deltas(moved.acceleration_T, CENTI)},
        "asked": _deltas_or_none(record.commands_T2[:, 0], CENTI),
        "clearance": _sparse(clearances(record).min(axis=1, initial=np.inf)),
        "ttc": _sparse(times_to_collision(record).min(axis=1, initial=np.inf)),
        "states": record.states_T.tolist(),
        "stops": record.interventions_T.astype(int).tolist(),
        "offRoad": record.off_road_T.astype(int).tolist(),
        "agents": [_agent(record, n, origin) for n in range(len(record.class_names_N))],
        "solids": np.round((record.obstacles_O5.reshape(-1, 5) - [*origin, 0, 0, 0]) * 100).tolist(),
        "route": _line(record.route_R2, origin),
        "goal": _goal(record, origin),
        "drivable": [_line(ring, origin) for ring in _clipped(record.drivable, window)],
        "boundaries": [
            _line(run, origin) for line in record.boundaries for run in _runs_inside(line, window)
        ],
        "plans": plans,
        "planRows": plan_rows,
        "contacts": _contacts(record, origin),
        "others": [{**_robot(other, origin), "policy": other.policy} for other in others],
    }


def _facts(record: EpisodeRecord) -> list[list[str]]:
    return [
        ["family", record.family],
        ["seed", str(record.seed)],
        ["difficulty", f"{record.difficulty:g}"],
        ["conditions", record.conditions],
        ["start", f"{record.start_ns} ns"],
    ]


def _figures(found: Outcome) -> list[list[str]]:
    """Name and value for people."""
    arrival = "–" if found.time_to_goal_s is None else f"{found.time_to_goal_s:.1f} s"
    return [
        ["progress", f"{100.0 * found.progress:.0f} %, {found.progress_m:.0f} m"],
        ["time to goal", arrival],
        ["time to collision p1 / p5 / p50", " / ".join(
            _finite(value, 1) for value in (found.ttc_p1_s, found.ttc_p5_s, found.ttc_p50_s)
        ) + " s"],
        ["least clearance", f"{_finite(found.min_clearance_m, 2)} m"],
        ["… to pedestrians and cyclists", f"{_finite(found.min_clearance_vulnerable_m, 2)} m"],
        ["strongest acceleration / braking", (
            f"{found.acceleration_max_mps2:.1f} / {found.deceleration_max_mps2:.1f} m/s²"
        )],
        ["jerk p95 / max", f"{found.jerk_p95_mps3:.1f} / {found.jerk_max_mps3:.1f} m/s³"],
        ["lateral acceleration max", f"{found.lateral_acceleration_max_mps2:.1f} m/s²"],
        ["comfortable", f"{100.0 * found.comfort_share:.0f} % of steps"],
        ["supervisor stopped", f"{found.interventions}×, {100.0 * found.intervention_share:.0f} % of steps"],
        ["mean speed", f"{found.speed_mean_mps:.1f} m/s"],
        ["above the limit, mean / max", (
            f"{found.speed_excess_mean_mps:.1f} / {found.speed_excess_max_mps:.1f} m/s"
        )],
        ["off the road", f"{100.0 * found.off_road_share:.1f} % of steps"],
    ]  # fmt: skip


def _robot(record: EpisodeRecord, origin: Array) -> dict[str, Any]:
    x, y, yaw, speed, _ = record.ego_T5.T
    return {
        "length": record.ego_size[0],
        "width": record.ego_size[1],
        "ahead": record.ego_size[2],
        "x": _deltas(x - origin[0], CENTI),
        "y": _deltas(y - origin[1], CENTI),
        "yaw": _deltas(yaw, MILLI),
        "v": _deltas(speed, CENTI),
    }


def _agent(record: EpisodeRecord, n: int, origin: Array) -> dict[str, Any]:
    """One agent: class, size, and a run of motion for each time it was there and near."""
    away_T2 = (
        np.where(record.present_TN[:, n, None], record.agents_TN3[:, n, :2], np.inf) - record.ego_T5[:, :2]
    )
    near_T = np.hypot(away_T2[:, 0], away_T2[:, 1]) <= AGENT_REACH
    runs = []
    for begin, end in _runs(near_T):
        poses, velocities = record.agents_TN3[begin:end, n], record.velocities_TN2[begin:end, n]
        runs.append(
            {
                "from": begin,
                "x": _deltas(poses[:, 0] - origin[0], CENTI),
                "y": _deltas(poses[:, 1] - origin[1], CENTI),
                "yaw": _deltas(np.asarray(np.unwrap(poses[:, 2]), np.float64), MILLI),
                "vx": _deltas(velocities[:, 0], CENTI),
                "vy": _deltas(velocities[:, 1], CENTI),
            }
        )
    length, width, _ = record.sizes_N3[n]
    return {
        "kind": record.class_names_N[n],
        "length": round(float(length), 2),
        "width": round(float(width), 2),
        "runs": runs,
    }


def _plans(record: EpisodeRecord, origin: Array) -> tuple[list[Any], list[int]]:
    """Each different plan once, and for every step which one was in force, -1 for none."""
    known: dict[bytes, int] = {}
    plans: list[Any] = []
    rows: list[int] = []
    for plan in record.plans:
        points: Array = np.zeros((0, 2)) if plan is None else np.asarray(plan, np.float64).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]  # a broken plan may be why the episode ended
        if len(points) == 0:
            rows.append(-1)
            continue
        key = points.tobytes()
        if key not in known:
            known[key] = len(plans)
            plans.append(_line(points, origin))
        rows.append(known[key])
    return plans, rows


def _contacts(record: EpisodeRecord, origin: Array) -> list[dict[str, Any]]:
    found = []
    for contact in record.contacts:
        robot = robot_rectangle(record.ego_T5[contact.step, :3], record.ego_size)
        other = _touched(record, contact.step, contact.agent)
        along, left = (0.0, 0.0) if other is None else contact_point(robot, other)
        c, s = math.cos(robot[2]), math.sin(robot[2])
        point = robot[:2] - origin + np.array([c * along - s * left, s * along + c * left])
        blame = "at fault" if contact.at_fault else "not at fault"
        found.append(
            {
                "step": contact.step,
                "x": round(float(point[0]), 2),
                "y": round(float(point[1]), 2),
                "text": f"{contact.class_name}, {contact.speed:.1f} m/s, {blame}",
            }
        )
    return found


def _touched(record: EpisodeRecord, step: int, agent: int) -> Array | None:
    """Outline of who was touched: an agent, or the nearest of the still solids."""
    if agent >= 0:
        pose = record.agents_TN3[step, agent]
        return np.array([*pose, *record.sizes_N3[agent, :2]]) if np.isfinite(pose).all() else None
    if len(record.obstacles_O5) == 0:
        return None
    nearest = np.argmin(clearances(record)[step, len(record.class_names_N) :])
    return np.asarray(record.obstacles_O5[nearest], np.float64)


def _goal(record: EpisodeRecord, origin: Array) -> list[float]:
    """x, y [m] and yaw [rad] of the route where its arc length is `goal_s`."""
    route = np.asarray(record.route_R2, np.float64)
    steps = np.diff(route, axis=0)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    s = min(record.goal_s, float(arc[-1]))
    x, y = (float(np.interp(s, arc, route[:, axis]) - origin[axis]) for axis in (0, 1))
    k = int(np.clip(np.searchsorted(arc, s, side="left"), 1, len(route) - 1))
    heading = route[k] - route[k - 1]
    return [round(x, 2), round(y, 2), round(math.atan2(heading[1], heading[0]), 3)]


def _clipped(polygons: Iterable[Array], window: tuple[Array, Array]) -> list[Array]:
    rings = [clip_polygon(polygon, *window) for polygon in polygons]
    return [ring for ring in rings if len(ring) >= 3]


def _runs_inside(line_K2: Array, window: tuple[Array, Array]) -> list[Array]:
    """Stretches of a polyline whose segments may be seen in the window."""
    line = np.asarray(line_K2, np.float64)
    low, high = np.minimum(line[:-1], line[1:]), np.maximum(line[:-1], line[1:])
    seen = np.asarray(((high >= window[0]) & (low <= window[1])).all(axis=1))
    return [line[begin : end + 1] for begin, end in _runs(seen)]


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end (exclusive) of each stretch that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _line(points_K2: Array, origin: Array) -> list[list[int]]:
    points = np.asarray(points_K2, np.float64) - origin
    return [_deltas(points[:, 0], CENTI), _deltas(points[:, 1], CENTI)]


def _deltas(values: Array, scale: float) -> list[int]:
    """Rounded to whole 1/`scale`, the first followed by differences: rounding does not add up."""
    whole = np.round(np.asarray(values, np.float64) * scale).astype(np.int64)
    return [int(value) for value in np.diff(whole, prepend=0)]


def _deltas_or_none(values: Array, scale: float) -> list[int] | None:
    return _deltas(values, scale) if np.isfinite(values).all() else None


def _sparse(values: Array) -> list[float | None]:
    """To two digits; infinite ones as None (JSON's null)."""
    return [round(float(value), 2) if math.isfinite(value) else None for value in values]


def _finite(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


# ----------------------------------------------------------------------------------- many episodes


def _policy_rows(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for policy in sorted({item.policy for item in outcomes}):
        figures = summarize([item for item in outcomes if item.policy == policy])
        cells = "".join(
            _share_cell(figures[name], figures[f"{name}_ci95"])
            for name in (
                "success_rate",
                "collision_rate",
                "at_fault_collision_rate",
                "off_road_rate",
                "policy_failure_rate",
                "progress_mean",
                "comfort_share",
            )
        )
        rows.append(f"<tr><td>{html.escape(policy)}</td><td>{figures['episodes']}</td>{cells}</tr>")
    return "\n".join(rows)


def _share_cell(value: float | None, interval: list[float] | None) -> str:
    """A table cell; a mean over no episode at all (none could be driven) is a dash."""
    if value is None or interval is None:
        return "<td>–</td>"
    low, high = interval
    return f"<td>{_share(value)}<small>{_share(low)} – {_share(high)}</small></td>"


def _share(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def _row(item: Outcome, link: str) -> str:
    name = html.escape(item.scenario)
    # Quoted as a path, so that no link can be anything but a file beside the table.
    cell = f'<a href="{html.escape(quote(link))}">{name}</a>' if link else name
    flags = [name for name in ("collision", "off_road", "policy_failure") if getattr(item, name)]
    if not item.success:
        flags.append("failed")
    result = "success" if item.success else "; ".join(item.shortfalls)
    numbers = (
        (item.difficulty, 2),
        (100.0 * item.progress, 0),
        (item.time_to_goal_s, 1),
        (item.ttc_p5_s, 1),
        (item.min_clearance_m, 2),
        (item.deceleration_max_mps2, 1),
        (100.0 * item.comfort_share, 0),
        (item.interventions, 0),
        (item.speed_mean_mps, 1),
    )
    cells = "".join(_number_cell(value, digits) for value, digits in numbers)
    return (
        f'<tr data-flags="{" ".join(flags)}"><td>{cell}</td><td>{html.escape(item.policy)}</td>'
        f'<td>{html.escape(item.family)}</td><td class="{"good" if item.success else "bad"}">'
        f"{html.escape(result)}</td>{cells}</tr>"
    )


def _number_cell(value: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "<td data-v>–</td>"
    return f'<td data-v="{value:.6g}">{value:.{digits}f}</td>'
