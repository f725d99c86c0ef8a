"""Messages of rclpy."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.errors import InputError


def message_class(type_name: str) -> type[Any]:
    """The class of a message type such as `sensor_msgs/msg/Image`.

    Raises:
        InputError: If its package is not installed; the message says which.
    """
    package, _, rest = type_name.partition("/")
    kind, _, name = rest.partition("/")
    if kind != "msg" or not name:
        raise InputError(f"{type_name!r} is not a message type; expected `package/msg/Name`")
    try:
        found: type[Any] = getattr(importlib.import_module(f"{package}.msg"), name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"message type {type_name} is not installed here; install the ROS package {package}"
        ) from error
    except AttributeError as error:
        raise InputError(f"the installed package {package} has no message {name}") from error
    return found


class RclpyFactory:
    """A `core.messages.MessageFactory` over the message classes that rclpy uses."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Any]] = {}

    def __call__(self, type_name: str, /, **fields: Any) -> Any:
        """A message of that type, with ROS's defaults for what is not given."""
        found = self._classes.get(type_name)
        if found is None:
            found = self._classes[type_name] = message_class(type_name)
        return found(**fields)

    def floats32(self, values: Iterable[float] | NDArray[Any], /) -> array[float]:
        """An array that rclpy takes without looking at each element."""
        if isinstance(values, np.ndarray):
            return array("f", np.ascontiguousarray(values, np.float32).tobytes())
        return array("f", values)

    def floats64(self, values: Iterable[float] | NDArray[Any], /) -> array[float]:
        """An array that rclpy takes without looking at each element."""
        return array("d", values.tolist() if isinstance(values, np.ndarray) else values)

    def uint8s(self, values: bytes, /) -> array[int]:
        """An array that rclpy takes without looking at each element."""
        return array("B", values)

    def uint64s(self, values: Iterable[int], /) -> array[int]:
        """An array that rclpy takes without looking at each element."""
        return array("Q", values)

    def byte(self, value: bytes, /) -> bytes:
        """rclpy stores a `byte` as one byte."""
        return value
