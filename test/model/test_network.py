"""The joint network: shapes, gradients between tasks, sensors that die, overfitting one clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import SMALL, synthetic_clip

from e2e_perception.core.network_config import SIZES, NetworkConfig
from e2e_perception.core.trajectories import base_from_route_coordinates
from e2e_perception.data.dataset import clip_arrays
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.deploy.rollouts import random_inputs
from e2e_perception.model.network import JointNetwork
from e2e_perception.model.planning import (
    Vocabulary,
    base_from_route,
    collision_probability,
    route_coordinates,
)
from e2e_perception.training.config import LossWeights
from e2e_perception.training.rollout import rollout


def frame(network: NetworkConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    inputs = {k: torch.from_numpy(v) for k, v in random_inputs(network, rng).items()}
    memory = JointNetwork(network).initial_state(1)["bev_memory"]
    return {**inputs, "bev_memory": memory + 0.1}


def clip_batch(seed: int = 0, **kwargs: int) -> dict[str, torch.Tensor]:
    arrays = clip_arrays(synthetic_clip(seed=seed, **kwargs), SMALL)
    return {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in arrays.items()}


def test_outputs_have_the_shapes_of_the_contract() -> None:
    for network in (SMALL, NetworkConfig()):
        model = JointNetwork(network).eval()
        with torch.no_grad():
            outputs = model(frame(network))
        for spec in tensor_contract(network).outputs:
            assert tuple(outputs[spec.name].shape) == spec.shape, spec.name
            assert torch.isfinite(outputs[spec.name]).all(), spec.name


def test_sizes_grow_and_tiny_has_at_most_two_million_parameters() -> None:
    counts = {name: sum(p.numel() for p in JointNetwork(size).parameters()) for name, size in SIZES.items()}
    assert list(counts) == ["nano", "tiny", "small", "base"]
    assert list(counts.values()) == sorted(counts.values())
    assert counts["tiny"] <= 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("size", ["nano", "small", "base"])
def test_every_size_runs_and_has_a_gradient_everywhere(size: str) -> None:
    network = SIZES[size]
    model = JointNetwork(network)
    outputs = model(frame(network))
    for spec in tensor_contract(network).outputs:
        assert tuple(outputs[spec.name].shape) == spec.shape, spec.name
    sum(value.float().abs().mean() for value in outputs.values()).backward()
    # All sensors are there, so what stands in for missing ones is not used.
    without = [n for n, p in model.named_parameters() if p.grad is None and "encoder.no_" not in n]
    assert without == []


def test_the_bev_memory_stays_bounded_however_long_the_robot_stands() -> None:
    torch.manual_seed(0)
    memory = JointNetwork(SMALL).eval().memory
    y, x = SMALL.bev_grid.shape
    now, state = 3.0 * torch.randn(1, SMALL.bev_channels, y, x), torch.zeros(1, SMALL.bev_channels, y, x)
    theta, valid = torch.eye(2, 3)[None], torch.ones(1, 1)
    with torch.no_grad():
        for _ in range(500):
            _, state = memory(now, state, theta, valid)
    assert state.abs().max() <= now.abs().max() + 1.0


def test_a_blind_network_sees_nothing_of_what_its_sensors_say() -> None:
    model = JointNetwork(SMALL.model_copy(update={"blind": True})).eval()
    first, second = frame(seed=0), frame(seed=1)
    for name in ("ego_state", "route", "track_tokens", "track_boxes", "bev_theta"):
        second[name] = first[name]
    with torch.no_grad():
        a, b = model(first), model(second)
    for name in tensor_contract(SMALL).output_names:
        assert torch.equal(a[name], b[name]), name


def test_rounding_does_not_decide_what_a_blind_network_looks_at_or_plans() -> None:
    model = JointNetwork(SMALL.model_copy(update={"blind": True})).eval()
    inputs, weight = frame(), model.detection.heat.weight
    with torch.no_grad():
        weight.zero_()  # as training leaves it: everywhere the same
        before = model(inputs)
        weight += 1e-4 * torch.randn_like(weight)
        after = model(inputs)
    torch.testing.assert_close(after["query_centres"], before["query_centres"], atol=0, rtol=0)
    for name in ("object_futures", "plan_sd", "plan_costs"):
        torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-3)


def test_futures_start_from_going_on_braking_to_a_stop_and_speeding_up() -> None:
    head = JointNetwork(SMALL).motion
    with torch.no_grad():
        velocities = torch.tensor([[[10.0, 0.0], [0.0, -4.0], [0.0, 0.0]]])
        way = head._anchors(velocities, torch.zeros(1, 3, 1))[0]  # (O, F, S, 2)
        braking = head._anchors(velocities, torch.full((1, 3, 1), -5.0))[0]
        hesitant = head._anchors(velocities, torch.full((1, 3, 1), -0.5))[0]
    times = torch.from_numpy(SMALL.times_T).float()
    torch.testing.assert_close(way[0, 0, :, 0], 10.0 * times, atol=0.05, rtol=0.01)
    # From 4 m/s at 2.5 m/s^2: 3.2 m, and no way back.
    torch.testing.assert_close(way[1, 1, -1], torch.tensor([0.0, -3.2]), atol=0.02, rtol=0.0)
    assert (way[1, 1, :, 1].diff() <= 1e-5).all()
    assert way[0, 2, -1, 0] > way[0, 0, -1, 0] + 5.0
    assert way[2].abs().max() < 1e-5  # who stands has no direction to go in
    # Who brakes goes on: 10 m/s end after 11.6 m at 5^3 / (5^2 + 4) m/s^2. What may be noise hardly counts.
    assert float(braking[0, 0, -1, 0]) == pytest.approx(100.0 / 2.0 / (125.0 / 29.0), abs=0.05)
    assert float((hesitant - way)[0, 0].abs().max()) < 0.3


@pytest.mark.parametrize(
    ("valid", "data"),
    [("lidar_valid", "lidar_raster"), ("radar_valid", "radar_raster"), ("memory_valid", "bev_memory"),
     ("track_valid", "track_boxes"), ("track_valid", "track_tokens")],
)  # fmt: skip
def test_a_dead_inputs_values_change_nothing_not_even_nan(valid: str, data: str) -> None:
    model = JointNetwork(SMALL).eval()
    inputs = frame()
    inputs[valid] = torch.zeros_like(inputs[valid])
    with torch.no_grad():
        clean = model(inputs)
        poisoned = model({**inputs, data: torch.full_like(inputs[data], torch.nan)})
    for name in tensor_contract(SMALL).output_names:
        assert torch.equal(clean[name], poisoned[name]), name


def test_a_dead_cameras_projection_and_picture_change_nothing() -> None:
    model = JointNetwork(SMALL).eval()
    inputs = frame()
    inputs["camera_valid"] = torch.tensor([[1.0, 0.0, 1.0]])
    other = {k: v.clone() for k, v in inputs.items()}
    other["images"][0, 1] = 255
    other["image_from_base"][0, 1] = torch.nan
    with torch.no_grad():
        a, b = model(inputs), model(other)
    assert torch.equal(a["plan_costs"], b["plan_costs"])


def test_affinity_is_a_distribution_both_ways_and_ignores_padding() -> None:
    model = JointNetwork(SMALL).eval()
    inputs = frame()
    with torch.no_grad():
        affinity = model(inputs)["affinity"][0]
    assert (affinity <= 1e-6).all()
    num_real = int(inputs["track_valid"].sum())
    assert (affinity[num_real:-1, :-1] < -14.0).all()  # mean of two log-probabilities, one of them masked


def gradient_norm(interfaces: str, source: str, target: str) -> float:
    torch.manual_seed(0)
    model = JointNetwork(SMALL.model_copy(update={"interfaces": interfaces}))
    losses = rollout(model, clip_batch(num_frames=2), boost=1.0).losses
    parameters = list(getattr(model, target).parameters())
    gradients = torch.autograd.grad(losses[source], parameters, allow_unused=True)
    return float(sum(g.square().sum() for g in gradients if g is not None))


@pytest.mark.parametrize("source", ["plan", "plan_risk", "motion"])
@pytest.mark.parametrize("target", ["encoder", "detection", "associator"])
def test_planning_and_motion_losses_reach_perception_only_through_differentiable_interfaces(
    source: str, target: str
) -> None:
    assert gradient_norm("differentiable", source, target) > 0.0
    assert gradient_norm("detached", source, target) == 0.0


def test_an_interface_lets_the_stated_share_of_the_gradient_through_each_time_it_is_crossed() -> None:
    """From the plan's offset to detection there is one interface, or two by way of motion: a s + b s^2."""

    def gradient(share: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = JointNetwork(SMALL.model_copy(update={"interface_gradient": share}))
        loss = rollout(model, clip_batch(num_frames=1), boost=1.0).losses["plan"]
        return torch.autograd.grad(loss, model.detection.heat.weight)[0].double()

    whole, half, quarter = gradient(1.0), gradient(0.5), gradient(0.25)
    once = 4.0 * half - whole
    twice = whole - once
    assert float(whole.norm()) > 0.0
    torch.testing.assert_close(
        quarter, 0.25 * once + 0.0625 * twice, rtol=1e-3, atol=1e-4 * float(whole.abs().max())
    )


@pytest.mark.parametrize("interfaces", ["differentiable", "detached"])
def test_detection_and_tracking_are_one_module_in_either_case(interfaces: str) -> None:
    assert gradient_norm(interfaces, "affinity", "detection") > 0.0
    assert gradient_norm(interfaces, "box", "associator") > 0.0


@pytest.mark.parametrize("change", [{"interfaces": "detached"}, {"interface_gradient": 0.3}])
def test_interfaces_change_gradients_and_nothing_else(change: dict[str, object]) -> None:
    torch.manual_seed(0)
    joint = JointNetwork(SMALL).train()
    modular = JointNetwork(SMALL.model_copy(update=change)).train()
    modular.load_state_dict(joint.state_dict())
    inputs = frame()
    with torch.no_grad():
        a, b = joint(inputs), modular(inputs)
    for name in tensor_contract(SMALL).output_names:
        assert torch.equal(a[name], b[name]), name


def test_a_heading_that_points_the_wrong_way_is_pulled_round() -> None:
    """The gradient of a unit vector that is turned by pi has no component that would turn or shorten it."""
    model, batch = JointNetwork(SMALL), clip_batch(num_frames=1)
    with torch.no_grad():
        model.boxes.mlp[-1].weight[4:6] = 0.0
        model.boxes.mlp[-1].bias[4:6] = torch.tensor([0.0, -1.6])  # all look backwards
    assert bool((batch["boxes"][..., 7] > 0.9)[batch["present"]].all()), "everybody drives ahead"
    loss = rollout(model, batch, boost=1.0).losses["box"]
    (gradient,) = torch.autograd.grad(loss, model.boxes.mlp[-1].bias)
    assert float(gradient[5]) < -0.05  # of 1/8, one of the eight columns of a box


def test_half_precision_leaves_geometry_its_digits() -> None:
    """A pixel in bfloat16 is half a pixel off, and 64 m along the route half a metre."""
    model = JointNetwork(SMALL).eval()
    projection = torch.tensor([[[[0.0, -200.0, 0.0, 90.0], [0.0, 0.0, -200.0, 60.0], [1.0, 0.0, 0.0, 0.3]]]])
    exact = model.encoder.lift._project(projection)
    model.encoder_dtype = torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encoder.lift._project(projection), exact)
    assert {tensor.dtype for tensor in model(frame()).values()} == {torch.float32}


