"""Results as lines of JSON, and the figures of a run.

The lines are made for comparing runs: fixed order, fixed decimals, nothing that depends on the clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.results import FrameResult

DECIMALS = 4  # tenths of a millimetre: far below noise, far above float32's last bits at these distances
PERCENTILES = (50, 95, 99)


def tracks_line(result: FrameResult) -> str:
    """One line of `tracks.jsonl`: all tracks of a frame, or null where the engine gave none."""
    tracks = result.tracks
    rows = None
    if tracks is not None:
        boxes = tracks.boxes
        rows = [
            {
                "id": int(boxes.ids_N[i]),
                "class": CLASSES[int(boxes.class_ids_N[i])],
                "score": _number(boxes.scores_N[i]),
                "confirmed": bool(tracks.confirmed_N[i]),
                "age": int(tracks.ages_N[i]),
                "coasted": int(tracks.coasted_N[i]),
                "center": _numbers(boxes.centers_N3[i]),
                "size": _numbers(boxes.sizes_N3[i]),
                "yaw": _number(boxes.yaws_N[i]),
                "velocity": _numbers(boxes.velocities_N2[i]),
                "position_std": _numbers(tracks.position_std_N2[i]),
                "predictions": [
                    {
                        "probability": _number(tracks.mode_probabilities_NM[i, m]),
                        "points": [_numbers(point) for point in tracks.futures_NMT2[i, m]],
                    }
                    for m in range(tracks.futures_NMT2.shape[1])
                ],
            }
            for i in np.argsort(boxes.ids_N, kind="stable")
        ]
    return _line({"stamp_ns": result.stamp_ns, "tracks": rows})


def plan_line(result: FrameResult) -> str:
    """One line of `plans.jsonl`: the plan of a frame with its costs, or null where there is none."""
    plan = result.plan
    document: dict[str, Any] = {"stamp_ns": result.stamp_ns, "state": result.health.state.name, "plan": None}
    if plan is not None:
        document["plan"] = {
            "candidate": plan.candidate,
            "runner_up": plan.runner_up,
            "route_assumed": plan.route_assumed,
            "costs": {term: _number(cost) for term, cost in plan.costs.items()},
            "runner_up_costs": {term: _number(cost) for term, cost in plan.runner_up_costs.items()},
            "times": _numbers(plan.times_P),
            "points": [_numbers(point) for point in plan.points_P2],
            "yaws": _numbers(plan.yaws_P),
            "speeds": _numbers(plan.speeds_P),
            "accelerations": _numbers(plan.accelerations_P),
        }
    return _line(document)


def summarize(
    results: Sequence[FrameResult],
    *,
    frames_in: int,
    drops: Mapping[str, int],
    cpu_share: float | None,
    peak_memory_mb: float | None,
) -> dict[str, Any]:
    """The figures of `summary.json`.

    Args:
        results: Every frame that the stack processed.
        frames_in: Messages of the anchor that came in.
        drops: Messages and frames not used, by cause; zeros are left out.
        cpu_share: CPU time of the stack over time played, 1.0 being one core; None if not measured.
        peak_memory_mb: Largest resident memory of the stack's process [MB]; None if not measured.
    """
    identities = {
        int(track)
        for result in results
        if result.tracks is not None
        for track in result.tracks.boxes.ids_N[result.tracks.confirmed_N]
    }
    return {
        "frames_in": frames_in,
        "frames_processed": len(results),
        "plans": sum(result.plan is not None and result.plan.is_finite for result in results),
        "stops": sum(result.plan is not None and result.plan.candidate < 0 for result in results),
        "tracks": len(identities),
        "drops": {cause: int(count) for cause, count in sorted(drops.items()) if count},
        "latency_ms": latency_percentiles([_with_total(result.health.stage_ms) for result in results]),
        "cpu_share": None if cpu_share is None else round(cpu_share, 3),
        "peak_memory_mb": None if peak_memory_mb is None else round(peak_memory_mb, 1),
    }


def _with_total(stage_ms: Mapping[str, float]) -> dict[str, float]:
    """The stages follow each other, so a frame took as long as all of them together.

    A live run also says `latency`, from the frame's stamp to its publication; it is not one of the stages.
    """
    return {**stage_ms, "total": sum(ms for stage, ms in stage_ms.items() if stage != "latency")}


def latency_percentiles(frames: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """p50, p95 and p99 [ms] of each stage over all frames that report it."""
    by_stage: dict[str, list[float]] = {}
    for stages in frames:
        for stage, value in stages.items():
            if np.isfinite(value):
                by_stage.setdefault(stage, []).append(float(value))
    return {
        stage: {f"p{p}": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}
        for stage, values in by_stage.items()
    }


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people, one row per figure."""
    drops = ", ".join(f"{cause} {count}" for cause, count in summary["drops"].items()) or "none"
    share, memory = summary["cpu_share"], summary["peak_memory_mb"]
    rows = [
        ("frames in", str(summary["frames_in"])),
        ("frames processed", str(summary["frames_processed"])),
        ("plans", f"{summary['plans']}, {summary['stops']} of them stops by the supervisor"),
        ("tracks", str(summary["tracks"])),
        ("drops", drops),
        ("CPU", "not measured" if share is None else f"{100 * share:.0f} % of one core"),
        ("peak memory", "not measured" if memory is None else f"{memory:.0f} MB"),
    ]
    for title, figures in (("tracks", "against_labels"), ("plan", "against_driven")):
        for name, value in (summary.get(figures) or {}).items():
            rows.append((f"{title} {figures.replace('_', ' ')}: {name}", f"{value:g}"))
    for stage, values in summary["latency_ms"].items():
        rows.append(
            (f"{stage} p50 / p95 / p99", " / ".join(f"{values[f'p{p}']:.1f}" for p in PERCENTILES) + " ms")
        )
    return rows


def _number(value: float | np.floating[Any]) -> float | None:
    value = float(value)
    # Adding zero turns -0.0 into 0.0, so that equal numbers have equal text.
    return round(value, DECIMALS) + 0.0 if np.isfinite(value) else None


def _numbers(values: NDArray[np.floating[Any]]) -> list[float | None]:
    return [_number(value) for value in values]


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"
