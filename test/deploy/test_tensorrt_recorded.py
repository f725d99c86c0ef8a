"""The TensorRT backend against recorded doubles of the library and of CUDA; test/gpu has the same on a GPU.

What is computed in these tests is computed by ONNX Runtime inside the double; what is tested is everything
around it: order, addresses, streams, graphs, caches, errors.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import recorded_tensorrt
from numpy.typing import NDArray
from onnx import helper
from recorded_cuda import RecordedCuda, cudaError_t
from recorded_tensorrt import recorded_tensorrt as tensorrt_double
from toy_network import ToyNetwork, write_toy_network

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import BundleError, ConfigError, ContractError, EngineUnavailableError
from e2e_perception.deploy import engine_graph, engines
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import PAYLOAD, SIDECAR, EngineCache, EngineKey
from e2e_perception.deploy.engine_graph import EngineGraph
from e2e_perception.deploy.engines import configured_engine
from e2e_perception.deploy.engines.cuda_memory import Cuda
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions, build_engine, compile_graph
from e2e_perception.deploy.engines.tensorrt_engine import TensorRtEngine
from e2e_perception.deploy.engines.tensorrt_library import TENSORRT, TENSORRT_RTX, TensorRtLibrary

BACKEND_OF = {"tensorrt_rtx": TENSORRT_RTX, "tensorrt": TENSORRT}
Inputs = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyNetwork:
    return write_toy_network(tmp_path_factory.mktemp("toy") / "model.onnx")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("tiny")


def made_up(contract: TensorContract) -> list[Inputs]:
    """Four frames; the first has no memory."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(4):
        inputs: Inputs = {}
        for spec in contract.inputs:
            if spec.dtype == "uint8":
                inputs[spec.name] = rng.integers(0, 256, spec.shape, np.uint8)
            elif spec.name.endswith("_valid"):
                there = index > 0 or spec.name != "memory_valid"
                inputs[spec.name] = np.full(spec.shape, float(there), np.float32)
            elif spec.name == "bev_theta":
                inputs[spec.name] = np.eye(2, 3, dtype=np.float32)[None]
            elif spec.name != "bev_memory":
                inputs[spec.name] = rng.random(spec.shape).astype(np.float32)
        found.append(inputs)
    return found


@pytest.fixture(scope="module")
def frames(toy: ToyNetwork) -> list[Inputs]:
    return made_up(toy.contract)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cuda() -> RecordedCuda:
    return RecordedCuda()


@pytest.fixture
def make(
    toy: ToyNetwork, cuda: RecordedCuda, tmp_path: Path, said: list[str]
) -> Callable[..., TensorRtEngine]:
    """An engine on the recorded GPU; engines of one test share one cache."""

    def say(sentence: str) -> None:
        if not sentence.startswith("compiling "):  # said at every first start
            said.append(sentence)

    def engine(
        name: str = "tensorrt_rtx",
        module: Any = None,
        on: RecordedCuda | None = None,
        network: ToyNetwork | Bundle = toy,
        **options: Any,
    ) -> TensorRtEngine:
        gpu = on or cuda
        library = TensorRtLibrary(module or tensorrt_double(gpu, name), BACKEND_OF[name])
        options.setdefault("cache", EngineCache(tmp_path / "engines", said.append))
        return TensorRtEngine(
            library, network.model_path, network.contract, cuda=Cuda(gpu), log=say, **options
        )

    return engine


def kept_plan(directory: Path) -> tuple[Path, EngineKey]:
    """The compiled engine in a cache, which is its largest file, and what it is found by."""
    plan = max(directory.glob(f"*/{PAYLOAD}"), key=lambda path: path.stat().st_size)
    return plan, EngineKey(json.loads((plan.parent / SIDECAR).read_text())["key"])


def assert_same(got: Inputs, expected: Inputs) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


# --- what it computes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_recorded_double_gives_what_onnxruntime_gives_over_a_rollout(
    toy: ToyNetwork, frames: list[Inputs], make: Callable[..., TensorRtEngine], name: str, cuda_graphs: bool
) -> None:
    reference = OnnxRuntimeEngine(toy.model_path, toy.contract, num_threads=1)
    engine = make(name, cuda_graphs=cuda_graphs)
    assert engine.uses_cuda_graphs == cuda_graphs
    for inputs in frames:
        assert_same(engine.infer(inputs), reference.infer(inputs))
    assert_same(engine.state(), reference.state())
    engine.reset_state()
    reference.reset_state()
    assert_same(engine.state(), reference.state())
    assert_same(engine.infer(frames[1]), reference.infer(frames[1]))


