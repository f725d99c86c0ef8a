"""A pinhole camera: ground by homography from a painted map, boxes back to front, haze and noise on top."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.rig import Camera
from e2e_perception.core.samples import ImageSample
from e2e_perception.simulation.scene import Marking, Road, Snapshot

NEAR = 0.4  # [m] anything nearer to the lens is cut off
TEXEL = 0.16  # [m] of the ground map
GROUND_AHEAD = 90.0  # [m] half side of the ground map
LIGHT = np.array([0.35, 0.5, 0.79])  # towards the sun, odom axes
GRASS = (92, 116, 70)
ASPHALT = (96, 97, 100)
# Corners of a unit box and its faces, counter-clockwise seen from outside.
_UNIT = np.array(
    [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], dtype=np.float64
)
_FACES = ((4, 6, 7, 5), (0, 1, 3, 2), (2, 3, 7, 6), (0, 4, 5, 1), (1, 5, 7, 3))  # front back left right top
_NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], dtype=np.float64)


def render_camera(
    snapshot: Snapshot, camera: Camera, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> ImageSample:
    """What the camera sees.

    Args:
        snapshot: The world.
        camera: Mount and intrinsics.
        rng: Of pixel noise.
        size: (width, height) to render at; the intrinsics are scaled along. None: the camera's own.
    Returns:
        The picture.
    """
    return render_camera_with_ids(snapshot, camera, rng, size)[0]


def render_camera_with_ids(
    snapshot: Snapshot, camera: Camera, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> tuple[ImageSample, NDArray[np.int32]]:
    """As `render_camera`, and which label is seen at each pixel.

    Returns:
        The picture, and (H, W) int32: row of `snapshot.boxes`, -1 for everything else.
    """
    width, height = size or (camera.width, camera.height)
    scale = np.array([width / camera.width, height / camera.height])
    k = camera.intrinsics.copy()
    # Pixel centres are whole numbers, so the image's corner at -0.5 stays where it is.
    k[:2, :2] *= scale[:, None]
    k[:2, 2] = (k[:2, 2] + 0.5) * scale - 0.5
    camera_from_odom = (snapshot.odom_from_base @ camera.base_from_sensor).inverse()
    conditions = snapshot.conditions
    sky = np.array(conditions.sky, np.float64) * conditions.brightness
    image = _background(snapshot, k, camera_from_odom.matrix, (width, height), sky)
    ids = np.full((height, width), -1, np.int32)
    _draw_solids(snapshot, k, camera_from_odom.matrix, image, ids, sky)
    noise = rng.integers(-5, 6, image.shape[:2], np.int16)
    noisy = np.clip(image.astype(np.int16) + noise[..., None], 0, 255).astype(np.uint8)
    return ImageSample(noisy), ids


def _background(
    snapshot: Snapshot,
    k: NDArray[np.float64],
    camera_from_odom: NDArray[np.float64],
    size: tuple[int, int],
    sky: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Sky and ground. The ground plane's points (x, y, 1) map to pixels by a homography."""
    width, height = size
    ground_map, odom_from_texel = ground_texture(snapshot)
    pixel_from_odom = k @ camera_from_odom[:3][:, [0, 1, 3]]
    pixel_from_texel = pixel_from_odom @ odom_from_texel
    ground = cv2.warpPerspective(
        ground_map, pixel_from_texel, (width, height), flags=cv2.INTER_LINEAR, borderValue=GRASS
    )
    # Distance to the ground along each ray decides haze; above the horizon is sky.
    rotation = camera_from_odom[:3, :3]
    direction = np.linalg.inv(k).T @ rotation[:, 2]  # dot with (column, row, 1) is the ray's rise
    columns = (np.arange(width) * direction[0]).astype(np.float32)
    rows = (np.arange(height) * direction[1] + direction[2]).astype(np.float32)
    rise = rows[:, None] + columns
    lens_height = float((-rotation.T @ camera_from_odom[:3, 3])[2])
    below = rise < -1e-3
    depth = lens_height / np.maximum(-rise, 1e-3)
    clear = np.where(below, np.exp(-(snapshot.conditions.haze + 0.004) * depth), 0.0).astype(np.float32)
    above = np.where(below, 1.0, 1.0 - 0.35 * np.clip(rise, 0.0, 1.0)).astype(np.float32)
    far = ((1.0 - clear) * above)[..., None] * sky.astype(np.float32)
    lit = ground * (clear * np.float32(snapshot.conditions.brightness))[..., None]
    return (lit + far).astype(np.uint8)


