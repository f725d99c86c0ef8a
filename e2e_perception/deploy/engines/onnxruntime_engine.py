"""ONNX Runtime: the embedded default, on the CPU or with CUDA.

The library optimises a graph for the processor that it runs on, which takes most of a start; the optimised
graph is kept.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from e2e_perception.core.errors import BundleError, ContractError, EngineUnavailableError
from e2e_perception.deploy.bundle import sha256_of
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import EngineCache, EngineKey
from e2e_perception.deploy.engines import EngineInfo
from e2e_perception.deploy.machine import cpu_name

CUDA = "CUDAExecutionProvider"
# TF32 would round every product to 10 bits, and miss the tolerance of float32 by far.
PROVIDERS: Mapping[str, Sequence[Any]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ((CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"),
}
CALIBRATE = -1
CALIBRATION_FRAMES = 12
WORTH_A_THREAD = 0.9  # of the time that fewer threads take; for less, cores are better left to the sensors
THREADS_NOTE = "threads"

Log = Callable[[str], None]


class OnnxRuntimeEngine:
    """One ONNX Runtime session; the recurrent state stays on its device, in two buffers in turn."""

    def __init__(
        self,
        model: Path,
        contract: TensorContract,
        *,
        num_threads: int = 2,
        device: str = "cpu",
        precision: str = "float32",
        allow_spinning: bool = False,
        cache: EngineCache | None = None,
        log: Log = lambda sentence: None,
    ) -> None:
        """Load the graph and check its interface.

        Args:
            model: ONNX file.
            contract: What the graph has to offer.
            num_threads: Threads inside an operator; 0 leaves it to the library, -1 times a few frames with
                each number of threads that the process may have.
            device: `cpu`, or `cuda`: one GPU, with what it has no kernel for on the CPU.
            precision: Of the graph, for `info`.
            allow_spinning: Whether idle threads may wait busily for the next operator of a frame; when it is
                done they sleep.
            cache: Where the optimised graph and the number of threads are kept; None: nowhere.
            log: Gets a sentence about what costs time.
        Raises:
            EngineUnavailableError: If the device cannot be had.
            BundleError: If the graph cannot be loaded, or its inputs or outputs differ from the contract.
        """
        if device not in PROVIDERS:
            raise EngineUnavailableError(f"unknown device {device!r}; expected {' or '.join(PROVIDERS)}")
        if device == "cuda" and CUDA not in onnxruntime.get_available_providers():
            raise EngineUnavailableError(
                "onnxruntime has no CUDA here, only "
                f"{', '.join(onnxruntime.get_available_providers())}; `pip install onnxruntime-gpu` in its "
                "place, or set engine.device to cpu"
            )
        self._device = device
        self._precision = precision
        self._contract = contract
        if num_threads == CALIBRATE:
            num_threads, allow_spinning = _calibrated(
                lambda threads, spinning: self._load(model, threads, spinning, cache, log),
                contract,
                _key(model, device),
                allow_spinning,
                cache,
                log,
            )
        self._session = self._load(model, num_threads, allow_spinning, cache, log)
        self._check_interface(model)
        self._binding = self._session.io_binding()
        self._feedback = dict(contract.state)
        self._now: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        self.reset_state()

    def _load(
        self, model: Path, num_threads: int, allow_spinning: bool, cache: EngineCache | None, log: Log
    ) -> Any:
        """A session, of the optimised graph where there is a cache for it."""
        options = _options(num_threads, allow_spinning)
        if cache is None:
            return self._open(str(model), options, model)
        key = _key(model, self._device)
        optimised = _options(num_threads, allow_spinning)
        optimised.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            graph, from_cache = cache.get_or_build(key, lambda: self._optimised(model))
            try:
                return self._open(graph, optimised, model)
            except BundleError as error:
                if not from_cache:
                    raise
                graph = cache.rebuild(key, lambda: self._optimised(model), str(error))
            return self._open(graph, optimised, model)
        except OSError as error:
            log(f"the optimised graph could not be written: {error}; the next start optimises it again")
        return self._open(str(model), options, model)

    def _optimised(self, model: Path) -> bytes:
        """The graph as the library runs it here; `OSError` if there is no room to write it."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "optimised.onnx"
            options = _options(1, False)
            options.optimized_model_filepath = str(path)
            try:
                self._open(str(model), options, model)
                return path.read_bytes()
            except BundleError as error:
                self._open(str(model), _options(1, False), model)  # raises if it is not for the writing
                raise OSError(str(error)) from error

    def _open(self, graph: str | bytes, options: Any, model: Path) -> Any:
        """A session on the device; one that fell back to another is an error, and nothing is kept of it."""
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=list(PROVIDERS[self._device]))
        except Exception as error:  # the library raises bare RuntimeError subclasses of its own
            raise BundleError(f"ONNX Runtime cannot load {model}: {error}") from error
        first = session.get_providers()[0]
        if self._device == "cuda" and first != CUDA:
            raise EngineUnavailableError(
                f"onnxruntime offers CUDA but runs on {first}: its CUDA or cuDNN libraries do not load or do "
                "not fit the driver; see its log, or set engine.device to cpu"
            )
        return session

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
        return EngineInfo("onnxruntime", str(onnxruntime.__version__), self._device, self._precision)

    @property
    def num_threads(self) -> int:
        """Threads inside an operator; 0: as many as the library likes."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.infer`."""
        self._contract.check_inputs(inputs)
        binding = self._binding
        for name, state in self._now.items():
            binding.bind_ortvalue_input(name, state)
        given = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in given.items():
            binding.bind_cpu_input(name, value)
        outputs: dict[str, NDArray[np.float32]] = {}
        for spec in self._contract.outputs:
            if spec.name in self._feedback:
                binding.bind_ortvalue_output(spec.name, self._next[self._feedback[spec.name]])
            else:
                value = outputs[spec.name] = np.empty(spec.shape, np.float32)
                binding.bind_output(spec.name, "cpu", 0, np.float32, spec.shape, value.ctypes.data)
        self._session.run_with_iobinding(binding)
        self._now, self._next = self._next, self._now
        return outputs

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.state`."""
        return {name: value.numpy().copy() for name, value in self._now.items()}

    def reset_state(self) -> None:
        """See `InferenceEngine.reset_state`."""
        for spec in self._contract.inputs:
            if spec.name in self._feedback.values():
                if spec.dtype != "float32":
                    raise ContractError(f"state {spec.name!r} is {spec.dtype}, expected float32")
                for state in (self._now, self._next):
                    state[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(
                        np.zeros(spec.shape, np.float32), self._device
                    )

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._now.clear()
        self._next.clear()
        self._binding = self._session = None


def _options(num_threads: int, allow_spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
    # Else threads that spin go on for some 40 ms after a frame, on the cores that prepare the next one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return options


def _key(model: Path, device: str) -> EngineKey:
    """What the optimised graph depends on."""
    return EngineKey(
        {
            "onnx": sha256_of(model),
            "library": f"onnxruntime {onnxruntime.__version__}",
            "cpu": cpu_name(),
            "device": device,
            "optimisation": "all",
        }
    )


def _calibrated(
    load: Callable[[int, bool], Any],
    contract: TensorContract,
    key: EngineKey,
    allow_spinning: bool,
    cache: EngineCache | None,
    log: Log,
) -> tuple[int, bool]:
    """Number of threads and whether they spin, from timing a few frames with each; kept in the cache."""
    cores = len(os.sched_getaffinity(0))
    asked = {"cores": cores, "spinning_allowed": allow_spinning}
    kept = None if cache is None else cache.read_note(key, THREADS_NOTE)
    counts = [n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= cores]
    choices = [(n, spins) for n in counts for spins in ((False, True) if allow_spinning else (False,))]
    for choice in choices:
        if kept == _threads_note(asked, choice):  # for other cores, or cut off: timed again
            return choice
    frame = {
        spec.name: (np.ones if spec.name.endswith("_valid") else np.zeros)(spec.shape, spec.dtype)
        for spec in contract.inputs
    }
    sessions = {choice: load(*choice) for choice in choices}
    took_s: dict[tuple[int, bool], list[float]] = {choice: [] for choice in choices}
    for _ in range(CALIBRATION_FRAMES):  # in turn, so that other work on the machine disturbs all alike
        for choice, session in sessions.items():
            started = time.perf_counter()
            session.run(None, frame)
            took_s[choice].append(time.perf_counter() - started)
    median_ms = {choice: 1e3 * float(np.median(values[2:])) for choice, values in took_s.items()}
    best = choices[0]
    for choice in choices[1:]:
        if median_ms[choice] < WORTH_A_THREAD * median_ms[best]:
            best = choice
    log(
        f"calibrated on {cores} cores: {best[0]} threads{', spinning' if best[1] else ''}; a frame takes "
        + ", ".join(f"{ms:.1f} ms with {n}{' spinning' if s else ''}" for (n, s), ms in median_ms.items())
    )
    if cache is not None:
        cache.write_note(key, THREADS_NOTE, _threads_note(asked, best))
    return best


def _threads_note(asked: Mapping[str, int], choice: tuple[int, bool]) -> dict[str, int]:
    num_threads, spinning = choice
    return {**asked, "num_threads": num_threads, "spinning": spinning}
