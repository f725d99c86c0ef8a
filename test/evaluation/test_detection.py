"""Detection: figures that can be counted by hand, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perceived_frames import boxes, estimate, shifted, truth

from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.detection import (
    ERRORS,
    RECALLS_R,
    DetectionMetrics,
    average_precision,
    box_errors,
    greedy,
)

THREE = boxes([(1, 10.0, 0.0), (2, 20.0, 5.0), (3, 30.0, -5.0)])


def measured(*pairs: tuple[FrameResult, TruthFrame]) -> dict[str, float]:
    metrics = DetectionMetrics()
    for result, there in pairs:
        metrics.add(result, there)
    return metrics.figures()


def test_perfect_detections_score_perfectly() -> None:
    figures = measured((estimate(THREE), truth(THREE)))
    assert figures["detection/map"] == pytest.approx(1.0)
    assert figures["detection/score"] == pytest.approx(1.0)
    assert [figures[f"detection/{name}"] for name in ERRORS] == pytest.approx([0.0] * 4, abs=1e-6)
    assert np.isnan(figures["detection/pedestrian/ap"])


def test_a_shift_of_one_and_a_half_metres_passes_at_two_and_fails_at_one() -> None:
    figures = measured((estimate(shifted(THREE, x=1.5)), truth(THREE)))
    names = [f"detection/ap_at_{reach}m" for reach in ("0.5", "1", "2", "4")]
    assert [figures[name] for name in names] == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert figures["detection/map"] == pytest.approx(0.5)
    assert figures["detection/ate_m"] == pytest.approx(1.5, abs=1e-6)
    # The error counts as 1 in the score, no more: (5 * 0.5 + 0 + 1 + 1 + 1) / 9.
    assert figures["detection/score"] == pytest.approx(5.5 / 9.0)


def test_average_precision_of_a_strong_false_detection_by_hand() -> None:
    found = boxes([(1, 10.0, 0.0), (2, 50.0, 0.0)], scores_N=[0.5, 0.9])
    figures = measured((estimate(found), truth(boxes([(1, 10.0, 0.0)]))))
    # Precision is 0 at recall 0, then 1/2 at recall 1; before the first hit numpy holds the first value, 0.
    recall, precision = np.array([0.0, 1.0]), np.array([0.0, 0.5])
    expected = np.maximum(np.interp(RECALLS_R, recall, precision)[11:] - 0.1, 0.0).mean() / 0.9
    assert figures["detection/car/ap"] == pytest.approx(expected)


def test_recall_and_precision_up_to_a_tenth_count_nothing() -> None:
    assert average_precision(np.where(RECALLS_R <= 0.1, 1.0, 0.1)) == 0.0
    assert average_precision(np.ones(101)) == pytest.approx(1.0)
    assert average_precision(np.full(101, 0.55)) == pytest.approx(0.5)


def test_who_is_surer_chooses_first_and_takes_the_nearest_that_is_free() -> None:
    distance_NL = np.array([[0.4, 0.3], [1.0, 0.2], [0.1, 0.1]])
    assert greedy(distance_NL, 2.0).tolist() == [1, 0, -1]
    assert greedy(distance_NL, 0.5).tolist() == [1, -1, 0]
    assert greedy(np.zeros((2, 0)), 2.0).tolist() == [-1, -1]


def test_errors_of_a_box_are_those_of_its_definition() -> None:
    there = boxes([(1, 10.0, 0.0)])
    found = replace(
        shifted(there, x=0.6, y=0.8),
        sizes_N3=there.sizes_N3 * np.float32(0.5),
        yaws_N=np.array([-3.0], np.float32),
        velocities_N2=np.array([[3.0, 4.0]], np.float32),
    )
    turned = replace(there, yaws_N=np.array([3.0], np.float32))
    expected = [1.0, 1.0 - 1.0 / 8.0, 2.0 * np.pi - 6.0, 5.0]
    assert box_errors(found, turned)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_wrong_class_is_a_miss_and_a_false_detection() -> None:
    figures = measured((estimate(replace(THREE, class_ids_N=np.array([0, 0, 1]))), truth(THREE)))
    assert figures["detection/map"] == figures["detection/car/ap"] < 0.7


@pytest.mark.parametrize("place", [(20.0, 5.0), (80.0, 0.0)], ids=["hidden", "outside"])
def test_what_no_sensor_saw_is_neither_right_nor_wrong(place: tuple[float, float]) -> None:
    there = boxes([(1, 10.0, 0.0), (2, *place)])
    visible = [True, place[0] > 70.0]
    alone = measured((estimate(boxes([(1, 10.0, 0.0)])), truth(there, visible=visible)))
    beside = boxes([(1, 10.0, 0.0), (2, place[0] + 0.7, place[1])])  # too far off for half a metre
    both = measured((estimate(beside), truth(there, visible=visible)))
    assert alone["detection/map"] == both["detection/map"] == pytest.approx(1.0)
    # A false detection elsewhere does count.
    wrong = measured((estimate(boxes([(1, 10.0, 0.0), (2, 40.0, 9.0)])), truth(there, visible=visible)))
    assert wrong["detection/map"] < 0.9


def test_a_frame_without_tracks_found_nothing() -> None:
    figures = measured((replace(estimate(THREE), tracks=None), truth(THREE)))
    assert figures["detection/map"] == figures["detection/score"] == 0.0
    assert np.isnan(figures["detection/ate_m"])
    assert np.isnan(measured()["detection/score"])


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)), st.integers(0, 99))
def test_neither_the_order_of_tracks_nor_that_of_frames_matters(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(k, *rng.uniform(0.0, 20.0, 2)) for k in range(6)]
    there = boxes(rows)
    scores = rng.choice([0.3, 0.6, 0.9], 6)
    found = replace(shifted(there, x=float(rng.normal())), scores_N=scores.astype(np.float32))
    pairs = [(estimate(found), truth(there)), (estimate(shifted(found, y=0.5)), truth(there))]
    again = [(estimate(found.select(np.array(order))), truth(there.select(np.array(order)))), pairs[1]]
    expected = measured(*pairs)
    assert measured(*again[::-1]) == pytest.approx(expected, nan_ok=True)


def test_two_halves_merge_into_the_whole() -> None:
    pairs = [(estimate(shifted(THREE, x=d)), truth(THREE)) for d in (0.2, 0.8, 1.7)]
    first, second = DetectionMetrics(), DetectionMetrics()
    first.add(*pairs[0])
    second.add(*pairs[1])
    second.add(*pairs[2])
    first.merge(second)
    assert first.figures() == pytest.approx(measured(*pairs), nan_ok=True)
    assert set(first.curves()) == {"car 2 m"}
