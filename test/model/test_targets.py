"""What the network should have said: heatmaps, occupancy, and which query answers for which label."""

from __future__ import annotations

import math

import pytest
import torch
from synthetic import SMALL
from torch import Tensor

from e2e_perception.core.boxes import CLASSES
from e2e_perception.model.targets import (
    HEAT_SIGMA,
    MATCH_RADIUS,
    HeatTargets,
    heat_targets,
    label_of_ids,
    match_queries,
    occupancy_targets,
)

GRID = SMALL.bev_grid  # cells of 2 m, their centres at odd metres
CENTRES = torch.from_numpy(GRID.cell_centres_YX2())
CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")


def labelled(
    *places: tuple[float, float], size: tuple[float, float] = (4.0, 2.0), yaw: float = 0.0
) -> dict[str, Tensor]:
    """One frame with a car at each place [m], identities 100, 101, ..."""
    boxes = torch.zeros(1, len(places), 10)
    boxes[0, :, :2] = torch.tensor(places)
    boxes[0, :, 3:5] = torch.tensor(size).log()
    boxes[..., 6], boxes[..., 7] = math.sin(yaw), math.cos(yaw)
    return {
        "boxes": boxes,
        "class_ids": torch.full((1, len(places)), CAR),
        "ids": 100 + torch.arange(len(places))[None],
        "weights": torch.ones(1, len(places)),
        "present": torch.ones(1, len(places), dtype=torch.bool),
        "labels_valid": torch.ones(1, dtype=torch.bool),
        "cells_known": torch.ones(1, *GRID.shape, dtype=torch.bool),
    }


