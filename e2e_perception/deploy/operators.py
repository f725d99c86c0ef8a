"""Which operators a graph may hold: those that ONNX Runtime, TensorRT and TensorRT-RTX all take."""

from __future__ import annotations

from collections.abc import Iterable

from e2e_perception.core.errors import ContractError

# What the network's modules export to. Left out on purpose are operators whose shapes depend on values, that
# loop or branch, that draw at random, or that write at computed places: compilers refuse or change them.
ALLOWED_OPERATORS = frozenset(
    "Abs Add And AveragePool Cast Clip Concat ConstantOfShape Conv ConvTranspose Cos DequantizeLinear Div "
    "Equal Exp Expand Flatten Gather GatherElements GatherND Gemm Greater GreaterOrEqual GridSample "
    "Identity LayerNormalization Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mul Neg Not Or "
    "Pow QuantizeLinear Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Sigmoid "
    "Sign Sin Slice Softmax Split Sqrt Squeeze Sub Tanh TopK Transpose Unsqueeze Where".split()
)


def check_operators(operators: Iterable[tuple[str, str]]) -> None:
    """Refuse a graph that engines would stumble over.

    Args:
        operators: Operator and name of every node.
    Raises:
        ContractError: Naming every node whose operator is not in `ALLOWED_OPERATORS`.
    """
    found = [f"{operator} ({name or 'without a name'})" for operator, name in operators
             if operator not in ALLOWED_OPERATORS]  # fmt: skip
    if found:
        raise ContractError(
            f"the graph holds {', '.join(found)}, which not every engine takes; rewrite the module that "
            "makes it with the operators of e2e_perception/deploy/operators.py"
        )
