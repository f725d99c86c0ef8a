"""An object of one clip put into another, with its lidar and radar returns, label and futures.

The object keeps its way over the ground, as seen from where the donor's robot began, so that its velocity and
futures stay true (Yan et al. 2018 paste points likewise). It comes only where that is free: nothing stands
there or before it, nobody is labelled there or behind it, the robot does not drive there, and no camera looks
there, because pictures are not pasted; in clips without cameras it may be anywhere. Behind it the lidar sees
nothing more. What proposals would have cost was told without it, and is not known any more.

Legend: T frames, L label slots, S horizon steps, N cells, Y X cells of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import (
    BOX_FIELDS,
    DOPPLER_SCALE,
    LIDAR_CHANNELS,
    RADAR_CHANNELS,
    NetworkConfig,
)
from e2e_perception.data.bev_augmentation import Arrays, check_known

CLEARANCE = 1.0  # [m] around the object in which nothing may stand
FROM_ROBOT = 3.5  # [m] between the object's outline and where the robot drives
LEAST_CELLS = 3  # with lidar returns in every frame

_X, _Y, _Z, _SIN, _COS, _VX, _VY = (
    BOX_FIELDS.index(name) for name in ("x", "y", "z", "sin_yaw", "cos_yaw", "vx", "vy")
)
_SIZE = [BOX_FIELDS.index(name) for name in ("log_length", "log_width", "log_height")]
_LOW, _HEIGHT, _COUNT = (LIDAR_CHANNELS.index(name) for name in ("low", "max_height", "log_count"))
_RADAR_COUNT = RADAR_CHANNELS.index("log_count")
_DOPPLER = [RADAR_CHANNELS.index(name) for name in ("doppler_x", "doppler_y")]


def with_object(host: Arrays, donor: Arrays, network: NetworkConfig, rng: np.random.Generator) -> Arrays:
    """The host with one object of the donor, if one fits.

    Args:
        host: From `clip_arrays`.
        donor: Likewise, of at least as many frames; the first ones are used.
        network: Their grid.
        rng: In which order objects are tried.
    Returns:
        New arrays, or the host itself where no object of the donor has a place in it.
    Raises:
        InputError: If an array is not known.
    """
    check_known(host)
    check_known(donor)
    num_frames = len(host["boxes"])
    if len(donor["boxes"]) < num_frames or not (host["labels_valid"].all() and donor["labels_valid"].all()):
        return host
    donor = {name: value[:num_frames] for name, value in donor.items()}
    if host["lidar_valid"].max(1).min() < 0.5 or donor["lidar_valid"].max(1).min() < 0.5:
        return host
    if host["radar_valid"].max() > 0.5 and donor["radar_valid"].max(1).min() < 0.5:
        return host
    free = np.flatnonzero(~host["present"].any(axis=0))
    if not len(free):
        return host
    identities = np.unique(donor["ids"][donor["present"]])
    host_poses, donor_poses = _poses(host), _poses(donor)
    host_from_donor = [a.inverse() @ b for a, b in zip(host_poses, donor_poses, strict=True)]
    for identity in rng.permutation(identities).tolist():
        found = _object(donor, int(identity), host_from_donor, network.grid)
        if found is not None and _has_room(host, found, network):
            return _put(host, found, int(free[0]), network.grid)
    return host


_Cells = list[tuple[NDArray[np.float64], NDArray[np.float32]]]


@dataclass(frozen=True)
class _Object:
    """One object in the host's base frames; lists are by frame.

    Attributes:
        boxes_T10: Columns `BOX_FIELDS`.
        lidar, radar: Places (N, 2) [m] and channels (N, C) of its cells.
        class_id, weights_T, futures_TS2, futures_valid_TS: As in a clip.
    """

    boxes_T10: NDArray[np.float32]
    lidar: _Cells
    radar: _Cells
    class_id: int
    weights_T: NDArray[np.float32]
    futures_TS2: NDArray[np.float32]
    futures_valid_TS: NDArray[np.bool_]


def _poses(arrays: Arrays) -> list[SE2]:
    """Base frames in that of the first frame."""
    poses = [SE2(0.0, 0.0, 0.0)]
    for step in arrays["memory_from_base"][1:].tolist():
        poses.append(poses[-1] @ SE2(*step))
    return poses


def _object(donor: Arrays, identity: int, host_from_donor: list[SE2], grid: BevGrid) -> _Object | None:
    """An object and its returns; None if it is not seen throughout."""
    there_TL = (donor["ids"] == identity) & donor["present"] & donor["visible"] & (donor["weights"] > 0.0)
    if not (there_TL.sum(axis=1) == 1).all():
        return None
    frames, slots = np.arange(len(there_TL)), there_TL.argmax(axis=1)
    boxes_T10 = donor["boxes"][frames, slots].copy()
    futures_TS2 = donor["futures"][frames, slots].copy()
    lidar: _Cells = []
    radar: _Cells = []
    for t, move in enumerate(host_from_donor):
        box = donor["boxes"][t, slots[t]].astype(np.float64)
        kinds = (("lidar", _COUNT, 0.5, lidar), ("radar", _RADAR_COUNT, 1.0, radar))
        for kind, count, margin, cells in kinds:
            raster_CYX = donor[f"{kind}_raster"][t]
            row_N, column_N = np.nonzero(raster_CYX[count])
            place_N2 = grid.cell_centres_YX2()[row_N, column_N].astype(np.float64)
            mine_N = _inside(box, place_N2, margin * grid.resolution)
            cells.append((move.apply(place_N2[mine_N]), raster_CYX[:, row_N[mine_N], column_N[mine_N]].T))
        if (lidar[-1][1][:, _LOW:_HEIGHT].max(axis=1, initial=0.0) > 0.0).sum() < LEAST_CELLS:
            return None
        boxes_T10[t, [_X, _Y]] = move.apply(box[None, [_X, _Y]])[0]
        boxes_T10[t, [_VX, _VY]] = move.rotate(box[None, [_VX, _VY]])[0]
        boxes_T10[t, [_COS, _SIN]] = move.rotate(box[None, [_COS, _SIN]])[0]
        futures_TS2[t] = move.apply(futures_TS2[t].astype(np.float64))
    return _Object(
        boxes_T10,
        lidar,
        radar,
        int(donor["class_ids"][0, slots[0]]),
        donor["weights"][frames, slots],
        futures_TS2,
        donor["futures_valid"][frames, slots],
    )


def _has_room(host: Arrays, found: _Object, network: NetworkConfig) -> bool:
    """Whether the object may stand where it would, in every frame."""
    grid = network.grid
    centres_N2 = grid.cell_centres_YX2().reshape(-1, 2).astype(np.float64)
    for t, box in enumerate(found.boxes_T10.astype(np.float64)):
        corners_42 = _corners(box)
        if not grid.contains(corners_42).all():
            return False
        standing_N = host["lidar_raster"][t, _LOW:_HEIGHT].max(axis=0).ravel() > 0.0
        if _inside(box, centres_N2[standing_N], CLEARANCE).any():
            return False
        span_N = _in_sector(corners_42, centres_N2[standing_N])
        if (span_N & (np.linalg.norm(centres_N2[standing_N], axis=1) < np.hypot(box[_X], box[_Y]))).any():
            return False  # it would be hidden
        others = host["boxes"][t][host["present"][t]].astype(np.float64)
        radius = 0.5 * float(np.hypot(*np.exp(box[_SIZE[:2]])))
        for other in others:
            apart = float(np.hypot(*(other[[_X, _Y]] - box[[_X, _Y]])))
            outline = _corners(other)
            if apart < radius + 0.5 * float(np.hypot(*np.exp(other[_SIZE[:2]]))) + CLEARANCE:
                return False
            behind = np.hypot(*other[[_X, _Y]]) > np.hypot(*box[[_X, _Y]])
            if behind and _in_sector(corners_42, outline).any():
                return False  # it would be hidden by the object
        steps = np.arange(1, network.horizon_steps + 1)[:, None] * network.step_s
        ahead_S2 = np.where(
            found.futures_valid_TS[t, :, None],
            found.futures_TS2[t],
            box[[_X, _Y]] + steps * box[[_VX, _VY]],
        )
        robot_S2 = np.concatenate([np.zeros((1, 2)), host["ego_future"][t][host["ego_future_valid"][t]]])
        object_S2 = np.concatenate([box[None, [_X, _Y]], ahead_S2])
        # Wherever either is at any time: who goes there sooner or later must not matter.
        gaps = np.linalg.norm(robot_S2[:, None] - object_S2[None], axis=-1)
        if gaps.min() < radius + FROM_ROBOT:
            return False
        if host["maps_valid"][t] and not _drivable(host["maps"][t, 0], box, network.bev_grid):
            return False
        if any(
            _is_seen(host["image_from_base"][t, n], box, corners_42, network)
            for n in np.flatnonzero(host["camera_valid"][t] > 0.5).tolist()
        ):
            return False
    return True


def _drivable(map_YX: NDArray[Any], box: NDArray[np.float64], grid: BevGrid) -> bool:
    column = int((box[_X] - grid.x_min) / grid.resolution)
    row = int((box[_Y] - grid.y_min) / grid.resolution)
    return bool(map_YX[row, column] > 0.5)


def _is_seen(
    projection_34: NDArray[Any],
    box: NDArray[np.float64],
    corners_42: NDArray[np.float64],
    network: NetworkConfig,
) -> bool:
    """Whether a camera sees any of the box: the rectangle around its corners meets the picture."""
    height = float(np.exp(box[_SIZE[2]]))
    points = np.concatenate(
        [
            np.column_stack([corners_42, np.full(4, z), np.ones(4)])
            for z in (box[_Z] - height / 2, box[_Z] + height / 2)
        ]
    )
    u, v, depth = projection_34.astype(np.float64) @ points.T
    if (depth <= 0.1).all():
        return False
    if (depth <= 0.1).any():
        return True  # across the plane of the lens: what is in view cannot be told from corners
    u, v = u / depth, v / depth
    return bool(
        u.max() >= 0 and u.min() < network.image_width and v.max() >= 0 and v.min() < network.image_height
    )


def _put(host: Arrays, found: _Object, slot: int, grid: BevGrid) -> Arrays:
    out = dict(host)
    for name in (
        "lidar_raster", "radar_raster", "boxes", "class_ids", "ids", "weights", "present", "visible",
        "futures", "futures_valid",
    ):  # fmt: skip
        out[name] = host[name].copy()
    centres_YX2 = grid.cell_centres_YX2().astype(np.float64)
    flat_N2 = centres_YX2.reshape(-1, 2)
    out["boxes"][:, slot], out["class_ids"][:, slot] = found.boxes_T10, found.class_id
    out["ids"][:, slot] = int(host["ids"].max()) + 1
    out["weights"][:, slot] = found.weights_T
    out["present"][:, slot] = out["visible"][:, slot] = True
    out["futures"][:, slot], out["futures_valid"][:, slot] = found.futures_TS2, found.futures_valid_TS
    for t, box in enumerate(found.boxes_T10.astype(np.float64)):
        behind_N = _in_sector(_corners(box), flat_N2)
        behind_N &= np.linalg.norm(flat_N2, axis=1) > np.hypot(box[_X], box[_Y])
        hidden_YX = (behind_N | _inside(box, flat_N2, 0.0)).reshape(grid.shape)
        out["lidar_raster"][t][:, hidden_YX] = 0.0
        _write(out["lidar_raster"][t], *found.lidar[t], _COUNT, grid)
        if host["radar_valid"][t].max() > 0.5:
            places_N2, values_NC = found.radar[t]
            sight_N2 = places_N2 / np.maximum(np.linalg.norm(places_N2, axis=1, keepdims=True), 1e-6)
            over_ground_N = sight_N2 @ box[[_VX, _VY]]
            values_NC = values_NC.copy()
            values_NC[:, _DOPPLER] = over_ground_N[:, None] * sight_N2 / DOPPLER_SCALE
            _write(out["radar_raster"][t], places_N2, values_NC, _RADAR_COUNT, grid)
    out["plan_costs"] = np.full_like(host["plan_costs"], np.nan)
    return out


def _write(
    raster_CYX: NDArray[Any],
    places_N2: NDArray[np.float64],
    values_NC: NDArray[np.float32],
    count: int,
    grid: BevGrid,
) -> None:
    """Cells to where they are now; of two that fall into one the fuller stays."""
    inside = grid.contains(places_N2)
    column_N = ((places_N2[inside, 0] - grid.x_min) / grid.resolution).astype(int)
    row_N = ((places_N2[inside, 1] - grid.y_min) / grid.resolution).astype(int)
    for k in np.argsort(values_NC[inside, count], kind="stable").tolist():
        raster_CYX[:, row_N[k], column_N[k]] = values_NC[inside][k]


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    yaw = np.arctan2(box[_SIN], box[_COS])
    corners_142 = footprint_corners_N42(box[None, [_X, _Y]], np.exp(box[None, _SIZE[:2]]), np.array([yaw]))
    return np.asarray(corners_142[0])


def _inside(box: NDArray[np.float64], place_N2: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    relative = place_N2 - box[[_X, _Y]]
    along = relative[:, 0] * box[_COS] + relative[:, 1] * box[_SIN]
    across = relative[:, 1] * box[_COS] - relative[:, 0] * box[_SIN]
    length, width = 0.5 * np.exp(box[_SIZE[:2]]) + margin
    return np.asarray((np.abs(along) <= length) & (np.abs(across) <= width))


def _in_sector(corners_42: NDArray[np.float64], place_N2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which places lie in the bearings of an outline, seen from the base frame's origin."""
    middle = np.arctan2(*corners_42.mean(axis=0)[::-1])

    def off(points: NDArray[np.float64]) -> NDArray[np.float64]:
        away = np.arctan2(points[:, 1], points[:, 0]) - middle
        return np.asarray((away + np.pi) % (2.0 * np.pi) - np.pi)

    spread = off(corners_42)
    away_N = off(place_N2)
    return np.asarray((away_N >= spread.min()) & (away_N <= spread.max()))
