"""The painted ground: colour and lidar reflectivity of road, markings and verge as a texture.

Tiles are painted once per road when a sensor first comes near and kept; the texture around the robot is put
together from them anew only when it enters another tile. Rows run along y, columns along x, as in `BevGrid`.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.simulation.scene import Road

RESOLUTION = 0.125  # [m] per texel
TILE = 32.0  # [m]
WINDOW_TILES = 7  # odd; the texture reaches at least (WINDOW_TILES - 1) / 2 tiles from its centre
TILE_TEXELS = round(TILE / RESOLUTION)
SUPERSAMPLING = 2
_FRACTION_BITS = 4

DASH, DASH_PERIOD = 3.0, 9.0  # [m] of paint, and from one dash to the next
KERB_WIDTH = 0.2  # [m]
# r, g, b and reflectivity at 905 nm, all 0..255; grass reflects infrared better than asphalt does.
GRASS = (92, 112, 62, 102)
ASPHALT = (104, 104, 108, 46)
KERB = (160, 158, 152, 90)
PAINT_REFLECTIVITY = 204
GRASS_NOISE, ASPHALT_NOISE = 13.0, 5.0  # standard deviation of brightness

MAX_TILES = 128  # per road
MAX_ROADS = 2


@dataclass(frozen=True)
class GroundTexture:
    """A square of ground.

    Attributes:
        origin_2: (2,) float64 [m], odom frame: outer corner of texel (0, 0), its smallest x and y.
        rgb_HW3: uint8.
        reflectivity_HW: uint8, 255 is 1.
    """

    origin_2: NDArray[np.float64]
    rgb_HW3: NDArray[np.uint8]
    reflectivity_HW: NDArray[np.uint8]

    @property
    def odom_from_texel(self) -> NDArray[np.float64]:
        """(3, 3) affine map of (column, row, 1) to (x, y, 1); whole numbers are texel centres."""
        x, y = self.origin_2 + 0.5 * RESOLUTION
        return np.array([[RESOLUTION, 0.0, x], [0.0, RESOLUTION, y], [0.0, 0.0, 1.0]])

    def reflectivities_at(self, points_N2: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N,) reflectivity in [0, 1] below points (N, 2) [m], odom frame; grass outside the texture."""
        column, row = np.floor((points_N2 - self.origin_2) * (1.0 / RESOLUTION)).astype(np.int32).T
        height, width = self.reflectivity_HW.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        values = self.reflectivity_HW.ravel().take(row * width + column, mode="clip")
        return np.where(inside, values, np.uint8(GRASS[3])) * np.float32(1.0 / 255.0)


