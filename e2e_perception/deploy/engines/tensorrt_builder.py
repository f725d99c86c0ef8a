"""From a bundle's graph to a TensorRT engine: parse, compile, keep.

None of the library's functions raises; each answer is looked at, and an error quotes the parser's nodes and
the end of the library's log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import ConfigError, EngineUnavailableError
from e2e_perception.deploy.engine_cache import EngineCache, EngineKey
from e2e_perception.deploy.engine_graph import EngineGraph, engine_graph, operators
from e2e_perception.deploy.engines.cuda_memory import Gpu
from e2e_perception.deploy.engines.tensorrt_library import TENSORRT_RTX, TensorRtLibrary
from e2e_perception.deploy.operators import check_operators

PRECISIONS = ("float32", "float16", "bfloat16")
MOST_WORKSPACE_MIB = 1 << 20  # a terabyte, more than any GPU has
BUILD_NOTE = "build"
_NAMED_ERRORS = 5

Log = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What can be chosen about a build.

    Attributes:
        precision: Of convolutions and linear layers: `float32`, `float16`, `bfloat16`.
        compute_capabilities: GPUs to compile for, such as `8.6`; empty: this machine's.
        optimization_level: 0 compiles fastest, 5 searches longest.
        workspace_mib: Most scratch memory that a kernel may use [MiB]; None leaves it to the library.
        weak_types: Let the library choose the precision of `EngineGraph.free_nodes`, too; only where it has
            flags for that.
    """

    precision: str = "float32"
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace_mib: int | None = None
    weak_types: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r}; expected {', '.join(PRECISIONS)}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimisation level {self.optimization_level}; expected 0 to 5")
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= MOST_WORKSPACE_MIB:
            raise ConfigError(f"workspace of {self.workspace_mib} MiB; expected 1 to {MOST_WORKSPACE_MIB}")


@dataclass(frozen=True)
class BuiltEngine:
    """A compiled engine.

    Attributes:
        plan: Its bytes.
        key: What it depends on.
        from_cache: Whether it had been built before.
        num_layers: Layers that the parser made of the graph; None if not known any more.
        num_half_nodes: Operators in half precision; None if not known any more.
        seconds: How long this call took.
    """

    plan: bytes
    key: EngineKey
    from_cache: bool
    num_layers: int | None
    num_half_nodes: int | None
    seconds: float


def build_engine(
    library: TensorRtLibrary,
    model: Path,
    options: BuildOptions,
    cache: EngineCache,
    gpu: Gpu | None,
    log: Log = lambda sentence: None,
    *,
    useless: str = "",
) -> BuiltEngine:
    """The engine of a graph, from the cache or newly compiled.

    Args:
        library: From `load_library`.
        model: `model.onnx` of a bundle.
        options: Precision, targets, effort.
        cache: Where engines are kept.
        gpu: This machine's; None: there is none, and `options` name compute capabilities.
        log: Gets a sentence before anything is compiled, which takes its time.
        useless: Why what is in the cache is of no use and is compiled again; empty: what is there is taken.
    Raises:
        ConfigError: If the library cannot build what the options ask for.
        ContractError: If the graph holds what engines do not take, named by node.
        EngineUnavailableError: If the library refuses the graph or fails.
    """
    started = time.perf_counter()
    targets = _targets(library, options, gpu)
    _check_types(library, options)
    graph = engine_graph(model, options.precision)
    check_operators(operators(graph.model))
    key = _engine_key(library, graph, options, targets, gpu)
    made: dict[str, int] = {}

    def compile_it() -> bytes:
        log(
            f"compiling the network with {library.capabilities.name} {library.capabilities.version} in "
            f"{options.precision}; the next start takes it from {cache.directory}"
        )
        plan, made["layers"] = compile_graph(library, graph, options, targets, cache, gpu)
        made["half_nodes"] = graph.num_half_nodes
        return plan

    if useless:
        plan, from_cache = cache.rebuild(key, compile_it, useless), False
    else:
        plan, from_cache = cache.get_or_build(key, compile_it)
    if from_cache:
        made = cache.read_note(key, BUILD_NOTE) or {}
    else:
        cache.write_note(key, BUILD_NOTE, made)
        for target in targets if len(targets) > 1 else ():
            # Where such a GPU is, this is what will be looked for.
            own_key = _engine_key(library, graph, options, (target,), gpu)
            cache.store(own_key, plan)
            cache.write_note(own_key, BUILD_NOTE, made)
    return BuiltEngine(
        plan, key, from_cache, made.get("layers"), made.get("half_nodes"), time.perf_counter() - started
    )


