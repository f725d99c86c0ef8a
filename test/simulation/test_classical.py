"""The classical pipeline drives on what the network detects, and on nothing else of who is on the road."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.config import StackConfig
from e2e_perception.core.ego_motion import EgoState
from e2e_perception.core.episodes import EpisodeRecord
from e2e_perception.core.frames import SE2, SE3
from e2e_perception.core.network_config import BOX_FIELDS, NetworkConfig
from e2e_perception.core.results import FrameResult
from e2e_perception.core.rig import Camera, Rig, find_rig
from e2e_perception.core.trajectories import RouteInput, route_input
from e2e_perception.deploy.contract import TensorContract, tensor_contract
from e2e_perception.deploy.engines import EngineInfo
from e2e_perception.runtime.perception import Perceived, Place
from e2e_perception.runtime.plan_checks import EgoFootprint
from e2e_perception.runtime.preprocess import PreparedFrame
from e2e_perception.simulation.classical import ClassicalConfig, ClassicalPerception, detections, moved
from e2e_perception.simulation.closed_loop import ClosedLoop
from e2e_perception.simulation.driving import drive_policy, drive_stack
from e2e_perception.simulation.proposal_planner import MapKnowledge, ProposalPlanner
from e2e_perception.simulation.randomization import network_sized
from e2e_perception.simulation.traffic_world import ScenarioSpec, TrafficWorld
from e2e_perception.simulation.world import AgentStates

SPEC = ScenarioSpec("highway+cut_in", 4_000_700)  # of the suite `smoke`, as is the other one
EASY = ScenarioSpec("highway", 4_000_000)
NETWORK = NetworkConfig(size="fake", num_queries=8, num_memory=6, image_height=32, image_width=96)
FOOTPRINT = EgoFootprint(4.6, 1.9, 1.4)
REMEMBERED = ("bev_memory", "bev_theta", "memory_valid", "track_tokens", "track_boxes", "track_valid")
Outputs = dict[str, NDArray[Any]]


@dataclass
class ScriptedEngine:
    """Detects cars at given places, and says nonsense of their velocities and of everything else.

    Attributes:
        cars_odom: (x, y, yaw) of each.
        base_from_odom: Where the robot is; to be kept up to date.
        told: What `track_valid` was, frame by frame.
    """

    cars_odom: Sequence[tuple[float, float, float]] = ()
    base_from_odom: SE2 = field(default_factory=lambda: SE2(0.0, 0.0, 0.0))
    told: list[NDArray[Any]] = field(default_factory=list)
    nonsense: float = 7.0

    @property
    def contract(self) -> TensorContract:
        return tensor_contract(NETWORK)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("scripted", "1", "cpu", "float32")

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        self.contract.check_inputs(inputs)
        self.told.append(inputs["track_valid"])
        outputs = {
            spec.name: np.full(spec.shape, self.nonsense, np.float32) for spec in self.contract.outputs
        }
        outputs["query_scores"][:] = 0.01
        for row, (x, y, yaw) in enumerate(self.cars_odom):
            here = self.base_from_odom @ SE2(x, y, yaw)
            sizes = zip(("log_length", "log_width", "log_height"), np.log([4.4, 1.8, 1.6]), strict=True)
            heading = {"sin_yaw": np.sin(here.yaw), "cos_yaw": np.cos(here.yaw)}
            columns = {"x": here.x, "y": here.y, "z": 0.8, **heading, **dict(sizes)}
            for name, value in columns.items():
                outputs["query_boxes"][0, row, BOX_FIELDS.index(name)] = value
            outputs["query_scores"][0, row, CLASSES.index("car")] = 0.9
        return outputs

    def state(self) -> Outputs:
        return {}

    def reset_state(self) -> None:
        pass

    def close(self) -> None:
        pass


class EmptyWorld(TrafficWorld):
    """The same road and task, and nobody on it."""

    def __init__(self, spec: ScenarioSpec) -> None:
        super().__init__(spec)
        self.obstacles_O5 = np.zeros((0, 5))

    def agents_at(self, stamp_ns: int) -> AgentStates:
        states = super().agents_at(stamp_ns)
        return AgentStates(states.poses_N3, states.velocities_N2, np.zeros_like(states.present_N))


def small_rig() -> Rig:
    rig = find_rig("tiny")
    cameras = {s.name: network_sized(s, NETWORK) for s in rig.sensors if isinstance(s, Camera)}
    return rig.with_sensors(cameras)


def drive(
    world: TrafficWorld, engine: ScriptedEngine, results: list[FrameResult] | None = None
) -> EpisodeRecord:
    def locate(loop: ClosedLoop) -> None:
        engine.base_from_odom = loop.ego.odom_from_base.planar_part().inverse()

    return drive_stack(
        world,
        NETWORK,
        engine,
        small_rig(),
        StackConfig(),
        "scripted",
        on_tick=locate,
        on_result=None if results is None else lambda _, result: results.append(result),
        classical=ClassicalConfig(),
    )


# ------------------------------------------------------------------ driving


def test_who_is_not_detected_does_not_alter_the_plan() -> None:
    # Somebody who cuts in, unseen; debris on the road, unseen; and the same roads with nobody on them.
    for spec in (SPEC, ScenarioSpec("two_way+debris", 9_000_002)):
        crowded, alone = (
            drive(TrafficWorld(spec), ScriptedEngine()),
            drive(EmptyWorld(spec), ScriptedEngine()),
        )
        assert len(crowded.contacts) > 0  # or nothing stood in the way, and the test would be of no use
        assert len(alone.contacts) == 0
        shared = len(crowded.ego_T5)
        np.testing.assert_array_equal(crowded.ego_T5, alone.ego_T5[:shared])
        for one, other in zip(crowded.plans, alone.plans[:shared], strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_array_equal(one, other)


def test_what_is_detected_is_braked_for_whether_it_is_there_or_not() -> None:
    world = EmptyWorld(SPEC)
    s, _ = world.route.project((0.0, 0.0))
    points, tangents = world.route.at(s + np.array([70.0]))
    yaw = float(np.arctan2(tangents[0, 1], tangents[0, 0]))
    normal = np.array([-tangents[0, 1], tangents[0, 0]])
    wall = [(*(points[0] + 2.5 * k * normal), yaw) for k in range(-3, 4)]  # over all lanes
    engine, results = ScriptedEngine(wall), []
    record = drive(world, engine, results)

    assert record.progress_T.max() - s < 70.0
    assert record.ego_T5[-1, 3] < 1.0
    tracks = results[-1].tracks
    assert tracks is not None
    assert (
        np.hypot(*tracks.boxes.velocities_N2[tracks.confirmed_N].T).max() < 0.5
    )  # not what the network says
    assert not any(valid.any() for valid in engine.told)  # the network is told of no tracks
    assert record.policy == "classical:scripted"


@pytest.mark.slow
def test_with_the_shipped_bundle_it_does_not_hit_whom_constant_velocity_hits() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: `pip install onnxruntime`")
    from e2e_perception.deploy.bundle import load_bundle
    from e2e_perception.deploy.engines import create_engine

    bundle = load_bundle("tiny")
    engine = create_engine(bundle, "onnxruntime", num_threads=1)
    cameras = {s.name: network_sized(s, bundle.network) for s in bundle.rig.sensors if isinstance(s, Camera)}
    record = drive_stack(
        TrafficWorld(EASY),
        bundle.network,
        engine,
        bundle.rig.with_sensors(cameras),
        StackConfig(),
        str(bundle),
        classical=ClassicalConfig(),
    )
    engine.close()

    assert len(drive_policy(TrafficWorld(EASY), "constant-velocity").contacts) > 0
    assert len(record.contacts) == 0
    assert not record.failure
    assert record.progress_T.max() >= record.goal_s


# ------------------------------------------------------------------ one frame


def made(engine: ScriptedEngine) -> ClassicalPerception:
    planner = ProposalPlanner(MapKnowledge.of(EmptyWorld(SPEC)), FOOTPRINT, network=NETWORK)
    return ClassicalPerception(NETWORK, engine, StackConfig(), planner)


def frame(perception: ClassicalPerception, stamp_ns: int, *, place: bool = True, epoch: int = 0) -> Perceived:
    """One frame of a robot that stands at the origin of odom."""
    inputs = {
        spec.name: np.zeros(spec.shape, spec.dtype)
        for spec in tensor_contract(NETWORK).inputs
        if spec.name not in REMEMBERED
    }
    ego = EgoState(stamp_ns, SE3.identity(), np.zeros(3), 0.0) if place else None
    route: RouteInput = route_input(perception.planner.known.route, SE2(0.0, 0.0, 0.0))
    prepared = PreparedFrame(stamp_ns, inputs, {}, ego, route, np.zeros((0, 3), np.float32))
    return perception.step(prepared, Place(stamp_ns, SE3.identity(), epoch) if place else None, lambda: None)


MS = 1_000_000


@pytest.mark.parametrize(
    ("stamp_ms", "epoch", "goes_on"), [(300, 0, True), (300, 1, False), (1500, 0, False)],
    ids=["in time", "after a jump", "after a gap"],
)  # fmt: skip
def test_tracks_go_on_only_where_odometry_does(stamp_ms: int, epoch: int, goes_on: bool) -> None:
    perception = made(ScriptedEngine([(20.0, 0.0, 0.0)]))
    first = [frame(perception, k * 100 * MS) for k in range(3)][-1]
    later = frame(perception, stamp_ms * MS, epoch=epoch)

    assert first.tracks is not None and later.tracks is not None
    assert first.tracks.boxes.ids_N.tolist() == [0]
    assert (later.tracks.boxes.ids_N.tolist() == [0]) == goes_on
    assert later.plan is not None


def test_without_ego_motion_there_are_no_tracks_and_no_plan() -> None:
    perception = made(ScriptedEngine([(20.0, 0.0, 0.0)]))
    frame(perception, 0)
    lost = frame(perception, 100 * MS, place=False)

    assert lost.tracks is not None and len(lost.tracks) == 0
    assert lost.plan is None and not lost.problem


def test_a_frame_without_numbers_is_reported_and_leaves_the_tracks() -> None:
    engine = ScriptedEngine([(20.0, 0.0, 0.0)])
    perception = made(engine)
    frame(perception, 0)
    engine.nonsense = np.nan
    bad = frame(perception, 100 * MS)

    assert bad.cause == "non_finite_output"
    assert bad.plan is None
    assert perception.kalman.tracks.hits_N.tolist() == [1]


def test_futures_are_straight_on_at_the_tracks_velocity() -> None:
    engine = ScriptedEngine([(20.0, 0.0, 0.0)])
    perception = made(engine)
    for k in range(20):
        engine.cars_odom = [(20.0 + 0.5 * k, 3.0, 0.0)]
        perceived = frame(perception, k * 100 * MS)
    tracks = perceived.tracks

    assert tracks is not None
    np.testing.assert_allclose(tracks.boxes.velocities_N2, [[5.0, 0.0]], atol=0.1)
    expected = tracks.boxes.centers_N3[0, :2] + tracks.times_T[:, None] * tracks.boxes.velocities_N2[0]
    np.testing.assert_allclose(tracks.futures_NMT2[0, 0], expected, atol=1e-4)


# ------------------------------------------------------------------ detections


def test_detections_are_the_sure_ones_without_repetitions_and_without_velocities() -> None:
    engine = ScriptedEngine([(20.0, 0.0, 0.3), (20.5, 0.2, 0.3), (40.0, 5.0, 0.0)])
    outputs = outputs_of(engine)
    outputs["query_scores"][0, 1, CLASSES.index("car")] = 0.95  # of the two at one place the surer one stays
    outputs["query_scores"][0, 2, CLASSES.index("truck")] = 0.99
    found = detections(outputs, ClassicalConfig())

    np.testing.assert_allclose(found.centers_N3[:, 0], [40.0, 20.5])
    assert found.class_ids_N.tolist() == [CLASSES.index("truck"), CLASSES.index("car")]
    np.testing.assert_allclose(found.scores_N, [0.99, 0.95])
    np.testing.assert_allclose(found.sizes_N3[1], [4.4, 1.8, 1.6], rtol=1e-5)
    assert not found.velocities_N2.any()


def outputs_of(engine: ScriptedEngine) -> Outputs:
    return engine.infer({spec.name: np.zeros(spec.shape, spec.dtype) for spec in engine.contract.inputs})


def test_boxes_that_are_moved_there_and_back_are_the_same() -> None:
    outputs = outputs_of(ScriptedEngine([(20.0, 3.0, 0.3), (-5.0, 8.0, -3.0)]))
    boxes = detections(outputs, ClassicalConfig())
    there = SE2(30.0, -12.0, 2.5)
    back = moved(moved(boxes, there), there.inverse())

    np.testing.assert_allclose(back.centers_N3, boxes.centers_N3, atol=1e-5)
    np.testing.assert_allclose(np.exp(1j * back.yaws_N), np.exp(1j * boxes.yaws_N), atol=1e-5)
