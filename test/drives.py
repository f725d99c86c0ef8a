"""A drive past one that stands and one that moves, as clips and as a dataset; without pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from e2e_perception.core.boxes import CLASSES, Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.frames import SE3
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_building import BuiltClip, ClipBuilder, RecordedFrame
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.label_layers import LayerRow
from e2e_perception.data.shards import Dataset

NETWORK = SIZES["tiny"]
PERIOD_NS = 100_000_000
SPEED, TURN = 5.0, 0.1  # [m/s], [rad/s]
SHARD = "drive-0"
SOURCE = "topic:/labels"


def robot(stamp_ns: int) -> EgoState:
    """On a circle."""
    yaw = TURN * stamp_ns * 1e-9
    pose = SE3.planar(SPEED / TURN * np.sin(yaw), SPEED / TURN * (1.0 - np.cos(yaw)), yaw)
    return EgoState(stamp_ns, pose, np.array([SPEED, 0.0, 0.0]), TURN)


def others(stamp_ns: int) -> Boxes:
    """Number 7 stands at (30, 4), number 9 drives along x at 3 m/s from (10, -4); base frame at the stamp."""
    base_from_odom = robot(stamp_ns).odom_from_base.inverse()
    odom = np.array([[30.0, 4.0, 0.8], [10.0 + 3.0 * stamp_ns * 1e-9, -4.0, 0.8]])
    flat = base_from_odom.planar_part()
    return Boxes(
        centers_N3=base_from_odom.apply(odom).astype(np.float32),
        sizes_N3=np.tile(np.array([4.0, 2.0, 1.6], np.float32), (2, 1)),
        yaws_N=np.full(2, flat.yaw, np.float32),
        velocities_N2=flat.rotate(np.array([[0.0, 0.0], [3.0, 0.0]])).astype(np.float32),
        class_ids_N=np.array([0, 1]),
        scores_N=np.ones(2, np.float32),
        ids_N=np.array([7, 9]),
    )


def built_clips(
    num_frames: int, *, length: int = 5, stride: int = 5, labelled: bool = False, jump_at: int | None = None
) -> list[BuiltClip]:
    """Frames at 10 Hz; odometry and labels go on for 5 s after the last."""
    builder = ClipBuilder(
        NETWORK, clip_length=length, stride=stride, source="bag:x", scenario="bag:x", has_labels=labelled
    )
    found: list[BuiltClip] = []
    for k in range(num_frames + 50):
        stretch = int(jump_at is not None and k >= jump_at)
        now_ns = k * PERIOD_NS
        builder.add_odometry(robot(now_ns), stretch)
        if labelled:
            builder.add_labels(now_ns, others(now_ns))
        if k < num_frames:
            inputs: dict[str, Any] = {"ego_state": np.full(7, now_ns * 1e-9, np.float32)}
            builder.add_frame(RecordedFrame(now_ns, inputs, robot(now_ns), stretch, {"top": True}))
        found += builder.finished()
    builder.finish()
    return [*found, *builder.finished()]


def write_dataset(path: Path, num_frames: int, *, labelled: bool, name: str = SHARD, **cut: int) -> Dataset:
    """The drive as one shard of a dataset."""
    dataset = Dataset(path)
    rows: list[dict[str, Any]] = []
    sources = [SOURCE] if labelled else []
    with dataset.writing(name) as directory:
        writer = ClipWriter(directory)
        for number, built in enumerate(built_clips(num_frames, labelled=labelled, **cut)):
            clip, clip_id = built.clip, f"{number:06d}"
            writer.write(clip_id, clip, {"label_sources": sources, "sensor_validity": built.validity})
            for t, slot in np.argwhere(clip.ids_TB >= 0).tolist():
                rows.append(
                    {
                        "clip_id": clip_id,
                        "frame": t,
                        "slot": slot,
                        "identity": int(clip.ids_TB[t, slot]),
                        "class": CLASSES[int(clip.class_ids_TB[t, slot])],
                        "source": SOURCE,
                        "tool": "hand",
                        "bundle_digest": None,
                        "confidence": float(built.confidence_TL[t, slot]),
                        "reviewer": None,
                    }
                )
        writer.finish()
        facts = {
            "recipe": {"size": NETWORK.size},
            "source": {"kind": "bag", "name": name},
            "frames": num_frames,
            "label_sources": sources,
        }
        dataset.seal(name, facts, rows)
    return dataset


def layer_rows(clip_id: str, stamps_ns: list[int], **more: Any) -> Iterator[LayerRow]:
    """What is true at some instants, as rows of a layer."""
    for stamp_ns in stamps_ns:
        boxes = others(stamp_ns)
        for n in range(len(boxes)):
            values: dict[str, Any] = {
                "clip_id": clip_id,
                "stamp_ns": stamp_ns,
                "identity": int(boxes.ids_N[n]),
                "class_name": CLASSES[int(boxes.class_ids_N[n])],
                **dict(zip("xyz", boxes.centers_N3[n].tolist(), strict=True)),
                **dict(zip(("length", "width", "height"), boxes.sizes_N3[n].tolist(), strict=True)),
                "yaw": float(boxes.yaws_N[n]),
                "vx": float(boxes.velocities_N2[n, 0]),
                "vy": float(boxes.velocities_N2[n, 1]),
                "source": "review",
                "tool": "hand",
                "bundle_digest": None,
                "confidence": 1.0,
                "reviewer": "Ada",
                "verdict": "label",
                **more,
            }
            yield LayerRow(**values)
