"""`train`: clips → checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.training.config import TrainingConfig


def train(
    data: Annotated[
        Path, typer.Option(help="Clip store, written by `simulate --format clips`.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Run directory; a run found there is continued at its exact step.", show_default=False
        ),
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file with the run's settings.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one setting, e.g. `weights.plan=2`; repeatable."
        ),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps in all; run again to go on.")
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train the joint network on clips, or go on where an interrupted run stopped.

    Example: `e2e-perception train --data clips --out runs/tiny --set steps=3000`
    """
    settings = _settings(config, override or [])
    _require_torch(device)

    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.training import loop

    store = ClipStore(data)
    with progress_bar("training", settings.steps) as progress:

        def report(step: loop.StepReport) -> None:
            progress(step.step, f"loss {step.total:.3f}, {step.clips_per_s:.1f} clips/s")
            if step.step % 50 == 0:
                losses = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
                log(f"step {step.step}: {step.total:.3f} ({losses}), {step.clips_per_s:.1f} clips/s")

        done = loop.train(store, out, settings, report=report, stop_after=stop_after, device=device)
    if as_json:
        emit_json({"out": str(out), "steps": done, "of": settings.steps, "dataset_digest": store.digest})
    else:
        typer.echo(f"{done} of {settings.steps} steps done; checkpoint in {out}")


def _settings(config: Path | None, overrides: list[str]) -> TrainingConfig:
    import yaml
    from pydantic import ValidationError

    from e2e_perception.training.config import TrainingConfig, load_training_config

    document = (load_training_config(config) if config else TrainingConfig()).model_dump()
    for override in overrides:
        name, found, text = override.partition("=")
        if not found:
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE, e.g. steps=3000")
        *sections, leaf = name.split(".")
        target: Any = document
        for section in sections:
            target = target.get(section) if isinstance(target, dict) else None
        if not isinstance(target, dict) or leaf not in target:
            raise ConfigError(
                f"--set {override!r}: unknown setting {name!r}; there are {', '.join(document)}"
            )
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
    try:
        return TrainingConfig.model_validate(document)
    except ValidationError as error:
        item = error.errors()[0]
        raise ConfigError(f"--set {'.'.join(map(str, item['loc']))}: {item['msg']}") from error


def _require_torch(device: str) -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("training needs torch, which is not installed; `pip install .[training]`")
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device!r}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it at cpu")
