"""Tracking: switches, losses and delays that are known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")

from perceived_frames import boxes, estimate, shifted, truth

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.frames import SE2
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.average_mota import average_figures
from e2e_perception.evaluation.clear_mot import ClearCounts
from e2e_perception.evaluation.state_latency import DELAYS_D
from e2e_perception.evaluation.tracking import TrackingMetrics

Pairs = list[tuple[FrameResult, TruthFrame]]


def measured(pairs: Pairs) -> TrackingMetrics:
    metrics = TrackingMetrics()
    for result, there in pairs:
        metrics.add(result, there)
    metrics.end_drive()
    return metrics


def tracked(there: Boxes, ids: list[list[int]]) -> Pairs:
    """Every object tracked exactly, under these identities frame by frame; -1: not at all."""
    pairs = []
    for k, row in enumerate(ids):
        seen = np.flatnonzero(np.array(row) >= 0)
        found = replace(there.select(seen), ids_N=np.array(row)[seen])
        pairs.append((estimate(found, frame=k), truth(there, frame=k)))
    return pairs


TWO = boxes([(1, 10.0, 0.0), (2, 20.0, 5.0)])


def test_perfect_tracks_score_perfectly() -> None:
    figures = measured(tracked(TWO, [[7, 9]] * 20)).figures()
    for name in ("mota", "idf1", "hota", "deta", "assa", "amota"):
        assert figures[f"tracking/{name}"] == pytest.approx(1.0), name
    for name in ("id_switches", "fragmentations", "position_error_m", "velocity_error_mps", "amotp_m"):
        assert figures[f"tracking/{name}"] == pytest.approx(0.0, abs=1e-6), name
    assert figures["tracking/delay_median_s"] == figures["tracking/never_found_share"] == 0.0
    assert np.isnan(figures["tracking/velocity_lag_s"])  # nobody manoeuvres


def test_one_switch_in_the_middle_by_hand() -> None:
    alone = boxes([(1, 10.0, 0.0)])
    figures = measured(tracked(alone, [[7]] * 10 + [[8]] * 10)).figures()
    assert figures["tracking/id_switches"] == 1
    assert figures["tracking/mota"] == pytest.approx(1.0 - 1 / 20)
    assert figures["tracking/idf1"] == pytest.approx(0.5)
    # Found all the time, but each half belongs to a track that covers half of it: A = 10 / 20.
    assert figures["tracking/deta"] == pytest.approx(1.0)
    assert figures["tracking/assa"] == pytest.approx(0.5)
    assert figures["tracking/hota"] == pytest.approx(np.sqrt(0.5))


def test_a_gap_is_a_fragmentation_and_misses_but_no_switch() -> None:
    figures = measured(tracked(TWO, [[7, 9]] * 5 + [[-1, 9]] * 5 + [[7, 9]] * 10)).figures()
    assert (figures["tracking/id_switches"], figures["tracking/fragmentations"]) == (0, 1)
    assert figures["tracking/mota"] == pytest.approx(1.0 - 5 / 40)
    assert figures["tracking/idf1"] == pytest.approx(2 * 35 / (40 + 35))


def test_hota_falls_with_distance_by_one_threshold_after_the_other() -> None:
    pairs = [(estimate(shifted(TWO, x=1.0), frame=k), truth(TWO, frame=k)) for k in range(10)]
    figures = measured(pairs).figures()
    # A metre is a similarity of a half: right at 10 of 19 thresholds, 0.05 … 0.5.
    assert figures["tracking/hota"] == pytest.approx(10 / 19)
    assert figures["tracking/mota"] == 1.0
    assert figures["tracking/position_error_m"] == pytest.approx(1.0, abs=1e-6)
    assert figures["tracking/amotp_m"] == pytest.approx(1.0, abs=1e-6)


def test_hidden_objects_and_tentative_tracks_count_neither_way() -> None:
    hidden = [(estimate(TWO, frame=k), truth(TWO, frame=k, visible=[True, False])) for k in range(5)]
    assert measured(hidden).figures()["tracking/mota"] == 1.0
    only_first = TWO.select(np.array([0]))
    unfound = [(estimate(only_first, frame=k), truth(TWO, frame=k, visible=[True, False])) for k in range(5)]
    assert measured(unfound).figures()["tracking/mota"] == 1.0
    tentative = [(estimate(TWO, frame=k, confirmed=False), truth(TWO, frame=k)) for k in range(5)]
    assert measured(tentative).figures()["tracking/mota"] == 0.0
    silent = [(replace(estimate(TWO, frame=k), tracks=None), truth(TWO, frame=k)) for k in range(5)]
    assert measured(silent).figures()["tracking/mota"] == 0.0


def test_a_track_between_two_objects_belongs_to_the_nearer_one() -> None:
    close = boxes([(1, 10.0, 0.0), (2, 11.5, 0.0)])
    for nearer, mota in ((10.2, 1.0), (11.3, 0.0)):
        found = boxes([(7, nearer, 0.0)])
        pairs = [(estimate(found, frame=k), truth(close, frame=k, visible=[True, False])) for k in range(5)]
        assert measured(pairs).figures()["tracking/mota"] == mota


def test_beyond_two_metres_a_track_is_false_and_the_object_missed() -> None:
    pairs = [(estimate(shifted(TWO, y=2.1), frame=k), truth(TWO, frame=k)) for k in range(15)]
    figures = measured(pairs).figures()
    assert figures["tracking/mota"] == pytest.approx(-1.0)
    assert figures["tracking/idf1"] == figures["tracking/hota"] == 0.0
    assert figures["tracking/never_found_share"] == 1.0
    assert np.isnan(figures["tracking/position_error_m"])


def test_amota_counts_switches() -> None:
    figures = measured(tracked(boxes([(1, 10.0, 0.0)]), [[7]] * 5 + [[8]] * 5)).figures()
    assert figures["tracking/amota"] == pytest.approx(1.0 - 1 / 10)


def test_amota_rewards_scores_that_tell_false_tracks_from_true_ones() -> None:
    found = boxes([(7, 10.0, 0.0), (9, 20.0, 5.0), (5, 50.0, -9.0)])

    def accuracy(scores: list[float]) -> float:
        strong = replace(found, scores_N=np.array(scores, np.float32))
        pairs = [(estimate(strong, frame=k), truth(TWO, frame=k)) for k in range(10)]
        return measured(pairs).figures()["tracking/amota"]

    assert accuracy([0.9, 0.9, 0.3]) == pytest.approx(1.0)
    # With a false track at every recall: 10 false for 20 hits.
    assert accuracy([0.9, 0.9, 0.95]) == pytest.approx(0.5)


def test_recalls_that_are_not_reached_count_as_worst() -> None:
    half = ClearCounts(objects=100.0, hits=55.0, misses=45.0, distance=11.0)
    figures = average_figures([half, half])
    reached = np.count_nonzero(np.linspace(0.1, 1.0, 40) <= 0.55)
    assert figures["amota"] == pytest.approx(reached / 40)
    assert figures["amotp_m"] == pytest.approx((0.2 * reached + 2.0 * (40 - reached)) / 40)
    assert np.isnan(average_figures([])["amota"])


def test_delay_runs_from_when_an_object_counts_until_a_confirmed_track_is_there() -> None:
    pairs: Pairs = []
    for k in range(30):
        visible = [True, k >= 5, k >= 25]
        there = boxes([(1, 10.0, 0.0), (2, 20.0, 5.0), (3, 30.0, -5.0)])
        found = np.array([i for i, since in ((0, 3), (1, 12)) if k >= since], np.int64)
        pairs.append((estimate(there.select(found), frame=k), truth(there, frame=k, visible=visible)))
    figures = measured(pairs).figures()
    # 0.3 s and 0.7 s; the third appears too late to be judged.
    assert figures["tracking/delay_median_s"] == pytest.approx(0.5)
    assert figures["tracking/delay_p90_s"] == pytest.approx(0.3 + 0.9 * 0.4)
    assert figures["tracking/never_found_share"] == 0.0


def test_objects_that_are_never_found_have_a_share_and_no_delay() -> None:
    figures = measured(tracked(TWO, [[7, -1]] * 20)).figures()
    assert figures["tracking/never_found_share"] == pytest.approx(0.5)
    assert figures["tracking/delay_median_s"] == 0.0


@pytest.mark.parametrize("lag", DELAYS_D.round(1).tolist())
def test_the_lag_of_a_sine_is_found_exactly_also_from_a_turning_robot(lag: float) -> None:
    def velocity(seconds: float) -> np.ndarray:
        return np.array([8.0 + 3.0 * np.sin(2.0 * seconds), 1.5 * np.cos(1.5 * seconds)])

    pairs: Pairs = []
    for k in range(60):
        base_from_odom = SE2(0.0, 0.0, 0.05 * k).inverse()
        there, found = (
            boxes([(1, 20.0, 0.0)], velocities_N2=base_from_odom.rotate(v[None]).astype(np.float32))
            for v in (velocity(0.1 * k), velocity(0.1 * k - lag))
        )
        pairs.append((estimate(found, frame=k), truth(there, frame=k, pose=base_from_odom.inverse())))
    assert measured(pairs).figures()["tracking/velocity_lag_s"] == pytest.approx(lag)


def test_order_of_objects_and_tracks_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    pairs, again = [], []
    for k in range(12):
        there = boxes([(i, 8.0 * i, rng.normal()) for i in range(5)])
        found = shifted(there.select(np.flatnonzero(rng.random(5) > 0.2)), x=float(rng.normal()))
        turn, other = rng.permutation(5), rng.permutation(len(found))
        pairs.append((estimate(found, frame=k), truth(there, frame=k)))
        again.append((estimate(found.select(other), frame=k), truth(there.select(turn), frame=k)))
    assert measured(again).figures() == pytest.approx(measured(pairs).figures(), nan_ok=True)


def test_drives_merge_into_exact_totals() -> None:
    alone = boxes([(1, 10.0, 0.0)])
    first, second = tracked(TWO, [[7, -1]] * 10), tracked(alone, [[7]] * 5 + [[8]] * 5)
    merged = measured(first)
    merged.merge(measured(second))
    together = TrackingMetrics()
    for drive in (first, second):
        for result, there in drive:
            together.add(result, there)
        together.end_drive()
    assert merged.figures() == pytest.approx(together.figures(), nan_ok=True)
    assert merged.figures()["tracking/mota"] == pytest.approx(1.0 - 11 / 30)
