"""Losses of one small frame: known answers, which way they pull, and of what they say nothing.

Two queries answer for a car and a pedestrian, a third for nobody. Remembered are the car, somebody who is
gone, and a false detection. There are two futures, two steps and two proposals on a straight route.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from synthetic import SMALL
from torch import Tensor

from e2e_perception.core.network_config import COST_TERMS
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING
from e2e_perception.model.losses import (
    COLLISION_PRICE,
    IMITATION_TEMPERATURE,
    LATERAL_WEIGHT,
    LOSSES,
    OBJECTIVES,
    PRICE_TEMPERATURE,
    focal_loss,
    frame_losses,
    softened,
)
from e2e_perception.model.planning import BEHIND
from e2e_perception.model.targets import HeatTargets, heat_targets
from e2e_perception.training.config import LossWeights

GRID = SMALL.bev_grid
CENTRES = torch.from_numpy(GRID.cell_centres_YX2())
CELLS = GRID.num_y * GRID.num_x
LN2 = math.log(2.0)
IMITATION, COMFORT = COST_TERMS.index("imitation"), COST_TERMS.index("comfort")
MATCHES = torch.tensor([[0, 1, -1]])
MEMORY_IDS = torch.tensor([[7, 9, -1]])
BOXES = torch.tensor(
    [[11.0, 3.0, 0.8, math.log(4.0), math.log(2.0), 0.5, 0.0, 1.0, 8.0, -2.0],
     [21.0, -7.0, 0.9, math.log(0.6), math.log(0.6), 0.5, 1.0, 0.0, 0.0, 1.0],
     [0.0] * 10]
)  # fmt: skip
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], object]


def true_labels() -> Tensors:
    """Two objects and a slot that is not used; no prices; the driver goes 5 m, then 10 m ahead."""
    maps = torch.zeros(1, 2, *GRID.shape)
    maps[:, 0, :, : GRID.num_x // 2] = 1.0
    maps[:, 1, : GRID.num_y // 4] = 1.0
    steps = torch.tensor([1.0, 2.0])[:, None]
    present = torch.tensor([[True, True, False]])
    return {
        "boxes": BOXES[None].clone(),
        "class_ids": torch.tensor([[0, 2, 0]]),
        "ids": torch.tensor([[7, 8, -1]]),
        "weights": present.float(),
        "present": present,
        "futures": BOXES[None, :, None, :2] + steps * BOXES[None, :, None, 8:],
        "futures_valid": present[..., None].expand(1, 3, 2).clone(),
        "ego_future": torch.tensor([[[5.0, 0.0], [10.0, 0.0]]]),
        "ego_future_valid": torch.ones(1, 2, dtype=torch.bool),
        "maps": maps,
        "maps_valid": torch.ones(1, dtype=torch.bool),
        "labels_valid": torch.ones(1, dtype=torch.bool),
        "cells_known": torch.ones(1, *GRID.shape, dtype=torch.bool),
        "plan_costs": torch.full((1, 2, 5), math.nan),
    }


def true_outputs() -> Tensors:
    """Wrong in nothing but the second future, 3 m to the left; logits and log-variances are 0."""
    labels = true_labels()
    boxes = labels["boxes"].clone()
    boxes[0, 2] = 99.0  # the query that answers for nobody
    futures = torch.full((1, 6, 2, 2, 2), 99.0)
    for o, label in ((0, 0), (1, 1), (3, 0)):
        futures[0, o] = labels["futures"][0, label]
        futures[0, o, 1, :, 1] += 3.0
    affinity = torch.full((1, 4, 4), -99.0)
    affinity[0, 0, 0] = affinity[0, 3, 1] = affinity[0, 1, 3] = 0.0  # known; new; gone
    sd = labels["ego_future"][:, None].expand(1, 2, 2, 2).clone()
    costs = torch.zeros(1, 2, len(COST_TERMS))
    costs[..., IMITATION] = LN2
    return {
        "heat_logits": torch.zeros(1, 5, *GRID.shape),
        "query_boxes": boxes,
        "query_headings": boxes[..., 6:8].clone(),
        "query_log_var": torch.zeros(1, 3, 4),
        "affinity": affinity,
        "object_futures": futures,
        "object_futures_log_var": torch.zeros(1, 6, 2, 2, 2),
        "mode_logits": torch.zeros(1, 6, 2),
        "map_logits": torch.zeros(1, 5, *GRID.shape),
        "plan_sd": sd,
        "plan_costs": costs,
        "plan_logits": torch.zeros(1, 2, 2),
    }


def straight_route() -> Tensor:
    route = torch.zeros(1, ROUTE_POINTS, 4)
    route[..., 0] = ROUTE_SPACING * torch.arange(ROUTE_POINTS)
    route[..., 2] = 1.0
    return route


def true_inputs() -> Tensors:
    boxes = torch.full((1, 3, 10), 99.0)
    boxes[0, 0] = BOXES[0]
    return {"track_boxes": boxes, "route": straight_route()}


def losses_of(
    outputs: Tensors,
    labels: Tensors,
    inputs: Tensors | None = None,
    matches: Tensor = MATCHES,
    memory_ids: Tensor = MEMORY_IDS,
) -> Tensors:
    targets = heat_targets(labels, GRID, CENTRES)
    return frame_losses(outputs, inputs or true_inputs(), labels, targets, matches, memory_ids, CENTRES)


def losses_after(change: Change) -> Tensors:
    """Losses after a change to outputs, labels and inputs; the labels' `plan_costs` are called `prices`."""
    outputs, labels, inputs = true_outputs(), true_labels(), true_inputs()
    prices = labels.pop("plan_costs")
    everything = {**outputs, **inputs, **labels, "prices": prices}
    change(everything)
    return losses_of(
        {name: everything[name] for name in outputs},
        {**{name: everything[name] for name in labels}, "plan_costs": prices},
        {name: everything[name] for name in inputs},
    )


