"""Figures of an evaluation directory as a bundle holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.evaluations import DRIVE, PERCEPTION, read_evaluation
from e2e_perception.evaluation.outcome_tables import MEANS, RATES, read_outcomes

STACK_ROOM, DRIVE_ROOM = "stack", "drive"  # `deploy.bundle_writing.ROOMS`; a test compares them
# What would make figures of something else than the bundle and the suite as they are.
CHANGES = ("limit", "left_out", "degradation", "params")


def bundle_figures(
    path_dir: str | Path, labels: Collection[str], digests: Collection[str], rig: str
) -> dict[str, float]:
    """What was measured of a network: `stack/SUITE/FIGURE` and `drive/SUITE/FIGURE`.

    Those of the stack are pooled over scenarios, those of drives are means over them.

    Args:
        path_dir: Evaluation directory (docs/comparison.md); either part may be missing.
        labels: What drives call the bundle, and earlier copies of it.
        digests: Of the same, as `perception.json` has one.
        rig: Name of the bundle's.
    Raises:
        InputError: If there is nothing, or something is of another network or a part of a suite, or was
            measured with another rig, other parameters or something degraded.
    """
    path = Path(path_dir)
    evaluation = read_evaluation(path)
    found: dict[str, float] = {}
    if evaluation.pooled:
        document = json.loads((path / PERCEPTION).read_text(encoding="utf-8"))
        _refuse(path / PERCEPTION, document, document.get("bundle_digest"), digests, rig)
        room = f"{STACK_ROOM}/{document['suite']}"
        found[f"{room}/scenarios"] = float(document["scenarios"])
        found |= {f"{room}/{name}": value for name, value in evaluation.pooled.items()}
    for name in evaluation.drives:
        _, summary = read_outcomes(path / name)
        _refuse(path / name, summary, summary.get("policy"), [f"bundle:{label}" for label in labels], rig)
        if name != f"{DRIVE}{summary['suite']}" or summary.get("loop", "closed") != "closed":
            raise InputError(
                f"{path / name} is of suite {summary['suite']!r}, {summary.get('loop', 'closed')} loop; "
                f"expected {DRIVE}SUITE, driven in closed loop"
            )
        figures = {key: summary.get(key) for key in ("episodes", *RATES, *MEANS)}
        found |= {
            f"{DRIVE_ROOM}/{summary['suite']}/{key}": float(value)
            for key, value in figures.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
    if not found:
        raise InputError(f"{path} holds no figures; expected what `evaluate` or `drive` wrote of a suite")
    return found


def _refuse(path: Path, document: Mapping[str, Any], got: Any, expected: Collection[str], rig: str) -> None:
    if got not in expected:
        raise InputError(f"{path} was measured of {got}; expected {' or '.join(expected)}")
    for key in CHANGES:
        if document.get(key):
            raise InputError(
                f"{path} was measured with {key} {document[key]!r}; expected a whole suite, nothing changed"
            )
    if document.get("rig") != rig:
        raise InputError(f"{path} was measured with rig {document.get('rig')}; expected the bundle's, {rig}")
