"""Writing bundles: whole or not at all, and what they say of themselves."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_perception.core.errors import BundleError
from e2e_perception.deploy.bundle import (
    EVALUATION,
    MANIFEST,
    SAME_NETWORK,
    Bundle,
    load_bundle,
    write_checksums,
)

# First parts of the names of figures that are of more than the network on clips.
STACK, DRIVE = "stack", "drive"
ROOMS = (STACK, DRIVE)
# Title, beginning of the figures' names, and what they are.
ROOMS_OF_CARD = (
    (
        "The network on clips",
        "",
        "On held-out clips, open loop; `no_sensors/` and `shuffled_sensors/` are the controls of\n"
        "`e2e-perception evaluate`, `constant_velocity` goes on as before, `parent/` is the bundle that\n"
        "this one was trained on from.",
    ),
    (
        "The whole stack on others' drives",
        f"{STACK}/",
        "The node's stack, without ROS, rides along with the expert through a suite\n"
        "(`e2e-perception evaluate --suite`); all scenarios pooled.",
    ),
    (
        "Driving in closed loop",
        f"{DRIVE}/",
        "The same stack drives a suite on simulated sensors (`e2e-perception drive --suite`); means over\n"
        "scenarios.",
    ),
)


@contextmanager
def fresh_bundle(out: Path) -> Iterator[Path]:
    """A directory to fill; it becomes the bundle `out` if nothing is raised.

    Raises:
        BundleError: If something other than a bundle is at `out`, or what was written is none.
    """
    check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / "bundle"
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            file.chmod(0o644)  # safetensors would keep it to its writer; bundles are for the robot's users
        write_checksums(fresh)
        load_bundle(fresh)
        fresh.chmod(0o755)
        before: Path | None = None
        if out.exists():
            before = Path(scratch) / "before"  # gone with the scratch directory, but for what happens next
            out.rename(before)
        try:
            fresh.rename(out)
        except OSError:
            if before is not None:
                before.rename(out)
            raise


def check_place(out: Path) -> None:
    """Refuse a place for a bundle where something else is.

    Raises:
        BundleError: If there is.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} is there already and is no bundle; name another directory")


def write_description(fresh: Path, manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """What a bundle says of itself: manifest, figures, card. The same content gives the same bytes.

    Args:
        fresh: From `fresh_bundle`.
        manifest: As `bundle.json` holds it.
        evaluation: Figures by name.
    """
    for name, document in ((MANIFEST, manifest), (EVALUATION, evaluation)):
        text = json.dumps(document, indent=1, sort_keys=True)
        (fresh / name).write_text(text + "\n", encoding="utf-8")
    (fresh / "MODEL_CARD.md").write_text(model_card(manifest, evaluation), encoding="utf-8")


def with_evaluation(
    bundle: Bundle, out: Path, figures: Mapping[str, float], known_faults: Sequence[str] = ()
) -> dict[str, Any]:
    """Copy a bundle with more figures in it; its graph, weights and recorded rollout stay as they are.

    Args:
        bundle: What was measured.
        out: Directory to create; an existing bundle there is replaced.
        figures: By name, `ROOM/SUITE/NAME` with one of `ROOMS`; what the bundle has of the same room and
            suite is dropped.
        known_faults: A sentence each, for the card; none: as they are.
    Returns:
        All figures of the copy; its provenance has the digests of what it is a copy of (`SAME_NETWORK`).
    Raises:
        BundleError: If something other than a bundle is at `out`.
    """
    renewed = tuple({"/".join(name.split("/")[:2]) + "/" for name in figures})
    before = json.loads((bundle.path / EVALUATION).read_text(encoding="utf-8"))
    kept = {name: value for name, value in before.items() if not name.startswith(renewed)}
    evaluation = {**kept, **figures}
    manifest = dict(bundle.manifest)
    manifest["provenance"] = {**manifest["provenance"], SAME_NETWORK: list(bundle.digests)}
    if known_faults:
        manifest["known_faults"] = list(known_faults)
    with fresh_bundle(out) as fresh:
        for file in bundle.path.iterdir():
            shutil.copyfile(file, fresh / file.name)
        write_description(fresh, manifest, evaluation)
    return evaluation


def model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """The text for people, from a bundle's manifest and figures."""
    facts = "\n".join(f"- {key}: {value}" for key, value in sorted(manifest["provenance"].items()))
    parts = []
    for title, prefix, text in ROOMS_OF_CARD:
        rows = [
            f"| {key.removeprefix(prefix)} | {value:.4g} |"
            if isinstance(value, float)
            else f"| {key.removeprefix(prefix)} | {value} |"
            for key, value in sorted(evaluation.items())
            if isinstance(value, int | float | str) and _room(key) == prefix
        ]
        if rows:
            parts.append(f"### {title}\n\n{text}\n\n| figure | value |\n| --- | --- |\n" + "\n".join(rows))
    measured = "\n\n".join(parts) or "Nothing."
    faults = "".join(f"- {fault}\n" for fault in manifest.get("known_faults", ()))
    return f"""# {manifest["name"]}

Joint detection, tracking, motion prediction and planning; {manifest["num_parameters"]:,} parameters, size
`{manifest["network"]["size"]}`, trained for the rig `{manifest["rig"]["name"]}`.

## Intended use

Research and development on robots under supervision, and as the CPU default of e2e_perception. It was
trained on simulated traffic; it has not been validated for driving a vehicle among people.

## Training

{facts}

## Measured

{measured}

## Limits

- Trained on simulated sensors alone; on real ones expect more misses and false alarms than measured here.
- Roads are nearly flat, lanes are marked, there are no traffic lights.
- Classes: {", ".join(manifest["classes"])}.
{faults}"""


def _room(figure: str) -> str:
    """Which part of the card a figure is in: one of `ROOMS`, with its slash, or none."""
    room = figure.split("/")[0]
    return f"{room}/" if room in ROOMS else ""
