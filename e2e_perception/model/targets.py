"""What the network should have said: targets from labels, and who is responsible for which label.

Legend: B batch, L label slots, Q detections, M remembered tracks, K classes, Y X BEV cells, S horizon steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.boxes import CLASSES

Labels = dict[str, Tensor]

MATCH_RADIUS = 2.5  # [m] a query may be this far from the label it answers for
HEAT_SIGMA = {"car": 1.2, "truck": 1.6, "pedestrian": 0.8, "cyclist": 0.9, "obstacle": 0.8}  # [m]


@dataclass(frozen=True)
class HeatTargets:
    """Heatmap targets of one frame.

    Attributes:
        heat_BKYX: Gaussian around each centre, exactly 1 in the centre's cell.
        ignore_BYX: True near objects that no sensor has seen, in cells that the labels do not reach, and
            everywhere where nobody is labelled: neither right nor wrong.
        boost_BYX: 1 in centre cells, for ranking queries early in training.
    """

    heat_BKYX: Tensor
    ignore_BYX: Tensor
    boost_BYX: Tensor


def heat_targets(labels: Labels, grid: BevGrid, centres_YX2: Tensor) -> HeatTargets:
    """Draw the heatmap targets (Zhou et al. 2019, with a radius in metres by class).

    Args:
        labels: `boxes` (B, L, 10), `class_ids` (B, L), `weights` (B, L), `present` (B, L) bool,
            `labels_valid` (B,) bool, `cells_known` (B, Y, X) bool.
        grid: BEV grid.
        centres_YX2: Its cell centres [m].
    """
    boxes, classes = labels["boxes"], labels["class_ids"]
    inside = (
        (boxes[..., 0] >= grid.x_min)
        & (boxes[..., 0] < grid.x_max)
        & (boxes[..., 1] >= grid.y_min)
        & (boxes[..., 1] < grid.y_max)
    )
    real = labels["present"] & inside
    sigma = boxes.new_tensor([HEAT_SIGMA[name] for name in CLASSES])[classes]
    x_BLX = (boxes[..., 0, None] - centres_YX2[0, :, 0]) / sigma[..., None]
    y_BLY = (boxes[..., 1, None] - centres_YX2[:, 0, 1]) / sigma[..., None]
    # A Gaussian is separable: draw rows and columns, multiply.
    bump = (-0.5 * y_BLY.square()).exp()[..., None] * (-0.5 * x_BLX.square()).exp()[..., None, :]
    counted = real & (labels["weights"] > 0)
    b, num_labels = classes.shape
    heat = boxes.new_zeros(b, len(CLASSES), *grid.shape)
    for k in range(len(CLASSES)):
        mine = (counted & (classes == k))[..., None, None]
        heat[:, k] = torch.where(mine, bump, bump.new_zeros(())).amax(1)
    ix = ((boxes[..., 0] - grid.x_min) / grid.resolution).long().clamp(0, grid.num_x - 1)
    iy = ((boxes[..., 1] - grid.y_min) / grid.resolution).long().clamp(0, grid.num_y - 1)
    batch = torch.arange(b, device=boxes.device)[:, None].expand(b, num_labels)
    heat[batch[counted], classes[counted], iy[counted], ix[counted]] = 1.0
    boost = boxes.new_zeros(b, *grid.shape)
    boost[batch[counted], iy[counted], ix[counted]] = 1.0
    unseen = (real & ~counted)[..., None, None]
    ignore = (torch.where(unseen, bump, bump.new_zeros(())).amax(1) > 0.3) & (heat.amax(1) < 0.3)
    ignore = ignore | ~labels["labels_valid"][:, None, None] | ~labels["cells_known"]
    return HeatTargets(heat, ignore, boost)


def match_queries(centres_BQ2: Tensor, labels: Labels) -> Tensor:
    """Which label each query answers for: mutual nearest neighbours within `MATCH_RADIUS`.

    Ours; no optimal assignment as in DETR (Carion et al. 2020) is needed, since a query begins at a peak.

    Args:
        centres_BQ2: Query cell centres [m].
        labels: As for `heat_targets`.
    Returns:
        (B, Q) int64, label slot or -1.
    """
    usable = labels["present"] & (labels["weights"] > 0)
    distance = torch.cdist(centres_BQ2, labels["boxes"][..., :2])
    distance = distance.masked_fill(~usable[:, None, :], 1e6)
    nearest_distance, nearest_label = distance.min(2)
    nearest_query = distance.argmin(1)
    queries = torch.arange(centres_BQ2.shape[1], device=centres_BQ2.device)
    mutual = nearest_query.gather(1, nearest_label) == queries
    return torch.where(mutual & (nearest_distance < MATCH_RADIUS), nearest_label, -1)


def label_of_ids(ids_BM: Tensor, labels: Labels) -> Tensor:
    """Label slot with the same identity, or -1; ids of -1 match nothing."""
    same = (
        (ids_BM[:, :, None] == labels["ids"][:, None]) & labels["present"][:, None] & (ids_BM >= 0)[..., None]
    )
    return torch.where(same.any(2), same.float().argmax(2), -1)


def occupancy_targets(labels: Labels, centres_YX2: Tensor) -> tuple[Tensor, Tensor]:
    """Occupied cells and their flow (Mahjourian et al. 2022), forwards instead of backwards.

    Returns:
        Occupancy (B, Y, X) in {0, 1} and velocity (B, 2, Y, X) [m/s] of the occupying object.
    """
    boxes = labels["boxes"]
    offset_BLYX2 = centres_YX2 - boxes[:, :, None, None, :2]
    sine, cosine = boxes[..., 6][..., None, None], boxes[..., 7][..., None, None]
    along = (cosine * offset_BLYX2[..., 0] + sine * offset_BLYX2[..., 1]).abs()
    across = (cosine * offset_BLYX2[..., 1] - sine * offset_BLYX2[..., 0]).abs()
    # At least one cell for every object, however small.
    least = 0.55 * float(centres_YX2[0, 1, 0] - centres_YX2[0, 0, 0])
    half_length = (0.5 * boxes[..., 3].exp()).clamp(min=least)[..., None, None]
    half_width = (0.5 * boxes[..., 4].exp()).clamp(min=least)[..., None, None]
    usable = (labels["present"] & (labels["weights"] > 0))[..., None, None]
    covers = (along <= half_length) & (across <= half_width) & usable
    owner_BYX = covers.float().argmax(1)
    velocity = boxes[..., 8:10].gather(1, owner_BYX.flatten(1)[..., None].expand(-1, -1, 2))
    b, y, x = owner_BYX.shape
    return covers.any(1).float(), velocity.transpose(1, 2).reshape(b, 2, y, x)
