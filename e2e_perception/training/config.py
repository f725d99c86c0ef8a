"""What a training run is made of: one frozen tree, stored with every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.named_files import offending_keys, read_named
from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.data.bev_augmentation import BevAugmentation

FOLDER = "training"  # in config/
LOSS_NAMES = (
    "heat",
    "box",
    "box_nll",
    "velocity",
    "maps",
    "flow",
    "affinity",
    "consistency",
    "motion",
    "motion_nll",
    "mode",
    "plan",
    "plan_risk",
    "plan_offset",
    "plan_safety",
    "plan_comfort",
)  # as `model.losses.LOSSES`, which needs torch; a test compares them


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LossWeights(_Frozen):
    """Mission weights, by loss name; a balancing method starts from them."""

    heat: float = Field(1.0, ge=0)
    box: float = Field(1.0, ge=0)
    box_nll: float = Field(0.05, ge=0)
    velocity: float = Field(0.5, ge=0)
    maps: float = Field(0.3, ge=0)
    flow: float = Field(0.2, ge=0)
    affinity: float = Field(0.5, ge=0)
    consistency: float = Field(0.05, ge=0)
    motion: float = Field(0.3, ge=0)
    motion_nll: float = Field(0.02, ge=0)
    mode: float = Field(0.2, ge=0)
    plan: float = Field(1.0, ge=0)
    plan_risk: float = Field(2.0, ge=0)
    plan_offset: float = Field(0.2, ge=0)
    plan_safety: float = Field(2.0, ge=0)
    plan_comfort: float = Field(0.02, ge=0)


class Condition(_Frozen):
    """Holds once the running mean of a loss is below a value."""

    loss: str = Field(description="Name of the loss.")
    below: float = Field(description="In the loss's own unit.")
    after: int = Field(0, ge=0, description="Not asked before this many steps of the stage.")

    @model_validator(mode="after")
    def _known(self) -> Condition:
        if self.loss not in LOSS_NAMES:
            raise ValueError(f"unknown loss {self.loss!r}; there are {', '.join(LOSS_NAMES)}")
        return self


class OnPolicy(_Frozen):
    """Before a stage the network drives, and the expert prices what it could have done (DAgger)."""

    suite: str = Field("train", description="Which scenarios.")
    part: str = Field("1/1", description="Which even part of the suite, K/N.")
    families: tuple[str, ...] = Field(
        (), description="Only scenarios whose family has one of these in its name; empty: all."
    )
    repeat: int = Field(1, ge=1, description="How often these clips come by for once of the others.")
    disturbed: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of episodes in which the robot is now and then thrown off its plan.",
    )
    clip_length: int = Field(10, ge=2, description="Frames per clip.")
    stride_s: float = Field(1.5, gt=0, description="From one clip's start to the next's [s].")


class Stage(_Frozen):
    """One stage of the curriculum."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    steps: int = Field(gt=0, description="Optimiser steps, unless `exit` ends it early.")
    clip_length: int | None = Field(None, ge=2, description="Frames per clip; null: all.")
    losses: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Factors on the mission weights; a loss that is not named keeps 1."
    )
    difficulty: float = Field(1.0, ge=0, le=1, description="Hardest scenarios that are used.")
    dropout: float = Field(1.0, ge=0, description="Factor on the chances that sensors are lost.")
    degradation: float = Field(0.0, ge=0, le=1, description="Strength of degraded channels.")
    boost: tuple[float, float] = Field(
        (0.0, 0.0),
        description="How strongly true centres are made queries, from the stage's start to its end.",
    )
    adversarial: float = Field(
        0.0, ge=0, le=1, description="Share of steps with adversarially perturbed inputs."
    )
    cross_modal: float = Field(
        0.0, ge=0, le=1, description="Share of steps that compare a camera-only with a lidar-only view."
    )
    entry: Condition | None = Field(
        None, description="The stage before goes on, for at most `entry_wait` steps, until this holds."
    )
    entry_wait: int = Field(0, ge=0, description="Steps; above 0 where there is an `entry`, and only there.")
    exit: Condition | None = Field(None, description="Ends the stage early.")
    on_policy: OnPolicy | None = Field(None, description="Clips from the network's own driving, made first.")

    @model_validator(mode="after")
    def _known_losses(self) -> Stage:
        unknown = sorted(set(self.losses) - set(LOSS_NAMES))
        if unknown:
            raise ValueError(f"unknown losses {', '.join(unknown)}; there are {', '.join(LOSS_NAMES)}")
        return self

    @model_validator(mode="after")
    def _waits_for_something(self) -> Stage:
        if self.entry is not None and self.entry_wait == 0:
            raise ValueError(
                "`entry` without `entry_wait` waits for nothing; say for how many steps, or leave it out"
            )
        if self.entry is None and self.entry_wait > 0:
            raise ValueError(
                f"`entry_wait` is {self.entry_wait}, and no `entry` says what for; add it, or leave both out"
            )
        return self


class Balancing(_Frozen):
    """How objectives share the parameters, see `balancing`."""

    method: Literal["fixed", "uncertainty", "gradnorm", "upgrad", "pcgrad", "mgda"] = "fixed"
    log_conflicts_every: int = Field(
        0,
        ge=0,
        description="Steps between measurements of gradient cosines, a backward pass each; 0: never.",
    )


