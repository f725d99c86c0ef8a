"""Messages of the rosbags library, with ROS's defaults for what is not given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from e2e_perception.core.errors import InputError

# Defaults that are not zero; rosbags drops them when it reads a definition.
_NON_ZERO = {("geometry_msgs/msg/Quaternion", "w"): 1.0}
_DTYPES = {"byte": "uint8", "octet": "uint8", "char": "uint8", "bool": "bool"}


class RosbagsFactory:
    """A `core.messages.MessageFactory` over a rosbags typestore."""

    def __init__(self, typestore: Typestore) -> None:
        """Remember the store; it must know every type that is asked for (see `project_typestore`)."""
        self._store = typestore
        self._makers: dict[str, dict[str, Callable[[], Any]]] = {}

    def __call__(self, type_name: str, /, **fields: Any) -> Any:
        """A message of that type.

        Raises:
            InputError: If the store does not know the type.
            TypeError: If the type has no such field.
        """
        defaults = self._makers.get(type_name)
        if defaults is None:
            defaults = self._makers[type_name] = self._defaults(type_name)
        missing = {name: make() for name, make in defaults.items() if name not in fields}
        return self._store.types[type_name](**fields, **missing)

    def floats32(self, values: Iterable[float] | NDArray[Any], /) -> NDArray[np.float32]:
        """A contiguous float32 array: rosbags looks at its bytes."""
        return np.ascontiguousarray(values if isinstance(values, np.ndarray) else list(values), np.float32)

    def floats64(self, values: Iterable[float] | NDArray[Any], /) -> NDArray[np.float64]:
        """A contiguous float64 array."""
        return np.ascontiguousarray(values if isinstance(values, np.ndarray) else list(values), np.float64)

    def uint8s(self, values: bytes, /) -> NDArray[np.uint8]:
        """The bytes as an array, not copied."""
        return np.frombuffer(values, np.uint8)

    def uint64s(self, values: Iterable[int], /) -> NDArray[np.uint64]:
        """A uint64 array."""
        return np.array(list(values), np.uint64)

    def byte(self, value: bytes, /) -> int:
        """rosbags stores a `byte` as a number."""
        return value[0]

    def _defaults(self, type_name: str) -> dict[str, Callable[[], Any]]:
        if type_name not in self._store.types:
            raise InputError(
                f"message type {type_name!r} is not in the typestore; register its definition, as "
                "`project_typestore` does for this package's messages"
            )
        makers = {name: self._default(kind) for name, kind in self._store.fielddefs[type_name][1]}
        for (owner, name), value in _NON_ZERO.items():
            if owner == type_name:
                makers[name] = lambda value=value: value  # type: ignore[misc]
        return makers

    def _default(self, description: tuple[Nodetype, Any]) -> Callable[[], Any]:
        kind, detail = description
        if kind == Nodetype.NAME:
            return lambda: self(detail)
        if kind == Nodetype.BASE:
            base = detail[0]
            value: Any = "" if base in ("string", "wstring") else False if base == "bool" else 0
            return lambda: 0.0 if base.startswith("float") else value
        (element_kind, element), length = detail
        count = length if kind == Nodetype.ARRAY else 0
        if element_kind == Nodetype.BASE and element[0] not in ("string", "wstring"):
            dtype = np.dtype(_DTYPES.get(element[0], element[0]))
            return lambda: np.zeros(count, dtype)
        element_default = self._default((element_kind, element))
        return lambda: [element_default() for _ in range(count)]
