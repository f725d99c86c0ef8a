"""From a trained network to a bundle: ONNX graph, parity check, manifest, model card, checksums."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
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
from e2e_perception.core.errors import BundleError, EngineMismatchError
from e2e_perception.core.network_config import COST_TERMS, NetworkConfig
from e2e_perception.core.rig import Rig
from e2e_perception.deploy.bundle import ROLLOUT, SCHEMA_VERSION, Bundle
from e2e_perception.deploy.bundle_writing import check_place, fresh_bundle, write_description
from e2e_perception.deploy.contract import TensorContract, tensor_contract
from e2e_perception.deploy.engine_graph import HALF_TYPES, engine_graph, rounded_in_float32
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from e2e_perception.deploy.engines.torch_engine import TorchEngine, load_network
from e2e_perception.deploy.exporter_noise import without_exporter_noise
from e2e_perception.deploy.operators import check_operators
from e2e_perception.deploy.parity import TOLERANCES, compare, difference, refusal
from e2e_perception.deploy.rollouts import (
    RecordedRollout,
    RolloutFrames,
    generated_frames,
    random_inputs,
    record,
    save_rollout,
)
from e2e_perception.model.network import JointNetwork

OPSET = 20
PARITY_FRAMES = 12
PARITY_TOLERANCE = 1e-4
SETTLED = 0.5  # share of the tolerance, so that another CPU's rounding is still within it


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


def export_onnx(model: JointNetwork, out: Path) -> None:
    """Write the graph: static shapes, opset 20, one self-contained file.

    Raises:
        ContractError: If the graph holds an operator that not every engine takes.
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
    check_operators((node.op_type, node.name) for node in graph.graph.node)


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
            worst[name] = float(np.maximum(worst.get(name, 0.0), difference(name, a[name], expected)))
        count = min(8, network.num_queries, network.num_memory)
        chosen = np.argsort(-b["query_scores"][0].max(1), kind="stable")[:count]
        memory_a, memory_b = _remember(inputs, a, chosen), _remember(inputs, b, chosen)
    return worst


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
    rollouts: Sequence[RolloutFrames] = (),
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
        rollouts: Frames to choose from; the bundle records what torch makes of the first in which rounding
            decides nothing. Empty: generated ones.
    Returns:
        Largest relative difference per output between ONNX Runtime and torch over the parity rollout.
    Raises:
        BundleError: If parity is not reached; the message names the worst output. If something other than a
            bundle is at `out`; it is left alone.
        EngineMismatchError: If it is reached over none of `rollouts`.
    """
    check_place(out)
    weights = (planning or PlanningConfig()).model_dump()
    contract = tensor_contract(model.config)
    manifest: dict[str, Any] = {
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
    with fresh_bundle(out) as fresh:
        export_onnx(model, fresh / "model.onnx")
        save_file(model.state_dict(), fresh / "weights.safetensors")
        engine = OnnxRuntimeEngine(fresh / "model.onnx", contract, num_threads=1)
        reference = TorchEngine(model, model.config, num_threads=0)
        parity = rollout_difference(engine, reference, model.config, num_frames=PARITY_FRAMES, seed=0)
        worst = max(parity, key=lambda key: parity[key])
        if not parity[worst] <= PARITY_TOLERANCE:
            raise BundleError(
                f"exported graph differs from torch: {worst} by {parity[worst]:.2e} over "
                f"{PARITY_FRAMES} frames, "
                f"at most {PARITY_TOLERANCE:.0e} is allowed"
            )
        recorded = settled_rollout(
            fresh / "model.onnx", model, rollouts or _generated(model.config), manifest["cost_weights"]
        )
        save_rollout(recorded, fresh / ROLLOUT)
        manifest["parity"] = {
            "frames": PARITY_FRAMES,
            "worst": worst,
            "difference": parity[worst],
            "recorded": recorded.frames.source,
        }
        write_description(fresh, manifest, evaluation)
    return parity


def settled_rollout(
    graph: Path,
    weights: JointNetwork,
    rollouts: Sequence[RolloutFrames],
    cost_weights: Mapping[str, float],
) -> RecordedRollout:
    """What torch makes of the first frames in which rounding decides nothing.

    Now and then rounding alone decides which of two objects is the twenty-fourth surest, or which of two
    associations is likelier, and outputs jump. Such frames say nothing about other engines. Preferred are
    frames in which nothing jumps in half precision either.

    Args:
        graph: Of the network in float32, as exported.
        weights: The network.
        rollouts: Frames to choose from.
        cost_weights: To choose a plan.
    Raises:
        EngineMismatchError: If the graph stays within half of float32's tolerance in none of them.
    """
    network = weights.config
    contract = tensor_contract(network)
    reference = TorchEngine(weights, network, num_threads=0)
    engine = OnnxRuntimeEngine(graph, contract, num_threads=1)
    settled: list[RecordedRollout] = []
    refused = ""
    with tempfile.TemporaryDirectory() as scratch:
        rounded = {}
        for precision in HALF_TYPES:
            path = Path(scratch) / f"{precision}.onnx"
            onnx.save(rounded_in_float32(engine_graph(graph, precision).model), str(path))
            rounded[precision] = OnnxRuntimeEngine(path, contract, num_threads=1)

        def jumps(precision: str, recorded: RecordedRollout) -> str:
            tolerance = TOLERANCES[precision]
            found = compare(
                rounded[precision], recorded, network, cost_weights, least_score=tolerance.least_score
            )
            return refusal(found, tolerance)

        for frames in rollouts:
            recorded = record(reference, frames, network)
            found = compare(engine, recorded, network, cost_weights)
            refused = refusal(found, TOLERANCES["float32"], share=SETTLED)
            if refused:
                continue
            settled.append(recorded)
            if not any(jumps(precision, recorded) for precision in rounded):
                return recorded
    if not settled:
        raise EngineMismatchError(
            f"the graph in float32 differs from torch over each of {len(rollouts)} rollouts, the last by "
            f"{refused}"
        )
    return settled[0]


def with_rollout(bundle: Bundle, out: Path, rollouts: Sequence[RolloutFrames] = ()) -> RecordedRollout:
    """Copy a bundle, with what torch makes of some frames recorded in it.

    Args:
        bundle: In float32, with or without a recorded rollout.
        out: Directory to create; an existing bundle there is replaced.
        rollouts: As for `export_bundle`.
    Raises:
        BundleError: If it is not in float32, its weights do not fit, or something other than a bundle is at
            `out`.
        EngineMismatchError: As `settled_rollout`.
    """
    if bundle.precision != "float32":
        raise BundleError(
            f"{bundle} is {bundle.precision} and holds the rollout of the float32 bundle it was made from"
        )
    recorded = settled_rollout(
        bundle.model_path,
        load_network(bundle.weights_path, bundle.network),
        rollouts or _generated(bundle.network),
        bundle.cost_weights,
    )
    with fresh_bundle(out) as fresh:
        for file in bundle.path.iterdir():
            shutil.copyfile(file, fresh / file.name)
        save_rollout(recorded, fresh / ROLLOUT)
    return recorded


def _generated(network: NetworkConfig) -> list[RolloutFrames]:
    return [generated_frames(network, seed=seed) for seed in range(4)]
