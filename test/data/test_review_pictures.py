"""Pictures from above and cuboids: where a box is in them, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("zarr", reason="zarr is not installed: `pip install .[training]`")

from review_sets import NETWORK, review_clip

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.errors import InputError
from e2e_perception.data.review_clips import LabelBox, ReviewClip
from e2e_perception.data.review_cvat import cuboid_points
from e2e_perception.data.review_pictures import (
    BirdsEye,
    Rectangle,
    camera_picture,
    projected_corners_82,
    projected_edges_E4,
)

VIEW = BirdsEye.of(NETWORK.grid)


def box_at(x: float, y: float, yaw: float = 0.0, length: float = 4.0, width: float = 2.0) -> LabelBox:
    return LabelBox.of(
        {
            "x": x,
            "y": y,
            "z": 0.8,
            "length": length,
            "width": width,
            "height": 1.6,
            "yaw": yaw,
            "vx": 0.0,
            "vy": 0.0,
        }
    )


@pytest.fixture
def review() -> ReviewClip:
    return ReviewClip("drive", "000000", NETWORK, review_clip(), ())


def test_a_pixel_is_a_tenth_of_a_metre_and_the_size_says_so() -> None:
    assert (VIEW.pixel, VIEW.size) == (pytest.approx(0.1), (960, 640))
    assert BirdsEye.of(BevGrid(resolution=2.0)).pixel == pytest.approx(0.1)


def test_ahead_is_right_left_is_up_and_turning_left_is_counterclockwise() -> None:
    r = VIEW.rectangle(box_at(0.0, 0.0))
    assert (r.left, r.right, r.top, r.bottom) == pytest.approx((220.0, 260.0, 310.0, 330.0))
    assert VIEW.rectangle(box_at(10.0, 0.0)).left == pytest.approx(320.0)
    assert VIEW.rectangle(box_at(0.0, 10.0)).top == pytest.approx(210.0)
    assert VIEW.rectangle(box_at(0.0, 0.0, yaw=math.radians(30.0))).rotation == pytest.approx(330.0, abs=1e-4)


@given(
    st.floats(-24.0, 71.9), st.floats(-31.9, 31.9), st.floats(-math.pi, math.pi), st.floats(0.1, 20.0),
    st.floats(0.1, 4.0),
)  # fmt: skip
def test_a_rectangle_is_measured_back_to_where_the_box_was(
    x: float, y: float, yaw: float, length: float, width: float
) -> None:
    box = box_at(x, y, yaw, length, width)
    back = VIEW.footprint(VIEW.rectangle(box))
    for name in ("x", "y", "length", "width"):
        assert back[name] == pytest.approx(getattr(box, name), abs=1e-9)
    turn = back["yaw"] - box.yaw
    assert math.atan2(math.sin(turn), math.cos(turn)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("rectangle", "message"),
    [
        (Rectangle(10.0, 0.0, 10.0, 5.0, 0.0), "expected the top-left corner first and an area"),
        (Rectangle(0.0, 6.0, 10.0, 5.0, 0.0), "expected the top-left corner first and an area"),
        (Rectangle(0.0, math.nan, 10.0, 5.0, 0.0), "expected finite ones"),
    ],
)
def test_what_is_no_rectangle_is_refused(rectangle: Rectangle, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VIEW.footprint(rectangle)


def test_the_picture_is_bright_where_lidar_saw_something(review: ReviewClip) -> None:
    lidar = review.clip.inputs["lidar_raster"]
    lidar[:] = 0
    review.clip.inputs["radar_raster"][:] = 0
    iy, ix = 100, 150  # x = 51, y = 18
    lidar[1, 2, iy, ix] = 1.0
    picture = VIEW.draw(review, 1)
    assert picture.shape == (640, 960, 3)
    spot = VIEW.rectangle(box_at(51.25, 18.25, length=0.1, width=0.1))
    assert picture[round(spot.top), round(spot.left)].min() > 100
    picture[round(spot.top) - 5 : round(spot.top) + 6, round(spot.left) - 5 : round(spot.left) + 6] = 0
    picture[308:333, 228:253] = 0  # the cross at base_link
    assert picture.max() < 40


def test_a_box_ahead_is_where_the_camera_matrix_says(review: ReviewClip) -> None:
    corners = projected_corners_82(review, 0, "front", box_at(20.0, 0.0))
    assert corners is not None
    matrix = review.clip.inputs["image_from_base"][0, 0].astype(np.float64)
    point = matrix @ np.array([22.0, 1.0, 0.0, 1.0])  # bottom, front left
    np.testing.assert_allclose(corners[0], point[:2] / point[2] + 0.5)


def test_of_a_box_beside_the_camera_the_part_in_front_is_drawn(review: ReviewClip) -> None:
    beside = box_at(0.5, 0.3)
    assert projected_corners_82(review, 0, "front", beside) is None
    edges = projected_edges_E4(review, 0, "front", beside)
    assert 0 < len(edges) < 12 and np.isfinite(edges).all()
    assert len(projected_edges_E4(review, 0, "front", box_at(-10.0, 0.0))) == 0
    assert len(projected_edges_E4(review, 0, "front", box_at(20.0, 0.0))) == 12


@given(st.floats(-math.pi, math.pi))
def test_cuboids_have_the_near_face_first_and_every_upright_once(yaw: float) -> None:
    review = ReviewClip("drive", "000000", NETWORK, review_clip(), ())
    box = box_at(20.0, 1.0, yaw)
    corners = projected_corners_82(review, 0, "front", box)
    assert corners is not None
    depths = box.corners_83[:, 0]
    points = np.array(cuboid_points(corners, depths))
    order = [int(np.argmin(np.abs(corners - point).sum(axis=1))) for point in points]
    assert sorted(order) == list(range(8))
    tops, bottoms = order[0::2], order[1::2]
    assert [top - 4 for top in tops] == bottoms
    assert depths[bottoms[:2]].sum() <= depths[bottoms[2:]].sum() + 1e-9
    assert points[0, 0] <= points[2, 0]
    around = [bottoms[i] - bottoms[i - 1] for i in range(4)]  # neighbours on the ground are neighbours here
    assert all(step % 4 in (1, 3) for step in around)


def test_a_dead_camera_has_no_picture(review: ReviewClip) -> None:
    assert camera_picture(review, 0, "right") is None
    assert camera_picture(review, 0, "front") is not None
