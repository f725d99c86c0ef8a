"""Whether an engine computes what torch computes: a recorded rollout is run again and compared.

An engine in lower precision may rank its queries in another order, so queries are matched by where and what
they are, and tracks by the query that each was in the frame before. How much each output may differ is stated
per precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import EngineMismatchError
from e2e_perception.core.network_config import BOX_FIELDS, COST_TERMS, NetworkConfig
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import TensorContract
from e2e_perception.deploy.engine_cache import EngineCache, EngineKey
from e2e_perception.deploy.engines import EngineInfo, InferenceEngine
from e2e_perception.deploy.machine import cpu_name, gpu_names
from e2e_perception.deploy.rollouts import (
    MAPS,
    PER_OBJECT,
    PER_QUERY,
    PLAN,
    RecordedRollout,
    excerpt,
    load_rollout,
    num_slots,
    run_over,
)

Log = Callable[[str], None]

# To be raised whenever `compare` finds something else in the same outputs: findings are kept.
COMPARISON_FORMAT = 3

# Columns of an output that are the coordinates of one vector.
VECTORS = {
    "object_futures": (("x", "y"),),
    "query_boxes": (("x", "y"), ("sin_yaw", "cos_yaw"), ("vx", "vy")),
}
COLUMNS = {"object_futures": ("x", "y"), "query_boxes": BOX_FIELDS}
SURE_SCORE = 0.3  # an object of this score has to be found in every precision
# By which the score of an object that torch does not have is above what any of torch's can have: more than a
# score may differ in the coarsest precision.
SCORE_MARGIN = 0.05
SURE_ASSOCIATION = np.log(0.7)  # whose track it is has to be agreed on where torch is this sure
MATCH_RADIUS = 1.0  # [m] between an object's places in two engines
SCORE_METRES = 2.0  # between two candidates of a match, a score that differs by 1 counts like so many metres
EQUAL_PRICE = 0.01  # of the price: of two proposals that torch itself prices so much alike, either will do
# Beside the outputs by name:
PLAN_ERROR = "plan [m]"
LOST, INVENTED, SWAPPED = "objects lost", "objects invented", "identities swapped"
COUNTS = (LOST, INVENTED, SWAPPED)  # of which there may be none in any precision


@dataclass(frozen=True)
class Tolerance:
    """What an engine of some precision may differ by.

    Attributes:
        outputs: By name the largest |a - b| / max(1, |b|) of any element; futures as vectors.
        plan: Between the plans that would be selected [m].
        least_score: Queries of a lower score are not looked at: nothing is done with them.
    """

    outputs: Mapping[str, float]
    plan: float
    least_score: float


# Twice the 90th percentile of what was measured on 15 clips and a generated rollout with the shipped network
# (docs/performance.md): in float32 with ONNX Runtime, in half precision with every result of a convolution or
# linear layer rounded, in int8 with the graph of `quantize.py`. In float32 at least 1e-4, and more where a
# tenth of a second's innovation is multiplied by ten: velocities, and futures made of them.
_MEASURED = """
    output                  float32  float16  bfloat16  int8
    query_scores            1e-4     0.002    0.012     0.044
    query_boxes             5e-4     0.04     0.52      1.4
    query_log_var           1e-4     0.014    0.56      0.54
    query_tokens            1e-4     0.02     2.0       2.0
    object_modes            1e-4     0.007    0.2       0.19
    object_futures          5e-4     0.12     0.85      1.9
    object_futures_log_var  1e-4     0.06     1.3       1.4
    affinity                1e-4     0.005    0.28      0.22
    heatmap                 1e-4     0.0014   0.013     0.016
    bev_maps                1e-4     0.032    0.18      0.94
    plan_sd                 1e-4     0.001    0.0075    0.004
    plan_costs              1e-4     0.05     0.1       0.1
    plan                    1e-3     0.01     0.05      0.1
    least_score             0.0      0.3      0.3       0.3
