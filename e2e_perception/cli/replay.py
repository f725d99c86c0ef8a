"""`replay`: a bag through the stack, offline and without ROS, the same result every time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from e2e_perception.cli.console import JsonOption, emit_json, finite, log, print_table, progress_bar
from e2e_perception.core.config import StackConfig, config_from_parameters, load_config
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Rig


def replay(
    bag: Annotated[Path, typer.Argument(metavar="BAG", help="A rosbag2 directory or an .mcap / .db3 file.")],
    out: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("replay_out"),
    bundle: Annotated[str | None, typer.Option(help="Bundle directory, or the name of a shipped one.")] = None,
    rig: Annotated[
        str | None, typer.Option(help="Rig file, or the name of a shipped one; default: the shipped one that fits.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="`onnxruntime`, `torch` or `auto`.")] = None,
    params: Annotated[Path | None, typer.Option(help="ROS parameter file; single options win over it.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a bag through the stack, offline: the robot's code without ROS, with time taken from the bag.

    Writes `tracks.jsonl` and `plans.jsonl` (byte-identical from run to run), `outputs/` (an MCAP bag),
    `summary.json` and `report.html`.

    Example: `e2e-perception replay my_bag --bundle tiny --out replay_out`
    """
    given = {"engine.bundle": bundle, "engine.backend": backend, "node.rig": rig}
    options = {name: value for name, value in given.items() if value is not None}
    config = config_from_parameters(options, load_config(params) if params else StackConfig())
    # A parameter file that names a rig decides; its default must not hide the rig that fits the bag.
    named = rig or (config.node.rig if config.node.rig != StackConfig().node.rig else None)
    run = replay_bag(bag, out, config=config, rig_name=named, with_report=report)
    if as_json:
        emit_json(run.summary)
    else:
        from e2e_perception.cli.results import summary_rows

        print_table(f"{bag.name} through {run.bundle}", ("figure", "value"), summary_rows(run.summary))
        typer.echo(f"results in {out}")


@dataclass(frozen=True)
class ReplayRun:
    """What a replay gave.

    Attributes:
        results: Of all frames, in order.
        summary: Content of `summary.json`.
        rig: As used, calibration from the bag included.
        bundle: Name and digest.
        backend: Engine that ran.
    """

    results: tuple[FrameResult, ...]
    summary: Mapping[str, Any]
    rig: Rig
    bundle: str
    backend: str


def replay_bag(
    bag: Path, out: Path, *, config: StackConfig, rig_name: str | None, with_report: bool = True
) -> ReplayRun:
    """Replay a bag and write everything that it gives.

    Args:
        bag: Recording to read.
        out: Directory to write into; results of an earlier replay there are replaced.
        config: All tunables, engine included.
        rig_name: Rig file or name; None picks the shipped rig whose topics are in the bag.
        with_report: Also write `report.html`.
    Raises:
        E2EPerceptionError: If bag, rig, bundle or backend cannot be used.
    """
    import resource

    import psutil

    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.cli.inputs import resolve_rig, rig_for_topics
    from e2e_perception.cli.offline import play
    from e2e_perception.cli.results import plan_line, summarize, tracks_line
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import create_engine
    from e2e_perception.runtime.pipeline import Pipeline

    loaded = load_bundle(config.engine.bundle)
    with BagStream(bag) as stream:
        rig = resolve_rig(rig_name or rig_for_topics(stream.topics))
        rig = stream.fitted(rig)
        engine = create_engine(loaded, config.engine.backend, config.engine.num_threads)
        pipeline = Pipeline(loaded.network, rig, engine, config, str(loaded))
        log(f"rig {rig.name}, bundle {loaded}, {engine.info}")
        out.mkdir(parents=True, exist_ok=True)
        results: list[FrameResult] = []
        stops: list[FrameResult] = []
        process = psutil.Process()
        started = process.cpu_times()
        wall = time.perf_counter()
        with (
            progress_bar("replaying", stream.num_messages) as progress,
            (out / "tracks.jsonl").open("w", encoding="utf-8") as tracks_file,
            (out / "plans.jsonl").open("w", encoding="utf-8") as plans_file,
            stream.output(out / "outputs", rig) as outputs,
        ):

            def each(result: FrameResult, is_frame: bool) -> None:
                (results if is_frame else stops).append(result)
                tracks_file.write(tracks_line(result))
                plans_file.write(plan_line(result))
                outputs.write(result)

            play(pipeline, stream.events(rig, config, progress), each)
        used = process.cpu_times()
        wall = time.perf_counter() - wall
        anchor = pipeline.assembler.anchor
        health = pipeline.health(stream.end_ns)
        info = str(engine.info)
        engine.close()
        cpu_s = used.user + used.system - started.user - started.system
        summary = summarize(
            results,
            frames_in=pipeline.assembler.counts()[anchor].received,
            drops=health.drops,
            cpu_share=cpu_s / max(stream.duration_s, 1e-3),
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        )
        summary |= {"speed": round(stream.duration_s / wall, 2), "silences": len(stops), "warnings": stream.warnings}
        (out / "summary.json").write_text(json.dumps(finite(summary), indent=1) + "\n", encoding="utf-8")
        run = ReplayRun(tuple(results), summary, pipeline.rig, str(loaded), info)
        if with_report:
            facts = {
                "bag": f"{bag.name}, {stream.duration_s:.1f} s",
                "bundle": run.bundle,
                "backend": info,
                "rig": rig.name,
                "mode": f"offline, {summary['speed']:.1f}× real time",
            }
            title = f"{bag.name} through {loaded.name}"
            stream.write_report(out / "report.html", [*results, *stops], run.rig, title, facts, summary)
    for warning in stream.warnings:
        log(f"warning: {warning}")
    return run
