"""`export`: checkpoint → bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, print_table
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.provenance import git_commit

if TYPE_CHECKING:
    from e2e_perception.model.network import JointNetwork
from e2e_perception.core.rig import find_rig


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of `train`.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(help="Bundle directory to write; an existing bundle is replaced.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the bundle; default: name of the directory.")
    ] = None,
    rig: Annotated[
        str, typer.Option(help="Rig it was trained for: a file, or the name of a shipped one.")
    ] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option(help="Clips; of the validation split, figures are measured and one rollout recorded."),
    ] = None,
    max_clips: Annotated[int | None, typer.Option(min=2, help="Measure at most so many clips.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Take the figures from this JSON file instead.")
    ] = None,
    best: Annotated[
        bool,
        typer.Option(
            "--best/--last",
            help="The checkpoint that validation chose, or the last one.",
        ),
    ] = False,
    parent: Annotated[
        str | None, typer.Option(help="Digest of the bundle that this one descends from.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle: ONNX graph, weights, manifest, figures, checksums; parity with torch is checked first.

    Example: `e2e-perception export runs/tiny --out resource/bundles/tiny --data clips`
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("exporting needs torch, which is not installed; `pip install .[training]`")
    if data is not None and evaluation is not None:
        raise ConfigError("--data measures figures and --evaluation brings them; give one of the two")

    from e2e_perception.cli.rollouts import rollouts_of
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.export import export_bundle
    from e2e_perception.training.checkpoint import BEST, load_checkpoint, model_from_checkpoint
    from e2e_perception.training.run_log import below_floor

    trained_rig = find_rig(rig)
    checkpoint = load_checkpoint(run / BEST if best else run)
    model = model_from_checkpoint(checkpoint)
    fallen = [] if best else below_floor(run)
    if fallen:
        log(
            f"warning: the last checkpoint of {run} is below its floor in {', '.join(fallen)}; --best "
            "takes the one that validation chose"
        )
    figures = _read_figures(evaluation) if evaluation else _measure(model, data, max_clips) if data else {}
    provenance = {
        "dataset_digests": checkpoint.facts["dataset_digests"],
        "steps": checkpoint.step,
        "seed": checkpoint.facts["training"]["seed"],
        "init": _last_names(checkpoint.facts["training"]["init"]),
        "interfaces": checkpoint.facts["training"]["interfaces"],
        "balancing": checkpoint.facts["training"]["balancing"]["method"],
        "git_commit": git_commit() or "unknown",
        "trained_at_commit": checkpoint.facts.get("git_commit") or "unknown",
        "parent": parent,
    }
    log("exporting and comparing with torch over a rollout")
    parity = export_bundle(
        model,
        out,
        name=name or out.resolve().name,
        rig=trained_rig,
        evaluation=figures,
        provenance=provenance,
        rollouts=rollouts_of(data, model.config),
    )
    bundle = load_bundle(out)
    worst = max(parity, key=lambda key: parity[key])
    if as_json:
        emit_json(
            {
                "path": str(out),
                "name": bundle.name,
                "digest": bundle.digest,
                "parity": {"worst": worst, "difference": parity[worst]},
                "below_floor": fallen,
                "evaluation": figures,
            }
        )
        return
    size = sum(p.stat().st_size for p in out.iterdir())
    rows = [
        ("bundle", f"{out}"),
        ("digest", bundle.digest),
        ("size", f"{size / 1e6:.2f} MB"),
        ("largest difference from torch", f"{parity[worst]:.1e} ({worst})"),
    ]
    print_table("Exported", ("what", "value"), rows, wide=True)


def _last_names(path: str) -> str:
    """Of a path, without where this machine keeps it."""
    return "/".join(part for part in Path(path).parts[-2:] if part != "/")


def _measure(model: JointNetwork, data: Path, max_clips: int | None) -> dict[str, float]:
    from e2e_perception.cli.evaluate import measure
    from e2e_perception.data.shards import open_clips

    return measure(model, open_clips(data), "validation", max_clips)


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(figures, dict):
        raise ConfigError(f"{path} holds a {type(figures).__name__}, expected an object of figures")
    return figures
