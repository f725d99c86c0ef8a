"""Losses of one frame, each with a name and a unit; how they are weighed is the training's business.

Legend: B batch, L label slots, Q detections, M remembered tracks, O = Q + M objects, F futures,
S horizon steps, P plan proposals, K classes, Y X BEV cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_perception.core.network_config import COST_TERMS
from e2e_perception.model.planning import base_from_route, blame, collision_probability, route_coordinates
from e2e_perception.model.targets import HeatTargets, Labels, label_of_ids, occupancy_targets


class Loss(NamedTuple):
    """What a loss is counted in, and which objective it serves."""

    objective: str
    unit: str


OBJECTIVES = ("recognition", "tracking", "prediction", "planning")
LOSSES: dict[str, Loss] = {
    "heat": Loss("recognition", "focal nats per object"),
    "box": Loss("recognition", "m, rad and log m, mean absolute error"),
    "box_nll": Loss("recognition", "nats per coordinate"),
    "velocity": Loss("recognition", "m/s over 10"),
    "maps": Loss("recognition", "nats per cell"),
    "flow": Loss("recognition", "m/s over 10"),
    "affinity": Loss("tracking", "nats per association"),
    "consistency": Loss("tracking", "m, remembered against perceived position"),
    "motion": Loss("prediction", "m over 5, winner's mean distance"),
    "motion_nll": Loss("prediction", "nats per coordinate"),
    "mode": Loss("prediction", "nats"),
    "plan": Loss("planning", "nats"),
    "plan_risk": Loss("planning", "nats per proposal"),
    "plan_offset": Loss("planning", "m, d counted three times"),
    "plan_safety": Loss("planning", "expected share of time in collision, in [0, 1]"),
    "plan_comfort": Loss("planning", "expected discomfort, see `Planner`"),
}
IMITATION_TEMPERATURE = 0.6  # [m] of mean distance; soft targets where there is a driver to imitate
PRICE_TEMPERATURE = 0.2  # of the expert's prices; soft targets where they are known
COLLISION_PRICE = 200.0  # what a whole horizon in collision costs the expert (`simulation.scoring.Weights`)
LATERAL_WEIGHT = 3.0  # errors in d count three times those in s


def focal_loss(logits_BKYX: Tensor, targets: HeatTargets) -> Tensor:
    """Penalty-reduced focal loss (Law & Deng 2018, eq. 1), per true object."""
    p = logits_BKYX.sigmoid().clamp(1e-4, 1 - 1e-4)
    heat = targets.heat_BKYX
    positive = heat >= 1.0
    loss = torch.where(positive, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log())
    loss = loss.masked_fill(targets.ignore_BYX[:, None], 0.0)
    return loss.sum() / positive.sum().clamp(min=1)


def _pick(rows_BLC: Tensor, index_BN: Tensor) -> Tensor:
    """Rows (B, N, ...) of (B, L, ...) at indices; -1 picks row 0, to be masked by the caller."""
    index = index_BN.clamp(min=0)
    for _ in range(rows_BLC.dim() - 2):
        index = index[..., None]
    return rows_BLC.gather(1, index.expand(-1, -1, *rows_BLC.shape[2:]))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 (with a gradient path) where nothing has weight."""
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def _nll(error: Tensor, log_var: Tensor) -> Tensor:
    """Gaussian negative log-likelihood without its constant; the error carries no gradient here.

    The mean is trained by its absolute error. Training both through one likelihood lets the network excuse
    hard examples with a large variance (Seitzer et al. 2022).
    """
    return 0.5 * (error.detach().square() * (-log_var).exp() + log_var)


