"""Frame assembly on a synthetic stream of 6 cameras, a lidar and 5 radars at 10 to 13 Hz.

Prints how many anchor periods yielded a frame, how full and how late those frames were, and the time per
message (push and poll). Where `message_filters` is installed its approximate-time policy gets the same
stream.

    python benchmarks/bench_assembler.py [--seconds 5] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

from e2e_perception.core.samples import SensorMessage
from e2e_perception.runtime.assembler import FrameAssembler, SensorSync

MS = 1_000_000
TOLERANCE_NS = 50 * MS
QUEUE_SIZE = 16
# name: rate [Hz], phase [ms], jitter of the stamp [ms], latency [ms], jitter of the latency [ms]
SENSORS: dict[str, tuple[float, float, float, float, float]] = {
    "lidar": (10.0, 0.0, 1.0, 50.0, 3.0),
    **{f"camera_{i}": (10.0, 4.0 * i, 2.0, 25.0, 8.0) for i in range(6)},
    **{f"radar_{i}": (13.0, 11.0 * i, 3.0, 15.0, 5.0) for i in range(5)},
}
ANCHORS = ["lidar", "camera_0"]


def make_stream(seconds: float, seed: int) -> list[SensorMessage]:
    """Messages of all sensors in the order of their arrival.

    Args:
        seconds: Length [s].
        seed: Of the jitter.
    """
    rng = random.Random(seed)
    stream = []
    for name, (rate_hz, phase_ms, jitter_ms, latency_ms, latency_jitter_ms) in SENSORS.items():
        for k in range(int(seconds * rate_hz)):
            stamp_ms = 1000.0 * k / rate_hz + phase_ms + rng.gauss(0.0, jitter_ms)
            arrival_ms = stamp_ms + max(1.0, rng.gauss(latency_ms, latency_jitter_ms))
            stamp_ns, arrival_ns = 10**9 + round(stamp_ms * MS), 10**9 + round(arrival_ms * MS)
            stream.append(SensorMessage(name, stamp_ns, arrival_ns, None))
    stream.sort(key=lambda message: (message.arrival_ns, message.sensor))
    return stream


def run_assembler(stream: list[SensorMessage], repeats: int) -> dict[str, Any]:
    """Feed the stream to the FrameAssembler; the best of `repeats` runs counts."""
    best = float("inf")
    for _ in range(repeats):
        assembler = FrameAssembler(
            [SensorSync(name, 0, TOLERANCE_NS) for name in SENSORS],
            anchors=ANCHORS,
            max_wait_ns=60 * MS,
            anchor_timeout_ns=250 * MS,
            queue_size=QUEUE_SIZE,
        )
        frames = []
        start = time.perf_counter()
        for message in stream:
            assembler.push(message)
            frames.extend(assembler.poll(message.arrival_ns))
        frames.extend(assembler.poll(stream[-1].arrival_ns + 10**9))
        best = min(best, time.perf_counter() - start)
    delays_ms = sorted((f.emitted_ns - f.messages[f.anchor].arrival_ns) / MS for f in frames[:-1])
    return {
        "frames": len(frames),
        "us_per_message": 1e6 * best / len(stream),
        "sensors_per_frame": sum(len(frame.messages) for frame in frames) / max(1, len(frames)),
        "wait_ms_p50": delays_ms[len(delays_ms) // 2],
        "wait_ms_max": delays_ms[-1],
        "drops": {cause: num for cause, num in assembler.drops().items() if num},
    }


def run_message_filters(stream: list[SensorMessage], repeats: int) -> dict[str, Any] | None:
    """Feed the stream to message_filters' approximate-time policy; None if it is not installed."""
    try:
        from message_filters import ApproximateTimeSynchronizer, SimpleFilter
        from std_msgs.msg import Header
    except ImportError:
        return None

    class Stamped:
        def __init__(self, stamp_ns: int) -> None:
            self.header = Header()
            self.header.stamp.sec, self.header.stamp.nanosec = divmod(stamp_ns, 10**9)

    messages = [(message.sensor, Stamped(message.stamp_ns)) for message in stream]
    best = float("inf")
    for _ in range(repeats):
        frames: list[tuple[Any, ...]] = []
        filters = {name: SimpleFilter() for name in SENSORS}
        synchronizer = ApproximateTimeSynchronizer(
            list(filters.values()), queue_size=QUEUE_SIZE, slop=TOLERANCE_NS * 1e-9
        )
        synchronizer.registerCallback(lambda *matched, out=frames: out.append(matched))
        start = time.perf_counter()
        for sensor, stamped in messages:
            filters[sensor].signalMessage(stamped)
        best = min(best, time.perf_counter() - start)
    return {"frames": len(frames), "us_per_message": 1e6 * best / len(stream)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Benchmark of frame assembly.")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the stream [s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the jitter")
    parser.add_argument("--repeats", type=int, default=5, help="runs; the fastest counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    stream = make_stream(arguments.seconds, arguments.seed)
    result = {
        "messages": len(stream),
        "anchor_periods": sum(message.sensor == ANCHORS[0] for message in stream),
        "frame_assembler": run_assembler(stream, arguments.repeats),
        "message_filters": run_message_filters(stream, arguments.repeats),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    own, other = result["frame_assembler"], result["message_filters"]
    periods = result["anchor_periods"]
    print(f"{len(stream)} messages of {len(SENSORS)} sensors, {periods} anchor periods")
    print(f"{'':24}{'frames':>10}{'us/message':>14}")
    print(f"{'FrameAssembler':24}{own['frames']:>6}/{periods:<4}{own['us_per_message']:>13.2f}")
    if other is None:
        print("message_filters is not installed here; no comparison")
    else:
        print(
            f"{'message_filters':24}{other['frames']:>6}/{periods:<4}{other['us_per_message']:>13.2f}\n"
            f"{'ratio':24}{own['frames'] / max(1, other['frames']):>10.2f}x"
            f"{other['us_per_message'] / own['us_per_message']:>12.2f}x faster"
        )
    print(
        f"sensors per frame {own['sensors_per_frame']:.2f} of {len(SENSORS)}; "
        f"wait after the anchor p50 {own['wait_ms_p50']:.1f} ms, max {own['wait_ms_max']:.1f} ms; "
        f"drops {own['drops']}"
    )


if __name__ == "__main__":
    main()
