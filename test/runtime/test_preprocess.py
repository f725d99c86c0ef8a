from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_perception.core.config import PreprocessConfig
from e2e_perception.core.ego_motion import EgoMotionBuffer, EgoState
from e2e_perception.core.errors import RigError
from e2e_perception.core.frames import SE3, rotation_from_quaternion
from e2e_perception.core.network_config import (
    EGO_FIELDS,
    LIDAR_CHANNELS,
    RADAR_CHANNELS,
    NetworkConfig,
)
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig, load_rig
from e2e_perception.core.samples import AssembledFrame, ImageSample, PointsSample, SensorMessage
from e2e_perception.core.trajectories import Route
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.runtime.preprocess import (
    NO_EGO_MOTION,
    ImageCrop,
    PreparedFrame,
    Preprocessor,
    check_camera_info,
)

ROOT = Path(__file__).resolve().parents[2]
NETWORK = NetworkConfig()
TINY = load_rig(ROOT / "config" / "rigs" / "tiny.yaml")
STAMP = 5_000_000_000
MS = 1_000_000
# What the pipeline, not the preprocessor, feeds.
REMEMBERED = {"bev_memory", "bev_theta", "memory_valid", "track_tokens", "track_boxes", "track_valid"}


def driving(
    speed: float = 10.0, yaw_rate: float = 0.0, *, until_ns: int = STAMP + 100 * MS
) -> EgoMotionBuffer:
    """Odometry at 50 Hz on an arc through the origin at STAMP."""
    ego = EgoMotionBuffer()
    for stamp in range(STAMP - 1000 * MS, until_ns + 1, 20 * MS):
        t = (stamp - STAMP) * 1e-9
        yaw = yaw_rate * t
        x, y = (speed * t, 0.0)
        if yaw_rate:
            x, y = speed / yaw_rate * np.sin(yaw), speed / yaw_rate * (1 - np.cos(yaw))
        ego.add(EgoState(stamp, SE3.planar(x, y, yaw), np.array([speed, 0.0, 0.0]), yaw_rate))
    return ego


def frame(payloads: dict[str, Any], stamps: dict[str, int] | None = None) -> AssembledFrame:
    messages = {
        name: SensorMessage(name, (stamps or {}).get(name, STAMP), STAMP + 50 * MS, payload)
        for name, payload in payloads.items()
    }
    return AssembledFrame(STAMP, "top", messages, {}, STAMP + 60 * MS, 0)


def prepare(
    payloads: dict[str, Any],
    stamps: dict[str, int] | None = None,
    *,
    ego: EgoMotionBuffer | None = None,
    rig: Rig = TINY,
    route: Route | None = None,
    config: PreprocessConfig | None = None,
    **options: Any,
) -> PreparedFrame:
    preprocessor = Preprocessor(NETWORK, rig, config)
    return preprocessor.prepare(
        frame(payloads, stamps), driving() if ego is None else ego, route, 15.0, **options
    )


def points(*xyz: tuple[float, float, float], **fields: float) -> PointsSample:
    """A cloud with the same value of each further field in every point."""
    columns = np.array(xyz, np.float32).reshape(-1, 3).T
    named = dict(zip("xyz", columns, strict=True))
    named |= {name: np.full(len(xyz), value, np.float32) for name, value in fields.items()}
    return PointsSample(named)


def picture(width: int = 704, height: int = 256, *, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 22, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(rgb: np.ndarray, quality: int = 95) -> Any:
    data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].reshape(-1)
    return SimpleNamespace(format="jpeg", data=data)


def everything() -> dict[str, Any]:
    return {
        **{name: jpeg(picture(seed=i)) for i, name in enumerate(NETWORK.cameras)},
        "top": points((10.0, 2.0, -1.5), (20.0, -3.0, 0.0), intensity=0.5),
        **{name: points((15.0, 0.0, 0.0), velocity=-10.0, rcs=10.0) for name in NETWORK.radars},
    }


def lidar_channels(prepared: PreparedFrame) -> dict[str, np.ndarray]:
    return dict(zip(LIDAR_CHANNELS, prepared.inputs["lidar_raster"][0], strict=True))


def radar_channels(prepared: PreparedFrame) -> dict[str, np.ndarray]:
    return dict(zip(RADAR_CHANNELS, prepared.inputs["radar_raster"][0], strict=True))


