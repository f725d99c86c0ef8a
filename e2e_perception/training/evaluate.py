"""Open-loop figures of a network on the clips of a split, with the controls that make them mean something."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2e_perception.core.config import PlanningConfig
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import COST_TERMS, EGO_FIELDS
from e2e_perception.core.trajectories import base_from_route_coordinates
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import ClipDataset
from e2e_perception.evaluation.bev_maps import BevMapMetrics
from e2e_perception.evaluation.open_loop import OpenLoopMetrics, footprint_overlap
from e2e_perception.model.network import JointNetwork
from e2e_perception.model.targets import occupancy_targets
from e2e_perception.training.rollout import ENCODED_INPUTS, rollout

EGO = {"length": 4.6, "width": 1.9, "center_x": 1.4}
CONTROLS = ("full", "no_sensors", "shuffled_sensors")
VALIDITY = ("camera_valid", "lidar_valid", "radar_valid")


@torch.no_grad()
def evaluate_open_loop(
    model: JointNetwork,
    clips: Sequence[tuple[ClipStore, int]],
    *,
    control: str = "full",
    planning: PlanningConfig | None = None,
    batch_clips: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Evaluate on the later half of each clip, where memory has filled.

    Teacher-forced in one thing: labels say which detection is which remembered track, in place of the track
    manager. What is remembered at all is decided by scores, as on the robot: a network that sees nothing
    remembers nothing. `e2e-perception evaluate --suite` measures the whole stack.

    Args:
        model: The network.
        clips: Stores and indices in them.
        control: `full`; `no_sensors`: every sensor invalid, the plan sees route and ego state only;
            `shuffled_sensors`: each clip gets all sensor data of one from another scenario, see `partners`.
        planning: Weights that choose the plan; None takes the defaults.
        batch_clips: Clips per batch.
        progress: Called with (clips done, clips in all).
    Returns:
        Figures by name, see `OpenLoopMetrics` and `BevMapMetrics`.
    Raises:
        InputError: If there are no clips.
    """
    assert control in CONTROLS
    if len(clips) == 0:
        raise InputError("no clips to evaluate on; name a split or a dataset that has some")
    partner_of = partners([str(store.rows[index]["scenario"]) for store, index in clips])
    dataset = ClipDataset(clips, model.config)
    times = model.config.times_T
    metrics, map_metrics = OpenLoopMetrics(times), BevMapMetrics()
    centres_YX2 = torch.from_numpy(model.config.bev_grid.cell_centres_YX2())
    weights = (planning or PlanningConfig()).model_dump()
    term_weights = np.array([weights[f"weight_{term}"] for term in COST_TERMS])
    model.eval()
    for start in range(0, len(dataset), batch_clips):
        read = [dataset[i] for i in range(start, min(start + batch_clips, len(dataset)))]
        batch = {name: torch.stack([clip[name] for clip in read]) for name in read[0]}
        if control == "no_sensors":
            batch.update({name: torch.zeros_like(batch[name]) for name in VALIDITY})
        if control == "shuffled_sensors":
            others = [dataset[int(partner_of[i])] for i in range(start, start + len(read))]
            batch.update({name: torch.stack([clip[name] for clip in others]) for name in ENCODED_INPUTS})
        result = rollout(model, batch, boost=0.0, with_losses=False, as_on_robot=True)
        frames, memory_ids = result.frames, result.memory_ids
        arrays = {name: value.numpy() for name, value in batch.items()}
        for t in range(len(frames) // 2, len(frames)):
            outputs = {name: value.numpy() for name, value in frames[t].items()}
            labels = {name: value[:, t] for name, value in batch.items()}
            _add_maps(map_metrics, outputs["bev_maps"], labels, centres_YX2)
            for b in range(len(read)):
                frame = {name: value[b, t] for name, value in arrays.items()}
                own = {name: value[b] for name, value in outputs.items()}
                _add_frame(metrics, own, frame, memory_ids[t][b].numpy(), term_weights, times)
        if progress is not None:
            progress(min(start + batch_clips, len(dataset)), len(dataset))
    return dict(sorted({**metrics.summary(), **map_metrics.summary()}.items()))


def partners(scenarios: Sequence[str]) -> NDArray[np.int64]:
    """For each clip another one, all different, from another scenario unless one has more than half of them.

    Neighbours would not do: a drive's next clip shows nearly the same street.
    """
    order = np.argsort(np.array(scenarios), kind="stable")
    partner = np.empty(len(order), np.int64)
    partner[order] = np.roll(order, -(len(order) // 2))
    return partner


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
    chosen = int(cost.argmin())
    metrics.add_prices(frame["plan_costs"], chosen)
    points = base_from_route_coordinates(outputs["plan_sd"][chosen], frame["route"])
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


def _add_maps(
    metrics: BevMapMetrics,
    maps_B5YX: NDArray[np.floating],
    labels: dict[str, Tensor],
    centres_YX2: Tensor,
) -> None:
    """Maps of one frame of a batch; known and occupied is what is so for the losses (`model.losses`)."""
    used_L = labels["present"].any(0)
    used_L[0] = True  # at least one slot; without the empty ones it takes a fraction of the time
    objects = {name: labels[name][:, used_L] for name in ("boxes", "weights", "present")}
    occupied, flow = occupancy_targets(objects, centres_YX2)
    reached_BYX = labels["cells_known"].numpy()
    known_BYX = reached_BYX & labels["maps_valid"].numpy()[:, None, None]
    labelled_BYX = reached_BYX & labels["labels_valid"].numpy()[:, None, None]
    truth_B2YX, occupied_BYX = labels["maps"].numpy() > 0.5, occupied.numpy() > 0.5
    metrics.add_map("drivable", maps_B5YX[:, 0], truth_B2YX[:, 0], known_BYX)
    metrics.add_map("boundary", maps_B5YX[:, 1], truth_B2YX[:, 1], known_BYX)
    metrics.add_map("occupied", maps_B5YX[:, 2], occupied_BYX, labelled_BYX)
    metrics.add_flow(maps_B5YX[:, 3:], flow.numpy(), occupied_BYX & labelled_BYX)
