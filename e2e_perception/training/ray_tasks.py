"""The same function on many tasks on a Ray cluster, or on one that is started here for the purpose."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from e2e_perception.core.errors import ConfigError

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL = "local"
PROBE_S = 5.0


def ray_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    address: str,
    *,
    workers: int,
    environment: Mapping[str, str],
) -> Iterator[tuple[int, Result | None, str]]:
    """Call a function on every task, each in a worker with one CPU.

    Args:
        function: At the top level of a module, which must be installed on every node; what it raises is
            raised here, and ends everything.
        tasks: Its arguments.
        address: Of a cluster, as `ray.init` takes it; `local` starts one here and stops it again.
        workers: CPUs of a local one; a cluster knows its own.
        environment: Variables of the workers.
    Yields:
        Number of the task, its result, and an empty string, in order of completion; for a task whose worker
        died None and why.
    Raises:
        ConfigError: If Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed; `pip install 'e2e-perception[scale]'`, or use processes")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    import ray
    from ray.exceptions import RayError, RayTaskError

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        # Workers import what this process would, also from a source tree.
        environment = {**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        settings |= {"address": LOCAL, "num_cpus": workers, "include_dashboard": False}
    else:
        settings["address"] = address
    try:
        _probe(address)
        ray.init(**settings, runtime_env={"env_vars": dict(environment)})
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray gives no cluster at {address!r}: {str(error).splitlines()[0] if str(error) else error!r}; "
            f"expected `{LOCAL}`, or the address that `ray start --head` prints"
        ) from error
    try:
        # A task whose worker died is not tried again, lest it kill one after the other.
        remote = ray.remote(num_cpus=1, max_retries=0)(function)
        pending = {remote.remote(task): number for number, task in enumerate(tasks)}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            number = pending.pop(done)
            try:
                yield number, ray.get(done), ""
            except RayTaskError:
                raise
            except RayError as error:
                yield number, None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would go on trying for a quarter of an hour.

    Raises:
        OSError: If nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