def ego_features(prepared: PreparedFrame) -> dict[str, float]:
    return dict(zip(EGO_FIELDS, prepared.inputs["ego_state"][0].tolist(), strict=True))


class TestContract:
    @pytest.mark.parametrize("payloads", [{}, everything()], ids=["nothing", "everything"])
    @pytest.mark.parametrize("with_ego", [True, False])
    def test_inputs_are_those_of_the_contract(self, payloads: dict[str, Any], with_ego: bool) -> None:
        prepared = prepare(payloads, ego=driving() if with_ego else EgoMotionBuffer())
        contract = tensor_contract(NETWORK)
        assert set(prepared.inputs) == set(contract.input_names) - REMEMBERED
        remembered = {
            spec.name: np.zeros(spec.shape, spec.dtype) for spec in contract.inputs if spec.name in REMEMBERED
        }
        contract.check_inputs({**prepared.inputs, **remembered})
        assert all(np.isfinite(value).all() for value in prepared.inputs.values())

    def test_every_sensor_with_good_data_is_valid(self) -> None:
        prepared = prepare(everything())
        assert prepared.reasons == {}
        for name in ("camera_valid", "lidar_valid", "radar_valid"):
            np.testing.assert_array_equal(prepared.inputs[name], np.ones_like(prepared.inputs[name]))

    def test_absent_sensors_are_invalid_without_a_reason_of_the_preprocessor(self) -> None:
        prepared = prepare({"left": jpeg(picture())})
        np.testing.assert_array_equal(prepared.inputs["camera_valid"], [[0, 1, 0]])
        np.testing.assert_array_equal(prepared.inputs["lidar_valid"], [[0]])
        assert prepared.reasons == {}

    def test_a_following_frame_does_not_touch_the_arrays_of_the_last(self) -> None:
        preprocessor = Preprocessor(NETWORK, TINY)
        first = preprocessor.prepare(frame(everything()), driving(), None, 15.0)
        kept = {name: value.copy() for name, value in first.inputs.items()}
        preprocessor.prepare(frame({"front": jpeg(picture(seed=9))}), driving(3.0), None, 15.0)
        for name, value in first.inputs.items():
            np.testing.assert_array_equal(value, kept[name], err_msg=name)


class TestSlots:
    def test_rig_may_lack_slots_and_their_cameras_see_nothing(self) -> None:
        rig = TINY.model_copy(update={"sensors": tuple(s for s in TINY.sensors if s.name != "left")})
        projection = prepare(everything() | {"left": None}, rig=rig).inputs["image_from_base"][0, 1]
        assert (projection @ [10.0, 5.0, 1.0, 1.0])[2] < 0.0  # behind the camera

    def test_sensor_without_a_slot_is_refused_with_the_slots_there_are(self) -> None:
        rear = TINY.sensor("front").model_copy(update={"name": "rear", "topic": "/rear"})
        rig = TINY.model_copy(update={"sensors": (*TINY.sensors, rear)})
        with pytest.raises(
            RigError, match=r"camera 'rear', which the network does not know.*front, left, right"
        ):
            Preprocessor(NETWORK, rig)

    def test_a_slot_of_another_kind_does_not_count(self) -> None:
        wrong = Lidar(name="front", topic="/a", frame_id="a", mount=Mount(xyz=(0, 0, 1)))
        with pytest.raises(RigError, match=r"lidar 'front'.*lidar: top"):
            Preprocessor(NETWORK, Rig(name="odd", sensors=(wrong,)))


