"""The training loop: it learns, resumes to the very same weights, and refuses what it cannot trust."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import MemoryStore, log_of, run_config, stages
from synthetic import SMALL, synthetic_clip
from torch import nn

from e2e_perception.core.errors import InputError, TrainingError
from e2e_perception.core.provenance import git_commit
from e2e_perception.data.augmentation import Degradations
from e2e_perception.data.clip_store import ClipStore, ClipWriter
from e2e_perception.data.dataset import (
    Augmentation,
    ClipDataset,
    Dropout,
    clip_arrays,
    with_dropout,
)
from e2e_perception.model.network import JointNetwork
from e2e_perception.training import config as training_config
from e2e_perception.training import loop as loop_module
from e2e_perception.training.checkpoint import (
    STATE,
    WEIGHTS,
    first_weights,
    load_checkpoint,
    model_from_checkpoint,
)
from e2e_perception.training.config import (
    LossWeights,
    OnPolicy,
    Stage,
)
from e2e_perception.training.evaluate import evaluate_open_loop, partners
from e2e_perception.training.loop import train
from e2e_perception.training.rollout import rollout
from e2e_perception.training.run import Run
from e2e_perception.training.run_log import StepReport
from e2e_perception.training.schedule import Source, pool


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = load_checkpoint(first), load_checkpoint(second)
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name]), name


TWO_STAGES = {
    "stages": [
        {"name": "first", "steps": 4, "clip_length": 2, "boost": [1.0, 0.5]},
        {"name": "second", "steps": 4, "degradation": 0.5, "adversarial": 0.5, "cross_modal": 0.5},
    ]
}


@pytest.mark.parametrize("method", ["fixed", "uncertainty", "gradnorm", "pcgrad"])
def test_stopping_and_resuming_gives_the_same_weights_as_going_through(tmp_path: Path, method: str) -> None:
    config = run_config(**TWO_STAGES, balancing={"method": method})
    train([MemoryStore()], tmp_path / "through", config)
    assert train([MemoryStore()], tmp_path / "resumed", config, stop_after=5) == 5
    torch.manual_seed(999)  # whatever else the process did in between
    assert train([MemoryStore()], tmp_path / "resumed", config) == 8
    assert_same_weights(tmp_path / "through", tmp_path / "resumed")
    lines = [line for line in log_of(tmp_path / "resumed") if "losses" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["stage"] for line in lines] == ["first"] * 4 + ["second"] * 4


def killed_run(out: Path) -> None:
    """A process that trains until it is killed; at the top level, for `spawn`."""
    training_config.SIZES["small_test"] = SMALL
    train([MemoryStore()], out, run_config(40, checkpoint_every=4))


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = run_config(40, checkpoint_every=4)
    torch.set_num_threads(1)
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=(tmp_path / "killed",))
    process.start()
    deadline = time.monotonic() + 120.0
    while not (tmp_path / "killed" / STATE).is_file():
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    reached = load_checkpoint(tmp_path / "killed").step
    assert 4 <= reached < 40
    train([MemoryStore()], tmp_path / "killed", config)
    train([MemoryStore()], tmp_path / "through", config)
    assert_same_weights(tmp_path / "through", tmp_path / "killed")
    steps = [line["step"] for line in log_of(tmp_path / "killed") if "losses" in line]
    assert steps == list(range(1, 41)), "the lines after the last checkpoint were written again, once"


def test_a_stage_ends_early_once_its_condition_holds_and_waits_for_that_of_the_next(tmp_path: Path) -> None:
    early = {"name": "early", "steps": 20, "exit": {"loss": "heat", "below": 1e9, "after": 3}}
    patient = {"name": "patient", "steps": 2, "entry": {"loss": "heat", "below": -1.0}, "entry_wait": 4}
    done = train([MemoryStore()], tmp_path, run_config(stages=[early, patient]))
    names = [line["stage"] for line in log_of(tmp_path) if "losses" in line]
    # `early` may go after 3, but `patient` does not let it; at 20 + 4 the waiting ends. An exit outranks it.
    assert names == ["early"] * 3 + ["patient"] * 2
    assert done == 5
    slow = {"name": "slow", "steps": 3}
    train([MemoryStore()], tmp_path / "waiting", run_config(stages=[slow, patient]))
    names = [line["stage"] for line in log_of(tmp_path / "waiting") if "losses" in line]
    assert names == ["slow"] * 7 + ["patient"] * 2


def test_a_leaping_loss_rolls_the_run_back_and_goes_on_with_other_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepReport] = []
    real = loop_module.rollout
    calls = 0

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs)
        if calls == 5:
            result.losses["heat"] = result.losses["heat"] * torch.nan
        return result

    monkeypatch.setattr(loop_module, "rollout", poisoned)
    config = run_config(8, checkpoint_every=3)
    assert train([MemoryStore()], tmp_path, config, report=seen.append) == 8
    events = [(report.step, bool(report.event)) for report in seen]
    # The fifth batch leaps; the run goes back to step 3, and the batches after the fifth follow.
    assert events == [(1, False), (2, False), (3, False), (4, False), (3, True)] + [
        (n, False) for n in range(4, 9)
    ]
    weights = load_checkpoint(tmp_path).part("model")
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_a_finite_spike_rolls_back_once_the_mean_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The third comes before a judgement and raises the mean to 0.98 + 0.02 * 9 = 1.16. The fourth is within
    # four times that, 4.64, and raises it to 1.2288: the fifth is above 4.9152. The sixth is not.
    totals = iter([1.0, 1.0, 9.0, 4.63, 4.93, 4.9, 1.0])
    weights = LossWeights().model_dump()
    real = loop_module.rollout

    def of_known_total(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        total = sum(weights[name] * float(value.detach()) for name, value in result.losses.items())
        share = next(totals) / total
        for name, value in result.losses.items():
            result.losses[name] = share * value
        return result

    monkeypatch.setattr(loop_module, "rollout", of_known_total)
    seen: list[StepReport] = []
    config = run_config(6, checkpoint_every=1, guard={"factor": 4.0, "after": 3})
    train([MemoryStore()], tmp_path, config, report=seen.append)
    assert [(report.step, bool(report.event)) for report in seen] == [
        *((n, False) for n in range(1, 5)),
        (4, True),
        (5, False),
        (6, False),
    ]
    assert seen[4].total == pytest.approx(4.93, rel=1e-4)


def test_a_state_can_be_restored_more_than_once() -> None:
    run = Run(run_config(8), torch.device("cpu"), [MemoryStore().digest])

    def step(gradient: float) -> None:
        for parameter in run.model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        run.optimizer.step()
        run.progress.step += 1
        run.progress.observe({"total": gradient})

    step(1.0)
    good = run.checkpoint()
    kept = {name: value.clone() for name, value in good.tensors.items()}
    for _ in range(2):
        step(1e6)  # a finite leap moves weights, moments and means
        run.restore(good)
        now = run.checkpoint()
        assert now.facts["progress"] == good.facts["progress"]
        assert now.facts["progress"]["step"] == 1 and now.facts["progress"]["means"] == {"total": 1.0}
        for name, value in kept.items():
            assert torch.equal(now.tensors[name], value), name


def test_a_resumed_run_needs_what_it_began_with_no_more(tmp_path: Path) -> None:
    train([MemoryStore()], tmp_path / "first", run_config(2))
    config = run_config(3, init=str(tmp_path / "first"))
    train([MemoryStore()], tmp_path / "second", config, stop_after=1)
    (tmp_path / "first").rename(tmp_path / "away")
    assert train([MemoryStore()], tmp_path / "second", config) == 3


def test_clips_of_another_size_of_pictures_are_refused() -> None:
    other = SMALL.model_copy(update={"image_width": 2 * SMALL.image_width, "size": "wider"})
    with pytest.raises(InputError, match=r"size wider takes .*simulate --size wider"):
        clip_arrays(synthetic_clip(seed=0), other)


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop_module.rollout

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        heat = result.losses["heat"]
        # The root of nothing is 0 and has an infinite slope.
        result.losses["heat"] = heat + (heat - heat.detach()).clamp(min=0.0).sqrt()
        return result

    monkeypatch.setattr(loop_module, "rollout", poisoned)
    with pytest.raises(TrainingError, match="the gradient is not finite at step 0"):
        train([MemoryStore()], tmp_path, run_config(guard={"most": 1}))


def test_clips_without_labels_teach_to_plan_and_nothing_of_others() -> None:
    """An empty list of objects would otherwise say that nobody is there."""
    torch.manual_seed(0)
    model = JointNetwork(SMALL)
    made = synthetic_clip(seed=1)
    nobody = replace(
        made,
        ids_TB=np.full_like(made.ids_TB, -1),
        weights_TB=np.zeros_like(made.weights_TB),
        futures_valid_TBS=np.zeros_like(made.futures_valid_TBS),
        maps_valid=False,
        labels_valid=False,
    )
    arrays = clip_arrays(nobody, SMALL)
    batch = {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in arrays.items()}
    losses = rollout(model, batch, boost=0.0).losses
    of_plans = {"plan", "plan_offset", "plan_comfort"}
    for name, value in losses.items():
        assert (float(value.detach()) > 0.0) == (name in of_plans), name
    heat = torch.autograd.grad(losses["heat"], list(model.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in heat)


def test_shuffled_clips_get_another_scenarios_sensors() -> None:
    scenarios = ["b/1"] * 3 + ["a/1"] * 4 + ["c/7"] * 2
    found = partners(scenarios)
    assert sorted(found.tolist()) == list(range(9))
    assert all(scenarios[i] != scenarios[j] for i, j in enumerate(found.tolist()))
    assert partners(["a"]).tolist() == [0]


def test_labels_do_not_say_what_is_remembered_in_an_evaluation() -> None:
    torch.manual_seed(0)
    model = JointNetwork(SMALL).eval()
    arrays = clip_arrays(synthetic_clip(seed=1), SMALL)
    batch = {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in arrays.items()}
    with torch.no_grad():
        taught = rollout(model, batch, boost=1.0, with_losses=False)
        alone = rollout(model, batch, boost=1.0, with_losses=False, as_on_robot=True)
    # Untrained, it is sure of nothing: its scores are below those of a birth.
    assert max(float(frame["query_scores"].max()) for frame in alone.frames) < 0.5
    assert any((ids >= 0).any() for ids in taught.memory_ids)
    assert not any((ids >= 0).any() for ids in alone.memory_ids)


def test_a_loss_that_keeps_leaping_ends_the_run_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_module.rollout

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result.losses["motion"] = result.losses["motion"] * torch.nan
        return result

    monkeypatch.setattr(loop_module, "rollout", poisoned)
    with pytest.raises(TrainingError, match=r"not finite \(motion\) at step 0 .* after 2 rollbacks"):
        train([MemoryStore()], tmp_path, run_config(guard={"most": 2}))


def test_harder_scenarios_wait_for_their_stage(tmp_path: Path) -> None:
    easy, hard = MemoryStore(2, difficulty=0.2), MemoryStore(3, difficulty=0.8)
    sources = [Source(easy), Source(hard, repeat=2)]
    assert len(pool(sources, Stage(name="a", steps=1, difficulty=0.5))) == 2
    assert len(pool(sources, Stage(name="b", steps=1))) == 2 + 2 * 3
    with pytest.raises(InputError, match=r"difficulty of at most 0\.1"):
        pool(sources, Stage(name="c", steps=1, difficulty=0.1))


def test_on_policy_stages_train_on_what_the_network_drove(tmp_path: Path) -> None:
    driven: list[Path] = []

    def collect(model: Any, wanted: OnPolicy, directory: Path) -> Any:
        assert not model.training
        if not (directory / "index.parquet").is_file():
            driven.append(directory)
            writer = ClipWriter(directory)
            writer.write("a", replace(synthetic_clip(seed=77, num_frames=3), scenario="made/1"))
            writer.finish()
        return ClipStore(directory)

    practise = {"name": "practise", "steps": 4, "on_policy": {"repeat": 3}}
    config = run_config(stages=[*stages(2), practise])
    train([MemoryStore()], tmp_path, config, collect=collect, stop_after=4)
    train([MemoryStore()], tmp_path, config, collect=collect)
    assert driven == [tmp_path / "on-policy" / "1-practise"], "made once, found again on resume"
    facts = load_checkpoint(tmp_path).facts
    digests = facts["dataset_digests"]
    assert facts["git_commit"] == git_commit()
    assert digests == [MemoryStore().digest, ClipStore(driven[0]).digest]
    with pytest.raises(InputError, match="nobody to drive"):
        train([MemoryStore()], tmp_path / "other", config)


def test_modules_without_a_gradient_do_not_bring_another_device_in() -> None:
    meta = torch.device("meta")
    model = nn.Sequential(nn.Linear(2, 2, device=meta), nn.Linear(2, 2, device=meta))
    first = model[0].weight
    first.grad = torch.zeros_like(first)
    assert loop_module.clip_by_module(model, 1.0, meta).device == meta


def test_half_precision_and_recomputation_train_too(tmp_path: Path) -> None:
    seen: list[StepReport] = []
    train([MemoryStore()], tmp_path, run_config(2, precision="bfloat16"), report=seen.append)
    assert all(np.isfinite(report.total) for report in seen)
    plain: list[StepReport] = []
    train([MemoryStore()], tmp_path / "plain", run_config(2), report=plain.append)
    recomputed: list[StepReport] = []
    train([MemoryStore()], tmp_path / "re", run_config(2, recompute=True), report=recomputed.append)
    assert recomputed[0].total == pytest.approx(plain[0].total, rel=1e-6)
    assert recomputed[1].total == pytest.approx(plain[1].total, rel=1e-3)
    assert seen[0].total == pytest.approx(plain[0].total, rel=0.1)


def test_recomputing_the_encoder_changes_nothing_that_is_saved(tmp_path: Path) -> None:
    """Batch norms would count every batch twice."""
    for name, recompute in (("plain", False), ("again", True)):
        train([MemoryStore()], tmp_path / name, run_config(1, recompute=recompute))
    plain, again = (load_checkpoint(tmp_path / name).part("model") for name in ("plain", "again"))
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_float16_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"float16 needs a GPU.*bfloat16"):
        train([MemoryStore()], tmp_path, run_config(1, precision="float16"))
    assert not any(tmp_path.iterdir())


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation)
    with pytest.raises(InputError, match=r"bfloat16: this GPU does not support it; take float16 or float32"):
        Run(run_config(1, precision="bfloat16"), torch.device("cuda"), [])
    Run(run_config(1, precision="bfloat16"), torch.device("cpu"), [])


def test_evaluation_starts_the_map_memory_anew_as_often_as_the_robot_does() -> None:
    torch.manual_seed(0)
    clips = ClipDataset([(MemoryStore(1), 0)], SMALL, seed=0)
    batch = torch.utils.data.default_collate([clips[0]])

    def features(memory_frames: int, as_on_robot: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = JointNetwork(SMALL.model_copy(update={"memory_frames": memory_frames})).eval()
        with torch.no_grad():
            frames = rollout(model, batch, boost=0.0, with_losses=False, as_on_robot=as_on_robot).frames
        return [frame["bev_memory_next"] for frame in frames]

    whole, short, training = features(3, True), features(2, True), features(2, False)
    assert torch.equal(whole[1], short[1])
    assert not torch.equal(whole[2], short[2])
    assert torch.equal(training[2], whole[2])


def test_curves_go_to_mlflow_and_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    train([MemoryStore()], tmp_path / "run", run_config(20), stop_after=10, tracking_uri=uri)
    train([MemoryStore()], tmp_path / "run", run_config(20), tracking_uri=uri)
    mlflow.set_tracking_uri(uri)
    runs = mlflow.search_runs(experiment_names=["e2e_perception"], output_format="list")
    assert len(runs) == 1
    history = mlflow.MlflowClient().get_metric_history(runs[0].info.run_id, "loss/heat")
    assert [point.step for point in history] == [10, 20]
    numbers = {field.name for field in fields(StepReport) if field.type == "float"}
    assert numbers <= runs[0].data.metrics.keys()
    assert runs[0].data.metrics["memory_mb"] > 0.0
    assert runs[0].data.params["size"] == "small_test"


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    train([MemoryStore()], tmp_path / "first", run_config(2))
    gentle = run_config(1, init=str(tmp_path / "first"), learning_rate=1e-12, warmup_steps=0)
    train([MemoryStore()], tmp_path / "second", gentle)
    assert log_of(tmp_path / "second")[0] == {"step": 0, "init": str(tmp_path / "first"), "fresh": []}
    first, second = (load_checkpoint(tmp_path / name) for name in ("first", "second"))
    for name, weight in first.part("average").items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second.part("model")[name], weight, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="no checkpoint at"):
        train([MemoryStore()], tmp_path / "third", run_config(init=str(tmp_path / "absent")))


def test_weights_of_another_network_are_no_start_but_those_that_fit_are(tmp_path: Path) -> None:
    wider = SMALL.model_copy(update={"plan_accelerations": (*SMALL.plan_accelerations, 2.5), "num_modes": 2})
    training_config.SIZES["wider"] = wider
    try:
        train([MemoryStore()], tmp_path / "small", run_config(1))
        model = JointNetwork(wider)
        state, fresh = first_weights(tmp_path / "small", model)
        assert fresh == ["motion.out.3.weight", "motion.out.3.bias"]
        assert state.keys() == model.state_dict().keys()
        widths = {
            "bev_channels": 24,
            "camera_channels": 24,
            "token_channels": 48,
            "coarse_channels": (24, 32),
        }
        other = JointNetwork(SMALL.model_copy(update={**widths, "num_heads": 2}))
        with pytest.raises(InputError, match="parameters fit size small_test"):
            first_weights(tmp_path / "small", other)
    finally:
        del training_config.SIZES["wider"]


def test_a_run_can_start_from_a_shipped_bundle_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state, fresh = first_weights(Path("tiny"), JointNetwork(training_config.SIZES["tiny"]))
    assert fresh == []
    bundle = load_file(Path(__file__).resolve().parents[2] / "resource" / "bundles" / "tiny" / WEIGHTS)
    assert all(torch.equal(state[name], tensor) for name, tensor in bundle.items())


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train([MemoryStore(2)], tmp_path, run_config(2))
    before = (tmp_path / STATE).read_bytes()
    assert train([MemoryStore(2)], tmp_path, run_config(2)) == 2
    assert (tmp_path / STATE).read_bytes() == before


def test_another_configuration_or_dataset_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    train([MemoryStore(2)], tmp_path, run_config(2))
    with pytest.raises(InputError, match=r"another configuration \(stages\)"):
        train([MemoryStore(2)], tmp_path, run_config(3))
    with pytest.raises(InputError, match="another dataset digest"):
        train([MemoryStore(3)], tmp_path, run_config(2))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    train([MemoryStore(2)], tmp_path, run_config(1))
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clips of the split `train`"):
        train([MemoryStore(0)], tmp_path / "run", run_config())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_improves_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    store = MemoryStore(4)
    settings = {"batch_clips": 4, "ema": 0.9, "stages": stages(150, dropout=0.0)}
    train([store], tmp_path, run_config(**settings))
    trained = model_from_checkpoint(load_checkpoint(tmp_path))
    torch.manual_seed(0)
    untrained = type(trained)(SMALL)
    before = evaluate_open_loop(untrained, store.all())
    after = evaluate_open_loop(trained, store.all())
    assert after["f1"] > max(0.8, before["f1"])
    assert after["association_accuracy"] > 0.9
    assert after["plan_l2_3s_m"] < before["plan_l2_3s_m"]
    blind = evaluate_open_loop(trained, store.all(), control="no_sensors")
    assert blind["recall"] < after["recall"]


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
    augmentation = Augmentation(mirror=True, dropout=Dropout(radar=0.5), degradations=Degradations())
    dataset = ClipDataset(MemoryStore(2).all(), SMALL, seed=1, augmentation=augmentation)
    first, again = dataset[0], dataset[0]
    for name, value in first.items():
        torch.testing.assert_close(value, again[name], rtol=0.0, atol=0.0, equal_nan=True, msg=name)
    epochs = [dataset[2 * i] for i in range(12)]
    sides = {float(e["boxes"][0, 1, 1]) > 0 for e in epochs}
    assert sides == {True, False}


def test_a_configured_turn_reaches_the_network_and_without_a_chance_nothing_does(tmp_path: Path) -> None:
    totals = {}
    for name, bev in (
        ("never", {}),
        ("no-chance", {"rotation_degrees": 30.0, "ego_pose_metres": 1.0, "calibration_degrees": 5.0}),
        ("turned", {"rotation": 1.0, "rotation_degrees": 30.0}),
        ("unsteady", {"ego_pose": 1.0, "ego_pose_metres": 1.0}),
        ("off", {"calibration": 1.0, "calibration_degrees": 5.0}),
    ):
        train([MemoryStore(2)], tmp_path / name, run_config(1, bev=bev))
        totals[name] = next(row["total"] for row in log_of(tmp_path / name) if "total" in row)

    assert totals["no-chance"] == totals["never"]
    assert len({totals[name] for name in ("never", "turned", "unsteady", "off")}) == 4


def test_a_stretch_of_a_clip_begins_without_memory() -> None:
    dataset = ClipDataset(MemoryStore(1).all(), SMALL, augmentation=Augmentation(clip_length=2))
    whole = ClipDataset(MemoryStore(1).all(), SMALL)[0]
    starts = set()
    for epoch in range(8):
        clip = dataset[epoch]
        assert len(clip["boxes"]) == 2
        assert clip["memory_valid"][:, 0].tolist() == [0.0, 1.0]
        starts |= {t for t in (0, 1) if torch.equal(clip["boxes"][0], whole["boxes"][t])}
    assert starts == {0, 1}
