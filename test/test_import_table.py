"""Enforces the table "Rooms and what they may import" of docs/architecture.md.

Every import counts, at the top of a file or inside a function, and also `importlib.import_module("name")`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "e2e_perception"

ROS = frozenset(
    "rclpy ament_index_python builtin_interfaces cv_bridge diagnostic_msgs geometry_msgs launch launch_ros "
    "lifecycle_msgs message_filters nav_msgs rcl_interfaces rosgraph_msgs sensor_msgs std_msgs std_srvs "
    "tf2_msgs tf2_ros visualization_msgs".split()
)
TORCH = frozenset({"torch", "torchvision", "torchjd"})
TENSORRT = frozenset({"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"})
EVERYWHERE = frozenset({"numpy", "pydantic", "yaml"})


@dataclass(frozen=True)
class Room:
    """What one room may import: other rooms and third-party packages, besides the standard library."""

    rooms: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()


def room(rooms: str = "", packages: str = "") -> Room:
    return Room(frozenset(rooms.split()), EVERYWHERE | frozenset(packages.split()))


TABLE = {
    "core": room(),
    "model": room("core", "torch"),
    "data": room("core", "rosbags mcap lz4 zstandard cv2 zarr numcodecs pyarrow"),
    "training": room("core model data evaluation", "torch torchjd safetensors mlflow ray rich"),
    "evaluation": room("core", "scipy shapely trackeval motmetrics plotly pyarrow"),
    "deploy": room("core", "cryptography"),
    "runtime": room("core deploy", "cv2 scipy"),
    "simulation": room("core runtime deploy", "highway_env gymnasium cv2 scipy shapely pyarrow"),
    "nodes": Room(
        frozenset("core runtime deploy data".split()),
        EVERYWHERE | ROS | frozenset("cv2 rosbags psutil e2e_perception.msg".split()),
    ),
    "cli": Room(
        frozenset("core model data training evaluation deploy runtime simulation nodes".split()),
        EVERYWHERE
        | ROS
        | TORCH
        | TENSORRT
        | frozenset(
            "typer click rich cv2 scipy rosbags psutil onnx onnxruntime plotly e2e_perception.msg".split()
        ),
    ),
}

# What single files may import beyond their room. Nothing else in their room may.
FILES = {
    "data/dataset.py": room("", "torch"),
    "data/label_merging.py": room("", "scipy"),
    # A robot has no simulator; this node is for the others.
    "nodes/sim_node.py": room("simulation evaluation"),
    "deploy/export.py": room("model", "torch onnx onnxscript onnxruntime safetensors"),
    "deploy/quantize.py": room("", "onnx onnxruntime"),
    "deploy/engines/torch_engine.py": room("model", "torch safetensors"),
    "deploy/engines/onnxruntime_engine.py": room("", "onnxruntime"),
    "deploy/engines/tensorrt_library.py": Room(frozenset(), TENSORRT),
    "deploy/engines/cuda_memory.py": room("", "cuda"),
    "deploy/engine_graph.py": room("", "onnx ml_dtypes"),
}

# A robot has no torch and a training machine no ROS, so files that need them must not be reached by importing
# the others. `cli` may use all of them, but only inside the commands that need them.
NEEDS_TORCH = (
    "model/",
    "training/",
    "data/dataset.py",
    "deploy/export.py",
    "deploy/quantize.py",
    "deploy/engines/torch_engine.py",
)
TRAINING_TOOLS = (
    TORCH
    | TENSORRT
    | {
        "onnx",
        "ml_dtypes",
        "cuda",
        "onnxscript",
        "safetensors",
        "onnxruntime",
        "highway_env",
        "gymnasium",
        "plotly",
    }
)
# Compiling for TensorRT rewrites the graph with `onnx`.
NEEDS_RUNTIME = (
    "deploy/engine_graph.py",
    "deploy/engines/onnxruntime_engine.py",
    "deploy/engines/tensorrt_builder.py",
    "deploy/engines/tensorrt_engine.py",
)


@dataclass(frozen=True)
class Import:
    """One imported module, by absolute name."""

    module: str
    line: int


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a file, at whatever depth.

    Args:
        tree: The parsed file.
        module: Its dotted name, against which relative imports are resolved.
        is_package: Whether it is an `__init__.py`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            # `from e2e_perception import core` names a room only in its list of names.
            for alias in node.names:
                yield Import(f"{base}.{alias.name}" if base.count(".") < 2 else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            argument = node.args[0]
            if (
                name in ("import_module", "__import__")
                and isinstance(argument, ast.Constant)
                and isinstance(argument.value, str)
            ):
                yield Import(argument.value, node.lineno)


def violation(imported: str, *, file: str) -> str | None:
    """Why a file (relative to the package) may not import a module, or None if it may."""
    home = file.split("/")[0] if "/" in file else ""
    allowed = TABLE.get(home, Room())
    extra = FILES.get(file, Room())
    top = imported.split(".")[0]
    if top == "e2e_perception":
        parts = imported.split(".")
        target = parts[1] if len(parts) > 1 else ""
        if target == "msg":
            if "e2e_perception.msg" in allowed.packages:
                return None
            return "messages are for nodes/ only; the other rooms run without ROS"
        if target not in TABLE or target == home or target in allowed.rooms | extra.rooms:
            return None
        return f"{home or 'the package'}/ may import {', '.join(sorted(allowed.rooms)) or 'no other room'}"
    if top in sys.stdlib_module_names or top in allowed.packages | extra.packages:
        return None
    exempt = sorted(
        name for name, more in FILES.items() if top in more.packages and name.startswith(f"{home}/")
    )
    if exempt:
        return f"in {home}/ only {', '.join(exempt)} may import {top}"
    return f"{home or 'the package'}/ may import {', '.join(sorted(allowed.packages)) or 'nothing'}"


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_import_is_allowed_by_the_table() -> None:
    problems = []
    for path in sources():
        file = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for found in imports_of(tree, module_name(path), path.name == "__init__.py"):
            reason = violation(found.module, file=file)
            if reason is not None:
                problems.append(f"e2e_perception/{file}:{found.line} imports {found.module}: {reason}")
    assert not problems, "\n" + "\n".join(problems)


def test_every_room_is_in_the_table_and_in_the_documentation() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    documented = set(
        re.findall(
            r"^\| `(\w+)/` \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )

    assert rooms <= set(TABLE)
    assert documented == set(TABLE)


def test_documentation_names_the_rooms_that_each_room_may_import() -> None:
    rows = re.findall(
        r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|",
        (ROOT / "docs/architecture.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    for name, cell in rows:
        if name == "cli":  # "everything but ..."
            continue
        cell = cell.replace("each runtime", "")  # the library, not the room
        allowed = set(TABLE[name].rooms).union(
            *(more.rooms for f, more in FILES.items() if f.startswith(name))
        )
        assert set(re.findall(r"\w+", cell)) & set(TABLE) == allowed, f"row {name}/ says: {cell.strip()}"


@pytest.mark.parametrize(
    ("file", "imported", "message"),
    [
        ("core/rig.py", "e2e_perception.runtime.pipeline", "core/ may import no other room"),
        ("core/rig.py", "scipy.spatial", "core/ may import numpy, pydantic, yaml"),
        ("runtime/pipeline.py", "e2e_perception.msg", "messages are for nodes/ only"),
        ("runtime/pipeline.py", "rclpy", "runtime/ may import"),
        ("runtime/pipeline.py", "torch", "runtime/ may import"),
        (
            "deploy/bundle.py",
            "onnxruntime",
            "only deploy/engines/onnxruntime_engine.py, deploy/export.py, deploy/quantize.py may",
        ),
        ("deploy/bundle.py", "e2e_perception.model.network", "deploy/ may import core"),
        ("data/bags.py", "torch.utils.data", r"only data/dataset\.py may import torch"),
        ("nodes/perception_node.py", "torch", "nodes/ may import"),
        ("__init__.py", "numpy", "the package/ may import nothing"),
    ],
)
def test_a_forbidden_import_is_reported_with_the_rule(file: str, imported: str, message: str) -> None:
    assert re.search(message, violation(imported, file=file) or "allowed")


@pytest.mark.parametrize(
    ("file", "imported"),
    [
        ("core/rig.py", "e2e_perception.core.frames"),
        ("core/rig.py", "yaml"),
        ("deploy/engines/onnxruntime_engine.py", "onnxruntime"),
        ("deploy/export.py", "e2e_perception.model.network"),
        ("nodes/perception_node.py", "e2e_perception.msg"),
        ("nodes/perception_node.py", "rclpy.lifecycle"),
    ],
)
def test_an_allowed_import_is_not_reported(file: str, imported: str) -> None:
    assert violation(imported, file=file) is None


def test_lazy_relative_and_dynamic_imports_are_found() -> None:
    tree = ast.parse(
        "def f():\n"
        "    import torch.nn as nn\n"
        "    from ..model import network\n"
        "    from . import contract\n"
        "    importlib.import_module('onnxruntime')\n"
        "from e2e_perception import training, __version__\n"
    )

    found = {i.module for i in imports_of(tree, "e2e_perception.deploy.bundle", is_package=False)}

    assert {"torch.nn", "e2e_perception.model.network", "e2e_perception.deploy.contract"} <= found
    assert {"onnxruntime", "e2e_perception.training"} <= found


_IMPORT_ALL = """
import importlib, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not to be imported here", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(f"{name}: {error}")
"""


def import_without(blocked: frozenset[str], files: list[Path], messages: bool = False) -> str:
    """Import modules in a fresh interpreter in which some packages cannot be imported; what went wrong."""
    if not messages:
        blocked |= {"e2e_perception.msg"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, ",".join(sorted(blocked)), *map(module_name, files)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def without(*prefixes: str) -> list[Path]:
    # Importing a `__main__` would run the command.
    return [
        p
        for p in sources()
        if not p.relative_to(PACKAGE).as_posix().startswith(prefixes) and p.name != "__main__.py"
    ]


def test_everything_but_nodes_is_importable_without_ros() -> None:
    pytest.importorskip("torch", reason="torch is not installed; model/ and training/ cannot be imported")
    assert import_without(ROS, without("nodes/")) == ""


def test_what_a_robot_runs_is_importable_without_torch_and_training_tools() -> None:
    robot = without("nodes/", "evaluation/", "simulation/", *NEEDS_TORCH, *NEEDS_RUNTIME)

    assert import_without(TRAINING_TOOLS, robot) == ""


@pytest.mark.ros
def test_nodes_are_importable_without_torch_and_training_tools() -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
    pytest.importorskip(
        "e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`"
    )
    nodes = sorted(p for p in (PACKAGE / "nodes").glob("*.py") if p.name != "sim_node.py")
    absent = TRAINING_TOOLS | {"zarr", "pyarrow", "numcodecs"}

    assert import_without(absent, nodes, messages=True) == ""
