"""Harder inputs, and a second opinion: adversarial perturbation, and agreement between single sensors.

Nothing here changes the network or its arguments: inputs give perturbed inputs, views give losses.

Legend: B batch, T frames, F = B * T frames, N cameras, C channels, K classes, Y X BEV cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_perception.core.network_config import LIDAR_CHANNELS, RADAR_CHANNELS
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.config import LossWeights
from e2e_perception.training.rollout import ENCODED_INPUTS, rollout

Batch = dict[str, Tensor]

GREY_LEVELS = 255
# Losses with a target whatever was detected. The others are means over matched detections: hiding an object
# would take its losses along and count as good.
HARM = ("heat", "maps", "flow", "plan", "plan_risk", "plan_offset", "plan_safety", "plan_comfort")
CONFIDENT = 0.1  # in some class, in either view: a cell that is compared
VIEW_HEIGHT = 1.0  # [m] at which a cell counts as seen by a camera

# Channels that lie between 0 and 1 (counts may exceed it); the others may have any value.
_RASTERS = {
    "lidar_raster": (LIDAR_CHANNELS, LIDAR_CHANNELS),
    "radar_raster": (RADAR_CHANNELS, ("log_count",)),
}


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms in training use the batch's statistics, but do not remember them.

    Inputs that a robot never sees must not move the averages that it runs with (Xie et al. 2020 keep two sets
    of them for that).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# ---------------------------------------------------------------- adversarial perturbation


def adversarial(
    model: JointNetwork, batch: Batch, *, budget: float, weights: Mapping[str, float] | None = None
) -> Batch:
    """A batch whose sensor inputs have been changed a little, in the direction that harms the network most.

    Args:
        model: The network; neither its weights nor its statistics or gradients are changed.
        batch: From `ClipDataset`, collated: (B, T, ...).
        budget: See `fgsm`.
        weights: Of the losses by name, of which those in `HARM` count; None: the default `LossWeights`.
    Returns:
        A new batch; everything but pictures and rasters is the same objects.
    """
    weights = LossWeights().model_dump() if weights is None else weights

    def harm(perturbed: Batch) -> Tensor:
        losses = rollout(model, perturbed, boost=0.0).losses
        return torch.stack([weights[name] * losses[name] for name in HARM]).sum()

    # As the robot runs it: with the batch's own statistics one clip could be attacked through another.
    was_training = model.training
    model.eval()
    try:
        return fgsm(batch, harm, budget=budget)
    finally:
        model.train(was_training)


def fgsm(batch: Batch, loss_of: Callable[[Batch], Tensor], *, budget: float) -> Batch:
    """One step of the fast gradient sign method (Goodfellow et al. 2015): budget * sign(gradient) is added.

    It deviates so that the result is something that a sensor could have said: cells without a return stay
    empty, channels that are shares stay within 0 and 1, and pictures move by whole grey levels, rounded
    down, because the network takes bytes. Sensors that are not valid have no gradient and stay as they are.

    Args:
        batch: `images` (B, T, N, H, W, 3) uint8, `lidar_raster` and `radar_raster` (B, T, C, Y, X); whatever
            else `loss_of` needs.
        loss_of: A scalar from a batch whose `images` are float32 of the same values.
        budget: Greatest change of a value: of rasters in their own units, of pictures as a share of 255.
    Returns:
        A new batch.
    """
    names = ("images", *_RASTERS)
    leaves = [batch[name].detach().float().requires_grad_() for name in names]
    loss = loss_of({**batch, **dict(zip(names, leaves, strict=True))})
    # A loss that is not finite has no direction; the step that follows will find it out.
    signs = [gradient.sign().nan_to_num() for gradient in torch.autograd.grad(loss, leaves)]
    images_sign, *raster_signs = signs
    levels = int(budget * GREY_LEVELS + 1e-6)
    images = batch["images"].int() + levels * images_sign.int()
    out = {**batch, "images": images.clamp(0, GREY_LEVELS).to(batch["images"].dtype)}
    for (name, (channels, shares)), sign in zip(_RASTERS.items(), raster_signs, strict=True):
        raster_BTCYX = batch[name]
        returned = raster_BTCYX[:, :, channels.index("log_count"), None] > 0.0
        moved = raster_BTCYX + budget * sign * returned
        inside = torch.minimum(torch.maximum(moved, raster_BTCYX.clamp(max=0.0)), raster_BTCYX.clamp(min=1.0))
        is_share_C = torch.tensor([channel in shares for channel in channels], device=moved.device)
        out[name] = torch.where(is_share_C[:, None, None], inside, moved)
    return out


# ---------------------------------------------------------------- cross-modal consistency


def cross_modal_consistency(model: JointNetwork, batch: Batch) -> Tensor:
    """How much the network's views of the same frames by cameras alone and by the lidar alone disagree.

    Each frame is looked at without memory, and without radar. Compared are cells that a camera has in its
    picture, in frames in which the lidar is valid as well: elsewhere one view would learn to imagine.

    Args:
        model: The network; its statistics are not changed.
        batch: From `ClipDataset`, collated: (B, T, ...).
    Returns:
        Scalar [nats per cell, plus one minus a cosine]: the sum of `consistency_losses`; 0 if there is
        nothing to compare. Training reports it as `cross_modal` beside the losses of `model.losses.LOSSES`,
        and counts it as recognition, `TrainingConfig.cross_modal_weight` times.
    """
    sensors = {name: batch[name].flatten(0, 1) for name in ENCODED_INPUTS}
    num_frames = len(sensors["images"])
    nothing = {
        name: torch.zeros_like(sensors[name]) for name in ("camera_valid", "lidar_valid", "radar_valid")
    }
    by_cameras = {**sensors, "lidar_valid": nothing["lidar_valid"], "radar_valid": nothing["radar_valid"]}
    by_lidar = {**sensors, "camera_valid": nothing["camera_valid"], "radar_valid": nothing["radar_valid"]}
    # In one batch, so that both are normalised by the same statistics.
    both = {name: torch.cat([by_cameras[name], by_lidar[name]]) for name in sensors}
    with statistics_kept(model):
        features = model.encode(both)[:, :-3]  # without the Doppler sums
        state = model.initial_state(2 * num_frames, features.device)
        seen, _ = model.memory(features, state["bev_memory"], state["bev_theta"], state["memory_valid"])
        heat_logits, *_ = model.detection(seen, None)
    comparable_FYX = _seen_by_cameras(model, sensors) & (sensors["lidar_valid"] > 0.5).any(1)[:, None, None]
    a, b = (
        (heat_logits[part].float(), features[part].float())
        for part in (slice(None, num_frames), slice(num_frames, None))
    )
    return torch.stack(list(consistency_losses(*a, *b, comparable_FYX).values())).sum()


def consistency_losses(
    heat_logits_a_FKYX: Tensor,
    features_a_FCYX: Tensor,
    heat_logits_b_FKYX: Tensor,
    features_b_FCYX: Tensor,
    comparable_FYX: Tensor,
) -> dict[str, Tensor]:
    """Disagreement of two views where either is confident that something is there.

    Heatmaps by the Kullback-Leibler divergence of each cell and class, features by one minus their cosine. As
    in UniDistill (Zhou et al. 2023), responses and features are made to agree in the bird's-eye view, and at
    objects alone, lest the empty street decide. It deviates in that neither view is the teacher: the lidar
    knows better where things are, the cameras what they are. Each learns from the other as it is, without a
    gradient to the one that is learned from (deep mutual learning, Zhang et al. 2018), at places where the
    views themselves, not labels, say that there is something. Labels still say which of the two is right.

    Args:
        heat_logits_a_FKYX, heat_logits_b_FKYX: Before the sigmoid.
        features_a_FCYX, features_b_FCYX: BEV features.
        comparable_FYX: Bool, cells that both could see.
    Returns:
        `heat` [nats per cell] and `features` [0 to 2], means over the compared cells; both 0 for equal views.
    """
    logits = torch.stack([heat_logits_a_FKYX, heat_logits_b_FKYX])
    confident_FYX = (logits.detach().sigmoid().amax((0, 2)) > CONFIDENT) & comparable_FYX

    def mean(values_FYX: Tensor) -> Tensor:
        kept = torch.where(confident_FYX, values_FYX, values_FYX.new_zeros(()))
        return kept.sum() / confident_FYX.sum().clamp(min=1)

    heat = features = logits.new_zeros(())
    pairs = (
        (heat_logits_a_FKYX, heat_logits_b_FKYX, features_a_FCYX, features_b_FCYX),
        (heat_logits_b_FKYX, heat_logits_a_FKYX, features_b_FCYX, features_a_FCYX),
    )
    for own_logits, others_logits, own_features, others_features in pairs:
        heat = heat + 0.5 * mean(_divergence(others_logits.detach(), own_logits).sum(1))
        cosine = F.cosine_similarity(own_features, others_features.detach(), dim=1)
        features = features + 0.5 * mean(1.0 - cosine)
    return {"heat": heat, "features": features}


def _divergence(true_logits: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Bernoulli variables given by logits, KL(true || other) [nats]."""
    chance = true_logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, chance, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(true_logits, chance, reduction="none")


def _seen_by_cameras(model: JointNetwork, sensors: Batch) -> Tensor:
    """(F, Y, X) bool: cells whose middle, a metre above the ground, lies in the picture of a valid camera."""
    config = model.config
    centres_G2 = model.detection.centres_G2
    points_G4 = torch.cat(
        [
            centres_G2,
            centres_G2.new_full((len(centres_G2), 1), VIEW_HEIGHT),
            torch.ones_like(centres_G2[:, :1]),
        ],
        -1,
    )
    projection_FN43 = sensors["image_from_base"].transpose(2, 3)
    with torch.autocast(points_G4.device.type, enabled=False):  # pixels need their digits
        u, v, depth = (points_G4 @ projection_FN43).unbind(-1)
    u, v = u / depth.clamp(min=0.5), v / depth.clamp(min=0.5)
    inside_FNG = (depth > 0.5) & (u >= -0.5) & (u < config.image_width - 0.5)
    inside_FNG &= (v >= -0.5) & (v < config.image_height - 0.5)
    seen_FG = (inside_FNG & (sensors["camera_valid"] > 0.5)[..., None]).any(1)
    return seen_FG.unflatten(1, config.bev_grid.shape)
