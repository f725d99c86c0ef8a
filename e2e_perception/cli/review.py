"""`review export | import | serve`: labels to be looked at by people, and their verdicts as a layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, log, progress_bar
from e2e_perception.cli.options import DATASET_HELP, JsonOption
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.data.review_clips import ReviewDataset

app = typer.Typer(
    help="Have labels looked at: in CVAT, with other tools, or on a page of this machine.",
    no_args_is_help=True,
)

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help=DATASET_HELP)]
ListOption = Annotated[
    Path | None, typer.Option("--list", help="Only the clips that `mine` listed.", show_default="all clips")
]
ClipOption = Annotated[
    list[str] | None,
    typer.Option(
        "--clip", metavar="SHARD/CLIP", help="Only this one, as `audit` names it; repeatable.",
        show_default="all clips",
    ),
]  # fmt: skip
ReviewerOption = Annotated[str, typer.Option(help="Who decides; stands in every row.")]
LayerOption = Annotated[Path, typer.Option("--out", help="Layer of labels to write (Parquet).")]


class Format(str, Enum):
    """What labels are exported as."""

    cvat = "cvat"
    json = "json"


@app.command()
def export(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="Directory, new or empty.")],
    list_file: ListOption = None,
    clip: ClipOption = None,
    format: Annotated[Format, typer.Option(help="Tasks for CVAT, or one plain document.")] = Format.cvat,
    as_json: JsonOption = False,
) -> None:
    """Write pictures and labels for a labelling tool.

    For CVAT: in `birdseye/` a task of pictures from above, whose boxes can be moved, turned, added and taken
    away; beside it one per camera, to look at. Paste `labels.json` when the task is made, upload `images/`,
    then `annotations.xml` as "CVAT for video 1.1".

    Example: `e2e-perception review export dataset --list review.json --out to_cvat`
    """
    from e2e_perception.data.review_cvat import export_cvat
    from e2e_perception.data.review_json import export_json

    opened = _opened(dataset)
    names = opened.names(list_file, clip)
    write: Callable[..., dict[str, int]] = export_cvat if format is Format.cvat else export_json
    with progress_bar("exporting", len(names)) as progress:
        counts = write(opened, names, out, progress)
    if counts["outside"]:
        log(f"{counts['outside']} boxes lie outside of the pictures from above; nothing is decided of them")
    if as_json:
        emit_json({"out": str(out), "format": format.value, **counts})
        return
    typer.echo(f"{counts['clips']} clips, {counts['frames']} frames, {counts['boxes']} boxes in {out}")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR_OR_FILE",
            help="What `review export` wrote, changed in place; or a JSON, XML or ZIP file that came back.",
        ),
    ],
    dataset: Annotated[Path, typer.Option(help="That was exported.")],
    reviewer: ReviewerOption,
    out: LayerOption,
    exported: Annotated[
        Path | None,
        typer.Option(
            help="Directory that `review export` wrote, for an XML or ZIP file that lies elsewhere.",
            show_default="where the file lies",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read what came back from a labelling tool into a layer of labels.

    A label that is as it was is accepted, to the last digit; one that was moved or has another class is
    replaced; one that is missing is rejected; what was added gets a new identity, and its velocity from where
    it was in the frames. Of CVAT only the task of pictures from above is read.

    Example: `e2e-perception review import birdseye.zip --exported to_cvat --dataset dataset --reviewer kim
    --out kim.parquet`
    """
    from e2e_perception.data.label_layers import write_layer
    from e2e_perception.data.review_cvat import ANNOTATIONS, BIRDSEYE, MANIFEST, import_cvat
    from e2e_perception.data.review_json import DOCUMENT, import_json
    from e2e_perception.data.review_verdicts import Tally

    _check_reviewer(reviewer)
    if out.exists():
        raise ConfigError(f"{out} is there already, and may hold somebody's decisions; name another file")
    opened = _opened(dataset)
    tally = Tally()
    if source.is_dir() and (source / DOCUMENT).is_file():
        rows, shards = import_json(source / DOCUMENT, opened, reviewer, tally)
    elif source.suffix.lower() == ".json":
        rows, shards = import_json(source, opened, reviewer, tally)
    else:
        file = source / BIRDSEYE / ANNOTATIONS if source.is_dir() else source
        home = exported or (source if source.is_dir() else source.parent)
        # The file may be put back to where it was exported to, one level below the manifest.
        found = [place / MANIFEST for place in (home, home.parent) if (place / MANIFEST).is_file()]
        if not file.is_file() or not found:
            raise ConfigError(
                f"{source}: expected a directory of `review export`, a .json document, or an .xml or .zip "
                "file of CVAT with --exported naming that directory"
            )
        rows, shards = import_cvat(file, found[0], opened, reviewer, tally)
    write_layer(out, rows, shards=shards)
    counts = asdict(tally)
    if tally.left_out:
        log(f"{tally.left_out} boxes were added in one frame alone and are left out: no velocity follows")
    if as_json:
        emit_json({"out": str(out), "reviewer": reviewer, "rows": len(rows), **counts})
        return
    typer.echo(
        f"{out}: {tally.accepted} boxes accepted, {tally.edited} edited, {tally.rejected} rejected, "
        f"{tally.added} added"
    )


@app.command()
def serve(
    dataset: DatasetArgument,
    reviewer: ReviewerOption,
    out: LayerOption,
    list_file: ListOption = None,
    clip: ClipOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Look at clips on a page of this machine, and accept or reject their tracks. Ctrl-C ends it.

    Every decision is written to --out at once; with the same --out a review goes on where it was left. Only
    this machine is answered, and only with the token in the address.

    Example: `e2e-perception review serve dataset --list review.json --reviewer kim --out kim.parquet`
    """
    import webbrowser

    from e2e_perception.data.review_server import ReviewServer
    from e2e_perception.data.review_session import ReviewSession

    _check_reviewer(reviewer)
    opened = _opened(dataset)
    with ReviewSession(opened, opened.names(list_file, clip), out, reviewer) as session:
        with ReviewServer(session, port) as server:
            if as_json:
                emit_json({"url": server.url, "out": str(out), **session.progress()})
            log(f"review at {server.url}; Ctrl-C ends it")
            if browser and not webbrowser.open(server.url):
                log("no browser could be started; open the address yourself")
            with suppress(KeyboardInterrupt):
                server.serve_forever()
        log(_progress(session.progress(), out))


def _progress(progress: dict[str, Any], out: Path) -> str:
    return (
        f"{progress['decided']} of {progress['tracks']} tracks decided, {progress['accepted']} accepted, "
        f"{progress['rejected']} rejected" + (f"; {out}" if out.exists() else "; nothing was written")
    )


def _check_reviewer(reviewer: str) -> None:
    if not reviewer.strip() or len(reviewer) > 100 or not reviewer.isprintable():
        raise ConfigError(
            f"--reviewer {reviewer[:40]!r}: expected a name of at most 100 printable characters"
        )


def _opened(path: Path) -> ReviewDataset:
    from e2e_perception.data.review_clips import ReviewDataset
    from e2e_perception.data.shards import DATASET

    if not (path / DATASET).is_file():
        raise ConfigError(f"{path} is no dataset: it has no {DATASET}; `e2e-perception ingest` makes one")
    return ReviewDataset.open(path)
