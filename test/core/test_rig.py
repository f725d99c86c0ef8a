from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from e2e_perception.core.errors import RigError
from e2e_perception.core.rig import Camera, Lidar, Mount, Radar, Rig, load_rig

SHIPPED_RIGS = sorted((Path(__file__).parents[2] / "config" / "rigs").glob("*.yaml"))

DOCUMENT: dict[str, Any] = {
    "name": "test",
    "sensors": [
        {
            "kind": "camera",
            "name": "front",
            "topic": "/front",
            "frame_id": "front_optical",
            "mount": {"xyz": [1.5, 0.0, 1.6]},
            "width": 640,
            "height": 360,
            "fx_px": 400.0,
            "fy_px": 410.0,
            "cx_px": 320.0,
            "cy_px": 180.0,
        },
        {
            "kind": "lidar",
            "name": "top",
            "topic": "/top",
            "frame_id": "lidar",
            "mount": {"xyz": [1.0, 0.0, 1.8], "rpy_deg": [0.0, 0.0, 90.0]},
        },
        {
            "kind": "radar",
            "name": "bumper",
            "topic": "/bumper",
            "frame_id": "radar",
            "mount": {"xyz": [3.6, 0.0, 0.5]},
        },
    ],
}


def document(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DOCUMENT), **changes}


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "rig.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_rig_file_is_read_with_each_sensor_of_its_kind(tmp_path: Path) -> None:
    rig = load_rig(write(tmp_path, DOCUMENT))
    assert [type(sensor) for sensor in rig.sensors] == [Camera, Lidar, Radar]
    assert [s.name for s in (*rig.cameras, *rig.lidars, *rig.radars)] == ["front", "top", "bumper"]
    assert rig.sensor("top").mount.xyz == (1.0, 0.0, 1.8)
    assert rig.base_frame == "base_link"


@pytest.mark.parametrize("path", SHIPPED_RIGS, ids=lambda path: path.stem)
def test_shipped_rigs_are_valid(path: Path) -> None:
    rig = load_rig(path)
    assert rig.name == path.stem
    assert rig.cameras


def test_point_straight_ahead_of_the_camera_projects_to_its_principal_point() -> None:
    camera = Rig.model_validate(DOCUMENT).cameras[0]
    points = np.array([[11.5, 0.0, 1.6, 1.0], [11.5, 1.0, 2.6, 1.0]])  # 10 m ahead; 1 m left and up
    pixels = points @ camera.image_from_base.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    np.testing.assert_allclose(pixels, [[320, 180], [320 - 40, 180 - 41]], atol=1e-9)


def test_lidar_points_turn_with_the_mount() -> None:
    lidar = Rig.model_validate(DOCUMENT).lidars[0]
    np.testing.assert_allclose(lidar.base_from_sensor.apply([[5.0, 0.0, 0.0]]), [[1.0, 5.0, 1.8]], atol=1e-12)


def test_mount_angles_are_degrees() -> None:
    assert Mount(xyz=(0, 0, 0), rpy_deg=(0, 0, 30)).base_from_body.yaw == pytest.approx(np.pi / 6, abs=1e-12)


def test_topics_and_calibration_can_be_replaced_by_sensor_name() -> None:
    rig = Rig.model_validate(DOCUMENT)
    moved = rig.with_topics({"front": "/other"})
    assert moved.sensor("front").topic == "/other"
    assert moved.sensor("top") == rig.sensor("top")
    assert rig.sensor("front").topic == "/front"
    camera = rig.cameras[0].model_copy(update={"fx_px": 500.0})
    assert rig.with_sensors({"front": camera}).cameras[0].intrinsics[0, 0] == 500.0


@pytest.mark.parametrize("method", ["with_topics", "with_sensors"])
def test_replacing_an_unknown_sensor_is_refused(method: str) -> None:
    with pytest.raises(RigError, match="rig 'test' has no sensor 'rear'; it has front, top, bumper"):
        getattr(Rig.model_validate(DOCUMENT), method)({"rear": "/rear"})


def spoiled(index: int, **changes: Any) -> dict[str, Any]:
    spoilt = document()
    spoilt["sensors"][index].update(changes)
    return spoilt


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (spoiled(1, name="front"), "sensor name used twice: front"),
        (spoiled(1, topic="/front"), "sensor topic used twice: /front"),
        (spoiled(0, fx_px=-1.0), r"sensors\.0\.camera\.fx_px: Input should be greater than 0"),
        (spoiled(0, focal=1.0), r"sensors\.0\.camera\.focal: Extra inputs are not permitted"),
        (spoiled(1, name="Top Lidar"), r"sensors\.1\.lidar\.name: String should match pattern"),
        (spoiled(1, kind="sonar"), r"sensors\.1: .*'sonar'"),
        (spoiled(1, tolerance_ms=0.0), r"tolerance_ms: Input should be greater than 0"),
        (spoiled(0, cx_px=float("nan")), r"cx_px: Input should be a finite number"),
        (spoiled(1, mount={"xyz": [0.0, 0.0, float("inf")]}), r"mount\.xyz\.2: Input should be a finite"),
        (spoiled(1, mount={"xyz": [0.0, 0.0]}), r"mount\.xyz\.2: Field required"),
        (document(sensors=[DOCUMENT["sensors"][2]]), "needs at least one camera or lidar"),
        (document(wheels=4), "wheels: Extra inputs"),
        ("", "rig: Input should be"),
        ("- a\n- b\n", "rig: Input should be"),
        ("name: [", "is not valid YAML"),
    ],
)
def test_rig_file_that_is_wrong_is_refused_with_file_and_key(
    tmp_path: Path, content: Any, error: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(RigError, match=error) as raised:
        load_rig(path)
    assert str(path) in str(raised.value)


def test_missing_and_binary_rig_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RigError, match=r"cannot read rig file .*No such file"):
        load_rig(tmp_path / "none.yaml")
    binary = tmp_path / "rig.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RigError, match="is not valid YAML"):
        load_rig(binary)


def test_a_robot_of_another_size_than_the_trained_one_is_noted() -> None:
    rig = load_rig(next(path for path in SHIPPED_RIGS if path.stem == "tiny"))
    assert rig.footprint_note(rig) is None
    longer = rig.model_copy(update={"ego_length": 6.0})
    note = longer.footprint_note(rig)
    assert note is not None
    assert "the robot is 6 x 1.9 m" in note
    assert "trained for 4.6 x 1.9 m" in note