def cell(x: float, y: float) -> tuple[int, int]:
    """Row and column of the cell around a point [m]."""
    return int((y - GRID.y_min) // GRID.resolution), int((x - GRID.x_min) // GRID.resolution)


def drawn(labels: dict[str, Tensor]) -> HeatTargets:
    return heat_targets(labels, GRID, CENTRES)


def test_a_query_answers_for_the_nearest_label_whose_nearest_query_it_is() -> None:
    labels = labelled((10.0, 0.0), (20.0, 0.0))
    queries = torch.tensor([[[11.0, 0.0], [10.4, 0.0], [20.0, 2.0], [40.0, 0.0]]])
    assert match_queries(queries, labels).tolist() == [[-1, 0, 1, -1]]


@pytest.mark.parametrize(("off", "slot"), [(MATCH_RADIUS - 0.01, 0), (MATCH_RADIUS + 0.01, -1)])
def test_a_query_answers_for_nobody_beyond_the_radius(off: float, slot: int) -> None:
    assert match_queries(torch.tensor([[[10.0, off]]]), labelled((10.0, 0.0))).tolist() == [[slot]]


@pytest.mark.parametrize("name", ["present", "weights"])
def test_no_query_answers_for_a_label_that_is_absent_or_unseen(name: str) -> None:
    labels = labelled((10.0, 0.0), (11.0, 0.0))
    labels[name][0, 0] = 0
    assert match_queries(torch.tensor([[[10.0, 0.0]]]), labels).tolist() == [[1]]
    labels[name][0, 1] = 0
    assert match_queries(torch.tensor([[[10.0, 0.0]]]), labels).tolist() == [[-1]]


def test_an_identity_leads_to_its_label_and_none_leads_nowhere() -> None:
    labels = labelled((10.0, 0.0), (20.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    labels["ids"][0, 2:] = torch.tensor([-1, 103])
    labels["present"][0, 3] = False
    assert label_of_ids(torch.tensor([[101, 100, 5, -1, 103]]), labels).tolist() == [[1, 0, -1, -1, -1]]


def test_the_heat_of_a_centre_is_one_in_its_cell_and_falls_as_its_class_says() -> None:
    labels = labelled((11.5, 3.0), (31.0, -5.0))
    labels["class_ids"][0, 1] = PEDESTRIAN
    targets = drawn(labels)
    heat = targets.heat_BKYX[0]
    assert heat[CAR][cell(11.5, 3.0)] == 1.0 and heat[PEDESTRIAN][cell(31.0, -5.0)] == 1.0
    # The next centres are 1.5 m, 2.5 m and, along y, 2 m off.
    for k, place, off in (
        (CAR, (13.0, 3.0), 1.5),
        (CAR, (9.0, 3.0), 2.5),
        (PEDESTRIAN, (31.0, -7.0), 2.0),
        (PEDESTRIAN, (31.0, -3.0), 2.0),
    ):
        expected = math.exp(-0.5 * (off / HEAT_SIGMA[CLASSES[k]]) ** 2)
        assert float(heat[k][cell(*place)]) == pytest.approx(expected, rel=1e-4)
    # Half a metre and 2 m off its centre.
    diagonal = math.exp(-0.5 * (0.5**2 + 2.0**2) / HEAT_SIGMA["car"] ** 2)
    assert float(heat[CAR][cell(11.0, 5.0)]) == pytest.approx(diagonal, rel=1e-4)
    assert (heat == 1.0).sum() == 2
    assert targets.boost_BYX.nonzero().tolist() == [[0, *cell(31.0, -5.0)], [0, *cell(11.5, 3.0)]]
    assert not targets.ignore_BYX.any()


def test_where_two_bumps_meet_the_higher_counts() -> None:
    both = drawn(labelled((11.0, 1.0), (15.0, 1.0))).heat_BKYX[0, CAR]
    apart = [drawn(labelled((x, 1.0))).heat_BKYX[0, CAR] for x in (11.0, 15.0)]
    torch.testing.assert_close(both, torch.maximum(*apart))


def test_somebody_outside_the_grid_or_absent_is_not_drawn() -> None:
    labels = labelled((48.5, 0.0), (-16.5, 0.0), (10.0, 16.5), (10.0, -16.5), (11.0, 1.0))
    labels["present"][0, 4] = False
    targets = drawn(labels)
    assert not targets.heat_BKYX.any() and not targets.boost_BYX.any() and not targets.ignore_BYX.any()


def test_around_somebody_unseen_nothing_is_asked_unless_somebody_seen_is_there() -> None:
    labels = labelled((11.0, 1.0), (21.0, 1.0), (23.0, 1.0))
    labels["weights"][0, :2] = 0.0
    targets = drawn(labels)
    assert targets.heat_BKYX[0, CAR][cell(11.0, 1.0)] < 1e-6
    # exp(-0.5 (2 / 1.2)^2) = 0.249 < 0.3: the centre's cell alone.
    assert targets.ignore_BYX.nonzero().tolist() == [[0, *cell(11.0, 1.0)], [0, *cell(21.0, 1.0)]]
    labels["boxes"][0, 2, 0] = 21.9  # so near that the heat in the cell of the unseen is 1
    assert drawn(labels).ignore_BYX.nonzero().tolist() == [[0, *cell(11.0, 1.0)]]


def test_nothing_is_asked_where_nobody_is_labelled_or_nothing_is_known() -> None:
    labels = labelled((11.0, 1.0))
    labels["cells_known"][0, 3, 5] = False
    assert drawn(labels).ignore_BYX.nonzero().tolist() == [[0, 3, 5]]
    labels["labels_valid"][:] = False
    assert drawn(labels).ignore_BYX.all()


@pytest.mark.parametrize(
    ("yaw_deg", "size", "covered"),
    [(0.0, (4.2, 2.2), [(9, 3), (11, 3), (13, 3)]),
     (90.0, (4.2, 2.2), [(11, 1), (11, 3), (11, 5)]),
     # Along (1, 1) the neighbours on the diagonal are 2.83 m off, those beside it 1.41 m both ways.
     (45.0, (6.0, 2.2), [(9, 1), (11, 3), (13, 5)]),
     (0.0, (0.3, 0.3), [(11, 3)])],
)  # fmt: skip
def test_a_box_covers_the_cells_under_it_and_never_none(
    yaw_deg: float, size: tuple[float, float], covered: list[tuple[float, float]]
) -> None:
    occupied, _ = occupancy_targets(labelled((11.0, 3.0), size=size, yaw=math.radians(yaw_deg)), CENTRES)
    expected = torch.zeros(1, *GRID.shape)
    for place in covered:
        expected[0][cell(*place)] = 1.0
    assert torch.equal(occupied, expected)


def test_a_small_box_between_centres_covers_a_cell_too() -> None:
    occupied, _ = occupancy_targets(labelled((11.9, 3.9), size=(0.3, 0.3)), CENTRES)
    assert occupied[0][cell(11.9, 3.9)] == 1.0


def test_an_occupied_cell_flows_as_the_object_on_it() -> None:
    labels = labelled((11.0, 3.0), (31.0, -5.0))
    labels["boxes"][0, :, 8:] = torch.tensor([[8.0, -2.0], [-3.0, 1.0]])
    occupied, flow = occupancy_targets(labels, CENTRES)
    assert flow.shape == (1, 2, *GRID.shape)
    assert flow[0][(slice(None), *cell(13.0, 3.0))].tolist() == [8.0, -2.0]
    assert flow[0][(slice(None), *cell(31.0, -5.0))].tolist() == [-3.0, 1.0]
    for name in ("present", "weights"):
        unusable = {**labels, name: torch.tensor([[1, 0]]).to(labels[name].dtype)}
        occupied, _ = occupancy_targets(unusable, CENTRES)
        assert occupied[0][cell(11.0, 3.0)] == 1.0 and occupied[0][cell(31.0, -5.0)] == 0.0