def test_gradients_go_back_through_time() -> None:
    torch.manual_seed(0)
    model = JointNetwork(SMALL)
    batch = clip_batch(num_frames=3)
    batch["lidar_raster"].requires_grad_()
    frames = rollout(model, batch, boost=1.0, with_losses=False).frames
    (gradient,) = torch.autograd.grad(frames[-1]["plan_costs"].sum(), batch["lidar_raster"])
    assert gradient[:, 0].abs().sum() > 0.0


def test_vocabulary_starts_at_the_robot_never_reverses_and_can_stand_still() -> None:
    vocabulary = Vocabulary(SMALL)
    for speed in (0.0, 0.3, 5.0, 30.0):
        sd = vocabulary(torch.tensor([[speed, 0.0, 0.0, 15.0, 0.7, 0.05, 1.0]]))[0]
        assert (sd[..., 0].diff(dim=1) >= -1e-4).all()
        assert sd[..., 0].amin() >= 0.0
        if speed == 0.0:
            standing = sd[..., 0].amax(1) == 0.0
            assert standing.any()
            torch.testing.assert_close(sd[standing][..., 1], torch.full_like(sd[standing][..., 1], 0.7))


def test_route_coordinates_in_the_graph_agree_with_the_host() -> None:
    rng = np.random.default_rng(0)
    angles = np.linspace(0.0, 0.8, 41)
    radius = 120.0 / 0.8
    route = np.stack(
        [radius * np.sin(angles), radius * (1 - np.cos(angles)), np.cos(angles), np.sin(angles)], 1
    ).astype(np.float32)
    sd = np.stack([rng.uniform(-5, 140, (4, 8)), rng.uniform(-4, 4, (4, 8))], -1).astype(np.float32)
    in_graph, _ = base_from_route(torch.from_numpy(sd)[None], torch.from_numpy(route)[None])
    np.testing.assert_allclose(in_graph[0].numpy(), base_from_route_coordinates(sd, route), atol=2e-4)


