"""When the stack stops trusting itself: NOMINAL -> DEGRADED -> MINIMAL_RISK -> STOPPED.

Down at once, up one step at a time after `recovery_frames` good frames. A *valid* frame has at least one
camera or lidar, known ego motion and finite output; without one for `silence_ms` the robot makes a
minimal-risk stop, and so it does after `max_bad_frames` frames in a row whose output or plan could not be
used or came later than `silence_ms`. In MINIMAL_RISK and STOPPED every plan is a stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import SupervisorConfig
from e2e_perception.core.frames import SE2
from e2e_perception.core.results import SafetyState, SensorReport
from e2e_perception.core.tracks import Tracks
from e2e_perception.core.trajectories import Plan, RouteInput, base_from_route_coordinates
from e2e_perception.runtime.plan_checks import EgoFootprint, PlanVerdict, check_plan
from e2e_perception.runtime.plan_motion import along_path, carried_on, stop_distances

Array = NDArray[np.float64]

STANDSTILL = 0.1  # [m/s] slower is standing
ROLLING = 0.5  # [m/s] faster is no longer standing; between the two the state stays


@dataclass(frozen=True)
class FrameFacts:
    """What the supervisor is told of one frame.

    Attributes:
        stamp_ns: Frame time [ns].
        now_ns: When the result leaves, on the same clock [ns].
        sensors: Every sensor of the rig.
        anchor_capable: Names of those that alone suffice to see: cameras and lidars.
        speed: Ego speed [m/s], None if ego motion is unknown.
        outputs_problem: Why the engine's output could not be used; empty if it could.
        verdict: Of the plan check; None if there was no plan to check.
        warnings: Further reasons not to be NOMINAL, a missing route for example.
        notes: Further things to say that cost no trust, an assumed route for example.
    """

    stamp_ns: int
    now_ns: int
    sensors: tuple[SensorReport, ...]
    anchor_capable: frozenset[str]
    speed: float | None
    outputs_problem: str = ""
    verdict: PlanVerdict | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sees(self) -> bool:
        """Whether any camera or lidar is valid."""
        return any(s.valid for s in self.sensors if s.name in self.anchor_capable)


class SafetySupervisor:
    """The state machine, the plan check and the stop."""

    def __init__(self, config: SupervisorConfig) -> None:
        self.config = config
        self.reset()

    def update(self, config: SupervisorConfig) -> None:
        """Take new limits; the state stays."""
        self.config = config

    def reset(self) -> None:
        """Start over: DEGRADED, because trust is earned by good frames."""
        self.state = SafetyState.DEGRADED
        self.reasons: tuple[str, ...] = ("no frame yet",)
        self._good_frames = 0
        self._bad_frames = 0
        self._last_valid_ns: int | None = None

    def check_plan(
        self, plan: Plan, tracks: Tracks | None, speed: float, footprint: EgoFootprint
    ) -> PlanVerdict:
        """Judge a plan by the present limits, see `plan_checks.check_plan`."""
        return check_plan(plan, tracks, speed, footprint, self.config)

    def step(self, facts: FrameFacts) -> tuple[SafetyState, tuple[str, ...]]:
        """Judge one frame.

        Args:
            facts: Of the frame.
        Returns:
            The state after it and the reasons: why it is not NOMINAL, then `facts.notes`.
        """
        demanded, reasons = self._demand(facts)
        # STOPPED and MINIMAL_RISK ask for the same; a good frame is one that asks for less.
        if demanded >= min(self.state, SafetyState.MINIMAL_RISK):
            self._good_frames = 0
            self.state = max(self.state, demanded)
            self._come_to_rest(facts.speed)
        else:
            self._good_frames += 1
            if self._good_frames >= self.config.recovery_frames:
                self.state = SafetyState(self.state - 1)
                self._good_frames = 0
            elif demanded == SafetyState.NOMINAL:
                reasons.append(
                    f"recovering: {self._good_frames} of {self.config.recovery_frames} good frames"
                )
        self.reasons = (*reasons, *facts.notes)
        return self.state, self.reasons

    def silence(self, now_ns: int, speed: float | None) -> tuple[SafetyState, tuple[str, ...]]:
        """Judge the absence of frames; call it whenever time passes without one.

        Args:
            now_ns: Present time [ns].
            speed: Ego speed [m/s], None if unknown.
        Returns:
            The state and the reasons.
        """
        silent_ns = self._silent_ns(now_ns)
        if silent_ns > self.config.silence_ms * 1e6:
            self.outage(speed, f"no valid frame for {silent_ns * 1e-9:.1f} s")
        return self.state, self.reasons

    def outage(self, speed: float | None, reason: str) -> None:
        """Nothing can be decided from frames, for whatever reason: at least a minimal-risk stop.

        Args:
            speed: Ego speed [m/s], None if unknown.
            reason: To be said.
        """
        self._good_frames = 0
        self.state = max(self.state, SafetyState.MINIMAL_RISK)
        self._come_to_rest(speed)
        self.reasons = (reason,)

    def note(self, reason: str) -> None:
        """Add something to say about this frame that costs no trust."""
        self.reasons = (*self.reasons, reason)

    def _silent_ns(self, now_ns: int) -> int:
        if self._last_valid_ns is None or now_ns < self._last_valid_ns:
            self._last_valid_ns = now_ns  # the beginning, or a clock set back
        return now_ns - self._last_valid_ns

    def _come_to_rest(self, speed: float | None) -> None:
        if self.state == SafetyState.MINIMAL_RISK and speed is not None and abs(speed) < STANDSTILL:
            self.state = SafetyState.STOPPED
        elif self.state == SafetyState.STOPPED and speed is not None and abs(speed) > ROLLING:
            self.state = SafetyState.MINIMAL_RISK

    def _demand(self, facts: FrameFacts) -> tuple[SafetyState, list[str]]:
        """The least state that this frame alone asks for, and why."""
        reasons = list(facts.warnings)
        latency_ms = (facts.now_ns - facts.stamp_ns) * 1e-6
        for sensor in facts.sensors:
            if not sensor.valid:
                old = f", last message {sensor.age_ms:.0f} ms old" if np.isfinite(sensor.age_ms) else ""
                reasons.append(f"{sensor.name}: {sensor.reason}{old}")
            elif sensor.age_ms + latency_ms > self.config.max_sensor_age_ms:
                reasons.append(f"{sensor.name}: stale, {sensor.age_ms + latency_ms:.0f} ms old")
        if latency_ms > self.config.max_latency_ms:
            reasons.append(f"latency {latency_ms:.0f} ms, more than {self.config.max_latency_ms:.0f}")
        if facts.speed is None:
            reasons.append("ego motion unknown")
        if facts.outputs_problem:
            reasons.append(facts.outputs_problem)
        if facts.verdict is not None:
            reasons.extend(facts.verdict.reasons)
        demanded = SafetyState.DEGRADED if reasons else SafetyState.NOMINAL

        rejected = facts.verdict is not None and not facts.verdict.accepted
        too_late = latency_ms > self.config.silence_ms  # as good as no frame
        bad = bool(facts.outputs_problem) or rejected or too_late
        self._bad_frames = self._bad_frames + 1 if bad else 0
        if self._bad_frames >= self.config.max_bad_frames:
            demanded = SafetyState.MINIMAL_RISK
            reasons.append(f"{self._bad_frames} bad frames in a row")
        silent_ns = self._silent_ns(facts.now_ns)
        if facts.sees and facts.speed is not None and not facts.outputs_problem:
            self._last_valid_ns = facts.now_ns
        elif silent_ns > self.config.silence_ms * 1e6:
            demanded = SafetyState.MINIMAL_RISK
            reasons.append(f"no valid frame for {silent_ns * 1e-9:.1f} s")
        return demanded, reasons

    def stop_plan(
        self,
        stamp_ns: int,
        *,
        times_P: Array,
        speed: float | None,
        plan: Plan | None = None,
        base_from_plan: SE2 | None = None,
        route: RouteInput | None = None,
        deceleration: float | None = None,
    ) -> Plan:
        """A stop that starts where the robot is, as fast as it is, and stays on its path.

        Args:
            stamp_ns: Frame time [ns].
            times_P: Plan times after it [s].
            speed: Present speed [m/s]; None: what `plan` foresaw for now, else standstill.
            plan: The plan being driven, of this or an earlier frame; its path is kept.
            base_from_plan: This base frame from that of `plan`; None if unknown, then its path is not used.
            route: Else the robot keeps its offset from this route; without one it goes straight on.
            deceleration: [m/s^2]; default `stop_deceleration`. Never more than `max_deceleration`.
        Returns:
            A plan with `candidate == -1`.
        """
        times = np.asarray(times_P, np.float64)
        if plan is not None and not plan.is_finite:
            plan = None
        if speed is None:
            speed = 0.0 if plan is None else _present_speed(plan, stamp_ns)
        braking = min(deceleration or self.config.stop_deceleration, self.config.max_deceleration)
        distances = stop_distances(abs(speed), braking, times)
        if speed < 0.0:
            points = np.stack([-distances, np.zeros_like(distances)], -1)
            yaws = np.zeros_like(distances)
        else:
            if plan is not None and base_from_plan is not None:
                path = _ahead(carried_on(plan, stamp_ns, base_from_plan).points_P2)
            elif route is not None:
                s = np.linspace(0.0, distances[-1] + 3.0, 32)
                path = _ahead(
                    base_from_route_coordinates(
                        np.stack([s, np.full_like(s, route.lateral_offset)], -1), route.features_R4
                    )
                )
            else:
                path = np.array([[0.0, 0.0], [1.0, 0.0]])
            points, yaws = along_path(path, distances)
        speeds = np.sign(speed) * np.maximum(abs(speed) - braking * times, 0.0)
        steps = np.diff(np.concatenate([[0.0], times]))
        return Plan(
            stamp_ns=stamp_ns,
            times_P=times,
            points_P2=points,
            yaws_P=yaws,
            speeds_P=speeds,
            accelerations_P=np.diff(np.concatenate([[speed], speeds])) / steps,
            candidate=-1,
            costs={},
            route_assumed=route.assumed if route is not None else plan is not None and plan.route_assumed,
        )


def _present_speed(plan: Plan, stamp_ns: int) -> float:
    """What an earlier plan foresaw for now [m/s]."""
    elapsed = (stamp_ns - plan.stamp_ns) * 1e-9
    start = plan.speeds_P[0] - plan.accelerations_P[0] * plan.times_P[0]
    times = np.concatenate([[0.0], plan.times_P])
    return float(np.interp(elapsed, times, np.concatenate([[start], plan.speeds_P])))


def _ahead(points_L2: Array) -> Array:
    """The polyline from the origin through those points that lie ahead of the one before, within 45 degrees.

    The robot is not exactly where an earlier plan foresaw it; a point just beside it is no direction to go.
    """
    path = [np.zeros(2)]
    for point in points_L2:
        direction = path[-1] - path[-2] if len(path) > 1 else np.array([1.0, 0.0])
        step = point - path[-1]
        along = float(step @ direction)
        if along > 1e-3 * float(np.linalg.norm(direction)) and along >= abs(
            float(direction[0] * step[1] - direction[1] * step[0])
        ):
            path.append(point)
    return np.array(path)
