"""ONNX Runtime: the kept graph computes the same, and what is wrong with the cache costs time alone."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import BundleError, ConfigError, ContractError, EngineUnavailableError
from e2e_perception.deploy.bundle import Bundle, load_bundle, write_checksums
from e2e_perception.deploy.engine_cache import PAYLOAD, SIDECAR, EngineCache, EngineKey
from e2e_perception.deploy.engines import backend_report, configured_engine, create_engine
from e2e_perception.deploy.engines.onnxruntime_engine import THREADS_NOTE, OnnxRuntimeEngine
from e2e_perception.deploy.engines.tensorrt_library import installed_version
from e2e_perception.deploy.rollouts import random_inputs

FRAMES = 3


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return load_bundle("tiny")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> EngineCache:
    return EngineCache(tmp_path / "engines", said.append)


def outputs_of(engine: OnnxRuntimeEngine, bundle: Bundle) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [engine.infer(random_inputs(bundle.network, rng)) for _ in range(FRAMES)]


def load(
    bundle: Bundle, cache: EngineCache | None, num_threads: int = 1, **options: object
) -> OnnxRuntimeEngine:
    engine = create_engine(bundle, "onnxruntime", num_threads, cache=cache, **options)  # type: ignore[arg-type]
    assert isinstance(engine, OnnxRuntimeEngine)
    return engine


def entries(cache: EngineCache) -> list[Path]:
    return sorted(path.parent for path in cache.directory.glob(f"*/{PAYLOAD}"))


def assert_same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> None:
    for mine, theirs in zip(a, b, strict=True):
        assert set(mine) == set(theirs)
        for name, value in mine.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_the_kept_graph_gives_the_same_bits_as_the_bundles(
    tiny: Bundle, cache: EngineCache, said: list[str]
) -> None:
    expected = outputs_of(load(tiny, None), tiny)
    assert_same(outputs_of(load(tiny, cache), tiny), expected)
    (entry,) = entries(cache)
    written_ns = (entry / PAYLOAD).stat().st_mtime_ns
    assert_same(outputs_of(load(tiny, cache), tiny), expected)
    assert (entry / PAYLOAD).stat().st_mtime_ns == written_ns
    assert said == []


def test_a_damaged_kept_graph_is_made_anew(tiny: Bundle, cache: EngineCache, said: list[str]) -> None:
    expected = outputs_of(load(tiny, cache), tiny)
    (entry,) = entries(cache)
    whole = (entry / PAYLOAD).read_bytes()
    (entry / PAYLOAD).write_bytes(whole[:1000])
    assert_same(outputs_of(load(tiny, cache), tiny), expected)
    assert "not what was written" in said[0]
    assert (entry / PAYLOAD).stat().st_size == len(whole)


def test_a_kept_graph_that_is_whole_and_cannot_be_loaded_is_made_once_more(
    tiny: Bundle, cache: EngineCache, said: list[str]
) -> None:
    expected = outputs_of(load(tiny, cache), tiny)
    (entry,) = entries(cache)
    size = (entry / PAYLOAD).stat().st_size
    cache.store(EngineKey(json.loads((entry / SIDECAR).read_text())["key"]), b"no graph")
    assert_same(outputs_of(load(tiny, cache), tiny), expected)
    assert (entry / PAYLOAD).stat().st_size == pytest.approx(size, rel=0.1)
    assert len(said) == 1 and f"cached engine {entry} is of no use: ONNX Runtime cannot load" in said[0]


def test_an_engine_may_be_closed_twice(tiny: Bundle) -> None:
    engine = load(tiny, None)
    engine.close()
    engine.close()
    pytest.importorskip("torch", reason="torch is not installed; only ONNX Runtime was closed")
    reference = create_engine(tiny, "torch")
    reference.close()
    reference.close()


@pytest.mark.parametrize(
    ("directory", "message"),
    [("~nosuchuser/engines", "Could not determine home"), ("engines\0", "holds a NUL character")],
)
def test_a_cache_directory_that_is_no_path_is_refused(tiny: Bundle, directory: str, message: str) -> None:
    config = EngineConfig(cache_directory=directory)
    with pytest.raises(ConfigError, match=rf"engine\.cache_directory .* is no path: .*{message}"):
        configured_engine(tiny, config, lambda sentence: None)


def test_a_full_disk_costs_the_next_start_some_time_and_nothing_else(
    tiny: Bundle, cache: EngineCache, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        engine = load(tiny, cache)
    assert_same(outputs_of(engine, tiny), outputs_of(load(tiny, None), tiny))
    assert "No space left on device" in said[0]
    assert entries(cache) == []


def test_no_room_for_the_library_to_write_in_costs_no_more(
    tiny: Bundle, cache: EngineCache, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable = tmp_path / "file"
    unwritable.write_bytes(b"")

    class Scratch:
        def __enter__(self) -> str:
            return str(unwritable)  # no directory: nothing can be written below it

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr("tempfile.TemporaryDirectory", Scratch)
    engine = create_engine(tiny, "onnxruntime", 1, cache=cache, log=said.append)
    assert_same(outputs_of(engine, tiny), outputs_of(load(tiny, None), tiny))  # type: ignore[arg-type]
    assert "could not be written" in said[0]
    assert entries(cache) == []


def start(directory: str, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """In another process: load, run a frame, say a number that depends on all of it."""
    bundle = load_bundle("tiny")
    config = EngineConfig(num_threads=1, cache_directory=directory)
    engine = configured_engine(bundle, config, lambda sentence: None)
    outputs = engine.infer(random_inputs(bundle.network, np.random.default_rng(0)))
    results.put(float(sum(np.abs(value).sum(dtype=np.float64) for value in outputs.values())))


def test_two_processes_that_start_at_once_share_one_kept_graph(cache: EngineCache) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=start, args=(str(cache.directory), results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sums[0] == sums[1]
    kinds = [
        json.loads((entry / SIDECAR).read_text())["key"].get("kind", "graph") for entry in entries(cache)
    ]
    assert sorted(kinds) == ["graph", "parity with torch"]


def test_outputs_are_the_callers_and_the_state_is_fed_back(tiny: Bundle) -> None:
    inputs = random_inputs(tiny.network, np.random.default_rng(0))
    engine = load(tiny, None)
    first = engine.infer(inputs)
    kept = {name: value.copy() for name, value in first.items()}
    memory = engine.state()["bev_memory"]
    second = engine.infer(inputs)
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)
        value[:] = np.nan
    assert np.abs(second["heatmap"] - kept["heatmap"]).max() > 0
    third = engine.infer(inputs)
    assert all(np.isfinite(value).all() for value in third.values())
    # A given memory overrides the engine's own, for one call.
    np.testing.assert_array_equal(
        engine.infer({**inputs, "bev_memory": memory})["heatmap"], second["heatmap"]
    )
    engine.reset_state()
    np.testing.assert_array_equal(engine.infer(inputs)["heatmap"], kept["heatmap"])


def test_inputs_need_not_lie_in_one_piece(tiny: Bundle) -> None:
    inputs = random_inputs(tiny.network, np.random.default_rng(0))
    reversed_twice = {**inputs, "images": inputs["images"][..., ::-1].copy()[..., ::-1]}
    assert not reversed_twice["images"].flags.c_contiguous
    assert_same([load(tiny, None).infer(inputs)], [load(tiny, None).infer(reversed_twice)])


def test_threads_are_chosen_once_from_the_cores_that_there_are(
    tiny: Bundle, cache: EngineCache, said: list[str]
) -> None:
    cores = len(os.sched_getaffinity(0))
    engine = create_engine(tiny, "onnxruntime", -1, cache=cache, log=said.append)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert 1 <= engine.num_threads <= cores
    assert f"calibrated on {cores} cores: {engine.num_threads} threads" in said[0]
    again: list[str] = []
    second = create_engine(tiny, "onnxruntime", -1, cache=cache, log=again.append)
    assert isinstance(second, OnnxRuntimeEngine)
    assert (second.num_threads, again) == (engine.num_threads, [])


@pytest.mark.parametrize(
    "spoilt", [{"num_threads": "many"}, {"num_threads": 99}, {"num_threads": None}, {"spinning": True}]
)
def test_a_number_of_threads_that_nobody_chose_is_chosen_again(
    tiny: Bundle, cache: EngineCache, spoilt: dict[str, object]
) -> None:
    load(tiny, cache, -1)
    (note,) = cache.directory.glob(f"*/{THREADS_NOTE}.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), **spoilt}))
    said: list[str] = []
    engine = load(tiny, cache, -1, log=said.append)
    assert "calibrated on" in said[0]
    assert 1 <= engine.num_threads <= len(os.sched_getaffinity(0))


def test_a_calibration_for_other_cores_or_with_spinning_is_another(
    tiny: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    load(tiny, cache, -1)
    (note,) = cache.directory.glob(f"*/{THREADS_NOTE}.json")
    assert '"cores": 1' in note.read_text()
    said: list[str] = []
    load(tiny, cache, -1, allow_spinning=True, log=said.append)
    assert "spinning" in said[0]
    assert '"spinning_allowed": true' in note.read_text()


@pytest.mark.parametrize("allow_spinning", [False, True])
def test_the_library_is_told_how_threads_wait_and_to_stop_them_when_a_frame_is_done(
    tiny: Bundle, allow_spinning: bool
) -> None:
    engine = load(tiny, None, 2, allow_spinning=allow_spinning)
    options = engine._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(allow_spinning))
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_cuda_that_the_library_lacks_is_an_error_and_never_the_cpu(tiny: Bundle) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; the test is about one that has not")
    with pytest.raises(
        EngineUnavailableError, match=r"no CUDA here, only .*CPUExecutionProvider.*onnxruntime-gpu"
    ):
        create_engine(tiny, "onnxruntime", device="cuda")


@pytest.mark.parametrize("num_threads", [1, -1])
@pytest.mark.parametrize("with_cache", [False, True])
def test_cuda_that_is_offered_and_does_not_load_is_an_error_and_never_the_cpu(
    tiny: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, with_cache: bool, num_threads: int
) -> None:
    opened = onnxruntime.InferenceSession

    def falls_back(graph: object, options: object, providers: list[object]) -> object:
        return opened(graph, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(EngineUnavailableError, match="offers CUDA but runs on CPUExecutionProvider"):
        create_engine(tiny, "onnxruntime", num_threads, device="cuda", cache=cache if with_cache else None)
    assert entries(cache) == []  # a graph for the CPU must not be what CUDA is given once it loads


@pytest.mark.parametrize("name", ["onnxruntime-1.99", "onnxruntime_gpu-1.99"])
def test_a_build_of_the_library_under_another_name_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    for directory, version, brings in (
        (name, "1.99", "onnxruntime"),
        ("onnxruntime-0-extensions", "0.1", "other"),
    ):
        facts = tmp_path / f"{directory}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Name: {directory}\nVersion: {version}\n", encoding="utf-8")
        (facts / "RECORD").write_text(f"LICENSE,,\n{brings}/__init__.py,,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert installed_version("onnxruntime") == "1.99"


def test_a_library_that_no_directory_beside_it_describes_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_version("strange") == "installed"
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"strange": ["strange-gpu"]})
    monkeypatch.setattr(metadata, "version", {"strange-gpu": "2.0"}.__getitem__)
    assert installed_version("strange") == "2.0"


def test_installed_versions_are_those_that_the_modules_say(tiny: Bundle) -> None:
    found = {status.name: status.version for status in backend_report()}
    assert found["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("given", [None, 1.0, [[1.0]], "text"])
def test_an_input_that_is_no_array_is_named(tiny: Bundle, given: object) -> None:
    inputs = {**random_inputs(tiny.network, np.random.default_rng(0)), "ego_state": given}
    engine = create_engine(tiny, "onnxruntime", 1)
    with pytest.raises(ContractError, match=rf"'ego_state' is a {type(given).__name__}, expected a numpy"):
        engine.infer(inputs)  # type: ignore[arg-type]


def test_cuda_is_asked_for_first_and_without_tf32(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[object]] = []

    def remember(graph: object, options: object, providers: list[object]) -> object:
        asked.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    with pytest.raises(BundleError, match="no GPU here"):
        create_engine(tiny, "onnxruntime", device="cuda")
    assert asked[0][0] == ("CUDAExecutionProvider", {"use_tf32": "0"})


def test_another_device_and_a_device_of_another_backend_are_refused(tiny: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match="unknown device 'tpu'; expected cpu or cuda"):
        create_engine(tiny, "onnxruntime", device="tpu")
    pytest.importorskip("torch", reason="torch is not installed; nothing to refuse")
    with pytest.raises(EngineUnavailableError, match="backend 'torch' runs on the cpu here, not on 'cuda'"):
        create_engine(tiny, "torch", device="cuda")


@pytest.mark.parametrize("with_cache", [False, True])
def test_an_operator_that_the_library_lacks_is_named(
    tiny: Bundle, cache: EngineCache, tmp_path: Path, with_cache: bool
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; no graph can be made")
    copy = Path(shutil.copytree(tiny.path, tmp_path / "copy"))
    graph = onnx.load(str(copy / "model.onnx"))
    next(node for node in graph.graph.node if node.op_type == "Sigmoid").op_type = "Sigmoidal"
    onnx.save(graph, str(copy / "model.onnx"))
    write_checksums(copy)
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot load .*Sigmoidal"):
        load(load_bundle(copy), cache if with_cache else None)
    assert not with_cache or entries(cache) == []
