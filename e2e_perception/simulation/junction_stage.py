"""A stage where roads meet: traffic on every arm, people beside them, the robot on its way through."""

from __future__ import annotations

import numpy as np
import shapely
from highway_env.road.road import LaneIndex
from numpy.typing import ArrayLike, NDArray

from e2e_perception.simulation.appearance import CAR, CYCLIST, PEDESTRIAN
from e2e_perception.simulation.junctions import PLANS
from e2e_perception.simulation.paths import PathLane
from e2e_perception.simulation.scene import Road
from e2e_perception.simulation.scenery import ToOdom, scatter_around
from e2e_perception.simulation.stage import Stage

LONGEST_S = 40.0  # [s] of traffic that is prepared
TRUCK_SPEED = 8.5  # [m/s] in the tightest bend of a way, below which trucks do not take it


class JunctionStage(Stage):
    """One of `junctions.PLANS`; its reference line is the robot's way.

    Attributes:
        plan: The roads.
    """

    def __init__(self, family: str, rng: np.random.Generator, difficulty: float) -> None:
        """Lay the roads.

        Args:
            family: Key of `PLANS`.
            rng: Randomness.
            difficulty: 0 … 1.
        """
        self.plan = PLANS[family](rng)
        super().__init__(family, self.plan.network, rng, difficulty)
        self.way = self.plan.lane(self.plan.ego)
        self.speed_limit, self.urban = self.plan.speed_limit, self.plan.urban
        self.ego_index, self.ego_r, self.length = self.plan.ego, 0.0, self.way.length
        self.ego_s = self.plan.ego_s + float(rng.uniform(0.0, 20.0))
        self.goal_s = min(self.plan.meeting[1] + 15.0, self.length - 30.0)
        self._area = self.plan.area()

    def positions(self, s: ArrayLike, r: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) [m]: points at (s, r) of the robot's way."""
        s, r = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(r, np.float64))
        return self.way.positions(s.ravel(), r.ravel()).reshape(*s.shape, 2)

    def heading_at(self, s: float) -> float:
        """Of the robot's way [rad]."""
        return self.way.heading_at(s)

    def ground(self, to_odom: ToOdom) -> Road:
        """The surface, odom frame."""
        return self.plan.road(to_odom)

    def scenery(self) -> NDArray[np.float64]:
        """(C, 12), houses, trees and poles around the roads."""
        middle = self.way.positions(np.array([sum(self.plan.meeting) / 2.0]), np.zeros(1))[0]
        return scatter_around(self._area, middle, self.urban, self.rng)

    def fill_roads(self) -> None:
        """Vehicles on every arm, more to come, and people on the pavements."""
        rng = self.rng
        for arm, ways in self.plan.arms.items():
            shares = np.array([share for _, share in ways])
            shares /= shares.sum()

            def way(ways: list[tuple[LaneIndex, float]] = ways, p: NDArray[np.float64] = shares) -> LaneIndex:
                return ways[int(rng.choice(len(ways), p=p))][0]

            gap = self._gap(arm)
            if gap is None:
                continue
            # Lanes beside each other are filled one after the other, at random.
            lanes = len(ways) if arm in ("main", "opposite") else 1
            s = 6.0 + float(rng.exponential(gap)) / lanes
            longest = max(self.plan.lane(index).length for index, _ in ways)
            while s < longest - 40.0:
                index = way()
                lane = self.plan.lane(index)
                if s < lane.length - 40.0:
                    pace = min(lane.speed_at(s), self.speed_limit) * float(rng.uniform(0.75, 1.0))
                    self.vehicle(
                        index,
                        s,
                        pace,
                        class_id=self._who_fits(lane),
                        change_lanes=arm in ("main", "opposite") and rng.random() < 0.7,
                    )
                spacing = (
                    9.0 + 0.8 * self.speed_limit * float(rng.uniform(0.4, 1.2)) + float(rng.exponential(gap))
                )
                s += spacing / lanes
            time = float(rng.exponential(1.0 + gap / self.speed_limit))
            while time < LONGEST_S:
                index = way()
                pace = self.speed_limit * float(rng.uniform(0.7, 0.95))
                self.vehicle(index, 3.0, pace, class_id=self._who_fits(self.plan.lane(index)), enters_at=time)
                time += 1.5 + float(rng.exponential(1.5 * gap / self.speed_limit + 2.0))
        if self.urban:
            self._park()
            self._people()

    @staticmethod
    def _who_fits(lane: PathLane) -> int | None:
        """A car where bends are too tight for a truck to keep its lane; else anybody."""
        return CAR if lane.speeds_P.min() < TRUCK_SPEED else None

    def _gap(self, arm: str) -> float | None:
        """Mean extra distance between vehicles of an arm [m]; None: nobody comes from there."""
        assert self.difficulty is not None
        low, high = {
            "main": (30.0, 120.0),
            "ramp": (40.0, 150.0),
            "leaving": (60.0, 200.0),
            "opposite": (25.0, 90.0),
        }.get(arm, (80.0, 300.0))
        if arm == "robot":
            return None
        return float(self.rng.uniform(low, high)) * self.crowding

    def _park(self) -> None:
        rng = self.rng
        for index, first, last, offset in self.plan.parking:
            lane, share = self.plan.lane(index), float(rng.uniform(0.2, 0.8))
            s = first + float(rng.uniform(0.0, 6.0))
            while s < last:
                if rng.random() < share:
                    r = offset + float(rng.normal(0.0, 0.08))
                    heading = lane.heading_at(s) + float(rng.normal(0.0, 0.02))
                    self.stand(lane.position(s, r), heading, CAR)
                s += 6.6

    def _people(self) -> None:
        rng = self.rng
        ways = [index for ways in self.plan.arms.values() for index, _ in ways]
        for _ in range(int(rng.integers(4, 12 + round(12.0 * (self.difficulty or 0.0))))):
            lane = self.plan.lane(ways[int(rng.integers(len(ways)))])
            # Along the straight part of an arm, on the far side of its pavement.
            s = float(rng.uniform(5.0, 90.0))
            ends = float(np.clip(s + rng.choice([-1.0, 1.0]) * 50.0, 3.0, 98.0))
            r = lane.width / 2.0 + float(rng.uniform(1.2, 5.0))
            path = lane.positions(np.linspace(s, ends, 30, dtype=np.float64), np.full(30, r))
            cyclist = rng.random() < 0.15
            if shapely.LineString(path).distance(self._area) > 0.4:
                still = rng.random() < 0.2
                self.walk(
                    path, class_id=CYCLIST if cyclist else PEDESTRIAN, stops_at=0.0 if still else np.inf
                )
