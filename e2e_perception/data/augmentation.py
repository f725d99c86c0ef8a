"""Degraded channels in training: what weather, age and rough handling do to pictures and rasters.

The simulator degrades whole episodes from first principles (docs/degradations.md), which is slow and fixed
once the clips are recorded. What is here degrades recorded clips anew each time one is read, from what the
network sees alone; each effect says what it leaves out. Labels are never touched: an object behind a dirty
lens is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.errors import InputError
from e2e_perception.data import image_effects, raster_effects

Arrays: TypeAlias = dict[str, NDArray[Any]]
Effect: TypeAlias = Callable[[Arrays, float, np.random.Generator], Arrays]


class Degradations(BaseModel):
    """How often a clip suffers from which effect, and how much at most; effects come independently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    strength: float = Field(
        1.0, ge=0, le=1, description="Greatest strength; each clip draws one uniformly up to it."
    )
    jitter: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Strength of each camera's own small error of colour, in every clip; 0: none.",
    )
    blur: float = Field(0.08, ge=0, le=1, description="Chance of defocus or motion blur.")
    rain: float = Field(0.08, ge=0, le=1, description="Chance of streaks, and of drops on the lenses.")
    lighting: float = Field(0.15, ge=0, le=1, description="Chance of another light, for all cameras.")
    glare: float = Field(0.06, ge=0, le=1, description="Chance of a low sun in one picture.")
    noise: float = Field(0.08, ge=0, le=1, description="Chance of sensor noise, as at night.")
    dirt: float = Field(0.08, ge=0, le=1, description="Chance of dirt on lenses.")
    freeze: float = Field(0.04, ge=0, le=1, description="Chance that cameras repeat a picture.")
    camera_mount: float = Field(0.1, ge=0, le=1, description="Chance that cameras have been turned.")
    beam_loss: float = Field(0.1, ge=0, le=1, description="Chance of dead lidar beams or a covered window.")
    fog: float = Field(0.06, ge=0, le=1, description="Chance that fog shortens the lidars' sight.")
    clock_offset: float = Field(
        0.06, ge=0, le=1, description="Chance that lidars or radars tell of the past."
    )
    clutter: float = Field(0.1, ge=0, le=1, description="Chance of radar returns of nothing.")
    gain: float = Field(
        0.1, ge=0, le=1, description="Chance of other lidar intensities and radar cross-sections."
    )
    raster_mount: float = Field(0.1, ge=0, le=1, description="Chance that lidars or radars have been moved.")


def effects(grid: BevGrid) -> dict[str, Effect]:
    """Every effect by the name of its chance in `Degradations`, in the order in which they act.

    An effect takes arrays as `clip_arrays` returns them, a strength in [0, 1] and a generator, and returns
    new arrays of the same shapes and types; strength 0 changes nothing.
    """
    return {
        "camera_mount": image_effects.turned_cameras,
        "freeze": image_effects.frozen,
        "lighting": image_effects.other_light,
        "rain": image_effects.rained_on,
        "glare": image_effects.glaring,
        "dirt": image_effects.dirty,
        "blur": image_effects.blurred,
        "noise": image_effects.noisy,
        "clock_offset": raster_effects.late,
        "raster_mount": partial(raster_effects.shifted, grid=grid),
        "beam_loss": partial(raster_effects.without_beams, grid=grid),
        "fog": partial(raster_effects.in_fog, grid=grid),
        "clutter": partial(raster_effects.cluttered, grid=grid),
        "gain": raster_effects.other_gain,
    }


def with_degradations(
    arrays: Arrays, config: Degradations, rng: np.random.Generator, *, grid: BevGrid
) -> Arrays:
    """A clip as worse sensors would have recorded it.

    Args:
        arrays: From `clip_arrays`.
        config: What may happen.
        rng: Each effect has a stream of its own, spawned from it: another chance or strength of one effect
            does not change what the others do. What the caller draws afterwards is not changed either.
        grid: Of the rasters, `NetworkConfig.grid`.
    Returns:
        New arrays of the same shapes and types; those that nothing happened to are the same objects.
    Raises:
        InputError: If the rasters are not on the grid.
    """
    for name in ("lidar_raster", "radar_raster"):
        if arrays[name].shape[-2:] != grid.shape:
            raise InputError(
                f"{name} has {arrays[name].shape[-2:]} cells, expected {grid.shape}; pass the grid of the "
                "network that the clip was recorded for"
            )
    table = effects(grid)
    own, *streams = rng.spawn(1 + len(table))
    for (name, effect), stream in zip(table.items(), streams, strict=True):
        chance, share = stream.random(2)
        if chance < getattr(config, name):
            arrays = effect(arrays, config.strength * (1.0 - share), stream)
    if config.jitter > 0.0:
        arrays = image_effects.jittered(arrays, config.jitter, own)
    return arrays
