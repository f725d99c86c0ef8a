"""Outcomes of episodes whose figures are known beforehand, and their tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from episode_records import bare_record, drive, with_agents
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.episodes import EPISODE_STEP_S, Contact
from e2e_perception.core.errors import InputError
from e2e_perception.evaluation.outcome_tables import (
    MEANS,
    RATES,
    bootstrap_interval,
    exclude,
    paired_difference,
    read_outcomes,
    summarize,
    wilson_interval,
    write_outcomes,
)
from e2e_perception.evaluation.outcomes import (
    MAX_ACCELERATION,
    clearances,
    motion,
    outcome,
    times_to_collision,
)

# ------------------------------------------------------------------------------------- success and failure


def test_reaching_the_goal_untouched_is_a_success():
    found = outcome(bare_record())
    assert found.success
    assert found.shortfalls == ()
    assert found.progress == 1.0
    assert found.progress_m == pytest.approx(8.0 * 5.9)
    assert found.time_to_goal_s == pytest.approx(5.9)
    assert found.contact_speed_mps is None


def with_step(mask_step: int, num_steps: int = 60) -> np.ndarray:
    mask = np.zeros(num_steps, bool)
    mask[mask_step] = True
    return mask


@pytest.mark.parametrize(
    ("changes", "flag", "words"),
    [
        ({"off_road_T": with_step(30)}, "off_road", "off the road at 1.7 % of steps"),
        ({"failure": "no plan for 1.0 s"}, "policy_failure", "policy failed: no plan for 1.0 s"),
        ({"goal_s": 100.0}, None, "goal not reached, 52 % of the way"),
        (
            {"contacts": (Contact(59, -1, "obstacle", True, 3.14),)},
            "collision",
            "obstacle at 3.1 m/s, at fault",
        ),
    ],
)
def test_each_way_to_fail_prevents_success_and_is_said(changes, flag, words):
    found = outcome(bare_record(**changes))
    assert not found.success
    assert words in "; ".join(found.shortfalls)
    for name in ("off_road", "policy_failure", "collision"):
        assert getattr(found, name) == (name == flag)


def test_collisions_are_told_apart_by_blame_and_by_who_was_hit():
    record = with_agents(
        bare_record(),
        np.full((60, 2, 3), 500.0),
        np.zeros((60, 2, 2)),
        ("pedestrian", "cyclist"),
    )
    found = outcome(replace(record, contacts=(Contact(40, 1, "cyclist", False, 2.0),)))
    assert (found.collision, found.at_fault_collision) == (True, False)
    assert (found.collision_pedestrian, found.collision_cyclist) == (False, True)
    assert "contact with cyclist at 2.0 m/s, not at fault" in found.shortfalls
    both = (Contact(40, 1, "cyclist", False, 2.0), Contact(42, 0, "pedestrian", True, 1.0))
    found = outcome(replace(record, contacts=both))
    assert (found.contacts, found.at_fault_collision, found.collision_pedestrian) == (2, True, True)
    assert (found.contact_class, found.contact_speed_mps) == ("cyclist", 2.0)


def test_what_happens_after_the_first_contact_does_not_count():
    record = bare_record(goal_s=40.0)
    touched = replace(record, contacts=(Contact(20, -1, "obstacle", True, 8.0),), off_road_T=with_step(25))
    found = outcome(touched)
    assert found.steps == 21
    assert found.progress_m == pytest.approx(16.0)
    assert not found.goal_reached
    assert not found.off_road


def test_progress_is_the_farthest_reached_and_clipped_to_the_way():
    record = bare_record()
    there_and_back = 10.0 + np.concatenate([np.linspace(0, 30, 30), np.linspace(30, 5, 30)])
    assert outcome(replace(record, progress_T=there_and_back, goal_s=70.0)).progress == pytest.approx(0.5)
    assert outcome(replace(record, progress_T=there_and_back, goal_s=20.0)).progress == 1.0
    assert outcome(replace(record, progress_T=np.full(60, 4.0))).progress == 0.0


def test_interventions_are_counted_as_separate_episodes_of_braking():
    mask = np.zeros(60, bool)
    mask[[0, 1, 10, 11, 12, 40]] = True
    found = outcome(bare_record(interventions_T=mask))
    assert found.interventions == 3
    assert found.intervention_share == pytest.approx(0.1)


def test_speed_above_the_limit_counts_and_below_it_does_not():
    record = bare_record(speed_limit=7.0)
    ego = record.ego_T5.copy()
    ego[:30, 3] = 5.0
    found = outcome(replace(record, ego_T5=ego))
    assert found.speed_mean_mps == pytest.approx(6.5)
    assert found.speed_excess_mean_mps == pytest.approx(0.5)
    assert found.speed_excess_max_mps == pytest.approx(1.0)


# ------------------------------------------------------------------------------------- others


def following(gap: float, other_speed: float, names: tuple[str, ...] = ("car",)):
    """The robot at 8 m/s with somebody `gap` metres ahead of its bumper."""
    record = bare_record(20)
    x = 3.7 + gap + 2.2 + other_speed * record.times_T
    poses = np.stack([x, 0 * x, 0 * x], axis=-1)[:, None]
    velocities = np.tile([other_speed, 0.0], (20, 1, 1))
    return with_agents(record, poses, velocities, names)


def test_time_to_collision_and_clearance_of_a_slower_leader():
    record = following(20.0, 3.0)
    times, gaps = times_to_collision(record), clearances(record)
    expected = 20.0 - 5.0 * record.times_T
    np.testing.assert_allclose(gaps[:, 0], expected)
    np.testing.assert_allclose(times[:, 0], expected / 5.0)
    found = outcome(record)
    assert found.ttc_p1_s == pytest.approx(expected[-1] / 5.0)
    assert found.ttc_p50_s == pytest.approx(expected[10] / 5.0)  # the lower of the two middle steps
    assert found.min_clearance_m == pytest.approx(expected[-1])
    assert found.min_clearance_vulnerable_m == np.inf


def test_without_anybody_in_the_way_there_is_no_time_to_collision():
    found = outcome(following(20.0, 9.0))
    assert (found.ttc_p1_s, found.ttc_p50_s) == (np.inf, np.inf)
    assert np.isfinite(found.min_clearance_m)


def test_who_is_not_there_does_not_count_even_if_he_is_nowhere():
    record = following(20.0, 3.0)
    poses, present = record.agents_TN3.copy(), record.present_TN.copy()
    present[5:] = False
    poses[5:] = np.nan
    found = outcome(replace(record, agents_TN3=poses, present_TN=present))
    assert found.min_clearance_m == pytest.approx(20.0 - 5.0 * 0.4)
    assert found.ttc_p50_s == np.inf


def test_clearance_to_pedestrians_is_kept_apart():
    assert outcome(following(20.0, 3.0, ("pedestrian",))).min_clearance_vulnerable_m == pytest.approx(10.5)


def test_still_solids_on_the_road_count():
    record = bare_record(20, obstacles_O5=np.array([[24.2, 0.0, 0.0, 1.0, 1.0]]))
    found = outcome(record)
    assert found.min_clearance_m == pytest.approx(24.2 - 0.5 - 3.7 - 8.0 * 1.9)
    assert found.ttc_p1_s == pytest.approx(found.min_clearance_m / 8.0)


@settings(max_examples=20)
@given(angle=st.floats(-7.0, 7.0), x=st.floats(-1e3, 1e3), y=st.floats(-1e3, 1e3))
def test_figures_do_not_change_when_the_whole_episode_is_turned_and_shifted(angle, x, y):
    record = drive(60, 8)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])  # for row vectors

    def pose(values):
        return np.concatenate(
            [values[..., :2] @ turn + (x, y), values[..., 2:3] + angle, values[..., 3:]], axis=-1
        )

    moved = replace(
        record,
        ego_T5=pose(record.ego_T5),
        agents_TN3=pose(record.agents_TN3),
        velocities_TN2=record.velocities_TN2 @ turn,
        obstacles_O5=pose(record.obstacles_O5),
    )
    before, after = outcome(record), outcome(moved)
    for name in ("ttc_p1_s", "ttc_p5_s", "ttc_p50_s", "min_clearance_m", "min_clearance_vulnerable_m"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-6)


# ------------------------------------------------------------------------------------- comfort


def with_speeds(speeds: np.ndarray, yaw_rates: np.ndarray | float = 0.0) -> np.ndarray:
    ego = np.zeros((len(speeds), 5))
    ego[:, 3], ego[:, 4] = speeds, yaw_rates
    return ego


def test_constant_acceleration_has_that_value_and_no_jerk():
    moved = motion(with_speeds(1.5 * EPISODE_STEP_S * np.arange(50)))
    np.testing.assert_allclose(moved.acceleration_T, 1.5, atol=1e-9)
    np.testing.assert_allclose(moved.jerk_T, 0.0, atol=1e-8)
    assert moved.comfortable_T.all()


def test_constant_jerk_is_found():
    times = EPISODE_STEP_S * np.arange(50)
    moved = motion(with_speeds(10.0 + 0.5 * 0.8 * times**2))
    np.testing.assert_allclose(moved.acceleration_T, 0.8 * times, atol=1e-9)
    np.testing.assert_allclose(moved.jerk_T, 0.8, atol=1e-8)


@pytest.mark.parametrize(
    ("ego_T5", "comfortable"),
    [
        (with_speeds(5.0 + (MAX_ACCELERATION + 0.05) * EPISODE_STEP_S * np.arange(50)), False),
        (with_speeds(5.0 + (MAX_ACCELERATION - 0.05) * EPISODE_STEP_S * np.arange(50)), True),
        (with_speeds(40.0 - 4.1 * EPISODE_STEP_S * np.arange(50)), False),
        (with_speeds(40.0 - 4.0 * EPISODE_STEP_S * np.arange(50)), True),
        (with_speeds(np.full(50, 10.0), 0.5), False),  # 5.0 m/s^2 to the side
        (with_speeds(np.full(50, 10.0), 0.48), True),
        (with_speeds(np.full(50, 1.0), 0.96), False),
    ],
)
def test_each_limit_of_comfort_is_kept_apart_by_a_hair(ego_T5, comfortable):
    assert motion(ego_T5).comfortable_T.all() == comfortable
    assert motion(ego_T5).comfortable_T.any() == comfortable


def test_braking_is_told_from_accelerating():
    times = EPISODE_STEP_S * np.arange(60)
    speeds = np.where(times < 3.0, 5.0 + times, 8.0 - 2.0 * (times - 3.0))
    record = bare_record()
    ego = record.ego_T5.copy()
    ego[:, 3], ego[:, 4] = speeds, 0.1
    found = outcome(replace(record, ego_T5=ego))
    assert found.acceleration_max_mps2 == pytest.approx(1.0)
    assert found.deceleration_max_mps2 == pytest.approx(2.0)
    assert 1.0 < found.acceleration_rms_mps2 < 2.0
    assert found.lateral_acceleration_max_mps2 == pytest.approx(0.1 * speeds.max())
    assert found.jerk_p95_mps3 <= found.jerk_max_mps3


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_a_very_short_drive_has_figures_too(num_steps):
    found = outcome(bare_record(num_steps))
    assert found.steps == num_steps
    assert found.acceleration_rms_mps2 == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal_s": 10.0}, "the goal at 10.0 m is not beyond the start at 10.0 m"),
        ({"progress_T": np.full(60, np.nan)}, "progress_T has values that are not finite"),
        ({"contacts": (Contact(60, -1, "obstacle", True, 1.0),)}, "at step 60, expected one of"),
        ({"contacts": (Contact(3, 0, "car", True, 1.0),)}, "agent 0 at step 3, expected one of 0 agents"),
    ],
)
def test_a_record_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        outcome(bare_record(**changes))


# ------------------------------------------------------------------------------------- intervals


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_contains_the_rate_and_stays_a_rate(counts):
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    assert low < high
    mirrored = wilson_interval(trials - successes, trials)
    assert (1.0 - mirrored[1], 1.0 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_the_wilson_interval_has_its_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_the_bootstrap_is_the_same_at_every_call_and_within_the_values(values):
    array = np.array(values)
    low, high = bootstrap_interval(array)
    assert (low, high) == bootstrap_interval(array)
    assert array.min() - 1e-9 <= low <= high <= array.max() + 1e-9


def test_the_bootstrap_of_many_values_is_near_the_normal_interval():
    values = np.random.default_rng(5).normal(3.0, 2.0, 900)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_the_bootstrap_drawn_in_chunks_is_the_same(monkeypatch):
    values = np.random.default_rng(5).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("e2e_perception.evaluation.outcome_tables._CHUNK", 333)
    assert bootstrap_interval(values) == whole


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_an_interval_of_nothing_is_refused(values):
    with pytest.raises(InputError, match="bootstrap"):
        bootstrap_interval(np.array(values))
    with pytest.raises(InputError, match="at least one trial"):
        wilson_interval(0, 0)


# ------------------------------------------------------------------------------------- tables


def make_outcomes(policy: str, *, fail: set[int] = frozenset(), num: int = 12):
    """Scenarios 0 … num - 1 in two families; those of `fail` do not reach the goal."""
    found = []
    for i in range(num):
        family = ("merge", "crossing")[i % 2]
        record = bare_record(
            40, speed=6.0 + 0.1 * i, scenario=f"{family}/{i}@0.5", family=family, seed=i, policy=policy
        )
        found.append(outcome(replace(record, goal_s=500.0) if i in fail else record))
    return found


def test_a_summary_has_rates_and_means_with_intervals_overall_and_by_family():
    summary = summarize(make_outcomes("expert", fail={1, 3, 4}))
    assert summary["episodes"] == 12
    assert summary["policies"] == ["expert"]
    assert summary["success_rate"] == pytest.approx(0.75)
    assert summary["success_rate_ci95"] == pytest.approx(wilson_interval(9, 12))
    assert summary["families"]["merge"]["success_rate"] == pytest.approx(5 / 6)
    assert summary["families"]["crossing"]["success_rate"] == pytest.approx(4 / 6)
    for figures in (summary, *summary["families"].values()):
        for name in (*RATES, *MEANS):
            assert name in figures
            if figures[name] is not None:
                low, high = figures[f"{name}_ci95"]
                assert low <= figures[name] <= high
    assert {"collision_rate", "at_fault_collision_rate", "off_road_rate", "policy_failure_rate"} <= set(RATES)


def test_a_mean_says_of_how_many_episodes_it_is():
    summary = summarize(make_outcomes("expert", fail={0, 1}))
    assert summary["time_to_goal_s_episodes"] == 10
    assert summary["contact_speed_mps"] is None
    assert summary["contact_speed_mps_episodes"] == 0
    assert "progress_mean_episodes" not in summary
    # Nobody was there: no collision within the horizon is as good as the horizon.
    assert summary["ttc_p5_s"] == 5.0


@given(st.permutations(range(6)))
@settings(max_examples=10, deadline=None)
def test_a_summary_does_not_depend_on_the_order_of_the_rates(order):
    outcomes = make_outcomes("expert", fail={2}, num=6)
    shuffled = summarize([outcomes[i] for i in order])
    for name in RATES:
        assert shuffled[name] == summarize(outcomes)[name]


def test_excluded_scenarios_are_gone_for_every_policy_and_named_in_the_summary():
    a, b = make_outcomes("expert"), make_outcomes("idm")
    kept = exclude([*a, *b], {"merge/0@0.5"})
    assert len(kept) == 22
    summary = summarize([item for item in kept if item.policy == "idm"], excluded={"merge/0@0.5"})
    assert summary["excluded"] == {"count": 1, "scenarios": ["merge/0@0.5"]}
    with pytest.raises(InputError, match="is said to be excluded but is among the episodes"):
        summarize(a, excluded={"merge/0@0.5"})
    with pytest.raises(InputError, match=r"idm has no scenario 'merge/0@0\.5'"):
        exclude([*a, *b[1:]], {"merge/0@0.5"})


def test_a_summary_of_nothing_or_of_one_episode_twice_is_refused():
    with pytest.raises(InputError, match="no episodes"):
        summarize([])
    outcomes = make_outcomes("expert")
    with pytest.raises(InputError, match=r"merge/0@0\.5 of expert is there more than once"):
        summarize([*outcomes, outcomes[0]])


def test_a_paired_difference_counts_who_succeeded_where():
    a = make_outcomes("a", fail={0, 1})
    b = make_outcomes("b", fail={1, 2, 3, 4, 5, 6, 7})
    found = paired_difference(a, b[::-1], "success")
    assert (found["both"], found["only_a"], found["only_b"], found["neither"]) == (4, 6, 1, 1)
    assert found["difference"] == pytest.approx(5 / 12)
    # Two-sided binomial: twice the chance of at least 6 heads in 7 tosses.
    assert found["mcnemar_p"] == pytest.approx(2 * (7 + 1) / 2**7)
    low, high = found["difference_ci95"]
    assert low < 5 / 12 < high
    back = paired_difference(b, a, "success")
    assert back["difference"] == pytest.approx(-found["difference"])
    assert back["mcnemar_p"] == found["mcnemar_p"]


def test_a_policy_does_not_differ_from_itself():
    a = make_outcomes("a", fail={3})
    found = paired_difference(a, a, "success")
    assert (found["difference"], found["difference_ci95"], found["mcnemar_p"]) == (0.0, [0.0, 0.0], 1.0)
    assert paired_difference(a, a, "speed_mean_mps")["difference"] == 0.0
    assert "mcnemar_p" not in paired_difference(a, a, "speed_mean_mps")


def test_pairs_without_a_value_are_left_out_and_that_is_said():
    a, b = make_outcomes("a", fail={0}), make_outcomes("b", fail={1})
    assert paired_difference(a, b, "time_to_goal_s")["pairs"] == 10
    empty = paired_difference(a, b, "contact_speed_mps")
    assert (empty["pairs"], empty["difference"], empty["difference_ci95"]) == (0, None, None)


def test_a_comparison_of_different_scenarios_or_by_an_unknown_figure_is_refused():
    a = make_outcomes("a")
    with pytest.raises(InputError, match=r"only one of the two drove 'crossing/11@0\.5' \(1 such"):
        paired_difference(a, a[:-1], "success")
    with pytest.raises(InputError, match="unknown figure 'happiness'"):
        paired_difference(a, a, "happiness")
    with pytest.raises(InputError, match="twice on the second side"):
        paired_difference(a, [*a, a[0]], "success")


# ------------------------------------------------------------------------------------- files


def test_outcomes_come_back_from_disk_as_they_were(tmp_path):
    outcomes = [*make_outcomes("b", fail={3}), outcome(drive(120, 6)), outcome(drive(120, 6, policy="a"))]
    summary = summarize(outcomes)
    write_outcomes(tmp_path / "new" / "place", outcomes, summary)
    read, read_summary = read_outcomes(tmp_path / "new" / "place")
    assert list(read) == sorted(outcomes, key=lambda item: (item.policy, item.scenario))
    assert read_summary == summary
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == [
        "episodes.parquet",
        "summary.json",
    ]


def test_equal_outcomes_give_equal_bytes_in_whatever_order_they_were_driven(tmp_path):
    outcomes = make_outcomes("a", fail={3})
    for name, order in (("one", outcomes), ("two", outcomes[::-1])):
        write_outcomes(tmp_path / name, order, summarize(outcomes))
    for file in ("episodes.parquet", "summary.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_summary_is_plain_json_without_infinities(tmp_path):
    write_outcomes(tmp_path, make_outcomes("a"), summarize(make_outcomes("a")))

    def refuse(word):
        raise AssertionError(word)

    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)["episodes"] == 12


def test_missing_and_damaged_files_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    outcomes = make_outcomes("a")
    with pytest.raises(InputError, match=r"has no episodes\.parquet"):
        read_outcomes(tmp_path / "nowhere")
    write_outcomes(tmp_path, outcomes, summarize(outcomes))
    table = pq.read_table(tmp_path / "episodes.parquet")
    (tmp_path / "summary.json").write_text('{"episodes": 1', encoding="utf-8")
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        read_outcomes(tmp_path)
    (tmp_path / "summary.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="holds list, expected an object"):
        read_outcomes(tmp_path)
    (tmp_path / "episodes.parquet").write_bytes((tmp_path / "episodes.parquet").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"episodes\.parquet is damaged"):
        read_outcomes(tmp_path)
    pq.write_table(table.append_column("mood", pa.array([1] * 12)), tmp_path / "episodes.parquet")
    with pytest.raises(InputError, match="has other columns than this version writes"):
        read_outcomes(tmp_path)
