"""What happens to pictures: light, weather, lenses, and mounts.

Every effect takes a clip's arrays, a strength in [0, 1] and a generator, and returns new arrays; strength 0
changes nothing. Depth is not known here, so nothing depends on it: blur is the same all over the picture, and
there is no fog, which the simulator renders instead.

Legend: T frames, N cameras, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Picture = NDArray[np.uint8]  # (H, W, 3)

DEFOCUS_RADIUS = 0.04  # of the picture's height
MOTION_LENGTH = 0.08  # of the picture's height
NUM_STREAKS = 55  # on a square as wide as the picture is high
NUM_DROPS = 10
RAIN_VEIL = 0.25  # contrast that rain takes
RAIN_GREY = 140.0
STREAK_BRIGHTNESS = 70.0
EXPOSURE_STOPS = 1.5
ENCODING_GAMMA = 2.2  # a stop doubles the light, pixels hold light ** (1 / 2.2)
GLARE_RADIUS = 0.25  # of the picture's height, where the bloom has half its strength
SUN_COLOR = (255.0, 248.0, 230.0)
READ_NOISE = 15.0  # of 255
SHOT_NOISE = 20.0  # of 255, at full brightness
NUM_BLOBS = 12
BLOB_RADIUS = 0.12  # of the picture's height
DIRT_OPACITY = 0.95
DIRT_COLOR = (58, 50, 40)
MOUNT_ANGLE = np.deg2rad(1.0)


def _changed(arrays: Arrays, cameras_N: NDArray[np.bool_], change: Callable[[Picture, int], Any]) -> Arrays:
    """Arrays with the pictures of some cameras replaced by `change(picture, camera)`."""
    images_TNHW3 = np.array(arrays["images"], order="C")  # a copy; OpenCV takes no mirrored views
    for n in np.flatnonzero(cameras_N).tolist():
        for picture in images_TNHW3[:, n]:
            picture[:] = change(picture, n)
    return {**arrays, "images": images_TNHW3}


def _all_cameras(arrays: Arrays) -> NDArray[np.bool_]:
    return np.ones(arrays["images"].shape[1], np.bool_)


def _some_cameras(arrays: Arrays, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) each with a chance of a half, at least one."""
    num_cameras = arrays["images"].shape[1]
    chosen_N: NDArray[np.bool_] = rng.random(num_cameras) < 0.5
    chosen_N[rng.integers(num_cameras)] = True
    return chosen_N


def _tone_curve(stops_3: NDArray[np.float64], gamma: float = 1.0, contrast: float = 1.0) -> NDArray[np.uint8]:
    """(1, 256, 3) what each grey level of each channel becomes.

    Args:
        stops_3: Exposure of red, green and blue [stops].
        gamma: Exponent on encoded values.
        contrast: Slope around middle grey.
    """
    level_256 = np.arange(256) / 255.0
    curve = level_256[:, None] ** gamma * 2.0 ** (stops_3 / ENCODING_GAMMA)
    curve = 0.5 + contrast * (curve - 0.5)
    return np.asarray(np.rint(255.0 * curve.clip(0.0, 1.0))[None], np.uint8)


# ---------------------------------------------------------------- light


