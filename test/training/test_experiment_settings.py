"""Configurations of trainings: the shipped ones, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import run_config

from e2e_perception.core.errors import ConfigError
from e2e_perception.model.losses import LOSSES, OBJECTIVES
from e2e_perception.training.config import (
    LOSS_NAMES,
    LossWeights,
    load_training_config,
)


def test_the_names_of_the_losses_are_the_same_everywhere() -> None:
    assert tuple(LOSSES) == LOSS_NAMES == tuple(LossWeights.model_fields)
    assert {loss.objective for loss in LOSSES.values()} == set(OBJECTIVES)


@pytest.mark.parametrize(
    "name", ["nano", "nano-short", "tiny", "tiny-continued", "tiny-practise", "tiny-practise-more"]
)
def test_shipped_configurations_are_valid(name: str) -> None:
    config = load_training_config(name)
    assert config.size == config.network.size == name.partition("-")[0]


def test_a_training_configuration_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    stage = "stages: [{name: a, steps: 10}]\n"
    path.write_text(stage + "weights: {heat: 2.0}\n")
    assert load_training_config(path).weights.heat == 2.0
    for text, message in (
        ("stepz: 10", "stepz: Extra inputs are not permitted"),
        ("stages: [{name: a, steps: -1}]", "stages.0.steps: Input should be greater than 0"),
        ("bev: {rotation: 2}", "bev.rotation: Input should be less than or equal to 1"),
        ("bev: {flip: 0.5}", "bev.flip: Extra inputs are not permitted"),
        ("stages: []", "stages: Tuple should have at least 1 item"),
        ("stages: [{name: a, steps: 1, losses: {heet: 1}}]", "unknown losses heet"),
        ("stages: [{name: a, steps: 1, exit: {loss: heet, below: 1}}]", "unknown loss 'heet'"),
        (
            "stages: [{name: a, steps: 1, losses: {heat: -1}}]",
            r"stages\.0\.losses\.heat: Input should be greater than or equal to 0",
        ),
        (
            "stages: [{name: a, steps: 1, losses: {heat: .inf}}]",
            r"stages\.0\.losses\.heat: Input should be a finite number",
        ),
        (
            "stages: [{name: a, steps: 1, losses: {heat: .nan}}]",
            r"stages\.0\.losses\.heat: Input should be",
        ),
        (
            "stages: [{name: a, steps: 1}, {name: b, steps: 1, entry: {loss: heat, below: 1}}]",
            r"stages\.1: `entry` without `entry_wait` waits for nothing",
        ),
        (
            "stages: [{name: a, steps: 1}, {name: b, steps: 1, entry_wait: 5}]",
            r"stages\.1: `entry_wait` is 5, and no `entry` says what for",
        ),
        (
            "stages: [{name: a, steps: 1, entry: {loss: heat, below: 1}, entry_wait: 5}]",
            "stage a: no stage before it could wait for its `entry`",
        ),
        ("stages: [{name: a, steps: 1}, {name: a, steps: 1}]", "stages need different names"),
        ("stages: [{name: a, steps: 1, on_policy: {}}]", "cannot drive"),
        (
            f"stages: [{{name: a, steps: 1, losses: {{{', '.join(f'{n}: 0' for n in LOSS_NAMES)}}}}}]",
            "stage a has no loss with a weight above 0",
        ),
        ("stages: [", "is not valid YAML"),
        ("- 1", "expected a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_training_config(path)
    with pytest.raises(ConfigError, match="no training configuration"):
        load_training_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="unknown network size 'huge'"):
        _ = run_config(size="huge").network
