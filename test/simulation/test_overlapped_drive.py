"""The tiny bundle on a recorded drive: in two threads as in one, and through a change of engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from overlapped import Overlapped, essence

from e2e_perception.core.config import EngineConfig, StackConfig
from e2e_perception.core.resources import resource_dir
from e2e_perception.core.results import FrameResult
from e2e_perception.deploy.bundle import Bundle, load_bundle
from e2e_perception.runtime.hot_swap import load_engine
from e2e_perception.runtime.pipeline import Pipeline
from e2e_perception.simulation.recording import odometry, sensor_messages
from e2e_perception.simulation.traffic import simulate_scenario

pytestmark = pytest.mark.skipif(
    not (resource_dir() / "bundles" / "tiny").is_dir(), reason="the bundle `tiny` is not there"
)
ONE_THREAD = EngineConfig(num_threads=1)  # the order of sums depends on the number of threads
Event = tuple[int, Any]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("tiny")


@pytest.fixture(scope="module")
def events(bundle: Bundle) -> list[Event]:
    scenario = simulate_scenario("highway", seed=3, duration_s=3.0)
    recorded = [(m.arrival_ns, m) for m in sensor_messages(scenario, bundle.rig, seed=3)]
    driven = [(state.stamp_ns, state) for state in odometry(scenario)]
    return sorted([*driven, *recorded], key=lambda event: event[0])


def fresh(bundle: Bundle) -> Pipeline:
    engine = load_engine(bundle, ONE_THREAD)
    return Pipeline(bundle.network, bundle.rig, engine, StackConfig(), str(bundle))


def in_turn(pipeline: Pipeline, events: list[Event]) -> Iterator[tuple[Event, list[FrameResult]]]:
    for event in events:
        now_ns, item = event
        pipeline.push(item) if hasattr(item, "sensor") else pipeline.push_odometry(item)
        yield event, pipeline.poll(now_ns)


@pytest.fixture(scope="module")
def sequential(bundle: Bundle, events: list[Event]) -> list[list[Any]]:
    found = [essence(r) for _, results in in_turn(fresh(bundle), events) for r in results]
    assert len(found) >= 25
    return found


def overlapped_with(
    bundle: Bundle, events: list[Event], half_way: Callable[[Overlapped], None]
) -> list[list[Any]]:
    with Overlapped(fresh(bundle)) as overlapped:
        for number, (now_ns, item) in enumerate(events):
            if number == len(events) // 2:
                half_way(overlapped)
            overlapped.feed(now_ns, item)
        return [essence(r) for r in overlapped.wait_for_results(overlapped.num_ready)]


def test_two_threads_give_what_one_gives(
    bundle: Bundle, events: list[Event], sequential: list[list[Any]]
) -> None:
    assert overlapped_with(bundle, events, lambda overlapped: None) == sequential


def test_the_same_bundle_loaded_anew_in_mid_drive_goes_on_as_if_nothing_had_happened(
    bundle: Bundle, events: list[Event], sequential: list[list[Any]]
) -> None:
    engine = load_engine(bundle, ONE_THREAD)
    before: list[Any] = []

    def switch(overlapped: Overlapped) -> None:
        pipeline = overlapped.pipeline
        overlapped.thread.between_frames(
            lambda: before.append(pipeline.switch(engine, bundle.network, str(bundle), same_weights=True))
        )

    assert overlapped_with(bundle, events, switch) == sequential
    assert len(before) == 1
    assert before[0] is not engine
