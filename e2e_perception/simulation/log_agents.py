"""The others of a log: their tracks on the world's steps, and how they yield to a robot off the logged drive.

Layout suffixes: A annotated boxes, N agents, T steps, C still solids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.frames import SE3
from e2e_perception.simulation.argoverse import (
    AXLE_HEIGHT,
    CATEGORIES,
    RIDDEN,
    RIDERS,
    STILL,
    TRAILERS,
    Log,
    boxes_in_city,
)
from e2e_perception.simulation.world import STEP_S, AgentStates

MAX_GAP_NS = 500_000_000  # between two annotations, across which a track is interpolated
RATE_WINDOW = 7  # steps of the quadratic that velocities are the slope of (Savitzky and Golay 1964)
MOVES = 2.0  # [m] from its median place beyond which a bicycle is not parked, nor a sign fixed
RIDER_DISTANCE = 1.0  # [m] between the boxes of a rider and of what is ridden
HITCH_DISTANCE = 1.5  # [m] between a trailer's front and the rear of what tows it

SIGHT = 60.0  # [m] of path that is looked at
ROBOT_MARGIN = 0.3  # [m] to the robot, beside an agent's path
STANDING = 0.3  # [m/s] below which an agent stood in the log and waits out its time
TOUCHING = 0.3  # [m] to somebody at which it does not even creep
MAX_BRAKING = 8.0  # [m/s^2]
OUTLINE_SPACING = 0.5  # [m]
PATH_BEYOND = 6.0  # [m] by which a path is continued straight
LATE = 0.3  # [m] from the logged place


@dataclass(frozen=True)
class IdmStyle:
    """Parameters of the Intelligent Driver Model (Treiber, Hennecke and Helbing, Phys. Rev. E 62, 2000).

    Attributes:
        acceleration, braking: a and comfortable b [m/s^2].
        time_gap: T [s].
        standing_gap: s0 [m].
    """

    acceleration: float
    braking: float
    time_gap: float
    standing_gap: float

    def wanted(self, speed: float, top_speed: float, gap: float, closing: float) -> float:
        """Acceleration [m/s^2], at least -`MAX_BRAKING`.

        Args:
            speed: Own [m/s].
            top_speed: Without anybody ahead [m/s], > 0.
            gap: To who is ahead, bumper to bumper [m]; infinite: nobody.
            closing: Own speed minus theirs along the path [m/s].
        """
        a = self.acceleration
        reach = speed * self.time_gap + speed * closing / (2.0 * float(np.sqrt(a * self.braking)))
        desired = self.standing_gap + max(0.0, reach)
        free = 1.0 - (speed / top_speed) ** 4
        return max(a * (free - (desired / max(gap, 0.1)) ** 2), -MAX_BRAKING)


STYLES = {
    "car": IdmStyle(1.8, 2.5, 1.2, 2.0),
    "truck": IdmStyle(1.2, 2.0, 1.5, 2.5),
    "cyclist": IdmStyle(1.2, 2.0, 1.0, 1.0),
    "pedestrian": IdmStyle(1.5, 2.0, 0.4, 0.6),
}


@dataclass(frozen=True)
class Tracks:
    """What the agents did in the log.

    Attributes:
        poses_TN3: (T, N, 3) x, y [m] of the centre, yaw [rad, continuous], odom.
        velocities_TN2: (T, N, 2) [m/s], odom axes, from smoothed positions.
        present_TN: (T, N), who is annotated (or was and will be within `MAX_GAP_NS`).
        sizes_N3: (N, 3) length, width, height [m].
        class_ids_N: (N,), index into `CLASSES`.
        track_ids: Of each agent, as in the data set.
        towed_by_N: (N,) the agent that tows this one, or -1.
    """

    poses_TN3: NDArray[np.float64]
    velocities_TN2: NDArray[np.float64]
    present_TN: NDArray[np.bool_]
    sizes_N3: NDArray[np.float64]
    class_ids_N: NDArray[np.int64]
    track_ids: tuple[str, ...]
    towed_by_N: NDArray[np.int64]


@dataclass(frozen=True)
class _Track:
    """One track as annotated."""

    track_id: str
    category: str
    stamps_ns_A: NDArray[np.int64]
    poses_A3: NDArray[np.float64]
    bottoms_A: NDArray[np.float64]
    size_3: NDArray[np.float64]

    @property
    def place_2(self) -> NDArray[np.float64]:
        return np.asarray(np.median(self.poses_A3[:, :2], axis=0))

    @property
    def moves(self) -> bool:
        return bool(np.linalg.norm(self.poses_A3[:, :2] - self.place_2, axis=1).max() > MOVES)


def tracks_on_steps(
    log: Log, steps_ns_T: NDArray[np.int64], odom_from_city: SE3
) -> tuple[Tracks, NDArray[np.float64]]:
    """Agents at the world's steps, and what stands still.

    Args:
        log: With the annotations.
        steps_ns_T: Instants in the log's time [ns], `STEP_S` apart.
        odom_from_city: Turns about the vertical only.
    Returns:
        The agents, one row for each track that is one, whenever it appears; still solids as (C, 12), see
        `scenery.Clutter`.
    """
    agents: list[_Track] = []
    still: list[tuple[float, ...]] = []
    for track in _merged(list(_tracks(log, odom_from_city))):
        role = _role(track)
        if role == STILL:
            still.append(_still_row(track))
        elif role is not None:
            agents.append(track)
    num_steps, num = len(steps_ns_T), len(agents)
    poses = np.zeros((num_steps, num, 3))
    velocities = np.zeros((num_steps, num, 2))
    present = np.zeros((num_steps, num), np.bool_)
    for n, track in enumerate(agents):
        poses[:, n], velocities[:, n], present[:, n] = _on_steps(track, steps_ns_T)
    tracks = Tracks(
        poses,
        velocities,
        present,
        np.array([track.size_3 for track in agents], np.float64).reshape(-1, 3),
        np.array([CLASSES.index(str(CATEGORIES[t.category])) for t in agents], np.int64),
        tuple(track.track_id for track in agents),
        np.array([_towed_by(n, agents, poses, present) for n in range(num)], np.int64),
    )
    return tracks, np.array(still, np.float64).reshape(-1, 12)


def _tracks(log: Log, odom_from_city: SE3) -> Iterator[_Track]:
    a = log.annotations
    centers, yaws = boxes_in_city(log)
    odom = odom_from_city.apply(centers)
    yaws = yaws + odom_from_city.yaw
    # Height of a box above the ground that the car stands on.
    above = a.centers_A3[:, 2] - a.sizes_A3[:, 2] / 2.0 + AXLE_HEIGHT
    for n, (track_id, category) in enumerate(zip(a.track_ids, a.categories, strict=True)):
        rows = np.flatnonzero(a.tracks_A == n)
        stamps, first = np.unique(a.stamps_ns_A[rows], return_index=True)
        rows = rows[first]
        poses = np.column_stack([odom[rows, :2], np.unwrap(yaws[rows])])
        yield _Track(track_id, category, stamps, poses, above[rows], np.median(a.sizes_A3[rows], axis=0))


def _role(track: _Track) -> str | None:
    """A class, `still`, or None: not simulated."""
    role = CATEGORIES[track.category]
    if track.category in RIDDEN and not track.moves:
        return STILL
    if role == STILL and track.moves:
        return None  # carried about, or on something that is annotated itself
    return role


def _merged(tracks: list[_Track]) -> Iterator[_Track]:
    """Riders with what they ride as one: the rider's track, as large as both."""
    ridden = [track for track in tracks if track.category in RIDDEN]
    taken: set[str] = set()
    for track in tracks:
        if track.category in RIDERS:
            size = track.size_3
            for other in ridden:
                if other.track_id not in taken and _rides(track, other):
                    taken.add(other.track_id)
                    size = np.maximum(size, other.size_3)
            yield _Track(
                track.track_id, track.category, track.stamps_ns_A, track.poses_A3, track.bottoms_A, size
            )
    yield from (t for t in tracks if t.category not in RIDERS and t.track_id not in taken)