class TestImages:
    def test_projection_finds_the_pixel_that_shows_a_point(self) -> None:
        # A white dot where the camera sees the point must be where the network's projection says.
        for name in NETWORK.cameras:
            camera = TINY.sensor(name)
            assert isinstance(camera, Camera)
            point_base = camera.base_from_sensor.apply(np.array([2.0, 0.8, 12.0]))
            u, v, w = camera.image_from_base @ [*point_base, 1.0]
            image = np.zeros((256, 704, 3), np.uint8)
            cv2.circle(image, (round(u / w), round(v / w)), 6, (255, 255, 255), -1)
            prepared = prepare({name: jpeg(image)})
            slot = NETWORK.cameras.index(name)
            rows, columns = np.nonzero(prepared.inputs["images"][0, slot, :, :, 1] > 128)
            u, v, w = prepared.inputs["image_from_base"][0, slot] @ [*point_base, 1.0]
            np.testing.assert_allclose([columns.mean(), rows.mean()], [u / w, v / w], atol=0.6)

    def test_a_network_pixel_is_centred_on_the_pixels_it_was_made_of(self) -> None:
        crop = ImageCrop.of(TINY.cameras[0], NETWORK)  # 2 x 2 pixels become one
        np.testing.assert_allclose(crop.network_from_camera @ [20.5, 40.5, 1.0], [10, 20, 1], atol=1e-9)

    def test_reduced_jpeg_and_raw_picture_agree(self) -> None:
        rgb = picture(1242, 375)
        camera = TINY.sensor("front").model_copy(
            update={"width": 1242, "height": 375, "cx_px": 609.6, "cy_px": 172.9}
        )
        rig = TINY.with_sensors({"front": camera})
        from_jpeg = prepare({"front": jpeg(rgb, 98)}, rig=rig)
        from_raw = prepare({"front": ImageSample(rgb)}, rig=rig)
        difference = np.abs(
            from_jpeg.inputs["images"][0, 0].astype(int) - from_raw.inputs["images"][0, 0].astype(int)
        )
        assert difference.mean() < 2.0
        np.testing.assert_array_equal(from_jpeg.inputs["image_from_base"], from_raw.inputs["image_from_base"])

    @given(
        width=st.integers(180, 4000),
        height=st.integers(100, 3000),
        pitch_deg=st.floats(-20, 40),
    )
    @settings(deadline=None)
    def test_crop_lies_in_the_picture_keeps_aspect_and_the_principal_column(
        self, width: int, height: int, pitch_deg: float
    ) -> None:
        camera = TINY.sensor("front").model_copy(
            update={
                "width": width,
                "height": height,
                "cx_px": width * 0.5,
                "cy_px": height * 0.5,
                "fx_px": width * 0.6,
                "fy_px": width * 0.6,
                "mount": Mount(xyz=(1.0, 0.0, 1.5), rpy_deg=(0.0, pitch_deg, 0.0)),
            }
        )
        assert isinstance(camera, Camera)
        crop = ImageCrop.of(camera, NETWORK)
        assert 0 <= crop.x <= crop.x + crop.width <= width
        assert 0 <= crop.y <= crop.y + crop.height <= height
        scale = NETWORK.image_width / crop.width, NETWORK.image_height / crop.height
        assert scale[0] == pytest.approx(scale[1], rel=0.08)  # whole blocks of up to 8 pixels
        centre = crop.network_from_camera @ [camera.cx_px, 0.0, 1.0]
        assert centre[0] == pytest.approx(NETWORK.image_width / 2, abs=NETWORK.image_width * 0.03)

    def test_tall_picture_is_cut_around_the_horizon_of_a_tilted_camera(self) -> None:
        tilted = TINY.sensor("front").model_copy(
            update={
                "width": 1280,
                "height": 960,
                "fx_px": 640.0,
                "fy_px": 640.0,
                "cx_px": 639.5,
                "cy_px": 479.5,
                "mount": Mount(xyz=(1.7, 0.0, 1.5), rpy_deg=(0.0, 10.0, 0.0)),  # nose down
            }
        )
        assert isinstance(tilted, Camera)
        crop = ImageCrop.of(tilted, NETWORK)
        u, v, w = crop.network_from_camera @ tilted.image_from_base @ [1e6, 0.0, 1.5, 1.0]
        assert v / w == pytest.approx(NETWORK.image_height / 2, abs=2.0)
        assert u / w == pytest.approx(NETWORK.image_width / 2, abs=2.0)

    def test_projection_absorbs_the_motion_since_exposure(self) -> None:
        late = prepare({"front": jpeg(picture())}, {"front": STAMP - 40 * MS}, ego=driving(10.0, 0.3))
        now = prepare({"front": jpeg(picture())}, ego=driving(10.0, 0.3))
        # A point fixed to the ground, given in the base frame at the frame time and at the exposure.
        ego = driving(10.0, 0.3)
        exposure_from_frame = ego.base_from_base(STAMP - 40 * MS, STAMP)
        assert exposure_from_frame is not None
        point_frame = np.array([20.0, 3.0, 1.0])
        point_exposure = exposure_from_frame.apply(point_frame)
        seen = late.inputs["image_from_base"][0, 0].astype(float) @ [*point_frame, 1.0]
        expected = now.inputs["image_from_base"][0, 0].astype(float) @ [*point_exposure, 1.0]
        np.testing.assert_allclose(seen[:2] / seen[2], expected[:2] / expected[2], atol=0.01)
        still = now.inputs["image_from_base"][0, 0].astype(float) @ [*point_frame, 1.0]
        assert np.abs(still[:2] / still[2] - expected[:2] / expected[2]).max() > 1.0  # it does matter

    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (SimpleNamespace(format="jpeg", data=jpeg(picture()).data[:-500]), "truncated"),
            (SimpleNamespace(format="jpeg", data=b""), "expected JPEG or PNG"),
            (jpeg(picture(640, 480)), "640x480, rig 'tiny' says 704x256"),
            (jpeg(picture(352, 128)), "352x128, rig 'tiny' says 704x256"),  # not taken for a reduced one
            (points((1.0, 2.0, 3.0)), "sent a PointsSample"),
            (None, "sent a NoneType"),
        ],
    )
    def test_bad_picture_makes_its_camera_invalid_and_says_why(self, payload: Any, reason: str) -> None:
        prepared = prepare({**everything(), "left": payload})
        np.testing.assert_array_equal(prepared.inputs["camera_valid"], [[1, 0, 1]])
        assert set(prepared.reasons) == {"left"}
        assert prepared.reasons["left"].startswith("undecodable: ")
        assert reason in prepared.reasons["left"]
        assert not prepared.inputs["images"][0, 1].any()