def put(name: str, where: Any, value: Any) -> Change:
    def change(x: Tensors) -> None:
        x[name][where] = torch.as_tensor(value).to(x[name].dtype)

    return change


def both(*changes: Change) -> Change:
    return lambda x: [change(x) for change in changes]


def test_every_loss_is_there_is_weighed_and_serves_an_objective() -> None:
    assert set(losses_after(lambda x: None)) == set(LOSSES) == set(LossWeights.model_fields)
    assert {loss.objective for loss in LOSSES.values()} == set(OBJECTIVES)


def test_without_an_error_nothing_is_lost_but_what_unsureness_costs() -> None:
    losses = losses_after(lambda x: None)
    for name in ("box", "velocity", "box_nll", "affinity", "consistency", "motion_nll", "plan_offset"):
        assert float(losses[name]) == pytest.approx(0.0, abs=1e-6), name
    assert float(losses["motion"]) == pytest.approx(0.01 / 5.0)  # the root's softening
    for name in ("mode", "plan", "plan_risk"):
        assert float(losses[name]) == pytest.approx(LN2), name
    # Occupied: 3 cells of the car's 4 m by 2 m, one of the pedestrian's. What is there counts four times.
    assert float(losses["maps"]) == pytest.approx(LN2 * (1.0 + (1.0 + 3.0 / 4.0) + (1.0 + 3.0 * 4.0 / CELLS)))


