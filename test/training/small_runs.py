"""Runs of a small network on clips in memory, for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.training.config import TrainingConfig


class MemoryStore:
    """Clips in memory, with the interface of a clip store."""

    def __init__(self, num_clips: int = 6, *, difficulty: float = 0.0) -> None:
        self.path = Path("memory")
        self.digest = f"memory-{num_clips}-{difficulty}"
        self.clips = [synthetic_clip(seed=i, num_frames=3) for i in range(num_clips)]
        self.rows = [{"scenario": f"made/{i}@{difficulty}"} for i in range(num_clips)]

    def labelled(self, split: str) -> np.ndarray:
        return self.indices(split)

    def indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.clips)) if split == "train" else np.arange(min(2, len(self.clips)))

    def read(self, index: int) -> Clip:
        return self.clips[index]

    def all(self) -> list[tuple[Any, int]]:
        return [(self, i) for i in range(len(self.clips))]


def stages(*steps: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"name": f"stage-{i}", "steps": n, "boost": [1.0, 0.0], **changes} for i, n in enumerate(steps)]


def run_config(steps: int = 8, **changes: Any) -> TrainingConfig:
    values = {
        "size": "small_test",
        "batch_clips": 2,
        "warmup_steps": 2,
        "checkpoint_every": 100,
        "promotion": {"clips": 2},
        "stages": stages(steps),
    }
    return TrainingConfig.model_validate({**values, **changes})


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
