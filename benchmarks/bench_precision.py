"""What half precision costs: the same drives in float32 and in half precision, each with its own memory.

The stack rides along while the expert drives, so that both see the same. Half precision is computed on the
processor, by rounding every result of a half-precision operator: that is what TensorRT is told to compute,
but for the order of sums.

    python benchmarks/bench_precision.py [--bundle tiny] [--drives 4] [--precision float16 bfloat16] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from e2e_perception.core.config import StackConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engine_graph import engine_graph, rounded_in_float32
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.evaluation.summary import combine, evaluate_frames
from e2e_perception.simulation.expert_drives import drive_expert
from e2e_perception.simulation.randomization import network_sized
from e2e_perception.simulation.ride_along import ride_along
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.traffic_world import ScenarioSpec

SPECS = tuple(
    ScenarioSpec(f"highway{hazard}", seed)
    for seed, hazard in enumerate(("+cut_in", "", "+cut_in", "", "+cut_in", "", "+cut_in", ""), 2_000_100)
)
FIGURES = (
    "detection/map",
    "detection/ate_m",
    "tracking/mota",
    "tracking/hota",
    "tracking/id_switches",
    "tracking/velocity_error_mps",
    "motion/min_ade_m",
    "planning/l2_at_3s_m",
    "planning/no_plan_share",
)
Ride = list[tuple[FrameResult, TruthFrame]]


def engines(bundle: Bundle, precisions: list[str], scratch: Path) -> Iterator[tuple[str, OnnxRuntimeEngine]]:
    """An engine for each precision, float32 first."""
    yield "float32", OnnxRuntimeEngine(bundle.model_path, bundle.contract)
    for precision in precisions:
        model = scratch / f"{precision}.onnx"
        onnx.save(rounded_in_float32(engine_graph(bundle.model_path, precision).model), str(model))
        yield precision, OnnxRuntimeEngine(model, bundle.contract)


def ride(scenario: Scenario, bundle: Bundle, engine: OnnxRuntimeEngine) -> Ride:
    """A drive with its truth."""
    rig = bundle.rig.with_sensors({c.name: network_sized(c, bundle.network) for c in bundle.rig.cameras})
    return list(ride_along(scenario, bundle.network, engine, rig, StackConfig()))


def plan_differences(half: Ride, exact: Ride) -> tuple[list[float], list[float]]:
    """Largest distance of a frame's two plans [m]: where the same proposal won, and where another did."""
    same: list[float] = []
    other: list[float] = []
    for (a, _), (b, _) in zip(half, exact, strict=True):
        if a.plan is not None and b.plan is not None:
            apart = np.linalg.norm(a.plan.points_P2 - b.plan.points_P2, axis=1).max()
            (same if a.plan.candidate == b.plan.candidate else other).append(float(apart))
    return same, other


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="tiny", help="bundle directory or name")
    parser.add_argument("--drives", type=int, default=4, choices=range(1, len(SPECS) + 1))
    parser.add_argument("--precision", nargs="+", default=["float16", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    bundle = load_bundle(options.bundle)
    rides: dict[str, list[Ride]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        made = list(engines(bundle, options.precision, Path(scratch)))
        for spec in SPECS[: options.drives]:
            scenario = drive_expert(spec)
            for precision, engine in made:
                rides.setdefault(precision, []).append(ride(scenario, bundle, engine))
    result: dict[str, Any] = {"bundle": str(bundle), "drives": options.drives}
    for precision, ridden in rides.items():
        figures = combine([evaluate_frames(pairs) for pairs in ridden]).figures
        same: list[float] = []
        other: list[float] = []
        for half, exact in zip(ridden, rides["float32"], strict=True):
            found = plan_differences(half, exact)
            same, other = same + found[0], other + found[1]
        result[precision] = {
            **{name: round(figures[name], 4) for name in FIGURES},
            "plans_by_the_same_proposal": len(same),
            "apart_at_most_mm": round(1e3 * max(same, default=0.0), 3),
            "plans_by_another_proposal": len(other),
            "other_apart_at_most_m": round(max(other, default=0.0), 3),
        }
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{result['bundle']}, {options.drives} drives")
    names = list(result["float32"])
    width = max(map(len, names))
    print(f"{'':<{width}}" + "".join(f"{precision:>12}" for precision in rides))
    for name in names:
        print(f"{name:<{width}}" + "".join(f"{result[precision][name]:>12}" for precision in rides))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
