"""Sensor models on one core: milliseconds per frame of each sensor of a rig, and where the time goes.

The world is a traffic scenario, filled up with clutter if it has too little; frames follow each other at 10
Hz, so that what the models keep from frame to frame counts as it does in use. The first frame, which also
paints the ground, is reported by itself. Then the whole rig, cameras at the network's size, in several
weathers and with all that can be wrong with pictures and points at once.

    OMP_NUM_THREADS=1 python benchmarks/bench_sensors.py [--frames 40] [--solids 160] [--json]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from e2e_perception.core.rig import Camera, Lidar, Rig, load_rig
from e2e_perception.simulation.camera import render_camera_with_ids
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.scene import Snapshot, Solids
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.traffic import KINDS, simulate_scenario
from e2e_perception.simulation.visibility import visibility

ROOT = Path(__file__).resolve().parent.parent
NETWORK_SIZE = (352, 128)  # (width, height) [px] at which training renders
Task = Callable[[Snapshot], Any]
# One entry each; the last one has everything.
WEATHERS: dict[str, list[dict[str, Any]]] = {
    "clear": [],
    "rain 40 mm/h": [{"effect": "rain", "rate_mm_h": 40.0}],
    "fog 0.04 /m": [{"effect": "fog", "extinction": 0.04}],
    "rain, fog, glare": [{"effect": "rain"}, {"effect": "fog"}, {"effect": "glare"}],
    "the same and dirt, blur, noise, dead beams, short range": [
        *({"effect": name} for name in ("rain", "fog", "glare", "dirt", "blur", "noise", "beam_loss")),
        {"effect": "range_loss", "share": 0.3},
        {"effect": "miscalibration"},
    ],
}


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


def crowded(snapshot: Snapshot, num_solids: int) -> Snapshot:
    """The snapshot with poles, bushes and houses around the robot, until there are so many solids."""
    missing = max(num_solids - len(snapshot.solids), 0)
    rng = np.random.default_rng(0)  # the same in each frame
    distance, bearing = rng.uniform(12.0, 90.0, missing), rng.uniform(-np.pi, np.pi, missing)
    size = np.exp(rng.normal([0.0, 0.0, 0.8], 0.8, (missing, 3)))
    center = snapshot.odom_from_base.translation[:2] + distance[:, None] * np.stack(
        [np.cos(bearing), np.sin(bearing)], axis=-1
    )
    added = Solids(
        centers_N3=np.concatenate([center, size[:, 2:] / 2.0], axis=1),
        sizes_N3=size,
        yaws_N=rng.uniform(-np.pi, np.pi, missing),
        velocities_N2=np.zeros((missing, 2)),
        colors_N3=rng.integers(0, 255, (missing, 3)).astype(np.uint8),
        reflectivities_N=rng.uniform(0.1, 0.9, missing),
        rcs_N=rng.uniform(-10.0, 20.0, missing),
        labels_N=np.full(missing, -1),
    )
    solids = Solids(
        **{
            f.name: np.concatenate([getattr(snapshot.solids, f.name), getattr(added, f.name)])
            for f in fields(Solids)
        }
    )
    return replace(snapshot, solids=solids)


def rig_times(
    rig: Rig, snapshots: list[Snapshot], entries: list[dict[str, Any]], seed: int
) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each frame but the first with the whole rig, and where the time goes."""
    degradation = DegradationSchedule.model_validate({"entries": entries}) if entries else None
    by_stamp = {snapshot.stamp_ns: snapshot for snapshot in snapshots}
    start_ns, end_ns = snapshots[0].stamp_ns, snapshots[-1].stamp_ns
    # All in step, so that every frame has one measurement of each sensor.
    in_step = {
        s.name: s.model_copy(update={"rate_hz": 10.0, "offset_ms": 0.0, **_network_size(s)})
        for s in rig.sensors
    }
    yaw = snapshots[0].odom_from_base.yaw
    profile = cProfile.Profile()
    times: list[float] = []
    for profiled in (False, True):
        sensors = SensorRig(rig.with_sensors(in_step), start_ns, end_ns, seed, degradation, start_yaw=yaw)
        for stamp_ns in by_stamp:
            if profiled:
                profile.enable()
            start = time.perf_counter()
            messages = sensors.measure(stamp_ns, by_stamp.__getitem__)
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            profile.disable()
            assert len(messages) == len(rig.sensors)
            if not profiled:
                times.append(elapsed_ms)
    return times[1:], _shares(profile)


def _network_size(sensor: Any) -> dict[str, Any]:
    if not isinstance(sensor, Camera):
        return {}
    width, height = NETWORK_SIZE
    scale = width / sensor.width
    return {
        "width": width,
        "height": height,
        "fx_px": sensor.fx_px * scale,
        "fy_px": sensor.fy_px * scale,
        "cx_px": (sensor.cx_px + 0.5) * scale - 0.5,
        "cy_px": (sensor.cy_px + 0.5) * scale - 0.5,
    }


def own_times(tasks: dict[str, Task], snapshots: list[Snapshot], count: int = 14) -> dict[str, float]:
    """Share of all time spent inside the costliest functions themselves, as the profiler sees it."""
    profile = cProfile.Profile()
    profile.enable()
    for snapshot in snapshots:
        for task in tasks.values():
            task(snapshot)
    profile.disable()
    return _shares(profile, count)


def _shares(profile: cProfile.Profile, count: int = 14) -> dict[str, float]:
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
    parser.add_argument("--solids", type=int, default=160, help="at least so many, filled up with clutter")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    if arguments.frames < 2:
        parser.error(f"--frames is {arguments.frames}, expected at least 2")

    cv2.setNumThreads(1)
    scenario = simulate_scenario(arguments.kind, arguments.seed, 0.1 * arguments.frames + 1.0)
    stamps = scenario.start_ns + 100_000_000 * np.arange(arguments.frames)
    snapshots = [crowded(scenario.snapshot(int(stamp)), arguments.solids) for stamp in stamps]
    rig = load_rig(arguments.rig)
    tasks = make_tasks(rig, arguments.seed)
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
    result["weathers"] = {}
    for name, entries in WEATHERS.items():
        times, shares = rig_times(rig, snapshots, entries, arguments.seed)
        result["weathers"][name] = {
            "p50_ms": statistics.median(times),
            "p95_ms": float(np.percentile(times, 95)),
            "own_time_shares": shares,
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
    print(f"\n{'whole rig, a frame of each sensor':58}{'p50':>8}{'p95':>8}")
    for name, weather in result["weathers"].items():
        print(f"{name:58}{weather['p50_ms']:>8.2f}{weather['p95_ms']:>8.2f}")
    print("where the time goes in the last of them (own time of functions, profiled):")
    for name, share in list(weather["own_time_shares"].items())[:8]:
        print(f"  {100 * share:5.1f} %  {name}")
    print("where the time goes in clear weather (own time of functions, profiled):")
    for name, share in result["own_time_shares"].items():
        print(f"  {100 * share:5.1f} %  {name}")


if __name__ == "__main__":
    main()
