"""`retrain`: from recordings to a new bundle, and what it is worth beside the one before."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, finite, log, print_table, progress_bar
from e2e_perception.cli.options import (
    IngestWorkersOption,
    JsonOption,
    ParamsOption,
    PrivacyOption,
    RayOption,
    RigOption,
    stack_config,
)
from e2e_perception.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from e2e_perception.cli.ingest_bag import Recipe
    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.deploy.bundle import Bundle
    from e2e_perception.model.network import JointNetwork
    from e2e_perception.training.checkpoint import Checkpoint

# Compared where everybody is labelled, with whether more is better.
FIGURES = {
    "average_precision": True,
    "position_error_m": False,
    "velocity_error_mps": False,
    "association_accuracy": True,
    "min_ade_m": False,
    "plan_l2_3s_m": False,
    "plan_collision_rate": False,
}
NO_VALIDATION = (
    "no clip is in the validation split, so that nothing could be compared; add recordings, or "
    "--data with clips that are"
)
FROM_DRIVEN = "plan_from_driven_3s_m"


def retrain(
    bags: Annotated[list[Path], typer.Argument(metavar="BAG…", help="Recordings; see `ingest`.")],
    out: Annotated[
        Path, typer.Option(help="Directory: dataset/, run/, bundle/ and retrain.json; resumable.")
    ],
    bundle: Annotated[str, typer.Option(help="To start from, and to compare with.")] = "tiny",
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Other clips or datasets to train on as well; repeatable.", show_default=False),
    ] = None,
    rig: RigOption = None,
    params: ParamsOption = None,
    privacy: PrivacyOption = None,
    workers: IngestWorkersOption = 0,
    ray: RayOption = None,
    config: Annotated[str, typer.Option(help="Training configuration, see `train`.")] = "tiny-continued",
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting of it; repeatable.")
    ] = None,
    clip_length: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 10,
    gates: Annotated[str, typer.Option(help="What the dataset must hold, see `audit`.")] = "default",
    max_clips: Annotated[
        int | None, typer.Option(min=2, help="Compare on so many clips, evenly spread.", show_default="all")
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    drivers: Annotated[int, typer.Option(min=0, help="Processes that drive on-policy stages.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Ingest recordings, audit them, train on from a bundle, export, and compare with it on the same clips.

    Every step is resumable: called again, it goes on where it stopped. Exit code 1 if the audit breaks a
    gate; nothing is trained then. Clips that the comparison uses are of the validation split, by recording.

    Example: `e2e-perception retrain monday/ tuesday/ --data clips-1 --bundle tiny --out retrained`
    """
    import yaml

    from e2e_perception.cli.audit import load_gates
    from e2e_perception.cli.ingest import ingest_all
    from e2e_perception.cli.ingest_bag import Recipe
    from e2e_perception.cli.privacy import Privacy
    from e2e_perception.cli.train import _require_torch, _settings
    from e2e_perception.data.audit import Report
    from e2e_perception.data.audit import audit as look
    from e2e_perception.data.shards import Dataset, open_clips
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import bundle_network
    from e2e_perception.training.checkpoint import load_checkpoint, model_from_checkpoint

    _require_torch(device)
    before = load_bundle(bundle)
    network_before = bundle_network(before, log)  # before hours of work on what cannot be compared
    settings = _settings(config, override or []).model_copy(update={"init": str(before.path)})
    if settings.network.size != before.network.size:
        raise ConfigError(
            f"configuration {config!r} trains size {settings.network.size}, bundle {before} is "
            f"{before.network.size}; name another --config"
        )
    wanted = load_gates(gates)
    stated = Privacy(privacy).stated if privacy is not None else ""
    stack = stack_config(params, {}).model_dump_json()
    recipe = Recipe(settings.size, clip_length, clip_length, rig or "", stack, stated)
    dataset_path = out / "dataset"
    _check_inputs(bags, recipe, [store for path in data or [] for store in open_clips(path)], out)
    ingested, refused = ingest_all(bags, dataset_path, recipe, workers=workers, ray=ray)
    for item in ingested:
        log(f"{item.bag}: {item.frames} frames, {item.clips} clips")
    if refused:
        raise InputError("; ".join(f"{failure.bag}: {failure.why}" for failure in refused))
    report = Report("")
    for _, _, found in look(Dataset(dataset_path), wanted):
        report = found
    if report.broken_gates:
        for gate in report.broken_gates:
            log(f"gate broken: {gate}")
        log(f"nothing was trained; `e2e-perception audit {dataset_path}` says more")
        raise typer.Exit(1)
    stores = [store for path in (dataset_path, *(data or [])) for store in open_clips(path)]
    validation = [(store, i) for store in stores for i in store.indices("validation").tolist()]
    if not validation:
        raise InputError(NO_VALIDATION)
    # On-policy stages drive, in simulation, the robot that the bundle is for.
    robot = out / "rig.yaml"
    robot.write_text(yaml.safe_dump(before.rig.model_dump(mode="json")), encoding="utf-8")
    _train(stores, out / "run", settings, device, str(robot), drivers)
    checkpoint = load_checkpoint(out / "run")
    trained = model_from_checkpoint(checkpoint)
    comparison = compare_on_clips(network_before, trained, stores, max_clips)
    parity = _export(checkpoint, trained, out / "bundle", before, finite(_evaluation(comparison)))
    after = load_bundle(out / "bundle")
    summary = finite(
        {
            "dataset_digest": Dataset(dataset_path).digest,
            "before": str(before),
            "after": str(after),
            "bundle": str(out / "bundle"),
            "parity": max(parity.values()),
            **comparison,
        }
    )
    (out / "retrain.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if as_json:
        emit_json(summary)
        return
    rows = [
        (name, f"{row['before']:.3f}", f"{row['after']:.3f}", row.get("interval_95", ""))
        for name, row in comparison["figures"].items()
    ]
    print_table(f"{before} and {after}", ("figure", "before", "after", "difference, 95 %"), rows)
    typer.echo(f"the new bundle is in {out / 'bundle'}")


def _check_inputs(bags: list[Path], recipe: Recipe, stores: list[ClipStore], out: Path) -> None:
    """Refuse before anything is ingested what would be refused after it.

    Raises:
        InputError: If a recording cannot be read or has no rig, or nothing will be there to compare on.
        BundleError: If something else is where the new bundle goes.
    """
    from e2e_perception.cli.ingest_bag import digest_of_bag, rig_of, scenario_of, types_of
    from e2e_perception.data.clip_store import split_of
    from e2e_perception.data.splits import SPLITS
    from e2e_perception.deploy.bundle_writing import check_place

    check_place(out / "bundle")
    for bag in bags:
        types_of(bag)
        rig_of(bag, recipe)
    if any(len(store.indices("validation")) for store in stores) or (out / "dataset" / SPLITS).is_file():
        return
    if not any(split_of(scenario_of(digest_of_bag(bag))) == "validation" for bag in bags):
        raise InputError(NO_VALIDATION)


def _train(stores: list[ClipStore], out: Path, settings: Any, device: str, rig: str, drivers: int) -> None:
    from e2e_perception.cli.fan_out import num_cores
    from e2e_perception.cli.on_policy import collect
    from e2e_perception.training import loop

    with progress_bar("training", settings.steps) as progress:
        loop.train(
            stores,
            out,
            settings,
            report=lambda step: progress(step.step, f"{step.stage}: loss {step.total:.3f}"),
            device=device,
            collect=functools.partial(collect, rig=rig, workers=drivers or num_cores()),
        )


def _evaluation(comparison: dict[str, Any]) -> dict[str, Any]:
    """Figures of a comparison as a bundle keeps them: its own by name, `parent/` those of the one before."""
    figures: dict[str, dict[str, Any]] = comparison["figures"]
    return {
        "clips": comparison["clips"],
        "labelled_clips": comparison["labelled_clips"],
        **{name: row["after"] for name, row in figures.items()},
        **{f"parent/{name}": row["before"] for name, row in figures.items()},
    }


def _export(
    checkpoint: Checkpoint, model: JointNetwork, out: Path, before: Bundle, evaluation: dict[str, Any]
) -> dict[str, float]:
    from e2e_perception.core.provenance import git_commit
    from e2e_perception.deploy.export import export_bundle

    provenance = {
        "dataset_digests": checkpoint.facts["dataset_digests"],
        "steps": checkpoint.step,
        "seed": checkpoint.facts["training"]["seed"],
        "init": Path(checkpoint.facts["training"]["init"]).name,
        "git_commit": git_commit() or "unknown",
        "trained_at_commit": checkpoint.facts.get("git_commit") or "unknown",
        "parent": before.digest,
    }
    return export_bundle(
        model, out, name=out.name, rig=before.rig, evaluation=evaluation, provenance=provenance
    )


def compare_on_clips(
    before: JointNetwork, after: JointNetwork, stores: list[ClipStore], max_clips: int | None
) -> dict[str, Any]:
    """Both networks on the same validation clips.

    Args:
        before, after: Networks.
        stores: Whose validation split is used.
        max_clips: At most, evenly spread.
    Returns:
        `clips`, `labelled_clips`, and `figures`: by name `before`, `after`, and for the plan's distance from
        what was driven the paired `difference` and its `interval_95` over clips.
    """
    import numpy as np

    from e2e_perception.evaluation.outcome_tables import bootstrap_interval
    from e2e_perception.training.evaluate import evaluate_open_loop

    def spread(clips: list[tuple[ClipStore, int]]) -> list[tuple[ClipStore, int]]:
        if max_clips is None or len(clips) <= max_clips:
            return clips
        return [clips[int(i)] for i in np.linspace(0, len(clips) - 1, max_clips)]

    everything = spread([(s, i) for s in stores for i in s.indices("validation").tolist()])
    labelled = spread([(s, i) for s in stores for i in s.labelled("validation").tolist()])
    models = [before, after]
    figures: dict[str, dict[str, Any]] = {}
    if labelled:
        found = [evaluate_open_loop(model, labelled) for model in models]
        figures = {
            name: {"before": found[0][name], "after": found[1][name]}
            for name in FIGURES
            if name in found[0] and name in found[1]
        }
    gaps = np.array([[_from_driven(model, clip) for clip in everything] for model in models])
    known = np.isfinite(gaps).all(axis=0)
    if known.any():
        difference = (gaps[1] - gaps[0])[known]
        low, high = bootstrap_interval(difference)
        figures[FROM_DRIVEN] = {
            "before": float(gaps[0, known].mean()),
            "after": float(gaps[1, known].mean()),
            "difference": float(difference.mean()),
            "interval_95": f"{low:+.3f} … {high:+.3f}",
        }
    return {"clips": len(everything), "labelled_clips": len(labelled), "figures": figures}


def _from_driven(model: JointNetwork, clip: tuple[ClipStore, int]) -> float:
    """Of one clip, see `mining.regret`; NaN where it is not known."""
    import numpy as np
    import torch

    from e2e_perception.data.dataset import ClipDataset
    from e2e_perception.training.mining import HORIZON_S, regret
    from e2e_perception.training.rollout import rollout

    model.eval()
    batch = {name: value[None] for name, value in ClipDataset([clip], model.config)[0].items()}
    step = int(np.argmin(np.abs(model.config.times_T - HORIZON_S)))
    if not batch["ego_future_valid"][0, :, step].any():
        return float("nan")
    with torch.no_grad():
        result = rollout(model, batch, boost=0.0, with_losses=False, as_on_robot=True)
    return regret(result, batch, model.config.times_T)
