"""Steps of an experiment: what is left of them, and doing it, several side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e_perception.cli.console import log
from e2e_perception.core.errors import ConfigError
from e2e_perception.training.config import TrainingConfig

SETTINGS = " # "  # in a recipe between a command and the training configuration that it names, as JSON


@dataclass
class Step:
    """One thing to do.

    Attributes:
        name: For logs and dependencies.
        kind: `clips`, `train`, `export`, `evaluate`, `drive` or `compare`, for `--only`.
        makes: What is there afterwards.
        run: Does it.
        after: Names of steps that have to be done first.
        recipe: What it does, in words that differ where the product would.
    """

    name: str
    kind: str
    makes: Path
    run: Callable[[], None]
    after: tuple[str, ...] = ()
    recipe: str = ""
    seconds: float = field(default=0.0)


def record_of(step: Step, out: Path) -> Path:
    """Where it is written down what made the product of a step."""
    return out / "steps" / f"{step.name.replace('/', '-')}.txt"


def record_seconds(step: Step, out: Path) -> Path:
    """How long each attempt at a step took [s], a line each; none of those that were killed."""
    return record_of(step, out).with_suffix(".seconds")


def same_recipe(made_by: str, expected: str) -> bool:
    """Whether two recipes make the same.

    Settings that came up since have to be at their defaults, by which everything is as it was before.
    """
    (old_words, _, old), (new_words, _, new) = made_by.partition(SETTINGS), expected.partition(SETTINGS)
    if old_words != new_words or bool(old) != bool(new):
        return False
    if not old:
        return True
    try:
        config, before = TrainingConfig.model_validate_json(new), json.loads(old)
    except ValueError:  # a damaged record
        return False
    named = config.model_dump(mode="json", exclude_defaults=True)
    return _holds(before, config.model_dump(mode="json")) and _knows(before, named)


def _holds(old: Any, new: Any) -> bool:
    """Whether everything in `old` is in `new`, and the same."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return all(key in new and _holds(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_holds, old, new))
    return bool(old == new)


def _knows(old: Any, named: Any) -> bool:
    """Whether `old` has every key of `named`."""
    if isinstance(old, Mapping) and isinstance(named, Mapping):
        return all(key in old and _knows(old[key], value) for key, value in named.items())
    if isinstance(old, list) and isinstance(named, list):
        return all(map(_knows, old, named))
    return True


def left_to_do(steps: Sequence[Step], out: Path) -> list[Step]:
    """Steps without a product, or whose product is older than one that it is made from.

    Raises:
        ConfigError: If a product was made by another command.
    """
    by_name = {step.name: step for step in steps}
    left: dict[str, Step] = {}
    for step in steps:  # what comes after has its needs before it
        if not step.makes.exists():
            left[step.name] = step
            continue
        record = record_of(step, out)
        made_by = record.read_text(encoding="utf-8") if record.exists() else step.recipe
        if not same_recipe(made_by, step.recipe):
            raise ConfigError(
                f"{step.name}: {step.makes} was made by another command; remove it, or use another --out\n"
                f"  made by:  {made_by}\n  expected: {step.recipe}"
            )
        made = step.makes.stat().st_mtime
        newer = [
            name
            for name in step.after
            if name in left or (name in by_name and by_name[name].makes.stat().st_mtime > made)
        ]
        if newer and step.kind not in ("clips", "train"):
            log(f"{step.name}: again, for {newer[0]} is newer")
            left[step.name] = step
    # Clips are for trainings; where all of those are done, nobody needs them.
    wanted = {name for step in left.values() for name in step.after}
    asked_for = {name for step in steps for name in step.after}
    return [
        step
        for step in left.values()
        if step.kind != "clips" or step.name in wanted or step.name not in asked_for
    ]


def work_off(steps: Sequence[Step], jobs: int, out: Path) -> list[str]:
    """Do all steps, several side by side; one that fails does not stop those that do not need it.

    Returns:
        Names of the steps that failed or could not begin.
    Raises:
        ConfigError: If something is there that was made by another command.
    """
    waiting = left_to_do(steps, out)
    done = {step.name for step in steps} - {step.name for step in waiting}
    known = {step.name for step in steps}
    (out / "steps").mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    running: dict[Future[None], Step] = {}

    def timed(step: Step) -> None:
        if not step.makes.parent.exists():  # nothing to go on with: earlier attempts are of something else
            record_seconds(step, out).unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            step.run()
        finally:
            step.seconds = time.perf_counter() - started
            with record_seconds(step, out).open("a", encoding="utf-8") as attempts:
                attempts.write(f"{step.seconds:.1f}\n")
        record_of(step, out).write_text(step.recipe, encoding="utf-8")

    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for step in list(waiting):
                needs = [name for name in step.after if name in known]
                if any(name in failed for name in needs):
                    waiting.remove(step)
                    failed.append(step.name)
                elif len(running) < jobs and all(name in done for name in needs):
                    waiting.remove(step)
                    log(f"{step.name} …")
                    running[pool.submit(timed, step)] = step
            if not running:
                failed += [step.name for step in waiting]
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                error = future.exception()
                if error is None:
                    done.add(step.name)
                    log(f"{step.name}: done in {step.seconds / 60.0:.1f} min")
                else:
                    failed.append(step.name)
                    log(f"{step.name}: {error}")
    return failed
