"""The pipeline in two threads: the same results as in one, whatever is switched, and no dead silence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fake_drive import CARS, MINIMAL_RISK, MS, NOMINAL, STOPPED, drive, make, moving, run
from fake_engine import NETWORK, FakeEngine, Outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from overlapped import PATIENCE_S, Overlapped, essence

from e2e_perception.core.config import config_from_parameters
from e2e_perception.core.results import FrameResult
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.runtime.overlap import OVERTAKEN
from e2e_perception.runtime.pipeline import Pipeline


def overlapped_run(pipeline: Pipeline, events: list[tuple[int, Any]]) -> list[FrameResult]:
    with Overlapped(pipeline) as overlapped:
        for now_ns, event in events:
            overlapped.feed(now_ns, event)
        overlapped.drain()
        return overlapped.wait_for_results(overlapped.num_ready)


def test_two_threads_give_what_one_gives_to_the_last_bit() -> None:
    def spoil(call: int, outputs: Outputs) -> Outputs:
        if call == 9:
            outputs["object_futures"][:] = np.nan
        if call == 14:
            raise RuntimeError("lost")
        return outputs

    def one_missing(event: Any) -> bool:
        return getattr(event, "sensor", "") == "front" and event.stamp_ns in (300 * MS, 400 * MS)

    events = drive(range(25), without=one_missing)
    sequential = run(make(FakeEngine(things=CARS, base_from_odom=moving, spoil=spoil))[0], events)
    overlapped = overlapped_run(make(FakeEngine(things=CARS, base_from_odom=moving, spoil=spoil))[0], events)
    assert len(sequential) == 25
    assert [essence(r) for r in overlapped] == [essence(r) for r in sequential]


def test_a_clock_set_back_and_new_parameters_hold_from_the_same_frame_on_in_both() -> None:
    events = [*drive(range(50, 58)), *drive(range(6))]
    changes = {4: {"planning.speed_limit": 6.0, "tracking.birth_score": 0.95}, 6: {"node.max_rate_hz": 5.0}}

    def driven(push: Callable[[int, Any], None], pipeline: Pipeline) -> None:
        seen = set()
        for now_ns, event in events:
            frame = event.stamp_ns // (100 * MS) % 50
            if frame in changes and frame not in seen:
                seen.add(frame)
                pipeline.update(config_from_parameters(changes[frame], base=pipeline.config))
            push(now_ns, event)

    pipeline, _ = make()
    sequential: list[FrameResult] = []
    driven(lambda now_ns, event: sequential.extend(run_one(pipeline, now_ns, event)), pipeline)
    other, _ = make()
    with Overlapped(other) as overlapped:
        driven(overlapped.feed, other)
        results = overlapped.wait_for_results(len(sequential))
    assert [essence(r) for r in results] == [essence(r) for r in sequential]
    assert [r.stamp_ns // (100 * MS) for r in sequential] == [*range(50, 57), 0, 2, 4]


def run_one(pipeline: Pipeline, now_ns: int, event: Any) -> list[FrameResult]:
    pipeline.push(event) if hasattr(event, "sensor") else pipeline.push_odometry(event)
    return pipeline.poll(now_ns)


def test_the_next_frame_is_prepared_while_this_one_is_in_the_engine() -> None:
    next_is_ready = [threading.Event() for _ in range(6)]

    def wait_for_the_next(call: int, outputs: Outputs) -> Outputs:
        assert next_is_ready[call + 1].wait(PATIENCE_S), "one after the other"
        return outputs

    engine = FakeEngine(things=CARS, base_from_odom=moving, spoil=wait_for_the_next)
    pipeline, _ = make(engine, on_prepared=lambda frame, prepared: next_is_ready[frame.sequence].set())
    with Overlapped(pipeline) as overlapped:
        for now_ns, event in drive(range(5)):
            overlapped.feed(now_ns, event)
        overlapped.drain()
        next_is_ready[5].set()
        results = overlapped.wait_for_results(5)
    assert [r.health.reasons for r in results if r.tracks is None] == []


@dataclass
class Gate:
    """Holds an engine's answers back from a call on, until it is opened."""

    closed_at: int
    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: int, outputs: Outputs) -> Outputs:
        if call == self.closed_at:
            self.entered.set()
            assert self.opened.wait(PATIENCE_S)
        return outputs