def test_recorded_double_takes_a_state_from_outside_for_one_call(
    toy: ToyNetwork, frames: list[Inputs], make: Callable[..., TensorRtEngine]
) -> None:
    reference = OnnxRuntimeEngine(toy.model_path, toy.contract, num_threads=1)
    engine = make()
    given = np.random.default_rng(1).random(engine.state()["bev_memory"].shape).astype(np.float32)
    for inputs in (frames[0], {**frames[1], "bev_memory": given}, frames[2]):
        assert_same(engine.infer(inputs), reference.infer(inputs))
    engine.reset_state()
    reference.reset_state()
    inputs = {**frames[3], "bev_memory": given}
    assert_same(engine.infer(inputs), reference.infer(inputs))


def test_recorded_double_keeps_the_state_on_the_device(
    toy: ToyNetwork, frames: list[Inputs], cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    engine = make()
    cuda.copies.clear()
    for inputs in frames:
        engine.infer(inputs)
    (size,) = (value.nbytes for value in engine.state().values())
    results = {spec.name: spec for spec in toy.contract.outputs if spec.name != "bev_memory_next"}
    down = sum(count for direction, _, count in cuda.copies if direction == "to host")
    assert down == len(frames) * sum(4 * int(np.prod(s.shape)) for s in results.values()) + size
    up = [count for direction, _, count in cuda.copies if direction == "to device"]
    assert sum(up) == sum(value.nbytes for inputs in frames for value in inputs.values())
    # The largest input goes first, so that the others are staged while it is on its way.
    assert up[0] == max(up)


def test_recorded_double_outputs_are_the_callers(
    frames: list[Inputs], make: Callable[..., TensorRtEngine]
) -> None:
    engine = make()
    first = engine.infer(frames[0])
    kept = {name: value.copy() for name, value in first.items()}
    engine.infer(frames[1])
    assert_same(first, kept)


def test_recorded_double_launches_one_graph_a_frame_and_allocates_nothing(
    frames: list[Inputs], cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    engine = make()
    cuda.calls.clear()
    for inputs in frames:
        engine.infer(inputs)
    assert cuda.calls.count("cudaGraphLaunch") == cuda.calls.count("cudaStreamSynchronize") == len(frames)
    assert not {"cudaMalloc", "cudaMallocHost", "cudaGraphInstantiate", "cudaFree"} & set(cuda.calls)


def test_recorded_double_hands_nan_outputs_to_the_pipeline(
    frames: list[Inputs], make: Callable[..., TensorRtEngine]
) -> None:
    engine = make()
    outputs = engine.infer({**frames[0], "ego_state": np.full_like(frames[0]["ego_state"], np.nan)})
    assert np.isnan(outputs["plan_sd"]).any()
    engine.reset_state()
    assert all(np.isfinite(value).all() for value in engine.infer(frames[0]).values())


def test_recorded_double_frees_everything_in_order(
    frames: list[Inputs], cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    engine = make()
    engine.infer(frames[0])
    engine.close()
    assert cuda.nothing_is_left()


def test_recorded_double_runs_the_shipped_bundle_in_every_precision(
    bundle: Bundle, make: Callable[..., TensorRtEngine]
) -> None:
    frames = made_up(bundle.contract)[:2]
    reference = OnnxRuntimeEngine(bundle.model_path, bundle.contract, num_threads=1)
    expected = [reference.infer(inputs) for inputs in frames]
    for precision, allowed in (("float32", 0.0), ("float16", 5e-3), ("bfloat16", 5e-2)):
        engine = make(network=bundle, options=BuildOptions(precision=precision))
        assert engine.info.precision == precision
        for inputs, there in zip(frames, expected, strict=True):
            apart = np.abs(engine.infer(inputs)["heatmap"] - there["heatmap"]).max()
            assert apart <= allowed and (apart > 0.0) == (precision != "float32")


# --- the cache ----------------------------------------------------------------------------------------------


def test_recorded_double_builds_once_and_keeps_compiled_kernels(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], said: list[str]
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    make(module=module).close()
    assert len(module.builds) == 1
    assert said == []


def test_recorded_double_keeps_an_engine_that_is_larger_than_what_is_free(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    plan, key = kept_plan(tmp_path / "engines")
    EngineCache(tmp_path / "engines").store(key, b"what the library does not load, and does not say why")
    monkeypatch.setattr(Cuda, "free_memory", lambda self: (1, 1 << 30))
    with pytest.raises(EngineUnavailableError, match=r"cannot be loaded on .* 0 of 1024 MiB free"):
        make(module=module)
    assert plan.read_bytes().startswith(b"what")
    assert len(module.builds) == 1


def test_recorded_double_finds_what_was_compiled_ahead_for_several_gpus(
    toy: ToyNetwork, cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path
) -> None:
    module = tensorrt_double(cuda)
    options = BuildOptions(compute_capabilities=("8.6", "8.9"))
    library = TensorRtLibrary(module, TENSORRT_RTX)
    build_engine(library, toy.model_path, options, EngineCache(tmp_path / "engines"), None)
    make(module=module).close()  # on 8.9
    assert [sorted(t.name for t in b.config.targets.values()) for b in module.builds] == [["SM86", "SM89"]]
    other = RecordedCuda(compute_capability="12.0")
    other_module = tensorrt_double(other)
    make(module=other_module, on=other).close()
    assert len(other_module.builds) == 1


def test_recorded_double_starts_without_kernels_that_do_not_fit_any_more(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    make().close()
    monkeypatch.setattr(recorded_tensorrt.IRuntimeCache, "deserialize", lambda self, content: False)
    make().close()
    assert said == ["kernels compiled before do not fit this machine any more; they are compiled again"]


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_recorded_double_rebuilds_a_damaged_engine_and_says_so(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path, said: list[str], damage: str
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    plan = max((tmp_path / "engines").glob(f"*/{PAYLOAD}"), key=lambda path: path.stat().st_size)
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content[:-100] if damage == "cut off" else content)
    make(module=module).close()
    assert len(module.builds) == 2
    assert len(said) == 1 and "is not used" in said[0] and "built again" in said[0]


def test_recorded_double_compiles_once_more_what_is_whole_and_cannot_be_loaded(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path, said: list[str]
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    plan, key = kept_plan(tmp_path / "engines")
    EngineCache(tmp_path / "engines").store(key, b"no plan")
    make(module=module).close()
    make(module=module).close()
    assert len(module.builds) == 2
    assert len(said) == 1
    assert f"cached engine {plan.parent} is of no use: it cannot be loaded; tensorrt_rtx 1.7" in said[0]


def test_recorded_double_keeps_an_engine_for_which_the_device_has_no_memory_left(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path, said: list[str]
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    kept = {path: path.read_bytes() for path in (tmp_path / "engines").glob(f"*/{PAYLOAD}")}
    cuda.fail["deserialize_cuda_engine"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EngineUnavailableError, match=r"cannot be loaded on .* MiB free; .*OutOfMemory"):
        make(module=module)
    assert cuda.nothing_is_left()
    cuda.fail.clear()
    assert {path: path.read_bytes() for path in kept} == kept
    make(module=module).close()
    assert len(module.builds) == 1
    assert said == []


def test_recorded_double_compiles_again_when_the_graph_is_made_otherwise(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, half = tensorrt_double(cuda), BuildOptions(precision="float16")
    make(module=module, options=half).close()
    make(module=module, options=half).close()
    assert len(module.builds) == 1
    monkeypatch.setattr(engine_graph, "CONVOLUTIONS", frozenset({"Gemm"}))  # the bundle stays as it is
    make(module=module, options=half).close()
    assert len(module.builds) == 2


def test_recorded_double_never_loads_what_was_built_otherwise(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], said: list[str]
) -> None:
    """Each of these would be refused by the library if it were taken from the cache."""
    newer = tensorrt_double(cuda, version="1.8.0.1")
    other_gpu = RecordedCuda(compute_capability="8.6", name="Recorded RTX 3090")
    modules = [tensorrt_double(cuda), newer, tensorrt_double(other_gpu)]
    for module, gpu in zip(modules, (cuda, cuda, other_gpu), strict=True):
        make(module=module, on=gpu).close()
    make(module=modules[0], options=BuildOptions(precision="float16")).close()
    make(module=modules[0], options=BuildOptions(optimization_level=1)).close()
    assert [len(module.builds) for module in modules] == [3, 1, 1]
    assert said == []


def test_recorded_double_runs_what_a_full_disk_does_not_keep(
    frames: list[Inputs],
    make: Callable[..., TensorRtEngine],
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    engine = make()
    assert np.isfinite(engine.infer(frames[0])["plan_sd"]).all()
    assert len(said) == 2 and all("No space left on device" in line for line in said)


def test_recorded_double_of_the_datacentre_library_keeps_its_timings(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    module = tensorrt_double(cuda, "tensorrt")
    make("tensorrt", module=module).close()
    make("tensorrt", module=module, options=BuildOptions(optimization_level=2)).close()
    seen: list[bytes] = []
    original = recorded_tensorrt.IBuilderConfig.create_timing_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recorded_tensorrt.IBuilderConfig, "create_timing_cache",
            lambda self, content: seen.append(content) or original(self, content),
        )  # fmt: skip
        make("tensorrt", module=module, options=BuildOptions(optimization_level=1)).close()
    assert seen == [b"measured"]


# --- weak and strong types ----------------------------------------------------------------------------------


def test_recorded_double_is_asked_for_strong_types(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    for name in ("tensorrt_rtx", "tensorrt"):
        module = tensorrt_double(cuda, name)
        make(name, module=module, options=BuildOptions(precision="float16", workspace_mib=256)).close()
        (build,) = module.builds
        assert build.network.flags == 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert not build.config.set_flags  # not even TF32, which is on by default
        assert list(build.config.pool_limits.values()) == [256 << 20]


def test_recorded_double_with_weak_types_fixes_the_float32_regions(
    bundle: Bundle, cuda: RecordedCuda, make: Callable[..., TensorRtEngine]
) -> None:
    module = tensorrt_double(cuda, "tensorrt")
    make(
        "tensorrt", module=module, network=bundle, options=BuildOptions(precision="float16", weak_types=True)
    ).close()
    (build,) = module.builds
    assert build.network.flags == 0
    assert build.config.set_flags == {module.BuilderFlag.FP16, module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS}
    fixed = {layer.name for layer in build.network.layers if layer.precision is module.float32}
    named = {node.name: node.op_type for node in build.network.model.graph.node}
    assert {"GridSample", "Softmax", "LayerNormalization", "Exp", "Log"} <= {named[name] for name in fixed}
    assert not {"Conv", "Gemm", "Cast"} & {named[name] for name in fixed}
    assert "TopK" in {named[name] for name in fixed}  # beside its values it gives places
    free = {layer.name for layer in build.network.layers if layer.precision is None}
    chosen = {named[name] for name in free if module.float32 in _made_by(build.network, name)}
    assert {"Mul", "Add", "Sigmoid"} <= chosen <= engine_graph.HARMLESS | {"Cast"}


def _made_by(network: Any, name: str) -> set[Any]:
    (layer,) = (layer for layer in network.layers if layer.name == name)
    return {layer.get_output(index).dtype for index in range(layer.num_outputs)}


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "11.0.0.114"), ("tensorrt_rtx", None)])
def test_recorded_double_without_weak_types_refuses_them(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], name: str, version: str | None
) -> None:
    module = tensorrt_double(cuda, name, version=version)
    with pytest.raises(ConfigError, match="has no weak types for float16"):
        make(name, module=module, options=BuildOptions(precision="float16", weak_types=True))
    assert cuda.nothing_is_left()


# --- faults -------------------------------------------------------------------------------------------------


def test_recorded_double_of_another_major_version_is_refused(cuda: RecordedCuda) -> None:
    for name, version, known in (("tensorrt", "8.6.1", "10 or 11"), ("tensorrt_rtx", "2.0.0", "1")):
        with pytest.raises(EngineUnavailableError, match=f"{version} is installed; .* version {known}"):
            TensorRtLibrary(tensorrt_double(cuda, name, version=version), BACKEND_OF[name])


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (RecordedCuda(driver=0), "no NVIDIA driver is installed"),
        (
            RecordedCuda(driver=12040),
            r"driver offers CUDA 12.4, the bindings want 13.5; .*'cuda-bindings<13'",
        ),
        (RecordedCuda(num_devices=0), "cudaErrorNoDevice"),
    ],
)
def test_recorded_double_without_a_usable_gpu_says_why(gpu: RecordedCuda, message: str) -> None:
    with pytest.raises(EngineUnavailableError, match="no GPU can be used: .*" + message):
        Cuda(gpu)


def test_recorded_double_of_a_gpu_that_the_library_does_not_know(make: Callable[..., TensorRtEngine]) -> None:
    gpu = RecordedCuda(name="Recorded H100", compute_capability="9.0")
    with pytest.raises(ConfigError, match=r"'9.0' of Recorded H100 is not one .* 8.6, 8.9"):
        make(on=gpu)
    assert gpu.nothing_is_left()


@pytest.mark.parametrize(
    ("memory_bytes", "message"),
    [
        (1 << 11, r"no device memory for tensor '\w+': 0.0 MiB wanted, 0.0 of 0 MiB are free"),
        (12 << 20, r"no device memory for the network's 16.0 MiB .* 12 of 12 MiB free; .*OutOfMemory"),
    ],
)
def test_recorded_double_out_of_device_memory_says_what_for(
    make: Callable[..., TensorRtEngine], memory_bytes: int, message: str
) -> None:
    gpu = RecordedCuda(memory_bytes=memory_bytes)
    with pytest.raises(EngineUnavailableError, match=message):
        make(on=gpu)
    assert gpu.nothing_is_left()


def test_recorded_double_refusing_an_operator_is_quoted_with_the_node(
    cuda: RecordedCuda, tmp_path: Path
) -> None:
    x, y = (helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 2, 2]), ("y", [1])))
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"], "my_det")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    library = TensorRtLibrary(tensorrt_double(cuda), TENSORRT_RTX)
    with pytest.raises(
        EngineUnavailableError,
        match=r"cannot be parsed: node 'my_det' \(Det\): UNSUPPORTED_NODE.* tensorrt_rtx 1.7.1.116 says: "
        "In node my_det",
    ):
        compile_graph(
            library, EngineGraph(model, 0, 1), BuildOptions(), ("8.9",), EngineCache(tmp_path), Cuda(cuda).gpu
        )


