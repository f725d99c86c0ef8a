"""`mine`: which clips are worth a person's time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, finite, log, print_table, progress_bar
from e2e_perception.cli.options import CLIPS_HELP, JsonOption
from e2e_perception.cli.places import check_file_place
from e2e_perception.core.errors import ConfigError

if TYPE_CHECKING:
    from e2e_perception.data.clip_store import ClipStore

BLIND = "no sensor is there in any frame, so that nobody can say more of it"


def mine(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help=f"{CLIPS_HELP}.")],
    bundle: Annotated[str, typer.Option(help="Whose weaknesses are looked for.")] = "tiny",
    count: Annotated[int, typer.Option(min=1, help="Clips in the list.")] = 50,
    out: Annotated[
        Path | None, typer.Option(help="Write the list as JSON, for `review`.", show_default=False)
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIGNAL=VALUE",
            help="Weight of uncertainty, disagreement, breaks, regret, interventions or novelty; repeatable. "
            "Those that are not given weigh nothing.",
            show_default="1 of each",
        ),
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="What likeness to clips already in the list costs.")
    ] = 0.5,
    max_clips: Annotated[
        int | None, typer.Option(min=1, help="Look at so many, evenly spread.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the clips that a network is unsure of, sees differently with each sensor, or plans otherwise in.

    Needs no labels. Each clip has a score, and the signals behind it as shares of clips that have less. Clips
    without any sensor are listed apart.

    Example: `e2e-perception mine dataset --bundle tiny --count 20 --out review.json`
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("mining needs torch, which is not installed; `pip install .[training]`")

    import numpy as np

    from e2e_perception.data.shards import DATASET, Dataset, digest_of, open_clips
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import bundle_network
    from e2e_perception.training.mining import SIGNALS
    from e2e_perception.training.mining import mine as look

    weights = _weights(weight or [f"{name}=1" for name in SIGNALS], SIGNALS)
    if out is not None:
        check_file_place(out, "--out")
    opened = load_bundle(bundle)
    stores = open_clips(dataset)
    clips = [(store, index) for store in stores for index in range(len(store))]
    if max_clips is not None and len(clips) > max_clips:
        clips = [clips[int(i)] for i in np.linspace(0, len(clips) - 1, max_clips)]
    model = bundle_network(opened, log)
    with progress_bar("mining", len(clips)) as progress:
        found = look(
            model,
            clips,
            count=count,
            weights=weights,
            diversity=diversity,
            progress=lambda done, _total: progress(done),
        )
    listed = []
    for item in found.clips:
        said = {key: value for key, value in asdict(item).items() if key != "index"}
        listed.append({**_named(*clips[item.index]), **said})
    left_out = [{**_named(*clips[index]), "reason": BLIND} for index in found.blind]
    document = finite(
        {
            # As `dataset show` has it; plain clips are no dataset of shards.
            "dataset_digest": Dataset(dataset).digest if (dataset / DATASET).is_file() else digest_of(stores),
            "bundle": str(opened),
            "weights": weights,
            "looked_at": len(clips),
            "clips": listed,
            "left_out": left_out,
        }
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if as_json:
        emit_json(document)
        return
    rows = [
        (f"{c['shard']}/{c['clip_id']}", f"{c['score']:.2f}", *(_rank(c, name) for name in SIGNALS))
        for c in listed
    ]
    title = f"{len(listed)} of {len(clips)} clips; shares of clips that have less, – is not known"
    print_table(title, ("clip", "score", *SIGNALS), rows, names=True)
    if left_out:
        typer.echo(f"{len(left_out)} clips are left out: {BLIND}; --json or --out names them")


def _named(store: ClipStore, index: int) -> dict[str, Any]:
    row = store.rows[index]
    return {"shard": store.path.name, "clip_id": row["clip_id"], "stamp_ns": row["first_stamp_ns"]}


def _rank(clip: dict[str, Any], name: str) -> str:
    return "–" if clip["signals"][name] is None else f"{clip['ranks'][name]:.2f}"


def _weights(words: list[str], signals: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or name not in signals or not 0.0 <= weights[name] < float("inf"):
            raise ConfigError(
                f"--weight {word}: expected SIGNAL=VALUE, one of {', '.join(signals)}, and at least 0"
            )
    if not any(weights.values()):
        raise ConfigError(f"--weight {' '.join(words)}: expected at least one value above 0")
    return weights