_texture_cache: dict[tuple[int, int, int], tuple[Road, NDArray[np.uint8]]] = {}


def ground_texture(snapshot: Snapshot) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A painted map of the ground around the robot.

    Tiles are aligned to 40 m of the world and kept, so that cameras and frames share them.

    Returns:
        (S, S, 3) uint8, and the (3, 3) matrix from homogeneous texel (column, row, 1) to odom (x, y, 1).
    """
    position = snapshot.odom_from_base.translation
    tile = (round(position[0] / 40.0), round(position[1] / 40.0))
    corner = np.array(tile) * 40.0 - GROUND_AHEAD - 20.0
    side = int(2 * (GROUND_AHEAD + 20.0) / TEXEL)
    odom_from_texel = np.array([[TEXEL, 0.0, corner[0]], [0.0, TEXEL, corner[1]], [0.0, 0.0, 1.0]])
    key = (id(snapshot.road), *tile)
    cached = _texture_cache.get(key)
    if cached is not None and cached[0] is snapshot.road:
        return cached[1], odom_from_texel
    if len(_texture_cache) > 6:
        _texture_cache.pop(next(iter(_texture_cache)))
    texture = _paint(snapshot.road, corner, side)
    _texture_cache[key] = (snapshot.road, texture)
    return texture, odom_from_texel


def _paint(road: Road, corner: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    def texels(points: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.round((points - corner) / TEXEL * 16.0).astype(np.int32)[:, None, :]

    # Seeded by place: the same metre of road always has the same grain.
    rng = np.random.default_rng((int(abs(corner[0])), int(abs(corner[1]))))
    texture = np.empty((side, side, 3), np.uint8)
    texture[:] = GRASS
    for polygon in road.drivable:
        cv2.fillPoly(texture, [texels(polygon)], ASPHALT, shift=4)
    for line in road.markings:
        for piece in dashes(line):
            thickness = max(1, round(line.width / TEXEL))
            cv2.polylines(
                texture, [texels(piece)], False, line.color, thickness=thickness, lineType=cv2.LINE_AA, shift=4
            )
    coarse = rng.integers(-14, 15, (side // 4 + 1, side // 4 + 1), np.int8).astype(np.float32)
    grain = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.int16)
    painted: NDArray[np.uint8] = np.clip(texture.astype(np.int16) + grain[..., None], 0, 255).astype(np.uint8)
    return painted


def dashes(line: Marking) -> list[NDArray[np.float64]]:
    """The painted pieces of a line: itself if solid, 3 m of paint and 6 m of gap if dashed."""
    if line.style == "solid":
        return [line.points_N2]
    steps = np.linalg.norm(np.diff(line.points_N2, axis=0), axis=1)
    s = np.concatenate([[0.0], np.cumsum(steps)])
    pieces = []
    for start in np.arange(0.0, s[-1], 9.0):
        at = np.linspace(start, min(start + 3.0, s[-1]), 4)
        pieces.append(
            np.column_stack([np.interp(at, s, line.points_N2[:, 0]), np.interp(at, s, line.points_N2[:, 1])])
        )
    return pieces


def _draw_solids(
    snapshot: Snapshot,
    k: NDArray[np.float64],
    camera_from_odom: NDArray[np.float64],
    image: NDArray[np.uint8],
    ids: NDArray[np.int32],
    sky: NDArray[np.float64],
) -> None:
    solids = snapshot.solids
    if len(solids) == 0:
        return
    c, s = np.cos(solids.yaws_N), np.sin(solids.yaws_N)
    zero, one = np.zeros_like(c), np.ones_like(c)
    odom_from_box = np.stack([np.stack([c, -s, zero], -1), np.stack([s, c, zero], -1), np.stack([zero, zero, one], -1)], 1)
    corners_N83 = np.einsum("nij,nkj->nki", odom_from_box, _UNIT[None] * solids.sizes_N3[:, None])
    corners_N83 = corners_N83 + solids.centers_N3[:, None]
    rotation, translation = camera_from_odom[:3, :3], camera_from_odom[:3, 3]
    seen_N83 = corners_N83 @ rotation.T + translation
    lens = -rotation.T @ translation
    normals_N53 = np.einsum("nij,fj->nfi", odom_from_box, _NORMALS)
    visible = (seen_N83[..., 2].max(1) > NEAR) & (seen_N83[..., 2].min(1) < 160.0)
    # Boxes wholly ahead of the lens and outside the picture cost nothing more.
    ahead = seen_N83[..., 2].min(1) > NEAR
    projected = seen_N83 @ k.T
    pixels = projected[..., :2] / np.where(ahead[:, None, None], projected[..., 2:], 1.0)
    height, width = ids.shape
    outside = (pixels.max(1) < 0.0).any(1) | (pixels.min(1) > (width, height)).any(1)
    visible &= ~(ahead & outside)
    # Nearest corner first would be wrong for long walls; the nearest point of the footprint is right.
    nearest = np.linalg.norm(_nearest_point(lens[:2], solids.centers_N3[:, :2], solids.sizes_N3, solids.yaws_N), axis=1)
    brightness = snapshot.conditions.brightness
    for i in np.argsort(-nearest):
        if not visible[i]:
            continue
        depth = max(NEAR, float(nearest[i]))
        clear = float(np.exp(-(snapshot.conditions.haze + 0.002) * depth))
        base = solids.colors_N3[i].astype(np.float64)
        is_vehicle = solids.labels_N[i] >= 0 and solids.sizes_N3[i, 0] > 2.5
        for face, normal in zip(_FACES, normals_N53[i], strict=True):
            centre = corners_N83[i, list(face)].mean(0)
            if normal @ (lens - centre) <= 0.0:
                continue
            shade = brightness * (0.45 + 0.55 * max(0.0, float(normal @ LIGHT)))
            color = base * shade * clear + sky * (1.0 - clear)
            _fill(seen_N83[i, list(face)], k, image, ids, color, int(solids.labels_N[i]))
            if is_vehicle and normal[2] < 0.5:
                # A dark band of windows on the upper half of each side, so that cars look like cars.
                band = _band(seen_N83[i, list(face)], corners_N83[i, list(face), 2])
                glass = 30.0 * brightness * clear + sky * (1.0 - clear)
                _fill(band, k, image, ids, glass, int(solids.labels_N[i]))


def _nearest_point(
    point_2: NDArray[np.float64], centers_N2: NDArray[np.float64], sizes_N3: NDArray[np.float64], yaws_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Vector in box axes from a point to the nearest point of each footprint (N, 2)."""
    gap = point_2 - centers_N2
    c, s = np.cos(yaws_N), np.sin(yaws_N)
    local = np.stack([c * gap[:, 0] + s * gap[:, 1], c * gap[:, 1] - s * gap[:, 0]], -1)
    half = sizes_N3[:, :2] / 2.0
    return local - np.clip(local, -half, half)


