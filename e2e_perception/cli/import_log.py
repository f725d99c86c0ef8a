"""`import-log`: Argoverse 2 logs into a dataset of clips."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception import __version__
from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import InputError

if TYPE_CHECKING:
    from e2e_perception.core.rig import Rig
    from e2e_perception.data.shards import Shard

SOURCE = "argoverse2"
REVIEWER = "Argoverse 2"
TRACKS = "tracks.parquet"
_CITY = re.compile(r"____([A-Z]{3})_city_")


def import_log(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG…", help="Directories of the Argoverse 2 sensor data set.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the dataset; one that is there is added to.")],
    size: Annotated[str, typer.Option(help="Network size whose inputs are made.")] = "tiny",
    clip_length: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Make clips of recorded logs: lidar and pictures where the log has them, all annotated tracks, the map.

    Each log becomes a shard. What a category of the data set is here is in docs/logs.md; animals are left
    out. A frame without any sensor keeps its labels with weight 0, since nothing can be seen in it.

    Example: `e2e-perception import-log av2/train/adcf7d18-0510-35b0-a2fa-b4cea13a6d76 --out dataset`
    """
    from e2e_perception.data.shards import Dataset

    dataset = Dataset(out)
    imported: list[dict[str, Any]] = []
    with progress_bar("importing", len(logs)) as progress:
        for number, path in enumerate(logs, 1):
            imported.append(import_one(path, out, size, clip_length))
            progress(number)
    summary = {
        "out": str(out),
        "shards": len(dataset.shards()),
        "frames": sum(shard.frames for shard in dataset.shards()),
        "clips": sum(shard.clips for shard in dataset.shards()),
        "digest": dataset.digest,
        "logs": imported,
    }
    if as_json:
        emit_json(summary)
        return
    rows = [
        (item["shard"], str(item["frames"]), str(item["tracks"]), f"{item['sweeps']} + {item['pictures']}")
        for item in imported
    ]
    print_table(str(out), ("shard", "frames", "tracks", "sweeps + pictures"), rows, names=True)
    typer.echo(f"{summary['clips']} clips, digest {summary['digest']}")


def import_one(path: Path, out: Path, size: str, clip_length: int) -> dict[str, Any]:
    """One log into one shard, unless it is there.

    Args:
        path: Of the log.
        out: Of the dataset.
        size: Network size.
        clip_length: Frames per clip.
    Returns:
        What came of it, for `--json`.
    Raises:
        InputError: If it is no log, or the size is not known.
    """
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.shards import SHARD, Dataset
    from e2e_perception.simulation.argoverse import read_log
    from e2e_perception.simulation.log_frames import LogFrames

    if size not in SIZES:
        raise InputError(f"unknown network size {size!r}; expected one of {', '.join(SIZES)}")
    read = read_log(path)
    rig = _rig(read)
    frames = LogFrames(read, rig, SIZES[size])
    made_by = {
        "recipe": {"size": size, "clip_length": clip_length, "rig": rig.model_dump(mode="json")},
        "bag_digest": _digest_of(read.directory),
    }
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', read.log_id)[:60]}-{key[:12]}"
    dataset = Dataset(out)
    listed = {shard.name: shard for shard in dataset.shards()}
    new = not (name in listed and (dataset.directory(name) / SHARD).is_file())
    shard = _write(frames, dataset, name, made_by, clip_length) if new else listed[name]
    facts = dataset.facts(name)
    return {
        "log": str(path),
        "shard": shard.name,
        "new": new,
        "frames": shard.frames,
        "clips": shard.clips,
        "digest": shard.digest,
        "tracks": sum(facts["tracks"].values()),
        "tracks_by_class": facts["tracks"],
        "left_out": facts["left_out"],
        "sweeps": facts["sweeps"],
        "pictures": facts["pictures"],
    }


