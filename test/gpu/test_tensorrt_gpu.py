"""TensorRT and TensorRT-RTX for real: on a GPU, with the installed library. Skipped where there is none.

pytest test/gpu -rs -s          # -s shows the timings, which are printed and never judged
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import EngineMismatchError, EngineUnavailableError
from e2e_perception.deploy import parity
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engine_cache import PAYLOAD, EngineCache
from e2e_perception.deploy.engines import InferenceEngine, configured_engine, create_engine
from e2e_perception.deploy.engines.cuda_memory import Cuda
from e2e_perception.deploy.engines.gpu_presence import why_no_gpu
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions
from e2e_perception.deploy.engines.tensorrt_engine import TensorRtEngine
from e2e_perception.deploy.engines.tensorrt_library import MODULES, find_module, load_library
from e2e_perception.deploy.rollouts import random_inputs
from e2e_perception.runtime.hot_swap import load_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() != "", reason=f"{why_no_gpu()}; TensorRT is not run for real"),
]
Inputs = dict[str, NDArray[Any]]
# Of float32: kernels sum in another order. Of half: see benchmarks/bench_precision.py.
HEAT_TOLERANCE = {"float32": 2e-3, "float16": 5e-3, "bfloat16": 5e-2}
PLAN_TOLERANCE_M = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module", params=list(MODULES))
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if find_module(name) is None:
        pytest.skip(f"{MODULES[name][0]} is not installed")
    with Cuda() as cuda:
        targets = load_library(name).capabilities.targets
        if targets and cuda.gpu.compute_capability not in targets:
            pytest.skip(f"{name} does not compile for {cuda.gpu}")
    return name


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def frames(bundle: Bundle) -> list[Inputs]:
    """A rollout; the first frame has no memory."""
    rng = np.random.default_rng(0)
    found = [random_inputs(bundle.network, rng) for _ in range(12)]
    found[0]["memory_valid"][:] = 0.0
    return found


def rollout(engine: InferenceEngine, frames: list[Inputs]) -> list[dict[str, NDArray[np.float32]]]:
    engine.reset_state()
    return [engine.infer(inputs) for inputs in frames]


@pytest.mark.parametrize("precision", list(HEAT_TOLERANCE))
def test_a_rollout_agrees_with_onnxruntime(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs], precision: str
) -> None:
    expected = rollout(create_engine(bundle, "onnxruntime"), frames)
    engine = create_engine(bundle, backend, precision=precision, cache=cache)
    got = rollout(engine, frames)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a["heatmap"] - b["heatmap"]).max() < HEAT_TOLERANCE[precision]
        assert np.abs(a["plan_sd"] - b["plan_sd"]).max() < PLAN_TOLERANCE_M[precision]
    times = []
    for _ in range(50):
        started = time.perf_counter()
        engine.infer(frames[1])
        times.append((time.perf_counter() - started) * 1e3)
    print(f"\n{engine.info}: p50 {np.percentile(times, 50):.2f} ms, p99 {np.percentile(times, 99):.2f} ms")
    engine.close()


def test_cuda_graphs_change_nothing_but_time(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    results = []
    for cuda_graphs in (True, False):
        engine = TensorRtEngine(
            load_library(backend), bundle.model_path, bundle.contract, cache=cache, cuda_graphs=cuda_graphs,
            options=BuildOptions(precision="float16"),
        )  # fmt: skip
        assert engine.uses_cuda_graphs == cuda_graphs
        results.append(rollout(engine, frames))
        engine.close()
    for with_graphs, without in zip(*results, strict=True):
        for name, value in without.items():
            np.testing.assert_array_equal(with_graphs[name], value, err_msg=name)


def test_the_state_stays_on_the_device_until_it_is_asked_for(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    cuda = Cuda()
    engine = TensorRtEngine(
        load_library(backend), bundle.model_path, bundle.contract, cache=cache, cuda=cuda, cuda_graphs=False
    )
    fetched: list[int] = []
    copy = cuda.to_host
    cuda.to_host = lambda target, address, stream: (
        fetched.append(target.array.nbytes)
        or copy(  # type: ignore
            target, address, stream
        )
    )
    rollout(engine, frames)
    outputs = [spec for spec in bundle.contract.outputs if spec.name != "bev_memory_next"]
    assert sum(fetched) == len(frames) * sum(4 * int(np.prod(spec.shape)) for spec in outputs)
    (state,) = engine.state().values()
    assert fetched[-1] == state.nbytes
    assert np.isfinite(state).all() and np.abs(state).max() > 0
    engine.close()


def test_a_state_from_outside_and_a_reset_are_those_of_onnxruntime(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    reference = create_engine(bundle, "onnxruntime")
    engine = create_engine(bundle, backend, cache=cache)
    given = np.random.default_rng(1).random(engine.state()["bev_memory"].shape).astype(np.float32)
    for inputs in (frames[0], {**frames[1], "bev_memory": given}, frames[2]):
        got, expected = engine.infer(inputs), reference.infer(inputs)
        assert np.abs(got["heatmap"] - expected["heatmap"]).max() < HEAT_TOLERANCE["float32"]
    engine.reset_state()
    assert not engine.state()["bev_memory"].any()
    engine.close()


def test_a_second_start_takes_everything_from_the_cache(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    said: list[str] = []
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        create_engine(bundle, backend, precision="float16", cache=EngineCache(tmp_path, said.append)).close()
        seconds.append(time.perf_counter() - started)
        entries = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{PAYLOAD}")}
    print(f"\n{backend}: first start {seconds[0]:.2f} s, second {seconds[1]:.2f} s")
    assert said == []
    assert entries == {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{PAYLOAD}")}


def test_a_damaged_engine_is_compiled_again_and_runs(
    bundle: Bundle, backend: str, tmp_path: Path, frames: list[Inputs]
) -> None:
    said: list[str] = []
    cache = EngineCache(tmp_path, said.append)
    create_engine(bundle, backend, cache=cache).close()
    plan = max(tmp_path.glob(f"*/{PAYLOAD}"), key=lambda path: path.stat().st_size)
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    engine = create_engine(bundle, backend, cache=cache)
    assert any("is not used" in sentence for sentence in said)
    assert all(np.isfinite(value).all() for value in engine.infer(frames[0]).values())
    engine.close()


def test_nan_in_a_raster_that_is_valid_comes_out_as_nan_and_not_as_an_error(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    engine = create_engine(bundle, backend, cache=cache)
    outputs = engine.infer({**frames[0], "ego_state": np.full_like(frames[0]["ego_state"], np.nan)})
    assert np.isnan(outputs["plan_sd"]).any()
    engine.reset_state()
    assert all(np.isfinite(value).all() for value in engine.infer(frames[0]).values())
    engine.close()


def test_device_memory_is_given_back(bundle: Bundle, backend: str, cache: EngineCache) -> None:
    with Cuda() as cuda:
        create_engine(bundle, backend, cache=cache).close()  # what libraries keep for the process
        before, _ = cuda.free_memory()
        for _ in range(3):
            create_engine(bundle, backend, cache=cache).close()
        after, total = cuda.free_memory()
    assert before - after < 1 << 20, f"{(before - after) / 2**20:.1f} of {total / 2**20:.0f} MiB are gone"


@pytest.mark.parametrize("precision", list(HEAT_TOLERANCE))
def test_what_the_node_starts_is_checked_against_torch(
    bundle: Bundle, backend: str, tmp_path: Path, precision: str
) -> None:
    config = EngineConfig(backend=backend, precision=precision, cache_directory=str(tmp_path))
    said: list[str] = []
    engine = configured_engine(bundle, config, said.append)
    try:
        print(f"\n{engine.info}")
        assert "checked against torch" in str(engine.info)
        assert engine.info.mismatch == ""
    finally:
        engine.close()


def test_an_engine_that_differs_from_torch_is_refused_and_leaves_no_memory(
    bundle: Bundle, backend: str, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = parity.Tolerance(
        dict.fromkeys(parity.TOLERANCES["float32"].outputs, 0.0), plan=0.0, least_score=0.0
    )
    monkeypatch.setitem(parity.TOLERANCES, "float32", strict)  # type: ignore[arg-type]
    create_engine(bundle, backend, cache=cache).close()
    with Cuda() as cuda:
        before, _ = cuda.free_memory()
        with pytest.raises(EngineMismatchError):
            configured_engine(bundle, EngineConfig(backend=backend, cache_directory=str(tmp_path)), print)
        after, _ = cuda.free_memory()
    assert before - after < 1 << 20


def test_an_engine_that_is_loaded_beside_the_one_that_runs_disturbs_it_in_nothing(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    config = EngineConfig(backend=backend, cache_directory=str(cache.directory))
    running = create_engine(bundle, backend, cache=cache)
    alone = rollout(running, frames)
    running.reset_state()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_engine, bundle, config, frames[-1])
        meanwhile = [running.infer(inputs) for inputs in frames]
        other = loading.result()
    swapped = rollout(other, frames)
    running.close()
    after = rollout(other, frames)
    other.close()
    for got in (meanwhile, swapped, after):
        for a, b in zip(got, alone, strict=True):
            for name, value in b.items():
                np.testing.assert_allclose(a[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_gpu_without_memory_left_is_an_error_that_says_so_and_gives_back_what_it_took(
    bundle: Bundle, backend: str, cache: EngineCache, frames: list[Inputs]
) -> None:
    create_engine(bundle, backend, cache=cache).close()  # compiled, so that only loading is left to fail
    kept = {path: path.read_bytes() for path in cache.directory.glob(f"*/{PAYLOAD}")}
    with Cuda() as cuda:
        size = 1 << 30
        while size >= 1 << 20:  # whole chunks first, until not even a MiB is to be had
            try:
                cuda.allocate(size, "the test")
            except EngineUnavailableError:
                size //= 2
        with pytest.raises(EngineUnavailableError, match="MiB"):
            create_engine(bundle, backend, cache=cache)
    said: list[str] = []
    engine = create_engine(bundle, backend, cache=cache, log=said.append)
    assert not any("compiling" in sentence for sentence in said)  # what is kept is as good as before
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert all(np.isfinite(value).all() for value in engine.infer(frames[0]).values())
    engine.close()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_int8_bundle_runs_and_is_as_near_to_torch_as_int8_may_be(
    bundle: Bundle, backend: str, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("torch", reason="torch is not installed; quantizing needs it")
    from e2e_perception.deploy.quantize import quantize_bundle
    from e2e_perception.deploy.rollouts import generated_frames

    made = [generated_frames(bundle.network, num_frames=4, seed=seed) for seed in range(2)]
    quantize_bundle(bundle, tmp_path / "int8", calibration=made, rollouts=made[:1], source="generated")
    config = EngineConfig(backend=backend, precision=precision, cache_directory=str(tmp_path / "engines"))
    engine = configured_engine(load_bundle(tmp_path / "int8"), config, print)
    assert engine.info.mismatch == ""
    engine.close()


def test_onnxruntime_runs_on_the_gpu_that_it_is_asked_for(bundle: Bundle, frames: list[Inputs]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA; `pip install onnxruntime-gpu` has")
    expected = rollout(create_engine(bundle, "onnxruntime"), frames)
    engine = create_engine(bundle, "onnxruntime", device="cuda")
    assert engine.info.device == "cuda"
    for a, b in zip(rollout(engine, frames), expected, strict=True):
        assert np.abs(a["heatmap"] - b["heatmap"]).max() < HEAT_TOLERANCE["float32"]
        assert np.abs(a["plan_sd"] - b["plan_sd"]).max() < PLAN_TOLERANCE_M["float32"]
    engine.close()
