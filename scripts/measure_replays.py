"""Simulate drives that no training has seen, replay them through the whole stack, and pool the figures.

    python scripts/measure_replays.py --bundle tiny --seeds 2 --out runs/replays [--json]

One bag of 12 s for each kind of scenario and seed, through the code that runs on the robot, on ONNX Runtime.
What the figures mean is in `e2e_perception/evaluation/on_bag.py`. Bags already there are used again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import source_tree  # noqa: F401

from e2e_perception.cli.console import print_table
from e2e_perception.cli.replay import replay_bag
from e2e_perception.cli.simulate import KINDS, write_bag
from e2e_perception.core.config import config_from_parameters
from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.core.rig import find_rig

FIRST_SEED = (
    910_000  # training clips begin at 100,000; thresholds and weights were chosen on 900,000 and 900,001
)
SECONDS = 12.0
COLUMNS = (
    "labels",
    "mota",
    "idf1",
    "id_switches",
    "misses",
    "false_tracks",
    "position_error_m",
    "velocity_error_mps",
    "plan_l2_1s_m",
    "plan_l2_2s_m",
    "plan_l2_3s_m",
    "constant_velocity_l2_3s_m",
    "stops",
)


def pooled(summaries: list[dict[str, Any]]) -> dict[str, float]:
    """One row of several replays: counts are added; errors and IDF1 weighted by what they are means of."""
    labels = [s["against_labels"] for s in summaries]
    plans = [s["against_driven"] for s in summaries]
    total = {
        name: sum(row[name] for row in labels) for name in ("labels", "id_switches", "misses", "false_tracks")
    }
    wrong = total["id_switches"] + total["misses"] + total["false_tracks"]
    hits = [row["labels"] - row["misses"] for row in labels]
    row: dict[str, float] = {**total, "mota": 1.0 - wrong / max(total["labels"], 1)}
    row["idf1"] = _mean([r["idf1"] for r in labels], [r["labels"] for r in labels])
    for name in ("position_error_m", "velocity_error_mps"):
        row[name] = _mean([r[name] for r in labels], hits)
    for name in COLUMNS:
        if "_l2_" in name:
            row[name] = _mean([p[name] for p in plans], [p["plans"] for p in plans])
    row["stops"] = sum(s["stops"] for s in summaries)
    return row


def _mean(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True) if w > 0) / max(sum(weights), 1)


def main() -> int:
    """Simulate, replay, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="tiny", help="bundle directory or name")
    parser.add_argument("--seeds", type=int, default=2, help="bags per kind of scenario")
    parser.add_argument("--out", type=Path, default=Path("runs/replays"))
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE", help="of the stack")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows = {}
    everything = []
    try:
        changes = {name: float(value) for name, value in (text.split("=") for text in options.set)}
        config = config_from_parameters({"engine.bundle": options.bundle, **changes})
        for kind in KINDS:
            summaries = []
            for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
                bag = options.out / "bags" / f"{kind}_{seed}"
                if not bag.exists():
                    bag.parent.mkdir(parents=True, exist_ok=True)
                    write_bag(bag, kind, seed, SECONDS, find_rig("tiny"))
                out = options.out / "replays" / bag.name
                summaries.append(replay_bag(bag, out, config=config, rig_name="tiny", with_report=False))
            if any(s["against_labels"] is None or s["against_driven"] is None for s in summaries):
                print(f"error: nothing to compare in {kind}; is motmetrics installed?", file=sys.stderr)
                return 2
            rows[kind] = pooled(summaries)
            everything += summaries
    except (E2EPerceptionError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows["all"] = pooled(everything)
    if options.json:
        print(json.dumps({"bundle": everything[0]["bundle"], "rows": rows}))
    else:
        table = [(kind, *(f"{row[name]:.3g}" for name in COLUMNS)) for kind, row in rows.items()]
        print_table(
            f"{everything[0]['bundle']}, {len(everything)} drives", ("kind", *COLUMNS), table, wide=True
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
