"""The real TensorRT-RTX compiles the shipped bundle, on the processor; running it is for test/gpu."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from e2e_perception.cli.main import main
from e2e_perception.core.errors import ConfigError, EngineUnavailableError
from e2e_perception.deploy import engines
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.engine_cache import PAYLOAD, SIDECAR, EngineCache
from e2e_perception.deploy.engine_graph import EngineGraph
from e2e_perception.deploy.engines import backend_report, create_engine, tensorrt_library
from e2e_perception.deploy.engines.cuda_memory import Cuda
from e2e_perception.deploy.engines.gpu_presence import why_no_gpu
from e2e_perception.deploy.engines.tensorrt_builder import BuildOptions, build_engine, compile_graph
from e2e_perception.deploy.engines.tensorrt_library import TENSORRT_RTX, find_module, load_library
from e2e_perception.deploy.operators import ALLOWED_OPERATORS

# Where it has to be there, its absence is a failure.
needs_library = pytest.mark.skipif(
    find_module(TENSORRT_RTX) is None and not os.environ.get("E2E_PERCEPTION_NEEDS_TENSORRT_RTX"),
    reason="TensorRT-RTX is not installed: `make setup` on x86-64",
)
TARGETS = ["8.6", "8.9"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests here, so that each engine is built once."""
    return tmp_path_factory.mktemp("engines")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["build-engine", *arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def compiled(nodes: list[onnx.NodeProto], cache: Path) -> tuple[bytes, int]:
    """A small graph from `x` to `y` through the real parser and compiler."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    graph = EngineGraph(model, 0, len(nodes))
    return compile_graph(
        load_library(TENSORRT_RTX), graph, BuildOptions(), ("8.6",), EngineCache(cache), None
    )


@needs_library
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_shipped_bundle_compiles_for_two_compute_capabilities(
    capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path, precision: str
) -> None:
    arguments = [
        "tiny", "--backend", "tensorrt-rtx", "--precision", precision, "--compute-capability", *TARGETS,
        "--cache", str(cache),
    ]  # fmt: skip
    code, first, _ = run(capsys, *arguments, "--out", str(tmp_path / "tiny.engine"))
    assert code == 0
    assert first["key"]["gpu"] == "8.6, 8.9" and first["key"]["precision"] == precision
    assert first["layers"] > 1000
    assert (first["half_precision_operators"] > 150) == (precision != "float32")
    entry = cache / first["entry"]
    assert (tmp_path / "tiny.engine").read_bytes() == (entry / PAYLOAD).read_bytes()
    assert (tmp_path / "tiny.engine").stat().st_size == first["bytes"] > 1_000_000
    assert json.loads((entry / SIDECAR).read_text())["key"] == first["key"]

    code, second, _ = run(capsys, *arguments)
    assert code == 0
    assert (first["from_cache"], second["from_cache"]) == (False, True)
    assert {
        name: second[name] for name in ("key", "entry", "bytes", "layers", "half_precision_operators")
    } == {name: first[name] for name in ("key", "entry", "bytes", "layers", "half_precision_operators")}


@needs_library
def test_every_allowed_operator_is_one_that_the_parser_knows() -> None:
    library = load_library(TENSORRT_RTX)
    builder = library.module.Builder(library.logger)
    parser = library.module.OnnxParser(builder.create_network(0), library.logger)
    assert [name for name in sorted(ALLOWED_OPERATORS) if not parser.supports_operator(name)] == []


@needs_library
def test_what_the_parser_refuses_is_named_by_node_with_the_end_of_its_log(cache: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "fine"),
        helper.make_node("Det", ["r"], ["y"], "my_determinant"),
    ]
    with pytest.raises(
        EngineUnavailableError,
        match=r"cannot be parsed: node 'my_determinant' \(Det\): UNSUPPORTED_NODE.*tensorrt_rtx.* says: .*"
        "While parsing node number 1",
    ):
        compiled(nodes, cache)


@needs_library
def test_capabilities_are_read_from_the_library() -> None:
    capabilities = load_library(TENSORRT_RTX).capabilities
    assert set(TARGETS) <= set(capabilities.targets)
    assert capabilities.strong_types_flag and not capabilities.precision_flags
    assert capabilities.runtime_cache and not capabilities.timing_cache
    assert capabilities.version.startswith("1.")


def _build(directory: Path, barrier: Any, results: Any) -> None:
    options = BuildOptions(compute_capabilities=("8.9",), optimization_level=0)
    barrier.wait()
    built = build_engine(
        load_library(TENSORRT_RTX), load_bundle("tiny").model_path, options, EngineCache(directory), None
    )
    results.put((built.from_cache, built.plan))


@needs_library
@pytest.mark.slow
def test_of_two_processes_that_want_one_engine_at_once_one_builds_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(from_cache for from_cache, _ in found) == [False, True]
    assert found[0][1] == found[1][1]
    assert len(list(tmp_path.glob(f"*/{PAYLOAD}"))) == 1


@needs_library
@pytest.mark.skipif(why_no_gpu() == "", reason="there is a GPU here, which test/gpu uses")
def test_without_a_gpu_nothing_runs_and_the_error_says_so(tmp_path: Path) -> None:
    bundle = load_bundle("tiny")
    with pytest.raises(
        EngineUnavailableError,
        match=r"backend 'tensorrt-rtx' cannot run: no NVIDIA GPU is visible .*build-engine` works without",
    ):
        create_engine(bundle, "tensorrt-rtx")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed: `make setup`")
    with pytest.raises(EngineUnavailableError, match="no GPU can be used: no NVIDIA driver is installed"):
        Cuda()
    status = next(s for s in backend_report() if s.name == "tensorrt-rtx")
    assert not status.available and status.version.startswith("1.")


def test_a_backend_in_another_precision_than_it_has_is_refused() -> None:
    bundle = load_bundle("tiny")
    for backend in ("onnxruntime", "torch"):
        with pytest.raises(
            EngineUnavailableError,
            match=f"'{backend}' runs in float32, not in 'float16', which is for tensorrt and",
        ):
            create_engine(bundle, backend, precision="float16")
    if why_no_gpu():
        with pytest.raises(EngineUnavailableError, match=r"none of the backends .* runs in 'float16'"):
            create_engine(bundle, "auto", precision="float16")


def test_a_missing_library_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "")
    load_library.cache_clear()
    try:
        with pytest.raises(EngineUnavailableError, match="tensorrt is not installed; it comes with JetPack"):
            load_library("tensorrt")
        with pytest.raises(EngineUnavailableError, match=r"tensorrt_rtx is not installed; `pip install e2e-"):
            create_engine(load_bundle("tiny"), "tensorrt-rtx")
    finally:
        load_library.cache_clear()


def test_a_library_that_cannot_be_loaded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libtensorrt_rtx.so.1: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library, "find_module", lambda backend: "tensorrt_rtx")
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    load_library.cache_clear()
    try:
        with pytest.raises(
            EngineUnavailableError, match="is installed but cannot be loaded: libtensorrt_rtx"
        ):
            load_library(TENSORRT_RTX)
    finally:
        load_library.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--backend", "onnxruntime"], "'onnxruntime' has no engines to build; expected tensorrt or"),
        (["tiny", "--precision", "int4"], "precision 'int4'; expected float32, float16, bfloat16"),
        (["tiny", "--out", "/no/such/directory/x"], "its directory does not exist"),
        (["no-such-bundle", "--compute-capability", "8.6"], "no bundle 'no-such-bundle'"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, document, said = run(capsys, *arguments)
    assert code == 2
    assert message in document["error"] and message in said


@needs_library
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compute-capability", "9.9"], "'9.9' is not one that"),
        (["--compute-capability", "8.6", "--weak-types", "--precision", "float16"], "has no weak types"),
        (["8.6"], "8.6 without --compute-capability"),
        (["--compute-capability", ""], "--compute-capability '' names none; expected such as 8.6"),
        (["--compute-capability", ","], "--compute-capability ',' names none; expected such as 8.6"),
        (["--compute-capability", "8.6", "--workspace-mib", "9" * 18], "MiB; expected 1 to 1048576"),
    ],
)
def test_what_the_library_cannot_build_is_refused_with_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, document, _ = run(capsys, "tiny", *arguments, "--cache", str(tmp_path))
    assert code == 2
    assert message in document["error"]


@needs_library
def test_an_engine_that_could_not_be_kept_is_a_failure_unless_it_was_written_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["tiny", "--compute-capability", "8.6", "--optimization-level", "0"]
    arguments += ["--cache", "/dev/null/x"]
    code, document, said = run(capsys, *arguments)
    assert code == 2
    assert "could not be kept in /dev/null/x" in document["error"]
    assert "engine cache /dev/null/x cannot be used" in said
    code, document, _ = run(capsys, *arguments, "--out", str(tmp_path / "tiny.engine"))
    assert code == 0
    assert (tmp_path / "tiny.engine").stat().st_size == document["bytes"]


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"optimization_level": 6}, "optimisation level 6; expected 0 to 5"),
        ({"workspace_mib": 0}, "workspace of 0 MiB"),
        ({"workspace_mib": 10**18}, "workspace of 10+ MiB; expected 1 to 1048576"),
    ):
        with pytest.raises(ConfigError, match=message):
            BuildOptions(**options)
