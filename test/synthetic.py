"""A small network and a clip made by hand, for tests that are not about either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.network_config import LIDAR_CHANNELS, RADAR_CHANNELS, NetworkConfig
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING

if TYPE_CHECKING:
    from e2e_perception.model.network import JointNetwork

SMALL = NetworkConfig(
    size="small_test",
    image_height=64,
    image_width=96,
    grid=BevGrid(x_min=-16.0, x_max=48.0, y_min=-16.0, y_max=16.0, resolution=1.0),
    bev_channels=16,
    camera_channels=16,
    num_queries=12,
    num_memory=12,
    num_hazards=10,
    plan_accelerations=(-4.0, -1.5, 0.0, 1.5),
    plan_offsets=(-1.8, 0.0, 1.8),
)


def untrained_network(*, seed: int = 0) -> JointNetwork:
    """A small network that has learned nothing, but tells places apart.

    The heatmap of a fresh network is so flat that rounding decides which cells become queries, which is not
    what two engines are compared for.
    """
    import torch

    from e2e_perception.model.network import JointNetwork

    torch.manual_seed(seed)
    model = JointNetwork(SMALL)
    with torch.no_grad():
        model.detection.heat.weight *= 30.0
    return model


def synthetic_clip(network: NetworkConfig = SMALL, *, seed: int = 0, num_frames: int = 4) -> Clip:
    """The robot drives 8 m/s straight on behind a car and brakes; others around, drawn into the rasters."""
    rng = np.random.default_rng(seed)
    t_count, s_count = num_frames, network.horizon_steps
    y_cells, x_cells = network.grid.shape
    yb, xb = network.bev_grid.shape
    dt = network.frame_period_s
    speed = 8.0 + rng.uniform(-1, 1)
    cars = [
        (20.0 + rng.uniform(-3, 3), 0.0, 4.0, 0),
        (rng.uniform(5, 25), 6.0, 9.0, 0),
        (30.0, -6.0, 0.0, 2),
    ]

    boxes = np.zeros((t_count, MAX_LABELS, 10), np.float32)
    boxes[..., 7] = 1.0
    class_ids = np.zeros((t_count, MAX_LABELS), np.int64)
    ids = np.full((t_count, MAX_LABELS), -1, np.int64)
    futures = np.zeros((t_count, MAX_LABELS, s_count, 2), np.float32)
    futures_valid = np.zeros((t_count, MAX_LABELS, s_count), bool)
    lidar = np.zeros((t_count, len(LIDAR_CHANNELS), y_cells, x_cells), np.float16)
    radar = np.zeros((t_count, len(RADAR_CHANNELS), y_cells, x_cells), np.float16)
    ego_future = np.zeros((t_count, s_count, 3), np.float32)
    for t in range(t_count):
        ego_x = speed * dt * t
        ahead = network.times_T
        ego_future[t, :, 0] = speed * ahead - 0.5 * 1.0 * ahead**2
        for i, (x0, y, v, k) in enumerate(cars):
            x = x0 + v * dt * t - ego_x
            length, width, height = (0.6, 0.6, 1.7) if k == 2 else (4.2, 1.8, 1.6)
            boxes[t, i] = (
                x,
                y,
                height / 2,
                np.log(length),
                np.log(width),
                np.log(height),
                0.0,
                1.0,
                v,
                0.0,
            )
            class_ids[t, i], ids[t, i] = k, 100 + i
            futures[t, i, :, 0] = x + v * ahead
            futures[t, i, :, 1] = y
            futures_valid[t, i] = True
            ix = int((x - network.grid.x_min) / network.grid.resolution)
            iy = int((y - network.grid.y_min) / network.grid.resolution)
            lidar[t, 1:, iy, max(0, ix - 2) : ix + 2] = 0.7
            radar[t, 0, iy, ix] = 0.5
            radar[t, 1, iy, ix] = v / 10.0
    route = np.zeros((t_count, ROUTE_POINTS, 4), np.float32)
    route[:, :, 0] = ROUTE_SPACING * np.arange(ROUTE_POINTS)
    route[:, :, 2] = 1.0
    ego_state = np.tile(np.array([speed, 0.0, -1.0, 10.0, 0.0, 0.0, 1.0], np.float32), (t_count, 1))
    n = len(network.cameras)
    projection = np.zeros((t_count, n, 3, 4), np.float32)
    projection[:, :] = np.array(
        [[48.0, -48.0, 0.0, 0.0], [32.0, 0.0, -48.0, 72.0], [1.0, 0.0, 0.0, 0.0]], np.float32
    )
    weights = (ids >= 0).astype(np.float32)
    maps = np.zeros((t_count, 2, yb, xb), np.uint8)
    maps[:, 0, yb // 3 : 2 * yb // 3] = 1
    maps[:, 1, yb // 3] = 1
    memory = np.zeros((t_count, 3))
    memory[1:, 0] = speed * dt
    return Clip(
        inputs={
            "images": rng.integers(
                0, 256, (t_count, n, network.image_height, network.image_width, 3), np.uint8
            ),
            "image_from_base": projection,
            "camera_valid": np.ones((t_count, n), np.float32),
            "lidar_raster": lidar,
            "lidar_valid": np.ones((t_count, len(network.lidars)), np.float32),
            "radar_raster": radar,
            "radar_valid": np.ones((t_count, len(network.radars)), np.float32),
            "ego_state": ego_state,
            "route": route,
        },
        boxes_TB10=boxes,
        class_ids_TB=class_ids,
        ids_TB=ids,
        weights_TB=weights,
        visible_TB=ids >= 0,
        futures_TBS2=futures,
        futures_valid_TBS=futures_valid,
        ego_future_TS3=ego_future,
        ego_future_valid_TS=np.ones((t_count, s_count), bool),
        maps_T2YX=maps,
        maps_valid=True,
        stamps_ns_T=np.arange(t_count, dtype=np.int64) * 100_000_000,
        memory_from_base_T3=memory,
        source="synthetic",
        scenario=f"synthetic/{seed}",
    )
