"""What rain and fog do to light and radar waves: the formulas, for all sensor models alike.

Only single scattering, of drops that are the same everywhere. Not modelled: snow, spray behind vehicles,
puddles and their reflections, drops on lenses and covers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.simulation.scene import Conditions

# Rain in visible and near infrared light, 1.076 R^0.67 dB/km (Carbonneau and Wisely, 1998; ITU-R P.1814).
RAIN_EXTINCTION = 1.076e-3 * np.log(10.0) / 10.0  # [1/m] at 1 mm/h
RAIN_EXTINCTION_POWER = 0.67
# At 77 GHz (ITU-R P.838-3), one way; the attenuation by fog is a tenth of it and left out.
RADAR_RAIN_DB = 1.13e-3  # [dB/m] at 1 mm/h
RADAR_RAIN_POWER = 0.72
# From clear air on, a contrast of 5 % is what a human makes out (meteorological optical range, WMO-No. 8).
LEAST_CONTRAST = 0.05

# Clouds darken the day and water darkens the road; assumptions, not measurements.
RAIN_DARKENING = 0.35  # of the light, at most
RAIN_DARKENING_RATE = 20.0  # [mm/h] at which 63 % of it are reached
WET_RATE = 2.0  # [mm/h] at which the road is 63 % wet
WET_DARKENING = 0.35  # of what a wet road gives back to a camera; the rest is mirrored away
WET_REFLECTIVITY_LOSS = 0.6  # the same for a lidar, whose beam comes from where it looks

# Backscatter of fog, 0.046 / MOR per metre and steradian (Rasshofer et al., 2011; Hahner et al., ICCV 2021),
# with MOR = ln 20 / extinction. Drops of rain scatter back as much of what they take.
BACKSCATTER = 0.046 / np.log(20.0)
PULSE_LENGTH = 3.0  # [m] that light travels there and back within a pulse of 20 ns
# Where beam and field of view of the receiver begin to overlap and where they do fully: Hahner et al. have
# 0.9 and 1.0 m. With more, as for mirrors of some centimetres, half of the targets of 50 % reflectivity are
# still found at 18 m in fog of 50 m visibility; with theirs, at 9 m.
OVERLAP = (1.0, 10.0)  # [m]
# Standard deviation of the logarithm of what comes back: fog is nearly even, rain is single drops (assumed).
FOG_FLUCTUATION, RAIN_FLUCTUATION = 0.7, 1.5
# The receiver filters against just that: such a return passes with probability 1 - exp(-(signal / knee)^4).
# An assumption, by which there are hardly any in 3 km visibility, and one on most free rays in 50 m.
AIR_KNEE = 1e-4  # [1/m^2]
NEGLIGIBLE = 5e-4  # [1/m] extinction below which nothing comes back from the air

# Rain drops in pictures: number by size after Marshall and Palmer (1948).
_DROPS = 8000.0  # [1/(m^3 mm)]
_SLOPE, _SLOPE_POWER = 4.1, -0.21  # [1/mm] at 1 mm/h


def rain_extinction(rain: float) -> float:
    """[1/m] of visible and near infrared light in rain [mm/h]."""
    return float(RAIN_EXTINCTION * rain**RAIN_EXTINCTION_POWER) if rain > 0.0 else 0.0


def extinction(conditions: Conditions) -> float:
    """[1/m] of visible and near infrared light: haze, fog and rain together."""
    return conditions.haze + rain_extinction(conditions.rain)


def fluctuation(conditions: Conditions) -> float:
    """Standard deviation of the logarithm of what the air gives back, fog and rain by their share."""
    rain = rain_extinction(conditions.rain) / max(extinction(conditions), 1e-9)
    return float(np.sqrt(rain * RAIN_FLUCTUATION**2 + (1.0 - rain) * FOG_FLUCTUATION**2))


def visible_range(conditions: Conditions) -> float:
    """How far away something black keeps 5 % of its contrast [m]: ln 20 / extinction (Koschmieder, 1924)."""
    return float(-np.log(LEAST_CONTRAST) / max(extinction(conditions), 1e-9))


def radar_loss_db(rain: float, ranges_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) [dB] that rain [mm/h] takes from an echo over ranges (K,) [m], there and back."""
    return np.asarray(2.0 * RADAR_RAIN_DB * max(rain, 0.0) ** RADAR_RAIN_POWER * ranges_K)


