"""Reads a log of the Argoverse 2 sensor data set (Wilson et al., NeurIPS 2021): boxes, poses, map, sensors.

Frames as in the data set: `city`, `ego` (rear axle, x forward, y left, z up) and a frame for each sensor. Our
`base_link` lies on the ground below the rear axle, `AXLE_HEIGHT` lower. Layout suffixes: A annotated boxes,
N tracks, T poses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import BODY_FROM_OPTICAL, SE3
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig

# Measured on two logs: 0.32 m is the median over the map's ground raster; planes through the lidar's points
# around the car lie 0.29, 0.33 and 0.34 m below the origin.
AXLE_HEIGHT = 0.32  # [m]
BASE_FROM_EGO = SE3(np.eye(3), np.array([0.0, 0.0, AXLE_HEIGHT]))

STILL = "still"
# What each of the data set's 30 categories is here: one of `CLASSES`; `still`, a solid, and an
# `obstacle` if one could drive into it; or None, not simulated at all.
CATEGORIES: Mapping[str, str | None] = {
    "ANIMAL": None,
    "ARTICULATED_BUS": "truck",
    "BICYCLE": "cyclist",
    "BICYCLIST": "cyclist",
    "BOLLARD": STILL,
    "BOX_TRUCK": "truck",
    "BUS": "truck",
    "CONSTRUCTION_BARREL": STILL,
    "CONSTRUCTION_CONE": STILL,
    "DOG": None,
    "LARGE_VEHICLE": "truck",
    "MESSAGE_BOARD_TRAILER": "truck",
    "MOBILE_PEDESTRIAN_CROSSING_SIGN": STILL,
    "MOTORCYCLE": "cyclist",
    "MOTORCYCLIST": "cyclist",
    "OFFICIAL_SIGNALER": "pedestrian",
    "PEDESTRIAN": "pedestrian",
    "RAILED_VEHICLE": "truck",
    "REGULAR_VEHICLE": "car",
    "SCHOOL_BUS": "truck",
    "SIGN": STILL,
    "STOP_SIGN": STILL,
    "STROLLER": "pedestrian",
    "TRAFFIC_LIGHT_TRAILER": "truck",
    "TRUCK": "truck",
    "TRUCK_CAB": "truck",
    "VEHICULAR_TRAILER": "truck",
    "WHEELCHAIR": "pedestrian",
    "WHEELED_DEVICE": "cyclist",
    "WHEELED_RIDER": "cyclist",
}
# The data set boxes a bicycle and its rider apart. Ridden, it is part of the rider; parked, it is `still`.
RIDDEN = frozenset({"BICYCLE", "MOTORCYCLE", "WHEELED_DEVICE"})
RIDERS = frozenset({"BICYCLIST", "MOTORCYCLIST", "WHEELED_RIDER"})
TRAILERS = frozenset({"VEHICULAR_TRAILER", "MESSAGE_BOARD_TRAILER", "TRAFFIC_LIGHT_TRAILER"})

# Our sensor names and the data set's.
RING_CAMERAS = {"front": "ring_front_center", "left": "ring_front_left", "right": "ring_front_right"}
LIDAR_NAME, LOG_LIDAR = "top", "up_lidar"

_QUATERNION, _POSITION = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m")
_EXPECTED = (
    "expected a log of the Argoverse 2 sensor data set: annotations.feather, city_SE3_egovehicle.feather "
    "and map/log_map_archive_*.json"
)


@dataclass(frozen=True)
class Annotations:
    """All boxes of a log, ordered by time.

    Attributes:
        stamps_ns_A: (A,) int64, of the sweep.
        tracks_A: (A,) int64, row of `track_ids`.
        centers_A3: (A, 3) [m], ego frame at that instant.
        quaternions_A4: (A, 4) x, y, z, w of `ego_from_box`.
        sizes_A3: (A, 3) length, width, height [m].
        num_points_A: (A,) int64, lidar points inside, as the data set says.
        track_ids, categories: For each of N tracks, in order of first appearance.
    """

    stamps_ns_A: NDArray[np.int64]
    tracks_A: NDArray[np.int64]
    centers_A3: NDArray[np.float64]
    quaternions_A4: NDArray[np.float64]
    sizes_A3: NDArray[np.float64]
    num_points_A: NDArray[np.int64]
    track_ids: tuple[str, ...]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Poses:
    """Where the recording car was.

    Attributes:
        stamps_ns_T: (T,) int64, rising.
        quaternions_T4: (T, 4) x, y, z, w of `city_from_ego`.
        positions_T3: (T, 3) [m], city frame.
    """

    stamps_ns_T: NDArray[np.int64]
    quaternions_T4: NDArray[np.float64]
    positions_T3: NDArray[np.float64]

    def at(self, stamps_ns_K: NDArray[np.int64]) -> tuple[Rotation, NDArray[np.float64]]:
        """`city_from_ego` at instants: K rotations and positions (K, 3) [m], interpolated.

        Raises:
            InputError: If the poses do not cover an instant.
        """
        first, last = int(self.stamps_ns_T[0]), int(self.stamps_ns_T[-1])
        outside = stamps_ns_K[(stamps_ns_K < first) | (stamps_ns_K > last)]
        if len(outside):
            raise InputError(
                f"no pose of the recording car at {outside[0]} ns; city_SE3_egovehicle.feather covers "
                f"{first}..{last} ns"
            )
        times = (self.stamps_ns_T - first) * 1e-9
        wanted = np.clip((stamps_ns_K - first) * 1e-9, 0.0, times[-1])
        positions = np.stack([np.interp(wanted, times, self.positions_T3[:, i]) for i in range(3)], axis=-1)
        return Slerp(times, Rotation.from_quat(self.quaternions_T4))(wanted), positions

    def city_from_ego(self, stamp_ns: int) -> SE3:
        """The pose at one instant.

        Raises:
            InputError: If the poses do not cover it.
        """
        rotations, positions = self.at(np.array([stamp_ns], np.int64))
        return SE3(rotations[0].as_matrix(), positions[0])


@dataclass(frozen=True)
class Lane:
    """A lane segment of the vector map.

    Attributes:
        lane_type: `VEHICLE`, `BUS` or `BIKE`.
        left_K2, right_K2: Boundaries (K, 2) [m], city frame, in driving direction.
        left_mark, right_mark: Paint on them, e.g. `DASHED_WHITE`.
        successors: Lanes that it leads to; some are beyond the map.
        left, right: The lanes beside it, perhaps of the other direction.
    """

    lane_id: int
    lane_type: str
    left_K2: NDArray[np.float64]
    right_K2: NDArray[np.float64]
    left_mark: str
    right_mark: str
    successors: tuple[int, ...]
    left: int | None
    right: int | None


@dataclass(frozen=True)
class CameraCalibration:
    """A camera of the log; its pictures are published undistorted, so that the distortion is of no use."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    width: int
    height: int


