"""Geometry of solid boxes that several sensor models share: corners, ray entry, drawing order.

Legend: N boxes, P pairs. Corner c of a box has the signs of the bits of c: 4 is +x, 2 is +y, 1 is +z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.frames import SE3
from e2e_perception.simulation.scene import Solids

MAX_SEGMENT = 20.0  # [m] longer boxes are cut, so that haze, culling and ray windows stay local
CORNER_SIGNS_83 = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_FOOTPRINT = [0, 2, 6, 4]  # one corner of each vertical edge
_TOUCHING = 1e-3  # [m] boxes that overlap by less count as separate


@dataclass(frozen=True)
class Segments:
    """N upright boxes, odom axes; long solids come in several pieces.

    Attributes:
        centers_N3: (N, 3) float64 [m].
        halves_N3: (N, 3) float64 [m], half of length, width, height.
        cosines_N, sines_N: (N,) float64 of the yaw.
        solids_N: (N,) int64, row of the solid that each piece belongs to.
        ends_N2: (N, 2) bool, whether the piece carries the solid's own front (+x) and rear (-x) face.
    """

    centers_N3: NDArray[np.float64]
    halves_N3: NDArray[np.float64]
    cosines_N: NDArray[np.float64]
    sines_N: NDArray[np.float64]
    solids_N: NDArray[np.int64]
    ends_N2: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.centers_N3)

    def select(self, which: NDArray[Any]) -> Segments:
        """The pieces at a mask or index array."""
        return Segments(
            centers_N3=self.centers_N3[which],
            halves_N3=self.halves_N3[which],
            cosines_N=self.cosines_N[which],
            sines_N=self.sines_N[which],
            solids_N=self.solids_N[which],
            ends_N2=self.ends_N2[which],
        )

    def corners_N83(self) -> NDArray[np.float64]:
        """(N, 8, 3) [m], odom axes, in the order of `CORNER_SIGNS_83`."""
        local = CORNER_SIGNS_83 * self.halves_N3[:, None]
        c, s = self.cosines_N[:, None], self.sines_N[:, None]
        x = c * local[..., 0] - s * local[..., 1]
        y = s * local[..., 0] + c * local[..., 1]
        return np.stack([x, y, local[..., 2]], axis=-1) + self.centers_N3[:, None]

    def without_those_around(self, point_3: NDArray[np.float64]) -> Segments:
        """Leave out the solids that contain a point: a sensor inside would meet the cuts between pieces."""
        around = (np.abs(self.to_box_frames_N3(point_3)) <= self.halves_N3).all(axis=1)
        return self.select(~np.isin(self.solids_N, self.solids_N[around])) if around.any() else self

    def to_box_frames_N3(self, point_3: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) [m]: one odom point as each box's own frame sees it."""
        x, y, z = (point_3 - self.centers_N3).T
        c, s = self.cosines_N, self.sines_N
        return np.stack([c * x + s * y, c * y - s * x, z], axis=-1)


