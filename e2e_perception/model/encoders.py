"""From sensors to one bird's-eye view: camera backbone and lift, raster encoders, fusion, memory.

Legend: B batch, N cameras, C channels, H W image, Y X BEV cells, Z lift heights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_perception.core.network_config import (
    DOPPLER_SCALE,
    LIDAR_CHANNELS,
    RADAR_CHANNELS,
    RADAR_COUNT_SCALE,
    NetworkConfig,
)
from e2e_perception.model.layers import ConvNorm, Residual

IMAGE_STRIDE = 8


class CameraBackbone(nn.Module):
    """A compact residual network with a two-level neck (FPN, Lin et al. 2017), at 1/8 of its image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c, deep = config.camera_channels, config.deep_channels
        half, quarter = config.stem_channels
        self.pool = config.image_pool
        self.stem = nn.Sequential(ConvNorm(3, half, stride=2), ConvNorm(half, quarter, stride=2))
        self.eighth = nn.Sequential(ConvNorm(quarter, c, stride=2), Residual(c))
        self.sixteenth = nn.Sequential(ConvNorm(c, deep, stride=2), Residual(deep))
        self.lateral = nn.Conv2d(deep, c, 1)

    def forward(self, images_NHW3: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, C, H/8, W/8), with H and W after pooling."""
        x = images_NHW3.permute(0, 3, 1, 2).float()
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        # Normalisation is in the graph, so that the host hands over bytes.
        x = x * (1.0 / 64.0) - 2.0
        eighth = self.eighth(self.stem(x))
        sixteenth = self.lateral(self.sixteenth(eighth))
        return eighth + F.interpolate(sixteenth, scale_factor=2.0, mode="nearest")


class CameraLift(nn.Module):
    """Camera features at the places where BEV voxels project to (SimpleBEV, Harley et al. 2023).

    Works on cells twice as large as the BEV's: an eighth-resolution image says no more than that.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        grid = config.bev_grid.downsampled(2)
        centres = torch.from_numpy(grid.cell_centres_YX2()).reshape(-1, 2)
        heights = torch.tensor(config.lift_heights)
        voxels = torch.cat(
            [
                centres[:, None, :].expand(-1, len(heights), -1),
                heights[None, :, None].expand(len(centres), -1, 1),
                torch.ones(len(centres), len(heights), 1),
            ],
            -1,
        )
        self.register_buffer("voxels_V4", voxels.reshape(-1, 4), persistent=False)
        self.shape = grid.shape
        self.num_heights = len(heights)
        self.image_size = (config.image_width, config.image_height)
        self.mix = ConvNorm(config.camera_channels * len(heights), config.bev_channels, kernel=1)

    def forward(self, features_BNCHW: Tensor, image_from_base_BN34: Tensor, valid_BN: Tensor) -> Tensor:
        """BEV features from all valid cameras.

        Args:
            features_BNCHW: Backbone features.
            image_from_base_BN34: Projection to pixels of the network's image.
            valid_BN: 1 or 0.
        Returns:
            (B, C, Y, X) on the BEV grid.
        """
        b, n, c = features_BNCHW.shape[:3]
        pixels = self._project(image_from_base_BN34)
        depth = pixels[..., 2:3].clamp(min=0.1)
        size = pixels.new_tensor(self.image_size)
        # Pixel centres are whole numbers: normalised -1 is the outer edge of pixel 0, at -0.5.
        uv_BNV2 = ((pixels[..., :2] / depth + 0.5) * (2.0 / size) - 1.0).clamp(-4.0, 4.0)
        inside = (uv_BNV2.abs().amax(-1) <= 1.0) & (pixels[..., 2] > 0.5) & (valid_BN[..., None] > 0.5)
        sampled = F.grid_sample(
            features_BNCHW.flatten(0, 1), uv_BNV2.flatten(0, 1)[:, :, None], align_corners=False
        ).reshape(b, n, c, -1)
        inside_BN1V = inside[:, :, None].float()
        # `where`, not a product: a dead camera's NaN must not get through.
        total = torch.where(inside[:, :, None], sampled, sampled.new_zeros(())).sum(1)
        mean_BCV = total / inside_BN1V.sum(1).clamp(min=1.0)
        y, x = self.shape
        voxels = mean_BCV.reshape(b, c, y, x, self.num_heights).permute(0, 1, 4, 2, 3)
        mixed = self.mix(voxels.reshape(b, c * self.num_heights, y, x))
        return F.interpolate(mixed, scale_factor=2.0, mode="nearest")

    def _project(self, image_from_base_BN34: Tensor) -> Tensor:
        """Voxels as (u w, v w, w), (B, N, V, 3); never in half precision, in which a pixel has no digits."""
        if torch.is_autocast_enabled(image_from_base_BN34.device.type):
            with torch.autocast(image_from_base_BN34.device.type, enabled=False):
                return self._project(image_from_base_BN34)
        return self.voxels_V4 @ image_from_base_BN34.transpose(2, 3)