# Means are over the two matched objects, hence the last factor of each.
KNOWN: list[tuple[str, str, Change, float]] = [
    ("box", "1 m off, one of eight columns", put("query_boxes", (0, 0, 0), 12.0), (1.0 - 0.1) / 8 / 2),
    ("box", "0.1 m off", put("query_boxes", (0, 1, 2), 1.0), 0.5 * 0.1**2 / 0.2 / 8 / 2),
    ("box", "a heading too long", put("query_headings", (0, 0, 1), 1.5), (0.5 - 0.1) / 8 / 2),
    ("box", "a heading of the right length counts by what it was", put("query_boxes", (0, 0, 7), 0.5), 0.0),
    ("box", "a velocity is no shape", put("query_boxes", (0, 0, 8), 0.0), 0.0),
    ("box", "half seen", both(put("weights", (0, 1), 0.5), put("query_boxes", (0, 1, 0), 22.0)),
     0.5 * 0.9 / 8 / 1.5),
    ("box", "unseen", both(put("weights", (0, 1), 0.0), put("query_boxes", (0, 1, 0), 22.0)), 0.0),
    ("box", "nobody's query", put("query_boxes", (0, 2), 1e3), 0.0),
    ("velocity", "5 m/s, one of two axes", put("query_boxes", (0, 0, 8), 13.0), 5.0 / 10 / 2 / 2),
    ("velocity", "40 m/s", put("query_boxes", (0, 0, 8), -32.0), 20.0 * (1.0 + LN2) / 10 / 2 / 2),
    ("box_nll", "2 m off and unsure", both(put("query_boxes", (0, 0, 1), 5.0),
     put("query_log_var", (0, 0, 1), math.log(4.0))), 0.5 * (1.0 + 2.0 * LN2) / 4 / 2),
    ("box_nll", "3 m/s off and sure", both(put("query_boxes", (0, 0, 9), 1.0),
     put("query_log_var", (0, 0, 3), -2.0 * LN2)), 0.5 * (9.0 * 4.0 - 2.0 * LN2) / 4 / 2),
    ("box_nll", "a height has no variance", put("query_boxes", (0, 0, 2), 9.0), 0.0),
    # Three associations are asked for.
    ("affinity", "whose it is", put("affinity", (0, 0, 0), -3.0), 3.0 / 3),
    ("affinity", "that it is new", put("affinity", (0, 3, 1), -3.0), 3.0 / 3),
    ("affinity", "that it is gone", put("affinity", (0, 1, 3), -3.0), 3.0 / 3),
    ("affinity", "a false detection is asked for nothing", both(put("affinity", (0, 2), -1e3),
     put("affinity", (0, slice(None), 2), -1e3)), 0.0),
    ("affinity", "a forgotten track makes its detection new", both(put("ids", (0, 0), 6),
     put("affinity", (0, 3, 0), -2.0), put("affinity", (0, 0, 3), -4.0)), (2.0 + 4.0) / 4),
    ("consistency", "1 m and 0.5 m", put("track_boxes", (0, 0, slice(2)), [10.0, 3.5]), 1.5 / 2),
    ("consistency", "no more than 3 m", put("track_boxes", (0, 0, 0), -90.0), 3.0 / 2),
    # Three objects have futures: two queries and the remembered car. A mean over two steps.
    ("motion", "4 m off in one step", put("object_futures", (0, 3, slice(None), 1, 0), 31.0),
     (math.hypot(4.0, 0.01) / 2 - 0.005) / 5 / 3 + 0.002),
    ("motion", "50 m off", put("object_futures", (0, 0, slice(None), slice(None), 0), [69.0, 77.0]),
     25.0 * (1.0 + LN2) / 5 / 3 + 0.002 * 2 / 3),
    ("motion", "a step that nobody knows", both(put("futures_valid", (0, 0, 1), False),
     put("object_futures", (0, 0, slice(None), 1), 1e3)), 0.002),
    ("motion", "nobody's future", put("object_futures", (0, [2, 4, 5]), 1e3), 0.002),
    ("motion_nll", "2 m off and unsure", both(put("object_futures", (0, 1, slice(None), 0, 0), 23.0),
     put("object_futures_log_var", (0, 1, 0, 0, 0), math.log(4.0))), 0.5 * (1.0 + 2.0 * LN2) / 2 / 6),
    ("motion_nll", "the loser's variance", put("object_futures_log_var", (0, 0, 1), 5.0), 0.0),
    ("motion_nll", "a step that nobody knows", both(put("futures_valid", (0, 1, 1), False),
     put("object_futures_log_var", (0, 1, 0, 1), 5.0), put("object_futures_log_var", (0, 1, 0, 0, 0), 1.0)),
     0.5 / 2 / 5),
    ("mode", "the winner has three quarters", put("mode_logits", (0, 0, 0), math.log(3.0)),
     (math.log(4.0 / 3.0) + 2.0 * LN2) / 3),
    ("mode", "the other one won", both(put("object_futures", (0, 3, 0), 50.0),
     put("mode_logits", (0, 3, 0), math.log(3.0))), (math.log(4.0) + 2.0 * LN2) / 3),
    ("mode", "nobody's future", put("mode_logits", (0, [2, 4, 5], 0), 9.0), LN2),
    # Flow is asked for in the four occupied cells; of the car 8 and -2, of the pedestrian 0 and 1 m/s.
    ("flow", "none is said", lambda x: None, (3 * (0.8 + 0.2) + 0.1) / 2 / 4),
    ("flow", "10 m/s too much where nobody is", put("map_logits", (0, 3, 0), 1.0),
     (3 * (0.8 + 0.2) + 0.1) / 2 / 4),
    ("maps", "nothing known", both(put("maps_valid", 0, False), put("labels_valid", 0, False)), 0.0),
    ("maps", "no map", put("maps_valid", 0, False), LN2 * (1.0 + 3.0 * 4.0 / CELLS)),
    ("maps", "no labels", put("labels_valid", 0, False), LN2 * (1.0 + 1.75)),
    # The rear quarter, where nobody is, is not known; of the rest the same shares are boundary.
    ("maps", "cells that are not known", both(put("cells_known", (0, slice(None), slice(8)), False),
     put("map_logits", (0, slice(None), slice(None), slice(8)), 7.0)),
     LN2 * (1.0 + 1.75 + 1.0 + 3.0 * 4.0 / (0.75 * CELLS))),
    ("plan_comfort", "1 and 3, half and half", put("plan_costs", (0, slice(None), COMFORT), [1.0, 3.0]), 2.0),
    ("plan_comfort", "no more than 20", put("plan_costs", (0, slice(None), COMFORT), [90.0, 0.0]), 10.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "expected"), [pytest.param(n, c, e, id=f"{n}, {what}") for n, what, c, e in KNOWN]
)
def test_each_loss_is_what_it_comes_to_by_hand(name: str, change: Change, expected: float) -> None:
    assert float(losses_after(change)[name]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_heat_costs_by_its_distance_from_the_truth_and_nothing_where_it_is_ignored() -> None:
    heat = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]).reshape(1, 1, 1, 5)
    ignore = torch.tensor([False, False, False, False, True]).reshape(1, 1, 5)
    targets = HeatTargets(heat, ignore, torch.zeros(1, 1, 5))
    # (1 - p)^2 log p in the two centres; elsewhere p^2 log (1 - p), times (1 - heat)^4.
    expected = LN2 * (2.0 * 0.25 + 0.25 / 16.0 + 0.25) / 2.0
    assert float(focal_loss(torch.zeros(1, 1, 1, 5), targets)) == pytest.approx(expected)
    logits = torch.full((1, 1, 1, 5), math.log(3.0))  # p = 3/4
    expected = (2.0 * math.log(4.0 / 3.0) / 16.0 + 9.0 / 16.0 * math.log(4.0) * (1.0 / 16.0 + 1.0)) / 2.0
    assert float(focal_loss(logits, targets)) == pytest.approx(expected)


