"""The network drives, and the expert says what each proposal would have cost (DAgger, Ross et al. 2011).

The path that was driven is no example; the prices are. They come from the expert's own view of what would
happen next, at that instant and in that world, and so also tell how a collision could still have been
avoided.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from e2e_perception.core.config import StackConfig
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.rig import Rig
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.simulation.closed_loop import ClosedLoop, Robot
from e2e_perception.simulation.disturbance import Disturbance
from e2e_perception.simulation.driving import drive_stack
from e2e_perception.simulation.expert import Expert
from e2e_perception.simulation.expert_drives import FAILED_HORIZON_S, scenario_of
from e2e_perception.simulation.scenario import Scenario
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld

PRICED_EVERY_NS = 200_000_000  # half of the frames; imagining what would happen costs as much as a frame


def drive_on_policy(
    spec: ScenarioSpec,
    network: NetworkConfig,
    engine: InferenceEngine,
    rig: Rig,
    config: StackConfig,
    *,
    disturbed: bool = False,
) -> Scenario:
    """Let the stack drive a scenario and keep the drive, with prices.

    Args:
        spec: Which one.
        network, engine: Of the network.
        rig: Its sensors, with cameras of the network's size.
        config: Of the stack.
        disturbed: Whether the robot is pushed off its plan now and then.
    Returns:
        The drive; no part of it is an example to imitate.
    Raises:
        InputError: If it ended before there was anything to record.
    """
    world = TrafficWorld(spec)
    expert = Expert(world, Robot(rig.ego_length, rig.ego_width, rig.ego_center_x).footprint, network=network)
    push = Disturbance(world.start_ns, world.end_ns, spec.seed) if disturbed else None
    prices: dict[int, NDArray[np.float32]] = {}

    def price(loop: ClosedLoop) -> None:
        if (loop.now_ns - world.start_ns) % PRICED_EVERY_NS == 0 and not loop.over:
            prices[loop.now_ns] = expert.prices_of_vocabulary(loop.ego).astype(np.float32)

    record = drive_stack(
        world,
        network,
        engine,
        rig,
        config,
        "on-policy",
        on_tick=price,
        alter=None if push is None else push.altered,
    )
    drive = scenario_of(record, world, spare_s=FAILED_HORIZON_S, failed=True, push=push)
    return replace(drive, prices=prices)
