"""Where a run stands: conditions, learning rate, and the order of clips as a function of the seed alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_perception.training.config import Condition, TrainingConfig
from e2e_perception.training.schedule import Order, Progress, difficulty_of, learning_rate


def config(**changes: Any) -> TrainingConfig:
    stages = [{"name": "a", "steps": 10}, {"name": "b", "steps": 30}]
    return TrainingConfig.model_validate({"stages": stages, "warmup_steps": 4, "batch_clips": 3, **changes})


def test_the_learning_rate_rises_falls_and_never_rises_again() -> None:
    progress, run, rates = Progress(), config(), []
    for stage, steps in enumerate((10, 30)):
        progress.stage = stage
        for progress.stage_step in range(steps):
            rates.append(learning_rate(progress, run))
            progress.step += 1
    assert rates[0] == pytest.approx(0.25 * run.learning_rate, rel=0.01)
    assert max(rates) == rates[3]
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))
    assert rates[-1] == pytest.approx(0.02 * run.learning_rate, rel=0.2)


def test_a_stage_that_ended_early_counts_as_whole() -> None:
    progress = Progress(stage=1)
    assert progress.share_done(config()) == 0.25
    progress.stage_step = 300  # it waited long
    assert progress.share_done(config()) == 1.0


def test_conditions_look_at_running_means_and_not_before_their_time() -> None:
    progress, condition = Progress(), Condition(loss="heat", below=1.0, after=5)
    assert not progress.holds(condition), "nothing is known yet"
    progress.observe({"heat": 3.0})
    for progress.stage_step in range(1, 300):
        progress.observe({"heat": 0.5})
        if progress.stage_step < 5:
            assert not progress.holds(condition)
    assert progress.means["heat"] == pytest.approx(0.5, abs=0.02)
    assert progress.holds(condition)
    progress.next_stage()
    progress.stage_step = 5
    assert not progress.holds(condition), "the next stage has losses of its own"


@given(num_clips=st.integers(1, 9), first=st.integers(0, 12), world=st.integers(1, 3))
def test_batches_from_any_point_on_are_the_same_and_processes_share_them(
    num_clips: int, first: int, world: int
) -> None:
    run = config()
    whole = list(islice(iter(Order(num_clips, run, 0, 0)), 20 * world))
    for rank in range(world):
        own = list(islice(iter(Order(num_clips, run, 0, first, rank=rank, world=world)), 3))
        assert own == [whole[(first + n) * world + rank] for n in range(3)]
    flat = [position for batch in whole for position in batch]
    assert len(set(flat)) == len(flat), "a position means one augmentation and comes once"
    for epoch in range(len(flat) // num_clips):
        seen = [position % num_clips for position in flat[epoch * num_clips : (epoch + 1) * num_clips]]
        assert sorted(seen) == list(range(num_clips)), "every clip comes by once an epoch"
    assert whole != list(islice(iter(Order(num_clips, run, 1, 0)), 20 * world)) or num_clips == 1


def test_the_difficulty_is_in_the_scenarios_name() -> None:
    assert difficulty_of({"scenario": "highway+cut_in/1004000@0.6"}) == 0.6
    assert difficulty_of({"scenario": "braking_lead/7"}) == 0.0
