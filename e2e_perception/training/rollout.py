"""Runs the network over a clip with its memory fed back, gradients through time included.

This is the training-side twin of `runtime.track_manager`: the same memory, filled by the labels' identities
where the robot has to decide by affinity.

Legend: B batch, T frames, Q detections, M remembered tracks, D token width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
)
REMEMBER_SCORE = 0.3  # an unmatched detection above this is remembered, as the robot would
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


def rollout(
    model: JointNetwork, batch: dict[str, Tensor], *, boost: float, with_losses: bool = True
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Run a batch of clips.

    Args:
        model: The network.
        batch: From `ClipDataset`, collated: (B, T, ...).
        boost: 0..1, how strongly true centres are pushed into the queries (early training).
        with_losses: False skips the losses (evaluation).
    Returns:
        Outputs per frame; losses averaged over frames; per frame, the label slot of each query (B, Q); per
        frame, identities of the remembered tracks that went in (B, M).
    """
    config = model.config
    b, num_frames = batch["images"].shape[:2]
    device = batch["images"].device
    features = model.encode({k: batch[k].flatten(0, 1) for k in ENCODED_INPUTS})
    features_BTCYX = features.reshape(b, num_frames, *features.shape[1:])
    state = model.initial_state(b, device)
    centres_YX2 = model.detection.centres_G2.reshape(*config.bev_grid.shape, 2)
    memory_ids = torch.full((b, config.num_memory), -1, dtype=torch.int64, device=device)
    bev_memory = state["bev_memory"]
    memory = TrackMemory(state["track_tokens"], state["track_boxes"], state["track_valid"], memory_ids)
    frames, totals = [], {}
    all_matches, all_ids = [], []
    for t in range(num_frames):
        frame = {k: batch[k][:, t] for k in ("ego_state", "route", "bev_theta", "memory_valid")}
        moved = _move(memory, batch["memory_from_base"][:, t], config.frame_period_s, frame["memory_valid"])
        inputs = {
            **frame,
            "bev_memory": bev_memory,
            "track_tokens": moved.tokens_BMD,
            "track_boxes": moved.boxes_BM10,
            "track_valid": moved.valid_BM,
        }
        labels = {k: batch[k][:, t] for k in LABELS}
        targets = heat_targets(labels, config.bev_grid, centres_YX2)
        outputs = model.step(
            features_BTCYX[:, t], inputs, targets.boost_BYX * BOOST * boost if boost > 0 else None
        )
        query_centres = outputs["query_centres"]
        matches = match_queries(query_centres, labels)
        if with_losses:
            for name, value in frame_losses(
                outputs, inputs, labels, targets, matches, moved.ids_BM, centres_YX2
            ).items():
                totals[name] = totals.get(name, 0.0) + value / num_frames
        frames.append(outputs)
        all_matches.append(matches)
        all_ids.append(moved.ids_BM)
        memory = _remember(outputs, labels, matches, moved, config.num_memory)
        bev_memory = outputs["bev_memory_next"]
    return frames, totals, all_matches, all_ids


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
) -> TrackMemory:
    """The M most worthwhile of this frame's detections and the tracks that it did not see."""
    scores = outputs["query_scores"].detach().amax(-1)
    matched = matches_BQ >= 0
    query_ids = torch.where(matched, labels["ids"].gather(1, matches_BQ.clamp(min=0)), -1)
    query_worth = torch.where(matched | (scores > REMEMBER_SCORE), 1.0 + scores, torch.zeros_like(scores))
    # A track is kept unseen as long as its object is around; a remembered false detection is not.
    seen_again = ((before.ids_BM[:, :, None] == query_ids[:, None]) & (query_ids >= 0)[:, None]).any(2)
    alive = (label_of_ids(before.ids_BM, labels) >= 0) & ~seen_again & (before.valid_BM > 0.5)
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
