"""One frame through the network by each engine: same weights, same threads, one run.

Engines are timed in turn, frame by frame, so that other work on the machine disturbs all alike, with a pause
before each, so that threads of the one before that wait busily take nothing from it; ratios are formed frame
by frame. Start and memory are those of a process of its own: from opening the files to the first
output, libraries imported before; `second` finds what `first` has kept. `small` and `base` have random
weights, which changes no time.

    python benchmarks/bench_engine.py [--size tiny …] [--threads 2 …] [--frames 100] [--compile] [--json]

onnxruntime-plain: a session with nothing but the number of threads set, spinning as the library likes.
onnxruntime: this package's engine. onnxruntime-spinning: the same with `engine.allow_spinning`.
onnxruntime-int8: the same as the former with the graph of `quantize`.
Where a TensorRT library finds a GPU, also that library in every precision and with the int8 graph, ONNX
Runtime with CUDA if it has that, and torch eager on the GPU; `device_mb` is then what is taken of its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import torch
from safetensors.torch import save_file

from e2e_perception.core.network_config import SIZES
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.deploy.engine_cache import EngineCache
from e2e_perception.deploy.engines import PRECISIONS, backend_report
from e2e_perception.deploy.engines.onnxruntime_engine import CUDA, OnnxRuntimeEngine
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions
from e2e_perception.deploy.engines.tensorrt_engine import TensorRtEngine
from e2e_perception.deploy.engines.tensorrt_library import TENSORRT, TENSORRT_RTX, load_library
from e2e_perception.deploy.engines.torch_engine import TorchEngine, load_network
from e2e_perception.deploy.export import export_onnx
from e2e_perception.deploy.machine import cpu_name
from e2e_perception.deploy.quantize import quantize_graph
from e2e_perception.deploy.rollouts import random_inputs
from e2e_perception.model.network import JointNetwork

ENGINES = ("torch", "onnxruntime-plain", "onnxruntime", "onnxruntime-spinning", "onnxruntime-int8")
COMPILED = "torch-compile"
TORCH_GPU, ONNXRUNTIME_GPU = "torch-cuda", "onnxruntime-cuda"
BUDGET_MS, BUDGET_RATIO = 60.0, 1.6
WARM_UP = 10
SETTLE_S = 0.1  # ONNX Runtime's idle threads wait busily for some 40 ms, torch's for less

Inputs = dict[str, Any]
Infer = Callable[[Inputs], object]


class PlainSession:
    """What one gets without this package."""

    def __init__(self, model: Path, size: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.contract = tensor_contract(SIZES[size])
        spec = next(s for s in self.contract.inputs if s.name == "bev_memory")
        self.memory = np.zeros(spec.shape, np.float32)

    def infer(self, inputs: Inputs) -> object:
        """One frame, with the memory fed back."""
        names = self.contract.output_names
        values = self.session.run(list(names), {**inputs, "bev_memory": self.memory})
        outputs = dict(zip(names, values, strict=True))
        self.memory = outputs.pop("bev_memory_next")
        return outputs


def prepare(size: str, directory: Path) -> None:
    """Write graph, weights and the int8 graph of a size."""
    if size == "tiny":
        bundle = load_bundle("tiny")
        shutil.copyfile(bundle.model_path, directory / "model.onnx")
        shutil.copyfile(bundle.weights_path, directory / "weights.safetensors")
    else:
        torch.manual_seed(0)
        model = JointNetwork(SIZES[size])
        export_onnx(model, directory / "model.onnx")
        save_file(model.state_dict(), directory / "weights.safetensors")
    rng = np.random.default_rng(1)
    empty = {s.name: np.zeros(s.shape, s.dtype) for s in tensor_contract(SIZES[size]).inputs}
    frames = [{**empty, **random_inputs(SIZES[size], rng)} for _ in range(2)]
    quantize_graph(directory / "model.onnx", directory / "int8.onnx", frames)


def gpu_engines() -> tuple[str, ...]:
    """What can be compared on the GPU of this machine; nothing where there is none."""
    usable = [s.name for s in backend_report() if s.available and s.name in (TENSORRT, TENSORRT_RTX)]
    names = tuple(
        f"{backend}-{precision}" for backend in usable for precision in (*PRECISIONS[backend], "int8")
    )
    if CUDA in onnxruntime.get_available_providers():
        names = (ONNXRUNTIME_GPU, *names)
    return (TORCH_GPU, *names) if names and torch.cuda.is_available() else names


def load(name: str, size: str, directory: Path, threads: int) -> Infer:
    """An engine's function for one frame."""
    network = SIZES[size]
    if name == "torch":
        return TorchEngine(directory / "weights.safetensors", network, num_threads=threads).infer
    if name == TORCH_GPU:
        model = load_network(directory / "weights.safetensors", network).cuda()
        return TorchEngine(model, network, num_threads=threads).infer
    if name.startswith(TENSORRT):
        backend, _, precision = name.rpartition("-")
        is_int8 = precision == "int8"
        return TensorRtEngine(
            load_library(backend),
            directory / ("int8.onnx" if is_int8 else "model.onnx"),
            tensor_contract(network),
            options=BuildOptions(precision="float32" if is_int8 else precision),
            graph_precision="int8" if is_int8 else "float32",
            cache=EngineCache(directory / "engines"),
        ).infer
    if name == COMPILED:
        engine = TorchEngine(
            load_network(directory / "weights.safetensors", network), network, num_threads=threads
        )
        engine._model.compile()
        return engine.infer
    if name == "onnxruntime-plain":
        return PlainSession(directory / "model.onnx", size, threads).infer
    graph = directory / ("int8.onnx" if name.endswith("int8") else "model.onnx")
    cache = EngineCache(directory / name)
    device = "cuda" if name == ONNXRUNTIME_GPU else "cpu"
    return OnnxRuntimeEngine(
        graph,
        tensor_contract(network),
        num_threads=threads,
        device=device,
        allow_spinning=name.endswith("spinning"),
        cache=cache,
    ).infer


