"""`train`: clips → checkpoint."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.fan_out import num_cores
from e2e_perception.cli.options import CLIPS_HELP, JsonOption
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.training.config import TrainingConfig


def train(
    data: Annotated[
        list[Path],
        typer.Option(help=f"{CLIPS_HELP}; repeatable.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Run directory; a run found there is continued at its exact step.", show_default=False
        ),
    ],
    config: Annotated[
        str, typer.Option(help="YAML file with the run's settings, or the name of a shipped one.")
    ] = "nano",
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
    tracking: Annotated[
        str,
        typer.Option(
            help="MLflow tracking URI, `none`, or `auto`: runs.db beside the run directory, if MLflow is "
            "installed."
        ),
    ] = "auto",
    rig: Annotated[str, typer.Option(help="Of the robot that drives on-policy stages.")] = "tiny",
    drivers: Annotated[int, typer.Option(min=0, help="Processes that drive them; 0: one per core.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the joint network on clips, or go on where an interrupted run stopped.

    The settings name a curriculum (docs/training.md). In on-policy stages the network drives itself and the
    expert says what it should have done. Several processes share a run under `torchrun`.

    Example: `e2e-perception train --data clips --out runs/nano --config nano --set seed=1`
    """
    settings = _settings(config, override or [])
    _require_torch(device)

    from e2e_perception.cli.on_policy import collect
    from e2e_perception.data.shards import open_clips
    from e2e_perception.training import loop
    from e2e_perception.training.run_log import StepReport

    stores = [store for path in data for store in open_clips(path)]
    leads = os.environ.get("RANK", "0") == "0"
    last: StepReport | None = None
    with progress_bar("training", settings.steps) as progress:

        def report(step: StepReport) -> None:
            nonlocal last
            last = step
            if not leads:
                return
            speed = f"{step.clips_per_s:.1f} clips/s, {step.data_share:.0%} waiting for clips"
            progress(step.step, f"{step.stage}: loss {step.total:.3f}, {speed}, {step.memory_mb:.0f} MB")
            if step.event:
                log(f"step {step.step}: {step.event}")
            if step.step % 50 == 0:
                losses = " ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
                log(f"step {step.step} ({step.stage}): {step.total:.3f} ({losses}), {speed}")

        done = loop.train(
            stores,
            out,
            settings,
            report=report,
            stop_after=stop_after,
            device=device,
            collect=functools.partial(collect, rig=rig, workers=drivers or num_cores()),
            tracking_uri=_tracking(tracking, out),
        )
    if not leads:
        return
    digests = [store.digest for store in stores]
    if as_json:
        speed = {} if last is None else {"clips_per_s": last.clips_per_s, "data_share": last.data_share}
        emit_json({"out": str(out), "steps": done, "of": settings.steps, "dataset_digests": digests, **speed})
    else:
        typer.echo(f"{done} of {settings.steps} steps done; checkpoint in {out}")


def _tracking(wanted: str, out: Path) -> str | None:
    import importlib.util

    if wanted == "none":
        return None
    if wanted != "auto":
        return wanted
    if importlib.util.find_spec("mlflow") is None:
        log("MLflow is not installed; curves are in losses.jsonl alone")
        return None
    return f"sqlite:///{out.resolve().parent / 'runs.db'}"


def _settings(config: str, overrides: list[str]) -> TrainingConfig:
    import yaml
    from pydantic import ValidationError

    from e2e_perception.training.config import TrainingConfig, load_training_config

    document = load_training_config(config).model_dump()
    for override in overrides:
        name, found, text = override.partition("=")
        if not found:
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE, e.g. seed=1")
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
