"""The graph that a compiler is given: a bundle's graph, with half-precision regions written into it.

TensorRT takes a strongly typed network at its word, so precision is a matter of the graph and not of flags.
In half precision run the convolutions and linear layers, where nearly all of the time goes, and what lies
between two of them and only moves, selects or adds values. Everything else stays in float32: geometry,
sampling, warps, softmax, normalisations, exponentials, the recurrent state, and all inputs and outputs of
the contract. A cast marks every border. Convolutions in eight bits stay as they are: behind a cast,
DequantizeLinear and a convolution would no longer be the pattern by which a compiler knows one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from e2e_perception.core.errors import ContractError

HALF_TYPES: Mapping[str, tuple[int, DTypeLike]] = {
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, bfloat16),
}
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "Gemm"})
# Give the values that they are given, so that half precision costs nothing between two half-precision layers.
EXACT = frozenset(
    {"Relu", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Split"}
)
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
# Round a value that has half precision once more, and that is all: among them no quotient, exponential, sum
# over many, choice or place.
HARMLESS = frozenset(
    {"Add", "Clip", "LeakyRelu", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Tanh", "Where", "Concat", "Split"}
) | frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"})
# The first in which every operator of a half-precision region takes bfloat16; since 20 only types were added.
BFLOAT16_OPSET = 22


@dataclass(frozen=True)
class EngineGraph:
    """A graph ready to be compiled.

    Attributes:
        model: The graph.
        num_half_nodes: Operators in half precision, without casts.
        num_nodes: All of its operators, casts included.
        free_nodes: Operators in float32 that are given nothing but weights and results of half precision, and
            do no harm to those; a compiler may be left to choose their precision.
    """

    model: ModelProto
    num_half_nodes: int
    num_nodes: int
    free_nodes: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """SHA-256 of what a compiler is given: of the source, and of what is made of it here."""
        return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()


def engine_graph(source: Path, precision: str) -> EngineGraph:
    """A bundle's graph as an engine is built from it.

    Args:
        source: `model.onnx`, in float32, or with convolutions in int8.
        precision: `float32`, `float16` or `bfloat16`, of convolutions and linear layers.
    Returns:
        The graph; its inputs and outputs are those of the source.
    Raises:
        ContractError: If a weight is too large for the precision, or pictures cannot be turned into
            numbers at the input.
    """
    model = onnx.load(str(source))
    _numbers_first(model)
    num_half = 0
    if precision != "float32":
        num_half = _with_half_regions(model, precision)
    onnx.checker.check_model(model, full_check=True)
    return EngineGraph(model, num_half, len(model.graph.node), _free_nodes(model))


def rounded_in_float32(model: ModelProto) -> ModelProto:
    """What a graph with half-precision regions computes, in float32 operators that every runtime has.

    Operators compute in float32 and each of their results is rounded to the half type: what hardware does
    that accumulates in float32.

    Args:
        model: From `engine_graph`.
    Returns:
        The same graph without half-precision operators; it gives what the half-precision one gives, but for
        the order of sums.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    types = _element_types(model)
    half = {number for number, _ in HALF_TYPES.values()}
    for index, weight in enumerate(graph.initializer):
        if weight.data_type in half:
            values = numpy_helper.to_array(weight).astype(np.float32)
            graph.initializer[index].CopyFrom(numpy_helper.from_array(values, weight.name))
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in half:
                exact, rounded = f"{name}_exact", f"{name}_rounded"
                node.output[index] = exact
                if node.op_type == "Cast":
                    del node.attribute[:]
                    node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
                nodes += [
                    helper.make_node("Cast", [exact], [rounded], f"{name}_round", to=types[name]),
                    helper.make_node("Cast", [rounded], [name], f"{name}_widen", to=TensorProto.FLOAT),
                ]
    _replace_nodes(twin, nodes)
    onnx.checker.check_model(twin, full_check=True)
    return twin


def operators(model: ModelProto) -> Iterator[tuple[str, str]]:
    """Operator and name of every node."""
    for node in model.graph.node:
        yield node.op_type, node.name


def _numbers_first(model: ModelProto) -> None:
    """Cast bytes at the input: TensorRT takes them there and nowhere else, not even to reshape them."""
    graph = model.graph
    consumers = _consumers(graph.node)
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        path = [_only_user(consumers, value.name)]  # changes of shape, then the cast
        while path[-1].op_type in MOVES:
            path.append(_only_user(consumers, path[-1].output[0]))
        *moves, cast = path
        if cast.op_type != "Cast":
            raise ContractError(
                f"input {value.name!r} is uint8 and goes to {cast.op_type} {cast.name!r}; TensorRT wants it "
                "cast first, or after nothing but changes of shape"
            )
        if not moves:
            continue
        for user in consumers[cast.output[0]]:
            _rename_inputs(user, {cast.output[0]: cast.input[0]})
        numbers = f"{value.name}_numbers"
        _rename_inputs(moves[0], {value.name: numbers})
        cast.input[0], cast.output[0] = value.name, numbers
        _replace_nodes(model, [cast, *(node for node in graph.node if node.name != cast.name)])


