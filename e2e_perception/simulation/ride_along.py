"""The stack rides along while somebody else drives: what it says of each instant, and what was really there.

Sensors, frames and deadlines are those of a real drive, but no plan is followed. Every bundle with the same
rig therefore meets the same drives, and figures can be compared drive by drive.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.truth import TruthFrame
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.pipeline import Pipeline
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.labels import boxes_in_base
from e2e_perception.simulation.lidar import simulate_lidar_with_labels
from e2e_perception.simulation.recording import LABEL_RANGE, odometry, sensor_messages
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.visibility import visibility

IDLE_NS = 100_000_000


def ride_along(
    scenario: Scenario,
    network: NetworkConfig,
    engine: InferenceEngine,
    rig: Rig,
    config: StackConfig,
    *,
    degradation: DegradationSchedule | None = None,
) -> Iterator[tuple[FrameResult, TruthFrame]]:
    """Let the stack look on while a scenario takes its course.

    Args:
        scenario: The drive, see `expert_drives.drive_expert`; its seed is also that of the sensors' noise.
        network, engine: Of the bundle; the engine's state is reset.
        rig: The robot. Give its cameras the network's size, or pictures are scaled in each frame.
        config: All tunables; the speed limit and the route are the drive's.
        degradation: What goes wrong with the sensors.
    Yields:
        Every result in order of time with the truth at its stamp. A stack that falls silent says so twice a
        second, without tracks: it then finds nothing.
    Raises:
        ConfigError: If the degradation is not for this rig.
    """
    engine.reset_state()
    planning = config.planning.model_copy(update={"speed_limit": scenario.speed_limit})
    pipeline = Pipeline(network, rig, engine, config.model_copy(update={"planning": planning}), "ride-along")
    pipeline.set_route(scenario.route)
    for result in play(pipeline, scenario, sensor_messages(scenario, rig, scenario.seed, degradation)):
        # A degraded clock may put a first frame before the drive.
        if scenario.start_ns <= result.stamp_ns <= scenario.end_ns:
            yield result, truth_at(scenario, result.stamp_ns, rig, network)


def play(pipeline: Pipeline, scenario: Scenario, messages: Iterator[SensorMessage]) -> Iterator[FrameResult]:
    """Feed messages and exact odometry as they arrive, keeping every deadline at its own instant.

    Args:
        pipeline: Fresh.
        scenario: For odometry and the end.
        messages: In order of arrival.
    Yields:
        Results, as soon as they are there.
    """
    arrivals: Iterator[tuple[int, SensorMessage | EgoState]] = heapq.merge(
        ((state.stamp_ns, state) for state in odometry(scenario)),
        ((message.arrival_ns, message) for message in messages),
        key=lambda item: item[0],
    )
    idle_ns = scenario.start_ns + IDLE_NS
    last_ns = scenario.end_ns
    for now_ns, content in arrivals:
        last_ns = now_ns
        # Deadlines that passed before this arrival come first, as on the robot.
        yield from _due(pipeline, now_ns)
        if isinstance(content, EgoState):
            pipeline.push_odometry(content)
        else:
            pipeline.push(content)
            yield from pipeline.poll(now_ns)
        if idle_ns <= now_ns <= scenario.end_ns:
            idle_ns += IDLE_NS
            silent = pipeline.idle(now_ns)
            if silent is not None:
                yield silent
    # What still waits gets its time.
    yield from _due(pipeline, last_ns + round(pipeline.config.sync.max_wait_ms * 1e6) + 1)


def _due(pipeline: Pipeline, until_ns: int) -> Iterator[FrameResult]:
    kept_ns: int | None = None
    while True:
        deadline_ns = pipeline.next_deadline_ns()
        if deadline_ns is None or deadline_ns > until_ns or deadline_ns == kept_ns:
            return
        kept_ns = deadline_ns
        yield from pipeline.poll(deadline_ns)


def truth_at(scenario: Scenario, stamp_ns: int, rig: Rig, network: NetworkConfig) -> TruthFrame:
    """What is within `LABEL_RANGE` at an instant, what sensors get of it, and what comes.

    Args:
        scenario: The drive.
        stamp_ns: Within it [ns].
        rig: Whose lidars and cameras decide what is visible, intact and exactly at this instant: an object
            that only a broken sensor misses still has to be found.
        network: Times of the future.
    Raises:
        InputError: If the scenario does not cover the instant.
    """
    snapshot = scenario.snapshot(stamp_ns)
    # By the instant, so that a label does not depend on which frames a stack made before.
    rng = np.random.default_rng((scenario.seed, stamp_ns))
    lidar_labels = [simulate_lidar_with_labels(snapshot, lidar, rng)[1] for lidar in rig.lidars]
    visible_L = visibility(snapshot, lidar_labels=lidar_labels, cameras=rig.cameras).visible_L
    boxes = boxes_in_base(snapshot)
    near = np.flatnonzero(np.linalg.norm(boxes.centers_N3[:, :2], axis=1) < LABEL_RANGE)
    boxes = boxes.select(near)

    times = network.times_T
    futures = np.zeros((len(boxes), len(times), 3), np.float32)
    futures_valid = np.zeros((len(boxes), len(times)), np.bool_)
    ego_future = np.zeros((len(times), 3))
    ego_future_valid = np.zeros(len(times), np.bool_)
    here = snapshot.odom_from_base.planar_part()
    base_from_odom = here.inverse()
    for k, ahead_s in enumerate(times.tolist()):
        later_ns = stamp_ns + round(ahead_s * 1e9)
        if later_ns > scenario.last_ns:
            break
        everything, present = scenario.objects_at(later_ns)
        poses = everything[boxes.ids_N]
        futures[:, k, :2] = base_from_odom.apply(poses[:, :2])
        futures[:, k, 2] = poses[:, 2] + base_from_odom.yaw
        futures_valid[:, k] = present[boxes.ids_N]
        pose = base_from_odom @ scenario.ego_at(later_ns).odom_from_base.planar_part()
        ego_future[k] = (pose.x, pose.y, pose.yaw)
        ego_future_valid[k] = scenario.is_example(stamp_ns, later_ns)
    return TruthFrame(
        stamp_ns=stamp_ns,
        boxes=boxes,
        visible_L=visible_L[near],
        times_S=times,
        futures_LS3=futures,
        futures_valid_LS=futures_valid,
        odom_from_base=here,
        ego_future_S3=ego_future,
        ego_future_valid_S=ego_future_valid,
        ego_speed=float(snapshot.velocity[0]),
        ego_yaw_rate=snapshot.yaw_rate,
        ego_size=(rig.ego_length, rig.ego_width, rig.ego_center_x),
    )
