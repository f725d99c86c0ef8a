"""An Argoverse 2 log as training takes it: at each annotated sweep the sensors, labels and map that it has.

Everything is as recorded: nobody is simulated, and a sensor that the log has nothing of at an instant is
missing in that frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE2, SE3, rotation_from_yaw, wrap_angle
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Camera, Lidar, Rig
from e2e_perception.core.samples import AssembledFrame, ImageSample, PointsSample, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.argoverse import (
    BASE_FROM_EGO,
    CATEGORIES,
    RIDDEN,
    RIDERS,
    RING_CAMERAS,
    STILL,
    Log,
)
from e2e_perception.simulation.labels import road_maps
from e2e_perception.simulation.log_map import road_of

ODOMETRY_NS = 20_000_000
SAME_TIME_NS = 60_000_000  # of a sweep or picture and the annotated instant
RIDER_NEAR = 1.6  # [m] between the box of a bicycle and that of who rides it
TWIST_NS = 50_000_000
VELOCITY_NS = 250_000_000  # a label's velocity is that over the labels this far before and after


@dataclass(frozen=True)
class LogFrame:
    """One annotated sweep.

    Attributes:
        frame: Sensors, as the assembler would give them.
        boxes: Labels, base frame; the score is 1 for what lidar points lie on, in a frame that has any
            sensor, and 0 for the others.
        maps_2YX: Drivable area and boundaries, see `Clip`.
    """

    frame: AssembledFrame
    boxes: Boxes
    maps_2YX: NDArray[np.uint8]


class LogFrames:
    """Frames of a log in order.

    Attributes:
        log: The log.
        rig: Its sensors.
        network: For the maps.
        stamps_ns: Of the annotated sweeps, in the log's time [ns].
        left_out: Tracks that are not labels here, by category.
        kept: Tracks that are, by class.
    """

    def __init__(self, log: Log, rig: Rig, network: NetworkConfig) -> None:
        """Prepare.

        Args:
            log: As read.
            rig: The recording car (`log_rig`), or at least its lidar.
            network: For the maps.
        """
        self.log, self.rig, self.network = log, rig, network
        self.stamps_ns = np.unique(log.annotations.stamps_ns_A)
        first = log.poses.city_from_ego(int(self.stamps_ns[0])) @ BASE_FROM_EGO.inverse()
        # The odometry frame stands level where the log begins.
        self.odom_from_city = SE3(rotation_from_yaw(first.yaw), first.translation).inverse()
        self._road = road_of(log, self.odom_from_city.planar_part())
        self._classes_N = np.array(
            [-1 if (name := class_of(category)) is None else CLASSES.index(name)
             for category in log.annotations.categories]
        )  # fmt: skip
        named = list(zip(log.annotations.categories, self._classes_N.tolist(), strict=True))
        self.left_out = dict(Counter(category for category, class_id in named if class_id < 0))
        self.kept = dict(Counter(CLASSES[class_id] for _, class_id in named if class_id >= 0))
        self._odom_A4 = self._annotations_in_odom()
        self._velocities_A2 = self._velocities()
        poses = log.poses.stamps_ns_T
        self._drive_ns = np.unique(
            np.concatenate([np.arange(poses[0], poses[-1], ODOMETRY_NS), self.stamps_ns, poses[-1:]])
        )
        self._drive = self._states(self._drive_ns)

    @property
    def route(self) -> Route:
        """The way that the car went, odom frame: where to go, not how fast."""
        places, _ = self._planar(self.stamps_ns)
        points = [places[0, :2].tolist()]
        for place in places[:, :2]:
            if np.linalg.norm(place - points[-1]) > 1.0:
                points.append(place.tolist())
        end = self.ego_at(int(self.stamps_ns[-1])).odom_from_base.planar_part()
        points += [end.apply(np.array([ahead, 0.0])).tolist() for ahead in (2.0, 100.0)]
        return Route(np.array(points))

    def ego_at(self, stamp_ns: int) -> EgoState:
        """The car at an instant.

        Raises:
            InputError: If the log's poses do not cover it.
        """
        return self._states(np.array([stamp_ns], np.int64))[0]

    def odometry(self, after_ns: int, until_ns: int) -> list[EgoState]:
        """Every 20 ms in (after, until], and at the annotated sweeps, where poses cover it."""
        first, last = np.searchsorted(self._drive_ns, (after_ns, until_ns), side="right")
        return self._drive[first:last]

    def _states(self, stamps_ns_K: NDArray[np.int64]) -> list[EgoState]:
        """The car at instants; the twist is from its poses 50 ms before and after."""
        first, last = int(self.log.poses.stamps_ns_T[0]), int(self.log.poses.stamps_ns_T[-1])
        before, after = (np.clip(stamps_ns_K + d, first, last) for d in (-TWIST_NS, TWIST_NS))
        (a_K3, yaw_a_K), (here_K3, yaw_K), (b_K3, yaw_b_K) = map(self._planar, (before, stamps_ns_K, after))
        seconds_K = (after - before) * 1e-9
        states = []
        for k, stamp_ns in enumerate(stamps_ns_K.tolist()):
            yaw = float(yaw_K[k])
            velocity = SE2(0.0, 0.0, -yaw).rotate((b_K3[k, :2] - a_K3[k, :2]) / seconds_K[k])
            pose = SE3.planar(float(here_K3[k, 0]), float(here_K3[k, 1]), yaw)
            turned = float(wrap_angle(yaw_b_K[k] - yaw_a_K[k]))
            states.append(EgoState(stamp_ns, pose, np.append(velocity, 0.0), turned / float(seconds_K[k])))
        return states

    def _planar(self, stamps_ns_K: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`base_link` (K, 3) [m] and its yaw (K,) [rad], odom frame."""
        rotations, positions = self.log.poses.at(stamps_ns_K)
        below = rotations.apply(BASE_FROM_EGO.inverse().translation) + positions
        forward = rotations.as_matrix()[:, :, 0] @ self.odom_from_city.rotation.T
        return self.odom_from_city.apply(below), np.arctan2(forward[:, 1], forward[:, 0])

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __iter__(self) -> Iterator[LogFrame]:
        for number, stamp_ns in enumerate(self.stamps_ns.tolist()):
            messages = self._messages(stamp_ns)
            absent = {s.name: "silent" for s in self.rig.sensors if s.name not in messages}
            frame = AssembledFrame(stamp_ns, self.rig.sensors[0].name, messages, absent, stamp_ns, number)
            pose = self.ego_at(stamp_ns).odom_from_base.planar_part()
            maps = road_maps(self._road, pose.inverse(), self.network.bev_grid)
            yield LogFrame(frame, self.boxes_at(stamp_ns, seen=bool(messages)), maps)

    # ------------------------------------------------------------------ sensors

    def _messages(self, stamp_ns: int) -> dict[str, SensorMessage]:
        messages: dict[str, SensorMessage] = {}
        for sensor in self.rig.sensors:
            if isinstance(sensor, Lidar):
                taken_ns = nearest(self.log.sweeps_ns, stamp_ns)
                if taken_ns is not None:
                    points, intensity = self.log.sweep(taken_ns)
                    moved = (sensor.base_from_sensor.inverse() @ BASE_FROM_EGO).apply(points)
                    x, y, z = moved.T.astype(np.float32)
                    payload = PointsSample({"x": x, "y": y, "z": z, "intensity": intensity})
                    messages[sensor.name] = SensorMessage(sensor.name, taken_ns, taken_ns, payload)
            elif isinstance(sensor, Camera) and sensor.name in RING_CAMERAS:
                source = RING_CAMERAS[sensor.name]
                taken_ns = nearest(self.log.images_ns.get(source, np.zeros(0, np.int64)), stamp_ns)
                if taken_ns is not None:
                    picture = ImageSample(self.log.image(source, taken_ns))
                    messages[sensor.name] = SensorMessage(sensor.name, taken_ns, taken_ns, picture)
        return messages

    # ------------------------------------------------------------------ labels

    def table(self) -> pa.Table:
        """Every annotated box, also beyond the grid or of no class here; odom frame.

        Columns: `stamp_ns`, `identity` (as in clips), `track`, `category` (as in the data set), `class` (or
        null), `x`, `y`, `z`, `length`, `width`, `height` [m], `yaw` [rad], `lidar_points`.
        """
        a = self.log.annotations
        names = [CLASSES[c] if c >= 0 else None for c in self._classes_N.tolist()]
        tracks = a.tracks_A.tolist()
        return pa.table(
            {
                "stamp_ns": a.stamps_ns_A,
                "identity": a.tracks_A,
                "track": [a.track_ids[n] for n in tracks],
                "category": [a.categories[n] for n in tracks],
                "class": pa.array([names[n] for n in tracks], pa.string()),
                **{key: self._odom_A4[:, k] for k, key in enumerate(("x", "y", "z", "yaw"))},
                **{key: a.sizes_A3[:, k] for k, key in enumerate(("length", "width", "height"))},
                "lidar_points": a.num_points_A,
            }
        )

    def _annotations_in_odom(self) -> NDArray[np.float64]:
        """(A, 4) x, y, z [m] and yaw [rad] of every annotated box, odom frame."""
        a = self.log.annotations
        rotations, positions = self.log.poses.at(a.stamps_ns_A)
        turned = (rotations * Rotation.from_quat(a.quaternions_A4)).as_matrix()
        yaws = np.arctan2(turned[:, 1, 0], turned[:, 0, 0]) + self.odom_from_city.yaw
        return np.column_stack([self.odom_from_city.apply(rotations.apply(a.centers_A3) + positions), yaws])

    def boxes_at(self, stamp_ns: int, *, seen: bool) -> Boxes:
        """Labels of one sweep, base frame, identities are rows of the log's tracks.

        Args:
            stamp_ns: One of `stamps_ns`.
            seen: Whether there is any sensor that could have seen them.
        """
        a = self.log.annotations
        rows = np.flatnonzero(a.stamps_ns_A == stamp_ns)
        rows = rows[self._classes_N[a.tracks_A[rows]] >= 0]
        rows = rows[~self._is_ridden(rows)]
        pose = self.ego_at(stamp_ns).odom_from_base.planar_part()
        base_from_odom = pose.inverse()
        places = self._odom_A4[rows]
        points = a.num_points_A[rows]
        # Height above the ground that the robot stands on.
        ego_from_base = BASE_FROM_EGO.inverse()
        z = a.centers_A3[rows, 2] - ego_from_base.translation[2]
        return Boxes(
            centers_N3=np.column_stack([base_from_odom.apply(places[:, :2]), z]).astype(np.float32),
            sizes_N3=a.sizes_A3[rows].astype(np.float32),
            yaws_N=np.asarray(wrap_angle(places[:, 3] + base_from_odom.yaw), np.float32),
            velocities_N2=base_from_odom.rotate(self._velocities_A2[rows]).astype(np.float32),
            class_ids_N=self._classes_N[a.tracks_A[rows]].astype(np.int64),
            scores_N=(points > 0).astype(np.float32) * np.float32(seen),
            ids_N=a.tracks_A[rows].astype(np.int64),
        )

    def _velocities(self) -> NDArray[np.float64]:
        """(A, 2) [m/s] of every annotated box, odom axes, over the labels of its track around it."""
        a = self.log.annotations
        velocities = np.zeros((len(a.tracks_A), 2))
        for track in range(len(a.track_ids)):
            own = np.flatnonzero(a.tracks_A == track)  # in order of time
            stamps = a.stamps_ns_A[own]
            before = own[np.searchsorted(stamps, stamps - VELOCITY_NS)]
            after = own[np.searchsorted(stamps, stamps + VELOCITY_NS, side="right") - 1]
            seconds = np.maximum((a.stamps_ns_A[after] - a.stamps_ns_A[before]) * 1e-9, 1e-9)
            velocities[own] = (self._odom_A4[after, :2] - self._odom_A4[before, :2]) / seconds[:, None]
        return velocities

    def _is_ridden(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """A bicycle with somebody on it is part of who rides it; the data set boxes both."""
        names = np.array([self.log.annotations.categories[t] for t in self.log.annotations.tracks_A[rows]])
        ridden = np.isin(names, list(RIDDEN))
        riders = np.isin(names, list(RIDERS))
        if not ridden.any() or not riders.any():
            return np.zeros(len(rows), np.bool_)
        places = self._odom_A4[rows, :2]
        gaps = np.linalg.norm(places[:, None] - places[None, riders], axis=-1).min(axis=1)
        return np.asarray(ridden & (gaps < RIDER_NEAR))


def class_of(category: str) -> str | None:
    """One of `CLASSES` for a category of the data set; None: not a label here."""
    name = CATEGORIES[category]
    return "obstacle" if name == STILL else name


def nearest(stamps_ns: NDArray[np.int64], stamp_ns: int) -> int | None:
    """The stamp closest to an instant, if it is within `SAME_TIME_NS`."""
    if not len(stamps_ns):
        return None
    found = int(stamps_ns[np.abs(stamps_ns - stamp_ns).argmin()])
    return found if abs(found - stamp_ns) <= SAME_TIME_NS else None
