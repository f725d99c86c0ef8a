"""Mining: it lists what is odd, not what is common, and not the same thing twice."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.clips import Clip
from e2e_perception.core.errors import InputError
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.mining import SIGNALS, mine, novelty, picked, shares


class Store:
    """Clips in memory."""

    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips
        self.rows: list[dict[str, int | None]] = [{"interventions": None} for _ in clips]

    def read(self, index: int) -> Clip:
        return self.clips[index]


def network() -> JointNetwork:
    torch.manual_seed(0)
    return JointNetwork(SMALL)


def common(count: int = 8) -> list[Clip]:
    return [synthetic_clip(SMALL, seed=k, num_frames=3) for k in range(count)]


def mined(clips: list[Clip], **settings):
    store = Store(clips)
    weights = settings.pop("weights", dict.fromkeys(SIGNALS, 1.0))
    return mine(network(), [(store, i) for i in range(len(clips))], weights=weights, **settings).clips


def test_every_clip_is_listed_once_with_all_its_signals() -> None:
    found = mined(common(), count=20)
    assert sorted(item.index for item in found) == list(range(8))
    for item in found:
        assert set(item.signals) == set(item.ranks) == set(SIGNALS)
        assert item.signals["interventions"] is None, "these clips do not say"
        assert all(np.isfinite(v) for name, v in item.signals.items() if name != "interventions")
        assert all(0.0 <= value <= 1.0 for value in (*item.ranks.values(), item.score))
    assert mined(common(), count=3)[0].index == found[0].index
    assert len(mined(common(), count=3)) == 3


def test_clips_in_which_the_supervisor_intervened_come_first_where_that_is_asked_for() -> None:
    store = Store(common(4))
    store.rows[1]["interventions"], store.rows[2]["interventions"] = 2, 7
    clips = [(store, i) for i in range(4)]
    found = mine(network(), clips, count=4, weights={"interventions": 1.0}, diversity=0.0).clips
    assert [item.index for item in found[:2]] == [2, 1]
    # Of the others it is not recorded; that is another thing than none.
    assert [item.signals["interventions"] for item in found] == [7.0, 2.0, None, None]
    store.rows[0]["interventions"] = 0
    known = mine(network(), clips, count=4, weights={"regret": 1.0}).clips
    assert {item.index: item.signals["interventions"] for item in known} == {0: 0.0, 1: 2.0, 2: 7.0, 3: None}


def test_who_sees_nothing_is_left_out_and_named() -> None:
    """Of nothing a network is as unsure as can be, which is worth nobody's time."""
    clips = common(4)
    for index in (1, 3):
        nothing = {
            name: np.zeros_like(value) if name in ("camera_valid", "lidar_valid", "radar_valid") else value
            for name, value in clips[index].inputs.items()
        }
        clips[index] = replace(clips[index], inputs=nothing)
    store = Store(clips)
    weights = dict.fromkeys(SIGNALS, 1.0)
    found = mine(network(), [(store, i) for i in range(4)], count=9, weights=weights)
    assert sorted(item.index for item in found.clips) == [0, 2] and found.blind == [1, 3]
    alone = mine(network(), [(store, 1)], count=9, weights=weights)
    assert (alone.clips, alone.blind) == ([], [0])


def test_a_clip_unlike_the_others_is_the_newest() -> None:
    clips = common()
    odd = clips[5]
    inputs = {**odd.inputs, "lidar_raster": np.ones_like(odd.inputs["lidar_raster"])}
    clips[5] = replace(odd, inputs=inputs)
    assert mined(clips, count=1, weights={"novelty": 1.0})[0].index == 5


def test_a_plan_far_from_what_was_driven_is_regretted() -> None:
    clips = common()
    future = clips[2].ego_future_TS3.copy()
    future[..., 1] += 30.0
    clips[2] = replace(clips[2], ego_future_TS3=future)
    (first,) = mined(clips, count=1, weights={"regret": 1.0})
    assert first.index == 2 and first.signals["regret"] > 20.0
    unknown = replace(clips[2], ego_future_valid_TS=np.zeros_like(clips[2].ego_future_valid_TS))
    (last,) = [item for item in mined([*clips[:2], unknown], count=3) if item.index == 2]
    assert last.signals["regret"] == 0.0


def test_labels_are_not_looked_at() -> None:
    clips = common(3)
    bare = [replace(c, ids_TB=np.full_like(c.ids_TB, -1), labels_valid=False) for c in clips]
    a = {item.index: item.signals["uncertainty"] for item in mined(clips, count=3)}
    b = {item.index: item.signals["uncertainty"] for item in mined(bare, count=3)}
    # Untrained, nothing is sure enough to be remembered, so that identities play no part.
    assert a == pytest.approx(b)


@given(seed=st.integers(0, 1000), count=st.integers(1, 12), diversity=st.floats(0.0, 2.0))
def test_picking_gives_distinct_clips_and_the_best_one_first(seed: int, count: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    score, feature = rng.random(9), rng.normal(size=(9, 4))
    chosen = picked(score, feature, count, diversity)
    assert len(chosen) == len(set(chosen)) == min(count, 9)
    assert chosen[0] == int(score.argmax())
    if diversity == 0.0:
        assert chosen == np.argsort(-score)[:count].tolist()


def test_of_twins_one_waits_until_others_have_been_picked() -> None:
    feature = np.array([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    score = np.array([0.9, 0.89, 0.6, 0.5])
    assert picked(score, feature, 4, 0.5) == [0, 2, 3, 1]
    assert picked(score, feature, 4, 0.0) == [0, 1, 2, 3]


def test_ranks_and_novelty_of_what_is_all_alike() -> None:
    assert shares(np.array([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    assert shares(np.zeros(5)).tolist() == [0.5] * 5
    assert shares(np.zeros(1)).tolist() == [0.5]
    assert novelty(np.ones((4, 3))).tolist() == [0.0] * 4


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30))
def test_ranks_are_those_that_all_pairs_give(values: list[int]) -> None:
    values_N = np.array(values, np.float64)
    less = (values_N[:, None] > values_N).sum(axis=1)
    alike = (values_N[:, None] == values_N).sum(axis=1) - 1
    np.testing.assert_array_equal(shares(values_N), (less + 0.5 * alike) / (len(values) - 1.0))


def test_ranks_of_a_fleet_do_not_take_memory_for_every_pair() -> None:
    values_N = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    shares(values_N)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 * values_N.nbytes


def test_weights_of_nothing_are_refused() -> None:
    for weights in ({"luck": 1.0}, {"regret": 0.0}, {}):
        with pytest.raises(InputError, match="expected some above 0"):
            mined(common(2), count=1, weights=weights)
    with pytest.raises(InputError, match="no clips"):
        mine(network(), [], count=1, weights={"regret": 1.0})
