"""Where a run's curves go: a JSON line per step, and MLflow if wanted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from e2e_perception.core.errors import ConfigError
from e2e_perception.training.config import TrainingConfig

LOG = "losses.jsonl"
FLOOR = "below_floor/"  # before an objective, among the figures of a validation
MLFLOW_EVERY = 10  # steps; each is a transaction of its database


@dataclass(frozen=True)
class StepReport:
    """What one step did, for logs and progress bars.

    Attributes:
        step: Steps done, this one included.
        stage: Name of its stage.
        total: What was minimised.
        losses: By name, unweighted, units as in `model.losses.LOSSES`; in some steps `cross_modal`, see
            `perturbation.cross_modal_consistency`.
        gradient_norm: Before clipping, over all modules.
        clips_per_s: Of all processes together.
        data_share: Of the step's time, spent waiting for clips.
        memory_mb: Resident memory of this process, or of the GPU's allocator.
        weights: Of the objectives, as the balancing chose them.
        cosines: Between objectives' gradients, `recognition~planning`, …; empty unless measured. Every
            `balancing.log_conflicts_every` steps at the encoder; if that is 0, where the balancing method
            looks at them anyway, see `balancing.BalanceReport`.
        event: Empty, or what went wrong: `rolled back …`.
    """

    step: int
    stage: str
    total: float
    losses: dict[str, float]
    gradient_norm: float = 0.0
    clips_per_s: float = 0.0
    data_share: float = 0.0
    memory_mb: float = 0.0
    weights: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)
    event: str = ""


class RunLog:
    """Writes reports; a context manager."""

    def __init__(self, out: Path, config: TrainingConfig, first_step: int, tracking_uri: str | None) -> None:
        """Open the logs of a run.

        Args:
            out: Run directory; `losses.jsonl` in it keeps only what lies before `first_step`.
            config: For MLflow's parameters.
            first_step: Steps done before.
            tracking_uri: MLflow's, e.g. `sqlite:///runs.db`; None: without.
        Raises:
            ConfigError: If MLflow is wanted and not installed.
        """
        out.mkdir(parents=True, exist_ok=True)
        path = out / LOG
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= first_step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._mlflow = _start_mlflow(tracking_uri, out, config) if tracking_uri else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if kind is None else "FAILED")

    def began_with(self, source: str, fresh: list[str]) -> None:
        """Log where the first weights came from, and the tensors that it had nothing for."""
        self._file.write(json.dumps({"step": 0, "init": source, "fresh": fresh}) + "\n")

    def step(self, report: StepReport) -> None:
        """Log a step."""
        self._file.write(json.dumps(asdict(report)) + "\n")
        if self._mlflow is not None and report.step % MLFLOW_EVERY == 0:
            metrics = {"total": report.total, "gradient_norm": report.gradient_norm}
            metrics |= {"clips_per_s": report.clips_per_s, "data_share": report.data_share}
            metrics["memory_mb"] = report.memory_mb
            metrics |= {f"loss/{name}": value for name, value in report.losses.items()}
            metrics |= {f"weight/{name}": value for name, value in report.weights.items()}
            metrics |= {f"cosine/{name.replace('~', '_')}": v for name, v in report.cosines.items()}
            self._mlflow.log_metrics(metrics, step=report.step)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Log a validation."""
        self._file.write(json.dumps({"step": step, "figures": figures}) + "\n")
        if self._mlflow is not None:
            self._mlflow.log_metrics({f"validation/{k}": v for k, v in figures.items()}, step=step)

    def flush(self) -> None:
        """Have everything on disk."""
        self._file.flush()


def below_floor(run: Path) -> list[str]:
    """Objectives that the last validation of a run found below their floor, see `promotion.judge`.

    Args:
        run: Run directory; one without a log, or without a validation, has none.
    """
    path = run / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = next((line for line in reversed(lines) if '"figures"' in line), "{}")
    names = json.loads(last).get("figures", {})
    return sorted(name.removeprefix(FLOOR) for name in names if name.startswith(FLOOR))


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62  # the rest of a line that a killed process left


def _start_mlflow(tracking_uri: str, out: Path, config: TrainingConfig) -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            f"tracking at {tracking_uri} needs mlflow, which is not installed; "
            "`pip install .[tracking]`, or give --tracking none"
        ) from error
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("e2e_perception")
    known = mlflow.search_runs(
        filter_string=f"tags.directory = '{out.resolve()}'", output_format="list", max_results=1
    )
    if known:
        mlflow.start_run(run_id=known[0].info.run_id)
        return mlflow
    mlflow.start_run(run_name=out.name, tags={"directory": str(out.resolve())})
    flat = {k: str(v)[:500] for k, v in config.model_dump(mode="json").items()}
    mlflow.log_params(flat)
    return mlflow
