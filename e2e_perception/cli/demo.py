"""`demo`: the whole loop over real ROS 2, from a bag (or a simulated one) to a report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

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
from e2e_perception.cli.processes import (
    NodeError,
    NodeProcess,
    parameter_arguments,
    require_ros,
    start_node,
    stop_nodes,
)
from e2e_perception.core.config import ParameterValue, StackConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.deploy.bundle import find_bundle

if TYPE_CHECKING:
    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.cli.live import ProcessMeter

DEMO_KIND, DEMO_SECONDS, DEMO_RIG = "stopped_queue", 12.0, "tiny"
SIMULATED = f"simulated_{DEMO_KIND}"
READY_TIMEOUT_S = 90.0
QUIET_S = 2.0  # this long without another frame after the bag is over means that all are done
SLACK_S = 60.0  # beyond its own length, for a bag to be played


def demo(
    bag: Annotated[
        Path | None, typer.Option(help="A rosbag2 recording.", show_default="a simulated drive of 12 s")
    ] = None,
    rig: RigOption = None,
    out: Annotated[
        Path, typer.Option(help="Directory for the results; those of an earlier demo are replaced.")
    ] = Path("demo_out"),
    rate: Annotated[float, typer.Option(min=0.05, max=10.0, help="Speed of the recording.")] = 1.0,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    params: ParamsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated drive.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Play a bag through the stack over ROS 2, each node in its own process, and write a report.

    Leaves `outputs/` (an MCAP bag), `summary.json`, `report.html` and the nodes' `logs/` in --out.

    Example: `e2e-perception demo --bag my_bag --out demo_out`
    """
    given = given_parameters(bundle=bundle, backend=backend, rig=rig)
    config = stack_config(params, given)
    from e2e_perception.cli.outputs import refuse_own_results
    from e2e_perception.data.bags import BagSource

    find_bundle(config.engine.bundle)
    require_ros()
    if bag is not None:
        refuse_own_results(bag, out)
        with BagSource(bag):
            pass  # what cannot be read is said before anything is removed
    _clear(out)
    rig_name = named_rig(config, rig)
    if bag is None:
        bag = out / SIMULATED
        rig_name = rig_name or DEMO_RIG
        log(f"no --bag given: simulating {DEMO_SECONDS:.0f} s of `{DEMO_KIND}`")
        from e2e_perception.cli.simulate import write_bag

        write_bag(bag, DEMO_KIND, seed, DEMO_SECONDS, find_rig(rig_name))
    summary = run_demo(bag, out, config=config, given=given, params=params, rig_name=rig_name, rate=rate)
    if as_json:
        emit_json(summary)
        return
    from e2e_perception.cli.results import summary_rows

    print_table(f"{bag.name} through {summary['bundle']}", ("figure", "value"), summary_rows(summary))
    typer.echo(f"open {out / 'report.html'} in a browser")


def run_demo(
    bag: Path,
    out: Path,
    *,
    config: StackConfig,
    given: Mapping[str, ParameterValue],
    params: Path | None,
    rig_name: str | None,
    rate: float,
) -> dict[str, Any]:
    """Play a bag through the nodes and judge what they published.

    Args:
        bag: Recording.
        out: Where to write.
        config: All tunables, as the perception node will see them.
        given: Those to be given to the node besides `params`.
        params: Parameter file for the node.
        rig_name: Rig file or name; None picks the shipped rig whose topics are in the bag.
        rate: Speed of play.
    Returns:
        The content of `summary.json`.
    Raises:
        NodeError: If a node dies or nothing comes out, with the node's last words.
    """
    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.cli.domain import private_domain
    from e2e_perception.cli.inputs import rig_for_topics
    from e2e_perception.cli.outputs import write_run_report
    from e2e_perception.cli.results import summarize
    from e2e_perception.data.bags import BagSource

    if rig_name is None:
        with BagSource(bag) as source:
            rig_name = rig_for_topics(source.types)
    rig = find_rig(rig_name).with_topic_rules(config.node.sensor_topics)
    with BagStream(bag, rig, config) as stream:
        parameters = {**given, "node.rig": _rig_for_node(rig_name, stream.rig, out)}
        with private_domain() as domain:
            log(f"ROS domain {domain}, rig {rig_name}, {stream.duration_s:.1f} s at {rate:g}×")
            meter = _play_live(stream, out, domain, parameters, params, rate)
        results = _published(out / "outputs")
        frames, silences = frames_and_silences(results)
        if not frames:
            raise NodeError(
                f"the stack processed no frame of {bag}; {out / 'logs'} holds what the nodes said"
            )
        last = max((r.health for r in results), key=lambda health: health.frames)
        drops = dict(last.drops)
        received = next(s.received for s in last.sensors if s.name == stream.anchor)
        # What neither node nor recorder saw would otherwise be missing without a cause.
        drops["not_received"] = max(0, stream.num_anchor_messages - received)
        drops["not_recorded"] = max(0, last.frames - len(frames))
        summary = summarize(
            frames,
            frames_in=stream.num_anchor_messages,
            drops=drops,
            cpu_share=None if meter is None else meter.cpu_share,
            peak_memory_mb=None if meter is None else meter.peak_memory_mb,
        )
        summary |= {
            "mode": f"live over DDS at {rate:g}×",
            "silences": len(silences),
            "bundle": last.bundle,
            "backend": last.backend,
            "rig": rig_name,
            "warnings": stream.warnings,
        }
        (out / "summary.json").write_text(json.dumps(finite(summary), indent=1) + "\n", encoding="utf-8")
        write_run_report(out / "report.html", stream, [*frames, *silences], summary)
    return summary