def jittered(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Each camera's own small error of exposure, colour, gamma and contrast (domain randomisation).

    As Tobin et al. (2017), but for tone alone: geometry, texture and light are the simulator's to vary.
    """
    u_N6 = strength * rng.uniform(-1.0, 1.0, (arrays["images"].shape[1], 6))
    curves = [
        _tone_curve(0.3 * u[0] + 0.1 * u[1:4], float(np.exp(0.08 * u[4])), 1.0 + 0.06 * u[5]) for u in u_N6
    ]
    return _changed(arrays, _all_cameras(arrays), lambda picture, n: cv2.LUT(picture, curves[n]))


def other_light(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Another light for all cameras: exposure of up to 1.5 stops, colour temperature, gamma, contrast.

    Colour temperature is a gain of red against one of blue. Clipped highlights stay clipped, and lamps do not
    outshine a darkened scene as they do at night.
    """
    exposure, warmth, bend, slope = strength * rng.uniform(-1.0, 1.0, 4)
    stops_3 = EXPOSURE_STOPS * exposure + 0.5 * warmth * np.array([1.0, 0.0, -1.0])
    curve = _tone_curve(stops_3, float(np.exp(0.4 * bend)), 1.0 + 0.3 * slope)
    return _changed(arrays, _all_cameras(arrays), lambda picture, _: cv2.LUT(picture, curve))


def glaring(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """A low sun in the upper half of one camera's picture: light scattered in the lens is added.

    Far from the sun it falls off with the square of the angle (Holladay 1926), here of the distance in the
    picture. The sun keeps its place for the clip, and nothing ever stands before it.
    """
    num_cameras, height, width = arrays["images"].shape[1:4]
    camera = int(rng.integers(num_cameras))
    x, y = rng.uniform(0.0, width), rng.uniform(0.0, 0.5 * height)
    squared = (np.arange(width) - x) ** 2 + (np.arange(height)[:, None] - y) ** 2
    bloom_HW = strength / (1.0 + squared / (GLARE_RADIUS * height) ** 2)
    light = np.rint(bloom_HW[..., None] * np.array(SUN_COLOR)).astype(np.uint8)
    return _changed(arrays, np.arange(num_cameras) == camera, lambda picture, _: cv2.add(picture, light))


def noisy(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Noise of read-out and of photons, growing with brightness (Foi et al. 2008), on some cameras.

    White: denoising and compression, which would smear it, are left out.
    """
    variance_256 = READ_NOISE**2 + SHOT_NOISE**2 * np.arange(256) / 255.0
    deviation_256 = (strength * np.sqrt(variance_256)).astype(np.float32)

    def change(picture: Picture, _: int) -> Any:
        noise = rng.standard_normal(picture.shape, dtype=np.float32)
        noise *= deviation_256[picture]
        return cv2.add(picture, noise, dtype=cv2.CV_8U)

    return _changed(arrays, _some_cameras(arrays, rng), change)


# ---------------------------------------------------------------- lenses


def blurred(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Defocus (a disc) or motion (a line in a random direction) on some cameras, the same for the clip.

    True motion blur depends on depth and on where in the picture one looks; a line everywhere is what a
    shaking mount gives.
    """
    height = arrays["images"].shape[2]
    kernels = []
    for _ in range(arrays["images"].shape[1]):
        defocus, angle = rng.random() < 0.5, rng.uniform(0.0, np.pi)
        kernels.append(
            _disc(strength * DEFOCUS_RADIUS * height)
            if defocus
            else _line(strength * MOTION_LENGTH * height, angle)
        )
    return _changed(
        arrays, _some_cameras(arrays, rng), lambda picture, n: cv2.filter2D(picture, -1, kernels[n])
    )


def _disc(radius: float) -> NDArray[np.float32]:
    """Kernel of a disc with smooth edge [px]; a single pixel for radius 0."""
    reach = int(np.ceil(radius))
    offset = np.arange(-reach, reach + 1)
    distance = np.hypot(offset, offset[:, None])
    kernel = np.clip(radius + 0.5 - distance, 0.0, 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _line(length: float, angle: float) -> NDArray[np.float32]:
    """Kernel of a line through the middle [px, rad]; a single pixel for length 0."""
    reach = int(np.ceil(0.5 * length))
    along = np.linspace(-0.5, 0.5, 4 * reach + 1) * length
    columns = np.rint(along * np.cos(angle)).astype(int) + reach
    rows = np.rint(along * np.sin(angle)).astype(int) + reach
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (rows, columns), 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


def dirty(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Soft brown patches on some lenses, in the same places for the clip; as `dirt` of the simulator."""
    num_cameras, height, width = arrays["images"].shape[1:4]
    soft = 0.15 * BLOB_RADIUS * height
    covers = [
        _spots(height, width, NUM_BLOBS, BLOB_RADIUS, soft, rng) * np.float32(strength * DIRT_OPACITY)
        for _ in range(num_cameras)
    ]
    mud = np.full((height, width, 3), DIRT_COLOR, np.uint8)
    return _changed(
        arrays,
        _some_cameras(arrays, rng),
        lambda picture, n: cv2.blendLinear(picture, mud, 1.0 - covers[n], covers[n]),
    )


def _spots(
    height: int, width: int, number: int, radius: float, soft: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(H, W) 0 to 1: round spots, their mean radius a share of the height, edges of `soft` pixels."""
    mask_HW = np.zeros((height, width), np.float32)
    places = rng.random((number, 2)) * (width, height)
    radii = rng.uniform(0.4, 1.6, number) * radius * height
    for (x, y), size in zip(places.tolist(), radii.tolist(), strict=True):
        cv2.circle(mask_HW, (round(x), round(y)), max(round(size), 1), 1.0, cv2.FILLED)
    return np.asarray(cv2.GaussianBlur(mask_HW, (0, 0), max(soft, 0.3)), np.float32)


def rained_on(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """A grey veil, bright streaks, new in each frame (Garg and Nayar 2007), and drops that stay on lenses.

    What is behind a drop is seen out of focus; that it is also seen upside down is left out. Streaks are as
    long and bright everywhere, and the road is not wet.
    """
    num_cameras, height, width = arrays["images"].shape[1:4]
    drops = [
        _spots(height, width, rng.binomial(NUM_DROPS, strength), 0.05, 0.01 * height, rng)
        for _ in range(num_cameras)
    ]
    wind = rng.normal(0.0, 0.1)  # slope of all streaks

    def change(picture: Picture, n: int) -> Any:
        veiled = cv2.convertScaleAbs(
            picture, alpha=1.0 - strength * RAIN_VEIL, beta=strength * RAIN_VEIL * RAIN_GREY
        )
        if drops[n].any():
            small = cv2.resize(veiled, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
            defocused = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
            veiled = cv2.blendLinear(veiled, defocused, 1.0 - drops[n], drops[n])
        number = rng.poisson(strength * NUM_STREAKS * width / height)
        streaks = _streaks(height, width, number, wind, rng)
        return cv2.add(veiled, cv2.cvtColor(streaks, cv2.COLOR_GRAY2RGB))

    return _changed(arrays, _all_cameras(arrays), change)


def _streaks(height: int, width: int, number: int, wind: float, rng: np.random.Generator) -> Picture:
    """(H, W) brightness that streaks add."""
    top = rng.random((number, 2)) * (width, height)
    length = rng.uniform(0.05, 0.2, number) * height
    slope = wind + rng.normal(0.0, 0.03, number)
    bottom = top + np.stack([slope * length, length], -1)
    layer = np.zeros((height, width), np.uint8)
    lines = np.rint(np.stack([top, bottom], 1)).astype(np.int32)
    cv2.polylines(layer, list(lines), isClosed=False, color=STREAK_BRIGHTNESS)
    return np.asarray(cv2.blur(layer, (2, 3)), np.uint8)


# ---------------------------------------------------------------- data and mounts


def frozen(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Some cameras repeat a picture for `strength` of the clip's later frames, at a random time.

    Stamps go on, so that the projection is that of now: the robot moves, what it sees does not.
    """
    num_frames = len(arrays["images"])
    length = int(np.rint(strength * (num_frames - 1)))
    start = int(rng.integers(0, num_frames - length))
    frame_T = np.arange(num_frames)
    frame_T[start : start + length + 1] = start
    images = arrays["images"].copy()
    chosen_N = _some_cameras(arrays, rng)
    images[:, chosen_N] = arrays["images"][frame_T][:, chosen_N]
    return {**arrays, "images": images}


def turned_cameras(arrays: Arrays, strength: float, rng: np.random.Generator) -> Arrays:
    """Some cameras are turned by up to a degree about an axis through the lens, and nobody calibrated them.

    Pictures stay as they are and the projection is wrong, which is the same to the network. The axis is fixed
    in the base frame of each frame; a turn of the robot since the exposure, which the projection holds, is
    left out.
    """
    projection = arrays["image_from_base"].astype(np.float64)  # (T, N, 3, 4)
    num_cameras = projection.shape[1]
    chosen_N = _some_cameras(arrays, rng)
    axes_N3 = rng.standard_normal((num_cameras, 3))
    axes_N3 /= np.linalg.norm(axes_N3, axis=-1, keepdims=True)
    for n in np.flatnonzero(chosen_N).tolist():
        seen_T = arrays["camera_valid"][:, n] > 0.5  # else the projection is a placeholder
        linear, last = projection[seen_T, n, :, :3], projection[seen_T, n, :, 3]
        lens_T3 = -np.linalg.solve(linear, last[..., None])[..., 0]
        turn, _ = cv2.Rodrigues(strength * MOUNT_ANGLE * axes_N3[n])
        change = linear @ turn - linear
        projection[seen_T, n, :, :3] += change
        projection[seen_T, n, :, 3] -= (change @ lens_T3[..., None])[..., 0]  # the lens stays where it is
    return {**arrays, "image_from_base": projection.astype(arrays["image_from_base"].dtype)}
