"""The package's metadata says one thing in all its places, and the built package holds all the sources."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest

import e2e_perception

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = sorted(path.stem for path in (ROOT / "msg").glob("*.msg"))
NODES = sorted(path.stem for path in (ROOT / "e2e_perception" / "nodes").glob("*_node.py"))
PRIMITIVES = set(
    "bool byte char float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 string".split()
)


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def dependencies() -> set[str]:
    return {str(element.text) for element in manifest() if element.tag.endswith("depend")}


def prefix() -> Path:
    """Where this checkout's build is installed; skips if it is not in the environment."""
    for candidate in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if candidate and (Path(candidate) / "share" / "e2e_perception" / "package.xml").is_file():
            return Path(candidate)
    pytest.skip("the package is not built or not sourced: `make setup`, then `. scripts/env.sh`")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(file: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [normalised(re.split(r"[\[<>=!~ ;]", line)[0]) for line in lines if line]


def test_version_is_the_same_in_manifest_package_setup_and_changelog() -> None:
    version = manifest().findtext("version")
    from_setup = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    changelog = re.search(
        r"^## \[?([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert e2e_perception.__version__ == version
    assert from_setup.stdout.split()[-1] == version
    assert changelog is not None
    assert changelog[1] == version


def test_every_room_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "e2e_perception").rglob("*.py")}

    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_messages_use_only_types_that_the_manifest_and_cmake_name() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for name in MESSAGES:
        for line in (ROOT / "msg" / f"{name}.msg").read_text(encoding="utf-8").splitlines():
            code = line.split("#")[0].strip()
            if not code or "=" in code:
                continue
            kind, field = re.sub(r"\[[^\]]*\]", "", code.split()[0]), code.split()[1]
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field), f"{name}.msg: {field}"
            if "/" in kind:
                package = kind.split("/")[0]
                assert package in dependencies(), f"{name}.msg uses {kind}, absent from package.xml"
                assert re.search(rf"DEPENDENCIES[^)]*\b{package}\b", cmake), f"{name}.msg uses {kind}"
            else:
                assert kind in PRIMITIVES or kind in MESSAGES, f"{name}.msg: unknown type {kind}"


def test_every_ros_package_that_the_nodes_import_is_in_the_manifest() -> None:
    known = dependencies() | {"e2e_perception", "ament_index_python"}
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    imported = {
        name
        for path in (ROOT / "e2e_perception" / "nodes").glob("*.py")
        for name in pattern.findall(path.read_text(encoding="utf-8"))
        if name == "rclpy" or name.endswith(("_msgs", "_ros", "_interfaces", "_bridge", "_filters", "launch"))
    }

    assert imported <= known


def test_every_requirement_is_pinned() -> None:
    pinned = set(requirement_names(ROOT / "requirements" / "constraints.txt"))
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        assert set(requirement_names(file)) <= pinned, file.name


def test_the_workspace_has_the_pinned_versions() -> None:
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip(f"runs in {sys.prefix}, not in the workspace's .venv")
    pins = dict(
        line.strip().split("==")
        for line in (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    installed = {
        normalised(d.metadata["Name"]): d.version.split("+")[0]
        for d in metadata.distributions()
        if normalised(d.metadata["Name"]) in pins
    }

    assert {n: v for n, v in installed.items() if pins[n] != v} == {}
    assert set(pins) <= set(installed)


def test_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")

    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert manifest().findtext("license") == "Apache-2.0"


@pytest.mark.ros
@pytest.mark.parametrize("name", MESSAGES)
def test_built_message_survives_serialisation(name: str) -> None:
    prefix()
    serialization = pytest.importorskip("rclpy.serialization", reason="rclpy is not installed: `make setup`")
    kind = getattr(importlib.import_module("e2e_perception.msg"), name)

    message = kind()

    assert serialization.deserialize_message(serialization.serialize_message(message), kind) == message


@pytest.mark.ros
def test_built_messages_are_those_of_the_sources() -> None:
    prefix()
    module = importlib.import_module("e2e_perception.msg")

    assert (
        sorted(n for n in dir(module) if n[0].isupper() and isinstance(getattr(module, n), type)) == MESSAGES
    )


@pytest.mark.ros
def test_messages_come_from_the_build_and_the_rest_from_the_source_tree() -> None:
    built = prefix()
    messages = Path(str(importlib.import_module("e2e_perception.msg").__file__))

    assert built in messages.parents
    assert Path(e2e_perception.__file__).parent == ROOT / "e2e_perception"


@pytest.mark.ros
@pytest.mark.parametrize("name", [*NODES, "e2e-perception"])
def test_executable_is_installed_and_runs_the_python_of_the_build(name: str) -> None:
    folder = prefix() / ("bin" if name == "e2e-perception" else "lib/e2e_perception")
    executable = folder / name

    assert os.access(executable, os.X_OK)
    shebang, *lines = executable.read_text(encoding="utf-8").splitlines()
    assert Path(shebang.removeprefix("#!")).is_file()
    assert any(line.endswith("import main") for line in lines)


@pytest.mark.ros
def test_shared_directories_are_installed() -> None:
    share = prefix() / "share" / "e2e_perception"
    for top in ("config", "launch", "resource"):
        expected = {
            p.relative_to(ROOT)
            for p in (ROOT / top).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        assert {p for p in expected if not (share / p).is_file()} == set()
