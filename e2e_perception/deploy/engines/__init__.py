"""Inference engines behind one interface; each library is imported in its own file only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import E2EPerceptionError, EngineUnavailableError
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import EngineCache

Log = Callable[[str], None]

BACKENDS = ("onnxruntime", "torch")


@dataclass(frozen=True)
class EngineInfo:
    """What runs, where, how: shown in the log and on the health topic.

    Attributes:
        backend, version, device, precision: Library, its version, `cpu` or a GPU, and that of convolutions.
        remark: How it compares with torch, as far as anybody looked.
        mismatch: What differs from torch beyond tolerance, if that was accepted; health shows it as a reason.
    """

    backend: str
    version: str
    device: str
    precision: str
    remark: str = ""
    mismatch: str = ""

    def __str__(self) -> str:
        engine = f"{self.backend} {self.version} on {self.device}, {self.precision}"
        return "; ".join(fact for fact in (engine, self.remark, self.mismatch) if fact)


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


def create_engine(
    bundle: Bundle,
    backend: str = "onnxruntime",
    num_threads: int = 2,
    *,
    device: str = "cpu",
    allow_spinning: bool = False,
    cache: EngineCache | None = None,
    log: Log = lambda sentence: None,
) -> InferenceEngine:
    """Load a bundle into an engine.

    Args:
        bundle: From `load_bundle`.
        backend: `onnxruntime`, `torch`, or `auto`: the first that `backend_report` calls available.
        num_threads: Threads of the library; 0 leaves it to the library, -1 chooses by a short calibration.
        device: `cpu` or `cuda`; a device that is asked for never becomes another.
        allow_spinning: Whether idle threads may wait busily.
        cache: Where optimised graphs are kept; None: nowhere.
        log: Gets a sentence about what costs time, such as a graph that has to be optimised again.
    Raises:
        EngineUnavailableError: If the backend or device is unknown or cannot run here, with the reason.
        BundleError: If the library cannot run the graph.
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

        return OnnxRuntimeEngine(
            bundle.model_path,
            bundle.contract,
            num_threads=num_threads,
            device=device,
            precision=bundle.precision,
            allow_spinning=allow_spinning,
            cache=cache,
            log=log,
        )
    if device != "cpu":
        raise EngineUnavailableError(f"backend {backend!r} runs on the cpu here, not on {device!r}")
    from e2e_perception.deploy.engines.torch_engine import TorchEngine

    return TorchEngine(bundle.weights_path, bundle.network, num_threads=max(num_threads, 0))


def configured_engine(
    bundle: Bundle, config: EngineConfig, log: Log, *, num_threads: int | None = None
) -> InferenceEngine:
    """The engine that a configuration asks for, if it computes what torch computes.

    Args:
        bundle: From `load_bundle`.
        config: Backend, device, threads, place of what is compiled, and whether a mismatch is accepted.
        log: Gets a sentence about what costs time or trust.
        num_threads: In place of the configuration's.
    Raises:
        EngineUnavailableError: As `create_engine`.
        EngineMismatchError: If it differs from torch beyond tolerance and `config.accept_mismatch` is off.
        BundleError: If the library cannot run the graph, or the recorded rollout cannot be read.
    """
    from e2e_perception.deploy.parity import checked_engine

    cache = EngineCache(Path(config.cache_directory).expanduser() if config.cache_directory else None, log)
    engine = create_engine(
        bundle,
        config.backend,
        config.num_threads if num_threads is None else num_threads,
        device=config.device,
        allow_spinning=config.allow_spinning,
        cache=cache,
        log=log,
    )
    try:
        return checked_engine(engine, bundle, cache=cache, accept_mismatch=config.accept_mismatch, log=log)
    except E2EPerceptionError:
        engine.close()
        raise