@dataclass(frozen=True)
class Log:
    """One log; sweeps and pictures are read when asked for.

    Attributes:
        directory: Where it is.
        log_id: Name of the directory.
        lanes: By number.
        drivable: Polygons (K, 2) [m], city frame.
        sweeps_ns: (S,) int64, rising: stamps of the sweeps that are there.
        images_ns: The same for each camera that has pictures, by the data set's name.
        ego_from_sensor: Calibration by the data set's name; empty if the log has none.
        cameras: Intrinsics, likewise.
    """

    directory: Path
    log_id: str
    annotations: Annotations
    poses: Poses
    lanes: Mapping[int, Lane]
    drivable: tuple[NDArray[np.float64], ...]
    sweeps_ns: NDArray[np.int64]
    images_ns: Mapping[str, NDArray[np.int64]]
    ego_from_sensor: Mapping[str, SE3]
    cameras: Mapping[str, CameraCalibration]

    def sweep(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Points (P, 3) [m], ego frame at the stamp, and intensities (P,) in [0, 1] of a sweep.

        Args:
            stamp_ns: One of `sweeps_ns`.
        Raises:
            InputError: If the file is malformed.
        """
        path = self.directory / "sensors" / "lidar" / f"{stamp_ns}.feather"
        columns = _columns(path, numbers=("x", "y", "z", "intensity"))
        points = np.stack([columns[name] for name in "xyz"], axis=-1)
        return points, np.clip(columns["intensity"] / 255.0, 0.0, 1.0).astype(np.float32)

    def image(self, camera: str, stamp_ns: int) -> NDArray[np.uint8]:
        """A picture (H, W, 3) RGB.

        Args:
            camera: Name in the data set, e.g. `ring_front_center`.
            stamp_ns: One of `images_ns[camera]`.
        Raises:
            InputError: If it cannot be decoded.
        """
        path = self.directory / "sensors" / "cameras" / camera / f"{stamp_ns}.jpg"
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise InputError(f"{path} is not a picture that OpenCV can decode; copy the log again")
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_log(directory: str | Path) -> Log:
    """Read everything of a log but sweeps and pictures.

    Args:
        directory: Of the log, named by its identifier.
    Raises:
        InputError: If it is no log, or a file is missing, malformed or has a category that is not known.
    """
    root = Path(directory).resolve()
    if not root.is_dir():
        raise InputError(f"no log at {directory}: no such directory; {_EXPECTED}")
    for name in ("annotations.feather", "city_SE3_egovehicle.feather"):
        if not (root / name).is_file():
            hint = " (the logs of the `test` split are published without)" if "annot" in name else ""
            raise InputError(f"{directory} has no {name}{hint}; {_EXPECTED}")
    archives = sorted((root / "map").glob("log_map_archive_*.json"))
    if not archives:
        raise InputError(f"{directory} has no map/log_map_archive_*.json; {_EXPECTED}")
    lanes, drivable = _map(archives[0])
    ego_from_sensor, cameras = _calibration(root / "calibration")
    pictures = {
        path.name: _stamps(path, "jpg")
        for path in sorted((root / "sensors" / "cameras").glob("*"))
        if path.is_dir()
    }
    return Log(
        directory=root,
        log_id=root.name,
        annotations=_annotations(root / "annotations.feather"),
        poses=_poses(root / "city_SE3_egovehicle.feather"),
        lanes=lanes,
        drivable=drivable,
        sweeps_ns=_stamps(root / "sensors" / "lidar", "feather"),
        images_ns={name: stamps for name, stamps in pictures.items() if len(stamps)},
        ego_from_sensor=ego_from_sensor,
        cameras=cameras,
    )


def boxes_in_city(log: Log) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (A, 3) [m] and yaws (A,) [rad] of all annotated boxes, city frame.

    Raises:
        InputError: If there is no pose for an annotated instant.
    """
    a = log.annotations
    rotations, positions = log.poses.at(a.stamps_ns_A)
    turned = (rotations * Rotation.from_quat(a.quaternions_A4)).as_matrix()
    return rotations.apply(a.centers_A3) + positions, np.arctan2(turned[:, 1, 0], turned[:, 0, 0])


def log_rig(log: Log | str | Path) -> Rig:
    """The recording car as a rig: lidar `top`, and those of `front`, `left`, `right` that are calibrated.

    The two stacked 32-beam lidars count as one of 64 beams at the place of the upper one.

    Args:
        log: A log or its directory.
    Raises:
        InputError: If the log has no calibration.
    """
    if not isinstance(log, Log):
        log = read_log(log)
    if LOG_LIDAR not in log.ego_from_sensor:
        raise InputError(
            f"log {log.log_id} has no calibration of {LOG_LIDAR} "
            "(calibration/egovehicle_SE3_sensor.feather); name a rig of your own"
        )
    sensors: list[Camera | Lidar] = [
        Lidar(
            name=LIDAR_NAME,
            topic="/lidar/points",
            frame_id="lidar_top",
            mount=_mount(BASE_FROM_EGO @ log.ego_from_sensor[LOG_LIDAR]),
            latency_ms=50.0,
            num_beams=64,
            elevation_min_deg=-25.0,
            elevation_max_deg=15.0,
            azimuth_step_deg=0.2,
            max_range=120.0,
        )
    ]
    body_from_optical = SE3(BODY_FROM_OPTICAL, np.zeros(3))
    for name, source in RING_CAMERAS.items():
        if source not in log.cameras or source not in log.ego_from_sensor:
            continue
        base_from_body = BASE_FROM_EGO @ log.ego_from_sensor[source] @ body_from_optical.inverse()
        sensors.append(
            Camera(
                name=name,
                topic=f"/camera/{name}/image/compressed",
                frame_id=f"camera_{name}_optical",
                mount=_mount(base_from_body),
                rate_hz=20.0,
                tolerance_ms=30.0,
                latency_ms=25.0,
                **vars(log.cameras[source]),
            )
        )
    # A Ford Fusion Hybrid; the centre is 1.36 m ahead of the rear axle.
    return Rig(name="argoverse2", ego_length=4.87, ego_width=1.85, ego_center_x=1.36, sensors=tuple(sensors))


def _mount(base_from_body: SE3) -> Mount:
    roll, pitch, yaw = Rotation.from_matrix(base_from_body.rotation).as_euler("xyz", degrees=True).tolist()
    x, y, z = base_from_body.translation.tolist()
    return Mount(xyz=(x, y, z), rpy_deg=(roll, pitch, yaw))


def _stamps(directory: Path, extension: str) -> NDArray[np.int64]:
    names = [path.stem for path in directory.glob(f"*.{extension}")]
    return np.array(sorted(int(name) for name in names if name.isdecimal()), np.int64)


def _columns(
    path: Path, *, numbers: tuple[str, ...] = (), whole: tuple[str, ...] = (), texts: tuple[str, ...] = ()
) -> dict[str, NDArray[Any]]:
    """Columns of a feather file as float64, int64 or str arrays; nothing missing, nothing infinite.

    Raises:
        InputError: If it cannot be read as that.
    """
    try:
        table = feather.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected a feather file, copy the log again"
        ) from error
    missing = [name for name in (*numbers, *whole, *texts) if name not in table.column_names]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    columns: dict[str, NDArray[Any]] = {}
    for names, kind in ((numbers, pa.float64()), (whole, pa.int64()), (texts, pa.string())):
        for name in names:
            column = table[name]
            try:
                values = column.cast(kind).to_numpy()
            except (pa.ArrowException, ValueError) as error:
                raise InputError(f"{path}: column {name} is {column.type}, expected {kind}") from error
            if column.null_count or (kind == pa.float64() and not np.isfinite(values).all()):
                raise InputError(f"{path}: column {name} has missing or non-finite values")
            columns[name] = values
    return columns