def test_soft_route_coordinates_invert_the_route_within_five_centimetres() -> None:
    angles = np.linspace(0.0, 0.6, 41)
    radius = 120.0 / 0.6
    route = torch.from_numpy(
        np.stack([radius * np.sin(angles), radius * (1 - np.cos(angles)), np.cos(angles), np.sin(angles)], 1)
    ).float()[None]
    sd = torch.tensor([[[10.0, 0.5], [50.0, -2.0], [100.0, 3.0]]])
    points, _ = base_from_route(sd[:, None], route)
    torch.testing.assert_close(route_coordinates(points[:, 0], route), sd, atol=0.05, rtol=0.0)


def test_collision_is_certain_on_overlap_and_nil_in_the_next_lane() -> None:
    box = torch.tensor([[[20.0, 0.0, 0.8, np.log(4.4), np.log(1.8), 0.5, 0.0, 1.0, 0.0, 0.0]]])
    still = torch.tensor([20.0, 0.0]).expand(1, 1, 1, 2, 2)
    sure = torch.full((1, 1, 1, 2, 2), 0.01)
    tangents = torch.tensor([1.0, 0.0]).expand(1, 2, 2, 2)
    points = torch.tensor([[[[18.0, 0.0], [20.0, 0.0]], [[18.0, 3.5], [20.0, 3.5]]]])
    overlap = collision_probability(points, tangents, box, still, sure)
    torch.testing.assert_close(overlap[0, 0], torch.ones_like(overlap[0, 0]))
    assert overlap[0, 1].max() < 1e-3


def test_one_clip_can_be_overfitted() -> None:
    torch.manual_seed(0)
    model = JointNetwork(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    weights = LossWeights().model_dump()
    batch = clip_batch()
    first = last = {}
    for step in range(120):
        losses = rollout(model, batch, boost=max(0.0, 1.0 - step / 40)).losses
        optimizer.zero_grad()
        torch.stack([weights[name] * value for name, value in losses.items()]).sum().backward()
        for module in model.children():
            torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        last = {name: float(value.detach()) for name, value in losses.items()}
        first = first or last
    for name, at_most in (
        ("heat", 0.05),
        ("box", 0.1),
        ("affinity", 0.1),
        ("motion", 0.3),
        ("plan_offset", 0.6),
    ):
        assert last[name] < at_most < first[name], (name, first[name], last[name])
