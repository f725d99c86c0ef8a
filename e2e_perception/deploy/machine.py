"""What of this machine a compiled engine depends on, in words."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path

_GPUS, _DRIVER = Path("/proc/driver/nvidia/gpus"), Path("/proc/driver/nvidia/version")
_JETSON = Path("/proc/device-tree/model")  # lists no GPUs, but the board says which it has
_CPU_FIELDS = ("model name", "flags", "CPU part", "Features")  # x86's, then Arm's


@functools.cache
def cpu_name() -> str:
    """Architecture, model and a digest of what its instructions can do; two equal ones run the same code."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            field, _, value = line.partition(":")
            if field.strip() in _CPU_FIELDS:
                facts.setdefault(field.strip(), value.strip())
    except OSError:  # no Linux; the architecture has to do
        facts["processor"] = platform.processor()
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:8]
    return f"{platform.machine()} {facts.get('model name', 'CPU')} {digest}"


@functools.cache
def gpu_names() -> str:
    """NVIDIA's GPUs and driver as the system lists them, without touching them; empty where it lists none."""
    found = []
    for path in (*sorted(_GPUS.glob("*/information")), _DRIVER, _JETSON):
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip("\0\n")
        except OSError:
            continue
        found.append(next((line for line in text.splitlines() if line.startswith("Model:")), text))
    return ", ".join(" ".join(name.split()) for name in found)
