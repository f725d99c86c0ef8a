"""Options that several commands share, and what they amount to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.core.config import ParameterValue, StackConfig, config_from_parameters, load_config

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
DATASET_HELP = "Directory of shards, made by `ingest`, `import-log` or `label`."
CLIPS_HELP = (
    "Clips: a dataset made by `ingest`, `import-log` or `label`, or clips of `simulate --format clips`"
)
BundleOption = Annotated[
    str | None, typer.Option(help="Bundle directory, or the name of a shipped one.", show_default="tiny")
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        help="`tensorrt`, `tensorrt-rtx`, `onnxruntime`, `torch` or `auto`.", show_default="onnxruntime"
    ),
]
RigOption = Annotated[
    str | None,
    typer.Option(help="Rig file, or the name of a shipped one.", show_default="the shipped one that fits"),
]
ParamsOption = Annotated[
    Path | None, typer.Option(help="ROS parameter file; the other options win over it.", show_default=False)
]

PrivacyOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="Blurs faces and plates: takes every picture in full size, (H, W, 3) uint8 RGB, and returns one "
        "of the same size.",
        show_default="none",
    ),
]


IngestWorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that ingest; 0: one per core.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Ray cluster in place of processes: `local`, or an address.", show_default="none"
    ),
]


def given_parameters(
    *, bundle: str | None = None, backend: str | None = None, rig: str | None = None
) -> dict[str, ParameterValue]:
    """The options that were given, as parameters."""
    values = {"engine.bundle": bundle, "engine.backend": backend, "node.rig": rig}
    return {name: value for name, value in values.items() if value is not None}


def stack_config(params: Path | None, given: dict[str, ParameterValue]) -> StackConfig:
    """Parameter file and options together.

    Raises:
        ConfigError: For an unknown parameter, a wrong type or a value out of range.
    """
    return config_from_parameters(given, load_config(params) if params else StackConfig())


def named_rig(config: StackConfig, option: str | None) -> str | None:
    """The rig that was asked for; None if neither option nor parameter file names one of their own."""
    if option is not None:
        return option
    return config.node.rig if config.node.rig != StackConfig().node.rig else None