class TestPoints:
    def test_points_land_in_the_base_frame(self) -> None:
        prepared = prepare({"top": points((10.0, 2.0, -1.5), intensity=0.5)})
        np.testing.assert_allclose(prepared.points_base, [[11.2, 2.0, 0.3]], atol=1e-5)
        row, column = int((2.0 + 32) / 0.5), int((11.2 + 24) / 0.5)
        assert lidar_channels(prepared)["intensity"][row, column] == pytest.approx(0.5)

    def test_points_are_moved_to_the_frame_time(self) -> None:
        # 10 m/s for 50 ms: what was 10 m ahead then is 9.5 m ahead now.
        prepared = prepare({"top": points((8.8, 0.0, -1.0))}, {"top": STAMP - 50 * MS}, ego=driving(10.0))
        np.testing.assert_allclose(prepared.points_base, [[9.5, 0.0, 0.8]], atol=1e-4)

    def test_points_measured_after_the_frame_are_moved_back_and_turned(self) -> None:
        ego = driving(8.0, 0.5)
        prepared = prepare({"top": points((8.8, 4.0, -1.0))}, {"top": STAMP + 40 * MS}, ego=ego)
        motion = ego.base_from_base(STAMP, STAMP + 40 * MS)
        assert motion is not None
        np.testing.assert_allclose(prepared.points_base, motion.apply([[10.0, 4.0, 0.8]]), atol=1e-4)

    def test_points_on_the_robot_are_dropped(self) -> None:
        cloud = points((1.0, 0.5, 0.2), (-0.9, 0.0, -0.9), (2.0, 0.0, 0.0))
        prepared = prepare({"top": cloud}, config=PreprocessConfig(lidar_min_range=1.5))
        np.testing.assert_allclose(prepared.points_base, [[3.2, 0.0, 1.8]], atol=1e-6)
        everything_kept = prepare({"top": cloud}, config=PreprocessConfig(lidar_min_range=0.0))
        assert len(everything_kept.points_base) == 3

    def test_two_lidars_share_one_raster(self) -> None:
        network = NetworkConfig(lidars=("top", "rear"))
        rear = Lidar(name="rear", topic="/rear", frame_id="rear", mount=Mount(xyz=(-1.0, 0.0, 1.0)))
        rig = TINY.model_copy(update={"sensors": (*TINY.sensors, rear)})
        payloads = {"top": points((10.0, 0.0, -1.5)), "rear": points((-10.0, 0.0, 0.0))}
        prepared = Preprocessor(network, rig).prepare(frame(payloads), driving(), None, 15.0)
        np.testing.assert_allclose(prepared.points_base, [[11.2, 0, 0.3], [-11.0, 0, 1.0]], atol=1e-5)
        assert np.count_nonzero(lidar_channels(prepared)["log_count"]) == 2
        np.testing.assert_array_equal(prepared.inputs["lidar_valid"], [[1, 1]])

    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (points((np.nan, np.nan, np.nan)), "no point with a finite position"),
            (points(), "no point with a finite position"),
            (points((0.3, 0.0, 0.0), (0.0, 0.4, 0.1)), "blinded: no point beyond 1.5 m"),
            (PointsSample({"x": np.zeros(1, np.float32)}), "no field y, z"),
            (ImageSample(picture()), "expected sensor_msgs/PointCloud2"),
        ],
    )
    def test_bad_cloud_makes_its_lidar_invalid_and_says_why(self, payload: Any, reason: str) -> None:
        prepared = prepare({**everything(), "top": payload})
        np.testing.assert_array_equal(prepared.inputs["lidar_valid"], [[0]])
        assert reason in prepared.reasons["top"]
        assert not prepared.inputs["lidar_raster"].any()
        assert prepared.points_base.shape == (0, 3)