class RoadSurface:
    """Paints tiles of a road on demand and keeps the latest ones."""

    def __init__(self, road: Road) -> None:
        self._polygons = road.drivable
        self._bounds_D4 = np.array([_bounds(polygon) for polygon in road.drivable]).reshape(-1, 4)
        strips = [_strips(m.points_N2, m.width, m.style == "dashed") for m in road.markings]
        colors = [(*m.color, PAINT_REFLECTIVITY) for m in road.markings]
        kerbs = [_strips(points, KERB_WIDTH, dashed=False) for points in road.boundaries]
        pieces = kerbs + strips  # paint lies over kerbs
        self._strips_S42 = np.concatenate([np.zeros((0, 4, 2)), *pieces])
        self._strip_colors = np.repeat(
            np.array([KERB] * len(kerbs) + colors).reshape(-1, 4), [len(piece) for piece in pieces], axis=0
        )
        self._tiles: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._window_key: tuple[int, int] | None = None
        self._window: GroundTexture | None = None

    def around(self, center_2: NDArray[np.floating]) -> GroundTexture:
        """The texture of `WINDOW_TILES` squared tiles with (2,) [m], odom frame, in the middle one."""
        key = (int(np.floor(center_2[0] / TILE)), int(np.floor(center_2[1] / TILE)))
        if self._window is None or key != self._window_key:
            first = (key[0] - WINDOW_TILES // 2, key[1] - WINDOW_TILES // 2)
            steps = range(WINDOW_TILES)
            texture = np.block([[[self._tile(first[0] + i, first[1] + j)] for i in steps] for j in steps])
            self._window = GroundTexture(
                origin_2=np.array(first, np.float64) * TILE,
                rgb_HW3=np.asarray(cv2.cvtColor(texture, cv2.COLOR_RGBA2RGB), np.uint8),
                reflectivity_HW=np.asarray(cv2.extractChannel(texture, 3), np.uint8),
            )
            self._window_key = key
        return self._window

    def _tile(self, i: int, j: int) -> NDArray[np.uint8]:
        tile = self._tiles.pop((i, j), None)
        if tile is None:
            tile = self._paint(np.array([i * TILE, j * TILE]))
        self._tiles[i, j] = tile
        while len(self._tiles) > MAX_TILES:
            self._tiles.popitem(last=False)
        return tile

    def _paint(self, corner_2: NDArray[np.float64]) -> NDArray[np.uint8]:
        """(TILE_TEXELS, TILE_TEXELS, 4) uint8: r, g, b, reflectivity."""
        low_2, high_2 = corner_2, corner_2 + TILE
        crossing = (self._bounds_D4[:, :2] < high_2).all(axis=1) & (self._bounds_D4[:, 2:] > low_2).all(
            axis=1
        )
        near = (self._strips_S42.min(axis=1) < high_2).all(axis=1)
        near &= (self._strips_S42.max(axis=1) > low_2).all(axis=1)
        if not crossing.any() and not near.any():
            return _grass_tile()

        def pixels(points_N2: NDArray[np.float64]) -> NDArray[np.int32]:
            exact = (points_N2 - corner_2) * (SUPERSAMPLING / RESOLUTION) - 0.5
            return np.round(exact * (1 << _FRACTION_BITS)).astype(np.int32)

        canvas = np.tile(
            np.array(GRASS, np.uint8), (TILE_TEXELS * SUPERSAMPLING, TILE_TEXELS * SUPERSAMPLING, 1)
        )
        for i in np.flatnonzero(crossing):
            cv2.fillPoly(canvas, [pixels(self._polygons[i])], ASPHALT, cv2.LINE_8, _FRACTION_BITS)
        for strip, color in zip(self._strips_S42[near], self._strip_colors[near].tolist(), strict=True):
            cv2.fillConvexPoly(canvas, pixels(strip), color, cv2.LINE_8, _FRACTION_BITS)
        tile = cv2.resize(canvas, (TILE_TEXELS, TILE_TEXELS), interpolation=cv2.INTER_AREA)
        return _with_grain(np.asarray(tile, np.uint8))


# Roads are compared by identity: a scenario keeps one Road object for all its snapshots.
_surfaces: OrderedDict[int, tuple[weakref.ref[Road], RoadSurface]] = OrderedDict()


def road_surface(road: Road) -> RoadSurface:
    """The surface of a road; the same object each time while the road is among the latest `MAX_ROADS`."""
    known = _surfaces.pop(id(road), None)
    # An id may be given again to another object once the first one is gone; the reference tells.
    surface = known[1] if known is not None and known[0]() is road else RoadSurface(road)
    _surfaces[id(road)] = (weakref.ref(road), surface)
    while len(_surfaces) > MAX_ROADS:
        _surfaces.popitem(last=False)
    return surface


def _bounds(points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4,) [m]: smallest x, y, greatest x, y."""
    return np.concatenate([np.min(points_N2, axis=0), np.max(points_N2, axis=0)])


def _strips(points_N2: NDArray[np.float64], width: float, dashed: bool) -> NDArray[np.float64]:
    """(S, 4, 2) [m]: the painted quadrilaterals of a line."""
    points = np.asarray(points_N2, np.float64)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    points = points[np.concatenate([[True], steps > 1e-6])]
    if len(points) < 2:
        return np.zeros((0, 4, 2))
    if dashed:
        arc = np.concatenate([[0.0], np.cumsum(steps[steps > 1e-6])])
        starts = np.arange(0.0, arc[-1], DASH_PERIOD)
        ends = np.minimum(starts + DASH, arc[-1])
        begin, end = (
            np.stack([np.interp(s, arc, points[:, axis]) for axis in (0, 1)], axis=-1) for s in (starts, ends)
        )
    else:
        begin, end = points[:-1], points[1:]
    along = end - begin
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    # OpenCV fills the outline's pixels too, which widens a strip by one of them.
    half = 0.5 * max(width - RESOLUTION / SUPERSAMPLING, 1e-3)
    side = np.stack([-along[:, 1], along[:, 0]], axis=-1) * half
    return np.stack([begin - side, end - side, end + side, begin + side], axis=1)


@functools.cache
def _grass_tile() -> NDArray[np.uint8]:
    """A tile away from any road; the same for all of them."""
    return _with_grain(np.tile(np.array(GRASS, np.uint8), (TILE_TEXELS, TILE_TEXELS, 1)))


def _with_grain(tile_YX4: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile with uneven colours: grass more, asphalt and paint less."""
    grass, asphalt = _grain()
    is_grass = cv2.inRange(tile_YX4[..., 3], GRASS[3] - 4, GRASS[3] + 4)
    grain = cv2.copyTo(grass, is_grass, asphalt.copy())
    return np.asarray(cv2.add(tile_YX4, grain, dtype=cv2.CV_8U), np.uint8)


@functools.cache
def _grain() -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """(TILE_TEXELS, TILE_TEXELS, 4) int8 for grass and for asphalt: fine grain and patches, no seams."""
    rng = np.random.default_rng(20)
    fine, patches = rng.standard_normal((2, TILE_TEXELS, TILE_TEXELS), dtype=np.float32)
    margin = 64
    smooth = cv2.GaussianBlur(np.pad(patches, margin, mode="wrap"), (0, 0), 14.0)
    smooth = smooth[margin:-margin, margin:-margin]
    noise_YX4 = (0.7 * (fine + smooth / smooth.std()))[..., None] * np.array([1.0, 1.0, 1.0, 0.0])
    grass, asphalt = (
        np.round(deviation * noise_YX4).astype(np.int8) for deviation in (GRASS_NOISE, ASPHALT_NOISE)
    )
    return grass, asphalt
