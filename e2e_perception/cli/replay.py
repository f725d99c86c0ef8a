"""`replay`: a bag through the stack, offline and without ROS, the same result every time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from e2e_perception.cli.console import emit_json, finite, log, print_table, progress_bar
from e2e_perception.cli.options import (
    BackendOption,
    BundleOption,
    JsonOption,
    ParamsOption,
    RigOption,
    given_parameters,
    named_rig,
    stack_config,
)
from e2e_perception.core.config import StackConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import find_rig


def replay(
    bag: Annotated[Path, typer.Argument(metavar="BAG", help="A rosbag2 directory or an .mcap / .db3 file.")],
    out: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("replay_out"),
    bundle: BundleOption = None,
    rig: RigOption = None,
    backend: BackendOption = None,
    params: ParamsOption = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a bag through the stack, offline: the robot's code without ROS, with time taken from the bag.

    Writes `tracks.jsonl` and `plans.jsonl` (byte-identical from run to run), `outputs/` (an MCAP bag),
    `summary.json` and `report.html`.

    Example: `e2e-perception replay my_bag --bundle tiny --out replay_out`
    """
    config = stack_config(params, given_parameters(bundle=bundle, backend=backend, rig=rig))
    summary = replay_bag(bag, out, config=config, rig_name=named_rig(config, rig), with_report=report)
    if as_json:
        emit_json(summary)
    else:
        from e2e_perception.cli.results import summary_rows

        print_table(f"{bag.name} through {summary['bundle']}", ("figure", "value"), summary_rows(summary))
        typer.echo(f"results in {out}")


def replay_bag(
    bag: Path, out: Path, *, config: StackConfig, rig_name: str | None, with_report: bool = True
) -> dict[str, Any]:
    """Replay a bag and write everything that it gives.

    Args:
        bag: Recording to read.
        out: Directory to write into; results of an earlier replay there are replaced.
        config: All tunables, engine included.
        rig_name: Rig file or name; None picks the shipped rig whose topics are in the bag.
        with_report: Also write `report.html`.
    Returns:
        The content of `summary.json`.
    Raises:
        E2EPerceptionError: If bag, rig, bundle or backend cannot be used.
    """
    import resource

    import psutil

    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.cli.inputs import rig_for_topics
    from e2e_perception.cli.offline import Event, Labels, play
    from e2e_perception.cli.outputs import OutputBag, refuse_own_results, remove_outputs, write_run_report
    from e2e_perception.cli.results import plan_line, summarize, tracks_line
    from e2e_perception.core.boxes import Boxes
    from e2e_perception.core.ego_motion import EgoState
    from e2e_perception.data.bags import BagSource
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import configured_engine
    from e2e_perception.evaluation.on_bag import plan_figures, tracking_figures
    from e2e_perception.runtime.pipeline import Pipeline

    if rig_name is None:
        with BagSource(bag) as source:
            rig_name = rig_for_topics(source.types)
    loaded = load_bundle(config.engine.bundle)
    rig = find_rig(rig_name).with_topic_rules(config.node.sensor_topics)
    with BagStream(bag, rig, config) as stream:
        engine = configured_engine(loaded, config.engine, log)
        pipeline = Pipeline(loaded.network, stream.rig, engine, config, str(loaded))
        backend = str(engine.info)
        log(f"rig {stream.rig.name}, bundle {loaded}, {backend}")
        refuse_own_results(bag, out / "outputs")
        out.mkdir(parents=True, exist_ok=True)
        remove_outputs(out / "outputs")
        for name in ("summary.json", "report.html"):
            (out / name).unlink(missing_ok=True)
        frames: list[FrameResult] = []
        silences: list[FrameResult] = []
        process = psutil.Process()
        before, started = process.cpu_times(), time.perf_counter()
        with (
            progress_bar("replaying", stream.num_messages) as progress,
            (out / "tracks.jsonl").open("w", encoding="utf-8") as tracks_file,
            (out / "plans.jsonl").open("w", encoding="utf-8") as plans_file,
            OutputBag(out / "outputs", stream.rig.base_frame) as outputs,
        ):

            def each(result: FrameResult, now_ns: int, is_frame: bool) -> None:
                (frames if is_frame else silences).append(result)
                tracks_file.write(tracks_line(result))
                plans_file.write(plan_line(result))
                outputs.write(result, now_ns)

            odometry: list[EgoState] = []
            labels: dict[int, Boxes] = {}

            def watched() -> Iterator[Event]:
                for event in stream.events(progress):
                    if isinstance(event.content, EgoState):
                        odometry.append(event.content)
                    elif isinstance(event.content, Labels):
                        labels[event.content.stamp_ns] = event.content.boxes
                    yield event

            play(pipeline, watched(), each)
        wall_s = time.perf_counter() - started
        after = process.cpu_times()
        drops = pipeline.health(stream.end_ns).drops
        engine.close()
        summary = summarize(
            frames,
            frames_in=stream.num_anchor_messages,
            drops=drops,
            cpu_share=(after.user + after.system - before.user - before.system)
            / max(stream.duration_s, 1e-3),
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        )
        size_note = stream.rig.footprint_note(loaded.rig)
        warnings = [*stream.warnings, *([size_note] if size_note else [])]
        summary |= {
            "mode": "offline",
            "speed": round(stream.duration_s / wall_s, 2),
            "silences": len(silences),
            "bundle": str(loaded),
            "backend": backend,
            "rig": stream.rig.name,
            "against_labels": tracking_figures(frames, labels),
            "against_driven": plan_figures(frames, odometry),
            "warnings": warnings,
        }
        (out / "summary.json").write_text(json.dumps(finite(summary), indent=1) + "\n", encoding="utf-8")
        if with_report:
            write_run_report(out / "report.html", stream, [*frames, *silences], summary)
        for warning in warnings:
            log(f"warning: {warning}")
    return summary