def _rides(rider: _Track, ridden: _Track) -> bool:
    _, i, j = np.intersect1d(rider.stamps_ns_A, ridden.stamps_ns_A, return_indices=True)
    if not len(i):
        return False
    apart = np.linalg.norm(rider.poses_A3[i, :2] - ridden.poses_A3[j, :2], axis=1)
    return bool(np.median(apart) < RIDER_DISTANCE)


def _still_row(track: _Track) -> tuple[float, ...]:
    length, width, height = track.size_3.tolist()
    lowest = float(track.bottoms_A.min())
    bottom = lowest if lowest > 1.0 else 0.0  # signs hang; all else stands, on ground that is flat here
    x, y = track.place_2.tolist()
    yaw = float(np.median(track.poses_A3[:, 2]))
    reflectivity, color = {
        "CONSTRUCTION_CONE": (0.8, (230.0, 90.0, 30.0)),
        "CONSTRUCTION_BARREL": (0.8, (230.0, 90.0, 30.0)),
        "SIGN": (0.9, (200.0, 200.0, 200.0)),
        "STOP_SIGN": (0.9, (190.0, 40.0, 35.0)),
    }.get(track.category, (0.45, (110.0, 110.0, 112.0)))
    return x, y, bottom + height / 2.0, length, width, height, yaw, reflectivity, 0.0, *color


