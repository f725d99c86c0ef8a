"""Which labels a network finds, by what they are cases of: where a mean hides that it is blind to some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import ClipDataset
from e2e_perception.data.slices import DISTANCES, in_bin
from e2e_perception.evaluation.open_loop import OpenLoopMetrics
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.rollout import rollout

_X, _Y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")


@dataclass
class Recall:
    """Labels that a sensor saw, and how many of them were found."""

    labels: int = 0
    found: int = 0

    @property
    def share(self) -> float:
        """0 without labels."""
        return self.found / self.labels if self.labels else 0.0


@torch.no_grad()
def recall_by_slice(
    model: JointNetwork,
    clips: Sequence[tuple[ClipStore, int]],
    slices: Sequence[Mapping[str, str]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Recall]]:
    """Recall on the later half of each clip, matched as `evaluate` does.

    Args:
        model: The network.
        clips: Stores and indices in them, of clips that are labelled.
        slices: What each clip is a case of, see `clip_slices`.
        progress: Told (clips done, clips in all).
    Returns:
        By `class`, `distance` and the names of `slices`, then by value.
    Raises:
        InputError: If there are no clips, or they were made for a network of another size.
    """
    if len(clips) == 0:
        raise InputError("no labelled clips, so recall cannot be told; leave --bundle out")
    dataset = ClipDataset(clips, model.config)
    found: defaultdict[str, defaultdict[str, Recall]] = defaultdict(lambda: defaultdict(Recall))
    model.eval()
    for index, of_clip in enumerate(slices):
        clip = dataset[index]
        batch = {name: value[None] for name, value in clip.items()}
        result = rollout(model, batch, boost=0.0, with_losses=False, as_on_robot=True)
        metrics = OpenLoopMetrics(model.config.times_T)
        arrays = {name: value.numpy() for name, value in clip.items()}
        for t in range(len(result.frames) // 2, len(result.frames)):
            outputs = {name: value[0].numpy() for name, value in result.frames[t].items()}
            frame = {name: value[t] for name, value in arrays.items() if value.ndim}
            present = frame["present"]
            counted = present & (frame["weights"] > 0)
            matches = metrics.add_detections(
                outputs["query_scores"],
                outputs["query_boxes"],
                frame["boxes"],
                frame["class_ids"],
                counted,
                present & ~counted,
            )
            hits = set(matches[matches >= 0].tolist())
            for slot in np.flatnonzero(counted).tolist():
                distance = float(np.hypot(*frame["boxes"][slot, [_X, _Y]]))
                of_label = {
                    "class": CLASSES[int(frame["class_ids"][slot])],
                    "distance": in_bin(distance, DISTANCES, "m"),
                }
                for name, value in {**of_label, **of_clip}.items():
                    found[name][value].labels += 1
                    found[name][value].found += slot in hits
        if progress is not None:
            progress(index + 1, len(slices))
    return {name: dict(sorted(values.items())) for name, values in found.items()}
