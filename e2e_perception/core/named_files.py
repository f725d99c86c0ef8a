"""Configuration that is named: a YAML file of the user's, or a shipped one by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.resources import config_dir


def shipped_files(folder: str) -> dict[str, Path]:
    """The YAML files of a folder of `config/`, by name.

    Raises:
        ConfigError: If the installation is incomplete.
    """
    return {path.stem: path for path in sorted((config_dir() / folder).glob("*.yaml"))}


def read_named(path_or_name: str | Path, *, what: str, folder: str, expected: str) -> tuple[Path, Any]:
    """Find and read a file.

    Args:
        path_or_name: A file, or the name of one in `folder`.
        what: What it holds, for messages.
        folder: Of `config/`.
        expected: What the document has to be if it is no mapping, for messages.
    Returns:
        Where it lies, and the mapping in it.
    Raises:
        ConfigError: If there is none, the message lists the shipped ones; or if it is not a YAML mapping.
    """
    text, shipped = str(path_or_name), shipped_files(folder)
    path = Path(text) if Path(text).is_file() else shipped.get(text)
    if path is None:
        raise ConfigError(
            f"no {what} {text!r}: neither a file nor one of the shipped ones ({', '.join(shipped) or 'none'})"
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{what} {path} is {type(document).__name__}, expected {expected}")
    return path, document


def offending_keys(error: ValidationError, root: str) -> list[str]:
    """What pydantic has against a document, one `key: reason` each; `root` stands for the whole."""
    return [
        f"{'.'.join(str(part) for part in item['loc']) or root}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    ]