def _quaternions(columns: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.float64]:
    """(K, 4) x, y, z, w from columns qw, qx, qy, qz."""
    wxyz = np.stack([columns[name] for name in _QUATERNION], axis=-1)
    norms = np.linalg.norm(wxyz, axis=1)
    if len(norms) and np.abs(norms - 1.0).max() > 0.1:
        wrong = norms[np.argmax(np.abs(norms - 1.0))]
        raise InputError(f"{path} has a quaternion of norm {wrong:.3f}, expected 1")
    return np.asarray(wxyz[:, [1, 2, 3, 0]] / norms[:, None])


def _annotations(path: Path) -> Annotations:
    size = ("length_m", "width_m", "height_m")
    columns = _columns(
        path,
        numbers=(*size, *_QUATERNION, *_POSITION),
        whole=("timestamp_ns", "num_interior_pts"),
        texts=("track_uuid", "category"),
    )
    if not len(columns["timestamp_ns"]):
        raise InputError(f"{path} has no box; {_EXPECTED}")
    unknown = sorted(set(columns["category"].tolist()) - set(CATEGORIES))
    if unknown:
        raise InputError(
            f"{path} has the category {', '.join(unknown)}; known are the {len(CATEGORIES)} of the sensor "
            f"data set: {', '.join(CATEGORIES)}"
        )
    sizes = np.stack([columns[name] for name in size], axis=-1)
    if sizes.min() <= 0.0:
        raise InputError(f"{path} has a box of size {sizes.min():g} m, expected more than 0")
    order = np.lexsort((columns["track_uuid"].astype(str), columns["timestamp_ns"]))
    rows: dict[str, int] = {}
    tracks = np.array(
        [rows.setdefault(t, len(rows)) for t in columns["track_uuid"][order].tolist()], np.int64
    )
    categories = [""] * len(rows)
    for track, category in zip(tracks.tolist(), columns["category"][order].tolist(), strict=True):
        categories[track] = category
    return Annotations(
        stamps_ns_A=columns["timestamp_ns"][order],
        tracks_A=tracks,
        centers_A3=np.stack([columns[name] for name in _POSITION], axis=-1)[order],
        quaternions_A4=_quaternions(columns, path)[order],
        sizes_A3=sizes[order],
        num_points_A=columns["num_interior_pts"][order],
        track_ids=tuple(rows),
        categories=tuple(categories),
    )


