"""From a trained network to a bundle: ONNX graph, parity check, manifest, model card, checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.errors import BundleError, ContractError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, COST_TERMS, NetworkConfig
from e2e_perception.core.rig import Rig
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING
from e2e_perception.deploy.bundle import MANIFEST, SCHEMA_VERSION, load_bundle, write_checksums
from e2e_perception.deploy.contract import TensorContract, tensor_contract
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.deploy.engines.torch_engine import TorchEngine
from e2e_perception.deploy.exporter_noise import without_exporter_noise
from e2e_perception.model.network import JointNetwork

OPSET = 20
PARITY_FRAMES = 12
PARITY_TOLERANCE = 1e-4
# Columns of an output that are the coordinates of one vector.
VECTORS = {
    "object_futures": (("x", "y"),),
    "query_boxes": (("x", "y"), ("sin_yaw", "cos_yaw"), ("vx", "vy")),
}
COLUMNS = {"object_futures": ("x", "y"), "query_boxes": BOX_FIELDS}
# Known to break or to change under TensorRT; none may appear in an exported graph.
FORBIDDEN_OPERATORS = frozenset(
    {"NonZero", "ScatterND", "ScatterElements", "Loop", "If", "Scan", "RandomNormal", "RandomUniform"}
)


class _Flat(nn.Module):
    """Positional in and out, in contract order, as the exporter wants it."""

    def __init__(self, network: JointNetwork, contract: TensorContract) -> None:
        super().__init__()
        self.network = network
        self.contract = contract

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(dict(zip(self.contract.input_names, tensors, strict=True)))
        # `clone` keeps an output that is also an input elsewhere from being folded into it.
        return tuple(outputs[name].clone() for name in self.contract.output_names)


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
    inputs["bev_theta"][0] = network.bev_grid.sampling_theta(SE2(1.0, 0.0, 0.01))
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


def export_onnx(model: JointNetwork, out: Path) -> None:
    """Write the graph: static shapes, opset 20, one self-contained file.

    Raises:
        ContractError: If the graph holds an operator that engines are known to stumble over.
    """
    contract = tensor_contract(model.config)
    model = model.eval().cpu()
    inputs = random_inputs(model.config, np.random.default_rng(0))
    for spec in contract.inputs:
        inputs.setdefault(spec.name, np.zeros(spec.shape, np.float32))
    arguments = tuple(torch.from_numpy(inputs[name]) for name in contract.input_names)
    with torch.no_grad(), without_exporter_noise():
        program = torch.onnx.export(
            _Flat(model, contract).eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(contract.input_names),
            output_names=list(contract.output_names),
            verbose=False,
        )
    assert program is not None
    program.save(str(out), external_data=False)
    graph = onnx.load(str(out))
    # Names of source files of this machine do not belong on robots.
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.metadata_props[:]
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        del value.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(out))
    found = sorted({node.op_type for node in graph.graph.node} & FORBIDDEN_OPERATORS)
    if found:
        raise ContractError(f"exported graph holds {', '.join(found)}; rewrite the module that makes it")


def graph_digest(path: Path) -> str:
    """SHA-256 of what a graph computes apart from its weights: operators, attributes, names and shapes.

    Two trainings of one network have the same, and so cost the same time.
    """
    graph = onnx.load(str(path)).graph
    for weight in graph.initializer:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            weight.ClearField(field)
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def rollout_difference(
    engine: InferenceEngine, reference: InferenceEngine, network: NetworkConfig, *, num_frames: int, seed: int
) -> dict[str, float]:
    """Largest difference per output over a rollout with state fed back by each engine on its own.

    Track memory is fed back too: the strongest queries of a frame are the remembered tracks of the next,
    chosen from the reference, so that both see the same identities.

    Args:
        engine, reference: Two engines of the same contract; both are reset.
        network: Their size.
        num_frames: Length of the rollout.
        seed: Of the inputs.
    Returns:
        By output name, the largest |a - b| / max(1, |b|) of any element in any frame. Places, headings,
        velocities and futures are compared as vectors: how an error is shared between x and y depends on the
        axes alone, and a small coordinate is no measure for it.
    """
    rng = np.random.default_rng(seed)
    engine.reset_state()
    reference.reset_state()
    worst: dict[str, float] = {}
    memory_a: dict[str, NDArray[np.generic]] = {}
    memory_b: dict[str, NDArray[np.generic]] = {}
    for frame in range(num_frames):
        inputs = random_inputs(network, rng)
        if frame == 0:
            inputs["memory_valid"] = np.zeros_like(inputs["memory_valid"])
        a = engine.infer({**inputs, **memory_a})
        b = reference.infer({**inputs, **memory_b})
        for name, expected in b.items():
            # NaN is the largest of all; Python's own `max` would pass over it.
            worst[name] = float(np.maximum(worst.get(name, 0.0), _difference(name, a[name], expected)))
        count = min(8, network.num_queries, network.num_memory)
        chosen = np.argsort(-b["query_scores"][0].max(1), kind="stable")[:count]
        memory_a, memory_b = _remember(inputs, a, chosen), _remember(inputs, b, chosen)
    return worst


def _difference(name: str, got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of one output in one frame, see `rollout_difference`."""
    vectors = [[COLUMNS[name].index(column) for column in columns] for columns in VECTORS.get(name, ())]
    inside = {column for columns in vectors for column in columns}
    alone = [column for column in range(expected.shape[-1]) if column not in inside]
    worst = [_relative(np.abs(got - expected)[..., alone], np.abs(expected)[..., alone])]
    for columns in vectors:
        error, size = (np.linalg.norm(v[..., columns], axis=-1) for v in (got - expected, expected))
        worst.append(_relative(error, size))
    return float(np.max(worst))


