"""The parity gate: what an engine may do differently from torch, and what it may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import SMALL, synthetic_clip, untrained_network

from e2e_perception.core.config import EngineConfig, StackConfig
from e2e_perception.core.errors import BundleError, EngineMismatchError, InputError
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.core.rig import find_rig
from e2e_perception.deploy import machine, parity
from e2e_perception.deploy.bundle import ROLLOUT, Bundle, load_bundle, verify_bundle, write_checksums
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import EngineCache
from e2e_perception.deploy.engines import EngineInfo, InferenceEngine, configured_engine, create_engine
from e2e_perception.deploy.parity import (
    COUNTS,
    INVENTED,
    LOST,
    PLAN_ERROR,
    SWAPPED,
    TOLERANCES,
    checked_engine,
    compare,
    excess,
    refusal,
    tolerance_of,
)
from e2e_perception.deploy.rollouts import (
    BLOCK,
    RecordedRollout,
    frames_of_clip,
    generated_frames,
    load_rollout,
    moved_boxes,
    record,
    save_rollout,
)
from e2e_perception.runtime.pipeline import Pipeline

Outputs = dict[str, NDArray[np.float32]]
FRAMES = 4


class Altered:
    """The shipped bundle's engine with changed outputs."""

    def __init__(self, bundle: Bundle, *changes: Callable[[Outputs], object]) -> None:
        self.engine = create_engine(bundle, "onnxruntime", 1)
        self.changes = changes
        self.closed = False

    @property
    def contract(self) -> TensorContract:
        return self.engine.contract

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("altered", "1", "cpu", "float32")

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Outputs:
        outputs = self.engine.infer(inputs)
        for change in self.changes:
            change(outputs)
        return outputs

    def state(self) -> Outputs:
        return self.engine.state()

    def reset_state(self) -> None:
        self.engine.reset_state()

    def close(self) -> None:
        self.closed = True
        self.engine.close()


def sure(outputs: Outputs) -> None:
    """Sixteen strong detections, the others doubtful; the first two tracks are surely the strongest two."""
    scores = outputs["query_scores"]
    order = np.argsort(-scores[0].max(1), kind="stable")
    scores[0, order[:16]] *= 3.0
    scores[0, order[16:]] *= 0.5
    outputs["affinity"][0, :2] = -20.0
    for slot, query in enumerate(order[:2]):
        outputs["affinity"][0, slot, query] = np.log(0.95)


def shuffle_queries(outputs: Outputs) -> None:
    """The same objects in another order, as a ranking in lower precision may give."""
    num_queries = outputs["query_scores"].shape[1]
    order = np.random.default_rng(5).permutation(num_queries)
    for name in parity.PER_QUERY:
        outputs[name] = outputs[name][:, order]
    for name in parity.PER_OBJECT:
        outputs[name][:, :num_queries] = outputs[name][:, order]
    outputs["affinity"][:, :, :num_queries] = outputs["affinity"][:, :, order]


def strongest(outputs: Outputs) -> int:
    return int(outputs["query_scores"][0].max(1).argmax())


def move_strongest(outputs: Outputs) -> None:
    outputs["query_boxes"][0, strongest(outputs), BOX_FIELDS.index("x")] += 5.0


def raise_weakest(outputs: Outputs) -> None:
    """Somebody stands in front of the robot who was not there."""
    weakest = int(outputs["query_scores"][0].max(1).argmin())
    outputs["query_scores"][0, weakest, 0] = 0.99
    outputs["query_boxes"][0, weakest, BOX_FIELDS.index("x")] = 8.0
    outputs["query_boxes"][0, weakest, BOX_FIELDS.index("y")] = 0.0


def raise_a_doubtful_one(outputs: Outputs) -> None:
    """What torch hardly believes in, and records all the same, is sure where it stands."""
    scores = outputs["query_scores"][0].max(1)
    doubtful = int(np.where(scores < 0.25, scores, -1.0).argmax())
    outputs["query_scores"][0, doubtful, 0] = 0.99


def swap_tracks(outputs: Outputs) -> None:
    outputs["affinity"][0, [0, 1]] = outputs["affinity"][0, [1, 0]]


