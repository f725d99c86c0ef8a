"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from e2e_perception.core.errors import BundleError, ContractError
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engines import EngineInfo


class OnnxRuntimeEngine:
    """One ONNX Runtime session with the recurrent state kept beside it."""

    def __init__(self, model: Path, contract: TensorContract, *, num_threads: int = 2) -> None:
        """Load the graph and check its interface.

        Args:
            model: ONNX file.
            contract: What the graph has to offer.
            num_threads: Threads inside an operator; 0 leaves it to the library.
        Raises:
            BundleError: If the graph cannot be loaded, or its inputs or outputs differ from the contract.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning threads would eat the cores that decode the next frame.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library raises bare RuntimeError subclasses of its own
            raise BundleError(f"ONNX Runtime cannot load {model}: {error}") from error
        self._contract = contract
        self._check_interface(model)
        self._fetch = list(contract.output_names)
        self._state: dict[str, NDArray[np.float32]] = {}
        self.reset_state()

    def _check_interface(self, model: Path) -> None:
        for side, specs, nodes in (
            ("input", self._contract.inputs, self._session.get_inputs()),
            ("output", self._contract.outputs, self._session.get_outputs()),
        ):
            offered = {node.name: tuple(node.shape) for node in nodes}
            for spec in specs:
                if offered.get(spec.name) != spec.shape:
                    raise BundleError(
                        f"{model}: {side} {spec.name!r} has shape {offered.get(spec.name)}, "
                        f"the contract says {spec.shape}"
                    )

    @property
    def contract(self) -> TensorContract:
        """See `InferenceEngine.contract`."""
        return self._contract

    @property
    def info(self) -> EngineInfo:
        """See `InferenceEngine.info`."""
        return EngineInfo("onnxruntime", str(onnxruntime.__version__), "cpu", "float32")

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.infer`."""
        self._contract.check_inputs(inputs)
        values = self._session.run(self._fetch, {**self._state, **inputs})
        outputs = dict(zip(self._fetch, values, strict=True))
        for source, target in self._contract.state:
            self._state[target] = outputs.pop(source)
        return outputs

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.state`."""
        return {name: value.copy() for name, value in self._state.items()}

    def reset_state(self) -> None:
        """See `InferenceEngine.reset_state`."""
        fed_back = {target for _, target in self._contract.state}
        for spec in self._contract.inputs:
            if spec.name in fed_back:
                if spec.dtype != "float32":
                    raise ContractError(f"state {spec.name!r} is {spec.dtype}, expected float32")
                self._state[spec.name] = np.zeros(spec.shape, np.float32)

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._state.clear()
        del self._session
