"""`evaluate`: a bundle's open-loop figures on clips, with the controls that make them mean something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, print_table, progress_bar
from e2e_perception.cli.options import JsonOption, ParamsOption, stack_config
from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.model.network import JointNetwork

SPLITS = ("all", "train", "validation")


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or the name of a shipped one.")],
    data: Annotated[
        Path, typer.Option(help="Clip store, written by `simulate --format clips`.", show_default=False)
    ],
    split: Annotated[str, typer.Option(help=f"Which clips: {', '.join(SPLITS)}.")] = "validation",
    max_clips: Annotated[int | None, typer.Option(min=2, help="At most so many clips.")] = None,
    params: ParamsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure detection, association, prediction and plan of a bundle on labelled clips, open loop.

    Beside the full network stand two controls: the same network with every sensor switched off, and with
    each clip given another clip's sensor data. What does not get worse there was not learned by looking.
    Tracks are remembered by the labels' identities here, as in training; `replay` on a labelled bag measures
    the whole stack.

    Example: `e2e-perception evaluate tiny --data clips`
    """
    import importlib.util

    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; expected {', '.join(SPLITS)}")
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("evaluating needs torch, which is not installed; `pip install .[training]`")

    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import load_network

    opened = load_bundle(bundle)
    store = ClipStore(data)
    planning = stack_config(params, {}).planning
    figures = measure(load_network(opened.weights_path, opened.network), store, split, max_clips, planning)
    if as_json:
        emit_json({"bundle": str(opened), "dataset_digest": store.digest, "split": split, **figures})
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
    store: ClipStore,
    split: str,
    max_clips: int | None,
    planning: PlanningConfig | None = None,
) -> dict[str, float]:
    """Figures of the full network by name, and of the controls as `control/name`."""
    from e2e_perception.training.evaluate import CONTROLS, evaluate_open_loop

    figures: dict[str, float] = {}
    for control, prefix in zip(CONTROLS, PREFIXES, strict=True):
        with progress_bar(f"measuring, {control.replace('_', ' ')}", None) as progress:
            part = evaluate_open_loop(
                model,
                store,
                split=split,
                control=control,
                planning=planning,
                max_clips=max_clips,
                progress=lambda done, total: progress(done, f"of {total} clips"),
            )
        figures.update({prefix + key: value for key, value in part.items()})
    return figures
