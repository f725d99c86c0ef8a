"""`sync.policy: approximate | exact`: messages wait in message_filters until there is one of every sensor.

For those who want the usual policy. It gives up a frame when one sensor is missing or its rate differs, which
is why the default is the project's own FrameAssembler; that still stands behind this one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

from e2e_perception.core.errors import ConfigError
from e2e_perception.core.rig import Rig


def require_message_filters(policy: Literal["anchor", "approximate", "exact"]) -> None:
    """Raise `ConfigError` if a policy needs message_filters and it is not installed."""
    if policy != "anchor" and importlib.util.find_spec("message_filters") is None:
        raise ConfigError(
            f"sync.policy {policy!r} needs the ROS package message_filters, which is not installed here; "
            "`apt install ros-$ROS_DISTRO-message-filters`, or set sync.policy to `anchor`"
        )


class Synchronizer:
    """Passes on complete sets of messages."""

    def __init__(
        self,
        rig: Rig,
        policy: Literal["approximate", "exact"],
        queue_size: int,
        on_message: Callable[[str, Any], None],
    ) -> None:
        """Set up message_filters.

        Args:
            rig: All of its sensors are needed for a set; the largest of their tolerances holds for all.
            policy: Equal stamps, or stamps within the tolerance.
            queue_size: Messages kept per sensor.
            on_message: Called with name and message of each member of a set.
        """
        require_message_filters(policy)
        message_filters = importlib.import_module("message_filters")
        self._filters = {sensor.name: message_filters.SimpleFilter() for sensor in rig.sensors}
        filters = list(self._filters.values())
        if policy == "exact":
            synchronizer = message_filters.TimeSynchronizer(filters, queue_size)
        else:
            slop_s = max(sensor.tolerance_ms for sensor in rig.sensors) * 1e-3
            synchronizer = message_filters.ApproximateTimeSynchronizer(filters, queue_size, slop_s)
        names = list(self._filters)

        def pass_on(*messages: Any) -> None:
            for name, message in zip(names, messages, strict=True):
                on_message(name, message)

        synchronizer.registerCallback(pass_on)
        self._synchronizer = synchronizer

    def add(self, name: str, message: Any) -> None:
        """Take in one sensor's message."""
        self._filters[name].signalMessage(message)
