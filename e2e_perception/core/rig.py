"""The sensor rig: what is mounted where, on which topic, at which rate.

A rig's sensors are matched to a bundle's input slots by name and kind: a robot may lack some slots
(they stay invalid), but may not bring a sensor that the bundle does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from e2e_perception.core.errors import ConfigError, RigError
from e2e_perception.core.frames import BODY_FROM_OPTICAL, SE3
from e2e_perception.core.resources import config_dir

Vector3 = tuple[float, float, float]

FOOTPRINT_TOLERANCE = 0.2  # [m]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Mount(_Frozen):
    """Pose of a sensor's *body* (x forward, y left, z up) in `base_link`."""

    xyz: Vector3 = Field(description="Position [m].")
    rpy_deg: Vector3 = Field((0.0, 0.0, 0.0), description="Fixed-axis roll, pitch, yaw [deg].")

    @property
    def base_from_body(self) -> SE3:
        """Body pose in the base frame."""
        return SE3.from_xyz_rpy(self.xyz, np.deg2rad(self.rpy_deg))


class _Sensor(_Frozen):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Slot name, e.g. `front`.")
    topic: str = Field(description="ROS topic of the data.")
    frame_id: str = Field(description="TF frame of the data.")
    mount: Mount
    rate_hz: float = Field(10.0, gt=0.0, description="Nominal rate [Hz].")
    offset_ms: float = Field(
        0.0, description="Expected stamp minus anchor stamp [ms]; the assembler looks there."
    )
    tolerance_ms: float = Field(
        50.0, gt=0.0, description="Largest distance from anchor stamp plus offset [ms]."
    )
    latency_ms: float = Field(
        0.0, ge=0.0, description="Typical arrival minus stamp [ms]; used by the simulator."
    )
    jitter_ms: float = Field(
        0.0, ge=0.0, description="Standard deviation of that latency [ms]; used by the simulator."
    )


class Camera(_Sensor):
    """A rectified pinhole camera."""

    kind: Literal["camera"] = "camera"
    camera_info_topic: str | None = Field(
        None, description="ROS topic of CameraInfo; None: the rig file's intrinsics are final."
    )
    width: int = Field(gt=0, description="[px]")
    height: int = Field(gt=0, description="[px]")
    fx_px: float = Field(gt=0.0)
    fy_px: float = Field(gt=0.0)
    cx_px: float
    cy_px: float

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """(3, 3) camera matrix [px], image origin at the centre of the top-left pixel."""
        return np.array([[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]])

    @property
    def base_from_sensor(self) -> SE3:
        """Pose of the optical frame (x right, y down, z forward) in `base_link`."""
        return self.mount.base_from_body @ SE3(BODY_FROM_OPTICAL, np.zeros(3))

    @property
    def image_from_base(self) -> NDArray[np.float64]:
        """(3, 4) projection of base-frame points to homogeneous pixels at full resolution."""
        return self.intrinsics @ self.base_from_sensor.inverse().matrix[:3]


class Lidar(_Sensor):
    """A spinning lidar; the beam fields serve the simulator."""

    kind: Literal["lidar"] = "lidar"
    num_beams: int = Field(32, gt=0)
    elevation_min_deg: float = Field(-25.0, description="Lowest beam [deg].")
    elevation_max_deg: float = Field(5.0, description="Highest beam [deg].")
    azimuth_step_deg: float = Field(0.4, gt=0.0, description="Horizontal resolution [deg].")
    max_range: float = Field(100.0, gt=0.0, description="[m]")
    range_noise: float = Field(0.02, ge=0.0, description="Standard deviation of range [m].")
    dropout: float = Field(0.02, ge=0.0, lt=1.0, description="Share of returns lost.")

    @property
    def base_from_sensor(self) -> SE3:
        """Pose of the lidar frame in `base_link`."""
        return self.mount.base_from_body


class Radar(_Sensor):
    """A radar that reports points with Doppler (fields x y z velocity rcs)."""

    kind: Literal["radar"] = "radar"
    fov_deg: float = Field(120.0, gt=0.0, le=360.0, description="Horizontal field of view [deg].")
    max_range: float = Field(100.0, gt=0.0, description="[m]")
    range_noise: float = Field(0.3, ge=0.0, description="Standard deviation [m].")
    azimuth_noise_deg: float = Field(0.8, ge=0.0, description="Standard deviation [deg].")
    doppler_noise: float = Field(0.15, ge=0.0, description="Standard deviation [m/s].")
    clutter: float = Field(3.0, ge=0.0, description="Mean number of false returns per scan.")

    @property
    def base_from_sensor(self) -> SE3:
        """Pose of the radar frame in `base_link`."""
        return self.mount.base_from_body


Sensor = Annotated[Camera | Lidar | Radar, Field(discriminator="kind")]


