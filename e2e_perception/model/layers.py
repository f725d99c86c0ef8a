"""Small building blocks with nothing of the task in them.

Legend: B batch, C channels, H W any two spatial axes, Q query tokens, K key tokens, D token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """3x3 (or 1x1) convolution, batch norm, ReLU.

    Batch norm (Ioffe & Szegedy 2015) and not group norm: one frame's own statistics would take away how fast
    a radar return is, and how much there is to see. It folds into the convolution at inference.
    """

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape in and out."""
        return F.relu(x_BCHW + self.second(self.first(x_BCHW)))


class Mlp(nn.Sequential):
    """Linear layers with ReLU between them; layer norm on the way in if asked."""

    def __init__(self, *widths: int, norm: bool = False) -> None:
        layers: list[nn.Module] = [nn.LayerNorm(widths[0])] if norm else []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            layers.append(nn.Linear(a, b))
            if i < len(widths) - 2:
                layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Attention(nn.Module):
    """Multi-head attention with an additive bias, pre-norm, residual (Vaswani et al. 2017).

    The bias is finite (-1e4, not -inf), so that a row with every key masked stays finite in half precision.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        assert width % num_heads == 0 and width // num_heads >= 16
        self.num_heads = num_heads
        self.norm_queries = nn.LayerNorm(width)
        self.norm_keys = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_BQD: Tensor, keys_BKD: Tensor, bias_BK: Tensor) -> Tensor:
        """Queries after looking at the keys.

        Args:
            queries_BQD: (B, Q, D).
            keys_BKD: (B, K, D).
            bias_BK: (B, K) added to every query's logits; -1e4 hides a key.
        Returns:
            (B, Q, D).
        """
        b, q, d = queries_BQD.shape
        k = keys_BKD.shape[1]
        heads, width = self.num_heads, d // self.num_heads
        query = self.to_q(self.norm_queries(queries_BQD)).reshape(b, q, heads, width).transpose(1, 2)
        key_value = self.to_kv(self.norm_keys(keys_BKD)).reshape(b, k, 2, heads, width)
        key, value = key_value[:, :, 0].transpose(1, 2), key_value[:, :, 1].transpose(1, 2)
        logits_BhQK = query @ key.transpose(2, 3) * width**-0.5 + bias_BK[:, None, None, :]
        mixed = (logits_BhQK.softmax(dim=-1) @ value).transpose(1, 2).reshape(b, q, d)
        return queries_BQD + self.out(mixed)


class FeedForward(nn.Module):
    """Pre-norm two-layer perceptron around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, 2 * width, width, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return x + self.mlp(x)


class GatedUpdate(nn.Module):
    """A gated recurrent update of tokens (Cho et al. 2014), written with plain linears for export."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * width, 2 * width)
        self.candidate = nn.Linear(2 * width, width)

    def forward(self, now: Tensor, remembered: Tensor) -> Tensor:
        """Blend (..., D) of this frame with (..., D) remembered."""
        keep, reset = self.gates(torch.cat([now, remembered], -1)).sigmoid().chunk(2, -1)
        candidate = self.candidate(torch.cat([now, reset * remembered], -1)).tanh()
        return (1 - keep) * now + keep * candidate


def sample_bev(
    features_BCYX: Tensor, points_BN2: Tensor, extent: tuple[float, float, float, float]
) -> Tensor:
    """Bilinear features at base-frame points, zero outside the grid.

    Args:
        features_BCYX: (B, C, Y, X).
        points_BN2: (B, N, 2) [m], base frame.
        extent: x_min, x_max, y_min, y_max of the grid [m].
    Returns:
        (B, N, C).
    """
    x_min, x_max, y_min, y_max = extent
    x = (points_BN2[..., 0] - x_min) * (2.0 / (x_max - x_min)) - 1.0
    y = (points_BN2[..., 1] - y_min) * (2.0 / (y_max - y_min)) - 1.0
    grid = torch.stack([x, y], -1)[:, :, None, :]
    sampled_BCN1 = F.grid_sample(features_BCYX, grid, align_corners=False)
    return sampled_BCN1[..., 0].transpose(1, 2)
