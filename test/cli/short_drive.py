"""Two seconds of a drive that a rig of one lidar and one camera could have recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage

START_NS = 1_700_000_000_000_000_000
NUM_FRAMES = 20
PERIOD_NS = 100_000_000
SPEED = 5.0  # [m/s]

RIG = Rig(
    name="pair",
    sensors=(
        Lidar(name="top", topic="/lidar", frame_id="lidar", mount=Mount(xyz=(1.0, 0.0, 1.8))),
        Camera(
            name="front",
            topic="/camera",
            camera_info_topic="/camera_info",
            frame_id="camera",
            mount=Mount(xyz=(1.5, 0.0, 1.5)),
            width=96,
            height=64,
            fx_px=48.0,
            fy_px=48.0,
            cx_px=48.0,
            cy_px=32.0,
        ),
    ),
)


def sensor_messages() -> Iterator[SensorMessage]:
    """A flat road with a wall, and grey pictures with some texture."""
    rng = np.random.default_rng(0)
    for k in range(NUM_FRAMES):
        stamp_ns = START_NS + k * PERIOD_NS
        picture = rng.integers(60, 160, (64, 96, 3), np.uint8)
        yield SensorMessage("front", stamp_ns, stamp_ns + 10_000_000, ImageSample(picture))
        ground = np.column_stack([rng.uniform(-20, 60, (800, 1)), rng.uniform(-15, 15, (800, 1))])
        points = np.vstack(
            [
                np.column_stack([ground, np.full(800, -1.8)]),
                np.column_stack([np.full(200, 30.0), rng.uniform(-4, 4, 200), rng.uniform(-1.8, 0.5, 200)]),
            ]
        ).astype(np.float32)
        fields = {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2]}
        fields["intensity"] = np.full(len(points), 0.3, np.float32)
        yield SensorMessage("top", stamp_ns, stamp_ns + 30_000_000, PointsSample(fields))


def odometry() -> Iterator[EgoState]:
    """Straight ahead at constant speed, 50 Hz, from a little before the first frame."""
    for k in range(-10, NUM_FRAMES * 5):
        time_s = k * 0.02
        pose = SE3.planar(SPEED * time_s, 0.0, 0.0)
        yield EgoState(START_NS + k * 20_000_000, pose, np.array([SPEED, 0.0, 0.0]), 0.0)


def labels() -> Iterator[tuple[int, Boxes]]:
    """One car, always 15 m ahead."""
    for k in range(NUM_FRAMES):
        yield (
            START_NS + k * PERIOD_NS,
            Boxes(
                centers_N3=np.array([[15.0, 0.0, 0.8]], np.float32),
                sizes_N3=np.array([[4.4, 1.8, 1.6]], np.float32),
                yaws_N=np.zeros(1, np.float32),
                velocities_N2=np.array([[SPEED, 0.0]], np.float32),
                class_ids_N=np.zeros(1, np.int64),
                scores_N=np.ones(1, np.float32),
                ids_N=np.array([7]),
            ),
        )
