"""Degradation schedules: which sensor suffers from what, how much, from when to when.

An entry's quantity at an instant is its level times what its own parameters say for level 1. The level is
`strength` between `from_s` and `to_s`, reached in `ramp_s`, and 0 otherwise; what is on or off (`death`,
`freeze`) is on for a share of the time instead. Times are seconds since the start of the episode. How each
effect acts on measurements is in `impairment`, weather in `weather`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.named_files import offending_keys, read_named, shipped_files
from e2e_perception.core.rig import Camera, Lidar, Radar, Rig
from e2e_perception.simulation.scene import Conditions

FOLDER = "degradations"  # in config/
KINDS = ("camera", "lidar", "radar")
ALL = "all"
NIGHT_SKY = (12, 14, 24)
CLOUDS = (165, 170, 175)
FOG_SKY = (188, 190, 192)
FULL_CLOUDS_RAIN = 2.0  # [mm/h] from which on the sky is all grey


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Effect(_Frozen):
    """One entry of a schedule; the subclasses are the effects."""

    kinds: ClassVar[tuple[str, ...]] = KINDS
    sensors: str = Field(ALL, description="A sensor's name, a kind (`camera`, `lidar`, `radar`), or `all`.")
    strength: float = Field(1.0, ge=0.0, le=1.0, description="Share of what the parameters say.")
    from_s: float = Field(0.0, ge=0.0, description="When it begins [s].")
    to_s: float | None = Field(None, description="When it ends [s]; null: never.")
    ramp_s: float = Field(0.0, ge=0.0, description="How long it takes to reach its strength [s].")

    @model_validator(mode="after")
    def _times_in_order(self) -> Effect:
        if self.to_s is not None and self.to_s <= self.from_s:
            raise ValueError(
                f"to_s is {self.to_s:g}, which is not after from_s, {self.from_s:g}; swap them, or leave "
                "to_s out for an effect that stays"
            )
        return self

    def level(self, time_s: float) -> float:
        """0 … `strength` at a time since the start [s]."""
        if time_s < self.from_s or (self.to_s is not None and time_s >= self.to_s):
            return 0.0
        rise = 1.0 if self.ramp_s == 0.0 else min((time_s - self.from_s) / self.ramp_s, 1.0)
        return self.strength * rise

    def concerns(self, sensor: Camera | Lidar | Radar) -> bool:
        """Whether it acts on a sensor."""
        return sensor.kind in self.kinds and self.sensors in (ALL, sensor.kind, sensor.name)


class _Weather(Effect):
    """Weather is the world's: all sensors see the same."""

    @model_validator(mode="after")
    def _for_all(self) -> _Weather:
        if self.sensors != ALL:
            raise ValueError(
                f"sensors is {self.sensors!r}, but all sensors have the same weather; leave sensors out, or "
                "use blur, noise or range_loss for a single one"
            )
        return self


class Rain(_Weather):
    """`Conditions.rain` rises to at least level * rate, and the sky turns grey."""

    effect: Literal["rain"]
    rate_mm_h: float = Field(50.0, ge=0.0, le=150.0, description="Rate of rain [mm/h].")


class Fog(_Weather):
    """`Conditions.haze` grows by level * extinction, and the sky fades to that of fog."""

    effect: Literal["fog"]
    extinction: float = Field(
        0.06, ge=0.0, le=0.3, description="[1/m]; one sees ln 20 / extinction metres, 50 m by default."
    )


class Night(_Weather):
    """Brightness b falls to b - level * max(b - brightness, 0), and the sky darkens likewise."""

    effect: Literal["night"]
    brightness: float = Field(0.12, ge=0.05, le=1.0, description="What is left; noon is 1.")


class Glare(_Weather):
    """A low sun: `Conditions.glare` is level; cameras bloom around it unless something stands before it."""

    effect: Literal["glare"]
    azimuth_deg: float = Field(
        0.0, ge=-360.0, le=360.0, description="From the robot's heading at the start, left positive [deg]."
    )
    elevation_deg: float = Field(6.0, ge=0.0, le=45.0, description="Above the horizon [deg].")


class Dirt(Effect):
    """Blobs on the lens, the same for a whole episode: level * opacity of the picture is of dirt's colour."""

    kinds: ClassVar[tuple[str, ...]] = ("camera",)
    effect: Literal["dirt"]
    blobs: int = Field(12, ge=1, le=200, description="Their number.")
    radius: float = Field(0.12, gt=0.0, le=1.0, description="Mean radius as a share of the picture's height.")
    opacity: float = Field(0.95, ge=0.0, le=1.0, description="At a blob's middle.")