def _band(quad_43: NDArray[np.float64], heights_4: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a side between 55 % and 88 % of its height, inset by 8 % at both ends."""
    order = np.argsort(heights_4, kind="stable")
    low, high = quad_43[order[:2]], quad_43[order[2:]]
    # Pair each bottom corner with the top corner above it.
    if np.linalg.norm(low[0] - high[0]) > np.linalg.norm(low[0] - high[1]):
        high = high[::-1]
    bottom, top = low + 0.55 * (high - low), low + 0.88 * (high - low)

    def inset(edge: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([edge[0] + 0.08 * (edge[1] - edge[0]), edge[1] + 0.08 * (edge[0] - edge[1])])

    return np.concatenate([inset(bottom), inset(top)[::-1]])


def _fill(
    quad_N3: NDArray[np.float64],
    k: NDArray[np.float64],
    image: NDArray[np.uint8],
    ids: NDArray[np.int32],
    color: NDArray[np.float64],
    label: int,
) -> None:
    """Fill a convex polygon given in the camera frame."""
    if quad_N3[:, 2].min() < NEAR:
        quad_N3 = _cut(quad_N3)
        if len(quad_N3) < 3:
            return
    points = quad_N3 @ k.T
    pixels = points[:, :2] / points[:, 2:]
    height, width = ids.shape
    if (
        pixels[:, 0].max() < 0
        or pixels[:, 0].min() > width
        or pixels[:, 1].max() < 0
        or pixels[:, 1].min() > height
    ):
        return
    # Fixed-point coordinates overflow far outside the picture.
    polygon = np.round(np.clip(pixels, -4000, 4000) * 16.0).astype(np.int32)[:, None]
    cv2.fillConvexPoly(image, polygon, tuple(float(v) for v in color), shift=4)
    cv2.fillConvexPoly(ids, polygon, label, shift=4)


def _cut(polygon_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a convex polygon beyond the near plane (Sutherland & Hodgman 1974)."""
    kept: list[NDArray[np.float64]] = []
    for a, b in zip(polygon_N3, np.concatenate([polygon_N3[1:], polygon_N3[:1]]), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept).reshape(-1, 3)
