"""`import-log`: Argoverse 2 logs into a dataset of clips."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import JsonOption, PrivacyOption
from e2e_perception.core.errors import InputError

if TYPE_CHECKING:
    from e2e_perception.cli.ingest_log import Imported, LogRecipe


def import_log(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG…", help="Directories of the Argoverse 2 sensor data set.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the dataset; one that is there is added to.")],
    size: Annotated[str, typer.Option(help="Network size whose inputs are made.")] = "tiny",
    clip_length: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 10,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    privacy: PrivacyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make clips of recorded logs: lidar and pictures where the log has them, all annotated tracks, the map.

    Each log becomes a shard. What a category of the data set is here is in docs/logs.md; animals are left
    out. A frame without any sensor keeps its labels with weight 0, since nothing can be seen in it. With
    --privacy nothing is stored of a picture that the function has not returned.

    Example: `e2e-perception import-log av2/train/adcf7d18-0510-35b0-a2fa-b4cea13a6d76 --out dataset`
    """
    from e2e_perception.cli.fan_out import Lost, fan_out, num_cores
    from e2e_perception.cli.ingest_log import LogRecipe
    from e2e_perception.cli.privacy import Privacy
    from e2e_perception.data.shards import Dataset

    recipe = LogRecipe(size, clip_length, Privacy(privacy).stated if privacy is not None else "")
    dataset = Dataset(out)  # before anything is read
    tasks = [(path, out, recipe) for path in logs]
    done: dict[int, Imported] = {}
    with progress_bar("importing", len(logs)) as progress:
        if len(tasks) == 1:
            done[0] = _import(tasks[0])
        else:
            for number, found in fan_out(_import, tasks, workers or num_cores()):
                if isinstance(found, Lost):
                    raise InputError(f"{logs[number]}: {found.why}; the shards that were finished are kept")
                done[number] = found
                progress(len(done))
    imported = [done[number] for number in sorted(done)]
    for item in imported:
        for warning in item.warnings:
            log(f"{item.log}: {warning}")
    summary = {
        "out": str(out),
        "shards": len(dataset.shards()),
        "frames": sum(shard.frames for shard in dataset.shards()),
        "clips": sum(shard.clips for shard in dataset.shards()),
        "digest": dataset.digest,
        "logs": [asdict(item) for item in imported],
    }
    if as_json:
        emit_json(summary)
        return
    rows = [
        (item.shard, str(item.frames), str(item.tracks), f"{item.sweeps} + {item.pictures}")
        for item in imported
    ]
    print_table(str(out), ("shard", "frames", "tracks", "sweeps + pictures"), rows, names=True)
    for item in imported:
        reasons = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in item.left_out.items())
        if reasons:
            typer.echo(f"left out of {item.shard}: {reasons}")
    typer.echo(f"{summary['clips']} clips, digest {summary['digest']}")


def _import(task: tuple[Path, Path, LogRecipe]) -> Imported:
    from e2e_perception.cli.ingest_log import import_one

    return import_one(*task)
