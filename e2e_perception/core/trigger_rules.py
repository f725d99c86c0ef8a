"""Rules that say which moments a robot keeps, each written as one YAML mapping.

    {name: cyclist, when: tracks.cyclist >= 1 and speed > 3, cooldown_s: 60, per_hour: 6, priority: 2}

A condition compares what the stack knows of a frame with numbers; `and` joins comparisons, and two rules
are an or.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from e2e_perception.core.boxes import CLASSES

# What is known of every frame; a number that a frame does not have (a plan's, without a plan) is NaN.
SIGNALS: dict[str, str] = {
    "state": "0 NOMINAL, 1 DEGRADED, 2 MINIMAL_RISK, 3 STOPPED",
    "plan_rejected": "1 where a plan check replaced the plan by a stop",
    "uncertainty": "mean entropy of tracks' scores [nats]",
    "plan_spread": "how far the ends of the plans that were in question are from their mean [m]",
    "plan_change": "farthest that the plan has moved since the frame before [m]",
    "births": "confirmed tracks that were not confirmed in the frame before",
    "losses": "tracks that were confirmed in the frame before and are gone",
    "sensors_lost": "sensors that the frame could not use",
    "speed": "of the robot, backwards negative [m/s]",
    **{f"tracks.{name}": f"confirmed tracks of class {name}" for name in CLASSES},
}
LOST = "lost."  # and a sensor's name: 1 where the frame could not use that one
_COMPARISON = re.compile(r"([a-z_]+(?:\.[A-Za-z0-9_-]+)?)\s*(<=|>=|<|>)\s*(\S+)")


@dataclass(frozen=True)
class Comparison:
    """One signal against one number."""

    signal: str
    operator: str  # <, <=, > or >=
    value: float

    def holds(self, got: float) -> bool:
        """Whether it is true; of NaN nothing is."""
        if self.operator.startswith(">"):
            return got > self.value or (self.operator == ">=" and got == self.value)
        return got < self.value or (self.operator == "<=" and got == self.value)

    def is_over(self, got: float, hysteresis: float) -> bool:
        """Whether it is false by more than a share of its number; of NaN nothing is."""
        margin = hysteresis * abs(self.value)
        relaxed = got + margin if self.operator.startswith(">") else got - margin
        return not math.isnan(got) and not self.holds(relaxed)

    def __str__(self) -> str:
        return f"{self.signal} {self.operator} {self.value:g}"


def comparisons(condition: str) -> tuple[Comparison, ...]:
    """The comparisons of a condition, all of which have to hold.

    Raises:
        ValueError: If one cannot be read, or compares something that is no signal.
    """
    found = []
    for part in re.split(r"\s+and\s+", condition.strip()):
        match = _COMPARISON.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"condition {part!r} is no comparison; expected for example `speed > 3` or "
                "`tracks.cyclist >= 1`, joined by `and`"
            )
        signal, operator, number = match.groups()
        if signal not in SIGNALS and not signal.startswith(LOST):
            raise ValueError(f"unknown signal {signal!r}; known are {', '.join(SIGNALS)} and {LOST}SENSOR")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"condition {part!r} compares with {number!r}, expected a finite number")
        found.append(Comparison(signal, operator, value))
    return tuple(found)


class TriggerRule(BaseModel):
    """When a moment is kept, how often at most, and what it is worth.

    Attributes:
        name: In the names of snippets.
        when: The condition; the rule fires when it begins to hold.
        cooldown_s: After it has fired, it does not fire again for so long [s].
        per_hour, per_day: It fires at most so often within any hour, and any day.
        priority: Where room is short, snippets of less priority go first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    when: str
    cooldown_s: float = Field(30.0, ge=0, le=86400)
    per_hour: int = Field(6, ge=1, le=3600)
    per_day: int = Field(50, ge=1, le=86400)
    priority: int = Field(0, ge=0, le=9)

    @field_validator("when")
    @classmethod
    def _is_condition(cls, value: str) -> str:
        comparisons(value)
        return value


def trigger_rules(lines: Iterable[str]) -> tuple[TriggerRule, ...]:
    """Rules from their YAML.

    Raises:
        ValueError: If one is no mapping, has an unknown key or a wrong value, or a name comes twice.
    """
    rules = tuple(_rule(line) for line in lines)
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several rules are named {', '.join(twice)}; give each a name of its own")
    return rules


def _rule(line: str) -> TriggerRule:
    try:
        document: Any = yaml.safe_load(line)
    except yaml.YAMLError as error:
        raise ValueError(f"rule {line!r} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict):
        raise ValueError(f"rule {line!r} is no mapping; expected `{{name: …, when: …}}`")
    try:
        return TriggerRule.model_validate(document)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise ValueError(
            f"rule {line!r}: {wrong}; a rule has {', '.join(TriggerRule.model_fields)}"
        ) from error
