"""Rules against frames: when they fire, when they do not, and what they read from a frame."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.config import TriggersConfig
from e2e_perception.core.errors import ConfigError
from e2e_perception.core.frames import SE3
from e2e_perception.core.results import FrameResult, Health, PlanCandidates, SafetyState, SensorReport
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan
from e2e_perception.core.trigger_rules import SIGNALS
from e2e_perception.runtime.perception import Place
from e2e_perception.runtime.trigger_signals import SignalReader, mean_entropy, plan_spread
from e2e_perception.runtime.triggers import Triggers

SECOND = 10**9
START = 1_700_000_000 * SECOND
TIMES = np.arange(1, 7) * 0.5


def triggers(*rules: str, hysteresis: float = 0.1) -> Triggers:
    config = TriggersConfig(rules=list(rules), directory="snippets", hysteresis=hysteresis)
    return Triggers(config, ["top", "front"])


def fired(judge: Triggers, values: list[float], signal: str = "speed", period_s: float = 0.1) -> list[int]:
    """At which of the frames something fires."""
    return [
        k
        for k, value in enumerate(values)
        if judge.judge({signal: value}, START, START + round(k * period_s * SECOND))
    ]


# ------------------------------------------------------------------ when


def test_a_rule_fires_when_its_condition_begins_to_hold_and_not_while_it_holds() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 0}")
    assert fired(judge, [5, 11, 12, 13, 5, 11]) == [1, 5]


def test_it_has_to_be_over_by_the_hysteresis_before_it_fires_again() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 0}")
    assert fired(judge, [5, 10.1, 9.9, 10.1, 9.2, 10.1, 8.9, 10.1]) == [1, 7]


def test_what_holds_from_the_start_is_no_event() -> None:
    judge = triggers("{name: degraded, when: state >= 1, cooldown_s: 0}")
    assert fired(judge, [1, 1, 0, 0, 1], "state") == [4]


def test_an_unknown_number_neither_fires_nor_ends_a_condition() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 0}")
    assert fired(judge, [5, 11, math.nan, 11, 5, math.nan, 11]) == [1, 6]


def test_all_comparisons_have_to_hold() -> None:
    judge = triggers("{name: cyclist, when: tracks.cyclist >= 1 and speed > 3 and speed < 9}")
    frames = [(0, 5), (1, 2), (1, 10), (1, 5)]
    got = [
        judge.judge({"tracks.cyclist": n, "speed": v}, START + i, START + i)
        for i, (n, v) in enumerate(frames)
    ]
    assert [len(events) for events in got] == [0, 0, 0, 1]
    ((event,),) = [events for events in got if events]
    assert event.reason == "tracks.cyclist is 1, >= 1, speed is 5, > 3, speed is 5, < 9"
    assert event.signals == {"tracks.cyclist": 1.0, "speed": 5.0}
    assert (event.stamp_ns, event.now_ns) == (START + 3, START + 3)


def test_within_the_cooldown_an_occasion_passes_and_does_not_come_later() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 1}")
    assert fired(judge, [5, 11, 5, 11, *[11] * 12, 5, 11]) == [1, 17]
    assert judge.passed == {"fast: cooldown": 1}


def test_budgets_hold_within_any_hour_and_any_day() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 0, per_hour: 2, per_day: 5}")
    values = [5, 11] * 24  # an occasion every 20 minutes
    got = fired(judge, values, period_s=600.0)
    assert got == [1, 3, 7, 9, 13]
    assert judge.passed["fast: hourly budget"] > 0 and judge.passed["fast: daily budget"] > 0
    a_day_later = START + 86_400 * SECOND + round(1 * 600 * SECOND)
    judge.judge({"speed": 5.0}, a_day_later, a_day_later)
    assert len(judge.judge({"speed": 11.0}, a_day_later, a_day_later)) == 1


def test_what_was_fired_before_a_restart_counts() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 0, per_day: 2}")
    judge.remember({"fast": [START - 7200 * SECOND, START - 90_000 * SECOND], "other": [START]})
    assert fired(judge, [5, 11, 5, 11]) == [1]


def test_a_clock_that_is_set_back_does_not_block_a_rule() -> None:
    judge = triggers("{name: fast, when: speed > 10, cooldown_s: 100}")
    assert fired(judge, [5, 11]) == [1]
    early = START - 500 * SECOND
    judge.judge({"speed": 5.0}, early, early)
    assert len(judge.judge({"speed": 11.0}, early, early)) == 1


def test_a_sensor_that_the_rig_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="rule 'dark' is about sensor 'rear'; the rig has top, front"):
        triggers("{name: dark, when: lost.rear >= 1}")


def test_rules_without_a_directory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no directory for snippets; set triggers\.directory"):
        Triggers(TriggersConfig(rules=["{name: a, when: speed > 1}"]), [])


# ------------------------------------------------------------------ what a frame says


def tracks(ids: list[int], confirmed: list[bool], classes: list[int], scores: list[float]) -> Tracks:
    n = len(ids)
    return Tracks(
        stamp_ns=START,
        boxes=Boxes(
            centers_N3=np.zeros((n, 3), np.float32),
            sizes_N3=np.ones((n, 3), np.float32),
            yaws_N=np.zeros(n, np.float32),
            velocities_N2=np.zeros((n, 2), np.float32),
            class_ids_N=np.array(classes, np.int64),
            scores_N=np.array(scores, np.float32),
            ids_N=np.array(ids, np.int64),
        ),
        ages_N=np.zeros(n, np.int64),
        coasted_N=np.zeros(n, np.int64),
        confirmed_N=np.array(confirmed, bool),
        position_std_N2=np.zeros((n, 2), np.float32),
        futures_NMT2=np.zeros((n, 1, 1, 2), np.float32),
        futures_std_NMT2=np.zeros((n, 1, 1, 2), np.float32),
        mode_probabilities_NM=np.ones((n, 1), np.float32),
        times_T=np.ones(1),
    )


def plan(stamp_ns: int, speed: float, candidate: int = 0, turn: float = 0.0) -> Plan:
    points = np.stack([speed * TIMES, turn * TIMES], -1)
    return Plan(
        stamp_ns=stamp_ns,
        times_P=TIMES,
        points_P2=points,
        yaws_P=np.full(len(TIMES), np.arctan2(turn, speed)),
        speeds_P=np.full(len(TIMES), np.hypot(speed, turn)),
        accelerations_P=np.zeros(len(TIMES)),
        candidate=candidate,
        costs={},
    )


def candidates(ends: list[tuple[float, float]], costs: list[float]) -> PlanCandidates:
    points = np.zeros((len(ends), len(TIMES), 2), np.float32)
    points[:, -1] = ends
    return PlanCandidates(points, np.array(costs, np.float32)[:, None], ("imitation",), TIMES, 0)


def result(stamp_ns: int = START, state: SafetyState = SafetyState.NOMINAL, **given: Any) -> FrameResult:
    sensors = tuple(
        SensorReport(name, valid, "" if valid else "silent", 0.0, 1, 1, 0)
        for name, valid in given.pop("sensors", {"top": True, "front": True}).items()
    )
    health = Health(state, (), sensors, "", "", 1, 1, {}, {})
    return FrameResult(
        stamp_ns, given.get("tracks"), given.get("plan"), given.get("candidates"), health
    )  # fmt: skip


def place(stamp_ns: int, x: float) -> Place:
    return Place(stamp_ns, SE3.planar(x, 0.0, 0.0), 0)


def test_every_signal_is_told_and_what_is_unknown_is_not_a_number() -> None:
    signals = SignalReader().read(result(), None, None)
    assert set(signals) == {*SIGNALS, "lost.top", "lost.front"}
    assert {name for name, value in signals.items() if not math.isnan(value)} == {
        "state", "plan_rejected", "sensors_lost", "lost.top", "lost.front",
    }  # fmt: skip


def test_births_losses_and_classes_are_of_confirmed_tracks() -> None:
    reader = SignalReader()
    first = reader.read(
        result(tracks=tracks([1, 2, 3], [True, True, False], [0, 3, 3], [0.9] * 3)), None, 4.0
    )
    assert (first["tracks.car"], first["tracks.cyclist"], first["speed"]) == (1.0, 1.0, 4.0)
    assert math.isnan(first["births"]) and math.isnan(first["losses"])
    reader.read(result(), None, None)  # a bad frame says nothing of tracks
    second = reader.read(
        result(tracks=tracks([2, 3, 4], [False, True, True], [3, 3, 0], [0.9] * 3)), None, 4.0
    )
    assert (second["births"], second["losses"]) == (2.0, 1.0)  # 3 and 4; 1, for 2 is only doubted


def test_a_lost_sensor_is_told_by_name_and_number() -> None:
    signals = SignalReader().read(result(sensors={"top": False, "front": True}), None, None)
    assert (signals["sensors_lost"], signals["lost.top"], signals["lost.front"]) == (1.0, 1.0, 0.0)


def test_uncertainty_is_the_mean_entropy_of_scores() -> None:
    assert mean_entropy(np.array([0.5, 0.5], np.float32)) == pytest.approx(math.log(2.0))
    assert mean_entropy(np.array([1.0, 0.0], np.float32)) == pytest.approx(0.0, abs=1e-4)
    assert mean_entropy(np.zeros(0, np.float32)) == 0.0


def test_plans_that_were_never_in_question_do_not_spread() -> None:
    ends = [(10.0, 3.0), (10.0, -3.0), (90.0, 0.0)]
    assert plan_spread(candidates(ends, [1.0, 1.0, 60.0])) == pytest.approx(3.0, abs=1e-5)
    assert plan_spread(candidates(ends, [1.0, 60.0, 60.0])) == pytest.approx(0.0, abs=1e-5)


def test_a_plan_that_is_carried_out_has_not_changed_and_a_swerve_has() -> None:
    reader = SignalReader()
    later = START + SECOND // 2
    assert math.isnan(reader.read(result(plan=plan(START, 10.0)), place(START, 0.0), 10.0)["plan_change"])
    same = reader.read(result(later, plan=plan(later, 10.0)), place(later, 5.0), 10.0)
    assert same["plan_change"] == pytest.approx(0.0, abs=1e-9)
    last = later + SECOND // 2
    swerve = reader.read(result(last, plan=plan(last, 10.0, turn=1.0)), place(last, 10.0), 10.0)
    assert swerve["plan_change"] == pytest.approx(2.5)  # at 2.5 s, where the earlier plan ends


def test_without_known_motion_or_after_a_gap_no_change_of_plan_is_told() -> None:
    reader = SignalReader()
    reader.read(result(plan=plan(START, 10.0)), place(START, 0.0), 10.0)
    later = START + SECOND // 2
    assert math.isnan(reader.read(result(later, plan=plan(later, 3.0)), None, None)["plan_change"])
    reader.read(result(later, plan=plan(later, 3.0)), place(later, 5.0), 10.0)
    late = later + 2 * SECOND
    assert math.isnan(reader.read(result(late, plan=plan(late, 9.0)), place(late, 9.0), 10.0)["plan_change"])


def test_only_a_stop_in_place_of_a_selected_plan_is_a_rejection() -> None:
    some = candidates([(1.0, 0.0)], [0.0])
    stop = plan(START, 0.5, candidate=-1)

    def rejected(**given: Any) -> float:
        return SignalReader().read(result(**given), None, None)["plan_rejected"]

    assert rejected(plan=stop, candidates=some, state=SafetyState.DEGRADED) == 1.0
    assert rejected(plan=plan(START, 5.0), candidates=some) == 0.0
    assert rejected(plan=stop) == 0.0  # the engine gave nothing
    assert rejected(plan=stop, candidates=some, state=SafetyState.MINIMAL_RISK) == 0.0
