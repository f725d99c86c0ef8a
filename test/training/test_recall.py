"""Recall by slice: labels are counted once per slice, and found where the network says so."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")

import torch
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import ClipStore, ClipWriter
from e2e_perception.model.network import JointNetwork
from e2e_perception.training import recall as module
from e2e_perception.training.recall import recall_by_slice

SLICES = [{"weather": "rain"}, {"weather": "clear"}]


def store(path: Path) -> ClipStore:
    writer = ClipWriter(path)
    for seed in range(2):
        writer.write(f"{seed:06d}", synthetic_clip(SMALL, seed=seed))
    return writer.finish()


def test_labels_are_counted_in_every_slice_and_found_where_a_detection_lies_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = store(tmp_path)
    rollout = module.rollout

    def finds_cars_in_rain(model, batch, **options):  # type: ignore[no-untyped-def]
        result = rollout(model, batch, **options)
        rain = bool((batch["boxes"][0, 0] == torch.from_numpy(clips.read(0).boxes_TB10[0])).all())
        for t, frame in enumerate(result.frames):
            frame["query_scores"] = torch.zeros_like(frame["query_scores"])
            cars = torch.nonzero(batch["present"][0, t] & (batch["class_ids"][0, t] == 0))[:, 0]
            for q, slot in enumerate(cars.tolist() if rain else []):
                frame["query_scores"][0, q, 0] = 0.9
                frame["query_boxes"][0, q] = batch["boxes"][0, t, slot]
        return result

    monkeypatch.setattr(module, "rollout", finds_cars_in_rain)
    torch.manual_seed(0)
    told = recall_by_slice(JointNetwork(SMALL), [(clips, 0), (clips, 1)], SLICES)
    # Two cars and a pedestrian in the later two frames of each clip.
    assert (told["class"]["car"].labels, told["class"]["car"].found) == (8, 4)
    assert (told["class"]["pedestrian"].labels, told["class"]["pedestrian"].found) == (4, 0)
    assert told["weather"]["rain"].share == pytest.approx(4 / 6) and told["weather"]["clear"].share == 0.0
    for values in told.values():
        assert sum(r.labels for r in values.values()) == 12
        assert sum(r.found for r in values.values()) == 4


def test_without_labelled_clips_nothing_is_told() -> None:
    with pytest.raises(InputError, match="no labelled clips"):
        recall_by_slice(JointNetwork(SMALL), [], [])
