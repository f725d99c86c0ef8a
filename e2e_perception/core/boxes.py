"""Oriented 3D boxes and the classes the project knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError

# Order is part of the tensor contract; a bundle that states another order is refused.
# `obstacle` is whatever else stands or lies where one might drive: lost cargo, a cone, a barrier.
CLASSES: tuple[str, ...] = ("car", "truck", "pedestrian", "cyclist", "obstacle")
# Vehicles, people and things; within a group classes are easily confused.
GROUP_OF = {"car": 0, "truck": 0, "pedestrian": 1, "cyclist": 1, "obstacle": 2}


@dataclass(frozen=True)
class Boxes:
    """N boxes in one frame, as parallel arrays.

    Attributes:
        centers_N3: (N, 3) float32 [m], geometric centre of each box.
        sizes_N3: (N, 3) float32 [m], length (along x), width, height, all > 0.
        yaws_N: (N,) float32 [rad], counter-clockwise about z.
        velocities_N2: (N, 2) float32 [m/s] over ground, in the axes of the boxes' frame.
        class_ids_N: (N,) int64, index into `CLASSES`.
        scores_N: (N,) float32 in [0, 1]; 1 for labels.
        ids_N: (N,) int64 identity, or -1 where there is none.
    """

    centers_N3: NDArray[np.float32]
    sizes_N3: NDArray[np.float32]
    yaws_N: NDArray[np.float32]
    velocities_N2: NDArray[np.float32]
    class_ids_N: NDArray[np.int64]
    scores_N: NDArray[np.float32]
    ids_N: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.centers_N3)
        expected = {
            "centers_N3": (n, 3),
            "sizes_N3": (n, 3),
            "yaws_N": (n,),
            "velocities_N2": (n, 2),
            "class_ids_N": (n,),
            "scores_N": (n,),
            "ids_N": (n,),
        }
        for name, shape in expected.items():
            got = np.shape(getattr(self, name))
            if got != shape:
                raise InputError(f"boxes: {name} has shape {got}, expected {shape}")

    def __len__(self) -> int:
        return len(self.centers_N3)

    @staticmethod
    def empty() -> Boxes:
        """No boxes."""
        return Boxes(
            centers_N3=np.zeros((0, 3), np.float32),
            sizes_N3=np.zeros((0, 3), np.float32),
            yaws_N=np.zeros(0, np.float32),
            velocities_N2=np.zeros((0, 2), np.float32),
            class_ids_N=np.zeros(0, np.int64),
            scores_N=np.zeros(0, np.float32),
            ids_N=np.zeros(0, np.int64),
        )

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes:
        """The boxes at a boolean mask or index array, in that order."""
        return Boxes(
            centers_N3=self.centers_N3[which],
            sizes_N3=self.sizes_N3[which],
            yaws_N=self.yaws_N[which],
            velocities_N2=self.velocities_N2[which],
            class_ids_N=self.class_ids_N[which],
            scores_N=self.scores_N[which],
            ids_N=self.ids_N[which],
        )


def footprint_corners_N42(
    centers_N2: NDArray[np.floating], sizes_N2: NDArray[np.floating], yaws_N: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Ground-plane corners of boxes, counter-clockwise from front-left.

    Args:
        centers_N2: (N, 2) [m].
        sizes_N2: (N, 2) [m], length and width.
        yaws_N: (N,) [rad].
    Returns:
        (N, 4, 2) float64 [m].
    """
    signs = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    local = signs[None] * np.asarray(sizes_N2, np.float64)[:, None, :]
    c, s = np.cos(yaws_N)[:, None], np.sin(yaws_N)[:, None]
    x = c * local[..., 0] - s * local[..., 1]
    y = s * local[..., 0] + c * local[..., 1]
    return np.stack([x, y], axis=-1) + np.asarray(centers_N2, np.float64)[:, None, :]
