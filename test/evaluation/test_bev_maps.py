"""Overlap of maps and error of the flow against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from e2e_perception.evaluation.bev_maps import BevMapMetrics


def cells(*marked: int) -> np.ndarray:
    """A map of 1 x 2 x 3 cells of which some, counted row by row, are something."""
    found = np.zeros(6, bool)
    found[list(marked)] = True
    return found.reshape(1, 2, 3)


KNOWN = cells(*range(6))


def test_one_cell_of_three_that_are_said_or_true_is_both() -> None:
    metrics = BevMapMetrics()
    metrics.add_map("drivable", np.array([[[0.9, 0.6, 0.1], [0.2, 0.0, 0.4]]]), cells(1, 5), KNOWN)
    assert metrics.summary() == {"drivable_iou": pytest.approx(1 / 3)}


def test_a_probability_of_one_half_says_nothing_yet() -> None:
    metrics = BevMapMetrics()
    metrics.add_map("boundary", np.where(cells(0), 0.51, 0.5), cells(0), KNOWN)
    assert metrics.summary() == {"boundary_iou": 1.0}


def test_unknown_cells_do_not_count_whether_right_or_wrong() -> None:
    metrics = BevMapMetrics()
    said, truth = cells(0, 1, 2).astype(float), cells(1, 2, 3)
    metrics.add_map("occupied", said, truth, cells(0, 1, 4))  # 0 is wrong, 1 right, 4 neither
    assert metrics.summary() == {"occupied_iou": 0.5}


def test_frames_are_pooled_by_their_cells() -> None:
    metrics = BevMapMetrics()
    metrics.add_map("drivable", cells(0).astype(float), cells(0), KNOWN)  # 1 of 1
    metrics.add_map("drivable", cells(0, 1, 2).astype(float), cells(3, 4), KNOWN)  # 0 of 5
    assert metrics.summary() == {"drivable_iou": pytest.approx(1 / 6)}


def test_what_is_nowhere_and_said_nowhere_has_no_figure() -> None:
    metrics = BevMapMetrics()
    metrics.add_map("drivable", np.zeros((1, 2, 3)), cells(), KNOWN)
    metrics.add_map("boundary", np.ones((1, 2, 3)), cells(), cells())
    metrics.add_flow(np.ones((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)), cells())
    assert metrics.summary() == {}


def test_the_flows_error_is_a_distance_and_its_mean_is_over_occupied_cells() -> None:
    metrics = BevMapMetrics()
    truth, flow = np.zeros((1, 2, 2, 3)), np.full((1, 2, 2, 3), 50.0)
    flow[0, :, 0, 0] = 3.0, -4.0
    flow[0, :, 1, 2] = truth[0, :, 1, 2] = 7.0, 1.0
    metrics.add_flow(flow, truth, cells(0, 5))  # 5 and 0 m/s
    metrics.add_flow(flow, truth, cells(5))
    assert metrics.summary() == {"flow_error_mps": pytest.approx(5 / 3)}
