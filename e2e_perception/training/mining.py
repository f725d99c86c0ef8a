"""Which clips are worth a person's time: those that the network is unsure of, wrong about, or has not met.

Signals are ranked over all clips, so that their units do not matter; the list is picked one by one, each clip
the less like those already picked the better (maximal marginal relevance, Carbonell & Goldstein 1998).

Legend: N clips, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2e_perception.core.errors import InputError
from e2e_perception.core.network_config import COST_TERMS
from e2e_perception.core.trajectories import base_from_route_coordinates
from e2e_perception.data.clip_store import ClipStore
from e2e_perception.data.dataset import ClipDataset
from e2e_perception.model.network import JointNetwork
from e2e_perception.training.perturbation import cross_modal_consistency
from e2e_perception.training.rollout import Rollout, rollout

SIGNALS = ("uncertainty", "disagreement", "breaks", "regret", "interventions", "novelty")
LEAST_SCORE = 0.1  # of a detection that is worth being unsure of
NO_TRACK = -14.0  # log-probability that a slot of the memory without a track never reaches
HORIZON_S = 3.0  # at which plans and drives are compared


@dataclass(frozen=True)
class Mined:
    """One clip of the list.

    Attributes:
        index: Of the clip among those that were looked at.
        score: 0 to 1, weighted mean of the ranks.
        signals: By name, in their own units: nats, nats, probability, m, instants, standard
            deviations. None: not known.
        ranks: The same as shares of clips that have less; what is not known ranks with the least.
    """

    index: int
    score: float
    signals: dict[str, float | None]
    ranks: dict[str, float]


@dataclass(frozen=True)
class Listed:
    """What is worth looking at.

    Attributes:
        clips: In the order in which they were picked.
        blind: Indices of the clips in which no sensor is there in any frame: of those a network is unsure,
            and nobody can tell it better.
    """

    clips: list[Mined]
    blind: list[int]


def mine(
    model: JointNetwork,
    clips: Sequence[tuple[ClipStore, int]],
    *,
    count: int,
    weights: Mapping[str, float],
    diversity: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Listed:
    """Rank clips and pick some.

    Args:
        model: The network that is to become better.
        clips: Stores and indices in them.
        count: How many to pick.
        weights: Of the signals, by `SIGNALS`; those that are missing weigh nothing.
        diversity: 0: by score alone; 1: likeness to what is picked already costs as much as score gives.
        progress: Told (clips done, clips in all).
    Returns:
        At most `count` clips, and those that are left out.
    Raises:
        InputError: If there are no clips, or a weight is of no signal.
    """
    unknown = sorted(set(weights) - set(SIGNALS))
    if unknown or not any(weight > 0.0 for weight in weights.values()):
        given = ", ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "none"
        raise InputError(f"weights {given}: expected some above 0 of {', '.join(SIGNALS)}")
    if len(clips) == 0:
        raise InputError("no clips to look at; ingest some first")
    dataset = ClipDataset(clips, model.config)
    model.eval()
    signals: dict[str, list[float]] = {name: [] for name in SIGNALS[:-1]}
    features: list[NDArray[np.float64]] = []
    seeing: list[int] = []
    blind: list[int] = []
    interventions: list[int | None] = []
    for index in range(len(dataset)):
        if progress is not None:
            progress(index + 1, len(dataset))
        batch = {name: value[None] for name, value in dataset[index].items()}
        if not has_sensors(batch):
            blind.append(index)
            continue
        seeing.append(index)
        with torch.no_grad():
            result = rollout(model, batch, boost=0.0, with_losses=False, as_on_robot=True)
            signals["disagreement"].append(float(cross_modal_consistency(model, batch)))
        signals["uncertainty"].append(uncertainty(result))
        signals["breaks"].append(breaks(result))
        signals["regret"].append(regret(result, batch, model.config.times_T))
        store, row = clips[index]
        interventions.append(store.rows[row]["interventions"])
        signals["interventions"].append(float(interventions[-1] or 0))
        features.append(feature(result))
    if not seeing:
        return Listed([], blind)
    feature_ND = np.stack(features)
    table = {name: np.array(values) for name, values in signals.items()}
    table["novelty"] = novelty(feature_ND)
    ranks = {name: shares(values) for name, values in table.items()}
    total = sum(weights.values())
    score_N = np.asarray(sum(weight / total * ranks[name] for name, weight in weights.items()))
    listed = []
    for n in picked(score_N, feature_ND, count, diversity):
        of: dict[str, float | None] = {name: float(values[n]) for name, values in table.items()}
        if interventions[n] is None:
            of["interventions"] = None
        shown = {name: float(values[n]) for name, values in ranks.items()}
        listed.append(Mined(seeing[n], float(score_N[n]), of, shown))
    return Listed(listed, blind)


def has_sensors(batch: Mapping[str, Tensor]) -> bool:
    """Whether any sensor is there in any frame of a clip."""
    return any(bool((batch[f"{kind}_valid"] > 0.5).any()) for kind in ("camera", "lidar", "radar"))


def uncertainty(result: Rollout) -> float:
    """Mean entropy of detections' scores [nats]; 0 without any."""
    entropies: list[float] = []
    for frame in result.frames:
        score = frame["query_scores"].amax(-1)
        p = score[score > LEAST_SCORE].clamp(1e-6, 1.0 - 1e-6).double()
        entropies += (-(p * p.log() + (1 - p) * (1 - p).log())).tolist()
    return float(np.mean(entropies)) if entropies else 0.0


