"""`mine`: a list that people can copy names out of, and that says what is not known and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")

from synthetic import SMALL, synthetic_clip

from e2e_perception.cli.console import print_table
from e2e_perception.cli.main import main
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.data.review_clips import ReviewDataset
from e2e_perception.data.shards import Dataset

SHARD = "a-recording-with-a-name-that-is-as-long-as-those-of-logs-and-bags-0123456789ab"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, the second without any sensor, the third with interventions."""
    made = Dataset(tmp_path_factory.mktemp("mined") / "set")
    with made.writing(SHARD) as directory:
        writer = ClipWriter(directory)
        for k in range(4):
            clip = synthetic_clip(SMALL, seed=k, num_frames=3)
            if k == 1:
                dead = {
                    name: np.zeros_like(clip.inputs[name]) for name in clip.inputs if name.endswith("_valid")
                }
                clip = replace(clip, inputs={**clip.inputs, **dead})
            writer.write(f"{k:06d}", clip, {"interventions": 3 if k == 2 else None})
        writer.finish()
        made.seal(SHARD, {"frames": 12}, [])
    return made.path


def test_the_list_names_clips_whole_and_says_what_it_leaves_out(
    dataset: Path,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = tmp_path / "review.json"
    assert main(["mine", str(dataset), "--bundle", str(bundle), "--out", str(listed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for clip_id in ("000000", "000002", "000003"):
        row = lines[lines.index(f"{SHARD}/{clip_id}") + 1].split()
        assert len(row) == 7 and row[5] == ("1.00" if clip_id == "000002" else "–")
    assert not any("000001" in line for line in lines)
    assert any(line.startswith("1 clips are left out: no sensor") for line in lines)
    told = json.loads(listed.read_text())
    assert [(c["clip_id"], c["shard"]) for c in told["left_out"]] == [("000001", SHARD)]
    assert {c["clip_id"]: c["signals"]["interventions"] for c in told["clips"]} == {
        "000000": None, "000002": 3.0, "000003": None
    }  # fmt: skip
    names = ReviewDataset.open(dataset).names(listed)
    assert [name.clip_id for name in names] == [c["clip_id"] for c in told["clips"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo=1"], "--weight foo=1: expected SIGNAL=VALUE, one of uncertainty"),
        (["regret"], "--weight regret: expected SIGNAL=VALUE"),
        (["regret=-1"], "--weight regret=-1: expected"),
        (["regret=0", "novelty=0"], "--weight regret=0 novelty=0: expected at least one value above 0"),
    ],
)
def test_weights_that_are_none_are_refused_as_they_were_given(
    dataset: Path, bundle: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for value in words for word in ("--weight", value)]
    assert main(["mine", str(dataset), "--bundle", str(bundle), *given]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_table_of_short_names_is_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table("set", ("shard", "clips"), [("a" * 60, "7")], names=True)
    print_table("set", ("shard", "clips"), [("b" * 90, "7"), ("c", "12345")], names=True)
    lines = capsys.readouterr().out.splitlines()
    assert f"{'a' * 60}      7" in lines
    at = lines.index("b" * 90)
    assert lines[at + 1 : at + 4] == ["      7", "c", "  12345"]
