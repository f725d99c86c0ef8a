"""Tracked objects: what the track manager publishes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.errors import InputError


@dataclass(frozen=True)
class Tracks:
    """Confirmed and tentative tracks of one frame with their predicted futures, base frame.

    Attributes:
        stamp_ns: Frame time [ns].
        boxes: N boxes; `ids_N` are track identities (>= 0, never reused until reset).
        ages_N: (N,) int64, frames since birth.
        coasted_N: (N,) int64, frames since last matched; 0 means seen in this frame.
        confirmed_N: (N,) bool.
        position_std_N2: (N, 2) float32 [m], standard deviation in x and y.
        futures_NMT2: (N, M, T, 2) float32 [m], predicted positions, base frame at `stamp_ns`.
        futures_std_NMT2: (N, M, T, 2) float32 [m].
        mode_probabilities_NM: (N, M) float32, sums to 1 per track.
        times_T: (T,) float64 [s].
    """

    stamp_ns: int
    boxes: Boxes
    ages_N: NDArray[np.int64]
    coasted_N: NDArray[np.int64]
    confirmed_N: NDArray[np.bool_]
    position_std_N2: NDArray[np.float32]
    futures_NMT2: NDArray[np.float32]
    futures_std_NMT2: NDArray[np.float32]
    mode_probabilities_NM: NDArray[np.float32]
    times_T: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name in (
            "ages_N",
            "coasted_N",
            "confirmed_N",
            "position_std_N2",
            "futures_NMT2",
            "futures_std_NMT2",
            "mode_probabilities_NM",
        ):
            got = len(getattr(self, name))
            if got != n:
                raise InputError(f"tracks: {name} has {got} rows, expected {n}")

    def __len__(self) -> int:
        return len(self.boxes)
