"""Build the wheel from a copy of the sources, install it where there is no ROS, and look at what came out.

    python scripts/check_wheel.py

The copy keeps what earlier builds left in the tree out of the wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = ("package.xml", "setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
DIRECTORIES = ("e2e_perception", "config", "launch", "msg", "resource", "requirements")


def copy_sources(target: Path) -> None:
    """Copy what a wheel is made of."""
    for name in TOP_LEVEL:
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, target / name)
    for name in DIRECTORIES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def files_under(folder: Path) -> list[str]:
    """Paths of all files but Python's caches, relative to the root."""
    return [
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def expected_names() -> set[str]:
    """Every file of the package, and every shared file under `_share`."""
    shared = [name for top in ("config", "launch", "msg", "resource") for name in files_under(ROOT / top)]
    return {*files_under(ROOT / "e2e_perception"), *(f"e2e_perception/_share/{name}" for name in shared)}


def main() -> int:
    """Build, compare, install, import."""
    clean_env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AMENT_PREFIX_PATH")}
    with tempfile.TemporaryDirectory(prefix="e2e_perception_wheel_") as name:
        work = Path(name)
        (work / "source").mkdir()
        copy_sources(work / "source")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), str(work / "source")]
        subprocess.run([*pip, *build], check=True, env=clean_env)
        (wheel,) = work.glob("*.whl")

        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            metadata = next(n for n in names if n.endswith("entry_points.txt"))
            entry_points = archive.read(metadata).decode()
        missing = sorted(expected_names() - names)
        if missing:
            print(f"{wheel.name} lacks {len(missing)} files: {', '.join(missing[:10])}", file=sys.stderr)
            return 1
        if "e2e-perception = e2e_perception.cli.main:main" not in entry_points:
            print(f"{wheel.name} has no console script e2e-perception: {entry_points}", file=sys.stderr)
            return 1

        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", work / "venv"], check=True, env=clean_env
        )
        python = str(work / "venv" / "bin" / "python")
        subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True, env=clean_env)
        code = (
            "from e2e_perception.core.resources import config_dir, resource_dir; "
            "print(config_dir()); print(resource_dir())"
        )
        asked = subprocess.run(
            [python, "-c", code], check=True, capture_output=True, text=True, cwd=work, env=clean_env
        )
        outside = [line for line in asked.stdout.split() if not line.startswith(str(work / "venv"))]
        if outside or not (work / "venv" / "bin" / "e2e-perception").is_file():
            print(f"the installed package uses {outside} or has no command", file=sys.stderr)
            return 1
        print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB, installs without ROS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
