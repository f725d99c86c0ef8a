"""Fixtures of tests that talk to nodes over DDS; ROS is imported only when one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e_perception.cli.domain import private_domain


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has learned nothing, as a complete bundle."""
    pytest.importorskip("torch", reason="torch is not installed; the test bundle cannot be made")
    from node_harness import RIG
    from synthetic import untrained_network

    from e2e_perception.deploy.export import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(
        untrained_network(), out, name="small", rig=RIG, evaluation={"f1": 0.0}, provenance={"seed": 0}
    )
    return out


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain that nobody else uses."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.delenv("RMW_IMPLEMENTATION", raising=False)
    with private_domain() as number:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
        yield number


@pytest.fixture
def start(domain: int) -> Iterator[Callable[..., Any]]:
    """Starts nodes; what still runs at the end of the test is ended."""
    from node_harness import NodeProcess, arguments

    running: list[NodeProcess] = []

    def start_node(module: str, parameters: dict[str, object], *extra: str) -> NodeProcess:
        running.append(NodeProcess(module, arguments(parameters, *extra), domain))
        return running[-1]

    yield start_node
    for process in running:
        process.kill()


@pytest.fixture
def robot(domain: int) -> Iterator[Any]:
    """The test's own side of the conversation."""
    from node_harness import Robot

    robot = Robot(domain)
    yield robot
    robot.close()


@pytest.fixture
def basics(bundle_dir: Path, tmp_path: Path) -> dict[str, object]:
    """Parameters that every perception node here is given."""
    from node_harness import write_rig

    return {
        "node.rig": str(write_rig(tmp_path / "rig.yaml")),
        "engine.bundle": str(bundle_dir),
        "engine.num_threads": 1,
        "supervisor.recovery_frames": 2,
        "supervisor.silence_ms": 10000.0,
        "supervisor.engine_timeout_ms": 60000.0,
        "use_sim_time": True,
    }


@pytest.fixture
def perception(robot: Any, start: Callable[..., Any], basics: dict[str, object]) -> Any:
    """A robot with a running perception node."""
    robot.process = start("perception_node", basics)
    return robot
