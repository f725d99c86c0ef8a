"""Missions: what a network is wanted for, as weights and ramps over its figures, and the score that results.

    name: mine
    description: One sentence.
    across_objectives: geometric
    objectives:
      recognition:
        weight: 1.0
        floor: 0.2
        figures:
          detection/map: {weight: 1.0, worst: 0.2, best: 0.9}

A figure's ramp takes `worst` to 0 and `best` to 1 and clips beyond. An objective is the weighted mean of its
figures' ramps, and the composite the weighted mean of the objectives: geometric unless the profile says
otherwise, so that one objective cannot be bought with another (a score of 0 makes the composite 0). An
objective below its floor disqualifies: there is then no composite, only a reason.

Legend: X any number of leading axes, F figures, O objectives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.named_files import offending_keys, read_named, shipped_files

FOLDER = "missions"  # in config/
SHOWN = 4  # errors of one file, and missing figures of one evaluation

Array = NDArray[np.float64]
ObjectiveName = Literal["recognition", "tracking", "prediction", "planning"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ramp(_Frozen):
    """What a figure is worth."""

    weight: float = Field(gt=0.0, description="Against the other figures of its objective.")
    worst: float = Field(description="The value that is worth 0; also all that are worse.")
    best: float = Field(description="The value that is worth 1; below `worst` where less is better.")
    optional: bool = Field(False, description="May be missing; the other figures then count for more.")

    @model_validator(mode="after")
    def _rises_or_falls(self) -> Ramp:
        if self.worst == self.best:
            raise ValueError(f"worst and best are both {self.best}; expected two different values")
        return self

    @property
    def way(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.best > self.worst else -1


class Objective(_Frozen):
    """Figures that measure one ability."""

    weight: float = Field(gt=0.0, description="Against the other objectives.")
    floor: float | None = Field(None, ge=0.0, le=1.0, description="A score below it disqualifies.")
    figures: dict[str, Ramp] = Field(min_length=1, description="By name, see evaluation/evaluations.py.")


class Mission(_Frozen):
    """What counts, and how much."""

    name: str = Field(min_length=1, description="For tables.")
    description: str = Field(description="What it is for.")
    across_objectives: Literal["geometric", "arithmetic"] = Field(
        "geometric", description="Mean over objectives."
    )
    objectives: dict[ObjectiveName, Objective] = Field(min_length=1, description="At least one.")

    @model_validator(mode="after")
    def _each_figure_counts_once(self) -> Mission:
        names = [name for objective in self.objectives.values() for name in objective.figures]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"figure {name!r} is in two objectives; expected it in one")
        return self

    @property
    def ramps(self) -> dict[str, Ramp]:
        """Every figure's ramp by name."""
        return {name: ramp for item in self.objectives.values() for name, ramp in item.figures.items()}

    def score(self, figures: Mapping[str, float]) -> Composite:
        """Score one evaluation.

        Args:
            figures: Values by name; others than the profile's are left alone.
        Raises:
            InputError: If figures that are not optional are missing; the message lists them.
        """
        scorer = Scorer(self, figures)
        values_F = np.array([figures[name] for name in scorer.figures_F], np.float64)
        objectives_O = scorer.objectives(values_F)
        below = tuple(
            f"{name} is {score:.3f}, below the floor of {floor:.3f}"
            for name, score, floor in zip(self.objectives, objectives_O, scorer.floors_O, strict=True)
            if score < floor
        )
        return Composite(
            value=None if below else float(scorer.composite(objectives_O)),
            objectives={name: float(x) for name, x in zip(self.objectives, objectives_O, strict=True)},
            disqualified=below,
            skipped=scorer.skipped,
        )


@dataclass(frozen=True)
class Composite:
    """The score of one evaluation.

    Attributes:
        value: In [0, 1]; None if disqualified.
        objectives: Each one's score in [0, 1].
        disqualified: Why there is no value; empty if there is one.
        skipped: Optional figures that were missing.
    """

    value: float | None
    objectives: dict[str, float]
    disqualified: tuple[str, ...]
    skipped: tuple[str, ...]


