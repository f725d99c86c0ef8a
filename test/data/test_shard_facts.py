"""What a dataset says of itself: what was altered is found, what is damaged is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")
pytest.importorskip("scipy", reason="scipy is not installed: `pip install .[training]`")

from drives import SHARD as NAME
from drives import write_dataset

from e2e_perception.cli.main import main
from e2e_perception.core.errors import InputError
from e2e_perception.data.shards import DATASET, SHARD, Dataset

Change = Callable[[Any], Any]


def rewrite(file: Path, change: Change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))), encoding="utf-8")


def merged(**changes: Any) -> Change:
    return lambda document: {**document, **changes}


def listed(**changes: Any) -> Change:
    return lambda document: {**document, "shards": [{**document["shards"][0], **changes}]}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "set", 10, labelled=True)


def facts_file(dataset: Dataset) -> Path:
    return dataset.directory(NAME) / SHARD


@pytest.mark.parametrize("change", [{"bag_digest": "0" * 64}, {"odometry": {"count": 3}}, {"start_ns": 7}])
def test_facts_that_were_altered_are_found(dataset: Dataset, change: dict[str, Any]) -> None:
    assert dataset.verify() == []
    rewrite(facts_file(dataset), merged(**change))
    with pytest.raises(InputError, match=r"shard\.json was altered: .* digest that dataset\.json says"):
        dataset.verify()


def test_every_flipped_bit_of_the_facts_is_found(dataset: Dataset) -> None:
    file = facts_file(dataset)
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(InputError):
                dataset.verify()
    file.write_bytes(whole)
    assert dataset.verify() == []


@pytest.mark.parametrize("change", [{"clips": 3}, {"frames": 11}])
def test_counts_that_the_shard_contradicts_are_found(dataset: Dataset, change: dict[str, Any]) -> None:
    rewrite(dataset.path / DATASET, listed(**change))
    with pytest.raises(InputError, match=r"dataset\.json says that shard .*shard\.json says 2 of 10"):
        dataset.verify()


def test_a_dataset_of_before_opens_and_verify_says_what_is_not_known(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = dataset.digest

    def of_before(document: dict[str, Any]) -> dict[str, Any]:
        for shard in document["shards"]:
            del shard["facts_digest"]
        return document

    rewrite(dataset.path / DATASET, of_before)
    assert dataset.digest == digest and dataset.verify() == [NAME]
    assert main(["dataset", "verify", str(dataset.path), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["whole"] and told["facts_unrecorded"] == [NAME]
    assert "whether that was altered is not known" in captured.err


LISTS: list[Change] = [
    listed(name=5), listed(frames="x"), listed(digest=None), listed(clips=-1), listed(other=1),
    merged(shards=3), lambda document: [document],
]  # fmt: skip
FACTS: list[Change] = [
    merged(files=3), merged(files={"labels.parquet": 1}), merged(timing={"front": [1]}), merged(odometry=5),
    merged(timing={"front": {"count": 50, "longest_gap_ms": 9.0}}), merged(timing={"front": {"count": "x"}}),
    merged(source="bag"), merged(recipe={"size": ["tiny"]}), merged(start_ns=1.5), merged(warnings="none"),
    merged(left_out=[1]), merged(recipe={"size": "tiny", "rig": {"sensors": [{}]}}),
    lambda document: [document],
]  # fmt: skip
COMMANDS = (
    ["dataset", "show"],
    ["dataset", "verify"],
    ["dataset", "split"],
    ["audit"],
    ["audit", "--no-verify"],
)


def told(command: list[str], dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*command, str(dataset.path), "--json"]) == 2
    return str(json.loads(capsys.readouterr().out)["error"])


@pytest.mark.parametrize("number", range(len(LISTS)))
def test_a_damaged_list_is_said_by_every_command(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    rewrite(dataset.path / DATASET, LISTS[number])
    for command in (*COMMANDS, ["dataset", "diff", str(dataset.path)]):
        assert f"{DATASET} is damaged: " in told(command, dataset, capsys)


@pytest.mark.parametrize("number", range(len(FACTS)))
def test_damaged_facts_are_said_by_every_command(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    rewrite(facts_file(dataset), FACTS[number])
    for command in COMMANDS:
        assert f"{SHARD} is damaged: " in told(command, dataset, capsys)


def test_a_shard_that_does_not_say_its_source_is_shown(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(facts_file(dataset), lambda facts: {k: v for k, v in facts.items() if k != "source"})
    assert main(["dataset", "show", str(dataset.path), "--json"]) == 0
    (shard,) = json.loads(capsys.readouterr().out)["shards"]
    assert (shard["name"], shard["source"]) == (NAME, "not known")
