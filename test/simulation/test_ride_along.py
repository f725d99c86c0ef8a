"""The stack as a passenger: frames beside their truth, the same twice, and truth that comes true."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from e2e_perception.core.config import StackConfig
from e2e_perception.core.frames import wrap_angle
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engines import InferenceEngine, create_engine
from e2e_perception.simulation.degradation import load_degradation
from e2e_perception.simulation.expert_drives import drive_expert
from e2e_perception.simulation.randomization import network_sized
from e2e_perception.simulation.recording import true_boxes
from e2e_perception.simulation.ride_along import ride_along
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.traffic_world import ScenarioSpec

SPEC = ScenarioSpec("highway+cut_in", 2_000_100)
FRAME_NS = 100_000_000

Pairs = list[tuple[FrameResult, TruthFrame]]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return drive_expert(SPEC)


@pytest.fixture(scope="module")
def stack() -> tuple[Bundle, InferenceEngine]:
    bundle = load_bundle("tiny")
    return bundle, create_engine(bundle, "onnxruntime", num_threads=1)


def rode(scenario: Scenario, stack: tuple[Bundle, InferenceEngine], degradation: str | None = None) -> Pairs:
    bundle, engine = stack
    rig = bundle.rig.with_sensors({c.name: network_sized(c, bundle.network) for c in bundle.rig.cameras})
    schedule = None if degradation is None else load_degradation(degradation)
    return list(ride_along(scenario, bundle.network, engine, rig, StackConfig(), degradation=schedule))


@pytest.fixture(scope="module")
def pairs(scenario: Scenario, stack: tuple[Bundle, InferenceEngine]) -> Pairs:
    return rode(scenario, stack)


def test_every_frame_has_the_truth_of_its_own_instant(scenario: Scenario, pairs: Pairs) -> None:
    stamps = [result.stamp_ns for result, _ in pairs]
    assert stamps == [there.stamp_ns for _, there in pairs]
    assert stamps == list(range(scenario.start_ns, scenario.end_ns + 1, FRAME_NS))
    gaps: list[float] = []
    for result, there in pairs[5:]:
        assert result.tracks is not None
        assert result.plan is not None
        # Tracks lie on what is seen, so that both must be in one frame.
        seen = there.boxes.centers_N3[there.visible_L, :2]
        confirmed = result.tracks.boxes.centers_N3[result.tracks.confirmed_N, :2]
        gaps += np.linalg.norm(confirmed[:, None] - seen[None], axis=-1).min(axis=1, initial=np.inf).tolist()
    assert len(gaps) > 100
    assert np.median(gaps) < 1.0


def test_futures_come_true(pairs: Pairs) -> None:
    truths = {there.stamp_ns: there for _, there in pairs}
    compared = 0
    for there in truths.values():
        for k, ahead_s in enumerate(there.times_S.tolist()):
            later = truths.get(there.stamp_ns + round(ahead_s * 1e9))
            if later is None:
                continue
            here_from_later = there.odom_from_base.inverse() @ later.odom_from_base
            moved = (here_from_later.x, here_from_later.y, here_from_later.yaw)
            np.testing.assert_allclose(there.ego_future_S3[k], moved, atol=1e-6)
            _, now, then = np.intersect1d(there.boxes.ids_N, later.boxes.ids_N, return_indices=True)
            places = here_from_later.apply(later.boxes.centers_N3[then, :2].astype(np.float64))
            np.testing.assert_allclose(there.futures_LS3[now, k, :2], places, atol=1e-3)
            turn = there.futures_LS3[now, k, 2] - later.boxes.yaws_N[then] - here_from_later.yaw
            np.testing.assert_allclose(wrap_angle(turn), 0.0, atol=1e-3)
            assert there.futures_valid_LS[now, k].all()
            compared += len(now)
    assert compared > 100
    assert all(there.ego_future_valid_S.all() for there in truths.values())  # the expert succeeds here


def test_objects_are_those_that_a_recording_labels_and_mostly_as_visible(
    scenario: Scenario, stack: tuple[Bundle, InferenceEngine], pairs: Pairs
) -> None:
    truths = {there.stamp_ns: there for _, there in pairs}
    agreed = []
    for stamp_ns, labels in true_boxes(scenario, stack[0].rig):
        there = truths[stamp_ns]
        np.testing.assert_array_equal(there.boxes.ids_N, labels.ids_N)
        np.testing.assert_array_equal(there.boxes.centers_N3, labels.centers_N3)
        agreed.append(there.visible_L == (labels.scores_N > 0.0))
    # Returns are drawn anew, and pictures of the network's size show less of the sky.
    assert np.concatenate(agreed).mean() > 0.95


def test_the_same_drive_gives_the_same_twice(
    scenario: Scenario, stack: tuple[Bundle, InferenceEngine], pairs: Pairs
) -> None:
    again = rode(scenario, stack)
    assert len(again) == len(pairs)
    for (result, there), (other, other_there) in zip(pairs, again, strict=True):
        assert result.tracks is not None and other.tracks is not None
        np.testing.assert_array_equal(result.tracks.boxes.centers_N3, other.tracks.boxes.centers_N3)
        np.testing.assert_array_equal(result.tracks.boxes.ids_N, other.tracks.boxes.ids_N)
        assert result.plan is not None and other.plan is not None
        np.testing.assert_array_equal(result.plan.points_P2, other.plan.points_P2)
        np.testing.assert_array_equal(there.visible_L, other_there.visible_L)


def test_a_stack_without_sensors_says_so_and_labels_stay_the_same(
    scenario: Scenario, stack: tuple[Bundle, InferenceEngine], pairs: Pairs
) -> None:
    silent = rode(scenario, stack, "all_sensors_die")
    without = [result for result, _ in silent if result.tracks is None]
    assert without, "silence is reported"
    assert all(result.plan is not None and result.plan.candidate < 0 for result in without)
    truths = {there.stamp_ns: there for _, there in pairs}
    shared = [there for _, there in silent if there.stamp_ns in truths]
    for there in shared:
        np.testing.assert_array_equal(there.visible_L, truths[there.stamp_ns].visible_L)
