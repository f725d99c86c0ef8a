"""Rollouts: frames to run an engine over, and what torch made of them, kept in a bundle as `rollout.npz`.

The frames are those of a clip, or generated from a seed. Pictures of a clip are stored in blocks, so that a
bundle grows by less than a megabyte; torch sees the same blocks. Of the outputs, the strongest queries and
some cells of each map are kept.

Legend: T frames, Q queries, R recorded queries (the strongest, best first), N remembered tracks, G recorded
cells.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import BundleError, InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING
from e2e_perception.deploy.contract import tensor_contract

if TYPE_CHECKING:
    from e2e_perception.deploy.engines import InferenceEngine

Tensors = Mapping[str, NDArray[np.generic]]

FRAMES = 12
RECORDED_QUERIES = 32
REMEMBERED = 8  # the strongest queries of a frame are the remembered tracks of the next
RECORDED_CELLS = 256
LEAST_LOG_PROBABILITY = -30.0  # as the network clips `affinity`
BLOCK = 4  # [px] each way
VERSION = 1
# What reading a damaged or hostile archive raises.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError),
    *(zlib.error, zipfile.BadZipFile),
)
GENERATED_STEP = SE2(1.0, 0.0, 0.01)  # ego motion between generated frames
PER_QUERY = ("query_scores", "query_boxes", "query_log_var", "query_tokens")
PER_OBJECT = ("object_modes", "object_futures", "object_futures_log_var")
MAPS = ("heatmap", "bev_maps")
PLAN = ("plan_sd", "plan_costs")
# Known from the frames before, so not part of a frame.
_FED_BACK = ("track_tokens", "track_boxes", "track_valid", "bev_memory")


@dataclass(frozen=True)
class RolloutFrames:
    """Inputs of consecutive frames.

    Attributes:
        source: Where they are from, for people.
        inputs: Per frame, every contract input but the remembered tracks and the BEV memory.
        memory_from_base: Per frame, its base frame in that of the frame before.
        seed: Of generated frames; None: they are a clip's.
    """

    source: str
    inputs: tuple[Tensors, ...]
    memory_from_base: tuple[SE2, ...]
    seed: int | None = None


def random_inputs(
    network: NetworkConfig, rng: np.random.Generator, *, num_tracks: int = 8
) -> dict[str, NDArray[np.generic]]:
    """Plausible inputs of one frame, all sensors valid, for tracing, parity and benchmarks.

    Returns:
        Every contract input but the recurrent state, with a batch of one.
    """
    contract = tensor_contract(network)
    fed_back = {target for _, target in contract.state}
    inputs: dict[str, NDArray[np.generic]] = {}
    for spec in contract.inputs:
        if spec.name in fed_back:
            continue
        if spec.dtype == "uint8":
            inputs[spec.name] = rng.integers(0, 256, spec.shape, np.uint8)
        elif spec.name.endswith("_valid"):
            inputs[spec.name] = np.ones(spec.shape, np.float32)
        elif spec.name.endswith("_raster"):
            sparse = rng.random(spec.shape) < 0.05
            inputs[spec.name] = (sparse * rng.random(spec.shape)).astype(np.float32)
        else:
            inputs[spec.name] = np.zeros(spec.shape, np.float32)
    w, h = network.image_width, network.image_height
    for i, yaw in enumerate(np.linspace(0.0, 2.0 * np.pi, len(network.cameras), endpoint=False)):
        c, s = np.cos(yaw), np.sin(yaw)
        rotation = np.array([[s, -c, 0.0], [0.0, 0.0, -1.0], [c, s, 0.0]])
        k = np.array([[0.5 * w, 0.0, 0.5 * w], [0.0, 0.5 * w, 0.5 * h], [0.0, 0.0, 1.0]])
        translation = -rotation @ np.array([1.5, 0.0, 1.5])
        inputs["image_from_base"][0, i] = k @ np.concatenate([rotation, translation[:, None]], 1)
    inputs["ego_state"][0] = (10.0, 0.02, 0.1, 15.0, 0.2, 0.02, 1.0)
    route = np.zeros((ROUTE_POINTS, 4))
    route[:, 0] = ROUTE_SPACING * np.arange(ROUTE_POINTS)
    route[:, 2] = 1.0
    inputs["route"][0] = route
    inputs["bev_theta"][0] = network.bev_grid.sampling_theta(GENERATED_STEP)
    inputs["track_tokens"][0, :num_tracks] = rng.normal(size=(num_tracks, network.token_channels))
    boxes = np.zeros((num_tracks, 10))
    boxes[:, 0] = rng.uniform(0, 60, num_tracks)
    boxes[:, 1] = rng.uniform(-20, 20, num_tracks)
    boxes[:, 3:6] = np.log((4.2, 1.8, 1.6))
    boxes[:, 7] = 1.0
    boxes[:, 8] = rng.uniform(0, 15, num_tracks)
    inputs["track_boxes"][0, :num_tracks] = boxes
    inputs["track_valid"][0, num_tracks:] = 0.0
    return inputs


def generated_frames(network: NetworkConfig, *, num_frames: int = FRAMES, seed: int = 0) -> RolloutFrames:
    """Frames of `random_inputs`; the BEV memory goes on throughout, longer than on the robot."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(num_frames):
        frame = {k: v for k, v in random_inputs(network, rng).items() if k not in _FED_BACK}
        frame["memory_valid"] = np.full((1, 1), float(index > 0), np.float32)
        frames.append(frame)
    return RolloutFrames(f"generated, seed {seed}", tuple(frames), (GENERATED_STEP,) * num_frames, seed=seed)


