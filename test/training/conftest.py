"""For all tests of training: runs may ask for the small network by its name."""

from __future__ import annotations

import pytest
from synthetic import SMALL

from e2e_perception.training import config as training_config


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_config.SIZES, "small_test", SMALL)
