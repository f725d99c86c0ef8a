"""The classical pipeline: the network only detects, a Kalman filter tracks, and rules plan.

Sensors, frame assembly, preprocessing, engine and supervisor are those of the stack; what is joint in the
network is replaced by what a robot without it would run. Of its outputs the detections alone are used:
scores, and position, size and heading of boxes. Their velocities, which the network infers from what it
remembers, are not, nor does it remember tracks. The planner is that of `ground-truth-planner`, on confirmed
tracks in place of true boxes: it knows the map, and of the others what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from e2e_perception.core.boxes import Boxes
from e2e_perception.core.config import Section, StackConfig, tunable
from e2e_perception.core.frames import SE2, wrap_angle
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.core.tracks import Tracks
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.box_iou import iou_bev
from e2e_perception.runtime.kalman_tracker import KalmanTracker, KalmanTrackerConfig, KalmanTracks
from e2e_perception.runtime.perception import MAX_MEMORY_GAP_NS, Perceived, Perception, Place, motion_since
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.runtime.track_manager import CLASS_GROUPS, LOG_SIZE_RANGE
from e2e_perception.simulation.proposal_planner import ProposalPlanner, at_constant_velocity

Array = NDArray[np.float64]


class ClassicalConfig(Section):
    """Settings of the baseline.

    They were tuned with the shipped bundle `tiny` on 16 scenarios of the suite `validation`. Against the true
    boxes there, velocities of tracked vehicles are off by 0.7 m/s on average; varying noise, gates, hits and
    age one by one changed that by less than 0.1 m/s. Of four settings driven in closed loop these had most
    successes, 12 of 16, though chance alone could explain the differences. Starting tracks at a score of 0.4
    and continuing them at 0.2, as ByteTrack would, had 11; starting them at 0.5 had 9; letting them go unseen
    for 0.8 s, as the stack does, had 10.
    """

    duplicate_iou: float = tunable(
        0.1, "Overlap of footprints above which the weaker detection repeats the other.", ge=0.0, le=1
    )
    tracker: KalmanTrackerConfig = Field(
        default_factory=lambda: KalmanTrackerConfig(keep_score=0.3, birth_score=0.3)
    )


class ClassicalPerception(Perception):
    """Takes the place of the stack's `Perception`: the same frames in, tracks and a plan out.

    Attributes:
        kalman: Tracks, odom frame.
        planner: Along the world's route.
    """

    def __init__(
        self,
        network: NetworkConfig,
        engine: InferenceEngine,
        config: StackConfig,
        planner: ProposalPlanner,
        classical: ClassicalConfig | None = None,
    ) -> None:
        self.classical = classical or ClassicalConfig()
        self.kalman = KalmanTracker(self.classical.tracker, CLASS_GROUPS.tolist())
        self.planner = planner
        super().__init__(network, engine, config)

    def forget(self) -> None:
        """See `Perception`."""
        super().forget()
        self.kalman.forget()
        self._place: Place | None = None
        self._tracked_at: Place | None = None

    def step(self, prepared: PreparedFrame, place: Place | None, mark: Callable[[], None]) -> Perceived:
        """See `Perception`."""
        self._place = place
        # Without a route the network's own plan is not asked for. The inherited track manager never gets a
        # detection, and so the network is told of no tracks.
        perceived = super().step(replace(prepared, route=None), place, mark)
        ego = prepared.ego_state
        if perceived.problem or prepared.route is None or ego is None:
            return perceived
        tracks = self.kalman.tracks
        seen = tracks.boxes.select(tracks.confirmed_N)
        others = at_constant_velocity(
            ego,
            np.concatenate([seen.centers_N3[:, :2], seen.yaws_N[:, None]], axis=1).astype(np.float64),
            seen.velocities_N2.astype(np.float64),
            seen.sizes_N3[:, :2].astype(np.float64),
            np.zeros((0, 5)),
        )
        return replace(perceived, plan=self.planner.decide(ego, others).plan)

    def _track(self, stamp_ns: int, outputs: dict[str, NDArray[np.float32]]) -> Tracks:
        place, before = self._place, self._tracked_at
        self._tracked_at = place
        if place is None:  # nothing can be followed; without ego motion there is no plan either
            self.kalman.forget()
            return published(stamp_ns, self.kalman.tracks, SE2(0.0, 0.0, 0.0), self.network)
        gap_ns = 0 if before is None else stamp_ns - before.stamp_ns
        if motion_since(before, place) is None or gap_ns > MAX_MEMORY_GAP_NS:
            self.kalman.forget()
            gap_ns = round(self.network.frame_period_s * 1e9)
        odom_from_base = place.odom_from_base.planar_part()
        tracks = self.kalman.update(moved(detections(outputs, self.classical), odom_from_base), gap_ns * 1e-9)
        return published(stamp_ns, tracks, odom_from_base.inverse(), self.network)


def detections(outputs: Mapping[str, NDArray[np.floating]], config: ClassicalConfig) -> Boxes:
    """What the network sees in one frame, best first; base frame, velocities zero.

    Args:
        outputs: `query_scores` (1, Q, K) and `query_boxes` (1, Q, 10) of the engine, finite.
        config: What counts.
    """
    scores_QK = outputs["query_scores"][0]
    best_Q = scores_QK.max(axis=1)
    order = np.lexsort((*outputs["query_boxes"][0].T[:2], -best_Q))
    order = order[best_Q[order] >= config.tracker.keep_score]
    columns = {name: outputs["query_boxes"][0][order, i] for i, name in enumerate(BOX_FIELDS)}
    log_sizes_N3 = np.stack([columns[f"log_{name}"] for name in ("length", "width", "height")], axis=1)
    found = Boxes(
        centers_N3=np.stack([columns[name] for name in ("x", "y", "z")], axis=1).astype(np.float32),
        sizes_N3=np.exp(np.clip(log_sizes_N3, *LOG_SIZE_RANGE)).astype(np.float32),
        yaws_N=np.arctan2(columns["sin_yaw"], columns["cos_yaw"]).astype(np.float32),
        velocities_N2=np.zeros((len(order), 2), np.float32),
        class_ids_N=scores_QK[order].argmax(axis=1).astype(np.int64),
        scores_N=best_Q[order].astype(np.float32),
        ids_N=np.full(len(order), -1, np.int64),
    )
    return found.select(_first_of_each(found, config.duplicate_iou))


def _first_of_each(found: Boxes, most_iou: float) -> NDArray[np.int64]:
    """Rows that do not repeat one before them (non-maximum suppression)."""
    groups_N = CLASS_GROUPS[found.class_ids_N]
    same_NN = (iou_bev(found, found) > most_iou) & (groups_N[:, None] == groups_N[None])
    kept: list[int] = []
    for row in range(len(found)):
        if not same_NN[row, kept].any():
            kept.append(row)
    return np.array(kept, np.int64)


def moved(boxes: Boxes, a_from_b: SE2) -> Boxes:
    """The same boxes on the ground of another frame."""
    centers_N2 = a_from_b.apply(boxes.centers_N3[:, :2])
    return replace(
        boxes,
        centers_N3=np.concatenate([centers_N2, boxes.centers_N3[:, 2:]], axis=1).astype(np.float32),
        yaws_N=wrap_angle(boxes.yaws_N + a_from_b.yaw).astype(np.float32),
        velocities_N2=a_from_b.rotate(boxes.velocities_N2).astype(np.float32),
    )


def published(stamp_ns: int, tracks: KalmanTracks, base_from_odom: SE2, network: NetworkConfig) -> Tracks:
    """Tracks as the stack publishes them, with one future each: straight on.

    Args:
        stamp_ns: Of the frame [ns].
        tracks: Odom frame.
        base_from_odom: At that instant.
        network: Whose horizon the futures have.
    """
    boxes, times = moved(tracks.boxes, base_from_odom), network.times_T
    ways_NT2 = times[None, :, None] * boxes.velocities_N2[:, None]
    std_N = tracks.position_std_N.astype(np.float32)
    return Tracks(
        stamp_ns=stamp_ns,
        boxes=boxes,
        ages_N=tracks.ages_N,
        coasted_N=tracks.unseen_N,
        confirmed_N=tracks.confirmed_N,
        position_std_N2=np.repeat(std_N[:, None], 2, axis=1),
        futures_NMT2=(boxes.centers_N3[:, None, None, :2] + ways_NT2[:, None]).astype(np.float32),
        futures_std_NMT2=np.broadcast_to(std_N[:, None, None, None], (len(boxes), 1, len(times), 2)).copy(),
        mode_probabilities_NM=np.ones((len(boxes), 1), np.float32),
        times_T=times,
    )
