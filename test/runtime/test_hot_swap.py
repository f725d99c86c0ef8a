"""Loading an engine beside another: who may take over, what is refused, and what becomes of a late one."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_drive import RIG
from fake_engine import NETWORK, FakeEngine, Outputs

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import BundleError, EngineUnavailableError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.runtime.hot_swap import WARM_UP_RUNS, EngineSwap, LoadedEngine, check_fits, warm_up

PATIENCE_S = 60.0
CONFIG = EngineConfig(bundle="other")


def bundle(network: NetworkConfig = NETWORK) -> Bundle:
    return Bundle(Path("other"), "other", "0" * 64, network, tensor_contract(network), RIG, {})


@dataclass
class ClosableEngine(FakeEngine):
    closed: bool = False

    def close(self) -> None:
        self.closed = True


# ------------------------------------------------------------------ who may take over


def test_other_weights_and_another_inside_fit() -> None:
    check_fits(bundle(NETWORK.model_copy(update={"memory_frames": 3, "deep_channels": 96})), NETWORK)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_queries": 9}, r"output 'heatmap'|'query_boxes'|'query_scores'"),
        ({"image_width": 128}, "input 'images' has shape"),
        ({"step_s": 0.25}, "its step_s is 0.25, the running network's is 0.5"),
        ({"cameras": ("front", "right", "left")}, "its cameras is .*'right', 'left'"),
        ({"grid": NETWORK.grid.model_copy(update={"x_min": NETWORK.grid.x_min - 2.0,
                                                  "x_max": NETWORK.grid.x_max - 2.0})}, "its grid is"),
    ],
)  # fmt: skip
def test_what_reads_the_same_numbers_otherwise_does_not_fit(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says) as error:
        check_fits(bundle(NETWORK.model_copy(update=changes)), NETWORK)
    assert "cannot take over while running" in str(error.value)
    assert "clean up and configure" in str(error.value)


# ------------------------------------------------------------------ warming up


def test_an_engine_is_warmed_with_a_real_frame_and_remembers_nothing_of_it() -> None:
    engine = FakeEngine()
    images = np.full(next(s.shape for s in engine.contract.inputs if s.name == "images"), 7, np.uint8)
    warm_up(engine, {"images": images})
    assert engine.calls == WARM_UP_RUNS
    assert engine.resets == 1
    for inputs in engine.inputs:
        assert inputs["images"].min() == 7
        assert inputs["track_valid"].max() == 0.0
        assert "bev_memory" not in inputs


def broken(call: int, outputs: Outputs) -> Outputs:
    outputs["plan_costs"][0, 0, 0] = np.nan
    return outputs


def test_an_engine_that_gives_no_numbers_for_a_real_frame_is_refused() -> None:
    with pytest.raises(BundleError, match="non-finite 'plan_costs' for the last frame"):
        warm_up(FakeEngine(spoil=broken), {})
    warm_up(FakeEngine(spoil=broken))  # of a frame that could not be nothing is expected


# ------------------------------------------------------------------ one change at a time


class Swapping:
    """A swap whose loading is held back until the test lets it go."""

    def __init__(self, made: FakeEngine | Exception) -> None:
        self.let_go, self.told = threading.Event(), threading.Event()
        self.done = threading.Event()
        self.made, self.arguments = made, list[Any]()
        self.swap = EngineSwap(self.told.set, self._load)

    def _load(self, *arguments: Any) -> FakeEngine:
        self.arguments = list(arguments)
        assert self.let_go.wait(PATIENCE_S)
        if isinstance(self.made, Exception):
            raise self.made
        return self.made

    def wait_for_the_thread(self) -> None:
        assert self.swap._thread is not None
        self.swap._thread.join(PATIENCE_S)
        assert not self.swap._thread.is_alive()

    def told_outcome(self) -> Any:
        assert self.told.wait(PATIENCE_S)
        self.told.clear()
        return self.swap.outcome()


def test_a_replaced_engine_is_freed_by_the_thread_that_makes_them() -> None:
    swapping = Swapping(FakeEngine())
    swapping.let_go.set()
    swapping.swap.begin(bundle(), CONFIG)
    assert isinstance(swapping.told_outcome(), LoadedEngine)
    freed_in = list[str]()

    @dataclass
    class Old(FakeEngine):
        def close(self) -> None:
            freed_in.append(threading.current_thread().name)

    swapping.swap.retire(Old())
    swapping.swap.close()
    swapping.wait_for_the_thread()
    assert freed_in == ["engines"]


def test_it_loads_elsewhere_and_hands_the_engine_over_once() -> None:
    swapping = Swapping(FakeEngine())
    swap = swapping.swap
    assert swap.wanted is None
    swap.begin(bundle(), CONFIG, {"images": np.zeros(1)})
    assert swap.wanted == CONFIG
    assert swap.outcome() is None
    swapping.let_go.set()
    outcome = swapping.told_outcome()
    assert isinstance(outcome, LoadedEngine)
    assert outcome.engine is swapping.made
    assert (outcome.bundle.name, outcome.config) == ("other", CONFIG)
    assert swapping.arguments[1:] == [CONFIG, {"images": np.zeros(1)}]
    assert swap.outcome() is None
    assert swap.wanted == CONFIG  # until it has taken over
    swap.finish()
    assert swap.wanted is None


@pytest.mark.parametrize("error", [BundleError("no such graph"), RuntimeError("CUDA error"), MemoryError()])
def test_whatever_goes_wrong_is_an_outcome(error: Exception) -> None:
    swapping = Swapping(error)
    swapping.let_go.set()
    swapping.swap.begin(bundle(), CONFIG)
    outcome = swapping.told_outcome()
    assert outcome == f"bundle other 000000000000 on onnxruntime: {type(error).__name__}: {error}"
    swapping.swap.finish()
    swapping.made = FakeEngine()  # and it may be tried again
    swapping.swap.begin(bundle(), replace_threads(CONFIG))
    assert isinstance(swapping.told_outcome(), LoadedEngine)


def replace_threads(config: EngineConfig) -> EngineConfig:
    return config.model_copy(update={"num_threads": 1})


def test_an_engine_that_could_not_take_over_is_an_outcome_too() -> None:
    swapping = Swapping(FakeEngine())
    swapping.let_go.set()
    swapping.swap.begin(bundle(), CONFIG)
    assert isinstance(swapping.told_outcome(), LoadedEngine)
    swapping.swap.fail("it does not fit")
    assert swapping.told_outcome() == "it does not fit"


@pytest.mark.parametrize("when", ["while it loads", "when it is loaded", "when it waits to take over"])
def test_an_engine_that_nobody_wants_any_more_is_freed(when: str) -> None:
    engine = ClosableEngine()
    swapping = Swapping(engine)
    swapping.swap.begin(bundle(), CONFIG)
    if when == "while it loads":
        swapping.swap.close()
        swapping.let_go.set()
        swapping.wait_for_the_thread()
        assert not swapping.told.is_set()
    else:
        swapping.let_go.set()
        assert swapping.told.wait(PATIENCE_S)
        assert not swapping.swap.is_loaded
        if when == "when it waits to take over":
            assert isinstance(swapping.told_outcome(), LoadedEngine)
            assert swapping.swap.is_loaded
        swapping.swap.close()
        swapping.wait_for_the_thread()
    assert engine.closed
    assert swapping.swap.outcome() is None


def test_a_bundle_of_another_name_is_told_by_it() -> None:
    odd = replace(bundle(NETWORK.model_copy(update={"num_queries": 9})), name="wide")
    with pytest.raises(BundleError, match=r"bundle wide 000000000000 cannot take over"):
        check_fits(odd, NETWORK)


def test_who_is_not_loaded_in_time_is_given_up_and_freed_if_it_comes_after_all() -> None:
    late, next_one = ClosableEngine(), ClosableEngine()
    swapping = Swapping(late)
    swap = swapping.swap
    swap.give_up(0.0)
    assert not swapping.told.is_set(), "nothing is being loaded"
    swap.begin(bundle(), CONFIG)
    swap.give_up(3600.0)
    assert swap.outcome() is None
    swap.give_up(0.0)
    assert swapping.told_outcome() == (
        "bundle other on onnxruntime: not loaded within 0 s (supervisor.load_timeout_s)"
    )
    swap.finish()
    swap.give_up(0.0)
    assert swap.outcome() is None

    hung, let_go = swapping.let_go, threading.Event()
    swapping.let_go, swapping.made = let_go, next_one  # another may be loaded while that one hangs
    let_go.set()
    swap.begin(bundle(), CONFIG)
    outcome = swapping.told_outcome()
    assert isinstance(outcome, LoadedEngine) and outcome.engine is next_one
    swapping.made = late
    freed = threading.Event()
    late.close = freed.set  # type: ignore[method-assign]
    hung.set()
    assert freed.wait(PATIENCE_S)
    assert not swapping.told.is_set() and swap.outcome() is None
    assert not next_one.closed


def test_an_engine_that_has_taken_over_is_not_the_swaps_to_free() -> None:
    engine = ClosableEngine()
    swapping = Swapping(engine)
    swapping.let_go.set()
    swapping.swap.begin(bundle(), CONFIG)
    assert isinstance(swapping.told_outcome(), LoadedEngine)
    swapping.swap.finish()
    swapping.swap.close()
    assert not swapping.swap.is_loaded
    assert not engine.closed


# ------------------------------------------------------------------ the first


def test_the_first_engine_is_waited_for_and_somebody_is_told_meanwhile() -> None:
    engine = ClosableEngine()
    swapping, told = Swapping(engine), list[int]()

    def on_wait() -> None:
        told.append(len(told))
        if len(told) == 2:
            swapping.let_go.set()

    assert swapping.swap.first(bundle(), CONFIG, after_s=PATIENCE_S, on_wait=on_wait) is engine
    assert told[:2] == [0, 1]
    assert swapping.arguments[1:] == [CONFIG, None]
    assert swapping.swap.wanted is None
    assert not engine.closed


@pytest.mark.parametrize("error", [BundleError("no such graph"), TimeoutError("of the library's own")])
def test_a_first_engine_that_cannot_be_made_is_the_error_that_it_is(error: Exception) -> None:
    swapping = Swapping(error)
    swapping.let_go.set()
    with pytest.raises(type(error), match=str(error)):
        swapping.swap.first(bundle(), CONFIG, after_s=PATIENCE_S, on_wait=lambda: None)


def test_a_first_engine_that_is_waited_for_no_longer_is_freed_when_it_comes() -> None:
    late = ClosableEngine()
    swapping = Swapping(late)
    before = set(threading.enumerate())

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swapping.swap.first(bundle(), CONFIG, after_s=PATIENCE_S, on_wait=interrupted)
    (thread,) = set(threading.enumerate()) - before
    swapping.swap.close()
    swapping.let_go.set()
    thread.join(PATIENCE_S)
    assert late.closed


@pytest.mark.parametrize("comes_to", ["an engine", "an error"])
def test_a_first_engine_that_hangs_is_given_up_and_freed_if_it_comes_after_all(comes_to: str) -> None:
    late = ClosableEngine()
    swapping = Swapping(late if comes_to == "an engine" else RuntimeError("the driver is gone"))
    before = set(threading.enumerate())
    with pytest.raises(EngineUnavailableError, match=r"other on onnxruntime: not loaded within 0\.01 s"):
        swapping.swap.first(bundle(), CONFIG, after_s=0.01, on_wait=lambda: None)
    (hung,) = set(threading.enumerate()) - before
    swapping.let_go.set()
    hung.join(PATIENCE_S)
    assert not hung.is_alive()
    assert late.closed == (comes_to == "an engine")
