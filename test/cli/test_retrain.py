"""`retrain`: bags in, a bundle and a comparison out; in small."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic import SMALL, synthetic_clip

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")

from dataclasses import replace

from e2e_perception.cli import fan_out
from e2e_perception.cli.main import main
from e2e_perception.core.network_config import SIZES
from e2e_perception.data.clip_store import ClipWriter, split_of
from e2e_perception.data.shards import Dataset
from e2e_perception.deploy.bundle import load_bundle


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Simulated ones, on both sides of the split."""
    path = tmp_path / "clips"
    writer = ClipWriter(path)
    names = {"train": [], "validation": []}
    for k in range(60):
        names[split_of(f"made/{k}")].append(f"made/{k}")
    for n, scenario in enumerate([*names["train"][:3], *names["validation"][:3]]):
        writer.write(f"clip-{n}", replace(synthetic_clip(SMALL, seed=n, num_frames=5), scenario=scenario))
    writer.finish()
    return path


@pytest.fixture
def words(
    bag: Path, bundle: Path, clips: Path, rig_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setitem(SIZES, SMALL.size, SMALL)
    config = tmp_path / "short.yaml"
    stages = [{"name": "all", "steps": 3, "clip_length": 4}]
    config.write_text(
        yaml.safe_dump({"size": SMALL.size, "batch_clips": 2, "promotion": {"clips": 2}, "stages": stages})
    )
    return ["retrain", str(bag), "--bundle", str(bundle), "--rig", str(rig_file), "--data", str(clips),
            "--config", str(config), "--clip-length", "5"]  # fmt: skip


def test_from_a_bag_to_a_bundle_and_what_it_is_worth(
    words: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "retrained"
    assert main([*words, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert json.loads((out / "retrain.json").read_text()) == told
    before, after = load_bundle(bundle), load_bundle(out / "bundle")
    assert told["before"] == str(before) and told["after"] == str(after)
    assert before.digest != after.digest and told["parity"] <= 1e-4
    provenance = after.manifest["provenance"]
    assert provenance["parent"] == before.digest and provenance["steps"] == 3
    (shard,) = Dataset(out / "dataset").stores()
    assert shard.digest in provenance["dataset_digests"]
    assert told["clips"] >= told["labelled_clips"] >= 3
    row = told["figures"]["plan_from_driven_3s_m"]
    assert row["after"] - row["before"] == pytest.approx(row["difference"], abs=1e-6)
    assert "average_precision" in told["figures"]
    evaluation = json.loads((out / "bundle" / "evaluation.json").read_text())
    for name, row in told["figures"].items():
        assert evaluation.pop(name) == row["after"] and evaluation.pop(f"parent/{name}") == row["before"]
    assert evaluation == {"clips": told["clips"], "labelled_clips": told["labelled_clips"]}
    # Called again, nothing is done twice.
    stamp = (out / "run" / "checkpoint.safetensors").stat().st_mtime_ns
    assert main([*words, "--out", str(out), "--json"]) == 0
    assert (out / "run" / "checkpoint.safetensors").stat().st_mtime_ns == stamp
    assert json.loads(capsys.readouterr().out)["figures"] == told["figures"]


@pytest.mark.parametrize("ray", [(), ("--ray", "local")])
def test_recordings_are_ingested_as_ingest_would(
    words: list[str], bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: tuple[str, ...]
) -> None:
    """In as many processes as asked for, here one after the other, and with pictures blackened first."""
    (tmp_path / "blackening.py").write_text("def all_of_it(rgb):\n    return rgb * 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "blackening", raising=False)
    asked: list[Any] = []

    def one_by_one(function: Callable[[Any], Any], tasks: Sequence[Any], *where: Any) -> Iterator[Any]:
        asked.append(where)
        yield from enumerate(map(function, tasks))

    monkeypatch.setattr(fan_out, "fan_out", one_by_one)
    monkeypatch.setattr(fan_out, "fan_out_on_ray", one_by_one)
    gates = tmp_path / "gates.yaml"
    gates.write_text("max_findings: {synthetic_stamps: 0}\n")  # nothing is trained
    out, second = tmp_path / "retrained", tmp_path / "second"
    shutil.copytree(bag, second)
    more = ["--privacy", "blackening:all_of_it", "--workers", "3", "--gates", str(gates), *ray]
    assert main([words[0], str(second), *words[1:], "--out", str(out), *more]) == 1
    assert asked == [("local", 3) if ray else (3,)]
    dataset = Dataset(out / "dataset")
    assert len(dataset.shards()) == 2
    for shard, store in zip(dataset.shards(), dataset.stores(), strict=True):
        assert dataset.facts(shard.name)["recipe"]["privacy"].startswith("blackening:all_of_it@")
        seen = store.read(0).inputs
        assert seen["camera_valid"].any() and not seen["images"].any()


def test_a_broken_gate_stops_it_before_anything_is_trained(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("max_findings: {synthetic_stamps: 0}\n")
    out = tmp_path / "retrained"
    assert main([*words, "--out", str(out), "--gates", str(gates)]) == 1
    assert "nothing was trained" in capsys.readouterr().err
    assert not (out / "run").exists() and not (out / "bundle").exists()


def one_side(path: Path, split: str) -> Path:
    """Clips that are all on one side of the split."""
    writer = ClipWriter(path)
    name = next(f"made/{k}" for k in range(99) if split_of(f"made/{k}") == split)
    writer.write("clip", replace(synthetic_clip(SMALL, num_frames=5), scenario=name))
    writer.finish()
    return path


def test_what_would_be_refused_in_the_end_is_refused_before_anything_is_ingested(
    words: list[str], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "retrained"
    words = [*words, "--out", str(out)]

    def refused(*changed: str) -> str:
        assert main(list(changed)) == 2
        assert not (out / "dataset").exists()
        return " ".join(capsys.readouterr().err.split())

    # The recording itself is on the side of training: its digest says so, without ingesting it.
    train = str(one_side(tmp_path / "train", "train"))
    assert "no clip is in the validation split" in refused(*[train if w == str(clips) else w for w in words])
    junk = tmp_path / "junk.mcap"
    junk.write_bytes(b"junk")
    assert "no MCAP file" in refused(words[0], words[1], str(junk), *words[2:])
    assert "no bag at" in refused(words[0], words[1], str(tmp_path / "none"), *words[2:])
    assert "not a dataset of clips" in refused(*words, "--data", str(tmp_path / "empty"))
    (out / "bundle").mkdir(parents=True)
    (out / "bundle" / "notes.txt").write_text("mine")
    assert "is there already and is no bundle" in refused(*words)


def test_another_size_than_the_bundles_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x")
    assert main([*words, "--out", out, "--set", "size=nano"]) == 2
    assert "trains size nano" in " ".join(capsys.readouterr().err.split())
