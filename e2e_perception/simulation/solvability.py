"""Which scenarios can be driven at all, by a rule that was fixed before anybody was judged.

A scenario is excluded, for every policy alike, if none of the reference drivers below succeeds in it: the
expert as it is, an assertive and a timid one, and a driver by the rules that the other vehicles follow. That
the expert alone fails excludes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.simulation.closed_loop import ClosedLoop
from e2e_perception.simulation.driving import drive_with
from e2e_perception.simulation.expert import Expert
from e2e_perception.simulation.policies import rule_plan
from e2e_perception.simulation.scoring import Weights
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

PERIOD_NS = 200_000_000
USUAL = Weights()
_Driver = Callable[[TrafficWorld, EgoFootprint], Callable[[EgoState], Plan | None]]


def _expert(weights: Weights) -> _Driver:
    def make(world: TrafficWorld, footprint: EgoFootprint) -> Callable[[EgoState], Plan | None]:
        expert = Expert(world, footprint, weights=weights)
        return lambda ego: expert.decide(ego).plan

    return make


def _rules(world: TrafficWorld, footprint: EgoFootprint) -> Callable[[EgoState], Plan | None]:
    return lambda ego: rule_plan(world, ego)


REFERENCE_DRIVERS: dict[str, _Driver] = {
    "expert": _expert(USUAL),
    "assertive expert": _expert(replace(USUAL, progress=3.0 * USUAL.progress, comfort=0.3 * USUAL.comfort)),
    "timid expert": _expert(replace(USUAL, progress=0.4 * USUAL.progress, collision=2.0 * USUAL.collision)),
    "rules": _rules,
}


def solved_by(spec: ScenarioSpec) -> str | None:
    """The first reference driver that succeeds in a scenario.

    Args:
        spec: Which one.
    Returns:
        Its name; None: nobody does, and the scenario has to be excluded.
    """
    for name, make in REFERENCE_DRIVERS.items():
        loop = ClosedLoop(TrafficWorld(spec))
        world = loop.world
        assert isinstance(world, TrafficWorld)
        footprint = loop.robot.footprint
        if succeeded(drive_with(loop, make(world, footprint), PERIOD_NS, name)):
            return name
    return None


def succeeded(record: EpisodeRecord) -> bool:
    """Whether a drive reached its goal, on the road and without touching anybody; see docs/outcomes.md."""
    return bool(
        not record.contacts
        and not record.failure
        and not record.off_road_T.any()
        and record.progress_T.max() >= record.goal_s
    )
