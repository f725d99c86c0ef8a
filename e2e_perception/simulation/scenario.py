"""A scenario: what happened, kept as trajectories, from which the world at any instant is interpolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.trajectories import Route
from e2e_perception.simulation.appearance import Parts
from e2e_perception.simulation.scene import Conditions, Road, Snapshot
from e2e_perception.simulation.world import STEP_S, Cast

LABEL_HORIZON_S = 4.0  # simulated beyond the end, so that the last frames have futures too


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
        collided: Whether the robot touched something, or failed at its task otherwise; its driving is then no
            example.
        swerves: Intervals (start, end) [ns] in which the robot is pushed off its lane's centre on purpose;
            no plan can foresee them.
        difficulty: Of the scenario, None where there is no such thing.
        present_TN: (T, N), who was there; None: everybody, always.
        obstacles_C: (C,) bool, which of the clutter is in the way, and labelled; None: none.
        prices: By instant [ns], what the proposals of the network's vocabulary would have cost, as the expert
            saw it there and then, (C, K); empty where that can be told from what everybody did later.
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
    difficulty: float | None = None
    present_TN: NDArray[np.bool_] | None = None
    obstacles_C: NDArray[np.bool_] | None = None
    prices: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    _cast: Cast = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cast = Cast(
            self.sizes_N3,
            self.class_ids_N,
            self.parts,
            self.clutter_C12,
            self.road,
            self.conditions,
            self.obstacles_C,
        )
        object.__setattr__(self, "_cast", cast)

    @property
    def last_ns(self) -> int:
        """The last instant for which states are known [ns]."""
        return self.start_ns + round((len(self.ego_T5) - 1) * STEP_S * 1e9)

    @property
    def name(self) -> str:
        """Kind, seed and difficulty, as clips state them."""
        return f"{self.kind}/{self.seed}" + ("" if self.difficulty is None else f"@{self.difficulty:g}")

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

    @property
    def obstacles_O5(self) -> NDArray[np.float64]:
        """x, y [m], yaw [rad], length, width [m] of what lies in the way, odom frame."""
        return self._cast.obstacles_O5

    def objects_at(self, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """All that is labelled, by identity: N agents, then O obstacles.

        Returns:
            Poses (N + O, 3) x, y [m], yaw [rad], odom frame, and whether each is there (N + O,).
        Raises:
            InputError: If the scenario does not cover the instant.
        """
        still_O3 = self.obstacles_O5[:, :3]
        return (
            np.concatenate([self.agents_at(stamp_ns)[0], still_O3]),
            np.concatenate([self.present_at(stamp_ns), np.ones(len(still_O3), np.bool_)]),
        )

    def present_at(self, stamp_ns: int) -> NDArray[np.bool_]:
        """(N,), who is there at an instant: at the steps before and after it.

        Raises:
            InputError: If the scenario does not cover the instant.
        """
        i, _ = self._locate(stamp_ns)
        if self.present_TN is None:
            return np.ones(len(self.sizes_N3), np.bool_)
        return np.asarray(self.present_TN[i] & self.present_TN[i + 1])

    def snapshot(self, stamp_ns: int) -> Snapshot:
        """The world at an instant: see `Cast.snapshot`.

        Raises:
            InputError: If the scenario does not cover it.
        """
        return self._cast.snapshot(
            self.ego_at(stamp_ns), *self.agents_at(stamp_ns), self.present_at(stamp_ns)
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
