"""Identities: births, matches, coasting, ends, and what must not depend on the order or the frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fake_engine import NETWORK, Outputs, Thing, scene_outputs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from e2e_perception.core.config import TrackingConfig
from e2e_perception.core.errors import ContractError, E2EPerceptionError, InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.core.tracks import Tracks
from e2e_perception.runtime.track_manager import TrackManager

MS = 1_000_000
STILL = SE2(0.0, 0.0, 0.0)


def advance(
    manager: TrackManager,
    step: int,
    things: Sequence[Thing],
    *,
    base_from_odom: Callable[[int], SE2] = lambda step: STILL,
    motion: SE2 | str | None = "known",
    spoil: Callable[[Outputs], None] | None = None,
    order: Sequence[int] | None = None,
) -> Tracks:
    """Frame number `step` at 10 Hz."""
    base = base_from_odom(step)
    if isinstance(motion, str):
        motion = base @ base_from_odom(step - 1).inverse()
    inputs = manager.inputs(step * 100 * MS, motion)
    outputs = scene_outputs(
        manager.network,
        things,
        seconds=0.1 * step,
        base_from_odom=base,
        track_boxes=inputs["track_boxes"],
        track_valid=inputs["track_valid"],
        order=order,
    )
    if spoil is not None:
        spoil(outputs)
    return manager.update(step * 100 * MS, outputs)


def make(**config: float) -> TrackManager:
    return TrackManager(NETWORK, TrackingConfig(**config))


def test_a_car_keeps_its_identity_and_is_confirmed_after_the_configured_hits() -> None:
    manager = make(confirm_hits=3)
    frames = [advance(manager, t, [Thing(10, 2, vx=8)]) for t in range(5)]
    assert [f.boxes.ids_N.tolist() for f in frames] == [[0]] * 5
    assert [bool(f.confirmed_N[0]) for f in frames] == [False, False, True, True, True]
    assert frames[-1].ages_N.tolist() == [4]
    np.testing.assert_allclose(frames[-1].boxes.centers_N3[0, :2], [13.2, 2.0], atol=1e-4)
    np.testing.assert_allclose(frames[-1].boxes.velocities_N2[0], [8.0, 0.0], atol=1e-4)


def test_two_cars_that_swap_query_slots_keep_their_identities() -> None:
    manager = make()
    things = [Thing(10, 2, vx=8), Thing(12, -3, vx=5)]
    first = advance(manager, 0, things)
    second = advance(manager, 1, things, order=[1, 0])
    np.testing.assert_array_equal(first.boxes.ids_N, second.boxes.ids_N)
    np.testing.assert_allclose(second.boxes.centers_N3[:, 1], first.boxes.centers_N3[:, 1], atol=0.1)


def test_a_weak_detection_continues_a_track_but_starts_none() -> None:
    manager = make(birth_score=0.5, keep_score=0.2)
    assert len(advance(manager, 0, [Thing(10, 2, score=0.3)])) == 0
    assert advance(manager, 1, [Thing(10, 2, score=0.6)]).boxes.ids_N.tolist() == [0]
    assert advance(manager, 2, [Thing(10, 2, score=0.3)]).coasted_N.tolist() == [0]
    assert len(advance(manager, 3, [Thing(10, 2, score=0.1)])) == 0


def test_a_confirmed_track_coasts_at_constant_velocity_and_then_ends() -> None:
    manager = make(confirm_hits=2, max_coast_ms=300)
    car = Thing(10, 2, vx=10)
    for t in range(3):
        seen = advance(manager, t, [car])
    unseen = [advance(manager, t, []) for t in range(3, 8)]
    assert [len(f) for f in unseen] == [1, 1, 1, 0, 0]
    last = unseen[2]
    assert last.coasted_N.tolist() == [3]
    np.testing.assert_allclose(last.boxes.centers_N3[0, :2], [15.0, 2.0], atol=1e-3)
    np.testing.assert_allclose(last.futures_NMT2[0, 0, 0], [20.0, 2.0], atol=1e-3)
    assert last.position_std_N2[0, 0] > seen.position_std_N2[0, 0]
    assert last.boxes.scores_N[0] < seen.boxes.scores_N[0]
    assert manager.counters["ended"] == 1


def test_a_track_seen_again_while_coasting_keeps_its_identity() -> None:
    manager = make(confirm_hits=2)
    car = Thing(10, 2, vx=10)
    for t in (0, 1, 2):
        advance(manager, t, [car])
    advance(manager, 3, [])
    advance(manager, 4, [])
    back = advance(manager, 5, [car])
    assert (back.boxes.ids_N.tolist(), back.coasted_N.tolist()) == ([0], [0])


def test_a_tentative_track_ends_at_its_first_miss() -> None:
    manager = make(confirm_hits=3)
    advance(manager, 0, [Thing(10, 2)])
    advance(manager, 1, [Thing(10, 2)])
    assert len(advance(manager, 2, [])) == 0


def test_identities_are_not_reused_until_reset() -> None:
    manager = make()
    assert advance(manager, 0, [Thing(10, 2)]).boxes.ids_N.tolist() == [0]
    advance(manager, 1, [])
    assert advance(manager, 2, [Thing(10, 2)]).boxes.ids_N.tolist() == [1]
    manager.forget()
    assert advance(manager, 0, [Thing(10, 2)], motion=None).boxes.ids_N.tolist() == [2]
    manager.reset()
    assert advance(manager, 0, [Thing(10, 2)]).boxes.ids_N.tolist() == [0]


def test_without_ego_motion_the_memory_is_forgotten_and_counted() -> None:
    manager = make()
    advance(manager, 0, [Thing(10, 2), Thing(20, 2)])
    inputs = manager.inputs(100 * MS, None)
    assert not inputs["track_valid"].any()
    assert not inputs["track_boxes"].any()
    assert not inputs["track_tokens"].any()
    assert manager.counters["forgotten"] == 2


def test_remembered_tracks_are_moved_by_ego_motion_and_their_own() -> None:
    manager = make()
    advance(manager, 0, [Thing(10, 2, vx=10)])
    # The robot drives 1 m forward and turns by 90 degrees to the left.
    inputs = manager.inputs(100 * MS, SE2(1.0, 0.0, np.pi / 2).inverse())
    box = dict(zip(BOX_FIELDS, inputs["track_boxes"][0, 0].tolist(), strict=True))
    assert inputs["track_valid"][0].tolist() == [1.0] + [0.0] * (NETWORK.num_memory - 1)
    np.testing.assert_allclose([box["x"], box["y"]], [2.0, -10.0], atol=1e-5)
    np.testing.assert_allclose([box["vx"], box["vy"]], [0.0, -10.0], atol=1e-5)
    np.testing.assert_allclose([box["sin_yaw"], box["cos_yaw"]], [-1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(inputs["track_tokens"][0, 0], np.float32(10 + 100 * 2))


def test_a_seen_track_takes_the_token_of_its_detection_and_a_coasting_one_keeps_its_own() -> None:
    manager = make(confirm_hits=1)

    def token(value: float) -> Callable[[Outputs], None]:
        return lambda outputs: outputs["query_tokens"].fill(value)

    advance(manager, 0, [Thing(10, 2)], spoil=token(3.0))
    advance(manager, 1, [Thing(10, 2)], spoil=token(5.0))
    assert manager.inputs(200 * MS, STILL)["track_tokens"][0, 0, 0] == 5.0
    advance(manager, 2, [], spoil=token(7.0))
    assert manager.inputs(300 * MS, STILL)["track_tokens"][0, 0, 0] == 5.0


def test_a_match_farther_than_allowed_or_across_class_groups_is_not_made() -> None:
    def certain(outputs: Outputs) -> None:
        outputs["affinity"][0, 0, 0] = 0.0

    manager = make(max_match_distance=2.0)
    advance(manager, 0, [Thing(10, 2)])
    assert advance(manager, 1, [Thing(13, 2)], spoil=certain).boxes.ids_N.tolist() == [1]
    manager = make()
    advance(manager, 0, [Thing(10, 2)])
    assert advance(manager, 1, [Thing(10, 2, name="pedestrian")], spoil=certain).boxes.ids_N.tolist() == [1]
    manager = make()
    advance(manager, 0, [Thing(10, 2)])
    assert advance(manager, 1, [Thing(10, 2, name="truck")], spoil=certain).boxes.ids_N.tolist() == [0]


def test_an_improbable_association_is_not_made() -> None:
    def doubtful(outputs: Outputs) -> None:
        outputs["affinity"][0, :-1, :-1] = np.log(0.04)
        outputs["affinity"][0, :-1, -1] = outputs["affinity"][0, -1, :-1] = -20.0

    manager = make(min_affinity=0.05)
    advance(manager, 0, [Thing(10, 2)])
    assert advance(manager, 1, [Thing(10, 2)], spoil=doubtful).boxes.ids_N.tolist() == [1]
    manager = make(min_affinity=0.03)
    advance(manager, 0, [Thing(10, 2)])
    assert advance(manager, 1, [Thing(10, 2)], spoil=doubtful).boxes.ids_N.tolist() == [0]


def test_the_joint_optimum_wins_over_the_greedy_choice() -> None:
    def crossed(outputs: Outputs) -> None:
        # Greedy would take (0, 0) at .9 and leave (1, 1) at .06; together (0, 1), (1, 0) explain more.
        outputs["affinity"][0, :2, :2] = np.log([[0.9, 0.8], [0.8, 0.06]])
        outputs["affinity"][0, :2, -1] = outputs["affinity"][0, -1, :2] = -10.0

    things = [Thing(10, 2), Thing(12, 4)]
    manager = make()
    first = advance(manager, 0, things)
    second = advance(manager, 1, things, spoil=crossed)
    assert first.boxes.ids_N.tolist() == second.boxes.ids_N.tolist() == [0, 1]
    assert second.boxes.centers_N3[0, 0] > first.boxes.centers_N3[0, 0]
    assert second.boxes.centers_N3[1, 0] < first.boxes.centers_N3[1, 0]


def test_a_second_peak_on_the_same_object_starts_no_track_but_a_neighbour_does() -> None:
    manager = make()
    tracks = advance(manager, 0, [Thing(10, 2), Thing(10.8, 2.3, score=0.6), Thing(10, 5.5)])
    assert len(tracks) == 2
    assert manager.counters["duplicates"] == 1
    tracks = advance(manager, 1, [Thing(10, 2), Thing(10.8, 2.3, score=0.6), Thing(10, 5.5)])
    assert len(tracks) == 2
    people = [Thing(10, 2, name="pedestrian"), Thing(10, 2.8, name="pedestrian")]
    assert len(advance(make(), 0, people)) == 2


def test_a_coasting_track_ends_where_something_new_appears() -> None:
    manager = make(confirm_hits=1)
    advance(manager, 0, [Thing(10, 2)])

    def stranger(outputs: Outputs) -> None:
        outputs["affinity"][0, 0] = -20.0
        outputs["affinity"][0, 0, -1] = 0.0

    assert advance(manager, 1, [Thing(10, 2)], spoil=stranger).boxes.ids_N.tolist() == [1]


def test_more_tracks_than_memory_drops_the_weakest_and_counts_it() -> None:
    things = [Thing(5.0 + 6.0 * i, 0, score=0.5 + 0.05 * i) for i in range(NETWORK.num_queries)]
    manager = make()
    tracks = advance(manager, 0, things)
    assert len(tracks) == NETWORK.num_memory
    assert manager.counters["dropped_full"] == NETWORK.num_queries - NETWORK.num_memory
    assert tracks.boxes.scores_N.min() == pytest.approx(0.6, abs=1e-6)


def test_a_single_reversed_heading_does_not_turn_the_track_round() -> None:
    manager = make()

    def reverse(outputs: Outputs) -> None:
        for name in ("sin_yaw", "cos_yaw"):
            outputs["query_boxes"][..., BOX_FIELDS.index(name)] *= -1.0

    for t in range(3):
        advance(manager, t, [Thing(10, 2, vx=5)])
    once = advance(manager, 3, [Thing(10, 2, vx=5)], spoil=reverse)
    assert abs(once.boxes.yaws_N[0]) < 0.1
    for t in range(4, 8):
        often = advance(manager, t, [Thing(10, 2, vx=5)], spoil=reverse)
    assert abs(often.boxes.yaws_N[0]) > 3.0


def test_velocity_jitter_is_smoothed() -> None:
    rng = np.random.default_rng(0)
    manager = make()
    raw, smooth = [], []
    for t in range(60):
        noise = float(rng.normal(0.0, 1.0))

        def jitter(outputs: Outputs, noise: float = noise) -> None:
            outputs["query_boxes"][0, 0, BOX_FIELDS.index("vx")] += noise
            outputs["query_log_var"][0, :, 2:] = 0.0  # as the network would say: variance 1

        tracks = advance(manager, t, [Thing(0, 2, vx=8)], spoil=jitter)
        raw.append(8.0 + noise)
        smooth.append(float(tracks.boxes.velocities_N2[0, 0]))
    assert np.std(smooth[10:]) < 0.75 * np.std(raw[10:])
    assert np.mean(smooth[10:]) == pytest.approx(8.0, abs=0.3)


@pytest.mark.parametrize("name", ["affinity", "query_boxes", "query_tokens", "object_futures"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
def test_unusable_output_is_an_error_and_leaves_the_memory_alone(name: str, value: float) -> None:
    manager = make(confirm_hits=1)
    advance(manager, 0, [Thing(10, 2)])

    def spoil(outputs: Outputs) -> None:
        outputs[name].flat[3] = value

    with pytest.raises(InputError, match=f"'{name}'"):
        advance(manager, 1, [Thing(10, 2)], spoil=spoil)
    assert advance(manager, 2, [Thing(10, 2)], motion=STILL).boxes.ids_N.tolist() == [0]


def test_misshapen_or_missing_output_is_a_contract_error() -> None:
    manager = make()
    with pytest.raises(ContractError, match=r"'affinity' is \[1, 6, 9\], expected \[1, 7, 9\]"):
        advance(manager, 0, [], spoil=lambda o: o.update(affinity=o["affinity"][:, :-1]))
    with pytest.raises(ContractError, match="'query_boxes' is missing"):
        advance(manager, 1, [], spoil=lambda o: o.__delitem__("query_boxes"))


def test_stamps_must_rise_and_update_must_follow_inputs() -> None:
    manager = make()
    advance(manager, 1, [])
    with pytest.raises(InputError, match="stamps must rise"):
        manager.inputs(100 * MS, STILL)
    with pytest.raises(InputError, match="inputs\\(\\) was last called"):
        manager.update(200 * MS, scene_outputs(NETWORK, []))


# --- properties ---------------------------------------------------------------------------------------------

coordinate = st.floats(-20.0, 60.0).map(lambda x: round(x, 2))
speed = st.floats(-15.0, 15.0).map(lambda x: round(x, 1))
thing = st.builds(
    Thing,
    x=coordinate,
    y=coordinate,
    vx=speed,
    vy=speed,
    name=st.sampled_from(["car", "truck", "pedestrian"]),
    score=st.floats(0.05, 0.99).map(lambda x: round(x, 3)),
)
# Which things are seen in each frame.
scene = st.lists(thing, max_size=NETWORK.num_queries)
sightings = st.lists(
    st.lists(st.booleans(), min_size=NETWORK.num_queries, max_size=NETWORK.num_queries),
    min_size=1,
    max_size=8,
)


def same(a: Tracks, b: Tracks, atol: float = 0.0) -> None:
    np.testing.assert_array_equal(a.boxes.ids_N, b.boxes.ids_N)
    np.testing.assert_array_equal(a.confirmed_N, b.confirmed_N)
    np.testing.assert_array_equal(a.coasted_N, b.coasted_N)
    np.testing.assert_allclose(a.boxes.centers_N3, b.boxes.centers_N3, atol=atol)
    np.testing.assert_allclose(a.futures_NMT2, b.futures_NMT2, atol=4 * atol)


@settings(deadline=None, max_examples=60)
@given(scene, sightings)
def test_identities_are_unique_rising_and_bounded(things: list[Thing], seen: list[list[bool]]) -> None:
    manager, again = make(confirm_hits=2), make(confirm_hits=2)
    highest, known = -1, set()
    for t, visible in enumerate(seen):
        now = [thing for thing, is_seen in zip(things, visible, strict=False) if is_seen]
        tracks = advance(manager, t, now)
        ids = tracks.boxes.ids_N.tolist()
        assert ids == sorted(set(ids))
        assert len(ids) <= NETWORK.num_memory
        new = [i for i in ids if i > highest]
        assert all(i in known for i in ids if i not in new), "an ended identity came back"
        known = set(ids)
        highest = max([highest, *ids])
        np.testing.assert_allclose(tracks.mode_probabilities_NM.sum(1), 1.0, atol=1e-6)
        assert np.isfinite(tracks.boxes.sizes_N3).all()
        same(tracks, advance(again, t, now))


def never_coincide(things: list[Thing], num_frames: int) -> bool:
    """Whether any two are at least 0.2 m apart in every frame."""
    places = [[(a.x + 0.1 * t * a.vx, a.y + 0.1 * t * a.vy) for a in things] for t in range(num_frames)]
    return all(
        np.hypot(p[i][0] - p[j][0], p[i][1] - p[j][1]) > 0.2
        for p in places
        for i in range(len(things))
        for j in range(i)
    )


@settings(deadline=None, max_examples=60)
@given(scene, sightings, st.randoms(use_true_random=False))
def test_the_order_of_the_queries_does_not_matter(
    things: list[Thing], seen: list[list[bool]], random
) -> None:
    assume(never_coincide(things, len(seen)))  # between two at one place the order is all that decides
    manager, shuffled = make(confirm_hits=2), make(confirm_hits=2)
    for t, visible in enumerate(seen):
        now = [thing for thing, is_seen in zip(things, visible, strict=False) if is_seen]
        order = random.sample(range(NETWORK.num_queries), len(now))
        same(advance(manager, t, now), advance(shuffled, t, now, order=order), atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(scene, sightings, st.floats(-20, 20), st.floats(-1.0, 1.0))
def test_a_moving_base_frame_sees_the_same_tracks(
    things: list[Thing], seen: list[list[bool]], ego_speed: float, yaw_rate: float
) -> None:
    assume(never_coincide(things, len(seen)))  # else rounding decides who is who

    def base_from_odom(step: int) -> SE2:
        return SE2(0.1 * ego_speed * step, 0.3, 0.1 * yaw_rate * step).inverse()

    still, moving = make(confirm_hits=2), make(confirm_hits=2)
    for t, visible in enumerate(seen):
        now = [thing for thing, is_seen in zip(things, visible, strict=False) if is_seen]
        a = advance(still, t, now)
        b = advance(moving, t, now, base_from_odom=base_from_odom)
        np.testing.assert_array_equal(a.boxes.ids_N, b.boxes.ids_N)
        expected = base_from_odom(t).apply(a.boxes.centers_N3[:, :2])
        np.testing.assert_allclose(b.boxes.centers_N3[:, :2], expected, atol=2e-3)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_nonsense_is_either_tracked_or_refused(seed: int, with_nan: bool) -> None:
    rng = np.random.default_rng(seed)
    manager = make(confirm_hits=1, birth_score=0.01, keep_score=0.01)
    for t in range(3):

        def nonsense(outputs: Outputs) -> None:
            for name, value in outputs.items():
                outputs[name] = rng.normal(0.0, 30.0, value.shape).astype(np.float32)
            outputs["query_scores"] = rng.uniform(0, 1, outputs["query_scores"].shape).astype(np.float32)
            if with_nan:
                outputs["affinity"].flat[rng.integers(outputs["affinity"].size)] = np.nan

        try:
            tracks = advance(manager, t, [], spoil=nonsense, motion=STILL)
        except E2EPerceptionError:
            assert with_nan
            continue
        assert not with_nan
        assert len(tracks) <= NETWORK.num_memory
        assert np.isfinite(tracks.boxes.centers_N3).all()
