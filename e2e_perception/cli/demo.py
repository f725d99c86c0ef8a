"""`demo`: the whole loop over real ROS 2, driving a simulated robot or playing a bag, and a report of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
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
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Rig, find_rig
from e2e_perception.deploy.bundle import find_bundle

if TYPE_CHECKING:
    from e2e_perception.cli.live import ProcessMeter

DEMO_SCENARIO = "intersection/1"
READY_TIMEOUT_S = 90.0
DRIVE_TIMEOUT_S = 600.0  # for an episode of at most 40 s, on however slow a machine
EPISODE_FILES = ("episode.html", "outcome.json")
QUIET_S = 2.0  # this long without another frame after the bag is over means that all are done
SLACK_S = 60.0  # beyond its own length, for a bag to be played


def demo(
    bag: Annotated[
        Path | None,
        typer.Option(help="A rosbag2 recording to play instead.", show_default="drive a scenario"),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="What to drive: `family/seed` or `family/seed@difficulty` (docs/driving.md).")
    ] = DEMO_SCENARIO,
    rig: RigOption = None,
    out: Annotated[
        Path, typer.Option(help="Directory for the results; those of an earlier demo are replaced.")
    ] = Path("demo_out"),
    rate: Annotated[
        float, typer.Option(min=0.05, max=10.0, help="Speed of the recording, or of the drive at most.")
    ] = 1.0,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    params: ParamsOption = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            help="What the drive's sensors suffer: a file or a shipped name (docs/degradations.md).",
            show_default="nothing",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Drive a simulated robot in closed loop over ROS 2, or play a bag through the stack, and write a report.

    Each node runs in its own process. Leaves `outputs/` (an MCAP bag), `summary.json`, `report.html` and the
    nodes' `logs/` in --out; of a drive also `episode.html`, which the report shows, and `outcome.json`.

    Example: `e2e-perception demo --scenario two_way+crossing/3 --out demo_out`
    """
    given = given_parameters(bundle=bundle, backend=backend, rig=rig)
    config = stack_config(params, given)
    from e2e_perception.cli.outputs import refuse_own_results
    from e2e_perception.data.bags import BagSource

    find_bundle(config.engine.bundle)
    require_ros()
    if bag is not None:
        if degrade is not None:
            raise ConfigError("--degrade is for a drive; a recording is as it was recorded")
        refuse_own_results(bag, out)
        with BagSource(bag):
            pass  # what cannot be read is said before anything is removed
    else:
        check_drive(scenario, degrade, config, rig)
    _clear(out)
    rig_name = named_rig(config, rig)
    if bag is None:
        title = scenario
        summary = run_drive(
            scenario,
            out,
            config=config,
            given=given,
            params=params,
            rig_name=rig_name,
            rate=rate,
            degrade=degrade,
        )
    else:
        title = bag.name
        summary = run_demo(bag, out, config=config, given=given, params=params, rig_name=rig_name, rate=rate)
    if as_json:
        emit_json(summary)
        return
    from e2e_perception.cli.results import summary_rows

    rows = summary_rows(summary)
    if "success" in summary:
        why = "; ".join(summary["shortfalls"])
        rows.insert(0, ("drive", "success" if summary["success"] else f"failed: {why}"))
    print_table(f"{title} through {summary['bundle']}", ("figure", "value"), rows)
    typer.echo(f"open {out / 'report.html'} in a browser")


def check_drive(scenario: str, degrade: str | None, config: StackConfig, rig: str | None) -> None:
    """Say what cannot be driven before anything is started.

    Raises:
        E2EPerceptionError: If scenario, degradation or rig cannot be used.
    """
    from e2e_perception.simulation.degradation import load_degradation
    from e2e_perception.simulation.traffic_world import ScenarioSpec

    ScenarioSpec.parse(scenario)
    the_rig = _drive_rig(config, named_rig(config, rig))
    if degrade is not None:
        load_degradation(degrade).check(the_rig)


def _drive_rig(config: StackConfig, rig_name: str | None) -> Rig:
    """The named rig, else the bundle's own with cameras of the network's size, which are cheaper."""
    if rig_name is not None:
        return find_rig(rig_name).with_topic_rules(config.node.sensor_topics)
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.simulation.randomization import network_sized

    bundle = load_bundle(config.engine.bundle)
    cameras = {camera.name: network_sized(camera, bundle.network) for camera in bundle.rig.cameras}
    return bundle.rig.with_sensors({**cameras}).with_topic_rules(config.node.sensor_topics)


