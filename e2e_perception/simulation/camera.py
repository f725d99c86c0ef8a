"""A pinhole camera: sky, ground by homography from a painted texture, then boxes from back to front.

Fog and rain fade what is far, rain also draws streaks; a low sun blooms around its place in the picture.

Whole-number pixel coordinates are pixel centres. Legend: N boxes, P facets, H W image.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.rig import Camera
from e2e_perception.core.samples import ImageSample
from e2e_perception.simulation.road_surface import GRASS, road_surface
from e2e_perception.simulation.scene import Conditions, Snapshot
from e2e_perception.simulation.solid_faces import Facets, facets
from e2e_perception.simulation.solid_geometry import box_entries, occlusion_order, segments
from e2e_perception.simulation.weather import WET_DARKENING, daylight, extinction, rain_streaks, wetness

NEAR = 0.2  # [m] along the optical axis; what is nearer is cut off
DETAIL_PX = 5.0  # [px] boxes that are lower than this in the image get no details
PIXEL_NOISE = 2.5  # standard deviation, of 255
# Seen from a car, a pixel covers many times more of the road along than across; without several samples per
# row the far road would be noise.
ROW_SAMPLES = 3
NO_LABEL = -1  # in the id buffer

# Stray light in a lens falls with the square of the angle to the source, as in the eye (Stiles and Holladay).
GLARE_ANGLE_DEG = 7.0  # from the sun, to where full glare saturates the picture
STREAK_BRIGHTNESS = 0.5  # of the horizon's: a drop shows the sky around it (Garg and Nayar, 2007)
RAIN_STEP = 4.0  # [mm/h] in which streaks are drawn once and kept

_FRACTION_BITS = 4
_NOISE_SHIFTS = 64
_SKY_STEPS = 256
_GLARE_SHARE = 4  # glare is smooth: it is computed for one in so many columns and rows


def render_camera(
    snapshot: Snapshot, camera: Camera, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> ImageSample:
    """What a camera sees, exposed in an instant.

    Args:
        snapshot: The world at the time of exposure.
        camera: Mounting and intrinsics.
        rng: Draws pixel noise.
        size: (width, height) [px] to render at, the intrinsics scaled along; the camera's own by default.
    Returns:
        The picture.
    """
    return render_camera_with_ids(snapshot, camera, rng, size)[0]


def render_camera_with_ids(
    snapshot: Snapshot, camera: Camera, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> tuple[ImageSample, NDArray[np.int32]]:
    """The same picture with the label at each pixel.

    Args:
        snapshot, camera, rng, size: As in `render_camera`.
    Returns:
        The picture; (H, W) int32 row of `snapshot.boxes`, `NO_LABEL` for sky, ground and clutter.
    """
    view = _View.of(snapshot, camera, size)
    # Clouds darken all that is drawn below.
    conditions = replace(snapshot.conditions, brightness=daylight(snapshot.conditions))
    snapshot = replace(snapshot, conditions=conditions)
    shapes = _visible_facets(snapshot, view)
    polygons = _project(shapes.corners_P43, view)
    image = _draw_sky(conditions, view)
    _draw_ground(image, snapshot, view)
    colors = _hazed(shapes, conditions, view).round().astype(np.int64).tolist()
    for polygon, color in zip(polygons, colors, strict=True):
        if polygon is not None:
            cv2.fillConvexPoly(image, polygon, color, cv2.LINE_AA, _FRACTION_BITS)
    if conditions.rain > 0.0:
        _add_streaks(image, conditions, view, rng)
    if conditions.glare > 0.0:
        _add_glare(image, snapshot, view)
    noise = _noise(view.height, view.width)
    row, column = rng.integers(0, _NOISE_SHIFTS, 2)
    noise = noise[row : row + view.height, column : column + view.width]
    cv2.add(image, noise, dst=image, dtype=cv2.CV_8U)
    return ImageSample(image), _draw_ids(shapes, polygons, view)


def render_ids(snapshot: Snapshot, camera: Camera, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """Only the labels, (H, W) int32 as in `render_camera_with_ids`."""
    view = _View.of(snapshot, camera, size)
    shapes = _visible_facets(snapshot, view)
    return _draw_ids(shapes, _project(shapes.corners_P43, view), view)


def count_label_pixels(
    snapshot: Snapshot, camera: Camera, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many pixels of each label are seen, and how many would be if nothing stood in between.

    Args:
        snapshot, camera, size: As in `render_camera`.
    Returns:
        (L,) and (L,) int64, one per row of `snapshot.boxes`; the first is nowhere greater than the second.
    """
    view = _View.of(snapshot, camera, size)
    shapes = _visible_facets(snapshot, view)
    polygons = _project(shapes.corners_P43, view)
    ids = _draw_ids(shapes, polygons, view)
    seen = np.bincount(ids[ids >= 0], minlength=len(snapshot.boxes))
    alone = np.zeros(len(snapshot.boxes), np.int64)
    mask = np.zeros((view.height, view.width), np.uint8)
    for label in np.unique(shapes.labels_P[shapes.labels_P >= 0]).tolist():
        mask[:] = 0
        for i in np.flatnonzero(shapes.solid_P & (shapes.labels_P == label)).tolist():
            polygon = polygons[i]
            if polygon is not None:
                cv2.fillConvexPoly(mask, polygon, 1, cv2.LINE_8, _FRACTION_BITS)
        alone[label] = cv2.countNonZero(mask)
    return seen, alone


