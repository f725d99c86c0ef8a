"""What the expert drove, kept as a `Scenario` to record clips and bags of; and what its alternatives cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.proposals import manoeuvres
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.simulation.closed_loop import ClosedLoop, Robot
from e2e_perception.simulation.disturbance import Disturbance
from e2e_perception.simulation.driving import drive_with
from e2e_perception.simulation.policies import make_policy
from e2e_perception.simulation.scenario import LABEL_HORIZON_S, Scenario
from e2e_perception.simulation.scoring import TERMS, Others, Weights, cost_table
from e2e_perception.simulation.solvability import succeeded
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld
from e2e_perception.simulation.world import drivable_area

PRICING_STEP = 0.25  # [s]
FAILED_HORIZON_S = 0.3  # [s] after the last frame of a failed drive, so that every sensor can measure


def drive_expert(
    spec: ScenarioSpec, *, policy: str = "expert", robot: Robot | None = None, disturbed: bool = False
) -> Scenario:
    """Let the expert drive a scenario and keep the drive.

    Args:
        spec: Which one.
        policy: Somebody else to drive, one of `policies.SIMPLE_POLICIES`.
        robot: Outline and actuators.
        disturbed: Whether it is pushed off its plan now and then, see `Disturbance`; those stretches are no
            example to imitate.
    Returns:
        The drive. Its last `LABEL_HORIZON_S` are for labels alone, unless it failed. A drive that ended in a
        contact, off the road or short of the goal is kept too, and marked `collided`: it is no example to
        imitate.
    Raises:
        InputError: If it ended before there was anything to record.
    """
    world = TrafficWorld(spec)
    loop = ClosedLoop(world, robot=robot)
    footprint = loop.robot.footprint
    driver = make_policy(policy, world, footprint)
    push = Disturbance(world.start_ns, world.end_ns, spec.seed) if disturbed else None

    def plan(ego: EgoState) -> Plan | None:
        found = driver.plan(ego)
        return found if found is None or push is None else push.altered(found)

    record = drive_with(loop, plan, driver.period_ns, policy)
    failed = not succeeded(record)
    # A failed drive is no example, so its last seconds need no future to imitate.
    spare_s = FAILED_HORIZON_S if failed else LABEL_HORIZON_S
    return scenario_of(record, world, spare_s=spare_s, failed=failed, push=push)


def scenario_of(
    record: EpisodeRecord,
    world: TrafficWorld,
    *,
    spare_s: float,
    failed: bool,
    push: Disturbance | None = None,
) -> Scenario:
    """A drive as a `Scenario`, to record clips and bags of.

    Args:
        record: What happened.
        world: In which.
        spare_s: Left at the end for labels alone [s].
        failed: Whether the drive is no example to imitate.
        push: What threw the driver off.
    Raises:
        InputError: If it ended before there was anything to record.
    """
    spec, num = world.spec, len(record.ego_T5)
    last_s = 0.1 * (num - 1) - spare_s
    if last_s < 1.0:
        raise InputError(
            f"scenario {spec.name} was over after {0.1 * (num - 1):.1f} s ({record.policy}: "
            f"{record.failure or 'contact'}), which is too short to record"
        )
    return Scenario(
        kind=spec.family,
        seed=spec.seed,
        start_ns=world.start_ns,
        end_ns=world.start_ns + round(last_s * 10) * 100_000_000,
        route=world.route,
        speed_limit=world.speed_limit,
        conditions=world.cast.conditions,
        road=world.cast.road,
        ego_T5=record.ego_T5,
        agents_TN3=record.agents_TN3,
        velocities_TN2=record.velocities_TN2,
        sizes_N3=record.sizes_N3,
        class_ids_N=world.cast.class_ids_N,
        parts=world.cast.parts,
        clutter_C12=world.cast.clutter_C12,
        collided=failed,
        swerves=() if push is None else tuple(push.pushes),
        difficulty=spec.difficulty,
        present_TN=record.present_TN,
        obstacles_C=world.cast.obstacles_C,
    )


class ProposalPricer:
    """Prices the network's own proposals in a drive, against what everybody really did.

    A drive that brings prices of its own keeps them: after a contact nobody does what they would have done.
    """

    def __init__(
        self,
        scenario: Scenario,
        network: NetworkConfig,
        *,
        footprint: EgoFootprint | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Prepare.

        Args:
            scenario: The drive.
            network: Whose vocabulary.
            footprint: The robot; default: that of the shipped rigs.
            weights: Of the terms; default: the expert's.
        """
        self.scenario, self.network = scenario, network
        self.footprint = footprint or Robot().footprint
        self.weights = weights or Weights()
        self._area = drivable_area(scenario.road)

    def costs(self, stamp_ns: int) -> NDArray[np.float32]:
        """(C, K) weighted costs, proposals in the network's order, columns `scoring.TERMS`.

        Args:
            stamp_ns: An instant of the scenario [ns]; less than a horizon before its last one nothing is
                known, and all costs are NaN.
        Raises:
            InputError: If the scenario does not cover the instant.
        """
        scenario, network = self.scenario, self.network
        if scenario.prices:
            unknown = np.full((network.num_plans, len(TERMS)), np.nan, np.float32)
            return scenario.prices.get(stamp_ns, unknown)
        if stamp_ns + round(network.horizon_steps * network.step_s * 1e9) > scenario.last_ns:
            return np.full((network.num_plans, len(TERMS)), np.nan, np.float32)
        ego = scenario.ego_at(stamp_ns)
        pose = ego.odom_from_base.planar_part()
        s, offset = scenario.route.project((pose.x, pose.y))
        _, tangent = scenario.route.at(s)
        horizon = network.horizon_steps * network.step_s
        times = np.arange(PRICING_STEP, horizon + 1e-9, PRICING_STEP, dtype=np.float64)
        sd = manoeuvres(
            network.plan_accelerations,
            network.plan_offsets,
            times,
            horizon=horizon,
            speed=ego.speed,
            lateral_offset=offset,
            heading_error=float(wrap_angle(pose.yaw - np.arctan2(tangent[1], tangent[0]))),
        )
        sizes = scenario.sizes_N3[:, :2]
        boxes = np.empty((len(times), len(sizes), 5))
        for k, seconds in enumerate(times.tolist()):
            later_ns = stamp_ns + round(seconds * 1e9)
            boxes[k, :, :3], _ = scenario.agents_at(later_ns)
            boxes[k, ~scenario.present_at(later_ns), :2] = 1e6
            boxes[k, :, 3:] = sizes
        now, _ = scenario.agents_at(stamp_ns)
        local = pose.inverse().apply(now[:, :2])
        aligned = np.abs(wrap_angle(now[:, 2] - pose.yaw)) < 0.5
        behind = (local[:, 0] < 0.0) & (np.abs(local[:, 1]) < 2.0) & aligned
        table = cost_table(
            sd,
            route=scenario.route,
            start_s=s,
            speed=ego.speed,
            speed_limit=scenario.speed_limit,
            others=Others(PRICING_STEP, boxes, scenario.obstacles_O5, behind),
            footprint=self.footprint,
            area=self._area,
        )
        return (table * self.weights.array_K).astype(np.float32)
