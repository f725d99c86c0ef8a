"""How far sensors' clocks are apart, estimated from what they saw of the robot's turning.

Odometry says how fast the robot turned, consecutive pictures show it as a shift, consecutive lidar rasters as
a rotation. A sensor whose stamps are late tells the same story later: the lag at which the two agree best is
the offset of its clock. Straight driving tells nothing, and then nothing is said.

A picture's projection holds the robot's motion since its exposure, so that a known difference between the
stamps of a frame is no offset. Lidar rasters are moved to the frame time likewise.

Legend: K samples, L lags, N points, H W image, Y X cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.bev import BevGrid
from e2e_perception.core.clips import Clip
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import EGO_FIELDS, LIDAR_CHANNELS, NetworkConfig

MAX_OFFSET_S = 0.4  # that is looked for
LAG_STEP_S = 0.005
LONGEST_STEP_S = 0.25  # between frames of which one is compared with the next
LEAST_SAMPLES = 60
LEAST_TURNING = 0.02  # [rad/s] standard deviation of the yaw rate, below which nothing is said
LEAST_CORRELATION = 0.6
LARGEST_STD_S = 0.02  # standard error above which nothing is said
AMBIGUOUS = 0.9  # of the best squared correlation, reached at another peak: nothing is said

_LOW, _HEIGHT = LIDAR_CHANNELS.index("low"), LIDAR_CHANNELS.index("max_height")
_SPEED, _YAW_RATE, _EGO_VALID = (EGO_FIELDS.index(n) for n in ("speed", "yaw_rate", "valid"))
_BAND = (0.22, 0.06)  # of the picture's height, above and below the horizon: far things, little road
_LEAST_ROWS = 4
_MOST_CORNERS, _LEAST_CORNERS = 80, 8
_THERE_AND_BACK = 0.5  # [px] by which a corner may miss itself when it is tracked there and back
_FLOW: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}
_MOST_POINTS = 1500  # of a raster that are matched
_TURNS = np.deg2rad(np.linspace(-9.0, 9.0, 37))
_SLIDES = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # [m] along x, beside what the speed says
_LEAST_POINTS = 40


@dataclass(frozen=True)
class ClockOffset:
    """What could be said of one sensor's clock against the odometry's.

    Attributes:
        offset_s: Positive: the sensor's stamps are later than what it shows. None: nothing can be said.
        std_s: Standard error of it [s].
        correlation: At that lag.
        num_samples: Pairs of frames.
        reason: Why nothing can be said; empty otherwise.
    """

    offset_s: float | None
    std_s: float
    correlation: float
    num_samples: int
    reason: str = ""


def clock_offset(
    times_K: NDArray[np.float64],
    stated_K: NDArray[np.float64],
    seen_K: NDArray[np.float64],
    *,
    least_spread: float,
    speed_K: NDArray[np.float64] | None = None,
    what: str = "turning",
) -> ClockOffset:
    """Lag of one signal behind another by cross-correlation.

    For every lag what was stated so much earlier (cubic convolution, Keys 1981) is correlated with what was
    seen, and the peak is placed between lags by a parabola. Its standard error is that of a delay of a known
    signal in noise (Knapp & Carter 1976), with as many samples as are independent in the residual.

    Args:
        times_K: [s], rising; a gap ends a stretch, and nothing is interpolated across.
        stated_K: By odometry.
        seen_K: By the sensor; NaN where it saw nothing. Its scale and mean do not matter.
        speed_K: [m/s]; what a sensor sees that goes with it (near things pass by a camera) is taken out of
            both first. None: nothing is.
        least_spread: Standard deviation of what was stated below which nothing is said.
        what: Is too little then, for the reason.
    """
    seen = np.isfinite(seen_K)
    number = int(seen.sum())
    spread = float(stated_K[seen if number >= LEAST_SAMPLES else ...].std())
    if spread < least_spread:
        return ClockOffset(
            None, np.inf, 0.0, number, f"too little {what}: {spread:.3g}, {least_spread:g} are needed"
        )
    if number < LEAST_SAMPLES:
        return ClockOffset(None, np.inf, 0.0, number, f"{number} samples, {LEAST_SAMPLES} are needed")
    lags_L = LAG_STEP_S * np.arange(-round(MAX_OFFSET_S / LAG_STEP_S), round(MAX_OFFSET_S / LAG_STEP_S) + 1)
    earlier_LK = np.stack([_interpolated(times_K, stated_K, times_K - lag) for lag in lags_L])
    # The same samples at every lag, lest a lag wins by what it leaves out.
    used = seen & np.isfinite(earlier_LK).all(axis=0)
    number = int(used.sum())
    if number < LEAST_SAMPLES:
        return ClockOffset(
            None, np.inf, 0.0, number, f"{number} samples without gaps around, {LEAST_SAMPLES} are needed"
        )
    values_K = _limited(seen_K[used] - np.median(seen_K[used]))
    values_K, *rows = _without(
        np.stack([values_K, *earlier_LK[:, used]]), speed_K[used] if speed_K is not None else None
    )
    earlier_LK = np.stack(rows)
    first = earlier_LK[np.argmax([_correlation(row, values_K) for row in earlier_LK])]
    kept = _believable(values_K - float(first @ values_K) / max(float(first @ first), 1e-12) * first)
    values_K, earlier_LK = values_K[kept], earlier_LK[:, kept]
    correlation_L = np.array([_correlation(row, values_K) for row in earlier_LK])
    best = int(correlation_L.argmax())
    peak = float(correlation_L[best])
    if peak < LEAST_CORRELATION:
        return ClockOffset(
            None, np.inf, peak, number, f"they agree too little: {peak:.2f}, {LEAST_CORRELATION:g} is needed"
        )
    if best in (0, len(lags_L) - 1):
        return ClockOffset(None, np.inf, peak, number, f"no peak within {MAX_OFFSET_S:g} s")
    if _other_peak(correlation_L, best) ** 2 > AMBIGUOUS * peak**2:
        return ClockOffset(None, np.inf, peak, number, "the motion repeats itself; several lags fit")
    left, middle, right = correlation_L[best - 1 : best + 2]
    bend = left - 2.0 * middle + right
    offset = float(lags_L[best] + (0.5 * (left - right) / bend if bend < 0.0 else 0.0) * LAG_STEP_S)
    std = _standard_error(earlier_LK, best, values_K)
    if not std <= LARGEST_STD_S:
        return ClockOffset(None, std, peak, number, f"known to {1e3 * std:.0f} ms only")
    return ClockOffset(offset, std, peak, number)


def _interpolated(
    times_K: NDArray[np.float64], values_K: NDArray[np.float64], at_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cubic convolution between samples; NaN outside, at the ends of stretches and beside gaps."""
    out = np.full(len(at_K), np.nan)
    i = np.searchsorted(times_K, at_K, side="right") - 1
    inside = (i >= 1) & (i < len(times_K) - 2)
    i = np.where(inside, i, 1)
    steps = [times_K[i + k + 1] - times_K[i + k] for k in (-1, 0, 1)]
    inside &= np.all([step < LONGEST_STEP_S for step in steps], axis=0)
    f = np.clip((at_K - times_K[i]) / steps[1], 0.0, 1.0)
    a, b, c, d = (values_K[i + k] for k in (-1, 0, 1, 2))
    cubic = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    out[inside] = cubic[inside]
    return out


