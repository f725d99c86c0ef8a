"""Quality of service of every topic, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

SENSOR_DEPTH = 10


def output_qos(depth: int = 10) -> QoSProfile:
    """Tracks, plans and health: nobody may miss one; `depth` of them may wait for a slow listener."""
    return QoSProfile(depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)


def latched_qos() -> QoSProfile:
    """Said once and kept for whoever comes later: /tf_static."""
    return QoSProfile(
        depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )


def sensor_qos(
    offers: Sequence[Any], reliability: Literal["auto", "best_effort", "reliable"] = "auto"
) -> QoSProfile:
    """What to ask of a sensor's publishers.

    Best effort is the custom for sensors, and loses what does not fit the transport's buffers: with Fast
    DDS's default of 512 KB of shared memory, a 1.8 MB point cloud never arrives. So where all publishers
    offer reliable delivery it is used; a reliable subscription would get nothing from the others.

    Args:
        offers: QoS profiles of the topic's publishers; empty: none is known yet.
        reliability: `auto`, or what the configuration demands.
    """
    if reliability == "auto":
        reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
    else:
        reliable = reliability == "reliable"
    return QoSProfile(
        depth=SENSOR_DEPTH,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=_durability(offers),
    )


def state_qos(offers: Sequence[Any]) -> QoSProfile:
    """Odometry and route: as reliable, and as lasting, as all publishers offer."""
    return sensor_qos(offers, "auto")


def _durability(offers: Sequence[Any]) -> DurabilityPolicy:
    # A latched route has to be taken as latched, or whoever comes late never hears of it.
    latched = bool(offers) and all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
    return DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE


def same_qos(a: QoSProfile, b: QoSProfile) -> bool:
    """Whether two profiles ask for the same, in what is decided here."""
    return bool(a.reliability == b.reliability and a.durability == b.durability)
