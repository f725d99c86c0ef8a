"""The training loop, all of it: stages, clips, rollout, balance, clip, step, average, validate, save.

Resuming continues at the exact step: batches and augmentation are functions of (seed, stage, number), so
nothing but the checkpoint is needed.

The parts: `config` what a run is, `schedule` where it stands, `run` what changes, `balancing` how objectives
share the parameters, `perturbation` what makes inputs harder, `promotion` which checkpoint is best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from e2e_perception.core.errors import InputError, TrainingError
from e2e_perception.data.augmentation import Degradations
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import Augmentation, ClipDataset, Dropout
from e2e_perception.model.losses import LOSSES
from e2e_perception.model.network import JointNetwork
from e2e_perception.training import distributed, perturbation
from e2e_perception.training.balancing import measure_conflicts
from e2e_perception.training.checkpoint import STATE, Checkpoint, load_checkpoint
from e2e_perception.training.config import OnPolicy, Stage, TrainingConfig
from e2e_perception.training.evaluate import evaluate_open_loop
from e2e_perception.training.promotion import judge, objective_scores, updated_best
from e2e_perception.training.rollout import rollout
from e2e_perception.training.run import Run
from e2e_perception.training.run_log import FLOOR, RunLog, StepReport
from e2e_perception.training.schedule import Order, Source, learning_rate, pool

# Drives the network of a run and records clips: (network, what to drive, directory) -> its clips.
Collector = Callable[[JointNetwork, OnPolicy, Path], ClipStore]


@dataclass(frozen=True)
class _Outcome:
    """One step's numbers, before they are reported."""

    total: float
    losses: dict[str, float]
    gradient_norm: float
    weights: dict[str, float]
    cosines: dict[str, float]


