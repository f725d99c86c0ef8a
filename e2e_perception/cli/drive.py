"""`drive`: a policy through a suite of scenarios, single ones, or recorded logs, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.episodes import OWN_RIG, Driven, LogDrive, Stack, Task, drive_episode, not_driven
from e2e_perception.cli.fan_out import Lost, fan_out, fan_out_on_ray, num_cores
from e2e_perception.cli.options import (
    BackendOption,
    JsonOption,
    ParamsOption,
    given_parameters,
    named_rig,
    stack_config,
)
from e2e_perception.core.config import StackConfig
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.rig import Rig, find_rig

if TYPE_CHECKING:
    from e2e_perception.deploy.bundle import Bundle
    from e2e_perception.simulation.suites import Suite
    from e2e_perception.simulation.traffic_world import ScenarioSpec

# Named here too, so that `--help` needs no simulator; a test compares them.
POLICIES = ("expert", "ground-truth-planner", "idm", "blind", "constant-velocity", "stop")
BUNDLE, CLASSICAL = "bundle:", "classical:"  # what has sensors and an engine


class Views(str, Enum):
    """Which episodes get a page that plays them."""

    FAILURES = "failures"
    ALL = "all"
    NONE = "none"


def drive(
    policy: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(POLICIES)}, or `{BUNDLE}PATH` (or a shipped bundle's name), or "
            f"`{CLASSICAL}PATH`: the bundle only detects, a Kalman filter tracks, and rules plan.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Directory; results of an earlier drive there are replaced.", show_default=False),
    ],
    suite: Annotated[
        str | None, typer.Option(help="Suite file, or the name of a shipped one.", show_default=False)
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="FAMILY/SEED[@D]", help="A single scenario; repeatable.", show_default=False),
    ] = None,
    log_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--log", metavar="DIR", help="A recorded Argoverse 2 log; repeatable.", show_default=False
        ),
    ] = None,
    open_loop: Annotated[
        bool, typer.Option("--open-loop", help="Logs: the robot follows the recording, plans are compared.")
    ] = False,
    reactive: Annotated[
        bool, typer.Option("--reactive", help="Logs: the others slow down for the robot.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Drive on a Ray cluster instead; `local` starts one with `--workers` CPUs.",
            show_default=False,
        ),
    ] = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            help="What the sensors suffer: a file or a shipped degradation's name; wins over the suite's.",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Share of --degrade's strengths, more than 0 and at most 1.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many episodes.", show_default=False)
    ] = None,
    views: Annotated[Views, typer.Option(help="Which episodes get a page that plays them.")] = Views.FAILURES,
    rig: Annotated[
        str | None,
        typer.Option(
            help="Rig file, or the name of a shipped one, whose cameras render at their own size; with --log "
            f"also `{OWN_RIG}`, the recording car's, to which recorded pictures are shown. Default for a "
            "bundle: the rig it was trained for, with cameras of the network's size, which is faster.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOption = None,
    params: ParamsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drive episodes in closed loop and judge them.

    Writes `episodes.parquet` (a row per episode, byte-identical for any number of workers), `summary.json`,
    `index.html` and a page for each failure under `views/` to --out. An error inside an episode is a failed
    episode; the others go on.

    Example: `e2e-perception drive --suite test --policy bundle:tiny --out results/tiny`
    """
    _check_options(
        policy,
        {"suite": suite, "scenario": scenario, "log": log_dir},
        for_logs={"open-loop": open_loop, "reactive": reactive, f"rig {OWN_RIG}": rig == OWN_RIG},
        for_bundles={"degrade": degrade, "backend": backend, "params": params},
    )
    if strength is not None and degrade is None:
        raise ConfigError(f"--strength {strength:g} is a share of --degrade's strengths; name a degradation")
    from e2e_perception.cli.drive_results import print_results, refuse_foreign, summarized, write_results
    from e2e_perception.simulation.degradation import load_degradation
    from e2e_perception.simulation.suites import load_suite

    the_suite = None if suite is None else load_suite(suite)
    worlds = _worlds(the_suite, scenario or (), log_dir or (), open_loop, reactive, rig == OWN_RIG)[:limit]
    facts: dict[str, Any] = {
        "suite": None if the_suite is None else the_suite.name,
        "suite_digest": None if the_suite is None else the_suite.digest,
        "limit": limit,
        "loop": "open" if open_loop else "closed",
        "params": None if params is None else params.name,
    }
    asked = degrade or (None if the_suite is None else the_suite.degradation)
    kind, has_stack, bundle = policy.partition(":")
    if has_stack:
        config = stack_config(params, given_parameters(bundle=bundle, backend=backend))
        template, more = _with_stack(
            kind, worlds[0], config, rig, asked, 1.0 if strength is None else strength
        )
        facts |= more
    else:
        the_rig = None if rig in (None, OWN_RIG) else find_rig(str(rig))
        template = Task(worlds[0], policy, "", the_rig)
        if asked is not None:
            name = load_degradation(asked).name
            log(f"policy {policy} has no sensors: the suite's degradation {name} does nothing to it")
    tasks = [replace(template, world=world, views=views.value) for world in worlds]
    refuse_foreign(out)
    num_workers = workers or num_cores()
    started = time.perf_counter()
    driven = _drive_all(tasks, out, num_workers, ray)
    facts |= {"seconds": time.perf_counter() - started, "workers": num_workers, "ray": ray}
    excluded = () if the_suite is None else the_suite.excluded_names
    summary = summarized(driven, template.policy, excluded, facts)
    write_results(out, driven, summary)
    if as_json:
        emit_json(summary)
    else:
        print_results(summary, out)


