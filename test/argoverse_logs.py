"""Small logs in the files of the Argoverse 2 sensor data set, and where the real ones are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from e2e_perception.core.frames import SE2

ROOT = Path(__file__).resolve().parent.parent
REAL_LOGS = ("7fab2350-7eaf-3b7e-a39d-6937a4c1bede", "adcf7d18-0510-35b0-a2fa-b4cea13a6d76")

# The road runs along x; the recording car starts at its origin, which lies somewhere in the city.
CITY_FROM_ROAD = SE2(1000.0, -2000.0, 0.5)
GROUND, AXLE = 20.0, 0.32  # [m] city z of the ground, and of the ego origin above it
FIRST_NS = 315_966_000_000_000_000
LANE_WIDTH = 4.0
# Lanes by their right boundary [m]: own, the one to the left, the oncoming one; 100 m pieces from -20 m on.
LANES = {100: (-2.0, True), 200: (2.0, True), 300: (6.0, False)}
NUM_PIECES = 3

Motion = Callable[[float], tuple[float, float, float]]


def real_log(name: str) -> Path:
    data = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "av2" / name
    if not data.is_dir():
        pytest.skip(f"no recorded log at {data}; set E2E_PERCEPTION_TEST_DATA")
    return data


@dataclass(frozen=True)
class Actor:
    """Somebody annotated: x, y [m], yaw [rad] on the road at a time [s]."""

    track: str
    category: str
    motion: Motion
    size: tuple[float, float, float] = (4.5, 1.8, 1.6)
    annotated: Callable[[float], bool] = lambda _: True


def straight(x: float, y: float = 0.0, speed: float = 0.0, yaw: float = 0.0) -> Motion:
    return lambda t: (x + speed * t * np.cos(yaw), y + speed * t * np.sin(yaw), yaw)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), path)


def _pose_columns(xyz_K3: NDArray[np.float64], xyzw_K4: NDArray[np.float64]) -> dict[str, Any]:
    columns = {name: xyzw_K4[:, i] for name, i in (("qw", 3), ("qx", 0), ("qy", 1), ("qz", 2))}
    return columns | {name: xyz_K3[:, i] for i, name in enumerate(("tx_m", "ty_m", "tz_m"))}


def _lane_archive() -> dict[str, Any]:
    def line(y: float, begin: float, end: float) -> list[dict[str, float]]:
        points = CITY_FROM_ROAD.apply(np.array([[begin, y], [end, y]]))
        return [{"x": float(px), "y": float(py), "z": GROUND} for px, py in points]

    segments = {}
    for first, (right, forward) in LANES.items():
        for k in range(NUM_PIECES):
            ends = (-20.0 + 100.0 * k, 80.0 + 100.0 * k)
            begin, end = ends if forward else ends[::-1]
            edges = (right + LANE_WIDTH, right) if forward else (right, right + LANE_WIDTH)
            after, before = (k + 1, k - 1) if forward else (k - 1, k + 1)
            left = {100: 200 + k, 200: 300 + k, 300: 200 + k}[first]
            segments[str(first + k)] = {
                "id": first + k,
                "is_intersection": False,
                "lane_type": "VEHICLE",
                "left_lane_boundary": line(edges[0], begin, end),
                "left_lane_mark_type": {100: "DASHED_WHITE"}.get(first, "DOUBLE_SOLID_YELLOW"),
                "right_lane_boundary": line(edges[1], begin, end),
                "right_lane_mark_type": {200: "DASHED_WHITE"}.get(first, "SOLID_WHITE"),
                "successors": [first + after],  # some are beyond the map
                "predecessors": [first + before],
                "left_neighbor_id": left,
                "right_neighbor_id": 100 + k if first == 200 else None,
            }
    area = line(-4.0, -20.0, 280.0) + line(12.0, -20.0, 280.0)[::-1]
    return {
        "pedestrian_crossings": {},
        "lane_segments": segments,
        "drivable_areas": {"1": {"id": 1, "area_boundary": area}},
    }


AHEAD = straight(0.0, speed=8.0)
PARKED = Actor("parked", "REGULAR_VEHICLE", straight(60.0, 8.0))


def write_log(
    directory: Path,
    actors: Sequence[Actor] = (PARKED,),
    *,
    ego: Motion = AHEAD,
    seconds: float = 6.0,
    points: NDArray[np.float64] | None = None,
    sweeps: Sequence[int] = (),
    calibration: bool = True,
    images: Sequence[int] = (),
    interior: int = 0,
) -> Path:
    """Write a log of annotations every 100 ms (the sweeps of which jitter by a few ms) and poses every 10 ms.

    Args:
        directory: New; its name is the log's.
        actors: Who is annotated.
        ego: Rear axle of the recording car on the road.
        seconds: Between the first annotated sweep and the last.
        points: (P, 3) [m] on the road, z above ground, that every sweep shows.
        sweeps: Numbers of the annotated sweeps that are there.
        calibration: Whether there is one: upper lidar and front camera.
        images: Numbers of the annotated sweeps at which the front camera has a picture.
        interior: Lidar points that are said to lie in every box.
    """
    rng = np.random.default_rng(5)
    num = round(seconds * 10) + 1
    times = 0.1 * np.arange(num)
    times[1:-1] += rng.uniform(-0.003, 0.003, num - 2)

    def city_from_ego(t: float) -> tuple[NDArray[np.float64], Rotation]:
        x, y, yaw = ego(t)
        pose = CITY_FROM_ROAD @ SE2(x, y, yaw)
        tilt = Rotation.from_euler("xyz", [0.004, -0.006, pose.yaw])
        return np.array([pose.x, pose.y, GROUND + AXLE]), tilt

    fine = np.arange(-0.1, seconds + 0.2, 0.01)
    stamps = FIRST_NS + np.round(np.concatenate([fine, times]) * 1e9).astype(np.int64)
    order = np.unique(stamps, return_index=True)[1]
    poses = [city_from_ego((int(stamps[i]) - FIRST_NS) * 1e-9) for i in order]
    write_table(
        directory / "city_SE3_egovehicle.feather",
        {"timestamp_ns": stamps[order]}
        | _pose_columns(np.array([p for p, _ in poses]), np.array([r.as_quat() for _, r in poses])),
    )

    rows: list[tuple[Any, ...]] = []
    for t in times.tolist():
        position, rotation = city_from_ego(t)
        for actor in actors:
            if not actor.annotated(t):
                continue
            x, y, yaw = actor.motion(t)
            place = CITY_FROM_ROAD @ SE2(x, y, yaw)
            center = np.array([place.x, place.y, GROUND + actor.size[2] / 2.0])
            turned = rotation.inv() * Rotation.from_euler("z", place.yaw)
            stamp = FIRST_NS + round(t * 1e9)
            in_ego = rotation.inv().apply(center - position)
            rows.append((stamp, actor.track, actor.category, actor.size, in_ego, turned.as_quat()))
    sizes = np.array([row[3] for row in rows])
    write_table(
        directory / "annotations.feather",
        {
            "timestamp_ns": np.array([row[0] for row in rows], np.int64),
            "track_uuid": [row[1] for row in rows],
            "category": [row[2] for row in rows],
            "length_m": sizes[:, 0],
            "width_m": sizes[:, 1],
            "height_m": sizes[:, 2],
            **_pose_columns(np.array([row[4] for row in rows]), np.array([row[5] for row in rows])),
            "num_interior_pts": np.full(len(rows), interior, np.int64),
        },
    )

    (directory / "map").mkdir()
    archive = directory / "map" / f"log_map_archive_{directory.name}____XYZ_city_1.json"
    archive.write_text(json.dumps(_lane_archive()), encoding="utf-8")

    on_road = np.zeros((0, 3)) if points is None else points
    in_city = np.column_stack([CITY_FROM_ROAD.apply(on_road[:, :2]), on_road[:, 2] + GROUND])
    for k in sweeps:
        position, rotation = city_from_ego(float(times[k]))
        seen = rotation.inv().apply(in_city - position).astype(np.float32)
        write_table(
            directory / "sensors" / "lidar" / f"{FIRST_NS + round(times[k] * 1e9)}.feather",
            {"x": seen[:, 0], "y": seen[:, 1], "z": seen[:, 2],
             "intensity": np.full(len(seen), 51, np.uint8)},
        )  # fmt: skip
    for k in images:
        path = directory / "sensors" / "cameras" / "ring_front_center"
        path.mkdir(parents=True, exist_ok=True)
        picture = np.full((48, 64, 3), (0, 0, 200), np.uint8)  # red; OpenCV counts blue first
        cv2.imwrite(str(path / f"{FIRST_NS + round(times[k] * 1e9)}.jpg"), picture)
    if calibration:
        forward = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]).as_quat()
        write_table(
            directory / "calibration" / "egovehicle_SE3_sensor.feather",
            {"sensor_name": ["up_lidar", "ring_front_center"]}
            | _pose_columns(
                np.array([[1.35, 0.0, 1.64], [1.63, 0.0, 1.4]]), np.array([[0, 0, 0, 1.0], forward])
            ),
        )
        write_table(
            directory / "calibration" / "intrinsics.feather",
            {"sensor_name": ["ring_front_center"], "fx_px": [50.0], "fy_px": [50.0], "cx_px": [31.5],
             "cy_px": [23.5], "k1": [-0.2], "k2": [0.0], "k3": [0.0], "height_px": [48], "width_px": [64]},
        )  # fmt: skip
    return directory
