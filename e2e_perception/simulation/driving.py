"""Driving one episode in process, by whoever is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.errors import E2EPerceptionError, InputError
from e2e_perception.core.network_config import NetworkConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Rig
from e2e_perception.core.trajectories import Plan
from e2e_perception.deploy.engines import InferenceEngine
from e2e_perception.runtime.pipeline import Pipeline
from e2e_perception.simulation.classical import ClassicalConfig, ClassicalPerception
from e2e_perception.simulation.closed_loop import PLAN_DELAY_NS, ClosedLoop, Robot
from e2e_perception.simulation.degradation import DegradationSchedule
from e2e_perception.simulation.ego_vehicle import TICK_NS, TICK_S, Command, EgoVehicle
from e2e_perception.simulation.policies import make_policy
from e2e_perception.simulation.proposal_planner import MapKnowledge, ProposalPlanner
from e2e_perception.simulation.sensor_rig import SensorRig
from e2e_perception.simulation.world import World

IDLE_NS = 100_000_000


def drive_policy(
    world: World,
    policy_name: str,
    *,
    robot: Robot | None = None,
    open_loop: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
) -> EpisodeRecord:
    """An episode driven without sensors.

    Args:
        world: Fresh.
        policy_name: One of `policies.SIMPLE_POLICIES`.
        robot: Outline and actuators.
        open_loop: The robot drives as the recording car did; plans are kept and change nothing.
        on_plan: Called with every plan.
    Returns:
        What happened. A policy that gives nothing, or no numbers, or throws, has failed; nothing is thrown.
    Raises:
        InputError: If there is no such policy, it cannot drive such a world, or the world is no log and
            `open_loop` was asked for.
    """
    loop = ClosedLoop(world, robot=robot)
    if open_loop:
        _drive_as_logged(loop)
    policy = make_policy(policy_name, world, loop.robot.footprint)

    def plan(ego: EgoState) -> object:
        found = policy.plan(ego)
        if on_plan is not None and found is not None:
            on_plan(found)
        return found

    return drive_with(loop, plan, policy.period_ns, policy_name)


def drive_with(
    loop: ClosedLoop,
    plan: Callable[..., object],
    period_ns: int,
    name: str,
) -> EpisodeRecord:
    """An episode driven by any function from the robot's state to a plan.

    Args:
        loop: Fresh.
        plan: Called with the `EgoState` now; gives a `Plan`, or None for no new one.
        period_ns: How often, a multiple of the world's step [ns].
        name: For the record.
    """
    while not loop.over:
        if (loop.now_ns - loop.world.start_ns) % period_ns == 0:
            try:
                wanted = plan(loop.ego)
            except Exception as error:  # noqa: BLE001 - whatever a policy does, the suite goes on
                loop.fail(f"{type(error).__name__}: {error}")
                break
            if isinstance(wanted, Plan):
                loop.take_plan(wanted)
            elif wanted is not None:
                loop.fail(f"the policy gave {type(wanted).__name__}, expected a Plan")
        loop.tick()
    return loop.record(name)


def drive_stack(
    world: World,
    network: NetworkConfig,
    engine: InferenceEngine,
    rig: Rig,
    config: StackConfig,
    bundle_name: str,
    *,
    degradation: DegradationSchedule | None = None,
    open_loop: bool = False,
    on_result: Callable[[ClosedLoop, FrameResult], None] | None = None,
    on_tick: Callable[[ClosedLoop], None] | None = None,
    alter: Callable[[Plan], Plan] | None = None,
    classical: ClassicalConfig | None = None,
) -> EpisodeRecord:
    """An episode driven by the code that runs on the robot, on what its sensors measure.

    Args:
        world: Fresh.
        network, engine: Of the bundle; the engine's state is reset.
        rig: The robot. It measures as its cameras are: give them the network's size, or they are decoded.
        config: All tunables; the speed limit and the route are the world's.
        bundle_name: For the record.
        degradation: What goes wrong with the sensors.
        open_loop: The robot drives as the recording car did; plans are kept and change nothing.
        on_result: Called with every frame's result, before its plan is taken.
        on_tick: Called after every step of time.
        alter: What the robot is made to follow in place of a plan.
        classical: If given, the network only detects, see `simulation.classical`.
    """
    sensors = SensorRig(rig, world.start_ns, world.end_ns, world.seed, degradation)
    robot = Robot(rig.ego_length, rig.ego_width, rig.ego_center_x)
    loop = ClosedLoop(world, robot=robot, sensors=sensors)
    if open_loop:
        _drive_as_logged(loop)
    engine.reset_state()
    planning = config.planning.model_copy(update={"speed_limit": world.speed_limit})
    config = config.model_copy(update={"planning": planning})
    pipeline = Pipeline(network, rig, engine, config, bundle_name)
    if classical is not None:
        planner = ProposalPlanner(MapKnowledge.of(world), robot.footprint, network=network)
        pipeline.perception = ClassicalPerception(network, engine, config, planner, classical)
    pipeline.set_route(world.route)
    pipeline.push_odometry(loop.ego)

    def take(results: list[FrameResult]) -> None:
        for result in results:
            if on_result is not None:
                on_result(loop, result)
            if result.plan is not None:
                plan = result.plan if alter is None else alter(result.plan)
                loop.take_plan(plan, delay_ns=PLAN_DELAY_NS, state=result.health.state)

    next_idle_ns = world.start_ns + IDLE_NS
    while not loop.over:
        messages = loop.tick()
        if on_tick is not None:
            on_tick(loop)
        pipeline.push_odometry(loop.ego)
        try:
            for message in messages:
                # Deadlines that passed before this arrival come first, as on the robot.
                _keep_deadlines(pipeline, message.arrival_ns, take)
                pipeline.push(message)
                take(pipeline.poll(message.arrival_ns))
            _keep_deadlines(pipeline, loop.now_ns, take)
        except E2EPerceptionError as error:
            loop.fail(str(error))
        if loop.now_ns >= next_idle_ns:
            next_idle_ns += IDLE_NS
            silent = pipeline.idle(loop.now_ns)
            if silent is not None:
                take([silent])
    health = pipeline.health(loop.now_ns)
    counters = {"frames": health.frames, "plans": health.plans}
    counters |= {f"dropped: {cause}": count for cause, count in sorted(health.drops.items()) if count}
    kind = "bundle" if classical is None else "classical"
    return loop.record(f"{kind}:{bundle_name}", counters)


def _keep_deadlines(pipeline: Pipeline, until_ns: int, take: Callable[[list[FrameResult]], None]) -> None:
    kept_ns: int | None = None
    while True:
        deadline_ns = pipeline.next_deadline_ns()
        if deadline_ns is None or deadline_ns > until_ns or deadline_ns == kept_ns:
            return
        kept_ns = deadline_ns
        take(pipeline.poll(deadline_ns))


@runtime_checkable
class _LoggedDrive(Protocol):
    """What `LogWorld` offers beside a `World`."""

    def logged_ego(self, stamp_ns: int) -> EgoState:
        """The recording car at an instant."""
        ...


class _LoggedVehicle(EgoVehicle):
    """Moves as the recording car did, whatever it is told."""

    def __init__(self, start: EgoState, world: _LoggedDrive) -> None:
        super().__init__(start)
        self._world = world

    @property
    def state(self) -> EgoState:
        return self._world.logged_ego(self.stamp_ns)

    def step(self, command: Command) -> None:
        self.stamp_ns += TICK_NS
        speed = self.state.speed
        self.acceleration = (speed - self.speed) / TICK_S
        self.speed = speed


def _drive_as_logged(loop: ClosedLoop) -> None:
    world = loop.world
    if not isinstance(world, _LoggedDrive):
        raise InputError(f"open loop follows a recorded drive, and {world.name} has none; drive a log")
    loop.vehicle = _LoggedVehicle(world.start, world)
