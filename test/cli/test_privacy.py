"""Privacy at the door: what is stored has been through the function, or nothing is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from short_drive import NUM_FRAMES

from e2e_perception.cli.main import main
from e2e_perception.cli.privacy import Privacy
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.samples import ImageSample, SensorMessage
from e2e_perception.data.shards import Dataset, open_clips

MODULE = """
import numpy as np

def left_half(rgb):
    assert rgb.shape == (64, 96, 3) and rgb.dtype == np.uint8
    rgb[:, :48] = 0
    return rgb

def nothing(rgb):
    return rgb

def smaller(rgb):
    return rgb[::2]

def grey(rgb):
    return rgb.astype(np.float32)

def fails(rgb):
    raise RuntimeError("no model file")

NUMBER = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of its own for each test: modules are imported once."""
    name = f"blurring_{abs(hash(request.node.name))}"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    return name


def words(bag: Path, out: Path, rig: Path, *more: str) -> list[str]:
    return ["ingest", str(bag), "--out", str(out), "--rig", str(rig), "--clip-length", "5", *more]


def test_stored_pictures_have_been_through_the_function_and_the_digest_says_so(
    bag: Path, rig_file: Path, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests, names = set(), set()
    for number, privacy in enumerate((None, f"{module}:left_half", f"{module}:nothing")):
        out = tmp_path / str(number)
        given = [] if privacy is None else ["--privacy", privacy]
        assert main(words(bag, out, rig_file, *given, "--json")) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["frames"] == NUM_FRAMES
        digests.add(told["digest"])
        names.add(told["bags"][0]["shard"])
        facts = Dataset(out).facts(told["bags"][0]["shard"])
        recipe = facts["recipe"].get("privacy")
        assert recipe is None if privacy is None else recipe.startswith(f"{privacy}@")
        Dataset(out).verify()
    assert len(digests) == len(names) == 3, "another recipe is another shard, though no pixel changed"
    (plain,), (blurred,) = open_clips(tmp_path / "0"), open_clips(tmp_path / "1")
    width = plain.read(0).inputs["images"].shape[3]
    for index in range(len(plain)):
        before, after = (store.read(index).inputs["images"][:, 0] for store in (plain, blurred))
        # The picture is scaled by interpolation: a pixel beside the edge may have some of both sides.
        assert not after[:, :, : width // 2 - 4].any() and before[:, :, : width // 2 - 4].any()
        np.testing.assert_array_equal(after[:, :, width // 2 + 4 :], before[:, :, width // 2 + 4 :])
        np.testing.assert_array_equal(
            plain.read(index).inputs["lidar_raster"], blurred.read(index).inputs["lidar_raster"]
        )


def test_a_changed_function_makes_another_shard(
    bag: Path, rig_file: Path, module: str, tmp_path: Path
) -> None:
    stated = Privacy(f"{module}:nothing").stated
    file = next((tmp_path / "modules").glob("*.py"))
    file.write_text(MODULE + "# corrected\n")
    assert Privacy(f"{module}:nothing").stated != stated


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", "RuntimeError('no model file')"),
        ("smaller", "it gave uint8[32, 96, 3], expected uint8[64, 96, 3]"),
        ("grey", "it gave float32[64, 96, 3], expected uint8[64, 96, 3]"),
        ("absent", "has no absent"),
        ("NUMBER", "it is a int, expected a function"),
    ],
)
def test_what_is_wrong_stops_ingest_and_no_shard_is_finished(
    function: str,
    said: str,
    bag: Path,
    rig_file: Path,
    module: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "set"
    assert main(words(bag, out, rig_file, "--privacy", f"{module}:{function}")) == 2
    told = capsys.readouterr().err
    assert said in " ".join(told.split()) and "Traceback" not in told
    assert Dataset(out).shards() == []


@pytest.mark.parametrize("name", ["", "module", ":function", "module:", "no_such_module_here:function"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--privacy"):
        Privacy(name)


def test_the_recording_itself_is_left_alone_and_damaged_pictures_are_passed_on(module: str) -> None:
    picture = np.full((64, 96, 3), 200, np.uint8)
    message = SensorMessage("front", 5, 6, ImageSample(picture))
    blurred = Privacy(f"{module}:left_half").apply(message)
    assert (picture == 200).all() and not blurred.payload.rgb_HW3[:, :48].any()
    assert (blurred.sensor, blurred.stamp_ns, blurred.arrival_ns) == ("front", 5, 6)
    damaged = SensorMessage("front", 5, 6, ImageSample(np.zeros((4, 4), np.uint8)))
    assert Privacy(f"{module}:left_half").apply(damaged) is damaged
