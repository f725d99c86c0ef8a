"""`bundle inspect`, `bundle verify`, `bundle record-rollout` and `bundle add-evaluation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, print_table
from e2e_perception.cli.options import JsonOption
from e2e_perception.core.errors import ConfigError

app = typer.Typer(
    help="Look into bundles: what goes to the robot.", no_args_is_help=True, rich_markup_mode="markdown"
)
BundleArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="Bundle directory, or the name of a shipped bundle.")
]


@app.command()
def inspect(path: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle holds, after checking all of it.

    Example: `e2e-perception bundle inspect tiny`
    """
    import json

    from e2e_perception.deploy.bundle import load_bundle

    bundle = load_bundle(path)
    evaluation = json.loads((bundle.path / "evaluation.json").read_text(encoding="utf-8"))
    if as_json:
        emit_json(
            {
                "path": str(bundle.path),
                "name": bundle.name,
                "digest": bundle.digest,
                "manifest": bundle.manifest,
                "evaluation": evaluation,
            }
        )
        return
    manifest = bundle.manifest
    facts = [
        ("name", bundle.name),
        ("digest", bundle.digest),
        ("size", bundle.network.size),
        ("parameters", str(manifest.get("num_parameters", "not stated"))),
        ("rig", f"{bundle.rig.name}: {', '.join(s.name for s in bundle.rig.sensors)}"),
        ("classes", ", ".join(manifest["classes"])),
        *sorted((key, str(value)) for key, value in manifest.get("provenance", {}).items()),
    ]
    print_table(f"Bundle {bundle.path}", ("what", "value"), facts, wide=True)
    for title, specs in (("Inputs", bundle.contract.inputs), ("Outputs", bundle.contract.outputs)):
        rows = [(s.name, f"{s.dtype}{list(s.shape)}", s.meaning) for s in specs]
        print_table(title, ("tensor", "type", "meaning"), rows, wide=True)
    if evaluation:
        figures = [
            (key, f"{v:.4g}" if isinstance(v, float) else str(v)) for key, v in sorted(evaluation.items())
        ]
        print_table("Measured", ("figure", "value"), figures)


@app.command()
def verify(path: BundleArgument, as_json: JsonOption = False) -> None:
    """Check checksums, schema, tensor contract, graph, classes and rig; exit 2 names the first that is wrong.

    Example: `e2e-perception bundle verify resource/bundles/tiny`
    """
    from e2e_perception.deploy.bundle import NOT_CHECKED, verify_bundle

    checks = verify_bundle(path)
    unchecked = [name for name, found in checks if found.startswith(NOT_CHECKED)]
    if as_json:
        rows = [{"check": name, "found": found} for name, found in checks]
        emit_json({"ok": True, "unchecked": unchecked, "checks": rows})
    else:
        title = f"Nothing wrong; not checked: {', '.join(unchecked)}" if unchecked else "All checks passed"
        print_table(title, ("check", "found"), checks, wide=True)


@app.command("record-rollout")
def record_rollout(
    path: BundleArgument,
    out: Annotated[
        Path,
        typer.Option(help="Bundle directory to write; an existing bundle is replaced.", show_default=False),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Clips to take the frames from; without, they are generated.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle and record in it what torch makes of some frames, for engines to be checked against.

    `export` does so by itself; this is for bundles that were written before it did. The copy has another
    digest.

    Example: `e2e-perception bundle record-rollout tiny --data clips --out bundles/tiny`
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("recording needs torch, which is not installed; `pip install .[training]`")
    from e2e_perception.cli.rollouts import rollouts_of
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.export import with_rollout

    bundle = load_bundle(path)
    recorded = with_rollout(bundle, out, rollouts_of(data, bundle.network))
    written = load_bundle(out)
    facts = {
        "path": str(out),
        "name": written.name,
        "digest": written.digest,
        "frames": len(recorded),
        "source": recorded.frames.source,
    }
    if as_json:
        emit_json(facts)
    else:
        print_table("Recorded", ("what", "value"), [(k, str(v)) for k, v in facts.items()], wide=True)


@app.command("add-evaluation")
def add_evaluation(
    path: BundleArgument,
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIRECTORY",
            help="What was measured of it: an evaluation directory (docs/comparison.md).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Bundle directory to write; an existing bundle is replaced.", show_default=False),
    ],
    known_fault: Annotated[
        list[str] | None,
        typer.Option(help="A sentence for the model card; repeatable.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle and put what was measured of it into its evaluation and model card.

    DIRECTORY is the `--out` of `evaluate --suite`, with those of `drive --suite` in it as `drive-SUITE`. What
    was measured of another network, with another rig, other parameters or something degraded, or of a part of
    a suite is refused. The copy has another digest; its graph and weights are the same, and it can be added
    to.

    Example: `e2e-perception bundle add-evaluation tiny runs/tiny --out resource/bundles/tiny`
    """
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.bundle_writing import with_evaluation
    from e2e_perception.evaluation.bundle_figures import bundle_figures

    bundle = load_bundle(path)
    figures = bundle_figures(directory, bundle.labels, bundle.digests, bundle.rig.name)
    with_evaluation(bundle, out, figures, known_fault or ())
    facts = {
        "path": str(out),
        "name": bundle.name,
        "digest": load_bundle(out).digest,
        "figures": len(figures),
    }
    if as_json:
        emit_json(facts)
    else:
        print_table("Added", ("what", "value"), [(k, str(v)) for k, v in facts.items()], wide=True)
