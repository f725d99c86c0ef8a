"""The Kalman tracker: identities, velocities, and what must not depend on order, place or direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pydantic import ValidationError

from e2e_perception.core.boxes import CLASSES, Boxes, footprint_corners_N42
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.runtime.box_iou import intersection_areas, iou_3d, iou_bev
from e2e_perception.runtime.kalman_tracker import KalmanTracker, KalmanTrackerConfig, KalmanTracks

DT = 0.1
CAR, TRUCK, WALKER, CYCLIST, OBSTACLE = range(len(CLASSES))
SIZES = np.array([[4.4, 1.8, 1.6], [9.0, 2.5, 3.2], [0.6, 0.6, 1.7], [1.8, 0.6, 1.7]])


def seen(
    places: Sequence[Sequence[float]],
    *,
    classes: Sequence[int] | int = CAR,
    scores: Sequence[float] | float = 0.9,
) -> Boxes:
    """Detections at (x, y, yaw)."""
    table = np.array(places, np.float64).reshape(-1, 3)
    num = len(table)
    class_ids = np.broadcast_to(np.asarray(classes, np.int64), num).copy()
    sizes = SIZES[class_ids]
    return Boxes(
        centers_N3=np.column_stack([table[:, :2], 0.5 * sizes[:, 2]]).astype(np.float32),
        sizes_N3=sizes.astype(np.float32),
        yaws_N=table[:, 2].astype(np.float32),
        velocities_N2=np.zeros((num, 2), np.float32),
        class_ids_N=class_ids,
        scores_N=np.broadcast_to(np.asarray(scores, np.float32), num).copy(),
        ids_N=np.full(num, -1, np.int64),
    )


def crossing(frame: int) -> list[tuple[float, float, float]]:
    """Two cars that pass each other, three metres apart, and a third that stands."""
    t = DT * frame
    return [(8.0 * t, 0.0, 0.0), (30.0 - 10.0 * t, 3.0, np.pi), (12.0, -9.0, 0.7)]


metres, lengths = st.floats(-8.0, 8.0), st.floats(0.3, 12.0)
rectangles = st.tuples(metres, metres, st.floats(-7.0, 7.0), lengths, lengths).map(np.array)


def polygon(rectangle: np.ndarray):
    from shapely.geometry import Polygon

    return Polygon(footprint_corners_N42(rectangle[None, :2], rectangle[None, 3:], rectangle[None, 2])[0])


# ------------------------------------------------------------------ overlap


@settings(max_examples=300, deadline=None)
@given(rectangles, rectangles)
def test_the_common_area_is_that_of_the_polygons(a: np.ndarray, b: np.ndarray) -> None:
    # On a grid: of outlines that share an edge but for rounding, GEOS may otherwise find nothing in common.
    expected = polygon(a).intersection(polygon(b), grid_size=1e-9).area

    assert_allclose(intersection_areas(a[None], b[None]), [expected], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(rectangles, st.integers(0, 3), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_aligned_rectangles_that_share_edges_have_the_right_area(
    a: np.ndarray, quarters: int, along: float, across: float
) -> None:
    c, s = np.cos(a[2]), np.sin(a[2])
    for u, v in ((along, across), (round(along), 0.0), (0.0, 0.0)):
        shift = np.array([u * a[3], v * a[4]])
        b = a.copy()
        b[:2] += [c * shift[0] - s * shift[1], s * shift[0] + c * shift[1]]
        b[2] += np.pi / 2.0 * quarters
        if quarters % 2:
            b[3:] = a[4], a[3]
        expected = (a[3] - abs(shift[0])) * (a[4] - abs(shift[1]))
        assert_allclose(intersection_areas(a[None], b[None]), [expected], atol=1e-6 * (1.0 + expected))


def test_overlap_in_height_counts_in_three_dimensions_alone() -> None:
    low, high = seen([(0.0, 0.0, 0.3)]), seen([(0.0, 0.0, 0.3)])
    high.centers_N3[0, 2] += 0.8  # half of its height

    assert_allclose(iou_bev(low, high), [[1.0]], atol=1e-6)
    assert_allclose(iou_3d(low, high), [[1.0 / 3.0]], atol=1e-6)
    assert iou_3d(low, Boxes.empty()).shape == (1, 0)


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("metric", ["distance", "iou_3d", "iou_bev"])
def test_two_that_pass_each_other_keep_their_identities(metric: str) -> None:
    tracker = KalmanTracker(KalmanTrackerConfig(metric=metric))
    names = []
    for frame in range(40):
        tracks = tracker.update(seen(crossing(frame)), DT)
        names.append(tracks.boxes.ids_N[np.argsort(tracks.detections_N)].tolist())

    assert names == [names[0]] * 40
    assert tracks.hits_N.tolist() == [40] * 3
    assert tracks.ages_N.tolist() == [39] * 3


def test_the_velocity_of_one_that_drives_straight_on_is_found() -> None:
    tracker, rng = KalmanTracker(), np.random.default_rng(0)
    errors = []
    for frame in range(40):
        x, y = np.array([5.0, -3.0]) + DT * frame * np.array([12.0, 4.0]) + rng.normal(0.0, 0.1, 2)
        tracks = tracker.update(seen([(x, y, np.arctan2(4.0, 12.0))]), DT)
        errors.append(np.hypot(*(tracks.boxes.velocities_N2[0] - [12.0, 4.0])))

    assert errors[0] == pytest.approx(np.hypot(12.0, 4.0))  # nothing is known of it at first
    assert np.mean(errors[20:]) < 0.4
    assert tracks.position_std_N[0] < tracker.config.position_std


@pytest.mark.parametrize("dt", [0.05, 0.1, 0.2])
def test_without_noise_the_velocity_converges_at_any_frame_rate(dt: float) -> None:
    tracker = KalmanTracker()
    for frame in range(round(4.0 / dt)):
        tracks = tracker.update(seen([(6.0 * dt * frame, 0.0, 0.0)]), dt)

    assert_allclose(tracks.boxes.velocities_N2, [[6.0, 0.0]], atol=0.02)


def test_a_track_is_confirmed_after_its_hits_and_the_first_frames_are_lenient() -> None:
    config = KalmanTrackerConfig()
    config = config.model_copy(update={"car": config.car.model_copy(update={"min_hits": 3})})
    tracker = KalmanTracker(config)
    first = [tracker.update(seen([(0.0, 0.0, 0.0)]), DT).confirmed_N.tolist() for _ in range(5)]
    later = [
        tracker.update(seen([(0.0, 0.0, 0.0), (20.0, 0.0, 0.0)]), DT).confirmed_N.tolist() for _ in range(3)
    ]

    assert first == [[True]] * 5
    assert later == [[True, False], [True, False], [True, True]]


def test_an_unseen_track_goes_on_at_its_velocity_and_ends_after_its_age() -> None:
    tracker = KalmanTracker()
    for frame in range(20):
        before = tracker.update(seen([(10.0 * DT * frame, 0.0, 0.0)]), DT)
    after = [tracker.update(seen([]), DT) for _ in range(tracker.config.car.max_age + 1)]

    assert [len(tracks) for tracks in after] == [1, 1, 1, 0]
    assert [tracks.unseen_N.tolist() for tracks in after[:3]] == [[1], [2], [3]]
    moved = after[2].boxes.centers_N3[0, 0] - before.boxes.centers_N3[0, 0]
    assert moved == pytest.approx(3.0 * DT * 10.0, abs=0.1)
    assert after[0].detections_N.tolist() == [-1]
    assert after[0].boxes.scores_N.tolist() == before.boxes.scores_N.tolist()


def test_weak_detections_continue_tracks_and_do_not_start_them() -> None:
    tracker = KalmanTracker(KalmanTrackerConfig(keep_score=0.2, birth_score=0.5))
    lengths = [
        len(tracker.update(seen([(0.0, 0.0, 0.0)], scores=score), DT)) for score in (0.4, 0.6, 0.3, 0.3, 0.1)
    ]

    assert lengths == [0, 1, 1, 1, 1]
    assert tracker.tracks.hits_N.tolist() == [3]
    assert tracker.tracks.unseen_N.tolist() == [1]


def test_classes_continue_each_other_only_within_a_group() -> None:
    alone, grouped = KalmanTracker(), KalmanTracker(groups=(0, 0, 1, 1, 2))
    for tracker, expected in ((alone, 2), (grouped, 1)):
        tracker.update(seen([(0.0, 0.0, 0.0)], classes=CAR), DT)
        assert len(tracker.update(seen([(0.0, 0.0, 0.0)], classes=TRUCK), DT)) == expected
    assert len(grouped.update(seen([(0.0, 0.0, 0.0)], classes=WALKER), DT)) == 2
    assert grouped.tracks.boxes.class_ids_N.tolist() == [TRUCK, WALKER]


def test_a_good_match_is_not_given_up_for_two_poor_ones() -> None:
    tracker = KalmanTracker()
    for _ in range(10):
        tracker.update(seen([(0.0, 0.0, 0.0), (0.0, 3.8, 0.0)]), DT)
    names = tracker.tracks.boxes.ids_N[np.argsort(tracker.tracks.detections_N)]
    # The second is not seen; somebody new comes within reach of the first, on its other side.
    tracks = tracker.update(seen([(0.0, 0.1, 0.0), (0.0, -3.7, 0.0)]), DT)

    assert tracks.detections_N[tracks.boxes.ids_N == names[0]].tolist() == [0]
    assert tracks.detections_N[tracks.boxes.ids_N == names[1]].tolist() == [-1]


# ------------------------------------------------------------------ headings


def yaw_error(tracks: KalmanTracks, yaw: float) -> float:
    return abs(float(wrap_angle(tracks.boxes.yaws_N[0] - yaw)))


def test_a_single_reversed_heading_does_not_turn_a_track_round() -> None:
    tracker = KalmanTracker()
    for frame in range(20):
        flipped = np.pi if frame in (3, 9, 10) else 0.0
        tracks = tracker.update(seen([(0.0, 0.0, 0.4 + flipped)]), DT)
        assert yaw_error(tracks, 0.4) < 1e-3


def test_a_track_that_began_the_wrong_way_round_is_turned() -> None:
    tracker = KalmanTracker()
    tracker.update(seen([(0.0, 0.0, 0.4 + np.pi)]), DT)
    for _ in range(4):
        tracks = tracker.update(seen([(0.0, 0.0, 0.4)]), DT)

    assert yaw_error(tracks, 0.4) < 1e-3


def test_a_heading_across_half_a_turn_is_no_flip() -> None:
    tracker = KalmanTracker()
    for frame in range(20):
        tracks = tracker.update(seen([(0.0, 0.0, np.pi - 0.05 + 0.1 * (frame % 2))]), DT)

    assert yaw_error(tracks, np.pi) < 0.06


# ------------------------------------------------------------------ what must not matter

scenes = st.lists(
    st.tuples(st.floats(-40.0, 40.0), st.floats(-40.0, 40.0), st.floats(-15.0, 15.0), st.floats(-15.0, 15.0)),
    min_size=1,
    max_size=7,
)


def places_at(scene: list[tuple[float, ...]], frame: int) -> list[tuple[float, float, float]]:
    t = DT * frame
    return [(x + vx * t, y + vy * t, float(np.arctan2(vy, vx))) for x, y, vx, vy in scene]


def distinct(num: int) -> np.ndarray:
    """Scores, each of its own: they decide who is named first."""
    return np.linspace(0.9, 0.5, num)


@settings(max_examples=40, deadline=None)
@given(scenes, st.randoms(use_true_random=False))
def test_the_order_of_detections_does_not_matter(scene: list[tuple[float, ...]], random: object) -> None:
    one, other = KalmanTracker(), KalmanTracker()
    for frame in range(6):
        order = list(range(len(scene)))
        random.shuffle(order)  # type: ignore[attr-defined]
        boxes = seen(places_at(scene, frame), scores=distinct(len(scene)))
        a = one.update(boxes, DT)
        b = other.update(boxes.select(np.array(order)), DT)
        assert a.boxes.ids_N.tolist() == b.boxes.ids_N.tolist()
        assert_allclose(a.boxes.centers_N3, b.boxes.centers_N3)
        assert_allclose(a.boxes.velocities_N2, b.boxes.velocities_N2)
        seen_now = b.detections_N >= 0
        assert a.detections_N[seen_now].tolist() == np.array(order)[b.detections_N[seen_now]].tolist()


@settings(max_examples=40, deadline=None)
@given(scenes, st.floats(-50.0, 50.0), st.floats(-50.0, 50.0), st.floats(-3.1, 3.1))
def test_tracks_move_with_the_world(scene: list[tuple[float, ...]], x: float, y: float, turn: float) -> None:
    # Near a gate or between equals, rounding decides; on a grid nobody is near another.
    scene = [(20.0 * i, 15.0 * (i % 2), *one[2:]) for i, one in enumerate(scene)]
    moved = SE2(x, y, turn)
    here, there = KalmanTracker(), KalmanTracker()
    for frame in range(8):
        places = np.array(places_at(scene, frame))
        away = np.column_stack([moved.apply(places[:, :2]), places[:, 2] + turn])
        scores = distinct(len(scene))
        a, b = here.update(seen(places, scores=scores), DT), there.update(seen(away, scores=scores), DT)
    assert a.boxes.ids_N.tolist() == b.boxes.ids_N.tolist()
    assert_allclose(moved.apply(a.boxes.centers_N3[:, :2]), b.boxes.centers_N3[:, :2], atol=1e-3)
    assert_allclose(moved.rotate(a.boxes.velocities_N2), b.boxes.velocities_N2, atol=2e-2)
    assert np.abs(wrap_angle(a.boxes.yaws_N + turn - b.boxes.yaws_N)).max() < 1e-3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(-9.0, 9.0), st.floats(-9.0, 9.0)), max_size=5), max_size=25))
def test_identities_are_never_given_twice_and_memory_is_bounded(
    frames: list[list[tuple[float, float]]],
) -> None:
    tracker = KalmanTracker()
    ended: set[int] = set()
    before: set[int] = set()
    for number, places in enumerate(frames):
        tracks = tracker.update(seen([(x, y, 0.0) for x, y in places]), DT)
        ids = tracks.boxes.ids_N.tolist()
        assert ids == sorted(set(ids))
        assert not ended & set(ids)
        ended |= before - set(ids)
        before = set(ids)
        recent = frames[max(0, number - tracker.config.car.max_age) : number + 1]
        assert len(tracks) <= sum(map(len, recent))
        if number == 10:
            tracker.forget()
            ended |= before
            before = set()


def test_empty_frames_are_frames() -> None:
    tracker = KalmanTracker()
    for _ in range(5):
        assert len(tracker.update(Boxes.empty(), DT)) == 0
    assert len(tracker.tracks) == 0


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("dt", [0.0, -0.1, float("nan"), float("inf")])
def test_a_time_step_that_is_none_is_refused(dt: float) -> None:
    with pytest.raises(InputError, match=r"time step is .* expected more than 0"):
        KalmanTracker().update(Boxes.empty(), dt)


def test_what_is_not_finite_is_refused_and_changes_nothing() -> None:
    tracker = KalmanTracker()
    tracker.update(seen([(0.0, 0.0, 0.0)]), DT)
    with pytest.raises(InputError, match="centers_N3 of detection 1 is not finite"):
        tracker.update(seen([(0.0, 0.0, 0.0), (np.nan, 0.0, 0.0)]), DT)

    assert len(tracker.tracks) == 1
    assert tracker.tracks.hits_N.tolist() == [1]


def test_a_class_or_a_group_that_there_is_not_is_refused() -> None:
    boxes = seen([(0.0, 0.0, 0.0)])
    boxes.class_ids_N[0] = len(CLASSES)
    with pytest.raises(InputError, match=r"class ids are \[5\], expected rows of"):
        KalmanTracker().update(boxes, DT)
    with pytest.raises(InputError, match="got 2 groups, expected one per class"):
        KalmanTracker(groups=(0, 1))
    with pytest.raises(ValidationError, match="frozen"):
        KalmanTrackerConfig().metric = "iou_3d"  # type: ignore[misc]
