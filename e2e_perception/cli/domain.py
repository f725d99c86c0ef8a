"""A ROS domain of one's own, so that a demo neither hears nor disturbs a robot on the same network."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_perception.core.errors import ConfigError

# Above 101 the ports reach into Linux's range of ephemeral ones; low ones are what people choose by hand.
_DOMAINS = range(30, 102)


@contextmanager
def private_domain() -> Iterator[int]:
    """Reserve a ROS_DOMAIN_ID that no other demo holds and no participant on this machine uses.

    Yields:
        The id, reserved until the block ends.
    Raises:
        ConfigError: If all are taken.
    """
    folder = Path(tempfile.gettempdir()) / f"e2e_perception_domains.{os.getuid()}"
    folder.mkdir(exist_ok=True)
    # Different processes start looking in different places.
    start = os.getpid() % len(_DOMAINS)
    for domain in (*_DOMAINS[start:], *_DOMAINS[:start]):
        with (folder / str(domain)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if _in_use(domain):
                continue
            yield domain
            return
    raise ConfigError(
        f"all ROS domains from {_DOMAINS.start} to {_DOMAINS.stop - 1} are in use on this machine; end other "
        "ROS processes and try again"
    )


def _in_use(domain: int) -> bool:
    """Whether the first participant of a domain has its port: 7400 + 250 d + 10 (DDSI-RTPS 2.3, 9.6.1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", 7410 + 250 * domain))
        except OSError:
            return True
    return False