def _on_steps(
    track: _Track, steps_ns_T: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Poses (T, 3), velocities (T, 2) and presence (T,) of a track."""
    stamps = track.stamps_ns_A
    origin = int(steps_ns_T[0])
    times, wanted = (stamps - origin) * 1e-9, (steps_ns_T - origin) * 1e-9
    poses = np.stack([np.interp(wanted, times, track.poses_A3[:, i]) for i in range(3)], axis=-1)
    velocities = np.zeros((len(wanted), 2))
    present = np.zeros(len(wanted), np.bool_)
    for rows in np.split(np.arange(len(stamps)), np.flatnonzero(np.diff(stamps) > MAX_GAP_NS) + 1):
        there = (steps_ns_T >= stamps[rows[0]]) & (steps_ns_T <= stamps[rows[-1]])
        present |= there
        if there.sum() > 1:
            velocities[there] = rates(poses[there, :2])
        elif len(rows) > 1:
            moved = track.poses_A3[rows[-1], :2] - track.poses_A3[rows[0], :2]
            velocities[there] = moved / (times[rows[-1]] - times[rows[0]])
    return poses, velocities, present


def rates(
    values_TK: NDArray[np.float64], step: float = STEP_S, window: int = RATE_WINDOW
) -> NDArray[np.float64]:
    """Time derivatives of values at even steps: slopes of quadratics fitted to `window` of them.

    Args:
        values_TK: (T, K), T >= 2.
        step: Between two [s].
        window: Odd.
    """
    num = len(values_TK)
    if num == 2:
        return np.repeat(np.diff(values_TK, axis=0) / step, 2, axis=0)
    window = min(window, num if num % 2 else num - 1)
    return np.asarray(savgol_filter(values_TK, window, 2, deriv=1, delta=step, axis=0))


def _towed_by(
    n: int, agents: list[_Track], poses_TN3: NDArray[np.float64], present_TN: NDArray[np.bool_]
) -> int:
    """The vehicle whose rear is right before a moving trailer's front, or -1."""
    trailer = agents[n]
    if trailer.category not in TRAILERS or not trailer.moves:
        return -1
    for m, other in enumerate(agents):
        both = present_TN[:, n] & present_TN[:, m]
        if m == n or CATEGORIES[other.category] not in ("car", "truck") or not both.any():
            continue
        front, rear = poses_TN3[both, n], poses_TN3[both, m]
        ahead = np.stack([np.cos(front[:, 2]), np.sin(front[:, 2])], axis=-1) * trailer.size_3[0] / 2.0
        behind = np.stack([np.cos(rear[:, 2]), np.sin(rear[:, 2])], axis=-1) * other.size_3[0] / 2.0
        apart = np.linalg.norm(front[:, :2] + ahead - rear[:, :2] + behind, axis=1)
        if np.median(apart) < HITCH_DISTANCE and other.category not in TRAILERS:
            return m
    return -1


class LoggedTraffic:
    """The agents, each with a clock of its own that says how far along its logged motion it is.

    As long as nothing is in its way a clock runs with the world's. Held up, an agent follows IDM: its clock
    runs slower and it stays behind for good. It is nowhere faster than it was logged at the same place,
    stands where it stood for as long as it stood, and never leaves its path.
    """

    def __init__(self, tracks: Tracks) -> None:
        """At the first step, as logged."""
        self.tracks = tracks
        self.step_index = 0
        num = len(tracks.sizes_N3)
        self._clocks_N: NDArray[np.float64] = np.zeros(num)
        self._logged_speeds_TN = np.hypot(tracks.velocities_TN2[..., 0], tracks.velocities_TN2[..., 1])
        means = STEP_S * (self._logged_speeds_TN[1:] + self._logged_speeds_TN[:-1]) / 2.0
        self._arcs_TN = np.concatenate([np.zeros((1, num)), np.cumsum(means, axis=0)])
        shown = np.where(tracks.present_TN, self._logged_speeds_TN, 0.0)
        self._top_speeds_N = np.maximum(1.1 * shown.max(axis=0), 1.0)
        moved = np.where(tracks.present_TN[..., None], tracks.poses_TN3[..., :2], np.nan)
        self._movers_N = np.hypot(*(_range(moved[..., i]) for i in (0, 1))) > MOVES
        self._speeds_N = self._logged_speeds_TN[0].copy()
        # The last step of the stretch in which an agent is there without a break.
        until = np.zeros(tracks.present_TN.shape, np.int64)
        last: NDArray[np.int64] = np.zeros(num, np.int64)
        for t in range(len(until) - 1, -1, -1):
            gone = ~tracks.present_TN[t + 1] if t + 1 < len(until) else np.ones(num, np.bool_)
            last = np.where(gone, t, last)
            until[t] = last
        self._until_TN = until

    @property
    def states(self) -> AgentStates:
        """Everybody at the present step."""
        k = self.step_index
        if (self._clocks_N == k).all():
            return AgentStates(
                self.tracks.poses_TN3[k], self.tracks.velocities_TN2[k], self.tracks.present_TN[k]
            )
        cols = np.arange(len(self._clocks_N))
        before, after, f = self._around(cols)
        t = self.tracks
        both = t.present_TN[before, cols] & t.present_TN[after, cols]
        nearest = np.where(f < 0.5, before, after)
        share = np.where(both, f, np.where(f < 0.5, 0.0, 1.0))[:, None]
        poses = (1.0 - share) * t.poses_TN3[before, cols] + share * t.poses_TN3[after, cols]
        velocities = (1.0 - share) * t.velocities_TN2[before, cols] + share * t.velocities_TN2[after, cols]
        late = self._clocks_N < k
        speeds = np.linalg.norm(velocities, axis=1)
        scale = np.where(late, self._speeds_N / np.maximum(speeds, 1e-6), 1.0)
        return AgentStates(poses, velocities * np.minimum(scale, 1.0)[:, None], t.present_TN[nearest, cols])

    def _around(
        self, cols: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        before = np.floor(self._clocks_N[cols]).astype(np.int64)
        after = np.minimum(before + 1, len(self.tracks.poses_TN3) - 1)
        return before, after, self._clocks_N[cols] - before

    def differs_near(self, point_2: NDArray[np.float64], radius: float) -> bool:
        """Whether the log and the present differ by more than `LATE` for somebody within `radius` [m]."""
        now, k = self.states, self.step_index
        logged = self.tracks.poses_TN3[k]
        apart = np.linalg.norm(now.poses_N3[:, :2] - logged[:, :2], axis=1) > LATE
        apart |= now.present_N != self.tracks.present_TN[k]
        near = np.linalg.norm(now.poses_N3[:, :2] - point_2, axis=1) < radius
        near |= np.linalg.norm(logged[:, :2] - point_2, axis=1) < radius
        either = now.present_N | self.tracks.present_TN[k]
        return bool((apart & near & either).any())

    def step(self, robot_5: NDArray[np.float64] | None, robot_size: tuple[float, float, float]) -> None:
        """Go on by a step.

        Args:
            robot_5: x, y [m], yaw [rad], velocity x, y [m/s] of its `base_link` now, odom; None: nobody
                reacts to it.
            robot_size: Length, width [m], and how far the centre lies ahead of `base_link` [m].
        """
        k = self.step_index
        now = self.states
        on_time_N = self._clocks_N == k
        clocks: NDArray[np.float64] = np.minimum(self._clocks_N + 1.0, k + 1.0)
        speeds = self._logged_speeds_TN[k + 1].copy()
        if robot_5 is not None or not on_time_N.all():
            for n in np.flatnonzero(self._movers_N & now.present_N & (self.tracks.towed_by_N < 0)):
                clocks[n], speeds[n] = self._driven(int(n), now, on_time_N, robot_5, robot_size)
            for n in np.flatnonzero(self.tracks.towed_by_N >= 0):
                m = self.tracks.towed_by_N[n]
                if now.present_N[m]:
                    clocks[n], speeds[n] = clocks[m], speeds[m]
        self._clocks_N, self._speeds_N = clocks, speeds
        self.step_index += 1

    def _logged_at(self, table_TN: NDArray[np.float64], n: int, clock: float) -> float:
        return float(np.interp(clock, np.arange(len(table_TN)), table_TN[:, n]))

    def _driven(
        self,
        n: int,
        now: AgentStates,
        on_time_N: NDArray[np.bool_],
        robot_5: NDArray[np.float64] | None,
        robot_size: tuple[float, float, float],
    ) -> tuple[float, float]:
        """The next clock and speed of an agent that is there and moves."""
        clock, speed = float(self._clocks_N[n]), float(self._speeds_N[n])
        if on_time_N[n]:
            speed = float(self._logged_speeds_TN[self.step_index, n])
        free_clock = clock + 1.0
        free_speed = self._logged_at(self._logged_speeds_TN, n, free_clock)
        gap, their_speed = self._ahead(n, now, on_time_N, robot_5, robot_size)
        if np.isinf(gap) and on_time_N[n]:
            return free_clock, free_speed
        logged_speed = self._logged_at(self._logged_speeds_TN, n, clock)
        if logged_speed < STANDING and gap > TOUCHING:
            return free_clock, free_speed
        style = STYLES[CLASSES[self.tracks.class_ids_N[n]]]
        wanted = style.wanted(speed, float(self._top_speeds_N[n]), gap, speed - their_speed)
        next_speed = max(speed + wanted * STEP_S, 0.0)
        if next_speed >= free_speed and speed >= logged_speed - 1e-6:
            return free_clock, free_speed
        arc = self._logged_at(self._arcs_TN, n, clock) + 0.5 * (speed + next_speed) * STEP_S
        # When the log has it there; never more than a step of the log in one of the world.
        stretch = np.array([clock, *np.arange(np.floor(clock) + 1.0, free_clock), free_clock])
        arcs = np.array([self._logged_at(self._arcs_TN, n, c) for c in stretch])
        next_clock = float(np.interp(arc, arcs, stretch)) if arcs[-1] > arc else free_clock
        return next_clock, min(next_speed, self._logged_at(self._logged_speeds_TN, n, next_clock))

    def _ahead(
        self,
        n: int,
        now: AgentStates,
        on_time_N: NDArray[np.bool_],
        robot_5: NDArray[np.float64] | None,
        robot_size: tuple[float, float, float],
    ) -> tuple[float, float]:
        """Gap [m] to the first on an agent's path and their speed along it [m/s]; infinite: nobody.

        Who is on time met nobody on time in the log, so that only the robot and the late count. Who is late
        looks at everybody that moves; what stood beside its path stood there in the log as well.
        """
        here = now.poses_N3[n, :2]
        others = now.present_N & self._movers_N & ~(on_time_N & on_time_N[n])
        others[n] = False
        others &= self.tracks.towed_by_N != n
        if CLASSES[self.tracks.class_ids_N[n]] == "pedestrian":  # people make way for each other
            others &= self.tracks.class_ids_N != CLASSES.index("pedestrian")
        others &= np.linalg.norm(now.poses_N3[:, :2] - here, axis=1) < SIGHT
        boxes = [
            (now.poses_N3[m], self.tracks.sizes_N3[m, :2], now.velocities_N2[m], 0.0)
            for m in np.flatnonzero(others)
        ]
        if robot_5 is not None and np.hypot(*(robot_5[:2] - here)) < SIGHT + robot_size[0]:
            length, width, ahead = robot_size
            x, y, yaw = robot_5[:3]
            pose = np.array([x + ahead * np.cos(yaw), y + ahead * np.sin(yaw), yaw])
            boxes.append((pose, np.array([length, width]), robot_5[3:], ROBOT_MARGIN))
        if not boxes:
            return np.inf, 0.0
        outlines = [_outline(pose, size) for pose, size, _, _ in boxes]
        counts = [len(outline) for outline in outlines]
        velocities = np.repeat(np.array([velocity for _, _, velocity, _ in boxes]), counts, axis=0)
        margins = np.repeat([margin for _, _, _, margin in boxes], counts)
        path = self._path(n, now.poses_N3[n])
        reach = self.tracks.sizes_N3[n, 1] / 2.0 + margins
        s, along = _first_on_path(path, np.concatenate(outlines), velocities, reach)
        return s - float(self.tracks.sizes_N3[n, 0]) / 2.0, along

    def _path(self, n: int, pose_3: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K, 2) [m] from where an agent is to the end of its stretch, and straight on."""
        first = int(np.ceil(self._clocks_N[n]))
        last = int(self._until_TN[int(self._clocks_N[n]), n])
        points = [pose_3[:2]]
        heading = float(pose_3[2])
        length = 0.0
        for t in range(first, last + 1):
            step = self.tracks.poses_TN3[t, n, :2] - points[-1]
            distance = float(np.hypot(*step))
            if distance > 0.5:
                points.append(self.tracks.poses_TN3[t, n, :2])
                heading = float(np.arctan2(step[1], step[0]))
                length += distance
            if length > SIGHT:
                break
        ends = points[-1] + (self.tracks.sizes_N3[n, 0] / 2.0 + PATH_BEYOND) * np.array(
            [np.cos(heading), np.sin(heading)]
        )
        return np.array([*points, ends])


def _range(values_TN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Greatest minus smallest of each column, NaN left out; 0 for columns without a number."""
    low = np.where(np.isnan(values_TN), np.inf, values_TN).min(axis=0)
    high = np.where(np.isnan(values_TN), -np.inf, values_TN).max(axis=0)
    return np.asarray(np.maximum(high - low, 0.0))


def _outline(pose_3: NDArray[np.float64], size_2: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, 2) [m]: points on the edges of a rectangle, at most `OUTLINE_SPACING` apart."""
    length, width = size_2.tolist()
    u = np.linspace(-0.5, 0.5, int(np.ceil(length / OUTLINE_SPACING)) + 1) * length
    v = np.linspace(-0.5, 0.5, int(np.ceil(width / OUTLINE_SPACING)) + 1) * width
    local = np.concatenate(
        [np.column_stack([u, np.full(len(u), side * width / 2.0)]) for side in (-1.0, 1.0)]
        + [np.column_stack([np.full(len(v), side * length / 2.0), v]) for side in (-1.0, 1.0)]
    )
    c, s = np.cos(pose_3[2]), np.sin(pose_3[2])
    return np.asarray(local @ np.array([[c, s], [-s, c]]) + pose_3[:2])


def _first_on_path(
    path_K2: NDArray[np.float64],
    points_Q2: NDArray[np.float64],
    velocities_Q2: NDArray[np.float64],
    reach_Q: NDArray[np.float64],
) -> tuple[float, float]:
    """Distance along a path [m] of the first point near it and its velocity along it; inf, 0: none."""
    start, along = path_K2[:-1], np.diff(path_K2, axis=0)
    lengths = np.linalg.norm(along, axis=1)
    tangents = along / lengths[:, None]
    arc = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    offset = points_Q2[:, None] - start[None]
    t = (offset * tangents).sum(-1)
    inside = np.clip(t, 0.0, lengths)
    distance = np.linalg.norm(offset - tangents * inside[..., None], axis=-1)
    met = distance < reach_Q[:, None]
    met[:, 0] &= t[:, 0] > 0.0  # what is behind is not in the way
    if not met.any():
        return np.inf, 0.0
    s = np.where(met, arc + inside, np.inf)
    q, segment = np.unravel_index(int(np.argmin(s)), s.shape)
    return float(s[q, segment]), float(velocities_Q2[q] @ tangents[segment])
