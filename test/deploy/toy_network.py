"""A network of a few operators, with pictures, a raster, a recurrent map and two outputs, to test engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from e2e_perception.deploy.contract import TensorContract, TensorSpec

TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
MAP = (1, 2, 16, 16)


@dataclass(frozen=True)
class ToyNetwork:
    """As much of a bundle as an engine looks at."""

    model_path: Path
    contract: TensorContract


def write_toy_network(path: Path) -> ToyNetwork:
    """Pictures are reshaped before they are cast, as the exporter leaves them."""
    contract = TensorContract(
        inputs=(
            TensorSpec("images", (1, 2, 8, 8, 3), "uint8", "pictures"),
            TensorSpec("lidar_raster", MAP, "float32", "raster"),
            TensorSpec("ego_state", (1, 7), "float32", "goes straight to the plan"),
            TensorSpec("bev_memory", MAP, "float32", "bev_memory_next of the previous call"),
        ),
        outputs=(
            TensorSpec("heatmap", MAP, "float32", "probability"),
            TensorSpec("plan_sd", (1, 4), "float32", "plan"),
            TensorSpec("bev_memory_next", MAP, "float32", "to remember"),
        ),
        state=(("bev_memory_next", "bev_memory"),),
    )
    rng = np.random.default_rng(0)
    weights = {
        "shape": np.array([2, 8, 8, 3]),
        "camera.weight": rng.normal(size=(2, 3, 8, 8)).astype(np.float32) / 4096.0,
        "bev.weight": rng.normal(size=(2, 2, 3, 3)).astype(np.float32),
        "plan.weight": rng.normal(size=(7, 4)).astype(np.float32),
        "plan.bias": rng.normal(size=4).astype(np.float32),
        "axes": np.array([0]),
        "keep": np.float32(0.5),
    }
    node = helper.make_node
    nodes = [
        node("Reshape", ["images", "shape"], ["flat"], "flat"),
        node("Transpose", ["flat"], ["moved"], "moved", perm=[0, 3, 1, 2]),
        node("Cast", ["moved"], ["numbers"], "numbers", to=TensorProto.FLOAT),
        node("Conv", ["numbers", "camera.weight"], ["seen"], "camera"),
        node("ReduceSum", ["seen", "axes"], ["bright"], "bright"),
        node("Conv", ["lidar_raster", "bev.weight"], ["bev"], "bev", pads=[1, 1, 1, 1]),
        node("Add", ["bev", "bright"], ["lit"], "lit"),
        node("Add", ["lit", "bev_memory"], ["both"], "both"),
        node("Sigmoid", ["both"], ["heatmap"], "heat"),
        node("Tanh", ["both"], ["bounded"], "bounded"),
        node("Mul", ["bounded", "keep"], ["bev_memory_next"], "remember"),
        node("MatMul", ["ego_state", "plan.weight"], ["product"], "plan"),
        node("Add", ["product", "plan.bias"], ["plan_sd"], "plan_bias"),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], s.shape) for s in specs]
        for specs in (contract.inputs, contract.outputs)
    )
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return ToyNetwork(path, contract)