class TestRadar:
    @pytest.mark.parametrize(("speed", "yaw_rate"), [(12.0, 0.0), (6.0, 0.6), (-3.0, -0.4), (0.0, 0.5)])
    @pytest.mark.parametrize("name", NETWORK.radars)
    def test_standing_objects_have_no_doppler_over_ground(
        self, name: str, speed: float, yaw_rate: float
    ) -> None:
        radar = TINY.sensor(name)
        assert isinstance(radar, Radar)
        # The sensor's own velocity by differencing its path, not by the formula under test.
        ego, dt = driving(speed, yaw_rate), 0.02
        before, after = ego.at(STAMP - 20 * MS), ego.at(STAMP + 20 * MS)
        assert before is not None
        assert after is not None
        mount = radar.base_from_sensor
        path = (after.odom_from_base @ mount).translation - (before.odom_from_base @ mount).translation
        velocity_sensor = mount.rotation.T @ (path / (2 * dt))
        target = np.array([18.0, 6.0, 0.5])
        measured = -velocity_sensor @ target / np.linalg.norm(target)
        prepared = prepare({name: points(tuple(target), velocity=float(measured), rcs=5.0)}, ego=ego)
        channels = radar_channels(prepared)
        assert channels["log_count"].any()
        assert np.abs(channels["doppler_x"]).max() * 10.0 < 0.02
        assert np.abs(channels["doppler_y"]).max() * 10.0 < 0.02

    def test_doppler_over_ground_points_along_the_line_of_sight_in_base_axes(self) -> None:
        # radar_left looks 75 deg to the left; its target recedes over ground at 4 m/s, the robot stands.
        prepared = prepare({"radar_left": points((20.0, 0.0, 0.0), velocity=4.0, rcs=10.0)}, ego=driving(0.0))
        channels = radar_channels(prepared)
        angle = np.deg2rad(75.0)
        position = np.array([3.5, 0.8]) + 20.0 * np.array([np.cos(angle), np.sin(angle)])
        row, column = int((position[1] + 32) / 0.5), int((position[0] + 24) / 0.5)
        assert channels["doppler_x"][row, column] == pytest.approx(0.4 * np.cos(angle), abs=1e-4)
        assert channels["doppler_y"][row, column] == pytest.approx(0.4 * np.sin(angle), abs=1e-4)
        assert channels["rcs"][row, column] == pytest.approx(0.5, abs=1e-5)

    def test_returns_are_moved_and_their_doppler_turned_to_the_frame_time(self) -> None:
        ego = driving(5.0, 0.8)
        stamp = STAMP - 60 * MS
        prepared = prepare(
            {"radar_front": points((20.0, 0.0, 0.0), velocity=0.0)}, {"radar_front": stamp}, ego=ego
        )
        motion = ego.base_from_base(STAMP, stamp)
        assert motion is not None
        x, y, _ = motion.apply([23.7, 0.0, 0.5])
        channels = radar_channels(prepared)
        row, column = int((y + 32) / 0.5), int((x + 24) / 0.5)
        # It keeps its distance to a robot that drives 5 m/s, so it drives 5 m/s itself.
        expected = motion.rotation[:2, 0] * 5.0 / 10.0
        np.testing.assert_allclose(
            [channels["doppler_x"][row, column], channels["doppler_y"][row, column]], expected, atol=1e-4
        )

    def test_slow_returns_can_be_dropped(self) -> None:
        payload = {"radar_front": points((20.0, 0.0, 0.0), velocity=-10.0)}  # standing
        config = PreprocessConfig(radar_min_speed=0.5)
        assert radar_channels(prepare(payload))["log_count"].any()
        assert not radar_channels(prepare(payload, config=config))["log_count"].any()

    def test_empty_scan_is_valid(self) -> None:
        prepared = prepare({"radar_front": points(velocity=0.0)})
        np.testing.assert_array_equal(prepared.inputs["radar_valid"], [[1, 0, 0]])

    def test_scan_without_doppler_is_invalid(self) -> None:
        prepared = prepare({"radar_front": points((5.0, 0.0, 0.0))})
        assert "no Doppler field" in prepared.reasons["radar_front"]


