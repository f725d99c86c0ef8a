"""`quantize`, `bundle record-rollout` and `bundle add-evaluation` on what was made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from episode_records import bare_record
from synthetic import synthetic_clip

from e2e_perception.cli.main import main
from e2e_perception.data.clip_store import ClipWriter, split_of
from e2e_perception.deploy.bundle import load_bundle
from e2e_perception.deploy.bundle_writing import ROOMS, with_evaluation
from e2e_perception.evaluation.bundle_figures import DRIVE_ROOM, STACK_ROOM
from e2e_perception.evaluation.outcome_tables import summarize, write_outcomes
from e2e_perception.evaluation.outcomes import outcome

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


@pytest.fixture
def measured(bundle: Path, tmp_path: Path) -> Path:
    """An evaluation directory of the bundle."""
    opened, directory = load_bundle(bundle), tmp_path / "measured"
    drive = directory / "drive-smoke"
    outcomes = [replace(outcome(bare_record()), success=n > 0, scenario=f"s/{n}") for n in range(4)]
    facts = {"policy": f"bundle:{opened}", "suite": "smoke", "rig": opened.rig.name, "loop": "closed"}
    write_outcomes(drive, outcomes, {**facts, **summarize(outcomes)})
    document = {"bundle_digest": opened.digest, "suite": "validation", "scenarios": 60, "left_out": {}}
    document |= {"limit": None, "degradation": None, "params": None, "rig": opened.rig.name}
    document["figures"] = {"detection/map": 0.5, "tracking/hota": 0.25}
    (directory / "perception.json").write_text(json.dumps(document))
    return directory


def test_what_was_measured_of_a_bundle_is_put_into_it(
    bundle: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "described"
    words = ["bundle", "add-evaluation", str(bundle), str(measured), "--known-fault", "It is late.", "--json"]
    assert main([*words, "--out", str(out)]) == 0
    before, after = load_bundle(bundle), load_bundle(out)
    assert json.loads(capsys.readouterr().out)["digest"] == after.digest != before.digest
    assert after.digests == (after.digest, before.digest) and str(before) in after.labels
    for name in ("model.onnx", "weights.safetensors", "rollout.npz"):
        assert (out / name).read_bytes() == (bundle / name).read_bytes()
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (
        evaluation["drive/smoke/success_rate"] == 0.75 and evaluation["stack/validation/detection/map"] == 0.5
    )
    card = (out / "MODEL_CARD.md").read_text()
    for line in ("### Driving in closed loop", "| smoke/success_rate | 0.75 |", "- It is late."):
        assert line in card
    # Measured again, the old figures of the same suite go; the fault that was named stays.
    document = json.loads((measured / "perception.json").read_text())
    document |= {"figures": {"detection/map": 0.75}}  # of the bundle that it is a copy of
    (measured / "perception.json").write_text(json.dumps(document))
    shutil.rmtree(measured / "drive-smoke")
    assert main(["bundle", "add-evaluation", str(out), str(measured), "--out", str(out)]) == 0
    assert load_bundle(out).digests[1:] == after.digests
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["stack/validation/detection/map"] == 0.75 and "drive/smoke/success_rate" in evaluation
    assert "stack/validation/tracking/hota" not in evaluation
    assert "- It is late." in (out / "MODEL_CARD.md").read_text()


def test_what_was_measured_of_another_or_in_part_is_not_put_into_a_bundle(
    bundle: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> str:
        out = tmp_path / "described"
        assert main(["bundle", "add-evaluation", str(bundle), str(measured), "--out", str(out)]) == 2
        assert not out.exists()
        return " ".join(capsys.readouterr().err.split())

    path = measured / "perception.json"
    document = json.loads(path.read_text())
    for change, told in (
        ({"limit": 3}, "with limit 3; expected a whole suite"),
        ({"left_out": {"s/1": "it was too short"}}, "with left_out {'s/1'"),
        ({"params": "mine.yaml"}, "with params 'mine.yaml'"),
        ({"rig": "van"}, "with rig van; expected the bundle's"),
        ({"degradation": "fog"}, "with degradation 'fog'"),
        ({"bundle_digest": "abc"}, "was measured of abc; expected"),
    ):
        path.write_text(json.dumps({**document, **change}))
        assert told in refused()
    path.unlink()
    (measured / "drive-smoke").rename(measured / "drive-test")
    assert "is of suite 'smoke', closed loop; expected drive-SUITE" in refused()
    (measured / "drive-test").rename(measured / "drive-smoke")
    summary = json.loads((measured / "drive-smoke" / "summary.json").read_text())
    (measured / "drive-smoke" / "summary.json").write_text(json.dumps({**summary, "loop": "open"}))
    assert "open loop; expected drive-SUITE, driven in closed loop" in refused()
    shutil.rmtree(measured / "drive-smoke")
    assert "holds none of perception.json" in refused()


def test_rooms_of_figures_are_called_the_same_on_both_sides() -> None:
    assert (STACK_ROOM, DRIVE_ROOM) == ROOMS


def test_a_bundle_that_cannot_be_replaced_stays(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    shutil.copytree(bundle, out)
    before, rename = load_bundle(out).digest, Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="no space left"):
        with_evaluation(load_bundle(out), out, {"stack/smoke/detection/map": 0.5})
    assert load_bundle(out).digest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
