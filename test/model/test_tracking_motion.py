"""What a track's memory does to its velocity: a filter that settles, and cannot run away."""

from __future__ import annotations

import torch
from synthetic import SMALL

from e2e_perception.model.network import BoxHead

PERIOD = SMALL.frame_period_s


def follow(head: BoxHead, truth: torch.Tensor, start: torch.Tensor, frames: int) -> list[torch.Tensor]:
    """Velocities (1, 1, 2) of one object that moves at `truth`, remembered at `start` before."""
    token = torch.zeros(1, 1, SMALL.token_channels)
    point, velocity, found = torch.zeros(1, 1, 2), start, []
    for _ in range(frames):
        expected = point + velocity * PERIOD
        point = point + truth * PERIOD
        boxes, _ = head(token, point, torch.ones(1, 1, 1), velocity, point - expected)
        velocity = boxes[..., 8:10]
        found.append(velocity)
    return found


@torch.no_grad()
def test_an_untrained_filter_already_tends_to_the_true_velocity() -> None:
    torch.manual_seed(0)
    head = BoxHead(SMALL)
    head.mlp[-1].weight.zero_()
    head.mlp[-1].bias.zero_()
    truth = torch.tensor([[[8.0, -2.0]]])
    found = follow(head, truth, torch.zeros(1, 1, 2), 40)
    errors = [float((velocity - truth).norm()) for velocity in found]
    assert errors[0] > 6.0
    # What this frame says is 0 here, and still has a twentieth of the say.
    assert errors[-1] < 0.3 * errors[0]
    assert all(later <= earlier + 1e-4 for earlier, later in zip(errors, errors[1:], strict=False))


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
def test_a_new_object_has_the_velocity_that_this_frame_says() -> None:
    torch.manual_seed(0)
    head = BoxHead(SMALL)
    token, nothing = torch.randn(1, 3, SMALL.token_channels), torch.zeros(1, 3, 2)
    boxes, _ = head(token, nothing, torch.zeros(1, 3, 1), nothing, nothing)
    torch.testing.assert_close(boxes[..., 8:10], 10.0 * head.mlp(token)[..., 6:8])
