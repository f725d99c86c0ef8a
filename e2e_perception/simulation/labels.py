"""Labels of one frame: boxes, futures, the robot's own future and the map, all in the frame's base frame."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import Boxes
from e2e_perception.core.clips import MAX_LABELS
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.scene import Road, Snapshot


def boxes_in_base(snapshot: Snapshot) -> Boxes:
    """The snapshot's boxes in the base frame, velocities over ground in its axes."""
    base_from_odom = snapshot.odom_from_base.inverse()
    planar = base_from_odom.planar_part()
    boxes = snapshot.boxes
    return Boxes(
        centers_N3=base_from_odom.apply(boxes.centers_N3).astype(np.float32),
        sizes_N3=boxes.sizes_N3,
        yaws_N=wrap_angle(boxes.yaws_N + planar.yaw).astype(np.float32),
        velocities_N2=planar.rotate(boxes.velocities_N2).astype(np.float32),
        class_ids_N=boxes.class_ids_N,
        scores_N=boxes.scores_N,
        ids_N=boxes.ids_N,
    )


def frame_labels(
    scenario: Scenario,
    snapshot: Snapshot,
    network: NetworkConfig,
    visible: Collection[int],
    seen: Collection[int],
) -> dict[str, NDArray[np.generic]]:
    """Labels of one frame, padded to `MAX_LABELS`.

    Args:
        scenario: For what comes after the frame.
        snapshot: The world at the frame time.
        network: Grid and horizon.
        visible: Identities that some sensor sees in this frame.
        seen: Identities seen so far; the others have weight 0, since nothing can know of them.
    Returns:
        By field name of `Clip`, without the time axis.
    """
    boxes = boxes_in_base(snapshot)
    inside = np.flatnonzero(network.grid.contains(boxes.centers_N3[:, :2]))
    distance = np.linalg.norm(boxes.centers_N3[inside, :2], axis=1)
    boxes = boxes.select(inside[np.argsort(distance, kind="stable")][:MAX_LABELS])
    n, num_steps = len(boxes), network.horizon_steps
    columns = {
        "x": boxes.centers_N3[:, 0],
        "y": boxes.centers_N3[:, 1],
        "z": boxes.centers_N3[:, 2],
        "log_length": np.log(boxes.sizes_N3[:, 0]),
        "log_width": np.log(boxes.sizes_N3[:, 1]),
        "log_height": np.log(boxes.sizes_N3[:, 2]),
        "sin_yaw": np.sin(boxes.yaws_N),
        "cos_yaw": np.cos(boxes.yaws_N),
        "vx": boxes.velocities_N2[:, 0],
        "vy": boxes.velocities_N2[:, 1],
    }
    rows = np.zeros((MAX_LABELS, len(BOX_FIELDS)), np.float32)
    rows[:, BOX_FIELDS.index("cos_yaw")] = 1.0
    rows[:n] = np.stack([columns[name] for name in BOX_FIELDS], axis=1)
    class_ids = np.zeros(MAX_LABELS, np.int64)
    ids = np.full(MAX_LABELS, -1, np.int64)
    weights = np.zeros(MAX_LABELS, np.float32)
    visible_B = np.zeros(MAX_LABELS, np.bool_)
    class_ids[:n], ids[:n] = boxes.class_ids_N, boxes.ids_N
    visible_B[:n] = [identity in visible for identity in boxes.ids_N.tolist()]
    weights[:n] = [float(identity in seen) for identity in boxes.ids_N.tolist()]

    futures = np.zeros((MAX_LABELS, num_steps, 2), np.float32)
    futures_valid = np.zeros((MAX_LABELS, num_steps), np.bool_)
    ego_future = np.zeros((num_steps, 3), np.float32)
    ego_future_valid = np.zeros(num_steps, np.bool_)
    base_from_odom = snapshot.odom_from_base.planar_part().inverse()
    for k, ahead_s in enumerate(network.times_T.tolist()):
        later_ns = snapshot.stamp_ns + round(ahead_s * 1e9)
        if later_ns > scenario.last_ns:
            break
        poses, present = scenario.objects_at(later_ns)
        futures[:n, k] = base_from_odom.apply(poses[boxes.ids_N, :2])
        futures_valid[:n, k] = present[boxes.ids_N]
        pose = base_from_odom @ scenario.ego_at(later_ns).odom_from_base.planar_part()
        ego_future[k] = (pose.x, pose.y, pose.yaw)
        ego_future_valid[k] = scenario.is_example(snapshot.stamp_ns, later_ns)
    return {
        "boxes_TB10": rows,
        "class_ids_TB": class_ids,
        "ids_TB": ids,
        "weights_TB": weights,
        "visible_TB": visible_B,
        "futures_TBS2": futures,
        "futures_valid_TBS": futures_valid,
        "ego_future_TS3": ego_future,
        "ego_future_valid_TS": ego_future_valid,
        "maps_T2YX": road_maps(snapshot.road, base_from_odom, network.bev_grid),
    }


def road_maps(road: Road, base_from_odom: SE2, grid: BevGrid) -> NDArray[np.uint8]:
    """Drivable area and its boundaries on a grid, (2, Y, X) uint8 in {0, 1}."""
    maps = np.zeros((2, *grid.shape), np.uint8)

    def cells(points_N2: NDArray[np.float64]) -> NDArray[np.int32]:
        points = base_from_odom.apply(points_N2)
        scaled = (points - (grid.x_min, grid.y_min)) / grid.resolution - 0.5
        return np.round(scaled * 16.0).astype(np.int32)[:, None]  # 4 fractional bits, see `shift`

    for polygon in road.drivable:
        cv2.fillPoly(maps[0], [cells(polygon)], (1,), shift=4)
    for line in road.boundaries:
        cv2.polylines(maps[1], [cells(line)], False, (1,), thickness=1, shift=4)
    return maps
