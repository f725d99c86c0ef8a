"""Labels of one frame as the slots of a clip: which of them, in which columns, and how much they weigh.

Legend: N labels, B = MAX_LABELS slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import MAX_LABELS
from e2e_perception.core.network_config import BOX_FIELDS

VISIBLE_SCORE = 0.0  # a label of this confidence is of something that no sensor saw


def nearest_inside(centers_N2: NDArray[np.floating], grid: BevGrid) -> NDArray[np.int64]:
    """Rows of the labels that get a slot: those on the grid, nearest first, as many as there are slots."""
    inside = np.flatnonzero(grid.contains(centers_N2))
    order = np.argsort(np.linalg.norm(centers_N2[inside], axis=1), kind="stable")
    return inside[order][:MAX_LABELS]


def empty_rows() -> NDArray[np.float32]:
    """(B, 10) float32 without labels, columns `BOX_FIELDS`."""
    rows = np.zeros((MAX_LABELS, len(BOX_FIELDS)), np.float32)
    rows[:, BOX_FIELDS.index("cos_yaw")] = 1.0
    return rows


def box_rows(
    centers_N2: NDArray[np.floating],
    z_N: NDArray[np.floating],
    sizes_N3: NDArray[np.floating],
    yaws_N: NDArray[np.floating],
    velocities_N2: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Boxes as columns `BOX_FIELDS`.

    Args:
        centers_N2, z_N: [m], base frame.
        sizes_N3: Length, width, height [m].
        yaws_N: [rad]
        velocities_N2: [m/s]
    Returns:
        (N, 10) float32.
    """
    columns = {
        "x": centers_N2[:, 0],
        "y": centers_N2[:, 1],
        "z": z_N,
        "log_length": np.log(sizes_N3[:, 0]),
        "log_width": np.log(sizes_N3[:, 1]),
        "log_height": np.log(sizes_N3[:, 2]),
        "sin_yaw": np.sin(yaws_N),
        "cos_yaw": np.cos(yaws_N),
        "vx": velocities_N2[:, 0],
        "vy": velocities_N2[:, 1],
    }
    return np.stack([np.asarray(columns[name]) for name in BOX_FIELDS], axis=1).astype(np.float32)


def loss_weights(
    confidence_B: NDArray[np.float32], ids_B: NDArray[np.int64], seen: set[int]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether a sensor saw each object, and how much its label weighs.

    Args:
        confidence_B: Of each label; `VISIBLE_SCORE` where no sensor saw the object.
        ids_B: -1 for padding.
        seen: Identities that the clip has shown so far; those of this frame are added.
    """
    visible_B = confidence_B > VISIBLE_SCORE
    seen |= set(ids_B[visible_B].tolist())
    # Of something that was seen a moment ago one can know; how sure is as sure as the label was then.
    known_B = np.array([identity in seen for identity in ids_B.tolist()])
    weights_B = np.where(visible_B, confidence_B, np.where(known_B & (ids_B >= 0), 1.0, 0.0))
    return visible_B, weights_B.astype(np.float32)
