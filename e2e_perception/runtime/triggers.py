"""Rules against frames: which moments are worth keeping.

A rule fires when its condition begins to hold, not while it holds: after it has fired, or at the start, the
condition first has to be over, by the hysteresis. An occasion within the cooldown or beyond the budget passes
and is counted; it does not come later.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from e2e_perception.core.config import TriggersConfig
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.snippets import TriggerEvent
from e2e_perception.core.trigger_rules import LOST, Comparison, TriggerRule, comparisons, trigger_rules

HOUR_NS, DAY_NS = 3600 * 10**9, 86400 * 10**9


@dataclass
class _Watched:
    rule: TriggerRule
    condition: tuple[Comparison, ...]
    armed: bool = False
    fired_ns: deque[int] = field(default_factory=deque)  # within the last day


class Triggers:
    """Judges frames one after the other.

    Attributes:
        passed: Occasions that were not taken, by `rule: cause`.
    """

    def __init__(self, config: TriggersConfig, sensors: Iterable[str]) -> None:
        """Read the rules.

        Args:
            config: Rules and hysteresis.
            sensors: Names of the rig's sensors.
        Raises:
            ConfigError: If a rule is about a sensor that the rig does not have, or there is no directory.
        """
        if config.rules and not config.directory:
            raise ConfigError(
                "there are trigger rules, but no directory for snippets; set triggers.directory"
            )
        self._hysteresis = config.hysteresis
        self._rules = [_Watched(rule, comparisons(rule.when)) for rule in trigger_rules(config.rules)]
        self.passed: Counter[str] = Counter()
        names = list(sensors)
        for watched in self._rules:
            for comparison in watched.condition:
                name = comparison.signal.removeprefix(LOST)
                if comparison.signal.startswith(LOST) and name not in names:
                    raise ConfigError(
                        f"trigger rule {watched.rule.name!r} is about sensor {name!r}; the rig has "
                        f"{', '.join(names)}"
                    )

    def remember(self, fired_ns: Mapping[str, Iterable[int]]) -> None:
        """Count what was fired before this start against cooldowns and budgets, by rule [ns]."""
        for watched in self._rules:
            watched.fired_ns = deque(sorted([*watched.fired_ns, *fired_ns.get(watched.rule.name, ())]))

    def judge(self, signals: Mapping[str, float], stamp_ns: int, now_ns: int) -> list[TriggerEvent]:
        """The rules that fire at a frame.

        Args:
            signals: Of the frame, see `SignalReader`.
            stamp_ns: Of the frame [ns].
            now_ns: Present time [ns].
        """
        events = []
        for watched in self._rules:
            found = [(c, signals.get(c.signal, math.nan)) for c in watched.condition]
            if not all(c.holds(got) for c, got in found):
                watched.armed |= any(c.is_over(got, self._hysteresis) for c, got in found)
                continue
            if not watched.armed:
                continue
            watched.armed = False
            cause = _why_not(watched, now_ns)
            if cause:
                self.passed[f"{watched.rule.name}: {cause}"] += 1
                continue
            watched.fired_ns.append(now_ns)
            events.append(
                TriggerEvent(
                    rule=watched.rule.name,
                    priority=watched.rule.priority,
                    reason=", ".join(
                        f"{c.signal} is {got:.4g}, {c.operator} {c.value:g}" for c, got in found
                    ),
                    stamp_ns=stamp_ns,
                    now_ns=now_ns,
                    signals={name: value for name, value in signals.items() if math.isfinite(value)},
                )
            )
        return events


def _why_not(watched: _Watched, now_ns: int) -> str:
    """Why a rule may not fire now; empty if it may."""
    # What lies ahead was fired before the clock was set back; of that time nothing is known.
    fired = watched.fired_ns = deque(t for t in watched.fired_ns if now_ns - DAY_NS < t <= now_ns)
    rule = watched.rule
    if fired and now_ns - fired[-1] < rule.cooldown_s * 1e9:
        return "cooldown"
    if sum(t > now_ns - HOUR_NS for t in fired) >= rule.per_hour:
        return "hourly budget"
    if len(fired) >= rule.per_day:
        return "daily budget"
    return ""