# Which output, from something wrong to the truth; everything else as it is.
FALLING: list[tuple[str, str, Any, Any, Any]] = [
    ("box", "query_boxes", (0, 0, 0), 31.0, 11.0),
    ("box", "query_headings", (0, 0), [0.0, -1.0], [0.0, 1.0]),
    ("velocity", "query_boxes", (0, 0, 9), 38.0, -2.0),
    ("affinity", "affinity", (0, 0, 0), -9.0, 0.0),
    ("affinity", "affinity", (0, 1, 3), -9.0, 0.0),
    ("consistency", "query_boxes", (0, 0, 0), 13.0, 11.0),
    ("motion", "object_futures", (0, 1, slice(None), slice(None), 0), 61.0, 21.0),
    ("mode", "mode_logits", (0, 0), [-1.0, 1.0], [1.0, -1.0]),
    ("heat", "heat_logits", (0, 0, 9, 13), -5.0, 5.0),
    ("heat", "heat_logits", (0, 0, 1, 1), 5.0, -5.0),
    ("maps", "map_logits", (0, 0, 0, 0), -5.0, 5.0),
    ("maps", "map_logits", (0, 0, 0, 20), 5.0, -5.0),
    ("maps", "map_logits", (0, 1, 0, 0), -5.0, 5.0),
    ("maps", "map_logits", (0, 1, 9, 0), 5.0, -5.0),
    ("maps", "map_logits", (0, 2, 9, 13), -5.0, 5.0),
    ("maps", "map_logits", (0, 2, 0, 0), 5.0, -5.0),
    ("flow", "map_logits", (0, 3, 9, 13), -1.0, 0.8),
    ("flow", "map_logits", (0, 4, 9, 13), 1.0, -0.2),
    ("plan_offset", "plan_sd", (0, slice(None), 1, 0), [40.0, 40.0], [10.0, 10.0]),
    ("plan_offset", "plan_sd", (0, slice(None), 1, 1), [3.0, 3.0], [0.0, 0.0]),
    ("plan_risk", "plan_logits", (0, slice(None), 1), [5.0, 5.0], [-5.0, -5.0]),
    ("plan_comfort", "plan_costs", (0, 0, COMFORT), 9.0, 0.0),
]


