"""Makes this source tree the one that is imported, here and in the commands that a script starts.

A script that imports this first runs without an installation and without ROS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))
_before = os.environ.get("PYTHONPATH", "")
if str(ROOT) not in _before.split(os.pathsep):
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{_before}" if _before else str(ROOT)
