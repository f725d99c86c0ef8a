"""Plays a bag through the stack: `ros2 launch e2e_perception replay.launch.py bag:=/path/to/bag rig:=kitti_highway`.

Starts the perception node on simulated time, the player, and a recorder if `record` names a directory. Everything
ends when the bag is over.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "bag": ("", "Bag directory or file to play."),
    "rate": ("1.0", "Speed of play."),
    "loop": ("false", "Play again and again."),
    "start": ("0.0", "Skip so much of the beginning [s]."),
    "record": ("", "Bag directory to create with the stack's outputs; empty: none."),
}
PASSED_ON = ("params_file", "bundle", "backend", "rig", "namespace", "sensor_topics")


def _start(context: LaunchContext) -> list[object]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not given["bag"]:
        raise RuntimeError("no bag given; call with bag:=/path/to/rosbag2")
    bringup = PathJoinSubstitution([FindPackageShare("e2e_perception"), "launch", "bringup.launch.py"])
    passed = {name: LaunchConfiguration(name) for name in PASSED_ON}
    player = Node(
        package="e2e_perception",
        executable="replay_node",
        parameters=[
            {
                "bag": given["bag"],
                "rate": float(given["rate"]),
                "loop": given["loop"].lower() == "true",
                "start": float(given["start"]),
            }
        ],
        output="screen",
    )
    actions: list[object] = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(bringup), launch_arguments={**passed, "use_sim_time": "true"}.items()
        ),
        player,
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[Shutdown(reason="the bag is over")])),
    ]
    if given["record"]:
        actions.insert(
            1,
            Node(
                package="e2e_perception",
                executable="recorder_node",
                namespace=LaunchConfiguration("namespace"),
                parameters=[{"out": given["record"]}],
                output="screen",
            ),
        )
    return actions


def generate_launch_description() -> LaunchDescription:
    """Declared arguments, then the nodes."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    passed = [
        DeclareLaunchArgument(name, default_value="", description="See bringup.launch.py.") for name in PASSED_ON
    ]
    return LaunchDescription([*declared, *passed, OpaqueFunction(function=_start)])
