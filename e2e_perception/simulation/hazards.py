"""Hazards on the robot's way, on a road of any shape: what makes driving without looking fail.

Each function takes a stage with the robot on it, adds what happens, and says through `stage.goal_s` how far
the robot has to get where that is changed by it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from e2e_perception.simulation.appearance import CYCLIST, PEDESTRIAN, TRUCK
from e2e_perception.simulation.drivers import ParkedVehicle, TrafficVehicle
from e2e_perception.simulation.junction_stage import JunctionStage
from e2e_perception.simulation.stage import EGO_LENGTH, EGO_WIDTH, Stage

GOAL_GAP = 14.0  # [m] between base_link at the goal and something that stays in the way


def _nearer_goal(stage: Stage, share: float) -> None:
    """Where the hazard costs time: a goal at a share of what is possible on an empty road."""
    if not isinstance(stage, JunctionStage):
        stage.goal_s = min(stage.goal_s, stage.ego_s + share * stage.speed_limit * stage.duration_s)


def _pace(stage: Stage) -> float:
    ego = stage.ego
    assert ego is not None
    return max(ego.speed, 0.5 * stage.speed_limit)


def braking_lead(stage: Stage) -> None:
    """Somebody ahead brakes hard, stands for a while and goes on."""
    rng, pace = stage.rng, _pace(stage)
    begins, lasts = float(rng.uniform(1.0, 4.0)), float(rng.uniform(2.0, 4.5))
    braking = float(rng.uniform(3.5, 7.0))
    lead: TrafficVehicle | None = None

    def script(time: float) -> float | None:
        assert lead is not None
        if time < begins or time > begins + lasts + pace / braking:
            return None
        return float(np.clip(-lead.speed / 0.4, -braking, 0.0))

    _nearer_goal(stage, 0.22)
    s = stage.ego_s + EGO_LENGTH + pace * float(rng.uniform(1.1, 1.8)) + 4.0
    lead = stage.vehicle(stage.ego_index, s, pace, target_speed=pace, script=script, protected=True)


def stopped_queue(stage: Stage) -> None:
    """The end of a queue, which moves on after a while."""
    rng, pace = stage.rng, _pace(stage)
    leaves = float(rng.uniform(4.0, 9.0))
    _nearer_goal(stage, 0.22)
    s = stage.ego_s + pace**2 / 4.4 + float(rng.uniform(25.0, 55.0))
    for k in range(int(rng.integers(2, 6))):

        def script(time: float, since: float = leaves + 0.9 * k) -> float | None:
            return None if time > since else -3.0

        stage.vehicle(stage.ego_index, s, 0.0, script=script, protected=True)
        s += float(rng.uniform(8.0, 10.0))


def crossing(stage: Stage) -> None:
    """A pedestrian steps onto the road, often from behind a parked truck."""
    rng = stage.rng
    ego = stage.ego
    assert ego is not None
    s_cross = stage.ego_s + float(rng.uniform(30.0, 55.0))
    if isinstance(stage, JunctionStage):
        # Before the junction or after it, never on it.
        first, last = stage.plan.meeting
        s_cross = (
            first - float(rng.uniform(8.0, 25.0)) if rng.random() < 0.5 else last + rng.uniform(6.0, 14.0)
        )
        s_cross = max(s_cross, stage.ego_s + 28.0)
        stage.goal_s = max(stage.goal_s, s_cross + 18.0)
    edge = stage.ego_r + 0.5 * 3.6 + 0.5
    occluded = rng.random() < 0.65
    if occluded:
        truck = stage.parked(s_cross - 7.0, edge + 1.3, class_id=TRUCK, askew=0.0, protected=True)
        if truck is not None:
            length, width = truck.look.footprint
            r = edge + 1.3 - stage.ego_r
            stage.road.occluders.append(
                (s_cross - 7.0 - length / 2.0, s_cross - 7.0 + length / 2.0, r - width / 2.0, r + width / 2.0)
            )
            s_cross = max(s_cross, s_cross - 7.0 + length / 2.0 + 1.2)
        edge += 2.9
    speed = float(rng.uniform(1.1, 1.9))
    to_lane = edge + 0.6 - stage.ego_r - EGO_WIDTH / 2.0
    margin = float(rng.uniform(1.9, 2.8)) if occluded else float(rng.uniform(0.9, 2.4))
    reaches = to_lane / speed + 0.2 * speed

    def starts(_time: float) -> bool:
        s = stage.road.lane_position(ego, ego.lane_index)[0]
        return bool((s_cross - s) / max(ego.speed, 2.0) < reaches + margin)

    path = [(s_cross, edge + 0.6), (s_cross + float(rng.uniform(-1.0, 1.0)), stage.ego_r - 9.0)]
    stage.walker(path, class_id=PEDESTRIAN, speed=speed, starts=starts, protected=True)


def cyclist(stage: Stage) -> None:
    """A slow cyclist ahead, near the right edge."""
    speed = float(stage.rng.uniform(3.0, 5.5))
    s = stage.ego_s + EGO_LENGTH + _pace(stage) * 1.5 + float(stage.rng.uniform(5.0, 20.0))
    stage.vehicle(
        stage.ego_index,
        s,
        speed,
        target_speed=speed,
        class_id=CYCLIST,
        offset=float(stage.rng.uniform(0.2, 0.9)),
        protected=True,
    )
    stage.goal_s = min(stage.goal_s, s + 10.0 * speed)


def debris(stage: Stage) -> None:
    """Something low lies on the lane; there is room beside it, or it blocks the lane."""
    rng = stage.rng
    passable = rng.random() < 0.6
    size = tuple(float(v) for v in rng.uniform((0.5, 0.5, 0.35), (1.2, 1.1, 0.9)))
    side = float(rng.choice([-1.0, 1.0]))
    away = 0.5 * (size[1] + EGO_WIDTH) + float(rng.uniform(-0.35, 0.1)) if passable else 0.0
    s = stage.ego_s + _pace(stage) ** 2 / 4.4 + float(rng.uniform(25.0, 60.0))
    r = stage.ego_r + side * away
    point = stage.positions(s, r)
    heading = stage.heading_at(s) + float(rng.normal(0.0, 0.2))
    tone = float(rng.uniform(60, 200))
    stage.debris.add(
        point, heading, (size[0], size[1], size[2]), (tone, 0.8 * tone, 0.5 * tone), reflectivity=0.4, rcs=2.0
    )
    stage.road.objects.append(ParkedVehicle(stage.road, point, heading, (size[0], size[1])))
    if not passable:
        stage.goal_s = min(stage.goal_s, s - GOAL_GAP)


def blocking_truck(stage: Stage) -> None:
    """A slow truck ahead hides what comes after it: traffic that stands."""
    rng, pace = stage.rng, _pace(stage)
    _nearer_goal(stage, 0.25)
    truck_pace = pace * float(rng.uniform(0.75, 0.95))
    s = stage.ego_s + EGO_LENGTH + 8.0 + 1.2 * pace
    truck = stage.vehicle(
        stage.ego_index, s, truck_pace, target_speed=truck_pace, class_id=TRUCK, protected=True
    )
    leaves = float(rng.uniform(4.0, 8.0))
    ahead = s + truck_pace**2 / 4.0 + float(rng.uniform(35.0, 60.0))
    if truck is not None:
        stage.vehicle(
            stage.ego_index, ahead, 0.0, script=lambda time: None if time > leaves else -3.0, protected=True
        )


def aggressive_merger(stage: Stage) -> None:
    """Somebody on the ramp takes no notice of who drives on the motorway."""
    assert isinstance(stage, JunctionStage)
    rng = stage.rng
    ramps = [index for index, _ in stage.plan.arms["ramp"] if index != stage.ego_index]
    index = ramps[int(rng.integers(len(ramps)))]
    lane = stage.plan.lane(index)
    pace = _pace(stage)
    zone = stage.road.meeting(index, stage.ego_index)
    if zone is None:
        return
    arrival = max(zone[2] - stage.ego_s, 0.0) / pace + float(rng.uniform(-1.6, 0.4))
    speed = min(pace * float(rng.uniform(0.8, 1.0)), lane.speed_limit)
    s = max(zone[0] - max(arrival, 0.5) * speed, 5.0)
    merger = stage.vehicle(index, s, speed, target_speed=speed, protected=True)
    if merger is not None:
        merger.heeds_priority = False


HAZARDS: dict[str, Callable[[Stage], None]] = {
    "braking_lead": braking_lead,
    "stopped_queue": stopped_queue,
    "crossing": crossing,
    "cyclist": cyclist,
    "debris": debris,
    "blocking_truck": blocking_truck,
    "aggressive_merger": aggressive_merger,
}