def _only_user(consumers: Mapping[str, list[NodeProto]], name: str) -> NodeProto:
    users = consumers.get(name, [])
    if len(users) != 1:
        found = ", ".join(f"{user.op_type} {user.name!r}" for user in users) or "nothing"
        raise ContractError(f"{name!r} is uint8 and goes to {found}; TensorRT wants it cast first, once")
    return users[0]


def _with_half_regions(model: ModelProto, precision: str) -> int:
    """Put what may run in half precision into it; returns how many operators that are."""
    half_type, half_dtype = HALF_TYPES[precision]
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    outputs = {value.name for value in graph.output}
    half_nodes = _half_nodes(graph.node, weights)
    nodes: list[NodeProto] = []
    narrow: dict[str, str] = {}  # float32 name -> name of the same value in half precision
    results: set[str] = set()  # float32 names of what half-precision operators gave
    wide: set[str] = set()  # those of them that were cast to float32

    def in_half(name: str) -> str:
        if name not in narrow:
            narrow[name] = f"{name}_half"
            if name in weights:
                graph.initializer.append(_narrow_weight(weights[name], narrow[name], half_dtype, precision))
            else:
                nodes.append(
                    helper.make_node("Cast", [name], [narrow[name]], f"{name}_to_half", to=half_type)
                )
        return narrow[name]

    def widen(name: str) -> None:
        if name in results and name not in wide:
            wide.add(name)
            nodes.append(
                helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_to_float", to=TensorProto.FLOAT)
            )

    for index, node in enumerate(graph.node):
        if index in half_nodes:
            _rename_inputs(node, {name: in_half(name) for name in _data_inputs(node)})
            made = list(node.output)
            for position, name in enumerate(made):
                node.output[position] = narrow[name] = f"{name}_half"
            nodes.append(node)
            results.update(made)
            for name in made:
                if name in outputs:
                    widen(name)
        else:
            for name in node.input:
                widen(name)
            nodes.append(node)
    _replace_nodes(model, nodes)
    if precision == "bfloat16":
        for opset in model.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, BFLOAT16_OPSET)
    return len(half_nodes)


def _half_nodes(nodes: Iterable[NodeProto], weights: Mapping[str, TensorProto]) -> set[int]:
    """Positions of the operators that run in half precision."""
    nodes = list(nodes)
    consumers = _consumers(nodes)
    position = {node.output[0]: index for index, node in enumerate(nodes)}
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    chosen: set[int] = set()
    for index, node in enumerate(nodes):
        if node.op_type in CONVOLUTIONS:
            if dequantized.isdisjoint(node.input):
                chosen.add(index)
        elif (bias := _bias_of_linear(node, consumers, weights)) is not None:
            chosen.update((index, position[bias.output[0]]))
    made = {name for index in chosen for name in nodes[index].output}
    for index, node in enumerate(nodes):
        joins = (
            node.op_type in EXACT
            or node.op_type == "Add"
            or (node.op_type == "Resize" and _attribute(node, "mode") == b"nearest")
        )
        if index not in chosen and joins and all(name in made for name in _data_inputs(node)):
            chosen.add(index)
            made.update(node.output)
    return chosen


def _free_nodes(model: ModelProto) -> frozenset[str]:
    """Names of `EngineGraph.free_nodes`."""
    half = {number for number, _ in HALF_TYPES.values()}
    types = _element_types(model)
    weights = {weight.name for weight in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    rounded = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Cast" and types.get(node.input[0]) in half
    }
    free = set()
    for node in model.graph.node:
        given = {name for name in node.input if name} - weights
        if node.op_type in HARMLESS and given and given <= rounded and outputs.isdisjoint(node.output):
            free.add(node.name)
            rounded.update(node.output)
    return frozenset(free)


def _bias_of_linear(
    node: NodeProto, consumers: Mapping[str, list[NodeProto]], weights: Mapping[str, TensorProto]
) -> NodeProto | None:
    """The addition behind the product of a linear layer; products of geometry and attention have none."""
    if node.op_type != "MatMul" or node.input[1] not in weights or len(weights[node.input[1]].dims) != 2:
        return None
    users = consumers[node.output[0]]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    (other,) = (name for name in users[0].input if name != node.output[0])
    return users[0] if other in weights and len(weights[other].dims) == 1 else None


def _data_inputs(node: NodeProto) -> list[str]:
    """Inputs that carry values; the others are shapes, axes and scales."""
    if node.op_type in CONVOLUTIONS | {"MatMul", "Add", "Concat"}:
        return [name for name in node.input if name]
    return [node.input[0]]


def _narrow_weight(weight: TensorProto, name: str, dtype: DTypeLike, precision: str) -> TensorProto:
    values = numpy_helper.to_array(weight)
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype)
    if not np.isfinite(narrowed.astype(np.float32)).all():
        raise ContractError(
            f"weight {weight.name!r} reaches {np.abs(values).max():.3g}, too much for {precision}; "
            "build the engine in bfloat16 or float32"
        )
    return numpy_helper.from_array(narrowed, name)


def _replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Give a graph other nodes; weights that no longer have a use, and inferred types, go."""
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in used]
    kept_weights = [TensorProto.FromString(weight.SerializeToString()) for weight in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_weights)
    del model.graph.value_info[:]


def _element_types(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


def _consumers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _rename_inputs(node: NodeProto, names: Mapping[str, str]) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)


def _attribute(node: NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
