"""The little of CUDA that an engine needs: memory, streams, events and graphs, freed in reverse order.

Everything that an instance makes belongs to it and goes with `close`. The bindings are imported when the
first instance is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from e2e_perception.core.errors import EngineUnavailableError

BINDINGS = "cuda.bindings.runtime"
HOW_TO_GET = "`pip install cuda-bindings` of the driver's major version"
_MIB = 2.0**20


@dataclass(frozen=True)
class Gpu:
    """The GPU that is used.

    Attributes:
        name: As its driver says.
        compute_capability: Such as `8.9`.
        driver: Newest CUDA version of the driver, such as `13.0`.
    """

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class Pinned:
    """Host memory that the GPU copies from and to by itself.

    Attributes:
        array: The memory, in the shape asked for.
        address: Where it begins.
    """

    array: NDArray[Any]
    address: int


class CudaError(EngineUnavailableError):
    """A call of CUDA failed; the message names it."""


class Cuda:
    """CUDA on the first visible GPU (`CUDA_VISIBLE_DEVICES` chooses which that is)."""

    def __init__(self, runtime: Any = None) -> None:
        """Look for the GPU.

        Args:
            runtime: The bindings; None imports them.
        Raises:
            EngineUnavailableError: If there are no bindings, no driver, one that is too old, or no GPU.
        """
        self._runtime = _import_bindings() if runtime is None else runtime
        self._owned = contextlib.ExitStack()
        self.gpu = self._find_gpu()

    def __enter__(self) -> Cuda:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free everything, last made first."""
        self._owned.close()

    def free_memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, and in all."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, num_bytes: int, what: str) -> int:
        """Device memory; returns its address.

        Raises:
            EngineUnavailableError: If there is not enough; the message says what for, and how much is free.
        """
        try:
            address = int(self._call("cudaMalloc", num_bytes))
        except CudaError as error:
            free, total = self.free_memory()
            raise EngineUnavailableError(
                f"no device memory for {what}: {num_bytes / _MIB:.1f} MiB wanted, {free / _MIB:.1f} of "
                f"{total / _MIB:.0f} MiB are free on {self.gpu.name} ({error}); end what else uses "
                "the GPU, or use a smaller network"
            ) from error
        self._own("cudaFree", address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> Pinned:
        """Host memory for copies that need no further copy."""
        kind = np.dtype(dtype)
        num_bytes = int(np.prod(shape)) * kind.itemsize
        address = int(self._call("cudaMallocHost", num_bytes))
        self._own("cudaFreeHost", address)
        return Pinned(self._view(address, num_bytes).view(kind).reshape(shape), address)

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self._own("cudaStreamDestroy", stream)
        return int(stream)

    def event(self) -> Any:
        """A mark in a stream that another stream can wait for."""
        event = self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)
        self._own("cudaEventDestroy", event)
        return event

    def record(self, event: Any, stream: int) -> None:
        """Put the mark behind everything in a stream so far."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: Any) -> None:
        """Let a stream go on only after the mark."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def to_device(self, address: int, source: Pinned, stream: int) -> None:
        """Begin a copy; the source must not change before the stream has come that far."""
        self._copy(address, source.address, source.array.nbytes, "cudaMemcpyHostToDevice", stream)

    def to_host(self, target: Pinned, address: int, stream: int) -> None:
        """Begin a copy; the target is not valid before the stream has come that far."""
        self._copy(target.address, address, target.array.nbytes, "cudaMemcpyDeviceToHost", stream)

    def clear(self, address: int, num_bytes: int, stream: int) -> None:
        """Begin to fill with zeros."""
        self._call("cudaMemsetAsync", address, 0, num_bytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has done everything."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record what is put into a stream instead of doing it; returns a graph for `launch`.

        Raises:
            EngineUnavailableError: From `work`, or if CUDA cannot record it; the stream is usable afterwards.
        """
        self._call(
            "cudaStreamBeginCapture",
            stream,
            self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaError):  # the capture is void already; this only ends it
                self._call("cudaStreamEndCapture", stream)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        self._own("cudaGraphExecDestroy", executable)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        """Do what was captured."""
        self._call("cudaGraphLaunch", graph, stream)

    def _copy(self, target: int, source: int, num_bytes: int, kind: str, stream: int) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, num_bytes, direction, stream)

    def _view(self, address: int, num_bytes: int) -> NDArray[np.uint8]:
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def _own(self, free: str, thing: Any) -> None:
        self._owned.callback(self._free, free, thing)

    def _free(self, free: str, thing: Any) -> None:
        with contextlib.suppress(CudaError):  # of a GPU that failed; whatever is left goes with the process
            self._call(free, thing)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of the runtime; its results, or an error that names it."""
        status, *results = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            raise CudaError(f"CUDA: {name} failed with {status.name}")
        return results[0] if len(results) == 1 else tuple(results)

    def _find_gpu(self) -> Gpu:
        driver = _version(self._call("cudaDriverGetVersion"))
        runtime = _version(self._call("cudaRuntimeGetVersion"))
        try:
            count = int(self._call("cudaGetDeviceCount"))
        except CudaError as error:
            if driver == "0.0":
                reason = "no NVIDIA driver is installed"
            elif "InsufficientDriver" in str(error):
                reason = (
                    f"the NVIDIA driver offers CUDA {driver}, the bindings want {runtime}; install a newer "
                    f"driver, or `pip install 'cuda-bindings<{int(driver.split('.')[0]) + 1}'`"
                )
            else:
                reason = f"{error}; `nvidia-smi` may say more"
            raise EngineUnavailableError(f"no GPU can be used: {reason}") from error
        if count == 0:
            raise EngineUnavailableError("no GPU can be used: CUDA sees none; see CUDA_VISIBLE_DEVICES")
        properties = self._call("cudaGetDeviceProperties", 0)
        name = bytes(properties.name).split(b"\0")[0].decode()
        return Gpu(name, f"{properties.major}.{properties.minor}", driver)


def _import_bindings() -> Any:
    try:
        return importlib.import_module(BINDINGS)
    except ImportError as error:
        raise EngineUnavailableError(f"no GPU can be used: {BINDINGS} is missing; {HOW_TO_GET}") from error


def _version(number: int) -> str:
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"
