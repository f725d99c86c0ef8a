"""Scenarios are excluded by a rule, not because the expert fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from e2e_perception.evaluation.outcomes import outcome
from e2e_perception.simulation import solvability
from e2e_perception.simulation.driving import drive_policy
from e2e_perception.simulation.solvability import REFERENCE_DRIVERS, solved_by, succeeded
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

EASY = ScenarioSpec("highway+stopped_queue", 0)


def test_what_the_expert_solves_is_solvable() -> None:
    assert solved_by(EASY) == "expert"


def test_the_expert_alone_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = {"expert": lambda world, outline: lambda ego: None, "rules": REFERENCE_DRIVERS["rules"]}
    monkeypatch.setattr(solvability, "REFERENCE_DRIVERS", drivers)
    assert solved_by(EASY) == "rules"


def test_what_nobody_solves_is_not_solvable(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = {"idle": lambda world, outline: lambda ego: None}
    monkeypatch.setattr(solvability, "REFERENCE_DRIVERS", drivers)
    assert solved_by(EASY) is None


def test_success_needs_the_goal_the_road_and_nobody_touched() -> None:
    record = drive_policy(TrafficWorld(EASY), "expert")
    assert succeeded(record)
    assert outcome(record).success
    for spoilt in (
        replace(record, goal_s=record.progress_T.max() + 1.0),
        replace(record, failure="no plan for 1.0 s"),
        replace(record, off_road_T=record.off_road_T | True),
        drive_policy(TrafficWorld(EASY), "blind"),
    ):
        # The simulator may not import the metrics; the two have to agree.
        assert succeeded(spoilt) is outcome(spoilt).success is False