@dataclass(frozen=True)
class _View:
    """A camera at a place in the world.

    Attributes:
        image_from_odom_34: (3, 4) float64, to homogeneous pixels; the third component is depth [m].
        position_3: (3,) float64 [m], odom frame.
        camera_from_odom: (3, 3) float64 rotation.
        rise_3: (3,) float64: its product with (column, row, 1) is how much the pixel's ray rises per metre of
            depth.
        inverse_intrinsics: (3, 3) float64.
        width, height: [px]
    """

    image_from_odom_34: NDArray[np.float64]
    position_3: NDArray[np.float64]
    camera_from_odom: NDArray[np.float64]
    rise_3: NDArray[np.float64]
    inverse_intrinsics: NDArray[np.float64]
    width: int
    height: int

    @staticmethod
    def of(snapshot: Snapshot, camera: Camera, size: tuple[int, int] | None) -> _View:
        width, height = size or (camera.width, camera.height)
        scale = np.array([width / camera.width, height / camera.height])
        intrinsics = camera.intrinsics
        intrinsics[:2] *= scale[:, None]
        intrinsics[:2, 2] += (
            0.5 * scale - 0.5
        )  # the picture's edges stay where they are, pixel centres do not
        odom_from_camera = snapshot.odom_from_base @ camera.base_from_sensor
        inverse = np.asarray(np.linalg.inv(intrinsics), np.float64)
        return _View(
            image_from_odom_34=intrinsics @ odom_from_camera.inverse().matrix[:3],
            position_3=odom_from_camera.translation,
            camera_from_odom=odom_from_camera.rotation.T,
            rise_3=odom_from_camera.rotation[2] @ inverse,
            inverse_intrinsics=inverse,
            width=width,
            height=height,
        )

    def homogeneous(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) homogeneous pixels of odom points (..., 3) [m]."""
        return np.asarray(points @ self.image_from_odom_34[:, :3].T + self.image_from_odom_34[:, 3])


def _draw_sky(conditions: Conditions, view: _View) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: sky everywhere, brighter towards the horizon."""
    a, b, c = view.rise_3
    rise_HW = (a * np.arange(view.width))[None] + (b * np.arange(view.height) + c)[:, None]
    step_HW = np.clip(rise_HW * _SKY_STEPS, 0, _SKY_STEPS - 1).astype(np.uint8)
    fade = (np.linspace(0.0, 1.0, _SKY_STEPS) ** 0.7)[:, None]
    zenith = 0.75 * conditions.brightness * np.array(conditions.sky, np.float64)
    table = _horizon_color(conditions) * (1.0 - fade) + zenith * fade
    return np.asarray(cv2.applyColorMap(step_HW, np.round(table).astype(np.uint8)[:, None]), np.uint8)


