"""What a track's memory does to its velocity: a filter that settles, and cannot run away; and the radar."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from synthetic import SMALL

from e2e_perception.core.boxes import footprint_corners_N42
from e2e_perception.model.encoders import doppler_sums
from e2e_perception.model.network import (
    MAX_RATE,
    MAX_SIGHTINGS,
    RATE_GAIN,
    RATE_SCALE,
    Associator,
    BoxHead,
    RadarVelocity,
)
from e2e_perception.runtime.rasters import radar_raster

PERIOD = SMALL.frame_period_s
SILENT = torch.zeros(1, 3, *SMALL.bev_grid.shape)  # no radar return anywhere
UNKNOWN_RATE = torch.zeros(1, 1, 1)


def follow(
    head: BoxHead, truth: torch.Tensor, start: torch.Tensor, frames: int, noise: float = 0.0
) -> list[torch.Tensor]:
    """Velocities (1, 1, 2) of one object that moves at `truth`, remembered at `start` before."""
    token = torch.zeros(1, 1, SMALL.token_channels)
    true_point, velocity, found = torch.zeros(1, 1, 2), start, []
    point = true_point + noise * torch.randn(1, 1, 2)
    for number in range(frames):
        expected = point + velocity * PERIOD
        true_point = true_point + truth * PERIOD
        point = true_point + noise * torch.randn(1, 1, 2)
        sightings = torch.full((1, 1, 1), min(number + 2.0, 1.0 + MAX_SIGHTINGS))
        boxes, *_ = head(
            token, point, SILENT, torch.ones(1, 1, 1), velocity, point - expected, sightings, UNKNOWN_RATE
        )
        velocity = boxes[..., 8:10]
        found.append(velocity)
    return found


def untrained() -> BoxHead:
    torch.manual_seed(0)
    head = BoxHead(SMALL)
    head.mlp[-1].weight.zero_()
    head.mlp[-1].bias.zero_()
    return head


@torch.no_grad()
def test_an_untrained_filter_already_tends_to_the_true_velocity() -> None:
    truth = torch.tensor([[[8.0, -2.0]]])
    found = follow(untrained(), truth, torch.zeros(1, 1, 2), 40)
    errors = [float((velocity - truth).norm()) for velocity in found]
    assert errors[0] > 3.0
    # What this frame says is 0 here, and hardly has a say.
    assert errors[9] < 0.25 * errors[0]
    assert errors[-1] < 0.02 * errors[0]
    assert all(later <= earlier + 1e-2 for earlier, later in zip(errors, errors[1:], strict=False))


@torch.no_grad()
def test_an_untrained_filter_averages_noise_away_as_sightings_add_up() -> None:
    head, truth = untrained(), torch.tensor([[[8.0, -2.0]]])
    errors = np.array(
        [
            [float((v - truth).norm()) for v in follow(head, truth, torch.zeros(1, 1, 2), 12, noise=0.4)]
            for _ in range(40)
        ]
    ).mean(axis=0)
    # Two positions 0.4 m off say 0.4 * sqrt 2 / 0.1 = 5.7 m/s; ten frames say a tenth of that and a bit.
    assert errors[0] > 3.0
    assert errors[9] < 1.2


@torch.no_grad()
def test_whatever_has_been_learned_velocities_stay_bounded() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        head = BoxHead(SMALL)
        for parameter in head.parameters():
            parameter.normal_(0.0, 0.5)
        truth = torch.tensor([[[8.0, -2.0]]])
        found = follow(head, truth, torch.tensor([[[30.0, 30.0]]]), 300)
        limit = (
            30.0
            + 2.0 * float(truth.norm())
            + 10.0 * float(head.mlp(torch.zeros(SMALL.token_channels)).abs().max())
        )
        assert max(float(velocity.norm()) for velocity in found) < 2.0 * limit
        torch.testing.assert_close(found[-1], found[-2], atol=0.05, rtol=0.01)


@torch.no_grad()
def test_a_new_object_without_radar_has_the_velocity_that_this_frame_says() -> None:
    torch.manual_seed(0)
    head = BoxHead(SMALL)
    token, nothing = torch.randn(1, 3, SMALL.token_channels), torch.zeros(1, 3, 2)
    none, one = torch.zeros(1, 3, 1), torch.ones(1, 3, 1)
    boxes, *_, rate = head(token, nothing, SILENT, none, nothing, nothing, one, none)
    torch.testing.assert_close(boxes[..., 8:10], 10.0 * head.mlp(token)[..., 6:8])
    assert rate.abs().max() == 0.0  # a first velocity is no change of one


@torch.no_grad()
@pytest.mark.parametrize(("yaw_deg", "speed"), [(180.0, 12.0), (0.0, 7.0), (40.0, 9.0), (-120.0, 0.0)])
def test_returns_on_a_box_give_its_velocity_by_its_heading(yaw_deg: float, speed: float) -> None:
    yaw = math.radians(yaw_deg)
    centre = np.array([11.0, 3.0])
    corners = footprint_corners_N42(centre[None], np.array([[4.2, 1.8]]), np.array([yaw]))[0]
    points = np.concatenate([corners, centre[None]])
    sight = points / np.linalg.norm(points, axis=1, keepdims=True)
    velocity = speed * np.array([math.cos(yaw), math.sin(yaw)])
    doppler = (sight @ velocity)[:, None] * sight
    raster = radar_raster(
        np.c_[points, np.zeros(len(points))].astype(np.float32),
        doppler.astype(np.float32),
        np.zeros(len(points), np.float32),
        SMALL.grid,
    )
    inputs = {"radar_raster": torch.from_numpy(raster)[None], "radar_valid": torch.ones(1, 3)}
    sums = doppler_sums(inputs, SMALL.bev_stride)
    assert float(sums[:, 0].sum()) == pytest.approx(len(points), rel=1e-4)
    where, heading = torch.tensor([[[11.0, 3.0]]]), torch.tensor([[[math.cos(yaw), math.sin(yaw)]]])
    size = torch.tensor([[[4.2, 1.8, 1.6]]]).log()
    radar = RadarVelocity(SMALL)
    found, worth = radar(sums.float(), where, heading, size)
    np.testing.assert_allclose(found[0, 0].numpy(), velocity, atol=0.02 * speed + 0.05)
    assert (float(worth) > 0.3) == (speed > 0.0)  # a still box has no Doppler, and nothing is claimed of it
    # A box that points the other way at the same speed backwards is the same motion.
    backwards, _ = radar(sums.float(), where, -heading, size)
    torch.testing.assert_close(backwards, found, atol=1e-4, rtol=1e-4)
    # Elsewhere there is nothing to be heard.
    _, nothing = radar(sums.float(), torch.tensor([[[3.0, -8.0]]]), heading, size)
    assert float(nothing) == 0.0


def test_many_returns_of_one_raster_cell_say_no_more_than_one() -> None:
    points = np.array([[11.0, 3.0, 0.0]] * 9 + [[15.0, 3.0, 0.0]], np.float32)
    doppler = np.array([[5.0, 1.0]] * 9 + [[1.0, 0.0]], np.float32)
    raster = radar_raster(points, doppler, np.zeros(10, np.float32), SMALL.grid)
    inputs = {"radar_raster": torch.from_numpy(raster)[None], "radar_valid": torch.ones(1, 3)}
    sums = doppler_sums(inputs, SMALL.bev_stride).sum((0, 2, 3))
    torch.testing.assert_close(sums.float(), torch.tensor([2.0, 6.0, 1.0]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("jump", [-30.0, 30.0])
def test_a_velocity_that_jumps_is_no_acceleration_that_cars_have(jump: float) -> None:
    head = untrained()
    token, place = torch.zeros(1, 1, SMALL.token_channels), torch.tensor([[[12.0, 0.0]]])
    velocity, many = torch.tensor([[[40.0, 0.0]]]), torch.full((1, 1, 1), 1.0 + MAX_SIGHTINGS)
    innovation = torch.tensor([[[jump, 0.0]]])  # far more than one frame can move it
    boxes, *_, rate = head(
        token, place, SILENT, torch.ones(1, 1, 1), velocity, innovation, many, UNKNOWN_RATE
    )
    assert abs(float(boxes[0, 0, 8]) - 40.0) / PERIOD > 2.0 * MAX_RATE
    assert 0.0 < math.copysign(1.0, jump) * float(rate) <= RATE_GAIN * MAX_RATE


@torch.no_grad()
@pytest.mark.parametrize("heard", [True, False])
def test_an_untrained_filter_follows_a_braking_car_that_the_radar_hears(heard: bool) -> None:
    head = untrained()
    head.mlp[-1].bias[5] = 10.0  # cosine: it looks ahead
    token, place, speed = torch.zeros(1, 1, SMALL.token_channels), 12.0, 18.0
    velocity, ahead = torch.tensor([[[speed, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    rate, late = UNKNOWN_RATE, []
    for _ in range(20):
        slower = speed - 6.0 * PERIOD
        moved = 0.5 * (speed + slower) * PERIOD
        speed = slower
        # The robot keeps pace, so that only what is moved within its frame is new.
        back = np.array([[place - 2.0, y, 0.5] for y in (-0.7, 0.0, 0.7)], np.float32)
        sight = back[:, :2] / np.linalg.norm(back[:, :2], axis=1, keepdims=True)
        doppler = (speed * sight[:, :1] * sight).astype(np.float32)
        raster = radar_raster(back, doppler, np.zeros(3, np.float32), SMALL.grid)
        inputs = {
            "radar_raster": torch.from_numpy(raster)[None],
            "radar_valid": torch.full((1, 3), float(heard)),
        }
        sums = doppler_sums(inputs, SMALL.bev_stride).float()
        innovation = (moved - velocity[..., :1] * PERIOD) * ahead
        point, known = place * ahead, torch.ones(1, 1, 1)
        sightings = torch.full((1, 1, 1), 1.0 + MAX_SIGHTINGS)
        boxes, *_, rate = head(token, point, sums, known, velocity, innovation, sightings, rate)
        velocity = boxes[..., 8:10]
        late.append(float(velocity[0, 0, 0]) - speed)
    # Places alone tell it a second later: 6 m/s too fast after two seconds of 6 m/s^2.
    assert (max(late) < 1.2) if heard else (late[-1] > 4.0)
    assert (float(rate) == pytest.approx(-6.0, abs=1.0)) if heard else (float(rate) < -2.0)


@torch.no_grad()
def test_sightings_and_accelerations_are_remembered_from_memory_to_memory() -> None:
    torch.manual_seed(0)
    associator = Associator(SMALL)
    point = torch.tensor([[[5.0, 1.0]]])
    tokens, boxes = torch.randn(1, 1, SMALL.token_channels), torch.zeros(1, 1, 10)
    boxes[..., :2], tokens[..., -1], tokens[..., -2] = point, 3.0 / MAX_SIGHTINGS, -2.0 / RATE_SCALE
    query = torch.randn(1, 1, SMALL.token_channels)
    for valid in (1.0, 0.0):
        updated, track, _, (known, _, _, sightings, rate) = associator(
            query, point, tokens, boxes, torch.full((1, 1), valid)
        )
        assert float(sightings) == pytest.approx(1.0 + 3.0 * float(known), abs=1e-5)
        assert float(updated[..., -1]) == pytest.approx(float(sightings) / MAX_SIGHTINGS, abs=1e-6)
        assert float(rate) == pytest.approx(-2.0 * float(known), abs=1e-5)
        assert RATE_SCALE * float(track[..., -2]) == pytest.approx(-2.0 * valid, abs=1e-5)  # unseen, too


@torch.no_grad()
def test_who_is_whom_does_not_depend_on_remembered_accelerations() -> None:
    torch.manual_seed(0)
    associator = Associator(SMALL)
    query, tokens = torch.randn(1, 3, SMALL.token_channels), torch.randn(1, 2, SMALL.token_channels)
    points, boxes = 5.0 * torch.randn(1, 3, 2), torch.zeros(1, 2, 10)
    braking = tokens.clone()
    braking[..., -2] = -8.0 / RATE_SCALE
    (updated, _, affinity, *_), (other, _, same, *_) = (
        associator(query, points, remembered, boxes, torch.ones(1, 2)) for remembered in (tokens, braking)
    )
    assert torch.equal(affinity, same)
    assert torch.equal(updated[..., :-2], other[..., :-2])
    assert not torch.equal(updated[..., -2], other[..., -2])
