"""The bird's-eye-view grid: which metres a raster covers and how cells are counted.

Arrays are laid out `[Y, X]`: row 0 is the rightmost strip (smallest y), column 0 the rearmost
(smallest x). Cell (iy, ix) covers [y_min + iy r, y_min + (iy+1) r) x [x_min + ix r, ...).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from e2e_perception.core.frames import SE2


class BevGrid(BaseModel):
    """Extent and resolution of a bird's-eye-view grid in the base frame."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    x_min: float = Field(-24.0, description="Rear edge [m].")
    x_max: float = Field(72.0, description="Front edge [m].")
    y_min: float = Field(-32.0, description="Right edge [m].")
    y_max: float = Field(32.0, description="Left edge [m].")
    resolution: float = Field(0.5, gt=0.0, description="Cell size [m].")

    @model_validator(mode="after")
    def _whole_cells(self) -> BevGrid:
        for low, high, axis in (
            (self.x_min, self.x_max, "x"),
            (self.y_min, self.y_max, "y"),
        ):
            cells = (high - low) / self.resolution
            if cells < 1 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"grid {axis} extent {low}..{high} m is {cells:.3f} cells of "
                    f"{self.resolution} m; expected a whole number >= 1"
                )
        return self

    @property
    def num_x(self) -> int:
        """Number of columns."""
        return round((self.x_max - self.x_min) / self.resolution)

    @property
    def num_y(self) -> int:
        """Number of rows."""
        return round((self.y_max - self.y_min) / self.resolution)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows Y, columns X)."""
        return self.num_y, self.num_x

    def downsampled(self, stride: int) -> BevGrid:
        """The same extent with cells `stride` times as large."""
        return BevGrid(**{**self.model_dump(), "resolution": self.resolution * stride})

    def cell_centres_YX2(self) -> NDArray[np.float32]:
        """(Y, X, 2) float32 [m]: (x, y) of each cell's centre in the base frame."""
        x = self.x_min + (np.arange(self.num_x) + 0.5) * self.resolution
        y = self.y_min + (np.arange(self.num_y) + 0.5) * self.resolution
        grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
        return np.stack([grid_x, grid_y], axis=-1).astype(np.float32)

    def contains(self, points_N2: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which points (N, 2) [m] lie inside the grid."""
        x, y = points_N2[..., 0], points_N2[..., 1]
        inside = (x >= self.x_min) & (x < self.x_max) & (y >= self.y_min) & (y < self.y_max)
        return np.asarray(inside, dtype=np.bool_)

    def sampling_theta(self, memory_from_current: SE2) -> NDArray[np.float32]:
        """Affine map from normalised current-grid to normalised memory-grid coordinates.

        The network samples the remembered map at `theta @ (x', y', 1)` where x', y' in [-1, 1]
        are normalised cell coordinates (`align_corners=False`). Computed in float64 on the host,
        because half-precision engines must not build transforms.

        Args:
            memory_from_current: Pose of the current base frame in the remembered base frame.
        Returns:
            (2, 3) float32.
        """
        half = np.array([(self.x_max - self.x_min) / 2.0, (self.y_max - self.y_min) / 2.0])
        centre = np.array([(self.x_max + self.x_min) / 2.0, (self.y_max + self.y_min) / 2.0])
        c, s = np.cos(memory_from_current.yaw), np.sin(memory_from_current.yaw)
        rotation = np.array([[c, -s], [s, c]])
        linear = rotation * half[None, :] / half[:, None]
        moved_centre = rotation @ centre + np.array([memory_from_current.x, memory_from_current.y])
        offset = (moved_centre - centre) / half
        return np.asarray(np.concatenate([linear, offset[:, None]], axis=1), np.float32)
