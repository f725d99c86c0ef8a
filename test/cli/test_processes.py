"""Child processes are heard, stopped in order, and their end is told with their last words."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from e2e_perception.cli import processes
from e2e_perception.cli.demo import frames_and_silences
from e2e_perception.cli.domain import private_domain
from e2e_perception.cli.main import main
from e2e_perception.cli.processes import NodeError, NodeProcess, parameter_arguments, start_node, stop_nodes
from e2e_perception.core.results import FrameResult, Health, SafetyState
from e2e_perception.core.trajectories import Plan


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `start_node` run a script instead of a node."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(path))


def wait_for_word(node: NodeProcess) -> None:
    """Until the node has said its first line; the test's own time limit ends a wait for ever."""
    while not node.tail:
        assert node.exit_code is None


def test_a_node_that_dies_is_reported_with_code_and_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path, monkeypatch, "import sys; print('fuse blown'); sys.exit(7)")
    node = start_node("perception_node", log_path=tmp_path / "log.txt")
    node.process.wait(timeout=30)
    node.wait_for_output()
    assert re.search(r"perception_node ended with exit code 7.*\| fuse blown", node.failure(), re.S)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "fuse blown\n"


def test_nodes_get_their_arguments_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, monkeypatch, "import os, sys; print(sys.argv[1:], os.environ['ROS_DOMAIN_ID'])")
    node = start_node("replay_node", ["--ros-args"], environment={"ROS_DOMAIN_ID": "42"})
    node.process.wait(timeout=30)
    node.wait_for_output()
    assert node.tail[0] == "['-m', 'e2e_perception.nodes.replay_node', '--ros-args'] 42"


def test_stopping_asks_first_and_reports_a_clean_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(
        tmp_path,
        monkeypatch,
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('file closed'), sys.exit(0)))\n"
        "print('up', flush=True)\nsignal.pause()",
    )
    node = start_node("recorder_node")
    wait_for_word(node)
    stop_nodes([node])
    assert node.exit_code == 0
    assert list(node.tail) == ["up", "file closed"]


def test_a_node_that_will_not_listen_is_ended_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        processes, "_STOP_SIGNALS", ((signal.SIGINT, 0.1), (signal.SIGTERM, 0.1), (signal.SIGKILL, 10.0))
    )
    fake_python(
        tmp_path,
        monkeypatch,
        "import signal\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "print('up', flush=True)\nwhile True: signal.pause()",
    )
    node = start_node("perception_node")
    wait_for_word(node)
    stop_nodes([node])
    assert "ended by signal SIGKILL" in node.failure()


def test_parameters_become_ros_arguments_that_yaml_cannot_misread() -> None:
    arguments = parameter_arguments(
        {"engine.bundle": "1e3", "use_sim_time": True, "rate": 1.0, "topics": ["a:=/b"]},
        params_file=Path("p.yaml"),
        namespace="/robot/",
    )
    assert arguments == [
        "--ros-args", "-r", "__ns:=/robot", "--params-file", "p.yaml", "-p", "engine.bundle:='1e3'",
        "-p", "use_sim_time:=true", "-p", "rate:=1.0", "-p", "topics:=['a:=/b']",
    ]  # fmt: skip
    assert parameter_arguments({}) == []


def test_two_demos_at_once_get_different_domains() -> None:
    with private_domain() as first, private_domain() as second:
        assert first != second


def test_a_domain_whose_port_is_taken_is_passed_over() -> None:
    with private_domain() as domain:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("", 7410 + 250 * domain))
        with private_domain() as other:
            assert other != domain


def test_without_ros_the_demo_says_what_to_do(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--bundle", str(bundle), "--out", str(tmp_path / "out"), "--json"]) == 2
    assert "`e2e-perception replay` works without ROS" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def test_require_ros_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NodeError, match=r"rclpy and e2e_perception\.msg cannot be imported"):
        processes.require_ros()


def test_a_running_node_must_not_overwrite_a_recording(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--bundle", str(bundle), "--record", str(tmp_path)]) == 2
    assert "--record writes a new bag" in capsys.readouterr().err


def test_results_that_report_silence_and_heartbeats_are_no_frames() -> None:
    zero = np.zeros(1)
    stop = Plan(0, zero, np.zeros((1, 2)), zero, zero, zero, -1, {})

    def result(stamp_ns: int, frames: int, plan: Plan | None = None) -> FrameResult:
        health = Health(SafetyState.NOMINAL, (), (), "", "", frames, 0, {}, {})
        return FrameResult(stamp_ns, None, plan, None, health)

    results = [result(0, 0), result(2, 1), result(3, 1), result(4, 2, stop), result(5, 1), result(6, 2, stop)]
    frames, silences = frames_and_silences(results)
    assert [r.stamp_ns for r in frames] == [2, 4]
    assert [r.stamp_ns for r in silences] == [6]
