"""Rectangles on the ground: whether they overlap, how far apart they are, when they will meet.

A rectangle is five numbers: x, y [m] of its centre, yaw [rad], length (along its heading) and width [m].
Functions of two take arrays (..., 5) whose leading dimensions broadcast. Touching counts as overlapping.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import footprint_corners_N42

Array = NDArray[np.float64]

ROUNDING = 1e-9  # [m] the least clearance of two that do not overlap


def robot_rectangle(poses: Array, size: tuple[float, float, float]) -> Array:
    """Outline of the robot.

    Args:
        poses: (..., 3) x, y [m], yaw [rad] of `base_link`.
        size: Length, width [m], and how far the centre lies ahead of `base_link` [m].
    Returns:
        (..., 5)
    """
    length, width, ahead = size
    x, y, yaw = np.moveaxis(np.asarray(poses, np.float64), -1, 0)
    columns = (
        x + ahead * np.cos(yaw),
        y + ahead * np.sin(yaw),
        yaw,
        np.full_like(x, length),
        np.full_like(x, width),
    )
    return np.stack(columns, axis=-1)


def overlap(a: Array, b: Array) -> NDArray[np.bool_]:
    """Whether they overlap or touch (separating axis theorem): (...,) bool."""
    gaps, reaches = _gaps(a, b)
    return np.asarray((np.abs(gaps) <= reaches).all(axis=-1))


def clearance(a: Array, b: Array) -> Array:
    """Least distance [m] between their outlines, (...,); 0 if and only if they overlap."""
    # Two convex shapes that do not overlap are nearest to each other at a corner of one of them.
    apart = np.minimum(_distance_of_corners(a, b), _distance_of_corners(b, a))
    return np.where(overlap(a, b), 0.0, np.maximum(apart, ROUNDING))


def time_to_collision(a: Array, velocity_a: Array, b: Array, velocity_b: Array, *, horizon: float) -> Array:
    """When they first overlap if both go on straight, at constant velocity and without turning.

    Exact: along each of the four separating axes they overlap during an interval of time, and they collide
    while all four do.

    Args:
        a, b: Rectangles now.
        velocity_a, velocity_b: (..., 2) [m/s], same axes as the centres.
        horizon: Later collisions do not count [s].
    Returns:
        (...,) [s]: 0 where they overlap already, infinite where they do not within the horizon.
    """
    gaps, reaches = _gaps(a, b)
    speeds = _along_axes(np.asarray(velocity_b, np.float64) - velocity_a, a, b)
    moving = speeds != 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        one, other = (-reaches - gaps) / speeds, (reaches - gaps) / speeds
    always = np.where(np.abs(gaps) <= reaches, np.inf, -np.inf)  # or never, when nothing moves along the axis
    begins = np.where(moving, np.minimum(one, other), -always).max(axis=-1)
    ends = np.where(moving, np.maximum(one, other), always).min(axis=-1)
    meets = (begins <= ends) & (ends >= 0.0) & (begins <= horizon)
    return np.where(meets, np.maximum(begins, 0.0), np.inf)


def clip_polygon(points_N2: Array, low_2: Array, high_2: Array) -> Array:
    """The part of a polygon inside an axis-aligned box (Sutherland and Hodgman 1974).

    Args:
        points_N2: (N, 2) corners in order; not repeated at the end.
        low_2, high_2: Corners of the box.
    Returns:
        (M, 2), M = 0 if nothing is inside. Parts that only the polygon's concavity separates stay joined by
        edges along the box.
    """
    points = np.asarray(points_N2, np.float64)
    for axis in (0, 1):
        for sign, bound in ((1.0, low_2[axis]), (-1.0, -high_2[axis])):
            if len(points) == 0:
                return points
            depth = sign * points[:, axis] - bound  # inside where >= 0
            following, depth_after = np.roll(points, -1, axis=0), np.roll(depth, -1)
            crossing = (depth >= 0.0) != (depth_after >= 0.0)
            f = np.divide(depth, depth - depth_after, out=np.zeros_like(depth), where=crossing)
            cuts = points + f[:, None] * (following - points)
            both = np.stack([points, cuts], axis=1).reshape(-1, 2)
            points = both[np.stack([depth >= 0.0, crossing], axis=1).ravel()]
    return points


def contact_point(a: Array, b: Array) -> Array:
    """Where a is touched by b.

    Args:
        a, b: (5,) two rectangles.
    Returns:
        (2,) [m] ahead and to the left of a's centre: the middle of the corners of their common area; without
        one, the point of a that is nearest to b.
    """
    corners = footprint_corners_N42(b[None, :2], b[None, 3:], b[None, 2])[0] - a[:2]
    corners_42 = np.stack(_turned(corners, a[2]), axis=-1)
    half = a[3:] / 2.0
    common = clip_polygon(corners_42, -half, half)
    if len(common):
        return np.asarray(common.mean(axis=0), np.float64)
    f = np.linspace(0.0, 1.0, 21)[:, None, None]  # b's edges, finely sampled
    edges = ((1.0 - f) * corners_42 + f * np.roll(corners_42, -1, axis=0)).reshape(-1, 2)
    inside = np.clip(edges, -half, half)
    return np.asarray(inside[np.argmin(np.hypot(*(edges - inside).T))], np.float64)


def _turned(vectors: Array, yaw: Array) -> tuple[Array, Array]:
    """Components of vectors (..., 2) along and to the left of a heading (...,)."""
    c, s = np.cos(yaw), np.sin(yaw)
    x, y = vectors[..., 0], vectors[..., 1]
    return c * x + s * y, -s * x + c * y


def _along_axes(vectors: Array, a: Array, b: Array) -> Array:
    """Components (..., 4) of vectors (..., 2) along the two axes of each rectangle."""
    parts = (*_turned(vectors, a[..., 2]), *_turned(vectors, b[..., 2]))
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def _gaps(a: Array, b: Array) -> tuple[Array, Array]:
    """From centre to centre along the four axes, and up to where they overlap along it, both (..., 4) [m]."""
    turn = b[..., 2] - a[..., 2]
    c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    reaches = (
        a[..., 3] + b[..., 3] * c + b[..., 4] * s,
        a[..., 4] + b[..., 3] * s + b[..., 4] * c,
        b[..., 3] + a[..., 3] * c + a[..., 4] * s,
        b[..., 4] + a[..., 3] * s + a[..., 4] * c,
    )
    return _along_axes(b[..., :2] - a[..., :2], a, b), np.stack(reaches, axis=-1) / 2.0


def _distance_of_corners(a: Array, b: Array) -> Array:
    """From rectangle a to the nearest corner of b (...,) [m]; 0 if one is inside."""
    distances = []
    along, left = _turned(b[..., :2] - a[..., :2], a[..., 2])
    c, s = np.cos(b[..., 2] - a[..., 2]), np.sin(b[..., 2] - a[..., 2])
    for u, v in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)):
        x = along + u * b[..., 3] * c - v * b[..., 4] * s
        y = left + u * b[..., 3] * s + v * b[..., 4] * c
        outside = np.maximum(np.abs(x) - a[..., 3] / 2.0, 0.0), np.maximum(np.abs(y) - a[..., 4] / 2.0, 0.0)
        distances.append(np.hypot(*outside))
    return np.asarray(np.min(distances, axis=0))
