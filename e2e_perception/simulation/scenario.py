"""A scenario: what happened, kept as trajectories, from which the world at any instant is interpolated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes, footprint_corners_N42
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.appearance import Parts
from e2e_perception.simulation.scene import Conditions, Road, Snapshot, Solids

STEP_S = 0.1
LABEL_HORIZON_S = 4.0  # simulated beyond the end, so that the last frames have futures too
START_NS = 1_700_000_000_000_000_000
NEARBY = 120.0  # [m] within which agents and clutter are in a snapshot


@dataclass(frozen=True)
class Scenario:
    """A drive through traffic; T steps of `STEP_S`, N agents, C clutter solids.

    Attributes:
        kind, seed: What `simulate_scenario` was asked for.
        start_ns, end_ns: The stretch meant for sensors [ns]; labels reach `LABEL_HORIZON_S` beyond it.
        route: The lane to follow, odom frame. It tells nothing of what the robot will do.
        speed_limit: [m/s]
        conditions: Light and air.
        road: The surface.
        ego_T5: (T, 5) x, y [m], yaw [rad, continuous], speed [m/s], yaw rate [rad/s] of `base_link`, odom.
        agents_TN3: (T, N, 3) x, y [m] of the centre, yaw [rad, continuous], odom.
        velocities_TN2: (T, N, 2) [m/s] of the centre over ground, odom axes.
        sizes_N3: (N, 3) length, width, height [m].
        class_ids_N: (N,), index into `CLASSES`.
        parts: What the agents look like.
        clutter_C12: Still solids, see `scenery.Clutter`, odom frame.
        collided: Whether the robot touched something; its driving is then no example.
        swerves: Intervals (start, end) [ns] in which the robot is pushed off its lane's centre on purpose;
            no plan can foresee them.
    """

    kind: str
    seed: int
    start_ns: int
    end_ns: int
    route: Route
    speed_limit: float
    conditions: Conditions
    road: Road
    ego_T5: NDArray[np.float64]
    agents_TN3: NDArray[np.float64]
    velocities_TN2: NDArray[np.float64]
    sizes_N3: NDArray[np.float64]
    class_ids_N: NDArray[np.int64]
    parts: Parts
    clutter_C12: NDArray[np.float64]
    collided: bool
    swerves: tuple[tuple[int, int], ...]
    _clutter_reach_C: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Small things far away cost as much to draw as near ones and are seen by nobody.
        reach = np.minimum(NEARBY, 30.0 + 14.0 * self.clutter_C12[:, 3:6].max(axis=1, initial=0.0))
        object.__setattr__(self, "_clutter_reach_C", reach + self.clutter_C12[:, 3] / 2.0)

    @property
    def last_ns(self) -> int:
        """The last instant for which states are known [ns]."""
        return self.start_ns + round((len(self.ego_T5) - 1) * STEP_S * 1e9)

    @property
    def name(self) -> str:
        """Kind and seed, as clips state them."""
        return f"{self.kind}/{self.seed}"

    def is_example(self, from_ns: int, to_ns: int) -> bool:
        """Whether what the robot does between two instants is worth imitating: no collision, no push."""
        return not self.collided and all(to_ns <= start or end <= from_ns for start, end in self.swerves)

    def _locate(self, stamp_ns: int) -> tuple[int, float]:
        if not self.start_ns <= stamp_ns <= self.last_ns:
            raise InputError(
                f"scenario {self.name} has no state at {stamp_ns} ns; "
                f"it covers {self.start_ns}..{self.last_ns} ns"
            )
        steps = (stamp_ns - self.start_ns) * 1e-9 / STEP_S
        i = min(int(steps), len(self.ego_T5) - 2)
        return i, steps - i

    def ego_at(self, stamp_ns: int) -> EgoState:
        """The robot's pose and twist at an instant.

        Raises:
            InputError: If the scenario does not cover it.
        """
        i, f = self._locate(stamp_ns)
        x, y, yaw, speed, yaw_rate = ((1.0 - f) * self.ego_T5[i] + f * self.ego_T5[i + 1]).tolist()
        return EgoState(stamp_ns, SE3.planar(x, y, yaw), np.array([speed, 0.0, 0.0]), yaw_rate)

    def agents_at(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Poses (N, 3) x, y [m], yaw [rad] and velocities (N, 2) [m/s] of all agents, odom frame.

        Raises:
            InputError: If the scenario does not cover the instant.
        """
        i, f = self._locate(stamp_ns)
        poses = (1.0 - f) * self.agents_TN3[i] + f * self.agents_TN3[i + 1]
        velocities = (1.0 - f) * self.velocities_TN2[i] + f * self.velocities_TN2[i + 1]
        return poses, velocities

    def snapshot(self, stamp_ns: int) -> Snapshot:
        """The world at an instant: agents and clutter within `NEARBY` metres; identities are agent numbers.

        Raises:
            InputError: If the scenario does not cover it.
        """
        ego = self.ego_at(stamp_ns)
        here = ego.odom_from_base.translation[:2]
        poses_N3, velocities_N2 = self.agents_at(stamp_ns)
        ids = np.flatnonzero(np.hypot(poses_N3[:, 0] - here[0], poses_N3[:, 1] - here[1]) < NEARBY)
        heights = self.sizes_N3[ids, 2:]
        boxes = Boxes(
            centers_N3=np.concatenate([poses_N3[ids, :2], heights / 2.0], axis=1).astype(np.float32),
            sizes_N3=self.sizes_N3[ids].astype(np.float32),
            yaws_N=((poses_N3[ids, 2] + np.pi) % (2.0 * np.pi) - np.pi).astype(np.float32),
            velocities_N2=velocities_N2[ids].astype(np.float32),
            class_ids_N=self.class_ids_N[ids],
            scores_N=np.ones(len(ids), np.float32),
            ids_N=ids.astype(np.int64),
        )
        return Snapshot(
            stamp_ns=stamp_ns,
            odom_from_base=ego.odom_from_base,
            velocity=ego.velocity,
            yaw_rate=ego.yaw_rate,
            boxes=boxes,
            solids=self._solids(here, ids, poses_N3, velocities_N2),
            road=self.road,
            conditions=self.conditions,
        )

    def _solids(
        self,
        here: NDArray[np.float64],
        ids: NDArray[np.int64],
        poses_N3: NDArray[np.float64],
        velocities_N2: NDArray[np.float64],
    ) -> Solids:
        rows_N = np.full(len(poses_N3), -1, np.int64)
        rows_N[ids] = np.arange(len(ids))
        parts = self.parts
        shown = np.flatnonzero(rows_N[parts.agents_P] >= 0)
        agents = parts.agents_P[shown]
        yaws = poses_N3[agents, 2]
        c, s = np.cos(yaws), np.sin(yaws)
        offsets = parts.offsets_P3[shown]
        x = poses_N3[agents, 0] + c * offsets[:, 0] - s * offsets[:, 1]
        y = poses_N3[agents, 1] + s * offsets[:, 0] + c * offsets[:, 1]
        still = self.clutter_C12
        still = still[np.hypot(still[:, 0] - here[0], still[:, 1] - here[1]) < self._clutter_reach_C]
        return Solids(
            centers_N3=np.concatenate([np.stack([x, y, offsets[:, 2]], axis=1), still[:, :3]]),
            sizes_N3=np.concatenate([parts.sizes_P3[shown], still[:, 3:6]]),
            yaws_N=np.concatenate([yaws, still[:, 6]]),
            velocities_N2=np.concatenate([velocities_N2[agents], np.zeros((len(still), 2))]),
            colors_N3=np.concatenate([parts.colors_P3[shown], still[:, 9:12].astype(np.uint8)]),
            reflectivities_N=np.concatenate([parts.reflectivities_P[shown], still[:, 7]]),
            rcs_N=np.concatenate([parts.rcs_P[shown], still[:, 8]]),
            labels_N=np.concatenate([rows_N[agents], np.full(len(still), -1, np.int64)]),
        )