def frame_losses(
    outputs: dict[str, Tensor],
    inputs: dict[str, Tensor],
    labels: Labels,
    targets: HeatTargets,
    matches_BQ: Tensor,
    memory_ids_BM: Tensor,
    centres_YX2: Tensor,
) -> dict[str, Tensor]:
    """All losses of frames, which are a batch here: clips by frames.

    Args:
        outputs: From `JointNetwork.step`.
        inputs: What went in, with `track_boxes`, `route`.
        labels: `boxes` (B, L, 10), `class_ids`, `ids`, `weights`, `present` (B, L), `futures` (B, L, S, 2),
            `futures_valid` (B, L, S), `ego_future` (B, S, 2), `ego_future_valid` (B, S), `maps` (B, 2, Y, X),
            `maps_valid` (B,), `labels_valid` (B,), `cells_known` (B, Y, X), `plan_costs` (B, P, 5) the
            expert's prices, NaN where unknown.
        targets: From `heat_targets`.
        matches_BQ: From `match_queries`.
        memory_ids_BM: Identity of each remembered track, -1 where it is none.
        centres_YX2: BEV cell centres.
    Returns:
        Scalars by name; the names are those of `LOSSES`.
    """
    losses = {"heat": focal_loss(outputs["heat_logits"], targets)}
    matched = matches_BQ >= 0
    weight = _pick(labels["weights"], matches_BQ) * matched
    truth = _pick(labels["boxes"], matches_BQ)
    losses.update(_box_losses(outputs, truth, weight))
    losses.update(_association_losses(outputs, inputs, labels, matches_BQ, memory_ids_BM))
    losses.update(_motion_losses(outputs, labels, matches_BQ, memory_ids_BM))
    losses.update(_map_losses(outputs["map_logits"], labels, centres_YX2))
    losses.update(_plan_losses(outputs, inputs, labels))
    return losses


