"""Open-loop evaluation: figures of a network whose maps are given, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import SMALL, synthetic_clip
from torch import Tensor

from e2e_perception.core.clips import Clip
from e2e_perception.data import dataset as dataset_module
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.evaluate import evaluate_open_loop

# Rows and columns of 2 m, from (-16, -16) m. The road of synthetic clips is rows 5 to 9, its boundary row 5.
SHAPE = SMALL.bev_grid.shape
MAPS = ("drivable_iou", "boundary_iou", "occupied_iou", "flow_error_mps")


class SaysTheSame(JointNetwork):
    """A network with given maps (5, Y, X)."""

    def __init__(self, maps_5YX: np.ndarray) -> None:
        torch.manual_seed(0)
        super().__init__(SMALL)
        self.maps_5YX = torch.from_numpy(maps_5YX)

    def step(self, features: Tensor, inputs: dict[str, Tensor], boost: Tensor | None = None) -> Any:
        outputs = super().step(features, inputs, boost)
        return {**outputs, "bev_maps": self.maps_5YX.expand(len(features), -1, -1, -1)}


class Clips:
    """Clips in memory."""

    def __init__(self, *clips: Clip) -> None:
        self.clips = clips
        self.rows = [{"scenario": clip.scenario} for clip in clips]

    def read(self, index: int) -> Clip:
        return self.clips[index]

    def all(self) -> list[tuple[Any, int]]:
        return [(self, i) for i in range(len(self.clips))]


def network() -> SaysTheSame:
    maps = np.zeros((5, *SHAPE), np.float32)
    maps[0, 8:11] = 0.9
    maps[1, 5, : SHAPE[1] // 2] = 0.9
    maps[2, 7, 16:19] = 0.9
    maps[3:] = 30.0  # nobody asks, but where somebody is
    maps[3, 7:9, 17], maps[4, 7:9, 17] = 3.0, 4.0
    maps[3:, 7:9, 18] = 0.0
    return SaysTheSame(maps)


def clip() -> Clip:
    """One car, 3 m/s ahead and 4 m/s to the left, in rows 7 and 8, columns 17 and 18; no road at last."""
    made = synthetic_clip(num_frames=3)
    made.ids_TB[:, 1:] = -1
    made.boxes_TB10[:, 0, :2] = 20.0, 0.0
    made.boxes_TB10[:, 0, 3:5] = np.log(4.0)
    made.boxes_TB10[:, 0, 8:10] = 3.0, 4.0
    made.maps_T2YX[0] = 1  # memory fills, nobody looks
    made.maps_T2YX[2, 0] = 0
    return made


def test_maps_are_compared_with_the_labels_of_the_later_half() -> None:
    figures = evaluate_open_loop(network(), Clips(clip()).all())
    assert figures["drivable_iou"] == pytest.approx((2 + 0) / (6 + 3))  # rows
    assert figures["boundary_iou"] == pytest.approx(1 / 2)
    assert figures["occupied_iou"] == pytest.approx(2 / 5)
    assert figures["flow_error_mps"] == pytest.approx((0.0 + 5.0) / 2)
    assert list(figures) == sorted(figures)


def test_what_a_clip_does_not_know_is_held_against_no_map() -> None:
    known = evaluate_open_loop(network(), Clips(clip()).all())
    without_map = replace(clip(), maps_T2YX=np.zeros_like(clip().maps_T2YX), maps_valid=False)
    without_labels = replace(clip(), ids_TB=np.full_like(clip().ids_TB, -1), labels_valid=False)
    together = evaluate_open_loop(network(), Clips(clip(), without_map, without_labels).all())
    neither = evaluate_open_loop(network(), Clips(replace(without_labels, maps_valid=False)).all())
    assert [together[name] for name in MAPS] == pytest.approx([known[name] for name in MAPS])
    assert not set(MAPS) & set(neither)


def test_cells_that_labels_do_not_reach_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataset_module.clip_arrays

    def cut_off(*arguments: Any) -> dict[str, np.ndarray]:
        arrays = whole(*arguments)
        arrays["cells_known"][..., :18] = False
        return arrays

    monkeypatch.setattr(dataset_module, "clip_arrays", cut_off)
    figures = evaluate_open_loop(network(), Clips(clip()).all())
    assert figures["drivable_iou"] == pytest.approx(2 / 9)  # rows are whole, and shorter
    assert figures["boundary_iou"] == 0.0
    assert figures["occupied_iou"] == pytest.approx(1 / 2)
    assert figures["flow_error_mps"] == pytest.approx(5.0)
