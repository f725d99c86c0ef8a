"""`autolabel`: labels for a dataset without people, as a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import DATASET_HELP, JsonOption
from e2e_perception.cli.places import check_file_place
from e2e_perception.core.config import EngineConfig, validated
from e2e_perception.core.errors import InputError


def autolabel(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help=DATASET_HELP)],
    out: Annotated[Path, typer.Option(help="File of the layer, for `label`; there must be none yet.")],
    bundle: Annotated[str, typer.Option(help="That looks at the clips; take the best there is.")] = "tiny",
    backend: Annotated[
        str, typer.Option(help="`onnxruntime`, `tensorrt`, `tensorrt-rtx`, `torch` or `auto`.")
    ] = "onnxruntime",
    least_sightings: Annotated[
        int, typer.Option(min=1, max=1000, help="Detections below which an object is left out.")
    ] = 5,
    least_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Below which an object is left out.")
    ] = 0.3,
    as_json: JsonOption = False,
) -> None:
    """Look at every frame with a bundle, and smooth what it saw with what it saw later.

    The tracks of the stack are joined, filled up to a second, carried on by weak detections and smoothed
    backwards; each object gets one size, one class and a confidence, which is a heuristic (docs/data.md). The
    layer declares that what it does not name is not there, where every frame of the clip has lidar or camera.

    Example: `e2e-perception autolabel dataset --bundle tiny --out auto.parquet`
    """
    from e2e_perception.cli.autolabel_shard import Thresholds, label_shard
    from e2e_perception.data.label_layers import LayerRow, write_layer
    from e2e_perception.data.relabelling import network_of, opened_dataset
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine

    opened = opened_dataset(dataset)
    if out.exists():
        raise InputError(f"{out} is there already; name another file, or remove it")
    check_file_place(out, "--out")
    loaded = load_bundle(bundle)
    shards = opened.shards()
    thresholds = Thresholds(least_sightings, least_confidence)
    rows: list[LayerRow] = []
    complete: list[str] = []
    by_class: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    frames = tracks = bad_frames = blind_frames = 0
    engine = configured_engine(loaded, validated(EngineConfig, {"backend": backend}, "--backend"), log)
    try:
        with progress_bar("labelling", sum(shard.frames for shard in shards)) as progress:
            for shard, store in zip(shards, opened.stores(), strict=True):
                before = frames
                made = label_shard(
                    store,
                    loaded,
                    engine,
                    network_of(opened, shard.name),
                    thresholds,
                    partial(_told, progress, before),
                )
                rows += made.rows
                complete += made.complete
                by_class += made.by_class
                left_out += made.left_out
                frames += made.frames
                tracks += made.tracks
                bad_frames += made.bad_frames
                blind_frames += made.blind_frames
    finally:
        engine.close()
    write_layer(out, rows, shards={shard.name: shard.digest for shard in shards}, complete=complete)
    if bad_frames:
        log(f"{bad_frames} frames gave no usable output; their clips are not declared complete")
    if blind_frames:
        log(f"{blind_frames} frames have neither lidar nor camera; their clips are not declared complete")
    summary: dict[str, Any] = {
        "out": str(out),
        "dataset_digest": opened.digest,
        "bundle": str(loaded),
        "bundle_digest": loaded.digest,
        "shards": len(shards),
        "frames": frames,
        "bad_frames": bad_frames,
        "blind_frames": blind_frames,
        "complete_clips": len(complete),
        "tracks": tracks,
        "labels": sum(by_class.values()),
        "by_class": dict(sorted(by_class.items())),
        "mean_confidence": sum(row.confidence for row in rows) / len(rows) if rows else None,
        "left_out": dict(sorted(left_out.items())),
    }
    if as_json:
        emit_json(summary)
        return
    print_table(str(out), ("class", "labels"), [(name, str(n)) for name, n in sorted(by_class.items())])
    typer.echo(
        f"{tracks} objects in {frames} frames, {summary['labels']} labels; left out: "
        f"{left_out['short']} too short, {left_out['doubtful']} too doubtful, "
        f"{left_out['doubled']} seen twice"
    )


def _told(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)