def _horizon_color(conditions: Conditions) -> NDArray[np.float64]:
    """(3,) 0..255: what everything fades to in haze."""
    sky = np.array(conditions.sky, np.float64)
    return np.asarray(conditions.brightness * np.minimum(0.7 * sky + 0.35 * sky.max(), 255.0))


def _draw_ground(image_HW3: NDArray[np.uint8], snapshot: Snapshot, view: _View) -> None:
    """Paint the ground plane below the horizon."""
    if view.position_3[2] <= 0.0:
        return  # seen from below, the ground hides nothing
    a, b, c = view.rise_3
    columns, rows = np.arange(view.width, dtype=np.float32), np.arange(view.height, dtype=np.float32)
    rise_HW = np.float32(a) * columns[None] + (np.float32(b) * rows + np.float32(c))[:, None]
    below_HW = rise_HW < -1e-4
    touched = np.flatnonzero(below_HW.any(axis=1))
    if len(touched) == 0:
        return
    first, last = int(touched[0]), int(touched[-1]) + 1
    below, rise = below_HW[first:last], rise_HW[first:last]

    texture = road_surface(snapshot.road).around(snapshot.odom_from_base.translation[:2])
    image_from_texel = view.image_from_odom_34[:, [0, 1, 3]] @ texture.odom_from_texel
    share = 1.0 / ROW_SAMPLES
    image_from_sample = np.array([[1.0, 0.0, 0.0], [0.0, share, first + 0.5 * share - 0.5], [0.0, 0.0, 1.0]])
    samples = cv2.warpPerspective(
        texture.rgb_HW3,
        np.linalg.inv(image_from_texel) @ image_from_sample,
        (view.width, (last - first) * ROW_SAMPLES),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderValue=GRASS[:3],
    )
    ground = cv2.resize(samples, (view.width, last - first), interpolation=cv2.INTER_AREA)

    across = np.float32(view.inverse_intrinsics[0, 0]) * columns + np.float32(view.inverse_intrinsics[0, 2])
    depth = np.float32(view.position_3[2]) / np.maximum(-rise, np.float32(1e-4))
    conditions = snapshot.conditions
    clear = np.exp(np.float32(-extinction(conditions)) * depth * np.sqrt(1.0 + np.square(across)))
    horizon = np.empty_like(ground)
    horizon[:] = np.round(_horizon_color(conditions))
    light = conditions.brightness * (1.0 - WET_DARKENING * wetness(conditions))
    lit = cv2.convertScaleAbs(ground, alpha=light)
    hazed = cv2.blendLinear(lit, horizon, clear, 1.0 - clear)
    cv2.copyTo(hazed, below.view(np.uint8), image_HW3[first:last])


def _visible_facets(snapshot: Snapshot, view: _View) -> Facets:
    """Facets of the boxes that reach into the image, back to front."""
    boxes = segments(snapshot.solids)
    homogeneous = view.homogeneous(boxes.corners_N83())
    inside = _reaches_image(homogeneous, view)
    boxes, homogeneous = boxes.select(inside), homogeneous[inside]
    low, high = _image_bounds(homogeneous, view)
    apart: NDArray[np.bool_] = np.asarray((high[:, None] < low[None]).any(axis=-1))
    order = occlusion_order(boxes, view.position_3, ~(apart | apart.T))
    detailed = (high[order] - low[order])[:, 1] >= DETAIL_PX
    return facets(snapshot, boxes.select(order), view.position_3, detailed)


def _reaches_image(homogeneous_N83: NDArray[np.float64], view: _View) -> NDArray[np.bool_]:
    """(N,) bool: not all corners are beyond one and the same side of the view frustum."""
    u, v, depth = np.moveaxis(homogeneous_N83, -1, 0)
    beyond: NDArray[np.bool_] = np.asarray((depth < NEAR).all(axis=1))
    for side in (u + depth, v + depth, view.width * depth - u, view.height * depth - v):
        beyond |= (side < 0.0).all(axis=1)
    return np.asarray(~beyond)