def _relative(error: NDArray[np.float32], size: NDArray[np.float32]) -> float:
    """The largest error as a share of what it is of; of what is less than 1, of 1. NaN if one is."""
    return float((error / np.maximum(1.0, size)).max(initial=0.0))


def _remember(
    inputs: Mapping[str, NDArray[np.generic]],
    outputs: Mapping[str, NDArray[np.float32]],
    chosen: NDArray[np.int64],
) -> dict[str, NDArray[np.generic]]:
    tokens, boxes = np.zeros_like(inputs["track_tokens"]), np.zeros_like(inputs["track_boxes"])
    valid = np.zeros_like(inputs["track_valid"])
    tokens[0, : len(chosen)] = outputs["query_tokens"][0, chosen]
    boxes[0, : len(chosen)] = outputs["query_boxes"][0, chosen]
    valid[0, : len(chosen)] = 1.0
    return {"track_tokens": tokens, "track_boxes": boxes, "track_valid": valid}


def export_bundle(
    model: JointNetwork,
    out: Path,
    *,
    name: str,
    rig: Rig,
    evaluation: Mapping[str, Any],
    provenance: Mapping[str, Any],
    planning: PlanningConfig | None = None,
) -> dict[str, float]:
    """Write a complete bundle; it appears under `out` whole or not at all.

    Args:
        model: The trained network.
        out: Directory to create; an existing bundle there is replaced.
        name: Name in the manifest.
        rig: The rig it was trained for.
        evaluation: Measured figures, stored as `evaluation.json`.
        provenance: `dataset_digests`, `seed`, `steps`, `git_commit`, `parent`, …
        planning: Default cost weights; None takes the configuration's.
    Returns:
        Largest relative difference per output between ONNX Runtime and torch over the parity rollout.
    Raises:
        BundleError: If parity is not reached; the message names the worst output. If something other than a
            bundle is at `out`; it is left alone.
    """
    check_place(out)
    weights = (planning or PlanningConfig()).model_dump()
    contract = tensor_contract(model.config)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "network": model.config.model_dump(mode="json"),
        "contract": contract.to_json(),
        "classes": list(CLASSES),
        "rig": rig.model_dump(mode="json"),
        "cost_weights": {term: weights[f"weight_{term}"] for term in COST_TERMS},
        "provenance": dict(provenance),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "opset": OPSET,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / "bundle"
        fresh.mkdir()
        export_onnx(model, fresh / "model.onnx")
        save_file(model.state_dict(), fresh / "weights.safetensors")
        parity = rollout_difference(
            OnnxRuntimeEngine(fresh / "model.onnx", contract, num_threads=1),
            TorchEngine(model, model.config, num_threads=0),
            model.config,
            num_frames=PARITY_FRAMES,
            seed=0,
        )
        worst = max(parity, key=lambda key: parity[key])
        if not parity[worst] <= PARITY_TOLERANCE:
            raise BundleError(
                f"exported graph differs from torch: {worst} by {parity[worst]:.2e} over "
                f"{PARITY_FRAMES} frames, "
                f"at most {PARITY_TOLERANCE:.0e} is allowed"
            )
        manifest["parity"] = {"frames": PARITY_FRAMES, "worst": worst, "difference": parity[worst]}
        (fresh / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        (fresh / "evaluation.json").write_text(_json(evaluation), encoding="utf-8")
        (fresh / "MODEL_CARD.md").write_text(_model_card(manifest, evaluation), encoding="utf-8")
        for file in fresh.iterdir():
            file.chmod(0o644)  # safetensors would keep it to its writer; bundles are for the robot's users
        write_checksums(fresh)
        load_bundle(fresh)
        fresh.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return parity


def check_place(out: Path) -> None:
    """Refuse a place for a bundle where something else is.

    Raises:
        BundleError: If there is.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} is there already and is no bundle; name another directory")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _model_card(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    provenance = manifest["provenance"]
    rows = "\n".join(
        f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
        for key, value in sorted(evaluation.items())
        if isinstance(value, int | float | str)
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in sorted(provenance.items()))
    return f"""# {manifest["name"]}

Joint detection, tracking, motion prediction and planning; {manifest["num_parameters"]:,} parameters, size
`{manifest["network"]["size"]}`, trained for the rig `{manifest["rig"]["name"]}`.

## Intended use

Research and development on robots under supervision, and as the CPU default of e2e_perception. It was
trained on simulated traffic; it has not been validated for driving a vehicle among people.

## Training

{facts}

## Measured

On held-out simulated clips, open loop; `no_sensors/` and `shuffled_sensors/` are the controls of
`e2e-perception evaluate`, `constant_velocity` goes on as before.

| figure | value |
| --- | --- |
{rows}

## Limits

- Trained on simulated sensors alone; on real ones expect more misses and false alarms than measured here.
- Roads are nearly flat, lanes are marked, there are no traffic lights.
- Classes: {", ".join(manifest["classes"])}.
"""
