"""Training on one thread: clips a second, the share of time a step waits for clips, and memory.

Trains sizes of the network on simulated clips, as `train` does, with clips read in the loop, by a process
beside it, and with an encoder in bfloat16; and each way the objectives can share the parameters, against
adding them up. The first steps are left out. A ratio is to the first row of its size, or of the table.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py [--data CLIPS] [--steps 12] [--sizes nano tiny]
      [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from e2e_perception.cli.simulate import Format, simulate
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.training.balancing import METHODS
from e2e_perception.training.config import Balancing, Promotion, Stage, TrainingConfig
from e2e_perception.training.loop import train
from e2e_perception.training.run_log import StepReport

WARM_UP = 3
WAYS: dict[str, dict[str, Any]] = {
    "clips read in the loop": {},
    "clips read beside it": {"workers": 1},
    "bfloat16": {"precision": "bfloat16"},
}
CLIP_LENGTH = 5


def measure(store: ClipStore, steps: int, **settings: Any) -> dict[str, float]:
    """Train for a few steps.

    Args:
        store: Clips, long enough.
        steps: After the warm-up.
        settings: Of `TrainingConfig`.
    Returns:
        `clips_per_s` (median), `data_share` (mean) and `memory_mb` (last; of this process, with all that it
        has trained before).
    """
    stage = Stage(
        name="bench", steps=WARM_UP + steps, clip_length=CLIP_LENGTH, boost=(0.5, 0.5), degradation=0.6
    )
    config = TrainingConfig(stages=(stage,), threads=1, promotion=Promotion(clips=2), **settings)
    reports: list[StepReport] = []
    with tempfile.TemporaryDirectory() as directory:
        train([store], Path(directory) / "run", config, report=reports.append)
    kept = reports[WARM_UP:]
    return {
        "clips_per_s": statistics.median(report.clips_per_s for report in kept),
        "data_share": statistics.fmean(report.data_share for report in kept),
        "memory_mb": kept[-1].memory_mb,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="clips; default: a few are simulated")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["nano", "tiny"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = options.data or Path(directory) / "clips"
        if options.data is None:
            simulate(
                data, suite="train", limit=4, output_format=Format.CLIPS, clip_length=CLIP_LENGTH, workers=1
            )
        store = ClipStore(data)
        sizes: dict[str, dict[str, float]] = {}
        for size in options.sizes:
            for name, settings in WAYS.items():
                sizes[f"{size}, {name}"] = measure(store, options.steps, size=size, **settings)
        methods = {
            method: measure(store, options.steps, size=options.sizes[0], balancing=Balancing(method=method))
            for method in METHODS
        }
    for name, row in sizes.items():
        row["ratio"] = (
            row["clips_per_s"] / sizes[f"{name.partition(',')[0]}, {next(iter(WAYS))}"]["clips_per_s"]
        )
    first = next(iter(methods.values()))["clips_per_s"]
    for row in methods.values():
        row["ratio"] = row["clips_per_s"] / first
    if options.json:
        print(json.dumps({"sizes": sizes, "balancing": methods}))
        return
    for title, table in (("sizes", sizes), ("balancing", methods)):
        print(f"{title:32} clips/s   ratio   waits   memory [MB]")
        for name, row in table.items():
            print(
                f"{name:32} {row['clips_per_s']:7.1f} {row['ratio']:7.2f} {row['data_share']:6.0%} "
                f"{row['memory_mb']:10.0f}"
            )


if __name__ == "__main__":
    main()
