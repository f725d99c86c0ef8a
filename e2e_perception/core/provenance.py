"""What figures were made with: the commit of the source tree, and versions of what computed them."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import e2e_perception


def git_commit() -> str | None:
    """The commit of the source tree, `-dirty` where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return answer.stdout.strip() or None


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Of this package, Python and some libraries; None for what is not installed."""
    found: dict[str, str | None] = {
        "e2e_perception": e2e_perception.__version__,
        "python": platform.python_version(),
    }
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
