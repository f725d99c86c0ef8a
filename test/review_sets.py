"""A dataset made by hand whose labels are to be looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import synthetic_clip

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.shards import Dataset

NETWORK = SIZES["tiny"]
FRAMES = 3
TRACKS = (100, 101, 102)
NASTY = 'a</script><b onload="x">&\'%TITLE%'


def review_clip(seed: int = 0, scenario: str = "by hand") -> Clip:
    """Three objects over three frames, one camera dead."""
    clip = synthetic_clip(NETWORK, seed=seed, num_frames=FRAMES)
    clip.inputs["camera_valid"][:, 2] = 0.0
    return replace(clip, scenario=scenario)


def label_rows(clip_id: str, clip: Clip, **columns: Any) -> list[dict[str, Any]]:
    """What `labels.parquet` says of a clip."""
    return [
        {
            "clip_id": clip_id,
            "frame": int(t),
            "slot": int(slot),
            "identity": int(clip.ids_TB[t, slot]),
            "class": CLASSES[int(clip.class_ids_TB[t, slot])],
            "source": "autolabel",
            "tool": "e2e_perception 0.1.0",
            "bundle_digest": "abcdef0123456789",
            "confidence": 0.5 + 0.125 * int(slot),
            "reviewer": None,
            **columns,
        }
        for t, slot in zip(*(clip.ids_TB >= 0).nonzero(), strict=True)
    ]


def add_shard(path: Path, name: str, clips: list[Clip], **columns: Any) -> None:
    """Another shard of a dataset; `columns` go to all rows of its labels."""
    dataset = Dataset(path)
    with dataset.writing(name) as directory:
        writer = ClipWriter(directory)
        rows = []
        for number, clip in enumerate(clips):
            writer.write(f"{number:06d}", clip)
            rows += label_rows(f"{number:06d}", clip, **columns)
        writer.finish()
        facts = {
            "recipe": {"size": "tiny"},
            "source": {"kind": "bag", "name": name},
            "frames": sum(map(len, clips)),
        }
        dataset.seal(name, facts, rows)


def review_set(path: Path, clips: int = 2, scenario: str = "by hand", **columns: Any) -> Path:
    """A dataset of one shard, `drive`."""
    add_shard(path, "drive", [review_clip(seed, scenario) for seed in range(clips)], **columns)
    return path


def turned(clip: Clip, yaws: list[float]) -> Clip:
    """The same with other headings of the first objects, in every frame."""
    boxes = clip.boxes_TB10.copy()
    for slot, yaw in enumerate(yaws):
        boxes[:, slot, 6], boxes[:, slot, 7] = np.sin(yaw), np.cos(yaw)
    return replace(clip, boxes_TB10=boxes)
