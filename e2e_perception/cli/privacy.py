"""Faces and number plates: every picture goes through somebody's own function before anything is stored."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import ConfigError, InputError
from e2e_perception.core.samples import ImageSample, SensorMessage
from e2e_perception.runtime.decode import decode_image

Blur = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Privacy:
    """A function of a module, applied to decoded pictures in full size.

    Attributes:
        name: `module:callable`.
        stated: `name` and the digest of the module's file, for recipes: a corrected function makes others.
    """

    def __init__(self, name: str) -> None:
        """Import it.

        Args:
            name: `module:callable`; the module has to be on `PYTHONPATH`.
        Raises:
            ConfigError: If there is no such module or callable.
        """
        module_name, colon, attribute = name.partition(":")
        if not (module_name and colon and attribute):
            raise ConfigError(f"--privacy {name!r}: expected MODULE:CALLABLE, e.g. blurring:faces_and_plates")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever a module does when it is imported
            raise ConfigError(
                f"--privacy {name!r}: {module_name} cannot be imported: {error!r}; is it on PYTHONPATH?"
            ) from error
        blur = module
        for part in attribute.split("."):
            if not hasattr(blur, part):
                raise ConfigError(f"--privacy {name!r}: {module_name} has no {attribute}")
            blur = getattr(blur, part)
        if not callable(blur):
            raise ConfigError(f"--privacy {name!r}: it is a {type(blur).__name__}, expected a function")
        self.name = name
        self._blur: Blur = blur
        file = inspect.getsourcefile(module) if hasattr(module, "__file__") else None
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else "builtin"
        self.stated = f"{name}@{digest}"

    def apply(self, message: SensorMessage) -> SensorMessage:
        """The message of a camera with the picture that the function gives.

        A picture that cannot be decoded is passed on: nothing of it will be stored.

        Raises:
            InputError: If the function fails, or gives something else than a picture of the same size.
        """
        try:
            # A copy, lest a function that writes into its argument writes into the recording.
            rgb_HW3 = np.array(decode_image(message.payload))
        except InputError:
            return message
        where = f"--privacy {self.name} on {message.sensor} at {message.stamp_ns} ns"
        try:
            blurred_HW3 = self._blur(rgb_HW3.copy())
        except Exception as error:  # somebody else's code
            raise InputError(f"{where}: {error!r}; the recording is not finished") from error
        got = f"{type(blurred_HW3).__name__}"
        if isinstance(blurred_HW3, np.ndarray):
            got = f"{blurred_HW3.dtype}{list(blurred_HW3.shape)}"
        if got != f"uint8{list(rgb_HW3.shape)}":
            raise InputError(f"{where}: it gave {got}, expected uint8{list(rgb_HW3.shape)}, the RGB picture")
        return SensorMessage(
            message.sensor,
            message.stamp_ns,
            message.arrival_ns,
            ImageSample(np.ascontiguousarray(blurred_HW3)),
        )


def stated_privacy(stated: str) -> Privacy | None:
    """The function that a recipe names; None if it names none.

    Args:
        stated: `Privacy.stated`, or nothing.
    Raises:
        ConfigError: If it cannot be imported, or is not the one that the recipe was made with.
    """
    if not stated:
        return None
    found = Privacy(stated.partition("@")[0])
    if found.stated != stated:
        raise ConfigError(f"--privacy {found.name} changed since this began; run it again")
    return found
