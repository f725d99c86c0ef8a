"""From an assembled frame to the network's inputs.

Everything is brought to the frame time: points are moved by the robot's own motion since their stamp, and
each camera's projection absorbs the motion since its exposure. Within one lidar sweep points are not moved
individually: clouds with a time per point are treated as if measured at their stamp.

A sensor that cannot be used is left out and named with its reason; `prepare` never raises because of what a
sensor sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import PreprocessConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.errors import InputError, RigError
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.network_config import EGO_FIELDS, LIDAR_CHANNELS, RADAR_CHANNELS, NetworkConfig
from e2e_perception.core.rig import Camera, Radar, Rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.core.trajectories import ROUTE_POINTS, Route, RouteInput, route_input
from e2e_perception.runtime.decode import ConvertImage, decode_points, decode_scaled_image
from e2e_perception.runtime.rasters import lidar_raster, radar_raster

NO_EGO_MOTION = "no_ego_motion"

# The projection of a slot without a camera: every point lies one metre behind it.
_NOTHING_IN_VIEW = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]])


@dataclass(frozen=True)
class ImageCrop:
    """Which part of a camera's picture the network sees, at which scale.

    The picture is scaled so that it just covers the network's image, and what is too much is cut off around
    the principal column and the row of the horizon: no black borders, nothing stretched, and the road ahead
    stays in view. All bounds are multiples of the reduction at which a JPEG may be decoded, so that the
    reduced picture is cut at the same place.

    Attributes:
        x, y, width, height: The part, in full-size pixels.
        target_size: (width, height) [px] of the whole picture at the network's scale.
        network_from_camera: (3, 3) float64, homogeneous full-size pixels to pixels of the network's image
            (both with the origin at the centre of the top-left pixel).
    """

    x: int
    y: int
    width: int
    height: int
    target_size: tuple[int, int]
    network_from_camera: NDArray[np.float64]

    @staticmethod
    def of(camera: Camera, network: NetworkConfig) -> ImageCrop:
        """The crop of a camera for a network."""
        scale = max(network.image_width / camera.width, network.image_height / camera.height)
        reduction = next((r for r in (8, 4, 2) if r * scale <= 1.0), 1)

        def bounds(full: int, wanted: float, centre: float) -> tuple[int, int]:
            usable = full // reduction * reduction
            extent = min(max(round(wanted / reduction) * reduction, reduction), usable)
            start = min(max(centre + 0.5 - extent / 2.0, 0.0), usable - extent)
            return math.floor(start / reduction) * reduction, extent

        x, width = bounds(camera.width, network.image_width / scale, camera.cx_px)
        y, height = bounds(camera.height, network.image_height / scale, _horizon_row(camera))
        scale_x, scale_y = network.image_width / width, network.image_height / height
        return ImageCrop(
            x=x,
            y=y,
            width=width,
            height=height,
            target_size=(math.floor(camera.width * scale), math.floor(camera.height * scale)),
            network_from_camera=np.array(
                [
                    [scale_x, 0.0, (0.5 - x) * scale_x - 0.5],
                    [0.0, scale_y, (0.5 - y) * scale_y - 0.5],
                    [0.0, 0.0, 1.0],
                ]
            ),
        )

    def apply(self, rgb_HW3: NDArray[np.uint8], reduction: int, out_HW3: NDArray[np.uint8]) -> None:
        """Cut and scale a picture that was decoded at 1 / `reduction`, into `out_HW3`."""
        rows = slice(self.y // reduction, (self.y + self.height) // reduction)
        columns = slice(self.x // reduction, (self.x + self.width) // reduction)
        part = rgb_HW3[rows, columns]
        if part.shape == out_HW3.shape:
            out_HW3[:] = part
            return
        # Averaging matters where several pixels become one; below a factor of two it costs six times as much
        # as interpolation and shows no difference.
        averaged = part.shape[0] >= 2 * out_HW3.shape[0]
        method = cv2.INTER_AREA if averaged else cv2.INTER_LINEAR
        cv2.resize(part, (out_HW3.shape[1], out_HW3.shape[0]), dst=out_HW3, interpolation=method)


def _horizon_row(camera: Camera) -> float:
    """Row [px] of the horizon straight ahead; the middle row if the camera looks straight up or down."""
    sensor_from_base = camera.base_from_sensor.inverse().rotation
    forward = camera.base_from_sensor.rotation[:, 2].copy()
    forward[2] = 0.0
    _, down, along = sensor_from_base @ forward
    return camera.cy_px + camera.fy_px * down / along if along > 1e-3 else camera.height / 2.0


@dataclass(frozen=True)
class PreparedFrame:
    """What the engine needs of one frame, and what was left out.

    Attributes:
        stamp_ns: Frame time [ns].
        inputs: Contract inputs with a batch of one, except the remembered ones (`bev_memory`, `bev_theta`,
            `memory_valid`, `track_*`), which are the pipeline's. Never written to again.
        reasons: Why a sensor that had a message is not used, by name: `undecodable: …` or `no_ego_motion`.
        ego_state: The robot's pose and twist at the frame time; None if odometry does not cover it.
        route: The route as the network sees it; None if there is none and none may be assumed.
        points_base: (N, 3) float32 [m], all lidar points used, base frame at the frame time.
    """

    stamp_ns: int
    inputs: dict[str, NDArray[Any]]
    reasons: dict[str, str]
    ego_state: EgoState | None
    route: RouteInput | None
    points_base: NDArray[np.float32]


class Preprocessor:
    """Turns assembled frames into network inputs.

    Attributes:
        config: May be replaced between frames.
    """

    def __init__(
        self,
        network: NetworkConfig,
        rig: Rig,
        config: PreprocessConfig | None = None,
        convert_image: ConvertImage | None = None,
    ) -> None:
        """Check the rig against the network's slots.

        Args:
            network: Sizes and slots.
            rig: May lack slots, which then stay invalid.
            config: Tunables.
            convert_image: See `decode_image`; the nodes pass cv_bridge.
        Raises:
            RigError: If the rig has a sensor that the network has no slot for.
        """
        check_slots(rig, network)
        self.network = network
        self.rig = rig
        self.config = config or PreprocessConfig()
        self._convert_image = convert_image
        self._crops = {camera.name: ImageCrop.of(camera, network) for camera in rig.cameras}
        self._route: Route | None = None
        self._route_s: float | None = None
        self._route_epoch = -1

    def prepare(
        self,
        frame: AssembledFrame,
        ego: EgoMotionBuffer,
        route: Route | None,
        speed_limit: float,
        *,
        assume_straight_route: bool = True,
    ) -> PreparedFrame:
        """Build the inputs of one frame.

        Args:
            frame: Messages of one instant, not yet decoded.
            ego: Odometry. Where it does not cover the frame, only sensors stamped exactly at the frame time
                are used, no radar is (its Doppler needs the robot's speed), and `ego_state` is zero.
            route: Route in the odometry frame, if any.
            speed_limit: [m/s]
            assume_straight_route: Without a route, or without a pose on it, assume straight ahead.
        Returns:
            Fresh arrays; a following call does not touch them.
        """
        state = ego.at(frame.stamp_ns)
        reasons: dict[str, str] = {}
        route_ahead = self._route_input(route, state, ego.epoch, assume_straight_route)
        raster, lidar_valid, points_base = self._lidars(frame, ego, reasons)
        radar, radar_valid = self._radars(frame, ego, reasons)
        inputs: dict[str, NDArray[Any]] = {
            **self._cameras(frame, ego, reasons),
            "lidar_raster": raster[None],
            "lidar_valid": lidar_valid[None],
            "radar_raster": radar[None],
            "radar_valid": radar_valid[None],
            "ego_state": _ego_features(state, ego, route_ahead, speed_limit)[None],
            "route": (
                np.zeros((1, ROUTE_POINTS, 4), np.float32)
                if route_ahead is None
                else route_ahead.features_R4[None]
            ),
        }
        return PreparedFrame(frame.stamp_ns, inputs, reasons, state, route_ahead, points_base)

    # -------------------------------------------------------------- cameras

    def _cameras(
        self, frame: AssembledFrame, ego: EgoMotionBuffer, reasons: dict[str, str]
    ) -> dict[str, NDArray[Any]]:
        slots = self.network.cameras
        images_NHW3 = np.zeros((len(slots), self.network.image_height, self.network.image_width, 3), np.uint8)
        image_from_base_N34 = np.tile(_NOTHING_IN_VIEW, (len(slots), 1, 1))
        valid_N = np.zeros(len(slots), np.float32)
        for camera in self.rig.cameras:
            slot = slots.index(camera.name)
            crop = self._crops[camera.name]
            image_from_base_N34[slot] = crop.network_from_camera @ camera.image_from_base
            message = frame.messages.get(camera.name)
            if message is None:
                continue
            exposure_from_frame = _motion(ego, to_ns=message.stamp_ns, from_ns=frame.stamp_ns)
            if exposure_from_frame is None:
                reasons[camera.name] = NO_EGO_MOTION
                continue
            image_from_base_N34[slot] = image_from_base_N34[slot] @ exposure_from_frame.matrix
            try:
                self._read_image(camera, message, images_NHW3[slot])
            except InputError as error:
                reasons[camera.name] = f"undecodable: {error}"
                continue
            valid_N[slot] = 1.0
        return {
            "images": images_NHW3[None],
            "image_from_base": image_from_base_N34.astype(np.float32)[None],
            "camera_valid": valid_N[None],
        }

    def _read_image(self, camera: Camera, message: SensorMessage, out_HW3: NDArray[np.uint8]) -> None:
        def check_size(size: tuple[int, int]) -> None:
            if size != (camera.width, camera.height):
                raise InputError(
                    f"image is {size[0]}x{size[1]}, rig {self.rig.name!r} says "
                    f"{camera.width}x{camera.height}; correct the rig or the driver"
                )

        crop = self._crops[camera.name]
        image = decode_scaled_image(
            message.payload,
            convert=self._convert_image,
            target_size=crop.target_size,
            check_size=check_size,
        )
        crop.apply(image.rgb_HW3, image.reduction, out_HW3)

    # -------------------------------------------------------------- lidars

    def _lidars(
        self, frame: AssembledFrame, ego: EgoMotionBuffer, reasons: dict[str, str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Raster (C, Y, X), validity (L,), points (N, 3) in the base frame."""
        valid_L = np.zeros(len(self.network.lidars), np.float32)
        clouds_3N: list[NDArray[np.float32]] = []
        intensities: list[NDArray[np.float32]] = []
        for lidar in self.rig.lidars:
            message = frame.messages.get(lidar.name)
            if message is None:
                continue
            frame_from_stamp = _motion(ego, to_ns=frame.stamp_ns, from_ns=message.stamp_ns)
            if frame_from_stamp is None:
                reasons[lidar.name] = NO_EGO_MOTION
                continue
            try:
                points = decode_points(message.payload)
                if not len(points["x"]):
                    # Ground is always in view of a lidar that works; an empty cloud is not an empty world.
                    raise InputError("the cloud has no point with a finite position")
            except InputError as error:
                reasons[lidar.name] = f"undecodable: {error}"
                continue
            # (3, N): contiguous columns serve the product below and the raster.
            points_sensor_3N = np.stack([points["x"], points["y"], points["z"]])
            intensity_N = points["intensity"]
            squared_range = np.einsum("in,in->n", points_sensor_3N, points_sensor_3N)
            far_enough = squared_range >= self.config.lidar_min_range**2
            if not far_enough.any():
                reasons[lidar.name] = f"blinded: no point beyond {self.config.lidar_min_range:g} m"
                continue
            if not far_enough.all():
                points_sensor_3N = np.compress(far_enough, points_sensor_3N, axis=1)
                intensity_N = np.compress(far_enough, intensity_N)
            base_from_sensor = frame_from_stamp @ lidar.base_from_sensor
            clouds_3N.append(_moved(points_sensor_3N, base_from_sensor))
            intensities.append(intensity_N)
            valid_L[self.network.lidars.index(lidar.name)] = 1.0
        if not clouds_3N:
            raster = np.zeros((len(LIDAR_CHANNELS), *self.network.grid.shape), np.float32)
            return raster, valid_L, np.empty((0, 3), np.float32)
        one = len(clouds_3N) == 1
        points_base_N3 = (clouds_3N[0] if one else np.concatenate(clouds_3N, axis=1)).T
        intensity = intensities[0] if one else np.concatenate(intensities)
        return lidar_raster(points_base_N3, intensity, self.network.grid), valid_L, points_base_N3

    # -------------------------------------------------------------- radars

    def _radars(
        self, frame: AssembledFrame, ego: EgoMotionBuffer, reasons: dict[str, str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Raster (C, Y, X) and validity (R,)."""
        valid_R = np.zeros(len(self.network.radars), np.float32)
        returns = _RadarReturns.none()
        for radar in self.rig.radars:
            message = frame.messages.get(radar.name)
            if message is None:
                continue
            then = ego.at(message.stamp_ns)
            frame_from_stamp = _motion(ego, to_ns=frame.stamp_ns, from_ns=message.stamp_ns)
            if then is None or frame_from_stamp is None:
                reasons[radar.name] = NO_EGO_MOTION
                continue
            try:
                measured = _radar_returns(
                    decode_points(message.payload), radar, then, self.config.radar_min_speed
                )
            except InputError as error:
                reasons[radar.name] = f"undecodable: {error}"
                continue
            returns = returns.joined(measured.moved(frame_from_stamp))
            valid_R[self.network.radars.index(radar.name)] = 1.0
        if not valid_R.any():
            return np.zeros((len(RADAR_CHANNELS), *self.network.grid.shape), np.float32), valid_R
        raster = radar_raster(returns.points_3N.T, returns.doppler_3N[:2].T, returns.rcs_N, self.network.grid)
        return raster, valid_R

    # -------------------------------------------------------------- route

    def _route_input(
        self, route: Route | None, state: EgoState | None, epoch: int, assume: bool
    ) -> RouteInput | None:
        if route is None or state is None:
            self._route = None
            if not assume:
                return None
            here = SE2(0.0, 0.0, 0.0)
            return route_input(Route.straight(here), here)
        odom_from_base = state.odom_from_base.planar_part()
        # Near the last projection only, so that a crossing route does not make the robot leap; anywhere on a
        # new route or after a jump of the odometry.
        if route is not self._route or epoch != self._route_epoch:
            self._route_s = None
        near_s = self._route_s
        self._route, self._route_epoch = route, epoch
        self._route_s, _ = route.project((odom_from_base.x, odom_from_base.y), near_s)
        return route_input(route, odom_from_base, near_s)


def check_slots(rig: Rig, network: NetworkConfig) -> None:
    """Raise `RigError` if the rig has a sensor that the network has no slot for, by name and kind."""
    slots: dict[str, tuple[str, ...]] = {
        "camera": network.cameras,
        "lidar": network.lidars,
        "radar": network.radars,
    }
    unknown = [f"{s.kind} {s.name!r}" for s in rig.sensors if s.name not in slots[s.kind]]
    if unknown:
        known = "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in slots.items())
        raise RigError(
            f"rig {rig.name!r} has {', '.join(unknown)}, which the network does not know; its slots are "
            f"{known}. Rename or remove it in the rig, or load a bundle trained with it"
        )


def check_camera_info(camera: Camera, message: Any) -> Camera:
    """Take a camera's intrinsics from CameraInfo, if they can be those of the same camera.

    Args:
        camera: As the rig has it.
        message: sensor_msgs/CameraInfo. For a lens with distortion `p` is used, which belongs to the
            rectified picture, otherwise `k`.
    Returns:
        The camera with the message's focal lengths and principal point.
    Raises:
        RigError: If the size differs, the camera is not calibrated, or a focal length or (relative to the
            image size) the principal point is more than 20 % off the rig's.
    """
    where = f"CameraInfo of camera {camera.name!r} ({camera.camera_info_topic or camera.topic})"
    size = (int(message.width), int(message.height))
    if size != (camera.width, camera.height):
        raise RigError(
            f"{where} says {size[0]}x{size[1]}, the rig says {camera.width}x{camera.height}; "
            "correct the rig or the driver"
        )
    if max(int(message.binning_x), int(message.binning_y)) > 1:
        raise RigError(f"{where} declares binned pictures, expected full size; turn binning off")
    matrix: NDArray[np.float64] = np.asarray(message.k, np.float64).reshape(3, 3)
    rectified: NDArray[np.float64] = np.asarray(message.p, np.float64).reshape(3, 4)[:, :3]
    if np.any(np.asarray(message.d, np.float64) != 0.0) and rectified[0, 0] > 0.0:
        matrix = rectified
    fx, fy, cx, cy = (float(matrix[index]) for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0.0 and fy > 0.0):
        raise RigError(
            f"{where} is not calibrated (fx {fx:g}, fy {fy:g} px); calibrate the camera, or set its "
            "camera_info_topic to null in the rig to rely on the rig's intrinsics"
        )
    compared = (
        ("fx", fx, camera.fx_px, camera.fx_px),
        ("fy", fy, camera.fy_px, camera.fy_px),
        ("cx", cx, camera.cx_px, float(camera.width)),
        ("cy", cy, camera.cy_px, float(camera.height)),
    )
    off = [
        f"{name} {got:.1f} px against the rig's {expected:.1f} px"
        for name, got, expected, scale in compared
        if abs(got - expected) > 0.2 * scale
    ]
    if off:
        raise RigError(
            f"{where} is of another camera or lens: {', '.join(off)}; at most 20 % difference is accepted. "
            "Correct the rig, or check the topics"
        )
    return camera.model_copy(update={"fx_px": fx, "fy_px": fy, "cx_px": cx, "cy_px": cy})


@dataclass(frozen=True)
class _RadarReturns:
    """Base frame, float32: points (3, N) [m], Doppler over ground (3, N) [m/s] as vectors, RCS (N,)."""

    points_3N: NDArray[np.float32]
    doppler_3N: NDArray[np.float32]
    rcs_N: NDArray[np.float32]

    @staticmethod
    def none() -> _RadarReturns:
        return _RadarReturns(
            np.empty((3, 0), np.float32), np.empty((3, 0), np.float32), np.empty(0, np.float32)
        )

    def joined(self, other: _RadarReturns) -> _RadarReturns:
        return _RadarReturns(
            np.concatenate([self.points_3N, other.points_3N], axis=1),
            np.concatenate([self.doppler_3N, other.doppler_3N], axis=1),
            np.concatenate([self.rcs_N, other.rcs_N]),
        )

    def moved(self, a_from_b: SE3) -> _RadarReturns:
        turn = SE3(a_from_b.rotation, np.zeros(3))
        return _RadarReturns(_moved(self.points_3N, a_from_b), _moved(self.doppler_3N, turn), self.rcs_N)


def _radar_returns(
    points: dict[str, NDArray[np.float32]], radar: Radar, ego: EgoState, min_speed: float
) -> _RadarReturns:
    """Returns in the base frame at the radar's stamp, the robot's own motion taken out of the Doppler."""
    if "velocity" not in points:
        raise InputError("the radar cloud has no Doppler field; expected `velocity` or `doppler` [m/s]")
    points_sensor_3N = np.stack([points["x"], points["y"], points["z"]])
    distance_N = np.sqrt(np.einsum("in,in->n", points_sensor_3N, points_sensor_3N))
    line_of_sight_3N = _moved(
        points_sensor_3N / np.maximum(distance_N, np.float32(1e-3)),
        SE3(radar.base_from_sensor.rotation, np.zeros(3)),
    )
    # The sensor itself moves with the robot and, off the axis of turning, because of the turn.
    turn = np.array([0.0, 0.0, ego.yaw_rate])
    sensor_velocity = ego.velocity + np.cross(turn, radar.base_from_sensor.translation)
    own_N = np.einsum("i,in->n", sensor_velocity.astype(np.float32), line_of_sight_3N)
    over_ground_N = points["velocity"] + own_N
    keep = (np.abs(over_ground_N) >= min_speed) & (distance_N > 1e-3)
    rcs_N = points.get("rcs", np.zeros(len(keep), np.float32))
    return _RadarReturns(
        _moved(points_sensor_3N[:, keep], radar.base_from_sensor),
        (line_of_sight_3N * over_ground_N)[:, keep],
        rcs_N[keep],
    )


def _moved(points_3N: NDArray[np.float32], a_from_b: SE3) -> NDArray[np.float32]:
    """Points (3, N) float32 from frame b to frame a."""
    # Not `@`: BLAS would start threads for a product this thin, and on a busy machine wait 10 ms for them.
    moved: NDArray[np.float32] = np.einsum("ij,jn->in", a_from_b.rotation.astype(np.float32), points_3N)
    moved += a_from_b.translation.astype(np.float32)[:, None]
    return moved


def _motion(ego: EgoMotionBuffer, *, to_ns: int, from_ns: int) -> SE3 | None:
    """Base frame at `to_ns` from base frame at `from_ns`; None if odometry does not cover both."""
    return SE3.identity() if to_ns == from_ns else ego.base_from_base(to_ns, from_ns)


def _ego_features(
    state: EgoState | None, ego: EgoMotionBuffer, route: RouteInput | None, speed_limit: float
) -> NDArray[np.float32]:
    """(len(EGO_FIELDS),) float32, SI; all zero without ego motion."""
    if state is None:
        return np.zeros(len(EGO_FIELDS), np.float32)
    named = {
        "speed": state.speed,
        "yaw_rate": state.yaw_rate,
        "acceleration": ego.acceleration(state.stamp_ns),
        "speed_limit": speed_limit,
        "lateral_offset": 0.0 if route is None else route.lateral_offset,
        "heading_error": 0.0 if route is None else route.heading_error,
        "valid": 1.0,
    }
    return np.array([named[name] for name in EGO_FIELDS], np.float32)
