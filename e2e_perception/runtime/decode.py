"""From messages to arrays: pictures to RGB, point clouds to named float32 columns.

Messages are told apart by their fields, so rclpy's, rosbags' and hand-made ones are all welcome. Whatever is
wrong with one is an `InputError` that says what; nothing is decoded into something that merely looks right.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.samples import ImageSample, PointsSample

Rgb = NDArray[np.uint8]
# Turns a (repacked) sensor_msgs/Image into a (H, W, 3) uint8 BGR picture; on the robot, cv_bridge.
ConvertImage = Callable[[Any], NDArray[np.uint8]]
# Raises an InputError if a picture of (width, height) [px] is not what was expected.
CheckSize = Callable[[tuple[int, int]], None]

# ------------------------------------------------------------------ pictures

# Encodings decoded here: bytes per sample, samples per pixel, OpenCV's name of the way to RGB. OpenCV names
# a Bayer pattern by its second row (pixels (1, 1) and (1, 2)), ROS by its first, hence the apparent swap.
_COLOR_CODES: dict[str, tuple[int, int | None]] = {
    "rgb": (3, None),
    "bgr": (3, cv2.COLOR_BGR2RGB),
    "rgba": (4, cv2.COLOR_RGBA2RGB),
    "bgra": (4, cv2.COLOR_BGRA2RGB),
    "mono": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg": (1, cv2.COLOR_BayerGB2RGB),
}
_DIRECT_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    **{f"{name}8": (1, channels, code) for name, (channels, code) in _COLOR_CODES.items()},
    **{f"{name}16": (2, channels, code) for name, (channels, code) in _COLOR_CODES.items()},
    # Two names each: until Humble and since Iron.
    **dict.fromkeys(("yuv422", "uyvy"), (1, 2, cv2.COLOR_YUV2RGB_UYVY)),
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), (1, 2, cv2.COLOR_YUV2RGB_YUY2)),
}
_TYPE_LAYOUT = re.compile(r"(8|16|32|64)[USF]C(\d*)")
LARGEST_PICTURE = 1 << 26  # [px] that a compressed picture may declare; no camera of a robot has as many
_REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclass(frozen=True)
class DecodedImage:
    """A picture, perhaps decoded at a fraction of its size.

    Attributes:
        rgb_HW3: (H, W, 3) uint8; may share memory with the message, do not write to it.
        full_size: (width, height) [px] of the picture as it was sent.
        reduction: 1, 2, 4 or 8: pixel (u, v) of `rgb_HW3` covers full-size pixels
            [reduction u, reduction (u + 1)); the last column or row may be partly beyond the picture.
    """

    rgb_HW3: Rgb
    full_size: tuple[int, int]
    reduction: int


@dataclass(frozen=True)
class RepackedImage:
    """A sensor_msgs/Image without row padding and in native byte order; what cv_bridge can read.

    Attributes:
        width, height: [px]
        encoding: As in the message.
        step: Bytes per row, now exactly the width of a row.
        is_bigendian: Byte order of this machine.
        data: (height * step,) uint8.
    """

    width: int
    height: int
    encoding: str
    step: int
    is_bigendian: int
    data: NDArray[np.uint8]


def decode_image(
    payload: Any,
    *,
    convert: ConvertImage | None = None,
    target_size: tuple[int, int] | None = None,
) -> Rgb:
    """Decode a picture to RGB.

    Args:
        payload: `ImageSample`, sensor_msgs/Image or sensor_msgs/CompressedImage (JPEG or PNG).
        convert: Decodes raw encodings other than rgb, bgr, rgba, bgra, mono and bayer_* of 8 or 16 bits
            and packed YUV 4:2:2; on the robot, cv_bridge.
        target_size: (width, height) [px] to which the caller will scale the whole picture. A JPEG may then
            come back reduced by 2, 4 or 8, never below this size: libjpeg scales while decoding.
    Returns:
        (H, W, 3) uint8 RGB.
    Raises:
        InputError: If the message is of another type, damaged, its sizes contradict its data, or a compressed
            picture declares more than `LARGEST_PICTURE` pixels.
    """
    return decode_scaled_image(payload, convert=convert, target_size=target_size).rgb_HW3


def decode_scaled_image(
    payload: Any,
    *,
    convert: ConvertImage | None = None,
    target_size: tuple[int, int] | None = None,
    check_size: CheckSize | None = None,
) -> DecodedImage:
    """As `decode_image`, and says by how much the picture was reduced.

    Args:
        payload, convert, target_size: See there.
        check_size: Given (width, height) [px] as sent, before anything is decoded; raises if it is wrong.
    Raises:
        InputError: As there.
    """
    check = check_size or _any_size
    if isinstance(payload, ImageSample):
        rgb = np.asarray(payload.rgb_HW3)
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise InputError(f"image sample is {rgb.dtype}{list(rgb.shape)}, expected uint8[H, W, 3]")
        check((rgb.shape[1], rgb.shape[0]))
        return DecodedImage(rgb, (rgb.shape[1], rgb.shape[0]), 1)
    if hasattr(payload, "encoding") and hasattr(payload, "step"):
        check((int(payload.width), int(payload.height)))
        rgb = _decode_raw(payload, convert)
        return DecodedImage(rgb, (rgb.shape[1], rgb.shape[0]), 1)
    if hasattr(payload, "format") and hasattr(payload, "data"):
        return _decode_compressed(payload, target_size, check)
    raise InputError(
        f"a camera sent a {type(payload).__name__}; expected sensor_msgs/Image or sensor_msgs/CompressedImage"
    )


def repacked_image(message: Any) -> Any:
    """Remove row padding and foreign byte order, which cv_bridge ignores or cannot read.

    Args:
        message: sensor_msgs/Image of any encoding with a fixed number of bytes per pixel.
    Returns:
        The message itself if there is nothing to remove, else a `RepackedImage` with the same pixels.
    Raises:
        InputError: If the encoding is unknown or sizes contradict the data.
    """
    sample_bytes, channels = _layout(message.encoding)
    rows = _rows(message, sample_bytes * channels)
    swapped = bool(message.is_bigendian) != (sys.byteorder == "big") and sample_bytes > 1
    if rows.flags.c_contiguous and not swapped:
        return message
    packed = np.ascontiguousarray(rows).reshape(-1)
    if swapped:
        packed = packed.reshape(-1, sample_bytes)[:, ::-1].reshape(-1)
    return RepackedImage(
        width=int(message.width),
        height=int(message.height),
        encoding=message.encoding,
        step=rows.shape[1],
        is_bigendian=int(sys.byteorder == "big"),
        data=packed,
    )


def _decode_raw(message: Any, convert: ConvertImage | None) -> Rgb:
    encoding = str(message.encoding)
    if encoding in _DIRECT_ENCODINGS:
        sample_bytes, channels, to_rgb = _DIRECT_ENCODINGS[encoding]
        rows = _rows(message, sample_bytes * channels)
        if (encoding.startswith("bayer") and min(message.width, message.height) < 2) or (
            encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") and message.width % 2
        ):
            raise InputError(f"{encoding} image of {message.width}x{message.height} has a broken last block")
        # Views only: padding stays where it is, between the rows of a strided array.
        samples: NDArray[Any] = rows.view(f"{'>' if message.is_bigendian else '<'}u{sample_bytes}")
        pixels = samples.reshape(len(rows), -1, channels)
        if sample_bytes == 2:  # full scale to full scale, as cv_bridge does
            pixels = cv2.convertScaleAbs(pixels.astype(np.uint16), alpha=1.0 / 257.0).reshape(pixels.shape)
        if to_rgb is None:
            return np.ascontiguousarray(pixels)
        return np.asarray(cv2.cvtColor(pixels, to_rgb), np.uint8)
    if convert is None:
        raise InputError(
            f"image encoding {encoding!r} needs cv_bridge, which is not used here; "
            f"without it: {', '.join(_DIRECT_ENCODINGS)}"
        )
    try:
        bgr = np.asarray(convert(repacked_image(message)))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, cv2.error) as error:
        # cv_bridge's own error is a TypeError; its port on PyPI raises a KeyError.
        raise InputError(f"image encoding {encoding!r} cannot be converted: {error}") from error
    expected = (int(message.height), int(message.width), 3)
    if bgr.shape != expected or bgr.dtype != np.uint8:
        raise InputError(
            f"image encoding {encoding!r} was converted to {bgr.dtype}{list(bgr.shape)}, "
            f"expected uint8{list(expected)}"
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _layout(encoding: str) -> tuple[int, int]:
    """Bytes per sample and samples per pixel."""
    if encoding in _DIRECT_ENCODINGS:
        sample_bytes, channels, _ = _DIRECT_ENCODINGS[encoding]
        return sample_bytes, channels
    match = _TYPE_LAYOUT.fullmatch(encoding)
    if match is None:
        raise InputError(f"unknown image encoding {encoding!r}; see sensor_msgs/image_encodings.hpp")
    return int(match[1]) // 8, int(match[2] or 1)


def _rows(message: Any, bytes_per_pixel: int) -> NDArray[np.uint8]:
    """(height, bytes without padding) view of a raw image, after checking its sizes."""
    data = _byte_array(message.data, "image")
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * bytes_per_pixel
    if height < 1 or width < 1:
        raise InputError(f"image is {width}x{height}; expected at least one pixel")
    if step < row:
        raise InputError(
            f"image rows of {step} bytes (step) cannot hold {width} pixels of {message.encoding}, "
            f"which take {row}"
        )
    if len(data) != step * height:
        raise InputError(
            f"image has {len(data)} bytes, expected {step * height}: {height} rows of {step} bytes (step)"
        )
    return data.reshape(height, step)[:, :row]


def _decode_compressed(message: Any, target_size: tuple[int, int] | None, check: CheckSize) -> DecodedImage:
    data = _byte_array(message.data, "compressed image")
    # By content, not by `format`: drivers disagree on how to write that one.
    start = data[:8].tobytes()
    if start.startswith(b"\xff\xd8\xff"):
        full_size = _checked_jpeg_size(data)
        reduction = _reduction(full_size, target_size)
    elif start == b"\x89PNG\r\n\x1a\n":
        full_size = _checked_png_size(data)
        reduction = 1
    else:
        raise InputError(
            f"compressed image (format {message.format!r}, {len(data)} bytes) starts with "
            f"{start[:4].hex(' ') or 'nothing'}; expected JPEG or PNG"
        )
    # Before anything is decoded: a few kilobytes can declare a picture of gigabytes.
    check(full_size)
    if full_size[0] * full_size[1] > LARGEST_PICTURE:
        raise InputError(
            f"compressed image ({len(data)} bytes) declares {full_size[0]}x{full_size[1]} pixels, expected "
            f"at most {LARGEST_PICTURE}; it is corrupt, or no camera sent it"
        )
    try:
        # A camera's calibration belongs to the pixels as sent; an EXIF rotation must not turn them.
        bgr = cv2.imdecode(data, _REDUCED_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise InputError(f"compressed image cannot be decoded: {error}") from error
    expected = (-(-full_size[1] // reduction), -(-full_size[0] // reduction), 3)
    if bgr is None or bgr.shape != expected:
        got = "nothing" if bgr is None else f"shape {bgr.shape}"
        raise InputError(
            f"compressed image (format {message.format!r}, {len(data)} bytes) is corrupt: "
            f"decoding gave {got}, expected {expected}"
        )
    return DecodedImage(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), full_size, reduction)


def _any_size(size: tuple[int, int]) -> None:
    """What nobody has anything against."""


def _reduction(full_size: tuple[int, int], target_size: tuple[int, int] | None) -> int:
    if target_size is None:
        return 1
    fits = [r for r in (8, 4, 2) if full_size[0] >= r * target_size[0] and full_size[1] >= r * target_size[1]]
    return fits[0] if fits else 1


def _checked_jpeg_size(data: NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) from the header; raises where libjpeg would fill in gray and carry on.

    Seen here: a missing end, and bytes in the compressed scan that no encoder writes. Damage that leaves a
    valid bit stream cannot be seen, by libjpeg neither.
    """
    raw = data.tobytes()
    size: tuple[int, int] | None = None
    position = 2
    while True:  # segments: FF, marker, length, content
        if position + 4 > len(raw) or raw[position] != 0xFF:
            raise InputError(f"JPEG of {len(raw)} bytes is corrupt: broken header at byte {position}")
        marker = raw[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", raw, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            if position + 9 > len(raw):
                raise InputError(f"JPEG of {len(raw)} bytes is truncated in its header")
            height, width = struct.unpack_from(">HH", raw, position + 5)
            size = (width, height)
        position += 2 + length
        if marker == 0xDA:  # start of scan: compressed data follow
            break
    if size is None or 0 in size:
        raise InputError(f"JPEG of {len(raw)} bytes is corrupt: its header gives no size")
    end = raw.find(b"\xff\xd9", position)
    if end < 0:
        raise InputError(
            f"JPEG of {len(raw)} bytes is truncated: it has no end marker (FF D9); "
            "check the driver's and the network's largest message size"
        )
    scan = data[position : end + 1]
    after_ff = scan[1:][scan[:-1] == 0xFF]
    # Stuffing, restarts, tables and scans of a progressive picture, comments: all else is damage.
    if not _LEGAL_AFTER_FF[after_ff].all():
        raise InputError(f"JPEG of {len(raw)} bytes is corrupt: its compressed data hold an illegal marker")
    return size


_LEGAL_AFTER_FF = np.zeros(256, np.bool_)
_LEGAL_AFTER_FF[[0x00, 0xFF, 0xC4, 0xCC, 0xFE, *range(0xD0, 0xF0)]] = True


def _checked_png_size(data: NDArray[np.uint8]) -> tuple[int, int]:
    if len(data) < 33 or data[-12:].tobytes()[4:8] != b"IEND":
        raise InputError(f"PNG of {len(data)} bytes is truncated: it does not end in an IEND chunk")
    width, height = struct.unpack_from(">II", data[16:24].tobytes())
    return width, height


def _byte_array(data: Any, what: str) -> NDArray[np.uint8]:
    """(n,) uint8 view of rclpy's array.array, rosbags' array, bytes or a memoryview."""
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            raise InputError(f"{what} data are {data.dtype}, expected uint8")
        return data.reshape(-1)
    try:
        view = memoryview(data).cast("B")
    except TypeError as error:
        raise InputError(f"{what} data are a {type(data).__name__}, expected bytes") from error
    return np.frombuffer(view, np.uint8) if len(view) else np.empty(0, np.uint8)


# ------------------------------------------------------------------ points

_POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
# What drivers call a quantity, ours first; compared without regard to case.
_POINT_ALIASES: dict[str, tuple[str, ...]] = {
    "x": ("x",),
    "y": ("y",),
    "z": ("z",),
    "intensity": ("intensity", "i", "reflectivity", "reflectance"),
    "velocity": (
        "velocity",
        "doppler",
        "doppler_velocity",
        "radial_speed",
        "radial_velocity",
        "range_rate",
        "v_r",
        "vr",
        "v_radial",
    ),
    "rcs": ("rcs", "radar_cross_section", "power", "amplitude"),
}
_POSITION = ("x", "y", "z")


def decode_points(payload: Any) -> dict[str, NDArray[np.float32]]:
    """Decode a lidar or radar cloud to named columns.

    Points whose position (or Doppler velocity) is not finite are dropped; an intensity or RCS that is not
    finite becomes 0. Intensity is brought to [0, 1]: integers, and floats of which any in the cloud exceeds
    1, are on the usual scale of 0..255 and are divided by it; what is still above 1 is clipped.

    Args:
        payload: `PointsSample`, or sensor_msgs/PointCloud2 with any field order, types, padding and byte
            order, organised or not.
    Returns:
        Arrays (N,) float32: `x`, `y`, `z` [m] in the sensor's frame, `intensity` [0..1] (zeros if the cloud
        has none), and, where the cloud has them, `velocity` [m/s] and `rcs` [dBsm or the driver's unit].
        They may share memory with the message: do not write to them. N may be 0.
    Raises:
        InputError: If the message is of another type, lacks x, y or z, or its sizes contradict its data.
    """
    if isinstance(payload, PointsSample):
        columns: dict[str, NDArray[Any]] = {
            name: np.asarray(column) for name, column in payload.fields.items() if name in _POINT_ALIASES
        }
        lengths = {name: column.shape for name, column in columns.items()}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise InputError(f"point fields differ in shape: {lengths}; expected one (N,) for all")
        present = list(payload.fields)
    elif hasattr(payload, "fields") and hasattr(payload, "point_step"):
        columns = _cloud_columns(payload)
        present = [str(field.name) for field in payload.fields]
    else:
        raise InputError(
            f"a lidar or radar sent a {type(payload).__name__}; expected sensor_msgs/PointCloud2"
        )
    absent = [name for name in _POSITION if name not in columns]
    if absent:
        raise InputError(
            f"point cloud has no field {', '.join(absent)}; its fields are {', '.join(present) or 'none'}"
        )
    return _cleaned(columns)


def _cloud_columns(message: Any) -> dict[str, NDArray[Any]]:
    """(N,) views of the known fields in their own types."""
    data = _byte_array(message.data, "point cloud")
    height, width = int(message.height), int(message.width)
    point_step, row_step = int(message.point_step), int(message.row_step)
    size = f"{width}x{height} points of {point_step} bytes (point_step) in rows of {row_step} (row_step)"
    if height * width == 0:
        if len(data):
            raise InputError(f"point cloud has {len(data)} bytes but declares {size}")
    elif point_step < 1 or row_step < width * point_step:
        raise InputError(f"point cloud declares {size}: a row does not hold its points")
    elif len(data) != height * row_step:
        raise InputError(f"point cloud has {len(data)} bytes, expected {height * row_step}: {size}")
    order = ">" if message.is_bigendian else "<"
    by_name = {str(field.name).lower(): field for field in reversed(list(message.fields))}
    columns: dict[str, NDArray[Any]] = {}
    for name, aliases in _POINT_ALIASES.items():
        alias = next((alias for alias in aliases if alias in by_name), None)
        if alias is None:
            continue
        field = by_name[alias]
        if int(field.datatype) not in _POINT_TYPES:
            raise InputError(
                f"point field {field.name!r} has datatype {field.datatype}, expected 1 (INT8) to 8 (FLOAT64)"
            )
        dtype = np.dtype(order + _POINT_TYPES[int(field.datatype)])
        offset = int(field.offset)
        if height * width == 0:
            columns[name] = np.empty(0, dtype)
            continue
        if offset + dtype.itemsize > point_step:
            raise InputError(
                f"point field {field.name!r} at bytes {offset}..{offset + dtype.itemsize} lies outside "
                f"a point of {point_step} bytes (point_step)"
            )
        # A view with two strides knows both kinds of padding; only an organised cloud with padded rows
        # has to be copied to become one column.
        grid: NDArray[Any] = np.ndarray((height, width), dtype, data, offset, (row_step, point_step))
        columns[name] = grid.reshape(-1)
    return columns


def _cleaned(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    if "intensity" in columns:
        columns["intensity"] = _unit_intensity(columns["intensity"])
    with np.errstate(over="ignore", invalid="ignore"):  # a double beyond float32 becomes inf and goes
        points: dict[str, NDArray[np.float32]] = {
            name: column.astype(np.float32, copy=False) for name, column in columns.items()
        }
        required = [name for name in (*_POSITION, "velocity") if name in points]
        # A sum is finite only if all of its terms are, and costs a fraction of looking at each; an
        # overflowing sum merely takes the careful path.
        if not all(np.isfinite(points[name].sum()) for name in required):
            finite = np.logical_and.reduce([np.isfinite(points[name]) for name in required])
            keep = np.flatnonzero(finite)
            points = {name: column.take(keep) for name, column in points.items()}
        if "rcs" in points and not np.isfinite(points["rcs"].sum()):
            points["rcs"] = np.where(np.isfinite(points["rcs"]), points["rcs"], np.float32(0.0))
    if "intensity" not in points:
        points["intensity"] = np.zeros(len(points["x"]), np.float32)
    return points


def _unit_intensity(raw: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        intensity: NDArray[np.float32] = raw.astype(np.float32, copy=False)
        if not np.isfinite(intensity.sum()):
            intensity = np.where(np.isfinite(intensity), intensity, np.float32(0.0))
    if not len(intensity):
        return intensity
    if np.issubdtype(raw.dtype, np.integer) or intensity.max() > 1.0:
        intensity = intensity * np.float32(1.0 / 255.0)
    if intensity.max() > 1.0 or intensity.min() < 0.0:
        intensity = np.clip(intensity, 0.0, 1.0)
    return intensity