def test_recorded_double_is_not_even_asked_about_an_operator_that_is_not_allowed(
    toy: ToyNetwork, cuda: RecordedCuda, tmp_path: Path
) -> None:
    model = onnx.load(str(toy.model_path))
    heat = next(node for node in model.graph.node if node.name == "heat")
    heat.op_type = "Softsign"
    onnx.save(model, str(tmp_path / "model.onnx"))
    module = tensorrt_double(cuda)
    with pytest.raises(
        ContractError, match=r"the graph holds Softsign \(heat\), which not every engine takes"
    ):
        build_engine(
            TensorRtLibrary(module, TENSORRT_RTX), tmp_path / "model.onnx", BuildOptions(),
            EngineCache(tmp_path / "engines"), Cuda(cuda).gpu,
        )  # fmt: skip
    assert module.builds == []


def test_recorded_double_with_another_interface_than_the_contract_is_refused(
    toy: ToyNetwork, cuda: RecordedCuda, tmp_path: Path
) -> None:
    model = onnx.load(str(toy.model_path))
    del model.graph.output[0]  # heatmap
    onnx.save(model, str(tmp_path / "model.onnx"))
    library = TensorRtLibrary(tensorrt_double(cuda), TENSORRT_RTX)
    with pytest.raises(BundleError, match="output 'heatmap' is missing, the contract says"):
        TensorRtEngine(library, tmp_path / "model.onnx", toy.contract, cuda=Cuda(cuda),
                       cache=EngineCache(tmp_path / "engines"))  # fmt: skip
    assert cuda.nothing_is_left()