"""


def _tolerances(table: str) -> dict[str, Tolerance]:
    rows = [line.split() for line in table.strip().splitlines()]
    columns = {}
    for index, precision in enumerate(rows[0][1:], 1):
        values = {row[0]: float(row[index]) for row in rows[1:]}
        plan, least_score = values.pop("plan"), values.pop("least_score")
        columns[precision] = Tolerance(values, plan, least_score)
    return columns


TOLERANCES: Mapping[str, Tolerance] = _tolerances(_MEASURED)


def difference(name: str, got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How far an output is off, as a share of what it is; of what is less than 1, of 1.

    Places, headings and velocities are compared as vectors: how an error is shared between x and y depends on
    the axes alone.

    Args:
        name: Of the output.
        got, expected: The same shape; the last axis is the output's.
    Returns:
        The largest |a - b| / max(1, |b|) of any element or vector; 0 of nothing, NaN if anything is.
    """
    vectors = [[COLUMNS[name].index(column) for column in columns] for columns in VECTORS.get(name, ())]
    inside = {column for columns in vectors for column in columns}
    alone = [column for column in range(expected.shape[-1]) if column not in inside]
    worst = [_relative(np.abs(got - expected)[..., alone], np.abs(expected)[..., alone])]
    for columns in vectors:
        error, size = (np.linalg.norm(v[..., columns], axis=-1) for v in (got - expected, expected))
        worst.append(_relative(error, size))
    return float(np.max(worst))


def _relative(error: NDArray[np.float32], size: NDArray[np.float32]) -> float:
    return float((error / np.maximum(1.0, size)).max(initial=0.0))


