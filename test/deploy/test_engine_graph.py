"""Graphs with half-precision regions: what is in half precision, what is not, and what that does to the
results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from synthetic import synthetic_clip

from e2e_perception.core.errors import ContractError
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.deploy.engine_graph import engine_graph, operators, rounded_in_float32
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.deploy.operators import ALLOWED_OPERATORS, check_operators

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
PRECISIONS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
# None of these may lose digits.
FLOAT32_ONLY = frozenset(
    "GridSample Softmax LogSoftmax LayerNormalization Exp Log Sigmoid Tanh Sin Cos Sqrt Div Pow ReduceSum "
    "ReduceMean ReduceMax TopK Where AveragePool Reciprocal".split()
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("tiny")


def element_types(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


def signature(model: ModelProto) -> list[tuple[str, int, list[int]]]:
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]


@pytest.mark.parametrize("precision", ["float32", *PRECISIONS])
def test_inputs_and_outputs_are_those_of_the_bundle(bundle: Bundle, precision: str) -> None:
    source = onnx.load(str(bundle.model_path))
    assert signature(engine_graph(bundle.model_path, precision).model) == signature(source)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_and_linear_layers_are_in_half_precision_and_nothing_delicate_is(
    bundle: Bundle, precision: str
) -> None:
    made = engine_graph(bundle.model_path, precision)
    types = element_types(made.model)
    nodes = made.model.graph.node
    half = [
        node for node in nodes if node.op_type != "Cast" and types[node.output[0]] == PRECISIONS[precision]
    ]
    assert len(half) == made.num_half_nodes > 150
    assert not {node.op_type for node in half} & FLOAT32_ONLY
    assert all(types[n.output[0]] == PRECISIONS[precision] for n in nodes if n.op_type in ("Conv", "Gemm"))
    # Projection, warp and route are products too, but their numbers are metres and pixels.
    source = {node.name: node for node in onnx.load(str(bundle.model_path)).graph.node}
    products = {n.name: types[n.output[0]] in HALF for n in nodes if n.op_type == "MatMul"}
    for name, is_half in products.items():
        geometric = {"image_from_base", "bev_theta", "route"} & _sources(source, source[name].input, depth=2)
        assert not (is_half and geometric), name
    assert sum(products.values()) == 45


def _sources(nodes: dict[str, onnx.NodeProto], names: list[str], depth: int) -> set[str]:
    """Values that lead to others within so many operators."""
    found = set(names)
    if depth:
        for node in nodes.values():
            if set(node.output) & set(names):
                found |= _sources(nodes, list(node.input), depth - 1)
    return found


def test_bytes_become_numbers_at_the_input(bundle: Bundle) -> None:
    model = engine_graph(bundle.model_path, "float32").model
    users = [node for node in model.graph.node if "images" in node.input]
    assert [node.op_type for node in users] == ["Cast"]


def test_the_float32_graph_gives_bit_for_bit_what_the_bundle_gives(bundle: Bundle, tmp_path: Path) -> None:
    onnx.save(engine_graph(bundle.model_path, "float32").model, str(tmp_path / "model.onnx"))
    for name, (got, expected) in _both(bundle, tmp_path / "model.onnx").items():
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_rounding_in_float32_is_what_half_precision_does(bundle: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime has float16 itself, so that the stand-in can be compared; bfloat16 it has not."""
    model = engine_graph(bundle.model_path, "float16").model
    onnx.save(model, str(tmp_path / "half.onnx"))
    onnx.save(rounded_in_float32(model), str(tmp_path / "rounded.onnx"))
    half = _both(bundle, tmp_path / "half.onnx")
    rounded = _both(bundle, tmp_path / "rounded.onnx")
    for name in ("heatmap", "bev_maps", "plan_sd", "plan_costs"):
        apart = np.abs(half[name][0] - half[name][1]).max()
        assert 0.0 < np.abs(rounded[name][0] - rounded[name][1]).max() < 3.0 * apart, name


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [("float16", {"heatmap": 5e-3, "plan_sd": 2e-3, "bev_maps": 5e-2}),
     ("bfloat16", {"heatmap": 5e-2, "plan_sd": 2e-2, "bev_maps": 0.5})],
)  # fmt: skip
def test_half_precision_changes_the_plan_by_millimetres(
    bundle: Bundle, tmp_path: Path, precision: str, allowed: dict[str, float]
) -> None:
    """Heat as a probability, proposals in metres, maps as a probability or in metres a second."""
    rounded = rounded_in_float32(engine_graph(bundle.model_path, precision).model)
    onnx.save(rounded, str(tmp_path / "model.onnx"))
    outputs = _both(bundle, tmp_path / "model.onnx")
    for name, most in allowed.items():
        got, expected = outputs[name]
        assert 0.0 < np.abs(got - expected).max() < most, name


