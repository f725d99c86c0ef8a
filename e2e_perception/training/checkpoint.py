"""Checkpoints: safetensors for numbers, JSON for the rest, replaced atomically. No pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.config import TrainingConfig

STATE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on at the exact step.

    Attributes:
        step: Optimiser steps done.
        tensors: `model/…`, `average/…`, `optimizer/<index>/<name>`.
        facts: Training configuration, network, dataset digests.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: JointNetwork,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    dataset_digest: str,
) -> None:
    """Write `checkpoint.safetensors` under `directory` in one atomic step."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors.update({f"average/{k}": v for k, v in average.items()})
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    facts = {
        "step": step,
        "training": config.model_dump(mode="json"),
        "network": model.config.model_dump(mode="json"),
        "dataset_digest": dataset_digest,
    }
    scratch = directory / f".{STATE}.{os.getpid()}"
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        scratch,
        metadata={"facts": json.dumps(facts, sort_keys=True)},
    )
    scratch.replace(directory / STATE)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: If there is none or it is damaged.
    """
    path = directory / STATE
    if not path.is_file():
        raise InputError(f"no checkpoint in {directory}; expected {STATE}, written by `e2e-perception train`")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error
    return Checkpoint(int(facts["step"]), tensors, facts)


def model_from_checkpoint(checkpoint: Checkpoint, *, averaged: bool = True) -> JointNetwork:
    """The network of a checkpoint, with its averaged weights unless told otherwise."""
    model = JointNetwork(NetworkConfig.model_validate(checkpoint.facts["network"]))
    prefix = "average/" if averaged else "model/"
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
    )
    return model
