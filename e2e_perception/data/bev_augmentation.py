"""The world of a clip mirrored or turned, and the robot's own pose and calibration made a little wrong.

A mirror and a turn change inputs and labels alike, so that a clip stays true of itself. Noise of poses and
calibration changes inputs alone: the network has to live with it. Every array of a clip is named here; one
that is not is refused, because nobody has said what becomes of it.

Legend: T frames, L label slots, N cameras, P plan proposals, Y X cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, SE3, rotation_from_rpy
from e2e_perception.core.network_config import BOX_FIELDS, EGO_FIELDS, RADAR_CHANNELS, NetworkConfig

Arrays = dict[str, NDArray[Any]]

ROUTE_FIELDS = ("x", "y", "tangent_x", "tangent_y")
PLANE_FIELDS = ("x", "y")
POSE_FIELDS = ("x", "y", "yaw")

PER_LABEL = (
    "boxes",
    "class_ids",
    "ids",
    "weights",
    "present",
    "visible",
    "futures",
    "futures_valid",
)

# What is the same on either side of the robot and in every direction.
INVARIANT = frozenset(
    (
        "memory_valid",
        "class_ids",
        "ids",
        "weights",
        "present",
        "visible",
        "futures_valid",
        "ego_future_valid",
        "maps_valid",
        "labels_valid",
    )
)
# What is somewhere, or points somewhere, or belongs to a sensor that does.
MOVED = frozenset(
    (
        "images",
        "image_from_base",
        "camera_valid",
        "lidar_raster",
        "lidar_valid",
        "radar_raster",
        "radar_valid",
        "ego_state",
        "route",
        "bev_theta",
        "memory_from_base",
        "boxes",
        "futures",
        "ego_future",
        "maps",
        "cells_known",
        "plan_costs",
    )
)

_LEFT, _RIGHT = "left", "right"


class BevAugmentation(BaseModel):
    """How often a clip is turned, or seen with errors of pose and calibration; by default never.

    The mirror is `TrainingConfig.mirror`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rotation: float = Field(
        0.0, ge=0, le=1, description="Chance that the base frame is turned against the robot."
    )
    rotation_degrees: float = Field(
        10.0, ge=0, le=45, description="Greatest turn, to either side; each clip draws one uniformly [deg]."
    )
    ego_pose: float = Field(0.0, ge=0, le=1, description="Chance that the robot's steps are noisy.")
    ego_pose_metres: float = Field(
        0.03, ge=0, description="Standard deviation of a step from frame to frame, each axis [m]."
    )
    ego_pose_degrees: float = Field(
        0.2, ge=0, description="Standard deviation of a turn from frame to frame [deg]."
    )
    calibration: float = Field(
        0.0, ge=0, le=1, description="Chance that every camera is a little off its calibration."
    )
    calibration_degrees: float = Field(
        0.3, ge=0, description="Standard deviation of a camera's turn, about each axis [deg]."
    )
    calibration_metres: float = Field(
        0.02, ge=0, description="Standard deviation of a lens's place, along each axis [m]."
    )
    calibration_focal: float = Field(
        0.005, ge=0, le=0.1, description="Standard deviation of a focal length's error, as a share of it."
    )
    paste: float = Field(
        0.0, ge=0, le=1, description="Chance that an object of another clip is tried, see `object_paste`."
    )


def with_bev_augmentation(
    arrays: Arrays, config: BevAugmentation, network: NetworkConfig, rng: np.random.Generator
) -> Arrays:
    """A clip after what `config` asks for.

    Args:
        arrays: From `clip_arrays`.
        config: What may happen.
        network: That the clip is for.
        rng: Each change has a stream of its own, spawned from it, so that another chance of one does not
            change what the other does.
    Returns:
        New arrays of the same shapes and types.
    Raises:
        InputError: If an array is not known here, or missing.
    """
    check_known(arrays)
    for_pose, for_calibration, for_rotation = rng.spawn(3)
    if for_pose.random() < config.ego_pose:
        arrays = with_pose_noise(
            arrays,
            network,
            for_pose,
            metres=config.ego_pose_metres,
            radians=float(np.radians(config.ego_pose_degrees)),
        )
    if for_calibration.random() < config.calibration:
        arrays = with_calibration_noise(
            arrays,
            for_calibration,
            radians=float(np.radians(config.calibration_degrees)),
            metres=config.calibration_metres,
            focal=config.calibration_focal,
        )
    if for_rotation.random() < config.rotation:
        greatest = np.radians(config.rotation_degrees)
        arrays = turned(arrays, network, float(for_rotation.uniform(-greatest, greatest)))
    return arrays


