"""Eight-bit graphs: what sees the cameras in int8, everything else in float32.

Static quantization with QuantizeLinear and DequantizeLinear around each convolution (Jacob et al. 2018),
weights per output channel, activations symmetric as TensorRT wants them. Rasters, BEV, heads, geometry and
attention stay in float32: they are where decimetres are decided.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from e2e_perception.core.errors import BundleError, EngineMismatchError
from e2e_perception.deploy.bundle import ROLLOUT, Bundle
from e2e_perception.deploy.bundle_writing import fresh_bundle, write_description
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.deploy.engines.torch_engine import load_network
from e2e_perception.deploy.export import settled_rollout
from e2e_perception.deploy.parity import compare, refusal, tolerance_of
from e2e_perception.deploy.rollouts import RolloutFrames, Tensors, save_rollout

# Convolutions with weights named like this. Those behind the fusion are left out: in int8 they cost the plan
# metres (docs/performance.md), for the features that meet there have nothing like one range.
QUANTIZED = ("network.encoder.backbone.", "network.encoder.lift.mix.")
PRECISION = "int8"


def quantize_bundle(
    bundle: Bundle,
    out: Path,
    *,
    calibration: Sequence[RolloutFrames],
    rollouts: Sequence[RolloutFrames],
    source: str,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Write an int8 bundle beside a float32 one; it appears under `out` whole or not at all.

    Args:
        bundle: In float32.
        out: Directory to create; an existing bundle there is replaced.
        calibration: Frames whose activations set the ranges.
        rollouts: As for `export_bundle`; what torch makes of one is what int8 is compared with.
        source: Where both are from, for the manifest.
        on_frame: Called with the number of frames calibrated on so far, and of all.
    Returns:
        How the int8 graph differs from torch, see `parity.compare`.
    Raises:
        BundleError: If the bundle is quantized already, or something other than a bundle is at `out`.
        EngineMismatchError: If it differs by more than int8 may.
    """
    if bundle.precision != "float32":
        raise BundleError(
            f"{bundle} is {bundle.precision} already; quantize the bundle that it was made from"
        )
    frames = [frame for clip in calibration for frame in clip.inputs]
    with fresh_bundle(out) as fresh:
        graph = fresh / "model.onnx"
        num_quantized = quantize_graph(bundle.model_path, graph, _complete(frames, bundle, on_frame))
        shutil.copyfile(bundle.weights_path, fresh / "weights.safetensors")
        recorded = settled_rollout(
            bundle.model_path,
            load_network(bundle.weights_path, bundle.network),
            rollouts,
            bundle.cost_weights,
        )
        save_rollout(recorded, fresh / ROLLOUT)
        tolerance = tolerance_of(PRECISION)
        found = compare(
            OnnxRuntimeEngine(graph, bundle.contract, precision=PRECISION),
            recorded,
            bundle.network,
            bundle.cost_weights,
            least_score=tolerance.least_score,
        )
        refused = refusal(found, tolerance)
        if refused:
            raise EngineMismatchError(
                f"{bundle} in int8 differs from torch over {recorded}: {refused}; calibrate on more "
                "clips, or keep float32"
            )
        manifest = {
            **bundle.manifest,
            "name": out.resolve().name,
            "precision": PRECISION,
            "quantization": {"source": source, "frames": len(frames), "convolutions": num_quantized},
            "parity": {"frames": len(recorded), "recorded": recorded.frames.source, "differences": found},
            "provenance": {**bundle.manifest["provenance"], "parent": bundle.digest},
        }
        # The parent's figures are not this graph's; `evaluate --suite` measures them.
        evaluation = {f"difference_from_torch/{name}": value for name, value in found.items()}
        write_description(fresh, manifest, evaluation)
    return found


def quantize_graph(source: Path, out: Path, frames: Iterable[Tensors]) -> int:
    """Write a graph with the convolutions of `QUANTIZED` in int8.

    Args:
        source: Graph in float32.
        out: File to write.
        frames: Complete inputs that the ranges of activations are taken from.
    Returns:
        How many convolutions were quantized.
    Raises:
        BundleError: If there is none to quantize.
    """
    chosen = [
        node.name
        for node in onnx.load(str(source)).graph.node
        if node.op_type == "Conv" and node.input[1].startswith(QUANTIZED)
    ]
    if not chosen:
        raise BundleError(
            f"{source} has no convolution with weights named {' or '.join(QUANTIZED)}…; nothing to quantize"
        )
    with tempfile.TemporaryDirectory() as scratch:
        # A copy, because the library writes files beside what it reads, and a bundle is nobody's scratch.
        copy, raw = Path(scratch) / "model.onnx", Path(scratch) / "quantized.onnx"
        shutil.copyfile(source, copy)
        quantize_static(
            str(copy),
            str(raw),
            _Frames(iter(frames)),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # an int32 bias is nothing that TensorRT takes
                "DedicatedQDQPair": True,
            },
        )
        graph = onnx.load(str(raw))
    _unround(graph, set(chosen))
    del graph.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(out))
    return len(chosen)


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, frames: Iterator[Tensors]) -> None:
        self._frames = frames

    def get_next(self) -> Tensors | None:
        return next(self._frames, None)


def _unround(graph: onnx.ModelProto, chosen: set[str]) -> None:
    """Let everything but quantized convolutions see values that were not rounded for one of them.

    The library gives rounded values to all who use them, the other branch of a residual for example; and ONNX
    Runtime then has no kernel for the convolution, since it turns int8 into uint8 only where one reads it.
    """
    made_by = {name: node for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        if node.name in chosen or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            rounded = made_by.get(name)
            if rounded is None or rounded.op_type != "DequantizeLinear":
                continue
            quantized = made_by[rounded.input[0]]
            maker = made_by.get(quantized.input[0])
            if maker is None or maker.name not in chosen:
                node.input[index] = quantized.input[0]


def _complete(
    frames: Sequence[Tensors], bundle: Bundle, on_frame: Callable[[int, int], None]
) -> Iterator[Mapping[str, NDArray[np.generic]]]:
    """With nothing remembered: what is quantized sees the sensors alone."""
    contract = tensor_contract(bundle.network)
    empty = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in contract.inputs}
    for number, frame in enumerate(frames, 1):
        yield {**empty, **frame}
        on_frame(number, len(frames))