@pytest.mark.parametrize(("name", "output", "where", "wrong", "right"), FALLING)
def test_the_loss_falls_all_the_way_towards_the_truth(
    name: str, output: str, where: Any, wrong: Any, right: Any
) -> None:
    wrong_part, right_part = torch.tensor(wrong), torch.tensor(right)
    values = []
    for share in (0.0, 0.25, 0.5, 0.75, 0.95):
        outputs = true_outputs()
        outputs[output][where] = wrong_part + share * (right_part - wrong_part)
        outputs[output].requires_grad_()
        loss = losses_of(outputs, true_labels())[name]
        (gradient,) = torch.autograd.grad(loss, outputs[output])
        assert float((gradient[where] * (right_part - wrong_part)).sum()) < -1e-6
        values.append(float(loss.detach()))
    assert values == sorted(set(values), reverse=True)


@pytest.mark.parametrize(
    ("name", "mean", "log_var", "at"),
    [("box_nll", "query_boxes", "query_log_var", (0, 0, 0)),
     ("motion_nll", "object_futures", "object_futures_log_var", (0, 0, 0, 0, 0))],
)  # fmt: skip
def test_a_variance_is_pulled_to_the_square_of_the_error_which_itself_is_not_pulled(
    name: str, mean: str, log_var: str, at: tuple[int, ...]
) -> None:
    for off in (-0.5, 0.0, 0.5):
        outputs = true_outputs()
        outputs[mean][at] += 2.0
        outputs[log_var][at] = 2.0 * LN2 + off
        for output in (mean, log_var):
            outputs[output].requires_grad_()
        loss = losses_of(outputs, true_labels())[name]
        of_mean, of_variance = torch.autograd.grad(loss, (outputs[mean], outputs[log_var]), allow_unused=True)
        assert of_mean is None
        # Half of 1 - e^-off of it, as a mean over the columns and objects.
        share = {"box_nll": 4 * 2, "motion_nll": 2 * 6}[name]
        expected = 0.5 * (1.0 - math.exp(-off)) / share
        assert float(of_variance[at]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "output", "where", "pull"),
    # 20 / 40 of one in 10 * 2 columns * 2 objects; 25 / 40 of one in 5 * 3 objects.
    [("velocity", "query_boxes", (0, 0, 8), 0.5 / 40.0),
     ("motion", "object_futures", (0, 0, 0, slice(None), 0), 0.625 / 15.0)],
)  # fmt: skip
def test_what_is_forty_off_is_pulled_too(name: str, output: str, where: Any, pull: float) -> None:
    outputs = true_outputs()
    outputs["object_futures"][0, 0, 1] += 99.0  # no winner
    outputs[output][where] += 40.0
    outputs[output].requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(outputs, true_labels())[name], outputs[output])
    assert float(gradient[where].sum()) == pytest.approx(pull, rel=1e-4)


