"""Everything that was measured of one network: reading an evaluation directory.

    DIR/
      facts.json           label, group, seed, what it was made from and costs: see `Facts`
      perception.json      figures pooled over all scenarios, and curves
      perception.parquet   one row per scenario: `scenario`, and a column per figure
      drive-SUITE/         as `e2e-perception drive --out` writes it

Every part may be missing, and `Evaluation.missing` says which. A figure is named as its column in
`perception.parquet` (`detection/map`), or `drive-SUITE/FIELD` for a field of `Outcome`
(`drive-test/success`). It is the *mean over scenarios*, scenarios without a value left out: that mean can be
resampled. What is pooled over all objects of all scenarios (`perception.json`) is kept beside it.

Legend: N scenarios, F figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2e_perception.core.errors import InputError
from e2e_perception.core.named_files import offending_keys
from e2e_perception.evaluation.outcome_tables import EPISODES, MEANS, RATES, read_outcomes
from e2e_perception.evaluation.outcomes import TTC_HORIZON_S, Outcome

FACTS = "facts.json"
PERCEPTION = "perception.json"
PERCEPTION_ROWS = "perception.parquet"
DRIVE = "drive-"
# Of a table, from its summary: figures of different ones are about different things.
CONDITIONS = ("suite", "suite_digest", "degradation", "strength")
SCENARIO = "scenario"  # column


class Facts(BaseModel):
    """What is known of a network besides its figures; other keys of `facts.json` are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    label: str = Field(min_length=1, description="For tables; one evaluation each.")
    group: str = Field("", description="What it is a training of, such as `joint`.")
    seed: int | None = Field(None, description="Of the training.")
    latency_ms: float | None = Field(None, gt=0.0, description="Of the network, per frame.")
    graph_digest: str | None = Field(None, description="Of the graph without weights, which says its cost.")
    parameters: int | None = Field(None, ge=0, description="How many it has.")
    bundle_digest: str | None = Field(None, description="Of the bundle.")
    dataset_digests: tuple[str, ...] = Field((), description="What it was trained on.")
    commit: str | None = Field(None, description="Of the code that trained it.")


@dataclass(frozen=True)
class ScenarioTable:
    """Figures scenario by scenario.

    Attributes:
        scenarios_N: Names, each once.
        figures_F: Names, each once.
        values_NF: (N, F), NaN where a scenario has no value.
    """

    scenarios_N: tuple[str, ...]
    figures_F: tuple[str, ...]
    values_NF: NDArray[np.float64]

    def means(self) -> dict[str, float]:
        """Mean over the scenarios that have a value; figures that none has are left out."""
        finite_NF = np.isfinite(self.values_NF)
        return {
            name: float(self.values_NF[finite_NF[:, f], f].mean())
            for f, name in enumerate(self.figures_F)
            if finite_NF[:, f].any()
        }


