"""The recorded doubles of TensorRT and CUDA: no more than the real ones have, and stricter than those."""

from __future__ import annotations

import inspect
import itertools
import re

import numpy as np
import pytest
from recorded_cuda import RecordedCuda
from recorded_tensorrt import recorded_tensorrt as tensorrt_double

from e2e_perception.core.errors import EngineUnavailableError
from e2e_perception.deploy.engines.cuda_memory import Cuda


@pytest.fixture
def cuda() -> RecordedCuda:
    return RecordedCuda()


def test_recorded_double_of_tensorrt_has_nothing_that_the_library_lacks(cuda: RecordedCuda) -> None:
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: `make setup`")
    double = tensorrt_double(cuda)
    compared: dict[str, set[str]] = {}
    for name in vars(double).keys() - {"__name__", "__version__", "builds"}:
        ours, theirs = getattr(double, name), getattr(real, name)
        if hasattr(ours, "__members__"):
            assert set(ours.__members__) <= set(theirs.__members__), name
        elif isinstance(ours, type):
            compared[name] = _public(ours) - HELPERS
            assert compared[name] <= _public(theirs), name
    assert {"get_tensor_mode", "create_execution_context", "device_memory_size_v2"} <= compared["ICudaEngine"]
    assert {"set_tensor_address", "execute_async_v3"} <= compared["IExecutionContext"]
    assert {"builder_optimization_level", "num_compute_capabilities"} <= compared["IBuilderConfig"]


# Attributes of doubles that a test looks at, and not the engine.
HELPERS = {
    *("SCRATCH_BYTES", "addresses", "capturable", "context_class", "digest", "engine", "session", "tensors"),
    *("cache", "content", "flags", "layers", "model", "pool_limits", "set_flags", "targets", "timings"),
}


def _public(kind: type) -> set[str]:
    """Names of what a class and its instances have, its bases' included."""
    found = set(dir(kind)) - set(dir(object))
    for base in kind.__mro__[:-1]:
        init = vars(base).get("__init__")
        found |= (
            set(re.findall(r"self\.(\w+)", inspect.getsource(init))) if inspect.isfunction(init) else set()
        )
        found |= set(getattr(base, "__annotations__", {}))
    return {name for name in found if not name.startswith("_")}


def test_recorded_double_of_cuda_has_the_names_and_numbers_of_the_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed: `make setup`")
    names = [name for name in vars(RecordedCuda) if name.startswith("cuda")]
    assert len(names) > 20
    for name in names:
        ours, theirs = getattr(RecordedCuda, name), getattr(real, name)
        if isinstance(ours, type):
            assert all(int(getattr(theirs, m)) == int(v) for m, v in ours.__members__.items()), name
        elif isinstance(ours, int):
            assert ours == int(theirs)


def test_recorded_double_sees_what_is_done_out_of_order(cuda: RecordedCuda) -> None:
    """Each of these would go unnoticed, or corrupt memory, on a GPU."""
    with Cuda(cuda) as gpu:
        first, second = gpu.stream(), gpu.stream()
        device = gpu.allocate(4, "a test")
        staged, fetched = gpu.pinned((4,), np.uint8), gpu.pinned((4,), np.uint8)
        staged.array[:] = 1
        gpu.to_device(device, staged, first)
        gpu.to_host(fetched, device, second)  # nobody told the second stream to wait
        gpu.synchronize(second)
        assert not (fetched.array == 1).any()
        event = gpu.event()
        gpu.record(event, first)
        gpu.wait(second, event)
        gpu.to_host(fetched, device, second)
        assert not (fetched.array == 1).any()  # nobody waited yet
        gpu.synchronize(second)
        assert (fetched.array == 1).all()
        with pytest.raises(AssertionError, match="pageable"):
            cuda.cudaMemcpyAsync(device, np.zeros(4, np.uint8).ctypes.data, 4,
                                 cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, first)  # fmt: skip
        gpu.clear(device + 256, 4, first)
        with pytest.raises(AssertionError, match="no device memory"):
            gpu.synchronize(first)
        counter = itertools.count()
        graph = gpu.capture(first, lambda: cuda.put(first, lambda: next(counter)))
        assert next(counter) == 0  # captured, not done
        gpu.launch(graph, first)
        gpu.synchronize(first)
        assert next(counter) == 2
    assert cuda.nothing_is_left()


def test_recorded_double_of_a_stream_is_usable_after_a_capture_that_failed(cuda: RecordedCuda) -> None:
    def fail() -> None:
        raise EngineUnavailableError("the library did not want to")

    with Cuda(cuda) as gpu:
        stream = gpu.stream()
        with pytest.raises(EngineUnavailableError, match="did not want to"):
            gpu.capture(stream, fail)
        with pytest.raises(EngineUnavailableError, match="cudaErrorStreamCaptureUnsupported"):
            gpu.capture(stream, lambda: gpu.synchronize(stream))
        done: list[int] = []
        cuda.put(stream, lambda: done.append(1))
        gpu.synchronize(stream)
        assert done == [1]
