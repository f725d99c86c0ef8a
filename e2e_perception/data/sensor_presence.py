"""Which sensors a recording lacks, all along or in some of its clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from e2e_perception.data.label_checks import Severity


def absent_sensors(
    rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> Iterator[tuple[Severity, str, str]]:
    """Sensors that are there in no frame of a clip.

    Args:
        rows: Of the shard's index; those that do not say which sensors were there are left out.
        facts: Of the shard, for its rig.
    Yields:
        Severity, message, and the first clip without the sensor. That the network has a sensor which the
        rig has not is `info`.
    """
    told = [row for row in rows if row.get("sensor_validity")]
    shares = {str(row["clip_id"]): dict(row["sensor_validity"]) for row in told}
    clips = f"of {len(shares)} clips"
    blind = [clip_id for clip_id, share in shares.items() if not any(share.values())]
    if blind:
        yield (
            "warning",
            f"no sensor at all in {len(blind)} {clips}: detection learns nothing from them",
            blind[0],
        )
    mounted = _rig_sensors(facts)
    for name in sorted({name for share in shares.values() for name in share}):
        absent = [clip_id for clip_id, share in shares.items() if not share.get(name)]
        if not absent:
            continue
        if mounted is not None and name not in mounted:
            yield "info", f"{name}: the rig has no such sensor; the network goes without it", absent[0]
        else:
            yield "warning", f"{name}: in no frame of {len(absent)} {clips}", absent[0]


def _rig_sensors(facts: Mapping[str, Any]) -> set[str] | None:
    """Names of the sensors that the recording car has; None where the shard does not say."""
    for key in ("recipe", "made_from"):
        recipe = facts.get(key)
        rig = recipe.get("rig") if isinstance(recipe, Mapping) else None
        if isinstance(rig, Mapping):
            return {str(sensor["name"]) for sensor in rig.get("sensors", [])}
    return None
