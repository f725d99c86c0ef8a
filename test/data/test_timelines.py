"""Poses of a drive from its clips: as they were, across clips, and never across a jump."""

from __future__ import annotations

import numpy as np
import pytest
from drives import NETWORK, PERIOD_NS, built_clips, robot
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from e2e_perception.data.timelines import ClipMotion, timelines


@given(length=st.integers(5, 10), stride=st.integers(1, 10), num=st.integers(12, 40), data=st.data())
def test_every_frame_is_there_once_where_the_robot_was(
    length: int, stride: int, num: int, data: st.DataObject
) -> None:
    clips = [built.clip for built in built_clips(num, length=length, stride=min(stride, length))]
    order = data.draw(st.permutations(range(len(clips))))
    (timeline,) = timelines([ClipMotion.of(clips[i]) for i in order], NETWORK.times_T)
    assert list(timeline.frames) == [k * PERIOD_NS for k in range(num)]
    for stamp_ns, places in timeline.frames.items():
        assert {order[place.clip] for place in places} == {
            i for i, clip in enumerate(clips) if stamp_ns in clip.stamps_ns_T
        }
        assert all(clips[order[p.clip]].stamps_ns_T[p.t] == stamp_ns for p in places)
    first = robot(0).odom_from_base.planar_part()
    for stamp_ns in (*timeline.frames, (num + 15) * PERIOD_NS + 12_345_678):
        expected = first.inverse() @ robot(stamp_ns).odom_from_base.planar_part()
        pose = timeline.pose(stamp_ns)
        assert pose is not None
        np.testing.assert_allclose(
            (pose.x, pose.y, pose.yaw), (expected.x, expected.y, expected.yaw), atol=5e-3
        )
    assert timeline.pose((num + 60) * PERIOD_NS) is None and timeline.pose(-1) is None


def test_where_odometry_does_not_go_on_another_timeline_begins() -> None:
    clips = [built.clip for built in built_clips(40, length=10, stride=10, jump_at=20)]
    found = timelines([ClipMotion.of(clip) for clip in clips], NETWORK.times_T)
    assert [list(timeline.frames) for timeline in found] == [
        [k * PERIOD_NS for k in range(20)],
        [k * PERIOD_NS for k in range(20, 40)],
    ]
    assert timelines([], NETWORK.times_T) == []
