"""From a scenario to what a robot would have recorded: sensor messages in order of arrival, and training clips.

Clips go through the robot's own `Preprocessor`, so that training sees what the robot sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import Boxes
from e2e_perception.core.clips import MAX_LABELS, Clip
from e2e_perception.core.config import PreprocessConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig
from e2e_perception.core.samples import AssembledFrame, ImageSample, PointsSample, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.runtime.preprocess import Preprocessor
from e2e_perception.simulation.camera import render_camera, render_camera_with_ids
from e2e_perception.simulation.lidar import simulate_lidar, simulate_lidar_with_labels
from e2e_perception.simulation.radar import simulate_radar
from e2e_perception.simulation.scene import Road, Snapshot

MILLISECOND = 1_000_000
MIN_LIDAR_RETURNS = 3  # from here on an object counts as seen
MIN_PIXELS = 12
LABEL_MARGIN = 2.0  # [m] beyond the grid's edge; labels farther out cannot matter


class Scenario(Protocol):
    """What is recorded: a world with a past and a future."""

    kind: str
    seed: int
    route: Route
    speed_limit: float
    collided: bool
    start_ns: int
    end_ns: int

    @property
    def last_ns(self) -> int:
        """The last instant at which the world is known, for labels of the future."""

    def snapshot(self, stamp_ns: int) -> Snapshot:
        """The world at an instant between start and end."""


def simulate_sensor(
    snapshot: Snapshot, sensor: Camera | Lidar | Radar, rng: np.random.Generator
) -> ImageSample | PointsSample:
    """One measurement of one sensor."""
    if isinstance(sensor, Camera):
        return render_camera(snapshot, sensor, rng)
    if isinstance(sensor, Lidar):
        return simulate_lidar(snapshot, sensor, rng)
    return simulate_radar(snapshot, sensor, rng)


def sensor_messages(scenario: Scenario, rig: Rig, seed: int) -> Iterator[SensorMessage]:
    """Every measurement of every sensor at its own rate, offset, latency and jitter, in order of arrival.

    Args:
        scenario: The world.
        rig: Its sensors; a sensor with an offset is `offset_ms` late against the others.
        seed: Of noise and jitter.
    Yields:
        Messages with `ImageSample` or `PointsSample` payloads.
    """
    due: list[tuple[int, int, int]] = []  # arrival, sensor, stamp
    for index, sensor in enumerate(rig.sensors):
        # Jitter is drawn per sensor, so that adding one sensor changes nothing about the others.
        rng = np.random.default_rng((seed, 11, index))
        period_ns = round(1e9 / sensor.rate_hz)
        first = scenario.start_ns + max(0, round(sensor.offset_ms * MILLISECOND))
        if sensor.offset_ms < 0:
            first += period_ns + round(sensor.offset_ms * MILLISECOND)
        arrived = 0
        for stamp_ns in range(first, scenario.end_ns + 1, period_ns):
            latency = max(0.0, rng.normal(sensor.latency_ms, sensor.jitter_ms))
            # One sensor's messages do not overtake each other.
            arrived = max(arrived + 1, stamp_ns + round(latency * MILLISECOND))
            due.append((arrived, index, stamp_ns))
    noise = [np.random.default_rng((seed, 13, index)) for index in range(len(rig.sensors))]
    for arrival_ns, index, stamp_ns in sorted(due):
        sensor = rig.sensors[index]
        payload = simulate_sensor(scenario.snapshot(stamp_ns), sensor, noise[index])
        yield SensorMessage(sensor.name, stamp_ns, arrival_ns, payload)


def ego_state(scenario: Scenario, stamp_ns: int) -> EgoState:
    """The robot's true pose and twist."""
    snapshot = scenario.snapshot(stamp_ns)
    return EgoState(stamp_ns, snapshot.odom_from_base, snapshot.velocity, snapshot.yaw_rate)


def odometry(scenario: Scenario, rate_hz: float = 50.0) -> Iterator[EgoState]:
    """Odometry without error, from start to end."""
    for stamp_ns in range(scenario.start_ns, scenario.end_ns + 1, round(1e9 / rate_hz)):
        yield ego_state(scenario, stamp_ns)


