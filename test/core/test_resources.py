from __future__ import annotations

from pathlib import Path

import pytest

from e2e_perception.core import resources
from e2e_perception.core.errors import ConfigError


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_source_tree_comes_before_every_installation(tmp_path: Path) -> None:
    package = make(tmp_path / "source" / "e2e_perception")
    (tmp_path / "source" / "package.xml").touch()
    in_source = make(tmp_path / "source" / "config")
    make(tmp_path / "install" / "share" / "e2e_perception" / "config")
    make(package / "_share" / "config")

    assert resources._find("config", package, [str(tmp_path / "install")]) == in_source


def test_robot_installation_is_found_through_the_ament_prefixes_in_their_order(tmp_path: Path) -> None:
    package = make(tmp_path / "site-packages" / "e2e_perception")
    make(tmp_path / "underlay" / "share" / "e2e_perception" / "resource")
    overlay = make(tmp_path / "overlay" / "share" / "e2e_perception" / "resource")
    prefixes = [str(tmp_path / name) for name in ("unrelated", "overlay", "underlay")]

    assert resources._find("resource", package, prefixes) == overlay


def test_directory_beside_an_installed_package_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    package = make(tmp_path / "site-packages" / "e2e_perception")
    make(tmp_path / "site-packages" / "config")
    in_wheel = make(package / "_share" / "config")

    assert resources._find("config", package, []) == in_wheel


def test_missing_directory_is_an_error_that_lists_where_it_was_searched(tmp_path: Path) -> None:
    package = make(tmp_path / "site-packages" / "e2e_perception")

    with pytest.raises(
        ConfigError, match=r"config/ directory was not found; searched .*_share.config.*Source"
    ):
        resources._find("config", package, [str(tmp_path / "prefix")])


def test_this_checkout_finds_its_own_directories() -> None:
    root = Path(__file__).resolve().parents[2]

    assert resources.config_dir() == root / "config"
    assert resources.resource_dir() == root / "resource"


def test_ament_prefix_path_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = make(tmp_path / "prefix" / "share" / "e2e_perception" / "config")
    monkeypatch.setattr(resources, "_PACKAGE_DIR", make(tmp_path / "site-packages" / "e2e_perception"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f":{tmp_path / 'prefix'}")

    assert resources.config_dir() == shared
