"""`simulate`: traffic scenarios as a rosbag2 or as training clips."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.fan_out import Lost, fan_out, fan_out_on_ray, num_cores
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.core.samples import SensorMessage

if TYPE_CHECKING:
    from e2e_perception.simulation.degradation import DegradationSchedule
    from e2e_perception.simulation.scenario import Scenario
    from e2e_perception.simulation.traffic_world import ScenarioSpec

# Named here too, so that `--help` needs no simulator; a test compares them.
KINDS = (
    "highway",
    "braking_lead",
    "stopped_queue",
    "blocked_lane",
    "cut_in",
    "crossing",
    "two_way",
    "standstill",
)
ALL = "all"
SETTINGS = "simulation.json"
DONE = "scenarios"  # one small file per scenario whose clips are all written


class Format(str, Enum):
    """What is written."""

    BAG = "bag"
    CLIPS = "clips"


@dataclass(frozen=True)
class Recipe:
    """What all scenarios of a dataset share; a dataset is only ever continued with the same one."""

    duration_s: float
    clip_length: int
    stride_s: float
    randomize: bool
    size: str
    rig: str
    degradation: str | None = None
    disturbed: bool = False


@dataclass(frozen=True)
class Source:
    """One scenario to record.

    Attributes:
        kind: One of `KINDS`, or a family of the closed-loop worlds.
        seed: Of everything that varies.
        difficulty: Of a closed-loop world, which the expert then drives; None for `KINDS`.
    """

    kind: str
    seed: int
    difficulty: float | None = None

    @property
    def file_name(self) -> str:
        """For clips, bags and marks of progress."""
        name = f"{self.kind.replace('+', '_')}-{self.seed:06d}"
        return name if self.difficulty is None else f"{name}-{self.difficulty:g}"


def simulate(
    out: Annotated[Path, typer.Option(help="Directory to write.", show_default=False)],
    kind: Annotated[
        str, typer.Option(help=f"Scenario: {', '.join(KINDS)}; `{ALL}` takes them in turn.")
    ] = ALL,
    suite: Annotated[
        str | None,
        typer.Option(
            help="In place of kinds: a suite (docs/driving.md), driven by the expert, each scenario as long "
            "as it takes.",
            show_default="kinds",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="With --suite: only so many scenarios; 0: all.", show_default="all")
    ] = 0,
    part: Annotated[
        str, typer.Option(help="With --suite: one of several even parts of it, e.g. `2/4`; 1/1 is all of it.")
    ] = "1/1",
    family: Annotated[
        str,
        typer.Option(
            help="With --suite: only scenarios whose family has this in its name, e.g. `debris`.",
            show_default="all",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the first scenario; the others count up from it.")] = 0,
    duration: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of a scenario [s].")] = 12.0,
    output_format: Annotated[
        Format, typer.Option("--format", help="A bag, or clips for `train`.")
    ] = Format.BAG,
    scenarios: Annotated[int, typer.Option(min=1, help="How many scenarios.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(help="Ray cluster in place of processes: `local`, or an address.", show_default="none"),
    ] = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            help="What goes wrong with the sensors: a file or a shipped name (docs/degradations.md).",
            show_default="nothing",
        ),
    ] = None,
    disturb: Annotated[
        bool,
        typer.Option(
            "--disturb/--no-disturb",
            help="With --suite: push the robot off its plan now and then, for examples of coming back.",
        ),
    ] = False,
    rig: Annotated[str, typer.Option(help="Rig file, or the name of a shipped one.")] = "tiny",
    size: Annotated[str, typer.Option(help="Clips: network size whose inputs are made.")] = "tiny",
    clip_length: Annotated[int, typer.Option(min=2, help="Clips: frames per clip.")] = 5,
    stride: Annotated[
        float, typer.Option(min=0.1, help="Clips: from one clip's start to the next's [s].")
    ] = 1.0,
    randomize: Annotated[bool, typer.Option(help="Clips: vary mounts, lenses and beams.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Simulate traffic and write what a robot would have recorded, with labels.

    As a bag: sensors, odometry, CameraInfo, TF, route and labels in one MCAP rosbag2 per scenario. As clips:
    a dataset for `train`; an interrupted run goes on where it stopped.

    Example: `e2e-perception simulate --out clips --format clips --suite train --limit 500`
    """
    if kind not in (*KINDS, ALL):
        raise ConfigError(f"unknown scenario kind {kind!r}; there are {', '.join(KINDS)}, or {ALL}")

    the_rig = find_rig(rig)
    schedule = _schedule(degrade, the_rig)
    if family and suite is None:
        raise ConfigError("--family needs --suite; without one, --kind says what is simulated")
    if disturb and suite is None:
        raise ConfigError("--disturb needs --suite: only the expert knows how to come back")
    if suite is not None:
        todo = _of_suite(suite, limit, part, family)
    else:
        todo = [Source(KINDS[i % len(KINDS)] if kind == ALL else kind, seed + i) for i in range(scenarios)]
    recipe = Recipe(
        duration, clip_length, stride, randomize, size, the_rig.model_dump_json(), schedule, disturb
    )
    if output_format is Format.BAG:
        summary = _write_bags(out, todo, recipe, workers or num_cores(), ray)
    else:
        summary = _write_clips(out, todo, recipe, workers or num_cores(), ray)
    if as_json:
        emit_json(summary)
    else:
        typer.echo(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in summary.items()))