def test_a_softened_error_is_itself_up_to_the_bound_and_goes_on_from_there_without_a_leap() -> None:
    error = torch.tensor([0.0, 3.0, 19.999, 20.0, 20.001, 40.0, 20.0 * math.e], requires_grad=True)
    soft = softened(error, 20.0)
    expected = torch.tensor([0.0, 3.0, 19.999, 20.0, 20.001, 20.0 * (1.0 + LN2), 40.0])
    torch.testing.assert_close(soft, expected, atol=1e-5, rtol=1e-6)
    (gradient,) = torch.autograd.grad(soft.sum(), error)
    slopes = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0 / math.e])
    torch.testing.assert_close(gradient, slopes, atol=1e-4, rtol=0.0)


def test_the_winner_of_two_futures_takes_all() -> None:
    outputs = true_outputs()
    outputs["object_futures"][0, 0, 0, :, 0] += 5.0  # now the second, 3 m off, is nearer
    outputs["object_futures"].requires_grad_()
    loss = losses_of(outputs, true_labels())["motion"]
    assert loss.item() == pytest.approx((3.0 + 0.01 + 0.01) / 5 / 3, rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, outputs["object_futures"])
    assert not gradient[0, 0, 0].any() and bool((gradient[0, 0, 1, :, 1] > 0.0).all())
    assert not gradient[0, [2, 4, 5]].any()


# --- The plan. Two proposals are twice as good as each other where they differ by a temperature's ln 2.

NEAR = IMITATION_TEMPERATURE * LN2  # [m] of distance
S_OFF = 0.25 + NEAR  # [m] in s; beyond half a metre the distance is the error less 0.25
PRICED = put("prices", ..., 0.0)
DEARER = put("prices", (0, 1, 3), PRICE_TEMPERATURE * LN2)


@pytest.mark.parametrize(
    ("change", "offset"),
    [(put("plan_sd", (0, 1, slice(None), 0), torch.tensor([5.0, 10.0]) + S_OFF), NEAR),
     (put("plan_sd", (0, 1, slice(None), 1), -S_OFF / LATERAL_WEIGHT), NEAR),
     (both(put("plan_sd", (0, 1, 0, 0), 5.0 + S_OFF), put("ego_future_valid", (0, 1), False),
           put("plan_sd", (0, slice(None), 1), 77.0)), NEAR),
     (both(PRICED, DEARER), 0.0)],
    ids=["s", "d, three times", "a step that was not driven", "prices"],
)  # fmt: skip
def test_a_proposal_nearer_to_the_driver_or_cheaper_is_to_be_likelier(change: Change, offset: float) -> None:
    def loss(first: float, second: float) -> Tensors:
        return losses_after(both(change, put("plan_costs", (0, slice(None), IMITATION), [first, second])))

    assert float(loss(1.0, 4.0)["plan"]) == pytest.approx((2.0 * 1.0 + 4.0) / 3.0, rel=1e-5)
    assert float(loss(4.0, 1.0)["plan"]) == pytest.approx((2.0 * 4.0 + 1.0) / 3.0, rel=1e-5)
    assert float(loss(1.0, 4.0)["plan_offset"]) == pytest.approx(offset / 3.0, rel=1e-5, abs=1e-6)


