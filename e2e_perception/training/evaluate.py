"""Open-loop figures of a network on the clips of a split, with the controls that make them mean something."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import COST_TERMS, EGO_FIELDS
from e2e_perception.core.trajectories import base_from_route_coordinates
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import ClipDataset
from e2e_perception.evaluation.open_loop import OpenLoopMetrics, footprint_overlap
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.rollout import rollout

EGO = {"length": 4.6, "width": 1.9, "center_x": 1.4}
CONTROLS = ("full", "no_sensors", "shuffled_sensors")
SENSOR_INPUTS = ("images", "lidar_raster", "radar_raster")
VALIDITY = ("camera_valid", "lidar_valid", "radar_valid")


@torch.no_grad()
def evaluate_open_loop(
    model: JointNetwork,
    store: ClipStore,
    *,
    split: str = "validation",
    control: str = "full",
    max_clips: int | None = None,
    planning: PlanningConfig | None = None,
    batch_clips: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Evaluate on the later half of each clip, where memory has filled.

    Teacher-forced: what is remembered is chosen by the identities of the labels, as in training, and not
    by the track manager. `e2e-perception replay` on a labelled bag measures the whole stack.

    Args:
        model: The network.
        store: Clips.
        split: `train`, `validation` or `all`.
        control: `full`; `no_sensors`: every sensor invalid, the plan sees route and ego state only;
            `shuffled_sensors`: each clip gets another clip's sensor data.
        max_clips: At most so many clips.
        planning: Weights that choose the plan; None takes the defaults.
        batch_clips: Clips per batch; shuffling happens within a batch.
        progress: Called with (clips done, clips in all).
    Returns:
        Figures by name, see `OpenLoopMetrics`.
    Raises:
        InputError: If there are no such clips.
    """
    assert control in CONTROLS
    indices = (np.arange(len(store)) if split == "all" else store.indices(split))[:max_clips]
    if len(indices) == 0:
        raise InputError(f"{store.path} holds no clips of the split {split!r}")
    dataset = ClipDataset(store, indices, model.config, seed=0, mirror=False, dropout=None)
    times = model.config.times_T
    metrics = OpenLoopMetrics(times)
    weights = (planning or PlanningConfig()).model_dump()
    term_weights = np.array([weights[f"weight_{term}"] for term in COST_TERMS])
    model.eval()
    for start in range(0, len(indices), batch_clips):
        clips = [dataset[i] for i in range(start, min(start + batch_clips, len(indices)))]
        batch = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
        if control == "no_sensors":
            batch.update({name: torch.zeros_like(batch[name]) for name in VALIDITY})
        if control == "shuffled_sensors":
            if len(clips) < 2:
                continue
            batch.update({name: batch[name].roll(1, 0) for name in SENSOR_INPUTS})
        frames, _, _, memory_ids = rollout(model, batch, boost=0.0, with_losses=False)
        arrays = {name: value.numpy() for name, value in batch.items()}
        for t in range(len(frames) // 2, len(frames)):
            outputs = {name: value.numpy() for name, value in frames[t].items()}
            for b in range(len(clips)):
                frame = {name: value[b, t] for name, value in arrays.items()}
                own = {name: value[b] for name, value in outputs.items()}
                _add_frame(metrics, own, frame, memory_ids[t][b].numpy(), term_weights, times)
        if progress is not None:
            progress(min(start + batch_clips, len(indices)), len(indices))
    return metrics.summary()


def _add_frame(
    metrics: OpenLoopMetrics,
    outputs: dict[str, NDArray[np.generic]],
    frame: dict[str, NDArray[np.generic]],
    memory_ids_M: NDArray[np.int64],
    term_weights: NDArray[np.float64],
    times: NDArray[np.float64],
) -> None:
    present = frame["present"]
    counted = present & (frame["weights"] > 0)
    boxes = frame["boxes"]
    matches = metrics.add_detections(
        outputs["query_scores"],
        outputs["query_boxes"],
        boxes,
        frame["class_ids"],
        counted,
        present & ~counted,
    )
    query_ids = np.where(matches >= 0, frame["ids"][matches], -1)
    metrics.add_association(outputs["affinity"], query_ids, memory_ids_M)
    for q in np.flatnonzero(matches >= 0):
        label = matches[q]
        metrics.add_futures(
            outputs["object_futures"][q], frame["futures"][label], frame["futures_valid"][label]
        )
    truth, valid = frame["ego_future"], frame["ego_future_valid"]
    cost = outputs["plan_costs"] @ term_weights
    points = base_from_route_coordinates(outputs["plan_sd"][int(cost.argmin())], frame["route"])
    ego = dict(zip(EGO_FIELDS, frame["ego_state"].tolist(), strict=True))
    turned = ego["yaw_rate"] * times / 2.0
    steady = ego["speed"] * times[:, None] * np.stack([np.cos(turned), np.sin(turned)], -1)
    for name, plan in (("plan", points), ("constant_velocity", steady)):
        steps = np.diff(np.concatenate([np.zeros((1, 2)), plan]), axis=0)
        moving = np.linalg.norm(steps, axis=1) > 0.2
        yaws = np.where(moving, np.arctan2(steps[:, 1], steps[:, 0]), 0.0)
        overlap = footprint_overlap(
            plan, yaws, EGO, boxes[present], frame["futures"][present], frame["futures_valid"][present]
        )
        metrics.add_plan(name, plan, truth, valid, overlap)
