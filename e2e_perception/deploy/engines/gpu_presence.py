"""Whether this machine seems to have an NVIDIA GPU, found out without touching it."""

from __future__ import annotations

import ctypes
import glob

# Discrete GPUs, Jetson's GPU under its two drivers, and the GPU that Windows lends.
_DEVICES = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/nvgpu/igpu*", "/dev/dxg")
_DRIVER = "libcuda.so.1"


def why_no_gpu() -> str:
    """Empty if there is a GPU with a driver, else one clause that says what is missing.

    Nothing is initialised, so that a process may ask and fork afterwards; whether the driver is recent enough
    is seen when an engine is loaded.
    """
    if not any(glob.glob(pattern) for pattern in _DEVICES):
        return "no NVIDIA GPU is visible on this machine"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"there is an NVIDIA GPU, but its driver's {_DRIVER} cannot be loaded"
    return ""
