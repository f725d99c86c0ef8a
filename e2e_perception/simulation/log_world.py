"""A recorded log as a world: the others replay it or yield to the robot, the map gives road and route.

What is recorded and what is modelled is stated in `LogWorld.provenance`; docs/logs.md tells how to use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, SE3, rotation_from_yaw, wrap_angle
from e2e_perception.core.rig import Camera, Lidar, Radar, Rig
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.appearance import CAR, CYCLIST, PEDESTRIAN, TRUCK, Look, parts_of
from e2e_perception.simulation.argoverse import BASE_FROM_EGO, RING_CAMERAS, Log, log_rig, read_log
from e2e_perception.simulation.log_agents import LoggedTraffic, Tracks, rates, tracks_on_steps
from e2e_perception.simulation.log_map import lane_route, progress, road_of
from e2e_perception.simulation.scene import Conditions
from e2e_perception.simulation.world import (
    NEARBY,
    START_NS,
    STEP_NS,
    STEP_S,
    AgentHistory,
    AgentStates,
    Cast,
    Imagined,
)

MIN_DURATION_S = 2.0
SPEED_LIMIT = 13.4  # [m/s] (30 mph), unless the log drives faster; the map states none
DRIVEN_UNDER = 2.0  # [m] above which a sign hangs over the road
GOAL_SHARE = 0.9  # of the logged progress

# How far the robot may be from where a measurement was recorded, and how far in time the measurement.
SAME_DISTANCE = 0.3  # [m]
SAME_ANGLE = float(np.deg2rad(2.0))
SAME_TIME_NS = 50_000_000

# How far a camera of the caller's rig may be from the log's calibration to show the log's pictures.
MOUNT_TOLERANCE = (0.01, 0.2)  # [m], [deg]
PIXEL_TOLERANCE = 1.0  # [px]

_SMOOTHING_STEP_NS, _SMOOTHING_WINDOW = 20_000_000, 25  # of the recording car's twist: half a second
_MARGIN_NS = 500_000_000


class LogWorld:
    """An Argoverse 2 log, see `World` for its other attributes.

    Attributes:
        obstacles_O5: (O, 5) x, y [m], yaw [rad], length, width [m] of the still solids that can be run into.
        reactive: Whether the others yield to a robot that is not where the recording car was.
        log: What was read.
        tracks: What the agents did in the log.
        log_minus_world_ns: Log time minus world time [ns].
        odom_from_city: Origin on the ground at the robot's first pose, turned about the vertical only.
        lanes: Numbers of the route's lanes.
    """

    family = "log"
    seed = 0
    difficulty = 0.0

    def __init__(
        self,
        log: Log | str | Path,
        *,
        reactive: bool = False,
        start_s: float = 0.0,
        duration_s: float | None = None,
        rig: Rig | None = None,
    ) -> None:
        """Read a log, or take one that was read.

        Args:
            log: The log or its directory.
            reactive: The others slow down for the robot; otherwise they replay the log whatever it does.
            start_s: Since the first annotated sweep [s].
            duration_s: Of the episode [s]; None: to the end, less one step.
            rig: The robot's sensors, for `recorded`, and its size; None: nothing recorded is shown.
        Raises:
            InputError: If the directory is no log, is malformed, or is too short for what was asked.
        """
        self.log = log if isinstance(log, Log) else read_log(log)
        self.name = f"log:{self.log.log_id}"
        self.reactive = reactive
        self._rig = rig
        steps_ns = self._steps(start_s, duration_s)
        self.log_minus_world_ns = int(steps_ns[0]) - START_NS
        self.start_ns = START_NS
        self.end_ns = START_NS + (len(steps_ns) - 2) * STEP_NS
        city_from_base = self.log.poses.city_from_ego(int(steps_ns[0])) @ BASE_FROM_EGO.inverse()
        level = SE3(rotation_from_yaw(city_from_base.yaw), city_from_base.translation)
        self.odom_from_city = level.inverse()
        self._prepare_drive(steps_ns)
        self.tracks, clutter = tracks_on_steps(self.log, steps_ns, self.odom_from_city)
        self._set_task(steps_ns)
        low_C = clutter[:, 2] - clutter[:, 5] / 2.0 < DRIVEN_UNDER
        self.cast = _cast(self.log, self.tracks, clutter, low_C, self.odom_from_city.planar_part())
        self.provenance: Mapping[str, str] = self._provenance()
        self.obstacles_O5 = self.cast.obstacles_O5
        self._traffic = LoggedTraffic(self.tracks)
        self._history = AgentHistory(self.start_ns)
        self._history.append(self._traffic.states)
        self.start = self.logged_ego(self.start_ns)
        self._driven = EgoMotionBuffer()
        self._driven.add(self.start)
        self._cameras = _matching_cameras(self.log, rig)

    # ---------------------------------------------------------------- what is known of the log

    def _steps(self, start_s: float, duration_s: float | None) -> NDArray[np.int64]:
        """The log's time at each of our steps [ns]: those of the episode and one beyond."""
        sweeps = np.unique(self.log.annotations.stamps_ns_A)
        length_s = float(sweeps[-1] - sweeps[0]) * 1e-9
        later = sweeps[sweeps >= sweeps[0] + round(start_s * 1e9)]
        if not (np.isfinite(start_s) and start_s >= 0.0 and len(later)):
            raise InputError(f"log {self.log.log_id} has {length_s:.1f} s; it cannot start at {start_s:g} s")
        num_left = int((sweeps[-1] - later[0]) // STEP_NS) - 1
        num = num_left if duration_s is None else round(duration_s / (STEP_NS * 1e-9))
        if num > num_left or num < round(MIN_DURATION_S / (STEP_NS * 1e-9)):
            asked = "what is left" if duration_s is None else f"a duration of {duration_s:g} s"
            raise InputError(
                f"log {self.log.log_id} has {max(num_left, 0) * STEP_NS * 1e-9:.1f} s from {start_s:g} s on; "
                f"{asked} is not between {MIN_DURATION_S:g} s and that"
            )
        return np.asarray(later[0] + STEP_NS * np.arange(num + 2), np.int64)

    def _prepare_drive(self, steps_ns: NDArray[np.int64]) -> None:
        """The recording car in our plane: pose and twist every 20 ms."""
        stamps = self.log.poses.stamps_ns_T
        low = max(int(steps_ns[0]) - _MARGIN_NS, int(stamps[0]))
        high = min(int(steps_ns[-1]) + _MARGIN_NS, int(stamps[-1]))
        if low > steps_ns[0] or high < steps_ns[-1]:
            raise InputError(
                f"log {self.log.log_id}: poses cover {stamps[0]}..{stamps[-1]} ns, expected all of the "
                f"annotated {steps_ns[0]}..{steps_ns[-1]} ns; start later or drive for a shorter time"
            )
        # At the poses' own stamps, between which the car is interpolated, as exact as the log is.
        exact = np.unique(np.concatenate([[low, high], stamps[(stamps > low) & (stamps < high)]]))
        self._stamps_ns, self._drive_T3 = exact, self._planar(exact)
        even = np.arange(low, high + 1, _SMOOTHING_STEP_NS)
        self._even_ns = even
        self._rates_T3 = rates(self._planar(even), _SMOOTHING_STEP_NS * 1e-9, _SMOOTHING_WINDOW)

    def _planar(self, stamps_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """(T, 3) x, y [m], yaw [rad, continuous] of `base_link`, odom."""
        rotations, positions = self.log.poses.at(stamps_ns)
        below = rotations.apply(BASE_FROM_EGO.inverse().translation) + positions
        forward = rotations.as_matrix()[:, :, 0] @ self.odom_from_city.rotation.T
        yaws = np.unwrap(np.arctan2(forward[:, 1], forward[:, 0]))
        return np.column_stack([self.odom_from_city.apply(below)[:, :2], yaws])

    def logged_ego(self, stamp_ns: int) -> EgoState:
        """The recording car at an instant: the log's own drive, for open loop.

        Args:
            stamp_ns: World time [ns], from the start to one step beyond the end.
        Raises:
            InputError: If it is outside.
        """
        if not self.start_ns <= stamp_ns <= self.end_ns + STEP_NS:
            raise InputError(
                f"{self.name} has no drive at {stamp_ns} ns; it covers "
                f"{self.start_ns}..{self.end_ns + STEP_NS} ns"
            )
        at = stamp_ns + self.log_minus_world_ns
        x, y, yaw = _between(at, self._stamps_ns, self._drive_T3)
        vx, vy, yaw_rate = _between(at, self._even_ns, self._rates_T3)
        base_from_odom = SE2(0.0, 0.0, -yaw)
        velocity = np.append(base_from_odom.rotate(np.array([vx, vy])), 0.0)
        return EgoState(stamp_ns, SE3.planar(x, y, yaw), velocity, yaw_rate)

    def _set_task(self, steps_ns: NDArray[np.int64]) -> None:
        """Route, goal and speed limit."""
        drive = np.stack([_between(int(t), self._stamps_ns, self._drive_T3) for t in steps_ns[:-1]])
        city_from_odom = self.odom_from_city.inverse().planar_part()
        in_city = np.column_stack([city_from_odom.apply(drive[:, :2]), drive[:, 2] + city_from_odom.yaw])
        way = lane_route(self.log.lanes, in_city)
        self.lanes = way.lanes
        self.route: Route = way.route.transformed(self.odom_from_city.planar_part())
        s = progress(self.route, drive[: way.last_pose + 1, :2])
        self.goal_s = float(s[0] + GOAL_SHARE * (s[-1] - s[0]))
        top_speed = float(np.hypot(self._rates_T3[:, 0], self._rates_T3[:, 1]).max())
        self.speed_limit = max(SPEED_LIMIT, top_speed)

    def _provenance(self) -> dict[str, str]:
        first, last = (t + self.log_minus_world_ns for t in (self.start_ns, self.end_ns))
        sweeps = np.unique(self.log.annotations.stamps_ns_A)

        def within(stamps: NDArray[np.int64]) -> int:
            return int(((stamps >= first - SAME_TIME_NS) & (stamps <= last + SAME_TIME_NS)).sum())

        def share(num: int, what: str) -> str:
            return f"recorded {num} of {within(sweeps)} {what}, else modelled" if num else "modelled"

        def pictures(name: str) -> int:
            """Annotated sweeps that have a picture of this camera."""
            stamps = self.log.images_ns[RING_CAMERAS[name]]
            return sum(_nearest(stamps, int(t)) is not None for t in sweeps if first <= t <= last)

        has_lidar = self._rig is not None and bool(self._rig.lidars)
        cameras = _matching_cameras(self.log, self._rig)
        return {
            "agents": "recorded, yielding to the robot (IDM)" if self.reactive else "recorded",
            "map": "recorded",
            "lidar": share(within(self.log.sweeps_ns) if has_lidar else 0, "sweeps"),
            "cameras": share(min(map(pictures, cameras), default=0), "pictures"),
            "radars": "modelled",
        }

    # ---------------------------------------------------------------- the world

    @property
    def known_until_ns(self) -> int:
        """The latest instant at which the agents are known [ns]."""
        return self._history.known_until_ns

    def agents_at(self, stamp_ns: int) -> AgentStates:
        """Everybody else at an instant up to `known_until_ns`.

        Raises:
            InputError: If it is not covered.
        """
        return self._history.at(stamp_ns)

    def advance(self, ego: EgoState) -> None:
        """Move everybody else by one step.

        Where the robot is where the recording car was, nobody who is on time reacts: the log itself shows
        what they did then.

        Args:
            ego: The robot at `known_until_ns`.
        Raises:
            InputError: If it is the robot at another instant, or the log has ended.
        """
        if ego.stamp_ns != self.known_until_ns:
            raise InputError(f"the robot is given at {ego.stamp_ns} ns, expected {self.known_until_ns} ns")
        if ego.stamp_ns > self.end_ns:
            raise InputError(
                f"{self.name} ends at {self.end_ns} ns; it cannot advance from {ego.stamp_ns} ns"
            )
        if ego.stamp_ns > self.start_ns:
            self._driven.add(ego)
        robot = None
        if self.reactive and not _same_place(
            ego.odom_from_base, self.logged_ego(ego.stamp_ns).odom_from_base
        ):
            pose = ego.odom_from_base.planar_part()
            velocity = pose.rotate(ego.velocity[:2])
            robot = np.array([pose.x, pose.y, pose.yaw, *velocity])
        self._traffic.step(robot, _robot_size(self._rig))
        self._history.append(self._traffic.states)

    def imagine(self, ego: EgoState, horizon_s: float, step_s: float) -> Imagined:
        """What everybody did in the log from now on; who yields to the robot is late for it."""
        times_T = np.asarray(step_s * np.arange(1, round(horizon_s / step_s) + 1), np.float64)
        step = (self.known_until_ns - self.start_ns) / STEP_NS
        rows_T = step + times_T / STEP_S
        last = len(self.tracks.poses_TN3) - 1
        before_T = np.minimum(rows_T.astype(np.int64), last)
        after_T = np.minimum(before_T + 1, last)
        f = (rows_T - before_T)[:, None, None]
        poses_TN3 = (1.0 - f) * self.tracks.poses_TN3[before_T] + f * self.tracks.poses_TN3[after_T]
        beyond_T = np.maximum(rows_T - last, 0.0)[:, None, None] * STEP_S
        # After the end of the log everybody goes on as before.
        poses_TN3 = np.where(beyond_T > 0.0, self.tracks.poses_TN3[last], poses_TN3)
        poses_TN3[..., :2] += beyond_T * self.tracks.velocities_TN2[last]
        return Imagined(times_T, poses_TN3, self.tracks.present_TN[before_T], None)

    def sees(self, ego: EgoState, agent: int) -> bool:
        """Nobody is hidden from the driver of a log."""
        return True

    def recorded(self, sensor: str, stamp_ns: int) -> tuple[int, ImageSample | PointsSample] | None:
        """A real sweep or picture of the log, if it shows what the robot would see.

        That is: it was taken within `SAME_TIME_NS`, the robot then is within `SAME_DISTANCE` and `SAME_ANGLE`
        of where the recording car was, and nobody nearby is late. A sweep is moved by what is left of that
        distance; a picture cannot be, and its camera has to be the log's (`log_rig`).

        Args:
            sensor: Name in the rig.
            stamp_ns: When the sensor measures [ns].
        Returns:
            Its own stamp [ns] and the measurement in the frame of the rig's sensor, or None.
        Raises:
            RigError: If the rig has no such sensor.
            InputError: If the file is malformed.
        """
        if self._rig is None:
            return None
        mounted: Camera | Lidar | Radar = self._rig.sensor(sensor)
        source = self._cameras.get(sensor)
        if isinstance(mounted, Lidar):
            stamps = self.log.sweeps_ns
        elif source is not None:
            stamps = self.log.images_ns[source]
        else:
            return None
        taken_ns = _nearest(stamps, stamp_ns + self.log_minus_world_ns)
        if taken_ns is None:
            return None
        own_ns = taken_ns - self.log_minus_world_ns
        driven = self._driven.at(own_ns)
        if driven is None or not self.start_ns <= own_ns <= self.end_ns + STEP_NS:
            return None
        logged = self.logged_ego(own_ns).odom_from_base
        here = driven.odom_from_base
        if not _same_place(here, logged) or self._traffic.differs_near(here.translation[:2], NEARBY):
            return None
        if source is not None:
            return own_ns, ImageSample(self.log.image(source, taken_ns))
        points_ego, intensity = self.log.sweep(taken_ns)
        lidar_from_ego = mounted.base_from_sensor.inverse() @ here.inverse() @ logged @ BASE_FROM_EGO
        x, y, z = lidar_from_ego.apply(points_ego).T.astype(np.float32)
        return own_ns, PointsSample({"x": x, "y": y, "z": z, "intensity": intensity})


def _between(
    stamp_ns: int, stamps_ns_T: NDArray[np.int64], values_TK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(K,) linear between rows; stamps are as long as int64, so that float64 would lose nanoseconds."""
    at = (stamp_ns - int(stamps_ns_T[0])) * 1e-9
    times = (stamps_ns_T - stamps_ns_T[0]) * 1e-9
    return np.array([np.interp(at, times, values_TK[:, k]) for k in range(values_TK.shape[1])])


def _nearest(stamps_ns: NDArray[np.int64], stamp_ns: int) -> int | None:
    """The stamp closest to an instant, if it is within `SAME_TIME_NS`."""
    if not len(stamps_ns):
        return None
    nearest = int(stamps_ns[np.abs(stamps_ns - stamp_ns).argmin()])
    return nearest if abs(nearest - stamp_ns) <= SAME_TIME_NS else None


def _same_place(a: SE3, b: SE3) -> bool:
    apart = float(np.hypot(*(a.translation - b.translation)[:2]))
    return apart <= SAME_DISTANCE and abs(float(wrap_angle(a.yaw - b.yaw))) <= SAME_ANGLE


def _robot_size(rig: Rig | None) -> tuple[float, float, float]:
    if rig is None:
        fields = Rig.model_fields
        length, width, ahead = (fields[f"ego_{name}"].default for name in ("length", "width", "center_x"))
        return float(length), float(width), float(ahead)
    return rig.ego_length, rig.ego_width, rig.ego_center_x


def _matching_cameras(log: Log, rig: Rig | None) -> dict[str, str]:
    """The rig's cameras that are the log's and have pictures, with the data set's names."""
    if rig is None or not log.images_ns or not log.ego_from_sensor:
        return {}
    ours = {camera.name: camera for camera in log_rig(log).cameras}
    matching = {}
    for camera in rig.cameras:
        calibrated = ours.get(camera.name)
        if calibrated is None or RING_CAMERAS[camera.name] not in log.images_ns:
            continue
        near = np.abs(np.subtract(camera.mount.xyz, calibrated.mount.xyz)).max() <= MOUNT_TOLERANCE[0]
        turned = np.abs(np.subtract(camera.mount.rpy_deg, calibrated.mount.rpy_deg)).max()
        pixels = np.abs(camera.intrinsics - calibrated.intrinsics).max()
        size = (camera.width, camera.height) == (calibrated.width, calibrated.height)
        if near and turned <= MOUNT_TOLERANCE[1] and pixels <= PIXEL_TOLERANCE and size:
            matching[camera.name] = RING_CAMERAS[camera.name]
    return matching


def _cast(
    log: Log,
    tracks: Tracks,
    clutter_C12: NDArray[np.float64],
    obstacles_C: NDArray[np.bool_],
    odom_from_city: SE2,
) -> Cast:
    digest = hashlib.sha256(log.log_id.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    looks = []
    for class_id, size in zip(tracks.class_ids_N.tolist(), tracks.sizes_N3.tolist(), strict=True):
        look = Look.random(class_id, rng)
        length, width, height = size
        looks.append(replace(look, class_id=_shape(class_id, length, height), size=(length, width, height)))
    return Cast(
        tracks.sizes_N3,
        tracks.class_ids_N,
        parts_of(looks, rng),
        clutter_C12,
        road_of(log, odom_from_city),
        Conditions(),
        obstacles_C,
    )


def _shape(class_id: int, length: float, height: float) -> int:
    """What somebody is drawn as: a lorry's cab, a bonnet and a bicycle need room."""
    if class_id == TRUCK and (length < 4.0 or height < 1.5):
        class_id = CAR
    if (class_id == CAR and height < 0.6) or (class_id == CYCLIST and height < 1.0):
        class_id = PEDESTRIAN
    return class_id