def test_prices_count_whoever_drove_there_and_also_where_nobody_did() -> None:
    dear_driver = both(PRICED, DEARER, put("plan_sd", (0, 0), 50.0))  # the driver's is the dearer one
    costs = put("plan_costs", (0, slice(None), IMITATION), [1.0, 4.0])
    for change in (dear_driver, both(dear_driver, put("ego_future_valid", 0, False))):
        assert float(losses_after(both(change, costs))["plan"]) == pytest.approx(2.0, rel=1e-5)
    # Prices that are not all known are none.
    unknown = both(dear_driver, put("prices", (0, 0, 4), math.nan), costs)
    assert float(losses_after(unknown)["plan"]) == pytest.approx(4.0, rel=1e-5)
    nobody = losses_after(both(costs, put("ego_future_valid", 0, False)))
    assert float(nobody["plan"]) == float(nobody["plan_offset"]) == 0.0


CHANCES = put("plan_costs", (0, slice(None), IMITATION), [math.log(4.0), math.log(4.0 / 3.0)])  # 1/4 and 3/4
RISKS = put("plan_logits", (0, slice(None), 1), [math.log(3.0), -math.log(3.0)])  # 3/4 and 1/4
HALF_HIT = put("prices", (0, 0, 0), 0.5 * COLLISION_PRICE)
# The car stands 20 m ahead on the route; the first proposal is in it at the second of its two steps.
IN_THE_WAY = both(
    put("boxes", (0, 0, slice(2)), [20.0, 0.0]),
    put("futures", (0, 0), [20.0, 0.0]),
    put("plan_sd", (0, slice(None), slice(None), 0), [[5.0, 20.0], [2.0, 4.0]]),
)
ELSEWHERE = put("boxes", (0, 0, slice(2)), [20.0, 9.0])
# It stands 40 m ahead, and where it is at the first step nobody knows. The first proposal passes 20 m between
# the steps.
A_GAP = both(
    put("boxes", (0, 0, slice(2)), [40.0, 0.0]),
    put("futures", (0, 0), [[0.0, 0.0], [40.0, 0.0]]),
    put("futures_valid", (0, 0, 0), False),
    put("plan_sd", (0, slice(None), slice(None), 0), [[15.0, 30.0], [2.0, 4.0]]),
)
# It comes from behind, and the first proposal stands still in its way.
BEHIND_IT = both(
    put("boxes", (0, 0, slice(2)), [-10.0, 0.0]),
    put("futures", (0, 0), [[-5.0, 0.0], [0.0, 0.0]]),
    put("plan_sd", (0, slice(None), slice(None), 0), [[0.0, 0.0], [5.0, 10.0]]),
)


@pytest.mark.parametrize(
    ("change", "meets"),
    [(both(PRICED, HALF_HIT), 0.5),
     (both(PRICED, put("prices", (0, 0, 0), 3.0 * COLLISION_PRICE)), 1.0),
     (both(PRICED, HALF_HIT, put("labels_valid", 0, False)), 0.5),
     (both(PRICED, IN_THE_WAY), 0.0),
     (IN_THE_WAY, 0.5),
     (both(IN_THE_WAY, put("prices", (0, 0), 0.5 * COLLISION_PRICE)), 0.5),
     (both(IN_THE_WAY, put("weights", (0, 0), 0.0)), 0.5),
     (both(IN_THE_WAY, put("present", (0, 0), False)), 0.0),
     (both(IN_THE_WAY, put("futures_valid", (0, 0, 1), False)), 0.0),
     (both(IN_THE_WAY, put("futures", (0, 0), [20.0, 9.0]), ELSEWHERE), 0.0),
     (A_GAP, 0.0),
     (BEHIND_IT, 0.5 * BEHIND),
     (both(BEHIND_IT, put("boxes", (0, 0, slice(6, 8)), [0.0, -1.0])), 0.5)],
    ids=["half in collision", "no more than always", "priced, not labelled", "a price knows better",
         "unpriced", "not all priced", "unseen, but there", "absent", "gone by then", "elsewhere",
         "known from the second step on", "it will mind the robot", "it reverses"],
)  # fmt: skip
def test_risk_and_safety_know_what_each_proposal_truly_meets(change: Change, meets: float) -> None:
    losses = losses_after(both(change, CHANCES, RISKS))
    assert float(losses["plan_safety"]) == pytest.approx(0.25 * meets, abs=1e-4)
    first = meets * math.log(4.0 / 3.0) + (1.0 - meets) * math.log(4.0)
    assert float(losses["plan_risk"]) == pytest.approx(0.5 * (first + math.log(4.0 / 3.0)), rel=1e-3)


