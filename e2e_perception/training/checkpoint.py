"""Checkpoints: safetensors for numbers, JSON for the rest, replaced atomically. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.resources import resource_dir
from e2e_perception.model.network import JointNetwork

STATE = "checkpoint.safetensors"
BEST = "best.safetensors"
WEIGHTS = "weights.safetensors"  # of a bundle


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on at the exact step.

    Attributes:
        tensors: `model/…`, `average/…`, `optimizer/<index>/<name>`, `balancer/…`.
        facts: `step`, `progress`, training configuration, network, dataset digests.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.facts["step"])

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name/`, without it."""
        return {k.removeprefix(name + "/"): v for k, v in self.tensors.items() if k.startswith(name + "/")}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint file in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        scratch,
        metadata={"facts": json.dumps(facts, sort_keys=True)},
    )
    scratch.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: The file, or the directory of a run, whose last checkpoint is meant.
    Raises:
        InputError: If there is none or it is damaged.
    """
    file = path / STATE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no checkpoint at {path}; expected {STATE}, written by `e2e-perception train`")
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["facts"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{file} is not a readable checkpoint: {error}") from error
    return Checkpoint(tensors, facts)


def model_from_checkpoint(checkpoint: Checkpoint, *, averaged: bool = True) -> JointNetwork:
    """The network of a checkpoint, with its averaged weights unless told otherwise."""
    model = JointNetwork(NetworkConfig.model_validate(checkpoint.facts["network"]))
    model.load_state_dict(checkpoint.part("average" if averaged else "model"))
    return model


def first_weights(source: Path, model: JointNetwork) -> tuple[dict[str, Tensor], list[str]]:
    """Weights to start from: averaged ones of another run, or those of a bundle.

    Args:
        source: Directory of the run or bundle, or the name of a shipped bundle.
        model: Freshly made; what has no namesake of the same shape keeps its values.
    Returns:
        A whole state, and the names that `source` had nothing for.
    Raises:
        InputError: If there is no such thing, or less than half of the parameters fit.
    """
    shipped = resource_dir() / "bundles" / source
    source = shipped if not source.exists() and shipped.is_dir() else source
    before = (
        _bundle_weights(source) if (source / WEIGHTS).is_file() else load_checkpoint(source).part("average")
    )
    own = model.state_dict()
    state = {k: before[k] if k in before and before[k].shape == v.shape else v for k, v in own.items()}
    fresh = [k for k, v in own.items() if k not in before or before[k].shape != v.shape]
    fitting = sum(v.numel() for k, v in own.items() if k not in fresh)
    if 2 * fitting < sum(v.numel() for v in own.values()):
        raise InputError(
            f"{source} trained another network: only {fitting:,} of {sum(v.numel() for v in own.values()):,} "
            f"parameters fit size {model.config.size}; start from a run of the same size"
        )
    return state, fresh


def _bundle_weights(bundle: Path) -> dict[str, Tensor]:
    try:
        return load_file(bundle / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{bundle / WEIGHTS} is not readable: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments by `index/name`."""
    return {
        f"{index}/{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put copies of moments from `optimizer_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        # Copies: the optimiser changes its moments in place, and the checkpoint may be needed again.
        state.setdefault(int(index), {})[name] = value.cpu().clone() if name == "step" else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
