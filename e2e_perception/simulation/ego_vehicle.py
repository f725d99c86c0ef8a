"""The robot as a body with actuators, and the controller that makes it follow a plan.

Coordinates: odom, x forward at the start, y left, angles counter-clockwise; the pose is that of `base_link`,
on the ground below the rear axle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.trajectories import Plan
from e2e_perception.runtime.plan_motion import points_at

TICK_NS = 20_000_000
TICK_S = 0.02


@dataclass(frozen=True)
class VehicleLimits:
    """What the actuators can do.

    Attributes:
        wheelbase: [m]
        max_acceleration, max_braking: [m/s^2]
        max_jerk: Of the acceleration that the actuators reach [m/s^3].
        max_steering: [rad] at the wheels.
        max_steering_rate: [rad/s]
        delay_s: Between a command and its first effect [s].
        lag_s: First-order lag of acceleration and of steering [s].
    """

    wheelbase: float = 2.8
    max_acceleration: float = 3.0
    max_braking: float = 8.0
    max_jerk: float = 30.0
    max_steering: float = 0.6
    max_steering_rate: float = 0.7
    delay_s: float = 0.06
    lag_s: float = 0.12


@dataclass(frozen=True)
class Command:
    """What the controller asks for: acceleration [m/s^2] and curvature [1/m], left positive."""

    acceleration: float
    curvature: float


class EgoVehicle:
    """A kinematic bicycle about the rear axle with delayed, lagging and limited actuators."""

    def __init__(self, start: EgoState, limits: VehicleLimits | None = None) -> None:
        """Stand (or roll) where the world says."""
        self.limits = limits or VehicleLimits()
        pose = start.odom_from_base.planar_part()
        self.stamp_ns = start.stamp_ns
        self.x, self.y, self.yaw = pose.x, pose.y, pose.yaw
        self.speed, self.acceleration, self.steering = start.speed, 0.0, 0.0
        num_waiting = round(self.limits.delay_s / TICK_S)
        self._waiting: deque[Command] = deque([Command(0.0, 0.0)] * num_waiting)

    @property
    def state(self) -> EgoState:
        """Pose and twist now."""
        turning = self.speed * np.tan(self.steering) / self.limits.wheelbase
        return EgoState(
            self.stamp_ns, SE3.planar(self.x, self.y, self.yaw), np.array([self.speed, 0.0, 0.0]), turning
        )

    def step(self, command: Command) -> None:
        """Go on by `TICK_S`; commands beyond the limits are met as far as they go.

        Raises:
            InputError: If the command is not finite.
        """
        if not np.isfinite([command.acceleration, command.curvature]).all():
            raise InputError(f"command is not finite: {command}")
        limits, dt = self.limits, TICK_S
        self._waiting.append(command)
        command = self._waiting.popleft()
        wanted = float(np.clip(command.acceleration, -limits.max_braking, limits.max_acceleration))
        share = dt / (limits.lag_s + dt)
        change = float(
            np.clip((wanted - self.acceleration) * share, -limits.max_jerk * dt, limits.max_jerk * dt)
        )
        self.acceleration += change
        wheel = float(
            np.clip(
                np.arctan(command.curvature * limits.wheelbase), -limits.max_steering, limits.max_steering
            )
        )
        turn = limits.max_steering_rate * dt
        self.steering += float(np.clip((wheel - self.steering) * share, -turn, turn))
        speed = max(self.speed + self.acceleration * dt, 0.0)
        if speed == 0.0:
            self.acceleration = max(self.acceleration, 0.0)
        travelled = 0.5 * (self.speed + speed) * dt
        bend = travelled * np.tan(self.steering) / limits.wheelbase
        self.x += travelled * float(np.cos(self.yaw + bend / 2.0))
        self.y += travelled * float(np.sin(self.yaw + bend / 2.0))
        self.yaw += float(bend)
        self.speed = speed
        self.stamp_ns += TICK_NS


class PlanTracker:
    """Turns the plan in force into commands: pure pursuit (Coulter 1992) and a look ahead in speed.

    Attributes:
        plan: In force; None: brake gently, straight on.
        odom_from_plan: Base frame at the plan's stamp, in odom.
    """

    def __init__(self, limits: VehicleLimits | None = None) -> None:
        self.limits = limits or VehicleLimits()
        self.plan: Plan | None = None
        self.odom_from_plan = SE2(0.0, 0.0, 0.0)

    def take(self, plan: Plan, odom_from_plan: SE2) -> None:
        """Follow a plan from now on.

        Raises:
            InputError: If it is not finite.
        """
        if not plan.is_finite:
            raise InputError("plan is not finite; the one before stays in force")
        self.plan, self.odom_from_plan = plan, odom_from_plan

    def command(self, ego: EgoState) -> Command:
        """What to do now.

        Args:
            ego: The robot now.
        """
        plan = self.plan
        if plan is None:
            return Command(-2.0 if ego.speed > 0.0 else 0.0, 0.0)
        elapsed = (ego.stamp_ns - plan.stamp_ns) * 1e-9
        react = self.limits.delay_s + self.limits.lag_s
        ahead = react + 0.3
        times = np.concatenate([[0.0], plan.times_P])
        speed_now = plan.speeds_P[0] - plan.accelerations_P[0] * plan.times_P[0]
        speeds = np.concatenate([[max(speed_now, 0.0)], plan.speeds_P])
        target = float(np.interp(elapsed + ahead, times, speeds))
        acceleration = (target - ego.speed) / ahead
        # Near its end a stop needs the place, not the speed alone.
        pose = ego.odom_from_base.planar_part()
        plan_from_base = self.odom_from_plan.inverse() @ pose
        if plan.speeds_P[-1] < 0.1 and ego.speed > 0.05:
            # Where the plan comes to rest; past it, brake firmly.
            rest = plan_from_base.inverse().apply(plan.points_P2[-1:])[0, 0]
            if rest < 0.5 * ego.speed**2 / self.limits.max_braking + 0.05:
                acceleration = min(acceleration, -3.0)
        if target < 0.05 and ego.speed < 0.3:
            acceleration = min(acceleration, -1.0)

        reach = max(3.5, 0.9 * ego.speed)
        path_T2 = points_at(plan, np.maximum(np.arange(0.0, plan.times_P[-1] + 3.0, 0.1), 0.0))
        points = plan_from_base.inverse().apply(path_T2)
        distance = np.hypot(points[:, 0], points[:, 1])
        far = np.flatnonzero((distance >= reach) & (points[:, 0] > 0.0))
        k = int(far[0]) if len(far) else int(np.argmax(points[:, 0]))
        x, y = points[k]
        gap = float(np.hypot(x, y))
        if x <= 0.2 or gap < 0.5:
            return Command(acceleration, 0.0)
        return Command(acceleration, float(2.0 * y / gap**2))
