"""What is remembered of N tracks, as parallel arrays, and how one measurement changes it.

Position and velocity are blended by inverse variance (a Kalman filter without the covariance between the
two). The variances are isotropic, so that turning the base frame changes nothing. The network's own memory
has already smoothed what it reports; the filter mainly takes the jitter out of the velocity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, BOX_STD_FIELDS

Array = NDArray[np.float64]

# Process noise. A reported velocity may be wrong by this much, so a prediction drifts accordingly.
VELOCITY_DOUBT = 3.0  # [m/s]
ACCELERATION = 6.0  # [m/s^2] hard braking
LEAST_STD = 0.05  # [m], [m/s]; no measurement is trusted more
SIZE_GAIN = 0.3  # share of a new measurement; sizes do not change
HEADING_GAIN = 0.4  # below one half, so that a single reversed heading does not turn the track round
SCORE_GAIN = 0.5
COAST_DECAY_S = 1.0  # time constant of the score of an unseen track

SIZES = ("log_length", "log_width", "log_height")


@dataclass(frozen=True)
class TrackState:
    """N tracks in one base frame.

    Attributes:
        ids_N: Identities.
        class_scores_NK: Smoothed probability per class.
        centers_N2, z_N: Centre [m].
        log_sizes_N3: Log of length, width, height [log m].
        headings_N2: Smoothed (cos, sin) of the yaw, length at most 1.
        velocities_N2: Over ground [m/s].
        position_var_N, velocity_var_N: Per axis [m^2], [m^2/s^2].
        tokens_ND: What the network remembers.
        hits_N, ages_N, coasted_N: Matches; frames since birth; frames since the last match.
        seen_ns_N: Time of the last match [ns].
    """

    ids_N: NDArray[np.int64]
    class_scores_NK: Array
    centers_N2: Array
    z_N: Array
    log_sizes_N3: Array
    headings_N2: Array
    velocities_N2: Array
    position_var_N: Array
    velocity_var_N: Array
    tokens_ND: NDArray[np.float32]
    hits_N: NDArray[np.int64]
    ages_N: NDArray[np.int64]
    coasted_N: NDArray[np.int64]
    seen_ns_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def class_ids_N(self) -> NDArray[np.int64]:
        """Likeliest class, index into `CLASSES`."""
        return np.asarray(self.class_scores_NK.argmax(1), np.int64)

    @property
    def scores_N(self) -> Array:
        """Probability of that class."""
        return np.asarray(self.class_scores_NK.max(1))

    @staticmethod
    def empty(token_channels: int) -> TrackState:
        """No tracks."""
        boxes = {name: np.zeros(0) for name in BOX_FIELDS}
        return TrackState.born(
            boxes,
            np.zeros((0, len(CLASSES))),
            np.zeros((0, len(BOX_STD_FIELDS))),
            np.zeros((0, token_channels), np.float32),
            0,
            np.zeros(0, np.int64),
        )

    @staticmethod
    def born(
        boxes_N: Mapping[str, Array],
        scores_NK: Array,
        log_var_N4: Array,
        tokens_ND: NDArray[np.float32],
        stamp_ns: int,
        ids_N: NDArray[np.int64],
    ) -> TrackState:
        """New tracks from detections: `BOX_FIELDS` columns by name, log-variances as `BOX_STD_FIELDS`."""
        n = len(ids_N)
        position_var, velocity_var = _variances(log_var_N4)
        return TrackState(
            ids_N=ids_N.astype(np.int64),
            class_scores_NK=scores_NK,
            centers_N2=np.stack([boxes_N["x"], boxes_N["y"]], 1),
            z_N=boxes_N["z"],
            log_sizes_N3=np.stack([boxes_N[name] for name in SIZES], 1),
            headings_N2=_headings(boxes_N),
            velocities_N2=np.stack([boxes_N["vx"], boxes_N["vy"]], 1),
            position_var_N=position_var,
            velocity_var_N=velocity_var,
            tokens_ND=tokens_ND,
            hits_N=np.ones(n, np.int64),
            ages_N=np.zeros(n, np.int64),
            coasted_N=np.zeros(n, np.int64),
            seen_ns_N=np.full(n, stamp_ns, np.int64),
        )

    def select(self, rows: NDArray[np.int64]) -> TrackState:
        """The tracks at `rows`, in that order."""
        return TrackState(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def joined(self, other: TrackState) -> TrackState:
        """These tracks, then those of `other`."""
        return TrackState(
            **{f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        )

    def _with(self, **changes: NDArray[np.generic]) -> TrackState:
        return TrackState(**{f.name: changes.get(f.name, getattr(self, f.name)) for f in fields(self)})

    def moved(self, dt: float, base_from_memory: SE2) -> TrackState:
        """The same tracks `dt` seconds later at constant velocity, seen from the new base frame."""
        doubt = self.velocity_var_N + VELOCITY_DOUBT**2
        return self._with(
            centers_N2=base_from_memory.apply(self.centers_N2 + dt * self.velocities_N2),
            headings_N2=base_from_memory.rotate(self.headings_N2),
            velocities_N2=base_from_memory.rotate(self.velocities_N2),
            position_var_N=self.position_var_N + doubt * dt**2,
            velocity_var_N=self.velocity_var_N + (ACCELERATION * dt) ** 2,
            ages_N=self.ages_N + 1,
            class_scores_NK=self.class_scores_NK
            * np.where(self.coasted_N > 0, np.exp(-dt / COAST_DECAY_S), 1.0)[:, None],
        )

    def coasted(self) -> TrackState:
        """The same tracks, unseen in this frame."""
        return self._with(coasted_N=self.coasted_N + 1)

    def corrected(
        self,
        boxes_N: Mapping[str, Array],
        scores_NK: Array,
        log_var_N4: Array,
        tokens_ND: NDArray[np.float32],
        stamp_ns: int,
    ) -> TrackState:
        """Each track after its own detection (arguments as in `born`)."""
        measured = TrackState.born(boxes_N, scores_NK, log_var_N4, tokens_ND, stamp_ns, self.ids_N)
        position_gain = self.position_var_N / (self.position_var_N + measured.position_var_N)
        velocity_gain = self.velocity_var_N / (self.velocity_var_N + measured.velocity_var_N)

        def blend(name: str, gain: Array | float) -> Array:
            old, new = getattr(self, name), getattr(measured, name)
            share = np.asarray(gain).reshape(-1, *([1] * (old.ndim - 1)))
            return np.asarray(old + share * (new - old))

        return measured._with(
            class_scores_NK=blend("class_scores_NK", SCORE_GAIN),
            centers_N2=blend("centers_N2", position_gain),
            z_N=blend("z_N", SIZE_GAIN),
            log_sizes_N3=blend("log_sizes_N3", SIZE_GAIN),
            headings_N2=blend("headings_N2", HEADING_GAIN),
            velocities_N2=blend("velocities_N2", velocity_gain),
            position_var_N=(1.0 - position_gain) * self.position_var_N,
            velocity_var_N=(1.0 - velocity_gain) * self.velocity_var_N,
            hits_N=self.hits_N + 1,
            ages_N=self.ages_N,
        )

    def network_boxes(self) -> NDArray[np.float32]:
        """(N, 10) float32, columns `BOX_FIELDS`."""
        norm = np.maximum(np.linalg.norm(self.headings_N2, axis=1), 1e-9)
        columns = {
            "x": self.centers_N2[:, 0],
            "y": self.centers_N2[:, 1],
            "z": self.z_N,
            **{name: self.log_sizes_N3[:, i] for i, name in enumerate(SIZES)},
            "sin_yaw": self.headings_N2[:, 1] / norm,
            "cos_yaw": self.headings_N2[:, 0] / norm,
            "vx": self.velocities_N2[:, 0],
            "vy": self.velocities_N2[:, 1],
        }
        return np.stack([columns[name] for name in BOX_FIELDS], 1).astype(np.float32)


def _headings(boxes_N: Mapping[str, Array]) -> Array:
    heading = np.stack([boxes_N["cos_yaw"], boxes_N["sin_yaw"]], 1)
    norm = np.linalg.norm(heading, axis=1, keepdims=True)
    # A heading of no length says nothing; x is as good as any direction.
    return np.where(norm > 1e-6, heading / np.maximum(norm, 1e-6), np.array([1.0, 0.0]))


def _variances(log_var_N4: Array) -> tuple[Array, Array]:
    """Isotropic variances of position and velocity from the network's four."""
    variance = np.maximum(np.exp(np.clip(log_var_N4, -20.0, 20.0)), LEAST_STD**2)
    columns = {name: variance[:, i] for i, name in enumerate(BOX_STD_FIELDS)}
    return 0.5 * (columns["x"] + columns["y"]), 0.5 * (columns["vx"] + columns["vy"])