def _schedule(name: str | None, rig: Rig) -> str | None:
    """A degradation as JSON, checked against the rig."""
    if name is None:
        return None
    from e2e_perception.simulation.degradation import load_degradation

    schedule = load_degradation(name)
    schedule.check(rig)
    return schedule.model_dump_json()


def specs_of(name: str, part: str) -> list[ScenarioSpec]:
    """The scenarios of an even part of a suite.

    Args:
        name: Of the suite, or its file.
        part: `K/N`: every N-th, from the K-th on.
    Raises:
        ConfigError: If there is no such suite or part.
    """
    from e2e_perception.simulation.suites import load_suite

    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--part {part!r}: expected K/N with 1 <= K <= N, e.g. 2/4")
    return list(load_suite(name).scenarios()[int(found[1]) - 1 :: int(found[2])])


def _of_suite(name: str, limit: int, part: str, family: str) -> list[Source]:
    specs = [spec for spec in specs_of(name, part) if family in spec.family]
    if not specs:
        families = sorted({spec.family for spec in specs_of(name, part)})
        raise ConfigError(f"--family {family!r}: suite {name} has {', '.join(families)}")
    return [Source(spec.family, spec.seed, spec.difficulty) for spec in specs[: limit or None]]


def _scenario(source: Source, duration_s: float, disturbed: bool = False) -> Scenario:
    if source.difficulty is None:
        from e2e_perception.simulation.traffic import simulate_scenario

        return simulate_scenario(source.kind, source.seed, duration_s)
    from e2e_perception.simulation.expert_drives import drive_expert
    from e2e_perception.simulation.traffic_world import ScenarioSpec

    return drive_expert(ScenarioSpec(source.kind, source.seed, source.difficulty), disturbed=disturbed)


def _degradation(recipe: Recipe) -> DegradationSchedule | None:
    if recipe.degradation is None:
        return None
    from e2e_perception.simulation.degradation import DegradationSchedule

    return DegradationSchedule.model_validate_json(recipe.degradation)


def _on_all(
    function: Callable[[tuple[Path, Source, Recipe]], int],
    out: Path,
    todo: list[Source],
    recipe: Recipe,
    workers: int,
    ray: str | None,
) -> Iterator[int]:
    """Call a function on all, in processes if there are several; yields each result when it is there."""
    tasks = [(out, source, recipe) for source in todo]
    if ray is None and (workers == 1 or len(todo) <= 1):
        yield from map(function, tasks)
        return
    found = (
        fan_out(function, tasks, workers) if ray is None else fan_out_on_ray(function, tasks, ray, workers)
    )
    for number, written in found:
        if isinstance(written, Lost):
            raise InputError(
                f"{todo[number].file_name}: {written.why}; start again to go on where it stopped"
            )
        yield written


# ------------------------------------------------------------------ clips


def _write_clips(
    out: Path, todo: list[Source], recipe: Recipe, workers: int, ray: str | None
) -> dict[str, object]:
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.clip_store import ClipWriter

    if recipe.size not in SIZES:
        raise ConfigError(f"unknown network size {recipe.size!r}; expected one of {', '.join(SIZES)}")
    clip_s = recipe.clip_length * SIZES[recipe.size].frame_period_s
    if clip_s > recipe.duration_s:
        raise ConfigError(
            f"a clip of {recipe.clip_length} frames lasts {clip_s:g} s, a scenario {recipe.duration_s:g} s; "
            "raise --duration or lower --clip-length"
        )
    _same_recipe(out, recipe)
    writer = ClipWriter(out)
    (out / DONE).mkdir(exist_ok=True)
    missing = [source for source in todo if not _done_path(out, source).is_file()]
    if len(missing) < len(todo):
        log(f"{len(todo) - len(missing)} of {len(todo)} scenarios are there already")
    started = time.perf_counter()
    written = 0
    with progress_bar("simulating", len(missing)) as progress:
        for done, count in enumerate(_on_all(_clips_of, out, missing, recipe, workers, ray), 1):
            written += count
            progress(done, f"{written / (time.perf_counter() - started):.1f} clips/s")
    store = writer.finish()
    return {
        "out": str(out),
        "clips": len(store),
        "new_clips": written,
        "train": len(store.indices("train")),
        "validation": len(store.indices("validation")),
        "digest": store.digest,
    }


