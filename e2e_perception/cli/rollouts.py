"""Clips as frames to run engines over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from e2e_perception.core.errors import InputError

if TYPE_CHECKING:
    from e2e_perception.core.network_config import NetworkConfig
    from e2e_perception.data.clip_store import ClipStore
    from e2e_perception.deploy.rollouts import RolloutFrames

NUM_ROLLOUTS = 8  # to choose the one from that a bundle records


def frames_of_clips(
    stores: Sequence[ClipStore], split: str, network: NetworkConfig, count: int
) -> list[RolloutFrames]:
    """Frames of so many clips of a split, evenly chosen.

    Raises:
        InputError: If there are none, or they were made for another size of network.
    """
    from e2e_perception.deploy.rollouts import frames_of_clip

    clips = [(store, int(index)) for store in stores for index in store.indices(split)]
    if not clips:
        where = ", ".join(str(store.path) for store in stores)
        raise InputError(f"{where}: no clips of the split {split!r}; name other clips")
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int))
    return [frames_of_clip(clips[i][0].read(clips[i][1]), network) for i in chosen]


def rollouts_of(data: Path | None, network: NetworkConfig) -> list[RolloutFrames]:
    """Validation clips of a store to record one of; none without a store."""
    if data is None:
        return []
    from e2e_perception.data.shards import open_clips

    return frames_of_clips(open_clips(data), "validation", network, NUM_ROLLOUTS)