class Blur(Effect):
    """Gaussian blur of standard deviation level * sigma."""

    kinds: ClassVar[tuple[str, ...]] = ("camera",)
    effect: Literal["blur"]
    sigma_deg: float = Field(0.8, gt=0.0, le=10.0, description="In the picture's middle [deg].")


class BeamLoss(Effect):
    """level * share of all beams are dead; which ones is drawn once per episode, and those stay dead."""

    kinds: ClassVar[tuple[str, ...]] = ("lidar",)
    effect: Literal["beam_loss"]
    share: float = Field(0.75, ge=0.0, le=1.0, description="Of the beams.")


class RangeLoss(Effect):
    """Returns from beyond (1 - level * share) * max_range are lost."""

    kinds: ClassVar[tuple[str, ...]] = ("lidar", "radar")
    effect: Literal["range_loss"]
    share: float = Field(0.8, ge=0.0, le=1.0, description="Of the sensor's range.")


class Miscalibration(Effect):
    """The sensor is not where the rig says: turned by level * rotation and moved by level * translation.

    Axis and direction are drawn once per episode and sensor.
    """

    effect: Literal["miscalibration"]
    rotation_deg: float = Field(2.0, ge=0.0, le=45.0, description="Angle about a random axis [deg].")
    translation: float = Field(0.1, ge=0.0, le=2.0, description="In a random direction [m].")


class ClockOffset(Effect):
    """Stamps are the time of measurement plus level * offset; data arrive when they would anyway."""

    effect: Literal["clock_offset"]
    offset_ms: float = Field(100.0, ge=-10_000.0, le=10_000.0, description="Positive: stamps are late [ms].")


class Latency(Effect):
    """Messages arrive level * extra later."""

    effect: Literal["latency"]
    extra_ms: float = Field(200.0, ge=0.0, le=10_000.0, description="[ms]")


class PacketLoss(Effect):
    """Each message is lost with probability level * share, independently."""

    effect: Literal["packet_loss"]
    share: float = Field(0.5, ge=0.0, le=1.0, description="Of the messages.")


class _Switch(Effect):
    """On or off; there is no half of it. `strength` is the share of time that it is on, as with a loose plug.

    It is on at the beginning of each period. An entry that is shorter than a period is one period.
    """

    period_s: float = Field(3.0, gt=0.0, description="From one beginning to the next, if strength < 1 [s].")

    @model_validator(mode="after")
    def _has_no_ramp(self) -> _Switch:
        if self.ramp_s != 0.0:
            raise ValueError("is on or off: leave out ramp_s; strength is the share of time that it is on")
        return self

    def level(self, time_s: float) -> float:
        """1 while it is on, else 0, at a time since the start [s]."""
        if super().level(time_s) == 0.0:
            return 0.0
        return 1.0 if (time_s - self.from_s) % self._period_s < self.strength * self._period_s else 0.0

    def since_s(self, time_s: float) -> float:
        """Since when it has been on at a time at which it is [s]."""
        if self.strength == 1.0:
            return self.from_s
        return self.from_s + (time_s - self.from_s) // self._period_s * self._period_s

    @property
    def _period_s(self) -> float:
        return self.period_s if self.to_s is None else min(self.period_s, self.to_s - self.from_s)


class Death(_Switch):
    """No message at all."""

    effect: Literal["death"]


class Freeze(_Switch):
    """Messages go on with new stamps, but repeat the last one before it froze."""

    effect: Literal["freeze"]


class Noise(Effect):
    """White noise on top of the sensor's own, of standard deviation level times these."""

    effect: Literal["noise"]
    pixel_std: float = Field(30.0, ge=0.0, le=128.0, description="Cameras, of 255.")
    range_std: float = Field(0.3, ge=0.0, le=10.0, description="Lidars and radars, along the ray [m].")
    doppler_std: float = Field(1.0, ge=0.0, le=20.0, description="Radars [m/s].")


Entry: TypeAlias = (
    Rain
    | Fog
    | Night
    | Glare
    | Dirt
    | Blur
    | BeamLoss
    | RangeLoss
    | Miscalibration
    | ClockOffset
    | Latency
    | PacketLoss
    | Death
    | Freeze
    | Noise
)
ENTRY_TYPES: tuple[type[Effect], ...] = get_args(Entry)