def frames_of_clip(clip: Clip, network: NetworkConfig) -> RolloutFrames:
    """The first frames of a clip, its pictures in blocks; the BEV memory starts anew as on the robot.

    Raises:
        InputError: If the clip was made for another size of network.
    """
    shapes = {spec.name: spec.shape for spec in tensor_contract(network).inputs}
    for name, values in clip.inputs.items():
        if shapes.get(name, ())[1:] != values.shape[1:]:
            raise InputError(
                f"clip of {clip.scenario or clip.source}: {name} is {values.shape[1:]}, size {network.size} "
                f"expects {shapes.get(name, ())[1:]}; name clips that were made for it"
            )
    frames, steps = [], []
    for t in range(min(len(clip), FRAMES)):
        frame = {
            name: value[t][None] if value.dtype == np.uint8 else value[t][None].astype(np.float32)
            for name, value in clip.inputs.items()
        }
        frame["images"] = _unblocked(_blocks(frame["images"]))
        step = SE2(*clip.memory_from_base_T3[t])
        frame["bev_theta"] = network.bev_grid.sampling_theta(step)[None].astype(np.float32)
        frame["memory_valid"] = np.full((1, 1), float(t % network.memory_frames > 0), np.float32)
        frames.append(frame)
        steps.append(step)
    return RolloutFrames(
        f"clip {clip.scenario or clip.source}, pictures in blocks of {BLOCK} px", tuple(frames), tuple(steps)
    )


@dataclass(frozen=True)
class RecordedRollout:
    """Frames, and what torch made of them.

    Attributes:
        frames: What went in.
        outputs: By name, (T, ...) float32: `PER_QUERY` (T, R, ...); `PER_OBJECT` (T, R + N, ...), queries
            first; `affinity` (T, N + 1, R + 1); `MAPS` (T, channels, G); `PLAN` whole.
        cells_G: Recorded cells of a map, flattened.
    """

    frames: RolloutFrames
    outputs: Mapping[str, NDArray[np.float32]]
    cells_G: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames.inputs)

    def __str__(self) -> str:
        return f"{len(self)} frames ({self.frames.source})"


def num_slots(network: NetworkConfig) -> int:
    """Remembered tracks per frame: the strongest recorded queries of the frame before."""
    return min(REMEMBERED, network.num_memory, network.num_queries)


def recorded_cells(network: NetworkConfig) -> NDArray[np.int64]:
    """Cells of the maps that are recorded, spread evenly."""
    y, x = network.bev_grid.shape
    return np.unique(np.linspace(0, y * x - 1, RECORDED_CELLS).astype(np.int64))


Visit = Callable[[int, Mapping[str, NDArray[np.float32]]], NDArray[np.int64]]


def run_over(engine: InferenceEngine, frames: RolloutFrames, network: NetworkConfig, visit: Visit) -> None:
    """Run an engine over frames, its own BEV memory, tokens and boxes fed back.

    Args:
        engine: Is reset first.
        frames: What it sees.
        network: Its size.
        visit: Is given a frame's number and outputs; returns which queries are the next frame's remembered
            tracks (N,), -1 for an empty slot.
    """
    engine.reset_state()
    memory = _memory_inputs(network)
    for index, inputs in enumerate(frames.inputs):
        outputs = engine.infer({**inputs, **memory})
        queries_N = visit(index, outputs)
        memory = _memory_inputs(network)
        if index + 1 < len(frames.inputs):
            n = len(queries_N)
            step = frames.memory_from_base[index + 1]
            memory["track_tokens"][0, :n] = outputs["query_tokens"][0, queries_N]
            memory["track_boxes"][0, :n] = moved_boxes(
                outputs["query_boxes"][0, queries_N], step, network.frame_period_s
            )
            memory["track_valid"][0, :n] = queries_N >= 0