class TestEgoMotion:
    def test_without_odometry_only_sensors_at_the_frame_time_are_used(self) -> None:
        stamps = {"left": STAMP - 10 * MS, "right": STAMP}
        prepared = prepare(everything(), stamps, ego=EgoMotionBuffer())
        np.testing.assert_array_equal(prepared.inputs["camera_valid"], [[1, 0, 1]])
        np.testing.assert_array_equal(prepared.inputs["lidar_valid"], [[1]])
        np.testing.assert_array_equal(prepared.inputs["radar_valid"], [[0, 0, 0]])
        assert prepared.reasons == dict.fromkeys(("left", *NETWORK.radars), NO_EGO_MOTION)
        np.testing.assert_allclose(prepared.points_base[0], [11.2, 2.0, 0.3], atol=1e-5)

    def test_without_odometry_a_lidar_off_the_frame_time_is_not_used(self) -> None:
        prepared = prepare(everything(), {"top": STAMP - MS}, ego=EgoMotionBuffer())
        assert prepared.reasons["top"] == NO_EGO_MOTION
        assert not prepared.inputs["lidar_raster"].any()

    def test_without_odometry_the_ego_state_is_zero_and_invalid(self) -> None:
        prepared = prepare({}, ego=EgoMotionBuffer())
        assert prepared.ego_state is None
        assert not prepared.inputs["ego_state"].any()

    def test_odometry_that_ends_too_early_counts_as_none(self) -> None:
        prepared = prepare(everything(), ego=driving(until_ns=STAMP - 400 * MS))
        assert prepared.ego_state is None
        assert ego_features(prepared)["valid"] == 0.0

    def test_ego_state_is_in_si_by_name(self) -> None:
        ego = EgoMotionBuffer()
        for step in range(-50, 6):
            t = step * 0.02
            speed = 10.0 + 2.0 * t
            ego.add(
                EgoState(
                    STAMP + step * 20 * MS,
                    SE3.planar(10.0 * t + t * t, 1.0, 0.1),
                    np.array([speed, 0.0, 0.0]),
                    0.05,
                )
            )
        route = Route(np.array([[-50.0, 0.0], [200.0, 0.0]]))
        features = ego_features(prepare({}, ego=ego, route=route))
        expected = {
            "speed": 10.0,
            "yaw_rate": 0.05,
            "acceleration": 2.0,
            "speed_limit": 15.0,
            "lateral_offset": 1.0,
            "heading_error": 0.1,
            "valid": 1.0,
        }
        assert features == pytest.approx(expected, abs=1e-4)


