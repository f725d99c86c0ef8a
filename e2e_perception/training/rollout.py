"""Runs the network over a clip with its memory fed back, gradients through time included.

This is the training-side twin of `runtime.track_manager`: the same memory, filled by the labels' identities
where the robot has to decide by affinity.

Legend: B batch, T frames, Q detections, M remembered tracks, D token width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.model.losses import frame_losses
from e2e_perception.model.network import JointNetwork
from e2e_perception.model.targets import heat_targets, label_of_ids, match_queries

ENCODED_INPUTS = (
    "images",
    "image_from_base",
    "camera_valid",
    "lidar_raster",
    "lidar_valid",
    "radar_raster",
    "radar_valid",
)
LABELS = (
    "boxes",
    "class_ids",
    "ids",
    "weights",
    "present",
    "futures",
    "futures_valid",
    "ego_future",
    "ego_future_valid",
    "maps",
    "maps_valid",
    "labels_valid",
    "cells_known",
    "plan_costs",
)
PER_OBJECT = ("boxes", "class_ids", "ids", "weights", "present", "futures", "futures_valid")
# What the losses look at of the outputs of all frames together.
FOR_LOSSES = (
    "heat_logits",
    "query_boxes",
    "query_headings",
    "query_log_var",
    "affinity",
    "object_futures",
    "object_futures_log_var",
    "mode_logits",
    "map_logits",
    "plan_sd",
    "plan_costs",
    "plan_logits",
)
REMEMBER_SCORE = 0.3  # an unmatched detection above this is remembered, as the robot would
BIRTH_SCORE = 0.5  # by scores alone: a detection that is no remembered track, as `tracking.birth_score`
BOOST = 20.0


@dataclass(frozen=True)
class TrackMemory:
    """Remembered tracks after a frame, in that frame's base frame.

    Attributes:
        tokens_BMD: (B, M, D).
        boxes_BM10: (B, M, 10), columns `BOX_FIELDS`.
        valid_BM: 1 or 0.
        ids_BM: (B, M) int64 label identity, -1 for a false detection or padding.
    """

    tokens_BMD: Tensor
    boxes_BM10: Tensor
    valid_BM: Tensor
    ids_BM: Tensor


@dataclass(frozen=True)
class Rollout:
    """A batch of clips after the network has been over it.

    Attributes:
        frames: Outputs of `JointNetwork.step` per frame.
        losses: Scalars by name (`model.losses.LOSSES`), over all frames; empty if not asked for.
        matches: Per frame, the label slot of each query (B, Q), -1 for none.
        memory_ids: Per frame, identities of the remembered tracks that went in (B, M).
        features_BTCYX: What `JointNetwork.encode` made of the sensors, Doppler sums included.
    """

    frames: list[dict[str, Tensor]]
    losses: dict[str, Tensor]
    matches: list[Tensor]
    memory_ids: list[Tensor]
    features_BTCYX: Tensor


def rollout(
    model: JointNetwork,
    batch: dict[str, Tensor],
    *,
    boost: float,
    with_losses: bool = True,
    recompute: bool = False,
    as_on_robot: bool = False,
) -> Rollout:
    """Run a batch of clips.

    Args:
        model: The network.
        batch: From `ClipDataset`, collated: (B, T, ...).
        boost: 0..1, how strongly true centres are pushed into the queries (early training).
        with_losses: False skips the losses (evaluation).
        as_on_robot: For evaluation: labels do not say what is remembered, only which
            track is which, and the BEV memory starts anew every `NetworkConfig.memory_frames`.
            False: an object is remembered however weakly it was seen, so that there is something to
            associate early on.
        recompute: Save memory: the encoder's activations are computed again in the backward pass (Chen et
            al. 2016).
    """
    config = model.config
    b, num_frames = batch["images"].shape[:2]
    device = batch["images"].device
    sensors = {k: batch[k].flatten(0, 1) for k in ENCODED_INPUTS}
    features = _encode_twice(model, sensors) if recompute else model.encode(sensors)
    features_BTCYX = features.reshape(b, num_frames, *features.shape[1:])
    labels_BT = _labels(batch)
    centres_YX2 = model.detection.centres_G2.reshape(*config.bev_grid.shape, 2)
    targets = heat_targets({k: v.flatten(0, 1) for k, v in labels_BT.items()}, config.bev_grid, centres_YX2)
    boost_BTYX = targets.boost_BYX.unflatten(0, (b, num_frames)) * BOOST * boost if boost > 0 else None

    state = model.initial_state(b, device)
    bev_memory = state["bev_memory"]
    ids = torch.full((b, config.num_memory), -1, dtype=torch.int64, device=device)
    memory = TrackMemory(state["track_tokens"], state["track_boxes"], state["track_valid"], ids)
    frames, all_matches, all_ids, all_track_boxes = [], [], [], []
    for t in range(num_frames):
        frame = {k: batch[k][:, t] for k in ("ego_state", "route", "bev_theta", "memory_valid")}
        moved = _move(memory, batch["memory_from_base"][:, t], config.frame_period_s, frame["memory_valid"])
        if config.memory_frames == 1 or (as_on_robot and t % config.memory_frames == 0):
            frame["memory_valid"] = torch.zeros_like(frame["memory_valid"])
        inputs = {
            **frame,
            "bev_memory": bev_memory,
            "track_tokens": moved.tokens_BMD,
            "track_boxes": moved.boxes_BM10,
            "track_valid": moved.valid_BM,
        }
        outputs = model.step(features_BTCYX[:, t], inputs, None if boost_BTYX is None else boost_BTYX[:, t])
        labels = {k: v[:, t] for k, v in labels_BT.items()}
        matches = match_queries(outputs["query_centres"], labels)
        frames.append(outputs)
        all_matches.append(matches)
        all_ids.append(moved.ids_BM)
        all_track_boxes.append(moved.boxes_BM10)
        memory = _remember(outputs, labels, matches, moved, config.num_memory, by_score=as_on_robot)
        bev_memory = outputs["bev_memory_next"]

    losses = {}
    if with_losses:
        losses = frame_losses(
            {name: _together([frame[name] for frame in frames]) for name in FOR_LOSSES},
            {"track_boxes": _together(all_track_boxes), "route": batch["route"].flatten(0, 1)},
            {k: v.flatten(0, 1) for k, v in labels_BT.items()},
            targets,
            _together(all_matches),
            _together(all_ids),
            centres_YX2,
        )
    return Rollout(frames, losses, all_matches, all_ids, features_BTCYX)


def _encode_twice(model: JointNetwork, sensors: dict[str, Tensor]) -> Tensor:
    """`model.encode`, once now and once more in the backward pass, its activations not kept between them."""

    def contexts() -> tuple[nullcontext[None], _CountedAlready]:
        return nullcontext(), _CountedAlready(model)

    return checkpoint(model.encode, sensors, use_reentrant=False, context_fn=contexts)


class _CountedAlready:
    """Batch norms meet a batch they have seen: their running statistics stay as they are.

    A context that can be entered again: an objective each may go back through the encoder.
    """

    def __init__(self, model: JointNetwork) -> None:
        self.norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self.before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, number) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, number


def _together(per_frame: list[Tensor]) -> Tensor:
    """T tensors (B, ...) as one (B * T, ...); what was computed in half precision is counted in full."""
    stacked = torch.stack(per_frame, 1).flatten(0, 1)
    return stacked.float() if stacked.is_floating_point() else stacked


def _labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The labels of a batch, without slots that no clip of it uses."""
    used = int(batch["present"].any(0).any(0).sum())  # slots are filled from the front
    return {k: batch[k][:, :, : max(used, 1)] if k in PER_OBJECT else batch[k] for k in LABELS}


