"""Clips as torch tensors, with the augmentations that need nothing but the clip.

Legend: T frames, L label slots, N cameras, S horizon steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import COST_TERMS, EGO_FIELDS, NetworkConfig
from e2e_perception.data.augmentation import Degradations, with_degradations
from e2e_perception.data.bev_augmentation import BevAugmentation, mirrored, with_bev_augmentation
from e2e_perception.data.object_paste import with_object

if TYPE_CHECKING:
    from e2e_perception.data.clip_store import ClipStore


@dataclass(frozen=True)
class Dropout:
    """Chances that a clip loses a sensor, or its memory at some frame.

    Attributes:
        lidar, camera, all_cameras, radar, memory: Probabilities; lidar and all cameras never go together.
        only_first_camera: The robot has one camera, the first slot, and no radar, from the first frame on.
    """

    lidar: float = 0.1
    camera: float = 0.1
    all_cameras: float = 0.1
    radar: float = 0.15
    memory: float = 0.05
    only_first_camera: float = 0.1

    def scaled(self, strength: float) -> Dropout:
        """All chances times `strength`."""
        return Dropout(**{name: strength * chance for name, chance in asdict(self).items()})


@dataclass(frozen=True)
class Augmentation:
    """What training does to a clip before the network sees it; the default does nothing.

    Attributes:
        clip_length: Frames, a random stretch of the clip; None: all of it.
        mirror: Left and right are exchanged in every second clip.
        dropout: Sensors that are lost.
        degradations: Sensors that are spoiled.
        bev: Turns of the base frame, errors of the robot's own pose and calibration.
        ego_noise: Chance that the robot's acceleration is not told, lest the plan copies what is being done
            instead of looking why (de Haan et al. 2019).
    """

    clip_length: int | None = None
    mirror: bool = False
    dropout: Dropout | None = None
    degradations: Degradations | None = None
    bev: BevAugmentation | None = None
    ego_noise: float = 0.0


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Clips of one or several stores, augmented by a generator seeded with (seed, position)."""

    def __init__(
        self,
        clips: Sequence[tuple[ClipStore, int]],
        network: NetworkConfig,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Wrap clips.

        Args:
            clips: Stores and indices in them.
            network: What the inputs are for.
            seed: Of the augmentation.
            augmentation: None: as they are.
        """
        self.clips = clips
        self.network = network
        self.seed = seed
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """The clip at `position`; a position past the end is the next epoch, differently augmented."""
        rng = np.random.default_rng((self.seed, position))
        store, index = self.clips[position % len(self)]
        arrays = clip_arrays(store.read(index), self.network)
        arrays = augmented(arrays, self.network, self.augmentation, rng)
        bev = self.augmentation.bev
        if bev is not None and bev.paste > 0.0 and rng.random() < bev.paste:
            # Last: a clip that has lost its cameras takes an object anywhere.
            other, number = self.clips[int(rng.integers(len(self)))]
            donor = clip_arrays(other.read(number), self.network)
            arrays = with_object(arrays, donor, self.network, rng)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def augmented(
    arrays: dict[str, NDArray[Any]],
    network: NetworkConfig,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """A clip (`clip_arrays`) after everything that `augmentation` asks for."""
    length = augmentation.clip_length
    if length is not None and length < len(arrays["boxes"]):
        start = int(rng.integers(0, len(arrays["boxes"]) - length + 1))
        arrays = {name: value[start : start + length] for name, value in arrays.items()}
        arrays["memory_valid"] = arrays["memory_valid"].copy()
        arrays["memory_valid"][0] = 0.0
    if augmentation.mirror and rng.random() < 0.5:
        arrays = mirrored(arrays, network)
    if augmentation.degradations is not None:
        arrays = with_degradations(arrays, augmentation.degradations, rng, grid=network.grid)
    if augmentation.bev is not None:
        arrays = with_bev_augmentation(arrays, augmentation.bev, network, rng)
    if augmentation.dropout is not None:
        arrays = with_dropout(arrays, augmentation.dropout, rng)
    if rng.random() < augmentation.ego_noise:
        ego = arrays["ego_state"].copy()
        ego[:, EGO_FIELDS.index("acceleration")] = 0.0
        arrays = {**arrays, "ego_state": ego}
    return arrays


def clip_arrays(clip: Clip, network: NetworkConfig) -> dict[str, NDArray[Any]]:
    """A clip's inputs and labels by the names that the network and the losses use.

    Returns:
        Contract inputs (T, ...) and `boxes`, `class_ids`, `ids`, `weights`, `present`, `visible`, `futures`,
        `futures_valid`, `ego_future` (x, y), `ego_future_valid`, `maps`, `maps_valid`, `labels_valid`,
        `cells_known` (T, Yb, Xb; where the clip knows what is there),
        `bev_theta`, `memory_valid`, `memory_from_base`, `plan_costs` (T, P, 5; NaN where not known).
    Raises:
        InputError: If the clip was made for another size of pictures.
    """
    expected = (len(network.cameras), network.image_height, network.image_width, 3)
    if clip.inputs["images"].shape[1:] != expected:
        raise InputError(
            f"clip of {clip.scenario}: images are {clip.inputs['images'].shape[1:]}, size {network.size} "
            f"takes {expected}; make clips for it: `e2e-perception simulate --size {network.size} …`"
        )
    inputs = {
        name: value if value.dtype == np.uint8 else value.astype(np.float32)
        for name, value in clip.inputs.items()
    }
    num_frames = len(clip)
    theta = np.stack(
        [network.bev_grid.sampling_theta(SE2(*pose)) for pose in clip.memory_from_base_T3.tolist()]
    )
    memory_valid = np.ones((num_frames, 1), np.float32)
    memory_valid[0] = 0.0
    return {
        **inputs,
        "bev_theta": theta,
        "memory_valid": memory_valid,
        "memory_from_base": clip.memory_from_base_T3.astype(np.float32),
        "boxes": clip.boxes_TB10,
        "class_ids": clip.class_ids_TB,
        "ids": clip.ids_TB,
        "weights": clip.weights_TB,
        "present": clip.ids_TB >= 0,
        "visible": clip.visible_TB,
        "futures": clip.futures_TBS2,
        "futures_valid": clip.futures_valid_TBS,
        "ego_future": clip.ego_future_TS3[..., :2],
        "ego_future_valid": clip.ego_future_valid_TS,
        "maps": clip.maps_T2YX.astype(np.float32),
        "maps_valid": np.full(num_frames, clip.maps_valid),
        "labels_valid": np.full(num_frames, clip.labels_valid),
        "cells_known": np.ones((num_frames, *network.bev_grid.shape), np.bool_),
        "plan_costs": (
            np.full((num_frames, network.num_plans, len(COST_TERMS) - 1), np.nan, np.float32)
            if clip.plan_costs_TCK is None
            else clip.plan_costs_TCK
        ),
    }


def with_dropout(
    arrays: dict[str, NDArray[Any]], dropout: Dropout, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """The clip with some sensors dead from its first frame or from a random one on."""
    out = dict(arrays)
    num_frames = len(arrays["camera_valid"])

    def kill(name: str, slots: NDArray[np.bool_]) -> None:
        start = 0 if rng.random() < 0.5 else int(rng.integers(0, num_frames))
        valid = out[name].copy()
        valid[start:, slots] = 0.0
        out[name] = valid

    num_cameras = arrays["camera_valid"].shape[1]
    # Drawn in a fixed order, so that one chance does not shift the others' randomness.
    draws = rng.random(5 + num_cameras)
    if draws[4] < dropout.only_first_camera:
        out["camera_valid"] = arrays["camera_valid"] * (np.arange(num_cameras) == 0)
        out["radar_valid"] = np.zeros_like(arrays["radar_valid"])
    elif draws[0] < dropout.lidar:
        kill("lidar_valid", np.ones(arrays["lidar_valid"].shape[1], bool))
    elif draws[1] < dropout.all_cameras:
        kill("camera_valid", np.ones(num_cameras, bool))
    else:
        dead = draws[5:] < dropout.camera
        if dead.any():
            kill("camera_valid", dead)
    if draws[2] < dropout.radar:
        kill("radar_valid", np.ones(arrays["radar_valid"].shape[1], bool))
    if draws[3] < dropout.memory:
        valid = out["memory_valid"].copy()
        valid[int(rng.integers(0, num_frames))] = 0.0
        out["memory_valid"] = valid
    return out
