"""What a reviewer sees: a frame from above, and boxes in the pictures of its cameras.

The picture from above shows the grid of the network's rasters: x to the right, y up, so that the robot drives
to the right. Positions in it are continuous pixels, (0, 0) is the top-left corner of the top-left pixel.

Legend: C channels, Y X cells, E edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import LIDAR_CHANNELS, RADAR_CHANNELS
from e2e_perception.data.review_clips import LabelBox, ReviewClip

PIXEL = 0.1  # [m] about the size of a pixel of the picture from above; cells are a whole number of them
LEAST_DEPTH = 0.1  # [m] in front of a camera, below which nothing is projected
# Corners of `LabelBox.corners_83` that an edge joins: bottom, top, upright.
EDGES = (
    *((i, (i + 1) % 4) for i in range(4)),
    *((4 + i, 4 + (i + 1) % 4) for i in range(4)),
    *((i, 4 + i) for i in range(4)),
)

_DARK = np.array([16.0, 18.0, 22.0])
_GROUND = np.array([40.0, 48.0, 60.0])
_SOLID = np.array([215.0, 225.0, 235.0])
_LABEL = (250, 190, 60)
_RADAR = np.array([150.0, 70.0, 20.0])


@dataclass(frozen=True)
class Rectangle:
    """A rotated rectangle as labelling tools have it.

    Attributes:
        left, top, right, bottom: Of the rectangle before it is turned about its centre [px].
        rotation: Clockwise, [0, 360) [degrees].
    """

    left: float
    top: float
    right: float
    bottom: float
    rotation: float


@dataclass(frozen=True)
class BirdsEye:
    """The picture from above.

    Attributes:
        grid: Its extent.
        cell_px: Pixels of a cell's side.
    """

    grid: BevGrid
    cell_px: int

    @staticmethod
    def of(grid: BevGrid) -> BirdsEye:
        """The picture of a grid, with pixels of about `PIXEL`."""
        return BirdsEye(grid, max(1, round(grid.resolution / PIXEL)))

    @property
    def pixel(self) -> float:
        """Side of a pixel [m]."""
        return self.grid.resolution / self.cell_px

    @property
    def size(self) -> tuple[int, int]:
        """Width and height [px]."""
        return self.grid.num_x * self.cell_px, self.grid.num_y * self.cell_px

    def shows(self, box: LabelBox) -> bool:
        """Whether a box's centre lies in the picture."""
        return bool(self.grid.contains(np.array([box.x, box.y])))

    def rectangle(self, box: LabelBox) -> Rectangle:
        """Where a box is in the picture."""
        u, v = (box.x - self.grid.x_min) / self.pixel, (self.grid.y_max - box.y) / self.pixel
        along, across = box.length / self.pixel / 2.0, box.width / self.pixel / 2.0
        rotation = math.degrees(-box.yaw) % 360.0
        return Rectangle(u - along, v - across, u + along, v + across, rotation)

    def footprint(self, rectangle: Rectangle) -> dict[str, float]:
        """The box on the ground of which a rectangle is the picture: x, y, length, width [m], yaw [rad].

        Raises:
            InputError: If it has no area, or is not finite.
        """
        numbers = (rectangle.left, rectangle.top, rectangle.right, rectangle.bottom, rectangle.rotation)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"a rectangle has the numbers {numbers}, expected finite ones")
        if rectangle.right <= rectangle.left or rectangle.bottom <= rectangle.top:
            raise InputError(
                f"a rectangle reaches from ({rectangle.left}, {rectangle.top}) to ({rectangle.right}, "
                f"{rectangle.bottom}) px, expected the top-left corner first and an area"
            )
        yaw = math.radians(-rectangle.rotation)
        return {
            "x": self.grid.x_min + (rectangle.left + rectangle.right) / 2.0 * self.pixel,
            "y": self.grid.y_max - (rectangle.top + rectangle.bottom) / 2.0 * self.pixel,
            "length": (rectangle.right - rectangle.left) * self.pixel,
            "width": (rectangle.bottom - rectangle.top) * self.pixel,
            "yaw": math.atan2(math.sin(yaw), math.cos(yaw)),
        }

    def draw(
        self, review: ReviewClip, frame: int, *, cell_px: int | None = None, labels: bool = False
    ) -> NDArray[np.uint8]:
        """A frame's lidar and radar from above, with a cross where `base_link` is.

        Args:
            review: The clip.
            frame: In it.
            cell_px: Pixels of a cell's side, if other than its own.
            labels: Whether the outlines of the frame's labels are drawn, too.
        Returns:
            (height, width, 3) uint8 RGB.
        """
        side = self.cell_px if cell_px is None else cell_px
        lidar = review.clip.inputs["lidar_raster"][frame].astype(np.float32)
        radar = review.clip.inputs["radar_raster"][frame].astype(np.float32)
        named = dict(zip(LIDAR_CHANNELS, np.nan_to_num(lidar).clip(0.0, 1.0), strict=True))
        count = np.nan_to_num(radar[RADAR_CHANNELS.index("log_count")]).clip(0.0, 1.0)
        solid = np.maximum.reduce([named["low"], named["middle"], named["high"]])
        picture = (
            _DARK
            + named["ground"][..., None] * _GROUND
            + np.sqrt(solid)[..., None] * (_SOLID - _DARK - _GROUND)
            + np.sqrt(count)[..., None] * _RADAR
        )
        cells = picture.clip(0.0, 255.0).astype(np.uint8)[::-1]
        large = np.repeat(np.repeat(cells, side, axis=0), side, axis=1)
        metres = self.grid.resolution / side
        origin = round(-self.grid.x_min / metres), round(self.grid.y_max / metres)
        cv2.drawMarker(large, origin, (90, 200, 120), cv2.MARKER_CROSS, 4 * side, 1)
        for label in review.at(frame) if labels else ():
            corners_42 = label.box.corners_83[:4, :2]
            pixels = np.stack(
                [corners_42[:, 0] - self.grid.x_min, self.grid.y_max - corners_42[:, 1]], axis=1
            )
            cv2.polylines(large, [np.round(pixels / metres).astype(np.int32)], True, _LABEL, 1)
        return large


