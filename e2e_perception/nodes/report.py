"""What the node itself has to say besides the pipeline: problems with its surroundings, its own errors."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from e2e_perception.core.results import Health

INTERNAL_ERROR = "internal_error"
_SHOWN_S = 10.0  # how long an internal error stays on health; its count stays for good
_T = TypeVar("_T")


class NodeReport:
    """Problems by subject, and drops by cause; safe to use from several threads."""

    def __init__(self, logger: Any) -> None:
        """Start empty; every new problem is also logged once, and so is its end."""
        self._logger = logger
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}
        self._internal_error_s = 0.0
        self._drops: dict[str, int] = {}

    def say(self, sentence: str) -> None:
        """To the log only."""
        self._logger.info(sentence)

    def problem(self, subject: str, sentence: str) -> None:
        """Say what is wrong with a subject, until `solved`."""
        with self._lock:
            known = self._problems.get(subject)
            self._problems[subject] = sentence
        if known != sentence:
            self._logger.warning(sentence)

    def solved(self, subject: str) -> None:
        """The subject is well, or well again."""
        with self._lock:
            known = self._problems.pop(subject, None)
        if known is not None:
            self._logger.info(f"solved: {known}")

    def forget(self, subject: str) -> None:
        """The subject is none of our business any more."""
        with self._lock:
            self._problems.pop(subject, None)

    def dropped(self, cause: str, count: int = 1) -> None:
        """Count messages that never reached the pipeline."""
        with self._lock:
            self._drops[cause] = self._drops.get(cause, 0) + count

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._problems.clear()
            self._drops.clear()

    @property
    def reasons(self) -> tuple[str, ...]:
        """All problems."""
        if time.monotonic() - self._internal_error_s > _SHOWN_S:
            self.solved(INTERNAL_ERROR)
        with self._lock:
            return tuple(self._problems.values())

    @property
    def drops(self) -> dict[str, int]:
        """All drops by cause."""
        with self._lock:
            return dict(self._drops)

    def merged(self, health: Health) -> Health:
        """The pipeline's health with what the node has to say."""
        return replace(health, reasons=(*health.reasons, *self.reasons), drops={**health.drops, **self.drops})

    def guarded(self, function: Callable[..., _T], *arguments: Any) -> _T | None:
        """Call a function; whatever it raises is logged, counted and reported, and gives None.

        This is the only place where the node catches errors that nobody foresaw: a robot must not lose its
        stack to one odd message.
        """
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001 - see above
            self._logger.error(traceback.format_exc())
            self.dropped(INTERNAL_ERROR)
            self._internal_error_s = time.monotonic()
            self.problem(
                INTERNAL_ERROR,
                f"internal error, see the node's log: {type(error).__name__}: {error}",
            )
            return None