def _box_losses(outputs: dict[str, Tensor], truth: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Smooth L1 (Girshick 2015) of place and shape; error and likelihood of what moves."""
    error = outputs["query_boxes"] - truth
    log_var = outputs["query_log_var"]
    moving = torch.cat([error[..., 0:2], error[..., 8:10]], -1)
    # The heading before it gets its length, as CenterPoint regresses it (Yin et al. 2021): a unit vector that
    # points the wrong way is moved by no gradient, and would point there for ever.
    shape = torch.cat([error[..., :6], outputs["query_headings"] - truth[..., 6:8]], -1)
    robust = F.smooth_l1_loss(shape, torch.zeros_like(shape), beta=0.2, reduction="none")
    return {
        "box": _mean(robust.mean(-1), weight),
        "velocity": _mean(softened(error[..., 8:10].abs(), 20.0).mean(-1) / 10.0, weight),
        "box_nll": _mean(_nll(moving, log_var).mean(-1), weight),
    }  # fmt: skip


def softened(error: Tensor, beyond: float) -> Tensor:
    """An error of at least 0 as it is up to `beyond`, from there growing as its logarithm; any shape; ours.

    What is far off pulls less, but it pulls: cut off, the worst would get no gradient at all.
    """
    return torch.minimum(error, beyond * (1.0 + (error.clamp(min=beyond) / beyond).log()))


def _association_losses(
    outputs: dict[str, Tensor],
    inputs: dict[str, Tensor],
    labels: Labels,
    matches_BQ: Tensor,
    memory_ids_BM: Tensor,
) -> dict[str, Tensor]:
    """Whose each true detection is and which true tracks are gone (DeepAffinity, Sun et al. 2019).

    `affinity` (B, M + 1, Q + 1) in log-probabilities, its last row "new", its last column "gone"; the rest as
    in `frame_losses`.
    """
    affinity = outputs["affinity"]
    num_memory = memory_ids_BM.shape[1]
    query_ids = torch.where(matches_BQ >= 0, _pick(labels["ids"], matches_BQ), -1)
    same_BMQ = (memory_ids_BM[:, :, None] == query_ids[:, None]) & (query_ids >= 0)[:, None]
    # Each true detection: its track if remembered, else "new". Each true track: its detection or "gone".
    row_BQ = torch.where(same_BMQ.any(1), same_BMQ.float().argmax(1), num_memory)
    by_query = -affinity[:, :, :-1].gather(1, row_BQ[:, None])[:, 0]
    gone = (memory_ids_BM >= 0) & ~same_BMQ.any(2)
    by_track = -affinity[:, :-1, -1]
    weight_query, weight_gone = (query_ids >= 0).float(), gone.float()
    total = (by_query * weight_query).sum() + (by_track * weight_gone).sum()
    count = (weight_query.sum() + weight_gone.sum()).clamp(min=1.0)
    # Temporal consistency (ours): where the track was expected and where the object is perceived.
    expected = _pick(inputs["track_boxes"], row_BQ.clamp(max=num_memory - 1))[..., :2]
    drift = (outputs["query_boxes"][..., :2] - expected).abs().clamp(max=3.0).mean(-1)
    return {"affinity": total / count, "consistency": _mean(drift, same_BMQ.any(1).float())}


def _motion_losses(
    outputs: dict[str, Tensor], labels: Labels, matches_BQ: Tensor, memory_ids_BM: Tensor
) -> dict[str, Tensor]:
    """Winner takes all over futures (Lee et al. 2017); detections and remembered tracks alike."""
    label_BO = torch.cat([matches_BQ, label_of_ids(memory_ids_BM, labels)], 1)
    truth_BOS2 = _pick(labels["futures"], label_BO)
    valid_BOS = _pick(labels["futures_valid"].float(), label_BO) * (label_BO >= 0)[..., None]
    error_BOFS2 = outputs["object_futures"] - truth_BOS2[:, :, None]
    distance = (error_BOFS2.square().sum(-1) + 1e-4).sqrt()
    mean_BOF = (distance * valid_BOS[:, :, None]).sum(-1) / valid_BOS.sum(-1)[..., None].clamp(min=1.0)
    winner = mean_BOF.detach().argmin(-1)
    known = (valid_BOS.sum(-1) > 0).float()
    at = winner[:, :, None, None, None].expand(-1, -1, 1, *error_BOFS2.shape[3:])
    won_error = error_BOFS2.gather(2, at)[:, :, 0]
    won_log_var = outputs["object_futures_log_var"].gather(2, at)[:, :, 0]
    nll = _nll(won_error, won_log_var).mean(-1)
    return {
        "motion": _mean(softened(mean_BOF.gather(2, winner[..., None])[..., 0], 25.0) / 5.0, known),
        "motion_nll": _mean(nll, valid_BOS),
        "mode": _mean(
            F.cross_entropy(outputs["mode_logits"].flatten(0, 1), winner.flatten(), reduction="none"),
            known.flatten(),
        ),
    }


def _map_losses(logits_B5YX: Tensor, labels: Labels, centres_YX2: Tensor) -> dict[str, Tensor]:
    """Drivable area, its boundary, and occupancy with its flow (Mahjourian et al. 2022), of this instant."""
    occupied, flow = occupancy_targets(labels, centres_YX2)
    reached = labels["cells_known"].float()
    known = labels["maps_valid"].float()[:, None, None] * reached
    labelled = labels["labels_valid"].float()[:, None, None] * reached
    drivable = F.binary_cross_entropy_with_logits(logits_B5YX[:, 0], labels["maps"][:, 0], reduction="none")
    boundary = F.binary_cross_entropy_with_logits(
        logits_B5YX[:, 1],
        labels["maps"][:, 1],
        pos_weight=logits_B5YX.new_tensor(4.0),
        reduction="none",
    )
    occupancy = F.binary_cross_entropy_with_logits(
        logits_B5YX[:, 2], occupied, pos_weight=logits_B5YX.new_tensor(4.0), reduction="none"
    )
    flow_error = (logits_B5YX[:, 3:] - flow / 10.0).abs().mean(1)
    return {
        "maps": _mean(drivable + boundary, known) + _mean(occupancy, labelled),
        "flow": _mean(flow_error, occupied * labelled),
    }


def expert_route_coordinates(labels: Labels, route_BR4: Tensor) -> Tensor:
    """The driven path in route coordinates, (B, S, 2) [m]."""
    return route_coordinates(labels["ego_future"], route_BR4)


def _plan_losses(outputs: dict[str, Tensor], inputs: dict[str, Tensor], labels: Labels) -> dict[str, Tensor]:
    """Scores distilled from prices, refinement towards the driver, expected harm (Hydra-MDP, Li et al. 2024).

    Where the expert's prices are known, the good proposals are the cheap ones, whoever drove there: also in
    states that only the network itself gets into (DAgger, Ross et al. 2011). Elsewhere they are those near
    the driven path.
    """
    route, prices_BPK = inputs["route"], labels["plan_costs"]
    sd_BPS2, costs_BPK = outputs["plan_sd"], outputs["plan_costs"]
    negative_log_p = costs_BPK[..., COST_TERMS.index("imitation")]
    axes = sd_BPS2.new_tensor((1.0, LATERAL_WEIGHT))
    driven_BS2 = expert_route_coordinates(labels, route)
    valid_BS = labels["ego_future_valid"].float()
    example_B = (valid_BS.sum(-1) > 0).float()
    error_BPS2 = (sd_BPS2 - driven_BS2[:, None]) * axes
    per_step = F.smooth_l1_loss(error_BPS2, torch.zeros_like(error_BPS2), beta=0.5, reduction="none").sum(-1)
    distance_BP = (per_step * valid_BS[:, None]).sum(-1) / valid_BS.sum(-1)[:, None].clamp(min=1.0)
    near_BP = (-distance_BP.detach() / IMITATION_TEMPERATURE).softmax(-1)

    priced_B = prices_BPK.isfinite().flatten(1).all(-1)
    prices_BPK = torch.where(priced_B[:, None, None], prices_BPK, prices_BPK.new_zeros(()))
    cheap_BP = (-prices_BPK.sum(-1) / PRICE_TEMPERATURE).softmax(-1)
    target_BP = torch.where(priced_B[:, None], cheap_BP, near_BP)
    meets_BP = (prices_BPK[..., 0] / COLLISION_PRICE).clamp(0.0, 1.0)
    if not priced_B.all():
        meets_BP = torch.where(priced_B[:, None], meets_BP, _true_overlap(sd_BPS2, route, labels))
    judged_B = (priced_B | labels["labels_valid"]).float()
    chance_BP = (-negative_log_p).exp()
    risk_logit = outputs["plan_logits"][..., 1]
    discomfort_BP = costs_BPK[..., COST_TERMS.index("comfort")].clamp(max=20.0)
    return {
        "plan": _mean((target_BP * negative_log_p).sum(-1), torch.maximum(example_B, priced_B.float())),
        "plan_risk": _mean(
            F.binary_cross_entropy_with_logits(risk_logit, meets_BP, reduction="none").mean(-1), judged_B
        ),
        "plan_offset": _mean((near_BP * distance_BP).sum(-1), example_B),
        "plan_safety": _mean((chance_BP * meets_BP).sum(-1), judged_B),
        "plan_comfort": (chance_BP * discomfort_BP).sum(-1).mean(),
    }


def _true_overlap(sd_BPS2: Tensor, route_BR4: Tensor, labels: Labels) -> Tensor:
    """What each proposal would truly meet: the planner's overlap on labels, mean over time; (B, P)."""
    points, tangents = base_from_route(sd_BPS2.detach(), route_BR4)
    boxes_BL10, valid_BLS = labels["boxes"], labels["futures_valid"]
    # Half-way places need a place before: where it is not known, the last that was.
    known = [boxes_BL10[..., :2]]
    for place, valid in zip(labels["futures"].unbind(2), valid_BLS.unbind(2), strict=True):
        known.append(torch.where(valid[..., None], place, known[-1]))
    truth_BL1S2 = torch.stack(known[1:], 2)[:, :, None]
    variance = torch.full_like(truth_BL1S2, 0.09)
    meets = collision_probability(points, tangents, boxes_BL10, truth_BL1S2, variance)
    counts_BL = labels["present"].float() * blame(boxes_BL10)
    counts = (valid_BLS.float() * counts_BL[..., None])[:, None, :, None]
    return (meets * counts).amax((2, 3)).mean(-1)