def start_once(name: str, size: str, directory: Path, threads: int) -> dict[str, float]:
    """Start, and memory that the engine takes, in this process."""
    inputs = random_inputs(SIZES[size], np.random.default_rng(0))
    device_before_b = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    before_b = psutil.Process().memory_info().rss
    started = time.perf_counter()
    infer = load(name, size, directory, threads)
    infer(inputs)
    cold_ms = (time.perf_counter() - started) * 1e3
    for _ in range(3):
        infer(inputs)
    memory_b = psutil.Process().memory_info().rss - before_b
    facts = {"start_ms": round(cold_ms, 1), "memory_mb": round(memory_b / 1e6, 1)}
    if device_before_b is not None:
        facts["device_mb"] = round((device_before_b - torch.cuda.mem_get_info()[0]) / 1e6, 1)
    return facts


def start_in_child(name: str, size: str, directory: Path, threads: int) -> dict[str, float]:
    """`start_once` in a process of its own."""
    command = [sys.executable, __file__, "--size", size, "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--start", name, str(directory)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(size: str, threads: int, frames: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Everything about one size."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        prepare(size, directory)
        rows: dict[str, dict[str, Any]] = {name: {} for name in names}
        for name in names:
            first = start_in_child(name, size, directory, threads)
            second = start_in_child(name, size, directory, threads)
            rows[name] |= {
                "first_start_ms": first["start_ms"],
                "second_start_ms": second["start_ms"],
                "memory_mb": second["memory_mb"],
                **({"device_mb": second["device_mb"]} if "device_mb" in second else {}),
            }
        inputs = random_inputs(SIZES[size], np.random.default_rng(0))
        engines = {name: load(name, size, directory, threads) for name in names}
        took_ms: dict[str, list[float]] = {name: [] for name in names}
        for frame in range(frames + WARM_UP):
            for name, infer in engines.items():
                time.sleep(SETTLE_S)
                started = time.perf_counter()
                infer(inputs)
                if frame >= WARM_UP:
                    took_ms[name].append((time.perf_counter() - started) * 1e3)
    bases = {"torch_over_it": "torch", "torch_gpu_over_it": TORCH_GPU}
    for name, values in took_ms.items():
        rows[name] |= {f"p{q}_ms": round(float(np.percentile(values, q)), 2) for q in (10, 50, 99)}
        for column, base in bases.items():
            if base in took_ms:
                ratios = np.array(took_ms[base]) / np.array(values)
                rows[name][column] = round(float(np.median(ratios)), 2)
    return {"size": size, "threads": threads, "frames": frames, "engines": rows}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", nargs="+", default=["tiny", "small", "base"], choices=sorted(set(SIZES) - {"nano"})
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="each with every size")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--start", nargs=2, metavar=("ENGINE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        name, directory = options.start
        print(json.dumps(start_once(name, options.size[0], Path(directory), options.threads[0])))
        return 0
    names = (*ENGINES, *([COMPILED] if options.compile else []), *gpu_engines())
    result = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": [round(x, 1) for x in os.getloadavg()],
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "system": platform.platform(terse=True),
        "budget_ms": BUDGET_MS,
        "budget_ratio": BUDGET_RATIO,
        "runs": [
            measure(size, threads, options.frames, names)
            for size in options.size
            for threads in options.threads
        ],
    }
    if options.json:
        print(json.dumps(result))
        return 0
    runs = result.pop("runs")
    for name, value in result.items():
        print(f"{name:<14}{value}")
    for run in runs:
        print(f"\n{run['size']}, {run['threads']} threads, {run['frames']} frames")
        columns = list(run["engines"]["torch"])
        print(f"{'':<20}" + "".join(f"{column:>17}" for column in columns))
        for name, row in run["engines"].items():
            print(f"{name:<20}" + "".join(f"{row[column]:>17}" for column in columns))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
