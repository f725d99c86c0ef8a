"""`audit`: what is odd about a dataset, and whether it may be trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from e2e_perception.cli.audit_page import PROVENANCE_HEAD, as_page, pictures_of, provenance_rows
from e2e_perception.cli.console import emit_json, log, print_table, progress_bar
from e2e_perception.cli.options import DATASET_HELP, JsonOption
from e2e_perception.cli.places import check_file_place
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.named_files import offending_keys, read_named

if TYPE_CHECKING:
    from e2e_perception.data.audit import Gates, Report
    from e2e_perception.data.shards import Dataset

FOLDER = "gates"
SHOWN = 20  # findings in the terminal


def audit(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help=DATASET_HELP)],
    gates: Annotated[
        str, typer.Option(help="What must hold: a YAML file, or the name of a shipped one.")
    ] = "default",
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write all findings as a page.", show_default=False)
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare every clip with its digest first.")] = True,
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Also say which labels this one finds, by class, distance, weather and so on; torch."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at every clip of a dataset: timing, odometry, labels, balance, repetition, leaks between splits.

    Findings name a shard and a clip to look at. Exit code 1 if a gate is broken, 2 if the dataset is damaged.

    Example: `e2e-perception audit dataset --html audit.html`
    """
    from e2e_perception.data.audit import Report
    from e2e_perception.data.audit import audit as look
    from e2e_perception.data.shards import Dataset

    wanted = load_gates(gates)
    if page is not None:
        check_file_place(page, "--html")
    opened = Dataset(dataset)
    if not opened.shards():
        raise ConfigError(f"{dataset} holds no finished shard; `e2e-perception ingest` makes some")
    if verify:
        opened.verify()
    report = Report("")
    with progress_bar("auditing", 100) as progress:
        for done, total, found in look(opened, wanted):
            report = found
            progress(100 * done // max(total, 1))
    recall = _recall(opened, bundle) if bundle is not None else {}
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        pictures = pictures_of(report, opened)
        page.write_text(as_page(report, dataset, recall, pictures), encoding="utf-8")
    if as_json:
        emit_json({**as_document(report), **({"recall": recall} if bundle is not None else {})})
    else:
        _print(report, dataset)
        rows = [
            (name, value, f"{r['labels']:,}", f"{r['recall']:.1%}")
            for name, values in recall.items()
            for value, r in values.items()
        ]
        if rows:
            print_table(f"labels that {bundle} finds", ("of", "", "labels", "found"), rows)
    for gate in report.broken_gates:
        log(f"gate broken: {gate}")
    if report.broken_gates:
        raise typer.Exit(1)


def _recall(dataset: Dataset, bundle: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By slice and value: labels, and the share of them that a bundle finds."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("--bundle needs torch, which is not installed; `pip install .[training]`")

    from e2e_perception.data.slices import clip_slices
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import bundle_network
    from e2e_perception.training.recall import recall_by_slice

    opened = load_bundle(bundle)
    clips, slices = [], []
    for store in dataset.stores():
        facts = dataset.facts(store.path.name)
        for index, row in enumerate(store.rows):
            if row["labels_valid"] is not False:
                clips.append((store, index))
                slices.append(clip_slices(row, facts))
    network = bundle_network(opened, log)
    with progress_bar("detecting", max(len(clips), 1)) as progress:
        found = recall_by_slice(network, clips, slices, lambda done, _total: progress(done))
    return {
        name: {value: {"labels": r.labels, "recall": round(r.share, 4)} for value, r in values.items()}
        for name, values in found.items()
    }


def load_gates(path_or_name: str) -> Gates:
    """Gates of a file, or of a shipped one.

    Raises:
        ConfigError: If it is missing or says something unknown.
    """
    from e2e_perception.data.audit import Gates

    path, document = read_named(path_or_name, what="gates", folder=FOLDER, expected="a mapping of limits")
    try:
        return Gates.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(offending_keys(error, 'gates'))}") from error


def as_document(report: Report) -> dict[str, Any]:
    """For `--json`."""
    return {
        "digest": report.digest,
        "clips": report.clips,
        "labelled_clips": report.labelled_clips,
        "findings": [asdict(finding) for finding in report.findings],
        "balance": report.balance,
        "sensors": report.sensors,
        "provenance": report.provenance,
        "doubled_share": round(report.doubled_share, 4),
        "broken_gates": report.broken_gates,
        "passed": not report.broken_gates,
    }


def _print(report: Report, dataset: Path) -> None:
    for finding in report.findings[:SHOWN]:
        where = "/".join(part for part in (finding.shard, finding.clip_id) if part)
        typer.echo(f"{finding.severity:8} {finding.check}: {finding.message} [{where}]")
    if len(report.findings) > SHOWN:
        typer.echo(f"and {len(report.findings) - SHOWN} more; --html or --json has all of them")
    rows = [
        (name, key, f"{count:,}") for name, counts in report.balance.items() for key, count in counts.items()
    ]
    print_table(f"what is in {dataset}", ("of", "", "count"), rows)
    if report.provenance:
        print_table("where labels come from", PROVENANCE_HEAD, provenance_rows(report))
    typer.echo(
        f"{report.clips} clips, {report.labelled_clips} labelled, {len(report.findings)} findings; "
        f"{'no gate is broken' if not report.broken_gates else 'gates are broken'}"
    )
