"""What a robot would have recorded of a scenario: sensor messages in order of arrival, and training clips.

Clips go through the robot's own `Preprocessor`, so that training sees what the robot sees.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.clips import Clip
from e2e_perception.core.config import SyncConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Camera, Lidar, Radar, Rig
from e2e_perception.core.samples import AssembledFrame, SensorMessage
from e2e_perception.runtime.preprocess import Preprocessor
from e2e_perception.simulation.camera import render_camera_with_ids
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.expert_drives import ProposalPricer
from e2e_perception.simulation.impairment import MILLISECOND, Delivery, Impairment, Sample, sensor_key
from e2e_perception.simulation.labels import boxes_in_base, frame_labels
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.randomization import network_sized, randomized_rig
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.scene import Snapshot
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.visibility import MIN_LIDAR_RETURNS, MIN_PIXELS, visibility, within_sight

LABEL_RANGE = 90.0  # [m] of labels in bags
HISTORY_FRAMES = 4  # of odometry before a clip; covers the window over which acceleration is taken
RASTERS = ("lidar_raster", "radar_raster")  # kept in half precision
STEP_NS = 100 * MILLISECOND  # in which messages are made


# ------------------------------------------------------------------ as a robot records


def sensor_messages(
    scenario: Scenario, rig: Rig, seed: int, degradation: DegradationSchedule | None = None
) -> Iterator[SensorMessage]:
    """Every measurement of every sensor at its own rate, offset, latency and jitter, in order of arrival.

    Args:
        scenario: The world.
        rig: Its sensors, see `SensorRig`.
        seed: Of noise, jitter, phases and effects.
        degradation: What goes wrong; None: nothing.
    Yields:
        Messages with `ImageSample` or `PointsSample` payloads.
    Raises:
        ConfigError: If the degradation is not for this rig.
    """
    sensors = SensorRig(
        rig, scenario.start_ns, scenario.end_ns, seed, degradation, start_yaw=_start_yaw(scenario)
    )
    rows = {sensor.name: row for row, sensor in enumerate(rig.sensors)}
    waiting: list[tuple[int, int, int, SensorMessage]] = []
    made = 0
    for until_ns in (*range(scenario.start_ns, scenario.end_ns, STEP_NS), scenario.end_ns):
        for message in sensors.measure(until_ns, scenario.snapshot):
            heapq.heappush(waiting, (message.arrival_ns, rows[message.sensor], made, message))
            made += 1
        # What is measured later also arrives later than this.
        while waiting and waiting[0][0] <= until_ns:
            yield heapq.heappop(waiting)[-1]
    while waiting:
        yield heapq.heappop(waiting)[-1]


def _start_yaw(scenario: Scenario) -> float:
    return scenario.ego_at(scenario.start_ns).odom_from_base.yaw


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
    degradation: DegradationSchedule | None = None,
    price_proposals: bool = False,
) -> Iterator[Clip]:
    """Training clips of a scenario: consecutive frames at the network's rate, clips `stride_s` apart.

    Frames are complete but for what a degradation takes, and pictures rendered at the network's size. Each
    sensor measures as long before or after the frame time as it may on the robot, and is brought to it by the
    preprocessor. A message that a degradation loses, delays by more than `sync.max_wait_ms` or stamps beyond
    the sensor's tolerance is missing in its frame, as the assembler would have it.

    Args:
        scenario: The world.
        rig: Its sensors.
        network: Contract of the inputs.
        clip_length: Frames per clip.
        stride_s: From one clip's start to the next's [s].
        seed: Of noise and randomisation.
        randomize: Vary the rig, see `randomization`.
        degradation: What goes wrong, counted from the scenario's start; None: nothing.
        price_proposals: Whether each clip says what the proposals of the network's vocabulary would have cost
            (`Clip.plan_costs_TCK`).
    Yields:
        Clips. Where the robot collides or swerves its path is not offered as an example.
    Raises:
        ConfigError: If the degradation is not for this rig.
    """
    cameras: dict[str, Camera | Lidar | Radar] = {c.name: network_sized(c, network) for c in rig.cameras}
    rig = rig.with_sensors(cameras)
    if randomize:
        rig = randomized_rig(rig, np.random.default_rng((seed, scenario.seed)))
    impairment = (
        Impairment(degradation, rig, scenario.start_ns, _episode_seed(scenario, seed), _start_yaw(scenario))
        if degradation is not None
        else None
    )
    preprocessor = Preprocessor(network, rig)
    pricer = ProposalPricer(scenario, network) if price_proposals else None
    period_ns = round(network.frame_period_s * 1e9)
    start_ns = scenario.start_ns + HISTORY_FRAMES * period_ns
    while start_ns + clip_length * period_ns <= scenario.end_ns:
        clip = _clip(scenario, rig, network, preprocessor, impairment, start_ns, clip_length, seed)
        if pricer is not None:
            costs = [pricer.costs(stamp_ns) for stamp_ns in clip.stamps_ns_T.tolist()]
            clip = replace(clip, plan_costs_TCK=np.stack(costs))
        yield clip
        start_ns += round(stride_s * 1e9)


def _episode_seed(scenario: Scenario, seed: int) -> int:
    """Another one for each scenario, lest all of them have the same dirt on the lens."""
    return int(np.random.SeedSequence((seed, scenario.seed)).generate_state(1)[0])


def _clip(
    scenario: Scenario,
    rig: Rig,
    network: NetworkConfig,
    preprocessor: Preprocessor,
    impairment: Impairment | None,
    start_ns: int,
    length: int,
    seed: int,
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
        # Clips that overlap have noise of their own.
        draws = (seed, scenario.seed, start_ns - scenario.start_ns, t)
        messages, missing, visible = _measure(scenario, rig, impairment, stamp_ns, draws)
        seen |= visible
        frame = AssembledFrame(stamp_ns, rig.sensors[0].name, messages, missing, stamp_ns, t)
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
        **{name: np.stack([frame[name] for frame in labels]) for name in labels[0]},  # type: ignore[arg-type]
        maps_valid=True,
        stamps_ns_T=stamps,
        memory_from_base_T3=memory_from_base,
        source="simulation",
        scenario=scenario.name,
    )


def _measure(
    scenario: Scenario,
    rig: Rig,
    impairment: Impairment | None,
    stamp_ns: int,
    draws: tuple[int, ...],
) -> tuple[dict[str, SensorMessage], dict[str, str], set[int]]:
    """Messages of one frame, why others are missing, and the identities that a camera or lidar sees in it."""
    messages: dict[str, SensorMessage] = {}
    missing: dict[str, str] = {}
    visible: set[int] = set()
    for sensor in rig.sensors:
        key = (*draws, sensor_key(sensor.name))
        rng = np.random.default_rng((*key, 13))
        measured_ns = stamp_ns + round(_time_offset_ms(sensor, rng) * MILLISECOND)
        shift_ns, snapshot, mounted = 0, scenario.snapshot(measured_ns), sensor
        if impairment is not None:
            delivery = impairment.delivery(sensor, measured_ns, np.random.default_rng((*key, 12)))
            reason = _missing(delivery, sensor)
            if reason is not None:
                missing[sensor.name] = reason
                continue
            shift_ns = delivery.stamp_shift_ns
            frozen_ns = impairment.frozen_since_ns(sensor, measured_ns)
            if frozen_ns is not None:
                snapshot = scenario.snapshot(frozen_ns)
            mounted = impairment.mounted(sensor, measured_ns)
            snapshot = impairment.world(snapshot)
        payload: Sample
        if isinstance(mounted, Camera):
            payload, ids_HW = render_camera_with_ids(snapshot, mounted, rng)
            ids = _often(ids_HW.ravel(), MIN_PIXELS, snapshot)
            visible |= ids & set(snapshot.boxes.ids_N[within_sight(snapshot)].tolist())
        elif isinstance(mounted, Lidar):
            payload, rows_N = simulate_lidar_with_labels(snapshot, mounted, rng)
            visible |= _often(rows_N, MIN_LIDAR_RETURNS, snapshot)
        else:
            payload = simulate_radar(snapshot, mounted, rng)
        if impairment is not None:
            payload = impairment.spoiled(sensor, measured_ns, payload, np.random.default_rng((*key, 14)))
        messages[sensor.name] = SensorMessage(sensor.name, measured_ns + shift_ns, measured_ns, payload)
    return messages, missing, visible


def _missing(delivery: Delivery, sensor: Camera | Lidar | Radar) -> str | None:
    """Why the assembler would not have the message; None if it would."""
    if delivery.lost:
        return "silent"
    if delivery.delay_ns > SyncConfig().max_wait_ms * MILLISECOND:
        return "late"
    if abs(delivery.stamp_shift_ns) > sensor.tolerance_ms * MILLISECOND:
        return "out_of_tolerance"
    return None


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
