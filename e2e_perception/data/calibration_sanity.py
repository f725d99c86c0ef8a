"""Whether cameras look where their calibration says: edges of lidar rasters against edges of pictures.

Where one thing stands in front of another the picture most likely has an edge, too. Such places are projected
at the stated calibration and at small turns of it; if a turned one meets clearly more of the picture's edges,
frame after frame, the stated one is wrong (after Levinson & Thrun 2013, "Automatic online calibration of
sensors"). Ours has rasters instead of sweeps, so it sees degrees and not tenths of them.

Legend: N points, R turns, F frames, H W image, Y X cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.core.network_config import LIDAR_CHANNELS, LIDAR_SLICES, NetworkConfig
from e2e_perception.data.raster_effects import HEIGHT_SCALE

TURNS_DEG = tuple(float(turn) for turn in range(-6, 7))  # of yaw and, apart from it, of pitch
EVERY = 5  # frames of a clip that is looked at; neighbours show the same
LEAST_FRAMES = 12  # below which nothing is said
LEAST_POINTS = 12  # in a frame
LEAST_TURN_DEG = 2.0  # that is said
LEAST_GAIN = 1.15  # of the edges met, turned over stated
LEAST_SIGMAS = 4.0  # of the gain's mean over frames from none

_LOW, _HEIGHT = LIDAR_CHANNELS.index("low"), LIDAR_CHANNELS.index("max_height")
_BEARING = np.deg2rad(1.0)  # width of the bins in which the nearest counts
_STEP = 2.0  # [m] between neighbours' ranges that makes an edge
_FAR = 40.0  # [m]
_BLUR = 0.012  # of the picture's width, that an edge is wide


@dataclass(frozen=True)
class Misalignment:
    """What is known of one camera.

    Attributes:
        yaw_deg, pitch_deg: By which the camera is turned from where its calibration says; counter-clockwise,
            and down. 0: none that is clear, or nothing can be said.
        frames: That were looked at.
        gain: Edges met there over edges met as stated.
    """

    yaw_deg: float
    pitch_deg: float
    frames: int
    gain: float


class CalibrationProbe:
    """Takes the clips of one recording and says whose calibration does not fit."""

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network
        # By camera: of each frame (2, R), edges met by turns of yaw and of pitch.
        self._met: defaultdict[str, list[NDArray[np.float64]]] = defaultdict(list)

    def add(self, clip: Clip) -> None:
        """Take a clip in."""
        for t in range(0, len(clip), EVERY):
            frame = {name: value[t] for name, value in clip.inputs.items()}
            if float(np.max(frame["lidar_valid"], initial=0.0)) < 0.5:
                continue
            for slot, name in enumerate(self.network.cameras):
                if frame["camera_valid"][slot] < 0.5:
                    continue
                met = edges_met(
                    frame["lidar_raster"],
                    frame["images"][slot],
                    frame["image_from_base"][slot],
                    self.network.grid,
                )
                if met is not None:
                    self._met[name].append(met)

    def found(self) -> Mapping[str, Misalignment]:
        """By camera."""
        return {name: _misalignment(np.stack(met)) for name, met in self._met.items()}


def _misalignment(met_F2R: NDArray[np.float64]) -> Misalignment:
    """The turn about each axis that is clearly better than none."""
    frames, none = len(met_F2R), TURNS_DEG.index(0.0)
    turns, most = [0.0, 0.0], 1.0
    if frames < LEAST_FRAMES:
        return Misalignment(0.0, 0.0, frames, most)
    for axis in range(2):
        met_FR = met_F2R[:, axis]
        best = int(met_FR.mean(axis=0).argmax())
        gain_F = met_FR[:, best] - met_FR[:, none]
        sigmas = gain_F.mean() / max(float(gain_F.std()) / np.sqrt(frames), 1e-9)
        ratio = float(met_FR[:, best].mean() / max(float(met_FR[:, none].mean()), 1e-9))
        if abs(TURNS_DEG[best]) >= LEAST_TURN_DEG and ratio >= LEAST_GAIN and sigmas >= LEAST_SIGMAS:
            turns[axis], most = TURNS_DEG[best], max(most, ratio)
    return Misalignment(turns[0], turns[1], frames, most)


def edges_met(
    raster_7YX: NDArray[Any], image_HW3: NDArray[Any], image_from_base_34: NDArray[Any], grid: BevGrid
) -> NDArray[np.float64] | None:
    """How much of the picture's edges projected lidar edges meet.

    Args:
        raster_7YX: Channels `LIDAR_CHANNELS`.
        image_HW3: uint8.
        image_from_base_34: Homogeneous pixels of homogeneous points.
        grid: Of the raster.
    Returns:
        (2, R) by turn of the camera about the vertical and, second row, about its horizontal axis, in units
        of the picture's mean edge; None where there are too few points, or the picture has no edges.
    """
    matrix = image_from_base_34.astype(np.float64)
    if abs(float(np.linalg.det(matrix[:, :3]))) < 1e-6:
        return None  # it projects onto nothing
    camera_3: NDArray[np.float64] = -np.linalg.inv(matrix[:, :3]) @ matrix[:, 3]
    sides_N3, tops_N3 = silhouettes(raster_7YX, camera_3, grid)
    grey: Any = cv2.cvtColor(np.ascontiguousarray(image_HW3), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    met_2R = np.zeros((2, len(TURNS_DEG)))
    for axis, (points_N3, order) in enumerate(((sides_N3, (1, 0)), (tops_N3, (0, 1)))):
        edges: Any = np.abs(cv2.Sobel(grey, cv2.CV_32F, *order, ksize=3))
        edges = cv2.GaussianBlur(np.minimum(edges, 4.0 * float(edges.mean())), (0, 0), _BLUR * width)
        places_RN2 = np.stack([_turned(points_N3, matrix, camera_3, axis, deg) for deg in TURNS_DEG])
        inside_RN = (places_RN2 >= 0.0).all(-1) & (places_RN2 < np.array([width, height])).all(-1)
        # The same points at every turn, lest a turn wins by what it moves out of the picture.
        places_RN2 = places_RN2[:, inside_RN.all(axis=0)]
        if places_RN2.shape[1] < LEAST_POINTS or float(edges.mean()) <= 0.0:
            return None
        u, v = places_RN2.astype(int).transpose(2, 0, 1)
        met_2R[axis] = edges[v, u].mean(axis=1) / float(edges.mean())
    return met_2R


def silhouettes(
    raster_7YX: NDArray[Any], camera_3: NDArray[np.float64], grid: BevGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [m, base frame] where something nearer ends before something farther, and tops of what is near.

    Args:
        raster_7YX: Channels `LIDAR_CHANNELS`.
        camera_3: From where it is looked at, base frame [m].
        grid: Of the raster.
    Returns:
        (N, 3) along the sides, from the road up to the greatest height; (N, 3) tops.
    """
    top_YX = raster_7YX[_HEIGHT].astype(np.float64) * HEIGHT_SCALE
    cells = (np.asarray(raster_7YX[_LOW:_HEIGHT]).max(axis=0) > 0.0) & (top_YX > 0.5)
    centres_N2 = grid.cell_centres_YX2()[cells].astype(np.float64)
    seen_N2 = centres_N2 - camera_3[:2]
    range_N, bearing_N = np.hypot(*seen_N2.T), np.arctan2(seen_N2[:, 1], seen_N2[:, 0])
    bins = round(2.0 * np.pi / _BEARING)
    half_N = np.arctan2(grid.resolution / 2.0, np.maximum(range_N, grid.resolution))
    nearest, cell_of = np.full(bins, np.inf), np.full(bins, -1)
    for n in np.argsort(-range_N):  # the nearest last
        first, last = (int(np.floor((bearing_N[n] + s * half_N[n]) / _BEARING)) for s in (-1, 1))
        covered = np.arange(first, last + 1) % bins
        nearest[covered], cell_of[covered] = range_N[n], n
    sides, tops = [], []
    for k in np.flatnonzero(nearest < _FAR).tolist():
        n = int(cell_of[k])
        x, y = centres_N2[n]
        z = float(top_YX[cells][n])
        tops.append((x, y, z))
        for neighbour, sign in (((k - 1) % bins, -1.0), ((k + 1) % bins, 1.0)):
            if nearest[neighbour] > nearest[k] + _STEP:
                at = bearing_N[n] + sign * half_N[n]
                place = camera_3[:2] + range_N[n] * np.array([np.cos(at), np.sin(at)])
                sides += [(*place.tolist(), float(h)) for h in np.arange(LIDAR_SLICES[1], z + 0.1, 0.3)]
    return np.reshape(np.array(sides), (-1, 3)), np.reshape(np.array(tops), (-1, 3))


def _turned(
    points_N3: NDArray[np.float64],
    matrix_34: NDArray[np.float64],
    camera_3: NDArray[np.float64],
    axis: int,
    degrees: float,
) -> NDArray[np.float64]:
    """(N, 2) [px] where a camera that is turned on the spot sees points; NaN behind it."""
    ahead = matrix_34[2, :3] / np.linalg.norm(matrix_34[2, :3])
    axis_3 = np.array([0.0, 0.0, 1.0]) if axis == 0 else np.cross(np.array([0.0, 0.0, 1.0]), ahead)
    axis_3 = axis_3 / max(float(np.linalg.norm(axis_3)), 1e-9)
    # A camera turned one way sees the world turned the other way.
    rotation: Any = cv2.Rodrigues(-np.deg2rad(degrees) * axis_3)[0]
    seen_N3 = (points_N3 - camera_3) @ rotation.T @ matrix_34[:, :3].T
    depth_N = np.where(seen_N3[:, 2] > 0.5, seen_N3[:, 2], np.nan)
    return np.asarray(seen_N3[:, :2] / depth_N[:, None])
