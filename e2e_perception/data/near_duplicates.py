"""Clips that show nearly the same, found without comparing every clip with every other.

A clip is hashed to bits that change little with noise and compression: the low frequencies of its pictures
and of its lidar raster, each bit whether one is above the median (Zauner 2010). Two hashes that
differ in few bits agree in one of several bands entirely, so that only clips that share a band are compared.
A sensor that was not there has no bands, or all clips without it would share them.

Legend: H W image, Y X cells, D bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import LIDAR_CHANNELS

SIDE = 32  # cells per side before frequencies are taken
FREQUENCIES = 8  # per direction that are kept; the mean is not
BANDS = 6  # of each of the two sensors
TOLERANCE = 2 * BANDS - 1  # bits that may differ, so that a band is left in which none does

_LOW, _HEIGHT = LIDAR_CHANNELS.index("low"), LIDAR_CHANNELS.index("max_height")


def perceptual_hash(clip: Clip) -> NDArray[np.bool_] | None:
    """(D,) bits of the first frame: pictures, then the lidar raster; None if it has neither.

    A sensor that was not there, or that saw the same everywhere, gives zeros.
    """
    seen = clip.inputs["camera_valid"][0] > 0.5
    pictures: list[NDArray[np.float32]] = []
    for picture, there in zip(clip.inputs["images"][0], seen.tolist(), strict=True):
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
        pictures.append(np.where(there, grey, 0.0).astype(np.float32))
    mass_YX = clip.inputs["lidar_raster"][0, _LOW:_HEIGHT].astype(np.float32).sum(axis=0)
    mapped = clip.inputs["lidar_valid"][0].max() > 0.5 and bool(mass_YX.any())
    if not seen.any() and not mapped:
        return None
    bits = [
        _low_frequencies(np.concatenate(pictures, axis=1)) if seen.any() else _NONE,
        _low_frequencies(mass_YX) if mapped else _NONE,
    ]
    return np.concatenate(bits)


_NONE = np.zeros(FREQUENCIES**2 - 1, np.bool_)


def _low_frequencies(values_HW: NDArray[np.float32]) -> NDArray[np.bool_]:
    small = cv2.resize(values_HW, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = np.asarray(cv2.dct(small), np.float32)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.asarray(low > np.median(low))


@dataclass
class HashIndex:
    """Hashes so far, each with a name."""

    _hashes: list[NDArray[np.bool_]] = field(default_factory=list)
    _names: list[tuple[str, ...]] = field(default_factory=list)
    _bands: defaultdict[tuple[int, bytes], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, bits_D: NDArray[np.bool_], name: tuple[str, ...]) -> None:
        """Keep a hash."""
        index = len(self._hashes)
        self._hashes.append(bits_D)
        self._names.append(name)
        for key in _bands(bits_D):
            self._bands[key].append(index)

    def nearest(
        self, bits_D: NDArray[np.bool_], counts: Callable[[tuple[str, ...]], bool] = lambda _name: True
    ) -> tuple[int, tuple[str, ...]] | None:
        """The likest hash.

        Args:
            bits_D: Compared with all.
            counts: By name, whether a hash is looked at.
        Returns:
            How many bits differ, and its name; None if all differ by more than `TOLERANCE`, or by more than
            half of it where only one sensor gives bits.
        """
        bands = _bands(bits_D)
        tolerance = len(bands) - 1
        candidates = {index for key in bands for index in self._bands.get(key, ())}
        best: tuple[int, int] | None = None
        for index in sorted(k for k in candidates if counts(self._names[k])):
            distance = int((self._hashes[index] != bits_D).sum())
            if distance <= tolerance and (best is None or distance < best[0]):
                best = (distance, index)
        return None if best is None else (best[0], self._names[best[1]])


def _bands(bits_D: NDArray[np.bool_]) -> list[tuple[int, bytes]]:
    """Numbers and bits of the bands of the sensors that gave any bits."""
    return [
        (BANDS * sensor + k, np.packbits(band).tobytes())
        for sensor, own in enumerate(np.split(bits_D, 2))
        if own.any()
        for k, band in enumerate(np.array_split(own, BANDS))
    ]
