"""A small bundle with untrained weights, a rig file, and a bag of two seconds that fits both."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from short_drive import RIG, labels, odometry, sensor_messages


@pytest.fixture(scope="session")
def rig_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rig") / "pair.yaml"
    path.write_text(yaml.safe_dump(RIG.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bags = pytest.importorskip("e2e_perception.data.bags", reason="rosbags is not installed")
    path = tmp_path_factory.mktemp("bags") / "drive"
    bags.write_scenario_bag(path, sensor_messages(), RIG, odometry=odometry(), labels=labels())
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: `pip install .[training]`")
    from synthetic import untrained_network

    from e2e_perception.deploy.export import export_bundle

    path = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(untrained_network(), path, name="small", rig=RIG, evaluation={}, provenance={"seed": 0})
    return path