def segments(solids: Solids, max_length: float = MAX_SEGMENT) -> Segments:
    """Cut solids along their length into equal pieces of at most `max_length` [m]."""
    num_pieces = np.maximum(np.ceil(solids.sizes_N3[:, 0] / max_length - 1e-9), 1).astype(np.int64)
    owners = np.repeat(np.arange(len(solids)), num_pieces)
    total = num_pieces[owners]
    piece = np.arange(len(owners)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    cosines, sines = np.cos(solids.yaws_N)[owners], np.sin(solids.yaws_N)[owners]
    sizes = solids.sizes_N3[owners]
    shift = ((piece + 0.5) / total - 0.5) * sizes[:, 0]
    halves = 0.5 * sizes
    halves[:, 0] /= total
    centers = solids.centers_N3[owners].astype(np.float64)
    centers[:, 0] += cosines * shift
    centers[:, 1] += sines * shift
    return Segments(
        centers_N3=centers,
        halves_N3=halves,
        cosines_N=cosines,
        sines_N=sines,
        solids_N=owners,
        ends_N2=np.stack([piece == total - 1, piece == 0], axis=-1),
    )


def box_entries(
    origins_3P: NDArray[Any], directions_3P: NDArray[Any], halves_3P: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where rays enter boxes: the slab test (Kay and Kajiya, 1986), in each box's own frame.

    Args:
        origins_3P: (3, P) [m], start of each ray.
        directions_3P: (3, P), of any length; distances are in multiples of it.
        halves_3P: (3, P) [m], half sizes.
    Returns:
        (P,) distance to the point of entry, infinite where the box is missed, lies behind or contains the
        origin; (P,) component of the direction along the normal of the face that is entered, >= 0.
    """
    # An exactly parallel ray would give 0 * inf = nan on the face's plane.
    directions = np.where(np.abs(directions_3P) < 1e-9, directions_3P.dtype.type(1e-9), directions_3P)
    inverse = 1.0 / directions
    middle = -origins_3P * inverse
    reach = halves_3P * np.abs(inverse)
    near = middle - reach
    entry = np.maximum(np.maximum(near[0], near[1]), near[2])
    leave = np.min(middle + reach, axis=0)
    across_y = np.where(entry == near[1], directions[1], directions[2])
    slope = np.where(entry == near[0], directions[0], across_y)
    return np.where((entry <= leave) & (entry > 0.0), entry, np.inf), np.abs(slope)


def occluded(
    boxes: Segments, viewpoint: SE3, points_P3: NDArray[np.float64], owners_P: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which points cannot be seen from a viewpoint because a box of another solid is in between.

    Args:
        boxes: What may be in the way.
        viewpoint: Sensor pose in odom.
        points_P3: (P, 3) [m], odom frame.
        owners_P: (P,) solid that each point lies on.
    Returns:
        (P,) bool.
    """
    rays = (points_P3 - viewpoint.translation)[:, None]  # (P, 1, 3)
    c, s = boxes.cosines_N, boxes.sines_N
    directions = np.stack(
        [c * rays[..., 0] + s * rays[..., 1], c * rays[..., 1] - s * rays[..., 0], rays[..., 2] + 0.0 * c]
    )
    origins = boxes.to_box_frames_N3(viewpoint.translation).T[:, None]  # (3, 1, N)
    distances, _ = box_entries(origins, directions, boxes.halves_N3.T[:, None])
    blocked = (distances < 1.0) & (boxes.solids_N != owners_P[:, None])
    return np.asarray(blocked.any(axis=1))


def occlusion_order(
    boxes: Segments, viewpoint_3: NDArray[np.float64], overlap_NN: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Order in which boxes must be painted, back to front.

    A face plane that separates two boxes tells which of them cannot hide the other: the one on the far side
    from the viewpoint. Sorting by distance fails for long boxes beside short ones, this does not. Boxes that
    run into each other, and the rare cycle, fall back to the distance of the nearest point.

    Args:
        boxes: N boxes.
        viewpoint_3: (3,) [m], odom frame.
        overlap_NN: (N, N) bool, symmetric: whether two boxes overlap in the image.
    Returns:
        (N,) indices.
    """
    view_N3 = boxes.to_box_frames_N3(viewpoint_3)
    distances = np.linalg.norm(np.maximum(np.abs(view_N3) - boxes.halves_N3, 0.0), axis=1)
    may_hide = _may_hide(boxes, view_N3, overlap_NN)
    waiting_for = may_hide.sum(axis=1)
    remaining = np.ones(len(boxes), np.bool_)
    order: list[NDArray[np.int64]] = []
    while remaining.any():
        ready = np.flatnonzero(remaining & (waiting_for == 0))
        if len(ready) == 0:
            ready = np.array([np.argmax(np.where(remaining, distances, -1.0))])
        ready = ready[np.argsort(-distances[ready], kind="stable")]
        remaining[ready] = False
        waiting_for = waiting_for - may_hide[:, ready].sum(axis=1)
        order.append(ready)
    return np.concatenate([np.zeros(0, np.int64), *order])


def _may_hide(
    boxes: Segments, view_N3: NDArray[np.float64], overlap_NN: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N, N) bool: row may hide column, and not the other way round."""
    num = len(boxes)
    i, j = np.nonzero(overlap_NN & ~np.eye(num, dtype=np.bool_))
    corners = boxes.corners_N83()[j][:, _FOOTPRINT, :2] - boxes.centers_N3[i, None, :2]  # (P, 4, 2)
    c, s = boxes.cosines_N[i, None], boxes.sines_N[i, None]
    x, y = c * corners[..., 0] + s * corners[..., 1], c * corners[..., 1] - s * corners[..., 0]
    lift = (boxes.centers_N3[j, 2] - boxes.centers_N3[i, 2])[:, None]
    z = lift + boxes.halves_N3[j, 2:] * np.array([-1.0, 1.0])
    cannot_hide = np.zeros((num, num), np.bool_)
    for axis, other in enumerate((x, y, z)):
        half, view = boxes.halves_N3[i, axis], view_N3[i, axis]
        for low, eye in ((other.min(axis=1), view), (-other.max(axis=1), -view)):
            separated = low >= half - _TOUCHING  # all of j is beyond this face of i
            beyond = eye > half  # and so is the eye: i cannot hide j; otherwise j cannot hide i
            cannot_hide[i[separated & beyond], j[separated & beyond]] = True
            cannot_hide[j[separated & ~beyond], i[separated & ~beyond]] = True
    may_hide = overlap_NN & ~cannot_hide
    np.fill_diagonal(may_hide, False)
    return np.asarray(may_hide & ~may_hide.T)