def breaks(result: Rollout) -> float:
    """How likely remembered tracks are thought to be gone, mean over tracks and frames; 0 without any."""
    gone: list[float] = []
    for frame in result.frames[1:]:
        affinity = frame["affinity"][0]
        real = affinity[:-1, :-1].amax(-1) > NO_TRACK
        gone += affinity[:-1, -1].exp()[real].tolist()
    return float(np.mean(gone)) if gone else 0.0


def regret(result: Rollout, batch: Mapping[str, Tensor], times_S: NDArray[np.float64]) -> float:
    """Distance of the plan from what was driven, at `HORIZON_S` [m], mean over frames; 0 where not known."""
    step = int(np.argmin(np.abs(times_S - HORIZON_S)))
    imitation = COST_TERMS.index("imitation")
    gaps: list[float] = []
    for t, frame in enumerate(result.frames):
        if not bool(batch["ego_future_valid"][0, t, step]):
            continue
        best = int(frame["plan_costs"][0, :, imitation].argmin())
        points = base_from_route_coordinates(
            frame["plan_sd"][0, best].double().numpy(), batch["route"][0, t].double().numpy()
        )
        gaps.append(float(np.linalg.norm(points[step] - batch["ego_future"][0, t, step].double().numpy())))
    return float(np.mean(gaps)) if gaps else 0.0


def feature(result: Rollout) -> NDArray[np.float64]:
    """What a clip looks like to the network: mean and spread of its BEV features, (2 C,)."""
    values = result.features_BTCYX[0, :, :-3].double()
    return torch.cat([values.mean((0, 2, 3)), values.std((0, 2, 3))]).numpy()


def novelty(feature_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of each clip from all others, in standard deviations per direction, root mean square."""
    spread = feature_ND.std(axis=0)
    scaled = (feature_ND - feature_ND.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    return np.asarray(np.sqrt((scaled**2).mean(axis=1)))


def shares(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) share of the others that have less, ties in the middle; 0.5 where all are alike."""
    if len(values_N) == 1:
        return np.full(1, 0.5)
    ordered_N = np.sort(values_N)
    less = np.searchsorted(ordered_N, values_N, side="left")
    alike = np.searchsorted(ordered_N, values_N, side="right") - less - 1
    return np.asarray((less + 0.5 * alike) / (len(values_N) - 1.0))


def picked(
    score_N: NDArray[np.float64], feature_ND: NDArray[np.float64], count: int, diversity: float
) -> list[int]:
    """Indices in the order in which they are picked.

    Args:
        score_N: 0 to 1.
        feature_ND: To tell how alike clips are.
        count: At most.
        diversity: What likeness costs.
    """
    spread = feature_ND.std(axis=0)
    scaled = (feature_ND - feature_ND.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    chosen: list[int] = []
    likeness_N = np.zeros(len(score_N))
    left = np.ones(len(score_N), np.bool_)
    while left.any() and len(chosen) < count:
        worth = np.where(left, score_N - diversity * likeness_N, -np.inf)
        best = int(worth.argmax())
        chosen.append(best)
        left[best] = False
        gap_N = np.sqrt(((scaled - scaled[best]) ** 2).mean(axis=1))
        likeness_N = np.maximum(likeness_N, np.exp(-gap_N))
    return chosen
