"""What a robot would have recorded of a scenario: sensor messages in order of arrival, and training clips.

Clips go through the robot's own `Preprocessor`, so that training sees what the robot sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.clips import Clip
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Camera, Lidar, Radar, Rig
from e2e_perception.core.samples import AssembledFrame, ImageSample, PointsSample, SensorMessage
from e2e_perception.runtime.preprocess import Preprocessor
from e2e_perception.simulation.camera import render_camera, render_camera_with_ids
from e2e_perception.simulation.labels import boxes_in_base, frame_labels
from e2e_perception.simulation.lidar import simulate_lidar, simulate_lidar_with_labels
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.randomization import network_sized, randomized_rig
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.visibility import MIN_LIDAR_RETURNS, MIN_PIXELS, visibility

MILLISECOND = 1_000_000
LABEL_RANGE = 90.0  # [m] of labels in bags
HISTORY_FRAMES = 4  # of odometry before a clip; covers the window over which acceleration is taken
RASTERS = ("lidar_raster", "radar_raster")  # kept in half precision


# ------------------------------------------------------------------ as a robot records


def sensor_messages(scenario: Scenario, rig: Rig, seed: int) -> Iterator[SensorMessage]:
    """Every measurement of every sensor at its own rate, offset, latency and jitter, in order of arrival.

    Args:
        scenario: The world.
        rig: Its sensors. Those that run at the first lidar's (else camera's) rate keep `offset_ms` to it; the
            others start at a random phase.
        seed: Of noise, jitter and phases.
    Yields:
        Messages with `ImageSample` or `PointsSample` payloads.
    """
    leader = (*rig.lidars, *rig.cameras)[0]
    due: list[tuple[int, int, int]] = []  # arrival, sensor, stamp
    for index, sensor in enumerate(rig.sensors):
        # Drawn per sensor, so that adding one sensor changes nothing about the others.
        rng = np.random.default_rng((seed, 11, index))
        period_ns = round(1e9 / sensor.rate_hz)
        phase_ns = round(sensor.offset_ms * MILLISECOND)
        if sensor.rate_hz != leader.rate_hz:
            phase_ns += int(rng.integers(period_ns))
        arrived_ns = 0
        for stamp_ns in range(scenario.start_ns + phase_ns % period_ns, scenario.end_ns + 1, period_ns):
            latency_ms = max(0.0, rng.normal(sensor.latency_ms, sensor.jitter_ms))
            # One sensor's messages do not overtake each other.
            arrived_ns = max(arrived_ns + 1, stamp_ns + round(latency_ms * MILLISECOND))
            due.append((arrived_ns, index, stamp_ns))
    noise = [np.random.default_rng((seed, 13, index)) for index in range(len(rig.sensors))]
    for arrival_ns, index, stamp_ns in sorted(due):
        sensor = rig.sensors[index]
        payload = simulate_sensor(scenario.snapshot(stamp_ns), sensor, noise[index])
        yield SensorMessage(sensor.name, stamp_ns, arrival_ns, payload)


def simulate_sensor(
    snapshot: Snapshot, sensor: Camera | Lidar | Radar, rng: np.random.Generator
) -> ImageSample | PointsSample:
    """One measurement of one sensor."""
    if isinstance(sensor, Camera):
        return render_camera(snapshot, sensor, rng)
    if isinstance(sensor, Lidar):
        return simulate_lidar(snapshot, sensor, rng)
    return simulate_radar(snapshot, sensor, rng)


def odometry(scenario: Scenario, rate_hz: float = 50.0) -> Iterator[EgoState]:
    """Odometry without error, from start to end."""
    for stamp_ns in range(scenario.start_ns, scenario.end_ns + 1, round(1e9 / rate_hz)):
        yield scenario.ego_at(stamp_ns)


def true_boxes(scenario: Scenario, rig: Rig) -> Iterator[tuple[int, Boxes]]:
    """What is near the robot at each stamp of the first lidar (else camera).

    Args:
        scenario: The world.
        rig: Its sensors.
    Yields:
        Stamp [ns] and boxes within `LABEL_RANGE` in the base frame. The score is 1 for what a lidar or a
        camera gets at that instant, and 0 for what is hidden.
    """
    leader = (*rig.lidars, *rig.cameras)[0]
    rng = np.random.default_rng(0)
    for stamp_ns in range(scenario.start_ns, scenario.end_ns + 1, round(1e9 / leader.rate_hz)):
        snapshot = scenario.snapshot(stamp_ns)
        rows = [simulate_lidar_with_labels(snapshot, lidar, rng)[1] for lidar in rig.lidars]
        visible_L = visibility(snapshot, lidar_labels=rows, cameras=rig.cameras).visible_L
        boxes = replace(boxes_in_base(snapshot), scores_N=visible_L.astype(np.float32))
        yield stamp_ns, boxes.select(np.linalg.norm(boxes.centers_N3[:, :2], axis=1) < LABEL_RANGE)


# ------------------------------------------------------------------ as training wants it


def record_clips(
    scenario: Scenario,
    rig: Rig,
    network: NetworkConfig,
    *,
    clip_length: int = 5,
    stride_s: float = 1.0,
    seed: int = 0,
    randomize: bool = True,
) -> Iterator[Clip]:
    """Training clips of a scenario: consecutive frames at the network's rate, clips `stride_s` apart.

    Frames are complete and pictures rendered at the network's size. Each sensor measures as long before or
    after the frame time as it may on the robot, and is brought to it by the preprocessor.

    Args:
        scenario: The world.
        rig: Its sensors.
        network: Contract of the inputs.
        clip_length: Frames per clip.
        stride_s: From one clip's start to the next's [s].
        seed: Of noise and randomisation.
        randomize: Vary the rig, see `randomization`.
    Yields:
        Clips. Where the robot collides or swerves its path is not offered as an example.
    """
    rng = np.random.default_rng((seed, scenario.seed))
    cameras: dict[str, Camera | Lidar | Radar] = {c.name: network_sized(c, network) for c in rig.cameras}
    rig = rig.with_sensors(cameras)
    if randomize:
        rig = randomized_rig(rig, rng)
    preprocessor = Preprocessor(network, rig)
    period_ns = round(network.frame_period_s * 1e9)
    start_ns = scenario.start_ns + HISTORY_FRAMES * period_ns
    while start_ns + clip_length * period_ns <= scenario.end_ns:
        yield _clip(scenario, rig, network, preprocessor, start_ns, clip_length, rng)
        start_ns += round(stride_s * 1e9)


def _clip(
    scenario: Scenario,
    rig: Rig,
    network: NetworkConfig,
    preprocessor: Preprocessor,
    start_ns: int,
    length: int,
    rng: np.random.Generator,
) -> Clip:
    period_ns = round(network.frame_period_s * 1e9)
    ego = EgoMotionBuffer()
    # One beyond the end: some sensors measure after the frame time.
    for k in range(-HISTORY_FRAMES, length + 1):
        ego.add(scenario.ego_at(start_ns + k * period_ns))
    seen: set[int] = set()
    inputs: list[dict[str, NDArray[np.generic]]] = []
    labels: list[dict[str, NDArray[np.generic]]] = []
    stamps = start_ns + period_ns * np.arange(length, dtype=np.int64)
    memory_from_base = np.zeros((length, 3))
    previous: SE2 | None = None
    for t, stamp_ns in enumerate(stamps.tolist()):
        messages, visible = _measure(scenario, rig, stamp_ns, rng)
        seen |= visible
        frame = AssembledFrame(stamp_ns, rig.sensors[0].name, messages, {}, stamp_ns, t)
        prepared = preprocessor.prepare(frame, ego, scenario.route, scenario.speed_limit)
        inputs.append({name: value[0] for name, value in prepared.inputs.items()})
        snapshot = scenario.snapshot(stamp_ns)
        labels.append(frame_labels(scenario, snapshot, network, visible, seen))
        here = snapshot.odom_from_base.planar_part()
        if previous is not None:
            moved = previous.inverse() @ here
            memory_from_base[t] = (moved.x, moved.y, moved.yaw)
        previous = here
    stacked = {name: np.stack([frame_inputs[name] for frame_inputs in inputs]) for name in inputs[0]}
    return Clip(
        inputs={k: v.astype(np.float16) if k in RASTERS else v for k, v in stacked.items()},
        **{name: np.stack([frame[name] for frame in labels]) for name in labels[0]},
        maps_valid=True,
        stamps_ns_T=stamps,
        memory_from_base_T3=memory_from_base,
        source="simulation",
        scenario=scenario.name,
    )


def _measure(
    scenario: Scenario, rig: Rig, stamp_ns: int, rng: np.random.Generator
) -> tuple[dict[str, SensorMessage], set[int]]:
    """Messages of one frame, and the identities that a camera or lidar sees in it."""
    messages = {}
    visible: set[int] = set()
    for sensor in rig.sensors:
        measured_ns = stamp_ns + round(_time_offset_ms(sensor, rng) * MILLISECOND)
        snapshot = scenario.snapshot(measured_ns)
        payload: ImageSample | PointsSample
        if isinstance(sensor, Camera):
            payload, ids_HW = render_camera_with_ids(snapshot, sensor, rng)
            visible |= _often(ids_HW.ravel(), MIN_PIXELS, snapshot)
        elif isinstance(sensor, Lidar):
            payload, rows_N = simulate_lidar_with_labels(snapshot, sensor, rng)
            visible |= _often(rows_N, MIN_LIDAR_RETURNS, snapshot)
        else:
            payload = simulate_radar(snapshot, sensor, rng)
        messages[sensor.name] = SensorMessage(sensor.name, measured_ns, measured_ns, payload)
    return messages, visible


def _time_offset_ms(sensor: Camera | Lidar | Radar, rng: np.random.Generator) -> float:
    if isinstance(sensor, Lidar):
        return sensor.offset_ms
    if isinstance(sensor, Camera):
        return sensor.offset_ms + rng.uniform(-3.0, 3.0)
    return sensor.offset_ms + rng.uniform(-500.0, 500.0) / sensor.rate_hz  # never in step with the rest


def _often(rows_N: NDArray[np.integer], least: int, snapshot: Snapshot) -> set[int]:
    """Identities of the snapshot's boxes whose row occurs at least so many times; negative rows are none."""
    counts = np.bincount(rows_N[rows_N >= 0], minlength=len(snapshot.boxes))
    return set(snapshot.boxes.ids_N[counts >= least].tolist())
