"""Tracks against labels, plans against what was driven: cases whose figures can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.evaluation.on_bag import plan_figures, tracking_figures

HEALTH = Health(SafetyState.NOMINAL, (), (), "", "", 1, 1, {}, {})
TIMES = np.arange(1, 9) * 0.5
SECOND = 1_000_000_000


def boxes(*rows: tuple[int, float, float], scores: float = 1.0) -> Boxes:
    """(identity, x, y) of cars at 5 m/s."""
    n = len(rows)
    table = np.array(rows, np.float64).reshape(n, 3)
    return Boxes(
        centers_N3=np.column_stack([table[:, 1:], np.full(n, 0.8)]).astype(np.float32),
        sizes_N3=np.tile(np.array([4.5, 1.8, 1.6], np.float32), (n, 1)),
        yaws_N=np.zeros(n, np.float32),
        velocities_N2=np.tile(np.array([5.0, 0.0], np.float32), (n, 1)),
        class_ids_N=np.zeros(n, np.int64),
        scores_N=np.full(n, scores, np.float32),
        ids_N=table[:, 0].astype(np.int64),
    )


def frame(stamp_ns: int, tracked: Boxes, plan: Plan | None = None, confirmed: bool = True) -> FrameResult:
    n = len(tracked)
    tracks = Tracks(
        stamp_ns=stamp_ns,
        boxes=tracked,
        ages_N=np.ones(n, np.int64),
        coasted_N=np.zeros(n, np.int64),
        confirmed_N=np.full(n, confirmed),
        position_std_N2=np.ones((n, 2), np.float32),
        futures_NMT2=np.zeros((n, 1, 8, 2), np.float32),
        futures_std_NMT2=np.ones((n, 1, 8, 2), np.float32),
        mode_probabilities_NM=np.ones((n, 1), np.float32),
        times_T=TIMES,
    )
    return FrameResult(stamp_ns, tracks, plan, None, HEALTH)


def test_misses_false_tracks_and_switches_are_counted() -> None:
    pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")
    labels = {t: boxes((1, 10.0, 0.0), (2, 20.0, 3.0)) for t in range(4)}
    results = [
        frame(0, boxes((7, 10.3, 0.0), (8, 20.0, 3.4))),
        frame(1, boxes((7, 10.0, 0.0))),  # one missed
        frame(2, boxes((7, 10.0, 0.0), (9, 20.0, 3.0))),  # a switch
        frame(3, boxes((7, 10.0, 0.0), (9, 20.0, 3.0), (5, 40.0, 0.0))),  # a false one
    ]
    figures = tracking_figures(results, labels)
    assert figures is not None
    assert (figures["misses"], figures["false_tracks"], figures["id_switches"]) == (1, 1, 1)
    assert figures["labels"] == 8
    assert figures["mota"] == pytest.approx(1 - 3 / 8)
    assert figures["position_error_m"] == pytest.approx((0.3 + 0.4) / 7, abs=1e-3)
    assert figures["velocity_error_mps"] == 0.0


def test_hidden_objects_and_tentative_tracks_count_neither_way() -> None:
    pytest.importorskip("motmetrics", reason="motmetrics is not installed: `pip install .[training]`")
    hidden = boxes((2, 20.0, 3.0), scores=0.0)
    figures = tracking_figures([frame(0, boxes((8, 20.0, 3.2)))], {0: hidden})
    assert figures is not None
    assert (figures["labels"], figures["false_tracks"]) == (0, 0)
    figures = tracking_figures([frame(0, boxes((8, 20.0, 3.0)), confirmed=False)], {0: boxes((2, 20.0, 3.0))})
    assert figures is not None
    assert (figures["misses"], figures["false_tracks"]) == (1, 0)
    far = tracking_figures([frame(0, boxes())], {0: boxes((2, 85.0, 0.0))})
    assert far is not None
    assert far["labels"] == 0


def test_nothing_to_compare_gives_none() -> None:
    assert tracking_figures([frame(0, boxes())], {}) is None
    assert tracking_figures([frame(0, boxes())], {SECOND: boxes((1, 10.0, 0.0))}) is None
    assert plan_figures([frame(0, boxes())], []) is None


def test_a_plan_is_compared_at_the_horizon_and_stops_are_left_out() -> None:
    odometry = [
        EgoState(k * SECOND // 10, SE3.planar(k * 1.0, 0.0, 0.0), np.array([10.0, 0.0, 0.0]), 0.0)
        for k in range(50)
    ]
    points = np.stack([8.0 * TIMES, np.zeros(8)], -1)
    plan = Plan(SECOND, TIMES, points, TIMES * 0, TIMES * 0 + 8, TIMES * 0, 3, {})
    stop = Plan(SECOND, TIMES, points * 0, TIMES * 0, TIMES * 0, TIMES * 0, -1, {})
    figures = plan_figures([frame(SECOND, boxes(), plan), frame(SECOND, boxes(), stop)], odometry)
    assert figures is not None
    assert figures["plans"] == 1
    assert figures["plan_l2_1s_m"] == pytest.approx(2.0, abs=1e-3)
    assert figures["plan_l2_3s_m"] == pytest.approx(6.0, abs=1e-3)
    assert figures["constant_velocity_l2_2s_m"] == pytest.approx(0.0, abs=1e-3)
