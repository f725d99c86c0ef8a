"""Makes this source tree the one that is imported, here and in the commands that a script starts.

A script that imports this first runs without an installation and without ROS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))
_others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", str(ROOT))]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *_others])
os.environ["PYTHONSAFEPATH"] = "1"  # `python -m` would look where it was started before that