def _move(memory: TrackMemory, memory_from_base_B3: Tensor, dt: float, valid_B1: Tensor) -> TrackMemory:
    """Remembered tracks in the next frame's base frame: constant velocity, then ego motion."""
    boxes = memory.boxes_BM10
    x, y, yaw = memory_from_base_B3[:, None].unbind(-1)
    c, s = yaw.cos(), yaw.sin()
    px = boxes[..., 0] + boxes[..., 8] * dt - x
    py = boxes[..., 1] + boxes[..., 9] * dt - y

    def turned(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return c * u + s * v, -s * u + c * v

    cosine, sine = turned(boxes[..., 7], boxes[..., 6])
    moved = torch.stack(
        [*turned(px, py), *boxes[..., 2:6].unbind(-1), sine, cosine, *turned(boxes[..., 8], boxes[..., 9])],
        -1,
    )
    keep = memory.valid_BM * (valid_B1 > 0.5)
    ids = torch.where(keep > 0.5, memory.ids_BM, -1)
    return TrackMemory(memory.tokens_BMD, moved * keep[..., None], keep, ids)


def _remember(
    outputs: dict[str, Tensor],
    labels: dict[str, Tensor],
    matches_BQ: Tensor,
    before: TrackMemory,
    num_memory: int,
    *,
    by_score: bool,
) -> TrackMemory:
    """The M most worthwhile of this frame's detections and the tracks that it did not see."""
    scores = outputs["query_scores"].detach().amax(-1)
    matched = matches_BQ >= 0
    query_ids = torch.where(matched, labels["ids"].gather(1, matches_BQ.clamp(min=0)), -1)
    same_BMQ = (before.ids_BM[:, :, None] == query_ids[:, None]) & (query_ids >= 0)[:, None]
    if by_score:
        goes_on = (same_BMQ & (before.valid_BM > 0.5)[:, :, None]).any(1)
        kept = scores > torch.where(goes_on, REMEMBER_SCORE, BIRTH_SCORE)
        around = before.ids_BM >= 0
    else:
        kept = matched | (scores > REMEMBER_SCORE)
        around = label_of_ids(before.ids_BM, labels) >= 0
    query_worth = torch.where(kept, 1.0 + scores, torch.zeros_like(scores))
    # A track is kept unseen as long as its object is around; a remembered false detection is not.
    seen_again = (same_BMQ & kept[:, None]).any(2)
    alive = around & ~seen_again & (before.valid_BM > 0.5)
    worth = torch.cat([query_worth, 0.5 * alive.float()], 1)
    best = worth.topk(num_memory, dim=1)
    valid = (best.values > 0).float()

    def pick(of_queries: Tensor, of_tracks: Tensor) -> Tensor:
        rows = torch.cat([of_queries, of_tracks], 1)
        index = best.indices if rows.dim() == 2 else best.indices[..., None].expand(-1, -1, rows.shape[-1])
        return rows.gather(1, index)

    # Boxes are remembered as numbers; tokens carry the gradient through time.
    boxes = pick(outputs["query_boxes"].detach(), before.boxes_BM10)
    ids = torch.where(valid > 0.5, pick(query_ids, before.ids_BM), -1)
    return TrackMemory(pick(outputs["query_tokens"], before.tokens_BMD), boxes, valid, ids)


assert BOX_FIELDS[6:8] == ("sin_yaw", "cos_yaw")