def _image_bounds(
    homogeneous_N83: NDArray[np.float64], view: _View
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2), (N, 2) [px]: image rectangles around boxes, the whole image for a box beside the camera."""
    depth = homogeneous_N83[..., 2]
    pixels = homogeneous_N83[..., :2] / np.maximum(depth, NEAR)[..., None]
    ahead = (depth >= NEAR).all(axis=1, keepdims=True)
    low = np.where(ahead, pixels.min(axis=1) - 1.0, -1.0)
    high = np.where(ahead, pixels.max(axis=1) + 1.0, np.array([view.width, view.height]))
    return low, high


def _project(corners_P43: NDArray[np.float64], view: _View) -> list[NDArray[np.int32] | None]:
    """Polygons in fixed-point pixels, cut at the near plane; None for those behind it."""
    homogeneous = view.homogeneous(corners_P43)
    depth = homogeneous[..., 2]
    ahead = (depth >= NEAR).all(axis=1)
    polygons: list[NDArray[np.int32] | None] = list(_fixed_point(homogeneous))
    for i in np.flatnonzero(~ahead):
        kept = _cut_at_near_plane(homogeneous[i])
        polygons[i] = _fixed_point(kept) if len(kept) >= 3 else None
    return polygons


def _fixed_point(homogeneous: NDArray[np.float64]) -> NDArray[np.int32]:
    pixels = homogeneous[..., :2] / np.maximum(homogeneous[..., 2:], 0.5 * NEAR)
    return np.asarray(np.round(pixels * (1 << _FRACTION_BITS)).astype(np.int32))


def _cut_at_near_plane(polygon_43: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, 3) part of a convex polygon at depth `NEAR` and more (Sutherland and Hodgman, 1974)."""
    kept = []
    for here, there in zip(polygon_43, polygon_43[[1, 2, 3, 0]], strict=True):
        if here[2] >= NEAR:
            kept.append(here)
        if (here[2] >= NEAR) != (there[2] >= NEAR):
            crossing = here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2]))
            crossing[2] = NEAR
            kept.append(crossing)
    return np.array(kept).reshape(-1, 3)


def _hazed(shapes: Facets, conditions: Conditions, view: _View) -> NDArray[np.float64]:
    """(P, 3) colours as seen through the air between the camera and each facet's middle."""
    distances = np.linalg.norm(shapes.corners_P43.mean(axis=1) - view.position_3, axis=1)
    clear = np.exp(-extinction(conditions) * distances)[:, None]
    return np.asarray(shapes.colors_P3 * clear + _horizon_color(conditions) * (1.0 - clear))


def _draw_ids(shapes: Facets, polygons: list[NDArray[np.int32] | None], view: _View) -> NDArray[np.int32]:
    ids = np.full((view.height, view.width), NO_LABEL, np.int32)
    for i in np.flatnonzero(shapes.solid_P).tolist():
        polygon = polygons[i]
        if polygon is not None:
            cv2.fillConvexPoly(ids, polygon, int(shapes.labels_P[i]), cv2.LINE_8, _FRACTION_BITS)
    return ids


def _add_streaks(
    image_HW3: NDArray[np.uint8], conditions: Conditions, view: _View, rng: np.random.Generator
) -> None:
    """Brighten the picture where drops fall during the exposure."""
    focal_px = 1.0 / view.inverse_intrinsics[1, 1]
    step = max(1, round(conditions.rain / RAIN_STEP))
    drawn = _streaks(view.height, view.width, round(focal_px), step)
    row, column, mirrored = rng.integers(0, _NOISE_SHIFTS, 3)
    drawn = drawn[row : row + view.height, column : column + view.width]
    if mirrored % 2:
        drawn = drawn[:, ::-1]
    light = STREAK_BRIGHTNESS * float(_horizon_color(conditions).mean()) / 255.0
    lit = cv2.convertScaleAbs(np.ascontiguousarray(drawn), alpha=light)
    cv2.add(image_HW3, cv2.merge([lit] * 3), dst=image_HW3)  # a grey sky lights the drops


