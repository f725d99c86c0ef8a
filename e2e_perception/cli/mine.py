"""`mine`: which clips are worth a person's time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, finite, print_table, progress_bar
from e2e_perception.cli.options import CLIPS_HELP, JsonOption
from e2e_perception.core.errors import ConfigError


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

    Needs no labels. Each clip has a score, and the signals behind it as shares of clips that have less.

    Example: `e2e-perception mine dataset --bundle tiny --count 20 --out review.json`
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("mining needs torch, which is not installed; `pip install .[training]`")

    import numpy as np

    from e2e_perception.data.shards import DATASET, Dataset, digest_of, open_clips
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines.torch_engine import load_network
    from e2e_perception.training.mining import SIGNALS
    from e2e_perception.training.mining import mine as look

    weights = _weights(weight or [f"{name}=1" for name in SIGNALS])
    opened = load_bundle(bundle)
    stores = open_clips(dataset)
    clips = [(store, index) for store in stores for index in range(len(store))]
    if max_clips is not None and len(clips) > max_clips:
        clips = [clips[int(i)] for i in np.linspace(0, len(clips) - 1, max_clips)]
    model = load_network(opened.weights_path, opened.network)
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
    for item in found:
        store, index = clips[item.index]
        row = store.rows[index]
        listed.append(
            {
                "shard": store.path.name,
                "clip_id": row["clip_id"],
                "stamp_ns": row["first_stamp_ns"],
                **{key: value for key, value in asdict(item).items() if key != "index"},
            }
        )
    document = finite(
        {
            # As `dataset show` has it; plain clips are no dataset of shards.
            "dataset_digest": Dataset(dataset).digest if (dataset / DATASET).is_file() else digest_of(stores),
            "bundle": str(opened),
            "weights": weights,
            "looked_at": len(clips),
            "clips": listed,
        }
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if as_json:
        emit_json(document)
        return
    rows = [
        (f"{c['shard']}/{c['clip_id']}", *(f"{v:.2f}" for v in (c["score"], *map(c["ranks"].get, SIGNALS))))
        for c in listed
    ]
    print_table(f"{len(listed)} of {len(clips)} clips", ("clip", "score", *SIGNALS), rows)


def _weights(words: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not weights[name] >= 0.0:
            raise ConfigError(f"--weight {word!r}: expected a signal, = and a number of at least 0")
    return weights
