"""Suites: which scenarios a policy is trained, chosen or judged on, as YAML files under `config/suites/`.

    name: smoke
    description: One sentence.
    entries:
      - {family: highway, seeds: {first: 4000000, count: 1}}
      - {family: highway+cut_in, seeds: [4000100, 4000107], difficulty: 0.8}
    excluded:
      - {scenario: highway/4000000@0.5, reason: the road is blocked}

No seed of a shipped suite is in another one, so that nothing is judged on what it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.named_files import offending_keys, read_named, shipped_files
from e2e_perception.simulation.traffic_world import FAMILIES, ScenarioSpec

FOLDER = "suites"  # in config/
SHOWN = 4  # errors of one file


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SeedRange(_Frozen):
    """Consecutive seeds."""

    first: int = Field(ge=0, description="The first one.")
    count: int = Field(ge=1, description="How many.")


def _kind_of_seeds(value: object) -> str:
    return "range" if isinstance(value, (dict, SeedRange)) else "list"


class Entry(_Frozen):
    """Scenarios of one family and difficulty."""

    family: str = Field(description="One of `traffic_world.FAMILIES`.")
    seeds: Annotated[
        Annotated[SeedRange, Tag("range")]
        | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), Tag("list")],
        Discriminator(_kind_of_seeds),
    ] = Field(description="A range, or a list.")
    difficulty: float = Field(0.5, ge=0.0, le=1.0, description="0: easy; 1: hard.")

    @field_validator("family")
    @classmethod
    def _known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
        return family

    def scenarios(self) -> tuple[ScenarioSpec, ...]:
        """In order of the seeds."""
        seeds = self.seeds
        if isinstance(seeds, SeedRange):
            seeds = tuple(range(seeds.first, seeds.first + seeds.count))
        return tuple(ScenarioSpec(self.family, seed, self.difficulty) for seed in seeds)


class Exclusion(_Frozen):
    """A scenario that no reference driver can solve; it is left out for every policy alike."""

    scenario: str = Field(description="Its name, `family/seed@difficulty`.")
    reason: str = Field(min_length=1, description="Why it cannot be solved, or who has tried.")


class Suite(_Frozen):
    """Scenarios that belong together."""

    name: str = Field(min_length=1, description="For tables.")
    description: str = Field(description="What it is for.")
    entries: tuple[Entry, ...] = Field(min_length=1, description="At least one.")
    degradation: str | None = Field(None, description="What the sensors suffer: a file, or a shipped name.")
    excluded: tuple[Exclusion, ...] = Field((), description="Left out for every policy.")

    @model_validator(mode="after")
    def _names_agree(self) -> Suite:
        names: set[str] = set()
        for index, entry in enumerate(self.entries):
            for spec in entry.scenarios():
                if spec.name in names:
                    raise ValueError(
                        f"entries.{index}: scenario {spec.name} is there twice; expected each once, take "
                        "other seeds"
                    )
                names.add(spec.name)
        left_out: set[str] = set()
        for index, exclusion in enumerate(self.excluded):
            name = exclusion.scenario
            if name not in names or name in left_out:
                found = "excluded twice" if name in left_out else "not in this suite"
                raise ValueError(
                    f"excluded.{index}.scenario: {name!r} is {found}; expected names of the suite's "
                    "scenarios, each once"
                )
            left_out.add(name)
        if left_out == names:
            raise ValueError("excluded: every scenario is excluded; expected at least one that is not")
        return self

    @property
    def all_scenarios(self) -> tuple[ScenarioSpec, ...]:
        """Every scenario; entries take turns, so that the first few are of many families."""
        turns = zip_longest(*(entry.scenarios() for entry in self.entries))
        return tuple(spec for turn in turns for spec in turn if spec is not None)

    def scenarios(self) -> tuple[ScenarioSpec, ...]:
        """Those to drive: all that are not excluded, in order of `all_scenarios`."""
        left_out = set(self.excluded_names)
        return tuple(spec for spec in self.all_scenarios if spec.name not in left_out)

    @property
    def excluded_names(self) -> tuple[str, ...]:
        """Names of the excluded scenarios."""
        return tuple(exclusion.scenario for exclusion in self.excluded)

    @property
    def digest(self) -> str:
        """SHA-256 of what is driven: the names of all `scenarios`, sorted, and the degradation's name."""
        driven = [sorted(spec.name for spec in self.scenarios()), self.degradation]
        return hashlib.sha256(json.dumps(driven).encode()).hexdigest()


def load_suite(path_or_name: str | Path) -> Suite:
    """The suite in a YAML file, or the shipped one of that name (`config/suites/NAME.yaml`).

    Raises:
        ConfigError: If there is none, the message lists the shipped ones; or if it is malformed, the message
            names the file and each offending key, or the first few of many.
    """
    path, document = read_named(
        path_or_name,
        what="suite",
        folder=FOLDER,
        expected="a mapping with `name:` and `entries:`; see docs/driving.md",
    )
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        found = offending_keys(error, "suite")
        rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ConfigError(f"suite {path}: {'; '.join([*found[:SHOWN], *rest])}") from error


def shipped_suites() -> dict[str, Path]:
    """Files of the shipped suites by name."""
    return shipped_files(FOLDER)
