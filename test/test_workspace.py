"""The set-up script: what it repairs in the ROS 2 wheels, and when it decides that there is nothing to do."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, pointed at an empty tree that looks like the repository."""
    spec = importlib.util.spec_from_file_location("workspace", ROOT / "scripts" / "workspace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for folder in ("e2e_perception/core", "config", "msg", "install"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("CMakeLists.txt", "package.xml", "msg/Plan.msg", "e2e_perception/core/rig.py"):
        (tmp_path / file).write_text("first", encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "BUILD_STAMP", tmp_path / "install" / "stamp")
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    return module


@pytest.fixture
def builds(workspace: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Calls of colcon, which is replaced by something that leaves its setup file."""
    calls: list[str] = []

    def run(command: list[str], env: dict[str, str] | None = None) -> None:
        calls.append(command[-1])
        (tmp_path / "install").mkdir(exist_ok=True)
        (tmp_path / "install" / "setup.bash").touch()

    monkeypatch.setattr(workspace, "run", run)
    return calls


def test_include_paths_of_the_wheels_build_machine_are_replaced(workspace: ModuleType) -> None:
    baked = (
        'INTERFACE_INCLUDE_DIRECTORIES "${_IMPORT_PREFIX}/include/std_msgs;'
        "/opt/python/cp311-cp311/include/python3.11;"
        '/opt/python/cp311-cp311/lib/python3.11/site-packages/numpy/_core/include"'
    )

    fixed = workspace.without_baked_paths(baked, python_include="/usr/include/py", numpy_include="/v/numpy")

    expected = '"${_IMPORT_PREFIX}/include/std_msgs;/usr/include/py;/v/numpy"'
    assert fixed == f"INTERFACE_INCLUDE_DIRECTORIES {expected}"
    assert workspace.without_baked_paths(fixed, python_include="/x", numpy_include="/y") == fixed


def test_unchanged_tree_is_built_once_and_edited_python_needs_no_build(
    workspace: ModuleType, builds: list[str], tmp_path: Path
) -> None:
    workspace.ensure_build("venv-1")
    workspace.ensure_build("venv-1")
    (tmp_path / "e2e_perception/core/rig.py").write_text("edited", encoding="utf-8")
    workspace.ensure_build("venv-1")

    assert len(builds) == 1


@pytest.mark.parametrize(
    "changed", ["CMakeLists.txt", "msg/Plan.msg", "e2e_perception/core/new.py", "config/new.yaml"]
)
def test_changed_build_file_or_new_file_is_built_again(
    workspace: ModuleType, builds: list[str], tmp_path: Path, changed: str
) -> None:
    workspace.ensure_build("venv-1")
    (tmp_path / changed).write_text("second", encoding="utf-8")
    workspace.ensure_build("venv-1")

    assert len(builds) == 2


@pytest.mark.parametrize(("new_venv", "new_message"), [("venv-2", "first"), ("venv-1", "second")])
def test_other_wheels_or_messages_start_from_an_empty_build(
    workspace: ModuleType, builds: list[str], tmp_path: Path, new_venv: str, new_message: str
) -> None:
    workspace.ensure_build("venv-1")
    leftover = tmp_path / "build" / "old"
    leftover.mkdir(parents=True)
    (tmp_path / "msg/Plan.msg").write_text(new_message, encoding="utf-8")
    workspace.ensure_build(new_venv)

    assert not leftover.exists()
    assert len(builds) == 2


def test_links_to_removed_sources_are_cleaned_up(workspace: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "e2e_perception/core/rig.py"
    (tmp_path / "install/kept.py").symlink_to(source)
    (tmp_path / "install/gone.py").symlink_to(tmp_path / "e2e_perception/core/removed.py")

    workspace.remove_dangling_links()

    assert sorted(p.name for p in (tmp_path / "install").iterdir()) == ["kept.py"]


def test_failed_build_leaves_no_stamp_and_names_the_command(
    workspace: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], env: dict[str, str] | None = None) -> None:
        raise workspace.WorkspaceError("`colcon build` failed with exit code 1")

    monkeypatch.setattr(workspace, "run", fail)
    with pytest.raises(workspace.WorkspaceError, match="colcon build"):
        workspace.ensure_build("venv-1")

    assert not (tmp_path / "install/stamp").exists()


def test_another_python_version_is_refused_with_the_way_out(
    workspace: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "WHEELS_PYTHON", (2, 7))

    with pytest.raises(workspace.WorkspaceError, match=r"expected 2\.7.*make PYTHON=.*python3\.11"):
        workspace.check_tools()


def test_prefix_setup_prepends_each_path_once_however_often_it_is_sourced(
    workspace: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / ".venv").mkdir()
    workspace.write_prefix_setup()
    setup = tmp_path / ".venv" / "setup.bash"

    shown = subprocess.run(
        ["/bin/sh", "-c", f". {setup}; . {setup}; echo $AMENT_PREFIX_PATH $ROS_DISTRO; echo $PATH"],
        env={"PATH": "/usr/bin:/bin", "AMENT_PREFIX_PATH": "/opt/other"},
        capture_output=True,
        text=True,
        check=True,
    )

    prefix = tmp_path / ".venv"
    assert shown.stdout.splitlines() == [f"{prefix}:/opt/other jazzy", f"{prefix}/bin:/usr/bin:/bin"]