def camera_picture(review: ReviewClip, frame: int, camera: str) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 RGB as the network sees it; None if the frame has none of that camera."""
    slot = review.network.cameras.index(camera)
    if not float(review.clip.inputs["camera_valid"][frame, slot]) > 0.0:
        return None
    picture: NDArray[np.uint8] = review.clip.inputs["images"][frame, slot].astype(np.uint8)
    return picture


def projected_corners_82(
    review: ReviewClip, frame: int, camera: str, box: LabelBox
) -> NDArray[np.float64] | None:
    """Corners of a box in a picture.

    Returns:
        (8, 2) float64 [px], continuous as above, order of `corners_83`; None if part of the box is not in
        front of the camera or nothing of it in the picture.
    """
    image_3 = _homogeneous(review, frame, camera, box.corners_83)
    if not (image_3[:, 2] > LEAST_DEPTH).all():
        return None
    # The network counts from the centre of the top-left pixel, labelling tools from its corner.
    corners = np.asarray(image_3[:, :2] / image_3[:, 2:] + 0.5)
    return corners if _reaches(corners, review) else None


def projected_edges_E4(review: ReviewClip, frame: int, camera: str, box: LabelBox) -> NDArray[np.float64]:
    """Edges of a box in a picture, cut off where they come to the camera.

    Returns:
        (E, 4) float64 [px]: both ends, continuous as above; (0, 4) if nothing of the box is in the picture.
    """
    image_3 = _homogeneous(review, frame, camera, box.corners_83)
    found: list[NDArray[np.float64]] = []
    for a, b in EDGES:
        start, end = image_3[a], image_3[b]
        near, far = (start, end) if start[2] < end[2] else (end, start)
        if far[2] <= LEAST_DEPTH:
            continue
        if near[2] < LEAST_DEPTH:
            near = near + (LEAST_DEPTH - near[2]) / (far[2] - near[2]) * (far - near)
        found.append(np.concatenate([near[:2] / near[2], far[:2] / far[2]]) + 0.5)
    edges = np.array(found).reshape(-1, 4)
    return edges if len(edges) and _reaches(edges.reshape(-1, 2), review) else np.zeros((0, 4))


def png(picture_HW3: NDArray[np.uint8]) -> bytes:
    """An RGB picture as PNG."""
    written, content = cv2.imencode(".png", picture_HW3[..., ::-1])
    assert written
    return content.tobytes()


def _homogeneous(
    review: ReviewClip, frame: int, camera: str, points_base_83: NDArray[np.float64]
) -> NDArray[np.float64]:
    slot = review.network.cameras.index(camera)
    image_from_base = review.clip.inputs["image_from_base"][frame, slot].astype(np.float64)
    return np.asarray(points_base_83 @ image_from_base[:, :3].T + image_from_base[:, 3])


def _reaches(points_N2: NDArray[np.float64], review: ReviewClip) -> bool:
    """Whether the bounds of points meet the picture."""
    low, high = points_N2.min(axis=0), points_N2.max(axis=0)
    size = np.array([review.network.image_width, review.network.image_height])
    return bool((low < size).all() and (high > 0.0).all())