def check_known(arrays: Arrays) -> None:
    """Raise `InputError` unless the arrays of a clip are those that this file says something about."""
    expected = INVARIANT | MOVED
    unknown, missing = sorted(set(arrays) - expected), sorted(expected - set(arrays))
    if unknown:
        raise InputError(
            f"nobody has said what becomes of {', '.join(map(repr, unknown))} in a mirror or a turn; put it "
            "into INVARIANT or MOVED of data/bev_augmentation.py, and what is done to it beside them"
        )
    if missing:
        raise InputError(f"clip has no {', '.join(map(repr, missing))}; expected what `clip_arrays` returns")


# ---------------------------------------------------------------- the mirror


def mirrored(arrays: Arrays, network: NetworkConfig) -> Arrays:
    """The world seen in a mirror along the robot's x axis: left and right exchanged everywhere.

    Who drives on the right drives on the left in it, and letters are reversed.

    Args:
        arrays: From `clip_arrays`.
        network: Its slots; sensors whose names differ only in left and right change places. A sensor without
            such a counterpart stays in its slot and looks to the other side.
    Returns:
        New arrays; mirroring twice gives the original. Prices of a plan vocabulary that is not symmetric are
        gone (NaN), because the mirrored proposals are not in it.
    Raises:
        InputError: If the grid is not symmetric in y, or an array is not known here, or missing.
    """
    check_known(arrays)
    grid = network.grid
    if grid.y_min != -grid.y_max:
        raise InputError(
            f"grid covers y from {grid.y_min:g} to {grid.y_max:g} m, expected as much to the left as to the "
            "right; train with `mirror: false`"
        )
    out = dict(arrays)
    cameras = _mirror_slots(network.cameras)
    flip_u = np.array([[-1.0, 0.0, network.image_width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    flip_y = np.diag([1.0, -1.0, 1.0, 1.0]).astype(np.float32)
    out["images"] = arrays["images"][:, cameras, :, ::-1]
    out["image_from_base"] = flip_u @ arrays["image_from_base"][:, cameras] @ flip_y
    out["camera_valid"] = arrays["camera_valid"][:, cameras]
    out["lidar_valid"] = arrays["lidar_valid"][:, _mirror_slots(network.lidars)]
    out["radar_valid"] = arrays["radar_valid"][:, _mirror_slots(network.radars)]
    out["lidar_raster"] = arrays["lidar_raster"][..., ::-1, :]
    radar = arrays["radar_raster"][..., ::-1, :].copy()
    radar[:, RADAR_CHANNELS.index("doppler_y")] *= -1.0
    out["radar_raster"] = radar
    out["maps"] = arrays["maps"][..., ::-1, :]
    out["cells_known"] = arrays["cells_known"][..., ::-1, :]
    out["ego_state"] = _negated(
        arrays["ego_state"], EGO_FIELDS, ("yaw_rate", "lateral_offset", "heading_error")
    )
    out["route"] = _negated(arrays["route"], ROUTE_FIELDS, ("y", "tangent_y"))
    out["boxes"] = _negated(arrays["boxes"], BOX_FIELDS, ("y", "sin_yaw", "vy"))
    out["futures"] = _negated(arrays["futures"], PLANE_FIELDS, ("y",))
    out["ego_future"] = _negated(arrays["ego_future"], PLANE_FIELDS, ("y",))
    out["plan_costs"] = _mirrored_costs(arrays["plan_costs"], network)
    out["memory_from_base"] = _negated(arrays["memory_from_base"], POSE_FIELDS, ("y", "yaw"))
    out["bev_theta"] = _thetas(out["memory_from_base"], network)
    return out


def _mirrored_costs(plan_costs_TP5: NDArray[np.float32], network: NetworkConfig) -> NDArray[np.float32]:
    """Each proposal's price is that of the one that swerves as far to the other side."""
    if network.plan_offsets != tuple(-offset for offset in reversed(network.plan_offsets)):
        return np.full_like(plan_costs_TP5, np.nan)
    # Offsets vary fastest in the vocabulary.
    shape = (len(plan_costs_TP5), len(network.plan_accelerations), len(network.plan_offsets), -1)
    return plan_costs_TP5.reshape(shape)[:, :, ::-1].reshape(plan_costs_TP5.shape)


def _negated(array: NDArray[Any], fields: tuple[str, ...], names: tuple[str, ...]) -> NDArray[Any]:
    sign = np.ones(array.shape[-1], array.dtype)
    sign[[fields.index(name) for name in names]] = -1.0
    return array * sign


def _mirror_slots(names: tuple[str, ...]) -> list[int]:
    """For each slot, the index of the slot on the other side."""
    swap = {_LEFT: _RIGHT, _RIGHT: _LEFT}
    order = []
    for name in names:
        other = "_".join(swap.get(part, part) for part in name.split("_"))
        order.append(names.index(other) if other in names else names.index(name))
    return order


def _thetas(memory_from_base_T3: NDArray[Any], network: NetworkConfig) -> NDArray[np.float32]:
    """(T, 2, 3) how the remembered map is sampled after each step of the robot."""
    grid = network.bev_grid
    return np.stack([grid.sampling_theta(SE2(*pose)) for pose in memory_from_base_T3.tolist()])


# ---------------------------------------------------------------- the turn


def turned(arrays: Arrays, network: NetworkConfig, angle: float) -> Arrays:
    """The same clip in a base frame that is turned about the robot's z axis, against robot and world alike.

    Everything that has a place or a direction in the base frame turns the other way round: rasters, Doppler,
    projections, route, boxes, futures, what was driven, maps, steps of the memory. The robot then moves
    askew in its own base frame. What it says of itself stays, because it is told along its own heading or
    relative to the route: `ego_state` with speed, offset and heading error, hence the plan vocabulary, which
    is made of them in route coordinates, and its prices. On a robot the heading error tells where the route
    points; here it does not.

    Cells are taken from the nearest one, not interpolated: that would make counts that no scan has. What
    comes in from outside the grid is empty in rasters and not known in labels; who leaves the grid is no
    longer labelled, as in every clip.

    Args:
        arrays: From `clip_arrays`.
        network: For its grids.
        angle: Of the new base frame in the old one, counter-clockwise [rad].
    Returns:
        New arrays of the same shapes and types.
    Raises:
        InputError: If an array is not known here, or missing.
    """
    check_known(arrays)
    old_from_new = SE2(0.0, 0.0, angle)
    out = dict(arrays)
    matrix = SE3.planar(0.0, 0.0, angle).matrix
    out["image_from_base"] = (arrays["image_from_base"] @ matrix).astype(arrays["image_from_base"].dtype)
    for name in ("lidar_raster", "radar_raster"):
        out[name] = _resampled(arrays[name], network.grid, old_from_new)
    for name in ("maps", "cells_known"):
        out[name] = _resampled(arrays[name], network.bev_grid, old_from_new)
    doppler = [RADAR_CHANNELS.index(name) for name in ("doppler_x", "doppler_y")]
    vectors_T2YX = out["radar_raster"][:, doppler]
    out["radar_raster"][:, doppler] = np.moveaxis(
        _rotated(np.moveaxis(vectors_T2YX, 1, -1), PLANE_FIELDS, [PLANE_FIELDS], old_from_new), -1, 1
    )
    for name, fields, vectors in (
        ("route", ROUTE_FIELDS, [("x", "y"), ("tangent_x", "tangent_y")]),
        ("boxes", BOX_FIELDS, [("x", "y"), ("cos_yaw", "sin_yaw"), ("vx", "vy")]),
        ("futures", PLANE_FIELDS, [PLANE_FIELDS]),
        ("ego_future", PLANE_FIELDS, [PLANE_FIELDS]),
        ("memory_from_base", POSE_FIELDS, [("x", "y")]),
    ):
        out[name] = _rotated(arrays[name], fields, vectors, old_from_new)
    out["bev_theta"] = _thetas(out["memory_from_base"], network)
    return _without_labels_outside(out, network.grid)


def _rotated(
    array: NDArray[Any],
    fields: tuple[str, ...],
    vectors: list[tuple[str, str]],
    old_from_new: SE2,
) -> NDArray[Any]:
    """An array (..., fields) with the named pairs of columns told in the new axes."""
    out = array.copy()
    for pair in vectors:
        columns = [fields.index(name) for name in pair]
        out[..., columns] = old_from_new.inverse().rotate(array[..., columns])
    return out


def _resampled(array_YX: NDArray[Any], grid: BevGrid, old_from_new: SE2) -> NDArray[Any]:
    """(..., Y, X) what lay at the places of the new cells; 0 or False where nothing is known to."""
    places_YX2 = old_from_new.apply(grid.cell_centres_YX2())
    column_YX, row_YX = np.moveaxis(
        np.floor((places_YX2 - (grid.x_min, grid.y_min)) / grid.resolution).astype(np.int64), -1, 0
    )
    inside_YX = (column_YX >= 0) & (column_YX < grid.num_x) & (row_YX >= 0) & (row_YX < grid.num_y)
    out = np.zeros_like(array_YX)
    out[..., inside_YX] = array_YX[..., row_YX[inside_YX], column_YX[inside_YX]]
    return out


def _without_labels_outside(arrays: Arrays, grid: BevGrid) -> Arrays:
    """Labels whose centre has left the grid become padding; slots stay filled from the front."""
    places_TL2 = arrays["boxes"][..., [BOX_FIELDS.index("x"), BOX_FIELDS.index("y")]]
    present_TL = arrays["present"] & grid.contains(places_TL2)
    out = dict(arrays)
    out["present"] = present_TL
    out["ids"] = np.where(present_TL, arrays["ids"], -1)
    out["weights"] = arrays["weights"] * present_TL
    out["visible"] = arrays["visible"] & present_TL
    out["futures_valid"] = arrays["futures_valid"] & present_TL[..., None]
    frame_T1 = np.arange(len(present_TL))[:, None]
    order_TL = np.argsort(~present_TL, axis=1, kind="stable")
    return {**out, **{name: out[name][frame_T1, order_TL] for name in PER_LABEL}}


# ---------------------------------------------------------------- what the robot believes


def with_pose_noise(
    arrays: Arrays, network: NetworkConfig, rng: np.random.Generator, *, metres: float, radians: float
) -> Arrays:
    """The robot's steps from frame to frame, by which it moves its memory, are off.

    Each frame's error is its own: a drift, which is the same in consecutive frames, is left out. Labels and
    `ego_state` stay, and so does what the sensors saw.

    Args:
        arrays: From `clip_arrays`.
        network: For the grid of the memory.
        rng: Draws.
        metres: Standard deviation of x and of y [m].
        radians: Of yaw [rad].
    Returns:
        New `memory_from_base` and `bev_theta`; the other arrays are the same objects.
    """
    steps_T3 = arrays["memory_from_base"]
    noise_T3 = rng.standard_normal(steps_T3.shape) * (metres, metres, radians)
    moved_T3 = (steps_T3 + noise_T3).astype(steps_T3.dtype)
    return {**arrays, "memory_from_base": moved_T3, "bev_theta": _thetas(moved_T3, network)}


def with_calibration_noise(
    arrays: Arrays, rng: np.random.Generator, *, radians: float, metres: float, focal: float
) -> Arrays:
    """Every camera is not quite where its calibration says, not quite so turned, and not quite so long.

    The error is a camera's own and the same in all frames. Pictures stay as they are and the projection is
    wrong, which is the same to the network. The axes of turn and shift are those of the base frame of each
    frame; a turn of the robot since the exposure, which the projection holds, is left out, and so are the
    principal point and distortion.

    Args:
        arrays: From `clip_arrays`.
        rng: Draws.
        radians: Standard deviation of roll, pitch and yaw about the lens [rad].
        metres: Of the lens's x, y and z [m].
        focal: Of the focal length, as a share of it.
    Returns:
        New `image_from_base`; the other arrays are the same objects. Cameras that are not valid keep theirs,
        which may be a placeholder.
    """
    projection = arrays["image_from_base"].astype(np.float64)  # (T, N, 3, 4)
    num_cameras = projection.shape[1]
    turns_N3 = radians * rng.standard_normal((num_cameras, 3))
    shifts_N3 = metres * rng.standard_normal((num_cameras, 3))
    scales_N = np.exp(focal * rng.standard_normal(num_cameras))
    for n in range(num_cameras):
        seen_T = arrays["camera_valid"][:, n] > 0.5
        linear_T33, last_T3 = projection[seen_T, n, :, :3], projection[seen_T, n, :, 3]
        lens_T3 = -np.linalg.solve(linear_T33, last_T3[..., None])[..., 0]
        linear_T33 = _zoomed(linear_T33, float(scales_N[n])) @ rotation_from_rpy(*turns_N3[n])
        projection[seen_T, n, :, :3] = linear_T33
        projection[seen_T, n, :, 3] = -(linear_T33 @ (lens_T3 + shifts_N3[n])[..., None])[..., 0]
    return {**arrays, "image_from_base": projection.astype(arrays["image_from_base"].dtype)}


def _zoomed(linear_T33: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Directions to pixels, `scale` times as far from the principal point.

    The last row is the optical axis, and the principal point is where it goes (Hartley & Zisserman, 6.2.1).
    """
    axis_T3 = linear_T33[:, 2]
    principal_T2 = (linear_T33[:, :2] @ axis_T3[..., None])[..., 0] / (axis_T3**2).sum(-1, keepdims=True)
    zoomed_T33 = linear_T33.copy()
    zoomed_T33[:, :2] = scale * linear_T33[:, :2] + (1.0 - scale) * principal_T2[..., None] * axis_T3[:, None]
    return zoomed_T33
