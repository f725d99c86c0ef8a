"""The same function on many tasks: in processes of this machine, or on a Ray cluster.

Every worker computes with one thread. That is as fast where there are as many workers as cores, and sums are
then the same to the last bit whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task whose process died, twice if it had company the first time."""

    why: str


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def single_threaded() -> None:
    """What the environment does not say: OpenCV has threads of its own."""
    import cv2

    cv2.setNumThreads(1)


def fan_out(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result | Lost]]:
    """Call a function on every task, in processes.

    Args:
        function: At the top level of a module; what it raises is raised here, and ends everything.
        tasks: Its arguments.
        workers: How many processes at a time.
    Yields:
        Number of the task and its result, in order of completion. A process that dies takes the others with
        it; their tasks are done again, one after the other, and the one that kills its process again is lost.
    """
    waiting = list(enumerate(tasks))
    while waiting:
        # As many as there are workers, so that all under way are known when one dies.
        running: dict[Future[Result], tuple[int, Task]] = {}
        with _pool(min(workers, len(waiting))) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < workers:
                        running[pool.submit(function, waiting[0][1])] = waiting[0]
                        del waiting[0]
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        result = done.result()
                        yield running.pop(done)[0], result
            except BrokenProcessPool:
                pass
        for number, task in sorted(running.values(), key=lambda item: item[0]):
            with _pool(1) as pool:
                try:
                    again: Result | Lost = pool.submit(function, task).result()
                except BrokenProcessPool as error:
                    again = Lost(f"its process died ({error})")
            yield number, again


def fan_out_on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], address: str, workers: int
) -> Iterator[tuple[int, Result | Lost]]:
    """The same on a Ray cluster; see `ray_tasks`.

    Args:
        function, tasks: As for `fan_out`; the package must be installed on every node.
        address: Of the cluster; `local` starts one here.
        workers: CPUs of a local one.
    """
    from e2e_perception.training.ray_tasks import ray_tasks

    for number, result, why in ray_tasks(function, tasks, address, workers=workers, environment=ONE_THREAD):
        yield number, Lost(f"its process died ({why})") if result is None else result


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters: a fork would inherit threads of OpenCV and of the progress bar in any state."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # read when a worker imports numpy, before any code of ours runs there
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=single_threaded
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