def test_the_overlap_falls_off_with_the_gap_in_standard_deviations_of_thirty_centimetres() -> None:
    # Reach 2 + 2.3 m; at the second step the robot's front is 0.6 m from the car, that is two deviations.
    near = both(IN_THE_WAY, put("plan_sd", (0, 0, 1, 0), 20.0 - 4.3 - 1.4 - 0.6), CHANCES)
    expected = 0.25 * 0.5 * math.exp(-2.0)
    assert float(losses_after(near)["plan_safety"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("change", [both(PRICED, HALF_HIT), IN_THE_WAY], ids=["priced", "unpriced"])
def test_a_proposal_that_meets_somebody_is_pushed_away_from(change: Change) -> None:
    values = []
    for first in (0.9, 0.5, 0.1):
        chances = put("plan_costs", (0, slice(None), IMITATION), [-math.log(first), -math.log(1.0 - first)])
        values.append(float(losses_after(both(change, chances))["plan_safety"]))
    assert values == pytest.approx([0.45, 0.25, 0.05], rel=1e-4)


def together(*frames: Tensors) -> Tensors:
    return {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}


def imperfect() -> Tensors:
    """Outputs with an error in everything, the same in every call."""
    random = torch.Generator().manual_seed(0)
    outputs = {k: v + 0.3 * torch.randn(v.shape, generator=random) for k, v in true_outputs().items()}
    outputs["plan_costs"][..., IMITATION] = LN2
    return outputs


def test_an_unlabelled_frame_contributes_nothing() -> None:
    labels = true_labels()
    unlabelled = {name: torch.zeros_like(value) for name, value in labels.items()}
    unlabelled["ids"] -= 1
    unlabelled["cells_known"] |= True
    unlabelled["plan_costs"] += math.nan
    wild = {name: torch.full_like(value, 5.0) for name, value in imperfect().items()}
    wild["plan_costs"][..., COMFORT] = 0.0  # which needs no label
    nobody = torch.full_like(MATCHES, -1)
    for name, value in losses_of(wild, unlabelled, true_inputs(), nobody, nobody).items():
        assert float(value) == 0.0, name
    alone = losses_of(imperfect(), labels)
    beside = losses_of(
        together(imperfect(), wild),
        together(labels, unlabelled),
        together(true_inputs(), true_inputs()),
        torch.cat([MATCHES, nobody]),
        torch.cat([MEMORY_IDS, nobody]),
    )
    for name, value in beside.items():
        share = 0.5 if name == "plan_comfort" else 1.0  # a mean over frames
        assert float(value) == pytest.approx(share * float(alone[name]), rel=1e-5), name


def test_cells_that_no_sensor_reached_teach_no_map_and_no_flow() -> None:
    losses = losses_after(both(put("map_logits", ..., 3.0), put("cells_known", ..., False)))
    assert float(losses["maps"]) == float(losses["flow"]) == 0.0


def test_frames_with_and_without_prices_go_into_one_batch() -> None:
    priced = true_labels()
    priced["plan_costs"] = torch.zeros(1, 2, 5)
    priced["plan_costs"][0, 0, 0] = 0.5 * COLLISION_PRICE
    alone = [losses_of(imperfect(), labels) for labels in (priced, true_labels())]
    batch = losses_of(
        together(imperfect(), imperfect()),
        together(priced, true_labels()),
        together(true_inputs(), true_inputs()),
        MATCHES.expand(2, -1),
        MEMORY_IDS.expand(2, -1),
    )
    for name, value in batch.items():
        assert float(value) == pytest.approx(sum(float(x[name]) for x in alone) / 2.0, rel=1e-5), name
    assert float(alone[0]["plan_safety"]) > 0.2 > float(alone[1]["plan_safety"])
