"""Plans against what was driven: both conventions by hand, and collisions that are there or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from perceived_frames import TIMES_S, boxes, estimate, plan_along, truth

from e2e_perception.core.results import FrameResult
from e2e_perception.core.trajectories import Plan
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.planning_open_loop import PlanningMetrics, steady_poses

NOBODY = boxes([])
STEPS = len(TIMES_S)


def straight(speed: float) -> np.ndarray:
    return np.stack([speed * TIMES_S, np.zeros(STEPS), np.zeros(STEPS)], axis=1)


def measured(plan: Plan | None, there: TruthFrame) -> dict[str, float]:
    metrics = PlanningMetrics()
    metrics.add(estimate(NOBODY, plan=plan), there)
    return metrics.figures()


def test_what_was_driven_is_perfect() -> None:
    there = truth(NOBODY, speed=10.0, ego_future_S3=straight(10.0))
    figures = measured(plan_along(straight(10.0)), there)
    for name, value in figures.items():
        assert value == pytest.approx(0.0, abs=1e-9), name


def test_at_a_horizon_and_up_to_it_differ_by_hand() -> None:
    there = truth(NOBODY, speed=8.0, ego_future_S3=straight(10.0))
    figures = measured(plan_along(straight(9.0)), there)
    # A metre per second too slow: 0.5, 1.0, … 3.0 m at the steps.
    assert figures["planning/l2_at_1s_m"] == pytest.approx(1.0)
    assert figures["planning/l2_upto_1s_m"] == pytest.approx(0.75)
    assert figures["planning/l2_at_3s_m"] == pytest.approx(3.0)
    assert figures["planning/l2_upto_3s_m"] == pytest.approx(1.75)
    assert figures["planning/steady_l2_at_3s_m"] == pytest.approx(6.0)


def test_collisions_are_counted_in_both_conventions_with_a_hidden_car() -> None:
    # The robot's nose is 3.7 m ahead of base_link: on 10 m/s it reaches 18.0 m between 1 and 1.5 s.
    car = boxes([(1, 20.0, 0.0)])
    there = truth(car, visible=[False], speed=0.0)
    figures = measured(plan_along(straight(10.0)), there)
    assert figures["planning/collision_at_1s"] == 0.0
    assert figures["planning/collision_at_2s"] == 1.0
    assert figures["planning/collision_upto_2s"] == pytest.approx(2 / 4)
    assert figures["planning/collision_at_3s"] == 0.0  # beyond it
    assert figures["planning/collision_upto_3s"] == pytest.approx(2 / 6)
    assert figures["planning/steady_collision_upto_3s"] == 0.0


def test_an_object_is_where_it_will_be_and_headed_as_it_will_be() -> None:
    car = boxes([(1, 20.0, 3.0)])
    there = truth(car)
    assert measured(plan_along(straight(10.0)), there)["planning/collision_upto_3s"] == 0.0
    across = there.futures_LS3.copy()
    across[..., 2] = np.pi / 2.0  # 4 m long, so that it reaches down to y = 1; the robot up to 0.95
    across[..., 1] -= 0.1
    turned = replace(there, futures_LS3=across)
    assert measured(plan_along(straight(10.0)), turned)["planning/collision_upto_3s"] > 0.0
    gone = replace(turned, futures_valid_LS=np.zeros((1, STEPS), np.bool_))
    assert measured(plan_along(straight(10.0)), gone)["planning/collision_upto_3s"] == 0.0


def test_a_step_at_which_the_driven_path_collides_itself_is_not_held_against_a_plan() -> None:
    there = truth(boxes([(1, 20.0, 0.0)]), ego_future_S3=straight(10.0))
    assert measured(plan_along(straight(10.0)), there)["planning/collision_upto_3s"] == 0.0


def test_stops_count_and_have_a_share_and_no_plan_has_one_too() -> None:
    there = truth(NOBODY, ego_future_S3=straight(2.0))
    figures = measured(plan_along(straight(0.0), candidate=-1), there)
    assert figures["planning/stop_share"] == 1.0
    assert figures["planning/l2_at_2s_m"] == pytest.approx(4.0)
    nothing = measured(None, there)
    assert nothing["planning/no_plan_share"] == 1.0
    assert np.isnan(nothing["planning/l2_at_1s_m"])
    assert np.isnan(nothing["planning/stop_share"])


def test_where_the_drive_is_no_example_nothing_is_compared() -> None:
    valid = TIMES_S <= 2.0
    there = replace(truth(NOBODY, ego_future_S3=straight(2.0)), ego_future_valid_S=valid)
    figures = measured(plan_along(straight(1.0)), there)
    assert figures["planning/l2_at_2s_m"] == pytest.approx(2.0)
    assert np.isnan(figures["planning/l2_at_3s_m"])
    assert np.isnan(figures["planning/collision_upto_3s"])


def test_a_steady_robot_drives_an_arc() -> None:
    poses = steady_poses(truth(NOBODY, speed=5.0, yaw_rate=0.4))
    radius = 5.0 / 0.4
    np.testing.assert_allclose(poses[:, 0], radius * np.sin(0.4 * TIMES_S))
    np.testing.assert_allclose(poses[:, 1], radius * (1.0 - np.cos(0.4 * TIMES_S)))
    np.testing.assert_allclose(poses[:, 2], 0.4 * TIMES_S)


def test_frames_add_up_in_any_order() -> None:
    there = truth(NOBODY, ego_future_S3=straight(4.0))
    results: list[FrameResult] = [estimate(NOBODY, plan=plan_along(straight(v))) for v in (1.0, 3.0)]
    first, second = PlanningMetrics(), PlanningMetrics()
    first.add(results[0], there)
    second.add(results[1], there)
    second.merge(first)
    assert second.figures()["planning/l2_at_1s_m"] == pytest.approx((3.0 + 1.0) / 2)
