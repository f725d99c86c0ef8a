"""Inference engines behind one interface; each library is imported in its own file only."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import EngineUnavailableError
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract

BACKENDS = ("onnxruntime", "torch")


@dataclass(frozen=True)
class EngineInfo:
    """What runs, where, how: shown in the log and on the health topic."""

    backend: str
    version: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.version} on {self.device}, {self.precision}"


class InferenceEngine(Protocol):
    """One loaded network with its recurrent state."""

    @property
    def contract(self) -> TensorContract:
        """Names, shapes and types of inputs and outputs."""

    @property
    def info(self) -> EngineInfo:
        """Backend, version, device and precision."""

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """Run one frame.

        Args:
            inputs: Contract inputs by name, batch of one. Recurrent ones (`bev_memory`) are kept inside and
                fed back; giving one overrides it for this call.
        Returns:
            Contract outputs by name, without the recurrent ones; the arrays are the caller's.
        Raises:
            ContractError: If names, shapes or types differ from the contract.
        """

    def state(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the recurrent state by input name."""

    def reset_state(self) -> None:
        """Forget the recurrent state."""

    def close(self) -> None:
        """Free the engine; it cannot be used afterwards."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here, and if not, why and how to get it."""

    name: str
    available: bool
    version: str
    reason: str
    how_to_get: str


def backend_report() -> list[BackendStatus]:
    """What each backend can do on this machine, best first. Imports none of them."""
    report = []
    for name, how in (("onnxruntime", "pip install onnxruntime"), ("torch", "pip install torch safetensors")):
        if importlib.util.find_spec(name) is None:
            report.append(BackendStatus(name, False, "", f"the Python package {name} is not installed", how))
        else:
            report.append(BackendStatus(name, True, metadata.version(name), "", ""))
    return report


def create_engine(bundle: Bundle, backend: str = "onnxruntime", num_threads: int = 2) -> InferenceEngine:
    """Load a bundle into an engine.

    Args:
        bundle: From `load_bundle`.
        backend: `onnxruntime`, `torch`, or `auto`: the first that `backend_report` calls available.
        num_threads: Threads of the library; 0 leaves it to the library.
    Raises:
        EngineUnavailableError: If the backend is unknown or cannot run here, with the reason.
    """
    if backend == "auto":
        usable = [status.name for status in backend_report() if status.available]
        if not usable:
            raise EngineUnavailableError(
                "no inference backend is installed; `pip install onnxruntime` for the CPU default"
            )
        backend = usable[0]
    if backend not in BACKENDS:
        raise EngineUnavailableError(f"unknown backend {backend!r}; expected auto, {' or '.join(BACKENDS)}")
    status = next(s for s in backend_report() if s.name == backend)
    if not status.available:
        raise EngineUnavailableError(f"backend {backend!r} cannot run: {status.reason}; {status.how_to_get}")
    if backend == "onnxruntime":
        from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(bundle.model_path, bundle.contract, num_threads=num_threads)
    from e2e_perception.deploy.engines.torch_engine import TorchEngine

    return TorchEngine(bundle.weights_path, bundle.network, num_threads=num_threads)