def _check_options(
    policy: str, sources: dict[str, object], *, for_logs: dict[str, bool], for_bundles: dict[str, object]
) -> None:
    """Make sure that the options belong together.

    Raises:
        ConfigError: If they do not.
    """
    given = [f"--{name}" for name, value in sources.items() if value]
    if len(given) != 1:
        raise ConfigError(
            f"drive got {' and '.join(given) or 'nothing to drive'}; expected one of --suite, --scenario and "
            "--log"
        )
    wanted = [f"--{name}" for name, value in for_logs.items() if value]
    if wanted and not sources["log"]:
        raise ConfigError(
            f"{' and '.join(wanted)} is for recorded logs; give one with --log, or leave it out"
        )
    if for_logs["open-loop"] and for_logs["reactive"]:
        raise ConfigError(
            "--open-loop and --reactive: nobody reacts to a robot that follows the recording; leave one out"
        )
    if policy.startswith((BUNDLE, CLASSICAL)):
        return
    if policy not in POLICIES:
        raise ConfigError(
            f"unknown policy {policy!r}; there are {', '.join(POLICIES)}, {BUNDLE}PATH and {CLASSICAL}PATH"
        )
    useless = [f"--{name}" for name, value in for_bundles.items() if value is not None]
    if useless:
        raise ConfigError(
            f"{' and '.join(useless)} is for {BUNDLE}PATH; policy {policy} has neither sensors nor a stack"
        )


def _worlds(
    suite: Suite | None,
    scenarios: Sequence[str],
    logs: Sequence[Path],
    open_loop: bool,
    reactive: bool,
    own_rig: bool,
) -> list[ScenarioSpec | LogDrive]:
    from e2e_perception.simulation.traffic_world import ScenarioSpec

    worlds: list[ScenarioSpec | LogDrive] = list(() if suite is None else suite.scenarios())
    worlds += [ScenarioSpec.parse(text) for text in scenarios]
    for directory in logs:
        if not directory.is_dir():
            raise InputError(f"no log at {directory}; expected the directory of one log, see docs/logs.md")
        worlds.append(LogDrive(directory.resolve(), reactive, open_loop, own_rig))
    names = [world.name for world in worlds]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]} is given more than once; expected each once")
    return worlds


def _with_stack(
    kind: str,
    world: ScenarioSpec | LogDrive,
    config: StackConfig,
    rig: str | None,
    degradation: str | None,
    strength: float,
) -> tuple[Task, dict[str, Any]]:
    """A task for the stack, `bundle` or `classical`, and facts for the summary.

    All that could be refused is refused here.

    Raises:
        E2EPerceptionError: If bundle, backend, rig or degradation cannot be used.
    """
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine
    from e2e_perception.runtime.pipeline import Pipeline
    from e2e_perception.simulation.degradation import load_degradation

    bundle = load_bundle(config.engine.bundle)
    schedule = None if degradation is None else load_degradation(degradation).scaled(strength)
    engine = configured_engine(bundle, config.engine, log, num_threads=1)
    name = named_rig(config, rig)
    the_rig = None
    if name != OWN_RIG:
        the_rig = _bundle_rig(bundle) if name is None else find_rig(name)
        Pipeline(bundle.network, the_rig, engine, config, str(bundle))
        if schedule is not None:
            schedule.check(the_rig)
    facts = {
        "backend": str(engine.info),
        "rig": OWN_RIG if the_rig is None else the_rig.name,
        "degradation": None if schedule is None else schedule.name,
        "strength": None if schedule is None else strength,
    }
    engine.close()
    stack = Stack(str(bundle.path.resolve()), config, schedule, is_classical=f"{kind}:" == CLASSICAL)
    return Task(world, f"{kind}:{bundle}", "", the_rig, stack), facts


def _bundle_rig(bundle: Bundle) -> Rig:
    """The rig that a bundle was trained for, with cameras that give pictures of the network's size."""
    from e2e_perception.core.rig import Camera
    from e2e_perception.simulation.randomization import network_sized

    sensors = tuple(
        network_sized(sensor, bundle.network) if isinstance(sensor, Camera) else sensor
        for sensor in bundle.rig.sensors
    )
    return bundle.rig.model_copy(update={"sensors": sensors})


def _drive_all(tasks: Sequence[Task], out: Path, workers: int, ray: str | None) -> list[Driven]:
    """Drive all, keeping the pages as they come.

    Raises:
        InputError: If a log cannot be driven so.
    """
    from e2e_perception.cli.drive_results import make_room, write_page

    if ray is None:
        results = fan_out(drive_episode, tasks, workers)
    else:
        results = fan_out_on_ray(drive_episode, tasks, ray, workers)
    driven: list[Driven] = []
    with progress_bar("driving", len(tasks)) as progress:
        for number, found in results:
            if isinstance(found, Lost):
                log(f"warning: {tasks[number].world.name}: {found.why}; it counts as failed")
                found = Driven(not_driven(tasks[number], found.why))
            if found.refused:
                raise InputError(found.refused)
            if not driven:  # the old ones stay until there is something new
                make_room(out)
            write_page(out, found)
            driven.append(replace(found, page=""))
            progress(len(driven), f"{sum(item.outcome.success for item in driven)} succeeded")
    return driven
