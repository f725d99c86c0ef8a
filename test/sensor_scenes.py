"""Small worlds for tests of the sensor models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar
from e2e_perception.simulation.scene import Conditions, Marking, Road, Snapshot, Solids

CAMERA = Camera(
    name="front",
    topic="/camera",
    frame_id="camera",
    mount=Mount(xyz=(1.7, 0.0, 1.5)),
    width=704,
    height=256,
    fx_px=352.0,
    fy_px=352.0,
    cx_px=351.5,
    cy_px=127.5,
)
LIDAR = Lidar(
    name="top",
    topic="/lidar",
    frame_id="lidar",
    mount=Mount(xyz=(1.2, 0.0, 1.8)),
    range_noise=0.0,
    dropout=0.0,
)
RADAR = Radar(
    name="radar_front",
    topic="/radar",
    frame_id="radar",
    mount=Mount(xyz=(3.7, 0.4, 0.5), rpy_deg=(0.0, 0.0, 10.0)),
    range_noise=0.0,
    azimuth_noise_deg=0.0,
    doppler_noise=0.0,
    clutter=0.0,
)
NO_ROAD = Road((), (), ())


@dataclass(frozen=True)
class Block:
    """A box on the ground or above it; an agent of a class, or clutter if it has none."""

    center: tuple[float, float]
    size: tuple[float, float, float] = (4.4, 1.8, 1.5)
    yaw: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)
    class_name: str | None = "car"
    color: tuple[int, int, int] = (200, 30, 30)
    bottom: float = 0.0
    reflectivity: float = 0.5
    rcs: float = 40.0


def straight_road(half_width: float = 6.0, length: float = 400.0) -> Road:
    """Along x, with a dashed line in the middle and solid ones at the sides."""
    x = np.array([-length, length])

    def line(y: float) -> NDArray[np.float64]:
        return np.stack([x, np.full(2, y)], axis=-1)

    edges = (line(half_width), line(-half_width))
    markings = (
        Marking(line(0.0), "dashed", (230, 230, 225), 0.15),
        *(Marking(line(side * (half_width - 0.5)), "solid", (230, 230, 225), 0.15) for side in (-1, 1)),
    )
    return Road((np.concatenate([edges[0], edges[1][::-1]]),), edges, markings)


def make_snapshot(
    *blocks: Block,
    pose: SE3 | None = None,
    speed: float = 0.0,
    yaw_rate: float = 0.0,
    road: Road = NO_ROAD,
    conditions: Conditions | None = None,
) -> Snapshot:
    """A world of blocks, seen from a pose."""
    agents = [b for b in blocks if b.class_name is not None]
    rows = np.cumsum([b.class_name is not None for b in blocks]) - 1

    def array(values: list[object], width: int, dtype: type) -> NDArray[np.generic]:
        return np.array(values, dtype).reshape((-1, width) if width > 1 else -1)

    def centers(of: list[Block]) -> NDArray[np.generic]:
        return array([(*b.center, b.bottom + 0.5 * b.size[2]) for b in of], 3, np.float64)

    every = list(blocks)
    return Snapshot(
        stamp_ns=0,
        odom_from_base=pose or SE3.identity(),
        velocity=np.array([speed, 0.0, 0.0]),
        yaw_rate=yaw_rate,
        boxes=Boxes(
            centers_N3=centers(agents).astype(np.float32),
            sizes_N3=array([b.size for b in agents], 3, np.float32),
            yaws_N=array([b.yaw for b in agents], 1, np.float32),
            velocities_N2=array([b.velocity for b in agents], 2, np.float32),
            class_ids_N=array([CLASSES.index(b.class_name or "") for b in agents], 1, np.int64),
            scores_N=np.ones(len(agents), np.float32),
            ids_N=np.arange(len(agents)),
        ),
        solids=Solids(
            centers_N3=centers(every),
            sizes_N3=array([b.size for b in every], 3, np.float64),
            yaws_N=array([b.yaw for b in every], 1, np.float64),
            velocities_N2=array([b.velocity for b in every], 2, np.float64),
            colors_N3=array([b.color for b in every], 3, np.uint8),
            reflectivities_N=array([b.reflectivity for b in every], 1, np.float64),
            rcs_N=array([b.rcs for b in every], 1, np.float64),
            labels_N=np.array(
                [row if b.class_name is not None else -1 for b, row in zip(every, rows, strict=True)],
                np.int64,
            ),
        ),
        road=road,
        conditions=conditions or Conditions(),
    )


def surface_distances(points_N3: NDArray[np.float64], snapshot: Snapshot) -> NDArray[np.float64]:
    """(N,) [m]: from odom points to the nearest of the ground and the boxes' surfaces."""
    solids = snapshot.solids
    offsets = points_N3[:, None] - solids.centers_N3
    c, s = np.cos(solids.yaws_N), np.sin(solids.yaws_N)
    local = np.stack(
        [
            c * offsets[..., 0] + s * offsets[..., 1],
            c * offsets[..., 1] - s * offsets[..., 0],
            offsets[..., 2],
        ],
        -1,
    )
    beyond = np.abs(local) - 0.5 * solids.sizes_N3
    outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1)
    inside = np.minimum(beyond.max(axis=-1), 0.0)
    to_boxes = np.abs(outside + inside)
    return np.concatenate([to_boxes, np.abs(points_N3[:, 2:])], axis=1).min(axis=1)