def _play_live(
    stream: BagStream,
    out: Path,
    domain: int,
    parameters: Mapping[str, ParameterValue],
    params: Path | None,
    rate: float,
) -> ProcessMeter | None:
    """Run the three nodes until the bag is over and all frames are out.

    Returns:
        CPU and memory of the stack while it played; None if no frame ever came.
    """
    from e2e_perception.cli.live import ProcessMeter, StackWatcher

    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    os.environ.update(environment)  # our own participant has to look where the others are
    nodes: list[NodeProcess] = []

    def start(name: str, arguments: list[str]) -> NodeProcess:
        nodes.append(start_node(name, arguments, environment=environment, log_path=logs / f"{name}.log"))
        return nodes[-1]

    clock = {"use_sim_time": True}
    try:
        stack = start("perception_node", parameter_arguments({**parameters, **clock}, params_file=params))
        recorder = start("recorder_node", parameter_arguments({"out": str(out / "outputs"), **clock}))
        with StackWatcher(domain, nodes) as watcher:
            watcher.activate("perception_node", READY_TIMEOUT_S)
            watcher.listen(READY_TIMEOUT_S, recorder="recorder_node")
            meter: ProcessMeter | None = None
            playing = {
                "bag": str(stream.path),
                "rate": float(rate),
                "wait_for_subscribers": stream.num_topics,
            }
            player = start("replay_node", parameter_arguments(playing))
            with progress_bar("playing", stream.num_anchor_messages) as progress:

                def played() -> bool:
                    nonlocal meter
                    if meter is None and watcher.frames > 0:  # waiting and loading are no load of the stack
                        meter = ProcessMeter(stack.process.pid)
                    elif meter is not None:
                        meter.sample()
                    progress(watcher.frames)
                    return player.exit_code is not None

                watcher.wait_until(played, "the bag to end", stream.duration_s / rate + SLACK_S)
                if player.exit_code != 0:
                    player.wait_for_output()
                    raise NodeError(player.failure())
                watcher.wait_until(lambda: watcher.quiet_s() > QUIET_S, "the last frames", SLACK_S)
        # The recorder first: it has to close its file.
        stop_nodes([recorder, stack])
        for node in (recorder, stack):
            if node.exit_code != 0:
                raise NodeError(node.failure())
    finally:
        stop_nodes(nodes)
    return meter


def _rig_for_node(name: str, rig: Rig, out: Path) -> str:
    """The rig as it was named, or a file where the recording has other topics."""
    if rig == find_rig(name):
        return name
    path = out / "rig.yaml"
    path.write_text(yaml.safe_dump(rig.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return str(path)


def _published(outputs: Path) -> list[FrameResult]:
    from e2e_perception.core.message_results import results_from_messages
    from e2e_perception.data.bags import BagSource

    with BagSource(outputs) as source:
        return results_from_messages((m.type_name, m.message) for m in source.messages())


def frames_and_silences(results: list[FrameResult]) -> tuple[list[FrameResult], list[FrameResult]]:
    """Results of frames, and stops because no frame came; heartbeats without either are left out.

    The node counts its frames, so a result whose count is not above all before has no frame behind it.
    """
    frames: list[FrameResult] = []
    silences: list[FrameResult] = []
    count = 0
    for result in results:
        if result.health.frames > count:
            count = result.health.frames
            frames.append(result)
        elif result.plan is not None:
            silences.append(result)
    return frames, silences


def _clear(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else."""
    from e2e_perception.cli.outputs import remove_outputs

    out.mkdir(parents=True, exist_ok=True)
    remove_outputs(out / "outputs")
    remove_outputs(out / SIMULATED)
    shutil.rmtree(out / "logs", ignore_errors=True)
    for name in ("summary.json", "report.html", "rig.yaml"):
        (out / name).unlink(missing_ok=True)
