"""Outcomes of many episodes: rates and means with intervals, paired comparisons, and files of both.

    outcomes/
      episodes.parquet   one row per episode, columns in the order of `Outcome`'s fields
      summary.json       what `summarize` says

Equal outcomes give equal bytes, in whatever order the episodes were driven.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.outcomes import TTC_HORIZON_S, Outcome

EPISODES = "episodes.parquet"
SUMMARY = "summary.json"
NUM_RESAMPLES = 2000
BOOTSTRAP_SEED = 20240229
_CHUNK = 4_000_000  # drawn numbers held at once

RATES = {  # name in the summary: field of `Outcome`
    "success_rate": "success",
    "goal_rate": "goal_reached",
    "collision_rate": "collision",
    "at_fault_collision_rate": "at_fault_collision",
    "pedestrian_collision_rate": "collision_pedestrian",
    "cyclist_collision_rate": "collision_cyclist",
    "off_road_rate": "off_road",
    "policy_failure_rate": "policy_failure",
}
MEANS = {
    "progress_mean": "progress",
    **{
        name: name
        for name in (
            "progress_m",
            "duration_s",
            "time_to_goal_s",
            "contact_speed_mps",
            "off_road_share",
            "ttc_p1_s",
            "ttc_p5_s",
            "ttc_p50_s",
            "min_clearance_m",
            "min_clearance_vulnerable_m",
            "acceleration_max_mps2",
            "deceleration_max_mps2",
            "acceleration_rms_mps2",
            "jerk_p95_mps3",
            "jerk_max_mps3",
            "lateral_acceleration_max_mps2",
            "lateral_acceleration_rms_mps2",
            "comfort_share",
            "interventions",
            "intervention_share",
            "speed_mean_mps",
            "speed_excess_mean_mps",
            "speed_excess_max_mps",
        )
    },
}

_TYPES = get_type_hints(Outcome)
_PARQUET = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema(
    [
        pa.field(
            field.name, _PARQUET.get(_TYPES[field.name], pa.float64()), _TYPES[field.name] == float | None
        )
        for field in fields(Outcome)
    ]
)
_NUMBERS = tuple(name for name, kind in _TYPES.items() if kind is not str)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927); unlike the normal one it holds for few trials and near 0 and 1.

    Args:
        successes: 0 … `trials`.
        trials: At least 1.
        confidence: In (0, 1).
    Raises:
        InputError: If the counts are no counts.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise InputError(
            f"rate: {successes} of {trials}, expected 0 <= successes <= trials and at least one trial"
        )
    z = float(norm.ppf(0.5 + confidence / 2.0))
    rate, weight = successes / trials, z * z / trials
    middle = (rate + weight / 2.0) / (1.0 + weight)
    half = math.sqrt(rate * (1.0 - rate) * weight + weight * weight / 4.0) / (1.0 + weight)
    # At 0 and 1 the bound is the rate itself but for rounding.
    return max(0.0, min(middle - half, rate)), min(1.0, max(middle + half, rate))


def bootstrap_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of a mean (Efron 1979), `NUM_RESAMPLES` resamples, the same ones at every call.

    Args:
        values: (N,) finite, at least one.
        confidence: In (0, 1).
    Raises:
        InputError: If there is no value, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError(f"bootstrap: got {values}, expected at least one value, all finite")
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means: list[NDArray[np.float64]] = []
    rows = max(1, _CHUNK // len(values))
    for begin in range(0, NUM_RESAMPLES, rows):
        drawn = rng.integers(len(values), size=(min(rows, NUM_RESAMPLES - begin), len(values)))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.5 - confidence / 2.0, 0.5 + confidence / 2.0))
    return float(low), float(high)


def summarize(outcomes: Sequence[Outcome], *, excluded: Collection[str] = ()) -> dict[str, Any]:
    """Rates and means over episodes, overall and per family.

    Args:
        outcomes: Of one policy, or of several that count as one (seeds of a training).
        excluded: Scenarios that were left out of them beforehand, see `exclude`; the summary lists them.
    Returns:
        `episodes`, `policies`, `excluded`, each of `RATES` and `MEANS` with `<name>_ci95`, for means also
        `<name>_episodes` where some episodes have no value, and `families`: the same of each. A mean of no
        value is None. Times to collision count as `TTC_HORIZON_S` where there is none.
    Raises:
        InputError: If there is no episode, one twice, or an excluded one.
    """
    if not outcomes:
        raise InputError("summary: no episodes; drive some, or exclude fewer")
    names = [(item.policy, item.scenario) for item in outcomes]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(
            f"summary: {twice[0][1]} of {twice[0][0]} is there more than once; expected each episode once"
        )
    kept = sorted({item.scenario for item in outcomes} & set(excluded))
    if kept:
        raise InputError(
            f"summary: {kept[0]} is said to be excluded but is among the episodes; call `exclude` first"
        )
    families = sorted({item.family for item in outcomes})
    return {
        "policies": sorted({item.policy for item in outcomes}),
        "excluded": {"count": len(set(excluded)), "scenarios": sorted(set(excluded))},
        **_figures(outcomes),
        "families": {name: _figures([item for item in outcomes if item.family == name]) for name in families},
    }


def exclude(outcomes: Sequence[Outcome], names: Collection[str]) -> tuple[Outcome, ...]:
    """Without some scenarios, for every policy alike.

    Args:
        outcomes: Of one policy or more.
        names: Scenarios; tell `summarize` of them as well.
    Raises:
        InputError: If a policy has none of that name: it would be compared on other scenarios than asked for.
    """
    driven: dict[str, set[str]] = {}
    for item in outcomes:
        driven.setdefault(item.policy, set()).add(item.scenario)
    for policy, scenarios in sorted(driven.items()):
        unknown = sorted(set(names) - scenarios)
        if unknown:
            raise InputError(
                f"exclude: {policy} has no scenario {unknown[0]!r}; expected names that every policy drove"
            )
    return tuple(item for item in outcomes if item.scenario not in names)


def paired_difference(a: Sequence[Outcome], b: Sequence[Outcome], key: str) -> dict[str, Any]:
    """Compare two policies on the same scenarios; pairing removes what the scenarios themselves differ by.

    Args:
        a, b: One outcome per scenario each, of the same scenarios.
        key: A numeric field of `Outcome`.
    Returns:
        `pairs` (scenarios where both have a value), `mean_a`, `mean_b`, `difference` (mean of a - b),
        `difference_ci95` (bootstrap over pairs); means of no pair are None. For fields that are true or false
        also `both`, `only_a`, `only_b`, `neither` and `mcnemar_p` (exact, two-sided).
    Raises:
        InputError: If the key is unknown, the scenarios differ or one is there twice.
    """
    if key not in _NUMBERS:
        raise InputError(f"comparison: unknown figure {key!r}; there are {', '.join(_NUMBERS)}")
    by_name = []
    for side, outcomes in (("first", a), ("second", b)):
        named = {item.scenario: item for item in outcomes}
        if len(named) < len(outcomes):
            raise InputError(f"comparison: a scenario is there twice on the {side} side; expected each once")
        by_name.append(named)
    first, second = by_name
    alone = sorted(set(first) ^ set(second))
    if alone or not first:
        found = (
            f"only one of the two drove {alone[0]!r} ({len(alone)} such scenarios)"
            if alone
            else "no scenarios"
        )
        raise InputError(f"comparison: {found}; expected the same scenarios, `exclude` the others from both")
    scenarios = sorted(first)
    values = np.array(
        [[_value(side[name], key) for side in (first, second)] for name in scenarios], np.float64
    )
    values = values[np.isfinite(values).all(axis=1)]
    differences = values[:, 0] - values[:, 1]
    result: dict[str, Any] = {
        "key": key,
        "pairs": len(values),
        "mean_a": float(values[:, 0].mean()) if len(values) else None,
        "mean_b": float(values[:, 1].mean()) if len(values) else None,
        "difference": float(differences.mean()) if len(values) else None,
        "difference_ci95": list(bootstrap_interval(differences)) if len(values) else None,
    }
    if _TYPES[key] is bool:
        only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
        result |= {
            "both": int((values.sum(axis=1) == 2).sum()),
            "only_a": only_a,
            "only_b": only_b,
            "neither": int((values.sum(axis=1) == 0).sum()),
            # Under the hypothesis of no difference each discordant pair is a fair coin (McNemar 1947).
            "mcnemar_p": float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        }
    return result


def write_outcomes(path_dir: str | Path, outcomes: Sequence[Outcome], summary: Mapping[str, Any]) -> Path:
    """Write `episodes.parquet` (in order of policy and scenario) and `summary.json`; old ones are replaced.

    Args:
        path_dir: Directory, made if need be.
        outcomes: One row each.
        summary: As `summarize` returns it.
    Returns:
        The directory.
    """
    directory = Path(path_dir)
    directory.mkdir(parents=True, exist_ok=True)
    rows = [asdict(item) for item in sorted(outcomes, key=lambda item: (item.policy, item.scenario))]
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # Written beside and moved, so that nobody ever reads half a file.
    scratch = directory / f".{EPISODES}.{os.getpid()}"
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), scratch, compression="zstd")
    os.replace(scratch, directory / EPISODES)
    scratch = directory / f".{SUMMARY}.{os.getpid()}"
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, directory / SUMMARY)
    return directory


def read_outcomes(path_dir: str | Path) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """Read what `write_outcomes` wrote.

    Returns:
        The outcomes in order of policy and scenario, and the summary.
    Raises:
        InputError: If a file is missing, damaged or of another version.
    """
    directory = Path(path_dir)
    for name in (EPISODES, SUMMARY):
        if not (directory / name).is_file():
            raise InputError(
                f"{directory} has no {name}; expected a directory of outcomes: drive the episodes again"
            )
    path = directory / EPISODES
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); drive the episodes again") from error
    if table.schema.names != _SCHEMA.names or table.schema.types != _SCHEMA.types:
        odd = sorted(set(table.schema) ^ set(_SCHEMA), key=str)
        raise InputError(
            f"{path} has other columns than this version writes ({odd[0] if odd else 'another order'}); "
            "drive the episodes again"
        )
    path = directory / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); drive the episodes again") from error
    if not isinstance(summary, dict):
        raise InputError(
            f"{path} holds {type(summary).__name__}, expected an object; drive the episodes again"
        )
    return tuple(Outcome(**row) for row in table.to_pylist()), summary


def _value(item: Outcome, name: str) -> float:
    """A figure as a number that can be averaged; NaN or infinite where the episode has none."""
    value = getattr(item, name)
    if value is None:
        return math.nan
    return min(float(value), TTC_HORIZON_S) if name.startswith("ttc_") else float(value)


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    figures: dict[str, Any] = {"episodes": len(outcomes)}
    for name, field in RATES.items():
        count = sum(bool(getattr(item, field)) for item in outcomes)
        figures[name] = count / len(outcomes)
        figures[f"{name}_ci95"] = list(wilson_interval(count, len(outcomes)))
    for name, field in MEANS.items():
        values = np.array([_value(item, field) for item in outcomes])
        values = values[np.isfinite(values)]
        figures[name] = float(values.mean()) if len(values) else None
        figures[f"{name}_ci95"] = list(bootstrap_interval(values)) if len(values) else None
        if len(values) < len(outcomes):
            figures[f"{name}_episodes"] = len(values)
    return figures
