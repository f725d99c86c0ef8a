"""A double of TensorRT's Python interface, over `RecordedCuda`; what it computes, ONNX Runtime computes.

It keeps the habits of the real library, as they were seen: nothing raises, every function answers with None
or False and tells the logger why; bytes are taken at an input if the first thing is a cast; types have to
agree at every node; an engine of another version, for another GPU, cut off or altered is not loaded; a
context takes device memory; a run with a tensor that has no address fails. `test_tensorrt_recorded.py`
compares its names with the installed library's.
"""

from __future__ import annotations

import enum
import hashlib
import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from recorded_cuda import RecordedCuda, cudaError_t

from e2e_perception.deploy.engine_graph import rounded_in_float32

MAGIC = b"recorded engine\n"
VERSIONS = {"tensorrt_rtx": "1.7.1.116", "tensorrt": "10.13.3.9"}


class DataType(enum.Enum):
    FLOAT, HALF, BF16, UINT8, INT64, BOOL = range(6)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class LayerType(enum.Enum):
    """Those that are told apart; everything that computes is one here."""

    ELEMENTWISE, CONSTANT, CAST = range(3)


class StrongTypes(enum.IntEnum):
    STRONGLY_TYPED = 1


class ErrorCode(enum.Enum):
    SUCCESS, UNSUPPORTED_NODE, INVALID_NODE = range(3)


class ComputeCapability(enum.Enum):
    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = range(8)


_TYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.INT64: DataType.INT64,
    TensorProto.BOOL: DataType.BOOL,
}


_DTYPES = {DataType.FLOAT: np.dtype(np.float32), DataType.UINT8: np.dtype(np.uint8)}


