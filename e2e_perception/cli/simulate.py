"""`simulate`: traffic scenarios as a rosbag2 or as training clips."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.fan_out import Lost, fan_out, num_cores
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.core.samples import SensorMessage

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


def simulate(
    out: Annotated[Path, typer.Option(help="Directory to write.", show_default=False)],
    kind: Annotated[
        str, typer.Option(help=f"Scenario: {', '.join(KINDS)}; `{ALL}` takes them in turn.")
    ] = ALL,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scenario; the others count up from it.")] = 0,
    duration: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of a scenario [s].")] = 12.0,
    output_format: Annotated[
        Format, typer.Option("--format", help="A bag, or clips for `train`.")
    ] = Format.BAG,
    scenarios: Annotated[int, typer.Option(min=1, help="How many scenarios.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes for clips; 0: one per core.")] = 0,
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

    Example: `e2e-perception simulate --out clips --format clips --scenarios 500`
    """
    if kind not in (*KINDS, ALL):
        raise ConfigError(f"unknown scenario kind {kind!r}; there are {', '.join(KINDS)}, or {ALL}")

    the_rig = find_rig(rig)
    todo = [((KINDS[i % len(KINDS)] if kind == ALL else kind), seed + i) for i in range(scenarios)]
    if output_format is Format.BAG:
        summary = _write_bags(out, todo, duration, the_rig)
    else:
        recipe = Recipe(duration, clip_length, stride, randomize, size, the_rig.model_dump_json())
        summary = _write_clips(out, todo, recipe, workers or num_cores())
    if as_json:
        emit_json(summary)
    else:
        typer.echo(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in summary.items()))


# ------------------------------------------------------------------ clips


def _write_clips(out: Path, todo: list[tuple[str, int]], recipe: Recipe, workers: int) -> dict[str, object]:
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
    missing = [(kind, seed) for kind, seed in todo if not _done_path(out, kind, seed).is_file()]
    if len(missing) < len(todo):
        log(f"{len(todo) - len(missing)} of {len(todo)} scenarios are there already")
    started = time.perf_counter()
    written = 0
    with progress_bar("simulating", len(missing)) as progress:
        for done, count in enumerate(_simulate_all(out, missing, recipe, workers), 1):
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


def _simulate_all(out: Path, todo: list[tuple[str, int]], recipe: Recipe, workers: int) -> Iterator[int]:
    """Simulate all, in processes if there are several; yields the number of clips of each when it is done."""
    if workers == 1 or len(todo) <= 1:
        for kind, seed in todo:
            yield simulate_clips(out, kind, seed, recipe)
        return
    tasks = [(out, kind, seed, recipe) for kind, seed in todo]
    for number, written in fan_out(_simulate_task, tasks, workers):
        if isinstance(written, Lost):
            kind, seed = todo[number]
            raise InputError(f"{kind} with seed {seed}: {written.why}; start again to go on where it stopped")
        yield written


def _simulate_task(task: tuple[Path, str, int, Recipe]) -> int:
    return simulate_clips(*task)


def simulate_clips(out: Path, kind: str, seed: int, recipe: Recipe) -> int:
    """Write the clips of one scenario; those that are there already stay.

    Returns:
        Number of clips written now.
    """
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.clip_store import ClipWriter
    from e2e_perception.simulation.recording import record_clips
    from e2e_perception.simulation.traffic import simulate_scenario

    writer = ClipWriter(out)
    clips = record_clips(
        simulate_scenario(kind, seed, recipe.duration_s),
        Rig.model_validate_json(recipe.rig),
        SIZES[recipe.size],
        clip_length=recipe.clip_length,
        stride_s=recipe.stride_s,
        seed=seed,
        randomize=recipe.randomize,
    )
    written = sum(writer.write(f"{kind}-{seed:06d}-{k:03d}", clip) for k, clip in enumerate(clips))
    _done_path(out, kind, seed).touch()
    return written


def _done_path(out: Path, kind: str, seed: int) -> Path:
    return out / DONE / f"{kind}-{seed:06d}"


# ------------------------------------------------------------------ bags


def _write_bags(out: Path, todo: list[tuple[str, int]], duration_s: float, rig: Rig) -> dict[str, object]:
    bags, messages = [], 0
    for kind, seed in todo:
        path = out if len(todo) == 1 else out / f"{kind}-{seed:06d}"
        messages += write_bag(path, kind, seed, duration_s, rig)
        bags.append(str(path))
    return {"bags": bags, "messages": messages, "seconds": duration_s * len(todo)}


def write_bag(path: Path, kind: str, seed: int, duration_s: float, rig: Rig) -> int:
    """Record one scenario to an MCAP rosbag2.

    Returns:
        Number of messages written.
    Raises:
        InputError: If something is at `path` already.
    """
    from e2e_perception.data.bags import write_scenario_bag
    from e2e_perception.simulation.recording import odometry, sensor_messages, true_boxes
    from e2e_perception.simulation.traffic import simulate_scenario

    scenario = simulate_scenario(kind, seed, duration_s)
    with progress_bar(f"simulating {kind}", round(duration_s)) as progress:

        def watched() -> Iterator[SensorMessage]:
            for message in sensor_messages(scenario, rig, seed):
                progress((message.stamp_ns - scenario.start_ns) // 1_000_000_000)
                yield message

        return write_scenario_bag(
            path,
            watched(),
            rig,
            odometry=odometry(scenario),
            route=scenario.route,
            labels=true_boxes(scenario, rig),
        )