class Scorer:
    """A mission for figures in arrays, so that thousands of resamples are scored at once.

    Attributes:
        figures_F: Which figures it takes, in this order.
        skipped: Optional ones that are not available.
        floors_O: Of each objective; minus infinity for none.
    """

    def __init__(self, mission: Mission, available: Collection[str]) -> None:
        """Bind to the figures that there are.

        Args:
            mission: The profile.
            available: Names of figures.
        Raises:
            InputError: If figures that are not optional are missing, or all of one objective.
        """
        ramps = mission.ramps
        absent = [name for name in ramps if name not in available]
        needed = [name for name in absent if not ramps[name].optional]
        if needed:
            rest = f" and {len(needed) - SHOWN} more" if len(needed) > SHOWN else ""
            raise InputError(
                f"mission {mission.name}: missing {', '.join(needed[:SHOWN])}{rest}; measure them (each is a "
                "mean over scenarios, see docs/comparison.md), or make them optional in a profile of yours"
            )
        self.skipped = tuple(absent)
        self.figures_F = tuple(name for name in ramps if name in available)
        objectives = list(mission.objectives.values())
        self._worst_F = np.array([ramps[name].worst for name in self.figures_F])
        self._best_F = np.array([ramps[name].best for name in self.figures_F])
        weights_OF = np.array(
            [
                [item.figures[name].weight if name in item.figures else 0.0 for name in self.figures_F]
                for item in objectives
            ]
        ).reshape(len(objectives), len(self.figures_F))
        for name, weights_F in zip(mission.objectives, weights_OF, strict=True):
            if not weights_F.any():
                raise InputError(
                    f"mission {mission.name}: every figure of {name} is optional and missing; expected one"
                )
        self._weights_OF = weights_OF / weights_OF.sum(axis=1, keepdims=True)
        weights_O = np.array([item.weight for item in objectives])
        self._weights_O = weights_O / weights_O.sum()
        self.floors_O = np.array([-np.inf if item.floor is None else item.floor for item in objectives])
        self._geometric = mission.across_objectives == "geometric"

    def objectives(self, values_XF: Array) -> Array:
        """Score of each objective.

        Args:
            values_XF: (…, F) figures in the order of `figures_F`; NaN makes its objective NaN.
        Returns:
            (…, O) in [0, 1].
        """
        worth_XF = np.clip((values_XF - self._worst_F) / (self._best_F - self._worst_F), 0.0, 1.0)
        # A score is no more than 1, whatever the rounding of the weights.
        scores_XO: Array = np.minimum(worth_XF @ self._weights_OF.T, 1.0)
        return scores_XO

    def composite(self, objectives_XO: Array) -> Array:
        """(…) in [0, 1] from (…, O), floors aside."""
        if not self._geometric:
            return np.asarray(objectives_XO @ self._weights_O)
        return np.asarray(np.prod(objectives_XO**self._weights_O, axis=-1))


def load_mission(path_or_name: str | Path) -> Mission:
    """The profile in a YAML file, or the shipped one of that name (`config/missions/NAME.yaml`).

    Raises:
        ConfigError: If there is none, the message lists the shipped ones; or if it is malformed, the message
            names the file and each offending key, or the first few of many.
    """
    path, document = read_named(
        path_or_name,
        what="mission",
        folder=FOLDER,
        expected="a mapping with `name:` and `objectives:`; see docs/comparison.md",
    )
    try:
        return Mission.model_validate(document)
    except ValidationError as error:
        found = offending_keys(error, "mission")
        rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ConfigError(f"mission {path}: {'; '.join([*found[:SHOWN], *rest])}") from error


def shipped_missions() -> dict[str, Path]:
    """Files of the shipped missions by name."""
    return shipped_files(FOLDER)
