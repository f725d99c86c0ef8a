"""Where the robot was at any instant, interpolated from odometry; never guessed.

Outside what odometry covers the buffer answers `None`, and the caller marks ego motion invalid
and forgets temporal memory. An identity in its place would tell the network that a moving robot
stood still.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE3, wrap_angle

# A pose may differ from what the twist foresaw by so much, and by half the way travelled.
JUMP_DISTANCE = 1.0  # [m]
JUMP_ANGLE = 0.3  # [rad]


@dataclass(frozen=True)
class EgoState:
    """The robot's pose and twist at one instant.

    Attributes:
        stamp_ns: Time [ns].
        odom_from_base: Pose in the odometry frame.
        velocity: (3,) float64 [m/s] of `base_link`, in the base frame (ROS `twist.linear`).
        yaw_rate: [rad/s], counter-clockwise.
    """

    stamp_ns: int
    odom_from_base: SE3
    velocity: NDArray[np.float64]
    yaw_rate: float

    @property
    def speed(self) -> float:
        """Forward speed [m/s]; negative in reverse."""
        return float(self.velocity[0])


@dataclass(frozen=True)
class EgoMotionLimits:
    """What counts as continuous odometry.

    Attributes:
        max_gap_ns: Longest gap between two samples that is interpolated across [ns].
        max_extrapolation_ns: How far past the newest sample a pose is predicted at constant twist [ns].
        max_speed: Fastest believable motion between two samples [m/s]; more is a jump.
        horizon_ns: How long samples are kept [ns].
    """

    max_gap_ns: int = 300_000_000
    max_extrapolation_ns: int = 150_000_000
    max_speed: float = 80.0
    horizon_ns: int = 3_000_000_000


class EgoMotionBuffer:
    """A bounded history of odometry with interpolation in SE(3).

    A jump (a pose that the twist does not explain, or a backward clock) starts a new segment: poses are never
    interpolated between segments, and `epoch` rises so that callers reset memory.
    """

    def __init__(self, limits: EgoMotionLimits | None = None) -> None:
        self.limits = limits or EgoMotionLimits()
        self._stamps: list[int] = []
        self._states: list[EgoState] = []
        self.epoch = 0
        self.num_jumps = 0
        self.num_rejected = 0
        self._older_ns: int | None = None  # stamp of the last sample, if it was older than the newest

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def latest(self) -> EgoState | None:
        """The newest sample, or None."""
        return self._states[-1] if self._states else None

    def clear(self) -> None:
        """Forget everything and start a new epoch."""
        self._stamps.clear()
        self._states.clear()
        self.epoch += 1

    def rewind(self, now_ns: int) -> None:
        """The clock was set back to `now_ns`: later samples belong to another timeline and are forgotten."""
        kept = bisect.bisect_right(self._stamps, now_ns)
        if kept < len(self._stamps):
            del self._stamps[kept:], self._states[kept:]
            self.epoch += 1

    def add(self, state: EgoState) -> bool:
        """Add one odometry sample.

        Args:
            state: The sample; a duplicate stamp or one older than the newest is dropped and counted, unless
                it is older by more than the horizon, or the second older one in a row to go on from the
                first: then the clock was set back and the history restarts.
        Returns:
            False if the sample broke continuity (first sample after a jump or clock reset).
        Raises:
            InputError: If pose or twist is not finite.
        """
        pose = state.odom_from_base
        finite = (
            np.isfinite(pose.translation).all()
            and np.isfinite(pose.rotation).all()
            and np.isfinite(state.velocity).all()
            and np.isfinite(state.yaw_rate)
        )
        if not finite:
            self.num_rejected += 1
            raise InputError(
                f"odometry at {state.stamp_ns} ns has a non-finite pose or twist; sample dropped"
            )
        continuous = True
        if self._stamps and state.stamp_ns <= self._stamps[-1]:
            older, self._older_ns = self._older_ns, state.stamp_ns
            goes_on = older is not None and 0 < state.stamp_ns - older <= self.limits.max_gap_ns
            if not goes_on and self._stamps[-1] - state.stamp_ns <= self.limits.horizon_ns:
                self.num_rejected += 1
                return True
            self.clear()
            continuous = False
        self._older_ns = None
        if self._stamps and self._is_jump(self._states[-1], state):
            self.num_jumps += 1
            self.clear()
            continuous = False
        self._stamps.append(state.stamp_ns)
        self._states.append(state)
        oldest = state.stamp_ns - self.limits.horizon_ns
        while self._stamps[0] < oldest:
            self._stamps.pop(0)
            self._states.pop(0)
        return continuous

    def _is_jump(self, previous: EgoState, state: EgoState) -> bool:
        """Whether the pose changed by what neither twist explains.

        Across a gap that is not interpolated nothing is expected but less than `max_speed`.
        """
        dt = (state.stamp_ns - previous.stamp_ns) * 1e-9
        moved = previous.odom_from_base.inverse() @ state.odom_from_base
        if dt * 1e9 > self.limits.max_gap_ns:
            return bool(np.linalg.norm(moved.translation) > self.limits.max_speed * dt + 0.5)
        velocity = 0.5 * (previous.velocity + state.velocity)
        unexplained = float(np.linalg.norm(moved.translation - velocity * dt))
        turned = abs(float(wrap_angle(moved.yaw - 0.5 * (previous.yaw_rate + state.yaw_rate) * dt)))
        travelled = min(float(np.linalg.norm(velocity)), self.limits.max_speed) * dt
        return unexplained > JUMP_DISTANCE + 0.5 * travelled or turned > JUMP_ANGLE

    def at(self, stamp_ns: int) -> EgoState | None:
        """State at an instant.

        Args:
            stamp_ns: Time [ns].
        Returns:
            Interpolated between the neighbours if they are at most `max_gap_ns` apart; predicted at
            constant twist at most `max_extrapolation_ns` past the newest sample; otherwise None.
        """
        if not self._stamps:
            return None
        i = bisect.bisect_left(self._stamps, stamp_ns)
        if i < len(self._stamps) and self._stamps[i] == stamp_ns:
            return self._states[i]
        if i == 0:
            return None
        before = self._states[i - 1]
        if i == len(self._stamps):
            return self._extrapolate(before, stamp_ns)
        after = self._states[i]
        gap_ns = after.stamp_ns - before.stamp_ns
        if gap_ns > self.limits.max_gap_ns:
            return None
        f = (stamp_ns - before.stamp_ns) / gap_ns
        return EgoState(
            stamp_ns=stamp_ns,
            odom_from_base=before.odom_from_base.interpolate(after.odom_from_base, f),
            velocity=(1 - f) * before.velocity + f * after.velocity,
            yaw_rate=(1 - f) * before.yaw_rate + f * after.yaw_rate,
        )

    def _extrapolate(self, newest: EgoState, stamp_ns: int) -> EgoState | None:
        ahead_ns = stamp_ns - newest.stamp_ns
        if ahead_ns > self.limits.max_extrapolation_ns:
            return None
        dt = ahead_ns * 1e-9
        turn = newest.yaw_rate * dt
        # Constant speed and yaw rate: the chord of the arc, at half the turn.
        chord = SE3.planar(0.0, 0.0, turn / 2.0).apply(newest.velocity * dt)
        chord = chord * (np.sin(turn / 2.0) / (turn / 2.0) if abs(turn) > 1e-9 else 1.0)
        step = SE3(SE3.planar(0.0, 0.0, turn).rotation, chord)
        return EgoState(
            stamp_ns=stamp_ns,
            odom_from_base=newest.odom_from_base @ step,
            velocity=newest.velocity,
            yaw_rate=newest.yaw_rate,
        )

    def acceleration(self, stamp_ns: int, window_ns: int = 300_000_000) -> float:
        """Forward acceleration [m/s^2] over the `window_ns` before a stamp; 0 if not covered."""
        now, past = self.at(stamp_ns), self.at(stamp_ns - window_ns)
        if now is None or past is None:
            return 0.0
        return (now.speed - past.speed) / (window_ns * 1e-9)

    def base_from_base(self, target_ns: int, source_ns: int) -> SE3 | None:
        """Transform of points from the base frame at `source_ns` to that at `target_ns`, or None."""
        target, source = self.at(target_ns), self.at(source_ns)
        if target is None or source is None:
            return None
        return target.odom_from_base.inverse() @ source.odom_from_base
