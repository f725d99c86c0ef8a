"""A clip: consecutive frames of network inputs with labels; what training reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError

MAX_LABELS = 64  # labelled objects per frame; the nearest are kept


@dataclass(frozen=True)
class Clip:
    """T frames; B = MAX_LABELS label slots; shapes otherwise as the tensor contract says, without batch.

    Attributes:
        inputs: By contract input name, (T, ...) arrays. Images uint8, rasters float16, the rest float32.
            Recurrent inputs (`bev_memory`, `track_*`) are absent: training feeds its own.
        boxes_TB10: (T, B, 10) float32, columns `BOX_FIELDS`, base frame of each frame.
        class_ids_TB: (T, B) int64; ids_TB: (T, B) int64, identity, -1 for padding.
        weights_TB: (T, B) float32, label confidence; 0 for padding.
        visible_TB: (T, B) bool: whether any sensor could see the object in this frame.
        futures_TBS2: (T, B, S, 2) float32 [m], centre at each horizon step, base frame of frame t.
        futures_valid_TBS: (T, B, S) bool.
        ego_future_TS3: (T, S, 3) float32: x, y [m], yaw [rad] of `base_link` in base frame t.
        ego_future_valid_TS: (T, S) bool.
        maps_T2YX: (T, 2, Yb, Xb) uint8 on the BEV grid: drivable area, boundaries (0 or 1).
        maps_valid: Whether the map labels are known.
        stamps_ns_T: (T,) int64.
        memory_from_base_T3: (T, 3) float64, SE(2) of frame t's base in frame t-1's; zeros for t = 0.
        source: Provenance: `simulation`, a bag's digest, …
        scenario: Name and seed of the scenario, or empty.
        plan_costs_TCK: (T, C, K) float32, what each proposal of the plan vocabulary would have cost against
            the true futures, weighted, columns as `COST_TERMS` without imitation; NaN near the end of a
            drive; None: not known.
        labels_valid: Whether everybody is labelled; False: nobody is, and nothing can be learned of others.
    """

    inputs: dict[str, NDArray[np.generic]]
    boxes_TB10: NDArray[np.float32]
    class_ids_TB: NDArray[np.int64]
    ids_TB: NDArray[np.int64]
    weights_TB: NDArray[np.float32]
    visible_TB: NDArray[np.bool_]
    futures_TBS2: NDArray[np.float32]
    futures_valid_TBS: NDArray[np.bool_]
    ego_future_TS3: NDArray[np.float32]
    ego_future_valid_TS: NDArray[np.bool_]
    maps_T2YX: NDArray[np.uint8]
    maps_valid: bool
    stamps_ns_T: NDArray[np.int64]
    memory_from_base_T3: NDArray[np.float64]
    source: str
    scenario: str
    plan_costs_TCK: NDArray[np.float32] | None = None
    labels_valid: bool = True

    def __post_init__(self) -> None:
        num_frames = len(self.stamps_ns_T)
        for name, value in self.arrays().items():
            if len(value) != num_frames:
                raise InputError(f"clip: {name} has {len(value)} frames, expected {num_frames} as the stamps")

    def __len__(self) -> int:
        return len(self.stamps_ns_T)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every array by name; inputs are prefixed `inputs/`."""
        named: dict[str, NDArray[np.generic]] = {f"inputs/{k}": v for k, v in self.inputs.items()}
        for name in ARRAY_FIELDS:
            named[name] = getattr(self, name)
        for name in OPTIONAL_FIELDS:
            if getattr(self, name) is not None:
                named[name] = getattr(self, name)
        return named


ARRAY_FIELDS = (
    "boxes_TB10",
    "class_ids_TB",
    "ids_TB",
    "weights_TB",
    "visible_TB",
    "futures_TBS2",
    "futures_valid_TBS",
    "ego_future_TS3",
    "ego_future_valid_TS",
    "maps_T2YX",
    "stamps_ns_T",
    "memory_from_base_T3",
)
OPTIONAL_FIELDS = ("plan_costs_TCK",)
