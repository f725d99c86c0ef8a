"""One Argoverse 2 log into one shard of a dataset: sensors, annotated tracks and the map, as recorded."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e_perception import __version__
from e2e_perception.cli.privacy import Privacy, stated_privacy
from e2e_perception.core.ego_motion import EgoMotionBuffer
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import SIZES
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.core.samples import AssembledFrame
from e2e_perception.data.clip_building import BuildCounts, BuiltClip, ClipBuilder, RecordedFrame
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.ego_paths import PathRecorder
from e2e_perception.data.label_table import LabelWriter
from e2e_perception.data.shard_facts import Shard
from e2e_perception.data.shard_rows import index_facts, label_rows
from e2e_perception.data.shards import SHARD, Dataset
from e2e_perception.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from e2e_perception.simulation.argoverse import Log
    from e2e_perception.simulation.log_frames import LogFrames

SOURCE = "argoverse2"
REVIEWER = "Argoverse 2"
TRACKS = "tracks.parquet"
TOOL = f"e2e_perception {__version__}"
SPEED_LIMIT = 15.0  # [m/s] that the network is told; logs do not say
ODOMETRY_BEFORE_NS = 500_000_000  # the first frame is given so much odometry
ODOMETRY_AFTER_NS = 100_000_000  # pictures may be a little later than the sweep that they belong to
NO_CALIBRATION = "it has no calibration: its pictures, if any, are not used"
_CITY = re.compile(r"____([A-Z]{3})_city_")


@dataclass(frozen=True)
class LogRecipe:
    """What is made of a log; the same log and recipe give the same shard.

    Attributes:
        size: Network size whose inputs are made.
        clip_length: [frames]
        privacy: What every picture goes through first, `Privacy.stated`; empty: nothing.
    """

    size: str
    clip_length: int
    privacy: str = ""

    def facts(self) -> dict[str, Any]:
        """For `shard.json` and the shard's name, which without privacy is what it used to be."""
        said = asdict(self)
        return said if self.privacy else {key: value for key, value in said.items() if key != "privacy"}


@dataclass(frozen=True)
class Imported:
    """What came of a log.

    Attributes:
        log, shard: Path of the one and name of the other.
        new: False if it was there already.
        frames, clips, digest: Of the shard.
        tracks: Annotated ones that have a class here.
        tracks_by_class: The same by class.
        left_out: Tracks by category that have none, `tracks_without_label` of those that have one, and
            labels and frames by reason, see `BuildCounts`.
        sweeps, pictures: That are in frames.
        warnings: What is odd about the log.
    """

    log: str
    shard: str
    new: bool
    frames: int
    clips: int
    digest: str
    tracks: int
    tracks_by_class: dict[str, int]
    left_out: dict[str, int]
    sweeps: int
    pictures: int
    warnings: list[str]


def import_one(path: Path, out: Path, recipe: LogRecipe) -> Imported:
    """One log into one shard, unless it is there.

    Args:
        path: Of the log.
        out: Of the dataset.
        recipe: What to make of it.
    Raises:
        InputError: If it is no log, or the size is not known.
        ConfigError: If the function of the recipe cannot be imported.
    """
    from e2e_perception.simulation.argoverse import read_log
    from e2e_perception.simulation.log_frames import LogFrames

    if recipe.size not in SIZES:
        raise InputError(f"unknown network size {recipe.size!r}; expected one of {', '.join(SIZES)}")
    privacy = stated_privacy(recipe.privacy)
    log = read_log(path)
    rig = rig_of(log)
    made_by = {
        "recipe": {**recipe.facts(), "rig": rig.model_dump(mode="json")},
        "bag_digest": _digest_of(log.directory),
    }
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', log.log_id)[:60]}-{key[:12]}"
    dataset = Dataset(out)
    listed = {shard.name: shard for shard in dataset.shards()}
    new = not (name in listed and (dataset.directory(name) / SHARD).is_file())
    if new:
        frames = LogFrames(log, rig, SIZES[recipe.size])
        shard = _write(frames, dataset, name, made_by, recipe, privacy)
    else:
        shard = listed[name]
    facts = dataset.facts(name, ("tracks", "left_out", "sweeps", "pictures", "warnings"))
    return Imported(
        log=str(path),
        shard=shard.name,
        new=new,
        frames=shard.frames,
        clips=shard.clips,
        digest=shard.digest,
        tracks=sum(facts["tracks"].values()),
        tracks_by_class=facts["tracks"],
        left_out=facts["left_out"],
        sweeps=facts["sweeps"],
        pictures=facts["pictures"],
        warnings=facts["warnings"],
    )


