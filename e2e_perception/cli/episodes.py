"""One episode of `drive`, as a worker drives it: what is sent there, and what comes back."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from e2e_perception.cli.console import log
from e2e_perception.core.config import EngineConfig, StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.errors import E2EPerceptionError
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.rig import Rig
from e2e_perception.core.trajectories import Plan

if TYPE_CHECKING:
    from e2e_perception.deploy.bundle import Bundle
    from e2e_perception.deploy.engines import InferenceEngine
    from e2e_perception.evaluation.outcomes import Outcome
    from e2e_perception.simulation.degradation import DegradationSchedule
    from e2e_perception.simulation.traffic_world import ScenarioSpec
    from e2e_perception.simulation.world import World

OWN_RIG = "log"  # for `--rig`: the recording car's


@dataclass(frozen=True)
class LogDrive:
    """A recorded log as world.

    Attributes:
        directory: Of the log.
        reactive: Whether the others slow down for the robot.
        open_loop: Whether the robot drives as the recording car did.
        own_rig: Whether it carries what the recording car did.
    """

    directory: Path
    reactive: bool = False
    open_loop: bool = False
    own_rig: bool = False

    @property
    def name(self) -> str:
        """As `LogWorld` names itself."""
        return f"log:{self.directory.resolve().name}"


@dataclass(frozen=True)
class Stack:
    """The stack that drives, for `bundle:PATH`, or `classical:PATH`: then the network only detects."""

    bundle: str
    config: StackConfig
    degradation: DegradationSchedule | None
    is_classical: bool = False


@dataclass(frozen=True)
class Task:
    """One episode to drive.

    Attributes:
        world: What is made into a world.
        policy: One of `SIMPLE_POLICIES`, or `bundle:NAME DIGEST` or `classical:NAME DIGEST`, as records
            name it.
        views: `failures`, `all` or `none`.
        rig: The robot; None: a car of the usual size without sensors, or `LogDrive.own_rig`.
        stack: For `bundle:` and `classical:`, else None.
    """

    world: ScenarioSpec | LogDrive
    policy: str
    views: str
    rig: Rig | None = None
    stack: Stack | None = None


@dataclass(frozen=True)
class Driven:
    """What came of it.

    Attributes:
        outcome: Its row.
        page: The view, HTML; empty if none was wanted.
        cpu_s: Spent by the worker [s].
        open_loop: Figures of the plans against the recorded drive; None for closed loop.
        refused: Why a log cannot be driven so; the user has to mend it.
    """

    outcome: Outcome
    page: str = ""
    cpu_s: float = 0.0
    open_loop: dict[str, float | int] | None = None
    refused: str = ""


def drive_episode(task: Task) -> Driven:
    """Drive one episode and judge it; whatever goes wrong is a failed episode, so that a suite goes on."""
    started = time.process_time()
    try:
        record, figures = _drive(task)
        driven = judge(task, record, figures)
    except Exception as error:  # noqa: BLE001 - the reason is kept in the outcome
        why = " ".join(f"{type(error).__name__}: {error}".split())
        mendable = isinstance(error, E2EPerceptionError) and isinstance(task.world, LogDrive)
        return Driven(
            not_driven(task, why), cpu_s=time.process_time() - started, refused=str(error) if mendable else ""
        )
    return Driven(driven.outcome, driven.page, time.process_time() - started, driven.open_loop)


def judge(task: Task, record: EpisodeRecord, figures: dict[str, float | int] | None = None) -> Driven:
    """The outcome of a drive, and its view if one is wanted."""
    from e2e_perception.evaluation.episode_view import write_episode_view
    from e2e_perception.evaluation.outcomes import outcome

    found = outcome(record)
    page = ""
    if task.views == "all" or (task.views == "failures" and not found.success):
        with tempfile.TemporaryDirectory() as folder:
            page = write_episode_view(Path(folder) / "view.html", record).read_text(encoding="utf-8")
    return Driven(found, page, open_loop=figures)


def not_driven(task: Task, why: str) -> Outcome:
    """The outcome of an episode of which there is no record: a policy failure without any figure.

    Args:
        task: What was to be driven.
        why: For people.
    """
    from e2e_perception.evaluation.outcomes import Outcome

    kinds = get_type_hints(Outcome)
    nothing: dict[Any, Any] = {str: "", bool: False, int: 0, float: math.nan}  # means leave NaN out
    row: dict[str, Any] = {field.name: nothing.get(kinds[field.name]) for field in fields(Outcome)}
    if isinstance(task.world, LogDrive):
        row |= {"family": "log"}
    else:
        spec = task.world
        row |= {"family": spec.family, "seed": spec.seed, "difficulty": float(spec.difficulty)}
    row |= {"scenario": task.world.name, "policy": task.policy, "progress": 0.0}
    return Outcome(**row | {"policy_failure": True, "failure": why})


def _drive(task: Task) -> tuple[EpisodeRecord, dict[str, float | int] | None]:
    from e2e_perception.simulation.classical import ClassicalConfig
    from e2e_perception.simulation.closed_loop import Robot
    from e2e_perception.simulation.driving import drive_policy, drive_stack

    world, rig = _world(task)
    open_loop = isinstance(task.world, LogDrive) and task.world.open_loop
    results: list[FrameResult] = []
    if task.stack is None:
        robot = None if rig is None else Robot(rig.ego_length, rig.ego_width, rig.ego_center_x)
        record = drive_policy(
            world,
            task.policy,
            robot=robot,
            open_loop=open_loop,
            on_plan=lambda plan: results.append(_result(plan)),
        )
    else:
        assert rig is not None
        bundle, engine = _engine(task.stack.bundle, task.stack.config.engine)
        record = drive_stack(
            world,
            bundle.network,
            engine,
            rig,
            task.stack.config,
            str(bundle),
            degradation=task.stack.degradation,
            open_loop=open_loop,
            on_result=lambda _, result: results.append(result),
            classical=ClassicalConfig() if task.stack.is_classical else None,
        )
    if not open_loop:
        return record, None
    from e2e_perception.evaluation.on_bag import plan_figures

    return record, plan_figures(results, _driven_by_the_log(world))


def _world(task: Task) -> tuple[World, Rig | None]:
    if not isinstance(task.world, LogDrive):
        from e2e_perception.simulation.traffic_world import TrafficWorld

        return TrafficWorld(task.world), task.rig
    from e2e_perception.simulation.argoverse import log_rig, read_log
    from e2e_perception.simulation.log_world import LogWorld

    log = read_log(task.world.directory)
    rig = log_rig(log) if task.world.own_rig else task.rig
    return LogWorld(log, reactive=task.world.reactive, rig=rig), rig


def _driven_by_the_log(world: Any) -> list[EgoState]:
    from e2e_perception.simulation.world import STEP_NS

    return [world.logged_ego(stamp) for stamp in range(world.start_ns, world.end_ns + 1, STEP_NS // 5)]


def _result(plan: Plan) -> FrameResult:
    """A plan without a stack behind it, for figures that are about the plan alone."""
    health = Health(SafetyState.NOMINAL, (), (), "", "", 0, 0, {}, {})
    return FrameResult(plan.stamp_ns, None, plan, None, health)


@lru_cache(maxsize=1)
def _engine(bundle: str, config: EngineConfig) -> tuple[Bundle, InferenceEngine]:
    """Loaded once per worker; every episode resets its state."""
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine

    loaded = load_bundle(bundle)
    return loaded, configured_engine(loaded, config, log, num_threads=1)
