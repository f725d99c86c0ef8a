"""Lines and figures of a run are stable, complete and free of what JSON cannot hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from e2e_perception.cli.results import latency_percentiles, plan_line, summarize, summary_rows, tracks_line
from e2e_perception.core.boxes import Boxes
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan


def make_result(stamp_ns: int, ids: list[int], infer_ms: float = 10.0, *, finite: bool = True) -> FrameResult:
    n = len(ids)
    boxes = Boxes(
        centers_N3=np.arange(3 * n, dtype=np.float32).reshape(n, 3) / 3,
        sizes_N3=np.ones((n, 3), np.float32),
        yaws_N=np.full(n, -1e-9, np.float32),
        velocities_N2=np.zeros((n, 2), np.float32),
        class_ids_N=np.zeros(n, np.int64),
        scores_N=np.full(n, 0.5, np.float32),
        ids_N=np.array(ids, np.int64),
    )
    tracks = Tracks(
        stamp_ns=stamp_ns,
        boxes=boxes,
        ages_N=np.ones(n, np.int64),
        coasted_N=np.zeros(n, np.int64),
        confirmed_N=np.array([i % 2 == 0 for i in ids], bool),
        position_std_N2=np.ones((n, 2), np.float32),
        futures_NMT2=np.zeros((n, 1, 2, 2), np.float32),
        futures_std_NMT2=np.ones((n, 1, 2, 2), np.float32),
        mode_probabilities_NM=np.ones((n, 1), np.float32),
        times_T=np.array([0.5, 1.0]),
    )
    two = np.array([1.0, 2.0])
    speeds = two if finite else np.array([1.0, np.nan])
    plan = Plan(
        stamp_ns, two / 2, np.stack([two, two * 0], 1), two * 0, speeds, two * 0, 3, {"comfort": 0.125}
    )
    health = Health(SafetyState.NOMINAL, (), (), "b", "t", 1, 1, {}, {"infer": infer_ms, "wait": 1.0})
    return FrameResult(stamp_ns, tracks, plan, None, health)


def test_a_line_of_tracks_is_ordered_by_identity_and_rounded():
    row = json.loads(tracks_line(make_result(5, [7, 4])))
    assert row["stamp_ns"] == 5
    assert [track["id"] for track in row["tracks"]] == [4, 7]
    assert row["tracks"][0]["center"] == [1.0, 1.3333, 1.6667]
    assert "-0.0" not in tracks_line(make_result(5, [7, 4]))


def test_a_line_of_a_plan_holds_costs_and_state_and_null_for_what_is_not_finite():
    row = json.loads(plan_line(make_result(5, [], finite=False)))
    assert row["state"] == "NOMINAL"
    assert row["plan"]["costs"] == {"comfort": 0.125}
    assert row["plan"]["speeds"] == [1.0, None]


def test_frames_without_tracks_or_plan_are_null_lines():
    result = make_result(5, [])
    bare = FrameResult(5, None, None, None, result.health)
    assert json.loads(tracks_line(bare)) == {"stamp_ns": 5, "tracks": None}
    assert json.loads(plan_line(bare))["plan"] is None


def test_the_summary_counts_confirmed_identities_once_and_finite_plans_only():
    results = [make_result(1, [2, 3]), make_result(2, [2, 8]), make_result(3, [], finite=False)]
    summary = summarize(
        results, frames_in=4, drops={"late": 2, "overflow": 0}, cpu_share=0.5, peak_memory_mb=100.04
    )
    assert {k: summary[k] for k in ("frames_in", "frames_processed", "plans", "tracks")} == {
        "frames_in": 4,
        "frames_processed": 3,
        "plans": 2,
        "tracks": 2,
    }
    assert summary["drops"] == {"late": 2}
    assert summary["latency_ms"]["total"]["p50"] == pytest.approx(11.0)
    assert summary["peak_memory_mb"] == 100.0
    assert dict(summary_rows(summary))["drops"] == "late 2"


def test_percentiles_ignore_stages_that_did_not_run():
    stages = latency_percentiles([{"infer": 10.0}, {"infer": float("nan")}, {"infer": 20.0, "plan": 1.0}])
    assert stages["infer"]["p50"] == pytest.approx(15.0)
    assert stages["plan"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
