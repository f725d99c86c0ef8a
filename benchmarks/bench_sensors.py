"""Sensor models on one core: milliseconds per frame of each sensor of a rig, and where the time goes.

The world is a traffic scenario; frames follow each other at 10 Hz, so that what the models keep from frame to
frame counts as it does in use. The first frame, which also paints the ground, is reported by itself.

    python benchmarks/bench_sensors.py [--frames 40] [--kind stopped_queue] [--json]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from e2e_perception.core.rig import Camera, Lidar, Rig, load_rig
from e2e_perception.simulation.camera import render_camera_with_ids
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.traffic import KINDS, simulate_scenario
from e2e_perception.simulation.visibility import visibility

ROOT = Path(__file__).resolve().parent.parent
NETWORK_SIZE = (352, 128)  # (width, height) [px] at which training renders
Task = Callable[[Snapshot], Any]


def make_tasks(rig: Rig, seed: int) -> dict[str, Task]:
    """What to time, by name."""
    rng = np.random.default_rng(seed)
    tasks: dict[str, Task] = {}
    for sensor in rig.sensors:
        if isinstance(sensor, Camera):
            for width, height in (NETWORK_SIZE, (sensor.width, sensor.height)):
                tasks[f"camera {sensor.name} {width}x{height}"] = partial(
                    render_camera_with_ids, camera=sensor, rng=rng, size=(width, height)
                )
        elif isinstance(sensor, Lidar):
            tasks[f"lidar {sensor.name}"] = partial(simulate_lidar_with_labels, lidar=sensor, rng=rng)
        else:
            tasks[f"radar {sensor.name}"] = partial(simulate_radar, radar=sensor, rng=rng)
    tasks["visibility"] = partial(visibility, lidar_labels=[], cameras=rig.cameras)
    return tasks


def run(tasks: dict[str, Task], snapshots: list[Snapshot]) -> dict[str, dict[str, float]]:
    """Milliseconds of each task: the first frame, then the median and the fastest of the others."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for snapshot in snapshots:
        for name, task in tasks.items():
            start = time.perf_counter()
            task(snapshot)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"first_ms": ms[0], "p50_ms": statistics.median(ms[1:]), "best_ms": min(ms[1:])}
        for name, ms in times.items()
    }


def own_times(tasks: dict[str, Task], snapshots: list[Snapshot], count: int = 14) -> dict[str, float]:
    """Share of all time spent inside the costliest functions themselves, as the profiler sees it."""
    profile = cProfile.Profile()
    profile.enable()
    for snapshot in snapshots:
        for task in tasks.values():
            task(snapshot)
    profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(row[2] for row in stats.values())
    costliest = sorted(stats.items(), key=lambda item: -item[1][2])[:count]
    return {
        (f"{Path(file).stem}.{function}" if file != "~" else function): row[2] / total
        for (file, _, function), row in costliest
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Benchmark of the sensor models.")
    parser.add_argument("--rig", type=Path, default=ROOT / "config/rigs/tiny.yaml", help="rig file")
    parser.add_argument("--kind", choices=KINDS, default="stopped_queue", help="traffic scenario")
    parser.add_argument("--frames", type=int, default=40, help="at 10 Hz, at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of the scenario and the noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    if arguments.frames < 2:
        parser.error(f"--frames is {arguments.frames}, expected at least 2")

    cv2.setNumThreads(1)
    scenario = simulate_scenario(arguments.kind, arguments.seed, 0.1 * arguments.frames + 1.0)
    stamps = scenario.start_ns + 100_000_000 * np.arange(arguments.frames)
    snapshots = [scenario.snapshot(int(stamp)) for stamp in stamps]
    tasks = make_tasks(load_rig(arguments.rig), arguments.seed)
    timings = run(tasks, snapshots)
    small = "{}x{}".format(*NETWORK_SIZE)
    cameras_ms = sum(t["p50_ms"] for name, t in timings.items() if name.endswith(small))
    in_training = {
        name: task
        for name, task in tasks.items()
        if name.endswith(small) or name.startswith(("lidar", "radar"))
    }
    result: dict[str, Any] = {
        "scenario": scenario.name,
        "frames": len(snapshots),
        "solids": statistics.mean(len(snapshot.solids) for snapshot in snapshots),
        "agents": statistics.mean(len(snapshot.boxes) for snapshot in snapshots),
        "tasks": timings,
        "cameras_p50_ms": cameras_ms,
        "frame_p50_ms": sum(timings[name]["p50_ms"] for name in in_training),
        "own_time_shares": own_times(in_training, snapshots),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"{result['scenario']}: {result['frames']} frames, {result['solids']:.0f} solids "
        f"and {result['agents']:.0f} agents on average, one thread"
    )
    print(f"{'ms per frame':32}{'p50':>8}{'best':>8}{'first':>8}")
    for name, t in timings.items():
        print(f"{name:32}{t['p50_ms']:>8.2f}{t['best_ms']:>8.2f}{t['first_ms']:>8.2f}")
    print(f"{'all cameras at ' + small:32}{cameras_ms:>8.2f}")
    print(f"{'all sensors, cameras at ' + small:32}{result['frame_p50_ms']:>8.2f}")
    print("where the time goes (own time of functions, profiled, share of the last line):")
    for name, share in result["own_time_shares"].items():
        print(f"  {100 * share:5.1f} %  {name}")


if __name__ == "__main__":
    main()
