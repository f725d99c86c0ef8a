"""Routes, route coordinates and plans.

A plan is proposed in *route coordinates*: `s` metres along the route from the robot's projection,
`d` metres to the left of it (the Frenet frame of Werling et al., ICRA 2010). One function, `route_input`,
builds what the network sees of the route, in training, replay and on the robot alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from e2e_perception.core.errors import InputError
from e2e_perception.core.frames import SE2, wrap_angle

ROUTE_SPACING = 3.0  # [m] between route points
ROUTE_POINTS = 41  # covers 120 m ahead


@dataclass(frozen=True)
class Route:
    """A centre line to follow, as a polyline.

    Attributes:
        points_R2: (R, 2) float64 [m], at least two, consecutive ones distinct; any frame.
        assumed: True if no route was given and this one was derived from the robot's own heading.
    """

    points_R2: NDArray[np.float64]
    assumed: bool = False
    arc_lengths_R: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        points = np.asarray(self.points_R2, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
            raise InputError(f"route has shape {points.shape}, expected (R >= 2, 2)")
        if not np.isfinite(points).all():
            raise InputError("route has a non-finite point")
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        keep = np.concatenate([[True], steps > 1e-3])
        points = points[keep]
        if len(points) < 2:
            raise InputError("route has no length: all its points coincide")
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        object.__setattr__(self, "points_R2", points)
        object.__setattr__(self, "arc_lengths_R", np.concatenate([[0.0], np.cumsum(steps)]))

    @staticmethod
    def straight(pose: SE2, length: float = 150.0) -> Route:
        """The assumed route: straight ahead from a pose, marked as such."""
        return Route(pose.apply(np.array([[0.0, 0.0], [length, 0.0]])), assumed=True)

    def transformed(self, a_from_b: SE2) -> Route:
        """The same route in another frame."""
        return Route(a_from_b.apply(self.points_R2), assumed=self.assumed)

    def at(self, s: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points and unit tangents at arc lengths; the ends are continued straight.

        Args:
            s: (...,) [m].
        Returns:
            Points (..., 2) [m] and tangents (..., 2).
        """
        s = np.asarray(s, np.float64)
        i = np.clip(np.searchsorted(self.arc_lengths_R, s, side="right") - 1, 0, len(self.points_R2) - 2)
        start = self.points_R2[i]
        along = self.points_R2[i + 1] - start
        tangents = along / np.linalg.norm(along, axis=-1, keepdims=True)
        return start + tangents * (s - self.arc_lengths_R[i])[..., None], tangents

    def project(self, point_2: ArrayLike, near_s: float | None = None) -> tuple[float, float]:
        """Nearest (s, d) of a point.

        Args:
            point_2: (2,) [m], in the route's frame.
            near_s: If given, only stretches within 30 m of this arc length are searched, so that a
                route that crosses itself does not make the robot leap.
        Returns:
            Arc length s [m] and signed offset d [m], left positive. Before the start and past the end
            the first and last stretch are continued straight.
        """
        point = np.asarray(point_2, np.float64)
        start, end = self.points_R2[:-1], self.points_R2[1:]
        along = end - start
        lengths = np.linalg.norm(along, axis=1)
        tangents = along / lengths[:, None]
        t = np.einsum("ij,ij->i", point - start, tangents)
        low = np.zeros(len(t))
        high = lengths.copy()
        low[0], high[-1] = -np.inf, np.inf
        t = np.clip(t, low, high)
        offsets = point - (start + tangents * t[:, None])
        distances = np.linalg.norm(offsets, axis=1)
        if near_s is not None:
            far = np.abs(self.arc_lengths_R[:-1] + t - near_s) > 30.0
            if not far.all():
                distances = np.where(far, np.inf, distances)
        i = int(np.argmin(distances))
        side = tangents[i, 0] * offsets[i, 1] - tangents[i, 1] * offsets[i, 0]
        return float(self.arc_lengths_R[i] + t[i]), float(side)


