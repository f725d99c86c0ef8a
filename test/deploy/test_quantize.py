"""Eight-bit graphs: what is quantized, what is not, that both kinds of engine take it, and what it costs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; quantizing needs it")

import onnx
import onnxruntime
from onnx import numpy_helper

from e2e_perception.core.errors import BundleError, EngineMismatchError
from e2e_perception.deploy import parity
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engine_cache import EngineCache
from e2e_perception.deploy.engine_graph import engine_graph
from e2e_perception.deploy.engines import create_engine
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions, build_engine
from e2e_perception.deploy.engines.tensorrt_library import TENSORRT_RTX, find_module, load_library
from e2e_perception.deploy.parity import Tolerance, checked_engine
from e2e_perception.deploy.quantize import QUANTIZED, quantize_bundle
from e2e_perception.deploy.rollouts import generated_frames


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return load_bundle("tiny")


def quantized(bundle: Bundle, out: Path, **options: Any) -> dict[str, float]:
    return quantize_bundle(
        bundle,
        out,
        calibration=[generated_frames(bundle.network, num_frames=2, seed=7)],
        rollouts=[generated_frames(bundle.network, num_frames=4)],
        source="generated",
        **options,
    )


@pytest.fixture(scope="module")
def int8_dir(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "tiny-int8"
    quantized(tiny, out)
    return out


def test_a_quantized_bundle_says_what_it_is_and_of_what(tiny: Bundle, int8_dir: Path, tmp_path: Path) -> None:
    bundle = load_bundle(int8_dir)
    assert (bundle.name, bundle.precision) == ("tiny-int8", "int8")
    assert bundle.manifest["provenance"]["parent"] == tiny.digest
    assert bundle.manifest["quantization"] == {"source": "generated", "frames": 2, "convolutions": 10}
    assert bundle.weights_path.read_bytes() == tiny.weights_path.read_bytes()
    figures = json.loads((int8_dir / "evaluation.json").read_text())
    assert all(name.startswith("difference_from_torch/") for name in figures)
    engine = checked_engine(
        create_engine(bundle, "onnxruntime", 1),
        bundle,
        cache=EngineCache(tmp_path / "engines"),
        accept_mismatch=False,
        log=lambda sentence: None,
    )
    assert "int8; checked against torch" in str(engine.info)


def test_only_what_sees_the_cameras_is_quantized_and_as_tensorrt_wants_it(int8_dir: Path) -> None:
    graph = onnx.load(str(int8_dir / "model.onnx")).graph
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            source = made_by.get(node.input[1])
            name = node.input[1] if source is None else source.input[0]
            assert (source is not None) == name.startswith(QUANTIZED), name
            if source is not None:
                assert weights[source.input[0]].data_type == onnx.TensorProto.INT8
                assert list(weights[source.input[1]].dims) == list(weights[source.input[0]].dims[:1])
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = numpy_helper.to_array(weights[node.input[2]])
            assert zero.dtype == np.int8 and not zero.any(), node.name


def test_nothing_but_convolutions_sees_rounded_inputs(int8_dir: Path) -> None:
    graph = onnx.load(str(int8_dir / "model.onnx")).graph
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input:
            source = made_by.get(name)
            if source is not None and source.op_type == "DequantizeLinear":
                origin = made_by[made_by[source.input[0]].input[0]]
                assert origin.op_type == "Conv", f"{node.name} sees {origin.name} rounded"


@pytest.mark.parametrize("rest", ["float16", "bfloat16"])
def test_half_precision_leaves_quantized_convolutions_to_be_recognised(int8_dir: Path, rest: str) -> None:
    made = engine_graph(int8_dir / "model.onnx", rest)
    made_by = {name: node for node in made.model.graph.node for name in node.output}
    operator_of = {name: node.op_type for name, node in made_by.items()}
    convolutions = [node for node in made.model.graph.node if node.op_type == "Conv"]
    fed = [[operator_of.get(name) for name in node.input[:2]] for node in convolutions]
    assert fed.count(["DequantizeLinear", "DequantizeLinear"]) == 10
    for node in made.model.graph.node:
        if node.op_type == "Cast":
            assert operator_of.get(node.input[0]) != "DequantizeLinear", node.name
    # What is not quantized is in half precision all the same.
    assert sum("Cast" in operators for operators in fed) > 0 and made.num_half_nodes > 100


def test_onnxruntime_runs_every_quantized_convolution_in_eight_bits(int8_dir: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(int8_dir / "model.onnx"), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    assert counts["QLinearConv"] == 10


@pytest.mark.skipif(
    find_module(TENSORRT_RTX) is None,
    reason="TensorRT-RTX is not installed: `pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings`; "
    "whether int8 graphs compile was not tried",
)
@pytest.mark.parametrize("rest", ["float32", "float16"])
def test_tensorrt_compiles_the_graph(int8_dir: Path, tmp_path: Path, rest: str) -> None:
    options = BuildOptions(precision=rest, compute_capabilities=("8.6",), optimization_level=0)
    library = load_library(TENSORRT_RTX)
    built = build_engine(library, int8_dir / "model.onnx", options, EngineCache(tmp_path / "engines"), None)
    assert len(built.plan) > 100_000
    assert (built.num_half_nodes or 0) > 0 if rest == "float16" else not built.num_half_nodes


def test_an_int8_bundle_is_not_quantized_again(int8_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is int8 already; quantize the bundle that it was made from"):
        quantized(load_bundle(int8_dir), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_int8_graph_that_differs_too_much_is_not_written(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Tolerance(dict.fromkeys(parity.TOLERANCES["int8"].outputs, 1e-9), plan=1.0, least_score=0.0)
    monkeypatch.setitem(parity.TOLERANCES, "int8", strict)  # type: ignore[arg-type]
    with pytest.raises(EngineMismatchError, match=r"in int8 differs from torch over 4 frames \(generated"):
        quantized(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()
