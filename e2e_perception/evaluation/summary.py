"""All perception metrics of one drive and of many: figures by name, curves, and the rows of a table.

    perception.json      figures pooled over all drives, and curves
    perception.parquet   a row per drive: `scenario`, `family`, and a column per figure

Pooled figures are not means of the rows: each metric is put together from its own counts, so that a drive
with many objects weighs more, as it would in one long drive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e2e_perception.core.errors import InputError
from e2e_perception.core.results import FrameResult
from e2e_perception.core.truth import TruthFrame
from e2e_perception.evaluation.calibration import CalibrationMetrics
from e2e_perception.evaluation.detection import DetectionMetrics
from e2e_perception.evaluation.motion import MotionMetrics
from e2e_perception.evaluation.planning_open_loop import PlanningMetrics
from e2e_perception.evaluation.tracking import TrackingMetrics


@dataclass
class PerceptionSums:
    """The counts of all metrics; those of several drives can be merged."""

    detection: DetectionMetrics = field(default_factory=DetectionMetrics)
    tracking: TrackingMetrics = field(default_factory=TrackingMetrics)
    motion: MotionMetrics = field(default_factory=MotionMetrics)
    planning: PlanningMetrics = field(default_factory=PlanningMetrics)
    calibration: CalibrationMetrics = field(default_factory=CalibrationMetrics)

    def add(self, result: FrameResult, truth: TruthFrame) -> None:
        """Take in the next frame of a drive."""
        scored_K2 = self.detection.add(result, truth)
        self.tracking.add(result, truth)
        self.motion.add(result, truth)
        self.planning.add(result, truth)
        self.calibration.add(result, truth, scored_K2)

    def merge(self, other: PerceptionSums) -> None:
        """Add everything that another one has accumulated."""
        self.detection.merge(other.detection)
        self.tracking.merge(other.tracking)
        self.motion.merge(other.motion)
        self.planning.merge(other.planning)
        self.calibration.merge(other.calibration)

    def figures(self) -> dict[str, float]:
        """Every figure, in a fixed order."""
        return {
            **self.detection.figures(),
            **self.tracking.figures(),
            **self.motion.figures(),
            **self.planning.figures(),
            **self.calibration.figures(),
        }


@dataclass(frozen=True)
class EpisodeFigures:
    """One drive.

    Attributes:
        scenario: Its name.
        family: Of the scenario.
        frames: How many were compared.
        figures: By name, NaN where there was nothing to measure.
        sums: What they were made of.
    """

    scenario: str
    family: str
    frames: int
    figures: dict[str, float]
    sums: PerceptionSums


@dataclass(frozen=True)
class OverallFigures:
    """Many drives together.

    Attributes:
        scenarios, frames: How many.
        figures: By name, pooled over all drives, NaN where there was nothing to measure.
        curves: `precision_recall` and `reliability`, each by name.
    """

    scenarios: int
    frames: int
    figures: dict[str, float]
    curves: dict[str, dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """For JSON, which knows no NaN: None instead."""
        return {
            "scenarios": self.scenarios,
            "frames": self.frames,
            "figures": {
                name: value if math.isfinite(value) else None for name, value in self.figures.items()
            },
            "curves": self.curves,
        }


def evaluate_frames(
    pairs: Iterable[tuple[FrameResult, TruthFrame]], *, scenario: str = "", family: str = ""
) -> EpisodeFigures:
    """Measure one drive.

    Args:
        pairs: Every frame with the truth of the same instant, in order of time.
        scenario: Name, for tables.
        family: For tables.
    """
    sums = PerceptionSums()
    frames = 0
    for result, truth in pairs:
        sums.add(result, truth)
        frames += 1
    sums.tracking.end_drive()
    return EpisodeFigures(scenario, family, frames, sums.figures(), sums)


def combine(episodes: Sequence[EpisodeFigures]) -> OverallFigures:
    """Put drives together, in any order."""
    sums = PerceptionSums()
    for episode in sorted(episodes, key=lambda item: item.scenario):
        sums.merge(episode.sums)
    return OverallFigures(
        scenarios=len(episodes),
        frames=sum(episode.frames for episode in episodes),
        figures=sums.figures(),
        curves={"precision_recall": sums.detection.curves(), "reliability": sums.calibration.curves()},
    )


def write_rows(path: Path, episodes: Sequence[EpisodeFigures]) -> None:
    """Write a row per drive, in order of the scenarios' names; equal figures give equal bytes.

    Raises:
        InputError: If there is no drive.
    """
    if not episodes:
        raise InputError(f"{path}: there is no drive to write; expected at least one")
    rows = sorted(episodes, key=lambda item: item.scenario)
    columns: dict[str, pa.Array] = {
        "scenario": pa.array([row.scenario for row in rows], pa.string()),
        "family": pa.array([row.family for row in rows], pa.string()),
    }
    for name in rows[0].figures:
        columns[name] = pa.array([row.figures[name] for row in rows], pa.float64())
    pq.write_table(pa.table(columns), path)
