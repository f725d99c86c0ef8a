"""`ingest`: recordings into a dataset of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import (
    IngestWorkersOption,
    JsonOption,
    ParamsOption,
    PrivacyOption,
    RayOption,
    RigOption,
    stack_config,
)

if TYPE_CHECKING:
    from e2e_perception.cli.ingest_bag import Ingested, Recipe, Refused


def ingest(
    bags: Annotated[
        list[Path], typer.Argument(metavar="BAG…", help="rosbag2 directories, or .mcap / .db3 files.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the dataset; one that is there is added to.")],
    rig: RigOption = None,
    params: ParamsOption = None,
    size: Annotated[str, typer.Option(help="Network size whose inputs are made.")] = "tiny",
    clip_length: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 10,
    stride: Annotated[
        int, typer.Option(min=0, help="Frames from one clip's start to the next's; 0: the clip's length.")
    ] = 0,
    workers: IngestWorkersOption = 0,
    ray: RayOption = None,
    privacy: PrivacyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut recordings into clips that `train` takes, through the code that runs on the robot.

    Each bag becomes a shard, which is never written to again: the same bag and settings give the same digest,
    an interrupted run goes on where it stopped, and what is there is not made again. Labels are those of the
    topic `/labels`, if any; futures of the robot come from its odometry. With --privacy nothing is stored of
    a picture that the function has not returned. A bag that cannot be used does not keep the others from
    being ingested: it is listed with the reason at the end, and the exit code is 2.

    Example: `e2e-perception ingest monday/ tuesday.mcap --rig rigs/mine.yaml --out dataset`
    """
    from e2e_perception.cli.ingest_bag import Recipe
    from e2e_perception.cli.privacy import Privacy
    from e2e_perception.core.errors import ConfigError
    from e2e_perception.data.shards import Dataset

    stride = stride or clip_length
    if stride > clip_length:
        raise ConfigError(f"--stride {stride} would leave frames out between clips of {clip_length} frames")
    config = stack_config(params, {})
    stated = Privacy(privacy).stated if privacy is not None else ""
    recipe = Recipe(size, clip_length, stride, rig or "", config.model_dump_json(), stated)
    Dataset(out)  # before anything is read
    ingested, refused = ingest_all(bags, out, recipe, workers=workers, ray=ray)
    summary = _summary(Dataset(out), ingested, refused)
    if as_json:
        emit_json(summary)
    else:
        _print_summary(summary, out, ingested)
    if refused:
        for failure in refused:
            log(f"not ingested: {failure.bag}: {failure.why}")
        raise typer.Exit(2)


def ingest_all(
    bags: Sequence[Path], out: Path, recipe: Recipe, *, workers: int, ray: str | None
) -> tuple[list[Ingested], list[Refused]]:
    """Recordings into shards of a dataset; what is odd about them is logged.

    Args:
        bags: Recordings; one that is given twice is taken once.
        out: Directory of the dataset.
        recipe: What to make of them.
        workers: Processes; 0: one per core. A single recording needs none.
        ray: Cluster in place of processes, see `fan_out_on_ray`; None: none.
    Returns:
        What came of each, in the order of the recordings, and which of several could not be used.
    Raises:
        InputError: If the only recording, or the dataset, cannot be used.
    """
    from e2e_perception.cli.fan_out import Lost, fan_out, fan_out_on_ray, num_cores
    from e2e_perception.cli.ingest_bag import Ingested, Refused, ingest_bag, without_repeats

    bags, repeats = without_repeats(bags)
    for bag, same in repeats.items():
        log(f"{bag}: the same recording as {same}, and ingested once")
    tasks = [(bag, out, recipe) for bag in bags]
    done: dict[int, Ingested | Refused] = {}
    num_workers = workers or num_cores()
    with progress_bar("ingesting", len(tasks) if len(tasks) > 1 else 100) as progress:
        if len(tasks) == 1 and ray is None:
            done[0] = ingest_bag(*tasks[0], progress=lambda share: progress(int(100 * share)))
        else:
            results = (
                fan_out(_ingest, tasks, num_workers)
                if ray is None
                else fan_out_on_ray(_ingest, tasks, ray, num_workers)
            )
            for number, found in results:
                done[number] = Refused(str(bags[number]), found.why) if isinstance(found, Lost) else found
                progress(len(done))
    in_order = [done[number] for number in sorted(done)]
    ingested = [item for item in in_order if isinstance(item, Ingested)]
    for item in ingested:
        for warning in item.warnings:
            log(f"{item.bag}: {warning}")
    return ingested, [item for item in in_order if isinstance(item, Refused)]


def _print_summary(summary: dict[str, Any], out: Path, ingested: list[Any]) -> None:
    rows = [
        [item.shard, "new" if item.new else "there", str(item.frames), str(item.clips), item.digest[:12]]
        for item in ingested
    ]
    print_table(str(out), ("shard", "", "frames", "clips", "digest"), rows, names=True)
    typer.echo(f"{summary['frames']} frames, {summary['clips']} clips, digest {summary['digest']}")


def _ingest(task: tuple[Path, Path, Any]) -> Any:
    """One of several: what is wrong with it, or with its rig, must not end the others."""
    from e2e_perception.cli.ingest_bag import Refused, ingest_bag
    from e2e_perception.core.errors import InputError, RigError

    try:
        return ingest_bag(*task)
    except (InputError, RigError) as error:
        return Refused(str(task[0]), str(error))
    except PermissionError as error:
        return Refused(str(task[0]), f"{error.filename}: {error.strerror}")


def _summary(dataset: Any, ingested: list[Any], refused: list[Any]) -> dict[str, Any]:
    shards = dataset.shards()
    failure = {}
    if refused:
        first, count = refused[0], len(refused)
        failure = {
            "error": f"{count} of {count + len(ingested)} recordings gave no shard; {first.bag}: {first.why}",
            "failed": [asdict(item) for item in refused],
        }
    return {
        **failure,
        "out": str(dataset.path),
        "shards": len(shards),
        "frames": sum(shard.frames for shard in shards),
        "clips": sum(shard.clips for shard in shards),
        "digest": dataset.digest,
        "bags": [asdict(item) for item in ingested],
    }
