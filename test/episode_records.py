"""Episode records without a simulator: one drive along a bend with traffic, and a bare one to build on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from e2e_perception.core.episodes import EPISODE_STEP_S, Contact, EpisodeRecord

EGO_SIZE = (4.6, 1.9, 1.4)
RADIUS = 180.0
LANE = 3.5


def bare_record(num_steps: int = 60, speed: float = 8.0, **changes: Any) -> EpisodeRecord:
    """Straight along x at constant speed, nobody else there; the goal is reached at the last step."""
    times = EPISODE_STEP_S * np.arange(num_steps)
    x = speed * times
    ego = np.stack([x, 0 * x, 0 * x, 0 * x + speed, 0 * x], axis=1)
    record = EpisodeRecord(
        scenario="bare/1@0.5",
        family="bare",
        seed=1,
        difficulty=0.5,
        policy="expert",
        start_ns=1_700_000_000_000_000_000,
        ego_T5=ego,
        ego_size=EGO_SIZE,
        commands_T2=np.zeros((num_steps, 2)),
        agents_TN3=np.zeros((num_steps, 0, 3)),
        velocities_TN2=np.zeros((num_steps, 0, 2)),
        present_TN=np.zeros((num_steps, 0), bool),
        sizes_N3=np.zeros((0, 3)),
        class_names_N=(),
        obstacles_O5=np.zeros((0, 5)),
        route_R2=np.array([[-10.0, 0.0], [x[-1] + 50.0, 0.0]]),
        route_start_s=10.0,
        goal_s=10.0 + max(float(x[-1]), 1.0),
        progress_T=10.0 + x,
        offsets_T=np.zeros(num_steps),
        off_road_T=np.zeros(num_steps, bool),
        speed_limit=13.9,
        drivable=(np.array([[-20.0, -4.0], [x[-1] + 60.0, -4.0], [x[-1] + 60.0, 4.0], [-20.0, 4.0]]),),
        boundaries=(np.array([[-20.0, -4.0], [x[-1] + 60.0, -4.0]]),),
        plans=(None,) * num_steps,
        states_T=np.full(num_steps, -1),
        interventions_T=np.zeros(num_steps, bool),
        contacts=(),
        failure="",
        conditions="clear noon",
        provenance={"agents": "modelled"},
        counters={},
    )
    return replace(record, **changes)


def with_agents(
    record: EpisodeRecord,
    poses_TN3: np.ndarray,
    velocities_TN2: np.ndarray,
    class_names: tuple[str, ...],
    sizes_N3: np.ndarray | None = None,
    present_TN: np.ndarray | None = None,
) -> EpisodeRecord:
    """The same drive with others in it."""
    num_agents = len(class_names)
    return replace(
        record,
        agents_TN3=poses_TN3,
        velocities_TN2=velocities_TN2,
        class_names_N=class_names,
        sizes_N3=np.tile([4.4, 1.8, 1.5], (num_agents, 1)) if sizes_N3 is None else sizes_N3,
        present_TN=np.ones(poses_TN3.shape[:2], bool) if present_TN is None else present_TN,
    )


def drive(
    num_steps: int = 200,
    num_agents: int = 40,
    *,
    policy: str = "bundle:tiny (76bf914f01ec)",
    crash: bool = True,
    keenness: float = 1.0,
    scenario: str = "braking_lead/17@0.5",
) -> EpisodeRecord:
    """Along a bend behind a leader that brakes hard; with `crash` the robot runs into it near the end.

    Args:
        keenness: Scales the robot's speed, so that drives of one scenario differ.
    """
    rng = np.random.default_rng(17)
    times = EPISODE_STEP_S * np.arange(num_steps)
    end = times[-1] + EPISODE_STEP_S
    start_s = 20.0
    # The leader slows down in the second half; the robot reacts in time, or too late.
    lead_speed = np.where(times < 0.5 * end, 11.0, np.maximum(3.0, 11.0 - 4.0 * (times - 0.5 * end)))
    lead_s = start_s + 24.0 + EPISODE_STEP_S * np.cumsum(lead_speed)
    speed = np.zeros(num_steps)
    acceleration = np.zeros(num_steps)
    s = np.zeros(num_steps)
    speed[0], s[0] = 9.0 * keenness, start_s
    touch = num_steps
    for k in range(1, num_steps):
        gap = lead_s[k - 1] - s[k - 1] - 5.9
        late = crash and k < 0.72 * num_steps
        wanted = 0.8 * (11.0 * keenness - speed[k - 1])
        if not late and gap < 4.0 + 1.4 * speed[k - 1]:
            wanted = -(speed[k - 1] ** 2) / (2.0 * max(gap - 2.0, 0.5))
        acceleration[k] = acceleration[k - 1] + np.clip(wanted - acceleration[k - 1], -0.8, 0.4)
        acceleration[k] = np.clip(acceleration[k], -7.0, 2.0)
        speed[k] = max(0.0, speed[k - 1] + EPISODE_STEP_S * acceleration[k])
        s[k] = s[k - 1] + EPISODE_STEP_S * 0.5 * (speed[k] + speed[k - 1])
        if touch == num_steps and gap < 0.0:
            touch = k
    length = min(num_steps, touch + 10)  # the episode ends shortly after the first contact
    offset = 0.25 * np.sin(times / 3.0)
    ego_xy, yaw = _place(s, offset)
    ego = np.column_stack([ego_xy, yaw, speed, speed / RADIUS])[:length]

    poses = np.zeros((num_steps, num_agents, 3))
    velocities = np.zeros((num_steps, num_agents, 2))
    present = np.ones((num_steps, num_agents), bool)
    sizes = np.tile([4.4, 1.8, 1.5], (num_agents, 1))
    names = ["car"] * num_agents
    for n in range(num_agents):
        kind = n % 5
        if n == 0:
            along, left, own, ahead = lead_s, 0.0, lead_speed, 1.0
        elif kind == 4:  # on the pavement, or crossing it
            names[n], sizes[n] = "pedestrian", (0.6, 0.7, 1.75)
            walk = 1.2 * rng.choice([-1.0, 1.0])
            along, left, ahead = rng.uniform(0, 260) + walk * times, rng.choice([-5.0, 8.6]), np.sign(walk)
            own = np.full(num_steps, abs(walk))
        elif kind == 3:
            names[n], sizes[n] = "cyclist", (1.8, 0.7, 1.7)
            own, ahead = np.full(num_steps, rng.uniform(3.5, 6.0)), 1.0
            along, left = rng.uniform(40, 240) + own * times, -2.2
        else:  # the other lane, oncoming
            if kind == 2:
                names[n], sizes[n] = "truck", (8.6, 2.5, 3.2)
            own, ahead = np.full(num_steps, 11.0), -1.0
            along, left = 30.0 + 14.0 * n - own * times + 180.0, LANE
        xy, heading = _place(np.asarray(along) * np.ones(num_steps), np.full(num_steps, float(left)))
        poses[:, n] = np.column_stack([xy, heading + (0.0 if ahead > 0 else np.pi)])
        velocities[:, n] = (own * ahead)[:, None] * np.column_stack([np.cos(heading), np.sin(heading)])
        if n % 9 == 7:
            present[: num_steps // 4, n] = False
            poses[: num_steps // 4, n] = np.nan
            velocities[: num_steps // 4, n] = np.nan
    ahead_s = np.arange(0.5, 4.1, 0.5)
    plans = []
    for k in range(length):
        points, _ = _place(s[k] + max(speed[k], 0.5) * ahead_s, np.full(len(ahead_s), offset[k] * 0.5))
        plans.append(None if k < 3 else points)
    contacts = ()
    if touch < num_steps:
        contacts = (Contact(touch, 0, "car", True, float(speed[touch] - lead_speed[touch])),)
    left_edge, _ = _place(np.arange(-20.0, 330.0, 5.0), np.full(70, 1.5 * LANE))
    right_edge, _ = _place(np.arange(-20.0, 330.0, 5.0), np.full(70, -0.5 * LANE - 1.0))
    middle, _ = _place(np.arange(-20.0, 330.0, 5.0), np.full(70, 0.5 * LANE))
    route, _ = _place(np.arange(0.0, 300.0, 4.0), np.zeros(75))
    states = np.zeros(length, np.int64)
    states[:8] = 1
    braking = acceleration[:length] < -2.5
    states[braking] = 2
    goal_s = 172.0
    debris, debris_yaw = _place(np.array([150.0]), np.array([-2.6]))
    return EpisodeRecord(
        scenario=scenario,
        family=scenario.split("/", maxsplit=1)[0],
        seed=17,
        difficulty=0.5,
        policy=policy,
        start_ns=1_700_000_000_000_000_000,
        ego_T5=ego,
        ego_size=EGO_SIZE,
        commands_T2=np.column_stack([acceleration[:length], np.full(length, 1.0 / RADIUS)]),
        agents_TN3=poses[:length],
        velocities_TN2=velocities[:length],
        present_TN=present[:length],
        sizes_N3=sizes,
        class_names_N=tuple(names),
        obstacles_O5=np.array([[*debris[0], debris_yaw[0] + 0.4, 0.8, 0.5]]),
        route_R2=route,
        route_start_s=start_s,
        goal_s=goal_s,
        progress_T=s[:length],
        offsets_T=offset[:length],
        off_road_T=np.zeros(length, bool),
        speed_limit=10.5,
        drivable=(np.concatenate([left_edge, right_edge[::-1]]),),
        boundaries=(left_edge, right_edge, middle),
        plans=tuple(plans),
        states_T=states,
        interventions_T=braking,
        contacts=contacts,
        failure="",
        conditions="dusk, light rain",
        provenance={"agents": "modelled", "lidar": "modelled", "road": "modelled"},
        counters={"frames": length, "plans": length - 3, "late": 2},
    )


def _place(s: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position (…, 2) and heading along a left bend of `RADIUS` that starts at the origin along x."""
    angle = s / RADIUS
    radius = RADIUS - left
    return np.stack([radius * np.sin(angle), RADIUS - radius * np.cos(angle)], axis=-1), angle