def daylight(conditions: Conditions) -> float:
    """0.1 … 1: the brightness that is left below the clouds."""
    clouds = RAIN_DARKENING * (1.0 - np.exp(-conditions.rain / RAIN_DARKENING_RATE))
    return float(conditions.brightness * (1.0 - clouds))


def wetness(conditions: Conditions) -> float:
    """0 (dry) … 1 of the ground."""
    return float(1.0 - np.exp(-conditions.rain / WET_RATE))


@dataclass(frozen=True)
class AirReturn:
    """What comes back from the air itself.

    Attributes:
        signal: Of the strongest pulse length [1/m^2], on the scale of reflectivity * cosine / range^2.
        ranges_T: (T,) [m], equally likely distances of drops that give a return, rising.
    """

    signal: float
    ranges_T: NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def air_return(extinction_: float) -> AirReturn:
    """What comes back from fog or rain, by the lidar equation for a soft target (Hahner et al., 2021, eq. 8).

    Args:
        extinction_: [1/m]
    Returns:
        The signal, pi * backscatter * max over R of the integral over the last `PULSE_LENGTH` metres before R
        of overlap(r) exp(-2 extinction r) / r^2 (a hard target of reflectivity rho scatters back rho / pi).
    """
    r = np.arange(OVERLAP[0], 60.0, 0.05)
    overlap = np.clip((r - OVERLAP[0]) / (OVERLAP[1] - OVERLAP[0]), 0.0, 1.0)
    density = overlap * np.exp(-2.0 * extinction_ * r) / np.square(r)
    total = np.concatenate([[0.0], np.cumsum(density) * 0.05])
    within = round(PULSE_LENGTH / 0.05)
    strongest = float((total[within:] - total[:-within]).max())
    ranges_T = np.interp((np.arange(512) + 0.5) / 512.0, total[1:] / total[-1], r).astype(np.float32)
    ranges_T.setflags(write=False)
    return AirReturn(float(np.pi * BACKSCATTER * extinction_ * strongest), ranges_T)


@dataclass(frozen=True)
class Streaks:
    """Rain drops as a camera of a certain focal length sees them during an exposure; D drops.

    Attributes:
        lengths_D, widths_D: (D,) [px].
    """

    lengths_D: NDArray[np.float64]
    widths_D: NDArray[np.float64]


def rain_streaks(
    rain: float,
    focal_px: float,
    area_px: float,
    rng: np.random.Generator,
    *,
    reach: float = 2.5,
    exposure_s: float = 0.01,
) -> Streaks:
    """Drops above 1 mm within reach of a camera (Garg and Nayar, 2007, without their oscillation).

    Args:
        rain: [mm/h]
        focal_px: [px]
        area_px: Of the picture [px^2].
        rng: Draws their number, sizes and distances.
        reach: [m], beyond which a drop is too thin to be seen.
        exposure_s: During which a drop of diameter D [mm] falls at 9.65 - 10.3 exp(-0.6 D) m/s (Atlas, 1973).
    """
    slope = _SLOPE * rain**_SLOPE_POWER
    per_volume = _DROPS / slope * np.exp(-slope)
    volume = area_px / focal_px**2 * reach**3 / 3.0
    num = int(rng.poisson(per_volume * volume))
    depths = reach * np.cbrt(rng.uniform(0.002, 1.0, num))
    diameters = 1.0 + rng.exponential(1.0 / slope, num)
    speeds = 9.65 - 10.3 * np.exp(-0.6 * diameters)
    return Streaks(speeds * exposure_s * focal_px / depths, 1e-3 * diameters * focal_px / depths)
