"""Entry point: the list of commands, and what a user sees when something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from errno import EDQUOT, EIO, ENOSPC, EROFS
from typing import Annotated

import typer

import e2e_perception
from e2e_perception.cli import (
    audit,
    autolabel,
    build_engine,
    bundle,
    compare,
    dataset,
    demo,
    doctor,
    drive,
    evaluate,
    export,
    import_log,
    ingest,
    label,
    mine,
    pareto,
    quantize,
    replay,
    retrain,
    review,
    run,
    simulate,
    track,
    train,
)
from e2e_perception.cli.console import emit_json, forget_emitted_json, json_was_emitted, log
from e2e_perception.core.errors import E2EPerceptionError

USER_ERROR = 2

app = typer.Typer(
    name="e2e-perception",
    help="Detection, tracking, prediction and planning with one jointly trained network.",
    epilog="Start with `e2e-perception doctor`, then `e2e-perception demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(e2e_perception.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _module in (
    doctor,
    demo,
    replay,
    run,
    simulate,
    ingest,
    audit,
    mine,
    autolabel,
    label,
    drive,
    track,
    train,
    retrain,
    export,
    quantize,
    evaluate,
    compare,
    pareto,
):
    _name = _module.__name__.rpartition(".")[2]
    app.command(_name)(getattr(_module, _name))
app.command("build-engine")(build_engine.build_engine)
app.command("import-log")(import_log.import_log)
app.add_typer(bundle.app, name="bundle")
app.add_typer(dataset.app, name="dataset")
app.add_typer(review.app, name="review")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None takes `sys.argv`.
    Returns:
        Exit code: 2 with one sentence on stderr for anything that the user can mend, 130 when interrupted;
        a traceback is our own bug.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    forget_emitted_json()
    try:
        app(args=given, prog_name="e2e-perception")
    except E2EPerceptionError as error:
        return _user_error(str(error), given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`); Python must not complain again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # Disks, permissions and paths are the user's; any other OSError is not.
        if error.filename is None and error.errno not in (ENOSPC, EDQUOT, EIO, EROFS):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        return _user_error(f"{where}{error.strerror or error}", given)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code == USER_ERROR and "--json" in given and not json_was_emitted():
            emit_json({"error": "the command line was not understood; stderr says what of it"})
        return code
    return 0


def _user_error(sentence: str, given: Sequence[str]) -> int:
    log(f"error: {sentence}")
    if "--json" in given:
        emit_json({"error": sentence})
    return USER_ERROR