def test_recorded_double_that_does_not_load_an_engine_says_why_and_what_to_do(
    cuda: RecordedCuda, make: Callable[..., TensorRtEngine], tmp_path: Path
) -> None:
    module = tensorrt_double(cuda)
    make(module=module).close()
    cuda.compute_capability = "8.6"  # the library sees another GPU than was asked for
    gpu = Cuda(RecordedCuda()).gpu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cuda, "_find_gpu", lambda self: gpu)
        with pytest.raises(
            EngineUnavailableError,
            match=r"cannot be loaded on Recorded RTX .* MiB free; tensorrt_rtx 1.7.1.116 says: .* is for SM89"
            rf"; to have it compiled again, remove {tmp_path}",
        ):
            make(module=module)
    assert cuda.nothing_is_left()


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaStreamSynchronize", "cudaMemcpyAsync"])
def test_recorded_double_failing_in_a_frame_is_an_error_and_can_still_be_closed(
    frames: list[Inputs], cuda: RecordedCuda, make: Callable[..., TensorRtEngine], function: str
) -> None:
    engine = make()
    cuda.fail[function] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(EngineUnavailableError, match=f"{function} failed with cudaErrorIllegalAddress"):
        engine.infer(frames[0])
    engine.reset_state()  # as the pipeline does after a bad frame
    engine.close()


