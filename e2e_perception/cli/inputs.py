"""What commands are given: rigs by name or file, and the rig that fits a bag."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from e2e_perception.core.errors import RigError
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import Rig, load_rig

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


def shipped_rigs() -> dict[str, Path]:
    """Rig files in `config/rigs`, by name."""
    return {path.stem: path for path in sorted((config_dir() / "rigs").glob("*.yaml"))}


def resolve_rig(path_or_name: str | Path) -> Rig:
    """A rig given as a file, or by the name of a shipped one.

    Raises:
        RigError: If there is none, or the file does not describe one.
    """
    text = str(path_or_name)
    path = Path(text)
    if path.is_file():
        return load_rig(path)
    shipped = shipped_rigs()
    if _NAME.match(text) and text in shipped:
        return load_rig(shipped[text])
    raise RigError(
        f"no rig {text!r}: neither a file nor one of the shipped rigs ({', '.join(shipped) or 'none'})"
    )


def rig_for_topics(topics: Iterable[str]) -> str:
    """Name of the shipped rig whose sensors are all recorded; the one with most sensors if several are.

    Raises:
        RigError: If none fits; the message says what to write.
    """
    present = set(topics)
    fitting = []
    for name, path in shipped_rigs().items():
        rig = load_rig(path)
        if all(sensor.topic in present for sensor in rig.sensors):
            fitting.append((len(rig.sensors), name))
    if not fitting:
        raise RigError(
            f"no shipped rig ({', '.join(shipped_rigs()) or 'none'}) has all its topics in this bag, which has "
            f"{', '.join(sorted(present)) or 'none'}; describe the robot in a rig file and give it with --rig"
        )
    most = max(count for count, _ in fitting)
    return min(name for count, name in fitting if count == most)
