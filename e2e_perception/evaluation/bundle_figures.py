"""Figures of an evaluation directory as a bundle holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import DRIVE, PERCEPTION, read_evaluation
from e2e_perception.evaluation.outcome_tables import MEANS, RATES, read_outcomes

STACK_ROOM, DRIVE_ROOM = "stack", "drive"  # `deploy.bundle_writing.ROOMS`


def bundle_figures(path_dir: str | Path, bundle: str, digest: str) -> dict[str, float]:
    """What was measured of a bundle: `stack/SUITE/FIGURE` and `drive/SUITE/FIGURE`.

    Those of the stack are pooled over scenarios, those of drives are means over them.

    Args:
        path_dir: Evaluation directory (docs/comparison.md); either part may be missing.
        bundle: Its name with the beginning of its digest, as drives call it.
        digest: All of it, as `perception.json` has it.
    Raises:
        InputError: If there is nothing, or something is of another bundle, of a part of a suite, or was
            measured with something degraded.
    """
    path = Path(path_dir)
    evaluation = read_evaluation(path)
    found: dict[str, float] = {}
    if evaluation.pooled:
        document = json.loads((path / PERCEPTION).read_text(encoding="utf-8"))
        _refuse(path / PERCEPTION, document, document.get("bundle_digest"), digest)
        room = f"{STACK_ROOM}/{document['suite']}"
        found[f"{room}/scenarios"] = float(document["scenarios"])
        found |= {f"{room}/{name}": value for name, value in evaluation.pooled.items()}
    for name in evaluation.drives:
        _, summary = read_outcomes(path / name)
        _refuse(path / name, summary, summary.get("policy"), f"bundle:{bundle}")
        if name != f"{DRIVE}{summary['suite']}":
            raise InputError(
                f"{path / name} is of suite {summary['suite']!r}; expected {DRIVE}{summary['suite']}"
            )
        figures = {key: summary.get(key) for key in ("episodes", *RATES, *MEANS)}
        found |= {
            f"{DRIVE_ROOM}/{summary['suite']}/{key}": float(value)
            for key, value in figures.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
    if not found:
        raise InputError(
            f"{path} holds no figures; expected what `evaluate --suite` or `drive --suite` wrote"
        )
    return found


def _refuse(path: Path, document: Mapping[str, Any], got: Any, expected: str) -> None:
    if got != expected:
        raise InputError(f"{path} was measured of {got}; expected {expected}")
    for key in ("limit", "degradation"):
        if document.get(key) is not None:
            raise InputError(
                f"{path} was measured with {key} {document[key]!r}; expected a whole suite as it is"
            )
