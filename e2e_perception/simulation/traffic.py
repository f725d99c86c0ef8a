"""Kinds of scenario: traffic around a robot that is driven well, so that what it does is worth learning.

Each kind makes the robot depend on what it sees: the same route and speed call for braking or for driving on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from e2e_perception.core.errors import InputError
from e2e_perception.simulation.appearance import CAR, CYCLIST, PEDESTRIAN, TRUCK
from e2e_perception.simulation.drivers import ParkedVehicle, Script, TrafficVehicle
from e2e_perception.simulation.hazards import GOAL_GAP
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.stage import EGO_LENGTH, EGO_START_S, EGO_WIDTH, FORWARD, CorridorStage

KINDS = (
    "highway",
    "braking_lead",
    "stopped_queue",
    "blocked_lane",
    "cut_in",
    "crossing",
    "two_way",
    "standstill",
)


def simulate_scenario(kind: str, seed: int, duration_s: float) -> Scenario:
    """Make one scenario; the same arguments give the same scenario.

    Args:
        kind: One of `KINDS`.
        seed: Of everything that varies.
        duration_s: [s], at least 1.
    Returns:
        The drive, with `LABEL_HORIZON_S` more of it for labels.
    Raises:
        InputError: If the kind is unknown or the duration too short.
    """
    if kind not in KINDS:
        raise InputError(f"unknown scenario kind {kind!r}; there are {', '.join(KINDS)}")
    if not duration_s >= 1.0:
        raise InputError(f"scenario duration is {duration_s} s, expected at least 1 s")
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    stage = CorridorStage(kind, duration_s, rng)
    SETTINGS[kind](stage)
    return stage.run(seed)


def _highway(stage: CorridorStage) -> None:
    stage.put_ego()
    rng = stage.rng
    density = rng.uniform(15.0, 90.0)
    for i in range(stage.num_lanes):
        flow = stage.speed_limit * rng.uniform(0.6, 1.0)
        stage.fill_lane((*FORWARD, i), 5.0, EGO_START_S + 200.0, density, flow, change_lanes=True)


def _braking_lead(stage: CorridorStage) -> None:
    rng = stage.rng
    share = float(rng.uniform(0.6, 1.0))
    ego = stage.put_ego(share)
    begins = rng.uniform(1.0, max(1.5, 0.55 * stage.duration_s))
    braking = rng.uniform(2.5, 7.0)
    lasts = rng.uniform(2.0, 6.0)
    slow = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 0.6)) * ego.speed
    resumes = rng.random() < 0.6 or stage.live
    stage.goal_s = EGO_START_S + 0.22 * stage.speed_limit * stage.duration_s
    lead: TrafficVehicle | None = None

    def script(time: float) -> float | None:
        assert lead is not None
        if time < begins or (resumes and time > begins + lasts + lead.target_speed / braking):
            return None
        return float(np.clip((slow - lead.speed) / 0.4, -braking, 0.0))

    gap = ego.speed * rng.uniform(1.2, 2.4) + 10.0
    lead = stage.vehicle(
        (*FORWARD, stage.ego_lane),
        EGO_START_S + gap,
        ego.speed,
        target_speed=ego.speed * rng.uniform(0.95, 1.1),
        script=script,
        protected=True,
    )
    stage.fill_lane(
        (*FORWARD, stage.ego_lane), EGO_START_S + gap + 40.0, EGO_START_S + gap + 150.0, 40.0, ego.speed
    )
    stage.fill_neighbours()
    stage.fill_pavements()


def _queue(stage: CorridorStage, first: float, leaves_after: float | None) -> None:
    """Vehicles at standstill one behind the other, the last at `first`; the front one leaves, or never."""

    def script(time: float) -> float | None:
        return None if leaves_after is not None and time > leaves_after else -3.0

    s = first
    for k in range(int(stage.rng.integers(1, 6))):
        stage.vehicle(
            (*FORWARD, stage.ego_lane),
            s,
            0.0,
            target_speed=stage.speed_limit * stage.rng.uniform(0.5, 0.95),
            # Those behind follow the one before them; without this they would close up at once.
            script=script if k == 0 or leaves_after is None else _after(script, 0.8 * k),
            protected=True,
        )
        s += stage.rng.uniform(7.5, 10.0) + (6.0 if stage.rng.random() < 0.15 else 0.0)


def _after(script: Script, delay: float) -> Script:
    return lambda time: script(time - delay)


def _stopped_queue(stage: CorridorStage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    needed = ego.speed**2 / (2.0 * 2.2) + 20.0
    leaves = float(rng.uniform(5.0, 14.0)) if rng.random() < 0.4 else None
    if stage.live:
        leaves = float(rng.uniform(4.0, 9.0))
        stage.goal_s = EGO_START_S + 0.22 * stage.speed_limit * stage.duration_s
    _queue(stage, EGO_START_S + needed + rng.uniform(5.0, 70.0), leaves)
    stage.fill_neighbours(speed_share=(0.15, 1.0))
    stage.fill_pavements()


def _blocked_lane(stage: CorridorStage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    s = EGO_START_S + ego.speed**2 / (2.0 * 2.2) + rng.uniform(25.0, 80.0)
    centre = stage.ego_lane * stage.lane_width
    side = 1.0 if stage.ego_lane == stage.num_lanes - 1 else float(rng.choice([-1.0, 1.0]))
    passable = rng.random() < 0.3  # the same sight, but there is room: no reason to stop
    passable &= stage.has_decoys
    if not passable:
        stage.goal_s = min(stage.goal_s, s - GOAL_GAP)
    if rng.random() < 0.75:
        reach = 1.0 + EGO_WIDTH / 2.0
        r = centre + side * (reach + rng.uniform(0.8, 1.6) if passable else rng.uniform(0.0, reach - 0.5))
        class_id = TRUCK if rng.random() < 0.3 and not passable else CAR
        stage.parked(s, r, class_id=class_id, askew=0.08, protected=True)
        if rng.random() < 0.4:
            stage.parked(s + rng.uniform(9.0, 16.0), r, class_id=CAR, askew=0.08, protected=True)
    else:
        size = tuple(float(v) for v in rng.uniform((0.6, 0.6, 0.45), (1.6, 1.6, 1.2)))
        reach = (size[1] + EGO_WIDTH) / 2.0
        r = centre + side * (reach + rng.uniform(0.8, 1.4) if passable else rng.uniform(0.0, reach - 0.3))
        heading = float(rng.uniform(0.0, np.pi))
        point = stage.alignment.positions(s, r)
        tone = rng.uniform(60, 200)
        stage.debris.add(
            point,
            heading,
            (size[0], size[1], size[2]),
            (tone, tone * 0.8, tone * 0.5),
            reflectivity=0.4,
            rcs=2.0,
        )
        # In its own axes the box is longer than along the road, but never by more than its diagonal.
        body = ParkedVehicle(stage.road, point, heading, (float(np.hypot(size[0], size[1])), size[1]))
        stage.road.objects.append(body)
    stage.fill_neighbours()
    stage.fill_pavements()


def _cut_in(stage: CorridorStage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    sides = [i for i in (stage.ego_lane - 1, stage.ego_lane + 1) if 0 <= i < stage.num_lanes]
    lane = int(rng.choice(sides))
    speed = max(ego.speed - rng.uniform(0.0, 7.0), 4.0)
    merges = rng.uniform(1.0, max(1.5, 0.5 * stage.duration_s))
    gap = EGO_LENGTH + rng.uniform(5.0, 12.0) + (ego.speed - speed) * merges
    stage.goal_s = EGO_START_S + 0.6 * speed * stage.duration_s
    slack = rng.uniform(0.5, 6.0)
    brakes = rng.uniform(2.0, 5.0) if rng.random() < 0.35 else 0.0
    stays = rng.random() < 0.2 and stage.has_decoys  # drives beside and never comes over

    def script(time: float) -> float | None:
        return -brakes if brakes and merges + 2.5 < time < merges + 5.0 else None

    intruder = stage.vehicle(
        (*FORWARD, lane),
        EGO_START_S + gap,
        speed,
        target_speed=speed,
        script=script,
        class_id=None,
        protected=True,
    )
    assert intruder is not None

    def merge(time: float) -> None:
        if stays or time < 0.5 or intruder.target_lane_index[2] == stage.ego_lane:
            return
        road = stage.road
        ahead = road.lane_position(intruder, ego.lane_index)[0] - road.lane_position(ego, ego.lane_index)[0]
        # Impatient, but no murderer: waits until the gap is hardly more than what braking by 3.5 m/s^2 needs,
        # but not for too small a gap.
        closing = max(ego.speed - intruder.speed, 0.0)
        room = 2.0 + 0.7 * closing + closing**2 / 7.0
        gap_now = ahead - (intruder.LENGTH + ego.LENGTH) / 2.0
        if room < gap_now and (gap_now < room + slack or time > merges + 2.0):
            intruder.target_lane_index = (*FORWARD, stage.ego_lane)

    stage.cues.append(merge)
    stage.fill_lane((*FORWARD, stage.ego_lane), EGO_START_S + 90.0, EGO_START_S + 220.0, 60.0, ego.speed)
    stage.fill_neighbours(speed_share=(0.8, 1.1))


def _crossing(stage: CorridorStage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    s_cross = EGO_START_S + rng.uniform(35.0, 35.0 + 0.45 * stage.speed_limit * stage.duration_s)
    occluded = rng.random() < (0.85 if stage.live else 0.45)
    side = 1.0 if occluded or rng.random() < 0.7 else -1.0
    edge = stage.section.right if side > 0 else stage.section.left
    if occluded:
        width = 2.5
        r = (stage.num_lanes - 0.5) * stage.lane_width + 0.4 + width / 2.0
        actor = stage.parked(s_cross - rng.uniform(6.5, 8.5), r, class_id=TRUCK, askew=0.0, protected=True)
        assert actor is not None
        s = s_cross - 7.5
        lane_r = r - stage.ego_lane * stage.lane_width
        half = actor.look.size[0] / 2.0
        stage.road.occluders.append(
            (s - half, s + half, lane_r - actor.look.size[1] / 2.0, lane_r + actor.look.size[1] / 2.0)
        )
        edge = max(edge, r + width / 2.0 + 0.3)
    class_id = CYCLIST if rng.random() < 0.3 else PEDESTRIAN
    waits = rng.random() < 0.2 and stage.has_decoys  # comes to the kerb and lets the robot pass
    stage.goal_s = s_cross + 20.0
    people = 1 + int(rng.random() < 0.3)
    to_kerb = rng.uniform(0.5, 2.5)
    walk_speed = float(rng.uniform(1.0, 1.9) if class_id == PEDESTRIAN else rng.uniform(2.0, 3.5))
    distance = to_kerb + abs(edge - stage.ego_lane * stage.lane_width) - EGO_WIDTH / 2.0
    reaches_lane = distance / walk_speed + 0.2 * walk_speed  # setting off takes time, too
    # How long before the robot the walker is in its way.
    # From behind a lorry, somebody is seen only now; less than this no driver could stop for.
    margin = rng.uniform(1.9, 3.0) if occluded else rng.uniform(0.6, 2.8)

    def starts(_time: float) -> bool:
        s_ego = stage.road.lane_position(ego, ego.lane_index)[0]
        return bool((s_cross - s_ego) / max(ego.speed, 2.0) < reaches_lane + margin)

    for k in range(people):
        far = -side * (stage.section.right - stage.section.left + 6.0)
        s_start = s_cross + 1.1 * k + rng.normal(0, 0.3)
        begin = (s_start, edge + side * (to_kerb + 0.4 * k))
        end = (s_start + rng.uniform(-3.0, 3.0), edge + side * to_kerb + far)
        stage.walker(
            [begin, end],
            class_id=class_id,
            speed=walk_speed * rng.uniform(0.95, 1.05),
            starts=starts,
            stops_at=to_kerb - 0.2 if waits else np.inf,
            protected=True,
        )
    stage.fill_neighbours()
    stage.fill_pavements()


def _two_way(stage: CorridorStage) -> None:
    rng = stage.rng
    ego = stage.put_ego()
    choice = rng.random()
    if choice < 0.35:
        speed = float(rng.uniform(3.5, 6.0))
        stage.goal_s = EGO_START_S + 3.5 * stage.duration_s
        stage.vehicle(
            (*FORWARD, 0),
            EGO_START_S + ego.speed * 3.0 + rng.uniform(10.0, 40.0),
            speed,
            target_speed=speed,
            class_id=CYCLIST,
            offset=rng.uniform(0.2, 0.9),
            protected=True,
        )
    elif choice < 0.8:
        flow = stage.speed_limit * rng.uniform(0.5, 1.0)
        stage.fill_lane((*FORWARD, 0), EGO_START_S + 15.0 + 1.3 * ego.speed, EGO_START_S + 150.0, 40.0, flow)
    stage.fill_lane((*FORWARD, 0), 5.0, EGO_START_S - 25.0, 30.0, ego.speed * 0.95)
    stage.fill_neighbours()
    stage.fill_pavements()


def _standstill(stage: CorridorStage) -> None:
    rng = stage.rng
    stage.put_ego(0.0, calm=True)
    leaves = float(rng.uniform(0.8, 0.6 * stage.duration_s)) if rng.random() < 0.75 else None
    if stage.live:
        leaves = float(rng.uniform(2.0, 6.0))
    stage.goal_s = EGO_START_S + 15.0
    _queue(stage, EGO_START_S + EGO_LENGTH / 2.0 + rng.uniform(5.0, 8.5), leaves)
    stage.fill_lane((*FORWARD, stage.ego_lane), 5.0, EGO_START_S - 12.0, 5.0, 0.0)
    stage.fill_neighbours(speed_share=(0.0, 1.0))
    stage.fill_pavements()


SETTINGS: dict[str, Callable[[CorridorStage], None]] = {
    "highway": _highway,
    "braking_lead": _braking_lead,
    "stopped_queue": _stopped_queue,
    "blocked_lane": _blocked_lane,
    "cut_in": _cut_in,
    "crossing": _crossing,
    "two_way": _two_way,
    "standstill": _standstill,
}
