"""What a training run is made of: one frozen tree, stored with every checkpoint."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.network_config import SIZES, NetworkConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossWeights(_Frozen):
    """Fixed mission weights, by loss name."""

    heat: float = 1.0
    box: float = 1.0
    box_nll: float = 0.05
    velocity: float = 0.5
    affinity: float = 0.5
    motion: float = 0.3
    motion_nll: float = 0.02
    mode: float = 0.1
    consistency: float = 0.05
    maps: float = 0.3
    flow: float = 0.2
    plan: float = 1.0
    plan_offset: float = 0.3
    plan_safety: float = 2.0


class TrainingConfig(_Frozen):
    """One run. The same configuration on the same data gives the same weights on the same machine."""

    size: str = Field("tiny", description="Network size.")
    seed: int = Field(0, description="Of weights, order and augmentation.")
    init: str = Field("", description="Run directory to take the first weights from; empty: random.")
    steps: int = Field(2500, gt=0, description="Optimiser steps.")
    batch_clips: int = Field(4, gt=0, description="Clips per step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak, AdamW.")
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(150, ge=0)
    clip_norm: float = Field(
        5.0, gt=0, description="Per module, so that one task's large gradient does not shrink another's."
    )
    ema: float = Field(0.997, ge=0, lt=1, description="Decay of the averaged weights that are exported.")
    boost_until: float = Field(0.5, description="Share of the run over which true centres are boosted.")
    mirror: bool = True
    sensor_dropout: bool = True
    checkpoint_every: int = Field(100, gt=0, description="Steps.")
    workers: int = Field(0, ge=0, description="Processes that read clips; 0 reads in the loop.")
    threads: int = Field(0, ge=0, description="Threads of torch; 0 leaves it to the library.")
    weights: LossWeights = Field(default_factory=LossWeights)
    interfaces: str = Field("differentiable", pattern="^(differentiable|detached)$")

    @property
    def network(self) -> NetworkConfig:
        """The network this run trains.

        Raises:
            ConfigError: If there is no such size.
        """
        if self.size not in SIZES:
            raise ConfigError(f"unknown network size {self.size!r}; expected one of {', '.join(SIZES)}")
        return SIZES[self.size].model_copy(update={"interfaces": self.interfaces})


def load_training_config(path: Path) -> TrainingConfig:
    """Read a run from YAML.

    Raises:
        ConfigError: If the file is missing, not YAML, or a key is unknown or out of range.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return TrainingConfig.model_validate(document)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"])
        raise ConfigError(f"{path}: {where}: {item['msg']}") from error