def compile_graph(
    library: TensorRtLibrary,
    graph: EngineGraph,
    options: BuildOptions,
    targets: tuple[str, ...],
    cache: EngineCache,
    gpu: Gpu | None,
) -> tuple[bytes, int]:
    """Compile, whatever is in the cache of engines.

    Args:
        library, options, gpu: As for `build_engine`.
        graph: From `engine_graph`.
        targets: Compute capabilities, for a library that can be told.
        cache: Keeps what was measured of kernels, where the library measures.
    Returns:
        The engine, and how many layers the parser made of the graph.
    Raises:
        EngineUnavailableError: If the library refuses the graph or fails.
    """
    trt = library.module
    library.logger.forget()
    builder = trt.Builder(library.logger)
    network = builder.create_network(_network_flags(library, options))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(graph.model.SerializeToString()):
        raise library.failure(f"the graph cannot be parsed: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    # By default float32 products may round their factors to ten bits, in which a pixel has no digits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if library.capabilities.targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(library.compute_capability(target), index):
                raise library.failure(f"cannot compile for compute capability {target}")
    if options.weak_types:
        _choose_types_weakly(library, network, config, options.precision, graph.free_nodes)
    timings = _attach_timings(library, config, cache, gpu)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise library.failure("the engine could not be compiled")
    if timings is not None:
        cache.store(_timing_key(library, gpu), bytes(config.get_timing_cache().serialize()))
    return bytes(plan), int(network.num_layers)


def _targets(library: TensorRtLibrary, options: BuildOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """Compute capabilities to compile for; empty where the library only knows this machine's GPU."""
    known = library.capabilities.targets
    if not known:
        if options.compute_capabilities:
            raise ConfigError(
                f"{library.capabilities.name} compiles for this machine's GPU alone; leave the compute "
                f"capabilities out, or use backend {TENSORRT_RTX!r}"
            )
        if gpu is None:
            raise EngineUnavailableError(
                f"{library.capabilities.name} compiles on the machine with the GPU that is to run the "
                f"engine, and there is none here; backend {TENSORRT_RTX!r} compiles without one"
            )
        return ()
    wanted = options.compute_capabilities or ((gpu.compute_capability,) if gpu is not None else ())
    if not wanted:
        raise ConfigError("there is no GPU here to compile for; name compute capabilities, such as 8.6")
    for target in wanted:
        if target not in known:
            of = f" of {gpu.name}" if gpu is not None and not options.compute_capabilities else ""
            raise ConfigError(
                f"compute capability {target!r}{of} is not one that {library.capabilities.name} "
                f"{library.capabilities.version} compiles for: {', '.join(known)}"
            )
    return tuple(sorted(set(wanted), key=known.index))


def _check_types(library: TensorRtLibrary, options: BuildOptions) -> None:
    flags = library.capabilities.precision_flags
    if options.weak_types and options.precision not in flags:
        raise ConfigError(
            f"{library.capabilities.name} {library.capabilities.version} has no weak types for "
            f"{options.precision}; it takes precision from the graph, so leave weak types off"
        )


def _engine_key(
    library: TensorRtLibrary,
    graph: EngineGraph,
    options: BuildOptions,
    targets: tuple[str, ...],
    gpu: Gpu | None,
) -> EngineKey:
    return EngineKey(
        {
            "kind": "engine",
            "onnx": graph.digest,
            "library": f"{library.backend} {library.capabilities.version}",
            # An engine for named compute capabilities runs on every GPU that has one of them.
            "gpu": ", ".join(targets) or str(gpu),
            "precision": options.precision,
            "optimization_level": options.optimization_level,
            "workspace_mib": -1 if options.workspace_mib is None else options.workspace_mib,
            "weak_types": options.weak_types,
        }
    )


def _network_flags(library: TensorRtLibrary, options: BuildOptions) -> int:
    if options.weak_types or not library.capabilities.strong_types_flag:
        return 0
    return 1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _choose_types_weakly(
    library: TensorRtLibrary, network: Any, config: Any, precision: str, free: Collection[str]
) -> None:
    """Pin what computes in float32 in the graph; the library chooses for the rest, and for what is `free`."""
    trt = library.module
    config.set_flag(trt.BuilderFlag.__members__[library.capabilities.precision_flags[precision]])
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (trt.LayerType.CAST, trt.LayerType.CONSTANT):
            continue
        made = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
        if trt.float32 in made and layer.name not in free:
            layer.precision = trt.float32


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    named = [
        f"node {error.node_name()!r} ({error.node_operator()}): {error.code().name}, "
        f"{' '.join(error.desc().split())}"
        for error in errors[:_NAMED_ERRORS]
    ]
    more = f" and {len(errors) - _NAMED_ERRORS} more" if len(errors) > _NAMED_ERRORS else ""
    return "; ".join(named) + more


def _attach_timings(library: TensorRtLibrary, config: Any, cache: EngineCache, gpu: Gpu | None) -> Any:
    """Give the compiler what earlier builds measured; returned because it has to outlive the build."""
    if not library.capabilities.timing_cache:
        return None
    timings = config.create_timing_cache(cache.lookup(_timing_key(library, gpu)) or b"")
    if timings is None or not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _timing_key(library: TensorRtLibrary, gpu: Gpu | None) -> EngineKey:
    version = f"{library.backend} {library.capabilities.version}"
    return EngineKey({"kind": "timing cache", "library": version, "gpu": str(gpu)})
