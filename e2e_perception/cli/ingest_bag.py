"""One recording into one shard of a dataset, through the robot's own front end."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from e2e_perception import __version__
from e2e_perception.cli.bag_stream import BagStream
from e2e_perception.cli.inputs import rig_for_topics
from e2e_perception.cli.offline import Event, Intervention, Labels, play
from e2e_perception.cli.privacy import Privacy, stated_privacy
from e2e_perception.cli.tally import Tally
from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import DamagedBagError, InputError
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.core.samples import SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.data.bag_salvage import SalvagedBag
from e2e_perception.data.bags import LABELS_TOPIC, BagSource, storage_files
from e2e_perception.data.clip_building import BuiltClip, ClipBuilder, RecordedFrame
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.ego_paths import PathRecorder
from e2e_perception.data.label_table import LabelWriter
from e2e_perception.data.shard_facts import Shard
from e2e_perception.data.shard_rows import index_facts, label_rows
from e2e_perception.data.shards import SHARD, Dataset
from e2e_perception.data.timing import StreamTiming
from e2e_perception.runtime.front_end import FrontEnd

TOOL = f"e2e_perception {__version__}"
CHUNK = 1 << 22  # [bytes] read at a time for a digest


@dataclass(frozen=True)
class Recipe:
    """What is made of a recording; the same recording and recipe give the same shard.

    Attributes:
        size: Network size whose inputs are made.
        clip_length, stride: [frames]
        rig: Name or file; empty: the shipped one that fits.
        config: Parameters of the stack, as JSON.
        privacy: What every picture goes through first, `Privacy.stated`; empty: nothing.
    """

    size: str
    clip_length: int
    stride: int
    rig: str
    config: str
    privacy: str = ""

    def facts(self) -> dict[str, Any]:
        """For `shard.json` and the shard's name, which without privacy is what it used to be."""
        said = asdict(self)
        return said if self.privacy else {key: value for key, value in said.items() if key != "privacy"}


TOLD_FACTS = ("left_out", "drops", "warnings")  # of `shard.json`, in `Ingested`


