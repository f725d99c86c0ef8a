"""Adversarial inputs harm, within bounds, and nothing else; two views that agree cost nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from synthetic import SMALL, synthetic_clip
from torch import Tensor

from e2e_perception.core.network_config import LIDAR_CHANNELS, RADAR_CHANNELS
from e2e_perception.data.dataset import clip_arrays
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.config import LossWeights
from e2e_perception.training.perturbation import (
    CONFIDENT,
    HARM,
    adversarial,
    consistency_losses,
    cross_modal_consistency,
    fgsm,
)
from e2e_perception.training.rollout import rollout

Batch = dict[str, Tensor]
BUDGET = 0.05
CHANGED = ("images", "lidar_raster", "radar_raster")
WEIGHTS = LossWeights().model_dump()


def network() -> JointNetwork:
    torch.manual_seed(0)
    return JointNetwork(SMALL).train()


def batch(num_clips: int = 2) -> Batch:
    clips = [clip_arrays(synthetic_clip(seed=seed, num_frames=3), SMALL) for seed in range(num_clips)]
    return {name: torch.stack([torch.from_numpy(clip[name]) for clip in clips]) for name in clips[0]}


def harms(model: JointNetwork, of: Batch, names: tuple[str, ...] = HARM) -> float:
    """Weighted losses, as the robot runs the network."""
    with torch.no_grad():
        losses = rollout(copy.deepcopy(model).eval(), of, boost=0.0).losses
    return float(sum(WEIGHTS[name] * losses[name] for name in names))


@pytest.fixture(scope="module")
def trained() -> JointNetwork:
    """One that has learned the clips, and whose running means have settled: there is something to harm."""
    model, clips = network(), batch()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        losses = rollout(model, clips, boost=1.0).losses
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


# ------------------------------------------------------------------ adversarial


def test_the_perturbation_harms_more_than_chance_and_more_with_more_budget(trained: JointNetwork) -> None:
    clean = batch()
    generator = torch.Generator().manual_seed(1)
    random = {name: torch.randn(clean[name].shape, generator=generator) for name in CHANGED}
    by_chance = fgsm(clean, lambda b: sum((b[n] * random[n]).sum() for n in CHANGED), budget=BUDGET)
    found = [harms(trained, adversarial(trained, clean, budget=share * BUDGET)) for share in (0.0, 0.3, 1.0)]

    assert found[0] == harms(trained, clean)
    assert found[0] < found[1] < found[2]
    assert found[2] - found[0] > 3.0 * abs(harms(trained, by_chance) - found[0])


@pytest.mark.parametrize("budget", [0.0, 0.003, 0.01, 0.05])
def test_the_perturbation_stays_within_the_budget_and_leaves_all_else_alone(budget: float) -> None:
    model, clean = network(), batch()
    before = {name: value.clone() for name, value in clean.items()}
    found = adversarial(model, clean, budget=budget)

    for name, value in clean.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        if name not in CHANGED:
            assert found[name] is value, name
    levels = (found["images"].int() - clean["images"].int()).abs().max().item()
    assert levels == int(budget * 255)
    for name in CHANGED[1:]:
        most = (found[name] - clean[name]).abs().max().item()
        assert most == pytest.approx(budget, abs=1e-6)


def test_a_perturbed_raster_is_one_that_a_sensor_could_give() -> None:
    clean = batch()
    found = adversarial(network(), clean, budget=0.5)

    for name, channels in (("lidar_raster", LIDAR_CHANNELS), ("radar_raster", RADAR_CHANNELS)):
        count = channels.index("log_count")
        empty = clean[name][:, :, count] == 0.0
        assert not found[name].movedim(2, -1)[empty].any()
        assert found[name][:, :, count].min() >= 0.0
    assert found["lidar_raster"].min() >= 0.0
    assert found["lidar_raster"].max() <= 1.0
    assert found["radar_raster"][:, :, RADAR_CHANNELS.index("doppler_x")].max() > 1.0


def test_sensors_that_are_not_valid_are_left_alone() -> None:
    clean = batch()
    clean["lidar_valid"][0] = 0.0
    clean["camera_valid"][:, :, 1] = 0.0
    found = adversarial(network(), clean, budget=BUDGET)

    assert torch.equal(found["lidar_raster"][0], clean["lidar_raster"][0])
    assert not torch.equal(found["lidar_raster"][1], clean["lidar_raster"][1])
    assert torch.equal(found["images"][:, :, 1], clean["images"][:, :, 1])
    assert not torch.equal(found["images"][:, :, 0], clean["images"][:, :, 0])


def test_it_is_the_same_again_and_does_not_touch_the_network() -> None:
    model, clean = network(), batch()
    before = copy.deepcopy(model.state_dict())
    first, again = (adversarial(model, clean, budget=BUDGET) for _ in range(2))

    assert all(torch.equal(first[name], again[name]) for name in CHANGED)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    rollout(model, clean, boost=0.0)  # statistics are remembered again
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weights_say_what_harm_is(trained: JointNetwork) -> None:
    clean = batch(8)  # on average over several, for one step goes where a loss rises at its beginning only
    only_maps = {**dict.fromkeys(WEIGHTS, 0.0), "maps": 1.0}
    found = adversarial(trained, clean, budget=BUDGET, weights=only_maps)
    by_all = adversarial(trained, clean, budget=BUDGET)

    assert harms(trained, found, ("maps",)) > harms(trained, by_all, ("maps",))


# ------------------------------------------------------------------ consistency


def view(seed: int, *, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randn(2, 4, 8, 8, generator=generator) + bias
    return heat.requires_grad_(), torch.randn(2, 16, 8, 8, generator=generator).requires_grad_()


EVERYWHERE = torch.ones(2, 8, 8, dtype=torch.bool)


def test_equal_views_agree_and_others_do_not() -> None:
    a, b = view(0), view(1)
    same = consistency_losses(*a, *a, EVERYWHERE)
    other = consistency_losses(*a, *b, EVERYWHERE)

    assert all(abs(value.item()) < 1e-6 for value in same.values())
    assert other["heat"].item() > 0.1
    assert other["features"].item() == pytest.approx(1.0, abs=0.1)  # random directions
    swapped = consistency_losses(*b, *a, EVERYWHERE)
    assert all(swapped[name].item() == pytest.approx(other[name].item()) for name in other)


def test_the_divergence_is_that_of_its_definition() -> None:
    a, b = torch.tensor(0.8), torch.tensor(-0.4)
    p, q = a.sigmoid(), b.sigmoid()
    expected = (p - q) * (a - b) / 2.0  # half of both directions, in closed form
    logits = [value.expand(1, 1, 1, 1) for value in (a, b)]
    features = torch.ones(1, 2, 1, 1)
    found = consistency_losses(logits[0], features, logits[1], features, EVERYWHERE[:1, :1, :1])

    assert found["heat"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_view_is_drawn_to_the_other_as_it_is() -> None:
    (heat_a, features_a), (heat_b, features_b) = view(0), view(1)
    losses = consistency_losses(heat_a, features_a, heat_b, features_b, EVERYWHERE)
    pull_a, pull_b = torch.autograd.grad(losses["heat"], [heat_a, heat_b])
    compared = (torch.stack([heat_a, heat_b]).sigmoid().amax((0, 2)) > CONFIDENT).sum()

    # With the other held fixed, the gradient of the cross entropy by a logit is p - q.
    difference = (heat_a.sigmoid() - heat_b.sigmoid()).detach() * 0.5 / compared
    torch.testing.assert_close(pull_a, difference)
    torch.testing.assert_close(pull_b, -difference)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(losses["features"], [features_a, features_b]))


def test_only_cells_that_both_could_see_and_one_is_sure_of_are_compared() -> None:
    a, b = view(0, bias=-9.0), view(1, bias=-9.0)
    assert all(value.item() == 0.0 for value in consistency_losses(*a, *b, EVERYWHERE).values())
    with torch.no_grad():
        a[0][1, 2, 3, 4] = 2.0
    losses = consistency_losses(*a, *b, EVERYWHERE)
    gradient = torch.autograd.grad(losses["features"], a[1])[0].abs().sum(1)
    assert torch.nonzero(gradient).tolist() == [[1, 3, 4]]

    hidden = EVERYWHERE.clone()
    hidden[1, 3, 4] = False
    assert all(value.item() == 0.0 for value in consistency_losses(*a, *b, hidden).values())


def confident_network() -> JointNetwork:
    """Its heatmap starts from "perhaps", so that there is something to compare."""
    model = network()
    torch.nn.init.zeros_(model.detection.heat.bias)
    return model


def test_training_on_it_makes_camera_and_lidar_agree() -> None:
    model, clean = confident_network(), batch()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    values = []
    for _ in range(8):
        value = cross_modal_consistency(model, clean)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())

    assert values[0] > 0.05
    assert values[-1] < 0.6 * values[0]
    for part in (model.encoder.backbone, model.encoder.lidar):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_radar_does_not_matter_and_statistics_are_not_remembered() -> None:
    model, clean = confident_network(), batch()
    before = copy.deepcopy(model.state_dict())
    value = cross_modal_consistency(model, clean)
    other = {**clean, "radar_raster": torch.rand_like(clean["radar_raster"])}

    assert cross_modal_consistency(model, other).item() == value.item()
    assert all(torch.equal(kept, before[name]) for name, kept in model.state_dict().items())


@pytest.mark.parametrize("dead", ["lidar_valid", "camera_valid"])
def test_with_one_sensor_alone_there_is_nothing_to_compare(dead: str) -> None:
    alone: dict[str, Any] = {**batch(), dead: torch.zeros_like(batch()[dead])}
    assert cross_modal_consistency(confident_network(), alone).item() == 0.0


def test_what_no_camera_has_in_its_picture_is_not_compared() -> None:
    behind = batch()
    behind["image_from_base"][..., :, 0] *= -1.0  # all cameras look back
    ahead = cross_modal_consistency(confident_network(), batch())
    back = cross_modal_consistency(confident_network(), behind)
    behind["image_from_base"][:] = 0.0
    behind["image_from_base"][..., 2, 3] = -1.0  # and now nowhere
    nowhere = cross_modal_consistency(confident_network(), behind)

    assert nowhere.item() == 0.0
    assert ahead.item() != back.item() > 0.0