def contacts(
    states_TN3: NDArray[np.float64], sizes_N2: NDArray[np.float64], *, only_first: bool = False
) -> list[tuple[int, int]]:
    """Pairs of rectangles that overlap at some step (separating axes), i < j.

    Args:
        states_TN3: (T, N, 3) x, y [m], yaw [rad].
        sizes_N2: (N, 2) length, width [m].
        only_first: Look at pairs with rectangle 0 only.
    Returns:
        Pairs in order.
    """
    num = len(sizes_N2)
    radii = np.hypot(sizes_N2[:, 0], sizes_N2[:, 1]) / 2.0
    i, j = np.triu_indices(num, k=1)
    if only_first:
        i, j = i[i == 0], j[i == 0]
    if not len(i):
        return []
    distance = np.linalg.norm(states_TN3[:, i, :2] - states_TN3[:, j, :2], axis=-1)
    t, p = np.nonzero(distance < radii[i] + radii[j])
    if not len(t):
        return []
    a, b = states_TN3[t, i[p]], states_TN3[t, j[p]]
    corners_a = footprint_corners_N42(a[:, :2], sizes_N2[i[p]], a[:, 2])
    corners_b = footprint_corners_N42(b[:, :2], sizes_N2[j[p]], b[:, 2])
    separated = np.zeros(len(t), np.bool_)
    for yaw in (a[:, 2], a[:, 2] + np.pi / 2, b[:, 2], b[:, 2] + np.pi / 2):
        axis = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)[:, None]
        on_a, on_b = (corners_a * axis).sum(-1), (corners_b * axis).sum(-1)
        separated |= (on_a.max(1) < on_b.min(1)) | (on_b.max(1) < on_a.min(1))
    hit = np.unique(p[~separated])
    return [(int(i[k]), int(j[k])) for k in hit]
