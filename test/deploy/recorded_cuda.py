"""A double of `cuda.bindings.runtime`: as strict as a GPU, and stricter where a GPU would silently be wrong.

What is put into a stream happens only when that stream is waited for, and what another stream put there
only if it was told to wait for an event: whoever forgets one sees old memory. Freed memory, memory of
others, pageable host memory and waiting during a capture are assertion errors here. Names and numbers are
those of the bindings (`test_tensorrt_recorded.py` compares them).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

POISON = 0xDB
Operation = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Stream:
    pending: list[Operation] = field(default_factory=list)
    num_done: int = 0  # of everything ever put into it
    num_put: int = 0
    capture: list[Operation] | None = None
    capture_is_void: bool = False


@dataclass
class Event:
    stream: Stream | None = None
    position: int = 0


class RecordedCuda:
    """Stands for the module `cuda.bindings.runtime`.

    Attributes:
        fail: Function name -> status that it answers from now on.
        calls: Names of all functions called.
        copies: Direction, device address and bytes of every copy that was carried out.
        captured_by: How many graphs were instantiated.
    """

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaError_t = cudaError_t

    def __init__(
        self,
        *,
        name: str = "Recorded RTX",
        compute_capability: str = "8.9",
        driver: int = 13000,
        num_devices: int = 1,
        memory_bytes: int = 8 << 30,
    ) -> None:
        self.name, self.compute_capability = name, compute_capability
        self.driver, self.num_devices, self.memory_bytes = driver, num_devices, memory_bytes
        self.fail: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.copies: list[tuple[str, int, int]] = []
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.freed_host: list[np.ndarray] = []  # kept, lest a late look at it is a crash
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, list[Operation]] = {}
        self.num_launches = 0
        self.in_use: Callable[[int], bool] = lambda address: False  # set by the double of the library
        self._handles = itertools.count(0x1000)
        self._addresses = 0x7F00_0000_0000

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(value) and not isinstance(value, type):
            self.calls.append(name)
            if name in self.fail:
                status = self.fail[name]
                return lambda *arguments: (status, None)
        return value

    # --- device ---------------------------------------------------------------------------------------------

    def cudaDriverGetVersion(self) -> tuple[cudaError_t, int]:
        return cudaError_t.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[cudaError_t, int]:
        return cudaError_t.cudaSuccess, 13050

    def cudaGetDeviceCount(self) -> tuple[cudaError_t, int]:
        if self.driver < 13000:
            return cudaError_t.cudaErrorInsufficientDriver, 0
        if self.num_devices == 0:
            return cudaError_t.cudaErrorNoDevice, 0
        return cudaError_t.cudaSuccess, self.num_devices

    def cudaGetDeviceProperties(self, device: int) -> tuple[cudaError_t, Any]:
        major, minor = map(int, self.compute_capability.split("."))
        return cudaError_t.cudaSuccess, SimpleNamespace(name=self.name.encode(), major=major, minor=minor)

    # --- memory ---------------------------------------------------------------------------------------------

    def cudaMemGetInfo(self) -> tuple[cudaError_t, int, int]:
        return cudaError_t.cudaSuccess, self.memory_bytes - self.num_allocated, self.memory_bytes

    @property
    def num_allocated(self) -> int:
        return sum(memory.nbytes for memory in self.device.values())

    def cudaMalloc(self, size: int) -> tuple[cudaError_t, int]:
        assert not self.capturing, "cudaMalloc during a capture"
        if self.num_allocated + size > self.memory_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, 0
        self._addresses += 256 + (-(-size // 256)) * 256
        self.device[self._addresses] = np.full(size, POISON, np.uint8)
        return cudaError_t.cudaSuccess, self._addresses

    def cudaFree(self, address: int) -> tuple[cudaError_t]:
        assert address in self.device, f"{address:#x} is freed twice, or is no device memory"
        assert not self.in_use(address), "device memory is freed while a context may still use it"
        del self.device[address]
        return (cudaError_t.cudaSuccess,)

    def cudaMallocHost(self, size: int) -> tuple[cudaError_t, int]:
        memory = np.full(size, POISON, np.uint8)
        self.host[memory.ctypes.data] = memory
        return cudaError_t.cudaSuccess, memory.ctypes.data

    def cudaFreeHost(self, address: int) -> tuple[cudaError_t]:
        memory = self.host.pop(address)
        memory.fill(POISON)
        self.freed_host.append(memory)
        return (cudaError_t.cudaSuccess,)

    def memory_at(self, address: int, num_bytes: int) -> np.ndarray:
        """Device memory that is alive and large enough."""
        assert address in self.device, f"{address:#x} is used after it was freed, or is no device memory"
        assert self.device[address].nbytes >= num_bytes, f"{num_bytes} bytes do not fit at {address:#x}"
        return self.device[address][:num_bytes]

    def cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[cudaError_t]:
        up = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        device, host = (target, source) if up else (source, target)
        assert host in self.host, "a copy from or to pageable memory would not be asynchronous"
        pinned = self.host[host][:count]
        assert pinned.nbytes == count

        def copy() -> None:
            memory = self.memory_at(device, count)
            self.copies.append(("to device" if up else "to host", device, count))
            if up:
                memory[:] = pinned
            else:
                pinned[:] = memory

        self.put(stream, copy)
        return (cudaError_t.cudaSuccess,)

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[cudaError_t]:
        self.put(stream, lambda: self.memory_at(address, count).fill(value))
        return (cudaError_t.cudaSuccess,)

    # --- streams and events ---------------------------------------------------------------------------------

    @property
    def capturing(self) -> bool:
        return any(stream.capture is not None for stream in self.streams.values())

    def put(self, handle: int, operation: Operation) -> None:
        """Something to be done in a stream."""
        stream = self.streams[int(handle)]
        if stream.capture is not None:
            stream.capture.append(operation)
        else:
            stream.pending.append(operation)
            stream.num_put += 1

    def _advance(self, stream: Stream, position: int) -> None:
        while stream.num_done < position:
            operation = stream.pending.pop(0)
            stream.num_done += 1
            operation()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[cudaError_t, int]:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return cudaError_t.cudaSuccess, handle

    def cudaStreamDestroy(self, handle: int) -> tuple[cudaError_t]:
        self.streams.pop(handle)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, handle: int) -> tuple[cudaError_t]:
        stream = self.streams[handle]
        if stream.capture is not None:
            stream.capture_is_void = True
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._advance(stream, stream.num_put)
        return (cudaError_t.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[cudaError_t, int]:
        handle = next(self._handles)
        self.events[handle] = Event()
        return cudaError_t.cudaSuccess, handle

    def cudaEventDestroy(self, handle: int) -> tuple[cudaError_t]:
        self.events.pop(handle)
        return (cudaError_t.cudaSuccess,)

    def cudaEventRecord(self, event: int, handle: int) -> tuple[cudaError_t]:
        stream = self.streams[handle]
        self.events[event] = Event(stream, stream.num_put)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamWaitEvent(self, handle: int, event: int, flags: int) -> tuple[cudaError_t]:
        mark = self.events[event]
        assert mark.stream is not None, "waiting for an event that was never recorded waits for nothing"
        awaited, position = mark.stream, mark.position
        self.put(handle, lambda: self._advance(awaited, position))
        return (cudaError_t.cudaSuccess,)

    # --- graphs ---------------------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, handle: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
        assert self.streams[handle].capture is None
        self.streams[handle].capture = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, handle: int) -> tuple[cudaError_t, int | None]:
        stream = self.streams[handle]
        assert stream.capture is not None
        operations, stream.capture = stream.capture, None
        if stream.capture_is_void:
            stream.capture_is_void = False
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        graph = next(self._handles)
        self.graphs[graph] = operations
        return cudaError_t.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[cudaError_t, int]:
        executable = next(self._handles)
        self.executables[executable] = list(self.graphs[graph])
        return cudaError_t.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[cudaError_t]:
        self.graphs.pop(graph)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, executable: int, handle: int) -> tuple[cudaError_t]:
        self.num_launches += 1
        for operation in self.executables[executable]:
            self.put(handle, operation)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[cudaError_t]:
        self.executables.pop(executable)
        return (cudaError_t.cudaSuccess,)

    def nothing_is_left(self) -> bool:
        """Whether everything that was made has been freed."""
        made = (self.device, self.host, self.streams, self.events, self.graphs, self.executables)
        return not any(made)