def _both(bundle: Bundle, model: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Outputs of two frames of a clip, from a graph and from the bundle's own."""
    clip = synthetic_clip(bundle.network, num_frames=2)
    specs = {spec.name: spec for spec in bundle.contract.inputs}
    engines = [OnnxRuntimeEngine(path, bundle.contract, num_threads=1) for path in (model, bundle.model_path)]
    outputs: list[dict[str, np.ndarray]] = [{}, {}]
    for frame in range(2):
        inputs = {
            name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items() if name != "bev_memory"
        }
        for name, value in clip.inputs.items():
            inputs[name] = value[frame][None].astype(specs[name].dtype)
        inputs["memory_valid"][:] = float(frame > 0)
        inputs["bev_theta"][:] = np.eye(2, 3)
        outputs = [engine.infer(inputs) for engine in engines]
    return {name: (outputs[0][name], outputs[1][name]) for name in outputs[0]}


def _model(nodes: list[onnx.NodeProto], weight: float = 1.0, uint8: bool = False) -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.UINT8 if uint8 else TensorProto.FLOAT, [1, 2, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    w = numpy_helper.from_array(np.full((2, 2, 1, 1), weight, np.float32), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    onnx.save(_model([helper.make_node("Conv", ["x", "w"], ["y"], "c")], 1e5), str(tmp_path / "m.onnx"))
    with pytest.raises(ContractError, match=r"weight 'w' reaches 1e.05, too much for float16; .* bfloat16"):
        engine_graph(tmp_path / "m.onnx", "float16")
    assert engine_graph(tmp_path / "m.onnx", "bfloat16").num_half_nodes == 1


def test_bytes_that_are_used_as_bytes_are_refused_by_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "on_bytes"),
        helper.make_node("Cast", ["r"], ["y"], "c", to=TensorProto.FLOAT),
    ]
    onnx.save(_model(nodes, uint8=True), str(tmp_path / "m.onnx"))
    with pytest.raises(ContractError, match="input 'x' is uint8 and goes to Relu 'on_bytes'"):
        engine_graph(tmp_path / "m.onnx", "float32")


def test_a_half_result_that_is_an_output_or_used_twice_is_cast_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Exp", ["a"], ["b"], "exp"),
        helper.make_node("Log", ["a"], ["c"], "log"),
        helper.make_node("Conv", ["a", "w"], ["d"], "second"),
        helper.make_node("Add", ["b", "c"], ["e"], "sum"),
        helper.make_node("Add", ["e", "d"], ["y"], "all"),
    ]
    onnx.save(_model(nodes), str(tmp_path / "m.onnx"))
    model = engine_graph(tmp_path / "m.onnx", "float16").model
    casts = [(node.input[0], node.output[0]) for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [("x", "x_half"), ("a_half", "a"), ("d_half", "d")]


def test_the_shipped_graph_holds_allowed_operators_alone(bundle: Bundle) -> None:
    for precision in ("float32", *PRECISIONS):
        check_operators(operators(engine_graph(bundle.model_path, precision).model))


def test_an_operator_that_is_not_allowed_is_named_with_its_node() -> None:
    assert "NonZero" not in ALLOWED_OPERATORS
    with pytest.raises(ContractError, match=r"holds NonZero \(where_is_it\), Loop \(without a name\), which"):
        check_operators([("Relu", "r"), ("NonZero", "where_is_it"), ("Loop", "")])
