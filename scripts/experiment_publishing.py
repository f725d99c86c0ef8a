"""What an experiment made, kept where others can take it from: networks, what was measured of them, facts.

    DIR/
      joint-0.safetensors                 averaged weights, what they saw, the command behind them
      evaluations/joint-0/, controls/…    as in the experiment's directory, pages left out
      clips/clean.json, runs/joint-0.json facts of what is too large to keep
      commands.json                       step -> command, for what was measured

A network stands for its training and for the clips that it saw. What was measured stands for itself and for
all that leads to it, unless the network that it would stand beside is another one: trained here, or still to
be trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_facts import PUBLISHED, datasets_of, training_of
from experiment_steps import Step, record_of, same_recipe

from e2e_perception.core.errors import ConfigError

COMMANDS = "commands.json"
MEASURED = ("evaluate", "drive")
LEFT_OUT = {".html"}


def publish(steps: Sequence[Step], out: Path, directory: Path) -> list[Path]:
    """Write what is finished; what another `out` published stays.

    Returns:
        The files.
    Raises:
        ConfigError: If something was made by another command.
    """
    written: list[Path] = []
    commands = _commands(directory)
    for step in steps:
        if step.kind in ("train", *MEASURED) and _is_done(step, out):
            if step.kind == "train":
                written += [_publish_network(step, directory), _publish_training(step, out, directory)]
            else:
                written += _copy(step, out, directory)
                commands[step.name] = step.recipe
    if not written:
        return []
    for name, facts in datasets_of(out).items():
        written.append(_write(directory / "clips" / f"{name}.json", facts))
    if commands:
        written.append(_write(directory / COMMANDS, dict(sorted(commands.items()))))
    return written


def adopt(steps: Sequence[Step], out: Path, directory: Path, *, measured: bool = True) -> list[Step]:
    """Take what is published, where it was not made here.

    Args:
        steps: Of the whole experiment.
        out: Its directory.
        directory: Where it is published.
        measured: Whether to take what was measured, or networks alone.
    Returns:
        The steps that are still of use: without those that were measured elsewhere and what only they need.
    Raises:
        ConfigError: If there is nothing, or something was made by another command than the experiment's.
    """
    networks = [step for step in steps if step.kind == "train" and _network(step, directory).is_file()]
    commands = _commands(directory) if measured else {}
    if not networks and not commands:
        raise ConfigError(f"nothing of an experiment in {directory}; expected files like joint-0.safetensors")
    for step in networks:
        if not step.makes.exists():
            _adopt_network(step, out, directory)
    for room in ("clips", "runs"):
        for path in sorted((directory / room).glob("*.json")):
            _write(out / PUBLISHED / room / path.name, json.loads(path.read_text(encoding="utf-8")))
    foreign = {step.name for step in steps if step.kind == "train" and not _is_adopted(step, out)}
    elsewhere: set[str] = set()
    for step in steps:
        networks_of = {need.replace("export/", "train/") for need in step.after}
        if step.kind not in MEASURED or step.name not in commands or networks_of & foreign:
            continue
        if _is_done(step, out) and not _is_adopted(step, out):
            continue
        _check(step, commands[step.name], f"{directory}: {step.name}", "name another directory")
        _copy(step, directory, out, base=out)
        _mark_adopted(step, out)
        elsewhere.add(step.name)
    return _of_use([step for step in steps if step.name not in elsewhere], bool(elsewhere))


def _of_use(steps: Sequence[Step], pruned: bool) -> list[Step]:
    """Without trainings, exports and clips that nothing needs any more."""
    if not pruned:
        return list(steps)
    needed: set[str] = set()
    for step in reversed(steps):  # what comes after has its needs before it
        if step.kind in (*MEASURED, "compare") or step.name in needed:
            needed |= {step.name, *step.after}
    return [step for step in steps if step.name in needed]


def _label(step: Step) -> str:
    """Of whom a step measures something: `joint-0`."""
    return step.name.split("/")[1]


def _is_done(step: Step, out: Path) -> bool:
    """Whether its product is there, made by its command."""
    record = record_of(step, out)
    if not step.makes.exists() or not record.exists():
        return False
    _check(
        step,
        record.read_text(encoding="utf-8"),
        f"{step.name}: {step.makes}",
        "remove it, or use another --out",
    )
    return True


def _check(step: Step, made_by: Any, what: str, remedy: str) -> None:
    if not isinstance(made_by, str) or not same_recipe(made_by, step.recipe):
        raise ConfigError(
            f"{what} was made by another command than {step.name}; {remedy}\n"
            f"  made by:  {made_by}\n  expected: {step.recipe}"
        )


def _mark_adopted(step: Step, out: Path) -> None:
    """Write down what made a product, and that it was not made here."""
    record_of(step, out).parent.mkdir(parents=True, exist_ok=True)
    record_of(step, out).write_text(step.recipe, encoding="utf-8")
    record_of(step, out).with_suffix(".adopted").touch()


def _is_adopted(step: Step, out: Path) -> bool:
    return record_of(step, out).with_suffix(".adopted").exists()


def _network(step: Step, directory: Path) -> Path:
    return directory / f"{step.name.removeprefix('train/')}.safetensors"


def _publish_network(step: Step, directory: Path) -> Path:
    from e2e_perception.training.checkpoint import load_checkpoint, write_checkpoint

    checkpoint = load_checkpoint(step.makes.parent)
    average = {f"average/{name}": value for name, value in checkpoint.part("average").items()}
    write_checkpoint(_network(step, directory), average, {**checkpoint.facts, "recipe": step.recipe})
    return _network(step, directory)


def _publish_training(step: Step, out: Path, directory: Path) -> Path:
    label = _label(step)
    return _write(directory / "runs" / f"{label}.json", training_of(out, label))


def _adopt_network(step: Step, out: Path, directory: Path) -> None:
    from e2e_perception.training.checkpoint import STATE, load_checkpoint, write_checkpoint

    path = _network(step, directory)
    network = load_checkpoint(path)
    _check(step, network.facts.get("recipe"), str(path), "move it away to train anew")
    write_checkpoint(step.makes.parent / STATE, network.tensors, network.facts)
    _mark_adopted(step, out)
    step.makes.touch()


def _copy(step: Step, source: Path, target: Path, *, base: Path | None = None) -> list[Path]:
    """Copy what a step left, to the same place under `target`; `base` is the experiment's own directory."""
    place = step.makes.relative_to(base or source)
    # A drive has a directory of its own; what else is measured lies beside other things.
    found = (source / place.parent).glob("*" if step.kind == "drive" else f"{place.stem}.*")
    written = []
    for path in sorted(path for path in found if path.is_file() and path.suffix not in LEFT_OUT):
        copy = target / place.parent / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        written.append(copy)
    return written


def _commands(directory: Path) -> dict[str, str]:
    path = directory / COMMANDS
    if not path.is_file():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