@dataclass(frozen=True)
class RouteInput:
    """What the network and the host both use of the route, in the base frame.

    Attributes:
        features_R4: (ROUTE_POINTS, 4) float32: x, y [m], unit tangent x, y, every `ROUTE_SPACING`
            metres from the robot's projection (s = 0) onwards.
        lateral_offset: The robot's d [m].
        heading_error: The robot's heading relative to the route's [rad].
        assumed: See `Route.assumed`.
    """

    features_R4: NDArray[np.float32]
    lateral_offset: float
    heading_error: float
    assumed: bool


def route_input(route: Route, route_from_base: SE2, near_s: float | None = None) -> RouteInput:
    """Build the route input: the only place where this is done.

    It looks at the route's geometry and the robot's pose, nothing else; an expert's future choice of
    lane cannot leak through it.

    Args:
        route: In any frame.
        route_from_base: The robot's pose in that frame.
        near_s: See `Route.project`.
    Returns:
        The sampled route ahead, in the base frame.
    """
    s0, d0 = route.project((route_from_base.x, route_from_base.y), near_s)
    points, tangents = route.at(s0 + ROUTE_SPACING * np.arange(ROUTE_POINTS))
    base_from_route = route_from_base.inverse()
    features = np.concatenate([base_from_route.apply(points), base_from_route.rotate(tangents)], axis=1)
    heading = float(np.arctan2(tangents[0, 1], tangents[0, 0]))
    return RouteInput(
        features_R4=features.astype(np.float32),
        lateral_offset=d0,
        heading_error=float(wrap_angle(route_from_base.yaw - heading)),
        assumed=route.assumed,
    )


def base_from_route_coordinates(
    sd_N2: NDArray[np.floating], features_R4: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Turn route coordinates into base-frame points, exactly as the network does inside its graph.

    Linear interpolation between route points, straight continuation before the first and past the last.

    Args:
        sd_N2: (..., 2) [m], s along and d to the left.
        features_R4: (R, 4) as in `RouteInput`.
    Returns:
        (..., 2) float64 [m], base frame.
    """
    sd = np.asarray(sd_N2, np.float64)
    features = np.asarray(features_R4, np.float64)
    last = (len(features) - 1) * ROUTE_SPACING
    s = sd[..., 0]
    inside = np.clip(s, 0.0, last)
    i = np.clip((inside / ROUTE_SPACING).astype(np.int64), 0, len(features) - 2)
    f = (inside / ROUTE_SPACING - i)[..., None]
    interpolated = (1.0 - f) * features[i] + f * features[i + 1]
    point, tangent = interpolated[..., :2], interpolated[..., 2:]
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-6)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1)
    return np.asarray(point + tangent * (s - inside)[..., None] + normal * sd[..., 1:2])


@dataclass(frozen=True)
class Plan:
    """The chosen trajectory and why it was chosen.

    Attributes:
        stamp_ns: Frame time [ns]; point k lies `times_P[k]` after it.
        times_P: (P,) float64 [s], rising.
        points_P2: (P, 2) float64 [m], base frame at `stamp_ns`.
        yaws_P, speeds_P, accelerations_P: (P,) float64 [rad], [m/s], [m/s^2].
        candidate: Index of the winning proposal, or -1 for a stop made by the supervisor.
        costs: Weighted cost of each term for the winner, by term name; their sum decided.
        runner_up: Index of the second-best proposal, or -1.
        runner_up_costs: The same terms for it.
        route_assumed: The plan follows an assumed route.
    """

    stamp_ns: int
    times_P: NDArray[np.float64]
    points_P2: NDArray[np.float64]
    yaws_P: NDArray[np.float64]
    speeds_P: NDArray[np.float64]
    accelerations_P: NDArray[np.float64]
    candidate: int
    costs: dict[str, float]
    runner_up: int = -1
    runner_up_costs: dict[str, float] = field(default_factory=dict)
    route_assumed: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether every number of the trajectory is finite."""
        arrays = (self.points_P2, self.yaws_P, self.speeds_P, self.accelerations_P)
        return all(bool(np.isfinite(a).all()) for a in arrays)
