"""Where results go: looked at before the work is done, so that it is not done in vain."""

from __future__ import annotations

import os
from pathlib import Path

from e2e_perception.core.errors import ConfigError


def check_file_place(path: Path, option: str) -> None:
    """Refuse a file that could not be written; nothing is made.

    Args:
        path: Of the file.
        option: That named it, for the message.
    Raises:
        ConfigError: If a directory is there, or its own directory cannot be made or written to.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; name a file in it")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {path}: {there} is a file, expected a directory; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: {there} cannot be written to; name another place")
