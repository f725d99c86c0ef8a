"""What is known of an experiment's clips and trainings: from where they were made, or as it was published.

An experiment's directory has `clips/NAME/` and `runs/LABEL/` if they were made there, and
`published/clips/NAME.json` and `published/runs/LABEL.json` if what was made of them is from elsewhere.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import InputError

PUBLISHED = "published"  # in an experiment's directory: facts of what lies elsewhere


def dataset_facts(clips: Path) -> dict[str, Any]:
    """Digest, number and recipe of clips.

    Args:
        clips: Directory of `e2e-perception simulate --format clips`.
    """
    from e2e_perception.data.clip_store import ClipStore

    store = ClipStore(clips)
    recipe = json.loads((clips / "simulation.json").read_text(encoding="utf-8"))
    return {
        "digest": store.digest,
        "clips": len(store),
        **{key: recipe[key] for key in ("clip_length", "stride_s", "disturbed") if key in recipe},
    }


def training_facts(run: Path) -> dict[str, Any]:
    """Steps, hours of the optimiser's loop, speed and data stalls of a run, and its last validation.

    Args:
        run: Directory of `e2e-perception train`.
    Raises:
        InputError: If it has made no step.
    """
    from e2e_perception.training.checkpoint import load_checkpoint

    size = load_checkpoint(run).facts["training"]["batch_clips"]
    rows, validations = [], []
    for line in (run / "losses.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "figures" in row:
            validations.append(row)
        elif "clips_per_s" in row:  # and not the one that says what it began with
            rows.append(row)
    if not rows:
        raise InputError(f"{run / 'losses.jsonl'} has no step; expected a run of `e2e-perception train`")
    return {
        "steps": rows[-1]["step"],
        "hours": sum(size / row["clips_per_s"] for row in rows) / 3600.0,
        "clips_per_s": statistics.median(row["clips_per_s"] for row in rows),
        "data_share": statistics.median(row["data_share"] for row in rows),
        "rollbacks": sum(bool(row.get("event")) for row in rows),
        "cosines": mean_cosines(rows),
        "validation": validations[-1]["figures"] if validations else {},
    }


def mean_cosines(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean cosine between objectives' gradients, where it was measured."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.get("cosines", {}).items():
            seen.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in seen.items()}


def datasets_of(out: Path) -> dict[str, dict[str, Any]]:
    """`dataset_facts` by name, of an experiment.

    Raises:
        InputError: If there are none.
    """
    found = {path.stem: _read(path) for path in sorted((out / PUBLISHED / "clips").glob("*.json"))}
    made = sorted(path.parent for path in (out / "clips").glob("*/index.parquet"))
    found.update({path.name: dataset_facts(path) for path in made})
    if not found:
        raise InputError(
            f"{out} has neither clips/ nor published/clips/; name a directory of run_experiments.py"
        )
    return found


def training_of(out: Path, label: str) -> dict[str, Any]:
    """`training_facts` of one training of an experiment.

    Raises:
        InputError: If nothing is known of it.
    """
    run, published = out / "runs" / label, out / PUBLISHED / "runs" / f"{label}.json"
    if (run / "losses.jsonl").is_file():
        return {**training_facts(run), "minutes": minutes_of(out, label)}
    if published.is_file():
        return _read(published)
    raise InputError(f"neither {run / 'losses.jsonl'} nor {published} is there; expected one of them")


def minutes_of(out: Path, label: str) -> float | None:
    """How long a training took with its driving and validations, what was killed left out; None: unknown."""
    attempts = out / "steps" / f"train-{label}.seconds"
    if not attempts.is_file():
        return None
    return sum(float(line) for line in attempts.read_text(encoding="utf-8").split()) / 60.0


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
