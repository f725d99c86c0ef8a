"""What a user meets: help with all options, one JSON object, one sentence and exit code 2 when wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_perception.cli import simulate as simulate_module
from e2e_perception.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "doctor": ["--json"],
    "demo": ["--bag", "--scenario", "--degrade", "--rig", "--out", "--rate", "--bundle", "--backend",
             "--params", "--json"],
    "replay": ["--out", "--bundle", "--rig", "--backend", "--params", "--report", "--json"],
    "run": ["--params", "--bundle", "--backend", "--rig", "--namespace", "--use-sim-time", "--play",
            "--record", "--json"],
    "simulate": ["--out", "--kind", "--suite", "--limit", "--seed", "--duration", "--format", "--scenarios",
                 "--part", "--family", "--disturb", "--workers", "--ray", "--degrade", "--rig", "--json"],
    "ingest": ["--rig", "--out", "--size", "--clip-length", "--stride", "--workers", "--ray", "--params",
               "--json"],
    "quantize": ["--data", "--out", "--num-clips", "--json"],
    "import-log": ["--out", "--size", "--clip-length", "--json"],
    "mine": ["--bundle", "--count", "--out", "--weight", "--diversity", "--max-clips", "--json"],
    "autolabel": ["DATASET", "--out", "--bundle", "--backend", "--least-sightings",
                  "--least-confidence", "--json"],
    "label": ["DATASET", "LAYER", "--out", "--precedence", "--json"],
    "audit": ["--gates", "--html", "--verify", "--json"],
    "dataset": ["show", "diff", "verify"],
    "dataset show": ["DATASET", "--json"],
    "dataset diff": ["--json"],
    "dataset verify": ["DATASET", "--json"],
    "drive": ["--suite", "--scenario", "--log", "--policy", "--workers", "--ray", "--degrade", "--strength",
              "--limit", "--views", "--rig", "--backend", "--params", "--out", "--json"],
    "train": ["--data", "--out", "--config", "--set", "--stop-after", "--device", "--tracking", "--drivers",
              "--json"],
    "retrain": ["--out", "--bundle", "--data", "--rig", "--config", "--set", "--gates", "--max-clips",
                "--json"],
    "export": ["--out", "--name", "--rig", "--data", "--evaluation", "--best", "--parent", "--json"],
    "evaluate": ["--data", "--suite", "--out", "--split", "--limit", "--workers", "--degrade", "--json"],
    "compare": ["--against", "--mission", "--out", "--json"],
    "pareto": ["--json"],
    "track": ["--format", "--out", "--poses", "--period", "--set", "--json"],
    "build-engine": ["BUNDLE", "--backend", "--precision", "--compute-capability", "--optimization-level",
                     "--workspace-mib", "--weak-types", "--out", "--cache", "--json"],
    "bundle": ["inspect", "verify", "record-rollout", "add-evaluation"],
    "bundle add-evaluation": ["PATH", "DIRECTORY", "--out", "--known-fault", "--json"],
    "bundle record-rollout": ["PATH", "--out", "--data", "--json"],
    "bundle inspect": ["PATH", "--json"],
    "bundle verify": ["PATH", "--json"],
}  # fmt: skip


def plain(text: str) -> str:
    """Without colours, box characters and line breaks that depend on the terminal."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def sentence_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that failed as it should: on stderr alone, without a traceback."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return plain(captured.err)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_explains_itself_with_its_options_and_an_example(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main([*command.split(), "--help"]) == 0
    text = plain(capsys.readouterr().out)
    for option in OPTIONS[command]:
        assert option in text, f"{command} --help does not mention {option}"
    if command not in ("bundle", "dataset"):
        assert "Example:" in text


def test_help_and_version_need_no_heavy_library() -> None:
    code = (
        "import sys; from e2e_perception.cli.main import main; main(['--help']); main(['--version']);"
        "heavy = {'torch', 'rclpy', 'onnxruntime', 'highway_env', 'rosbags', 'cv2', 'zarr'};"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "HEAVY []" in done.stdout


def test_doctor_gives_one_json_object_that_names_backends_and_how_to_get_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "rclpy", "onnxruntime", "torch", "message_filters", "rosbags"} <= set(findings)
    for finding in findings.values():
        assert finding["ok"] or finding["how_to_get"], finding


def test_doctor_finds_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed")
    assert main(["doctor", "--json"]) == 0
    found = {f["name"]: f["ok"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["rosbags"]
    assert found["onnxruntime"]


def test_doctor_prints_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "Inference backends" in capsys.readouterr().out


def test_an_unknown_bundle_is_one_sentence_that_lists_the_shipped_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bundle", "verify", "no_such_bundle"]) == 2
    assert "error: no bundle 'no_such_bundle'" in sentence_of(capsys)


def test_with_json_an_error_is_still_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "inspect", "no_such_bundle", "--json"]) == 2
    captured = capsys.readouterr()
    assert "no bundle" in json.loads(captured.out)["error"]
    assert captured.err.startswith("error: ")


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(tmp_path)]) == 2
    assert "is not a bundle" in sentence_of(capsys)


def test_an_unknown_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-such-option"]) == 2
    assert "no-such-option" in sentence_of(capsys)


@pytest.mark.parametrize(
    "arguments", [["doctor", "--no-such-option"], ["replay"], ["simulate", "--out", "x", "--duration", "0.5"]]
)
def test_with_json_a_command_line_that_is_not_understood_is_one_json_object_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert "error" in json.loads(captured.out)
    assert "Traceback" not in captured.err


def test_an_unknown_scenario_kind_lists_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--out", str(tmp_path / "x"), "--kind", "martian"]) == 2
    assert "unknown scenario kind 'martian'; there are highway" in sentence_of(capsys)


