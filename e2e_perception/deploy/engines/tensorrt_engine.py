"""TensorRT and TensorRT-RTX on the GPU.

A frame: inputs are staged in pinned memory and copied on a stream of their own, each while the next one is
being staged; the network waits for them on a second stream; outputs come back to pinned memory behind it.
The recurrent state stays on the device in two buffers, of which one is read and the other written, in turn.
Network and outputs are one CUDA graph for each turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import BundleError, EngineUnavailableError
from e2e_perception.deploy.contract import TensorContract, TensorSpec
from e2e_perception.deploy.engine_cache import EngineCache, EngineKey
from e2e_perception.deploy.engines import EngineInfo
from e2e_perception.deploy.engines.cuda_memory import Cuda, Pinned
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions, BuiltEngine, build_engine
from e2e_perception.deploy.engines.tensorrt_library import TensorRtLibrary

Log = Callable[[str], None]

_MIB = 2.0**20


class TensorRtEngine:
    """One compiled network with its recurrent state on the device."""

    # The library's objects.
    _runtime: Any
    _engine: Any
    _context: Any
    _runtime_config: Any
    _runtime_cache: Any
    # CUDA's: a graph for each turn, two streams, the mark behind a frame's copies, and whose turn it is.
    _graphs: tuple[Any, ...]
    _compute: int
    _copies: int
    _uploaded: Any
    _turn: int
    # Pinned and device memory of inputs, both buffers of each state, pinned and device memory of outputs.
    _staging: dict[str, Pinned]
    _inputs: dict[str, int]
    _states: dict[str, tuple[int, int]]
    _results: dict[str, tuple[Pinned, int]]

    def __init__(
        self,
        library: TensorRtLibrary,
        model: Path,
        contract: TensorContract,
        *,
        options: BuildOptions | None = None,
        graph_precision: str = "float32",
        cache: EngineCache | None = None,
        cuda: Cuda | None = None,
        cuda_graphs: bool = True,
        log: Log = lambda sentence: None,
    ) -> None:
        """Build the engine or take it from the cache, load it, and run it once.

        Args:
            library: From `load_library`.
            model: ONNX file.
            contract: What the graph has to offer.
            options: Precision and effort.
            graph_precision: `int8` for a graph that is quantized itself; `info` then says so, and what the
                rest is in if not float32.
            cache: Where engines are kept; None: the machine's default place.
            cuda: The GPU; None: the first visible one. It is closed with the engine.
            cuda_graphs: Launch a frame as one graph rather than kernel by kernel.
            log: Gets a sentence about what takes time, or costs time in each frame.
        Raises:
            EngineUnavailableError: If there is no GPU that can be used, or the library refuses the network,
                or there is not enough device memory.
            BundleError: If the network's inputs or outputs differ from the contract.
        """
        self._library = library
        self._contract = contract
        self._log = log
        self._cuda = Cuda() if cuda is None else cuda
        try:
            cache = EngineCache(log=log) if cache is None else cache
            options = options or BuildOptions()
            self._precision = _joined(graph_precision, options.precision)
            built = self._deserialised(
                lambda useless: build_engine(
                    library, model, options, cache, self._cuda.gpu, log, useless=useless
                ),
                cache,
            )
            self._program = hashlib.sha256(built.plan).hexdigest()
            self._load(built, model, cache)
            if cuda_graphs:
                self._graphs = self._capture_graphs()
        except BaseException:
            self.close()
            raise

    # --- the interface of every engine ----------------------------------------------------------------------

    @property
    def contract(self) -> TensorContract:
        """See `InferenceEngine.contract`."""
        return self._contract

    @property
    def info(self) -> EngineInfo:
        """See `InferenceEngine.info`."""
        library = self._library
        return EngineInfo(
            library.backend,
            library.capabilities.version,
            str(self._cuda.gpu),
            self._precision,
            program=self._program,
        )

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether a frame is launched as one graph."""
        return bool(self._graphs)

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.infer`.

        Raises:
            EngineUnavailableError: If the GPU or the library fails.
        """
        self._contract.check_inputs(inputs)
        self._upload(inputs)
        if self._graphs:
            self._cuda.launch(self._graphs[self._turn], self._compute)
        else:
            self._enqueue(self._turn)
        self._cuda.synchronize(self._compute)
        self._turn = 1 - self._turn
        self._state_is_zero = False
        return {name: pinned.array.copy() for name, (pinned, _) in self._results.items()}

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.state`; the only copy of the state that ever leaves the device."""
        copies = {}
        for name, buffers in self._states.items():
            staged = self._staging[name]
            if self._state_is_zero:
                staged.array.fill(0)
            else:
                self._cuda.to_host(staged, buffers[self._turn], self._compute)
                self._cuda.synchronize(self._compute)
            copies[name] = staged.array.copy()
        return copies

    def reset_state(self) -> None:
        """See `InferenceEngine.reset_state`; the device forgets at the next frame, so this cannot fail."""
        self._state_is_zero = True

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        # The library's objects before the memory that they use, a context before what it was made from.
        self._graphs = ()
        self._context = None
        self._runtime_config = self._runtime_cache = None
        self._engine = None
        self._runtime = None
        self._staging, self._results = {}, {}  # views of memory that goes now
        self._cuda.close()

    # --- loading --------------------------------------------------------------------------------------------

    def _deserialised(self, build: Callable[[str], BuiltEngine], cache: EngineCache) -> BuiltEngine:
        """Make the engine of a plan; one that was kept and cannot be loaded is compiled once more.

        Args:
            build: Given why a kept plan is of no use, or nothing.
            cache: For the error.
        """

        def attempt(useless: str = "") -> BuiltEngine:
            built = build(useless)
            self._library.logger.forget()
            self._engine = self._runtime.deserialize_cuda_engine(built.plan)
            return built

        self._runtime = self._library.module.Runtime(self._library.logger)
        built = attempt()
        if self._engine is None and built.from_cache and not self._is_out_of_memory(built):
            built = attempt(str(self._library.failure("it cannot be loaded")))
        if self._engine is None:
            raise self._library.failure(
                f"the engine cannot be loaded on {self._cuda.gpu} with {self._free_memory()}",
                hint=f"; to have it compiled again, remove {cache.directory / built.key.digest}",
            )
        return built

    def _is_out_of_memory(self, built: BuiltEngine) -> bool:
        """Whether a plan may be as good as any, and only the device is full, by another engine perhaps."""
        said = self._library.logger.tail().lower().replace(" ", "")
        return "outofmemory" in said or self._cuda.free_memory()[0] < len(built.plan)

    def _load(self, built: BuiltEngine, model: Path, cache: EngineCache) -> None:
        """Everything up to the first frame, which is run on zeros: libraries finish their work in it."""
        self._graphs = ()
        self._check_interface(model)
        self._compute, self._copies = self._cuda.stream(), self._cuda.stream()
        self._uploaded = self._cuda.event()
        self._allocate()
        runtime_key = EngineKey(
            {"kind": "runtime cache", "engine": built.key.digest, "gpu": str(self._cuda.gpu),
             "driver": self._cuda.gpu.driver}
        )  # fmt: skip
        kept = cache.lookup(runtime_key) if self._library.capabilities.runtime_cache else None
        self._context = self._create_context(kept)
        self._turn = 0
        self._state_is_zero = True
        zeros = {
            spec.name: np.zeros(spec.shape, spec.dtype)
            for spec in self._contract.inputs
            if spec.name not in self._states
        }
        self.infer(zeros)
        self.reset_state()
        compiled = None if self._runtime_cache is None else self._runtime_cache.serialize()
        if compiled is not None and bytes(compiled) != kept:
            cache.store(runtime_key, bytes(compiled))

    def _check_interface(self, model: Path) -> None:
        trt, engine = self._library.module, self._engine
        modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        offered = {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            offered[modes[engine.get_tensor_mode(name)], name] = f"{dtype.name} {list(shape)}"
        for side, specs in (("input", self._contract.inputs), ("output", self._contract.outputs)):
            for spec in specs:
                expected = f"{getattr(trt, spec.dtype).name} {list(spec.shape)}"
                got = offered.get((side, spec.name), "missing")
                if got != expected:
                    raise BundleError(f"{model}: {side} {spec.name!r} is {got}, the contract says {expected}")

    def _allocate(self) -> None:
        """Device and pinned memory for every tensor, two of each state."""
        cuda = self._cuda
        fed_back = dict(self._contract.state)
        specs = {spec.name: spec for spec in self._contract.inputs}
        self._staging = {name: cuda.pinned(spec.shape, spec.dtype) for name, spec in specs.items()}
        self._inputs = {
            name: self._device_memory(spec) for name, spec in specs.items() if name not in fed_back.values()
        }
        self._states = {
            name: (self._device_memory(specs[name]), self._device_memory(specs[name]))
            for name in fed_back.values()
        }
        self._results = {
            spec.name: (cuda.pinned(spec.shape, spec.dtype), self._device_memory(spec))
            for spec in self._contract.outputs
            if spec.name not in fed_back
        }

    def _device_memory(self, spec: TensorSpec) -> int:
        num_bytes = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        return self._cuda.allocate(num_bytes, f"tensor {spec.name!r}")

    def _create_context(self, kept: bytes | None) -> Any:
        engine = self._engine
        self._runtime_config = self._runtime_cache = None
        if self._library.capabilities.runtime_cache:
            config = self._runtime_config = engine.create_runtime_config()
            self._runtime_cache = config.create_runtime_cache()
            if kept is not None and not self._runtime_cache.deserialize(kept):
                self._log("kernels compiled before do not fit this machine any more; they are compiled again")
            if not config.set_runtime_cache(self._runtime_cache):
                self._log("kernels that are compiled now cannot be kept for the next start")
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise self._library.failure(
                f"no device memory for the network's {engine.device_memory_size_v2 / _MIB:.1f} MiB of "
                f"scratch space on {self._cuda.gpu}, with {self._free_memory()}"
            )
        for name, address in (
            *self._inputs.items(),
            *((name, device) for name, (_, device) in self._results.items()),
        ):
            self._set_address(context, name, address)
        return context

    def _free_memory(self) -> str:
        free, total = self._cuda.free_memory()
        return f"{free / _MIB:.0f} of {total / _MIB:.0f} MiB free"

    def _capture_graphs(self) -> tuple[Any, ...]:
        """A graph for each turn; none, and a line in the log, if the library's work cannot be captured."""
        asks = self._library.capabilities.asks_before_capture
        if asks and not self._context.is_stream_capturable(self._compute):
            self._log("this engine cannot be captured in a CUDA graph; its kernels are launched one by one")
            return ()
        try:
            return tuple(
                self._cuda.capture(self._compute, lambda turn=turn: self._enqueue(turn))  # type: ignore[misc]
                for turn in (0, 1)
            )
        except EngineUnavailableError as error:
            self._log(f"no CUDA graph: {error}; the engine's kernels are launched one by one")
            return ()

    # --- a frame --------------------------------------------------------------------------------------------

    def _upload(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Begin all copies to the device; the network will wait for the last."""
        cuda, copies = self._cuda, self._copies
        device = {name: buffers[self._turn] for name, buffers in self._states.items()}
        if self._state_is_zero:
            for name, address in device.items():
                cuda.clear(address, self._staging[name].array.nbytes, copies)
        device.update(self._inputs)
        # The largest first: while it is on its way, the others are staged.
        for name, value in sorted(inputs.items(), key=lambda item: -item[1].nbytes):
            staged = self._staging[name]
            np.copyto(staged.array, value)
            cuda.to_device(device[name], staged, copies)
        cuda.record(self._uploaded, copies)
        cuda.wait(self._compute, self._uploaded)

    def _enqueue(self, turn: int) -> None:
        """Put the network and the copies of its results behind what is in the compute stream."""
        for source, target in self._contract.state:
            buffers = self._states[target]
            self._set_address(self._context, target, buffers[turn])
            self._set_address(self._context, source, buffers[1 - turn])
        if not self._context.execute_async_v3(self._compute):
            raise self._library.failure("the network could not be run")
        for pinned, address in self._results.values():
            self._cuda.to_host(pinned, address, self._compute)

    def _set_address(self, context: Any, name: str, address: int) -> None:
        if not context.set_tensor_address(name, address):
            raise self._library.failure(f"the engine does not take a buffer for {name!r}")


def _joined(graph_precision: str, precision: str) -> str:
    """Of a graph and of what is made of the rest of it."""
    if graph_precision == "float32":
        return precision
    return graph_precision if precision == "float32" else f"{graph_precision} + {precision}"
