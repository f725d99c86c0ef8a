"""Bundles: a good one loads, and every way to damage one is refused with a sentence that names it."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import SMALL, synthetic_clip, untrained_network

from e2e_perception.cli.main import main
from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import (
    BundleError,
    ContractError,
    EngineMismatchError,
    EngineUnavailableError,
)
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.core.rig import Camera, Lidar, Mount, Rig
from e2e_perception.deploy import engines
from e2e_perception.deploy.bundle import ROLLOUT, load_bundle, verify_bundle, write_checksums
from e2e_perception.deploy.engines import InferenceEngine, backend_report, configured_engine, create_engine
from e2e_perception.deploy.engines.torch_engine import bundle_network
from e2e_perception.deploy.export import (
    PARITY_TOLERANCE,
    export_bundle,
    export_onnx,
    graph_digest,
    rollout_difference,
    with_rollout,
)
from e2e_perception.deploy.exporter_noise import LEAF_SPEC, REGISTRATION, SKIPPED, without_exporter_noise
from e2e_perception.deploy.parity import compare
from e2e_perception.deploy.rollouts import (
    RecordedRollout,
    frames_of_clip,
    generated_frames,
    load_rollout,
    random_inputs,
)
from e2e_perception.model.network import JointNetwork

RIG = Rig(
    name="test",
    sensors=(
        Camera(
            name="front", topic="/camera", frame_id="camera", mount=Mount(xyz=(1.0, 0.0, 1.5)),
            width=96, height=64, fx_px=48.0, fy_px=48.0, cx_px=48.0, cy_px=32.0,
        ),
        Lidar(name="top", topic="/lidar", frame_id="lidar", mount=Mount(xyz=(1.0, 0.0, 1.8))),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(
        untrained_network(), out, name="small", rig=RIG, evaluation={"f1": 0.0}, provenance={"seed": 0}
    )
    return out


def test_an_exported_bundle_records_what_torch_makes_of_some_frames(bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    assert bundle.rollout_path is not None
    assert "generated, seed" in dict(verify_bundle(bundle_dir))["recorded rollout"]
    recorded = load_rollout(bundle.rollout_path, SMALL)
    found = compare(create_engine(bundle, "torch", 0), recorded, SMALL, bundle.cost_weights)
    assert max(found.values()) < 1e-6, found


def test_torch_refuses_a_bundle_that_another_version_of_the_network_made(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(bundle_dir)
    config = EngineConfig(bundle=str(bundle_dir), backend="torch", num_threads=1)
    assert configured_engine(bundle, config, lambda _: None).info.mismatch == ""
    bundle_network(bundle, print)
    monkeypatch.setattr("e2e_perception.model.network.GUESS_STD", 0.1)
    with pytest.raises(EngineMismatchError, match=r"another version of the network.*--backend onnxruntime"):
        configured_engine(bundle, config, lambda _: None)
    with pytest.raises(EngineMismatchError, match=r"another version of the network"):
        bundle_network(bundle, print)
    accepted = configured_engine(bundle, config.model_copy(update={"accept_mismatch": True}), lambda _: None)
    assert "accepted" in accepted.info.mismatch
    onnxruntime = config.model_copy(update={"backend": "onnxruntime"})
    assert configured_engine(bundle, onnxruntime, lambda _: None).info.mismatch == ""


def test_a_bundle_without_a_rollout_loads_and_one_can_be_recorded(bundle_dir: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(bundle_dir, tmp_path / "old"))
    (old / ROLLOUT).unlink()
    write_checksums(old)
    assert load_bundle(old).rollout_path is None
    assert "cannot be checked" in dict(verify_bundle(old))["recorded rollout"]
    frames = frames_of_clip(synthetic_clip(), SMALL)
    with_rollout(load_bundle(old), tmp_path / "new", [frames])
    new = load_bundle(tmp_path / "new")
    assert new.rollout_path is not None
    assert load_rollout(new.rollout_path, SMALL).frames.source == frames.source
    assert new.model_path.read_bytes() == (old / "model.onnx").read_bytes()


def test_frames_in_which_rounding_decides_are_not_recorded(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsettled, settled = (generated_frames(SMALL, num_frames=2, seed=seed) for seed in (1, 2))

    def judged(
        engine: InferenceEngine, recorded: RecordedRollout, *given: Any, **options: Any
    ) -> dict[str, float]:
        jump = 0.01 if recorded.frames.seed == 1 else 0.0
        return {**compare(engine, recorded, *given, **options), "object_futures": jump}

    monkeypatch.setattr("e2e_perception.deploy.export.compare", judged)
    recorded = with_rollout(load_bundle(bundle_dir), tmp_path / "new", [unsettled, settled])
    assert recorded.frames.seed == 2
    with pytest.raises(EngineMismatchError, match=r"each of 1 rollouts, the last by object_futures 0.01"):
        with_rollout(load_bundle(bundle_dir), tmp_path / "newer", [unsettled])
    assert not (tmp_path / "newer").exists()


@pytest.fixture
def copy(bundle_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, tmp_path / "copy"))


def test_a_bundle_loads_and_says_what_it_is(bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    assert bundle.name == "small"
    assert bundle.network == SMALL
    assert bundle.rig == RIG
    assert dict(verify_bundle(bundle_dir))["schema"] == "version 1"
    assert "not been validated" in (bundle_dir / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_every_backend_agrees_with_torch_over_a_rollout_with_state_fed_back(
    bundle_dir: Path, backend: str
) -> None:
    bundle = load_bundle(bundle_dir)
    worst = rollout_difference(
        create_engine(bundle, backend, 1), create_engine(bundle, "torch", 1), SMALL, num_frames=12, seed=3
    )
    assert set(worst) == set(bundle.contract.output_names) - {"bev_memory_next"}
    assert max(worst.values()) <= PARITY_TOLERANCE, worst


class Said:
    """An engine that says one thing of every frame."""

    def __init__(self, engine: InferenceEngine, outputs: dict[str, np.ndarray]) -> None:
        self.contract, self.info, self.outputs = engine.contract, engine.info, outputs

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.outputs

    def reset_state(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def said(bundle_dir: Path) -> dict[str, np.ndarray]:
    """Outputs of one frame."""
    engine = create_engine(load_bundle(bundle_dir), "torch")
    inputs = random_inputs(SMALL, np.random.default_rng(0))
    return engine.infer({**inputs, "memory_valid": np.zeros_like(inputs["memory_valid"])})


def apart(bundle_dir: Path, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    engine = create_engine(load_bundle(bundle_dir), "torch")
    return rollout_difference(Said(engine, a), Said(engine, b), SMALL, num_frames=2, seed=0)


@given(angle=st.floats(0.0, 2.0 * np.pi), along=st.floats(0.0, 2.0 * np.pi))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_far_velocities_differ_does_not_depend_on_the_axes(
    bundle_dir: Path, said: dict[str, np.ndarray], angle: float, along: float
) -> None:
    """20 m/s whichever way, off by 1 mm/s whichever way: 5e-5 of it, also where one coordinate is small."""
    way = np.array([np.cos(angle), np.sin(angle)])
    off = np.array([np.cos(along), np.sin(along)])
    velocity = [BOX_FIELDS.index(name) for name in ("vx", "vy")]
    boxes, moved = said["query_boxes"].astype(np.float64), said["query_boxes"].astype(np.float64)
    boxes[..., velocity] = 20.0 * way
    moved[..., velocity] = 20.0 * way + 1e-3 * off
    found = apart(bundle_dir, {**said, "query_boxes": moved}, {**said, "query_boxes": boxes})
    assert found.pop("query_boxes") == pytest.approx(5e-5, rel=1e-6)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("column", BOX_FIELDS)
def test_a_box_that_is_off_or_not_finite_in_any_column_differs(
    bundle_dir: Path, said: dict[str, np.ndarray], column: str
) -> None:
    boxes = np.zeros_like(said["query_boxes"])
    off, lost = boxes.copy(), boxes.copy()
    off[0, 3, BOX_FIELDS.index(column)] = 0.25
    lost[0, 3, BOX_FIELDS.index(column)] = np.nan
    right = {**said, "query_boxes": boxes}
    assert apart(bundle_dir, {**said, "query_boxes": off}, right)["query_boxes"] == 0.25
    assert np.isnan(apart(bundle_dir, {**said, "query_boxes": lost}, right)["query_boxes"])


def test_a_graphs_digest_depends_on_what_is_computed_and_not_on_weights(
    bundle_dir: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    export_onnx(JointNetwork(SMALL), tmp_path / "other_weights.onnx")
    narrower = SMALL.model_copy(update={"num_queries": SMALL.num_queries - 1})
    export_onnx(JointNetwork(narrower), tmp_path / "other_graph.onnx")
    digest = graph_digest(bundle_dir / "model.onnx")
    assert (tmp_path / "other_weights.onnx").read_bytes() != (bundle_dir / "model.onnx").read_bytes()
    assert graph_digest(tmp_path / "other_weights.onnx") == digest
    assert graph_digest(tmp_path / "other_graph.onnx") != digest


def test_state_is_fed_back_and_reset_forgets_it(bundle_dir: Path) -> None:
    engine = create_engine(load_bundle(bundle_dir), "onnxruntime", 1)
    inputs = random_inputs(SMALL, np.random.default_rng(0))
    first = engine.infer(inputs)
    assert np.abs(engine.state()["bev_memory"]).max() > 0
    second = engine.infer(inputs)
    assert np.abs(first["heatmap"] - second["heatmap"]).max() > 0
    engine.reset_state()
    np.testing.assert_array_equal(engine.infer(inputs)["heatmap"], first["heatmap"])


def test_inference_is_deterministic(bundle_dir: Path) -> None:
    inputs = random_inputs(SMALL, np.random.default_rng(1))
    outputs = [create_engine(load_bundle(bundle_dir), "onnxruntime", 2).infer(inputs) for _ in range(2)]
    for name, value in outputs[0].items():
        np.testing.assert_array_equal(value, outputs[1][name])


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))
    write_checksums(path)


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "bundle.json", "evaluation.json"])
def test_a_flipped_byte_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load_bundle(copy)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_the_checksum_list_is_refused(
    bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory, position: float, bit: int
) -> None:
    path = Path(shutil.copytree(bundle_dir, tmp_path_factory.mktemp("flip") / "b"))
    data = bytearray((path / "SHA256SUMS").read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    (path / "SHA256SUMS").write_bytes(bytes(data))
    try:
        load_bundle(path)
    except BundleError:
        return
    # The one harmless flip: a newline into another line break that reads the same.
    assert (path / "SHA256SUMS").read_text().splitlines() == (
        bundle_dir / "SHA256SUMS"
    ).read_text().splitlines()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), "schema version 99, this release reads 1"),
        (lambda m: m.update(classes=["cat"]), "made for classes"),
        (lambda m: m["contract"]["inputs"][0].update(shape=[1, 2]), r"input 'images' has shape \[1, 2\]"),
        (lambda m: m["contract"]["outputs"].pop(), "output 'bev_memory_next' is missing"),
        (lambda m: m["contract"].update(version=0), "contract version 0"),
        (lambda m: m.update(contract=None), "states no tensor contract"),
        (lambda m: m["network"].update(bev_channels="many"), "not valid at bev_channels"),
        (lambda m: m["network"].update(surprise=1), "not valid at surprise"),
        (lambda m: m["rig"]["sensors"].clear(), "not valid"),
        (lambda m: m.update(name="../../etc"), "expected letters"),
    ],
)  # fmt: skip
def test_a_manifest_made_for_something_else_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_missing_unlisted_linked_and_escaping_files_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"'extra.bin', which SHA256SUMS does not list"):
        load_bundle(copy)
    (copy / "extra.bin").unlink()
    sums = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text(sums + "0" * 64 + "  ../../etc/passwd\n")
    with pytest.raises(BundleError, match="is not `<sha256>  <file name>`"):
        load_bundle(copy)
    (copy / "SHA256SUMS").write_text(sums)
    model = copy / "model.onnx"
    model.rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx is listed"):
        load_bundle(copy)
    model.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(copy)


def test_a_graph_of_another_shape_is_refused_by_the_engine(copy: Path) -> None:
    rewrite(copy, lambda m: None)
    bundle = load_bundle(copy)
    other = SMALL.model_copy(update={"num_queries": 7})
    from e2e_perception.deploy.contract import tensor_contract
    from e2e_perception.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

    with pytest.raises(BundleError, match=r"output 'query_scores' has shape \(1, 12, 5\), the contract says"):
        OnnxRuntimeEngine(bundle.model_path, tensor_contract(other))


def test_an_export_never_replaces_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("thesis", encoding="utf-8")
    with pytest.raises(BundleError, match="is there already and is no bundle"):
        export_bundle(
            JointNetwork(SMALL), tmp_path / "precious", name="small", rig=RIG, evaluation={}, provenance={}
        )
    assert (tmp_path / "precious" / "notes.txt").read_text(encoding="utf-8") == "thesis"


@pytest.fixture
def exporter_log() -> Iterator[list[logging.LogRecord]]:
    """What the exporter logs; torch's own handlers keep it from the root, and so from `caplog`."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger(REGISTRATION)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_an_export_says_nothing_of_the_exporter_itself(
    tmp_path: Path, exporter_log: list[logging.LogRecord]
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        export_onnx(untrained_network(), tmp_path / "model.onnx")
    assert not [str(w.message) for w in told if "LeafSpec" in str(w.message)]
    assert not [r.getMessage() for r in exporter_log if "torchvision" in r.getMessage()]


