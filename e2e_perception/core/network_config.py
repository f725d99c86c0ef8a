"""Sizes and slots of the joint network: what the tensor contract is derived from."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from e2e_perception.core.bev import BevGrid

# Named columns of the outputs; the order is part of the tensor contract.
BOX_FIELDS = ("x", "y", "z", "log_length", "log_width", "log_height", "sin_yaw", "cos_yaw", "vx", "vy")
BOX_STD_FIELDS = ("x", "y", "vx", "vy")  # columns of `query_log_var`
EGO_FIELDS = (
    "speed",
    "yaw_rate",
    "acceleration",
    "speed_limit",
    "lateral_offset",
    "heading_error",
    "valid",
)
COST_TERMS = ("imitation", "collision", "drivable", "comfort", "progress", "route")
LIDAR_CHANNELS = ("ground", "low", "middle", "high", "max_height", "intensity", "log_count")
LIDAR_SLICES = (-0.5, 0.3, 1.0, 1.8, 3.5)  # [m] edges of the four occupancy slices above base_link
RADAR_CHANNELS = ("log_count", "doppler_x", "doppler_y", "rcs")
RADAR_COUNT_SCALE = 15.0  # radar returns in a cell at which its `log_count` is 1; it may exceed 1
DOPPLER_SCALE = 10.0  # [m/s] at which a Doppler channel is 1


class NetworkConfig(BaseModel):
    """One size of the joint network. Frozen; stored in every bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str = Field("tiny", description="Name of the size.")
    cameras: tuple[str, ...] = Field(("front", "left", "right"), description="Camera slots.")
    lidars: tuple[str, ...] = Field(("top",), description="Lidar slots, merged into one raster.")
    radars: tuple[str, ...] = Field(
        ("radar_front", "radar_left", "radar_right"), description="Radar slots, one raster."
    )
    image_height: int = Field(128, description="[px] as the network sees it.")
    image_width: int = Field(352, description="[px]")
    grid: BevGrid = Field(default_factory=BevGrid, description="Lidar and radar rasters.")
    bev_stride: int = Field(2, description="BEV features have `bev_stride` times larger cells.")
    bev_channels: int = Field(32, description="Width of BEV features and memory.")
    camera_channels: int = Field(32, description="Width of image features.")
    image_pool: int = Field(
        1, ge=1, description="Images are averaged over this many pixels each way inside the graph."
    )
    stem_channels: tuple[int, int] = Field((16, 24), description="Image features at 1/2 and 1/4.")
    deep_channels: int = Field(48, description="Image features at 1/16.")
    radar_channels: int = Field(16, description="Width of radar features.")
    coarse_channels: tuple[int, int] = Field((48, 64), description="BEV features at 1/2 and 1/4.")
    lift_heights: tuple[float, ...] = Field(
        (0.2, 1.0, 2.0), description="Heights at which cells are projected into the cameras [m]."
    )
    token_channels: int = Field(64, description="Width of object tokens.")
    num_heads: int = Field(4, description="Attention heads; each at least 16 wide.")
    num_queries: int = Field(48, description="Detections per frame (top-K of the heatmap).")
    num_memory: int = Field(48, description="Remembered tracks fed back per frame.")
    num_hazards: int = Field(
        24, description="Objects, the surest first, that proposals are checked against for collisions."
    )
    num_modes: int = Field(3, description="Futures per object.")
    horizon_steps: int = Field(8, description="Future steps of objects and plan.")
    step_s: float = Field(0.5, description="Duration of a step [s].")
    plan_accelerations: tuple[float, ...] = Field(
        (-7.0, -4.5, -3.0, -2.0, -1.2, -0.6, -0.2, 0.0, 0.4, 1.0, 1.8, 2.8),
        description="Longitudinal profiles of the plan vocabulary [m/s^2].",
    )
    plan_offsets: tuple[float, ...] = Field(
        (-3.5, -1.8, -0.8, 0.0, 0.8, 1.8, 3.5),
        description="Lateral targets of the plan vocabulary, d at the horizon [m].",
    )
    frame_period_s: float = Field(0.1, description="Nominal time between frames [s].")
    memory_frames: int = Field(
        3,
        ge=1,
        description="Frames after which the BEV memory starts anew on the robot; 1: never used. A recurrence "
        "is not trusted for longer than it was seen to hold.",
    )
    blind: bool = Field(
        False,
        description="A control: the graph takes every sensor for dead, and plans by route and ego state, "
        "counting on meeting nobody.",
    )
    interfaces: Literal["differentiable", "detached"] = Field(
        "differentiable",
        description="Whether gradients cross from planning to tracking to detection in training.",
    )
    interface_gradient: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the gradient that a differentiable interface lets through in training.",
    )

    @property
    def bev_grid(self) -> BevGrid:
        """The grid of BEV features and heads."""
        return self.grid.downsampled(self.bev_stride)

    @property
    def num_plans(self) -> int:
        """Size of the plan vocabulary."""
        return len(self.plan_accelerations) * len(self.plan_offsets)

    @property
    def times_T(self) -> NDArray[np.float64]:
        """(horizon_steps,) [s] after the frame."""
        return self.step_s * np.arange(1, self.horizon_steps + 1, dtype=np.float64)


# All sizes of one rig share their inputs where they can: `nano` and `tiny` train on the same clips.
SIZES: dict[str, NetworkConfig] = {
    "nano": NetworkConfig(
        size="nano",
        image_pool=2,
        stem_channels=(8, 12),
        camera_channels=12,
        deep_channels=24,
        radar_channels=8,
        bev_channels=16,
        coarse_channels=(24, 32),
        token_channels=32,
        num_heads=2,
        num_queries=32,
        num_memory=32,
        num_hazards=20,
    ),
    "tiny": NetworkConfig(),
    "small": NetworkConfig(
        size="small",
        image_height=192,
        image_width=528,
        stem_channels=(24, 32),
        camera_channels=48,
        deep_channels=96,
        bev_channels=64,
        coarse_channels=(96, 128),
        token_channels=96,
        num_heads=6,
        num_queries=64,
        num_memory=64,
    ),
    "base": NetworkConfig(
        size="base",
        image_height=256,
        image_width=704,
        stem_channels=(32, 64),
        camera_channels=96,
        deep_channels=192,
        radar_channels=32,
        bev_channels=128,
        coarse_channels=(192, 256),
        token_channels=192,
        num_heads=8,
        num_queries=96,
        num_memory=96,
        num_hazards=40,
        num_modes=6,
    ),
}
