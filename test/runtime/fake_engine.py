"""An engine whose outputs are written by hand: what a perfect network would say of a given scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.frames import SE2
from e2e_perception.core.network_config import BOX_FIELDS, COST_TERMS, EGO_FIELDS, NetworkConfig
from e2e_perception.deploy.contract import TensorContract, tensor_contract
from e2e_perception.deploy.engines import EngineInfo

SIZES = {"car": (4.4, 1.8, 1.6), "truck": (9.0, 2.5, 3.2), "pedestrian": (0.6, 0.6, 1.7)}
NETWORK = NetworkConfig(
    size="fake", memory_frames=1000, num_queries=8, num_memory=6, image_height=32, image_width=64
)

Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Thing:
    """An object in the odometry frame: position at time 0 [m] and velocity [m/s]."""

    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    name: str = "car"
    score: float = 0.9

    def in_base(self, seconds: float, base_from_odom: SE2) -> dict[str, float]:
        x, y = base_from_odom.apply(np.array([self.x + self.vx * seconds, self.y + self.vy * seconds]))
        vx, vy = base_from_odom.rotate(np.array([self.vx, self.vy]))
        length, width, height = np.log(SIZES[self.name])
        heading = np.arctan2(self.vy, self.vx) if np.hypot(self.vx, self.vy) > 0.1 else 0.0
        yaw = heading + base_from_odom.yaw
        values = (x, y, height, length, width, height, np.sin(yaw), np.cos(yaw), vx, vy)
        return dict(zip(BOX_FIELDS, map(float, values), strict=True))


def scene_outputs(
    network: NetworkConfig,
    things: Sequence[Thing],
    *,
    seconds: float = 0.0,
    base_from_odom: SE2 = SE2(0.0, 0.0, 0.0),  # noqa: B008 - frozen
    track_boxes: NDArray[np.floating] | None = None,
    track_valid: NDArray[np.floating] | None = None,
    speed: float = 0.0,
    order: Sequence[int] | None = None,
) -> Outputs:
    """The contract's outputs for a scene.

    The affinity of a track and a detection falls with the square of their distance; both sides are normalised
    as the network does it. `order[i]` is the query of thing i.
    """
    q, m, k = network.num_queries, network.num_memory, len(CLASSES)
    f, s = network.num_modes, network.horizon_steps
    outputs = {
        spec.name: np.zeros(spec.shape, np.float32)
        for spec in tensor_contract(network).outputs
        if spec.name != "bev_memory_next"
    }
    boxes_Q = np.zeros((q, len(BOX_FIELDS)))
    boxes_Q[:, 0] = -20.0 + 0.5 * np.arange(q)
    boxes_Q[:, BOX_FIELDS.index("cos_yaw")] = 1.0
    scores = np.full((q, k), 0.01)
    for query, thing in zip(order if order is not None else range(len(things)), things, strict=True):
        boxes_Q[query] = list(thing.in_base(seconds, base_from_odom).values())
        scores[query, CLASSES.index(thing.name)] = thing.score
        outputs["query_tokens"][0, query] = thing.x + 100.0 * thing.y
    boxes_M = np.zeros((m, len(BOX_FIELDS))) if track_boxes is None else track_boxes[0].astype(np.float64)
    valid_M = np.zeros(m, bool) if track_valid is None else track_valid[0] > 0.5
    logits = -np.square(boxes_M[:, None, :2] - boxes_Q[None, :, :2]).sum(-1)
    logits = np.where(valid_M[:, None], logits, -1e4)
    none = -9.0  # three metres away is as good as nothing

    def log_softmax(x: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
        x = x - x.max(axis, keepdims=True)
        return x - np.log(np.exp(x).sum(axis, keepdims=True))

    by_query = log_softmax(np.concatenate([logits, np.full((1, q), none)]), 0)
    by_track = log_softmax(np.concatenate([logits, np.full((m, 1), none)], 1), 1)
    affinity = np.zeros((m + 1, q + 1))
    affinity[:m, :q] = 0.5 * (by_query[:m] + by_track[:, :q])
    affinity[:m, q], affinity[m, :q] = by_track[:, q], by_query[m]

    boxes_O = np.concatenate([boxes_Q, boxes_M])
    times = network.times_T
    future = boxes_O[:, None, :2] + times[:, None] * boxes_O[:, None, 8:10]
    outputs["query_boxes"][0] = boxes_Q
    outputs["query_scores"][0] = scores
    outputs["query_log_var"][:] = np.log(0.2**2)
    outputs["affinity"][0] = np.maximum(affinity, -30.0)
    outputs["object_modes"][0] = np.array([0.5, 0.3, 0.2])[:f] / np.sum([0.5, 0.3, 0.2][:f])
    outputs["object_futures"][0] = np.broadcast_to(future[:, None], (q + m, f, s, 2))
    outputs["object_futures_log_var"][:] = np.log(0.5**2)

    accelerations = np.repeat(network.plan_accelerations, len(network.plan_offsets))
    offsets = np.tile(network.plan_offsets, len(network.plan_accelerations))
    braking_s = np.where(accelerations < 0, speed / np.maximum(-accelerations, 1e-9), np.inf)
    t = np.minimum(times[None], braking_s[:, None])
    along = speed * t + 0.5 * accelerations[:, None] * t * t
    across = offsets[:, None] * np.clip(along / 30.0, 0.0, 1.0)
    outputs["plan_sd"][0] = np.stack([along, across], -1)
    # Imitation likes to keep speed and lane; the rest is left at zero.
    outputs["plan_costs"][0, :, COST_TERMS.index("imitation")] = np.abs(accelerations) + np.abs(offsets)
    return outputs


@dataclass
class FakeEngine:
    """Sees `things` every `period_s` from `base_from_odom(call)`; `spoil` may change what it says."""

    network: NetworkConfig = NETWORK
    things: Sequence[Thing] = ()
    period_s: float = 0.1
    base_from_odom: Callable[[int], SE2] = lambda call: SE2(0.0, 0.0, 0.0)
    spoil: Callable[[int, Outputs], Outputs] | None = None
    calls: int = 0
    resets: int = 0
    inputs: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)

    @property
    def contract(self) -> TensorContract:
        return tensor_contract(self.network)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("fake", "1", "cpu", "float32")

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Outputs:
        self.contract.check_inputs(inputs)
        call, self.calls = self.calls, self.calls + 1
        self.inputs.append(dict(inputs))
        outputs = scene_outputs(
            self.network,
            self.things,
            seconds=call * self.period_s,
            base_from_odom=self.base_from_odom(call),
            track_boxes=inputs["track_boxes"],
            track_valid=inputs["track_valid"],
            speed=float(inputs["ego_state"][0, EGO_FIELDS.index("speed")]),
        )
        return outputs if self.spoil is None else self.spoil(call, outputs)

    def state(self) -> Outputs:
        return {}

    def reset_state(self) -> None:
        self.resets += 1

    def close(self) -> None:
        pass
