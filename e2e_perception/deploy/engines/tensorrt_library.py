"""TensorRT and TensorRT-RTX as one library that says what it can do.

`tensorrt` 10 (JetPack, datacentre) has flags by which the compiler may choose half precision itself; 11
dropped them. `tensorrt_rtx` can compile for other GPUs than this machine's, even on a machine without one,
and finishes compiling where the engine runs. None of that is guessed from a version: it is read from the
module.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import EngineUnavailableError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
MODULES = {TENSORRT: ("tensorrt",), TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
MAJOR_VERSIONS = {TENSORRT: (10, 11), TENSORRT_RTX: (1,)}
HOW_TO_GET = {
    TENSORRT: "it comes with JetPack; elsewhere `pip install tensorrt`",
    TENSORRT_RTX: "`pip install e2e-perception[tensorrt-rtx]`",
}
_KEPT_LINES = 200
_TAIL_LINES = 4


@dataclass(frozen=True)
class Capabilities:
    """What a library can do, read from its module.

    Attributes:
        name: Name of the module.
        version: Its version.
        strong_types_flag: Whether strong typing has to be asked for.
        precision_flags: Builder flags of weak typing by precision; empty where types are always strong.
        targets: Compute capabilities, such as `8.6`, that it can compile for without such a GPU.
        timing_cache: Whether what it measured of kernels can be kept for the next build.
        runtime_cache: Whether what it compiles where the engine runs can be kept for the next start.
        asks_before_capture: Whether a context can be asked if a stream may capture it.
    """

    name: str
    version: str
    strong_types_flag: bool
    precision_flags: dict[str, str]
    targets: tuple[str, ...]
    timing_cache: bool
    runtime_cache: bool
    asks_before_capture: bool


class TensorRtLibrary:
    """An imported library with its one logger.

    Attributes:
        module: The imported module.
        backend: `tensorrt` or `tensorrt-rtx`.
        capabilities: What it can do.
        logger: Its logger; the library has one for the whole process.
    """

    def __init__(self, module: Any, backend: str) -> None:
        """Read what the module can do.

        Raises:
            EngineUnavailableError: If its major version is not one that this release knows.
        """
        version = str(module.__version__)
        known = MAJOR_VERSIONS[backend]
        if int(version.split(".")[0]) not in known:
            raise EngineUnavailableError(
                f"backend {backend!r}: {module.__name__} {version} is installed; this release works with "
                f"version {' or '.join(map(str, known))}"
            )
        self.module = module
        self.backend = backend
        self.capabilities = _capabilities(module, backend)
        self.logger: Any = _ring_logger(module)

    def compute_capability(self, target: str) -> Any:
        """The library's name of a compute capability out of `Capabilities.targets`."""
        return self.module.ComputeCapability.__members__["SM" + target.replace(".", "")]

    def failure(self, sentence: str, hint: str = "") -> EngineUnavailableError:
        """An error that ends with what the library last complained about."""
        tail = self.logger.tail()
        said = f"; {self.capabilities.name} {self.capabilities.version} says: {tail}" if tail else ""
        return EngineUnavailableError(f"{sentence}{said}{hint}")


def find_module(backend: str) -> str | None:
    """Name of the installed module of a backend, without importing it."""
    return next((name for name in MODULES[backend] if importlib.util.find_spec(name) is not None), None)


def installed_version(module: str) -> str:
    """Version of an installed module, without importing it; JetPack's may be known by its module alone.

    Looks beside the module first: asking for what every installed distribution brings takes half a second.
    """
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        for facts in sorted(Path(spec.origin).parent.parent.glob(f"{module}[-_]*.dist-info")):
            beside = metadata.PathDistribution(facts)
            if re.search(rf"^{module}/", beside.read_text("RECORD") or "", re.MULTILINE):
                return beside.version
    for distribution in metadata.packages_distributions().get(module, ()):
        return metadata.version(distribution)
    return "installed"


@functools.cache
def load_library(backend: str) -> TensorRtLibrary:
    """Import the library of a backend.

    Raises:
        EngineUnavailableError: If it is not installed, cannot be loaded or has another major version.
    """
    name = find_module(backend)
    if name is None:
        raise EngineUnavailableError(
            f"backend {backend!r} cannot run: the Python package {MODULES[backend][0]} is not installed; "
            f"{HOW_TO_GET[backend]}"
        )
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineUnavailableError(
            f"backend {backend!r} cannot run: {name} is installed but cannot be loaded: {error}"
        ) from error
    return TensorRtLibrary(module, backend)


def _capabilities(module: Any, backend: str) -> Capabilities:
    builder_flags = module.BuilderFlag.__members__
    network_flags = module.NetworkDefinitionCreationFlag.__members__
    targets = getattr(module, "ComputeCapability", None)
    names = () if targets is None else targets.__members__
    found = (re.fullmatch(r"SM(\d+)(\d)", name) for name in names)
    return Capabilities(
        name=module.__name__,
        version=str(module.__version__),
        strong_types_flag="STRONGLY_TYPED" in network_flags,
        precision_flags={
            precision: flag
            for precision, flag in (("float16", "FP16"), ("bfloat16", "BF16"))
            if flag in builder_flags
        },
        targets=tuple(f"{match[1]}.{match[2]}" for match in found if match is not None),
        # TensorRT-RTX has the functions and calls them no-ops: it measures nothing when it builds.
        timing_cache=backend == TENSORRT and hasattr(module.IBuilderConfig, "create_timing_cache"),
        runtime_cache=hasattr(module, "IRuntimeCache")
        and hasattr(module.ICudaEngine, "create_runtime_config"),
        asks_before_capture=hasattr(module.IExecutionContext, "is_stream_capturable"),
    )


def _ring_logger(module: Any) -> Any:
    class RingLogger(module.ILogger):
        """Keeps the library's last lines, so that an error can quote them."""

        def __init__(self) -> None:
            super().__init__()
            self._lines: deque[tuple[str, str]] = deque(maxlen=_KEPT_LINES)

        def log(self, severity: Any, message: str) -> None:
            """Called by the library, from any of its threads."""
            if severity.name != "VERBOSE":
                self._lines.append((severity.name, message))

        def forget(self) -> None:
            """Something new begins."""
            self._lines.clear()

        def tail(self) -> str:
            """The last complaints, oldest first, in one line."""
            lines = list(self._lines)
            errors = [text for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
            chosen = errors or [text for severity, text in lines if severity == "WARNING"]
            return " | ".join(" ".join(text.split()) for text in chosen[-_TAIL_LINES:])

    return RingLogger()
