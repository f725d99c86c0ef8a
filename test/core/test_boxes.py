from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.boxes import CLASSES, Boxes, footprint_corners_N42
from e2e_perception.core.errors import InputError


def make_boxes(n: int) -> Boxes:
    index = np.arange(n)
    return Boxes(
        centers_N3=np.stack([index, -index, index * 0], axis=1).astype(np.float32),
        sizes_N3=np.ones((n, 3), np.float32),
        yaws_N=index.astype(np.float32),
        velocities_N2=np.zeros((n, 2), np.float32),
        class_ids_N=index % len(CLASSES),
        scores_N=np.ones(n, np.float32),
        ids_N=10 + index,
    )


def test_class_order_is_the_contract() -> None:
    assert CLASSES == ("car", "truck", "pedestrian", "cyclist", "obstacle")


def test_empty_has_no_boxes() -> None:
    assert len(Boxes.empty()) == 0
    assert len(make_boxes(3)) == 3


@pytest.mark.parametrize("which", [np.array([False, True, False, True]), np.array([3, 1])])
def test_select_takes_the_same_rows_of_every_column(which: np.ndarray) -> None:
    chosen = make_boxes(4).select(which)
    ids = chosen.ids_N.tolist()
    assert ids == ([11, 13] if which.dtype == bool else [13, 11])
    assert chosen.centers_N3[:, 0].tolist() == [i - 10 for i in ids]
    assert chosen.yaws_N.tolist() == [i - 10 for i in ids]
    assert len(make_boxes(4).select(np.zeros(4, bool))) == 0


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("yaws_N", np.zeros(3, np.float32), r"yaws_N has shape \(3,\), expected \(2,\)"),
        ("sizes_N3", np.zeros((2, 2), np.float32), r"sizes_N3 has shape \(2, 2\), expected \(2, 3\)"),
        ("ids_N", np.zeros((2, 1), np.int64), r"ids_N has shape \(2, 1\), expected \(2,\)"),
    ],
)
def test_columns_that_disagree_are_refused(column: str, value: np.ndarray, error: str) -> None:
    columns = dict(vars(make_boxes(2)))
    columns[column] = value
    with pytest.raises(InputError, match=error):
        Boxes(**columns)


def test_corners_start_front_left_and_go_counter_clockwise() -> None:
    corners = footprint_corners_N42(
        np.array([[10.0, 5.0], [0.0, 0.0]]), np.array([[4.0, 2.0], [4.0, 2.0]]), np.array([0.0, np.pi / 2])
    )
    assert corners.shape == (2, 4, 2)
    np.testing.assert_allclose(corners[0], [[12, 6], [8, 6], [8, 4], [12, 4]], atol=1e-12)
    np.testing.assert_allclose(corners[1], [[-1, 2], [-1, -2], [1, -2], [1, 2]], atol=1e-12)


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0.1, 20), st.floats(0.1, 5), st.floats(-4, 4))
@settings(deadline=None)
def test_corners_keep_centre_and_area(x: float, y: float, length: float, width: float, yaw: float) -> None:
    corners = footprint_corners_N42(np.array([[x, y]]), np.array([[length, width]]), np.array([yaw]))[0]
    np.testing.assert_allclose(corners.mean(axis=0), [x, y], atol=1e-9)
    after = np.roll(corners, -1, axis=0)
    area = 0.5 * np.sum(corners[:, 0] * after[:, 1] - corners[:, 1] * after[:, 0])
    assert area == pytest.approx(length * width, rel=1e-6, abs=1e-6)