class Rig(_Frozen):
    """All sensors of one robot, plus where its odometry and route come from."""

    name: str
    base_frame: str = "base_link"
    odom_topic: str = "/odom"
    route_topic: str = "/route"
    ego_length: float = Field(4.6, gt=0.0, description="Length of the robot [m].")
    ego_width: float = Field(1.9, gt=0.0, description="Width of the robot [m].")
    ego_center_x: float = Field(1.4, description="Centre of the robot ahead of `base_link` (rear axle) [m].")
    sensors: tuple[Sensor, ...]

    @model_validator(mode="after")
    def _unique(self) -> Rig:
        for attribute in ("name", "topic"):
            values = [getattr(sensor, attribute) for sensor in self.sensors]
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                raise ValueError(f"sensor {attribute} used twice: {', '.join(doubled)}")
        if not any(s.kind in ("camera", "lidar") for s in self.sensors):
            raise ValueError("a rig needs at least one camera or lidar to anchor its frames")
        return self

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Cameras in file order."""
        return tuple(s for s in self.sensors if isinstance(s, Camera))

    @property
    def lidars(self) -> tuple[Lidar, ...]:
        """Lidars in file order."""
        return tuple(s for s in self.sensors if isinstance(s, Lidar))

    @property
    def radars(self) -> tuple[Radar, ...]:
        """Radars in file order."""
        return tuple(s for s in self.sensors if isinstance(s, Radar))

    def sensor(self, name: str) -> Camera | Lidar | Radar:
        """The sensor of that name.

        Raises:
            RigError: If there is none.
        """
        for sensor in self.sensors:
            if sensor.name == name:
                return sensor
        known = ", ".join(s.name for s in self.sensors)
        raise RigError(f"rig {self.name!r} has no sensor {name!r}; it has {known}")

    def footprint_note(self, trained: Rig) -> str | None:
        """What to know if this robot has another size than the one that a network was trained for.

        Args:
            trained: The rig of the bundle.
        Returns:
            A sentence; None if length, width and centre agree within `FOOTPRINT_TOLERANCE`.
        """
        names = ("ego_length", "ego_width", "ego_center_x")
        if all(abs(getattr(self, n) - getattr(trained, n)) <= FOOTPRINT_TOLERANCE for n in names):
            return None
        here, there = (
            f"{rig.ego_length:g} x {rig.ego_width:g} m, centre at {rig.ego_center_x:g} m"
            for rig in (self, trained)
        )
        return (
            f"the robot is {here}, the bundle was trained for {there}: the network's collision cost "
            "is that of the latter, the supervisor's check that of the robot"
        )

    def with_topics(self, topics: dict[str, str]) -> Rig:
        """The same rig with the topics of some sensors replaced, by sensor name."""
        for name in topics:
            self.sensor(name)
        sensors = tuple(s.model_copy(update={"topic": topics.get(s.name, s.topic)}) for s in self.sensors)
        return self.model_copy(update={"sensors": sensors})

    def with_topic_rules(self, rules: Iterable[str]) -> Rig:
        """The same rig with topics replaced as configured.

        Args:
            rules: Each `sensor:=/topic`, see `node.sensor_topics`.
        Raises:
            ConfigError: If a rule is malformed.
            RigError: If there is no such sensor.
        """
        topics = {}
        for rule in rules:
            name, separator, topic = rule.partition(":=")
            if not (name and separator and topic):
                raise ConfigError(f"node.sensor_topics has {rule!r}, expected `sensor:=/topic`")
            topics[name] = topic
        return self.with_topics(topics)

    def with_sensors(self, replacements: dict[str, Camera | Lidar | Radar]) -> Rig:
        """The same rig with some sensors replaced, by name (calibration from CameraInfo or TF)."""
        for name in replacements:
            self.sensor(name)
        return self.model_copy(update={"sensors": tuple(replacements.get(s.name, s) for s in self.sensors)})


def load_rig(path: str | Path) -> Rig:
    """Read a rig from YAML.

    Raises:
        RigError: If the file is missing, not YAML, or does not describe a rig; the message names the
            file and each offending key.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RigError(f"cannot read rig file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RigError(f"rig file {path} is not valid YAML: {error}") from error
    try:
        return Rig.model_validate(document)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'rig'}: {item['msg']}"
            for item in error.errors()
        )
        raise RigError(f"rig file {path}: {details}") from error


def find_rig(path_or_name: str | Path) -> Rig:
    """The rig in a file, or the shipped one of that name (`config/rigs/NAME.yaml`).

    Raises:
        RigError: If there is none, the message lists the shipped ones; or if it is malformed.
    """
    text = str(path_or_name)
    if Path(text).is_file():
        return load_rig(text)
    shipped = {path.stem: path for path in sorted((config_dir() / "rigs").glob("*.yaml"))}
    if text in shipped:
        return load_rig(shipped[text])
    raise RigError(
        f"no rig {text!r}: neither a file nor one of the shipped rigs ({', '.join(shipped) or 'none'})"
    )