@dataclass(frozen=True)
class Evaluation:
    """One network's figures.

    Attributes:
        path: The directory.
        facts: Label, seed and so on.
        tables: Figures by scenario: `perception`, and one per drive under its directory's name.
        drives: Outcomes by the same names.
        pooled: Figures of `perception.json`.
        curves: Of `perception.json`.
        missing: Parts that are not there.
        conditions: By table, what its scenarios were met under, as far as known: `CONDITIONS`.
    """

    path: Path
    facts: Facts
    tables: Mapping[str, ScenarioTable]
    drives: Mapping[str, tuple[Outcome, ...]]
    pooled: Mapping[str, float]
    curves: Mapping[str, Any]
    missing: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For tables."""
        return self.facts.label

    def figures(self) -> dict[str, float]:
        """Means over scenarios by name, of all tables."""
        return {name: value for table in self.tables.values() for name, value in table.means().items()}


def read_evaluation(path_dir: str | Path, *, drives: bool = True) -> Evaluation:
    """Read an evaluation directory.

    Args:
        path_dir: The directory.
        drives: Whether to look at drives as well; without, they count as missing.

    Returns:
        What is there; a directory without `facts.json` is labelled by its own name.
    Raises:
        InputError: If it is no directory, holds neither perception nor drives, or a part is damaged.
    """
    path = Path(path_dir)
    if not path.is_dir():
        raise InputError(f"{path} is no directory; expected the evaluation of one network")
    facts, missing = read_facts(path)
    document: dict[str, Any] = {}
    if (path / PERCEPTION).is_file():
        document = _read_json(path / PERCEPTION)
    else:
        missing.append(PERCEPTION)
    tables: dict[str, ScenarioTable] = {}
    if (path / PERCEPTION_ROWS).is_file():
        tables["perception"] = _read_rows(path / PERCEPTION_ROWS)
    else:
        missing.append(PERCEPTION_ROWS)
    rooms = sorted(path.glob(f"{DRIVE}*/")) if drives else []
    read = {directory.name: read_outcomes(directory) for directory in rooms}
    driven = {name: outcomes for name, (outcomes, _) in read.items()}
    summaries = {name: summary for name, (_, summary) in read.items()} | {"perception": document}
    tables |= {name: outcome_table(name, outcomes) for name, outcomes in driven.items()}
    if not driven:
        missing.append(f"{DRIVE}SUITE/")
    if not document and not tables:
        raise InputError(
            f"{path} holds none of {PERCEPTION}, {PERCEPTION_ROWS} and {DRIVE}SUITE/{EPISODES}; expected the "
            "evaluation of one network (docs/comparison.md)"
        )
    pooled = {
        str(name): float(value)
        for name, value in _mapping(document, "figures", path).items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    curves = _mapping(document, "curves", path)
    conditions = {
        name: {key: summaries[name][key] for key in CONDITIONS if key in summaries[name]} for name in tables
    }
    return Evaluation(path, facts, tables, driven, pooled, curves, tuple(missing), conditions)


def read_evaluations(paths: Iterable[str | Path]) -> tuple[Evaluation, ...]:
    """Read several, in the order given.

    Raises:
        InputError: As `read_evaluation`, or if two have the same label.
    """
    found = tuple(read_evaluation(path) for path in paths)
    labels = [item.label for item in found]
    for item in found:
        if labels.count(item.label) > 1:
            places = ", ".join(str(other.path) for other in found if other.label == item.label)
            raise InputError(
                f"label {item.label!r} belongs to {places}; expected another `label` in each {FACTS}"
            )
    return found


def outcome_table(name: str, outcomes: Sequence[Outcome]) -> ScenarioTable:
    """Rates and means of a drive, scenario by scenario.

    Args:
        name: Of the drive; figures are `name/FIELD`.
        outcomes: One per scenario. Times to collision count as `TTC_HORIZON_S` where there is none.
    Raises:
        InputError: If a scenario is there twice: the directory then holds several policies.
    """
    scenarios = tuple(item.scenario for item in outcomes)
    if len(set(scenarios)) < len(scenarios):
        twice = next(scenario for scenario in scenarios if scenarios.count(scenario) > 1)
        raise InputError(f"{name}: {twice} is there more than once; expected one policy per directory")
    columns = [*RATES.values(), *MEANS.values()]
    values = [[_number(item, column) for column in columns] for item in outcomes]
    return ScenarioTable(
        scenarios,
        tuple(f"{name}/{column}" for column in columns),
        np.array(values, np.float64).reshape(len(scenarios), len(columns)),
    )


def is_rate(figure: str) -> bool:
    """Whether a figure is a share of scenarios: each one is 0 or 1."""
    drive, _, column = figure.rpartition("/")
    return drive.startswith(DRIVE) and column in RATES.values()


def _number(item: Outcome, column: str) -> float:
    value = getattr(item, column)
    if value is None:
        return math.nan
    number = min(float(value), TTC_HORIZON_S) if column.startswith("ttc_") else float(value)
    return number if math.isfinite(number) else math.nan


def read_facts(path: Path) -> tuple[Facts, list[str]]:
    """What `facts.json` of an evaluation directory says, and that it is missing where it is.

    Raises:
        InputError: If it is damaged.
    """
    if not (path / FACTS).is_file():
        return Facts(label=path.resolve().name), [FACTS]
    try:
        return Facts.model_validate({"label": path.resolve().name, **_read_json(path / FACTS)}), []
    except ValidationError as error:
        raise InputError(f"{path / FACTS}: {'; '.join(offending_keys(error, 'facts'))}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); evaluate again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds {type(document).__name__}, expected an object; evaluate again")
    return document


def _mapping(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, Mapping):
        raise InputError(
            f"{path / PERCEPTION}: {key!r} is {type(value).__name__}, expected an object; evaluate again"
        )
    return value


def _read_rows(path: Path) -> ScenarioTable:
    """Numbers by scenario; columns that hold no numbers describe the scenario and are no figures."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); evaluate again") from error
    if SCENARIO not in table.schema.names:
        raise InputError(f"{path} has no column {SCENARIO!r}; evaluate again")
    scenarios = tuple(str(name) for name in table[SCENARIO].to_pylist())
    if len(set(scenarios)) < len(scenarios):
        twice = next(name for name in scenarios if scenarios.count(name) > 1)
        raise InputError(f"{path}: scenario {twice!r} is there more than once; expected each once")
    figures = tuple(column.name for column in table.schema if column.name != SCENARIO and _is_number(column))
    values = np.full((len(scenarios), len(figures)), np.nan)
    for f, name in enumerate(figures):
        values[:, f] = np.array([math.nan if v is None else float(v) for v in table[name].to_pylist()])
    values[~np.isfinite(values)] = np.nan
    return ScenarioTable(scenarios, figures, values)


def _is_number(column: pa.Field) -> bool:
    kind = column.type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
