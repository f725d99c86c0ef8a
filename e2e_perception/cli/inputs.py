"""What commands are given: the rig that fits a bag."""

from __future__ import annotations

from collections.abc import Iterable

from e2e_perception.core.errors import RigError
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import load_rig


def rig_for_topics(topics: Iterable[str]) -> str:
    """Name of the shipped rig whose sensors are all recorded; the one with most sensors if several are.

    Args:
        topics: Of the recording.
    Raises:
        RigError: If none fits; the message says what to write.
    """
    present = set(topics)
    names = []
    fitting = []
    for path in sorted((config_dir() / "rigs").glob("*.yaml")):
        rig = load_rig(path)
        names.append(path.stem)
        if all(sensor.topic in present for sensor in rig.sensors):
            fitting.append((-len(rig.sensors), path.stem))
    if not fitting:
        raise RigError(
            f"no shipped rig ({', '.join(names) or 'none'}) has all its topics in this bag, which has "
            f"{', '.join(sorted(present)) or 'none'}; describe the robot in a rig file and give it with --rig"
        )
    return min(fitting)[1]
