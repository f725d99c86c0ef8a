"""`doctor`: what is installed, what each backend can do here, and how to get the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from e2e_perception.cli.console import emit_json, print_table
from e2e_perception.cli.options import JsonOption

_ROS_HOW = "source the workspace's environment (`. scripts/env.sh`, made by `make setup`)"
_UPSTREAM_HOW = "not on PyPI; `apt install ros-$ROS_DISTRO-{}` where ROS 2 is installed"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        group: `system`, `ros`, `backend` or `package`.
        name: What was looked for.
        ok: Whether it can be used here.
        found: Version, or what is wrong.
        serves: What it is good for.
        how_to_get: What to do if it is missing; empty if it is there.
    """

    group: str
    name: str
    ok: bool
    found: str
    serves: str
    how_to_get: str = ""


def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what each backend can do here, and how to get the rest.

    Example: `e2e-perception doctor --json`
    """
    findings = diagnose()
    if as_json:
        emit_json({"findings": [vars(finding) for finding in findings]})
        return
    titles = {"system": "Machine", "package": "This package", "ros": "ROS 2", "backend": "Inference backends"}
    for group, title in titles.items():
        rows = [
            ("yes" if f.ok else "no", f.name, f.found, f.serves, f.how_to_get)
            for f in findings
            if f.group == group
        ]
        print_table(title, ("", "what", "found", "serves", "to get it"), rows, wide=True)


def diagnose() -> list[Finding]:
    """Look at this machine; nothing heavy is imported."""
    return [*_system(), *_package(), *_ros(), *_backends()]


def _system() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = _gpu()
    return [
        Finding("system", "python", True, f"{platform.python_version()} at {sys.executable}", "everything"),
        Finding("system", "machine", True, f"{platform.system()} {platform.machine()}", ""),
        Finding("system", "cores, memory", True, f"{cores} cores, {memory:.1f} GiB", ""),
        Finding(
            "system",
            "NVIDIA GPU",
            gpu is not None,
            gpu or "none seen by nvidia-smi",
            "TensorRT, CUDA",
            "" if gpu else "the CPU backends need none",
        ),
    ]


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return "; ".join(answer.stdout.strip().splitlines()) or None


def _package() -> list[Finding]:
    from e2e_perception.core.errors import ConfigError
    from e2e_perception.core.resources import config_dir, resource_dir

    findings = []
    messages = importlib.util.find_spec("e2e_perception.msg") is not None
    findings.append(
        Finding(
            "package",
            "messages",
            messages,
            "e2e_perception.msg" if messages else "not generated",
            "the ROS nodes",
            "" if messages else "`make setup`, or `colcon build` in a ROS 2 workspace, then source it",
        )
    )
    for name, find, pattern in (("rigs", config_dir, "rigs/*.yaml"), ("bundles", resource_dir, "bundles/*")):
        try:
            names = sorted(p.stem if p.suffix == ".yaml" else p.name for p in find().glob(pattern))
        except ConfigError as error:
            findings.append(Finding("package", name, False, str(error), "", "install the package again"))
            continue
        how = (
            ""
            if names
            else "`e2e-perception export` makes one"
            if name == "bundles"
            else "install the package again"
        )
        findings.append(
            Finding("package", name, bool(names), ", ".join(names) or "none", "replay, demo, nodes", how)
        )
    for module, serves, how in (
        ("rosbags", "reading and writing bags", "pip install rosbags"),
        ("cv2", "pictures", "pip install 'opencv-python-headless<5'"),
        ("highway_env", "the simulator", "pip install highway-env"),
        ("zarr", "training clips", "pip install zarr pyarrow"),
    ):
        findings.append(_module("package", module, serves, how))
    return findings


def _ros() -> list[Finding]:
    distribution = os.environ.get("ROS_DISTRO", "")
    findings = [
        Finding(
            "ros",
            "distribution",
            bool(distribution),
            distribution or "ROS_DISTRO is not set",
            "nodes, demo, run",
            "" if distribution else _ROS_HOW,
        ),
        _module("ros", "rclpy", "nodes, demo, run", _ROS_HOW),
        _module("ros", "cv_bridge", "raw Image messages of every encoding", "pip install cv-bridge"),
    ]
    for module, package, serves in (
        ("message_filters", "message-filters", "`sync.policy: approximate | exact`; the default needs none"),
        ("launch", "launch-ros", "`ros2 launch`; `e2e-perception run` does without"),
        ("ros2cli", "ros2cli", "the `ros2` command"),
        ("tf2_ros", "tf2-ros-py", "TF tools; the nodes read /tf_static themselves"),
    ):
        findings.append(_module("ros", module, serves, _UPSTREAM_HOW.format(package)))
    return findings


def _backends() -> list[Finding]:
    from e2e_perception.deploy.engines import backend_report

    findings = []
    for status in backend_report():
        found = (
            status.version
            if status.available
            else ", but ".join(filter(None, (status.version, status.reason)))
        )
        if status.name == "onnxruntime" and status.available:
            found += f" with {', '.join(_onnxruntime_providers())}"
        how = "" if status.available else status.how_to_get
        findings.append(
            Finding("backend", status.name, status.available, found, "`--backend` " + status.name, how)
        )
    return findings


def _onnxruntime_providers() -> list[str]:
    import onnxruntime

    return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]


def _module(group: str, module: str, serves: str, how_to_get: str) -> Finding:
    spec = importlib.util.find_spec(module)
    # A directory of that name, such as this package's own `launch/`, is no installation; rosbags, a namespace
    # package, is known by its distribution.
    if spec is None or (spec.origin is None and not _distributions().get(module)):
        return Finding(group, module, False, "not installed", serves, how_to_get)
    return Finding(group, module, True, _version(module), serves)


def _version(module: str) -> str:
    for distribution in _distributions().get(module, []):
        return metadata.version(distribution)
    return "installed"


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
