"""The best checkpoint: which it is, and what cannot take its place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MemoryStore, log_of, run_config

from e2e_perception.training import loop as loop_module
from e2e_perception.training.checkpoint import (
    BEST,
    load_checkpoint,
    model_from_checkpoint,
)
from e2e_perception.training.loop import train
from e2e_perception.training.run_log import StepReport


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path) -> None:
    train([MemoryStore()], tmp_path, run_config(6, promotion={"every": 2, "clips": 2}))
    validations = [line["figures"] for line in log_of(tmp_path) if "figures" in line]
    assert len(validations) == 3
    best = load_checkpoint(tmp_path / "best.safetensors")
    promoted = [n for n, figures in enumerate(validations) if figures["promoted"]]
    assert best.step == 2 * (promoted[-1] + 1)
    assert best.facts["scores"]["mean"] == max(f["score/mean"] for f in validations if f["promoted"])
    model_from_checkpoint(best)


def scores_in_turn(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """What one validation after the other finds: the same for every objective."""
    found = iter(scores)

    def figures(*_: Any) -> dict[str, float]:
        score = next(found)
        away = -math.log(score)
        return {
            "average_precision": score,
            "association_accuracy": score,
            "min_ade_m": 2.0 * away,
            "plan_regret": 2.0 * away,
        }

    monkeypatch.setattr(loop_module, "evaluate_open_loop", figures)


def fails_at(monkeypatch: pytest.MonkeyPatch, call: int, *, dies: bool) -> None:
    """One forward pass gives nonsense, or the process ends there."""
    real = loop_module.rollout
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs)
        if calls == call:
            if dies:
                raise KeyboardInterrupt
            result.losses["heat"] = result.losses["heat"] * torch.nan
        return result

    monkeypatch.setattr(loop_module, "rollout", failing)


def test_a_rollback_does_not_forget_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_in_turn(monkeypatch, 0.8, 0.75, 0.75, 0.75)
    fails_at(monkeypatch, 4, dies=False)
    seen: list[StepReport] = []
    train([MemoryStore()], tmp_path, run_config(6, promotion={"every": 2, "clips": 2}), report=seen.append)
    best = load_checkpoint(tmp_path / BEST)
    assert (best.step, best.facts["scores"]["mean"]) == (2, pytest.approx(0.8))
    assert [report.step for report in seen if report.event] == [2], "back to the validation, not to before it"


def test_a_killed_run_does_not_forget_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_in_turn(monkeypatch, 0.8, 0.75, 0.75, 0.75)
    fails_at(monkeypatch, 4, dies=True)
    config = run_config(6, promotion={"every": 2, "clips": 2})
    with pytest.raises(KeyboardInterrupt):
        train([MemoryStore()], tmp_path, config)
    assert train([MemoryStore()], tmp_path, config) == 6
    best = load_checkpoint(tmp_path / BEST)
    assert (best.step, best.facts["scores"]["mean"]) == (2, pytest.approx(0.8))