class StageRates(_Frozen):
    """Factors on the learning rate of the parts that `interfaces: detached` keeps apart."""

    perception: float = Field(1.0, gt=0, description="From sensors to tracks.")
    prediction: float = Field(1.0, gt=0, description="Of motion.")
    planning: float = Field(1.0, gt=0, description="Of the planner.")


class Guard(_Frozen):
    """What to do when the loss leaps: go back to the last good step and on from there with other clips."""

    factor: float = Field(4.0, gt=1, description="A total above this many running means is a spike.")
    after: int = Field(50, ge=1, description="Steps without a judgement, while the mean settles.")
    most: int = Field(5, ge=0, description="Rollbacks in a row after which the run is given up.")


class Promotion(_Frozen):
    """When a checkpoint becomes `best.safetensors`: better on the whole, no objective below its floor.

    A floor is relative to the best value an objective has had in this run, so that no objective can be bought
    with another.
    """

    every: int = Field(0, ge=0, description="Steps between validations; 0: only at the end.")
    clips: int = Field(60, ge=2, description="Validation clips.")
    tolerance: float = Field(
        0.1, ge=0, le=1, description="An objective this share below its best pauses promotion."
    )


class TrainingConfig(_Frozen):
    """One run. The same configuration on the same data gives the same weights on the same machine."""

    size: str = Field("nano", description="Network size.")
    seed: int = Field(0, ge=0, description="Of weights, order and augmentation.")
    init: str = Field("", description="Run or bundle to take the first weights from; empty: random.")
    interfaces: Literal["differentiable", "detached"] = Field(
        "differentiable",
        description="`detached` is the modular baseline: no gradient from prediction to perception "
        "(detection with tracking), and none from planning to either.",
    )
    interface_gradient: float = Field(
        1.0, gt=0, le=1, description="Share of the gradient that a differentiable interface lets through."
    )
    blind: bool = Field(
        False, description="The control that sees route and ego state alone, trained as long."
    )
    memory: bool = Field(True, description="Whether the BEV features remember the frames before.")
    batch_clips: int = Field(8, gt=0, description="Clips per step and process.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak, AdamW.")
    learning_rates: StageRates = Field(default_factory=StageRates)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float = Field(
        5.0, gt=0, description="Per module, so that one task's large gradient does not shrink another's."
    )
    ema: float = Field(0.997, ge=0, lt=1, description="Decay of the averaged weights that are exported.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of the encoder, from sensors to BEV features; float16 needs a GPU."
    )
    recompute: bool = Field(
        False, description="Gradient checkpointing of the encoder: less memory, more time."
    )
    mirror: bool = Field(True, description="Whether left and right are exchanged in every second clip.")
    bev: BevAugmentation = Field(default_factory=BevAugmentation)
    ego_noise: float = Field(
        0.3, ge=0, le=1, description="Chance that a clip hides the robot's acceleration."
    )
    checkpoint_every: int = Field(100, gt=0, description="Steps.")
    workers: int = Field(0, ge=0, description="Processes that read clips; 0 reads in the loop.")
    threads: int = Field(0, ge=0, description="Threads of torch; 0 leaves it to the library.")
    weights: LossWeights = Field(default_factory=LossWeights)
    cross_modal_weight: float = Field(0.2, ge=0)
    adversarial_budget: float = Field(
        0.05, ge=0, description="Of rasters; images: the same share of their range."
    )
    balancing: Balancing = Field(default_factory=Balancing)
    guard: Guard = Field(default_factory=Guard)
    promotion: Promotion = Field(default_factory=Promotion)
    stages: tuple[Stage, ...] = Field((Stage(name="all", steps=1000, boost=(1.0, 0.0)),), min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need different names, got {', '.join(names)}")
        weights = self.weights.model_dump()
        for stage in self.stages:
            if not any(weight * stage.losses.get(name, 1.0) > 0.0 for name, weight in weights.items()):
                raise ValueError(f"stage {stage.name} has no loss with a weight above 0; leave it out")
        if self.stages[0].on_policy is not None:
            raise ValueError(
                f"stage {names[0]}: a network that has learned nothing cannot drive; train it first"
            )
        if self.stages[0].entry is not None:
            raise ValueError(f"stage {names[0]}: no stage before it could wait for its `entry`; leave it out")
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages, if none ends early and none waits."""
        return sum(stage.steps for stage in self.stages)

    @property
    def network(self) -> NetworkConfig:
        """The network this run trains.

        Raises:
            ConfigError: If there is no such size.
        """
        if self.size not in SIZES:
            raise ConfigError(f"unknown network size {self.size!r}; expected one of {', '.join(SIZES)}")
        changes: dict[str, object] = {
            "interfaces": self.interfaces,
            "interface_gradient": self.interface_gradient,
            "blind": self.blind,
        }
        if not self.memory:
            changes["memory_frames"] = 1
        return SIZES[self.size].model_copy(update=changes)


def load_training_config(path_or_name: str | Path) -> TrainingConfig:
    """Read a run from YAML: a file, or the name of a shipped one.

    Raises:
        ConfigError: If the file is missing, not YAML, or a key is unknown or out of range.
    """
    path, document = read_named(
        path_or_name, what="training configuration", folder=FOLDER, expected="a mapping of settings"
    )
    try:
        return TrainingConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(offending_keys(error, 'configuration'))}") from error