class TestRoute:
    def test_route_is_seen_from_the_robot(self) -> None:
        route = Route(np.array([[-10.0, 2.0], [150.0, 2.0]]))
        prepared = prepare({}, route=route)
        assert prepared.route is not None
        assert not prepared.route.assumed
        np.testing.assert_allclose(prepared.inputs["route"][0, :2], [[0, 2, 1, 0], [3, 2, 1, 0]], atol=1e-5)

    @pytest.mark.parametrize("with_ego", [True, False])
    def test_straight_ahead_is_assumed_and_said(self, with_ego: bool) -> None:
        prepared = prepare({}, ego=driving(5.0, 0.3) if with_ego else EgoMotionBuffer())
        assert prepared.route is not None
        assert prepared.route.assumed
        np.testing.assert_allclose(prepared.inputs["route"][0, 10], [30, 0, 1, 0], atol=1e-5)

    def test_route_without_a_pose_on_it_is_not_placed_by_guess(self) -> None:
        route = Route(np.array([[0.0, 5.0], [100.0, 5.0]]))
        prepared = prepare({}, ego=EgoMotionBuffer(), route=route, assume_straight_route=False)
        assert prepared.route is None
        assert not prepared.inputs["route"].any()

    def test_nothing_is_assumed_if_that_is_forbidden(self) -> None:
        prepared = prepare({}, assume_straight_route=False)
        assert prepared.route is None

    def test_robot_does_not_leap_where_a_route_crosses_itself(self) -> None:
        # North, then a loop that comes back eastwards across the first stretch; the robot is on its last leg.
        route = Route(np.array([[0.0, -60.0], [0.0, 60.0], [-60.0, 60.0], [-60.0, 0.0], [60.0, 0.0]]))
        preprocessor = Preprocessor(NETWORK, TINY)
        headings = []
        ego = driving(10.0, until_ns=STAMP + 1000 * MS)
        for step in range(-5, 6):
            empty = AssembledFrame(STAMP + step * 100 * MS, "top", {}, {}, STAMP, step + 5)
            prepared = preprocessor.prepare(empty, ego, route, 15.0)
            assert prepared.route is not None
            headings.append(prepared.route.heading_error)
        np.testing.assert_allclose(headings, 0.0, atol=1e-6)

    def test_robot_is_found_anew_after_a_jump_of_the_odometry(self) -> None:
        # Out and back 10 m beside it; odometry jumps from the way out to the way back.
        route = Route(np.array([[-100.0, 0.0], [200.0, 0.0], [200.0, 10.0], [-100.0, 10.0]]))
        preprocessor = Preprocessor(NETWORK, TINY)
        ego = driving(5.0, until_ns=STAMP)
        assert preprocessor.prepare(frame({}), ego, route, 15.0).route is not None
        later = STAMP + 100 * MS
        ego.add(EgoState(later, SE3.planar(0.0, 10.0, np.pi), np.array([5.0, 0.0, 0.0]), 0.0))
        after = preprocessor.prepare(AssembledFrame(later, "top", {}, {}, later, 1), ego, route, 15.0)
        assert after.route is not None
        assert after.route.lateral_offset == pytest.approx(0.0, abs=1e-6)

    def test_robot_is_found_anew_on_a_new_route(self) -> None:
        preprocessor = Preprocessor(NETWORK, TINY)
        ego = driving()
        for start in (-10.0, -300.0, -10.0):
            route = Route(np.array([[start, 1.0], [200.0, 1.0]]))
            prepared = preprocessor.prepare(frame({}), ego, route, 15.0)
            assert prepared.route is not None
            np.testing.assert_allclose(prepared.inputs["route"][0, 0], [0, 1, 1, 0], atol=1e-5)


def camera_info(**changes: Any) -> Any:
    k = [360.0, 0.0, 350.0, 0.0, 361.0, 120.0, 0.0, 0.0, 1.0]
    p = [340.0, 0.0, 348.0, 0.0, 0.0, 341.0, 121.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    defaults = {"width": 704, "height": 256, "k": k, "p": p, "d": [0.0] * 5, "binning_x": 0, "binning_y": 0}
    return SimpleNamespace(**{**defaults, **changes})


class TestCameraInfo:
    front = TINY.cameras[0]

    def test_intrinsics_are_taken_from_the_message(self) -> None:
        camera = check_camera_info(self.front, camera_info())
        assert (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px) == (360.0, 361.0, 350.0, 120.0)
        assert camera.mount == self.front.mount

    def test_a_lens_with_distortion_gives_those_of_the_rectified_picture(self) -> None:
        camera = check_camera_info(self.front, camera_info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]))
        assert (camera.fx_px, camera.cx_px, camera.cy_px) == (340.0, 348.0, 121.0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"width": 640, "height": 480}, "camera 'front'.*says 640x480, the rig says 704x256"),
            ({"k": [700.0, 0, 350, 0, 361, 120, 0, 0, 1]}, "fx 700.0 px against the rig's 352.0 px"),
            ({"k": [360.0, 0, 350, 0, 200, 120, 0, 0, 1]}, "fy 200.0 px against the rig's 352.0 px"),
            ({"k": [360.0, 0, 50, 0, 361, 120, 0, 0, 1]}, "cx 50.0 px against the rig's 351.5 px"),
            ({"k": [360.0, 0, 350, 0, 361, 10, 0, 0, 1]}, "cy 10.0 px against the rig's 127.5 px"),
            ({"k": [0.0] * 9}, "not calibrated"),
            ({"k": [float("nan")] * 9}, "not calibrated"),
            ({"binning_x": 2}, "binned"),
        ],
    )
    def test_intrinsics_of_another_camera_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RigError, match=message):
            check_camera_info(self.front, camera_info(**changes))


