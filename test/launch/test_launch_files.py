"""The launch files with ROS 2's own `launch`, where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; source a ROS 2 workspace")
launch = pytest.importorskip("launch", reason="ROS 2's launch is not installed")
pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
launch_pytest = pytest.importorskip("launch_pytest", reason="ROS 2's launch_pytest is not installed")
if importlib.util.find_spec("e2e_perception.msg") is None:
    pytest.skip("the package is not built; run `make setup`", allow_module_level=True)

import rclpy  # noqa: E402
from launch.actions import IncludeLaunchDescription, TimerAction  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
from launch_pytest.actions import ReadyToTest  # noqa: E402
from lifecycle_msgs.msg import State  # noqa: E402
from lifecycle_msgs.srv import GetState  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402

from e2e_perception.cli.domain import private_domain  # noqa: E402
from e2e_perception.core.resources import resource_dir  # noqa: E402

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(
    not (resource_dir() / "bundles" / "tiny").is_dir(), reason="the bundle `tiny` is not there"
)


def include(name: str, **arguments: str) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(LAUNCH / name))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())


def lifecycle_state(node_name: str) -> int:
    """State that a node's `get_state` service answers, within the deadline."""
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("test_launch", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        client = node.create_client(GetState, f"{node_name}/get_state")
        assert client.wait_for_service(PATIENCE_S), f"{node_name} did not appear"
        answer = client.call_async(GetState.Request())
        executor.spin_until_future_complete(answer, PATIENCE_S)
        assert answer.done(), f"{node_name} did not answer"
        return int(answer.result().current_state.id)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


@launch_pytest.fixture
def brought_up() -> launch.LaunchDescription:
    actions = [include("bringup.launch.py", rig="kitti_highway", namespace="robot_1"), ReadyToTest()]
    return launch.LaunchDescription(actions)


@pytest.mark.launch(fixture=brought_up)
def test_bringup_starts_an_active_node_in_its_namespace() -> None:
    assert lifecycle_state("/robot_1/perception_node") == State.PRIMARY_STATE_ACTIVE


@launch_pytest.fixture
def waiting() -> launch.LaunchDescription:
    return launch.LaunchDescription([include("bringup.launch.py", autostart="false"), ReadyToTest()])


@pytest.mark.launch(fixture=waiting)
def test_without_autostart_the_node_waits_unconfigured() -> None:
    assert lifecycle_state("/perception_node") == State.PRIMARY_STATE_UNCONFIGURED


def run_to_the_end(description: IncludeLaunchDescription, patience_s: float) -> int:
    """Exit code of `ros2 launch`; what goes on for too long is shut down."""
    service = launch.LaunchService(noninteractive=True)
    late = TimerAction(period=patience_s, actions=[launch.actions.Shutdown(reason="too late")])
    service.include_launch_description(launch.LaunchDescription([late, description]))
    return int(service.run())


@pytest.mark.parametrize("name", ["replay.launch.py", "sim.launch.py"])
def test_without_a_bag_or_a_scenario_it_says_what_is_missing(name: str) -> None:
    assert run_to_the_end(include(name), 30.0) == 1


def test_sim_drives_a_scenario_in_a_namespace_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highway_env", reason="highway-env is not installed: `pip install .[training]`")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with private_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        drive = include(
            "sim.launch.py",
            scenario="highway/1",
            out=str(tmp_path / "drive"),
            record=str(tmp_path / "outputs"),
            namespace="robot_1",
            rate="0.0",
            duration="2.0",
        )
        assert run_to_the_end(drive, 2 * PATIENCE_S) == 0
    outcome = json.loads((tmp_path / "drive" / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["scenario"] == "highway/1@0.5"
    assert outcome["counters"]["plans"] >= 18
    assert (tmp_path / "drive" / "episode.html").is_file()
    assert (tmp_path / "outputs" / "metadata.yaml").is_file()
