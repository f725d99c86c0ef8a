"""The Kalman tracker on one core: frames per second with about fifty objects, by metric of association.

The objects drive at constant velocity on a square of 160 m, are detected with noise, a tenth is missed, and
some detections are of nothing.

    OMP_NUM_THREADS=1 python benchmarks/bench_tracker.py [--objects 50] [--frames 300] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from e2e_perception.core.boxes import Boxes
from e2e_perception.runtime.kalman_tracker import KalmanTracker, KalmanTrackerConfig

DT = 0.1  # [s]
EXTENT = 80.0  # [m] from the middle
SIZE = (4.4, 1.8, 1.6)  # [m]
MISSED, SPURIOUS = 0.1, 3  # share of objects, and mean number of detections of nothing in a frame


def make_frames(num_objects: int, num_frames: int, seed: int) -> list[Boxes]:
    """Detections of each frame."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-EXTENT, EXTENT, (num_objects, 2))
    velocities = rng.uniform(-12.0, 12.0, (num_objects, 2))
    frames = []
    for _ in range(num_frames):
        places += DT * velocities
        velocities *= np.where(np.abs(places) > EXTENT, -np.sign(places * velocities), 1.0)
        seen = np.flatnonzero(rng.random(num_objects) > MISSED)
        nothing = rng.uniform(-EXTENT, EXTENT, (rng.poisson(SPURIOUS), 2))
        centers = np.concatenate([places[seen] + rng.normal(0.0, 0.2, (len(seen), 2)), nothing])
        yaws = np.concatenate([np.arctan2(*velocities[seen].T[::-1]), np.zeros(len(nothing))])
        num = len(centers)
        frames.append(
            Boxes(
                centers_N3=np.column_stack([centers, np.full(num, SIZE[2] / 2.0)]).astype(np.float32),
                sizes_N3=np.tile(SIZE, (num, 1)).astype(np.float32),
                yaws_N=yaws.astype(np.float32),
                velocities_N2=np.zeros((num, 2), np.float32),
                class_ids_N=np.zeros(num, np.int64),
                scores_N=rng.uniform(0.3, 1.0, num).astype(np.float32),
                ids_N=np.full(num, -1, np.int64),
            )
        )
    return frames


def run(frames: list[Boxes], metric: str, repeats: int) -> dict[str, Any]:
    """Track all frames; the best of `repeats` runs counts."""
    best, num_tracks = float("inf"), 0
    for _ in range(repeats):
        tracker = KalmanTracker(KalmanTrackerConfig.model_validate({"metric": metric}))
        num_tracks = 0
        start = time.perf_counter()
        for frame in frames:
            num_tracks += len(tracker.update(frame, DT))
        best = min(best, time.perf_counter() - start)
    return {"frames_per_s": len(frames) / best, "tracks_per_frame": num_tracks / len(frames)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Benchmark of the Kalman tracker.")
    parser.add_argument("--objects", type=int, default=50, help="that are there")
    parser.add_argument("--frames", type=int, default=300, help="at 10 Hz")
    parser.add_argument("--seed", type=int, default=0, help="of places, velocities and noise")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the fastest counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    frames = make_frames(arguments.objects, arguments.frames, arguments.seed)
    result: dict[str, Any] = {
        "frames": len(frames),
        "detections_per_frame": sum(map(len, frames)) / len(frames),
        "metrics": {
            metric: run(frames, metric, arguments.repeats) for metric in ("distance", "iou_bev", "iou_3d")
        },
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{len(frames)} frames with {result['detections_per_frame']:.1f} detections on average, one thread")
    print(f"{'metric':12}{'frames/s':>12}{'ms/frame':>12}{'tracks':>10}")
    for metric, figures in result["metrics"].items():
        rate = figures["frames_per_s"]
        print(f"{metric:12}{rate:>12.0f}{1e3 / rate:>12.2f}{figures['tracks_per_frame']:>10.1f}")


if __name__ == "__main__":
    main()
