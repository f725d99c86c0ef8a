"""The robustness table: what is driven, what is used again, and what the figures are."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

import yaml
from episode_records import bare_record
from script_import import imported

from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.evaluation.outcome_tables import read_outcomes, summarize, write_outcomes
from e2e_perception.evaluation.outcomes import outcome
from e2e_perception.simulation.degradation import load_degradation
from e2e_perception.simulation.suites import load_suite

SENSORS = ["top", "front", "left", "right", "all-cameras", "radar_front", "radar_left", "radar_right"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported("measure_robustness")


class Drives:
    """Stands in for the sub-processes: four episodes, of which as many fail as the strength has quarters."""

    def __init__(self) -> None:
        self.options: list[dict[str, str]] = []
        self.broken_at = ""

    def __call__(self, command: list[str], **_: Any) -> None:
        words = [word for word in command[command.index("drive") + 1 :] if word != "--json"]
        options = dict(zip(words[::2], words[1::2], strict=True))
        self.options.append(options)
        schedule = load_degradation(options["--degrade"])
        if schedule.name == self.broken_at:
            raise subprocess.CalledProcessError(2, command)
        strength = float(options["--strength"])
        good = outcome(bare_record())
        failing = round(4 * strength) if schedule.entries else 0
        outcomes = [
            replace(good, scenario=f"bare/{n}@0.5", success=n >= failing, at_fault_collision=n < failing)
            for n in range(4)
        ]
        suite = load_suite(options["--suite"])
        facts = {
            "policy": f"bundle:{load_bundle(options['--policy'].removeprefix('bundle:'))}",
            "suite": suite.name,
            "suite_digest": suite.digest,
            "limit": int(options["--limit"]) if "--limit" in options else None,
            "degradation": schedule.name,
            "strength": strength,
        }
        write_outcomes(options["--out"], outcomes, {**facts, **summarize(outcomes)})


@pytest.fixture
def drives(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Drives:
    made = Drives()
    monkeypatch.setattr(script.subprocess, "run", made)
    return made


def arguments(out: Path, *more: str) -> list[str]:
    words = ["--bundle", "tiny", "--out", str(out), "--degradations", "fog", "glare"]
    return [*words, *(() if "--suite" in more else ("--suite", "smoke")), *more]


def test_it_drives_with_nothing_with_each_sensor_lost_and_with_each_degradation_by_strength(
    script: ModuleType, drives: Drives, tmp_path: Path
) -> None:
    assert script.main(arguments(tmp_path)) == 0
    names = [Path(options["--out"]).name for options in drives.options]

    assert names[: len(SENSORS) + 2] == ["nothing", *(f"lost-{name}" for name in SENSORS), "lost-all-radars"]
    assert names[len(SENSORS) + 2 :] == [
        f"{d}-{s}" for d in ("fog", "glare") for s in ("0.33", "0.67", "1.00")
    ]
    by_name = dict(zip(names, drives.options, strict=True))
    assert float(by_name["fog-0.33"]["--strength"]) == 1.0 / 3.0
    assert {(o["--suite"], o["--views"]) for o in drives.options} == {("smoke", "none")}
    drives.options.clear()
    for group, expected in (("lost", names[: len(SENSORS) + 2]), ("degraded", ["nothing", *names[-6:]])):
        assert script.main(arguments(tmp_path / group, "--groups", group)) == 0
        assert [Path(options["--out"]).name for options in drives.options] == expected
        drives.options.clear()
    rig = load_bundle("tiny").rig
    for name, sensors in (("lost-front", {"front"}), ("lost-all-radars", {s.name for s in rig.radars})):
        entry = load_degradation(by_name[name]["--degrade"]).entries[0]
        assert {s.name for s in rig.sensors if entry.concerns(s)} == sensors
        assert [entry.level(t) for t in (0.0, 100.0)] == [1.0, 1.0]


def test_the_table_and_the_file_hold_the_paired_differences(
    script: ModuleType, drives: Drives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(arguments(tmp_path, "--strengths", "0.25", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {case["name"]: case for case in json.loads((tmp_path / "robustness.json").read_text())["cases"]}

    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| nothing |  | 1.00 | 0.51 … 1.00 | — | 0.00 | — |")
    assert any(line.startswith("| fog | 0.25 | 0.75 |") for line in lines)
    assert found["fog-0.25"]["against_nothing"]["success"]["difference"] == -0.25
    assert found["fog-0.25"]["against_nothing"]["at_fault_collision"]["only_a"] == 1
    low, high = found["fog-0.25"]["against_nothing"]["success"]["difference_ci95"]
    assert low <= -0.25 <= high <= 0.0
    assert (found["glare-1.00"]["success_rate"], found["nothing"]["success_rate"]) == (0.0, 1.0)


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    script: ModuleType, drives: Drives, tmp_path: Path
) -> None:
    drives.broken_at = "glare"
    assert script.main(arguments(tmp_path)) == 2
    assert not (tmp_path / "robustness.json").exists()
    done = len(drives.options) - 1
    drives.broken_at = ""
    assert script.main(arguments(tmp_path)) == 0
    assert len(drives.options) == done + 1 + 3
    assert script.main(arguments(tmp_path)) == 0
    assert len(drives.options) == done + 1 + 3


def test_what_was_driven_otherwise_is_driven_again(
    script: ModuleType, drives: Drives, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("entries: [{effect: fog}]", encoding="utf-8")
    some = [
        "--bundle",
        "tiny",
        "--out",
        str(tmp_path / "out"),
        "--suite",
        "smoke",
        "--degradations",
        str(mine),
        "--strengths",
        "1",
    ]
    assert script.main(some) == 0
    every = len(drives.options)
    mine.write_text("entries: [{effect: fog, extinction: 0.01}]", encoding="utf-8")
    assert script.main(some) == 0
    assert [Path(o["--out"]).name for o in drives.options[every:]] == ["mine-1.00"]
    assert script.main([*some, "--limit", "3"]) == 0
    assert len(drives.options) == 2 * every + 1


def test_the_unknown_is_refused(
    script: ModuleType, drives: Drives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--suite", "martian"], "no suite 'martian'"),
        (["--bundle", "no"], "no bundle 'no'"),
    ):
        assert script.main(arguments(tmp_path, *more)) == 2
        assert message in capsys.readouterr().err
    assert drives.options == []


@pytest.mark.slow
def test_a_real_measurement_of_a_bundle_that_has_learned_nothing(
    script: ModuleType, bundle: Path, tmp_path: Path
) -> None:
    suite = {"name": "one", "description": "x", "entries": [{"family": "highway", "seeds": [4000000]}]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    given = ["--bundle", str(bundle), "--suite", str(tmp_path / "one.yaml"), "--out", str(tmp_path / "out")]
    assert script.main([*given, "--degradations", "fog", "--strengths", "0.5", "--workers", "1"]) == 0
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())["cases"]

    assert [case["name"] for case in found] == ["nothing", "lost-top", "lost-front", "fog-0.50"]
    outcomes, summary = read_outcomes(tmp_path / "out" / "fog-0.50")
    assert (summary["degradation"], summary["strength"]) == ("fog", 0.5)
    assert [item.failure for item in outcomes] == [""]