def compare(
    engine: InferenceEngine,
    rollout: RecordedRollout,
    network: NetworkConfig,
    cost_weights: Mapping[str, float],
    *,
    least_score: float = 0.0,
) -> dict[str, float]:
    """Run a recorded rollout and say by how much it differs.

    Args:
        engine: What is compared; its state is reset before and after.
        rollout: What torch made of it.
        network: Its size.
        cost_weights: Of the columns of `plan_costs`, to choose a plan.
        least_score: See `Tolerance`.
    Returns:
        Largest difference of any frame, by output name, `PLAN_ERROR` and `COUNTS`; infinite where the
        engine's output is not finite, NaN where two cannot be compared.
    """
    worst: dict[str, float] = dict.fromkeys((*rollout.outputs, PLAN_ERROR, *COUNTS), 0.0)
    weights_K = np.array([cost_weights[term] for term in COST_TERMS])
    slots = num_slots(network)
    remembered = np.zeros(slots, np.bool_)

    def note(name: str, value: float) -> None:
        worst[name] = float(np.maximum(worst[name], value))  # unlike `max`, NaN stays

    def visit(index: int, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        nonlocal remembered
        expected = {name: values[index] for name, values in rollout.outputs.items()}
        broken = [name for name in expected if not np.isfinite(outputs[name]).all()]
        for name in broken:
            note(name, np.inf)
        if broken:
            remembered = np.zeros(slots, np.bool_)
            return np.full(slots, -1, np.int64)
        queries_R = matched_queries(outputs, expected)
        got = excerpt(outputs, queries_R, rollout.cells_G, network)
        score_R = expected["query_scores"].max(1)
        known_R = (queries_R >= 0) & (score_R >= least_score)
        rows = {
            **dict.fromkeys(PER_QUERY, known_R),
            **dict.fromkeys(PER_OBJECT, np.append(known_R, remembered)),
        }
        for name, kept in rows.items():
            note(name, difference(name, got[name][kept], expected[name][kept]))
        table = np.ix_(np.append(remembered, True), np.append(known_R, True))
        note("affinity", difference("affinity", got["affinity"][table], expected["affinity"][table]))
        for name in (*MAPS, *PLAN):
            note(name, difference(name, got[name], expected[name]))
        note(LOST, float(((queries_R < 0) & (score_R >= SURE_SCORE)).sum()))
        note(INVENTED, float(_invented(outputs["query_scores"][0].max(1), queries_R, score_R)))
        note(SWAPPED, float(_swapped(got["affinity"], expected["affinity"], remembered)))
        note(PLAN_ERROR, _plan_error(got, expected, weights_K))
        remembered = known_R[:slots]
        return queries_R[:slots]

    run_over(engine, rollout.frames, network, visit)
    engine.reset_state()
    return worst


def matched_queries(
    outputs: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.int64]:
    """The engine's query for each recorded one (R,), -1 for none: the nearest pairs first, each query once.

    Args:
        outputs: Of the engine.
        expected: One frame of `RecordedRollout.outputs`.
    """
    xy = [BOX_FIELDS.index("x"), BOX_FIELDS.index("y")]
    offset_RQ2 = expected["query_boxes"][:, None, xy] - outputs["query_boxes"][0][None][:, :, xy]
    gap_RQ = np.linalg.norm(offset_RQ2, axis=-1)
    unlike_RQ = np.abs(expected["query_scores"][:, None] - outputs["query_scores"][0][None]).max(-1)
    cost_RQ = np.where(gap_RQ <= MATCH_RADIUS, gap_RQ + SCORE_METRES * unlike_RQ, np.inf)
    chosen_R = np.full(len(cost_RQ), -1, np.int64)
    for pair in np.argsort(cost_RQ, axis=None, kind="stable"):
        r, q = divmod(int(pair), cost_RQ.shape[1])
        if not np.isfinite(cost_RQ[r, q]):
            break
        if chosen_R[r] < 0 and q not in chosen_R:
            chosen_R[r] = q
    return chosen_R


def excess(
    differences: Mapping[str, float], tolerance: Tolerance, *, share: float = 1.0
) -> dict[str, tuple[float, float]]:
    """What is out of tolerance, or of a share of it: (got, allowed) by name, the worst first."""
    allowed = {name: share * most for name, most in tolerance.outputs.items()}
    allowed |= {PLAN_ERROR: share * tolerance.plan, **dict.fromkeys(COUNTS, 0.0)}
    out = {k: (v, allowed[k]) for k, v in differences.items() if not v <= allowed[k]}
    # NaN is as bad as it gets, and would leave the others unsorted.
    return dict(
        sorted(
            out.items(),
            key=lambda item: -np.nan_to_num(item[1][0], nan=np.inf, posinf=np.inf) / max(item[1][1], 1e-9),
        )
    )


def refusal(differences: Mapping[str, float], tolerance: Tolerance, *, share: float = 1.0) -> str:
    """The worst of what is out of tolerance, for people; empty if nothing is."""
    worst = list(excess(differences, tolerance, share=share).items())[:3]
    return ", ".join(f"{name} {got:.2g} (allowed {allowed:.2g})" for name, (got, allowed) in worst)


def _invented(
    score_Q: NDArray[np.float32], queries_R: NDArray[np.int64], score_R: NDArray[np.float32]
) -> int:
    """The engine's objects where torch has none that is sure; of torch's the strongest are recorded."""
    score_Q = score_Q.copy()
    score_Q[queries_R[(queries_R >= 0) & (score_R >= SURE_SCORE)]] = 0.0
    return int((score_Q >= max(SURE_SCORE, float(score_R.min())) + SCORE_MARGIN).sum())


def _swapped(got: NDArray[np.float32], expected: NDArray[np.float32], remembered: NDArray[np.bool_]) -> int:
    """Remembered tracks that torch is sure to see in another query than the engine does."""
    best, engines = expected[:-1].argmax(1), got[:-1].argmax(1)
    sure = remembered & (expected[:-1].max(1) >= SURE_ASSOCIATION)
    return int((sure & (best != engines)).sum())


def _plan_error(
    got: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    weights_K: NDArray[np.float64],
) -> float:
    """Largest distance [m] between the proposals that would be driven, along and across the route."""
    price_C = expected["plan_costs"] @ weights_K
    mine, theirs = int((got["plan_costs"] @ weights_K).argmin()), int(price_C.argmin())
    if price_C[mine] - price_C[theirs] <= EQUAL_PRICE * max(1.0, abs(price_C[theirs])):
        theirs = mine
    return float(np.linalg.norm(got["plan_sd"][mine] - expected["plan_sd"][theirs], axis=-1).max())


class CheckedEngine:
    """An engine, and in its `info` how it compares with torch."""

    def __init__(self, engine: InferenceEngine, info: EngineInfo) -> None:
        self._engine = engine
        self._info = info

    @property
    def contract(self) -> TensorContract:
        """See `InferenceEngine.contract`."""
        return self._engine.contract

    @property
    def info(self) -> EngineInfo:
        """See `InferenceEngine.info`."""
        return self._info

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.infer`."""
        return self._engine.infer(inputs)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """See `InferenceEngine.state`."""
        return self._engine.state()

    def reset_state(self) -> None:
        """See `InferenceEngine.reset_state`."""
        self._engine.reset_state()

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._engine.close()


def checked_engine(
    engine: InferenceEngine, bundle: Bundle, *, cache: EngineCache, accept_mismatch: bool, log: Log
) -> InferenceEngine:
    """Let an engine pass if it computes what torch computed, as the bundle's recorded rollout says.

    What was found is kept in the cache, so that a rollout is run once per graph, engine and machine; torch,
    which follows the source of the network that is installed, is compared at each start.

    Args:
        engine: Stays the caller's to close if this raises.
        bundle: What it was made from.
        cache: Where the finding is kept.
        accept_mismatch: Let it pass all the same; `EngineInfo.mismatch` then says what differs.
        log: Gets a sentence if it is not compared, or is let pass.
    Returns:
        An engine whose `info` says how it compares.
    Raises:
        EngineMismatchError: If it is out of tolerance.
        BundleError: If the recorded rollout cannot be read.
    """
    is_torch = engine.info.backend == "torch"
    if bundle.rollout_path is None:
        log(f"bundle {bundle} records no rollout: {engine.info.backend} is not checked against torch")
        return CheckedEngine(engine, replace(engine.info, remark="not checked against torch"))
    tolerance = tolerance_of(engine.info.precision)
    kept = None if is_torch else cache
    worst = refusal(differences_of(engine, bundle, tolerance, kept), tolerance)
    if not worst:
        info = engine.info if is_torch else replace(engine.info, remark="checked against torch")
        return CheckedEngine(engine, info)
    sentence = f"{engine.info} differs from torch on bundle {bundle}: {worst}"
    remedy = "run it in float32 or on another backend"
    if is_torch:
        sentence = f"{bundle}: {another_version(worst)}"
        remedy = "run its graph with --backend onnxruntime"
    if not accept_mismatch:
        raise EngineMismatchError(
            f"{sentence}; {remedy}, or set engine.accept_mismatch to run it all the same"
        )
    log(f"warning: {sentence}; accepted, as engine.accept_mismatch says")
    what = "differs from what the bundle records" if is_torch else "differs from torch"
    return CheckedEngine(engine, replace(engine.info, mismatch=f"{what}: {worst}; accepted"))


def another_version(worst: str) -> str:
    """What it most likely means that torch does not give what a bundle records of it."""
    return (
        f"torch gives something else than the bundle records, most likely from another version of the "
        f"network: {worst}"
    )


def tolerance_of(precision: str) -> Tolerance:
    """Of a precision that engines have; of `int8 + float16`, where the rest is in float16, that of `int8`.

    Raises:
        EngineMismatchError: If none is stated for it.
    """
    coarsest = precision.partition(" + ")[0]
    if coarsest not in TOLERANCES:
        raise EngineMismatchError(
            f"nothing is known of how much {precision} may differ from torch; expected "
            f"{', '.join(TOLERANCES)}"
        )
    return TOLERANCES[coarsest]


def differences_of(
    engine: InferenceEngine, bundle: Bundle, tolerance: Tolerance, cache: EngineCache | None
) -> dict[str, float]:
    """How an engine differs from what a bundle with a rollout records, by output.

    Args:
        engine: What is compared; its state is reset.
        bundle: With a rollout.
        tolerance: For the least score that is looked at.
        cache: Where the finding is kept, and taken from; None: nowhere.
    Raises:
        BundleError: If the rollout cannot be read.
    """
    assert bundle.rollout_path is not None
    rollout_path = bundle.rollout_path

    def found() -> dict[str, float]:
        rollout = load_rollout(rollout_path, bundle.network)
        return compare(
            engine, rollout, bundle.network, bundle.cost_weights, least_score=tolerance.least_score
        )

    if cache is None:
        return found()
    key = EngineKey(
        {
            "kind": "parity with torch",
            "format": COMPARISON_FORMAT,
            "bundle": bundle.digest,
            "engine": str(engine.info),
            "program": engine.info.program,
            "cpu": cpu_name(),
            "gpu": "" if engine.info.device == "cpu" else gpu_names(),
            "least_score": tolerance.least_score,
        }
    )
    kept = json.loads(cache.get_or_build(key, lambda: json.dumps(found()).encode())[0])
    return {str(name): float(value) for name, value in kept.items()}
