"""Rules as people write them: what is read, and what is refused with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from e2e_perception.core.config import config_from_parameters
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.trigger_rules import SIGNALS, comparisons, trigger_rules


def test_a_rule_is_read_with_its_defaults() -> None:
    (rule,) = trigger_rules(["{name: cyclist, when: tracks.cyclist >= 1 and speed > 3.5, per_hour: 2}"])
    assert (rule.name, rule.per_hour, rule.per_day, rule.cooldown_s, rule.priority) == (
        "cyclist", 2, 50, 30.0, 0,
    )  # fmt: skip
    assert [str(c) for c in comparisons(rule.when)] == ["tracks.cyclist >= 1", "speed > 3.5"]


@pytest.mark.parametrize(
    ("operator", "below", "at", "above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
    ],
)
def test_each_operator_compares_as_it_is_written(operator: str, below: bool, at: bool, above: bool) -> None:
    (comparison,) = comparisons(f"speed {operator} 5")
    assert [comparison.holds(x) for x in (4.9, 5.0, 5.1, math.nan)] == [below, at, above, False]


def test_a_comparison_is_over_only_past_its_limit_by_the_hysteresis() -> None:
    (above,), (below,) = comparisons("speed > 10"), comparisons("speed < 10")
    assert [above.is_over(x, 0.1) for x in (10.1, 9.5, 9.01, 8.9, math.nan)] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert [below.is_over(x, 0.1) for x in (9.9, 10.5, 10.99, 11.1)] == [False, False, False, True]
    (flag,) = comparisons("plan_rejected >= 1")
    assert flag.is_over(0.0, 0.1) and not flag.is_over(1.0, 0.1)
    (some,) = comparisons("births > 0")
    assert some.is_over(0.0, 0.1) and not some.is_over(1.0, 0.1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cyclist", "is no mapping"),
        ("{name: a, when: [", "is not valid YAML"),
        (
            "{name: a, when: speed > 1, every: 3}",
            "every: Extra inputs are not permitted.*a rule has name, when",
        ),
        ("{name: ../../etc, when: speed > 1}", "name: String should match pattern"),
        ("{name: a, when: speed}", "'speed' is no comparison; expected for example"),
        ("{name: a, when: speed = 1}", "is no comparison"),
        ("{name: a, when: sped > 1}", "unknown signal 'sped'; known are state, "),
        ("{name: a, when: tracks.cow >= 1}", "unknown signal 'tracks.cow'"),
        ("{name: a, when: speed > fast}", "compares with 'fast', expected a finite number"),
        ("{name: a, when: speed > nan}", "compares with 'nan', expected a finite number"),
        ("{name: a, when: speed > 1, per_hour: 0}", "per_hour: Input should be greater than or equal to 1"),
        ("{name: a}", "when: Field required"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_with_the_reason(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        config_from_parameters({"triggers.rules": [line]})
    assert "triggers.rules" in str(caught.value)


def test_a_name_stands_for_one_rule() -> None:
    with pytest.raises(ConfigError, match="several rules are named a; give each"):
        config_from_parameters(
            {"triggers.rules": ["{name: a, when: speed > 1}", "{name: a, when: speed < 1}"]}
        )


def test_a_snippet_has_to_be_able_to_hold_one_event() -> None:
    with pytest.raises(ConfigError, match="before_s 40 and after_s 30 are together more than longest_s 60"):
        config_from_parameters({"triggers.before_s": 40.0, "triggers.after_s": 30.0})


def test_the_documentation_lists_every_signal() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in SIGNALS:
        assert f"`{'tracks.CLASS' if name.startswith('tracks.') else name}`" in text, name
