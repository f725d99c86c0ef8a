"""Whether `perception_node` keeps its period: the real node, in its own process, fed in real time.

One drive of the `tiny` rig is simulated beforehand and turned into messages; they are then played in real
time, lap after lap, by this process. Odometry goes on from lap to lap, so that only the scenery leaps. What
the node says of each frame on its health topic is all that is measured, but for its memory, which is the
system's figure.

    latency   from a frame's stamp until its results have left, the lidar's own 50 ms of travel included
    compute   the stages that the node itself takes time for, waiting for the engine included
    period    between the departures of two results
    start     from the process to the first plan: Python, configuring, finding the topics, the first sensors
    missing   anchors sent of which no result came; `unexplained`, over the whole run, are those that no drop
              accounts for

    python benchmarks/bench_node.py [--seconds 60] [--param engine.num_threads:=1] [--flame node.svg] [--json]
    python benchmarks/bench_node.py --seconds 100 --swap-every 20 --swap-bundles OTHER tiny

Changes are of the number of threads, or of the bundle. Compiled graphs and what was found about engines are
kept in a directory that is empty at the start, so that start and first change to each bundle do all the work;
`--param engine.cache_directory:=DIR`, twice, is a start that finds them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import rclpy
from e2e_perception.msg import Health
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from e2e_perception.cli.domain import private_domain
from e2e_perception.cli.processes import start_node, stop_nodes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3
from e2e_perception.core.message_inputs import stamp_ns
from e2e_perception.core.messages import time_message
from e2e_perception.core.resources import config_dir
from e2e_perception.core.rig import Camera, Rig, find_rig
from e2e_perception.core.sensor_messages import (
    COMPRESSED_IMAGE_TYPE,
    ODOMETRY_TYPE,
    POINTS_TYPE,
    compressed_image_message,
    odometry_message,
    points_message,
)
from e2e_perception.data.bags import encode_jpeg
from e2e_perception.nodes.message_factory import RclpyFactory, message_class
from e2e_perception.simulation.closed_loop import ClosedLoop, Robot
from e2e_perception.simulation.policies import make_policy
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

NODE = "perception_node"
SCENARIO = "two_way+crossing/3"
LAP_NS = 15_000_000_000
WARM_UP_S = 5.0  # left out of all figures
READY_S = 60.0
# What costs a frame its result, so that it is missing for a reason.
FRAME_DROPS = ("too_old", "rate_limit", "overtaken", "engine_timeout")
STAGES = ("prepare", "queue", "infer", "track", "plan", "supervise", "publish")


@dataclass
class Lap:
    """One drive: what arrives when, relative to its start [ns], and where it leads."""

    sensors: list[tuple[int, int, str, Any]]  # arrival, stamp, sensor, message
    odometry: list[EgoState]
    end_from_start: SE3
    length_ns: int


def simulate(rig: Rig, scenario: str) -> Lap:
    """Drive by the expert, and keep what the sensors measured."""
    world = TrafficWorld(ScenarioSpec.parse(scenario))
    sensors = SensorRig(rig, world.start_ns, world.end_ns, world.seed)
    robot = Robot(rig.ego_length, rig.ego_width, rig.ego_center_x)
    loop = ClosedLoop(world, robot=robot, sensors=sensors)
    policy = make_policy("expert", world, robot.footprint)
    make = RclpyFactory()
    arrived, states = [], [loop.ego]
    while not loop.over and loop.now_ns - world.start_ns < LAP_NS:
        if (loop.now_ns - world.start_ns) % policy.period_ns == 0:
            plan = policy.plan(loop.ego)
            if plan is not None:
                loop.take_plan(plan)
        for message in loop.tick():
            sensor, payload = rig.sensor(message.sensor), message.payload
            if isinstance(sensor, Camera):
                jpeg = encode_jpeg(payload.rgb_HW3)
                sent: Any = compressed_image_message(make, jpeg, 0, sensor.frame_id)
            else:
                sent = points_message(make, payload, 0, sensor.frame_id)
            stamp, arrival = message.stamp_ns - world.start_ns, message.arrival_ns - world.start_ns
            arrived.append((arrival, stamp, sensor.name, sent))
        states.append(loop.ego)
    start = states[0].odom_from_base
    odometry = [
        EgoState(
            s.stamp_ns - world.start_ns, start.inverse() @ s.odom_from_base, s.velocity, s.yaw_rate
        )
        for s in states
    ]  # fmt: skip
    length = (loop.now_ns - world.start_ns) // 100_000_000 * 100_000_000
    end = next(s for s in odometry if s.stamp_ns >= length)
    return Lap(
        sorted((row for row in arrived if row[1] < length), key=lambda row: row[0]),
        [s for s in odometry if s.stamp_ns < length],
        end.odom_from_base,
        length,
    )


def endlessly(lap: Lap) -> Iterator[tuple[int, int, str, Any]]:
    """(when to send, stamp, sensor or empty, message or state), relative to the start, for ever."""
    waiting: list[tuple[int, int, int, str, Any]] = []
    count, offset, base = 0, 0, SE3.identity()
    while True:
        for arrival, stamp, name, message in lap.sensors:
            heapq.heappush(waiting, (arrival + offset, count, stamp + offset, name, message))
            count += 1
        for state in lap.odometry:
            at = state.stamp_ns + offset
            moved = EgoState(at, base @ state.odom_from_base, state.velocity, state.yaw_rate)
            heapq.heappush(waiting, (at, count, at, "", moved))
            count += 1
        offset += lap.length_ns
        base = base @ lap.end_from_start
        while waiting and waiting[0][0] < offset:
            when, _, stamp, name, item = heapq.heappop(waiting)
            yield when, stamp, name, item


class Player:
    """Sensors of a robot, and an ear for the node's health; its own ROS context and thread."""

    def __init__(self, domain: int, rig: Rig) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("bench_player", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._rig, self._make = rig, RclpyFactory()
        self.frames: list[Any] = []
        self.latest: Any = None
        self.bundles: list[str] = []
        self.first_plan_s: float | None = None  # of the monotonic clock
        reliable = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(Health, f"/{NODE}/health", self._take, reliable)
        sensor_qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._sensors = {
            s.name: self._node.create_publisher(
                message_class(COMPRESSED_IMAGE_TYPE if isinstance(s, Camera) else POINTS_TYPE),
                s.topic,
                sensor_qos,
            )
            for s in rig.sensors
        }
        self._odometry = self._node.create_publisher(message_class(ODOMETRY_TYPE), rig.odom_topic, reliable)
        self._parameters = AsyncParameterClient(self._node, NODE)
        self.refusals: list[str] = []
        self._thread = threading.Thread(target=self._executor.spin, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the domain."""
        self._executor.shutdown()
        self._thread.join(timeout=5.0)
        self._node.destroy_node()
        self._context.try_shutdown()

    def wait_for_listeners(self, process: Any) -> None:
        """Until the node has found every topic."""
        deadline = time.monotonic() + READY_S
        publishers = [*self._sensors.values(), self._odometry]
        while any(p.get_subscription_count() == 0 for p in publishers) or self.latest is None:
            if process.exit_code is not None or time.monotonic() > deadline:
                raise SystemExit(f"{NODE} did not come up. {process.failure()}")
            time.sleep(0.05)

    def change_engine(self, value: int | str) -> None:
        """Have an engine of so many threads, or of such a bundle, loaded, without waiting for it."""
        if isinstance(value, str):
            parameter = Parameter("engine.bundle", Parameter.Type.STRING, value)
        else:
            parameter = Parameter("engine.num_threads", Parameter.Type.INTEGER, value)
        wanted = parameter.to_parameter_msg()
        self._parameters.set_parameters([wanted]).add_done_callback(
            lambda answer: self.refusals.extend(r.reason for r in answer.result().results if not r.successful)
        )

    def play(
        self, lap: Lap, seconds: float, pid: int, swap_every_s: float, swap_to: Sequence[int | str]
    ) -> tuple[list[int], list[tuple[float, float]]]:
        """Send everything in time, and change the engine now and then.

        Args:
            lap, seconds: What, and for how long.
            pid: Of the node.
            swap_every_s: When to change the engine; 0: never.
            swap_to: To what, in turn.
        Returns:
            Stamps of the anchors sent [ns], and (time [s], resident memory [MB]) once a second.
        """
        process = psutil.Process(pid)
        anchors, memory = [], []
        num_swaps = 0
        anchor = self._rig.lidars[0].name
        start_ns, next_memory_s = time.time_ns() + 200_000_000, 0.0
        for when, stamp, name, item in endlessly(lap):
            if when > seconds * 1e9:
                break
            wait_s = (start_ns + when - time.time_ns()) * 1e-9
            if wait_s > 0.0:
                time.sleep(wait_s)
            if name:
                item.header.stamp = time_message(self._make, start_ns + stamp)
                self._sensors[name].publish(item)
                if name == anchor:
                    anchors.append(start_ns + stamp)
            else:
                state = EgoState(start_ns + stamp, item.odom_from_base, item.velocity, item.yaw_rate)
                self._odometry.publish(odometry_message(self._make, state, self._rig.base_frame))
            if swap_every_s > 0.0 and when * 1e-9 >= (num_swaps + 1) * swap_every_s:
                self.change_engine(swap_to[num_swaps % len(swap_to)])
                num_swaps += 1
            if when * 1e-9 >= next_memory_s:
                memory.append((when * 1e-9, process.memory_info().rss / 1e6))
                next_memory_s += 1.0
        time.sleep(1.0)  # for what is on its way
        return anchors, memory

    def _take(self, message: Any) -> None:
        self.latest = message
        if "latency" in message.stages and message.frames > 0:
            self.frames.append(message)
        if self.first_plan_s is None and message.plans > 0:
            self.first_plan_s = time.monotonic()
        if message.bundle and self.bundles[-1:] != [message.bundle]:
            self.bundles.append(message.bundle)


def minor_faults(pid: int) -> int:
    """Pages that the process was given so far: what fresh arrays cost."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[7])


def quantiles(values: Any) -> dict[str, float]:
    """p50, p95, p99 and the largest, and how many times p50 p99 is."""
    p50, p95, p99, most = np.percentile(values, [50, 95, 99, 100]).tolist()
    named = {"p50": p50, "p95": p95, "p99": p99, "max": most, "p99_over_p50": p99 / max(p50, 1e-9)}
    return {name: round(value, 2) for name, value in named.items()}


def evaluate(
    healths: list[Any], latest: Any, anchors: list[int], memory: list[tuple[float, float]]
) -> dict[str, Any]:
    """Figures of one run, without its first seconds.

    Args:
        healths: Of all frames.
        latest: The last health of all.
        anchors: Stamps sent [ns].
        memory: (time [s], resident [MB]).
    """
    since_ns = anchors[0] + round(WARM_UP_S * 1e9)
    sent = {stamp for stamp in anchors if stamp >= since_ns}
    by_stamp = {stamp_ns(h): h for h in healths if stamp_ns(h) in sent}
    stages = [dict(zip(h.stages, h.stage_ms, strict=True)) for _, h in sorted(by_stamp.items())]
    departures_ms = np.array(
        [at * 1e-6 + s["latency"] for at, s in zip(sorted(by_stamp), stages, strict=True)]
    )
    dropped = {
        cause: int(count) for cause, count in zip(latest.drop_causes, latest.drops, strict=True) if count
    }
    never_answered = set(anchors) - {stamp_ns(h) for h in healths}
    seconds, megabytes = np.array([row for row in memory if row[0] >= WARM_UP_S]).T
    return {
        "frames_sent": len(sent),
        "frames_missing": len(sent) - len(by_stamp),
        "frames_unexplained": len(never_answered) - sum(dropped.get(cause, 0) for cause in FRAME_DROPS),
        "dropped_in_all": dropped,
        "latency_ms": quantiles([s["latency"] for s in stages]),
        "compute_ms": quantiles([sum(s.get(name, 0.0) for name in STAGES) for s in stages]),
        "period_ms": quantiles(np.diff(departures_ms)),
        "stage_p50_p99_ms": {
            name: np.percentile([s[name] for s in stages], [50, 99]).round(2).tolist()
            for name in (*STAGES, "wait")
            if name in stages[0]
        },
        "memory_mb": megabytes[np.linspace(0, len(megabytes) - 1, 5).astype(int)].round(1).tolist(),
        "memory_slope_mb_per_min": round(float(np.polyfit(seconds, megabytes, 1)[0]) * 60.0, 2),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of playing, at least 10")
    parser.add_argument("--scenario", default=SCENARIO)
    parser.add_argument("--param", action="append", default=[], help="of the node, as name:=value")
    parser.add_argument(
        "--realtime", action="store_true", help="node and player before all else (SCHED_FIFO; needs rights)"
    )
    parser.add_argument(
        "--swap-every", type=float, default=0.0, help="change the engine every so many seconds"
    )
    parser.add_argument(
        "--swap-bundles", nargs="+", metavar="BUNDLE", help="to which bundles in turn, with --swap-every"
    )
    parser.add_argument("--flame", help="SVG of where the node's threads spend their time, by py-spy")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.seconds < 2 * WARM_UP_S:
        parser.error(f"--seconds is {options.seconds:g}, expected at least {2 * WARM_UP_S:g}")
    if options.swap_bundles and options.swap_every <= 0.0:
        parser.error("--swap-bundles needs --swap-every")
    if options.flame and shutil.which("py-spy") is None:
        parser.error("--flame needs py-spy; `pip install py-spy`")
    # What does not fit Fast DDS's shared memory is sent again with its next heartbeat, after three seconds.
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(config_dir() / "fastdds_large_messages.xml"))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

    rig = find_rig("tiny")
    lap = simulate(rig, options.scenario)
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # inherited by the node
    swap_to: list[int | str] = options.swap_bundles or [1, 2]
    with private_domain() as domain, tempfile.TemporaryDirectory() as kept:
        given = [f"engine.cache_directory:={kept}", *options.param]
        arguments = ["--ros-args", *(word for parameter in given for word in ("-p", parameter))]
        started_s = time.monotonic()
        node = start_node(NODE, arguments, environment={"ROS_DOMAIN_ID": str(domain)})
        player = Player(domain, rig)
        try:
            player.wait_for_listeners(node)
            flame = _record_flame(options.flame, node.process.pid, options.seconds)
            process = psutil.Process(node.process.pid)
            cpu_before, load_before = process.cpu_times(), os.getloadavg()[0]
            faults_before = minor_faults(node.process.pid)
            anchors, memory = player.play(lap, options.seconds, node.process.pid, options.swap_every, swap_to)
            cpu, faults = process.cpu_times(), minor_faults(node.process.pid) - faults_before
            if flame is not None:
                flame.wait(timeout=60.0)
        finally:
            stop_nodes([node])
            player.close()
    result = {
        "seconds": options.seconds,
        "cores": os.cpu_count(),
        "realtime": options.realtime,
        "swap_every_s": options.swap_every,
        "swaps_refused": player.refusals,
        "bundles_in_turn": player.bundles,
        "start_to_first_plan_s": None
        if player.first_plan_s is None
        else round(player.first_plan_s - started_s, 2),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "bundle": player.latest.bundle,
        "backend": player.latest.backend,
        "node_cpu_share": round(
            (cpu.user + cpu.system - cpu_before.user - cpu_before.system) / options.seconds, 2
        ),
        "page_faults_per_frame": round(faults / max(len(anchors), 1)),
        **evaluate(player.frames, player.latest, anchors, memory),
    }
    if options.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            print(f"{name:<{width}}  {value}")
    return 0


def _record_flame(path: str | None, pid: int, seconds: float) -> subprocess.Popen[bytes] | None:
    if path is None:
        return None
    what = ["record", "--pid", str(pid), "--threads", "--format", "flamegraph", "--output", path]
    how = ["--duration", str(round(seconds - WARM_UP_S)), "--rate", "200"]
    return subprocess.Popen(["py-spy", *what, *how], stdout=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
