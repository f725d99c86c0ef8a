"""Clips of a recording: every frame in one, futures and labels from what came, nothing kept for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import SMALL

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3
from e2e_perception.core.network_config import BOX_FIELDS
from e2e_perception.data.clip_building import BuiltClip, ClipBuilder, RecordedFrame

PERIOD_NS = 100_000_000
SPEED, TURN = 5.0, 0.2  # [m/s], [rad/s]
X, Y = BOX_FIELDS.index("x"), BOX_FIELDS.index("y")


def robot(stamp_ns: int) -> EgoState:
    """On a circle."""
    yaw = TURN * stamp_ns * 1e-9
    pose = SE3.planar(SPEED / TURN * np.sin(yaw), SPEED / TURN * (1.0 - np.cos(yaw)), yaw)
    return EgoState(stamp_ns, pose, np.array([SPEED, 0.0, 0.0]), TURN)


def frame(stamp_ns: int, *, stretch: int = 0, known: bool = True) -> RecordedFrame:
    inputs: dict[str, Any] = {"ego_state": np.full(7, stamp_ns * 1e-9, np.float32)}
    return RecordedFrame(stamp_ns, inputs, robot(stamp_ns) if known else None, stretch, {"top": True})


def others(stamp_ns: int, score: float = 1.0) -> Boxes:
    """One that stands at (30, 4) and one that drives along x at 3 m/s from (10, -4), in the base frame."""
    base_from_odom = robot(stamp_ns).odom_from_base.inverse()
    seconds = stamp_ns * 1e-9
    odom = np.array([[30.0, 4.0, 0.8], [10.0 + 3.0 * seconds, -4.0, 0.8]])
    yaw = base_from_odom.planar_part().yaw
    velocities = base_from_odom.planar_part().rotate(np.array([[0.0, 0.0], [3.0, 0.0]]))
    return Boxes(
        centers_N3=base_from_odom.apply(odom).astype(np.float32),
        sizes_N3=np.tile(np.array([4.0, 2.0, 1.6], np.float32), (2, 1)),
        yaws_N=np.full(2, yaw, np.float32),
        velocities_N2=velocities.astype(np.float32),
        class_ids_N=np.array([0, 1]),
        scores_N=np.full(2, score, np.float32),
        ids_N=np.array([7, 9]),
    )


def builder(*, length: int = 4, stride: int = 4, has_labels: bool = False) -> ClipBuilder:
    return ClipBuilder(
        SMALL, clip_length=length, stride=stride, source="bag:x", scenario="bag:x", has_labels=has_labels
    )


def record(
    made: ClipBuilder, num_frames: int, *, labels_every: int = 0, extra: int = 60, ask_every: int = 1
) -> list[BuiltClip]:
    """Frames at 10 Hz, odometry at 50 Hz that goes on for `extra` frames."""
    found: list[BuiltClip] = []
    for k in range(num_frames + extra):
        now_ns = k * PERIOD_NS
        for j in range(5):
            made.add_odometry(robot(now_ns + j * PERIOD_NS // 5), 0)
        if labels_every and k % labels_every == 0:
            made.add_labels(now_ns, others(now_ns))
        if k < num_frames:
            made.add_frame(frame(now_ns))
        if k % ask_every == 0:
            found += made.finished()
    made.finish()
    return [*found, *made.finished()]


@given(
    num_frames=st.integers(4, 40), length=st.integers(2, 8), stride=st.integers(1, 8), ask=st.integers(1, 9)
)
def test_every_frame_is_in_a_clip_and_when_one_asks_changes_nothing(
    num_frames: int, length: int, stride: int, ask: int
) -> None:
    stride = min(stride, length)
    made = builder(length=length, stride=stride)
    clips = record(made, num_frames, extra=3, ask_every=ask)
    stamps = [built.clip.stamps_ns_T // PERIOD_NS for built in clips]
    if num_frames < length:
        assert not clips and made.counts.alone == num_frames
        return
    assert {int(n) for row in stamps for n in row} == set(range(num_frames))
    assert made.counts.taken == num_frames and made.counts.alone == 0
    assert all(len(row) == length and np.all(np.diff(row) == 1) for row in stamps)
    starts = [int(row[0]) for row in stamps]
    assert starts == sorted(set(starts))
    for built in clips:
        seconds = built.clip.inputs["ego_state"][:, 0]
        np.testing.assert_allclose(seconds, built.clip.stamps_ns_T * 1e-9, rtol=1e-6)


def test_the_robots_future_is_where_it_went() -> None:
    clips = record(builder(), 8)
    for built in clips:
        for t, stamp_ns in enumerate(built.clip.stamps_ns_T.tolist()):
            here = robot(stamp_ns).odom_from_base.planar_part()
            assert built.clip.ego_future_valid_TS[t].all()
            for k, ahead_s in enumerate(SMALL.times_T.tolist()):
                there = robot(stamp_ns + round(ahead_s * 1e9)).odom_from_base.planar_part()
                moved = here.inverse() @ there
                np.testing.assert_allclose(
                    built.clip.ego_future_TS3[t, k], (moved.x, moved.y, moved.yaw), atol=1e-3
                )
        step = robot(0).odom_from_base.planar_part().inverse() @ robot(PERIOD_NS).odom_from_base.planar_part()
        np.testing.assert_allclose(built.clip.memory_from_base_T3[1], (step.x, step.y, step.yaw), atol=1e-6)
        assert not built.clip.memory_from_base_T3[0].any()
        assert not built.clip.labels_valid and not built.clip.maps_valid


def test_a_recording_that_ends_leaves_futures_open() -> None:
    last = record(builder(), 8, extra=0)[-1]
    assert not last.clip.ego_future_valid_TS[-1].any()
    open_end = record(builder(), 8, extra=15)[-1].clip.ego_future_valid_TS[-1]
    assert open_end.tolist() == [True] * 3 + [False] * 5  # odometry goes on for a second and a half


@pytest.mark.parametrize("every", [1, 2, 5])
def test_labels_are_joined_between_those_that_came(every: int) -> None:
    clips = record(builder(has_labels=True), 12, labels_every=every)
    assert clips and all(built.clip.labels_valid for built in clips)
    for built in clips:
        clip = built.clip
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            expected = others(stamp_ns)
            for row, identity in enumerate(expected.ids_N.tolist()):
                (slot,) = np.flatnonzero(clip.ids_TB[t] == identity)
                box = clip.boxes_TB10[t, slot]
                np.testing.assert_allclose(box[[X, Y]], expected.centers_N3[row, :2], atol=2e-3)
                velocity = box[[BOX_FIELDS.index("vx"), BOX_FIELDS.index("vy")]]
                np.testing.assert_allclose(velocity, expected.velocities_N2[row], atol=2e-2)
                assert clip.class_ids_TB[t, slot] == expected.class_ids_N[row]
                assert clip.weights_TB[t, slot] == built.confidence_TL[t, slot] == 1.0
                assert clip.futures_valid_TBS[t, slot].all()
                here = robot(stamp_ns).odom_from_base.planar_part().inverse()
                later = stamp_ns * 1e-9 + SMALL.times_T
                where = np.stack([10.0 + 3.0 * later, np.full_like(later, -4.0)], 1)
                if identity == 9:
                    np.testing.assert_allclose(clip.futures_TBS2[t, slot], here.apply(where), atol=5e-3)
            assert (clip.ids_TB[t] >= 0).sum() == 2


def test_what_nobody_saw_weighs_nothing_until_it_is_seen() -> None:
    made = builder(length=4, has_labels=True)
    found: list[BuiltClip] = []
    for k in range(60):
        for j in range(5):
            made.add_odometry(robot(k * PERIOD_NS + j * PERIOD_NS // 5), 0)
        made.add_labels(k * PERIOD_NS, others(k * PERIOD_NS, score=0.0 if k in (0, 1, 3) else 0.7))
        if k < 4:
            made.add_frame(frame(k * PERIOD_NS))
        found += made.finished()
    (built,) = found
    np.testing.assert_allclose(built.clip.weights_TB[:, 0], [0.0, 0.0, 0.7, 1.0])
    assert built.clip.visible_TB[:, 0].tolist() == [False, False, True, False]


def test_a_gap_a_jump_and_missing_odometry_end_what_hangs_together() -> None:
    made = builder(length=3, stride=3)
    stamps = [*range(5), *range(20, 25)]  # a gap of 1.6 s
    for k in range(40):
        for j in range(5):
            made.add_odometry(robot(k * PERIOD_NS + j * PERIOD_NS // 5), 0)
        if k in stamps:
            made.add_frame(frame(k * PERIOD_NS))
    made.add_frame(frame(40 * PERIOD_NS, known=False))
    assert made.counts.without_ego_motion == 1
    far = replace(robot(41 * PERIOD_NS), odom_from_base=SE3.planar(900.0, 0.0, 0.0))
    made.add_frame(frame(40 * PERIOD_NS + 1))
    made.add_odometry(far, 1)
    clips = list(made.finished())
    starts = [int(built.clip.stamps_ns_T[0] // PERIOD_NS) for built in clips]
    assert starts == [0, 2, 20, 22]
    assert made.counts.alone == 1  # the one between the loss of odometry and the jump


def test_frames_faster_than_the_networks_period_are_left_out() -> None:
    made = builder(length=2, stride=2)
    for k in range(20):
        made.add_odometry(robot(k * PERIOD_NS // 2), 0)
        made.add_frame(frame(k * PERIOD_NS // 2))
    made.finish()
    assert made.counts.too_early == 10
    assert [len(b.clip) for b in made.finished()] == [2] * 5


def test_what_is_kept_does_not_grow_with_the_recording() -> None:
    made = builder(length=4, has_labels=True)
    most = 0
    for k in range(400):
        for j in range(5):
            made.add_odometry(robot(k * PERIOD_NS + j * PERIOD_NS // 5), 0)
        made.add_labels(k * PERIOD_NS, others(k * PERIOD_NS))
        made.add_frame(frame(k * PERIOD_NS))
        list(made.finished())
        waiting = sum(len(frames) for frames in made._waiting) + len(made._run.frames)
        kept = len(made._poses._stamps) + sum(len(t.stamps) for t in made._labels._tracks.values())
        most = max(most, waiting + kept)
    assert most < 500


def test_labels_that_stop_coming_are_not_waited_for() -> None:
    made = builder(length=4, has_labels=True)
    found = 0
    for k in range(300):
        made.add_odometry(robot(k * PERIOD_NS), 0)
        if k < 50:
            made.add_labels(k * PERIOD_NS, others(k * PERIOD_NS))
        made.add_frame(frame(k * PERIOD_NS))
        found += len(list(made.finished()))
    assert found > 50


@pytest.mark.parametrize("boxes", [others, lambda stamp_ns: others(stamp_ns).select(np.zeros(0, np.int64))])
def test_clips_that_labels_do_not_cover_are_unlabelled(boxes: Callable[[int], Boxes]) -> None:
    """Labels of frames 8 to 19 and 27 to 35, too far apart to join; also where they say nobody is there."""
    made = builder(length=4, has_labels=True)
    found: dict[int, bool] = {}
    for k in range(100):
        made.add_odometry(robot(k * PERIOD_NS), 0)
        if 8 <= k < 20 or 27 <= k < 36:
            made.add_labels(k * PERIOD_NS, boxes(k * PERIOD_NS))
        if k < 40:
            made.add_frame(frame(k * PERIOD_NS))
        found |= {int(b.clip.stamps_ns_T[0] // PERIOD_NS): b.clip.labels_valid for b in made.finished()}
    assert [start for start, labelled in found.items() if labelled] == [8, 12, 16, 28, 32]
    assert len(found) == 10 and made.counts.clips_not_covered == 5


def test_strides_that_would_leave_frames_out_are_refused() -> None:
    with pytest.raises(InputError, match="clips of 4 frames, 5 apart"):
        builder(length=4, stride=5)