def test_an_unknown_rig_lists_the_shipped_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--out", str(tmp_path / "x"), "--rig", "martian"]) == 2
    assert re.search(r"no rig 'martian'.*kitti_highway", sentence_of(capsys))


def test_a_broken_rig_file_names_the_file_and_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text("name: x\nsensors: []\nwheels: 4\n", encoding="utf-8")
    assert main(["simulate", "--out", str(tmp_path / "x"), "--rig", str(path)]) == 2
    assert re.search(r"rig\.yaml.*wheels", sentence_of(capsys))


def test_the_help_of_simulate_names_the_kinds_that_the_simulator_has() -> None:
    traffic = pytest.importorskip(
        "e2e_perception.simulation.traffic", reason="highway-env is not installed: `pip install .[training]`"
    )
    assert traffic.KINDS == simulate_module.KINDS


def test_training_refuses_unknown_settings_and_missing_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
    arguments = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--set", "weights.happiness=3"]) == 2
    assert "unknown setting 'weights.happiness'" in sentence_of(capsys)
    assert main([*arguments, "--set", "threads=["]) == 2
    assert "not valid YAML" in sentence_of(capsys)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main([*arguments, "--config", str(binary)]) == 2
    assert "not valid YAML" in sentence_of(capsys)
    assert main([*arguments, "--device", "tpu"]) == 2
    assert "expected cpu or cuda" in sentence_of(capsys)
    assert main([*arguments, "--set", "threads=-1"]) == 2
    assert "threads" in sentence_of(capsys)
    assert main(arguments) == 2
    assert "is not a dataset of clips" in sentence_of(capsys)


def test_exporting_without_a_checkpoint_says_what_writes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "written by `e2e-perception train`" in sentence_of(capsys)


def test_a_suite_becomes_clips_with_priced_proposals_and_bags_driven_by_the_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
    from e2e_perception.core.network_config import SIZES
    from e2e_perception.data.clip_store import ClipStore

    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "name: mine\ndescription: Short ones.\nentries:\n"
        "  - {family: highway+stopped_queue, seeds: [0]}\n  - {family: highway+braking_lead, seeds: [1]}\n",
        encoding="utf-8",
    )
    clips = ["simulate", "--suite", str(suite), "--format", "clips", "--limit", "1", "--degrade", "rain",
             "--out", str(tmp_path / "clips"), "--clip-length", "2", "--json"]  # fmt: skip
    assert main(clips) == 0
    assert json.loads(capsys.readouterr().out)["new_clips"] >= 1
    clip = ClipStore(tmp_path / "clips").read(0)
    assert clip.scenario == "highway+stopped_queue/0@0.5"
    assert clip.plan_costs_TCK is not None
    assert clip.plan_costs_TCK.shape == (2, SIZES["tiny"].num_plans, 5)
    assert main(clips) == 0
    assert json.loads(capsys.readouterr().out)["new_clips"] == 0

    assert main(["simulate", "--suite", str(suite), "--out", str(tmp_path / "bags"), "--workers", "1",
                 "--json"]) == 0  # fmt: skip
    made = json.loads(capsys.readouterr().out)
    assert [Path(bag).name for bag in made["bags"]] == [
        "highway_stopped_queue-000000-0.5", "highway_braking_lead-000001-0.5"
    ]  # fmt: skip
    assert all((Path(bag) / "metadata.yaml").is_file() for bag in made["bags"])
    assert main(["simulate", "--suite", str(suite), "--format", "clips", "--out", str(tmp_path / "some"),
                 "--family", "lead", "--clip-length", "2", "--stride", "4", "--json"]) == 0  # fmt: skip
    capsys.readouterr()
    scenarios = {row["scenario"] for row in ClipStore(tmp_path / "some").rows}
    assert scenarios == {"highway+braking_lead/1@0.5"}
    for words, told in (
        (["--suite", str(suite), "--family", "martian"], "highway+braking_lead, highway+stopped_queue"),
        (["--family", "lead"], "--family needs --suite"),
    ):
        assert main(["simulate", *words, "--out", str(tmp_path / "x")]) == 2
        assert told in sentence_of(capsys)
    assert main(["simulate", "--suite", "martian", "--out", str(tmp_path / "x")]) == 2
    assert "martian" in sentence_of(capsys)
    assert main(["simulate", "--degrade", "martian", "--out", str(tmp_path / "x")]) == 2
    assert "martian" in sentence_of(capsys)


def test_clips_are_continued_and_never_mixed_with_another_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
    arguments = ["simulate", "--format", "clips", "--out", str(tmp_path / "clips"), "--kind", "standstill",
                 "--duration", "1.5", "--clip-length", "2", "--stride", "3", "--json"]  # fmt: skip
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["clips"] == first["new_clips"] >= 1
    assert main([*arguments, "--scenarios", "1"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["new_clips"], second["digest"]) == (0, first["digest"])
    assert main([*arguments[:-1], "--clip-length", "3"]) == 2
    assert "another clip_length" in sentence_of(capsys)
    (tmp_path / "clips" / "simulation.json").write_text("{", encoding="utf-8")
    assert main(arguments[:-1]) == 2
    assert "simulation.json is damaged" in sentence_of(capsys)
    short = ["simulate", "--format", "clips", "--out", str(tmp_path / "short"), "--duration", "1"]
    assert main([*short, "--clip-length", "50"]) == 2
    assert "a clip of 50 frames lasts 5 s" in sentence_of(capsys)
    occupied = tmp_path / "file"
    occupied.write_text("", encoding="utf-8")
    assert main(["simulate", "--format", "clips", "--out", str(occupied)]) == 2
    assert str(occupied) in sentence_of(capsys)
