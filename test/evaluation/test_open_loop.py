"""Open-loop figures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.evaluation.open_loop import OpenLoopMetrics, average_precision, footprint_overlap

TIMES = 0.5 * np.arange(1, 9)
EGO = {"length": 4.6, "width": 1.9, "center_x": 1.4}


def boxes(*centres: tuple[float, float]) -> np.ndarray:
    rows = np.zeros((len(centres), 10), np.float32)
    rows[:, :2] = np.array(centres).reshape(-1, 2)
    rows[:, 3:6] = np.log((4.0, 2.0, 1.6))
    rows[:, 7] = 1.0
    return rows


def test_two_hits_one_false_alarm_one_miss() -> None:
    metrics = OpenLoopMetrics(TIMES)
    scores = np.array([[0.9, 0], [0.8, 0], [0.7, 0]])
    matches = metrics.add_detections(
        scores,
        boxes((10, 0), (20.5, 0), (50, 0)),
        boxes((10, 0), (20, 0), (30, 0)),
        np.array([0, 1, 0]),
        np.array([True, True, True]),
        np.array([False, False, False]),
    )
    assert matches.tolist() == [0, 1, -1]
    summary = metrics.summary()
    assert summary["precision"] == pytest.approx(2 / 3)
    assert summary["recall"] == pytest.approx(2 / 3)
    assert summary["f1"] == pytest.approx(2 / 3)
    assert summary["position_error_m"] == pytest.approx(0.25)
    assert summary["class_accuracy"] == pytest.approx(0.5)
    assert summary["average_precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("yaw", "truth", "error"), [(3.0, -3.0, 2 * np.pi - 6.0), (0.5, 0.2, 0.3), (0.0, np.pi, np.pi)]
)
def test_heading_errors_are_the_short_way_round_whatever_a_headings_length(
    yaw: float, truth: float, error: float
) -> None:
    metrics = OpenLoopMetrics(TIMES)
    found, label = boxes((10, 0)), boxes((10, 0))
    found[0, 6:8] = 0.4 * np.sin(yaw), 0.4 * np.cos(yaw)
    label[0, 6:8] = np.sin(truth), np.cos(truth)
    metrics.add_detections(
        np.array([[0.9]]), found, label, np.array([0]), np.array([True]), np.array([False])
    )
    assert metrics.summary()["heading_error_rad"] == pytest.approx(error, abs=1e-5)


def test_a_detection_of_an_object_no_sensor_has_seen_is_neither_right_nor_wrong() -> None:
    metrics = OpenLoopMetrics(TIMES)
    metrics.add_detections(
        np.array([[0.9], [0.9]]),
        boxes((10, 0), (40, 0)),
        boxes((10, 0), (40, 0)),
        np.array([0, 0]),
        np.array([True, False]),
        np.array([False, True]),
    )
    assert metrics.summary()["precision"] == 1.0
    assert metrics.summary()["recall"] == 1.0


def test_two_detections_of_one_object_count_once() -> None:
    metrics = OpenLoopMetrics(TIMES)
    metrics.add_detections(
        np.array([[0.9], [0.6]]),
        boxes((10, 0), (10.5, 0)),
        boxes((10, 0)),
        np.array([0]),
        np.array([True]),
        np.array([False]),
    )
    assert metrics.summary()["precision"] == 0.5


def test_average_precision_of_a_known_ranking() -> None:
    # hit, miss, hit over two labels: 0.5 * 1 + 0.5 * 2/3
    assert average_precision([(0.9, True), (0.8, False), (0.7, True)], 2) == pytest.approx(0.5 + 1 / 3)
    assert average_precision([], 3) == 0.0
    assert average_precision([(0.9, True)], 0) == 0.0


def test_association_counts_new_as_a_choice() -> None:
    metrics = OpenLoopMetrics(TIMES)
    affinity = np.log(np.full((3, 4), 0.05))
    affinity[0, 0] = affinity[2, 1] = affinity[0, 2] = np.log(0.9)  # track 0, new, track 0 (wrong)
    metrics.add_association(affinity, np.array([7, 8, 9]), np.array([7, 9]))
    assert metrics.summary()["association_accuracy"] == pytest.approx(2 / 3)


def test_futures_take_the_best_mode_and_skip_cut_off_truth() -> None:
    metrics = OpenLoopMetrics(TIMES)
    truth = np.stack([TIMES * 10, np.zeros(8)], 1)
    futures = np.stack([truth + np.array([0.0, 5.0]), truth + np.array([0.0, 1.0])])
    metrics.add_futures(futures, truth, np.ones(8, bool))
    metrics.add_futures(futures, truth, np.array([True] * 7 + [False]))
    assert metrics.summary()["min_ade_m"] == pytest.approx(1.0)
    assert metrics.summary()["miss_rate"] == 0.0


def test_plan_error_is_taken_at_the_horizon() -> None:
    metrics = OpenLoopMetrics(TIMES)
    truth = np.stack([TIMES * 10, np.zeros(8)], 1)
    plan = truth + np.stack([TIMES, np.zeros(8)], 1)
    metrics.add_plan("plan", plan, truth, np.ones(8, bool), np.zeros(8, bool))
    summary = metrics.summary()
    assert [summary[f"plan_l2_{k}s_m"] for k in (1, 2, 3)] == pytest.approx([1.0, 2.0, 3.0])
    assert summary["plan_collision_rate"] == 0.0


@pytest.mark.parametrize(
    ("x", "y", "yaw", "expected"),
    [
        (10.0, 0.0, 0.0, True),
        (10.0, 2.1, 0.0, False),  # side by side: half widths are 0.95 + 1.0
        (10.0, 1.9, 0.0, True),
        (5.5, 0.0, 0.0, False),  # nose at 5.5 + 3.7 = 9.2, tail of the other at 9.4
        (11.4, -4.6, np.pi / 2, True),  # across the lane, nose at -4.6 + 3.7 = -0.9, its side at -1.0
    ],
)
def test_footprints_overlap_exactly_when_they_touch(x: float, y: float, yaw: float, expected: bool) -> None:
    other = boxes((11.4, 0.0))
    got = footprint_overlap(
        np.array([[x, y]]), np.array([yaw]), EGO, other, other[:, None, :2], np.ones((1, 1), bool)
    )
    assert got.tolist() == [expected]


def test_an_object_that_is_gone_cannot_be_hit() -> None:
    other = boxes((11.4, 0.0))
    got = footprint_overlap(
        np.array([[10.0, 0.0]]), np.zeros(1), EGO, other, other[:, None, :2], np.zeros((1, 1), bool)
    )
    assert not got.any()
