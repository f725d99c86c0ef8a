"""A robot driving straight ahead behind two cars: what its sensors send, and a pipeline for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from fake_engine import NETWORK, FakeEngine, Thing

from e2e_perception.core.config import config_from_parameters
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.results import FrameResult, SafetyState
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.core.samples import ImageSample, PointsSample, SensorMessage
from e2e_perception.runtime.pipeline import Pipeline

MS = 1_000_000
NOMINAL, DEGRADED, MINIMAL_RISK, STOPPED = SafetyState
SPEED = 10.0

RIG = Rig(
    name="fake",
    sensors=(
        Lidar(name="top", topic="/lidar", frame_id="lidar", mount=Mount(xyz=(1.0, 0.0, 1.8))),
        Camera(
            name="front",
            topic="/front",
            frame_id="front",
            mount=Mount(xyz=(1.5, 0.0, 1.5)),
            width=64,
            height=32,
            fx_px=40.0,
            fy_px=40.0,
            cx_px=31.5,
            cy_px=15.5,
        ),
    ),
)
POINT = {"x": 8.0, "y": 1.0, "z": -1.5, "intensity": 0.5}
CLOUD = PointsSample({name: np.full(5, value, np.float32) for name, value in POINT.items()})
PICTURE = ImageSample(np.full((32, 64, 3), 90, np.uint8))
CARS = (Thing(30.0, 0.0, vx=SPEED), Thing(20.0, 3.5, vx=12.0))
Event = SensorMessage | EgoState


def ego_at(stamp_ns: int, speed: float = SPEED) -> EgoState:
    pose = SE3.planar(speed * stamp_ns * 1e-9, 0.0, 0.0)
    return EgoState(stamp_ns, pose, np.array([speed, 0.0, 0.0]), 0.0)


def make(
    engine: FakeEngine | None = None, parameters: dict[str, object] | None = None, **kwargs: object
) -> tuple[Pipeline, FakeEngine]:
    engine = engine or FakeEngine(things=CARS, base_from_odom=moving)
    values = {"supervisor.recovery_frames": 2, **(parameters or {})}
    config = config_from_parameters(values)  # type: ignore[arg-type]
    return Pipeline(NETWORK, RIG, engine, config, "fake_bundle", **kwargs), engine  # type: ignore[arg-type]


def moving(call: int) -> SE2:
    return SE2(SPEED * 0.1 * call, 0.0, 0.0).inverse()


def drive(
    frames: Iterable[int],
    *,
    speed: float = SPEED,
    without: Callable[[Event], bool] = lambda event: False,
    start_ns: int = 0,
) -> list[tuple[int, Event]]:
    """Arrivals: odometry at 50 Hz, lidar and camera at 10 Hz with 20 and 30 ms of latency."""
    events: list[tuple[int, Event]] = []
    for i in frames:
        stamp = start_ns + i * 100 * MS
        for k in range(5):
            state = ego_at(stamp + k * 20 * MS, speed)
            events.append((state.stamp_ns, state))
        for name, payload, latency in (("top", CLOUD, 20 * MS), ("front", PICTURE, 30 * MS)):
            events.append((stamp + latency, SensorMessage(name, stamp, stamp + latency, payload)))
    return sorted((e for e in events if not without(e[1])), key=lambda e: e[0])


def run(pipeline: Pipeline, events: list[tuple[int, Event]]) -> list[FrameResult]:
    results = []
    for now_ns, event in events:
        if isinstance(event, EgoState):
            pipeline.push_odometry(event)
        else:
            pipeline.push(event)
        results += pipeline.poll(now_ns)
    deadline = pipeline.next_deadline_ns()
    while deadline is not None and len(results) < 1000:
        results += pipeline.poll(deadline)
        following = pipeline.next_deadline_ns()
        deadline = None if following == deadline else following
    return results
