"""`bundle inspect` and `bundle verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, print_table
from e2e_perception.cli.options import JsonOption

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
    from e2e_perception.deploy.bundle import verify_bundle

    checks = verify_bundle(path)
    if as_json:
        emit_json({"ok": True, "checks": [{"check": name, "found": found} for name, found in checks]})
    else:
        print_table("All checks passed", ("check", "found"), checks, wide=True)
