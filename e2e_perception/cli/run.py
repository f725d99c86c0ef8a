"""`run`: the nodes as processes, where `ros2 launch` is absent."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from e2e_perception.cli.console import emit_json, log
from e2e_perception.cli.options import (
    BackendOption,
    BundleOption,
    JsonOption,
    ParamsOption,
    given_parameters,
    stack_config,
)
from e2e_perception.cli.processes import NodeProcess, parameter_arguments, require_ros, start_node, stop_nodes
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.rig import find_rig
from e2e_perception.deploy.bundle import find_bundle

_POLL_S = 0.2
_LAST_FRAMES_S = 1.0  # for what is on its way when the bag is over


def run(
    params: ParamsOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    rig: Annotated[
        str | None, typer.Option(help="Rig file, or the name of a shipped one.", show_default="tiny")
    ] = None,
    namespace: Annotated[str, typer.Option(help="ROS namespace of the nodes.")] = "",
    use_sim_time: Annotated[bool, typer.Option(help="Take time from /clock.")] = False,
    play: Annotated[Path | None, typer.Option(help="Also play this bag; implies --use-sim-time.")] = None,
    rate: Annotated[float, typer.Option(min=0.01, help="Speed of --play.")] = 1.0,
    loop: Annotated[bool, typer.Option(help="Play the bag again and again.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Also record the outputs to this bag directory.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the perception node, and if asked replay and recorder, and stay until they end or Ctrl-C.

    Signals are passed on; the exit code is that of the first node that failed, else 0.

    Example: `e2e-perception run --rig tiny --play my_bag --record outputs`
    """
    given = given_parameters(bundle=bundle, backend=backend, rig=rig)
    # A sentence now is better than a dead node later.
    config = stack_config(params, given)
    find_bundle(config.engine.bundle)
    the_rig = find_rig(config.node.rig).with_topic_rules(config.node.sensor_topics)
    if record is not None and record.exists():
        raise ConfigError(f"{record} exists; --record writes a new bag, name another directory")
    num_topics = 0
    if play is not None:
        from e2e_perception.cli.bag_stream import BagStream

        with BagStream(play, the_rig, config) as stream:
            num_topics = stream.num_topics
            if stream.rig != the_rig:
                for note in stream.warnings:
                    log(f"warning: {note}")
                # The node subscribes to what the rig names, so it has to be told what was found.
                given["node.sensor_topics"] = [f"{s.name}:={s.topic}" for s in stream.rig.sensors]
    require_ros()

    clock = {"use_sim_time": use_sim_time or play is not None}
    stop = threading.Event()
    previous = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    nodes: list[NodeProcess] = []
    try:
        stack = parameter_arguments({**given, **clock}, params_file=params, namespace=namespace)
        nodes.append(start_node("perception_node", stack, echo=True))
        if record is not None:
            recorder = parameter_arguments({"out": str(record), **clock}, namespace=namespace)
            nodes.append(start_node("recorder_node", recorder, echo=True))
        if play is not None:
            player = {"bag": str(play), "rate": float(rate), "loop": loop, "wait_for_subscribers": num_topics}
            nodes.append(start_node("replay_node", parameter_arguments(player), echo=True))
        log(f"running: {', '.join(node.name for node in nodes)}; Ctrl-C ends")
        failed = _watch(nodes, stop)
    finally:
        stop_nodes(list(reversed(nodes)))
        for number, handler in previous.items():
            signal.signal(number, handler)
    if as_json:
        emit_json({"nodes": {node.name: node.exit_code for node in nodes}})
    if failed is not None:
        log(f"error: {failed.failure()}")
        raise typer.Exit(failed.exit_code if failed.exit_code and failed.exit_code > 0 else 1)


def _watch(nodes: list[NodeProcess], stop: threading.Event) -> NodeProcess | None:
    """Until we are asked to stop, the bag is over, or a node ends; the one that failed, if any."""
    while not stop.wait(_POLL_S):
        for node in nodes:
            if node.exit_code is None:
                continue
            if node.name == "replay_node" and node.exit_code == 0:
                stop.wait(_LAST_FRAMES_S)
                return None
            return node  # only a player comes to an end by itself
    return None
