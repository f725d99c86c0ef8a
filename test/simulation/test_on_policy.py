"""Drives off the beaten path: pushes, and prices in states that the expert would not have got into."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.core.config import StackConfig
from e2e_perception.core.network_config import SIZES
from e2e_perception.core.rig import find_rig
from e2e_perception.core.trajectories import Plan
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engines import create_engine
from e2e_perception.simulation.disturbance import Disturbance
from e2e_perception.simulation.expert_drives import ProposalPricer, drive_expert
from e2e_perception.simulation.on_policy import PRICED_EVERY_NS, drive_on_policy
from e2e_perception.simulation.randomization import network_sized
from e2e_perception.simulation.traffic_world import ScenarioSpec

SECOND = 1_000_000_000
SPEC = ScenarioSpec("two_way+cyclist", 1121010, 0.4)


def straight(stamp_ns: int) -> Plan:
    times = SIZES["tiny"].times_T
    zeros = np.zeros(len(times))
    points = np.stack([10.0 * times, zeros], axis=-1)
    return Plan(stamp_ns, times, points, zeros, zeros + 10.0, zeros, candidate=0, costs={})


def test_pushes_are_a_function_of_the_seed_apart_from_each_other_and_over_in_time() -> None:
    first, again, other = (Disturbance(0, 30 * SECOND, seed) for seed in (3, 3, 4))
    assert first.pushes == again.pushes != other.pushes
    assert len(first.pushes) >= 4
    for (start, end), (following, _) in zip(first.pushes, first.pushes[1:], strict=False):
        assert 0.8 <= (end - start) / SECOND <= 1.5
        assert following - end >= 2.5 * SECOND


def test_a_push_moves_the_plan_aside_and_leaves_it_alone_otherwise() -> None:
    disturbance = Disturbance(0, 30 * SECOND, 3)
    start, end = disturbance.pushes[0]
    for stamp in (start - 1, end):
        assert disturbance.altered(straight(stamp)).points_P2 is not None
        np.testing.assert_array_equal(
            disturbance.altered(straight(stamp)).points_P2, straight(stamp).points_P2
        )
    pushed = disturbance.altered(straight(start))
    aside = np.abs(pushed.points_P2[:, 1])
    assert 0.5 <= aside[3] <= 1.4  # after two seconds
    assert aside[0] == pytest.approx(aside[3] / 4.0)


def test_a_disturbed_expert_is_no_example_while_it_is_pushed_and_comes_back() -> None:
    quiet = ScenarioSpec("two_way", 1113006, 0.4)  # nobody to swerve for
    calm, pushed = drive_expert(quiet), drive_expert(quiet, disturbed=True)
    assert not pushed.collided
    assert calm.swerves == ()

    def largest_offset(drive: object) -> float:
        return max(abs(drive.route.project(point)[1]) for point in drive.ego_T5[:, :2])  # type: ignore[attr-defined]

    assert largest_offset(pushed) > largest_offset(calm) + 0.2
    start, end = pushed.swerves[0]
    assert not pushed.is_example(start, end)


@pytest.mark.slow
def test_a_network_that_drives_gets_prices_for_the_states_it_reached_and_no_example() -> None:
    bundle = load_bundle("tiny")
    rig = find_rig("tiny")
    rig = rig.with_sensors({c.name: network_sized(c, bundle.network) for c in rig.cameras})
    engine = create_engine(bundle, "onnxruntime", num_threads=1)
    drive = drive_on_policy(SPEC, bundle.network, engine, rig, StackConfig(), disturbed=True)
    assert drive.collided, "nothing of it is to be imitated"
    assert not drive.is_example(drive.start_ns, drive.start_ns + SECOND)
    assert set(np.diff(sorted(drive.prices))) == {PRICED_EVERY_NS}
    pricer = ProposalPricer(drive, bundle.network)
    known = pricer.costs(min(drive.prices))
    assert known.shape == (bundle.network.num_plans, 5)
    assert np.isfinite(known).all()
    assert np.isnan(pricer.costs(min(drive.prices) + PRICED_EVERY_NS // 2)).all()
    # At the start, before anybody has done anything, both ways of pricing look at the same world.
    truth = ProposalPricer(drive_expert(SPEC), bundle.network).costs(drive.start_ns + PRICED_EVERY_NS)
    first = drive.prices[drive.start_ns + PRICED_EVERY_NS]
    # But for corners that are just on the road in one and just off it in the other.
    assert (np.abs(first[:, 1:] - truth[:, 1:]) < 0.3).mean() > 0.98
    assert first.sum(1).argmin() // 7 in range(truth.sum(1).argmin() // 7 - 2, truth.sum(1).argmin() // 7 + 3)
