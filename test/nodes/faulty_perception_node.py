"""`perception_node` with an engine that does what files in a directory tell it; the rest is real.

    hang    a FIFO: `infer` does not return until somebody has opened it for writing and closed it again
    nan     `infer` gives plans that are no numbers
    refuse  no engine can be made

An engine that is freed leaves a file `closed-…` there.

Run as a module's file: `python faulty_perception_node.py DIRECTORY [--ros-args …]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from e2e_perception.deploy.engines import configured_engine
from e2e_perception.nodes import perception_node
from e2e_perception.runtime import hot_swap


class FaultyEngine:
    """A real engine with faults."""

    def __init__(self, engine: Any, faults: Path) -> None:
        self._engine, self._faults = engine, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if (self._faults / "hang").exists():
            (self._faults / "hang").read_bytes()
        outputs = self._engine.infer(inputs)
        if (self._faults / "nan").exists():
            outputs["plan_costs"] = np.full_like(outputs["plan_costs"], np.nan)
        return outputs

    def close(self) -> None:
        self._engine.close()
        (self._faults / f"closed-{id(self)}").touch()


def main() -> int:
    faults = Path(sys.argv.pop(1))

    def create(*arguments: Any) -> FaultyEngine:
        if (faults / "refuse").exists():
            raise RuntimeError("the driver is gone")
        return FaultyEngine(configured_engine(*arguments), faults)

    hot_swap.configured_engine = create
    return perception_node.main()


if __name__ == "__main__":
    sys.exit(main())
