"""The training loop: it learns, resumes to the very same weights, and refuses what it cannot trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.data.dataset import ClipDataset, Dropout, clip_arrays, mirrored, with_dropout
from e2e_perception.training import config as training_config
from e2e_perception.training.checkpoint import STATE, load_checkpoint, model_from_checkpoint
from e2e_perception.training.config import TrainingConfig, load_training_config
from e2e_perception.training.evaluate import evaluate_open_loop
from e2e_perception.training.loop import train


class MemoryStore:
    """Clips in memory, with the interface of a clip store."""

    def __init__(self, num_clips: int = 6) -> None:
        self.path = Path("memory")
        self.digest = f"memory-{num_clips}"
        self.clips = [synthetic_clip(seed=i, num_frames=3) for i in range(num_clips)]

    def indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.clips)) if split == "train" else np.arange(min(2, len(self.clips)))

    def read(self, index: int) -> Clip:
        return self.clips[index]


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_config.SIZES, "small_test", SMALL)


def run_config(**changes: Any) -> TrainingConfig:
    values = {"size": "small_test", "steps": 8, "batch_clips": 2, "warmup_steps": 2, "checkpoint_every": 100}
    return TrainingConfig.model_validate({**values, **changes})


def test_stopping_and_resuming_gives_the_same_weights_as_going_through(tmp_path: Path) -> None:
    store: Any = MemoryStore()
    train(store, tmp_path / "through", run_config())
    assert train(store, tmp_path / "resumed", run_config(), stop_after=5) == 5
    torch.manual_seed(999)  # whatever else the process did in between
    assert train(store, tmp_path / "resumed", run_config()) == 8
    through, resumed = (load_checkpoint(tmp_path / name) for name in ("through", "resumed"))
    assert through.tensors.keys() == resumed.tensors.keys()
    for name, value in through.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "resumed" / "losses.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 9))


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    store: Any = MemoryStore()
    train(store, tmp_path / "first", run_config(steps=2))
    gentle = run_config(steps=1, init=str(tmp_path / "first"), learning_rate=1e-12, warmup_steps=0)
    train(store, tmp_path / "second", gentle)
    first, second = (load_checkpoint(tmp_path / name) for name in ("first", "second"))
    for name, weight in first.tensors.items():
        if name.startswith("average/") and "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second.tensors["model/" + name[8:]], weight, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="no checkpoint in"):
        train(store, tmp_path / "third", run_config(init=str(tmp_path / "absent")))


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    store: Any = MemoryStore(2)
    train(store, tmp_path, run_config(steps=2))
    before = (tmp_path / STATE).read_bytes()
    assert train(store, tmp_path, run_config(steps=2)) == 2
    assert (tmp_path / STATE).read_bytes() == before


def test_another_configuration_or_dataset_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    store: Any = MemoryStore(2)
    train(store, tmp_path, run_config(steps=2))
    with pytest.raises(InputError, match="another configuration"):
        train(store, tmp_path, run_config(steps=3))
    other: Any = MemoryStore(3)
    with pytest.raises(InputError, match="another dataset digest"):
        train(other, tmp_path, run_config(steps=2))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    store: Any = MemoryStore(2)
    train(store, tmp_path, run_config(steps=1))
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nothing")


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    store: Any = MemoryStore(0)
    with pytest.raises(InputError, match="no clips of the split `train`"):
        train(store, tmp_path, run_config())


@pytest.mark.slow
def test_training_improves_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    store: Any = MemoryStore(4)
    train(store, tmp_path, run_config(steps=120, batch_clips=4, ema=0.9, sensor_dropout=False))
    trained = model_from_checkpoint(load_checkpoint(tmp_path))
    torch.manual_seed(0)
    untrained = type(trained)(SMALL)
    before = evaluate_open_loop(untrained, store, split="train")
    after = evaluate_open_loop(trained, store, split="train")
    assert after["f1"] > max(0.8, before["f1"])
    assert after["association_accuracy"] > 0.9
    assert after["plan_l2_3s_m"] < before["plan_l2_3s_m"]
    blind = evaluate_open_loop(trained, store, split="train", control="no_sensors")
    assert blind["recall"] < after["recall"]


def test_mirroring_twice_is_the_identity_and_once_moves_left_to_right() -> None:
    arrays = clip_arrays(synthetic_clip(seed=3), SMALL)
    once = mirrored(arrays, SMALL)
    twice = mirrored(once, SMALL)
    for name, value in arrays.items():
        np.testing.assert_allclose(
            np.asarray(twice[name], float), np.asarray(value, float), atol=1e-4, err_msg=name
        )
    np.testing.assert_allclose(once["boxes"][..., 1], -arrays["boxes"][..., 1])
    # A point and its mirror image project to mirrored pixels of the exchanged camera.
    point, image = np.array([15.0, 3.0, 1.0, 1.0]), np.array([15.0, -3.0, 1.0, 1.0])
    left, right = SMALL.cameras.index("left"), SMALL.cameras.index("right")
    u = arrays["image_from_base"][0, left] @ point
    v = once["image_from_base"][0, right] @ image
    np.testing.assert_allclose(v[0] / v[2], SMALL.image_width - 1 - u[0] / u[2], rtol=1e-4)


def test_dropout_never_leaves_the_network_without_lidar_and_without_cameras() -> None:
    arrays = clip_arrays(synthetic_clip(), SMALL)
    dropout = Dropout(lidar=0.5, camera=0.2, all_cameras=0.5, radar=0.5, memory=0.5)
    lost = {"lidar": 0, "cameras": 0, "radar": 0}
    for seed in range(200):
        out = with_dropout(arrays, dropout, np.random.default_rng(seed))
        no_lidar = (out["lidar_valid"].max(1) == 0).any()
        no_cameras = (out["camera_valid"].max(1) == 0).any()
        assert not (no_lidar and no_cameras)
        lost["lidar"] += no_lidar
        lost["cameras"] += no_cameras
        lost["radar"] += (out["radar_valid"].max(1) == 0).any()
    assert min(lost.values()) > 20
    assert arrays["lidar_valid"].all(), "the clip itself must not change"


def test_the_same_index_gives_the_same_augmentation_and_the_next_epoch_another() -> None:
    store: Any = MemoryStore(2)
    dataset = ClipDataset(store, np.arange(2), SMALL, seed=1, mirror=True, dropout=Dropout(radar=0.5))
    first, again = dataset[0], dataset[0]
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    epochs = [dataset[2 * i] for i in range(12)]
    sides = {float(e["boxes"][0, 1, 1]) > 0 for e in epochs}
    assert sides == {True, False}


def test_a_training_configuration_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 10\nweights: {heat: 2.0}\n")
    assert load_training_config(path).weights.heat == 2.0
    for text, message in (
        ("stepz: 10", "stepz: Extra inputs are not permitted"),
        ("steps: -1", "steps: Input should be greater than 0"),
        ("steps: [", "is not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_training_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_training_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="unknown network size 'huge'"):
        _ = run_config(size="huge").network