def test_recorded_double_that_cannot_be_captured_runs_without_graphs_and_says_so(
    frames: list[Inputs], cuda: RecordedCuda, make: Callable[..., TensorRtEngine],
    monkeypatch: pytest.MonkeyPatch, said: list[str],
) -> None:  # fmt: skip
    expected = make().infer(frames[0])
    monkeypatch.setattr(recorded_tensorrt.RtxExecutionContext, "capturable", False)
    engine = make()
    assert not engine.uses_cuda_graphs
    assert said == ["this engine cannot be captured in a CUDA graph; its kernels are launched one by one"]
    assert_same(engine.infer(frames[0]), expected)
    said.clear()
    cuda.fail["cudaGraphInstantiate"] = cudaError_t.cudaErrorInvalidValue
    engine = make("tensorrt")
    assert not engine.uses_cuda_graphs
    assert len(said) == 1 and "no CUDA graph: CUDA: cudaGraphInstantiate failed" in said[0]
    assert_same(engine.infer(frames[0]), expected)


def test_recorded_double_of_tensorrt_builds_only_for_the_gpu_that_is_there(
    toy: ToyNetwork, cuda: RecordedCuda, tmp_path: Path
) -> None:
    library = TensorRtLibrary(tensorrt_double(cuda, "tensorrt"), TENSORRT)
    cache = EngineCache(tmp_path)
    with pytest.raises(
        EngineUnavailableError, match="and there is none here; backend 'tensorrt-rtx' compiles"
    ):
        build_engine(library, toy.model_path, BuildOptions(), cache, None)
    with pytest.raises(ConfigError, match="compiles for this machine's GPU alone"):
        build_engine(library, toy.model_path, BuildOptions(compute_capabilities=("8.6",)), cache, None)