class TestRigFiles:
    @pytest.mark.parametrize("name", ["tiny", "kitti_highway"])
    def test_rig_fits_the_tiny_network(self, name: str) -> None:
        Preprocessor(NETWORK, load_rig(ROOT / "config" / "rigs" / f"{name}.yaml"))

    def test_tiny_fills_every_slot_and_pictures_are_twice_the_network_size(self) -> None:
        slots = {*NETWORK.cameras, *NETWORK.lidars, *NETWORK.radars}
        assert {sensor.name for sensor in TINY.sensors} == slots
        for camera in TINY.cameras:
            crop = ImageCrop.of(camera, NETWORK)
            assert (crop.width, crop.height) == (2 * NETWORK.image_width, 2 * NETWORK.image_height)


@pytest.fixture(scope="module")
def kitti_bag() -> Path:
    shared = Path(os.environ.get("E2E_PERCEPTION_TEST_DATA", ROOT.parent / "shared" / "data"))
    bag = shared / "kitti_highway"
    if not bag.is_dir():
        pytest.skip(f"no real bag at {bag}; set E2E_PERCEPTION_TEST_DATA")
    return bag


class TestRealBag:
    @pytest.fixture(scope="class")
    def first_messages(self, kitti_bag: Path) -> dict[str, Any]:
        highlevel = pytest.importorskip("rosbags.highlevel")
        first: dict[str, Any] = {}
        with highlevel.AnyReader([kitti_bag]) as reader:
            for connection, _, raw in reader.messages():
                if connection.topic not in first:
                    first[connection.topic] = reader.deserialize(raw, connection.msgtype)
                if len(first) == len(reader.connections):
                    break
        return first

    @pytest.fixture(scope="class")
    def rig(self) -> Rig:
        return load_rig(ROOT / "config" / "rigs" / "kitti_highway.yaml")

    def test_rig_file_says_what_the_bag_says(self, first_messages: dict[str, Any], rig: Rig) -> None:
        camera = rig.cameras[0]
        assert check_camera_info(camera, first_messages[camera.camera_info_topic or ""]) == camera
        parent_from_child = {}
        for transform in first_messages["/tf_static"].transforms:
            t, q = transform.transform.translation, transform.transform.rotation
            parent_from_child[transform.header.frame_id, transform.child_frame_id] = SE3(
                rotation_from_quaternion(q.x, q.y, q.z, q.w), np.array([t.x, t.y, t.z])
            )
        base_from_lidar = parent_from_child["base_link", "lidar"]
        base_from_camera = base_from_lidar @ parent_from_child["lidar", "camera_front_optical"]
        for sensor, expected in ((rig.lidars[0], base_from_lidar), (camera, base_from_camera)):
            np.testing.assert_allclose(sensor.base_from_sensor.matrix, expected.matrix, atol=1e-9)

    def test_real_frame_is_prepared_whole(self, first_messages: dict[str, Any], rig: Rig) -> None:
        topics = {sensor.name: sensor.topic for sensor in rig.sensors}
        payloads = {name: first_messages[topic] for name, topic in topics.items()}
        prepared = prepare(payloads, rig=rig)
        assert prepared.reasons == {}
        np.testing.assert_array_equal(prepared.inputs["camera_valid"], [[1, 0, 0]])
        num_sent = payloads["top"].width
        assert 0.999 * num_sent < len(prepared.points_base) < num_sent  # all but those on the car itself
        channels = lidar_channels(prepared)
        assert (channels["log_count"] > 0).mean() > 0.05
        assert 0.05 < channels["intensity"][channels["log_count"] > 0].mean() < 0.5
        # The road in front of the car: seen as ground, and near z = 0.
        near = np.abs(prepared.points_base[:, 1]) < 4
        near &= (prepared.points_base[:, 0] > 4) & (prepared.points_base[:, 0] < 8)
        heights = prepared.points_base[near, 2]
        assert abs(np.median(heights[heights < 0.3])) < 0.1
