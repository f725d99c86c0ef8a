"""`quantize` and `bundle record-rollout` on clips made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import synthetic_clip

from e2e_perception.cli.main import main
from e2e_perception.data.clip_store import ClipWriter, split_of
from e2e_perception.deploy.bundle import load_bundle

pytest.importorskip("torch", reason="torch is not installed; quantizing needs it")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips") / "clips"
    writer = ClipWriter(directory)
    names = (f"scenario/{number}" for number in range(1000))
    wanted = {"train": 2, "validation": 1}
    for name in names:
        split = split_of(name)
        if wanted.get(split, 0) > 0:
            wanted[split] -= 1
            writer.write(name.replace("/", "-"), replace(synthetic_clip(seed=len(name)), scenario=name))
        if not any(wanted.values()):
            break
    writer.finish()
    return directory


def test_a_bundle_is_quantized_on_clips(
    bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small-int8"
    assert main(["quantize", str(bundle), "--data", str(clips), "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parent"] == load_bundle(bundle).digest
    assert document["digest"] == load_bundle(out).digest
    assert document["quantization"]["frames"] == 8
    assert document["differences"]["objects lost"] == 0
    assert load_bundle(out).precision == "int8"


def test_a_rollout_is_recorded_from_clips_or_generated(
    bundle: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, source in (([], "generated, seed "), (["--data", str(clips)], "clip scenario/")):
        out = tmp_path / f"with{len(options)}"
        assert main(["bundle", "record-rollout", str(bundle), "--out", str(out), *options, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["source"].startswith(source)
        assert document["digest"] == load_bundle(out).digest


def test_clips_of_another_size_are_one_sentence(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "tiny", "--data", str(clips), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "size tiny expects" in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