def test_only_that_is_left_out_and_only_while_exporting(exporter_log: list[logging.LogRecord]) -> None:
    logger = logging.getLogger(REGISTRATION)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with without_exporter_noise():
            warnings.warn(f"{LEAF_SPEC}, use something else", FutureWarning, stacklevel=1)
            warnings.warn("another thing is deprecated", FutureWarning, stacklevel=1)
            logger.warning("%s torchvision::nms", SKIPPED)
            logger.warning("an operator is missing")
        logger.warning("%s torchvision::nms", SKIPPED)
        warnings.warn(f"{LEAF_SPEC}, use something else", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in told] == [
        "another thing is deprecated", f"{LEAF_SPEC}, use something else"
    ]  # fmt: skip
    said = [record.getMessage() for record in exporter_log]
    assert said == ["an operator is missing", f"{SKIPPED} torchvision::nms"]


def test_verifying_opens_the_graph(bundle_dir: Path, tmp_path: Path) -> None:
    found = dict(verify_bundle(bundle_dir))
    assert found["graph"].startswith("loads")
    copy = Path(shutil.copytree(bundle_dir, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"no graph")
    write_checksums(copy)
    with pytest.raises(BundleError, match="cannot load"):
        verify_bundle(copy)


def test_what_verifying_could_not_check_is_said(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "verify", str(bundle_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unchecked"] == []

    def missing(*_: object, **__: object) -> None:
        raise EngineUnavailableError("onnxruntime is not installed")

    monkeypatch.setattr(engines, "create_engine", missing)
    assert main(["bundle", "verify", str(bundle_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unchecked"] == ["graph"]
    assert main(["bundle", "verify", str(bundle_dir)]) == 0
    assert "not checked: graph" in " ".join(capsys.readouterr().out.split())


def test_garbage_with_right_checksums_is_refused_by_both_engines(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"not a graph")
    (copy / "weights.safetensors").write_bytes(b"not weights")
    write_checksums(copy)
    bundle = load_bundle(copy)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        create_engine(bundle, "onnxruntime")
    with pytest.raises(BundleError, match="does not fit the network"):
        create_engine(bundle, "torch")


def test_unknown_names_and_backends_say_what_there_is(bundle_dir: Path) -> None:
    with pytest.raises(BundleError, match="neither a directory nor one of the shipped bundles"):
        load_bundle("no-such-bundle")
    with pytest.raises(BundleError, match="has no SHA256SUMS"):
        load_bundle(bundle_dir.parent)
    with pytest.raises(
        EngineUnavailableError,
        match="'tensorflow'; expected auto, tensorrt, tensorrt-rtx, onnxruntime, torch",
    ):
        create_engine(load_bundle(bundle_dir), "tensorflow")


def test_auto_takes_the_first_available_backend_and_says_which(bundle_dir: Path) -> None:
    first = next(status.name for status in backend_report() if status.available)
    assert create_engine(load_bundle(bundle_dir), "auto").info.backend == first


def test_a_missing_library_is_an_error_with_the_way_to_get_it(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="pip install onnxruntime"):
        create_engine(load_bundle(bundle_dir), "onnxruntime")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("route"), "input 'route' is missing"),
        (lambda i: i.update(route=i["route"].astype(np.float64)), "'route' is float64"),
        (lambda i: i.update(route=i["route"][:, :5]), r"is float32\[1, 5, 4\], expected float32\[1, 41, 4\]"),
        (lambda i: i.update(sonar=i["route"]), "engine has no input 'sonar'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_inputs_off_the_contract_are_refused(
    bundle_dir: Path, backend: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    engine = create_engine(load_bundle(bundle_dir), backend, 1)
    inputs = random_inputs(SMALL, np.random.default_rng(0))
    change(inputs)
    with pytest.raises(ContractError, match=message):
        engine.infer(inputs)


def test_the_shipped_bundles_graph_is_that_of_the_networks_source() -> None:
    for path in sorted((Path(__file__).resolve().parents[2] / "resource" / "bundles").iterdir()):
        bundle = load_bundle(path)
        assert "; checked against torch" in dict(verify_bundle(path))["graph"]
        graph, source = (create_engine(bundle, name, num_threads=1) for name in ("onnxruntime", "torch"))
        differences = rollout_difference(graph, source, bundle.network, num_frames=2, seed=0)
        assert max(differences.values()) < PARITY_TOLERANCE, differences