class DegradationSchedule(_Frozen):
    """What goes wrong during an episode."""

    name: str = Field("", description="For tables; the file's name if it is empty.")
    description: str = Field("", description="One sentence for people.")
    entries: tuple[Annotated[Entry, Field(discriminator="effect")], ...]

    def check(self, rig: Rig) -> None:
        """Make sure that every entry concerns a sensor of a rig.

        Raises:
            ConfigError: If one names an unknown sensor, or one that its effect does not exist for.
        """
        named = {sensor.name: sensor.kind for sensor in rig.sensors}
        for index, entry in enumerate(self.entries):
            where = f"degradation {self.name!r}: entry {index} ({entry.effect})"
            if entry.sensors not in (ALL, *KINDS, *named):
                raise ConfigError(
                    f"{where} is for {entry.sensors!r}, which rig {rig.name!r} does not have; name one of "
                    f"{', '.join(named)}, a kind ({', '.join(KINDS)}), or {ALL}"
                )
            if not any(entry.concerns(sensor) for sensor in rig.sensors):
                raise ConfigError(
                    f"{where} is for {entry.sensors!r}, but it only exists for {' and '.join(entry.kinds)}; "
                    f"of these rig {rig.name!r} has "
                    + (", ".join(n for n, kind in named.items() if kind in entry.kinds) or "none")
                )

    def scaled(self, strength: float) -> DegradationSchedule:
        """The same with a share of all strengths; times stay.

        What is on or off is on for that share of the time, see `_Switch`: a third of a death is a sensor that
        is silent for one second of every three.

        Raises:
            ConfigError: If it is no share.
        """
        if not 0.0 < strength <= 1.0:
            raise ConfigError(f"strength is {strength:g}, expected more than 0 and at most 1")
        entries = tuple(
            entry.model_copy(update={"strength": strength * entry.strength}) for entry in self.entries
        )
        return self.model_copy(update={"entries": entries})

    def active(self, sensor: Camera | Lidar | Radar, time_s: float) -> list[tuple[int, Entry, float]]:
        """Entries that act on a sensor itself at a time [s]: index in the schedule, entry, level above 0."""
        found: list[tuple[int, Entry, float]] = []
        for index, entry in enumerate(self.entries):
            if isinstance(entry, _Weather) or not entry.concerns(sensor):
                continue
            level = entry.level(time_s)
            if level > 0.0:
                found.append((index, entry, level))
        return found

    def conditions(self, conditions: Conditions, time_s: float, start_yaw: float) -> Conditions:
        """Light and air with the schedule's weather.

        Args:
            conditions: The world's own.
            time_s: Since the start of the episode [s].
            start_yaw: The robot's heading at the start [rad, odom], which `glare` refers to.
        """
        for entry in self.entries:
            level = entry.level(time_s)
            if level == 0.0:
                continue
            if isinstance(entry, Rain):
                rain = max(conditions.rain, level * entry.rate_mm_h)
                sky = _mixed(conditions.sky, CLOUDS, conditions.brightness, rain / FULL_CLOUDS_RAIN)
                conditions = replace(conditions, rain=rain, sky=sky)
            elif isinstance(entry, Fog):
                haze = level * entry.extinction
                sky = _mixed(conditions.sky, FOG_SKY, conditions.brightness, haze / 0.02)
                conditions = replace(conditions, haze=conditions.haze + haze, sky=sky)
            elif isinstance(entry, Night):
                fall = level * max(conditions.brightness - entry.brightness, 0.0)
                sky = _mixed(conditions.sky, NIGHT_SKY, 1.0, level)
                conditions = replace(conditions, brightness=conditions.brightness - fall, sky=sky)
            elif isinstance(entry, Glare):
                azimuth = start_yaw + float(np.deg2rad(entry.azimuth_deg))
                sun = (azimuth, float(np.deg2rad(entry.elevation_deg)))
                conditions = replace(conditions, glare=max(conditions.glare, level), sun=sun)
        return conditions


def _mixed(
    sky: tuple[int, int, int], other: tuple[int, int, int], brightness: float, share: float
) -> tuple[int, int, int]:
    """The sky, a share of it replaced; a dark sky stays dark, clouds do not shine."""
    share = min(max(share, 0.0), 1.0)
    scale = min(1.0, max(sky) / max(other)) if brightness < 0.3 else 1.0
    r, g, b = (round((1.0 - share) * a + share * scale * c) for a, c in zip(sky, other, strict=True))
    return r, g, b


def load_degradation(path_or_name: str | Path) -> DegradationSchedule:
    """The schedule in a YAML file, or the shipped one of that name (`config/degradations/NAME.yaml`).

    Raises:
        ConfigError: If there is none, the message lists the shipped ones; or if it is malformed, the message
            names each offending key.
    """
    path, document = read_named(
        path_or_name,
        what="degradation",
        folder=FOLDER,
        expected="a mapping with `entries:`; see docs/degradations.md",
    )
    try:
        schedule = DegradationSchedule.model_validate(document)
    except ValidationError as error:
        details = "; ".join(offending_keys(error, "schedule"))
        raise ConfigError(f"degradation {path}: {details}") from error
    return schedule if schedule.name else schedule.model_copy(update={"name": path.stem})


def shipped_degradations() -> dict[str, Path]:
    """Files of the shipped schedules by name."""
    return shipped_files(FOLDER)
