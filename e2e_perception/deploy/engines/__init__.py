"""Inference engines behind one interface; each library is imported in its own file only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import BundleError, ConfigError, ContractError, EngineUnavailableError
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import EngineCache
from e2e_perception.deploy.engines.cuda_memory import HOW_TO_GET as CUDA_HOW_TO_GET
from e2e_perception.deploy.engines.gpu_presence import why_no_gpu
from e2e_perception.deploy.engines.tensorrt_library import (
    HOW_TO_GET,
    MODULES,
    TENSORRT,
    TENSORRT_RTX,
    find_module,
    installed_version,
    load_library,
)

Log = Callable[[str], None]

PRECISIONS = {
    TENSORRT: ("float32", "float16", "bfloat16"),
    TENSORRT_RTX: ("float32", "float16", "bfloat16"),
    "onnxruntime": ("float32",),
    "torch": ("float32",),
}
BACKENDS = tuple(PRECISIONS)  # best first


@dataclass(frozen=True)
class EngineInfo:
    """What runs, where, how: shown in the log and on the health topic.

    Attributes:
        backend, version, device, precision: Library, its version, `cpu` or a GPU, and that of convolutions.
        remark: How it compares with torch, as far as anybody looked.
        mismatch: What differs from torch beyond tolerance, if that was accepted; health shows it as a reason.
        program: SHA-256 of what a compiler made of the graph, which is not the same each time; empty where
            the graph decides alone. For the record, not shown.
    """

    backend: str
    version: str
    device: str
    precision: str
    remark: str = ""
    mismatch: str = ""
    program: str = ""

    def __str__(self) -> str:
        engine = f"{self.backend} {self.version} on {self.device}, {self.precision}"
        return "; ".join(fact for fact in (engine, self.remark, self.mismatch) if fact)


@dataclass(frozen=True)
class BuildEffort:
    """How TensorRT compiles, whatever the precision; see `tensorrt_builder.BuildOptions`."""

    optimization_level: int = 3
    workspace_mib: int | None = None
    weak_types: bool = False


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
    """What each backend can do on this machine, best first. Imports none of them, leaves the GPU alone."""
    no_gpu = why_no_gpu()
    return [
        _tensorrt_status(TENSORRT, no_gpu),
        _tensorrt_status(TENSORRT_RTX, no_gpu),
        _status("onnxruntime", "onnxruntime", "pip install onnxruntime"),
        _status("torch", "torch", "pip install torch safetensors"),
    ]


def create_engine(
    bundle: Bundle,
    backend: str = "onnxruntime",
    num_threads: int = 2,
    *,
    precision: str = "float32",
    device: str = "cpu",
    allow_spinning: bool = False,
    effort: BuildEffort | None = None,
    cache: EngineCache | None = None,
    log: Log = lambda sentence: None,
) -> InferenceEngine:
    """Load a bundle into an engine.

    Args:
        bundle: From `load_bundle`.
        backend: One of `BACKENDS`, or `auto`: the first that `backend_report` calls available, that runs in
            the precision, and, of TensorRT's, that takes the network and the GPU.
        num_threads: Threads of the library on the CPU; 0 leaves it to the library, -1 has ONNX Runtime choose
            by a short calibration.
        precision: Of convolutions and linear layers; `PRECISIONS` says which backend has which.
        device: `cpu` or `cuda`, for ONNX Runtime; a device that is asked for never becomes another.
        allow_spinning: Whether threads may wait busily within a frame.
        effort: How TensorRT compiles; part of what a compiled engine is found by. None: its defaults.
        cache: Where compiled engines and optimised graphs are kept; None: TensorRT's engines at the machine's
            default place, graphs nowhere.
        log: Gets a sentence about what costs time, such as an engine that has to be built again, and about
            a backend that `auto` passes over.
    Raises:
        EngineUnavailableError: If the backend is unknown, has no such precision or device or cannot run here,
            with the reason. A requested backend never becomes another.
        BundleError: If the library cannot run the graph.
    """
    candidates = _usable_backends(precision) if backend == "auto" else [backend]
    for name in candidates:
        try:
            return _create_named(
                bundle,
                name,
                num_threads,
                precision=precision,
                device=device,
                allow_spinning=allow_spinning,
                effort=BuildEffort() if effort is None else effort,
                cache=cache,
                log=log,
            )
        except (EngineUnavailableError, ConfigError, ContractError, BundleError) as error:
            if name not in MODULES or name == candidates[-1]:
                raise
            log(f"backend {name!r} is passed over: {error}")
    raise AssertionError("the last candidate is returned or raises")


def check_backend(backend: str, precision: str, device: str) -> None:
    """Whether an engine of these may be asked for here; nothing is loaded for that.

    Raises:
        EngineUnavailableError: If there is no such backend, it has no such precision or device, or it cannot
            run on this machine.
    """
    if backend not in BACKENDS:
        raise EngineUnavailableError(f"unknown backend {backend!r}; expected auto, {', '.join(BACKENDS)}")
    if precision not in PRECISIONS[backend]:
        able = [name for name in BACKENDS if precision in PRECISIONS[name]]
        raise EngineUnavailableError(
            f"backend {backend!r} runs in {' or '.join(PRECISIONS[backend])}, not in {precision!r}"
            + (f", which is for {' and '.join(able)}" if able else "")
        )
    if device != "cpu" and backend == "torch":
        raise EngineUnavailableError(f"backend {backend!r} runs on the cpu here, not on {device!r}")
    status = next(s for s in backend_report() if s.name == backend)
    if not status.available:
        raise EngineUnavailableError(f"backend {backend!r} cannot run: {status.reason}; {status.how_to_get}")


def _create_named(
    bundle: Bundle,
    backend: str,
    num_threads: int,
    *,
    precision: str,
    device: str,
    allow_spinning: bool,
    effort: BuildEffort,
    cache: EngineCache | None,
    log: Log,
) -> InferenceEngine:
    """As `create_engine`, of one of `BACKENDS`."""
    check_backend(backend, precision, device)
    if backend in (TENSORRT, TENSORRT_RTX):
        from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions
        from e2e_perception.deploy.engines.tensorrt_engine import TensorRtEngine

        return TensorRtEngine(
            load_library(backend),
            bundle.model_path,
            bundle.contract,
            options=BuildOptions(
                precision=precision,
                optimization_level=effort.optimization_level,
                workspace_mib=effort.workspace_mib,
                weak_types=effort.weak_types,
            ),
            graph_precision=bundle.precision,
            cache=EngineCache(log=log) if cache is None else cache,
            log=log,
        )
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
    from e2e_perception.deploy.engines.torch_engine import TorchEngine

    return TorchEngine(bundle.weights_path, bundle.network, num_threads=max(num_threads, 0))


def configured_engine(
    bundle: Bundle, config: EngineConfig, log: Log, *, num_threads: int | None = None
) -> InferenceEngine:
    """The engine that a configuration asks for, if it computes what torch computes.

    Args:
        bundle: From `load_bundle`.
        config: Backend, precision, device, threads, place of what is compiled, and whether a mismatch is
            accepted.
        log: Gets a sentence about what costs time or trust.
        num_threads: In place of the configuration's.
    Raises:
        EngineUnavailableError: As `create_engine`.
        EngineMismatchError: If it differs from torch beyond tolerance and `config.accept_mismatch` is off.
        BundleError: If the library cannot run the graph, or the recorded rollout cannot be read.
        ConfigError: If `cache_directory` is no path.
    """
    from e2e_perception.deploy.parity import checked_engine

    cache = EngineCache(_cache_directory(config.cache_directory), log)
    engine = create_engine(
        bundle,
        config.backend,
        config.num_threads if num_threads is None else num_threads,
        precision=config.precision,
        device=config.device,
        allow_spinning=config.allow_spinning,
        effort=BuildEffort(config.optimization_level, config.workspace_mib or None, config.weak_types),
        cache=cache,
        log=log,
    )
    try:
        return checked_engine(engine, bundle, cache=cache, accept_mismatch=config.accept_mismatch, log=log)
    except BaseException:  # an interrupt too: what it holds of a GPU would stay
        engine.close()
        raise


def _cache_directory(configured: str) -> Path | None:
    """Where a configuration has engines kept; None: at the default place."""
    if not configured:
        return None
    try:
        if "\0" in configured:
            raise ValueError("it holds a NUL character")
        return Path(configured).expanduser()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"engine.cache_directory {configured!r} is no path: {error}; expected a directory, or nothing "
            "for the default"
        ) from error


def _usable_backends(precision: str) -> list[str]:
    """Those that seem to be able to run here in a precision, best first."""
    usable = [s.name for s in backend_report() if s.available]
    if not usable:
        raise EngineUnavailableError(
            "no inference backend is installed; `pip install onnxruntime` for the CPU default"
        )
    able = [name for name in usable if precision in PRECISIONS[name]]
    if not able:
        raise EngineUnavailableError(
            f"none of the backends that can run here, {', '.join(usable)}, runs in {precision!r}"
        )
    return able


def _status(name: str, package: str, how: str) -> BackendStatus:
    if importlib.util.find_spec(package) is None:
        return BackendStatus(name, False, "", f"the Python package {package} is not installed", how)
    # By module: `onnxruntime-gpu` and others bring the same module under another name.
    return BackendStatus(name, True, installed_version(package), "", "")


def _tensorrt_status(backend: str, no_gpu: str) -> BackendStatus:
    module = find_module(backend)
    if module is None:
        reason = f"the Python package {MODULES[backend][0]} is not installed"
        return BackendStatus(backend, False, "", reason, HOW_TO_GET[backend])
    version = installed_version(module)
    if no_gpu:
        builds = " (`e2e-perception build-engine` works without one)" if backend == TENSORRT_RTX else ""
        return BackendStatus(backend, False, version, no_gpu, f"run it on a machine with a GPU{builds}")
    for package, how in (("cuda", CUDA_HOW_TO_GET), ("onnx", "`pip install onnx`")):
        if importlib.util.find_spec(package) is None:
            reason = f"the Python package {package} is not installed"
            return BackendStatus(backend, False, version, reason, how)
    return BackendStatus(backend, True, version, "", "")
