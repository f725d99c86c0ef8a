"""Functions that workers import by name."""

from __future__ import annotations

import os

from e2e_perception.cli.episodes import Driven, Task, drive_episode

FATAL = 13


def square_or_die(number: int) -> int:
    if number == FATAL:
        os._exit(3)
    return number * number


def square_or_raise(number: int) -> int:
    if number == FATAL:
        raise ValueError(f"{number} is no number to square")
    return number * number


def threads_of_libraries(number: int) -> tuple[int, str]:
    import cv2

    return cv2.getNumThreads(), os.environ.get("OMP_NUM_THREADS", "")


def drive_or_die(task: Task) -> Driven:
    if "/13@" in task.world.name:
        os._exit(3)
    return drive_episode(task)