def another_plan(outputs: Outputs) -> None:
    outputs["plan_costs"][0] = -outputs["plan_costs"][0]


def shift(name: str) -> Callable[[Outputs], None]:
    """Move an output by twice its tolerance, where it is compared."""

    def change(outputs: Outputs) -> None:
        value = outputs[name]
        by = 2.0 * TOLERANCES["float32"].outputs[name]
        value += (by * np.maximum(1.0, np.abs(value))).astype(np.float32)

    return change


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return load_bundle("tiny")


@pytest.fixture(scope="module")
def recorded(tiny: Bundle) -> RecordedRollout:
    return record(Altered(tiny, sure), generated_frames(tiny.network, num_frames=FRAMES), tiny.network)


@pytest.fixture(scope="module")
def bundle_dir(tiny: Bundle, recorded: RecordedRollout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, with a rollout that its own engine reproduces."""
    path = tmp_path_factory.mktemp("parity") / "tiny"
    shutil.copytree(tiny.path, path)
    plain = record(
        create_engine(tiny, "onnxruntime", 1), generated_frames(tiny.network, num_frames=FRAMES), tiny.network
    )
    save_rollout(plain, path / "rollout.npz")
    write_checksums(path)
    return path


def differences(
    tiny: Bundle,
    recorded: RecordedRollout,
    *changes: Callable[[Outputs], object],
    least_score: float = 0.0,
) -> dict[str, float]:
    engine = Altered(tiny, sure, *changes)
    return compare(engine, recorded, tiny.network, tiny.cost_weights, least_score=least_score)


def test_an_engine_differs_from_itself_in_nothing(tiny: Bundle, recorded: RecordedRollout) -> None:
    assert set(differences(tiny, recorded).values()) == {0.0}


def test_the_order_of_queries_does_not_count(tiny: Bundle, recorded: RecordedRollout) -> None:
    found = differences(tiny, recorded, shuffle_queries)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", sorted(TOLERANCES["float32"].outputs))
def test_an_output_out_of_tolerance_is_named(tiny: Bundle, recorded: RecordedRollout, name: str) -> None:
    found = differences(tiny, recorded, shift(name))
    assert name in excess(found, TOLERANCES["float32"])
    assert f"{name} " in refusal({**dict.fromkeys(found, 0.0), name: found[name]}, TOLERANCES["float32"])


@pytest.mark.parametrize(
    ("change", "name", "least"),
    [
        (move_strongest, LOST, 1.0),
        (raise_weakest, INVENTED, 1.0),
        (raise_a_doubtful_one, INVENTED, 1.0),
        (swap_tracks, SWAPPED, 2.0),
        (another_plan, PLAN_ERROR, 1.0),
    ],
)
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_a_lost_or_invented_object_a_swapped_identity_and_another_plan_are_mismatches_in_every_precision(
    tiny: Bundle,
    recorded: RecordedRollout,
    change: Callable[[Outputs], None],
    name: str,
    least: float,
    precision: str,
) -> None:
    found = differences(tiny, recorded, change, least_score=TOLERANCES[precision].least_score)
    assert found[name] >= least
    assert name in excess(found, TOLERANCES[precision])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_the_worst_mismatch(
    tiny: Bundle, recorded: RecordedRollout, bad: float
) -> None:
    def spoil(outputs: Outputs) -> None:
        outputs["bev_maps"][0, 0, 3, 3] = bad

    found = differences(tiny, recorded, spoil)
    assert found["bev_maps"] == np.inf
    assert refusal(found, TOLERANCES["float32"]).startswith("bev_maps inf")


def test_a_query_in_two_places_is_matched_once(tiny: Bundle, recorded: RecordedRollout) -> None:
    expected = {name: values[0] for name, values in recorded.outputs.items()}
    scores, boxes = expected["query_scores"][None], expected["query_boxes"][None]
    doubled = {
        "query_scores": np.concatenate([scores, scores], 1),
        "query_boxes": np.concatenate([boxes, boxes], 1),
    }
    chosen = parity.matched_queries(doubled, expected)
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(doubled["query_boxes"][0, chosen], expected["query_boxes"])


def test_a_configured_engine_is_checked_once_per_machine(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(bundle_dir)
    config = EngineConfig(num_threads=1, cache_directory=str(tmp_path / "engines"))
    said: list[str] = []
    first = configured_engine(bundle, config, said.append)
    assert first.info.remark == "checked against torch"
    assert str(first.info).endswith("float32; checked against torch")
    monkeypatch.setattr(parity, "compare", lambda *given, **options: pytest.fail("checked again"))
    assert configured_engine(bundle, config, said.append).info == first.info
    assert said == []


def test_what_was_found_is_of_one_comparison_one_program_and_one_gpu(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache, runs = load_bundle(bundle_dir), EngineCache(tmp_path / "engines"), list[str]()
    engine, device, program = Altered(bundle), "cuda", "compiled"
    monkeypatch.setattr(
        Altered, "info", property(lambda self: EngineInfo("altered", "1", device, "float32", program=program))
    )

    def found_nothing(*given: object, **options: object) -> dict[str, float]:
        runs.append(parity.gpu_names())
        return dict.fromkeys((*TOLERANCES["float32"].outputs, PLAN_ERROR, *COUNTS), 0.0)

    def check() -> int:
        checked_engine(engine, bundle, cache=cache, accept_mismatch=False, log=lambda sentence: None)
        return len(runs)

    monkeypatch.setattr(parity, "compare", found_nothing)
    monkeypatch.setattr(parity, "gpu_names", lambda: "RTX 3090")
    assert (check(), check()) == (1, 1)
    monkeypatch.setattr(parity, "gpu_names", lambda: "RTX 4090")
    assert (check(), check()) == (2, 2)
    monkeypatch.setattr(parity, "COMPARISON_FORMAT", parity.COMPARISON_FORMAT + 1)
    assert (check(), check()) == (3, 3)
    program = "compiled anew"
    assert (check(), check()) == (4, 4)
    device = "cpu"
    assert (check(), check()) == (5, 5)
    monkeypatch.setattr(parity, "gpu_names", lambda: "another driver")
    assert check() == 5  # nothing of a GPU matters to what runs on the processor


def test_gpus_are_named_as_the_system_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bus, model in (("0000:01:00.0", "NVIDIA A"), ("0000:02:00.0", "NVIDIA B")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\n")
    (tmp_path / "version").write_text("NVRM version: 580.1\nGCC version: 13\n")
    monkeypatch.setattr(machine, "_GPUS", tmp_path)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(machine, "_JETSON", tmp_path / "absent")
    expected = "Model: NVIDIA A, Model: NVIDIA B, NVRM version: 580.1 GCC version: 13"
    assert machine.gpu_names.__wrapped__() == expected
    monkeypatch.setattr(machine, "_GPUS", tmp_path / "absent")
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "absent")
    assert machine.gpu_names.__wrapped__() == ""


def test_eight_bits_and_half_precision_may_differ_by_what_eight_bits_may() -> None:
    assert tolerance_of("int8 + float16") is tolerance_of("int8 + bfloat16") is TOLERANCES["int8"]
    with pytest.raises(EngineMismatchError, match="how much int4 may differ from torch; expected float32"):
        tolerance_of("int4")


def test_a_bundle_without_a_recorded_rollout_says_so(tiny: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    config = EngineConfig(num_threads=1, cache_directory=str(tmp_path / "engines"))
    old = Path(shutil.copytree(tiny.path, tmp_path / "old"))
    (old / ROLLOUT).unlink()
    write_checksums(old)
    engine = configured_engine(load_bundle(old), config, said.append)
    assert engine.info.remark == "not checked against torch"
    assert any("records no rollout" in sentence for sentence in said)


def test_an_engine_out_of_tolerance_is_refused_by_its_worst_outputs_unless_that_is_accepted(
    bundle_dir: Path, tmp_path: Path
) -> None:
    bundle, cache, said = load_bundle(bundle_dir), EngineCache(tmp_path / "engines"), list[str]()
    engine = Altered(bundle, shift("heatmap"), another_plan)

    def check(accept: bool) -> InferenceEngine:
        return checked_engine(engine, bundle, cache=cache, accept_mismatch=accept, log=said.append)

    with pytest.raises(
        EngineMismatchError, match=r"plan_costs .* \(allowed 0.0001\), .*engine.accept_mismatch"
    ):
        check(False)
    assert said == []
    accepted = check(True)
    assert "accepted" in said[0]
    assert accepted.info.mismatch.startswith("differs from torch: plan [m] ")
    pipeline = Pipeline(bundle.network, find_rig("tiny"), accepted, StackConfig(), "tiny")
    assert "differs from torch" in pipeline.health(0).backend


def test_configuring_closes_an_engine_that_it_refuses(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(bundle_dir)
    engine = Altered(bundle, another_plan)
    monkeypatch.setattr("e2e_perception.deploy.engines.create_engine", lambda *given, **options: engine)
    config = EngineConfig(cache_directory=str(tmp_path / "engines"))
    with pytest.raises(EngineMismatchError):
        configured_engine(bundle, config, lambda sentence: None)
    assert engine.closed


def test_generated_frames_are_stored_as_their_seed_and_a_clips_frames_whole(
    tiny: Bundle, recorded: RecordedRollout, tmp_path: Path
) -> None:
    save_rollout(recorded, tmp_path / "rollout.npz")
    again = load_rollout(tmp_path / "rollout.npz", tiny.network)
    assert again.frames.seed == 0
    for mine, theirs in zip(again.frames.inputs, recorded.frames.inputs, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(mine[name], value)
    for name, value in recorded.outputs.items():
        np.testing.assert_array_equal(again.outputs[name], value)
    assert (tmp_path / "rollout.npz").stat().st_size < 1_000_000


def clip_rollout() -> RecordedRollout:
    frames = frames_of_clip(synthetic_clip(), SMALL)
    pytest.importorskip("torch", reason="torch is not installed; nothing to record")
    from e2e_perception.deploy.engines.torch_engine import TorchEngine

    return record(TorchEngine(untrained_network(), SMALL, num_threads=1), frames, SMALL)


def test_a_clips_rollout_comes_back_as_it_was(tmp_path: Path) -> None:
    rollout = clip_rollout()
    save_rollout(rollout, tmp_path / "rollout.npz")
    again = load_rollout(tmp_path / "rollout.npz", SMALL)
    assert again.frames.memory_from_base == rollout.frames.memory_from_base
    for mine, theirs in zip(again.frames.inputs, rollout.frames.inputs, strict=True):
        assert set(mine) == set(theirs)
        for name, value in theirs.items():
            np.testing.assert_array_equal(mine[name], value)
            assert mine[name].dtype == value.dtype
    for name, value in rollout.outputs.items():
        np.testing.assert_array_equal(again.outputs[name], value)
    pictures = rollout.frames.inputs[0]["images"][0, 0]
    np.testing.assert_array_equal(pictures[::BLOCK, ::BLOCK], pictures[1::BLOCK, 1::BLOCK])


def test_a_clip_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"images is \(.*size tiny expects"):
        frames_of_clip(synthetic_clip(), load_bundle("tiny").network)


def test_an_interrupt_while_it_is_checked_closes_the_engine(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(outputs: Outputs) -> None:
        raise KeyboardInterrupt

    engine = Altered(load_bundle(bundle_dir), interrupted)
    monkeypatch.setattr("e2e_perception.deploy.engines.create_engine", lambda *given, **options: engine)
    with pytest.raises(KeyboardInterrupt):
        configured_engine(
            load_bundle(bundle_dir), EngineConfig(cache_directory=str(tmp_path)), lambda sentence: None
        )
    assert engine.closed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "no recorded rollout"),
        (lambda data: b"", "no recorded rollout"),
        (lambda data: b"not an archive", "no recorded rollout"),
    ],
)
def test_a_damaged_rollout_is_refused(
    bundle_dir: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    copy = Path(shutil.copytree(bundle_dir, tmp_path / "copy"))
    (copy / "rollout.npz").write_bytes(spoil((copy / "rollout.npz").read_bytes()))
    with pytest.raises(BundleError, match=r"rollout\.npz is damaged"):
        load_bundle(copy)
    write_checksums(copy)
    with pytest.raises(BundleError, match=message):
        verify_bundle(copy)


def without_frames(arrays: dict[str, NDArray[Any]]) -> None:
    arrays["about"] = np.array(json.dumps({**json.loads(str(arrays["about"])), "frames": 0}))
    for name in arrays:
        if name != "about":
            arrays[name] = arrays[name][:0]


def as_type(name: str, dtype: str) -> Callable[[dict[str, NDArray[Any]]], None]:
    def change(arrays: dict[str, NDArray[Any]]) -> None:
        arrays[name] = arrays[name].astype(dtype)

    return change


def with_a(value: float, name: str) -> Callable[[dict[str, NDArray[Any]]], None]:
    def change(arrays: dict[str, NDArray[Any]]) -> None:
        arrays[name] = arrays[name].astype(np.float64 if name == "memory_from_base" else np.float32)
        arrays[name].reshape(-1)[-1] = value

    return change


def cut(name: str) -> Callable[[dict[str, NDArray[Any]]], None]:
    def change(arrays: dict[str, NDArray[Any]]) -> None:
        arrays[name] = arrays[name][:-1]

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_frames, "0 frames, expected at least 1"),
        (with_a(np.nan, "output/plan_costs"), "output 'plan_costs' is not finite"),
        (with_a(np.inf, "output/affinity"), "output 'affinity' is not finite"),
        (as_type("output/plan_sd", "complex64"), "output 'plan_sd' is complex64, expected float16 or"),
        (as_type("output/plan_sd", "U32"), "output 'plan_sd' is <U32, expected float16 or"),
        (with_a(np.nan, "input/lidar_raster"), "input 'lidar_raster' is not finite"),
        (as_type("input/route", "U32"), "input 'route' is <U32"),
        (as_type("input/images", "float32"), "input 'images' is float32, expected uint8"),
        (cut("input/images"), r"input 'images' is \("),
        (cut("memory_from_base"), r"memory_from_base is \(\d+, 3\), expected \(\d+, 3\)"),
        (with_a(np.nan, "memory_from_base"), "memory_from_base is not finite"),
        (lambda arrays: arrays.pop("memory_from_base"), "memory_from_base is missing"),
    ],
)
def test_a_rollout_that_would_let_anything_pass_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, NDArray[Any]]], object], message: str
) -> None:
    save_rollout(clip_rollout(), tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as stored:
        arrays = dict(stored)
    spoil(arrays)
    np.savez(tmp_path / "rollout.npz", **arrays)
    with pytest.raises(BundleError, match=rf"rollout\.npz: {message}"):
        load_rollout(tmp_path / "rollout.npz", SMALL)


def test_a_difference_that_cannot_be_told_is_the_worst(tiny: Bundle, recorded: RecordedRollout) -> None:
    broken = {name: value.copy() for name, value in recorded.outputs.items()}
    broken["heatmap"][0] = np.nan  # and in the frames behind it there is nothing wrong
    found = differences(tiny, replace(recorded, outputs=broken), shift("plan_sd"))
    assert np.isnan(found["heatmap"])
    assert next(iter(excess(found, TOLERANCES["float32"]))) == "heatmap"
    assert refusal(found, TOLERANCES["float32"]).startswith("heatmap nan")


def test_a_rollout_of_another_network_is_refused(recorded: RecordedRollout, tmp_path: Path) -> None:
    save_rollout(recorded, tmp_path / "rollout.npz")
    with pytest.raises(BundleError, match=r"output 'query_scores' is \(4, 32, 5\), expected \(4, 12, 5\)"):
        load_rollout(tmp_path / "rollout.npz", SMALL)


def test_remembered_boxes_move_on_and_are_seen_from_where_the_robot_is_now() -> None:
    from e2e_perception.core.frames import SE2

    box = np.zeros((1, len(BOX_FIELDS)), np.float32)
    named = {"x": 10.0, "y": 2.0, "cos_yaw": 1.0, "vx": 5.0}
    for name, value in named.items():
        box[0, BOX_FIELDS.index(name)] = value
    moved = moved_boxes(box, SE2(1.0, 0.0, np.pi / 2), 0.1)[0]
    got = {name: moved[BOX_FIELDS.index(name)] for name in ("x", "y", "sin_yaw", "cos_yaw", "vx", "vy")}
    expected = {"x": 2.0, "y": -9.5, "sin_yaw": -1.0, "cos_yaw": 0.0, "vx": 0.0, "vy": -5.0}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-5), name