@functools.lru_cache(maxsize=24)
def _streaks(height: int, width: int, focal_px: int, step: int) -> NDArray[np.uint8]:
    """(H + 64, W + 64) uint8: how much of a pixel drops cover; drawn once, shown through other windows."""
    rng = np.random.default_rng((8, step))
    shape = (height + _NOISE_SHIFTS, width + _NOISE_SHIFTS)
    streaks = rain_streaks(RAIN_STEP * step, focal_px, float(np.prod(shape)), rng)
    num = len(streaks.lengths_D)
    # A little aslant, as wind and the robot's own motion make it.
    along = np.stack([0.12 * rng.standard_normal(num), np.ones(num)], axis=-1) * streaks.lengths_D[:, None]
    starts = rng.uniform(0.0, 1.0, (num, 2)) * np.array(shape[::-1])
    ends_D22 = np.round(np.stack([starts, starts + along], axis=1) * (1 << _FRACTION_BITS)).astype(np.int32)
    covers = np.clip(255.0 * streaks.widths_D, 1, 255)
    drawn = np.zeros(shape, np.uint8)
    for i in np.argsort(covers).tolist():
        start, end = ends_D22[i].tolist()
        thickness = max(1, round(streaks.widths_D[i]))
        cv2.line(drawn, start, end, float(covers[i]), thickness, cv2.LINE_AA, _FRACTION_BITS)
    drawn.setflags(write=False)
    return drawn


def _add_glare(image_HW3: NDArray[np.uint8], snapshot: Snapshot, view: _View) -> None:
    """Add the sun's stray light, unless something stands before the sun or it is behind the camera."""
    azimuth, elevation = snapshot.conditions.sun
    level = np.cos(elevation)
    sun = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
    sun_camera = view.camera_from_odom @ sun
    if sun_camera[2] <= 0.0 or _hidden(sun, snapshot, view):
        return
    k = view.inverse_intrinsics
    columns = (np.arange(view.width // _GLARE_SHARE) + 0.5) * _GLARE_SHARE - 0.5
    rows = (np.arange(view.height // _GLARE_SHARE) + 0.5) * _GLARE_SHARE - 0.5
    x, y = (k[0, 0] * columns + k[0, 2])[None], (k[1, 1] * rows + k[1, 2])[:, None]
    cosine = (sun_camera[0] * x + sun_camera[1] * y + sun_camera[2]) / np.sqrt(1.0 + x * x + y * y)
    angle_deg = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    share = snapshot.conditions.glare * np.square(GLARE_ANGLE_DEG / np.maximum(angle_deg, 1e-3))
    veil = np.minimum(255.0 * share, 255.0).astype(np.uint8)
    veil = cv2.resize(veil, (view.width, view.height), interpolation=cv2.INTER_LINEAR)
    cv2.add(image_HW3, cv2.merge([veil] * 3), dst=image_HW3)


def _hidden(direction_3: NDArray[np.float64], snapshot: Snapshot, view: _View) -> bool:
    """Whether a solid stands in that direction (3,), odom axes."""
    boxes = segments(snapshot.solids).without_those_around(view.position_3)
    c, s = boxes.cosines_N, boxes.sines_N
    x, y, z = direction_3
    directions = np.stack([c * x + s * y, c * y - s * x, np.full(len(boxes), z)])
    entries, _ = box_entries(boxes.to_box_frames_N3(view.position_3).T, directions, boxes.halves_N3.T)
    return bool(np.isfinite(entries).any())


@functools.lru_cache(maxsize=8)
def _noise(height: int, width: int) -> NDArray[np.int8]:
    """(H + 64, W + 64, 3) int8: drawn once, shown each time through another window; drawing costs 1 ms."""
    rng = np.random.default_rng(7)
    shape = (height + _NOISE_SHIFTS, width + _NOISE_SHIFTS, 3)
    noise = (PIXEL_NOISE * rng.standard_normal(shape, dtype=np.float32)).round().astype(np.int8)
    noise.setflags(write=False)
    return noise