def randomized_rig(rig: Rig, network: NetworkConfig, rng: np.random.Generator) -> Rig:
    """A relative of the rig, for training: other beams, mounts and lenses, pictures at the network's size.

    Domain randomisation (Tobin et al. 2017), so that the network also works on sensors that nobody modelled.

    Args:
        rig: Where to start from.
        network: Pictures are rendered at its size.
        rng: Randomness.
    """
    sensors: list[Camera | Lidar | Radar] = []
    lift = rng.uniform(-0.15, 0.15)
    for sensor in rig.sensors:
        x, y, z = sensor.mount.xyz
        roll, pitch, yaw = sensor.mount.rpy_deg
        if isinstance(sensor, Camera):
            zoom = rng.uniform(0.85, 1.2)
            scale_u, scale_v = network.image_width / sensor.width, network.image_height / sensor.height
            mount = Mount(
                xyz=(x + rng.normal(0, 0.1), y, z + lift + rng.normal(0, 0.05)),
                rpy_deg=(roll + rng.normal(0, 0.3), pitch + rng.normal(0, 0.8), yaw + rng.normal(0, 2.0)),
            )
            sensors.append(
                sensor.model_copy(
                    update={
                        "mount": mount,
                        "width": network.image_width,
                        "height": network.image_height,
                        "fx_px": sensor.fx_px * scale_u * zoom,
                        "fy_px": sensor.fy_px * scale_v * zoom,
                        "cx_px": (sensor.cx_px + 0.5) * scale_u - 0.5 + rng.normal(0, 4.0),
                        "cy_px": (sensor.cy_px + 0.5) * scale_v - 0.5 + rng.normal(0, 6.0),
                    }
                )
            )
        elif isinstance(sensor, Lidar):
            beams = int(rng.choice([16, 24, 32, 32, 40, 64]))
            mount = Mount(xyz=(x + rng.normal(0, 0.2), y, z + lift), rpy_deg=(roll, pitch + rng.normal(0, 0.3), yaw))
            sensors.append(
                sensor.model_copy(
                    update={
                        "mount": mount,
                        "num_beams": beams,
                        "elevation_min_deg": rng.uniform(-26.0, -16.0),
                        "elevation_max_deg": rng.uniform(2.0, 8.0),
                        # As many rays for every number of beams: what it costs stays the same.
                        "azimuth_step_deg": 0.25 * max(1.0, beams / 20.0) * rng.uniform(0.8, 1.2),
                        "dropout": rng.uniform(0.0, 0.15),
                        "range_noise": rng.uniform(0.01, 0.05),
                    }
                )
            )
        else:
            sensors.append(
                sensor.model_copy(update={"mount": Mount(xyz=(x, y, z), rpy_deg=(roll, pitch, yaw + rng.normal(0, 1)))})
            )
    return rig.model_copy(update={"sensors": tuple(sensors)})


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

    All sensors measure at the frame time here; the robot's assembler and ego-motion compensation have tests of
    their own.

    Args:
        scenario: The world; what lies past its end, up to `last_ns`, serves as future.
        rig: Its sensors.
        network: Contract of the inputs.
        clip_length: Frames per clip.
        stride_s: From one clip's start to the next's [s].
        seed: Of noise and randomisation.
        randomize: Vary the rig, see `randomized_rig`.
    Yields:
        Clips; if the robot collides in this scenario its path is not offered as an example.
    """
    rng = np.random.default_rng((seed, scenario.seed))
    if randomize:
        rig = randomized_rig(rig, network, rng)
    preprocessor = Preprocessor(network, rig, PreprocessConfig())
    period_ns = round(network.frame_period_s * 1e9)
    horizon_ns = round(network.times_T[-1] * 1e9)
    # Room for the acceleration window before the first frame.
    start = scenario.start_ns + 4 * period_ns
    length_ns = (clip_length - 1) * period_ns
    while start + length_ns + horizon_ns <= scenario.last_ns:
        yield _clip(scenario, rig, network, preprocessor, start, clip_length, rng)
        start += round(stride_s * 1e9)


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
    stamps = start_ns + period_ns * np.arange(length)
    ego = EgoMotionBuffer()
    for k in range(-4, length):
        ego.add(ego_state(scenario, int(start_ns + k * period_ns)))
    seen: set[int] = set()
    inputs: list[dict[str, NDArray[np.generic]]] = []
    labels: list[dict[str, NDArray[np.generic]]] = []
    memory_from_base = np.zeros((length, 3))
    previous: SE2 | None = None
    speed_limit = scenario.speed_limit
    for t, stamp_ns in enumerate(stamps.tolist()):
        snapshot = scenario.snapshot(stamp_ns)
        messages, returns_of_label, pixels_of_label = _measure(snapshot, rig, stamp_ns, rng)
        frame = AssembledFrame(stamp_ns, rig.lidars[0].name if rig.lidars else rig.cameras[0].name,
                               messages, {}, stamp_ns, t)  # fmt: skip
        prepared = preprocessor.prepare(frame, ego, scenario.route, speed_limit)
        inputs.append({name: value[0] for name, value in prepared.inputs.items()})
        visible = (returns_of_label >= MIN_LIDAR_RETURNS) | (pixels_of_label >= MIN_PIXELS)
        seen.update(snapshot.boxes.ids_N[visible].tolist())
        labels.append(_labels(scenario, snapshot, network, visible, seen))
        here = snapshot.odom_from_base.planar_part()
        if previous is not None:
            moved = previous.inverse() @ here
            memory_from_base[t] = (moved.x, moved.y, moved.yaw)
        previous = here
    rasters = ("lidar_raster", "radar_raster")
    stacked = {name: np.stack([frame_inputs[name] for frame_inputs in inputs]) for name in inputs[0]}
    return Clip(
        inputs={k: v.astype(np.float16) if k in rasters else v for k, v in stacked.items()},
        **{name: np.stack([frame[name] for frame in labels]) for name in labels[0]},  # type: ignore[arg-type]
        maps_valid=True,
        stamps_ns_T=stamps.astype(np.int64),
        memory_from_base_T3=memory_from_base,
        source="simulation",
        scenario=f"{scenario.kind}/{scenario.seed}",
    )


def _measure(
    snapshot: Snapshot, rig: Rig, stamp_ns: int, rng: np.random.Generator
) -> tuple[dict[str, SensorMessage], NDArray[np.int64], NDArray[np.int64]]:
    """All sensors at one instant, and per label how many lidar returns and pixels it got."""
    num_labels = len(snapshot.boxes)
    returns, pixels = np.zeros(num_labels, np.int64), np.zeros(num_labels, np.int64)
    messages = {}
    for sensor in rig.sensors:
        payload: ImageSample | PointsSample
        if isinstance(sensor, Camera):
            payload, ids = render_camera_with_ids(snapshot, sensor, rng)
            pixels += np.bincount(ids[ids >= 0], minlength=num_labels)
        elif isinstance(sensor, Lidar):
            payload, labels_N = simulate_lidar_with_labels(snapshot, sensor, rng)
            returns += np.bincount(labels_N[labels_N >= 0], minlength=num_labels)
        else:
            payload = simulate_radar(snapshot, sensor, rng)
        messages[sensor.name] = SensorMessage(sensor.name, stamp_ns, stamp_ns, payload)
    return messages, returns, pixels


def _labels(
    scenario: Scenario, snapshot: Snapshot, network: NetworkConfig, visible_N: NDArray[np.bool_], seen: set[int]
) -> dict[str, NDArray[np.generic]]:
    """Labels of one frame in its base frame, padded to `MAX_LABELS`."""
    base_from_odom = snapshot.odom_from_base.inverse()
    planar = base_from_odom.planar_part()
    boxes = snapshot.boxes
    centers = base_from_odom.apply(boxes.centers_N3)
    near = _near_grid(network.grid, centers)
    order = near[np.argsort(np.linalg.norm(centers[near, :2], axis=1), kind="stable")][:MAX_LABELS]
    n = len(order)
    num_steps = network.horizon_steps
    rows = np.zeros((MAX_LABELS, 10), np.float32)
    rows[:, 7] = 1.0
    yaws = boxes.yaws_N[order] + planar.yaw
    rows[:n, :3] = centers[order]
    rows[:n, 3:6] = np.log(boxes.sizes_N3[order])
    rows[:n, 6], rows[:n, 7] = np.sin(yaws), np.cos(yaws)
    rows[:n, 8:10] = planar.rotate(boxes.velocities_N2[order])
    ids = np.full(MAX_LABELS, -1, np.int64)
    ids[:n] = boxes.ids_N[order]
    class_ids = np.zeros(MAX_LABELS, np.int64)
    class_ids[:n] = boxes.class_ids_N[order]
    visible = np.zeros(MAX_LABELS, bool)
    visible[:n] = visible_N[order]
    weights = np.zeros(MAX_LABELS, np.float32)
    weights[:n] = [float(identity in seen) for identity in ids[:n].tolist()]
    futures = np.zeros((MAX_LABELS, num_steps, 2), np.float32)
    futures_valid = np.zeros((MAX_LABELS, num_steps), bool)
    ego_future = np.zeros((num_steps, 3), np.float32)
    for k, ahead in enumerate(network.times_T):
        later = scenario.snapshot(snapshot.stamp_ns + round(ahead * 1e9))
        pose = (base_from_odom @ later.odom_from_base).planar_part()
        ego_future[k] = (pose.x, pose.y, pose.yaw)
        where = _rows_of_ids(later.boxes, ids[:n])
        futures_valid[:n, k] = where >= 0
        points = base_from_odom.apply(later.boxes.centers_N3[where.clip(0)])[:, :2] if len(later.boxes) else 0.0
        futures[:n, k] = np.where((where >= 0)[:, None], points, 0.0)
    return {
        "boxes_TB10": rows,
        "class_ids_TB": class_ids,
        "ids_TB": ids,
        "weights_TB": weights,
        "visible_TB": visible,
        "futures_TBS2": futures,
        "futures_valid_TBS": futures_valid,
        "ego_future_TS3": ego_future,
        "ego_future_valid_TS": np.full(num_steps, not scenario.collided),
        "maps_T2YX": road_maps(snapshot.road, base_from_odom, network.bev_grid),
    }


def _near_grid(grid: BevGrid, centers_N3: NDArray[np.float64]) -> NDArray[np.int64]:
    x, y = centers_N3[:, 0], centers_N3[:, 1]
    inside = (
        (x > grid.x_min - LABEL_MARGIN)
        & (x < grid.x_max + LABEL_MARGIN)
        & (y > grid.y_min - LABEL_MARGIN)
        & (y < grid.y_max + LABEL_MARGIN)
    )
    return np.flatnonzero(inside)


def _rows_of_ids(boxes: Boxes, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each identity in `boxes`, -1 where it is gone."""
    position = {identity: row for row, identity in enumerate(boxes.ids_N.tolist())}
    return np.array([position.get(identity, -1) for identity in ids_N.tolist()], np.int64)


def road_maps(road: Road, base_from_odom: SE3, grid: BevGrid) -> NDArray[np.uint8]:
    """Drivable area and its boundaries on a grid, (2, Y, X) uint8 in {0, 1}."""
    maps = np.zeros((2, *grid.shape), np.uint8)

    def cells(points_N2: NDArray[np.float64]) -> NDArray[np.int32]:
        points = base_from_odom.planar_part().apply(points_N2)
        scaled = (points - (grid.x_min, grid.y_min)) / grid.resolution - 0.5
        return np.round(np.clip(scaled, -2000, 2000) * 16).astype(np.int32)[:, None]

    for polygon in road.drivable:
        cv2.fillPoly(maps[0], [cells(polygon)], 1, shift=4)
    for line in road.boundaries:
        cv2.polylines(maps[1], [cells(line)], False, 1, thickness=1, shift=4)
    return maps