def _without(rows_RK: NDArray[np.float64], other_K: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Rows without their means and what of them goes with another signal (least squares)."""
    rows_RK = rows_RK - rows_RK.mean(axis=1, keepdims=True)
    if other_K is None or other_K.std() < 1e-6:
        return rows_RK
    unit_K = (other_K - other_K.mean()) / np.linalg.norm(other_K - other_K.mean())
    return np.asarray(rows_RK - (rows_RK @ unit_K)[:, None] * unit_K)


def _limited(values_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outliers pulled in to five robust standard deviations: one bad shift must not make the lag."""
    scale = 1.4826 * float(np.median(np.abs(values_K - np.median(values_K))))
    spread = max(scale, 0.2 * float(values_K.std()))
    return np.clip(values_K, -5.0 * spread, 5.0 * spread)


def _believable(residual_K: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which samples are within four robust standard deviations of what fits best."""
    off_K = np.abs(residual_K - np.median(residual_K))
    return np.asarray(off_K <= max(4.0 * 1.4826 * float(np.median(off_K)), 0.1 * float(residual_K.std())))


def _correlation(a_K: NDArray[np.float64], b_K: NDArray[np.float64]) -> float:
    a, b = a_K - a_K.mean(), b_K - b_K.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0.0 else 0.0


def _other_peak(correlation_L: NDArray[np.float64], best: int) -> float:
    """The highest local maximum besides the best; 0 without one."""
    middle = correlation_L[1:-1]
    peaks = 1 + np.flatnonzero((middle > correlation_L[:-2]) & (middle >= correlation_L[2:]))
    others = [float(correlation_L[k]) for k in peaks.tolist() if k != best]
    return max([value for value in others if value > 0.0], default=0.0)


def _standard_error(earlier_LK: NDArray[np.float64], best: int, values_K: NDArray[np.float64]) -> float:
    """Of the lag [s]."""
    model, slope = earlier_LK[best], (earlier_LK[best + 1] - earlier_LK[best - 1]) / (2.0 * LAG_STEP_S)
    model, values = model - model.mean(), values_K - values_K.mean()
    gain = float(model @ values) / float(model @ model)
    residual = values - gain * model
    together = float(residual[1:] @ residual[:-1]) / max(float(residual @ residual), 1e-12)
    independent = len(values) * (1.0 - max(together, 0.0)) / (1.0 + max(together, 0.0))
    power = float((gain * slope) @ (gain * slope)) * independent / len(values)
    return float(np.sqrt(residual.var() / power)) if power > 0.0 else float("inf")


# ------------------------------------------------------------------ what sensors saw


@dataclass
class _Signal:
    times: list[float] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)


@dataclass
class _Frame:
    """What the next frame is compared with."""

    stamp_ns: int
    inputs: dict[str, NDArray[Any]]


class ClockProbe:
    """Takes the clips of one recording in order of time and says how far its sensors' clocks are off."""

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network
        self._signals: defaultdict[str, _Signal] = defaultdict(_Signal)
        self._before: _Frame | None = None
        self._turns = False

    def add(self, clip: Clip) -> None:
        """Take in a clip; frames that were there already are left out, straight stretches not looked at."""
        ego = clip.inputs["ego_state"]
        self._turns = bool((np.abs(ego[:, _YAW_RATE]) > LEAST_TURNING).any())
        for t, stamp_ns in enumerate(clip.stamps_ns_T.tolist()):
            before = self._before
            if before is not None and stamp_ns <= before.stamp_ns:
                if t == len(clip) - 1 and clip.stamps_ns_T[-1] < before.stamp_ns - 10**10:
                    self._before = None  # the clock was set back: another stretch
                continue
            frame = _Frame(stamp_ns, {name: value[t] for name, value in clip.inputs.items()})
            if before is not None:
                seconds = (stamp_ns - before.stamp_ns) * 1e-9
                moved = SE2(*clip.memory_from_base_T3[t].tolist()) if t else _by_twist(before, frame, seconds)
                if seconds < LONGEST_STEP_S and moved is not None:
                    self._compare(before, frame, moved, seconds)
            self._before = frame

    def _compare(self, before: _Frame, frame: _Frame, moved: SE2, seconds: float) -> None:
        time = (before.stamp_ns + frame.stamp_ns) * 0.5e-9
        for slot, name in enumerate(self.network.cameras):
            stated, seen = image_turn(before.inputs, frame.inputs, slot, moved, look=self._turns)
            self._take(name, time, stated / seconds, seen / seconds, moved.x / seconds)
        if self.network.lidars:
            valid = all(float(f.inputs["lidar_valid"].max()) > 0.5 for f in (before, frame))
            seen = float("nan")
            if valid and self._turns:
                rasters = [f.inputs["lidar_raster"] for f in (before, frame)]
                seen = raster_turn(rasters[0], rasters[1], moved, self.network.grid)
            # Rasters hold all lidars together.
            self._take(
                "+".join(self.network.lidars), time, moved.yaw / seconds, seen / seconds, moved.x / seconds
            )

    def _take(self, name: str, time: float, stated: float, seen: float, speed: float) -> None:
        if not np.isfinite(stated):
            return
        signal = self._signals[name]
        signal.times.append(time)
        signal.stated.append(stated)
        signal.seen.append(seen)
        signal.speed.append(speed)

    def offsets(self) -> Mapping[str, ClockOffset]:
        """By sensor."""
        found = {}
        for name, signal in self._signals.items():
            times = np.array(signal.times)
            found[name] = clock_offset(
                times - times[0],
                np.array(signal.stated),
                np.array(signal.seen),
                least_spread=LEAST_TURNING,
                speed_K=np.array(signal.speed),
                what="turning [rad/s]",
            )
        return found


def _by_twist(before: _Frame, frame: _Frame, seconds: float) -> SE2 | None:
    """Motion between two frames by speed and yaw rate, for frames of different clips."""
    ego = np.stack([before.inputs["ego_state"], frame.inputs["ego_state"]]).astype(np.float64)
    if (ego[:, _EGO_VALID] < 0.5).any():
        return None
    speed, yaw_rate = ego[:, _SPEED].mean(), ego[:, _YAW_RATE].mean()
    yaw = yaw_rate * seconds
    return SE2(float(speed * seconds * np.cos(yaw / 2)), float(speed * seconds * np.sin(yaw / 2)), float(yaw))


def image_turn(
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    slot: int,
    moved: SE2,
    *,
    look: bool = True,
) -> tuple[float, float]:
    """Turn of a camera between two frames, stated and seen.

    Args:
        before, after: Inputs of two frames.
        slot: Of the camera.
        moved: Base frame of the later in that of the earlier.
        look: False: only say what is stated.
    Returns:
        Radians, counter-clockwise: by projections and odometry, and by the shift of corners near the
        horizon (Lucas & Kanade 1981). NaN where the camera was not there, or the shift cannot be told.
    """
    if min(before["camera_valid"][slot], after["camera_valid"][slot]) < 0.5:
        return np.nan, np.nan
    m_before, m_after = (
        frame["image_from_base"][slot].astype(np.float64)[:, :3] for frame in (before, after)
    )
    if min(abs(float(np.linalg.det(m))) for m in (m_before, m_after)) < 1e-6:
        return np.nan, np.nan  # it projects onto nothing
    height, width = after["images"].shape[1:3]
    ahead = np.linalg.solve(m_after, np.array([(width - 1) / 2.0, (height - 1) / 2.0, 1.0]))
    ahead[2] = 0.0
    level = m_after @ ahead
    if level[2] <= 1e-6:
        return np.nan, np.nan  # it looks straight up or down
    c, s = np.cos(moved.yaw), np.sin(moved.yaw)
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    was = m_before @ turn @ ahead
    aside = m_after @ (np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ ahead)
    # Pixels per radian of turn about the vertical, where the camera looks.
    scale = float(aside[0] / level[2] - level[0] * aside[2] / level[2] ** 2)
    stated = float(was[0] / was[2] - level[0] / level[2]) / scale
    row = float(level[1] / level[2])
    rows = slice(max(round(row - _BAND[0] * height), 0), min(round(row + _BAND[1] * height) + 1, height))
    if not look or rows.stop - rows.start < _LEAST_ROWS:
        return stated, np.nan
    grey: list[Any] = [
        cv2.cvtColor(np.ascontiguousarray(frame["images"][slot]), cv2.COLOR_RGB2GRAY)
        for frame in (before, after)
    ]
    return stated, _shift(grey[0], grey[1], rows) / scale


def _shift(before_HW: NDArray[np.uint8], after_HW: NDArray[np.uint8], rows: slice) -> float:
    """How far to the right corners in a band of the later picture were in the earlier [px], median.

    Only corners that are tracked there and back (Kalal et al. 2010); NaN where they are too few.
    """
    band_HW = np.zeros_like(after_HW)
    band_HW[rows] = 1
    corners: Any = cv2.goodFeaturesToTrack(after_HW, _MOST_CORNERS, 0.01, 4, mask=band_HW)
    if corners is None:
        return float("nan")
    # Places that are to be filled in may be None, whatever its types say.
    track: Any = cv2.calcOpticalFlowPyrLK
    there, found, _ = track(after_HW, before_HW, corners, None, **_FLOW)
    back, held, _ = track(before_HW, after_HW, there, None, **_FLOW)
    error_N = np.abs(back - corners).max(axis=(1, 2))
    good_N = (found[:, 0] > 0) & (held[:, 0] > 0) & (error_N < _THERE_AND_BACK)
    if good_N.sum() < _LEAST_CORNERS:
        return float("nan")
    return float(np.median((there - corners)[good_N, 0, 0]))


def raster_turn(before_7YX: NDArray[Any], after_7YX: NDArray[Any], moved: SE2, grid: BevGrid) -> float:
    """Turn between two lidar rasters [rad, counter-clockwise] by matching what stands above the ground.

    Cells of the later are moved into the earlier, by every turn within 9 degrees and slides around what the
    odometry says of the way, and the turn is the one where most lies on top of each other (correlative scan
    matching, Olson 2009), placed between the steps by a parabola. NaN where there is too little to match.
    """
    standing = [
        (raster[_LOW:_HEIGHT].max(axis=0) > 0.0).astype(np.float32) for raster in (before_7YX, after_7YX)
    ]
    points_N2 = grid.cell_centres_YX2()[standing[1] > 0.0].astype(np.float64)
    if len(points_N2) < _LEAST_POINTS or standing[0].sum() < _LEAST_POINTS:
        return float("nan")
    if len(points_N2) > _MOST_POINTS:
        points_N2 = points_N2[np.linspace(0, len(points_N2) - 1, _MOST_POINTS).astype(int)]
    # What is near stays in its cells when the robot turns a little, and would vote for no turn at all.
    lever_N = (points_N2**2).sum(axis=1)
    soft_YX = cv2.GaussianBlur(standing[0], (0, 0), 0.8 / grid.resolution)
    score_T = np.zeros(len(_TURNS))
    for index, turn in enumerate(_TURNS):
        c, s = np.cos(turn), np.sin(turn)
        turned = points_N2 @ np.array([[c, s], [-s, c]])
        slid = [turned + np.array([moved.x + slide, moved.y]) for slide in _SLIDES]
        score_T[index] = max(float(_under(soft_YX, points, grid) @ lever_N) for points in slid)
    best = int(score_T.argmax())
    if best in (0, len(_TURNS) - 1):
        return float("nan")
    left, middle, right = score_T[best - 1 : best + 2]
    bend = left - 2.0 * middle + right
    step = float(_TURNS[1] - _TURNS[0])
    return float(_TURNS[best] + (0.5 * (left - right) / bend * step if bend < 0.0 else 0.0))


def _under(
    soft_YX: NDArray[np.float32], points_N2: NDArray[np.float64], grid: BevGrid
) -> NDArray[np.float64]:
    """(N,) of the field under points, bilinear; 0 outside."""
    u = ((points_N2[:, 0] - grid.x_min) / grid.resolution - 0.5).astype(np.float32)
    v = ((points_N2[:, 1] - grid.y_min) / grid.resolution - 0.5).astype(np.float32)
    under = cv2.remap(soft_YX, u[None], v[None], cv2.INTER_LINEAR, borderValue=0.0)
    return np.asarray(under[0], np.float64)
