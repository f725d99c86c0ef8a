"""Which scenarios a training has its network drive, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import SMALL, synthetic_clip, untrained_network

pytest.importorskip("torch", reason="torch is not installed: `pip install .[training]`")
pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from e2e_perception.cli import on_policy
from e2e_perception.cli.fan_out import Lost
from e2e_perception.cli.on_policy import DONE, GRAPH, Task, collect
from e2e_perception.cli.simulate import specs_of
from e2e_perception.core.errors import InputError
from e2e_perception.data.clip_store import ClipWriter
from e2e_perception.training.config import OnPolicy


class Drives:
    """Stands in for the processes: each episode leaves one clip; one may get lost."""

    def __init__(self) -> None:
        self.driven: list[Task] = []
        self.lost_at: int | None = None

    def __call__(self, _: Any, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
        for number, task in enumerate(tasks):
            if number == self.lost_at:
                yield number, Lost("killed")
                return
            self.driven.append(task)
            clip = replace(synthetic_clip(SMALL, num_frames=4), scenario=task.spec.name)
            ClipWriter(task.out).write(task.file_name, clip)
            (task.out / DONE / task.file_name).touch()
            yield number, 1


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> Drives:
    made = Drives()
    monkeypatch.setattr(on_policy, "fan_out", made)
    monkeypatch.setattr("e2e_perception.deploy.export.export_onnx", lambda model, path: path.touch())
    return made


def test_scenarios_of_a_part_of_some_families_are_driven_and_half_are_disturbed(
    drives: Drives, tmp_path: Path
) -> None:
    wanted = OnPolicy(suite="train", part="2/8", families=("crossing", "debris"))
    store = collect(untrained_network(), wanted, tmp_path / "clips")
    of_the_part = [spec.name for spec in specs_of("train", "2/8")]
    driven = [task.spec for task in drives.driven]
    assert driven and all("crossing" in spec.family or "debris" in spec.family for spec in driven)
    assert {spec.name for spec in driven} < set(of_the_part)
    assert {name for name in of_the_part if "+crossing" in name} <= {spec.name for spec in driven}
    assert len(store) == len(driven)
    assert 0.3 < sum(task.disturbed for task in drives.driven) / len(driven) < 0.7
    everything = OnPolicy(suite="smoke", disturbed=0.0)
    drives.driven.clear()
    collect(untrained_network(), everything, tmp_path / "all")
    assert [task.spec.name for task in drives.driven] == [spec.name for spec in specs_of("smoke", "1/1")]
    assert not any(task.disturbed for task in drives.driven)


def test_what_was_driven_before_an_interruption_is_not_driven_again(drives: Drives, tmp_path: Path) -> None:
    wanted, out = OnPolicy(suite="smoke"), tmp_path / "clips"
    drives.lost_at = 3
    with pytest.raises(InputError, match="killed; start again to go on"):
        collect(untrained_network(), wanted, out)
    drives.lost_at = None
    (out / GRAPH).write_bytes(b"the network that began it")
    store = collect(untrained_network(), wanted, out)
    names = [task.spec.name for task in drives.driven]
    assert names == [spec.name for spec in specs_of("smoke", "1/1")] and len(store) == len(names)
    assert (out / GRAPH).read_bytes() == b"the network that began it"
    collect(untrained_network(), wanted, out)
    assert len(drives.driven) == len(names), "what is whole is taken as it is"


def test_families_that_a_suite_has_not_are_named(drives: Drives, tmp_path: Path) -> None:
    wanted = OnPolicy(suite="smoke", families=("lava",))
    with pytest.raises(
        InputError, match=r"part 1/1 of suite smoke has no scenario of lava; .* other families"
    ):
        collect(untrained_network(), wanted, tmp_path / "clips")
    with pytest.raises(InputError, match=r"part 99/99 of suite smoke has no scenario; name a larger part$"):
        collect(untrained_network(), OnPolicy(suite="smoke", part="99/99"), tmp_path / "clips")
    assert not drives.driven and not (tmp_path / "clips").exists()