def _poses(path: Path) -> Poses:
    columns = _columns(path, numbers=(*_QUATERNION, *_POSITION), whole=("timestamp_ns",))
    stamps, rows = np.unique(columns["timestamp_ns"], return_index=True)
    if len(stamps) < 2:
        raise InputError(f"{path} has {len(stamps)} poses, expected at least 2; {_EXPECTED}")
    positions = np.stack([columns[name] for name in _POSITION], axis=-1)
    return Poses(stamps, _quaternions(columns, path)[rows], positions[rows])


def _map(path: Path) -> tuple[dict[int, Lane], tuple[NDArray[np.float64], ...]]:
    def points(items: Any) -> NDArray[np.float64]:
        line = np.array([(item["x"], item["y"]) for item in items], np.float64).reshape(-1, 2)
        if len(line) < 2 or not np.isfinite(line).all():
            raise ValueError(f"a line of {len(line)} points, or with a non-finite one")
        return line

    def neighbour(item: Any) -> int | None:
        return None if item is None else int(item)

    lanes: dict[int, Lane] = {}
    try:
        archive = json.loads(path.read_text(encoding="utf-8"))
        for item in archive["lane_segments"].values():
            lane = Lane(
                lane_id=int(item["id"]),
                lane_type=str(item["lane_type"]),
                left_K2=points(item["left_lane_boundary"]),
                right_K2=points(item["right_lane_boundary"]),
                left_mark=str(item["left_lane_mark_type"]),
                right_mark=str(item["right_lane_mark_type"]),
                successors=tuple(int(i) for i in item["successors"]),
                left=neighbour(item["left_neighbor_id"]),
                right=neighbour(item["right_neighbor_id"]),
            )
            lanes[lane.lane_id] = lane
        drivable = tuple(points(item["area_boundary"]) for item in archive["drivable_areas"].values())
    except OSError as error:
        raise InputError(f"cannot read the map {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is no map of Argoverse 2: {what}; copy the log again") from error
    if not lanes or not drivable:
        raise InputError(f"{path} has {len(lanes)} lanes and {len(drivable)} drivable areas, expected some")
    return lanes, drivable