def test_recorded_double_is_what_create_engine_loads_where_there_is_a_gpu(
    bundle: Bundle, cuda: RecordedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = TensorRtLibrary(tensorrt_double(cuda), TENSORRT_RTX)
    monkeypatch.setattr(engines, "load_library", {TENSORRT_RTX: library}.__getitem__)
    monkeypatch.setattr(engines, "find_module", {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: None}.get)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "")
    monkeypatch.setattr("e2e_perception.deploy.engines.cuda_memory._import_bindings", lambda: cuda)
    said: list[str] = []
    for backend in ("tensorrt-rtx", "auto"):
        config = EngineConfig(backend=backend, precision="float16", cache_directory=str(tmp_path))
        engine = configured_engine(bundle, config, said.append)
        assert str(engine.info) == (
            "tensorrt-rtx 1.7.1.116 on Recorded RTX (compute capability 8.9), float16; checked against torch"
        )
        assert np.isfinite(engine.infer(made_up(bundle.contract)[0])["plan_sd"]).all()
        engine.close()
    assert said == [
        "compiling the network with tensorrt_rtx 1.7.1.116 in float16; the next start takes it from "
        f"{tmp_path}"
    ]
    assert cuda.nothing_is_left()
    with pytest.raises(EngineUnavailableError, match="'torch' runs in float32, not in 'float16'"):
        configured_engine(bundle, EngineConfig(backend="torch", precision="float16"), said.append)


