"""`build-engine`: bundle → compiled engine, in the cache and, if asked, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, log, print_table, working
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError, EngineUnavailableError


def build_engine(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Bundle directory, or the name of a shipped one.")
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[8.9]...", help="More compute capabilities.", show_default=False),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="`tensorrt`, or `tensorrt-rtx`, which needs no GPU to compile.")
    ] = "tensorrt-rtx",
    precision: Annotated[
        str, typer.Option(help="Of convolutions and linear layers: `float32`, `float16` or `bfloat16`.")
    ] = "float32",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPUs to compile for, such as `8.6 8.9` or `8.6,8.9`. Default: this machine's GPU.",
            show_default=False,
        ),
    ] = None,
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="0 compiles fastest, 5 searches longest for fast kernels.")
    ] = 3,
    workspace_mib: Annotated[
        int | None,
        typer.Option(min=1, help="Most scratch memory of a kernel [MiB].", show_default="the library's"),
    ] = None,
    weak_types: Annotated[
        bool,
        typer.Option(
            "--weak-types",
            help="Let TensorRT 10 choose the precision of what directly follows layers of half precision.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the engine to this file.", show_default=False)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Directory of compiled engines.", show_default="~/.cache/e2e_perception/engines"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a bundle's network ahead of its first start, or for other machines' GPUs.

    Example: `e2e-perception build-engine tiny --precision float16 --compute-capability 8.6 8.9`
    """
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engine_cache import EngineCache
    from e2e_perception.deploy.engines.cuda_memory import Cuda
    from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions
    from e2e_perception.deploy.engines.tensorrt_builder import build_engine as build
    from e2e_perception.deploy.engines.tensorrt_library import MODULES, load_library

    if backend not in MODULES:
        raise ConfigError(f"backend {backend!r} has no engines to build; expected {' or '.join(MODULES)}")
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}: its directory does not exist")
    if more and not compute_capability:
        raise ConfigError(f"{' '.join(more)} without --compute-capability; write it before the first of them")
    capabilities = _listed([*(compute_capability or []), *(more or [])])
    if compute_capability and not capabilities:
        given = ", ".join(map(repr, compute_capability))
        raise ConfigError(f"--compute-capability {given} names none; expected such as 8.6, or no option")
    options = BuildOptions(
        precision=precision,
        compute_capabilities=capabilities,
        optimization_level=optimization_level,
        workspace_mib=workspace_mib,
        weak_types=weak_types,
    )
    loaded = load_bundle(bundle)
    library = load_library(backend)
    gpu = None
    if not options.compute_capabilities:
        try:
            with Cuda() as cuda:
                gpu = cuda.gpu
        except EngineUnavailableError as error:
            log(str(error))
    engines = EngineCache(cache, log)
    with working(f"compiling {loaded} for {backend} in {precision}"):
        built = build(library, loaded.model_path, options, engines, gpu)
    if out is not None:
        out.write_bytes(built.plan)
    elif not engines.holds(built.key):
        raise EngineUnavailableError(
            f"the engine was compiled and could not be kept in {engines.directory}, see above; make room or "
            "name another directory with --cache, or a file with --out"
        )
    parts = dict(built.key.parts)
    if as_json:
        emit_json(
            {
                "bundle": {"name": loaded.name, "digest": loaded.digest},
                "key": parts,
                "entry": built.key.digest,
                "from_cache": built.from_cache,
                "bytes": len(built.plan),
                "seconds": round(built.seconds, 3),
                "layers": built.num_layers,
                "half_precision_operators": built.num_half_nodes,
                "out": None if out is None else str(out),
            }
        )
        return
    rows = [
        ("library", parts["library"]),
        ("for", parts["gpu"]),
        ("precision", f"{precision}, {built.num_half_nodes} operators in half precision"),
        ("layers", str(built.num_layers)),
        ("size", f"{len(built.plan) / 1e6:.2f} MB"),
        ("time", f"{built.seconds:.1f} s" + (", from the cache" if built.from_cache else "")),
        ("entry", built.key.digest),
    ]
    if out is not None:
        rows.append(("written to", str(out)))
    print_table("Engine", ("what", "value"), [(name, str(value)) for name, value in rows], wide=True)


def _listed(given: list[str]) -> tuple[str, ...]:
    """Compute capabilities of all options, each of which may name several."""
    return tuple(name for option in given for name in option.replace(",", " ").split())