def _calibration(directory: Path) -> tuple[dict[str, SE3], dict[str, CameraCalibration]]:
    """Extrinsics and intrinsics; empty where the files are not there."""
    ego_from_sensor: dict[str, SE3] = {}
    cameras: dict[str, CameraCalibration] = {}
    path = directory / "egovehicle_SE3_sensor.feather"
    if path.is_file():
        columns = _columns(path, numbers=(*_QUATERNION, *_POSITION), texts=("sensor_name",))
        rotations = Rotation.from_quat(_quaternions(columns, path).reshape(-1, 4)).as_matrix()
        positions = np.stack([columns[name] for name in _POSITION], axis=-1)
        for name, rotation, position in zip(columns["sensor_name"], rotations, positions, strict=True):
            ego_from_sensor[str(name)] = SE3(rotation, position)
    path = directory / "intrinsics.feather"
    if path.is_file():
        numbers = ("fx_px", "fy_px", "cx_px", "cy_px")
        columns = _columns(path, numbers=numbers, whole=("width_px", "height_px"), texts=("sensor_name",))
        for i, name in enumerate(columns["sensor_name"]):
            fx, fy, cx, cy = (float(columns[key][i]) for key in numbers)
            if not (fx > 0.0 and fy > 0.0 and columns["width_px"][i] > 0 and columns["height_px"][i] > 0):
                raise InputError(f"{path}: camera {name} has a focal length or size that is not positive")
            cameras[str(name)] = CameraCalibration(
                fx, fy, cx, cy, int(columns["width_px"][i]), int(columns["height_px"][i])
            )
    return ego_from_sensor, cameras
