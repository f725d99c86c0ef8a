"""`quantize`: a float32 bundle → an int8 one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError


def quantize(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or the name of a shipped one.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Clips: of `train` to calibrate on, of `validation` to compare on.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Bundle directory to write; an existing bundle is replaced.", show_default=False),
    ],
    num_clips: Annotated[int, typer.Option(min=1, help="Clips to calibrate on.")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle whose camera layers run in int8; it is compared with torch first.

    The graph is for ONNX Runtime and TensorRT alike. What it is worth on a suite, `evaluate --suite` says.

    Example: `e2e-perception quantize bundles/mine --data dataset --out bundles/mine-int8`
    """
    for module in ("torch", "onnx"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"quantizing needs {module}, which is not installed; `pip install .[training]`")
    from e2e_perception.cli.rollouts import frames_of_clips, rollouts_of
    from e2e_perception.data.shards import digest_of, open_clips
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.quantize import quantize_bundle

    opened = load_bundle(bundle)
    stores = open_clips(data)
    calibration = frames_of_clips(stores, "train", opened.network, num_clips)
    with progress_bar("calibrating", None) as progress:
        found = quantize_bundle(
            opened,
            out,
            calibration=calibration,
            rollouts=rollouts_of(data, opened.network),
            source=f"clips {digest_of(stores)[:12]}",
            on_frame=lambda done, total: progress(done, f"of {total} frames"),
        )
    written = load_bundle(out)
    log(f"wrote {written} to {out}")
    if as_json:
        emit_json(
            {
                "path": str(out),
                "name": written.name,
                "digest": written.digest,
                "parent": opened.digest,
                "quantization": written.manifest["quantization"],
                "differences": found,
            }
        )
        return
    rows = [(name, f"{value:.2g}") for name, value in found.items()]
    print_table(f"{written} against torch in float32", ("output", "largest difference"), rows)