@dataclass(frozen=True)
class Ingested:
    """What came of a recording.

    Attributes:
        bag, shard: Path of the one and name of the other.
        new: False if it was there already.
        frames, clips: In the shard.
        digest: Of the shard.
        left_out: Frames that are in no clip, labels that could not be placed, clips that labels do not cover.
        drops: Messages that made no frame, by reason.
        warnings: What is odd about the recording.
        megabytes, seconds: Read, and how long it took.
    """

    bag: str
    shard: str
    new: bool
    frames: int
    clips: int
    digest: str
    left_out: dict[str, int]
    drops: dict[str, int]
    warnings: list[str]
    megabytes: float
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A recording that gave no shard, and why."""

    bag: str
    why: str


class Recorder:
    """Takes what reached the robot and gives clips; a `Player` of recordings."""

    def __init__(
        self,
        network: NetworkConfig,
        rig: Rig,
        config: StackConfig,
        builder: ClipBuilder,
        privacy: Privacy | None = None,
    ) -> None:
        self.config = config
        self._privacy = privacy
        self._cameras = frozenset(camera.name for camera in rig.cameras)
        self.path = PathRecorder()
        self.network, self.builder = network, builder
        self.front = FrontEnd(network, rig, config)
        self.problems = Tally()
        self.timing: defaultdict[str, StreamTiming] = defaultdict(StreamTiming)

    def push(self, message: SensorMessage) -> None:
        """See `Pipeline`."""
        self.timing[message.sensor].add(message.stamp_ns, message.arrival_ns)
        if self._privacy is not None and message.sensor in self._cameras:
            message = self._privacy.apply(message)
        self.front.assembler.push(message)

    def push_odometry(self, state: EgoState) -> bool:
        """See `Pipeline`."""
        try:
            continuous = self.front.ego.add(state)
        except InputError:
            self.problems.add("odometry_non_finite")
            return False
        here = state.odom_from_base.planar_part()
        self.path.add(state.stamp_ns, here.x, here.y)
        self.builder.add_odometry(state, self.front.ego.epoch)
        return continuous

    def set_route(self, route: Route | None) -> None:
        """See `Pipeline`."""
        self.front.route = route

    def set_rig(self, rig: Rig) -> None:
        """See `Pipeline`."""
        self.front.set_rig(rig)

    def next_deadline_ns(self) -> int | None:
        """See `Pipeline`."""
        return self.front.assembler.next_deadline_ns()

    def poll(self, now_ns: int) -> list[BuiltClip]:
        """Clips that are finished by now."""
        frames, _ = self.front.poll(now_ns)
        for frame in frames:
            prepared = self.front.prepare(frame)
            for name, reason in prepared.reasons.items():
                self.problems.add(f"{name}: {reason}")
            self.builder.add_frame(
                RecordedFrame(
                    stamp_ns=prepared.stamp_ns,
                    inputs={name: value[0] for name, value in prepared.inputs.items()},
                    ego=prepared.ego_state,
                    stretch=self.front.ego.epoch,
                    valid=_validity(self.network, prepared.inputs),
                )
            )
        return list(self.builder.finished())

    def idle(self, now_ns: int) -> None:
        """A recording that falls silent gives nothing."""


def ingest_bag(
    bag: Path, out: Path, recipe: Recipe, progress: Callable[[float], None] | None = None
) -> Ingested:
    """Make a shard of a recording, or say that it is there.

    A shard that was begun and not finished is gone on with: clips that are whole stay. Of a bag that is cut
    off or damaged what is whole is taken, and what is lost is among the warnings.

    Args:
        bag: Recording.
        out: Directory of the dataset.
        recipe: What to make of it.
        progress: Told the share that has been read.
    Raises:
        InputError: If the recording, the rig or the dataset cannot be used.
    """
    if recipe.size not in SIZES:
        raise InputError(f"unknown network size {recipe.size!r}; expected one of {', '.join(SIZES)}")
    network, config = SIZES[recipe.size], StackConfig.model_validate_json(recipe.config)
    # What the robot keeps of a drive is no part of what a clip is.
    recipe = replace(recipe, config=config.model_dump_json(exclude={"triggers"}))
    dataset = Dataset(out)
    rig = rig_of(bag, recipe)
    started = time.perf_counter()
    files = storage_files(bag)
    bag_digest = digest_of_bag(bag)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    privacy = stated_privacy(recipe.privacy)
    made_by = {"recipe": {**recipe.facts(), "rig": rig.model_dump(mode="json")}, "bag_digest": bag_digest}
    name = shard_name(bag, made_by)
    listed = {shard.name: shard for shard in dataset.shards()}
    if name in listed and (dataset.directory(name) / SHARD).is_file():
        seconds = time.perf_counter() - started
        return _told(bag, listed[name], dataset.facts(name, TOLD_FACTS), megabytes, seconds, new=False)
    with dataset.writing(name) as directory:
        task = _Task(bag, directory, rig, network, config, recipe, bag_digest, privacy)
        try:
            facts, labels = _write_clips(task, progress)
        except DamagedBagError:
            facts, labels = _write_clips(task, progress, salvage=True)
        shard = dataset.seal(name, {**made_by, **facts}, labels)
    seconds = time.perf_counter() - started
    return _told(bag, shard, dataset.facts(name, TOLD_FACTS), megabytes, seconds, new=True)


@dataclass(frozen=True)
class _Task:
    bag: Path
    directory: Path
    rig: Rig
    network: NetworkConfig
    config: StackConfig
    recipe: Recipe
    bag_digest: str
    privacy: Privacy | None


def _write_clips(
    task: _Task, progress: Callable[[float], None] | None, *, salvage: bool = False
) -> tuple[dict[str, Any], LabelWriter]:
    """Clips of a recording, those that are there excepted; facts of the shard and what wrote its labels."""
    recipe = task.recipe
    with BagStream(task.bag, task.rig, task.config, salvage=salvage, interventions=True) as stream:
        has_labels = LABELS_TOPIC in stream.types
        builder = ClipBuilder(
            task.network,
            clip_length=recipe.clip_length,
            stride=recipe.stride,
            source=f"bag:{task.bag_digest}" + (f" privacy:{recipe.privacy}" if recipe.privacy else ""),
            scenario=scenario_of(task.bag_digest),
            has_labels=has_labels,
        )
        recorder = Recorder(task.network, stream.rig, task.config, builder, task.privacy)
        writer = ClipWriter(task.directory)
        topics = sorted(stream.counts)
        sources = [f"topic:{LABELS_TOPIC}"] if has_labels else []
        labels = LabelWriter(task.directory)
        interventions: set[int] | None = set() if stream.tells_interventions else None
        numbers = itertools.count()

        def write(built: BuiltClip) -> None:
            clip_id = f"{next(numbers):06d}"
            writer.write(
                clip_id,
                built.clip,
                index_facts(
                    built,
                    bag_digest=task.bag_digest,
                    topics=topics,
                    label_sources=sources,
                    interventions=_within(built, interventions),
                ),
            )
            if has_labels:
                labels.add(label_rows(clip_id, built, source=sources[0], tool=TOOL))

        play(
            recorder,
            _watched(stream, builder, interventions, progress),
            lambda built, _now, _frame: write(built),
        )
        builder.finish()
        for built in builder.finished():
            write(built)
        if builder.counts.taken == 0:
            raise InputError(
                f"bag {task.bag} gives no clip of {recipe.clip_length} frames: {_reasons(builder, recorder)}"
            )
        writer.finish()
        counts = {key: count for key, count in asdict(builder.counts).items() if count and key != "taken"}
        return {
            "source": {"kind": "bag", "name": task.bag.resolve().name},
            "tool": TOOL,
            "start_ns": stream.start_ns,
            "end_ns": stream.end_ns,
            "topics": stream.counts,
            "frames": builder.counts.taken,
            "left_out": counts,
            "drops": recorder.front.assembler.drops(),
            "timing": {name: timing.summary() for name, timing in sorted(recorder.timing.items())},
            "odometry": stream.odometry_facts,
            "warnings": [*stream.warnings, *recorder.problems.lines()],
            "label_sources": sources,
            **recorder.path.facts(stream.odometry_frame),
        }, labels


def shard_name(bag: Path, made_by: Mapping[str, Any]) -> str:
    """Of a recording and what is made of it: readable first, unique after."""
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    return f"{_stem(bag)}-{key[:12]}"


def _stem(bag: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", bag.resolve().name.removesuffix(bag.suffix)).strip("._-")
    return stem[:60] or "bag"


def without_repeats(bags: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Recordings that make shards of their own, and those that would make the shard of another.

    Args:
        bags: As given; one that cannot be read counts as its own.
    Returns:
        The first of each, in their order, and for every other path the first.
    """
    first: dict[Hashable, Path] = {}
    repeats: dict[Path, Path] = {}
    alike = Counter(_kinship(bag) for bag in bags)
    for bag in bags:
        kinship = _kinship(bag)
        key: Hashable = kinship
        if alike[kinship] > 1:  # only then is a digest worth its time
            try:
                key = (_stem(bag), digest_of_bag(bag))
            except (InputError, OSError):
                key = bag.resolve()
        if first.setdefault(key, bag) is not bag:
            repeats[bag] = first[key]
    return list(first.values()), repeats


