"""Objectives that disagree: what each method makes of them, by known answers and by what it promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from synthetic import SMALL, synthetic_clip
from torch import Tensor, nn

from e2e_perception.core.errors import ConfigError, InputError, TrainingError
from e2e_perception.data.dataset import clip_arrays
from e2e_perception.model.losses import LOSSES, OBJECTIVES
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.balancing import (
    LARGEST_LOG_VARIANCE,
    METHODS,
    Balancer,
    BalanceReport,
    measure_conflicts,
)
from e2e_perception.training.config import Balancing, LossWeights
from e2e_perception.training.rollout import rollout

AGGREGATIONS = ("upgrad", "pcgrad", "mgda")
Losses = dict[str, Tensor]


class Toy(nn.Module):
    """Linear losses, whose gradients are known, of shared values and of one for each objective."""

    def __init__(self, size: int = 2, names: tuple[str, ...] = ("a", "b", "c", "d")) -> None:
        super().__init__()
        self.trunk = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.trunk.weight)
        self.heads = nn.ParameterDict({name: torch.zeros(()) for name in names})
        self.unused = nn.Parameter(torch.zeros(3))

    def losses(
        self, gradients: Mapping[str, Any], *, head: float = 1.0, offset: float | Mapping[str, float] = 1.0
    ) -> Losses:
        """By objective: its gradient at the trunk, `head` at its own value, and a value of `offset`."""
        offsets = offset if isinstance(offset, Mapping) else dict.fromkeys(gradients, offset)
        return {
            name: (torch.as_tensor(gradient, dtype=torch.float32) * self.trunk.weight[0]).sum()
            + head * self.heads[name]
            + offsets[name]
            for name, gradient in gradients.items()
        }


def balancer(method: str, names: Any = ("a", "b", "c", "d"), **changes: Any) -> Balancer:
    return Balancer(method, objectives=tuple(names), **{"shared": "trunk", **changes})


def shared_gradient(
    method: str, gradients: Mapping[str, Any], *, step: int = 0
) -> tuple[Tensor, BalanceReport]:
    """What a method makes of gradients at the trunk of a new toy."""
    toy = Toy(len(next(iter(gradients.values()))))
    report = balancer(method).backward(toy.losses(gradients), toy, step=step)
    assert toy.trunk.weight.grad is not None
    return toy.trunk.weight.grad[0].clone(), report


def random_gradients(seed: int, *, spread: float = 0.0, size: int = 6) -> dict[str, Tensor]:
    """Four of them, of lengths that differ by up to 10^(2 * spread)."""
    rng = np.random.default_rng(seed)
    lengths = 10.0 ** rng.uniform(-spread, spread, 4)
    rows = rng.normal(size=(4, size)) * lengths[:, None]
    return {name: torch.tensor(row, dtype=torch.float32) for name, row in zip("abcd", rows, strict=True)}


# ------------------------------------------------------------------ known answers


def test_pcgrad_projects_each_gradient_onto_the_normal_plane_of_what_it_conflicts_with() -> None:
    total, report = shared_gradient("pcgrad", {"a": (1.0, 0.0), "b": (-1.0, 1.0)})

    # a becomes a + b / 2, b becomes b + a.
    torch.testing.assert_close(total, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    assert report.weights == pytest.approx({"a": 2.0, "b": 1.5})
    assert report.gradient_norms == pytest.approx({"a": 1.0, "b": math.sqrt(2.0)})
    assert report.cosines == pytest.approx({"a~b": -math.sqrt(0.5)})


def test_mgda_finds_the_point_of_least_norm_between_two_gradients() -> None:
    total, report = shared_gradient("mgda", {"a": (2.0, 0.0), "b": (-1.0, 1.0)})

    # (b - a) . b / |b - a|^2 = 4 / 10 of a; perpendicular to b - a.
    torch.testing.assert_close(total, torch.tensor([0.2, 0.6]))
    assert report.weights == pytest.approx({"a": 0.4, "b": 0.6})


def test_mgda_takes_the_shortest_gradient_where_none_opposes_it() -> None:
    total, report = shared_gradient("mgda", {"a": (3.0, 1.0), "b": (1.0, 0.0)})

    torch.testing.assert_close(total, torch.tensor([1.0, 0.0]))
    assert report.weights == pytest.approx({"a": 0.0, "b": 1.0})


def test_upgrad_projects_each_gradient_onto_the_dual_cone() -> None:
    total, _ = shared_gradient("upgrad", {"a": (1.0, 0.0), "b": (-1.0, 1.0)})

    # Of two gradients that is their projection onto each other's normal plane, as with PCGrad.
    torch.testing.assert_close(total, torch.tensor([0.5, 1.5]), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_update_of_upgrad_opposes_no_objective(spread: float) -> None:
    opposed = 0
    for seed in range(20):
        gradients = random_gradients(seed, spread=spread)
        total, _ = shared_gradient("upgrad", gradients)
        plain = torch.stack(list(gradients.values())).sum(0)
        for gradient in gradients.values():
            # torchjd regularises the Gramian by 1e-4 of its trace.
            assert torch.cosine_similarity(total, gradient, dim=0) > -2e-3
            opposed += bool(torch.cosine_similarity(plain, gradient, dim=0) < -0.02)
    assert opposed > 5, "the plain sum would not have done"


@pytest.mark.parametrize("seed", range(5))
def test_mgda_never_falls_behind_for_any_objective_by_more_than_its_tolerance(seed: int) -> None:
    gradients = random_gradients(seed)
    total, report = shared_gradient("mgda", gradients)

    # At the point of least norm, g . total >= |total|^2 for all g.
    products = torch.stack([gradient @ total for gradient in gradients.values()])
    assert products.min() > total @ total - 0.05 * max(gradient @ gradient for gradient in gradients.values())
    assert sum(report.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["upgrad", "pcgrad"])
def test_without_conflict_the_sum_of_gradients_is_left_as_it_is(method: str) -> None:
    total, report = shared_gradient(method, {"a": (1.0, 0.5), "b": (0.0, 2.0), "c": (0.01, 0.0)})

    torch.testing.assert_close(total, torch.tensor([1.01, 2.5]))
    assert report.weights == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})


# ------------------------------------------------------------------ who shares what


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_what_one_objective_has_alone_follows_its_own_gradient(method: str) -> None:
    toy = Toy()
    balancer(method).backward(toy.losses({"a": (2.0, 0.0), "b": (-1.0, 1.0)}, head=3.0), toy, step=0)

    assert toy.heads["a"].grad == toy.heads["b"].grad == 3.0
    assert toy.heads["c"].grad is None
    assert toy.unused.grad is None


@pytest.mark.parametrize("path", ["none", "without a gradient"])
@pytest.mark.parametrize("method", METHODS)
def test_who_asks_for_nothing_at_the_shared_parameters_leaves_them_to_the_others(
    method: str, path: str
) -> None:
    gradients = {"a": (2.0, 0.5), "b": (-1.0, 1.0)}
    expected, _ = shared_gradient(method, gradients)
    toy = Toy()
    losses = toy.losses({**gradients, "c": (0.0, 0.0)})
    if path == "none":
        losses["c"] = toy.heads["c"] + 1.0
    report = balancer(method).backward(losses, toy, step=0)

    assert toy.trunk.weight.grad is not None
    torch.testing.assert_close(toy.trunk.weight.grad[0], expected)
    assert toy.heads["c"].grad == 1.0 == report.weights["c"]
    assert report.gradient_norms.get("c", 0.0) == 0.0
    assert not any("c" in pair for pair in report.cosines)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_depends_on_nothing_is_no_obstacle(method: str) -> None:
    toy = Toy()
    losses = {**toy.losses({"a": (2.0, 0.0)}), "b": torch.tensor(1.0)}
    balancer(method).backward(losses, toy, step=0)

    assert toy.trunk.weight.grad is not None
    assert toy.trunk.weight.grad.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_added_to_those_that_are_there(method: str) -> None:
    toy = Toy()
    before = {"a": (2.0, 0.0), "b": (-1.0, 1.0)}
    expected, _ = shared_gradient(method, before)
    toy.trunk.weight.grad = torch.ones(1, 2)
    balancer(method).backward(toy.losses(before), toy, step=0)

    torch.testing.assert_close(toy.trunk.weight.grad[0], expected + 1.0)


def test_parameters_do_not_share_the_memory_of_their_gradients() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    twins = Twins()
    together = (twins.left + twins.right).sum()
    balancer("pcgrad").backward({"a": together + 1.0, "b": 2.0 * together + 1.0}, twins, step=0)
    assert twins.left.grad is not None and twins.right.grad is not None
    twins.left.grad.mul_(2.0)

    assert twins.left.grad.tolist() == [6.0, 6.0]
    assert twins.right.grad.tolist() == [3.0, 3.0]


# ------------------------------------------------------------------ learned weights


def test_uncertainty_weighting_comes_to_rest_at_the_logarithm_of_each_loss() -> None:
    toy, learned = Toy(), balancer("uncertainty", "ab")
    values = {"a": 4.0, "b": 0.25}
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    first = learned.backward(toy.losses({"a": (0.0, 0.0), "b": (0.0, 0.0)}, offset=values), toy, step=0)
    for step in range(300):
        optimizer.zero_grad()
        last = learned.backward(toy.losses({"a": (1.0, 0.0), "b": (1.0, 0.0)}, offset=values), toy, step=step)
        optimizer.step()

    assert first.weights == {"a": 1.0, "b": 1.0}, "it begins as the plain sum"
    torch.testing.assert_close(learned.log_variances.detach(), torch.tensor([4.0, 0.25]).log())
    assert last.weights == pytest.approx({"a": 0.25, "b": 4.0}, rel=1e-4)


def test_uncertainty_weights_stay_bounded_for_a_loss_below_zero_and_come_back() -> None:
    toy, learned = Toy(), balancer("uncertainty", "a")
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)

    def train(value: float) -> float:
        for step in range(60):
            optimizer.zero_grad()
            report = learned.backward(toy.losses({"a": (1.0, 0.0)}, offset=value), toy, step=step)
            optimizer.step()
        return report.weights["a"]

    assert train(0.0) == pytest.approx(math.exp(LARGEST_LOG_VARIANCE), rel=1e-3)
    assert train(1.0) < 2.0


def test_gradnorm_pulls_gradient_norms_together_and_keeps_the_sum_of_weights() -> None:
    gradients = {"a": (10.0, 0.0), "b": (0.0, 1.0), "c": (0.1, 0.1)}
    toy, learned = Toy(), balancer("gradnorm", "abc")
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
    for step in range(500):
        optimizer.zero_grad()
        toy.zero_grad()
        report = learned.backward(toy.losses(gradients), toy, step=step)
        optimizer.step()
        assert sum(report.weights.values()) == pytest.approx(3.0, rel=1e-5)

    weighted = [report.weights[name] * norm for name, norm in report.gradient_norms.items()]
    assert max(weighted) / min(weighted) < 1.3
    assert toy.trunk.weight.grad is not None
    expected = sum(report.weights[name] * torch.tensor(gradients[name]) for name in "abc")
    torch.testing.assert_close(toy.trunk.weight.grad[0], expected)


def test_gradnorm_favours_what_learns_slowly_by_its_exponent() -> None:
    gradients = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    ratios = {}
    for alpha in (0.0, 1.0):
        toy, learned = Toy(), balancer("gradnorm", "ab", alpha=alpha)
        optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
        learned.backward(toy.losses(gradients, offset=2.0), toy, step=0)
        for step in range(300):
            optimizer.zero_grad()
            losses = toy.losses(gradients, offset={"a": 2.0, "b": 0.5})  # b has fallen to a quarter
            report = learned.backward(losses, toy, step=step)
            optimizer.step()
        ratios[alpha] = report.weights["a"] / report.weights["b"]

    assert ratios[0.0] == pytest.approx(1.0, rel=0.05)
    assert ratios[1.0] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_gradnorm_waits_with_rates_for_a_loss_that_is_positive(first: float) -> None:
    gradients = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    toy, learned = Toy(), balancer("gradnorm", "ab")
    for value in (first, 3.0, -2.0):
        learned.backward(toy.losses(gradients, offset={"a": 2.0, "b": value}), toy, step=0)

    assert learned.first_losses.tolist() == [2.0, 3.0], "the first that was positive"
    assert learned.log_weights.grad is not None
    assert learned.log_weights.grad.isfinite().all()


# ------------------------------------------------------------------ states, scales, errors


def learn(method: str, steps: range, toy: Toy, learned: Balancer, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        optimizer.zero_grad()
        losses = toy.losses(random_gradients(step, size=2), offset=3.0)
        losses = {name: loss**2 for name, loss in losses.items() if name != "d" or step % 2}
        learned.backward(losses, toy, step=step)
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_goes_on_as_it_would_have(method: str) -> None:
    def fresh() -> tuple[Toy, Balancer, torch.optim.Optimizer]:
        toy, learned = Toy(), balancer(method)
        return toy, learned, torch.optim.Adam([*toy.parameters(), *learned.parameters()], lr=0.05)

    through = fresh()
    learn(method, range(8), *through)
    before, after = fresh(), fresh()
    learn(method, range(5), *before)
    torch.manual_seed(999)
    for old, new in zip(before, after, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    learn(method, range(5, 8), *after)

    for expected, got in zip(through[:2], after[:2], strict=True):
        for name, value in expected.state_dict().items():
            assert torch.equal(value, got.state_dict()[name]), name


def test_the_order_of_pcgrad_is_that_of_its_seed_and_step_and_of_nothing_else() -> None:
    conflicting, toy = random_gradients(3, size=2), Toy()

    def totals(seed: int) -> Tensor:
        """At the trunk, of six steps (6, 2)."""
        rows = []
        for step in range(6):
            toy.zero_grad()
            balancer("pcgrad", seed=seed).backward(toy.losses(conflicting), toy, step=step)
            assert toy.trunk.weight.grad is not None
            rows.append(toy.trunk.weight.grad[0].clone())
        return torch.stack(rows)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = totals(0)
    assert torch.equal(torch.get_rng_state(), state), "the process's own generator is left alone"
    torch.manual_seed(2)
    assert torch.equal(totals(0), first)
    assert not torch.equal(totals(1), first)
    assert len(first.unique(dim=0)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_half_precision_is_in_all_gradients_and_in_nothing_else(method: str) -> None:
    gradients = random_gradients(4)
    results = []
    for scale in (1.0, 1024.0):
        toy, learned = Toy(6), balancer(method)
        learned.backward(toy.losses(gradients, offset=2.0), toy, step=0)
        for parameter in [*toy.parameters(), *learned.parameters()]:
            parameter.grad = None
        report = learned.backward(toy.losses(gradients, offset=1.0), toy, step=1, scale=scale)
        grads = [p.grad / scale for p in [*toy.parameters(), *learned.parameters()] if p.grad is not None]
        results.append((report, grads))

    (report, grads), (scaled_report, scaled_grads) = results
    assert scaled_report.weights == pytest.approx(report.weights, rel=1e-5)
    assert scaled_report.gradient_norms == pytest.approx(report.gradient_norms, rel=1e-5)
    torch.testing.assert_close(scaled_grads, grads)


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_overflows_is_not_hidden_from_the_scaler(method: str, gradient: float) -> None:
    toy, learned = Toy(), balancer(method)
    losses = toy.losses({"a": (2.0, 0.0), "b": (-1.0, 1.0)})
    root = toy.trunk.weight[0, 0].sqrt()  # finite at 0, its gradient is not
    losses["b"] = losses["b"] + (root if gradient == math.inf else root * 0.0)
    report = learned.backward(losses, toy, step=0)

    assert toy.trunk.weight.grad is not None
    assert not toy.trunk.weight.grad.isfinite().all()
    assert all(math.isfinite(number) for number in [*report.weights.values(), *report.cosines.values()])
    assert all(p.grad is None or p.grad.isfinite().all() for p in learned.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_is_named_and_nothing_is_written(method: str, value: float) -> None:
    toy, learned = Toy(), balancer(method)
    losses = toy.losses({"a": (2.0, 0.0), "b": (-1.0, 1.0)}, offset={"a": 1.0, "b": value})
    with pytest.raises(TrainingError, match=rf"not finite: b is {value};"):
        learned.backward(losses, toy, step=0)

    assert all(p.grad is None for p in [*toy.parameters(), *learned.parameters()])


def test_what_cannot_be_balanced_is_refused() -> None:
    toy = Toy()
    losses = toy.losses({"a": (1.0, 0.0)})
    with pytest.raises(ConfigError, match="unknown balancing method 'best'; expected one of fixed, uncert"):
        balancer("best")
    with pytest.raises(InputError, match="unknown objectives e, f; expected some of a, b"):
        balancer("fixed").backward({"a": losses["a"], "f": losses["a"], "e": losses["a"]}, toy, step=0)
    with pytest.raises(InputError, match="no objective to balance"):
        balancer("fixed").backward({}, toy, step=0)
    with pytest.raises(InputError, match="no parameter influences a; compute them with gradients"):
        balancer("upgrad").backward({"a": losses["a"].detach()}, toy, step=0)
    with pytest.raises(ConfigError, match=r"no shared module 'stem' in Toy, which has trunk, heads"):
        balancer("gradnorm", shared="stem").backward(losses, toy, step=0)
    toy.trunk.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        balancer("gradnorm").backward(losses, toy, step=0)
    with pytest.raises(InputError, match="no trainable parameter"):
        measure_conflicts(losses, toy.trunk.parameters())


def test_the_configuration_offers_these_methods() -> None:
    assert get_args(Balancing.model_fields["method"].annotation) == METHODS


# ------------------------------------------------------------------ conflicts


def test_conflicts_are_measured_without_leaving_traces() -> None:
    toy = Toy()
    losses = toy.losses({"a": (3.0, 4.0), "b": (-8.0, 6.0), "c": (-3.0, -4.0), "d": (0.0, 0.0)})
    conflicts = measure_conflicts(losses, toy.trunk.parameters())

    assert conflicts.gradient_norms == pytest.approx({"a": 5.0, "b": 10.0, "c": 5.0, "d": 0.0})
    assert conflicts.cosines == pytest.approx({"a~b": 0.0, "a~c": -1.0, "b~c": 0.0}, abs=1e-6)
    assert all(parameter.grad is None for parameter in toy.parameters())
    sum(losses.values()).backward()  # type: ignore[union-attr]  # the graph is still there


# ------------------------------------------------------------------ the joint network

WEIGHTS = LossWeights().model_dump()
BATCH = [clip_arrays(synthetic_clip(seed=seed, num_frames=2), SMALL) for seed in range(2)]


def network(interfaces: str) -> JointNetwork:
    torch.manual_seed(0)
    return JointNetwork(SMALL.model_copy(update={"interfaces": interfaces})).train()


def objective_losses(model: JointNetwork, *, recompute: bool = False) -> Losses:
    batch = {name: torch.stack([torch.from_numpy(clip[name]) for clip in BATCH]) for name in BATCH[0]}
    sums: Losses = {}
    for name, value in rollout(model, batch, boost=1.0, recompute=recompute).losses.items():
        objective = LOSSES[name].objective
        sums[objective] = sums.get(objective, value.new_zeros(())) + WEIGHTS[name] * value
    return sums


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("interfaces", ["differentiable", "detached"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_joint_network_the_same_way_twice(method: str, interfaces: str) -> None:
    runs = []
    for _ in range(2):
        model = network(interfaces)
        learned = Balancer(method, objectives=OBJECTIVES)
        optimizer = torch.optim.AdamW([*model.parameters(), *learned.parameters()], lr=1e-3)
        for step in range(3):
            optimizer.zero_grad()
            report = learned.backward(objective_losses(model), model, step=step)
            optimizer.step()
        assert all(math.isfinite(weight) and weight >= 0.0 for weight in report.weights.values())
        assert tuple(report.weights) == OBJECTIVES
        runs.append({**model.state_dict(), **learned.state_dict()})

    start = network(interfaces).state_dict()
    for name, value in runs[0].items():
        assert value.isfinite().all(), name
        assert torch.equal(value, runs[1][name]), name
    for part in ("encoder.fuse", "detection", "associator", "motion", "planner"):
        moved = [not torch.equal(start[name], runs[0][name]) for name in start if name.startswith(part)]
        assert any(moved), part


def test_fixed_is_the_plain_sum_bit_for_bit() -> None:
    plain, balanced = network("differentiable"), network("differentiable")
    sum(objective_losses(plain).values()).backward()  # type: ignore[union-attr]
    Balancer("fixed", objectives=OBJECTIVES).backward(objective_losses(balanced), balanced, step=0)

    expected, got = gradients_of(plain), gradients_of(balanced)
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_aggregation_adds_up_to_the_weighted_sum_of_the_objectives_own_gradients(method: str) -> None:
    model = network("detached")
    report = Balancer(method, objectives=OBJECTIVES).backward(objective_losses(model), model, step=0)
    got = gradients_of(model)
    own: dict[str, dict[str, Tensor]] = {}
    for objective in OBJECTIVES:
        alone = network("detached")
        objective_losses(alone)[objective].backward()
        own[objective] = gradients_of(alone)

    for name, gradient in got.items():
        reached = [objective for objective in OBJECTIVES if name in own[objective]]
        weights = report.weights if len(reached) > 1 else dict.fromkeys(reached, 1.0)
        expected = sum(weights[objective] * own[objective][name] for objective in reached)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5, msg=name)
    assert {name for name in got if name.startswith("planner")} <= set(own["planning"])
    assert not any(name.startswith("encoder") for name in own["planning"])


@pytest.mark.parametrize("method", ["gradnorm", "upgrad"])
def test_several_backward_passes_go_through_a_recomputed_encoder(method: str) -> None:
    results = []
    for recompute in (False, True):
        model = network("differentiable")
        learned = Balancer(method, objectives=OBJECTIVES)
        learned.backward(objective_losses(model, recompute=recompute), model, step=0)
        results.append(gradients_of(model))

    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_balancing_leaves_the_buffers_of_the_network_alone() -> None:
    model = network("differentiable")
    losses = objective_losses(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    measure_conflicts(losses, model.encoder.parameters())
    Balancer("upgrad", objectives=OBJECTIVES).backward(losses, model, step=0)

    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