def run_drive(
    scenario: str,
    out: Path,
    *,
    config: StackConfig,
    given: Mapping[str, ParameterValue],
    params: Path | None,
    rig_name: str | None,
    rate: float,
    degrade: str | None = None,
) -> dict[str, Any]:
    """Drive a scenario with perception_node, sim_node and recorder_node, and judge the drive.

    Args:
        scenario: `family/seed` or `family/seed@difficulty`.
        out: Where to write.
        config: All tunables, as the perception node will see them.
        given: Those to be given to the node besides `params`.
        params: Parameter file for the node.
        rig_name: Rig file or name; None: the bundle's own, cameras at the network's size.
        rate: Simulated seconds per second at most.
        degrade: Degradation of the sensors.
    Returns:
        The content of `summary.json`: figures of the run and of the drive's outcome.
    Raises:
        NodeError: If a node dies or nothing comes out, with the node's last words.
    """
    from e2e_perception.cli.domain import private_domain

    rig = _drive_rig(config, rig_name)
    path = out / "rig.yaml"
    path.write_text(yaml.safe_dump(rig.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    topics = [rig.odom_topic, rig.route_topic]
    for sensor in rig.sensors:
        topics.append(sensor.topic)
        if sensor.kind == "camera" and sensor.camera_info_topic is not None:
            topics.append(sensor.camera_info_topic)
    driving: dict[str, object] = {
        "scenario": scenario,
        "rig": str(path),
        "out": str(out),
        "rate": float(rate),
        "wait_for_subscribers": 2,  # the stack and the recorder
    }
    if degrade is not None:
        driving["degradation"] = degrade
    with private_domain() as domain:
        log(f"ROS domain {domain}, driving {scenario} with rig {rig_name or 'of the bundle'}")
        parameters = {**given, "node.rig": str(path)}
        meter = _run_live(
            out, domain, parameters, params, "sim_node", driving, timeout_s=DRIVE_TIMEOUT_S, topics=topics
        )
    drive = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    facts = {
        "mode": f"closed loop over DDS, at most {rate:g}×",
        "rig": rig_name or f"{rig.name}, cameras at the network's size",
        "episode": "episode.html",
    }
    return _judged(out, out / "outputs", rig, config, meter, facts, drive)


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
    from e2e_perception.data.bags import BagSource

    if rig_name is None:
        with BagSource(bag) as source:
            rig_name = rig_for_topics(source.types)
    rig = find_rig(rig_name).with_topic_rules(config.node.sensor_topics)
    with BagStream(bag, rig, config) as stream, private_domain() as domain:
        parameters = {**given, "node.rig": _rig_for_node(rig_name, stream.rig, out)}
        log(f"ROS domain {domain}, rig {rig_name}, {stream.duration_s:.1f} s at {rate:g}×")
        playing: dict[str, object] = {
            "bag": str(stream.path),
            "rate": float(rate),
            "wait_for_subscribers": stream.num_topics,
        }
        meter = _run_live(
            out,
            domain,
            parameters,
            params,
            "replay_node",
            playing,
            timeout_s=stream.duration_s / rate + SLACK_S,
            num_frames=stream.num_anchor_messages,
        )
    return _judged(out, bag, rig, config, meter, {"mode": f"live over DDS at {rate:g}×", "rig": rig_name}, {})


def _judged(
    out: Path,
    bag: Path,
    rig: Rig,
    config: StackConfig,
    meter: ProcessMeter | None,
    facts: Mapping[str, Any],
    drive: Mapping[str, Any],
) -> dict[str, Any]:
    """Figures and report of what the nodes published.

    Args:
        out: Holds `outputs`, and gets `summary.json` and `report.html`.
        bag: What the sensors measured.
        rig, config: Of the run.
        meter: Load of the stack; None if no frame ever came.
        facts: What else the summary says.
        drive: Outcome of a closed-loop drive; empty for a recording.
    """
    from e2e_perception.cli.bag_stream import BagStream
    from e2e_perception.cli.outputs import write_run_report
    from e2e_perception.cli.results import summarize

    results = _published(out / "outputs")
    frames, silences = frames_and_silences(results)
    if not frames:
        raise NodeError(f"the stack processed no frame; {out / 'logs'} holds what the nodes said")
    with BagStream(bag, rig, config) as stream:
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
            **facts,
            "silences": len(silences),
            "bundle": last.bundle,
            "backend": last.backend,
            "warnings": stream.warnings,
            **drive,
        }
        (out / "summary.json").write_text(json.dumps(finite(summary), indent=1) + "\n", encoding="utf-8")
        write_run_report(out / "report.html", stream, [*frames, *silences], summary)
    return summary


def _run_live(
    out: Path,
    domain: int,
    parameters: Mapping[str, ParameterValue],
    params: Path | None,
    source: str,
    source_parameters: Mapping[str, object],
    *,
    timeout_s: float,
    num_frames: int | None = None,
    topics: Sequence[str] = (),
) -> ProcessMeter | None:
    """Run stack, recorder and a source of sensor data until that is over and all frames are out.

    Args:
        out: For `outputs` and `logs`.
        domain: ROS domain.
        parameters, params: Of the perception node.
        source: `replay_node` or `sim_node`.
        source_parameters: Of that node.
        timeout_s: How long it may take [s].
        num_frames: How many frames will come, if that is known.
        topics: What else is to be recorded.
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
        recording = {"out": str(out / "outputs"), **clock, **({"topics": list(topics)} if topics else {})}
        recorder = start("recorder_node", parameter_arguments(recording))
        with StackWatcher(domain, nodes) as watcher:
            watcher.activate("perception_node", READY_TIMEOUT_S)
            watcher.listen(READY_TIMEOUT_S, recorder="recorder_node")
            meter: ProcessMeter | None = None
            player = start(source, parameter_arguments(source_parameters))
            with progress_bar("driving" if source == "sim_node" else "playing", num_frames) as progress:

                def played() -> bool:
                    nonlocal meter
                    if meter is None and watcher.frames > 0:  # waiting and loading are no load of the stack
                        meter = ProcessMeter(stack.process.pid)
                    elif meter is not None:
                        meter.sample()
                    progress(watcher.frames)
                    return player.exit_code is not None

                watcher.wait_until(played, f"{source} to end", timeout_s)
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
    shutil.rmtree(out / "logs", ignore_errors=True)
    for name in ("summary.json", "report.html", "rig.yaml", *EPISODE_FILES):
        (out / name).unlink(missing_ok=True)