class ILogger:
    def __init__(self) -> None:
        pass

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IHostMemory:
    """Bytes; the real one offers a buffer, which Python classes cannot before 3.12."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)


class IBuilderConfig:
    """Options of a build; the fields of the timing cache are added where the library has one."""

    def __init__(self, flags: type[enum.IntEnum]) -> None:
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.pool_limits: dict[MemoryPoolType, int] = {}
        self.targets: dict[int, ComputeCapability] = {}
        self.set_flags: set[Any] = {flags.__members__["TF32"]}  # as the library's
        self.timings: ITimingCache | None = None
        self._flags = flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, num_bytes: int) -> None:
        self.pool_limits[pool] = num_bytes

    def set_compute_capability(self, target: ComputeCapability, index: int) -> bool:
        self.targets[index] = target
        return 0 <= index < self.num_compute_capabilities

    def set_flag(self, flag: Any) -> None:
        assert flag in self._flags
        self.set_flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.set_flags.discard(flag)

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(content)

    def set_timing_cache(self, timings: ITimingCache, ignore_mismatch: bool) -> bool:
        if timings.content not in (b"", b"measured"):
            return False
        self.timings = timings
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.timings


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None
        self.layers: list[SimpleNamespace] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> SimpleNamespace:
        return self.layers[index]


class ParserError:
    def __init__(self, code: ErrorCode, node: onnx.NodeProto, desc: str) -> None:
        self._code, self._node, self._desc = code, node, desc

    def code(self) -> ErrorCode:
        return self._code

    def desc(self) -> str:
        return self._desc

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class ICudaEngine:
    """A loaded engine; `create_runtime_config` is added where the library has a runtime cache."""

    SCRATCH_BYTES = 16 << 20
    context_class: type[IExecutionContext]

    def __init__(self, model: onnx.ModelProto, cuda: RecordedCuda, logger: ILogger, contexts: Any) -> None:
        self._cuda, self._logger, self._contexts = cuda, logger, contexts
        twin = rounded_in_float32(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(twin.SerializeToString(), options)
        self.tensors = {
            value.name: (mode, tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
                         _TYPES[value.type.tensor_type.elem_type])
            for mode, values in (
                (TensorIOMode.INPUT, model.graph.input), (TensorIOMode.OUTPUT, model.graph.output)
            )
            for value in values
        }  # fmt: skip
        self.digest = hashlib.sha256(model.SerializeToString()).hexdigest()
        self.device_memory_size_v2 = self.SCRATCH_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][2]

    def create_execution_context(self, config: Any = None) -> IExecutionContext | None:
        status, address = self._cuda.cudaMalloc(self.SCRATCH_BYTES)
        if status != cudaError_t.cudaSuccess:
            self._logger.log(
                Severity.ERROR, "IExecutionContext::createContext: OutOfMemory (no further info)"
            )
            return None
        context = self.context_class(self, self._cuda, self._logger, address, config)
        self._contexts.add(context)
        return context


class IExecutionContext:
    def __init__(
        self, engine: ICudaEngine, cuda: RecordedCuda, logger: ILogger, scratch: int, config: Any
    ) -> None:
        self.engine, self._cuda, self._logger, self._config = engine, cuda, logger, config
        self.addresses: dict[str, int] = {}
        # The scratch memory goes when the context does, as the library's own.
        self._free = weakref.finalize(self, cuda.device.pop, scratch)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors:
            self._logger.log(
                Severity.ERROR, f"IExecutionContext::setTensorAddress: {name} is not a tensor of the engine"
            )
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0, "the default stream waits for all others"
        missing = [name for name in self.engine.tensors if not self.addresses.get(name)]
        if missing:
            self._logger.log(
                Severity.ERROR,
                f"IExecutionContext::enqueueV3: API Usage Error (Address is not set for {missing[0]})",
            )
            return False
        addresses, engine, cuda = dict(self.addresses), self.engine, self._cuda
        if self._config is not None:
            self._config.cache.content = f"kernels of {engine.digest}".encode()

        def run() -> None:
            memory = {
                name: cuda.memory_at(addresses[name], int(np.prod(shape)) * _DTYPES[kind].itemsize)
                .view(_DTYPES[kind])
                .reshape(shape)
                for name, (_, shape, kind) in engine.tensors.items()
            }  # fmt: skip
            inputs = [n for n, (mode, _, _) in engine.tensors.items() if mode == TensorIOMode.INPUT]
            outputs = [name for name in engine.tensors if name not in inputs]
            # Kernels read inputs while others write outputs already.
            assert not {addresses[n] for n in inputs} & {addresses[n] for n in outputs}
            feed = {name: memory[name].copy() for name in inputs}
            for name, value in zip(outputs, engine.session.run(outputs, feed), strict=True):
                memory[name][:] = value

        cuda.put(stream, run)
        return True


class RtxExecutionContext(IExecutionContext):
    capturable = True

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._cuda.streams
        return self.capturable


class IRuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels of "):
            return False
        self.content = content
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


def recorded_tensorrt(
    cuda: RecordedCuda,
    name: str = "tensorrt_rtx",
    *,
    version: str | None = None,
    unsupported: frozenset[str] = frozenset({"Det", "NonZero"}),
) -> Any:
    """A module-like double.

    Args:
        cuda: The GPU that its engines run on; if it fails `deserialize_cuda_engine`, memory is what it lacks.
        name: `tensorrt_rtx`, or `tensorrt` with weak types in version 10 and without in 11.
        version: In place of the one recorded.
        unsupported: Operators that its parser refuses.
    """
    version = version or VERSIONS[name]
    is_rtx = name == "tensorrt_rtx"
    weak = not is_rtx and version.startswith("10.")
    builder_flags = enum.IntEnum(
        "BuilderFlag", ["DEBUG", "TF32"] + (["FP16", "BF16", "OBEY_PRECISION_CONSTRAINTS"] if weak else [])
    )
    contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
    cuda.in_use = lambda address: any(address in context.addresses.values() for context in contexts)
    builds: list[SimpleNamespace] = []

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self._network, self._logger = network, logger
            self._errors: list[ParserError] = []

        def parse(self, content: bytes) -> bool:
            model = onnx.load_from_string(content)
            model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
            raw = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.UINT8}
            for node in model.graph.node:
                if node.op_type in unsupported:
                    self._refuse(ErrorCode.UNSUPPORTED_NODE, node, "false")
                elif raw & set(node.input) and node.op_type != "Cast":
                    self._refuse(
                        ErrorCode.INVALID_NODE, node, "first input has type UInt8 but must have type Float"
                    )
                if self._errors:
                    return False
            self._network.model = model
            types = {v.name: _TYPES.get(v.type.tensor_type.elem_type)
                     for v in (*model.graph.value_info, *model.graph.output)}  # fmt: skip
            for node in model.graph.node:
                outputs = [SimpleNamespace(dtype=types[output]) for output in node.output]
                kind = LayerType.CAST if node.op_type == "Cast" else LayerType.ELEMENTWISE
                layer = SimpleNamespace(name=node.name, type=kind, num_outputs=len(outputs), precision=None)
                layer.get_output = outputs.__getitem__
                self._network.layers.append(layer)
            return True

        def _refuse(self, code: ErrorCode, node: onnx.NodeProto, reason: str) -> None:
            self._errors.append(ParserError(code, node, reason))
            self._logger.log(Severity.ERROR, f"In node {node.name}: {reason}")

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig(builder_flags)

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory | None:
            builds.append(SimpleNamespace(network=network, config=config))
            if network.model is None:
                self._logger.log(Severity.ERROR, "Network must have at least one output")
                return None
            if is_rtx and len(config.targets) != config.num_compute_capabilities:
                self._logger.log(Severity.ERROR, "a compute capability is not set")
                return None
            if config.timings is not None:
                config.timings.content = b"measured"
            targets = [target.name for target in config.targets.values()]
            header = {"library": f"{name} {version}", "targets": targets, "gpu": cuda.name}
            body = network.model.SerializeToString()
            header["sha256"] = hashlib.sha256(body).hexdigest()
            return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + body)

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
            reason = ""
            if not content.startswith(MAGIC):
                reason = "Magic tag does not match"
            else:
                head, _, body = content[len(MAGIC) :].partition(b"\n")
                header = json.loads(head)
                own = "SM" + cuda.compute_capability.replace(".", "")
                if header["library"] != f"{name} {version}":
                    reason = f"the engine was made by {header['library']}"
                elif "deserialize_cuda_engine" in cuda.fail:
                    reason = "Error Code 2: OutOfMemory (no further information)"
                elif header["sha256"] != hashlib.sha256(body).hexdigest():
                    reason = "plan.header.size == blobSize failed"
                elif (is_rtx and own not in header["targets"]) or (not is_rtx and header["gpu"] != cuda.name):
                    reason = f"the engine is for {', '.join(header['targets']) or header['gpu']}"
            if reason:
                self._logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: {reason}")
                return None
            return engine_class(onnx.load_from_string(body), cuda, self._logger, contexts)

    context_class = RtxExecutionContext if is_rtx else IExecutionContext
    engine_class = type("ICudaEngine", (ICudaEngine,), {"context_class": context_class})
    module = SimpleNamespace(
        __name__=name, __version__=version, BuilderFlag=builder_flags, DataType=DataType,
        TensorIOMode=TensorIOMode, MemoryPoolType=MemoryPoolType, NetworkDefinitionCreationFlag=StrongTypes,
        LayerType=LayerType, ILogger=ILogger, Builder=Builder,
        OnnxParser=OnnxParser, Runtime=Runtime, IBuilderConfig=IBuilderConfig, ICudaEngine=engine_class,
        IExecutionContext=context_class, INetworkDefinition=INetworkDefinition, ITimingCache=ITimingCache,
        IHostMemory=IHostMemory, ParserError=ParserError, float32=DataType.FLOAT, float16=DataType.HALF,
        bfloat16=DataType.BF16, uint8=DataType.UINT8, builds=builds,
    )  # fmt: skip
    if is_rtx:
        engine_class.create_runtime_config = lambda self: IRuntimeConfig()  # type: ignore[attr-defined]
        module.ComputeCapability = ComputeCapability
        module.IRuntimeCache, module.IRuntimeConfig = IRuntimeCache, IRuntimeConfig
    return module
