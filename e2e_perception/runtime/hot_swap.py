"""Another engine, loaded and warmed beside the one that drives.

    begin -> (another thread) load, warm up -> outcome: LoadedEngine, or why not -> Pipeline.switch -> finish

Until the switch nothing about the running engine changes, so whatever fails on the way costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import EngineConfig
from e2e_perception.core.errors import BundleError, EngineUnavailableError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.deploy.bundle import Bundle
from e2e_perception.deploy.contract import tensor_contract
from e2e_perception.deploy.engines import InferenceEngine, Log, configured_engine

WAIT_S = 0.5  # between two calls while the first engine is being loaded
WARM_UP_RUNS = 3  # the first allocates, the second may still tune, the third is like all others
# What tensors of the same shape mean; all else that differs between two networks is inside the graph.
MEANINGS = ("cameras", "lidars", "radars", "grid", "bev_stride", "step_s", "frame_period_s")

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LoadedEngine:
    """Ready to take over."""

    bundle: Bundle
    config: EngineConfig
    engine: InferenceEngine


def check_fits(bundle: Bundle, network: NetworkConfig) -> None:
    """Whether a bundle can take over from a network between two frames.

    Args:
        bundle: The new one.
        network: That runs.
    Raises:
        BundleError: If its tensors differ in name, shape or meaning.
    """
    remedy = "deactivate, clean up and configure the node to change to it"
    difference = tensor_contract(network).difference(bundle.contract.to_json())
    if difference is not None:
        raise BundleError(f"bundle {bundle} cannot take over while running: {difference}; {remedy}")
    for name in MEANINGS:
        there, here = getattr(bundle.network, name), getattr(network, name)
        if there != here:
            raise BundleError(
                f"bundle {bundle} cannot take over while running: its {name} is {there}, the running "
                f"network's is {here}; {remedy}"
            )


def warm_up(engine: InferenceEngine, inputs: Inputs | None = None) -> None:
    """Let a fresh engine do what it does only once, and see whether it gives numbers at all.

    Args:
        engine: Fresh; it remembers nothing of this.
        inputs: Contract inputs of a real frame, those that are missing are zero; None: all are zero, which is
            no frame that could be, so that only the running counts.
    Raises:
        BundleError: If an output for a real frame is not finite.
    """
    fed = {spec.name: np.zeros(spec.shape, np.dtype(spec.dtype)) for spec in engine.contract.inputs}
    for _, target in engine.contract.state:
        del fed[target]
    fed.update(inputs or {})
    for _ in range(WARM_UP_RUNS):
        for name, value in engine.infer(fed).items():
            if inputs is not None and not np.isfinite(value).all():
                raise BundleError(f"engine {engine.info} gives non-finite {name!r} for the last frame")
    engine.reset_state()


def load_engine(
    bundle: Bundle,
    config: EngineConfig,
    inputs: Inputs | None = None,
    *,
    log: Log = lambda sentence: None,
) -> InferenceEngine:
    """An engine that is ready for its first frame.

    Args:
        bundle: To run.
        config: On what.
        inputs: See `warm_up`.
        log: Gets a sentence about what costs time or trust.
    Raises:
        E2EPerceptionError: If it cannot run, does not compute what torch computes, or gives no numbers.
    """
    engine = configured_engine(bundle, config, log)
    try:
        warm_up(engine, inputs)
    except BaseException:
        engine.close()
        raise
    return engine


class EngineSwap:
    """One change of engine at a time.

    Engines are made, and freed when another has replaced them, by one thread. With a new thread for each,
    every one of them would get its own heap from the C library, and the resident memory would grow by 90 MB
    in ten changes.

    `first`, `begin`, `outcome` and `give_up` are for one thread; `retire`, `fail`, `finish` and `close` for
    any.
    """

    def __init__(
        self,
        on_outcome: Callable[[], None],
        load: Callable[[Bundle, EngineConfig, Inputs | None], InferenceEngine] = load_engine,
    ) -> None:
        """Nothing is under way.

        Args:
            on_outcome: Called from another thread when `outcome` has something to say.
            load: Makes an engine.
        """
        self._on_outcome = on_outcome
        self._load = load
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._wanted: EngineConfig | None = None
        self._outcome: LoadedEngine | str | None = None
        self._handed_out: LoadedEngine | None = None  # and has not taken over yet
        self._began_s: float | None = None  # None: nothing is being loaded
        self._attempt = 0  # what comes of an earlier one is of no use to anybody
        self._closed = False

    @property
    def wanted(self) -> EngineConfig | None:
        """What is being changed to; None if nothing is."""
        return self._wanted

    @property
    def is_loaded(self) -> bool:
        """Whether the engine that is being changed to is there, and waits for the one that runs to let go."""
        return self._handed_out is not None

    def first(
        self, bundle: Bundle, config: EngineConfig, *, after_s: float, on_wait: Callable[[], None]
    ) -> InferenceEngine:
        """The engine to begin with.

        Args:
            bundle, config: What to run, and how.
            after_s: Wait no longer than this [s]; should the engine come after all, it is freed.
            on_wait: Called twice a second meanwhile.
        Raises:
            EngineUnavailableError: If it is not loaded in time.
            E2EPerceptionError: As `load_engine`.
        """
        loading: Future[InferenceEngine] = Future()
        began_s = time.monotonic()
        self._work(lambda: _settle_with(loading, lambda: self._load(bundle, config, None)))
        try:
            while not wait([loading], max(0.0, min(began_s + after_s - time.monotonic(), WAIT_S))).done:
                if time.monotonic() >= began_s + after_s:
                    raise EngineUnavailableError(_too_late(config, after_s))
                on_wait()
        except BaseException:  # an interrupt, too
            loading.add_done_callback(_close_if_loaded)
            self._leave_thread()
            raise
        return loading.result()

    def begin(self, bundle: Bundle, config: EngineConfig, inputs: Inputs | None = None) -> None:
        """Load in the other thread; `outcome` tells what came of it.

        Args:
            bundle, config: What to run, and how.
            inputs: See `warm_up`; not written to.
        """
        assert self._wanted is None, "one at a time"
        self._wanted = config
        with self._lock:
            self._began_s = time.monotonic()
            attempt = self._attempt
        self._work(lambda: self._try(attempt, bundle, config, inputs))

    def give_up(self, after_s: float) -> None:
        """Wait no longer for an engine that is still not loaded; then that is the outcome.

        Call it regularly. A library that hangs keeps its thread; another change gets a new one. Should the
        engine come after all, it is freed.

        Args:
            after_s: Since `begin` [s].
        """
        with self._lock:
            if self._began_s is None or time.monotonic() - self._began_s < after_s:
                return
            assert self._wanted is not None
            self._outcome = _too_late(self._wanted, after_s)
            self._began_s = None
            self._attempt += 1
            self._leave_thread()
        self._on_outcome()

    def outcome(self) -> LoadedEngine | str | None:
        """The engine, or why there is none, once; None: nothing new. After either, `finish`."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            if isinstance(outcome, LoadedEngine):
                self._handed_out = outcome
            return outcome

    def retire(self, engine: InferenceEngine) -> None:
        """Free an engine that another has replaced, without anybody waiting for it."""
        self._jobs.put(engine.close)

    def fail(self, why: str) -> None:
        """The engine was loaded, but could not take over, and has been freed."""
        self._handed_out = None
        self._settle(self._attempt, why)

    def finish(self) -> None:
        """The change is made, or given up; another may begin."""
        self._handed_out = None
        self._wanted = None

    def close(self) -> None:
        """Nobody wants an engine any more.

        One that was to take over, and has not, is freed; one that is still being loaded when it comes.
        """
        with self._lock:
            self._closed = True
            left, self._outcome, self._handed_out = (self._outcome, self._handed_out), None, None
        for loaded in left:
            if isinstance(loaded, LoadedEngine):
                # Not here: freeing device memory may wait for an engine that hangs.
                self._work(loaded.engine.close)
        self._jobs.put(None)

    def _work(self, job: Callable[[], None]) -> None:
        """Have something done in the thread that makes engines."""
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=_work_off, args=[self._jobs], name="engines", daemon=True)
            self._thread.start()

    def _leave_thread(self) -> None:
        """A library hangs in it; whatever comes next gets a new one."""
        self._jobs.put(None)
        self._jobs, self._thread = SimpleQueue(), None

    def _try(self, attempt: int, bundle: Bundle, config: EngineConfig, inputs: Inputs | None) -> None:
        try:
            self._settle(attempt, LoadedEngine(bundle, config, self._load(bundle, config, inputs)))
        except Exception as error:  # noqa: BLE001 - whatever an inference library throws; it is reported
            self._settle(attempt, f"bundle {bundle} on {config.backend}: {type(error).__name__}: {error}")

    def _settle(self, attempt: int, outcome: LoadedEngine | str) -> None:
        with self._lock:
            wanted = not self._closed and attempt == self._attempt
            if wanted:
                self._outcome, self._began_s = outcome, None
        if wanted:
            self._on_outcome()
        elif isinstance(outcome, LoadedEngine):
            outcome.engine.close()


def _settle_with(future: Future[InferenceEngine], load: Callable[[], InferenceEngine]) -> None:
    try:
        future.set_result(load())
    except BaseException as error:  # noqa: BLE001 - raised where somebody waits for it
        future.set_exception(error)


def _close_if_loaded(loading: Future[InferenceEngine]) -> None:
    if loading.exception() is None:
        loading.result().close()


def _too_late(config: EngineConfig, after_s: float) -> str:
    return (
        f"bundle {config.bundle} on {config.backend}: not loaded within {after_s:g} s "
        "(supervisor.load_timeout_s)"
    )


def _work_off(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
