"""The state of a run: everything that changes, saved and put back as a whole."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from e2e_perception.core.errors import InputError
from e2e_perception.core.named_files import offending_keys
from e2e_perception.core.provenance import git_commit
from e2e_perception.model.losses import OBJECTIVES
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.balancing import Balancer
from e2e_perception.training.checkpoint import (
    BEST,
    STATE,
    Checkpoint,
    first_weights,
    optimizer_tensors,
    restore_optimizer,
    write_checkpoint,
)
from e2e_perception.training.config import TrainingConfig
from e2e_perception.training.schedule import Progress

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Run:
    """Weights, their average, optimiser, balancer and progress.

    Attributes:
        digests: Of every dataset that was trained on, in order of appearance.
        fresh: Tensors for which `init` had nothing.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device, digests: list[str], *, goes_on: bool = False
    ) -> None:
        """Begin a run.

        Args:
            config: Its settings.
            device: Where it runs.
            digests: Of its datasets.
            goes_on: A checkpoint will be restored, so that what `init` names is not needed any more.
        Raises:
            InputError: If the run that `init` names does not fit, or the device has not the precision.
        """
        if config.precision == "float16" and device.type == "cpu":
            raise InputError(
                "precision float16 needs a GPU, and this run is on the CPU; take bfloat16 or float32"
            )
        # Emulated it would be slower than float32.
        native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        if config.precision == "bfloat16" and not native:
            raise InputError("precision bfloat16: this GPU does not support it; take float16 or float32")
        torch.manual_seed(config.seed)
        self.config = config
        self.model = JointNetwork(config.network).to(device)
        self.model.encoder_dtype = HALF.get(config.precision)
        self.fresh: list[str] = []
        if config.init and not goes_on:
            state, self.fresh = first_weights(Path(config.init), self.model)
            self.model.load_state_dict(state)
        self.balancer = Balancer(config.balancing.method, objectives=OBJECTIVES, seed=config.seed).to(device)
        self.optimizer = torch.optim.AdamW(
            [
                *parameter_groups(self.model, config),
                {"params": list(self.balancer.parameters()), "weight_decay": 0.0, "factor": 1.0},
            ],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(enabled=config.precision == "float16")
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.progress = Progress()
        self.digests = digests
        self.commit = git_commit()

    def checkpoint(self) -> Checkpoint:
        """All of it, as it is now; tensors are copies."""
        tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"balancer/{k}": v for k, v in self.balancer.state_dict().items()}
        facts: dict[str, Any] = {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "training": self.config.model_dump(mode="json"),
            "network": self.model.config.model_dump(mode="json"),
            "dataset_digests": list(self.digests),
            "git_commit": self.commit,
            "scaler": self.scaler.state_dict(),
        }
        return Checkpoint({k: v.detach().clone() for k, v in tensors.items()}, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Be as a checkpoint was."""
        device = next(self.model.parameters()).device
        moved = Checkpoint({k: v.to(device) for k, v in checkpoint.tensors.items()}, checkpoint.facts)
        self.model.load_state_dict(moved.part("model"))
        self.average = {k: v.clone() for k, v in moved.part("average").items()}
        self.balancer.load_state_dict(moved.part("balancer"))
        restore_optimizer(self.optimizer, moved.part("optimizer"))
        if checkpoint.facts["scaler"]:
            self.scaler.load_state_dict(checkpoint.facts["scaler"])
        self.progress = Progress(**copy.deepcopy(checkpoint.facts["progress"]))
        self.digests = list(checkpoint.facts["dataset_digests"])

    def save(self, out: Path) -> None:
        """Write the checkpoint that a later start goes on from."""
        now = self.checkpoint()
        write_checkpoint(out / STATE, now.tensors, now.facts)

    def promote(self, out: Path, scores: dict[str, float]) -> None:
        """Write the averaged weights as the best so far."""
        now = self.checkpoint()
        kept = {k: v for k, v in now.tensors.items() if k.startswith("average/")}
        write_checkpoint(out / BEST, kept, {**now.facts, "scores": scores})

    def check_belongs(self, checkpoint: Checkpoint, out: Path) -> None:
        """Refuse to go on with another configuration or other data.

        Raises:
            InputError: If they differ.
        """
        try:
            # What a setting of a later version was in an older run is its default.
            got = TrainingConfig.model_validate(checkpoint.facts["training"]).model_dump(mode="json")
        except ValidationError as error:
            wrong = "; ".join(offending_keys(error, "configuration"))
            raise InputError(f"{out} holds a run that is refused now ({wrong}); use a new --out") from error
        expected = self.config.model_dump(mode="json")
        if got != expected:
            changed = [key for key in expected if got[key] != expected[key]]
            raise InputError(
                f"{out} holds a run with another configuration ({', '.join(changed)}); use a new "
                "--out directory"
            )
        known = checkpoint.facts["dataset_digests"][: len(self.digests)]
        if known != self.digests:
            raise InputError(
                f"{out} holds a run with another dataset digest ({', '.join(known)}); use another --out"
            )

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average of the weights, faster at first (Polyak & Juditsky 1992)."""
        step = self.progress.step
        decay = min(self.config.ema, step / (step + 10.0))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1.0 - decay)
            else:
                self.average[name].copy_(value)  # counters of the normalisation

    def averaged_model(self) -> JointNetwork:
        """A network with the averaged weights, for validation and driving."""
        model = JointNetwork(self.model.config)
        model.load_state_dict({k: v.cpu() for k, v in self.average.items()})
        return model.eval()


def parameter_groups(model: JointNetwork, config: TrainingConfig) -> list[dict[str, Any]]:
    """Parameters in the model's own order, with the factor on the learning rate that each part has."""
    factors = {"motion": config.learning_rates.prediction, "planner": config.learning_rates.planning}
    return [
        {"params": list(part.parameters()), "factor": factors.get(name, config.learning_rates.perception)}
        for name, part in model.named_children()
    ]
