"""Clips from the network's own driving, made while a training waits for them; resumable like `simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from e2e_perception.cli.console import log, progress_bar
from e2e_perception.cli.fan_out import Lost, fan_out
from e2e_perception.core.config import StackConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Rig, find_rig

if TYPE_CHECKING:
    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.deploy.engines import InferenceEngine
    from e2e_perception.model.network import JointNetwork
    from e2e_perception.simulation.traffic_world import ScenarioSpec
    from e2e_perception.training.config import OnPolicy

GRAPH = "driver.onnx"
DONE = "scenarios"


@dataclass(frozen=True)
class Task:
    """One episode to drive and record."""

    out: Path
    spec: ScenarioSpec
    network: NetworkConfig
    rig: Rig
    config: StackConfig
    disturbed: bool
    clip_length: int
    stride_s: float

    @property
    def file_name(self) -> str:
        """For clips and marks of progress."""
        return f"{self.spec.family.replace('+', '_')}-{self.spec.seed:06d}-{self.spec.difficulty:g}"


def collect(
    model: JointNetwork,
    wanted: OnPolicy,
    out: Path,
    *,
    rig: str = "tiny",
    config: StackConfig | None = None,
    workers: int = 2,
) -> ClipStore:
    """Drive scenarios by the network and record clips with the expert's prices.

    Args:
        model: The network as it is now. What was begun in `out` is gone on with by the network that began it.
        wanted: Which scenarios.
        out: A dataset of clips, to be made or completed.
        rig: Of the robot.
        config: Of the stack.
        workers: Processes.
    Returns:
        The dataset.
    Raises:
        InputError: If there is no such scenario, or an episode cannot be driven at all.
    """
    from e2e_perception.cli.simulate import specs_of
    from e2e_perception.data.clip_store import INDEX, ClipStore, ClipWriter
    from e2e_perception.deploy.export import export_onnx
    from e2e_perception.simulation.randomization import network_sized

    if (out / INDEX).is_file():
        return ClipStore(out)
    specs = [spec for spec in specs_of(wanted.suite, wanted.part) if _is_wanted(spec, wanted)]
    if not specs:
        of = f" of {' or '.join(wanted.families)}" if wanted.families else ""
        raise InputError(
            f"on_policy: part {wanted.part} of suite {wanted.suite} has no scenario{of}; name a larger part"
            f"{', or other families' if of else ''}"
        )
    (out / DONE).mkdir(parents=True, exist_ok=True)
    if not (out / GRAPH).is_file():
        log(f"exporting the network that drives into {out}")
        scratch = out / f".{GRAPH}"
        export_onnx(model, scratch)
        scratch.replace(out / GRAPH)
    the_rig = find_rig(rig)
    the_rig = the_rig.with_sensors({c.name: network_sized(c, model.config) for c in the_rig.cameras})
    chance = np.random.default_rng(17).random(len(specs))
    tasks = [
        Task(
            out,
            spec,
            model.config,
            the_rig,
            config or StackConfig(),
            bool(draw < wanted.disturbed),
            wanted.clip_length,
            wanted.stride_s,
        )
        for spec, draw in zip(specs, chance.tolist(), strict=True)
    ]
    missing = [task for task in tasks if not (out / DONE / task.file_name).is_file()]
    with progress_bar("driving on policy", len(missing)) as progress:
        for done, (number, result) in enumerate(fan_out(drive_and_record, missing, workers), 1):
            if isinstance(result, Lost):
                raise InputError(f"{missing[number].file_name}: {result.why}; start again to go on")
            progress(done)
    return ClipWriter(out).finish()


def _is_wanted(spec: ScenarioSpec, wanted: OnPolicy) -> bool:
    return not wanted.families or any(name in spec.family for name in wanted.families)


def drive_and_record(task: Task) -> int:
    """One episode; returns how many clips it gave."""
    from e2e_perception.data.clip_store import ClipWriter
    from e2e_perception.simulation.on_policy import drive_on_policy
    from e2e_perception.simulation.recording import record_clips

    engine = _engine(task.out / GRAPH, task.network)
    written = 0
    try:
        drive = drive_on_policy(
            task.spec, task.network, engine, task.rig, task.config, disturbed=task.disturbed
        )
    except InputError as error:
        log(f"warning: {error}")
    else:
        writer = ClipWriter(task.out)
        clips = record_clips(
            drive,
            task.rig,
            task.network,
            clip_length=task.clip_length,
            stride_s=task.stride_s,
            seed=task.spec.seed,
            price_proposals=True,
        )
        written = sum(writer.write(f"{task.file_name}-{k:03d}", clip) for k, clip in enumerate(clips))
    (task.out / DONE / task.file_name).touch()
    return written


@lru_cache(maxsize=1)
def _engine(graph: Path, network: NetworkConfig) -> InferenceEngine:
    from e2e_perception.deploy.contract import tensor_contract
    from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, tensor_contract(network), num_threads=1)