def _write(frames: Any, dataset: Any, name: str, made_by: dict[str, Any], clip_length: int) -> Shard:
    from e2e_perception.core.boxes import CLASSES
    from e2e_perception.core.ego_motion import EgoMotionBuffer
    from e2e_perception.data.clip_building import BuiltClip, ClipBuilder, RecordedFrame
    from e2e_perception.data.clip_store import ClipWriter
    from e2e_perception.runtime.preprocess import Preprocessor

    network, rig = frames.network, frames.rig
    tool = f"e2e_perception {__version__}"
    builder = ClipBuilder(
        network, clip_length=clip_length, stride=clip_length, source=f"log:{made_by['bag_digest']}",
        scenario=f"log:{frames.log.log_id}", has_labels=True,
    )  # fmt: skip
    preprocessor, ego = Preprocessor(network, rig), EgoMotionBuffer()
    route, speed_limit = frames.route, 15.0
    rows: list[dict[str, Any]] = []
    sweeps = pictures = 0
    with dataset.writing(name) as directory:
        writer = ClipWriter(directory)
        numbers = itertools.count()

        def write(built: BuiltClip) -> None:
            clip_id = f"{next(numbers):06d}"
            clip = built.clip
            writer.write(
                clip_id,
                clip,
                {
                    "last_stamp_ns": int(clip.stamps_ns_T[-1]),
                    "bag_digest": made_by["bag_digest"],
                    "topics": [],
                    "sensor_validity": built.validity,
                    "speed_mean_mps": round(float(built.speeds_T.mean()), 3),
                    "speed_max_mps": round(float(built.speeds_T.max()), 3),
                    "weather": None,
                    "label_sources": [SOURCE],
                },
            )
            for t, slot in zip(*(clip.ids_TB >= 0).nonzero(), strict=True):
                rows.append(
                    {
                        "clip_id": clip_id,
                        "frame": int(t),
                        "slot": int(slot),
                        "identity": int(clip.ids_TB[t, slot]),
                        "class": CLASSES[int(clip.class_ids_TB[t, slot])],
                        "source": SOURCE,
                        "tool": tool,
                        "bundle_digest": None,
                        "confidence": float(built.confidence_TL[t, slot]),
                        "reviewer": REVIEWER,
                    }
                )

        before_ns = int(frames.stamps_ns[0]) - 500_000_000
        for found in frames:
            stamp_ns = found.frame.stamp_ns
            for state in frames.odometry(before_ns, stamp_ns):
                ego.add(state)
                builder.add_odometry(state, ego.epoch)
            before_ns = stamp_ns
            # Pictures may be a little later than the sweep that they belong to.
            ahead = EgoMotionBuffer()
            for state in frames.odometry(stamp_ns - 500_000_000, stamp_ns + 100_000_000):
                ahead.add(state)
            ahead.epoch = ego.epoch
            prepared = preprocessor.prepare(found.frame, ahead, route, speed_limit)
            builder.add_labels(stamp_ns, found.boxes)
            kinds = [sensor.kind for sensor in rig.sensors if sensor.name in found.frame.messages]
            sweeps, pictures = sweeps + kinds.count("lidar"), pictures + kinds.count("camera")
            builder.add_frame(
                RecordedFrame(
                    stamp_ns=stamp_ns,
                    inputs={key: value[0] for key, value in prepared.inputs.items()},
                    ego=prepared.ego_state,
                    stretch=ego.epoch,
                    valid={sensor.name: sensor.name in found.frame.messages for sensor in rig.sensors},
                    maps_2YX=found.maps_2YX,
                )
            )
            for built in builder.finished():
                write(built)
        builder.finish()
        for built in builder.finished():
            write(built)
        if builder.counts.taken == 0:
            raise InputError(f"log {frames.log.log_id} gives no clip of {clip_length} frames")
        writer.finish()
        facts = {
            **made_by,
            "source": {"kind": SOURCE, "name": frames.log.log_id},
            "tool": tool,
            "start_ns": int(frames.stamps_ns[0]),
            "end_ns": int(frames.stamps_ns[-1]),
            "topics": {},
            "frames": builder.counts.taken,
            "left_out": {**frames.left_out, **_positive(asdict(builder.counts))},
            "tracks": frames.kept,
            "sweeps": sweeps,
            "pictures": pictures,
            "drops": {},
            "warnings": [],
            "label_sources": [SOURCE],
            **_place(frames.log),
        }
        if not frames.log.ego_from_sensor:
            log(f"{frames.log.log_id} has no calibration: its pictures, if any, are left out")
        shard: Shard = dataset.seal(name, facts, rows, {TRACKS: frames.table()})
        return shard


def _place(read: Any) -> dict[str, Any]:
    """City and path, if the map's name says which city it is of: every city has a frame of its own."""
    from e2e_perception.data.ego_paths import PathRecorder

    names = [path.name for path in (read.directory / "map").glob("log_map_archive_*.json")]
    city = next((found[1] for name in sorted(names) if (found := _CITY.search(name))), None)
    if city is None:
        return {}
    path = PathRecorder()
    for stamp_ns, (x, y, _) in zip(
        read.poses.stamps_ns_T.tolist(), read.poses.positions_T3.tolist(), strict=True
    ):
        path.add(stamp_ns, x, y)
    return {"place": city, **path.facts(f"argoverse2:{city}")}


def _positive(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count and name != "taken"}


def _rig(read: Any) -> Rig:
    """The recording car; of a log without calibration its lidar alone: points are in the car's frame."""
    from e2e_perception.core.rig import Lidar, Mount, Rig
    from e2e_perception.simulation.argoverse import LIDAR_NAME, LOG_LIDAR, log_rig

    if LOG_LIDAR in read.ego_from_sensor:
        return log_rig(read)
    lidar = Lidar(
        name=LIDAR_NAME, topic="/lidar/points", frame_id="lidar_top", mount=Mount(xyz=(1.35, 0.0, 1.6))
    )
    return Rig(name="argoverse2-lidar", sensors=(lidar,))


def _digest_of(directory: Path) -> str:
    """Over names, sizes and bytes of everything in the log."""
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(directory).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