def _write(
    frames: LogFrames,
    dataset: Dataset,
    name: str,
    made_by: Mapping[str, Any],
    recipe: LogRecipe,
    privacy: Privacy | None,
) -> Shard:
    network, rig = frames.network, frames.rig
    bag_digest = str(made_by["bag_digest"])
    builder = ClipBuilder(
        network,
        clip_length=recipe.clip_length,
        stride=recipe.clip_length,
        source=f"log:{bag_digest}" + (f" privacy:{recipe.privacy}" if recipe.privacy else ""),
        scenario=f"log:{frames.log.log_id}",
        has_labels=True,
    )
    preprocessor, ego = Preprocessor(network, rig), EgoMotionBuffer()
    route = frames.route
    labelled: set[int] = set()
    sweeps = pictures = 0
    with dataset.writing(name) as directory:
        writer, labels = ClipWriter(directory), LabelWriter(directory)
        numbers = itertools.count()

        def write(built: BuiltClip) -> None:
            clip_id = f"{next(numbers):06d}"
            facts = index_facts(built, bag_digest=bag_digest, topics=[], label_sources=[SOURCE])
            writer.write(clip_id, built.clip, facts)
            labels.add(label_rows(clip_id, built, source=SOURCE, tool=TOOL, reviewer=REVIEWER))
            ids_TB = built.clip.ids_TB
            labelled.update(ids_TB[ids_TB >= 0].tolist())

        before_ns = int(frames.stamps_ns[0]) - ODOMETRY_BEFORE_NS
        for found in frames:
            frame = found.frame if privacy is None else _blurred(found.frame, rig, privacy)
            stamp_ns = frame.stamp_ns
            for state in frames.odometry(before_ns, stamp_ns):
                ego.add(state)
                builder.add_odometry(state, ego.epoch)
            before_ns = stamp_ns
            ahead = EgoMotionBuffer()
            for state in frames.odometry(stamp_ns - ODOMETRY_BEFORE_NS, stamp_ns + ODOMETRY_AFTER_NS):
                ahead.add(state)
            ahead.epoch = ego.epoch
            prepared = preprocessor.prepare(frame, ahead, route, SPEED_LIMIT)
            builder.add_labels(stamp_ns, found.boxes)
            kinds = [sensor.kind for sensor in rig.sensors if sensor.name in frame.messages]
            sweeps, pictures = sweeps + kinds.count("lidar"), pictures + kinds.count("camera")
            builder.add_frame(
                RecordedFrame(
                    stamp_ns=stamp_ns,
                    inputs={key: value[0] for key, value in prepared.inputs.items()},
                    ego=prepared.ego_state,
                    stretch=ego.epoch,
                    valid={sensor.name: sensor.name in frame.messages for sensor in rig.sensors},
                    maps_2YX=found.maps_2YX,
                )
            )
            for built in builder.finished():
                write(built)
        builder.finish()
        for built in builder.finished():
            write(built)
        if builder.counts.taken == 0:
            raise InputError(f"log {frames.log.log_id} gives no clip of {recipe.clip_length} frames")
        writer.finish()
        facts = {
            **made_by,
            "source": {"kind": SOURCE, "name": frames.log.log_id},
            "tool": TOOL,
            "start_ns": int(frames.stamps_ns[0]),
            "end_ns": int(frames.stamps_ns[-1]),
            "topics": {},
            "frames": builder.counts.taken,
            "left_out": _left_out(frames, builder.counts, labelled),
            "tracks": frames.kept,
            "sweeps": sweeps,
            "pictures": pictures,
            "drops": {},
            "warnings": [] if frames.log.ego_from_sensor else [NO_CALIBRATION],
            "label_sources": [SOURCE],
            **_place(frames.log),
        }
        return dataset.seal(name, facts, labels, {TRACKS: frames.table()})


def _blurred(frame: AssembledFrame, rig: Rig, privacy: Privacy) -> AssembledFrame:
    """The frame with the pictures that the function gives."""
    cameras = {sensor.name for sensor in rig.sensors if isinstance(sensor, Camera)}
    messages = {
        name: privacy.apply(message) if name in cameras else message
        for name, message in frame.messages.items()
    }
    return replace(frame, messages=messages)


def _left_out(frames: LogFrames, counts: BuildCounts, labelled: set[int]) -> dict[str, int]:
    """What of the log is in no clip, by reason; see `Imported`."""
    silent = sum(frames.kept.values()) - len(labelled)
    found = {"tracks_without_label": silent, **asdict(counts)}
    del found["taken"]
    return {**frames.left_out, **{reason: count for reason, count in found.items() if count}}


def _place(log: Log) -> dict[str, Any]:
    """City and path, if the map's name says which city it is of: every city has a frame of its own."""
    names = [path.name for path in (log.directory / "map").glob("log_map_archive_*.json")]
    city = next((found[1] for name in sorted(names) if (found := _CITY.search(name))), None)
    if city is None:
        return {}
    path = PathRecorder()
    for stamp_ns, (x, y, _) in zip(
        log.poses.stamps_ns_T.tolist(), log.poses.positions_T3.tolist(), strict=True
    ):
        path.add(stamp_ns, x, y)
    return {"place": city, **path.facts(f"argoverse2:{city}")}


def rig_of(log: Log) -> Rig:
    """The recording car; of a log without calibration its lidar alone: points are in the car's frame."""
    from e2e_perception.simulation.argoverse import LIDAR_NAME, LOG_LIDAR, log_rig

    if LOG_LIDAR in log.ego_from_sensor:
        return log_rig(log)
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
