"""The whole loop over real DDS: a short bag, three nodes in processes of their own, a report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from short_drive import NUM_FRAMES

from e2e_perception.cli.main import main

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("e2e_perception.msg", reason="messages are not built or not sourced: `. scripts/env.sh`")
pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]


def test_the_demo_plays_a_bag_and_leaves_outputs_summary_and_report(
    bag: Path, bundle: Path, rig_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [
        "demo",
        "--bag",
        str(bag),
        "--rig",
        str(rig_file),
        "--bundle",
        str(bundle),
        "--out",
        str(out),
    ]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames_in"] == NUM_FRAMES
    assert 0 < summary["frames_processed"] <= NUM_FRAMES
    assert summary["plans"] == summary["frames_processed"]
    assert summary["peak_memory_mb"] > 0
    assert {"infer", "total", "latency"} <= set(summary["latency_ms"])
    assert (out / "outputs" / "metadata.yaml").is_file()
    assert '"front"' in (out / "report.html").read_text(encoding="utf-8")
    assert {p.name for p in (out / "logs").iterdir()} == {
        "perception_node.log",
        "recorder_node.log",
        "replay_node.log",
    }


def test_without_a_bag_the_demo_drives_in_closed_loop_and_the_report_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
    out = tmp_path / "out"
    scenario = "highway+stopped_queue/0"  # over after 7 s
    assert main(["demo", "--scenario", scenario, "--rate", "10", "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["scenario"] == f"{scenario}@0.5"
    assert summary["success"] is True
    assert summary["frames_processed"] == summary["plans"] > 50
    assert (out / "outputs" / "metadata.yaml").is_file()
    assert "<canvas" in (out / "episode.html").read_text(encoding="utf-8")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert '"episode":"episode.html"' in report
    assert {p.name for p in (out / "logs").iterdir()} == {
        "perception_node.log",
        "recorder_node.log",
        "sim_node.log",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "martian/1"], "unknown scenario family 'martian'"),
        (["--degrade", "martian"], "martian"),
        (["--bag", "x", "--degrade", "rain"], "--degrade is for a drive"),
    ],
)
def test_what_cannot_be_driven_is_said_before_anything_starts(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_node_that_cannot_be_configured_ends_the_demo_with_its_last_words(
    bag: Path, bundle: Path, rig_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(rig_file.read_text(encoding="utf-8"))
    document["sensors"][0]["name"] = "belly"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    arguments = [
        "--bag",
        str(bag),
        "--rig",
        str(other),
        "--bundle",
        str(bundle),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["demo", *arguments]) != 0
    assert "lidar 'belly', which the network does not know" in capsys.readouterr().err


def test_run_passes_an_interrupt_on_and_exits_cleanly(bundle: Path, rig_file: Path) -> None:
    from e2e_perception.cli.domain import private_domain

    with private_domain() as domain:
        command = [
            sys.executable,
            "-m",
            "e2e_perception.cli",
            "run",
            "--bundle",
            str(bundle),
            "--rig",
            str(rig_file),
        ]
        process = subprocess.Popen(
            command,
            env=_environment(domain),
            cwd=Path(__file__).resolve().parents[2],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "configured" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(said) + rest


def _environment(domain: int) -> dict[str, str]:
    import os

    return {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
