"""Scripts as modules."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def imported(name: str) -> ModuleType:
    """A script, imported as it would be when run; where later tests look for modules stays as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        for variable in ("PYTHONPATH", "PYTHONSAFEPATH"):
            patch.setenv(variable, os.environ.get(variable, ""))
        return importlib.import_module(name)
