"""Several processes, one run: gradients averaged, buffers shared. Started by `torchrun`, or alone.

The network is not called through its `forward` alone but encodes whole clips and then steps through them, so
the reduction stands here in the open and not in a wrapper's hooks. It costs one all-reduce of all gradients
a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

LONGEST_WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: From 0; that one writes files and reports.
        size: How many there are.
        device: Where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


def join(device: str) -> World:
    """Join the processes that `torchrun` started, or be alone.

    Args:
        device: `cpu` or `cuda`; of several GPUs each process takes the one with its local rank.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    where = torch.device(device)
    if device == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        # The others wait while the first one drives on policy or validates.
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=LONGEST_WAIT)
    return World(rank, size, where)


def leave(world: World) -> None:
    """Part again."""
    if world.size > 1:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace each gradient by its mean over all processes; a parameter without one counts as zero."""
    if world.size == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world.size
    position = 0
    for p in parameters:
        p.grad = flat[position : position + p.numel()].view_as(p).clone()
        position += p.numel()


def share_buffers(model: nn.Module, world: World) -> None:
    """Everyone takes the first process's running statistics, as `DistributedDataParallel` does."""
    if world.size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, 0)


def mean_of(values: Tensor, world: World) -> Tensor:
    """The mean of a tensor over all processes."""
    if world.size > 1:
        dist.all_reduce(values)
        values = values / world.size
    return values


def wait_for_all(world: World) -> None:
    """Nobody goes on before everybody is here."""
    if world.size > 1:
        dist.barrier()