def _same_recipe(out: Path, recipe: Recipe) -> None:
    path = out / SETTINGS
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; name a new --out") from error
    changed = [key for key, value in asdict(recipe).items() if before.get(key) != value]
    if changed:
        raise ConfigError(
            f"{out} was begun with another {', '.join(changed)} (see {path}); keep the same settings, or "
            "name a new --out"
        )


def _clips_of(task: tuple[Path, Source, Recipe]) -> int:
    return simulate_clips(*task)


def simulate_clips(out: Path, source: Source, recipe: Recipe) -> int:
    """Write the clips of one scenario; those that are there already stay.

    Returns:
        Number of clips written now.
    """
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.clip_store import ClipWriter
    from e2e_perception.simulation.recording import record_clips

    writer = ClipWriter(out)
    try:
        scenario = _scenario(source, recipe.duration_s, recipe.disturbed)
    except InputError as error:
        log(f"warning: {error}")
        _done_path(out, source).touch()
        return 0
    clips = record_clips(
        scenario,
        Rig.model_validate_json(recipe.rig),
        SIZES[recipe.size],
        clip_length=recipe.clip_length,
        stride_s=recipe.stride_s,
        seed=source.seed,
        randomize=recipe.randomize,
        degradation=_degradation(recipe),
        price_proposals=source.difficulty is not None,
    )
    written = sum(writer.write(f"{source.file_name}-{k:03d}", clip) for k, clip in enumerate(clips))
    _done_path(out, source).touch()
    return written


def _done_path(out: Path, source: Source) -> Path:
    return out / DONE / source.file_name


# ------------------------------------------------------------------ bags


def _write_bags(
    out: Path, todo: list[Source], recipe: Recipe, workers: int, ray: str | None
) -> dict[str, object]:
    paths = [out if len(todo) == 1 else out / source.file_name for source in todo]
    started, messages = time.perf_counter(), 0
    if len(todo) == 1:
        messages = _bag_at(out, todo[0], recipe)
    else:
        with progress_bar("simulating", len(todo)) as progress:
            for done, count in enumerate(_on_all(_bag_of, out, todo, recipe, workers, ray), 1):
                messages += count
                progress(done)
    return {
        "bags": [str(path) for path in paths],
        "messages": messages,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _bag_of(task: tuple[Path, Source, Recipe]) -> int:
    out, source, recipe = task
    return _bag_at(out / source.file_name, source, recipe, quiet=True)


def _bag_at(path: Path, source: Source, recipe: Recipe, *, quiet: bool = False) -> int:
    scenario = _scenario(source, recipe.duration_s, recipe.disturbed)
    rig = Rig.model_validate_json(recipe.rig)
    return write_scenario(path, scenario, source.seed, rig, _degradation(recipe), quiet=quiet)


def write_bag(path: Path, kind: str, seed: int, duration_s: float, rig: Rig) -> int:
    """Record one scenario of one of `KINDS` to an MCAP rosbag2.

    Returns:
        Number of messages written.
    Raises:
        InputError: If something is at `path` already.
    """
    return write_scenario(path, _scenario(Source(kind, seed), duration_s), seed, rig)


def write_scenario(
    path: Path,
    scenario: Scenario,
    seed: int,
    rig: Rig,
    degradation: DegradationSchedule | None = None,
    *,
    quiet: bool = False,
) -> int:
    """Record a scenario to an MCAP rosbag2.

    Args:
        path: To be made.
        scenario: The drive.
        seed: Of the sensors' noise and jitter.
        rig: Its sensors.
        degradation: What goes wrong with them.
        quiet: Without a progress bar of its own.
    Returns:
        Number of messages written.
    Raises:
        InputError: If something is at `path` already.
    """
    from e2e_perception.data.bags import write_scenario_bag
    from e2e_perception.simulation.recording import odometry, sensor_messages, true_boxes

    def write(messages: Iterator[SensorMessage]) -> int:
        return write_scenario_bag(
            path,
            messages,
            rig,
            odometry=odometry(scenario),
            route=scenario.route,
            labels=true_boxes(scenario, rig),
        )

    messages = sensor_messages(scenario, rig, seed, degradation)
    if quiet:
        return write(messages)
    seconds = round((scenario.end_ns - scenario.start_ns) * 1e-9)
    with progress_bar(f"simulating {scenario.name}", seconds) as progress:

        def watched() -> Iterator[SensorMessage]:
            for message in messages:
                progress((message.stamp_ns - scenario.start_ns) // 1_000_000_000)
                yield message

        return write(watched())
