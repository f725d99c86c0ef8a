"""What commands are given: the rig that fits a bag."""

from __future__ import annotations

from collections.abc import Mapping

from e2e_perception.cli.console import log
from e2e_perception.core.errors import InputError, RigError
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import load_rig
from e2e_perception.data.bags import match_topics


def rig_for_topics(types: Mapping[str, str]) -> str:
    """Name of the shipped rig whose sensors are all recorded; the one with most sensors if several are.

    A rig whose own topics are there comes before one whose topics can only be matched by type; the latter is
    said, because mounts, and intrinsics without a CameraInfo, are then those of another robot.

    Args:
        types: Type of each topic of the recording.
    Raises:
        RigError: If none fits; the message says what to write.
    """
    names, fitting = [], []
    for path in sorted((config_dir() / "rigs").glob("*.yaml")):
        rig = load_rig(path)
        names.append(path.stem)
        try:
            match = match_topics(types, rig)
        except InputError:
            continue
        if not {sensor.name for sensor in rig.sensors} & set(match.missing):
            by_type = any(sensor.name in match.guessed for sensor in rig.sensors)
            fitting.append((by_type, -len(rig.sensors), path.stem))
    if not fitting:
        raise RigError(
            f"no shipped rig ({', '.join(names) or 'none'}) has all its sensors in this bag, which has "
            f"{', '.join(sorted(types)) or 'none'}; describe the robot in a rig file and give it with --rig"
        )
    by_type, _, name = min(fitting)
    if by_type:
        log(
            f"topics matched by type to rig `{name}`: its mounts are assumed where there is no /tf_static, "
            + "its intrinsics where it has no CameraInfo; --rig names your own"
        )
    return name