def test_newer_frames_overtake_those_that_wait_and_each_is_counted() -> None:
    gate = Gate(closed_at=0)
    pipeline, _ = make(FakeEngine(things=CARS, base_from_odom=moving, spoil=gate))
    with Overlapped(pipeline, capacity=2) as overlapped:
        for now_ns, event in drive([0]):
            overlapped.feed(now_ns, event)
        overlapped.drain()
        assert gate.entered.wait(PATIENCE_S)
        for now_ns, event in drive(range(1, 7)):
            overlapped.feed(now_ns, event)
        overlapped.drain()
        gate.opened.set()
        results = overlapped.wait_for_results(3)
    assert [r.stamp_ns // MS for r in results] == [0, 500, 600]
    assert overlapped.dropped == [OVERTAKEN] * 4


def hanging(closed_at: int) -> tuple[Pipeline, FakeEngine, Gate]:
    gate = Gate(closed_at)
    engine = FakeEngine(things=CARS, base_from_odom=moving, spoil=gate)
    pipeline, _ = make(engine, {"supervisor.engine_timeout_ms": 50.0})
    return pipeline, engine, gate


def test_an_engine_that_hangs_is_answered_with_stops_until_it_is_back() -> None:
    pipeline, engine, gate = hanging(closed_at=5)
    now = [0]
    with Overlapped(pipeline, now_ns=lambda: now[0]) as overlapped:
        for now_ns, event in drive(range(5)):
            overlapped.feed(now_ns, event)
        overlapped.wait_for_results(5)
        for now_ns, event in drive([5]):
            overlapped.feed(now_ns, event)
            now[0] = now_ns
        stops = overlapped.wait_for_results(7)[5:7]
        gate.opened.set()
        overlapped.wait_for(lambda: not overlapped.thread._in_hand, "the engine to be back")
        num_before = len(overlapped.results)
        for now_ns, event in drive(range(6, 11)):
            overlapped.feed(now_ns, event)
        overlapped.wait_for(lambda: overlapped.results[-1].stamp_ns == 1_000 * MS, "frames")
        after = overlapped.results[num_before:]

    for stop in stops:
        assert stop.stamp_ns == 580 * MS
        assert stop.health.state == MINIMAL_RISK
        assert stop.health.reasons[0].startswith("the engine has not answered for 0.")
        assert stop.plan is not None
        assert stop.plan.candidate == -1
        assert (np.diff(stop.plan.speeds_P) <= 0.0).all()
        assert stop.tracks is None
    # The frame that it had in hand is answered for, and nothing of it is remembered.
    assert [r.stamp_ns // MS for r in after] == [600, 700, 800, 900, 1000]
    assert after[-1].health.drops["engine_timeout"] == 1
    assert after[-1].health.frames == 10
    assert [c["memory_valid"][0, 0] for c in engine.inputs[4:8]] == [1.0, 1.0, 0.0, 1.0]
    assert engine.resets == 1
    assert [r.health.state for r in after] == [MINIMAL_RISK, *[after[1].health.state] * 2, NOMINAL, NOMINAL]


def test_a_robot_that_stands_when_the_engine_hangs_is_stopped() -> None:
    pipeline, _, gate = hanging(closed_at=2)
    with Overlapped(pipeline, now_ns=lambda: 240 * MS) as overlapped:
        for now_ns, event in drive(range(3), speed=0.0):
            overlapped.feed(now_ns, event)
        stop = overlapped.wait_for_results(3)[2]
        gate.opened.set()
    assert stop.health.state == STOPPED
    assert stop.plan is not None
    np.testing.assert_array_equal(stop.plan.points_P2, 0.0)


def test_an_engine_that_never_comes_back_is_left_behind_and_says_nothing_more() -> None:
    pipeline, _, gate = hanging(closed_at=0)
    overlapped = Overlapped(pipeline)
    overlapped.thread.start()
    for now_ns, event in drive([0]):
        overlapped.feed(now_ns, event)
    assert gate.entered.wait(PATIENCE_S)
    assert not overlapped.thread.stop(patience_s=0.05)
    num_said = len(overlapped.results)
    assert overlapped.late == []
    gate.opened.set()
    overlapped.thread._thread.join(PATIENCE_S)
    assert len(overlapped.results) == num_said
    assert overlapped.late == ["decide"]  # where it can be freed
    assert overlapped.errors == []


def test_calls_that_wait_when_the_thread_is_stopped_are_made_all_the_same() -> None:
    gate, made = Gate(closed_at=0), list[str]()
    pipeline, _ = make(FakeEngine(things=CARS, base_from_odom=moving, spoil=gate))
    overlapped = Overlapped(pipeline)
    overlapped.thread.start()
    for now_ns, event in drive([0]):
        overlapped.feed(now_ns, event)
    assert gate.entered.wait(PATIENCE_S)
    overlapped.thread.between_frames(lambda: made.append("late"))
    threading.Timer(0.01, gate.opened.set).start()
    assert overlapped.thread.stop(PATIENCE_S)
    assert made == ["late"]
    assert overlapped.late == []


# ------------------------------------------------------------------ another engine


def go_on(pipeline: Pipeline, events: list[tuple[int, Any]]) -> list[FrameResult]:
    """Unlike `run`, time goes no further than the events do."""
    return [result for now_ns, event in events for result in run_one(pipeline, now_ns, event)]


def successor(before: FakeEngine) -> FakeEngine:
    """Sees the world go on where the one before left it."""
    return FakeEngine(things=CARS, base_from_odom=moving, calls=before.calls)


def test_with_the_same_weights_a_switch_changes_nothing_but_the_name() -> None:
    events = drive(range(12))
    pipeline, engine = make()
    engines = [engine]

    def switch() -> None:
        engines.append(successor(engines[-1]))
        pipeline.switch(engines[-1], NETWORK, "again", same_weights=True)

    expected = run(make()[0], events)
    results = []
    for now_ns, event in events:
        if getattr(event, "sensor", "") == "top" and event.stamp_ns == 600 * MS:
            switch()
        results += run_one(pipeline, now_ns, event)
    results += run(pipeline, [])
    assert [r.health.bundle for r in results] == ["fake_bundle"] * 6 + ["again"] * 6
    for got, wanted in zip(results, expected, strict=True):
        assert essence(got)[:-1] == essence(wanted)[:-1]
    assert [c["memory_valid"][0, 0] for c in engines[1].inputs] == [1.0] * 6


@dataclass
class Recurrent(FakeEngine):
    """Keeps a BEV memory inside, as a real engine does: the number of its calls."""

    memory: float = 0.0
    given: list[float | None] = field(default_factory=list)

    def state(self) -> Outputs:
        shape = next(s.shape for s in tensor_contract(self.network).inputs if s.name == "bev_memory")
        return {"bev_memory": np.full(shape, self.memory, np.float32)}

    def infer(self, inputs: Any) -> Outputs:
        outputs = super().infer(inputs)
        self.given.append(float(inputs["bev_memory"].flat[0]) if "bev_memory" in inputs else None)
        self.memory = 1.0 + (self.given[-1] or self.memory)
        return outputs


@pytest.mark.parametrize("same", [True, False])
def test_the_bev_memory_goes_on_with_the_same_weights_only(same: bool) -> None:
    first = Recurrent(things=CARS, base_from_odom=moving)
    pipeline, _ = make(first)
    go_on(pipeline, drive(range(4)))
    second = Recurrent(things=CARS, base_from_odom=moving, calls=first.calls)
    assert pipeline.switch(second, NETWORK, "second", same_weights=same) is first
    go_on(pipeline, drive(range(4, 6)))
    assert [c["memory_valid"][0, 0] for c in second.inputs] == [float(same), 1.0]
    assert second.given == [4.0 if same else None, None]


def test_with_other_weights_tracks_keep_identity_and_box_but_no_token() -> None:
    events = drive(range(6))
    expected, engine_before = make()
    go_on(expected, events)
    pipeline, first = make()
    go_on(pipeline, drive(range(5)))
    second = successor(first)
    pipeline.switch(second, NETWORK, "other", same_weights=False)
    result = go_on(pipeline, drive([5]))[-1]
    told, wanted = second.inputs[0], engine_before.inputs[5]
    np.testing.assert_array_equal(told["track_boxes"], wanted["track_boxes"])
    np.testing.assert_array_equal(told["track_valid"], wanted["track_valid"])
    assert np.abs(wanted["track_tokens"]).max() > 0.0
    np.testing.assert_array_equal(told["track_tokens"], 0.0)
    assert result.tracks is not None
    assert result.tracks.boxes.ids_N.tolist() == [0, 1]
    assert result.tracks.ages_N.tolist() == [5, 5]


def test_an_engine_for_another_network_cannot_take_over() -> None:
    pipeline, first = make()
    go_on(pipeline, drive(range(3)))
    odd = NETWORK.model_copy(update={"num_queries": 9})
    with pytest.raises(ValueError, match="does not fit network"):
        pipeline.switch(FakeEngine(odd), NETWORK, "odd", same_weights=False)
    first.calls = 3
    assert go_on(pipeline, drive([3]))[-1].health.bundle == "fake_bundle"
    assert first.inputs[-1]["memory_valid"][0, 0] == 1.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["frame", "same", "other", "reload"]), min_size=1, max_size=16))