def test_recorded_double_of_an_engine_built_ahead_with_other_effort_is_found_by_the_robot(
    bundle: Bundle, cuda: RecordedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tensorrt_double(cuda)
    library = TensorRtLibrary(module, TENSORRT_RTX)
    monkeypatch.setattr(engines, "load_library", {TENSORRT_RTX: library}.__getitem__)
    monkeypatch.setattr(engines, "find_module", {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: None}.get)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "")
    monkeypatch.setattr("e2e_perception.deploy.engines.cuda_memory._import_bindings", lambda: cuda)
    options = BuildOptions(compute_capabilities=("8.9",), optimization_level=1, workspace_mib=256)
    build_engine(library, bundle.model_path, options, EngineCache(tmp_path), None)
    config = EngineConfig(backend="tensorrt-rtx", cache_directory=str(tmp_path))
    said: list[str] = []
    same = config.model_copy(update={"optimization_level": 1, "workspace_mib": 256})
    configured_engine(bundle, same, said.append).close()
    assert (len(module.builds), said) == (1, [])
    configured_engine(bundle, config, said.append).close()
    assert len(module.builds) == 2
    with pytest.raises(ConfigError, match="has no weak types for float32"):
        configured_engine(bundle, config.model_copy(update={"weak_types": True}), said.append)


@pytest.mark.parametrize(
    ("graph", "rest", "expected"),
    [
        ("float32", "float16", "float16"),
        ("int8", "float32", "int8"),
        ("int8", "float16", "int8 + float16"),
    ],
)
def test_recorded_double_says_what_the_graph_and_the_rest_of_it_are_in(
    make: Callable[..., TensorRtEngine], graph: str, rest: str, expected: str
) -> None:
    engine = make(graph_precision=graph, options=BuildOptions(precision=rest))
    assert engine.info.precision == expected


def test_recorded_double_that_refuses_is_passed_over_by_auto_alone(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = RecordedCuda(name="Recorded H100", compute_capability="9.0")  # none that the library compiles for
    library = TensorRtLibrary(tensorrt_double(gpu), TENSORRT_RTX)
    monkeypatch.setattr(engines, "load_library", {TENSORRT_RTX: library}.__getitem__)
    monkeypatch.setattr(engines, "find_module", {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: None}.get)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "")
    monkeypatch.setattr("e2e_perception.deploy.engines.cuda_memory._import_bindings", lambda: gpu)
    said: list[str] = []
    cache = EngineCache(tmp_path)
    engine = engines.create_engine(bundle, "auto", 1, cache=cache, log=said.append)
    assert engine.info.backend == "onnxruntime"
    assert len(said) == 1 and "'tensorrt-rtx' is passed over: compute capability '9.0' of Recorded" in said[0]
    for backend, precision in (("tensorrt-rtx", "float32"), ("auto", "float16")):  # no other has float16
        with pytest.raises(ConfigError, match=r"compute capability '9.0' of Recorded H100 is not one that"):
            engines.create_engine(bundle, backend, 1, precision=precision, cache=cache)
    assert gpu.nothing_is_left()


@pytest.mark.parametrize("error", [ContractError("the graph holds Softsign"), BundleError("no such output")])
def test_recorded_double_is_passed_over_by_auto_for_a_graph_that_it_does_not_take(
    bundle: Bundle, cuda: RecordedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    library = TensorRtLibrary(tensorrt_double(cuda), TENSORRT_RTX)
    monkeypatch.setattr(engines, "load_library", {TENSORRT_RTX: library}.__getitem__)
    monkeypatch.setattr(engines, "find_module", {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: None}.get)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "")
    monkeypatch.setattr("e2e_perception.deploy.engines.cuda_memory._import_bindings", lambda: cuda)

    def refuse(operators: object) -> None:
        raise error

    monkeypatch.setattr("e2e_perception.deploy.engines.tensorrt_builder.check_operators", refuse)
    said: list[str] = []
    engine = engines.create_engine(bundle, "auto", 1, cache=EngineCache(tmp_path), log=said.append)
    assert engine.info.backend == "onnxruntime"
    assert said == [f"backend 'tensorrt-rtx' is passed over: {error}"]
    with pytest.raises(type(error)):
        engines.create_engine(bundle, "tensorrt-rtx", 1, cache=EngineCache(tmp_path))
    assert cuda.nothing_is_left()
