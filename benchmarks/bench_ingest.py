"""Ingesting a bag: megabytes a second and memory, against reading and decoding alone, and with more workers.

The bag is a recorded one, or a simulated drive. Rows: reading the stored messages with `rosbags`; decoding
them too; decoding with `mcap-ros2-support`, where that is installed (`pip install mcap-ros2-support`); what
`ingest` does before pictures and points are decoded; `ingest` in one process, and of several copies of the
bag in one and in two. Ratios are to the first row. Memory is the peak of a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/bench_ingest.py [--bag DIR] [--copies 4] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e_perception.cli.bag_stream import BagStream
from e2e_perception.cli.ingest_bag import Recipe, Recorder, ingest_bag
from e2e_perception.cli.inputs import rig_for_topics
from e2e_perception.cli.offline import play
from e2e_perception.cli.simulate import write_bag
from e2e_perception.core.config import StackConfig
from e2e_perception.core.network_config import SIZES
from e2e_perception.core.rig import find_rig
from e2e_perception.data.bags import BagSource, storage_files
from e2e_perception.data.clip_building import BuiltClip, ClipBuilder

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data")) / "kitti_highway"


def read(bag: Path, out: Path) -> None:
    """Stored messages, nothing done with them."""
    with BagSource(bag) as source:
        for _ in source.raw_messages():
            pass


def decode(bag: Path, out: Path) -> None:
    """Messages as objects; pictures stay compressed."""
    with BagSource(bag) as source:
        for _ in source.messages():
            pass


def decode_with_mcap(bag: Path, out: Path) -> None:
    """The same with the MCAP project's own decoder."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    for file in storage_files(bag):
        with file.open("rb") as stream:
            for _ in make_reader(stream, decoder_factories=[DecoderFactory()]).iter_decoded_messages():
                pass


class _Assembling(Recorder):
    """Assembles frames and leaves it at that."""

    def poll(self, now_ns: int) -> list[BuiltClip]:
        """Frames are made and dropped."""
        self.front.poll(now_ns)
        return []


def assemble(bag: Path, out: Path) -> None:
    """Read, decode, take odometry in and assemble frames."""
    network, config = SIZES["tiny"], StackConfig()
    with BagSource(bag) as source:
        rig = find_rig(rig_for_topics(source.types))
    builder = ClipBuilder(
        network, clip_length=10, stride=10, source="bench", scenario="bench", has_labels=False
    )
    with BagStream(bag, rig, config) as stream:
        recorder = _Assembling(network, stream.rig, config, builder)
        play(recorder, stream.events(lambda _: None), lambda *_: None)


def ingest(bag: Path, out: Path) -> None:
    """All of it: assembly, pictures, rasters, clips."""
    ingest_bag(bag, out, Recipe("tiny", 10, 10, "", StackConfig().model_dump_json()))


def _measured(work: Callable[[Path, Path], None], bag: Path, out: Path, answer: Any) -> None:
    started = time.perf_counter()
    work(bag, out)
    seconds = time.perf_counter() - started
    answer.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6))


def alone(work: Callable[[Path, Path], None], bag: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory [MB] of a fresh process, its imports not counted in the seconds."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_measured, args=(work, bag, out, answer))
    process.start()
    found: tuple[float, float] = answer.get(timeout=600)
    process.join()
    return found


def together(bags: list[Path], out: Path, workers: int) -> float:
    """Seconds that several bags take in so many processes, their start included."""
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(ingest, [(bag, out) for bag in bags], chunksize=1)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bag", type=Path, help="default: the recorded highway, else a simulated drive")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        bag = options.bag or (RECORDED if RECORDED.is_dir() else room / "drive")
        if not bag.exists():
            write_bag(bag, "two_way", 0, 10.0, find_rig("tiny"))
        megabytes = sum(file.stat().st_size for file in storage_files(bag)) / 1e6
        kinds: dict[str, Callable[[Path, Path], None]] = {
            "read with rosbags": read,
            "decode with rosbags": decode,
        }
        if importlib.util.find_spec("mcap_ros2") is not None:
            kinds["decode with mcap-ros2-support"] = decode_with_mcap
        kinds["ingest, before decoding pictures"] = assemble
        kinds["ingest"] = ingest
        rows: dict[str, dict[str, float]] = {}
        for name, work in kinds.items():
            best = min((alone(work, bag, room / f"{name}-{k}") for k in range(3)), key=lambda found: found[0])
            rows[name] = {"mb_per_s": megabytes / best[0], "peak_mb": best[1]}
        copies = [room / f"copy_{k}" for k in range(options.copies)]
        for copy in copies:
            shutil.copytree(bag, copy) if bag.is_dir() else shutil.copy(bag, copy.with_suffix(bag.suffix))
        for workers in (1, 2):
            seconds = together(copies, room / f"by-{workers}", workers)
            rows[f"ingest {len(copies)} copies, {workers} workers"] = {
                "mb_per_s": len(copies) * megabytes / seconds
            }
    first = rows["read with rosbags"]["mb_per_s"]
    for row in rows.values():
        row["ratio"] = row["mb_per_s"] / first
    if options.json:
        print(json.dumps({"bag": bag.name, "megabytes": megabytes, "rows": rows}))
        return
    print(f"{bag.name}, {megabytes:.0f} MB\n{'':36} MB/s   ratio   peak [MB]")
    for name, row in rows.items():
        peak = f"{row['peak_mb']:10.0f}" if "peak_mb" in row else ""
        print(f"{name:34} {row['mb_per_s']:6.0f} {row['ratio']:7.2f} {peak}")


if __name__ == "__main__":
    main()
