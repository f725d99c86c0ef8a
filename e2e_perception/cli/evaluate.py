"""`evaluate`: a bundle's figures, on labelled clips or with the whole stack on drives of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import (
    CLIPS_HELP,
    BackendOption,
    JsonOption,
    ParamsOption,
    given_parameters,
    stack_config,
)
from e2e_perception.core.config import PlanningConfig, StackConfig
from e2e_perception.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.model.network import JointNetwork

SPLITS = ("all", "train", "validation")


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or the name of a shipped one.")],
    data: Annotated[
        Path | None,
        typer.Option(help=f"{CLIPS_HELP}.", show_default=False),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite file, or the name of a shipped one.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help=f"Which clips: {', '.join(SPLITS)}.", show_default="validation")
    ] = None,
    max_clips: Annotated[
        int | None, typer.Option(min=2, help="At most so many clips.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for the figures of --suite, replaced if there.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many scenarios.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; 0: one per core.", show_default="0")
    ] = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            help="What the sensors suffer: a file or a shipped degradation's name; wins over the suite's.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOption = None,
    params: ParamsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure detection, tracking, prediction and plan of a bundle, open loop.

    With --suite the whole stack rides along while the expert drives the suite's scenarios: perception.json
    and perception.parquet in --out hold every figure of docs/evaluation.md, report.html shows them. With
    --data the network alone is measured on labelled clips, beside two controls: the same network with every
    sensor switched off, and with each clip given another clip's sensor data; tracks are remembered by the
    labels' identities there, as in training.

    Example: `e2e-perception evaluate tiny --suite validation --out results/tiny`
    """
    _check_options(
        {"data": data, "suite": suite},
        for_data={"split": split, "max-clips": max_clips},
        for_suite={
            "out": out,
            "limit": limit,
            "workers": workers,
            "degrade": degrade,
            "backend": backend,
        },
    )
    config = stack_config(params, given_parameters(bundle=bundle, backend=backend))
    if data is not None:
        _evaluate_on_clips(bundle, data, split or "validation", max_clips, config, as_json)
        return
    if suite is None or out is None:
        raise ConfigError("--suite needs --out, a directory for perception.json, its rows and its report")
    from e2e_perception.cli.perception_suite import evaluate_suite, print_figures

    document = evaluate_suite(
        suite,
        config,
        out,
        limit=limit,
        workers=workers or 0,
        degradation=degrade,
        params=None if params is None else params.name,
    )
    if as_json:
        emit_json(document)
    else:
        print_figures(document, out)


def _check_options(
    sources: dict[str, object], *, for_data: dict[str, object], for_suite: dict[str, object]
) -> None:
    """Make sure that the options belong together.

    Raises:
        ConfigError: If they do not.
    """
    given = [f"--{name}" for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"evaluate got {' and '.join(given) or 'nothing to measure on'}; expected one of --data and "
            "--suite"
        )
    theirs, other = (for_suite, "--suite") if sources["data"] is not None else (for_data, "--data")
    useless = [f"--{name}" for name, value in theirs.items() if value is not None]
    if useless:
        raise ConfigError(f"{' and '.join(useless)} is for {other}; leave it out with {given[0]}")


def _evaluate_on_clips(
    bundle: str, data: Path, split: str, max_clips: int | None, config: StackConfig, as_json: bool
) -> None:
    import importlib.util

    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; expected {', '.join(SPLITS)}")
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("evaluating needs torch, which is not installed; `pip install .[training]`")

    from e2e_perception.data.shards import digest_of, open_clips
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import bundle_network

    opened = load_bundle(bundle)
    stores = open_clips(data)
    network = bundle_network(opened, log)
    figures = measure(network, stores, split, max_clips, config.planning)
    if as_json:
        emit_json({"bundle": str(opened), "dataset_digest": digest_of(stores), "split": split, **figures})
        return
    names = sorted({name.rpartition("/")[2] for name in figures})
    rows = [
        (name, *(f"{figures[key]:.3f}" if (key := prefix + name) in figures else "" for prefix in PREFIXES))
        for name in names
    ]
    print_table(
        f"{opened} on the split `{split}` of {data}",
        ("figure", "full", "no sensors", "shuffled sensors"),
        rows,
    )


PREFIXES = ("", "no_sensors/", "shuffled_sensors/")


def measure(
    model: JointNetwork,
    stores: Sequence[ClipStore],
    split: str,
    max_clips: int | None,
    planning: PlanningConfig | None = None,
) -> dict[str, float]:
    """Figures of the full network by name, and of the controls as `control/name`.

    Raises:
        InputError: If there are no labelled clips of the split.
    """
    import numpy as np

    from e2e_perception.training.evaluate import CONTROLS, evaluate_open_loop

    splits = [name for name in SPLITS if name != "all"] if split == "all" else [split]
    clips = [
        (store, index)
        for store in stores
        for index in sorted(i for name in splits for i in store.labelled(name).tolist())
    ]
    if max_clips is not None and len(clips) > max_clips:  # evenly, lest they be of a few scenarios
        clips = [clips[int(i)] for i in np.linspace(0, len(clips) - 1, max_clips)]
    if not clips:
        where = ", ".join(str(store.path) for store in stores)
        raise InputError(f"{where}: no labelled clips of the split {split!r}; name another --split")
    figures: dict[str, float] = {}
    for control, prefix in zip(CONTROLS, PREFIXES, strict=True):
        with progress_bar(f"measuring, {control.replace('_', ' ')}", None) as progress:
            part = evaluate_open_loop(
                model,
                clips,
                control=control,
                planning=planning,
                progress=lambda done, total: progress(done, f"of {total} clips"),
            )
        figures.update({prefix + key: value for key, value in part.items()})
    return figures
