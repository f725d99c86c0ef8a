"""`pip install .` on a machine without ROS, such as a training machine: all but messages and nodes.

On a robot the package is built by CMake (`colcon build`); metadata shared by both is read from package.xml.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHARED = ("config", "launch", "msg", "resource")


def version() -> str:
    """The version of package.xml, the only place where it is raised by hand besides `__version__`."""
    found = re.search(r"<version>([^<]+)</version>", (ROOT / "package.xml").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("package.xml has no <version>")
    return found[1]


def requirements(*names: str) -> list[str]:
    """The lines of files under requirements/, without comments."""
    lines = [
        line for n in names for line in (ROOT / "requirements" / n).read_text(encoding="utf-8").splitlines()
    ]
    return sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})


class BuildWithSharedFiles(build_py):
    """Puts what CMake installs into share/e2e_perception inside the wheel, as e2e_perception/_share."""

    def _shared_files(self) -> dict[Path, Path]:
        target = Path(self.build_lib) / "e2e_perception" / "_share"
        return {
            file: target / file.relative_to(ROOT)
            for top in SHARED
            for file in sorted((ROOT / top).rglob("*"))
            if file.is_file() and "__pycache__" not in file.parts
        }

    def run(self) -> None:
        """Copy the modules, then the shared files; an editable install finds those in the source tree."""
        super().run()
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "e2e_perception" / "_share", ignore_errors=True)
            for source, target in self._shared_files().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Everything that `run` writes."""
        shared = [] if self.editable_mode else [str(target) for target in self._shared_files().values()]
        return [*super().get_outputs(include_bytecode), *shared]


setup(
    version=version(),
    install_requires=requirements("base.txt", "robot.txt"),
    extras_require={
        "training": requirements("training.txt"),
        "tracking": requirements("tracking.txt"),
        "scale": requirements("scale.txt"),
        "tensorrt-rtx": requirements("tensorrt-rtx.txt"),
        "dev": requirements("dev.txt"),
    },
    cmdclass={"build_py": BuildWithSharedFiles},
)
