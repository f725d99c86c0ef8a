"""Where a run stands in its curriculum, and which clips come next: functions of (seed, progress) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.training.config import Condition, Stage, TrainingConfig

MEAN_DECAY = 0.98  # of the running means that conditions look at


@dataclass
class Progress:
    """Everything about a run that is neither a weight nor an optimiser's moment.

    Attributes:
        step: Optimiser steps done in all.
        stage, stage_step: The stage, and steps done in it.
        skipped: Batches left out after spikes, in this stage.
        means: Running mean of each loss and of the total in this stage, by name.
        rollbacks: In a row.
        best: Promoted scores by objective, see `promotion`.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    skipped: int = 0
    means: dict[str, float] = field(default_factory=dict)
    rollbacks: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def observe(self, losses: dict[str, float]) -> None:
        """Take the losses of a good step into the running means."""
        for name, value in losses.items():
            before = self.means.get(name, value)
            self.means[name] = MEAN_DECAY * before + (1.0 - MEAN_DECAY) * value

    def holds(self, condition: Condition) -> bool:
        """Whether a condition is met now."""
        mean = self.means.get(condition.loss)
        return mean is not None and self.stage_step >= condition.after and mean < condition.below

    def stage_is_over(self, stages: Sequence[Stage]) -> bool:
        """Whether the current stage has had its steps, or may end early, and the next may begin."""
        stage = stages[self.stage]
        if stage.exit is not None and self.holds(stage.exit):
            return True
        if self.stage_step < stage.steps:
            return False
        if self.stage + 1 == len(stages):
            return True
        following = stages[self.stage + 1]
        if following.entry is None or self.stage_step >= stage.steps + following.entry_wait:
            return True
        return self.holds(following.entry)

    def next_stage(self) -> None:
        """Go on to the next stage, which has losses of its own: running means begin anew."""
        self.stage += 1
        self.stage_step = self.skipped = 0
        self.means = {}

    def share_done(self, config: TrainingConfig) -> float:
        """Of the whole run, 0 to 1; a stage that ended early counts as whole."""
        before = sum(stage.steps for stage in config.stages[: self.stage])
        here = config.stages[self.stage].steps if self.stage < len(config.stages) else 0
        return (before + min(self.stage_step, here)) / config.steps

    def boost(self, stage: Stage) -> float:
        """How strongly true centres are made queries now."""
        first, last = stage.boost
        return first + (last - first) * min(1.0, self.stage_step / stage.steps)


def learning_rate(progress: Progress, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to 2 % (Loshchilov & Hutter 2017)."""
    warm = min(1.0, (progress.step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress.share_done(config)))
    return config.learning_rate * warm * (0.02 + 0.98 * cosine)


@dataclass(frozen=True)
class Source:
    """A dataset and how often its clips come by for once of the others'."""

    store: ClipStore
    repeat: int = 1


def pool(sources: Sequence[Source], stage: Stage) -> list[tuple[ClipStore, int]]:
    """The clips of a stage: split `train`, scenarios not harder than the stage allows.

    Raises:
        InputError: If none is left.
    """
    clips = []
    for source in sources:
        for index in source.store.indices("train").tolist():
            if difficulty_of(source.store.rows[index]) <= stage.difficulty + 1e-9:
                clips += [(source.store, index)] * source.repeat
    if not clips:
        where = ", ".join(str(source.store.path) for source in sources)
        raise InputError(
            f"{where}: no clips of the split `train` with a difficulty of at most {stage.difficulty:g}, "
            f"which stage {stage.name} asks for; simulate or ingest some first"
        )
    return clips


def difficulty_of(row: dict[str, Any]) -> float:
    """Of a clip's scenario, `family/seed@difficulty`; 0 where none is stated."""
    _, found, text = str(row["scenario"]).rpartition("@")
    return float(text) if found else 0.0


class Order(Sampler[list[int]]):
    """Batches of a stage from a given one on: one permutation of all clips after the other."""

    def __init__(
        self, num_clips: int, config: TrainingConfig, stage: int, first: int, *, rank: int = 0, world: int = 1
    ) -> None:
        self.num_clips, self.config, self.stage, self.first = num_clips, config, stage, first
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of clips, without end; each process of several has its own share of every batch."""
        size = self.config.batch_clips
        number, orders = self.first, {}
        while True:
            start = (number * self.world + self.rank) * size
            batch = []
            for position in range(start, start + size):
                epoch, place = divmod(position, self.num_clips)
                if epoch not in orders:
                    generator = np.random.default_rng((self.config.seed, 7, self.stage, epoch))
                    orders[epoch] = generator.permutation(self.num_clips)
                    orders.pop(epoch - 2, None)
                batch.append(int(orders[epoch][place]) + epoch * self.num_clips)
            yield batch
            number += 1
