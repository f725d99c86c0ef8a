"""What happened in a closed-loop episode: from it all outcome metrics, tables and pictures are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError

EPISODE_STEP_S = 0.1


@dataclass(frozen=True)
class Contact:
    """The robot touched somebody or something.

    Attributes:
        step: Row of the record in which they first overlap.
        agent: Row of `agents_TN3`, or -1 for a still solid on the road.
        class_name: Of `CLASSES`.
        at_fault: Whether the robot could have prevented it by driving otherwise, see docs/outcomes.md.
        speed: Of the two against each other at the contact [m/s].
    """

    step: int
    agent: int
    class_name: str
    at_fault: bool
    speed: float


@dataclass(frozen=True)
class EpisodeRecord:
    """One drive; T steps of `EPISODE_STEP_S`, the first at the start; N agents.

    Attributes:
        scenario: Name of the world, e.g. `merge/17@0.5`.
        family, seed, difficulty: As the world says.
        policy: Who drove, e.g. `expert` or `bundle:tiny (76bf914f01ec)`.
        start_ns: Of the first step [ns].
        ego_T5: (T, 5) x, y [m], yaw [rad, continuous], speed [m/s], yaw rate [rad/s] of `base_link`, odom.
        ego_size: Length, width [m], and how far the centre lies ahead of `base_link` [m].
        commands_T2: (T, 2) acceleration [m/s^2] and curvature [1/m] that the controller asked for.
        agents_TN3: (T, N, 3) x, y [m] of the centre, yaw [rad], odom.
        velocities_TN2: (T, N, 2) [m/s], odom axes.
        present_TN: (T, N), who was there.
        sizes_N3: (N, 3) length, width, height [m].
        class_names_N: Of each agent.
        obstacles_O5: (O, 5) x, y [m], yaw [rad], length, width [m] of still solids on the road.
        route_R2: (R, 2) [m], odom.
        route_start_s: Arc length at which the robot started [m].
        goal_s: Arc length that it had to reach [m].
        progress_T: (T,) arc length along the route [m].
        offsets_T: (T,) [m] left of the route.
        off_road_T: (T,), whether a corner of the robot was off the drivable area.
        speed_limit: [m/s]
        drivable: Polygons (K, 2) [m], odom.
        boundaries: Polylines (K, 2) [m], odom.
        plans: For each step the plan in force as (P, 2) points [m], odom, or None.
        states_T: (T,) int, `SafetyState` of the stack, -1 where the policy has none.
        interventions_T: (T,), whether the plan in force was a stop made by the supervisor.
        contacts: In order of time; the episode ends shortly after the first.
        failure: Why the policy itself failed (`no plan for 1.0 s`, `non-finite plan`, an exception); empty if
            it did not. It then counts as a failed episode.
        conditions: Weather and light, for tables.
        provenance: What was recorded and what modelled.
        counters: Of the stack: frames, plans, drops by cause; empty for policies without one.
    """

    scenario: str
    family: str
    seed: int
    difficulty: float
    policy: str
    start_ns: int
    ego_T5: NDArray[np.float64]
    ego_size: tuple[float, float, float]
    commands_T2: NDArray[np.float64]
    agents_TN3: NDArray[np.float64]
    velocities_TN2: NDArray[np.float64]
    present_TN: NDArray[np.bool_]
    sizes_N3: NDArray[np.float64]
    class_names_N: tuple[str, ...]
    obstacles_O5: NDArray[np.float64]
    route_R2: NDArray[np.float64]
    route_start_s: float
    goal_s: float
    progress_T: NDArray[np.float64]
    offsets_T: NDArray[np.float64]
    off_road_T: NDArray[np.bool_]
    speed_limit: float
    drivable: tuple[NDArray[np.float64], ...]
    boundaries: tuple[NDArray[np.float64], ...]
    plans: tuple[NDArray[np.float64] | None, ...]
    states_T: NDArray[np.int64]
    interventions_T: NDArray[np.bool_]
    contacts: tuple[Contact, ...]
    failure: str
    conditions: str
    provenance: Mapping[str, str]
    counters: Mapping[str, int]

    def __post_init__(self) -> None:
        num_steps = len(self.ego_T5)
        for name, value in vars(self).items():
            if "_T" in name and len(value) != num_steps:
                raise InputError(f"episode: {name} has {len(value)} steps, expected {num_steps} as ego_T5")
        if len(self.plans) != num_steps:
            raise InputError(f"episode: plans has {len(self.plans)} steps, expected {num_steps} as ego_T5")

    @property
    def times_T(self) -> NDArray[np.float64]:
        """(T,) [s] since the start."""
        return np.asarray(EPISODE_STEP_S * np.arange(len(self.ego_T5)), np.float64)
