"""Host work per frame on one core: from an undecoded JPEG and cloud to the network's inputs.

Runs on the real bag (`kitti_highway` below E2E_PERCEPTION_TEST_DATA or ../shared/data: 64-beam lidar with
about 114,000 points, one 1242x375 JPEG) or, where it is absent, on a synthetic stand-in of the same size.
Each stage is timed on every frame; `total` is `Preprocessor.prepare`. Beside them stand the obvious ways to
do the same: whole JPEG, then area resize; boolean filtering and `np.add.at`. The latter must give the same
raster, or this program fails.

    python benchmarks/bench_host.py [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoMotionLimits, EgoState
from e2e_perception.core.frames import SE3, rotation_from_quaternion
from e2e_perception.core.network_config import LIDAR_SLICES, NetworkConfig
from e2e_perception.core.rig import Camera, Rig, load_rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.runtime.decode import decode_points, decode_scaled_image
from e2e_perception.runtime.preprocess import ImageCrop, Preprocessor
from e2e_perception.runtime.rasters import lidar_raster

ROOT = Path(__file__).resolve().parents[1]
BUDGET_MS = {"raster": 4.0, "total": 12.0}
BAG_NAME = "kitti_highway"


def stamp_ns(message: Any) -> int:
    """Header stamp [ns]."""
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)


def real_frames(bag: Path, rig: Rig) -> tuple[list[AssembledFrame], EgoMotionBuffer]:
    """Frames of the bag, lidar and camera paired by equal stamps, and its odometry."""
    from rosbags.highlevel import AnyReader

    camera, lidar = rig.cameras[0], rig.lidars[0]
    by_topic: dict[str, dict[int, Any]] = {camera.topic: {}, lidar.topic: {}, rig.odom_topic: {}}
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic in by_topic]
        for connection, _, raw in reader.messages(connections):
            message = reader.deserialize(raw, connection.msgtype)
            by_topic[connection.topic][stamp_ns(message)] = message
    ego = EgoMotionBuffer(EgoMotionLimits(horizon_ns=10**12))
    for stamp, odometry in by_topic[rig.odom_topic].items():
        pose, twist = odometry.pose.pose, odometry.twist.twist
        p, q = pose.position, pose.orientation
        odom_from_base = SE3(rotation_from_quaternion(q.x, q.y, q.z, q.w), np.array([p.x, p.y, p.z]))
        velocity = np.array([twist.linear.x, twist.linear.y, twist.linear.z])
        ego.add(EgoState(stamp, odom_from_base, velocity, twist.angular.z))
    frames: list[AssembledFrame] = []
    for stamp, cloud in by_topic[lidar.topic].items():
        pair = {lidar.name: cloud, camera.name: by_topic[camera.topic][stamp]}
        messages = {name: SensorMessage(name, stamp, stamp, payload) for name, payload in pair.items()}
        frames.append(AssembledFrame(stamp, lidar.name, messages, {}, stamp, len(frames)))
    return frames, ego


def synthetic_frames(rig: Rig, num_frames: int = 20) -> tuple[list[AssembledFrame], EgoMotionBuffer]:
    """Clouds and pictures of the real bag's size, of no particular content."""
    rng = np.random.default_rng(0)
    camera, lidar = rig.cameras[0], rig.lidars[0]
    ego = EgoMotionBuffer(EgoMotionLimits(horizon_ns=10**12))
    frames: list[AssembledFrame] = []
    for k in range(num_frames):
        stamp = 10**9 + k * 10**8
        ego.add(EgoState(stamp, SE3.planar(0.5 * k, 0.0, 0.0), np.array([5.0, 0.0, 0.0]), 0.0))
        azimuth = np.repeat(np.linspace(-np.pi, np.pi, 1786), 64)
        distance = rng.gamma(2.0, 7.0, azimuth.size) + 1.4
        height = rng.uniform(-1.75, 1.0, azimuth.size)
        columns = [distance * np.cos(azimuth), distance * np.sin(azimuth), height, rng.random(azimuth.size)]
        data = np.stack(columns, axis=1).astype("<f4")
        cloud = SimpleNamespace(
            height=1,
            width=len(data),
            fields=[
                SimpleNamespace(name=name, offset=4 * i, datatype=7, count=1)
                for i, name in enumerate(("x", "y", "z", "intensity"))
            ],
            is_bigendian=False,
            point_step=16,
            row_step=data.nbytes,
            data=data.reshape(-1).view(np.uint8),
        )
        coarse = rng.integers(0, 256, (camera.height // 4, camera.width // 4, 3), np.uint8)
        bgr = cv2.resize(coarse, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
        picture = SimpleNamespace(format="jpeg", data=cv2.imencode(".jpg", bgr)[1].reshape(-1))
        messages = {
            lidar.name: SensorMessage(lidar.name, stamp, stamp, cloud),
            camera.name: SensorMessage(camera.name, stamp, stamp, picture),
        }
        frames.append(AssembledFrame(stamp, lidar.name, messages, {}, stamp, k))
    return frames, ego


def naive_picture(payload: Any, crop: ImageCrop, network: NetworkConfig) -> NDArray[np.uint8]:
    """Decode all of it, convert all of it, average it down."""
    bgr = cv2.imdecode(payload.data, cv2.IMREAD_COLOR)
    assert bgr is not None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    part = rgb[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
    size = (network.image_width, network.image_height)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)


def naive_raster(
    points_N3: NDArray[np.float32], intensity_N: NDArray[np.float32], grid: BevGrid
) -> NDArray[np.float32]:
    """The lidar raster as one would first write it."""
    keep = (
        grid.contains(points_N3) & (points_N3[:, 2] >= LIDAR_SLICES[0]) & (points_N3[:, 2] < LIDAR_SLICES[-1])
    )
    points_N3, intensity_N = points_N3[keep], intensity_N[keep]
    column = ((points_N3[:, 0] - grid.x_min) / grid.resolution).astype(np.int64)
    row = ((points_N3[:, 1] - grid.y_min) / grid.resolution).astype(np.int64)
    layer = np.digitize(points_N3[:, 2], LIDAR_SLICES) - 1
    counts = np.zeros((len(LIDAR_SLICES) - 1, *grid.shape))
    np.add.at(counts, (layer, row, column), 1.0)
    top = np.full(grid.shape, -np.inf)
    np.maximum.at(top, (row, column), points_N3[:, 2])
    intensity = np.zeros(grid.shape)
    np.add.at(intensity, (row, column), intensity_N)
    count = counts.sum(axis=0)
    channels = [
        *np.minimum(np.log1p(counts) / np.log(16.0), 1.0),
        np.where(count > 0, top / 4.0, 0.0),
        intensity / np.maximum(count, 1.0),
        np.log1p(count) / np.log(256.0),
    ]
    return np.stack(channels).astype(np.float32)


class Stopwatch:
    """Collects the time of named stages."""

    def __init__(self) -> None:
        self.times_ms: dict[str, list[float]] = {}

    def time(self, stage: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call `work` and note how long it took."""
        start = time.perf_counter()
        result = work(*arguments, **options)
        self.times_ms.setdefault(stage, []).append((time.perf_counter() - start) * 1e3)
        return result

    def summary(self) -> dict[str, dict[str, float]]:
        """p50 and p95 [ms] per stage."""
        return {
            stage: {"p50_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}
            for stage, times in self.times_ms.items()
        }


def measure(
    frames: list[AssembledFrame], ego: EgoMotionBuffer, rig: Rig, repeats: int
) -> dict[str, dict[str, float]]:
    """Time every stage and both ways on every frame.

    Raises:
        RuntimeError: If the fast and the naive raster differ.
    """
    network = NetworkConfig()
    camera, lidar = rig.cameras[0], rig.lidars[0]
    assert isinstance(camera, Camera)
    crop = ImageCrop.of(camera, network)
    preprocessor = Preprocessor(network, rig)
    route = Route(np.array([[-100.0, 0.0], [1000.0, 0.0]]))
    rotation = lidar.base_from_sensor.rotation.astype(np.float32)
    translation = lidar.base_from_sensor.translation.astype(np.float32)[:, None]
    watch = Stopwatch()

    def moved(points: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        points_3N = np.stack([points["x"], points["y"], points["z"]])
        return np.asarray(np.einsum("ij,jn->in", rotation, points_3N) + translation).T

    for _ in range(repeats):
        for frame in frames:
            picture, cloud = (frame.messages[s.name].payload for s in (camera, lidar))
            out_HW3 = np.empty((network.image_height, network.image_width, 3), np.uint8)
            image = watch.time("decode jpeg", decode_scaled_image, picture, target_size=crop.target_size)
            watch.time("resize", crop.apply, image.rgb_HW3, image.reduction, out_HW3)
            points = watch.time("decode points", decode_points, cloud)
            points_base_N3 = watch.time("move points", moved, points)
            rasterised = (points_base_N3, points["intensity"], network.grid)
            raster = watch.time("raster", lidar_raster, *rasterised)
            watch.time("total", preprocessor.prepare, frame, ego, route, 25.0)
            watch.time("naive picture", naive_picture, picture, crop, network)
            naive = watch.time("naive raster", naive_raster, *rasterised)
            # A point on the border of two cells may be rounded either way.
            share = float(np.mean(np.abs(naive - raster) > 1e-4))
            if share > 1e-3:
                raise RuntimeError(f"fast and naive raster differ in {share:.2%} of their values")
    return watch.summary()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3, help="Passes over all frames.")
    parser.add_argument("--json", action="store_true", help="Print figures as JSON.")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    rig = load_rig(ROOT / "config" / "rigs" / f"{BAG_NAME}.yaml")
    bag = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / BAG_NAME
    source = "real bag" if bag.is_dir() else f"synthetic (no {BAG_NAME} bag found)"
    frames, ego = real_frames(bag, rig) if bag.is_dir() else synthetic_frames(rig)
    stages = measure(frames, ego, rig, arguments.repeats)
    p50 = {stage: figures["p50_ms"] for stage, figures in stages.items()}
    ratios = {
        "picture": p50["naive picture"] / (p50["decode jpeg"] + p50["resize"]),
        "raster": p50["naive raster"] / p50["raster"],
    }
    result = {
        "data": source,
        "frames": len(frames),
        "points": int(np.median([f.messages[rig.lidars[0].name].payload.width for f in frames])),
        "stages": stages,
        "budget_p50_ms": BUDGET_MS,
        "within_budget": {stage: p50[stage] <= budget for stage, budget in BUDGET_MS.items()},
        "times_faster_than_naive": ratios,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"host work per frame, {source}: {result['frames']} frames of {result['points']} points, 1 thread")
    for stage, figures in stages.items():
        budget = f"   budget {BUDGET_MS[stage]:4.1f}" if stage in BUDGET_MS else ""
        print(f"  {stage:14s} p50 {figures['p50_ms']:6.2f} ms   p95 {figures['p95_ms']:6.2f} ms{budget}")
    for what, ratio in ratios.items():
        print(f"  {what}: {ratio:.1f} times as fast as the naive way")


if __name__ == "__main__":
    main()
