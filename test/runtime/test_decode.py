from __future__ import annotations

import array
import contextlib
import struct
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.errors import InputError
from e2e_perception.core.samples import ImageSample, PointsSample
from e2e_perception.runtime.decode import (
    decode_image,
    decode_points,
    decode_scaled_image,
    repacked_image,
)

RNG = np.random.default_rng(7)
PICTURE = cv2.GaussianBlur(RNG.integers(0, 256, (40, 56, 3), np.uint8), (9, 9), 0)  # RGB
CHANNELS = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
}


def raw_image(pixels: np.ndarray, encoding: str, *, padding: int = 0, big_endian: bool = False) -> Any:
    """A sensor_msgs/Image as rosbags gives it, rows padded with 0xAB."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    stored = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    return SimpleNamespace(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed(rgb: np.ndarray, extension: str = ".jpg", *parameters: int) -> Any:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(extension, bgr, list(parameters))[1].reshape(-1)
    return SimpleNamespace(format=extension[1:], data=data)


def with_data(message: Any, data: np.ndarray) -> Any:
    return SimpleNamespace(**{**vars(message), "data": data})


class TestRawImages:
    @pytest.mark.parametrize("padding", [0, 5])
    def test_colour_orders_become_rgb(self, padding: int) -> None:
        alpha = np.full((*PICTURE.shape[:2], 1), 9, np.uint8)
        bgr = PICTURE[..., ::-1]
        for encoding, pixels in {
            "rgb8": PICTURE,
            "bgr8": bgr,
            "rgba8": np.concatenate([PICTURE, alpha], axis=2),
            "bgra8": np.concatenate([bgr, alpha], axis=2),
        }.items():
            decoded = decode_image(raw_image(pixels, encoding, padding=padding))
            np.testing.assert_array_equal(decoded, PICTURE, err_msg=encoding)

    def test_gray_is_repeated_in_all_channels(self) -> None:
        decoded = decode_image(raw_image(PICTURE[..., 0], "mono8", padding=3))
        np.testing.assert_array_equal(decoded, np.repeat(PICTURE[..., :1], 3, axis=2))

    @pytest.mark.parametrize("big_endian", [False, True])
    def test_sixteen_bits_are_scaled_to_eight_in_either_byte_order(self, big_endian: bool) -> None:
        wide = PICTURE.astype(np.uint16) * 257
        decoded = decode_image(raw_image(wide, "rgb16", padding=4, big_endian=big_endian))
        np.testing.assert_array_equal(decoded, PICTURE)

    @pytest.mark.parametrize(
        ("pattern", "red_at"), [("rggb", (0, 0)), ("bggr", (1, 1)), ("gbrg", (1, 0)), ("grbg", (0, 1))]
    )
    def test_bayer_pattern_is_read_from_the_first_row(self, pattern: str, red_at: tuple[int, int]) -> None:
        mosaic = np.zeros((16, 16), np.uint8)
        mosaic[red_at[0] :: 2, red_at[1] :: 2] = 200
        decoded = decode_image(raw_image(mosaic, f"bayer_{pattern}8"))
        np.testing.assert_array_equal(decoded[4, 4], [200, 0, 0])

    def test_uyvy_gray_keeps_its_brightness(self) -> None:
        packed = np.full((4, 6, 2), 128, np.uint8)
        packed[..., 1] = 126  # studio swing: (126 - 16) * 255 / 219 = 128
        decoded = decode_image(raw_image(packed, "yuv422", padding=2))
        np.testing.assert_allclose(decoded, 128, atol=1)

    def test_rclpy_arrays_and_bytes_are_as_good_as_numpy(self) -> None:
        message = raw_image(PICTURE, "rgb8")
        for data in (array.array("B", message.data.tobytes()), message.data.tobytes()):
            np.testing.assert_array_equal(decode_image(with_data(message, data)), PICTURE)

    def test_other_encodings_go_through_convert_without_padding(self) -> None:
        depth = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
        seen = []

        def convert(message: Any) -> np.ndarray:
            seen.append(message)
            values = message.data.view(np.float32).reshape(message.height, message.width)
            return np.repeat(np.uint8(values * 255)[..., None], 3, axis=2)

        decoded = decode_image(raw_image(depth, "32FC1", padding=4, big_endian=True), convert=convert)
        np.testing.assert_array_equal(decoded[..., 1], np.uint8(depth * 255))
        assert seen[0].step == 16

    def test_other_encodings_without_convert_are_refused_by_name(self) -> None:
        with pytest.raises(InputError, match=r"'32FC1' needs cv_bridge.*rgb8, bgr8"):
            decode_image(raw_image(np.zeros((2, 2), np.float32), "32FC1"))

    @pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, cv2.error])
    def test_failure_of_convert_is_an_input_error(self, error: type[Exception]) -> None:
        def convert(message: Any) -> np.ndarray:
            raise error("no such conversion")

        with pytest.raises(InputError, match=r"'8UC3' cannot be converted.*no such conversion"):
            decode_image(raw_image(PICTURE, "8UC3"), convert=convert)

    def test_unknown_encoding_is_refused(self) -> None:
        with pytest.raises(InputError, match="unknown image encoding 'hologram'"):
            decode_image(raw_image(PICTURE, "hologram"), convert=lambda message: PICTURE)

    def test_convert_that_loses_pixels_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"converted to uint8\[3, 3, 3\], expected uint8\[40, 56, 3\]"):
            decode_image(raw_image(PICTURE, "8UC3"), convert=lambda message: PICTURE[:3, :3])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"step": 10}, r"rows of 10 bytes \(step\) cannot hold 56 pixels of rgb8, which take 168"),
            ({"height": 41}, "6720 bytes, expected 6888: 41 rows of 168"),
            ({"height": 0}, "image is 56x0"),
            ({"data": np.zeros(0, np.uint8)}, "0 bytes, expected 6720"),
            ({"data": np.zeros(6720, np.float32)}, "data are float32, expected uint8"),
            ({"data": 5}, "data are a int, expected bytes"),
        ],
    )
    def test_sizes_that_contradict_the_data_are_refused(self, change: dict[str, Any], message: str) -> None:
        image = SimpleNamespace(**{**vars(raw_image(PICTURE, "rgb8")), **change})
        with pytest.raises(InputError, match=message):
            decode_image(image)

    def test_message_of_another_type_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"sent a PointsSample; expected sensor_msgs/Image"):
            decode_image(PointsSample({}))

    @given(
        data=st.binary(max_size=64),
        height=st.integers(0, 5),
        width=st.integers(0, 5),
        step=st.integers(0, 20),
    )
    @settings(deadline=None)
    def test_any_message_decodes_or_is_an_input_error(
        self, data: bytes, height: int, width: int, step: int
    ) -> None:
        for encoding in (*CHANNELS, "mono16", "yuyv"):
            message = SimpleNamespace(
                height=height, width=width, step=step, encoding=encoding, is_bigendian=0, data=data
            )
            with contextlib.suppress(InputError):
                assert decode_image(message).shape == (height, width, 3)


class TestAgainstCvBridge:
    """With the real cv_bridge; runs where it is installed."""

    @pytest.fixture
    def bridge(self) -> Any:
        return pytest.importorskip("cv_bridge", exc_type=ImportError).CvBridge()

    @pytest.mark.parametrize("encoding", CHANNELS)
    def test_direct_decoding_equals_cv_bridge(self, bridge: Any, encoding: str) -> None:
        pixels = RNG.integers(0, 256, (16, 24, CHANNELS[encoding]), np.uint8)
        message = raw_image(pixels, encoding)
        try:
            expected = bridge.imgmsg_to_cv2(message, "rgb8")
        except KeyError:
            pytest.skip(f"this cv_bridge cannot convert {encoding}")
        np.testing.assert_array_equal(decode_image(message), expected)

    def test_padded_rows_come_right_only_after_repacking(self, bridge: Any) -> None:
        message = raw_image(PICTURE, "rgb8", padding=8)
        np.testing.assert_array_equal(bridge.imgmsg_to_cv2(repacked_image(message), "rgb8"), PICTURE)
        assert not np.array_equal(bridge.imgmsg_to_cv2(message, "rgb8"), PICTURE)

    def test_repacked_big_endian_image_is_readable(self, bridge: Any) -> None:
        values = RNG.integers(0, 65536, (5, 7), np.uint16)
        message = raw_image(values, "mono16", padding=2, big_endian=True)
        np.testing.assert_array_equal(bridge.imgmsg_to_cv2(repacked_image(message)), values)

    def test_nothing_to_repack_is_passed_on(self) -> None:
        message = raw_image(PICTURE, "bgr8", big_endian=True)  # bytes have no order
        assert repacked_image(message) is message


class TestCompressedImages:
    def test_png_is_exact(self) -> None:
        np.testing.assert_array_equal(decode_image(compressed(PICTURE, ".png")), PICTURE)

    @pytest.mark.parametrize("progressive", [0, 1])
    def test_jpeg_is_close(self, progressive: int) -> None:
        message = compressed(
            PICTURE, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive
        )
        np.testing.assert_allclose(decode_image(message).astype(int), PICTURE, atol=20)

    def test_trailing_zeros_after_a_jpeg_are_harmless(self) -> None:
        message = compressed(PICTURE)
        padded = with_data(message, np.pad(message.data, (0, 64)))
        np.testing.assert_array_equal(decode_image(padded), decode_image(message))

    def test_jpeg_with_a_thumbnail_has_its_own_size_and_end(self) -> None:
        thumbnail = compressed(PICTURE[:8, :8]).data.tobytes()
        segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
        plain = compressed(PICTURE)
        data = plain.data.tobytes()
        message = with_data(plain, data[:2] + segment + data[2:])
        np.testing.assert_array_equal(decode_image(message), decode_image(plain))
        with pytest.raises(InputError, match="truncated: it has no end marker"):
            decode_image(with_data(plain, message.data[:-40]))

    @pytest.mark.parametrize(
        ("target", "reduction"), [((56, 40), 1), ((28, 20), 2), ((27, 11), 2), ((14, 10), 4), ((3, 3), 8)]
    )
    def test_jpeg_is_reduced_but_never_below_the_target(
        self, target: tuple[int, int], reduction: int
    ) -> None:
        decoded = decode_scaled_image(compressed(PICTURE), target_size=target)
        assert (decoded.reduction, decoded.full_size) == (reduction, (56, 40))
        assert decoded.rgb_HW3.shape == (40 // reduction, 56 // reduction, 3)

    def test_odd_sizes_are_rounded_up_when_reduced(self) -> None:
        decoded = decode_scaled_image(compressed(PICTURE[:39, :55]), target_size=(20, 10))
        assert decoded.rgb_HW3.shape == (20, 28, 3)
        assert decoded.full_size == (55, 39)

    def test_reduction_keeps_pixels_where_they_are(self) -> None:
        ramp = np.repeat(np.linspace(20, 230, 64)[None, :, None], 32, axis=0)
        message = compressed(
            np.repeat(ramp, 3, axis=2).astype(np.uint8), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 98
        )
        reduced = decode_image(message, target_size=(32, 16))
        expected = ramp[0, :, 0].reshape(32, 2).mean(axis=1)  # pixel u covers full-size 2u and 2u + 1
        np.testing.assert_allclose(reduced[8, :, 0], expected, atol=2.5)

    @pytest.mark.parametrize("kept", [0, 1, 3, 8, 20, 170, 400, -2, -1])
    @pytest.mark.parametrize("extension", [".jpg", ".png"])
    def test_truncated_pictures_are_refused(self, extension: str, kept: int) -> None:
        message = compressed(PICTURE, extension)
        with pytest.raises(InputError, match=r"truncated|corrupt|expected JPEG or PNG"):
            decode_image(with_data(message, message.data[:kept]))

    def test_jpeg_with_a_zeroed_second_half_is_refused(self) -> None:
        message = compressed(PICTURE)
        data = message.data.copy()
        data[len(data) // 2 :] = 0
        with pytest.raises(InputError, match="no end marker"):
            decode_image(with_data(message, data))

    def test_jpeg_with_an_illegal_marker_in_its_scan_is_refused(self) -> None:
        message = compressed(PICTURE)
        data = message.data.copy()
        data[-40:-38] = (0xFF, 0x42)
        with pytest.raises(InputError, match="illegal marker"):
            decode_image(with_data(message, data))

    def test_png_with_a_flipped_byte_is_refused(self) -> None:
        message = compressed(PICTURE, ".png")
        data = message.data.copy()
        data[len(data) // 2] ^= 0x55
        with pytest.raises(InputError, match="corrupt"):
            decode_image(with_data(message, data))

    @pytest.mark.parametrize("extension", [".jpg", ".png"])
    def test_a_picture_that_declares_too_much_is_not_decoded(
        self, monkeypatch: pytest.MonkeyPatch, extension: str
    ) -> None:
        message = compressed(PICTURE, extension)
        raw = message.data.tobytes()
        if extension == ".png":
            hostile = raw[:16] + struct.pack(">II", 20000, 20000) + raw[24:]
        else:
            at = raw.index(b"\xff\xc0") + 5
            hostile = raw[:at] + struct.pack(">HH", 20000, 20000) + raw[at + 4 :]
        decoded = []
        monkeypatch.setattr(cv2, "imdecode", lambda *_: decoded.append(True))
        with pytest.raises(InputError, match=r"declares 20000x20000 pixels, expected at most \d+"):
            decode_image(with_data(message, np.frombuffer(hostile, np.uint8)))

        def refuse(size: tuple[int, int]) -> None:
            raise InputError(f"nobody expects {size[0]}x{size[1]}")

        with pytest.raises(InputError, match="nobody expects 56x40"):
            decode_scaled_image(message, check_size=refuse)
        assert not decoded

    def test_other_content_is_refused_with_its_first_bytes(self) -> None:
        message = SimpleNamespace(format="16UC1; compressedDepth", data=b"\x00\x01\x02\x03rest")
        with pytest.raises(
            InputError, match=r"compressedDepth.*starts with 00 01 02 03; expected JPEG or PNG"
        ):
            decode_image(message)

    @given(seed=st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=60)
    def test_damaged_jpeg_decodes_to_its_size_or_is_an_input_error(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        message = compressed(PICTURE)
        data = message.data.copy()
        data[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
        try:
            decoded = decode_scaled_image(with_data(message, data))
        except InputError:
            return
        assert decoded.rgb_HW3.shape == (decoded.full_size[1], decoded.full_size[0], 3)


class TestImageSamples:
    def test_decoded_picture_is_passed_on(self) -> None:
        assert decode_image(ImageSample(PICTURE)) is PICTURE

    def test_wrong_shape_or_type_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"float64\[4, 4, 3\], expected uint8"):
            decode_image(ImageSample(np.zeros((4, 4, 3))))  # type: ignore[arg-type]


FORMATS = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def cloud(
    columns: dict[str, np.ndarray],
    *,
    height: int = 1,
    gap: int = 0,
    row_padding: int = 0,
    big_endian: bool = False,
) -> Any:
    """A sensor_msgs/PointCloud2 with the columns' own types and order; `gap` bytes before each field."""
    order = ">" if big_endian else "<"
    offsets, formats, end = [], [], 0
    for column in columns.values():
        offsets.append(end + gap)
        formats.append(column.dtype.newbyteorder(order))
        end = offsets[-1] + column.dtype.itemsize
    point_step = end + gap
    num = len(next(iter(columns.values())))
    dtype = np.dtype({"names": list(columns), "formats": formats, "offsets": offsets, "itemsize": point_step})
    points = np.zeros(num, dtype)
    for name, column in columns.items():
        points[name] = column
    rows = np.frombuffer(points.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, row_padding)), constant_values=0xAB)
    return SimpleNamespace(
        height=height,
        width=num // height,
        fields=[
            SimpleNamespace(name=name, offset=offset, datatype=FORMATS[column.dtype.str[1:]], count=1)
            for (name, column), offset in zip(columns.items(), offsets, strict=True)
        ],
        is_bigendian=big_endian,
        point_step=point_step,
        row_step=rows.shape[1],
        data=rows.reshape(-1),
        is_dense=True,
    )