def test_whatever_is_switched_when_results_come_in_order_and_none_twice(steps: list[str]) -> None:
    def drive_through(feed: Callable[[int, Any], Any], between: Callable[[Any], None], at: Pipeline) -> int:
        frame = 0
        for number, step in enumerate(steps):
            if step == "frame":
                for now_ns, event in drive([frame]):
                    feed(now_ns, event)
                frame += 1
            elif step == "reload":
                at.update(config_from_parameters({"planning.speed_limit": 5.0 + number}, base=at.config))
            else:
                name, same = f"{step} {number}", step == "same"

                def switch(name: str = name, same: bool = same) -> None:
                    before = at.perception.engine
                    assert isinstance(before, FakeEngine)
                    at.switch(successor(before), NETWORK, name, same_weights=same)

                between(switch)
        return frame

    pipeline, _ = make(parameters={"sync.max_wait_ms": 0.0})
    expected: list[FrameResult] = []
    num_frames = drive_through(
        lambda now_ns, event: expected.extend(run_one(pipeline, now_ns, event)), lambda f: f(), pipeline
    )
    other, _ = make(parameters={"sync.max_wait_ms": 0.0})
    with Overlapped(other) as overlapped:
        drive_through(overlapped.feed, overlapped.thread.between_frames, other)
        results = list(overlapped.wait_for_results(len(expected)))
    assert [r.stamp_ns for r in results] == [k * 100 * MS for k in range(num_frames)]
    assert [essence(r) for r in results] == [essence(r) for r in expected]
