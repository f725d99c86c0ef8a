"""What a shard's tables say of a clip of a recording: its row in the index, and a row per label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from e2e_perception.core.boxes import CLASSES
from e2e_perception.data.clip_building import BuiltClip


def index_facts(
    built: BuiltClip,
    *,
    bag_digest: str,
    topics: Sequence[str],
    label_sources: Sequence[str],
    interventions: int | None = None,
) -> dict[str, Any]:
    """Columns `clip_store.FACTS` that are known of recordings.

    Args:
        built: The clip.
        bag_digest: Of the recording.
        topics: That it holds.
        label_sources: Whose labels the clip has.
        interventions: Instants in it at which the robot was stopped; None: not recorded.
    """
    return {
        "last_stamp_ns": int(built.clip.stamps_ns_T[-1]),
        "bag_digest": bag_digest,
        "topics": list(topics),
        "sensor_validity": built.validity,
        "speed_mean_mps": round(float(built.speeds_T.mean()), 3),
        "speed_max_mps": round(float(built.speeds_T.max()), 3),
        "weather": None,
        "label_sources": list(label_sources),
        "interventions": interventions,
    }


def label_rows(
    clip_id: str, built: BuiltClip, *, source: str, tool: str, reviewer: str | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of `LABEL_SCHEMA`.

    Args:
        clip_id: Of the clip.
        built: The clip, whose confidence a label's is.
        source, tool, reviewer: Of all of them.
    """
    clip = built.clip
    for t, slot in zip(*(clip.ids_TB >= 0).nonzero(), strict=True):
        yield {
            "clip_id": clip_id,
            "frame": int(t),
            "slot": int(slot),
            "identity": int(clip.ids_TB[t, slot]),
            "class": CLASSES[int(clip.class_ids_TB[t, slot])],
            "source": source,
            "tool": tool,
            "bundle_digest": None,
            "confidence": float(built.confidence_TL[t, slot]),
            "reviewer": reviewer,
        }