def strongest(scores_QK: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Indices of the queries with the highest scores, best first."""
    return np.argsort(-scores_QK.max(1), kind="stable")[:count]


def record(engine: InferenceEngine, frames: RolloutFrames, network: NetworkConfig) -> RecordedRollout:
    """Run the reference over frames.

    Args:
        engine: Torch.
        frames: From `generated_frames` or `frames_of_clip`.
        network: Its size.
    """
    cells = recorded_cells(network)
    collected: dict[str, list[NDArray[np.float32]]] = {}

    def visit(index: int, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        chosen = strongest(outputs["query_scores"][0], RECORDED_QUERIES)
        for name, value in excerpt(outputs, chosen, cells, network).items():
            collected.setdefault(name, []).append(value)
        return chosen[: num_slots(network)]

    run_over(engine, frames, network, visit)
    return RecordedRollout(frames, {name: np.stack(values) for name, values in collected.items()}, cells)


def excerpt(
    outputs: Mapping[str, NDArray[np.float32]],
    queries_R: NDArray[np.int64],
    cells_G: NDArray[np.int64],
    network: NetworkConfig,
) -> dict[str, NDArray[np.float32]]:
    """What is recorded of one frame's outputs; see `RecordedRollout.outputs`.

    Args:
        outputs: Of an engine.
        queries_R: Which queries, in this order; -1 is none: zeros, and no association.
        cells_G: Which cells of the maps.
        network: Its size.
    """
    q, m = network.num_queries, num_slots(network)
    absent = queries_R < 0
    objects = np.concatenate([queries_R, q + np.arange(m)])
    result = {name: outputs[name][0, queries_R] for name in PER_QUERY}
    result |= {name: outputs[name][0, objects] for name in PER_OBJECT}
    for value in result.values():
        value[: len(queries_R)][absent] = 0.0
    rows = np.append(np.arange(m), network.num_memory)
    affinity = outputs["affinity"][0][np.ix_(rows, np.append(queries_R, q))]
    affinity[:, :-1][:, absent] = LEAST_LOG_PROBABILITY
    result["affinity"] = affinity
    for name in MAPS:
        result[name] = outputs[name][0].reshape(outputs[name].shape[1], -1)[:, cells_G]
    for name in PLAN:
        result[name] = outputs[name][0]
    return result


def save_rollout(rollout: RecordedRollout, path: Path) -> None:
    """Write `rollout.npz`: arrays and a line of JSON, nothing that has to be unpickled."""
    frames = rollout.frames
    about = {"version": VERSION, "source": frames.source, "frames": len(rollout), "seed": frames.seed}
    arrays: dict[str, NDArray[Any]] = {f"output/{k}": v for k, v in rollout.outputs.items()}
    if frames.seed is None:
        for name in frames.inputs[0]:
            stacked = np.stack([frame[name] for frame in frames.inputs])
            arrays[f"input/{name}"] = _blocks(stacked) if name == "images" else _narrowest(stacked)
        steps = [(s.x, s.y, s.yaw) for s in frames.memory_from_base]
        arrays["memory_from_base"] = np.array(steps, np.float64)
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def load_rollout(path: Path, network: NetworkConfig) -> RecordedRollout:
    """Read what `save_rollout` wrote.

    Raises:
        BundleError: If it is damaged or empty, or was recorded for another size of network.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(str(arrays["about"]))
        if about["version"] != VERSION:
            raise BundleError(f"version {about['version']!r}, this release reads {VERSION}")
        num_frames = int(about["frames"])
        if num_frames < 1:
            raise BundleError(f"{num_frames} frames, expected at least 1; record it again")
        cells = recorded_cells(network)
        outputs = {
            name: _finite(f"output {name!r}", arrays.get(f"output/{name}"), shape).astype(np.float32)
            for name, shape in _recorded_shapes(network, num_frames, len(cells)).items()
        }
        frames = _stored_frames(about, num_frames, arrays, network)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise BundleError(f"{path} is no recorded rollout: {error}; record it again") from error
    return RecordedRollout(frames, outputs, cells)


def moved_boxes(boxes_N10: NDArray[np.float32], memory_from_base: SE2, seconds: float) -> NDArray[np.float32]:
    """Boxes a frame later, in that frame's base frame, if everything goes on as it does."""
    base_from_memory = memory_from_base.inverse()
    column = {name: i for i, name in enumerate(BOX_FIELDS)}
    moved = boxes_N10.astype(np.float64)
    velocities = moved[:, [column["vx"], column["vy"]]]
    places = moved[:, [column["x"], column["y"]]] + seconds * velocities
    headings = moved[:, [column["cos_yaw"], column["sin_yaw"]]]
    moved[:, [column["x"], column["y"]]] = base_from_memory.apply(places)
    moved[:, [column["vx"], column["vy"]]] = base_from_memory.rotate(velocities)
    moved[:, [column["cos_yaw"], column["sin_yaw"]]] = base_from_memory.rotate(headings)
    return moved.astype(np.float32)


def _stored_frames(
    about: Mapping[str, Any], num_frames: int, arrays: Mapping[str, NDArray[Any]], network: NetworkConfig
) -> RolloutFrames:
    if about["seed"] is not None:
        return generated_frames(network, num_frames=num_frames, seed=int(about["seed"]))
    stacked = {}
    for spec in tensor_contract(network).inputs:
        if spec.name in _FED_BACK:
            continue
        shape, stored = (num_frames, *spec.shape), arrays.get(f"input/{spec.name}")
        if spec.name == "images":
            *lead, h, w, c = shape
            blocks = (*lead, h // BLOCK, w // BLOCK, c)
            stacked[spec.name] = _unblocked(_finite("input 'images'", stored, blocks, ("uint8",)))
        else:
            stacked[spec.name] = _finite(f"input {spec.name!r}", stored, shape).astype(spec.dtype)
    motions_T3 = _finite("memory_from_base", arrays.get("memory_from_base"), (num_frames, 3), ("float64",))
    return RolloutFrames(
        str(about["source"]),
        tuple({name: values[t] for name, values in stacked.items()} for t in range(num_frames)),
        tuple(SE2(*map(float, row)) for row in motions_T3),
    )


def _finite(
    what: str,
    stored: NDArray[Any] | None,
    shape: tuple[int, ...],
    dtypes: tuple[str, ...] = ("float16", "float32"),
) -> NDArray[Any]:
    """What is stored, if it is what `save_rollout` writes.

    Raises:
        BundleError: If it is missing, of another shape or type, or not finite throughout.
    """
    if stored is None or stored.shape != shape:
        got = "missing" if stored is None else stored.shape
        raise BundleError(f"{what} is {got}, expected {shape}; record it again")
    if str(stored.dtype) not in dtypes:
        raise BundleError(f"{what} is {stored.dtype}, expected {' or '.join(dtypes)}; record it again")
    if not np.isfinite(stored).all():
        raise BundleError(f"{what} is not finite throughout; record it again")
    return stored


def _recorded_shapes(network: NetworkConfig, t: int, g: int) -> dict[str, tuple[int, ...]]:
    shapes = {spec.name: spec.shape[1:] for spec in tensor_contract(network).outputs}
    r, m = min(RECORDED_QUERIES, network.num_queries), num_slots(network)
    return {
        **{name: (t, r, *shapes[name][1:]) for name in PER_QUERY},
        **{name: (t, r + m, *shapes[name][1:]) for name in PER_OBJECT},
        "affinity": (t, m + 1, r + 1),
        **{name: (t, shapes[name][0], g) for name in MAPS},
        **{name: (t, *shapes[name]) for name in PLAN},
    }


def _memory_inputs(network: NetworkConfig) -> dict[str, NDArray[np.float32]]:
    """An empty track memory."""
    m = network.num_memory
    return {
        "track_tokens": np.zeros((1, m, network.token_channels), np.float32),
        "track_boxes": np.zeros((1, m, len(BOX_FIELDS)), np.float32),
        "track_valid": np.zeros((1, m), np.float32),
    }


def _blocks(images: NDArray[Any]) -> NDArray[np.uint8]:
    """(..., H, W, 3) to (..., H / BLOCK, W / BLOCK, 3), averaged."""
    *lead, h, w, c = images.shape
    cut = images.reshape(*lead, h // BLOCK, BLOCK, w // BLOCK, BLOCK, c)
    return np.asarray(np.rint(cut.mean((-4, -2))), np.uint8)


def _unblocked(blocks: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(blocks.repeat(BLOCK, axis=-3).repeat(BLOCK, axis=-2), np.uint8)


def _narrowest(values: NDArray[Any]) -> NDArray[Any]:
    """In half precision if that loses nothing, as it does not for a clip's rasters."""
    half = values.astype(np.float16)
    return half if np.array_equal(half.astype(values.dtype), values) else values
