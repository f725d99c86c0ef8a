"""Evaluation directories of networks that were never trained: random figures, written as real ones are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from episode_records import bare_record

from e2e_perception.evaluation.evaluations import FACTS, PERCEPTION, PERCEPTION_ROWS
from e2e_perception.evaluation.outcome_tables import summarize, write_outcomes
from e2e_perception.evaluation.outcomes import Outcome, outcome
from e2e_perception.evaluation.summary import EpisodeFigures, OverallFigures, PerceptionSums, write_rows

FAMILIES = ("highway", "two_way", "roundabout+crossing")
BARE = outcome(bare_record())
CURVES = {
    "precision_recall": {"car 2 m": {"recall": [0.0, 0.5, 1.0], "precision": [1.0, 0.9, 0.4]}},
    "reliability": {
        "score": {"predicted": [0.1, 0.5, 0.9], "observed": [0.2, 0.5, 0.8], "counts": [9, 5, 7]}
    },
}


def outcomes(num: int, success: float, rng: np.random.Generator, **changes: Any) -> list[Outcome]:
    """Drives of `num` scenarios; who fails has had a contact at his own fault."""
    found = []
    for n in range(num):
        good = bool(rng.random() < success)
        family = FAMILIES[n % len(FAMILIES)]
        item = replace(
            BARE,
            scenario=f"{family}/{n}@0.5",
            family=family,
            policy="network",
            success=good,
            goal_reached=good,
            collision=not good,
            at_fault_collision=not good,
            progress=1.0 if good else float(rng.uniform(0.2, 0.9)),
            time_to_goal_s=20.0 if good else None,
            comfort_share=float(rng.uniform(0.8, 1.0)),
        )
        found.append(replace(item, **changes))
    return found


def write_evaluation(
    path: Path,
    *,
    seed: int = 0,
    group: str = "joint",
    quality: float = 0.7,
    num: int = 24,
    latency_ms: float | None = 11.0,
    drives: tuple[str, ...] = ("test", "critical"),
    perception: bool = True,
    draw: int = 0,
) -> Path:
    """Write a directory; `quality` in [0, 1] moves every figure, `draw` is the luck of this network."""
    rng = np.random.default_rng(draw)
    path.mkdir(parents=True)
    facts = {
        "label": path.name,
        "group": group,
        "seed": seed,
        "latency_ms": latency_ms,
        "parameters": 1_234_567,
        "bundle_digest": "ab" * 32,
        "dataset_digests": ["cd" * 32],
        "commit": "0123456789abcdef",
        "machine": "somewhere",
    }
    (path / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    if perception:
        rows = []
        for n in range(num):
            noise = rng.normal(0.0, 0.05, size=7)
            figures = {
                "detection/map": quality + noise[0],
                "tracking/hota": quality - 0.1 + noise[1],
                "tracking/mota": quality + noise[2],
                "tracking/idf1": quality + noise[3],
                "motion/min_ade_m": 1.5 - quality + noise[4] if n else float("nan"),
                "planning/l2_at_3s_m": 3.0 - quality + noise[5],
                "planning/collision_upto_3s": abs(0.05 * (1.0 - quality) + 0.01 * noise[6]),
            }
            name = f"{FAMILIES[n % 3]}/{n}@0.5"
            rows.append(EpisodeFigures(name, FAMILIES[n % 3], 50, figures, PerceptionSums()))
        write_rows(path / PERCEPTION_ROWS, rows)
        overall = OverallFigures(
            num, 50 * num, {**rows[1].figures, "calibration/score_ece": float("nan")}, CURVES
        )
        document = {**overall.document(), "bundle": "joint", "suite": "validation"}
        (path / PERCEPTION).write_text(json.dumps(document), encoding="utf-8")
    for suite in drives:
        driven = outcomes(num, quality, rng)
        write_outcomes(path / f"drive-{suite}", driven, summarize(driven))
    return path