def xyz(num: int = 6, dtype: str = "f4") -> dict[str, np.ndarray]:
    values = np.arange(3 * num).reshape(3, num) - num
    return {name: column.astype(dtype) for name, column in zip("xyz", values, strict=True)}


class TestPointClouds:
    @given(
        order=st.permutations(["x", "y", "z", "intensity", "ring"]),
        types=st.lists(st.sampled_from(["i2", "i4", "f4", "f8"]), min_size=5, max_size=5),
        height=st.sampled_from([1, 2, 3]),
        gap=st.integers(0, 5),
        row_padding=st.integers(0, 9),
        big_endian=st.booleans(),
    )
    @settings(deadline=None)
    def test_any_layout_gives_the_same_points(
        self,
        order: list[str],
        types: list[str],
        height: int,
        gap: int,
        row_padding: int,
        big_endian: bool,
    ) -> None:
        values = {**xyz(), "intensity": np.arange(6) * 10, "ring": np.arange(6)}
        columns = {name: values[name].astype(kind) for name, kind in zip(order, types, strict=True)}
        message = cloud(columns, height=height, gap=gap, row_padding=row_padding, big_endian=big_endian)
        points = decode_points(message)
        assert set(points) == {"x", "y", "z", "intensity"}
        for name in "xyz":
            assert points[name].dtype == np.float32
            np.testing.assert_array_equal(points[name], values[name])
        np.testing.assert_allclose(points["intensity"], values["intensity"] / 255.0, atol=1e-6)

    def test_usual_layout_is_not_copied(self) -> None:
        message = cloud({**xyz(), "intensity": np.full(6, 0.5, np.float32)})
        points = decode_points(message)
        assert all(np.shares_memory(points[name], message.data) for name in points)

    def test_rclpy_arrays_are_as_good_as_numpy(self) -> None:
        message = cloud(xyz())
        message.data = array.array("B", message.data.tobytes())
        np.testing.assert_array_equal(decode_points(message)["y"], xyz()["y"])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_points_without_a_finite_position_are_dropped(self, bad: float) -> None:
        columns = xyz()
        columns["y"][2] = bad
        columns["z"][5] = bad
        points = decode_points(cloud({**columns, "intensity": np.arange(6, dtype=np.float32) / 10}))
        np.testing.assert_array_equal(points["x"], columns["x"][[0, 1, 3, 4]])
        np.testing.assert_allclose(points["intensity"], [0.0, 0.1, 0.3, 0.4], atol=1e-6)

    def test_finite_positions_with_an_overflowing_sum_are_kept(self) -> None:
        columns = xyz(4)
        columns["x"][:] = 3e38
        assert len(decode_points(cloud(columns))["x"]) == 4

    def test_cloud_of_nothing_but_nan_has_no_points(self) -> None:
        columns = {name: np.full(5, np.nan, np.float32) for name in "xyz"}
        assert {name: len(column) for name, column in decode_points(cloud(columns)).items()} == {
            "x": 0,
            "y": 0,
            "z": 0,
            "intensity": 0,
        }

    @pytest.mark.parametrize("change", [{"width": 0, "row_step": 0}, {"height": 0, "width": 0}])
    def test_empty_cloud_has_no_points(self, change: dict[str, int]) -> None:
        message = cloud(xyz())
        vars(message).update(change, data=np.zeros(0, np.uint8))
        assert len(decode_points(message)["x"]) == 0

    @pytest.mark.parametrize("alias", ["intensity", "i", "reflectivity", "Intensity"])
    def test_intensity_is_found_by_its_usual_names(self, alias: str) -> None:
        points = decode_points(cloud({**xyz(), alias: np.linspace(0, 1, 6, dtype=np.float32)}))
        np.testing.assert_allclose(points["intensity"], np.linspace(0, 1, 6), atol=1e-6)

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (np.array([0, 51, 255], np.uint8), [0.0, 0.2, 1.0]),
            (np.array([0, 1, 1], np.uint8), [0.0, 1 / 255, 1 / 255]),  # dark, not on a scale to 1
            (np.array([0, 51, 255], np.float32), [0.0, 0.2, 1.0]),
            (np.array([0.1, 0.2, 1.0], np.float32), [0.1, 0.2, 1.0]),
            (np.array([0, 51, 4000], np.uint16), [0.0, 0.2, 1.0]),
            (np.array([np.nan, 0.5, -0.1], np.float32), [0.0, 0.5, 0.0]),
        ],
    )
    def test_intensity_is_brought_to_the_unit_range(self, raw: np.ndarray, expected: list[float]) -> None:
        points = decode_points(cloud({**xyz(3), "intensity": raw}))
        np.testing.assert_allclose(points["intensity"], expected, atol=1e-6)

    @pytest.mark.parametrize("velocity", ["velocity", "doppler", "radial_speed", "v_r"])
    @pytest.mark.parametrize("rcs", ["rcs", "power", "amplitude"])
    def test_radar_fields_are_found_by_their_usual_names(self, velocity: str, rcs: str) -> None:
        columns = {**xyz(2), velocity: np.array([1.5, -2.0], "f4"), rcs: np.array([np.nan, 7.0], "f8")}
        points = decode_points(cloud(columns))
        np.testing.assert_array_equal(points["velocity"], [1.5, -2.0])
        np.testing.assert_array_equal(points["rcs"], [0.0, 7.0])

    def test_return_without_a_finite_doppler_is_dropped(self) -> None:
        points = decode_points(cloud({**xyz(2), "velocity": np.array([np.nan, 3.0], "f4")}))
        np.testing.assert_array_equal(points["velocity"], [3.0])

    def test_missing_position_is_refused_with_the_fields_there_are(self) -> None:
        columns = xyz()
        del columns["z"]
        with pytest.raises(InputError, match="no field z; its fields are x, y, ring"):
            decode_points(cloud({**columns, "ring": np.zeros(6, np.uint8)}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"width": 7}, "7x1 points of 12 bytes.*a row does not hold its points"),
            ({"height": 2}, "has 72 bytes, expected 144"),
            ({"row_step": 80}, "has 72 bytes, expected 80"),
            ({"point_step": 0}, "does not hold"),
            ({"point_step": 8}, r"'z' at bytes 8..12 lies outside a point of 8 bytes"),
            ({"width": 0}, "has 72 bytes but declares 0x1"),
            ({"data": np.zeros(60, np.uint8)}, "has 60 bytes, expected 72"),
        ],
    )
    def test_sizes_that_contradict_the_data_are_refused(self, change: dict[str, Any], message: str) -> None:
        broken = cloud(xyz())
        vars(broken).update(change)
        with pytest.raises(InputError, match=message):
            decode_points(broken)

    def test_unknown_datatype_of_a_needed_field_is_refused(self) -> None:
        broken = cloud(xyz())
        broken.fields[1].datatype = 99
        with pytest.raises(InputError, match="'y' has datatype 99, expected 1"):
            decode_points(broken)

    def test_message_of_another_type_is_refused(self) -> None:
        with pytest.raises(InputError, match="sent a ImageSample; expected sensor_msgs/PointCloud2"):
            decode_points(ImageSample(PICTURE))


class TestPointsSamples:
    def test_simulated_points_are_taken_as_they_are(self) -> None:
        points = decode_points(PointsSample({**xyz(), "velocity": np.ones(6, np.float32)}))
        np.testing.assert_array_equal(points["x"], xyz()["x"])
        np.testing.assert_array_equal(points["intensity"], np.zeros(6))
        assert "velocity" in points

    def test_fields_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(InputError, match="differ in shape"):
            decode_points(PointsSample({**xyz(), "intensity": np.zeros(5, np.float32)}))