class BevEncoder(nn.Module):
    """Fuses modalities (BEVFusion, Liu et al. 2023), reasons at three scales (FPN, Lin et al. 2017)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c, r = config.bev_channels, config.radar_channels
        coarse, coarser = config.coarse_channels
        self.backbone = CameraBackbone(config)
        self.lift = CameraLift(config)
        self.lidar = ConvNorm(len(LIDAR_CHANNELS), c, stride=config.bev_stride)
        self.radar = ConvNorm(len(RADAR_CHANNELS), r, stride=config.bev_stride)
        # What a missing modality looks like is learned; zero would look like an empty street.
        self.no_camera = nn.Parameter(torch.zeros(c))
        self.no_lidar = nn.Parameter(torch.zeros(c))
        self.no_radar = nn.Parameter(torch.zeros(r))
        self.fuse = ConvNorm(2 * c + r, c, kernel=1)
        self.coarse = nn.Sequential(ConvNorm(c, coarse, stride=2), Residual(coarse))
        self.coarser = nn.Sequential(ConvNorm(coarse, coarser, stride=2), Residual(coarser))
        self.from_coarser = nn.Conv2d(coarser, coarse, 1)
        self.from_coarse = nn.Conv2d(coarse, c, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """BEV features (B, C, Y, X) of one frame, from the contract's sensor inputs."""
        images = inputs["images"]
        b, n = images.shape[:2]
        features = self.backbone(images.flatten(0, 1))
        camera = self.lift(
            features.reshape(b, n, *features.shape[1:]), inputs["image_from_base"], inputs["camera_valid"]
        )
        camera = _present(camera, inputs["camera_valid"], self.no_camera)
        lidar = _encode(self.lidar, inputs["lidar_raster"], inputs["lidar_valid"], self.no_lidar)
        radar = _encode(self.radar, inputs["radar_raster"], inputs["radar_valid"], self.no_radar)
        fused = self.fuse(torch.cat([camera, lidar, radar], 1))
        coarse = self.coarse(fused)
        coarse = coarse + F.interpolate(self.from_coarser(self.coarser(coarse)), scale_factor=2.0)
        return fused + F.interpolate(self.from_coarse(coarse), scale_factor=2.0)


def _present(features_BCYX: Tensor, valid_BS: Tensor, absent_C: Tensor) -> Tensor:
    """The features where any sensor is valid, else the learned stand-in."""
    any_valid = valid_BS.amax(1)[:, None, None, None] > 0.5
    return torch.where(any_valid, features_BCYX, absent_C[None, :, None, None])


def _encode(encoder: nn.Module, raster_BCYX: Tensor, valid_BS: Tensor, absent_C: Tensor) -> Tensor:
    # Masked on the way in as well: a NaN in the raster would spoil the gradient of the encoder.
    any_valid = valid_BS.amax(1)[:, None, None, None] > 0.5
    clean = torch.where(any_valid, raster_BCYX, raster_BCYX.new_zeros(()))
    return _present(encoder(clean), valid_BS, absent_C)


def doppler_sums(inputs: dict[str, Tensor], stride: int) -> Tensor:
    """Radar returns per BEV cell and the sum of their Doppler vectors, undone from the raster's scales; ours.

    Args:
        inputs: `radar_raster` (B, 4, stride Y, stride X) and `radar_valid` of the contract.
        stride: Raster cells per BEV cell.
    Returns:
        (B, 3, Y, X): number of returns, those of a raster cell as at most one, and number times mean Doppler
        x, y [m/s]; 0 without a radar.
    """
    any_valid = inputs["radar_valid"].amax(1)[:, None, None, None] > 0.5
    raster = torch.where(any_valid, inputs["radar_raster"], inputs["radar_raster"].new_zeros(()))
    named = dict(zip(RADAR_CHANNELS, raster.split(1, 1), strict=True))
    number = ((named["log_count"] * math.log1p(RADAR_COUNT_SCALE)).exp() - 1.0).clamp(max=1.0)
    vector = torch.cat([named["doppler_x"], named["doppler_y"]], 1) * DOPPLER_SCALE
    return F.avg_pool2d(torch.cat([number, number * vector], 1), stride) * float(stride**2)


class BevMemory(nn.Module):
    """Gated recurrent map, warped by ego motion (ConvGRU, Ballas et al. 2016; warp as in
    BEVDet4D, Huang and Huang 2022).

    The update is a convex blend: what is remembered never exceeds what was once seen by more than the
    candidate's bound of 1, however long the drive. (One that adds to its memory makes objects up where the
    robot stands.)
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c = config.bev_channels
        grid = config.bev_grid
        y = (torch.arange(grid.num_y) + 0.5) * (2.0 / grid.num_y) - 1.0
        x = (torch.arange(grid.num_x) + 0.5) * (2.0 / grid.num_x) - 1.0
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        cells = torch.stack([xx, yy, torch.ones_like(xx)], -1)
        self.register_buffer("cells_YX3", cells, persistent=False)
        self.gates = nn.Conv2d(2 * c, 2 * c, 1)
        self.out = ConvNorm(c, c)

    def forward(
        self, now_BCYX: Tensor, memory_BCYX: Tensor, theta_B23: Tensor, valid_B1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features with memory, and the memory to hand on.

        Args:
            now_BCYX: This frame's features.
            memory_BCYX: The previous frame's memory, in the previous base frame.
            theta_B23: See `BevGrid.sampling_theta`.
            valid_B1: 0 forgets the memory.
        Returns:
            Features (B, C, Y, X) and memory (B, C, Y, X).
        """
        y, x = self.cells_YX3.shape[:2]
        where_BYX2 = (self.cells_YX3.reshape(1, y * x, 3) @ theta_B23.transpose(1, 2)).reshape(-1, y, x, 2)
        valid = valid_B1[:, :, None, None] > 0.5
        memory = torch.where(valid, memory_BCYX, memory_BCYX.new_zeros(()))
        warped = F.grid_sample(memory, where_BYX2.clamp(-4.0, 4.0), align_corners=False)
        gate, candidate = self.gates(torch.cat([now_BCYX, warped], 1)).chunk(2, 1)
        gate = torch.where(valid, gate.sigmoid(), gate.new_zeros(()))
        memory_next = (1 - gate) * (now_BCYX + candidate.tanh()) + gate * warped
        return self.out(memory_next), memory_next
