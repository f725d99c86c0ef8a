"""Identities: which detection is which remembered track, which is new, and which track has ended.

The network says how probable each association is (`affinity`); this file decides. Joint and one-to-one, as a
linear assignment, then the life of a track as in SORT (Bewley et al. 2016) with the two score thresholds of
ByteTrack (Zhang et al. 2022). Unlike ByteTrack there is one assignment, not two: a learned affinity, unlike
an overlap, already tells a weak detection of the same object from a strong one of another.

Legend: M remembered tracks at most, N of them alive, Q detections, K classes, D token width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from e2e_perception.core.boxes import CLASSES, GROUP_OF, Boxes
from e2e_perception.core.config import TrackingConfig
from e2e_perception.core.errors import ContractError, InputError
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, BOX_STD_FIELDS, NetworkConfig
from e2e_perception.core.tracks import Tracks
from e2e_perception.runtime.track_state import TrackState

Array = NDArray[np.float64]

# A track never changes from a vehicle into a person or a thing.
CLASS_GROUPS = np.array([GROUP_OF[name] for name in CLASSES])
LEAST_LOG_PROBABILITY = -50.0
FORBIDDEN = 1.0e4  # cost of an association that must not be; above any sum of two others
LARGEST_BELIEVABLE = 1.0e4  # [m], [m/s]; the grid is a hundred metres wide
LOG_SIZE_RANGE = (np.log(0.1), np.log(50.0))  # [log m]


@dataclass(frozen=True)
class _Detections:
    """The Q queries of a frame, best first; ties in the score are broken by place, never by query index."""

    order_Q: NDArray[np.int64]
    scores_QK: Array
    boxes_Q: Mapping[str, Array]
    log_var_Q4: Array
    tokens_QD: NDArray[np.float32]

    @property
    def best_Q(self) -> Array:
        """Score of the likeliest class."""
        return np.asarray(self.scores_QK.max(1))

    @property
    def centers_Q2(self) -> Array:
        """Centres [m]."""
        return np.stack([self.boxes_Q["x"], self.boxes_Q["y"]], 1)


class TrackManager:
    """Remembers tracks between frames: `inputs` before the engine, `update` after it.

    Attributes:
        counters: Since construction: `born`, `ended`, `forgotten` (ego motion lost), `dropped_full`
            (more tracks than memory), `duplicates` (detections that repeat another one).
    """

    def __init__(self, network: NetworkConfig, config: TrackingConfig) -> None:
        self.network = network
        self.config = config
        self.counters = dict.fromkeys(("born", "ended", "forgotten", "dropped_full", "duplicates"), 0)
        self._empty = TrackState.empty(network.token_channels)
        self._state = self._empty
        self._predicted = self._empty
        self._stamp_ns: int | None = None
        self._pending_ns: int | None = None
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._state)

    def forget(self) -> None:
        """Forget every track, and accept any stamp next; identities go on."""
        self.counters["forgotten"] += len(self._state)
        self._state = self._predicted = self._empty
        self._stamp_ns = self._pending_ns = None

    def reset(self) -> None:
        """Forget everything; identities start from 0 again."""
        self.forget()
        self._next_id = 0

    def forget_tokens(self) -> None:
        """Another network takes over: keep every track, but none of what the last network remembers of it.

        A token of zeros is what a track has that was never seen: its count of sightings is zero, too, so that
        the network trusts what it sees over what it is told.
        """
        self._state = replace(self._state, tokens_ND=np.zeros_like(self._state.tokens_ND))

    def inputs(self, stamp_ns: int, base_from_memory: SE2 | None) -> dict[str, NDArray[np.float32]]:
        """What the network is told of the remembered tracks.

        Apart from forgetting, nothing is decided yet: if the engine fails on this frame, the memory stays
        that of the last `update`.

        Args:
            stamp_ns: Time of the coming frame [ns], after that of the last `update`.
            base_from_memory: The coming base frame from the one at the last `update`; None if the ego motion
                between them is unknown: then every track is forgotten, because nothing says where it is now.
        Returns:
            `track_tokens` (1, M, D), `track_boxes` (1, M, 10) in the coming base frame, `track_valid` (1, M).
        Raises:
            InputError: If the stamp does not rise.
        """
        if self._stamp_ns is not None and stamp_ns <= self._stamp_ns:
            raise InputError(
                f"track manager: frame at {stamp_ns} ns follows one at {self._stamp_ns} ns; stamps must "
                "rise, call forget() after the clock was set back"
            )
        if base_from_memory is None or self._stamp_ns is None:
            self.counters["forgotten"] += len(self._state)
            self._state = self._predicted = self._empty
        else:
            dt = (stamp_ns - self._stamp_ns) * 1e-9
            self._predicted = self._state.moved(dt, base_from_memory)
        self._pending_ns = stamp_ns

        n, m = len(self._predicted), self.network.num_memory
        tokens = np.zeros((1, m, self.network.token_channels), np.float32)
        boxes = np.zeros((1, m, len(BOX_FIELDS)), np.float32)
        valid = np.zeros((1, m), np.float32)
        tokens[0, :n] = self._predicted.tokens_ND
        boxes[0, :n] = self._predicted.network_boxes()
        valid[0, :n] = 1.0
        return {"track_tokens": tokens, "track_boxes": boxes, "track_valid": valid}

    def update(self, stamp_ns: int, outputs: Mapping[str, NDArray[np.floating]]) -> Tracks:
        """Decide who is who, and remember.

        Args:
            stamp_ns: The stamp given to `inputs` for this frame [ns].
            outputs: The engine's outputs for those inputs.
        Returns:
            Every living track, seen or coasting, by rising identity.
        Raises:
            ContractError: If an output is missing or misshapen.
            InputError: If an output is not finite or not believable; the memory is then unchanged.
        """
        if stamp_ns != self._pending_ns:
            raise InputError(
                f"track manager: update at {stamp_ns} ns, but inputs() was last called for {self._pending_ns}"
            )
        detections, affinity = self._read(outputs)
        before = self._predicted
        track_of_Q = self._associate(before, detections, affinity)
        matched_q = np.flatnonzero(track_of_Q >= 0)
        matched_n = track_of_Q[matched_q]
        unseen_n = np.setdiff1d(np.arange(len(before)), matched_n)
        born_q = self._births(detections, matched_q)

        # Rows of the new memory: continued, new, coasting; `objects` are their rows in the motion outputs.
        continued = before.select(matched_n).corrected(*self._measured(detections, matched_q), stamp_ns)
        new = TrackState.born(
            *self._measured(detections, born_q), stamp_ns, np.arange(len(born_q)) + self._next_id
        )
        coasting_n = self._survivors(before, unseen_n, detections, born_q, stamp_ns)
        coasting = before.select(coasting_n).coasted()
        state = continued.joined(new).joined(coasting)
        objects = np.concatenate(
            [detections.order_Q[matched_q], detections.order_Q[born_q], self.network.num_queries + coasting_n]
        )
        keep = self._best(state)

        self.counters["born"] += len(born_q)
        self.counters["ended"] += len(unseen_n) - len(coasting_n)
        self.counters["dropped_full"] += len(state) - len(keep)
        self._next_id += len(born_q)
        self._state = state.select(keep)
        self._predicted = self._empty
        self._stamp_ns, self._pending_ns = stamp_ns, None
        measured = np.concatenate([detections.centers_Q2[matched_q], detections.centers_Q2[born_q]])
        # Futures start at the raw detection; they follow the filtered centre.
        shift = np.zeros((len(state), 2))
        shift[: len(measured)] = state.centers_N2[: len(measured)] - measured
        return self._publish(stamp_ns, outputs, objects[keep], shift[keep])

    def _read(self, outputs: Mapping[str, NDArray[np.floating]]) -> tuple[_Detections, Array]:
        q, m = self.network.num_queries, self.network.num_memory
        o, f, s = q + m, self.network.num_modes, self.network.horizon_steps
        shapes = {
            "query_scores": (1, q, len(CLASSES)),
            "query_boxes": (1, q, len(BOX_FIELDS)),
            "query_log_var": (1, q, len(BOX_STD_FIELDS)),
            "query_tokens": (1, q, self.network.token_channels),
            "affinity": (1, m + 1, q + 1),
            "object_modes": (1, o, f),
            "object_futures": (1, o, f, s, 2),
            "object_futures_log_var": (1, o, f, s, 2),
        }
        for name, shape in shapes.items():
            if name not in outputs or outputs[name].shape != shape:
                got = list(outputs[name].shape) if name in outputs else "missing"
                raise ContractError(f"engine output {name!r} is {got}, expected {list(shape)}")
            largest = float(np.abs(outputs[name]).max())
            if not largest < LARGEST_BELIEVABLE:  # also true for NaN
                raise InputError(
                    f"engine output {name!r} reaches {largest}, expected finite numbers below "
                    f"{LARGEST_BELIEVABLE:.0f}; the frame is not used"
                )
        scores = outputs["query_scores"][0].astype(np.float64)
        boxes = outputs["query_boxes"][0].astype(np.float64)
        order = np.lexsort((boxes[:, 1], boxes[:, 0], -scores.max(1)))
        detections = _Detections(
            order_Q=order.astype(np.int64),
            scores_QK=scores[order],
            boxes_Q={name: boxes[order, i] for i, name in enumerate(BOX_FIELDS)},
            log_var_Q4=outputs["query_log_var"][0].astype(np.float64)[order],
            tokens_QD=outputs["query_tokens"][0].astype(np.float32)[order],
        )
        affinity = outputs["affinity"][0].astype(np.float64)
        columns = np.append(order, q)
        return detections, np.clip(affinity[:, columns], LEAST_LOG_PROBABILITY, 0.0)

    def _associate(self, before: TrackState, detections: _Detections, affinity: Array) -> NDArray[np.int64]:
        """Row of the track that each detection continues, or -1; (Q,)."""
        n, q = len(before), len(detections.order_Q)
        track_of_Q = np.full(q, -1, np.int64)
        usable = np.flatnonzero(detections.best_Q >= self.config.keep_score)
        if n == 0 or len(usable) == 0:
            return track_of_Q
        pairs = affinity[:n][:, usable]
        distance = np.linalg.norm(before.centers_N2[:, None] - detections.centers_Q2[None, usable], axis=-1)
        group_q = CLASS_GROUPS[detections.scores_QK[usable].argmax(1)]
        group_n = CLASS_GROUPS[before.class_ids_N]
        allowed = (
            (np.exp(pairs) >= self.config.min_affinity)
            & (distance <= self.config.max_match_distance)
            & (group_n[:, None] == group_q[None])
        )
        # The most probable joint explanation. A match explains a track and a detection at once, hence twice
        # the (geometric mean) log-probability; `gone` explains a track alone, `new` a detection alone.
        size = n + len(usable)
        cost = np.full((size, size), FORBIDDEN)
        cost[:n, : len(usable)] = np.where(allowed, -2.0 * pairs, FORBIDDEN)
        cost[np.arange(n), len(usable) + np.arange(n)] = -affinity[:n, -1]
        cost[n + np.arange(len(usable)), np.arange(len(usable))] = -affinity[-1, usable]
        cost[n:, len(usable) :] = 0.0
        rows, columns = linear_sum_assignment(cost)
        real = (rows < n) & (columns < len(usable))
        rows, columns = rows[real], columns[real]
        assert allowed[rows, columns].all()
        track_of_Q[usable[columns]] = rows
        return track_of_Q

    def _births(self, detections: _Detections, matched_q: NDArray[np.int64]) -> NDArray[np.int64]:
        """Detections that start a track: sure enough, and not a second peak of an object already seen."""
        candidates = np.flatnonzero(detections.best_Q >= self.config.birth_score)
        candidates = np.setdiff1d(candidates, matched_q)
        if len(candidates) == 0:
            return candidates
        same = _same_place(detections.boxes_Q, candidates, np.concatenate([matched_q, candidates]))
        taken = np.zeros(same.shape[1], np.bool_)
        taken[: len(matched_q)] = True
        born = []
        for i, candidate in enumerate(candidates):  # best first
            if (same[i] & taken).any():
                self.counters["duplicates"] += 1
            else:
                taken[len(matched_q) + i] = True
                born.append(candidate)
        return np.array(born, np.int64)

    def _survivors(
        self,
        before: TrackState,
        unseen_n: NDArray[np.int64],
        detections: _Detections,
        born_q: NDArray[np.int64],
        stamp_ns: int,
    ) -> NDArray[np.int64]:
        """Unseen tracks that live on: confirmed, seen recently, and not where something else now is."""
        confirmed = before.hits_N[unseen_n] >= self.config.confirm_hits
        recent = stamp_ns - before.seen_ns_N[unseen_n] <= self.config.max_coast_ms * 1e6
        replaced: NDArray[np.bool_] = np.zeros(len(unseen_n), np.bool_)
        if len(unseen_n) and len(born_q):
            tracks = before.network_boxes()[unseen_n].astype(np.float64)
            both = {
                name: np.concatenate([tracks[:, i], detections.boxes_Q[name][born_q]])
                for i, name in enumerate(BOX_FIELDS)
            }
            u = len(unseen_n)
            replaced = np.asarray(_same_place(both, np.arange(u), np.arange(u, u + len(born_q))).any(axis=1))
        return unseen_n[confirmed & recent & ~replaced]

    def _measured(
        self, detections: _Detections, which: NDArray[np.int64]
    ) -> tuple[Mapping[str, Array], Array, Array, NDArray[np.float32]]:
        boxes = {name: column[which] for name, column in detections.boxes_Q.items()}
        for name in ("log_length", "log_width", "log_height"):
            boxes[name] = np.clip(boxes[name], *LOG_SIZE_RANGE)
        return boxes, detections.scores_QK[which], detections.log_var_Q4[which], detections.tokens_QD[which]

    def _best(self, state: TrackState) -> NDArray[np.int64]:
        """At most M rows, the confirmed and likeliest, by rising identity."""
        confirmed = state.hits_N >= self.config.confirm_hits
        worst_last = np.lexsort((state.ids_N, -state.scores_N, ~confirmed))
        keep = worst_last[: self.network.num_memory]
        return np.asarray(keep[np.argsort(state.ids_N[keep])])

    def _publish(
        self,
        stamp_ns: int,
        outputs: Mapping[str, NDArray[np.floating]],
        objects_N: NDArray[np.int64],
        shift_N2: Array,
    ) -> Tracks:
        state = self._state
        n = len(state)
        boxes = Boxes(
            centers_N3=np.concatenate([state.centers_N2, state.z_N[:, None]], 1).astype(np.float32),
            sizes_N3=np.exp(state.log_sizes_N3).astype(np.float32),
            yaws_N=np.arctan2(state.headings_N2[:, 1], state.headings_N2[:, 0]).astype(np.float32),
            velocities_N2=state.velocities_N2.astype(np.float32),
            class_ids_N=state.class_ids_N,
            scores_N=state.scores_N.astype(np.float32),
            ids_N=state.ids_N,
        )
        modes = np.maximum(outputs["object_modes"][0][objects_N].astype(np.float64), 0.0)
        total = modes.sum(1, keepdims=True)
        modes = np.where(total > 0, modes / np.maximum(total, 1e-12), 1.0 / self.network.num_modes)
        futures = outputs["object_futures"][0][objects_N] + shift_N2[:, None, None]
        log_var = np.clip(outputs["object_futures_log_var"][0][objects_N], -20.0, 20.0)
        std = np.sqrt(state.position_var_N).astype(np.float32)
        return Tracks(
            stamp_ns=stamp_ns,
            boxes=boxes,
            ages_N=state.ages_N,
            coasted_N=state.coasted_N,
            confirmed_N=state.hits_N >= self.config.confirm_hits,
            position_std_N2=np.broadcast_to(std[:, None], (n, 2)).copy(),
            futures_NMT2=futures.astype(np.float32),
            futures_std_NMT2=np.exp(0.5 * log_var).astype(np.float32),
            mode_probabilities_NM=modes.astype(np.float32),
            times_T=self.network.times_T,
        )


def _same_place(
    boxes: Mapping[str, Array], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which boxes are too close to be two objects: (len(first), len(second)).

    Centres within half the distance at which the footprints would touch, measured in the first box's axes, or
    within a metre (half of that for what is smaller than a car).
    """
    dx = boxes["x"][second][None] - boxes["x"][first][:, None]
    dy = boxes["y"][second][None] - boxes["y"][first][:, None]
    sine, cosine = boxes["sin_yaw"][first][:, None], boxes["cos_yaw"][first][:, None]
    length, width = np.exp(boxes["log_length"]), np.exp(boxes["log_width"])
    along, across = np.abs(cosine * dx + sine * dy), np.abs(cosine * dy - sine * dx)
    overlapping = (along < 0.25 * (length[first][:, None] + length[second][None])) & (
        across < 0.25 * (width[first][:, None] + width[second][None])
    )
    shorter = np.minimum(length[first][:, None], length[second][None])
    return np.asarray(overlapping | (np.hypot(dx, dy) < np.clip(0.5 * shorter, 0.5, 1.0)))


assert {"x", "y", "vx", "vy"} == set(BOX_STD_FIELDS)
