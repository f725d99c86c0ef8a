"""The training loop, all of it: read clips, roll out, weigh losses, step, average, save, go on.

Resuming continues at the exact step: batches and augmentation are functions of (seed, step), so nothing but
the checkpoint is needed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from e2e_perception.core.errors import InputError, TrainingError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import ClipDataset, Dropout
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.checkpoint import STATE, load_checkpoint, save_checkpoint
from e2e_perception.training.config import TrainingConfig
from e2e_perception.training.rollout import rollout

LOG = "losses.jsonl"


@dataclass(frozen=True)
class StepReport:
    """What one step did, for logs and progress bars."""

    step: int
    total: float
    losses: dict[str, float]
    gradient_norm: float
    clips_per_s: float
    data_share: float


class _Order(Sampler[list[int]]):
    """Batches of a run from a given step on; a function of the seed alone."""

    def __init__(self, num_clips: int, config: TrainingConfig, first_step: int) -> None:
        self.num_clips, self.config, self.first_step = num_clips, config, first_step

    def __iter__(self) -> Iterator[list[int]]:
        batch, orders = self.config.batch_clips, {}
        for step in range(self.first_step, self.config.steps):
            indices = []
            for position in range(step * batch, (step + 1) * batch):
                epoch, place = divmod(position, self.num_clips)
                if epoch not in orders:
                    orders = {
                        epoch: np.random.default_rng((self.config.seed, 7, epoch)).permutation(self.num_clips)
                    }
                indices.append(int(orders[epoch][place]) + epoch * self.num_clips)
            yield indices

    def __len__(self) -> int:
        return self.config.steps - self.first_step


def train(
    store: ClipStore,
    out: Path,
    config: TrainingConfig,
    *,
    report: Callable[[StepReport], None] | None = None,
    stop_after: int | None = None,
    device: str = "cpu",
) -> int:
    """Train, or go on training if `out` holds a checkpoint.

    Args:
        store: Clips; those of the split `train` are used.
        out: Run directory: `checkpoint.safetensors`, `losses.jsonl`.
        config: The run; a checkpoint of another configuration is refused.
        report: Called after every step.
        stop_after: Stop early after this many steps in total, as an interruption would.
        device: `cpu` or `cuda`.
    Returns:
        Steps done in total.
    Raises:
        InputError: If the store has no training clips, `out` belongs to another run, or `init` does not fit.
        TrainingError: If the loss stops being finite; the last checkpoint is kept.
    """
    indices = store.indices("train")
    if len(indices) == 0:
        raise InputError(f"{store.path} holds no clips of the split `train`; simulate or ingest some first")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = JointNetwork(config.network).to(device)
    if config.init:
        model.load_state_dict(_first_weights(Path(config.init), model))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    digest = store.digest
    step = 0
    if (out / STATE).exists():
        step = _resume(out, config, digest, model, optimizer, average, device)
    dataset = ClipDataset(
        store,
        indices,
        config.network,
        seed=config.seed,
        mirror=config.mirror,
        dropout=Dropout() if config.sensor_dropout else None,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=_Order(len(dataset), config, step),
        num_workers=config.workers,
        prefetch_factor=2 if config.workers else None,
    )
    modules = dict(model.named_children())
    weights = config.weights.model_dump()
    out.mkdir(parents=True, exist_ok=True)
    model.train()
    waiting_since = time.perf_counter()
    with (out / LOG).open("a", encoding="utf-8") as log:
        for batch in loader:
            started = time.perf_counter()
            _set_learning_rate(optimizer, step, config)
            boost = max(0.0, 1.0 - step / max(1.0, config.boost_until * config.steps))
            _, losses, _, _ = rollout(model, {k: v.to(device) for k, v in batch.items()}, boost=boost)
            total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            if not torch.isfinite(total):
                bad = [name for name, value in losses.items() if not torch.isfinite(value)]
                raise TrainingError(
                    f"loss is not finite at step {step}: {', '.join(bad)}; {out} keeps the last checkpoint; "
                    "try a lower learning rate in a new run"
                )
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            norms = [
                torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
                for module in modules.values()
            ]
            optimizer.step()
            step += 1
            _update_average(average, model, config.ema, step)
            now = time.perf_counter()
            result = StepReport(
                step=step,
                total=float(total.detach()),
                losses={name: float(value.detach()) for name, value in losses.items()},
                gradient_norm=float(torch.stack(norms).norm()),
                clips_per_s=config.batch_clips / (now - waiting_since),
                data_share=(started - waiting_since) / (now - waiting_since),
            )
            waiting_since = now
            log.write(json.dumps(result.__dict__) + "\n")
            if report is not None:
                report(result)
            last = step == config.steps or step == stop_after
            if step % config.checkpoint_every == 0 or last:
                log.flush()
                save_checkpoint(
                    out,
                    step=step,
                    model=model,
                    average=average,
                    optimizer=optimizer,
                    config=config,
                    dataset_digest=digest,
                )
            if last:
                break
    return step


def _first_weights(run: Path, model: JointNetwork) -> dict[str, Tensor]:
    """Averaged weights of another run of the same size."""
    before = load_checkpoint(run)
    ours, theirs = (
        network.model_dump(exclude={"interfaces", "memory_frames"})  # they change no weight
        for network in (model.config, NetworkConfig.model_validate(before.facts["network"]))
    )
    different = [name for name, value in ours.items() if theirs[name] != value]
    if different:
        raise InputError(f"{run} trained a network with another {', '.join(different)} than this run's")
    return {k[8:]: v for k, v in before.tensors.items() if k.startswith("average/")}


def _resume(
    out: Path,
    config: TrainingConfig,
    digest: str,
    model: JointNetwork,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    device: str,
) -> int:
    checkpoint = load_checkpoint(out)
    for what, got, expected in (
        ("configuration", checkpoint.facts["training"], config.model_dump(mode="json")),
        ("dataset digest", checkpoint.facts["dataset_digest"], digest),
    ):
        if got != expected:
            raise InputError(f"{out} holds a run with another {what} ({got}); use a new --out directory")
    tensors = {k: v.to(device) for k, v in checkpoint.tensors.items()}
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    average.update({k[8:]: v for k, v in tensors.items() if k.startswith("average/")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value.cpu() if name == "step" else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return checkpoint.step


def _set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainingConfig) -> None:
    """Linear warm-up, then a cosine to 2 % (Loshchilov & Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / config.steps))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warm * (0.02 + 0.98 * cosine)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: JointNetwork, decay: float, step: int) -> None:
    """Exponential moving average of the weights, faster at first (Polyak & Juditsky 1992)."""
    decay = min(decay, step / (step + 10.0))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)  # counters of the normalisation