def train(
    stores: Sequence[ClipStore],
    out: Path,
    config: TrainingConfig,
    *,
    report: Callable[[StepReport], None] | None = None,
    stop_after: int | None = None,
    device: str = "cpu",
    collect: Collector | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Train, or go on training if `out` holds a checkpoint.

    Under `torchrun` every process calls this; the first one writes and reports.

    Args:
        stores: Clips; those of the split `train` are used, those of `validation` choose the best checkpoint.
        out: Run directory: `checkpoint.safetensors`, `best.safetensors`, `losses.jsonl`, `on-policy/`.
        config: The run; a checkpoint of another configuration is refused.
        report: Called after every step.
        stop_after: Stop early after this many steps in total, as an interruption would.
        device: `cpu` or `cuda`.
        collect: Makes the clips of on-policy stages.
        tracking_uri: MLflow's; None: without.
    Returns:
        Steps done in total.
    Raises:
        InputError: If there are no training clips, `out` belongs to another run, or `init` does not fit.
        TrainingError: If the loss keeps leaping; the last checkpoint is kept.
    """
    if collect is None and any(stage.on_policy for stage in config.stages):
        raise InputError("the configuration has on-policy stages, and nobody to drive them was given")
    if config.threads:
        torch.set_num_threads(config.threads)
    world = distributed.join(device)
    try:
        goes_on = (out / STATE).exists()
        run = Run(config, world.device, [store.digest for store in stores], goes_on=goes_on)
        if goes_on:
            checkpoint = load_checkpoint(out)
            run.check_belongs(checkpoint, out)
            run.restore(checkpoint)
        pool([Source(store) for store in stores], config.stages[0])  # before anything is written
        log = RunLog(out, config, run.progress.step, tracking_uri) if world.leads else None
        with log or nullcontext():
            if log is not None and run.progress.step == 0 and config.init:
                log.began_with(config.init, run.fresh)
            loop = _Loop(run, stores, out, world, log, report, stop_after)
            while run.progress.stage < len(config.stages) and loop.may_go_on:
                loop.stage(collect)
        return run.progress.step
    finally:
        distributed.leave(world)


class _Loop:
    """What the stages of one call share."""

    def __init__(
        self,
        run: Run,
        stores: Sequence[ClipStore],
        out: Path,
        world: distributed.World,
        log: RunLog | None,
        report: Callable[[StepReport], None] | None,
        stop_after: int | None,
    ) -> None:
        self.run, self.stores, self.out, self.world = run, stores, out, world
        self.log, self.report, self.stop_after = log, report, stop_after
        self.config = run.config

    @property
    def may_go_on(self) -> bool:
        return self.stop_after is None or self.run.progress.step < self.stop_after

    # ---------------------------------------------------------------- a stage

    def stage(self, collect: Collector | None) -> None:
        """One stage, from wherever it stands to its end (or that of this call)."""
        run, progress = self.run, self.run.progress
        stage = self.config.stages[progress.stage]
        sources = self._sources(collect)
        good = run.checkpoint()
        waiting_since = time.perf_counter()
        for batch in self._batches(pool(sources, stage), stage):
            started = time.perf_counter()
            outcome = self._step(batch, stage)
            leapt = self._leapt(outcome)
            if leapt:
                self._roll_back(good, outcome, stage)
                progress = run.progress
            else:
                progress.step += 1
                progress.stage_step += 1
                progress.rollbacks = 0
                progress.observe({**outcome.losses, "total": outcome.total})
                run.update_average()
            now = time.perf_counter()
            self._report(stage, outcome, now - waiting_since, started - waiting_since, leapt)
            waiting_since = now
            if leapt:
                continue
            over = progress.stage_is_over(self.config.stages)
            last = over and progress.stage + 1 == len(self.config.stages)
            every = self.config.promotion.every
            validates = last or (every > 0 and progress.step % every == 0)
            if validates:
                self._validate()
            if over:
                progress.next_stage()
            # After each validation too: who goes on from here must know of the best that is in the file.
            due = progress.step % self.config.checkpoint_every == 0
            if over or validates or due or not self.may_go_on:
                self._save()
                good = run.checkpoint()
            if over or not self.may_go_on:
                return
            waiting_since = time.perf_counter()  # not for what was done since

    def _sources(self, collect: Collector | None) -> list[Source]:
        """The datasets of the current stage: those given, and what was driven on policy up to now."""
        run = self.run
        sources = [Source(store) for store in self.stores]
        for number, stage in enumerate(self.config.stages[: run.progress.stage + 1]):
            if stage.on_policy is None:
                continue
            assert collect is not None
            directory = self.out / "on-policy" / f"{number}-{stage.name}"
            if self.world.leads:
                collect(run.averaged_model(), stage.on_policy, directory)
            distributed.wait_for_all(self.world)
            store = ClipStore(directory)
            if store.digest not in run.digests:
                run.digests.append(store.digest)
            sources.append(Source(store, stage.on_policy.repeat))
        return sources

    def _batches(self, clips: list[tuple[ClipStore, int]], stage: Stage) -> Iterator[dict[str, Tensor]]:
        config, progress = self.config, self.run.progress
        augmentation = Augmentation(
            clip_length=stage.clip_length,
            mirror=config.mirror,
            dropout=Dropout().scaled(stage.dropout) if stage.dropout > 0 else None,
            degradations=Degradations(strength=stage.degradation) if stage.degradation > 0 else None,
            bev=config.bev,
            ego_noise=config.ego_noise,
        )
        order = Order(
            len(clips),
            config,
            progress.stage,
            progress.stage_step + progress.skipped,
            rank=self.world.rank,
            world=self.world.size,
        )
        seed = int(np.random.SeedSequence((config.seed, progress.stage)).generate_state(1)[0])
        return iter(
            DataLoader(
                ClipDataset(clips, config.network, seed=seed, augmentation=augmentation),
                batch_sampler=order,
                num_workers=config.workers,
                prefetch_factor=2 if config.workers else None,
                pin_memory=self.world.device.type == "cuda",
            )
        )

    # ---------------------------------------------------------------- a step

    def _step(self, batch: dict[str, Tensor], stage: Stage) -> _Outcome:
        """Forward, balance, backward, clip, update. Nothing is updated where a loss is not finite."""
        run, config = self.run, self.config
        model, progress = run.model.train(), run.progress
        batch = {k: v.to(self.world.device, non_blocking=True) for k, v in batch.items()}
        chance = np.random.default_rng(
            (config.seed, progress.stage, progress.stage_step + progress.skipped, 3)
        )
        boost = progress.boost(stage)
        if chance.random() < stage.adversarial:
            batch = perturbation.adversarial(
                model, batch, budget=config.adversarial_budget, weights=config.weights.model_dump()
            )
        result = rollout(model, batch, boost=boost, recompute=config.recompute)
        losses = result.losses
        weighted = self._by_objective(losses, stage)
        if chance.random() < stage.cross_modal:
            agreement = perturbation.cross_modal_consistency(model, batch)
            losses = {**losses, "cross_modal": agreement}
            before = weighted.get("recognition", agreement.new_zeros(()))
            weighted["recognition"] = before + config.cross_modal_weight * agreement
        # Of all processes: they have to agree on what leapt, and on when a stage is over.
        values = torch.stack([value.detach().float() for value in (*losses.values(), sum(weighted.values()))])
        *means, total = distributed.mean_of(values, self.world).tolist()
        numbers = dict(zip(losses, means, strict=True))
        if not math.isfinite(total):
            return _Outcome(math.nan, numbers, 0.0, {}, {})

        every = config.balancing.log_conflicts_every
        cosines: dict[str, float] = {}
        if every and progress.step % every == 0:
            cosines = measure_conflicts(weighted, list(model.encoder.from_coarse.parameters())).cosines
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(progress, config) * group["factor"]
        run.optimizer.zero_grad(set_to_none=True)
        scale = float(run.scaler.scale(torch.ones((), device=self.world.device)))
        balance = run.balancer.backward(weighted, model, step=progress.step, scale=scale)
        if not every:  # those that the method needed: elsewhere in the network, and not to be mixed
            cosines = balance.cosines
        # Before unscaling, so that all processes see the same overflow and skip the same steps.
        distributed.average_gradients([*model.parameters(), *run.balancer.parameters()], self.world)
        run.scaler.unscale_(run.optimizer)
        norm = float(clip_by_module(model, config.clip_norm, self.world.device))
        if (
            not math.isfinite(norm) and not run.scaler.is_enabled()
        ):  # float16's scaler skips such steps itself
            return _Outcome(math.nan, numbers, norm, balance.weights, cosines)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        distributed.share_buffers(model, self.world)
        return _Outcome(total, numbers, norm, balance.weights, cosines)

    def _by_objective(self, losses: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        """Mission-weighted sums of the losses of each objective; one whose weights are all 0 is left out."""
        weights = self.config.weights.model_dump()
        sums: dict[str, Tensor] = {}
        for name, value in losses.items():
            weight = weights[name] * stage.losses.get(name, 1.0)
            if weight > 0.0:
                objective = LOSSES[name].objective
                sums[objective] = sums.get(objective, value.new_zeros(())) + weight * value
        return sums

    def _leapt(self, outcome: _Outcome) -> bool:
        if not math.isfinite(outcome.total):
            return True
        guard, progress = self.config.guard, self.run.progress
        mean = progress.means.get("total", outcome.total)
        settled = progress.stage_step >= guard.after
        return settled and outcome.total > guard.factor * max(mean, 1e-3)

    def _roll_back(self, good: Checkpoint, outcome: _Outcome, stage: Stage) -> None:
        """Back to the last good state, and on with the clips after those that made the loss leap."""
        run, guard = self.run, self.config.guard
        number = run.progress.stage_step + run.progress.skipped
        rollbacks = run.progress.rollbacks + 1
        if rollbacks > guard.most:
            bad = [name for name, value in outcome.losses.items() if not math.isfinite(value)]
            what = f"loss is {outcome.total:.3g}"
            if bad or not math.isfinite(outcome.total):
                what = f"loss is not finite ({', '.join(bad)})" if bad else "gradient is not finite"
            raise TrainingError(
                f"the {what} at step {run.progress.step} of stage {stage.name}, after {guard.most} "
                f"rollbacks in a row; {self.out} keeps the last checkpoint; try a lower learning rate"
            )
        run.restore(good)
        run.progress.rollbacks = rollbacks
        run.progress.skipped = number + 1 - run.progress.stage_step

    # ---------------------------------------------------------------- around it

    def _report(self, stage: Stage, outcome: _Outcome, seconds: float, waited: float, leapt: bool) -> None:
        if not self.world.leads:
            return
        report = StepReport(
            step=self.run.progress.step,
            stage=stage.name,
            total=outcome.total,
            losses=outcome.losses,
            gradient_norm=outcome.gradient_norm,
            clips_per_s=self.config.batch_clips * self.world.size / seconds,
            data_share=waited / seconds,
            memory_mb=_memory_mb(self.world.device),
            weights=outcome.weights,
            cosines=outcome.cosines,
            event="rolled back: the loss leapt" if leapt else "",
        )
        assert self.log is not None
        self.log.step(report)
        if self.report is not None:
            self.report(report)

    def _validate(self) -> None:
        """Judge the averaged weights on validation clips, and keep them if they are the best so far."""
        run, promotion = self.run, self.config.promotion
        clips = [(store, i) for store in self.stores for i in store.labelled("validation").tolist()]
        if not self.world.leads or not clips:
            distributed.wait_for_all(self.world)
            return
        chosen = np.linspace(0, len(clips) - 1, min(promotion.clips, len(clips))).astype(int)
        figures = evaluate_open_loop(run.averaged_model(), [clips[i] for i in chosen.tolist()])
        verdict = judge(objective_scores(figures), run.progress.best, promotion.tolerance)
        run.progress.best = updated_best(verdict, run.progress.best)
        if verdict.promoted:
            run.promote(self.out, verdict.scores)
        assert self.log is not None
        paused = {f"{FLOOR}{name}": 1.0 for name in verdict.below_floor}
        scores = {f"score/{name}": score for name, score in verdict.scores.items()}
        self.log.figures(
            run.progress.step, {**figures, **scores, **paused, "promoted": float(verdict.promoted)}
        )
        distributed.wait_for_all(self.world)

    def _save(self) -> None:
        if self.world.leads:
            assert self.log is not None
            self.log.flush()
            self.run.save(self.out)
        distributed.wait_for_all(self.world)


def clip_by_module(model: nn.Module, most: float, device: torch.device) -> Tensor:
    """Clip the gradients of each child of a model to a norm of its own; all together had the one returned."""
    norms = [
        # Without a gradient the norm is a zero on the CPU.
        torch.nn.utils.clip_grad_norm_(module.parameters(), most).to(device)
        for module in model.children()
    ]
    return torch.stack(norms).norm()


def _memory_mb(device: torch.device) -> float:
    """Resident memory of this process, or what the GPU's allocator has held at most [MB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) / 1e3
    return math.nan
