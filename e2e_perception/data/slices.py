"""What a clip or a label is a case of: kinds by which a dataset is counted and a network's recall is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2e_perception.data.splits import FIRST_STAMP_NS, LAST_STAMP_NS, is_clocked

DISTANCES = (10.0, 20.0, 40.0, 80.0)  # [m] upper ends of bins
SPEEDS = (0.5, 5.0, 10.0, 20.0)  # [m/s]
HOURS = 6  # in a bin of the day
NOT_KNOWN = "not known"
_RECORDED = ("bag", "log")  # what a scenario's name begins with when nobody made it up


def clip_slices(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of a clip.

    Args:
        row: Of the index.
        facts: Of the shard; empty where there are none.
    Returns:
        By `speed` (of the robot), `weather`, `time of day`, `scenario` (its family) and `place`.
    """
    speed = row.get("speed_mean_mps")
    return {
        "speed": NOT_KNOWN if speed is None else in_bin(float(speed), SPEEDS, "m/s"),
        "weather": str(row.get("weather") or NOT_KNOWN),
        "time of day": time_of_day(int(row["first_stamp_ns"])) if is_clocked(facts) else NOT_KNOWN,
        "scenario": scenario_family(str(row["scenario"])),
        "place": str(facts.get("place") or NOT_KNOWN),
    }


def time_of_day(stamp_ns: int) -> str:
    """Quarter of the day in UTC, whatever the sun says there; not known of a clock that nobody set."""
    if not FIRST_STAMP_NS <= stamp_ns < LAST_STAMP_NS:
        return NOT_KNOWN
    low = stamp_ns // (3600 * 10**9) % 24 // HOURS * HOURS
    return f"{low:02d} – {low + HOURS:02d} h UTC"


def scenario_family(scenario: str) -> str:
    """The kind of a scenario without its seed; `recorded` for bags and logs."""
    kind = scenario.partition(":")[0]
    return "recorded" if kind in _RECORDED else scenario.partition("/")[0] or NOT_KNOWN


def in_bin(value: float, ends: tuple[float, ...], unit: str) -> str:
    """The bin of a value, in words."""
    low = 0.0
    for end in ends:
        if value < end:
            return f"{low:g} – {end:g} {unit}"
        low = end
    return f"from {low:g} {unit}"
