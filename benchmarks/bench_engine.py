"""One frame through the network: ONNX Runtime against torch eager, same weights, same threads, in one run.

The two are timed in turn, frame by frame, so that other work on the machine disturbs both alike; the ratio is
formed pair by pair. Cold start is from opening the bundle to the first output.

    python benchmarks/bench_engine.py [--bundle tiny] [--threads 2] [--frames 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engines import create_engine
from e2e_perception.deploy.rollouts import random_inputs

BUDGET_MS, BUDGET_RATIO = 60.0, 1.6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="tiny", help="bundle directory or name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    engines, cold_ms = {}, {}
    inputs = None
    for backend in ("onnxruntime", "torch"):
        started = time.perf_counter()
        bundle = load_bundle(options.bundle)
        inputs = inputs or random_inputs(bundle.network, np.random.default_rng(0))
        engines[backend] = create_engine(bundle, backend, options.threads)
        engines[backend].infer(inputs)
        cold_ms[backend] = (time.perf_counter() - started) * 1e3
    assert inputs is not None
    times: dict[str, list[float]] = {backend: [] for backend in engines}
    for frame in range(options.frames + 10):
        for backend, engine in engines.items():
            started = time.perf_counter()
            engine.infer(inputs)
            if frame >= 10:
                times[backend].append((time.perf_counter() - started) * 1e3)
    ratios = np.array(times["torch"]) / np.array(times["onnxruntime"])
    result = {
        "bundle": str(bundle),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "frames": options.frames,
        **{
            f"{backend}_{name}_ms": round(float(np.percentile(values, q)), 2)
            for backend, values in times.items()
            for name, q in (("p50", 50), ("p95", 95), ("p99", 99))
        },
        **{f"{backend}_cold_ms": round(value, 1) for backend, value in cold_ms.items()},
        "torch_over_onnxruntime_p50": round(float(np.median(ratios)), 2),
        "budget_ms": BUDGET_MS,
        "budget_ratio": BUDGET_RATIO,
    }
    if options.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
