"""How much boxes that stand on the ground at any heading have in common.

A rectangle is five numbers as in `core.rectangles`: x, y, yaw, length, width. Legend: N, M boxes, K pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes, footprint_corners_N42

Array = NDArray[np.float64]

ROUNDING = 1e-9  # [m] a corner so little outside an outline still counts as on it
PARALLEL = 1e-12  # [m^2] cross product of two edges below which they have no single crossing


def intersection_areas(a_K5: Array, b_K5: Array) -> Array:
    """Common area of each pair of rectangles, (K,) [m^2].

    The corners of a convex intersection are corners of one that lie in the other, and crossings of edges;
    sorted by angle about their middle they are its outline. All pairs are worked on at once.

    Args:
        a_K5, b_K5: (K, 5) two rectangles each.
    """
    # About the middle of a, so that far from the origin no digits are lost.
    origin_K2 = a_K5[:, :2]
    a_K42 = footprint_corners_N42(np.zeros_like(origin_K2), a_K5[:, 3:], a_K5[:, 2])
    b_K42 = footprint_corners_N42(b_K5[:, :2] - origin_K2, b_K5[:, 3:], b_K5[:, 2])
    crossings_KP2, crosses_KP = _crossings(a_K42, b_K42)
    points_KP2 = np.concatenate([a_K42, b_K42, crossings_KP2], axis=1)
    valid_KP = np.concatenate([_inside(a_K42, b_K42), _inside(b_K42, a_K42), crosses_KP], axis=1)

    number_K1 = np.maximum(valid_KP.sum(axis=1), 1)[:, None]
    middle_K2 = np.where(valid_KP[..., None], points_KP2, 0.0).sum(axis=1) / number_K1
    points_KP2 = np.where(valid_KP[..., None], points_KP2 - middle_K2[:, None], 0.0)
    angles_KP = np.where(valid_KP, np.arctan2(points_KP2[..., 1], points_KP2[..., 0]), np.inf)
    order_KP = np.argsort(angles_KP, axis=1, kind="stable")
    points_KP2 = np.take_along_axis(points_KP2, order_KP[..., None], axis=1)
    # What is no corner comes last; there it repeats the first one, which closes the outline.
    is_corner_KP = np.take_along_axis(valid_KP, order_KP, axis=1)
    points_KP2 = np.where(is_corner_KP[..., None], points_KP2, points_KP2[:, :1])
    following_KP2 = np.roll(points_KP2, -1, axis=1)
    return np.asarray(0.5 * np.abs(_cross(points_KP2, following_KP2).sum(axis=1)))


def iou_bev(a: Boxes, b: Boxes) -> Array:
    """Intersection over union of footprints, (N, M)."""
    common_NM, _ = _common_areas(a, b)
    area_N, area_M = _areas(a), _areas(b)
    return np.asarray(common_NM / (area_N[:, None] + area_M[None] - common_NM))


def iou_3d(a: Boxes, b: Boxes) -> Array:
    """Intersection over union of volumes, (N, M); boxes stand upright."""
    common_NM, overlap_NM = _common_areas(a, b)
    volume_NM = common_NM * overlap_NM
    volume_N, volume_M = _areas(a) * a.sizes_N3[:, 2], _areas(b) * b.sizes_N3[:, 2]
    return np.asarray(volume_NM / (volume_N[:, None] + volume_M[None] - volume_NM))


def _common_areas(a: Boxes, b: Boxes) -> tuple[Array, Array]:
    """Common area of footprints [m^2] and of extents in height [m], both (N, M)."""
    rectangles_N5, rectangles_M5 = _rectangles(a), _rectangles(b)
    apart_NM = np.hypot(*np.moveaxis(rectangles_N5[:, None, :2] - rectangles_M5[None, :, :2], -1, 0))
    reach_N, reach_M = (0.5 * np.hypot(r[:, 3], r[:, 4]) for r in (rectangles_N5, rectangles_M5))
    n, m = np.nonzero(apart_NM < reach_N[:, None] + reach_M[None])
    areas_NM = np.zeros(apart_NM.shape)
    areas_NM[n, m] = intersection_areas(rectangles_N5[n], rectangles_M5[m])
    (low_N, high_N), (low_M, high_M) = _extents(a), _extents(b)
    overlap_NM = np.minimum(high_N[:, None], high_M[None]) - np.maximum(low_N[:, None], low_M[None])
    return areas_NM, np.maximum(overlap_NM, 0.0)


def _rectangles(boxes: Boxes) -> Array:
    columns = (boxes.centers_N3[:, :2], boxes.yaws_N[:, None], boxes.sizes_N3[:, :2])
    return np.concatenate(columns, axis=1).astype(np.float64)


def _areas(boxes: Boxes) -> Array:
    return np.asarray(boxes.sizes_N3[:, :2].astype(np.float64).prod(axis=1))


def _extents(boxes: Boxes) -> tuple[Array, Array]:
    center, half = boxes.centers_N3[:, 2].astype(np.float64), 0.5 * boxes.sizes_N3[:, 2].astype(np.float64)
    return center - half, center + half


def _cross(a: Array, b: Array) -> Array:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])


def _inside(points_K42: Array, outline_K42: Array) -> NDArray[np.bool_]:
    """(K, 4), which points lie in a convex outline whose corners run counter-clockwise."""
    edges_K42 = np.roll(outline_K42, -1, axis=1) - outline_K42
    lengths_K4 = np.maximum(np.hypot(edges_K42[..., 0], edges_K42[..., 1]), ROUNDING)
    offsets_K442 = points_K42[:, :, None] - outline_K42[:, None]
    depths_K44 = _cross(edges_K42[:, None], offsets_K442) / lengths_K4[:, None]
    return np.asarray((depths_K44 >= -ROUNDING).all(axis=2))


def _crossings(a_K42: Array, b_K42: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Where each edge of a meets each of b, (K, 16, 2), and whether it does, (K, 16)."""
    along_a = (np.roll(a_K42, -1, axis=1) - a_K42)[:, :, None]
    along_b = (np.roll(b_K42, -1, axis=1) - b_K42)[:, None]
    between = b_K42[:, None] - a_K42[:, :, None]
    denominator = _cross(along_a, along_b)
    is_parallel = np.abs(denominator) < PARALLEL
    safe = np.where(is_parallel, 1.0, denominator)
    on_a, on_b = _cross(between, along_b) / safe, _cross(between, along_a) / safe
    meets = ~is_parallel & (on_a >= 0.0) & (on_a <= 1.0) & (on_b >= 0.0) & (on_b <= 1.0)
    points = a_K42[:, :, None] + on_a[..., None] * along_a
    return points.reshape(-1, 16, 2), meets.reshape(-1, 16)
