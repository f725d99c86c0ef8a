"""Nodes as child processes: start them, keep what they say, stop them, notice when one dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from e2e_perception.core.errors import E2EPerceptionError

TAIL_LINES = 25
_STOP_SIGNALS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


class NodeError(E2EPerceptionError):
    """A node could not be started, died, or stayed silent."""


def require_ros() -> None:
    """Raise `NodeError` unless rclpy and this package's messages can be imported."""
    missing = [name for name in ("rclpy", "e2e_perception.msg") if importlib.util.find_spec(name) is None]
    if missing:
        raise NodeError(
            f"{' and '.join(missing)} cannot be imported, and the nodes need them; run `make setup` and then "
            "`. scripts/env.sh`, or source your ROS 2 workspace. `e2e-perception replay` works without ROS"
        )


@dataclass
class NodeProcess:
    """One running node.

    Attributes:
        name: Module in `e2e_perception.nodes`, e.g. `replay_node`.
        process: The child.
        tail: Its last lines on stdout and stderr.
    """

    name: str
    process: subprocess.Popen[str]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    _reader: threading.Thread | None = None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def failure(self) -> str:
        """What to tell a user about its end."""
        code = self.exit_code
        how = "is still running" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by signal {signal.Signals(-code).name}"
        said = "\n".join(f"  | {line}" for line in self.tail) or "  | (it said nothing)"
        return f"{self.name} {how}; its last words:\n{said}"

    def wait_for_output(self) -> None:
        """After its end: until everything it said has been read."""
        if self._reader is not None:
            self._reader.join(timeout=5.0)


def start_node(
    name: str,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    echo: bool = False,
) -> NodeProcess:
    """Start a node of this package in a process of its own.

    Args:
        name: Module in `e2e_perception.nodes`.
        arguments: Appended, usually `--ros-args …`.
        environment: Added to this process's.
        log_path: File that receives all it says.
        echo: Pass all it says on to stderr as well.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", f"e2e_perception.nodes.{name}", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Its own group: a Ctrl-C in the terminal reaches us alone, and we stop the children in order.
        start_new_session=True,
    )
    node = NodeProcess(name, child)
    assert child.stdout is not None
    node._reader = threading.Thread(
        target=_drain, args=(child.stdout, node, log_path, echo), name=f"log of {name}", daemon=True
    )
    node._reader.start()
    return node


def _drain(stream: IO[str], node: NodeProcess, log_path: Path | None, echo: bool) -> None:
    log_file = log_path.open("w", encoding="utf-8") if log_path is not None else None
    try:
        for line in stream:
            node.tail.append(line.rstrip("\n"))
            if log_file is not None:
                log_file.write(line)
                log_file.flush()
            if echo:
                sys.stderr.write(f"[{node.name}] {line}")
    finally:
        if log_file is not None:
            log_file.close()


def stop_nodes(nodes: Sequence[NodeProcess]) -> None:
    """Ask all to end, in the given order, then less and less politely; returns when all have ended."""
    for node in nodes:
        for number, patience in _STOP_SIGNALS:
            if node.exit_code is not None:
                break
            node.process.send_signal(number)
            try:
                node.process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
        node.wait_for_output()


def parameter_arguments(
    parameters: Mapping[str, object], *, params_file: Path | None = None, namespace: str = ""
) -> list[str]:
    """`--ros-args` for a node: a parameter file, then single values that win over it."""
    arguments = ["--ros-args"]
    if namespace:
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    if params_file is not None:
        arguments += ["--params-file", str(params_file)]
    for name, value in parameters.items():
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, list):
            text = "[" + ", ".join(f"'{item}'" for item in value) + "]"
        elif isinstance(value, str):
            text = f"'{value}'"  # quoted, or YAML would read `1` or `on` as something else
        else:
            text = str(value)
        arguments += ["-p", f"{name}:={text}"]
    return arguments if len(arguments) > 1 else []
