"""`compare` and `pareto`: tables for people, JSON for programs, files on demand, one sentence when wrong."""

from __future__ import annotations

import json
import re

import pytest
from evaluation_dirs import write_evaluation

from e2e_perception.cli.main import main


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, str]:
    """Two groups of two seeds, by label."""
    root = tmp_path_factory.mktemp("evaluations")
    return {
        f"{group}-{seed}": str(
            write_evaluation(
                root / f"{group}-{seed}",
                seed=seed,
                group=group,
                quality=quality,
                latency_ms=latency_ms,
                draw=draw + seed,
                num=40,
            )
        )
        for group, quality, latency_ms, draw in (("joint", 0.8, 11.0, 0), ("detached", 0.5, 12.0, 10))
        for seed in range(2)
    }


def sides(directories) -> list[str]:
    joint = [path for name, path in directories.items() if name.startswith("joint")]
    detached = [path for name, path in directories.items() if name.startswith("detached")]
    return [*joint, *(word for path in detached for word in ("--against", path))]


def flat(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_the_table_marks_intervals_that_exclude_zero(directories, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", *sides(directories), "--mission", "balanced", "--resamples", "300"]) == 0
    out = capsys.readouterr().out
    assert "a: joint, b: detached" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert re.search(r"\* a\b", rows["composite"])
    assert re.search(r"\* a\b", rows["detection/map"])
    assert "*" not in rows["drive-test/speed_mean_mps"]
    assert "2 against 2 trainings, paired by seed" in out
    assert re.search(r"of \d+ intervals exclude zero \(\*\); by chance about \d would", out)


def test_json_is_the_same_as_the_file_and_the_page_is_beside_it(directories, capsys, tmp_path):
    pytest.importorskip("plotly", reason="plotly is not installed: `pip install .[training]`")
    out = tmp_path / "new" / "place"
    command = ["compare", *sides(directories), "--mission", "balanced", "--resamples", "100"]
    assert main([*command, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert said["differences"][0]["name"] == "composite"
    assert said["scenarios"] == {"perception": 40, "drive-critical": 40, "drive-test": 40}
    assert "joint against detached" in (out / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "report.html"]


def test_without_a_mission_only_figures_are_compared(directories, capsys):
    assert main(["compare", *sides(directories), "--resamples", "50", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mission"] == ""
    assert {item["kind"] for item in said["differences"]} == {"figure"}


def test_a_missing_part_and_what_it_costs_are_said(directories, capsys, tmp_path):
    short = write_evaluation(tmp_path / "short", perception=False)
    command = ["compare", directories["joint-0"], "--against", str(short), "--resamples", "50"]
    assert main(command) == 0
    said = flat(capsys.readouterr().err)
    assert "short: no perception.json, no perception.parquet" in said
    assert "not compared: perception: missing from short" in said
    assert main([*command, "--mission", "balanced"]) == 2
    assert "joint-0: mission balanced: missing detection/map, tracking/hota" in flat(capsys.readouterr().err)


def test_what_is_wrong_is_one_sentence(directories, capsys, tmp_path):
    for command, message in (
        (["compare", directories["joint-0"], "--against", str(tmp_path)], "holds none of perception.json"),
        (
            ["compare", directories["joint-0"], "--against", directories["joint-0"]],
            "label 'joint-0' belongs to",
        ),
        (["compare", *sides(directories), "--mission", "rural"], "no mission 'rural'"),
        (["compare", directories["joint-0"]], "Missing option '--against'"),
        (["pareto", directories["joint-0"], "--axis", "beauty"], "does not say which way is better"),
    ):
        assert main(command) == 2, command
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in flat(captured.err)
        assert "Traceback" not in captured.err


def test_pareto_lists_fronts_and_who_dominates(directories, capsys, tmp_path, monkeypatch):
    pytest.importorskip("plotly", reason="plotly is not installed: `pip install .[training]`")
    monkeypatch.setenv("COLUMNS", "200")
    networks = list(directories.values())
    assert main(["pareto", *networks, "--out", str(tmp_path / "fronts")]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["joint-0"][1:3] == ["0", "–"] or rows["joint-1"][1:3] == ["0", "–"]
    assert rows["detached-0"][1] != "0"
    assert rows["detached-0"][2].startswith("joint-")
    document = json.loads((tmp_path / "fronts" / "pareto.json").read_text(encoding="utf-8"))
    assert [axis["name"] for axis in document["axes"]] == [
        "recognition",
        "tracking",
        "planning",
        "latency_ms",
    ]
    assert (tmp_path / "fronts" / "report.html").is_file()


def test_pareto_says_who_is_disqualified_and_why(directories, capsys, tmp_path):
    poor = write_evaluation(tmp_path / "poor", quality=0.3)
    command = ["pareto", directories["joint-0"], str(poor), "--mission", "urban-conservative"]
    assert main([*command, "--axis", "planning", "--axis", "parameters"]) == 0
    assert "poor is disqualified: " in flat(capsys.readouterr().out)
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["standings"][1]["composite"]["value"] is None
    assert "below the floor of 0.300" in " ".join(said["standings"][1]["composite"]["disqualified"])


@pytest.mark.parametrize("command", ["compare", "pareto"])
def test_help_has_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([command, "--help"]) == 0
    assert "Example:" in capsys.readouterr().out
