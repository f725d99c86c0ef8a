"""Where the package's configuration and bundles lie: source tree, robot or pip install."""

from __future__ import annotations

import os
from pathlib import Path

from e2e_perception.core.errors import ConfigError

# Resolved, because a symlink install links this file to the source tree, whose config/ is then the one meant.
_PACKAGE_DIR = Path(__file__).resolve().parent.parent


def _find(name: str, package_dir: Path, prefixes: list[str]) -> Path:
    """The first place that has a directory of that name.

    Args:
        name: `config` or `resource`.
        package_dir: Directory of the imported `e2e_perception` package.
        prefixes: ROS install prefixes, best first.
    Returns:
        An existing directory.
    Raises:
        ConfigError: If no place has it.
    """
    candidates = []
    if (package_dir.parent / "package.xml").is_file():
        candidates.append(package_dir.parent / name)
    candidates += [Path(prefix) / "share" / "e2e_perception" / name for prefix in prefixes]
    candidates.append(package_dir / "_share" / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    searched = ", ".join(str(candidate) for candidate in candidates)
    raise ConfigError(
        f"the package's {name}/ directory was not found; searched {searched}. Source the workspace's "
        "install/setup.bash, or reinstall with `pip install .` from the source tree"
    )


def _prefixes() -> list[str]:
    return [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]


def config_dir() -> Path:
    """Directory of the shipped YAML files: parameters, `rigs/`, visualisation layouts.

    Raises:
        ConfigError: If the installation is incomplete.
    """
    return _find("config", _PACKAGE_DIR, _prefixes())


def resource_dir() -> Path:
    """Directory of the shipped resources: `bundles/NAME`.

    Raises:
        ConfigError: If the installation is incomplete.
    """
    return _find("resource", _PACKAGE_DIR, _prefixes())


def message_dir() -> Path:
    """Directory of the definitions of the package's own messages, `*.msg`.

    Raises:
        ConfigError: If the installation is incomplete.
    """
    return _find("msg", _PACKAGE_DIR, _prefixes())