def _kinship(bag: Path) -> tuple[str, int]:
    """The same of two recordings that could be one: name, and size [bytes]."""
    try:
        return _stem(bag), sum(file.stat().st_size for file in storage_files(bag))
    except (InputError, OSError):
        return str(bag.resolve()), -1


def _watched(
    stream: BagStream,
    builder: ClipBuilder,
    interventions: set[int] | None,
    progress: Callable[[float], None] | None,
) -> Iterator[Event]:
    total = max(stream.num_messages, 1)

    def told(count: int) -> None:
        if progress is not None:
            progress(count / total)

    for event in stream.events(told):
        if isinstance(event.content, Labels):
            builder.add_labels(event.content.stamp_ns, event.content.boxes)
        if not isinstance(event.content, Intervention):
            yield event
        elif interventions is not None:
            interventions.add(event.content.stamp_ns)


def _validity(network: NetworkConfig, inputs: Mapping[str, Any]) -> dict[str, bool]:
    slots = {"camera": network.cameras, "lidar": network.lidars, "radar": network.radars}
    return {
        name: bool(inputs[f"{kind}_valid"][0, slot] > 0.5)
        for kind, names in slots.items()
        for slot, name in enumerate(names)
    }


def _within(built: BuiltClip, instants: set[int] | None) -> int | None:
    """How many of the instants lie in a clip; None if none are told."""
    if instants is None:
        return None
    stamps_T = built.clip.stamps_ns_T
    return sum(int(stamps_T[0]) <= instant <= int(stamps_T[-1]) for instant in instants)


def _reasons(builder: ClipBuilder, recorder: Recorder) -> str:
    counts, drops = builder.counts, recorder.front.assembler.drops()
    said = [
        f"{counts.without_ego_motion} frames without odometry",
        f"{counts.alone} frames that too few others follow",
        f"messages dropped: {sum(drops.values())}",
    ]
    return ", ".join(said)


def _told(
    bag: Path, shard: Shard, facts: Mapping[str, Any], megabytes: float, seconds: float, *, new: bool
) -> Ingested:
    uncovered = facts["left_out"].get("clips_not_covered", 0)
    unlabelled = (
        f"{uncovered} of {shard.clips} clips count as unlabelled: "
        f"{LABELS_TOPIC} does not cover all their frames"
    )
    return Ingested(
        bag=str(bag),
        shard=shard.name,
        new=new,
        frames=shard.frames,
        clips=shard.clips,
        digest=shard.digest,
        left_out=dict(facts["left_out"]),
        drops={name: count for name, count in facts["drops"].items() if count},
        warnings=[*facts["warnings"], *([unlabelled] if uncovered else [])],
        megabytes=round(megabytes, 1),
        seconds=round(seconds, 2),
    )


def types_of(bag: Path) -> dict[str, str]:
    """Type of each topic of a recording, also of a damaged one.

    Raises:
        InputError: If nothing of it can be read.
    """
    try:
        with BagSource(bag) as source:
            return dict(source.types)
    except DamagedBagError:
        return SalvagedBag(bag).types


def rig_of(bag: Path, recipe: Recipe) -> Rig:
    """The rig of a recipe, or the shipped one that fits a recording.

    Raises:
        InputError: If the recording cannot be read, or no rig fits it.
    """
    rig_name = recipe.rig or rig_for_topics(types_of(bag))
    config = StackConfig.model_validate_json(recipe.config)
    return find_rig(rig_name).with_topic_rules(config.node.sensor_topics)


def scenario_of(bag_digest: str) -> str:
    """Of a recording's clips; its hash says on which side of the split they are."""
    return f"bag:{bag_digest[:16]}"


def digest_of_bag(bag: Path) -> str:
    """SHA-256 of names, sizes and bytes of a recording's files."""
    digest = hashlib.sha256()
    for file in storage_files(bag):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
