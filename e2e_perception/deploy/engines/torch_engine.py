"""PyTorch, for the training machine and as the reference that other engines are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from e2e_perception.core.errors import BundleError, EngineMismatchError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract, tensor_contract
from e2e_perception.deploy.engine_cache import Log
from e2e_perception.deploy.engines import EngineInfo
from e2e_perception.deploy.parity import another_version, differences_of, refusal, tolerance_of
from e2e_perception.model.network import JointNetwork


def load_network(weights: Path, network: NetworkConfig) -> JointNetwork:
    """The network with a bundle's weights.

    Raises:
        BundleError: If the weights cannot be read or do not fit.
    """
    model = JointNetwork(network)
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise BundleError(f"{weights} does not fit the network: {error}") from error
    return model


def bundle_network(bundle: Bundle, log: Log) -> JointNetwork:
    """A bundle's network in torch, to measure or look through.

    Args:
        bundle: Of weights in float32; of an int8 bundle these are what was quantized.
        log: Gets a sentence if it is not checked.
    Raises:
        BundleError: If the weights cannot be read or do not fit.
        EngineMismatchError: If this version of the network makes something else of them than the one that the
            bundle was exported with.
    """
    model = load_network(bundle.weights_path, bundle.network)
    if bundle.rollout_path is None:
        log(f"bundle {bundle} records no rollout: its network is not checked against this version's")
        return model
    tolerance = tolerance_of("float32")
    engine = TorchEngine(model, bundle.network, num_threads=0)
    if worst := refusal(differences_of(engine, bundle, tolerance, None), tolerance):
        raise EngineMismatchError(
            f"{bundle}: {another_version(worst)}; use the version that made it (git_commit in bundle.json)"
        )
    return model


class TorchEngine:
    """The network in eager mode, float32."""

    def __init__(self, weights: Path | JointNetwork, network: NetworkConfig, *, num_threads: int = 2) -> None:
        """Load the weights.

        Args:
            weights: `weights.safetensors`, or a network already built.
            network: Its size.
            num_threads: Threads of torch, process-wide; 0 leaves it to the library.
        Raises:
            BundleError: If the weights do not fit the network.
        """
        if num_threads > 0:
            torch.set_num_threads(num_threads)
        if isinstance(weights, JointNetwork):
            self._model = weights
        else:
            self._model = load_network(weights, network)
        self._model.eval()
        self._device = next(self._model.parameters()).device
        self._contract = tensor_contract(network)
        self._state: dict[str, torch.Tensor] = {}
        self.reset_state()

    @property
    def contract(self) -> TensorContract:
        """See `InferenceEngine.contract`."""
        return self._contract

    @property
    def info(self) -> EngineInfo:
        """See `InferenceEngine.info`."""
        return EngineInfo("torch", torch.__version__, str(self._device), "float32")

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.infer`."""
        self._contract.check_inputs(inputs)
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
            for name, value in inputs.items()
        }
        outputs = self._model({**self._state, **tensors})
        for source, target in self._contract.state:
            self._state[target] = outputs[source]
        fed_back = {source for source, _ in self._contract.state}
        return {
            name: outputs[name].cpu().numpy() for name in self._contract.output_names if name not in fed_back
        }

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.state`."""
        return {name: value.cpu().numpy().copy() for name, value in self._state.items()}

    def reset_state(self) -> None:
        """See `InferenceEngine.reset_state`."""
        fed_back = {target for _, target in self._contract.state}
        self._state = {
            spec.name: torch.zeros(spec.shape, device=self._device)
            for spec in self._contract.inputs
            if spec.name in fed_back
        }

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._state.clear()
        with contextlib.suppress(AttributeError):  # closed before
            del self._model
